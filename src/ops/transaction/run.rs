//! Forward, step by step; and back when one fails.

use super::journal::{End, Entry, Journal, Line, Phase, Record, Step, refuse_pending};
use super::overlay;
use super::plan::{Late, TransactionPlan};
use super::report::{Outcome, TransactionReport};
use super::services::{Services, from_place, recorded};
use super::settle::discard_expired;
use super::stage::Stage;
use crate::base::cancel::Held;
use crate::base::events::Event;
use crate::base::ids::{SnapshotId, SourceName};
use crate::ops::access::{Access, AccessRequest, Installation};
use crate::ops::browse::part::open_snapshot;
use crate::ops::browse::select::source_named;
use crate::ops::health::{self, Health, Patience, Service as Watched};
use crate::ops::hooks;
use crate::ops::snapshot::{self, SnapshotOptions};
use crate::ops::streams::SnapshotStreams;
use crate::ops::verify::{Level, verify};
use crate::ops::{OpsError, Run, SourceOutcome, Trigger, check};
use crate::policy::Policy;
use crate::repository::chain::full_text;
use crate::repository::reader::SnapshotReader;
use crate::repository::state::{PolicyLock, State};
use crate::sources::placing::{Intent, Stored};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use std::sync::Arc;
use std::time::Instant;

/// Does what the plan says. `access` holds what is put back, `home` is where the policy's own snapshots go. An error: nothing was changed, or a crash away from here must be settled by
/// [`super::resume`]; what was undone is a report.
pub fn run(
    installation: &Installation,
    policy: &Policy,
    access: &Access,
    home: &AccessRequest,
    plan: &TransactionPlan,
    run: &Run,
) -> Result<TransactionReport, OpsError> {
    change(installation, policy, access, Some(home), plan, run)
}

/// The same on a machine where there is nothing to save.
pub fn run_unsaved(
    installation: &Installation,
    policy: &Policy,
    access: &Access,
    plan: &TransactionPlan,
    run: &Run,
) -> Result<TransactionReport, OpsError> {
    change(installation, policy, access, None, plan, run)
}

fn change(
    installation: &Installation,
    policy: &Policy,
    access: &Access,
    home: Option<&AccessRequest>,
    plan: &TransactionPlan,
    run: &Run,
) -> Result<TransactionReport, OpsError> {
    let clock = Clock { now: run.now, begun: Instant::now() };
    let state = Arc::new(State::open(&installation.state_dir)?);
    let lock = state.lock_policy(&plan.policy)?.ok_or_else(|| OpsError::Busy { policy: plan.policy.to_string() })?;
    refuse_pending(&installation.state_dir, &plan.policy)?;
    discard_expired(installation, policy, run)?;
    let reader = open_snapshot(access, plan.snapshot.as_str(), "restoring", run)?;
    let stage = Stage::new(installation, policy, &plan.id, run);
    let mut plan = plan.clone();
    if plan.services.project.is_some() {
        // Somebody may have thought about the plan for long: what runs now is what runs afterwards.
        plan.services = Services::find(policy, &recorded(&reader.manifest), &stage.places)?;
        if let Some(up) = &mut plan.up {
            up.look_again(policy, &stage.places)?;
            plan.services.stop_too(&up.left_down(), policy);
        }
    }
    let plan = &plan;
    run.events.step("health checks before anything is changed");
    let known = health::failing(&health::check(policy, &stage.places, Patience::Once, run));
    let tag = format!("pre-{}-{}", plan.what.word(), plan.id);
    let safety = match home {
        Some(home) => {
            save(installation, policy, home, (&plan.live_sources(), &plan.accept_unsaved), &tag, (&state, &lock), run)?
        }
        None => None,
    };
    run.cancel.check()?;
    let first = Line::Begin { plan: Box::new(plan.clone()), safety: safety.clone(), known: known.clone() };
    let journal = Journal::create(&installation.state_dir, &plan.id, &clock.entry(first))?;
    let mut machine = Machine::new(stage, plan, journal, clock, known, (Vec::new(), Vec::new()));
    machine.report.safety = safety;
    machine.go(Some(&reader))
}

/// Saves today's state: every source that is `concerned` must be in it, and be readable, unless it is accepted that it is
/// lost. Of any other it is said when it is not.
pub fn save(
    installation: &Installation,
    policy: &Policy,
    home: &AccessRequest,
    (concerned, accept_unsaved): (&[SourceName], &[SourceName]),
    tag: &str,
    lock: (&Arc<State>, &PolicyLock),
    run: &Run,
) -> Result<Option<SnapshotId>, OpsError> {
    let tags = vec![tag.parse().map_err(|e| OpsError::failed(format!("{e}"), "report this"))?];
    let options = SnapshotOptions { tags, ..SnapshotOptions::of(Trigger::Rollback) };
    run.events.step("safety snapshot");
    let sources = check::sources(installation, policy, &run.cancel);
    let planned = snapshot::plan(policy, &sources, &options)?;
    let report = snapshot::run_locked(installation, policy, &planned, &sources, lock, run)?;
    for notice in &report.notices {
        run.events.send(Event::Warning { source: None, text: format!("safety snapshot: {notice}") });
    }
    for source in report.sources.iter().filter(|s| s.outcome == SourceOutcome::Failed) {
        let name = source.name.as_str();
        let why = source.error.clone().unwrap_or_default();
        if !concerned.contains(&source.name) || accept_unsaved.contains(&source.name) {
            run.events.warn(&source.name, format!("today's state is not saved: {why}"));
            continue;
        }
        return Err(OpsError::failed(
            format!("today's state of source {name:?} cannot be saved first: {why}"),
            format!("mend that, or go on without it: --accept-unsaved {name}"),
        ));
    }
    let id = report.header.id;
    run.events.step("verifying the safety snapshot");
    let access = Access::open(installation, home)?;
    let level = if access.identities.is_some() { Level::Deep } else { Level::ReadData { percent: 100 } };
    let verified = verify(&access, level, std::slice::from_ref(&id), run)?;
    if let Some(finding) = verified.findings.first() {
        return Err(OpsError::Doubt {
            problem: format!("the safety snapshot {id} does not verify: {}", finding.problem),
            hint: "`lifeboat verify` says more; nothing has been changed".into(),
        });
    }
    Ok(Some(id))
}

/// The time that has passed since the run's own `now`.
#[derive(Clone, Copy)]
pub struct Clock {
    pub now: DateTime<Utc>,
    pub begun: Instant,
}

impl Clock {
    pub fn time(&self) -> DateTime<Utc> {
        self.now + TimeDelta::from_std(self.begun.elapsed()).unwrap_or_default()
    }

    pub fn entry(&self, line: Line) -> Entry {
        Entry { at: self.time(), line }
    }
}

/// One transaction on its way.
pub struct Machine<'a> {
    stage: Stage<'a>,
    plan: &'a TransactionPlan,
    journal: Journal,
    clock: Clock,
    known: Vec<String>,
    /// Steps that have begun, in this process or before it.
    begun: Vec<Step>,
    /// What became of the plan's late sources so far.
    late: Vec<Intent>,
    stopped: Option<Instant>,
    /// All had been prepared when this process began.
    resumed: bool,
    /// It had come to its end, and is taken back because somebody asked for it.
    asked: bool,
    /// What ran then.
    ran: Option<Services>,
    /// What was live before it, where `report.safety` is another one.
    before: Option<SnapshotId>,
    /// A signal turns it round; nothing but a crash cuts it off.
    _held: Held,
    pub report: TransactionReport,
}

impl<'a> Machine<'a> {
    pub fn new(
        stage: Stage<'a>,
        plan: &'a TransactionPlan,
        journal: Journal,
        clock: Clock,
        known: Vec<String>,
        (begun, late): (Vec<Step>, Vec<Intent>),
    ) -> Self {
        let report = TransactionReport::of(plan, Outcome::Done);
        let held = stage.run.cancel.hold();
        Self {
            stage,
            plan,
            journal,
            clock,
            known,
            begun,
            late,
            stopped: None,
            resumed: false,
            asked: false,
            ran: None,
            before: None,
            _held: held,
            report,
        }
    }

    /// The steps that a record says have begun, and what was intended on the way.
    pub fn so_far(record: &Record) -> (Vec<Step>, Vec<Intent>) {
        let steps = record.entries.iter().filter_map(|e| match &e.line {
            Line::Step { step, phase: Phase::Begin, .. } => Some(step.clone()),
            _ => None,
        });
        (steps.collect(), record.intended())
    }

    /// For one that had ended: what `ran` when that was asked for is what its owner wants to run. `before` is its own
    /// safety snapshot.
    pub fn asked(mut self, before: Option<SnapshotId>, ran: Option<Services>) -> Self {
        (self.asked, self.before, self.ran) = (true, before, ran);
        self
    }

    /// Forward to the end, or back. Without a reader everything has been prepared.
    pub fn go(mut self, reader: Option<&SnapshotReader>) -> Result<TransactionReport, OpsError> {
        self.resumed = reader.is_none();
        let forward = match reader {
            Some(reader) => self.prepare(reader).and_then(|()| self.exchange(Some(reader))),
            None => self.exchange(None),
        };
        match forward {
            Ok(()) => self.finish(),
            Err(failure) => self.back(failure),
        }
    }

    fn step(&mut self, step: Step, act: impl FnOnce(&mut Self) -> Result<(), OpsError>) -> Result<(), OpsError> {
        self.stage.run.cancel.check()?;
        self.stage.run.events.step(step.name());
        self.write(Line::Step { step: step.clone(), phase: Phase::Begin, seconds: 0.0, error: None })?;
        self.begun.push(step.clone());
        let begun = Instant::now();
        let result = act(self);
        let seconds = begun.elapsed().as_secs_f64();
        let error = result.as_ref().err().map(|e| full_text(e));
        self.report.step(&step, seconds, error.clone());
        let phase = if error.is_some() { Phase::Failed } else { Phase::Done };
        let written = self.write(Line::Step { step, phase, seconds, error });
        result.and(written)
    }

    fn write(&mut self, line: Line) -> Result<(), OpsError> {
        self.journal.add(&self.clock.entry(line))
    }

    fn prepare(&mut self, reader: &SnapshotReader) -> Result<(), OpsError> {
        let plan = self.plan;
        self.stage.make_folder()?;
        if !self.stage.policy.hooks.before_rollback.is_empty() {
            self.step(Step::HooksBefore, |m| m.hooks("before_rollback", &m.stage.policy.hooks.before_rollback))?;
        }
        for intent in &plan.intents {
            self.ready(reader, intent)?;
        }
        if let Some(command) = &plan.downgrade {
            self.step(Step::Downgrade, |m| {
                hooks::command(m.stage.policy, command, "[rollback] downgrade", &m.stage.run)
            })?;
        }
        self.step(Step::Stop, Self::stop)?;
        for intent in &plan.intents {
            self.settle(reader, intent)?;
        }
        Ok(())
    }

    fn ready(&mut self, reader: &SnapshotReader, intent: &Intent) -> Result<(), OpsError> {
        self.step(Step::Prepare { source: intent.source.clone() }, |m| {
            m.with_streams(reader, &intent.source, |m, stored| {
                overlay::lay(&m.stage, stored, &intent.source, &m.plan.env)?;
                m.stage
                    .placing_of(intent)?
                    .prepare(&m.stage.scene(&intent.source), stored, intent)
                    .map_err(|e| m.stage.failed(&intent.source, e))
            })
        })
    }

    fn settle(&mut self, reader: &SnapshotReader, intent: &Intent) -> Result<(), OpsError> {
        self.step(Step::Settle { source: intent.source.clone() }, |m| {
            m.with_streams(reader, &intent.source, |m, stored| {
                m.stage
                    .placing_of(intent)?
                    .settle(&m.stage.scene(&intent.source), stored, intent)
                    .map_err(|e| m.stage.failed(&intent.source, e))
            })
        })
    }

    fn switch(&mut self, intent: &Intent) -> Result<(), OpsError> {
        self.step(Step::Switch { source: intent.source.clone() }, |m| {
            m.placed(intent, |placing, scene| placing.switch(scene, intent))
        })
    }

    /// A project that is down: its volumes are made and filled, its stores brought up and filled.
    fn late(&mut self, reader: Option<&SnapshotReader>) -> Result<(), OpsError> {
        let (plan, Some(up)) = (self.plan, &self.plan.up) else { return Ok(()) };
        if plan.late.is_empty() {
            return Ok(());
        }
        for aside in &plan.aside {
            self.step(Step::Aside { source: aside.source.clone() }, |m| aside.away(&m.stage))?;
        }
        let (volumes, stores): (Vec<&Late>, Vec<&Late>) = plan.late.iter().partition(|l| l.kind == "volume");
        self.step(Step::Create, |m| up.create(&m.stage))?;
        for late in volumes {
            self.put_late(reader, late)?;
        }
        self.step(Step::Raise, |m| up.raise(&m.stage, &plan.services))?;
        for late in stores {
            self.put_late(reader, late)?;
        }
        Ok(())
    }

    fn put_late(&mut self, reader: Option<&SnapshotReader>, late: &Late) -> Result<(), OpsError> {
        let Some(reader) = reader else {
            // It was switched by the process before this one.
            let found = self.late.iter().find(|i| i.source == late.source).cloned();
            return found.map_or(Ok(()), |intent| self.switch(&intent));
        };
        let intent = self.with_streams(reader, &late.source, |m, stored| {
            let scene = m.stage.scene(&late.source);
            let placing = m.stage.placing_named(&late.source, &late.kind)?;
            placing.plan(&scene, stored, &late.part).map_err(|e| m.stage.failed(&late.source, e))
        })?;
        self.write(Line::Intended { intent: Box::new(intent.clone()) })?;
        self.late.push(intent.clone());
        self.ready(reader, &intent)?;
        self.settle(reader, &intent)?;
        self.switch(&intent)
    }

    /// Everything that is put back, late ones last.
    fn intents(&self) -> Vec<Intent> {
        self.plan.intents.iter().chain(&self.late).cloned().collect()
    }

    /// Damage of what is stored is told as damage.
    fn with_streams<T>(
        &self,
        reader: &SnapshotReader,
        source: &SourceName,
        act: impl FnOnce(&Self, &Stored<'_>) -> Result<T, OpsError>,
    ) -> Result<T, OpsError> {
        let source = source_named(&reader.manifest, source)?;
        let streams = SnapshotStreams::new(reader, source, &self.stage.run.cancel);
        let stored = Stored { snapshot: &self.plan.snapshot, streams: &streams, facts: &source.facts };
        act(self, &stored).map_err(|e| streams.take_damage().unwrap_or(e))
    }

    fn hooks(&self, name: &str, hooks: &[String]) -> Result<(), OpsError> {
        let told = vec![
            ("LIFEBOAT_WHAT", self.plan.what.hook().to_owned()),
            ("LIFEBOAT_TRANSACTION", self.plan.id.clone()),
            ("LIFEBOAT_SNAPSHOT", self.plan.snapshot.to_string()),
            ("LIFEBOAT_ERROR", self.report.failed.clone().unwrap_or_default()),
        ];
        hooks::run(self.stage.policy, name, hooks, &told, &self.stage.run)
    }

    fn stop(&mut self) -> Result<(), OpsError> {
        if !self.plan.services.stop.is_empty() {
            self.stopped.get_or_insert_with(Instant::now);
        }
        match &self.plan.up {
            // What came up meanwhile goes down as well.
            Some(up) if self.came_up() => up.stop(&self.stage),
            _ => self.plan.services.stop(&self.stage.places),
        }
    }

    /// Whether Compose may have made containers anew.
    fn came_up(&self) -> bool {
        let is_one = |step: &Step| matches!(step, Step::Aside { .. } | Step::Create | Step::Raise | Step::Start);
        self.begun.iter().any(is_one)
    }

    /// Whether the data folder of a source may lie aside: all that was put into the new one goes with that.
    fn went_aside(&self, source: &SourceName) -> bool {
        self.begun.contains(&Step::Aside { source: source.clone() })
    }

    /// A restart of the engine takes down what no step stops, and whatever comes next needs it.
    fn revive(&mut self) -> Result<(), OpsError> {
        // Of one that had ended, what its owner has stopped since stays so.
        let ran = self.ran.clone();
        let Some(services) = (if self.asked { ran.as_ref() } else { Some(&self.plan.services) }) else { return Ok(()) };
        let intents = self.intents();
        let switched = intents.iter().filter(|i| self.begun.contains(&Step::Switch { source: i.source.clone() }));
        let aside = self.plan.aside.iter().filter(|a| self.went_aside(&a.source)).map(|a| a.container.clone());
        let busy: Vec<String> = switched.flat_map(|i| i.restarts.clone()).chain(aside).collect();
        let fallen = services.fallen(&self.stage.places, &busy)?;
        if fallen.is_empty() {
            return Ok(());
        }
        self.step(Step::Revive, |m| services.revive(&fallen, &m.stage.places, &m.stage.run.cancel))
    }

    fn start(&mut self) -> Result<(), OpsError> {
        match &self.plan.up {
            Some(up) => up.forward(&self.stage, &self.plan.services),
            None => self.plan.services.start(&self.stage.places, &self.stage.run.cancel),
        }
    }

    fn start_again(&mut self) -> Result<(), OpsError> {
        match &self.plan.up {
            Some(up) if self.came_up() => {
                let notes = up.back(&self.stage, &self.plan.services, self.asked)?;
                self.report.warnings.extend(notes);
                Ok(())
            }
            _ => {
                let warnings = self.plan.services.start_again(&self.stage.places, &self.stage.run.cancel)?;
                self.report.warnings.extend(warnings);
                Ok(())
            }
        }
    }

    /// All is prepared: the new for the old.
    fn exchange(&mut self, reader: Option<&SnapshotReader>) -> Result<(), OpsError> {
        let plan = self.plan;
        if self.resumed {
            self.revive()?;
        }
        if self.resumed && !self.begun.contains(&Step::Start) {
            // After a restart of the engine they may run again.
            self.step(Step::Stop, Self::stop)?;
        }
        if !self.begun.contains(&Step::Start) {
            for intent in &plan.intents {
                self.switch(intent)?;
            }
            self.late(reader)?;
        }
        self.step(Step::Start, Self::start)?;
        if plan.nginx.is_some() {
            self.step(Step::Reload, Self::reload)?;
        }
        for intent in &self.intents() {
            self.step(Step::Confirm { source: intent.source.clone() }, |m| {
                m.placed(intent, |placing, scene| placing.confirm(scene, intent))
            })?;
        }
        self.step(Step::Health, |m| {
            let failures = m.health()?;
            if failures.is_empty() {
                return Ok(());
            }
            Err(OpsError::failed(
                format!("the application is not well afterwards: {}", failures.join("; ")),
                "the snapshot may not fit today's code; look at the service's log",
            ))
        })
    }

    fn placed<T>(
        &self,
        intent: &Intent,
        act: impl FnOnce(
            &dyn crate::sources::placing::Placing,
            &crate::sources::placing::Scene<'_>,
        ) -> Result<T, crate::sources::SourceError>,
    ) -> Result<T, OpsError> {
        let placing = self.stage.placing_of(intent)?;
        act(placing.as_ref(), &self.stage.scene(&intent.source)).map_err(|e| self.stage.failed(&intent.source, e))
    }

    fn reload(&mut self) -> Result<(), OpsError> {
        let Some(nginx) = &self.plan.nginx else { return Ok(()) };
        let note = nginx.reload(&self.stage.places)?;
        self.report.warnings.extend(note);
        Ok(())
    }

    /// What fails now and did not before.
    fn health(&mut self) -> Result<Vec<String>, OpsError> {
        let mut all: Vec<Health> = Vec::new();
        let forward = self.report.outcome == Outcome::Done;
        let names = match &self.plan.up {
            Some(up) if self.came_up() => Some(up.watched(&self.stage, forward)?),
            _ => None,
        };
        let stopped = self.plan.services.watched();
        let watched: Vec<Watched<'_>> = match &names {
            Some(names) => names
                .iter()
                .map(|name| Watched {
                    container: name,
                    was: stopped.iter().find(|w| w.container == name).and_then(|w| w.was),
                })
                .collect(),
            None => stopped,
        };
        if !watched.is_empty() {
            let docker = self.stage.places.docker().map_err(from_place)?;
            all.extend(health::settled(&docker, &watched, &self.stage.run.cancel));
        }
        // What failed in the old state is not waited for when that comes back.
        let patience = if forward { Patience::Full } else { Patience::Known(&self.known) };
        all.extend(health::check(self.stage.policy, &self.stage.places, patience, &self.stage.run));
        health::mark_known(&mut all, &self.known);
        self.report.health = all;
        if let Some(stopped) = self.stopped {
            self.report.downtime_seconds = Some(stopped.elapsed().as_secs_f64());
        }
        self.stage.run.cancel.check()?;
        Ok(health::failures(&self.report.health))
    }

    fn finish(mut self) -> Result<TransactionReport, OpsError> {
        if !self.stage.policy.hooks.after_rollback.is_empty()
            && let Err(e) =
                self.step(Step::HooksAfter, |m| m.hooks("after_rollback", &m.stage.policy.hooks.after_rollback))
        {
            // The application is well; a hook that is not changes nothing about that.
            self.report.warnings.push(full_text(&e));
        }
        for intent in self.intents() {
            match self.placed(&intent, |placing, scene| placing.differs(scene, &intent)) {
                Ok(tree) => self.report.differs(&intent, tree),
                Err(e) => self.report.warnings.push(full_text(&e)),
            }
        }
        self.write(Line::End { end: End::Done })?;
        let kept = TimeDelta::try_seconds(i64::try_from(self.plan.keep_old_seconds).unwrap_or(i64::MAX));
        self.report.kept_until = kept.and_then(|kept| self.clock.time().trunc_subsecs(0).checked_add_signed(kept));
        self.report.seconds = self.clock.begun.elapsed().as_secs_f64();
        Ok(self.report)
    }

    /// Back to the old state, whatever has been done; no signal stops it.
    pub fn back(mut self, failure: OpsError) -> Result<TransactionReport, OpsError> {
        let why = full_text(&failure);
        self.report.outcome = Outcome::Undone;
        self.report.failed = Some(why.clone());
        self.report.failure = Some(failure);
        self.write(Line::Undo { why, safety: None, ran: None })?;
        self.undo()
    }

    /// The steps of going back; the journal says already that it goes back.
    pub fn undo(mut self) -> Result<TransactionReport, OpsError> {
        self.report.outcome = Outcome::Undone;
        self.stage = self.stage.unstoppable();
        let plan = self.plan;
        let done = self.undo_steps();
        if let Err(e) = done {
            let undoing = full_text(&e);
            let failed = self.report.failed.take().map(|f| format!("{f}; and ")).unwrap_or_default();
            return Err(OpsError::Failed {
                problem: format!("{failed}taking transaction {} back failed: {undoing}", plan.id),
                hint: Some(format!(
                    "mend that, then `lifeboat -p {} {} --resume` goes on; nothing is lost meanwhile",
                    plan.policy,
                    plan.what.word()
                )),
            });
        }
        self.stage.remove_folder()?;
        self.report.remains = self.remains();
        self.report.warnings.extend(self.report.remains.clone());
        self.write(Line::End { end: End::Undone })?;
        self.report.seconds = self.clock.begun.elapsed().as_secs_f64();
        Ok(self.report)
    }

    /// What is not as it was: a command of the policy has no way back.
    fn remains(&self) -> Option<String> {
        let command = self.plan.downgrade.as_ref().filter(|_| self.begun.contains(&Step::Downgrade))?;
        let source = self.plan.downgrades.as_ref();
        let source = source.map_or_else(String::new, |name| format!(" of source {name}"));
        let Some(safety) = self.before.as_ref().or(self.report.safety.as_ref()) else {
            return Some(format!("{command:?} has changed the schema{source}, and nothing takes that back"));
        };
        let only = self.plan.downgrades.as_ref().map_or_else(String::new, |name| format!(" --only {name}"));
        Some(format!(
            "{command:?} has changed the schema{source}, and nothing takes that back by itself; the database of before is in \
             snapshot {safety}: `lifeboat -p {} restore {safety} --in-place{only}` brings it back",
            self.plan.policy
        ))
    }

    fn undo_steps(&mut self) -> Result<(), OpsError> {
        let plan = self.plan;
        let was_begun = |m: &Self, make: &dyn Fn(&Intent) -> Step, i: &Intent| m.begun.contains(&make(i));
        let switch = |i: &Intent| Step::Switch { source: i.source.clone() };
        let prepare = |i: &Intent| Step::Prepare { source: i.source.clone() };
        let intents = self.intents();
        let stays = |m: &Self, i: &Intent| !m.went_aside(&i.source);
        let switched: Vec<&Intent> = intents.iter().filter(|i| stays(self, i) && was_begun(self, &switch, i)).collect();
        let prepared: Vec<&Intent> =
            intents.iter().filter(|i| stays(self, i) && was_begun(self, &prepare, i)).collect();
        let stopped = self.begun.contains(&Step::Stop) || self.begun.contains(&Step::StopAgain);
        self.revive()?;
        if !switched.is_empty() || self.came_up() {
            self.step(Step::StopAgain, Self::stop)?;
        }
        for intent in switched.iter().rev() {
            self.step(Step::Back { source: intent.source.clone() }, |m| {
                m.placed(intent, |placing, scene| placing.back(scene, intent))
            })?;
        }
        for intent in prepared.iter().rev() {
            self.step(Step::DiscardNew { source: intent.source.clone() }, |m| {
                m.placed(intent, |placing, scene| placing.discard_new(scene, intent))
            })?;
        }
        for aside in plan.aside.iter().rev().filter(|a| self.went_aside(&a.source)).collect::<Vec<_>>() {
            self.step(Step::AsideBack { source: aside.source.clone() }, |m| aside.back(&m.stage))?;
        }
        if stopped || !switched.is_empty() {
            self.step(Step::StartAgain, Self::start_again)?;
        }
        if plan.nginx.is_some() && !switched.is_empty() {
            self.step(Step::ReloadAgain, Self::reload)?;
        }
        if stopped || !switched.is_empty() {
            self.step(Step::HealthAgain, |m| m.health().map(drop))?;
        }
        // Nothing has failed where somebody asked for it.
        if !self.asked
            && !self.stage.policy.hooks.on_failure.is_empty()
            && let Err(e) = self.step(Step::HooksFailed, |m| m.hooks("on_failure", &m.stage.policy.hooks.on_failure))
        {
            self.report.warnings.push(full_text(&e));
        }
        Ok(())
    }
}
