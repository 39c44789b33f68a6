//! A repository in memory: for tests of what stands above, and as the simplest reading of the contract.

use super::{ObjectInfo, Put, Storage, StorageError, StorageKey};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

type Objects = BTreeMap<StorageKey, (Vec<u8>, DateTime<Utc>)>;

/// Objects in a map, with a clock that can be put forward.
#[derive(Default)]
pub struct MemoryStorage {
    objects: Mutex<Objects>,
    ahead_seconds: AtomicI64,
}

impl MemoryStorage {
    /// An empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets time pass in the storage, as it passes for a server while a host sleeps.
    pub fn advance(&self, by: TimeDelta) {
        self.ahead_seconds.fetch_add(by.num_seconds(), Ordering::SeqCst);
    }

    fn now(&self) -> DateTime<Utc> {
        Utc::now() + TimeDelta::seconds(self.ahead_seconds.load(Ordering::SeqCst))
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for MemoryStorage {
    fn describe(&self) -> String {
        "memory".into()
    }

    fn put_new(&self, key: &StorageKey, bytes: &[u8]) -> Result<Put, StorageError> {
        let mut objects = self.objects();
        match objects.get(key) {
            Some((there, _)) if there == bytes => Ok(Put::AlreadyThere),
            Some(_) => Err(StorageError::Exists { key: key.clone() }),
            None => {
                objects.insert(key.clone(), (bytes.to_vec(), self.now()));
                Ok(Put::Created)
            }
        }
    }

    fn get(&self, key: &StorageKey, limit: u64) -> Result<Vec<u8>, StorageError> {
        let objects = self.objects();
        let (bytes, _) = objects.get(key).ok_or_else(|| StorageError::NotFound { key: key.clone() })?;
        let length = bytes.len() as u64;
        if length > limit { Err(StorageError::TooLarge { key: key.clone(), length, limit }) } else { Ok(bytes.clone()) }
    }

    fn get_range(&self, key: &StorageKey, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        let objects = self.objects();
        let (bytes, _) = objects.get(key).ok_or_else(|| StorageError::NotFound { key: key.clone() })?;
        let end = offset.saturating_add(length);
        let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
        let part = range.and_then(|(from, to)| bytes.get(from..to));
        part.map(<[u8]>::to_vec).ok_or_else(|| StorageError::Short { key: key.clone(), end })
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StorageError> {
        let objects = self.objects();
        let matching = objects.iter().filter(|(key, _)| key.as_str().starts_with(prefix));
        Ok(matching
            .map(|(key, (bytes, modified))| ObjectInfo {
                key: key.clone(),
                length: bytes.len() as u64,
                modified: *modified,
            })
            .collect())
    }

    fn head(&self, key: &StorageKey) -> Result<Option<ObjectInfo>, StorageError> {
        let objects = self.objects();
        Ok(objects.get(key).map(|(bytes, modified)| ObjectInfo {
            key: key.clone(),
            length: bytes.len() as u64,
            modified: *modified,
        }))
    }

    fn delete(&self, key: &StorageKey) -> Result<(), StorageError> {
        self.objects().remove(key);
        Ok(())
    }

    fn clock(&self) -> Result<DateTime<Utc>, StorageError> {
        Ok(self.now())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn conforms() {
        super::super::conformance::run(&super::MemoryStorage::new());
    }
}
