//! The table of known chunks: the first entries in memory, the rest in an unlinked temporary file with a few bytes per
//! chunk in memory.
//!
//! Memory holds the first eight bytes of an id and a position; a hit is confirmed in full from the entry. Chunk ids are
//! keyed hashes, so nobody without the key can aim at collisions; those that happen go to a map of whole ids. A random
//! factor spreads the prefixes over the map, so that who has the key cannot fill one of its places either.

use crate::base::ids::{ChunkId, ObjectId};
use crate::repository::format::{IndexArchive, IndexChunk};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const ENTRY: usize = 56;
const FLUSH: usize = 1 << 20;
/// Bytes of entries that stay in memory: of some gigabytes of chunks, which are then found without a system call.
const HELD: usize = 16 << 20;

/// Where a chunk lies. `archive` and `index` are positions in the table's own lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    pub archive: u32,
    pub index: u32,
    pub frame_offset: u32,
    pub frame_length: u32,
    pub offset: u32,
    pub length: u32,
}

/// See the module.
pub struct ChunkTable {
    file: File,
    /// The first entries.
    held: Vec<u8>,
    /// Bytes of the file.
    flushed: u64,
    /// The last entries, behind those in the file.
    tail: Vec<u8>,
    by_prefix: HashMap<u64, u32, Spread>,
    colliding: HashMap<ChunkId, u32>,
    count: u32,
    pub archives: Vec<IndexArchive>,
    archive_positions: HashMap<ObjectId, u32>,
}

/// Spreads prefixes, which are random already unless somebody chose them.
#[derive(Clone)]
struct Spread(u64);

impl Spread {
    fn new() -> Self {
        // Seeded by the standard library's own random keys.
        Self(std::hash::RandomState::new().hash_one(ENTRY) | 1)
    }
}

impl BuildHasher for Spread {
    type Hasher = Spreading;

    fn build_hasher(&self) -> Spreading {
        Spreading { factor: self.0, hash: 0 }
    }
}

struct Spreading {
    factor: u64,
    hash: u64,
}

impl Hasher for Spreading {
    fn finish(&self) -> u64 {
        self.hash
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        // The high half of the product depends on all bits of both.
        let product = u128::from(n ^ self.hash ^ self.factor) * u128::from(self.factor);
        self.hash = (product as u64) ^ ((product >> 64) as u64);
    }
}

fn prefix(id: &ChunkId) -> u64 {
    id.0.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b))
}

impl ChunkTable {
    /// An empty table whose file lies in `dir` (already unlinked: it vanishes with the process).
    pub fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            file: tempfile::tempfile_in(dir)?,
            held: Vec::new(),
            flushed: 0,
            tail: Vec::new(),
            by_prefix: HashMap::with_hasher(Spread::new()),
            colliding: HashMap::new(),
            count: 0,
            archives: Vec::new(),
            archive_positions: HashMap::new(),
        })
    }

    /// The position of an archive, added when it is new.
    pub fn archive(&mut self, archive: &IndexArchive) -> u32 {
        if let Some(at) = self.archive_positions.get(&archive.id) {
            return *at;
        }
        let at = self.archives.len() as u32;
        self.archives.push(archive.clone());
        self.archive_positions.insert(archive.id, at);
        at
    }

    /// Makes room for so many more chunks at once: growing step by step copies all of them again and again.
    pub fn reserve(&mut self, more: usize) {
        self.by_prefix.reserve(more);
        let held = (HELD.saturating_sub(self.held.len())).min(more * ENTRY);
        self.held.reserve(held);
    }

    /// Adds a chunk of an archive; the first place known for a chunk stays.
    pub fn insert(&mut self, chunk: &IndexChunk, archive: u32, index: u32) -> io::Result<()> {
        let IndexChunk(id, _, frame_offset, frame_length, offset, length) = *chunk;
        let at = self.count;
        match self.by_prefix.entry(prefix(&id)) {
            Entry::Vacant(slot) => {
                slot.insert(at);
            }
            Entry::Occupied(slot) => {
                let first = *slot.get();
                if self.entry(first)?.0 == id || self.colliding.contains_key(&id) {
                    return Ok(());
                }
                self.colliding.insert(id, at);
            }
        }
        let into = if self.held.len() < HELD { &mut self.held } else { &mut self.tail };
        into.extend_from_slice(&id.0);
        for word in [archive, index, frame_offset, frame_length, offset, length] {
            into.extend_from_slice(&word.to_le_bytes());
        }
        self.count = at.checked_add(1).ok_or_else(|| io::Error::other("more chunks than the table can hold"))?;
        if self.tail.len() >= FLUSH {
            self.file.write_all_at(&self.tail, self.flushed)?;
            self.flushed += self.tail.len() as u64;
            self.tail.clear();
        }
        Ok(())
    }

    /// Where a chunk lies, if it is known.
    pub fn get(&self, id: &ChunkId) -> io::Result<Option<Location>> {
        Ok(self.find(id)?.map(|(_, location)| location))
    }

    /// The same, and the position of its entry.
    pub fn find(&self, id: &ChunkId) -> io::Result<Option<(u32, Location)>> {
        let Some(at) = self.by_prefix.get(&prefix(id)) else { return Ok(None) };
        let (found, location) = self.entry(*at)?;
        if found == *id {
            return Ok(Some((*at, location)));
        }
        match self.colliding.get(id) {
            Some(at) => Ok(Some((*at, self.entry(*at)?.1))),
            None => Ok(None),
        }
    }

    /// The same for chunks one after the other: most lie where the one before does, and need no search. `before` is the
    /// position of that one, and becomes that of this one.
    pub fn find_next(&self, id: &ChunkId, before: &mut u32) -> io::Result<Option<Location>> {
        let next = before.wrapping_add(1);
        if next < self.count {
            let (found, location) = self.entry(next)?;
            if found == *id {
                *before = next;
                return Ok(Some(location));
            }
        }
        let found = self.find(id)?;
        Ok(found.map(|(at, location)| {
            *before = at;
            location
        }))
    }

    /// The entry at a position, in the order of insertion.
    pub fn entry(&self, at: u32) -> io::Result<(ChunkId, Location)> {
        let position = u64::from(at) * ENTRY as u64;
        let held = self.held.len() as u64;
        let mut bytes = [0u8; ENTRY];
        if position < held {
            bytes.copy_from_slice(&self.held[position as usize..position as usize + ENTRY]);
        } else if position - held >= self.flushed {
            let from = (position - held - self.flushed) as usize;
            bytes.copy_from_slice(&self.tail[from..from + ENTRY]);
        } else {
            self.file.read_exact_at(&mut bytes, position - held)?;
        }
        let mut id = [0u8; 32];
        id.copy_from_slice(&bytes[..32]);
        let word = |n: usize| {
            let mut word = [0u8; 4];
            word.copy_from_slice(&bytes[32 + 4 * n..36 + 4 * n]);
            u32::from_le_bytes(word)
        };
        let location = Location {
            archive: word(0),
            index: word(1),
            frame_offset: word(2),
            frame_length: word(3),
            offset: word(4),
            length: word(5),
        };
        Ok((ChunkId(id), location))
    }

    /// How many chunks are known.
    pub fn len(&self) -> u32 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::RecipientSetId;

    #[test]
    fn finds_every_entry_flushed_or_not_and_survives_colliding_prefixes() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = ChunkTable::new(dir.path()).unwrap();
        let archive = table.archive(&IndexArchive {
            id: ObjectId([1; 32]),
            length: 9,
            header: vec![],
            recipients: RecipientSetId([0; 32]),
        });
        let id = |n: u32| {
            let mut id = *blake3::hash(&n.to_le_bytes()).as_bytes();
            if n.is_multiple_of(100) {
                id[..8].fill(7);
            }
            ChunkId(id)
        };
        let count = 320_000u32;
        for n in 0..count {
            table.insert(&IndexChunk(id(n), 0, n, 2, 3, 4), archive, 0).unwrap();
            table.insert(&IndexChunk(id(n), 0, 999, 9, 9, 9), archive, 0).unwrap();
        }
        assert_eq!(table.len(), count);
        for n in 0..count {
            assert_eq!(table.get(&id(n)).unwrap().unwrap().frame_offset, n);
        }
        assert_eq!(table.get(&id(count + 1)).unwrap(), None);
        let mut before = u32::MAX;
        for n in (0..count).chain([7, 8, count - 1, 0, 3]) {
            assert_eq!(table.find_next(&id(n), &mut before).unwrap().unwrap().frame_offset, n);
            assert_eq!(before, n);
        }
        assert_eq!(table.find_next(&id(count), &mut before).unwrap(), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    }
}
