//! `keys new`, `keys show`, `keys add-recipient`, `keys rotate` and `keys revoke`.

use crate::base::ids::{HostName, SnapshotId};
use crate::cli::args::{KeysCommand, RevokeArgs};
use crate::cli::commands::init::proof_cell;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table};
use crate::cli::session::Session;
use crate::ops::access::{AccessRequest, load_identity};
use crate::ops::setup::{self, Good, KeysReport, RevokePlan};
use crate::ops::{OpsError, copy, doctor, mark};
use crate::policy::{self, Policy};
use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;
use std::path::Path;

pub fn run(session: &Session, command: &KeysCommand) -> Result<Exit, Failure> {
    let (report, is_new) = match command {
        KeysCommand::New => {
            let made = setup::keys_new(&session.installation, &session.run);
            (made.map_err(|e| Failure::from(e).attempted("make keys"))?, true)
        }
        KeysCommand::Show { identity } => {
            let found = setup::keys_show(&session.installation, identity.as_deref());
            (found.map_err(|e| Failure::from(e).attempted("show the keys"))?, false)
        }
        KeysCommand::AddRecipient { recipient, identity } => {
            return add_recipient(session, recipient, identity.as_deref()).map_err(|f| f.attempted("add a recipient"));
        }
        KeysCommand::Rotate { identity } => {
            let done = rotate(session, identity.as_deref());
            session.progress.finish();
            return done.map_err(|f| f.attempted("rotate the host key"));
        }
        KeysCommand::Revoke(args) => {
            let done = revoke(session, args);
            session.progress.finish();
            return done.map_err(|f| f.attempted("revoke a key"));
        }
    };
    if session.out.json {
        session.out.document(Exit::Done, &report)?;
    } else {
        session.out.text(&text(session, &report, is_new))?;
    }
    Ok(Exit::Done)
}

fn add_recipient(session: &Session, recipient: &str, identity: Option<&Path>) -> Result<Exit, Failure> {
    let policy = session.policy()?;
    let report = setup::add_recipient(&session.installation, &policy, recipient, identity)?;
    if session.out.json {
        session.out.document(Exit::Done, &report)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    for proof in &report.recipients {
        table.row(vec![("recipient".into(), Paint::Plain), proof_cell(proof)]);
    }
    session.out.note(&format!(
        "{}{} opens every snapshot from now on; what was stored before stays sealed to the others.\n\nNext: lifeboat{} snapshot\n",
        session.out.table(&table),
        report.added,
        session.same_options(Some(&report.policy))
    ))?;
    Ok(Exit::Done)
}

fn rotate(session: &Session, identity: Option<&Path>) -> Result<Exit, Failure> {
    let files = doctor::installed(&session.installation)?;
    let policies = files.iter().map(|file| policy::load(file)).collect::<Result<Vec<_>, _>>()?;
    if policies.is_empty() {
        return Err(Failure::usage("there is no policy, so no repository knows this host", "lifeboat init DIR"));
    }
    let report = setup::rotate(&session.installation, &policies, identity, &session.run)?;
    session.progress.finish();
    if session.out.json {
        session.out.document(Exit::Done, &report)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    table.plain(["host key".into(), format!("{} (new)", report.host_key.display())]);
    table.plain(["signing key", report.signing_key.as_str()]);
    for url in &report.repositories {
        table.plain(["may sign in", url]);
    }
    let mut text = session.out.table(&table);
    if let Some(old) = &report.replaced {
        text += &format!("\nThe old key is {}: nothing needs it any more.\n", old.display());
    }
    text +=
        "The next snapshot stores everything once more: what the old key stored is not recognized by the new one.\n";
    session.out.note(&text)?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct RevokeDocument<'a> {
    dry_run: bool,
    plan: &'a RevokePlan,
}

fn revoke(session: &Session, args: &RevokeArgs) -> Result<Exit, Failure> {
    let good = match (&args.last_good[..], &args.stolen, args.all_good) {
        ([], Some(time), _) => Good::Before(stolen(session, time)?),
        ([], None, true) => Good::All,
        ([], None, false) if args.key.is_some() => {
            let hint = "--stolen TIME; or --last-good SNAPSHOT; or --all-good, where nobody has misused it";
            return Err(Failure::usage("nothing says which of its snapshots are still good", hint));
        }
        (names, _, _) => Good::UpTo(names.to_vec()),
    };
    let request = session.access_request(&args.reading)?;
    refuse_copy(session, &request)?;
    let _lock = mark::lock(&session.installation, &session.run)?;
    let access = session.open_as(&AccessRequest { remembered: false, ..request.clone() })?;
    let plan = setup::plan_revoke(&session.installation, &access, args.key.as_deref(), &good, &session.run)?;
    session.progress.finish();
    if !args.dry_run {
        let identity = load_identity(&session.installation, &request)?;
        let identity = identity.ok_or(OpsError::NoIdentity { what: "revoking a key" })?;
        if !session.out.json && !args.yes {
            session.out.text(&revoke_text(session, &plan))?;
        }
        session.confirm(&format!("revoke the key {}", plan.key), args.yes)?;
        setup::revoke(&session.installation, &access, &identity, &plan, &session.run)?;
        session.progress.finish();
    }
    if session.out.json {
        session.out.document(Exit::Done, &RevokeDocument { dry_run: args.dry_run, plan: &plan })?;
        return Ok(Exit::Done);
    }
    if args.dry_run {
        session.out.text(&revoke_text(session, &plan))?;
        return Ok(Exit::Done);
    }
    let mut text = if args.yes { revoke_text(session, &plan) } else { String::new() };
    text += &format!("\nRevoked. A copy hears of it with the next `lifeboat{} copy`.\n", session.same_options(None));
    if plan.lines.iter().any(|line| !line.refused.is_empty()) {
        text += "What is refused lies there until `lifeboat prune --accept-lost` gives it up.\n";
    }
    if plan.own {
        let next = format!("lifeboat{} keys rotate", session.same_options(None));
        text += &format!(
            "Next: {}: this host signs nothing until it has another key.\n",
            session.out.paint(Paint::Bold, &next)
        );
    }
    session.out.note(&text)?;
    Ok(Exit::Done)
}

/// A revocation at a copy would never reach the repository, and the two would have different signers for ever.
fn refuse_copy(session: &Session, request: &AccessRequest) -> Result<(), Failure> {
    let of_policy = || request.policy.as_ref().map(|policy| &policy.repository.url);
    let Some(url) = request.repository.as_ref().or_else(of_policy) else { return Ok(()) };
    // A policy that does not load tells nothing of copies, and shall not keep a key from being revoked.
    let files = doctor::installed(&session.installation).unwrap_or_default();
    let installed = files.iter().filter_map(|file| policy::load(file).ok());
    let is_copy = |policy: &Policy| policy.repository.url != *url && copy::listed(policy, url).is_some();
    let Some(found) = request.policy.iter().cloned().chain(installed).find(is_copy) else { return Ok(()) };
    let own = &found.repository.url;
    Err(Failure::usage(
        format!("{url} is a copy of {own}, and a revocation there would not reach it"),
        format!("revoke the key in {own}; the copy hears of it with the next `lifeboat copy`"),
    ))
}

/// When a key was stolen. A day alone means its beginning: what came on that day may be the thief's.
fn stolen(session: &Session, text: &str) -> Result<DateTime<Utc>, Failure> {
    let text = text.trim();
    let is_day = NaiveDate::parse_from_str(text, "%Y-%m-%d").is_ok();
    session.time("--stolen", &if is_day { format!("{text} 00:00") } else { text.to_owned() })
}

/// What becomes of each host's and policy's snapshots.
fn revoke_text(session: &Session, plan: &RevokePlan) -> String {
    let hosts: Vec<&str> = plan.hosts.iter().map(HostName::as_str).collect();
    let mut text = format!("key {} of {} in {}\n\n", plan.key, hosts.join(", "), plan.repository);
    let titles = [
        ("HOST", Align::Left),
        ("POLICY", Align::Left),
        ("STAY", Align::Right),
        ("LAST GOOD", Align::Left),
        ("REFUSED", Align::Left),
    ];
    let mut table = Table::new(&titles);
    for line in &plan.lines {
        let last = line.last_good.as_ref().map_or("none", |id| id.as_str());
        let refused: Vec<&str> = line.refused.iter().map(SnapshotId::as_str).collect();
        let paint = if refused.is_empty() { Paint::Plain } else { Paint::Red };
        table.row(vec![
            (line.host.to_string(), Paint::Plain),
            (line.policy.to_string(), Paint::Plain),
            (line.stay.to_string(), Paint::Plain),
            (last.to_owned(), Paint::Plain),
            (refused.join(", "), paint),
        ]);
    }
    text += &session.out.table(&table);
    if plan.records > 0 {
        text += &format!("{} records (prunes, tags, holds) are said again by the root key\n", plan.records);
    }
    if plan.drills > 0 {
        text += &format!("{} drills that it signed prove nothing any more: prove a snapshot anew\n", plan.drills);
    }
    text
}

fn text(session: &Session, report: &KeysReport, is_new: bool) -> String {
    let mark = |fresh: bool| if fresh { " (new)" } else { "" };
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    match &report.identity {
        Some(path) => table.plain(["identity".into(), format!("{}{}", path.display(), mark(report.identity_new))]),
        None => table.plain(["identity", "elsewhere: this host is sealed"]),
    }
    table.plain(["host key".into(), format!("{}{}", report.host_key.display(), mark(report.host_key_new))]);
    for recipient in &report.recipients {
        table.plain(["recipient", recipient]);
    }
    if let Some(id) = &report.repository_id {
        table.plain(["repository id", id.as_str()]);
    }
    table.plain(["signing key", report.signing_key.as_str()]);
    let mut text = session.out.table(&table);
    if is_new {
        text += "\nThe identity opens every snapshot, and nothing else does: copy it away from this host.\n";
        text += &format!("\nNext: lifeboat{} init DIR\n", session.same_options(None));
    }
    text
}
