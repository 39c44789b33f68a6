//! Frames of archives, fetched by ranges, opened and decoded: the one way to the plain bytes of chunks.
//!
//! What comes back is authentic (age) and whole (zstd), and no more: whoever takes a chunk out of it checks its id.
//!
//! Frames that lie close together are fetched in one piece ([`Frames::fetch`]). Where a piece cannot be had, or a frame
//! in it does not open, that frame is read by itself: what is damaged costs no more than it would alone.

use crate::base::ids::ObjectId;
use crate::pipeline::archive::{ArchiveReader, stored_range};
use crate::pipeline::crypt::Identities;
use crate::pipeline::segment::FrameDecoder;
use crate::pipeline::{PipelineError, limits};
use crate::repository::format::IndexArchive;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::StorageError;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Plain bytes of decoded frames that are kept for whoever comes back to them.
const KEPT_FRAMES: usize = 16 << 20;
/// Memory for a stored frame that is kept for the next one: an ordinary one fits.
const KEPT_MEMORY: usize = 2 << 20;
/// Archives whose file key is kept unwrapped.
const KEPT_ARCHIVES: usize = 64;
/// Stored bytes that are fetched in one piece at most, unless one frame is longer.
const PIECE: u32 = 4 << 20;
/// Bytes between two frames that are rather fetched in vain than left out by another request.
const GAP: u32 = 256 << 10;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Plain frames by archive and offset.
type FrameCache = Cache<(ObjectId, u32), Arc<Vec<u8>>>;

/// Where a frame lies in its archive's plaintext: offset and length.
pub type Place = (u32, u32);

/// Reads frames; several threads may ask at once.
pub struct Frames {
    repository: Arc<Repository>,
    identities: Arc<Identities>,
    archives: Mutex<Cache<ObjectId, Arc<ArchiveReader>>>,
    frames: Mutex<FrameCache>,
    /// Frames that a thread is reading alone: others who want them wait for it.
    reading: Mutex<HashSet<(ObjectId, u32)>>,
    read: Condvar,
    /// As many as threads have asked at once.
    tools: Mutex<Vec<Tools>>,
}

/// What a frame is opened and decoded with, and the next one as well: neither need be set up again.
struct Tools {
    decoder: FrameDecoder,
    memory: Vec<u8>,
}

/// A run of stored bytes of one archive.
pub struct Piece {
    start: u64,
    bytes: Vec<u8>,
}

impl Piece {
    fn part(&self, offset: u64, length: u64) -> Option<&[u8]> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.bytes.get(from..)?.get(..usize::try_from(length).ok()?)
    }
}

/// Puts frames together that are best fetched in one piece: ranges of `places`, which must be sorted.
pub fn together(places: &[Place]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let end = |(offset, length): Place| offset.saturating_add(length);
    // The end of what the last group has so far; a frame may lie within another only where an index lies.
    let mut reach: u32 = 0;
    for (at, place) in places.iter().enumerate() {
        match groups.last_mut() {
            Some(group)
                if place.0 <= reach.saturating_add(GAP)
                    && end(*place).saturating_sub(places[group.start].0) <= PIECE =>
            {
                group.end = at + 1;
                reach = reach.max(end(*place));
            }
            _ => {
                groups.push(at..at + 1);
                reach = end(*place);
            }
        }
    }
    groups
}

impl Frames {
    pub fn new(repository: Arc<Repository>, identities: Arc<Identities>) -> Self {
        Self {
            repository,
            identities,
            archives: Mutex::new(Cache::new(KEPT_ARCHIVES)),
            frames: Mutex::new(Cache::new(KEPT_FRAMES)),
            reading: Mutex::default(),
            read: Condvar::new(),
            tools: Mutex::default(),
        }
    }

    /// The plain bytes of the frame at `offset` of an archive's plaintext, `length` bytes long there.
    pub fn frame(&self, archive: &IndexArchive, offset: u32, length: u32) -> Result<Arc<Vec<u8>>, RepositoryError> {
        let at = (archive.id, offset);
        let mut reading = lock(&self.reading);
        loop {
            if let Some(frame) = self.kept(archive, offset) {
                return Ok(frame);
            }
            if reading.insert(at) {
                break;
            }
            reading = self.read.wait(reading).unwrap_or_else(PoisonError::into_inner);
        }
        drop(reading);
        let read = self.frame_behind(archive, (offset, length));
        lock(&self.reading).remove(&at);
        self.read.notify_all();
        read
    }

    fn frame_behind(&self, archive: &IndexArchive, place: Place) -> Result<Arc<Vec<u8>>, RepositoryError> {
        match self.open(archive, place, None) {
            Err(e) if e.is_integrity() && self.repository.look_behind(&layout::archive(archive.id))? => {
                self.open(archive, place, None)
            }
            other => other,
        }
    }

    /// A frame that is kept, and so need not be fetched.
    fn kept(&self, archive: &IndexArchive, offset: u32) -> Option<Arc<Vec<u8>>> {
        lock(&self.frames).get(&(archive.id, offset))
    }

    /// The stored bytes of those of the frames that are not kept, in one piece; `None` where there is nothing to be
    /// fetched, or the archive is damaged somewhere in it. The frames should lie close together; see [`together`].
    pub fn fetch(&self, archive: &IndexArchive, places: &[Place]) -> Result<Option<Piece>, RepositoryError> {
        let header = archive.header.len() as u64;
        let wanted = places.iter().filter(|place| self.kept(archive, place.0).is_none());
        let ranges = wanted.map(|place| stored_range(header, archive.length, *place).ok());
        let Some(ranges) = ranges.collect::<Option<Vec<_>>>() else { return Ok(None) };
        let start = ranges.iter().map(|range| range.0).min();
        let end = ranges.iter().map(|range| range.1).max();
        let (Some(start), Some(end)) = (start, end) else { return Ok(None) };
        let key = layout::archive(archive.id);
        match self.repository.storage().get_range(&key, start, end - start) {
            Ok(bytes) => Ok(Some(Piece { start, bytes })),
            Err(StorageError::Short { .. }) => Ok(None),
            Err(e) => match super::trust::as_damage(e, &key) {
                e if e.is_integrity() => Ok(None),
                // Asking for each frame would fail as this did.
                e => Err(e),
            },
        }
    }

    /// The same as [`Frames::frame`], from a piece that has been fetched. What the piece does not give is read by itself.
    pub fn frame_of(
        &self,
        piece: Option<&Piece>,
        archive: &IndexArchive,
        place: Place,
    ) -> Result<Arc<Vec<u8>>, RepositoryError> {
        if let Some(frame) = self.kept(archive, place.0) {
            return Ok(frame);
        }
        if let Some(piece) = piece
            && let Ok(frame) = self.open(archive, place, Some(piece))
        {
            return Ok(frame);
        }
        self.frame(archive, place.0, place.1)
    }

    fn open(
        &self,
        archive: &IndexArchive,
        (offset, length): Place,
        piece: Option<&Piece>,
    ) -> Result<Arc<Vec<u8>>, RepositoryError> {
        let key = layout::archive(archive.id);
        let damaged = |source: PipelineError| RepositoryError::unopened(key.clone(), source);
        let reader = lock(&self.archives).get(&archive.id);
        let reader = match reader {
            Some(reader) => reader,
            None => {
                let reader = ArchiveReader::open(&archive.header, archive.length, &self.identities).map_err(damaged)?;
                let reader = Arc::new(reader);
                lock(&self.archives).put(archive.id, reader.clone(), 1);
                reader
            }
        };
        let storage_failure = Mutex::new(None);
        let fetch = |offset, length| {
            if let Some(piece) = piece {
                return piece
                    .part(offset, length)
                    .map(Cow::Borrowed)
                    .ok_or_else(|| io::Error::other("the piece does not hold it"));
            }
            self.repository.storage().get_range(&key, offset, length).map(Cow::Owned).map_err(|e| {
                let text = io::Error::other(e.to_string());
                *lock(&storage_failure) = Some(e);
                text
            })
        };
        let kept = lock(&self.tools).pop();
        let mut tools = match kept {
            Some(tools) => tools,
            None => Tools { decoder: FrameDecoder::new().map_err(damaged)?, memory: Vec::new() },
        };
        let compressed = reader.frame(offset, length, &fetch, &mut tools.memory).map_err(|source| {
            match lock(&storage_failure).take() {
                Some(StorageError::Short { key, .. }) => {
                    RepositoryError::Damaged { key, problem: "it is shorter than it was".to_owned() }
                }
                Some(e) => super::trust::as_damage(e, &key),
                None => damaged(source),
            }
        })?;
        let plain = tools.decoder.decode(compressed, limits::FRAME).map_err(damaged)?;
        if tools.memory.capacity() > KEPT_MEMORY {
            tools.memory = Vec::new();
        }
        lock(&self.tools).push(tools);
        let plain = Arc::new(plain);
        lock(&self.frames).put((archive.id, offset), plain.clone(), plain.len());
        Ok(plain)
    }
}

/// A small cache that forgets what has not been asked for the longest.
struct Cache<K, V> {
    limit: usize,
    held: usize,
    order: VecDeque<(K, usize)>,
    map: HashMap<K, V>,
}

impl<K: std::hash::Hash + Eq + Copy, V: Clone> Cache<K, V> {
    fn new(limit: usize) -> Self {
        Self { limit, held: 0, order: VecDeque::new(), map: HashMap::new() }
    }

    fn get(&mut self, key: &K) -> Option<V> {
        let value = self.map.get(key).cloned()?;
        // A few dozen entries: looking through them costs nothing beside what they save.
        if let Some(at) = self.order.iter().rposition(|(known, _)| known == key)
            && let Some(entry) = self.order.remove(at)
        {
            self.order.push_back(entry);
        }
        Some(value)
    }

    fn put(&mut self, key: K, value: V, weight: usize) {
        if self.map.insert(key, value).is_none() {
            self.order.push_back((key, weight));
            self.held += weight;
        }
        while self.held > self.limit {
            let Some((oldest, weight)) = self.order.pop_front() else { break };
            self.map.remove(&oldest);
            self.held -= weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_fetched_together_and_what_lies_far_off_is_not() {
        let mib = 1 << 20;
        let groups = |places: &[Place]| -> Vec<(usize, usize)> {
            together(places).into_iter().map(|group| (group.start, group.end)).collect()
        };
        assert!(together(&[]).is_empty());
        assert_eq!(groups(&[(0, mib), (mib, mib), (2 * mib, mib)]), [(0, 3)]);
        assert_eq!(groups(&[(0, 100), (100 + GAP, 100)]), [(0, 2)], "a small gap");
        assert_eq!(groups(&[(0, 100), (101 + GAP, 100)]), [(0, 1), (1, 2)], "a large one");
        assert_eq!(groups(&[(0, PIECE), (PIECE, 1)]), [(0, 1), (1, 2)], "no piece is longer");
        assert_eq!(groups(&[(0, 2 * PIECE), (5, 1), (2 * PIECE, 1)]), [(0, 2), (2, 3)], "unless one frame is");
        assert_eq!(groups(&[(0, 1000), (10, 5), (1000, 5)]), [(0, 3)], "an index that lies");
        assert_eq!(groups(&[(u32::MAX, u32::MAX)]), [(0, 1)]);
    }

    #[test]
    fn what_is_asked_for_again_is_kept() {
        let mut cache = Cache::new(3);
        for key in [1, 2, 3] {
            cache.put(key, key, 1);
        }
        assert_eq!(cache.get(&1), Some(1));
        cache.put(4, 4, 1);
        assert_eq!((cache.get(&1), cache.get(&2), cache.get(&4)), (Some(1), None, Some(4)));
    }
}
