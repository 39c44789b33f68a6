//! The journal of one transaction: `<state>/rollback/<id>.jsonl`, a line before and after every step.
//!
//! A line is sixteen hex digits of the BLAKE3 of its JSON, a space, the JSON. Each is fsynced before anything goes on. A
//! last line that is cut short or does not fit its sum was being written when the machine stopped: it does not count.
//! One in the middle is damage.

use super::plan::TransactionPlan;
use super::services::Services;
use crate::base::atomic;
use crate::base::ids::{PolicyName, SnapshotId, SourceName};
use crate::ops::OpsError;
use crate::sources::placing::Intent;
use crate::sources::trees::TreePlacing;
use chrono::{DateTime, Utc};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const SUM_DIGITS: usize = 16;
/// Journals of a policy that are kept when nothing can be done by them any more.
const KEPT_JOURNALS: usize = 20;
/// Room for the lines behind the first.
const RESERVE: u64 = 256 << 10;

/// One step. Each is idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    HooksBefore,
    /// The policy's own command takes the schema back, while today's code still runs.
    Downgrade,
    Prepare {
        source: SourceName,
    },
    Stop,
    Settle {
        source: SourceName,
    },
    Switch {
        source: SourceName,
    },
    /// A data folder that the server of then would not start on goes aside.
    Aside {
        source: SourceName,
    },
    /// Networks, volumes and containers of a project that is down.
    Create,
    /// Its data stores, before anything is put into them.
    Raise,
    /// What is never stopped, and went down with the engine.
    Revive,
    Start,
    Reload,
    Confirm {
        source: SourceName,
    },
    Health,
    HooksAfter,
    // Undoing.
    StopAgain,
    Back {
        source: SourceName,
    },
    DiscardNew {
        source: SourceName,
    },
    AsideBack {
        source: SourceName,
    },
    StartAgain,
    ReloadAgain,
    HealthAgain,
    HooksFailed,
}

impl Step {
    /// For people.
    pub fn name(&self) -> String {
        match self {
            Step::HooksBefore => "hooks before".into(),
            Step::Downgrade => "downgrade the schema".into(),
            Step::Prepare { source } => format!("prepare {source}"),
            Step::Stop => "stop services".into(),
            Step::Settle { source } => format!("look again at {source}"),
            Step::Switch { source } => format!("switch {source}"),
            Step::Aside { source } => format!("put the data folder of {source} aside"),
            Step::Create => "create the project".into(),
            Step::Raise => "start data stores".into(),
            Step::Revive => "start what went down meanwhile".into(),
            Step::Start => "start services".into(),
            Step::Reload => "test and reload nginx".into(),
            Step::Confirm { source } => format!("confirm {source}"),
            Step::Health => "health checks".into(),
            Step::HooksAfter => "hooks after".into(),
            Step::StopAgain => "undo: stop services".into(),
            Step::Back { source } => format!("undo: bring {source} back"),
            Step::DiscardNew { source } => format!("undo: remove what was prepared of {source}"),
            Step::AsideBack { source } => format!("undo: bring the data folder of {source} back"),
            Step::StartAgain => "undo: start services".into(),
            Step::ReloadAgain => "undo: test and reload nginx".into(),
            Step::HealthAgain => "undo: health checks".into(),
            Step::HooksFailed => "hooks of failure".into(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Begin,
    Done,
    Failed,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    Done,
    Undone,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
pub enum Line {
    Begin {
        plan: Box<TransactionPlan>,
        safety: Option<SnapshotId>,
        /// Health checks that failed before.
        known: Vec<String>,
    },
    Step {
        #[serde(flatten)]
        step: Step,
        phase: Phase,
        #[serde(default)]
        seconds: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// What will be done to a source whose store had to be brought up first.
    Intended {
        intent: Box<Intent>,
    },
    /// From here on it goes back.
    Undo {
        why: String,
        safety: Option<SnapshotId>,
        /// What ran when somebody asked for it: that is needed on the way, and shall run for what comes after.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ran: Option<Box<Services>>,
    },
    End {
        end: End,
    },
    /// What was replaced begins to go: it cannot be brought back any more.
    Discarding,
    /// What was replaced is gone.
    Discarded,
}

/// A line and when it was written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    pub at: DateTime<Utc>,
    #[serde(flatten)]
    pub line: Line,
}

/// Where journals lie.
pub fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("rollback")
}

/// A journal that is being written.
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// A new one, with its first line durable.
    pub fn create(state_dir: &Path, id: &str, first: &Entry) -> Result<Self, OpsError> {
        let dir = folder(state_dir);
        atomic::create_private_dir(&dir).map_err(|e| OpsError::file("create folder", &dir, e))?;
        let path = dir.join(format!("{id}.jsonl"));
        // It appears with its first line or not at all.
        let bytes = encode(first).map_err(|e| OpsError::file("write", &path, e))?;
        let free = rustix::fs::statvfs(&dir).map_err(|e| OpsError::file("look for free space at", &dir, e.into()))?;
        if free.f_bavail.saturating_mul(free.f_frsize) < bytes.len() as u64 + RESERVE {
            return Err(OpsError::file("write", &path, io::ErrorKind::StorageFull.into()));
        }
        write_new(&dir, &path, &bytes).map_err(|e| OpsError::file("write", &path, e))?;
        let journal = Self::open(&path)?;
        // What undoes a change must not fail for want of room: not every file system can promise it.
        let end = bytes.len() as u64 + RESERVE;
        let _ = rustix::fs::fallocate(&journal.file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, end);
        Ok(journal)
    }

    /// One that is there, to be gone on with; a torn last line is cut off.
    pub fn open(path: &Path) -> Result<Self, OpsError> {
        let failed = |action, e| OpsError::file(action, path, e);
        let bytes = fs::read(path).map_err(|e| failed("read", e))?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let file = OpenOptions::new().append(true).mode(0o600).open(path).map_err(|e| failed("open", e))?;
        if whole < bytes.len() {
            file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(|e| failed("mend", e))?;
        }
        Ok(Self { path: path.to_owned(), file })
    }

    pub fn add(&mut self, entry: &Entry) -> Result<(), OpsError> {
        let written = encode(entry).and_then(|bytes| self.file.write_all(&bytes)).and_then(|()| self.file.sync_all());
        written.map_err(|e| OpsError::file("write", &self.path, e))
    }
}

/// A file that appears with all of its bytes; a crash before leaves not even a temporary name, where the file system
/// can do that.
fn write_new(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    match rustix::fs::open(dir, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => {
            let mut file = File::from(fd);
            file.write_all(bytes)?;
            file.sync_all()?;
            let own = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, own.as_str(), CWD, path, AtFlags::SYMLINK_FOLLOW)?;
            atomic::fsync_dir(dir)
        }
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            atomic::write(path, bytes, 0o600, atomic::IfExists::Fail)
        }
        Err(e) => Err(e.into()),
    }
}

fn encode(entry: &Entry) -> io::Result<Vec<u8>> {
    let json = serde_json::to_string(entry)?;
    Ok(format!("{} {json}\n", sum(&json)).into_bytes())
}

fn sum(json: &str) -> String {
    blake3::hash(json.as_bytes()).to_hex()[..SUM_DIGITS].to_owned()
}

/// Reads a journal. A torn last line does not count.
pub fn read(path: &Path) -> Result<Vec<Entry>, OpsError> {
    let bytes = fs::read(path).map_err(|e| OpsError::file("read", path, e))?;
    let mut entries = Vec::new();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    for (at, line) in lines.iter().enumerate() {
        match decode(line) {
            Some(entry) => entries.push(entry),
            None if at + 1 == lines.len() => {}
            None => {
                return Err(OpsError::Doubt {
                    problem: format!("line {} of the journal {} is damaged", at + 1, path.display()),
                    hint: concat!(
                        "look at it and at what it names: nothing is done by it any more; once the application is well, ",
                        "set it aside by giving its name another end than .jsonl",
                    )
                    .into(),
                });
            }
        }
    }
    Ok(entries)
}

fn decode(line: &[u8]) -> Option<Entry> {
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (digits, json) = text.split_at_checked(SUM_DIGITS)?;
    let json = json.strip_prefix(' ')?;
    if sum(json) != digits {
        return None;
    }
    serde_json::from_str(json).ok()
}

/// What a journal tells.
#[derive(Debug, Clone)]
pub struct Record {
    pub path: PathBuf,
    pub plan: TransactionPlan,
    pub safety: Option<SnapshotId>,
    pub known: Vec<String>,
    pub begun: DateTime<Utc>,
    pub entries: Vec<Entry>,
}

impl Record {
    /// Reads one; nothing when its first line did not become durable: then nothing was changed.
    pub fn load(path: &Path) -> Result<Option<Self>, OpsError> {
        let entries = read(path)?;
        let Some(Entry { at, line: Line::Begin { plan, safety, known } }) = entries.first().cloned() else {
            return Ok(None);
        };
        Ok(Some(Self { path: path.to_owned(), plan: *plan, safety, known, begun: at, entries }))
    }

    /// How and when it ended, unless it is pending. Undoing opens it again.
    pub fn end(&self) -> Option<(End, DateTime<Utc>)> {
        let mut end = None;
        for entry in &self.entries {
            match &entry.line {
                Line::End { end: how } => end = Some((*how, entry.at)),
                Line::Undo { .. } => end = None,
                _ => {}
            }
        }
        end
    }

    /// Whether it came to the new state once.
    pub fn was_done(&self) -> bool {
        self.entries.iter().any(|e| matches!(e.line, Line::End { end: End::Done }))
    }

    /// Why it goes back, once it does.
    pub fn undoing(&self) -> Option<&str> {
        self.entries.iter().rev().find_map(|e| match &e.line {
            Line::Undo { why, .. } => Some(why.as_str()),
            _ => None,
        })
    }

    /// What ran when somebody asked for the undo that it is in.
    pub fn ran(&self) -> Option<&Services> {
        self.entries.iter().rev().find_map(|e| match &e.line {
            Line::Undo { ran, .. } => Some(ran.as_deref()),
            _ => None,
        })?
    }

    /// What was intended of sources whose stores had to be brought up first.
    pub fn intended(&self) -> Vec<Intent> {
        let lines = self.entries.iter().filter_map(|e| match &e.line {
            Line::Intended { intent } => Some(intent.as_ref().clone()),
            _ => None,
        });
        lines.collect()
    }

    /// What it changed, for people: each source, with the volumes and folders that are exchanged for it.
    pub fn changed(&self) -> Vec<String> {
        let late = self.intended();
        let of_source = |name: &SourceName| {
            let intent = self.plan.intents.iter().chain(&late).find(|i| i.source == *name);
            let mut parts = intent.filter(|i| i.kind == "volume").map(TreePlacing::volumes_of).unwrap_or_default();
            parts.iter_mut().for_each(|volume| *volume = format!("volume {volume}"));
            parts.extend(self.plan.aside_of(name).map(|a| format!("data folder {}", a.folder.display())));
            match parts.is_empty() {
                true => name.to_string(),
                false => format!("{name} ({})", parts.join(", ")),
            }
        };
        self.plan.sources().iter().map(of_source).collect()
    }

    pub fn is_discarded(&self) -> bool {
        self.entries.iter().any(|e| matches!(e.line, Line::Discarded))
    }

    /// Whether a part of what was replaced may be gone.
    pub fn is_discarding(&self) -> bool {
        self.entries.iter().any(|e| matches!(e.line, Line::Discarding | Line::Discarded))
    }

    /// Whether nothing can be done by it any more.
    fn is_spent(&self) -> bool {
        self.is_discarded() || matches!(self.end(), Some((End::Undone, _)))
    }

    fn has(&self, step: &Step, wanted: Phase) -> bool {
        self.entries
            .iter()
            .any(|e| matches!(&e.line, Line::Step { step: s, phase, .. } if s == step && *phase == wanted))
    }

    pub fn begun(&self, step: &Step) -> bool {
        self.has(step, Phase::Begin)
    }

    pub fn done(&self, step: &Step) -> bool {
        self.has(step, Phase::Done)
    }
}

/// A transaction that nobody has brought to its end.
#[derive(Debug, Clone)]
pub struct Pending {
    pub id: String,
    pub policy: PolicyName,
    pub begun: DateTime<Utc>,
    pub record: Record,
}

/// All journals, oldest first.
fn records(state_dir: &Path) -> Result<Vec<Record>, OpsError> {
    load(state_dir, None)
}

/// Those of one policy. A damaged one that is certainly another policy's own stands in nobody else's way.
pub fn records_of(state_dir: &Path, policy: &PolicyName) -> Result<Vec<Record>, OpsError> {
    let mut records = load(state_dir, Some(policy))?;
    records.retain(|r| r.plan.policy == *policy);
    Ok(records)
}

fn load(state_dir: &Path, policy: Option<&PolicyName>) -> Result<Vec<Record>, OpsError> {
    let dir = folder(state_dir);
    let listed = match fs::read_dir(&dir) {
        Ok(listed) => listed,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(OpsError::file("list", &dir, e)),
    };
    let mut paths = Vec::new();
    for entry in listed {
        let path = entry.map_err(|e| OpsError::file("list", &dir, e))?.path();
        if path.extension().is_some_and(|e| e == "jsonl") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut records = Vec::new();
    for path in paths {
        match Record::load(&path) {
            Ok(record) => records.extend(record),
            // One that came to its end asks for nothing any more.
            Err(OpsError::Doubt { .. }) if is_over(&path) => {}
            Err(OpsError::Doubt { .. }) if policy.is_some_and(|p| owner(&path).is_some_and(|owner| owner != *p)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(records)
}

/// The policy that a journal's first line names, whatever is wrong with others.
fn owner(path: &Path) -> Option<PolicyName> {
    let bytes = fs::read(path).ok()?;
    match bytes.split_inclusive(|b| *b == b'\n').next().and_then(decode)?.line {
        Line::Begin { plan, .. } => Some(plan.policy),
        _ => None,
    }
}

/// Removes journals by which nothing can be done any more, but for the newest ones. What cannot be removed stays.
pub fn forget_spent(state_dir: &Path, policy: &PolicyName) -> Result<(), OpsError> {
    let spent: Vec<Record> = records_of(state_dir, policy)?.into_iter().filter(Record::is_spent).collect();
    for record in spent.iter().rev().skip(KEPT_JOURNALS) {
        // A folder beside it still holds something: it is not spent after all.
        if !record.path.with_extension("").exists() {
            let _ = fs::remove_file(&record.path);
        }
    }
    Ok(())
}

/// Whether a journal's last line says that all is over, whatever is wrong with others.
fn is_over(path: &Path) -> bool {
    let bytes = fs::read(path).unwrap_or_default();
    let last = bytes.split_inclusive(|b| *b == b'\n').next_back().and_then(decode);
    last.is_some_and(|e| matches!(e.line, Line::Discarded | Line::End { end: End::Undone }))
}

/// Transactions that are pending, of any policy.
pub fn pending(state_dir: &Path) -> Result<Vec<Pending>, OpsError> {
    let open = records(state_dir)?.into_iter().filter(|r| r.end().is_none());
    Ok(open
        .map(|record| Pending {
            id: record.plan.id.clone(),
            policy: record.plan.policy.clone(),
            begun: record.begun,
            record,
        })
        .collect())
}

/// Refuses to go on while one of this policy is pending.
pub fn refuse_pending(state_dir: &Path, policy: &PolicyName) -> Result<(), OpsError> {
    match records_of(state_dir, policy)?.into_iter().find(|r| r.end().is_none()) {
        Some(pending) => {
            let command = pending.plan.what.word();
            Err(OpsError::Pending { id: pending.plan.id, policy: policy.to_string(), command })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(line: Line) -> Entry {
        Entry { at: "2026-11-21T12:00:00Z".parse().unwrap(), line }
    }

    fn step(step: Step, phase: Phase) -> Entry {
        entry(Line::Step { step, phase, seconds: 0.5, error: None })
    }

    #[test]
    fn a_torn_last_line_does_not_count_and_another_one_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let lines = [
            step(Step::Stop, Phase::Begin),
            step(Step::Switch { source: "db".parse().unwrap() }, Phase::Done),
            entry(Line::End { end: End::Done }),
        ];
        let bytes: Vec<u8> = lines.iter().flat_map(|l| encode(l).unwrap()).collect();
        for cut in 0..=bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let whole = bytes[..cut].iter().filter(|b| **b == b'\n').count();
            assert_eq!(read(&path).unwrap().len(), whole, "{cut}");
            // What is appended stands on a line of its own.
            let mut journal = Journal::open(&path).unwrap();
            journal.add(&entry(Line::Discarded)).unwrap();
            assert_eq!(read(&path).unwrap().len(), whole + 1, "{cut}");
        }
        let mut damaged = bytes.clone();
        damaged[30] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert!(read(&path).is_err());
    }
}
