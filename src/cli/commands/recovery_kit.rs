//! `recovery-kit`: the page for a bad night, and whether it was put away.

use crate::base::atomic::{self, IfExists};
use crate::cli::args::RecoveryKitArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::session::Session;
use crate::ops::OpsError;
use crate::ops::access::{Access, AccessRequest};
use crate::ops::kit::{self, Carried, Kit, Notes, Sheet, Standing, State};
use crate::policy::Policy;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    kit: &'a Kit,
    /// Every command of the page, in order.
    commands: Vec<&'a str>,
    /// What it carries of the identity.
    carries: &'static str,
    /// Where the page was written.
    page: Option<&'a Path>,
    standing: &'a Standing,
}

pub fn run(session: &Session, args: &RecoveryKitArgs) -> Result<Exit, Failure> {
    let done = match &args.confirm {
        Some(code) => confirm(session, args, code.as_deref()),
        None => make(session, args),
    };
    session.progress.finish();
    done.map_err(|f| f.attempted("recovery kit"))
}

fn open(session: &Session, args: &RecoveryKitArgs) -> Result<(Policy, Access), Failure> {
    let policy = session.policy()?;
    let request = AccessRequest { identity: args.identity.clone(), remembered: true, ..AccessRequest::of(&policy) };
    let access = session.open_as(&request)?;
    Ok((policy, access))
}

fn make(session: &Session, args: &RecoveryKitArgs) -> Result<Exit, Failure> {
    let (policy, access) = open(session, args)?;
    let kit = kit::kit(&session.installation, &policy, &access)?;
    let carried = if args.with_identity {
        kit::carried(&identity(session, args, &policy)?, args.passphrase.as_deref())?
    } else {
        Carried::Nothing
    };
    let notes = Notes {
        printed: session.run.now,
        kept: args.kept.clone(),
        ask: args.ask.clone(),
        options: session.same_options(None),
    };
    let sheet = Sheet::new(&kit, &carried, &notes);
    if let Some(path) = &args.page {
        let html = kit::page(&sheet)?;
        atomic::write(path, html.as_bytes(), 0o600, IfExists::Replace)
            .map_err(|e| Failure::from(OpsError::file("write", path, e)))?;
    }
    let standing = kit::standing(&session.installation, &policy)?;
    if session.out.json {
        let document = Document {
            commands: sheet.commands(),
            carries: carried.word(),
            page: args.page.as_deref(),
            standing: &standing,
            kit: &kit,
        };
        session.out.document(Exit::Done, &document)?;
    } else if let Some(path) = &args.page {
        session.out.note(&written(session, path, &carried, &kit))?;
    } else {
        session.out.text(&kit::text(&sheet))?;
    }
    Ok(Exit::Done)
}

/// The identity that goes onto the page.
fn identity(session: &Session, args: &RecoveryKitArgs, policy: &Policy) -> Result<PathBuf, Failure> {
    let usual = || Some(session.installation.identity()).filter(|path| path.exists());
    let own = || policy.repository.identity.clone().filter(|path| path.exists());
    let found = args.identity.clone().or_else(own).or_else(usual);
    found.ok_or_else(|| OpsError::NoIdentity { what: "a page with the identity" }.into())
}

fn written(session: &Session, path: &Path, carried: &Carried, kit: &Kit) -> String {
    let mut text = format!("{}: print it, then remove the file\n", path.display());
    match carried {
        Carried::Nothing => text += "Write on it where the identity lies, and put both away, apart from each other.\n",
        Carried::Plain(_) => text += "Whoever has this page reads every snapshot: keep it as you keep the identity.\n",
        Carried::Sealed(_) => text += "Keep the passphrase in another place than the page.\n",
    }
    text += &format!(
        "\nNext: lifeboat{} recovery-kit --confirm {}\n",
        session.same_options(Some(&kit.facts.policy)),
        kit.code
    );
    text
}

fn confirm(session: &Session, args: &RecoveryKitArgs, code: Option<&str>) -> Result<Exit, Failure> {
    let code = match code {
        Some(code) => code.to_owned(),
        None => session.ask(
            "Write the code from the foot of the page: ",
            "nobody is there to be asked for the code",
            "lifeboat recovery-kit --confirm CODE; it stands at the foot of the page",
        )?,
    };
    let (policy, access) = open(session, args)?;
    let standing = kit::confirm(&session.installation, &policy, &access, &code, &session.run)?;
    if session.out.json {
        let kit = kit::kit(&session.installation, &policy, &access)?;
        let notes = Notes { printed: session.run.now, kept: None, ask: None, options: String::new() };
        let sheet = Sheet::new(&kit, &Carried::Nothing, &notes);
        let document =
            Document { commands: sheet.commands(), carries: "nothing", page: None, standing: &standing, kit: &kit };
        session.out.document(Exit::Done, &document)?;
    } else if standing.state == State::Confirmed {
        let opened = standing.opened.as_deref().unwrap_or_default();
        session.out.note(&format!(
            "the recovery kit of {} is noted as put away; the identity at hand opens snapshot {opened}\n",
            policy.app.name
        ))?;
    }
    Ok(Exit::Done)
}
