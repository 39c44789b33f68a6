//! A repository in an S3 bucket: AWS and whatever speaks its language.
//!
//! Calls block; a small runtime of this storage's own drives the network. Keys are `<prefix>/<key>`.
//!
//! Nothing a server says is believed that can be checked: lengths, ranges, the order and the end of lists, and what it
//! stored where it does not check digests itself. What a server does with conditions and digests is found out, not
//! assumed ([`settings::ServerTraits`]).
//!
//! - [`settings`]: where the bucket is, how long it is waited for
//! - [`client`], [`sign`], [`wire`], [`limit`], [`credentials`]: how requests are signed and sent
//! - [`get`], [`put`], [`multipart`], [`digest`], [`list`]: what is asked
//! - [`ahead`]: what is asked before it is needed
//! - [`lock`]: what cannot be deleted, and what hides it
//! - [`probe`]: what the server really does
//! - [`retry`], [`error`]: what goes wrong

mod ahead;
mod client;
pub mod credentials;
mod digest;
pub mod error;
mod get;
mod limit;
mod list;
pub mod lock;
mod multipart;
pub mod probe;
mod put;
mod retry;
pub mod settings;
mod sign;
#[cfg(test)]
mod sweep;
mod wire;

use super::{Ahead, Hashed, ObjectInfo, ObjectLocks, Put, Storage, StorageError, StorageKey, Tampered};
use crate::base::threads;
use ahead::Asked;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use client::Bucket;
use error::S3Error;
use get::{Head, Read};
use put::{Body, Stored};
use settings::{S3Settings, ServerTraits};
use std::sync::Arc;
use tokio::runtime::Runtime;

/// An upload in parts that is older than this has been given up by whoever began it.
const LEFTOVER_AGE: TimeDelta = TimeDelta::days(1);

/// Objects in a bucket, below a prefix.
pub struct S3Storage {
    location: String,
    bucket: Arc<Bucket>,
    asked: Asked,
    /// Taken when dropped, so that a drop inside another runtime does not wait.
    runtime: Option<Runtime>,
}

impl S3Storage {
    /// Nothing is asked of the server yet.
    pub fn new(settings: &S3Settings) -> Result<Self, StorageError> {
        let location = match settings.prefix.as_str() {
            "" => format!("s3://{}", settings.bucket),
            prefix => format!("s3://{}/{prefix}", settings.bucket),
        };
        // Where there is no thread it would panic.
        threads::are_there().map_err(|e| StorageError::Io {
            action: "start threads for",
            location: location.clone(),
            source: std::io::Error::other(e),
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(|source| StorageError::Io { action: "start threads for", location: location.clone(), source })?;
        let bucket = Arc::new(runtime.block_on(Bucket::connect(settings)));
        Ok(Self { location, bucket, asked: Asked::default(), runtime: Some(runtime) })
    }

    /// What is known of the server by now.
    pub fn server(&self) -> ServerTraits {
        self.bucket.traits()
    }

    fn wait<T>(
        &self,
        action: &'static str,
        key: &str,
        work: impl Future<Output = Result<T, S3Error>>,
    ) -> Result<T, StorageError> {
        let Some(runtime) = &self.runtime else {
            let source = std::io::Error::other("the storage is closed");
            return Err(StorageError::Io { action, location: self.location.clone(), source });
        };
        runtime.block_on(work).map_err(|source| {
            let location = if key.is_empty() { self.location.clone() } else { format!("{}/{key}", self.location) };
            StorageError::Remote { action, location, source: Box::new(source) }
        })
    }

    fn store(&self, key: &StorageKey, body: Body) -> Result<Put, StorageError> {
        match self.wait("write", key.as_str(), self.bucket.put(key.as_str(), &body))? {
            Stored::Done(put) => Ok(put),
            Stored::Other => Err(StorageError::Exists { key: key.clone() }),
        }
    }

    fn whole(key: &StorageKey, limit: u64, read: Read) -> Result<Vec<u8>, StorageError> {
        match read {
            Read::Bytes(bytes) => Ok(bytes),
            Read::TooLarge(length) => Err(StorageError::TooLarge { key: key.clone(), length, limit }),
            Read::Short => Err(StorageError::Short { key: key.clone(), end: limit }),
        }
    }
}

impl Drop for S3Storage {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A missing object is no failure of the server.
fn missing(key: &StorageKey, error: StorageError) -> StorageError {
    match error {
        StorageError::Remote { source, .. } if matches!(*source, S3Error::NoSuchKey) => {
            StorageError::NotFound { key: key.clone() }
        }
        other => other,
    }
}

impl Storage for S3Storage {
    fn describe(&self) -> String {
        self.location.clone()
    }

    fn put_new(&self, key: &StorageKey, bytes: &[u8]) -> Result<Put, StorageError> {
        // The one copy of the body; every attempt and every part shares it.
        self.store(key, Body::of(Bytes::copy_from_slice(bytes)))
    }

    fn put_hashed(&self, key: &StorageKey, object: &Hashed) -> Result<Put, StorageError> {
        self.store(key, Body::hashed(object.bytes.clone(), object.sha256))
    }

    fn is_far(&self) -> bool {
        true
    }

    fn ask_ahead(&self, questions: Vec<Ahead>) {
        if let Some(runtime) = &self.runtime {
            self.asked.ask(runtime, &self.bucket, questions);
        }
    }

    fn get(&self, key: &StorageKey, limit: u64) -> Result<Vec<u8>, StorageError> {
        let read = self.wait("read", key.as_str(), self.asked.read(&self.bucket, key, limit));
        Self::whole(key, limit, read.map_err(|e| missing(key, e))?)
    }

    fn get_range(&self, key: &StorageKey, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        let end = offset.saturating_add(length);
        if length == 0 {
            let head = self.head(key)?.ok_or_else(|| StorageError::NotFound { key: key.clone() })?;
            return if offset <= head.length {
                Ok(Vec::new())
            } else {
                Err(StorageError::Short { key: key.clone(), end })
            };
        }
        // No object reaches there; a server need not be asked with numbers that it may not be able to read.
        if i64::try_from(end).is_err() {
            return match self.head(key)? {
                Some(_) => Err(StorageError::Short { key: key.clone(), end }),
                None => Err(StorageError::NotFound { key: key.clone() }),
            };
        }
        let read = self.wait("read", key.as_str(), self.bucket.read_range(key.as_str(), offset, length));
        Self::whole(key, end, read.map_err(|e| missing(key, e))?)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StorageError> {
        self.wait("list", prefix, self.asked.list(&self.bucket, prefix))
    }

    fn head(&self, key: &StorageKey) -> Result<Option<ObjectInfo>, StorageError> {
        let head = self.wait("look at", key.as_str(), self.bucket.look(key.as_str()))?;
        Ok(head.map(|Head { length, modified, .. }| ObjectInfo { key: key.clone(), length, modified }))
    }

    fn delete(&self, key: &StorageKey) -> Result<(), StorageError> {
        self.wait("delete", key.as_str(), self.bucket.remove(key.as_str())).map_err(|e| match e {
            StorageError::Remote { source, .. } if matches!(*source, S3Error::Locked { .. }) => locked(key, &source),
            other => other,
        })
    }

    /// The `Date` of an answer that was asked for just now.
    fn clock(&self) -> Result<DateTime<Utc>, StorageError> {
        self.wait("ask for the time at", "", self.bucket.clock())
    }

    /// Uploads in parts that nobody will finish.
    fn tidy(&self) -> Result<usize, StorageError> {
        let before = self.clock()? - LEFTOVER_AGE;
        self.wait("clean up uploads below", "", self.bucket.abort_leftovers(before))
    }

    fn object_locks(&self) -> Option<&dyn ObjectLocks> {
        self.bucket.locks.as_ref().map(|_| self as &dyn ObjectLocks)
    }
}

fn locked(key: &StorageKey, error: &S3Error) -> StorageError {
    let until = if let S3Error::Locked { until } = error { *until } else { DateTime::<Utc>::MAX_UTC };
    StorageError::Locked { key: key.clone(), until }
}

impl ObjectLocks for S3Storage {
    fn period(&self) -> TimeDelta {
        self.bucket.locks.as_ref().map_or(TimeDelta::zero(), |locks| locks.settings.period)
    }

    fn locked_until(&self, key: &StorageKey) -> Result<Option<DateTime<Utc>>, StorageError> {
        let until = self.wait("look at the lock of", key.as_str(), self.bucket.locked_until(key.as_str()));
        until.map_err(|e| missing(key, e))
    }

    fn lock_until(&self, key: &StorageKey, until: DateTime<Utc>) -> Result<(), StorageError> {
        let done = self.wait("lock", key.as_str(), self.bucket.lock_until(key.as_str(), until));
        done.map_err(|e| missing(key, e))
    }

    fn look_behind(&self, key: &StorageKey) -> Result<bool, StorageError> {
        self.wait("list the versions of", key.as_str(), self.bucket.look_behind(key.as_str()))
    }

    fn tampered(&self, prefix: &str) -> Result<Vec<Tampered>, StorageError> {
        Ok(self.wait("list the versions below", prefix, self.bucket.list_oldest(prefix))?.1)
    }
}

impl Bucket {
    async fn remove(&self, key: &str) -> Result<(), S3Error> {
        if self.locks.is_some() {
            return self.remove_versions(key).await;
        }
        let hidden = self
            .retry(|| async {
                let request = self.client.delete_object().bucket(&self.name).key(format!("{}{key}", self.prefix));
                match request.send().await.map_err(|e| self.asked.classify(e)) {
                    Ok(answer) => Ok(answer.delete_marker() == Some(true)),
                    Err(S3Error::NoSuchKey) => Ok(false),
                    Err(e) => Err(e),
                }
            })
            .await?;
        // A bucket with versions only hides what is deleted: that would take up room for ever.
        if hidden { self.remove_versions(key).await } else { Ok(()) }
    }

    async fn clock(&self) -> Result<DateTime<Utc>, S3Error> {
        self.page(&self.prefix, None, Some(1)).await?;
        self.wire.date().ok_or_else(|| self.untrustworthy("an answer without a date"))
    }
}
