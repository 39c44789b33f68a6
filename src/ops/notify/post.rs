//! Into the outbox, and out of it.

use super::channel::{Channel, channels, is_watchdog, kind, wanted};
use super::event::{Event, Newest, Occasion, Week, occasions};
use super::send::send;
use crate::base::ids::HostName;
use crate::ops::OpsError;
use crate::ops::runs::{Book, Change, RunRecord, Waiting};
use crate::policy::model::NotifyOn;
use crate::policy::{self, Policy};
use crate::repository::chain::full_text;
use crate::repository::state::State;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

/// One attempt to send one message takes no longer.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// Puts in what a run's end gives occasion for. Returns how many messages that makes.
pub fn queue(
    book: &Book,
    policy: &Policy,
    run: &RunRecord,
    change: Change,
    host: &HostName,
    now: DateTime<Utc>,
) -> Result<usize, OpsError> {
    let occasions = occasions(run, change);
    let wanted = channels(policy).into_iter().filter_map(|channel| {
        let occasion = wanted(channel.notify, run, &occasions)?;
        Some((channel, occasion))
    });
    let wanted: Vec<(Channel<'_>, Occasion)> = wanted.collect();
    if wanted.is_empty() {
        return Ok(0);
    }
    let newest = newest(book, policy, host);
    for (channel, occasion) in &wanted {
        let event = Event::of_run(*occasion, run, change, host, now).with_newest(newest);
        post(book, policy, channel, &event, now)?;
    }
    Ok(wanted.len())
}

/// Puts in the word about the last seven days, for whoever wants it. A watchdog would take it for a snapshot.
pub fn queue_weekly(book: &Book, policy: &Policy, host: &HostName, now: DateTime<Utc>) -> Result<usize, OpsError> {
    let name = &policy.app.name;
    let wants =
        |channel: &Channel<'_>| channel.notify.on.contains(&NotifyOn::Weekly) && !is_watchdog(&channel.notify.channel);
    let channels: Vec<Channel<'_>> = channels(policy).into_iter().filter(wants).collect();
    if channels.is_empty() {
        return Ok(0);
    }
    let runs = book.runs(Some(name), Some(now - TimeDelta::days(7)), None)?;
    let week = Week::of(&runs, book.failing(name)?);
    let event = Event::of_week(name, &week, host, now).with_newest(newest(book, policy, host));
    for channel in &channels {
        post(book, policy, channel, &event, now)?;
    }
    Ok(channels.len())
}

/// The newest snapshot that this host has seen of a policy. A message goes without it where that cannot be said.
fn newest(book: &Book, policy: &Policy, host: &HostName) -> Option<Newest> {
    let dir = book.state_dir()?;
    if !dir.join("state.db").is_file() {
        return None;
    }
    let state = State::open(dir).ok()?;
    let repository = state.pin(&policy.repository.url.to_string()).ok()??;
    let (sequence, header) = state.head(&repository, host, &policy.app.name).ok()??;
    Some(Newest { sequence, header })
}

fn post(
    book: &Book,
    policy: &Policy,
    channel: &Channel<'_>,
    event: &Event,
    now: DateTime<Utc>,
) -> Result<(), OpsError> {
    let text = serde_json::to_string(event).map_err(|e| OpsError::Failed { problem: e.to_string(), hint: None })?;
    // Whoever sends it may stand in another folder.
    let file = std::path::absolute(&policy.file).unwrap_or_else(|_| policy.file.clone());
    book.post(&file, &channel.key, &text, now)
}

/// What became of the messages that were due.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Delivered {
    pub sent: usize,
    /// They are tried again later.
    pub kept: usize,
    pub given_up: usize,
    /// What went wrong, one line each.
    pub problems: Vec<String>,
}

/// Sends what is due, until that is done or the time is over.
pub fn deliver(
    book: &Book,
    state_dir: &Path,
    clock: impl Fn() -> DateTime<Utc>,
    limit: Duration,
    stop: impl Fn() -> bool,
) -> Result<Delivered, OpsError> {
    let begun = Instant::now();
    let mut done = Delivered::default();
    while begun.elapsed() < limit && !stop() {
        let Some(waiting) = book.take(clock())? else { break };
        match try_one(&waiting, state_dir, SEND_LIMIT.min(limit)) {
            Ok(true) => done.sent += 1,
            Ok(false) => done.given_up += 1,
            Err(problem) => {
                match book.not_sent(&waiting, clock())? {
                    Some(_) => done.kept += 1,
                    None => done.given_up += 1,
                }
                done.problems.push(problem);
                continue;
            }
        }
        book.sent(waiting.id)?;
    }
    Ok(done)
}

/// Sends one; false where nobody wants it any more. That its policy cannot be read may be just what it tells: then it goes
/// where the policy said before.
fn try_one(waiting: &Waiting, state_dir: &Path, limit: Duration) -> Result<bool, String> {
    let Ok(event) = serde_json::from_str::<Event>(&waiting.event) else { return Ok(false) };
    if fs::symlink_metadata(&waiting.file).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
        return Ok(false);
    }
    let policy = policy::load(&waiting.file)
        .or_else(|e| policy::recall(state_dir, &waiting.file).ok_or(e))
        .map_err(|e| format!("{}: its policy cannot be read: {}", waiting.channel, full_text(&e)))?;
    let channels = channels(&policy);
    let Some(channel) = channels.iter().find(|c| c.key == waiting.channel) else { return Ok(false) };
    let kind = kind(&channel.notify.channel);
    match send(&channel.notify.channel, &event, limit) {
        Ok(()) => Ok(true),
        Err(problem) => Err(format!("{kind} of policy {} was not told: {problem}", policy.app.name)),
    }
}

/// How a channel took a test.
#[derive(Debug, Clone, Serialize)]
pub struct Tried {
    pub channel: &'static str,
    pub ok: bool,
    pub problem: Option<String>,
    pub seconds: f64,
}

/// Sends a test to every channel of the policy, now.
pub fn test(policy: &Policy, host: &HostName, now: DateTime<Utc>) -> Vec<Tried> {
    let event = Event::of_test(&policy.app.name, host, now);
    debug_assert_eq!(event.event, Occasion::Test);
    let one = |channel: Channel<'_>| {
        let begun = Instant::now();
        let problem = send(&channel.notify.channel, &event, SEND_LIMIT).err();
        Tried {
            channel: kind(&channel.notify.channel),
            ok: problem.is_none(),
            problem,
            seconds: begun.elapsed().as_secs_f64(),
        }
    };
    channels(policy).into_iter().map(one).collect()
}
