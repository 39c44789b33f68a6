//! `keys revoke`: a host's key counts no more, but for what it signed before it was stolen.
//!
//! The revocation names, for each host and policy, the last header of the key that is still good; below it counts what that
//! header leads down to, hash by hash. What else the key signed counts for nothing from then on. Records among it (what prunes
//! removed, tags, holds, moved chunks) are still needed, so the root key says them again first; outcomes of drills are not.
//!
//! Write order (must): the root key vouched for as one that signs records → records said again → the revocation → the key's
//! own records, drills and trash removed. A run that was cut short is done again: records that are said twice say the same.

use super::again::{self, Again};
use crate::base::ids::{HostName, ObjectId, PolicyName, RepositoryId, SnapshotId};
use crate::ops::access::{Access, Installation};
use crate::ops::mark::next_time;
use crate::ops::{OpsError, Run};
use crate::pipeline::crypt::object_id;
use crate::pipeline::limits;
use crate::pipeline::sign::{self, Namespace, PublicKey, SigningKey};
use crate::repository::chain::{Chain, Line, Snapshot};
use crate::repository::format::{FORMAT, LastGood, Note, Record, Role, SignerAction};
use crate::repository::keys::{HostKey, IdentityFile};
use crate::repository::state::State;
use crate::repository::trust::{Pin, to_json};
use crate::repository::{Repository, RepositoryError, layout, parallel};
use crate::storage::StorageKey;
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// What counts for nothing once its signer is revoked. (Headers count as far as the revocation says.)
const SAID: [(&str, Namespace); 3] =
    [(layout::RECORDS, Namespace::Record), (layout::DRILLS, Namespace::Drill), (layout::TRASH, Namespace::Trash)];

/// Which of the key's snapshots stay good.
#[derive(Debug, Clone)]
pub enum Good {
    /// Those up to these, one for each host and policy; where none is named, nothing.
    UpTo(Vec<String>),
    /// Those that were in the storage before.
    Before(DateTime<Utc>),
    /// All that are there: the key is out of use, and nobody has misused it.
    All,
}

/// What a revocation does to the snapshots of one host and policy.
#[derive(Debug, Clone, Serialize)]
pub struct RevokedLine {
    pub host: HostName,
    pub policy: PolicyName,
    /// The last one of the key that stays good; null where none does.
    pub last_good: Option<SnapshotId>,
    /// How many stay good.
    pub stay: usize,
    /// Those that count for nothing from then on.
    pub refused: Vec<SnapshotId>,
    #[serde(skip)]
    good: Option<LastGood>,
}

/// What would be done; pure data.
#[derive(Debug, Clone, Serialize)]
pub struct RevokePlan {
    /// The fingerprint of the key.
    pub key: String,
    pub hosts: Vec<HostName>,
    pub repository: String,
    pub repository_id: RepositoryId,
    pub lines: Vec<RevokedLine>,
    /// Records that are said again by the root key.
    pub records: usize,
    /// Outcomes of drills that the key signed: they prove nothing any more.
    pub drills: usize,
    /// It is the key of this host as it is now.
    pub own: bool,
    #[serde(skip)]
    public: Option<PublicKey>,
    #[serde(skip)]
    notes: Vec<(Line, Note)>,
    /// The time of each line's newest record that the key has not signed.
    #[serde(skip)]
    newest: HashMap<Line, DateTime<Utc>>,
}

/// A key that snapshots are or were signed with, for people who have to name one.
#[derive(Debug, Clone)]
pub struct Known {
    pub key: PublicKey,
    pub fingerprint: String,
    pub hosts: Vec<HostName>,
    pub revoked: bool,
}

/// The keys that may sign snapshots, or could.
pub fn known(repository: &Repository) -> Result<Vec<Known>, OpsError> {
    let mut found: Vec<Known> = Vec::new();
    for (key, hosts, revoked) in repository.snapshot_signers() {
        let fingerprint = key.fingerprint().map_err(RepositoryError::from)?.to_string();
        match found.iter_mut().find(|known| known.key == *key) {
            Some(known) => known.hosts.extend(hosts.iter().cloned()),
            None => found.push(Known { key: key.clone(), fingerprint, hosts: hosts.to_vec(), revoked }),
        }
    }
    found.iter_mut().for_each(|known| {
        known.hosts.sort();
        known.hosts.dedup();
    });
    Ok(found)
}

fn named(repository: &Repository, name: Option<&str>) -> Result<Known, OpsError> {
    let all = known(repository)?;
    let list = || -> String {
        let one = |known: &Known| {
            let hosts: Vec<&str> = known.hosts.iter().map(HostName::as_str).collect();
            format!("{} ({}{})", known.fingerprint, hosts.join(", "), if known.revoked { ", revoked" } else { "" })
        };
        all.iter().map(one).collect::<Vec<_>>().join("; ")
    };
    let name =
        name.ok_or_else(|| OpsError::usage("no key is named", format!("name one by its fingerprint: {}", list())))?;
    let found = all.iter().find(|known| known.fingerprint == name);
    found.cloned().ok_or_else(|| {
        OpsError::usage(format!("{name:?} is no key that signs snapshots here"), format!("there are {}", list()))
    })
}

/// Makes the plan.
pub fn plan_revoke(
    installation: &Installation,
    access: &Access,
    key: Option<&str>,
    good: &Good,
    run: &Run,
) -> Result<RevokePlan, OpsError> {
    let repository = &access.repository;
    let Known { key: public, fingerprint, hosts, .. } = named(repository, key)?;
    let signed = signed_by(repository, &access.chain, &public)?;
    let last_good = LastGoods::of(access, &hosts, good, run)?;
    let before = if let Good::Before(time) = good { Some(*time) } else { None };
    let said = again::said(repository, &public, before)?;
    let stored = again::stored(repository, &said)?;
    let (mut lines, mut notes) = (Vec::new(), Vec::new());
    for line in access.chain.lines().into_iter().filter(|(host, _)| hosts.contains(host)) {
        let all = access.chain.line(&line.0, &line.1);
        let mine: Vec<&Snapshot> = all.iter().filter(|s| signed.contains(&s.header_id)).collect();
        let last = last_good.find(&line, &mine);
        let again = Again::new(&access.chain, &line, &signed, &said, last);
        // What was there before the theft is honest, and all is where nobody has misused the key.
        let honest = !matches!(good, Good::UpTo(_));
        let again_said = again.notes(repository, &stored, honest)?;
        notes.extend(again_said.into_iter().map(|note| (line.clone(), note)));
        if mine.is_empty() {
            continue;
        }
        lines.push(RevokedLine {
            last_good: last.map(|last| last.header.id.clone()),
            stay: mine.iter().filter(|s| again.stays(s)).count(),
            refused: mine.iter().filter(|s| !again.stays(s)).map(|s| s.header.id.clone()).collect(),
            good: last.map(|last| LastGood {
                host: line.0.clone(),
                policy: line.1.clone(),
                sequence: last.header.sequence,
                header: last.header_id,
            }),
            host: line.0,
            policy: line.1,
        });
    }
    let own = HostKey::load(&installation.host_key()).is_ok_and(|key| key.signing.public() == public);
    Ok(RevokePlan {
        key: fingerprint,
        hosts,
        repository: repository.storage().describe(),
        repository_id: repository.id().clone(),
        lines,
        records: notes.len(),
        newest: again::newest_of_others(&said),
        drills: own_objects(repository, layout::DRILLS, Namespace::Drill, &public)?.len(),
        own,
        public: Some(public),
        notes,
    })
}

/// What tells the last good snapshot of a line.
enum LastGoods<'a> {
    UpTo(Vec<&'a Snapshot>),
    /// With the time of each header by the storage's clock.
    Before(DateTime<Utc>, HashMap<StorageKey, DateTime<Utc>>),
    All,
}

impl<'a> LastGoods<'a> {
    fn of(access: &'a Access, hosts: &[HostName], good: &Good, run: &Run) -> Result<Self, OpsError> {
        let names = match good {
            Good::All => return Ok(Self::All),
            Good::Before(time) => {
                let listed = access.repository.storage().list(layout::SNAPSHOTS)?;
                return Ok(Self::Before(*time, listed.into_iter().map(|o| (o.key, o.modified)).collect()));
            }
            Good::UpTo(names) => names,
        };
        let mut up_to: Vec<&'a Snapshot> = Vec::new();
        for name in names {
            let found = access.resolve(name, run.now)?;
            if !hosts.contains(&found.header.host) {
                let (id, host) = (&found.header.id, &found.header.host);
                return Err(OpsError::usage(
                    format!("snapshot {id} is of host {host}, for which this key does not sign"),
                    "name a snapshot of a host of that key",
                ));
            }
            up_to.push(found);
        }
        Ok(Self::UpTo(up_to))
    }

    /// Of those of the key in one line, oldest first.
    fn find(&self, line: &Line, mine: &[&'a Snapshot]) -> Option<&'a Snapshot> {
        match self {
            Self::All => mine.last().copied(),
            Self::UpTo(named) => named.iter().copied().find(|s| s.header.host == line.0 && s.header.policy == line.1),
            // One below it may look late, because a clock was wrong once or because it is forged: the last one that does not
            // is the one, and its hashes tell which of those below it are forged.
            Self::Before(time, modified) => {
                let is_before =
                    |s: &Snapshot| s.header.time < *time && modified.get(&s.key).is_some_and(|at| at < time);
                mine.iter().copied().rfind(|s| is_before(s))
            }
        }
    }
}

/// The headers that a key has signed.
fn signed_by(repository: &Repository, chain: &Chain, key: &PublicKey) -> Result<HashSet<ObjectId>, OpsError> {
    let all: Vec<&Snapshot> = chain.all().collect();
    let read = parallel::at_once(&all, |snapshot| repository.get(&snapshot.key, limits::SIGNED));
    let mut signed = HashSet::new();
    for (snapshot, bytes) in all.iter().zip(read) {
        if sign::open(&bytes?, Namespace::Snapshot, std::slice::from_ref(key)).is_ok() {
            signed.insert(snapshot.header_id);
        }
    }
    Ok(signed)
}

/// Objects below a prefix that a key has signed.
fn own_objects(
    repository: &Repository,
    prefix: &str,
    namespace: Namespace,
    key: &PublicKey,
) -> Result<Vec<StorageKey>, OpsError> {
    let listed = repository.storage().list(prefix)?;
    let named = listed.into_iter().map(|object| object.key).filter(|key| layout::object_id(key).is_none());
    let keys: Vec<StorageKey> = named.collect();
    let read = parallel::at_once(&keys, |key| repository.get(key, limits::REFS));
    let mut mine = Vec::new();
    for (object, bytes) in keys.into_iter().zip(read) {
        match bytes {
            Ok(bytes) if sign::open(&bytes, namespace, std::slice::from_ref(key)).is_ok() => mine.push(object),
            Ok(_) => {}
            // It is nobody's as it is. Whose one is that cannot be read now, nobody knows.
            Err(e) if e.is_integrity() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(mine)
}

/// Revokes the key.
pub fn revoke(
    installation: &Installation,
    access: &Access,
    identity: &IdentityFile,
    plan: &RevokePlan,
    run: &Run,
) -> Result<(), OpsError> {
    let root = identity.root_key_of(&plan.repository_id).ok_or_else(|| {
        OpsError::usage(
            format!("the root key of repository {} is not in the identity", plan.repository_id),
            "name the identity that made the repository with --identity FILE",
        )
    })?;
    let key = plan.public.as_ref().ok_or_else(|| OpsError::usage("no key is named", "name one by its fingerprint"))?;
    let mut repository =
        Repository::open(access.repository.storage().clone(), &Pin::Exactly(plan.repository_id.clone()))?;
    if !plan.notes.is_empty() {
        run.events.step(format!("saying {} records again", plan.notes.len()));
        let hosts: Vec<HostName> =
            plan.hosts.iter().filter(|host| !repository.prunes_for(&root.public(), host)).cloned().collect();
        if !hosts.is_empty() {
            let action = SignerAction::Add { role: Role::Prune, hosts };
            repository.add_signer(&root, &root.public(), action, run.now)?;
        }
        say(&repository, &root, plan, run)?;
    }
    run.cancel.check()?;
    run.events.step(format!("revoking {}", plan.key));
    let last_good = plan.lines.iter().filter_map(|line| line.good.clone()).collect();
    repository.add_signer(&root, key, SignerAction::Revoke { last_good }, run.now)?;
    if let Some((number, hash)) = repository.last_signer() {
        State::open(&installation.state_dir)?.set_signer(repository.id(), number, hash)?;
    }
    // They count for nothing any more, and would be told as damage for ever. What its trash condemned, the next prune condemns
    // anew, where nothing needs it by then.
    for (prefix, namespace) in SAID {
        for object in own_objects(&repository, prefix, namespace, key)? {
            match repository.storage().delete(&object) {
                Err(e) if e.is_refusal() => tracing::warn!("{object} stays, and counts for nothing: {e}"),
                other => other.map_err(RepositoryError::from)?,
            }
        }
    }
    Ok(())
}

/// Writes records by the root key, each dated behind those that count once the key is revoked. Not behind its own, which
/// count for nothing then: one that a thief dates at the end of all time would leave none for any other.
fn say(repository: &Repository, root: &SigningKey, plan: &RevokePlan, run: &Run) -> Result<(), OpsError> {
    let mut newest = plan.newest.clone();
    for (line, note) in &plan.notes {
        run.cancel.check()?;
        let time = next_time(newest.get(line).copied(), line, run.now)?;
        newest.insert(line.clone(), time);
        let record = Record {
            kind: "record".to_owned(),
            format: FORMAT,
            requires: Vec::new(),
            repository: repository.id().clone(),
            time,
            host: line.0.clone(),
            policy: line.1.clone(),
            note: note.clone(),
        };
        let bytes = root.sign(Namespace::Record, &to_json(&record)?).map_err(RepositoryError::from)?;
        let key = layout::dated_key(layout::RECORDS, record.time, object_id(&bytes)).map_err(RepositoryError::from)?;
        repository.storage().put_new(&key, &bytes).map_err(RepositoryError::from)?;
        repository.verify_record(&key, &repository.get(&key, limits::REFS)?)?;
    }
    Ok(())
}
