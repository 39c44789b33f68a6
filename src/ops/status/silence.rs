//! Another host notices that nothing comes any more: it has the URL, the right to read there, and no key.
//!
//! What it sees are signed headers and outcomes of drills, verified from the root of the repository down. Which root is
//! the right one it can only know when it is told (`--signer`) or has seen the repository before; that it trusts what it
//! found the first time is said.

use super::judge::Level;
use crate::base::ids::{HostName, PolicyName, SnapshotId};
use crate::ops::access::{Access, AccessRequest, Installation};
use crate::ops::browse::list::problems;
use crate::ops::copy::within;
use crate::ops::drill::{DrillLine, DrillOutcome};
use crate::ops::{OpsError, Outcome, Run};
use crate::repository::chain::full_text;
use crate::repository::state::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// One host's policy in the repository.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LineStatus {
    pub host: HostName,
    pub policy: PolicyName,
    pub level: Level,
    /// The newest complete snapshot.
    pub snapshot: Option<SnapshotId>,
    pub time: Option<DateTime<Utc>>,
    pub age_seconds: Option<u64>,
    /// The newest drill of one of its snapshots.
    pub drill: Option<DrillLine>,
    /// Why it is not green.
    pub problem: Option<String>,
}

/// What another host sees.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Silence {
    pub repository: String,
    pub repository_id: String,
    /// `signer`: the one that was asked for; `known`: the one that was seen before; `first use`: whatever was there.
    pub trusted: &'static str,
    pub level: Level,
    pub max_age_seconds: Option<u64>,
    pub lines: Vec<LineStatus>,
    /// Damaged, forged or missing headers, and a repository that was rolled back.
    pub problems: Vec<String>,
}

/// Looks at a repository from outside. `policy` narrows it, as the request's host does.
pub fn silence(
    installation: &Installation,
    request: &AccessRequest,
    policy: Option<&PolicyName>,
    max_age: Option<Duration>,
    run: &Run,
) -> Result<Silence, OpsError> {
    let mut request = request.clone();
    let pinned = request.signer.is_some();
    let url = request.repository.as_ref().map(ToString::to_string).unwrap_or_default();
    let seen_before = || -> Result<bool, OpsError> {
        if !installation.state_dir.is_dir() {
            return Ok(false);
        }
        Ok(State::open(&installation.state_dir)?.pin(&url)?.is_some())
    };
    let trusted = match pinned {
        true => "signer",
        false if seen_before()? => "known",
        false => "first use",
    };
    // Nothing is restored from it, so whatever is there may be looked at.
    request.trust_on_first_use = !pinned;
    let ask = {
        let (installation, host) = (installation.clone(), request.host.clone());
        move || -> Result<_, OpsError> {
            let access = Access::open(&installation, &request)?;
            let drills = access.repository.drills()?;
            Ok((access, drills, host))
        }
    };
    let late = || {
        let text = format!("{url} does not answer within {} s", PATIENCE.as_secs());
        OpsError::failed(text, "is its server there, and the network?")
    };
    let (access, drills, host) = within(PATIENCE, run, ask)?.ok_or_else(late)??;
    let mut problems: Vec<String> = problems(&access)
        .into_iter()
        .map(|p| p.object.map_or_else(|| p.problem.clone(), |object| format!("{object}: {}", p.problem)))
        .collect();
    problems.extend(drills.problems.iter().map(|e| full_text(e)));
    let mut lines = Vec::new();
    for (host_there, policy_there) in access.chain.lines() {
        if host.as_ref().is_some_and(|h| *h != host_there) || policy.is_some_and(|p| *p != policy_there) {
            continue;
        }
        let newest = access.chain.line(&host_there, &policy_there).iter().rev();
        let newest = newest
            .into_iter()
            .find(|s| s.header.outcome == Outcome::Complete && !s.forked && !access.chain.was_pruned(s));
        let drill = drills.all.iter().rev().find(|d| d.drill.host == host_there && d.drill.policy == policy_there);
        let age = newest.map(|s| u64::try_from((run.now - s.header.time).num_seconds()).unwrap_or(0));
        let mut line = LineStatus {
            host: host_there,
            policy: policy_there,
            level: Level::Green,
            snapshot: newest.map(|s| s.header.id.clone()),
            time: newest.map(|s| s.header.time),
            age_seconds: age,
            drill: drill.map(DrillLine::from),
            problem: None,
        };
        line.judge(max_age);
        lines.push(line);
    }
    let worst = lines.iter().map(|line| line.level).max().unwrap_or(Level::Red);
    Ok(Silence {
        repository: url,
        repository_id: access.repository.id().to_string(),
        trusted,
        level: if problems.is_empty() { worst } else { Level::Red },
        max_age_seconds: max_age.map(|d| d.as_secs()),
        lines,
        problems,
    })
}

impl LineStatus {
    /// Red: no complete snapshot, or too old. Amber: its newest drill failed.
    fn judge(&mut self, max_age: Option<Duration>) {
        let failed = self.drill.as_ref().is_some_and(|d| d.outcome == DrillOutcome::Failed);
        (self.level, self.problem) = match self.age_seconds {
            None => (Level::Red, Some("there is no complete snapshot".to_owned())),
            Some(age) if max_age.is_some_and(|limit| Duration::from_secs(age) > limit) => {
                (Level::Red, Some("nothing has come for too long".to_owned()))
            }
            Some(_) if failed => (Level::Amber, Some("the newest drill failed".to_owned())),
            Some(_) => (Level::Green, None),
        };
    }
}
