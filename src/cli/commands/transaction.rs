//! A change of the live application as one transaction: what would be done, what was done, and what settles it.

use super::restore::differences;
use crate::base::units::{human_duration, human_size};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table, local, printable};
use crate::cli::session::{Session, argument};
use crate::ops::ErrorKind;
use crate::ops::access::AccessRequest;
use crate::ops::transaction::up::Up;
use crate::ops::transaction::{self, Kept, Outcome, TransactionPlan, TransactionReport, What};
use crate::policy::Policy;
use std::path::PathBuf;
use std::time::Duration;

/// The plan as a document: without what only the steps themselves understand.
pub fn plan_document(plan: &TransactionPlan) -> serde_json::Value {
    let mut plan = serde_json::json!({ "plan": plan });
    for intent in plan["plan"]["intents"].as_array_mut().into_iter().flatten() {
        if let Some(fields) = intent.as_object_mut() {
            fields.remove("state");
            for room in fields["room"].as_array_mut().into_iter().flatten() {
                room.as_object_mut().map(|room| room.remove("device"));
            }
        }
    }
    plan
}

/// Where the policy's own snapshots go, opened with the identity that was named.
pub fn home(identity: Option<PathBuf>, policy: &Policy) -> AccessRequest {
    AccessRequest { identity, ..AccessRequest::of(policy) }
}

/// How a change that was made or begun is settled.
pub struct Settling {
    pub identity: Option<PathBuf>,
    pub dry_run: bool,
    pub yes: bool,
    pub accept_unsaved: Vec<String>,
}

/// `--resume`.
pub fn resume(session: &Session, policy: &Policy) -> Result<Exit, Failure> {
    let report = transaction::resume(&session.installation, policy, &session.run)?;
    tell(session, report, Asked::Resume)
}

/// `--undo`.
pub fn undo(session: &Session, args: &Settling, policy: &Policy, id: Option<&str>) -> Result<Exit, Failure> {
    let kept = transaction::kept(&session.installation, &policy.app.name)?;
    let ids: Vec<&str> = kept.iter().map(|k| k.id.as_str()).collect();
    let wanted = |k: &&Kept| id.is_none_or(|id| k.id == id || k.id.starts_with(id));
    let which = kept.iter().find(wanted).ok_or_else(|| {
        let hint = match ids.as_slice() {
            [] => {
                "what a rollback or a restore in place replaced is kept for `keep_old` of section [rollback]".to_owned()
            }
            ids => format!("there are {}", ids.join(", ")),
        };
        Failure::usage("there is nothing to undo", hint)
    })?;
    let newer = kept.iter().take_while(|k| k.id != which.id).count();
    if newer > 0 {
        return Err(Failure::usage(
            format!("{newer} later changes are newer than {}", which.id),
            format!("undo the newest first: {}", ids[0]),
        ));
    }
    let what = format!(
        "bring back what was live before {} ({}): {}",
        which.id,
        session.out.time(which.ended),
        which.record.changed().join(", ")
    );
    if args.dry_run {
        session.out.text(&format!("this would {}\n", printable(&what)))?;
        return Ok(Exit::Done);
    }
    session.confirm_by_name(&what, policy.app.name.as_str(), args.yes)?;
    let mut accepted = Vec::new();
    for name in &args.accept_unsaved {
        accepted.push(argument("--accept-unsaved", name)?);
    }
    let home = home(args.identity.clone(), policy);
    let report = transaction::undo(&session.installation, policy, &home, (&which.id, &accepted), &session.run_now())?;
    tell(session, report, Asked::Undo)
}

/// What was asked for: whether the old state is what was wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Change,
    Resume,
    Undo,
}

/// The exit code of what became of it.
pub fn exit_of(session: &Session, report: &TransactionReport, asked: Asked) -> Exit {
    match (report.outcome, &report.failure) {
        (Outcome::Undone, _) if report.remains.is_some() => Exit::Failed,
        _ if !report.is_healthy() => Exit::Unhealthy,
        (Outcome::Done, _) => Exit::Done,
        (Outcome::Undone, _) if asked != Asked::Change => Exit::Done,
        (Outcome::Undone, Some(e)) if e.kind() == ErrorKind::Integrity => Exit::Integrity,
        (Outcome::Undone, _) => session.run.cancel.signal().map_or(Exit::Failed, Exit::Signal),
    }
}

/// Says what became of it; the exit code.
pub fn tell(session: &Session, mut report: TransactionReport, asked: Asked) -> Result<Exit, Failure> {
    session.progress.finish();
    session.note(|noted| noted.snapshot = Some(report.snapshot.to_string()));
    let exit = exit_of(session, &report, asked);
    let failure = report.failure.take();
    for health in report.health.iter().filter(|h| !h.ok) {
        let before = if health.known { " (as before)" } else { "" };
        session.out.alarm(&format!("{} fails{before}: {}", health.name, health.problem.as_deref().unwrap_or_default()));
    }
    report.warnings.iter().for_each(|w| session.out.alarm(w));
    if session.out.json {
        session.out.document(exit, &report)?;
    } else if exit == Exit::Done {
        session.out.note(&report_text(session, &report, asked))?;
    } else {
        session.out.text(&report_text(session, &report, asked))?;
    }
    if let Some(failure) = failure.filter(|_| exit != Exit::Done) {
        let failure = Failure::from(failure).attempted(match report.what {
            What::Restore => format!("restore {} over {}", report.snapshot, report.policy),
            What::Rollback => format!("roll {} back to {}", report.policy, report.snapshot),
        });
        let state = match &report.remains {
            Some(_) => "all else is as it was before",
            None if exit == Exit::Unhealthy => "it was taken back, and is not well all the same: look at its log",
            None => "the application is as it was before",
        };
        session.out.complaint(&failure.hint(Some(state.to_owned())));
    }
    Ok(exit)
}

/// What would be done.
pub fn plan_text(session: &Session, plan: &TransactionPlan) -> String {
    let out = &session.out;
    let mut text = first_lines(session, plan);
    let mut table = Table::new(&[("SOURCE", Align::Left), ("KIND", Align::Left), ("WHAT", Align::Left)]);
    for intent in &plan.intents {
        for (at, line) in intent.lines.iter().enumerate() {
            let (name, kind) = if at == 0 { (intent.source.as_str(), intent.kind.as_str()) } else { ("", "") };
            table.plain([name, kind, line]);
        }
    }
    for late in &plan.late {
        let how = match plan.aside_of(&late.source) {
            Some(_) => "comes back in a new cluster, from the dump",
            None => "comes back when its store is up",
        };
        table.plain([late.source.as_str(), &late.kind, &format!("{how}: {}", late.why)]);
    }
    text += &out.table(&table);
    for passed in &plan.passed_over {
        text += &format!("passed over: {} ({}): {}\n", passed.source, passed.kind, printable(&passed.why));
    }
    text.push('\n');
    for room in plan.intents.iter().flat_map(|i| &i.room).filter(|r| r.bytes_needed > 0) {
        let free = room.bytes_free.map(|f| format!(", {} free", human_size(f))).unwrap_or_default();
        text += &format!("room: {} at {}{free}\n", human_size(room.bytes_needed), printable(&room.place));
    }
    text += &match (&plan.services.note, plan.services.stop.as_slice()) {
        (Some(note), _) => format!("{note}\n"),
        (None, stop) => {
            let names: Vec<&str> = stop.iter().map(|s| s.container.as_str()).collect();
            let seconds = human_duration(Duration::from_secs_f64(plan.expected_downtime_seconds));
            format!("stopped meanwhile: {}; about {seconds}\n", names.join(", "))
        }
    };
    // A compose source says it itself.
    let told = |up: &Up| up.command.is_none() && plan.intents.iter().any(|i| i.kind == "compose");
    if let Some(up) = plan.up.as_ref().filter(|up| !told(up)) {
        text += &format!("{}\n", printable(&up.line()));
    }
    if let Some(downgrade) = &plan.downgrade {
        text += &format!("before that: {}\n", printable(downgrade));
    }
    for intent in plan.intents.iter().filter(|i| !i.restarts.is_empty()) {
        text += &format!("restarted for {}: {}\n", intent.source, intent.restarts.join(", "));
    }
    let kept = human_duration(Duration::from_secs(plan.keep_old_seconds));
    text += &format!(
        "first a safety snapshot is taken; what is replaced is kept for {kept} (`{} --undo`)\n",
        plan.what.word()
    );
    for warning in plan.warnings.iter().chain(plan.intents.iter().flat_map(|i| &i.warnings)) {
        text += &format!("{} {}\n", out.paint(Paint::Yellow, "warning:"), printable(warning));
    }
    text
}

/// What was done.
pub fn report_text(session: &Session, report: &TransactionReport, asked: Asked) -> String {
    let out = &session.out;
    let mut table = Table::new(&[("STEP", Align::Left), ("TIME", Align::Right), ("", Align::Left)]);
    for step in &report.steps {
        let time = human_duration(Duration::from_secs_f64(step.seconds.max(0.0)));
        let error = step.error.clone().unwrap_or_default();
        let row = [(step.name.clone(), Paint::Plain), (time, Paint::Plain), (error, Paint::Red)];
        table.row(row.to_vec());
    }
    let mut text = out.table(&table);
    text.push('\n');
    if let Some(seconds) = report.downtime_seconds {
        text += &format!("downtime: {}\n", human_duration(Duration::from_secs_f64(seconds)));
    }
    if let Some(safety) = &report.safety {
        text += &format!("what was live before is snapshot {safety}\n");
    }
    for source in &report.sources {
        text += &source.tree.as_ref().map(|tree| differences(session, source.name.as_str(), tree)).unwrap_or_default();
    }
    match (report.outcome, asked) {
        (Outcome::Done, _) => {
            text += &format!("snapshot {} is live in {} ({})\n", report.snapshot, report.policy, report.id);
            if let Some(forward) = &report.forward {
                text += &format!("the way forward for the checkout, once all is mended: `{}`\n", printable(forward));
            }
            if let Some(until) = report.kept_until {
                text += &format!(
                    "what it replaced is kept until {}: `lifeboat{} {} --undo` brings it back\n",
                    local(until),
                    session.same_options(Some(report.policy.as_str())),
                    report.what.word()
                );
            }
        }
        (Outcome::Undone, Asked::Undo) if report.remains.is_none() => {
            text += &format!("{} is as it was before {}\n", report.policy, report.id);
        }
        (Outcome::Undone, _) => {
            let why = report.failed.as_deref().unwrap_or("it was asked for");
            text += &format!("taken back: {}\n", printable(why));
            text += &match &report.remains {
                Some(remains) => format!("{} is NOT as it was: {}\n", report.policy, printable(remains)),
                None => format!("{} is as it was\n", report.policy),
            };
        }
    }
    text
}

/// What a person must know first.
fn first_lines(session: &Session, plan: &TransactionPlan) -> String {
    let out = &session.out;
    let Some(aim) = &plan.aim else {
        return format!(
            "Data written after {} will leave the live {}, as far as the sources below hold it.\n\n",
            out.time(plan.time),
            plan.policy
        );
    };
    let mut text = format!("{}\n", printable(&aim.leaves));
    let commit = aim.commit.as_ref().map(|c| format!(", commit {}", c.get(..10).unwrap_or(c))).unwrap_or_default();
    text += &format!(
        "{} is snapshot {} ({}{commit}): {}\n\n",
        printable(&aim.to),
        plan.snapshot,
        out.time(plan.time),
        aim.why
    );
    for external in &aim.external {
        text += &format!("not ours, and not touched: {}\n", printable(external));
    }
    text
}
