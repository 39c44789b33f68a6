//! How much room there is where the server keeps its files, and how much a restored database takes.

use super::Admin;
use crate::place::Command;
use crate::sources::postgres::facts::Database;
use crate::sources::postgres::session::Session;
use crate::sources::run::run;
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;

/// An empty database, and what its log takes meanwhile.
const BASE_BYTES: u64 = 64 << 20;

/// What a captured database takes when it is loaded: its tables, and about as much again for indexes and the log.
pub(super) fn needed(captured: &Database) -> u64 {
    BASE_BYTES + captured.tables.iter().map(|t| t.bytes).sum::<u64>() * 2
}

/// Free bytes of a file system of this host, for this process.
pub(super) fn free_here(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Free bytes where the tools run.
pub(super) fn free_in(admin: &Admin<'_>, path: &str) -> Option<u64> {
    let command = Command::new(["df", "-Pk", "--", path]).timeout(Duration::from_secs(20)).cancel(admin.cancel);
    let (out, exit) = run(admin.connection.place(), command, 1 << 16).ok()?;
    if exit.code != 0 {
        return None;
    }
    // The file system's own name may hold blanks; the figures stand before the first percentage.
    let text = String::from_utf8_lossy(&out).into_owned();
    let words: Vec<&str> = text.lines().nth(1)?.split_whitespace().collect();
    let at = words.iter().position(|w| w.ends_with('%'))?;
    words.get(at.checked_sub(1)?)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Where the server keeps its files; told to superusers only.
pub(super) fn data_directory(session: &mut Session) -> Option<String> {
    #[derive(Deserialize)]
    struct Row {
        setting: Option<String>,
    }
    let sql = "SELECT (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS setting";
    session.one::<Row>(sql).ok()?.setting
}
