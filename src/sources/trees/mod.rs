//! Trees of files put back over the live ones: files, env files, certificates, nginx configuration, volumes.
//!
//! Beside the live tree, on the same file system, lies a folder of the transaction's own ([`job::staging_name`], 0700):
//! `new/<n>` is what was laid out, `old/<n>` what it replaced. What has to be done stands in a list in the
//! transaction's folder ([`list`]); only what differs in metadata or content is laid out, the rest is left alone.
//!
//! Invariants: every call that changes something gets a folder that was opened one name at a time without following
//! anything, and a single name in it; what is replaced is renamed into `old/`, never overwritten or removed; every step
//! works whether or not it had been begun before; nothing is removed from `old/` but by `discard_old`.
//!
//! Single files may come back with another content than the captured one ([`overlay`]): env files with today's secrets.
//!
//! Order (must): `new/<n>` durable and listed, the list durable, then for each entry the old one linked or renamed to
//! `old/<n>` and `new/<n>` renamed over it; folders get their metadata last, innermost first.

mod hands;
mod helper;
mod job;
mod list;
mod live;
mod make;
mod overlay;
mod placing;
mod survey;
mod swap;
mod today;
mod told;

pub use helper::{WORD, serve};
pub use job::is_staging;
pub use overlay::lay_over;
pub use placing::{TreePlacing, listed};

pub(super) use hands::Hands;
pub(super) use job::{Base, Job};
pub(super) use placing::Tape;

use make::{again, first};
use survey::survey;
use swap::{back, discard_new, discard_old, look, switch};

use super::SourceError;
use super::extract::{self, ExtractError};
use super::files::entry::Time;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use std::path::PathBuf;

fn fault(action: &'static str, path: impl Into<PathBuf>, e: Errno) -> SourceError {
    SourceError::File { action, path: path.into(), source: e.into() }
}

/// Some file systems take two names for one, as those do that fold case: one would be lost under the other.
fn one_name(job: &Job, path: &[u8]) -> SourceError {
    let shown = job.display(path);
    SourceError::hint(
        format!("{} and another name of the snapshot are one on this file system", shown.display()),
        "restore it into a folder of a file system that tells them apart (--into)",
    )
}

/// Changes what a folder lists without changing its time, as far as this account may: the folders beside are nobody's
/// business.
fn keeping_time<T>(dir: BorrowedFd<'_>, act: impl FnOnce() -> T) -> T {
    let before = rustix::fs::fstat(dir);
    let result = act();
    if let Ok(stat) = before {
        let _ = extract::set_time(dir, Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 });
    }
    result
}

pub(super) fn extract_error(e: ExtractError) -> SourceError {
    match e {
        ExtractError::Cancelled(e) => e.into(),
        ExtractError::File { action, path, source } => SourceError::File { action, path, source },
        ExtractError::Archive(e) => SourceError::File {
            action: "read the tree for",
            path: "the snapshot".into(),
            source: std::io::Error::other(e),
        },
        moved @ ExtractError::Moved { .. } => SourceError::problem(moved.to_string()),
    }
}
