//! Locks on everything that a snapshot needs, before its header is written.
//!
//! What is written is locked for one and a half periods by the storage itself. What a snapshot uses again carries the
//! lock of its first day: it is extended once less than one period remains. So each snapshot's objects are locked for
//! one period from its header on, and most days nothing needs to be asked for.

use crate::base::ids::ObjectId;
use crate::repository::refs::Refs;
use crate::repository::state::State;
use crate::repository::{RepositoryError, layout, parallel};
use crate::storage::{ObjectLocks, Storage, StorageKey};
use chrono::{DateTime, TimeDelta, Utc};

/// The storage's time when a run begins, where objects are locked there.
pub fn begin(storage: &dyn Storage) -> Result<Option<DateTime<Utc>>, RepositoryError> {
    Ok(storage.object_locks().map(|_| storage.clock()).transpose()?)
}

/// The keys that a snapshot needs beside its manifest, which is always its own.
pub fn needed(signers: u32, refs: &Refs, refs_id: ObjectId) -> impl Iterator<Item = StorageKey> {
    let fixed = [layout::repository(), layout::refs(refs_id)].into_iter().chain((1..=signers).map(layout::signer));
    let named = refs.archives.keys().map(|id| layout::archive(*id));
    fixed.chain(named).chain(refs.index.keys().map(|id| layout::index(*id)))
}

/// Remembers what a run that began then has written: the storage has locked it.
pub fn remember(
    storage: &dyn Storage,
    state: &State,
    written: &[StorageKey],
    begun: DateTime<Utc>,
) -> Result<(), RepositoryError> {
    let Some(locks) = storage.object_locks() else { return Ok(()) };
    let keys = written.iter().map(StorageKey::as_str);
    state.set_object_locks(&storage.describe(), keys, begun + whole(locks), storage.clock()?)
}

/// Locks for one and a half periods what is not known to be locked for one.
pub fn extend(
    storage: &dyn Storage,
    state: &State,
    keys: impl Iterator<Item = StorageKey>,
) -> Result<(), RepositoryError> {
    let Some(locks) = storage.object_locks() else { return Ok(()) };
    let (place, now) = (storage.describe(), storage.clock()?);
    let (promised, until) = (now + locks.period(), now + whole(locks));
    let mut short = Vec::new();
    for key in keys {
        if state.object_lock(&place, key.as_str())?.is_none_or(|known| known < promised) {
            short.push(key);
        }
    }
    parallel::at_once(&short, |key| locks.lock_until(key, until)).into_iter().collect::<Result<(), _>>()?;
    state.set_object_locks(&place, short.iter().map(StorageKey::as_str), until, now)
}

/// How long the storage locks what is written.
fn whole(locks: &dyn ObjectLocks) -> TimeDelta {
    locks.period() * 3 / 2
}
