//! `find`.

use crate::base::units::human_size;
use crate::cli::args::FindArgs;
use crate::cli::commands::files;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table, printable};
use crate::cli::session::{Session, argument};
use crate::ops::browse::{self, FindReport, FindRequest};

pub fn run(session: &Session, args: &FindArgs) -> Result<Exit, Failure> {
    find(session, args).map_err(|f| f.attempted(format!("find {:?}", args.pattern)))
}

fn find(session: &Session, args: &FindArgs) -> Result<Exit, Failure> {
    let request = FindRequest {
        pattern: args.pattern.clone(),
        snapshot: args.snapshot.clone(),
        source: args.source.as_deref().map(|s| argument("--source", s)).transpose()?,
        limit: args.limit,
    };
    let access = session.open(&args.reading)?;
    let report = browse::find(&access, &request, &session.run)?;
    for problem in &report.problems {
        session.out.alarm(&problem.problem);
    }
    if report.cut {
        session.out.alarm(&format!("there is more than {} paths; --limit N shows more", args.limit));
    }
    let exit = if report.problems.is_empty() { Exit::Done } else { Exit::Integrity };
    if session.out.json {
        session.out.document(exit, &report)?;
    } else {
        session.out.text(&text(session, &report))?;
    }
    Ok(exit)
}

fn text(session: &Session, report: &FindReport) -> String {
    let out = &session.out;
    if report.found.is_empty() {
        let n = report.searched;
        return format!("nothing found in {n} snapshot{}\n", if n == 1 { "" } else { "s" });
    }
    let mut text = String::new();
    let first = &report.found[0];
    let several = report.found.iter().any(|f| (&f.host, &f.policy) != (&first.host, &first.policy));
    for found in &report.found {
        let place = if several { format!("{}/{} ", found.host, found.policy) } else { String::new() };
        let path = format!("{}:{}", found.source, printable(&found.path));
        text += &format!("{place}{}\n", out.paint(Paint::Bold, &path));
        let mut table = Table::new(&[("", Align::Left), ("", Align::Right), ("", Align::Left), ("", Align::Left)]);
        for version in &found.versions {
            let state = &version.state;
            let mode = state.mode.map(|mode| files::mode(state.file_type, mode)).unwrap_or_default();
            let changed = state.mtime.map(files::time).unwrap_or_default();
            let where_ = if version.snapshots == 1 {
                format!("in {} ({})", version.newest, out.ago(version.newest_time))
            } else {
                format!("in {} from {} to {}", version.snapshots, version.oldest, version.newest)
            };
            table.plain([format!("  {mode}"), human_size(state.size), changed, where_]);
        }
        text += &out.table(&table);
    }
    text
}
