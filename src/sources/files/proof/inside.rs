//! Restored trees, seen as the machine they came from would see them: absolute paths, and links that lead from path to
//! path within the trees and never out of them into this host.

use super::super::view::{Kind, View, normal, read_limited};
use crate::sources::proof::LaidTree;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// As the kernel's own limit.
const MAX_LINKS: usize = 40;
/// A tree with more entries is not one of those that are laid out for proofs.
const MAX_ENTRIES: usize = 200_000;

/// One or more trees as one; where two have a path, the first counts.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    roots: Vec<PathBuf>,
}

/// One path of a restored tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// As it was on the machine: absolute.
    pub path: PathBuf,
    /// Where it lies now.
    pub real: PathBuf,
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    pub size: u64,
}

impl Restored {
    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        Restored { roots: roots.into_iter().collect() }
    }

    /// Trees of these kinds, `own` before all others.
    pub fn of(trees: &[LaidTree], own: Option<&Path>, kinds: &[&str]) -> Self {
        let own = own.map(Path::to_path_buf);
        let others = trees.iter().filter(|t| kinds.contains(&t.kind.as_str())).map(|t| t.root.clone());
        let others: Vec<PathBuf> = others.filter(|root| Some(root) != own.as_ref()).collect();
        Restored { roots: own.into_iter().chain(others).collect() }
    }

    /// Every path of the trees, folders before what is in them, by name.
    pub fn walk(&self) -> io::Result<Vec<Item>> {
        let mut found: Vec<Item> = Vec::new();
        let mut ahead = VecDeque::from([PathBuf::from("/")]);
        while let Some(dir) = ahead.pop_front() {
            let mut names = self.read_dir(&dir)?;
            names.sort();
            for name in names {
                let path = dir.join(name);
                let Some(item) = self.item(&path)? else { continue };
                if item.kind == Kind::Dir {
                    ahead.push_back(path);
                }
                found.push(item);
                if found.len() > MAX_ENTRIES {
                    return Err(io::Error::other(format!("more than {MAX_ENTRIES} entries")));
                }
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// What lies at a path, whose folders may be reached through links; the last name is not followed.
    pub fn item(&self, path: &Path) -> io::Result<Option<Item>> {
        let Some(name) = path.file_name() else { return self.plain(Path::new("/")) };
        match self.resolve(path.parent().unwrap_or(Path::new("/"))) {
            Ok(dir) => Ok(self.plain(&dir.join(name))?.map(|item| Item { path: path.to_path_buf(), ..item })),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What a path leads to in the end, all links followed; an error when that is nothing within the trees.
    pub fn target(&self, path: &Path) -> io::Result<Item> {
        self.plain(&self.resolve(path)?)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A file's content by its path, links followed within the trees; more than `limit` bytes are an error.
    pub fn read_file(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        self.read(path, limit)
    }

    /// The path without any link in it.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let mut ahead: VecDeque<OsString> = names(path).collect();
        let mut done = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == OsStr::new("..") {
                done.pop();
                continue;
            }
            let next = done.join(&name);
            match self.plain(&next)?.map(|item| item.kind) {
                None => return Err(io::ErrorKind::NotFound.into()),
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(io::Error::from(rustix::io::Errno::LOOP));
                    }
                    if target.is_absolute() {
                        done = PathBuf::from("/");
                    }
                    for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                        ahead.push_front(name);
                    }
                }
                Some(Kind::Dir) => done = next,
                Some(_) if ahead.is_empty() => done = next,
                Some(_) => return Err(io::ErrorKind::NotADirectory.into()),
            }
        }
        Ok(done)
    }

    /// What lies at a path that has no link in it, except perhaps as its last name.
    fn plain(&self, path: &Path) -> io::Result<Option<Item>> {
        let mut missing = None;
        for root in &self.roots {
            let Some(real) = below(root, path)? else { continue };
            let meta = match std::fs::symlink_metadata(&real) {
                Ok(meta) => meta,
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
                Err(e) => {
                    missing = Some(e);
                    continue;
                }
            };
            let kind = match meta.file_type() {
                t if t.is_dir() => Kind::Dir,
                t if t.is_file() => Kind::File,
                t if t.is_symlink() => Kind::Symlink(std::fs::read_link(&real)?),
                _ => Kind::Other,
            };
            let mode = meta.permissions().mode() & 0o7777;
            return Ok(Some(Item { path: path.to_path_buf(), real, kind, mode, size: meta.size() }));
        }
        match missing {
            Some(e) => Err(e),
            None => Ok(None),
        }
    }
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|c| match c {
        Component::Normal(name) => Some(name.to_os_string()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// Where `path` lies below `root`, when no folder on the way is a link in that tree: what one tree has as a folder may
/// be a link in another, and that would lead out.
fn below(root: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let mut at = root.to_path_buf();
    let path = normal(path);
    let mut names = names(&path).peekable();
    while let Some(name) = names.next() {
        at.push(name);
        if names.peek().is_some() {
            match std::fs::symlink_metadata(&at) {
                Ok(meta) if meta.is_dir() => {}
                Ok(_) => return Ok(None),
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    return Ok(None);
                }
                Err(e) => return Err(e),
            }
        }
    }
    Ok(Some(at))
}

impl View for Restored {
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        Ok(self.item(path)?.map(|item| item.kind))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let path = self.resolve(path)?;
        let mut found: Vec<OsString> = Vec::new();
        for root in &self.roots {
            let Some(real) = below(root, &path)? else { continue };
            match std::fs::symlink_metadata(&real) {
                Ok(meta) if meta.is_dir() => {}
                _ => continue,
            }
            for entry in std::fs::read_dir(&real)? {
                let name = entry?.file_name();
                if !found.contains(&name) {
                    found.push(name);
                }
            }
        }
        Ok(found)
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let item = self.target(path)?;
        match item.kind {
            Kind::File => read_limited(std::fs::File::open(&item.real)?, limit),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_lead_from_path_to_path_within_the_trees_only() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir_all(a.join("etc/live")).unwrap();
        fs::create_dir_all(b.join("etc/archive")).unwrap();
        fs::write(b.join("etc/archive/one"), "1").unwrap();
        symlink("../archive/one", a.join("etc/live/one")).unwrap();
        symlink("/etc/archive", a.join("etc/absolute")).unwrap();
        symlink("/etc/passwd", a.join("etc/live/out")).unwrap();
        symlink("../../../../../../etc/passwd", a.join("etc/live/up")).unwrap();
        symlink("loop", a.join("etc/live/loop")).unwrap();
        let both = Restored::new([a.clone(), b.clone()]);
        let read = |path: &str| both.read(Path::new(path), 100).map_err(|e| e.kind());
        assert_eq!(read("/etc/live/one"), Ok(b"1".to_vec()));
        assert_eq!(read("/etc/absolute/one"), Ok(b"1".to_vec()));
        assert_eq!(read("/etc/live/../archive/one"), Ok(b"1".to_vec()));
        assert_eq!(read("/etc/live/out"), Err(io::ErrorKind::NotFound));
        assert_eq!(read("/etc/live/up"), Err(io::ErrorKind::NotFound));
        assert!(read("/etc/live/loop").is_err());
        assert_eq!(both.item(Path::new("/etc/absolute/one")).unwrap().unwrap().kind, Kind::File);
        // A folder of one tree that another has as a link out of it.
        symlink("/etc", b.join("etc/live")).unwrap();
        assert!(matches!(read("/etc/live/passwd"), Err(io::ErrorKind::NotFound)));
        let paths: Vec<PathBuf> = both.walk().unwrap().into_iter().map(|i| i.path).collect();
        assert!(paths.contains(&"/etc/archive/one".into()) && !paths.contains(&"/etc/live/passwd".into()), "{paths:?}");
    }
}
