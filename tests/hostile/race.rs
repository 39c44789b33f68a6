//! Whoever may write into the tree swaps folders for symlinks while root restores: nothing outside is touched.

use crate::cli::{Ran, World};
use crate::tree::{Record, assert_same, records};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const FOLDERS: usize = 6;
const FILES: usize = 25;
/// How often a folder changes its place before the next one does.
const SWAPS: u64 = 64;
/// How often one that is still to come is tried, so that it is taken the moment it is made.
const PATIENCE: usize = 2000;

/// An application, and a victim beside it with some of the names in the application's own folders: some could be
/// changed or removed there, others be new.
struct Site {
    world: World,
    victim: PathBuf,
    before: BTreeMap<PathBuf, Record>,
    /// Folders and files that were opened without `openat2`.
    old_way: AtomicU64,
}

/// Every so manieth of the files.
fn fill(dir: &Path, content: &str, every: usize) {
    fs::create_dir_all(dir.join("sub")).unwrap();
    for n in (0..FILES).step_by(every) {
        fs::write(dir.join(format!("sub/file-{n}")), format!("{content} {n}")).unwrap();
        fs::write(dir.join(format!("file-{n}")), format!("{content} {n}")).unwrap();
    }
}

impl Site {
    fn new() -> Self {
        let world = World::ready();
        let victim = world.path("victim");
        fill(&victim, "victim", 2);
        let before = records(&victim);
        let site = Self { world, victim, before, old_way: AtomicU64::new(0) };
        site.spoil("good");
        site.world.run(&["snapshot", "--only", "uploads", "--tag", "good"]).exits(0);
        site
    }

    fn folders(&self, below: &Path) -> Vec<PathBuf> {
        (0..FOLDERS).map(|n| below.join(format!("d{n}"))).collect()
    }

    /// The tree with another content.
    fn spoil(&self, content: &str) {
        let uploads = self.world.app().join("uploads");
        fs::remove_dir_all(&uploads).unwrap();
        fs::create_dir(&uploads).unwrap();
        self.folders(&uploads).iter().for_each(|dir| fill(dir, content, 1));
    }

    /// What goes on while these folders are swapped without end; how often they were.
    fn raced(&self, folders: &[PathBuf], work: impl FnOnce()) -> u64 {
        /// Stops the thread, also when a check fails.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let (stop, swapped) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Every second folder is a link before it is there; the others change places with one as fast as can be.
                while !stop.load(Ordering::Relaxed) {
                    for (n, dir) in folders.iter().enumerate() {
                        let aside = dir.with_extension("aside");
                        if n % 2 == 1 && symlink(&self.victim, dir).is_ok() {
                            swapped.fetch_add(1, Ordering::Relaxed);
                            std::thread::yield_now();
                            let _ = fs::remove_file(dir);
                        }
                        let mut patience = if symlink(&self.victim, &aside).is_ok() { PATIENCE } else { 0 };
                        // And a file that is still to come is a link; the victim itself has one of that name.
                        let last = dir.join(format!("file-{}", FILES - 1));
                        let _ = symlink(self.victim.join("file-0"), &last);
                        let mut swaps = 0;
                        while swaps < SWAPS {
                            if renameat_with(CWD, dir, CWD, &aside, RenameFlags::EXCHANGE).is_ok() {
                                swaps += 1;
                            } else if patience > 0 {
                                patience -= 1;
                            } else {
                                break;
                            }
                        }
                        swapped.fetch_add(swaps, Ordering::Relaxed);
                        let is_to_come = swaps == 0 && aside.is_symlink();
                        // However often it went, the folder is a folder in the end, as most of what is restored is.
                        if dir.is_symlink() && !aside.is_symlink() {
                            let _ = renameat_with(CWD, dir, CWD, &aside, RenameFlags::EXCHANGE);
                        }
                        let _ = fs::remove_file(&aside);
                        if last.is_symlink() {
                            let _ = fs::remove_file(&last);
                        }
                        // The next one comes after this one.
                        if is_to_come {
                            break;
                        }
                    }
                }
            });
            let _stop = Stop(&stop);
            work();
        });
        swapped.load(Ordering::Relaxed)
    }

    /// The command on a kernel as it is, or on one without `openat2`: every other round.
    fn run(&self, round: usize, arguments: &[&str]) -> Ran {
        if round % 4 < 2 {
            return self.world.run(arguments);
        }
        let (plain, log) = (self.world.command(arguments), self.world.path("trace"));
        let mut command = Command::new("strace");
        // Calls that are not looked at are not stopped for: the race is as close as otherwise.
        command.args(["-f", "--seccomp-bpf", "-qq", "-e", "trace=openat2", "-e", "inject=openat2:error=ENOSYS", "-o"]);
        command.arg(&log).arg(plain.get_program()).args(plain.get_args());
        command.env_clear().env("HOME", self.world.dir.path()).env("PATH", std::env::var_os("PATH").unwrap());
        let ran = command.current_dir(self.world.dir.path()).output().unwrap().into();
        let old_way = fs::read_to_string(&log).unwrap().matches("(INJECTED)").count();
        self.old_way.fetch_add(old_way as u64, Ordering::Relaxed);
        ran
    }

    fn is_untouched(&self, what: &str) {
        println!("{what}");
        assert_same(&self.before, &records(&self.victim));
    }
}

fn rounds() -> usize {
    if std::env::var_os("LIFEBOAT_SWEEP").is_some_and(|v| v == "1") { 100 } else { 8 }
}

#[test]
fn a_restore_in_place_follows_no_link_that_comes_meanwhile_sweep() {
    let site = Site::new();
    let uploads = site.world.app().join("uploads");
    let (mut swapped, mut done, mut red) = (0, 0, 0);
    for round in 0..rounds() {
        site.spoil(&format!("spoilt {round}"));
        let exact: &[&str] = if round % 2 == 0 { &["--exact"] } else { &[] };
        let arguments = [&["restore", "good", "--in-place", "--only", "uploads", "--yes"], exact].concat();
        swapped += site.raced(&site.folders(&uploads), || {
            // Whatever comes of it: to write elsewhere is not among it.
            let ran = site.run(round, &arguments);
            assert!(matches!(ran.code, 0..=6), "{ran:?}");
            if ran.code == 0 {
                done += 1
            } else {
                red += 1
            }
            site.is_untouched(&format!("round {round}: {} {}", ran.code, ran.err));
        });
        if site.world.run(&["list"]).exits(0).err.contains("was cut short") {
            site.world.run(&["restore", "--resume"]);
        }
        site.is_untouched("settled");
        // Nor is it by the way back.
        site.raced(&site.folders(&uploads), || drop(site.run(round, &["restore", "--undo", "--yes"])));
        site.is_untouched("undone");
        // The next round begins anew, whatever this one came to.
        let _ = fs::remove_dir_all(site.world.path("state/rollback"));
        for left in fs::read_dir(site.world.dir.path()).unwrap().map(|e| e.unwrap()) {
            if left.file_name().to_string_lossy().starts_with(".lifeboat-") {
                fs::remove_dir_all(left.path()).unwrap();
            }
        }
    }
    let old_way = site.old_way.into_inner();
    println!(
        "{swapped} cases of a swap under {done} restores in place that succeeded and {red} that did not; {old_way} opened without openat2"
    );
    assert!(swapped > 50 && old_way > 100, "{swapped} {old_way}");
}

#[test]
fn a_restore_into_a_folder_follows_no_link_that_comes_meanwhile_sweep() {
    let site = Site::new();
    let uploads = site.world.app().canonicalize().unwrap().join("uploads");
    let mut swapped = 0;
    for round in 0..rounds() {
        let into = site.world.path("into");
        // Where it is made, and where it lies in the end.
        let made = [".uploads.partial", "uploads"].map(|name| into.join(name).join(uploads.strip_prefix("/").unwrap()));
        let folders: Vec<PathBuf> = made.iter().flat_map(|dir| site.folders(dir)).collect();
        swapped += site.raced(&folders, || {
            let ran = site.run(round, &["restore", "good", "--only", "uploads", "--into", into.to_str().unwrap()]);
            assert!(matches!(ran.code, 0..=6), "{ran:?}");
            site.is_untouched(&format!("round {round}: {} {}", ran.code, ran.err));
        });
        site.is_untouched("behind it");
        let _ = fs::remove_dir_all(&into);
    }
    let old_way = site.old_way.into_inner();
    println!("{swapped} cases of a swap under a restore; {old_way} opened without openat2");
    assert!(swapped > 10 && old_way > 100, "{swapped} {old_way}");
}
