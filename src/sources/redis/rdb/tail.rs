//! The end of an RDB whose types are not all known, found from the end of the stream.
//!
//! The stream is known to be an RDB, or an RDB and a mark of 40 bytes. At its end only one of the two can be true:
//! in both cases an end opcode stands before a checksum that is that of all bytes before it, and a mark is made of
//! hexadecimal digits. A stream of random bytes passes with probability 2⁻⁶⁴; one that was cut anywhere passes no
//! more likely, because the bytes before the cut are no checksum of theirs. Where the server writes no
//! checksum, eight zero bytes stand in its place, which no mark holds; then a cut is found with the format's own
//! probability only, and the child's exit status has to tell.

use super::{CRC_BYTES, Crc64, Eye, MARK_BYTES, OPCODE_END, Report, check, is_mark};
use crate::sources::tap::{Observer, Tap, TapError};
use std::io::{Read, Write};

/// The end opcode, the checksum, a mark.
const KEPT: usize = 1 + CRC_BYTES + MARK_BYTES;

/// Holds back the last bytes, since which of them belong to the RDB is known at the end only.
pub(super) fn finish<R: Read, W: Write>(tap: Tap<R, W, Eye>, mut report: Report) -> Result<Report, TapError> {
    let position = tap.position();
    let (ahead, input, sink, eye) = tap.dissolve()?;
    let mut crc = eye.crc;
    let mut input = std::io::Cursor::new(ahead).chain(input);
    let mut sink = sink;
    let mut held: Vec<u8> = Vec::with_capacity(512 << 10);
    let mut passed = position;
    let mut buffer = vec![0u8; 256 << 10];
    loop {
        let n = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(TapError::Read(e)),
        };
        held.extend_from_slice(&buffer[..n]);
        let go = held.len().saturating_sub(KEPT);
        crc.observe(&held[..go]);
        sink.write_all(&held[..go]).map_err(TapError::Sink)?;
        held.drain(..go);
        passed += go as u64;
    }
    let (end, mark) = candidate(&held, &crc)?;
    sink.write_all(&held[..end]).map_err(TapError::Sink)?;
    report.length = passed + end as u64;
    report.checksum = held[end - CRC_BYTES..end] != [0; CRC_BYTES];
    report.mark = mark;
    Ok(report)
}

/// Where the RDB ends within the last bytes, and whether a mark follows.
fn candidate(held: &[u8], crc: &Crc64) -> Result<(usize, bool), TapError> {
    let ends_at = |end: usize| -> Result<(), TapError> {
        let at = end.checked_sub(CRC_BYTES + 1).ok_or(TapError::Short)?;
        if held[at] != OPCODE_END {
            return Err(TapError::Short);
        }
        let mut whole = Crc64(crc.0.clone());
        whole.observe(&held[..=at]);
        let mut stored = [0u8; CRC_BYTES];
        stored.copy_from_slice(&held[at + 1..end]);
        check(u64::from_le_bytes(stored), whole.value())
    };
    let length = held.len();
    if length >= KEPT && is_mark(&held[length - MARK_BYTES..]) && ends_at(length - MARK_BYTES).is_ok() {
        return Ok((length - MARK_BYTES, true));
    }
    ends_at(length).map(|()| (length, false))
}
