//! A repository in a local folder.
//!
//! Write order of an object (must): unnamed temporary file (`O_TMPFILE`), fsync, link that refuses to replace, fsync
//! of the folder. A crash before the link leaves nothing behind, not even a temporary name. File systems without
//! `O_TMPFILE` get a named temporary file instead (`.tmp-…`, which no list shows).
//!
//! Where something was found in the folder and the folder is gone since (unmounted, moved away), nothing is said to be
//! missing from it: that would be taken for damage, or for a repository that was rolled back. Nothing is written in its
//! place either.

use super::{LockMode, Locked, ObjectInfo, Put, Storage, StorageError, StorageKey};
use crate::base::{atomic, direct};
use chrono::{DateTime, Utc};
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// How much of the file system no writer may fill.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reserve {
    /// A share of its size, in percent.
    Percent(f64),
    Bytes(u64),
}

/// Objects as files below one folder.
pub struct LocalStorage {
    root: PathBuf,
    reserve: Reserve,
    /// The device and the inode of the root, once something was found in it.
    found: OnceLock<(u64, u64)>,
}

impl LocalStorage {
    /// The folder need not exist yet; the first write creates it (0700).
    pub fn new(root: impl Into<PathBuf>, reserve: Reserve) -> Self {
        Self { root: root.into(), reserve, found: OnceLock::new() }
    }

    fn path(&self, key: &StorageKey) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn io(&self, action: &'static str, path: &Path, source: io::Error) -> StorageError {
        StorageError::Io { action, location: path.display().to_string(), source }
    }

    /// How many bytes are free, and how many of them no writer may take.
    pub fn room(&self) -> Result<(u64, u64), StorageError> {
        let stat = match rustix::fs::statvfs(&self.root) {
            Ok(stat) => stat,
            Err(e) => return Err(self.io("look for free space at", &self.root, e.into())),
        };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let reserve = match self.reserve {
            Reserve::Bytes(bytes) => bytes,
            Reserve::Percent(p) => (stat.f_blocks.saturating_mul(stat.f_frsize) as f64 * p / 100.0) as u64,
        };
        Ok((free, reserve))
    }

    fn check_space(&self, need: u64) -> Result<(), StorageError> {
        let (free, reserve) = self.room()?;
        // A reserve of nothing leaves the answer to the file system itself: quotas and compression know better.
        if reserve > 0 && free < reserve.saturating_add(need) {
            return Err(StorageError::NoSpace { location: self.root.display().to_string(), free, reserve });
        }
        Ok(())
    }

    fn open(&self, key: &StorageKey) -> Result<(File, fs::Metadata), StorageError> {
        let path = self.path(key);
        // Without NONBLOCK, a FIFO that somebody put there would be waited for, for ever.
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let file = fs::OpenOptions::new().read(true).custom_flags(nonblock).open(&path);
        let file = file.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                self.is_there().err().unwrap_or(StorageError::NotFound { key: key.clone() })
            }
            _ => self.io("open", &path, e),
        })?;
        if self.found.get().is_none()
            && let Ok(root) = fs::metadata(&self.root)
        {
            self.found.get_or_init(|| (root.dev(), root.ino()));
        }
        let meta = file.metadata().map_err(|e| self.io("look at", &path, e))?;
        if !meta.is_file() {
            return Err(StorageError::NotFound { key: key.clone() });
        }
        Ok((file, meta))
    }

    /// Fails where the folder is not any more what it was when something was found in it.
    fn is_there(&self) -> Result<(), StorageError> {
        let Some(found) = self.found.get() else { return Ok(()) };
        let gone = match fs::metadata(&self.root) {
            Ok(root) if (root.dev(), root.ino()) == *found => return Ok(()),
            Ok(_) => io::Error::other("another folder has its place since this run began"),
            Err(e) => e,
        };
        Err(self.io("look again for the repository at", &self.root, gone))
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let dir = path.parent().unwrap_or(&self.root);
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::open(dir, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode) {
            Ok(fd) => {
                let file = File::from(fd);
                direct::write_all(&file, bytes)?;
                file.sync_all()?;
                let own = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::fs::linkat(CWD, own.as_str(), CWD, path, AtFlags::SYMLINK_FOLLOW)?;
                atomic::fsync_dir(dir)
            }
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                atomic::write(path, bytes, 0o600, atomic::IfExists::Fail)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn walk(&self, dir: &Path, prefix: &str, out: &mut Vec<ObjectInfo>) -> Result<(), StorageError> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
            Err(e) => return Err(self.io("list", dir, e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| self.io("list", dir, e))?;
            let name = entry.file_name();
            // What cannot be a key is not ours: a temporary file, `lost+found` with odd names, a stray dot file.
            let Some(name) = name.to_str().filter(|n| !n.starts_with('.')) else { continue };
            let key = format!("{prefix}{name}");
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(self.io("look at", &entry.path(), e)),
            };
            if meta.is_dir() {
                // `lost+found` is root's alone on ext4; it is no part of a repository.
                if name != "lost+found" {
                    self.walk(&entry.path(), &format!("{key}/"), out)?;
                }
            } else if meta.is_file()
                && let Ok(key) = key.parse()
            {
                out.push(info(key, &meta));
            }
        }
        Ok(())
    }
}

fn info(key: StorageKey, meta: &fs::Metadata) -> ObjectInfo {
    let modified = meta.modified().map(DateTime::<Utc>::from).unwrap_or(DateTime::UNIX_EPOCH);
    ObjectInfo { key, length: meta.len(), modified }
}

impl Storage for LocalStorage {
    fn describe(&self) -> String {
        self.root.display().to_string()
    }

    fn put_new(&self, key: &StorageKey, bytes: &[u8]) -> Result<Put, StorageError> {
        let path = self.path(key);
        let dir = path.parent().unwrap_or(&self.root);
        self.is_there()?;
        atomic::create_private_dir(dir).map_err(|e| self.io("create folder", dir, e))?;
        self.check_space(bytes.len() as u64)?;
        match self.write_new(&path, bytes) {
            Ok(()) => Ok(Put::Created),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let (file, meta) = self.open(key)?;
                if meta.len() != bytes.len() as u64
                    || !same_bytes(file, bytes).map_err(|e| self.io("read", &path, e))?
                {
                    return Err(StorageError::Exists { key: key.clone() });
                }
                // Whoever wrote it may have crashed before the folder was durable.
                atomic::fsync_dir(dir).map_err(|e| self.io("fsync", dir, e))?;
                Ok(Put::AlreadyThere)
            }
            Err(e) => Err(self.io("write", &path, e)),
        }
    }

    fn get(&self, key: &StorageKey, limit: u64) -> Result<Vec<u8>, StorageError> {
        let (file, meta) = self.open(key)?;
        if meta.len() > limit {
            return Err(StorageError::TooLarge { key: key.clone(), length: meta.len(), limit });
        }
        let mut bytes = Vec::with_capacity(meta.len() as usize);
        file.take(limit).read_to_end(&mut bytes).map_err(|e| self.io("read", &self.path(key), e))?;
        Ok(bytes)
    }

    fn get_range(&self, key: &StorageKey, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        let (file, meta) = self.open(key)?;
        let end = offset.saturating_add(length);
        if end > meta.len() {
            return Err(StorageError::Short { key: key.clone(), end });
        }
        // Zeros that are overwritten at once would cost as much as a fifth of the reading.
        let mut bytes = Vec::with_capacity(length as usize);
        while bytes.len() < length as usize {
            let at = offset + bytes.len() as u64;
            match rustix::io::pread(&file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(StorageError::Short { key: key.clone(), end }),
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(self.io("read", &self.path(key), e.into())),
            }
        }
        bytes.truncate(length as usize);
        Ok(bytes)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StorageError> {
        let mut out = Vec::new();
        self.walk(&self.root.join(prefix), prefix, &mut out)?;
        self.is_there()?;
        out.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(out)
    }

    fn head(&self, key: &StorageKey) -> Result<Option<ObjectInfo>, StorageError> {
        match self.open(key) {
            Ok((_, meta)) => Ok(Some(info(key.clone(), &meta))),
            Err(StorageError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn delete(&self, key: &StorageKey) -> Result<(), StorageError> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => {
                let dir = path.parent().unwrap_or(&self.root);
                atomic::fsync_dir(dir).map_err(|e| self.io("fsync", dir, e))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(self.io("delete", &path, e)),
        }
    }

    /// The file system's clock, which on a network share is not this host's.
    fn clock(&self) -> Result<DateTime<Utc>, StorageError> {
        let file = tempfile::tempfile_in(&self.root).map_err(|e| self.io("ask for the time at", &self.root, e))?;
        let modified = file.metadata().and_then(|meta| meta.modified());
        modified.map(DateTime::from).map_err(|e| self.io("ask for the time at", &self.root, e))
    }

    fn lock(&self, mode: LockMode) -> Result<Locked, StorageError> {
        atomic::create_private_dir(&self.root).map_err(|e| self.io("create folder", &self.root, e))?;
        // No key begins with a dot: no list shows it.
        let path = self.root.join(".writers.lock");
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(|e| self.io("open", &path, e))?;
        let how = match mode {
            LockMode::Shared => FlockOperation::NonBlockingLockShared,
            LockMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(&file, how) {
            Ok(()) => Ok(Locked::Held(Box::new(file))),
            Err(Errno::WOULDBLOCK) => Ok(Locked::Busy),
            // A share without locks is like an object store.
            Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => Ok(Locked::Unsupported),
            Err(e) => Err(self.io("lock", &path, e.into())),
        }
    }
}

fn same_bytes(mut file: File, bytes: &[u8]) -> io::Result<bool> {
    let mut buffer = vec![0; 256 << 10];
    let mut rest = bytes;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(rest.is_empty());
        }
        let Some((head, tail)) = rest.split_at_checked(n) else { return Ok(false) };
        if head != &buffer[..n] {
            return Ok(false);
        }
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        let dir = tempfile::tempdir().unwrap();
        super::super::conformance::run(&LocalStorage::new(dir.path().join("repo"), Reserve::Bytes(0)));
    }

    #[test]
    fn what_is_no_file_is_no_object_and_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("a");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let storage = LocalStorage::new(dir.path(), Reserve::Bytes(0));
        let key = "a".parse().unwrap();
        assert!(matches!(storage.get(&key, 10), Err(StorageError::NotFound { .. })));
        assert!(storage.head(&key).unwrap().is_none() && storage.list("").unwrap().is_empty());
    }

    #[test]
    fn a_folder_that_is_gone_lacks_no_object() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("repo");
        let storage = LocalStorage::new(&root, Reserve::Bytes(0));
        let (key, other) = ("a/b".parse().unwrap(), "a/c".parse().unwrap());
        // What was never there is empty.
        assert!(storage.list("").unwrap().is_empty() && storage.head(&key).unwrap().is_none());
        storage.put_new(&key, b"x").unwrap();
        assert_eq!(storage.get(&key, 10).unwrap(), b"x");
        assert!(storage.head(&other).unwrap().is_none() && storage.list("c/").unwrap().is_empty());
        fs::rename(&root, dir.path().join("away")).unwrap();
        let is_gone =
            |e: StorageError| matches!(e, StorageError::Io { location, .. } if location == root.to_string_lossy());
        for _ in 0..2 {
            assert!(is_gone(storage.put_new(&other, b"y").unwrap_err()) && !root.join("a").exists());
            assert!(is_gone(storage.get(&key, 10).unwrap_err()) && is_gone(storage.head(&other).unwrap_err()));
            assert!(is_gone(storage.list("").unwrap_err()) && is_gone(storage.list("a/").unwrap_err()));
            // An empty folder in its place, such as the one that it was mounted on.
            let _ = fs::create_dir(&root);
        }
        fs::remove_dir(&root).unwrap();
        fs::rename(dir.path().join("away"), &root).unwrap();
        assert_eq!(storage.get(&key, 10).unwrap(), b"x");
    }

    #[test]
    fn keeps_the_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let storage = LocalStorage::new(dir.path(), Reserve::Bytes(u64::MAX));
        let error = storage.put_new(&"a".parse().unwrap(), b"x").unwrap_err();
        assert!(matches!(error, StorageError::NoSpace { .. }), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is written");
    }
}
