//! What a stream is, for the sources that make them and the repository that keeps them.

use serde::{Deserialize, Serialize};

/// What the bytes of a stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StreamKind {
    /// A POSIX tar of paths; it has a listing beside it.
    Tar,
    /// The listing of a tar stream: one [`ListingEntry`] a line, in the order of the tar.
    Listing,
    /// `pg_dump --format=custom`.
    PgDump,
    /// `pg_dumpall --globals-only`.
    Sql,
    /// A Redis RDB file.
    Rdb,
    /// A git bundle.
    GitBundle,
    /// Anything else: a command's output, a patch, a text.
    Raw,
}

impl StreamKind {
    /// Whether the stream is always read whole, so that a SHA-256 of its plain bytes is recorded.
    pub fn is_read_whole(self) -> bool {
        !matches!(self, StreamKind::Tar | StreamKind::Listing)
    }
}

/// The type of a file in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    File,
    Dir,
    Symlink,
    /// A further name of a file that stands earlier in the tar.
    Hardlink,
}

/// One line of a listing: what `ls`, `find`, `diff` and partial restore need, without reading the tar.
///
/// Paths are what stands in the tar: relative, no leading `/`. A path that is not UTF-8 stands percent-encoded in
/// `path` and exactly in `path_hex`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListingEntry {
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    #[serde(rename = "type")]
    pub file_type: FileType,
    /// Bytes of content; 0 for what has none.
    pub size: u64,
    /// Permission bits, as a number (0o644 is 420).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Owner's names at capture, where the host knew them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Modification time: seconds since the epoch (may be negative) …
    pub mtime: i64,
    /// … and nanoseconds.
    #[serde(default)]
    pub mtime_ns: u32,
    /// Target of a symlink, or of a hard link (a path in this tar).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The target exactly, in hex, where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_hex: Option<String>,
    /// Where the entry's first header begins in the tar stream, in bytes.
    pub offset: u64,
    /// Bytes that the entry takes in the tar stream, headers and padding included.
    pub length: u64,
}
