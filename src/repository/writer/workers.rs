//! The workers: segments in through a bounded channel, archives and index objects out.
//!
//! Whoever fills an archive up hands it to an uploader and goes on compressing: a storage that takes its time costs no
//! core its work. Memory is bounded: an uploader takes an archive only when it has stored the one before.

use super::known::FromIndex;
use super::lock;
use super::snapshot::WriterOptions;
use crate::base::direct::Aligned;
use crate::base::ids::{ChunkId, ObjectId};
use crate::pipeline::archive::{ArchiveWriter, SealedArchive};
use crate::pipeline::chunk::ChunkIdKey;
use crate::pipeline::crypt::Recipients;
use crate::pipeline::limits;
use crate::pipeline::segment::{FrameEncoder, Segment};
use crate::repository::format::{IndexArchive, IndexChunk, Notes, StreamNote};
use crate::repository::index::{self, IndexDraft};
use crate::repository::state::State;
use crate::repository::table::ChunkTable;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::Hashed;
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An index object is written at least this often, so that a killed first upload resumes.
const INDEX_EVERY_BYTES: u64 = 1 << 30;
const INDEX_EVERY: Duration = Duration::from_secs(600);
/// Room for an archive. What is not written to costs nothing; and what is larger than 32 MiB the allocator gives back to the
/// system at once, where it would keep what is smaller, in pieces that fit nothing else.
const ARCHIVE_MEMORY: usize = 33 << 20;
/// Archives on their way into storage at once: far away, and on this machine, where a disk takes them one by one anyway.
pub(super) const UPLOADS: usize = 3;
pub(super) const UPLOADS_NEAR: usize = 2;

/// What the stream threads and the workers share.
pub(super) struct Shared {
    pub repository: Arc<Repository>,
    pub options: WriterOptions,
    pub index_recipients: Recipients,
    pub key: ChunkIdKey,
    pub table: Mutex<ChunkTable>,
    /// Chunks in segments or archives that are not stored yet.
    pub pending: Mutex<HashSet<ChunkId>>,
    /// Small ends of streams, gathered into common segments.
    pub tail: Mutex<Segment>,
    /// Archives that are being filled.
    pub open: Mutex<Open>,
    /// An archive has been given back.
    pub given_back: Condvar,
    pub spare: Spare,
    pub written: Mutex<Written>,
    pub failed: AtomicBool,
    pub failure: Mutex<Option<RepositoryError>>,
    pub new_bytes: AtomicU64,
    /// Locked, as the table is, until that is filled.
    pub from_index: Mutex<FromIndex>,
    pub state: Arc<State>,
}

/// Archives that are being filled, each by one worker at a time. The first one is filled alone, so that a run that stores
/// little stores one object.
#[derive(Default)]
pub(super) struct Open {
    idle: Vec<ArchiveWriter>,
    busy: usize,
}

/// A worker that fills an archive, until it has given that back, or failed, or broken: then nobody waits for it.
struct Busy<'a>(&'a Shared);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::SeqCst);
        }
        lock(&self.0.open).busy -= 1;
        self.0.given_back.notify_all();
    }
}

/// Memory to be used again: fresh memory costs a page fault for every four KiB.
#[derive(Default)]
pub(super) struct Spare {
    segments: Mutex<Vec<Segment>>,
    archives: Mutex<Vec<Aligned>>,
}

impl Spare {
    /// So many archives' memory is kept.
    const ARCHIVES: usize = 1;

    /// An empty segment.
    pub fn segment(&self) -> Segment {
        lock(&self.segments).pop().unwrap_or_default()
    }

    fn take_segment(&self, mut segment: Segment) {
        segment.clear();
        lock(&self.segments).push(segment);
    }

    fn take_archive(&self, bytes: Bytes) {
        if let Ok(mut bytes) = bytes.try_into_mut() {
            bytes.clear();
            let mut archives = lock(&self.archives);
            if archives.len() < Self::ARCHIVES {
                archives.push(Aligned::within(bytes.into()));
            }
        }
    }
}

/// What this run has stored.
pub(super) struct Written {
    pub draft: IndexDraft,
    pub draft_bytes: u64,
    pub draft_since: Instant,
    pub archives: BTreeMap<ObjectId, u64>,
    pub index: BTreeMap<ObjectId, u64>,
}

impl Shared {
    /// A worker: segments in, archives out.
    pub(super) fn work(&self, segments: &Mutex<Receiver<Segment>>, archives: &SyncSender<SealedArchive>) {
        if let Err(error) = self.fill_archives(segments, archives) {
            self.fail(error);
            // Taking what is left keeps the stream threads from blocking on a full channel.
            while lock(segments).recv().is_ok() {}
        }
    }

    /// An uploader. After a failure it takes what is left, so that no worker blocks on a full channel.
    pub(super) fn upload(&self, archives: &Mutex<Receiver<SealedArchive>>) {
        loop {
            let archive = lock(archives).recv();
            let Ok(archive) = archive else { return };
            if self.failed.load(Ordering::SeqCst) {
                continue;
            }
            let stored = self.options.cancel.check().map_err(RepositoryError::from).and_then(|()| self.store(archive));
            if let Err(error) = stored {
                self.fail(error);
            }
        }
    }

    pub(super) fn fail(&self, error: RepositoryError) {
        self.failed.store(true, Ordering::SeqCst);
        lock(&self.failure).get_or_insert(error);
    }

    fn fill_archives(
        &self,
        segments: &Mutex<Receiver<Segment>>,
        archives: &SyncSender<SealedArchive>,
    ) -> Result<(), RepositoryError> {
        let mut encoder = FrameEncoder::new(self.options.compression)?;
        loop {
            let segment = lock(segments).recv();
            let Ok(segment) = segment else { return Ok(()) };
            if self.failed.load(Ordering::SeqCst) {
                continue;
            }
            self.options.cancel.check()?;
            let full = self.append(&segment, &encoder.encode_segment(&segment)?)?;
            self.spare.take_segment(segment);
            if let Some(full) = full {
                archives.send(full.finish(&mut encoder)?).map_err(|_| RepositoryError::Worker)?;
            }
        }
    }

    /// Adds a frame to an open archive; gives that back once it is full.
    fn append(&self, segment: &Segment, frame: &[&[u8]]) -> Result<Option<ArchiveWriter>, RepositoryError> {
        let (mut archive, _busy) = self.take_open()?;
        archive.push(segment, frame)?;
        if archive.is_full() {
            return Ok(Some(archive));
        }
        lock(&self.open).idle.push(archive);
        Ok(None)
    }

    /// The fullest archive that nobody fills, or a new one.
    fn take_open(&self) -> Result<(ArchiveWriter, Busy<'_>), RepositoryError> {
        let mut open = lock(&self.open);
        loop {
            let fullest = (0..open.idle.len()).max_by_key(|at| open.idle[*at].position());
            if let Some(at) = fullest {
                open.busy += 1;
                return Ok((open.idle.swap_remove(at), Busy(self)));
            }
            if open.busy == 0 || self.new_bytes.load(Ordering::SeqCst) > 0 || self.failed.load(Ordering::SeqCst) {
                open.busy += 1;
                break;
            }
            open = self.given_back.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
        drop(open);
        let busy = Busy(self);
        let memory = lock(&self.spare.archives).pop().unwrap_or_else(|| Aligned::with_capacity(ARCHIVE_MEMORY));
        Ok((ArchiveWriter::within(&self.options.recipients, memory)?, busy))
    }

    /// Stores what the workers left in open archives.
    pub(super) fn store_open(&self) -> Result<(), RepositoryError> {
        let open = std::mem::take(&mut lock(&self.open).idle);
        let mut encoder = FrameEncoder::new(self.options.compression)?;
        open.into_iter().try_for_each(|archive| self.store(archive.finish(&mut encoder)?))
    }

    /// Stores an archive; only then are its chunks known.
    fn store(&self, mut sealed: SealedArchive) -> Result<(), RepositoryError> {
        let length = sealed.bytes().len() as u64;
        let object = Hashed { bytes: sealed.take_bytes().into(), sha256: sealed.id().0 };
        self.repository.storage().put_hashed(&layout::archive(sealed.id()), &object)?;
        self.spare.take_archive(object.bytes);
        self.new_bytes.fetch_add(length, Ordering::SeqCst);
        let archive = IndexArchive {
            id: sealed.id(),
            length,
            header: sealed.header().to_vec(),
            recipients: self.options.recipients.set_id(),
        };
        let mut written = lock(&self.written);
        written.archives.insert(archive.id, length);
        let chunks = sealed.frames().iter().map(|f| f.chunks.len()).sum::<usize>();
        if written.draft.chunks.len() + chunks > limits::INDEX_ENTRIES {
            self.flush_draft(&mut written, Notes::default())?;
        }
        let position = written.draft.archives.len() as u32;
        written.draft.archives.push(archive.clone());
        {
            let (mut table, mut pending) = (lock(&self.table), lock(&self.pending));
            let at = table.archive(&archive);
            for frame in sealed.frames() {
                for chunk in &frame.chunks {
                    let entry = IndexChunk(chunk.id, position, frame.offset, frame.length, chunk.offset, chunk.length);
                    // u32::MAX: of this run; its index objects are all in the refs anyway.
                    table.insert(&entry, at, u32::MAX).map_err(|source| RepositoryError::File {
                        action: "write the chunk table in",
                        path: self.state.dir().to_owned(),
                        source,
                    })?;
                    pending.remove(&chunk.id);
                    written.draft.chunks.push(entry);
                }
            }
        }
        written.draft_bytes += length;
        if written.draft_bytes >= INDEX_EVERY_BYTES || written.draft_since.elapsed() >= INDEX_EVERY {
            self.flush_draft(&mut written, Notes::default())?;
        }
        Ok(())
    }

    pub(super) fn flush_index(&self, streams: Vec<StreamNote>) -> Result<(), RepositoryError> {
        self.flush_draft(&mut lock(&self.written), Notes { streams })
    }

    fn flush_draft(&self, written: &mut Written, notes: Notes) -> Result<(), RepositoryError> {
        let draft = std::mem::take(&mut written.draft);
        written.draft_bytes = 0;
        written.draft_since = Instant::now();
        if draft.is_empty() { Ok(()) } else { self.put_index(draft, notes, written) }
    }

    pub(super) fn put_index(
        &self,
        draft: IndexDraft,
        notes: Notes,
        written: &mut Written,
    ) -> Result<(), RepositoryError> {
        let object = draft.finish(self.key.dedup_id(), notes);
        let sealed = index::seal(&object, &self.index_recipients)?;
        let length = sealed.bytes().len() as u64;
        self.repository.storage().put_new(&layout::index(sealed.id()), sealed.bytes())?;
        // The next run will want it.
        index::keep(&self.state.index_cache(self.repository.id()), sealed.id(), &object);
        self.new_bytes.fetch_add(length, Ordering::SeqCst);
        self.state.add_unfinished_index(self.repository.id(), sealed.id(), length)?;
        written.index.insert(sealed.id(), length);
        Ok(())
    }
}
