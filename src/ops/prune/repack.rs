//! `--repack`: what of each archive is alive, and wasteful ones rewritten. The plan is the survey; the run writes batch
//! by batch, and each ends in records.

use super::doubts;
use super::plan::{PruneOptions, PrunePlan};
use super::run::HEADERS;
use crate::ops::access::{Access, AccessRequest, Installation};
use crate::ops::{OpsError, Run, mark, vouch};
use crate::pipeline::crypt::{Recipients, object_id};
use crate::pipeline::limits;
use crate::pipeline::sign::Namespace;
use crate::policy::Policy;
use crate::repository::chain::Line;
use crate::repository::format::{FORMAT, Moved, Note, Record, Role};
use crate::repository::keys::HostKey;
use crate::repository::repack::{Change, Fate, Look, Rewriter, Survey, survey};
use crate::repository::state::State;
use crate::repository::trust::to_json;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::{LockMode, Locked};
use chrono::TimeDelta;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Archives that have one fate.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RepackGroup {
    pub fate: Fate,
    /// Whether they are rewritten.
    pub rewrite: bool,
    pub archives: usize,
    /// As stored.
    pub bytes: u64,
    /// The part that snapshots need, by the share of plain bytes; absent where others may need more than is known here.
    pub live_bytes: Option<u64>,
    /// The rest.
    pub waste_bytes: Option<u64>,
}

/// What there is, and what would be rewritten.
#[derive(Debug, Serialize)]
pub struct RepackPlan {
    pub groups: Vec<RepackGroup>,
    /// What is damaged, and left alone.
    pub problems: Vec<String>,
    #[serde(skip)]
    survey: Survey,
}

impl RepackPlan {
    /// Archives, stored and live bytes of what would be rewritten.
    pub fn rewrites(&self) -> (usize, u64, u64) {
        let chosen = self.groups.iter().filter(|group| group.rewrite);
        chosen.fold((0, 0, 0), |sum, g| (sum.0 + g.archives, sum.1 + g.bytes, sum.2 + g.live_bytes.unwrap_or(0)))
    }
}

/// What a repack did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RepackReport {
    /// Archives that no snapshot needs any more, and their bytes.
    pub replaced: usize,
    pub replaced_bytes: u64,
    /// New archives, and their bytes.
    pub written: usize,
    pub written_bytes: u64,
    /// Snapshots whose chunks lie elsewhere now.
    pub snapshots: usize,
    /// Damaged archives, which are left alone.
    pub problems: Vec<String>,
}

/// Looks at what the snapshots that `plan` keeps need. Needs the identity; changes nothing.
pub fn plan_repack(
    installation: &Installation,
    access: &Access,
    policy: &Policy,
    options: &PruneOptions,
    plan: &PrunePlan,
    run: &Run,
) -> Result<RepackPlan, OpsError> {
    let identities = access.identities("repacking")?;
    // What is given up by this very run is no reason to wait; everything else that is in doubt is.
    if plan.steps.lost.is_empty() {
        doubts::refuse(access)?;
    }
    let host_key = HostKey::load(&installation.host_key())?;
    let recipients = Recipients::parse(&policy.repository.recipients).map_err(RepositoryError::from)?;
    run.events.step("looking for what of each archive is still needed");
    let state = access.state.as_ref();
    let look = Look {
        repository: &access.repository,
        chain: &access.chain,
        retained: &plan.steps.retained,
        host: &options.host,
        key: host_key.chunk_id_key(),
        identities,
        recipients: &recipients,
        youngest: if options.immediately { TimeDelta::MIN } else { options.times.youngest },
        cache: state.map(|state| state.index_cache(access.repository.id())),
        tmp: state.map_or_else(std::env::temp_dir, |state| state.dir().to_owned()),
        cancel: &run.cancel,
    };
    let survey = survey(&look)?;
    Ok(RepackPlan { groups: groups(&survey), problems: survey.problems.clone(), survey })
}

fn groups(survey: &Survey) -> Vec<RepackGroup> {
    let mut groups: BTreeMap<Fate, RepackGroup> = BTreeMap::new();
    for archive in &survey.archives {
        let fate = archive.fate;
        let empty = || RepackGroup {
            fate,
            rewrite: fate.is_rewritten(),
            archives: 0,
            bytes: 0,
            live_bytes: Some(0),
            waste_bytes: Some(0),
        };
        let group = groups.entry(fate).or_insert_with(empty);
        let waste = archive.live_bytes.map(|live| archive.bytes.saturating_sub(live));
        let sum = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| a.saturating_add(b));
        group.archives += 1;
        group.bytes = group.bytes.saturating_add(archive.bytes);
        group.live_bytes = sum(group.live_bytes, archive.live_bytes);
        group.waste_bytes = sum(group.waste_bytes, waste);
    }
    groups.into_values().collect()
}

/// Rewrites what the plan has chosen. `access` shows the repository as the prune before it has left it.
pub fn run_repack(
    installation: &Installation,
    access: &Access,
    request: &AccessRequest,
    policy: &Policy,
    options: &PruneOptions,
    plan: &RepackPlan,
    run: &Run,
) -> Result<RepackReport, OpsError> {
    let mut report = RepackReport { problems: plan.problems.clone(), ..RepackReport::default() };
    if plan.rewrites().0 == 0 {
        return Ok(report);
    }
    doubts::refuse(access)?;
    let host_key = HostKey::load(&installation.host_key())?;
    let repository = vouch::signer(installation, access, &host_key, request, (Role::Prune, &options.host), run)?;
    // A prune that deletes at once would not know what is being written here; this one is alone already when it is one.
    let _lock = if options.immediately { None } else { Some(writers_lock(&repository)?) };
    let state = match &access.state {
        Some(state) => state.clone(),
        None => Arc::new(State::open(&installation.state_dir)?),
    };
    let recipients = Recipients::parse(&policy.repository.recipients).map_err(RepositoryError::from)?;
    let mut rewriter = Rewriter::new(
        &repository,
        &plan.survey,
        host_key.chunk_id_key(),
        access.identities("repacking")?,
        recipients,
        &host_key.host_identity()?.to_public(),
        policy.repository.compression,
        &state,
        &run.cancel,
    );
    let batches = rewriter.batches(options.batch_bytes);
    for (number, batch) in batches.iter().enumerate() {
        run.events.step(format!("rewriting {} archives ({} of {})", batch.len(), number + 1, batches.len()));
        let changes = rewriter.write(batch)?;
        run.cancel.check()?;
        record(installation, access, &repository, &host_key, &changes, run)?;
        rewriter.recorded(&changes);
    }
    report.snapshots = rewriter.moved();
    (report.replaced, report.replaced_bytes) = rewriter.replaced();
    (report.written, report.written_bytes) = rewriter.written();
    report.problems.extend(rewriter.problems().iter().cloned());
    Ok(report)
}

fn writers_lock(repository: &Repository) -> Result<Locked, OpsError> {
    match repository.storage().lock(LockMode::Shared)? {
        Locked::Busy => Err(RepositoryError::Pruning { location: repository.storage().describe() }.into()),
        lock => Ok(lock),
    }
}

/// Says in records which refs count now, after a last look: only for what is still as it was when this began.
fn record(
    installation: &Installation,
    access: &Access,
    repository: &Repository,
    host_key: &HostKey,
    changes: &[Change],
    run: &Run,
) -> Result<(), OpsError> {
    let _lock = mark::lock(installation, run)?;
    let chain = access.reload_as(repository)?;
    doubts::refuse_chain(&chain)?;
    let condemned = repository.condemned()?;
    let mut lines: BTreeMap<&Line, Vec<Moved>> = BTreeMap::new();
    for change in changes {
        let Some(now) = chain.line(&change.line.0, &change.line.1).iter().find(|s| s.header_id == change.header) else {
            continue; // pruned meanwhile
        };
        // Refs have the name of their content: an old object of that name may be about to go.
        if now.refs != change.before || condemned.is_lost(&change.after) {
            return Err(OpsError::failed(
                format!("the repository has changed beside this repack: snapshot {} has other refs", now.header.id),
                "nothing is lost; run it again",
            ));
        }
        let moved = Moved { sequence: change.sequence, header: change.header, refs: change.after };
        lines.entry(&change.line).or_default().push(moved);
    }
    for (line, moved) in lines {
        let mut newest = chain.newest_record(&line.0, &line.1);
        for moved in moved.chunks(HEADERS) {
            let record = Record {
                kind: "record".to_owned(),
                format: FORMAT,
                requires: Vec::new(),
                repository: repository.id().clone(),
                time: mark::next_time(newest, line, run.now)?,
                host: line.0.clone(),
                policy: line.1.clone(),
                note: Note::Repack { moved: moved.to_vec() },
            };
            newest = Some(record.time);
            put(repository, host_key, &record)?;
        }
    }
    Ok(())
}

fn put(repository: &Repository, host_key: &HostKey, record: &Record) -> Result<(), RepositoryError> {
    let bytes = host_key.signing.sign(Namespace::Record, &to_json(record)?)?;
    let key = layout::dated_key(layout::RECORDS, record.time, object_id(&bytes))?;
    // From here on the new archives count, and nothing needs the old ones.
    repository.storage().put_new(&key, &bytes)?;
    // What this host wrote it must be able to read as everybody else will.
    let stored = repository.get(&key, limits::REFS)?;
    repository.verify_record(&key, &stored)?;
    Ok(())
}
