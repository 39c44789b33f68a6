//! Headers and records as they are read: many at once, and only once where a host remembers what it has verified.
//!
//! They never change, so a host keeps the bytes of those that it has verified in its state folder
//! (`<state>/cache/<repository>/headers-<location>.db`). A remembered object is used where the storage still lists it under the same
//! key with the same length and time. Its bytes must have the hash that was kept with them; whose signature is on them
//! is not looked at again until the signers of the repository are others (a key may have been revoked since). So the
//! cache is trusted as far as the pins beside it are, and no further: it saves reading, it replaces no listing, and what
//! is damaged in it is read from the storage. Whoever asks whether the storage is whole (`verify`, `prune`) reads without
//! it.

use crate::base::atomic;
use crate::base::ids::ObjectId;
use crate::pipeline::crypt::object_id;
use crate::repository::database::{self, Database};
use crate::repository::format::{Header, HeaderRef};
use crate::repository::parallel::at_once;
use crate::repository::state::set_up;
use crate::repository::{Repository, RepositoryError};
use crate::storage::{ObjectInfo, StorageKey};
use rusqlite::{Connection, OptionalExtension, params};
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Objects that are held in memory at once.
const BATCH: usize = 512;
/// What is longer is read alone, and not kept: sixteen of the longest allowed would fill the memory.
const SMALL: u64 = 256 << 10;

const SCHEMA: &str = "
    create table if not exists objects (key text primary key, length integer not null, modified text not null,
        hash blob not null, signers blob not null, last_good text not null, bytes blob not null) without rowid;";

/// An object that has been verified.
pub(super) struct Verified<T> {
    pub value: T,
    /// SHA-256 of the object.
    pub id: ObjectId,
    /// Where its signer has been revoked: the headers, of the same host and policy, that the revocation calls good.
    pub last_good: Vec<HeaderRef>,
}

/// What a verification says: the parsed object, and [`Verified::last_good`].
pub(super) type Checked<T> = Result<(T, Vec<HeaderRef>), RepositoryError>;

/// What this host remembers of a repository's headers and records. Nothing that fails here is an error: it costs a read.
pub struct HeaderCache {
    db: Mutex<Database>,
}

/// A remembered object.
struct Known {
    bytes: Vec<u8>,
    hash: ObjectId,
    /// By the same signers as now.
    checked: bool,
    last_good: Vec<HeaderRef>,
}

impl HeaderCache {
    /// Opens the cache in a folder, creating both. One that cannot be read is made anew; `None` where that fails too.
    pub fn open(dir: &Path, name: &str) -> Option<Self> {
        let path = dir.join(name);
        let open = || -> rusqlite::Result<Database> {
            let db = Database::cache(&path)?;
            db.busy_timeout(Duration::from_secs(2))?;
            db.pragma_update(None, "journal_mode", "wal")?;
            db.pragma_update(None, "synchronous", "off")?;
            set_up(&db, SCHEMA)?;
            Ok(db)
        };
        let create = || -> std::io::Result<()> {
            atomic::create_private_dir(dir)?;
            database::create(&path)
        };
        if let Err(e) = create() {
            tracing::debug!("headers are not kept in {}: {e}", dir.display());
            return None;
        }
        let db = open().or_else(|e| {
            tracing::debug!("{} is made anew: {e}", path.display());
            for suffix in ["", "-wal", "-shm"] {
                let _ = fs::remove_file(dir.join(format!("{name}{suffix}")));
            }
            let _ = create();
            open()
        });
        db.map(|db| Self { db: Mutex::new(db) }).ok()
    }

    fn db(&self) -> MutexGuard<'_, Database> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, object: &ObjectInfo, signers: &[u8]) -> Option<Known> {
        let db = self.db();
        let sql =
            "select hash, signers, last_good, bytes from objects where key = ?1 and length = ?2 and modified = ?3";
        let mut query = db.prepare_cached(sql).ok()?;
        let row = query.query_row(params![object.key.as_str(), object.length, modified(object)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        });
        let (hash, by, last_good, bytes): ([u8; 32], Vec<u8>, String, Vec<u8>) = row.optional().ok()??;
        let last_good = serde_json::from_str(&last_good).ok()?;
        Some(Known { bytes, hash: ObjectId(hash), checked: by == signers, last_good })
    }

    /// The keys of what is remembered below a prefix that ends in a slash.
    pub fn keys(&self, prefix: &str) -> Vec<StorageKey> {
        let known = below(&self.db(), prefix).unwrap_or_default();
        known.into_iter().filter_map(|key| key.parse().ok()).collect()
    }

    /// A header as it was when it was verified. It may be gone since, and its signer revoked: good for a guess.
    pub fn header(&self, key: &StorageKey) -> Option<Header> {
        let db = self.db();
        let mut query = db.prepare_cached("select bytes from objects where key = ?1").ok()?;
        let bytes: Vec<u8> = query.query_row(params![key.as_str()], |row| row.get(0)).optional().ok()??;
        parse_line(&bytes)
    }

    /// Remembers a header that has been read and verified on its own.
    pub fn remember(&self, repository: &Repository, object: &ObjectInfo, bytes: Vec<u8>) {
        let signers = repository.last_signer().map_or([0; 32], |(_, hash)| hash.0);
        let fetched = Fetched { object, id: object_id(&bytes), last_good: Vec::new(), bytes };
        if let Err(e) = self.put(&[fetched], &signers) {
            tracing::debug!("a header is not kept: {e}");
        }
    }

    fn put(&self, objects: &[Fetched<'_>], signers: &[u8]) -> rusqlite::Result<()> {
        let mut db = self.db();
        let transaction = db.transaction()?;
        {
            let mut insert =
                transaction.prepare_cached("insert or replace into objects values (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
            for Fetched { object, id, last_good, bytes } in objects {
                let key = object.key.as_str();
                let last_good = serde_json::to_string(last_good).unwrap_or_default();
                insert.execute(params![key, object.length, modified(object), id.0, signers, last_good, bytes])?;
            }
        }
        transaction.commit()
    }

    /// Forgets what is below `prefix` and not listed.
    fn keep_only(&self, prefix: &str, listed: &[ObjectInfo]) -> rusqlite::Result<()> {
        let mut db = self.db();
        let listed: HashSet<&str> = listed.iter().map(|object| object.key.as_str()).collect();
        let known = below(&db, prefix)?;
        let gone: Vec<&String> = known.iter().filter(|key| !listed.contains(key.as_str())).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let transaction = db.transaction()?;
        for key in gone {
            transaction.prepare_cached("delete from objects where key = ?1")?.execute(params![key])?;
        }
        transaction.commit()
    }
}

fn below(db: &Connection, prefix: &str) -> rusqlite::Result<Vec<String>> {
    // Keys below `prefix/` sort before `prefix0`.
    let mut query = db.prepare_cached("select key from objects where key >= ?1 and key < ?2")?;
    let end = format!("{}0", prefix.trim_end_matches('/'));
    query.query_map(params![prefix, end], |row| row.get(0))?.collect()
}

fn modified(object: &ObjectInfo) -> String {
    object.modified.to_rfc3339()
}

/// An object that was verified now and may be remembered.
struct Fetched<'a> {
    object: &'a ObjectInfo,
    id: ObjectId,
    last_good: Vec<HeaderRef>,
    bytes: Vec<u8>,
}

/// Every object below a prefix, verified, with what is wrong where it is not, in the order of the list.
pub(super) fn read_all<T: DeserializeOwned + Send>(
    repository: &Repository,
    prefix: &str,
    limit: u64,
    cache: Option<&HeaderCache>,
    verify: impl Fn(&StorageKey, &[u8]) -> Checked<T> + Sync,
    mut each: impl FnMut(StorageKey, Result<Verified<T>, RepositoryError>) -> Result<(), RepositoryError>,
) -> Result<(), RepositoryError> {
    let listed = repository.storage().list(prefix)?;
    let signers = repository.last_signer().map_or([0; 32], |(_, hash)| hash.0);
    for batch in listed.chunks(BATCH) {
        let read = |object: &ObjectInfo, limit| read_one(repository, object, limit, cache, &signers, &verify);
        // What is remembered is at hand at once; threads are for what must be fetched.
        let recalled: Vec<Option<Verified<T>>> = batch.iter().map(|object| recall(cache?, object, &signers)).collect();
        let missing = batch.iter().zip(&recalled).filter(|(object, known)| known.is_none() && object.length <= SMALL);
        let missing: Vec<&ObjectInfo> = missing.map(|(object, _)| object).collect();
        let mut read_now = at_once(&missing, |object| read(object, limit.min(SMALL))).into_iter();
        let mut fetched = Vec::new();
        for (object, recalled) in batch.iter().zip(recalled) {
            let (result, bytes) = match recalled {
                Some(verified) => (Ok(verified), None),
                None if object.length > SMALL => read(object, limit),
                None => read_now.next().unwrap_or_else(|| read(object, limit)),
            };
            if let (Ok(verified), Some(bytes)) = (&result, bytes)
                && bytes.len() as u64 <= SMALL
            {
                fetched.push(Fetched { object, id: verified.id, last_good: verified.last_good.clone(), bytes });
            }
            each(object.key.clone(), result)?;
        }
        if let Some(cache) = cache
            && !fetched.is_empty()
            && let Err(e) = cache.put(&fetched, &signers)
        {
            tracing::debug!("headers are not kept: {e}");
        }
    }
    if let Some(cache) = cache
        && let Err(e) = cache.keep_only(prefix, &listed)
    {
        tracing::debug!("old headers are not forgotten: {e}");
    }
    Ok(())
}

/// An object that was verified before, by the same signers as now.
fn recall<T: DeserializeOwned>(cache: &HeaderCache, object: &ObjectInfo, signers: &[u8]) -> Option<Verified<T>> {
    let known = cache.get(object, signers).filter(|known| known.checked && object_id(&known.bytes) == known.hash)?;
    Some(Verified { value: parse_line(&known.bytes)?, id: known.hash, last_good: known.last_good })
}

/// One object; its bytes as well where they are to be remembered.
fn read_one<T: DeserializeOwned>(
    repository: &Repository,
    object: &ObjectInfo,
    limit: u64,
    cache: Option<&HeaderCache>,
    signers: &[u8],
    verify: &impl Fn(&StorageKey, &[u8]) -> Checked<T>,
) -> (Result<Verified<T>, RepositoryError>, Option<Vec<u8>>) {
    let known =
        cache.and_then(|cache| cache.get(object, signers)).filter(|known| object_id(&known.bytes) == known.hash);
    // There are other signers now: the same bytes, looked at anew.
    if let Some(known) = known
        && let Ok((value, last_good)) = verify(&object.key, &known.bytes)
    {
        return (Ok(Verified { value, id: known.hash, last_good }), Some(known.bytes));
    }
    let read = repository.get(&object.key, limit).and_then(|bytes| {
        let (value, last_good) = verify(&object.key, &bytes)?;
        Ok((Verified { value, id: object_id(&bytes), last_good }, bytes))
    });
    match read {
        Ok((verified, bytes)) => (Ok(verified), Some(bytes)),
        Err(e) => (Err(e), None),
    }
}

/// The JSON line of an object whose signature has been verified before.
fn parse_line<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    serde_json::from_slice(&bytes[..end]).ok()
}
