//! Locks on everything that a snapshot needs, before its header is written.
//!
//! What is written is locked for one and a half periods by the storage itself. What a snapshot uses again carries the
//! lock of its first day: it is extended once less than one period remains. So each snapshot's objects are locked for
//! one period from its header on, and most days nothing needs to be asked for.

use crate::base::ids::ObjectId;
use crate::repository::refs::Refs;
use crate::repository::state::State;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::{ObjectLocks, StorageKey};
use chrono::{DateTime, Utc};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Locks are round trips.
const AT_ONCE: usize = 8;

/// Extends what is too short. `begun` is the storage's time before the run wrote anything, `fresh` what the run has
/// written since then.
pub(super) fn extend(
    repository: &Repository,
    locks: &dyn ObjectLocks,
    state: &State,
    begun: DateTime<Utc>,
    fresh: &HashSet<ObjectId>,
    refs: &Refs,
) -> Result<(), RepositoryError> {
    let now = repository.storage().clock()?;
    let (promised, until) = (now + locks.period(), now + locks.period() * 3 / 2);
    let written = begun + locks.period() * 3 / 2;
    let mut keys: Vec<StorageKey> = vec![layout::repository()];
    keys.extend((1..=repository.signer_count()).map(layout::signer));
    let named = refs.archives.keys().map(|id| (*id, layout::archive(*id)));
    let named = named.chain(refs.index.keys().map(|id| (*id, layout::index(*id))));
    let mut remember = Vec::new();
    for (id, key) in named {
        if fresh.contains(&id) && written >= promised { remember.push(key) } else { keys.push(key) }
    }
    state.set_object_locks(repository.id(), remember.iter().map(StorageKey::as_str), written, now)?;
    let mut short = Vec::new();
    for key in keys {
        if state.object_lock(repository.id(), key.as_str())?.is_none_or(|known| known < promised) {
            short.push(key);
        }
    }
    each(&short, |key| Ok(locks.lock_until(key, until)?))?;
    state.set_object_locks(repository.id(), short.iter().map(StorageKey::as_str), until, now)
}

/// Refs that another snapshot had before are stored already, under that snapshot's lock.
pub(super) fn extend_one(
    repository: &Repository,
    locks: &dyn ObjectLocks,
    key: &StorageKey,
) -> Result<(), RepositoryError> {
    let now = repository.storage().clock()?;
    if locks.locked_until(key)?.is_none_or(|until| until < now + locks.period()) {
        locks.lock_until(key, now + locks.period() * 3 / 2)?;
    }
    Ok(())
}

fn each(
    keys: &[StorageKey],
    work: impl Fn(&StorageKey) -> Result<(), RepositoryError> + Sync,
) -> Result<(), RepositoryError> {
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(keys.len()) {
            scope.spawn(|| {
                while let Some(key) = keys.get(next.fetch_add(1, Ordering::SeqCst)) {
                    if let Err(e) = work(key) {
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                        next.store(keys.len(), Ordering::SeqCst);
                        return;
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
