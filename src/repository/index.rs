//! Index objects: encoding, and loading them into a [`ChunkTable`].
//!
//! An index is a hint, never an authority: a writer takes only index objects that refs of a header signed by its own
//! key name, or that its own state says it wrote, and drops entries whose archive is absent, of another length,
//! condemned, or sealed to another recipient set. A reader checks every chunk by its keyed id.

use crate::base::ids::{DedupKeyId, ObjectId, RecipientSetId};
use crate::pipeline::crypt::{self, Identities, Recipients, SealedObject, object_id};
use crate::pipeline::{PipelineError, limits};
use crate::repository::format::{self, FORMAT, IndexArchive, IndexChunk, IndexObject, Notes};
use crate::repository::kept;
use crate::repository::table::ChunkTable;
use crate::repository::trash::Condemned;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::StorageKey;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// An index object being filled.
#[derive(Debug, Default)]
pub struct IndexDraft {
    pub archives: Vec<IndexArchive>,
    pub chunks: Vec<IndexChunk>,
}

impl IndexDraft {
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The object, complete.
    pub fn finish(self, dedup_key: DedupKeyId, notes: Notes) -> IndexObject {
        IndexObject {
            format: FORMAT,
            requires: Vec::new(),
            dedup_key,
            codec: kept::CODEC.to_owned(),
            archives: self.archives,
            chunks: self.chunks,
            notes,
        }
    }

    /// Encodes and seals it for the recipients and the host recipient.
    pub fn seal(
        self,
        dedup_key: DedupKeyId,
        notes: Notes,
        recipients: &Recipients,
    ) -> Result<SealedObject, PipelineError> {
        seal(&self.finish(dedup_key, notes), recipients)
    }
}

/// Encodes and seals an index object for the recipients and the host recipient.
pub fn seal(object: &IndexObject, recipients: &Recipients) -> Result<SealedObject, PipelineError> {
    let mut plain = Vec::new();
    ciborium::into_writer(object, &mut plain)
        .map_err(|e| PipelineError::Seal { action: "encode an index object", source: e.to_string().into() })?;
    crypt::seal(&plain, 3, recipients)
}

/// The fields that are read even of an index object of a newer format.
#[derive(serde::Deserialize)]
struct Envelope {
    format: u64,
    requires: Vec<String>,
}

pub(super) fn decode(plain: &[u8], key: &StorageKey) -> Result<IndexObject, RepositoryError> {
    let damaged = |problem: String| RepositoryError::Damaged { key: key.clone(), problem };
    let object: IndexObject = match ciborium::from_reader(plain) {
        Ok(object) => object,
        Err(e) => {
            if let Ok(Envelope { format, requires }) = ciborium::from_reader(plain) {
                format::check_versions(format, &requires, key.as_str())?;
            }
            return Err(damaged(format!("index object does not parse: {e}")));
        }
    };
    format::check_versions(object.format, &object.requires, key.as_str())?;
    check(&object).map_err(damaged)?;
    Ok(object)
}

fn check(object: &IndexObject) -> Result<(), String> {
    if object.archives.len() > limits::INDEX_ENTRIES || object.chunks.len() > limits::INDEX_ENTRIES {
        return Err("index object has more entries than allowed".to_owned());
    }
    if object.codec != kept::CODEC {
        return Err("index object names an unknown codec".to_owned());
    }
    Ok(())
}

/// Fetches and opens index objects, and keeps them, opened, in a private cache folder.
pub struct IndexLoader<'a> {
    pub repository: &'a Repository,
    pub identities: &'a Identities,
    /// `<state>/cache/<…>`; absent where nothing shall be kept.
    pub cache: Option<PathBuf>,
}

impl IndexLoader<'_> {
    /// One index object of `length` stored bytes.
    pub fn load(&self, id: ObjectId, length: Option<u64>) -> Result<IndexObject, RepositoryError> {
        if let Some(kept) = self.cache.as_deref().and_then(|dir| kept::read(dir, id)) {
            return Ok(kept.into_object());
        }
        self.fetch(id, length)
    }

    /// Puts what one index object says into a table, as [`fill`] does; what it notes.
    pub fn load_into(
        &self,
        (id, length): (ObjectId, u64),
        table: &mut ChunkTable,
        index: u32,
        usable: &Usable<'_>,
    ) -> Result<std::io::Result<Notes>, RepositoryError> {
        if let Some(kept) = self.cache.as_deref().and_then(|dir| kept::read(dir, id)) {
            let filled = fill_from(table, (&kept.dedup_key, &kept.archives), kept.chunks(), index, usable);
            return Ok(filled.map(|()| kept.notes));
        }
        let object = self.fetch(id, Some(length))?;
        Ok(fill(table, &object, index, usable).map(|()| object.notes))
    }

    fn fetch(&self, id: ObjectId, length: Option<u64>) -> Result<IndexObject, RepositoryError> {
        let key = layout::index(id);
        let damaged = |problem: String| RepositoryError::Damaged { key: key.clone(), problem };
        let bytes = self.repository.get(&key, limits::INDEX_STORED)?;
        if object_id(&bytes) != id || length.is_some_and(|n| n != bytes.len() as u64) {
            return Err(damaged("its bytes are not those that its name promises".to_owned()));
        }
        let plain = crypt::open(&bytes, limits::INDEX_PLAIN, self.identities)
            .map_err(|source| RepositoryError::unopened(key.clone(), source))?;
        let object = decode(&plain, &key)?;
        if let Some(dir) = &self.cache {
            kept::keep(dir, id, &object);
        }
        Ok(object)
    }
}

/// Keeps an index object that was just written in a cache folder.
pub fn keep(dir: &Path, id: ObjectId, object: &IndexObject) {
    kept::keep(dir, id, object);
}

/// Which archives of an index may be used.
pub enum Usable<'a> {
    /// A reader: what the snapshot's refs name.
    Named(&'a BTreeMap<ObjectId, u64>),
    /// A writer: what is stored with that length, not condemned, sealed to the same recipients, under the same key.
    Writer {
        stored: &'a HashMap<ObjectId, u64>,
        condemned: &'a Condemned,
        recipients: RecipientSetId,
        dedup: DedupKeyId,
    },
}

impl Usable<'_> {
    fn archive(&self, archive: &IndexArchive) -> bool {
        match self {
            Usable::Named(named) => named.get(&archive.id) == Some(&archive.length),
            Usable::Writer { stored, condemned, recipients, .. } => {
                stored.get(&archive.id) == Some(&archive.length)
                    && !condemned.contains(&archive.id)
                    && archive.recipients == *recipients
            }
        }
    }
}

/// Puts the usable entries of an index object into a table. `index` is the object's position in the caller's list.
pub fn fill(table: &mut ChunkTable, object: &IndexObject, index: u32, usable: &Usable<'_>) -> std::io::Result<()> {
    fill_from(table, (&object.dedup_key, &object.archives), object.chunks.iter().copied(), index, usable)
}

fn fill_from(
    table: &mut ChunkTable,
    (dedup_key, archives): (&DedupKeyId, &[IndexArchive]),
    chunks: impl ExactSizeIterator<Item = IndexChunk>,
    index: u32,
    usable: &Usable<'_>,
) -> std::io::Result<()> {
    if let Usable::Writer { dedup, .. } = usable
        && dedup_key != dedup
    {
        return Ok(());
    }
    let positions: Vec<Option<u32>> =
        archives.iter().map(|archive| usable.archive(archive).then(|| table.archive(archive))).collect();
    table.reserve(chunks.len());
    for chunk in chunks {
        let IndexChunk(_, archive, frame_offset, frame_length, offset, length) = chunk;
        let Some(Some(position)) = positions.get(archive as usize) else { continue };
        let in_limits = length as usize <= limits::CHUNK
            && offset as u64 + u64::from(length) <= limits::FRAME as u64
            && u64::from(frame_offset) + u64::from(frame_length) <= limits::ARCHIVE
            && frame_length <= limits::FRAME_STORED;
        if in_limits {
            table.insert(&chunk, *position, index)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::ChunkId;

    #[test]
    fn encodes_as_cbor_bytes_and_refuses_too_much() {
        let archive = IndexArchive {
            id: ObjectId([1; 32]),
            length: 5,
            // As long as for a hundred recipients.
            header: vec![7; 20_000],
            recipients: RecipientSetId([2; 32]),
        };
        let object = IndexObject {
            format: 1,
            requires: vec![],
            dedup_key: DedupKeyId([3; 32]),
            codec: "zstd".into(),
            archives: vec![archive],
            chunks: vec![IndexChunk(ChunkId([4; 32]), 0, 1, 2, 3, 4); 1000],
            notes: Notes::default(),
        };
        let encode = |object: &IndexObject| {
            let mut plain = Vec::new();
            ciborium::into_writer(object, &mut plain).unwrap();
            plain
        };
        let plain = encode(&object);
        let key = layout::index(ObjectId([9; 32]));
        assert!(plain.len() < 20_000 + 1000 * 45, "ids are byte strings: {} bytes", plain.len());
        assert_eq!(decode(&plain, &key).unwrap().chunks, object.chunks);
        let many = IndexObject { chunks: vec![object.chunks[0]; limits::INDEX_ENTRIES + 1], ..object };
        assert!(decode(&encode(&many), &key).is_err());
    }
}
