//! An RDB file, walked to its own end while it is stored.
//!
//! The end has to be known: `redis-cli --rdb -` leaves the 40-byte mark of diskless replication behind the RDB, and a
//! server that gets such a file as the base of its AOF refuses to start. So the walk follows every opcode and every
//! value to the end opcode, checks the CRC64 behind it, and cuts there. Behind the cut only that mark may follow.
//! Along the way it counts keys, so that the facts are those of the stored file and not of a moment before or after.
//!
//! A version may bring types that are not known here. From there on the end is found from the other side
//! ([`tail`]), and keys are not counted.
//!
//! Nothing is allocated by a length that the file claims. Layout after `src/rdb.c` of Redis 7.4 (RDB 12).

mod tail;

use crate::sources::tap::{Observer, Tap, TapError};
use crc::{Crc, Digest, Table};
use std::collections::BTreeMap;
use std::io::{Read, Write};

/// CRC-64/Jones as Redis computes it: initial value 0, reflected, nothing inverted.
static CRC64: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&crc::CRC_64_REDIS);

/// What a diskless replication stream ends with: 40 hexadecimal digits.
pub(super) const MARK_BYTES: usize = 40;
const CRC_BYTES: usize = 8;
/// The first version with a checksum at its end.
const FIRST_WITH_CRC: u32 = 5;
/// Auxiliary fields and library headers are this short; longer ones are not kept.
const MAX_TEXT_BYTES: u64 = 256;
/// Values nest as far as modules annotate them, which is one level.
const OPCODE_END: u8 = 255;

/// Keys of one database of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Keys {
    pub keys: u64,
    /// Those with a time to live.
    pub expires: u64,
}

/// What the walk found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// `REDIS` or `VALKEY`.
    pub format: String,
    pub version: u32,
    /// By database; absent when a type was not known.
    pub keys: Option<BTreeMap<u64, Keys>>,
    /// Libraries of functions; absent with `keys`.
    pub functions: Option<u64>,
    /// `redis-ver`, `ctime`, …
    pub aux: BTreeMap<String, String>,
    /// `false`: the server writes no checksum (`rdbchecksum no`).
    pub checksum: bool,
    /// Bytes of the RDB itself.
    pub length: u64,
    /// Whether the mark of a diskless replication stream was cut off.
    pub mark: bool,
}

/// The CRC of what went by.
pub(super) struct Crc64(Digest<'static, u64, Table<16>>);

impl Crc64 {
    pub fn new() -> Self {
        Self(CRC64.digest())
    }

    fn value(&self) -> u64 {
        self.0.clone().finalize()
    }
}

impl Observer for Crc64 {
    fn observe(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

/// Why the walk stopped.
enum Stop {
    Tap(TapError),
    /// A type or opcode that is not known here.
    Unknown,
}

impl From<TapError> for Stop {
    fn from(error: TapError) -> Self {
        Stop::Tap(error)
    }
}

fn format_error(what: impl Into<String>) -> Stop {
    Stop::Tap(TapError::Format(what.into()))
}

/// A length, or one of the special encodings of a string.
enum Length {
    Plain(u64),
    Encoded(u8),
}

struct Walk<R, W> {
    tap: Tap<R, W, Crc64>,
    report: Report,
}

/// Walks an RDB to its end; every byte of it, and none behind it, goes to `sink`.
pub(super) fn store<R: Read, W: Write>(input: R, sink: W) -> Result<Report, TapError> {
    let mut walk = Walk { tap: Tap::new(input, sink, Crc64::new()), report: Report::default() };
    walk.magic()?;
    let mut keys = BTreeMap::new();
    let mut functions = 0;
    match walk.body(&mut keys, &mut functions) {
        Ok(()) => {
            (walk.report.keys, walk.report.functions) = (Some(keys), Some(functions));
            walk.finish()
        }
        Err(Stop::Tap(error)) => Err(error),
        Err(Stop::Unknown) => tail::finish(walk.tap, walk.report),
    }
}

impl<R: Read, W: Write> Walk<R, W> {
    /// `REDIS0011`, `VALKEY080`.
    fn magic(&mut self) -> Result<(), TapError> {
        let magic = self.tap.take::<9>()?;
        let text = String::from_utf8_lossy(&magic).into_owned();
        let (format, digits) = match (text.strip_prefix("REDIS"), text.strip_prefix("VALKEY")) {
            (Some(digits), _) => ("REDIS", digits),
            (_, Some(digits)) => ("VALKEY", digits),
            _ => return Err(TapError::Format("not an RDB file".into())),
        };
        self.report.format = format.into();
        self.report.version = digits.parse().map_err(|_| TapError::Format(format!("an RDB of version {digits:?}")))?;
        if self.report.version < FIRST_WITH_CRC {
            return Err(TapError::Format(format!("an RDB of version {digits}, which has no checksum")));
        }
        Ok(())
    }

    /// Everything up to the end opcode.
    fn body(&mut self, keys: &mut BTreeMap<u64, Keys>, functions: &mut u64) -> Result<(), Stop> {
        let mut database = 0;
        let mut expires = false;
        loop {
            match self.tap.byte()? {
                OPCODE_END => return Ok(()),
                254 => database = self.plain()?,
                253 => {
                    self.tap.skip(4)?;
                    expires = true;
                }
                252 => {
                    self.tap.skip(8)?;
                    expires = true;
                }
                251 => {
                    self.plain()?;
                    self.plain()?;
                }
                250 => {
                    let (name, value) = (self.text()?, self.text()?);
                    if let (Some(name), Some(value)) = (name, value) {
                        self.report.aux.insert(name, value);
                    }
                }
                249 => self.tap.skip(1)?,
                248 => {
                    self.plain()?;
                }
                247 => {
                    self.plain()?;
                    self.module_value()?;
                }
                246 => return Err(Stop::Unknown),
                245 => {
                    self.skip_string()?;
                    *functions += 1;
                }
                244 => {
                    for _ in 0..3 {
                        self.plain()?;
                    }
                }
                kind => {
                    self.skip_string()?;
                    self.value(kind)?;
                    let counted = keys.entry(database).or_default();
                    counted.keys += 1;
                    counted.expires += u64::from(std::mem::take(&mut expires));
                }
            }
        }
    }

    fn length(&mut self) -> Result<Length, Stop> {
        let first = self.tap.byte()?;
        Ok(match (first >> 6, first) {
            (0, n) => Length::Plain(u64::from(n)),
            (1, n) => Length::Plain(u64::from(n & 0x3f) << 8 | u64::from(self.tap.byte()?)),
            (2, 0x80) => Length::Plain(u64::from(u32::from_be_bytes(self.tap.take()?))),
            (2, 0x81) => Length::Plain(u64::from_be_bytes(self.tap.take()?)),
            (3, n) => Length::Encoded(n & 0x3f),
            (_, n) => return Err(format_error(format!("a length that begins with {n:#x}"))),
        })
    }

    fn plain(&mut self) -> Result<u64, Stop> {
        match self.length()? {
            Length::Plain(n) => Ok(n),
            Length::Encoded(n) => Err(format_error(format!("an encoding ({n}) where a length belongs"))),
        }
    }

    /// A string: plain, an integer of 1, 2 or 4 bytes, or compressed.
    fn skip_string(&mut self) -> Result<(), Stop> {
        let bytes = match self.length()? {
            Length::Plain(n) => n,
            Length::Encoded(0) => 1,
            Length::Encoded(1) => 2,
            Length::Encoded(2) => 4,
            Length::Encoded(3) => {
                let compressed = self.plain()?;
                self.plain()?;
                compressed
            }
            Length::Encoded(n) => return Err(format_error(format!("a string of encoding {n}"))),
        };
        Ok(self.tap.skip(bytes)?)
    }

    fn skip_strings(&mut self, count: u64) -> Result<(), Stop> {
        (0..count).try_for_each(|_| self.skip_string())
    }

    /// A string's text, when it is short and stands there plainly.
    fn text(&mut self) -> Result<Option<String>, Stop> {
        Ok(match self.length()? {
            Length::Plain(n) if n <= MAX_TEXT_BYTES => {
                Some(String::from_utf8_lossy(&self.tap.bytes(n, MAX_TEXT_BYTES, "a field")?).into_owned())
            }
            Length::Plain(n) => {
                self.tap.skip(n)?;
                None
            }
            Length::Encoded(0) => Some(i8::from_le_bytes(self.tap.take()?).to_string()),
            Length::Encoded(1) => Some(i16::from_le_bytes(self.tap.take()?).to_string()),
            Length::Encoded(2) => Some(i32::from_le_bytes(self.tap.take()?).to_string()),
            Length::Encoded(3) => {
                let compressed = self.plain()?;
                self.plain()?;
                self.tap.skip(compressed)?;
                None
            }
            Length::Encoded(n) => return Err(format_error(format!("a string of encoding {n}"))),
        })
    }

    fn value(&mut self, kind: u8) -> Result<(), Stop> {
        match kind {
            // string; zipmap, ziplists, intset and listpacks are one string each
            0 | 9..=13 | 16 | 17 | 20 => self.skip_string(),
            // list, set; quicklist of ziplists
            1 | 2 | 14 => {
                let n = self.plain()?;
                self.skip_strings(n)
            }
            // sorted set: member, score as text
            3 => {
                for _ in 0..self.plain()? {
                    self.skip_string()?;
                    let length = self.tap.byte()?;
                    if length < 253 {
                        self.tap.skip(u64::from(length))?;
                    }
                }
                Ok(())
            }
            // hash
            4 => {
                for _ in 0..self.plain()? {
                    self.skip_strings(2)?;
                }
                Ok(())
            }
            // sorted set: member, score in binary
            5 => {
                for _ in 0..self.plain()? {
                    self.skip_string()?;
                    self.tap.skip(8)?;
                }
                Ok(())
            }
            7 => {
                self.plain()?;
                self.module_value()
            }
            15 | 19 | 21 => self.stream(kind),
            // quicklist 2: container, node
            18 => {
                for _ in 0..self.plain()? {
                    self.plain()?;
                    self.skip_string()?;
                }
                Ok(())
            }
            // In Redis these are hashes whose fields may expire; other families gave the numbers other meanings.
            22..=25 if self.report.format == "REDIS" => self.hash_with_expiry(kind),
            _ => Err(Stop::Unknown),
        }
    }

    fn hash_with_expiry(&mut self, kind: u8) -> Result<(), Stop> {
        if kind >= 24 {
            self.tap.skip(8)?; // the first expiry of its fields
        }
        if matches!(kind, 23 | 25) {
            return self.skip_string();
        }
        for _ in 0..self.plain()? {
            self.plain()?;
            self.skip_strings(2)?;
        }
        Ok(())
    }

    /// What a module saved, annotated so that it can be passed over without the module.
    fn module_value(&mut self) -> Result<(), Stop> {
        loop {
            match self.plain()? {
                0 => return Ok(()),
                1 | 2 => {
                    self.plain()?;
                }
                3 => self.tap.skip(4)?,
                4 => self.tap.skip(8)?,
                5 => self.skip_string()?,
                n => return Err(format_error(format!("a module's value of kind {n}"))),
            }
        }
    }

    fn stream(&mut self, kind: u8) -> Result<(), Stop> {
        for _ in 0..self.plain()? {
            self.skip_strings(2)?; // id of the node, listpack
        }
        // length, last id; since the second version: first id, largest deleted id, entries added
        for _ in 0..if kind >= 19 { 8 } else { 3 } {
            self.plain()?;
        }
        for _ in 0..self.plain()? {
            self.skip_string()?; // the group's name
            for _ in 0..if kind >= 19 { 3 } else { 2 } {
                self.plain()?; // last id, entries read
            }
            for _ in 0..self.plain()? {
                self.tap.skip(16 + 8)?; // pending: id, time of delivery
                self.plain()?; // deliveries
            }
            for _ in 0..self.plain()? {
                self.skip_string()?; // the consumer's name
                self.tap.skip(if kind >= 21 { 16 } else { 8 })?; // last seen, last active
                let pending = self.plain()?;
                self.tap.skip(pending.saturating_mul(16))?;
            }
        }
        Ok(())
    }

    /// The checksum, and what stands behind it.
    fn finish(mut self) -> Result<Report, TapError> {
        let computed = self.tap.tell()?.value();
        let stored = u64::from_le_bytes(self.tap.take()?);
        check(stored, computed)?;
        self.report.checksum = stored != 0;
        self.report.length = self.tap.position();
        let (mut rest, input) = self.tap.finish()?;
        input.take(4096).read_to_end(&mut rest).map_err(TapError::Read)?;
        self.report.mark = match rest.as_slice() {
            [] => false,
            mark if is_mark(mark) => true,
            other => return Err(TapError::Format(format!("{} bytes behind the end of the RDB", other.len()))),
        };
        Ok(self.report)
    }
}

fn check(stored: u64, computed: u64) -> Result<(), TapError> {
    match stored {
        0 => Ok(()),
        same if same == computed => Ok(()),
        _ => Err(TapError::Format(format!("the RDB's checksum is {stored:016x}, and its bytes give {computed:016x}"))),
    }
}

fn is_mark(bytes: &[u8]) -> bool {
    bytes.len() == MARK_BYTES && bytes.iter().all(u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(mut body: Vec<u8>) -> Vec<u8> {
        body.push(OPCODE_END);
        let crc = CRC64.checksum(&body);
        body.extend_from_slice(&crc.to_le_bytes());
        body
    }

    fn string(out: &mut Vec<u8>, s: &[u8]) {
        out.push(s.len() as u8);
        out.extend_from_slice(s);
    }

    /// One of each type that a server of this machine does not write by itself.
    fn example() -> Vec<u8> {
        let mut b = b"REDIS0012".to_vec();
        b.push(250);
        string(&mut b, b"redis-ver");
        string(&mut b, b"7.4.1");
        b.extend([250, 5]);
        b.extend(b"ctime");
        b.extend([0xc2, 1, 0, 0, 0]); // integer of 4 bytes
        b.extend([247, 0x81, 1, 2, 3, 4, 5, 6, 7, 8, 2, 1, 3, 0, 0, 0, 0, 5, 1, b'x', 0]); // module's auxiliary value
        b.extend([245, 3]);
        b.extend(b"lib");
        b.extend([254, 0, 251, 4, 1]);
        b.extend([252, 1, 2, 3, 4, 5, 6, 7, 8, 249, 7, 0]); // expiry, frequency, string
        string(&mut b, b"key");
        b.extend([0xc3, 3, 20, 1, 2, 3]); // compressed
        b.extend([248, 5, 24]); // idle time, hash whose fields expire
        string(&mut b, b"hash");
        b.extend([0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, b'f', 1, b'v', 9, 1, b'g', 1, b'w']);
        b.push(25);
        string(&mut b, b"hash2");
        b.extend([0, 0, 0, 0, 0, 0, 0, 0]);
        string(&mut b, b"listpack");
        b.push(7); // module's value
        string(&mut b, b"mod");
        b.extend([0x81, 1, 2, 3, 4, 5, 6, 7, 8, 1, 5, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        b.extend([254, 9, 3]); // database 9, sorted set of old
        string(&mut b, b"z");
        b.extend([3, 1, b'a', 3, b'1', b'.', b'5', 1, b'b', 255, 1, b'c', 253]);
        b.push(15); // stream of the first version, one group, one consumer
        string(&mut b, b"s");
        b.extend([1, 1, b'n', 2, b'l', b'p', 1, 1, 1, 1, 1, b'g', 1, 1, 1]);
        b.extend([0u8; 24]);
        b.extend([1, 1, 1, b'c', 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        b.extend([0u8; 16]);
        sealed(b)
    }

    fn walked(bytes: &[u8]) -> Result<(Report, Vec<u8>), TapError> {
        let mut stored = Vec::new();
        let report = store(bytes, &mut stored)?;
        Ok((report, stored))
    }

    #[test]
    fn every_type_is_passed_over_and_counted() {
        let bytes = example();
        let (report, stored) = walked(&bytes).unwrap();
        assert_eq!(stored, bytes);
        assert_eq!((report.version, report.length, report.mark), (12, bytes.len() as u64, false));
        let keys = report.keys.unwrap();
        assert_eq!(keys[&0], Keys { keys: 4, expires: 1 });
        assert_eq!(keys[&9], Keys { keys: 2, expires: 0 });
        assert_eq!(report.functions, Some(1));
        assert_eq!((report.aux["redis-ver"].as_str(), report.aux["ctime"].as_str()), ("7.4.1", "1"));
    }

    #[test]
    fn the_replication_mark_is_cut_off_and_nothing_else_is() {
        let bytes = example();
        let mark = b"0123456789abcdef0123456789abcdef01234567";
        let (report, stored) = walked(&[&bytes[..], mark].concat()).unwrap();
        assert!(report.mark && stored == bytes);
        for behind in [&b"x"[..], &mark[..39], &[mark, &b"0"[..]].concat(), &[0; 40], &[b'z'; 40]] {
            assert!(matches!(walked(&[&bytes[..], behind].concat()), Err(TapError::Format(_))), "{behind:?}");
        }
    }

    #[test]
    fn a_cut_or_a_flipped_bit_anywhere_is_refused() {
        let bytes = example();
        for end in 0..bytes.len() {
            assert!(walked(&bytes[..end]).is_err(), "cut at {end}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(walked(&flipped).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn without_a_checksum_it_is_taken_and_said() {
        let mut bytes = example();
        let at = bytes.len() - 8;
        bytes[at..].fill(0);
        let (report, stored) = walked(&bytes).unwrap();
        assert!(!report.checksum && stored == bytes);
    }

    /// An RDB with a type that is not known; the end is found from the other side.
    #[test]
    fn the_end_behind_an_unknown_type() {
        let mut body = b"REDIS0099".to_vec();
        body.extend([254, 0, 99, 1, b'k']);
        body.extend((0..100_000u32).flat_map(u32::to_le_bytes));
        let bytes = sealed(body);
        let mark = [b'f'; MARK_BYTES];
        for (input, marked) in [(bytes.clone(), false), ([&bytes[..], &mark].concat(), true)] {
            let (report, stored) = walked(&input).unwrap();
            assert!(stored == bytes && report.mark == marked && report.keys.is_none() && report.checksum);
            assert_eq!(report.length, bytes.len() as u64);
            for cut in 1..60 {
                let cut_off = input.len() - cut;
                // What is left when exactly the mark is missing is the RDB itself.
                let whole = cut_off == bytes.len();
                assert_eq!(walked(&input[..cut_off]).is_ok(), whole, "{cut} bytes cut off");
            }
        }
        let mut flipped = bytes.clone();
        flipped[5000] ^= 1;
        assert!(walked(&flipped).is_err());
        let mut none = bytes;
        let at = none.len() - 8;
        none[at..].fill(0);
        let (report, stored) = walked(&[&none[..], &mark].concat()).unwrap();
        assert!(!report.checksum && report.mark && stored == none);
    }

    #[test]
    fn a_claimed_length_costs_nothing() {
        let mut bytes = b"REDIS0011".to_vec();
        bytes.extend([0, 0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        bytes.extend([7; 100]);
        assert!(matches!(walked(&bytes), Err(TapError::Short)));
        assert!(matches!(walked(b"NOAUTH Authentication required."), Err(TapError::Format(_))));
        assert!(matches!(walked(b"REDIS0003"), Err(TapError::Format(_))));
    }
}
