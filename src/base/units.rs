//! Sizes and durations as policies write them and people read them.

use std::time::Duration;

/// Why a size or duration could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a {what}: write {example}")]
pub struct InvalidUnit {
    pub what: &'static str,
    pub value: String,
    pub example: &'static str,
}

/// A hundred years: whoever writes more means for ever, or has mistyped.
const LONGEST: u64 = 100 * 366 * 86_400;

/// Reads `90s`, `5m`, `36h`, `7d`, `4w`.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidUnit> {
    let bad = || InvalidUnit {
        what: "duration",
        value: text.into(),
        example: "a number and a unit, such as 90s, 5m, 36h or 7d",
    };
    let t = text.trim();
    let at = t.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let number: u64 = t[..at].parse().map_err(|_| bad())?;
    let unit = match t[at..].trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(bad()),
    };
    // Added to any moment, it must still be one.
    number.checked_mul(unit).filter(|s| *s <= LONGEST).map(Duration::from_secs).ok_or_else(bad)
}

/// Writes a duration so that [`parse_duration`] reads it back: the largest unit that divides it.
pub fn format_duration(d: Duration) -> String {
    let s = d.as_secs();
    for (unit, name) in [(86_400, "d"), (3600, "h"), (60, "m")] {
        if s >= unit && s.is_multiple_of(unit) {
            return format!("{}{name}", s / unit);
        }
    }
    format!("{s}s")
}

/// A duration for people: `850 ms`, `12.4 s`, `3 min 5 s`, `26 h 14 min`, `9 d 3 h`.
pub fn human_duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0 => format!("{} ms", d.as_millis()),
        1..=59 => format!("{:.1} s", d.as_secs_f64()),
        60..=3599 => format!("{} min {} s", s / 60, s % 60),
        3600..=172_799 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Reads `64MiB`, `1.5GiB`, `20MB`, `512`.
pub fn parse_size(text: &str) -> Result<u64, InvalidUnit> {
    let bad =
        || InvalidUnit { what: "size", value: text.into(), example: "a number and a unit, such as 64MiB or 2GiB" };
    let t = text.trim();
    let at = t.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(t.len());
    let number: f64 = t[..at].parse().map_err(|_| bad())?;
    let factor: u64 = match t[at..].trim() {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(bad()),
    };
    let bytes = number * factor as f64;
    if bytes.is_finite() && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(bad()) }
}

/// Writes a size so that [`parse_size`] reads it back: the largest unit that divides it.
pub fn format_size(bytes: u64) -> String {
    for (shift, name) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{name}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// A sum of sizes that may be anything: what a repository says of itself is only as good as who signed it.
pub fn total(bytes: impl IntoIterator<Item = u64>) -> u64 {
    bytes.into_iter().fold(0, u64::saturating_add)
}

/// A size for people: `812 B`, `14.3 MiB`.
pub fn human_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    for unit in ["KiB", "MiB", "GiB", "TiB"] {
        value /= 1024.0;
        if value < 1023.95 || unit == "TiB" {
            return format!("{value:.1} {unit}");
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        assert_eq!(parse_duration("36h").unwrap(), Duration::from_secs(129_600));
        assert_eq!(format_duration(parse_duration("7d").unwrap()), "7d");
        assert!(parse_duration("7 days").is_err() && parse_duration("h").is_err() && parse_duration("5").is_err());
        assert!(parse_duration("99999999999999999999d").is_err());
        assert_eq!(parse_size("1.5GiB").unwrap(), 3 << 29);
        assert_eq!(format_size(parse_size("1.5GiB").unwrap()), "1536MiB");
        assert_eq!(parse_size(&format_size(20_000_001)).unwrap(), 20_000_001);
        assert!(parse_size("lots").is_err() && parse_size("-1").is_err());
        assert_eq!(human_size(15_000_000), "14.3 MiB");
        assert_eq!(human_duration(Duration::from_secs(94_440)), "26 h 14 min");
    }
}
