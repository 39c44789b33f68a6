//! What ran on this host, when, and what came of it (`<state-dir>/history.db`): every run of a policy, by hand or by
//! schedule; the slots that are settled; what is failing now; and notifications that wait to be sent.
//!
//! Invariants: a run is in the book before it begins and after it ends; one whose process is gone without an end was
//! interrupted, whoever looks first says so; a slot is settled in the same transaction that begins its run. Texts hold
//! no secret: errors never do. Losing the book costs what it tells, never a backup.

mod alarm;
mod book;
mod outbox;

pub use alarm::{Change, is_failure};
pub use book::{Begin, Book, End, MADE_WAY, Unfinished};
pub use outbox::Waiting;

use crate::base::ids::PolicyName;
use chrono::{DateTime, Utc};
use serde::Serialize;

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    Snapshot,
    Drill,
    Prune,
    Verify,
    Copy,
    Restore,
    Rollback,
    Guard,
    /// The weekly word that all is well, or not. No run, but it has its slots.
    Weekly,
}

impl What {
    pub const ALL: [What; 9] = [
        What::Snapshot,
        What::Drill,
        What::Prune,
        What::Verify,
        What::Copy,
        What::Restore,
        What::Rollback,
        What::Guard,
        What::Weekly,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            What::Snapshot => "snapshot",
            What::Drill => "drill",
            What::Prune => "prune",
            What::Verify => "verify",
            What::Copy => "copy",
            What::Restore => "restore",
            What::Rollback => "rollback",
            What::Guard => "guard",
            What::Weekly => "weekly",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|what| what.as_str() == text)
    }
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunRecord {
    #[serde(skip)]
    pub id: i64,
    pub policy: PolicyName,
    #[serde(rename = "does")]
    pub what: What,
    /// `manual`, `schedule`, or `retry` of a scheduled one.
    pub trigger: String,
    /// The time that the schedule named.
    pub slot: Option<DateTime<Utc>>,
    pub attempt: u32,
    pub begun: DateTime<Utc>,
    /// Absent while it is at work, and where it was interrupted.
    pub ended: Option<DateTime<Utc>>,
    /// The word of the exit code; or `interrupted`, `timeout`, `pending`. Absent while it is at work.
    pub outcome: Option<String>,
    #[serde(rename = "code")]
    pub exit: Option<u8>,
    pub snapshot: Option<String>,
    pub bytes_total: Option<u64>,
    pub bytes_new: Option<u64>,
    /// `passed` or `failed`, where the run proved a snapshot.
    pub drill: Option<String>,
    pub error: Option<String>,
}

impl RunRecord {
    /// Absent while it is at work.
    pub fn outcome(&self) -> Option<&str> {
        self.outcome.as_deref()
    }

    pub fn is_scheduled(&self) -> bool {
        self.trigger != "manual"
    }
}
