//! `hold` and `release`.

use crate::base::units::format_duration;
use crate::cli::args::{HoldArgs, Reading};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::printable_lines;
use crate::cli::session::Session;
use crate::ops::mark::{self, Mark};

pub fn hold(session: &Session, args: &HoldArgs) -> Result<Exit, Failure> {
    let done = |id: &str, policy: &str| {
        let ceiling = session.policy().ok().and_then(|p| p.retention.max_age);
        let until = ceiling.map(|age| format!(", or is older than max_age {}", format_duration(age)));
        format!("held {id} of {policy}: no prune removes it until it is released{}\n", until.unwrap_or_default())
    };
    mark(session, &args.id, &Mark::Hold, done).map_err(|f| f.attempted(format!("hold {}", args.id)))
}

pub fn release(session: &Session, args: &HoldArgs) -> Result<Exit, Failure> {
    let done = |id: &str, policy: &str| format!("released {id} of {policy}: the policy's [retention] decides again\n");
    mark(session, &args.id, &Mark::Release, done).map_err(|f| f.attempted(format!("release {}", args.id)))
}

/// Makes the mark; `text` is what is said of it, from the snapshot's id and its policy.
pub fn mark(session: &Session, id: &str, what: &Mark, text: impl Fn(&str, &str) -> String) -> Result<Exit, Failure> {
    let lock = mark::lock(&session.installation, &session.run)?;
    let access = session.open(&Reading::default())?;
    let report = mark::mark(&session.installation, &access, &lock, id, what, &session.run)?;
    if session.out.json {
        session.out.document(Exit::Done, &report)?;
    } else {
        session.out.note(&printable_lines(&text(report.snapshot.as_str(), report.policy.as_str())))?;
    }
    Ok(Exit::Done)
}
