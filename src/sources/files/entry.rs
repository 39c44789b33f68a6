//! One entry of a tree: what a walk finds, what a tar header says, and what extraction lays out again.
//!
//! Paths are bytes, relative, without a leading or trailing `/`: what stands in the tar.

use crate::base::stream::{FileType, ListingEntry};
use std::sync::Arc;

/// A point in time as file systems keep it: seconds since the epoch (may be negative) and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    pub seconds: i64,
    pub nanos: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    /// The link's text, exactly.
    Symlink(Vec<u8>),
    /// A further name of the entry at that path, which stands earlier.
    Hardlink(Vec<u8>),
    Fifo,
    /// Major and minor number.
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
}

impl Kind {
    /// For messages.
    pub fn noun(&self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Dir => "folder",
            Kind::Symlink(_) => "symlink",
            Kind::Hardlink(_) => "hard link",
            Kind::Fifo => "fifo",
            Kind::CharDevice(..) => "character device",
            Kind::BlockDevice(..) => "block device",
        }
    }
}

/// Flags of a captured file stand among its attributes under this name, which no namespace of attributes has. In the tar
/// they are a record of their own, and what is read from a tar has none: no file is made that its owner cannot remove.
pub const FLAGS: &[u8] = b"flags";

/// Extended attributes, name and value, sorted by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// One entry and all of its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Bytes of content, holes included; 0 for what has none.
    pub size: u64,
    /// Permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub user: Option<Arc<str>>,
    pub group: Option<Arc<str>>,
    pub mtime: Time,
    /// Extended attributes by name; POSIX ACLs are among them as `system.posix_acl_access` and `…_default`.
    pub xattrs: Xattrs,
}

impl Entry {
    /// Bytes of memory that it takes beside its fixed size: an archive may put megabytes into attributes.
    pub fn metadata_bytes(&self) -> usize {
        let target = match &self.kind {
            Kind::Symlink(target) | Kind::Hardlink(target) => target.len(),
            _ => 0,
        };
        self.path.len() + target + self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }

    /// The line of the listing; `None` for what a listing does not know (FIFOs and devices).
    pub fn listing(&self, offset: u64, length: u64) -> Option<ListingEntry> {
        let (file_type, target) = match &self.kind {
            Kind::File => (FileType::File, None),
            Kind::Dir => (FileType::Dir, None),
            Kind::Symlink(target) => (FileType::Symlink, Some(target)),
            Kind::Hardlink(target) => (FileType::Hardlink, Some(target)),
            Kind::Fifo | Kind::CharDevice(..) | Kind::BlockDevice(..) => return None,
        };
        let (path, path_hex) = text_or_hex(&self.path);
        let (target, target_hex) = match target.map(|t| text_or_hex(t)) {
            Some((text, hex)) => (Some(text), hex),
            None => (None, None),
        };
        Some(ListingEntry {
            path,
            path_hex,
            file_type,
            size: self.size,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            user: self.user.as_deref().map(str::to_owned),
            group: self.group.as_deref().map(str::to_owned),
            mtime: self.mtime.seconds,
            mtime_ns: self.mtime.nanos,
            target,
            target_hex,
            offset,
            length,
        })
    }
}

/// Bytes as text, and in hex where the text cannot say them exactly.
fn text_or_hex(bytes: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (percent_encode(bytes), Some(hex::encode(bytes))),
    }
}

/// What is not UTF-8 as `%FF`; so is `%` itself, or the text would be ambiguous.
fn percent_encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(&chunk.valid().replace('%', "%25"));
        for byte in chunk.invalid() {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// A path for messages: what is not UTF-8 or not printable is escaped.
pub fn display(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_not_text_are_kept_exactly() {
        assert_eq!(text_or_hex("a/ž%".as_bytes()), ("a/ž%".into(), None));
        assert_eq!(text_or_hex(b"a\xff%"), ("a%FF%25".into(), Some("61ff25".into())));
        assert_eq!(display(b"a\n\xff"), "a\\n\\xff");
    }
}
