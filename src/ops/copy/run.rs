//! A plan carried out.

use super::ahead::CopyHead;
use super::plan::{Bad, CopyPlan, CopyProblem, PlannedSnapshot, Side, heads, is_stored, needs, problem_text};
use super::stock::{KINDS, Kind, Named};
use super::target::Target;
use crate::base::events::Event;
use crate::base::ids::{RepositoryId, SnapshotId, SourceName};
use crate::ops::access::Access;
use crate::ops::crew::each;
use crate::ops::verify::VerifyReport;
use crate::ops::{ErrorKind, OpsError, Run};
use crate::pipeline::crypt::object_id;
use crate::pipeline::limits;
use crate::pipeline::sign::Namespace;
use crate::repository::chain::{Chain, Snapshot};
use crate::repository::format::{Note, Record};
use crate::repository::reader::load_refs;
use crate::repository::trash::Condemned;
use crate::repository::trust::Pin;
use crate::repository::{Repository, RepositoryError, layout, locks};
use crate::storage::{LockMode, Locked, MemoryStorage, Storage, StorageError, StorageKey};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

const THREADS: usize = 4;
/// Bytes of objects in memory at once; a single one may be as long as the longest archive.
const IN_FLIGHT: u64 = 64 << 20;
/// Snapshots that are committed together: objects of all of them go at once, and a run that ends early loses no more.
const GROUP: usize = 64;
const GROUP_BYTES: u64 = 1 << 30;

/// What a copy did.
#[derive(Debug, Serialize)]
pub struct CopyReport {
    pub repository: RepositoryId,
    pub from: String,
    pub to: String,
    /// The snapshots that the copy holds now and did not before.
    pub snapshots: Vec<SnapshotId>,
    pub snapshots_there: usize,
    pub snapshots_kept: usize,
    /// Objects put there, and their bytes.
    pub objects: usize,
    pub bytes: u64,
    pub problems: Vec<CopyProblem>,
    pub alarms: Vec<String>,
    /// Snapshots that were pruned while they were being copied.
    pub pruned_meanwhile: Vec<SnapshotId>,
    /// Everything that the copy holds, read back: where it was asked for.
    pub verified: Option<VerifyReport>,
    pub seconds: f64,
}

impl CopyReport {
    /// The tier of failure that the exit code tells.
    pub fn failure(&self) -> Option<ErrorKind> {
        let verified = self.verified.as_ref().and_then(VerifyReport::failure);
        let sound = self.problems.is_empty() && self.alarms.is_empty();
        if sound { verified } else { Some(ErrorKind::Integrity) }
    }
}

/// Carries a plan out. A failure of a storage ends it; what has been copied by then stays, and the next run goes on.
pub fn run(access: &Access, to: &Target, plan: CopyPlan, run: &Run) -> Result<CopyReport, OpsError> {
    let begun = Instant::now();
    let target = to.storage.as_ref();
    let lock = target.lock(LockMode::Shared)?;
    if matches!(lock, Locked::Busy) {
        return Err(RepositoryError::Pruning { location: target.describe() }.into());
    }
    if let Some(state) = &access.state {
        state.note_copy(&target.describe(), access.repository.id())?;
    }
    let source: SourceName = "copy".parse().map_err(|e| OpsError::failed(format!("{e}"), "report this"))?;
    run.events.send(Event::SourceBegin { source: source.clone(), expected_bytes: Some(plan.bytes) });
    let work = Work {
        repository: &access.repository,
        target,
        run,
        source: &source,
        budget: Budget::default(),
        bad: Mutex::default(),
        objects: AtomicUsize::new(0),
        bytes: AtomicU64::new(0),
    };
    let done = work.all(access, to, &plan);
    let error = done.as_ref().err().map(ToString::to_string);
    run.events.send(Event::SourceEnd { source: source.clone(), error });
    let Done { copied, problems: found, pruned_meanwhile, .. } = done?;
    remember(access, target, &plan.there, &copied)?;
    let snapshots = copied.iter().map(|s| s.header.id.clone()).collect();
    let bad = work.bad.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut problems = plan.problems;
    problems.extend(found);
    problems.extend(bad.into_problems());
    Ok(CopyReport {
        repository: plan.repository,
        from: plan.from,
        to: plan.to,
        snapshots,
        snapshots_there: plan.snapshots_there,
        snapshots_kept: plan.snapshots_kept,
        objects: work.objects.into_inner(),
        bytes: work.bytes.into_inner(),
        problems,
        alarms: plan.alarms,
        pruned_meanwhile,
        verified: None,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// What the copy was left with, so that one that has gone back, or is not mounted, is noticed.
fn remember(access: &Access, target: &dyn Storage, there: &[CopyHead], copied: &[&Snapshot]) -> Result<(), OpsError> {
    let Some(state) = &access.state else { return Ok(()) };
    let location = target.describe();
    state.set_pin(&location, access.repository.id())?;
    for head in there.iter().chain(&heads(copied)) {
        state.set_copy_head(&location, access.repository.id(), head)?;
    }
    Ok(())
}

struct Done<'a> {
    copied: Vec<&'a Snapshot>,
    problems: Vec<CopyProblem>,
    /// Without repack records, what they moved is not to be found.
    hindrance: Vec<Named>,
    pruned_meanwhile: Vec<SnapshotId>,
}

/// What became of a record.
enum Recorded {
    Copied,
    LeftOut,
    Bad(CopyProblem),
}

/// Bytes that are held at once.
#[derive(Default)]
struct Budget {
    used: Mutex<u64>,
    freed: Condvar,
}

struct Held<'a>(&'a Budget, u64);

impl Budget {
    /// Waits until so many bytes fit, or nothing else is held.
    fn take(&self, bytes: u64) -> Held<'_> {
        let mut used = lock(&self.used);
        while *used > 0 && used.saturating_add(bytes) > IN_FLIGHT {
            used = self.freed.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
        *used = used.saturating_add(bytes);
        Held(self, bytes)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *lock(&self.0.used) -= self.1;
        self.0.freed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all threads share.
struct Work<'a> {
    repository: &'a Arc<Repository>,
    target: &'a dyn Storage,
    run: &'a Run,
    source: &'a SourceName,
    budget: Budget,
    bad: Mutex<Bad>,
    objects: AtomicUsize,
    bytes: AtomicU64,
}

impl Work<'_> {
    /// In the order that the module states.
    fn all<'p>(&self, access: &Access, to: &Target, plan: &'p CopyPlan) -> Result<Done<'p>, OpsError> {
        if plan.new {
            self.put_repository()?;
        }
        for number in &plan.signers {
            self.run.cancel.check()?;
            self.put_signer(*number)?;
        }
        let (mut problems, repacks) = self.put_records(&plan.records)?;
        // Opened as a reader would open it: from here on it is a repository.
        let pin = Pin::Exactly(self.repository.id().clone());
        let there = Repository::open(to.storage.clone(), &pin)?;
        self.put_objects(&plan.mend)?;
        // What keeps repack records away: of a snapshot that they speak of something could not be brought here.
        let mut hindrance = Vec::new();
        for snapshot in &plan.mended {
            let lacking = self.lacking(snapshot, &Condemned::default())?;
            lock(&self.bad).cost(lacking.iter().copied(), &snapshot.header.id);
            if snapshot.refs != snapshot.header.refs {
                hindrance.extend(lacking);
            }
        }
        if hindrance.is_empty() {
            problems.extend(self.put_repacks(&access.chain, &repacks)?);
        }
        let mut done = Done { copied: Vec::new(), problems, hindrance, pruned_meanwhile: Vec::new() };
        let mut rest = &plan.snapshots[..];
        while !rest.is_empty() {
            let (group, behind) = rest.split_at(group_length(rest));
            rest = behind;
            self.copy_group(access, &there, group, &mut done)?;
        }
        done.problems.extend(self.put_drills(&plan.drills)?);
        self.remove_revoked(&there, &plan.there_alone)?;
        Ok(done)
    }

    /// What a revoked key has said is removed from the repository, and counts for nothing here: it would be told as damage
    /// for ever. `there` knows all signers by now.
    fn remove_revoked(&self, there: &Repository, keys: &[StorageKey]) -> Result<(), OpsError> {
        each(THREADS, keys, &self.run.cancel, |key| {
            let namespace = match key.as_str().split_inclusive('/').next() {
                Some(layout::RECORDS) => Namespace::Record,
                Some(layout::DRILLS) => Namespace::Drill,
                Some(layout::TRASH) => Namespace::Trash,
                _ => return Ok(()),
            };
            match there.get(key, limits::REFS) {
                Ok(bytes) if there.is_of_revoked(&bytes, namespace) => {}
                Ok(_) => return Ok(()),
                Err(e) if e.is_integrity() => return Ok(()),
                Err(e) => return Err(e.into()),
            }
            match self.target.delete(key) {
                Err(e) if e.is_refusal() => tracing::warn!("{key} stays, and counts for nothing: {e}"),
                other => other?,
            }
            Ok(())
        })
    }

    fn put_repository(&self) -> Result<(), OpsError> {
        let key = layout::repository();
        let bytes = self.repository.get(&key, limits::SIGNED)?;
        // Read anew, so checked anew, by opening it where nothing else is.
        let alone = Arc::new(MemoryStorage::new());
        alone.put_new(&key, &bytes)?;
        Repository::open(alone, &Pin::Exactly(self.repository.id().clone()))?;
        self.put(&key, &bytes)
    }

    fn put_signer(&self, number: u32) -> Result<(), OpsError> {
        let key = layout::signer(number);
        let bytes = self.repository.get(&key, limits::SIGNED)?;
        self.repository.check_signers(number, object_id(&bytes))?;
        self.put(&key, &bytes)
    }

    /// Copies records, but for those of repacks, which the second list names: they may only be there when what they
    /// name is.
    fn put_records(&self, keys: &[StorageKey]) -> Result<(Vec<CopyProblem>, Vec<StorageKey>), OpsError> {
        let (problems, repacks) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        each(THREADS, keys, &self.run.cancel, |key| {
            match self.put_record(key, |record| !matches!(record.note, Note::Repack { .. }))? {
                Recorded::Copied => {}
                Recorded::LeftOut => lock(&repacks).push(key.clone()),
                Recorded::Bad(problem) => lock(&problems).push(problem),
            }
            Ok(())
        })?;
        let mut repacks = repacks.into_inner().unwrap_or_else(PoisonError::into_inner);
        // The latest first: it is the one that counts, and what earlier ones name may be gone.
        repacks.sort_unstable_by(|a, b| b.cmp(a));
        Ok((problems.into_inner().unwrap_or_else(PoisonError::into_inner), repacks))
    }

    /// Copies the records of repacks, one after the other. One that came after the plan was made is for the next run:
    /// this one has not brought what it names.
    fn put_repacks(&self, chain: &Chain, keys: &[StorageKey]) -> Result<Vec<CopyProblem>, OpsError> {
        let mut problems = Vec::new();
        let known = |r: &Record| chain.newest_record(&r.host, &r.policy).is_some_and(|newest| r.time <= newest);
        for key in keys {
            self.run.cancel.check()?;
            if let Recorded::Bad(problem) = self.put_record(key, known)? {
                problems.push(problem);
            }
        }
        Ok(problems)
    }

    /// Copies what drills found: details first, then the outcomes that name them. One that does not verify is told.
    fn put_drills(&self, keys: &[StorageKey]) -> Result<Vec<CopyProblem>, OpsError> {
        let mut problems = Vec::new();
        let (details, outcomes): (Vec<&StorageKey>, Vec<&StorageKey>) =
            keys.iter().partition(|key| layout::object_id(key).is_some());
        for key in details.into_iter().chain(outcomes) {
            self.run.cancel.check()?;
            let copied = self.checked_drill(key).map_err(OpsError::from).and_then(|bytes| self.put(key, &bytes));
            match copied {
                Ok(()) => {}
                // Pruned since the plan was made.
                Err(OpsError::Repository(RepositoryError::Missing { .. })) => {}
                Err(OpsError::Repository(e)) if e.is_integrity() => {
                    problems.push(CopyProblem::new(Side::Repository, key.as_str(), problem_text(&e)));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(problems)
    }

    fn checked_drill(&self, key: &StorageKey) -> Result<Vec<u8>, RepositoryError> {
        let bytes = self.repository.get(key, limits::MANIFEST_STORED)?;
        match layout::object_id(key) {
            Some(id) if object_id(&bytes) == id => {}
            Some(_) => {
                let problem = "its bytes are not those that its name promises".to_owned();
                return Err(RepositoryError::Damaged { key: key.clone(), problem });
            }
            None => drop(self.repository.verify_drill(key, &bytes)?),
        }
        Ok(bytes)
    }

    /// Copies a record, where it is `wanted`; one that does not verify is told and left out.
    fn put_record(&self, key: &StorageKey, wanted: impl Fn(&Record) -> bool) -> Result<Recorded, OpsError> {
        let read = self
            .repository
            .get(key, limits::REFS)
            .and_then(|bytes| Ok((self.repository.verify_record(key, &bytes)?, bytes)));
        match read {
            Ok((record, _)) if !wanted(&record) => Ok(Recorded::LeftOut),
            Ok((_, bytes)) => match self.put(key, &bytes) {
                Ok(()) => Ok(Recorded::Copied),
                Err(OpsError::Repository(e)) if e.is_integrity() => {
                    Ok(Recorded::Bad(CopyProblem::new(Side::Copy, key.as_str(), problem_text(&e))))
                }
                Err(e) => Err(e),
            },
            // The plan has told of it already.
            Err(e) if e.is_integrity() => Ok(Recorded::Copied),
            Err(e) => Err(e.into()),
        }
    }

    /// Puts bytes that have been checked. Other bytes under the name are the copy's damage.
    fn put(&self, key: &StorageKey, bytes: &[u8]) -> Result<(), OpsError> {
        match self.target.put_new(key, bytes) {
            Ok(_) => {
                self.objects.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                let (source, bytes) = (self.source.clone(), bytes.len() as u64);
                self.run.events.send(Event::Bytes { source, bytes, reused: false });
                Ok(())
            }
            Err(StorageError::Exists { key }) => {
                let problem = "other bytes lie under its name at the copy".to_owned();
                Err(RepositoryError::Damaged { key, problem }.into())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Kind after kind, so that what names comes behind what is named.
    fn put_objects(&self, objects: &[(Named, u64)]) -> Result<(), OpsError> {
        for kind in KINDS {
            let of_kind: Vec<&(Named, u64)> = objects.iter().filter(|(named, _)| named.kind == kind).collect();
            each(THREADS, &of_kind, &self.run.cancel, |(named, length)| self.put_named(*named, *length))?;
        }
        Ok(())
    }

    /// Copies one object; what is damaged at either end is kept among the bad.
    fn put_named(&self, named: Named, length: u64) -> Result<(), OpsError> {
        let _held = self.budget.take(length.min(named.limit()));
        let key = named.key();
        let bytes = match self.repository.get(&key, named.limit()) {
            Ok(bytes) if object_id(&bytes) == named.id && bytes.len() as u64 == length => bytes,
            Ok(_) => {
                let problem = "its bytes are not those that its name promises".to_owned();
                lock(&self.bad).add(Side::Repository, named, problem);
                return Ok(());
            }
            Err(e) if e.is_integrity() => {
                lock(&self.bad).add(Side::Repository, named, problem_text(&e));
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        };
        match self.put(&key, &bytes) {
            Err(OpsError::Repository(e)) if e.is_integrity() => {
                lock(&self.bad).add(Side::Copy, named, problem_text(&e));
                Ok(())
            }
            other => other,
        }
    }

    /// The objects of some snapshots, then their headers, oldest first.
    fn copy_group<'p>(
        &self,
        access: &Access,
        there: &Repository,
        group: &'p [PlannedSnapshot],
        done: &mut Done<'p>,
    ) -> Result<(), OpsError> {
        let objects: Vec<(Named, u64)> = group.iter().flat_map(|s| s.missing.iter().copied()).collect();
        self.put_objects(&objects)?;
        self.lock_group(access, there, group)?;
        let condemned = there.condemned()?;
        for planned in group {
            self.run.cancel.check()?;
            let mut lacking = self.lacking(&planned.snapshot, &condemned)?;
            if planned.snapshot.refs != planned.snapshot.header.refs {
                lacking.extend(&done.hindrance);
            }
            if !lacking.is_empty() {
                // A prune of the repository may have overtaken this run; then nothing is damaged.
                if is_stored(access.repository.storage().as_ref(), &planned.snapshot.key)? {
                    lock(&self.bad).cost(lacking, &planned.id);
                } else {
                    done.pruned_meanwhile.push(planned.id.clone());
                }
                continue;
            }
            match self.put_header(&planned.snapshot)? {
                Commit::Done => done.copied.push(&planned.snapshot),
                Commit::Pruned => done.pruned_meanwhile.push(planned.id.clone()),
                Commit::Damaged(side, problem) => {
                    let mut problem = CopyProblem::new(side, planned.snapshot.key.as_str(), problem);
                    problem.snapshots.push(planned.id.clone());
                    done.problems.push(problem);
                }
            }
        }
        Ok(())
    }

    /// What the copy already had is locked for as long as what it got now, where it locks what is written.
    fn lock_group(&self, access: &Access, there: &Repository, group: &[PlannedSnapshot]) -> Result<(), OpsError> {
        let (Some(state), Some(_)) = (&access.state, there.storage().object_locks()) else { return Ok(()) };
        let mut keys = BTreeSet::new();
        for planned in group {
            let snapshot = &planned.snapshot;
            match load_refs(there, snapshot.refs) {
                Ok(refs) => keys.extend(locks::needed(there.signer_count(), &refs, snapshot.refs)),
                // It is among the bad, and so is what lacks it.
                Err(e) if e.is_integrity() => continue,
                Err(e) => return Err(e.into()),
            }
            keys.insert(layout::manifest(snapshot.header.manifest));
        }
        Ok(locks::extend(there.storage().as_ref(), state, keys.into_iter())?)
    }

    /// What a snapshot needs and is not there, or does not stay.
    fn lacking(&self, snapshot: &Snapshot, condemned: &Condemned) -> Result<Vec<Named>, OpsError> {
        if lock(&self.bad).is_empty() && condemned.is_empty() {
            return Ok(Vec::new());
        }
        let header = &snapshot.header;
        let refs = Named::new(Kind::Refs, snapshot.refs);
        let read = if lock(&self.bad).has(&refs) { None } else { Some(load_refs(self.repository, snapshot.refs)) };
        let needs: Vec<Named> = match read {
            Some(Ok(read)) => {
                let all = needs(&read, snapshot.refs, (header.manifest, header.manifest_bytes));
                all.into_iter().map(|(named, _)| named).collect()
            }
            Some(Err(e)) if e.is_integrity() => {
                lock(&self.bad).add(Side::Repository, refs, problem_text(&e));
                vec![refs]
            }
            Some(Err(e)) => return Err(e.into()),
            None => vec![refs],
        };
        let mut bad = lock(&self.bad);
        for named in needs.iter().filter(|named| condemned.is_lost(&named.id)) {
            let problem = "it is condemned at the copy, and may be gone soon: after the copy's next prune it is copied";
            bad.add(Side::Copy, *named, problem.to_owned());
        }
        Ok(needs.into_iter().filter(|named| bad.has(named)).collect())
    }

    /// The commit point of a snapshot at the copy. What was known of its header may have been remembered: here it is read.
    fn put_header(&self, snapshot: &Snapshot) -> Result<Commit, OpsError> {
        let read = self.repository.get(&snapshot.key, limits::SIGNED).and_then(|bytes| {
            self.repository.verify_header(&snapshot.key, &bytes)?;
            Ok(bytes)
        });
        let bytes = match read {
            Ok(bytes) if object_id(&bytes) == snapshot.header_id => bytes,
            Ok(_) => {
                let problem = "it is another one than was seen here before".to_owned();
                return Ok(Commit::Damaged(Side::Repository, problem));
            }
            Err(RepositoryError::Missing { .. }) => return Ok(Commit::Pruned),
            Err(e) if e.is_integrity() => return Ok(Commit::Damaged(Side::Repository, problem_text(&e))),
            Err(e) => return Err(e.into()),
        };
        match self.put(&snapshot.key, &bytes) {
            Ok(()) => Ok(Commit::Done),
            Err(OpsError::Repository(e)) if e.is_integrity() => Ok(Commit::Damaged(Side::Copy, problem_text(&e))),
            Err(e) => Err(e),
        }
    }
}

/// What became of a header.
enum Commit {
    Done,
    /// A prune of the repository has removed it meanwhile.
    Pruned,
    Damaged(Side, String),
}

/// How many of the next snapshots go together.
fn group_length(snapshots: &[PlannedSnapshot]) -> usize {
    let mut bytes = 0u64;
    let fits = |s: &&PlannedSnapshot| {
        bytes = bytes.saturating_add(s.bytes);
        bytes <= GROUP_BYTES
    };
    snapshots.iter().take(GROUP).take_while(fits).count().max(1)
}
