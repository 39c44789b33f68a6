//! What a person means by the name of a commit: a look at the live repository.

use super::tool::Git;
use crate::base::cancel::Cancel;
use crate::sources::SourceError;
use chrono::{DateTime, Utc};
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);

/// A commit of the live repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub id: String,
    pub time: DateTime<Utc>,
}

/// The commit that a tag, branch or abbreviated id names today; absent where none is, or no repository.
pub fn commit_named(root: &Path, name: &str, cancel: &Cancel) -> Result<Option<Commit>, SourceError> {
    let Ok(git) = Git::open(root, cancel, Instant::now() + LIMIT)? else { return Ok(None) };
    let wanted = format!("{name}^{{commit}}");
    let Some(id) = git.maybe(&["rev-parse", "--verify", "--quiet", "--end-of-options", &wanted])? else {
        return Ok(None);
    };
    let text = git.maybe(&["show", "--no-patch", "--format=%ct", &id])?.unwrap_or_default();
    let time = text.trim().parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    Ok(time.map(|time| Commit { id, time }))
}
