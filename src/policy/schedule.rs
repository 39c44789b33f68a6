//! When a scheduled run is due: pure functions of a cron expression, a time zone and `now`.
//!
//! Expressions are crontab(5)'s: five fields, Sunday as 0 or 7, `@daily` and friends. A run at one fixed time whose hour
//! falls into the spring clock change takes place right after it, so no day goes without; in autumn, when its hour comes
//! twice, it takes place once. Runs at several times (lists, ranges, steps) follow the clock as it is.

use crate::policy::model::When;
use chrono::{DateTime, TimeZone, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

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

/// The first run after `now`, by the wall clock of `zone`; none when the schedule is off.
pub fn next_after<Z: TimeZone>(when: &When, zone: &Z, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let When::Cron(expression) = when else { return None };
    let cron = read(expression).ok()?;
    let next = cron.find_next_occurrence(&now.with_timezone(zone), false).ok()?;
    Some(next.with_timezone(&Utc))
}

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
