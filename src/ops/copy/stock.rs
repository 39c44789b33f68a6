//! What lies in a storage, from one list of it.

use crate::base::ids::ObjectId;
use crate::ops::OpsError;
use crate::pipeline::limits;
use crate::repository::layout;
use crate::storage::{Storage, StorageKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The kinds of objects that are named by their bytes, in the order in which they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Archive,
    Index,
    Refs,
    Manifest,
}

pub(super) const KINDS: [Kind; 4] = [Kind::Archive, Kind::Index, Kind::Refs, Kind::Manifest];

/// An object that is named by its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Named {
    pub kind: Kind,
    pub id: ObjectId,
}

impl Named {
    pub fn new(kind: Kind, id: ObjectId) -> Self {
        Self { kind, id }
    }

    fn of(key: &StorageKey) -> Option<Self> {
        let id = layout::object_id(key)?;
        let kind = match key.as_str().split_inclusive('/').next()? {
            layout::ARCHIVES => Kind::Archive,
            layout::INDEX => Kind::Index,
            layout::REFS => Kind::Refs,
            layout::MANIFESTS => Kind::Manifest,
            _ => return None,
        };
        Some(Self { kind, id })
    }

    pub fn key(&self) -> StorageKey {
        match self.kind {
            Kind::Archive => layout::archive(self.id),
            Kind::Index => layout::index(self.id),
            Kind::Refs => layout::refs(self.id),
            Kind::Manifest => layout::manifest(self.id),
        }
    }

    /// The longest that it may be.
    pub fn limit(&self) -> u64 {
        match self.kind {
            Kind::Archive => limits::ARCHIVE,
            Kind::Index => limits::INDEX_STORED,
            Kind::Refs => limits::REFS,
            Kind::Manifest => limits::MANIFEST_STORED,
        }
    }
}

/// Everything in a storage that belongs to a repository, with lengths.
#[derive(Debug, Default)]
pub(super) struct Stock {
    pub named: HashMap<Named, u64>,
    pub headers: BTreeMap<StorageKey, u64>,
    pub records: BTreeMap<StorageKey, u64>,
    /// Outcomes of drills, and their details.
    pub drills: BTreeMap<StorageKey, u64>,
    /// Never copied: what a prune condemns is the affair of each storage.
    pub trash: BTreeSet<StorageKey>,
    pub signers: BTreeSet<u32>,
    pub has_repository: bool,
    /// What is no object of this format.
    pub strays: Vec<StorageKey>,
    /// The first object of all.
    pub first: Option<StorageKey>,
}

impl Stock {
    pub fn list(storage: &dyn Storage) -> Result<Self, OpsError> {
        let mut stock = Self::default();
        for object in storage.list("")? {
            stock.first.get_or_insert_with(|| object.key.clone());
            let prefix = object.key.as_str().split_inclusive('/').next().unwrap_or_default();
            if let Some(named) = Named::of(&object.key) {
                stock.named.insert(named, object.length);
            } else if prefix == layout::SNAPSHOTS {
                stock.headers.insert(object.key, object.length);
            } else if prefix == layout::RECORDS {
                stock.records.insert(object.key, object.length);
            } else if prefix == layout::DRILLS {
                stock.drills.insert(object.key, object.length);
            } else if let Some(number) = layout::parse_signer(&object.key) {
                stock.signers.insert(number);
            } else if object.key.as_str() == layout::REPOSITORY {
                stock.has_repository = true;
            } else if prefix == layout::TRASH {
                stock.trash.insert(object.key);
            } else {
                stock.strays.push(object.key);
            }
        }
        Ok(stock)
    }
}
