//! One work tree for the other, and back: files, then the head, then the index.
//!
//! Order of the switch (must): files that are in the way get another name → mark `checkout` → files → head → index →
//! synced to disk → mark `switched`. Until the first mark nothing of git has changed; behind it every step may be done
//! again from its beginning, whatever came of it before. On the way back the marks go before what was in the way gets its
//! name again: done once more, the checkout would take that for a file of its own. The index takes its place as git's own does, by
//! `index.lock`, which is a further name of a file in our folder: a lock that is left is seen to be ours by that.

use super::super::explain;
use super::ground::{Ground, listed, same_file, set_links};
use super::inside::Inside;
use super::intent::{Head, Mark, Notes, Repository, Today};
use super::locks;
use super::look::{OLD, TODAY, in_the_way, track};
use crate::sources::placing::Scene;
use crate::sources::{SourceError, is_there};
use std::path::Path;

const WORK: &str = "index.work";
const NEW: &str = "index.new";
const BACK: &str = "index.back";
const SINCE: &str = "index.since";
const CHECK: &str = "index.check";

pub(super) struct Exchange<'a> {
    pub scene: &'a Scene<'a>,
    pub repository: &'a Repository,
    pub ground: Ground,
    pub notes: Notes<'a>,
}

impl Exchange<'_> {
    /// The folder of a submodule that is not there; whether it was made.
    pub(super) fn lay_folder(&self, today: &Today) -> Result<bool, SourceError> {
        let repository = self.repository;
        if !repository.absent || today.same || self.notes.has(Mark::Switched)? || self.notes.has(Mark::Checkout)? {
            return Ok(false);
        }
        locks::outlive(self.scene.id)?;
        if !self.index_lock_is_ours() {
            locks::refuse(&repository.git_dir)?;
        }
        self.lay_link()?;
        Ok(true)
    }

    pub(super) fn switch(&self, today: &Today) -> Result<(), SourceError> {
        if today.same || self.notes.has(Mark::Switched)? {
            return Ok(());
        }
        let (ground, repository) = (&self.ground, self.repository);
        let target = &repository.target;
        locks::outlive(self.scene.id)?;
        if self.notes.has(Mark::Checkout)? {
            locks::clear(ground, repository, self.scene.id)?;
        } else {
            if !self.index_lock_is_ours() {
                locks::refuse(&repository.git_dir)?;
            }
            let tree = Inside::open(&repository.dir)?;
            today.besides.iter().try_for_each(|b| tree.put_beside(b))?;
            // Refuses what was written a moment ago, before anything is touched.
            ground.copy(Some(&ground.index(OLD)), WORK)?;
            ground.on(WORK).maybe(&["update-index", "-q", "--refresh"])?;
            let refused = ground.on(WORK).text(&["read-tree", "-n", "-m", "-u", &today.tree, target]);
            refused.map_err(explain)?;
            self.notes.set(Mark::Checkout)?;
        }
        ground.copy(Some(&ground.index(OLD)), WORK)?;
        ground.on(WORK).text(&["read-tree", "--reset", "-u", target]).map_err(explain)?;
        Inside::open(&repository.dir)?.restore(&today.attributes, false)?;
        if today.head.commit() != Some(&repository.commit) {
            self.detach(&repository.commit)?;
        }
        self.new_index()?;
        self.verify()?;
        ground.sync()?;
        self.notes.set(Mark::Switched)
    }

    fn index_lock_is_ours(&self) -> bool {
        let lock = self.repository.git_dir.join("index.lock");
        [NEW, BACK].iter().any(|name| same_file(&self.ground.index(name), &lock))
    }

    /// A submodule's folder and what says where its repository is.
    fn lay_link(&self) -> Result<(), SourceError> {
        let (dir, git_dir) = (&self.repository.dir, &self.repository.git_dir);
        self.ground.git.run(&["mkdir", "-p", "--", &dir.to_string_lossy()])?;
        let link = dir.join(".git").to_string_lossy().into_owned();
        let to = relative(dir, git_dir);
        let way = relative(git_dir, dir);
        self.ground.git.run(&[
            "git",
            "config",
            "--file",
            &git_dir.join("config").to_string_lossy(),
            "core.worktree",
            &way,
        ])?;
        // The script is fixed; names come to it as arguments.
        self.ground.git.run(&["sh", "-c", r#"printf 'gitdir: %s\n' "$1" >"$2""#, "lifeboat", &to, &link])
    }

    fn detach(&self, commit: &str) -> Result<(), SourceError> {
        let why = format!("lifeboat: transaction {}", self.scene.id);
        let arguments = ["update-ref", "--no-deref", "-m", &why, "HEAD", commit];
        self.ground.git.text(&arguments).map(drop).map_err(explain)
    }

    /// The commit's index, so that all edits are unstaged; new files are named in it, for they are tracked edits too.
    fn new_index(&self) -> Result<(), SourceError> {
        let (ground, repository) = (&self.ground, self.repository);
        let base = format!("{}^{{tree}}", repository.commit);
        ground.copy(Some(&ground.index(WORK)), NEW)?;
        let git = ground.on(NEW);
        git.text(&["read-tree", "-i", "-m", &repository.commit]).map_err(explain)?;
        set_links(&git, &repository.links)?;
        let changes = ground.file_changes(&base, &repository.target)?;
        let added: Vec<&[u8]> = changes.iter().filter(|c| c.status == b'A').map(|c| c.path.as_slice()).collect();
        if !added.is_empty() {
            let arguments = ["add", "--intent-to-add", "--force", "--pathspec-from-file=-", "--pathspec-file-nul"];
            let git = git.with("GIT_LITERAL_PATHSPECS", "1");
            git.feed(&arguments, &mut listed(added.iter().copied()))?;
        }
        self.install(NEW)
    }

    /// Puts one of our indexes in the place of the real one.
    fn install(&self, name: &str) -> Result<(), SourceError> {
        let ground = &self.ground;
        let (own, real) = (ground.index(name), ground.real_index());
        // Its status is 1 where files are edited.
        ground.on(name).maybe(&["update-index", "-q", "--refresh"])?;
        let lock = self.repository.git_dir.join("index.lock");
        if lock.symlink_metadata().is_ok() && !same_file(&own, &lock) {
            locks::clear(ground, self.repository, self.scene.id)?;
            locks::refuse(&self.repository.git_dir)?;
        }
        if !same_file(&own, &lock) {
            ground.git.run(&["ln", "-T", "--", &own.to_string_lossy(), &lock.to_string_lossy()])?;
        }
        ground.git.run(&["mv", "-f", "-T", "--", &lock.to_string_lossy(), &real.to_string_lossy()])
    }

    /// Is what is there what was captured?
    fn verify(&self) -> Result<(), SourceError> {
        self.at_commit()?;
        let differs = self.differs()?;
        match differs.first() {
            None => Ok(()),
            Some(first) => Err(SourceError::problem(format!(
                "{} files of {} are not what was captured: {first}",
                differs.len(),
                self.what()
            ))),
        }
    }

    /// The same once the services run again: one that writes into tracked files is named.
    pub(super) fn confirm(&self) -> Result<(), SourceError> {
        self.at_commit()?;
        let differs = self.differs()?;
        if let Some(first) = differs.first() {
            let more = if differs.len() > 1 { format!(" and {} more", differs.len() - 1) } else { String::new() };
            let text = format!("{first}{more} of {} changed since it was put back", self.what());
            self.scene.events.warn(self.scene.name, text);
        }
        Ok(())
    }

    fn at_commit(&self) -> Result<(), SourceError> {
        let (ground, repository) = (&self.ground, self.repository);
        let commit = ground.head()?.commit().map(str::to_owned);
        if commit.as_deref() != Some(&repository.commit) {
            return Err(SourceError::problem(format!(
                "{} is at commit {}, not at {}",
                self.what(),
                commit.as_deref().unwrap_or("none"),
                repository.commit
            )));
        }
        Ok(())
    }

    fn what(&self) -> String {
        match self.repository.path.as_str() {
            "" => "the tree".to_owned(),
            path => format!("submodule {path}"),
        }
    }

    /// Tracked files that are not what was captured.
    fn differs(&self) -> Result<Vec<String>, SourceError> {
        let ground = &self.ground;
        track(ground, Some(&ground.real_index()), CHECK)?;
        let now = ground.tree(CHECK)?;
        let changes = ground.file_changes(&now, &self.repository.target)?;
        Ok(changes.iter().map(|c| String::from_utf8_lossy(&c.path).into_owned()).collect())
    }

    /// The old state again, whatever came of the switch.
    pub(super) fn back(&self, today: &Today) -> Result<(), SourceError> {
        if today.same || !is_there(&self.repository.git_dir)? {
            return Ok(());
        }
        let (ground, repository) = (&self.ground, self.repository);
        locks::outlive(self.scene.id)?;
        if self.notes.has(Mark::Checkout)? {
            locks::clear(ground, repository, self.scene.id)?;
            locks::refuse(&repository.git_dir)?;
            self.files_back(today)?;
            self.head_back(today)?;
            if today.index {
                ground.copy(Some(&ground.index(TODAY)), BACK)?;
                self.install(BACK)?;
            } else {
                ground.git.run(&["rm", "-f", "--", &ground.real_index().to_string_lossy()])?;
            }
            ground.sync()?;
            // From here on no file is written over: what was in the way may have its name again.
            [Mark::Switched, Mark::Returning, Mark::Checkout].iter().try_for_each(|mark| self.notes.clear(*mark))?;
        }
        if repository.dir.is_dir() {
            let tree = Inside::open(&repository.dir)?;
            for beside in &today.besides {
                if tree.look(&beside.beside)?.is_some() {
                    tree.make_parents(&beside.path, &today.attributes)?;
                }
                if !tree.put_back(beside, &today.attributes)? {
                    let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
                    let (path, kept) = (name(&beside.path), name(&beside.beside));
                    self.scene
                        .events
                        .warn(self.scene.name, format!("{path} is there again: the one of before stays as {kept}"));
                }
            }
            tree.restore(&today.attributes, true)?;
            if repository.absent {
                self.take_link_away()?;
            }
        }
        ground.sync()
    }

    fn files_back(&self, today: &Today) -> Result<(), SourceError> {
        let ground = &self.ground;
        let to = &today.tree;
        if self.notes.has(Mark::Switched)? {
            // It has been live since: what came in that time is looked at as today's was.
            if !self.notes.has(Mark::Returning)? {
                self.save_since(to)?;
                self.notes.set(Mark::Returning)?;
            }
            ground.copy(Some(&ground.index(SINCE)), WORK)?;
        } else {
            // Some files are the old ones, some the new, one may be half.
            ground.copy(Some(&ground.index(OLD)), WORK)?;
            ground.on(WORK).text(&["read-tree", "-i", "-m", &self.repository.target]).map_err(explain)?;
        }
        let git = ground.on(WORK);
        git.maybe(&["update-index", "-q", "--refresh"])?;
        // What is the old one already is not written again: a file that refused the new one would refuse that as well.
        if let Err(error) = git.text(&["add", "-u"]) {
            tracing::debug!(%error, "look at what the work tree has before it is brought back");
        }
        git.text(&["read-tree", "--reset", "-u", to]).map(drop).map_err(explain)
    }

    /// Keeps what was edited since the switch, and gets files out of the way that came since.
    fn save_since(&self, to: &str) -> Result<(), SourceError> {
        let ground = &self.ground;
        let real = ground.real_index();
        track(ground, real.exists().then_some(&real), SINCE)?;
        let now = ground.tree(SINCE)?;
        let head = ground.head()?;
        let moved = head.commit() != Some(&self.repository.commit);
        if moved || !ground.file_changes(&now, &self.repository.target)?.is_empty() {
            let name = format!("refs/lifeboat/dirty/{}-undone", self.scene.id);
            keep_edits(ground, self.scene, head.commit(), &now, &now, &name)?;
            let text = format!("what was changed in {} since is kept as {name}", self.what());
            self.scene.events.warn(self.scene.name, text);
        }
        let tree = Inside::open(&self.repository.dir)?;
        for beside in in_the_way(ground, SINCE, &now, to, &format!("{}-undone", self.scene.id))? {
            tree.put_beside(&beside)?;
            let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
            let text = format!("{} came since: it is kept as {}", name(&beside.path), name(&beside.beside));
            self.scene.events.warn(self.scene.name, text);
        }
        Ok(())
    }

    fn head_back(&self, today: &Today) -> Result<(), SourceError> {
        let ground = &self.ground;
        if ground.head()? == today.head {
            return Ok(());
        }
        match &today.head {
            Head::Detached { commit } => self.detach(commit),
            Head::Branch { name, commit } => {
                let now = ground.git.maybe(&["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")])?;
                match commit {
                    Some(commit) if now.as_ref() != Some(commit) => {
                        let text = format!("{name} has moved since: {} stays detached at {commit}", self.what());
                        self.scene.events.warn(self.scene.name, text);
                        self.detach(commit)
                    }
                    _ => {
                        let why = format!("lifeboat: transaction {} undone", self.scene.id);
                        let done = ground.git.text(&["symbolic-ref", "-m", &why, "HEAD", name]);
                        done.map(drop).map_err(explain)
                    }
                }
            }
        }
    }

    fn take_link_away(&self) -> Result<(), SourceError> {
        let git = &self.ground.git.clone().at(&self.repository.git_dir);
        let dir = self.repository.dir.to_string_lossy();
        git.run(&["rm", "-f", "--", &self.repository.dir.join(".git").to_string_lossy()])?;
        // Only when it is empty: git has kept such folders too.
        match git.run(&["rmdir", "--", &dir]) {
            Err(SourceError::Place(crate::place::PlaceError::Failed { .. })) | Ok(()) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// Keeps the edits of a work tree under a name, in the form of a stash: `git stash apply --index NAME` brings them back.
pub(super) fn keep_edits(
    ground: &Ground,
    scene: &Scene<'_>,
    head: Option<&str>,
    worktree: &str,
    staged: &str,
    name: &str,
) -> Result<(), SourceError> {
    let date = format!("{} +0000", scene.now.timestamp());
    let git = ground.git.with("GIT_AUTHOR_DATE", date.clone()).with("GIT_COMMITTER_DATE", date);
    let message = format!("edits before transaction {}", scene.id);
    let index_message = format!("index before transaction {}", scene.id);
    let commit = match head {
        Some(head) => {
            let index = git.text(&["commit-tree", staged, "-p", head, "-m", &index_message]).map_err(explain)?;
            git.text(&["commit-tree", worktree, "-p", head, "-p", &index, "-m", &message]).map_err(explain)?
        }
        None => git.text(&["commit-tree", worktree, "-m", &message]).map_err(explain)?,
    };
    git.text(&["update-ref", name, &commit]).map(drop).map_err(explain)
}

/// How `to` is reached from folder `from`; both absolute.
fn relative(from: &Path, to: &Path) -> String {
    let (from, to): (Vec<_>, Vec<_>) = (from.components().collect(), to.components().collect());
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..".to_owned(), from.len() - shared);
    let down = to[shared..].iter().map(|c| c.as_os_str().to_string_lossy().into_owned());
    up.chain(down).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_folder_is_reached_from_another() {
        let way = |a: &str, b: &str| relative(Path::new(a), Path::new(b));
        assert_eq!(way("/a/libs/x", "/a/.git/modules/x"), "../../.git/modules/x");
        assert_eq!(way("/a/.git/modules/x", "/a/libs/x"), "../../../libs/x");
    }
}
