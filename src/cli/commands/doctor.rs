//! `doctor`.

use crate::cli::args::DoctorArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table, printable};
use crate::cli::session::Session;
use crate::ops::doctor::{self, Examined, Verdict};
use crate::policy;
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Document<'a> {
    policies: &'a [Examined],
}

pub fn run(session: &Session, args: &DoctorArgs) -> Result<Exit, Failure> {
    let done = match &args.compare {
        Some(dir) => compare(session, dir).map(|one| vec![one]),
        None => examine_all(session),
    };
    session.progress.finish();
    let policies = done.map_err(|f| f.attempted("doctor"))?;
    let is_well = policies.iter().all(|p| p.worst() != Verdict::Problem);
    let exit = if is_well { Exit::Done } else { Exit::Failed };
    if session.out.json {
        session.out.document(exit, &Document { policies: &policies })?;
    } else {
        let text = policies.iter().map(|p| text(session, p)).collect::<Vec<_>>().join("\n");
        if is_well { session.out.note(&text)? } else { session.out.text(&text)? }
    }
    Ok(exit)
}

/// Another backup's newest dump, tried.
fn compare(session: &Session, dir: &Path) -> Result<Examined, Failure> {
    let policy = policy::load(&session.policy_file()?)?;
    Ok(doctor::compare(&policy, dir, &session.run)?)
}

/// The policy that is named, or all that are installed.
fn examine_all(session: &Session) -> Result<Vec<Examined>, Failure> {
    let mut files = Vec::new();
    if session.global.policy.is_none() {
        files = doctor::installed(&session.installation)?;
    }
    if files.is_empty() {
        files.push(session.policy_file()?);
    }
    files.iter().map(|file| examine(session, file)).collect()
}

fn examine(session: &Session, file: &Path) -> Result<Examined, Failure> {
    match policy::load(file) {
        Ok(policy) => Ok(doctor::examine(&session.installation, &policy, &session.run)?),
        Err(e) => {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let problem = Failure::from(e).message();
            Ok(Examined::unreadable(name, problem, Some("`lifeboat policy check` says where".to_owned())))
        }
    }
}

fn text(session: &Session, examined: &Examined) -> String {
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left), ("", Align::Left)]);
    let mut hints = String::new();
    for finding in &examined.findings {
        let (word, paint) = match finding.verdict {
            Verdict::Ok => ("ok", Paint::Green),
            Verdict::Warning => ("warning", Paint::Yellow),
            Verdict::Problem => ("problem", Paint::Red),
        };
        table.row(vec![
            (finding.check.into(), Paint::Plain),
            (word.into(), paint),
            (finding.detail.clone(), Paint::Plain),
        ]);
        if let (Some(why), Some(hint)) = (finding.why, &finding.hint) {
            hints += &format!("  {}: {why}\n  hint: {}: {}\n", finding.check, finding.check, printable(hint));
        }
    }
    let name = session.out.paint(Paint::Bold, &printable(&examined.policy));
    format!("{name}\n{}{hints}", session.out.table(&table))
}
