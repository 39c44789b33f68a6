//! What is remembered of a group of entries that were read: a fingerprint of their metadata, and the chunks that
//! their bytes became. A value that cannot be decoded is as good as none.

use super::frame::{Segment, SparseMap};
use super::walk::Found;
use crate::base::ids::ChunkId;
use crate::sources::Piece;

/// Part of every fingerprint: another way of framing entries makes other bytes.
const LAYOUT: &[u8] = b"lifeboat files 2";

/// What tells one entry's metadata.
pub type Print = [u8; 16];

/// What was remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    pub fingerprint: [u8; 32],
    /// What tells whether the piece's bytes are others now: see [`digest`].
    pub digest: [u8; 32],
    /// Bytes that each entry of the group takes in the tar. For a large file one: the whole entry.
    pub lengths: Vec<u64>,
    /// What told each entry of a group without large files; see [`super::parts`].
    pub prints: Vec<Print>,
    /// Of a large sparse file.
    pub map: Option<SparseMap>,
    pub piece: Piece,
}

/// What tells the bytes of a piece: how they were cut, and the keyed ids of the chunks that they became. Pieces that
/// were cut otherwise cannot be compared.
pub fn digest(cut: u32, piece: &Piece) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (id, _) in &piece.chunks {
        hasher.update(&id.0);
    }
    let mut digest = *hasher.finalize().as_bytes();
    digest[..4].copy_from_slice(&cut.to_le_bytes());
    digest
}

/// Whether two digests tell of different bytes.
pub fn differ(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a[..4] == b[..4] && a != b
}

/// The fingerprint of a group: all metadata that stands in the tar, and what tells that content has changed. Extended
/// attributes are not asked for: they change with the change time.
/// The device number is not part of it: many file systems get another one with every mount.
pub fn fingerprint(group: &[Found]) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(group.len() * 192);
    bytes.extend_from_slice(LAYOUT);
    group.iter().for_each(|found| describe(&mut bytes, found));
    *blake3::hash(&bytes).as_bytes()
}

/// The same of each entry.
pub fn prints(group: &[Found]) -> Vec<Print> {
    let mut bytes = Vec::with_capacity(256);
    let print = |found: &Found| {
        bytes.clear();
        bytes.extend_from_slice(LAYOUT);
        describe(&mut bytes, found);
        let mut print = Print::default();
        print.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
        print
    };
    group.iter().map(print).collect()
}

fn describe(bytes: &mut Vec<u8>, Found { entry, identity }: &Found) {
    field(bytes, &entry.path);
    let (tag, target): (u8, &[u8]) = match &entry.kind {
        super::entry::Kind::File => (0, b""),
        super::entry::Kind::Dir => (1, b""),
        super::entry::Kind::Symlink(target) => (2, target),
        super::entry::Kind::Hardlink(target) => (3, target),
        _ => (4, b""),
    };
    bytes.push(tag);
    field(bytes, target);
    for number in [entry.size, identity.ino, entry.mtime.seconds as u64, identity.ctime.seconds as u64] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for number in [entry.mode, entry.uid, entry.gid, entry.mtime.nanos, identity.ctime.nanos] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    field(bytes, entry.user.as_deref().unwrap_or_default().as_bytes());
    field(bytes, entry.group.as_deref().unwrap_or_default().as_bytes());
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

impl Remembered {
    /// A piece of a large file behind the first.
    pub fn stride(fingerprint: [u8; 32], digest: [u8; 32], piece: Piece) -> Self {
        Remembered { fingerprint, digest, lengths: Vec::new(), prints: Vec::new(), map: None, piece }
    }

    /// Whether the piece was cut in this way.
    pub fn is_cut(&self, cut: u32) -> bool {
        self.digest[..4] == cut.to_le_bytes()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96 + self.lengths.len() * 19 + self.piece.chunks.len() * 36);
        out.extend_from_slice(&self.fingerprint);
        out.extend_from_slice(&self.digest);
        number(&mut out, self.lengths.len() as u64);
        for length in &self.lengths {
            number(&mut out, *length);
        }
        number(&mut out, self.map.as_ref().map_or(0, |m| m.segments.len() as u64 + 1));
        for segment in self.map.iter().flat_map(|m| &m.segments) {
            number(&mut out, segment.offset);
            number(&mut out, segment.length);
        }
        number(&mut out, self.piece.chunks.len() as u64);
        for (id, length) in &self.piece.chunks {
            out.extend_from_slice(&id.0);
            number(&mut out, u64::from(*length));
        }
        number(&mut out, self.prints.len() as u64);
        self.prints.iter().for_each(|print| out.extend_from_slice(print));
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let fingerprint = hash(&mut rest)?;
        let digest = hash(&mut rest)?;
        let mut lengths = Vec::new();
        for _ in 0..read_number(&mut rest)? {
            lengths.push(read_number(&mut rest)?);
        }
        let map = match read_number(&mut rest)? {
            0 => None,
            n => {
                let mut segments = Vec::new();
                for _ in 1..n {
                    segments.push(Segment { offset: read_number(&mut rest)?, length: read_number(&mut rest)? });
                }
                Some(SparseMap { segments })
            }
        };
        let mut piece = Piece::default();
        for _ in 0..read_number(&mut rest)? {
            piece.chunks.push((ChunkId(hash(&mut rest)?), u32::try_from(read_number(&mut rest)?).ok()?));
        }
        let mut prints = Vec::new();
        // Earlier versions did not keep them.
        let count = if rest.is_empty() { 0 } else { read_number(&mut rest)? };
        for _ in 0..count {
            let (print, after) = rest.split_first_chunk()?;
            rest = after;
            prints.push(*print);
        }
        rest.is_empty().then_some(Remembered { fingerprint, digest, lengths, prints, map, piece })
    }
}

fn hash(rest: &mut &[u8]) -> Option<[u8; 32]> {
    let (hash, after) = rest.split_first_chunk::<32>()?;
    *rest = after;
    Some(*hash)
}

/// Seven bits a byte, the lowest first.
fn number(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn read_number(rest: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered() -> Remembered {
        Remembered {
            fingerprint: [1; 32],
            digest: [2; 32],
            lengths: vec![512, 0, u64::MAX],
            prints: vec![[3; 16], [4; 16]],
            map: Some(SparseMap { segments: vec![Segment { offset: 9 << 30, length: 0 }] }),
            piece: Piece { chunks: vec![(ChunkId([7; 32]), 16_384), (ChunkId([8; 32]), 1)] },
        }
    }

    #[test]
    fn sweep_remembered_files() {
        let words: [&[u8]; 3] = [&[0xff; 10], &[0x80; 9], &[0; 36]];
        crate::base::fuzz::Fuzz::of("remembered").seed(remembered().encode()).words(&words).run(|bytes| {
            if let Some(found) = Remembered::decode(bytes) {
                assert_eq!(Remembered::decode(&found.encode()), Some(found));
            }
        });
    }

    #[test]
    fn comes_back_as_it_was_and_refuses_damage() {
        let r = remembered();
        let bytes = r.encode();
        assert_eq!(Remembered::decode(&bytes), Some(r.clone()));
        assert_eq!(Remembered::decode(&Remembered { map: None, ..r.clone() }.encode()).unwrap().map, None);
        let without = bytes.len() - 33;
        for n in (0..bytes.len()).filter(|n| *n != without) {
            assert_eq!(Remembered::decode(&bytes[..n]), None);
        }
        let earlier = Remembered { prints: vec![], ..r };
        assert_eq!(Remembered::decode(&bytes[..without]), Some(earlier), "of an earlier version");
    }
}
