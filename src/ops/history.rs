//! `history`: what happened to an application's backups, newest first: snapshots and drills, from the repository alone;
//! and every run on this host, from its run history where there is one. A run that made a snapshot or a drill that is
//! there is told with it. Where the policy cannot be read any more, the runs are all there is to show.

use crate::base::ids::{HostName, PolicyName, SnapshotId, Tag};
use crate::ops::OpsError;
use crate::ops::access::Access;
use crate::ops::drill::DrillLine;
use crate::ops::runs::{RunRecord, What};
use crate::repository::chain::full_text;
use crate::repository::format::{Outcome, Trigger};
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::HashMap;

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
        /// The run on this host that took it.
        run: Option<Ran>,
    },
    Drill {
        host: HostName,
        policy: PolicyName,
        #[serde(flatten)]
        drill: DrillLine,
        run: Option<Ran>,
    },
    /// A run that left neither: it failed, or did something else.
    Run {
        #[serde(flatten)]
        run: RunRecord,
    },
}

/// How a snapshot or a drill was run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ran {
    #[serde(skip)]
    id: i64,
    pub trigger: String,
    pub slot: Option<DateTime<Utc>>,
    pub attempt: u32,
    pub begun: DateTime<Utc>,
    pub ended: Option<DateTime<Utc>>,
    pub outcome: Option<String>,
}

impl From<RunRecord> for Ran {
    fn from(run: RunRecord) -> Self {
        let RunRecord { id, trigger, slot, attempt, begun, ended, outcome, .. } = run;
        Self { id, trigger, slot, attempt, begun, ended, outcome }
    }
}

impl Happened {
    pub fn time(&self) -> DateTime<Utc> {
        match self {
            Happened::Snapshot { time, .. } => *time,
            Happened::Drill { drill, .. } => drill.time,
            Happened::Run { run } => run.begun,
        }
    }

    /// Runs are remembered to the second: within one, the order in which they were entered says more than a fraction.
    fn order(&self) -> (i64, i64, DateTime<Utc>) {
        let id = match self {
            Happened::Snapshot { run, .. } | Happened::Drill { run, .. } => run.as_ref().map_or(0, |run| run.id),
            Happened::Run { run } => run.id,
        };
        (self.time().timestamp(), id, self.time())
    }
}

/// What `history` shows.
#[derive(Debug, Clone, Serialize)]
pub struct HistoryReport {
    /// Absent where nobody can say any more which one it is.
    pub repository: Option<String>,
    /// Newest first.
    pub events: Vec<Happened>,
    /// Older ones that were not asked for.
    pub left_out: usize,
    /// Drills that do not verify, and count for nothing.
    pub problems: Vec<String>,
}

/// The newest `last` events. `runs` are this host's, and so many are older than these.
pub fn history(
    access: &Access,
    (runs, older): (Vec<RunRecord>, usize),
    last: Option<usize>,
) -> Result<HistoryReport, OpsError> {
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
        run: None,
    });
    let ours = drills.all.iter().filter(|d| {
        access.policy.as_ref().is_none_or(|p| d.drill.policy == *p)
            && access.host.as_ref().is_none_or(|h| d.drill.host == *h)
    });
    let drilled = ours.map(|d| Happened::Drill {
        host: d.drill.host.clone(),
        policy: d.drill.policy.clone(),
        drill: DrillLine::from(d),
        run: None,
    });
    let mut events: Vec<Happened> = snapshots.chain(drilled).collect();
    tell_runs(&mut events, runs);
    let left_out = newest(&mut events, last) + older;
    Ok(HistoryReport {
        repository: Some(access.repository.storage().describe()),
        events,
        left_out,
        problems: drills.problems.iter().map(|e| full_text(e)).collect(),
    })
}

/// The same without a repository: every run stands for itself.
pub fn of_runs((runs, older): (Vec<RunRecord>, usize), last: Option<usize>) -> HistoryReport {
    let mut events = runs.into_iter().map(|run| Happened::Run { run }).collect();
    let left_out = newest(&mut events, last) + older;
    HistoryReport { repository: None, events, left_out, problems: Vec::new() }
}

/// Sorts, and keeps the newest; how many it lets go.
fn newest(events: &mut Vec<Happened>, last: Option<usize>) -> usize {
    events.sort_by_key(|e| std::cmp::Reverse(e.order()));
    let left_out = last.map_or(0, |last| events.len().saturating_sub(last));
    events.truncate(events.len() - left_out);
    left_out
}

/// Puts each run to what it left, or among the others.
fn tell_runs(events: &mut Vec<Happened>, runs: Vec<RunRecord>) {
    let mut left: HashMap<(What, String), Vec<usize>> = HashMap::new();
    for (at, event) in events.iter().enumerate() {
        let key = match event {
            Happened::Snapshot { snapshot, .. } => (What::Snapshot, snapshot.to_string()),
            Happened::Drill { drill, .. } => (What::Drill, drill.snapshot.to_string()),
            Happened::Run { .. } => continue,
        };
        left.entry(key).or_default().push(at);
    }
    for run in runs {
        let candidates = run.snapshot.as_ref().and_then(|id| left.get(&(run.what, id.clone())));
        let during = |at: &usize| {
            // A snapshot is proved again and again; its drills are told apart by when they were.
            let time = events[*at].time();
            run.what == What::Snapshot || (time >= run.begun && run.ended.is_none_or(|ended| time <= ended))
        };
        match candidates.and_then(|at| at.iter().copied().find(during)).map(|at| &mut events[at]) {
            Some(Happened::Snapshot { run: told @ None, .. } | Happened::Drill { run: told @ None, .. }) => {
                *told = Some(run.into());
            }
            _ => events.push(Happened::Run { run }),
        }
    }
}
