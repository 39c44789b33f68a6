//! One stream of one snapshot, and errors that name all three of snapshot, source and stream.

use crate::ops::access::Access;
use crate::ops::{OpsError, Run};
use crate::repository::RepositoryError;
use crate::repository::chain::{Snapshot, full_text};
use crate::repository::format::{SourceEntry, StreamEntry};
use crate::repository::reader::{ChunkIds, SnapshotReader, StreamReader};
use crate::sources::extract::ExtractError;
use std::io::{self, BufRead, Read};
use std::sync::Arc;

/// A stream that can be read.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub reader: &'a SnapshotReader,
    pub source: &'a SourceEntry,
    pub stream: &'a StreamEntry,
}

impl<'a> Part<'a> {
    /// Every byte, from the first to the last.
    pub fn open(&self) -> Result<PartReader<'a>, OpsError> {
        self.range(0, self.stream.length)
    }

    /// `length` bytes from `offset`.
    pub fn range(&self, offset: u64, length: u64) -> Result<PartReader<'a>, OpsError> {
        let inner = self.reader.range(self.source, self.stream, offset, length).map_err(|e| self.error(e))?;
        Ok(PartReader { part: *self, inner })
    }

    /// Fetches the beginnings of ranges (offset, length) at once, before they are read one after the other.
    pub fn warm(&self, ranges: &[(u64, u64)]) {
        self.reader.warm(self.source, self.stream, ranges);
    }

    /// The ids of its chunks.
    pub fn chunk_ids(&self) -> Result<ChunkIds<'a>, OpsError> {
        self.reader.chunk_ids(self.source, self.stream).map_err(|e| self.error(e))
    }

    /// What went wrong with it, and where.
    pub fn error(&self, source: RepositoryError) -> OpsError {
        let place = match &source {
            RepositoryError::Cancelled(cancelled) => return (*cancelled).into(),
            // These name source and stream themselves.
            RepositoryError::Stream { .. } | RepositoryError::ChunkMissing { .. } => String::new(),
            _ => format!(": source {:?}: stream {:?}", self.source.name.as_str(), self.stream.name.as_str()),
        };
        OpsError::InSnapshot { snapshot: self.reader.snapshot.header.id.clone(), place, source: Box::new(source) }
    }

    /// Its bytes are those that were stored, but they are not what they must be.
    pub fn problem(&self, problem: impl Into<String>) -> OpsError {
        self.error(RepositoryError::Stream {
            stream: self.stream.name.to_string(),
            source_name: self.source.name.to_string(),
            problem: problem.into(),
        })
    }
}

/// A stream's bytes. An i/o error of [`Read`] only says that something failed; [`PartReader::failure`] says what.
pub struct PartReader<'a> {
    part: Part<'a>,
    inner: StreamReader<'a>,
}

impl PartReader<'_> {
    /// Why reading failed; absent when it did not.
    pub fn take_failure(&mut self) -> Option<OpsError> {
        self.inner.take_failure().map(|e| self.part.error(e))
    }

    /// The cause behind an i/o error that came out of reading.
    pub fn failure(&mut self, e: io::Error) -> OpsError {
        self.take_failure().unwrap_or_else(|| self.part.problem(format!("it cannot be read: {e}")))
    }

    /// The cause behind the failure of something that read a tar from here.
    pub fn tar_failure(&mut self, e: ExtractError) -> OpsError {
        match e {
            ExtractError::Archive(e) => {
                self.take_failure().unwrap_or_else(|| self.part.problem(format!("its tar: {}", full_text(&e))))
            }
            ExtractError::File { action, path, source } => OpsError::file(action, path, source),
            moved @ ExtractError::Moved { .. } => {
                OpsError::failed(moved.to_string(), "something else is at work there: restore into a folder of its own")
            }
            ExtractError::Cancelled(e) => e.into(),
        }
    }
}

impl Read for PartReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.inner.read(out)
    }
}

impl BufRead for PartReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.inner.consume(n);
    }
}

/// The snapshot that `name` names, open for reading; damage names it.
pub fn open_snapshot(
    access: &Access,
    name: &str,
    what: &'static str,
    run: &Run,
) -> Result<Arc<SnapshotReader>, OpsError> {
    open_resolved(access, access.resolve(name, run.now)?, what, run)
}

/// The same for one that has been found.
pub fn open_resolved(
    access: &Access,
    snapshot: &Snapshot,
    what: &'static str,
    run: &Run,
) -> Result<Arc<SnapshotReader>, OpsError> {
    access.reader(snapshot, what, run).map_err(|e| match e {
        OpsError::Repository(source) if source.is_integrity() => {
            let (snapshot, place) = (snapshot.header.id.clone(), String::new());
            OpsError::InSnapshot { snapshot, place, source: Box::new(source) }
        }
        other => other,
    })
}
