//! Small trees of configuration, read by this process, or through the engine where only root may.

use super::scene::FILE_BYTES;
use crate::place::helper::TreeSource;
use crate::place::{Docker, PlaceError};
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

/// A folder of configuration is no larger.
const TREE_BYTES: u64 = 16 << 20;
const MOST_FILES: usize = 5_000;

/// Regular files by where they lie on this host.
pub struct Tree(BTreeMap<PathBuf, Vec<u8>>);

impl Tree {
    /// A file, or a folder with all that is below; absent when it is not there or nobody may read it.
    pub fn read(docker: Option<&Docker>, path: &Path) -> Option<Tree> {
        let mut files = BTreeMap::new();
        match read_here(path, &mut files) {
            Ok(()) => Some(Tree(files)),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                files.clear();
                read_through(docker?, path, &mut files)?;
                Some(Tree(files))
            }
            Err(_) => None,
        }
    }

    pub fn files(&self) -> impl Iterator<Item = (&PathBuf, &Vec<u8>)> {
        self.0.iter()
    }
}

fn read_here(path: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> std::io::Result<()> {
    let mut ahead = vec![path.to_owned()];
    while let Some(path) = ahead.pop() {
        let meta = match fs::metadata(&path) {
            // A link that leads nowhere.
            Err(e) if e.kind() == ErrorKind::NotFound && !files.is_empty() => continue,
            other => other?,
        };
        if files.len() + ahead.len() > MOST_FILES {
            break;
        }
        if meta.is_dir() {
            ahead.extend(fs::read_dir(&path)?.flatten().map(|e| e.path()));
        } else if meta.is_file() && meta.len() <= FILE_BYTES {
            files.insert(path.clone(), fs::read(&path)?);
        }
    }
    Ok(())
}

fn read_through(docker: &Docker, path: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> Option<()> {
    read_tar(docker.read_tree(&TreeSource::Path(path.to_owned())).ok()?, path, files)
}

/// Takes the files of a tar whose first component stands for `path` itself.
fn read_tar(tar: impl Read, path: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> Option<()> {
    let mut archive = tar::Archive::new(tar.take(TREE_BYTES));
    for entry in archive.entries().ok()?.take(MOST_FILES) {
        let Ok(mut entry) = entry else { break };
        let Ok(name) = entry.path().map(|p| p.into_owned()) else { continue };
        let below: PathBuf = name.components().skip(1).collect();
        let is_below = below.components().all(|part| matches!(part, Component::Normal(_)));
        if is_below && entry.header().entry_type().is_file() && entry.size() <= FILE_BYTES {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).ok()?;
            files.insert(if below.as_os_str().is_empty() { path.to_owned() } else { path.join(below) }, content);
        }
    }
    Some(())
}

/// Whether something is there, as this process sees it or the engine does.
pub fn exists(docker: Option<&Docker>, path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            docker.is_some_and(|docker| match docker.read_tree(&TreeSource::Path(path.to_owned())) {
                Ok(mut tar) => tar.read(&mut [0; 512]).is_ok_and(|n| n > 0),
                Err(PlaceError::Io { .. }) => false,
                Err(_) => false,
            })
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fuzz::Fuzz;

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
