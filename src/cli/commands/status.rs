//! `status`.

use crate::base::atomic::{self, IfExists};
use crate::base::ids::PolicyName;
use crate::base::units::{human_duration, parse_duration};
use crate::cli::args::StatusArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table, printable};
use crate::cli::session::{Session, argument, expected};
use crate::ops::access::{AccessRequest, host_name, parse_url};
use crate::ops::foresight::Purpose;
use crate::ops::runs::Book;
use crate::ops::status::{self, Check, Level, PolicyStatus, Ran, Silence, metrics};
use crate::ops::{OpsError, doctor, runner};
use crate::policy;
use chrono::Utc;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Serialize)]
struct Document<'a> {
    headline: &'a str,
    level: Level,
    policies: Vec<&'a PolicyStatus>,
}

pub fn run(session: &Session, args: &StatusArgs) -> Result<Exit, Failure> {
    let done = match &args.reading.repository {
        Some(url) => from_outside(session, args, url),
        None => here(session, args),
    };
    session.progress.finish();
    done.map_err(|f| f.attempted("status"))
}

fn max_age(args: &StatusArgs) -> Result<Option<Duration>, Failure> {
    let read = |text: &String| {
        parse_duration(text).map_err(|e| Failure::new(Exit::Usage, e).attempted("--max-age".to_owned()))
    };
    args.max_age.as_ref().map(read).transpose()
}

/// The policies of this host.
fn here(session: &Session, args: &StatusArgs) -> Result<Exit, Failure> {
    let max_age = max_age(args)?;
    let book = Book::look(&session.installation.state_dir)?;
    if let Some(Err(e)) = book.as_ref().map(Book::mark_interrupted) {
        session.out.alarm(&format!("runs that were cut short are not marked: {}", Failure::from(e).message()));
    }
    let files = files(session)?;
    // Each looks at another repository, or at another application.
    let all: Vec<(PolicyStatus, Ran)> = match files.as_slice() {
        [one] => vec![look(session, one, book.as_ref(), max_age)?],
        many => many.iter().map(|file| look(session, file, book.as_ref(), max_age)).collect::<Result<_, _>>()?,
    };
    if let Some(path) = &args.metrics {
        write_metrics(path, &all)?;
    }
    let all: Vec<PolicyStatus> = all.into_iter().map(|(status, _)| status).collect();
    let level = all.iter().map(|s| s.level).max().unwrap_or(Level::Red);
    let exit = if level == Level::Red { Exit::Failed } else { Exit::Done };
    let headline = status::overall(&all);
    if session.out.json {
        session.out.document(exit, &Document { headline: &headline, level, policies: all.iter().collect() })?;
    } else if session.out.quiet {
        session.out.text(&reds(&all))?;
    } else {
        session.out.text(&text(session, &headline, &all))?;
    }
    Ok(exit)
}

/// The policy that is named, or all that are installed.
fn files(session: &Session) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    if session.global.policy.is_none() {
        files = doctor::installed(&session.installation)?;
    }
    if files.is_empty() {
        files.push(session.policy_file()?);
    }
    Ok(files)
}

fn look(
    session: &Session,
    file: &Path,
    book: Option<&Book>,
    max_age: Option<Duration>,
) -> Result<(PolicyStatus, Ran), Failure> {
    let policy = match policy::load(file) {
        Ok(policy) => policy,
        Err(e) => {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            return Ok((status::unreadable(name, Failure::from(e).message()), Ran::default()));
        }
    };
    session.run.events.step(format!("looking at {}", policy.app.name));
    let sight = status::look(&session.installation, &policy, &host_name()?, &session.run)?;
    // What came to an end meanwhile counts.
    let now = Utc::now().max(session.run.now);
    let ran = Ran::of(book, &policy.app.name, now)?;
    let served = runner::is_served(&session.installation.state_dir);
    Ok((status::judge(&policy, &sight, &ran, served, max_age, now), ran))
}

fn write_metrics(path: &Path, all: &[(PolicyStatus, Ran)]) -> Result<(), Failure> {
    let text = metrics::text(all, Utc::now());
    // Whoever collects them is another account, and nothing in them is secret.
    let written = atomic::write(path, text.as_bytes(), 0o644, IfExists::Replace);
    Ok(written.map_err(|e| OpsError::file("write", path, e))?)
}

fn cell(level: Level) -> (String, Paint) {
    let paint = match level {
        Level::Green => Paint::Green,
        Level::Amber => Paint::Yellow,
        Level::Red => Paint::Red,
    };
    (level.as_str().to_owned(), paint)
}

fn text(session: &Session, headline: &str, all: &[PolicyStatus]) -> String {
    let mut text = format!("{}\n", session.out.paint(Paint::Bold, &printable(headline)));
    for status in all {
        text += "\n";
        if all.len() > 1 {
            let name = session.out.paint(Paint::Bold, &printable(&status.policy));
            text += &format!("{name}: {}\n", printable(&status.headline));
        }
        let mut table = Table::new(&[("", Align::Left), ("", Align::Left), ("", Align::Left)]);
        let mut hints = String::new();
        for check in &status.checks {
            table.row(vec![
                (check.check.into(), Paint::Plain),
                cell(check.level),
                (check.detail.clone(), Paint::Plain),
            ]);
            hints += &hint(check);
        }
        text += &session.out.table(&table);
        text += &hints;
    }
    text
}

fn hint(check: &Check) -> String {
    match (&check.hint, check.level) {
        (Some(hint), Level::Amber | Level::Red) => format!("  hint: {}: {}\n", check.check, printable(hint)),
        _ => String::new(),
    }
}

/// With `-q`: only what is red.
fn reds(all: &[PolicyStatus]) -> String {
    let red = |status: &PolicyStatus| {
        let checks = status.checks.iter().filter(|c| c.level == Level::Red);
        let line = |c: &Check| format!("{}: {}: {}\n", status.policy, c.check, printable(&c.detail));
        checks.map(line).collect::<String>()
    };
    all.iter().map(red).collect()
}

/// A repository of somebody else, or of another host.
fn from_outside(session: &Session, args: &StatusArgs, url: &str) -> Result<Exit, Failure> {
    if args.metrics.is_some() {
        return Err(Failure::usage("--metrics is for the policies of this host", "leave --repository out"));
    }
    let reading = &args.reading;
    let request = AccessRequest {
        repository: Some(parse_url(url)?),
        signer: reading.signer.as_deref().map(|text| argument("--signer", text)).transpose()?,
        expect: reading.expect.as_deref().map(expected).transpose()?,
        host: reading.host.as_deref().map(|text| argument("--host", text)).transpose()?,
        remembered: true,
        purpose: Purpose::Look,
        ..AccessRequest::default()
    };
    // Here a policy's name only narrows what is looked at; no file of it is needed.
    let name: Option<PolicyName> =
        session.global.policy.as_deref().map(|text| argument("--policy", text)).transpose()?;
    let seen = status::silence(&session.installation, &request, name.as_ref(), max_age(args)?, &session.run)?;
    let exit = match seen.level {
        _ if !seen.problems.is_empty() => Exit::Integrity,
        Level::Red => Exit::Failed,
        _ => Exit::Done,
    };
    if seen.lines.is_empty() {
        session.out.alarm("there is no snapshot of what was asked for");
    }
    seen.problems.iter().for_each(|problem| session.out.alarm(problem));
    if seen.trusted == "first use" {
        session.out.alarm(&format!(
            "nothing says that this is the right repository: it is {}, and is trusted as found (give --signer)",
            seen.repository_id
        ));
    }
    if session.out.json {
        session.out.document(exit, &seen)?;
    } else if exit == Exit::Done {
        session.out.note(&outside_text(session, &seen))?;
    } else {
        session.out.text(&outside_text(session, &seen))?;
    }
    Ok(exit)
}

fn outside_text(session: &Session, seen: &Silence) -> String {
    let mut table = Table::new(&[
        ("HOST", Align::Left),
        ("POLICY", Align::Left),
        ("", Align::Left),
        ("NEWEST", Align::Left),
        ("DRILL", Align::Left),
        ("", Align::Left),
    ]);
    for line in &seen.lines {
        let newest = line.time.map_or_else(|| "none".to_owned(), |time| session.out.time(time));
        let drill = line.drill.as_ref().map_or_else(
            || "none".to_owned(),
            |drill| {
                format!(
                    "{} {}",
                    crate::cli::commands::drill::outcome_cell(drill.outcome).0,
                    session.out.ago(drill.time)
                )
            },
        );
        table.row(vec![
            (line.host.to_string(), Paint::Plain),
            (line.policy.to_string(), Paint::Plain),
            cell(line.level),
            (newest, Paint::Plain),
            (drill, Paint::Plain),
            (line.problem.clone().unwrap_or_default(), Paint::Plain),
        ]);
    }
    let limit = seen.max_age_seconds.map(|s| format!(", no older than {}", human_duration(Duration::from_secs(s))));
    format!("{}{}\n{}", printable(&seen.repository), limit.unwrap_or_default(), session.out.table(&table))
}
