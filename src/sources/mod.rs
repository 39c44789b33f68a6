//! L2: sources: what a policy captures. A source reads a live thing and writes streams and facts into a [`Sink`];
//! it never meets storage, and storage never meets it.

mod build;
mod cell;
pub mod command;
mod command_placing;
pub mod compose;
mod device;
pub mod env_merge;
pub mod extract;
pub mod files;
pub mod git;
#[cfg(test)]
mod held;
pub mod locate;
pub mod placing;
pub mod placings;
pub mod postgres;
pub mod project;
pub mod proof;
pub mod provers;
pub mod recovery;
pub mod redis;
mod run;
pub mod secret;
mod socket;
pub mod streams;
mod tap;
pub mod trees;

pub use build::{RECOVERY, build, sweep};
pub use provers::{prover, sweep_folder};

use crate::base::cancel::{Cancel, Cancelled};
use crate::base::events::Events;
use crate::base::ids::{ChunkId, DedupKeyId, InvalidId, SnapshotId, SourceName, StreamName};
use crate::base::stream::StreamKind;
use crate::base::threads::{self, NoThread};
use crate::place::PlaceError;
use chrono::{DateTime, Utc};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why a source could not be captured, or what was captured could not be laid out.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Something on disk could not be read.
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The live thing is not as the policy says, or what it gave is not whole. `problem` is a lower-case fragment.
    #[error("{problem}")]
    Problem { problem: String, hint: Option<String> },
    /// It could be tried, and would not come out as it was: so it is not tried. `problem` is a lower-case fragment.
    #[error("{problem}")]
    Refused { problem: String, hint: String },
    /// The sink did not take the bytes: the repository's side failed.
    #[error("store what was captured")]
    Sink(#[source] io::Error),
    #[error(transparent)]
    Name(#[from] InvalidId),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl From<NoThread> for SourceError {
    fn from(e: NoThread) -> Self {
        SourceError::hint(e.to_string(), threads::HINT)
    }
}

impl SourceError {
    /// A problem without a hint.
    pub fn problem(problem: impl Into<String>) -> Self {
        SourceError::Problem { problem: problem.into(), hint: None }
    }

    /// A problem and the way out.
    pub fn hint(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        SourceError::Problem { problem: problem.into(), hint: Some(hint.into()) }
    }

    /// The way out, where there is one.
    pub fn way_out(&self) -> Option<String> {
        match self {
            SourceError::Problem { hint, .. } => hint.clone(),
            SourceError::Refused { hint, .. } => Some(hint.clone()),
            SourceError::Place(place) => place.hint(),
            _ => None,
        }
    }
}

/// Whether something is there. What cannot be looked at is an error, and not nothing: on `false` things are left as they
/// are, or taken away.
pub(crate) fn is_there(path: &Path) -> Result<bool, SourceError> {
    match std::fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(source) => Err(SourceError::File { action: "look at", path: path.to_owned(), source }),
    }
}

/// A run of chunks with boundaries at both ends: what the memo of unchanged files remembers of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Piece {
    /// Chunk ids and plain lengths, in order.
    pub chunks: Vec<(ChunkId, u32)>,
}

impl Piece {
    /// Plain bytes of the piece.
    pub fn length(&self) -> u64 {
        self.chunks.iter().map(|(_, n)| u64::from(*n)).sum()
    }
}

/// One stream being written. Bytes go in by [`Write`]; [`StreamSink::finish`] must be called, else the stream does
/// not become part of the snapshot.
pub trait StreamSink: Write + Send {
    /// Ends a piece: the next byte begins a new chunk. Returns the chunks since the last end of a piece.
    fn end_piece(&mut self) -> io::Result<Piece>;
    /// The next byte begins a new chunk, within a piece.
    fn end_chunk(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// The piece that begins is read again, and will probably be this one of an earlier run. It must have been cut as it
    /// will be now, ends of chunks included.
    fn expect(&mut self, _piece: &Piece) {}
    /// Takes over a piece of an earlier run without its bytes. `false` when the repository does not hold all of its
    /// chunks any more: then the caller reads the piece again. Only between pieces.
    fn reuse_piece(&mut self, piece: &Piece) -> io::Result<bool>;
    /// The same within a piece, where a chunk has just ended.
    fn reuse_part(&mut self, _part: &Piece) -> io::Result<bool> {
        Ok(false)
    }
    /// Plain bytes so far, reused ones included.
    fn position(&self) -> u64;
    /// How it is cut: equal bytes become equal chunks where this number is equal.
    fn cut(&self) -> u32 {
        0
    }
    /// Ends the stream and makes it part of the source.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// Where a source's streams go.
pub trait Sink: Sync {
    /// Begins a stream. Several may be open at once, from several threads. `expected_bytes` helps to choose the
    /// chunk size.
    fn stream(
        &self,
        name: StreamName,
        kind: StreamKind,
        expected_bytes: Option<u64>,
    ) -> io::Result<Box<dyn StreamSink + '_>>;
}

/// What a source remembers from run to run, on this host only. Losing it costs time, never data.
pub trait Memo: Sync {
    fn get(&self, key: &str) -> Option<Vec<u8>>;
    fn put(&self, key: &str, value: &[u8]);
}

/// What every capture gets.
pub struct Capture<'a> {
    pub sink: &'a dyn Sink,
    pub memo: &'a dyn Memo,
    pub events: &'a Events,
    pub cancel: &'a Cancel,
    pub now: DateTime<Utc>,
    pub snapshot: &'a SnapshotId,
    /// Read everything; take nothing from the memo.
    pub force: bool,
    /// What the memo's pieces depend on: another key or recipient set makes other chunks.
    pub memo_key: MemoKey,
    /// Key for hashes of secret values in facts: equal values are seen to be equal, and nothing else.
    pub fact_key: &'a [u8; 32],
}

/// See [`Capture::memo_key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoKey {
    pub dedup: DedupKeyId,
    pub recipients: crate::base::ids::RecipientSetId,
}

/// What a capture knows when it is done.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    /// What the source knew of itself at that instant; a drill will be held against it.
    pub facts: serde_json::Value,
    /// What a person should know but that fails nothing.
    pub warnings: Vec<String>,
}

/// One thing that a policy captures.
pub trait Source: Send + Sync {
    fn name(&self) -> &SourceName;
    /// `postgres`, `redis`, `env`, …
    fn kind(&self) -> &'static str;
    /// One line for the plan: `databases of service "db" (pg_dump)`.
    fn describe(&self) -> String;
    /// Whether the live thing can be reached now; changes nothing.
    fn probe(&self, cancel: &Cancel) -> Result<(), SourceError>;
    /// Begins what a capture needs of this host and of no repository, and does not wait for it: the time goes by while the
    /// repository is opened.
    fn prepare(&self, _cancel: &Cancel) {}
    /// Captures it. On an error nothing of the source enters the snapshot.
    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError>;
    /// The snapshot stands: what was captured with these facts is kept where it lives, as long as the snapshot is there.
    /// What fails here harms no snapshot.
    fn keep(&self, _snapshot: &SnapshotId, _facts: &serde_json::Value, _cancel: &Cancel) -> Result<(), SourceError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_looked_at_is_not_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (file, round) = (dir.path().join("file"), dir.path().join("round"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&round, &round).unwrap();
        assert!(is_there(&file).unwrap());
        assert!(!is_there(&dir.path().join("nothing")).unwrap() && !is_there(&file.join("below")).unwrap());
        assert!(matches!(is_there(&round), Err(SourceError::File { path, .. }) if path == round));
    }
}
