//! What this host remembers between runs (`<state-dir>/state.db`): pins, signers, the newest snapshot of every policy,
//! index objects written by runs that did not reach their header, chunk averages, and the memo of unchanged files.
//!
//! Losing it costs time and one announcement (a new lineage), never data. What it remembers of order is what shows
//! that a repository has been rolled back.

mod copies;
mod slices;

use crate::base::atomic;
use crate::base::ids::{HostName, ObjectId, PolicyName, RepositoryId, Sequence, random_bytes};
use crate::base::time::rfc3339;
use crate::pipeline::crypt::object_id;
use crate::repository::RepositoryError;
use crate::repository::database::{self, Database};
use crate::repository::format::StreamNote;
use crate::repository::headers::HeaderCache;
use crate::repository::trust::ChainHead;
use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, params};
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

const SCHEMA: &str = "
    create table if not exists lineage (value text not null);
    create table if not exists pins (location text primary key, repository text not null);
    create table if not exists heads (repository text, host text, policy text, sequence integer not null, header text not null,
        primary key (repository, host, policy));
    create table if not exists signers (repository text primary key, number integer not null, hash text not null);
    create table if not exists unfinished_index (repository text, id text, length integer not null, primary key (repository, id));
    create table if not exists streams (repository text, policy text, source text, stream text, average integer not null,
        lengths text not null, primary key (repository, policy, source, stream));
    create table if not exists object_locks (place text, id text, until text not null, primary key (place, id)) without rowid;";

pub use slices::Turn;

/// The state folder, open.
pub struct State {
    dir: PathBuf,
    db: Mutex<Database>,
    /// Set where `dir` is a copy, which goes with it.
    _aside: Option<TempDir>,
}

fn is_unwritable(e: &RepositoryError) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match e {
        RepositoryError::File { source, .. } => {
            matches!(source.kind(), QuotaExceeded | ReadOnlyFilesystem | StorageFull)
        }
        RepositoryError::State { source, .. } => database::is_unwritable(source),
        _ => false,
    }
}

fn open_db(path: &Path, is_cache: bool) -> Result<Database, RepositoryError> {
    let error = |source| RepositoryError::State { action: "open", path: path.to_owned(), source };
    let file_error = |source| RepositoryError::File { action: "open", path: path.to_owned(), source };
    database::create(path).map_err(file_error)?;
    let db = if is_cache { Database::cache(path) } else { Database::open(path) }.map_err(error)?;
    db.busy_timeout(Duration::from_secs(30)).map_err(error)?;
    db.pragma_update(None, "journal_mode", "wal").map_err(error)?;
    db.pragma_update(None, "synchronous", "normal").map_err(error)?;
    Ok(db)
}

/// Makes the tables that are not there. Where all are, nothing is written: a write begins the log anew, and waits for the
/// disk.
pub(super) fn set_up(db: &Connection, schema: &str) -> rusqlite::Result<()> {
    db.execute_batch(schema)?;
    if db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? != 1 {
        db.pragma_update(None, "user_version", 1)?;
    }
    Ok(())
}

impl State {
    /// Opens the state folder, creating it (0700) when it is not there.
    pub fn open(dir: &Path) -> Result<Self, RepositoryError> {
        let file = |source| RepositoryError::File { action: "create folder", path: dir.to_owned(), source };
        atomic::create_private_dir(dir).map_err(file)?;
        let path = dir.join("state.db");
        let db = open_db(&path, false)?;
        let error = |source| RepositoryError::State { action: "set up", path: path.clone(), source };
        set_up(&db, SCHEMA).map_err(error)?;
        Ok(Self { dir: dir.to_owned(), db: Mutex::new(db), _aside: None })
    }

    /// The same for whoever only reads: a disk that is full, or can only be read, must keep nobody from a restore. Where
    /// nothing can be written in the folder, what is remembered is copied elsewhere; the error is why.
    pub fn open_or_copy(dir: &Path) -> Result<(Self, Option<RepositoryError>), RepositoryError> {
        let why = match Self::open(dir) {
            Err(e) if is_unwritable(&e) => e,
            opened => return Ok((opened?, None)),
        };
        let Ok((aside, path)) = database::copy_aside(&dir.join("state.db")) else { return Err(why) };
        let copy = path.parent().unwrap_or(&path);
        let opened = Self::open(copy)?;
        Ok((Self { _aside: Some(aside), ..opened }, Some(why)))
    }

    fn db(&self) -> MutexGuard<'_, Database> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, action: &'static str) -> impl FnOnce(rusqlite::Error) -> RepositoryError {
        let path = self.dir.join("state.db");
        move |source| RepositoryError::State { action, path, source }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where decrypted index objects are kept.
    pub fn index_cache(&self, repository: &RepositoryId) -> PathBuf {
        self.cache(repository).join("index")
    }

    /// Drops decrypted index objects that the repository no longer has, and those that an earlier version kept as CBOR. What
    /// cannot be dropped costs room only.
    pub fn tidy_index_cache(&self, repository: &RepositoryId, is_there: impl Fn(&ObjectId) -> bool) {
        let cache = self.index_cache(repository);
        atomic::remove_all_left_behind(&cache);
        let Ok(entries) = fs::read_dir(cache) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let id = crate::repository::kept::id_of(name);
            let is_of_before = name.strip_suffix(".cbor").is_some_and(|id| id.parse::<ObjectId>().is_ok());
            if is_of_before || id.is_some_and(|id| !is_there(&id)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// What is remembered of a repository's headers and records as they lie at one location (a copy has the same id, and
    /// may hold others); `None` where nothing can be.
    pub fn header_cache(&self, repository: &RepositoryId, location: &str) -> Option<HeaderCache> {
        let place = object_id(location.as_bytes()).to_hex();
        HeaderCache::open(&self.cache(repository), &format!("headers-{}.db", &place[..8]))
    }

    fn cache(&self, repository: &RepositoryId) -> PathBuf {
        let name: String = repository.as_str().chars().filter(char::is_ascii_alphanumeric).take(24).collect();
        self.dir.join("cache").join(name)
    }

    /// Random, made once per state folder.
    pub fn lineage(&self) -> Result<String, RepositoryError> {
        let db = self.db();
        let found = db.query_row("select value from lineage", [], |row| row.get(0)).optional();
        if let Some(value) = found.map_err(self.error("look for the lineage"))? {
            return Ok(value);
        }
        let random: [u8; 8] = random_bytes().map_err(|source| RepositoryError::File {
            action: "make a lineage in",
            path: self.dir.clone(),
            source,
        })?;
        let value = hex::encode(random);
        db.execute("insert into lineage values (?1)", params![value]).map_err(self.error("keep the lineage"))?;
        Ok(value)
    }

    /// The repository that was found at a location before.
    pub fn pin(&self, location: &str) -> Result<Option<RepositoryId>, RepositoryError> {
        let text: Option<String> = self
            .db()
            .query_row("select repository from pins where location = ?1", params![location], |row| row.get(0))
            .optional()
            .map_err(self.error("look for a pin"))?;
        Ok(text.and_then(|id| id.parse().ok()))
    }

    /// Where a repository was seen.
    pub fn places_of(&self, id: &RepositoryId) -> Result<Vec<String>, RepositoryError> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut query = db.prepare("select location from pins where repository = ?1 order by location")?;
            query.query_map(params![id.as_str()], |row| row.get(0))?.collect()
        };
        read().map_err(self.error("look for pins"))
    }

    pub fn set_pin(&self, location: &str, id: &RepositoryId) -> Result<(), RepositoryError> {
        if self.pin(location)?.as_ref() == Some(id) {
            return Ok(());
        }
        let sql = "insert or replace into pins values (?1, ?2)";
        self.db().execute(sql, params![location, id.as_str()]).map(drop).map_err(self.error("keep a pin"))
    }

    /// The newest header seen of a host and policy.
    pub fn head(
        &self,
        repository: &RepositoryId,
        host: &HostName,
        policy: &PolicyName,
    ) -> Result<Option<(Sequence, ObjectId)>, RepositoryError> {
        let row: Option<(u64, String)> = self
            .db()
            .query_row(
                "select sequence, header from heads where repository = ?1 and host = ?2 and policy = ?3",
                params![repository.as_str(), host.as_str(), policy.as_str()],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()
            .map_err(self.error("look for the newest snapshot"))?;
        Ok(row.and_then(|(sequence, header)| Some((Sequence(sequence), header.parse().ok()?))))
    }

    /// The last signer seen of a repository.
    pub fn signer(&self, repository: &RepositoryId) -> Result<Option<(u32, ObjectId)>, RepositoryError> {
        let sql = "select number, hash from signers where repository = ?1";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let row: Option<(u32, String)> = self
            .db()
            .query_row(sql, params![repository.as_str()], read)
            .optional()
            .map_err(self.error("look for signers"))?;
        Ok(row.and_then(|(number, hash)| Some((number, hash.parse().ok()?))))
    }

    /// Remembers the last signer; whoever calls has compared it with what is remembered.
    pub fn set_signer(&self, repository: &RepositoryId, number: u32, hash: ObjectId) -> Result<(), RepositoryError> {
        let sql = "insert or replace into signers values (?1, ?2, ?3)";
        let done = self.db().execute(sql, params![repository.as_str(), number, hash.to_hex()]);
        done.map(drop).map_err(self.error("keep the last signer"))
    }

    /// The newest header seen of every host and policy of a repository.
    pub fn heads(&self, repository: &RepositoryId) -> Result<Vec<ChainHead>, RepositoryError> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<(String, String, u64, String)>> {
            let mut query = db.prepare("select host, policy, sequence, header from heads where repository = ?1")?;
            let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
            query.query_map(params![repository.as_str()], row)?.collect()
        };
        let rows = read().map_err(self.error("look for the newest snapshots"))?;
        let head = |(host, policy, sequence, header): (String, String, u64, String)| {
            let (host, policy, header) = (host.parse().ok()?, policy.parse().ok()?, header.parse().ok()?);
            Some(ChainHead { host, policy, sequence: Sequence(sequence), header })
        };
        Ok(rows.into_iter().filter_map(head).collect())
    }

    /// Remembers a header; an older one than is known changes nothing.
    pub fn set_head(&self, repository: &RepositoryId, head: &ChainHead) -> Result<(), RepositoryError> {
        self.db()
            .execute(
                "insert into heads values (?1, ?2, ?3, ?4, ?5) on conflict do update
                 set sequence = excluded.sequence, header = excluded.header where excluded.sequence > sequence",
                params![
                    repository.as_str(),
                    head.host.as_str(),
                    head.policy.as_str(),
                    head.sequence.0,
                    head.header.to_hex()
                ],
            )
            .map(drop)
            .map_err(self.error("keep the newest snapshot"))
    }

    /// Until when an object is locked at least, as far as this host has locked it itself.
    pub fn object_lock(&self, place: &str, key: &str) -> Result<Option<DateTime<Utc>>, RepositoryError> {
        let sql = "select until from object_locks where place = ?1 and id = ?2";
        let row: Option<String> = self
            .db()
            .query_row(sql, params![place, key], |row| row.get(0))
            .optional()
            .map_err(self.error("look for a lock"))?;
        Ok(row.and_then(|text| text.parse().ok()))
    }

    /// Remembers locks, and forgets those that have run out.
    pub fn set_object_locks<'k>(
        &self,
        place: &str,
        keys: impl Iterator<Item = &'k str>,
        until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<(), RepositoryError> {
        let mut db = self.db();
        let write = || -> rusqlite::Result<()> {
            let transaction = db.transaction()?;
            transaction.execute("delete from object_locks where until < ?1", params![rfc3339(now)])?;
            for key in keys {
                let sql = "insert or replace into object_locks values (?1, ?2, ?3)";
                transaction.execute(sql, params![place, key, rfc3339(until)])?;
            }
            transaction.commit()
        };
        write().map_err(self.error("keep locks"))
    }

    /// Index objects that this host wrote and that no header names yet.
    pub fn unfinished_index(&self, repository: &RepositoryId) -> Result<Vec<(ObjectId, u64)>, RepositoryError> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<(String, u64)>> {
            let mut query = db.prepare("select id, length from unfinished_index where repository = ?1")?;
            query.query_map(params![repository.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        let rows = read().map_err(self.error("look for unfinished index objects"))?;
        Ok(rows.into_iter().filter_map(|(id, length)| Some((id.parse().ok()?, length))).collect())
    }

    pub fn add_unfinished_index(
        &self,
        repository: &RepositoryId,
        id: ObjectId,
        length: u64,
    ) -> Result<(), RepositoryError> {
        let sql = "insert or replace into unfinished_index values (?1, ?2, ?3)";
        self.db()
            .execute(sql, params![repository.as_str(), id.to_hex(), length])
            .map(drop)
            .map_err(self.error("keep an index object's name"))
    }

    /// Forgets those that a header names now.
    pub fn remove_unfinished_index(&self, repository: &RepositoryId, ids: &[ObjectId]) -> Result<(), RepositoryError> {
        let db = self.db();
        for id in ids {
            let sql = "delete from unfinished_index where repository = ?1 and id = ?2";
            db.execute(sql, params![repository.as_str(), id.to_hex()])
                .map_err(self.error("forget an index object's name"))?;
        }
        Ok(())
    }

    /// What is remembered of a policy's streams.
    pub fn streams(&self, repository: &RepositoryId, policy: &PolicyName) -> Result<Vec<StreamNote>, RepositoryError> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<(String, String, u32, String)>> {
            let sql = "select source, stream, average, lengths from streams where repository = ?1 and policy = ?2 order by 1, 2";
            let mut query = db.prepare(sql)?;
            let rows = query.query_map(params![repository.as_str(), policy.as_str()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?;
            rows.collect()
        };
        let rows = read().map_err(self.error("look for streams"))?;
        let note = |(source, stream, average, lengths): (String, String, u32, String)| {
            Some(StreamNote {
                policy: policy.clone(),
                source: source.parse().ok()?,
                stream: stream.parse().ok()?,
                average,
                lengths: serde_json::from_str(&lengths).ok()?,
            })
        };
        Ok(rows.into_iter().filter_map(note).collect())
    }

    /// Replaces what is remembered of streams.
    pub fn set_streams(&self, repository: &RepositoryId, notes: &[StreamNote]) -> Result<(), RepositoryError> {
        let mut db = self.db();
        let mut write = || -> rusqlite::Result<()> {
            let transaction = db.transaction()?;
            for note in notes {
                let lengths = serde_json::to_string(&note.lengths).unwrap_or_default();
                transaction.execute(
                    "insert or replace into streams values (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        repository.as_str(),
                        note.policy.as_str(),
                        note.source.as_str(),
                        note.stream.as_str(),
                        note.average,
                        lengths
                    ],
                )?;
            }
            transaction.commit()
        };
        write().map_err(self.error("keep streams"))
    }

    /// Takes the lock of one policy; `None` when another run holds it.
    pub fn lock_policy(&self, policy: &PolicyName) -> Result<Option<PolicyLock>, RepositoryError> {
        Ok(self.lock_file(&format!("{policy}.lock"))?.map(|_file| PolicyLock { _file }))
    }

    /// Takes the lock of the drills of one policy; snapshots go on beside them.
    pub fn lock_drill(&self, policy: &PolicyName) -> Result<Option<PolicyLock>, RepositoryError> {
        Ok(self.lock_file(&format!("{policy}.drill.lock"))?.map(|_file| PolicyLock { _file }))
    }

    /// Takes the lock under which this host writes records about its snapshots; `None` when another process holds it.
    pub fn lock_records(&self) -> Result<Option<RecordsLock>, RepositoryError> {
        // No policy's name has a dot.
        Ok(self.lock_file("records.marks.lock")?.map(|_file| RecordsLock { _file }))
    }

    fn lock_file(&self, name: &str) -> Result<Option<File>, RepositoryError> {
        let path = self.dir.join(name);
        let file_error = |source| RepositoryError::File { action: "lock", path: path.clone(), source };
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(file_error)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(file_error(e.into())),
        }
    }

    /// The memo of one policy's unchanged files. One run at a time holds it, under the policy's lock.
    pub fn memo(&self, policy: &PolicyName) -> Result<Memo, RepositoryError> {
        let path = self.dir.join(format!("memo-{policy}.db"));
        let db = open_db(&path, true)?;
        let setup = "create table if not exists memo (key text primary key, value blob not null, used integer not null) without rowid;
                     create table if not exists run (number integer not null);
                     begin immediate;";
        let error = |source| RepositoryError::State { action: "open", path: path.clone(), source };
        db.execute_batch(setup).map_err(error)?;
        let run: u64 = db
            .query_row("select coalesce(max(number), 0) + 1 from run", [], |row| row.get(0))
            .map_err(|source| RepositoryError::State { action: "open", path: path.clone(), source })?;
        Ok(Memo { db: Mutex::new(db), path, run })
    }
}

/// Held for as long as a run works on a policy. The kernel frees it with the process, however that ends.
pub struct PolicyLock {
    _file: File,
}

/// Held while a record is written.
pub struct RecordsLock {
    _file: File,
}

/// Asked for again, a value is written down as used in every so many runs only: a run in which nothing changed writes
/// nothing.
const TOUCHED_EVERY: u64 = 8;
/// Values that so many runs have not asked for are dropped.
const KEPT_FOR: u64 = 16;

/// What sources remember of unchanged files; kept only when the run ends well ([`Memo::commit`]).
pub struct Memo {
    db: Mutex<Database>,
    path: PathBuf,
    run: u64,
}

impl Memo {
    fn db(&self) -> MutexGuard<'_, Database> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value of a key. A memo that cannot be read knows nothing.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let db = self.db();
        let mut query = db.prepare_cached("select value, used from memo where key = ?1").ok()?;
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, u64>(1)?));
        let (value, used) = query.query_row(params![key], row).optional().ok()??;
        if used.saturating_add(TOUCHED_EVERY) <= self.run {
            let mut touch = db.prepare_cached("update memo set used = ?2 where key = ?1").ok()?;
            touch.execute(params![key, self.run]).ok()?;
        }
        Some(value)
    }

    /// Keeps a value. One that cannot be kept is not known next time.
    pub fn put(&self, key: &str, value: &[u8]) {
        let db = self.db();
        if let Ok(mut query) = db.prepare_cached("insert or replace into memo values (?1, ?2, ?3)") {
            let _ = query.execute(params![key, value, self.run]);
        }
    }

    /// Makes what was put durable, and drops what some runs have not asked for.
    pub fn commit(self) -> Result<(), RepositoryError> {
        let db = self.db();
        let finish = || -> rusqlite::Result<()> {
            if self.run.is_multiple_of(TOUCHED_EVERY) {
                db.execute("delete from memo where used < ?1", params![self.run.saturating_sub(KEPT_FOR)])?;
            }
            db.execute("delete from run", [])?;
            db.execute("insert into run values (?1)", params![self.run])?;
            db.execute_batch("commit")
        };
        finish().map_err(|source| RepositoryError::State { action: "keep the memo", path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let repository: RepositoryId = format!("SHA256:{}", "A".repeat(43)).parse().unwrap();
        let head = |sequence| ChainHead {
            host: "h".parse().unwrap(),
            policy: "p".parse().unwrap(),
            sequence: Sequence(sequence),
            header: ObjectId([sequence as u8; 32]),
        };
        for sequence in [3, 5, 4] {
            state.set_head(&repository, &head(sequence)).unwrap();
        }
        let known = state.head(&repository, &head(1).host, &head(1).policy).unwrap();
        assert_eq!(known, Some((Sequence(5), ObjectId([5; 32]))));
        assert_eq!(state.lineage().unwrap(), State::open(state.dir()).unwrap().lineage().unwrap());

        let policy = "p".parse().unwrap();
        let lock = state.lock_policy(&policy).unwrap();
        assert!(lock.is_some() && State::open(state.dir()).unwrap().lock_policy(&policy).unwrap().is_none());
        drop(lock);
        assert!(state.lock_policy(&policy).unwrap().is_some());
    }

    #[test]
    fn the_cache_drops_what_is_of_no_use_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let repository: RepositoryId = format!("SHA256:{}", "A".repeat(43)).parse().unwrap();
        let cache = state.index_cache(&repository);
        let [there, gone] = [ObjectId([1; 32]), ObjectId([2; 32])];
        fs::create_dir_all(cache.join("folder")).unwrap();
        let now = format!(".{there}.index.{}.tmp", "0a".repeat(8));
        // An earlier version kept them as CBOR.
        let names =
            [format!("{there}.index"), format!("{gone}.index"), format!("{there}.cbor"), "notes".into(), now.clone()];
        names.iter().for_each(|name| fs::write(cache.join(name), "x").unwrap());
        state.tidy_index_cache(&repository, |id| *id == there);
        let mut left: Vec<String> =
            fs::read_dir(&cache).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, [now, format!("{there}.index"), "folder".to_owned(), "notes".to_owned()]);
    }

    #[test]
    fn a_memo_lives_only_when_committed() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let policy = "p".parse().unwrap();
        let memo = state.memo(&policy).unwrap();
        memo.put("a", b"1");
        drop(memo);
        let memo = state.memo(&policy).unwrap();
        assert_eq!(memo.get("a"), None, "the run did not end well");
        memo.put("a", b"2");
        memo.commit().unwrap();
        assert_eq!(state.memo(&policy).unwrap().get("a"), Some(b"2".to_vec()));
    }
}
