//! Other contents for single files of a tree that is put back: env files that keep today's secrets.
//!
//! They lie in the transaction's folder (`<source>.overlay/`, 0700, each file 0600 under the hash of its path), because
//! the journal holds no contents. They are written before `prepare`, read by it, and go with the lists when the
//! transaction's things are discarded. Mode, owner and attributes are the captured ones.

use super::super::SourceError;
use super::super::files::entry::Time;
use super::job::Job;
use crate::base::atomic;
use crate::base::ids::SourceName;
use std::fs::DirBuilder;
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// No file that is laid over another is larger.
const MAX_FILE: u64 = 1 << 20;

/// What takes the place of a captured content.
pub(super) struct Over {
    pub content: Vec<u8>,
    /// When it was made.
    pub mtime: Time,
}

/// From now on `path` (absolute, captured by the source) comes back with this content. `folder` is the transaction's.
pub fn lay_over(folder: &Path, source: &SourceName, path: &Path, content: &[u8]) -> Result<(), SourceError> {
    if content.len() as u64 > MAX_FILE {
        return Err(SourceError::problem(format!("{} would be larger than {MAX_FILE} bytes", path.display())));
    }
    let dir = dir_of(folder, source.as_str());
    let failed = |action, path: &Path, source| SourceError::File { action, path: path.into(), source };
    match DirBuilder::new().mode(0o700).create(&dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(failed("create folder", &dir, e)),
        _ => {}
    }
    let file = dir.join(name_of(path.as_os_str().as_bytes()));
    atomic::write(&file, content, 0o600, atomic::IfExists::Replace).map_err(|e| failed("write", &file, e))?;
    atomic::fsync_dir(folder).map_err(|e| failed("make durable", folder, e))
}

fn dir_of(folder: &Path, source: &str) -> PathBuf {
    folder.join(format!("{source}.overlay"))
}

fn name_of(path: &[u8]) -> String {
    let start = path.iter().position(|b| *b != b'/').unwrap_or(path.len());
    hex::encode(&blake3::hash(&path[start..]).as_bytes()[..16])
}

/// What lies over a path of the tar.
pub(super) fn find(job: &Job, path: &[u8]) -> Result<Option<Over>, SourceError> {
    let file = dir_of(&job.folder, &job.source).join(name_of(path));
    let failed = |source| SourceError::File { action: "read", path: file.clone(), source };
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let opened = match std::fs::File::options().read(true).custom_flags(nofollow).open(&file) {
        Ok(opened) => opened,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let meta = opened.metadata().map_err(failed)?;
    let mut content = Vec::new();
    opened.take(MAX_FILE + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 != meta.len() {
        return Err(failed(io::Error::other("it changes while it is read")));
    }
    Ok(Some(Over { content, mtime: Time { seconds: meta.mtime(), nanos: meta.mtime_nsec() as u32 } }))
}

/// Removes all of a source.
pub(super) fn forget(job: &Job) -> Result<(), SourceError> {
    let dir = dir_of(&job.folder, &job.source);
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(SourceError::File { action: "remove", path: dir, source: e }),
        _ => Ok(()),
    }
}
