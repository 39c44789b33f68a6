//! The copies that a policy asks for: looked at before a snapshot is taken, and given what they lack behind it.

use super::ahead::{self, CopyHead};
use super::plan::{CopyPlan, plan_with};
use super::run::{CopyReport, run as run_plan};
use super::stock::Stock;
use super::target::{Target, options};
use crate::base::ids::{HostName, ObjectId, Sequence, SnapshotId};
use crate::base::threads;
use crate::ops::access::{Access, AccessRequest};
use crate::ops::storage::StorageOptions;
use crate::ops::verify::{Level, verify};
use crate::ops::{ErrorKind, OpsError, Run};
use crate::policy::Policy;
use crate::policy::model::{CopyTo, RepositoryUrl};
use crate::repository::Repository;
use crate::repository::chain::full_text;
use crate::repository::trust::Pin;
use serde::Serialize;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A copy that does not answer for so long is not waited for: a share whose server is gone blocks for ever.
pub(in crate::ops) const PATIENCE: Duration = Duration::from_secs(60);

/// What became of one copy.
#[derive(Debug, Serialize)]
pub struct CopyOutcome {
    pub to: String,
    pub error: Option<String>,
    pub hint: Option<String>,
    pub report: Option<CopyReport>,
    #[serde(skip)]
    pub kind: Option<ErrorKind>,
}

impl CopyOutcome {
    pub fn of(to: String, done: Result<CopyReport, OpsError>) -> Self {
        match done {
            Ok(report) => Self { to, error: None, hint: None, kind: report.failure(), report: Some(report) },
            Err(e) => Self { to, error: Some(full_text(&e)), hint: e.hint(), kind: Some(e.kind()), report: None },
        }
    }
}

/// How copies are to be made.
#[derive(Debug, Clone, Default)]
pub struct CopyRequest {
    /// Only these snapshots; empty for all.
    pub only: Vec<SnapshotId>,
    /// Read everything at the copy back afterwards.
    pub read_back: bool,
    /// A copy that was there and is gone is begun anew.
    pub begin_anew: bool,
}

/// The plan of one copy.
pub fn plan_one(access: &Access, to: &Target, request: &CopyRequest, run: &Run) -> Result<CopyPlan, OpsError> {
    let here = Stock::list(access.repository.storage().as_ref())?;
    plan_checked(access, &here, to, request, run)
}

fn plan_checked(
    access: &Access,
    here: &Stock,
    to: &Target,
    request: &CopyRequest,
    run: &Run,
) -> Result<CopyPlan, OpsError> {
    let mut plan = plan_with(access, here, to, &request.only, run)?;
    let Some(state) = &access.state else { return Ok(plan) };
    let remembered = state.copy_heads(&plan.to, access.repository.id())?;
    if plan.new && !remembered.is_empty() && !request.begin_anew {
        return Err(OpsError::failed(
            format!("the copy that was at {} is gone", plan.to),
            format!("is its disk mounted? To begin it anew: lifeboat copy --to {}", plan.to),
        ));
    }
    if !plan.new {
        plan.alarms.extend(gone_back(access, &plan, &remembered));
    }
    Ok(plan)
}

/// A copy that held newer snapshots when it was left.
fn gone_back(access: &Access, plan: &CopyPlan, remembered: &[CopyHead]) -> Vec<String> {
    let there = |seen: &CopyHead| plan.there.iter().find(|h| h.host == seen.host && h.policy == seen.policy);
    let is_lost = |seen: &&CopyHead| {
        // What the repository does not hold any more cannot be told from here, and a prune may have taken it there too.
        let still = access.chain.line(&seen.host, &seen.policy).iter().any(|s| s.header_id == seen.header);
        still && there(seen).is_none_or(|now| now.sequence < seen.sequence)
    };
    let text = |seen: &CopyHead| {
        let now = there(seen).map_or_else(|| "none".to_owned(), |now| now.sequence.to_string());
        format!(
            "{}/{}: the copy {} has been rolled back: it was left with snapshot {}, the newest one there was {now}",
            seen.host, seen.policy, plan.to, seen.sequence
        )
    };
    remembered.iter().filter(is_lost).map(text).collect()
}

/// Makes one copy.
pub fn copy(access: &Access, to: &Target, request: &CopyRequest, run: &Run) -> Result<CopyReport, OpsError> {
    let here = Stock::list(access.repository.storage().as_ref())?;
    copy_with(access, &here, to, request, run)
}

fn copy_with(
    access: &Access,
    here: &Stock,
    to: &Target,
    request: &CopyRequest,
    run: &Run,
) -> Result<CopyReport, OpsError> {
    let plan = plan_checked(access, here, to, request, run)?;
    if !plan.is_empty() {
        run.events.step(format!("copying {} snapshots to {}", plan.snapshots.len(), plan.to));
    }
    let mut report = run_plan(access, to, plan, run)?;
    if request.read_back {
        run.events.step(format!("reading {} back", report.to));
        let repository = Repository::open(to.storage.clone(), &Pin::Exactly(access.repository.id().clone()))?;
        let there = Access::of(Arc::new(repository), None, None, &AccessRequest::default())?;
        report.verified = Some(verify(&there, Level::ReadData { percent: 100 }, &request.only, run)?);
    }
    Ok(report)
}

/// Makes every copy of a policy. One that fails does not keep the others from being made.
pub fn every(access: &Access, policy: &Policy, skip: &[String], request: &CopyRequest, run: &Run) -> Vec<CopyOutcome> {
    let mut here = None;
    let mut outcomes = Vec::new();
    for copy in &policy.repository.copies {
        let to = copy.url.to_string();
        if skip.contains(&to) {
            let error = OpsError::failed("it does not answer", "is its server there?");
            outcomes.push(CopyOutcome::of(to, Err(error)));
            continue;
        }
        let done = (|| {
            run.cancel.check()?;
            let here = match &mut here {
                Some(here) => here,
                none => none.insert(Stock::list(access.repository.storage().as_ref())?),
            };
            let target = open_listed(policy, copy)?;
            copy_with(access, here, &target, request, run)
        })();
        outcomes.push(CopyOutcome::of(to, done));
    }
    outcomes
}

/// The storage of a copy of the repository at `from`, reached as the policy says.
pub fn open(policy: Option<&Policy>, from: Option<&RepositoryUrl>, to: &RepositoryUrl) -> Result<Target, OpsError> {
    let options = policy.map_or_else(StorageOptions::stranger, |p| match listed(p, to) {
        Some(copy) => options(&p.repository, copy),
        None => StorageOptions::of(&p.repository),
    });
    Target::open(from, to, &options)
}

fn open_listed(policy: &Policy, copy: &CopyTo) -> Result<Target, OpsError> {
    open(Some(policy), Some(&policy.repository.url), &copy.url)
}

/// What the copies say before a snapshot is taken.
#[derive(Debug, Default)]
pub struct Lookout {
    /// A copy is ahead: the repository has been rolled back.
    pub alarm: Option<String>,
    /// The newest snapshot that a copy holds.
    pub head: Option<CopyHead>,
    pub notices: Vec<String>,
    /// Copies that do not answer at all.
    pub silent: Vec<String>,
}

/// Asks every copy for its newest snapshot of this host and policy. One that cannot be asked is a notice.
pub fn look_out(access: &Access, policy: &Policy, host: &HostName, run: &Run) -> Result<Lookout, OpsError> {
    let mut lookout = Lookout::default();
    let name = &policy.app.name;
    let here = access.chain.head(host, name);
    for copy in &policy.repository.copies {
        let to = copy.url.to_string();
        let asked = open_listed(policy, copy).and_then(|target| {
            let (repository, host, name) = (access.repository.clone(), host.clone(), name.clone());
            let ask = move || ahead::newest(&repository, target.storage.as_ref(), (&host, &name), here);
            within(PATIENCE, run, ask)
        });
        match asked {
            Ok(Some(Ok(Some(head)))) => lookout.hear(access, &to, head, here),
            Ok(Some(Ok(None))) => {}
            Ok(Some(Err(OpsError::Doubt { problem, .. }))) => lookout.alarm = Some(problem),
            Ok(None) => lookout.silent.push(to),
            Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
            Ok(Some(Err(e))) | Err(e) => lookout.notices.push(format!(
                "the copy {to} cannot be asked whether the repository has been rolled back: {}",
                full_text(&e)
            )),
        }
    }
    for to in &lookout.silent {
        let text = "cannot be asked whether the repository has been rolled back: it does not answer";
        lookout.notices.push(format!("the copy {to} {text}"));
    }
    Ok(lookout)
}

impl Lookout {
    fn hear(&mut self, access: &Access, to: &str, head: CopyHead, here: Option<(Sequence, Option<ObjectId>)>) {
        let (host, policy, sequence) = (&head.host, &head.policy, head.sequence);
        // What is damaged in the repository is told as damage, what was pruned is nothing to tell.
        let explained = access.chain.is_damaged(host, policy, sequence) || access.chain.is_removed(&head.header);
        let alarm = match here {
            _ if explained => None,
            Some((newest, Some(hash))) if newest == sequence && hash != head.header => Some(format!(
                "snapshot {sequence} in the repository is not the one that the copy {to} holds: the history has been \
                 replaced"
            )),
            Some((newest, _)) if newest < sequence => Some(format!(
                "the repository has been rolled back: the copy {to} holds snapshot {sequence}, the newest one in the \
                 repository is {newest}"
            )),
            None => Some(format!(
                "the repository has been rolled back: the copy {to} holds snapshot {sequence}, none is in the repository"
            )),
            Some(_) => None,
        };
        if alarm.is_some() {
            self.alarm = alarm;
        }
        if self.head.as_ref().is_none_or(|known| known.sequence < head.sequence) {
            self.head = Some(head);
        }
    }
}

/// The answer of `ask`, unless it takes too long; then its thread is left to itself.
pub(in crate::ops) fn within<T: Send + 'static>(
    patience: Duration,
    run: &Run,
    ask: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, OpsError> {
    let (tell, told) = channel();
    threads::begin(move || tell.send(ask()))?;
    let begun = Instant::now();
    loop {
        match told.recv_timeout(Duration::from_millis(100)) {
            Ok(answer) => return Ok(Some(answer)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) if begun.elapsed() >= patience => return Ok(None),
            Err(RecvTimeoutError::Timeout) => run.cancel.check()?,
        }
    }
}

/// Whether a URL is one of the policy's copies: then it is reached as the policy says.
pub fn listed<'a>(policy: &'a Policy, url: &RepositoryUrl) -> Option<&'a CopyTo> {
    policy.repository.copies.iter().find(|copy| copy.url == *url)
}
