//! Judging: green, amber or red for everything that was seen, with the reason and the way out. A pure function.
//!
//! Red is what a person must not sleep over: a loss now would cost more than the policy promises, or nobody could bring
//! the application back. Amber is what will become red, or would cost dearly on a bad day. The rules stand beside each
//! check, and in docs/service.md.

use super::headline;
use super::ran::Ran;
use super::sight::{Sight, SnapshotSight};
use crate::base::ids::{HostName, SnapshotId};
use crate::base::time::{relative, rfc3339};
use crate::base::units::{human_duration, human_size};
use crate::ops::drill::{DrillLine, DrillOutcome};
use crate::ops::health::Health;
use crate::ops::runs::What;
use crate::ops::storage::is_tight;
use crate::policy::Policy;
use crate::policy::model::When;
use crate::policy::schedule::{coming, delay};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use std::time::Duration;

/// A snapshot that is late by no more than this may be on its way.
const ON_ITS_WAY: TimeDelta = TimeDelta::minutes(15);
/// By then every retry of it is over.
const TOO_LATE: TimeDelta = TimeDelta::hours(2);
/// A verification, or a copy, may be so late.
const A_DAY: TimeDelta = TimeDelta::days(1);
/// Names in one line.
const NAMED: usize = 5;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Green,
    Amber,
    Red,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Green => "green",
            Level::Amber => "amber",
            Level::Red => "red",
        }
    }
}

/// One thing that was judged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub check: &'static str,
    pub level: Level,
    pub detail: String,
    /// The way out.
    pub hint: Option<String>,
}

/// What would be gone: everything since this snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lost {
    /// Absent where a run says that it took one, and nobody has looked since.
    pub snapshot: Option<SnapshotId>,
    pub since: DateTime<Utc>,
    pub seconds: u64,
}

/// What a loss would cost now (RPO). Absent parts are everything.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Loss {
    /// When the whole server is gone.
    pub server: Option<Lost>,
    /// When only the application is: what lies on this server is still there.
    pub application: Option<Lost>,
}

/// What it takes to come back (RTO), as it was measured last.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recovery {
    pub seconds: f64,
    pub measured: DateTime<Utc>,
    /// `drill`, `restore` or `rollback`.
    pub by: &'static str,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Next {
    pub does: What,
    pub at: DateTime<Utc>,
}

/// A repository in short.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RepositoryStatus {
    pub url: String,
    /// Whether it outlives this machine.
    pub elsewhere: bool,
    /// When it last answered.
    pub reached: Option<DateTime<Utc>>,
    pub snapshots: u64,
    /// Everything that is stored there, of other policies as well.
    pub stored_bytes: Option<u64>,
}

/// All of it for one policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyStatus {
    pub policy: String,
    pub host: Option<String>,
    pub level: Level,
    pub headline: String,
    /// When it was last looked at.
    pub looked: Option<DateTime<Utc>>,
    pub loss: Loss,
    pub recovery: Option<Recovery>,
    pub not_covered: Vec<String>,
    pub checks: Vec<Check>,
    pub repository: Option<RepositoryStatus>,
    pub newest: Option<SnapshotSight>,
    pub drill: Option<DrillLine>,
    pub health: Vec<Health>,
    /// The soonest first.
    pub next: Vec<Next>,
}

/// A policy that cannot be read: nothing is known, and nothing can run.
pub fn unreadable(name: String, problem: String) -> PolicyStatus {
    let hint = Some("`lifeboat policy check` says where".to_owned());
    let checks = vec![Check { check: "policy", level: Level::Red, detail: problem, hint }];
    PolicyStatus {
        policy: name,
        host: None,
        level: Level::Red,
        headline: headline::UNREADABLE.to_owned(),
        looked: None,
        loss: Loss { server: None, application: None },
        recovery: None,
        not_covered: Vec::new(),
        checks,
        repository: None,
        newest: None,
        drill: None,
        health: Vec::new(),
        next: Vec::new(),
    }
}

/// A policy that nobody has looked at yet.
pub fn unseen(policy: &Policy, ran: &Ran, now: DateTime<Utc>) -> PolicyStatus {
    let name = policy.app.name.to_string();
    let hint = Some(format!("`lifeboat -p {name} status` looks"));
    let detail = "nobody has looked yet".to_owned();
    let mut checks = vec![Check { check: "repository", level: Level::Amber, detail, hint }];
    for (what, since) in &ran.failing {
        let detail = format!("{} has failed since {}", what.as_str(), rfc3339(*since));
        let hint = Some(format!("`lifeboat -p {name} history`"));
        checks.push(Check { check: "runs", level: failing(*what), detail, hint });
    }
    PolicyStatus {
        level: checks.iter().map(|c| c.level).max().unwrap_or(Level::Amber),
        headline: headline::UNSEEN.to_owned(),
        not_covered: policy.external.clone(),
        checks,
        next: next(policy, None, now),
        ..unreadable(name, String::new())
    }
}

/// How bad it is that runs of this kind fail: red, where the next restore may be at stake.
fn failing(what: What) -> Level {
    match what {
        What::Snapshot | What::Drill | What::Verify => Level::Red,
        _ => Level::Amber,
    }
}

/// Judges what was seen of a policy. `served`: a service runs here. `max_age`: instead of what the schedule promises.
pub fn judge(
    policy: &Policy,
    sight: &Sight,
    ran: &Ran,
    served: bool,
    max_age: Option<Duration>,
    now: DateTime<Utc>,
) -> PolicyStatus {
    let mut judge = Judge { policy, sight, ran, now, checks: Vec::new() };
    judge.snapshots(max_age);
    judge.runs();
    judge.service(served);
    judge.drill();
    judge.verify();
    judge.repository();
    judge.places();
    judge.room();
    judge.recipients();
    judge.kit();
    judge.transaction();
    judge.coverage();
    judge.health();
    let (loss, recovery, not_covered) = (judge.loss(), judge.recovery(), judge.not_covered());
    let checks = judge.checks;
    let repository = &sight.repository;
    let mut status = PolicyStatus {
        policy: policy.app.name.to_string(),
        host: Some(sight.host.to_string()),
        level: checks.iter().map(|c| c.level).max().unwrap_or(Level::Green),
        headline: String::new(),
        looked: Some(sight.looked),
        loss,
        recovery,
        not_covered,
        checks,
        repository: Some(RepositoryStatus {
            url: repository.url.clone(),
            elsewhere: repository.elsewhere,
            reached: repository.reached,
            snapshots: repository.snapshots.len() as u64,
            stored_bytes: repository.stored_bytes,
        }),
        newest: sight.complete().next_back().cloned(),
        drill: repository.drills.last().cloned(),
        health: sight.health.clone(),
        next: next(policy, Some(&sight.host), now),
    };
    status.headline = headline::of(&status);
    status
}

/// When everything of a policy runs next.
fn next(policy: &Policy, host: Option<&HostName>, now: DateTime<Utc>) -> Vec<Next> {
    let schedule = &policy.schedule;
    let later = host.map_or(TimeDelta::zero(), |host| delay(host, &policy.app.name, schedule.jitter));
    let all = [
        (What::Snapshot, &schedule.snapshot),
        (What::Drill, &schedule.drill),
        (What::Prune, &schedule.prune),
        (What::Verify, &schedule.verify),
    ];
    let of = |(does, when): (What, &When)| Some(Next { does, at: coming(schedule, when, now - later)? + later });
    let mut next: Vec<Next> = all.into_iter().filter_map(of).collect();
    next.sort_by_key(|next| (next.at, next.does));
    next
}

struct Judge<'a> {
    policy: &'a Policy,
    sight: &'a Sight,
    ran: &'a Ran,
    now: DateTime<Utc>,
    checks: Vec<Check>,
}

impl Judge<'_> {
    fn add(&mut self, check: &'static str, level: Level, detail: impl Into<String>, hint: Option<String>) {
        self.checks.push(Check { check, level, detail: detail.into(), hint });
    }

    fn green(&mut self, check: &'static str, detail: impl Into<String>) {
        self.add(check, Level::Green, detail, None);
    }

    fn ago(&self, time: DateTime<Utc>) -> String {
        relative(time, self.now)
    }

    fn command(&self, words: &str) -> String {
        format!("`lifeboat -p {} {words}`", self.policy.app.name)
    }

    /// The newest complete snapshot: in the repository, or taken since it was looked at.
    fn newest(&self) -> Option<Lost> {
        let seen = self.sight.complete().next_back();
        let lost = |snapshot: Option<SnapshotId>, since: DateTime<Utc>| {
            let seconds = (self.now - since).num_seconds();
            Lost { snapshot, since, seconds: u64::try_from(seconds).unwrap_or(0) }
        };
        let since = self.ran.done.get(&What::Snapshot).filter(|run| {
            run.begun > self.sight.repository.reached.unwrap_or_default() && seen.is_none_or(|s| run.begun > s.time)
        });
        match (since, seen) {
            (Some(run), _) => Some(lost(run.snapshot.as_ref().and_then(|id| id.parse().ok()), run.begun)),
            (None, Some(seen)) => Some(lost(Some(seen.id.clone()), seen.time)),
            (None, None) => None,
        }
    }

    /// Red: none, or late by more than two hours (or older than what was asked for). Amber: late, nothing scheduled, or
    /// the newest one is not complete.
    fn snapshots(&mut self, max_age: Option<Duration>) {
        let Some(newest) = self.newest() else {
            if self.sight.repository.reached.is_none() && self.sight.repository.problem.is_some() {
                return self.add("snapshots", Level::Red, "what there is cannot be seen", None);
            }
            let hint = Some(self.command("snapshot"));
            return self.add("snapshots", Level::Red, "there is no complete snapshot of this host", hint);
        };
        let name = newest.snapshot.as_ref().map_or_else(String::new, |id| format!("{id}, "));
        let text = format!("the newest complete one is {name}{}", self.ago(newest.since));
        let why = Some(format!("see {}, or take one with {}", self.command("history"), self.command("snapshot")));
        let schedule = &self.policy.schedule;
        let due = coming(schedule, &schedule.snapshot, newest.since)
            .map(|slot| slot + delay(&self.sight.host, &self.policy.app.name, schedule.jitter));
        let late = due.map_or(TimeDelta::zero(), |due| self.now - due);
        let at_work = self.ran.at_work(What::Snapshot).is_some();
        let was_due = due.map_or_else(String::new, |due| format!("; the next was due {}", rfc3339(due)));
        if let Some(limit) = max_age {
            let (level, hint) = match Duration::from_secs(newest.seconds) > limit {
                true => (Level::Red, why),
                false => (Level::Green, None),
            };
            self.add("snapshots", level, format!("{text}; {} is the limit", human_duration(limit)), hint);
        } else if due.is_none() {
            let hint = Some("set `snapshot` in [schedule]".to_owned());
            self.add("snapshots", Level::Amber, format!("{text}; nothing is scheduled"), hint);
        } else if late > TOO_LATE && !at_work {
            self.add("snapshots", Level::Red, format!("{text}{was_due}"), why);
        } else if late > ON_ITS_WAY {
            let now = if at_work { ", and is being taken" } else { "" };
            self.add("snapshots", Level::Amber, format!("{text}{was_due}{now}"), why);
        } else {
            self.green("snapshots", text);
        }
        let last = self.sight.repository.snapshots.last().filter(|last| last.time > newest.since);
        if let Some(last) = last {
            let word = match last.outcome {
                crate::ops::Outcome::Partial => "partial: a source failed",
                crate::ops::Outcome::Suspect => "suspect: something is oddly small",
                crate::ops::Outcome::Complete => "one of two with the same number",
            };
            let hint = Some(self.command(&format!("show {}", last.id)));
            self.add("snapshots", Level::Amber, format!("the newest one, {}, is {word}", last.id), hint);
        }
    }

    /// Red: snapshots, drills or verifications fail. Amber: anything else does.
    fn runs(&mut self) {
        if !self.ran.known {
            return;
        }
        let all = self.ran.failing.clone();
        for (what, since) in &all {
            let run = self.ran.newest.get(what).and_then(|run| run.error.as_deref());
            let why = run.map_or_else(String::new, |error| format!(": {error}"));
            let text = format!("{} has failed since {}{why}", what.as_str(), rfc3339(*since));
            self.add("runs", failing(*what), text, Some(self.command("history")));
        }
        if all.is_empty() {
            let last = self.ran.newest.values().max_by_key(|run| run.begun);
            let last = last.map(|run| format!("nothing fails; {} ran {}", run.what.as_str(), self.ago(run.begun)));
            self.green("runs", last.unwrap_or_else(|| "nothing has run yet".to_owned()));
        }
    }

    /// Amber: neither the service nor a timer runs what is scheduled.
    fn service(&mut self, served: bool) {
        if self.policy.schedule.snapshot == When::Off {
            return;
        }
        let by_timer = self.ran.scheduled.as_ref().filter(|run| {
            let next = coming(&self.policy.schedule, &self.policy.schedule.snapshot, run.begun);
            next.is_none_or(|next| self.now - next < A_DAY)
        });
        match (served, by_timer) {
            (true, _) => self.green("service", "runs what is scheduled"),
            (false, Some(run)) => {
                let text = format!("none; something else ran the last scheduled snapshot {}", self.ago(run.begun));
                self.green("service", text);
            }
            (false, None) => {
                let hint = "`systemctl enable --now lifeboat`, or a timer (docs/service.md)".to_owned();
                self.add("service", Level::Amber, "nothing here runs what is scheduled", Some(hint));
            }
        }
    }

    /// Red: the newest drill failed, or the newest that passed is older than [drill] max_age. Amber: none yet.
    fn drill(&mut self) {
        let drills = &self.sight.repository.drills;
        let passed = drills.iter().rev().find(|d| d.outcome == DrillOutcome::Passed);
        let limit = self.policy.drill.max_age;
        let hint = Some(format!("prove one with {}", self.command("drill")));
        let is_old = |time: DateTime<Utc>| (self.now - time).to_std().is_ok_and(|age| age > limit);
        match (drills.last(), passed) {
            (Some(newest), _) if newest.outcome == DrillOutcome::Failed => {
                let text = format!("the newest failed, of snapshot {}, {}", newest.snapshot, self.ago(newest.time));
                let hint = Some(format!("{} says why", self.command("drill")));
                self.add("drill", Level::Red, text, hint);
            }
            (_, Some(passed)) if is_old(passed.time) => {
                let text = format!(
                    "the newest that passed was {}, and {} is the limit",
                    self.ago(passed.time),
                    human_duration(limit)
                );
                self.add("drill", Level::Red, text, hint);
            }
            (_, Some(passed)) => {
                let text = format!("snapshot {} passed {}", passed.snapshot, self.ago(passed.time));
                self.green("drill", text);
            }
            (_, None) => {
                let oldest = self.sight.complete().next().map(|s| s.time);
                let level = if oldest.is_some_and(is_old) { Level::Red } else { Level::Amber };
                self.add("drill", level, "no snapshot was ever restored to prove it", hint);
            }
        }
    }

    /// Amber: late by more than a day, or never. That one fails is told by `runs`.
    fn verify(&mut self) {
        let schedule = &self.policy.schedule;
        if !self.ran.known || schedule.verify == When::Off {
            return;
        }
        let done = self.ran.done.get(&What::Verify).map(|run| run.ended.unwrap_or(run.begun));
        let oldest = self.sight.complete().next().map(|s| s.time);
        let due = done.or(oldest).and_then(|from| coming(schedule, &schedule.verify, from));
        let late = due.is_some_and(|due| self.now - due > A_DAY);
        let text = done.map_or_else(|| "not yet".to_owned(), |done| format!("all was well {}", self.ago(done)));
        match late {
            true => self.add("verify", Level::Amber, text, Some(self.command("verify"))),
            false => self.green("verify", text),
        }
    }

    /// Red: it does not answer, or something stored there is damaged, forged or missing.
    fn repository(&mut self) {
        let repository = self.sight.repository.clone();
        if let Some(problem) = repository.problem {
            let since = repository.reached.map_or_else(
                || "it never answered".to_owned(),
                |at| format!("the rest of this is as it was {}", self.ago(at)),
            );
            self.add("repository", Level::Red, format!("{problem}; {since}"), repository.hint);
        } else if let Some(first) = repository.damage.first() {
            let more = match repository.damage.len() {
                1 => String::new(),
                n => format!(" (and {} more)", n - 1),
            };
            let hint = Some(format!("{} says more", self.command("verify")));
            self.add("repository", Level::Red, format!("{first}{more}"), hint);
        } else {
            let size = repository.stored_bytes.map_or_else(String::new, |bytes| format!(", {}", human_size(bytes)));
            let count = repository.snapshots.len();
            let text = format!("{} ({count} snapshot{}{size})", repository.url, if count == 1 { "" } else { "s" });
            self.green("repository", text);
        }
    }

    /// Amber: everything lies on this machine, or a copy is behind.
    fn places(&mut self) {
        let copies = &self.sight.copies;
        if self.sight.repository.elsewhere {
            self.green("elsewhere", "the repository outlives this machine");
        } else if copies.iter().any(|copy| copy.elsewhere && copy.sequence.is_some()) {
            self.green("elsewhere", "a copy outlives this machine");
        } else {
            let hint = "add `copies = [\"s3://…\"]` to [repository], or move the repository elsewhere".to_owned();
            let text = "the repository lies on this machine alone, and dies with it";
            self.add("elsewhere", Level::Amber, text, Some(hint));
        }
        let newest = self.sight.complete().next_back().map(|s| (s.sequence, s.time));
        for copy in self.sight.copies.clone() {
            let behind = self.sight.complete().filter(|s| copy.sequence.is_none_or(|have| s.sequence > have)).count();
            let hint = Some(self.command("copy"));
            match (copy.sequence, newest) {
                (None, Some(_)) => {
                    self.add("copy", Level::Amber, format!("nothing was ever copied to {}", copy.url), hint);
                }
                (Some(_), Some((_, time))) if behind > 1 || (behind == 1 && self.now - time > A_DAY) => {
                    let plural = if behind == 1 { "" } else { "s" };
                    self.add("copy", Level::Amber, format!("{} lacks {behind} snapshot{plural}", copy.url), hint);
                }
                _ => self.green("copy", copy.url),
            }
        }
    }

    /// Red: no snapshot can be written. Amber: soon none can.
    fn room(&mut self) {
        let Some(room) = self.sight.room else { return };
        let text = format!("{} free, {} must stay free", human_size(room.free), human_size(room.reserve));
        let hint = Some("free space there, run `lifeboat prune`, or move the repository to a larger disk".to_owned());
        if room.free < room.reserve {
            self.add("room", Level::Red, format!("{text}: no snapshot can be written"), hint);
        } else if is_tight(room.free, room.reserve) {
            self.add("room", Level::Amber, text, hint);
        } else {
            self.green("room", text);
        }
    }

    /// Amber: nobody knows whether the holder of a recipient can read anything.
    fn recipients(&mut self) {
        if self.sight.unproved.is_empty() {
            return self.green("recipients", "an identity has opened what was encrypted to each");
        }
        let text = format!("not proved: {}", self.sight.unproved.join(", "));
        let hint = self.command("policy check --live --identity FILE");
        self.add("recipients", Level::Amber, text, Some(hint));
    }

    /// Amber: on a bad night somebody else may have to do it, without this host to look things up in.
    fn kit(&mut self) {
        match &self.sight.kit {
            None => self.green("kit", "the page of the recovery kit was put away, and says the truth"),
            Some(why) => {
                let hint = self.command("recovery-kit --page kit.html");
                let hint = format!("{hint}: print it, put it away, and confirm it with its code");
                self.add("kit", Level::Amber, why.clone(), Some(hint));
            }
        }
    }

    /// Red: the application may be between two states.
    fn transaction(&mut self) {
        if let Some(id) = &self.sight.pending {
            let text = format!("transaction {id} was cut short: the application may be between two states");
            let hint = format!("{} finishes it or takes it back", self.command("restore --resume"));
            self.add("transaction", Level::Red, text, Some(hint));
        }
    }

    /// Amber: something of the application would be gone, or could not be looked for.
    fn coverage(&mut self) {
        if let Some(blind) = &self.sight.blind {
            let text = format!("what no source captures cannot be told: {blind}");
            return self.add("coverage", Level::Amber, text, Some(self.command("doctor")));
        }
        match self.sight.gaps.as_deref() {
            None => {}
            Some([]) => self.green("coverage", "everything that was found is captured by a source"),
            Some(gaps) => {
                for gap in gaps.iter().cloned() {
                    self.add("coverage", Level::Amber, gap.what, gap.hint);
                }
            }
        }
    }

    /// Red: a [[health]] check fails.
    fn health(&mut self) {
        for health in &self.sight.health {
            let (level, text) = match &health.problem {
                None => (Level::Green, health.name.clone()),
                Some(problem) => (Level::Red, format!("{}: {problem}", health.name)),
            };
            self.checks.push(Check { check: "health", level, detail: text, hint: None });
        }
    }

    fn loss(&self) -> Loss {
        let application = self.newest();
        if self.sight.repository.elsewhere {
            return Loss { server: application.clone(), application };
        }
        let copied = self.sight.copies.iter().filter(|c| c.elsewhere).filter_map(|c| c.sequence).max();
        let safe = self.sight.complete().rev().find(|s| copied.is_some_and(|copied| s.sequence <= copied));
        let server = safe.map(|s| Lost {
            snapshot: Some(s.id.clone()),
            since: s.time,
            seconds: u64::try_from((self.now - s.time).num_seconds()).unwrap_or(0),
        });
        Loss { server, application }
    }

    /// By the newest drill that passed, or the newest restore or rollback that was done, whichever is newer.
    fn recovery(&self) -> Option<Recovery> {
        let drill = self.sight.repository.drills.iter().rev().find(|d| d.outcome == DrillOutcome::Passed);
        let drill = drill.map(|d| Recovery { seconds: d.recovery_seconds, measured: d.time, by: "drill" });
        let runs = [What::Restore, What::Rollback].into_iter().filter_map(|what| {
            let run = self.ran.done.get(&what)?;
            let ended = run.ended?;
            let seconds = (ended - run.begun).num_seconds().max(0) as f64;
            Some(Recovery { seconds, measured: ended, by: what.as_str() })
        });
        drill.into_iter().chain(runs).max_by_key(|recovery| recovery.measured)
    }

    fn not_covered(&self) -> Vec<String> {
        let mut names = self.policy.external.clone();
        let gaps = self.sight.gaps.iter().flatten().map(|gap| gap.name.clone());
        let new: Vec<String> = gaps.filter(|name| !names.contains(name)).collect();
        let left = new.len().saturating_sub(NAMED);
        names.extend(new.into_iter().take(NAMED));
        if left > 0 {
            names.push(format!("{left} more"));
        }
        names
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
