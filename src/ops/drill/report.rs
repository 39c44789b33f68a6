//! What a drill found: the JSON document, the sealed details, and what the page is made of.

use crate::base::ids::{HostName, PolicyName, SnapshotId, SourceName};
use crate::base::units::human_duration;
use crate::ops::OpsError;
use crate::repository::format::{CheckCounts, DrillOutcome};
use crate::sources::proof::{Check, Proof, Step, Verdict};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// What became of one source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProofReport {
    pub name: SourceName,
    pub kind: String,
    /// `passed`, `failed`, or `skipped` when none of its checks ran.
    pub verdict: Verdict,
    /// Since the drill began.
    pub begin_seconds: f64,
    pub seconds: f64,
    #[serde(flatten)]
    pub proof: Proof,
}

/// A whole drill.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrillReport {
    pub snapshot: SnapshotId,
    pub host: HostName,
    pub policy: PolicyName,
    /// Where it was restored.
    pub drilled_on: HostName,
    /// When the snapshot was taken.
    pub taken: DateTime<Utc>,
    pub started: DateTime<Utc>,
    pub outcome: DrillOutcome,
    pub checks: CheckCounts,
    pub seconds: f64,
    /// What it took to bring everything back, measured (RTO).
    pub recovery_seconds: f64,
    /// How old the data was when the drill began (RPO): what a loss at that moment would have cost.
    pub data_age_seconds: i64,
    /// What came back, in fragments: `41 tables (1,204,332 rows)`.
    pub restored: Vec<String>,
    pub sources: Vec<ProofReport>,
    pub notes: Vec<String>,
    /// Where the signed outcome is stored; absent when it could not be signed or stored, which a note tells.
    #[serde(default)]
    pub record: Option<String>,
    /// The page that was written.
    #[serde(default)]
    pub page: Option<PathBuf>,
    /// What was restored and kept (`--keep`).
    #[serde(default)]
    pub kept: Option<PathBuf>,
    /// The first damage of stored bytes that was met. Present: exit 4.
    #[serde(skip)]
    pub failure: Option<OpsErrorBox>,
}

/// An error in a document that is cloned: it is told once, at the edge.
pub type OpsErrorBox = std::sync::Arc<OpsError>;

impl ProofReport {
    /// A source that could not be proved at all: one failed check says why.
    pub fn broken(name: SourceName, kind: String, why: String) -> Self {
        let check = Check::failed("proof", "", "the source can be restored", "it cannot", why);
        let proof = Proof { checks: vec![check], ..Proof::default() };
        Self { name, kind, verdict: Verdict::Failed, begin_seconds: 0.0, seconds: 0.0, proof }
    }

    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.proof.checks.iter().filter(|c| c.verdict == Verdict::Failed)
    }
}

/// The verdict on a source: failed as soon as one check failed; skipped when nothing ran at all.
pub fn verdict(checks: &[Check]) -> Verdict {
    let has = |verdict| checks.iter().any(|c| c.verdict == verdict);
    if has(Verdict::Failed) {
        Verdict::Failed
    } else if has(Verdict::Passed) {
        Verdict::Passed
    } else {
        Verdict::Skipped
    }
}

/// How many checks ended how.
pub fn count<'a>(checks: impl IntoIterator<Item = &'a Check>) -> CheckCounts {
    let mut counts = CheckCounts::default();
    for check in checks {
        match check.verdict {
            Verdict::Passed => counts.passed += 1,
            Verdict::Failed => counts.failed += 1,
            Verdict::Skipped => counts.skipped += 1,
        }
    }
    counts
}

/// A drill passes when nothing failed and something ran.
pub fn outcome(counts: CheckCounts) -> DrillOutcome {
    if counts.failed == 0 && counts.passed > 0 { DrillOutcome::Passed } else { DrillOutcome::Failed }
}

impl DrillReport {
    /// One more part that counts.
    pub fn add(&mut self, part: ProofReport) {
        let ran_red = self.outcome == DrillOutcome::Failed;
        self.sources.push(part);
        self.checks = count(self.sources.iter().flat_map(|s| &s.proof.checks));
        if !ran_red {
            self.outcome = outcome(self.checks);
        }
        self.seconds = self.sources.iter().map(|s| s.begin_seconds + s.seconds).fold(self.seconds, f64::max);
    }

    /// Every check, with the source that it is of.
    pub fn all_checks(&self) -> impl Iterator<Item = (&ProofReport, &Check)> {
        self.sources.iter().flat_map(|s| s.proof.checks.iter().map(move |c| (s, c)))
    }

    /// `restored 41 tables (1,204,332 rows), 88,120 keys, 3 certificates, nginx ok, in 41 s`.
    pub fn summary(&self) -> String {
        let took = human_duration(Duration::from_secs_f64(self.recovery_seconds.max(0.0)));
        match self.restored.as_slice() {
            [] => format!("restored nothing, in {took}"),
            some => format!("restored {}, in {took}", some.join(", ")),
        }
    }

    /// The steps of all sources.
    pub fn steps(&self) -> impl Iterator<Item = (&ProofReport, &Step)> {
        self.sources.iter().flat_map(|s| s.proof.steps.iter().map(move |step| (s, step)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_skipped_is_failed() {
        let skipped = Check::skipped("rows", "", "no server");
        let passed = Check::passed("roles", "", "1", "1");
        let failed = Check::failed("rows", "", "1", "2", "one more");
        let of = |checks: &[Check]| (verdict(checks), outcome(count(checks)));
        assert_eq!(of(&[]), (Verdict::Skipped, DrillOutcome::Failed));
        assert_eq!(of(std::slice::from_ref(&skipped)), (Verdict::Skipped, DrillOutcome::Failed));
        assert_eq!(of(&[skipped.clone(), passed.clone()]), (Verdict::Passed, DrillOutcome::Passed));
        assert_eq!(of(&[skipped, passed, failed]), (Verdict::Failed, DrillOutcome::Failed));
    }
}
