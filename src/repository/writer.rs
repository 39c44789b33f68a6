//! A snapshot being written: streams in, archives and index objects out, and the header last.
//!
//! Each stream's own thread cuts and hashes; chunks that are not known go into segments, and segments through a
//! bounded channel to a few workers, each of which fills an archive of its own (compression is the limit, so it is
//! what is spread over the cores). Memory is bounded by the segments in flight and one archive per worker.
//!
//! Write order (must): archives → index → refs → manifest → header. The header is the commit point. A writer takes no
//! lock on the repository.

use crate::base::cancel::Cancel;
use crate::base::ids::{ChunkId, HostName, ObjectId, PolicyName, Sequence, SnapshotId, Tag};
use crate::pipeline::archive::{ArchiveWriter, SealedArchive};
use crate::pipeline::chunk::{ChunkAverage, ChunkIdKey, Chunker, GearTable};
use crate::pipeline::crypt::{self, Identities, Identity, Recipients, object_id};
use crate::pipeline::limits;
use crate::pipeline::segment::{FrameEncoder, SEGMENT_TARGET, Segment};
use crate::pipeline::sign::Namespace;
use crate::repository::chain::Chain;
use crate::repository::format::{
    FORMAT, Header, IdsTree, IndexArchive, IndexChunk, Manifest, Notes, Outcome, SourceEntry, StreamNote, Trigger,
};
use crate::repository::index::{self, IndexDraft, IndexLoader, Usable};
use crate::repository::keys::HostKey;
use crate::repository::refs::Refs;
use crate::repository::state::State;
use crate::repository::table::ChunkTable;
use crate::repository::trust::{ChainHead, to_json};
use crate::repository::{Repository, RepositoryError, layout, tree};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// More covering index objects than this are merged.
const MERGE_INDEX_OVER: usize = 64;
/// An index object is written at least this often, so that a killed first upload resumes.
const INDEX_EVERY_BYTES: u64 = 1 << 30;
const INDEX_EVERY: Duration = Duration::from_secs(600);
/// How many headers of each policy of this host are looked at for index objects.
const HEADERS_FOR_INDEX: usize = 8;

/// The version as headers and manifests write it.
pub const TOOL: &str = concat!("lifeboat ", env!("CARGO_PKG_VERSION"));

/// What a writer needs to know.
pub struct WriterOptions {
    pub host: HostName,
    pub policy: PolicyName,
    pub recipients: Recipients,
    /// zstd level.
    pub compression: i32,
    pub cancel: Cancel,
}

/// Locks a mutex; a thread that panicked while holding it has already failed the run.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the stream threads and the workers share.
struct Shared {
    repository: Arc<Repository>,
    options: WriterOptions,
    index_recipients: Recipients,
    key: ChunkIdKey,
    table: Mutex<ChunkTable>,
    /// Chunks in segments or archives that are not stored yet.
    pending: Mutex<HashSet<ChunkId>>,
    /// Small ends of streams, gathered into common segments.
    tail: Mutex<Segment>,
    written: Mutex<Written>,
    failed: AtomicBool,
    failure: Mutex<Option<RepositoryError>>,
    new_bytes: AtomicU64,
    /// Index objects that the table's entries came from; new ones are added behind.
    index_objects: Mutex<Vec<(ObjectId, u64)>>,
    state: Arc<State>,
}

/// What this run has stored.
struct Written {
    draft: IndexDraft,
    draft_bytes: u64,
    draft_since: Instant,
    archives: BTreeMap<ObjectId, u64>,
    index: BTreeMap<ObjectId, u64>,
}

/// A snapshot being written. [`SnapshotWriter::commit`] makes it exist; leaving that out leaves unreferenced objects
/// that a later run of this host takes up again.
pub struct SnapshotWriter {
    shared: Arc<Shared>,
    segments: Option<SyncSender<Segment>>,
    workers: Vec<JoinHandle<()>>,
    gear: GearTable,
    notes: HashMap<(String, String), StreamNote>,
    /// Positions in the table's archives, and in the index objects, that finished streams use.
    used: Mutex<Used>,
    head: Option<(Sequence, Option<ObjectId>)>,
    alarm: Option<String>,
}

#[derive(Default)]
struct Used {
    archives: HashSet<u32>,
    index: HashSet<u32>,
    bytes: u64,
}

/// What a finished stream is: everything of its manifest entry but its name and kind.
#[derive(Debug, Clone)]
pub struct StreamParts {
    pub length: u64,
    pub sha256: Option<String>,
    pub average: ChunkAverage,
    pub ids: IdsTree,
}

/// What the caller knows of a snapshot at its end.
pub struct SnapshotDraft {
    pub id: SnapshotId,
    pub time: DateTime<Utc>,
    pub tags: Vec<Tag>,
    pub trigger: Trigger,
    pub git_commit: Option<String>,
    pub outcome: Outcome,
    pub sources: Vec<SourceEntry>,
    pub stream_notes: Vec<StreamNote>,
}

/// A snapshot that exists.
#[derive(Debug, Clone)]
pub struct Committed {
    pub header: Header,
    pub header_id: ObjectId,
}

impl SnapshotWriter {
    /// Reads what is known of the repository and starts the workers.
    pub fn begin(
        repository: Arc<Repository>,
        chain: &Chain,
        host_key: &HostKey,
        state: Arc<State>,
        options: WriterOptions,
    ) -> Result<Self, RepositoryError> {
        if !repository.signs_for(&host_key.signing.public(), &options.host) {
            return Err(RepositoryError::NotASigner {
                problem: format!("host {} has no signer with this key", options.host),
            });
        }
        let host_identity = host_key.host_identity()?;
        let index_recipients = options.recipients.with(&host_identity.to_public());
        let identities = Identities::new(vec![Identity::X25519(host_identity)]);
        let key = host_key.chunk_id_key();
        let known = load_known(&repository, chain, &state, &options, &identities, &key)?;
        let streams = state.streams(repository.id(), &options.policy)?;
        let mut notes: HashMap<_, _> =
            known.notes.into_iter().filter(|n| n.policy == options.policy).map(|n| (note_key(&n), n)).collect();
        notes.extend(streams.into_iter().map(|n| (note_key(&n), n)));

        let remembered = state.head(repository.id(), &options.host, &options.policy)?;
        let found = chain.head(&options.host, &options.policy);
        let alarm = rolled_back(remembered, found);
        let head = match (remembered, found) {
            (Some((seen, hash)), Some((there, _))) if seen > there => Some((seen, Some(hash))),
            (Some((seen, hash)), None) => Some((seen, Some(hash))),
            (_, found) => found,
        };

        let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 4);
        let (segments, receiver) = sync_channel(threads);
        let receiver = Arc::new(Mutex::new(receiver));
        let shared = Arc::new(Shared {
            repository,
            options,
            index_recipients,
            key,
            table: Mutex::new(known.table),
            pending: Mutex::default(),
            tail: Mutex::default(),
            written: Mutex::new(Written {
                draft: IndexDraft::default(),
                draft_bytes: 0,
                draft_since: Instant::now(),
                archives: BTreeMap::new(),
                index: BTreeMap::new(),
            }),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            new_bytes: AtomicU64::new(0),
            index_objects: Mutex::new(known.index_objects),
            state,
        });
        let spawn = |_| {
            let (shared, receiver) = (shared.clone(), receiver.clone());
            std::thread::spawn(move || shared.work(&receiver))
        };
        let workers = (0..threads).map(spawn).collect();
        Ok(Self {
            shared,
            segments: Some(segments),
            workers,
            gear: host_key.gear_table(),
            notes,
            used: Mutex::default(),
            head,
            alarm,
        })
    }

    /// Set when this host has seen a newer snapshot than the repository holds: the repository has been rolled back.
    pub fn alarm(&self) -> Option<&str> {
        self.alarm.as_deref()
    }

    /// The sequence that the snapshot will carry.
    pub fn sequence(&self) -> Sequence {
        Sequence(self.head.map_or(1, |(sequence, _)| sequence.0 + 1))
    }

    /// What is remembered of a stream: its chunk average and recent lengths.
    pub fn note(&self, source: &str, stream: &str) -> Option<&StreamNote> {
        self.notes.get(&(source.to_owned(), stream.to_owned()))
    }

    /// What a source's streams had the last time, for progress.
    pub fn expected_bytes(&self, source: &str) -> Option<u64> {
        let last = |n: &StreamNote| (n.source.as_str() == source).then(|| n.lengths.last().copied()).flatten();
        let sum: u64 = self.notes.values().filter_map(last).sum();
        (sum > 0).then_some(sum)
    }

    /// Begins a stream. An average once chosen stays until the fitting one is four times another.
    pub fn stream(&self, source: &str, stream: &str, expected: Option<u64>, sha256: bool) -> StreamWriter<'_> {
        let note = self.note(source, stream);
        let length = expected.or(note.and_then(|n| n.lengths.last().copied())).unwrap_or(0);
        let ideal = ChunkAverage::for_length(length);
        let average = match note.and_then(|n| ChunkAverage::new(n.average)) {
            Some(old) if old.bytes() / ideal.bytes() < 4 && ideal.bytes() / old.bytes() < 4 => old,
            _ => ideal,
        };
        StreamWriter {
            writer: self,
            chunker: Chunker::new(self.gear.clone(), average),
            buffer: Vec::new(),
            segment: Segment::default(),
            entries: Vec::new(),
            piece_start: 0,
            position: 0,
            sha256: sha256.then(Sha256::new),
            used: Used::default(),
        }
    }

    /// Ends the snapshot: everything is stored, then the header.
    pub fn commit(mut self, draft: SnapshotDraft, host_key: &HostKey) -> Result<Committed, RepositoryError> {
        self.drain()?;
        let shared = &self.shared;
        shared.options.cancel.check()?;
        shared.flush_index(draft.stream_notes.clone())?;
        self.merge_index()?;
        let refs = self.check_refs()?;
        let sequence = self.sequence();
        let repository = &shared.repository;

        let refs_bytes = refs.to_bytes();
        let refs_id = object_id(&refs_bytes);
        repository.storage().put_new(&layout::refs(refs_id), &refs_bytes)?;

        let manifest = Manifest {
            kind: "manifest".to_owned(),
            format: FORMAT,
            requires: Vec::new(),
            repository: repository.id().clone(),
            snapshot: draft.id.clone(),
            host: shared.options.host.clone(),
            policy: shared.options.policy.clone(),
            sequence,
            time: draft.time,
            chunk_id_key: hex::encode(shared.key.expose()),
            tool: TOOL.to_owned(),
            sources: draft.sources,
        };
        let sealed = crypt::seal(to_json(&manifest)?.as_bytes(), 3, &shared.options.recipients)?;
        if sealed.bytes().len() as u64 > limits::MANIFEST_STORED {
            return Err(RepositoryError::Key {
                problem: "the snapshot's facts are too large for a manifest".to_owned(),
                hint: Some(
                    "leave out a source with very many tables or files, or set its fingerprint to \"none\"".to_owned(),
                ),
            });
        }
        repository.storage().put_new(&layout::manifest(sealed.id()), sealed.bytes())?;

        let header = Header {
            kind: "snapshot".to_owned(),
            format: FORMAT,
            requires: Vec::new(),
            repository: repository.id().clone(),
            id: draft.id,
            time: draft.time,
            host: shared.options.host.clone(),
            policy: shared.options.policy.clone(),
            sequence,
            previous: self.head.and_then(|(_, hash)| hash),
            signers: repository.signer_count(),
            tags: draft.tags,
            trigger: draft.trigger,
            git_commit: draft.git_commit,
            manifest: sealed.id(),
            manifest_bytes: sealed.bytes().len() as u64,
            refs: refs_id,
            bytes_total: lock(&self.used).bytes,
            bytes_new: shared.new_bytes.load(Ordering::SeqCst) + sealed.bytes().len() as u64 + refs_bytes.len() as u64,
            outcome: draft.outcome,
            lineage: shared.state.lineage()?,
            tool: TOOL.to_owned(),
        };
        let key = layout::header(&header.host, &header.policy, sequence, &header.id);
        let bytes = host_key.signing.sign(Namespace::Snapshot, &to_json(&header)?)?;
        shared.options.cancel.check()?;
        // The commit point: before this line there is no snapshot, behind it there is.
        repository.storage().put_new(&key, &bytes)?;

        let header_id = object_id(&bytes);
        let head = ChainHead { host: header.host.clone(), policy: header.policy.clone(), sequence, header: header_id };
        shared.state.set_head(repository.id(), &head)?;
        shared.state.set_streams(repository.id(), &draft.stream_notes)?;
        let finished: Vec<ObjectId> = refs.index.keys().copied().collect();
        shared.state.remove_unfinished_index(repository.id(), &finished)?;
        Ok(Committed { header, header_id })
    }

    /// Hands the last segments over, waits for the workers, and says what failed.
    fn drain(&mut self) -> Result<(), RepositoryError> {
        let tail = std::mem::take(&mut *lock(&self.shared.tail));
        if let Some(sender) = self.segments.take()
            && !tail.is_empty()
        {
            // A closed channel means that every worker has failed; the failure is reported below.
            let _ = sender.send(tail);
        }
        let mut result = Ok(());
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                result = Err(RepositoryError::Worker);
            }
        }
        if let Some(failure) = lock(&self.shared.failure).take() {
            return Err(failure);
        }
        result?;
        // Every chunk of a finished stream is stored by now, or the run has failed.
        if lock(&self.shared.pending).is_empty() { Ok(()) } else { Err(RepositoryError::Worker) }
    }

    /// The failure of a worker, if there is one: the cause behind a stream's i/o error.
    pub fn take_failure(&self) -> Option<RepositoryError> {
        lock(&self.shared.failure).take()
    }

    /// Merges small index objects once too many cover the snapshot.
    fn merge_index(&self) -> Result<(), RepositoryError> {
        let shared = &self.shared;
        let objects = lock(&shared.index_objects).clone();
        let covering: Vec<u32> = {
            let mut used = lock(&self.used).index.iter().copied().collect::<Vec<_>>();
            used.sort_unstable();
            used
        };
        if covering.len() + lock(&shared.written).index.len() <= MERGE_INDEX_OVER {
            return Ok(());
        }
        let table = lock(&shared.table);
        let wanted: HashSet<u32> = covering.iter().copied().collect();
        let used_archives = lock(&self.used).archives.clone();
        let mut positions: HashMap<u32, u32> = HashMap::new();
        let mut merged = Vec::new();
        let mut draft = IndexDraft::default();
        for at in 0..table.len() {
            let entry = table.entry(at).map_err(|source| self.table_error(source))?;
            let (id, location) = entry;
            if !wanted.contains(&location.index) || !used_archives.contains(&location.archive) {
                continue;
            }
            if draft.chunks.len() == limits::INDEX_ENTRIES {
                merged.push(std::mem::take(&mut draft));
                positions.clear();
            }
            let archive = *positions.entry(location.archive).or_insert_with(|| {
                draft.archives.push(table.archives[location.archive as usize].clone());
                draft.archives.len() as u32 - 1
            });
            let (frame_offset, frame_length) = (location.frame_offset, location.frame_length);
            draft.chunks.push(IndexChunk(id, archive, frame_offset, frame_length, location.offset, location.length));
        }
        drop(table);
        merged.push(draft);
        let mut written = lock(&shared.written);
        for draft in merged {
            shared.put_index(draft, Notes::default(), &mut written)?;
        }
        tracing::debug!(before = covering.len(), of = objects.len(), "merged index objects");
        lock(&self.used).index.clear();
        Ok(())
    }

    fn table_error(&self, source: io::Error) -> RepositoryError {
        RepositoryError::File { action: "read the chunk table in", path: self.shared.state.dir().to_owned(), source }
    }

    /// All that the snapshot needs; each of it is there with its length and not condemned, seen just now.
    fn check_refs(&self) -> Result<Refs, RepositoryError> {
        let shared = &self.shared;
        let mut refs = Refs::default();
        {
            let (used, written, table) = (lock(&self.used), lock(&shared.written), lock(&shared.table));
            let objects = lock(&shared.index_objects);
            refs.archives.clone_from(&written.archives);
            refs.archives.extend(used.archives.iter().map(|at| {
                let archive = &table.archives[*at as usize];
                (archive.id, archive.length)
            }));
            refs.index.clone_from(&written.index);
            refs.index.extend(used.index.iter().map(|at| objects[*at as usize]));
        }
        let stored = stored_archives(&shared.repository)?;
        let condemned = shared.repository.condemned()?;
        for (id, length) in &refs.archives {
            if stored.get(id) != Some(length) || condemned.contains(id) {
                return Err(RepositoryError::ReferencedGone { id: *id });
            }
        }
        Ok(refs)
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        // Without a commit the workers stop at the next segment.
        self.shared.failed.store(true, Ordering::SeqCst);
        self.segments = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn note_key(note: &StreamNote) -> (String, String) {
    (note.source.to_string(), note.stream.to_string())
}

/// What this host saw before against what is there now.
fn rolled_back(
    remembered: Option<(Sequence, ObjectId)>,
    found: Option<(Sequence, Option<ObjectId>)>,
) -> Option<String> {
    let (seen, hash) = remembered?;
    match found {
        Some((there, _)) if there > seen => None,
        Some((there, Some(now))) if there == seen && now == hash => None,
        Some((there, None)) if there == seen => None,
        Some((there, _)) if there == seen => {
            Some(format!("snapshot {seen} in the repository is not the one that this host wrote"))
        }
        Some((there, _)) => Some(format!(
            "the repository has been rolled back: this host has seen snapshot {seen}, the newest one there is {there}"
        )),
        None => Some(format!("the repository has been rolled back: this host has seen snapshot {seen}, none is there")),
    }
}

struct Known {
    table: ChunkTable,
    index_objects: Vec<(ObjectId, u64)>,
    notes: Vec<StreamNote>,
}

fn stored_archives(repository: &Repository) -> Result<HashMap<ObjectId, u64>, RepositoryError> {
    let listed = repository.storage().list(layout::ARCHIVES)?;
    Ok(listed.into_iter().filter_map(|o| Some((layout::object_id(&o.key)?, o.length))).collect())
}

/// Loads the index objects that this writer may trust.
fn load_known(
    repository: &Repository,
    chain: &Chain,
    state: &State,
    options: &WriterOptions,
    identities: &Identities,
    key: &ChunkIdKey,
) -> Result<Known, RepositoryError> {
    let tmp = state.dir();
    let table_error =
        |source| RepositoryError::File { action: "write the chunk table in", path: tmp.to_owned(), source };
    let mut known =
        Known { table: ChunkTable::new(tmp).map_err(table_error)?, index_objects: Vec::new(), notes: Vec::new() };
    let stored = stored_archives(repository)?;
    let condemned = repository.condemned()?;
    let usable = Usable::Writer {
        stored: &stored,
        condemned: &condemned,
        recipients: options.recipients.set_id(),
        dedup: key.dedup_id(),
    };
    let loader = IndexLoader { repository, identities, cache: Some(state.index_cache(repository.id())) };

    for (id, length) in trusted_index(repository, chain, state, options)? {
        // A hint that cannot be had is no failure: its chunks are stored again.
        let object = match loader.load(id, Some(length)) {
            Ok(object) => object,
            Err(e) => {
                tracing::warn!("index object {id} is left out: {}", super::chain::full_text(&e));
                continue;
            }
        };
        let position = known.index_objects.len() as u32;
        index::fill(&mut known.table, &object, position, &usable).map_err(table_error)?;
        known.index_objects.push((id, length));
        known.notes.extend(object.notes.streams);
    }
    Ok(known)
}

/// Index objects named by refs of this host's own headers, newest first, and those that its state says it wrote.
fn trusted_index(
    repository: &Repository,
    chain: &Chain,
    state: &State,
    options: &WriterOptions,
) -> Result<Vec<(ObjectId, u64)>, RepositoryError> {
    let mut seen = HashSet::new();
    let mut objects = Vec::new();
    let policies: HashSet<&PolicyName> =
        chain.all().filter(|s| s.header.host == options.host).map(|s| &s.header.policy).collect();
    let mut policies: Vec<_> = policies.into_iter().collect();
    // This policy's own entries first: the first place known for a chunk stays.
    policies.sort_by_key(|p| (**p != options.policy, (*p).clone()));
    for policy in policies {
        let mut refs_seen = HashSet::new();
        for snapshot in chain.line(&options.host, policy).iter().rev().take(HEADERS_FOR_INDEX) {
            if !refs_seen.insert(snapshot.header.refs) {
                continue;
            }
            let key = layout::refs(snapshot.header.refs);
            let Ok(bytes) = repository.get(&key, limits::REFS) else { continue };
            if object_id(&bytes) != snapshot.header.refs {
                continue;
            }
            let Ok(refs) = Refs::parse(&bytes) else { continue };
            objects.extend(refs.index.into_iter().filter(|(id, _)| seen.insert(*id)));
        }
    }
    objects.extend(state.unfinished_index(repository.id())?.into_iter().filter(|(id, _)| seen.insert(*id)));
    Ok(objects)
}

impl Shared {
    /// A worker: segments in, archives out.
    fn work(&self, segments: &Mutex<Receiver<Segment>>) {
        if let Err(error) = self.fill_archives(segments) {
            self.fail(error);
            // Taking what is left keeps the stream threads from blocking on a full channel.
            while lock(segments).recv().is_ok() {}
        }
    }

    fn fail(&self, error: RepositoryError) {
        self.failed.store(true, Ordering::SeqCst);
        lock(&self.failure).get_or_insert(error);
    }

    fn fill_archives(&self, segments: &Mutex<Receiver<Segment>>) -> Result<(), RepositoryError> {
        let mut encoder = FrameEncoder::new(self.options.compression)?;
        let mut open: Option<ArchiveWriter> = None;
        loop {
            let segment = lock(segments).recv();
            let Ok(segment) = segment else { break };
            if self.failed.load(Ordering::SeqCst) {
                continue;
            }
            self.options.cancel.check()?;
            let mut archive = match open.take() {
                Some(archive) => archive,
                None => ArchiveWriter::new(&self.options.recipients)?,
            };
            archive.add(&segment, &mut encoder)?;
            if archive.is_full() {
                self.store(archive.finish(&mut encoder)?)?;
            } else {
                open = Some(archive);
            }
        }
        match open {
            Some(archive) if !self.failed.load(Ordering::SeqCst) => self.store(archive.finish(&mut encoder)?),
            _ => Ok(()),
        }
    }

    /// Stores an archive; only then are its chunks known.
    fn store(&self, sealed: SealedArchive) -> Result<(), RepositoryError> {
        let length = sealed.bytes().len() as u64;
        self.repository.storage().put_new(&layout::archive(sealed.id()), sealed.bytes())?;
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

    fn flush_index(&self, streams: Vec<StreamNote>) -> Result<(), RepositoryError> {
        self.flush_draft(&mut lock(&self.written), Notes { streams })
    }

    fn flush_draft(&self, written: &mut Written, notes: Notes) -> Result<(), RepositoryError> {
        let draft = std::mem::take(&mut written.draft);
        written.draft_bytes = 0;
        written.draft_since = Instant::now();
        if draft.is_empty() { Ok(()) } else { self.put_index(draft, notes, written) }
    }

    fn put_index(&self, draft: IndexDraft, notes: Notes, written: &mut Written) -> Result<(), RepositoryError> {
        let sealed = draft.seal(self.key.dedup_id(), notes, &self.index_recipients)?;
        let length = sealed.bytes().len() as u64;
        self.repository.storage().put_new(&layout::index(sealed.id()), sealed.bytes())?;
        self.new_bytes.fetch_add(length, Ordering::SeqCst);
        self.state.add_unfinished_index(self.repository.id(), sealed.id(), length)?;
        written.index.insert(sealed.id(), length);
        Ok(())
    }
}

/// One stream being written. [`StreamWriter::finish`] must be called, else the stream is not part of the snapshot.
pub struct StreamWriter<'a> {
    writer: &'a SnapshotWriter,
    chunker: Chunker,
    buffer: Vec<u8>,
    segment: Segment,
    entries: Vec<tree::Entry>,
    /// Where the entries of the current piece begin.
    piece_start: usize,
    position: u64,
    sha256: Option<Sha256>,
    used: Used,
}

/// The run has failed elsewhere: the failure itself is kept by the writer.
fn run_failed() -> io::Error {
    io::Error::other("the repository did not take what was written")
}

impl StreamWriter<'_> {
    fn check(&self) -> io::Result<()> {
        let shared = &self.writer.shared;
        shared.options.cancel.check_io()?;
        if shared.failed.load(Ordering::SeqCst) { Err(run_failed()) } else { Ok(()) }
    }

    /// Cuts what can be cut; all of it when a piece ends.
    fn cut(&mut self, to_end: bool) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = &buffer[..];
        while rest.len() >= self.chunker.max() || (to_end && !rest.is_empty()) {
            let (chunk, behind) = rest.split_at(self.chunker.cut(rest));
            let id = self.writer.shared.key.id(chunk);
            self.entries.push((id, chunk.len() as u64));
            self.keep(id, chunk)?;
            rest = behind;
        }
        let left = rest.len();
        let from = buffer.len() - left;
        self.buffer = buffer;
        self.buffer.copy_within(from.., 0);
        self.buffer.truncate(left);
        Ok(())
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
        self.used.archives.insert(location.archive);
        if location.index != u32::MAX {
            self.used.index.insert(location.index);
        }
        Ok(true)
    }

    fn send(&mut self) -> io::Result<()> {
        let segment = std::mem::take(&mut self.segment);
        if segment.is_empty() {
            return Ok(());
        }
        let sender = self.writer.segments.as_ref().ok_or_else(run_failed)?;
        sender.send(segment).map_err(|_| run_failed())?;
        self.check()
    }

    /// Ends a piece: the next byte begins a new chunk. Returns the piece's chunks.
    pub fn end_piece(&mut self) -> io::Result<Vec<(ChunkId, u32)>> {
        self.check()?;
        self.cut(true)?;
        let piece = self.entries[self.piece_start..].iter().map(|(id, n)| (*id, *n as u32)).collect();
        self.piece_start = self.entries.len();
        Ok(piece)
    }

    /// Takes over a piece without its bytes, if the repository holds all of its chunks.
    pub fn reuse_piece(&mut self, chunks: &[(ChunkId, u32)]) -> io::Result<bool> {
        debug_assert!(self.buffer.is_empty(), "only between pieces");
        self.check()?;
        for (id, length) in chunks {
            let found = lock(&self.writer.shared.table).get(id)?;
            if found.is_none_or(|location| location.length != *length) {
                return Ok(false);
            }
        }
        for (id, length) in chunks {
            self.is_known(id)?;
            self.entries.push((*id, u64::from(*length)));
            self.position += u64::from(*length);
        }
        self.piece_start = self.entries.len();
        Ok(true)
    }

    /// Plain bytes so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Ends the stream.
    pub fn finish(mut self) -> io::Result<StreamParts> {
        self.check()?;
        self.cut(true)?;
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
        self.buffer.extend_from_slice(bytes);
        self.position += bytes.len() as u64;
        if self.buffer.len() >= 2 * self.chunker.max() {
            self.cut(false)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
