//! The ids of a stream's data chunks, read from its tree.

use super::{SnapshotReader, stream_error};
use crate::base::ids::ChunkId;
use crate::repository::format::{SourceEntry, StreamEntry};
use crate::repository::{RepositoryError, tree};

/// The data chunks of a stream, in order, from the chunk that holds an offset.
pub(super) struct IdsReader<'a> {
    pub(super) reader: &'a SnapshotReader,
    pub(super) source: &'a SourceEntry,
    pub(super) stream: &'a StreamEntry,
    /// Per depth from the root: entries still to come, in reverse.
    levels: Vec<Vec<tree::Entry>>,
    /// Plain bytes before the next entry.
    pub(super) position: u64,
}

impl<'a> IdsReader<'a> {
    pub(super) fn new(
        reader: &'a SnapshotReader,
        source: &'a SourceEntry,
        stream: &'a StreamEntry,
        offset: u64,
    ) -> Result<Self, RepositoryError> {
        let mut root = stream.ids.root.clone();
        root.reverse();
        let mut levels = vec![root];
        levels.resize_with(stream.ids.depth as usize + 1, Default::default);
        let mut ids = IdsReader { reader, source, stream, levels, position: 0 };
        ids.skip_to(offset)?;
        Ok(ids)
    }

    /// Leaves out whole entries that end at or before `offset`, at every depth.
    fn skip_to(&mut self, offset: u64) -> Result<(), RepositoryError> {
        for depth in 0..self.levels.len() {
            loop {
                let Some((_, length)) = self.levels[depth].last() else { return Ok(()) };
                let end = self.position.checked_add(*length).ok_or_else(|| self.error("its lengths overflow"))?;
                if end > offset {
                    break;
                }
                self.levels[depth].pop();
                self.position = end;
            }
            if depth + 1 < self.levels.len() {
                self.descend(depth)?;
            }
        }
        Ok(())
    }

    fn error(&self, problem: &str) -> RepositoryError {
        stream_error(self.source, self.stream, problem.to_owned())
    }

    /// Opens the next list of a depth into the depth below it.
    fn descend(&mut self, depth: usize) -> Result<bool, RepositoryError> {
        let Some((id, length)) = self.levels[depth].pop() else { return Ok(false) };
        let list = self.reader.chunk(&id, self.source, self.stream)?;
        let parsed = tree::parse_list(&list, length);
        let mut parsed = parsed.map_err(|problem| stream_error(self.source, self.stream, problem))?;
        parsed.reverse();
        let entries = &mut self.levels[depth + 1];
        parsed.append(entries);
        *entries = parsed;
        Ok(true)
    }

    pub(super) fn next(&mut self) -> Result<Option<tree::Entry>, RepositoryError> {
        let leaf = self.levels.len() - 1;
        while self.levels[leaf].is_empty() {
            let Some(depth) = (0..leaf).rev().find(|d| !self.levels[*d].is_empty()) else { return Ok(None) };
            self.descend(depth)?;
        }
        let entry = self.levels[leaf].pop();
        if let Some((_, length)) = entry {
            self.position = self.position.checked_add(length).ok_or_else(|| self.error("its lengths overflow"))?;
        }
        Ok(entry)
    }
}

/// A stream's data chunks, in order.
pub struct ChunkIds<'a>(pub(super) IdsReader<'a>);

impl ChunkIds<'_> {
    /// The next chunk's id and plain length.
    pub fn next_chunk(&mut self) -> Result<Option<(ChunkId, u64)>, RepositoryError> {
        self.0.next()
    }
}
