//! `guard`: a snapshot, a command, health checks, a second snapshot; and back to the first one where the command or the
//! health fails.
//!
//! A database goes back only if its schema is another one by then: else what was written meanwhile stays. Guard asks
//! nothing, and takes the snapshot's env.

use super::plan::{EnvSide, RollbackRequest, plan};
use super::{major, schema};
use crate::base::cancel::Cancel;
use crate::base::events::Event;
use crate::base::ids::{SnapshotId, SourceName, Tag};
use crate::base::umask;
use crate::ops::access::{Access, AccessRequest, Installation};
use crate::ops::browse::part::open_snapshot;
use crate::ops::health::{self, Health, Patience};
use crate::ops::snapshot::{self, SnapshotOptions, SnapshotReport};
use crate::ops::transaction::{self, Stage, TransactionReport};
use crate::ops::verify::{Level, verify};
use crate::ops::{OpsError, Outcome, Run, Trigger, check};
use crate::policy::Policy;
use crate::policy::model::SourceSpec;
use crate::repository::chain::full_text;
use crate::sources::{SourceError, git};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(50);
/// How long another run of the policy is waited for.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
const NAP: Duration = Duration::from_millis(500);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct GuardRequest {
    /// Of the second snapshot; the first one is tagged `before-<tag>`.
    pub tag: Option<Tag>,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Where it fails, say so and change nothing.
    pub no_rollback: bool,
    pub identity: Option<std::path::PathBuf>,
    /// Standard output is a document: what the command prints goes to standard error.
    pub to_stderr: bool,
}

/// How it came out.
#[derive(Debug, Serialize)]
pub struct GuardReport {
    pub before: SnapshotId,
    /// The command's exit status; absent where a signal ended it.
    pub status: Option<i32>,
    pub command_seconds: f64,
    /// After the command.
    pub health: Vec<Health>,
    pub after: Option<SnapshotId>,
    /// Whether that one is complete.
    pub after_outcome: Option<Outcome>,
    /// Why it did not go well.
    pub failed: Option<String>,
    /// How it was taken back.
    pub rollback: Option<TransactionReport>,
    /// Why it could not be taken back.
    pub rollback_failed: Option<String>,
    #[serde(skip)]
    pub rollback_hint: Option<String>,
}

/// Takes the first snapshot, and looks at it.
pub fn before(
    installation: &Installation,
    policy: &Policy,
    request: &GuardRequest,
    run: &Run,
) -> Result<SnapshotReport, OpsError> {
    let has_code = policy.sources.iter().any(|s| matches!(s.spec, SourceSpec::Git(_)));
    if has_code && !request.no_rollback {
        // What is unfinished afterwards is then the command's, and may be given up.
        git::refuse_unfinished(&policy.app.root, &run.cancel).map_err(of_code)?;
    }
    let tag = request.tag.as_ref().map(|tag| format!("before-{tag}").parse::<Tag>()).transpose();
    let tag = tag.map_err(|e| OpsError::usage(format!("{e}"), "choose a shorter tag"))?;
    let report = take(installation, policy, tag, run)?;
    if report.header.outcome == Outcome::Partial {
        let failed =
            report.sources.iter().find_map(|s| Some(format!("source {:?}: {}", s.name.as_str(), s.error.as_ref()?)));
        return Err(OpsError::failed(
            format!("snapshot {} is not complete ({})", report.header.id, failed.unwrap_or_default()),
            "the command was not run; mend that first",
        ));
    }
    if let Some(failed) = &report.hook_failed {
        return Err(OpsError::failed(
            failed.clone(),
            "the command was not run: the application may not be as it was; mend that first",
        ));
    }
    let home = AccessRequest { identity: request.identity.clone(), ..AccessRequest::of(policy) };
    let access = Access::open(installation, &home)?;
    let level = if access.identities.is_some() { Level::Deep } else { Level::ReadData { percent: 100 } };
    let id = &report.header.id;
    let verified = verify(&access, level, std::slice::from_ref(id), run)?;
    if let Some(finding) = verified.findings.first() {
        return Err(OpsError::Doubt {
            problem: format!("snapshot {id} does not verify: {}", finding.problem),
            hint: "the command was not run; `lifeboat verify` says more".into(),
        });
    }
    if !request.no_rollback {
        // Better known now than in the bad night.
        access.identities("rolling back")?;
    }
    Ok(report)
}

fn take(installation: &Installation, policy: &Policy, tag: Option<Tag>, run: &Run) -> Result<SnapshotReport, OpsError> {
    let options = SnapshotOptions { tags: tag.into_iter().collect(), ..SnapshotOptions::of(Trigger::Guard) };
    let sources = check::sources(installation, policy, &run.cancel);
    let planned = snapshot::plan(policy, &sources, &options)?;
    snapshot::run(installation, policy, &planned, &sources, run)
}

/// Runs the command, and does what its end asks for.
pub fn guarded(
    installation: &Installation,
    policy: &Policy,
    request: &GuardRequest,
    before: &SnapshotId,
    run: &Run,
) -> Result<GuardReport, OpsError> {
    let stage = Stage::new(installation, policy, "guard", run);
    let known = health::failing(&health::check(policy, &stage.places, Patience::Once, run));
    let begun = Instant::now();
    let status = command(request, run)?;
    let mut report = GuardReport {
        before: before.clone(),
        status,
        command_seconds: begun.elapsed().as_secs_f64(),
        health: Vec::new(),
        after: None,
        after_outcome: None,
        failed: None,
        rollback: None,
        rollback_failed: None,
        rollback_hint: None,
    };
    // From here on nothing but the end of it counts: half a deployment must not stay.
    let run = &Run { cancel: Cancel::new(), ..run.clone() };
    report.failed = match status {
        Some(0) => None,
        Some(code) => Some(format!("the command ended with status {code}")),
        None => Some("the command was ended by a signal".to_owned()),
    };
    if report.failed.is_none() {
        report.health = health::check(policy, &stage.places, Patience::Full, run);
        health::mark_known(&mut report.health, &known);
        let failures = health::failures(&report.health);
        report.failed = (!failures.is_empty())
            .then(|| format!("the application is not well after the command: {}", failures.join("; ")));
    }
    match &report.failed {
        None => {
            let taken = patiently(run, PATIENCE, || take(installation, policy, request.tag.clone(), run))?;
            let said = taken.hook_failed.into_iter();
            said.for_each(|text| run.events.send(Event::Warning { source: None, text }));
            report.after = Some(taken.header.id);
            report.after_outcome = Some(taken.header.outcome);
        }
        Some(_) if request.no_rollback => {}
        // What the command did is what has to be told first, whatever comes of taking it back.
        Some(_) => match patiently(run, PATIENCE, || back(installation, policy, request, before, run)) {
            Ok(done) => report.rollback = Some(done),
            Err(e) => {
                report.rollback_hint = e.hint();
                report.rollback_failed = Some(full_text(&e));
            }
        },
    }
    Ok(report)
}

/// Another run may hold the policy just now, a snapshot by schedule for instance: half a deployment does not stay for that.
fn patiently<T>(run: &Run, patience: Duration, act: impl Fn() -> Result<T, OpsError>) -> Result<T, OpsError> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        match act() {
            Err(OpsError::Busy { policy }) if begun.elapsed() < patience => {
                if !told {
                    run.events.step(format!("waiting for another run of policy {policy} to end"));
                    told = true;
                }
                std::thread::sleep(NAP);
            }
            other => return other,
        }
    }
}

/// With this process's own input and output. Its exit status; none where a signal ended it.
fn command(request: &GuardRequest, run: &Run) -> Result<Option<i32>, OpsError> {
    let (program, arguments) = request
        .command
        .split_first()
        .ok_or_else(|| OpsError::usage("no command is named", "write it behind --: lifeboat guard -- ./deploy.sh"))?;
    let shown = program.to_string_lossy();
    let failed = |e: std::io::Error| {
        OpsError::failed(format!("command {shown:?} cannot be run: {e}"), "nothing was changed by it")
    };
    let mut command = Command::new(program);
    command.args(arguments);
    if request.to_stderr {
        let stderr = std::io::stderr().as_fd().try_clone_to_owned().map_err(failed)?;
        command.stdout(stderr);
    }
    // What it installs is read by others too.
    let mut child = umask::lent(|| command.spawn()).map_err(failed)?;
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(status.code());
        }
        if run.cancel.signal().is_some() && !told {
            told = true;
            // Ctrl-C reached it already; a signal for this process alone did not.
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        std::thread::sleep(TICK);
    }
}

/// Back to the first snapshot.
fn back(
    installation: &Installation,
    policy: &Policy,
    request: &GuardRequest,
    before: &SnapshotId,
    run: &Run,
) -> Result<TransactionReport, OpsError> {
    let home = AccessRequest { identity: request.identity.clone(), ..AccessRequest::of(policy) };
    let access = Access::open(installation, &home)?;
    if policy.sources.iter().any(|s| matches!(s.spec, SourceSpec::Git(_))) {
        // A pull that ended in a conflict is what the command left: it was not there before.
        for note in git::give_up(&policy.app.root, &format!("guard-{before}"), &run.cancel).map_err(of_code)? {
            run.events.step(note);
        }
    }
    let (keep, upgraded) = unchanged(installation, policy, &access, before, run)?;
    let mut asked =
        RollbackRequest { to: before.to_string(), env: Some(EnvSide::Snapshot), keep, ..RollbackRequest::default() };
    // What cannot be saved in the state that the command left must not keep the application from coming back.
    asked.accept_unsaved = policy.sources.iter().map(|s| s.name.clone()).collect();
    asked.accept_schema = true;
    asked.new_data_dir = upgraded;
    let plan = plan(installation, policy, &access, &asked, &|_| None, run)?;
    transaction::run(installation, policy, &access, &home, &plan, run)
}

fn of_code(source: SourceError) -> OpsError {
    OpsError::Source { name: "git".into(), source }
}

/// Databases whose schema is as it was: what was written to them meanwhile stays. And whether a server is of another major
/// version by now: it cannot stay.
fn unchanged(
    installation: &Installation,
    policy: &Policy,
    access: &Access,
    before: &SnapshotId,
    run: &Run,
) -> Result<(Vec<(SourceName, String)>, bool), OpsError> {
    let reader = open_snapshot(access, before.as_str(), "rolling back", run)?;
    let stage = Stage::new(installation, policy, "guard", run);
    let (mut keep, mut upgraded) = (Vec::new(), false);
    for source in reader.manifest.sources.iter().filter(|s| s.kind == "postgres") {
        let of_policy = policy.sources.iter().find(|s| s.name == source.name && s.spec.kind() == source.kind);
        let Some(of_policy) = of_policy else { continue };
        if major::differs(&stage, source, of_policy).is_ok_and(|differs| differs.is_some()) {
            upgraded = true;
            continue;
        }
        match schema::change(source, of_policy, &stage) {
            Ok(change) if !change.is_changed() => {
                keep.push((source.name.clone(), "its schema is unchanged: what was written to it stays".to_owned()));
            }
            Ok(_) => {}
            // One that does not answer any more is the command's doing.
            Err(e) => run.events.warn(&source.name, format!("its schema cannot be compared: {}", full_text(&e))),
        }
    }
    Ok((keep, upgraded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::events::Events;
    use std::cell::Cell;
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_policy_that_is_held_is_waited_for_and_not_for_ever() {
        let (asked, told) = (Cell::new(0), Arc::new(Mutex::new(Vec::new())));
        let events = {
            let told = told.clone();
            Events::new(move |event| told.lock().unwrap().push(format!("{event:?}")))
        };
        let run = Run { events, cancel: Cancel::new(), now: chrono::DateTime::UNIX_EPOCH };
        let busy = || OpsError::Busy { policy: "shop".into() };
        let free_at = |n: u32| {
            asked.set(asked.get() + 1);
            if asked.get() < n { Err(busy()) } else { Ok(asked.get()) }
        };
        assert_eq!(patiently(&run, PATIENCE, || free_at(3)).unwrap(), 3);
        assert_eq!(told.lock().unwrap().len(), 1, "it is said once");
        asked.set(0);
        let given_up = patiently(&run, NAP, || free_at(u32::MAX));
        assert!(matches!(given_up, Err(OpsError::Busy { .. })) && asked.get() >= 2);
        // What is no other run's doing is told at once.
        asked.set(0);
        let failed = patiently(&run, PATIENCE, || {
            asked.set(asked.get() + 1);
            Err::<(), _>(OpsError::failed("no", "no"))
        });
        assert!(failed.is_err() && asked.get() == 1);
    }
}
