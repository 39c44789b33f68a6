//! Whether a tar of the engine is whole.
//!
//! The engine cannot say "failed" once it has begun to send. A file that it cannot read, or that shrinks meanwhile, goes
//! into its log only: the entry stays short, all further ones are left out, and the stream ends as if all were well,
//! but without the end-of-archive mark. So the entries are followed by their sizes, and the mark is demanded. Zeros at
//! the end prove nothing: they may be a file's own.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// The most that an extended header may hold.
const PAX_BYTES: u64 = 1 << 20;

/// Passes a tar on, and ends with an error unless the tar ends with its mark.
pub(super) struct TarEnd<R> {
    inner: R,
    what: String,
    scan: Scan,
}

impl<R> TarEnd<R> {
    pub(super) fn new(inner: R, what: impl Into<String>) -> Self {
        Self { inner, what: what.into(), scan: Scan::default() }
    }
}

impl<R: Read> Read for TarEnd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.scan.feed(&buffer[..n]).map_err(|why| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("what the engine gave of {} is no tar: {why}", self.what),
            )
        })?;
        if n == 0 && !buffer.is_empty() && !self.scan.is_whole() {
            let why = format!("the engine did not give all of {}", self.what);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        Ok(n)
    }
}

/// Where in the tar the next byte lies.
#[derive(Default)]
struct Scan {
    /// A block that is being collected.
    block: Vec<u8>,
    /// Content, with its padding, that is being passed over.
    skip: u64,
    /// An extended header's records that are being collected, and their bytes.
    records: Option<(Vec<u8>, u64)>,
    /// The size that an extended header gives to the entry after it.
    size: Option<u64>,
    /// Blocks of zeros in a row, where a header could stand.
    zeros: u8,
}

impl Scan {
    fn is_whole(&self) -> bool {
        self.zeros >= 2 && self.skip == 0 && self.block.is_empty() && self.records.is_none()
    }

    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            if let Some((records, length)) = &mut self.records {
                let missing = usize::try_from(*length).unwrap_or(usize::MAX).saturating_sub(records.len());
                let (now, rest) = bytes.split_at(missing.min(bytes.len()));
                records.extend_from_slice(now);
                bytes = rest;
                if records.len() as u64 == *length {
                    self.size = pax_size(records)?.or(self.size);
                    self.skip = padding(*length);
                    self.records = None;
                }
            } else if self.skip > 0 {
                let n = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= n as u64;
                bytes = &bytes[n..];
            } else {
                let (now, rest) = bytes.split_at((BLOCK - self.block.len()).min(bytes.len()));
                self.block.extend_from_slice(now);
                bytes = rest;
                if self.block.len() == BLOCK {
                    let block = std::mem::take(&mut self.block);
                    self.header(&block)?;
                }
            }
        }
        Ok(())
    }

    fn header(&mut self, block: &[u8]) -> Result<(), &'static str> {
        if block.iter().all(|b| *b == 0) {
            self.zeros = self.zeros.saturating_add(1);
            return Ok(());
        }
        if self.zeros > 0 {
            return Err("an entry stands behind the end");
        }
        let own = number(&block[124..136]).ok_or("a size that is no number")?;
        match block[156] {
            b'x' if own > PAX_BYTES => return Err("an extended header that is too long"),
            b'x' if own > 0 => self.records = Some((Vec::new(), own)),
            b'x' => {}
            // Other extended headers have content of their own, and the size still waits for the entry.
            b'g' | b'L' | b'K' => self.skip = padded(own).ok_or("a size that is too large")?,
            // Links, devices and folders have none, whatever the field says.
            b'1'..=b'6' => self.size = None,
            _ => self.skip = padded(self.size.take().unwrap_or(own)).ok_or("a size that is too large")?,
        }
        Ok(())
    }
}

fn padding(length: u64) -> u64 {
    length.next_multiple_of(BLOCK as u64) - length
}

fn padded(length: u64) -> Option<u64> {
    length.checked_next_multiple_of(BLOCK as u64)
}

/// A size field: octal digits, or (GNU) a binary number behind a byte with the top bit set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let bytes = std::iter::once(field[0] & 0x7f).chain(field[1..].iter().copied());
        return bytes.skip_while(|b| *b == 0).try_fold(0u64, |n, b| n.checked_mul(256)?.checked_add(b.into()));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// The `size` among the records of an extended header: `<length> <key>=<value>\n`, where the length counts all.
fn pax_size(mut records: &[u8]) -> Result<Option<u64>, &'static str> {
    const BAD: &str = "an extended header that cannot be read";
    let mut size = None;
    while !records.is_empty() {
        let space = records.iter().position(|b| *b == b' ').ok_or(BAD)?;
        let length: usize = std::str::from_utf8(&records[..space]).ok().and_then(|t| t.parse().ok()).ok_or(BAD)?;
        let record = records.get(space + 1..length).ok_or(BAD)?;
        if let Some(value) = record.strip_prefix(b"size=") {
            let value = value.strip_suffix(b"\n").ok_or(BAD)?;
            size = Some(std::str::from_utf8(value).ok().and_then(|t| t.parse().ok()).ok_or(BAD)?);
        }
        records = &records[length..];
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, size) in [("a", 0usize), ("b", 512), (&"long/".repeat(60), 5000)] {
            let mut header = tar::Header::new_ustar();
            header.set_size(size as u64);
            builder.append_pax_extensions([("comment", name.as_bytes())]).unwrap();
            builder.append_data(&mut header, name.get(..200).unwrap_or(name), &vec![0; size][..]).unwrap();
        }
        // As Go writes a file above 8 GiB, only smaller: the size stands in the extended header.
        builder.append_pax_extensions([("size", &b"1000"[..])]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_path("big").unwrap();
        header.set_cksum();
        builder.get_mut().extend_from_slice(header.as_bytes());
        builder.get_mut().extend_from_slice(&[0; 1024]);
        builder.into_inner().unwrap()
    }

    fn read(bytes: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let mut reader = TarEnd::new(bytes, "x");
        let (mut all, mut buffer) = (Vec::new(), vec![0; step]);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(all),
                n => all.extend_from_slice(&buffer[..n]),
            }
        }
    }

    #[test]
    fn a_whole_tar_passes_and_one_cut_anywhere_does_not() {
        let whole = archive();
        for step in [1, 511, 512, 100_000] {
            assert!(read(&whole, step).unwrap() == whole);
        }
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut], 100_000).is_err(), "cut at {cut} of {}", whole.len());
        }
        let mut more = whole.clone();
        more.extend_from_slice(b"{\"error\":\"something\"}");
        assert!(read(&more, 4096).is_err(), "the engine's own words behind the end are told");
        let mut longer = whole;
        longer.extend_from_slice(&[0; 8192]);
        assert!(read(&longer, 4096).is_ok(), "tar fills up with zeros");
    }

    #[test]
    fn sweep_tars() {
        crate::base::fuzz::Fuzz::of("tar").words(&["size=", "12 size=999\n", "\0", "ustar"]).run(|bytes| {
            for step in [7, 8192] {
                if let Ok(passed) = read(bytes, step) {
                    assert!(bytes == passed);
                }
            }
        });
    }
}
