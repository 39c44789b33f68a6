//! `keys new` and `keys show`.

use crate::cli::args::KeysCommand;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Align, Table};
use crate::cli::session::Session;
use crate::ops::setup::{self, KeysReport};

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
    };
    if session.out.json {
        session.out.document(Exit::Done, &report)?;
    } else {
        session.out.text(&text(session, &report, is_new))?;
    }
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
