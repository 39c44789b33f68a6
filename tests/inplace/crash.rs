//! `kill -9` at every change of the file system, forward and on the way back: one of the two states, and nothing else.

use crate::files::{left_over, same, state};
use crate::world::World;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small application, its good state as a snapshot, spoilt since.
struct Site {
    world: World,
    good: Vec<(PathBuf, String)>,
    spoilt: Vec<(PathBuf, String)>,
}

/// What passes while the tree is spoilt, and fails once it is good again.
const NEVER_WELL: &str = "[[health]]\ncommand = [\"grep\", \"-q\", \"changed\", \"uploads/one.txt\"]\nattempts = 1\n";

impl Site {
    fn new(policy: &str) -> Self {
        let world = World::ready();
        world.add_to_policy(policy);
        let uploads = world.app().join("uploads");
        fs::hard_link(uploads.join("one.txt"), uploads.join("more")).unwrap();
        fs::create_dir(uploads.join("gone")).unwrap();
        fs::write(uploads.join("gone/x"), "x\n").unwrap();
        world.run(&["snapshot", "--tag", "good"]).exits(0);
        let good = state(&world.app());
        fs::write(uploads.join("one.txt"), "changed\n").unwrap();
        fs::remove_dir_all(uploads.join("gone")).unwrap();
        fs::write(world.app().join(".env"), "MODE=broken\n").unwrap();
        fs::remove_file(uploads.join("more")).unwrap();
        std::os::unix::fs::symlink("one.txt", uploads.join("more")).unwrap();
        fs::write(uploads.join("newer"), "newer\n").unwrap();
        let spoilt = state(&world.app());
        for dir in ["app", "state"] {
            copy(&[world.path(dir)], &world.path(&format!("saved-{dir}")));
        }
        Self { world, good, spoilt }
    }

    fn put_back(&self) {
        for dir in ["app", "state"] {
            fs::remove_dir_all(self.world.path(dir)).unwrap();
            copy(&[self.world.path(&format!("saved-{dir}"))], &self.world.path(dir));
        }
        for beside in left_over(&self.world).iter().filter(|p| p.parent() == Some(self.world.dir.path())) {
            fs::remove_dir_all(beside).unwrap();
        }
    }

    /// How many calls there are, and how many of them before the journal begins.
    fn calls(&self, calls: &str) -> (usize, usize) {
        let log = self.world.path("trace");
        let all = format!("trace={calls},fsync,rename,linkat");
        traced(&self.world, &["-o", log.to_str().unwrap(), "-e", &all], RESTORE);
        let text = fs::read_to_string(&log).unwrap();
        // Calls are counted for each thread; the one that writes the journal does all that matters.
        let own = text.lines().find(|l| l.contains("/rollback/")).expect("no journal was written");
        let own = own.split(' ').next().unwrap();
        let is_one = |line: &str| line.split(' ').next() == Some(own) && line.contains(&format!(" {calls}("));
        let begin = text.lines().position(|l| l.contains("/rollback/")).expect("no journal was written");
        let before = text.lines().take(begin).filter(|l| is_one(l)).count();
        self.put_back();
        (before, text.lines().filter(|l| is_one(l)).count())
    }

    fn kill(&self, calls: &str, n: usize, arguments: &[&str]) -> bool {
        kill(&self.world, calls, n, arguments)
    }

    fn is_pending(&self) -> bool {
        is_pending(&self.world)
    }

    /// One of the two states, and nothing left over but what is kept on purpose.
    fn is_one_of_two(&self, what: &str) -> bool {
        let newer = |p: &Path| p == Path::new("uploads/newer");
        let now = state(&self.world.app());
        let is_new = now.iter().any(|(p, _)| p == Path::new("uploads/gone"));
        println!("{what}: {}", if is_new { "new" } else { "old" });
        if is_new {
            let now: Vec<_> = now.into_iter().filter(|(p, _)| !newer(p)).collect();
            same(&self.good, &now);
            assert!(self.world.app().join("uploads/newer").exists());
        } else {
            same(&self.spoilt, &now);
            assert_eq!(left_over(&self.world), Vec::<PathBuf>::new(), "{what}");
        }
        is_new
    }
}

const RESTORE: &[&str] = &["restore", "good", "--in-place", "--yes"];
pub const RESUME: &[&str] = &["restore", "--resume"];

pub fn copy(from: &[PathBuf], to: &Path) {
    assert!(Command::new("cp").arg("-a").args(from).arg(to).status().unwrap().success());
}

/// The command under strace.
pub fn traced(world: &World, options: &[&str], arguments: &[&str]) -> std::process::Output {
    let plain = world.command(arguments);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y"]).args(options).arg(plain.get_program()).args(plain.get_args());
    command.env_clear().env("HOME", world.dir.path()).env("PATH", std::env::var_os("PATH").unwrap());
    command.current_dir(world.dir.path()).output().unwrap()
}

/// Kills the command at its nth call of this name; `false`: it did not come to that.
pub fn kill(world: &World, calls: &str, n: usize, arguments: &[&str]) -> bool {
    use std::os::unix::process::ExitStatusExt;
    let inject = format!("inject={calls}:signal=SIGKILL:when={n}");
    let trace = format!("trace={calls}");
    let output = traced(world, &["-o", "/dev/null", "-e", &trace, "-e", &inject], arguments);
    output.status.signal() == Some(9) || output.status.code() == Some(137)
}

/// A transaction is pending: nothing else goes on until it is settled.
pub fn is_pending(world: &World) -> bool {
    world.run(&["list"]).exits(0).err.contains("was cut short")
}

/// Kills at each of these calls from the journal's begin on. Returns how often it was pending, new, old.
fn kill_at_every(calls: &[&str], site: &Site, twice: bool) -> (usize, usize, usize) {
    // Calls of one name are counted by themselves.
    let each = calls.iter().map(|call| kill_at_each(call, site, twice));
    each.reduce(|a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2)).unwrap()
}

fn kill_at_each(calls: &str, site: &Site, twice: bool) -> (usize, usize, usize) {
    let (before, all) = site.calls(calls);
    let (mut pending, mut new, mut old) = (0, 0, 0);
    for n in before.max(1)..=all {
        if !site.kill(calls, n, RESTORE) {
            site.put_back();
            continue;
        }
        let what = format!("killed at {calls} {n} of {all}");
        if site.is_pending() {
            pending += 1;
            if pending == 1 {
                site.world.run(&["snapshot"]).exits(5).says(&["cut short", "restore --resume"]).one_error_with_a_hint();
                site.world.run(RESTORE).exits(5).says(&["restore --resume"]);
            }
            // Killed once more on the way to the end.
            if twice {
                site.kill(calls, 1 + n % 7, RESUME);
            }
            if site.is_pending() {
                site.world.run(RESUME).exits(0);
            }
        }
        assert!(!site.is_pending(), "{what}");
        if site.is_one_of_two(&what) {
            new += 1
        } else {
            old += 1
        }
        if n % 8 == 0 {
            site.world.run(&["snapshot"]).exits(0);
        }
        site.put_back();
    }
    println!("{calls}: {pending} pending, {new} new, {old} old");
    (pending, new, old)
}

#[test]
fn killed_at_any_sync() {
    let (pending, new, old) = kill_at_every(&["fsync"], &Site::new(""), false);
    assert!(pending > 10 && new > 2 && old > 2, "{pending} {new} {old}");
}

#[test]
fn killed_at_any_rename_and_again() {
    let (pending, new, _) = kill_at_every(&["renameat", "linkat"], &Site::new(""), true);
    assert!(pending > 5 && new > 2, "{pending} {new}");
}

#[test]
fn killed_at_any_removal_or_new_folder() {
    let (pending, ..) = kill_at_every(&["unlinkat", "mkdirat", "openat2"], &Site::new(""), false);
    assert!(pending > 5, "{pending}");
}

#[test]
fn killed_on_the_way_back() {
    let site = Site::new(NEVER_WELL);
    let (pending, new, old) = kill_at_every(&["renameat", "linkat", "unlinkat"], &site, true);
    assert!(pending > 5 && new == 0 && old > 5, "{pending} {new} {old}");
    let (pending, new, _) = kill_at_every(&["fsync"], &site, false);
    assert!(pending > 10 && new == 0, "{pending} {new}");
}
