//! *deep*: archives decoded once for all snapshots together, index objects compared with them, streams walked and
//! hashed. And, at the weaker levels, the sources that damage costs, as far as the identity at hand can tell.

use super::chunks::{Chunks, Keys};
use super::streams::Walk;
use super::{Check, Needed, Progress};
use crate::base::ids::{HostName, ObjectId, PolicyName, SnapshotId};
use crate::ops::OpsError;
use crate::pipeline::PipelineError;
use crate::pipeline::crypt::Identities;
use crate::repository::chain::Snapshot;
use crate::repository::format::{IndexObject, Manifest, Outcome};
use crate::repository::frames::Frames;
use crate::repository::index::IndexLoader;
use crate::repository::reader::SnapshotReader;
use crate::repository::reader::{load_manifest, manifest_key};
use crate::repository::{RepositoryError, layout, scan};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

/// Snapshots whose manifest opens, with the number of their key.
type Opened<'a> = Vec<(&'a Snapshot, u32)>;

impl<'a> Check<'a> {
    /// Everything proved.
    pub(super) fn deep(
        &self,
        snapshots: &[&'a Snapshot],
        needed: &Needed,
        only: &[SnapshotId],
    ) -> Result<(), OpsError> {
        let identities = self.access.identities("a deep verification")?;
        self.read_details(needed)?;
        let mut keys = Keys::default();
        let opened = self.open_all(snapshots, &identities, &mut keys)?;
        let provable = self.provable(&opened)?;
        let chunks = self.scan_archives(needed, &provable, &identities, &keys)?;
        let mut chunks = chunks.into_inner().unwrap_or_else(PoisonError::into_inner);
        let frames = Frames::new(self.access.repository.clone(), identities.clone());
        let bad = self.bad_archives();
        self.run.events.step(format!("comparing {} index objects", needed.index.len()));
        for (id, length) in &needed.index {
            let Some(object) = self.load_index(*id, *length, &identities)? else { continue };
            self.salvage(&mut chunks, &frames, &object, &bad, &keys)?;
            if let Some(problem) = compare(&object, &chunks, &provable, &bad)? {
                self.ledger().find(layout::index(*id).as_str(), &problem);
            }
        }
        self.walk_all(&opened, &chunks, &frames, &keys, &identities)?;
        self.hash_streams(&opened, only)
    }

    /// Opens every manifest once, for the keys; one that does not open costs its snapshot.
    fn open_all(
        &self,
        snapshots: &[&'a Snapshot],
        identities: &Identities,
        keys: &mut Keys,
    ) -> Result<Opened<'a>, OpsError> {
        self.run.events.step(format!("opening {} manifests", snapshots.len()));
        let mut opened = Vec::new();
        let mut foreign = 0;
        for snapshot in snapshots {
            self.run.cancel.check()?;
            let read = load_manifest(self.repository(), snapshot, identities)
                .and_then(|manifest| manifest_key(&manifest, snapshot));
            match read {
                Ok(key) => {
                    opened.push((*snapshot, keys.number(key)));
                    self.bytes_read.fetch_add(snapshot.header.manifest_bytes, Ordering::Relaxed);
                }
                Err(RepositoryError::Pipeline(PipelineError::NoMatchingIdentity)) => {
                    foreign += 1;
                    let text = "the identity at hand is no recipient of this snapshot: its content is not proved";
                    self.ledger().note(snapshot.key.as_str(), text);
                }
                Err(e) if e.is_integrity() => {
                    let object = self.settle(&e, snapshot.key.as_str());
                    self.ledger().cost(&object, &snapshot.header.id, None);
                }
                Err(e) => return Err(e.into()),
            }
        }
        if opened.is_empty() && foreign > 0 {
            return Err(RepositoryError::Pipeline(PipelineError::NoMatchingIdentity).into());
        }
        Ok(opened)
    }

    /// The archives of the snapshots that were opened: only of these the keys are known.
    fn provable(&self, opened: &Opened<'_>) -> Result<HashSet<ObjectId>, OpsError> {
        let mut provable = HashSet::new();
        for (snapshot, _) in opened {
            let Some(refs) = self.refs(snapshot)? else { continue };
            provable.extend(refs.archives.into_keys());
        }
        Ok(provable)
    }

    /// Reads, hashes and decodes every archive once.
    fn scan_archives(
        &self,
        needed: &Needed,
        provable: &HashSet<ObjectId>,
        identities: &Identities,
        keys: &Keys,
    ) -> Result<Mutex<Chunks>, OpsError> {
        let chunks = Mutex::new(Chunks::new(self.tmp(), true)?);
        let archives: Vec<(ObjectId, u64)> = needed
            .archives
            .iter()
            .map(|(id, length)| (*id, *length))
            .filter(|(id, _)| self.inventory.archives.contains_key(id))
            .collect();
        let bytes = archives.iter().map(|(_, length)| *length).fold(0, u64::saturating_add);
        self.run.events.step(format!("decoding {} archives", archives.len()));
        let progress = Progress::begin(self.run, "repository", bytes);
        self.each(&archives, |(id, length)| {
            let is_provable = provable.contains(id);
            let keys = if is_provable { &keys.0[..] } else { &[] };
            let scanned = match scan::archive(self.repository(), (*id, *length), identities, keys, &self.run.cancel) {
                // Of a snapshot that is sealed to others.
                Err(RepositoryError::Pipeline(PipelineError::NoMatchingIdentity)) if !is_provable => return Ok(()),
                scanned => scanned?,
            };
            self.bytes_read.fetch_add(*length, Ordering::Relaxed);
            progress.add(*length);
            let key = layout::archive(*id).to_string();
            if let Some(problem) = &scanned.problem {
                self.settle(problem, &key);
            }
            if !is_provable {
                return Ok(());
            }
            if let Some(unproved) = scanned.unproved.first() {
                self.ledger().find(&key, &format!("chunk {unproved} is not what its id promises"));
            }
            let mut chunks = chunks.lock().unwrap_or_else(PoisonError::into_inner);
            scanned.chunks.iter().try_for_each(|(chunk, key)| chunks.add(&scanned.archive, chunk, *key))
        })?;
        Ok(chunks)
    }

    /// An index object as it is stored, never from the cache; none, and a finding, when it is damaged.
    fn load_index(&self, id: ObjectId, length: u64, identities: &Identities) -> Result<Option<IndexObject>, OpsError> {
        self.run.cancel.check()?;
        if !self.inventory.index.contains_key(&id) {
            return Ok(None);
        }
        let loader = IndexLoader { repository: self.repository(), identities, cache: None };
        match loader.load(id, Some(length)) {
            Ok(object) => {
                self.bytes_read.fetch_add(length, Ordering::Relaxed);
                Ok(Some(object))
            }
            Err(RepositoryError::Pipeline(PipelineError::NoMatchingIdentity)) => Ok(None),
            Err(e) if e.is_integrity() => {
                self.settle(&e, layout::index(id).as_str());
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn walk_all(
        &self,
        opened: &Opened<'_>,
        chunks: &Chunks,
        frames: &Frames,
        keys: &Keys,
        identities: &Identities,
    ) -> Result<(), OpsError> {
        self.run.events.step(format!("following the streams of {} snapshots", opened.len()));
        let mut walk = Walk::new(self, chunks, frames, keys);
        for (snapshot, key) in opened {
            let Some(refs) = self.refs(snapshot)? else { continue };
            if let Some(manifest) = self.again(snapshot, load_manifest(self.repository(), snapshot, identities))? {
                walk.snapshot(snapshot, &manifest, &refs, *key)?;
            }
        }
        Ok(())
    }

    /// What was read before, read again. Damage has its finding by now; a disk that cannot read every time gives it one.
    fn again<T>(&self, snapshot: &Snapshot, read: Result<T, RepositoryError>) -> Result<Option<T>, OpsError> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(e) if e.is_integrity() => {
                let object = e.object().map_or_else(|| snapshot.key.to_string(), ToString::to_string);
                if !self.ledger().has(&object) {
                    self.settle(&e, &object);
                    self.ledger().cost(&object, &snapshot.header.id, None);
                }
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Reads the streams that have a SHA-256 as a restore would: of the snapshots named, or else of the newest complete
    /// one of each host and policy.
    fn hash_streams(&self, opened: &Opened<'_>, only: &[SnapshotId]) -> Result<(), OpsError> {
        let mut newest: BTreeMap<(&HostName, &PolicyName), &Snapshot> = BTreeMap::new();
        let mut chosen: Vec<&Snapshot> = Vec::new();
        for (snapshot, _) in opened {
            let header = &snapshot.header;
            if !only.is_empty() {
                chosen.push(snapshot);
            } else if header.outcome == Outcome::Complete {
                newest.insert((&header.host, &header.policy), snapshot);
            }
        }
        chosen.extend(newest.into_values());
        for snapshot in chosen {
            self.run.events.step(format!("hashing the streams of snapshot {}", snapshot.header.id));
            let Some(reader) = self.reader(snapshot)? else { continue };
            for source in &reader.manifest.sources {
                let hashed = || source.streams.iter().filter(|stream| stream.sha256.is_some());
                let progress = Progress::begin(
                    self.run,
                    source.name.as_str(),
                    hashed().map(|stream| stream.length).fold(0, u64::saturating_add),
                );
                for stream in hashed() {
                    let mut open = match reader.stream(source, stream, 0) {
                        Ok(open) => open,
                        Err(e) if e.is_integrity() => {
                            self.blame(&e, snapshot, source);
                            continue;
                        }
                        Err(e) => return Err(e.into()),
                    };
                    if let Err(e) = read_to_end(&mut open, &progress) {
                        match open.take_failure() {
                            Some(failure) if failure.is_integrity() => self.blame(&failure, snapshot, source),
                            Some(failure) => return Err(failure.into()),
                            None => return Err(OpsError::file("read a stream of", self.tmp(), e)),
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn reader(&self, snapshot: &Snapshot) -> Result<Option<Arc<SnapshotReader>>, OpsError> {
        match self.access.reader(snapshot, "a deep verification", self.run) {
            Ok(reader) => Ok(Some(reader)),
            Err(OpsError::Repository(e)) => self.again(snapshot, Err(e)),
            Err(e) => Err(e),
        }
    }

    /// At the weaker levels: the sources that damaged archives cost, where an identity is at hand.
    pub(super) fn costs(&self, snapshots: &[&'a Snapshot]) -> Result<(), OpsError> {
        let bad = self.bad_archives();
        let Some(identities) = self.access.identities.as_ref().filter(|_| !bad.is_empty()) else { return Ok(()) };
        let mut keys = Keys::default();
        let mut affected: Opened<'_> = Vec::new();
        let mut index: HashMap<ObjectId, u64> = HashMap::new();
        for snapshot in snapshots {
            let Some(refs) = self.refs(snapshot)? else { continue };
            if !bad.iter().any(|id| refs.archives.contains_key(id)) {
                continue;
            }
            let Some(manifest) = self.manifest(snapshot, identities)? else { continue };
            let Ok(key) = manifest_key(&manifest, snapshot) else { continue };
            affected.push((snapshot, keys.number(key)));
            index.extend(refs.index);
        }
        let mut chunks = Chunks::new(self.tmp(), false)?;
        let frames = Frames::new(self.access.repository.clone(), identities.clone());
        for (id, length) in index {
            let Some(object) = self.load_index(id, length, identities)? else { continue };
            self.salvage(&mut chunks, &frames, &object, &bad, &keys)?;
            for chunk in &object.chunks {
                let archive = object.archives.get(chunk.1 as usize);
                if let Some(archive) = archive.filter(|archive| !bad.contains(&archive.id)) {
                    chunks.add(archive, chunk, 0)?;
                }
            }
        }
        self.walk_all(&affected, &chunks, &frames, &keys, identities)
    }

    /// A manifest, where the identity at hand opens it; one that is damaged has its finding, or gets it from a closer
    /// look.
    fn manifest(&self, snapshot: &Snapshot, identities: &Identities) -> Result<Option<Manifest>, OpsError> {
        match load_manifest(self.repository(), snapshot, identities) {
            Err(RepositoryError::Pipeline(PipelineError::NoMatchingIdentity)) => Ok(None),
            read => self.again(snapshot, read),
        }
    }
}

/// What an index object says against what the archives hold. The answer is its first lie.
fn compare(
    object: &IndexObject,
    chunks: &Chunks,
    provable: &HashSet<ObjectId>,
    bad: &HashSet<ObjectId>,
) -> Result<Option<String>, OpsError> {
    let known: HashMap<ObjectId, &[u8]> =
        chunks.found.archives.iter().map(|archive| (archive.id, &archive.header[..])).collect();
    for archive in &object.archives {
        if !bad.contains(&archive.id) && known.get(&archive.id).is_some_and(|header| *header != archive.header) {
            return Ok(Some(format!("what it says of archive {} is wrong", archive.id)));
        }
    }
    for chunk in &object.chunks {
        let Some(archive) = object.archives.get(chunk.1 as usize) else {
            return Ok(Some(format!("it places chunk {} in an archive that it does not name", chunk.0)));
        };
        if bad.contains(&archive.id) || !provable.contains(&archive.id) {
            continue;
        }
        let place = chunks.within(&chunk.0, &archive.id)?;
        let is_right = place.is_some_and(|place| {
            (place.frame_offset, place.frame_length, place.offset, place.length) == (chunk.2, chunk.3, chunk.4, chunk.5)
        });
        if !is_right {
            return Ok(Some(format!("chunk {} is not where it says", chunk.0)));
        }
    }
    Ok(None)
}

fn read_to_end(stream: &mut impl Read, progress: &Progress<'_>) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => progress.add(n as u64),
        }
    }
}
