//! Notifications that wait to be sent. Each is for one channel of one policy; which address that is stands in the policy
//! alone, so nothing here is a secret.
//!
//! Invariant: one sender at a time has a message: taking it moves its next time, and only one can do that. It has it when
//! that is written down, not before: on a full disk a message would be sent again and again.

use super::book::{Book, time};
use crate::ops::OpsError;
use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{OptionalExtension, params};
use std::path::{Path, PathBuf};

/// How long a sender has a message to itself.
const CLAIM: TimeDelta = TimeDelta::minutes(3);
/// A message that could not be sent for so long is given up.
const GIVE_UP: TimeDelta = TimeDelta::hours(24);
const FIRST_PAUSE: TimeDelta = TimeDelta::seconds(30);
const LONGEST_PAUSE: TimeDelta = TimeDelta::hours(2);

/// A message that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub id: i64,
    /// The policy's file.
    pub file: PathBuf,
    /// Which of its channels.
    pub channel: String,
    /// JSON.
    pub event: String,
    pub made: DateTime<Utc>,
    pub attempts: u32,
}

/// The pause after so many attempts.
fn pause(attempts: u32) -> TimeDelta {
    (FIRST_PAUSE * 4i32.saturating_pow(attempts.saturating_sub(1).min(8))).min(LONGEST_PAUSE)
}

impl Book {
    /// Puts a message in.
    pub fn post(&self, file: &Path, channel: &str, event: &str, now: DateTime<Utc>) -> Result<(), OpsError> {
        let sql = "insert into outbox (file, channel, event, made, attempts, next) values (?1, ?2, ?3, ?4, 0, ?4)";
        let posted = self.db.execute(sql, params![file.to_string_lossy(), channel, event, now.timestamp()]);
        posted.map(drop).map_err(self.failed("keep a notification in"))
    }

    /// Takes the oldest message that is due, to send it.
    pub fn take(&self, now: DateTime<Utc>) -> Result<Option<Waiting>, OpsError> {
        let sql = "update outbox set next = ?2 where id = (select id from outbox where next <= ?1 order by id limit 1)
                   returning id, file, channel, event, made, attempts";
        let row = |row: &rusqlite::Row<'_>| {
            Ok(Waiting {
                id: row.get(0)?,
                file: PathBuf::from(row.get::<_, String>(1)?),
                channel: row.get(2)?,
                event: row.get(3)?,
                made: time(row.get(4)?),
                attempts: row.get(5)?,
            })
        };
        let take = || -> rusqlite::Result<Option<Waiting>> {
            let change = self.change()?;
            let key = params![now.timestamp(), (now + CLAIM).timestamp()];
            let taken = change.query_row(sql, key, row).optional()?;
            change.commit()?;
            Ok(taken)
        };
        take().map_err(self.failed("look for a notification in"))
    }

    /// It was sent, or nobody wants it any more.
    pub fn sent(&self, id: i64) -> Result<(), OpsError> {
        let deleted = self.db.execute("delete from outbox where id = ?1", params![id]);
        deleted.map(drop).map_err(self.failed("take a notification out of"))
    }

    /// It could not be sent; when it is tried again, if ever.
    pub fn not_sent(&self, waiting: &Waiting, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, OpsError> {
        if now - waiting.made >= GIVE_UP {
            self.sent(waiting.id)?;
            return Ok(None);
        }
        let attempts = waiting.attempts.saturating_add(1);
        let next = now + pause(attempts);
        let sql = "update outbox set attempts = ?2, next = ?3 where id = ?1";
        let kept = self.db.execute(sql, params![waiting.id, attempts, next.timestamp()]);
        kept.map_err(self.failed("keep a notification in"))?;
        Ok(Some(next))
    }

    /// When the next message is due.
    pub fn next_post(&self) -> Result<Option<DateTime<Utc>>, OpsError> {
        let next: Option<i64> = self
            .db
            .query_row("select min(next) from outbox", [], |row| row.get(0))
            .map_err(self.failed("look for notifications in"))?;
        Ok(next.map(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_tried_again_with_growing_pauses_and_given_up_after_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        let mut now: DateTime<Utc> = "2026-11-21T02:00:00Z".parse().unwrap();
        book.post(Path::new("/p.toml"), "webhook", "{}", now).unwrap();
        let first = book.take(now).unwrap().unwrap();
        assert_eq!((first.attempts, first.event.as_str()), (0, "{}"));
        assert_eq!(book.take(now).unwrap(), None, "one sender has it");
        let mut pauses = Vec::new();
        let mut waiting = first;
        while let Some(next) = book.not_sent(&waiting, now).unwrap() {
            pauses.push((next - now).num_seconds());
            assert_eq!(book.next_post().unwrap(), Some(next));
            assert_eq!(book.take(next - TimeDelta::seconds(1)).unwrap(), None);
            now = next;
            waiting = book.take(now).unwrap().unwrap();
        }
        assert_eq!(pauses[..6], [30, 120, 480, 1920, 7200, 7200]);
        assert!((14..20).contains(&pauses.len()), "{pauses:?}");
        assert_eq!(book.next_post().unwrap(), None);
    }
}
