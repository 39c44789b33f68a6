//! Git in one repository for one transaction: indexes of our own, and objects that may stay beside.
//!
//! The indexes lie in `<git dir>/lifeboat/<transaction>`, on the file system of the real one, so that one takes the place
//! of the other by a rename. A plan has a scratch folder instead, and new objects go there too: nothing in the
//! repository is written.

use super::super::anew::head as bundle_head;
use super::super::explain;
use super::super::tool::{Git, mask_of};
use super::intent::{Head, Repository};
use crate::base::cancel::Cancel;
use crate::place::account::Account;
use crate::sources::SourceError;
use crate::sources::streams::Streams;
use std::io::{self, BufReader, Cursor};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The variable that marks our gits. Hooks know the transaction by another one: what a hook leaves running is not ours to
/// wait for, and not ours to end.
pub(super) const MARK: &str = "LIFEBOAT_GIT_OF";
pub(super) const LINK: &str = "160000";

/// A line of `git diff-tree --raw`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub path: Vec<u8>,
    pub status: u8,
    pub old_mode: String,
    pub new_mode: String,
    pub new_id: String,
}

impl Change {
    pub(super) fn is_link(&self) -> bool {
        self.old_mode == LINK || self.new_mode == LINK
    }
}

pub(super) struct Ground {
    pub git: Git,
    /// The folder of our indexes.
    pub own: PathBuf,
    pub dir: PathBuf,
    pub git_dir: PathBuf,
    scratch: Option<tempfile::TempDir>,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SourceError {
    let path = path.to_owned();
    move |source| SourceError::File { action, path, source }
}

impl Ground {
    /// For steps that change the repository.
    pub(super) fn live(
        repository: &Repository,
        id: &str,
        cancel: &Cancel,
        deadline: Instant,
    ) -> Result<Self, SourceError> {
        Self::of(&repository.dir, &repository.git_dir, id, cancel, deadline)
    }

    /// The same by its folders.
    pub(super) fn of(
        dir: &Path,
        git_dir: &Path,
        id: &str,
        cancel: &Cancel,
        deadline: Instant,
    ) -> Result<Self, SourceError> {
        let own = git_dir.join("lifeboat").join(id);
        let git = open(dir, git_dir, id, cancel, deadline)?;
        Ok(Self { git, own, dir: dir.to_owned(), git_dir: git_dir.to_owned(), scratch: None })
    }

    /// For a plan. `like` is a repository whose objects serve, and whose owner is asked.
    pub(super) fn scratch(
        dir: &Path,
        git_dir: &Path,
        id: &str,
        cancel: &Cancel,
        deadline: Instant,
    ) -> Result<Self, SourceError> {
        let base =
            std::env::var_os("TMPDIR").filter(|d| !d.is_empty()).map_or_else(|| "/var/tmp".into(), PathBuf::from);
        let folder = tempfile::Builder::new()
            .prefix("lifeboat-git-")
            .tempdir_in(&base)
            .map_err(failed("create a folder in", &base))?;
        let git = open(dir, git_dir, id, cancel, deadline)?;
        let objects = folder.path().join("objects");
        std::fs::create_dir(&objects).map_err(failed("create", &objects))?;
        if let Some(account) = git.account().and_then(Account::find) {
            for path in [objects.as_path(), folder.path()] {
                std::os::unix::fs::lchown(path, Some(account.uid), Some(account.gid))
                    .map_err(failed("give away", path))?;
            }
        }
        let own = folder.path().to_owned();
        let git = if git_dir.exists() {
            let real = git.text(&["rev-parse", "--git-path", "objects"]).map_err(explain)?;
            let real = absolute(&git, &real);
            git.with("GIT_ALTERNATE_OBJECT_DIRECTORIES", quoted(&real))
        } else {
            git
        };
        let git = git.with("GIT_OBJECT_DIRECTORY", objects.to_string_lossy());
        Ok(Self { git, own, dir: dir.to_owned(), git_dir: git_dir.to_owned(), scratch: Some(folder) })
    }

    /// The same on another repository, which lies in the scratch folder.
    pub(super) fn instead(mut self, git_dir: &str) -> Self {
        self.git = self.git.with("GIT_DIR", git_dir);
        self
    }

    /// Makes the folder of our indexes.
    pub(super) fn make(&self) -> Result<(), SourceError> {
        match self.scratch {
            Some(_) => Ok(()),
            None => self.git.run(&["mkdir", "-p", "--", &self.own.to_string_lossy()]),
        }
    }

    pub(super) fn index(&self, name: &str) -> PathBuf {
        self.own.join(name)
    }

    /// Git on one of our indexes.
    pub(super) fn on(&self, index: &str) -> Git {
        self.git.with("GIT_INDEX_FILE", self.index(index).to_string_lossy())
    }

    pub(super) fn real_index(&self) -> PathBuf {
        self.git_dir.join("index")
    }

    /// One of our indexes anew, as a copy with its time, by which git tells entries whose files may have changed in the
    /// same second without another size; without `from` there is none then. A lock on it can only be of a git of
    /// ours that is no more.
    pub(super) fn copy(&self, from: Option<&Path>, to: &str) -> Result<(), SourceError> {
        let to = self.index(to).to_string_lossy().into_owned();
        self.git.run(&["rm", "-f", "--", &to, &format!("{to}.lock")])?;
        match from {
            Some(from) => self.git.run(&["cp", "-p", "--", &from.to_string_lossy(), &to]),
            None => Ok(()),
        }
    }

    pub(super) fn tree(&self, index: &str) -> Result<String, SourceError> {
        self.on(index).text(&["write-tree"]).map_err(explain)
    }

    pub(super) fn empty_tree(&self) -> Result<String, SourceError> {
        self.git.feed(&["hash-object", "-t", "tree", "-w", "--stdin"], &mut io::empty())
    }

    /// What differs between two trees, submodules too.
    pub(super) fn changes(&self, old: &str, new: &str) -> Result<Vec<Change>, SourceError> {
        let mut list: Vec<Change> = Vec::new();
        let mut head: Option<Vec<u8>> = None;
        self.git.each(
            &["diff-tree", "-r", "-z", "--raw", "--no-renames", "--full-index", old, new, "--"],
            |record| {
                match head.take() {
                    None => head = Some(record.to_vec()),
                    Some(fields) => {
                        let text = String::from_utf8_lossy(&fields).into_owned();
                        let f: Vec<&str> = text.trim_start_matches(':').split(' ').collect();
                        if let [old_mode, new_mode, _, new_id, status] = f[..] {
                            list.push(Change {
                                path: record.to_vec(),
                                status: status.bytes().next().unwrap_or(b'M'),
                                old_mode: old_mode.to_owned(),
                                new_mode: new_mode.to_owned(),
                                new_id: new_id.to_owned(),
                            });
                        }
                    }
                }
                Ok(true)
            },
        )?;
        Ok(list)
    }

    /// The same without submodules.
    pub(super) fn file_changes(&self, old: &str, new: &str) -> Result<Vec<Change>, SourceError> {
        Ok(self.changes(old, new)?.into_iter().filter(|c| !c.is_link()).collect())
    }

    /// The commit and all that it needs is there.
    pub(super) fn has(&self, commit: &str) -> Result<bool, SourceError> {
        let arguments = ["rev-list", "--objects", "--no-walk", "--quiet", commit, "--"];
        match self.git.text(&arguments) {
            Ok(_) => Ok(true),
            Err(crate::place::PlaceError::Failed { .. }) => Ok(false),
            Err(e) => Err(explain(e)),
        }
    }

    /// Takes over what a stored bundle holds. Its head is ours, so what is behind it is a pack.
    pub(super) fn unbundle(&self, streams: &dyn Streams, name: &str) -> Result<(), SourceError> {
        streams.info(name)?;
        let read = |source| SourceError::File { action: "read", path: name.into(), source };
        let mut stream = BufReader::new(streams.open(name).map_err(read)?);
        bundle_head(&mut stream).map_err(read)?;
        self.git.feed(&["index-pack", "--stdin", "--fix-thin"], &mut stream)?;
        Ok(())
    }

    /// The tree that the captured one was: the commit with its recorded edits and submodules.
    pub(super) fn target(
        &self,
        commit: &str,
        edits: Option<(&dyn Streams, &str)>,
        links: &[(String, String)],
    ) -> Result<String, SourceError> {
        self.copy(None, "index.target")?;
        let git = self.on("index.target");
        git.text(&["read-tree", commit]).map_err(explain)?;
        if let Some((streams, name)) = edits {
            streams.info(name)?;
            let read = |source| SourceError::File { action: "read", path: name.into(), source };
            let mut stream = streams.open(name).map_err(read)?;
            git.feed(&["apply", "--cached", "--binary", "--whitespace=nowarn", "-"], &mut stream)?;
        }
        set_links(&git, links)?;
        self.tree("index.target")
    }

    /// What is checked out.
    pub(super) fn head(&self) -> Result<Head, SourceError> {
        let commit = self.git.maybe(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"])?;
        match self.git.maybe(&["symbolic-ref", "--quiet", "HEAD"])? {
            Some(name) => Ok(Head::Branch { name, commit }),
            None => commit
                .map(|commit| Head::Detached { commit })
                .ok_or_else(|| SourceError::problem("the commit that is checked out is not in the repository")),
        }
    }

    /// The newest state on disk of all below the tree, made durable: git itself leaves that to the kernel.
    pub(super) fn sync(&self) -> Result<(), SourceError> {
        let mut done = None;
        for path in [&self.dir, &self.git_dir] {
            if let Ok(file) = std::fs::File::open(path) {
                let device = file.metadata().map_err(failed("look at", path))?.dev();
                if done.replace(device) != Some(device) {
                    rustix::fs::syncfs(&file).map_err(|e| failed("make durable", path)(e.into()))?;
                }
            }
        }
        Ok(())
    }
}

/// Sets what an index says of submodules.
pub(super) fn set_links(git: &Git, links: &[(String, String)]) -> Result<(), SourceError> {
    let mut lines = Vec::new();
    for (path, commit) in links {
        lines.extend_from_slice(format!("{LINK} {commit}\t{path}\0").as_bytes());
    }
    match lines.is_empty() {
        true => Ok(()),
        false => git.feed(&["update-index", "-z", "--index-info"], &mut Cursor::new(lines)).map(drop),
    }
}

/// Paths for a command that reads them ended by NUL.
pub(super) fn listed<'p>(paths: impl IntoIterator<Item = &'p [u8]>) -> Cursor<Vec<u8>> {
    let mut bytes = Vec::new();
    for path in paths {
        bytes.extend_from_slice(path);
        bytes.push(0);
    }
    Cursor::new(bytes)
}

/// Git as the tree's owner, whose new files are as open as the repository itself.
fn open(dir: &Path, git_dir: &Path, id: &str, cancel: &Cancel, deadline: Instant) -> Result<Git, SourceError> {
    let git = Git::known(dir, git_dir, cancel, deadline)?;
    Ok(git
        .masked(mask_of(git_dir))
        .with(MARK, id)
        .with("GIT_AUTHOR_NAME", "lifeboat")
        .with("GIT_AUTHOR_EMAIL", "lifeboat@localhost")
        .with("GIT_COMMITTER_NAME", "lifeboat")
        .with("GIT_COMMITTER_EMAIL", "lifeboat@localhost"))
}

pub(super) fn absolute(git: &Git, path: &str) -> PathBuf {
    Path::new(&git.toplevel()).join(path)
}

/// A path in a list that is separated by colons, as git reads it.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    match text.contains([':', '"', '\\']) || text.starts_with('"') {
        false => text.into_owned(),
        true => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    }
}

/// Whether two names are one file.
pub(super) fn same_file(a: &Path, b: &Path) -> bool {
    match (a.symlink_metadata(), b.symlink_metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}
