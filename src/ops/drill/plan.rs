//! The plan: which snapshot is proved, and how each of its sources. Pure data; `--dry-run` prints it.

use crate::base::ids::{HostName, PolicyName, SnapshotId, SourceName};
use crate::ops::access::{Access, host_name};
use crate::ops::{OpsError, Run};
use crate::policy::Policy;
use crate::repository::chain::Snapshot;
use crate::repository::format::Outcome;
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::path::PathBuf;

/// What shall be drilled.
#[derive(Debug, Clone, Default)]
pub struct DrillRequest {
    /// Absent: the newest complete snapshot.
    pub snapshot: Option<String>,
    /// Only these sources; empty for all. Such a drill proves a part, and its outcome is not recorded.
    pub only: Vec<SourceName>,
    /// Keep what was restored for a look at it.
    pub keep: bool,
    /// Where the page goes; absent: into the state folder.
    pub page: Option<PathBuf>,
    /// Make the plan of a rollback as well: to the drilled snapshot, or to what is named.
    pub rollback: Option<Option<String>>,
}

/// What will be done.
#[derive(Debug, Clone, Serialize)]
pub struct DrillPlan {
    pub snapshot: SnapshotId,
    pub taken: DateTime<Utc>,
    pub host: HostName,
    pub policy: PolicyName,
    pub outcome: Outcome,
    /// Sources that were asked for; empty for all that the snapshot has.
    pub only: Vec<SourceName>,
    /// Of the policy as it is today: what each source will be held against is in the snapshot.
    pub sources: Vec<PlannedProof>,
    pub memory_bytes: u64,
    pub keep: bool,
    #[serde(skip)]
    pub page: Option<PathBuf>,
    /// What a rollback is planned to; absent where none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct PlannedProof {
    pub name: SourceName,
    pub kind: String,
    /// Where and how, in one line.
    pub how: String,
}

/// Makes the plan. The snapshot's manifest is not read for it: that is part of what the drill proves.
pub fn plan(
    access: &Access,
    policy: Option<&Policy>,
    request: &DrillRequest,
    run: &Run,
) -> Result<DrillPlan, OpsError> {
    let snapshot = match &request.snapshot {
        Some(name) => access.resolve(name, run.now)?,
        None => newest_whole(access)?,
    };
    let header = &snapshot.header;
    if let Some(policy) = policy
        && let Some(unknown) = unknown(policy, &request.only)
    {
        let names: Vec<&str> = policy.sources.iter().map(|s| s.name.as_str()).collect();
        return Err(OpsError::usage(
            format!("policy {:?} has no source {unknown:?}", policy.app.name.as_str()),
            format!("its sources are {}", names.join(", ")),
        ));
    }
    let planned = |s: &crate::policy::model::SourcePolicy| PlannedProof {
        name: s.name.clone(),
        kind: s.spec.kind().to_owned(),
        how: how(s.spec.kind()).to_owned(),
    };
    let sources = policy.map(|p| p.sources.iter().filter(|s| wanted(&request.only, &s.name)).map(planned).collect());
    Ok(DrillPlan {
        snapshot: header.id.clone(),
        taken: header.time,
        host: header.host.clone(),
        policy: header.policy.clone(),
        outcome: header.outcome,
        only: request.only.clone(),
        sources: sources.unwrap_or_default(),
        memory_bytes: policy.map_or_else(crate::policy::model::Drill::default, |p| p.drill.clone()).memory,
        keep: request.keep,
        page: request.page.clone(),
        rollback: request.rollback.clone().map(|to| to.unwrap_or_else(|| header.id.to_string())),
    })
}

/// Whether a source is among those that were asked for.
pub fn wanted(only: &[SourceName], name: &SourceName) -> bool {
    only.is_empty() || only.contains(name)
}

fn unknown<'a>(policy: &Policy, only: &'a [SourceName]) -> Option<&'a SourceName> {
    let recovery = |name: &SourceName| name.as_str() == crate::sources::RECOVERY;
    only.iter().find(|name| !recovery(name) && policy.sources.iter().all(|s| s.name != **name))
}

/// What a restore would take today: the newest that lacks nothing, oddly small or not. Of several hosts this one's, where
/// it has any.
fn newest_whole(access: &Access) -> Result<&Snapshot, OpsError> {
    let all = access.snapshots();
    let own = host_name()?;
    let whole = |s: &&&Snapshot| s.header.outcome != Outcome::Partial && !s.forked;
    let newest = all.iter().rev().filter(whole);
    let found = newest.clone().find(|s| s.header.host == own).or_else(|| newest.clone().next());
    found.copied().ok_or_else(|| match all.len() {
        0 => OpsError::failed("there is no snapshot yet", "take the first one with `lifeboat snapshot`"),
        n => OpsError::failed(
            format!("none of {n} snapshots is complete"),
            "name one to drill it as it is; `lifeboat show latest` says what failed",
        ),
    })
}

fn how(kind: &str) -> &'static str {
    match kind {
        "postgres" => "restored into a fresh server of the same major version, compared table by table",
        "redis" => "loaded by a fresh server, keys compared",
        "env" => "parsed as Compose does, held against the policy's rules",
        "certificates" => "parsed: keys, chains, names, expiry",
        "nginx" => "nginx -t on the restored tree, with the restored certificates",
        "files" | "volume" => "every byte read back and compared with the listing",
        "command" => "read back, and given to its check command",
        "git" => "cloned from the bundle, edits applied",
        "compose" => "read by Compose; pinned images looked for",
        _ => "read back",
    }
}
