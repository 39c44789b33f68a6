//! Small trees of configuration, read by this process, or through the engine where only root may.

use super::scene::{FILE_BYTES, there};
use crate::place::helper::TreeSource;
use crate::place::{Docker, PlaceError};
use crate::repository::chain::full_text;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

/// A folder of configuration is no larger.
const TREE_BYTES: u64 = 16 << 20;
const MOST_FILES: usize = 5_000;

/// Regular files by where they lie on this host.
pub struct Tree(BTreeMap<PathBuf, Vec<u8>>);

impl Tree {
    /// A file, or a folder with all that is below; absent when it is not there.
    pub fn read(docker: Option<&Docker>, path: &Path) -> io::Result<Option<Tree>> {
        let mut files = BTreeMap::new();
        let read = match (read_here(path, &mut files), docker) {
            (Err(e), Some(docker)) if e.kind() == ErrorKind::PermissionDenied => {
                files.clear();
                through(docker, path).and_then(|tar| read_tar(tar, path, &mut files))
            }
            (read, _) => read,
        };
        Ok(there(read)?.map(|()| Tree(files)))
    }

    pub fn files(&self) -> impl Iterator<Item = (&PathBuf, &Vec<u8>)> {
        self.0.iter()
    }
}

fn read_here(path: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> io::Result<()> {
    let mut ahead = vec![path.to_owned()];
    while let Some(at) = ahead.pop() {
        let meta = match there(fs::metadata(&at))? {
            Some(meta) => meta,
            None if at == path => return Err(ErrorKind::NotFound.into()),
            // A link within it that leads nowhere, or somewhere within a container only.
            None => continue,
        };
        if files.len() + ahead.len() > MOST_FILES {
            break;
        }
        if meta.is_dir() {
            ahead.extend(fs::read_dir(&at)?.flatten().map(|e| e.path()));
        } else if meta.is_file() && meta.len() <= FILE_BYTES {
            let content = fs::read(&at)?;
            files.insert(at, content);
        }
    }
    Ok(())
}

/// What the engine reads of a path. That nothing is there is an error of the kind that files have for it.
fn through(docker: &Docker, path: &Path) -> io::Result<Box<dyn Read + Send>> {
    docker.read_tree(&TreeSource::Path(path.to_owned())).map_err(|e| match &e {
        PlaceError::Io { source, .. } => io::Error::new(source.kind(), full_text(&e)),
        _ => io::Error::other(e),
    })
}

/// Takes the files of a tar whose first component stands for `path` itself.
fn read_tar(tar: impl Read, path: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> io::Result<()> {
    let mut archive = tar::Archive::new(tar.take(TREE_BYTES));
    for entry in archive.entries()?.take(MOST_FILES) {
        let Ok(mut entry) = entry else { break };
        let Ok(name) = entry.path().map(|p| p.into_owned()) else { continue };
        let below: PathBuf = name.components().skip(1).collect();
        let is_below = below.components().all(|part| matches!(part, Component::Normal(_)));
        if is_below && entry.header().entry_type().is_file() && entry.size() <= FILE_BYTES {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.insert(if below.as_os_str().is_empty() { path.to_owned() } else { path.join(below) }, content);
        }
    }
    Ok(())
}

/// Whether something is there, as this process sees it or the engine does.
pub fn exists(docker: Option<&Docker>, path: &Path) -> io::Result<bool> {
    match (there(fs::symlink_metadata(path)), docker) {
        (Err(e), Some(docker)) if e.kind() == ErrorKind::PermissionDenied => {
            Ok(there(through(docker, path).and_then(|mut tar| tar.read(&mut [0; 512])))?.is_some_and(|n| n > 0))
        }
        (found, _) => Ok(found?.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fuzz::Fuzz;

    /// A way that leads through a ring of links can be looked at by nobody, root included.
    #[test]
    fn what_cannot_be_looked_at_is_told_from_what_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::os::unix::fs::symlink("ring", at("ring")).unwrap();
        fs::write(at("file"), "x").unwrap();
        assert!(exists(None, &at("ring")).unwrap() && exists(None, &at("file")).unwrap());
        assert!(!exists(None, &at("nothing")).unwrap() && !exists(None, &at("file/below")).unwrap());
        assert!(exists(None, &at("ring/below")).is_err());
        assert!(Tree::read(None, &at("nothing")).unwrap().is_none());
        assert_eq!(Tree::read(None, &at("file")).unwrap().unwrap().files().count(), 1);
        assert!(Tree::read(None, &at("ring")).is_err());
        // A link that leads nowhere takes nothing else with it.
        fs::create_dir(at("sites")).unwrap();
        std::os::unix::fs::symlink("/nowhere/x", at("sites/gone")).unwrap();
        assert!(Tree::read(None, &at("sites")).unwrap().is_some());
    }

    #[test]
    fn sweep_trees_that_the_engine_reads() {
        let words =
            ["ustar\0", "00000000003\0", "77777777777\0", "././@LongLink", "../", "/", "\n30 path=", "\0\0\0\0"];
        Fuzz::of("tar").words(&words).run(|bytes| {
            let (path, mut files) = (Path::new("/etc/nginx"), BTreeMap::new());
            let _ = read_tar(bytes, path, &mut files);
            assert!(files.values().all(|content| content.len() <= bytes.len()));
            for file in files.keys() {
                let plain = |part| !matches!(part, Component::ParentDir);
                assert!(file.starts_with(path) && file.components().all(plain), "{}", file.display());
            }
        });
    }
}
