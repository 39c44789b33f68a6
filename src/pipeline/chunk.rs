//! Content-defined cutting (FastCDC 2020 with a keyed gear table) and keyed chunk ids.
//!
//! What does not compress (pictures, films, archives, what is encrypted) is cut coarser: it seldom changes within, and each
//! chunk of it costs a tar header, an entry of the index and one of the ids, none of which compress either. Whether a
//! chunk begins with noise is seen by its first bytes alone, so equal bytes behind equal cuts are cut equally.
//!
//! The gear table comes from the dedup key by BLAKE3's extendable output: without the key an observer of sizes
//! cannot tell where a known file would be cut. Ids are keyed BLAKE3, so that equal content is seen to be equal by
//! holders of the key alone.

use crate::base::ids::{ChunkId, DedupKeyId};
use crate::base::secret::Secret;
use crate::base::stream::StreamKind;
use crate::pipeline::{limits, noise};
use fastcdc::v2020::{Normalization, cut_gear, select_masks};

const CHUNK_ID_CONTEXT: &str = "lifeboat 2026-11 format 1 chunk id key";
const CHUNKER_CONTEXT: &str = "lifeboat 2026-11 format 1 chunker table";
const DEDUP_ID_CONTEXT: &str = "lifeboat 2026-11 format 1 dedup key id";

/// The key that chunk ids are made with. It stands in every manifest, so that readers can check what they read.
#[derive(Clone, Debug)]
pub struct ChunkIdKey(Secret<[u8; 32]>);

impl ChunkIdKey {
    /// Derives the key from a host's dedup secret.
    pub fn derive(dedup_secret: &[u8; 32]) -> Self {
        Self(Secret::new(blake3::derive_key(CHUNK_ID_CONTEXT, dedup_secret)))
    }

    /// A key as a manifest holds it.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Secret::new(bytes))
    }

    /// The key itself, for the manifest.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// The id of a chunk's plain bytes.
    pub fn id(&self, plain: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(self.0.expose(), plain).as_bytes())
    }

    /// The public fingerprint under which an index object names the key.
    pub fn dedup_id(&self) -> DedupKeyId {
        DedupKeyId(blake3::derive_key(DEDUP_ID_CONTEXT, self.0.expose()))
    }
}

/// A power of two, from 4 KiB to 1 MiB: the chunk size that cutting aims at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkAverage(u32);

impl ChunkAverage {
    pub const MIN: ChunkAverage = ChunkAverage(4 << 10);
    pub const MAX: ChunkAverage = ChunkAverage(1 << 20);

    /// `None` unless it is a power of two within the limits.
    pub fn new(bytes: u32) -> Option<Self> {
        (bytes.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&bytes)).then_some(Self(bytes))
    }

    /// The average for a stream of about `length` bytes: 16 KiB up to 4 GiB, then such that the stream has about
    /// 262,144 chunks, so that index and ids tree stay small for any size. Of files it is 32 KiB at least: what changes
    /// among them are mostly whole files, so a day's changes are hardly more, and the first day is less.
    pub fn fitting(kind: StreamKind, length: u64) -> Self {
        Self(Self::ideal(kind, length).min(u64::from(Self::MAX.0)) as u32)
    }

    fn ideal(kind: StreamKind, length: u64) -> u64 {
        let finest = if kind == StreamKind::Tar { 32 << 10 } else { 16 << 10 };
        (length >> 18).next_power_of_two().max(finest)
    }

    /// The average for a stream that was cut by another one before: that one stays until the fitting one is sixteen times
    /// as large or as small, for with a new one the whole stream is stored anew. By that a stream grows to two million
    /// chunks, whose ids take 84 MB while it is written; only where nobody knew its length the first time are there more.
    pub fn after(had: Option<u32>, kind: StreamKind, length: u64) -> Self {
        let ideal = Self::ideal(kind, length);
        let is_near = |had: &Self| u64::from(had.0) / ideal < 16 && ideal / u64::from(had.0) < 16;
        had.and_then(Self::new).filter(is_near).unwrap_or_else(|| Self::fitting(kind, length))
    }

    /// The average in bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }
}

/// The keyed gear table: 256 words of it, and the same shifted left by one, as the cutter wants them.
#[derive(Clone)]
pub struct GearTable {
    gear: Box<[u64; 256]>,
    gear_ls: Box<[u64; 256]>,
}

impl GearTable {
    /// Derives the table from a host's dedup secret.
    pub fn derive(dedup_secret: &[u8; 32]) -> Self {
        let mut bytes = [0u8; 2048];
        let mut hasher = blake3::Hasher::new_derive_key(CHUNKER_CONTEXT);
        hasher.update(dedup_secret);
        hasher.finalize_xof().fill(&mut bytes);
        let mut gear = Box::new([0u64; 256]);
        for (word, bytes) in gear.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let mut gear_ls = gear.clone();
        gear_ls.iter_mut().for_each(|word| *word <<= 1);
        Self { gear, gear_ls }
    }
}

/// How long chunks become.
#[derive(Clone)]
struct Lengths {
    min: usize,
    average: usize,
    max: usize,
    mask_s: u64,
    mask_l: u64,
}

impl Lengths {
    fn new(min: usize, average: usize, max: usize) -> Self {
        let (mask_s, mask_l) = select_masks(average, Normalization::Level2);
        Self { min, average, max, mask_s, mask_l }
    }
}

/// Cuts one stream.
#[derive(Clone)]
pub struct Chunker {
    table: GearTable,
    average: ChunkAverage,
    fine: Lengths,
    /// Of noise.
    coarse: Lengths,
    /// By so many bytes behind a cut it is seen whether they are noise.
    looked_at: usize,
}

/// The fourth way of cutting of format 1: noise is cut eight times as coarse, or coarser, and looked through for a cut only
/// where there may be one. An even number: whoever remembers a way has its lowest bit for himself.
const WAY: u32 = 6;
const _: () = assert!(WAY.is_multiple_of(2));
/// Chunks of noise are at least so many times as long, as far as [`ChunkAverage::MAX`] allows.
const COARSER: usize = 8;

impl Chunker {
    /// Chunks of a quarter of the average at least (but the last), and eight times it at most; of noise the coarser average
    /// and twice it, where behind the least each quarter of it holds a cut: what is not looked through costs nothing, and
    /// with a fifth of the length to be looked through, two cuts meet again behind a change soon enough.
    pub fn new(table: GearTable, average: ChunkAverage) -> Self {
        let avg = average.0 as usize;
        let fine = Lengths::new(avg / 4, avg, (avg * 8).min(limits::CHUNK));
        let avg = (avg * COARSER).min(ChunkAverage::MAX.0 as usize);
        let coarse = Lengths::new(avg, avg, avg * 2);
        Self { table, average, fine, coarse, looked_at: avg / 2 }
    }

    /// The size that the chunker aims at.
    pub fn average(&self) -> ChunkAverage {
        self.average
    }

    /// Tells this way of cutting from others, those of former versions included: equal bytes become equal chunks where it
    /// is equal.
    pub fn way(&self) -> u32 {
        self.average.0 + WAY
    }

    /// The longest chunk; with at least this much at hand, [`Chunker::cut`] never needs to see more.
    pub fn max(&self) -> usize {
        self.fine.max.max(self.coarse.max)
    }

    /// The length of the first chunk of `bytes`, which reach to the end of the piece (or hold [`Chunker::max`] bytes).
    pub fn cut(&self, bytes: &[u8]) -> usize {
        self.cut_to(bytes, self.lengths(bytes))
    }

    /// The same where the piece goes on; none as long as what follows may decide.
    pub fn cut_known(&self, bytes: &[u8]) -> Option<usize> {
        if bytes.len() <= self.looked_at {
            return None;
        }
        let lengths = self.lengths(bytes);
        let length = self.cut_to(bytes, lengths);
        (length < bytes.len() || length == lengths.max).then_some(length)
    }

    fn lengths(&self, bytes: &[u8]) -> &Lengths {
        let is_noise =
            bytes.len() > self.looked_at && noise::is_noise::<NOISE_RUN>(&bytes[..self.looked_at], NOISE_RUNS);
        if is_noise { &self.coarse } else { &self.fine }
    }

    fn cut_to(&self, bytes: &[u8], lengths: &Lengths) -> usize {
        if bytes.len() <= lengths.min {
            return bytes.len();
        }
        let (_, length) = cut_gear(
            bytes,
            lengths.min,
            lengths.average,
            lengths.max,
            lengths.mask_s,
            lengths.mask_l,
            lengths.mask_s << 1,
            lengths.mask_l << 1,
            &self.table.gear[..],
            &self.table.gear_ls[..],
        );
        length
    }
}

/// The sample by which noise is told: a microsecond's worth, for there is one for each chunk.
const NOISE_RUN: usize = 64;
const NOISE_RUNS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    fn cut_all(chunker: &Chunker, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        while !bytes.is_empty() {
            let n = chunker.cut(&bytes[..bytes.len().min(chunker.max())]);
            assert_eq!(n, chunker.cut(bytes), "what lies behind the longest chunk is not looked at");
            let (looked_at, min) = (chunker.looked_at, chunker.coarse.min);
            let aheads = [n / 2, n, n + 1, n * 3, looked_at, looked_at + 1, min, min + 1, chunker.max()];
            for ahead in aheads.map(|ahead| ahead.min(bytes.len())) {
                let known = chunker.cut_known(&bytes[..ahead]);
                assert!(known.is_none_or(|known| known == n), "{known:?} is known of {n} by {ahead}");
                assert!(known.is_some() || ahead < chunker.max(), "the longest chunk is known");
            }
            chunks.push(bytes[..n].to_vec());
            bytes = &bytes[n..];
        }
        chunks
    }

    fn chunker(secret: u8) -> Chunker {
        Chunker::new(GearTable::derive(&[secret; 32]), ChunkAverage::MIN)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn chunks_make_up_the_input_and_keep_their_limits(seed: u64, length in 0usize..300_000) {
            let bytes = noise(seed, length);
            let chunker = chunker(1);
            let chunks = cut_all(&chunker, &bytes);
            prop_assert_eq!(chunks.concat(), &bytes[..]);
            for length in [chunker.looked_at, chunker.coarse.min].into_iter().flat_map(|n| [n, n + 1]) {
                cut_all(&chunker, &bytes[..length.min(bytes.len())]);
            }
            for (i, chunk) in chunks.iter().enumerate() {
                prop_assert!(chunk.len() <= chunker.max());
                prop_assert!(chunk.len() >= chunker.fine.min || i + 1 == chunks.len());
            }
        }

        #[test]
        fn an_insertion_moves_few_boundaries(seed: u64, at in 0usize..400_000, inserted in 1usize..100) {
            let bytes = noise(seed, 400_000);
            let mut changed = bytes.clone();
            changed.splice(at..at, noise(!seed, inserted));
            let chunker = chunker(1);
            let before: std::collections::HashSet<_> = cut_all(&chunker, &bytes).into_iter().collect();
            let new = cut_all(&chunker, &changed).into_iter().filter(|c| !before.contains(c)).count();
            prop_assert!(new <= 12, "{} of {} chunks are new", new, before.len());
        }
    }

    #[test]
    fn the_key_decides_boundaries_and_ids() {
        let bytes = noise(7, 200_000);
        let lengths = |secret| cut_all(&chunker(secret), &bytes).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths(1), lengths(1));
        assert_ne!(lengths(1), lengths(2));
        let (a, b) = (ChunkIdKey::derive(&[1; 32]), ChunkIdKey::derive(&[2; 32]));
        assert_ne!(a.id(b"x"), b.id(b"x"));
        assert_ne!(a.dedup_id(), b.dedup_id());
    }

    /// As long as said, and cut at the same places again behind a change of one kind into the other.
    #[test]
    fn noise_is_cut_coarser_than_text() {
        let chunker = Chunker::new(GearTable::derive(&[1; 32]), ChunkAverage(16 << 10));
        let random = noise(3, 4 << 20);
        let text: Vec<u8> = random.iter().map(|b| b'a' + b % 16).collect();
        let mean = |bytes: &[u8]| bytes.len() / cut_all(&chunker, bytes).len();
        assert!((120 << 10..200 << 10).contains(&mean(&random)), "{}", mean(&random));
        assert!((14 << 10..26 << 10).contains(&mean(&text)), "{}", mean(&text));
        let known: std::collections::HashSet<_> = [&text, &random].iter().flat_map(|b| cut_all(&chunker, b)).collect();
        let both = cut_all(&chunker, &[&text[..], &random[..], &text[7777..]].concat());
        let new: usize = both.iter().filter(|chunk| !known.contains(*chunk)).map(Vec::len).sum();
        assert!(new < 1 << 20, "{new} of {} bytes are in new chunks", 3 << 22);
    }

    #[test]
    fn averages_grow_with_the_stream() {
        let of = |kind, length| ChunkAverage::fitting(kind, length).bytes();
        assert_eq!((of(StreamKind::PgDump, 0), of(StreamKind::Tar, 0)), (16 << 10, 32 << 10));
        assert_eq!((of(StreamKind::PgDump, 4 << 30), of(StreamKind::Tar, 8 << 30)), (16 << 10, 32 << 10));
        assert_eq!((of(StreamKind::PgDump, 20 << 30), of(StreamKind::Tar, 20 << 30)), (128 << 10, 128 << 10));
        assert_eq!(of(StreamKind::Raw, u64::MAX), 1 << 20);
        let after = |had, length| ChunkAverage::after(had, StreamKind::Raw, length).bytes();
        assert_eq!((after(None, 40 << 30), after(Some(5000), 40 << 30)), (256 << 10, 256 << 10));
        // A stream of which nobody knew how long it would be.
        assert_eq!((after(Some(16 << 10), 32 << 30), after(Some(16 << 10), 33 << 30)), (16 << 10, 256 << 10));
        assert_eq!((after(Some(256 << 10), 1 << 30), after(Some(128 << 10), 1 << 30)), (16 << 10, 128 << 10));
        assert_eq!((after(Some(128 << 10), 256 << 30), after(Some(128 << 10), 1 << 40)), (128 << 10, 1 << 20));
        assert!(ChunkAverage::new(5000).is_none() && ChunkAverage::new(2 << 20).is_none());
    }
}
