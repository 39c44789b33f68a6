//! What comes after: a transaction that was cut short is brought to one of its ends, one that ended well is undone on
//! request, and what was replaced is discarded when it has been kept long enough.

use super::journal::{End, Journal, Line, Record, Step, pending, records, refuse_pending};
use super::plan::Late;
use super::report::TransactionReport;
use super::run::{Clock, Machine, save};
use super::stage::Stage;
use crate::base::cancel::Cancel;
use crate::base::events::Event;
use crate::base::ids::PolicyName;
use crate::ops::access::{AccessRequest, Installation};
use crate::ops::health::{self, Patience};
use crate::ops::{OpsError, Run};
use crate::policy::Policy;
use crate::repository::chain::full_text;
use crate::repository::state::State;
use chrono::{DateTime, TimeDelta, Utc};
use std::sync::Arc;
use std::time::Instant;

/// Finishes the pending transaction of a policy, or takes it back: forward when all was prepared, back otherwise.
pub fn resume(installation: &Installation, policy: &Policy, run: &Run) -> Result<TransactionReport, OpsError> {
    let state = State::open(&installation.state_dir)?;
    let _lock =
        state.lock_policy(&policy.app.name)?.ok_or_else(|| OpsError::Busy { policy: policy.app.name.to_string() })?;
    let found = pending(&installation.state_dir)?.into_iter().find(|p| p.policy == policy.app.name);
    let record = found.map(|p| p.record).ok_or_else(|| {
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
        return if record.was_done() { machine.asked().undo() } else { machine.undo() };
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
    let mut found = Vec::new();
    for record in records(&installation.state_dir)? {
        if record.plan.policy != *policy || record.is_discarded() {
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

/// Brings back what a finished transaction replaced, after a safety snapshot of its own.
pub fn undo(
    installation: &Installation,
    policy: &Policy,
    home: &AccessRequest,
    which: &Kept,
    run: &Run,
) -> Result<TransactionReport, OpsError> {
    let state = Arc::new(State::open(&installation.state_dir)?);
    let lock =
        state.lock_policy(&policy.app.name)?.ok_or_else(|| OpsError::Busy { policy: policy.app.name.to_string() })?;
    refuse_pending(&installation.state_dir, &policy.app.name)?;
    let record = &which.record;
    let plan = &record.plan;
    let stage = Stage::new(installation, policy, &plan.id, run);
    let known = health::failing(&health::check(policy, &stage.places, Patience::Once, run));
    let random: [u8; 2] =
        crate::base::ids::random_bytes().map_err(|e| OpsError::file("make an id with", "/dev/urandom", e))?;
    let tag = format!("pre-undo-{}-{}", plan.id, hex::encode(random));
    let safety = save(installation, policy, home, plan, &tag, (&state, &lock), run)?;
    run.cancel.check()?;
    stage.make_folder()?;
    let clock = Clock { now: run.now, begun: Instant::now() };
    let mut journal = Journal::open(&record.path)?;
    journal.add(&clock.entry(Line::Undo { why: "it was asked for".into(), safety: safety.clone() }))?;
    let mut machine = Machine::new(stage, plan, journal, clock, known, Machine::so_far(record));
    machine.report.safety = safety;
    machine.asked().undo()
}

/// Removes what was replaced and has been kept long enough. What goes wrong is a warning: it is tried again next time.
pub fn discard_expired(installation: &Installation, policy: &Policy, run: &Run) -> Result<(), OpsError> {
    for kept in kept(installation, &policy.app.name)?.into_iter().filter(|k| k.until <= run.now) {
        if let Err(e) = discard(installation, policy, &kept, run) {
            let text = format!("what transaction {} replaced is not removed yet: {}", kept.id, full_text(&e));
            run.events.send(Event::Warning { source: None, text });
        }
    }
    Ok(())
}

fn discard(installation: &Installation, policy: &Policy, kept: &Kept, run: &Run) -> Result<(), OpsError> {
    let run = Run { cancel: Cancel::new(), ..run.clone() };
    let stage = Stage::new(installation, policy, &kept.id, &run);
    for intent in kept.record.plan.intents.iter().chain(&kept.record.intended()) {
        let placing = stage.placing_of(intent)?;
        placing.discard_old(&stage.scene(&intent.source), intent).map_err(|e| stage.failed(&intent.source, e))?;
    }
    stage.remove_folder()?;
    let clock = Clock { now: run.now, begun: Instant::now() };
    Journal::open(&kept.record.path)?.add(&clock.entry(Line::Discarded))
}
