//! What is failing now, and what a run changes about it: a failure is told when it begins and once a day while it goes
//! on, and the first success after it is told as well.

use super::book::{Book, time};
use super::{RunRecord, What};
use crate::base::ids::PolicyName;
use crate::ops::OpsError;
use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{OptionalExtension, params};

/// A failure that goes on is told again after this.
const REMINDER: TimeDelta = TimeDelta::hours(23);

/// What a run changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It succeeded, as the one before.
    Well,
    /// It is the first to fail, or has been failing for another day.
    Failing { since: DateTime<Utc>, again: bool },
    /// It failed as the one before did, and that was told.
    StillFailing,
    /// It is the first to succeed after failures.
    Recovered { since: DateTime<Utc> },
    /// It says nothing: it was busy, or somebody stopped it.
    Nothing,
}

/// Whether a run that ended this way failed: absent where it says nothing.
pub fn is_failure(outcome: &str) -> Option<bool> {
    match outcome {
        "done" => Some(false),
        "busy" | "cancelled" => None,
        _ => Some(true),
    }
}

impl Book {
    /// Takes note of how a run came out in the end.
    pub fn judge(&mut self, run: &RunRecord, now: DateTime<Utc>) -> Result<Change, OpsError> {
        let Some(failed) = run.outcome().and_then(is_failure) else { return Ok(Change::Nothing) };
        let judged = self.note_change(&run.policy, run.what, failed, now);
        judged.map_err(self.failed("note what is failing in"))
    }

    fn note_change(
        &self,
        policy: &PolicyName,
        what: What,
        failed: bool,
        now: DateTime<Utc>,
    ) -> rusqlite::Result<Change> {
        let change = self.change()?;
        let key = params![policy.as_str(), what.as_str()];
        let sql = "select since, told from alarms where policy = ?1 and what = ?2";
        let alarm: Option<(i64, i64)> = change.query_row(sql, key, |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let told = match (failed, alarm) {
            (false, None) => Change::Well,
            (false, Some((since, _))) => {
                change.execute("delete from alarms where policy = ?1 and what = ?2", key)?;
                Change::Recovered { since: time(since) }
            }
            (true, None) => {
                let sql = "insert into alarms values (?1, ?2, ?3, ?3)";
                change.execute(sql, params![policy.as_str(), what.as_str(), now.timestamp()])?;
                Change::Failing { since: now, again: false }
            }
            (true, Some((since, told))) if now - time(told) >= REMINDER => {
                let sql = "update alarms set told = ?3 where policy = ?1 and what = ?2";
                change.execute(sql, params![policy.as_str(), what.as_str(), now.timestamp()])?;
                Change::Failing { since: time(since), again: true }
            }
            (true, Some(_)) => Change::StillFailing,
        };
        change.commit()?;
        Ok(told)
    }

    /// What of a policy is failing, and since when.
    pub fn failing(&self, policy: &PolicyName) -> Result<Vec<(What, DateTime<Utc>)>, OpsError> {
        let look = || -> rusqlite::Result<Vec<(String, i64)>> {
            let mut query = self.db.prepare("select what, since from alarms where policy = ?1 order by since")?;
            query.query_map(params![policy.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        let found = look().map_err(self.failed("look for what fails in"))?;
        Ok(found.into_iter().filter_map(|(what, since)| Some((What::parse(&what)?, time(since)))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_once_a_day_and_its_end_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::open(dir.path()).unwrap();
        let run = |outcome: &str| RunRecord {
            id: 1,
            policy: "shop".parse().unwrap(),
            what: What::Snapshot,
            trigger: "schedule".into(),
            slot: None,
            attempt: 1,
            begun: DateTime::UNIX_EPOCH,
            ended: None,
            outcome: Some(outcome.into()),
            exit: None,
            snapshot: None,
            bytes_total: None,
            bytes_new: None,
            drill: None,
            error: None,
        };
        let at = |hour: i64| "2026-11-20T02:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::hours(hour);
        let mut judge = |outcome: &str, hour: i64| book.judge(&run(outcome), at(hour)).unwrap();
        assert_eq!(judge("done", 0), Change::Well);
        assert_eq!(judge("failed", 1), Change::Failing { since: at(1), again: false });
        assert_eq!(judge("partial", 2), Change::StillFailing);
        assert_eq!(judge("busy", 3), Change::Nothing);
        assert_eq!(judge("cancelled", 3), Change::Nothing);
        assert_eq!(judge("suspect", 3), Change::StillFailing);
        assert_eq!(judge("timeout", 25), Change::Failing { since: at(1), again: true });
        assert_eq!(judge("interrupted", 26), Change::StillFailing);
        assert_eq!(judge("done", 27), Change::Recovered { since: at(1) });
        assert_eq!(judge("done", 28), Change::Well);
        assert_eq!(judge("failed", 29), Change::Failing { since: at(29), again: false });
        assert_eq!(book.failing(&"shop".parse().unwrap()).unwrap(), [(What::Snapshot, at(29))]);
    }
}
