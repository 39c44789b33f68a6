//! The stored file itself, held against the facts.

use super::grouped;
use crate::sources::proof::{Check, Difference};
use crate::sources::redis::facts::{Content, Facts, Keys};
use crate::sources::redis::rdb::Report;
use crate::sources::redis::rdb::content::Sum;
use std::collections::BTreeSet;

pub(super) const UNKNOWN_TYPES: &str = "the file holds types that are not known here";
const NO_DIGESTS: &str = "the snapshot was taken before digests of the content were kept";

/// Whether the file is whole: its structure to the end, its checksum, nothing behind it.
pub(super) fn check(stream: &str, length: u64, read: &Result<Report, String>, facts: &Facts) -> Check {
    let sealed = |checksum: bool| if checksum { "a right checksum" } else { "no checksum" };
    let expected = format!("RDB {}, {} bytes, {}", facts.rdb_version, grouped(length), sealed(facts.rdb_checksum));
    let report = match read {
        Ok(report) => report,
        Err(why) => return Check::failed("file", stream, expected, "it is not whole", why),
    };
    let found = format!("RDB {}, {} bytes, {}", report.version, grouped(report.length), sealed(report.checksum));
    let why = if report.mark || report.length != length {
        format!("{} bytes follow the end of the RDB", grouped(length.saturating_sub(report.length)))
    } else if facts.rdb_checksum && !report.checksum {
        "its checksum was blanked out, so that nothing vouches for its bytes".into()
    } else if report.version != facts.rdb_version {
        "it is of another version".into()
    } else {
        return Check::passed("file", stream, expected, found);
    };
    Check::failed("file", stream, expected, found, why)
}

/// What the file holds, held against what it held when it was stored.
pub(super) fn against_facts(report: &Report, facts: &Facts) -> Vec<Check> {
    let (Some(keys), Some(content)) = (report.keys(), report.content()) else {
        return ["keys", "times to live", "values", "functions"]
            .map(|name| Check::skipped(name, "", UNKNOWN_TYPES))
            .to_vec();
    };
    let mut checks = Vec::new();
    let mut differences = key_differences(&facts.databases, &keys);
    if let Some(expected) = &facts.content {
        let names = |c: &Content| c.names.clone();
        let unequal = unequal(expected, &content, "names and types of the keys of", names);
        // What differs in number differs in names as well, and is told once.
        if differences.is_empty() {
            differences.extend(unequal);
        }
    }
    checks.push(match facts.counted.as_str() {
        "file" => Check::of("keys", "", total(&facts.databases), total(&keys), differences),
        _ => Check::skipped("keys", "", "the capture could not count the keys of the file"),
    });
    match &facts.content {
        None => {
            checks.push(Check::skipped("times to live", "", NO_DIGESTS));
            checks.push(Check::skipped("values", "", NO_DIGESTS));
        }
        Some(expected) => {
            let differences = unequal(expected, &content, "times to live in", |c| c.expiry.clone());
            let expires = |keys: &[Keys]| format!("{} keys that expire", grouped(keys.iter().map(|k| k.expires).sum()));
            checks.push(Check::of("times to live", "", expires(&facts.databases), expires(&keys), differences));
            checks.push(Check::of("values", "", types(expected), types(&content), values(expected, &content)));
        }
    }
    checks.push(functions(report, facts));
    checks
}

fn functions(report: &Report, facts: &Facts) -> Check {
    let Some(expected) = facts.functions else {
        return Check::skipped("functions", "", "the capture could not count them");
    };
    let (found, digest) = report.functions.as_ref().map_or((0, None), |f| (f.count, Some(f.sum.to_string())));
    let text = |n: u64| match n {
        1 => "1 library".to_owned(),
        n => format!("{} libraries", grouped(n)),
    };
    let mut differences = Vec::new();
    if expected != found {
        differences.push(Difference::new("libraries of functions", text(expected), text(found)));
    } else if facts.functions_digest.is_some() && facts.functions_digest != digest {
        let digest = digest.unwrap_or_default();
        let expected = facts.functions_digest.clone().unwrap_or_default();
        differences.push(Difference::new("code of functions", short(&expected), short(&digest)));
    }
    Check::of("functions", "", text(expected), text(found), differences)
}

/// Numbers of keys that differ, by database.
pub(super) fn key_differences(expected: &[Keys], found: &[Keys]) -> Vec<Difference> {
    let all: BTreeSet<u64> = expected.iter().chain(found).map(|k| k.database).collect();
    let of = |list: &[Keys], database: u64| {
        list.iter().find(|k| k.database == database).copied().unwrap_or(Keys { database, keys: 0, expires: 0 })
    };
    let mut differences = Vec::new();
    for database in all {
        let (expected, found) = (of(expected, database), of(found, database));
        if expected != found {
            differences.push(Difference::new(format!("database {database}"), numbers(expected), numbers(found)));
        }
    }
    differences
}

/// Databases in which something has another digest.
fn unequal(
    expected: &[Content],
    found: &[Content],
    what: &str,
    digest: impl Fn(&Content) -> String,
) -> Vec<Difference> {
    let all: BTreeSet<u64> = expected.iter().chain(found).map(|c| c.database).collect();
    // The sum over nothing.
    let nothing = || Sum::default().to_string();
    let of =
        |list: &[Content], database: u64| list.iter().find(|c| c.database == database).map_or_else(nothing, &digest);
    let mut differences = Vec::new();
    for database in all {
        let (expected, found) = (of(expected, database), of(found, database));
        if expected != found {
            let subject = format!("{what} database {database}");
            differences.push(Difference::new(subject, short(&expected), short(&found)));
        }
    }
    differences
}

/// Values that differ, by database and type.
fn values(expected: &[Content], found: &[Content]) -> Vec<Difference> {
    let names = |list: &[Content]| -> BTreeSet<(u64, String)> {
        list.iter().flat_map(|c| c.types.keys().map(|name| (c.database, name.clone()))).collect()
    };
    let of = |list: &[Content], database: u64, name: &str| {
        list.iter().find(|c| c.database == database).and_then(|c| c.types.get(name)).cloned()
    };
    let text = |v: Option<crate::sources::redis::facts::Values>| match v {
        Some(v) => format!("{} with digest {}", grouped(v.keys), short(&v.digest)),
        None => "none".into(),
    };
    let mut differences = Vec::new();
    for (database, name) in &names(expected) | &names(found) {
        let (expected, found) = (of(expected, database, &name), of(found, database, &name));
        if expected != found {
            let subject = format!("keys of type {name} in database {database}");
            differences.push(Difference::new(subject, text(expected), text(found)));
        }
    }
    differences
}

/// `88,120 keys, 1,204 of them expire`.
pub(super) fn total(keys: &[Keys]) -> String {
    let database = keys.len() as u64;
    let sum = Keys { database, keys: keys.iter().map(|k| k.keys).sum(), expires: keys.iter().map(|k| k.expires).sum() };
    match keys.len() {
        0 | 1 => numbers(sum),
        n => format!("{} in {n} databases", numbers(sum)),
    }
}

fn numbers(keys: Keys) -> String {
    let noun = if keys.keys == 1 { "key" } else { "keys" };
    match keys.expires {
        0 => format!("{} {noun}", grouped(keys.keys)),
        expires => format!("{} {noun} ({} expire)", grouped(keys.keys), grouped(expires)),
    }
}

fn types(content: &[Content]) -> String {
    let mut all = std::collections::BTreeMap::<&str, u64>::new();
    for (name, values) in content.iter().flat_map(|c| &c.types) {
        *all.entry(name.as_str()).or_default() += values.keys;
    }
    match all.is_empty() {
        true => "none".into(),
        false => all.iter().map(|(name, n)| format!("{name} {}", grouped(*n))).collect::<Vec<_>>().join(", "),
    }
}

fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}
