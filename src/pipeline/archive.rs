//! Archives: frames sealed into one age file, and single frames opened by a ranged read.
//!
//! age's payload is pieces of 64 KiB, each sealed for itself, so piece k starts at H + 65,552·k, where H is the
//! length of header and nonce. The index keeps those H bytes: one ranged read of whole pieces opens one frame.

use crate::base::direct::Aligned;
use crate::base::ids::ObjectId;
use crate::pipeline::crypt::{Identities, MAX_HEADER, Recipients, SealedObject};
use crate::pipeline::payload::{self, PayloadKey, Sealer};
use crate::pipeline::segment::{ChunkPlace, FrameDecoder, FrameEncoder, Segment, TAR_END};
use crate::pipeline::{PipelineError, limits};
use std::borrow::Cow;
use std::io;

const PIECE: u64 = payload::PIECE as u64;
const SEALED_PIECE: u64 = payload::SEALED_PIECE as u64;

/// A frame in the archive's plaintext (which is what age seals), and its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FramePlace {
    pub offset: u32,
    pub length: u32,
    pub chunks: Vec<ChunkPlace>,
}

/// A finished archive: its bytes, and what the index will say of it.
#[derive(Debug)]
pub struct SealedArchive {
    object: SealedObject,
    header: Vec<u8>,
    frames: Vec<FramePlace>,
}

impl SealedArchive {
    pub fn id(&self) -> ObjectId {
        self.object.id()
    }

    pub fn bytes(&self) -> &[u8] {
        self.object.bytes()
    }

    /// The bytes, taken out for whoever stores them: what else is known of the archive stays.
    pub fn take_bytes(&mut self) -> Aligned {
        std::mem::take(&mut self.object.bytes)
    }

    /// age header and nonce.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    pub fn frames(&self) -> &[FramePlace] {
        &self.frames
    }
}

/// Writes one archive. [`ArchiveWriter::finish`] must be called, else there is no archive.
pub struct ArchiveWriter {
    sealer: Sealer,
    header: Vec<u8>,
    frames: Vec<FramePlace>,
    chunks: usize,
    position: u32,
}

impl ArchiveWriter {
    /// Begins an archive for the recipients.
    pub fn new(recipients: &Recipients) -> Result<Self, PipelineError> {
        Self::within(recipients, Aligned::default())
    }

    /// The same, in memory that is at hand.
    pub fn within(recipients: &Recipients, memory: Aligned) -> Result<Self, PipelineError> {
        let sealer = recipients.begin(memory)?;
        let header = sealer.header().to_vec();
        Ok(Self { sealer, header, frames: Vec::new(), chunks: 0, position: 0 })
    }

    /// Seals a segment whose frame these parts are.
    pub fn push(&mut self, segment: &Segment, frame: &[&[u8]]) -> Result<(), PipelineError> {
        frame.iter().try_for_each(|part| self.sealer.write(part))?;
        let length = frame.iter().map(|part| part.len() as u32).sum();
        self.frames.push(FramePlace { offset: self.position, length, chunks: segment.chunks().to_vec() });
        self.position += length;
        self.chunks += segment.chunks().len();
        Ok(())
    }

    /// Plain bytes so far.
    pub fn position(&self) -> u32 {
        self.position
    }

    /// Whether the archive has reached its target length, or as many chunks as one index object shall have of it: what
    /// compresses a thousandfold would not fit into any otherwise.
    pub fn is_full(&self) -> bool {
        self.position as usize >= limits::ARCHIVE_TARGET || self.chunks >= limits::ARCHIVE_CHUNKS
    }

    /// Ends the tar and the age file.
    pub fn finish(mut self, encoder: &mut FrameEncoder) -> Result<SealedArchive, PipelineError> {
        self.sealer.write(encoder.encode(&TAR_END)?)?;
        Ok(SealedArchive { object: self.sealer.finish()?, header: self.header, frames: self.frames })
    }
}

/// The stored bytes, from and to, that open a frame: whole pieces. `header_length` is that of age header and nonce,
/// `length` the archive's.
pub fn stored_range(header_length: u64, length: u64, frame: (u32, u32)) -> Result<(u64, u64), PipelineError> {
    let (offset, frame_length) = (u64::from(frame.0), u64::from(frame.1));
    let first = offset / PIECE;
    let last = (offset + frame_length).div_ceil(PIECE);
    let start = header_length + first * SEALED_PIECE;
    let end = (header_length + last * SEALED_PIECE).min(length);
    let in_limits = offset + frame_length <= limits::ARCHIVE && frame.1 <= limits::FRAME_STORED;
    if in_limits && start < end {
        Ok((start, end))
    } else {
        Err(PipelineError::damaged("frame lies outside its archive"))
    }
}

/// Fetches `length` stored bytes of the archive from `offset`.
pub type Fetch<'a> = dyn Fn(u64, u64) -> io::Result<Cow<'a, [u8]>> + 'a;

/// An archive whose file key has been unwrapped once; frames are read from it by ranges.
pub struct ArchiveReader {
    key: PayloadKey,
    header_length: u64,
    length: u64,
}

impl ArchiveReader {
    /// `header` is age header and nonce as the index has them, `length` the stored length of the whole archive.
    pub fn open(header: &[u8], length: u64, identities: &Identities) -> Result<Self, PipelineError> {
        if header.len() > MAX_HEADER || length > limits::ARCHIVE || length <= header.len() as u64 {
            return Err(PipelineError::damaged("archive has an impossible length"));
        }
        let (key, behind) = identities.unwrap(header)?;
        if !behind.is_empty() {
            return Err(PipelineError::damaged("the index has more of the archive than its header"));
        }
        Ok(Self { key, header_length: header.len() as u64, length })
    }

    /// The frame at `offset` of the plaintext, `length` bytes, still compressed, within `memory`, of which nothing else is
    /// kept.
    pub fn frame<'m>(
        &self,
        offset: u32,
        length: u32,
        fetch: &Fetch<'_>,
        memory: &'m mut Vec<u8>,
    ) -> Result<&'m [u8], PipelineError> {
        let (start, end) = stored_range(self.header_length, self.length, (offset, length))?;
        let bytes = fetch(start, end - start).map_err(PipelineError::Fetch)?;
        if bytes.len() as u64 != end - start {
            return Err(PipelineError::damaged("a ranged read gave another length"));
        }
        let (first, before) = (u64::from(offset) / PIECE, offset as usize % payload::PIECE);
        memory.clear();
        memory.reserve_exact(bytes.len());
        for piece in payload::pieces(&bytes, first, end == self.length)? {
            self.key.open(&piece, memory)?;
        }
        let frame = memory.get(before..).and_then(|rest| rest.get(..length as usize));
        frame.ok_or_else(|| PipelineError::damaged("the archive ends in a frame"))
    }
}

/// The length of age header and nonce at the front of an archive's bytes: what the index keeps, found again when an
/// index is rebuilt.
pub fn header_length(bytes: &[u8]) -> Option<usize> {
    let head = &bytes[..bytes.len().min(MAX_HEADER)];
    let mac = head.windows(5).position(|w| w == b"\n--- ")?;
    let end = head[mac + 5..].iter().position(|b| *b == b'\n')?;
    let length = mac + 5 + end + 1 + 16;
    (length <= bytes.len()).then_some(length)
}

/// Walks a whole archive: opens it, and hands every frame's place and plain bytes to `visit`. Of a damaged archive the
/// frames before the damage are visited too, each of them authentic.
pub fn walk(
    bytes: &[u8],
    identities: &Identities,
    mut visit: impl FnMut(u32, u32, &[u8]) -> Result<(), PipelineError>,
) -> Result<(), PipelineError> {
    if bytes.len() as u64 > limits::ARCHIVE {
        return Err(PipelineError::damaged("archive has an impossible length"));
    }
    let (key, payload) = identities.unwrap(bytes)?;
    let mut frames = Frames { plain: Vec::new(), at: 0, wanted: 1, decoder: FrameDecoder::new()?, decoded: Vec::new() };
    let mut opened = Ok(());
    for piece in payload::pieces(payload, 0, true)? {
        opened = key.open(&piece, &mut frames.plain);
        if opened.is_err() {
            break;
        }
        frames.visit(&mut visit)?;
    }
    frames.wanted = 1;
    frames.visit(&mut visit)?;
    opened?;
    if frames.plain.is_empty() { Ok(()) } else { Err(PipelineError::damaged("bytes between zstd frames")) }
}

/// The frames of an archive's plaintext as it comes: what is held is the one that is not whole yet.
struct Frames {
    plain: Vec<u8>,
    /// Where in the plaintext `plain` begins.
    at: usize,
    /// Not before so many bytes are there a frame is looked for again: twice as many as did not hold one.
    wanted: usize,
    decoder: FrameDecoder,
    decoded: Vec<u8>,
}

impl Frames {
    /// Visits the frames that are whole.
    fn visit(
        &mut self,
        visit: &mut impl FnMut(u32, u32, &[u8]) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let mut from = 0;
        while self.plain.len() - from >= self.wanted {
            let rest = &self.plain[from..];
            let Ok(length) = zstd::zstd_safe::find_frame_compressed_size(rest) else {
                self.wanted = 2 * rest.len();
                break;
            };
            self.wanted = 1;
            let skippable =
                rest.first_chunk::<4>().is_some_and(|m| u32::from_le_bytes(*m) & 0xFFFF_FFF0 == 0x184D_2A50);
            if !skippable {
                self.decoder.decode_into(&rest[..length], limits::FRAME, &mut self.decoded)?;
                visit((self.at + from) as u32, length as u32, &self.decoded)?;
            }
            from += length;
        }
        self.plain.drain(..from);
        self.at += from;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::chunk::ChunkIdKey;
    use crate::pipeline::crypt::Identity;

    fn noise(seed: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn archive(segments: usize) -> (SealedArchive, Identities, Vec<Vec<u8>>) {
        let identity = age::x25519::Identity::generate();
        let recipients = Recipients::parse(&[identity.to_public().to_string()]).unwrap();
        let key = ChunkIdKey::from_bytes([9; 32]);
        let mut encoder = FrameEncoder::new(3).unwrap();
        let mut writer = ArchiveWriter::new(&recipients).unwrap();
        let mut chunks = Vec::new();
        for s in 0..segments {
            let mut segment = Segment::default();
            for c in 0..3 {
                let chunk = noise((s * 3 + c) as u8, 1000 + 40_000 * c + s);
                segment.push(key.id(&chunk), &chunk);
                chunks.push(chunk);
            }
            writer.push(&segment, &encoder.encode_segment(&segment).unwrap()).unwrap();
        }
        (writer.finish(&mut encoder).unwrap(), Identities::new(vec![Identity::X25519(identity)]), chunks)
    }

    #[test]
    fn every_frame_opens_by_a_ranged_read_in_any_order() {
        let (archive, identities, chunks) = archive(7);
        let bytes = archive.bytes().to_vec();
        assert_eq!(header_length(&bytes), Some(archive.header().len()));
        let reader = ArchiveReader::open(archive.header(), bytes.len() as u64, &identities).unwrap();
        let fetched = std::cell::Cell::new(0);
        let fetch = |offset: u64, length: u64| {
            fetched.set(fetched.get() + length);
            Ok(Cow::Borrowed(&bytes[offset as usize..][..length as usize]))
        };
        let (mut decoder, mut memory) = (FrameDecoder::new().unwrap(), Vec::new());
        for f in [6, 0, 3, 3, 1, 5, 2, 4] {
            let place = &archive.frames()[f];
            let frame = reader.frame(place.offset, place.length, &fetch, &mut memory).unwrap();
            let plain = decoder.decode(frame, limits::FRAME).unwrap();
            for (c, chunk) in place.chunks.iter().enumerate() {
                assert_eq!(&plain[chunk.offset as usize..][..chunk.length as usize], &chunks[f * 3 + c][..]);
            }
        }
        assert!(fetched.get() < 8 * (archive.frames()[0].length as u64 + 2 * SEALED_PIECE));
        let mut walked = 0;
        walk(&bytes, &identities, |offset, length, _| {
            walked += usize::from(archive.frames().iter().any(|f| f.offset == offset && f.length == length));
            Ok(())
        })
        .unwrap();
        assert_eq!(walked, 7);
    }

    /// A whole archive of this plaintext.
    fn sealed(plain: &[u8]) -> (Aligned, Identities) {
        let identity = age::x25519::Identity::generate();
        let recipients = Recipients::parse(&[identity.to_public().to_string()]).unwrap();
        let mut sealer = recipients.begin(Aligned::default()).unwrap();
        sealer.write(plain).unwrap();
        (sealer.finish().unwrap().bytes, Identities::new(vec![Identity::X25519(identity)]))
    }

    /// Places and contents of frames.
    type Shown = Vec<(u32, u32, Vec<u8>)>;
    /// What a walk shows, and how it ends.
    type Walked = (Shown, Result<(), PipelineError>);

    fn walked(bytes: &[u8], identities: &Identities) -> Walked {
        let mut shown = Vec::new();
        let ended = walk(bytes, identities, |offset, length, plain| {
            shown.push((offset, length, plain.to_vec()));
            Ok(())
        });
        (shown, ended)
    }

    /// Frames of all lengths, the smallest behind the largest, with something to be skipped in front of some of them; and
    /// where each lies.
    fn frames() -> (Vec<u8>, Shown) {
        let skipped = [&0x184D_2A5Fu32.to_le_bytes()[..], &70_000u32.to_le_bytes(), &[7; 70_000]].concat();
        let mut encoder = FrameEncoder::new(3).unwrap();
        let (mut plain, mut frames) = (Vec::new(), Vec::new());
        for (n, length) in [1, 300_000, 10, 10, 70_000, 1, 65_000, 200_000, 2].into_iter().enumerate() {
            if n % 3 == 0 {
                plain.extend_from_slice(&skipped);
            }
            let content = noise(n as u8, length);
            let frame = encoder.encode(&content).unwrap();
            frames.push((plain.len() as u32, frame.len() as u32, content));
            plain.extend_from_slice(frame);
        }
        plain.extend_from_slice(&skipped);
        (plain, frames)
    }

    #[test]
    fn a_walk_shows_every_frame_once_and_where_it_lies() {
        let (plain, frames) = frames();
        let (bytes, identities) = sealed(&plain);
        let (shown, ended) = walked(&bytes, &identities);
        ended.unwrap();
        assert!(shown == frames, "{:?}", shown.iter().map(|(at, length, _)| (at, length)).collect::<Vec<_>>());
        // Who has seen enough is shown nothing more.
        let mut seen = 0;
        let stopped = walk(&bytes, &identities, |_, _, _| {
            seen += 1;
            if seen == 2 { Err(PipelineError::damaged("stopped")) } else { Ok(()) }
        });
        assert!(stopped.is_err() && seen == 2, "{seen}");
    }

    /// The frames before it are shown, each of them authentic, and the end is an error.
    #[test]
    fn a_walk_shows_what_lies_before_the_damage_and_says_that_there_is_some() {
        let (plain, frames) = frames();
        let before = |end: usize| frames.iter().take_while(|f| (f.0 + f.1) as usize <= end).count();
        for behind in [&b"x"[..], &[0; 100_000], &frames[0].2] {
            let (bytes, identities) = sealed(&[&plain[..], behind].concat());
            let (shown, ended) = walked(&bytes, &identities);
            assert!(shown == frames && ended.unwrap_err().to_string().contains("between zstd frames"));
        }
        let (bytes, identities) = sealed(&plain);
        let start = header_length(&bytes).unwrap();
        let pieces = plain.len().div_ceil(payload::PIECE);
        for piece in 0..pieces {
            let (from, authentic) = (start + piece * payload::SEALED_PIECE, before(piece * payload::PIECE));
            // Of the first byte, and of the tag alone, without which the bytes are the right ones and nobody vouches for them.
            for at in [from, (from + payload::SEALED_PIECE).min(bytes.len()) - 1] {
                let mut changed = bytes.to_vec();
                changed[at] ^= 1;
                let (shown, ended) = walked(&changed, &identities);
                assert!(shown == frames[..authentic] && ended.is_err(), "piece {piece}: {} frames", shown.len());
            }
            let (shown, ended) = walked(&bytes[..from], &identities);
            assert!(
                ended.is_err() && shown == frames[..before((piece.max(1) - 1) * payload::PIECE)],
                "cut before {piece}"
            );
        }
    }

    /// What has been shown is let go: what is held is a frame that is not whole yet, and less than as much again.
    #[test]
    fn a_walk_holds_little_of_an_archive() {
        let (plain, frames) = frames();
        let longest = frames.iter().map(|f| f.1 as usize).max().unwrap();
        let decoder = FrameDecoder::new().unwrap();
        let mut held = Frames { plain: Vec::new(), at: 0, wanted: 1, decoder, decoded: Vec::new() };
        let mut shown = 0;
        for piece in plain.chunks(payload::PIECE) {
            held.plain.extend_from_slice(piece);
            held.visit(&mut |_, _, _| {
                shown += 1;
                Ok(())
            })
            .unwrap();
            assert!(held.plain.len() < 2 * longest, "{} bytes are held", held.plain.len());
        }
        assert!(shown >= 7, "{shown} frames were shown before the end");
    }

    #[test]
    fn a_changed_piece_is_noticed() {
        let (archive, identities, _) = archive(2);
        let mut bytes = archive.bytes().to_vec();
        let last = bytes.len() - 300;
        bytes[last] ^= 1;
        let reader = ArchiveReader::open(archive.header(), bytes.len() as u64, &identities).unwrap();
        let place = &archive.frames()[1];
        let fetch = |o: u64, l: u64| Ok(Cow::Borrowed(&bytes[o as usize..][..l as usize]));
        let mut memory = Vec::new();
        let error = reader.frame(place.offset, place.length, &fetch, &mut memory);
        assert!(matches!(error, Err(PipelineError::DamagedBy { .. })));
    }
}
