//! What is due: pure data and pure functions. The clock and the slots that are settled already are arguments.
//!
//! Invariants: a slot is started once, or, where several were missed, the newest of them once for all; slots are looked
//! for after the last one that was started, so neither a restart nor a clock that is set back runs one twice; what waits
//! for another run of its policy, or for room, is started when that ends. A snapshot waits for no verification and no drill:
//! they make way, and are made up behind it.

use crate::base::ids::PolicyName;
use crate::ops::runs::What;
use crate::policy::model::When;
use crate::policy::schedule::{newest_between, next_after};
use chrono::{DateTime, Local, TimeDelta, Utc};
use chrono_tz::Tz;
use std::collections::BTreeSet;

pub use crate::policy::schedule::delay;

/// A slot that is later than this was missed: nobody was awake.
const MISSED: TimeDelta = TimeDelta::minutes(10);
/// A slot that lies further ahead than any clock change was made by a wrong clock.
const WRONG_CLOCK: TimeDelta = TimeDelta::hours(48);
const LONGEST_PAUSE: TimeDelta = TimeDelta::hours(6);
/// The pause before a policy that is busy is asked again, and the longest.
const BUSY_PAUSE: TimeDelta = TimeDelta::minutes(1);
const LONGEST_BUSY_PAUSE: TimeDelta = TimeDelta::minutes(15);
/// Long enough that the snapshot which something made way for has begun.
const WAY_PAUSE: TimeDelta = TimeDelta::seconds(30);

/// When something of a policy runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub when: When,
    /// Absent: the system's.
    pub zone: Option<Tz>,
    /// How long after its slot it begins.
    pub delay: TimeDelta,
    pub catch_up: bool,
    pub retries: u32,
    pub retry: TimeDelta,
}

/// What to run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub policy: PolicyName,
    pub what: What,
    pub slot: DateTime<Utc>,
    /// From 1.
    pub attempt: u32,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Done,
    /// It may go better later.
    Failed,
    /// Trying it again would change nothing.
    Hopeless,
    /// Another run held the policy.
    Busy,
    /// It made way for a snapshot of its policy.
    GaveWay,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// This is how it came out.
    Final,
    /// It is tried again then.
    Again(DateTime<Utc>),
}

/// What a look at the clock gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    pub start: Vec<Job>,
    /// Retries that a new slot has overtaken: how they came out last is how they came out.
    pub given_up: Vec<(PolicyName, What)>,
    /// Policies whose verification or drill has to make way: a snapshot is due, and backups do not wait for what looks at them.
    pub give_way: Vec<PolicyName>,
    /// Slots that were missed and are not caught up, by the policy's wish.
    pub passed_over: Vec<(PolicyName, What, DateTime<Utc>)>,
}

#[derive(Debug)]
struct Waiting {
    slot: DateTime<Utc>,
    attempt: u32,
    not_before: DateTime<Utc>,
    busy: u32,
}

#[derive(Debug)]
struct Entry {
    policy: PolicyName,
    what: What,
    rule: Rule,
    /// The last slot that was started, or when the entry was first seen.
    last: DateTime<Utc>,
    /// The next one, with its delay.
    next: Option<DateTime<Utc>>,
    waiting: Option<Waiting>,
}

impl Entry {
    fn look_ahead(&mut self) {
        let Rule { when, zone, delay, .. } = &self.rule;
        let next = match zone {
            Some(zone) => next_after(when, zone, self.last),
            None => next_after(when, &Local, self.last),
        };
        self.next = next.map(|slot| slot + *delay);
    }

    fn newest(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let Rule { when, zone, delay, .. } = &self.rule;
        match zone {
            Some(zone) => newest_between(when, zone, self.last, now - *delay),
            None => newest_between(when, &Local, self.last, now - *delay),
        }
    }
}

/// Everything that is to run, and what runs.
#[derive(Debug)]
pub struct Agenda {
    entries: Vec<Entry>,
    running: Vec<(PolicyName, What, DateTime<Utc>, u32, u32)>,
    /// How many policies may run at once.
    at_once: usize,
}

impl Agenda {
    pub fn new(at_once: usize) -> Self {
        Self { entries: Vec::new(), running: Vec::new(), at_once: at_once.max(1) }
    }

    /// Takes over the rules as they are now. `settled` is the last slot that was started, by earlier daemons as well;
    /// what was never seen before begins now, so that nothing is caught up that was never promised.
    pub fn set(
        &mut self,
        rules: Vec<(PolicyName, What, Rule)>,
        settled: impl Fn(&PolicyName, What) -> Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) {
        let mut before = std::mem::take(&mut self.entries);
        for (policy, what, rule) in rules {
            let known = before.iter().position(|e| e.policy == policy && e.what == what);
            let mut entry = match known {
                Some(at) => {
                    let known = before.swap_remove(at);
                    // Slots that a new expression would have had before are none.
                    let last = if known.rule.when == rule.when && known.rule.zone == rule.zone {
                        known.last
                    } else {
                        known.last.max(now)
                    };
                    Entry { rule, last, ..known }
                }
                None => {
                    let last = settled(&policy, what).unwrap_or(now);
                    Entry { policy, what, rule, last, next: None, waiting: None }
                }
            };
            if entry.last > now + WRONG_CLOCK {
                entry.last = now;
            }
            if entry.rule.when == When::Off {
                entry.waiting = None;
            }
            entry.look_ahead();
            self.entries.push(entry);
        }
    }

    /// Puts in a run that was cut short, where it is to be run again: as the attempt at its slot that comes after so many.
    pub fn resume(
        &mut self,
        policy: &PolicyName,
        what: What,
        slot: DateTime<Utc>,
        attempts: u32,
        now: DateTime<Utc>,
    ) -> bool {
        let found = self.entries.iter_mut().find(|e| e.policy == *policy && e.what == what);
        let Some(entry) = found.filter(|e| e.rule.catch_up && e.rule.when != When::Off && e.waiting.is_none()) else {
            return false;
        };
        // Whatever keeps killing it is not helped for ever.
        let again = attempts <= entry.rule.retries.max(1);
        if again {
            entry.waiting = Some(Waiting { slot, attempt: attempts + 1, not_before: now, busy: 0 });
        }
        again
    }

    /// What is to be started now. It counts as running until [`Agenda::ended`].
    pub fn due(&mut self, now: DateTime<Utc>) -> Due {
        let mut due = Due::default();
        for entry in &mut self.entries {
            if entry.last > now + WRONG_CLOCK {
                entry.last = now;
                entry.look_ahead();
            }
            if entry.next.is_none_or(|next| next > now) {
                continue;
            }
            let Some(slot) = entry.newest(now) else { continue };
            entry.last = slot;
            entry.look_ahead();
            if !entry.rule.catch_up && now - (slot + entry.rule.delay) > MISSED {
                due.passed_over.push((entry.policy.clone(), entry.what, slot));
                continue;
            }
            let overtaken = entry.waiting.replace(Waiting { slot, attempt: 1, not_before: now, busy: 0 });
            if overtaken.is_some_and(|w| w.attempt > 1 || w.busy > 0) {
                due.given_up.push((entry.policy.clone(), entry.what));
            }
        }
        self.start(now, &mut due.start);
        let waits = |e: &&Entry| e.what == What::Snapshot && e.waiting.as_ref().is_some_and(|w| w.not_before <= now);
        let looks =
            |e: &&Entry| self.running.iter().any(|r| r.0 == e.policy && matches!(r.1, What::Verify | What::Drill));
        due.give_way = self.entries.iter().filter(waits).filter(looks).map(|e| e.policy.clone()).collect();
        due
    }

    fn start(&mut self, now: DateTime<Utc>, jobs: &mut Vec<Job>) {
        let ready = |e: &Entry| e.waiting.as_ref().filter(|w| w.not_before <= now).map(|w| (w.slot, e.what));
        let snapshot = |policy: &PolicyName| {
            self.entries.iter().any(|e| e.policy == *policy && e.what == What::Snapshot && ready(e).is_some())
        };
        // What would only have to make way does not begin, however old its slot is.
        let in_vain = |e: &Entry| matches!(e.what, What::Verify | What::Drill) && snapshot(&e.policy);
        // The oldest slot first, and of one slot the snapshot before what works with it.
        let order: BTreeSet<_> = (self.entries.iter().enumerate())
            .filter_map(|(at, e)| ready(e).filter(|_| !in_vain(e)).map(|key| (key, at)))
            .collect();
        for (_, at) in order {
            let entry = &mut self.entries[at];
            if self.running.len() >= self.at_once || self.running.iter().any(|r| r.0 == entry.policy) {
                continue;
            }
            let Some(waiting) = entry.waiting.take() else { continue };
            let Waiting { slot, attempt, busy, .. } = waiting;
            self.running.push((entry.policy.clone(), entry.what, slot, attempt, busy));
            jobs.push(Job { policy: entry.policy.clone(), what: entry.what, slot, attempt });
        }
    }

    /// Takes note that the policy's run is over.
    pub fn ended(&mut self, policy: &PolicyName, ended: Ended, now: DateTime<Utc>) -> Verdict {
        let Some(at) = self.running.iter().position(|r| r.0 == *policy) else { return Verdict::Final };
        let (_, what, slot, attempt, busy) = self.running.swap_remove(at);
        let entry = self.entries.iter_mut().find(|e| e.policy == *policy && e.what == what);
        // A policy that is gone, or switched off, is not tried again.
        let Some(entry) = entry.filter(|e| e.rule.when != When::Off) else { return Verdict::Final };
        let (pause, attempt, busy) = match ended {
            Ended::Done | Ended::Hopeless => return Verdict::Final,
            Ended::Failed if attempt > entry.rule.retries => return Verdict::Final,
            Ended::Failed => {
                let thrice = 3i32.saturating_pow(attempt.saturating_sub(1).min(10));
                let pause = entry.rule.retry.checked_mul(thrice).unwrap_or(LONGEST_PAUSE);
                (pause.min(LONGEST_PAUSE), attempt + 1, 0)
            }
            Ended::GaveWay => (WAY_PAUSE, attempt, 0),
            Ended::Busy => ((BUSY_PAUSE * 2i32.saturating_pow(busy.min(4))).min(LONGEST_BUSY_PAUSE), attempt, busy + 1),
        };
        let not_before = now + pause;
        // A slot that comes before, or waits already, takes its place.
        if entry.waiting.is_some() || entry.next.is_some_and(|next| next <= not_before) {
            return Verdict::Final;
        }
        entry.waiting = Some(Waiting { slot, attempt, not_before, busy });
        Verdict::Again(not_before)
    }

    /// When to look again: what waits for another run to end is started by that.
    pub fn wake(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let waiting = self.entries.iter().filter_map(|e| e.waiting.as_ref()).map(|w| w.not_before).filter(|t| *t > now);
        let slots = self.entries.iter().filter_map(|e| e.next);
        waiting.chain(slots).min()
    }

    /// The next slot of anything, for people.
    pub fn next(&self) -> Option<(&PolicyName, What, DateTime<Utc>)> {
        let coming = self.entries.iter().filter(|e| e.what != What::Weekly);
        coming.filter_map(|e| Some((&e.policy, e.what, e.next?))).min_by_key(|(_, _, next)| *next)
    }
}
