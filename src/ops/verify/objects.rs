//! *read-data*: stored objects read and hashed, on two threads, one object at a time on each.

use super::slices::{self, Memory, Slice};
use super::{Check, Needed, Progress};
use crate::base::ids::ObjectId;
use crate::ops::{OpsError, crew};
use crate::pipeline::crypt::object_id;
use crate::pipeline::limits;
use crate::repository::chain::Snapshot;
use crate::repository::{RepositoryError, layout};
use crate::storage::StorageKey;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// Memory is bounded by this many objects and their plain bytes.
const THREADS: usize = 2;

/// An object that shall be read.
struct Task {
    key: StorageKey,
    id: ObjectId,
    length: u64,
    limit: u64,
}

fn task(id: &ObjectId, length: &u64, key: fn(ObjectId) -> StorageKey, limit: u64) -> Task {
    Task { key: key(*id), id: *id, length: *length, limit }
}

fn details(needed: &Needed) -> Vec<Task> {
    let one = |(id, length)| task(id, length, layout::drill_details, limits::MANIFEST_STORED);
    needed.details.iter().map(one).collect()
}

impl Check<'_> {
    /// Reads and hashes everything that is needed, and of the archives the slice whose turn it is. What was read counts
    /// for the turns only when all snapshots were looked at.
    pub(super) fn read_data(
        &self,
        snapshots: &[&Snapshot],
        needed: &Needed,
        percent: u8,
        is_all: bool,
    ) -> Result<Option<Slice>, OpsError> {
        let memory = self.access.state.as_ref().filter(|_| is_all).map(|state| Memory {
            state,
            location: self.repository().storage().describe(),
            repository: self.repository().id(),
        });
        let of = slices::count(percent);
        let slice = slices::next(memory.as_ref(), of, self.run);
        let manifests: BTreeMap<ObjectId, u64> =
            snapshots.iter().map(|s| (s.header.manifest, s.header.manifest_bytes)).collect();
        let mut tasks = details(needed);
        let sampled = needed.archives.iter().filter(|(id, _)| slices::of(id, of) == slice);
        tasks.extend(manifests.iter().map(|(id, n)| task(id, n, layout::manifest, limits::MANIFEST_STORED)));
        tasks.extend(needed.index.iter().map(|(id, n)| task(id, n, layout::index, limits::INDEX_STORED)));
        tasks.extend(sampled.map(|(id, n)| task(id, n, layout::archive, limits::ARCHIVE)));
        // What is missing or of another length has its finding.
        tasks.retain(|task| !self.ledger().has(task.key.as_str()));
        let bytes = tasks.iter().map(|task| task.length).fold(0, u64::saturating_add);
        self.run.events.step(format!("reading {} objects", tasks.len()));
        let progress = Progress::begin(self.run, "repository", bytes);
        self.each(&tasks, |task| self.rehash(task, &progress))?;
        drop(progress);
        let read = slices::settle(memory.as_ref(), slice, of, self.run);
        Ok((of > 1).then_some(read))
    }

    /// Reads and hashes the details of drills, which nothing else opens.
    pub(super) fn read_details(&self, needed: &Needed) -> Result<(), OpsError> {
        let mut tasks = details(needed);
        tasks.retain(|task| !self.ledger().has(task.key.as_str()));
        if tasks.is_empty() {
            return Ok(());
        }
        self.run.events.step(format!("reading the details of {} drills", tasks.len()));
        let progress = Progress::begin(self.run, "repository", tasks.iter().map(|task| task.length).sum());
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
        crew::each(THREADS, items, &self.run.cancel, work)
    }
}
