//! `list`.

use crate::base::units::human_size;
use crate::cli::args::ListArgs;
use crate::cli::commands::snapshot::header_cell;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table};
use crate::cli::session::{Session, argument};
use crate::ops::browse::{self, ListFilter, ListReport, SnapshotLine};

pub fn run(session: &Session, args: &ListArgs) -> Result<Exit, Failure> {
    list(session, args).map_err(|f| f.attempted("list snapshots"))
}

fn list(session: &Session, args: &ListArgs) -> Result<Exit, Failure> {
    let filter = ListFilter {
        tag: args.tag.as_deref().map(|tag| argument("--tag", tag)).transpose()?,
        last: args.last,
        since: args.since.as_deref().map(|text| session.time("--since", text)).transpose()?,
        until: args.until.as_deref().map(|text| session.time("--until", text)).transpose()?,
    };
    let access = session.open(&args.reading)?;
    let mut report = browse::list(&access, &filter)?;
    report.snapshots.reverse();
    let lost = !report.problems.is_empty() || !access.alarms.is_empty();
    let exit = if lost { Exit::Integrity } else { Exit::Done };
    if session.out.json {
        session.out.document(exit, &report)?;
    } else {
        session.out.text(&text(session, &report))?;
    }
    Ok(exit)
}

fn text(session: &Session, report: &ListReport) -> String {
    let out = &session.out;
    let Some(first) = report.snapshots.first() else {
        return if report.left_out == 0 {
            format!("no snapshot yet in {}; take one with: lifeboat snapshot\n", report.repository)
        } else {
            format!("none of {} snapshots is asked for\n", report.left_out)
        };
    };
    let several = report.snapshots.iter().any(|s| (&s.host, &s.policy) != (&first.host, &first.policy));
    let mut columns = vec![("ID", Align::Left), ("TIME", Align::Left)];
    if several {
        columns.push(("HOST/POLICY", Align::Left));
    }
    columns.extend([
        ("OUTCOME", Align::Left),
        ("TOTAL", Align::Right),
        ("NEW", Align::Right),
        ("TAGS", Align::Left),
        ("", Align::Left),
    ]);
    let mut table = Table::new(&columns);
    for line in &report.snapshots {
        let (outcome, paint) = header_cell(line.outcome);
        let mut row = vec![(line.id.to_string(), Paint::Bold), (out.time(line.time), Paint::Plain)];
        if several {
            row.push((format!("{}/{}", line.host, line.policy), Paint::Plain));
        }
        let tags: Vec<&str> = line.tags.iter().map(|t| t.as_str()).collect();
        row.extend([
            (outcome.to_owned(), paint),
            (human_size(line.bytes_total), Paint::Plain),
            (human_size(line.bytes_new), Paint::Plain),
            (tags.join(" "), Paint::Plain),
            (remarks(line).join(", "), Paint::Yellow),
        ]);
        table.row(row);
    }
    out.table(&table)
}

/// What is out of the ordinary.
pub fn remarks(line: &SnapshotLine) -> Vec<&'static str> {
    let mut remarks = Vec::new();
    if line.held {
        remarks.push("held");
    }
    if line.forked {
        remarks.push("forked: another snapshot carries its number");
    }
    if line.new_lineage {
        remarks.push("the host was rebuilt or cloned before it");
    }
    remarks
}
