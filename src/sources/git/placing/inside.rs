//! Files of the tree by their names, as git gives them: bytes, below a folder, never through a link.

use super::intent::{Attributes, Beside};
use crate::place::account::is_root;
use crate::sources::SourceError;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a name may be long.
const NAME_BYTES: usize = 255;

/// A work tree, opened once.
pub(super) struct Inside {
    root: OwnedFd,
    path: PathBuf,
}

impl Inside {
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(root) => Ok(Self { root, path: path.to_owned() }),
            Err(e) => Err(SourceError::File { action: "open", path: path.to_owned(), source: e.into() }),
        }
    }

    fn failed(&self, action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> SourceError {
        let path = self.path.join(OsStr::from_bytes(path));
        move |e| SourceError::File { action, path, source: e.into() }
    }

    fn reach(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    fn parent(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.reach(split(path).0, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// What is at a path itself; nothing when it, or a folder on the way, is not there.
    pub(super) fn look(&self, path: &[u8]) -> Result<Option<Attributes>, SourceError> {
        let found = self.parent(path).and_then(|dir| rustix::fs::statat(dir, split(path).1, AtFlags::SYMLINK_NOFOLLOW));
        match found {
            Ok(stat) => {
                Ok(Some(Attributes { path: path.to_vec(), mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid }))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(self.failed("look at", path)(e)),
        }
    }

    /// Gives what is in the way its name meanwhile. Both are in one folder.
    pub(super) fn put_beside(&self, beside: &Beside) -> Result<(), SourceError> {
        match self.look(&beside.beside)?.is_some() || self.look(&beside.path)?.is_none() {
            true => Ok(()),
            false => self.rename(&beside.path, &beside.beside),
        }
    }

    /// And its own again. `false`: something else is there by now.
    pub(super) fn put_back(&self, beside: &Beside, known: &[Attributes]) -> Result<bool, SourceError> {
        if self.look(&beside.beside)?.is_none() {
            return Ok(true);
        }
        if self.look(&beside.path)?.is_some() {
            return Ok(false);
        }
        self.rename(&beside.beside, &beside.path)?;
        self.restore(known, true)?;
        Ok(true)
    }

    fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), SourceError> {
        let renamed = self.parent(from).and_then(|dir| {
            let (from, to) = (split(from).1, split(to).1);
            match rustix::fs::renameat_with(&dir, from, &dir, to, RenameFlags::NOREPLACE) {
                // Not every file system knows how; nobody else makes that name.
                Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(&dir, from, &dir, to),
                other => other,
            }
        });
        renamed.map_err(self.failed("rename", from))
    }

    /// Gives files that git has written anew what it does not record. With `all` their execute bits too, which are
    /// otherwise git's to say.
    pub(super) fn restore(&self, known: &[Attributes], all: bool) -> Result<(), SourceError> {
        for wanted in known {
            let Some(now) = self.look(&wanted.path)? else { continue };
            let (is, was) = (kind(now.mode), kind(wanted.mode));
            if is != was || (now.mode, now.uid, now.gid) == (wanted.mode, wanted.uid, wanted.gid) {
                continue;
            }
            if is == FileType::RegularFile || is == FileType::Directory {
                self.apply(wanted, all)?;
            } else if is_root() && is == FileType::Symlink {
                let dir = self.parent(&wanted.path).map_err(self.failed("open the folder of", &wanted.path))?;
                let owner = (Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)));
                rustix::fs::chownat(dir, split(&wanted.path).1, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(self.failed("give to its owner", &wanted.path))?;
            }
        }
        Ok(())
    }

    fn apply(&self, wanted: &Attributes, all: bool) -> Result<(), SourceError> {
        let opened = self.reach(&wanted.path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK);
        let file = opened.map_err(self.failed("open", &wanted.path))?;
        let stat = rustix::fs::fstat(&file).map_err(self.failed("look at", &wanted.path))?;
        let is_file = kind(stat.st_mode) == FileType::RegularFile;
        // A file with a second name is not one that git has just written.
        if is_file && stat.st_nlink != 1 {
            return Ok(());
        }
        if is_root() && (stat.st_uid, stat.st_gid) != (wanted.uid, wanted.gid) {
            let owner = (Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)));
            rustix::fs::fchown(file.as_fd(), owner.0, owner.1)
                .map_err(self.failed("give to its owner", &wanted.path))?;
        }
        let runs = |mode: u32| mode & 0o100 != 0;
        if all || !is_file || runs(stat.st_mode) == runs(wanted.mode) {
            // The bits that lend rights were given to other content.
            let mode = Mode::from_raw_mode(wanted.mode & if is_file { 0o777 } else { 0o7777 });
            rustix::fs::fchmod(file.as_fd(), mode).map_err(self.failed("set the permissions of", &wanted.path))?;
        }
        Ok(())
    }

    /// Folders on the way to a path that are not there any more.
    pub(super) fn make_parents(&self, path: &[u8], known: &[Attributes]) -> Result<(), SourceError> {
        for parent in parents(path) {
            if self.look(parent)?.is_some() {
                continue;
            }
            let made = self.parent(parent).and_then(|dir| rustix::fs::mkdirat(dir, split(parent).1, Mode::RWXU));
            made.map_err(self.failed("create folder", parent))?;
            let wanted = known.iter().find(|a| a.path == parent);
            self.restore(wanted.map_or(&[], std::slice::from_ref), true)?;
        }
        Ok(())
    }
}

/// The folders on the way, outermost first, without the path itself.
pub(super) fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at])
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

pub(super) fn kind(mode: u32) -> FileType {
    FileType::from_raw_mode(mode)
}

/// The name of what is kept beside `path`.
pub(super) fn beside(path: &[u8], suffix: &str) -> Beside {
    let (dir, name) = split(path);
    let mut kept = name.to_vec();
    kept.truncate(NAME_BYTES - suffix.len() - 1);
    kept.push(b'.');
    kept.extend_from_slice(suffix.as_bytes());
    let mut whole = dir.to_vec();
    if !dir.is_empty() {
        whole.push(b'/');
    }
    whole.extend_from_slice(&kept);
    Beside { path: path.to_vec(), beside: whole }
}
