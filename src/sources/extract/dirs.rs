//! The folders on the way to the current entry: each opened from its parent by one name, without following anything.
//!
//! A tar lists folders before their content, so the folders of the last entry serve most of the next one's. A folder
//! gets its own metadata when the way leads out of it, because its times and permissions would not survive, or not
//! allow, what is laid out below.

use super::crew::{Crew, Folder, Pending, Shared};
use super::report::{Aspect, Report, Severity};
use super::{ExtractError, Options};
use crate::sources::files::entry::{Entry, Time};
use crate::sources::files::hash64;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Deeper levels close their parents and come back through `..`.
const OPEN_LEVELS: usize = 64;

/// Device and inode number.
pub(super) type Id = (u64, u64);

/// Why there is no such folder; not an end of the extraction.
pub(super) enum NoDir {
    Refused(&'static str),
    Missing(String),
    Failed(ExtractError),
}

impl From<ExtractError> for NoDir {
    fn from(e: ExtractError) -> Self {
        NoDir::Failed(e)
    }
}

/// A folder on the way.
struct Level {
    name: Vec<u8>,
    dir: Option<Arc<Folder>>,
    id: Id,
    /// Of its path.
    key: u64,
    pending: Pending,
}

/// The way from the destination to the current entry.
pub(super) struct Dirs {
    root: Arc<Folder>,
    shared: Arc<Shared>,
    path: PathBuf,
    levels: Vec<Level>,
    /// Folders that this run has made, and the key of the path of each.
    made: HashMap<Id, u64>,
}

impl Dirs {
    /// Opens the destination, which must exist. Symlinks on the way to it are the caller's own and are followed.
    pub fn open(destination: &Path, shared: &Arc<Shared>) -> Result<Self, ExtractError> {
        let root = rustix::fs::open(destination, flags(), Mode::empty()).map_err(|e| ExtractError::File {
            action: "open",
            path: destination.into(),
            source: e.into(),
        })?;
        let (root, shared) = (Folder::new(root, shared), shared.clone());
        Ok(Dirs { root, shared, path: destination.into(), levels: Vec::new(), made: HashMap::new() })
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The destination joined with a path of the archive, for messages.
    pub fn display(&self, path: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(path))
    }

    /// The innermost folder of the way.
    pub fn current(&self) -> BorrowedFd<'_> {
        self.folder().as_fd()
    }

    /// The same, to be held on to.
    pub fn folder(&self) -> &Arc<Folder> {
        match self.levels.last() {
            Some(Level { dir: Some(dir), .. }) => dir,
            _ => &self.root,
        }
    }

    /// Goes to the folder with these components, making those that are not there.
    pub fn enter(&mut self, way: &[&[u8]], crew: &mut Crew, report: &Report) -> Result<(), NoDir> {
        let common = self.levels.iter().zip(way).take_while(|(level, name)| level.name == **name).count();
        self.leave(common, crew, report)?;
        for name in &way[common..] {
            self.descend(name, &way.join(&b'/'), crew)?;
        }
        Ok(())
    }

    /// One name further down. A folder that the archive has not mentioned yet is private until it does.
    fn descend(&mut self, name: &[u8], path: &[u8], crew: &mut Crew) -> Result<(), NoDir> {
        let os_name = OsStr::from_bytes(name);
        let mut made = false;
        let dir = loop {
            match open_below(self.current(), os_name, flags()) {
                Ok(dir) => break dir,
                Err(Errno::NOENT) if !made => {
                    match rustix::fs::mkdirat(self.current(), os_name, Mode::RWXU) {
                        Ok(()) => made = true,
                        Err(Errno::EXIST) => {
                            return Err(NoDir::Refused(
                                "a symlink or file stands where a folder of its path should be",
                            ));
                        }
                        Err(e) => return Err(self.failure("create", path, e)),
                    };
                }
                Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                    return Err(NoDir::Refused("a symlink or file stands where a folder of its path should be"));
                }
                Err(e) => return Err(self.failure("open", path, e)),
            }
        };
        let stat = rustix::fs::fstat(&dir).map_err(|e| self.failure("read", path, e))?;
        let id = (stat.st_dev, stat.st_ino);
        let above = self.levels.last().map_or(0, |level| level.key);
        let key = hash64(&[&above.to_le_bytes(), name].concat());
        if self.made.get(&id).is_some_and(|other| *other != key) {
            return Err(NoDir::Refused("this file system takes the name for that of another folder of the archive"));
        }
        let pending = if !made && self.made.contains_key(&id) {
            // It may not have its time yet.
            crew.settle();
            let stat = rustix::fs::fstat(&dir).map_err(|e| self.failure("read", path, e))?;
            Pending::Time(Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 })
        } else {
            Pending::Nothing
        };
        if made {
            self.made.insert(id, key);
        }
        let dir = Some(Folder::new(dir, &self.shared));
        self.levels.push(Level { name: name.to_vec(), dir, id, key, pending });
        if self.levels.len() > OPEN_LEVELS {
            let closing = self.levels.len() - OPEN_LEVELS;
            // It is opened anew later, and gets its metadata then: nothing may be on its way into it.
            crew.settle();
            self.levels[closing - 1].dir = None;
        }
        Ok(())
    }

    /// Makes a folder in the current one, or takes the one that is there, and enters it.
    pub fn make(
        &mut self,
        name: &[u8],
        entry: Entry,
        options: &Options,
        crew: &mut Crew,
        report: &mut Report,
    ) -> Result<(), NoDir> {
        let os_name = OsStr::from_bytes(name);
        let existed = match rustix::fs::mkdirat(self.current(), os_name, Mode::RWXU) {
            Ok(()) => false,
            Err(Errno::EXIST) => true,
            Err(e) => return Err(self.failure("create", &entry.path, e)),
        };
        let path = entry.path.clone();
        self.descend(name, &path, crew)?;
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        if !existed {
            self.made.insert(level.id, level.key);
        }
        if self.made.contains_key(&level.id) || options.overwrite {
            level.pending = Pending::Entry(Box::new(entry));
        } else {
            report.add(
                Severity::Metadata,
                Aspect::Entry,
                &path,
                "the folder was there already: its owner, mode and times are kept",
            );
        }
        Ok(())
    }

    /// Goes back up to a depth; each folder that is left gets its metadata, once the last file in it is there.
    pub fn leave(&mut self, depth: usize, crew: &mut Crew, report: &Report) -> Result<(), ExtractError> {
        while self.levels.len() > depth {
            let Some(level) = self.levels.pop() else { break };
            let Some(dir) = level.dir else { continue };
            self.reopen(&dir)?;
            dir.leave(crew.turn(report.differences.len()), level.pending);
        }
        Ok(())
    }

    /// Opens the innermost folder anew from its child, when it was closed to save descriptors.
    fn reopen(&mut self, child: &Folder) -> Result<(), ExtractError> {
        let Some(parent) = self.levels.last_mut().filter(|l| l.dir.is_none()) else { return Ok(()) };
        let moved = || ExtractError::Moved { path: self.path.join(OsStr::from_bytes(&parent.name)) };
        let dir = rustix::fs::openat(child, c"..", flags(), Mode::empty()).map_err(|_| moved())?;
        let stat = rustix::fs::fstat(&dir).map_err(|_| moved())?;
        if (stat.st_dev, stat.st_ino) != parent.id {
            return Err(moved());
        }
        parent.dir = Some(Folder::new(dir, &self.shared));
        Ok(())
    }

    /// Opens the folder that holds a hard link's target, from the destination down.
    pub fn open_way(&self, way: &[&[u8]]) -> Result<OwnedFd, Errno> {
        let mut dir = rustix::fs::openat(&*self.root, c".", flags(), Mode::empty())?;
        for name in way {
            dir = open_below(dir.as_fd(), OsStr::from_bytes(name), flags())?;
        }
        Ok(dir)
    }

    fn failure(&self, action: &'static str, path: &[u8], e: Errno) -> NoDir {
        match e {
            Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ => {
                NoDir::Missing(format!("this file system does not take the name: {}", std::io::Error::from(e)))
            }
            Errno::ACCESS | Errno::PERM => NoDir::Missing(format!("{action} its folder: {}", std::io::Error::from(e))),
            e => NoDir::Failed(self.file_error(action, path, e)),
        }
    }

    fn file_error(&self, action: &'static str, path: &[u8], e: Errno) -> ExtractError {
        ExtractError::File { action, path: self.display(path), source: e.into() }
    }
}

/// How folders are opened.
fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Opens one name below a folder. The kernel refuses to follow anything; where it has no `openat2`, or a sandbox
/// forbids it, `O_NOFOLLOW` does the same for a single name.
pub(in crate::sources) fn open_below(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_new(dir, name, flags, Mode::empty())
}

/// The same with the mode of what is created.
pub(super) fn open_new(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    debug_assert!(!name.as_bytes().contains(&b'/') && !matches!(name.as_bytes(), b".." | b""));
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(dir, name, flags, mode, resolve) {
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(dir, name, flags, mode),
        other => other,
    }
}

/// Whether something stands under a name, and what; symlinks are not followed.
pub(in crate::sources) fn stat_below(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<rustix::fs::Stat>, Errno> {
    match rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}
