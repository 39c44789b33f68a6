//! `ls`: line by line, so that a listing of any length passes.

use crate::base::patient;
use crate::base::units::human_size;
use crate::cli::args::LsArgs;
use crate::cli::commands::files;
use crate::cli::commands::snapshot::outcome_cell;
use crate::cli::exit::{Exit, Failure, STANDARD_OUTPUT};
use crate::cli::output::{Paint, out_failure, printable};
use crate::cli::session::Session;
use crate::ops::OpsError;
use crate::ops::browse::{self, LsEntry, LsRequest};
use std::io::{self, BufWriter, Write};

pub fn run(session: &Session, args: &LsArgs) -> Result<Exit, Failure> {
    list(session, args).map_err(|f| f.attempted(format!("list what is in {}", args.id)))
}

/// What printing came to, in the words of `ops`.
pub fn print_error(e: io::Error) -> OpsError {
    OpsError::file("write to", STANDARD_OUTPUT, e)
}

fn list(session: &Session, args: &LsArgs) -> Result<Exit, Failure> {
    let access = session.open_to_read(&args.reading, &args.id)?;
    let request = LsRequest { snapshot: args.id.clone(), target: args.path.clone(), recursive: args.recursive };
    if session.out.json {
        let mut stream = session.out.stream("entries")?;
        let mut visit = |entry: LsEntry| stream.item(&entry).map_err(print_error);
        let report = browse::ls(&access, &request, &session.run, &mut visit)?;
        stream.finish(Exit::Done, &serde_json::json!({ "snapshot": report.snapshot }))?;
        return Ok(Exit::Done);
    }
    let mut out = BufWriter::new(patient::stdout());
    let mut visit = |entry: LsEntry| writeln!(out, "{}", line(session, &entry)).map_err(print_error);
    browse::ls(&access, &request, &session.run, &mut visit)?;
    out.flush().map_err(out_failure)?;
    Ok(Exit::Done)
}

fn line(session: &Session, entry: &LsEntry) -> String {
    let out = &session.out;
    match entry {
        LsEntry::Source { name, kind, outcome, error, bytes } => {
            let (word, paint) = outcome_cell(*outcome);
            let error = error.as_ref().map(|e| format!("  {}", printable(e))).unwrap_or_default();
            let name = out.paint(Paint::Bold, &format!("{name}:"));
            format!("{name}  {}  {}  {}{error}", printable(kind), out.paint(paint, word), human_size(*bytes))
        }
        LsEntry::Stream { source, name, bytes, .. } => format!("  {source}:{name}  {}", human_size(*bytes)),
        LsEntry::Path { file, .. } => files::line(file),
    }
}
