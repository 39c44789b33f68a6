//! `rollback`: the whole application as it was; what settles it: `--resume`, `--undo`.

use super::transaction::{Asked, Settling, home, plan_document, plan_text, resume, tell, undo};
use crate::base::patient;
use crate::cli::args::{EnvChoice, RollbackArgs};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Table, printable};
use crate::cli::session::{Session, argument};
use crate::ops::access::{Access, AccessRequest};
use crate::ops::rollback::{self, Candidate, EnvSide, RollbackRequest, Rotated, Side};
use crate::ops::transaction;
use crate::policy::Policy;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// How many candidates are listed.
const CANDIDATES: usize = 5;

pub fn run(session: &Session, args: &RollbackArgs) -> Result<Exit, Failure> {
    let policy = session.policy().map_err(|f| f.attempted("roll back"))?;
    let name = policy.app.name.clone();
    let settling = Settling {
        identity: args.reading.identity.clone(),
        dry_run: args.dry_run,
        yes: args.yes,
        accept_unsaved: args.accept_unsaved.clone(),
    };
    let (done, what) = match (&args.to, args.resume, &args.undo) {
        (_, true, _) => (resume(session, &policy), format!("resume the transaction of {name}")),
        (_, _, Some(id)) => {
            (undo(session, &settling, &policy, id.as_deref()), format!("undo the last change of {name}"))
        }
        (Some(to), ..) => (to_target(session, args, &policy, to), format!("roll {name} back to {to}")),
        (None, ..) => (choose(session, args, &policy), format!("roll {name} back")),
    };
    session.progress.finish();
    done.map_err(|f| f.attempted(what))
}

fn request(args: &RollbackArgs, to: &str) -> Result<RollbackRequest, Failure> {
    let mut request = RollbackRequest {
        to: to.to_owned(),
        keep_data: args.keep_data,
        accept_schema: args.accept_schema,
        new_data_dir: args.new_data_dir,
        env: args.env.map(|side| match side {
            EnvChoice::Live => EnvSide::Live,
            EnvChoice::Snapshot => EnvSide::Snapshot,
        }),
        ..RollbackRequest::default()
    };
    for part in &args.only {
        request.only.push(argument("--only", part)?);
    }
    for name in &args.accept_unsaved {
        request.accept_unsaved.push(argument("--accept-unsaved", name)?);
    }
    Ok(request)
}

fn open(session: &Session, args: &RollbackArgs, policy: &Policy) -> Result<Access, Failure> {
    let reading = AccessRequest { policy: Some(policy.clone()), ..session.access_request(&args.reading)? };
    session.open_as(&reading)
}

fn to_target(session: &Session, args: &RollbackArgs, policy: &Policy, to: &str) -> Result<Exit, Failure> {
    let access = open(session, args, policy)?;
    let ask = |rotated: &Rotated| which(session, args, rotated);
    let plan = rollback::plan(&session.installation, policy, &access, &request(args, to)?, &ask, &session.run)?;
    if args.dry_run {
        match session.out.json {
            true => session.out.document(Exit::Done, &plan_document(&plan))?,
            false => session.out.text(&plan_text(session, &plan))?,
        }
        return Ok(Exit::Done);
    }
    if !session.out.json {
        session.progress.finish();
        match args.yes {
            true => session.out.note(&plan_text(session, &plan))?,
            false => session.out.text(&plan_text(session, &plan))?,
        }
    }
    let what = format!("roll {} back to snapshot {}", policy.app.name, plan.snapshot);
    session.confirm_by_name(&what, policy.app.name.as_str(), args.yes)?;
    let home = home(args.reading.identity.clone(), policy);
    let report = transaction::run(&session.installation, policy, &access, &home, &plan, &session.run_now())?;
    tell(session, report, Asked::Change)
}

/// Asks on a terminal which of two values of a secret shall stand. Neither is shown.
fn which(session: &Session, args: &RollbackArgs, rotated: &Rotated) -> Option<Side> {
    if args.yes || session.out.json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return None;
    }
    session.progress.finish();
    let (key, file) = (printable(&rotated.key), printable(&rotated.file.display().to_string()));
    let mut answer = String::new();
    let asked = write!(
        patient::stderr(),
        "{key} in {file} was changed since{}. Keep today's value, or the snapshot's? [live/snapshot] ",
        if rotated.data_key { ", and only a part of the data that it belongs to returns" } else { "" }
    );
    asked.and_then(|()| patient::read_line(&mut answer)).ok()?;
    match answer.trim() {
        "live" | "l" => Some(Side::Live),
        "snapshot" | "s" => Some(Side::Snapshot),
        _ => None,
    }
}

#[derive(Serialize)]
struct CandidatesDocument<'a> {
    candidates: &'a [Candidate],
}

/// Without a target: where one could go. On a terminal it asks.
fn choose(session: &Session, args: &RollbackArgs, policy: &Policy) -> Result<Exit, Failure> {
    let access = open(session, args, policy)?;
    let request = request(args, "")?;
    let found = rollback::candidates(&session.installation, policy, &access, &request, CANDIDATES, &session.run)?;
    session.progress.finish();
    if session.out.json && (!args.yes || args.dry_run) {
        session.out.document(Exit::Done, &CandidatesDocument { candidates: &found })?;
        return Ok(Exit::Done);
    }
    if found.is_empty() {
        return Err(Failure::usage(
            "there is no snapshot to go back to",
            "take the first one with `lifeboat snapshot`",
        ));
    }
    if args.yes && !args.dry_run {
        // Who says yes to a change must not take a list for it.
        session.out.note(&candidates_text(session, &found))?;
        return Err(Failure::usage(
            "--yes agrees to a rollback, and none is named",
            "name one: `lifeboat rollback --to TAG|COMMIT|ID`; nothing was changed",
        ));
    }
    session.out.text(&candidates_text(session, &found))?;
    if args.dry_run || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        session.out.note("name one: `lifeboat rollback --to TAG|COMMIT|ID`\n")?;
        return Ok(Exit::Done);
    }
    let mut answer = String::new();
    let asked = write!(patient::stderr(), "Which one (1-{}, or nothing)? ", found.len());
    asked.and_then(|()| patient::read_line(&mut answer)).map_err(|e| Failure::new(Exit::Failed, e))?;
    let chosen = answer.trim().parse::<usize>().ok().and_then(|n| found.get(n.checked_sub(1)?));
    let chosen = chosen.ok_or_else(|| Failure::usage("none was chosen", "nothing was changed"))?;
    to_target(session, args, policy, chosen.snapshot.as_str())
}

fn candidates_text(session: &Session, found: &[Candidate]) -> String {
    let mut table = Table::new(&[
        ("", Align::Right),
        ("SNAPSHOT", Align::Left),
        ("TIME", Align::Left),
        ("TAGS", Align::Left),
        ("WHAT WOULD LEAVE", Align::Left),
    ]);
    for (at, candidate) in found.iter().enumerate() {
        let tags: Vec<&str> = candidate.tags.iter().map(|t| t.as_str()).collect();
        let what = match (&candidate.leaves, &candidate.problem) {
            (_, Some(problem)) => format!("cannot go there: {problem}"),
            (Some(leaves), None) => leaves.clone(),
            (None, None) => String::new(),
        };
        table.plain([
            &(at + 1).to_string(),
            candidate.snapshot.as_str(),
            &session.out.time(candidate.time),
            &tags.join(", "),
            &printable(&what),
        ]);
    }
    session.out.table(&table)
}
