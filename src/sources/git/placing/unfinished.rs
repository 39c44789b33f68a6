//! A merge, rebase or cherry-pick that a command began and did not end, given up for a caller who knows that the tree was
//! sound before it: then nothing of it is anybody's work but the command's.
//!
//! What the work tree has is kept as `refs/lifeboat/dirty/<id>` first. Git runs as the tree's owner with hooks off.

use super::super::explain;
use super::super::tool::Git;
use super::ground::{Ground, LINK};
use super::locks;
use super::look::track;
use super::survey::sound;
use crate::base::cancel::Cancel;
use crate::sources::SourceError;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(600);
const INDEX: &str = "index.unfinished";

/// Refuses a tree in which something is unfinished, its submodules too. One that is no repository is sound.
pub fn refuse_unfinished(root: &Path, cancel: &Cancel) -> Result<(), SourceError> {
    each(root, "guard", cancel, &mut |ground| sound(ground, &ground.git.object_format()?))
}

/// Gives up what is unfinished; what was done about it, in words.
pub fn give_up(root: &Path, id: &str, cancel: &Cancel) -> Result<Vec<String>, SourceError> {
    let mut notes = Vec::new();
    each(root, id, cancel, &mut |ground| one(ground, id, &mut notes))?;
    Ok(notes)
}

fn each(
    root: &Path,
    id: &str,
    cancel: &Cancel,
    act: &mut dyn FnMut(&Ground) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let deadline = Instant::now() + LIMIT;
    let Ok(git) = Git::open(root, cancel, deadline)? else { return Ok(()) };
    let mut left = vec![git];
    while let Some(git) = left.pop() {
        cancel.check()?;
        let git_dir: PathBuf = git.text(&["rev-parse", "--absolute-git-dir"]).map_err(explain)?.into();
        act(&Ground::of(Path::new(&git.toplevel()), &git_dir, id, cancel, deadline)?)?;
        let mut paths = Vec::new();
        git.each(&["ls-files", "--stage", "-z"], |record| {
            let text = String::from_utf8_lossy(record).into_owned();
            if let Some((_, path)) = text.split_once('\t').filter(|_| text.starts_with(LINK)) {
                paths.push(path.to_owned());
            }
            Ok(true)
        })?;
        paths.dedup();
        for path in paths {
            left.extend(git.submodule(&path)?);
        }
    }
    Ok(())
}

/// What git leaves in its folder, what it is called, and the command that gives it up.
fn begun(git_dir: &Path) -> Option<(&'static str, &'static str)> {
    let is_mail = git_dir.join("rebase-apply/applying").exists();
    [
        ("rebase-merge", "rebase", "rebase"),
        ("rebase-apply", "rebase", if is_mail { "am" } else { "rebase" }),
        ("MERGE_HEAD", "merge", "merge"),
        ("CHERRY_PICK_HEAD", "cherry-pick", "cherry-pick"),
        ("REVERT_HEAD", "revert", "revert"),
    ]
    .into_iter()
    .find(|(name, ..)| git_dir.join(name).symlink_metadata().is_ok())
    .map(|(_, what, command)| (what, command))
}

fn is_unmerged(ground: &Ground) -> Result<bool, SourceError> {
    let mut unmerged = false;
    ground.git.each(&["ls-files", "--unmerged", "-z"], |_| {
        unmerged = true;
        Ok(false)
    })?;
    Ok(unmerged)
}

fn one(ground: &Ground, id: &str, notes: &mut Vec<String>) -> Result<(), SourceError> {
    let at = ground.dir.display();
    for lock in locks::left(&ground.dir, &ground.git_dir) {
        ground.git.run(&["rm", "-f", "--", &lock.to_string_lossy()])?;
        notes.push(format!("{} was left by a git that is no more, and is removed", lock.display()));
    }
    let unfinished = begun(&ground.git_dir);
    if unfinished.is_none() && !is_unmerged(ground)? {
        return Ok(());
    }
    ground.make()?;
    let real = ground.real_index();
    track(ground, real.exists().then_some(real.as_path()), INDEX)?;
    let tree = ground.tree(INDEX)?;
    let message = format!("what was unfinished before {id}");
    let mut arguments = vec!["commit-tree", &tree, "-m", &message];
    let head = ground.head()?;
    if let Some(commit) = head.commit() {
        arguments.extend(["-p", commit]);
    }
    let commit = ground.git.text(&arguments).map_err(explain)?;
    let name = format!("refs/lifeboat/dirty/{id}");
    ground.git.text(&["update-ref", &name, &commit]).map_err(explain)?;
    ground.git.run(&["rm", "-rf", "--", &ground.own.to_string_lossy()])?;
    if let Some((_, command)) = unfinished
        && ground.git.text(&[command, "--abort"]).is_err()
    {
        // Edits may be in its way; without touching files it always goes.
        ground.git.text(&[command, "--quit"]).map_err(explain)?;
    }
    if is_unmerged(ground)? || begun(&ground.git_dir).is_some() {
        ground.git.text(&["reset", "--quiet"]).map_err(explain)?;
    }
    let what = unfinished.map_or("conflict", |(what, _)| what);
    notes.push(format!("the unfinished {what} in {at} is given up; what the files were is kept as {name}"));
    Ok(())
}
