//! `restore --into`; what goes over the live application is in [`restore_in_place`].

use crate::base::units::{human_duration, human_size, total};
use crate::cli::args::RestoreArgs;
use crate::cli::commands::restore_in_place;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table, local, printable};
use crate::cli::session::{Session, argument};
use crate::ops::restore::{
    self, Difference, Report, RestoreOutcome, RestorePlan, RestoreReport, RestoreRequest, RestoredSource, Tally,
};
use std::path::Path;
use std::time::Duration;

/// Lost entries of a stream that are written out.
const SHOWN: usize = 20;
/// Differences of one sort that are written out; the JSON document has more of them.
const SHOWN_OF_SORT: usize = 5;

pub fn run(session: &Session, args: &RestoreArgs) -> Result<Exit, Failure> {
    let (Some(id), Some(into)) = (&args.id, &args.into) else { return restore_in_place::run(session, args) };
    let done = restore(session, args, id, into);
    session.progress.finish();
    done.map_err(|f| f.attempted(format!("restore {id} into {}", into.display())))
}

fn restore(session: &Session, args: &RestoreArgs, id: &str, into: &Path) -> Result<Exit, Failure> {
    let mut request = RestoreRequest::new(id, into);
    for name in &args.only {
        request.only.push(argument("--only", name)?);
    }
    request.paths.clone_from(&args.paths);
    request.privileged = args.privileged;
    let access = session.open_to_read(&args.reading, id)?;
    let plan = restore::plan(&access, &request, &session.run)?;
    if args.dry_run {
        return show_plan(session, &plan);
    }
    let mut report = restore::run(&access, &plan, &session.run)?;
    session.progress.finish();
    let failure = report.failure.take().map(Failure::from);
    let exit = exit_of(failure.as_ref(), &report);
    if session.out.json {
        session.out.document(exit, &report)?;
    } else if exit == Exit::Done {
        session.out.note(&text(session, &report))?;
    } else {
        session.out.text(&text(session, &report))?;
    }
    if let Some(failure) = failure {
        // The result stands; the first damage is named as every error is.
        session.out.complaint(&failure.attempted(format!("restore {}", report.snapshot)));
    }
    Ok(exit)
}

fn exit_of(failure: Option<&Failure>, report: &RestoreReport) -> Exit {
    match failure {
        Some(failure) => failure.kind,
        None if report.is_complete() => Exit::Done,
        None => Exit::Partial,
    }
}

fn show_plan(session: &Session, plan: &RestorePlan) -> Result<Exit, Failure> {
    if session.out.json {
        session.out.document(Exit::Done, &serde_json::json!({ "plan": plan }))?;
        return Ok(Exit::Done);
    }
    let mut table =
        Table::new(&[("SOURCE", Align::Left), ("STREAM", Align::Left), ("BYTES", Align::Right), ("TO", Align::Left)]);
    for source in &plan.sources {
        if let Some(why) = &source.not_captured {
            table.plain([source.name.to_string(), String::new(), String::new(), format!("nothing: {why}")]);
        }
        for stream in &source.streams {
            let to = stream.to.display().to_string();
            table.plain([source.name.to_string(), stream.name.to_string(), human_size(stream.bytes), to]);
        }
    }
    let mut text = format!("restore {} of {} on {} ({})\n\n", plan.snapshot, plan.policy, plan.host, local(plan.time));
    text += &session.out.table(&table);
    let free = if plan.bytes_free == u64::MAX { "no telling how much is".into() } else { human_size(plan.bytes_free) };
    text += &format!("\n{} needed, {free} free\n", human_size(plan.bytes_needed));
    text += &plan.notes.iter().map(|note| format!("note: {}\n", printable(note))).collect::<String>();
    session.out.text(&text)?;
    Ok(Exit::Done)
}

fn text(session: &Session, report: &RestoreReport) -> String {
    let out = &session.out;
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("KIND", Align::Left),
        ("OUTCOME", Align::Left),
        ("BYTES", Align::Right),
        ("TIME", Align::Right),
        ("WHERE", Align::Left),
    ]);
    let mut below = String::new();
    for source in &report.sources {
        let (word, paint) = outcome_cell(source);
        let bytes = total(source.streams.iter().map(|s| s.bytes));
        let place = source.path.as_ref().or(source.damaged_path.as_ref());
        table.row(vec![
            (source.name.to_string(), Paint::Plain),
            (source.kind.clone(), Paint::Plain),
            (word.into(), paint),
            (human_size(bytes), Paint::Plain),
            (human_duration(Duration::from_secs_f64(source.seconds.max(0.0))), Paint::Plain),
            (place.map(|p| p.display().to_string()).unwrap_or_default(), Paint::Plain),
        ]);
        below += &remarks(session, source);
    }
    for note in &report.notes {
        below += &format!("{} {}\n", out.paint(Paint::Dim, "note:"), printable(note));
    }
    let gap = if below.is_empty() { "" } else { "\n" };
    format!(
        "{}{gap}{below}\nsnapshot {} restored into {}: {} in {}\n",
        out.table(&table),
        report.snapshot,
        printable(&report.into.display().to_string()),
        human_size(report.bytes),
        human_duration(Duration::from_secs_f64(report.seconds.max(0.0))),
    )
}

fn outcome_cell(source: &RestoredSource) -> (&'static str, Paint) {
    match source.outcome {
        RestoreOutcome::Restored if source.is_inexact() => ("restored, with differences", Paint::Yellow),
        RestoreOutcome::Restored => ("restored", Paint::Green),
        RestoreOutcome::Incomplete => ("incomplete", Paint::Yellow),
        RestoreOutcome::Damaged => ("damaged", Paint::Red),
        RestoreOutcome::NotCaptured => ("not in the snapshot", Paint::Yellow),
    }
}

/// What is wrong with a source, in lines.
fn remarks(session: &Session, source: &RestoredSource) -> String {
    let out = &session.out;
    let mut lines = Vec::new();
    let name = source.name.as_str();
    if let Some(error) = &source.error {
        let label = if source.outcome == RestoreOutcome::Damaged { "damaged:" } else { "missing:" };
        lines.push(format!("{} source {name:?}: {}", out.paint(Paint::Red, label), printable(error)));
    }
    for stream in &source.streams {
        if let Some(error) = &stream.error {
            lines.push(format!("  stream {}: {}", stream.name, printable(error)));
        }
        lines.extend(stream.lost.iter().take(SHOWN).map(|path| format!("  lost: {}", printable(path))));
        let more = stream.lost_untold + stream.lost.len().saturating_sub(SHOWN) as u64;
        if more > 0 {
            lines.push(format!("  and {more} more"));
        }
    }
    let lines: String = lines.into_iter().map(|line| format!("{line}\n")).collect();
    lines + &source.tree.as_ref().map(|tree| differences(session, name, tree)).unwrap_or_default()
}

/// How a source's trees differ from what was captured, in lines.
pub fn differences(session: &Session, name: &str, tree: &Report) -> String {
    if tree.worst.is_none() {
        return String::new();
    }
    let label = session.out.paint(Paint::Yellow, "differs:");
    let sorts: Vec<String> = tree.summary.iter().map(Tally::to_string).collect();
    let mut text = format!("{label} source {name:?}: {}\n", sorts.join(", "));
    for tally in &tree.summary {
        let of_sort = |d: &&Difference| (d.aspect, d.severity) == (tally.aspect, tally.severity);
        for told in tree.differences.iter().filter(of_sort).take(SHOWN_OF_SORT) {
            text += &format!("  {}: {}\n", printable(&told.path), printable(&told.what));
        }
        let more = tally.count.saturating_sub(SHOWN_OF_SORT as u64);
        if more > 0 {
            text += &format!("  and {more} more of this sort\n");
        }
    }
    text
}
