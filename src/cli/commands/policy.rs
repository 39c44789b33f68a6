//! `policy check` and `policy show`.

use crate::cli::args::{PolicyCommand, Reading};
use crate::cli::commands::init::proof_cell;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table};
use crate::cli::session::Session;
use crate::ops::access::AccessRequest;
use crate::ops::check::{self, LiveReport, Probe};
use crate::policy::{self, Policy};
use serde::Serialize;
use std::path::{Path, PathBuf};

pub fn run(session: &Session, command: &PolicyCommand) -> Result<Exit, Failure> {
    match command {
        PolicyCommand::Show => show(session),
        PolicyCommand::Check { live, identity } => check(session, *live, identity.as_deref()),
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    file: &'a Path,
    policy: &'a str,
    toml: String,
}

fn show(session: &Session) -> Result<Exit, Failure> {
    let policy = session.policy().map_err(|f| f.attempted("show the policy"))?;
    let toml = policy::show(&policy);
    if session.out.json {
        session.out.document(Exit::Done, &Shown { file: &policy.file, policy: policy.app.name.as_str(), toml })?;
    } else {
        session.out.text(&toml)?;
    }
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct Checked<'a> {
    file: PathBuf,
    policy: &'a str,
    sources: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<&'a LiveReport>,
}

fn check(session: &Session, live: bool, identity: Option<&Path>) -> Result<Exit, Failure> {
    let policy = session.policy().map_err(|f| f.attempted("policy check"))?;
    let report = if live { Some(try_all(session, &policy, identity)?) } else { None };
    let exit = if report.as_ref().is_none_or(LiveReport::ok) { Exit::Done } else { Exit::Failed };
    let file = policy.file.clone();
    let checked =
        Checked { file, policy: policy.app.name.as_str(), sources: policy.sources.len(), live: report.as_ref() };
    if session.out.json {
        session.out.document(exit, &checked)?;
        return Ok(exit);
    }
    let named = policy.sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
    session.out.note(&format!("{}: valid ({} sources: {named})\n", policy.file.display(), policy.sources.len()))?;
    if let Some(report) = &report {
        session.out.note(&text(session, report))?;
    }
    Ok(exit)
}

fn try_all(session: &Session, policy: &Policy, identity: Option<&Path>) -> Result<LiveReport, Failure> {
    let attempted = format!("policy check {}", policy.app.name);
    let reading = Reading { identity: identity.map(Path::to_owned), ..Reading::default() };
    let request = AccessRequest { identity: reading.identity, ..AccessRequest::default() };
    let sources = check::sources(&session.installation, policy, &session.run.cancel);
    let tried = check::live(&session.installation, policy, &sources, &request, &session.run);
    session.progress.finish();
    tried.map_err(|e| Failure::from(e).attempted(attempted))
}

fn text(session: &Session, report: &LiveReport) -> String {
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left), ("", Align::Left)]);
    let mut hints = Vec::new();
    let mut add = |what: String, probe: &Probe, detail: String, optional: bool| {
        let (word, paint) = match (probe.ok, optional) {
            (true, _) => ("ok", Paint::Green),
            (false, true) => ("optional", Paint::Yellow),
            (false, false) => ("failed", Paint::Red),
        };
        let detail = probe.error.clone().unwrap_or(detail);
        table.row(vec![(what.clone(), Paint::Plain), (word.into(), paint), (detail, Paint::Plain)]);
        hints.extend(probe.hint.iter().map(|hint| format!("  hint: {what}: {hint}\n")));
    };
    add("repository".into(), &report.repository, String::new(), false);
    for source in &report.sources {
        add(format!("source {}", source.name), &source.probe, source.what.clone(), source.optional);
    }
    for proof in &report.recipients {
        let (text, paint) = proof_cell(proof);
        let word = if proof.proved { ("ok", Paint::Green) } else { ("unproved", Paint::Yellow) };
        table.row(vec![("recipient".into(), Paint::Plain), (word.0.into(), word.1), (text, paint)]);
    }
    session.out.table(&table) + &hints.concat()
}
