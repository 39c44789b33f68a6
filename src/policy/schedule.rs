//! When a scheduled run is due: pure functions of a cron expression, a time zone and `now`.
//!
//! Expressions are crontab(5)'s: five fields, Sunday as 0 or 7, `@daily` and friends. A slot is a time of the wall clock
//! that an expression names, and each has one instant: a time that the spring clock change leaves out is due at the next
//! instant that exists, and one that comes twice in autumn is due the first time. Slots that fall together this way are
//! one. An expression whose hour is `*` names hours and not times of the day: it follows the time that passes, so it goes
//! on through both.

use crate::base::ids::{HostName, PolicyName};
use crate::policy::model::{Schedule, When};
use chrono::{DateTime, Local, MappedLocalTime, NaiveDateTime, TimeDelta, TimeZone, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Why an expression was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchedule {
    #[error("{expression:?} is not a schedule: {reason}")]
    Malformed { expression: String, reason: String },
    #[error("the schedule {expression:?} never comes: no such day")]
    Never { expression: String },
}

/// The nicknames, for messages.
pub const NICKNAMES: &[&str] = &["@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"];

fn read(expression: &str) -> Result<Cron, InvalidSchedule> {
    let malformed = |reason: String| InvalidSchedule::Malformed { expression: expression.to_owned(), reason };
    let expanded = match expression.trim() {
        "@midnight" => "@daily",
        nickname if nickname.starts_with('@') && !NICKNAMES.contains(&nickname) => {
            return Err(malformed("no such nickname".to_owned()));
        }
        other => other,
    };
    let fields = expanded.split_whitespace().count();
    if !expanded.starts_with('@') && fields != 5 {
        let plural = if fields == 1 { "" } else { "s" };
        return Err(malformed(format!("it has {fields} field{plural}, not five")));
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(expanded).map_err(|e| malformed(fragment(&e.to_string())))
}

/// The parser's sentence in the form of our messages.
fn fragment(sentence: &str) -> String {
    let text = sentence.split_once(": ").map_or(sentence, |(_, rest)| rest).trim_end_matches('.');
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// Whether an expression can be read and ever comes.
pub fn check(expression: &str) -> Result<(), InvalidSchedule> {
    let cron = read(expression)?;
    // Any leap cycle will do; 29 February comes at least once in eight years.
    let start = DateTime::<Utc>::UNIX_EPOCH;
    match cron.find_next_occurrence(&start, true) {
        Ok(_) => Ok(()),
        Err(_) => Err(InvalidSchedule::Never { expression: expression.to_owned() }),
    }
}

/// The longest that a clock change may take out or repeat: islands have crossed the date line.
const LONGEST_CHANGE: TimeDelta = TimeDelta::hours(25);

/// The first slot after `now`, by the wall clock of `zone`; none when the schedule is off.
pub fn next_after<Z: TimeZone>(when: &When, zone: &Z, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let When::Cron(expression) = when else { return None };
    Slots::new(expression)?.next(zone, now)
}

/// The same in a policy's own time zone.
pub fn coming(schedule: &Schedule, when: &When, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    match schedule.timezone {
        Some(zone) => next_after(when, &zone, after),
        None => next_after(when, &Local, after),
    }
}

/// The delay within a policy's jitter: always the same for it, another for another host or policy.
pub fn delay(host: &HostName, policy: &PolicyName, jitter: Duration) -> TimeDelta {
    let hash = Sha256::digest(format!("{host}/{policy}").as_bytes());
    let number = u64::from(u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]));
    let seconds = (number * jitter.as_secs().min(u64::from(u32::MAX))) >> 32;
    TimeDelta::seconds(i64::try_from(seconds).unwrap_or(0))
}

/// The shortest time between two slots of an expression: none when the schedule is off, or comes once in a long while.
pub fn shortest_gap(when: &When) -> Option<TimeDelta> {
    /// Enough for every month of an expression, and for the minutes and hours of any day.
    const LOOKS: usize = 2_000;
    let When::Cron(expression) = when else { return None };
    let slots = Slots::new(expression)?;
    let mut from = DateTime::<Utc>::UNIX_EPOCH;
    let last = from + TimeDelta::days(400);
    let mut shortest: Option<TimeDelta> = None;
    let mut before = None;
    for _ in 0..LOOKS {
        let Some(slot) = slots.next(&Utc, from).filter(|slot| *slot <= last) else { break };
        if let Some(before) = before {
            let gap = slot - before;
            shortest = Some(shortest.map_or(gap, |known| known.min(gap)));
        }
        (before, from) = (Some(slot), slot);
    }
    shortest
}

/// The newest slot in `(after, until]`.
pub fn newest_between<Z: TimeZone>(
    when: &When,
    zone: &Z,
    after: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let When::Cron(expression) = when else { return None };
    let slots = Slots::new(expression)?;
    // Most expressions have a slot in the last hour, day or month: years of minutes need not be gone through.
    let windows = [TimeDelta::hours(1), TimeDelta::days(1), TimeDelta::days(32), TimeDelta::days(400)];
    let starts = windows.iter().map(|window| (until - *window).max(after)).chain([after]);
    for start in starts {
        let mut newest = None;
        let mut from = start;
        while let Some(slot) = slots.next(zone, from).filter(|slot| *slot <= until) {
            newest = Some(slot);
            from = slot;
        }
        if newest.is_some() || start == after {
            return newest;
        }
    }
    None
}

struct Slots {
    cron: Cron,
    /// The hour is `*`.
    hourly: bool,
}

impl Slots {
    fn new(expression: &str) -> Option<Self> {
        let hour = expression.split_whitespace().nth(1);
        let hourly = expression.trim() == "@hourly" || matches!(hour, Some("*" | "*/1"));
        Some(Self { cron: read(expression).ok()?, hourly })
    }

    fn next<Z: TimeZone>(&self, zone: &Z, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = |at: DateTime<Utc>| at.with_timezone(zone).naive_local();
        // Only where the clock goes back soon may a time that the clock has shown already come again.
        let goes_back = local(now + LONGEST_CHANGE) - local(now) < LONGEST_CHANGE;
        let mut wall = if goes_back { local(now) - LONGEST_CHANGE } else { local(now) };
        let mut best: Option<DateTime<Utc>> = None;
        loop {
            wall = self.cron.find_next_occurrence(&wall.and_utc(), false).ok()?.naive_utc();
            let (first, again) = self.instants(zone, wall)?;
            let coming = [first, again].into_iter().flatten().filter(|at| *at > now).min();
            best = [best, coming].into_iter().flatten().min();
            // The first instants come in the order of the wall clock, so no later time is due before this one.
            if first.is_some_and(|first| first > now) {
                return best;
            }
        }
    }

    /// When the wall clock's time is due, and when once more. Nothing is due of an hour that is left out.
    fn instants<Z: TimeZone>(&self, zone: &Z, wall: NaiveDateTime) -> Option<Instants> {
        match zone.from_local_datetime(&wall) {
            MappedLocalTime::Single(at) => Some((Some(at.to_utc()), None)),
            MappedLocalTime::Ambiguous(first, again) => {
                let (first, again) = (first.to_utc().min(again.to_utc()), first.to_utc().max(again.to_utc()));
                Some((Some(first), self.hourly.then_some(again)))
            }
            MappedLocalTime::None if self.hourly => Some((None, None)),
            MappedLocalTime::None => {
                let minutes = (1..=LONGEST_CHANGE.num_minutes()).map(|n| wall + TimeDelta::minutes(n));
                // The first minute that exists again, to the minute: zones change at whole ones.
                let next = minutes.map(|wall| zone.from_local_datetime(&wall)).find_map(|at| at.earliest())?;
                Some((Some(next.to_utc()), None))
            }
        }
    }
}

type Instants = (Option<DateTime<Utc>>, Option<DateTime<Utc>>);

#[cfg(test)]
mod tests {
    use super::*;
    use chrono_tz::Tz;

    fn runs(expression: &str, zone: Tz, from: &str, count: usize) -> Vec<String> {
        let when = When::Cron(expression.into());
        let mut now: DateTime<Utc> = from.parse().unwrap();
        let mut runs = Vec::new();
        for _ in 0..count {
            now = next_after(&when, &zone, now).unwrap();
            runs.push(now.with_timezone(&zone).format("%a %Y-%m-%d %H:%M %Z").to_string());
        }
        runs
    }

    #[test]
    fn five_fields_are_a_schedule_and_six_are_not() {
        assert_eq!(runs("0 2 * * *", Tz::UTC, "2026-11-19T02:00:00Z", 1), ["Fri 2026-11-20 02:00 UTC"]);
        assert_eq!(runs("15 * * * *", Tz::UTC, "2026-11-19T02:14:59.5Z", 1), ["Thu 2026-11-19 02:15 UTC"]);
        assert_eq!(
            check("0 0 2 * * *").unwrap_err().to_string(),
            "\"0 0 2 * * *\" is not a schedule: it has 6 fields, not five"
        );
    }

    #[test]
    fn sunday_is_zero_and_seven() {
        for sunday in ["0 3 * * 0", "0 3 * * 7", "0 3 * * sun", "0 3 * * Sun"] {
            assert_eq!(runs(sunday, Tz::UTC, "2026-11-19T00:00:00Z", 1), ["Sun 2026-11-22 03:00 UTC"], "{sunday}");
        }
        assert_eq!(runs("0 3 * * 1", Tz::UTC, "2026-11-19T00:00:00Z", 1), ["Mon 2026-11-23 03:00 UTC"]);
    }

    #[test]
    fn no_day_goes_without_a_run_when_the_clock_goes_forward() {
        let paris = Tz::Europe__Paris;
        assert_eq!(
            runs("30 2 * * *", paris, "2026-03-27T12:00:00Z", 3),
            ["Sat 2026-03-28 02:30 CET", "Sun 2026-03-29 03:00 CEST", "Mon 2026-03-30 02:30 CEST"]
        );
    }

    #[test]
    fn a_fixed_time_comes_once_when_the_clock_goes_back_and_an_interval_goes_on() {
        let paris = Tz::Europe__Paris;
        assert_eq!(
            runs("30 2 * * *", paris, "2026-10-24T12:00:00Z", 2),
            ["Sun 2026-10-25 02:30 CEST", "Mon 2026-10-26 02:30 CET"]
        );
        assert_eq!(
            runs("15 * * * *", paris, "2026-10-24T23:30:00Z", 3),
            ["Sun 2026-10-25 02:15 CEST", "Sun 2026-10-25 02:15 CET", "Sun 2026-10-25 03:15 CET"]
        );
    }

    #[test]
    fn times_of_the_day_come_once_whatever_the_clock_does() {
        let paris = Tz::Europe__Paris;
        // Left out: due when the clock goes on, and once where several fall together.
        for expression in ["30 2,14 * * *", "*/15 2,14 * * *"] {
            let first = runs(expression, paris, "2026-03-28T23:00:00Z", 1);
            assert_eq!(first, ["Sun 2026-03-29 03:00 CEST"], "{expression}");
        }
        assert_eq!(runs("*/20 2 * * *", paris, "2026-03-29T01:00:00Z", 1), ["Mon 2026-03-30 02:00 CEST"]);
        // Twice: due the first time.
        assert_eq!(
            runs("*/30 2 * * *", paris, "2026-10-24T23:50:00Z", 3),
            ["Sun 2026-10-25 02:00 CEST", "Sun 2026-10-25 02:30 CEST", "Mon 2026-10-26 02:00 CET"]
        );
        assert_eq!(
            runs("0 */2 * * *", paris, "2026-10-24T22:30:00Z", 2),
            ["Sun 2026-10-25 02:00 CEST", "Sun 2026-10-25 04:00 CET"]
        );
        // Half an hour, on Lord Howe Island.
        let island = Tz::Australia__Lord_Howe;
        assert_eq!(runs("15 2 * * *", island, "2026-10-03T12:00:00Z", 1), ["Sun 2026-10-04 02:30 +11"]);
        // Every hour: the time that passes.
        assert_eq!(
            runs("15 * * * *", paris, "2026-03-29T00:00:00Z", 2),
            ["Sun 2026-03-29 01:15 CET", "Sun 2026-03-29 03:15 CEST"]
        );
    }

    #[test]
    fn the_newest_slot_of_a_span() {
        let newest = |expression: &str, after: &str, until: &str| {
            let when = When::Cron(expression.into());
            newest_between(&when, &Tz::Europe__Paris, after.parse().unwrap(), until.parse().unwrap())
                .map(|at| at.to_rfc3339())
        };
        assert_eq!(
            newest("* * * * *", "2020-01-01T00:00:00Z", "2026-11-19T12:00:30Z").unwrap(),
            "2026-11-19T12:00:00+00:00"
        );
        assert_eq!(
            newest("0 2 * * *", "2026-11-01T00:00:00Z", "2026-11-19T12:00:00Z").unwrap(),
            "2026-11-19T01:00:00+00:00"
        );
        assert_eq!(
            newest("0 0 29 2 *", "2019-01-01T00:00:00Z", "2023-01-01T00:00:00Z").unwrap(),
            "2020-02-28T23:00:00+00:00"
        );
        // The span is open at its beginning and closed at its end.
        assert_eq!(newest("0 2 * * *", "2026-11-19T01:00:00Z", "2026-11-20T00:59:59Z"), None);
        assert!(newest("0 2 * * *", "2026-11-19T00:59:59Z", "2026-11-19T01:00:00Z").is_some());
    }

    #[test]
    fn the_shortest_time_between_two_slots() {
        let gap = |expression: &str| shortest_gap(&When::Cron(expression.into())).map(|gap| gap.num_minutes());
        for (expression, minutes) in [
            ("* * * * *", 1),
            ("15 * * * *", 60),
            ("0 2 * * *", 24 * 60),
            ("0 3 * * 0", 7 * 24 * 60),
            ("0,20 2 * * *", 20),
            ("0 0 1 * *", 28 * 24 * 60),
            ("0 0 1,3 6 *", 2 * 24 * 60),
        ] {
            assert_eq!(gap(expression), Some(minutes), "{expression}");
        }
        assert_eq!((gap("0 0 29 2 *"), shortest_gap(&When::Off)), (None, None));
    }

    #[test]
    fn nicknames_and_days_that_never_come() {
        assert_eq!(runs("@midnight", Tz::UTC, "2026-11-19T12:00:00Z", 1), ["Fri 2026-11-20 00:00 UTC"]);
        for nickname in NICKNAMES {
            check(nickname).unwrap();
        }
        check("0 0 29 2 *").unwrap();
        let message = |s: &str| check(s).unwrap_err().to_string();
        assert_eq!(message("0 0 30 2 *"), "the schedule \"0 0 30 2 *\" never comes: no such day");
        assert_eq!(message("@reboot"), "\"@reboot\" is not a schedule: no such nickname");
        assert_eq!(message("daily"), "\"daily\" is not a schedule: it has 1 field, not five");
        assert!(message("61 * * * *").starts_with("\"61 * * * *\" is not a schedule: "), "{}", message("61 * * * *"));
        assert!(next_after(&When::Off, &Tz::UTC, DateTime::UNIX_EPOCH).is_none());
    }
}
