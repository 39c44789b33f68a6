//! The plan: every repository of the tree, what becomes of it, and every reason why it cannot.

use super::super::tool::Git;
use super::super::{MAX_DEPTH, explain};
use super::ground::{Ground, LINK, absolute};
use super::intent::{Head, Repository, Task};
use super::lfs;
use super::locks;
use super::look::{self, Look, forward};
use crate::base::cancel::Cancel;
use crate::sources::SourceError;
use crate::sources::placing::{Room, Scene, Stored};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// More names than this are a number.
const NAMES: usize = 8;

/// What a plan says.
#[derive(Default)]
pub(super) struct Findings {
    pub repositories: Vec<Repository>,
    pub lines: Vec<String>,
    pub warnings: Vec<String>,
    pub room: Vec<Room>,
    pub forward: Option<String>,
}

impl Findings {
    pub(super) fn task(&self) -> Task {
        Task { repositories: self.repositories.clone(), forward: self.forward.clone() }
    }
}

pub(super) struct Surveyor<'a> {
    pub scene: &'a Scene<'a>,
    pub stored: &'a Stored<'a>,
    pub deadline: Instant,
    pub cancel: &'a Cancel,
    pub findings: Findings,
}

/// A submodule as its parent has it.
struct Place {
    path: String,
    dir: PathBuf,
    git_dir: PathBuf,
    absent: bool,
    url: Option<String>,
}

impl Surveyor<'_> {
    pub(super) fn outermost(&mut self, git: &Git) -> Result<(), SourceError> {
        let git_dir = git.text(&["rev-parse", "--absolute-git-dir"]).map_err(explain)?.into();
        let place = Place { path: String::new(), dir: git.toplevel().into(), git_dir, absent: false, url: None };
        self.repository(self.stored.facts, place, 0)
    }

    fn repository(&mut self, facts: &Value, place: Place, depth: usize) -> Result<(), SourceError> {
        self.cancel.check()?;
        let what = match place.path.as_str() {
            "" => String::new(),
            path => format!("submodule {path}: "),
        };
        self.one(facts, place, depth).map_err(|e| match e {
            SourceError::Problem { problem, hint } if !what.is_empty() && !problem.starts_with("submodule ") => {
                SourceError::Problem { problem: format!("{what}{problem}"), hint }
            }
            other => other,
        })
    }

    fn one(&mut self, facts: &Value, place: Place, depth: usize) -> Result<(), SourceError> {
        let commit = facts["head"]["commit"].as_str().ok_or_else(|| {
            SourceError::hint(
                "the repository had no commit when the snapshot was taken",
                "leave the code as it is with --only data, or lay it out with `restore --into`",
            )
        })?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let object_format = text(&facts["object_format"]).unwrap_or_else(|| "sha1".to_owned());
        let ground = Ground::scratch(&place.dir, &place.git_dir, self.scene.id, self.cancel, self.deadline)?;
        if place.git_dir.exists() {
            sound(&ground, &object_format)?;
        }
        let own = own_links(facts, &place.path);
        let mut repository = Repository {
            number: self.findings.repositories.len(),
            dir: place.dir,
            git_dir: place.git_dir,
            absent: place.absent,
            url: place.url,
            path: place.path,
            commit: commit.to_owned(),
            target: String::new(),
            edits: text(&facts["edits"]["stream"]).filter(|_| facts["edits"]["bytes"] != 0),
            bundle: text(&facts["bundle"]["stream"]),
            links: own,
            keep: format!("refs/lifeboat/{}/{}", self.scene.policy.app.name, self.stored.snapshot),
            object_format,
        };
        let ground = self.objects(ground, &repository, facts)?;
        let edits = repository.edits.as_deref().map(|name| (self.stored.streams, name));
        repository.target = ground.target(commit, edits, &repository.links)?;
        if facts["lfs"]["count"].as_u64().unwrap_or(0) > 0 {
            lfs::refuse_missing(&ground, &repository.target)?;
        }
        let look = look_at(&ground, &repository, self.scene.id)?;
        if !look.today.same {
            refuse_submodule_in_the_way(&ground, &look.worktree, &repository.target)?;
        }
        self.tell(&ground, facts, &repository, &look)?;
        let target = repository.target.clone();
        let (dir, git_dir) = (repository.dir.clone(), repository.git_dir.clone());
        let parent_path = repository.path.clone();
        self.findings.repositories.push(repository);
        for submodule in facts["submodules"].as_array().into_iter().flatten() {
            if submodule["repository"].is_null() || depth >= MAX_DEPTH {
                continue;
            }
            let place = place_of(&ground, submodule, (&dir, &git_dir), &target, &parent_path)?;
            self.repository(&submodule["repository"], place, depth + 1)?;
        }
        Ok(())
    }

    /// The commit is at hand: in the repository, or in the snapshot, from where it comes into the scratch folder.
    fn objects(&mut self, ground: Ground, repository: &Repository, facts: &Value) -> Result<Ground, SourceError> {
        let there = repository.git_dir.exists();
        // A repository that is yet to be made is asked in a scratch one.
        if !there {
            let bare = ground.index("repository.git");
            let format = format!("--object-format={}", repository.object_format);
            let mut init = vec!["init", "--quiet", "--bare"];
            if repository.object_format != "sha1" {
                init.push(&format);
            }
            let bare_text = bare.to_string_lossy().into_owned();
            init.push(&bare_text);
            let plain = ground.git.clone().at(&ground.own);
            plain.with("GIT_DIR", bare_text.clone()).without("GIT_WORK_TREE").text(&init).map_err(explain)?;
            let Some(bundle) = &repository.bundle else { return Err(gone(repository, facts)) };
            let ground = ground.instead(&bare_text);
            self.fetch(&ground, repository, bundle)?;
            return Ok(ground);
        }
        if ground.has(&repository.commit)? {
            return Ok(ground);
        }
        let Some(bundle) = &repository.bundle else { return Err(gone(repository, facts)) };
        if !facts["shallow"].as_array().is_none_or(Vec::is_empty) {
            return Err(SourceError::hint(
                format!(
                    "commit {} is not in the repository any more, and the snapshot is of a shallow clone",
                    repository.commit
                ),
                format!("fetch it first: git fetch origin {}", repository.commit),
            ));
        }
        self.fetch(&ground, repository, bundle)?;
        Ok(ground)
    }

    fn fetch(&mut self, ground: &Ground, repository: &Repository, bundle: &str) -> Result<(), SourceError> {
        let length = self.stored.streams.info(bundle)?.length;
        ground.unbundle(self.stored.streams, bundle)?;
        if !ground.has(&repository.commit)? {
            return Err(SourceError::hint(
                format!("commit {} is neither in the repository nor in the snapshot's bundle", repository.commit),
                "look at another snapshot with `lifeboat list`",
            ));
        }
        let line = format!("commit {} comes back from the snapshot", short(&repository.commit));
        self.findings.lines.push(prefixed(repository, line));
        let there = repository.git_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let free = rustix::fs::statvfs(there).ok().and_then(|r| Room::free_of(&r));
        let place = repository.git_dir.display().to_string();
        self.findings.room.push(Room { place, bytes_needed: length, device: Room::device_of(there), bytes_free: free });
        Ok(())
    }

    fn tell(
        &mut self,
        ground: &Ground,
        facts: &Value,
        repository: &Repository,
        look: &Look,
    ) -> Result<(), SourceError> {
        let today = &look.today;
        if today.same {
            let line = format!("stays at {}", named(&repository.commit, &tags(facts)));
            self.findings.lines.push(prefixed(repository, line));
            return Ok(());
        }
        let mut lines = vec![way(ground, &today.head, repository, &tags(facts))?];
        if repository.absent {
            lines[0] = format!("is checked out again at {}", named(&repository.commit, &tags(facts)));
        }
        lines.push(format!("{} change", files(look.changed)));
        if let Some(name) = &today.dirty {
            lines.push(format!(
                "today's edits of {} are kept as {name}: `git stash apply --index {name}` brings them back",
                files(look.edited)
            ));
        }
        let base = format!("{}^{{tree}}", repository.commit);
        let recorded = ground.file_changes(&base, &repository.target)?.len();
        if recorded > 0 {
            lines.push(format!("the recorded edits of {} come back", files(recorded)));
        }
        for beside in &today.besides {
            let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
            let (path, kept) = (name(&beside.path), name(&beside.beside));
            lines.push(format!("{path}, which git does not track, is in the way: it is kept as {kept}"));
        }
        if !repository.absent && today.head.commit() != Some(&repository.commit) {
            let forward = forward(&today.head);
            if let Some(command) = &forward {
                lines.push(format!("no branch is checked out then; the way forward: {command}"));
            }
            if repository.path.is_empty() {
                self.findings.forward = forward;
            }
        }
        self.findings.lines.extend(lines.into_iter().map(|line| prefixed(repository, line)));
        if !look.flagged.is_empty() {
            let text = format!(
                "git was told not to look at edits of {}: they are not in the snapshot, and the committed content comes",
                some(&look.flagged)
            );
            self.findings.warnings.push(prefixed(repository, text));
        }
        if facts["unmerged"]["count"].as_u64().is_some_and(|n| n > 0) {
            let text = "it had unresolved conflicts when it was captured: their files come back as plain edits";
            self.findings.warnings.push(prefixed(repository, text.to_owned()));
        }
        Ok(())
    }
}

fn look_at(ground: &Ground, repository: &Repository, id: &str) -> Result<Look, SourceError> {
    look::look(ground, repository, &repository.target, id)
}

/// Refuses what cannot be taken apart without losing something.
pub(super) fn sound(ground: &Ground, object_format: &str) -> Result<(), SourceError> {
    if ground.git.object_format()? != object_format {
        return Err(SourceError::hint(
            format!("this is another repository: it does not name its objects by {object_format}"),
            "lay the snapshot's code out with `restore --into`",
        ));
    }
    for (name, what, end) in [
        ("MERGE_HEAD", "merge", "git merge --abort"),
        ("CHERRY_PICK_HEAD", "cherry-pick", "git cherry-pick --abort"),
        ("REVERT_HEAD", "revert", "git revert --abort"),
        ("rebase-merge", "rebase", "git rebase --abort"),
        ("rebase-apply", "rebase", "git rebase --abort"),
    ] {
        if ground.git_dir.join(name).symlink_metadata().is_ok() {
            return Err(SourceError::hint(
                format!("a {what} is unfinished in {}", ground.dir.display()),
                format!("finish it, or give it up with `{end}`"),
            ));
        }
    }
    let mut unmerged = false;
    ground.git.each(&["ls-files", "--unmerged", "-z"], |_| {
        unmerged = true;
        Ok(false)
    })?;
    if unmerged {
        return Err(SourceError::hint(
            format!("{} has files with unresolved conflicts", ground.dir.display()),
            "resolve them, or give them up with `git reset --merge`",
        ));
    }
    let sparse = ground.git.maybe(&["config", "--type=bool", "core.sparseCheckout"])?;
    if sparse.as_deref() == Some("true") {
        return Err(SourceError::hint(
            format!("{} is checked out in parts (sparse)", ground.dir.display()),
            "check all of it out with `git sparse-checkout disable`",
        ));
    }
    locks::refuse(&ground.git_dir)
}

fn gone(repository: &Repository, facts: &Value) -> SourceError {
    let remotes = facts["remotes"].as_array().into_iter().flatten();
    let remote = remotes.filter_map(|r| r["name"].as_str()).next().unwrap_or("origin");
    SourceError::hint(
        format!("commit {} is not in the repository any more, and the snapshot holds no bundle", repository.commit),
        format!("fetch it first: git fetch {remote} {}", repository.commit),
    )
}

/// The submodules of one repository alone, by paths within it.
fn own_links(facts: &Value, parent: &str) -> Vec<(String, String)> {
    let list = facts["submodules"].as_array().into_iter().flatten();
    list.filter_map(|s| {
        let path = s["path"].as_str()?;
        let own = if parent.is_empty() { path } else { path.strip_prefix(parent)?.strip_prefix('/')? };
        Some((own.to_owned(), s["commit"].as_str()?.to_owned()))
    })
    .collect()
}

/// Where a submodule is, or will be.
fn place_of(
    ground: &Ground,
    submodule: &Value,
    (dir, git_dir): (&Path, &Path),
    target: &str,
    inside: &str,
) -> Result<Place, SourceError> {
    let path = submodule["path"].as_str().unwrap_or_default().to_owned();
    let own = path.strip_prefix(inside).unwrap_or(&path).trim_start_matches('/').to_owned();
    let url = submodule["url"].as_str().map(str::to_owned);
    let parts_are_plain = Path::new(&own).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if own.is_empty() || !parts_are_plain {
        return Err(SourceError::problem(format!("submodule {path:?} does not lie in the tree")));
    }
    let sub_dir = dir.join(&own);
    if dir.is_dir()
        && let Some(git) = ground.git.clone().at(dir).without_env().submodule(&own)?
    {
        let git_dir = git.text(&["rev-parse", "--absolute-git-dir"]).map_err(explain)?;
        return Ok(Place { path, dir: sub_dir, git_dir: git_dir.into(), absent: false, url });
    }
    let name = name_of(ground, target, &own)?;
    let common = match git_dir.exists() {
        true => absolute(&ground.git, &ground.git.text(&["rev-parse", "--git-common-dir"]).map_err(explain)?),
        false => git_dir.to_owned(),
    };
    Ok(Place { path, dir: sub_dir, git_dir: common.join("modules").join(name), absent: true, url })
}

/// The name that the captured `.gitmodules` gives to a submodule; its path where it has none.
fn name_of(ground: &Ground, target: &str, path: &str) -> Result<String, SourceError> {
    let blob = format!("{target}:.gitmodules");
    let arguments = ["config", "--blob", &blob, "--null", "--get-regexp", "^submodule\\..*\\.path$"];
    let text = match ground.git.maybe(&arguments) {
        Ok(text) => text.unwrap_or_default(),
        Err(SourceError::Place(crate::place::PlaceError::Failed { .. })) => String::new(),
        Err(e) => return Err(e),
    };
    let found = text.split('\0').filter_map(|record| record.split_once('\n')).find(|(_, p)| *p == path);
    let name = found.and_then(|(key, _)| key.strip_prefix("submodule.")?.strip_suffix(".path")).unwrap_or(path);
    let plain = Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    match plain && !name.is_empty() && !name.starts_with('-') {
        true => Ok(name.to_owned()),
        false => Err(SourceError::problem(format!("submodule {path:?} has the name {name:?}, which leads elsewhere"))),
    }
}

/// A submodule of today must not stand where the snapshot has files.
fn refuse_submodule_in_the_way(ground: &Ground, worktree: &str, target: &str) -> Result<(), SourceError> {
    let changes = ground.changes(worktree, target)?;
    for link in changes.iter().filter(|c| c.old_mode == LINK && c.new_mode != LINK) {
        let mut below = link.path.clone();
        below.push(b'/');
        let in_place = link.new_mode != "000000" || changes.iter().any(|c| c.path.starts_with(&below));
        let path = String::from_utf8_lossy(&link.path).into_owned();
        if in_place && ground.dir.join(&path).join(".git").symlink_metadata().is_ok() {
            return Err(SourceError::hint(
                format!("today's submodule {path} stands where the snapshot has files"),
                format!("take it out of the way first: git submodule deinit -- {path}"),
            ));
        }
    }
    Ok(())
}

/// `7 commits from abc1234567 (main) back to def5678901 (v1.4.0)`.
fn way(ground: &Ground, head: &Head, repository: &Repository, tags: &[String]) -> Result<String, SourceError> {
    let to = named(&repository.commit, tags);
    let Some(from) = head.commit() else { return Ok(format!("from nothing to {to}")) };
    let branch = match head {
        Head::Branch { name, .. } => vec![name.strip_prefix("refs/heads/").unwrap_or(name).to_owned()],
        Head::Detached { .. } => Vec::new(),
    };
    if from == repository.commit {
        return Ok(format!("stays at {to}, and the tree becomes what was captured there"));
    }
    let count = |a: &str, b: &str| -> Result<u64, SourceError> {
        let text = ground.git.text(&["rev-list", "--count", &format!("{a}..{b}"), "--"]).map_err(explain)?;
        Ok(text.parse().unwrap_or(0))
    };
    let (leave, come) = (count(&repository.commit, from)?, count(from, &repository.commit)?);
    let from = named(from, &branch);
    Ok(match (leave, come) {
        (n, 0) => format!("{} from {from} back to {to}", commits(n)),
        (0, n) => format!("{} from {from} forward to {to}", commits(n)),
        (a, b) => format!("from {from} to {to}, which is another line: {} leave, {} come", commits(a), commits(b)),
    })
}

fn commits(n: u64) -> String {
    if n == 1 { "1 commit".into() } else { format!("{n} commits") }
}

fn files(n: usize) -> String {
    if n == 1 { "1 file".into() } else { format!("{n} files") }
}

fn some(names: &[String]) -> String {
    match names.len() {
        n if n > NAMES => format!("{} and {} more", names[..NAMES].join(", "), n - NAMES),
        _ => names.join(", "),
    }
}

fn tags(facts: &Value) -> Vec<String> {
    facts["tags"].as_array().into_iter().flatten().filter_map(|t| t.as_str().map(str::to_owned)).collect()
}

fn named(commit: &str, names: &[String]) -> String {
    match names {
        [] => short(commit).to_owned(),
        names => format!("{} ({})", short(commit), names.join(", ")),
    }
}

pub(super) fn short(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

fn prefixed(repository: &Repository, line: String) -> String {
    if repository.path.is_empty() { line } else { format!("submodule {}: {line}", repository.path) }
}
