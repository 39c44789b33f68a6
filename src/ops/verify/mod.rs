//! `verify`: is everything that is stored still what it was; and where it is not, which snapshots and sources that costs.
//!
//! Three levels, each all of the one before it:
//! - *objects*, without any key: root, signers, headers and their order, records, trash; refs hashed; every manifest,
//!   archive and index object there with its length. One list of the storage, no request per object.
//! - *read-data*, without any key: every stored byte read and hashed, details of drills included.
//! - *deep*, with the identity: every archive decoded once for all snapshots together, every chunk of it proved by its
//!   keyed id, every index entry compared, every stream's ids walked; and the streams that have a SHA-256 hashed, for
//!   the newest complete snapshot of each host and policy and for those named.
//!
//! Verification changes nothing, and goes on past damage: each damaged object is one finding. With the identity at hand
//! a finding says which sources it costs; without, which snapshots.

mod chunks;
mod deep;
mod inventory;
mod ledger;
mod objects;
mod slices;
mod streams;

use crate::base::events::Event;
use crate::base::ids::{ObjectId, RepositoryId, SnapshotId, SourceName};
use crate::ops::access::Access;
use crate::ops::{ErrorKind, OpsError, Run};
use crate::pipeline::limits;
use crate::repository::chain::Snapshot;
use crate::repository::parallel::{REFS_AT_ONCE, at_once};
use crate::repository::reader::load_refs;
use crate::repository::refs::Refs;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::{Tampered, Tampering};
use inventory::Inventory;
use ledger::Ledger;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use ledger::{Finding, Note};
pub use slices::Slice;

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "level", rename_all = "kebab-case")]
pub enum Level {
    /// Everything that needs no reading of data.
    Objects,
    /// Every stored object re-hashed; of the archives so many percent, other ones in every run.
    ReadData { percent: u8 },
    /// Everything decrypted, decoded and proved.
    Deep,
}

/// What was checked, and what was found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    pub repository: RepositoryId,
    #[serde(flatten)]
    pub level: Level,
    /// Which part of the archives was read, where it was not all of them.
    pub slice: Option<Slice>,
    pub snapshots: usize,
    /// Stored objects of this format.
    pub objects: usize,
    pub bytes_read: u64,
    pub findings: Vec<Finding>,
    /// Findings beyond the first ten thousand, which are not named.
    pub more_findings: usize,
    /// What somebody deleted or overwrote behind its lock: it is read all the same, and somebody tried.
    pub tampered: Vec<Note>,
    /// What is odd, and harms nothing.
    pub notes: Vec<Note>,
    /// What no snapshot needs: left by runs that ended early, or not pruned yet. Absent when only some snapshots were
    /// checked.
    pub unreferenced: Option<Unreferenced>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Unreferenced {
    pub objects: usize,
    pub bytes: u64,
}

impl VerifyReport {
    /// The tier of failure that the exit code tells: integrity, as soon as anything was found.
    pub fn failure(&self) -> Option<ErrorKind> {
        (!self.findings.is_empty() || !self.tampered.is_empty()).then_some(ErrorKind::Integrity)
    }
}

/// What all steps share.
struct Check<'a> {
    access: &'a Access,
    run: &'a Run,
    inventory: Inventory,
    ledger: Mutex<Ledger>,
    bytes_read: AtomicU64,
}

/// All that the checked snapshots need, with lengths. Refs themselves are read again where they are asked for: together
/// they may be larger than memory.
#[derive(Default)]
struct Needed {
    archives: BTreeMap<ObjectId, u64>,
    index: BTreeMap<ObjectId, u64>,
    /// Details of drills: no snapshot names them, the signed outcomes do.
    details: BTreeMap<ObjectId, u64>,
}

/// Verifies a repository; `only` these snapshots, or all. Objects that no snapshot owns are always checked.
pub fn verify(access: &Access, level: Level, only: &[SnapshotId], run: &Run) -> Result<VerifyReport, OpsError> {
    if level == Level::Deep {
        access.identities("a deep verification")?;
    }
    run.events.step("listing the repository");
    let inventory = Inventory::list(&access.repository)?;
    if let Some(state) = &access.state {
        state.tidy_index_cache(access.repository.id(), |id| inventory.index.contains_key(id));
    }
    let check = Check { access, run, inventory, ledger: Mutex::default(), bytes_read: AtomicU64::new(0) };
    check.signed_objects()?;
    let details = check.drills()?;
    let snapshots = check.selected(only)?;
    run.events.step(format!("checking {} snapshots", snapshots.len()));
    let needed = Needed { details, ..check.needed(&snapshots)? };
    let mut slice = None;
    match level {
        Level::Objects => check.costs(&snapshots)?,
        Level::ReadData { percent } => {
            slice = check.read_data(&snapshots, &needed, percent, only.is_empty())?;
            check.costs(&snapshots)?;
        }
        Level::Deep => check.deep(&snapshots, &needed, only)?,
    }
    check.blame_snapshots(&snapshots)?;
    let tampered = tampered(&access.repository)?;
    let unreferenced = if only.is_empty() { Some(check.unreferenced(&needed)) } else { None };
    let (findings, more_findings, notes) = check.ledger.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
    Ok(VerifyReport {
        repository: access.repository.id().clone(),
        level,
        slice,
        snapshots: snapshots.len(),
        objects: check.inventory.count(),
        bytes_read: check.bytes_read.into_inner(),
        findings,
        more_findings,
        tampered,
        notes,
        unreferenced,
    })
}

impl<'a> Check<'a> {
    fn repository(&self) -> &'a Repository {
        &self.access.repository
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where unlinked temporary files may lie.
    fn tmp(&self) -> PathBuf {
        self.access.state.as_ref().map_or_else(std::env::temp_dir, |state| state.dir().to_owned())
    }

    /// An integrity error becomes a finding; every other one ends the run. The answer is the object's key.
    fn settle(&self, error: &RepositoryError, otherwise: &str) -> String {
        let object = error.object().map_or_else(|| otherwise.to_owned(), ToString::to_string);
        self.ledger().find(&object, &ledger::problem_text(error));
        object
    }

    /// What was verified when the repository was opened, and trash, which only prune reads.
    fn signed_objects(&self) -> Result<(), OpsError> {
        let mut ledger = self.ledger();
        for alarm in &self.access.alarms {
            ledger.find(layout::SNAPSHOTS, alarm);
        }
        for problem in &self.access.chain.problems {
            ledger.find(problem.key.as_str(), &problem.problem);
            if let Some(snapshot) = &problem.snapshot {
                ledger.cost(problem.key.as_str(), snapshot, None);
            }
        }
        for stray in &self.inventory.strays {
            ledger.note(stray.as_str(), "not an object of this format; it is left alone");
        }
        drop(ledger);
        for key in &self.inventory.trash {
            self.run.cancel.check()?;
            let read = self.repository().get(key, limits::REFS);
            match read.and_then(|bytes| self.repository().verify_trash(key, &bytes)) {
                Err(e) if e.is_integrity() => drop(self.settle(&e, key.as_str())),
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Outcomes of drills verified, their details there with their lengths. The answer is those details.
    fn drills(&self) -> Result<BTreeMap<ObjectId, u64>, OpsError> {
        let mut details = BTreeMap::new();
        for key in &self.inventory.drills {
            self.run.cancel.check()?;
            let read = self.repository().get(key, limits::SIGNED);
            let drill = match read.and_then(|bytes| self.repository().verify_drill(key, &bytes)) {
                Ok(drill) => drill,
                Err(e) if e.is_integrity() => {
                    self.settle(&e, key.as_str());
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            let problem = Inventory::problem(&self.inventory.drill_details, &drill.details, drill.details_bytes);
            if let Some(problem) = problem {
                self.ledger().find(layout::drill_details(drill.details).as_str(), &problem);
            }
            details.insert(drill.details, drill.details_bytes);
        }
        Ok(details)
    }

    fn selected(&self, only: &[SnapshotId]) -> Result<Vec<&'a Snapshot>, OpsError> {
        let chain = &self.access.chain;
        if let Some(unknown) = only.iter().find(|id| chain.all().all(|s| s.header.id != **id)) {
            return Err(OpsError::usage(format!("no snapshot {unknown}"), "`lifeboat list` shows all"));
        }
        let mut selected = Vec::new();
        for snapshot in chain.all().filter(|s| only.is_empty() || only.contains(&s.header.id)) {
            if chain.was_pruned(snapshot) {
                let text = "a prune record removed this snapshot; its header is still there, or there again";
                self.ledger().note(snapshot.key.as_str(), text);
            } else {
                selected.push(snapshot);
            }
        }
        Ok(selected)
    }

    /// The refs of a snapshot; none, and a finding, when they are damaged.
    fn refs(&self, snapshot: &Snapshot) -> Result<Option<Refs>, OpsError> {
        self.run.cancel.check()?;
        match load_refs(self.repository(), snapshot.refs) {
            Ok(refs) => Ok(Some(refs)),
            Err(e) if e.is_integrity() => {
                self.settle(&e, snapshot.key.as_str());
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Refs hashed; manifest, archives and index objects there with their lengths.
    fn needed(&self, snapshots: &[&Snapshot]) -> Result<Needed, OpsError> {
        let mut needed = Needed::default();
        let mut seen = HashSet::new();
        let mut first_of_refs = Vec::new();
        for snapshot in snapshots {
            let header = &snapshot.header;
            let problem = Inventory::problem(&self.inventory.manifests, &header.manifest, header.manifest_bytes);
            if let Some(problem) = problem {
                self.ledger().find(layout::manifest(header.manifest).as_str(), &problem);
            }
            if seen.insert(snapshot.refs) {
                first_of_refs.push(*snapshot);
            }
        }
        let batches = first_of_refs.chunks(REFS_AT_ONCE).map(|batch| (batch, at_once(batch, |s| self.refs(s))));
        for (snapshot, refs) in batches.flat_map(|(batch, refs)| batch.iter().zip(refs)) {
            let Some(refs) = refs? else { continue };
            self.bytes_read.fetch_add(self.inventory.refs.get(&snapshot.refs).copied().unwrap_or(0), Ordering::Relaxed);
            for (id, length) in &refs.archives {
                if let Some(problem) = Inventory::problem(&self.inventory.archives, id, *length) {
                    self.ledger().find(layout::archive(*id).as_str(), &problem);
                }
            }
            for (id, length) in &refs.index {
                if let Some(problem) = Inventory::problem(&self.inventory.index, id, *length) {
                    self.ledger().find(layout::index(*id).as_str(), &problem);
                }
            }
            needed.archives.extend(refs.archives);
            needed.index.extend(refs.index);
        }
        Ok(needed)
    }

    /// Every snapshot that needs a damaged object, by headers and refs: no key needed.
    fn blame_snapshots(&self, snapshots: &[&Snapshot]) -> Result<(), OpsError> {
        let bad: HashSet<String> = self.ledger().objects().map(str::to_owned).collect();
        if bad.is_empty() {
            return Ok(());
        }
        for snapshot in snapshots {
            let header = &snapshot.header;
            let refs = self.refs(snapshot)?.unwrap_or_default();
            let own = [layout::refs(snapshot.refs), layout::manifest(header.manifest)];
            let mut ledger = self.ledger();
            for key in own.into_iter().chain(inventory::needed_keys(&refs)) {
                if bad.contains(key.as_str()) {
                    ledger.cost(key.as_str(), &header.id, None);
                }
            }
        }
        Ok(())
    }

    fn unreferenced(&self, needed: &Needed) -> Unreferenced {
        let mut ids: HashSet<ObjectId> = needed.archives.keys().chain(needed.index.keys()).copied().collect();
        for snapshot in self.access.chain.all() {
            ids.extend([snapshot.refs, snapshot.header.refs, snapshot.header.manifest]);
        }
        self.inventory.unreferenced(&ids)
    }
}

/// Keys whose newest version is not the one that their writer wrote.
fn tampered(repository: &Repository) -> Result<Vec<Note>, OpsError> {
    let Some(locks) = repository.storage().object_locks() else { return Ok(Vec::new()) };
    let text = |how| match how {
        Tampering::Deleted => "deleted by somebody; it is locked, and read behind the delete marker",
        Tampering::Overwritten => "overwritten by somebody; it is locked, and its first version is read",
    };
    let note = |t: Tampered| Note { object: t.key.to_string(), text: text(t.how).to_owned() };
    Ok(locks.tampered("")?.into_iter().map(note).collect())
}

/// A name under which events tell how far a long step is.
struct Progress<'a> {
    run: &'a Run,
    source: Option<SourceName>,
}

impl<'a> Progress<'a> {
    fn begin(run: &'a Run, name: &str, expected_bytes: u64) -> Self {
        let source: Option<SourceName> = name.parse().ok();
        if let Some(source) = &source {
            run.events.send(Event::SourceBegin { source: source.clone(), expected_bytes: Some(expected_bytes) });
        }
        Self { run, source }
    }

    fn add(&self, bytes: u64) {
        if let Some(source) = &self.source {
            self.run.events.send(Event::Bytes { source: source.clone(), bytes, reused: false });
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(source) = self.source.take() {
            self.run.events.send(Event::SourceEnd { source, error: None });
        }
    }
}
