//! The run history from the daemon's side: how a run came out, and who hears of it. A run enters itself; what one that
//! was killed could not enter is entered here.

use super::agenda::{Ended, Job};
use super::child::Exited;
use crate::base::ids::{HostName, PolicyName};
use crate::ops::OpsError;
use crate::ops::notify::{queue, queue_weekly};
use crate::ops::runs::{Begin, Book, End, MADE_WAY, RunRecord, What};
use crate::policy::Policy;
use chrono::{DateTime, Utc};

/// How a run came out.
pub struct Outcome {
    pub run: RunRecord,
    pub ended: Ended,
}

/// Whether the service itself ended a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    No,
    /// It stops itself.
    Asked,
    /// The run had its time.
    TimedOut,
    /// A snapshot of its policy was due.
    GaveWay,
}

/// Looks up what a run entered about itself, and completes it.
pub fn settle(
    book: &mut Book,
    job: &Job,
    exited: Exited,
    stopped: Stopped,
    now: DateTime<Utc>,
) -> Result<Outcome, OpsError> {
    let found = book.of_slot(&job.policy, job.what, job.slot, job.attempt)?;
    let id = match &found {
        Some(run) => run.id,
        None => book.begin(&Begin {
            policy: job.policy.clone(),
            what: job.what,
            scheduled: true,
            slot: Some(job.slot),
            attempt: job.attempt,
            now,
        })?,
    };
    let open = found.as_ref().is_none_or(|run| run.outcome.is_none() || run.outcome() == Some("interrupted"));
    // Whoever stops a run from outside has not asked the service not to take its snapshot.
    let killed = stopped == Stopped::No && found.as_ref().is_some_and(|run| run.outcome() == Some("cancelled"));
    let made_way =
        stopped == Stopped::GaveWay && (open || found.as_ref().is_some_and(|r| r.outcome() == Some("cancelled")));
    if open || killed || made_way || stopped == Stopped::TimedOut {
        let (outcome, error) = match (stopped, exited) {
            (Stopped::GaveWay, _) => ("cancelled", MADE_WAY.to_owned()),
            (Stopped::TimedOut, _) => ("timeout", "it took longer than its time_limit and was stopped".to_owned()),
            (_, Exited { signal: Some(signal), .. }) => ("interrupted", format!("it was killed by signal {signal}")),
            (Stopped::No, Exited { code: code @ (130 | 143), .. }) => {
                ("failed", format!("it was stopped by a signal from outside (exit code {code})"))
            }
            (_, Exited { code: code @ (130 | 143), .. }) => ("cancelled", format!("it was stopped (exit code {code})")),
            (_, Exited { code: 2, .. }) => ("usage", "its policy cannot be used: `lifeboat policy check`".to_owned()),
            (_, Exited { code: 5, .. }) => ("busy", "another run held the policy".to_owned()),
            (_, Exited { code, .. }) => ("failed", format!("it ended with exit code {code} before it began")),
        };
        let known = found.unwrap_or_else(|| empty(job, now));
        let end = End {
            outcome: outcome.to_owned(),
            exit: Some(exited.code),
            snapshot: known.snapshot,
            bytes_total: known.bytes_total,
            bytes_new: known.bytes_new,
            drill: known.drill.map(|d| d == "passed"),
            error: Some(error),
        };
        book.end(id, &end, now)?;
        if made_way {
            book.told(id)?;
        }
    }
    let run = book.run(id)?.unwrap_or_else(|| empty(job, now));
    let ended = match run.outcome().unwrap_or("failed") {
        "done" => Ended::Done,
        "busy" => Ended::Busy,
        "cancelled" if stopped == Stopped::GaveWay => Ended::GaveWay,
        // The same policy, damage, size or unfinished transaction would be met again; a person is needed.
        "usage" | "integrity" | "suspect" | "pending" | "cancelled" => Ended::Hopeless,
        _ => Ended::Failed,
    };
    Ok(Outcome { run, ended })
}

fn empty(job: &Job, now: DateTime<Utc>) -> RunRecord {
    RunRecord {
        id: 0,
        policy: job.policy.clone(),
        what: job.what,
        trigger: "schedule".to_owned(),
        slot: Some(job.slot),
        attempt: job.attempt,
        begun: now,
        ended: None,
        outcome: None,
        exit: None,
        snapshot: None,
        bytes_total: None,
        bytes_new: None,
        drill: None,
        error: None,
    }
}

/// Tells whoever wants to hear how a run came out in the end.
pub fn tell(
    book: &mut Book,
    policy: Option<&Policy>,
    run: &RunRecord,
    host: &HostName,
    now: DateTime<Utc>,
) -> Result<(), OpsError> {
    let mut run = run.clone();
    // A policy that was held until the next slot came has no snapshot of this one.
    if run.outcome() == Some("busy") {
        run.outcome = Some("failed".to_owned());
        run.error = Some("another run held the policy until the next one was due".to_owned());
    }
    // What was stopped with the service, and is not run again, took no snapshot.
    if run.outcome() == Some("cancelled") {
        run.outcome = Some("interrupted".to_owned());
        run.error = Some("it was stopped with the service, and is not run again".to_owned());
    }
    let change = book.judge(&run, now)?;
    match policy {
        Some(policy) => queue(book, policy, &run, change, host, now).map(drop),
        None => Ok(()),
    }
}

/// The same for a retry that a new slot has overtaken. Where it made way for a snapshot, what came out is what came out
/// before it.
pub fn tell_newest(
    book: &mut Book,
    policy: Option<&Policy>,
    (name, what): (&PolicyName, What),
    host: &HostName,
    now: DateTime<Utc>,
) -> Result<(), OpsError> {
    match book.came_out(name, what)? {
        Some(run) => tell(book, policy, &run, host, now),
        None => Ok(()),
    }
}

/// The weekly word.
pub fn tell_weekly(
    book: &mut Book,
    policy: Option<&Policy>,
    job: &Job,
    host: &HostName,
    now: DateTime<Utc>,
) -> Result<(), OpsError> {
    book.settle(&job.policy, What::Weekly, job.slot)?;
    match policy {
        Some(policy) => queue_weekly(book, policy, host, now).map(drop),
        None => Ok(()),
    }
}
