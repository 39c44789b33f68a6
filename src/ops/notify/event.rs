//! What is told: a title and a text for people, fields for programs.

use crate::base::ids::{HostName, ObjectId, PolicyName, Sequence};
use crate::base::time::rfc3339;
use crate::base::units::{human_duration, human_size};
use crate::ops::runs::{Change, RunRecord, What, is_failure};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The exit code of a guard that rolled back.
const GUARD_WENT_BACK: u8 = 7;

/// Why something is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Occasion {
    Failure,
    Recovery,
    Success,
    Drill,
    Rollback,
    Weekly,
    Test,
}

/// A message, before it has an address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub lifeboat: String,
    pub event: Occasion,
    pub policy: String,
    pub host: String,
    pub title: String,
    pub text: String,
    pub time: DateTime<Utc>,
    /// Whether something needs a person.
    pub well: bool,
    /// What ran: `snapshot`, `drill`, …
    pub what: Option<String>,
    pub outcome: Option<String>,
    pub snapshot: Option<String>,
    /// When it began to fail.
    pub since: Option<DateTime<Utc>>,
    pub error: Option<String>,
    /// The policy's newest snapshot as this host knows it.
    pub newest: Option<Newest>,
}

/// A header that whoever hears of it keeps. A repository that was put back to an earlier state does not hold it; what
/// this host remembers goes with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newest {
    pub sequence: Sequence,
    pub header: ObjectId,
}

/// What a week came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Week {
    pub snapshots: usize,
    pub drills_passed: usize,
    pub failed: usize,
    pub newest_snapshot: Option<DateTime<Utc>>,
    pub newest_drill: Option<DateTime<Utc>>,
    /// What fails now, and since when.
    pub failing: Vec<(What, DateTime<Utc>)>,
}

impl Week {
    /// Counts the runs of a week.
    pub fn of(runs: &[RunRecord], failing: Vec<(What, DateTime<Utc>)>) -> Self {
        let mut week = Week { failing, ..Week::default() };
        for run in runs {
            match (run.what, run.outcome().and_then(is_failure)) {
                (_, Some(true)) => week.failed += 1,
                (What::Snapshot, Some(false)) => {
                    week.snapshots += 1;
                    week.newest_snapshot = week.newest_snapshot.max(Some(run.begun));
                }
                (What::Drill, Some(false)) => {
                    week.drills_passed += 1;
                    week.newest_drill = week.newest_drill.max(Some(run.begun));
                }
                _ => {}
            }
        }
        week
    }

    /// A week without one snapshot is none in which all was well.
    pub fn is_well(&self) -> bool {
        self.failing.is_empty() && self.snapshots > 0
    }
}

fn verb(what: What) -> &'static str {
    match what {
        What::Restore => "restore in place",
        other => other.as_str(),
    }
}

/// What a run's end gives occasion for, the most important first: a channel hears of the first one that it asked for.
pub fn occasions(run: &RunRecord, change: Change) -> Vec<Occasion> {
    let mut found = Vec::new();
    match change {
        Change::Failing { .. } => found.push(Occasion::Failure),
        Change::Recovered { .. } => found.push(Occasion::Recovery),
        Change::Well | Change::StillFailing => {}
        Change::Nothing => return found,
    }
    if run.what == What::Drill || run.drill.is_some() {
        found.push(Occasion::Drill);
    }
    let back = matches!(run.what, What::Restore | What::Rollback);
    if back || (run.what == What::Guard && run.exit == Some(GUARD_WENT_BACK)) {
        found.push(Occasion::Rollback);
    }
    let succeeded = matches!(change, Change::Well | Change::Recovered { .. });
    if succeeded && (back || run.what == What::Snapshot) {
        found.push(Occasion::Success);
    }
    found
}

impl Event {
    fn new(occasion: Occasion, policy: &PolicyName, host: &HostName, now: DateTime<Utc>) -> Self {
        Self {
            lifeboat: env!("CARGO_PKG_VERSION").to_owned(),
            event: occasion,
            policy: policy.to_string(),
            host: host.to_string(),
            title: String::new(),
            text: String::new(),
            time: now,
            well: true,
            what: None,
            outcome: None,
            snapshot: None,
            since: None,
            error: None,
            newest: None,
        }
    }

    /// The same with what is known of the newest snapshot, as `--expect` takes it.
    pub fn with_newest(self, newest: Option<Newest>) -> Self {
        let Some(Newest { sequence, header }) = newest else { return self };
        let line = format!("newest snapshot: {}:{} (--expect)", sequence.0, header.to_hex());
        Self { text: format!("{}\n{line}", self.text), newest, ..self }
    }

    /// Of a run that ended.
    pub fn of_run(occasion: Occasion, run: &RunRecord, change: Change, host: &HostName, now: DateTime<Utc>) -> Self {
        let outcome = run.outcome().unwrap_or("failed");
        let failed = is_failure(outcome).unwrap_or(false);
        let since = match change {
            Change::Failing { since, .. } | Change::Recovered { since } => Some(since),
            _ => None,
        };
        let name = verb(run.what);
        let said = match (occasion, outcome) {
            (Occasion::Recovery, _) => format!("{name} is well again"),
            (Occasion::Failure, _) if matches!(change, Change::Failing { again: true, .. }) => {
                format!("{name} still fails")
            }
            (_, "done") if run.what == What::Drill => "drill passed".to_owned(),
            (_, "done") if run.what == What::Restore => "restored in place".to_owned(),
            (_, "done") if run.what == What::Rollback => "rolled back".to_owned(),
            _ if run.exit == Some(GUARD_WENT_BACK) => "an upgrade failed and was rolled back".to_owned(),
            (_, "done") => format!("{name} done"),
            (_, "partial") => format!("{name} is partial"),
            (_, "suspect") => format!("{name} is suspect: something is far smaller than usual"),
            (_, "timeout") => format!("{name} took too long and was stopped"),
            (_, "interrupted") => format!("{name} was cut short"),
            (_, "pending") => format!("{name} waits: a transaction was cut short"),
            (_, "integrity") => format!("{name} found damage"),
            (_, "unhealthy") => format!("{name} left failing health checks"),
            _ => format!("{name} failed"),
        };
        let mut lines = Vec::new();
        lines.extend(run.error.clone());
        if let (Some(since), true) = (since, occasion == Occasion::Recovery || said.contains("still")) {
            lines.push(format!("failing since {}", rfc3339(since)));
        }
        if let Some(snapshot) = &run.snapshot {
            let size = |bytes: Option<u64>| bytes.map_or_else(String::new, |b| format!(", {} new", human_size(b)));
            lines.push(format!("snapshot {snapshot}{}", size(run.bytes_new)));
        }
        let took = run.ended.and_then(|ended| (ended - run.begun).to_std().ok());
        let took = took.map_or_else(String::new, |took| format!(", took {}", human_duration(took)));
        lines.push(format!("{} run, begun {}{took}", run.trigger, rfc3339(run.begun)));
        if run.attempt > 1 {
            lines.push(format!("attempt {}", run.attempt));
        }
        let event = Self::new(occasion, &run.policy, host, now);
        Self {
            title: format!("{} on {host}: {said}", run.policy),
            text: lines.join("\n"),
            well: !failed,
            what: Some(run.what.as_str().to_owned()),
            outcome: run.outcome.clone(),
            snapshot: run.snapshot.clone(),
            since,
            error: run.error.clone(),
            ..event
        }
    }

    /// Of a week.
    pub fn of_week(policy: &PolicyName, week: &Week, host: &HostName, now: DateTime<Utc>) -> Self {
        let well = week.is_well();
        let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let mut lines = vec![format!(
            "{} and {} of the last seven days were well, {} failed",
            plural(week.snapshots, "snapshot"),
            plural(week.drills_passed, "drill"),
            plural(week.failed, "run")
        )];
        lines.extend(week.newest_snapshot.map(|at| format!("newest snapshot: {}", rfc3339(at))));
        lines.extend(week.newest_drill.map(|at| format!("newest drill that passed: {}", rfc3339(at))));
        for (what, since) in &week.failing {
            lines.push(format!("failing since {}: {}", rfc3339(*since), verb(*what)));
        }
        let said = match (well, week.snapshots) {
            (true, _) => "all is well",
            (false, 0) => "no snapshot this week",
            (false, _) => "something fails",
        };
        let event = Self::new(Occasion::Weekly, policy, host, now);
        Self { title: format!("{policy} on {host}: {said}"), text: lines.join("\n"), well, ..event }
    }

    /// Of `notify test`.
    pub fn of_test(policy: &PolicyName, host: &HostName, now: DateTime<Utc>) -> Self {
        let event = Self::new(Occasion::Test, policy, host, now);
        let text = "Lifeboat reaches you here. Nothing has happened.".to_owned();
        Self { title: format!("{policy} on {host}: a test"), text, ..event }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(what: What, outcome: &str) -> RunRecord {
        let at = |text: &str| text.parse().unwrap();
        RunRecord {
            id: 1,
            policy: "shop".parse().unwrap(),
            what,
            trigger: "schedule".into(),
            slot: None,
            attempt: 3,
            begun: at("2026-11-21T02:00:00Z"),
            ended: Some(at("2026-11-21T02:01:30Z")),
            outcome: Some(outcome.into()),
            exit: Some(1),
            snapshot: None,
            bytes_total: None,
            bytes_new: None,
            drill: None,
            error: Some("source \"db\": it is gone".into()),
        }
    }

    #[test]
    fn words_say_what_happened_where_and_since_when() {
        let host: HostName = "web-1".parse().unwrap();
        let now: DateTime<Utc> = "2026-11-22T02:00:00Z".parse().unwrap();
        let since = "2026-11-20T02:00:00Z".parse().unwrap();
        let told = |what, outcome, change, occasion| Event::of_run(occasion, &run(what, outcome), change, &host, now);
        let first = told(What::Snapshot, "failed", Change::Failing { since: now, again: false }, Occasion::Failure);
        assert_eq!(first.title, "shop on web-1: snapshot failed");
        assert_eq!(
            first.text,
            "source \"db\": it is gone\nschedule run, begun 2026-11-21T02:00:00Z, took 1 min 30 s\nattempt 3"
        );
        assert!(!first.well);
        let again = told(What::Snapshot, "failed", Change::Failing { since, again: true }, Occasion::Failure);
        assert_eq!(again.title, "shop on web-1: snapshot still fails");
        assert!(again.text.contains("failing since 2026-11-20T02:00:00Z"));
        let well = told(What::Snapshot, "done", Change::Recovered { since }, Occasion::Recovery);
        assert_eq!(well.title, "shop on web-1: snapshot is well again");
        assert!(well.well && well.text.contains("failing since 2026-11-20"));
        assert_eq!(told(What::Drill, "done", Change::Well, Occasion::Drill).title, "shop on web-1: drill passed");
    }

    #[test]
    fn each_run_gives_its_occasions() {
        let since = DateTime::UNIX_EPOCH;
        let of = |what, outcome, change| occasions(&run(what, outcome), change);
        assert_eq!(of(What::Snapshot, "done", Change::Well), [Occasion::Success]);
        assert_eq!(of(What::Verify, "done", Change::Well), []);
        assert_eq!(of(What::Verify, "integrity", Change::Failing { since, again: false }), [Occasion::Failure]);
        assert_eq!(of(What::Drill, "failed", Change::StillFailing), [Occasion::Drill]);
        assert_eq!(
            of(What::Drill, "failed", Change::Failing { since, again: false }),
            [Occasion::Failure, Occasion::Drill]
        );
        assert_eq!(of(What::Restore, "done", Change::Well), [Occasion::Rollback, Occasion::Success]);
        assert_eq!(of(What::Snapshot, "cancelled", Change::Nothing), []);
    }

    #[test]
    fn a_week_is_well_when_nothing_fails_and_a_snapshot_is_there() {
        let host: HostName = "web-1".parse().unwrap();
        let now: DateTime<Utc> = "2026-11-22T02:00:00Z".parse().unwrap();
        let runs = [run(What::Snapshot, "done"), run(What::Snapshot, "failed"), run(What::Drill, "done")];
        let week = Week::of(&runs, Vec::new());
        assert_eq!((week.snapshots, week.drills_passed, week.failed, week.is_well()), (1, 1, 1, true));
        let event = Event::of_week(&"shop".parse().unwrap(), &week, &host, now);
        assert_eq!(event.title, "shop on web-1: all is well");
        assert!(event.text.starts_with("1 snapshot and 1 drill of the last seven days were well, 1 run failed"));
        assert!(!Week::of(&[], Vec::new()).is_well());
        assert!(!Week::of(&runs, vec![(What::Snapshot, now)]).is_well());
    }
}
