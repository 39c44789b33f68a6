//! `history`.

use crate::base::ids::PolicyName;
use crate::base::units::{human_duration, human_size};
use crate::cli::args::HistoryArgs;
use crate::cli::commands::drill;
use crate::cli::commands::snapshot::header_cell;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table};
use crate::cli::session::Session;
use crate::ops::history::{self, Happened, HistoryReport};
use crate::ops::runs::{Book, RunRecord};
use crate::policy;

pub fn run(session: &Session, args: &HistoryArgs) -> Result<Exit, Failure> {
    let read = || -> Result<HistoryReport, Failure> {
        if args.reading.repository.is_none()
            && let Err(failure) = session.policy()
        {
            return without_policy(session, args, failure);
        }
        let access = session.open(&args.reading)?;
        let runs = runs(session, args, access.policy.as_ref())?;
        Ok(history::history(&access, runs, args.last)?)
    };
    let report = read().map_err(|f| f.attempted("history"))?;
    let exit = if report.problems.is_empty() { Exit::Done } else { Exit::Integrity };
    for problem in &report.problems {
        session.out.alarm(problem);
    }
    if session.out.json {
        session.out.document(exit, &report)?;
    } else {
        session.out.text(&text(session, &report))?;
    }
    Ok(exit)
}

/// The runs of the policy on this host. A stranger's repository has none, and neither has another host.
fn runs(
    session: &Session,
    args: &HistoryArgs,
    policy: Option<&PolicyName>,
) -> Result<(Vec<RunRecord>, usize), Failure> {
    let Some(policy) = policy.filter(|_| args.reading.repository.is_none() && args.reading.host.is_none()) else {
        return Ok((Vec::new(), 0));
    };
    let Some(book) = Book::look(&session.installation.state_dir)? else { return Ok((Vec::new(), 0)) };
    if let Err(e) = book.mark_interrupted() {
        session.out.alarm(&format!("runs that were cut short are not marked: {}", Failure::from(e).message()));
    }
    Ok(book.newest_runs(policy, args.last)?)
}

/// What this host has run of a policy that is broken or gone, under the name by which it was entered.
fn without_policy(session: &Session, args: &HistoryArgs, failure: Failure) -> Result<HistoryReport, Failure> {
    let file = session.policy_file().ok();
    let before = file.as_ref().and_then(|file| policy::recall(&session.installation.state_dir, file));
    let stem = file.as_ref().and_then(|file| file.file_stem()).and_then(|stem| stem.to_str()).map(str::to_owned);
    let named = || stem.or_else(|| session.global.policy.clone())?.parse().ok();
    let Some(name) = before.map(|policy| policy.app.name).or_else(named) else { return Err(failure) };
    let found = runs(session, args, Some(&name))?;
    if found.0.is_empty() && found.1 == 0 {
        return Err(failure);
    }
    session.out.alarm(&format!("{}: only the runs of {name} on this host are shown", failure.message()));
    Ok(history::of_runs(found, args.last))
}

/// An error in a table's last column.
const ERROR_CHARS: usize = 120;

fn run_line(run: &RunRecord) -> String {
    let took = run.ended.and_then(|ended| (ended - run.begun).to_std().ok());
    let mut text = run.trigger.clone();
    text += &took.map(|took| format!(", {}", human_duration(took))).unwrap_or_default();
    if let Some(error) = &run.error {
        let mut letters = error.chars();
        let short: String = letters.by_ref().take(ERROR_CHARS).collect();
        text += &format!(": {short}{}", if letters.next().is_some() { "…" } else { "" });
    }
    text
}

fn run_cell(run: &RunRecord) -> (&str, Paint) {
    match run.outcome() {
        None => ("at work", Paint::Plain),
        Some("done") => ("done", Paint::Green),
        Some(word @ ("busy" | "cancelled")) => (word, Paint::Yellow),
        Some(word) => (word, Paint::Red),
    }
}

fn text(session: &Session, report: &HistoryReport) -> String {
    if let (Some(repository), true) = (&report.repository, report.events.is_empty()) {
        return format!("nothing has happened yet in {repository}\n");
    }
    let out = &session.out;
    let mut table = Table::new(&[
        ("TIME", Align::Left),
        ("WHAT", Align::Left),
        ("OUTCOME", Align::Left),
        ("SNAPSHOT", Align::Left),
        ("", Align::Left),
    ]);
    for event in &report.events {
        let (what, (outcome, paint), snapshot, more) = match event {
            Happened::Snapshot { snapshot, outcome, tags, bytes_new, .. } => {
                let tags: String = tags.iter().map(|t| format!("  {t}")).collect();
                let more = format!("{} new{tags}", human_size(*bytes_new));
                ("snapshot", header_cell(*outcome), snapshot.to_string(), more)
            }
            Happened::Drill { drill, .. } => {
                ("drill", drill::outcome_cell(drill.outcome), drill.snapshot.to_string(), drill::line(drill))
            }
            Happened::Run { run } => {
                (run.what.as_str(), run_cell(run), run.snapshot.clone().unwrap_or_default(), run_line(run))
            }
        };
        table.row(vec![
            (out.time(event.time()), Paint::Plain),
            (what.to_owned(), Paint::Plain),
            (outcome.to_owned(), paint),
            (snapshot, Paint::Plain),
            (more, Paint::Plain),
        ]);
    }
    let mut text = out.table(&table);
    if report.left_out > 0 {
        text += &format!("and {} older\n", report.left_out);
    }
    text
}
