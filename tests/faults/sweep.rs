//! Kills and errors at every call of a snapshot, a restore, a prune and a repair of the index.

use crate::excuse::excuse;
use crate::site::{Cases, SNAPSHOT, Site, points};
use std::collections::BTreeMap;
use std::fs;

/// Calls that change something, by what they change. strace counts each call of a set by itself, in each thread: one number
/// may hit several.
const CHANGES: &[&str] = &[
    "write,pwrite64,writev,pwritev2,copy_file_range,sendfile,splice",
    "fsync,fdatasync,syncfs,sync_file_range",
    "link,linkat,rename,renameat,renameat2",
    "mkdir,mkdirat,unlink,unlinkat,rmdir",
    "ftruncate,fallocate,fchmod,fchown,utimensat",
];

/// A sort of fault, at which calls, and whether nobody may notice it.
struct Fault {
    calls: &'static str,
    what: &'static str,
    transparent: bool,
}

const FAULTS: &[Fault] = &[
    Fault { calls: "write,pwrite64,writev", what: "error=ENOSPC", transparent: false },
    Fault { calls: "write,pwrite64,writev", what: "error=EIO", transparent: false },
    Fault { calls: "fsync,fdatasync,syncfs", what: "error=EIO", transparent: false },
    Fault { calls: "linkat,renameat,renameat2,rename", what: "error=EROFS", transparent: false },
    Fault { calls: "linkat,renameat,renameat2,rename", what: "error=EIO", transparent: false },
    Fault { calls: "mkdir,mkdirat,ftruncate,fallocate", what: "error=ENOSPC", transparent: false },
    Fault { calls: "unlink,unlinkat,rmdir", what: "error=EIO", transparent: false },
    Fault { calls: "getdents64", what: "error=EIO", transparent: false },
    Fault { calls: "read,pread64", what: "error=EIO", transparent: false },
    Fault { calls: "close", what: "error=EIO", transparent: false },
    Fault { calls: "read,pread64,write,pwrite64", what: "error=EINTR", transparent: true },
];

/// The command, what makes it do something, and whether it removes snapshots.
fn sweep(arguments: &[&str], prepare: impl Fn(&Site), prunes: bool, after: impl Fn(&Site, &str)) {
    let site = Site::new();
    let ready = || {
        site.put_back();
        prepare(&site);
    };
    let count = |calls: &str| {
        ready();
        site.calls(calls, arguments)
    };
    let (mut kills, mut errors, mut missed) = (0, 0, 0);
    let mut cases = Cases::default();
    let mut excuses = BTreeMap::new();
    let mut false_successes = Vec::new();
    for (at, calls) in CHANGES.iter().enumerate() {
        for n in points(count(calls), if at < 3 { 2 } else { 1 }) {
            cases.one(&format!("{arguments:?} killed at {calls} {n}"), |what| {
                ready();
                let done = site.inject(calls, &format!("signal=KILL:when={n}"), arguments);
                if !done.killed {
                    // Threads share the work in another way each time: this one had fewer calls.
                    assert_eq!(done.code, 0, "{what}: {}", done.said);
                    missed += 1;
                    return;
                }
                kills += 1;
                after(&site, what);
                site.is_well(what, prunes, arguments);
            });
        }
    }
    for fault in FAULTS {
        // Each thread counts for itself: the first one is that of every thread.
        let few = if fault.transparent { 1 } else { 2 };
        for n in points(count(fault.calls), few) {
            cases.one(&format!("{arguments:?} with {} at {} {n}", fault.what, fault.calls), |what| {
                ready();
                let done = site.inject(fault.calls, &format!("{}:when={n}", fault.what), arguments);
                let what = format!("{what}: {}", done.said);
                // What fails before the program begins is the loader's; and a wake-up between threads of the network's
                // runtime waits for nothing, so that nothing interrupts it.
                let elsewhere = ["while loading shared libraries", "failed to wake I/O driver"];
                if !done.hit || elsewhere.iter().any(|e| done.said.contains(e)) {
                    missed += 1;
                    return;
                }
                errors += 1;
                // What is printed may fail to be printed; then nobody is told, and the code says so.
                if fault.transparent {
                    assert_eq!(done.code, 0, "{what}");
                }
                if done.code == 0 && !fault.transparent {
                    for call in done.injected() {
                        match excuse(&site, &done, call) {
                            Some(excuse) => *excuses.entry(excuse).or_insert(0) += 1,
                            None => {
                                let said: String = done.said.chars().take(300).collect();
                                let (name, paths) = (&call.name, call.paths());
                                false_successes.push(format!("{} {n}: {name} {paths:?}: {said}", fault.what));
                            }
                        }
                    }
                }
                if done.code == 0 {
                    after(&site, &what);
                }
                site.is_well(&what, prunes, arguments);
            });
        }
    }
    println!(
        "{} cases of {arguments:?}: {kills} kills, {errors} errors, {missed} not met, {} false successes, {} not well; excused: {excuses:?}",
        kills + errors,
        false_successes.len(),
        cases.failed()
    );
    assert!(false_successes.is_empty(), "{arguments:?} succeeded in spite of\n{}", false_successes.join("\n"));
    cases.are_well();
    assert!(kills >= 4 && errors >= 4, "{kills} kills and {errors} errors");
}

#[test]
fn sweep_of_a_snapshot() {
    sweep(SNAPSHOT, |_| (), false, |_, _| ());
}

#[test]
fn sweep_of_a_prune() {
    let site = Site::new();
    site.world.run(&["prune", "--now"]).exits(0);
    assert_eq!(site.world.snapshots().len(), 2, "there is something to remove");
    sweep(&["prune", "--now"], |_| (), true, |_, _| ());
}

/// One bit of what a snapshot's list of archives says.
fn spoil_refs(site: &Site, sequence: u64) {
    let name = format!("/{sequence:010}.");
    let headers = site.world.files("state/repository/snapshots");
    let header = headers.iter().find(|f| f.0.to_string_lossy().contains(&name)).unwrap();
    let header: serde_json::Value = serde_json::from_slice(header.1.split(|b| *b == b'\n').next().unwrap()).unwrap();
    let refs = site.world.repository().join(format!("refs/{}.txt", header["refs"].as_str().unwrap()));
    let mut bytes = fs::read(&refs).unwrap();
    bytes[20] ^= 1;
    fs::write(&refs, &bytes).unwrap();
}

/// What earlier snapshots have stored need not be known; that it cannot be read is said.
#[test]
fn a_snapshot_says_which_refs_it_could_not_read() {
    let site = Site::new();
    spoil_refs(&site, 3);
    site.world.run(SNAPSHOT).exits(0).says(&["refs of snapshot", "are left out"]);
}

/// What is removed is on record before anything of it goes, also where what it needs cannot be read.
#[test]
fn nothing_of_a_removed_snapshot_goes_before_it_is_on_record() {
    let site = Site::new();
    spoil_refs(&site, 2);
    let before = site.world.files("state/repository");
    // The first thing that is written is the signer for removals, then the record.
    for n in [1, 2] {
        let done = site.inject("linkat", &format!("signal=KILL:when={n}"), &["prune", "--now"]);
        assert!(done.killed, "{}", done.said);
        let now = site.world.files("state/repository");
        let gone: Vec<_> = before.iter().filter(|f| !now.contains(f)).map(|f| &f.0).collect();
        assert!(gone.is_empty(), "killed at write {n}: {gone:?}");
    }
    let ran = site.world.run(&["prune", "--now"]).exits(0).shows(&["1 snapshot removed"]);
    // How many depends on what the third snapshot shares with the second: what this host tells of itself changes.
    let now = site.world.files("state/repository");
    let gone = before.iter().filter(|f| !now.contains(f) && !f.0.to_string_lossy().contains("snapshots/")).count();
    assert!(gone >= 2);
    ran.shows(&[&format!("{gone} objects")]);
    assert_eq!(site.world.snapshots().len(), 2);
    site.world.run(&["verify", "--deep"]).exits(0);
}

#[test]
fn sweep_of_an_index_repair() {
    let forget = |site: &Site| {
        let _ = fs::remove_dir_all(site.world.path("state/cache"));
    };
    // A repair that was cut short is made once more, as the one before it would have had to be.
    sweep(&["repair", "index"], forget, false, |site, what| {
        let ran = site.world.run(&["repair", "index"]);
        assert_eq!(ran.code, 0, "{what}: {ran:?}");
    });
}

/// Nothing half-written is taken for a restored source: what stands under its name is whole, and the next restore goes
/// where this one wanted to.
#[test]
fn sweep_of_a_restore() {
    let arguments = ["restore", "first", "--only", "uploads", "--into", "into"];
    sweep(
        &arguments,
        |_| (),
        false,
        |site, what| {
            let whole = site.into().join("uploads");
            if whole.exists() {
                assert!(site.restored() == site.expected(), "{what}: half a source stands under its name");
                return;
            }
            // The next one goes to the same folder, and takes away what this one left.
            site.world.run(&arguments).exits(0);
            assert!(site.restored() == site.expected(), "{what}");
            assert_eq!(fs::read_dir(site.into()).unwrap().count(), 1, "{what}");
        },
    );
}
