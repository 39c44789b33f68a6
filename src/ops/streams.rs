//! A snapshot's streams as sources read them: where the repository and the sources meet on the way back.

use crate::base::cancel::Cancel;
use crate::base::stream::StreamKind;
use crate::ops::browse::part::{Part, PartReader};
use crate::ops::{ErrorKind, OpsError};
use crate::repository::chain::full_text;
use crate::repository::format::SourceEntry;
use crate::repository::reader::SnapshotReader;
use crate::sources::SourceError;
use crate::sources::extract::{Extractor, Options, Report};
use crate::sources::streams::{StreamInfo, Streams};
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The streams of one source of a snapshot.
pub struct SnapshotStreams<'a> {
    reader: &'a SnapshotReader,
    source: &'a SourceEntry,
    cancel: &'a Cancel,
    /// The first damage that was met while reading: what a source's own error cannot carry.
    damage: Mutex<Option<OpsError>>,
}

impl<'a> SnapshotStreams<'a> {
    pub fn new(reader: &'a SnapshotReader, source: &'a SourceEntry, cancel: &'a Cancel) -> Self {
        Self { reader, source, cancel, damage: Mutex::default() }
    }

    /// The damage that was met, once.
    pub fn take_damage(&self) -> Option<OpsError> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn part(&self, name: &str) -> Option<Part<'a>> {
        let stream = self.source.streams.iter().find(|s| s.name.as_str() == name)?;
        Some(Part { reader: self.reader, source: self.source, stream })
    }

    fn verified(&self, name: &str) -> io::Result<Verified<'_>> {
        let part = self.part(name).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("the snapshot has no stream {name:?} of this source"))
        })?;
        let inner = part.open().map_err(|e| self.failed(e))?;
        Ok(Verified { streams: self, inner })
    }

    /// The error for a source, with what the repository said; damage is remembered.
    fn failed(&self, e: OpsError) -> io::Error {
        if let OpsError::Cancelled(cancelled) = e {
            return io::Error::other(cancelled);
        }
        let text = full_text(&e);
        if e.kind() == ErrorKind::Integrity {
            self.damage.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        }
        io::Error::other(text)
    }
}

impl Streams for SnapshotStreams<'_> {
    fn list(&self) -> Vec<StreamInfo> {
        let info = |s: &crate::repository::format::StreamEntry| StreamInfo {
            name: s.name.to_string(),
            kind: s.kind,
            length: s.length,
        };
        self.source.streams.iter().map(info).collect()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(self.verified(name)?))
    }

    fn lay_out(&self, into: &Path) -> Result<Report, SourceError> {
        let options = Options { privileged: false, owners: rustix::process::geteuid().is_root(), overwrite: false };
        let laid =
            |what: &dyn std::error::Error| SourceError::problem(format!("lay out the tree: {}", full_text(what)));
        let mut extractor = Extractor::new(into, options, self.cancel).map_err(|e| laid(&e))?;
        for stream in self.list().into_iter().filter(|s| s.kind == StreamKind::Tar) {
            let file = |source| SourceError::File { action: "read", path: stream.name.clone().into(), source };
            let tar = self.verified(&stream.name).map_err(file)?;
            extractor.extract(tar).map_err(|e| laid(&e))?;
        }
        extractor.finish().map_err(|e| laid(&e))
    }
}

/// A stream whose errors say what the repository said.
struct Verified<'a> {
    streams: &'a SnapshotStreams<'a>,
    inner: PartReader<'a>,
}

impl Read for Verified<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out);
        read.map_err(|e| self.failed(e))
    }
}

impl BufRead for Verified<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if let Err(e) = self.inner.fill_buf() {
            return Err(self.failed(e));
        }
        // It has them now: nothing more can fail.
        self.inner.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.inner.consume(n);
    }
}

impl Verified<'_> {
    fn failed(&mut self, e: io::Error) -> io::Error {
        let failure = self.inner.failure(e);
        self.streams.failed(failure)
    }
}
