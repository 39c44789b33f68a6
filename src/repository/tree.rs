//! A stream's chunk ids: a short list, or a tree of chunks of 40-byte entries (id ‖ u64 little-endian plain length).
//!
//! Writers cut the lists of entries at whole entries, by content, so that a list that changes in one place is mostly
//! known. The plain length of an inner entry is the sum of the lengths of the entries in it.

use crate::base::ids::ChunkId;
use crate::pipeline::limits;
use crate::repository::format::IdsTree;

/// Bytes of one entry.
pub const ENTRY: usize = 40;
const MIN_ENTRIES: usize = 16;
const MAX_ENTRIES: usize = 4096;
/// One entry in so many ends a list: the average length beyond the minimum. Ids do not compress, so a chunk that changes
/// costs its list: short ones cost less, and a level more.
const ENDS: u16 = 16;

/// One chunk and the plain bytes below it.
pub type Entry = (ChunkId, u64);

/// Builds the tree of `entries`; `store` keeps a list of entries as a chunk and returns its id.
pub fn build<E>(mut entries: Vec<Entry>, mut store: impl FnMut(&[u8]) -> Result<ChunkId, E>) -> Result<IdsTree, E> {
    let mut depth = 0;
    while entries.len() > limits::ROOT_ENTRIES {
        let mut above = Vec::new();
        let mut list = Vec::with_capacity(MAX_ENTRIES * ENTRY);
        let mut below = 0u64;
        let last = entries.len() - 1;
        for (n, (id, length)) in entries.iter().enumerate() {
            list.extend_from_slice(&id.0);
            list.extend_from_slice(&length.to_le_bytes());
            below += length;
            let count = list.len() / ENTRY;
            let ends = u16::from_le_bytes([id.0[0], id.0[1]]).is_multiple_of(ENDS);
            if (ends && count >= MIN_ENTRIES) || count == MAX_ENTRIES || n == last {
                above.push((store(&list)?, below));
                list.clear();
                below = 0;
            }
        }
        entries = above;
        depth += 1;
    }
    Ok(IdsTree { depth, root: entries })
}

/// Takes a list's bytes apart. `Err` when it is not whole entries.
pub fn parse_entries(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let (entries, rest) = bytes.as_chunks::<ENTRY>();
    if !rest.is_empty() {
        return Err("list of chunk ids ends within an entry".to_owned());
    }
    let parse = |entry: &[u8; ENTRY]| {
        let (mut id, mut length) = ([0u8; 32], [0u8; 8]);
        id.copy_from_slice(&entry[..32]);
        length.copy_from_slice(&entry[32..]);
        (ChunkId(id), u64::from_le_bytes(length))
    };
    Ok(entries.iter().map(parse).collect())
}

/// The entries of a list that stands for `length` plain bytes.
pub fn parse_list(bytes: &[u8], length: u64) -> Result<Vec<Entry>, String> {
    let entries = parse_entries(bytes)?;
    check_entries(&entries, length)?;
    Ok(entries)
}

/// Entries must make up the length above them; none may be empty, else a few lists that name each other often enough
/// would keep a reader busy for ever without one byte.
fn check_entries(entries: &[Entry], length: u64) -> Result<(), String> {
    let sum = entries.iter().try_fold(0u64, |sum, (_, n)| if *n == 0 { None } else { sum.checked_add(*n) });
    if sum == Some(length) { Ok(()) } else { Err("ids tree and stream length disagree".to_owned()) }
}

/// Checks what a manifest says of a tree before anything is read by it.
pub fn check(tree: &IdsTree, length: u64) -> Result<(), String> {
    if tree.depth > limits::DEPTH || tree.root.len() > limits::ROOT_ENTRIES {
        return Err(format!(
            "ids tree of depth {} with {} root entries is beyond the limits",
            tree.depth,
            tree.root.len()
        ));
    }
    check_entries(&tree.root, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::convert::Infallible;

    fn flatten(tree: &IdsTree, chunks: &HashMap<ChunkId, Vec<u8>>) -> Vec<Entry> {
        let mut entries = tree.root.clone();
        for _ in 0..tree.depth {
            entries = entries.iter().flat_map(|(id, _)| parse_entries(&chunks[id]).unwrap()).collect();
        }
        entries
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn a_tree_holds_its_entries(count in 0usize..6_000, seed: u64) {
            let entries: Vec<Entry> = (0..count as u64).map(|n| (ChunkId(*blake3::hash(&(n ^ seed).to_le_bytes()).as_bytes()), n + 1)).collect();
            let mut chunks = HashMap::new();
            let tree = build(entries.clone(), |list: &[u8]| {
                let id = ChunkId(*blake3::hash(list).as_bytes());
                chunks.insert(id, list.to_vec());
                Ok::<_, Infallible>(id)
            }).unwrap();
            prop_assert_eq!(tree.depth, u8::from(count > limits::ROOT_ENTRIES));
            check(&tree, entries.iter().map(|e| e.1).sum()).unwrap();
            prop_assert!(check(&tree, 1 + entries.iter().map(|e| e.1).sum::<u64>()).is_err());
            prop_assert_eq!(flatten(&tree, &chunks), entries);
        }
    }
}
