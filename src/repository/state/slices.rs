//! Which part of the archives has been read back when, so that samples come to everything in turn.
//!
//! Archives fall into `of` slices by their ids, for ever. Turns are counted, not timed: a clock that goes back loses
//! nothing. What was read at once counts as a turn of every slice.

use super::State;
use crate::base::ids::RepositoryId;
use crate::repository::RepositoryError;
use chrono::{DateTime, Utc};
use rusqlite::params;

const SCHEMA: &str = "create table if not exists slices (location text, repository text, slices integer, slice integer,
    turn integer not null, time text not null, primary key (location, repository, slices, slice))";

/// When a slice was read back last; turn 0 is never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    pub turn: u64,
    pub time: Option<DateTime<Utc>>,
}

impl State {
    /// The last turn of each of `of` slices of the archives at a location.
    pub fn slices(&self, location: &str, repository: &RepositoryId, of: u32) -> Result<Vec<Turn>, RepositoryError> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<(u32, u32, u64, String)>> {
            db.execute_batch(SCHEMA)?;
            let sql = "select slices, slice, turn, time from slices
                       where location = ?1 and repository = ?2 and slices in (1, ?3)";
            let mut query = db.prepare(sql)?;
            let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
            query.query_map(params![location, repository.as_str(), of], row)?.collect()
        };
        let mut turns = vec![Turn::default(); of as usize];
        for (slices, slice, turn, time) in read().map_err(self.error("look for what was read back"))? {
            let read = Turn { turn, time: time.parse().ok() };
            for (at, known) in turns.iter_mut().enumerate() {
                if (slices == 1 || (slices == of && slice as usize == at)) && read.turn > known.turn {
                    *known = read;
                }
            }
        }
        Ok(turns)
    }

    /// Remembers that a slice has been read back whole.
    pub fn set_slice(
        &self,
        location: &str,
        repository: &RepositoryId,
        (slice, of): (u32, u32),
        now: DateTime<Utc>,
    ) -> Result<(), RepositoryError> {
        let db = self.db();
        let write = || -> rusqlite::Result<()> {
            db.execute_batch(SCHEMA)?;
            let sql = "insert or replace into slices select ?1, ?2, ?3, ?4, coalesce(max(turn), 0) + 1, ?5
                       from slices where location = ?1 and repository = ?2";
            db.execute(sql, params![location, repository.as_str(), of, slice, crate::base::time::rfc3339(now)])?;
            Ok(())
        };
        write().map_err(self.error("keep what was read back"))
    }
}
