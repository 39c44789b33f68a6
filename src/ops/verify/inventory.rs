//! What is stored, from one list: every object's length by its id, and what is none of ours.

use crate::base::ids::ObjectId;
use crate::repository::refs::Refs;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::StorageKey;
use std::collections::{HashMap, HashSet};

/// Everything in the storage.
#[derive(Default)]
pub(super) struct Inventory {
    pub archives: HashMap<ObjectId, u64>,
    pub index: HashMap<ObjectId, u64>,
    pub refs: HashMap<ObjectId, u64>,
    pub manifests: HashMap<ObjectId, u64>,
    pub trash: Vec<StorageKey>,
    /// Signed outcomes of drills.
    pub drills: Vec<StorageKey>,
    /// Their details.
    pub drill_details: HashMap<ObjectId, u64>,
    pub strays: Vec<StorageKey>,
    others: usize,
}

impl Inventory {
    pub fn list(repository: &Repository) -> Result<Self, RepositoryError> {
        let mut inventory = Self::default();
        for object in repository.storage().list("")? {
            let key = object.key.as_str();
            let prefix = key.split_inclusive('/').next().unwrap_or_default();
            let by_id = match prefix {
                layout::ARCHIVES => Some(&mut inventory.archives),
                layout::INDEX => Some(&mut inventory.index),
                layout::REFS => Some(&mut inventory.refs),
                layout::MANIFESTS => Some(&mut inventory.manifests),
                layout::DRILLS if layout::object_id(&object.key).is_some() => Some(&mut inventory.drill_details),
                _ => None,
            };
            match (by_id, layout::object_id(&object.key)) {
                (Some(by_id), Some(id)) => {
                    by_id.insert(id, object.length);
                }
                (Some(_), None) => inventory.strays.push(object.key),
                (None, _) if prefix == layout::TRASH => inventory.trash.push(object.key),
                (None, _) if prefix == layout::DRILLS => inventory.drills.push(object.key),
                // The chain has looked at every one of these.
                (None, _) if [layout::SNAPSHOTS, layout::RECORDS].contains(&prefix) => inventory.others += 1,
                (None, _) if key == layout::REPOSITORY || layout::parse_signer(&object.key).is_some() => {
                    inventory.others += 1;
                }
                (None, _) => inventory.strays.push(object.key),
            }
        }
        Ok(inventory)
    }

    /// Objects of this format.
    pub fn count(&self) -> usize {
        let by_id = self.archives.len() + self.index.len() + self.refs.len() + self.manifests.len();
        by_id + self.trash.len() + self.drills.len() + self.drill_details.len() + self.others
    }

    pub fn unreferenced(&self, needed: &HashSet<ObjectId>) -> super::Unreferenced {
        let mut sum = super::Unreferenced::default();
        for (id, length) in [&self.archives, &self.index, &self.refs, &self.manifests].into_iter().flatten() {
            if !needed.contains(id) {
                sum.objects += 1;
                sum.bytes = sum.bytes.saturating_add(*length);
            }
        }
        sum
    }

    /// What is wrong with an object by its length, if anything.
    pub fn problem(there: &HashMap<ObjectId, u64>, id: &ObjectId, length: u64) -> Option<String> {
        match there.get(id) {
            Some(found) if *found == length => None,
            Some(found) => Some(format!("it has {found} bytes instead of {length}")),
            None => Some("it is missing".to_owned()),
        }
    }
}

/// The keys of everything that refs name.
pub(super) fn needed_keys(refs: &Refs) -> impl Iterator<Item = StorageKey> {
    refs.archives.keys().map(|id| layout::archive(*id)).chain(refs.index.keys().map(|id| layout::index(*id)))
}
