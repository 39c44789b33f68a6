//! Streams being read. Reading is verifying: nothing is handed on that has not been checked.
//!
//! The order of the checks: root pin and signers (`trust.rs`), header signature, manifest and refs by id, archive
//! pieces by age's authentication, frame by zstd's checksum, chunk by its keyed id, stream by its length (and SHA-256
//! where it has one). The first mismatch is an error that names the object; other streams stay readable.
//!
//! - [`ids`]: the ids of a stream's chunks
//! - [`fetch`]: frames fetched in pieces, opened and checked by a few threads
//! - [`stream`]: a stream's bytes, read ahead

mod fetch;
mod ids;
mod stream;

pub use ids::ChunkIds;
pub use stream::StreamReader;

use crate::base::cancel::Cancel;
use crate::base::ids::{ChunkId, ObjectId};
use crate::base::threads;
use crate::pipeline::chunk::ChunkIdKey;
use crate::pipeline::crypt::{self, Identities, object_id};
use crate::pipeline::limits;
use crate::repository::chain::Snapshot;
use crate::repository::format::{self, IndexArchive, Manifest, SourceEntry, StreamEntry};
use crate::repository::frames::{Frames, Place, together};
use crate::repository::index::{self, IndexLoader, Usable};
use crate::repository::refs::Refs;
use crate::repository::table::{ChunkTable, Location};
use crate::repository::{Repository, RepositoryError, layout, parallel, scan, tree};
use fetch::{Job, Run};
use ids::IdsReader;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

/// Pieces that are fetched at once: from far away, where threads wait for the storage more than they work, and from this
/// machine, where more than its cores would only take memory.
const AT_ONCE: usize = 6;
const AT_ONCE_NEAR: usize = 3;
const INDEX_AT_ONCE: usize = 4;
/// Of each range that is fetched before it is read: a long one is read ahead anyway.
const WARM_BYTES: u64 = 1 << 20;
/// Frames that are fetched so: fewer than are kept.
const WARM_FRAMES: usize = 24;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fetches and checks a snapshot's manifest.
pub fn load_manifest(
    repository: &Repository,
    snapshot: &Snapshot,
    identities: &Identities,
) -> Result<Manifest, RepositoryError> {
    let header = &snapshot.header;
    let key = layout::manifest(header.manifest);
    let damaged = |problem: &str| RepositoryError::Damaged { key: key.clone(), problem: problem.to_owned() };
    let bytes = repository.get(&key, limits::MANIFEST_STORED)?;
    if object_id(&bytes) != header.manifest || bytes.len() as u64 != header.manifest_bytes {
        return Err(damaged("its bytes are not those that its name promises"));
    }
    let plain = crypt::open(&bytes, limits::MANIFEST_PLAIN, identities)
        .map_err(|source| RepositoryError::unopened(key.clone(), source))?;
    let envelope = format::check_envelope(&plain, &key)?;
    if envelope.kind != "manifest" {
        return Err(damaged("it is no manifest"));
    }
    let manifest: Manifest = serde_json::from_slice(&plain)
        .map_err(|e| RepositoryError::Damaged { key: key.clone(), problem: format!("it does not parse: {e}") })?;
    let same = manifest.repository == header.repository
        && manifest.snapshot == header.id
        && manifest.host == header.host
        && manifest.policy == header.policy
        && manifest.sequence == header.sequence;
    if !same {
        return Err(damaged("it is the manifest of another snapshot"));
    }
    // Names become files and folders when restored.
    let mut sources = HashSet::new();
    for source in &manifest.sources {
        let mut streams = HashSet::new();
        if !sources.insert(&source.name) || !source.streams.iter().all(|stream| streams.insert(&stream.name)) {
            return Err(damaged("it names a source or stream twice"));
        }
    }
    Ok(manifest)
}

/// Fetches and checks a snapshot's refs. No key needed.
pub fn load_refs(repository: &Repository, id: ObjectId) -> Result<Refs, RepositoryError> {
    let key = layout::refs(id);
    let bytes = repository.get(&key, limits::REFS)?;
    if object_id(&bytes) != id {
        let problem = "its bytes are not those that its name promises".to_owned();
        return Err(RepositoryError::Damaged { key, problem });
    }
    Refs::parse(&bytes).map_err(|problem| RepositoryError::Damaged { key, problem })
}

/// A snapshot open for reading.
pub struct SnapshotReader {
    pub snapshot: Snapshot,
    pub manifest: Manifest,
    pub refs: Refs,
    /// Index objects that could not be used: what they cover is looked for in the archives, which takes longer.
    pub index_problems: Vec<RepositoryError>,
    inner: Arc<Inner>,
    jobs: Option<SyncSender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

struct Inner {
    repository: Arc<Repository>,
    identities: Arc<Identities>,
    key: ChunkIdKey,
    table: RwLock<ChunkTable>,
    unscanned: Mutex<Unscanned>,
    frames: Frames,
    cancel: Cancel,
}

/// Archives that are read whole, one after the other, while a chunk is missed that a lost index object would have known.
struct Unscanned {
    /// The next one is the last.
    archives: Vec<(ObjectId, u64)>,
    /// The first damage that was met.
    problem: Option<RepositoryError>,
}

/// The refs that count for a snapshot.
fn load_counting_refs(repository: &Repository, snapshot: &Snapshot) -> Result<Refs, RepositoryError> {
    match load_refs(repository, snapshot.refs) {
        // A copy keeps snapshots that were pruned from the repository; what a repack made of them it may never have got.
        Err(e @ RepositoryError::Missing { .. }) if snapshot.refs != snapshot.header.refs => {
            load_refs(repository, snapshot.header.refs).map_err(|_| e)
        }
        read => read,
    }
}

/// What one recipient's identity opens of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opener {
    pub recipient: String,
    pub at_hand: bool,
    pub opened: usize,
    pub archives: usize,
}

/// What a reader needs.
pub struct ReaderOptions {
    pub identities: Arc<Identities>,
    /// Where decrypted index objects are kept; absent without installed state.
    pub index_cache: Option<PathBuf>,
    /// Where the chunk table's unlinked file lies.
    pub tmp: PathBuf,
    pub cancel: Cancel,
}

impl SnapshotReader {
    /// Opens manifest, refs and index of a snapshot whose header has been verified.
    pub fn open(
        repository: Arc<Repository>,
        snapshot: &Snapshot,
        options: ReaderOptions,
    ) -> Result<Self, RepositoryError> {
        let (refs, manifest) = parallel::both(
            || load_counting_refs(&repository, snapshot),
            || load_manifest(&repository, snapshot, &options.identities),
        );
        let (manifest, refs) = (manifest?, refs.ok_or(RepositoryError::Worker)??);
        let key = manifest_key(&manifest, snapshot)?;
        let mut table = ChunkTable::new(&options.tmp).map_err(|e| table_error(&options.tmp, e))?;
        let loader = IndexLoader {
            repository: &repository,
            identities: &options.identities,
            cache: options.index_cache.clone(),
        };
        let mut index_problems = Vec::new();
        let usable = Usable::Named(&refs.archives);
        let named: Vec<(ObjectId, u64)> = refs.index.iter().map(|(id, length)| (*id, *length)).collect();
        let mut position = 0;
        // A few at a time: an index object opened takes a few MiB.
        for some in named.chunks(INDEX_AT_ONCE) {
            for loaded in parallel::at_once(some, |(id, length)| loader.load(*id, Some(*length))) {
                match loaded {
                    Ok(object) => {
                        index::fill(&mut table, &object, position, &usable).map_err(|e| table_error(&options.tmp, e))?
                    }
                    Err(e) if e.is_integrity() => index_problems.push(e),
                    Err(e) => return Err(e),
                }
                position += 1;
            }
        }
        // What an index object that is lost would have said, the archives themselves say.
        let unscanned = by_need(&refs, &table);
        let inner = Arc::new(Inner {
            frames: Frames::new(repository.clone(), options.identities.clone()),
            repository,
            identities: options.identities,
            key,
            table: RwLock::new(table),
            unscanned: Mutex::new(Unscanned { archives: unscanned, problem: None }),
            cancel: options.cancel,
        });
        let at_once = if inner.repository.storage().is_far() { AT_ONCE } else { AT_ONCE_NEAR };
        let (jobs, receiver) = sync_channel(at_once);
        let receiver = Arc::new(Mutex::new(receiver));
        let workers = threads::begin_some(at_once, || {
            let (inner, receiver) = (inner.clone(), receiver.clone());
            move || inner.work(&receiver)
        })?;
        Ok(Self { snapshot: snapshot.clone(), manifest, refs, index_problems, inner, jobs: Some(jobs), workers })
    }

    /// One stream, from `offset` of its plain bytes. Its SHA-256 is checked when it is read from 0 to its end.
    pub fn stream<'a>(
        &'a self,
        source: &'a SourceEntry,
        stream: &'a StreamEntry,
        offset: u64,
    ) -> Result<StreamReader<'a>, RepositoryError> {
        self.range(source, stream, offset, stream.length.saturating_sub(offset))
    }

    /// `length` bytes of a stream, from `offset`; nothing behind them is read ahead.
    pub fn range<'a>(
        &'a self,
        source: &'a SourceEntry,
        stream: &'a StreamEntry,
        offset: u64,
        length: u64,
    ) -> Result<StreamReader<'a>, RepositoryError> {
        let error = |problem: String| stream_error(source, stream, problem);
        tree::check(&stream.ids, stream.length).map_err(error)?;
        let until = offset.checked_add(length).filter(|until| *until <= stream.length);
        let until = until.ok_or_else(|| error(format!("{length} bytes from {offset} lie behind its end")))?;
        let ids = IdsReader::new(self, source, stream, offset)?;
        let start = ids.position;
        let mut reader = StreamReader::new(ids, until, offset == 0 && until == stream.length);
        let skip = offset - start;
        let skipped = io::copy(&mut (&mut reader).take(skip), &mut io::sink());
        match skipped {
            Ok(n) if n == skip => Ok(reader),
            _ => Err(reader.take_failure().unwrap_or_else(|| error("it ends early".to_owned()))),
        }
    }

    /// The ids of a stream's data chunks, in order: equal ids are equal bytes.
    pub fn chunk_ids<'a>(
        &'a self,
        source: &'a SourceEntry,
        stream: &'a StreamEntry,
    ) -> Result<ChunkIds<'a>, RepositoryError> {
        tree::check(&stream.ids, stream.length).map_err(|problem| stream_error(source, stream, problem))?;
        Ok(ChunkIds(IdsReader::new(self, source, stream, 0)?))
    }

    /// Whether each recipient's identity, where it is at hand, unwraps the key of every archive that the index knows.
    pub fn openers(&self) -> Vec<Opener> {
        let table = self.inner.table.read().unwrap_or_else(PoisonError::into_inner);
        let of = |recipient: &String| {
            let identity = self.inner.identities.iter().find(|i| i.recipient() == *recipient);
            let opens = |archive: &&IndexArchive| identity.is_some_and(|i| i.opens(&archive.header));
            Opener {
                recipient: recipient.clone(),
                at_hand: identity.is_some(),
                opened: table.archives.iter().filter(opens).count(),
                archives: table.archives.len(),
            }
        };
        self.manifest.recipients.iter().map(of).collect()
    }

    /// Fetches what stands at the beginnings of these ranges (offset, length) of a stream, all of it at once, for whoever
    /// reads one after the other then. What fails is told when it is read.
    pub fn warm(&self, source: &SourceEntry, stream: &StreamEntry, ranges: &[(u64, u64)]) {
        if !self.inner.repository.storage().is_far() {
            return;
        }
        let mut places: BTreeMap<u32, BTreeSet<Place>> = BTreeMap::new();
        for found in parallel::at_once(ranges, |range| self.places(source, stream, *range)) {
            for (archive, place) in found.unwrap_or_default() {
                places.entry(archive).or_default().insert(place);
            }
        }
        let mut pieces: Vec<(u32, Vec<Place>)> = Vec::new();
        let mut kept = 0;
        for (archive, places) in places {
            let places: Vec<Place> = places.into_iter().take(WARM_FRAMES - kept).collect();
            kept += places.len();
            pieces.extend(together(&places).into_iter().map(|group| (archive, places[group].to_vec())));
        }
        parallel::at_once(&pieces, |(archive, places)| self.inner.keep(*archive, places).ok());
    }

    /// Where the first bytes of a range lie.
    fn places(
        &self,
        source: &SourceEntry,
        stream: &StreamEntry,
        (offset, length): (u64, u64),
    ) -> Result<Vec<(u32, Place)>, RepositoryError> {
        tree::check(&stream.ids, stream.length).map_err(|problem| stream_error(source, stream, problem))?;
        let end = offset.saturating_add(length.min(WARM_BYTES));
        let mut ids = IdsReader::new(self, source, stream, offset)?;
        let mut places = Vec::new();
        while ids.position < end
            && let Some((id, _)) = ids.next()?
        {
            let location = self.inner.locate(&id, source, stream)?;
            places.push((location.archive, (location.frame_offset, location.frame_length)));
        }
        Ok(places)
    }

    /// The bytes of one chunk, checked. For lists of ids; streams go through [`SnapshotReader::stream`].
    fn chunk(&self, id: &ChunkId, source: &SourceEntry, stream: &StreamEntry) -> Result<Vec<u8>, RepositoryError> {
        let location = self.inner.locate(id, source, stream)?;
        let frame = (location.frame_offset, location.frame_length);
        let chunks = vec![(*id, location.offset, location.length)];
        let checked = self.inner.read_run(&Run { archive: location.archive, frame, chunks }, None)?;
        Ok(checked.chunks().flatten().copied().collect())
    }
}

impl Drop for SnapshotReader {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// The key that the chunk ids of a snapshot were made with.
pub fn manifest_key(manifest: &Manifest, snapshot: &Snapshot) -> Result<ChunkIdKey, RepositoryError> {
    let mut key = [0u8; 32];
    hex::decode_to_slice(&manifest.chunk_id_key, &mut key).map_err(|_| RepositoryError::Damaged {
        key: layout::manifest(snapshot.header.manifest),
        problem: "its chunk id key has an odd form".to_owned(),
    })?;
    Ok(ChunkIdKey::from_bytes(key))
}

fn table_error(dir: &Path, source: io::Error) -> RepositoryError {
    RepositoryError::File { action: "write the chunk table in", path: dir.to_owned(), source }
}

/// The archives of a snapshot; those that no usable index object speaks of come last, to be read first. Index objects
/// that its refs do not name are not asked: nobody vouches for them.
fn by_need(refs: &Refs, table: &ChunkTable) -> Vec<(ObjectId, u64)> {
    let known: HashSet<ObjectId> = table.archives.iter().map(|archive| archive.id).collect();
    let mut archives: Vec<_> = refs.archives.iter().map(|(id, length)| (*id, *length)).collect();
    archives.sort_by_key(|(id, _)| !known.contains(id));
    archives
}

fn stream_error(source: &SourceEntry, stream: &StreamEntry, problem: String) -> RepositoryError {
    RepositoryError::Stream { stream: stream.name.to_string(), source_name: source.name.to_string(), problem }
}

impl Inner {
    fn locate(&self, id: &ChunkId, source: &SourceEntry, stream: &StreamEntry) -> Result<Location, RepositoryError> {
        if let Some(location) = self.known(id)? {
            return Ok(location);
        }
        let mut unscanned = lock(&self.unscanned);
        loop {
            // Whoever held the lock before may have found it.
            if let Some(location) = self.known(id)? {
                return Ok(location);
            }
            let Some(next) = unscanned.archives.pop() else { break };
            if let Some(problem) = self.scan(next)? {
                unscanned.problem.get_or_insert(problem);
            }
        }
        Err(unscanned.problem.take().unwrap_or_else(|| RepositoryError::ChunkMissing {
            id: *id,
            stream: stream.name.to_string(),
            source_name: source.name.to_string(),
        }))
    }

    fn known(&self, id: &ChunkId) -> Result<Option<Location>, RepositoryError> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let error = |source| RepositoryError::File { action: "read", path: PathBuf::from("the chunk table"), source };
        table.get(id).map_err(error)
    }

    /// Takes every chunk of an archive into the table; what is wrong with the archive is the answer.
    fn scan(&self, archive: (ObjectId, u64)) -> Result<Option<RepositoryError>, RepositoryError> {
        let keys = std::slice::from_ref(&self.key);
        let scanned = scan::archive(&self.repository, archive, &self.identities, keys, &self.cancel)?;
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let position = table.archive(&scanned.archive);
        for (chunk, _) in &scanned.chunks {
            let error =
                |source| RepositoryError::File { action: "write", path: PathBuf::from("the chunk table"), source };
            table.insert(chunk, position, u32::MAX).map_err(error)?;
        }
        Ok(scanned.problem)
    }

    fn archive(&self, position: u32) -> Result<IndexArchive, RepositoryError> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.archives.get(position as usize).cloned().ok_or(RepositoryError::Worker)
    }
}
