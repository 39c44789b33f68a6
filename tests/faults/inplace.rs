//! Errors at every call of a restore in place: the old state or the new one, by the next command, and no success that is
//! none. And a source that cannot be read.

use crate::cli::World;
use crate::site::{Done, SNAPSHOT, Site, is_whole};
use crate::sweep::{Fault, LASTING, Sweep};
use crate::tree::{differences, records};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const RESTORE: &[&str] = &["restore", "first", "--in-place", "--only", "uploads", "--yes"];

const FAULTS: &[Fault] = &[
    Fault::once("write,pwrite64,writev", "error=ENOSPC"),
    Fault::once("fsync,fdatasync,syncfs", "error=EIO"),
    Fault::once("linkat,renameat,renameat2,rename", "error=EIO"),
    Fault::once("mkdir,mkdirat,openat2", "error=ENOSPC"),
    Fault::once("unlink,unlinkat,rmdir", "error=EIO"),
    Fault::once("read,pread64,getdents64", "error=EIO"),
];

/// Folders and files of transactions beside the application, and folders of theirs in the state folder.
pub fn left(world: &World) -> Vec<PathBuf> {
    let names = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let is_own = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with(".lifeboat-") || name.starts_with(".tmp") || name.ends_with(".tmp")
    };
    let places = [world.dir.path().to_owned(), world.app(), world.app().join("uploads")];
    let beside = places.into_iter().flat_map(names).filter(is_own);
    beside.chain(names(world.path("state/rollback")).into_iter().filter(|p| p.is_dir())).collect()
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn sweep_of_a_restore_in_place() {
    let site = Site::new();
    let app = site.world.app();
    copy(&app, &site.world.path("saved-app"));
    let spoilt = records(&app);
    site.world.run(RESTORE).exits(0);
    let good = records(&app);
    assert!(good != spoilt);
    // The application as it was.
    let put_back = |site: &Site| {
        fs::remove_dir_all(&app).unwrap();
        copy(&site.world.path("saved-app"), &app);
        for left in left(&site.world) {
            fs::remove_dir_all(left).unwrap();
        }
    };
    let (old, new, pending) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let count = |cell: &Cell<usize>| cell.set(cell.get() + 1);
    let after = |site: &Site, done: &Done, what: &str| {
        if site.world.run(&["list"]).exits(0).err.contains("was cut short") {
            assert_ne!(done.code, 0, "{what}");
            count(&pending);
            site.world.run(&["restore", "--resume"]).exits(0);
        }
        let now = records(&app);
        let is_new = differences(&good, &now).is_empty();
        let from_old = differences(&spoilt, &now);
        assert!(is_new || (from_old.is_empty() && done.code != 0), "{what}: a state between: {from_old:#?}");
        let stays = left(&site.world);
        if !is_new {
            count(&old);
            assert_eq!(stays, Vec::<PathBuf>::new(), "{what}: it stays of a transaction that was taken back");
            return;
        }
        count(&new);
        // What was replaced, and the list of it, until nobody can ask for it any more.
        let names = |dir: &Path| fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        let [beside, list] = &stays[..] else { panic!("{what}: {stays:?}") };
        let laid_out = names(&beside.join("new"));
        assert!(laid_out.is_empty() && names(beside).len() == 2, "{what}: {laid_out:?} in {:?}", names(beside));
        assert!(!names(list).iter().any(|n| n.to_string_lossy().contains("tmp")), "{what}: {:?}", names(list));
        site.world.run(&["restore", "--undo", "--yes"]).exits(0);
        let differs = differences(&spoilt, &records(&app));
        assert!(differs.is_empty(), "{what}: undone, and not as it was:\n{}", differs.join("\n"));
        assert_eq!(left(&site.world), Vec::<PathBuf>::new(), "{what}: it stays of what was undone");
    };
    let mut sweep = Sweep::new(&site, RESTORE, &put_back, false, &after);
    sweep.errors(FAULTS, 2);
    sweep.errors(if is_whole() { LASTING } else { &LASTING[..1] }, 1);
    sweep.end();
    let (old, new, pending) = (old.get(), new.get(), pending.get());
    println!("of a restore in place: {old} old, {new} new, {pending} pending");
    // Few calls may fail while it succeeds, and a thinned sweep may meet none of them.
    assert!(old > 0, "{old} old, {new} new");
}

/// A file that cannot be read costs itself: it is named, and the snapshot is no success.
#[test]
fn sweep_of_a_file_that_cannot_be_read() {
    let site = Site::new();
    let large = site.world.app().canonicalize().unwrap().join("uploads/large");
    let calls = "read,pread64,readv,preadv,copy_file_range,sendfile,splice";
    let (mut red, mut n) = (0, 0);
    loop {
        n += 1;
        site.put_back();
        let log = site.world.path("trace");
        let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:error=EIO:when={n}"));
        let wrapper = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-P", large.to_str().unwrap()];
        let done = site.wrapped(&[&wrapper[..], &["-e", &trace, "-e", &inject]].concat(), SNAPSHOT);
        if !fs::read_to_string(&log).unwrap().contains("(INJECTED)") {
            break;
        }
        red += 1;
        assert!(matches!(done.code, 1 | 3), "read {n}: {}", done.said);
        assert!(done.said.contains("large"), "the file is not named: {}", done.said);
        site.is_well(&format!("read {n} of a source"), false, SNAPSHOT);
    }
    println!("{red} cases of a file that cannot be read");
    assert!(red > 0);
}
