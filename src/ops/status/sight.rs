//! What a look at a policy saw: facts, without a judgement, so that they can be judged again at any later time. Kept in
//! `<state-dir>/status/<policy>.json` (0600), for whoever must not or cannot look: the service's page and metrics, and
//! the next look, when the repository does not answer. Losing it costs a look.

use crate::base::atomic::{self, IfExists};
use crate::base::ids::{HostName, PolicyName, Sequence, SnapshotId, Tag};
use crate::ops::drill::DrillLine;
use crate::ops::health::Health;
use crate::ops::{OpsError, Outcome, Trigger};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Of another form, a sight is none.
const FORM: u32 = 2;
/// The most that is read of one.
const MOST_BYTES: u64 = 32 << 20;

/// One look at everything that concerns a policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sight {
    form: u32,
    pub policy: PolicyName,
    pub host: HostName,
    pub looked: DateTime<Utc>,
    pub repository: RepositorySight,
    pub copies: Vec<CopySight>,
    /// Of a repository in a folder.
    pub room: Option<Room>,
    pub health: Vec<Health>,
    /// What of the application no source captures; absent where it could not be looked for.
    pub gaps: Option<Vec<SeenGap>>,
    /// Why it could not.
    pub blind: Option<String>,
    /// Recipients that no identity has proved.
    pub unproved: Vec<String>,
    /// Why the recovery kit is not to be relied on; absent where its page was put away and still says the truth.
    pub kit: Option<String>,
    /// A transaction that was cut short.
    pub pending: Option<String>,
}

/// A repository as it was when it last answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RepositorySight {
    pub url: String,
    /// Whether it outlives this machine.
    pub elsewhere: bool,
    /// When it last answered. Absent: never.
    pub reached: Option<DateTime<Utc>>,
    /// Why it did not answer now.
    pub problem: Option<String>,
    pub hint: Option<String>,
    /// What is wrong with what is stored there.
    pub damage: Vec<String>,
    /// This host's, oldest first.
    pub snapshots: Vec<SnapshotSight>,
    /// Of these snapshots, oldest first.
    pub drills: Vec<DrillLine>,
    /// Everything that is stored there, of other policies as well.
    pub stored_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotSight {
    pub id: SnapshotId,
    pub time: DateTime<Utc>,
    pub sequence: Sequence,
    pub outcome: Outcome,
    pub trigger: Trigger,
    pub tags: Vec<Tag>,
    pub bytes_total: u64,
    pub bytes_new: u64,
    /// Another snapshot carries the same sequence.
    pub forked: bool,
}

/// What a copy was left with by the last run that made it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopySight {
    pub url: String,
    pub elsewhere: bool,
    pub sequence: Option<Sequence>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    pub free: u64,
    pub reserve: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenGap {
    /// For the headline: `volume caddy_data`.
    pub name: String,
    /// In full: `no source captures volume caddy_data`.
    pub what: String,
    pub hint: Option<String>,
}

impl Sight {
    /// One that has seen nothing yet.
    pub fn blank(policy: PolicyName, host: HostName, looked: DateTime<Utc>) -> Self {
        Self {
            form: FORM,
            policy,
            host,
            looked,
            repository: RepositorySight::default(),
            copies: Vec::new(),
            room: None,
            health: Vec::new(),
            gaps: None,
            blind: None,
            unproved: Vec::new(),
            kit: None,
            pending: None,
        }
    }

    /// Complete snapshots, oldest first: no other counts.
    pub fn complete(&self) -> impl DoubleEndedIterator<Item = &SnapshotSight> {
        self.repository.snapshots.iter().filter(|s| s.outcome == Outcome::Complete && !s.forked)
    }
}

/// Where sights are kept.
fn file(state_dir: &Path, policy: &PolicyName) -> PathBuf {
    state_dir.join("status").join(format!("{policy}.json"))
}

/// Keeps a sight for others.
pub fn keep(state_dir: &Path, sight: &Sight) -> Result<(), OpsError> {
    let path = file(state_dir, &sight.policy);
    let write = || -> io::Result<()> {
        if let Some(dir) = path.parent() {
            atomic::create_private_dir(dir)?;
        }
        atomic::write(&path, &serde_json::to_vec(sight)?, 0o600, IfExists::Replace)
    };
    write().map_err(|e| OpsError::file("write", &path, e))
}

/// The last sight of a policy. One that cannot be read is none.
pub fn recall(state_dir: &Path, policy: &PolicyName) -> Option<Sight> {
    let mut bytes = Vec::new();
    File::open(file(state_dir, policy)).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    let sight: Sight = serde_json::from_slice(&bytes).ok()?;
    (sight.form == FORM && sight.policy == *policy).then_some(sight)
}

/// When a policy was last looked at, by the time of the file.
pub fn looked(state_dir: &Path, policy: &PolicyName) -> Option<DateTime<Utc>> {
    fs::metadata(file(state_dir, policy)).ok()?.modified().ok().map(DateTime::from)
}

/// The page of a drill in `<state-dir>/drills`, where this host wrote one.
pub fn drill_page(state_dir: &Path, drill: &DrillLine) -> Option<String> {
    let begin = format!("{}-", drill.snapshot);
    let took = chrono::TimeDelta::milliseconds((drill.seconds * 1000.0) as i64);
    for entry in fs::read_dir(state_dir.join("drills")).ok()?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(started) = name.strip_prefix(&begin).and_then(|rest| rest.strip_suffix(".html")) else { continue };
        let started = chrono::NaiveDateTime::parse_from_str(started, "%Y%m%dT%H%M%SZ").ok()?.and_utc();
        // The outcome's time is its end.
        if (drill.time - took - started).num_seconds().abs() <= 2 {
            return Some(name);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sight_is_kept_and_recalled_and_another_form_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let policy: PolicyName = "shop".parse().unwrap();
        let sight = Sight::blank(policy.clone(), "web-1".parse().unwrap(), DateTime::UNIX_EPOCH);
        keep(dir.path(), &sight).unwrap();
        assert_eq!(recall(dir.path(), &policy).unwrap().looked, DateTime::UNIX_EPOCH);
        assert!(recall(dir.path(), &"blog".parse().unwrap()).is_none());
        keep(dir.path(), &Sight { form: 99, ..sight }).unwrap();
        assert!(recall(dir.path(), &policy).is_none());
    }
}
