//! What of each archive is alive: the ids trees of every retained snapshot walked, and each chunk marked where it lies.
//!
//! Only archives under this host's dedup key, sealed to the recipients that count now, and needed by no other snapshot
//! (of another host or key, or one that the identity at hand does not open) may be rewritten. Whatever cannot be read
//! leaves its archives alone.

use super::{Bits, table_error};
use crate::base::cancel::Cancel;
use crate::base::ids::{ChunkId, HostName, ObjectId, Sequence};
use crate::pipeline::PipelineError;
use crate::pipeline::chunk::ChunkIdKey;
use crate::pipeline::crypt::{Identities, Recipients};
use crate::repository::chain::{Chain, Line, Snapshot, full_text};
use crate::repository::format::{IndexChunk, IndexObject, Manifest, SourceEntry, StreamEntry, StreamNote};
use crate::repository::frames::Frames;
use crate::repository::index::IndexLoader;
use crate::repository::reader::{load_manifest, load_refs, manifest_key};
use crate::repository::table::{ChunkTable, Location};
use crate::repository::tree::{self, Entry};
use crate::repository::{Repository, RepositoryError, layout};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

/// An archive of which less than so many percent are alive is rewritten.
pub const LIVE_PERCENT: u64 = 60;
/// Archives shorter than this are small …
pub const SMALL: u64 = 2 << 20;
/// … and joined once there are so many of them.
pub const SMALL_COUNT: usize = 16;

/// What to look at.
pub struct Look<'a> {
    pub repository: &'a Arc<Repository>,
    pub chain: &'a Chain,
    /// Headers of the snapshots that stay.
    pub retained: &'a HashSet<ObjectId>,
    pub host: &'a HostName,
    pub key: ChunkIdKey,
    pub identities: Arc<Identities>,
    pub recipients: &'a Recipients,
    /// Younger archives are left alone, as no prune would condemn them: a writer would count on them again.
    pub youngest: TimeDelta,
    pub cache: Option<PathBuf>,
    pub tmp: PathBuf,
    pub cancel: &'a Cancel,
}

/// What becomes of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Rewritten: less than [`LIVE_PERCENT`] of it are alive.
    PartlyDead,
    /// Rewritten: one of many small ones.
    Small,
    /// Stays: most of it is alive.
    Alive,
    /// Stays: a run may be counting on it.
    Young,
    /// Stays: sealed to other recipients than the policy's.
    OtherRecipients,
    /// Stays: a snapshot of another host needs it.
    OtherHost,
    /// Stays: a snapshot under another dedup key needs it.
    OtherKey,
    /// Stays: a snapshot needs it that the identity at hand does not open.
    Closed,
    /// Stays: it, or what would say what of it is alive, is damaged.
    Damaged,
}

impl Fate {
    pub fn is_rewritten(self) -> bool {
        matches!(self, Fate::PartlyDead | Fate::Small)
    }
}

/// How much of an archive is alive.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveUse {
    pub fate: Fate,
    /// As stored.
    pub bytes: u64,
    /// The live part of it, by the share of plain bytes; absent where it is not known.
    pub live_bytes: Option<u64>,
}

/// A snapshot that may get other refs.
#[derive(Debug, Clone)]
pub(super) struct Movable {
    pub line: Line,
    pub sequence: Sequence,
    pub header: ObjectId,
    pub refs: ObjectId,
}

/// See the module.
pub struct Survey {
    /// Every archive that a retained snapshot needs.
    pub archives: Vec<ArchiveUse>,
    /// What is damaged, and so left alone.
    pub problems: Vec<String>,
    /// Where chunks lie. [`Location::index`] says nothing here.
    pub(super) found: ChunkTable,
    pub(super) live: Bits,
    /// Chunks of `found` of which `copies` has more.
    pub(super) copied: Bits,
    /// Further copies of chunks in other archives, under made-up ids; in [`Location::index`] stands the position of the
    /// chunk in `found`, and archives are those of `found`.
    pub(super) copies: ChunkTable,
    /// Positions in `found.archives` that are to be rewritten, in order.
    pub(super) chosen: Vec<u32>,
    /// The archives of which each index object speaks.
    pub(super) index: HashMap<ObjectId, BTreeSet<u32>>,
    pub(super) notes: HashMap<ObjectId, Vec<StreamNote>>,
    pub(super) snapshots: Vec<Movable>,
    pub(super) tmp: PathBuf,
}

impl std::fmt::Debug for Survey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Survey").field("archives", &self.archives.len()).finish_non_exhaustive()
    }
}

/// Looks at everything that the retained snapshots need.
pub fn survey(look: &Look<'_>) -> Result<Survey, RepositoryError> {
    let table = || ChunkTable::new(&look.tmp).map_err(table_error(&look.tmp));
    let mut survey = Survey {
        archives: Vec::new(),
        problems: Vec::new(),
        found: table()?,
        live: Bits::default(),
        copied: Bits::default(),
        copies: table()?,
        chosen: Vec::new(),
        index: HashMap::new(),
        notes: HashMap::new(),
        snapshots: Vec::new(),
        tmp: look.tmp.clone(),
    };
    let mut left = Left::default();
    let mut own = Vec::new();
    for snapshot in look.chain.all().filter(|s| look.retained.contains(&s.header_id)) {
        look.cancel.check()?;
        match look.stranger(snapshot, &mut survey.problems)? {
            None => own.push(snapshot),
            Some(fate) => left.leave(look, snapshot, fate)?,
        }
    }
    let named = survey.load_index(look, &mut own, &mut left)?;
    survey.walk_all(look, own, &mut left)?;
    survey.judge(look, &named, &left)?;
    Ok(survey)
}

/// Archives that are left alone, with their lengths, because of other snapshots.
#[derive(Default)]
struct Left(HashMap<ObjectId, (Fate, u64)>);

impl Left {
    fn leave(&mut self, look: &Look<'_>, snapshot: &Snapshot, fate: Fate) -> Result<(), RepositoryError> {
        // Refs that cannot be read are an error: they may need anything.
        for (id, length) in load_refs(look.repository, snapshot.refs)?.archives {
            self.0.entry(id).or_insert((fate, length));
        }
        Ok(())
    }
}

impl Look<'_> {
    /// Why a snapshot's archives are left alone; none, where they are this host's, and can be read.
    fn stranger(&self, snapshot: &Snapshot, problems: &mut Vec<String>) -> Result<Option<Fate>, RepositoryError> {
        if snapshot.header.host != *self.host {
            return Ok(Some(Fate::OtherHost));
        }
        let manifest = match load_manifest(self.repository, snapshot, &self.identities) {
            Ok(manifest) => manifest,
            Err(RepositoryError::Pipeline(PipelineError::NoMatchingIdentity)) => return Ok(Some(Fate::Closed)),
            Err(e) if e.is_integrity() => {
                problems.push(full_text(&e));
                return Ok(Some(Fate::Damaged));
            }
            Err(e) => return Err(e),
        };
        if manifest_key(&manifest, snapshot)?.expose() != self.key.expose() {
            return Ok(Some(Fate::OtherKey));
        }
        let sealed_to = Recipients::parse(&manifest.recipients).map(|recipients| recipients.set_id());
        Ok(match sealed_to {
            Ok(set) if set == self.recipients.set_id() => None,
            _ => Some(Fate::OtherRecipients),
        })
    }
}

impl Survey {
    /// Takes every index object of these snapshots into the tables. Snapshots with one that cannot be read are left
    /// alone. The answer is every archive that they name.
    fn load_index(
        &mut self,
        look: &Look<'_>,
        own: &mut Vec<&Snapshot>,
        left: &mut Left,
    ) -> Result<BTreeMap<ObjectId, u64>, RepositoryError> {
        let (mut archives, mut index, mut seen) = (BTreeMap::new(), BTreeMap::new(), HashSet::new());
        for snapshot in own.iter().filter(|s| seen.insert(s.refs)) {
            look.cancel.check()?;
            let refs = load_refs(look.repository, snapshot.refs)?;
            archives.extend(refs.archives);
            index.extend(refs.index);
        }
        let loader =
            IndexLoader { repository: look.repository, identities: &look.identities, cache: look.cache.clone() };
        let mut bad = HashSet::new();
        for (id, length) in index {
            look.cancel.check()?;
            match loader.load(id, Some(length)) {
                Ok(object) => self.fill(look, id, &object, &archives)?,
                Err(e) if e.is_integrity() || is_closed(&e) => {
                    self.problems.push(format!("index object {id}: {}", full_text(&e)));
                    bad.insert(id);
                }
                Err(e) => return Err(e),
            }
        }
        if !bad.is_empty() {
            for snapshot in std::mem::take(own) {
                let refs = load_refs(look.repository, snapshot.refs)?;
                if refs.index.keys().any(|id| bad.contains(id)) {
                    left.leave(look, snapshot, Fate::Damaged)?;
                } else {
                    own.push(snapshot);
                }
            }
        }
        Ok(archives)
    }

    fn fill(
        &mut self,
        look: &Look<'_>,
        id: ObjectId,
        object: &IndexObject,
        named: &BTreeMap<ObjectId, u64>,
    ) -> Result<(), RepositoryError> {
        let error = table_error(&look.tmp);
        if object.dedup_key != look.key.dedup_id() {
            return Ok(());
        }
        let set = look.recipients.set_id();
        let usable = |archive: &crate::repository::format::IndexArchive| {
            named.get(&archive.id) == Some(&archive.length) && archive.recipients == set
        };
        let positions: Vec<Option<u32>> =
            object.archives.iter().map(|archive| usable(archive).then(|| self.found.archive(archive))).collect();
        self.index.insert(id, positions.iter().flatten().copied().collect());
        self.notes.insert(id, object.notes.streams.clone());
        for chunk in &object.chunks {
            let Some(Some(archive)) = positions.get(chunk.1 as usize) else { continue };
            match self.found.find(&chunk.0).map_err(&error)? {
                None => self.found.insert(chunk, *archive, 0).map_err(&error)?,
                Some((_, location)) if location.archive == *archive => {}
                Some((at, _)) => {
                    let IndexChunk(id, _, frame, frame_length, offset, length) = *chunk;
                    let copy = IndexChunk(copy_id(&id, *archive), 0, frame, frame_length, offset, length);
                    self.copies.insert(&copy, *archive, at).map_err(&error)?;
                    self.copied.set(at);
                }
            }
        }
        Ok(())
    }

    /// Marks what each snapshot needs; one whose ids cannot be followed is left alone.
    fn walk_all(&mut self, look: &Look<'_>, own: Vec<&Snapshot>, left: &mut Left) -> Result<(), RepositoryError> {
        let frames = Frames::new(look.repository.clone(), look.identities.clone());
        let mut walk = Walk { look, frames, found: &self.found, live: &mut self.live, seen: HashSet::new() };
        for snapshot in own {
            let walked = load_manifest(look.repository, snapshot, &look.identities).and_then(|m| walk.manifest(&m));
            match walked {
                Ok(()) => self.snapshots.push(Movable {
                    line: (snapshot.header.host.clone(), snapshot.header.policy.clone()),
                    sequence: snapshot.header.sequence,
                    header: snapshot.header_id,
                    refs: snapshot.refs,
                }),
                Err(e) if e.is_integrity() || is_closed(&e) => {
                    self.problems.push(format!("snapshot {}: {}", snapshot.header.id, full_text(&e)));
                    left.leave(look, snapshot, Fate::Damaged)?;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Sums up what is alive, and says what becomes of each archive.
    fn judge(&mut self, look: &Look<'_>, named: &BTreeMap<ObjectId, u64>, left: &Left) -> Result<(), RepositoryError> {
        let (plain, live) = self.sums()?;
        let clock = look.repository.storage().clock()?;
        let listed = look.repository.storage().list(layout::ARCHIVES)?;
        let stored: HashMap<ObjectId, (u64, DateTime<Utc>)> =
            listed.into_iter().filter_map(|o| Some((layout::object_id(&o.key)?, (o.length, o.modified)))).collect();
        let mut fates: Vec<Fate> = Vec::new();
        for (at, archive) in self.found.archives.iter().enumerate() {
            let fate = match (left.0.get(&archive.id), stored.get(&archive.id)) {
                (Some((fate, _)), _) => *fate,
                (None, Some((length, modified))) if *length == archive.length => {
                    if clock - *modified < look.youngest {
                        Fate::Young
                    } else if u128::from(live[at]) * 100 < u128::from(plain[at]) * u128::from(LIVE_PERCENT) {
                        Fate::PartlyDead
                    } else {
                        Fate::Alive
                    }
                }
                _ => {
                    let key = layout::archive(archive.id);
                    self.problems.push(format!("object {key} is missing, or not as long as it was"));
                    Fate::Damaged
                }
            };
            fates.push(fate);
        }
        let is_small = |at: usize, fate: Fate| fate == Fate::Alive && self.found.archives[at].length < SMALL;
        let small: Vec<usize> = (0..fates.len()).filter(|at| is_small(*at, fates[*at])).collect();
        if small.len() >= SMALL_COUNT {
            small.into_iter().for_each(|at| fates[at] = Fate::Small);
        }
        self.chosen = (0..fates.len() as u32).filter(|at| fates[*at as usize].is_rewritten()).collect();
        let mut known = HashSet::new();
        for (at, archive) in self.found.archives.iter().enumerate() {
            known.insert(archive.id);
            // What others need of it is not known.
            let is_known = matches!(fates[at], Fate::PartlyDead | Fate::Small | Fate::Alive | Fate::Young);
            let share = || u128::from(archive.length) * u128::from(live[at]) / u128::from(plain[at].max(1));
            let live_bytes = is_known.then(|| u64::try_from(share()).unwrap_or(archive.length));
            self.archives.push(ArchiveUse { fate: fates[at], bytes: archive.length, live_bytes });
        }
        let others = left.0.iter().map(|(id, (fate, length))| (id, *fate, *length));
        // Named, and unknown to the index: sealed to others, or nothing that anybody would miss.
        let unknown = named.iter().map(|(id, length)| (id, Fate::OtherRecipients, *length));
        for (id, fate, bytes) in others.chain(unknown) {
            if known.insert(*id) {
                self.archives.push(ArchiveUse { fate, bytes, live_bytes: None });
            }
        }
        Ok(())
    }

    /// Plain and live bytes of each archive, by its position.
    fn sums(&self) -> Result<(Vec<u64>, Vec<u64>), RepositoryError> {
        let mut plain = vec![0u64; self.found.archives.len()];
        let mut live = plain.clone();
        let mut add = |location: Location, is_live: bool| {
            let at = location.archive as usize;
            plain[at] += u64::from(location.length);
            live[at] += if is_live { u64::from(location.length) } else { 0 };
        };
        for at in 0..self.found.len() {
            add(self.entry(at)?.1, self.live.has(at));
        }
        for at in 0..self.copies.len() {
            let location = self.copy(at)?;
            // Somebody needs the chunk, and may find it only here.
            add(location, self.live.has(location.index));
        }
        Ok((plain, live))
    }

    pub(super) fn entry(&self, at: u32) -> Result<(ChunkId, Location), RepositoryError> {
        self.found.entry(at).map_err(table_error(&self.tmp))
    }

    pub(super) fn copy(&self, at: u32) -> Result<Location, RepositoryError> {
        Ok(self.copies.entry(at).map_err(table_error(&self.tmp))?.1)
    }
}

pub(super) fn is_closed(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::Pipeline(PipelineError::NoMatchingIdentity))
}

fn copy_id(id: &ChunkId, archive: u32) -> ChunkId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.0).update(&archive.to_le_bytes());
    ChunkId(*hasher.finalize().as_bytes())
}

/// A walk over the ids of many snapshots. What they share is walked once.
struct Walk<'w> {
    look: &'w Look<'w>,
    frames: Frames,
    found: &'w ChunkTable,
    live: &'w mut Bits,
    /// Lists of ids that have been followed to their ends.
    seen: HashSet<[u8; 32]>,
}

impl Walk<'_> {
    fn manifest(&mut self, manifest: &Manifest) -> Result<(), RepositoryError> {
        for source in &manifest.sources {
            for stream in &source.streams {
                let of = Of { source, stream };
                tree::check(&stream.ids, stream.length).map_err(|problem| of.error(problem))?;
                let mut hasher = blake3::Hasher::new();
                hasher.update(b"root").update(&[stream.ids.depth]);
                for (id, length) in &stream.ids.root {
                    hasher.update(&id.0).update(&length.to_le_bytes());
                }
                let name = *hasher.finalize().as_bytes();
                if !self.seen.contains(&name) {
                    self.entries(&stream.ids.root, stream.ids.depth, of)?;
                    self.seen.insert(name);
                }
            }
        }
        Ok(())
    }

    fn entries(&mut self, entries: &[Entry], depth: u8, of: Of<'_>) -> Result<(), RepositoryError> {
        for (id, length) in entries {
            let location = self.mark(id, of)?;
            if depth == 0 {
                if u64::from(location.length) != *length {
                    return Err(of.error(format!("chunk {id} has another length than its ids tree says")));
                }
                continue;
            }
            let mut hasher = blake3::Hasher::new();
            hasher.update(&id.0).update(&[depth]).update(&length.to_le_bytes());
            let name = *hasher.finalize().as_bytes();
            if self.seen.contains(&name) {
                continue;
            }
            self.look.cancel.check()?;
            let list = self.list(id, location)?;
            let below = tree::parse_list(&list, *length).map_err(|problem| of.error(problem))?;
            self.entries(&below, depth - 1, of)?;
            self.seen.insert(name);
        }
        Ok(())
    }

    fn mark(&mut self, id: &ChunkId, of: Of<'_>) -> Result<Location, RepositoryError> {
        let Some((at, location)) = self.found.find(id).map_err(table_error(&self.look.tmp))? else {
            return Err(RepositoryError::ChunkMissing {
                id: *id,
                stream: of.stream.name.to_string(),
                source_name: of.source.name.to_string(),
            });
        };
        self.live.set(at);
        Ok(location)
    }

    /// A list's bytes, proved.
    fn list(&self, id: &ChunkId, location: Location) -> Result<Vec<u8>, RepositoryError> {
        read_chunk(&self.frames, self.found, &self.look.key, id, location)
    }
}

/// The bytes of a chunk, proved by its keyed id.
pub(super) fn read_chunk(
    frames: &Frames,
    found: &ChunkTable,
    key: &ChunkIdKey,
    id: &ChunkId,
    location: Location,
) -> Result<Vec<u8>, RepositoryError> {
    let archive = found.archives.get(location.archive as usize).ok_or(RepositoryError::Worker)?;
    let frame = frames.frame(archive, location.frame_offset, location.frame_length)?;
    let content = frame.get(location.offset as usize..).and_then(|rest| rest.get(..location.length as usize));
    match content.filter(|content| key.id(content) == *id) {
        Some(content) => Ok(content.to_vec()),
        None => Err(RepositoryError::Damaged {
            key: layout::archive(archive.id),
            problem: format!("chunk {id} is not where the index says, or not what its id promises"),
        }),
    }
}

/// The stream that is being walked, for messages.
#[derive(Clone, Copy)]
struct Of<'a> {
    source: &'a SourceEntry,
    stream: &'a StreamEntry,
}

impl Of<'_> {
    fn error(&self, problem: String) -> RepositoryError {
        let (stream, source_name) = (self.stream.name.to_string(), self.source.name.to_string());
        RepositoryError::Stream { stream, source_name, problem }
    }
}
