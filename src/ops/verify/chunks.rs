//! Which chunks there are, which are lost, and where: tables on disk, a few bytes per chunk in memory.

use super::Check;
use crate::base::ids::{ChunkId, ObjectId};
use crate::ops::OpsError;
use crate::pipeline::chunk::ChunkIdKey;
use crate::repository::RepositoryError;
use crate::repository::format::{IndexArchive, IndexChunk, IndexObject};
use crate::repository::frames::Frames;
use crate::repository::table::{ChunkTable, Location};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;

/// The chunk id keys of the snapshots that are looked at; a chunk is proved under one of them.
#[derive(Default)]
pub(super) struct Keys(pub Vec<ChunkIdKey>);

impl Keys {
    /// The number of a key, which is kept when it is new.
    pub fn number(&mut self, key: ChunkIdKey) -> u32 {
        let known = self.0.iter().position(|k| k.expose() == key.expose());
        let at = known.unwrap_or_else(|| {
            self.0.push(key);
            self.0.len() - 1
        });
        at as u32
    }

    /// Which key proves a chunk.
    fn proving(&self, id: &ChunkId, content: &[u8]) -> Option<u32> {
        self.0.iter().position(|key| key.id(content) == *id).map(|at| at as u32)
    }
}

/// See the module.
pub(super) struct Chunks {
    /// Chunks that are there. In [`Location::index`] stands the number of the key that proves one.
    pub found: ChunkTable,
    /// Further copies of chunks, in other archives, under ids made by [`copy_id`].
    copies: ChunkTable,
    /// Chunks that an index places in a damaged archive, and that cannot be read there.
    lost: ChunkTable,
    /// Whether everything in `found` has been proved, or is what the index says.
    pub proved: bool,
    dir: PathBuf,
}

fn copy_id(id: &ChunkId, archive: &ObjectId) -> ChunkId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.0).update(&archive.0);
    ChunkId(*hasher.finalize().as_bytes())
}

impl Chunks {
    pub fn new(dir: PathBuf, proved: bool) -> Result<Self, OpsError> {
        let table = || ChunkTable::new(&dir).map_err(|e| OpsError::file("write a chunk table in", &dir, e));
        Ok(Self { found: table()?, copies: table()?, lost: table()?, proved, dir: dir.clone() })
    }

    fn error(&self) -> impl Fn(std::io::Error) -> OpsError + use<> {
        let dir = self.dir.clone();
        move |e| OpsError::file("use a chunk table in", dir.clone(), e)
    }

    /// A chunk of an archive is there.
    pub fn add(&mut self, archive: &IndexArchive, chunk: &IndexChunk, key: u32) -> Result<(), OpsError> {
        let error = self.error();
        let at = self.found.archive(archive);
        match self.found.get(&chunk.0).map_err(&error)? {
            None => self.found.insert(chunk, at, key).map_err(error),
            Some(location) if location.archive == at => Ok(()),
            Some(_) => {
                let IndexChunk(id, archive_position, frame, frame_length, offset, length) = *chunk;
                let id = copy_id(&id, &archive.id);
                let copy = IndexChunk(id, archive_position, frame, frame_length, offset, length);
                self.copies.insert(&copy, at, key).map_err(error)
            }
        }
    }

    /// A chunk that should be in an archive cannot be had from it.
    pub fn lose(&mut self, archive: &IndexArchive, chunk: &IndexChunk) -> Result<(), OpsError> {
        let at = self.lost.archive(archive);
        self.lost.insert(chunk, at, 0).map_err(self.error())
    }

    /// The damaged archive that a chunk is lost with.
    pub fn lost_with(&self, id: &ChunkId) -> Result<Option<ObjectId>, OpsError> {
        let location = self.lost.get(id).map_err(self.error())?;
        Ok(location.and_then(|l| self.lost.archives.get(l.archive as usize)).map(|archive| archive.id))
    }

    /// Where a chunk is.
    pub fn get(&self, id: &ChunkId) -> Result<Option<Location>, OpsError> {
        self.found.get(id).map_err(self.error())
    }

    /// Where a chunk is in one archive.
    pub fn within(&self, id: &ChunkId, archive: &ObjectId) -> Result<Option<Location>, OpsError> {
        let is_there = |l: &Location| self.found.archives.get(l.archive as usize).is_some_and(|a| a.id == *archive);
        match self.get(id)?.filter(is_there) {
            Some(location) => Ok(Some(location)),
            None => self.copies.get(&copy_id(id, archive)).map_err(self.error()),
        }
    }
}

impl Check<'_> {
    /// What can still be read of damaged archives, frame by frame as an index object says; the rest is lost.
    pub(super) fn salvage(
        &self,
        chunks: &mut Chunks,
        frames: &Frames,
        object: &IndexObject,
        bad: &HashSet<ObjectId>,
        keys: &Keys,
    ) -> Result<(), OpsError> {
        for (position, archive) in object.archives.iter().enumerate().filter(|(_, a)| bad.contains(&a.id)) {
            let mut by_frame: BTreeMap<(u32, u32), Vec<&IndexChunk>> = BTreeMap::new();
            for chunk in object.chunks.iter().filter(|c| c.1 as usize == position) {
                by_frame.entry((chunk.2, chunk.3)).or_default().push(chunk);
            }
            let is_there = self.inventory.archives.contains_key(&archive.id);
            for ((offset, length), of_frame) in by_frame {
                self.run.cancel.check()?;
                let frame = if is_there { optional(frames.frame(archive, offset, length))? } else { None };
                for chunk in of_frame {
                    let content = frame.as_ref().and_then(|plain| slice(plain, chunk.4, chunk.5));
                    match content.and_then(|content| keys.proving(&chunk.0, content)) {
                        Some(key) => chunks.add(archive, chunk, key)?,
                        None => chunks.lose(archive, chunk)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// The archives that have a finding.
    pub(super) fn bad_archives(&self) -> HashSet<ObjectId> {
        let ledger = self.ledger();
        let keys = ledger.objects().filter(|object| object.starts_with(crate::repository::layout::ARCHIVES));
        keys.filter_map(|object| crate::repository::layout::object_id(&object.parse().ok()?)).collect()
    }
}

/// What is damaged is none; every other failure ends the run.
pub(super) fn optional<T>(read: Result<T, RepositoryError>) -> Result<Option<T>, OpsError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(e) if e.is_integrity() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

pub(super) fn slice(plain: &[u8], offset: u32, length: u32) -> Option<&[u8]> {
    plain.get(offset as usize..)?.get(..length as usize)
}

/// The archives in which what is below a list of ids lies, and what is lost of it.
#[derive(Default, Clone)]
pub(super) struct Below {
    pub archives: BTreeSet<u32>,
    pub losses: BTreeSet<Loss>,
}

/// Why a stream cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Loss {
    /// With a damaged archive.
    Archive(ObjectId),
    /// A chunk that is in no archive at hand.
    Nowhere(ChunkId),
    /// Its ids contradict themselves.
    Broken(String),
}

impl Below {
    pub fn add(&mut self, other: &Below) {
        self.archives.extend(&other.archives);
        other.losses.iter().for_each(|loss| self.lose(loss.clone()));
    }

    /// Keeps a loss. Of chunks that are nowhere one is enough to know.
    pub fn lose(&mut self, loss: Loss) {
        if !matches!(loss, Loss::Nowhere(_)) || !self.losses.iter().any(|l| matches!(l, Loss::Nowhere(_))) {
            self.losses.insert(loss);
        }
    }
}
