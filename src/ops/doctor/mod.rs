//! `doctor`: what would go wrong the next time, and what has gone wrong unseen: keys, recipients, the repository and its
//! server, free room, the age of the newest snapshot and of the newest proof, clocks, copies; what of the application no
//! source captures; sources, tools, pinned images, other backups that run beside.
//!
//! - [`coverage`]: what was found out about the application, held against the policy
//! - [`taken`]: which paths the policy's sources take, as a whole or in part
//! - [`host`], [`cron`]: what is around it
//! - [`compare`]: what another backup has left, tried
//!
//! Changes nothing but the notes of what was found out (the server's, and the proved recipients). What cannot be looked
//! at is a problem by itself; everything else is looked at all the same.

mod compare;
mod coverage;
mod cron;
mod host;
mod taken;

pub use compare::compare;
pub(in crate::ops) use coverage::{Gap, GapKind, NO_SOURCE, gaps};

use crate::base::time::rfc3339;
use crate::base::units::{human_duration, human_size};
use crate::ops::access::{Access, AccessRequest, Installation, host_name};
use crate::ops::copy::{self, PATIENCE, within};
use crate::ops::storage::{is_tight, local_storage};
use crate::ops::{OpsError, Outcome, Run, check, kit, probe, setup};
use crate::policy::model::{Credentials, RepositoryUrl};
use crate::policy::{self, FindError, Policy, schedule};
use crate::repository::chain::{Snapshot, full_text};
use crate::repository::drills::StoredDrill;
use crate::repository::format::DrillOutcome;
use crate::repository::keys::{HostKey, IdentityFile};
use crate::repository::trust::Pin;
use crate::repository::{Repository, RepositoryError};
use crate::sources::project::Places;
use crate::storage::s3::credentials;
use crate::storage::s3::settings::{Conditions, Digests};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A snapshot that is late by no more than this may be on its way.
const LATE: TimeDelta = TimeDelta::days(1);
/// How far two clocks may be apart: signatures of requests and ages of objects need them to agree.
const CLOCKS: TimeDelta = TimeDelta::minutes(5);

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Nothing fails because of it, yet.
    Warning,
    /// Snapshots or restores fail, or nobody would notice that they do.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    pub detail: String,
    /// Why it matters; absent where all is well.
    pub why: Option<&'static str>,
    pub hint: Option<String>,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, detail: String, hint: Option<String>) -> Self {
        let why = (verdict != Verdict::Ok).then(|| why(check));
        Self { check, verdict, detail, why, hint }
    }
}

/// Why a finding of a check matters.
fn why(check: &str) -> &'static str {
    match check {
        "policy" => "whoever may write the policy decides what is captured, and for whom it is sealed",
        "host key" => "without it this host signs no snapshot, so it takes none",
        "identity" => "it opens every snapshot: unreadable it restores nothing, and in other hands it reads everything",
        "credentials" | "server" | "repository" => {
            "snapshots are neither written nor found again without the repository"
        }
        "recipients" => "a key that nobody has tried may open nothing on the day that it is needed",
        "room" | "disk" => "a full disk ends snapshots, and the application with them",
        "snapshots" => "what was written since the newest snapshot is lost with this host",
        "drill" => "a backup that was never restored is a hope",
        "clock" => "requests are refused, and ages are counted wrongly, when clocks disagree",
        "copy" => "a repository in one place is lost with that place",
        "coverage" => "it is not in the backup: after a loss it does not come back",
        "permissions" => "others on this host can read or change what only the application should",
        "source" => "the next snapshot is incomplete",
        "versions" => "a snapshot, a drill or a restore calls it",
        "recovery kit" => "on a bad night somebody else may have to do it, without this host to look things up in",
        "transactions" => "until it is settled nothing else is done to the application",
        "pins" => "a rollback cannot start the very image that ran then",
        "compare" => "what that backup lacks is found out on the day that it is needed",
        "service" => "a schedule that nobody runs takes no snapshot",
        "notify" => "a backup that fails in silence is missed on the day that it is needed",
        "cron" => "two backups cost time twice, and nobody looks whether the other one still works",
        _ => "the next snapshot or restore may fail",
    }
}

/// What was found about one policy.
#[derive(Debug, Serialize)]
pub struct Examined {
    /// As it was named, where the policy cannot be read.
    pub policy: String,
    pub findings: Vec<Finding>,
}

impl Examined {
    /// A policy that cannot be read: nothing else can be looked at.
    pub fn unreadable(name: String, problem: String, hint: Option<String>) -> Self {
        let finding = Finding::new("policy", Verdict::Problem, problem, hint);
        Self { policy: name, findings: vec![finding] }
    }

    pub fn worst(&self) -> Verdict {
        self.findings.iter().map(|f| f.verdict).max().unwrap_or(Verdict::Ok)
    }
}

/// Looks at everything that one policy relies on.
pub fn examine(installation: &Installation, policy: &Policy, run: &Run) -> Result<Examined, OpsError> {
    let mut doctor = Doctor { installation, policy, run, begun: Instant::now(), findings: Vec::new() };
    doctor.policy_file();
    doctor.keys();
    doctor.credentials();
    run.cancel.check()?;
    let access = doctor.repository()?;
    doctor.recipients(access.as_ref())?;
    doctor.room();
    let places = Places::new(&policy.app, &run.cancel);
    if let Some(access) = &access {
        doctor.newest(access)?;
        doctor.drill(access)?;
        doctor.clock(access);
        doctor.copies(access)?;
        if let Some(newest) = newest_complete(access)? {
            doctor.pins(newest, &places);
        }
    }
    doctor.recovery_kit();
    doctor.transactions();
    doctor.state_folder();
    run.cancel.check()?;
    doctor.sources()?;
    let found = doctor.coverage()?;
    doctor.versions(&found, &places);
    doctor.disks(&places);
    doctor.other_backups();
    doctor.runner()?;
    doctor.told();
    Ok(Examined { policy: policy.app.name.to_string(), findings: doctor.findings })
}

struct Doctor<'a> {
    installation: &'a Installation,
    policy: &'a Policy,
    run: &'a Run,
    begun: Instant,
    findings: Vec<Finding>,
}

impl Doctor<'_> {
    fn add(&mut self, check: &'static str, verdict: Verdict, detail: impl Into<String>, hint: Option<String>) {
        self.findings.push(Finding::new(check, verdict, detail.into(), hint));
    }

    fn ok(&mut self, check: &'static str, detail: impl Into<String>) {
        self.add(check, Verdict::Ok, detail, None);
    }

    fn failed(&mut self, check: &'static str, error: &OpsError) {
        self.add(check, Verdict::Problem, full_text(error), error.hint());
    }

    /// Whoever may write the policy decides what is captured, by which commands, and for whom it is sealed.
    fn policy_file(&mut self) {
        let path = &self.policy.file;
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) => return self.failed("policy", &OpsError::file("look at", path, e)),
        };
        let (mode, owner) = (meta.mode() & 0o7777, meta.uid());
        let trusted = owner == 0 || owner == rustix::process::geteuid().as_raw();
        if mode & 0o022 != 0 {
            let text = format!("{} can be written by others (mode {mode:04o})", path.display());
            self.add("policy", Verdict::Problem, text, Some(format!("chmod go-w {}", path.display())));
        } else if !trusted {
            let text = format!("{} belongs to another account (uid {owner})", path.display());
            self.add("policy", Verdict::Problem, text, Some(format!("chown root {}", path.display())));
        } else {
            self.ok("policy", path.display().to_string());
        }
    }

    /// Both key files open, and are this account's alone: a file that others can read is refused when it is loaded.
    fn keys(&mut self) {
        match HostKey::load(&self.installation.host_key()) {
            Ok(_) => self.ok("host key", self.installation.host_key().display().to_string()),
            Err(e) => self.failed("host key", &e.into()),
        }
        let identity = self.identity();
        match identity.try_exists() {
            Ok(true) => {}
            Err(e) if e.kind() != std::io::ErrorKind::PermissionDenied => {
                return self.failed("identity", &OpsError::file("look at", &identity, e));
            }
            // Of an account that may not look there it is as good as elsewhere.
            _ => return self.ok("identity", "elsewhere: this host is sealed"),
        }
        match IdentityFile::load(&identity) {
            Ok(_) => self.ok("identity", identity.display().to_string()),
            Err(e) => self.failed("identity", &e.into()),
        }
    }

    fn identity(&self) -> PathBuf {
        let own = self.policy.repository.identity.clone().filter(|path| path.try_exists().unwrap_or(true));
        own.unwrap_or_else(|| self.installation.identity())
    }

    fn credentials(&mut self) {
        if let (RepositoryUrl::S3 { .. }, Credentials::File(path)) =
            (&self.policy.repository.url, &self.policy.repository.reach.credentials)
        {
            match credentials::load(path) {
                Ok(_) => self.ok("credentials", path.display().to_string()),
                Err(e) => self.add("credentials", Verdict::Problem, full_text(&e), Some(e.hint())),
            }
        }
    }

    /// The repository opens, this host may write there, and the server does what it must.
    fn repository(&mut self) -> Result<Option<Access>, OpsError> {
        let (repository, run) = (&self.policy.repository, self.run);
        run.events.step(format!("looking at {}", repository.url));
        if let RepositoryUrl::S3 { .. } = repository.url {
            match probe::probe(&self.installation.state_dir, repository, run) {
                Ok(Some(report)) => {
                    let server = report.found.server;
                    let careful = server.conditions != Conditions::Honoured || server.digests != Digests::Checked;
                    let text = if careful {
                        "safe to store in; it checks less than others, so what is written is looked at again"
                    } else {
                        "safe to store in"
                    };
                    self.ok("server", text);
                }
                Ok(None) => {}
                Err(OpsError::Cancelled(e)) => return Err(e.into()),
                Err(e) => self.failed("server", &e),
            }
        }
        let request = AccessRequest { remembered: true, ..AccessRequest::of(self.policy) };
        let access = match Access::open(self.installation, &request) {
            Ok(access) => access,
            Err(OpsError::Cancelled(e)) => return Err(e.into()),
            Err(e) => {
                self.failed("repository", &e);
                return Ok(None);
            }
        };
        if let Err(e) = check::can_write(self.installation, self.policy, &access) {
            self.failed("repository", &e);
        } else if let Some(alarm) = access.alarms.first() {
            let hint = "compare it with a copy, and with the last notification, before anything else".to_owned();
            self.add("repository", Verdict::Problem, alarm.clone(), Some(hint));
        } else if let Some(first) = access.chain.problems.first() {
            let text = format!("{}: {}", first.key, first.problem);
            self.add("repository", Verdict::Problem, text, Some("`lifeboat verify` says more".to_owned()));
        } else {
            self.ok("repository", repository.url.to_string());
        }
        Ok(Some(access))
    }

    fn recipients(&mut self, access: Option<&Access>) -> Result<(), OpsError> {
        let identities = access.and_then(|access| access.identities.as_deref());
        let recipients = &self.policy.repository.recipients;
        let proofs = match setup::prove(&self.installation.state_dir, recipients, identities) {
            Ok(proofs) => proofs,
            Err(OpsError::Cancelled(e)) => return Err(e.into()),
            Err(e) => {
                self.failed("recipients", &e);
                return Ok(());
            }
        };
        let unproved: Vec<&str> = proofs.iter().filter(|p| !p.proved).map(|p| p.recipient.as_str()).collect();
        if unproved.is_empty() {
            let count = proofs.len();
            self.ok("recipients", format!("{count} proved: an identity has opened what was encrypted to each"));
        } else {
            let text = format!("not proved: {}", unproved.join(", "));
            let hint =
                "nobody knows that its holder can read the snapshots: lifeboat policy check --live --identity FILE";
            self.add("recipients", Verdict::Warning, text, Some(hint.to_owned()));
        }
        Ok(())
    }

    /// Free room at a local repository, against the reserve that writers keep.
    fn room(&mut self) {
        let repository = &self.policy.repository;
        let RepositoryUrl::Local(path) = &repository.url else { return };
        let (free, reserve) = match local_storage(path, repository.min_free).room() {
            Ok(room) => room,
            Err(e) => return self.failed("room", &e.into()),
        };
        let text = format!("{} free, {} must stay free", human_size(free), human_size(reserve));
        let hint = Some("free space there, run `lifeboat prune`, or move the repository to a larger disk".to_owned());
        if free < reserve {
            self.add("room", Verdict::Problem, format!("{text}: no snapshot can be written"), hint);
        } else if is_tight(free, reserve) {
            self.add("room", Verdict::Warning, text, hint);
        } else {
            self.ok("room", text);
        }
    }

    /// The newest complete snapshot of this host against the schedule.
    fn newest(&mut self, access: &Access) -> Result<(), OpsError> {
        let policy = &self.policy.app.name;
        let Some(newest) = newest_complete(access)? else {
            let hint = Some(format!("lifeboat snapshot -p {policy}"));
            self.add("snapshots", Verdict::Problem, "there is no complete snapshot of this host", hint);
            return Ok(());
        };
        let (id, time) = (&newest.header.id, newest.header.time);
        let age = (self.run.now - time).to_std().map_or_else(|_| "future".to_owned(), human_age);
        match due_after(self.policy, time) {
            Some(due) if self.run.now - due > LATE => {
                let text = format!("the newest complete one is {id} ({age}): the next was due {}", rfc3339(due));
                let hint = format!("take one with `lifeboat snapshot -p {policy}`, and see why the schedule does not");
                self.add("snapshots", Verdict::Problem, text, Some(hint));
            }
            Some(_) => self.ok("snapshots", format!("the newest complete one is {id} ({age})")),
            None => {
                let text = format!("the newest complete one is {id} ({age}); nothing is scheduled");
                self.add("snapshots", Verdict::Warning, text, Some("set `snapshot` in [schedule]".to_owned()));
            }
        }
        Ok(())
    }

    /// The newest drill, and the newest that passed, against the policy's limit.
    fn drill(&mut self, access: &Access) -> Result<(), OpsError> {
        let (host, policy) = (host_name()?, &self.policy.app.name);
        let drills = match access.repository.drills() {
            Ok(drills) => drills,
            Err(e) => {
                self.failed("drill", &e.into());
                return Ok(());
            }
        };
        let mine = |d: &&StoredDrill| d.drill.host == host && d.drill.policy == *policy;
        let newest = drills.all.iter().rev().find(mine);
        let passed = drills.all.iter().rev().filter(mine).find(|d| d.drill.outcome == DrillOutcome::Passed);
        let hint = Some(format!("prove one with `lifeboat drill -p {policy}`"));
        let age = |d: &StoredDrill| (self.run.now - d.drill.time).to_std().unwrap_or_default();
        let limit = self.policy.drill.max_age;
        match (newest, passed) {
            (Some(newest), _) if newest.drill.outcome != DrillOutcome::Passed => {
                let text = format!("the newest drill failed, of snapshot {}", newest.drill.snapshot);
                let hint = Some(format!("`lifeboat drill -p {policy}` says why"));
                self.add("drill", Verdict::Problem, text, hint);
            }
            (_, None) => self.add("drill", Verdict::Warning, "no snapshot was ever restored to prove it", hint),
            (_, Some(passed)) if age(passed) > limit => {
                let limit = human_duration(limit);
                let text = format!("the newest that passed is {}, and {limit} is the limit", human_age(age(passed)));
                self.add("drill", Verdict::Problem, text, hint);
            }
            (_, Some(passed)) => {
                let text = format!("snapshot {} passed ({})", passed.drill.snapshot, human_age(age(passed)));
                self.ok("drill", text);
            }
        }
        Ok(())
    }

    /// Somebody has printed the page for a bad night and put it away, and it still says the truth.
    fn recovery_kit(&mut self) {
        let standing = match kit::standing(self.installation, self.policy) {
            Ok(standing) => standing,
            Err(e) => return self.failed("recovery kit", &e),
        };
        if standing.state == kit::State::Confirmed {
            return self.ok("recovery kit", standing.sentence());
        }
        let name = &self.policy.app.name;
        let hint = format!(
            "`lifeboat -p {name} recovery-kit --page kit.html`, print it, put it away, and confirm it with its code"
        );
        self.add("recovery kit", Verdict::Warning, standing.sentence(), Some(hint));
    }

    fn clock(&mut self, access: &Access) {
        let theirs = match access.repository.storage().clock() {
            Ok(theirs) => theirs,
            Err(e) => return self.failed("clock", &e.into()),
        };
        // The run's own time, and what has gone by since.
        let ours = self.run.now + TimeDelta::from_std(self.begun.elapsed()).unwrap_or_default();
        let apart = (theirs - ours).abs();
        if apart > CLOCKS {
            let text = format!("this host's clock says {}, the storage's says {}", rfc3339(ours), rfc3339(theirs));
            self.add("clock", Verdict::Problem, text, Some("set the clock, best by NTP".to_owned()));
        } else {
            self.ok("clock", "agrees with the storage's");
        }
    }

    /// Each copy is reached, and is one of this repository.
    fn copies(&mut self, access: &Access) -> Result<(), OpsError> {
        for copy in &self.policy.repository.copies {
            let to = copy.url.to_string();
            let open = copy::open(Some(self.policy), Some(&self.policy.repository.url), &copy.url);
            let pin = Pin::Exactly(access.repository.id().clone());
            let asked = open.and_then(|target| {
                within(PATIENCE, self.run, move || {
                    Repository::open(target.storage, &pin).map(|there| there.signer_count())
                })
            });
            match asked {
                Ok(Some(Ok(_))) => self.ok("copy", to),
                Ok(Some(Err(RepositoryError::NoRepository { .. }))) => {
                    let hint =
                        Some(format!("is its disk mounted? `lifeboat copy -p {}` begins it", self.policy.app.name));
                    self.add("copy", Verdict::Problem, format!("there is nothing at {to}"), hint);
                }
                Ok(Some(Err(e))) => {
                    let e = OpsError::from(e);
                    self.add("copy", Verdict::Problem, format!("{to}: {}", full_text(&e)), e.hint());
                }
                Ok(None) => {
                    let hint = Some("is its server there?".to_owned());
                    self.add("copy", Verdict::Problem, format!("{to} does not answer"), hint);
                }
                Err(OpsError::Cancelled(e)) => return Err(e.into()),
                Err(e) => self.add("copy", Verdict::Problem, format!("{to}: {}", full_text(&e)), e.hint()),
            }
        }
        Ok(())
    }
}

/// The newest complete snapshot of this host.
fn newest_complete(access: &Access) -> Result<Option<&Snapshot>, OpsError> {
    let host = host_name()?;
    let counts = |s: &&Snapshot| s.header.host == host && s.header.outcome == Outcome::Complete && !s.forked;
    Ok(access.snapshots().into_iter().rev().find(counts))
}

/// When the snapshot behind one of this time was due; none when the schedule is off.
fn due_after(policy: &Policy, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
    schedule::coming(&policy.schedule, &policy.schedule.snapshot, time)
}

fn human_age(age: Duration) -> String {
    format!("{} old", human_duration(age))
}

/// Where the installed policies lie, for whoever names none.
pub fn installed(installation: &Installation) -> Result<Vec<PathBuf>, FindError> {
    let names = policy::find::installed(&installation.config_dir)?;
    Ok(names.into_iter().map(|name| installation.policies().join(format!("{name}.toml"))).collect())
}
