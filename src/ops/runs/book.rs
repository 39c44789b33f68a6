//! The book itself: runs begun, ended, looked up and trimmed; slots settled.

use super::{RunRecord, What};
use crate::base::atomic;
use crate::base::ids::PolicyName;
use crate::ops::OpsError;
use crate::place::{owner_is_gone_here, owner_mark};
use crate::repository::RepositoryError;
use crate::repository::database::{self, Database};
use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const SCHEMA: &str = "
    create table if not exists runs (id integer primary key, policy text not null, what text not null, trigger text not null,
        slot integer, attempt integer not null, begun integer not null, ended integer, outcome text, exit integer,
        snapshot text, bytes_total integer, bytes_new integer, drill text, error text, process text, untold integer);
    create index if not exists runs_begun on runs (begun);
    create index if not exists runs_of on runs (policy, what, begun);
    create index if not exists runs_open on runs (id) where outcome is null;
    create table if not exists settled (policy text not null, what text not null, slot integer not null,
        primary key (policy, what)) without rowid;
    create table if not exists alarms (policy text not null, what text not null, since integer not null, told integer not null,
        primary key (policy, what)) without rowid;
    create table if not exists outbox (id integer primary key, file text not null, channel text not null, event text not null,
        made integer not null, attempts integer not null, next integer not null);";

const COLUMNS: &str = "id, policy, what, trigger, slot, attempt, begun, ended, outcome, exit, snapshot, bytes_total, \
                       bytes_new, drill, error";

/// How long runs are remembered; hourly ones that found nothing, less.
const KEPT: TimeDelta = TimeDelta::days(400);
const KEPT_VERIFY: TimeDelta = TimeDelta::days(32);
/// An error longer than this says no more.
const ERROR_CHARS: usize = 4000;

/// The book, open.
pub struct Book {
    pub(super) db: Database,
    path: PathBuf,
    /// Set where it is a copy, which goes with it.
    aside: Option<TempDir>,
}

/// A run that begins.
#[derive(Debug, Clone)]
pub struct Begin {
    pub policy: PolicyName,
    pub what: What,
    /// By schedule, or by hand.
    pub scheduled: bool,
    pub slot: Option<DateTime<Utc>>,
    /// From 1.
    pub attempt: u32,
    pub now: DateTime<Utc>,
}

/// How a run ended.
#[derive(Debug, Clone, Default)]
pub struct End {
    pub outcome: String,
    pub exit: Option<u8>,
    pub snapshot: Option<String>,
    pub bytes_total: Option<u64>,
    pub bytes_new: Option<u64>,
    pub drill: Option<bool>,
    pub error: Option<String>,
}

/// A scheduled run that was cut short, and that no later one of its kind has made good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    pub policy: PolicyName,
    pub what: What,
    pub slot: DateTime<Utc>,
    pub attempt: u32,
    /// It made way for a snapshot, which is no attempt.
    pub made_way: bool,
}

/// The error of a run that is `cancelled` because it made way: it came to no end of its own, and is told to nobody.
pub const MADE_WAY: &str = "it made way for a snapshot that was due";

pub(super) fn time(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap_or_default()
}

impl Book {
    /// Opens the book, creating it (0600) and the state folder (0700) where they are not there.
    pub fn open(state_dir: &Path) -> Result<Self, OpsError> {
        atomic::create_private_dir(state_dir).map_err(|e| OpsError::file("create folder", state_dir, e))?;
        let path = state_dir.join("history.db");
        database::create(&path).map_err(|e| OpsError::file("open", &path, e))?;
        Self::open_at(path)
    }

    /// The book where there is one; nothing is created.
    pub fn look(state_dir: &Path) -> Result<Option<Self>, OpsError> {
        let path = state_dir.join("history.db");
        if !path.is_file() {
            return Ok(None);
        }
        match Self::open_at(path.clone()) {
            // What was run can be told all the same.
            Err(OpsError::Repository(RepositoryError::State { source, .. })) if database::is_unwritable(&source) => {
                let copied = database::copy_aside(&path).map_err(|e| OpsError::file("copy", &path, e))?;
                let (aside, copy) = copied;
                Ok(Some(Self { aside: Some(aside), ..Self::open_at(copy)? }))
            }
            opened => opened.map(Some),
        }
    }

    fn open_at(path: PathBuf) -> Result<Self, OpsError> {
        let failed = |source| RepositoryError::State { action: "open", path: path.clone(), source };
        let db = Database::open(&path).map_err(failed)?;
        db.busy_timeout(Duration::from_secs(10)).map_err(failed)?;
        db.pragma_update(None, "journal_mode", "wal").map_err(failed)?;
        db.pragma_update(None, "synchronous", "normal").map_err(failed)?;
        db.pragma_update(None, "cache_size", -512).map_err(failed)?;
        if db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).map_err(failed)? != 1 {
            db.execute_batch(SCHEMA).map_err(failed)?;
            db.pragma_update(None, "user_version", 1).map_err(failed)?;
        }
        Ok(Self { db, path, aside: None })
    }

    /// The folder that it lies in; none of a copy.
    pub fn state_dir(&self) -> Option<&Path> {
        self.path.parent().filter(|_| self.aside.is_none())
    }

    pub(super) fn failed(&self, action: &'static str) -> impl FnOnce(rusqlite::Error) -> OpsError {
        let path = self.path.clone();
        move |source| RepositoryError::State { action, path, source }.into()
    }

    /// A change of several steps. It waits for another writer before its first look: one that has looked and then wants
    /// to write would be refused at once.
    pub(super) fn change(&self) -> rusqlite::Result<Transaction<'_>> {
        Transaction::new_unchecked(&self.db, TransactionBehavior::Immediate)
    }

    /// Enters a run that begins, and settles its slot.
    pub fn begin(&mut self, begin: &Begin) -> Result<i64, OpsError> {
        self.mark_interrupted()?;
        let enter = || -> rusqlite::Result<i64> {
            let change = self.change()?;
            let trigger = match (begin.scheduled, begin.attempt) {
                (false, _) => "manual",
                (true, 0 | 1) => "schedule",
                (true, _) => "retry",
            };
            change.execute(
                "insert into runs (policy, what, trigger, slot, attempt, begun, process) values (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    begin.policy.as_str(),
                    begin.what.as_str(),
                    trigger,
                    begin.slot.map(|slot| slot.timestamp()),
                    begin.attempt,
                    begin.now.timestamp(),
                    owner_mark()
                ],
            )?;
            let id = change.last_insert_rowid();
            if let Some(slot) = begin.slot {
                settle(&change, &begin.policy, begin.what, slot)?;
            }
            change.commit()?;
            Ok(id)
        };
        let entered = enter();
        entered.map_err(self.failed("enter a run in"))
    }

    /// Enters how a run ended, and forgets what is too old.
    pub fn end(&self, id: i64, end: &End, now: DateTime<Utc>) -> Result<(), OpsError> {
        let error: Option<String> = end.error.as_ref().map(|text| text.chars().take(ERROR_CHARS).collect());
        let drill = end.drill.map(|passed| if passed { "passed" } else { "failed" });
        // What was stopped with the service is told by the next one, where it does not run it again.
        let sql = "update runs set ended = ?2, outcome = ?3, exit = ?4, snapshot = ?5, bytes_total = ?6, bytes_new = ?7, \
                   drill = ?8, error = ?9, process = null, \
                   untold = case when slot is not null and ?3 = 'cancelled' then 1 end where id = ?1";
        let entered = self.db.execute(
            sql,
            params![
                id,
                now.timestamp(),
                end.outcome,
                end.exit,
                end.snapshot,
                end.bytes_total,
                end.bytes_new,
                drill,
                error
            ],
        );
        entered.map_err(self.failed("enter the end of a run in"))?;
        self.trim(now)
    }

    /// Takes a run out again: it turned out to be none.
    pub fn forget(&self, id: i64) -> Result<(), OpsError> {
        let deleted = self.db.execute("delete from runs where id = ?1", params![id]);
        deleted.map(drop).map_err(self.failed("forget a run in"))
    }

    fn trim(&self, now: DateTime<Utc>) -> Result<(), OpsError> {
        let old = (now - KEPT).timestamp();
        let trimmed = self.db.execute("delete from runs where begun < ?1", params![old]).and_then(|_| {
            let sql = "delete from runs where what = 'verify' and outcome = 'done' and begun < ?1";
            self.db.execute(sql, params![(now - KEPT_VERIFY).timestamp()])
        });
        trimmed.map(drop).map_err(self.failed("trim"))
    }

    /// Marks the runs whose process is gone, and that nobody has been told of them; how many there were.
    pub fn mark_interrupted(&self) -> Result<usize, OpsError> {
        let look = || -> rusqlite::Result<Vec<(i64, Option<String>)>> {
            let mut query = self.db.prepare("select id, process from runs where outcome is null")?;
            query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        let open = look().map_err(self.failed("look for open runs in"))?;
        let gone: Vec<i64> = open
            .into_iter()
            .filter(|(_, mark)| mark.as_deref().is_none_or(owner_is_gone_here))
            .map(|(id, _)| id)
            .collect();
        for id in &gone {
            let sql = "update runs set outcome = 'interrupted', process = null, untold = 1, \
                       error = 'it was killed, or the machine went down' where id = ?1 and outcome is null";
            self.db.execute(sql, params![id]).map_err(self.failed("mark an interrupted run in"))?;
        }
        Ok(gone.len())
    }

    /// A policy's runs that were cut short without a word, oldest first; each is given once. Those with a slot are the
    /// service's, which may run them again.
    pub fn untold(&self, policy: &PolicyName, with_slot: bool) -> Result<Vec<RunRecord>, OpsError> {
        let look = || -> rusqlite::Result<Vec<RunRecord>> {
            let change = self.change()?;
            let of = "policy = ?1 and untold = 1 and (slot is not null) = ?2";
            let key = params![policy.as_str(), with_slot];
            let sql = format!("select {COLUMNS} from runs where {of} order by id");
            let found: rusqlite::Result<Vec<RunRecord>> = change.prepare(&sql)?.query_map(key, record)?.collect();
            let found = found?;
            if !found.is_empty() {
                change.execute(&format!("update runs set untold = null where {of}"), key)?;
            }
            change.commit()?;
            Ok(found)
        };
        look().map_err(self.failed("look for runs in"))
    }

    /// Nobody has to be told of this run.
    pub fn told(&self, id: i64) -> Result<(), OpsError> {
        let done = self.db.execute("update runs set untold = null where id = ?1", params![id]);
        done.map(drop).map_err(self.failed("enter that a run is told in"))
    }

    pub fn run(&self, id: i64) -> Result<Option<RunRecord>, OpsError> {
        let sql = format!("select {COLUMNS} from runs where id = ?1");
        self.db.query_row(&sql, params![id], record).optional().map_err(self.failed("look for a run in"))
    }

    /// The newest run of this kind.
    pub fn newest(&self, policy: &PolicyName, what: What) -> Result<Option<RunRecord>, OpsError> {
        let sql =
            format!("select {COLUMNS} from runs where policy = ?1 and what = ?2 order by begun desc, id desc limit 1");
        let found = self.db.query_row(&sql, params![policy.as_str(), what.as_str()], record).optional();
        found.map_err(self.failed("look for a run in"))
    }

    /// How the newest slot of this kind came out last, but for runs that made way.
    pub fn came_out(&self, policy: &PolicyName, what: What) -> Result<Option<RunRecord>, OpsError> {
        let of = "policy = ?1 and what = ?2";
        let newest = "order by begun desc, id desc limit 1";
        let sql = format!(
            "select {COLUMNS} from runs where {of} and outcome is not null and error is not ?3 \
             and slot is (select slot from runs where {of} and outcome is not null {newest}) {newest}"
        );
        let found = self.db.query_row(&sql, params![policy.as_str(), what.as_str(), MADE_WAY], record).optional();
        found.map_err(self.failed("look for a run in"))
    }

    /// The newest run of this kind that was done.
    pub fn newest_done(&self, policy: &PolicyName, what: What) -> Result<Option<RunRecord>, OpsError> {
        self.newest_where(policy, what, "outcome = 'done'")
    }

    /// The newest run of this kind that a schedule began.
    pub fn newest_scheduled(&self, policy: &PolicyName, what: What) -> Result<Option<RunRecord>, OpsError> {
        self.newest_where(policy, what, "trigger <> 'manual'")
    }

    fn newest_where(&self, policy: &PolicyName, what: What, which: &str) -> Result<Option<RunRecord>, OpsError> {
        let sql = format!(
            "select {COLUMNS} from runs where policy = ?1 and what = ?2 and {which} order by begun desc, id desc limit 1"
        );
        let found = self.db.query_row(&sql, params![policy.as_str(), what.as_str()], record).optional();
        found.map_err(self.failed("look for a run in"))
    }

    /// How the runs that began since then came out: how many of each kind and outcome.
    pub fn outcomes(&self, policy: &PolicyName, since: DateTime<Utc>) -> Result<Vec<(What, String, u64)>, OpsError> {
        let sql = "select what, outcome, count(*) from runs where policy = ?1 and begun >= ?2 and outcome is not null
                   group by what, outcome order by what, outcome";
        let look = || -> rusqlite::Result<Vec<(String, String, u64)>> {
            let mut query = self.db.prepare(sql)?;
            let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            query.query_map(params![policy.as_str(), since.timestamp()], row)?.collect()
        };
        let found = look().map_err(self.failed("count runs in"))?;
        Ok(found.into_iter().filter_map(|(what, outcome, n)| Some((What::parse(&what)?, outcome, n))).collect())
    }

    /// When anything of the policy last ended.
    pub fn last_end(&self, policy: &PolicyName) -> Result<Option<DateTime<Utc>>, OpsError> {
        let sql = "select max(ended) from runs where policy = ?1";
        let found = self.db.query_row(sql, params![policy.as_str()], |row| row.get::<_, Option<i64>>(0));
        Ok(found.map_err(self.failed("look for a run in"))?.map(time))
    }

    /// The run of a slot's attempt, by the process with this id or by any.
    pub fn of_slot(
        &self,
        policy: &PolicyName,
        what: What,
        slot: DateTime<Utc>,
        attempt: u32,
    ) -> Result<Option<RunRecord>, OpsError> {
        let sql = format!(
            "select {COLUMNS} from runs where policy = ?1 and what = ?2 and slot = ?3 and attempt = ?4 order by id desc limit 1"
        );
        let key = params![policy.as_str(), what.as_str(), slot.timestamp(), attempt];
        self.db.query_row(&sql, key, record).optional().map_err(self.failed("look for a run in"))
    }

    /// Runs, newest first: of one policy or all, since a time where one is given, no more than `most`.
    pub fn runs(
        &self,
        policy: Option<&PolicyName>,
        since: Option<DateTime<Utc>>,
        most: Option<usize>,
    ) -> Result<Vec<RunRecord>, OpsError> {
        let sql = format!(
            "select {COLUMNS} from runs where (?1 is null or policy = ?1) and begun >= ?2 order by begun desc, id desc limit ?3"
        );
        let look = || -> rusqlite::Result<Vec<RunRecord>> {
            let mut query = self.db.prepare(&sql)?;
            let most = most.and_then(|most| i64::try_from(most).ok()).unwrap_or(-1);
            let since = since.map_or(i64::MIN, |at| at.timestamp());
            query.query_map(params![policy.map(PolicyName::as_str), since, most], record)?.collect()
        };
        look().map_err(self.failed("look for runs in"))
    }

    /// A policy's newest runs, the older ones that left a snapshot as well, and how many others are older: enough to tell
    /// what happened last, however long the book is.
    pub fn newest_runs(&self, policy: &PolicyName, most: Option<usize>) -> Result<(Vec<RunRecord>, usize), OpsError> {
        let mut runs = self.runs(Some(policy), None, most)?;
        let Some(oldest) = runs.last().filter(|_| most.is_some()).map(|run| (run.begun.timestamp(), run.id)) else {
            let none_asked = most == Some(0);
            return Ok((runs, if none_asked { self.count(Some(policy))? } else { 0 }));
        };
        let older = "policy = ?1 and (begun, id) < (?2, ?3)";
        let look = || -> rusqlite::Result<(Vec<RunRecord>, usize)> {
            let key = params![policy.as_str(), oldest.0, oldest.1];
            let sql = format!("select {COLUMNS} from runs where {older} and snapshot is not null order by begun desc");
            let left: rusqlite::Result<Vec<RunRecord>> = self.db.prepare(&sql)?.query_map(key, record)?.collect();
            let sql = format!("select count(*) from runs where {older} and snapshot is null");
            Ok((left?, self.db.query_row(&sql, key, |row| row.get(0))?))
        };
        let (left, others) = look().map_err(self.failed("look for runs in"))?;
        runs.extend(left);
        Ok((runs, others))
    }

    /// How many runs the book holds, of one policy or all.
    pub fn count(&self, policy: Option<&PolicyName>) -> Result<usize, OpsError> {
        let sql = "select count(*) from runs where ?1 is null or policy = ?1";
        let counted = self.db.query_row(sql, params![policy.map(PolicyName::as_str)], |row| row.get(0));
        counted.map_err(self.failed("count runs in"))
    }

    /// The last slot that is settled.
    pub fn settled(&self, policy: &PolicyName, what: What) -> Result<Option<DateTime<Utc>>, OpsError> {
        let sql = "select slot from settled where policy = ?1 and what = ?2";
        let found = self.db.query_row(sql, params![policy.as_str(), what.as_str()], |row| row.get(0)).optional();
        Ok(found.map_err(self.failed("look for a slot in"))?.map(time))
    }

    /// Settles every slot until this one.
    pub fn settle(&self, policy: &PolicyName, what: What, slot: DateTime<Utc>) -> Result<(), OpsError> {
        settle(&self.db, policy, what, slot).map_err(self.failed("settle a slot in"))
    }

    /// Scheduled runs that were cut short, by a kill or a stop, and are the newest of their kind.
    pub fn unfinished(&self) -> Result<Vec<Unfinished>, OpsError> {
        self.mark_interrupted()?;
        let sql = format!(
            "select {COLUMNS} from runs r where trigger <> 'manual' and outcome in ('interrupted', 'cancelled') and slot is not null
             and not exists (select 1 from runs l where l.policy = r.policy and l.what = r.what and l.id > r.id)"
        );
        let look = || -> rusqlite::Result<Vec<RunRecord>> {
            let mut query = self.db.prepare(&sql)?;
            query.query_map([], record)?.collect()
        };
        let runs = look().map_err(self.failed("look for runs in"))?;
        let unfinished = |run: RunRecord| {
            let made_way = run.error.as_deref() == Some(MADE_WAY);
            Some(Unfinished { policy: run.policy, what: run.what, slot: run.slot?, attempt: run.attempt, made_way })
        };
        Ok(runs.into_iter().filter_map(unfinished).collect())
    }
}

/// A slot only ever gets later; one that lies ahead of the clock by more than any change of it was made by a wrong one.
fn settle(db: &Connection, policy: &PolicyName, what: What, slot: DateTime<Utc>) -> rusqlite::Result<()> {
    db.execute(
        "insert into settled values (?1, ?2, ?3) on conflict (policy, what) do update set slot =
             case when excluded.slot > slot or slot > excluded.slot + 172800 then excluded.slot else slot end",
        params![policy.as_str(), what.as_str(), slot.timestamp()],
    )?;
    Ok(())
}

fn record(row: &Row<'_>) -> rusqlite::Result<RunRecord> {
    let odd = |at: usize| rusqlite::Error::InvalidColumnType(at, "text".into(), rusqlite::types::Type::Text);
    let policy: String = row.get(1)?;
    let what: String = row.get(2)?;
    Ok(RunRecord {
        id: row.get(0)?,
        policy: policy.parse().map_err(|_| odd(1))?,
        what: What::parse(&what).ok_or_else(|| odd(2))?,
        trigger: row.get(3)?,
        slot: row.get::<_, Option<i64>>(4)?.map(time),
        attempt: row.get(5)?,
        begun: time(row.get(6)?),
        ended: row.get::<_, Option<i64>>(7)?.map(time),
        outcome: row.get(8)?,
        exit: row.get(9)?,
        snapshot: row.get(10)?,
        bytes_total: row.get(11)?,
        bytes_new: row.get(12)?,
        drill: row.get(13)?,
        error: row.get(14)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(what: What, at: &str, slot: Option<&str>) -> Begin {
        Begin {
            policy: "shop".parse().unwrap(),
            what,
            scheduled: slot.is_some(),
            slot: slot.map(|s| s.parse().unwrap()),
            attempt: 1,
            now: at.parse().unwrap(),
        }
    }

    fn end(outcome: &str) -> End {
        End { outcome: outcome.into(), exit: Some(0), ..End::default() }
    }

    #[test]
    fn a_run_is_there_before_it_begins_and_one_whose_process_is_gone_was_interrupted() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::open(dir.path()).unwrap();
        let policy: PolicyName = "shop".parse().unwrap();
        let slot = "2026-11-21T02:00:00Z";
        let id = book.begin(&begin(What::Snapshot, "2026-11-21T02:03:00Z", Some(slot))).unwrap();
        assert_eq!(book.settled(&policy, What::Snapshot).unwrap(), Some(slot.parse().unwrap()));
        assert_eq!(book.mark_interrupted().unwrap(), 0, "this process lives");
        assert_eq!(book.run(id).unwrap().unwrap().outcome, None);
        // As a process of an earlier boot.
        book.db.execute("update runs set process = '0-' || process", []).unwrap();
        assert_eq!(book.mark_interrupted().unwrap(), 1, "the machine went down");
        let told: Vec<i64> = book.untold(&policy, true).unwrap().iter().map(|run| run.id).collect();
        assert_eq!(told, [id]);
        assert!(book.untold(&policy, true).unwrap().is_empty() && book.untold(&policy, false).unwrap().is_empty());
        book.db.execute("update runs set outcome = null", []).unwrap();
        // As another process, one that is gone.
        let mark = owner_mark().rsplit_once('/').unwrap().0.to_owned() + "/1";
        book.db.execute("update runs set process = ?1", params![mark]).unwrap();
        let unfinished = book.unfinished().unwrap();
        assert_eq!(unfinished.len(), 1);
        assert_eq!((unfinished[0].slot, unfinished[0].attempt), (slot.parse().unwrap(), 1));
        let run = book.run(id).unwrap().unwrap();
        assert_eq!((run.outcome(), run.ended), (Some("interrupted"), None));
        // A later one of its kind makes it good.
        let id = book.begin(&begin(What::Snapshot, "2026-11-21T03:00:00Z", None)).unwrap();
        book.end(id, &end("done"), "2026-11-21T03:01:00Z".parse().unwrap()).unwrap();
        assert!(book.unfinished().unwrap().is_empty());
    }

    /// A run by hand that is at work says nothing of how those by hand came out that were long ago.
    #[test]
    fn what_came_out_last_is_what_has_ended_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::open(dir.path()).unwrap();
        let policy: PolicyName = "shop".parse().unwrap();
        let mut ran = |at: &str, slot: Option<&str>, outcome: Option<&'static str>| {
            let id = book.begin(&begin(What::Snapshot, at, slot)).unwrap();
            if let Some(outcome) = outcome {
                book.end(id, &end(outcome), at.parse().unwrap()).unwrap();
            }
            id
        };
        ran("2026-08-01T00:00:00Z", None, Some("done"));
        let failed = ran("2026-11-21T02:00:00Z", Some("2026-11-21T02:00:00Z"), Some("failed"));
        ran("2026-11-21T02:30:00Z", None, None);
        let came_out = book.came_out(&policy, What::Snapshot).unwrap().unwrap();
        assert_eq!((came_out.id, came_out.outcome()), (failed, Some("failed")));
    }

    #[test]
    fn slots_only_get_later_but_a_wrong_clock_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        let policy: PolicyName = "shop".parse().unwrap();
        let settle = |at: &str| {
            book.settle(&policy, What::Drill, at.parse().unwrap()).unwrap();
            book.settled(&policy, What::Drill).unwrap().unwrap().to_rfc3339()
        };
        assert_eq!(settle("2026-11-21T02:00:00Z"), "2026-11-21T02:00:00+00:00");
        assert_eq!(settle("2026-11-20T02:00:00Z"), "2026-11-21T02:00:00+00:00");
        assert_eq!(settle("2036-11-21T02:00:00Z"), "2036-11-21T02:00:00+00:00");
        assert_eq!(settle("2026-11-22T02:00:00Z"), "2026-11-22T02:00:00+00:00");
    }

    #[test]
    fn old_runs_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::open(dir.path()).unwrap();
        for (what, at) in [
            (What::Snapshot, "2025-01-01T00:00:00Z"),
            (What::Snapshot, "2026-01-01T00:00:00Z"),
            (What::Verify, "2026-01-01T00:00:00Z"),
            (What::Verify, "2026-11-20T00:00:00Z"),
        ] {
            let id = book.begin(&begin(what, at, None)).unwrap();
            book.db.execute("update runs set outcome = 'done' where id = ?1", params![id]).unwrap();
        }
        let id = book.begin(&begin(What::Prune, "2026-11-21T00:00:00Z", None)).unwrap();
        book.end(id, &end("done"), "2026-11-21T00:00:01Z".parse().unwrap()).unwrap();
        let left: Vec<String> = book
            .runs(None, None, None)
            .unwrap()
            .iter()
            .map(|r| format!("{:?} {}", r.what, r.begun.date_naive()))
            .collect();
        assert_eq!(left, ["Prune 2026-11-21", "Verify 2026-11-20", "Snapshot 2026-01-01"]);
        assert_eq!(book.count(None).unwrap(), 3);
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(dir.path().join("history.db")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
