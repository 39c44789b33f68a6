//! `guard`: a command wrapped in snapshots.

use super::transaction::Asked;
use super::transaction::report_text;
use crate::cli::args::GuardArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::printable;
use crate::cli::session::{Session, argument};
use crate::ops::Outcome as Captured;
use crate::ops::rollback::guard::{GuardReport, GuardRequest, before, guarded};
use crate::ops::transaction::Outcome;
use crate::policy::Policy;

pub fn run(session: &Session, args: &GuardArgs) -> Result<Exit, Failure> {
    let policy = session.policy().map_err(|f| f.attempted("guard"))?;
    let done = with_policy(session, args, &policy);
    session.progress.finish();
    done.map_err(|f| f.attempted(format!("guard {}", policy.app.name)))
}

fn with_policy(session: &Session, args: &GuardArgs, policy: &Policy) -> Result<Exit, Failure> {
    let request = GuardRequest {
        tag: args.tag.as_deref().map(|tag| argument("--tag", tag)).transpose()?,
        command: args.command.clone(),
        no_rollback: args.no_rollback,
        identity: args.identity.clone(),
        to_stderr: session.out.json,
    };
    let first = before(&session.installation, policy, &request, &session.run)?;
    session.progress.finish();
    let id = &first.header.id;
    session.out.alarm(&format!("snapshot {id} is what it goes back to; running {}", shown(args)));
    let report = guarded(&session.installation, policy, &request, id, &session.run)?;
    session.progress.finish();
    tell(session, policy, &report)
}

fn shown(args: &GuardArgs) -> String {
    printable(&args.command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default())
}

fn tell(session: &Session, policy: &Policy, report: &GuardReport) -> Result<Exit, Failure> {
    session.note(|noted| noted.snapshot = Some(report.after.as_ref().unwrap_or(&report.before).to_string()));
    let out = &session.out;
    let exit = match (&report.failed, &report.rollback) {
        (None, _) if report.after_outcome == Some(Captured::Partial) => Exit::Partial,
        (None, _) => Exit::Done,
        (Some(_), None) => Exit::Failed,
        (Some(_), Some(back)) if back.outcome == Outcome::Done && back.is_healthy() => Exit::RolledBack,
        (Some(_), Some(back)) if back.outcome == Outcome::Done => Exit::Unhealthy,
        (Some(_), Some(_)) => Exit::Failed,
    };
    if out.json {
        out.document(exit, report)?;
    } else if let Some(after) = report.after.as_ref().filter(|_| exit == Exit::Partial) {
        out.alarm(&format!(
            "all is well, but snapshot {after} of what {} is now is partial: what it lacks, no rollback to it brings back",
            policy.app.name
        ));
    } else if let Some(after) = &report.after {
        out.note(&format!("all is well: snapshot {after} is what {} is now\n", policy.app.name))?;
    } else if let Some(back) = &report.rollback {
        out.text(&report_text(session, back, Asked::Change))?;
    }
    let Some(failed) = &report.failed else { return Ok(exit) };
    let way_back =
        format!("`lifeboat{} rollback --to {}`", session.same_options(Some(policy.app.name.as_str())), report.before);
    let hint = match exit {
        Exit::RolledBack => "the application is back where it was".to_owned(),
        Exit::Unhealthy => "it was rolled back, and is not well all the same: look at its log".to_owned(),
        _ if report.rollback_failed.is_some() => {
            let why = report.rollback_failed.as_deref().unwrap_or_default();
            let hint = report.rollback_hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
            format!("it could not be rolled back: {why}{hint}; mend that, then {way_back}")
        }
        _ if report.rollback.is_some() => {
            format!("the rollback failed as well and was undone: mend that, then {way_back}")
        }
        _ => format!("nothing was rolled back: {way_back} does"),
    };
    out.complaint(&Failure::new(exit, failed.clone()).attempted(format!("guard {}", policy.app.name)).hint(Some(hint)));
    Ok(exit)
}
