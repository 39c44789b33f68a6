//! The walk: every entry of a plan once, folders before their content, names sorted by bytes within each folder.
//!
//! Invariants: nothing is followed (`lstat` relative to folders opened with `O_NOFOLLOW`); a folder's metadata comes
//! from the descriptor through which it is listed; memory holds one list of names per level of depth, never the tree;
//! at most [`OPEN_LEVELS`] folders are open.
//!
//! Extended attributes are left to whoever writes an entry down: their change shows in the entry's change time, so of
//! what has not changed they need not be asked for.

use super::entry::{Entry, Kind, Time};
use super::notes::{Note, Notes};
use super::owners::Owners;
use super::plan::{Node, Plan, Scope, path_of, real_path};
use crate::base::cancel::Cancel;
use crate::sources::SourceError;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Deeper levels close their parents and come back through `..`.
const OPEN_LEVELS: usize = 64;

/// What tells whether a file is still the one that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub dev: u64,
    pub ino: u64,
    pub ctime: Time,
    pub mtime: Time,
    pub size: u64,
    /// 512-byte blocks on disk.
    pub blocks: u64,
}

impl Identity {
    pub fn of(stat: &Stat) -> Self {
        Identity {
            dev: stat.st_dev,
            ino: stat.st_ino,
            ctime: Time { seconds: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 },
            mtime: Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
        }
    }

    /// Whether it is the same file with the same content and metadata; blocks on disk may be assigned late.
    pub fn same(&self, other: &Identity) -> bool {
        Identity { blocks: 0, ..*self } == Identity { blocks: 0, ..*other }
    }
}

/// An entry, without its extended attributes, and how it was found.
#[derive(Debug, Clone)]
pub struct Found {
    pub entry: Entry,
    pub identity: Identity,
}

/// Files with several names, from the first name on. A file leaves when all its names have been seen.
#[derive(Debug, Default)]
pub struct Links {
    first: HashMap<(u64, u64), (Vec<u8>, u64)>,
}

impl Links {
    /// The path under which this file stands already; else `path` is its first.
    fn seen(&mut self, stat: &Stat, path: &[u8]) -> Option<Vec<u8>> {
        let key = (stat.st_dev, stat.st_ino);
        let Some((first, left)) = self.first.get_mut(&key) else {
            self.first.insert(key, (path.to_vec(), stat.st_nlink - 1));
            return None;
        };
        *left -= 1;
        if *left == 0 { self.first.remove(&key).map(|f| f.0) } else { Some(first.clone()) }
    }
}

/// What a walk works with.
pub struct Walk<'a> {
    pub plan: &'a Plan,
    pub owners: &'a Owners,
    pub links: &'a mut Links,
    pub notes: &'a mut Notes,
    pub cancel: &'a Cancel,
    pub one_file_system: bool,
    /// Paths on disk that are left out with all that is below: Lifeboat's own repository, folders of databases.
    pub never: &'a HashSet<PathBuf>,
}

type Visit<'v> = &'v mut dyn FnMut(Found) -> Result<(), SourceError>;

/// A folder that is being listed.
struct Level<'a> {
    dir: Option<OwnedFd>,
    dev: u64,
    ino: u64,
    names: Names,
    next: usize,
    /// Length of the folder's own path.
    path: usize,
    node: Option<&'a Node>,
    within: Option<Within<'a>>,
}

/// The named path that holds here.
#[derive(Clone, Copy)]
struct Within<'a> {
    scope: &'a Scope,
    /// The device of the named path.
    dev: u64,
}

impl<'a> Walk<'a> {
    /// Walks the plan. The visitor's first error ends it.
    pub fn run(mut self, visit: Visit<'_>) -> Result<(), SourceError> {
        let plan = self.plan;
        let mut path = plan.prefix.clone();
        let dir = rustix::fs::open(&plan.real, directory_flags(plan.root.scope.is_some()), Mode::empty())
            .map_err(|e| self.error("open", &path, e))?;
        let stat = rustix::fs::fstat(&dir).map_err(|e| self.error("read", &path, e))?;
        if !plan.prefix.is_empty() {
            visit(self.found(path.clone(), Kind::Dir, &stat))?;
        }
        let within = plan.root.scope.as_deref().map(|scope| Within { scope, dev: stat.st_dev });
        let names = self.names(&dir, &path, Some(&plan.root), within)?;
        let root = Level {
            dir: Some(dir),
            dev: stat.st_dev,
            ino: stat.st_ino,
            names,
            next: 0,
            path: path.len(),
            node: Some(&plan.root),
            within,
        };
        let mut levels = vec![root];
        while let Some(level) = levels.last_mut() {
            self.cancel.check()?;
            path.truncate(level.path);
            if level.next == level.names.len() {
                let done = levels.pop().and_then(|l| l.dir);
                if let (Some(done), Some(parent)) = (done, levels.last_mut()) {
                    self.reopen(parent, &done, &path)?;
                }
                continue;
            }
            let index = level.next;
            level.next += 1;
            if let Some(below) = self.step(level, index, &mut path, visit)? {
                levels.push(below);
                if levels.len() > OPEN_LEVELS {
                    let closing = levels.len() - OPEN_LEVELS;
                    levels[closing - 1].dir = None;
                }
            }
        }
        Ok(())
    }

    /// Opens a parent anew from its child, when it was closed to save descriptors.
    fn reopen(&self, parent: &mut Level<'_>, child: &OwnedFd, path: &[u8]) -> Result<(), SourceError> {
        if parent.dir.is_some() {
            return Ok(());
        }
        let dir = rustix::fs::openat(child, c"..", directory_flags(parent.within.is_some()), Mode::empty())
            .map_err(|e| self.error("open", path, e))?;
        let stat = rustix::fs::fstat(&dir).map_err(|e| self.error("read", path, e))?;
        if (stat.st_dev, stat.st_ino) != (parent.dev, parent.ino) {
            return Err(SourceError::hint(
                format!("a folder below {} was moved while it was read", self.real(path).display()),
                "run the snapshot again",
            ));
        }
        parent.dir = Some(dir);
        Ok(())
    }

    /// One name of a folder: visits it, and returns the level below when it is a folder to descend into.
    fn step(
        &mut self,
        level: &Level<'a>,
        index: usize,
        path: &mut Vec<u8>,
        visit: Visit<'_>,
    ) -> Result<Option<Level<'a>>, SourceError> {
        let Some(dir) = &level.dir else { return Ok(None) };
        let name = level.names.get(index);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let may_be_never = |path: &PathBuf| path.file_name().is_some_and(|last| last.as_bytes() == name.to_bytes());
        if self.never.iter().any(may_be_never) && self.never.contains(&self.real(path)) {
            return Ok(None);
        }
        let node = level.node.and_then(|n| n.children.get(name.to_bytes()));
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                self.notes.add(Note::Vanished, path);
                return Ok(None);
            }
            Err(e) => return Err(self.error("read", path, e)),
        };
        let mode = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        let within =
            level.within.filter(|w| !w.scope.has_excludes() || !w.scope.excludes(&self.real(path), mode.is_dir()));
        if within.is_none() && node.is_none() {
            return Ok(None);
        }
        if mode.is_dir() && crate::sources::trees::is_staging(name.to_bytes()) {
            return Ok(None);
        }
        if mode.is_dir() {
            return self.folder(level, dir, name, path, (node, within), visit);
        }
        self.leaf(dir, name, path, &stat, mode, visit)?;
        Ok(None)
    }

    fn leaf(
        &mut self,
        dir: &OwnedFd,
        name: &CStr,
        path: &[u8],
        stat: &Stat,
        file_type: rustix::fs::FileType,
        visit: Visit<'_>,
    ) -> Result<(), SourceError> {
        use rustix::fs::FileType;
        let kind = match file_type {
            FileType::RegularFile if stat.st_nlink > 1 => match self.links.seen(stat, path) {
                Some(first) => Kind::Hardlink(first),
                None => Kind::File,
            },
            FileType::RegularFile => Kind::File,
            FileType::Symlink => match rustix::fs::readlinkat(dir, name, Vec::new()) {
                Ok(target) => Kind::Symlink(target.into_bytes()),
                Err(Errno::NOENT | Errno::INVAL) => {
                    self.notes.add(Note::Vanished, path);
                    return Ok(());
                }
                Err(e) => return Err(self.error("read", path, e)),
            },
            other => {
                let what = match other {
                    FileType::Socket => "socket",
                    FileType::Fifo => "fifo",
                    _ => "device",
                };
                self.notes.add(Note::Special(what), path);
                return Ok(());
            }
        };
        visit(self.found(path.to_vec(), kind, stat))
    }

    fn folder(
        &mut self,
        level: &Level<'a>,
        parent: &OwnedFd,
        name: &CStr,
        path: &[u8],
        (node, above): (Option<&'a Node>, Option<Within<'a>>),
        visit: Visit<'_>,
    ) -> Result<Option<Level<'a>>, SourceError> {
        let own = node.and_then(|n| n.scope.as_deref());
        let listed = own.is_some() || above.is_some();
        let dir = match rustix::fs::openat(parent, name, directory_flags(listed), Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.notes.add(Note::Vanished, path);
                return Ok(None);
            }
            Err(e) => return Err(self.error("open", path, e)),
        };
        let stat = rustix::fs::fstat(&dir).map_err(|e| self.error("read", path, e))?;
        visit(self.found(path.to_vec(), Kind::Dir, &stat))?;
        let mut within = match own {
            Some(scope) => Some(Within { scope, dev: stat.st_dev }),
            None => above,
        };
        if within.is_some() && own.is_none() && self.is_left_out(level, &dir, &stat, within, path)? {
            within = None;
        }
        if within.is_none() && node.is_none() {
            return Ok(None);
        }
        let names = self.names(&dir, path, node, within)?;
        let (dev, ino) = (stat.st_dev, stat.st_ino);
        Ok(Some(Level { dir: Some(dir), dev, ino, names, next: 0, path: path.len(), node, within }))
    }

    /// Whether a mount point's content is left out: another file system than the policy's, or one of the kernel's.
    fn is_left_out(
        &mut self,
        level: &Level<'a>,
        dir: &OwnedFd,
        stat: &Stat,
        within: Option<Within<'a>>,
        path: &[u8],
    ) -> Result<bool, SourceError> {
        if self.one_file_system && within.is_some_and(|w| w.dev != stat.st_dev) {
            self.notes.add(Note::OtherFileSystem, path);
            return Ok(true);
        }
        if level.dev != stat.st_dev {
            let fs = rustix::fs::fstatfs(dir).map_err(|e| self.error("read", path, e))?;
            if PSEUDO.contains(&(fs.f_type as u32)) {
                self.notes.add(Note::PseudoFileSystem, path);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What to visit in a folder: all of it where a named path holds, else the plan's own names.
    fn names(
        &self,
        dir: &OwnedFd,
        path: &[u8],
        node: Option<&Node>,
        within: Option<Within<'_>>,
    ) -> Result<Names, SourceError> {
        let mut names = Names::default();
        if within.is_some() {
            names.list(dir).map_err(|e| self.error("list", path, e))?;
        } else if let Some(node) = node {
            for name in node.children.keys() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn found(&self, path: Vec<u8>, kind: Kind, stat: &Stat) -> Found {
        let identity = Identity::of(stat);
        let size = if kind == Kind::File { identity.size } else { 0 };
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        let entry = Entry {
            path,
            kind,
            size,
            mode: stat.st_mode & 0o7777,
            uid,
            gid,
            user: self.owners.user(uid),
            group: self.owners.group(gid),
            mtime: identity.mtime,
            xattrs: Vec::new(),
        };
        Found { entry, identity }
    }

    fn real(&self, path: &[u8]) -> PathBuf {
        real_path(&self.plan.real, &self.plan.prefix, path)
    }

    fn error(&self, action: &'static str, path: &[u8], e: Errno) -> SourceError {
        SourceError::File { action, path: self.real(path), source: io::Error::from(e) }
    }
}

/// `proc`, `sysfs`, `devpts`, `cgroup` 1 and 2, `debugfs`, `tracefs`, `securityfs`, `bpf`, `pstore`, `configfs`,
/// `mqueue`, `binfmt_misc`: `f_type` as in `statfs(2)`.
const PSEUDO: [u32; 13] = [
    0x9fa0,
    0x6265_6572,
    0x1cd1,
    0x27_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x6165_676c,
    0x6265_6570,
    0x1980_0202,
    0x4249_4e4d,
];

/// A folder above a named path is only passed through, and that needs no permission to read it.
fn directory_flags(listed: bool) -> OFlags {
    let access = if listed { OFlags::RDONLY } else { OFlags::PATH };
    access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Names of a folder in one arena: a million of them take their own length and eight bytes each.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    starts: Vec<u32>,
}

impl Names {
    fn push(&mut self, name: &[u8]) {
        self.starts.push(self.bytes.len() as u32);
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
    }

    fn list(&mut self, dir: &OwnedFd) -> Result<(), Errno> {
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                if self.bytes.len() + name.len() >= u32::MAX as usize {
                    return Err(Errno::OVERFLOW);
                }
                self.push(name);
            }
        }
        Ok(())
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        // Each name ends in a zero, which is less than any other byte, and no two are the same: what is behind is not looked at.
        let from = |start: u32| &bytes[start as usize..];
        self.starts.sort_unstable_by(|a, b| from(*a).cmp(from(*b)));
    }

    fn len(&self) -> usize {
        self.starts.len()
    }

    fn get(&self, index: usize) -> &CStr {
        name_at(&self.bytes, self.starts[index])
    }
}

fn name_at(bytes: &[u8], start: u32) -> &CStr {
    CStr::from_bytes_until_nul(&bytes[start as usize..]).unwrap_or_default()
}

/// What lies on disk under a path of the tar, for messages and for opening it.
pub fn real_of(plan: &Plan, path: &[u8]) -> PathBuf {
    let real = real_path(&plan.real, &plan.prefix, path);
    if real.as_os_str().is_empty() { path_of(path) } else { real }
}
