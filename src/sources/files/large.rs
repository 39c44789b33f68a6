//! A large file: a group of its own, read and written in pieces of [`STRIDE`], never held in memory.
//!
//! Its header says a size before its content is read, so the entry's length is kept: what is not there any more is
//! zeros. A file that did not hold still is written a second time right behind, marked to take the first one's place;
//! the listing knows the second one only. What is remembered of the first piece is put down last, and the others
//! count only together with it.

use super::content::{self, Opened};
use super::entry::{Entry, Kind};
use super::frame::{self, Segment, SparseMap};
use super::memo::{Remembered, differ, fingerprint};
use super::notes::{Note, Notes};
use super::small::{attributes, current};
use super::stream::{BUFFER, Outcome, TreeStream, file_error};
use super::walk::{Found, Identity};
use crate::sources::{Piece, SourceError};
use std::path::Path;

/// Some thousands of chunks: what is remembered of a piece stays small.
pub(super) const STRIDE: u64 = 64 << 20;
/// Larger files are not read a second time when they changed: a disk image that is in use would never hold still.
const AGAIN: u64 = 256 << 20;

/// A copy of a large file in the tar.
struct Copy {
    entry: Entry,
    start: u64,
    end: u64,
    /// Whether the file held still while it was read.
    held: bool,
    /// Whether there was less of it than its header says.
    short: bool,
}

/// How a large file's pieces are remembered; absent when they are not.
struct Keeping<'k> {
    found: &'k Found,
    print: [u8; 32],
}

/// A copy, and what is remembered of its beginning if it held still.
struct Written {
    copy: Copy,
    map: Option<SparseMap>,
    piece: Piece,
    digest: [u8; 32],
}

impl TreeStream<'_> {
    /// A group of one large file.
    pub(super) fn large(&mut self, path: &Path, found: &Found, notes: &mut Notes) -> Result<(), SourceError> {
        self.check()?;
        let key = self.memo_key(&found.entry.path, 0);
        let print = fingerprint(std::slice::from_ref(found));
        let known = self.recall(&key, &print).filter(|r| r.lengths.len() == 1);
        if let Some(known) = known.as_ref().filter(|_| !self.is_due(&key))
            && self.reuse(&known.piece)?
        {
            let copy = self.rest(path, found, known)?;
            return self.settle(path, copy, notes);
        }
        let Some(opened) = content::open(path).map_err(|e| file_error("open", path, e))? else {
            notes.add(Note::Vanished, &found.entry.path);
            self.gone.insert(found.entry.path.clone(), None);
            return Ok(());
        };
        if !opened.identity.same(&found.identity) {
            let entry = current(path, &found.entry, &opened)?;
            let written = self.copy(path, entry, &opened, None, notes)?;
            return self.settle(path, written.copy, notes);
        }
        let keeping = Keeping { found, print };
        let keeping = self.is_settled(found).then_some(&keeping);
        let entry = Entry { xattrs: attributes(path, &opened)?, ..found.entry.clone() };
        if let Some(known) = &known {
            self.expect(known, false)?;
        }
        let written = self.copy(path, entry, &opened, keeping, notes)?;
        let Written { copy, map, piece, digest } = written;
        if copy.held && keeping.is_some() {
            if known.is_some_and(|k| differ(&k.digest, &digest)) {
                notes.add(Note::SilentChange, &found.entry.path);
            }
            let lengths = vec![copy.end - copy.start];
            self.keep(&key, &Remembered { fingerprint: print, digest, lengths, prints: Vec::new(), map, piece });
        }
        self.settle(path, copy, notes)
    }

    /// A file that was small when the walk saw it. It stays within its group.
    pub(super) fn large_unknown(
        &mut self,
        path: &Path,
        found: &Found,
        notes: &mut Notes,
    ) -> Result<Outcome, SourceError> {
        let Some(opened) = content::open(path).map_err(|e| file_error("open", path, e))? else {
            notes.add(Note::Vanished, &found.entry.path);
            return Ok(Outcome::Gone);
        };
        let entry = current(path, &found.entry, &opened)?;
        let written = self.copy(path, entry, &opened, None, notes)?;
        self.settle(path, written.copy, notes)?;
        Ok(Outcome::Unstable)
    }

    /// Lists a copy that is as it should be; else writes the file once more.
    fn settle(&mut self, path: &Path, copy: Copy, notes: &mut Notes) -> Result<(), SourceError> {
        let mut last = copy;
        if !last.held
            && last.entry.size <= AGAIN
            && let Some(opened) = content::open(path).map_err(|e| file_error("open", path, e))?
        {
            let entry = current(path, &last.entry, &opened)?;
            last = self.again(path, entry, &opened)?;
        }
        if !last.held {
            notes.add(if last.short { Note::Shrunk } else { Note::Changed }, &last.entry.path);
        }
        self.list(&last.entry, last.start, last.end - last.start)?;
        Ok(())
    }

    /// Writes the file, in the place of the copy before.
    fn again(&mut self, path: &Path, entry: Entry, opened: &Opened) -> Result<Copy, SourceError> {
        let start = self.position();
        let map = content::sparse_map(opened);
        self.write(&frame::head(&entry, map.as_ref(), true))?;
        let segments = segments_of(&entry, map.as_ref());
        let whole = self.payload(path, opened, &segments, 0, data(&segments))?;
        self.pad()?;
        self.end_piece()?;
        self.copied(path, entry, opened, start, whole)
    }

    /// Writes the file, piece by piece.
    fn copy(
        &mut self,
        path: &Path,
        entry: Entry,
        opened: &Opened,
        keeping: Option<&Keeping<'_>>,
        notes: &mut Notes,
    ) -> Result<Written, SourceError> {
        let start = self.position();
        let map = content::sparse_map(opened);
        let segments = segments_of(&entry, map.as_ref());
        let total = data(&segments);
        self.write(&frame::head(&entry, map.as_ref(), false))?;
        let mut whole = self.stride(path, opened, &segments, 0)?;
        let (piece, digest) = self.end_piece()?;
        for index in 1..pieces(total) {
            let key = keeping.map(|k| self.memo_key(&k.found.entry.path, index)).unwrap_or_default();
            let known = keeping.and_then(|k| self.recall(&key, &k.print));
            if let Some(known) = &known {
                self.expect(known, false)?;
            }
            whole &= self.stride(path, opened, &segments, index)?;
            let (piece, digest) = self.end_piece()?;
            if let Some(Keeping { print, .. }) = keeping.filter(|_| whole) {
                if known.is_some_and(|k| differ(&k.digest, &digest)) {
                    notes.add(Note::SilentChange, &entry.path);
                }
                let fingerprint = *print;
                self.keep(&key, &Remembered::stride(fingerprint, digest, piece));
            }
        }
        let copy = self.copied(path, entry, opened, start, whole)?;
        Ok(Written { copy, map, piece, digest })
    }

    /// Writes one piece's share of the payload, and the padding behind the last one.
    fn stride(&mut self, path: &Path, opened: &Opened, segments: &[Segment], index: u64) -> Result<bool, SourceError> {
        let total = data(segments);
        let from = index * STRIDE;
        let to = total.min(from + STRIDE);
        let whole = self.payload(path, opened, segments, from, to)?;
        if to == total {
            self.pad()?;
        }
        Ok(whole)
    }

    fn copied(&self, path: &Path, entry: Entry, opened: &Opened, start: u64, whole: bool) -> Result<Copy, SourceError> {
        let held = whole && self.holds(path, opened)?;
        Ok(Copy { entry, start, end: self.position(), held, short: !whole })
    }

    fn holds(&self, path: &Path, opened: &Opened) -> Result<bool, SourceError> {
        let now = rustix::fs::fstat(&opened.file).map_err(|e| file_error("read", path, e))?;
        Ok(opened.identity.same(&Identity::of(&now)))
    }

    /// Takes over the pieces behind the first, which has been taken over. What the repository no longer holds is
    /// read, and must then be of the file that was remembered.
    fn rest(&mut self, path: &Path, found: &Found, known: &Remembered) -> Result<Copy, SourceError> {
        let start = self.position() - known.piece.length();
        let segments = segments_of(&found.entry, known.map.as_ref());
        let total = data(&segments);
        let mut opened: Option<Opened> = None;
        let (mut held, mut whole) = (true, true);
        for index in 1..pieces(total) {
            let key = self.memo_key(&found.entry.path, index);
            if let Some(known) = self.recall(&key, &known.fingerprint)
                && self.reuse(&known.piece)?
            {
                continue;
            }
            if opened.is_none() {
                opened = content::open(path).map_err(|e| file_error("open", path, e))?;
                held &= opened.as_ref().is_some_and(|o| o.identity.same(&found.identity));
            }
            match &opened {
                Some(opened) => {
                    whole &= self.stride(path, opened, &segments, index)?;
                    held &= self.holds(path, opened)?;
                }
                None => {
                    self.zeros(STRIDE.min(total - index * STRIDE))?;
                    self.pad()?;
                    whole = false;
                }
            }
            let (piece, digest) = self.end_piece()?;
            if held && whole {
                let fingerprint = known.fingerprint;
                self.keep(&key, &Remembered::stride(fingerprint, digest, piece));
            }
        }
        if self.position() - start != known.lengths[0] {
            return Err(SourceError::hint(
                format!("what is remembered of {} does not fit together", path.display()),
                "run the snapshot again with --force",
            ));
        }
        Ok(Copy { entry: found.entry.clone(), start, end: self.position(), held: held && whole, short: !whole })
    }

    /// Writes the payload from `from` to `to`; `false` when not all of it was there.
    fn payload(
        &mut self,
        path: &Path,
        opened: &Opened,
        segments: &[Segment],
        from: u64,
        to: u64,
    ) -> Result<bool, SourceError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(BUFFER, 0);
        let mut whole = true;
        let mut at = from;
        while at < to {
            self.check()?;
            let n = (to - at).min(BUFFER as u64) as usize;
            whole &= content::read_payload(&opened.file, segments, at, &mut buffer[..n])
                .map_err(|e| file_error("read", path, e))?;
            self.write(&buffer[..n])?;
            at += n as u64;
        }
        self.buffer = buffer;
        Ok(whole)
    }

    fn zeros(&mut self, mut n: u64) -> Result<(), SourceError> {
        let zeros = vec![0u8; BUFFER];
        while n > 0 {
            self.check()?;
            let now = n.min(BUFFER as u64);
            self.write(&zeros[..now as usize])?;
            n -= now;
        }
        Ok(())
    }
}

fn segments_of(entry: &Entry, map: Option<&SparseMap>) -> Vec<Segment> {
    debug_assert_eq!(entry.kind, Kind::File);
    map.map_or_else(|| vec![Segment { offset: 0, length: entry.size }], |m| m.segments.clone())
}

fn data(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| s.length).sum()
}

/// How many pieces a payload has; an empty one has one.
fn pieces(payload: u64) -> u64 {
    payload.div_ceil(STRIDE).max(1)
}
