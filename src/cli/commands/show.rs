//! `show`.

use crate::base::units::human_size;
use crate::cli::args::ShowArgs;
use crate::cli::commands::drill;
use crate::cli::commands::list::remarks;
use crate::cli::commands::snapshot::{header_cell, outcome_cell};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table, printable};
use crate::cli::session::Session;
use crate::ops::browse::{self, SnapshotDetail, SourceDetail};

pub fn run(session: &Session, args: &ShowArgs) -> Result<Exit, Failure> {
    let shown = session
        .open_to_show(&args.reading, &args.id)
        .and_then(|access| Ok(browse::show(&access, &args.id, &session.run)?));
    let detail = shown.map_err(|f| f.attempted(format!("show {}", args.id)))?;
    if session.out.json {
        session.out.document(Exit::Done, &detail)?;
    } else {
        session.out.text(&text(session, &detail))?;
    }
    Ok(Exit::Done)
}

fn text(session: &Session, detail: &SnapshotDetail) -> String {
    let out = &session.out;
    let line = &detail.line;
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    let (outcome, paint) = header_cell(line.outcome);
    table.row(vec![("snapshot".into(), Paint::Plain), (line.id.to_string(), Paint::Bold)]);
    table.plain(["time".to_owned(), out.time(line.time)]);
    table.plain(["of".to_owned(), format!("{} on {}, number {}", line.policy, line.host, line.sequence)]);
    table.row(vec![("outcome".into(), Paint::Plain), (outcome.into(), paint)]);
    if !line.tags.is_empty() {
        let tags: Vec<&str> = line.tags.iter().map(|t| t.as_str()).collect();
        table.plain(["tags".to_owned(), tags.join(" ")]);
    }
    if let Some(commit) = &line.git_commit {
        table.plain(["commit", commit]);
    }
    let sizes = format!("{} in all, {} new", human_size(line.bytes_total), human_size(line.bytes_new));
    table.plain(["bytes".to_owned(), sizes]);
    let stored =
        format!("{} in {} archives, shared with other snapshots", human_size(detail.stored_bytes), detail.archives);
    table.plain(["stored".to_owned(), stored]);
    table.plain(["header".to_owned(), format!("{}:{}", line.sequence, detail.header)]);
    for drilled in &detail.drills {
        let (word, paint) = drill::outcome_cell(drilled.outcome);
        let when = format!("{word} {}, {}", out.time(drilled.time), drill::line(drilled));
        table.row(vec![("drill".into(), Paint::Plain), (when, paint)]);
    }
    if detail.drills.is_empty() {
        table.plain(["drill", "none yet: `lifeboat drill` proves it"]);
    }
    for remark in remarks(line) {
        table.row(vec![("note".into(), Paint::Plain), (remark.into(), Paint::Yellow)]);
    }
    let mut text = out.table(&table);
    for source in detail.sources.iter().flatten() {
        text.push('\n');
        text += &source_text(session, source);
    }
    if let Some(note) = &detail.note {
        text += &format!("\n{note}\n");
    }
    text
}

fn source_text(session: &Session, source: &SourceDetail) -> String {
    let out = &session.out;
    let (outcome, paint) = outcome_cell(source.outcome);
    let name = printable(source.name.as_str());
    let kind = if source.kind == name { String::new() } else { format!(" ({})", printable(&source.kind)) };
    let mut text = format!(
        "{}{kind}  {}  {}\n",
        out.paint(Paint::Bold, &name),
        out.paint(paint, outcome),
        human_size(source.bytes)
    );
    if let Some(error) = &source.error {
        text += &format!("  {} {}\n", out.paint(Paint::Red, "failed:"), printable(error));
    }
    for warning in &source.warnings {
        text += &format!("  {} {}\n", out.paint(Paint::Yellow, "warning:"), printable(warning));
    }
    let mut streams = Table::new(&[("", Align::Left), ("", Align::Right)]);
    for stream in &source.streams {
        streams.plain([format!("  {}", stream.name), human_size(stream.bytes)]);
    }
    text += &out.table(&streams);
    for fact in &source.summary {
        text += &format!("  {}\n", out.paint(Paint::Dim, &printable(fact)));
    }
    text
}
