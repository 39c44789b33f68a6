//! What a copy lacks: pure data, printed by `--dry-run` and carried out as it is.

use super::ahead;
use super::stock::{Kind, Named, Stock};
use super::target::{self, Target};
use crate::base::ids::{HostName, ObjectId, PolicyName, RepositoryId, Sequence, SnapshotId};
use crate::ops::access::Access;
use crate::ops::{OpsError, Run};
use crate::repository::chain::{Snapshot, full_text};
use crate::repository::format::Outcome;
use crate::repository::reader::load_refs;
use crate::repository::refs::Refs;
use crate::repository::{RepositoryError, layout};
use crate::storage::{Storage, StorageKey};
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// At which end something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// In the repository that is copied.
    Repository,
    /// In the copy.
    Copy,
}

/// An object that is damaged, missing or forged, and what that costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopyProblem {
    pub side: Side,
    pub object: String,
    pub problem: String,
    /// The snapshots that the copy does not hold whole because of it.
    pub snapshots: Vec<SnapshotId>,
}

impl CopyProblem {
    pub(super) fn new(side: Side, object: &str, problem: String) -> Self {
        Self { side, object: object.to_owned(), problem, snapshots: Vec::new() }
    }
}

/// Objects that cannot be copied, each told once.
#[derive(Debug, Default)]
pub(super) struct Bad(BTreeMap<Named, (Side, String, BTreeSet<SnapshotId>)>);

impl Bad {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn add(&mut self, side: Side, named: Named, problem: String) {
        self.0.entry(named).or_insert((side, problem, BTreeSet::new()));
    }

    pub fn has(&self, named: &Named) -> bool {
        self.0.contains_key(named)
    }

    /// Blames what is bad among `needs` for a snapshot; whether there was any.
    pub fn cost(&mut self, needs: impl IntoIterator<Item = Named>, snapshot: &SnapshotId) -> bool {
        let mut any = false;
        for need in needs {
            if let Some((_, _, snapshots)) = self.0.get_mut(&need) {
                snapshots.insert(snapshot.clone());
                any = true;
            }
        }
        any
    }

    pub fn into_problems(self) -> impl Iterator<Item = CopyProblem> {
        // What no snapshot misses has gone with the snapshots that needed it.
        let costs = |(_, (_, _, snapshots)): &(Named, (Side, String, BTreeSet<SnapshotId>))| !snapshots.is_empty();
        self.0.into_iter().filter(costs).map(|(named, (side, problem, snapshots))| CopyProblem {
            side,
            object: named.key().to_string(),
            problem,
            snapshots: snapshots.into_iter().collect(),
        })
    }
}

/// A snapshot that the copy gets.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedSnapshot {
    pub id: SnapshotId,
    pub host: HostName,
    pub policy: PolicyName,
    pub sequence: Sequence,
    pub time: DateTime<Utc>,
    pub outcome: Outcome,
    /// What is copied for it first, beside its header; later ones may share it.
    pub objects: usize,
    pub bytes: u64,
    #[serde(skip)]
    pub(super) missing: Vec<(Named, u64)>,
    #[serde(skip)]
    pub(super) snapshot: Snapshot,
}

/// The plan.
#[derive(Debug, Serialize)]
pub struct CopyPlan {
    pub repository: RepositoryId,
    pub from: String,
    pub to: String,
    /// Nothing is there yet.
    pub new: bool,
    /// In the order in which they are copied.
    pub snapshots: Vec<PlannedSnapshot>,
    /// Snapshots of the repository that are there already.
    pub snapshots_there: usize,
    /// Snapshots that are there alone: pruned from the repository since.
    pub snapshots_kept: usize,
    /// Objects to be copied, headers and records among them, and their bytes.
    pub objects: usize,
    pub bytes: u64,
    pub problems: Vec<CopyProblem>,
    /// The copy holds what the repository has lost.
    pub alarms: Vec<String>,
    #[serde(skip)]
    pub(super) signers: Vec<u32>,
    #[serde(skip)]
    pub(super) records: Vec<StorageKey>,
    #[serde(skip)]
    pub(super) drills: Vec<StorageKey>,
    /// What snapshots need that are there already, and that is gone there.
    #[serde(skip)]
    pub(super) mend: Vec<(Named, u64)>,
    /// The snapshots that need it.
    #[serde(skip)]
    pub(super) mended: Vec<Snapshot>,
    #[serde(skip)]
    pub(super) there: Vec<ahead::CopyHead>,
    /// Records, outcomes of drills and trash that are there alone, where a key has been revoked: it may have signed them.
    #[serde(skip)]
    pub(super) there_alone: Vec<StorageKey>,
}

impl CopyPlan {
    pub fn is_empty(&self) -> bool {
        !self.new && self.objects == 0
    }
}

/// Makes the plan for these snapshots, or all; `here` is what the repository holds. Nothing is changed.
pub(super) fn plan_with(
    access: &Access,
    here: &Stock,
    to: &Target,
    only: &[SnapshotId],
    run: &Run,
) -> Result<CopyPlan, OpsError> {
    let (repository, chain) = (&access.repository, &access.chain);
    run.events.step(format!("comparing {} with {}", repository.storage().describe(), to.storage.describe()));
    if let Some(unknown) = only.iter().find(|id| chain.all().all(|s| s.header.id != **id)) {
        return Err(OpsError::usage(format!("no snapshot {unknown}"), "`lifeboat list` shows all"));
    }
    let there = Stock::list(to.storage.as_ref())?;
    let new = target::is_new(repository, &to.storage, &there)?;
    let ahead = ahead::compare(repository, chain, to.storage.as_ref(), there.headers.keys())?;

    let mut compared = Comparison::new(access, here, &there);
    let mut problems = ahead.problems;
    problems.extend(compared.unverified());
    compared.snapshots(only, run, &mut problems)?;
    let Comparison { planned, mend, mended, bad, present, heads, .. } = compared;

    problems.extend(bad.into_problems());
    problems.sort_by(|a, b| (a.side, &a.object).cmp(&(b.side, &b.object)));
    let signers: Vec<u32> = (1..=repository.signer_count()).filter(|n| !there.signers.contains(n)).collect();
    let records = missing(&here.records, &there.records, &mut problems);
    // What drills found belongs to the whole; a copy of a part does without.
    let drills = if only.is_empty() { missing(&here.drills, &there.drills, &mut problems) } else { Vec::new() };
    let known: HashSet<&StorageKey> = chain.all().map(|s| &s.key).collect();
    let amount = planned.iter().map(|s| (s.objects + 1, s.bytes)).chain([
        (mend.len(), mend.iter().map(|(_, length)| length).sum()),
        (signers.len() + usize::from(new), 0),
        (records.len(), records.iter().filter_map(|key| here.records.get(key)).sum()),
        (drills.len(), drills.iter().filter_map(|key| here.drills.get(key)).sum()),
    ]);
    let (objects, bytes) = amount.fold((0, 0u64), |sum, one| (sum.0 + one.0, sum.1.saturating_add(one.1)));
    Ok(CopyPlan {
        repository: repository.id().clone(),
        from: repository.storage().describe(),
        to: to.storage.describe(),
        new,
        snapshots: planned,
        snapshots_there: present,
        snapshots_kept: there.headers.keys().filter(|key| !known.contains(*key)).count(),
        objects,
        bytes,
        problems,
        alarms: ahead.alarms,
        signers,
        records,
        drills,
        mend,
        mended,
        there: heads,
        there_alone: if repository.has_revoked() { there_alone(here, &there) } else { Vec::new() },
    })
}

/// What is signed by whoever says it, and only there.
fn there_alone(here: &Stock, there: &Stock) -> Vec<StorageKey> {
    let records = there.records.keys().filter(|key| !here.records.contains_key(*key));
    let drills = there.drills.keys().filter(|key| !here.drills.contains_key(*key) && layout::object_id(key).is_none());
    let trash = there.trash.iter().filter(|key| !here.trash.contains(*key));
    records.chain(drills).chain(trash).cloned().collect()
}

/// Signed objects that are not there; one that is, with another length, is damaged there.
fn missing(
    here: &BTreeMap<StorageKey, u64>,
    there: &BTreeMap<StorageKey, u64>,
    problems: &mut Vec<CopyProblem>,
) -> Vec<StorageKey> {
    let mut missing = Vec::new();
    for (key, length) in here {
        match there.get(key) {
            None => missing.push(key.clone()),
            Some(found) if found == length => {}
            Some(found) => {
                let problem = format!("it has {found} bytes instead of {length}");
                problems.push(CopyProblem::new(Side::Copy, key.as_str(), problem));
            }
        }
    }
    missing
}

/// Everything that the snapshots of the repository need, against what is there.
struct Comparison<'a> {
    access: &'a Access,
    here: &'a Stock,
    there: &'a Stock,
    /// Objects that the plan copies already.
    planned_objects: HashSet<Named>,
    planned: Vec<PlannedSnapshot>,
    mend: Vec<(Named, u64)>,
    mended: Vec<Snapshot>,
    bad: Bad,
    present: usize,
    heads: Vec<ahead::CopyHead>,
}

impl<'a> Comparison<'a> {
    fn new(access: &'a Access, here: &'a Stock, there: &'a Stock) -> Self {
        Self {
            access,
            here,
            there,
            planned_objects: HashSet::new(),
            planned: Vec::new(),
            mend: Vec::new(),
            mended: Vec::new(),
            bad: Bad::default(),
            present: 0,
            heads: Vec::new(),
        }
    }

    /// Headers and records that did not verify: not copied.
    fn unverified(&self) -> Vec<CopyProblem> {
        let good: HashSet<&str> = self.access.chain.all().map(|s| s.key.as_str()).collect();
        let problems = &self.access.chain.problems;
        let stored = problems.iter().filter(|p| {
            (self.here.headers.contains_key(&p.key) && !good.contains(p.key.as_str()))
                || self.here.records.contains_key(&p.key)
        });
        let problem = |p: &crate::repository::chain::ChainProblem| CopyProblem {
            side: Side::Repository,
            object: p.key.to_string(),
            problem: p.problem.clone(),
            snapshots: p.snapshot.iter().cloned().collect(),
        };
        stored.map(problem).collect()
    }

    /// Snapshots line by line, oldest first. Refs of those that are there already are read only when something that
    /// the repository holds is not there, or of another length.
    fn snapshots(&mut self, only: &[SnapshotId], run: &Run, problems: &mut Vec<CopyProblem>) -> Result<(), OpsError> {
        let chain = &self.access.chain;
        // A repack's record is for all that it names: whatever of them is there must have what it says.
        let moved = |s: &Snapshot| s.refs != s.header.refs && self.there.headers.contains_key(&s.key);
        let wanted = |s: &&Snapshot| only.is_empty() || only.contains(&s.header.id) || moved(s);
        let mut present = Vec::new();
        for snapshot in chain.all().filter(wanted) {
            run.cancel.check()?;
            let length = self.here.headers.get(&snapshot.key);
            match (self.there.headers.get(&snapshot.key), length) {
                // Pruned, or pruned since the headers were read.
                (None, _) if chain.was_pruned(snapshot) => {}
                (None, None) => {}
                (None, _) => self.missing(snapshot)?,
                (Some(there), Some(here)) if there != here => {
                    let problem = format!("it has {there} bytes instead of {here}");
                    let mut problem = CopyProblem::new(Side::Copy, snapshot.key.as_str(), problem);
                    problem.snapshots.push(snapshot.header.id.clone());
                    problems.push(problem);
                }
                (Some(_), _) => present.push(snapshot),
            }
        }
        self.present = present.len();
        self.heads = heads(&present);
        if !self.is_complete() {
            for snapshot in present.into_iter().filter(|s| !chain.was_pruned(s)) {
                run.cancel.check()?;
                self.present(snapshot)?;
            }
        }
        Ok(())
    }

    /// Whether everything that lies here lies there too, or is about to be copied.
    fn is_complete(&self) -> bool {
        self.here
            .named
            .iter()
            .all(|(named, length)| self.there.named.get(named) == Some(length) || self.planned_objects.contains(named))
    }

    /// What a snapshot needs; `Err` is what stands in the way of reading its refs.
    fn needs(&mut self, snapshot: &Snapshot) -> Result<Option<Vec<(Named, u64)>>, OpsError> {
        let header = &snapshot.header;
        let refs = Named::new(Kind::Refs, snapshot.refs);
        match load_refs(&self.access.repository, snapshot.refs) {
            Ok(read) => {
                let mut needs = needs(&read, snapshot.refs, (header.manifest, header.manifest_bytes));
                // Where a repack gave it others, nobody needs its own to read it, but a writer does to trust its index.
                let own = Named::new(Kind::Refs, header.refs);
                if own != refs && self.here.named.contains_key(&own) {
                    needs.push((own, 0));
                }
                Ok(Some(needs))
            }
            Err(e) if e.is_integrity() => {
                self.bad.add(Side::Repository, refs, problem_text(&e));
                self.bad.cost([refs], &header.id);
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// A snapshot that is not there.
    fn missing(&mut self, snapshot: &Snapshot) -> Result<(), OpsError> {
        let Some(needs) = self.needs(snapshot)? else { return Ok(()) };
        let header = &snapshot.header;
        let missing = self.absent(&needs);
        if self.bad.cost(needs.iter().map(|(named, _)| *named), &header.id) {
            return Ok(());
        }
        self.planned_objects.extend(missing.iter().map(|(named, _)| *named));
        self.planned.push(PlannedSnapshot {
            id: header.id.clone(),
            host: header.host.clone(),
            policy: header.policy.clone(),
            sequence: header.sequence,
            time: header.time,
            outcome: header.outcome,
            objects: missing.len(),
            bytes: missing.iter().map(|(_, length)| *length).fold(0, u64::saturating_add),
            missing,
            snapshot: snapshot.clone(),
        });
        Ok(())
    }

    /// A snapshot that is there: what it needs may have gone since.
    fn present(&mut self, snapshot: &Snapshot) -> Result<(), OpsError> {
        let Some(needs) = self.needs(snapshot)? else { return Ok(()) };
        let missing = self.absent(&needs);
        self.bad.cost(needs.iter().map(|(named, _)| *named), &snapshot.header.id);
        if needs.iter().any(|(named, _)| !self.there.named.contains_key(named)) {
            self.mended.push(snapshot.clone());
        }
        self.planned_objects.extend(missing.iter().map(|(named, _)| *named));
        self.mend.extend(missing);
        Ok(())
    }

    /// What of it is not there and can be copied; the rest is bad, at one end or the other.
    fn absent(&mut self, needs: &[(Named, u64)]) -> Vec<(Named, u64)> {
        let mut missing = Vec::new();
        for (named, length) in needs {
            let wrong = |found: u64| format!("it has {found} bytes instead of {length}");
            match (self.there.named.get(named), self.here.named.get(named)) {
                // Refs tell no length of themselves: the repository's own list does.
                (Some(there), here) if named.kind == Kind::Refs => {
                    if let Some(here) = here.filter(|here| *here != there) {
                        self.bad.add(Side::Copy, *named, format!("it has {there} bytes instead of {here}"));
                    }
                }
                (None, Some(here)) if named.kind == Kind::Refs => {
                    if !self.planned_objects.contains(named) {
                        missing.push((*named, *here));
                    }
                }
                (Some(there), _) if there == length => {}
                (Some(there), _) => self.bad.add(Side::Copy, *named, wrong(*there)),
                (None, None) => self.bad.add(Side::Repository, *named, "it is missing".to_owned()),
                (None, Some(here)) if here != length => self.bad.add(Side::Repository, *named, wrong(*here)),
                (None, Some(_)) if self.planned_objects.contains(named) => {}
                (None, Some(_)) => missing.push((*named, *length)),
            }
        }
        missing
    }
}

/// All that a snapshot needs beside its header. Refs themselves stand with length 0: nothing tells it.
pub(super) fn needs(refs: &Refs, refs_id: ObjectId, manifest: (ObjectId, u64)) -> Vec<(Named, u64)> {
    let of = |kind: Kind| move |(id, length): (&ObjectId, &u64)| (Named::new(kind, *id), *length);
    let archives = refs.archives.iter().map(of(Kind::Archive));
    let index = refs.index.iter().map(of(Kind::Index));
    let own = [(Named::new(Kind::Refs, refs_id), 0), (Named::new(Kind::Manifest, manifest.0), manifest.1)];
    archives.chain(index).chain(own).collect()
}

/// The newest of each line; `snapshots` come line by line, oldest first.
pub(super) fn heads(snapshots: &[&Snapshot]) -> Vec<ahead::CopyHead> {
    let mut newest: HashMap<(&HostName, &PolicyName), &Snapshot> = HashMap::new();
    for snapshot in snapshots {
        newest.insert((&snapshot.header.host, &snapshot.header.policy), snapshot);
    }
    let head = |s: &Snapshot| ahead::CopyHead {
        host: s.header.host.clone(),
        policy: s.header.policy.clone(),
        sequence: s.header.sequence,
        header: s.header_id,
    };
    newest.into_values().map(head).collect()
}

/// An error's text without the name of the object, which stands beside it.
pub(super) fn problem_text(error: &RepositoryError) -> String {
    match error {
        RepositoryError::Damaged { problem, .. } => problem.clone(),
        RepositoryError::DamagedBy { source, .. } => full_text(source),
        RepositoryError::Missing { .. } => "it is missing".to_owned(),
        other => full_text(other),
    }
}

/// Whether an object is still stored; for what vanished while it was being copied.
pub(super) fn is_stored(storage: &dyn Storage, key: &StorageKey) -> Result<bool, OpsError> {
    Ok(storage.head(key)?.is_some())
}
