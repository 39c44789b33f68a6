//! Files that are there completely or not at all.
//!
//! Write order (must): temporary file in the same folder, fsync, rename or link, fsync of the folder. What a killed
//! process left under a temporary name goes with a later write of the same file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// No write takes so long: what is older was left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);

/// What shall happen when the name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// The new file takes the place of the old one.
    Replace,
    /// `io::ErrorKind::AlreadyExists`, and the old file stays as it is.
    Fail,
}

/// How the temporary names of a file begin.
fn beginning(path: &Path) -> io::Result<String> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path has no file name"))?;
    Ok(format!(".{}.", name.to_string_lossy().chars().take(80).collect::<String>()))
}

fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    let random: [u8; 8] = crate::base::ids::random_bytes()?;
    Ok(path.with_file_name(format!("{}{}.tmp", beginning(path)?, hex::encode(random))))
}

/// Removes what a process that was killed between writing and renaming has left. Nobody depends on it: what cannot be
/// listed or removed stays.
fn remove_left_behind(dir: &Path, path: &Path) {
    let Ok(beginning) = beginning(path) else { return };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().and_then(|n| n.strip_prefix(&beginning)).is_some_and(is_random) {
            remove_if_old(&entry);
        }
    }
}

/// The same for a folder whose files are each written once: no later write of the same file would do it.
pub fn remove_all_left_behind(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().and_then(|n| Some(n.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?.1));
        if ours.is_some_and(|random| is_random(&format!("{random}.tmp"))) {
            remove_if_old(&entry);
        }
    }
}

/// Whether this is how the temporary name of a file ends.
fn is_random(end: &str) -> bool {
    end.strip_suffix(".tmp").is_some_and(|r| r.len() == 16 && r.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn remove_if_old(entry: &fs::DirEntry) {
    let old = || {
        let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some(meta.modified().ok()?.elapsed().ok()? > LEFT_BEHIND)
    };
    if old() == Some(true) {
        let _ = fs::remove_file(entry.path());
    }
}

/// Makes what a folder lists durable.
pub fn fsync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes `bytes` to `path` with `mode`, durable when it returns.
pub fn write(path: &Path, bytes: &[u8], mode: u32, if_exists: IfExists) -> io::Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if if_exists == IfExists::Replace {
        remove_left_behind(dir, path);
    }
    write_file(path, bytes, mode, if_exists, true)?;
    fsync_dir(dir)
}

/// The same for what may be lost: nobody waits for the disk, and after a crash the file may be the old one, torn or gone.
pub fn write_unsynced(path: &Path, bytes: &[u8], mode: u32, if_exists: IfExists) -> io::Result<()> {
    write_file(path, bytes, mode, if_exists, false)
}

fn write_file(path: &Path, bytes: &[u8], mode: u32, if_exists: IfExists, sync: bool) -> io::Result<()> {
    let tmp = temporary_beside(path)?;
    let result = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp)?;
        // The process's mask must not take from what was asked for.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        if sync {
            file.sync_all()?;
        }
        match if_exists {
            IfExists::Replace => fs::rename(&tmp, path),
            IfExists::Fail => link_new(&tmp, path),
        }
    })();
    if result.is_err() || if_exists == IfExists::Fail {
        // The temporary name is ours alone; losing the race to remove it costs nothing.
        let _ = fs::remove_file(&tmp);
    }
    result
}

/// Gives `tmp` the name `path`, refusing to replace; on file systems without hard links by `renameat2(NOREPLACE)`.
fn link_new(tmp: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(tmp, path) {
        Err(e) if matches!(e.raw_os_error(), Some(code) if code == rustix::io::Errno::PERM.raw_os_error() || code == rustix::io::Errno::OPNOTSUPP.raw_os_error()) => {
            rustix::fs::renameat_with(rustix::fs::CWD, tmp, rustix::fs::CWD, path, rustix::fs::RenameFlags::NOREPLACE)
                .map_err(io::Error::from)
        }
        other => other,
    }
}

/// Creates a folder and its parents, 0700, durable when it returns.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_private_dir(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        other => other?,
    }
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fsync_dir(parent),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_to_replace_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"one", 0o600, IfExists::Fail).unwrap();
        let again = write(&path, b"two", 0o600, IfExists::Fail).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write(&path, b"three", 0o600, IfExists::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        // A killed process's own goes, once it is old; another file's, or a fresh one, does not.
        let make = |name: &str, hours: u64| {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
        };
        make(".a.0123456789abcdef.tmp", 2);
        let others = [(".a.0123456789abcdee.tmp", 0), (".b.0123456789abcdef.tmp", 2), (".a.mine.tmp", 2)];
        others.iter().for_each(|(name, hours)| make(name, *hours));
        write(&path, b"four", 0o600, IfExists::Replace).unwrap();
        assert!(!dir.path().join(".a.0123456789abcdef.tmp").exists());
        assert!(others.iter().all(|(name, _)| dir.path().join(name).exists()));
        remove_all_left_behind(dir.path());
        assert!(!dir.path().join(".b.0123456789abcdef.tmp").exists() && path.exists());
        assert!(dir.path().join(".a.mine.tmp").exists() && dir.path().join(".a.0123456789abcdee.tmp").exists());
    }
}
