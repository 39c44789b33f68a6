//! A folder that stands for the root of a machine: restored files, and what a program needs beside them.
//!
//! What was restored is untrusted, so every path is walked name by name, and a link in it leads within the stage.

use super::super::view::{Kind, View};
use super::inside::{Item, Restored};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, Permissions, set_permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

const MAX_LINKS: usize = 40;

/// The root of a machine that is being put together.
pub struct Stage {
    root: PathBuf,
}

impl Stage {
    /// `root` must not be there yet.
    pub fn new(root: PathBuf) -> io::Result<Stage> {
        DirBuilder::new().mode(0o755).create(&root)?;
        Ok(Stage { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is in it by now.
    pub fn view(&self) -> Restored {
        Restored::new([self.root.clone()])
    }

    /// Takes over what was restored. What stands here already stays.
    pub fn lay(&self, trees: &Restored) -> io::Result<()> {
        self.lay_at(trees, |path| Some(path.to_path_buf()))
    }

    /// The same, where `to` says under which path an entry stands here, if at all.
    pub fn lay_at(&self, trees: &Restored, to: impl Fn(&Path) -> Option<PathBuf>) -> io::Result<()> {
        let mut dirs = Vec::new();
        for item in trees.walk()? {
            let Some(path) = to(&item.path) else { continue };
            if path == Path::new("/") {
                continue;
            }
            self.take(&item, &path)?;
            if item.kind == Kind::Dir {
                dirs.push((path, item.mode));
            }
        }
        // A folder's mode comes last. Its owner keeps every right: the stage must be removed again.
        for (path, mode) in dirs.into_iter().rev() {
            if let Ok(dir) = self.dir(&path) {
                set_permissions(&dir, Permissions::from_mode((mode & 0o777) | 0o700))?;
            }
        }
        Ok(())
    }

    fn take(&self, item: &Item, path: &Path) -> io::Result<()> {
        match &item.kind {
            Kind::Dir => self.dir(path).map(drop),
            Kind::Symlink(target) => {
                let Some(at) = self.free(path)? else { return Ok(()) };
                symlink(target, at)
            }
            Kind::File => {
                let Some(at) = self.free(path)? else { return Ok(()) };
                let mut out = new_file(&at, item.mode & 0o777)?;
                io::copy(&mut File::open(&item.real)?, &mut out).map(drop)
            }
            Kind::Other => Ok(()),
        }
    }

    /// Where a path would lie, when nothing is there yet; the folders above it are made.
    fn free(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let Some(name) = path.file_name() else { return Ok(None) };
        let at = self.dir(path.parent().unwrap_or(Path::new("/")))?.join(name);
        Ok(at.symlink_metadata().is_err().then_some(at))
    }

    /// A file of these bytes, unless something is there.
    pub fn put(&self, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
        match self.free(path)? {
            Some(at) => new_file(&at, mode)?.write_all(content),
            None => Ok(()),
        }
    }

    /// A link, unless something is there.
    pub fn link(&self, path: &Path, target: &Path) -> io::Result<()> {
        match self.free(path)? {
            Some(at) => symlink(target, at),
            None => Ok(()),
        }
    }

    /// A file of these bytes, whatever was there.
    pub fn replace(&self, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
        if let Some(name) = path.file_name() {
            let at = self.dir(path.parent().unwrap_or(Path::new("/")))?.join(name);
            match std::fs::remove_file(&at) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            new_file(&at, mode)?.write_all(content)?;
        }
        Ok(())
    }

    /// The folder at a path, made with those above it; where it really lies.
    pub fn dir(&self, path: &Path) -> io::Result<PathBuf> {
        let mut ahead: VecDeque<OsString> = names(path).collect();
        let mut done: Vec<OsString> = Vec::new();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                done.pop();
                continue;
            }
            done.push(name);
            let at = self.root.join(done.iter().collect::<PathBuf>());
            match at.symlink_metadata() {
                Ok(meta) if meta.is_dir() => {}
                Ok(meta) if meta.is_symlink() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(io::Error::from(rustix::io::Errno::LOOP));
                    }
                    let target = std::fs::read_link(&at)?;
                    done.pop();
                    if target.is_absolute() {
                        done.clear();
                    }
                    names(&target).collect::<Vec<_>>().into_iter().rev().for_each(|name| ahead.push_front(name));
                }
                Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => DirBuilder::new().mode(0o755).create(&at)?,
                Err(e) => return Err(e),
            }
        }
        Ok(self.root.join(done.iter().collect::<PathBuf>()))
    }

    /// Whether a path leads to something here.
    pub fn has(&self, path: &Path) -> bool {
        self.view().target(path).is_ok()
    }

    /// Takes over one file of this host under its own path, links followed; `false` when there is none.
    pub fn bring(&self, path: &Path, limit: u64) -> io::Result<bool> {
        match super::super::view::Host.read(path, limit) {
            Ok(content) => self.put(path, &content, 0o600).map(|()| true),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

fn new_file(at: &Path, mode: u32) -> io::Result<File> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(at)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|c| match c {
        Component::Normal(name) => Some(name.to_os_string()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_through_a_link_that_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        std::fs::create_dir_all(tree.join("etc")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, tree.join("var")).unwrap();
        symlink("../../../../../../../../tmp", tree.join("etc/up")).unwrap();
        std::fs::write(tree.join("etc/file"), "restored").unwrap();
        let stage = Stage::new(dir.path().join("stage")).unwrap();
        stage.lay(&Restored::new([tree])).unwrap();
        stage.put(Path::new("/var/log/x"), b"x", 0o600).unwrap();
        stage.put(Path::new("/etc/up/y"), b"y", 0o600).unwrap();
        stage.put(Path::new("/etc/file"), b"generated", 0o600).unwrap();
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(std::fs::read(stage.root().join("tmp/y")).unwrap(), b"y");
        assert!(stage.has(Path::new("/var/log/x")));
        assert_eq!(std::fs::read(stage.root().join("etc/file")).unwrap(), b"restored");
    }
}
