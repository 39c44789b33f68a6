//! Whether two entries of two tars have the same content, with as little reading as possible.
//!
//! Equal chunk ids at equal places are equal bytes: that costs no reading. Entries whose chunks differ are read and
//! compared, until the caller's budget is spent; an unchanged file differs in its chunks only when a neighbour in the
//! same group has changed, so what is read is about as much as has changed.

use crate::base::ids::ChunkId;
use crate::ops::OpsError;
use crate::ops::browse::cat::disagree;
use crate::ops::browse::listing::{Listed, Tree};
use crate::repository::reader::ChunkIds;
use crate::sources::extract::{Archive, write_content};
use crate::sources::files::entry::Kind;
use serde::Serialize;
use std::io::{self, Write};

/// Sparse files whose holes lie elsewhere are compared up to this size.
const MAX_EXPANDED: u64 = 256 << 20;

/// What is known of two contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    Same,
    Different,
    /// It was not read: the budget was spent.
    Unknown,
    /// Not both are files.
    None,
}

/// What comparing two entries found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compared {
    pub content: Content,
    /// Extended attributes or ACLs differ, as far as that is known.
    pub attributes: bool,
}

/// The chunks of a tar, passed over in the order of its entries.
struct Chunks<'a> {
    tree: Tree<'a>,
    ids: ChunkIds<'a>,
    current: Option<(ChunkId, u64)>,
    /// Where the current chunk begins and ends.
    start: u64,
    end: u64,
}

impl<'a> Chunks<'a> {
    fn open(tree: Tree<'a>) -> Result<Self, OpsError> {
        Ok(Self { tree, ids: tree.tar.chunk_ids()?, current: None, start: 0, end: 0 })
    }

    /// The chunk that holds a byte at or behind the last one asked for: its id, and how far before `base` it begins.
    fn at(&mut self, offset: u64, base: u64) -> Result<Option<(ChunkId, i128)>, OpsError> {
        while self.current.is_none() || self.end <= offset {
            let next = self.ids.next_chunk().map_err(|e| self.tree.tar.error(e))?;
            let Some((_, length)) = next else { return Ok(None) };
            self.current = next;
            self.start = self.end;
            self.end += length;
        }
        Ok(self.current.filter(|_| self.start <= offset).map(|(id, _)| (id, i128::from(self.start) - i128::from(base))))
    }
}

/// Two tars that are compared entry by entry, in order.
pub struct Contents<'a> {
    before: Tree<'a>,
    after: Tree<'a>,
    /// Absent when entries do not come in the order of the tars.
    chunks: Option<(Chunks<'a>, Chunks<'a>)>,
    /// Bytes of the tars that may still be read.
    budget: u64,
}

impl<'a> Contents<'a> {
    pub fn open(before: Tree<'a>, after: Tree<'a>, in_order: bool, budget: u64) -> Result<Self, OpsError> {
        let chunks = if in_order { Some((Chunks::open(before)?, Chunks::open(after)?)) } else { None };
        Ok(Self { before, after, chunks, budget })
    }

    /// What is left of the budget.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Whether two entries are the same bytes, headers included, by their chunk ids alone.
    pub fn same_bytes(&mut self, a: &Listed, b: &Listed) -> Result<bool, OpsError> {
        let Some((before, after)) = &mut self.chunks else { return Ok(false) };
        let length = a.entry.length;
        if length != b.entry.length || length == 0 {
            return Ok(false);
        }
        let mut at = 0;
        while at < length {
            let x = before.at(a.entry.offset.saturating_add(at), a.entry.offset)?;
            let y = after.at(b.entry.offset.saturating_add(at), b.entry.offset)?;
            if x.is_none() || x != y {
                return Ok(false);
            }
            at = before.end - a.entry.offset;
        }
        Ok(true)
    }

    /// Reads and compares two entries of one type and size.
    pub fn compare(&mut self, a: &Listed, b: &Listed) -> Result<Compared, OpsError> {
        let cost = a.entry.length.saturating_add(b.entry.length);
        if cost > self.budget {
            return Ok(Compared { content: Content::Unknown, attributes: false });
        }
        self.budget -= cost;
        let x = Digest::of(self.before, a)?;
        let y = Digest::of(self.after, b)?;
        let content = match (x.content, y.content) {
            (None, None) => Content::None,
            (Some(x), Some(y)) if x == y => Content::Same,
            // Another map of holes makes another digest of the same content.
            (Some((map, _)), Some((other, _))) if map != other => match (x.expanded, y.expanded) {
                (Some(x), Some(y)) if x == y => Content::Same,
                (Some(_), Some(_)) => Content::Different,
                _ => Content::Unknown,
            },
            _ => Content::Different,
        };
        Ok(Compared { content, attributes: x.attributes != y.attributes })
    }
}

/// What an entry's bytes come to.
struct Digest {
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Hashes of the map of holes and of the data; absent for what has no content.
    content: Option<([u8; 32], [u8; 32])>,
    /// Hash of the content with its holes as zeros; absent when there are none, or too many.
    expanded: Option<[u8; 32]>,
}

impl Digest {
    fn of(tree: Tree<'_>, listed: &Listed) -> Result<Self, OpsError> {
        let mut reader = tree.tar.range(listed.entry.offset, listed.entry.length)?;
        let mut archive = Archive::part(&mut reader);
        let member = match archive.next_member() {
            Ok(Some(member)) if member.entry.path == listed.path => member,
            Ok(_) => return Err(disagree(tree, listed)),
            Err(e) => return Err(reader.tar_failure(e.into())),
        };
        let mut attributes = member.entry.xattrs.clone();
        attributes.sort();
        if member.entry.kind != Kind::File {
            return Ok(Self { attributes, content: None, expanded: None });
        }
        let mut map = blake3::Hasher::new();
        for s in member.map.iter().flat_map(|m| &m.segments) {
            map.update(&s.offset.to_le_bytes()).update(&s.length.to_le_bytes());
        }
        let map = *map.finalize().as_bytes();
        let mut hash = Hash(blake3::Hasher::new());
        let expand = member.map.is_some() && member.entry.size <= MAX_EXPANDED;
        if expand {
            if let Err(e) = write_content(&mut archive, &member, &mut hash) {
                return Err(reader.tar_failure(e));
            }
            let hash = *hash.0.finalize().as_bytes();
            return Ok(Self { attributes, content: Some((map, hash)), expanded: Some(hash) });
        }
        let sparse = member.map.is_some();
        if let Err(e) = io::copy(&mut archive, &mut hash) {
            return Err(reader.failure(e));
        }
        let hash = *hash.0.finalize().as_bytes();
        Ok(Self { attributes, content: Some((map, hash)), expanded: (!sparse).then_some(hash) })
    }
}

struct Hash(blake3::Hasher);

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
