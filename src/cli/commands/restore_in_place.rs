//! `restore --in-place`, and what settles it: `--resume`, `--undo`.

use crate::base::units::{human_duration, human_size};
use crate::cli::args::RestoreArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table, local, printable};
use crate::cli::session::{Session, argument};
use crate::ops::ErrorKind;
use crate::ops::access::AccessRequest;
use crate::ops::transaction::{self, InPlaceRequest, Kept, Outcome, TransactionPlan, TransactionReport};
use crate::policy::Policy;
use std::time::Duration;

pub fn run(session: &Session, args: &RestoreArgs) -> Result<Exit, Failure> {
    let policy = session.policy().map_err(|f| f.attempted("restore in place"))?;
    let name = policy.app.name.clone();
    let (done, what) = match (&args.id, args.resume, args.undo) {
        (_, true, _) => (resume(session, &policy), format!("resume the transaction of {name}")),
        (id, _, true) => (undo(session, args, &policy, id.as_deref()), format!("undo the last restore of {name}")),
        (Some(id), ..) => (in_place(session, args, &policy, id), format!("restore {id} over {name}")),
        // The arguments' own rules leave nothing else.
        (None, ..) => {
            (Err(Failure::usage("no snapshot is named", "name one; `lifeboat list` shows all")), "restore".into())
        }
    };
    session.progress.finish();
    done.map_err(|f| f.attempted(what))
}

/// The plan as a document: without what only the steps themselves understand.
fn plan_document(plan: &TransactionPlan) -> serde_json::Value {
    let mut plan = serde_json::json!({ "plan": plan });
    for intent in plan["plan"]["intents"].as_array_mut().into_iter().flatten() {
        if let Some(fields) = intent.as_object_mut() {
            fields.remove("state");
        }
    }
    plan
}

fn in_place(session: &Session, args: &RestoreArgs, policy: &Policy, id: &str) -> Result<Exit, Failure> {
    let mut request = InPlaceRequest { snapshot: id.to_owned(), ..InPlaceRequest::default() };
    for name in &args.only {
        request.only.push(argument("--only", name)?);
    }
    for name in &args.accept_unsaved {
        request.accept_unsaved.push(argument("--accept-unsaved", name)?);
    }
    for path in &args.paths {
        let path = std::path::Path::new("/").join(path);
        request.part.paths.push(path);
    }
    request.part.tables.clone_from(&args.table);
    request.part.database_as.clone_from(&args.database_as);
    request.part.replace = args.replace;
    request.part.exact = args.exact;
    request.part.privileged = args.privileged;
    let of_database = !args.table.is_empty() || args.database_as.is_some();
    if of_database && request.only.len() != 1 {
        return Err(Failure::usage(
            "--table and --database-as are of one source",
            "name the source of kind postgres with --only",
        ));
    }
    let reading = AccessRequest { policy: Some(policy.clone()), ..session.access_request(&args.reading)? };
    let access = session.open_as(&reading)?;
    let plan = transaction::plan(&session.installation, policy, &access, &request, &session.run)?;
    if args.dry_run {
        if session.out.json {
            session.out.document(Exit::Done, &plan_document(&plan))?;
        } else {
            session.out.text(&plan_text(session, &plan))?;
        }
        return Ok(Exit::Done);
    }
    if !args.yes && !session.out.json {
        session.progress.finish();
        session.out.text(&plan_text(session, &plan))?;
    }
    let what = format!("put snapshot {} over the live {}", plan.snapshot, policy.app.name);
    session.confirm_by_name(&what, policy.app.name.as_str(), args.yes)?;
    let home = home(args, policy);
    let report = transaction::run(&session.installation, policy, &access, &home, &plan, &session.run)?;
    tell(session, report, Asked::Restore)
}

/// Where the policy's own snapshots go, opened with the identity that was named.
fn home(args: &RestoreArgs, policy: &Policy) -> AccessRequest {
    AccessRequest { identity: args.reading.identity.clone(), ..AccessRequest::of(policy) }
}

fn resume(session: &Session, policy: &Policy) -> Result<Exit, Failure> {
    let report = transaction::resume(&session.installation, policy, &session.run)?;
    tell(session, report, Asked::Resume)
}

fn undo(session: &Session, args: &RestoreArgs, policy: &Policy, id: Option<&str>) -> Result<Exit, Failure> {
    let kept = transaction::kept(&session.installation, &policy.app.name)?;
    let ids: Vec<&str> = kept.iter().map(|k| k.id.as_str()).collect();
    let wanted = |k: &&Kept| id.is_none_or(|id| k.id == id || k.id.starts_with(id));
    let which = kept.iter().find(wanted).ok_or_else(|| {
        let hint = match ids.as_slice() {
            [] => "what a restore in place replaced is kept for `keep_old` of section [rollback]".to_owned(),
            ids => format!("there are {}", ids.join(", ")),
        };
        Failure::usage("there is nothing to undo", hint)
    })?;
    let newer = kept.iter().take_while(|k| k.id != which.id).count();
    if newer > 0 {
        return Err(Failure::usage(
            format!("{newer} restores in place are newer than {}", which.id),
            format!("undo the newest first: {}", ids[0]),
        ));
    }
    let sources: Vec<String> = which.record.plan.sources().iter().map(ToString::to_string).collect();
    let what = format!(
        "bring back what was live before {} ({}): {}",
        which.id,
        session.out.time(which.ended),
        sources.join(", ")
    );
    if args.dry_run {
        session.out.text(&format!("this would {}\n", printable(&what)))?;
        return Ok(Exit::Done);
    }
    session.confirm_by_name(&what, policy.app.name.as_str(), args.yes)?;
    let report = transaction::undo(&session.installation, policy, &home(args, policy), which, &session.run)?;
    tell(session, report, Asked::Undo)
}

/// What was asked for: whether the old state is what was wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Restore,
    Resume,
    Undo,
}

fn tell(session: &Session, mut report: TransactionReport, asked: Asked) -> Result<Exit, Failure> {
    session.progress.finish();
    session.note(|noted| noted.snapshot = Some(report.snapshot.to_string()));
    let failure = report.failure.take();
    let exit = match (report.outcome, &failure) {
        _ if !report.is_healthy() => Exit::Unhealthy,
        (Outcome::Done, _) => Exit::Done,
        (Outcome::Undone, _) if asked != Asked::Restore => Exit::Done,
        (Outcome::Undone, Some(e)) if e.kind() == ErrorKind::Integrity => Exit::Integrity,
        (Outcome::Undone, _) => session.run.cancel.signal().map_or(Exit::Failed, Exit::Signal),
    };
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
        let failure = Failure::from(failure).attempted(format!("restore {} over {}", report.snapshot, report.policy));
        session.out.complaint(&failure.hint(Some("the application is as it was before".to_owned())));
    }
    Ok(exit)
}

fn plan_text(session: &Session, plan: &TransactionPlan) -> String {
    let out = &session.out;
    let mut text = format!(
        "Data written after {} will leave the live {}, as far as the sources below hold it.\n\n",
        out.time(plan.time),
        plan.policy
    );
    let mut table = Table::new(&[("SOURCE", Align::Left), ("KIND", Align::Left), ("WHAT", Align::Left)]);
    for intent in &plan.intents {
        for (at, line) in intent.lines.iter().enumerate() {
            let (name, kind) = if at == 0 { (intent.source.as_str(), intent.kind.as_str()) } else { ("", "") };
            table.plain([name, kind, line]);
        }
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
    for intent in plan.intents.iter().filter(|i| !i.restarts.is_empty()) {
        text += &format!("restarted for {}: {}\n", intent.source, intent.restarts.join(", "));
    }
    let kept = human_duration(Duration::from_secs(plan.keep_old_seconds));
    text += &format!("first a safety snapshot is taken; what is replaced is kept for {kept} (`restore --undo`)\n");
    for warning in plan.warnings.iter().chain(plan.intents.iter().flat_map(|i| &i.warnings)) {
        text += &format!("{} {}\n", out.paint(Paint::Yellow, "warning:"), printable(warning));
    }
    text
}

fn report_text(session: &Session, report: &TransactionReport, asked: Asked) -> String {
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
    match (report.outcome, asked) {
        (Outcome::Done, _) => {
            text += &format!("snapshot {} is live in {} ({})\n", report.snapshot, report.policy, report.id);
            if let Some(until) = report.kept_until {
                text += &format!(
                    "what it replaced is kept until {}: `lifeboat{} restore --undo` brings it back\n",
                    local(until),
                    session.same_options(Some(report.policy.as_str()))
                );
            }
        }
        (Outcome::Undone, Asked::Undo) => text += &format!("{} is as it was before {}\n", report.policy, report.id),
        (Outcome::Undone, _) => {
            let why = report.failed.as_deref().unwrap_or_default();
            text += &format!("taken back: {}\n{} is as it was\n", printable(why), report.policy);
        }
    }
    text
}
