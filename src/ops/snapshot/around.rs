//! The policy's hooks around a snapshot.
//!
//! Invariants: `before_snapshot` runs before anything is captured, and fails the snapshot; once it has begun,
//! `after_snapshot` runs, whatever became of the rest: also when it is stopped, and when it was killed, by the next run.
//! `on_failure` runs behind that, and never where somebody stopped the run. All of it under the policy's lock.
//!
//! Write order (must): the note in the state folder → `before_snapshot` → … → `after_snapshot` → the note away.
//!
//! A safety snapshot is one on a bad night: there what a hook says is said, and stops nothing.

use super::{SnapshotPlan, SnapshotReport};
use crate::base::atomic::{self, IfExists};
use crate::base::cancel::Cancel;
use crate::base::events::Event;
use crate::base::ids::Tag;
use crate::base::time::rfc3339;
use crate::ops::{ErrorKind, OpsError, Outcome, Run, Trigger, hooks};
use crate::policy::Policy;
use crate::repository::chain::full_text;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub(super) struct Around<'a> {
    policy: &'a Policy,
    plan: &'a SnapshotPlan,
    run: &'a Run,
    /// That `before_snapshot` has begun.
    note: PathBuf,
    /// What a person should know.
    notices: Vec<String>,
}

impl<'a> Around<'a> {
    pub fn new(state_dir: &Path, policy: &'a Policy, plan: &'a SnapshotPlan, run: &'a Run) -> Self {
        let note = state_dir.join(format!("{}.hooks", plan.policy));
        Self { policy, plan, run, note, notices: Vec::new() }
    }

    fn is_safety(&self) -> bool {
        self.plan.trigger == Trigger::Rollback
    }

    /// What an earlier run began and was killed in; then `before_snapshot`.
    pub fn before(&mut self) -> Result<(), OpsError> {
        let hooks = &self.policy.hooks;
        if self.note.try_exists().map_err(|e| OpsError::file("look for", &self.note, e))? {
            self.run.events.step("an earlier run was killed behind before_snapshot: after_snapshot is run now");
            if let Err(e) = self.after_snapshot("interrupted", None) {
                self.notices.push(format!("of the run before, which was killed: {}", full_text(&e)));
            }
        }
        if hooks.before_snapshot.is_empty() && hooks.after_snapshot.is_empty() {
            return Ok(());
        }
        let failed = |e| OpsError::file("write", &self.note, e);
        atomic::write(&self.note, rfc3339(self.run.now).as_bytes(), 0o600, IfExists::Replace).map_err(failed)?;
        match hooks::run(self.policy, "before_snapshot", &hooks.before_snapshot, &self.told(None, None), self.run) {
            Err(e) if self.is_safety() && e.kind() != ErrorKind::Cancelled => {
                self.notices.push(full_text(&e));
                Ok(())
            }
            other => other,
        }
    }

    /// `after_snapshot` and `on_failure`, as the snapshot has come out.
    pub fn after<T>(mut self, done: Result<(SnapshotReport, T), OpsError>) -> Result<(SnapshotReport, T), OpsError> {
        let outcome = match &done {
            Ok((report, _)) => word(report),
            Err(e) if e.kind() == ErrorKind::Cancelled => "stopped",
            Err(_) => "failed",
        };
        let snapshot = done.as_ref().ok().map(|(report, _)| report.header.id.to_string());
        let mut failed = None;
        // What cannot be looked for may be there: better twice than never.
        if self.note.try_exists().unwrap_or(true)
            && let Err(e) = self.after_snapshot(outcome, snapshot.clone())
        {
            failed = Some(full_text(&e));
        }
        let why = match (&done, &failed) {
            (Err(e), _) => Some(full_text(e)),
            (Ok(_), Some(failed)) => Some(failed.clone()),
            (Ok((report, _)), None) if outcome == "suspect" || report.failed => Some(first_problem(report)),
            (Ok(_), None) => None,
        };
        if let Some(why) = why.filter(|_| outcome != "stopped" && !self.is_safety()) {
            let told = [self.told(Some(outcome), snapshot), vec![("LIFEBOAT_ERROR", why)]].concat();
            if let Err(e) = hooks::run(self.policy, "on_failure", &self.policy.hooks.on_failure, &told, self.run) {
                self.notices.push(full_text(&e));
            }
        }
        match done {
            Ok((mut report, rest)) => {
                if self.is_safety() {
                    self.notices.extend(failed);
                } else {
                    report.hook_failed = failed;
                }
                report.notices.extend(self.notices);
                Ok((report, rest))
            }
            Err(e) => {
                let said = failed.into_iter().chain(self.notices);
                said.for_each(|text| self.run.events.send(Event::Warning { source: None, text }));
                Err(e)
            }
        }
    }

    /// Brings back what `before_snapshot` did. A stop waits for it, within its limit.
    fn after_snapshot(&self, outcome: &'static str, snapshot: Option<String>) -> Result<(), OpsError> {
        let _held = self.run.cancel.hold();
        let run = Run { cancel: Cancel::new(), ..self.run.clone() };
        let told = self.told(Some(outcome), snapshot);
        let done = hooks::run(self.policy, "after_snapshot", &self.policy.hooks.after_snapshot, &told, &run);
        match fs::remove_file(&self.note) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => done.and(Err(OpsError::file("remove", &self.note, e))),
            _ => done,
        }
    }

    fn told(&self, outcome: Option<&str>, snapshot: Option<String>) -> hooks::Told {
        let tags: Vec<&str> = self.plan.tags.iter().map(Tag::as_str).collect();
        let trigger = match self.plan.trigger {
            Trigger::Manual => "manual",
            Trigger::Schedule => "schedule",
            Trigger::Guard => "guard",
            Trigger::Rollback => "rollback",
        };
        vec![
            ("LIFEBOAT_WHAT", "snapshot".to_owned()),
            ("LIFEBOAT_TRIGGER", trigger.to_owned()),
            ("LIFEBOAT_TAGS", tags.join(" ")),
            ("LIFEBOAT_OUTCOME", outcome.unwrap_or_default().to_owned()),
            ("LIFEBOAT_SNAPSHOT", snapshot.unwrap_or_default()),
        ]
    }
}

fn word(report: &SnapshotReport) -> &'static str {
    match report.header.outcome {
        Outcome::Complete => "complete",
        Outcome::Suspect => "suspect",
        Outcome::Partial => "partial",
    }
}

/// Why a snapshot is not as it should be.
fn first_problem(report: &SnapshotReport) -> String {
    let of = |source: &super::SourceReport| {
        let why = source.error.clone().or_else(|| source.warnings.last().cloned())?;
        (source.outcome != super::SourceOutcome::Complete).then(|| format!("source {:?}: {why}", source.name.as_str()))
    };
    report.sources.iter().find_map(of).unwrap_or_else(|| word(report).to_owned())
}
