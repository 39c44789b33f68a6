//! Carrying a plan out.

use super::doubts;
use super::plan::{Amount, PruneOptions, PrunePlan, references};
use super::repack::RepackReport;
use crate::base::ids::ObjectId;
use crate::ops::access::{Access, AccessRequest, Installation};
use crate::ops::transaction::refuse_pending;
use crate::ops::{OpsError, Run, crew, vouch};
use crate::pipeline::crypt::object_id;
use crate::pipeline::sign::Namespace;
use crate::repository::chain::{Line, full_text};
use crate::repository::format::{FORMAT, HeaderRef, Note, Record, Role};
use crate::repository::garbage::{self, Stored};
use crate::repository::keys::HostKey;
use crate::repository::trust::to_json;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::{LockMode, Locked, StorageError, StorageKey};
use serde::Serialize;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// Deletions at once: each is a round trip.
const AT_ONCE: usize = 8;
/// Headers that one prune record names.
pub(super) const HEADERS: usize = 1000;

/// What a prune did.
#[derive(Debug, Default, Serialize)]
pub struct PruneReport {
    pub removed: usize,
    pub lost: usize,
    pub condemned: Amount,
    pub deleted: Amount,
    /// What cannot be deleted yet, because it is locked; a later prune does.
    pub locked: Amount,
    /// What the storage did not let go, and why.
    pub refused: Amount,
    pub refusal: Option<String>,
    /// Absent without `--repack`.
    pub repack: Option<RepackReport>,
}

impl PruneReport {
    /// Adds what a second prune did, behind a repack.
    pub fn add(&mut self, later: PruneReport) {
        let PruneReport { removed, lost, condemned, deleted, locked, refused, refusal, repack } = later;
        self.removed += removed;
        self.lost += lost;
        self.condemned.sum(condemned);
        self.deleted.sum(deleted);
        // What was not let go the first time was tried again.
        (self.locked, self.refused, self.refusal) = (locked, refused, refusal);
        self.repack = self.repack.take().or(repack);
    }
}

/// Takes the lock without which nothing is deleted at once.
pub fn lock(access: &Access) -> Result<Locked, OpsError> {
    let storage = access.repository.storage();
    match storage.lock(LockMode::Exclusive)? {
        held @ Locked::Held(_) => Ok(held),
        Locked::Busy => Err(OpsError::Writing { location: storage.describe() }),
        Locked::Unsupported => Err(OpsError::usage(
            format!("{} has no lock that keeps writers away", storage.describe()),
            "deleting at once is for a repository in a local folder; leave --now out: what is condemned today is deleted \
             after the grace",
        )),
    }
}

/// Carries the plan out.
pub fn run(
    installation: &Installation,
    access: &Access,
    request: &AccessRequest,
    plan: &PrunePlan,
    options: &PruneOptions,
    run: &Run,
) -> Result<PruneReport, OpsError> {
    // A transaction that was cut short, or is at work, needs the snapshot that it puts back.
    refuse_pending(&installation.state_dir, &plan.policy)?;
    let steps = &plan.steps;
    let mut report = PruneReport::default();
    let host_key = HostKey::load(&installation.host_key())?;
    tidy(access, run);
    if steps.is_empty() {
        return Ok(report);
    }
    // On a full disk this makes room for what must be written.
    Pruner { access, repository: &access.repository, host_key: &host_key, run }
        .delete(&steps.delete_first, &mut report)?;
    let repository = vouch::signer(installation, access, &host_key, request, (Role::Prune, &options.host), run)?;
    let pruner = Pruner { access, repository: &repository, host_key: &host_key, run };
    if let Some(line) = &steps.line {
        report.removed = pruner.remove(line, &references(&steps.remove))?;
        pruner.delete_keys(steps.remove.iter().map(|s| &s.key).chain(&steps.leftovers).chain(&steps.drills))?;
    }
    for (line, lost) in &steps.lost.snapshots {
        report.lost += pruner.remove(line, lost)?;
    }
    pruner.delete_keys(steps.lost.objects.iter())?;
    if !steps.condemn.is_empty() {
        run.events.step(format!("condemning {} objects", steps.condemn.len()));
        repository.condemn(&host_key.signing, &steps.condemn, run.now)?;
        report.condemned = plan.condemn;
    }
    pruner.second_phase(plan, &mut report)?;
    Ok(report)
}

/// What cannot be taken away costs room, and nothing else.
fn tidy(access: &Access, run: &Run) {
    match access.repository.storage().tidy() {
        Ok(0) => {}
        Ok(n) => run.events.step(format!("removed {n} uploads that were given up")),
        Err(e) => tracing::warn!("uploads that were given up are left: {}", full_text(&e)),
    }
}

struct Pruner<'a> {
    access: &'a Access,
    repository: &'a Repository,
    host_key: &'a HostKey,
    run: &'a Run,
}

impl Pruner<'_> {
    /// Records that snapshots are removed, which must be on record before anything of them is deleted.
    fn remove(&self, (host, policy): &Line, removed: &[HeaderRef]) -> Result<usize, OpsError> {
        for removed in removed.chunks(HEADERS) {
            let record = Record {
                kind: "record".to_owned(),
                format: FORMAT,
                requires: Vec::new(),
                repository: self.repository.id().clone(),
                time: self.run.now,
                host: host.clone(),
                policy: policy.clone(),
                note: Note::Prune { removed: removed.to_vec() },
            };
            let bytes =
                self.host_key.signing.sign(Namespace::Record, &to_json(&record)?).map_err(RepositoryError::from)?;
            let key = layout::dated_key(layout::RECORDS, self.run.now, object_id(&bytes))?;
            self.repository.storage().put_new(&key, &bytes)?;
        }
        Ok(removed.len())
    }

    fn delete_keys<'k>(&self, keys: impl Iterator<Item = &'k StorageKey>) -> Result<(), OpsError> {
        for key in keys {
            self.run.cancel.check()?;
            match self.repository.storage().delete(key) {
                // A header that a record removed is no snapshot any more, there or not.
                Err(e) if e.is_refusal() => tracing::debug!("{key} stays: {e}"),
                other => other?,
            }
        }
        Ok(())
    }

    /// Deletes what is due, after a last look at what is there: only what is still unreferenced.
    fn second_phase(&self, plan: &PrunePlan, report: &mut PruneReport) -> Result<(), OpsError> {
        let steps = &plan.steps;
        if steps.delete.is_empty() && steps.due.is_empty() {
            return Ok(());
        }
        let chain = self.access.reload_as(self.repository)?;
        doubts::refuse_chain(&chain)?;
        let there: HashSet<ObjectId> = chain.all().map(|s| s.header_id).collect();
        let recorded = |id: &ObjectId| chain.is_removed(id);
        if let Some(hidden) = steps.retained.iter().find(|id| !there.contains(id) && !recorded(id)) {
            return Err(OpsError::Doubt {
                problem: format!("the header {hidden} was there a moment ago, and the list no longer shows it"),
                hint: "a list of the storage is not to be trusted; nothing is deleted".to_owned(),
            });
        }
        let retained = chain.all().filter(|s| !chain.was_pruned(s));
        let needed = garbage::referenced(self.repository, retained, &self.run.cancel)?;
        // What went first is gone, and counted.
        let first: HashSet<ObjectId> = steps.delete_first.iter().map(|o| o.id).collect();
        let is_left = |o: &&Stored| !needed.contains(&o.id) && !first.contains(&o.id);
        let delete: Vec<Stored> = steps.delete.iter().filter(is_left).cloned().collect();
        self.delete(&delete, report)?;
        if report.refused.objects + report.locked.objects == 0 {
            self.delete_keys(steps.due.iter().map(|trash| &trash.key))?;
        }
        Ok(())
    }

    /// Deletes objects, several at once. What the storage does not let go is counted; any other failure ends it.
    fn delete(&self, objects: &[Stored], report: &mut PruneReport) -> Result<(), OpsError> {
        if objects.is_empty() {
            return Ok(());
        }
        self.run.events.step(format!("deleting {} objects", objects.len()));
        let report = Mutex::new(report);
        crew::each(AT_ONCE, objects, &self.run.cancel, |object| {
            let deleted = self.repository.storage().delete(&object.key);
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            match deleted {
                Ok(()) => report.deleted.add(object),
                Err(StorageError::Locked { .. }) => report.locked.add(object),
                Err(e) if e.is_refusal() => {
                    report.refused.add(object);
                    report.refusal.get_or_insert_with(|| full_text(&e));
                }
                Err(e) => return Err(e.into()),
            }
            Ok(())
        })
    }
}
