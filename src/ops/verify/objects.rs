//! *read-data*: stored objects read and hashed, on two threads, one object at a time on each.

use super::{Check, Needed, Progress};
use crate::base::ids::ObjectId;
use crate::ops::OpsError;
use crate::pipeline::crypt::object_id;
use crate::pipeline::limits;
use crate::repository::chain::Snapshot;
use crate::repository::{RepositoryError, layout};
use crate::storage::StorageKey;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Memory is bounded by this many objects and their plain bytes.
const THREADS: usize = 2;

/// An object that shall be read.
struct Task {
    key: StorageKey,
    id: ObjectId,
    length: u64,
    limit: u64,
}

impl Check<'_> {
    /// Reads and hashes everything that is needed, and of the archives so many percent.
    pub(super) fn read_data(&self, snapshots: &[&Snapshot], needed: &Needed, percent: u8) -> Result<(), OpsError> {
        let manifests: BTreeMap<ObjectId, u64> =
            snapshots.iter().map(|s| (s.header.manifest, s.header.manifest_bytes)).collect();
        let task = |id: &ObjectId, length: &u64, key: fn(ObjectId) -> StorageKey, limit| Task {
            key: key(*id),
            id: *id,
            length: *length,
            limit,
        };
        let mut tasks: Vec<Task> = Vec::new();
        let sampled = needed.archives.iter().filter(|(id, _)| is_sampled(id, percent, self.run.now));
        tasks.extend(manifests.iter().map(|(id, n)| task(id, n, layout::manifest, limits::MANIFEST_STORED)));
        tasks.extend(needed.index.iter().map(|(id, n)| task(id, n, layout::index, limits::INDEX_STORED)));
        tasks.extend(sampled.map(|(id, n)| task(id, n, layout::archive, limits::ARCHIVE)));
        // What is missing or of another length has its finding.
        tasks.retain(|task| !self.ledger().has(task.key.as_str()));
        let bytes = tasks.iter().map(|task| task.length).fold(0, u64::saturating_add);
        self.run.events.step(format!("reading {} objects", tasks.len()));
        let progress = Progress::begin(self.run, "repository", bytes);
        self.each(&tasks, |task| self.rehash(task, &progress))
    }

    fn rehash(&self, task: &Task, progress: &Progress<'_>) -> Result<(), OpsError> {
        match self.repository().get(&task.key, task.limit) {
            Ok(bytes) => {
                self.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                progress.add(bytes.len() as u64);
                if object_id(&bytes) != task.id {
                    let problem = "its bytes are not those that its name promises".to_owned();
                    self.settle(&RepositoryError::Damaged { key: task.key.clone(), problem }, "");
                }
                Ok(())
            }
            Err(e) if e.is_integrity() => {
                self.settle(&e, task.key.as_str());
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Does the work for each item, a few at a time. The first failure ends all of it.
    pub(super) fn each<T: Sync>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> Result<(), OpsError> + Sync,
    ) -> Result<(), OpsError> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..THREADS.min(items.len()) {
                scope.spawn(|| {
                    while !failed.load(Ordering::SeqCst) {
                        let Some(item) = items.get(next.fetch_add(1, Ordering::SeqCst)) else { return };
                        let done = self.run.cancel.check().map_err(OpsError::from).and_then(|()| work(item));
                        if let Err(e) = done {
                            failed.store(true, Ordering::SeqCst);
                            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                        }
                    }
                });
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Whether an archive is among today's: a window over the ids that moves on by its own width every day, so that so many
/// percent a day come to all of them.
fn is_sampled(id: &ObjectId, percent: u8, now: DateTime<Utc>) -> bool {
    let percent = u64::from(percent.min(100));
    let place = u64::from(u16::from_be_bytes([id.0[0], id.0[1]])) * 100;
    let width = percent << 16;
    let day = now.timestamp().div_euclid(86_400).unsigned_abs();
    let begin = (day % 100 * width) % (100 << 16);
    (place + (100 << 16) - begin) % (100 << 16) < width
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::Days;

    #[test]
    fn samples_come_to_everything_in_time() {
        let today: DateTime<Utc> = "2026-11-21T12:00:00Z".parse().unwrap();
        let ids: Vec<ObjectId> = (0..2000u32).map(|n| object_id(&n.to_le_bytes())).collect();
        for (percent, days) in [(100, 1), (50, 2), (10, 10), (7, 15), (1, 100)] {
            let on = |day: u64, id: &ObjectId| is_sampled(id, percent, today.checked_add_days(Days::new(day)).unwrap());
            assert!(ids.iter().all(|id| (0..days).any(|day| on(day, id))), "{percent} % in {days} days");
            let share = ids.iter().filter(|id| on(0, id)).count() * 100 / ids.len();
            assert!(share.abs_diff(usize::from(percent)) <= 3, "{share} % of {percent} %");
        }
        assert!(!ids.iter().any(|id| is_sampled(id, 0, today)));
    }
}
