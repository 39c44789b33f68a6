//! What the run history adds to a look: what runs, what ran last, what fails, and how runs ended of late.

use crate::base::ids::PolicyName;
use crate::ops::OpsError;
use crate::ops::runs::{Book, RunRecord, What};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::BTreeMap;

/// What counts as of late.
const RECENT: TimeDelta = TimeDelta::days(7);

/// A policy's runs on this host, in short.
#[derive(Debug, Clone, Default)]
pub struct Ran {
    /// There is a history at all.
    pub known: bool,
    /// What is failing, and since when.
    pub failing: Vec<(What, DateTime<Utc>)>,
    /// The newest run of each kind, also one at work.
    pub newest: BTreeMap<What, RunRecord>,
    /// The newest of each kind that was done.
    pub done: BTreeMap<What, RunRecord>,
    /// The newest snapshot run that a schedule began.
    pub scheduled: Option<RunRecord>,
    /// Runs that ended in the last seven days, by kind and outcome.
    pub recent: Vec<(What, String, u64)>,
}

impl Ran {
    /// As the book has it; empty where there is none.
    pub fn of(book: Option<&Book>, policy: &PolicyName, now: DateTime<Utc>) -> Result<Self, OpsError> {
        let Some(book) = book else { return Ok(Self::default()) };
        let mut ran = Self { known: true, failing: book.failing(policy)?, ..Self::default() };
        for what in What::ALL.into_iter().filter(|what| *what != What::Weekly) {
            if let Some(run) = book.newest(policy, what)? {
                ran.newest.insert(what, run);
                if let Some(run) = book.newest_done(policy, what)? {
                    ran.done.insert(what, run);
                }
            }
        }
        ran.scheduled = book.newest_scheduled(policy, What::Snapshot)?;
        ran.recent = book.outcomes(policy, now - RECENT)?;
        Ok(ran)
    }

    /// The run of this kind that is at work.
    pub fn at_work(&self, what: What) -> Option<&RunRecord> {
        self.newest.get(&what).filter(|run| run.outcome.is_none())
    }
}
