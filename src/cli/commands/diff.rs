//! `diff`: one line for each difference, then a summary. What there is of them passes and is not held.

use crate::base::patient;
use crate::base::units::human_size;
use crate::cli::args::DiffArgs;
use crate::cli::commands::ls::print_error;
use crate::cli::commands::snapshot::outcome_cell;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table, out_failure, printable};
use crate::cli::session::{Session, argument};
use crate::ops::browse::{self, Aspect, Change, DiffReport, DiffRequest};
use std::io::{BufWriter, Write};

pub fn run(session: &Session, args: &DiffArgs) -> Result<Exit, Failure> {
    diff(session, args).map_err(|f| f.attempted(format!("compare {} with {}", args.a, args.b)))
}

fn diff(session: &Session, args: &DiffArgs) -> Result<Exit, Failure> {
    let mut request = DiffRequest::new(&args.a, &args.b);
    request.source = args.source.as_deref().map(|s| argument("--source", s)).transpose()?;
    request.path.clone_from(&args.path);
    let access = session.open(&args.reading)?;
    if session.out.json {
        let mut stream = session.out.stream("changes")?;
        let mut visit = |change: Change| stream.item(&change).map_err(print_error);
        let report = browse::diff(&access, &request, &session.run, &mut visit)?;
        stream.finish(Exit::Done, &report)?;
        return Ok(Exit::Done);
    }
    let mut out = BufWriter::new(patient::stdout());
    let mut visit = |change: Change| writeln!(out, "{}", line(session, &change)).map_err(print_error);
    let report = browse::diff(&access, &request, &session.run, &mut visit)?;
    out.flush().map_err(out_failure)?;
    drop(out);
    session.out.note(&summary(session, &report))?;
    Ok(Exit::Done)
}

fn line(session: &Session, change: &Change) -> String {
    let paint = |how, text: String| session.out.paint(how, &printable(&text));
    let value = |v: &Option<serde_json::Value>| v.as_ref().map_or_else(|| "nothing".to_owned(), |v| v.to_string());
    match change {
        Change::SourceAdded { source, kind, bytes } => {
            paint(Paint::Green, format!("+ source {source} ({kind}, {})", human_size(*bytes)))
        }
        Change::SourceRemoved { source, kind, bytes } => {
            paint(Paint::Red, format!("- source {source} ({kind}, {})", human_size(*bytes)))
        }
        Change::SourceOutcome { source, before, after } => paint(
            Paint::Yellow,
            format!("~ source {source}: {} before, {} now", outcome_cell(*before).0, outcome_cell(*after).0),
        ),
        Change::Added { source, file } => {
            paint(Paint::Green, format!("+ {source}:{} ({})", file.path, human_size(file.size)))
        }
        Change::Removed { source, file } => {
            paint(Paint::Red, format!("- {source}:{} ({})", file.path, human_size(file.size)))
        }
        Change::Changed { source, aspects, before, after, .. } => {
            let mut what: Vec<&str> = aspects.iter().copied().map(word).collect();
            let size = format!("{} -> {}", human_size(before.size), human_size(after.size));
            if before.size != after.size {
                what.retain(|w| *w != "size");
                what.push(&size);
            }
            paint(Paint::Yellow, format!("~ {source}:{} ({})", after.path, what.join(", ")))
        }
        Change::Stream { source, stream, before, after } => {
            let size = |n: &Option<u64>| n.map_or_else(|| "nothing".to_owned(), human_size);
            paint(Paint::Yellow, format!("~ {source}:{stream} ({} -> {})", size(before), size(after)))
        }
        Change::Fact { source, fact, before, after } => {
            paint(Paint::Dim, format!("  {source}: {fact}: {} -> {}", value(before), value(after)))
        }
    }
}

fn word(aspect: Aspect) -> &'static str {
    match aspect {
        Aspect::Type => "type",
        Aspect::Size => "size",
        Aspect::Content => "content",
        Aspect::Mode => "mode",
        Aspect::Owner => "owner",
        Aspect::Time => "time",
        Aspect::Target => "target",
        Aspect::Attributes => "attributes",
    }
}

fn summary(session: &Session, report: &DiffReport) -> String {
    if report.same {
        return format!("{} and {} are the same\n", report.before.id, report.after.id);
    }
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("ADDED", Align::Right),
        ("REMOVED", Align::Right),
        ("CHANGED", Align::Right),
        ("STREAMS", Align::Right),
        ("FACTS", Align::Right),
        ("BEFORE", Align::Right),
        ("AFTER", Align::Right),
        ("", Align::Left),
    ]);
    for source in &report.sources {
        let facts = source.facts + source.facts_untold;
        let note = match source.uncompared {
            0 => String::new(),
            n => format!("{n} of equal size and time not compared"),
        };
        let numbers = [source.added, source.removed, source.changed, source.streams, facts];
        let mut row = vec![source.name.to_string()];
        row.extend(numbers.iter().map(u64::to_string));
        row.extend([human_size(source.bytes_before), human_size(source.bytes_after), note]);
        table.plain(row);
    }
    format!("\n{}", session.out.table(&table))
}
