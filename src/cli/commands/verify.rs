//! `verify`.

use crate::base::units::human_size;
use crate::cli::args::VerifyArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Paint, printable};
use crate::cli::session::Session;
use crate::ops::verify::{self, Finding, Level, VerifyReport};

pub fn run(session: &Session, args: &VerifyArgs) -> Result<Exit, Failure> {
    let done = check(session, args);
    session.progress.finish();
    done.map_err(|f| f.attempted("verify"))
}

fn check(session: &Session, args: &VerifyArgs) -> Result<Exit, Failure> {
    let level = match args.read_data {
        _ if args.deep => Level::Deep,
        Some(percent) => Level::ReadData { percent },
        None => Level::Objects,
    };
    let access = session.open_anew(&args.reading)?;
    let mut only = Vec::new();
    for name in &args.ids {
        only.push(access.resolve(name, session.run.now)?.header.id.clone());
    }
    let report = verify::verify(&access, level, &only, &session.run)?;
    session.progress.finish();
    let exit = if report.failure().is_none() { Exit::Done } else { Exit::Integrity };
    session.note(|noted| {
        let damaged = report.findings.first().map(|f| format!("{}: {}", f.object, f.problem));
        let tampered = report.tampered.first().map(|note| format!("{}: {}", note.object, note.text));
        noted.problem = damaged.or(tampered);
    });
    if session.out.json {
        session.out.document(exit, &report)?;
    } else if exit == Exit::Done {
        session.out.note(&text(session, &report))?;
    } else {
        session.out.text(&text(session, &report))?;
    }
    Ok(exit)
}

pub fn text(session: &Session, report: &VerifyReport) -> String {
    let out = &session.out;
    let mut text = String::new();
    for finding in &report.findings {
        text += &finding_text(session, finding);
    }
    if report.more_findings > 0 {
        text += &format!("and {} more\n", report.more_findings);
    }
    for note in &report.tampered {
        text +=
            &format!("{} {}: {}\n", out.paint(Paint::Red, "tampered:"), printable(&note.object), printable(&note.text));
    }
    for note in &report.notes {
        text += &format!("{} {}: {}\n", out.paint(Paint::Dim, "note:"), printable(&note.object), printable(&note.text));
    }
    if let Some(left) = report.unreferenced.filter(|left| left.objects > 0) {
        let word = if left.objects == 1 { "object is" } else { "objects are" };
        let size = human_size(left.bytes);
        text += &format!("{} {} {word} of no snapshot ({size})\n", out.paint(Paint::Dim, "note:"), left.objects);
    }
    let how = match report.level {
        Level::Objects => "signatures, order, names and lengths".to_owned(),
        Level::ReadData { percent: 100 } => format!("every byte read ({})", human_size(report.bytes_read)),
        Level::ReadData { .. } => sample(session, report),
        Level::Deep => format!("everything decrypted and proved ({} read)", human_size(report.bytes_read)),
    };
    let counts = format!("{} snapshots, {} objects: {how}", report.snapshots, report.objects);
    let verdict = match report.findings.len() + report.more_findings {
        0 => out.paint(Paint::Green, "sound"),
        1 => out.paint(Paint::Red, "1 damaged object"),
        n => out.paint(Paint::Red, &format!("{n} damaged objects")),
    };
    text += &format!("{verdict}: {counts}\n");
    text
}

/// Which part was read, and how far the runs have come.
fn sample(session: &Session, report: &VerifyReport) -> String {
    let read = human_size(report.bytes_read);
    let Some(slice) = report.slice else { return read };
    let far = match slice.everything_since {
        _ if !slice.remembered => "another one every day".to_owned(),
        Some(since) => format!("every slice has been read since {}", session.out.time(since)),
        None => format!("{} of {} slices read by now", slice.read, slice.of),
    };
    format!("slice {} of {} of the data read ({read}); {far}", slice.number, slice.of)
}

fn finding_text(session: &Session, finding: &Finding) -> String {
    let label = session.out.paint(Paint::Red, "damaged:");
    let mut text = format!("{label} {}: {}\n", printable(&finding.object), printable(&finding.problem));
    let list = |names: Vec<&str>| match names.len() {
        n if n > 8 => format!("{} and {} more", names[..8].join(", "), n - 8),
        _ => names.join(", "),
    };
    if !finding.snapshots.is_empty() {
        text += &format!("  costs snapshots {}\n", list(finding.snapshots.iter().map(|id| id.as_str()).collect()));
    }
    if !finding.sources.is_empty() {
        text += &format!("  of them sources {}\n", list(finding.sources.iter().map(|s| s.as_str()).collect()));
    }
    text
}
