//! Reading a file's content: opened without following anything, checked to be the file that was seen, its holes found.

use super::entry::Xattrs;
use super::frame::{Segment, SparseMap};
use super::walk::Identity;
use super::xattr;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Smaller files are never sparse in the tar: a map would take more than the holes.
const MIN_SPARSE: u64 = 64 * 1024;
/// More segments are joined across their smallest holes.
const MAX_SEGMENTS: usize = 4096;
/// The kernel takes no longer path in one call.
const PATH_MAX: usize = 4096;

/// A regular file that is open for reading, and what it was when it was opened.
pub struct Opened {
    pub file: File,
    pub stat: Stat,
    pub identity: Identity,
}

/// Opens the regular file at an absolute path without following a symlink anywhere. `None` when there is none any more.
pub fn open(path: &Path) -> io::Result<Option<Opened>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // Without touching access times where the kernel lets us: it does for owners and root only.
    let fd = match open_long(path, flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open_long(path, flags),
        other => other,
    };
    let fd = match fd {
        Ok(fd) => fd,
        // ELOOP: a symlink stands where a folder or the file was. ENXIO: a socket does.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let stat = rustix::fs::fstat(&fd)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Ok(None);
    }
    Ok(Some(Opened { file: fd.into(), stat, identity: Identity::of(&stat) }))
}

/// The extended attributes of what stands at an absolute path; no symlink is followed, the last component neither. None
/// of what is not there any more.
pub fn attributes(path: &Path) -> io::Result<Xattrs> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let name = path.file_name().and_then(|name| CString::new(name.as_bytes()).ok());
    let (dir, flags) = match (path.parent(), &name) {
        (Some(parent), Some(_)) => (parent, flags),
        _ => (path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC),
    };
    let dir = match open_long(dir, flags) {
        Ok(dir) => dir,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Xattrs::new()),
        Err(e) => return Err(e.into()),
    };
    let mut found = xattr::read(dir.as_fd(), name.as_deref())?;
    found.extend(xattr::flags(dir.as_fd(), name.as_deref())?);
    Ok(found)
}

/// Opens a path of any length, in steps when it is too long for one call.
fn open_long(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut rest = path.as_os_str().as_bytes();
    let mut dir: Option<OwnedFd> = None;
    while rest.len() >= PATH_MAX {
        let cut =
            rest[..PATH_MAX - 1].iter().rposition(|b| *b == b'/').filter(|at| *at > 0).ok_or(Errno::NAMETOOLONG)?;
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        dir = Some(open_step(dir.as_ref(), &rest[..cut], step)?);
        rest = &rest[cut + 1..];
    }
    open_step(dir.as_ref(), rest, flags)
}

fn open_step(dir: Option<&OwnedFd>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let dir = dir.map_or(CWD, |d| d.as_fd());
    let path = OsStr::from_bytes(path);
    match rustix::fs::openat2(dir, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        // Kernels and sandboxes without openat2. The inode is compared in any case.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(dir, path, flags, Mode::empty()),
        other => other,
    }
}

/// Where the data of a file lies, when that is worth saying. `None`: all of it is data.
pub fn sparse_map(opened: &Opened) -> Option<SparseMap> {
    let Identity { size, blocks, .. } = opened.identity;
    if size < MIN_SPARSE || blocks.saturating_mul(512) >= size {
        return None;
    }
    let mut segments = Vec::new();
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(&opened.file, SeekFrom::Data(at)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        if data == size {
            break;
        }
        let hole = rustix::fs::seek(&opened.file, SeekFrom::Hole(data)).ok()?.min(size);
        if hole <= data {
            return None;
        }
        segments.push(Segment { offset: data, length: hole - data });
        if segments.len() > 2 * MAX_SEGMENTS {
            join(&mut segments);
        }
        at = hole;
    }
    join(&mut segments);
    if segments.iter().map(|s| s.length).sum::<u64>() >= size {
        return None;
    }
    // As GNU tar does: the map always reaches the end of the file.
    if segments.last().is_none_or(|s| s.offset + s.length < size) {
        segments.push(Segment { offset: size, length: 0 });
    }
    Some(SparseMap { segments })
}

/// Joins segments across their smallest holes until there are few enough.
fn join(segments: &mut Vec<Segment>) {
    if segments.len() <= MAX_SEGMENTS {
        return;
    }
    let hole = |a: &Segment, b: &Segment| b.offset - (a.offset + a.length);
    let mut holes: Vec<u64> = segments.windows(2).map(|w| hole(&w[0], &w[1])).collect();
    let (_, limit, _) = holes.select_nth_unstable(segments.len() - MAX_SEGMENTS);
    let limit = *limit;
    let mut joined: Vec<Segment> = Vec::with_capacity(MAX_SEGMENTS);
    for segment in segments.iter() {
        match joined.last_mut() {
            Some(last) if hole(last, segment) <= limit => last.length = segment.offset + segment.length - last.offset,
            _ => joined.push(*segment),
        }
    }
    *segments = joined;
}

/// Reads exactly `buffer.len()` bytes of the payload (the segments' data, one after the other) from `at` on. What is
/// not there any more is zeros; returns whether all was there.
pub fn read_payload(file: &File, segments: &[Segment], at: u64, buffer: &mut [u8]) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut whole = true;
    let mut skipped = 0;
    let mut filled = 0;
    for segment in segments {
        let from = (at + filled as u64).saturating_sub(skipped);
        if from < segment.length {
            let want = ((segment.length - from) as usize).min(buffer.len() - filled);
            let mut done = 0;
            while done < want {
                let offset = segment.offset + from + done as u64;
                match file.read_at(&mut buffer[filled + done..filled + want], offset) {
                    Ok(0) => {
                        buffer[filled + done..filled + want].fill(0);
                        whole = false;
                        done = want;
                    }
                    Ok(n) => done += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            filled += want;
        }
        skipped += segment.length;
        if filled == buffer.len() {
            break;
        }
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_holes_are_joined_across_the_smallest() {
        let mut segments: Vec<Segment> =
            (0..10_000u64).map(|i| Segment { offset: i * 100_000, length: 100_000 - (i % 7 + 1) * 4096 }).collect();
        let all = segments.clone();
        join(&mut segments);
        assert!(segments.len() <= MAX_SEGMENTS && segments.len() > 1000, "{}", segments.len());
        for s in &all {
            assert!(segments.iter().any(|j| j.offset <= s.offset && s.offset + s.length <= j.offset + j.length));
        }
    }
}
