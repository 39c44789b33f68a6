//! L3: what Lifeboat does: each operation a plan (pure data) and a run. Only this layer sees both sources and the
//! repository.
//!
//! - [`access`]: opening a repository as an installed host, as a sealed one, or as a stranger with an identity
//! - [`foresight`]: what opening it will ask for, asked at once
//! - [`storage`]: which storage a URL names, and how it is reached
//! - [`probe`]: what the server of a repository really does
//! - [`setup`]: `init`: keys, policy, repository
//! - [`check`]: is everything that a policy names within reach
//! - [`doctor`]: what would go wrong the next time, and what has gone wrong unseen
//! - [`kit`]: the recovery kit: a page for whoever restores without having set it up
//! - [`snapshot`]: capture every source of a policy
//! - [`verify`]: is everything that is stored still what it was
//! - [`code`]: names on the application's code, given and let go
//! - [`copy`]: the same repository once more, elsewhere
//! - [`prune`]: retention, and deleting what nothing references
//! - [`repair`]: an index made anew
//! - [`browse`]: list, show, ls, cat, find, diff
//! - [`mark`]: tag, untag, hold, release
//! - [`restore`]: a snapshot's streams into a folder
//! - [`rollback`]: the whole application as it was
//! - [`recover`]: the same onto a bare machine
//! - [`streams`]: a snapshot's streams as sources read them
//! - [`history`]: what happened to an application's backups
//! - [`runs`]: every run on this host, by hand or by schedule
//! - [`notify`]: who hears of it
//! - [`drill`]: a snapshot restored into throw-away services, and held against its facts
//! - [`health`]: the policy's health checks
//! - [`status`]: what a loss would cost now, and whether everything is fine
//! - [`transaction`]: changing the live application so that it ends new or old, never between

pub mod access;
pub mod browse;
pub mod check;
pub mod code;
pub mod copy;
mod crew;
mod crontab;
pub mod discover;
pub mod doctor;
pub mod drill;
pub mod foresight;
pub mod health;
pub mod history;
pub mod hooks;
pub mod kit;
pub mod mark;
pub mod notify;
pub mod probe;
pub mod prune;
pub mod recover;
pub mod repair;
pub mod reserve;
pub mod restore;
pub mod rollback;
pub mod runner;
pub mod runs;
mod script;
pub mod setup;
pub mod snapshot;
pub mod status;
pub mod storage;
pub mod streams;
pub mod transaction;
pub mod verify;
mod vouch;

use crate::base::cancel::{Cancel, Cancelled};
use crate::base::events::Events;
use crate::base::ids::SnapshotId;
use crate::base::threads::{self, NoThread};
use crate::repository::RepositoryError;
use crate::repository::chain::NameError;
use crate::sources::SourceError;
use crate::storage::StorageError;
use chrono::{DateTime, Utc};
use std::io::ErrorKind as IoErrorKind;
use std::path::PathBuf;

pub use crate::repository::format::{Outcome, SourceOutcome, Trigger};

/// What every run gets from its caller.
#[derive(Clone, Debug)]
pub struct Run {
    pub events: Events,
    pub cancel: Cancel,
    pub now: DateTime<Utc>,
}

/// Which tier a failure belongs to; the cli maps it to an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    Failed,
    Usage,
    /// Something stored is damaged or forged.
    Integrity,
    /// Another run holds this policy.
    Busy,
    /// Stopped by a signal.
    Cancelled,
}

/// Why an operation failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("source {name:?}")]
    Source {
        name: String,
        #[source]
        source: SourceError,
    },
    /// A snapshot could not be read. `place` says which part of it: empty, or `: source "db": stream "shop.dump"`.
    #[error("snapshot {snapshot}{place}")]
    InSnapshot {
        snapshot: SnapshotId,
        place: String,
        #[source]
        source: Box<RepositoryError>,
    },
    /// A copy could not be made.
    #[error("copy to {to}")]
    Copy {
        to: String,
        #[source]
        source: Box<OpsError>,
    },
    /// Something is damaged, hidden or doubtful, and what was asked for must not be done on top of it.
    #[error("{problem}")]
    Doubt { problem: String, hint: String },
    #[error("another run is at work on policy {policy:?}")]
    Busy { policy: String },
    /// A transaction was cut short, and must be settled first.
    #[error("transaction {id} of policy {policy:?} was cut short: the application may be between two states")]
    Pending { id: String, policy: String, command: &'static str },
    /// Writers are at work where something must be alone.
    #[error("a snapshot is being written to {location}")]
    Writing { location: String },
    /// One daemon is enough.
    #[error("another daemon serves {}", dir.display())]
    Serving { dir: PathBuf },
    #[error("{what} needs the identity, and none is at hand")]
    NoIdentity { what: &'static str },
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// What was asked for cannot be meant.
    #[error("{problem}")]
    Usage { problem: String, hint: Option<String> },
    #[error("{problem}")]
    Failed { problem: String, hint: Option<String> },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl From<NoThread> for OpsError {
    fn from(e: NoThread) -> Self {
        OpsError::failed(e.to_string(), threads::HINT)
    }
}

impl From<StorageError> for OpsError {
    fn from(e: StorageError) -> Self {
        OpsError::Repository(e.into())
    }
}

impl OpsError {
    pub fn usage(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        OpsError::Usage { problem: problem.into(), hint: Some(hint.into()) }
    }

    pub fn failed(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        OpsError::Failed { problem: problem.into(), hint: Some(hint.into()) }
    }

    pub fn file(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        OpsError::File { action, path: path.into(), source }
    }

    /// The tier of the failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            OpsError::Copy { source, .. } => source.kind(),
            OpsError::Repository(RepositoryError::Cancelled(_))
            | OpsError::Source { source: SourceError::Cancelled(_), .. }
            | OpsError::Cancelled(_) => ErrorKind::Cancelled,
            OpsError::Repository(e) if e.is_integrity() => ErrorKind::Integrity,
            OpsError::InSnapshot { source, .. } if source.is_integrity() => ErrorKind::Integrity,
            OpsError::Name(NameError::Forked { .. }) | OpsError::Doubt { .. } => ErrorKind::Integrity,
            OpsError::Repository(RepositoryError::ForeignRepository { .. }) => ErrorKind::Integrity,
            OpsError::Name(_) | OpsError::Usage { .. } | OpsError::NoIdentity { .. } => ErrorKind::Usage,
            OpsError::Source { source: SourceError::Refused { .. }, .. } => ErrorKind::Usage,
            OpsError::Repository(RepositoryError::Unpinned { .. }) => ErrorKind::Usage,
            OpsError::Busy { .. } | OpsError::Writing { .. } | OpsError::Pending { .. } | OpsError::Serving { .. } => {
                ErrorKind::Busy
            }
            OpsError::Repository(RepositoryError::Pruning { .. }) => ErrorKind::Busy,
            _ => ErrorKind::Failed,
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            OpsError::Copy { source, .. } => source.hint(),
            OpsError::Repository(e) => e.hint(),
            OpsError::InSnapshot { source, .. } => source.hint(),
            OpsError::Source { source, .. } => source.way_out(),
            OpsError::Usage { hint, .. } | OpsError::Failed { hint, .. } => hint.clone(),
            OpsError::Doubt { hint, .. } => Some(hint.clone()),
            OpsError::Busy { .. } => Some("wait for it to end; `lifeboat list` shows its snapshot then".to_owned()),
            OpsError::Pending { policy, command, .. } => {
                Some(format!("`lifeboat -p {policy} {command} --resume` finishes it or takes it back"))
            }
            OpsError::Writing { .. } => Some("wait for it to end".to_owned()),
            OpsError::Serving { .. } => Some(
                "one daemon runs the policies of a state folder; end it first, or name another --state-dir".to_owned(),
            ),
            OpsError::NoIdentity { .. } => Some(
                "name it with --identity FILE or LIFEBOAT_IDENTITY; on a sealed host it lies elsewhere, on purpose"
                    .to_owned(),
            ),
            OpsError::File { source, .. } => match source.kind() {
                IoErrorKind::StorageFull | IoErrorKind::QuotaExceeded => {
                    Some("free space there, or name a folder on another disk".to_owned())
                }
                IoErrorKind::ReadOnlyFilesystem => Some("it is mounted read-only: name another folder".to_owned()),
                IoErrorKind::PermissionDenied => Some("run as an account that may do this".to_owned()),
                _ => None,
            },
            OpsError::Name(NameError::NotFound { nearest, .. }) if !nearest.is_empty() => {
                Some(format!("there are {}, …; `lifeboat list` shows all", nearest.join(", ")))
            }
            OpsError::Name(NameError::Ambiguous { .. }) => Some("write more of the id".to_owned()),
            OpsError::Name(NameError::Empty) => Some("take the first one with `lifeboat snapshot`".to_owned()),
            OpsError::Name(NameError::Forked { .. }) => Some("name the one that you mean by its id".to_owned()),
            _ => None,
        }
    }
}
