//! What a prune will do: pure data, printed by `--dry-run` and carried out as it is.

use super::clock;
use super::doubts::{self, Lost};
use super::repack::RepackPlan;
use crate::base::ids::{HostName, ObjectId, PolicyName, Sequence, SnapshotId, Tag};
use crate::ops::access::Access;
use crate::ops::drill::newest_passed;
use crate::ops::{OpsError, Run};
use crate::policy::Policy;
use crate::policy::retention::{self, Candidate, Verdict};
use crate::repository::chain::{Line, Snapshot};
use crate::repository::drills::Drills;
use crate::repository::format::{HeaderRef, Outcome};
use crate::repository::garbage::{self, Stored};
use crate::repository::trash::{GRACE, Trash, YOUNGEST};
use crate::repository::{layout, repack};
use crate::storage::StorageKey;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use std::collections::HashSet;

/// How to prune.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// Whose snapshots of the policy; garbage is everybody's.
    pub host: HostName,
    /// Delete what is unreferenced at once: only under the storage's lock.
    pub immediately: bool,
    /// Give up what is damaged or missing.
    pub accept_lost: bool,
    pub times: Times,
    /// Stored bytes that a repack replaces before it records what it has done so far.
    pub batch_bytes: u64,
}

/// The waiting times of deletion.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Nothing younger is condemned.
    pub youngest: TimeDelta,
    /// From condemning to deleting.
    pub grace: TimeDelta,
}

impl Default for Times {
    fn default() -> Self {
        Self { youngest: YOUNGEST, grace: GRACE }
    }
}

/// Objects and their stored bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    pub objects: usize,
    pub bytes: u64,
}

impl Amount {
    pub(super) fn of<'a>(objects: impl IntoIterator<Item = &'a Stored>) -> Self {
        let mut sum = Amount::default();
        objects.into_iter().for_each(|object| sum.add(object));
        sum
    }

    pub(super) fn sum(&mut self, other: Amount) {
        self.objects += other.objects;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    pub(super) fn add(&mut self, object: &Stored) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(object.length);
    }
}

impl PruneOptions {
    /// Snapshots of this host, in two phases.
    pub fn of(host: HostName) -> Self {
        Self { host, immediately: false, accept_lost: false, times: Times::default(), batch_bytes: repack::BATCH }
    }
}

/// What becomes of one snapshot, and why.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedSnapshot {
    pub id: SnapshotId,
    pub sequence: Sequence,
    pub time: DateTime<Utc>,
    pub outcome: Outcome,
    pub tags: Vec<Tag>,
    pub held: bool,
    pub keep: bool,
    /// `daily 2026-11-19`, `no rule keeps it`.
    pub reason: String,
}

/// The plan.
#[derive(Debug, Serialize)]
pub struct PrunePlan {
    pub policy: PolicyName,
    pub host: HostName,
    pub repository: String,
    /// Newest first.
    pub snapshots: Vec<PlannedSnapshot>,
    /// Sequences that are given up, because they are damaged or missing.
    pub lost: Vec<Sequence>,
    /// Unreferenced for the first time: to be condemned.
    pub condemn: Amount,
    /// Unreferenced, and too young to say that no run is about to reference it.
    pub young: Amount,
    /// Condemned, and not yet for as long as the grace.
    pub waiting: Amount,
    /// To be deleted now.
    pub delete: Amount,
    /// When the next of what waits may be deleted.
    pub next_due: Option<DateTime<Utc>>,
    /// Absent without `--repack`.
    pub repack: Option<RepackPlan>,
    #[serde(skip)]
    pub(super) steps: Steps,
}

impl PrunePlan {
    /// The snapshots that it removes.
    pub fn removes(&self) -> Vec<SnapshotId> {
        self.steps.remove.iter().map(|s| s.header.id.clone()).collect()
    }
}

/// What is carried out.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub line: Option<Line>,
    pub remove: Vec<Snapshot>,
    pub lost: Lost,
    pub condemn: Vec<ObjectId>,
    /// Unreferenced already before anything is removed: what an immediate prune begins with.
    pub delete_first: Vec<Stored>,
    /// Trash that is due, and its objects that are stored and unreferenced.
    pub due: Vec<Trash>,
    pub delete: Vec<Stored>,
    /// Headers that a prune record removed and that are still there.
    pub leftovers: Vec<StorageKey>,
    /// Outcomes and details of drills that speak of nothing any more.
    pub drills: Vec<StorageKey>,
    /// Every header that was there when this plan was made, and stays.
    pub retained: HashSet<ObjectId>,
}

impl Steps {
    pub fn is_empty(&self) -> bool {
        let Self { line: _, remove, lost, condemn, delete_first, due, delete, leftovers, drills, retained: _ } = self;
        let objects = condemn.is_empty() && delete_first.is_empty() && due.is_empty() && delete.is_empty();
        objects && remove.is_empty() && lost.is_empty() && leftovers.is_empty() && drills.is_empty()
    }
}

/// Makes the plan. Nothing is changed; whatever makes a deletion doubtful is an error.
pub fn plan(access: &Access, policy: &Policy, options: &PruneOptions, run: &Run) -> Result<PrunePlan, OpsError> {
    let lost = if options.accept_lost { Lost::of(access)? } else { Lost::default() };
    if !lost.is_empty() {
        return Ok(giving_up(access, policy, options, lost));
    }
    doubts::refuse(access)?;
    let storage = access.repository.storage();
    let storage_time = storage.clock()?;
    clock::check(access.state.as_ref().map(|s| s.dir()), storage_time, run.now)?;

    let line = (options.host.clone(), policy.app.name.clone());
    let snapshots = access.chain.line(&line.0, &line.1);
    let drills = access.repository.drills()?;
    let verdicts = decide(access, snapshots, policy, &newest_passed(&drills), storage_time);
    let (mut remove, mut removed) = (Vec::new(), HashSet::new());
    for (snapshot, verdict) in snapshots.iter().zip(&verdicts) {
        if !verdict.keeps() && !access.chain.was_pruned(snapshot) {
            removed.insert(snapshot.header_id);
            remove.push(snapshot.clone());
        }
    }
    let kept = |s: &&Snapshot| !access.chain.was_pruned(s) && !removed.contains(&s.header_id);
    let leftovers = access.chain.all().filter(|s| access.chain.was_pruned(s)).map(|s| s.key.clone()).collect();
    let retained = access.chain.all().filter(kept).map(|s| s.header_id).collect();
    let needed = garbage::referenced(&access.repository, access.chain.all().filter(kept), &run.cancel)?;

    let mut garbage = garbage::stored(&access.repository)?;
    garbage.retain(|object| !needed.contains(&object.id));
    let trash = access.repository.trash()?;
    let sorted = Sorted::new(garbage, trash, options, storage_time);
    let delete_first = if options.immediately {
        let needed = needed_by(access, &remove, run)?;
        let is_free = |object: &&Stored| needed.as_ref().is_some_and(|needed| !needed.contains(&object.id));
        sorted.delete.iter().filter(is_free).cloned().collect()
    } else {
        Vec::new()
    };
    Ok(PrunePlan {
        policy: policy.app.name.clone(),
        host: options.host.clone(),
        repository: storage.describe(),
        snapshots: snapshots.iter().zip(&verdicts).map(|(s, v)| shown(s, v.keeps(), v.to_string())).rev().collect(),
        lost: Vec::new(),
        condemn: Amount::of(&sorted.condemn),
        young: Amount::of(&sorted.young),
        waiting: Amount::of(&sorted.waiting),
        delete: Amount::of(&sorted.delete),
        next_due: sorted.next_due,
        repack: None,
        steps: Steps {
            line: Some(line),
            remove,
            lost,
            condemn: sorted.condemn.iter().map(|object| object.id).collect(),
            delete_first,
            due: sorted.due,
            delete: sorted.delete,
            leftovers,
            drills: gone(&drills, access, &removed, (storage_time, options.times.youngest)),
            retained,
        },
    })
}

/// Drills that go: of snapshots that a record removed or that this prune removes; and details that nothing names and that
/// no drill is about to name.
fn gone(
    drills: &Drills,
    access: &Access,
    removed: &HashSet<ObjectId>,
    (now, youngest): (DateTime<Utc>, TimeDelta),
) -> Vec<StorageKey> {
    let is_gone = |header: &ObjectId| removed.contains(header) || access.chain.is_removed(header);
    let of_gone = drills.all.iter().filter(|stored| is_gone(&stored.drill.header));
    let outcomes = of_gone.flat_map(|stored| [stored.key.clone(), layout::drill_details(stored.drill.details)]);
    // A damaged outcome may name any of them.
    let unnamed =
        drills.unnamed_details().filter(|object| drills.problems.is_empty() && now - object.modified > youngest);
    outcomes.chain(unnamed.map(|object| object.key.clone())).collect()
}

/// The plan that gives up what is lost, and does nothing else: the next prune looks at what that leaves.
fn giving_up(access: &Access, policy: &Policy, options: &PruneOptions, lost: Lost) -> PrunePlan {
    let line = access.chain.line(&options.host, &policy.app.name);
    PrunePlan {
        policy: policy.app.name.clone(),
        host: options.host.clone(),
        repository: access.repository.storage().describe(),
        snapshots: line
            .iter()
            .map(|s| shown(s, true, "nothing else is removed by this run".to_owned()))
            .rev()
            .collect(),
        lost: lost.snapshots.values().flatten().map(|r| r.sequence).collect(),
        condemn: Amount::default(),
        young: Amount::default(),
        waiting: Amount::default(),
        delete: Amount::default(),
        next_due: None,
        repack: None,
        steps: Steps { lost, ..Steps::default() },
    }
}

fn shown(snapshot: &Snapshot, keep: bool, reason: String) -> PlannedSnapshot {
    PlannedSnapshot {
        id: snapshot.header.id.clone(),
        sequence: snapshot.header.sequence,
        time: snapshot.header.time,
        outcome: snapshot.header.outcome,
        tags: snapshot.tags.iter().cloned().collect(),
        held: snapshot.held,
        keep,
        reason,
    }
}

/// What snapshots that are to go still need. Where that cannot be read it is not known: then nothing goes before it is on
/// record that they are removed, or a run that is cut short would leave a snapshot whose objects are gone.
fn needed_by(access: &Access, snapshots: &[Snapshot], run: &Run) -> Result<Option<HashSet<ObjectId>>, OpsError> {
    let mut needed = HashSet::new();
    for snapshot in snapshots {
        match garbage::referenced(&access.repository, std::iter::once(snapshot), &run.cancel) {
            Ok(ids) => needed.extend(ids),
            Err(e) if e.is_integrity() => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Some(needed))
}

/// Retention's word on each snapshot of the line.
fn decide(
    access: &Access,
    snapshots: &[Snapshot],
    policy: &Policy,
    drilled: &HashSet<ObjectId>,
    now: DateTime<Utc>,
) -> Vec<Verdict> {
    let candidate = |s: &Snapshot| Candidate {
        sequence: s.header.sequence,
        time: s.header.time,
        outcome: match s.header.outcome {
            Outcome::Complete => retention::Outcome::Complete,
            Outcome::Suspect => retention::Outcome::Suspect,
            Outcome::Partial => retention::Outcome::Partial,
        },
        tagged: !s.tags.is_empty(),
        held: s.held,
        forked: s.forked,
        passed_drill: drilled.contains(&s.header_id),
    };
    // What a record has removed already takes no place of a rule.
    let candidates: Vec<Candidate> = snapshots.iter().filter(|s| !access.chain.was_pruned(s)).map(candidate).collect();
    let mut verdicts = retention::decide(&candidates, &policy.retention, policy.schedule.timezone, now).into_iter();
    let gone = || Verdict::Remove(retention::Removal::NoRule);
    snapshots
        .iter()
        .map(|s| if access.chain.was_pruned(s) { gone() } else { verdicts.next().unwrap_or_else(gone) })
        .collect()
}

/// Garbage by what is to be done with it.
struct Sorted {
    condemn: Vec<Stored>,
    young: Vec<Stored>,
    waiting: Vec<Stored>,
    delete: Vec<Stored>,
    due: Vec<Trash>,
    next_due: Option<DateTime<Utc>>,
}

impl Sorted {
    fn new(garbage: Vec<Stored>, trash: Vec<Trash>, options: &PruneOptions, now: DateTime<Utc>) -> Self {
        let grace = options.times.grace;
        let (due, waits): (Vec<Trash>, Vec<Trash>) =
            trash.into_iter().partition(|t| options.immediately || t.age >= grace);
        let next_due = waits.iter().map(|t| now + (grace - t.age)).min();
        let due_ids: HashSet<ObjectId> = due.iter().flat_map(|t| t.objects.iter().copied()).collect();
        let waiting_ids: HashSet<ObjectId> = waits.iter().flat_map(|t| t.objects.iter().copied()).collect();
        let mut sorted = Self { condemn: vec![], young: vec![], waiting: vec![], delete: vec![], due, next_due };
        for object in garbage {
            let list = if options.immediately || due_ids.contains(&object.id) {
                &mut sorted.delete
            } else if waiting_ids.contains(&object.id) {
                &mut sorted.waiting
            } else if now - object.modified < options.times.youngest {
                &mut sorted.young
            } else {
                &mut sorted.condemn
            };
            list.push(object);
        }
        sorted
    }
}

/// The references that a prune record makes of removed snapshots.
pub(super) fn references(snapshots: &[Snapshot]) -> Vec<HeaderRef> {
    snapshots
        .iter()
        .map(|s| HeaderRef { sequence: s.header.sequence, header: s.header_id, previous: s.header.previous })
        .collect()
}
