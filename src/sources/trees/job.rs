//! What is put back where: everything that a step needs to know, so that any process can do it.

use super::super::SourceError;
use super::super::files::entry::display;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a part of the tar lies on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The first name of its paths in the tar (a volume's name); empty for paths of the host.
    pub prefix: String,
    pub dir: PathBuf,
}

/// One source's trees, to be put back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The transaction's id and the source's name, which make the name of the folders beside.
    pub id: String,
    pub source: String,
    pub bases: Vec<Base>,
    /// Paths that the policy names, as they stand in the tar (no leading slash): only they and what is below get the
    /// captured metadata; folders above them are made when they are missing, and never changed.
    pub named: Vec<PathBuf>,
    /// What today's policy lets a snapshot put back without a word; empty where every base is the source's own. What
    /// lies elsewhere is told in the plan: whoever has the host's key can sign a snapshot that has anything.
    #[serde(default)]
    pub trusted: Vec<PathBuf>,
    /// Entries elsewhere that the plan has told of.
    #[serde(default)]
    pub strays: u64,
    /// Folders that the folder beside shall rather not lie in, such as a checkout.
    pub outside: Vec<PathBuf>,
    /// Only these paths of the tar, and what is below them; empty for all.
    pub paths: Vec<PathBuf>,
    pub exact: bool,
    pub privileged: bool,
    /// What a capture leaves out, and `exact` must not remove.
    pub exclude: Vec<String>,
    pub never: Vec<PathBuf>,
    pub one_file_system: bool,
    /// Folders in which the folders of the transaction are made: one for each file system.
    pub stages: Vec<PathBuf>,
    /// The transaction's own folder, for the list.
    pub folder: PathBuf,
}

/// How a folder beside the live tree begins; no capture takes it.
const STAGING: &[u8] = b".lifeboat-";

/// Whether a name is that of a folder that a transaction keeps beside the live tree.
pub fn is_staging(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(STAGING) else { return false };
    rest.len() > 16 && rest[..8].iter().all(u8::is_ascii_digit) && rest[8] == b'T' && rest[15] == b'Z'
}

impl Job {
    pub fn staging_name(&self) -> String {
        format!(".lifeboat-{}.{}", self.id, self.source)
    }

    /// The list of what has to be done.
    pub fn list(&self) -> PathBuf {
        self.folder.join(format!("{}.list", self.source))
    }

    /// Paths that have to be laid out again.
    pub fn redo(&self) -> PathBuf {
        self.folder.join(format!("{}.redo", self.source))
    }

    /// Whether a path of the tar is put back.
    pub fn takes(&self, path: &[u8]) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|p| is_at_or_below(path, p))
    }

    /// Whether a folder of the tar is only on the way to what is put back.
    pub fn leads(&self, path: &[u8]) -> bool {
        self.paths.iter().any(|p| is_at_or_below(p.as_os_str().as_bytes(), Path::new(OsStr::from_bytes(path))))
    }

    /// Whether a folder is the source's own, and not one above what it names.
    pub fn owns(&self, path: &[u8]) -> bool {
        self.named.iter().any(|n| is_at_or_below(path, n))
    }

    /// Whether a path lies where today's policy does not look.
    pub fn strays(&self, path: &[u8]) -> bool {
        !self.trusted.is_empty() && !self.trusted.iter().any(|t| is_at_or_below(path, t))
    }

    /// The path on disk, for messages.
    pub fn display(&self, path: &[u8]) -> PathBuf {
        let (base, rest) = self.base_of(path).map_or((Path::new("/"), path), |(at, rest)| (&*self.bases[at].dir, rest));
        base.join(OsStr::from_bytes(rest))
    }

    /// The base that a path lies below, and the rest of the path.
    pub fn base_of<'p>(&self, path: &'p [u8]) -> Option<(usize, &'p [u8])> {
        self.bases.iter().enumerate().find_map(|(at, base)| {
            if base.prefix.is_empty() {
                return Some((at, path));
            }
            let rest = path.strip_prefix(base.prefix.as_bytes())?;
            match rest.split_first() {
                None => Some((at, rest)),
                Some((b'/', rest)) => Some((at, rest)),
                Some(_) => None,
            }
        })
    }

    /// The names of a path below its base; refuses what could lead elsewhere.
    pub fn names<'p>(&self, path: &'p [u8]) -> Result<(usize, Vec<&'p [u8]>), SourceError> {
        let refuse = |why: &str| SourceError::problem(format!("the snapshot has {why}: {}", display(path)));
        if path.is_empty() || path.starts_with(b"/") || path.contains(&0) {
            return Err(refuse("an impossible path"));
        }
        let (base, rest) =
            self.base_of(path).ok_or_else(|| refuse("a path that lies in none of the source's places"))?;
        let names: Vec<&[u8]> = rest.split(|b| *b == b'/').filter(|n| !n.is_empty()).collect();
        if names.iter().any(|n| *n == b".." || *n == b".") {
            return Err(refuse("a path that leads elsewhere"));
        }
        Ok((base, names))
    }
}

fn is_at_or_below(path: &[u8], dir: &Path) -> bool {
    let dir = dir.as_os_str().as_bytes();
    match path.strip_prefix(dir) {
        Some(rest) => dir.is_empty() || rest.is_empty() || rest[0] == b'/',
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lie_in_one_base_and_never_outside() {
        let base = |prefix: &str, dir: &str| Base { prefix: prefix.into(), dir: dir.into() };
        let job = Job {
            id: "20261119T020000Z-1a2b3c4d".into(),
            source: "uploads".into(),
            bases: vec![base("storage", "/v/storage/_data"), base("data", "/v/data/_data")],
            named: vec!["storage".into()],
            trusted: vec!["storage/a".into()],
            strays: 0,
            outside: vec![],
            paths: vec!["storage/a".into()],
            exact: false,
            privileged: false,
            exclude: vec![],
            never: vec![],
            one_file_system: false,
            stages: vec![],
            folder: "/f".into(),
        };
        assert_eq!(job.display(b"storage/a/b"), Path::new("/v/storage/_data/a/b"));
        assert_eq!(job.names(b"storage").unwrap(), (0, vec![]));
        for bad in [&b"storage-2/x"[..], b"storage/../data/x", b"/storage/x", b"", b"storage/a\0b", b"storage/./x"] {
            assert!(job.names(bad).is_err(), "{}", display(bad));
        }
        assert!(job.takes(b"storage/a") && job.takes(b"storage/a/b") && !job.takes(b"storage/ab"));
        assert!(job.leads(b"storage") && job.leads(b"storage/a") && !job.leads(b"storage/a/b"));
        assert!(job.strays(b"storage/ab") && job.strays(b"storage") && !job.strays(b"storage/a/b"));
        assert!(job.owns(b"storage/z") && !job.owns(b"data"));
        assert!(is_staging(job.staging_name().as_bytes()));
        assert!(!is_staging(b".lifeboat-0011223344556677.tmp") && !is_staging(b".lifeboat-x"));
    }
}
