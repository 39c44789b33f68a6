//! Time for people and for names. `now` is always an argument: nothing here reads a clock.

use chrono::{DateTime, SecondsFormat, Utc};

/// `2026-11-19T02:00:00Z`: how every stored object writes a time.
pub fn rfc3339(t: DateTime<Utc>) -> String {
    t.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// `20261119T020000Z`: how ids and keys write a time.
pub fn compact(t: DateTime<Utc>) -> String {
    t.format("%Y%m%dT%H%M%SZ").to_string()
}

/// `3 h ago`, `2 days ago`; a time to come is `in 3 h`.
pub fn relative(t: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let seconds = (now - t).num_seconds();
    let s = seconds.unsigned_abs();
    let text = match s {
        0..=59 => format!("{s} s"),
        60..=5_399 => format!("{} min", (s + 30) / 60),
        5_400..=129_599 => format!("{} h", (s + 1_800) / 3_600),
        129_600..=5_183_999 => format!("{} days", (s + 43_200) / 86_400),
        5_184_000..=63_071_999 => format!("{} months", (s + 1_296_000) / 2_592_000),
        _ => format!("{} years", (s + 15_768_000) / 31_536_000),
    };
    if seconds < 0 { format!("in {text}") } else { format!("{text} ago") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_times() {
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let at = |s: &str| relative(s.parse().unwrap(), now);
        assert_eq!(at("2026-11-21T11:59:30Z"), "30 s ago");
        assert_eq!(at("2026-11-21T10:00:00Z"), "2 h ago");
        assert_eq!(at("2026-11-18T12:00:00Z"), "3 days ago");
        assert_eq!(at("2026-11-21T13:00:00Z"), "in 60 min");
    }
}
