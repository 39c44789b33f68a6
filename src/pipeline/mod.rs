//! L1: bytes in, sealed archives out, and back. No I/O of its own: whoever calls it brings the bytes.
//!
//! - [`chunk`]: content-defined cutting and keyed chunk ids
//! - [`segment`]: chunks as tar entries, compressed together as one zstd frame
//! - [`archive`]: frames sealed into one age file, and a frame opened by a ranged read
//! - [`crypt`]: age recipients and identities; whole objects sealed and opened
//! - `noise`: what does not compress, recognised
//! - `payload`: the pieces behind an age header
//! - `stored`: frames of noise
//! - [`sign`]: one JSON line and its SSH signature

pub mod archive;
pub mod chunk;
pub mod crypt;
mod noise;
mod payload;
pub mod segment;
pub mod sign;
mod stored;
#[cfg(test)]
mod sweep;

/// Limits of format 1, enforced before anything is allocated.
pub mod limits {
    /// The largest chunk, plain.
    pub const CHUNK: usize = 8 << 20;
    /// The largest frame, plain.
    pub const FRAME: usize = 16 << 20;
    /// The largest archive, stored.
    pub const ARCHIVE: u64 = 64 << 20;
    /// An archive is closed once it is this long.
    pub const ARCHIVE_TARGET: usize = 16 << 20;
    /// An archive is closed once it holds this many chunks. With the few of one more frame it still fits into one
    /// index object.
    pub const ARCHIVE_CHUNKS: usize = 32_768;
    /// The largest frame, compressed: zstd adds less than this to what does not compress.
    pub const FRAME_STORED: u32 = (16 << 20) + (128 << 10);
    /// The largest window that a zstd frame may ask for, as a power of two.
    pub const WINDOW_LOG: u32 = 27;
    /// Entries of one index object.
    pub const INDEX_ENTRIES: usize = 65_536;
    /// An index object: stored, and plain.
    pub const INDEX_STORED: u64 = 32 << 20;
    pub const INDEX_PLAIN: usize = 32 << 20;
    /// A manifest: stored, and plain.
    pub const MANIFEST_STORED: u64 = 64 << 20;
    pub const MANIFEST_PLAIN: usize = 64 << 20;
    /// A refs object.
    pub const REFS: u64 = 64 << 20;
    /// Any signed object.
    pub const SIGNED: u64 = 1 << 20;
    /// Entries of an ids tree's root.
    pub const ROOT_ENTRIES: usize = 1024;
    /// The deepest ids tree.
    pub const DEPTH: u8 = 4;
}

/// Bytes that are not what they should be, or could not be sealed. `problem` names what was wrong.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error("{problem}")]
    Damaged { problem: String },
    #[error("{problem}")]
    DamagedBy {
        problem: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing is wrong with the bytes: this machine could not unpack them.
    #[error("there is not enough memory to unpack it")]
    NoMemory,
    #[error("no identity at hand opens it")]
    NoMatchingIdentity,
    #[error("{action}")]
    Seal {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{text:?} is not a recipient: {problem}")]
    Recipient { text: String, problem: &'static str },
    #[error("{problem}")]
    Identity { problem: String },
    /// The bytes could not be fetched: storage's failure, carried through.
    #[error("read stored bytes")]
    Fetch(#[source] std::io::Error),
}

impl PipelineError {
    pub(crate) fn damaged(problem: impl Into<String>) -> Self {
        PipelineError::Damaged { problem: problem.into() }
    }

    /// Of what zstd says when it unpacks. That it got no memory is no damage; the C library's name of it is all there is.
    pub(crate) fn unpack(problem: &'static str, source: Box<dyn std::error::Error + Send + Sync>) -> Self {
        match source.to_string().starts_with("Allocation error") {
            true => PipelineError::NoMemory,
            false => PipelineError::DamagedBy { problem, source },
        }
    }
}
