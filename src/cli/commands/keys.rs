//! `keys new`, `keys show`, `keys add-recipient` and `keys rotate`.

use crate::cli::args::KeysCommand;
use crate::cli::commands::init::proof_cell;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Paint, Table};
use crate::cli::session::Session;
use crate::ops::doctor;
use crate::ops::setup::{self, KeysReport};
use crate::policy;
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
