//! The files of a project that nobody else brings back, as the tree that [`crate::sources::trees`] puts in place.
//!
//! Git brings what it tracks, and other sources bring what they name. The rest is made into a small tar in memory, so
//! that owners, modes, and going forward and back through a crash are those of every other tree.

use super::files::StoredFile;
use super::stack::Facts;
use crate::base::cancel::Cancel;
use crate::base::stream::StreamKind;
use crate::policy::Policy;
use crate::policy::model::{SourcePolicy, SourceSpec};
use crate::sources::SourceError;
use crate::sources::extract::Report;
use crate::sources::files::entry::{Entry, Kind, Time};
use crate::sources::files::{LISTING, TAR, frame};
use crate::sources::git;
use crate::sources::placing::Stored;
use crate::sources::streams::{StreamInfo, Streams};
use globset::GlobBuilder;
use ignore::gitignore::GitignoreBuilder;
use serde::{Deserialize, Serialize};
use std::io::{self, Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// All files of a project together; more is no project.
const MOST_BYTES: u64 = 64 << 20;

/// A file that comes back, or a folder above one that is not there today.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    /// Where it really lies.
    pub path: PathBuf,
    /// Absent for a folder.
    pub stream: Option<String>,
    pub bytes: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
}

/// The files of a snapshot that this source has to bring back.
pub(super) fn choose(
    policy: &Policy,
    stored: &Stored<'_>,
    facts: &Facts,
    now: (i64, u32),
    (timeout, cancel): (Duration, &Cancel),
) -> Result<Vec<Piece>, SourceError> {
    let mut pieces: Vec<Piece> = Vec::new();
    let has_git = policy.sources.iter().any(|s| matches!(s.spec, SourceSpec::Git(_)));
    let mut total = 0;
    for file in &facts.files {
        let path = policy.app.root.join(&file.path);
        let covered = policy.sources.iter().map(|s| covers(s, policy, &path)).collect::<Result<Vec<_>, _>>()?;
        if covered.contains(&true) {
            continue;
        }
        // What was tracked then comes with that commit; older snapshots do not tell.
        let tracked = match file.tracked {
            _ if !has_git => false,
            Some(tracked) => tracked,
            None => git::tracks(&policy.app.root, &path, cancel, timeout)?,
        };
        if tracked {
            continue;
        }
        total = file.bytes.saturating_add(total);
        if total > MOST_BYTES {
            return Err(SourceError::problem("the files of the compose project are larger than any project's"));
        }
        let path = real(&path);
        folders(&path, now, &mut pieces)?;
        pieces.push(Piece {
            mtime: time_of(file, &path, stored, now)?,
            stream: Some(file.stream.clone()),
            bytes: file.bytes,
            mode: file.mode & 0o777,
            uid: file.uid,
            gid: file.gid,
            path,
        });
    }
    Ok(pieces)
}

/// Whether another source of the policy brings a path back.
fn covers(source: &SourcePolicy, policy: &Policy, path: &Path) -> Result<bool, SourceError> {
    let bad = |e: String| SourceError::problem(format!("source {:?}: {e}", source.name.as_str()));
    let matches = |pattern: &str| -> Result<bool, SourceError> {
        let glob = GlobBuilder::new(pattern).literal_separator(true).build().map_err(|e| bad(e.to_string()))?;
        let glob = glob.compile_matcher();
        Ok(Path::new(pattern) == path || path.ancestors().any(|p| glob.is_match(p)))
    };
    let ignored = |root: &Path, exclude: &[String]| -> Result<bool, SourceError> {
        let mut builder = GitignoreBuilder::new(root);
        for line in exclude {
            builder.add_line(None, line).map_err(|e| bad(e.to_string()))?;
        }
        let ignore = builder.build().map_err(|e| bad(e.to_string()))?;
        Ok(path.starts_with(root) && ignore.matched_path_or_any_parents(path, false).is_ignore())
    };
    match &source.spec {
        SourceSpec::Env(spec) => {
            if spec.paths.iter().any(|p| Path::new(p) == path) {
                return Ok(true);
            }
            for pattern in &spec.paths {
                if matches(pattern)? {
                    return Ok(!ignored(&policy.app.root, &spec.exclude)?);
                }
            }
            Ok(false)
        }
        SourceSpec::Files(spec) => {
            for pattern in &spec.paths {
                let is_below = path.starts_with(pattern);
                if (is_below || matches(pattern)?) && !(is_below && ignored(Path::new(pattern), &spec.exclude)?) {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// Where a file lies or would lie: links on the way are followed today, because nothing follows them later.
fn real(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    let above = parent.ancestors().find_map(|dir| Some((dir, dir.canonicalize().ok()?)));
    match above {
        Some((dir, real)) => real.join(parent.strip_prefix(dir).unwrap_or(Path::new(""))).join(name),
        None => path.to_owned(),
    }
}

/// The folders above a file that are not there, outermost first, as the one above them is.
fn folders(path: &Path, now: (i64, u32), pieces: &mut Vec<Piece>) -> Result<(), SourceError> {
    let missing: Vec<&Path> = path.ancestors().skip(1).take_while(|dir| !dir.exists()).collect();
    let Some(above) = missing.last().and_then(|dir| dir.parent()) else { return Ok(()) };
    let meta = std::fs::metadata(above).map_err(|source| SourceError::File {
        action: "read",
        path: above.to_owned(),
        source,
    })?;
    for dir in missing.iter().rev().filter(|dir| dir.file_name().is_some()) {
        if !pieces.iter().any(|p| p.path == *dir) {
            pieces.push(Piece {
                path: (*dir).to_owned(),
                stream: None,
                bytes: 0,
                mode: meta.mode() & 0o777,
                uid: meta.uid(),
                gid: meta.gid(),
                mtime: now,
            });
        }
    }
    Ok(())
}

/// The time that the file gets. One whose content is today's keeps today's, so that it is left alone.
fn time_of(file: &StoredFile, path: &Path, stored: &Stored<'_>, now: (i64, u32)) -> Result<(i64, u32), SourceError> {
    let recorded = file.mtime.unwrap_or(now);
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(recorded) };
    if !meta.is_file() || meta.len() != file.bytes {
        return Ok(recorded);
    }
    let Ok(today) = std::fs::read(path) else { return Ok(recorded) };
    let is_same = content(stored, &file.stream, file.bytes)? == today;
    Ok(if is_same { (meta.mtime(), meta.mtime_nsec() as u32) } else { recorded })
}

fn content(stored: &Stored<'_>, stream: &str, bytes: u64) -> Result<Vec<u8>, SourceError> {
    let failed = |source| SourceError::File { action: "read", path: stream.into(), source };
    stored.streams.info(stream)?;
    let mut content = Vec::new();
    stored
        .streams
        .open(stream)
        .map_err(failed)?
        .take(bytes.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 != bytes {
        return Err(SourceError::problem(format!("{stream:?} is not as long as the snapshot says")));
    }
    Ok(content)
}

/// The pieces as a tree's two streams.
pub(super) struct Written {
    tar: Vec<u8>,
    listing: Vec<u8>,
}

impl Written {
    pub fn of(stored: &Stored<'_>, pieces: &[Piece]) -> Result<Self, SourceError> {
        let (mut tar, mut listing) = (Vec::new(), Vec::new());
        for piece in pieces {
            let entry = Entry {
                path: piece.path.as_os_str().as_bytes().iter().copied().skip_while(|b| *b == b'/').collect(),
                kind: if piece.stream.is_some() { Kind::File } else { Kind::Dir },
                size: piece.bytes,
                mode: piece.mode,
                uid: piece.uid,
                gid: piece.gid,
                user: None,
                group: None,
                mtime: Time { seconds: piece.mtime.0, nanos: piece.mtime.1 },
                xattrs: Vec::new(),
            };
            let begin = tar.len() as u64;
            tar.extend(frame::head(&entry, None, false));
            if let Some(stream) = &piece.stream {
                tar.extend(content(stored, stream, piece.bytes)?);
                frame::pad(&mut tar);
            }
            if let Some(line) = entry.listing(begin, tar.len() as u64 - begin) {
                let text = serde_json::to_vec(&line).map_err(|e| SourceError::problem(e.to_string()))?;
                listing.extend(text);
                listing.push(b'\n');
            }
        }
        tar.extend(frame::END_OF_ARCHIVE);
        Ok(Self { tar, listing })
    }
}

impl Streams for Written {
    fn list(&self) -> Vec<StreamInfo> {
        let info =
            |name: &str, kind, bytes: &Vec<u8>| StreamInfo { name: name.into(), kind, length: bytes.len() as u64 };
        vec![info(TAR, StreamKind::Tar, &self.tar), info(LISTING, StreamKind::Listing, &self.listing)]
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        let bytes = match name {
            TAR => &self.tar,
            LISTING => &self.listing,
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Box::new(Cursor::new(bytes.as_slice())))
    }

    fn lay_out(&self, _: &Path) -> Result<Report, SourceError> {
        Err(SourceError::problem("the files of a project are only put in place"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::Role;
    use super::*;
    use crate::sources::held::Held;
    use serde_json::Value;

    fn file(bytes: u64) -> StoredFile {
        let (path, stream) = ("nowhere/compose.yaml".to_owned(), "one".to_owned());
        StoredFile { path, role: Role::Compose, stream, bytes, mode: 0o644, uid: 0, gid: 0, mtime: None, tracked: None }
    }

    /// What the facts say of lengths is said by whoever made the snapshot.
    #[test]
    fn lengths_beyond_all_bounds_are_refused() {
        let held = Held::of("one", *b"services: {}\n");
        let snapshot = "20261121T024039Z-aa941656".parse().unwrap();
        let stored = Stored { snapshot: &snapshot, streams: &held, facts: &Value::Null };
        assert_eq!(content(&stored, "one", 13).unwrap(), b"services: {}\n");
        for wrong in [0, 12, 14, u64::MAX] {
            assert!(content(&stored, "one", wrong).unwrap_err().to_string().contains("not as long as"), "{wrong}");
        }
        // No more is read of a stream than the facts say that it has.
        let long = Held::of("one", vec![b'x'; 1 << 20]);
        let endless = Stored { snapshot: &snapshot, streams: &long, facts: &Value::Null };
        assert!(content(&endless, "one", 1000).is_err() && long.read() == 1001, "{} bytes were read", long.read());
        let policy = crate::sources::compose::shop();
        for lengths in [&[MOST_BYTES + 1][..], &[5, u64::MAX], &[MOST_BYTES, 1]] {
            let files = lengths.iter().map(|bytes| file(*bytes)).collect();
            let facts = Facts { files, ..Facts::default() };
            let said = choose(&policy, &stored, &facts, (0, 0), (Duration::from_secs(1), &Cancel::new())).unwrap_err();
            assert!(said.to_string().contains("larger than any project's"), "{lengths:?}: {said}");
        }
    }
}
