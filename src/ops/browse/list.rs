//! `list`: every snapshot, from its signed header alone. No key is needed.

use crate::base::ids::{HostName, ObjectId, PolicyName, Sequence, SnapshotId, Tag};
use crate::ops::OpsError;
use crate::ops::access::Access;
use crate::repository::chain::Snapshot;
use crate::repository::format::{Outcome, Trigger};
use crate::repository::layout;
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::HashMap;

/// Which snapshots to list.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// Only those with this tag.
    pub tag: Option<Tag>,
    /// Only the newest so many.
    pub last: Option<usize>,
    /// Only those taken at this time or later …
    pub since: Option<DateTime<Utc>>,
    /// … and at this time or earlier.
    pub until: Option<DateTime<Utc>>,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SnapshotLine {
    pub id: SnapshotId,
    pub time: DateTime<Utc>,
    pub host: HostName,
    pub policy: PolicyName,
    pub sequence: Sequence,
    /// The header's own, and those that records added or took away since.
    pub tags: Vec<Tag>,
    pub trigger: Trigger,
    pub outcome: Outcome,
    pub bytes_total: u64,
    pub bytes_new: u64,
    pub git_commit: Option<String>,
    /// Never pruned.
    pub held: bool,
    /// Another snapshot carries the same sequence.
    pub forked: bool,
    /// Its host was rebuilt or cloned since the snapshot before.
    pub new_lineage: bool,
}

impl SnapshotLine {
    /// What a header says; `before` is the snapshot before it of the same host and policy.
    pub fn of(snapshot: &Snapshot, before: Option<&Snapshot>) -> Self {
        let header = &snapshot.header;
        Self {
            id: header.id.clone(),
            time: header.time,
            host: header.host.clone(),
            policy: header.policy.clone(),
            sequence: header.sequence,
            tags: snapshot.tags.iter().cloned().collect(),
            trigger: header.trigger,
            outcome: header.outcome,
            bytes_total: header.bytes_total,
            bytes_new: header.bytes_new,
            git_commit: header.git_commit.clone(),
            held: snapshot.held,
            forked: snapshot.forked,
            new_lineage: before.is_some_and(|b| b.header.lineage != header.lineage),
        }
    }

    /// The line of a snapshot of `access`.
    pub fn in_chain(access: &Access, snapshot: &Snapshot) -> Self {
        let line = access.chain.line(&snapshot.header.host, &snapshot.header.policy);
        let at = line.iter().position(|s| s.header_id == snapshot.header_id);
        Self::of(snapshot, at.and_then(|at| line.get(at.checked_sub(1)?)))
    }
}

/// Something wrong with what is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The object it was found in.
    pub object: Option<String>,
    pub problem: String,
    /// The snapshot that it costs, where that is known.
    pub snapshot: Option<SnapshotId>,
}

/// What `list` shows.
#[derive(Debug, Clone, Serialize)]
pub struct ListReport {
    pub repository: String,
    /// Oldest first.
    pub snapshots: Vec<SnapshotLine>,
    /// Snapshots that the filter left out.
    pub left_out: usize,
    /// Damaged, forged, missing or forked headers and records, and a repository that was rolled back. Not empty: exit 4.
    pub problems: Vec<Problem>,
}

/// Lists the snapshots of a repository, of one policy where one is named.
pub fn list(access: &Access, filter: &ListFilter) -> Result<ListReport, OpsError> {
    let all = access.snapshots();
    let wanted = |s: &&&Snapshot| {
        filter.tag.as_ref().is_none_or(|tag| s.tags.contains(tag))
            && filter.since.is_none_or(|since| s.header.time >= since)
            && filter.until.is_none_or(|until| s.header.time <= until)
    };
    let mut snapshots: Vec<&Snapshot> = all.iter().filter(wanted).copied().collect();
    if let Some(last) = filter.last {
        snapshots.drain(..snapshots.len().saturating_sub(last));
    }
    let mut before: HashMap<ObjectId, &Snapshot> = HashMap::new();
    for (host, policy) in access.chain.lines() {
        before.extend(access.chain.line(&host, &policy).windows(2).map(|pair| (pair[1].header_id, &pair[0])));
    }
    Ok(ListReport {
        repository: access.repository.storage().describe(),
        left_out: all.len() - snapshots.len(),
        snapshots: snapshots.into_iter().map(|s| SnapshotLine::of(s, before.get(&s.header_id).copied())).collect(),
        problems: problems(access),
    })
}

/// What is wrong with the headers that `access` is about.
pub fn problems(access: &Access) -> Vec<Problem> {
    let alarm = |problem: &String| Problem { object: None, problem: problem.clone(), snapshot: None };
    let mut problems: Vec<Problem> = access.alarms.iter().map(alarm).collect();
    let ours = |key: &_| {
        layout::parse_header(key).is_none_or(|place| {
            access.policy.as_ref().is_none_or(|p| place.policy == *p)
                && access.host.as_ref().is_none_or(|h| place.host == *h)
        })
    };
    let found = access.chain.problems.iter().filter(|p| ours(&p.key));
    problems.extend(found.map(|p| Problem {
        object: Some(p.key.to_string()),
        problem: p.problem.clone(),
        snapshot: p.snapshot.clone(),
    }));
    problems
}
