//! The live tree: folders opened one name at a time, nothing followed, and what stands in them.

use super::super::SourceError;
use super::super::extract::{Aspect, Report, Severity, Wanted, open_below, refuse_attribute, stat_below};
use super::super::files::entry::{Entry, Kind, Time};
use super::super::files::read_attributes;
use super::fault;
use super::job::Job;
use super::list::Meta;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;

/// Where a path is.
pub enum Spot<'a, 'p> {
    /// A name in a folder that is there.
    Name(BorrowedFd<'a>, &'p OsStr),
    /// A base itself.
    Base(BorrowedFd<'a>),
    /// A folder on the way is not there, or is none; the last one that is.
    NoWay(BorrowedFd<'a>),
}

/// The way to the entry that was asked for last: most of the next one's.
pub struct Live<'a> {
    job: &'a Job,
    bases: Vec<OwnedFd>,
    base: usize,
    levels: Vec<(Vec<u8>, OwnedFd)>,
}

pub const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl<'a> Live<'a> {
    /// Symlinks on the way to a base are the caller's own and are followed.
    pub fn open(job: &'a Job) -> Result<Self, SourceError> {
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let open =
            |b: &super::Base| rustix::fs::open(&b.dir, flags, Mode::empty()).map_err(|e| fault("open", &b.dir, e));
        let bases = job.bases.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { job, bases, base: 0, levels: Vec::new() })
    }

    /// Goes to the folder in which `path` is.
    pub fn find<'p>(&mut self, path: &'p [u8]) -> Result<Spot<'_, 'p>, SourceError> {
        let (base, names) = self.job.names(path)?;
        if base != self.base {
            self.levels.clear();
            self.base = base;
        }
        let Some((name, way)) = names.split_last() else {
            return Ok(Spot::Base(self.bases[base].as_fd()));
        };
        let common = self.levels.iter().zip(way).take_while(|(level, name)| level.0 == **name).count();
        self.levels.truncate(common);
        for step in &way[common..] {
            match open_below(self.current(), OsStr::from_bytes(step), DIRECTORY) {
                Ok(dir) => self.levels.push((step.to_vec(), dir)),
                Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                    return Ok(Spot::NoWay(self.current()));
                }
                Err(e) => return Err(fault("open", self.job.display(path), e)),
            }
        }
        Ok(Spot::Name(self.current(), OsStr::from_bytes(name)))
    }

    fn current(&self) -> BorrowedFd<'_> {
        self.levels.last().map_or(self.bases[self.base].as_fd(), |level| level.1.as_fd())
    }

    /// How many folders below its base the last way led to.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// A folder was moved: what was opened may lie elsewhere now.
    pub fn forget(&mut self) {
        self.levels.clear();
    }

    /// What stands at a path, if anything.
    pub fn stat(&mut self, path: &[u8]) -> Result<Option<Stat>, SourceError> {
        let shown = self.job.display(path);
        match self.find(path)? {
            Spot::Name(dir, name) => stat_below(dir, name.as_bytes()).map_err(|e| fault("read", shown, e)),
            Spot::Base(dir) => rustix::fs::fstat(dir).map(Some).map_err(|e| fault("read", shown, e)),
            Spot::NoWay(_) => Ok(None),
        }
    }

    /// Whether something is mounted there.
    pub fn is_mount(&mut self, path: &[u8]) -> Result<bool, SourceError> {
        let shown = self.job.display(path);
        let asked = match self.find(path)? {
            Spot::Name(dir, name) => rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()),
            Spot::Base(dir) => rustix::fs::statx(dir, c"", AtFlags::EMPTY_PATH, StatxFlags::empty()),
            Spot::NoWay(_) => return Ok(false),
        };
        let answer = asked.map_err(|e| fault("read", shown, e))?;
        Ok(answer.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    }

    /// A folder, open.
    pub fn dir(&mut self, path: &[u8]) -> Result<Option<OwnedFd>, SourceError> {
        let shown = self.job.display(path);
        let opened = match self.find(path)? {
            Spot::Name(dir, name) => open_below(dir, name, DIRECTORY),
            Spot::Base(dir) => rustix::fs::openat(dir, c".", DIRECTORY, Mode::empty()),
            Spot::NoWay(_) => return Ok(None),
        };
        match opened {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => Ok(None),
            Err(e) => Err(fault("open", shown, e)),
        }
    }

    /// Whether what stands at an entry's path has the entry's kind and metadata. Content is not looked at.
    pub fn is_like(&mut self, entry: &Entry, stat: &Stat, wanted: Wanted) -> Result<bool, SourceError> {
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let fits = match &entry.kind {
            Kind::File => file_type.is_file() && stat.st_size as u64 == entry.size,
            Kind::Dir => file_type.is_dir(),
            Kind::Symlink(_) => file_type.is_symlink(),
            _ => false,
        };
        let is_link = matches!(entry.kind, Kind::Symlink(_));
        let owned = !wanted.owners || (stat.st_uid, stat.st_gid) == (entry.uid, entry.gid);
        // What came through the engine has whole seconds; contents are compared all the same.
        let timed = stat.st_mtime == entry.mtime.seconds
            && (entry.mtime.nanos == 0 || stat.st_mtime_nsec as u32 == entry.mtime.nanos);
        if !(fits && owned && timed && (is_link || stat.st_mode & 0o7777 == entry.mode)) {
            return Ok(false);
        }
        let shown = self.job.display(&entry.path);
        let (dir, name) = match self.find(&entry.path)? {
            Spot::Name(dir, name) => (dir, Some(name)),
            Spot::Base(dir) => (dir, None),
            Spot::NoWay(_) => return Ok(false),
        };
        if let (Kind::Symlink(target), Some(name)) = (&entry.kind, name) {
            let there = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(|e| fault("read", &shown, e))?;
            if there.as_bytes() != target {
                return Ok(false);
            }
        }
        let xattrs = attributes(dir, name).map_err(|e| fault("read attributes of", &shown, e))?;
        let restorable = |n: &[u8]| wanted.privileged || n.starts_with(b"user.") || n.starts_with(b"system.posix_acl_");
        Ok(entry.xattrs.iter().filter(|(n, _)| restorable(n)).all(|x| xattrs.contains(x)))
    }

    /// Tells what of an entry that is left alone is not as it was captured, because this account may not change it.
    pub fn tell(&mut self, entry: &Entry, stat: &Stat, wanted: Wanted, report: &mut Report) -> Result<(), SourceError> {
        let mut add = |aspect, what: String| report.add(Severity::Metadata, aspect, &entry.path, what);
        if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
            let why = std::io::Error::from(Errno::PERM);
            add(Aspect::Owner, format!("owner {}:{} not restored: {why}", entry.uid, entry.gid));
        }
        if !entry.xattrs.iter().any(|(name, _)| refuse_attribute(name, wanted).is_some()) {
            return Ok(());
        }
        let shown = self.job.display(&entry.path);
        let (dir, name) = match self.find(&entry.path)? {
            Spot::Name(dir, name) => (dir, Some(name)),
            Spot::Base(dir) => (dir, None),
            Spot::NoWay(_) => return Ok(()),
        };
        let there = attributes(dir, name).map_err(|e| fault("read attributes of", &shown, e))?;
        for (name, _) in entry.xattrs.iter().filter(|x| !there.contains(x)) {
            if let Some(what) = refuse_attribute(name, wanted) {
                add(Aspect::of_attribute(name), what);
            }
        }
        Ok(())
    }

    /// A folder's metadata as it is.
    pub fn meta(&mut self, path: &[u8]) -> Result<Option<Meta>, SourceError> {
        let shown = self.job.display(path);
        let Some(dir) = self.dir(path)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&dir).map_err(|e| fault("read", &shown, e))?;
        let xattrs = attributes(dir.as_fd(), None).map_err(|e| fault("read attributes of", &shown, e))?;
        let entry = Entry {
            path: Vec::new(),
            kind: Kind::Dir,
            size: 0,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            user: None,
            group: None,
            mtime: Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
            xattrs,
        };
        Ok(Some(Meta::of(&entry)))
    }
}

fn attributes(dir: BorrowedFd<'_>, name: Option<&OsStr>) -> Result<super::super::files::entry::Xattrs, Errno> {
    let name = name.map(|n| CString::new(n.as_bytes())).transpose().map_err(|_| Errno::INVAL)?;
    read_attributes(dir, name.as_deref())
}
