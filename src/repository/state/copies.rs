//! What every copy was left with: the newest snapshot of each host and policy, by where the copy lies.

use super::State;
use crate::base::ids::{RepositoryId, Sequence};
use crate::repository::RepositoryError;
use crate::repository::trust::ChainHead;
use rusqlite::params;

const SCHEMA: &str = "create table if not exists copies (location text, repository text, host text, policy text,
    sequence integer not null, header text not null, primary key (location, repository, host, policy))";

impl State {
    /// The newest snapshots that a copy was left with; empty where this host never made one.
    pub fn copy_heads(&self, location: &str, repository: &RepositoryId) -> Result<Vec<ChainHead>, RepositoryError> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<(String, String, u64, String)>> {
            db.execute_batch(SCHEMA)?;
            let sql = "select host, policy, sequence, header from copies where location = ?1 and repository = ?2";
            let mut query = db.prepare(sql)?;
            let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
            query.query_map(params![location, repository.as_str()], row)?.collect()
        };
        let rows = read().map_err(self.error("look for copies"))?;
        let head = |(host, policy, sequence, header): (String, String, u64, String)| {
            let (host, policy, header) = (host.parse().ok()?, policy.parse().ok()?, header.parse().ok()?);
            Some(ChainHead { host, policy, sequence: Sequence(sequence), header })
        };
        Ok(rows.into_iter().filter_map(head).collect())
    }

    /// Remembers that a copy is being made at a location: it may be behind, and that is no alarm.
    pub fn note_copy(&self, location: &str, repository: &RepositoryId) -> Result<(), RepositoryError> {
        let db = self.db();
        let write = || -> rusqlite::Result<()> {
            db.execute_batch(SCHEMA)?;
            let sql = "insert or ignore into copies values (?1, ?2, '', '', 0, '')";
            db.execute(sql, params![location, repository.as_str()])?;
            Ok(())
        };
        write().map_err(self.error("keep where a copy lies"))
    }

    /// Whether this host has begun a copy at a location.
    pub fn is_copy(&self, location: &str, repository: &RepositoryId) -> Result<bool, RepositoryError> {
        let db = self.db();
        let read = || -> rusqlite::Result<bool> {
            db.execute_batch(SCHEMA)?;
            let sql = "select exists (select 1 from copies where location = ?1 and repository = ?2)";
            db.query_row(sql, params![location, repository.as_str()], |row| row.get(0))
        };
        read().map_err(self.error("look for copies"))
    }

    /// Remembers what a copy holds now. Whoever calls has compared it with what is remembered.
    pub fn set_copy_head(
        &self,
        location: &str,
        repository: &RepositoryId,
        head: &ChainHead,
    ) -> Result<(), RepositoryError> {
        let db = self.db();
        let (host, policy, header) = (head.host.as_str(), head.policy.as_str(), head.header.to_hex());
        let write = || -> rusqlite::Result<()> {
            db.execute_batch(SCHEMA)?;
            let sql = "insert or replace into copies values (?1, ?2, ?3, ?4, ?5, ?6)";
            db.execute(sql, params![location, repository.as_str(), host, policy, head.sequence.0, header])?;
            Ok(())
        };
        write().map_err(self.error("keep what a copy holds"))
    }
}
