//! Small tars: a file on its way into a container, and one on its way out.

use crate::sources::SourceError;
use std::io::{self, Cursor, Read};

const BLOCK: u64 = 512;

/// One entry.
pub(super) struct Entry {
    header: tar::Header,
    path: String,
    data: Box<dyn Read + Send>,
}

impl Entry {
    pub fn folder(path: &str, mode: u32, owner: (u32, u32)) -> Self {
        Self::new(path, tar::EntryType::Directory, mode, owner, 0, Box::new(io::empty()))
    }

    pub fn file(path: &str, mode: u32, owner: (u32, u32), length: u64, data: impl Read + Send + 'static) -> Self {
        Self::new(path, tar::EntryType::Regular, mode, owner, length, Box::new(data))
    }

    fn new(
        path: &str,
        kind: tar::EntryType,
        mode: u32,
        owner: (u32, u32),
        length: u64,
        data: Box<dyn Read + Send>,
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(u64::from(owner.0));
        header.set_gid(u64::from(owner.1));
        header.set_size(length);
        Self { header, path: path.to_owned(), data }
    }
}

/// The entries as a tar. Data shorter than was said is made up with an error, longer data is cut.
pub(super) fn of(entries: Vec<Entry>) -> Result<Box<dyn Read + Send>, SourceError> {
    let mut all: Box<dyn Read + Send> = Box::new(io::empty());
    for Entry { mut header, path, data } in entries {
        let bad = |e: io::Error| SourceError::problem(format!("{path:?} does not go into a tar: {e}"));
        header.set_path(&path).map_err(bad)?;
        header.set_cksum();
        let length = header.entry_size().map_err(bad)?;
        let padding = (BLOCK - length % BLOCK) % BLOCK;
        let head = Cursor::new(header.as_bytes().to_vec());
        all = Box::new(all.chain(head).chain(Exactly { data, left: length }).chain(io::repeat(0).take(padding)));
    }
    Ok(Box::new(all.chain(io::repeat(0).take(2 * BLOCK))))
}

/// So many bytes, and an error where there are fewer.
struct Exactly {
    data: Box<dyn Read + Send>,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(0);
        }
        let n = self.data.read(&mut buffer[..room])?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// The bytes of a tar's one file.
pub(super) fn only_file(mut tar: impl Read) -> Result<impl Read, SourceError> {
    let mut header = tar::Header::new_old();
    let bad = |e: io::Error| SourceError::problem(format!("a file cannot be taken out of a container: {e}"));
    tar.read_exact(header.as_mut_bytes()).map_err(bad)?;
    if !header.entry_type().is_file() {
        return Err(SourceError::problem("what should be a file in a container is none"));
    }
    let length = header.entry_size().map_err(bad)?;
    Ok(tar.take(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        for length in [0usize, 1, 511, 512, 513, 5000] {
            let data: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let file = Entry::file("a/b", 0o640, (7, 8), length as u64, Cursor::new(data.clone()));
            let mut bytes = Vec::new();
            of(vec![Entry::folder("a", 0o700, (7, 8)), file]).unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() % 512, 0);
            let mut archive = tar::Archive::new(&bytes[..]);
            let mut entries = archive.entries().unwrap();
            assert!(entries.next().unwrap().unwrap().header().entry_type().is_dir());
            let mut entry = entries.next().unwrap().unwrap();
            assert_eq!((entry.header().uid().unwrap(), entry.header().mode().unwrap()), (7, 0o640));
            let mut read = Vec::new();
            entry.read_to_end(&mut read).unwrap();
            assert!(read == data && entries.next().is_none());
            let mut again = Vec::new();
            only_file(&bytes[512..]).unwrap().read_to_end(&mut again).unwrap();
            assert_eq!(again, data);
        }
        let short = Entry::file("a", 0o600, (0, 0), 5, Cursor::new(b"1234".to_vec()));
        assert!(of(vec![short]).unwrap().read_to_end(&mut Vec::new()).is_err());
        assert!(only_file(&tar::Header::new_old().as_bytes()[..100]).is_err());
    }
}
