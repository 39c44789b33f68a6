//! The two streams of a tree: `files.tar`, deterministic, and `files.listing`, one line per entry.
//!
//! Entries are written in groups. A group ends where the hash of a path says so, so that a file that comes or goes
//! moves only its own group; files of a MiB and more stand alone, cut into pieces of a fixed length. Each group is a
//! piece of the stream with chunk boundaries at both ends. What is remembered of it from the last run (see
//! [`super::memo`]) stands in for its bytes when no metadata has changed.
//!
//! Within a group, chunks end where entries do (see [`ends_chunk`]), so that what is as it was in a group that has changed
//! can be taken over too: see [`super::parts`].
//!
//! Never remembered: a file whose times lie within [`SETTLE`] seconds of this run's begin, or later (it may change
//! again without its times telling), and one that changed while it was read. One group in [`DAYS`] is read again by
//! each day's first run, another one each day, so that every byte is read again within so many days.

use super::entry::{Entry, Kind, Time};
use super::frame::{self, END_OF_ARCHIVE};
use super::memo::{self, Remembered};
use super::notes::Notes;
use super::plan::Plan;
use super::walk::{Found, real_of};
use crate::base::ids::SourceName;
use crate::base::stream::StreamKind;
use crate::base::units::human_duration;
use crate::sources::{Capture, Piece, SourceError, StreamSink};
use chrono::{DateTime, Utc};
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The streams' names.
pub const TAR: &str = "files.tar";
pub const LISTING: &str = "files.listing";

/// From this size on a file is a group of its own and is not held in memory.
pub const LARGE: u64 = 1 << 20;
/// A group takes about this many bytes, each entry counting [`ENTRY_WEIGHT`] on top of its content: re-reading one
/// group costs milliseconds, and remembering one costs a hundredth of its size.
const GROUP: u64 = 1 << 20;
const ENTRY_WEIGHT: u64 = 4096;
/// In a group, chunks end where entries do, about as often as this: a file that changes then takes few others with it.
const CHUNK: u64 = 4 << 10;
/// Part of what tells how a group is cut: ways of cutting are even.
const AT_ENTRIES: u32 = 1;
/// A group never has more entries than this, nor more than eight times its usual weight.
const GROUP_ENTRIES: usize = 1024;
/// Seconds; the coarsest file systems keep times to two of them.
const SETTLE: i64 = 2;
const DAYS: u64 = 30;
/// Bytes of a large file that are read at once.
pub(super) const BUFFER: usize = 2 << 20;
/// Bytes that are gathered for the sink: several chunks, or the sink would have to put them together again.
const OUT: usize = 1 << 20;
/// Bytes of the listing that are.
const LINES: usize = 256 << 10;

/// Sees the content of every small file that is read.
pub type Observer<'o> = &'o mut dyn FnMut(&Entry, &[u8]);

/// What a capture of a tree came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub entries: u64,
    /// Bytes of content, holes included.
    pub bytes: u64,
    /// Bytes of the tar that were taken over from an earlier run without being read.
    pub reused: u64,
}

/// Writes the streams of one source.
pub struct TreeStream<'a> {
    pub(super) cx: &'a Capture<'a>,
    begun: Instant,
    limit: Duration,
    tar: Box<dyn StreamSink + 'a>,
    listing: Box<dyn StreamSink + 'a>,
    /// Bytes of the tar that are not in the sink yet.
    out: Vec<u8>,
    lines: Vec<u8>,
    /// What a file's content is read into.
    pub(super) buffer: Vec<u8>,
    position: u64,
    group: Vec<Found>,
    weight: u64,
    /// Names of hard links that could not be read any more, and the name that holds their content now.
    pub(super) gone: HashMap<Vec<u8>, Option<Vec<u8>>>,
    remember: bool,
    key: String,
    turns: Turns,
    totals: Totals,
    /// Folders above trees that Docker reads, which stand in the tar already.
    parents: HashSet<Vec<u8>>,
}

/// Whose turn it is to be read again: the last run's day, and this one's.
#[derive(Debug, Clone, Copy)]
struct Turns {
    first: u64,
    today: u64,
}

impl Turns {
    /// After a run on the day `last`. A clock that was set back takes a day's share away, and no more.
    fn since(last: Option<u64>, now: DateTime<Utc>) -> Self {
        let today = now.timestamp().max(0) as u64 / (24 * 3600);
        let first = last.filter(|last| *last <= today).map_or(today, |last| last + 1);
        Self { first, today }
    }

    /// Whether one of the days since then is the group's.
    fn take(&self, group: u64) -> bool {
        let days = (self.today + 1).saturating_sub(self.first);
        (group % DAYS + DAYS - self.first % DAYS) % DAYS < days
    }
}

/// What writing a file came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was the file that the walk saw, and it held still.
    Stable,
    /// Written, but not to be remembered.
    Unstable,
    /// Nothing was written.
    Gone,
}

impl<'a> TreeStream<'a> {
    /// Begins both streams. Without `remember` everything is read and nothing is remembered: for small trees whose
    /// content must be seen. `limit` is the longest that it may take.
    pub fn begin(
        cx: &'a Capture<'a>,
        source: &SourceName,
        limit: Duration,
        remember: bool,
    ) -> Result<Self, SourceError> {
        let key = format!("files/{source}/{}/{}", cx.memo_key.dedup, cx.memo_key.recipients);
        let number = |what: &str| {
            let bytes = cx.memo.get(&format!("{key}/{what}"))?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let turns = Turns::since(number("day"), cx.now);
        let length = number("length");
        let tar = cx.sink.stream(TAR.parse()?, StreamKind::Tar, length).map_err(|e| sink_error(cx, e))?;
        let listing = cx.sink.stream(LISTING.parse()?, StreamKind::Listing, None).map_err(|e| sink_error(cx, e))?;
        Ok(TreeStream {
            cx,
            begun: Instant::now(),
            limit,
            tar,
            listing,
            out: Vec::with_capacity(OUT),
            lines: Vec::with_capacity(LINES),
            buffer: Vec::new(),
            position: 0,
            group: Vec::new(),
            weight: 0,
            gone: HashMap::new(),
            remember,
            key,
            turns,
            totals: Totals::default(),
            parents: HashSet::new(),
        })
    }

    /// An error once the run is cancelled or has taken too long.
    pub(super) fn check(&self) -> Result<(), SourceError> {
        self.cx.cancel.check()?;
        if self.begun.elapsed() > self.limit {
            return Err(SourceError::hint(
                format!("reading took longer than {}", human_duration(self.limit)),
                "give the source a longer timeout, or leave out what is not needed",
            ));
        }
        Ok(())
    }

    /// Takes the next entry of a walk over `plan`.
    pub fn push(
        &mut self,
        plan: &Plan,
        found: Found,
        notes: &mut Notes,
        observer: Observer<'_>,
    ) -> Result<(), SourceError> {
        if found.entry.kind == Kind::File && found.entry.size >= LARGE {
            self.flush(plan, notes, observer)?;
            return self.large(&real_of(plan, &found.entry.path), &found, notes);
        }
        let weight = weigh(&found.entry);
        self.weight += weight;
        let ends =
            ends_group(&found.entry.path, weight) || self.group.len() + 1 >= GROUP_ENTRIES || self.weight >= 8 * GROUP;
        self.group.push(found);
        if ends { self.flush(plan, notes, observer) } else { Ok(()) }
    }

    /// Ends the group that is being collected. Must be called at the end of each walk.
    pub fn flush(&mut self, plan: &Plan, notes: &mut Notes, observer: Observer<'_>) -> Result<(), SourceError> {
        self.check()?;
        self.weight = 0;
        let mut group = std::mem::take(&mut self.group);
        if !group.is_empty() {
            self.small_group(plan, &group, notes, observer)?;
        }
        group.clear();
        self.group = group;
        Ok(())
    }

    /// Ends both streams. Leaving it out means that they do not become part of the snapshot.
    pub fn finish(mut self) -> Result<Totals, SourceError> {
        debug_assert!(self.group.is_empty(), "flush comes before finish");
        self.write(&END_OF_ARCHIVE)?;
        self.end_piece()?;
        self.flush_lines()?;
        if self.remember {
            self.cx.memo.put(&format!("{}/day", self.key), &self.turns.today.to_le_bytes());
        }
        self.cx.memo.put(&format!("{}/length", self.key), &self.position.to_le_bytes());
        let TreeStream { cx, tar, listing, totals, .. } = self;
        tar.finish().map_err(|e| sink_error(cx, e))?;
        listing.finish().map_err(|e| sink_error(cx, e))?;
        Ok(totals)
    }

    /// What has been written so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Whether a folder above a tree is not in the tar yet; from now on it is.
    pub(super) fn needs_parent(&mut self, dir: &[u8]) -> bool {
        self.parents.insert(dir.to_vec())
    }

    /// Bytes of the tar so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        self.position += bytes.len() as u64;
        if self.out.len() + bytes.len() > OUT {
            self.flush_out()?;
        }
        if bytes.len() >= OUT {
            return self.tar.write_all(bytes).map_err(|e| sink_error(self.cx, e));
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    /// Zeros up to the next block.
    pub(super) fn pad(&mut self) -> Result<(), SourceError> {
        let n = frame::padding(self.position) as usize;
        self.write(&[0u8; frame::BLOCK as usize][..n])
    }

    fn flush_out(&mut self) -> Result<(), SourceError> {
        self.tar.write_all(&self.out).map_err(|e| sink_error(self.cx, e))?;
        self.out.clear();
        Ok(())
    }

    fn flush_lines(&mut self) -> Result<(), SourceError> {
        self.listing.write_all(&self.lines).map_err(|e| sink_error(self.cx, e))?;
        self.lines.clear();
        Ok(())
    }

    /// Puts an entry that takes `[start, start + length)` of the tar into the listing, and counts it.
    pub(super) fn list(&mut self, entry: &Entry, start: u64, length: u64) -> Result<(), SourceError> {
        self.totals.entries += 1;
        self.totals.bytes += entry.size;
        if let Some(line) = entry.listing(start, length) {
            serde_json::to_writer(&mut self.lines, &line).map_err(|e| SourceError::problem(format!("listing: {e}")))?;
            self.lines.push(b'\n');
        }
        if self.lines.len() >= LINES {
            self.flush_lines()?;
        }
        Ok(())
    }

    /// Ends a piece: its chunks, and what tells its bytes.
    pub(super) fn end_piece(&mut self) -> Result<(Piece, [u8; 32]), SourceError> {
        self.end_with(self.tar.cut())
    }

    /// The same for a piece in which [`TreeStream::end_entry`] was told of every entry.
    pub(super) fn end_group(&mut self) -> Result<(Piece, [u8; 32]), SourceError> {
        self.end_with(self.tar.cut() | AT_ENTRIES)
    }

    fn end_with(&mut self, cut: u32) -> Result<(Piece, [u8; 32]), SourceError> {
        self.flush_out()?;
        let piece = self.tar.end_piece().map_err(|e| sink_error(self.cx, e))?;
        let digest = memo::digest(cut, &piece);
        Ok((piece, digest))
    }

    /// Whether a group that is remembered was cut as it would be now.
    pub(super) fn is_cut_so(&self, known: &Remembered) -> bool {
        known.is_cut(self.tar.cut() | AT_ENTRIES)
    }

    /// The piece that begins is read although it is remembered: its chunks are known already, unless it has changed.
    pub(super) fn expect(&mut self, known: &Remembered, at_entries: bool) -> Result<(), SourceError> {
        self.flush_out()?;
        let cut = self.tar.cut() | if at_entries { AT_ENTRIES } else { 0 };
        if known.is_cut(cut) {
            self.tar.expect(&known.piece);
        }
        Ok(())
    }

    /// Ends a chunk behind an entry that does so; whether it did.
    pub(super) fn end_entry(&mut self, path: &[u8], length: u64) -> Result<bool, SourceError> {
        let ends = ends_chunk(path, length);
        if ends {
            self.flush_out()?;
            self.tar.end_chunk().map_err(|e| sink_error(self.cx, e))?;
        }
        Ok(ends)
    }

    /// Takes over a piece; `false` when the repository does not hold it any more.
    pub(super) fn reuse(&mut self, piece: &Piece) -> Result<bool, SourceError> {
        self.flush_out()?;
        let reused = self.tar.reuse_piece(piece).map_err(|e| sink_error(self.cx, e))?;
        Ok(self.took(piece, reused))
    }

    /// Takes over a part of a piece, at the end of a chunk.
    pub(super) fn reuse_part(&mut self, part: &Piece) -> Result<bool, SourceError> {
        self.flush_out()?;
        let reused = self.tar.reuse_part(part).map_err(|e| sink_error(self.cx, e))?;
        Ok(self.took(part, reused))
    }

    fn took(&mut self, piece: &Piece, reused: bool) -> bool {
        if reused {
            self.position += piece.length();
            self.totals.reused += piece.length();
        }
        reused
    }

    pub(super) fn memo_key(&self, first: &[u8], index: u64) -> String {
        let hash = blake3::Hasher::new().update(first).update(&index.to_le_bytes()).finalize();
        format!("{}/{}", self.key, hash.to_hex())
    }

    /// What is remembered under `key`, if it is of the very same metadata.
    pub(super) fn recall(&self, key: &str, print: &[u8; 32]) -> Option<Remembered> {
        self.recall_any(key).filter(|r| r.fingerprint == *print)
    }

    /// What is remembered under `key`, of whatever metadata.
    pub(super) fn recall_any(&self, key: &str) -> Option<Remembered> {
        if !self.remember {
            return None;
        }
        Remembered::decode(&self.cx.memo.get(key)?)
    }

    pub(super) fn keep(&self, key: &str, remembered: &Remembered) {
        if self.remember {
            self.cx.memo.put(key, &remembered.encode());
        }
    }

    /// Whether a group must be read in this run although nothing has changed.
    pub(super) fn is_due(&self, key: &str) -> bool {
        self.cx.force || self.turns.take(hash64(key.as_bytes()))
    }

    /// Whether a file's times are old enough that a later change would show in them.
    pub(super) fn is_settled(&self, found: &Found) -> bool {
        let limit = Time { seconds: self.cx.now.timestamp() - SETTLE, nanos: 0 };
        found.entry.kind != Kind::File || (found.identity.mtime < limit && found.identity.ctime < limit)
    }
}

fn sink_error(cx: &Capture<'_>, e: io::Error) -> SourceError {
    match cx.cancel.check() {
        Err(cancelled) => cancelled.into(),
        Ok(()) => SourceError::Sink(e),
    }
}

pub(super) fn file_error(action: &'static str, path: &Path, e: impl Into<io::Error>) -> SourceError {
    SourceError::File { action, path: PathBuf::from(path), source: e.into() }
}

/// What an entry counts in its group.
pub(super) fn weigh(entry: &Entry) -> u64 {
    ENTRY_WEIGHT + entry.size
}

/// Whether a group ends behind this entry: as likely as the entry is heavy.
pub(super) fn ends_group(path: &[u8], weight: u64) -> bool {
    hash64(path) % GROUP < weight
}

/// Whether a chunk ends behind an entry that takes `length` bytes of the tar: as likely as it is long.
pub(super) fn ends_chunk(path: &[u8], length: u64) -> bool {
    (hash64(path) >> 32) % CHUNK < length
}

/// Spreads paths evenly; nobody gains by choosing where groups end.
pub(in crate::sources) fn hash64(bytes: &[u8]) -> u64 {
    let mix = |h: u64| (h ^ (h >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut hash = bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = mix(hash ^ u64::from_le_bytes(word));
    }
    mix(mix(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_day_has_its_groups_and_each_group_its_day() {
        let day = |n: i64| DateTime::from_timestamp(n * 24 * 3600 + 5, 0).unwrap();
        let due = |last: Option<u64>, today: i64| -> Vec<u64> {
            let turns = Turns::since(last, day(today));
            (0..DAYS).filter(|group| turns.take(*group)).collect()
        };
        // The largest numbers are no others.
        assert!((0..DAYS).filter(|n| Turns::since(None, day(20_000)).take(u64::MAX - n)).count() == 1);
        let mut all: Vec<u64> = (20_001..20_031).flat_map(|today| due(Some(today as u64 - 1), today)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..DAYS).collect::<Vec<_>>(), "each in thirty days, once");
        assert!(due(Some(20_000), 20_000).is_empty(), "the day has had its run");
        // Days without a run are made up for; a clock that was set back costs one share.
        assert_eq!((due(Some(19_990), 20_000).len(), due(Some(19_000), 20_000).len()), (10, 30));
        assert_eq!((due(Some(20_005), 20_000).len(), due(None, 20_000).len()), (1, 1));
        assert_eq!(due(Some(0), -5).len(), 0);
    }
}
