//! A look at a tree of paths, so that globs, links and `include` directives are followed by the same code whether
//! this process reads the paths itself or Docker reads them for it.

use crate::sources::SourceError;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What lies at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Symlink(PathBuf),
    Other,
}

/// Absolute paths, seen without following their last component.
pub trait View {
    /// Makes everything at and below a path visible, for views that do not see all from the beginning.
    fn look(&self, _path: &Path) -> Result<(), SourceError> {
        Ok(())
    }
    /// `None` when nothing is there.
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>>;
    /// Names in a folder, in any order.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>>;
    /// A file's content, links followed; more than `limit` bytes are an error.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
}

/// What this process sees.
pub struct Host;

impl View for Host {
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        let meta = match std::fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok(Some(match meta.file_type() {
            t if t.is_dir() => Kind::Dir,
            t if t.is_file() => Kind::File,
            t if t.is_symlink() => Kind::Symlink(std::fs::read_link(path)?),
            _ => Kind::Other,
        }))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        std::fs::read_dir(path)?.map(|e| e.map(|e| e.file_name())).collect()
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        use std::os::unix::fs::OpenOptionsExt;
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let odd = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        let opened = std::fs::OpenOptions::new().read(true).custom_flags(nonblock).open(path);
        // A socket cannot be opened at all.
        let is_socket = |e: &io::Error| e.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error());
        let file = opened.map_err(|e| if is_socket(&e) { odd() } else { e })?;
        if !file.metadata()?.is_file() {
            return Err(odd());
        }
        read_limited(file, limit)
    }
}

/// Reads at most `limit` bytes; more are an error.
pub fn read_limited(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// A tree in memory: what Docker has read.
#[derive(Debug, Default)]
pub struct Memory {
    entries: BTreeMap<PathBuf, (Kind, Vec<u8>)>,
}

impl Memory {
    pub fn insert(&mut self, path: PathBuf, kind: Kind, content: Vec<u8>) {
        self.entries.insert(path, (kind, content));
    }

    pub fn insert_if_absent(&mut self, path: PathBuf, kind: Kind) {
        self.entries.entry(path).or_insert((kind, Vec::new()));
    }

    fn get(&self, path: &Path) -> io::Result<&(Kind, Vec<u8>)> {
        self.entries.get(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl View for Memory {
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        Ok(self.entries.get(path).map(|e| e.0.clone()))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        if self.get(path)?.0 != Kind::Dir {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let below = self.entries.range(path.to_path_buf()..).skip(1).take_while(|(p, _)| p.starts_with(path));
        Ok(below.filter(|(p, _)| p.parent() == Some(path)).filter_map(|(p, _)| Some(p.file_name()?.into())).collect())
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut path = path.to_path_buf();
        for _ in 0..40 {
            let (kind, content) = self.get(&path)?;
            match kind {
                Kind::Symlink(target) => path = normal(&path.parent().unwrap_or(Path::new("/")).join(target)),
                Kind::File => return read_limited(content.as_slice(), limit),
                Kind::Dir | Kind::Other => {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
                }
            }
        }
        Err(io::Error::from(rustix::io::Errno::LOOP))
    }
}

/// A path without `.` and `..`, by its text alone.
pub fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    out
}
