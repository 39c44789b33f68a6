//! Opening a repository: as an installed host, as a sealed one, or as a stranger who has an identity and a URL.

use crate::base::ids::{HostName, ObjectId, PolicyName, RepositoryId, Sequence};
use crate::ops::copy;
use crate::ops::foresight::{self, Purpose};
use crate::ops::storage::{StorageOptions, open_storage};
use crate::ops::{OpsError, Run};
use crate::pipeline::crypt::Identities;
use crate::policy::Policy;
use crate::policy::model::RepositoryUrl;
use crate::repository::chain::{Chain, Snapshot, full_text, resolve, rolled_back};
use crate::repository::headers::HeaderCache;
use crate::repository::keys::{HostKey, IdentityFile};
use crate::repository::reader::{ReaderOptions, SnapshotReader};
use crate::repository::state::State;
use crate::repository::trust::{ChainHead, Pin};
use crate::repository::{Repository, RepositoryError};
use crate::storage::Storage;
use chrono::{DateTime, Local, NaiveDate, NaiveDateTime, TimeDelta, TimeZone, Utc};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Where an installation keeps its configuration and state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    pub config_dir: PathBuf,
    pub state_dir: PathBuf,
}

impl Installation {
    /// `/etc/lifeboat` and `/var/lib/lifeboat` for root; below the home folder (XDG) for everybody else.
    pub fn standard() -> Self {
        if rustix::process::geteuid().is_root() {
            return Self { config_dir: "/etc/lifeboat".into(), state_dir: "/var/lib/lifeboat".into() };
        }
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/nonexistent".into()));
        let xdg = |variable: &str, default: &str| {
            let set = std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
            set.unwrap_or_else(|| home.join(default)).join("lifeboat")
        };
        Self { config_dir: xdg("XDG_CONFIG_HOME", ".config"), state_dir: xdg("XDG_STATE_HOME", ".local/state") }
    }

    pub fn identity(&self) -> PathBuf {
        self.config_dir.join("identity.txt")
    }

    pub fn host_key(&self) -> PathBuf {
        self.config_dir.join("host.key")
    }

    pub fn policies(&self) -> PathBuf {
        self.config_dir.join("policies")
    }
}

/// This host's name as snapshots carry it.
pub fn host_name() -> Result<HostName, OpsError> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.parse().map_err(|e| OpsError::failed(format!("{e}"), "give the host a name of letters, digits, '-' and '.'"))
}

/// What a reading command was given.
#[derive(Debug, Clone, Default)]
pub struct AccessRequest {
    pub policy: Option<Policy>,
    /// `--repository`: instead of the policy's.
    pub repository: Option<RepositoryUrl>,
    /// `--identity`: instead of the policy's.
    pub identity: Option<PathBuf>,
    /// `--signer`: the repository id that is expected.
    pub signer: Option<RepositoryId>,
    pub trust_on_first_use: bool,
    /// `--host`: only this host's snapshots.
    pub host: Option<HostName>,
    /// `--expect SEQ:HASH`: a header that somebody else remembers, from a notification or a kit.
    pub expect: Option<(Sequence, ObjectId)>,
    /// Headers and records that this host has verified before are not read again; they are listed all the same. Not for
    /// what looks for damage, or deletes.
    pub remembered: bool,
    /// What it is opened for: what that will ask for is asked at once.
    pub purpose: Purpose,
    /// It is only read, so that a state folder in which nothing can be written is no hindrance.
    pub read_only: bool,
}

impl AccessRequest {
    /// A policy's own repository.
    pub fn of(policy: &Policy) -> Self {
        Self { policy: Some(policy.clone()), ..Self::default() }
    }
}

/// A repository open for reading.
pub struct Access {
    pub repository: Arc<Repository>,
    pub chain: Chain,
    /// Absent on a sealed host.
    pub identities: Option<Arc<Identities>>,
    /// Absent for a stranger.
    pub state: Option<Arc<State>>,
    pub policy: Option<PolicyName>,
    pub host: Option<HostName>,
    /// What is remembered of headers and records, where it may be used.
    pub headers: Option<HeaderCache>,
    /// The repository holds less than was seen before: it has been rolled back, or the history replaced.
    pub alarms: Vec<String>,
    /// What cannot be excluded, because nothing is remembered here.
    pub notices: Vec<String>,
    /// The snapshot that was opened last: a plan and what is done by it read the same one.
    open: Mutex<Option<Arc<SnapshotReader>>>,
}

impl Access {
    /// Opens what was asked for, checks its root against what is known, and verifies every header.
    pub fn open(installation: &Installation, request: &AccessRequest) -> Result<Self, OpsError> {
        Self::open_while(installation, request, || {})
    }

    /// The same; `meanwhile` is begun once the first questions are on their way, and must not wait for anything.
    pub fn open_while(
        installation: &Installation,
        request: &AccessRequest,
        meanwhile: impl FnOnce(),
    ) -> Result<Self, OpsError> {
        let policy = request.policy.as_ref();
        let url = request.repository.as_ref().or(policy.map(|p| &p.repository.url));
        let url = url.ok_or_else(|| {
            OpsError::usage("no repository is named", "name a policy with -p, or a repository with --repository")
        })?;
        let options = policy.map_or_else(StorageOptions::stranger, |p| match copy::listed(p, url) {
            Some(listed) => copy::options(&p.repository, listed),
            None => StorageOptions::of(&p.repository),
        });
        let options = options.knowing(&installation.state_dir, url);
        let storage = open_storage(url, &options)?;
        // A stranger leaves no state behind; an installed host remembers what it has seen.
        let (state, unwritable) = match installation.state_dir.is_dir() || policy.is_some() {
            false => (None, None),
            true if request.read_only => State::open_or_copy(&installation.state_dir).map(|(s, why)| (Some(s), why))?,
            true => (Some(State::open(&installation.state_dir)?), None),
        };
        let state = state.map(Arc::new);
        let records_ahead = foresight::ask(storage.as_ref(), state.as_deref(), request);
        meanwhile();
        let identity = load_identity(installation, request)?;
        let pin = find_pin(installation, request, storage.as_ref(), state.as_deref(), identity.as_ref())?;
        let mut repository = Arc::new(Repository::open(storage.clone(), &pin)?);
        if let Some(state) = &state {
            match compare_signers(state, &repository) {
                // Another process may have vouched for a key between this one's look at the signers and at the memory.
                Err(OpsError::Repository(RepositoryError::SignersMissing { .. })) => {
                    repository = Arc::new(Repository::open(storage, &Pin::Exactly(repository.id().clone()))?);
                }
                other => other?,
            }
        }
        if let Some(state) = &state {
            state.set_pin(&repository.storage().describe(), repository.id())?;
        }
        let identities = identity.map(|file| Arc::new(file.identities));
        let mut access = Self::with_records(repository, identities, state, request, records_ahead)?;
        access.notices.extend(unwritable.map(|why| {
            let dir = installation.state_dir.display();
            format!("nothing can be written in {dir}, so what is learned now is forgotten again: {}", full_text(&why))
        }));
        Ok(access)
    }

    /// The same for a repository that is open already.
    pub fn of(
        repository: Arc<Repository>,
        identities: Option<Arc<Identities>>,
        state: Option<Arc<State>>,
        request: &AccessRequest,
    ) -> Result<Self, OpsError> {
        Self::with_records(repository, identities, state, request, false)
    }

    /// `records_ahead`: the records were listed beside the headers, not behind them. A prune writes its record before it
    /// deletes a header, so such a list can lack the record of a header that is gone: where anything seems to be gone,
    /// both are listed anew, in order.
    fn with_records(
        repository: Arc<Repository>,
        identities: Option<Arc<Identities>>,
        state: Option<Arc<State>>,
        request: &AccessRequest,
        records_ahead: bool,
    ) -> Result<Self, OpsError> {
        if let Some(state) = &state {
            compare_signers(state, &repository)?;
        }
        // Remembered before it is looked at: what another process commits meanwhile is seen then, or not remembered yet.
        let is_named = request.repository.is_some();
        let recall = |state: &Arc<State>| Remembered::of(state, &repository, is_named);
        let remembered = state.as_ref().map_or(Ok(Remembered::default()), recall)?;
        let remembering = state.as_ref().filter(|_| request.remembered);
        let headers =
            remembering.and_then(|state| state.header_cache(repository.id(), &repository.storage().describe()));
        let mut chain = Chain::load_with(&repository, headers.as_ref())?;
        if records_ahead && remembered.is_in_doubt(&chain, request.expect.as_ref()) {
            chain = Chain::load_with(&repository, headers.as_ref())?;
        }
        let mut alarms = Vec::new();
        let mut notices = Vec::new();
        if let Some((sequence, header)) = &request.expect
            && !chain.knows(*sequence, header)
        {
            alarms.push(format!("snapshot {sequence} with hash {header} is expected, and it is not there"));
        }
        match &state {
            Some(state) => {
                let (gone_back, behind) = compare_heads(state, &repository, &remembered, &chain)?;
                alarms.extend(gone_back);
                notices.extend(behind);
            }
            None if request.expect.is_none() && chain.all().next().is_some() => notices.push(
                "nothing is remembered here of this repository: that newer snapshots were removed cannot be excluded \
                 (give --expect SEQ:HASH from a notification or kit)"
                    .to_owned(),
            ),
            None => {}
        }
        Ok(Self {
            alarms,
            notices,
            repository,
            chain,
            identities,
            state,
            policy: request.policy.as_ref().map(|p| p.app.name.clone()),
            host: request.host.clone(),
            headers,
            open: Mutex::default(),
        })
    }

    /// The headers as they are by now: what has come since is read from the storage.
    pub fn reload(&self) -> Result<Chain, OpsError> {
        self.reload_as(&self.repository)
    }

    /// The same as another look at this repository sees them, one that knows more signers.
    pub fn reload_as(&self, repository: &Repository) -> Result<Chain, OpsError> {
        Ok(Chain::load_with(repository, self.headers.as_ref())?)
    }

    /// The same repository with its headers as they are by now.
    pub fn with_chain(self, chain: Chain) -> Self {
        Self { chain, ..self }
    }

    /// The snapshots that the command is about, oldest first: of the policy (and host) where one is named. One that a
    /// prune removed is none of them, even while its header is still there.
    pub fn snapshots(&self) -> Vec<&Snapshot> {
        let mut all = self.all_snapshots();
        all.retain(|s| !self.chain.was_pruned(s));
        all
    }

    fn all_snapshots(&self) -> Vec<&Snapshot> {
        let wanted = |s: &&Snapshot| {
            self.policy.as_ref().is_none_or(|p| s.header.policy == *p)
                && self.host.as_ref().is_none_or(|h| s.header.host == *h)
        };
        let mut all: Vec<&Snapshot> = self.chain.all().filter(wanted).collect();
        let lines = |s: &&Snapshot| (s.header.host.clone(), s.header.policy.clone());
        let first = all.first().map(lines);
        // Within one host and policy the sequence is the order; across several only time is left.
        if all.iter().any(|s| Some(lines(s)) != first) {
            all.sort_by_key(|s| (s.header.time, s.header.sequence));
        }
        all
    }

    /// The snapshot that a person means.
    pub fn resolve(&self, name: &str, now: DateTime<Utc>) -> Result<&Snapshot, OpsError> {
        match resolve(&self.snapshots(), name, parse_time(name, now)) {
            Ok(found) => Ok(found),
            // One that was removed may still be whole, and its id is asking for no other: locked storage keeps it.
            Err(e) => match self.all_snapshots().into_iter().find(|s| s.header.id.as_str() == name) {
                Some(removed) => Ok(removed),
                None => Err(e.into()),
            },
        }
    }

    /// The identities, or the error that says what needs them.
    pub fn identities(&self, what: &'static str) -> Result<Arc<Identities>, OpsError> {
        self.identities.clone().ok_or(OpsError::NoIdentity { what })
    }

    /// A snapshot open for reading.
    pub fn reader(&self, snapshot: &Snapshot, what: &'static str, run: &Run) -> Result<Arc<SnapshotReader>, OpsError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = open.as_ref().filter(|reader| reader.snapshot.header_id == snapshot.header_id) {
            return Ok(reader.clone());
        }
        // Two at once would take twice the memory.
        *open = None;
        let options = ReaderOptions {
            identities: self.identities(what)?,
            index_cache: self.state.as_ref().map(|s| s.index_cache(self.repository.id())),
            tmp: self.state.as_ref().map_or_else(std::env::temp_dir, |s| s.dir().to_owned()),
            cancel: run.cancel.clone(),
        };
        let reader = Arc::new(SnapshotReader::open(self.repository.clone(), snapshot, options)?);
        *open = Some(reader.clone());
        Ok(reader)
    }
}

/// Signers only ever get more: fewer mean that one, perhaps a revocation, is being hidden.
fn compare_signers(state: &State, repository: &Repository) -> Result<(), OpsError> {
    let seen = state.signer(repository.id())?;
    if let Some((number, hash)) = seen {
        repository.check_signers(number, hash)?;
    }
    match repository.last_signer() {
        Some((number, hash)) if seen != Some((number, hash)) => Ok(state.set_signer(repository.id(), number, hash)?),
        _ => Ok(()),
    }
}

/// What this host remembers of the newest snapshots.
#[derive(Default)]
struct Remembered {
    all: Vec<ChainHead>,
    /// What a copy was left with, where this is one.
    copy: Option<Vec<ChainHead>>,
}

impl Remembered {
    fn of(state: &State, repository: &Repository, is_named: bool) -> Result<Self, OpsError> {
        let location = repository.storage().describe();
        let copy = if is_named && state.is_copy(&location, repository.id())? {
            Some(state.copy_heads(&location, repository.id())?)
        } else {
            None
        };
        Ok(Self { all: state.heads(repository.id())?, copy })
    }

    /// Whether something that was seen before, or that somebody expects, is not there, or anything else is odd.
    fn is_in_doubt(&self, chain: &Chain, expect: Option<&(Sequence, ObjectId)>) -> bool {
        let seen = self.all.iter().chain(self.copy.iter().flatten()).map(|head| (head.sequence, &head.header));
        let mut wanted = seen.chain(expect.map(|(sequence, header)| (*sequence, header)));
        !chain.problems.is_empty() || wanted.any(|(sequence, header)| !chain.knows(sequence, header))
    }
}

/// What this host saw before against what is there now: alarms, and notices; what is newer is remembered. A copy may
/// be behind the repository, and not behind what it was left with.
fn compare_heads(
    state: &State,
    repository: &Repository,
    remembered: &Remembered,
    chain: &Chain,
) -> Result<(Vec<String>, Vec<String>), OpsError> {
    let (mut alarms, mut notices) = (Vec::new(), Vec::new());
    let Remembered { all, copy } = remembered;
    for newest in all.iter().filter(|_| copy.is_some()) {
        match chain.head(&newest.host, &newest.policy) {
            Some((there, _)) if there >= newest.sequence => {}
            found => notices.push(format!(
                "{}/{}: this copy is behind: snapshot {} has been taken, the newest one here is {}",
                newest.host,
                newest.policy,
                newest.sequence,
                found.map_or_else(|| "none".to_owned(), |(there, _)| there.to_string())
            )),
        }
    }
    for seen in copy.as_ref().unwrap_or(all) {
        if chain.is_damaged(&seen.host, &seen.policy, seen.sequence) {
            continue;
        }
        let found = chain.head(&seen.host, &seen.policy);
        if let Some(alarm) = rolled_back(Some((seen.sequence, seen.header)), found) {
            alarms.push(format!("{}/{}: {alarm}", seen.host, seen.policy));
        } else if !chain.knows(seen.sequence, &seen.header) {
            alarms.push(format!(
                "{}/{}: snapshot {} is not the one that was seen before: the history has been replaced",
                seen.host, seen.policy, seen.sequence
            ));
        }
    }
    for (host, policy) in chain.lines() {
        if let Some((sequence, Some(header))) = chain.head(&host, &policy) {
            state.set_head(repository.id(), &ChainHead { host, policy, sequence, header })?;
        }
    }
    Ok((alarms, notices))
}

/// The identity file that a request, its policy or the installation names; absent on a sealed host.
pub fn load_identity(installation: &Installation, request: &AccessRequest) -> Result<Option<IdentityFile>, OpsError> {
    let policy = request.policy.as_ref().and_then(|p| p.repository.identity.clone());
    let load = |path: &Path| -> Result<Option<IdentityFile>, OpsError> { Ok(Some(IdentityFile::load(path)?)) };
    match (&request.identity, policy) {
        // Named by the user: it must be there.
        (Some(path), _) => load(path),
        // A policy's identity may have been moved away since: then the host is sealed.
        (None, Some(path)) if path.exists() => load(&path),
        (None, None) if installation.identity().exists() => load(&installation.identity()),
        _ => Ok(None),
    }
}

/// What says which repository is the right one, strongest first.
fn find_pin(
    installation: &Installation,
    request: &AccessRequest,
    storage: &dyn Storage,
    state: Option<&State>,
    identity: Option<&IdentityFile>,
) -> Result<Pin, OpsError> {
    if let Some(id) = &request.signer {
        return Ok(Pin::Exactly(id.clone()));
    }
    if let Some(id) = state.map(|s| s.pin(&storage.describe())).transpose()?.flatten() {
        return Ok(Pin::Exactly(id));
    }
    let mut known = identity.map(IdentityFile::possible_repositories).unwrap_or_default();
    if request.policy.is_some()
        && installation.host_key().exists()
        && let Some(id) = HostKey::load(&installation.host_key())?.repository
    {
        known.push(id);
    }
    if request.trust_on_first_use { Ok(Pin::TrustOnFirstUse) } else { Ok(Pin::Derived(known)) }
}

/// `2026-11-19`, `2026-11-19 02:00`, RFC 3339, or `3 hours ago`. Times without a zone are local; a day alone means its
/// end, so that it names the newest snapshot of that day.
pub fn parse_time(text: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.to_utc());
    }
    let local = |naive: NaiveDateTime| Local.from_local_datetime(&naive).earliest().map(|t| t.to_utc());
    for format in ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"] {
        if let Ok(naive) = NaiveDateTime::parse_from_str(text, format) {
            return local(naive);
        }
    }
    if let Ok(day) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return local(day.and_hms_opt(23, 59, 59)?);
    }
    let mut words = text.strip_suffix("ago")?.split_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let unit = match words.next()?.trim_end_matches('s') {
        "second" | "sec" => TimeDelta::seconds(1),
        "minute" | "min" => TimeDelta::minutes(1),
        "hour" | "h" => TimeDelta::hours(1),
        "day" | "d" => TimeDelta::days(1),
        "week" | "w" => TimeDelta::weeks(1),
        "month" => TimeDelta::days(30),
        _ => return None,
    };
    if words.next().is_some() {
        return None;
    }
    now.checked_sub_signed(unit.checked_mul(i32::try_from(number).ok()?)?)
}

/// Reads a repository's URL as the command line has it: a folder, or `s3://bucket/prefix`.
pub fn parse_url(text: &str) -> Result<RepositoryUrl, OpsError> {
    if let Some(rest) = text.strip_prefix("s3://") {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        return Ok(RepositoryUrl::S3 { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() });
    }
    if text.contains("://") {
        return Err(OpsError::usage(
            format!("{text:?} is not a repository's url"),
            "write a folder, or s3://bucket/prefix",
        ));
    }
    let path = std::path::absolute(text).map_err(|e| OpsError::file("find", text, e))?;
    Ok(RepositoryUrl::Local(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_people_write_them() {
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let at = |s: &str| parse_time(s, now).map(crate::base::time::rfc3339);
        assert_eq!(at("3 hours ago").as_deref(), Some("2026-11-21T09:00:00Z"));
        assert_eq!(at("1 day ago").as_deref(), Some("2026-11-20T12:00:00Z"));
        assert_eq!(at("2026-11-19T02:00:00Z").as_deref(), Some("2026-11-19T02:00:00Z"));
        assert!(at("2026-11-19").is_some() && at("2026-11-19 02:00").is_some());
        assert!(at("latest").is_none() && at("v1.0").is_none() && at("3 apples ago").is_none());
    }
}
