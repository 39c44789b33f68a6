//! A snapshot being written, and its commit.

use super::known::{self, Seen};
use super::stream::StreamWriter;
use super::workers::{Shared, Spare, UPLOADS, UPLOADS_NEAR, Written};
use super::{lock, stored};
use crate::base::cancel::Cancel;
use crate::base::ids::{HostName, ObjectId, PolicyName, Sequence, SnapshotId, Tag};
use crate::base::stream::StreamKind;
use crate::base::threads;
use crate::base::uptime::Uptime;
use crate::pipeline::archive::SealedArchive;
use crate::pipeline::chunk::{ChunkAverage, GearTable};
use crate::pipeline::crypt::{self, Identities, Identity, Recipients, object_id};
use crate::pipeline::limits;
use crate::pipeline::segment::Segment;
use crate::pipeline::sign::Namespace;
use crate::repository::chain::{Chain, rolled_back};
use crate::repository::format::{
    FORMAT, Header, IndexChunk, Manifest, Notes, Outcome, SourceEntry, StreamNote, Trigger,
};
use crate::repository::index::IndexDraft;
use crate::repository::keys::HostKey;
use crate::repository::refs::Refs;
use crate::repository::state::State;
use crate::repository::table::ChunkTable;
use crate::repository::table::Location;
use crate::repository::trust::{ChainHead, to_json};
use crate::repository::{Repository, RepositoryError, layout, locks, parallel};
use crate::storage::{LockMode, Locked, Storage, StorageKey};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// More covering index objects than this are merged.
const MERGE_INDEX_OVER: usize = 64;

/// What was seen just before the header holds for so long.
const CHECK_HOLDS: Duration = Duration::from_secs(3600);

/// Segments that wait, for each worker: so many that none runs dry while another one, or who cuts, is held up.
const SEGMENTS_WAITING: usize = 3;

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

/// A snapshot being written. [`SnapshotWriter::commit`] makes it exist; leaving that out leaves unreferenced objects
/// that a later run of this host takes up again.
pub struct SnapshotWriter {
    pub(super) shared: Arc<Shared>,
    pub(super) segments: Option<SyncSender<Segment>>,
    workers: Vec<JoinHandle<()>>,
    archives: Option<SyncSender<SealedArchive>>,
    uploaders: Vec<JoinHandle<()>>,
    gear: GearTable,
    notes: HashMap<(String, String), StreamNote>,
    /// Positions in the table's archives, and in the index objects, that finished streams use.
    pub(super) used: Mutex<Used>,
    head: Option<(Sequence, Option<ObjectId>)>,
    alarm: Option<String>,
    seen: Arc<Seen>,
    /// The storage's time when this began, where objects are locked there.
    begun: Option<DateTime<Utc>>,
    check_holds: Duration,
    /// Keeps a prune that deletes at once away until the header is there.
    _lock: Locked,
}

#[derive(Default)]
pub(super) struct Used {
    pub archives: HashSet<u32>,
    pub index: HashSet<u32>,
    pub bytes: u64,
    last: Option<(u32, u32)>,
}

impl Used {
    /// A known chunk is used again. Most lie where the one before does.
    pub fn add(&mut self, location: &Location) {
        let place = (location.archive, location.index);
        if self.last.replace(place) == Some(place) {
            return;
        }
        self.archives.insert(location.archive);
        // Index objects of this run are all in the refs anyway.
        if location.index != u32::MAX {
            self.index.insert(location.index);
        }
    }
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
        let lock = repository.storage().lock(LockMode::Shared)?;
        if matches!(lock, Locked::Busy) {
            return Err(RepositoryError::Pruning { location: repository.storage().describe() });
        }
        let begun = locks::begin(repository.storage().as_ref())?;
        let host_identity = host_key.host_identity()?;
        let index_recipients = options.recipients.with(&host_identity.to_public());
        let identities = Identities::new(vec![Identity::X25519(host_identity)]);
        let key = host_key.chunk_id_key();
        let known = known::look(&repository, chain, &state, &options)?;
        let table = ChunkTable::new(state.dir()).map_err(|source| known::table_error(&state, source))?;
        let streams = state.streams(repository.id(), &options.policy)?;
        let notes = streams.into_iter().map(|n| (note_key(&n), n)).collect();

        let remembered = state.head(repository.id(), &options.host, &options.policy)?;
        let found = chain.head(&options.host, &options.policy);
        let damaged = remembered.is_some_and(|(seen, _)| chain.is_damaged(&options.host, &options.policy, seen));
        let alarm = if damaged { None } else { rolled_back(remembered, found) };
        let head = match (remembered, found) {
            (Some((seen, hash)), Some((there, _))) if seen > there => Some((seen, Some(hash))),
            (Some((seen, hash)), None) => Some((seen, Some(hash))),
            (_, found) => found,
        };

        let at_once = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 4);
        let (segments, receiver) = sync_channel(SEGMENTS_WAITING * at_once);
        let receiver = Arc::new(Mutex::new(receiver));
        let shared = Arc::new(Shared {
            repository,
            options,
            index_recipients,
            key,
            table: Mutex::new(table),
            pending: Mutex::default(),
            tail: Mutex::default(),
            open: Mutex::default(),
            given_back: Condvar::new(),
            spare: Spare::default(),
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
            from_index: Mutex::default(),
            state,
        });
        let seen = known.seen.clone();
        let filling = known.fill(&shared, identities)?;
        let (archives, full) = sync_channel(0);
        let full = Arc::new(Mutex::new(full));
        let mut workers = threads::begin_some(at_once, || {
            let (shared, receiver, archives) = (shared.clone(), receiver.clone(), archives.clone());
            move || shared.work(&receiver, &archives)
        })?;
        workers.push(filling);
        let uploads = if shared.repository.storage().is_far() { UPLOADS } else { UPLOADS_NEAR };
        let uploaders = threads::begin_some(uploads, || {
            let (shared, full) = (shared.clone(), full.clone());
            move || shared.upload(&full)
        })?;
        Ok(Self {
            shared,
            segments: Some(segments),
            workers,
            archives: Some(archives),
            uploaders,
            gear: host_key.gear_table(),
            notes,
            used: Mutex::default(),
            head,
            alarm,
            seen,
            begun,
            check_holds: CHECK_HOLDS,
            _lock: lock,
        })
    }

    /// A test sets lower how long it holds what was seen just before the header.
    pub fn with_check_holding(mut self, holds: Duration) -> Self {
        self.check_holds = holds;
        self
    }

    /// Set when this host has seen a newer snapshot than the repository holds: the repository has been rolled back.
    pub fn alarm(&self) -> Option<&str> {
        self.alarm.as_deref()
    }

    /// The sequence that the snapshot will carry.
    pub fn sequence(&self) -> Sequence {
        Sequence(self.head.map_or(1, |(sequence, _)| sequence.0.saturating_add(1)))
    }

    /// What is remembered of a stream, by this host or in the index: its chunk average and recent lengths.
    pub fn note(&self, source: &str, stream: &str) -> Option<StreamNote> {
        let known = self.notes.get(&(source.to_owned(), stream.to_owned()));
        known
            .cloned()
            .or_else(|| self.noted().into_iter().rfind(|n| n.source.as_str() == source && n.stream.as_str() == stream))
    }

    /// What the index says of this policy's streams.
    fn noted(&self) -> Vec<StreamNote> {
        let from = lock(&self.shared.from_index);
        from.notes.iter().filter(|n| n.policy == self.shared.options.policy).cloned().collect()
    }

    /// What a source's streams had the last time, for progress.
    pub fn expected_bytes(&self, source: &str) -> Option<u64> {
        let last = |n: &StreamNote| (n.source.as_str() == source).then(|| n.lengths.last().copied()).flatten();
        let mut sum: u64 = self.notes.values().filter_map(last).sum();
        if sum == 0 {
            let noted: HashMap<_, _> = self.noted().into_iter().map(|n| (note_key(&n), n)).collect();
            sum = noted.values().filter_map(last).sum();
        }
        (sum > 0).then_some(sum)
    }

    /// Begins a stream.
    pub fn stream(&self, source: &str, stream: &str, kind: StreamKind, expected: Option<u64>) -> StreamWriter<'_> {
        let note = self.note(source, stream);
        let length = expected.or(note.as_ref().and_then(|n| n.lengths.last().copied())).unwrap_or(0);
        let average = ChunkAverage::after(note.map(|n| n.average), kind, length);
        StreamWriter::new(self, average, self.gear.clone(), kind)
    }

    /// Ends the snapshot: everything is stored, then the header.
    pub fn commit(mut self, draft: SnapshotDraft, host_key: &HostKey) -> Result<Committed, RepositoryError> {
        self.drain()?;
        let shared = &self.shared;
        shared.options.cancel.check()?;
        shared.flush_index(draft.stream_notes.clone())?;
        self.merge_index()?;
        let (refs, refs_bytes) = self.refs()?;
        let sequence = self.sequence();
        if sequence > Sequence::MAX {
            let last = Sequence(sequence.0 - 1);
            return Err(RepositoryError::Damaged {
                key: layout::header_prefix(&shared.options.host, &shared.options.policy, last),
                problem: format!("no sequence is left behind {last}: somebody with this host's key took the last one"),
            });
        }
        let repository = &shared.repository;

        let refs_id = object_id(&refs_bytes);
        // Those of the last snapshot have been read when this one began.
        if !self.seen.refs.contains(&refs_id) {
            repository.storage().put_new(&layout::refs(refs_id), &refs_bytes)?;
        }

        // No reader would take it.
        let mut names = HashSet::new();
        if let Some(twice) = draft.sources.iter().find(|source| !names.insert(&source.name)) {
            return Err(RepositoryError::Twice { name: twice.name.clone() });
        }
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
            recipients: shared.options.recipients.texts().to_vec(),
            tool: TOOL.to_owned(),
            sources: draft.sources,
        };
        let manifest = to_json(&manifest)?;
        let sealed = crypt::seal(manifest.as_bytes(), 3, &shared.options.recipients)?;
        if manifest.len() > limits::MANIFEST_PLAIN || sealed.bytes().len() as u64 > limits::MANIFEST_STORED {
            return Err(RepositoryError::Key {
                problem: "the snapshot's facts are too large for a manifest".to_owned(),
                hint: Some(
                    "leave out a source with very many tables or files, or set its fingerprint to \"none\"".to_owned(),
                ),
            });
        }
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
        if let Some(begun) = self.begun {
            let written: Vec<StorageKey> = {
                let written = lock(&shared.written);
                let archives = written.archives.keys().map(|id| layout::archive(*id));
                archives.chain(written.index.keys().map(|id| layout::index(*id))).collect()
            };
            let storage = repository.storage().as_ref();
            locks::remember(storage, &shared.state, &written, begun)?;
            locks::extend(storage, &shared.state, locks::needed(repository.signer_count(), &refs, refs_id))?;
        }
        let checked = Uptime::now();
        let (put, seen) = parallel::both(
            || repository.storage().put_new(&layout::manifest(sealed.id()), sealed.bytes()),
            || self.check(&refs, refs_id, &refs_bytes),
        );
        put.ok_or(RepositoryError::Worker)??;
        seen?;
        // The commit point: before this line there is no snapshot, behind it there is.
        repository.storage().put_new(&key, &bytes)?;

        let header_id = object_id(&bytes);
        let head = ChainHead { host: header.host.clone(), policy: header.policy.clone(), sequence, header: header_id };
        shared.state.set_head(repository.id(), &head)?;
        shared.state.set_streams(repository.id(), &draft.stream_notes)?;
        let finished: Vec<ObjectId> = refs.index.keys().copied().collect();
        shared.state.remove_unfinished_index(repository.id(), &finished)?;
        if checked.elapsed() >= self.check_holds {
            // Stopped, or sent to sleep, at the last moment: a prune may not have seen the header coming.
            self.check(&refs, refs_id, &refs_bytes)?;
        }
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
        let mut is_whole = join(&mut self.workers);
        if is_whole && !self.shared.failed.load(Ordering::SeqCst) {
            // Beside what is still on its way.
            self.shared.store_open()?;
        }
        self.archives = None;
        is_whole &= join(&mut self.uploaders);
        if let Some(failure) = lock(&self.shared.failure).take() {
            return Err(failure);
        }
        if !is_whole {
            return Err(RepositoryError::Worker);
        }
        // Every chunk of a finished stream is stored by now, or the run has failed.
        if lock(&self.shared.pending).is_empty() { Ok(()) } else { Err(RepositoryError::Worker) }
    }

    /// The failure of a worker, if there is one: the cause behind a stream's i/o error.
    pub fn take_failure(&self) -> Option<RepositoryError> {
        lock(&self.shared.failure).take()
    }

    /// Merges small index objects once too many cover the snapshot, or one that covers it is gone.
    fn merge_index(&self) -> Result<(), RepositoryError> {
        let covering = self.covering_index();
        // An index object that is known from the cache alone would be missed by every other reader: write it anew.
        let objects = lock(&self.shared.from_index).objects.clone();
        let lost = |at: &u32| {
            objects.get(*at as usize).is_none_or(|(id, length): &(ObjectId, u64)| {
                self.seen.index.get(id) != Some(length) || self.seen.condemned.is_lost(id)
            })
        };
        let many = covering.len() + lock(&self.shared.written).index.len() > MERGE_INDEX_OVER;
        if many || covering.iter().any(lost) { self.write_merged(&covering) } else { Ok(()) }
    }

    /// Positions of the index objects that finished streams use, in order.
    fn covering_index(&self) -> Vec<u32> {
        let mut used = lock(&self.used).index.iter().copied().collect::<Vec<_>>();
        used.sort_unstable();
        used
    }

    /// Writes what the covering index objects say of the archives in use into new ones, which take their place.
    fn write_merged(&self, covering: &[u32]) -> Result<(), RepositoryError> {
        let shared = &self.shared;
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
        tracing::debug!(before = covering.len(), "merged index objects");
        lock(&self.used).index.clear();
        Ok(())
    }

    fn table_error(&self, source: io::Error) -> RepositoryError {
        RepositoryError::File { action: "read the chunk table in", path: self.shared.state.dir().to_owned(), source }
    }

    /// All that the snapshot needs, and the refs object's bytes. Refs that another snapshot had before may be condemned
    /// with it, and their name cannot change while their content does not: a new index object gives them another.
    fn refs(&self) -> Result<(Refs, Vec<u8>), RepositoryError> {
        let refs = self.gather_refs();
        let bytes = refs.to_bytes();
        if !self.seen.condemned.is_lost(&object_id(&bytes)) {
            return Ok((refs, bytes));
        }
        self.write_merged(&self.covering_index())?;
        let refs = self.gather_refs();
        let bytes = refs.to_bytes();
        Ok((refs, bytes))
    }

    fn gather_refs(&self) -> Refs {
        let shared = &self.shared;
        let mut refs = Refs::default();
        let (used, written, table) = (lock(&self.used), lock(&shared.written), lock(&shared.table));
        let objects = &lock(&shared.from_index).objects;
        refs.archives.clone_from(&written.archives);
        refs.archives.extend(used.archives.iter().map(|at| {
            let archive = &table.archives[*at as usize];
            (archive.id, archive.length)
        }));
        refs.index.clone_from(&written.index);
        refs.index.extend(used.index.iter().map(|at| objects[*at as usize]));
        refs
    }

    /// Everything that the header will name is there with its length, seen just now, and not condemned for so long that
    /// it may be gone when the header is there. Trash alone does not tell: it goes with what it condemned, while a long run
    /// goes on. Refs that are gone are put again; the manifest is this snapshot's own.
    fn check(&self, refs: &Refs, refs_id: ObjectId, refs_bytes: &[u8]) -> Result<(), RepositoryError> {
        let repository = &self.shared.repository;
        let put_refs = || put_where_gone(repository.storage().as_ref(), &layout::refs(refs_id), refs_bytes);
        let (listed, (refs_there, condemned)) = parallel::both(
            || parallel::both(|| stored(repository, layout::ARCHIVES), || stored(repository, layout::INDEX)),
            || parallel::both(put_refs, || repository.condemned()),
        );
        let (archives, index) = listed.ok_or(RepositoryError::Worker)?;
        let (archives, index, condemned) = (archives.ok_or(RepositoryError::Worker)??, index?, condemned?);
        refs_there.ok_or(RepositoryError::Worker)??;
        let gone = |named: &BTreeMap<ObjectId, u64>, there: &HashMap<ObjectId, u64>| {
            named.iter().find(|(id, length)| there.get(id) != Some(length)).map(|(id, _)| *id)
        };
        let gone = gone(&refs.archives, &archives).or_else(|| gone(&refs.index, &index));
        let mut named = refs.archives.keys().chain(refs.index.keys()).chain([&refs_id]);
        match gone.or_else(|| named.find(|id| condemned.is_lost(id)).copied()) {
            Some(id) => Err(RepositoryError::ReferencedGone { id }),
            None => Ok(()),
        }
    }
}

fn put_where_gone(storage: &dyn Storage, key: &StorageKey, bytes: &[u8]) -> Result<(), RepositoryError> {
    if storage.head(key)?.is_none_or(|there| there.length != bytes.len() as u64) {
        storage.put_new(key, bytes)?;
    }
    Ok(())
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        // Without a commit the workers stop at the next segment.
        self.shared.failed.store(true, Ordering::SeqCst);
        self.segments = None;
        join(&mut self.workers);
        self.archives = None;
        join(&mut self.uploaders);
    }
}

/// Waits for threads; whether all of them ended well.
fn join(threads: &mut Vec<JoinHandle<()>>) -> bool {
    let ended: Vec<bool> = threads.drain(..).map(|thread| thread.join().is_ok()).collect();
    ended.into_iter().all(|well| well)
}

fn note_key(note: &StreamNote) -> (String, String) {
    (note.source.to_string(), note.stream.to_string())
}
