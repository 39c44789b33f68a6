//! Drills in the repository: written by a key with the role `drill`, read by anybody.

use super::report::DrillReport;
use crate::base::ids::{HostName, ObjectId, SnapshotId};
use crate::ops::access::{Access, AccessRequest, Installation};
use crate::ops::{OpsError, Run, vouch};
use crate::pipeline::crypt::{Identities, Recipients};
use crate::repository::RepositoryError;
use crate::repository::chain::Snapshot;
use crate::repository::drills::{Drills, StoredDrill};
use crate::repository::format::{CheckCounts, DrillObject, DrillOutcome, FORMAT, Manifest, Role};
use crate::repository::keys::HostKey;
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What `show` and `history` say of one drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillLine {
    pub snapshot: SnapshotId,
    pub time: DateTime<Utc>,
    pub drilled_on: HostName,
    pub outcome: DrillOutcome,
    pub checks: CheckCounts,
    pub seconds: f64,
    pub recovery_seconds: f64,
}

impl From<&StoredDrill> for DrillLine {
    fn from(stored: &StoredDrill) -> Self {
        let drill = &stored.drill;
        Self {
            snapshot: drill.snapshot.clone(),
            time: drill.time,
            drilled_on: drill.drilled_on.clone(),
            outcome: drill.outcome,
            checks: drill.checks,
            seconds: drill.seconds,
            recovery_seconds: drill.recovery_seconds,
        }
    }
}

/// Signs and stores what a drill found.
pub(super) fn store(
    installation: &Installation,
    access: &Access,
    request: &AccessRequest,
    snapshot: &Snapshot,
    manifest: &Manifest,
    report: &DrillReport,
    run: &Run,
) -> Result<StoredDrill, OpsError> {
    let host_key = HostKey::load(&installation.host_key())?;
    let header = &snapshot.header;
    let repository = vouch::signer(installation, access, &host_key, request, (Role::Drill, &header.host), run)?;
    let recipients = Recipients::parse(&manifest.recipients).map_err(RepositoryError::from)?;
    let details = serde_json::to_vec(report)
        .map_err(|e| OpsError::failed(format!("the report cannot be written: {e}"), "this is a defect of Lifeboat"))?;
    let took = TimeDelta::milliseconds((report.seconds * 1000.0) as i64);
    let drill = DrillObject {
        kind: "drill".to_owned(),
        format: FORMAT,
        requires: Vec::new(),
        repository: repository.id().clone(),
        snapshot: header.id.clone(),
        header: snapshot.header_id,
        host: header.host.clone(),
        policy: header.policy.clone(),
        drilled_on: report.drilled_on.clone(),
        time: (report.started + took).trunc_subsecs(0),
        outcome: report.outcome,
        checks: report.checks,
        seconds: report.seconds,
        recovery_seconds: report.recovery_seconds,
        details: ObjectId([0; 32]),
        details_bytes: 0,
        tool: format!("lifeboat {}", env!("CARGO_PKG_VERSION")),
    };
    Ok(repository.add_drill(&host_key.signing, drill, &details, &recipients)?)
}

/// The drills of one snapshot, oldest first; those that speak of another header of that id do not count.
pub fn drills_of(access: &Access, snapshot: &Snapshot) -> Result<Vec<DrillLine>, OpsError> {
    let drills = access.repository.drills_of(&snapshot.header.id)?;
    let ours = drills.all.iter().filter(|d| d.drill.header == snapshot.header_id);
    Ok(ours.map(DrillLine::from).collect())
}

/// The headers of snapshots that have passed a drill and not failed one since.
pub fn newest_passed(drills: &Drills) -> HashSet<ObjectId> {
    let mut passed = HashSet::new();
    for stored in &drills.all {
        match stored.drill.outcome {
            DrillOutcome::Passed => passed.insert(stored.drill.header),
            DrillOutcome::Failed => passed.remove(&stored.drill.header),
        };
    }
    passed
}

/// The report of a drill that was stored.
pub fn details(access: &Access, stored: &StoredDrill, identities: &Identities) -> Result<DrillReport, OpsError> {
    let plain = access.repository.drill_details(&stored.drill, identities)?;
    serde_json::from_slice(&plain).map_err(|e| {
        let problem = format!("it does not parse: {e}");
        let key = crate::repository::layout::drill_details(stored.drill.details);
        RepositoryError::Damaged { key, problem }.into()
    })
}
