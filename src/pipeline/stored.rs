//! Frames of noise: what nothing is gained of by compressing is laid out as zstd's blocks here, and not sent through its
//! search. The content stands in raw blocks; of the tar headers in between the zeros, which are most of them, in blocks of
//! one repeated byte, where zstd would store them as they are.
//!
//! Laid out is only what has been looked at thrice: each chunk is spread evenly over all bytes, zstd gains nothing of a
//! [`probe`], where what repeats itself does so soon, and nothing in the segment seems to stand there twice.

use crate::pipeline::noise;
use crate::pipeline::segment::ChunkPlace;
use std::ops::Range;
use twox_hash::XxHash64;

/// Magic number; a content size of four bytes, one segment, a checksum (RFC 8878, 3.1.1.1).
const BEGIN: [u8; 5] = [0x28, 0xB5, 0x2F, 0xFD, 0xA4];
/// No block is longer.
const BLOCK: usize = 128 << 10;
const RAW: usize = 0;
const REPEATED: usize = 1;
/// A block of one repeated byte takes four bytes, and one more begins behind it: shorter runs are not worth it.
const RUN: usize = 8;

/// The sample by which a chunk is known to be noise: a twelfth of text in it shows.
const SAMPLE: usize = 64;
const SAMPLES: usize = 64;
const PROBE: usize = 64 << 10;

/// Of a segment that may be laid out: what zstd must gain nothing of.
pub(super) fn probe<'p>(plain: &'p [u8], chunks: &[ChunkPlace]) -> Option<&'p [u8]> {
    let content = |c: &ChunkPlace| &plain[c.offset as usize..][..c.length as usize];
    let is_noise = |c: &ChunkPlace| noise::is_nothing_else::<SAMPLE>(content(c), SAMPLES);
    let longest = content(chunks.iter().max_by_key(|c| c.length)?);
    let may_be = chunks.iter().all(is_noise) && !noise::repeats(plain, longest);
    may_be.then(|| &longest[..longest.len().min(PROBE)])
}

/// A frame: bytes made here, and ranges of the plain bytes between them.
#[derive(Debug, Default)]
pub(super) struct Stored {
    made: Vec<u8>,
    /// Where what has been made ends, and what of the plain bytes follows.
    parts: Vec<(usize, Range<usize>)>,
    /// Where the header of the newest block lies.
    block: usize,
}

impl Stored {
    /// The frame of a segment, part for part.
    pub fn lay_out<'p>(&'p mut self, plain: &'p [u8], chunks: &[ChunkPlace]) -> Vec<&'p [u8]> {
        self.made.clear();
        self.parts.clear();
        self.made.extend_from_slice(&BEGIN);
        self.made.extend_from_slice(&(plain.len() as u32).to_le_bytes());
        let mut at = 0;
        for chunk in chunks {
            let begin = chunk.offset as usize;
            self.between(plain, at..begin);
            at = begin + chunk.length as usize;
            self.raw(begin..at);
        }
        self.between(plain, at..plain.len());
        self.made[self.block] |= 1;
        self.made.extend_from_slice(&(XxHash64::oneshot(0, plain) as u32).to_le_bytes());
        let last = self.parts.last().map_or(0, |(end, _)| *end);
        let begins = std::iter::once(0).chain(self.parts.iter().map(|(end, _)| *end));
        let parts = begins.zip(&self.parts);
        let parts = parts.flat_map(|(begin, (end, range))| [&self.made[begin..*end], &plain[range.clone()]]);
        parts.chain([&self.made[last..]]).collect()
    }

    fn header(&mut self, kind: usize, length: usize) {
        self.block = self.made.len();
        self.made.extend_from_slice(&((length << 3 | kind << 1) as u32).to_le_bytes()[..3]);
    }

    /// Bytes as they are.
    fn raw(&mut self, range: Range<usize>) {
        for begin in range.clone().step_by(BLOCK) {
            let end = range.end.min(begin + BLOCK);
            self.header(RAW, end - begin);
            self.parts.push((self.made.len(), begin..end));
        }
    }

    /// What lies between contents: padding and a header.
    fn between(&mut self, plain: &[u8], range: Range<usize>) {
        let mut begin = range.start;
        let mut at = range.start;
        while at < range.end {
            let zeros = plain[at..range.end].iter().take_while(|byte| **byte == 0).count();
            if zeros >= RUN {
                self.raw(begin..at);
                self.header(REPEATED, zeros);
                self.made.push(0);
                begin = at + zeros;
            }
            at += zeros.max(1);
        }
        self.raw(begin..range.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::chunk::ChunkIdKey;
    use crate::pipeline::limits;
    use crate::pipeline::segment::{FrameDecoder, FrameEncoder, Segment};
    use proptest::prelude::*;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn segment(chunks: &[Vec<u8>]) -> Segment {
        let key = ChunkIdKey::from_bytes([3; 32]);
        let mut segment = Segment::default();
        chunks.iter().for_each(|chunk| segment.push(key.id(chunk), chunk));
        segment
    }

    fn frame(segment: &Segment) -> Vec<u8> {
        Stored::default().lay_out(segment.plain(), segment.chunks()).concat()
    }

    fn is_stored(chunks: &[Vec<u8>]) -> bool {
        let segment = segment(chunks);
        let mut encoder = FrameEncoder::new(3).unwrap();
        let encoded = encoder.encode_segment(&segment).unwrap().concat();
        !segment.is_empty() && encoded == frame(&segment)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn zstd_decodes_what_is_laid_out(
            seed: u64,
            chunks in proptest::collection::vec((0usize..300_000, proptest::collection::vec(0u8..3, 0..40)), 1..6)
        ) {
            // Some begin and end with few bytes that are zero, or equal.
            let chunks: Vec<Vec<u8>> =
                chunks.into_iter().map(|(length, few)| [&few[..], &noise(seed, length), &few[..]].concat()).collect();
            let segment = segment(&chunks);
            let frame = frame(&segment);
            let plain = FrameDecoder::new().unwrap().decode(&frame, limits::FRAME).unwrap();
            prop_assert!(plain == segment.plain());
            let most = segment.len() + 40 * chunks.len() + 3 * (segment.len() / BLOCK);
            prop_assert!(frame.len() <= most, "{} bytes of {}", frame.len(), segment.len());
        }
    }

    #[test]
    fn a_chunk_of_any_length_is_laid_out() {
        for length in [8192, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, limits::CHUNK] {
            let segment = segment(&[noise(1, length)]);
            let mut encoder = FrameEncoder::new(3).unwrap();
            let frame = encoder.encode_segment(&segment).unwrap().concat();
            assert_eq!(frame, self::frame(&segment), "{length}");
            let plain = FrameDecoder::new().unwrap().decode(&frame, limits::FRAME).unwrap();
            assert!(plain == segment.plain(), "{length}");
            // Header and padding come to 170 bytes.
            assert!(frame.len() < length + 180 + 3 * (length / BLOCK), "{} of {length}", frame.len());
        }
    }

    #[test]
    fn a_bit_flipped_in_a_frame_does_not_decode_to_the_same() {
        let segment = segment(&[noise(1, 9000), noise(2, 10_000)]);
        let frame = frame(&segment);
        let mut decoder = FrameDecoder::new().unwrap();
        for at in 0..frame.len() {
            let mut flipped = frame.clone();
            flipped[at] ^= 1 << (at % 8);
            let same = decoder.decode(&flipped, limits::FRAME).is_ok_and(|plain| plain == segment.plain());
            // The fourth bit of the frame's header means nothing to a decoder.
            assert!(!same || at == 4, "a flipped bit at {at} goes unnoticed");
        }
        for cut in [1, 4, 5, 100, 9000] {
            assert!(decoder.decode(&frame[..frame.len() - cut], limits::FRAME).is_err(), "{cut} bytes less");
        }
    }

    #[test]
    fn only_what_is_noise_throughout_is_laid_out() {
        let text: Vec<u8> = b"what is read, written and said again. ".iter().copied().cycle().take(30 << 10).collect();
        let chunk = |seed| noise(seed, 250 << 10);
        assert!(is_stored(&[chunk(1), chunk(2), chunk(3)]));
        assert!(!is_stored(&[chunk(1), text.clone(), chunk(2)]), "text between noise");
        assert!(!is_stored(&[chunk(1), [chunk(2), text].concat()]), "text behind noise, an eighth of it");
        assert!(!is_stored(&[chunk(1), noise(2, 1000)]), "too short to be looked at");
        assert!(!is_stored(&[]));
        // Noise that stands there twice, at any distance, and a part of it only.
        assert!(!is_stored(&[chunk(1), chunk(1)]));
        assert!(!is_stored(&[chunk(1), chunk(2), chunk(1)[1000..].to_vec()]));
        assert!(!is_stored(&[noise(1, 64 << 10).repeat(4)]));
        assert!(!is_stored(&[noise(1, 100).repeat(3000)]));
        // Ids that stand there twice, side by side.
        for length in [4, 6, 8] {
            let pairs =
                |seed| noise(seed, 160 << 10).chunks(length).flat_map(|id| [id, id].concat()).collect::<Vec<u8>>();
            let apart = |seed: u64| {
                let between = noise(seed + 7, 160 << 10);
                let ids = noise(seed, 160 << 10);
                let three =
                    ids.chunks(length).zip(between.chunks(length)).flat_map(|(id, other)| [id, other, id].concat());
                three.collect::<Vec<u8>>()
            };
            assert!(!is_stored(&[pairs(1), pairs(2)]), "{length}");
            assert!(!is_stored(&[apart(1), apart(2)]) || length == 4, "{length}");
        }
    }
}
