//! `history`: what happened to an application's backups, from the repository alone: snapshots and drills, newest first.

use crate::base::ids::{HostName, PolicyName, SnapshotId, Tag};
use crate::ops::OpsError;
use crate::ops::access::Access;
use crate::ops::drill::DrillLine;
use crate::repository::chain::full_text;
use crate::repository::format::{Outcome, Trigger};
use chrono::{DateTime, Utc};
use serde::Serialize;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub enum Happened {
    Snapshot {
        time: DateTime<Utc>,
        snapshot: SnapshotId,
        host: HostName,
        policy: PolicyName,
        trigger: Trigger,
        outcome: Outcome,
        tags: Vec<Tag>,
        bytes_total: u64,
        bytes_new: u64,
    },
    Drill {
        host: HostName,
        policy: PolicyName,
        #[serde(flatten)]
        drill: DrillLine,
    },
}

impl Happened {
    pub fn time(&self) -> DateTime<Utc> {
        match self {
            Happened::Snapshot { time, .. } => *time,
            Happened::Drill { drill, .. } => drill.time,
        }
    }
}

/// What `history` shows.
#[derive(Debug, Clone, Serialize)]
pub struct HistoryReport {
    pub repository: String,
    /// Newest first.
    pub events: Vec<Happened>,
    /// Older ones that were not asked for.
    pub left_out: usize,
    /// Drills that do not verify, and count for nothing.
    pub problems: Vec<String>,
}

/// The newest `last` events.
pub fn history(access: &Access, last: Option<usize>) -> Result<HistoryReport, OpsError> {
    let drills = access.repository.drills()?;
    let snapshots = access.snapshots().into_iter().map(|s| Happened::Snapshot {
        time: s.header.time,
        snapshot: s.header.id.clone(),
        host: s.header.host.clone(),
        policy: s.header.policy.clone(),
        trigger: s.header.trigger,
        outcome: s.header.outcome,
        tags: s.tags.iter().cloned().collect(),
        bytes_total: s.header.bytes_total,
        bytes_new: s.header.bytes_new,
    });
    let ours = drills.all.iter().filter(|d| {
        access.policy.as_ref().is_none_or(|p| d.drill.policy == *p)
            && access.host.as_ref().is_none_or(|h| d.drill.host == *h)
    });
    let drilled = ours.map(|d| Happened::Drill {
        host: d.drill.host.clone(),
        policy: d.drill.policy.clone(),
        drill: DrillLine::from(d),
    });
    let mut events: Vec<Happened> = snapshots.chain(drilled).collect();
    events.sort_by_key(|e| std::cmp::Reverse(e.time()));
    let left_out = last.map_or(0, |last| events.len().saturating_sub(last));
    events.truncate(events.len() - left_out);
    Ok(HistoryReport {
        repository: access.repository.storage().describe(),
        events,
        left_out,
        problems: drills.problems.iter().map(|e| full_text(e)).collect(),
    })
}
