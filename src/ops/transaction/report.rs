//! What a transaction came to.

use super::journal::Step;
use super::plan::{PassedOver, TransactionPlan, What};
use crate::base::ids::{PolicyName, SnapshotId, SourceName};
use crate::ops::OpsError;
use crate::ops::health::Health;
use crate::sources::extract::Report;
use crate::sources::git::GitPlacing;
use crate::sources::placing::Intent;
use chrono::{DateTime, Utc};
use serde::Serialize;

/// The state that the application is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The new one.
    Done,
    /// The old one.
    Undone,
}

/// A step and its time.
#[derive(Debug, Clone, Serialize)]
pub struct StepTime {
    pub name: String,
    pub seconds: f64,
    /// It failed.
    pub error: Option<String>,
}

/// One source that was put back.
#[derive(Debug, Clone, Serialize)]
pub struct SourceResult {
    pub name: SourceName,
    pub kind: String,
    pub lines: Vec<String>,
    /// Of its trees: what was laid out, and every way in which all of it differs from what was captured.
    pub tree: Option<Report>,
}

#[derive(Debug, Serialize)]
pub struct TransactionReport {
    pub id: String,
    pub what: What,
    pub policy: PolicyName,
    pub outcome: Outcome,
    /// What was put back.
    pub snapshot: SnapshotId,
    /// What was live before.
    pub safety: Option<SnapshotId>,
    pub sources: Vec<SourceResult>,
    pub passed_over: Vec<PassedOver>,
    pub steps: Vec<StepTime>,
    /// From the stop of the services to the last health check; absent where nothing was stopped.
    pub downtime_seconds: Option<f64>,
    pub seconds: f64,
    /// The health checks at the end.
    pub health: Vec<Health>,
    /// What the steps noted; a document has it among its own warnings.
    #[serde(skip)]
    pub warnings: Vec<String>,
    /// Why it was undone.
    pub failed: Option<String>,
    /// What is not as it was, though it was taken back; it is among the warnings.
    #[serde(skip)]
    pub remains: Option<String>,
    /// The command that leads the checkout to where it was before.
    #[serde(skip)]
    pub forward: Option<String>,
    /// Until when what was replaced can be brought back.
    pub kept_until: Option<DateTime<Utc>>,
    /// The same as `failed`, for the exit code.
    #[serde(skip)]
    pub failure: Option<OpsError>,
}

impl TransactionReport {
    pub fn of(plan: &TransactionPlan, outcome: Outcome) -> Self {
        let source = |i: &Intent| SourceResult {
            name: i.source.clone(),
            kind: i.kind.clone(),
            lines: i.lines.clone(),
            tree: None,
        };
        let moved = |a: &super::Aside| SourceResult {
            name: a.source.clone(),
            kind: "postgres".into(),
            lines: vec![format!("restored into a new cluster; {}", a.line())],
            tree: None,
        };
        Self {
            id: plan.id.clone(),
            what: plan.what,
            policy: plan.policy.clone(),
            outcome,
            snapshot: plan.snapshot.clone(),
            safety: None,
            sources: plan.intents.iter().map(source).chain(plan.aside.iter().map(moved)).collect(),
            passed_over: plan.passed_over.clone(),
            steps: Vec::new(),
            downtime_seconds: None,
            seconds: 0.0,
            health: Vec::new(),
            warnings: Vec::new(),
            failed: None,
            remains: None,
            forward: plan.intents.iter().filter(|i| i.kind == "git").find_map(GitPlacing::forward),
            kept_until: None,
            failure: None,
        }
    }

    /// Whether the application is as it should be at the end. A check that failed before does not count; but a rollback
    /// was meant to cure what is the application's own.
    pub fn is_healthy(&self) -> bool {
        let own = ["http ", "container ", "command ", "redis "];
        let to_be_cured = |h: &Health| {
            let rolled_back = self.what == What::Rollback && self.outcome == Outcome::Done;
            rolled_back && own.iter().any(|kind| h.name.starts_with(kind))
        };
        self.health.iter().all(|h| h.ok || (h.known && !to_be_cured(h)))
    }

    /// How a tree differs; one that was planned on the way is told of as well.
    pub(super) fn differs(&mut self, intent: &Intent, tree: Option<Report>) {
        match self.sources.iter_mut().find(|s| s.name == intent.source) {
            Some(source) => source.tree = tree,
            None if tree.is_some() => {
                let (name, kind, lines) = (intent.source.clone(), intent.kind.clone(), intent.lines.clone());
                self.sources.push(SourceResult { name, kind, lines, tree });
            }
            None => {}
        }
    }

    pub(super) fn step(&mut self, step: &Step, seconds: f64, error: Option<String>) {
        self.steps.push(StepTime { name: step.name(), seconds, error });
    }
}
