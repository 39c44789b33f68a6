//! What the steps know: made by the plan, and what was looked at last of today's state.

use crate::base::atomic::{self, IfExists};
use crate::sources::placing::{Intent, Scene};
use crate::sources::{SourceError, is_there};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// All repositories of the tree, each before those that lie in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Task {
    pub repositories: Vec<Repository>,
    /// The command that leads to where the tree was, when its head moves.
    pub forward: Option<String>,
}

/// One repository, and what it becomes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Repository {
    /// Its number among those of the tree.
    pub number: usize,
    /// A submodule's path within the outermost tree; empty for that.
    pub path: String,
    pub dir: PathBuf,
    pub git_dir: PathBuf,
    /// A submodule that is not checked out today.
    pub absent: bool,
    pub url: Option<String>,
    pub object_format: String,
    pub commit: String,
    /// The tree of the commit with the recorded edits in it.
    pub target: String,
    pub edits: Option<String>,
    pub bundle: Option<String>,
    /// What the index says of submodules: path and commit.
    pub links: Vec<(String, String)>,
    /// The name that keeps the commit.
    pub keep: String,
}

/// What is checked out today.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Head {
    /// A branch; without a commit before its first one.
    Branch {
        name: String,
        commit: Option<String>,
    },
    Detached {
        commit: String,
    },
}

impl Head {
    pub(super) fn commit(&self) -> Option<&str> {
        match self {
            Head::Branch { commit, .. } => commit.as_deref(),
            Head::Detached { commit } => Some(commit),
        }
    }
}

/// What was there last when it was looked at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Today {
    pub head: Head,
    /// There was an index.
    pub index: bool,
    /// The tree of what is tracked, and of untracked files that are already what they will be.
    pub tree: String,
    /// Nothing differs from what was captured.
    pub same: bool,
    /// What is edited is kept under this name.
    pub dirty: Option<String>,
    pub besides: Vec<Beside>,
    pub attributes: Vec<Attributes>,
}

/// An untracked file that is in the way, and its name meanwhile.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Beside {
    #[serde(with = "hex::serde")]
    pub path: Vec<u8>,
    #[serde(with = "hex::serde")]
    pub beside: Vec<u8>,
}

/// What git does not record of a file or folder that it will write anew.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Attributes {
    #[serde(with = "hex::serde")]
    pub path: Vec<u8>,
    /// With the type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// How far the steps have come: each mark is durable before what it stands for begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mark {
    /// The repository itself is being made.
    Made,
    /// The repository that was made is being removed.
    Leaving,
    /// Files are being written.
    Checkout,
    /// All is as captured.
    Switched,
    /// Files are being written back, on top of what came after.
    Returning,
}

impl Mark {
    fn name(self) -> &'static str {
        match self {
            Mark::Made => "made",
            Mark::Leaving => "leaving",
            Mark::Checkout => "checkout",
            Mark::Switched => "switched",
            Mark::Returning => "returning",
        }
    }
}

pub(super) fn task_of(intent: &Intent) -> Result<Task, SourceError> {
    serde_json::from_value(intent.state.clone()).map_err(|e| {
        SourceError::problem(format!("what was planned for source {:?} cannot be read: {e}", intent.source.as_str()))
    })
}

/// One repository's files in the transaction's folder.
pub(super) struct Notes<'a> {
    folder: &'a Path,
    prefix: String,
}

impl<'a> Notes<'a> {
    pub(super) fn new(scene: &Scene<'a>, repository: &Repository) -> Self {
        Self { folder: scene.folder, prefix: format!("{}.{}", scene.name, repository.number) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}.{name}", self.prefix))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), SourceError> {
        let path = self.path(name);
        let written = atomic::write(&path, bytes, 0o600, IfExists::Replace);
        written.map_err(|source| SourceError::File { action: "write", path, source })
    }

    fn remove(&self, name: &str) -> Result<(), SourceError> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(SourceError::File { action: "remove", path, source: e })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn set(&self, mark: Mark) -> Result<(), SourceError> {
        self.write(mark.name(), b"")
    }

    pub(super) fn clear(&self, mark: Mark) -> Result<(), SourceError> {
        self.remove(mark.name())
    }

    pub(super) fn has(&self, mark: Mark) -> Result<bool, SourceError> {
        is_there(&self.path(mark.name()))
    }

    pub(super) fn remember(&self, today: &Today) -> Result<(), SourceError> {
        let bytes = serde_json::to_vec(today).map_err(|e| SourceError::problem(e.to_string()))?;
        self.write("today", &bytes)
    }

    /// Absent when nothing has been looked at, so nothing has been switched.
    pub(super) fn today(&self) -> Result<Option<Today>, SourceError> {
        let path = self.path("today");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SourceError::File { action: "read", path, source }),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| SourceError::problem(format!("{} cannot be read: {e}", path.display())))
    }

    pub(super) fn forget(&self) -> Result<(), SourceError> {
        ["today", "made", "leaving", "returning", "switched", "checkout"].iter().try_for_each(|name| self.remove(name))
    }
}
