//! One stream being cut: known chunks are dropped, new ones go into segments.

use super::lock;
use super::snapshot::{SnapshotWriter, Used};
use crate::base::ids::ChunkId;
use crate::base::stream::StreamKind;
use crate::pipeline::chunk::{ChunkAverage, Chunker, GearTable};
use crate::pipeline::segment::{SEGMENT_TARGET, Search, Segment};
use crate::repository::format::IdsTree;
use crate::repository::tree;
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a finished stream is: everything of its manifest entry but its name and kind.
#[derive(Debug, Clone)]
pub struct StreamParts {
    pub length: u64,
    pub sha256: Option<String>,
    pub average: ChunkAverage,
    pub ids: IdsTree,
}

/// One stream being written. [`StreamWriter::finish`] must be called, else the stream is not part of the snapshot.
pub struct StreamWriter<'a> {
    writer: &'a SnapshotWriter,
    chunker: Chunker,
    /// Bytes behind the last chunk: one and a half of the longest one at most.
    held: Vec<u8>,
    /// With fewer bytes behind the last chunk than these its end is not looked for again.
    wanted: usize,
    segment: Segment,
    /// Of a stream whose content is of one sort.
    search: Option<Arc<Search>>,
    entries: Vec<tree::Entry>,
    /// Where the entries of the current piece begin.
    piece_start: usize,
    position: u64,
    sha256: Option<Sha256>,
    used: Used,
    /// Where in the table the last chunk that was taken over stands.
    last: u32,
    /// The chunks that the bytes to come are expected to be, in reverse.
    expected: Vec<(ChunkId, u32)>,
}

/// The run has failed elsewhere: the failure itself is kept by the writer.
fn run_failed() -> io::Error {
    io::Error::other("the repository did not take what was written")
}

impl<'a> StreamWriter<'a> {
    pub(super) fn new(writer: &'a SnapshotWriter, average: ChunkAverage, gear: GearTable, kind: StreamKind) -> Self {
        let is_mixed = kind == StreamKind::Tar;
        Self {
            writer,
            chunker: Chunker::new(gear, average),
            held: Vec::new(),
            wanted: 1,
            segment: Segment::default(),
            search: (!is_mixed).then(Arc::default),
            entries: Vec::new(),
            piece_start: 0,
            position: 0,
            sha256: kind.is_read_whole().then(Sha256::new),
            used: Used::default(),
            last: u32::MAX,
            expected: Vec::new(),
        }
    }

    fn check(&self) -> io::Result<()> {
        let shared = &self.writer.shared;
        shared.options.cancel.check_io()?;
        if shared.failed.load(Ordering::SeqCst) { Err(run_failed()) } else { Ok(()) }
    }

    /// Cuts what can be cut: of what is held back and what comes behind it. The rest is held back.
    fn feed(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !self.held.is_empty() && !rest.is_empty() {
            let more = rest.len().min(self.chunker.max() / 2);
            self.held.extend_from_slice(&rest[..more]);
            rest = &rest[more..];
            let held = std::mem::take(&mut self.held);
            let at = self.cut_known(&held)?;
            let left = held.len() - at;
            self.held = held;
            // What is left of the held bytes mostly came from `bytes`: there it need not be copied again.
            if left <= more {
                self.held.clear();
                rest = &bytes[bytes.len() - rest.len() - left..];
            } else if at > 0 {
                self.held.copy_within(at.., 0);
                self.held.truncate(left);
            }
        }
        let at = self.cut_known(rest)?;
        self.held.extend_from_slice(&rest[at..]);
        Ok(())
    }

    /// Cuts the chunks whose ends are known, whatever follows; where the rest begins.
    fn cut_known(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut at = 0;
        while bytes.len() - at >= self.wanted {
            match self.cut(&bytes[at..], false)? {
                Some(n) => (at, self.wanted) = (at + n, 1),
                None => self.wanted = bytes.len() - at + self.chunker.max() / 8,
            }
        }
        Ok(at)
    }

    /// Cuts what is held back, to its end: a piece ends here.
    fn cut_rest(&mut self) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let mut rest = &held[..];
        while let Some(n) = self.cut(rest, true)? {
            rest = &rest[n..];
        }
        self.wanted = 1;
        self.held = held;
        self.held.clear();
        Ok(())
    }

    /// The length of the first chunk of `bytes`, which is cut off. None where `bytes` are not the piece's last and do not tell.
    fn cut(&mut self, bytes: &[u8], is_last: bool) -> io::Result<Option<usize>> {
        // One that is longer than any will not come, however much is waited for.
        let possible = bytes.len() + 1..=self.chunker.max();
        let is_ahead = self.expected.last().is_some_and(|(_, length)| possible.contains(&(*length as usize)));
        if bytes.is_empty() || is_ahead && !is_last {
            return Ok(None);
        }
        let (id, chunk) = match self.cut_as_expected(bytes) {
            Some(cut) => cut,
            None => {
                let length = if is_last { Some(self.chunker.cut(bytes)) } else { self.chunker.cut_known(bytes) };
                let Some(length) = length else { return Ok(None) };
                let chunk = &bytes[..length];
                (self.writer.shared.key.id(chunk), chunk)
            }
        };
        self.entries.push((id, chunk.len() as u64));
        self.keep(id, chunk)?;
        Ok(Some(chunk.len()))
    }

    /// The first chunk of `bytes` if it is the expected one. From the first that is not, nothing is expected any more.
    fn cut_as_expected<'b>(&mut self, bytes: &'b [u8]) -> Option<(ChunkId, &'b [u8])> {
        let (id, length) = self.expected.pop()?;
        let length = Some(length as usize).filter(|n| (1..=self.chunker.max()).contains(n));
        let chunk = length.and_then(|n| bytes.get(..n)).filter(|chunk| self.writer.shared.key.id(chunk) == id);
        if chunk.is_none() {
            self.expected.clear();
        }
        Some((id, chunk?))
    }

    /// Drops a chunk that is known, and puts a new one into a segment.
    fn keep(&mut self, id: ChunkId, chunk: &[u8]) -> io::Result<()> {
        if self.is_known(&id)? || !lock(&self.writer.shared.pending).insert(id) {
            return Ok(());
        }
        // Between the two looks the chunk may have been stored: then it is known, and pending no more.
        if self.is_known(&id)? {
            lock(&self.writer.shared.pending).remove(&id);
            return Ok(());
        }
        if !self.segment.has_room(chunk.len()) {
            self.send()?;
        }
        self.segment.push(id, chunk);
        Ok(())
    }

    fn is_known(&mut self, id: &ChunkId) -> io::Result<bool> {
        let Some(location) = lock(&self.writer.shared.table).get(id)? else { return Ok(false) };
        self.used.add(&location);
        Ok(true)
    }

    fn send(&mut self) -> io::Result<()> {
        if self.segment.is_empty() {
            return Ok(());
        }
        let mut segment = std::mem::replace(&mut self.segment, self.writer.shared.spare.segment());
        segment.belongs_to(self.search.clone());
        let sender = self.writer.segments.as_ref().ok_or_else(run_failed)?;
        sender.send(segment).map_err(|_| run_failed())?;
        self.check()
    }

    /// The next byte begins a new chunk, within a piece.
    pub fn end_chunk(&mut self) -> io::Result<()> {
        self.cut_rest()
    }

    /// The piece that begins will probably be this one again: where it is, its chunks need not be searched for their ends.
    pub fn expect(&mut self, chunks: &[(ChunkId, u32)]) {
        self.expected = chunks.iter().rev().copied().collect();
    }

    /// Ends a piece: the next byte begins a new chunk. Returns the piece's chunks.
    pub fn end_piece(&mut self) -> io::Result<Vec<(ChunkId, u32)>> {
        self.check()?;
        self.cut_rest()?;
        self.expected.clear();
        let piece = self.entries[self.piece_start..].iter().map(|(id, n)| (*id, *n as u32)).collect();
        self.piece_start = self.entries.len();
        Ok(piece)
    }

    /// Takes over a piece without its bytes, if the repository holds all of its chunks.
    pub fn reuse_piece(&mut self, chunks: &[(ChunkId, u32)]) -> io::Result<bool> {
        let taken = self.reuse_part(chunks)?;
        if taken {
            self.piece_start = self.entries.len();
        }
        Ok(taken)
    }

    /// The same within a piece, where a chunk has just ended.
    pub fn reuse_part(&mut self, chunks: &[(ChunkId, u32)]) -> io::Result<bool> {
        debug_assert!(self.held.is_empty(), "only between chunks");
        self.check()?;
        let mut found = Vec::with_capacity(chunks.len());
        {
            let table = lock(&self.writer.shared.table);
            for (id, length) in chunks {
                match table.find_next(id, &mut self.last)? {
                    Some(location) if location.length == *length => found.push(location),
                    _ => return Ok(false),
                }
            }
        }
        found.iter().for_each(|location| self.used.add(location));
        for (id, length) in chunks {
            self.entries.push((*id, u64::from(*length)));
            self.position += u64::from(*length);
        }
        Ok(true)
    }

    /// Plain bytes so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How it is cut.
    pub fn way(&self) -> u32 {
        self.chunker.way()
    }

    /// Ends the stream.
    pub fn finish(mut self) -> io::Result<StreamParts> {
        self.check()?;
        self.cut_rest()?;
        let entries = std::mem::take(&mut self.entries);
        let ids = tree::build(entries, |list| {
            let id = self.writer.shared.key.id(list);
            self.keep(id, list)?;
            Ok::<_, io::Error>(id)
        })?;
        self.hand_over_tail()?;
        let mut used = lock(&self.writer.used);
        used.archives.extend(&self.used.archives);
        used.index.extend(&self.used.index);
        used.bytes += self.position;
        Ok(StreamParts {
            length: self.position,
            sha256: self.sha256.take().map(|hash| hex::encode(hash.finalize())),
            average: self.chunker.average(),
            ids,
        })
    }

    /// A small last segment joins those of other streams; a large one goes its way.
    fn hand_over_tail(&mut self) -> io::Result<()> {
        if self.segment.len() > SEGMENT_TARGET / 2 {
            return self.send();
        }
        let segment = std::mem::take(&mut self.segment);
        let full = {
            let mut tail = lock(&self.writer.shared.tail);
            tail.append(&segment);
            (tail.len() > SEGMENT_TARGET / 2).then(|| std::mem::take(&mut *tail))
        };
        self.segment = full.unwrap_or_default();
        self.send()
    }
}

impl Drop for StreamWriter<'_> {
    fn drop(&mut self) {
        // Another stream may count on a chunk that this one was the first to see: an abandoned stream's chunks are
        // stored all the same. Where that fails, the run has failed, and the commit says so.
        let _ = self.hand_over_tail();
    }
}

impl Write for StreamWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        if let Some(hash) = &mut self.sha256 {
            hash.update(bytes);
        }
        self.position += bytes.len() as u64;
        self.feed(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
