//! What a restore did.

use crate::base::ids::{SnapshotId, SourceName, StreamName};
use crate::base::stream::StreamKind;
use crate::ops::OpsError;
use crate::sources::extract::{Report, Severity};
use serde::Serialize;
use std::path::PathBuf;

/// What became of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreOutcome {
    /// Everything is there. How it differs from what was captured, if it does, stands with its streams.
    Restored,
    /// Entries are not there, because they may not or cannot be laid out here.
    Incomplete,
    /// Something stored is damaged; what could be verified is there.
    Damaged,
    /// Its capture had failed: the snapshot does not have it.
    NotCaptured,
}

#[derive(Debug, Clone, Serialize)]
pub struct RestoredStream {
    pub name: StreamName,
    pub kind: StreamKind,
    /// The file, or the folder of a tree; absent when nothing is there.
    pub path: Option<PathBuf>,
    /// Bytes of the stream.
    pub bytes: u64,
    /// Why it is not there, or not whole, in one line.
    pub error: Option<String>,
    /// Of a damaged tree: entries that could not be read, the first thousand of them …
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
    /// … and how many more there are.
    pub lost_untold: u64,
}

/// What became of a source.
#[derive(Debug, Clone, Serialize)]
pub struct RestoredSource {
    pub name: SourceName,
    pub kind: String,
    pub outcome: RestoreOutcome,
    /// Where it lies; absent when nothing of it is whole.
    pub path: Option<PathBuf>,
    /// Where what could be verified of a damaged tree lies.
    pub damaged_path: Option<PathBuf>,
    pub error: Option<String>,
    pub streams: Vec<RestoredStream>,
    /// Of its trees: entries and bytes laid out, and every way in which they differ from what was captured.
    pub tree: Option<Report>,
    pub seconds: f64,
}

/// What a restore did.
#[derive(Debug, Serialize)]
pub struct RestoreReport {
    pub snapshot: SnapshotId,
    pub into: PathBuf,
    pub sources: Vec<RestoredSource>,
    /// Bytes of the streams, or parts of streams, that were read.
    pub bytes: u64,
    pub notes: Vec<String>,
    pub seconds: f64,
    /// The first damage that was met, naming object, snapshot and source. Present: exit 4.
    #[serde(skip)]
    pub failure: Option<OpsError>,
}

impl RestoreReport {
    /// Whether everything that was asked for is there.
    pub fn is_complete(&self) -> bool {
        self.failure.is_none() && self.sources.iter().all(|s| s.outcome == RestoreOutcome::Restored)
    }
}

impl RestoredSource {
    /// Entries that are there but not exactly as they were captured.
    pub fn is_inexact(&self) -> bool {
        self.tree.as_ref().is_some_and(|t| t.worst.is_some())
    }

    /// Entries that are not there.
    pub(super) fn misses_entries(&self) -> bool {
        self.tree.as_ref().is_some_and(|t| t.worst >= Some(Severity::Missing))
    }
}
