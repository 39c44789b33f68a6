//! Where one could go: the newest snapshots, and what each would cost.

use super::plan::{RollbackRequest, plan};
use super::target::{is_candidate, of_policy};
use crate::base::ids::{SnapshotId, Tag};
use crate::ops::access::{Access, Installation};
use crate::ops::{OpsError, Run};
use crate::policy::Policy;
use crate::repository::chain::full_text;
use crate::repository::format::Outcome;
use crate::sources::env_merge::Side;
use chrono::{DateTime, Utc};
use serde::Serialize;

/// One snapshot to go back to.
#[derive(Debug, Clone, Serialize)]
pub struct Candidate {
    pub snapshot: SnapshotId,
    pub time: DateTime<Utc>,
    pub tags: Vec<Tag>,
    pub outcome: Outcome,
    pub commit: Option<String>,
    /// What would leave, in one sentence.
    pub leaves: Option<String>,
    /// Why one cannot go there.
    pub problem: Option<String>,
}

/// The newest `count`, newest first, as `request` would have them.
pub fn candidates(
    installation: &Installation,
    policy: &Policy,
    access: &Access,
    request: &RollbackRequest,
    count: usize,
    run: &Run,
) -> Result<Vec<Candidate>, OpsError> {
    let mut found = Vec::new();
    for snapshot in of_policy(access, &policy.app.name).into_iter().rev().filter(|s| is_candidate(s)).take(count) {
        run.cancel.check()?;
        let request = RollbackRequest { to: snapshot.header.id.to_string(), ..request.clone() };
        let (leaves, problem) = match plan(installation, policy, access, &request, &|_| Some(Side::Snapshot), run) {
            Ok(plan) => (plan.aim.map(|aim| aim.leaves), None),
            Err(OpsError::Cancelled(e)) => return Err(e.into()),
            Err(e) => (None, Some(full_text(&e))),
        };
        found.push(Candidate {
            snapshot: snapshot.header.id.clone(),
            time: snapshot.header.time,
            tags: snapshot.tags.iter().cloned().collect(),
            outcome: snapshot.header.outcome,
            commit: snapshot.header.git_commit.clone(),
            leaves,
            problem,
        });
    }
    Ok(found)
}
