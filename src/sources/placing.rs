//! Putting a captured source back where it came from, as steps of one transaction.
//!
//! The order, by the operation: `plan` (nothing is changed) → `prepare` (beside the live thing, services still run) →
//! the services are stopped → `switch` (short) → the services are started and proved → `keep` for a time → `discard_old`.
//! When something fails: `back` for whatever was switched, in reverse, then `discard_new`.
//!
//! Invariants: every step is idempotent, and each undo works whether or not its step had begun or ended, because a
//! process may be killed between any two calls; all names that a step uses are in the [`Intent`], which is made durable
//! before the first change; `switch` leaves the replaced thing whole, so that `back` is as short as `switch`.

use super::SourceError;
use super::extract::Report;
use super::project::Places;
use super::streams::Streams;
use crate::base::cancel::Cancel;
use crate::base::events::Events;
use crate::base::ids::{SnapshotId, SourceName};
use crate::policy::Policy;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is put back of a source, where not all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Paths of trees, and what is below them, as absolute paths; empty for everything.
    #[serde(default)]
    pub paths: Vec<PathBuf>,
    /// Tables of a Postgres source, as `schema.name`; empty for everything.
    #[serde(default)]
    pub tables: Vec<String>,
    /// A Postgres database's name beside the live one, which then stays untouched.
    #[serde(default)]
    pub database_as: Option<String>,
    /// There is no room beside: what is there is removed first, then replaced.
    #[serde(default)]
    pub replace: bool,
    /// Trees become exactly what was captured: what is newer goes. Else changed and missing files return and newer stay.
    #[serde(default)]
    pub exact: bool,
    /// Device nodes, setuid bits and other attributes of the system too.
    #[serde(default)]
    pub privileged: bool,
    /// A store becomes empty, and nothing of what was captured returns.
    #[serde(default)]
    pub flush: bool,
    /// A database server must be of the captured major version: code that returns with the data may start an older one
    /// on its data folder, and that one would not come up.
    #[serde(default)]
    pub same_major: bool,
}

/// What is counted of the data that leaves the live application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Rows,
    Keys,
    Files,
}

/// Data of today that is not what was captured, and leaves the live application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// `orders`, `shop.public.orders` where a source has several databases, `keys of database 0`, a tree.
    pub what: String,
    pub unit: Unit,
    /// How many more there are today than were captured; fewer are negative.
    pub more: i64,
    /// Counted; otherwise estimated.
    pub exact: bool,
}

/// Room that preparing takes on one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// For people: `/var/lib/postgresql in container shop_db`.
    pub place: String,
    pub bytes_needed: u64,
    /// The file system, where it is one of this machine: several places may share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<u64>,
    /// Absent where it could not be asked.
    pub bytes_free: Option<u64>,
}

impl Room {
    /// What is free of a file system; nothing where it does not count.
    pub fn free_of(stat: &rustix::fs::StatVfs) -> Option<u64> {
        (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The file system that a path is on, or will be.
    pub fn device_of(path: &Path) -> Option<u64> {
        let there = path.ancestors().find(|p| p.exists())?;
        std::fs::metadata(there).ok().map(|meta| meta.dev())
    }
}

/// What putting a source back will do: pure data, kept in the journal. Names that steps use are made here, once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Intent {
    pub source: SourceName,
    pub kind: String,
    /// For people, one line each: `database "shop" is replaced; the one of today stays as "shop__lifeboat_old_…"`.
    pub lines: Vec<String>,
    /// What a person should know first.
    pub warnings: Vec<String>,
    pub room: Vec<Room>,
    /// What leaves, as far as it can be counted without holding the plan up.
    #[serde(default)]
    pub losses: Vec<Loss>,
    /// Containers (by name) that this source itself stops in `switch` and starts again: a data store whose files are
    /// swapped.
    #[serde(default)]
    pub restarts: Vec<String>,
    /// What the steps need to know; the source's own form.
    pub state: Value,
}

/// What every step gets.
pub struct Scene<'a> {
    /// The transaction's id, such as `20261119T020000Z-1a2b3c4d`: part of every name that is made.
    pub id: &'a str,
    pub name: &'a SourceName,
    pub policy: &'a Policy,
    pub places: &'a Places,
    /// A folder of the transaction's own below the state folder, 0700; there until the old things are discarded.
    pub folder: &'a std::path::Path,
    pub events: &'a Events,
    pub cancel: &'a Cancel,
    pub now: DateTime<Utc>,
}

/// What is put back.
pub struct Stored<'a> {
    pub snapshot: &'a SnapshotId,
    pub streams: &'a dyn Streams,
    pub facts: &'a Value,
}

/// One source that can be put back.
pub trait Placing: Send + Sync {
    /// What would be done, and every reason why it cannot be. Changes nothing.
    fn plan(&self, scene: &Scene<'_>, stored: &Stored<'_>, part: &Part) -> Result<Intent, SourceError>;

    /// Makes the new thing beside the live one. The services still run.
    fn prepare(&self, scene: &Scene<'_>, stored: &Stored<'_>, intent: &Intent) -> Result<(), SourceError>;

    /// The services have stopped: what was written since `prepare` looked is looked at once more. Short.
    fn settle(&self, _scene: &Scene<'_>, _stored: &Stored<'_>, _intent: &Intent) -> Result<(), SourceError> {
        Ok(())
    }

    /// Exchanges the new for the live one.
    fn switch(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError>;

    /// After the services were started: is what is there what was meant to be (`loading finished, counts equal`)?
    fn confirm(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError>;

    /// What of a tree that was switched is not as it was captured.
    fn differs(&self, _scene: &Scene<'_>, _intent: &Intent) -> Result<Option<Report>, SourceError> {
        Ok(None)
    }

    /// Undoes `switch`, as far as it came.
    fn back(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError>;

    /// Removes what `prepare` made, as far as it came.
    fn discard_new(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError>;

    /// Removes what was replaced, when it has been kept long enough.
    fn discard_old(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError>;
}
