//! Proving a captured source: it is restored into something throw-away, and held against what the live one knew of
//! itself when it was captured.
//!
//! Invariants: nothing live is changed, and no name, port or network of the live application is used; what is restored
//! is untrusted, so servers run unprivileged, without network, within limits of memory and time; everything that was
//! started is gone when [`Prove::prove`] returns, and is swept by the next run after a crash. A check that could not
//! run is `skipped` and says why; it is never `passed`.

use super::SourceError;
use super::project::Places;
use super::streams::Streams;
use crate::base::cancel::Cancel;
use crate::base::events::Events;
use crate::base::ids::SourceName;
use crate::policy::Policy;
use crate::policy::model::{Drill, SourcePolicy};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Passed,
    Failed,
    /// It could not run; [`Check::why`] says why.
    Skipped,
}

/// One thing that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What it is about: `public.users`, `key "session:1"`, `/etc/nginx/nginx.conf`.
    pub subject: String,
    pub expected: String,
    pub found: String,
}

/// One check of one thing, such as the row counts of all tables of one database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// A fixed word or two: `rows`, `roles`, `nginx -t`.
    pub name: String,
    /// What was checked: `database "shop"`, `shop.example`; empty for the whole source.
    pub subject: String,
    pub verdict: Verdict,
    /// In one line, for people: `41 tables, 1,204,332 rows`.
    pub expected: String,
    pub found: String,
    /// Why it failed or was skipped, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What differs, the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
    /// How many more differ.
    #[serde(default)]
    pub more_differences: u64,
}

/// More differences of one check than this are counted, not listed.
pub const LISTED: usize = 50;

impl Check {
    pub fn passed(
        name: impl Into<String>,
        subject: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            subject: subject.into(),
            verdict: Verdict::Passed,
            expected: expected.into(),
            found: found.into(),
            why: None,
            differences: Vec::new(),
            more_differences: 0,
        }
    }

    pub fn failed(
        name: impl Into<String>,
        subject: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Failed, why: Some(why.into()), ..Self::passed(name, subject, expected, found) }
    }

    pub fn skipped(name: impl Into<String>, subject: impl Into<String>, why: impl Into<String>) -> Self {
        Self { verdict: Verdict::Skipped, why: Some(why.into()), ..Self::passed(name, subject, "", "") }
    }

    /// Passed when nothing differs, else failed, and named after what differs first.
    pub fn of(
        name: impl Into<String>,
        subject: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        mut differences: Vec<Difference>,
    ) -> Self {
        let check = Self::passed(name, subject, expected, found);
        let Some(first) = differences.first() else { return check };
        let others = match differences.len() {
            1 => String::new(),
            n => format!("; {} more differ", n - 1),
        };
        let why = format!("{}: expected {}, found {}{others}", first.subject, first.expected, first.found);
        let more_differences = differences.len().saturating_sub(LISTED) as u64;
        differences.truncate(LISTED);
        Self { verdict: Verdict::Failed, why: Some(why), differences, more_differences, ..check }
    }
}

impl Difference {
    pub fn new(subject: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { subject: subject.into(), expected: expected.into(), found: found.into() }
    }
}

/// A step of a proof, for the report's time line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// `start server`, `restore`, `compare`.
    pub name: String,
    /// Since the drill began.
    pub begin_seconds: f64,
    pub seconds: f64,
    /// What brings the application back counts to the recovery time; what only proves it does not.
    pub restores: bool,
}

/// What a proof found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    pub checks: Vec<Check>,
    pub steps: Vec<Step>,
    /// What came back, in fragments for the summary: `41 tables (1,204,332 rows)`, `88,120 keys`, `nginx ok`.
    pub restored: Vec<String>,
}

impl Proof {
    pub fn add(&mut self, check: Check) {
        self.checks.push(check);
    }

    /// Runs one step and keeps its time.
    pub fn step<T>(&mut self, trial: &Trial<'_>, name: &str, restores: bool, work: impl FnOnce() -> T) -> T {
        let begin = trial.began.elapsed();
        let result = work();
        self.steps.push(Step {
            name: name.to_owned(),
            begin_seconds: begin.as_secs_f64(),
            seconds: (trial.began.elapsed() - begin).as_secs_f64(),
            restores,
        });
        result
    }
}

/// A tree that was laid out before the proofs began: small ones, which others may need (nginx its certificates).
#[derive(Debug, Clone)]
pub struct LaidTree {
    pub source: SourceName,
    /// `env`, `certificates`, `nginx`, `compose`, …
    pub kind: String,
    /// The folder that stands for `/`.
    pub root: PathBuf,
}

/// What a proof gets.
pub struct Trial<'a> {
    pub name: &'a SourceName,
    pub streams: &'a dyn Streams,
    /// What the source knew of itself when it was captured.
    pub facts: &'a Value,
    /// What the policy says of the source today; absent where there is no policy, or it has no such source any more.
    pub source: Option<&'a SourcePolicy>,
    pub policy: Option<&'a Policy>,
    pub drill: &'a Drill,
    pub places: &'a Places,
    /// All trees of kinds `env`, `certificates`, `nginx` and `compose` of the snapshot, laid out: this source's own too.
    pub trees: &'a [LaidTree],
    /// A folder of the proof's own, 0700, empty; removed by the caller.
    pub scratch: &'a Path,
    /// The key of hashes of secret values in facts; absent on a host that did not capture them.
    pub fact_key: Option<&'a [u8; 32]>,
    /// When the snapshot was taken.
    pub taken: DateTime<Utc>,
    pub now: DateTime<Utc>,
    /// When the drill began, for the time line.
    pub began: Instant,
    /// The longest that the proof may take; what it starts has this as its deadline.
    pub timeout: Duration,
    pub events: &'a Events,
    pub cancel: &'a Cancel,
}

impl Trial<'_> {
    /// The folder in which this source's own trees were laid out.
    pub fn own_tree(&self) -> Option<&Path> {
        self.trees.iter().find(|t| t.source == *self.name).map(|t| t.root.as_path())
    }
}

/// One kind of source, proved.
pub trait Prove: Send + Sync {
    /// Restores into something throw-away and compares. An error means that the proof itself could not be made; what
    /// the restored data lacks is a failed check.
    fn prove(&self, trial: &Trial<'_>) -> Result<Proof, SourceError>;
}
