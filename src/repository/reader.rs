//! Streams being read. Reading is verifying: nothing is handed on that has not been checked.
//!
//! The order of the checks: root pin and signers (`trust.rs`), header signature, manifest and refs by id, archive
//! pieces by age's authentication, frame by zstd's checksum, chunk by its keyed id, stream by its length (and SHA-256
//! where it has one). The first mismatch is an error that names the object; other streams stay readable.

use crate::base::cancel::Cancel;
use crate::base::ids::{ChunkId, ObjectId};
use crate::pipeline::chunk::ChunkIdKey;
use crate::pipeline::crypt::{self, Identities, object_id};
use crate::pipeline::{PipelineError, limits};
use crate::repository::chain::Snapshot;
use crate::repository::format::{self, IndexArchive, Manifest, SourceEntry, StreamEntry};
use crate::repository::frames::Frames;
use crate::repository::index::{self, IndexLoader, Usable};
use crate::repository::refs::Refs;
use crate::repository::table::{ChunkTable, Location};
use crate::repository::{Repository, RepositoryError, layout, parallel, scan, tree};
use sha2::{Digest, Sha256};
use std::collections::{HashSet, VecDeque};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

/// Runs that are read ahead of the consumer, each at most a frame.
const READ_AHEAD: usize = 6;
const INDEX_AT_ONCE: usize = 4;

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
    let plain = crypt::open(&bytes, limits::MANIFEST_PLAIN, identities).map_err(|source| match source {
        PipelineError::NoMatchingIdentity => RepositoryError::Pipeline(source),
        source => RepositoryError::DamagedBy { key: key.clone(), source },
    })?;
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

/// Chunks of one frame that follow each other in a stream.
struct Run {
    archive: u32,
    frame: (u32, u32),
    chunks: Vec<(ChunkId, u32, u32)>,
}

struct Job {
    run: Run,
    answer: SyncSender<Result<Vec<u8>, RepositoryError>>,
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
        // As many as are read ahead: they wait for the storage more than they work.
        let threads = READ_AHEAD;
        let (jobs, receiver) = sync_channel(READ_AHEAD);
        let receiver = Arc::new(Mutex::new(receiver));
        let spawn = |_| {
            let (inner, receiver) = (inner.clone(), receiver.clone());
            std::thread::spawn(move || inner.work(&receiver))
        };
        let workers = (0..threads).map(spawn).collect();
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
        let mut reader = StreamReader {
            reader: self,
            source,
            stream,
            ids,
            peeked: None,
            waiting: VecDeque::new(),
            current: Vec::new(),
            at: 0,
            position: start,
            until,
            failure: None,
            failed: None,
            sha256: (offset == 0 && until == stream.length && stream.sha256.is_some()).then(Sha256::new),
        };
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

    /// The bytes of one chunk, checked. For lists of ids; streams go through [`SnapshotReader::stream`].
    fn chunk(&self, id: &ChunkId, source: &SourceEntry, stream: &StreamEntry) -> Result<Vec<u8>, RepositoryError> {
        let location = self.inner.locate(id, source, stream)?;
        self.inner.read_run(&Run {
            archive: location.archive,
            frame: (location.frame_offset, location.frame_length),
            chunks: vec![(*id, location.offset, location.length)],
        })
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

    fn work(&self, jobs: &Mutex<Receiver<Job>>) {
        loop {
            let job = lock(jobs).recv();
            let Ok(job) = job else { return };
            let result = self.read_run(&job.run);
            // Nobody waits any more when the stream was dropped.
            let _ = job.answer.send(result);
        }
    }

    /// The plain bytes of a run, every chunk of it checked by its keyed id.
    fn read_run(&self, run: &Run) -> Result<Vec<u8>, RepositoryError> {
        self.cancel.check()?;
        let archive = self.archive(run.archive)?;
        let key = layout::archive(archive.id);
        let frame = self.frames.frame(&archive, run.frame.0, run.frame.1)?;
        let total = run.chunks.iter().map(|(_, _, n)| *n as usize).sum();
        let mut bytes = Vec::with_capacity(total);
        for (id, offset, length) in &run.chunks {
            let chunk = frame.get(*offset as usize..).and_then(|rest| rest.get(..*length as usize));
            let chunk = chunk.filter(|chunk| self.key.id(chunk) == *id).ok_or_else(|| RepositoryError::Damaged {
                key: key.clone(),
                problem: format!("chunk {id} is not where the index says, or not what its id promises"),
            })?;
            bytes.extend_from_slice(chunk);
        }
        Ok(bytes)
    }

    fn archive(&self, position: u32) -> Result<IndexArchive, RepositoryError> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.archives.get(position as usize).cloned().ok_or(RepositoryError::Worker)
    }
}

/// The data chunks of a stream, in order, from the chunk that holds an offset.
struct IdsReader<'a> {
    reader: &'a SnapshotReader,
    source: &'a SourceEntry,
    stream: &'a StreamEntry,
    /// Per depth from the root: entries still to come, in reverse.
    levels: Vec<Vec<tree::Entry>>,
    /// Plain bytes before the next entry.
    position: u64,
}

impl<'a> IdsReader<'a> {
    fn new(
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

    fn next(&mut self) -> Result<Option<tree::Entry>, RepositoryError> {
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
pub struct ChunkIds<'a>(IdsReader<'a>);

impl ChunkIds<'_> {
    /// The next chunk's id and plain length.
    pub fn next_chunk(&mut self) -> Result<Option<(ChunkId, u64)>, RepositoryError> {
        self.0.next()
    }
}

/// The plain bytes of one stream, in order, every one of them checked before it is handed out.
///
/// An i/o error of [`Read`] only says that something failed; [`StreamReader::take_failure`] says what.
pub struct StreamReader<'a> {
    reader: &'a SnapshotReader,
    source: &'a SourceEntry,
    stream: &'a StreamEntry,
    ids: IdsReader<'a>,
    peeked: Option<(ChunkId, Location)>,
    waiting: VecDeque<Receiver<Result<Vec<u8>, RepositoryError>>>,
    current: Vec<u8>,
    at: usize,
    position: u64,
    /// Where the bytes end that were asked for.
    until: u64,
    failure: Option<RepositoryError>,
    /// Once failed, always failed: what lies behind a gap is never handed on.
    failed: Option<String>,
    sha256: Option<Sha256>,
}

impl StreamReader<'_> {
    /// Why reading failed.
    pub fn take_failure(&mut self) -> Option<RepositoryError> {
        self.failure.take()
    }

    fn next_chunk(&mut self) -> Result<Option<(ChunkId, Location)>, RepositoryError> {
        if let Some(peeked) = self.peeked.take() {
            return Ok(Some(peeked));
        }
        if self.ids.position >= self.until {
            return Ok(None);
        }
        let Some((id, length)) = self.ids.next()? else { return Ok(None) };
        let location = self.reader.inner.locate(&id, self.source, self.stream)?;
        if u64::from(location.length) != length {
            let problem = format!("chunk {id} has another length than the manifest says");
            return Err(stream_error(self.source, self.stream, problem));
        }
        Ok(Some((id, location)))
    }

    /// The next chunks that lie in one frame.
    fn next_run(&mut self) -> Result<Option<Run>, RepositoryError> {
        let Some((id, first)) = self.next_chunk()? else { return Ok(None) };
        let frame = (first.frame_offset, first.frame_length);
        let mut run = Run { archive: first.archive, frame, chunks: vec![(id, first.offset, first.length)] };
        let mut bytes = first.length as usize;
        while let Some((id, location)) = self.next_chunk()? {
            let same = location.archive == run.archive && (location.frame_offset, location.frame_length) == frame;
            if !same || bytes + location.length as usize > limits::CHUNK {
                self.peeked = Some((id, location));
                break;
            }
            bytes += location.length as usize;
            run.chunks.push((id, location.offset, location.length));
        }
        Ok(Some(run))
    }

    fn fill(&mut self) -> Result<bool, RepositoryError> {
        while self.waiting.len() < READ_AHEAD {
            let Some(run) = self.next_run()? else { break };
            let (answer, receiver) = sync_channel(1);
            let jobs = self.reader.jobs.as_ref().ok_or(RepositoryError::Worker)?;
            jobs.send(Job { run, answer }).map_err(|_| RepositoryError::Worker)?;
            self.waiting.push_back(receiver);
        }
        let Some(next) = self.waiting.pop_front() else {
            self.check_end()?;
            return Ok(false);
        };
        self.current = next.recv().map_err(|_| RepositoryError::Worker)??;
        self.at = 0;
        if let Some(hash) = &mut self.sha256 {
            hash.update(&self.current);
        }
        self.position += self.current.len() as u64;
        if let Some(excess) = self.position.checked_sub(self.until) {
            self.current.truncate(self.current.len().saturating_sub(excess as usize));
            self.position = self.until;
        }
        Ok(true)
    }

    fn check_end(&mut self) -> Result<(), RepositoryError> {
        if self.position != self.until {
            let problem = format!("it has {} bytes instead of {}", self.position, self.until);
            return Err(stream_error(self.source, self.stream, problem));
        }
        if let Some(hash) = self.sha256.take()
            && Some(hex::encode(hash.finalize())) != self.stream.sha256
        {
            return Err(stream_error(self.source, self.stream, "its SHA-256 is another one".to_owned()));
        }
        Ok(())
    }
}

impl Read for StreamReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if let Some(text) = &self.failed {
            return Err(io::Error::other(text.clone()));
        }
        while self.at == self.current.len() {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(e) => {
                    let text = super::chain::full_text(&e);
                    self.failure.get_or_insert(e);
                    self.failed = Some(text.clone());
                    return Err(io::Error::other(text));
                }
            }
        }
        let n = out.len().min(self.current.len() - self.at);
        out[..n].copy_from_slice(&self.current[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
