//! The folder that is restored into: empty before, and empty again when the run cannot go on.

use crate::ops::OpsError;
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Refuses a folder that is not empty, and what is no folder.
/// What a killed restore has left (`is_left`) does not count.
pub fn check_empty(into: &Path, is_left: impl Fn(&Path) -> bool) -> Result<(), OpsError> {
    let refuse = |problem: String| {
        Err(OpsError::usage(problem, "name a folder that is empty or does not exist yet: nothing there is overwritten"))
    };
    match fs::read_dir(into) {
        Ok(mut entries) => match entries.find(|e| e.as_ref().map_or(true, |e| !is_left(&e.path()))) {
            None => Ok(()),
            Some(Ok(_)) => refuse(format!("{} is not empty", into.display())),
            Some(Err(e)) => Err(OpsError::file("list", into, e)),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => match fs::symlink_metadata(into) {
            Ok(_) => refuse(format!("{} is a symlink that leads nowhere", into.display())),
            Err(_) => Ok(()),
        },
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => refuse(format!("{} is not a folder", into.display())),
        Err(e) => Err(OpsError::file("list", into, e)),
    }
}

/// What a file system has left.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    pub bytes: u64,
    pub inodes: Option<u64>,
}

/// The room where `into` lies or will lie.
pub fn room(into: &Path) -> Result<Room, OpsError> {
    let there = into.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there).map_err(|e| OpsError::file("look for free space at", there, e.into()))?;
    Ok(Room {
        // Some say nothing of their room: what is too much will be an error.
        bytes: if stat.f_blocks > 0 { stat.f_bavail.saturating_mul(stat.f_frsize) } else { u64::MAX },
        // Some file systems have no number of inodes.
        inodes: (stat.f_files > 0).then_some(stat.f_favail),
    })
}

/// What a run has made. Unless it is kept, it is taken away.
pub struct Ground {
    into: PathBuf,
    /// Folders that were made for it, outermost first.
    parents: Vec<PathBuf>,
}

impl Ground {
    /// Makes the folder (0700), and those above it. Of these sources a killed run may have left the beginnings: they go.
    pub fn make(into: &Path, sources: &[&str]) -> Result<Self, OpsError> {
        check_empty(into, |path| sources.iter().any(|s| partial(into, s) == path))?;
        for left in sources.iter().map(|s| partial(into, s)).filter(|p| p.symlink_metadata().is_ok()) {
            remove(&left).map_err(|e| OpsError::file("remove", &left, e))?;
        }
        let mut ground = Self { into: into.to_owned(), parents: Vec::new() };
        let missing: Vec<&Path> = into.ancestors().take_while(|p| !p.exists()).collect();
        for dir in missing.into_iter().rev() {
            if let Err(e) = make_dir(dir) {
                ground.clear();
                return Err(OpsError::file("create folder", dir, e));
            }
            ground.parents.push(dir.to_owned());
        }
        Ok(ground)
    }

    pub fn path(&self) -> &Path {
        &self.into
    }

    /// Takes away all that the run has made. What cannot be removed stays, as everything else of a failed run would.
    pub fn clear(&self) {
        for entry in fs::read_dir(&self.into).into_iter().flatten().flatten() {
            let _ = remove(&entry.path());
        }
        for dir in self.parents.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// A new folder for this run alone.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(dir)
}

/// Removes a file or a tree, also one whose folders forbid it to their owner. Links are not followed.
pub fn remove(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return fs::remove_file(path);
    }
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_up(CWD, path)?;
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

/// Gives this account its rights in every folder of a tree that it has made. Whoever owns the folders by now may put a
/// link in the place of one: each is opened from its parent, and changed by its descriptor.
fn open_up(parent: impl AsFd, name: impl AsRef<Path>) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, name.as_ref(), flags, Mode::empty())?;
    let own = format!("/proc/self/fd/{}", dir.as_raw_fd());
    fs::set_permissions(&own, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(&own)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&dir, entry.file_name())?;
        }
    }
    Ok(())
}

/// Whether a name is one that [`partial`] gives.
pub fn is_partial(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    name.starts_with('.') && name.ends_with(".partial") && path.is_dir() && !path.is_symlink()
}

/// The name under which a source is made: no source's name begins with a dot.
pub fn partial(into: &Path, source: &str) -> PathBuf {
    into.join(format!(".{source}.partial"))
}

/// Where what could be verified of a damaged tree stays: `<source>.damaged`, unless another source has that name.
pub fn damaged(into: &Path, source: &str, is_taken: impl Fn(&str) -> bool) -> PathBuf {
    let mut name = format!("{source}.damaged");
    while is_taken(&name) || into.join(&name).symlink_metadata().is_ok() {
        name.push('_');
    }
    into.join(name)
}

/// Gives what is complete its name. Nothing is replaced.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::RenameFlags;
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system knows the flag.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if to.symlink_metadata().is_err() => {
            fs::rename(from, to)
        }
        other => other.map_err(io::Error::from),
    }
}

/// Makes all that was written below `dir` durable.
pub fn sync(dir: &Path) -> io::Result<()> {
    rustix::fs::syncfs(fs::File::open(dir)?).map_err(io::Error::from)
}

/// A file's temporary name beside its own.
pub fn partial_file(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or(OsStr::new("stream")).to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_run_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("a/b/into");
        let ground = Ground::make(&into, &[]).unwrap();
        fs::create_dir_all(into.join("source/sub")).unwrap();
        fs::write(into.join("source/sub/file"), b"x").unwrap();
        fs::set_permissions(into.join("source/sub"), fs::Permissions::from_mode(0o500)).unwrap();
        ground.clear();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        // A folder that was there stays, empty as it was.
        fs::create_dir(dir.path().join("mine")).unwrap();
        let ground = Ground::make(&dir.path().join("mine"), &[]).unwrap();
        fs::write(dir.path().join("mine/x"), b"x").unwrap();
        ground.clear();
        assert_eq!(fs::read_dir(dir.path().join("mine")).unwrap().count(), 0);
    }

    #[test]
    fn rights_are_given_in_folders_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
        for (name, bits) in [("tree", 0o500), ("tree/sub", 0o711), ("tree/sub/deep", 0o111), ("other", 0o755)] {
            fs::create_dir(at(name)).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(bits | 0o200)).unwrap();
        }
        std::os::unix::fs::symlink(at("other"), at("tree/sub/link")).unwrap();
        open_up(CWD, at("tree")).unwrap();
        assert_eq!(["tree", "tree/sub", "tree/sub/deep", "other"].map(mode), [0o700, 0o700, 0o700, 0o755]);
        // What was a folder a moment ago.
        assert!(open_up(CWD, at("tree/sub/link")).is_err());
        assert_eq!(mode("other"), 0o755);
    }

    #[test]
    fn only_empty_folders_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), b"").unwrap();
        fs::create_dir(at("empty")).unwrap();
        fs::create_dir_all(at("full/x")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        assert!(check_empty(&at("empty"), is_partial).is_ok() && check_empty(&at("new/deep"), is_partial).is_ok());
        for bad in ["file", "full", "link", "file/below"] {
            let e = check_empty(&at(bad), is_partial).unwrap_err();
            assert_eq!(e.kind(), crate::ops::ErrorKind::Usage, "{bad}");
        }
        assert_eq!(damaged(dir.path(), "full", |n| n == "full.damaged"), at("full.damaged_"));
    }
}
