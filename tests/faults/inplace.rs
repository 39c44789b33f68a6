//! Errors at every call of a restore in place: the old state or the new one, by the next command, and no success that is
//! none. And a source that cannot be read.

use crate::cli::tree;
use crate::excuse::excuse;
use crate::site::{Cases, SNAPSHOT, Site, points};
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

const RESTORE: &[&str] = &["restore", "first", "--in-place", "--only", "uploads", "--yes"];

const FAULTS: &[(&str, &str)] = &[
    ("write,pwrite64,writev", "error=ENOSPC"),
    ("fsync,fdatasync,syncfs", "error=EIO"),
    ("linkat,renameat,renameat2,rename", "error=EIO"),
    ("mkdir,mkdirat,openat2", "error=ENOSPC"),
    ("unlink,unlinkat,rmdir", "error=EIO"),
    ("read,pread64,getdents64", "error=EIO"),
];

#[test]
fn sweep_of_a_restore_in_place() {
    let site = Site::new();
    let uploads = site.world.app().join("uploads");
    let saved = site.world.path("saved-app");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    copy(&site.world.app(), &saved);
    let spoilt = tree(&uploads);
    site.world.run(RESTORE).exits(0);
    let good = tree(&uploads);
    let put_back = || {
        site.put_back();
        for left in fs::read_dir(site.world.dir.path()).unwrap().map(|e| e.unwrap()) {
            if left.file_name() == "app" || left.file_name().to_string_lossy().starts_with(".lifeboat-") {
                fs::remove_dir_all(left.path()).unwrap();
            }
        }
        copy(&saved, &site.world.app());
    };
    put_back();
    let (mut old, mut new, mut pending, mut missed) = (0, 0, 0, 0);
    let mut cases = Cases::default();
    let mut excuses = BTreeMap::new();
    let mut false_successes = Vec::new();
    for (calls, what) in FAULTS {
        let count = site.calls(calls, RESTORE);
        for n in points(count, 2) {
            put_back();
            cases.one(&format!("{what} at {calls} {n}"), |case| {
                let done = site.inject(calls, &format!("{what}:when={n}"), RESTORE);
                let case = format!("{case}: {}", done.said);
                if !done.hit || done.said.contains("while loading shared libraries") {
                    missed += 1;
                    return;
                }
                if site.world.run(&["list"]).exits(0).err.contains("was cut short") {
                    assert_ne!(done.code, 0, "{case}");
                    pending += 1;
                    site.world.run(&["restore", "--resume"]).exits(0);
                }
                let now = tree(&uploads);
                if now == good {
                    new += 1
                } else {
                    old += 1
                }
                assert!(now == good || now == spoilt, "{case}: a state between");
                if done.code == 0 {
                    assert!(now == good, "{case}");
                    for call in done.injected() {
                        match excuse(&site, &done, call) {
                            Some(why) => *excuses.entry(why).or_insert(0) += 1,
                            None => {
                                let (name, paths) = (&call.name, call.paths());
                                false_successes.push(format!("{what} {n}: {name} {paths:?}: {}", done.said));
                            }
                        }
                    }
                }
                site.world.run(SNAPSHOT).exits(0);
            });
        }
    }
    println!(
        "{} cases of {RESTORE:?}: {old} old, {new} new, {pending} resumed, {missed} not met, {} false successes, {} not well; excused: {excuses:?}",
        old + new,
        false_successes.len(),
        cases.failed()
    );
    assert!(false_successes.is_empty(), "it succeeded in spite of\n{}", false_successes.join("\n"));
    cases.are_well();
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
