//! Which page was printed and put away: `<state-dir>/kits/<policy>.json`, with what it said. What is different today
//! makes that page wrong.

use super::facts::{Facts, same_code};
use super::open_newest;
use crate::base::atomic::{self, IfExists};
use crate::base::ids::SnapshotId;
use crate::ops::access::{Access, Installation};
use crate::ops::{OpsError, Run};
use crate::policy::Policy;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// Whether a page lies where somebody will look for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nobody has said so.
    Never,
    /// Somebody has; but what it says is not true any more.
    Changed,
    Confirmed,
}

/// What is known of the page that was put away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    pub state: State,
    pub confirmed: Option<DateTime<Utc>>,
    /// The snapshot that an identity opened then.
    pub opened: Option<String>,
    /// What that page has wrong today.
    pub changed: Vec<String>,
}

impl Standing {
    const NEVER: Self = Self { state: State::Never, confirmed: None, opened: None, changed: Vec::new() };

    /// For people, as a fragment.
    pub fn sentence(&self) -> String {
        let day = self.confirmed.map(|t| t.format("%Y-%m-%d").to_string()).unwrap_or_default();
        match self.state {
            State::Never => "nobody has confirmed that a recovery kit was printed and put away".to_owned(),
            State::Changed => {
                format!("the recovery kit of {day} is out of date: changed since: {}", self.changed.join(", "))
            }
            State::Confirmed => format!("put away {day}"),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    format: u64,
    confirmed: DateTime<Utc>,
    opened: SnapshotId,
    facts: Facts,
}

fn file(installation: &Installation, policy: &str) -> PathBuf {
    installation.state_dir.join("kits").join(format!("{policy}.json"))
}

/// What is known of a policy's page. Asks nobody but this host's files.
pub fn standing(installation: &Installation, policy: &Policy) -> Result<Standing, OpsError> {
    let path = file(installation, policy.app.name.as_str());
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Standing::NEVER),
        Err(e) => return Err(OpsError::file("read", path, e)),
    };
    // A record of another version, or none at all, says nothing.
    let Ok(record) = serde_json::from_slice::<Record>(&text) else { return Ok(Standing::NEVER) };
    let changed = Facts::of(installation, policy)?.changed_since(&record.facts);
    let state = if changed.is_empty() { State::Confirmed } else { State::Changed };
    Ok(Standing { state, confirmed: Some(record.confirmed), opened: Some(record.opened.to_string()), changed })
}

/// Notes that the page with this code was put away, once an identity has opened the newest snapshot.
pub fn confirm(
    installation: &Installation,
    policy: &Policy,
    access: &Access,
    written: &str,
    run: &Run,
) -> Result<Standing, OpsError> {
    let facts = Facts::of(installation, policy)?;
    let name = &policy.app.name;
    if !same_code(written, &facts.code()?) {
        return Err(OpsError::usage(
            format!("{written:?} is not the code of today's page for {name}"),
            format!(
                "it stands at the foot of the page. If it is that one, something has changed since it was printed: print it again with `lifeboat recovery-kit -p {name}`"
            ),
        ));
    }
    let opened = open_newest(access, run)?;
    let record = Record { format: 1, confirmed: run.now, opened, facts };
    let path = file(installation, name.as_str());
    let dir = installation.state_dir.join("kits");
    atomic::create_private_dir(&dir).map_err(|e| OpsError::file("create folder", &dir, e))?;
    let text = serde_json::to_vec_pretty(&record).map_err(|e| OpsError::failed(format!("{e}"), "report this"))?;
    atomic::write(&path, &text, 0o600, IfExists::Replace).map_err(|e| OpsError::file("write", path, e))?;
    standing(installation, policy)
}
