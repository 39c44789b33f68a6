//! What is stored and what snapshots reference: the difference is garbage.
//!
//! Only the four kinds of object whose names are hashes are ever garbage. Nothing else is deleted here, and nothing
//! under a prefix that this version does not know.

use crate::base::cancel::Cancel;
use crate::base::ids::ObjectId;
use crate::repository::chain::Snapshot;
use crate::repository::parallel::{REFS_AT_ONCE, at_once};
use crate::repository::reader::load_refs;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::StorageKey;
use chrono::{DateTime, Utc};
use std::collections::HashSet;

/// A stored archive, index, refs or manifest object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub key: StorageKey,
    pub id: ObjectId,
    pub length: u64,
    /// By the storage's clock.
    pub modified: DateTime<Utc>,
}

/// Every object that could be garbage. Objects under names that are not theirs are left out: no prune touches them.
pub fn stored(repository: &Repository) -> Result<Vec<Stored>, RepositoryError> {
    let mut all = Vec::new();
    for prefix in [layout::ARCHIVES, layout::INDEX, layout::REFS, layout::MANIFESTS] {
        let listed = repository.storage().list(prefix)?;
        all.extend(listed.into_iter().filter_map(|object| {
            let id = layout::object_id(&object.key)?;
            Some(Stored { key: object.key, id, length: object.length, modified: object.modified })
        }));
    }
    Ok(all)
}

/// Everything that these snapshots need. Refs that cannot be read are an error, never a snapshot that needs nothing.
pub fn referenced<'a>(
    repository: &Repository,
    snapshots: impl Iterator<Item = &'a Snapshot>,
    cancel: &Cancel,
) -> Result<HashSet<ObjectId>, RepositoryError> {
    let (mut needed, mut seen) = (HashSet::new(), HashSet::new());
    let mut all_refs = Vec::new();
    for snapshot in snapshots {
        // The header's own refs stay, whatever a repack made of what they name: by them a writer finds its index.
        needed.extend([snapshot.header.manifest, snapshot.header.refs, snapshot.refs]);
        if seen.insert(snapshot.refs) {
            all_refs.push(snapshot.refs);
        }
    }
    for batch in all_refs.chunks(REFS_AT_ONCE) {
        cancel.check()?;
        for refs in at_once(batch, |id| load_refs(repository, *id)) {
            let refs = refs?;
            needed.extend(refs.archives.keys().chain(refs.index.keys()));
        }
    }
    Ok(needed)
}
