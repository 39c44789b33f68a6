//! What a killed run of ours may have left: a git that is still at work, and locks of one that is no more.

use super::super::explain;
use super::ground::{Ground, MARK, absolute, same_file};
use super::intent::Repository;
use crate::sources::SourceError;
use rustix::process::{Pid, Signal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a git of a killed run may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// Another git holds these locks for moments.
const MOMENT: Duration = Duration::from_secs(1);
const NAP: Duration = Duration::from_millis(20);

/// Waits for processes that another run of this transaction has started, and ends them when they do not end.
pub(super) fn outlive(id: &str) -> Result<(), SourceError> {
    let begun = Instant::now();
    loop {
        let left = of_transaction(id);
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE + Duration::from_secs(5) {
            return Err(SourceError::hint(
                format!("a git of a run that was killed is still at work, as process {}", left[0]),
                "end it, then go on",
            ));
        }
        if begun.elapsed() > PATIENCE {
            for pid in left.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(NAP);
    }
}

/// Processes that carry the transaction's mark. Our own children of this run have ended whenever this is asked.
fn of_transaction(id: &str) -> Vec<i32> {
    let mark = format!("{MARK}={id}");
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let marked = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|v| v == mark.as_bytes())
    };
    pids.filter(marked).collect()
}

fn locks(git_dir: &Path) -> [PathBuf; 3] {
    ["index.lock", "HEAD.lock", "packed-refs.lock"].map(|name| git_dir.join(name))
}

/// Refuses a repository that another git is writing.
pub(super) fn refuse(git_dir: &Path) -> Result<(), SourceError> {
    match locks(git_dir).into_iter().find(|lock| lock.symlink_metadata().is_ok()) {
        None => Ok(()),
        Some(lock) => Err(SourceError::hint(
            format!("another git is at work in this repository: {} is there", lock.display()),
            "wait for it; if none runs, it was killed: remove that file",
        )),
    }
}

/// Removes locks that only a killed run of this transaction can have left: one on the index is a further name of a file
/// of ours; the others are held for moments only, and this one stays.
pub(super) fn clear(ground: &Ground, repository: &Repository, id: &str) -> Result<(), SourceError> {
    outlive(id)?;
    let [index, head, _] = locks(&repository.git_dir);
    if index.symlink_metadata().is_ok() {
        let ours = std::fs::read_dir(&ground.own).into_iter().flatten().flatten();
        if ours.map(|e| e.path()).any(|path| same_file(&path, &index)) {
            remove(ground, &index)?;
        }
    }
    // A linked work tree has a head of its own, and the names of the repository that it is of.
    let common = ground.git.text(&["rev-parse", "--git-common-dir"]).map_err(explain)?;
    let common = absolute(&ground.git, &common);
    for lock in [head, common.join("packed-refs.lock")] {
        if stays(&lock) {
            remove(ground, &lock)?;
        }
    }
    let own = ["new", "old", "dirty"].map(|name| format!("refs/lifeboat/{name}/{id}"));
    for name in own.iter().chain([&repository.keep]) {
        let lock = common.join(format!("{name}.lock"));
        if lock.symlink_metadata().is_ok() {
            remove(ground, &lock)?;
        }
    }
    Ok(())
}

/// Locks that no git holds any more: they stay, and none is at work in the tree.
pub(super) fn left(dir: &Path, git_dir: &Path) -> Vec<PathBuf> {
    let found: Vec<PathBuf> = locks(git_dir).into_iter().filter(|lock| stays(lock)).collect();
    if found.is_empty() {
        return found;
    }
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|e| e.path());
    let mut at_work = all.filter(|process| {
        let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
        name.starts_with("git") && std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
    });
    if at_work.next().is_some() { Vec::new() } else { found }
}

fn remove(ground: &Ground, lock: &Path) -> Result<(), SourceError> {
    ground.git.run(&["rm", "-f", "--", &lock.to_string_lossy()])
}

/// The same lock is there for longer than any git holds it.
fn stays(lock: &Path) -> bool {
    let id = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        path.symlink_metadata().ok().map(|m| (m.ino(), m.mtime(), m.mtime_nsec()))
    };
    let Some(first) = id(lock) else { return false };
    let begun = Instant::now();
    while begun.elapsed() < MOMENT {
        std::thread::sleep(NAP);
        if id(lock) != Some(first) {
            return false;
        }
    }
    true
}
