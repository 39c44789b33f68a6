//! What a group that has changed still has of what is remembered of it: entries that are as they were, one behind the
//! other, between two ends of chunks. They are taken over without being read.
//!
//! Invariant: the chunks are those that reading would have made. A part begins where a chunk begins in both, and ends
//! where an entry ends a chunk by itself, or where both groups end; in between, equal bytes are cut equally.

use super::memo::{Print, Remembered};
use crate::sources::Piece;
use std::collections::HashMap;

/// See the module.
pub(super) struct Parts {
    known: Remembered,
    /// Where each entry begins, and where the last one ends.
    starts: Vec<u64>,
    /// Where chunks begin and the last one ends, and how many are before.
    cuts: HashMap<u64, usize>,
    places: HashMap<Print, usize>,
}

/// Some entries that can be taken over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Bytes that each of them takes.
    pub lengths: Vec<u64>,
    pub piece: Piece,
}

fn sums(lengths: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut sum = 0u64;
    let ends = lengths.map(|length| {
        sum = sum.saturating_add(length);
        sum
    });
    [0].into_iter().chain(ends).collect()
}

impl Parts {
    /// `None` where nothing is known of single entries.
    pub fn of(known: Remembered) -> Option<Self> {
        let starts = sums(known.lengths.iter().copied());
        let cuts = sums(known.piece.chunks.iter().map(|(_, length)| u64::from(*length)));
        if known.prints.len() != known.lengths.len() || starts.last() != cuts.last() {
            return None;
        }
        let cuts = cuts.into_iter().enumerate().map(|(n, at)| (at, n)).collect();
        let places = known.prints.iter().enumerate().map(|(n, print)| (*print, n)).collect();
        Some(Self { known, starts, cuts, places })
    }

    /// The longest part that begins with the first of `group`, which is the rest of one. `ends_chunk` says whether an entry,
    /// by its number and length, ends a chunk.
    pub fn at(&self, group: &[Print], ends_chunk: impl Fn(usize, u64) -> bool) -> Option<Part> {
        let first = *self.places.get(group.first()?)?;
        let from = *self.cuts.get(&self.starts[first])?;
        let mut found = None;
        let same = group.iter().zip(&self.known.prints[first..]).take_while(|(a, b)| a == b).count();
        for n in 0..same {
            let place = first + n;
            let both_end = n + 1 == group.len() && place + 1 == self.known.prints.len();
            if (both_end || ends_chunk(n, self.known.lengths[place]))
                && let Some(to) = self.cuts.get(&self.starts[place + 1])
            {
                found = Some((place + 1, *to));
            }
        }
        let (end, to) = found?;
        let lengths = self.known.lengths[first..end].to_vec();
        Some(Part { lengths, piece: Piece { chunks: self.known.piece.chunks[from..to].to_vec() } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::ChunkId;

    /// Entries 0 to 4 of ten bytes; chunks end behind 0, within 2, and behind 2 and 4.
    fn parts() -> Parts {
        let chunk = |n: u8, length: u32| (ChunkId([n; 32]), length);
        Parts::of(Remembered {
            fingerprint: [0; 32],
            digest: [0; 32],
            lengths: vec![10; 5],
            prints: (0..5).map(|n| [n; 16]).collect(),
            map: None,
            piece: Piece { chunks: vec![chunk(0, 10), chunk(1, 15), chunk(2, 5), chunk(3, 20)] },
        })
        .unwrap()
    }

    fn take(group: &[u8]) -> Option<(usize, Vec<u8>)> {
        let prints: Vec<Print> = group.iter().map(|n| [*n; 16]).collect();
        let ends = |n: usize, _| matches!(group[n], 0 | 2);
        let part = parts().at(&prints, ends)?;
        Some((part.lengths.len(), part.piece.chunks.iter().map(|(id, _)| id.0[0]).collect()))
    }

    #[test]
    fn parts_lie_between_ends_of_chunks() {
        assert_eq!(take(&[0, 1, 2, 3, 4]), Some((5, vec![0, 1, 2, 3])));
        assert_eq!(take(&[0, 9, 2]), Some((1, vec![0])));
        assert_eq!(take(&[1, 2, 9]), Some((2, vec![1, 2])));
        assert_eq!(take(&[3, 4]), Some((2, vec![3])), "both end here");
        assert_eq!(take(&[3, 4, 9]), None, "the chunk would go on");
        assert_eq!(take(&[2, 3, 4]), None, "2 begins within a chunk");
        assert_eq!(take(&[1, 9]), None, "1 ends within one");
        assert_eq!(take(&[9, 1, 2]), None);
        assert_eq!(take(&[]), None);
    }
}
