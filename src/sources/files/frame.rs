//! An entry as tar headers: POSIX `pax` with the records that GNU tar, libarchive and star read too. Deterministic:
//! the same entry makes the same bytes; no access or change times, no process ids.
//!
//! - `ustar` says what it can; a `pax` record says what it cannot (long or non-ASCII names, fractions of a second,
//!   years before 1970, large sizes and ids). `hdrcharset=BINARY` stands before names that are not UTF-8.
//! - Extended attributes are `SCHILY.xattr.*` (`=` and `%` in their names encoded as GNU tar does), POSIX ACLs
//!   `SCHILY.acl.access` and `.default`; flags that keep a file from being changed `SCHILY.fflags`.
//! - Sparse files are GNU's sparse format 1.0: the map stands before the data.

use super::acl;
use super::entry::{Entry, FLAGS, Kind, Time};
use std::io::Write as _;
use tar::{EntryType, Header};

pub const BLOCK: u64 = 512;
/// The two zero blocks that end an archive.
pub const END_OF_ARCHIVE: [u8; 1024] = [0; 1024];
/// The largest number in an 11-digit octal field.
const MAX_OCTAL_11: u64 = 0o77_777_777_777;
/// The largest number in a 7-digit octal field.
const MAX_OCTAL_7: u32 = 0o7_777_777;
/// What stands in the `ustar` field of an id that does not fit: nobody.
const NOBODY: u32 = 65_534;
/// The `pax` record of an entry that takes the place of the one before it: the file changed while it was read.
pub const AGAIN: &str = "LIFEBOAT.again";

/// A run of content bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// Where a sparse file's data lies. Everything else reads as zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseMap {
    pub segments: Vec<Segment>,
}

impl SparseMap {
    /// Bytes of data.
    pub fn data(&self) -> u64 {
        self.segments.iter().map(|s| s.length).sum()
    }

    /// The map as it stands before the data: decimal numbers, one a line, padded to a block.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = format!("{}\n", self.segments.len()).into_bytes();
        for s in &self.segments {
            text.extend(format!("{}\n{}\n", s.offset, s.length).into_bytes());
        }
        pad(&mut text);
        text
    }
}

/// Bytes that pad `length` to a block.
pub fn padding(length: u64) -> u64 {
    (BLOCK - length % BLOCK) % BLOCK
}

/// Pads to a block with zeros.
pub fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len() + padding(bytes.len() as u64) as usize, 0);
}

/// Everything of an entry but its content and the padding behind it: headers, and the map of a sparse file.
/// `again`: it takes the place of the entry before it.
pub fn head(entry: &Entry, sparse: Option<&SparseMap>, again: bool) -> Vec<u8> {
    let map = sparse.map(SparseMap::encode);
    let on_tape = match (&entry.kind, sparse, &map) {
        (Kind::File, Some(sparse), Some(map)) => map.len() as u64 + sparse.data(),
        (Kind::File, ..) => entry.size,
        _ => 0,
    };
    let mut name = entry.path.clone();
    if entry.kind == Kind::Dir {
        name.push(b'/');
    }
    let mut pax = Pax::default();
    if again {
        pax.add(AGAIN, b"1");
    }
    match sparse {
        Some(_) => {
            pax.add("GNU.sparse.major", b"1");
            pax.add("GNU.sparse.minor", b"0");
            pax.add_text("GNU.sparse.name", &name);
            pax.add("GNU.sparse.realsize", entry.size.to_string().as_bytes());
        }
        None if name.len() > 100 || !name.is_ascii() => pax.add_text("path", &name),
        None => {}
    }
    if let Kind::Symlink(target) | Kind::Hardlink(target) = &entry.kind
        && (target.len() > 100 || !target.is_ascii())
    {
        pax.add_text("linkpath", target);
    }
    numbers(&mut pax, entry, on_tape);
    owners(&mut pax, entry);
    if !matches!(entry.kind, Kind::Hardlink(_)) {
        attributes(&mut pax, entry);
    }

    let mut out = pax.encode();
    out.extend_from_slice(ustar(entry, &name, sparse.is_some(), on_tape).as_bytes());
    out.extend(map.unwrap_or_default());
    out
}

fn numbers(pax: &mut Pax, entry: &Entry, on_tape: u64) {
    if on_tape > MAX_OCTAL_11 {
        pax.add("size", on_tape.to_string().as_bytes());
    }
    if entry.uid > MAX_OCTAL_7 {
        pax.add("uid", entry.uid.to_string().as_bytes());
    }
    if entry.gid > MAX_OCTAL_7 {
        pax.add("gid", entry.gid.to_string().as_bytes());
    }
    if entry.mtime.nanos != 0 || entry.mtime.seconds < 0 || entry.mtime.seconds as u64 > MAX_OCTAL_11 {
        pax.add("mtime", decimal(entry.mtime).as_bytes());
    }
}

fn owners(pax: &mut Pax, entry: &Entry) {
    for (key, name) in [("uname", &entry.user), ("gname", &entry.group)] {
        if let Some(name) = name
            && (name.len() > 31 || !name.is_ascii())
        {
            pax.add_text(key, name.as_bytes());
        }
    }
}

fn attributes(pax: &mut Pax, entry: &Entry) {
    for (name, value) in &entry.xattrs {
        let acl = match name.as_slice() {
            b"system.posix_acl_access" => acl::to_text(value).map(|text| ("SCHILY.acl.access", text)),
            b"system.posix_acl_default" => acl::to_text(value).map(|text| ("SCHILY.acl.default", text)),
            _ => None,
        };
        match acl {
            _ if name == FLAGS => pax.add("SCHILY.fflags", value),
            Some((key, text)) => pax.add(key, text.as_bytes()),
            None => pax.add_bytes(&[b"SCHILY.xattr.", encode_key(name).as_slice()].concat(), value),
        }
    }
}

fn ustar(entry: &Entry, name: &[u8], sparse: bool, on_tape: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_mode(entry.mode);
    header.set_uid(u64::from(if entry.uid > MAX_OCTAL_7 { NOBODY } else { entry.uid }));
    header.set_gid(u64::from(if entry.gid > MAX_OCTAL_7 { NOBODY } else { entry.gid }));
    header.set_size(if on_tape > MAX_OCTAL_11 { 0 } else { on_tape });
    header.set_mtime(u64::try_from(entry.mtime.seconds).unwrap_or(0).min(MAX_OCTAL_11));
    header.set_entry_type(match entry.kind {
        Kind::File => EntryType::Regular,
        Kind::Dir => EntryType::Directory,
        Kind::Symlink(_) => EntryType::Symlink,
        Kind::Hardlink(_) => EntryType::Link,
        Kind::Fifo => EntryType::Fifo,
        Kind::CharDevice(..) => EntryType::Char,
        Kind::BlockDevice(..) => EntryType::Block,
    });
    if let Some(fields) = header.as_ustar_mut() {
        // A reader that knows no sparse files finds map and data under a name that says so.
        let shown = if sparse { [b"GNUSparseFile.0/", name].concat() } else { name.to_vec() };
        copy(&mut fields.name, &shown);
        if let Kind::Symlink(target) | Kind::Hardlink(target) = &entry.kind {
            copy(&mut fields.linkname, target);
        }
        for (field, owner) in [(&mut fields.uname, &entry.user), (&mut fields.gname, &entry.group)] {
            if let Some(owner) = owner
                && owner.len() <= 31
                && owner.is_ascii()
            {
                copy(field, owner.as_bytes());
            }
        }
        if let Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) = entry.kind {
            fields.set_device_major(major);
            fields.set_device_minor(minor);
        }
    }
    header.set_cksum();
    header
}

fn copy(field: &mut [u8], bytes: &[u8]) {
    let n = bytes.len().min(field.len());
    field[..n].copy_from_slice(&bytes[..n]);
}

/// `pax` records, in the order in which they were added.
#[derive(Default)]
struct Pax {
    records: Vec<u8>,
    binary: bool,
}

impl Pax {
    fn add(&mut self, key: &str, value: &[u8]) {
        self.add_bytes(key.as_bytes(), value);
    }

    /// A record that POSIX wants in UTF-8.
    fn add_text(&mut self, key: &str, value: &[u8]) {
        self.binary |= std::str::from_utf8(value).is_err();
        self.add(key, value);
    }

    fn add_bytes(&mut self, key: &[u8], value: &[u8]) {
        record(&mut self.records, key, value);
    }

    /// Header block and records; nothing without records.
    fn encode(self) -> Vec<u8> {
        if self.records.is_empty() {
            return Vec::new();
        }
        let mut body = Vec::with_capacity(self.records.len() + 1024);
        if self.binary {
            record(&mut body, b"hdrcharset", b"BINARY");
        }
        body.extend(self.records);
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(body.len() as u64);
        if let Some(fields) = header.as_ustar_mut() {
            copy(&mut fields.name, b"PaxHeader");
        }
        header.set_cksum();
        let mut out = header.as_bytes().to_vec();
        out.extend(body);
        pad(&mut out);
        out
    }
}

/// `<length> <key>=<value>\n`, where the length counts its own digits.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + digits(length) != length {
        length = rest + digits(length);
    }
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{length} ");
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn digits(n: usize) -> usize {
    n.checked_ilog10().unwrap_or(0) as usize + 1
}

/// GNU tar's encoding of an attribute's name: `%` and `=` would be mistaken for the record's own.
fn encode_key(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for b in name {
        match b {
            b'%' => out.extend_from_slice(b"%25"),
            b'=' => out.extend_from_slice(b"%3D"),
            b => out.push(*b),
        }
    }
    out
}

/// Seconds with a fraction: `-0.5` is half a second before 1970.
fn decimal(time: Time) -> String {
    let (sign, whole, nanos) = if time.seconds < 0 {
        let nanos = if time.nanos == 0 { 0 } else { 1_000_000_000 - time.nanos };
        ("-", (time.seconds + i64::from(time.nanos != 0)).unsigned_abs(), nanos)
    } else {
        ("", time.seconds.unsigned_abs(), time.nanos)
    };
    let text = format!("{sign}{whole}.{nanos:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_digits() {
        let mut out = Vec::new();
        record(&mut out, b"a", b"");
        assert_eq!(out, b"5 a=\n");
        for n in 0..2000 {
            let mut out = Vec::new();
            record(&mut out, b"path", &vec![b'x'; n]);
            let text = String::from_utf8(out.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), out.len());
        }
    }

    #[test]
    fn times_before_the_epoch() {
        let at = |seconds, nanos| decimal(Time { seconds, nanos });
        assert_eq!(at(-1, 500_000_000), "-0.5");
        assert_eq!(at(-2, 500_000_000), "-1.5");
        assert_eq!(at(-10, 0), "-10");
        assert_eq!(at(10, 1), "10.000000001");
        assert_eq!(at(0, 0), "0");
        assert_eq!(at(100, 0), "100");
    }
}
