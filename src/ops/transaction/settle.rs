//! What comes after: a transaction that was cut short is brought to one of its ends, one that ended well is undone on
//! request, and what was replaced is discarded when it has been kept long enough.

use super::journal::{End, Journal, Line, Record, Step, forget_spent, records_of, refuse_pending};
use super::plan::Late;
use super::report::TransactionReport;
use super::run::{Clock, Machine, save};
use super::services::Services;
use super::stage::Stage;
use crate::base::cancel::Cancel;
use crate::base::events::Event;
use crate::base::ids::{PolicyName, SourceName};
use crate::ops::access::{AccessRequest, Installation};
use crate::ops::health::{self, Patience};
use crate::ops::{OpsError, Run};
use crate::policy::Policy;
use crate::repository::chain::full_text;
use crate::repository::state::State;
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use std::sync::Arc;
use std::time::Instant;

/// Finishes the pending transaction of a policy, or takes it back: forward when all was prepared, back otherwise.
pub fn resume(installation: &Installation, policy: &Policy, run: &Run) -> Result<TransactionReport, OpsError> {
    let state = State::open(&installation.state_dir)?;
    let _lock =
        state.lock_policy(&policy.app.name)?.ok_or_else(|| OpsError::Busy { policy: policy.app.name.to_string() })?;
    let found = records_of(&installation.state_dir, &policy.app.name)?.into_iter().find(|r| r.end().is_none());
    let record = found.ok_or_else(|| {
        OpsError::usage(format!("no transaction of policy {} is pending", policy.app.name), "there is nothing to do")
    })?;
    for name in crate::sources::sweep(policy, run.now, &run.cancel) {
        run.events.step(format!("removed helper container {name}, which a killed run left behind"));
    }
    let plan = &record.plan;
    let stage = Stage::new(installation, policy, &plan.id, run);
    let journal = Journal::open(&record.path)?;
    let clock = Clock { now: run.now, begun: Instant::now() };
    let mut machine = Machine::new(stage, plan, journal, clock, record.known.clone(), Machine::so_far(&record));
    machine.report.safety.clone_from(&record.safety);
    if let Some(why) = record.undoing() {
        machine.report.failed = Some(why.to_owned());
        return match record.was_done() {
            true => machine.asked(record.safety.clone(), record.ran().cloned()).undo(),
            false => machine.undo(),
        };
    }
    let settled = |s: &crate::sources::placing::Intent| record.done(&Step::Settle { source: s.source.clone() });
    let switched = |l: &Late| record.begun(&Step::Switch { source: l.source.clone() });
    if plan.intents.iter().all(settled) && plan.late.iter().all(switched) {
        return machine.go(None);
    }
    machine.back(OpsError::failed("it was cut short before all was prepared", "run it again"))
}

/// A transaction whose replaced things are still there.
#[derive(Debug, Clone)]
pub struct Kept {
    pub id: String,
    pub ended: DateTime<Utc>,
    /// Until then they are kept.
    pub until: DateTime<Utc>,
    pub record: Record,
}

/// What can be undone of a policy, newest first.
pub fn kept(installation: &Installation, policy: &PolicyName) -> Result<Vec<Kept>, OpsError> {
    let mut kept = not_discarded(installation, policy)?;
    kept.retain(|k| !k.record.is_discarding());
    Ok(kept)
}

/// The same, with those that are being removed.
fn not_discarded(installation: &Installation, policy: &PolicyName) -> Result<Vec<Kept>, OpsError> {
    let mut found = Vec::new();
    for record in records_of(&installation.state_dir, policy)? {
        if record.is_discarded() {
            continue;
        }
        if let Some((End::Done, ended)) = record.end() {
            let seconds = i64::try_from(record.plan.keep_old_seconds).ok().and_then(TimeDelta::try_seconds);
            let until = seconds.and_then(|s| ended.checked_add_signed(s)).unwrap_or(DateTime::<Utc>::MAX_UTC);
            found.push(Kept { id: record.plan.id.clone(), ended, until, record });
        }
    }
    found.reverse();
    Ok(found)
}

/// The same as it was before somebody was asked, looked at again now that nobody else changes it.
fn still_kept(
    installation: &Installation,
    policy: &PolicyName,
    id: &str,
    now: DateTime<Utc>,
) -> Result<Kept, OpsError> {
    let mut all = kept(installation, policy)?;
    match all.iter().position(|k| k.id == id) {
        Some(0) if all[0].until > now => Ok(all.swap_remove(0)),
        Some(0) => Err(OpsError::usage(
            format!("what transaction {id} replaced was kept until {}", all[0].until.trunc_subsecs(0)),
            "restore the safety snapshot that was taken before it: `lifeboat list` shows it",
        )),
        Some(newer) => Err(OpsError::usage(
            format!("{newer} later changes are newer than {id}"),
            format!("undo the newest first: {}", all[0].id),
        )),
        None => Err(OpsError::usage(
            format!(
                "transaction {id} cannot be undone any more: meanwhile it was undone, or what it replaced was removed"
            ),
            "restore the safety snapshot that was taken before it: `lifeboat list` shows it",
        )),
    }
}

/// Brings back what a finished transaction replaced, after a safety snapshot of its own. `accept_unsaved` are sources whose
/// state of today may be lost.
pub fn undo(
    installation: &Installation,
    policy: &Policy,
    home: &AccessRequest,
    (id, accept_unsaved): (&str, &[SourceName]),
    run: &Run,
) -> Result<TransactionReport, OpsError> {
    let clock = Clock { now: run.now, begun: Instant::now() };
    let state = Arc::new(State::open(&installation.state_dir)?);
    let lock =
        state.lock_policy(&policy.app.name)?.ok_or_else(|| OpsError::Busy { policy: policy.app.name.to_string() })?;
    refuse_pending(&installation.state_dir, &policy.app.name)?;
    let record = &still_kept(installation, &policy.app.name, id, clock.time())?.record;
    let plan = &record.plan;
    let stage = Stage::new(installation, policy, &plan.id, run);
    plan.aside.iter().try_for_each(|aside| aside.must_be_kept(&stage))?;
    let known = health::failing(&health::check(policy, &stage.places, Patience::Once, run));
    let random: [u8; 2] =
        crate::base::ids::random_bytes().map_err(|e| OpsError::file("make an id with", "/dev/urandom", e))?;
    let tag = format!("pre-undo-{}-{}", plan.id, hex::encode(random));
    // What the change brought up is lost as well, not only what it found running.
    let concerned = (plan.sources(), accept_unsaved);
    let safety = save(installation, policy, home, (&concerned.0, concerned.1), &tag, (&state, &lock), run)?;
    run.cancel.check()?;
    stage.make_folder()?;
    // What runs now, and not what ran when the change was planned.
    let ran = plan.services.project.as_ref().map(|_| Services::now(policy, &stage.places)).transpose()?.flatten();
    let undo = Line::Undo { why: "it was asked for".into(), safety: safety.clone(), ran: ran.clone().map(Box::new) };
    let mut journal = Journal::open(&record.path)?;
    journal.add(&clock.entry(undo))?;
    let mut machine = Machine::new(stage, plan, journal, clock, known, Machine::so_far(record));
    machine.report.safety = safety;
    machine.asked(record.safety.clone(), ran).undo()
}

/// Removes what was replaced and has been kept long enough. What goes wrong is a warning: it is tried again next time.
pub fn discard_expired(installation: &Installation, policy: &Policy, run: &Run) -> Result<(), OpsError> {
    for kept in not_discarded(installation, &policy.app.name)? {
        // What has begun to go is of no use to anybody.
        if kept.until > run.now && !kept.record.is_discarding() {
            continue;
        }
        if let Err(e) = discard(installation, policy, &kept, run) {
            let text = format!("what transaction {} replaced is not removed yet: {}", kept.id, full_text(&e));
            run.events.send(Event::Warning { source: None, text });
        }
    }
    forget_spent(&installation.state_dir, &policy.app.name)
}

fn discard(installation: &Installation, policy: &Policy, kept: &Kept, run: &Run) -> Result<(), OpsError> {
    let run = Run { cancel: Cancel::new(), ..run.clone() };
    let stage = Stage::new(installation, policy, &kept.id, &run);
    let clock = Clock { now: run.now, begun: Instant::now() };
    let mut journal = Journal::open(&kept.record.path)?;
    if !kept.record.is_discarding() {
        journal.add(&clock.entry(Line::Discarding))?;
    }
    for intent in kept.record.plan.intents.iter().chain(&kept.record.intended()) {
        let placing = stage.placing_of(intent)?;
        placing.discard_old(&stage.scene(&intent.source), intent).map_err(|e| stage.failed(&intent.source, e))?;
    }
    for aside in &kept.record.plan.aside {
        aside.discard(&stage)?;
    }
    stage.remove_folder()?;
    journal.add(&clock.entry(Line::Discarded))
}
