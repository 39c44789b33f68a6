//! A work tree, put back as it was captured: its commit, the recorded edits of tracked files as unstaged edits, and so
//! for every submodule.
//!
//! - [`survey`]: the plan, made with objects and indexes in a scratch folder
//! - [`look`]: today's state, without touching it
//! - [`exchange`]: the one for the other, and back
//! - [`ground`]: git on indexes of our own
//! - [`inside`]: files of the tree, and what git does not record of them
//! - [`locks`]: what a killed run left
//! - [`lfs`]: content that is elsewhere
//! - [`unfinished`]: merges and the like that a command began and did not end
//!
//! Invariants: git runs as the owner of the tree with hooks off, and fetches nothing; what git does not track is never
//! removed: where the snapshot has a tracked file in its place it gets a name beside; no branch and no tag is moved;
//! today's edits are kept as `refs/lifeboat/dirty/<transaction>`, which nobody but the user removes, in the form of a
//! stash; the captured commit stays reachable by `refs/lifeboat/<policy>/<snapshot>`. `back` gives tree, head and index
//! (with what is staged), whether or not the switch had begun or ended. Not given back: times of files, ACLs and other
//! extended attributes of those that were written anew.

mod exchange;
mod ground;
mod inside;
mod intent;
mod lfs;
mod locks;
mod look;
mod survey;
mod unfinished;

use super::explain;
use super::tool::{Git, NotARepository};
use crate::place::PlaceError;
use crate::policy::model::{App, SourcePolicy};
use crate::sources::placing::{Intent, Part, Placing, Scene, Stored};
use crate::sources::{SourceError, is_there};
use exchange::{Exchange, keep_edits};
use ground::Ground;
use intent::{Mark, Notes, Repository, Task, Today, task_of};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use survey::{Findings, Surveyor};

pub use unfinished::{give_up, refuse_unfinished};

/// A source of kind `git`, put back.
pub struct GitPlacing {
    root: PathBuf,
    timeout: Duration,
}

impl GitPlacing {
    pub fn new(app: &App, source: &SourcePolicy) -> Self {
        Self { root: app.root.clone(), timeout: source.timeout }
    }

    /// The command that leads to where the tree was before, when its head moves: `git switch main`.
    pub fn forward(intent: &Intent) -> Option<String> {
        task_of(intent).ok()?.forward
    }

    fn deadline(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.timeout).unwrap_or(now + Duration::from_secs(86_400))
    }

    fn exchange<'a>(&self, scene: &'a Scene<'a>, repository: &'a Repository) -> Result<Exchange<'a>, SourceError> {
        let ground = Ground::live(repository, scene.id, scene.cancel, self.deadline())?;
        Ok(Exchange { scene, repository, ground, notes: Notes::new(scene, repository) })
    }

    /// What is there now is looked at, and kept.
    fn look(&self, exchange: &Exchange<'_>) -> Result<Today, SourceError> {
        let (scene, repository, ground) = (exchange.scene, exchange.repository, &exchange.ground);
        survey::sound(ground, &repository.object_format)?;
        let look = look::look(ground, repository, &repository.target, scene.id)?;
        let today = look.today;
        if let Some(commit) = today.head.commit() {
            ground.git.text(&["update-ref", &transaction_ref("old", scene), commit]).map_err(explain)?;
        }
        if let Some(name) = today.dirty.as_ref().filter(|_| !today.same) {
            keep_edits(ground, scene, today.head.commit(), &look.worktree, &look.staged, name)?;
        }
        ground.sync()?;
        exchange.notes.remember(&today)?;
        Ok(today)
    }

    /// The repository of a submodule that is not there at all.
    fn make(&self, exchange: &Exchange<'_>) -> Result<(), SourceError> {
        let (repository, git) = (exchange.repository, &exchange.ground.git);
        if is_there(&repository.git_dir.join("HEAD"))? && !exchange.notes.has(Mark::Made)? {
            return Ok(());
        }
        exchange.notes.set(Mark::Made)?;
        let git_dir = repository.git_dir.to_string_lossy().into_owned();
        git.run(&["mkdir", "-p", "--", &git_dir])?;
        let format = format!("--object-format={}", repository.object_format);
        let mut init = vec!["init", "--quiet", "--bare"];
        if repository.object_format != "sha1" {
            init.push(&format);
        }
        // With a work tree named, it could not be bare.
        git.clone().without("GIT_WORK_TREE").text(&init).map_err(explain)?;
        git.text(&["config", "core.bare", "false"]).map_err(explain)?;
        if let Some(url) = &repository.url {
            git.text(&["config", "remote.origin.url", url]).map_err(explain)?;
            let refspec = "+refs/heads/*:refs/remotes/origin/*";
            git.text(&["config", "remote.origin.fetch", refspec]).map_err(explain)?;
        }
        Ok(())
    }

    /// Whether a repository that was made holds more than what it was made with: names, another commit that is checked
    /// out, or a repository within.
    fn holds_new(
        &self,
        scene: &Scene<'_>,
        repository: &Repository,
        exchange: &Exchange<'_>,
    ) -> Result<bool, SourceError> {
        // Cut short while it was made.
        for name in ["HEAD", "objects", "refs"] {
            if !is_there(&repository.git_dir.join(name))? {
                return Ok(false);
            }
        }
        let own = [transaction_ref("new", scene), transaction_ref("old", scene), repository.keep.clone()];
        let git = &exchange.ground.git;
        let names = git.text(&["for-each-ref", "--format=%(refname)"]).map_err(explain)?;
        if names.lines().any(|name| !own.iter().any(|o| o == name)) || holds_repository(&repository.git_dir)? {
            return Ok(true);
        }
        let head = exchange.ground.head().map(|head| head.commit().map(str::to_owned));
        Ok(head?.is_some_and(|commit| commit != repository.commit))
    }

    fn discard(&self, scene: &Scene<'_>, intent: &Intent, undone: bool) -> Result<(), SourceError> {
        for repository in task_of(intent)?.repositories.iter().rev() {
            let exchange = self.exchange(scene, repository)?;
            locks::outlive(scene.id)?;
            let git = exchange.ground.git.clone().at(parent(&repository.git_dir));
            let made = undone && exchange.notes.has(Mark::Made)?;
            if made && !exchange.notes.has(Mark::Leaving)? {
                match self.holds_new(scene, repository, &exchange)? {
                    false => exchange.notes.set(Mark::Leaving)?,
                    true => {
                        let text = format!(
                            "the repository of submodule {} was made by this, and has been worked in since: it stays as {}",
                            repository.path,
                            repository.git_dir.display()
                        );
                        scene.events.warn(scene.name, text);
                    }
                }
            }
            if made && exchange.notes.has(Mark::Leaving)? {
                git.run(&["rm", "-rf", "--", &repository.git_dir.to_string_lossy()])?;
            } else if is_there(&repository.git_dir)? {
                locks::clear(&exchange.ground, repository, scene.id)?;
                for name in ["new", "old"] {
                    git.text(&["update-ref", "-d", &transaction_ref(name, scene)]).map_err(explain)?;
                }
                git.run(&["rm", "-rf", "--", &exchange.ground.own.to_string_lossy()])?;
                match git.run(&["rmdir", "--", &parent(&exchange.ground.own).to_string_lossy()]) {
                    // Another transaction's is in it, or it was never made.
                    Ok(()) | Err(SourceError::Place(PlaceError::Failed { .. })) => {}
                    Err(e) => return Err(e),
                }
            }
            exchange.notes.forget()?;
        }
        Ok(())
    }
}

fn transaction_ref(name: &str, scene: &Scene<'_>) -> String {
    format!("refs/lifeboat/{name}/{}", scene.id)
}

/// Whether a submodule of a submodule has its repository in there.
fn holds_repository(git_dir: &std::path::Path) -> Result<bool, SourceError> {
    let mut folders = vec![git_dir.join("modules")];
    while let Some(folder) = folders.pop() {
        let failed = |source| SourceError::File { action: "list", path: folder.clone(), source };
        let entries = match std::fs::read_dir(&folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            listed => listed.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.file_name() == "HEAD" {
                return Ok(true);
            }
            folders.extend(entry.file_type().map_err(failed)?.is_dir().then(|| entry.path()));
        }
    }
    Ok(false)
}

fn parent(path: &std::path::Path) -> &std::path::Path {
    let there = path.ancestors().skip(1).find(|p| p.is_dir());
    there.unwrap_or(std::path::Path::new("/"))
}

impl Placing for GitPlacing {
    fn plan(&self, scene: &Scene<'_>, stored: &Stored<'_>, part: &Part) -> Result<Intent, SourceError> {
        if !part.paths.is_empty() || !part.tables.is_empty() || part.database_as.is_some() || part.flush {
            return Err(SourceError::problem("a work tree of git is put back as a whole"));
        }
        if stored.facts["present"] == false {
            return Err(SourceError::problem("there was no git repository when the snapshot was taken"));
        }
        let deadline = self.deadline();
        let git = Git::open(&self.root, scene.cancel, deadline)?.map_err(|NotARepository(why)| {
            SourceError::hint(
                format!("{} is not a git repository any more: {why}", self.root.display()),
                "lay the snapshot's code out with `restore --into`; its repository.bundle is what `git clone` takes",
            )
        })?;
        let findings = Findings::default();
        let mut surveyor = Surveyor { scene, stored, deadline, cancel: scene.cancel, findings };
        surveyor.outermost(&git)?;
        let findings = surveyor.findings;
        let state = serde_json::to_value(findings.task()).map_err(|e| SourceError::problem(e.to_string()))?;
        Ok(Intent {
            source: scene.name.clone(),
            kind: "git".into(),
            lines: findings.lines,
            warnings: findings.warnings,
            room: findings.room,
            losses: Vec::new(),
            restarts: Vec::new(),
            state,
        })
    }

    fn prepare(&self, scene: &Scene<'_>, stored: &Stored<'_>, intent: &Intent) -> Result<(), SourceError> {
        let Task { repositories, .. } = task_of(intent)?;
        for repository in &repositories {
            if repository.absent {
                self.make(&self.exchange(scene, repository)?)?;
            }
            let exchange = self.exchange(scene, repository)?;
            let ground = &exchange.ground;
            ground.make()?;
            if !ground.has(&repository.commit)?
                && let Some(bundle) = &repository.bundle
            {
                ground.unbundle(stored.streams, bundle)?;
            }
            let edits = repository.edits.as_deref().map(|name| (stored.streams, name));
            let target = ground.target(&repository.commit, edits, &repository.links)?;
            if target != repository.target {
                return Err(SourceError::problem("what the snapshot holds is not what it was when this was planned"));
            }
            let message = format!("what transaction {} puts back", scene.id);
            let arguments = ["commit-tree", &target, "-p", &repository.commit, "-m", &message];
            let new = ground.git.text(&arguments).map_err(explain)?;
            for (name, commit) in [(transaction_ref("new", scene), &new), (repository.keep.clone(), &repository.commit)]
            {
                ground.git.text(&["update-ref", &name, commit]).map_err(explain)?;
            }
            self.look(&exchange)?;
        }
        Ok(())
    }

    fn settle(&self, scene: &Scene<'_>, _: &Stored<'_>, intent: &Intent) -> Result<(), SourceError> {
        for repository in &task_of(intent)?.repositories {
            self.look(&self.exchange(scene, repository)?)?;
        }
        Ok(())
    }

    fn switch(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        for repository in &task_of(intent)?.repositories {
            let exchange = self.exchange(scene, repository)?;
            let today = exchange.notes.today()?;
            let today = today.ok_or_else(|| SourceError::problem("today's state was not looked at"))?;
            if exchange.lay_folder(&today)? {
                // Git is told of the folder that is there now.
                self.exchange(scene, repository)?.switch(&today)?;
            } else {
                exchange.switch(&today)?;
            }
        }
        Ok(())
    }

    /// The services run again and may have written tracked files by now: what `switch` has seen to be right is only said
    /// then.
    fn confirm(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        for repository in &task_of(intent)?.repositories {
            let exchange = self.exchange(scene, repository)?;
            exchange.confirm()?;
        }
        Ok(())
    }

    fn back(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        for repository in task_of(intent)?.repositories.iter().rev() {
            let exchange = self.exchange(scene, repository)?;
            let Some(today) = exchange.notes.today()? else { continue };
            if exchange.notes.has(Mark::Checkout)? && !repository.dir.is_dir() {
                // Somebody took the folder away: it goes back from an empty one.
                exchange.ground.git.run(&["mkdir", "-p", "--", &repository.dir.to_string_lossy()])?;
                self.exchange(scene, repository)?.back(&today)?;
            } else {
                exchange.back(&today)?;
            }
        }
        Ok(())
    }

    fn discard_new(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        self.discard(scene, intent, true)
    }

    fn discard_old(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        self.discard(scene, intent, false)
    }
}
