//! Frames of archives, fetched by ranges, opened and decoded: the one way to the plain bytes of chunks.
//!
//! What comes back is authentic (age) and whole (zstd), and no more: whoever takes a chunk out of it checks its id.

use crate::base::ids::ObjectId;
use crate::pipeline::archive::ArchiveReader;
use crate::pipeline::crypt::Identities;
use crate::pipeline::segment::FrameDecoder;
use crate::pipeline::{PipelineError, limits};
use crate::repository::format::IndexArchive;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::StorageError;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Plain bytes of decoded frames that are kept for whoever comes back to them.
const KEPT_FRAMES: usize = 32 << 20;
/// Archives whose file key is kept unwrapped.
const KEPT_ARCHIVES: usize = 64;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Readers of one archive.
type Idle = Arc<Mutex<Vec<ArchiveReader>>>;
/// Plain frames by archive and offset.
type FrameCache = Cache<(ObjectId, u32), Arc<Vec<u8>>>;

/// Reads frames; several threads may ask at once.
pub struct Frames {
    repository: Arc<Repository>,
    identities: Arc<Identities>,
    /// Readers that nobody uses now: several threads may read frames of one archive at once, each by its own.
    archives: Mutex<Cache<ObjectId, Idle>>,
    frames: Mutex<FrameCache>,
}

impl Frames {
    pub fn new(repository: Arc<Repository>, identities: Arc<Identities>) -> Self {
        let (archives, frames) = (Mutex::new(Cache::new(KEPT_ARCHIVES)), Mutex::new(Cache::new(KEPT_FRAMES)));
        Self { repository, identities, archives, frames }
    }

    /// The plain bytes of the frame at `offset` of an archive's plaintext, `length` bytes long there.
    pub fn frame(&self, archive: &IndexArchive, offset: u32, length: u32) -> Result<Arc<Vec<u8>>, RepositoryError> {
        match self.frame_as_it_is(archive, offset, length) {
            Err(e) if e.is_integrity() && self.repository.look_behind(&layout::archive(archive.id))? => {
                self.frame_as_it_is(archive, offset, length)
            }
            other => other,
        }
    }

    fn frame_as_it_is(
        &self,
        archive: &IndexArchive,
        offset: u32,
        length: u32,
    ) -> Result<Arc<Vec<u8>>, RepositoryError> {
        let at = (archive.id, offset);
        if let Some(frame) = lock(&self.frames).get(&at) {
            return Ok(frame);
        }
        let key = layout::archive(archive.id);
        let damaged = |source: PipelineError| match source {
            PipelineError::NoMatchingIdentity => RepositoryError::Pipeline(source),
            source => RepositoryError::DamagedBy { key: key.clone(), source },
        };
        let idle = {
            let mut archives = lock(&self.archives);
            archives.get(&archive.id).unwrap_or_else(|| {
                let idle = Idle::default();
                archives.put(archive.id, idle.clone(), 1);
                idle
            })
        };
        let reader = lock(&idle).pop();
        let mut reader = match reader {
            Some(reader) => reader,
            None => ArchiveReader::open(&archive.header, archive.length, &self.identities).map_err(damaged)?,
        };
        let storage_failure = Mutex::new(None);
        let fetch = |offset, length| {
            self.repository.storage().get_range(&key, offset, length).map_err(|e| {
                let text = io::Error::other(e.to_string());
                *lock(&storage_failure) = Some(e);
                text
            })
        };
        // A reader that fails in the middle may not stand where it thinks it does: it is not used again.
        let compressed =
            reader.frame(offset, length, &fetch).map_err(|source| match lock(&storage_failure).take() {
                Some(StorageError::Short { key, .. }) => {
                    RepositoryError::Damaged { key, problem: "it is shorter than it was".to_owned() }
                }
                Some(e) => super::trust::as_damage(e, &key),
                None => damaged(source),
            })?;
        lock(&idle).push(reader);
        let plain =
            FrameDecoder::new().and_then(|mut decoder| decoder.decode(&compressed, limits::FRAME)).map_err(damaged)?;
        let plain = Arc::new(plain);
        lock(&self.frames).put(at, plain.clone(), plain.len());
        Ok(plain)
    }
}

/// A small cache that forgets what was put in first.
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

    fn get(&self, key: &K) -> Option<V> {
        self.map.get(key).cloned()
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
