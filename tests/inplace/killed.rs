//! `kill -9` at every call that changes something, of a restore in place and of its `--undo`: the next command leads to
//! one of the two states, with all that a file system holds, and both ways are open from there.

use crate::crash::{RESUME, copy, is_pending, kill, traced};
use crate::files::left_over;
use crate::tree::{Record, assert_same, records, run, set_mode, set_mtime, text};
use crate::world::World;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

const RESTORE: &[&str] = &["restore", "good", "--in-place", "--exact", "--privileged", "--yes"];
const UNDO: &[&str] = &["restore", "--undo", "--yes"];

/// All that changes something, by whatever name. Of opening a file, that which makes it.
const CALLS: &str = "write,pwrite64,writev,pwritev,pwritev2,copy_file_range,sendfile,splice,ftruncate,fallocate,\
    fsync,fdatasync,syncfs,link,linkat,rename,renameat,renameat2,mkdir,mkdirat,rmdir,unlink,unlinkat,symlink,symlinkat,\
    mknod,mknodat,chmod,fchmod,fchmodat,chown,lchown,fchown,fchownat,utimensat,setxattr,lsetxattr,fsetxattr,\
    removexattr,lremovexattr,fremovexattr,open,openat,openat2,creat";

type Tree = BTreeMap<PathBuf, Record>;

/// An application with some of everything, saved, and spoilt since.
struct Site {
    world: World,
    good: Tree,
    spoilt: Tree,
}

/// What is killed, and where it begins.
#[derive(Clone, Copy)]
struct Sweep<'a> {
    command: &'a [&'a str],
    /// The copy of everything from which each case starts.
    saved: &'a str,
}

/// All of the application but its own folder, which no source names.
fn all(world: &World) -> Tree {
    let mut found = records(&world.app());
    found.remove(Path::new(""));
    found
}

fn fill(world: &World) {
    let uploads = world.app().join("uploads");
    fs::hard_link(uploads.join("one.txt"), uploads.join("two names")).unwrap();
    symlink("one.txt", uploads.join("link")).unwrap();
    set_mtime(&uploads.join("link"), 1_600_000_000, 5);
    let sparse = fs::File::create(uploads.join("sparse")).unwrap();
    sparse.set_len(2 << 20).unwrap();
    for dir in ["modes", "read-only", "gone/deeper", "swapped"] {
        fs::create_dir_all(uploads.join(dir)).unwrap();
    }
    fs::write(uploads.join("modes/setuid"), "s").unwrap();
    chown(uploads.join("modes/setuid"), Some(1000), Some(27)).unwrap();
    set_mode(&uploads.join("modes/setuid"), 0o4711);
    fs::write(uploads.join("read-only/inside"), "r").unwrap();
    set_mtime(&uploads.join("read-only/inside"), -300_000_000, 250_000_000);
    fs::write(uploads.join("gone/deeper/x"), "x").unwrap();
    fs::write(uploads.join("swapped/in"), "in").unwrap();
    fs::write(uploads.join("same"), "same").unwrap();
    run(&["setfattr", "-n", "user.note", "-v", "n", text(&uploads.join("one.txt"))]);
    run(&["setfattr", "-n", "user.dir", "-v", "d", text(&uploads.join("modes"))]);
    run(&["setfacl", "-m", "u:12345:rw", text(&uploads.join("a/two.bin"))]);
    chown(uploads.join("gone"), Some(1234), Some(4321)).unwrap();
    set_mtime(&uploads.join("gone/deeper"), 1_400_000_000, 77);
    set_mode(&uploads.join("modes"), 0o2770);
    set_mode(&uploads.join("read-only"), 0o555);
    set_mtime(&uploads.join("read-only"), 1_400_000_000, 77);
}

/// Everything of it is another: content, kind, owner, mode, attributes, times, names.
fn spoil(world: &World) {
    let uploads = world.app().join("uploads");
    fs::remove_file(uploads.join("one.txt")).unwrap();
    fs::write(uploads.join("one.txt"), "changed\n").unwrap();
    fs::hard_link(uploads.join("one.txt"), uploads.join("newer name")).unwrap();
    fs::remove_file(uploads.join("link")).unwrap();
    fs::create_dir(uploads.join("link")).unwrap();
    fs::write(uploads.join("link/inside"), "a folder now").unwrap();
    fs::remove_dir_all(uploads.join("swapped")).unwrap();
    symlink("gone", uploads.join("swapped")).unwrap();
    fs::remove_dir_all(uploads.join("gone")).unwrap();
    fs::remove_file(uploads.join("sparse")).unwrap();
    set_mode(&uploads.join("modes/setuid"), 0o600);
    run(&["setfattr", "-x", "user.dir", text(&uploads.join("modes"))]);
    set_mode(&uploads.join("modes"), 0o700);
    fs::write(uploads.join("read-only/inside"), "spoilt").unwrap();
    run(&["setfattr", "-n", "user.of", "-v", "today", text(&uploads.join("read-only/inside"))]);
    run(&["setfacl", "-b", text(&uploads.join("a/two.bin"))]);
    fs::create_dir_all(uploads.join("newer/empty")).unwrap();
    fs::write(uploads.join("newer/x"), "newer").unwrap();
    set_mtime(&uploads.join("newer"), 1_500_000_000, 9);
    fs::write(world.app().join(".env"), "MODE=broken\n").unwrap();
}

impl Site {
    fn new() -> Self {
        let world = World::ready();
        fill(&world);
        world.run(&["snapshot", "--tag", "good"]).exits(0);
        let good = all(&world);
        spoil(&world);
        let spoilt = all(&world);
        let site = Self { world, good, spoilt };
        site.save("saved");
        site
    }

    /// What a case may change: the application, the state folder, what lies beside.
    fn parts(&self) -> Vec<PathBuf> {
        let listed = fs::read_dir(self.world.dir.path()).unwrap().map(|e| e.unwrap());
        let part = |name: &str| name == "app" || name == "state" || name.starts_with(".lifeboat-");
        listed.filter(|e| part(&e.file_name().to_string_lossy())).map(|e| e.path()).collect()
    }

    fn save(&self, name: &str) {
        fs::create_dir(self.world.path(name)).unwrap();
        // All at once: a file may have names in several of them.
        copy(&self.parts(), &self.world.path(name));
    }

    fn put_back(&self, saved: &str) {
        self.parts().iter().for_each(|part| fs::remove_dir_all(part).unwrap());
        let parts: Vec<PathBuf> = fs::read_dir(self.world.path(saved)).unwrap().map(|e| e.unwrap().path()).collect();
        copy(&parts, self.world.dir.path());
    }

    /// Where to kill: a call, its number, and whether the journal was there by then. Calls are counted for each thread by
    /// itself, and the one that writes the journal does nearly all that matters.
    fn points(&self, sweep: Sweep<'_>) -> Vec<(String, usize, bool)> {
        let log = self.world.path("trace");
        let trace = format!("trace={CALLS}");
        let output = traced(&self.world, &["-o", text(&log), "-e", &trace], sweep.command);
        assert!(output.status.success(), "{output:?}");
        let lines = fs::read_to_string(&log).unwrap();
        let own = lines.lines().find(|l| l.contains("/rollback/")).expect("no journal was written");
        let own = own.split(' ').next().unwrap();
        let (mut points, mut counts, mut begun) = (Vec::new(), HashMap::new(), false);
        for line in lines.lines().filter(|l| l.split(' ').next() == Some(own)) {
            begun |= line.contains("/rollback/");
            let Some((name, rest)) = line.split_once(' ').and_then(|(_, call)| call.trim_start().split_once('('))
            else {
                continue;
            };
            let n = counts.entry(name.to_owned()).or_insert(0_usize);
            *n += 1;
            if !matches!(name, "open" | "openat" | "openat2") || rest.contains("O_CREAT") {
                points.push((name.to_owned(), *n, begun));
            }
        }
        self.put_back(sweep.saved);
        points
    }

    /// What lies beside, and files of transactions.
    fn left(&self) -> Vec<PathBuf> {
        let saved = |p: &PathBuf| ["saved", "saved-done"].iter().any(|name| p.starts_with(self.world.path(name)));
        left_over(&self.world).into_iter().filter(|p| !saved(p)).collect()
    }

    fn is_spoilt(&self) {
        assert_same(&self.spoilt, &all(&self.world));
        assert_eq!(self.left(), Vec::<PathBuf>::new());
    }

    /// The new state, and beside it what the old one is kept in.
    fn is_good(&self) {
        assert_same(&self.good, &all(&self.world));
        let left = self.left();
        let (of_state, beside): (Vec<_>, Vec<_>) =
            left.iter().partition(|p| p.starts_with(self.world.path("state/rollback")));
        assert_eq!(of_state.len(), 1, "{left:?}");
        let id = of_state[0].file_name().unwrap().to_str().unwrap().to_owned();
        let of_this = |p: &&PathBuf| p.file_name().unwrap().to_string_lossy().starts_with(&format!(".lifeboat-{id}."));
        assert!(!beside.is_empty() && beside.iter().all(of_this), "{left:?}");
    }

    fn settle(&self, twice: Option<usize>) -> bool {
        if !is_pending(&self.world) {
            return false;
        }
        self.world.run(&["snapshot"]).exits(5).says(&["cut short", "restore --resume"]);
        // Once more on the way to the end.
        if let Some(n) = twice {
            kill(&self.world, ["fsync", "renameat", "unlinkat", "write"][n % 4], 1 + n % 9, RESUME);
        }
        if is_pending(&self.world) {
            self.world.run(RESUME).exits(0);
        }
        assert!(!is_pending(&self.world));
        true
    }

    /// From wherever it is: the new state, then the old one.
    fn there_and_back(&self) {
        if all(&self.world) != self.good {
            self.is_spoilt();
            self.world.run(RESTORE).exits(0);
        }
        self.is_good();
        self.world.run(UNDO).exits(0);
        self.is_spoilt();
    }
}

/// Every so manieth, at least from the journal's begin on in a whole sweep; before that it is the safety snapshot, which
/// has sweeps of its own.
fn thinned(points: Vec<(String, usize, bool)>, offset: usize) -> Vec<(String, usize, bool)> {
    let whole = std::env::var_os("LIFEBOAT_SWEEP").is_some_and(|v| v == "1");
    let step = if whole { 1 } else { points.len() / 5 };
    let first_of_journal = points.iter().position(|p| p.2).unwrap_or(0);
    let taken = |at: usize, begun: bool| match (whole, begun) {
        (true, true) => true,
        (true, false) => at.is_multiple_of(5) || at + 3 > first_of_journal,
        (false, _) => at % step == offset % step,
    };
    points.into_iter().enumerate().filter(|(at, p)| taken(*at, p.2)).map(|(_, p)| p).collect()
}

/// Kills at each of the points, and lets `ends` say what each case comes to.
fn sweep(site: &Site, sweep: Sweep<'_>, offset: usize, ends: &dyn Fn(&Site, bool)) {
    let points = thinned(site.points(sweep), offset);
    let (mut missed, mut pending, mut old, mut new) = (0, 0, 0, 0);
    let (mut failed, mut by_call) = (Vec::new(), BTreeMap::new());
    for (at, (call, n, _)) in points.iter().enumerate() {
        let case = format!("{:?} killed at {call} {n}", sweep.command);
        let one = std::panic::catch_unwind(AssertUnwindSafe(|| {
            if !kill(&site.world, call, *n, sweep.command) {
                missed += 1;
                return;
            }
            *by_call.entry(call.clone()).or_insert(0) += 1;
            let was_pending = site.settle((at % 4 == 3).then_some(at));
            pending += usize::from(was_pending);
            if all(&site.world) == site.good {
                site.is_good();
                new += 1
            } else {
                site.is_spoilt();
                old += 1
            }
            ends(site, was_pending);
        }));
        if one.is_err() {
            eprintln!("not well: {case}");
            failed.push(case);
        }
        site.put_back(sweep.saved);
    }
    println!(
        "{} cases of {:?}: {pending} pending, {new} new, {old} old, {missed} not met, {} not well; {by_call:?}",
        points.len() - missed,
        sweep.command,
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(missed <= 1 + points.len() / 10 && pending > 0, "{missed} not met, {pending} pending");
}

#[test]
fn sweep_of_a_restore_in_place_killed() {
    let site = Site::new();
    sweep(&site, Sweep { command: RESTORE, saved: "saved" }, 7, &|site, _| site.there_and_back());
}

#[test]
fn sweep_of_its_undo_killed() {
    let site = Site::new();
    site.world.run(RESTORE).exits(0);
    site.is_good();
    site.save("saved-done");
    sweep(&site, Sweep { command: UNDO, saved: "saved-done" }, 3, &|site, was_pending| {
        // What was asked for is begun: it comes to its end.
        assert!(!was_pending || all(&site.world) == site.spoilt);
        if !was_pending && all(&site.world) == site.good {
            site.world.run(UNDO).exits(0);
            site.is_spoilt();
        }
        site.there_and_back();
    });
}
