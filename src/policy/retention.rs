//! Which snapshots of one host and policy stay: a pure function of the snapshots, the policy's `[retention]`, its time
//! zone and `now`.
//!
//! `keep_last` to `keep_yearly` count like restic's: walking from the newest, the newest of each hour, day, ISO week,
//! month or year is kept, each period once, until so many are. Periods are those of the policy's time zone's calendar.
//! `keep_within` reaches back from the newest snapshot, so it does not run out while no backups are taken.
//!
//! What must hold, whatever a host signs and whatever a clock said:
//!
//! - **Order is by sequence, never by time.** The newest is the one with the highest sequence.
//! - **Only complete ones take a place.** The rules are applied to the complete ones whose times are in order, to all
//!   complete ones, and to complete and suspect ones together; what any of the three keeps stays. So a suspect snapshot
//!   is kept as a complete one would be, and never pushes one out; and one that is dated before an earlier one never
//!   pushes out one that is not. Of partial ones the newest three stay.
//! - **The future counts for nothing.** What is dated more than a day ahead of `now` is kept and takes no place.
//! - **Forked ones** (two of one sequence) are kept and take no place: which of them is true is for a person to say.
//! - The newest complete one, the newest that passed a drill, and held ones always stay; `max_age` alone wins over
//!   drills, holds, tags and forks, and over everything but the newest complete one. Where none is complete, the newest
//!   suspect one, or else the newest partial one, has its place.
//! - Without any rule nothing goes, `max_age` aside.
//!
//! What that means when a host's key is stolen: thousands of snapshots signed today take all places of `keep_last` and
//! `keep_hourly`, but of each daily to yearly rule today's place and tomorrow's alone (dated later they are the future's,
//! dated earlier they are out of order), and nothing that is held, tagged or has passed the newest drill goes.
//! Somebody who signs one snapshot a day for a month cannot be told from the host; drills and suspect outcomes can.
//!
//! A snapshot is no older than those before it: where its clock had fallen back, the latest time that an earlier one
//! carries is the one that `keep_within` and `max_age` go by. So a clock at 1970 lets nothing go.

use crate::base::ids::Sequence;
use crate::base::units::format_duration;
use crate::policy::model::Retention;
use chrono::{DateTime, Datelike, Local, Offset, TimeDelta, TimeZone, Utc};
use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

/// So many of the newest partial snapshots stay.
const PARTIAL: usize = 3;
/// What is dated further ahead than this is from the future.
const AHEAD: TimeDelta = TimeDelta::days(1);

/// How whole a snapshot is; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    Partial,
    Suspect,
    Complete,
}

/// What retention must know of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub sequence: Sequence,
    pub time: DateTime<Utc>,
    pub outcome: Outcome,
    /// It has a tag.
    pub tagged: bool,
    pub held: bool,
    /// Another snapshot carries its sequence.
    pub forked: bool,
    pub passed_drill: bool,
}

/// A calendar rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

/// Why a snapshot stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The `nth` newest of `of`.
    Last {
        nth: usize,
        of: u32,
    },
    /// The newest of this period, such as `2026-W47`.
    Newest {
        period: Period,
        label: String,
    },
    Within(Duration),
    Tagged,
    Held,
    NewestComplete,
    /// There is no complete one; this is the best there is.
    NewestAtAll,
    NewestDrilled,
    NewestPartial,
    /// Dated this far ahead.
    Future {
        ahead: Duration,
    },
    Forked,
    /// `[retention]` sets no rule that keeps anything.
    NoRuleSet,
}

/// Why a snapshot goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    NoRule,
    /// Partial, and there are three newer ones.
    OldPartial,
    /// Older than the ceiling, which wins over these: a tag, a hold, a drill, a fork.
    TooOld {
        max_age: Duration,
        despite: Vec<Reason>,
    },
}

/// What becomes of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// For at least one reason.
    Keep(Vec<Reason>),
    Remove(Removal),
}

impl Verdict {
    pub fn keeps(&self) -> bool {
        matches!(self, Verdict::Keep(_))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Period::Hourly => "hourly",
            Period::Daily => "daily",
            Period::Weekly => "weekly",
            Period::Monthly => "monthly",
            Period::Yearly => "yearly",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Last { nth, of } => write!(f, "last {nth} of {of}"),
            Reason::Newest { period, label } => write!(f, "{period} {label}"),
            Reason::Within(duration) => write!(f, "within {}", format_duration(*duration)),
            Reason::Tagged => f.write_str("tagged"),
            Reason::Held => f.write_str("held"),
            Reason::NewestComplete => f.write_str("newest complete"),
            Reason::NewestAtAll => f.write_str("newest, and none is complete"),
            Reason::NewestDrilled => f.write_str("newest that passed a drill"),
            Reason::NewestPartial => write!(f, "one of the newest {PARTIAL} partial"),
            Reason::Future { ahead } => {
                let hours = ahead.as_secs() / 3600;
                let ahead = if hours < 48 { format!("{hours} h") } else { format!("{} days", hours / 24) };
                write!(f, "from the future: dated {ahead} ahead")
            }
            Reason::Forked => f.write_str("forked: another one carries its number"),
            Reason::NoRuleSet => f.write_str("no rule is set"),
        }
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Removal::NoRule => f.write_str("no rule keeps it"),
            Removal::OldPartial => write!(f, "partial, older than the newest {PARTIAL}"),
            Removal::TooOld { max_age, despite } => {
                write!(f, "older than max_age {}", format_duration(*max_age))?;
                let mut before = ", which wins over: ";
                for reason in despite {
                    write!(f, "{before}{reason}")?;
                    before = ", ";
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Keep(reasons) => {
                let texts: Vec<String> = reasons.iter().map(Reason::to_string).collect();
                f.write_str(&texts.join(", "))
            }
            Verdict::Remove(removal) => removal.fmt(f),
        }
    }
}

/// Decides about every snapshot of one host and policy; the verdicts are in the order of `snapshots`, which may be any.
/// `zone` is the policy's; without one the system's counts. `now` should be the storage's own time: a host's clock that
/// has run ahead would age everything at once.
pub fn decide(
    snapshots: &[Candidate],
    keep: &Retention,
    zone: Option<chrono_tz::Tz>,
    now: DateTime<Utc>,
) -> Vec<Verdict> {
    match zone {
        Some(zone) => decide_in(snapshots, keep, &zone, now),
        None => decide_in(snapshots, keep, &Local, now),
    }
}

/// The same in any time zone.
pub fn decide_in<Z: TimeZone>(snapshots: &[Candidate], keep: &Retention, zone: &Z, now: DateTime<Utc>) -> Vec<Verdict> {
    let plan = Plan::new(snapshots, keep, now);
    let mut reasons: Vec<Vec<Reason>> = vec![Vec::new(); snapshots.len()];
    plan.last(&mut reasons);
    plan.periods(zone, &mut reasons);
    plan.marked(&mut reasons);
    reasons.into_iter().enumerate().map(|(at, reasons)| plan.verdict(at, reasons)).collect()
}

/// The snapshots put in order, and what every rule needs to know of them.
struct Plan<'a> {
    all: &'a [Candidate],
    keep: &'a Retention,
    now: DateTime<Utc>,
    /// How far ahead of `now` each one is dated, where that is too far.
    ahead: Vec<Option<Duration>>,
    /// Each one's own time, or the latest that an earlier one carries.
    believed: Vec<DateTime<Utc>>,
    /// What counted rules are applied to, each newest first.
    passes: [Vec<usize>; 3],
    /// Not from the future, newest first.
    present: Vec<usize>,
    /// What `max_age` does not touch.
    best: HashSet<usize>,
}

impl<'a> Plan<'a> {
    fn new(all: &'a [Candidate], keep: &'a Retention, now: DateTime<Utc>) -> Self {
        let ahead: Vec<Option<Duration>> =
            all.iter().map(|s| (s.time - now).to_std().ok().filter(|_| s.time - now > AHEAD)).collect();
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|&at| all[at].sequence);
        let mut believed: Vec<DateTime<Utc>> = all.iter().map(|s| s.time).collect();
        let mut in_order = vec![false; all.len()];
        let mut latest = DateTime::<Utc>::MIN_UTC;
        for &at in order.iter().filter(|&&at| ahead[at].is_none()) {
            in_order[at] = all[at].time >= latest;
            believed[at] = latest.max(all[at].time);
            if !all[at].forked {
                latest = believed[at];
            }
        }
        let present: Vec<usize> = order.into_iter().rev().filter(|&at| ahead[at].is_none()).collect();
        let counted = |wanted: &dyn Fn(usize) -> bool| {
            present.iter().copied().filter(|&at| !all[at].forked && wanted(at)).collect::<Vec<_>>()
        };
        let passes = [
            counted(&|at| all[at].outcome == Outcome::Complete && in_order[at]),
            counted(&|at| all[at].outcome == Outcome::Complete),
            counted(&|at| all[at].outcome >= Outcome::Suspect),
        ];
        let best = best(all, &present);
        Self { all, keep, now, ahead, believed, passes, present, best }
    }

    fn last(&self, reasons: &mut [Vec<Reason>]) {
        let of = self.keep.keep_last;
        for pass in &self.passes {
            for (before, &at) in pass.iter().take(of as usize).enumerate() {
                if !reasons[at].iter().any(|r| matches!(r, Reason::Last { .. })) {
                    reasons[at].push(Reason::Last { nth: before + 1, of });
                }
            }
        }
    }

    fn periods<Z: TimeZone>(&self, zone: &Z, reasons: &mut [Vec<Reason>]) {
        let keep = self.keep;
        let rules = [
            (Period::Hourly, keep.keep_hourly),
            (Period::Daily, keep.keep_daily),
            (Period::Weekly, keep.keep_weekly),
            (Period::Monthly, keep.keep_monthly),
            (Period::Yearly, keep.keep_yearly),
        ];
        for (period, count) in rules.into_iter().filter(|(_, count)| *count > 0) {
            for pass in &self.passes {
                let mut seen = HashSet::new();
                for &at in pass {
                    let label = label(period, self.all[at].time, zone);
                    // A period that comes again further down, because a clock had jumped, counts once.
                    if seen.insert(label.clone()) {
                        let reason = Reason::Newest { period, label };
                        if !reasons[at].contains(&reason) {
                            reasons[at].push(reason);
                        }
                    }
                    if seen.len() >= count as usize {
                        break;
                    }
                }
            }
        }
    }

    /// The reasons that do not count places.
    fn marked(&self, reasons: &mut [Vec<Reason>]) {
        let newest = self.passes[2].iter().map(|&at| self.believed[at]).max().map(|t| t.min(self.now));
        let since = self.keep.keep_within.and_then(|within| Some((within, back(newest?, within))));
        let drilled = self.present.iter().copied().find(|&at| self.all[at].passed_drill);
        let is_partial = |at: &usize| self.all[*at].outcome == Outcome::Partial && !self.all[*at].forked;
        let partial: Vec<usize> = self.present.iter().copied().filter(is_partial).take(PARTIAL).collect();
        for (at, snapshot) in self.all.iter().enumerate() {
            let reasons = &mut reasons[at];
            let mut because = |holds: bool, reason: Reason| {
                if holds {
                    reasons.push(reason);
                }
            };
            if let Some((within, since)) = since {
                let counts = snapshot.outcome != Outcome::Partial && self.ahead[at].is_none();
                because(counts && self.believed[at] >= since, Reason::Within(within));
            }
            because(partial.contains(&at), Reason::NewestPartial);
            because(snapshot.tagged && self.keep.keep_tagged, Reason::Tagged);
            because(snapshot.held, Reason::Held);
            let complete = snapshot.outcome == Outcome::Complete;
            because(self.best.contains(&at), if complete { Reason::NewestComplete } else { Reason::NewestAtAll });
            because(drilled == Some(at), Reason::NewestDrilled);
            because(snapshot.forked, Reason::Forked);
            if let Some(ahead) = self.ahead[at] {
                because(true, Reason::Future { ahead });
            }
            because(self.no_rule_is_set(), Reason::NoRuleSet);
        }
    }

    fn no_rule_is_set(&self) -> bool {
        let keep = self.keep;
        let counts =
            [keep.keep_last, keep.keep_hourly, keep.keep_daily, keep.keep_weekly, keep.keep_monthly, keep.keep_yearly];
        counts.iter().all(|count| *count == 0) && keep.keep_within.is_none()
    }

    fn verdict(&self, at: usize, reasons: Vec<Reason>) -> Verdict {
        let too_old = self
            .keep
            .max_age
            .filter(|max_age| self.ahead[at].is_none() && self.believed[at] < back(self.now, *max_age));
        if let Some(max_age) = too_old.filter(|_| !self.best.contains(&at)) {
            let is_mark =
                |r: &Reason| matches!(r, Reason::Tagged | Reason::Held | Reason::NewestDrilled | Reason::Forked);
            return Verdict::Remove(Removal::TooOld {
                max_age,
                despite: reasons.into_iter().filter(is_mark).collect(),
            });
        }
        match (reasons.is_empty(), self.all[at].outcome) {
            (false, _) => Verdict::Keep(reasons),
            (true, Outcome::Partial) => Verdict::Remove(Removal::OldPartial),
            (true, _) => Verdict::Remove(Removal::NoRule),
        }
    }
}

/// The newest complete snapshot, or the newest of the best outcome that there is; and what has been forked above it, by
/// number or by outcome, since any of those may be the newest in truth. `present` is newest first.
fn best(all: &[Candidate], present: &[usize]) -> HashSet<usize> {
    let rank = |at: usize| (all[at].outcome, all[at].sequence);
    let sure = present.iter().copied().filter(|&at| !all[at].forked).max_by_key(|&at| rank(at));
    let is_above = |at: usize| all[at].forked && sure.is_none_or(|sure| rank(at) > rank(sure));
    present.iter().copied().filter(|&at| is_above(at)).chain(sure).collect()
}

/// `time` less `duration`, or the beginning of time.
fn back(time: DateTime<Utc>, duration: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(duration).ok().and_then(|d| time.checked_sub_signed(d)).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// The period that a time falls into. Two hours of one name, when the clock goes back, are two.
fn label<Z: TimeZone>(period: Period, time: DateTime<Utc>, zone: &Z) -> String {
    // A signer may write any time; nothing was captured before 1970, and no calendar ends before 10000.
    let last = DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(DateTime::UNIX_EPOCH);
    let local = time.clamp(DateTime::UNIX_EPOCH, last).with_timezone(zone);
    let (date, offset) = (local.naive_local(), local.offset().fix());
    match period {
        Period::Hourly => format!("{}{offset}", date.format("%Y-%m-%d %H:00")),
        Period::Daily => date.format("%Y-%m-%d").to_string(),
        Period::Weekly => {
            let week = date.iso_week();
            format!("{}-W{:02}", week.year(), week.week())
        }
        Period::Monthly => date.format("%Y-%m").to_string(),
        Period::Yearly => date.format("%Y").to_string(),
    }
}
