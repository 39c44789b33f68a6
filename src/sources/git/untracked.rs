//! Which files of a checkout git keeps, and which it does not: what is found beside them must be captured otherwise.

use super::tool::Git;
use crate::base::cancel::Cancel;
use crate::sources::SourceError;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// More than any checkout of an application has.
const MOST: usize = 500_000;

/// A checkout's files, by who keeps them.
#[derive(Debug, Default, Clone)]
pub struct Kept {
    /// Absolute.
    tracked: BTreeSet<PathBuf>,
    /// Files and whole folders that hold nothing tracked.
    others: Vec<PathBuf>,
}

/// Whether git keeps what lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// All of it, with its edits.
    Git,
    /// Some files are git's and some are not.
    Partly,
    Nobody,
}

impl Kept {
    /// Who keeps a path and what is below it.
    pub fn by(&self, path: &Path) -> By {
        let below = self.tracked.range(path.to_owned()..).next().is_some_and(|first| first.starts_with(path));
        let other = self.others.iter().any(|o| path.starts_with(o) || o.starts_with(path));
        match (below, other) {
            (true, false) => By::Git,
            (true, true) => By::Partly,
            (false, _) => By::Nobody,
        }
    }

    /// Files below a path, or there, that git keeps.
    pub fn tracked<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Path> {
        self.tracked.range(path.to_owned()..).take_while(move |p| p.starts_with(path)).map(PathBuf::as_path)
    }

    /// What git does not keep: files, and folders that hold nothing tracked.
    pub fn others(&self) -> &[PathBuf] {
        &self.others
    }
}

/// The files of the checkout that `root` is or belongs to; absent where there is none.
pub fn kept(root: &Path, cancel: &Cancel) -> Result<Option<Kept>, SourceError> {
    let Ok(git) = Git::open(root, cancel, Instant::now() + Duration::from_secs(60))? else { return Ok(None) };
    let top = PathBuf::from(git.toplevel());
    // Paths are said as the caller says the root, whatever links lead there.
    let top = match (top.canonicalize(), root.canonicalize()) {
        (Ok(real), Ok(here)) if here == real => root.to_owned(),
        _ => top,
    };
    let mut kept = Kept::default();
    let read = |arguments: &[&str], take: &mut dyn FnMut(PathBuf)| {
        let mut count = 0;
        git.each(arguments, |record| {
            count += 1;
            let name = record.strip_suffix(b"/").unwrap_or(record);
            take(top.join(OsStr::from_bytes(name)));
            Ok(count < MOST)
        })
    };
    read(&["ls-files", "-z"], &mut |path| {
        kept.tracked.insert(path);
    })?;
    let mut others = Vec::new();
    read(&["ls-files", "-z", "--others", "--directory"], &mut |path| others.push(path))?;
    kept.others = others;
    Ok(Some(kept))
}
