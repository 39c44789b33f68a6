//! Every stream's ids walked, and each stream that cannot be restored laid at the door of the object that costs it.

use super::Check;
use super::chunks::{Below, Chunks, Keys, Loss, optional, slice};
use crate::base::ids::ChunkId;
use crate::ops::OpsError;
use crate::repository::chain::Snapshot;
use crate::repository::format::{Manifest, SourceEntry, StreamEntry};
use crate::repository::frames::Frames;
use crate::repository::refs::Refs;
use crate::repository::tree::{self, Entry};
use crate::repository::{RepositoryError, layout};
use crate::storage::StorageKey;
use std::collections::HashMap;
use std::sync::Arc;

/// A walk over the ids of many snapshots. A list of ids that they share is looked at once.
pub(super) struct Walk<'c> {
    pub check: &'c Check<'c>,
    pub chunks: &'c Chunks,
    pub frames: &'c Frames,
    pub keys: &'c Keys,
    lists: HashMap<(ChunkId, u8, u64, u32), Arc<Below>>,
}

impl<'c> Walk<'c> {
    pub fn new(check: &'c Check<'c>, chunks: &'c Chunks, frames: &'c Frames, keys: &'c Keys) -> Self {
        Self { check, chunks, frames, keys, lists: HashMap::new() }
    }

    /// Walks every stream of a snapshot and writes down what is lost.
    pub fn snapshot(
        &mut self,
        snapshot: &Snapshot,
        manifest: &Manifest,
        refs: &Refs,
        key: u32,
    ) -> Result<(), OpsError> {
        for source in &manifest.sources {
            for stream in &source.streams {
                self.check.run.cancel.check()?;
                let mut below = self.stream(stream, key, None)?;
                let outside = |at: &u32| {
                    let archive = self.chunks.found.archives.get(*at as usize);
                    archive.is_none_or(|archive| !refs.archives.contains_key(&archive.id))
                };
                // A reader only looks into what the refs name, and a prune only keeps that.
                if below.archives.iter().any(outside) {
                    below = self.stream(stream, key, Some(refs))?;
                }
                self.settle(snapshot, source, stream, refs, &below);
            }
        }
        Ok(())
    }

    fn stream(&mut self, stream: &StreamEntry, key: u32, within: Option<&Refs>) -> Result<Below, OpsError> {
        let mut below = Below::default();
        match tree::check(&stream.ids, stream.length) {
            Ok(()) => self.entries(&stream.ids.root, stream.ids.depth, key, within, &mut below)?,
            Err(problem) => below.lose(Loss::Broken(problem)),
        }
        Ok(below)
    }

    fn entries(
        &mut self,
        entries: &[Entry],
        depth: u8,
        key: u32,
        within: Option<&Refs>,
        below: &mut Below,
    ) -> Result<(), OpsError> {
        for (id, length) in entries {
            if depth == 0 {
                self.chunk(id, Some(*length), key, within, below)?;
                continue;
            }
            let at = (*id, depth, *length, key);
            if let Some(known) = self.lists.get(&at).filter(|_| within.is_none()) {
                below.add(&known.clone());
                continue;
            }
            self.check.run.cancel.check()?;
            let mut here = Below::default();
            if let Some(list) = self.list(id, *length, key, within, &mut here)? {
                self.entries(&list, depth - 1, key, within, &mut here)?;
            }
            below.add(&here);
            if within.is_none() {
                self.lists.insert(at, Arc::new(here));
            }
        }
        Ok(())
    }

    /// One chunk: there, proved by the snapshot's own key, of the length that is expected, in an archive that counts.
    fn chunk(
        &self,
        id: &ChunkId,
        length: Option<u64>,
        key: u32,
        within: Option<&Refs>,
        below: &mut Below,
    ) -> Result<bool, OpsError> {
        if let Some(archive) = self.chunks.lost_with(id)? {
            below.lose(Loss::Archive(archive));
            return Ok(false);
        }
        let mut location = self.chunks.get(id)?;
        if let (Some(found), Some(refs)) = (location, within) {
            let archive = self.chunks.found.archives.get(found.archive as usize);
            if archive.is_none_or(|archive| !refs.archives.contains_key(&archive.id)) {
                location = None;
                for archive in refs.archives.keys() {
                    location = location.or(self.chunks.within(id, archive)?);
                }
            }
        }
        match location {
            Some(found) if self.chunks.proved && found.index != key => below.lose(Loss::Nowhere(*id)),
            Some(found) if length.is_some_and(|length| u64::from(found.length) != length) => {
                below.lose(Loss::Broken(format!("chunk {id} has another length than its ids tree says")));
            }
            Some(found) => {
                below.archives.insert(found.archive);
                return Ok(true);
            }
            None => below.lose(Loss::Nowhere(*id)),
        }
        Ok(false)
    }

    /// The entries of a list, read from where it lies.
    fn list(
        &self,
        id: &ChunkId,
        length: u64,
        key: u32,
        within: Option<&Refs>,
        below: &mut Below,
    ) -> Result<Option<Vec<Entry>>, OpsError> {
        if !self.chunk(id, None, key, within, below)? {
            return Ok(None);
        }
        let Some(found) = self.chunks.get(id)? else { return Ok(None) };
        let (Some(archive), Some(key)) =
            (self.chunks.found.archives.get(found.archive as usize), self.keys.0.get(key as usize))
        else {
            return Ok(None);
        };
        let frame = optional(self.frames.frame(archive, found.frame_offset, found.frame_length))?;
        let content = frame.as_ref().and_then(|plain| slice(plain, found.offset, found.length));
        let Some(content) = content.filter(|content| key.id(content) == *id) else {
            below.lose(Loss::Archive(archive.id));
            return Ok(None);
        };
        match tree::parse_list(content, length) {
            Ok(entries) => Ok(Some(entries)),
            Err(problem) => {
                below.lose(Loss::Broken(problem));
                Ok(None)
            }
        }
    }

    /// Names what a stream has lost, and by which object.
    fn settle(&self, snapshot: &Snapshot, source: &SourceEntry, stream: &StreamEntry, refs: &Refs, below: &Below) {
        let id = &snapshot.header.id;
        let mut ledger = self.check.ledger();
        for loss in &below.losses {
            let damaged: Vec<String> = match loss {
                Loss::Archive(archive) => vec![layout::archive(*archive).to_string()],
                Loss::Broken(_) => Vec::new(),
                // Whatever of this snapshot is damaged may have held it.
                Loss::Nowhere(_) => super::inventory::needed_keys(refs)
                    .map(|key| key.to_string())
                    .filter(|key| ledger.has(key))
                    .collect(),
            };
            for key in &damaged {
                if !ledger.has(key) {
                    ledger.find(key, "it cannot be read where the index says");
                }
                ledger.cost(key, id, Some(&source.name));
            }
            if damaged.is_empty() {
                let object = blamed(snapshot, matches!(loss, Loss::Nowhere(_))).to_string();
                let of = format!("stream {:?} of source {:?}", stream.name.as_str(), source.name.as_str());
                let problem = match loss {
                    Loss::Nowhere(chunk) => format!("{of}: chunk {chunk} is in no archive that its refs name"),
                    Loss::Broken(problem) => format!("{of}: {problem}"),
                    Loss::Archive(_) => continue,
                };
                ledger.find(&object, &problem);
                ledger.cost(&object, id, Some(&source.name));
            }
        }
    }
}

/// Whose fault it is that a stream cannot be followed: a chunk that is nowhere is missing in refs that a repack made,
/// where one did; everything else is the manifest's.
fn blamed(snapshot: &Snapshot, is_nowhere: bool) -> StorageKey {
    if is_nowhere && snapshot.refs != snapshot.header.refs {
        layout::refs(snapshot.refs)
    } else {
        layout::manifest(snapshot.header.manifest)
    }
}

impl Check<'_> {
    /// A failure to read a stream, laid at the door of the object that it names.
    pub(super) fn blame(&self, error: &RepositoryError, snapshot: &Snapshot, source: &SourceEntry) {
        let is_nowhere = matches!(error, RepositoryError::ChunkMissing { .. });
        let object = self.settle(error, blamed(snapshot, is_nowhere).as_str());
        self.ledger().cost(&object, &snapshot.header.id, Some(&source.name));
    }
}
