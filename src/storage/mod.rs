//! L1: where stored bytes lie. Objects are written once and never changed.
//!
//! Invariants: [`Storage::put_new`] never replaces; an object is there completely or not at all, and durable when
//! the call returns; a list that could not be read to its end is an error, never a short list.

pub mod conformance;
pub mod local;
pub mod memory;
pub mod s3;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use std::fmt;
use std::io;
use std::str::FromStr;

pub use local::LocalStorage;
pub use memory::MemoryStorage;
pub use s3::S3Storage;

/// The name of an object: `/`-separated parts of `[A-Za-z0-9._-]`, none of them starting with a dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageKey(String);

impl StorageKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for StorageKey {
    type Err = StorageError;
    fn from_str(s: &str) -> Result<Self, StorageError> {
        let part_ok = |p: &str| {
            !p.is_empty()
                && !p.starts_with('.')
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if s.len() <= 400 && s.split('/').all(part_ok) {
            Ok(Self(s.to_owned()))
        } else {
            Err(StorageError::BadKey { key: s.chars().take(80).collect() })
        }
    }
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    pub key: StorageKey,
    pub length: u64,
    /// By the storage's own clock.
    pub modified: DateTime<Utc>,
}

/// What [`Storage::put_new`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Created,
    /// The very same bytes were there already.
    AlreadyThere,
}

/// Bytes whose SHA-256 is known already, as that of every object which is named by it: they are not copied, and not
/// hashed again on their way.
#[derive(Debug, Clone)]
pub struct Hashed {
    pub bytes: Bytes,
    pub sha256: [u8; 32],
}

/// A question that will be asked soon; see [`Storage::ask_ahead`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Ahead {
    /// [`Storage::get`] with this limit.
    Get(StorageKey, u64),
    /// [`Storage::list`].
    List(String),
}

/// Why storage could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("{key:?} is not a storage key")]
    BadKey { key: String },
    #[error("no object {key}")]
    NotFound { key: StorageKey },
    #[error("object {key} exists with other bytes")]
    Exists { key: StorageKey },
    #[error("object {key} has {length} bytes, at most {limit} are expected")]
    TooLarge { key: StorageKey, length: u64, limit: u64 },
    #[error("object {key} ends before byte {end}")]
    Short { key: StorageKey, end: u64 },
    /// Nobody may delete it before then.
    #[error("object {key} is locked until {}", crate::base::time::rfc3339(*.until))]
    Locked { key: StorageKey, until: DateTime<Utc> },
    #[error("only {} are free at {location}, {} must stay free", crate::base::units::human_size(*.free), crate::base::units::human_size(*.reserve))]
    NoSpace { location: String, free: u64, reserve: u64 },
    #[error("{action} {location}")]
    Io {
        action: &'static str,
        location: String,
        #[source]
        source: io::Error,
    },
    /// An object store did not do it.
    #[error("{action} {location}")]
    Remote {
        action: &'static str,
        location: String,
        #[source]
        source: Box<s3::error::S3Error>,
    },
}

impl StorageError {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        if let StorageError::Remote { source, .. } = self {
            return source.is_retryable();
        }
        matches!(self, StorageError::Io { source, .. } if matches!(source.kind(), io::ErrorKind::Interrupted | io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionReset))
    }

    /// Whether the storage will not let this one object go (no right to, or locked), and others perhaps will.
    pub fn is_refusal(&self) -> bool {
        match self {
            StorageError::Locked { .. } => true,
            StorageError::Io { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            StorageError::Remote { source, .. } => matches!(**source, s3::error::S3Error::AccessDenied { .. }),
            _ => false,
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        let source = match self {
            StorageError::Io { source, .. } => source,
            StorageError::Remote { source, .. } => return source.hint(),
            StorageError::NoSpace { .. } => {
                return Some("free space there, or lower `min_free` in the policy's [repository]".to_owned());
            }
            _ => return None,
        };
        let text = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space there, or move the repository to a larger disk"
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                "the file system is mounted read-only: remount it writable, or name another repository"
            }
            io::ErrorKind::PermissionDenied => {
                "run as the account that owns the repository, or give this one access to it"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}

/// Object storage. Calls block; several threads may call at once.
pub trait Storage: Send + Sync {
    /// For messages: the folder or URL.
    fn describe(&self) -> String;
    /// Stores an object under a new key. The same bytes again are [`Put::AlreadyThere`]; other bytes are
    /// [`StorageError::Exists`], and the object stays as it is.
    fn put_new(&self, key: &StorageKey, bytes: &[u8]) -> Result<Put, StorageError>;
    /// The same for bytes that have been hashed.
    fn put_hashed(&self, key: &StorageKey, object: &Hashed) -> Result<Put, StorageError> {
        self.put_new(key, &object.bytes)
    }
    /// The whole object, when it has at most `limit` bytes.
    fn get(&self, key: &StorageKey, limit: u64) -> Result<Vec<u8>, StorageError>;
    /// Exactly `length` bytes from `offset`.
    fn get_range(&self, key: &StorageKey, offset: u64, length: u64) -> Result<Vec<u8>, StorageError>;
    /// Every object whose key begins with `prefix` (which ends in `/`, or is empty), in key order.
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StorageError>;
    /// Whether an object is there, and how long it is.
    fn head(&self, key: &StorageKey) -> Result<Option<ObjectInfo>, StorageError>;
    /// Removes an object; one that is not there is no error.
    fn delete(&self, key: &StorageKey) -> Result<(), StorageError>;
    /// What time it is by the storage's own clock, the one that [`ObjectInfo::modified`] is told by.
    fn clock(&self) -> Result<DateTime<Utc>, StorageError>;
    /// Takes the lock that keeps writers and an immediate prune apart, without waiting. Storages that cannot have one
    /// are [`Locked::Unsupported`]; there only the waiting times of two-phase deletion hold.
    fn lock(&self, _mode: LockMode) -> Result<Locked, StorageError> {
        Ok(Locked::Unsupported)
    }
    /// Whether an answer takes a journey over a network: then questions are better asked all at once.
    fn is_far(&self) -> bool {
        false
    }
    /// Asks now what will be asked soon, and does not wait for the answers. The next call that asks the same takes the
    /// answer, once; so whoever must see what is there *now* asks for nothing ahead, or has taken it before.
    fn ask_ahead(&self, _questions: Vec<Ahead>) {}
    /// Takes away what uploads that were given up long ago have left behind, unseen by any list; says how many.
    fn tidy(&self) -> Result<usize, StorageError> {
        Ok(0)
    }
    /// What keeps objects from being deleted or overwritten here for a time, whoever asks; absent where nothing does.
    fn object_locks(&self) -> Option<&dyn ObjectLocks> {
        None
    }
}

/// Object Lock: what was written stays for a time. What somebody deletes or overwrites all the same is only hidden, and
/// lists show the oldest version of each key: the one that its honest writer wrote.
pub trait ObjectLocks: Send + Sync {
    /// For how long a snapshot is promised to stay. What is written is locked for half as long again.
    fn period(&self) -> TimeDelta;
    /// When the object may be deleted; `None` when it is not locked.
    fn locked_until(&self, key: &StorageKey) -> Result<Option<DateTime<Utc>>, StorageError>;
    /// Locks the object until then; a longer lock stays as it is.
    fn lock_until(&self, key: &StorageKey, until: DateTime<Utc>) -> Result<(), StorageError>;
    /// From now on the oldest version of this key is read; whether that is another one than the newest.
    fn look_behind(&self, key: &StorageKey) -> Result<bool, StorageError>;
    /// What was deleted or overwritten below the prefix, in key order.
    fn tampered(&self, prefix: &str) -> Result<Vec<Tampered>, StorageError>;
}

/// A key whose newest version is not the one that its writer wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tampered {
    pub key: StorageKey,
    pub how: Tampering,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tampering {
    /// A delete marker hides it.
    Deleted,
    /// Another version was written over it.
    Overwritten,
}

/// Who else may hold the lock of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Writers: any number of them.
    Shared,
    /// A prune that deletes at once: nobody else.
    Exclusive,
}

/// What [`Storage::lock`] gave.
pub enum Locked {
    /// Held until dropped, or until the process ends.
    Held(Box<dyn Send + Sync>),
    /// Somebody else holds it in a way that excludes this one.
    Busy,
    Unsupported,
}
