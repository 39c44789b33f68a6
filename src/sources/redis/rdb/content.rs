//! What the databases of an RDB hold, as sums of hashes that do not depend on the order of keys.
//!
//! Names and times to live mean the same in every file that a server writes of the same data, so they are compared
//! between a stored file and what a server wrote that had loaded it. Values are hashed as they stand encoded: that
//! proves the stored bytes, and says nothing about another server's encoding of the same value.

use std::collections::BTreeMap;
use std::fmt;

/// A sum of hashes: equal for equal sets, whatever their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::sources::redis) struct Sum(u128);

impl Sum {
    pub fn add(&mut self, hash: &[u8; 32]) {
        let mut half = [0; 16];
        half.copy_from_slice(&hash[..16]);
        self.0 = self.0.wrapping_add(u128::from_le_bytes(half));
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Keys of one type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::sources::redis) struct Values {
    pub keys: u64,
    /// Names and values, as they stand in the file.
    pub values: Sum,
}

/// What one database holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::sources::redis) struct Content {
    /// Keys with a time to live.
    pub expires: u64,
    /// Names and types.
    pub names: Sum,
    /// Names and times to live, of those that have one.
    pub expiry: Sum,
    /// By type: `hash`, `string`, …
    pub types: BTreeMap<&'static str, Values>,
}

impl Content {
    pub fn keys(&self) -> u64 {
        self.types.values().map(|t| t.keys).sum()
    }

    /// One more key: the hash of its name, the file's number of its type, the hash of its value.
    pub(super) fn add(&mut self, name: &[u8; 32], kind: u8, value: &[u8; 32], expiry: Option<i64>) {
        let class = class(kind);
        self.names.add(&hash(&[name, class.as_bytes()]));
        if let Some(expiry) = expiry {
            self.expires += 1;
            self.expiry.add(&hash(&[name, &expiry.to_le_bytes()]));
        }
        let values = self.types.entry(class).or_default();
        values.keys += 1;
        values.values.add(&hash(&[name, &[kind], value]));
    }
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// What `TYPE` says of a value that the file numbers so.
fn class(kind: u8) -> &'static str {
    match kind {
        0 => "string",
        1 | 10 | 14 | 18 => "list",
        2 | 11 | 20 => "set",
        3 | 5 | 12 | 17 => "sorted set",
        4 | 9 | 13 | 16 | 22..=25 => "hash",
        15 | 19 | 21 => "stream",
        _ => "module value",
    }
}

/// Unpacks LZF. Nothing is allocated by the length that is claimed, and what unpacks to another length is none.
pub(super) fn decompress(input: &[u8], length: u64) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::new();
    let mut input = input.iter().copied();
    while let Some(control) = input.next() {
        if control < 32 {
            for _ in 0..=control {
                out.push(input.next()?);
            }
        } else {
            let mut run = usize::from(control >> 5);
            if run == 7 {
                run += usize::from(input.next()?);
            }
            let back = usize::from(control & 0x1f) << 8 | usize::from(input.next()?);
            let from = out.len().checked_sub(back + 1)?;
            for at in from..from + run + 2 {
                out.push(*out.get(at)?);
            }
        }
        if out.len() as u64 > length {
            return None;
        }
    }
    (out.len() as u64 == length).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lzf_unpacks_and_refuses() {
        // Twenty times `a`, as Redis packs it: one literal, then a run that reaches back by one.
        let packed = [1, b'a', b'a', 0xe0, 9, 0];
        assert_eq!(decompress(&packed, 20).as_deref(), Some(&[b'a'; 20][..]));
        for (bytes, length) in [(&packed[..], 19), (&packed[..], 21), (&packed[..5], 20), (&[0x20, 0][..], 3)] {
            assert_eq!(decompress(bytes, length), None, "{bytes:?}");
        }
    }

    #[test]
    fn order_counts_for_nothing_and_everything_else_counts() {
        let key = |n: u8| [n; 32];
        let of = |entries: &[(u8, u8, u8, Option<i64>)]| {
            let mut content = Content::default();
            for (name, kind, value, expiry) in entries {
                content.add(&key(*name), *kind, &key(*value), *expiry);
            }
            content
        };
        let all = of(&[(1, 0, 7, None), (2, 4, 8, Some(5))]);
        assert_eq!(all, of(&[(2, 4, 8, Some(5)), (1, 0, 7, None)]));
        assert_eq!((all.keys(), all.expires), (2, 1));
        assert_ne!(all.expiry, of(&[(1, 0, 7, None), (2, 4, 8, Some(6))]).expiry);
        assert_ne!(all.expiry, of(&[(1, 0, 7, Some(5)), (2, 4, 8, None)]).expiry);
        assert_ne!(all.names, of(&[(3, 0, 7, None), (2, 4, 8, Some(5))]).names);
        assert_ne!(all.types["hash"], of(&[(1, 0, 7, None), (2, 4, 9, Some(5))]).types["hash"]);
        assert_eq!(all.names, of(&[(1, 0, 9, None), (2, 13, 8, None)]).names, "another encoding of the same");
    }
}
