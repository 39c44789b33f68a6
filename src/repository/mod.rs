//! L2: the repository format: keys, signed objects, index, manifest, snapshots. `docs/format.md` is its specification.
//!
//! Write order (must): archives → index → refs → manifest → header. The header is the commit point: a snapshot exists
//! if and only if its header does. A crash anywhere leaves a repository that verifies, plus objects that nothing
//! references yet.
//!
//! - [`layout`]: every storage key is built here
//! - [`format`]: the types of the stored JSON and CBOR
//! - [`keys`]: identity, root key, host key file
//! - [`trust`]: who may sign what; opening and creating a repository
//! - [`chain`]: the headers of a repository, their order, gaps and forks
//! - [`headers`]: headers and records read at once, and remembered
//! - [`index`], [`table`], [`refs`]: where chunks lie
//! - [`parallel`]: small objects fetched many at once
//! - [`tree`]: a stream's chunk ids
//! - [`writer`]: a snapshot being written
//! - [`reader`]: streams being read; reading is verifying
//! - [`frames`]: frames of archives, read by ranges
//! - [`scan`]: an archive read whole, its chunks found again
//! - [`rebuild`]: an index made anew from archives
//! - [`repack`]: the live chunks of wasteful archives put into new ones
//! - [`drills`]: what drills found
//! - [`locks`]: what must not be deleted for a time, where the storage can see to that
//! - [`trash`], [`garbage`]: what nothing references any more, condemned first and deleted later
//! - [`state`]: what this host remembers, in [`database`]s

pub mod chain;
pub mod database;
pub mod drills;
pub mod format;
pub mod frames;
pub mod garbage;
pub mod headers;
pub mod index;
mod kept;
pub mod keys;
pub mod layout;
pub mod locks;
pub mod parallel;
pub mod reader;
pub mod rebuild;
pub mod refs;
pub mod repack;
pub mod scan;
pub mod state;
#[cfg(test)]
mod sweep;
pub mod table;
pub mod trash;
pub mod tree;
pub mod trust;
pub mod writer;

use crate::base::cancel::Cancelled;
use crate::base::threads::{self, NoThread};
use crate::pipeline::PipelineError;
use crate::storage::{StorageError, StorageKey};

pub use trust::Repository;

/// Why a repository could not be read, trusted or written.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// Something stored is not what it must be: damage or forgery.
    #[error("object {key} is damaged: {problem}")]
    Damaged { key: StorageKey, problem: String },
    /// The same with a cause.
    #[error("object {key} is damaged")]
    DamagedBy {
        key: StorageKey,
        #[source]
        source: PipelineError,
    },
    /// A snapshot that no reader would take.
    #[error("two sources of the snapshot are called {name}")]
    Twice { name: crate::base::ids::SourceName },
    /// The object is not there at all.
    #[error("object {key} is missing")]
    Missing { key: StorageKey },
    /// A header, or this host's memory, knows more signers than there are: a revocation may have been hidden.
    #[error("signer {key} is missing: what it says, a revocation perhaps, is hidden")]
    SignersMissing { key: StorageKey },
    #[error("chunk {id} of stream {stream:?} of source {source_name:?} is in no archive that is at hand")]
    ChunkMissing { id: crate::base::ids::ChunkId, stream: String, source_name: String },
    #[error("stream {stream:?} of source {source_name:?}: {problem}")]
    Stream { stream: String, source_name: String, problem: String },
    #[error("no repository at {location}")]
    NoRepository { location: String },
    #[error("there is a repository at {location} already")]
    RepositoryExists { location: String },
    #[error("the repository at {location} is {found}, not {expected}")]
    ForeignRepository { location: String, found: String, expected: String },
    #[error("nothing says which repository is the right one at {location}: its root key is {found}")]
    Unpinned { location: String, found: String },
    #[error("{what} is of format {found}; this version reads format 1")]
    NewerFormat { what: String, found: u64 },
    #[error("{what} requires {requires:?}, which this version does not know")]
    Requires { what: String, requires: String },
    #[error("the host key does not sign for this repository: {problem}")]
    NotASigner { problem: String },
    #[error("{problem}")]
    Key { problem: String, hint: Option<String> },
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{action} in the state database {}", path.display())]
    State {
        action: &'static str,
        path: std::path::PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    /// An archive that this snapshot uses vanished, or was condemned, while it was being written.
    #[error("object {id} vanished while the snapshot was being written")]
    ReferencedGone { id: crate::base::ids::ObjectId },
    /// A prune that deletes at once holds the repository.
    #[error("a prune is deleting at once in {location}")]
    Pruning { location: String },
    #[error("two snapshots of {host}/{policy} carry sequence {sequence}: the history has been forked")]
    Fork { host: String, policy: String, sequence: u64 },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    #[error(transparent)]
    Thread(#[from] NoThread),
    #[error("a worker thread ended early")]
    Worker,
}

impl RepositoryError {
    /// Of an object whose bytes could not be opened: that no identity fits, or that there is no memory for it, is no
    /// damage of it.
    pub(crate) fn unopened(key: StorageKey, source: PipelineError) -> Self {
        match source {
            PipelineError::NoMatchingIdentity | PipelineError::NoMemory => RepositoryError::Pipeline(source),
            source => RepositoryError::DamagedBy { key, source },
        }
    }

    /// Whether something stored is damaged, missing or forged (exit code 4).
    pub fn is_integrity(&self) -> bool {
        match self {
            RepositoryError::Damaged { .. }
            | RepositoryError::DamagedBy { .. }
            | RepositoryError::Missing { .. }
            | RepositoryError::SignersMissing { .. }
            | RepositoryError::ChunkMissing { .. }
            | RepositoryError::Stream { .. }
            | RepositoryError::Fork { .. } => true,
            RepositoryError::Pipeline(e) => {
                matches!(e, PipelineError::Damaged { .. } | PipelineError::DamagedBy { .. })
            }
            _ => false,
        }
    }

    /// The object that is damaged or missing, where it is one.
    pub fn object(&self) -> Option<&StorageKey> {
        match self {
            RepositoryError::Damaged { key, .. }
            | RepositoryError::DamagedBy { key, .. }
            | RepositoryError::Missing { key }
            | RepositoryError::SignersMissing { key } => Some(key),
            _ => None,
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            RepositoryError::Storage(e) => return e.hint(),
            RepositoryError::Key { hint, .. } => return hint.clone(),
            RepositoryError::Pipeline(PipelineError::NoMatchingIdentity) => {
                "the identity at hand is not one of the recipients of this repository: name the right one with --identity FILE"
            }
            RepositoryError::NoRepository { .. } => "create it with `lifeboat init`, or check the repository's url",
            RepositoryError::RepositoryExists { .. } => "use it as it is, or name another folder",
            RepositoryError::ForeignRepository { .. } => {
                "somebody replaced it, or the url is another one's: check the url; name the repository id that you expect with --signer"
            }
            RepositoryError::Unpinned { .. } => {
                "compare it with the repository id in your recovery kit or identity file and give it as --signer; or take what is there with --trust-on-first-use"
            }
            RepositoryError::NewerFormat { .. } | RepositoryError::Requires { .. } => "use a newer version of lifeboat",
            RepositoryError::NotASigner { .. } => {
                "the root key must vouch for this host's key: `lifeboat init` on a new host, `lifeboat keys rotate` on one that has policies, with the identity at hand"
            }
            RepositoryError::SignersMissing { .. } => {
                "restore the object from a copy of the repository; without one, vouch anew with the root key"
            }
            RepositoryError::ReferencedGone { .. } => "run the snapshot again",
            RepositoryError::Pruning { .. } => "wait for it to end",
            RepositoryError::Thread(_) => threads::HINT,
            e if e.is_integrity() => "`lifeboat verify` names every damaged object and the snapshots that it costs",
            _ => return None,
        };
        Some(text.to_owned())
    }
}
