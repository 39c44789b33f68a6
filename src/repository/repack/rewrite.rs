//! New archives, index objects and refs, a batch of old archives at a time.

use super::survey::{Movable, Survey, is_closed, read_chunk};
use crate::base::cancel::Cancel;
use crate::base::ids::{ChunkId, ObjectId, Sequence};
use crate::pipeline::archive::{ArchiveWriter, SealedArchive};
use crate::pipeline::chunk::ChunkIdKey;
use crate::pipeline::crypt::{Identities, Recipients, object_id};
use crate::pipeline::limits;
use crate::pipeline::segment::{FrameEncoder, Segment};
use crate::repository::chain::{Line, full_text};
use crate::repository::format::{IndexArchive, IndexChunk, Notes, StreamNote};
use crate::repository::frames::Frames;
use crate::repository::index::IndexDraft;
use crate::repository::reader::load_refs;
use crate::repository::refs::Refs;
use crate::repository::state::State;
use crate::repository::table::Location;
use crate::repository::{Repository, RepositoryError, layout};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Stored bytes of old archives after which what has been done so far is recorded.
pub const BATCH: u64 = 4 << 30;
/// Bytes of age headers in one index object: an archive for many recipients has a long one.
const INDEX_HEADERS: usize = 8 << 20;

/// Other refs for a snapshot: not true before a record says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub line: Line,
    pub sequence: Sequence,
    pub header: ObjectId,
    pub before: ObjectId,
    pub after: ObjectId,
}

/// Rewrites what a survey has chosen.
pub struct Rewriter<'a> {
    pub repository: &'a Arc<Repository>,
    pub survey: &'a Survey,
    pub key: ChunkIdKey,
    pub identities: Arc<Identities>,
    pub recipients: Recipients,
    pub index_recipients: Recipients,
    /// zstd level.
    pub compression: i32,
    pub state: &'a State,
    pub cancel: &'a Cancel,
    done: Done,
}

/// What stands behind the batches so far.
#[derive(Default)]
struct Done {
    /// Positions of archives that no snapshot of the survey names any more.
    retired: HashSet<u32>,
    /// Those of the batch that has been written last.
    last: HashSet<u32>,
    old: (usize, u64),
    /// Index objects that were written for archives that stay, and those archives.
    index: HashMap<ObjectId, BTreeSet<u32>>,
    /// Refs that count now, by header.
    refs: HashMap<ObjectId, ObjectId>,
    archives: usize,
    bytes: u64,
    problems: Vec<String>,
}

impl<'a> Rewriter<'a> {
    #[expect(clippy::too_many_arguments, reason = "each is another thing that a rewrite needs, and none has a default")]
    pub fn new(
        repository: &'a Arc<Repository>,
        survey: &'a Survey,
        key: ChunkIdKey,
        identities: Arc<Identities>,
        recipients: Recipients,
        host: &age::x25519::Recipient,
        compression: i32,
        state: &'a State,
        cancel: &'a Cancel,
    ) -> Self {
        let index_recipients = recipients.with(host);
        let done = Done::default();
        Self { repository, survey, key, identities, recipients, index_recipients, compression, state, cancel, done }
    }

    /// The archives that are to be rewritten, a batch at a time.
    pub fn batches(&self, batch_bytes: u64) -> Vec<Vec<u32>> {
        let mut batches: Vec<Vec<u32>> = Vec::new();
        let mut bytes = 0u64;
        for at in &self.survey.chosen {
            let length = self.survey.found.archives[*at as usize].length;
            if batches.is_empty() || bytes.saturating_add(length) > batch_bytes {
                batches.push(Vec::new());
                bytes = 0;
            }
            bytes += length;
            batches.last_mut().into_iter().for_each(|batch| batch.push(*at));
        }
        batches
    }

    /// New archives, index objects and refs for one batch: everything but the record. Damaged archives stay as they are.
    pub fn write(&mut self, batch: &[u32]) -> Result<Vec<Change>, RepositoryError> {
        let mut packer = Packer::new(self)?;
        let failed = self.move_chunks(batch, &mut packer)?;
        packer.finish()?;
        let mut old: HashSet<u32> = batch.iter().copied().collect();
        old.retain(|at| !failed.contains(at));
        let touched = self.touched(&old);
        let kept = self.index_kept(&mut packer, &old, &touched)?;
        packer.flush_index()?;
        let Packer { archives, archive_index, index, moved, .. } = packer;
        let new = New { archives, archive_index, index, moved, kept };
        let changes = self.refs(&old, &touched, &new)?;
        self.done.archives += new.archives.len();
        self.done.bytes += new.archives.iter().map(|(_, length)| length).sum::<u64>();
        for (at, _) in new.index.iter().enumerate() {
            let of: BTreeSet<u32> = new.kept.iter().filter(|(_, s)| s.contains(&at)).map(|(k, _)| *k).collect();
            self.done.index.insert(new.index[at].0, of);
        }
        self.done.last = old;
        Ok(changes)
    }

    /// The record is there: what it says is true.
    pub fn recorded(&mut self, changes: &[Change]) {
        self.done.refs.extend(changes.iter().map(|change| (change.header, change.after)));
        self.done.old.0 += self.done.last.len();
        let archives = &self.survey.found.archives;
        self.done.old.1 += self.done.last.iter().map(|at| archives[*at as usize].length).sum::<u64>();
        self.done.retired.extend(self.done.last.drain());
    }

    /// Old archives so far that no snapshot of the survey names any more, and their bytes.
    pub fn replaced(&self) -> (usize, u64) {
        self.done.old
    }

    /// Snapshots so far whose chunks lie elsewhere now.
    pub fn moved(&self) -> usize {
        self.done.refs.len()
    }

    /// New archives so far, and their bytes.
    pub fn written(&self) -> (usize, u64) {
        (self.done.archives, self.done.bytes)
    }

    /// Archives that were left alone after all, and why.
    pub fn problems(&self) -> &[String] {
        &self.done.problems
    }

    /// Reads every live chunk of the batch and hands it to the packer. The answer are archives that could not be read.
    fn move_chunks(&mut self, batch: &[u32], packer: &mut Packer<'_>) -> Result<HashSet<u32>, RepositoryError> {
        let survey = self.survey;
        let batch: HashSet<u32> = batch.iter().copied().collect();
        let frames = Frames::new(self.repository.clone(), self.identities.clone());
        let mut failed = HashSet::new();
        // Where the chunks went that have copies in other archives: these follow them.
        let mut went: HashMap<u32, usize> = HashMap::new();
        let mut read = |id: &ChunkId, location: Location| {
            if failed.contains(&location.archive) {
                return Ok(None);
            }
            match read_chunk(&frames, &survey.found, &self.key, id, location) {
                Ok(content) => Ok(Some(content)),
                Err(e) if e.is_integrity() || is_closed(&e) => {
                    self.done.problems.push(full_text(&e));
                    failed.insert(location.archive);
                    Ok(None)
                }
                Err(e) => Err(e),
            }
        };
        for at in (0..survey.found.len()).filter(|at| survey.live.has(*at)) {
            let (id, location) = survey.entry(at)?;
            if !batch.contains(&location.archive) {
                continue;
            }
            self.cancel.check()?;
            if let Some(content) = read(&id, location)? {
                let to = packer.push(id, &content, location.archive)?;
                if survey.copied.has(at) {
                    went.insert(at, to);
                }
            }
        }
        for at in 0..survey.copies.len() {
            let location = survey.copy(at)?;
            if !batch.contains(&location.archive) || !survey.live.has(location.index) {
                continue;
            }
            self.cancel.check()?;
            if let Some(to) = went.get(&location.index) {
                packer.moved.entry(location.archive).or_default().insert(*to);
                continue;
            }
            let id = survey.entry(location.index)?.0;
            if let Some(content) = read(&id, location)? {
                let to = packer.push(id, &content, location.archive)?;
                went.insert(location.index, to);
            }
        }
        Ok(failed)
    }

    /// Index objects that speak of archives which go.
    fn touched(&self, old: &HashSet<u32>) -> HashMap<ObjectId, BTreeSet<u32>> {
        let all = self.survey.index.iter().chain(&self.done.index);
        let stays = |archives: &BTreeSet<u32>| {
            archives.iter().filter(|at| !old.contains(at) && !self.done.retired.contains(at)).copied().collect()
        };
        all.filter(|(_, archives)| archives.iter().any(|at| old.contains(at)))
            .map(|(id, archives)| (*id, stays(archives)))
            .collect()
    }

    /// What index objects that go say of archives that stay, in new ones. The answer is which speak of each archive.
    fn index_kept(
        &self,
        packer: &mut Packer<'_>,
        old: &HashSet<u32>,
        touched: &HashMap<ObjectId, BTreeSet<u32>>,
    ) -> Result<HashMap<u32, BTreeSet<usize>>, RepositoryError> {
        let survey = self.survey;
        let mut notes: BTreeMap<String, StreamNote> = BTreeMap::new();
        for note in touched.keys().filter_map(|id| survey.notes.get(id)).flatten() {
            notes.insert(format!("{} {} {}", note.policy, note.source, note.stream), note.clone());
        }
        packer.notes = notes.into_values().collect();
        // New archives and those that stay do not share one: the next batch may replace what is said of the latter.
        packer.flush_index()?;
        let stays: HashSet<u32> = touched.values().flatten().copied().filter(|at| !old.contains(at)).collect();
        let mut kept: HashMap<u32, BTreeSet<usize>> = HashMap::new();
        if stays.is_empty() {
            return Ok(kept);
        }
        let mut add = |packer: &mut Packer<'_>, id: ChunkId, at: Location| -> Result<(), RepositoryError> {
            if stays.contains(&at.archive) {
                let archive = &survey.found.archives[at.archive as usize];
                let entry = IndexChunk(id, 0, at.frame_offset, at.frame_length, at.offset, at.length);
                kept.entry(at.archive).or_default().insert(packer.index_chunk(archive, entry)?);
            }
            Ok(())
        };
        for at in 0..survey.found.len() {
            let (id, location) = survey.entry(at)?;
            add(packer, id, location)?;
        }
        for at in 0..survey.copies.len() {
            let location = survey.copy(at)?;
            add(packer, survey.entry(location.index)?.0, location)?;
        }
        Ok(kept)
    }

    /// New refs for every snapshot that names an archive which goes.
    fn refs(
        &self,
        old: &HashSet<u32>,
        touched: &HashMap<ObjectId, BTreeSet<u32>>,
        new: &New,
    ) -> Result<Vec<Change>, RepositoryError> {
        let archives = &self.survey.found.archives;
        let positions: HashMap<ObjectId, u32> =
            archives.iter().enumerate().map(|(at, archive)| (archive.id, at as u32)).collect();
        let mut known: HashMap<ObjectId, Option<ObjectId>> = HashMap::new();
        let mut changes = Vec::new();
        for Movable { line, sequence, header, refs } in &self.survey.snapshots {
            self.cancel.check()?;
            let before = *self.done.refs.get(header).unwrap_or(refs);
            let after = match known.get(&before) {
                Some(after) => *after,
                None => {
                    let changed = new.refs(load_refs(self.repository, before)?, archives, &positions, old, touched);
                    let after = changed.map(|refs| self.put_refs(&refs)).transpose()?;
                    known.insert(before, after);
                    after
                }
            };
            if let Some(after) = after {
                let (line, sequence, header) = (line.clone(), *sequence, *header);
                changes.push(Change { line, sequence, header, before, after });
            }
        }
        Ok(changes)
    }

    fn put_refs(&self, refs: &Refs) -> Result<ObjectId, RepositoryError> {
        let bytes = refs.to_bytes();
        let id = object_id(&bytes);
        self.repository.storage().put_new(&layout::refs(id), &bytes)?;
        Ok(id)
    }
}

/// What a batch has written.
struct New {
    archives: Vec<(ObjectId, u64)>,
    /// By archive: its index object.
    archive_index: Vec<usize>,
    index: Vec<(ObjectId, u64)>,
    /// Where what was alive of an old archive is now.
    moved: HashMap<u32, BTreeSet<usize>>,
    /// Which new index objects speak of an archive that stays.
    kept: HashMap<u32, BTreeSet<usize>>,
}

impl New {
    /// A snapshot's refs with new archives in place of old ones; none, where it names no old one.
    fn refs(
        &self,
        mut refs: Refs,
        all: &[IndexArchive],
        positions: &HashMap<ObjectId, u32>,
        old: &HashSet<u32>,
        touched: &HashMap<ObjectId, BTreeSet<u32>>,
    ) -> Option<Refs> {
        let goes = |id: &ObjectId| positions.get(id).copied().filter(|at| old.contains(at));
        let gone: Vec<u32> = refs.archives.keys().filter_map(goes).collect();
        if gone.is_empty() {
            return None;
        }
        refs.archives.retain(|id, _| goes(id).is_none());
        let mut index: BTreeSet<usize> = BTreeSet::new();
        for at in gone.iter().filter_map(|at| self.moved.get(at)).flatten() {
            let (id, length) = self.archives[*at];
            refs.archives.insert(id, length);
            index.insert(self.archive_index[*at]);
        }
        // An index object that speaks of what is gone is gone with it; what it says of the rest, others say now.
        for archives in refs.index.keys().filter_map(|id| touched.get(id)) {
            let named = |at: &&u32| refs.archives.contains_key(&all[**at as usize].id);
            index.extend(archives.iter().filter(named).filter_map(|at| self.kept.get(at)).flatten());
        }
        refs.index.retain(|id, _| !touched.contains_key(id));
        refs.index.extend(index.into_iter().map(|at| self.index[at]));
        Some(refs)
    }
}

/// Chunks in, archives and index objects out, one after the other.
struct Packer<'p> {
    repository: Arc<Repository>,
    state: &'p State,
    key: ChunkIdKey,
    recipients: Recipients,
    index_recipients: Recipients,
    encoder: FrameEncoder,
    segment: Segment,
    open: Option<ArchiveWriter>,
    draft: IndexDraft,
    /// Positions of archives in the draft.
    drafted: HashMap<ObjectId, u32>,
    draft_headers: usize,
    notes: Vec<StreamNote>,
    archives: Vec<(ObjectId, u64)>,
    archive_index: Vec<usize>,
    index: Vec<(ObjectId, u64)>,
    moved: HashMap<u32, BTreeSet<usize>>,
}

impl<'p> Packer<'p> {
    fn new(rewriter: &Rewriter<'p>) -> Result<Self, RepositoryError> {
        Ok(Self {
            repository: rewriter.repository.clone(),
            state: rewriter.state,
            key: ChunkIdKey::from_bytes(*rewriter.key.expose()),
            recipients: rewriter.recipients.clone(),
            index_recipients: rewriter.index_recipients.clone(),
            encoder: FrameEncoder::new(rewriter.compression)?,
            segment: Segment::default(),
            open: None,
            draft: IndexDraft::default(),
            drafted: HashMap::new(),
            draft_headers: 0,
            notes: Vec::new(),
            archives: Vec::new(),
            archive_index: Vec::new(),
            index: Vec::new(),
            moved: HashMap::new(),
        })
    }

    /// Takes a chunk of the archive at `from`; the answer is the number of the new archive that it will be in.
    fn push(&mut self, id: ChunkId, content: &[u8], from: u32) -> Result<usize, RepositoryError> {
        if !self.segment.has_room(content.len()) {
            self.end_segment()?;
        }
        self.segment.push(id, content);
        let to = self.archives.len();
        self.moved.entry(from).or_default().insert(to);
        Ok(to)
    }

    fn end_segment(&mut self) -> Result<(), RepositoryError> {
        let segment = std::mem::take(&mut self.segment);
        if segment.is_empty() {
            return Ok(());
        }
        let frame = self.encoder.encode_segment(&segment)?;
        let mut archive = match self.open.take() {
            Some(archive) => archive,
            None => ArchiveWriter::new(&self.recipients)?,
        };
        archive.push(&segment, &frame)?;
        if archive.is_full() {
            let sealed = archive.finish(&mut self.encoder)?;
            return self.store(&sealed);
        }
        self.open = Some(archive);
        Ok(())
    }

    /// Stores what is left.
    fn finish(&mut self) -> Result<(), RepositoryError> {
        self.end_segment()?;
        match self.open.take() {
            Some(archive) => {
                let sealed = archive.finish(&mut self.encoder)?;
                self.store(&sealed)
            }
            None => Ok(()),
        }
    }

    fn store(&mut self, sealed: &SealedArchive) -> Result<(), RepositoryError> {
        let length = sealed.bytes().len() as u64;
        self.repository.storage().put_new(&layout::archive(sealed.id()), sealed.bytes())?;
        let recipients = self.recipients.set_id();
        let archive = IndexArchive { id: sealed.id(), length, header: sealed.header().to_vec(), recipients };
        let chunks: usize = sealed.frames().iter().map(|frame| frame.chunks.len()).sum();
        // All that is said of a new archive stands in one index object.
        if self.draft.chunks.len() + chunks > limits::INDEX_ENTRIES {
            self.flush_index()?;
        }
        for frame in sealed.frames() {
            for chunk in &frame.chunks {
                let entry = IndexChunk(chunk.id, 0, frame.offset, frame.length, chunk.offset, chunk.length);
                self.index_chunk(&archive, entry)?;
            }
        }
        self.archives.push((archive.id, length));
        self.archive_index.push(self.index.len());
        Ok(())
    }

    /// Adds an entry to the open index object; the answer is its number.
    fn index_chunk(&mut self, archive: &IndexArchive, chunk: IndexChunk) -> Result<usize, RepositoryError> {
        if self.draft.chunks.len() >= limits::INDEX_ENTRIES {
            self.flush_index()?;
        }
        let position = match self.drafted.get(&archive.id) {
            Some(position) => *position,
            None => {
                if self.draft_headers + archive.header.len() > INDEX_HEADERS {
                    self.flush_index()?;
                }
                let position = self.draft.archives.len() as u32;
                self.draft_headers += archive.header.len();
                self.draft.archives.push(archive.clone());
                self.drafted.insert(archive.id, position);
                position
            }
        };
        let IndexChunk(id, _, frame_offset, frame_length, offset, length) = chunk;
        self.draft.chunks.push(IndexChunk(id, position, frame_offset, frame_length, offset, length));
        Ok(self.index.len())
    }

    /// Stores the open index object. This host's state remembers it, so that the next snapshot knows what is in it.
    fn flush_index(&mut self) -> Result<(), RepositoryError> {
        let draft = std::mem::take(&mut self.draft);
        self.drafted.clear();
        self.draft_headers = 0;
        if draft.is_empty() {
            return Ok(());
        }
        let notes = Notes { streams: std::mem::take(&mut self.notes) };
        let sealed = draft.seal(self.key.dedup_id(), notes, &self.index_recipients)?;
        let length = sealed.bytes().len() as u64;
        self.repository.storage().put_new(&layout::index(sealed.id()), sealed.bytes())?;
        self.state.add_unfinished_index(self.repository.id(), sealed.id(), length)?;
        self.index.push((sealed.id(), length));
        Ok(())
    }
}
