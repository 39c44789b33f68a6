//! Reading a tar, strictly. What two readers could understand differently is refused, because then one of them sees
//! files that the other does not: a `pax` size beside another one in the header, content behind a folder or a link,
//! bytes behind the end, global headers.
//!
//! Understood: `ustar`, `pax`, GNU's long names, numbers in base 256 and old sparse files, V7; GNU's sparse format 1.0.
//! Limits are checked before anything is allocated.

use super::pax::{self, Records};
use crate::sources::files::entry::{Entry, Kind, Time};
use crate::sources::files::frame::{BLOCK, Segment, SparseMap, padding};
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use tar::Header;

/// A `pax` header's records: extended attributes are the largest.
const MAX_PAX: u64 = 8 << 20;
const MAX_PATH: u64 = 64 << 10;
const MAX_SEGMENTS: u64 = 1 << 18;
/// The largest number in an 11-digit octal field.
const MAX_OCTAL_11: u64 = 0o77_777_777_777;
/// No file system has larger files.
const MAX_SIZE: u64 = i64::MAX as u64;

/// Why a tar cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("read the archive")]
    Io(#[source] io::Error),
    /// `offset` is where the part begins that is cut short.
    #[error("the archive ends within {what} at byte {offset}")]
    Truncated { what: &'static str, offset: u64 },
    #[error("the archive's header at byte {offset}: {problem}")]
    Malformed { offset: u64, problem: String },
}

/// One entry of a tar. Its payload is read from the [`Archive`].
#[derive(Debug, Clone)]
pub struct Member {
    pub entry: Entry,
    /// Of a sparse file; the payload is the data of its segments.
    pub map: Option<SparseMap>,
    /// It takes the place of the entry before it.
    pub again: bool,
    /// Where its first header begins.
    pub offset: u64,
    /// Bytes of payload.
    pub payload: u64,
    /// Metadata that the archive has and nothing restores, in words.
    pub lost: Vec<String>,
}

/// A tar that is being read.
pub struct Archive<R> {
    inner: R,
    offset: u64,
    /// Payload of the current member that has not been read yet, and the padding behind it.
    left: u64,
    padding: u64,
    part: bool,
    done: bool,
}

/// What extension headers say of the entry behind them.
#[derive(Default)]
struct Extended {
    pax: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Archive<R> {
    /// A whole archive: it must have its end.
    pub fn new(inner: R) -> Self {
        Archive { inner, offset: 0, left: 0, padding: 0, part: false, done: false }
    }

    /// Some entries of an archive, headers and padding included: it may end behind any of them.
    pub fn part(inner: R) -> Self {
        Archive { part: true, ..Archive::new(inner) }
    }

    /// The content of one entry that the caller describes itself, and nothing else.
    pub fn content(inner: R, length: u64) -> Self {
        Archive { left: length, ..Archive::part(inner) }
    }

    /// The next entry; what is left of the current one is skipped. At the end the input has been read to its own end.
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        if self.done {
            return Ok(None);
        }
        self.skip()?;
        let start = self.offset;
        let mut extended = Extended::default();
        loop {
            let at = self.offset;
            let Some(header) = self.header(extended.any())? else {
                self.done = true;
                return Ok(None);
            };
            if !self.extension(&header, at, &mut extended)? {
                return self.member(&header, at, start, extended).map(Some);
            }
        }
    }

    /// Reads an extension header's content; `false` when the header is an entry's own.
    fn extension(&mut self, header: &Header, at: u64, extended: &mut Extended) -> Result<bool, TarError> {
        let twice = |problem: &str| Err(malformed(at, problem));
        match type_of(header) {
            b'x' => {
                let body = self.body(header, at, MAX_PAX)?;
                if extended.pax.is_some() {
                    return twice("two pax headers for one entry");
                }
                extended.pax = Some(pax::parse(&body).map_err(|problem| malformed(at, problem))?);
            }
            b'g' => {
                let body = self.body(header, at, MAX_PAX)?;
                let records = pax::parse(&body).map_err(|problem| malformed(at, problem))?;
                if records.keys().any(|key| key != b"comment") {
                    return twice("a global pax header that changes every entry behind it");
                }
            }
            b'L' | b'K' => {
                let mut name = self.body(header, at, MAX_PATH)?;
                if name.last() == Some(&0) {
                    name.pop();
                }
                let slot = if type_of(header) == b'L' { &mut extended.long_name } else { &mut extended.long_link };
                if slot.replace(name).is_some() {
                    return twice("two long names for one entry");
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn body(&mut self, header: &Header, at: u64, limit: u64) -> Result<Vec<u8>, TarError> {
        let size = number(&header.as_old().size).and_then(|n| u64::try_from(n).ok()).filter(|n| *n <= limit);
        let size = size.ok_or_else(|| malformed(at, format!("an extension header larger than {limit} bytes")))?;
        let mut body = vec![0; (size + padding(size)) as usize];
        self.fill(&mut body, "an extension header")?;
        body.truncate(size as usize);
        Ok(body)
    }

    /// The next header block; `None` at the end of the archive.
    fn header(&mut self, inside: bool) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let at = self.offset;
        let got = self.read_up_to(header.as_mut_bytes())?;
        if got == 0 && self.part && !inside {
            return Ok(None);
        }
        if got < BLOCK as usize {
            return Err(TarError::Truncated { what: "a header", offset: at });
        }
        if header.as_bytes().iter().all(|b| *b == 0) {
            if inside {
                return Err(malformed(at, "an extension header without an entry"));
            }
            self.end()?;
            return Ok(None);
        }
        let stored = number(&header.as_old().cksum);
        let (unsigned, signed) = checksums(header.as_bytes());
        if stored != Some(unsigned) && stored != Some(signed) {
            return Err(malformed(at, "wrong checksum"));
        }
        Ok(Some(header))
    }

    /// The first zero block has been read: another one, and nothing but zeros to the end of the input.
    fn end(&mut self) -> Result<(), TarError> {
        let mut block = [0u8; 4096];
        let mut zeros = 0;
        loop {
            let at = self.offset;
            let n = self.read_up_to(&mut block)?;
            if block[..n].iter().any(|b| *b != 0) {
                return Err(malformed(at, "bytes behind the end of the archive"));
            }
            zeros += n as u64;
            if n < block.len() {
                break;
            }
        }
        if zeros < BLOCK && !self.part {
            return Err(TarError::Truncated { what: "its end marker", offset: self.offset });
        }
        Ok(())
    }

    fn member(&mut self, header: &Header, at: u64, start: u64, extended: Extended) -> Result<Member, TarError> {
        let Extended { pax, long_name, long_link } = extended;
        let pax = pax.unwrap_or_default();
        let field = |bytes: &[u8], what: &str| {
            number(bytes).ok_or_else(|| malformed(at, format!("its {what} is not a number")))
        };
        let old = header.as_old();
        let flag = type_of(header);
        let size = size_of(header, &pax, at)?;
        let mut path = long_name.unwrap_or_else(|| ustar_path(header));
        if let Some(name) = pax.get(b"path") {
            path = name.to_vec();
        }
        let mut link = long_link.unwrap_or_else(|| until_nul(&old.linkname).to_vec());
        if let Some(name) = pax.get(b"linkpath") {
            link = name.to_vec();
        }
        let kind = kind_of(header, path.ends_with(b"/"), link)
            .ok_or_else(|| malformed(at, format!("unknown type {:?}", flag as char)))?;
        if kind != Kind::File && size != 0 {
            return Err(malformed(at, format!("content behind a {}", kind.noun())));
        }
        self.left = size;
        self.padding = padding(size);
        let (map, real) = self.sparse(header, flag, &pax, at, size)?;
        if let Some(name) = pax.get(b"GNU.sparse.name") {
            path = name.to_vec();
        }
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        let id = |field_bytes: &[u8], key: &str| -> Result<u32, TarError> {
            let n = match pax.number(key.as_bytes()).map_err(|p| malformed(at, p))? {
                Some(n) => Some(n),
                None => u64::try_from(field(field_bytes, key)?).ok(),
            };
            n.and_then(|n| u32::try_from(n).ok()).ok_or_else(|| malformed(at, format!("impossible {key}")))
        };
        let mtime = match pax.time(b"mtime").map_err(|p| malformed(at, p))? {
            Some(time) => time,
            None => Time { seconds: field(&old.mtime, "mtime")?, nanos: 0 },
        };
        let (user, group) = owner_names(header, &pax);
        let (xattrs, lost) = pax.attributes();
        let entry = Entry {
            size: if kind == Kind::File { real } else { 0 },
            kind,
            path,
            mode: (field(&old.mode, "mode")? & 0o7777) as u32,
            uid: id(&old.uid, "uid")?,
            gid: id(&old.gid, "gid")?,
            user,
            group,
            mtime,
            xattrs,
        };
        let again = pax.get(crate::sources::files::frame::AGAIN.as_bytes()).is_some();
        Ok(Member { entry, map, again, offset: start, payload: self.left, lost })
    }

    /// The map of a sparse file, read from where its format has it, and the file's size.
    fn sparse(
        &mut self,
        header: &Header,
        flag: u8,
        pax: &Records,
        at: u64,
        size: u64,
    ) -> Result<(Option<SparseMap>, u64), TarError> {
        let bad = |problem: &str| malformed(at, problem);
        let (segments, real) = if flag == b'S' {
            self.old_sparse(header, at)?
        } else if pax.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
            if (pax.get(b"GNU.sparse.major"), pax.get(b"GNU.sparse.minor")) != (Some(b"1"), Some(b"0")) {
                return Err(bad("a sparse format other than 1.0"));
            }
            if flag != b'0' && flag != 0 {
                return Err(bad("a sparse map of something that is no file"));
            }
            let real = pax.number(b"GNU.sparse.realsize").map_err(|p| malformed(at, p))?;
            (self.sparse_text(at)?, real.ok_or_else(|| bad("a sparse file without its size"))?)
        } else {
            return Ok((None, size));
        };
        let mut end = 0u64;
        let mut data = 0u64;
        for s in &segments {
            let after = s.offset.checked_add(s.length).filter(|after| s.offset >= end && *after <= real);
            end = after.ok_or_else(|| bad("sparse map that is out of order or beyond the file's end"))?;
            data += s.length;
        }
        if data != self.left || real > MAX_SIZE {
            return Err(bad("a sparse map that does not fit its data"));
        }
        Ok((Some(SparseMap { segments }), real))
    }

    fn old_sparse(&mut self, header: &Header, at: u64) -> Result<(Vec<Segment>, u64), TarError> {
        let bad = |problem: &str| malformed(at, problem);
        let gnu = header.as_gnu().ok_or_else(|| bad("an old sparse file without GNU's header"))?;
        let real = number(&gnu.realsize).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| bad("impossible size"))?;
        let mut segments = Vec::new();
        let mut take = |fields: &[tar::GnuSparseHeader]| -> Result<(), TarError> {
            for s in fields.iter().filter(|s| s.offset[0] != 0 || s.numbytes[0] != 0) {
                let (Some(offset), Some(length)) = (number(&s.offset), number(&s.numbytes)) else {
                    return Err(bad("a sparse map that is no numbers"));
                };
                let (Ok(offset), Ok(length)) = (u64::try_from(offset), u64::try_from(length)) else {
                    return Err(bad("a sparse map with negative numbers"));
                };
                segments.push(Segment { offset, length });
            }
            Ok(())
        };
        take(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        let mut count = 0;
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.fill(block.as_mut_bytes(), "a sparse map")?;
            take(block.sparse())?;
            more = block.is_extended();
            count += 21;
            if count > MAX_SEGMENTS {
                return Err(bad("a sparse map of too many segments"));
            }
        }
        Ok((segments, real))
    }

    /// The map of format 1.0, which stands before the data: decimal numbers, one a line, padded to a block.
    fn sparse_text(&mut self, at: u64) -> Result<Vec<Segment>, TarError> {
        let mut text = Vec::new();
        let mut next = |archive: &mut Self| -> Result<u64, TarError> {
            let mut n: Option<u64> = None;
            loop {
                if text.is_empty() {
                    if archive.left < BLOCK {
                        return Err(malformed(at, "a sparse map that does not end"));
                    }
                    text = vec![0; BLOCK as usize];
                    archive.fill(&mut text, "a sparse map")?;
                    archive.left -= BLOCK;
                    text.reverse();
                }
                match text.pop() {
                    Some(b'\n') => return n.ok_or_else(|| malformed(at, "a sparse map that is no numbers")),
                    Some(digit @ b'0'..=b'9') => {
                        let value = n.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(u64::from(digit - b'0')));
                        n = Some(value.ok_or_else(|| malformed(at, "a sparse map with impossible numbers"))?);
                    }
                    _ => return Err(malformed(at, "a sparse map that is no numbers")),
                }
            }
        };
        let count = next(self)?;
        if count > MAX_SEGMENTS {
            return Err(malformed(at, "a sparse map of too many segments"));
        }
        let mut segments = Vec::new();
        for _ in 0..count {
            segments.push(Segment { offset: next(self)?, length: next(self)? });
        }
        Ok(segments)
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let mut buffer = [0u8; 16 * 1024];
        while self.left > 0 {
            if self.read(&mut buffer).map_err(TarError::Io)? == 0 {
                break;
            }
        }
        let mut pad = [0u8; BLOCK as usize];
        let n = std::mem::take(&mut self.padding) as usize;
        self.fill(&mut pad[..n], "the padding of an entry")
    }

    fn fill(&mut self, buffer: &mut [u8], what: &'static str) -> Result<(), TarError> {
        let offset = self.offset;
        if self.read_up_to(buffer)? < buffer.len() {
            return Err(TarError::Truncated { what, offset });
        }
        Ok(())
    }

    fn read_up_to(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let mut n = 0;
        while n < buffer.len() {
            match self.inner.read(&mut buffer[n..]) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(TarError::Io(e)),
            }
        }
        self.offset += n as u64;
        Ok(n)
    }
}

/// The current member's payload. An archive that ends before it does is an error.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..want])?;
        if n == 0 {
            let cut = TarError::Truncated { what: "the content of an entry", offset: self.offset };
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut));
        }
        self.left -= n as u64;
        self.offset += n as u64;
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Archive<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX);
        if want == 0 {
            return Ok(&[]);
        }
        let some = self.inner.fill_buf()?;
        if some.is_empty() {
            let cut = TarError::Truncated { what: "the content of an entry", offset: self.offset };
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut));
        }
        Ok(&some[..some.len().min(want)])
    }

    fn consume(&mut self, n: usize) {
        self.inner.consume(n);
        self.left -= n as u64;
        self.offset += n as u64;
    }
}

impl Extended {
    fn any(&self) -> bool {
        self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some()
    }
}

fn malformed(offset: u64, problem: impl Into<String>) -> TarError {
    TarError::Malformed { offset, problem: problem.into() }
}

fn type_of(header: &Header) -> u8 {
    header.as_old().linkflag[0]
}

/// The one size that an entry has.
fn size_of(header: &Header, pax: &Records, at: u64) -> Result<u64, TarError> {
    let declared = number(&header.as_old().size).ok_or_else(|| malformed(at, "its size is not a number"))?;
    let declared = u64::try_from(declared).map_err(|_| malformed(at, "impossible size"))?;
    match pax.number(b"size").map_err(|p| malformed(at, p))? {
        None => Ok(declared),
        // The header cannot hold a larger one, and says nothing then.
        Some(size) if size == declared || (declared == 0 && size > MAX_OCTAL_11 && size <= MAX_SIZE) => Ok(size),
        Some(_) => Err(malformed(at, "two different sizes")),
    }
}

/// `folder`: its name ends in a slash, which is how the oldest tars say so.
fn kind_of(header: &Header, folder: bool, link: Vec<u8>) -> Option<Kind> {
    let device = || {
        let ustar = header.as_ustar().map(|u| (number(&u.dev_major), number(&u.dev_minor)));
        let gnu = header.as_gnu().map(|g| (number(&g.dev_major), number(&g.dev_minor)));
        match ustar.or(gnu) {
            Some((Some(major), Some(minor))) => (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0)),
            _ => (0, 0),
        }
    };
    Some(match type_of(header) {
        b'0' | 0 | b'7' if folder => Kind::Dir,
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::Hardlink(link),
        b'2' => Kind::Symlink(link),
        b'3' => Kind::CharDevice(device().0, device().1),
        b'4' => Kind::BlockDevice(device().0, device().1),
        b'5' => Kind::Dir,
        b'6' => Kind::Fifo,
        _ => return None,
    })
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn ustar_path(header: &Header) -> Vec<u8> {
    let name = until_nul(&header.as_old().name);
    // GNU's header has other fields where POSIX has the prefix.
    match header.as_ustar().map(|u| until_nul(&u.prefix)) {
        Some(prefix) if !prefix.is_empty() => [prefix, b"/", name].concat(),
        _ => name.to_vec(),
    }
}

fn owner_names(header: &Header, pax: &Records) -> (Option<Arc<str>>, Option<Arc<str>>) {
    let fields = match (header.as_ustar(), header.as_gnu()) {
        (Some(u), _) => (until_nul(&u.uname), until_nul(&u.gname)),
        (_, Some(g)) => (until_nul(&g.uname), until_nul(&g.gname)),
        _ => (&b""[..], &b""[..]),
    };
    let name = |key: &[u8], field: &[u8]| {
        let name = std::str::from_utf8(pax.get(key).unwrap_or(field)).ok()?;
        (!name.is_empty()).then(|| name.into())
    };
    (name(b"uname", fields.0), name(b"gname", fields.1))
}

/// Octal digits with blanks and zeros around them, or GNU's base 256; nothing is 0.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement, big-endian; the top bit only says so.
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (i, byte) in field.iter().enumerate() {
            let byte = match (i, negative) {
                (0, false) => first & 0x7f,
                _ => *byte,
            };
            value = value.checked_mul(256)? | i128::from(byte);
        }
        return i64::try_from(value).ok();
    }
    let text = field.iter().position(|b| *b != b' ').map_or(&b""[..], |at| &field[at..]);
    let mut value: i64 = 0;
    let digits = text.iter().take_while(|b| matches!(b, b'0'..=b'7')).count();
    for digit in &text[..digits] {
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    text[digits..].iter().all(|b| matches!(b, 0 | b' ')).then_some(value)
}

/// The sum of a header's bytes with blanks in place of the checksum, unsigned and, as some old writers had it, signed.
fn checksums(block: &[u8]) -> (i64, i64) {
    let byte = |(i, b): (usize, &u8)| if (148..156).contains(&i) { b' ' } else { *b };
    let unsigned = block.iter().enumerate().map(|b| i64::from(byte(b))).sum();
    let signed = block.iter().enumerate().map(|b| i64::from(byte(b) as i8)).sum();
    (unsigned, signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"-1\0"), None);
        assert_eq!(number(b"12x\0"), None);
        assert_eq!(number(b"8\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), Some(8 << 30));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
