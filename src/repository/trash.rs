//! Trash: what a prune has condemned and not deleted yet.
//!
//! Deletion has two phases, so that no lock is needed: a prune *condemns* what no retained snapshot references, in a
//! signed object; a later one deletes it, at least [`GRACE`] after, when still nothing references it. The races are
//! closed by waiting times, all told by the storage's own clock:
//! - nothing younger than [`YOUNGEST`] is condemned, so that a run's own archives outlive the run;
//! - a writer looks again just before its header, and counts on nothing that has been condemned for [`GRACE`]/2 or more;
//! - what is condemned and referenced all the same is let go, not deleted.

use crate::base::ids::{HostName, ObjectId, RepositoryId};
use crate::pipeline::crypt::object_id;
use crate::pipeline::limits;
use crate::pipeline::sign::{Namespace, PublicKey, SigningKey};
use crate::repository::format::{FORMAT, Role};
use crate::repository::trust::{Pin, to_json};
use crate::repository::{Repository, RepositoryError, layout, parallel};
use crate::storage::{ObjectInfo, StorageKey};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Between condemning and deleting.
pub const GRACE: TimeDelta = TimeDelta::hours(36);
/// Nothing younger is condemned: the longest run takes six days.
pub const YOUNGEST: TimeDelta = TimeDelta::days(7);
/// Ids of one trash object: about 3 MiB.
const IDS: usize = 50_000;
/// Trash objects in memory at once.
const AT_ONCE: usize = 8;

/// `trash/<time>-<8 hex>.json`: objects that a prune has condemned but not yet deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrashObject {
    pub kind: String,
    pub format: u64,
    pub requires: Vec<String>,
    pub repository: RepositoryId,
    pub time: DateTime<Utc>,
    pub objects: Vec<ObjectId>,
}

/// A validly signed trash object.
#[derive(Debug, Clone)]
pub struct Trash {
    pub key: StorageKey,
    /// How long it has been there, by the storage's clock.
    pub age: TimeDelta,
    pub objects: Vec<ObjectId>,
}

/// How long each condemned object has been so.
#[derive(Debug, Default)]
pub struct Condemned(HashMap<ObjectId, TimeDelta>);

impl Condemned {
    pub fn contains(&self, id: &ObjectId) -> bool {
        self.0.contains_key(id)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a new snapshot must not count on it any more: it may be deleted before the header is there.
    pub fn is_lost(&self, id: &ObjectId) -> bool {
        self.0.get(id).is_some_and(|age| *age >= GRACE / 2)
    }
}

impl Repository {
    /// Every validly signed trash object, oldest name first. Forged or damaged trash condemns nothing; verify names it.
    pub fn trash(&self) -> Result<Vec<Trash>, RepositoryError> {
        let listed = self.storage().list(layout::TRASH)?;
        if listed.is_empty() {
            return Ok(Vec::new());
        }
        // A few at a time in memory, and the first of them beside what is asked for once.
        let fetch = |some: &[ObjectInfo]| parallel::at_once(some, |object| self.get(&object.key, limits::REFS));
        let some = listed.len().min(AT_ONCE);
        let (clock, (newer, first)) = parallel::both(
            || self.storage().clock(),
            // The key that prunes may have been vouched for since this repository was opened.
            || parallel::both(|| self.with_newer_signers(), || fetch(&listed[..some])),
        );
        let clock = clock.ok_or(RepositoryError::Worker)??;
        let newer = newer.ok_or(RepositoryError::Worker)??;
        let signers = newer.as_ref().unwrap_or(self);
        let mut trash = Vec::new();
        let rest = listed[some..].chunks(AT_ONCE).flat_map(fetch);
        for (object, read) in listed.iter().zip(first.into_iter().chain(rest)) {
            match read.and_then(|bytes| signers.verify_trash(&object.key, &bytes)) {
                Ok(found) => {
                    let age = clock - object.modified;
                    trash.push(Trash { key: object.key.clone(), age, objects: found.objects });
                }
                Err(e) if e.is_integrity() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(trash)
    }

    /// The repository opened anew, where it has more signers than were read.
    fn with_newer_signers(&self) -> Result<Option<Repository>, RepositoryError> {
        let numbers = self.storage().list(layout::SIGNERS)?;
        let newest = numbers.iter().filter_map(|object| layout::parse_signer(&object.key)).max();
        if newest.is_none_or(|newest| newest <= self.signer_count()) {
            return Ok(None);
        }
        Repository::open(self.storage().clone(), &Pin::Exactly(self.id().clone())).map(Some)
    }

    /// Every object that a validly signed trash object condemns.
    pub fn condemned(&self) -> Result<Condemned, RepositoryError> {
        let mut condemned = Condemned::default();
        for trash in self.trash()? {
            for id in trash.objects {
                let age = condemned.0.entry(id).or_insert(trash.age);
                *age = (*age).max(trash.age);
            }
        }
        Ok(condemned)
    }

    /// Condemns objects. Whoever calls has seen that no retained snapshot references them.
    pub fn condemn(&self, key: &SigningKey, ids: &[ObjectId], now: DateTime<Utc>) -> Result<(), RepositoryError> {
        for ids in ids.chunks(IDS) {
            let object = TrashObject {
                kind: "trash".to_owned(),
                format: FORMAT,
                requires: Vec::new(),
                repository: self.id().clone(),
                time: now,
                objects: ids.to_vec(),
            };
            let bytes = key.sign(Namespace::Trash, &to_json(&object)?)?;
            self.storage().put_new(&layout::dated_key(layout::TRASH, now, object_id(&bytes))?, &bytes)?;
        }
        Ok(())
    }

    /// Whether `key` may condemn objects, and remove snapshots of this host.
    pub fn prunes_for(&self, key: &PublicKey, host: &HostName) -> bool {
        self.has_role(key, Role::Prune, host)
    }
}
