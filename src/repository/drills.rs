//! What drills found: signed outcomes, public, and their details, sealed to the recipients.
//!
//! Write order (must): details → outcome. An outcome whose details are gone still counts; details without an outcome are
//! garbage. Both go with the snapshot that they speak of, when a prune has removed it.

use crate::base::ids::{ObjectId, SnapshotId};
use crate::pipeline::crypt::{self, Identities, Recipients, object_id};
use crate::pipeline::limits;
use crate::pipeline::sign::{Namespace, SigningKey};
use crate::repository::format::DrillObject;
use crate::repository::parallel::at_once;
use crate::repository::trust::to_json;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::{ObjectInfo, StorageKey};
use std::collections::HashSet;

/// Outcomes that are read at once.
const AT_ONCE: usize = 16;

/// A drill's outcome as it is stored.
#[derive(Debug, Clone)]
pub struct StoredDrill {
    pub key: StorageKey,
    pub drill: DrillObject,
}

/// Every drill of a repository, or of one snapshot.
#[derive(Debug, Default)]
pub struct Drills {
    /// Oldest first.
    pub all: Vec<StoredDrill>,
    /// What is damaged or forged, and counts for nothing.
    pub problems: Vec<RepositoryError>,
    /// Stored details, whether an outcome names them or not.
    pub details: Vec<(ObjectId, ObjectInfo)>,
}

impl Drills {
    /// Keys of details that no validly signed outcome names.
    pub fn unnamed_details(&self) -> impl Iterator<Item = &ObjectInfo> {
        let named: HashSet<ObjectId> = self.all.iter().map(|d| d.drill.details).collect();
        self.details.iter().filter(move |(id, _)| !named.contains(id)).map(|(_, object)| object)
    }
}

impl Repository {
    /// Every drill; a list or a read that fails is an error, what does not verify is a problem.
    pub fn drills(&self) -> Result<Drills, RepositoryError> {
        self.drills_named(|_| true)
    }

    /// The drills of one snapshot.
    pub fn drills_of(&self, snapshot: &SnapshotId) -> Result<Drills, RepositoryError> {
        let name = layout::drills_of(snapshot);
        self.drills_named(|key| key.as_str().starts_with(&name))
    }

    fn drills_named(&self, wanted: impl Fn(&StorageKey) -> bool) -> Result<Drills, RepositoryError> {
        let mut drills = Drills::default();
        let mut outcomes = Vec::new();
        for object in self.storage().list(layout::DRILLS)? {
            match layout::object_id(&object.key) {
                Some(id) => drills.details.push((id, object)),
                None if wanted(&object.key) => outcomes.push(object.key),
                None => {}
            }
        }
        for batch in outcomes.chunks(AT_ONCE) {
            let read = at_once(batch, |key| self.drill(key));
            for (key, read) in batch.iter().zip(read) {
                match read {
                    Ok(drill) => drills.all.push(StoredDrill { key: key.clone(), drill }),
                    Err(e) if e.is_integrity() => drills.problems.push(e),
                    Err(e) => return Err(e),
                }
            }
        }
        drills.all.sort_by(|a, b| (a.drill.time, &a.key).cmp(&(b.drill.time, &b.key)));
        Ok(drills)
    }

    fn drill(&self, key: &StorageKey) -> Result<DrillObject, RepositoryError> {
        self.verify_drill(key, &self.get(key, limits::SIGNED)?)
    }

    /// Stores a drill: its details (JSON), then its outcome, which gets to know where they lie.
    pub fn add_drill(
        &self,
        key: &SigningKey,
        mut drill: DrillObject,
        details: &[u8],
        recipients: &Recipients,
    ) -> Result<StoredDrill, RepositoryError> {
        let sealed = crypt::seal(details, DETAILS_LEVEL, recipients)?;
        self.storage().put_new(&layout::drill_details(sealed.id()), sealed.bytes())?;
        (drill.details, drill.details_bytes) = (sealed.id(), sealed.bytes().len() as u64);
        let bytes = key.sign(Namespace::Drill, &to_json(&drill)?)?;
        let stored = layout::drill(&drill.snapshot, drill.time)?;
        self.storage().put_new(&stored, &bytes)?;
        // What this host wrote it must be able to read as everybody else will.
        let drill = self.drill(&stored)?;
        Ok(StoredDrill { key: stored, drill })
    }

    /// The details of a drill.
    pub fn drill_details(&self, drill: &DrillObject, identities: &Identities) -> Result<Vec<u8>, RepositoryError> {
        let key = layout::drill_details(drill.details);
        let bytes = self.get(&key, limits::MANIFEST_STORED)?;
        if object_id(&bytes) != drill.details || bytes.len() as u64 != drill.details_bytes {
            let problem = "its bytes are not those that its name promises".to_owned();
            return Err(RepositoryError::Damaged { key, problem });
        }
        crypt::open(&bytes, limits::MANIFEST_PLAIN, identities).map_err(|source| RepositoryError::unopened(key, source))
    }
}

/// Details are small and read once in a while.
const DETAILS_LEVEL: i32 = 3;
