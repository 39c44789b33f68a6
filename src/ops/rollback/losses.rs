//! What leaves the live application, as the first line of a plan says it. Pure.
//!
//! `db: orders +312, users +9; uploads: 41 files`. What there is less of today comes back, which is no loss but a change
//! all the same: it stands in brackets. A number that was estimated is called so.

use crate::sources::placing::{Intent, Loss, Unit};
use chrono::{DateTime, TimeDelta, Utc};

/// Things of one source that are named.
const NAMED: usize = 6;

/// The whole sentence: `Data written after 2026-11-19 02:00 (26 h 14 min ago) will leave the live application: …`
pub fn sentence(intents: &[Intent], snapshot: DateTime<Utc>, now: DateTime<Utc>) -> String {
    format!(
        "Data written after {} UTC ({} ago) will leave the live application: {}.",
        snapshot.format("%Y-%m-%d %H:%M"),
        age(now - snapshot),
        told(intents)
    )
}

/// What leaves, by source; that nothing does, where nothing does.
pub fn told(intents: &[Intent]) -> String {
    let parts: Vec<String> = intents.iter().filter_map(of_source).collect();
    match parts.is_empty() {
        true => "nothing that is counted (what was only changed is not counted)".to_owned(),
        false => parts.join("; "),
    }
}

/// `26 h 14 min`, `3 d 2 h`, `14 min`.
fn age(age: TimeDelta) -> String {
    let minutes = age.num_minutes().max(0);
    let (days, hours) = (minutes / 1_440, minutes / 60);
    match (days, hours) {
        (_, 0) => format!("{minutes} min"),
        (0..=2, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

fn of_source(intent: &Intent) -> Option<String> {
    let files: Vec<&Loss> = intent.losses.iter().filter(|l| l.unit == Unit::Files && l.more > 0).collect();
    let mut counted: Vec<&Loss> = intent.losses.iter().filter(|l| l.unit != Unit::Files).collect();
    // The most first; of equal ones as the source has them.
    counted.sort_by_key(|l| std::cmp::Reverse(l.more.unsigned_abs()));
    let more: Vec<&Loss> = counted.iter().copied().filter(|l| l.more > 0).collect();
    let fewer: Vec<&Loss> = counted.iter().copied().filter(|l| l.more < 0).collect();
    let unsure: Vec<&Loss> = counted.iter().copied().filter(|l| l.more == 0 && !l.exact).collect();
    let mut parts = Vec::new();
    if !files.is_empty() {
        let exact = files.iter().all(|l| l.exact);
        let total = files.iter().map(|l| l.more.unsigned_abs()).fold(0, u64::saturating_add);
        parts.push(format!(
            "{}{}",
            about(exact),
            if total == 1 { "1 file".into() } else { format!("{} files", grouped(total)) }
        ));
    }
    let losing = |l: &Loss| format!("{} {}+{}", l.what, about(l.exact), grouped(l.more.unsigned_abs()));
    parts.extend(list(&more, &losing));
    let mut text = parts.join(", ");
    let mut asides = Vec::new();
    if !fewer.is_empty() {
        let coming = |l: &Loss| format!("{} {}{}", l.what, about(l.exact), grouped(l.more.unsigned_abs()));
        asides.push(format!("coming back: {}", list(&fewer, &coming).join(", ")));
    }
    if !unsure.is_empty() {
        let name = |l: &Loss| l.what.clone();
        asides.push(format!("not counted: {}", list(&unsure, &name).join(", ")));
    }
    if text.is_empty() && asides.is_empty() {
        return None;
    }
    if text.is_empty() {
        text = "nothing".into();
    }
    let asides = if asides.is_empty() { String::new() } else { format!(" ({})", asides.join("; ")) };
    Some(format!("{}: {text}{asides}", intent.source))
}

fn about(exact: bool) -> &'static str {
    if exact { "" } else { "about " }
}

/// The first ones, and how many more.
fn list(losses: &[&Loss], say: &dyn Fn(&Loss) -> String) -> Vec<String> {
    let mut parts: Vec<String> = losses.iter().take(NAMED).map(|l| say(l)).collect();
    let rest = losses.len() - parts.len();
    if rest > 0 {
        let tables = losses.iter().all(|l| l.unit == Unit::Rows);
        let noun = match (tables, rest) {
            (true, 1) => " table",
            (true, _) => " tables",
            _ => "",
        };
        if let Some(last) = parts.last_mut() {
            *last = format!("{last} and {rest} more{noun}");
        }
    }
    parts
}

/// `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(source: &str, losses: &[(&str, Unit, i64, bool)]) -> Intent {
        let loss = |(what, unit, more, exact): &(&str, Unit, i64, bool)| Loss {
            what: (*what).into(),
            unit: *unit,
            more: *more,
            exact: *exact,
        };
        Intent {
            source: source.parse().unwrap(),
            kind: "postgres".into(),
            lines: Vec::new(),
            warnings: Vec::new(),
            room: Vec::new(),
            losses: losses.iter().map(loss).collect(),
            restarts: Vec::new(),
            state: serde_json::Value::Null,
        }
    }

    #[test]
    fn the_sentence_of_the_manual() {
        let db = intent("db", &[("users", Unit::Rows, 9, true), ("orders", Unit::Rows, 312, true)]);
        let uploads = intent("uploads", &[("/srv/uploads", Unit::Files, 41, true)]);
        assert_eq!(told(&[db.clone(), uploads.clone()]), "db: orders +312, users +9; uploads: 41 files");
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        assert_eq!(
            sentence(&[db, uploads], at("2026-11-19T02:00:00Z"), at("2026-11-20T04:14:20Z")),
            "Data written after 2026-11-19 02:00 UTC (26 h 14 min ago) will leave the live application: \
             db: orders +312, users +9; uploads: 41 files."
        );
    }

    #[test]
    fn nothing_is_said_as_such() {
        let nothing = "nothing that is counted (what was only changed is not counted)";
        assert_eq!(told(&[]), nothing);
        assert_eq!(told(&[intent("db", &[]), intent("u", &[("x", Unit::Files, 0, true)])]), nothing);
    }

    #[test]
    fn what_comes_back_and_what_was_not_counted_stand_in_brackets() {
        let db = intent(
            "db",
            &[
                ("orders", Unit::Rows, 3_120, false),
                ("sessions", Unit::Rows, -5, true),
                ("events", Unit::Rows, 0, false),
                ("same", Unit::Rows, 0, true),
            ],
        );
        assert_eq!(told(&[db]), "db: orders about +3,120 (coming back: sessions 5; not counted: events)");
        let cache = intent("cache", &[("keys of database 0", Unit::Keys, -1_000_000, true)]);
        assert_eq!(told(&[cache]), "cache: nothing (coming back: keys of database 0 1,000,000)");
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..18).map(|i| format!("t{i:02}")).collect();
        let losses: Vec<(&str, Unit, i64, bool)> =
            names.iter().enumerate().map(|(i, n)| (n.as_str(), Unit::Rows, 100 - i as i64, true)).collect();
        assert_eq!(
            told(&[intent("db", &losses)]),
            "db: t00 +100, t01 +99, t02 +98, t03 +97, t04 +96, t05 +95 and 12 more tables"
        );
        assert!(told(&[intent("db", &losses[..7])]).ends_with("t05 +95 and 1 more table"));
        let files = intent("u", &[("a", Unit::Files, 1, true)]);
        assert_eq!(told(&[files]), "u: 1 file");
        let some = intent("u", &[("a", Unit::Files, 1_000, true), ("b", Unit::Files, 234, false)]);
        assert_eq!(told(&[some]), "u: about 1,234 files");
    }

    #[test]
    fn ages_in_two_units() {
        let age = |minutes| age(TimeDelta::minutes(minutes));
        assert_eq!([age(0), age(59), age(61), age(1_574)], ["0 min", "59 min", "1 h 1 min", "26 h 14 min"]);
        assert_eq!([age(4_319), age(4_320), age(10_000)], ["71 h 59 min", "3 d 0 h", "6 d 22 h"]);
    }
}
