//! A further name for a file where the file system has no hard links, or no more of them: a copy, and said to be one.
//!
//! Invariant: the copies of a run hold no more data than its archive brought, or a few links to a large file would fill
//! a disk that the archive itself leaves half empty.

use super::Report;
use super::dirs::{Id, open_below};
use super::metadata::{self, Wanted};
use super::report::{Aspect, Severity};
use crate::base::cancel::Cancel;
use crate::sources::files::entry::{Entry, Kind, Time, display};
use crate::sources::files::read_attributes;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{FileType, OFlags, SeekFrom};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// The file that has the other name.
pub(super) struct Original<'a> {
    pub dir: BorrowedFd<'a>,
    pub name: &'a [u8],
    /// As the archive says it.
    pub target: &'a [u8],
    /// What it was when it was looked at.
    pub id: Id,
}

/// The same, open, with its metadata as it was laid out under `path`.
pub(super) struct Opened {
    file: File,
    entry: Entry,
}

impl Original<'_> {
    /// `None`: it is no file, or another one by now.
    pub fn open(&self, path: &[u8], wanted: Wanted) -> Result<Option<Opened>, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open_below(self.dir, OsStr::from_bytes(self.name), flags)?;
        let stat = rustix::fs::fstat(&file)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() || (stat.st_dev, stat.st_ino) != self.id {
            return Ok(None);
        }
        let mut xattrs = read_attributes(file.as_fd(), None)?;
        xattrs.retain(|(name, _)| metadata::refuse_attribute(name, wanted).is_none());
        let entry = Entry {
            path: path.to_vec(),
            kind: Kind::File,
            size: stat.st_size as u64,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            user: None,
            group: None,
            mtime: Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
            xattrs,
        };
        Ok(Some(Opened { file: file.into(), entry }))
    }

    /// What is said of the copy.
    pub fn tell(&self, path: &[u8], why: Errno, report: &mut Report) {
        let what = format!("a copy of {}, not a hard link: {}", display(self.target), io::Error::from(why));
        report.add(Severity::Metadata, Aspect::HardLink, path, what);
    }
}

impl Opened {
    /// Writes the content to a new file, holes as holes; `None` when there is more data than `most` bytes.
    pub fn copy_to(
        &self,
        to: &File,
        buffer: &mut [u8],
        most: u64,
        cancel: &Cancel,
    ) -> Result<Option<u64>, super::ExtractError> {
        let failed = |source: io::Error| super::ExtractError::File {
            action: "copy, as there are no hard links,",
            path: OsStr::from_bytes(&self.entry.path).into(),
            source,
        };
        rustix::fs::ftruncate(to, self.entry.size).map_err(|e| failed(e.into()))?;
        let mut copied = 0;
        let mut at = 0;
        while at < self.entry.size {
            let Some(data) = self.data_from(at).map_err(|e| failed(e.into()))? else { break };
            at = data.start;
            while at < data.end {
                cancel.check()?;
                let want = (buffer.len() as u64).min(data.end - at) as usize;
                let n = match self.file.read_at(&mut buffer[..want], at) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    read => read.map_err(failed)?,
                };
                if n == 0 {
                    return Err(failed(io::ErrorKind::UnexpectedEof.into()));
                }
                copied += n as u64;
                if copied > most {
                    return Ok(None);
                }
                to.write_all_at(&buffer[..n], at).map_err(failed)?;
                at += n as u64;
            }
        }
        Ok(Some(copied))
    }

    /// Where the next data lies, from `at` on; `None`: holes alone are left.
    fn data_from(&self, at: u64) -> Result<Option<Range<u64>>, Errno> {
        let size = self.entry.size;
        let begin = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => return Ok(None),
            // This file system knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(at..size)),
            Err(e) => return Err(e),
        };
        match rustix::fs::seek(&self.file, SeekFrom::Hole(begin)) {
            Ok(end) if end > begin => Ok(Some(begin..end.min(size))),
            Ok(_) | Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(begin..size)),
            Err(e) => Err(e),
        }
    }

    /// Its metadata, for the copy.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }
}
