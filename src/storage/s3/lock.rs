//! Object Lock: what is written cannot be deleted for a time, whoever asks, and what hides it is looked behind.
//!
//! In a bucket with locks every write makes a version and every delete a marker; the versions stay until their locks run
//! out. An object is written once, so its oldest version is the one that its honest writer wrote: lists show that one,
//! and once a key is known to have a newer version or a marker, it is read by the oldest version's id.
//!
//! Compliance mode is used: governance mode can be bypassed by whoever has the right to, and some servers give that
//! right to everybody.

use super::client::Bucket;
use super::error::S3Error;
use super::list::time_of;
use crate::storage::{ObjectInfo, StorageKey, Tampered, Tampering};
use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::DateTime as S3Time;
use aws_sdk_s3::types::{ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// No prefix has so many pages of a thousand versions.
const MOST_PAGES: usize = 100_000;

/// How what is written is locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockSettings {
    /// For how long a snapshot is promised to stay; what is written is locked for half as long again.
    pub period: TimeDelta,
    /// Beginnings of keys that are not locked: what a prune must be able to take away.
    pub exempt: Vec<String>,
}

/// The locks of one bucket.
pub struct Locks {
    pub settings: LockSettings,
    /// By full key, the version to read where it is not the newest.
    oldest: Mutex<HashMap<String, String>>,
}

/// A version of a key, or a marker that hides those below it.
#[derive(Debug, Clone)]
struct Version {
    id: String,
    /// Absent for a marker.
    object: Option<(u64, DateTime<Utc>, Option<String>)>,
    is_latest: bool,
}

impl Locks {
    pub fn new(settings: LockSettings) -> Self {
        Self { settings, oldest: Mutex::default() }
    }

    fn oldest(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    /// The version to read of a full key, where it is not the newest one.
    pub fn version_of(&self, full: &str) -> Option<String> {
        self.locks.as_ref()?.oldest().get(full).cloned()
    }

    /// Until when an object that is written now is locked.
    fn lock_end(&self, key: &str) -> Option<S3Time> {
        let settings = &self.locks.as_ref()?.settings;
        if settings.exempt.iter().any(|prefix| key.starts_with(prefix)) {
            return None;
        }
        let now = self.wire.date().unwrap_or_else(Utc::now);
        Some(S3Time::from_secs((now + settings.period * 3 / 2).timestamp()))
    }

    pub fn locked_put(&self, key: &str, request: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
        match self.lock_end(key) {
            Some(end) => request.object_lock_mode(ObjectLockMode::Compliance).object_lock_retain_until_date(end),
            None => request,
        }
    }

    /// Every object below the prefix by its oldest version, and what somebody did to it since.
    pub async fn list_oldest(&self, prefix: &str) -> Result<(Vec<ObjectInfo>, Vec<Tampered>), S3Error> {
        let (mut found, mut tampered) = (Vec::new(), Vec::new());
        for (full, versions) in self.versions(&format!("{}{prefix}", self.prefix)).await? {
            let Some(key) = full.strip_prefix(&self.prefix).and_then(|k| k.parse::<StorageKey>().ok()) else {
                continue;
            };
            // Newest first: the last one is the oldest.
            let objects: Vec<&Version> = versions.iter().filter(|v| v.object.is_some()).collect();
            let Some((oldest, (length, modified, etag))) = objects.last().and_then(|v| Some((v, v.object.as_ref()?)))
            else {
                continue;
            };
            let hidden = versions.iter().any(|v| v.is_latest && v.object.is_none());
            let other = objects.iter().any(|v| v.object.as_ref().is_some_and(|(l, _, e)| l != length || e != etag));
            if hidden || other {
                let how = if other { Tampering::Overwritten } else { Tampering::Deleted };
                tampered.push(Tampered { key: key.clone(), how });
                self.read_from_now_on(&full, &oldest.id);
            }
            found.push(ObjectInfo { key, length: *length, modified: *modified });
        }
        Ok((found, tampered))
    }

    /// Reads the oldest version of a key from now on; whether that is another one than the newest. Several threads may
    /// miss the same object at once: each of them is told to read again.
    pub async fn look_behind(&self, key: &str) -> Result<bool, S3Error> {
        let full = format!("{}{key}", self.prefix);
        let versions = self.versions(&full).await?.remove(&full).unwrap_or_default();
        let Some(oldest) = versions.iter().rfind(|v| v.object.is_some()) else { return Ok(false) };
        if oldest.is_latest {
            return Ok(false);
        }
        self.read_from_now_on(&full, &oldest.id);
        Ok(true)
    }

    fn read_from_now_on(&self, full: &str, version: &str) {
        if let Some(locks) = &self.locks {
            locks.oldest().insert(full.to_owned(), version.to_owned());
        }
    }

    /// When the lock of an object ends, if it has one.
    pub async fn locked_until(&self, key: &str) -> Result<Option<DateTime<Utc>>, S3Error> {
        let full = format!("{}{key}", self.prefix);
        let version = self.version_of(&full);
        self.lock_of(&full, version).await
    }

    async fn lock_of(&self, full: &str, version: Option<String>) -> Result<Option<DateTime<Utc>>, S3Error> {
        self.retry(|| async {
            let request = self.client.head_object().bucket(&self.name).key(full).set_version_id(version.clone());
            let answer = request.send().await.map_err(|e| self.asked.classify(e))?;
            Ok(answer.object_lock_retain_until_date().and_then(time_of))
        })
        .await
    }

    pub async fn lock_until(&self, key: &str, until: DateTime<Utc>) -> Result<(), S3Error> {
        let full = format!("{}{key}", self.prefix);
        let version = self.version_of(&full);
        // A server need not refuse to make a lock shorter.
        if self.lock_of(&full, version.clone()).await?.is_some_and(|there| there >= until) {
            return Ok(());
        }
        self.retry(|| async {
            let retention = ObjectLockRetention::builder()
                .mode(ObjectLockRetentionMode::Compliance)
                .retain_until_date(S3Time::from_secs(until.timestamp()))
                .build();
            let request = self.client.put_object_retention().bucket(&self.name).key(&full).retention(retention);
            let request = request.set_version_id(version.clone());
            request.send().await.map(drop).map_err(|e| self.asked.classify(e))
        })
        .await
    }

    /// Deletes every version and marker of a key, but for those that are locked.
    pub async fn remove_versions(&self, key: &str) -> Result<(), S3Error> {
        let full = format!("{}{key}", self.prefix);
        let versions = self.versions(&full).await?.remove(&full).unwrap_or_default();
        let mut locked = None;
        for version in &versions {
            let removed = self
                .retry(|| async {
                    let request = self.client.delete_object().bucket(&self.name).key(&full).version_id(&version.id);
                    match request.send().await.map_err(|e| self.asked.classify(e)) {
                        Ok(_) | Err(S3Error::NoSuchKey) => Ok(()),
                        Err(e) => Err(e),
                    }
                })
                .await;
            if let Err(e @ (S3Error::AccessDenied { .. } | S3Error::Refused { .. })) = removed {
                let now = self.wire.date().unwrap_or_else(Utc::now);
                match self.lock_of(&full, Some(version.id.clone())).await {
                    Ok(Some(until)) if until > now => locked = Some(until),
                    _ => return Err(e),
                }
                continue;
            }
            removed?;
        }
        if let Some(until) = locked {
            return Err(S3Error::Locked { until });
        }
        if let Some(locks) = &self.locks {
            locks.oldest().remove(&full);
        }
        Ok(())
    }

    /// Every version and marker below a full prefix, by full key, each newest first; to the very end or not at all.
    async fn versions(&self, full: &str) -> Result<BTreeMap<String, Vec<Version>>, S3Error> {
        let mut found: BTreeMap<String, Vec<(DateTime<Utc>, Version)>> = BTreeMap::new();
        let mut marker: Option<(Option<String>, Option<String>)> = None;
        let mut seen = HashSet::new();
        for _ in 0..MOST_PAGES {
            let page = self.version_page(full, marker.clone()).await?;
            self.take_versions(&page, full, &mut found)?;
            let more = page
                .is_truncated()
                .ok_or_else(|| self.untrustworthy("a list that does not say whether it is complete"))?;
            if !more {
                return Ok(found.into_iter().map(|(key, versions)| (key, newest_first(versions))).collect());
            }
            let next = (page.next_key_marker, page.next_version_id_marker);
            if next.0.is_none() {
                return Err(self.untrustworthy("a list that breaks off without saying where to go on"));
            }
            if !seen.insert(next.clone()) {
                return Err(self.untrustworthy("a list that goes round in circles"));
            }
            marker = Some(next);
        }
        Err(self.untrustworthy("a list without end"))
    }

    async fn version_page(
        &self,
        full: &str,
        marker: Option<(Option<String>, Option<String>)>,
    ) -> Result<ListObjectVersionsOutput, S3Error> {
        self.retry(|| async {
            let (key, version) = marker.clone().unwrap_or_default();
            let request = self.client.list_object_versions().bucket(&self.name).prefix(full);
            let request = request.set_key_marker(key).set_version_id_marker(version);
            request.send().await.map_err(|e| self.asked.classify(e))
        })
        .await
    }

    fn take_versions(
        &self,
        page: &ListObjectVersionsOutput,
        full: &str,
        found: &mut BTreeMap<String, Vec<(DateTime<Utc>, Version)>>,
    ) -> Result<(), S3Error> {
        let lacking = |what: &str| self.untrustworthy(format!("a listed version without {what}"));
        let mut add = |key: Option<&str>, id: Option<&str>, time: Option<&S3Time>, latest, object| {
            let key = key.filter(|key| key.starts_with(full)).ok_or_else(|| lacking("its key"))?;
            let id = id.ok_or_else(|| lacking("an id"))?.to_owned();
            let time = time.and_then(time_of).ok_or_else(|| lacking("a time"))?;
            found.entry(key.to_owned()).or_default().push((time, Version { id, object, is_latest: latest }));
            Ok::<(), S3Error>(())
        };
        for version in page.versions() {
            let length = version.size().and_then(|size| u64::try_from(size).ok()).ok_or_else(|| lacking("a length"))?;
            let time = version.last_modified().and_then(time_of).ok_or_else(|| lacking("a time"))?;
            let object = Some((length, time, version.e_tag().map(str::to_owned)));
            let latest = version.is_latest().unwrap_or(false);
            add(version.key(), version.version_id(), version.last_modified(), latest, object)?;
        }
        for marker in page.delete_markers() {
            let latest = marker.is_latest().unwrap_or(false);
            add(marker.key(), marker.version_id(), marker.last_modified(), latest, None)?;
        }
        Ok(())
    }
}

/// Versions of one key come newest first; where whole seconds do not tell, as they were listed.
fn newest_first(mut versions: Vec<(DateTime<Utc>, Version)>) -> Vec<Version> {
    versions.sort_by_key(|(time, version)| (std::cmp::Reverse(version.is_latest), std::cmp::Reverse(*time)));
    versions.into_iter().map(|(_, version)| version).collect()
}
