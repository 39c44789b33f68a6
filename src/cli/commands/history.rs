//! `history`.

use crate::base::units::human_size;
use crate::cli::args::HistoryArgs;
use crate::cli::commands::drill;
use crate::cli::commands::snapshot::header_cell;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table};
use crate::cli::session::Session;
use crate::ops::history::{self, Happened, HistoryReport};

pub fn run(session: &Session, args: &HistoryArgs) -> Result<Exit, Failure> {
    let read = session.open(&args.reading).and_then(|access| Ok(history::history(&access, args.last)?));
    let report = read.map_err(|f| f.attempted("history"))?;
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

fn text(session: &Session, report: &HistoryReport) -> String {
    if report.events.is_empty() {
        return format!("nothing has happened yet in {}\n", report.repository);
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
