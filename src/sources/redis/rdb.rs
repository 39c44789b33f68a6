//! An RDB file, walked to its own end while it is stored.
//!
//! The end has to be known: `redis-cli --rdb -` leaves the 40-byte mark of diskless replication behind the RDB, and a
//! server that gets such a file as the base of its AOF refuses to start. So the walk follows every opcode and every
//! value to the end opcode, checks the CRC64 behind it, and cuts there. Behind the cut only that mark may follow.
//! Along the way it counts keys and sums up what they hold ([`content`]), so that the facts are those of the stored file
//! and not of a moment before or after.
//!
//! A version may bring types that are not known here. From there on the end is found from the other side
//! ([`tail`]), and keys are not counted.
//!
//! Nothing is allocated by a length that the file claims. Layout after `src/rdb.c` of Redis 7.4 (RDB 12).

pub(super) mod content;
mod tail;

use super::facts;
use crate::sources::tap::{Observer, Tap, TapError};
use content::{Content, Sum};
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
/// The most of a compressed name of a key or library that is unpacked: Redis itself allows 512 MiB, people do not.
const MAX_COMPRESSED_BYTES: u64 = 16 << 20;
/// Values nest as far as modules annotate them, which is one level.
const OPCODE_END: u8 = 255;

/// Libraries of functions of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Functions {
    pub count: u64,
    pub sum: Sum,
}

/// What the walk found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// `REDIS` or `VALKEY`.
    pub format: String,
    pub version: u32,
    /// By database; absent when a type was not known.
    pub databases: Option<BTreeMap<u64, Content>>,
    /// Libraries of functions; absent with `databases`.
    pub functions: Option<Functions>,
    /// `redis-ver`, `ctime`, …
    pub aux: BTreeMap<String, String>,
    /// `false`: the server writes no checksum (`rdbchecksum no`).
    pub checksum: bool,
    /// Bytes of the RDB itself.
    pub length: u64,
    /// Whether the mark of a diskless replication stream was cut off.
    pub mark: bool,
}

impl Report {
    /// Keys of each database, in the form of facts.
    pub fn keys(&self) -> Option<Vec<facts::Keys>> {
        let keys =
            |(database, c): (&u64, &Content)| facts::Keys { database: *database, keys: c.keys(), expires: c.expires };
        Some(self.databases.as_ref()?.iter().map(keys).collect())
    }

    /// What the databases hold, in the form of facts.
    pub fn content(&self) -> Option<Vec<facts::Content>> {
        let values = |v: &content::Values| facts::Values { keys: v.keys, digest: v.values.to_string() };
        let content = |(database, c): (&u64, &Content)| facts::Content {
            database: *database,
            names: c.names.to_string(),
            expiry: c.expiry.to_string(),
            types: c.types.iter().map(|(name, v)| ((*name).to_owned(), values(v))).collect(),
        };
        Some(self.databases.as_ref()?.iter().map(content).collect())
    }
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

/// What sees the bytes of the walk: their checksum, and the hash of the value that is being passed over.
pub(super) struct Eye {
    crc: Crc64,
    value: blake3::Hasher,
}

impl Observer for Eye {
    fn observe(&mut self, bytes: &[u8]) {
        self.crc.observe(bytes);
    }

    fn watched(&mut self, bytes: &[u8]) {
        self.value.update(bytes);
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
    tap: Tap<R, W, Eye>,
    report: Report,
}

/// Walks an RDB to its end; every byte of it, and none behind it, goes to `sink`.
pub(super) fn store<R: Read, W: Write>(input: R, sink: W) -> Result<Report, TapError> {
    let eye = Eye { crc: Crc64::new(), value: blake3::Hasher::new() };
    let mut walk = Walk { tap: Tap::new(input, sink, eye), report: Report::default() };
    walk.magic()?;
    let mut databases = BTreeMap::new();
    let mut functions = Functions::default();
    match walk.body(&mut databases, &mut functions) {
        Ok(()) => {
            (walk.report.databases, walk.report.functions) = (Some(databases), Some(functions));
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
    fn body(&mut self, databases: &mut BTreeMap<u64, Content>, functions: &mut Functions) -> Result<(), Stop> {
        let mut database = 0;
        // In milliseconds.
        let mut expiry = None;
        loop {
            match self.tap.byte()? {
                OPCODE_END => return Ok(()),
                254 => database = self.plain()?,
                253 => expiry = Some(i64::from(i32::from_le_bytes(self.tap.take()?)).saturating_mul(1000)),
                252 => expiry = Some(i64::from_le_bytes(self.tap.take()?)),
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
                    let library = self.string_hash()?;
                    functions.count += 1;
                    functions.sum.add(&library);
                }
                244 => {
                    for _ in 0..3 {
                        self.plain()?;
                    }
                }
                kind => {
                    let name = self.string_hash()?;
                    self.tap.watch();
                    self.value(kind)?;
                    let eye = self.tap.unwatch();
                    let value = eye.value.finalize();
                    eye.value.reset();
                    databases.entry(database).or_default().add(&name, kind, value.as_bytes(), expiry.take());
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

    /// The hash of what a string says, however it is encoded: a server may write it differently from another.
    fn string_hash(&mut self) -> Result<[u8; 32], Stop> {
        let mut hasher = blake3::Hasher::new();
        let integer = match self.length()? {
            Length::Plain(n) => {
                self.tap.pass(n, &mut |bytes| {
                    hasher.update(bytes);
                })?;
                None
            }
            Length::Encoded(0) => Some(i32::from(i8::from_le_bytes(self.tap.take()?))),
            Length::Encoded(1) => Some(i32::from(i16::from_le_bytes(self.tap.take()?))),
            Length::Encoded(2) => Some(i32::from_le_bytes(self.tap.take()?)),
            Length::Encoded(3) => {
                let (compressed, length) = (self.plain()?, self.plain()?);
                if compressed <= MAX_COMPRESSED_BYTES {
                    let bytes = self.tap.bytes(compressed, MAX_COMPRESSED_BYTES, "a name")?;
                    let text = content::decompress(&bytes, length);
                    hasher.update(&text.ok_or_else(|| format_error("a compressed name that does not unpack"))?);
                } else {
                    self.tap.pass(compressed, &mut |bytes| {
                        hasher.update(bytes);
                    })?;
                }
                None
            }
            Length::Encoded(n) => return Err(format_error(format!("a string of encoding {n}"))),
        };
        if let Some(integer) = integer {
            hasher.update(integer.to_string().as_bytes());
        }
        Ok(*hasher.finalize().as_bytes())
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
        let computed = self.tap.tell()?.crc.value();
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
mod tests;
