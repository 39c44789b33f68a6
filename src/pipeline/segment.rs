//! Segments: chunks as tar entries, compressed together as one zstd frame.
//!
//! An entry's name is the chunk id in hex, its content the chunk; mode 0600, owner 0, mtime 0. So an archive, opened
//! with `age` and `zstd`, is a tar of chunks. A frame holds whole entries. Every frame that was compressed is decoded and
//! compared before it is sealed: an encoder's error never reaches storage.
//!
//! What does not compress (pictures, archives, what is encrypted) is recognised by samples. Segments that hold nothing else
//! are laid out by [`stored`]; where something else is in between, it is left to zstd's fastest search, which still finds
//! the tar headers: at level 3 they would cost as much as the content ten times over.
//!
//! A stream that is of one sort from begin to end, such as a dump, has a [`Search`]: it is tried which of zstd's ways of
//! looking for repetitions suits it.

use crate::base::ids::ChunkId;
use crate::pipeline::stored::{self, Stored};
use crate::pipeline::{PipelineError, limits, noise};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use zstd::zstd_safe::{self, CParameter, DParameter};

const BLOCK: usize = 512;
/// Plain bytes after which a segment is full.
pub const SEGMENT_TARGET: usize = 1 << 20;

/// Where a chunk lies in its frame's plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    pub id: ChunkId,
    pub offset: u32,
    pub length: u32,
}

/// Chunks gathered for one frame.
#[derive(Debug, Default)]
pub struct Segment {
    plain: Vec<u8>,
    chunks: Vec<ChunkPlace>,
    search: Option<Arc<Search>>,
}

impl Segment {
    /// What it is the next segment of, where that is of one sort.
    pub fn belongs_to(&mut self, search: Option<Arc<Search>>) {
        self.search = search;
    }

    /// Adds a chunk. The caller asks [`Segment::has_room`] first.
    pub fn push(&mut self, id: ChunkId, content: &[u8]) {
        self.plain.extend_from_slice(&entry_header(&id, content.len()));
        let offset = self.plain.len() as u32;
        self.plain.extend_from_slice(content);
        self.plain.resize(self.plain.len().next_multiple_of(BLOCK), 0);
        self.chunks.push(ChunkPlace { id, offset, length: content.len() as u32 });
    }

    /// Whether a chunk of this length still fits into a frame.
    pub fn has_room(&self, length: usize) -> bool {
        self.plain.is_empty() || self.plain.len() + length + 2 * BLOCK <= SEGMENT_TARGET
    }

    /// Adds all chunks of `other`, which must be small enough together.
    pub fn append(&mut self, other: &Segment) {
        let base = self.plain.len() as u32;
        self.plain.extend_from_slice(&other.plain);
        self.chunks.extend(other.chunks.iter().map(|c| ChunkPlace { offset: c.offset + base, ..*c }));
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Empty again; its memory stays.
    pub fn clear(&mut self) {
        self.plain.clear();
        self.chunks.clear();
        self.search = None;
    }

    /// Plain bytes, headers included.
    pub fn len(&self) -> usize {
        self.plain.len()
    }

    pub fn chunks(&self) -> &[ChunkPlace] {
        &self.chunks
    }

    #[cfg(test)]
    pub(crate) fn plain(&self) -> &[u8] {
        &self.plain
    }
}

/// The two zero blocks that end a tar.
pub(crate) const TAR_END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

fn entry_header(id: &ChunkId, length: usize) -> [u8; BLOCK] {
    let mut header = tar::Header::new_ustar();
    // The name has 64 bytes and the size at most 8 MiB: both fit, so neither call can fail.
    header.as_old_mut().name[..64].copy_from_slice(id.to_hex().as_bytes());
    header.set_size(length as u64);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    *header.as_bytes()
}

fn zstd_error(code: usize) -> Box<dyn std::error::Error + Send + Sync> {
    zstd_safe::get_error_name(code).into()
}

/// Which of the [`ways`] suits a stream: all are tried at its first segment, and again later; ever later, as long as the
/// answer stays the same.
#[derive(Debug, Default)]
pub struct Search {
    segments: AtomicUsize,
    /// The segment of the next trial.
    next: AtomicUsize,
    /// How many segments behind the last trial that is.
    distance: AtomicUsize,
    way: AtomicUsize,
}

impl Search {
    const FIRST: usize = 32;
    const LAST: usize = 256;

    /// The way of the next segment; none when all are to be tried.
    fn way(&self) -> Option<usize> {
        let segment = self.segments.fetch_add(1, Ordering::Relaxed);
        let next = self.next.load(Ordering::Relaxed);
        // One trial at a time: whoever makes it says when the next one is.
        let is_tried = segment >= next
            && self.next.compare_exchange(next, usize::MAX, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        (!is_tried).then(|| self.way.load(Ordering::Relaxed))
    }

    /// Takes the fastest way that costs no more than a hundredth of what the best one comes to: `lengths` of all, the
    /// slowest first.
    fn choose(&self, lengths: &[usize]) -> usize {
        let least = lengths.iter().copied().min().unwrap_or(0);
        let way = lengths.iter().rposition(|length| *length <= least + least / 100).unwrap_or(0);
        let stays = self.way.swap(way, Ordering::Relaxed) == way;
        let distance = if stays { self.distance.load(Ordering::Relaxed) * 2 } else { 0 };
        let distance = distance.clamp(Self::FIRST, Self::LAST);
        self.distance.store(distance, Ordering::Relaxed);
        // Others have gone on meanwhile.
        self.next.store(self.segments.load(Ordering::Relaxed) + distance, Ordering::Relaxed);
        way
    }
}

/// Compresses and checks frames; one per thread, so that its working memory is used again.
pub struct FrameEncoder {
    /// The level's own way, then those that may be as good.
    ways: Vec<zstd_safe::CCtx<'static>>,
    /// For noise.
    quick: zstd_safe::CCtx<'static>,
    stored: Stored,
    decoder: FrameDecoder,
    frame: Vec<u8>,
    tried: Vec<Vec<u8>>,
    decoded: Vec<u8>,
}

/// zstd's level for noise: it costs a quarter of a percent of the bytes, and a third of the time.
const QUICK: i32 = -3;

fn context(level: i32) -> Result<zstd_safe::CCtx<'static>, PipelineError> {
    let mut context = zstd_safe::CCtx::create();
    for parameter in
        [CParameter::CompressionLevel(level), CParameter::ChecksumFlag(true), CParameter::ContentSizeFlag(true)]
    {
        context.set_parameter(parameter).map_err(not_set_up)?;
    }
    Ok(context)
}

fn not_set_up(code: usize) -> PipelineError {
    PipelineError::Seal { action: "set up zstd", source: zstd_error(code) }
}

/// The ways of compressing that a level leaves open, the slowest first. Rows of a table mostly repeat at least six bytes of
/// others or nothing that is worth it: then level 3 that looks for no less finds better ones, also in tables of 128 and 64 KiB,
/// which stay in the core's cache; and level 1, in a table of 32 KiB, is often better and faster still. Whoever wants another
/// level gets that.
fn ways(level: i32) -> Result<Vec<zstd_safe::CCtx<'static>>, PipelineError> {
    let with = |level, parameters: &[CParameter]| {
        let mut context = context(level)?;
        parameters.iter().try_for_each(|p| context.set_parameter(*p).map(drop)).map_err(not_set_up)?;
        Ok::<_, PipelineError>(context)
    };
    let mut ways = vec![with(level, &[])?];
    if level == zstd::DEFAULT_COMPRESSION_LEVEL {
        ways.push(with(level, &[CParameter::MinMatch(6), CParameter::HashLog(15), CParameter::ChainLog(14)])?);
        ways.push(with(1, &[CParameter::HashLog(13)])?);
    }
    Ok(ways)
}

/// Whether a frame's bytes are noise.
fn is_noise(plain: &[u8]) -> bool {
    noise::is_noise::<SAMPLE>(plain, SAMPLES)
}

const SAMPLES: usize = 32;
const SAMPLE: usize = 128;

impl FrameEncoder {
    /// `level` is zstd's, 1 to 19.
    pub fn new(level: i32) -> Result<Self, PipelineError> {
        let (ways, quick, decoder) = (ways(level)?, context(QUICK)?, FrameDecoder::new()?);
        let tried = ways.iter().map(|_| Vec::new()).collect();
        let stored = Stored::default();
        Ok(Self { ways, quick, stored, decoder, frame: Vec::new(), tried, decoded: Vec::new() })
    }

    /// The frame of a segment, part for part.
    pub fn encode_segment<'f>(&'f mut self, segment: &'f Segment) -> Result<Vec<&'f [u8]>, PipelineError> {
        if let Some(probe) = stored::probe(&segment.plain, &segment.chunks) {
            compress(&mut self.quick, probe, &mut self.frame)?;
            if self.frame.len() >= probe.len() {
                return Ok(self.stored.lay_out(&segment.plain, &segment.chunks));
            }
        }
        self.encode_by(&segment.plain, segment.search.as_deref()).map(|frame| vec![frame])
    }

    /// One frame with content size and checksum, proved to decode to `plain`.
    pub fn encode(&mut self, plain: &[u8]) -> Result<&[u8], PipelineError> {
        self.encode_by(plain, None)
    }

    fn encode_by(&mut self, plain: &[u8], search: Option<&Search>) -> Result<&[u8], PipelineError> {
        let mut is_done = false;
        if is_noise(plain) {
            compress(&mut self.quick, plain, &mut self.frame)?;
            // It repeats itself at a distance: then it is worth the search.
            is_done = self.frame.len() >= plain.len() / 10 * 9;
        }
        if !is_done {
            match search.map_or(Some(0), Search::way) {
                Some(way) => compress(&mut self.ways[way], plain, &mut self.frame)?,
                None => self.try_all(plain, search)?,
            }
        }
        let frame = &self.frame;
        self.decoder.decode_into(frame, limits::FRAME, &mut self.decoded)?;
        if self.decoded != plain {
            return Err(PipelineError::Seal {
                action: "compress",
                source: "the compressed bytes decode to something else; nothing of it is stored".into(),
            });
        }
        Ok(&self.frame)
    }

    /// Compresses in all ways and keeps what the search chooses.
    fn try_all(&mut self, plain: &[u8], search: Option<&Search>) -> Result<(), PipelineError> {
        for (way, tried) in self.ways.iter_mut().zip(&mut self.tried) {
            compress(way, plain, tried)?;
        }
        let lengths: Vec<usize> = self.tried.iter().map(Vec::len).collect();
        let way = search.map_or(0, |search| search.choose(&lengths));
        std::mem::swap(&mut self.frame, &mut self.tried[way]);
        Ok(())
    }
}

fn compress(context: &mut zstd_safe::CCtx<'static>, plain: &[u8], frame: &mut Vec<u8>) -> Result<(), PipelineError> {
    frame.clear();
    frame.reserve(zstd_safe::compress_bound(plain.len()));
    let bad = |code| PipelineError::Seal { action: "compress", source: zstd_error(code) };
    context.compress2(frame, plain).map(drop).map_err(bad)
}

/// Decodes single frames within limits; one per thread.
pub struct FrameDecoder {
    context: zstd_safe::DCtx<'static>,
}

impl FrameDecoder {
    pub fn new() -> Result<Self, PipelineError> {
        let mut context = zstd_safe::DCtx::create();
        context
            .set_parameter(DParameter::WindowLogMax(limits::WINDOW_LOG))
            .map_err(|code| PipelineError::Seal { action: "set up zstd", source: zstd_error(code) })?;
        Ok(Self { context })
    }

    /// The plain bytes of exactly one frame, which says its size, and at most `limit` bytes.
    pub fn decode(&mut self, frame: &[u8], limit: usize) -> Result<Vec<u8>, PipelineError> {
        let mut plain = Vec::new();
        self.decode_into(frame, limit, &mut plain)?;
        Ok(plain)
    }

    /// The same, in place of what is in `plain`.
    pub fn decode_into(&mut self, frame: &[u8], limit: usize, plain: &mut Vec<u8>) -> Result<(), PipelineError> {
        let size = match zstd_safe::get_frame_content_size(frame) {
            Ok(Some(size)) if size <= limit as u64 => size as usize,
            Ok(Some(size)) => {
                return Err(PipelineError::damaged(format!(
                    "zstd frame claims {size} bytes, at most {limit} are allowed"
                )));
            }
            _ => return Err(PipelineError::damaged("zstd frame without a content size")),
        };
        plain.clear();
        plain.reserve_exact(size);
        let bad = |code| PipelineError::unpack("zstd frame does not decode", zstd_error(code));
        let length = zstd_safe::find_frame_compressed_size(frame).map_err(bad)?;
        if length != frame.len() {
            return Err(PipelineError::damaged("bytes behind the zstd frame"));
        }
        self.context.decompress(plain, frame).map_err(bad)?;
        if plain.len() != size {
            return Err(PipelineError::damaged("zstd frame is shorter than it claims"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::chunk::ChunkIdKey;
    use proptest::prelude::*;
    use std::io::Read;

    #[test]
    fn no_memory_is_no_damage() {
        // ZSTD_error_memory_allocation, and ZSTD_error_corruption_detected.
        let of = |code: usize| PipelineError::unpack("x", zstd_error(code.wrapping_neg()));
        assert!(matches!(of(64), PipelineError::NoMemory));
        assert!(matches!(of(20), PipelineError::DamagedBy { .. }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_segment_is_a_tar_of_its_chunks(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 1..20)) {
            let key = ChunkIdKey::from_bytes([3; 32]);
            let mut segment = Segment::default();
            for chunk in &chunks {
                segment.push(key.id(chunk), chunk);
            }
            let mut encoder = FrameEncoder::new(3).unwrap();
            let frame = encoder.encode(segment.plain()).unwrap().to_vec();
            let plain = FrameDecoder::new().unwrap().decode(&frame, limits::FRAME).unwrap();
            for (place, chunk) in segment.chunks().iter().zip(&chunks) {
                prop_assert_eq!(&plain[place.offset as usize..][..place.length as usize], &chunk[..]);
            }
            let mut tar = tar::Archive::new(&plain[..]);
            let read: Vec<(String, Vec<u8>)> = tar.entries().unwrap().map(|entry| {
                let mut entry = entry.unwrap();
                let name = entry.path().unwrap().to_str().unwrap().to_owned();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (name, content)
            }).collect();
            let naive: Vec<_> = chunks.iter().map(|c| (key.id(c).to_hex(), c.clone())).collect();
            prop_assert_eq!(read, naive);
        }
    }

    #[test]
    fn bombs_and_tails_are_refused() {
        let mut encoder = FrameEncoder::new(3).unwrap();
        let frame = encoder.encode(&vec![0; 1 << 20]).unwrap().to_vec();
        let mut decoder = FrameDecoder::new().unwrap();
        assert!(decoder.decode(&frame, (1 << 20) - 1).is_err(), "more than the limit");
        assert!(decoder.decode(&[&frame[..], b"x"].concat(), 1 << 20).is_err(), "bytes behind");
        assert!(decoder.decode(&frame[..frame.len() - 1], 1 << 20).is_err(), "cut short");
        for at in 0..frame.len() {
            let mut flipped = frame.clone();
            flipped[at] ^= 1;
            let same = decoder.decode(&flipped, 1 << 20).is_ok_and(|plain| plain == vec![0; 1 << 20]);
            assert!(!same || at == 4, "a flipped bit at {at} goes unnoticed");
        }
    }

    /// Noise takes the short way only where that costs nothing.
    #[test]
    fn noise_is_recognised_and_what_repeats_itself_is_not_taken_for_it() {
        let mut noise = vec![0; 1 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let text: Vec<u8> = b"what is read, written and said again ".iter().copied().cycle().take(1 << 20).collect();
        let base64: Vec<u8> = noise.iter().map(|b| b'0' + b % 64).collect();
        let mut repeated = noise[..300 << 10].to_vec();
        repeated.extend_from_within(..);
        assert!(is_noise(&noise) && is_noise(&repeated));
        assert!(!is_noise(&text) && !is_noise(&base64) && !is_noise(&vec![0; 1 << 20]) && !is_noise(&noise[..1000]));
        let mut encoder = FrameEncoder::new(3).unwrap();
        let mut stored = |plain: &[u8]| encoder.encode(plain).unwrap().len();
        assert!(stored(&noise) < (1 << 20) + 200);
        assert!(stored(&repeated) < 310 << 10, "half of it is the other half again");
        let key = ChunkIdKey::from_bytes([1; 32]);
        let mut segment = Segment::default();
        noise.chunks(16 << 10).take(60).for_each(|chunk| segment.push(key.id(chunk), chunk));
        let headers = stored(segment.plain()) - (60 << 14);
        assert!(headers < 60 * 160, "{headers} bytes for 60 headers");
    }

    /// Segments of `line`s, by streams of one sort or of several.
    fn segments(line: impl Fn(usize) -> String, search: Option<Arc<Search>>, count: usize) -> Vec<Segment> {
        let key = ChunkIdKey::from_bytes([1; 32]);
        let mut n = 0;
        let segment = |_| {
            let mut segment = Segment::default();
            segment.belongs_to(search.clone());
            while segment.has_room(16 << 10) {
                let chunk: String = (n..n + 200).map(&line).collect();
                n += 200;
                segment.push(key.id(chunk.as_bytes()), chunk.as_bytes());
            }
            segment
        };
        (0..count).map(segment).collect()
    }

    /// Rows as a dump has them; what differs in each of them is short.
    fn row(n: usize) -> String {
        let hash = blake3::hash(&n.to_le_bytes()).to_hex();
        format!(
            "{n}\t{}\t2026-01-0{} 12:00:00+00\tpaid\t{{\"sku\": \"{}\"}}\n",
            n * 7919 % 99991,
            n % 9 + 1,
            &hash[..16]
        )
    }

    #[test]
    fn a_stream_of_one_sort_takes_the_way_that_suits_it() {
        let stored = |level: i32, search: Option<Arc<Search>>| -> usize {
            let mut encoder = FrameEncoder::new(level).unwrap();
            segments(row, search, 20)
                .iter()
                .map(|segment| encoder.encode_segment(segment).unwrap().concat().len())
                .sum()
        };
        let search = Arc::new(Search::default());
        let (plain, suited) = (stored(3, None), stored(3, Some(search.clone())));
        assert!(suited < plain * 99 / 100, "{suited} bytes instead of {plain}");
        assert_ne!(search.way.load(Ordering::Relaxed), 0);
        // Another level is what was asked for.
        let search = Arc::new(Search::default());
        assert_eq!(stored(6, Some(search.clone())), stored(6, None));
        assert_eq!(search.way.load(Ordering::Relaxed), 0);
        // A stream takes nothing from another one, nor does memory that is used again.
        let mut segment = segments(row, Some(search), 1).remove(0);
        segment.clear();
        assert!(segment.search.is_none());
    }

    #[test]
    fn all_ways_are_tried_at_times_and_the_fastest_that_costs_little_is_taken() {
        let search = Search::default();
        let answers = [[1000, 1000, 1000], [1000, 990, 990], [1000, 990, 990], [990, 1200, 1200], [990, 1200, 1200]];
        let (mut answers, mut tried, mut taken) = (answers.iter().cycle(), Vec::new(), Vec::new());
        for segment in 0..400 {
            match search.way() {
                None => {
                    assert!(search.way().is_none_or(|way| way == search.way.load(Ordering::Relaxed)), "one at a time");
                    tried.push(segment);
                    taken.push(search.choose(answers.next().unwrap()));
                }
                Some(way) => assert_eq!(way, *taken.last().unwrap()),
            }
        }
        assert_eq!(taken[..5], [2, 2, 2, 0, 0]);
        let distances: Vec<usize> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(distances[..4], [33, 65, 129, 33], "behind its end, each time twice as far");
        let search = Search::default();
        assert_eq!((search.choose(&[1000, 991, 1000]), search.choose(&[1000, 985, 1000])), (2, 1));
        assert_eq!((search.choose(&[1000, 1020, 1030]), search.choose(&[1000])), (0, 0));
    }
}
