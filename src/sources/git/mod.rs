//! Source `git`: which commit a tree is at, what was edited, and (by default) the commits themselves.
//!
//! Git runs as the owner of the repository, never as root in somebody's tree, with hooks and file monitors off and
//! nothing fetched; a capture writes nothing in the tree or its repository. When its snapshot stands, the commit gets a name
//! of ours in the repository ([`refs`]), so that it stays there. A submodule is captured as a repository of its own.
//!
//! Streams: `edits.patch` (tracked edits, staged or not, against the commit), `repository.bundle` (every ref and what it
//! reaches), and for the nth submodule `submodule-<n>.patch` and `submodule-<n>.bundle`. Untracked files are named in the
//! facts and are not content: what must come back of them belongs into a `files` source.

mod anew;
mod bundle;
mod look;
mod placing;
mod proof;
mod refs;
mod tool;
mod tree;
mod untracked;

pub use anew::{is_unfinished, make as make_anew};
pub use look::{Commit, commit_named};
pub use placing::{GitPlacing, give_up, refuse_unfinished};
pub use proof::GitProof;
pub use refs::{release, tag, tag_stands};
pub use untracked::{By, Kept, kept};

use super::{Capture, Captured, Source, SourceError};
use crate::base::cancel::Cancel;
use crate::base::ids::{PolicyName, SnapshotId, SourceName};
use crate::place::PlaceError;
use crate::policy::model::{App, GitSpec, SourcePolicy};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tool::{Git, NotARepository};

/// Submodules within submodules are followed this deep.
const MAX_DEPTH: usize = 8;

pub struct GitSource {
    name: SourceName,
    root: PathBuf,
    policy: PolicyName,
    bundle: bool,
    implicit: bool,
    timeout: Duration,
}

impl GitSource {
    pub fn new(policy: &SourcePolicy, spec: &GitSpec, app: &App) -> Self {
        Self {
            name: policy.name.clone(),
            root: app.root.clone(),
            policy: app.name.clone(),
            bundle: spec.bundle,
            implicit: policy.implicit,
            timeout: policy.timeout,
        }
    }

    fn open(&self, cancel: &Cancel) -> Result<Result<Git, NotARepository>, SourceError> {
        let git = Git::open(&self.root, cancel, Instant::now() + self.timeout)?;
        match git {
            Err(NotARepository(why)) if !self.implicit => Err(SourceError::hint(
                format!("{} is not a git repository: {why}", self.root.display()),
                "switch the source off with enabled = false, and capture the code by a source of kind \"files\"",
            )),
            other => Ok(other),
        }
    }
}

impl Source for GitSource {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "git"
    }

    fn describe(&self) -> String {
        let what = if self.bundle { "commit, edits and history" } else { "commit and edits" };
        format!("{what} of {}", self.root.display())
    }

    fn probe(&self, cancel: &Cancel) -> Result<(), SourceError> {
        self.open(cancel).map(drop)
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        let git = match self.open(cx.cancel)? {
            Ok(git) => git,
            Err(NotARepository(why)) => {
                let note = format!("{} is not a git repository ({why}): no code was captured", self.root.display());
                return Ok(Captured { facts: json!({ "present": false }), warnings: vec![note] });
            }
        };
        let mut run = Run { cx, bundle: self.bundle, warnings: Vec::new(), submodules: 0 };
        let mut facts = run.repository(&git, None, 0)?;
        if let Value::Object(map) = &mut facts {
            map.insert("present".into(), true.into());
            map.insert("git_version".into(), git.version()?.into());
            map.insert("ran_as".into(), git.account().into());
        }
        Ok(Captured { facts, warnings: run.warnings })
    }

    fn keep(&self, snapshot: &SnapshotId, facts: &Value, cancel: &Cancel) -> Result<(), SourceError> {
        refs::keep(&self.root, &self.policy, snapshot, facts, cancel)
    }
}

/// Whether the repository of `root` tracks a file: then the code brings it back. It is only read.
pub(super) fn tracks(root: &Path, file: &Path, cancel: &Cancel, timeout: Duration) -> Result<bool, SourceError> {
    match Git::open(root, cancel, Instant::now() + timeout)? {
        Ok(git) => match git.text(&["ls-files", "--error-unmatch", "--", &file.to_string_lossy()]) {
            Ok(_) => Ok(true),
            // Not tracked, or outside of the tree.
            Err(PlaceError::Failed { .. }) => Ok(false),
            Err(e) => Err(explain(e)),
        },
        Err(_) => Ok(false),
    }
}

/// One capture under way.
struct Run<'a, 'b> {
    cx: &'a Capture<'b>,
    bundle: bool,
    warnings: Vec<String>,
    /// Submodules met so far: they number the streams.
    submodules: usize,
}

/// A submodule as its parent knows it.
struct Submodule {
    /// Path within the outermost tree.
    path: String,
    /// The commit that the parent's index names.
    commit: String,
    number: usize,
}

impl Run<'_, '_> {
    /// Captures one repository and its submodules; its facts.
    fn repository(&mut self, git: &Git, of: Option<&Submodule>, depth: usize) -> Result<Value, SourceError> {
        let what = of.map_or_else(|| "the tree".to_owned(), |s| format!("submodule {}", s.path));
        let stream = |suffix: &str| match of {
            None if suffix == "patch" => "edits.patch".to_owned(),
            None => format!("repository.{suffix}"),
            Some(s) => format!("submodule-{}.{suffix}", s.number),
        };
        let head = tree::head(git)?;
        let status = tree::status(git)?;
        if !status.unmerged.is_empty() {
            self.warnings.push(format!("{what} has {} files with unresolved conflicts", status.unmerged.len()));
        }
        let edits = match status.edited.is_empty() && status.unmerged.is_empty() {
            true => Value::Null,
            false => tree::store_edits(self.cx, git, head.as_ref(), &stream("patch"))?,
        };
        let refs = bundle::refs(git)?;
        let partial = tree::is_partial(git)?;
        if partial && self.bundle {
            self.warnings.push(format!("{what} is a partial clone: its history is not here to be captured"));
        }
        let bundle = match self.bundle && !partial && !(refs.is_empty() && head.is_none()) {
            true => bundle::store(self.cx, git, &refs, head.as_ref(), &stream("bundle"))?,
            false => Value::Null,
        };
        let shallow = tree::shallow(git)?;
        if !shallow.is_empty() && self.bundle {
            self.warnings.push(format!("{what} is a shallow clone: older commits are not here to be captured"));
        }
        let lfs = tree::lfs(git)?;
        if lfs.count > 0 {
            self.warnings.push(format!(
                "{what} has {} files in git LFS: the bundle holds their pointers, not their content",
                lfs.count
            ));
        }
        let submodules = self.submodules(git, of, depth)?;
        Ok(json!({
            "toplevel": git.toplevel(),
            "object_format": git.object_format()?,
            "head": head.as_ref().map(tree::Head::facts),
            "branch": tree::branch(git)?,
            "tags": if head.is_some() { tree::tags(git)? } else { Vec::new() },
            "remotes": tree::remotes(git)?,
            "dirty": !edits.is_null(),
            "edited": status.edited,
            "unmerged": status.unmerged,
            "edits": edits,
            "bundle": bundle,
            "shallow": shallow,
            "partial": partial,
            "untracked": status.untracked,
            "lfs": lfs,
            "submodules": submodules,
        }))
    }

    fn submodules(&mut self, git: &Git, of: Option<&Submodule>, depth: usize) -> Result<Vec<Value>, SourceError> {
        let mut list = Vec::new();
        let known = tree::gitmodules(git)?;
        for (path, commit) in tree::gitlinks(git)? {
            self.cx.cancel.check()?;
            let full = of.map_or_else(|| path.clone(), |parent| format!("{}/{path}", parent.path));
            self.submodules += 1;
            let submodule = Submodule { path: full, commit, number: self.submodules };
            let url = known.iter().find(|(p, _)| *p == path).map(|(_, url)| url.clone());
            let inner = if depth < MAX_DEPTH { git.submodule(&path)? } else { None };
            let repository = match inner {
                Some(inner) => self.repository(&inner, Some(&submodule), depth + 1)?,
                None => Value::Null,
            };
            list.push(json!({
                "path": submodule.path,
                "commit": submodule.commit,
                "url": url,
                "repository": repository,
            }));
        }
        Ok(list)
    }
}

/// The way out of what git itself refuses.
fn explain(error: PlaceError) -> SourceError {
    match error {
        PlaceError::Failed { stderr, .. } if stderr.contains("dubious ownership") => SourceError::hint(
            "git does not trust this tree: it belongs to another account",
            "run lifeboat as root or as the tree's owner, or trust it with `git config --global --add safe.directory DIR`",
        ),
        other => SourceError::Place(other),
    }
}
