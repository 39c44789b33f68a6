//! What of a tree is not as it was captured: kept beside the list, so that whoever brings the transaction to its end
//! tells all of it.

use super::super::SourceError;
use super::super::extract::{Report, Severity};
use super::job::Job;
use crate::base::atomic::{self, IfExists};
use std::fs;
use std::io::{self, BufReader};
use std::path::PathBuf;

/// Differences of one sort that are put into words.
const WORDS: usize = 20;

/// Of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// What was laid out beside, or left alone.
    Laid,
    /// The folders, which get their metadata in the end.
    Dressed,
}

fn file(job: &Job, of: Told) -> PathBuf {
    let end = match of {
        Told::Laid => "laid",
        Told::Dressed => "dressed",
    };
    job.folder.join(format!("{}.{end}", job.source))
}

pub fn files(job: &Job) -> [PathBuf; 2] {
    [Told::Laid, Told::Dressed].map(|of| file(job, of))
}

/// Takes the place of what was told before of the same.
pub fn keep(job: &Job, of: Told, report: &Report) -> Result<(), SourceError> {
    let path = file(job, of);
    let written = serde_json::to_vec(report).map_err(io::Error::from);
    let written = written.and_then(|text| atomic::write(&path, &text, 0o600, IfExists::Replace));
    written.map_err(|source| SourceError::File { action: "write", path, source })
}

pub fn of(job: &Job, of: Told) -> Result<Report, SourceError> {
    let path = file(job, of);
    let read = match fs::File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Report::default()),
        Err(e) => Err(e),
        Ok(file) => serde_json::from_reader(BufReader::new(file)).map_err(io::Error::from),
    };
    read.map_err(|source| SourceError::File { action: "read", path, source })
}

/// All that was told.
pub fn whole(job: &Job) -> Result<Report, SourceError> {
    Ok(of(job, Told::Laid)?.and(of(job, Told::Dressed)?))
}

/// The worst of what may not be passed over, in words.
pub fn refusal(report: &Report) -> Option<String> {
    let worst = report.differences.iter().find(|d| d.severity != Severity::Metadata)?;
    Some(format!("{}: {}", worst.path, worst.what))
}

/// The first of each sort, and how many there are where there are more.
pub fn in_words(report: &Report) -> Vec<String> {
    let mut words = Vec::new();
    for tally in &report.summary {
        let of_sort = report.differences.iter().filter(|d| d.aspect == tally.aspect);
        words.extend(of_sort.take(WORDS).map(|d| format!("{}: {}", d.path, d.what)));
        if tally.count > WORDS as u64 {
            words.push(format!("{tally} in all that are not as they were"));
        }
    }
    words
}
