//! What a server that loaded the file says and writes, held against the facts.

use super::file::{key_differences, total};
use super::grouped;
use crate::sources::proof::{Check, Difference};
use crate::sources::redis::facts::{Facts, Keys};
use crate::sources::redis::rdb::Report;
use crate::sources::redis::rdb::content::Content;
use std::collections::{BTreeMap, BTreeSet};

/// The server's own count of keys.
pub(super) fn keys(server: &str, found: &[Keys], facts: &Facts, report: &Report) -> Check {
    if facts.counted == "range" {
        return within(server, found, facts);
    }
    // A database without keys is not listed.
    let expected = report.keys().filter(|_| facts.counted != "file").unwrap_or_else(|| facts.databases.clone());
    let expected: Vec<Keys> = expected.into_iter().filter(|k| k.keys > 0).collect();
    Check::of("load", server, total(&expected), total(found), key_differences(&expected, found))
}

/// The capture could tell no more than that the numbers lie between these.
fn within(server: &str, found: &[Keys], facts: &Facts) -> Check {
    let (Some(before), Some(after)) = (&facts.before, &facts.after) else {
        return Check::skipped("load", server, "the capture does not know how many keys there were");
    };
    let of = |list: &[Keys], database: u64| list.iter().find(|k| k.database == database).map_or(0, |k| k.keys);
    let all: BTreeSet<u64> = before.iter().chain(after).chain(found).map(|k| k.database).collect();
    let mut differences = Vec::new();
    for database in all {
        let (a, b, n) = (of(before, database), of(after, database), of(found, database));
        let (least, most) = (a.min(b), a.max(b));
        if n < least || n > most {
            let expected = format!("{} to {} keys", grouped(least), grouped(most));
            differences.push(Difference::new(format!("database {database}"), expected, format!("{} keys", grouped(n))));
        }
    }
    let expected = format!("between {} and {}", total(before), total(after));
    Check::of("load", server, expected, total(found), differences)
}

/// What the server wrote after it had loaded the file: the name, the type and the time to live of every key.
pub(super) fn content(again: &Report, report: &Report) -> Check {
    let empty = BTreeMap::new();
    let (expected, found) = (report.databases.as_ref().unwrap_or(&empty), again.databases.as_ref().unwrap_or(&empty));
    let all: BTreeSet<&u64> = expected.keys().chain(found.keys()).collect();
    let none = Content::default();
    let mut differences = Vec::new();
    for database in all {
        let (a, b) = (expected.get(database).unwrap_or(&none), found.get(database).unwrap_or(&none));
        let mut differ = |what: &str, expected: String, found: String| {
            if expected != found {
                differences.push(Difference::new(format!("{what} database {database}"), expected, found));
            }
        };
        differ("keys of", grouped(a.keys()), grouped(b.keys()));
        differ("names and types of the keys of", a.names.to_string(), b.names.to_string());
        differ("times to live in", a.expiry.to_string(), b.expiry.to_string());
    }
    if again.functions != report.functions {
        let text = |r: &Report| {
            let functions = r.functions.clone().unwrap_or_default();
            format!("{} with digest {}", functions.count, functions.sum)
        };
        differences.push(Difference::new("libraries of functions", text(report), text(again)));
    }
    let text = |databases: &BTreeMap<u64, Content>| {
        let keys: u64 = databases.values().map(Content::keys).sum();
        format!("names, types and times to live of {} keys", grouped(keys))
    };
    Check::of("loaded", "", text(expected), text(found), differences)
}
