//! Names of ours and of the user's in the application's repository.
//!
//! `refs/lifeboat/<policy>/<snapshot>` keeps a captured commit from `git gc` for as long as the snapshot is there. These
//! names are in no bundle and in no facts, so they change nothing of what the next snapshot stores. Each is made and
//! removed by git itself, as the owner of the tree.

use super::explain;
use super::tool::{Git, NotARepository, mask_of};
use super::tree::gitlinks;
use crate::base::cancel::Cancel;
use crate::base::ids::{PolicyName, SnapshotId, Tag};
use crate::place::PlaceError;
use crate::sources::SourceError;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// Names a repository gets or loses in one go take no longer.
const LIMIT: Duration = Duration::from_secs(60);

fn keeper(policy: &PolicyName, snapshot: &SnapshotId) -> String {
    format!("refs/lifeboat/{policy}/{snapshot}")
}

fn open(root: &Path, cancel: &Cancel) -> Result<Result<Git, NotARepository>, SourceError> {
    Ok(match Git::open(root, cancel, Instant::now() + LIMIT)? {
        Ok(git) => Ok(as_open(git)?),
        Err(why) => Err(why),
    })
}

/// New files are as open as the repository is.
fn as_open(git: Git) -> Result<Git, SourceError> {
    let dir = git.text(&["rev-parse", "--absolute-git-dir"]).map_err(explain)?;
    Ok(git.masked(mask_of(Path::new(&dir))))
}

/// Keeps what a snapshot captured: the commit of the tree and of each submodule.
pub(super) fn keep(
    root: &Path,
    policy: &PolicyName,
    snapshot: &SnapshotId,
    facts: &Value,
    cancel: &Cancel,
) -> Result<(), SourceError> {
    match open(root, cancel)? {
        Ok(git) => keep_one(&git, "", &keeper(policy, snapshot), facts),
        Err(_) => Ok(()),
    }
}

fn keep_one(git: &Git, path: &str, name: &str, facts: &Value) -> Result<(), SourceError> {
    if let Some(commit) = facts["head"]["commit"].as_str() {
        git.text(&["update-ref", name, commit]).map_err(explain)?;
    }
    for submodule in facts["submodules"].as_array().into_iter().flatten() {
        let inside = submodule["path"].as_str().and_then(|p| p.strip_prefix(path)).unwrap_or_default();
        let inner = match submodule["repository"].is_null() {
            true => None,
            false => git.submodule(inside.trim_start_matches('/'))?,
        };
        if let Some(inner) = inner {
            let full = submodule["path"].as_str().unwrap_or_default();
            keep_one(&as_open(inner)?, full, name, &submodule["repository"])?;
        }
    }
    Ok(())
}

/// Lets go what snapshots kept that are no more. What is not there is no error.
pub fn release(root: &Path, policy: &PolicyName, snapshots: &[SnapshotId], cancel: &Cancel) -> Result<(), SourceError> {
    match open(root, cancel)? {
        Ok(git) => release_one(&git, &snapshots.iter().map(|s| keeper(policy, s)).collect::<Vec<_>>(), 0),
        Err(_) => Ok(()),
    }
}

fn release_one(git: &Git, names: &[String], depth: usize) -> Result<(), SourceError> {
    let there = git.text(&["for-each-ref", "--format=%(refname)", "refs/lifeboat/"]).map_err(explain)?;
    for name in there.lines().filter(|name| names.iter().any(|n| n == name)) {
        git.text(&["update-ref", "-d", name]).map_err(explain)?;
    }
    if depth < super::MAX_DEPTH {
        for (path, _) in gitlinks(git)? {
            if let Some(inner) = git.submodule(&path)? {
                release_one(&as_open(inner)?, names, depth + 1)?;
            }
        }
    }
    Ok(())
}

/// Whether a tag can stand at the commit that is checked out; `true` when it does already.
pub fn tag_stands(root: &Path, tag: &Tag, cancel: &Cancel) -> Result<bool, SourceError> {
    at_head(root, tag, cancel).map(|(_, stands)| stands)
}

/// Gives the commit that is checked out a (light) tag. A tag is never moved: one that is elsewhere is an error.
pub fn tag(root: &Path, tag: &Tag, cancel: &Cancel) -> Result<(), SourceError> {
    match at_head(root, tag, cancel)? {
        (_, true) => Ok(()),
        (git, false) => git.text(&["tag", "--", tag.as_str(), "HEAD"]).map(drop).map_err(explain),
    }
}

fn at_head(root: &Path, tag: &Tag, cancel: &Cancel) -> Result<(Git, bool), SourceError> {
    let git = open(root, cancel)?.map_err(|NotARepository(why)| {
        SourceError::hint(
            format!("{} is not a git repository: {why}", root.display()),
            "leave --git-tag out: the snapshot has its tag all the same",
        )
    })?;
    let name = format!("refs/tags/{tag}");
    match git.text(&["check-ref-format", &name]) {
        Ok(_) => {}
        Err(PlaceError::Failed { .. }) => {
            return Err(SourceError::hint(
                format!("{tag:?} is no name for a git tag"),
                "git check-ref-format says what is",
            ));
        }
        Err(e) => return Err(explain(e)),
    }
    let commit_of = |name: &str| git.maybe(&["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")]);
    let head = commit_of("HEAD")?.ok_or_else(|| {
        SourceError::hint(format!("{} has no commit that a tag could name", root.display()), "commit first")
    })?;
    let there = git.maybe(&["rev-parse", "--verify", "--quiet", &name])?;
    match (there, commit_of(&name)?) {
        (None, _) => Ok((git, false)),
        (Some(_), Some(at)) if at == head => Ok((git, true)),
        (Some(id), at) => Err(SourceError::hint(
            format!("git tag {tag} stands at {} already, and {head} is checked out", at.unwrap_or(id)),
            "a tag is never moved: take another name, or leave --git-tag out",
        )),
    }
}
