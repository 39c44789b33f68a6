//! A disk that fills up anywhere, inodes that run out, few descriptors, little memory. (A kernel remounts nothing read-only
//! that somebody writes to: what that would be like is injected, see `sweep`.)

use crate::inplace::{RESTORE, left};
use crate::site::{SNAPSHOT, Site, points};
use crate::tree::{differences, records};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const COMMANDS: [&[&str]; 3] = [SNAPSHOT, &["restore", "first", "--only", "uploads", "--into", "into"], &["verify"]];

/// A small file system at a place, until dropped.
struct Small(PathBuf);

impl Small {
    fn new(at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status().unwrap();
        assert!(mounted.success(), "these tests mount file systems, as root");
        Self(at.to_owned())
    }

    fn remount(&self, options: &str) {
        let argument = format!("remount,{options}");
        assert!(Command::new("mount").args(["-o", &argument]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// What a file system may hold: what it holds, and so much more.
fn narrow(small: &Small, inodes: bool, more: u64) {
    let used = rustix::fs::statvfs(&small.0).unwrap();
    small.remount(&if inodes {
        format!("nr_inodes={}", used.f_files - used.f_ffree + more)
    } else {
        format!("size={}", (used.f_blocks - used.f_bfree) * used.f_frsize + more)
    });
}

/// Puts a folder onto a small file system while something is done there with room for `more`, and then with room enough.
fn in_little_room(
    place: &Path,
    kept: &Path,
    (inodes, more): (bool, u64),
    narrowly: impl FnOnce(),
    widely: impl FnOnce(),
) {
    fs::rename(place, kept).unwrap();
    let small = Small::new(place, "size=64m");
    let copied = Command::new("cp").arg("-a").arg(kept.join(".")).arg(place).status().unwrap();
    assert!(copied.success());
    narrow(&small, inodes, more);
    narrowly();
    small.remount("size=64m,nr_inodes=0");
    widely();
    drop(small);
    fs::remove_dir(place).unwrap();
    fs::rename(kept, place).unwrap();
}

/// The repository on a file system that is full after so many more bytes or inodes: red, the old snapshots whole, and
/// well again once there is room.
#[test]
fn sweep_of_full_disks_and_inodes() {
    let site = Site::new();
    let policy = fs::read_to_string(site.world.policy()).unwrap();
    let min_free = "min_free = \"0B\"";
    let policy = match policy.lines().find(|l| l.starts_with("min_free")) {
        Some(line) => policy.replace(line, min_free),
        None => policy.replace("[repository]\n", &format!("[repository]\n{min_free}\n")),
    };
    fs::write(site.world.policy(), policy).unwrap();
    let (repository, kept) = (site.world.repository(), site.world.path("kept"));
    let (prune, repair) = (["prune", "--now", "--json"], ["repair", "index", "--json"]);
    // How much more room a step gives, and the steps that the test command tries.
    let commands: [(&[&str], u64, usize); 3] =
        [(&["snapshot", "--only", "uploads", "--json"], 60_000, 2), (&prune, 4_096, 1), (&repair, 4_096, 1)];
    for (arguments, unit, few) in commands {
        // Of bytes, and of inodes.
        let (mut full, mut room) = ([0, 0], 0);
        for inodes in [false, true] {
            let steps = points(12, few);
            // Where one alone is tried, it is the one without any room.
            for step in if steps.len() == 1 { vec![1] } else { steps } {
                site.put_back();
                if arguments == repair {
                    let _ = fs::remove_dir_all(site.world.path("state/cache"));
                }
                let step = if unit == 4_096 || inodes { step as u64 - 1 } else { step as u64 };
                let more = if inodes { step } else { step * unit };
                let what = format!("{arguments:?} with {more} more {}", if inodes { "inodes" } else { "bytes" });
                let tried = || {
                    let ran = site.world.run(arguments);
                    if ran.code == 0 {
                        room += 1;
                    } else {
                        full[usize::from(inodes)] += 1;
                        assert_eq!(ran.code, 1, "{what}: {ran:?}");
                        assert!(
                            ran.out.contains("space") && ran.out.contains(repository.to_str().unwrap()),
                            "{what}: {ran:?}"
                        );
                        site.world.run(&["verify"]).exits(0);
                    }
                };
                in_little_room(&repository, &kept, (inodes, more), tried, || {
                    site.is_well(&what, arguments == prune, &arguments[..arguments.len() - 1]);
                });
            }
        }
        let [bytes, inodes] = full;
        println!(
            "cases of a full disk: {arguments:?}: {bytes} without room, {inodes} without inodes, {room} with room enough"
        );
        assert!(bytes >= 1 && inodes >= 1, "{arguments:?}: {bytes} without room, {inodes} without inodes");
    }
}

/// The application on a file system without room for what comes back: it is as it was, and nothing lies beside it.
#[test]
fn sweep_of_a_restore_in_place_without_room() {
    let site = Site::new();
    let (app, kept) = (site.world.app(), site.world.path("kept"));
    let (mut full, mut room) = (0, 0);
    for inodes in [false, true] {
        let steps = points(10, 1);
        for step in if steps.len() == 1 { vec![if inodes { 4 } else { 6 }] } else { steps } {
            site.put_back();
            let more = step as u64 * if inodes { 1 } else { 80_000 };
            let what = format!("a restore in place with {more} more {}", if inodes { "inodes" } else { "bytes" });
            // Mounted there, the folder has another time.
            let spoilt = || {
                let mut found = records(&app);
                found.remove(Path::new(""));
                found
            };
            let before = spoilt();
            let tried = || {
                let ran = site.world.run(RESTORE);
                if ran.code == 0 {
                    room += 1;
                    site.world.run(&["restore", "--undo", "--yes"]).exits(0);
                } else {
                    full += 1;
                    assert_eq!(ran.code, 1, "{what}: {ran:?}");
                    assert!(["room", "space", "inodes"].iter().any(|w| ran.err.contains(w)), "{what}: {ran:?}");
                }
                let listed = site.world.run(&["list"]).exits(0);
                if listed.err.contains("was cut short") {
                    site.world.run(&["restore", "--resume"]).exits(0);
                }
                let differs = differences(&before, &spoilt());
                assert!(differs.is_empty(), "{what}: it is not as it was:\n{}", differs.join("\n"));
                assert_eq!(left(&site.world), Vec::<PathBuf>::new(), "{what}");
            };
            in_little_room(&app, &kept, (inodes, more), tried, || site.is_well(&what, false, SNAPSHOT));
        }
    }
    println!("cases of a full disk: a restore in place: {full} without room, {room} with room enough");
    assert!(full >= 2, "{full} without room");
}

/// A destination of a restore that is full leaves nothing behind, whatever of it is full.
#[test]
fn sweep_of_full_destinations() {
    let site = Site::new();
    let mut full = 0;
    for options in ["size=300k", "size=615k", "nr_inodes=3", "nr_inodes=6", "nr_inodes=9"] {
        let small = Small::new(&site.world.path("small"), options);
        let into = small.0.join("into");
        let ran = site.world.run(&["restore", "first", "--only", "uploads", "--into", into.to_str().unwrap()]);
        assert_eq!(ran.code, 1, "{options}: {ran:?}");
        let ran = ran.says(&["error:", "hint:"]);
        assert!(
            ran.err.contains("room") || ran.err.contains("space") || ran.err.contains("inodes"),
            "{options}: {ran:?}"
        );
        assert_eq!(fs::read_dir(&small.0).unwrap().count(), 0, "{options}: something stays");
        full += 1;
    }
    println!("{full} cases of a full destination");
}

/// What a limit of the shell is of, and what is said where it is met.
struct Limit {
    sort: &'static str,
    shell: String,
    says: &'static [&'static str],
}

/// A descriptor or a file's length that is not to be had is an error like any other: code 1, and a line that names it.
#[test]
fn few_descriptors_and_small_files_are_errors_or_enough() {
    let site = Site::new();
    let open = |n: u32| Limit { sort: "descriptors", shell: format!("ulimit -n {n}"), says: &["Too many open files"] };
    let mut limits: Vec<Limit> = [5, 8, 12, 16, 24, 40].map(open).into();
    limits.push(Limit { sort: "lengths", shell: "ulimit -f 100".into(), says: &["File too large"] });
    let (mut red, mut green) = (BTreeMap::new(), 0);
    for Limit { sort, shell, says } in &limits {
        for arguments in COMMANDS {
            site.put_back();
            let done = site.wrapped(&["sh", "-c", &format!("{shell} && exec \"$@\""), "sh"], arguments);
            if done.code == 0 {
                green += 1;
                continue;
            }
            *red.entry(*sort).or_insert(0) += 1;
            assert_eq!(done.code, 1, "{shell} {arguments:?}: {}", done.said);
            let errors: Vec<&str> = done.said.lines().filter(|l| l.starts_with("error: ")).collect();
            let named = errors.len() == 1 && says.iter().any(|s| errors[0].contains(s));
            assert!(named, "{shell} {arguments:?} names nothing: {}", done.said);
        }
        site.is_well(shell, false, SNAPSHOT);
    }
    println!("cases of limits: {red:?} red, {green} green");
    assert!(red["descriptors"] > 3 && red["lengths"] >= 2 && green > 3, "{red:?} red, {green} green");
}

/// Memory that is not to be had is an error where it can be one. Rust ends a process that gets none for itself (abort):
/// the code is none of ours then, and the text says what was missing. What it never is: damage, or a success.
#[test]
fn little_memory_ends_a_run_and_is_never_damage() {
    let site = Site::new();
    let (mut ends, mut green) = (BTreeMap::new(), 0);
    // From what the program itself needs upwards.
    for mib in (90..=180).step_by(10).chain([300, 600]) {
        let (limit, before) = (format!("ulimit -v {}", mib << 10), ends.clone());
        for arguments in COMMANDS {
            site.put_back();
            let script = format!("{limit} && exec \"$@\"");
            let output = site.under(&["sh", "-c", &script, "sh"], arguments).output().unwrap();
            let said = [&output.stdout[..], &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned()).concat();
            let end = match (output.status.code(), output.status.signal()) {
                (Some(0), _) => {
                    green += 1;
                    continue;
                }
                // It did not begin.
                _ if said.contains("while loading shared libraries") => continue,
                (None, Some(11)) if said.is_empty() => continue,
                // 5386: SQLite's word for shared memory that cannot be mapped.
                (Some(1), _) if ["memory", "temporarily unavailable", "code 5386"].iter().any(|s| said.contains(s)) => {
                    "errors"
                }
                (None, Some(6)) if said.contains("memory allocation of") => "aborts",
                (code, signal) => panic!("{limit} {arguments:?}: {code:?} {signal:?}: {said}"),
            };
            *ends.entry(end).or_insert(0) += 1;
        }
        if ends != before {
            site.is_well(&limit, false, SNAPSHOT);
        }
    }
    println!("cases of little memory: {ends:?}, {green} green");
    let red: usize = ends.values().sum();
    assert!(red >= 2 && green > 3, "{ends:?}, {green} green");
}

#[test]
fn out_of_memory_ends_a_run_and_nothing_else() {
    let site = Site::new();
    // The first one looks at more than the others do.
    let timed = || {
        site.put_back();
        let begun = Instant::now();
        assert_eq!(site.wrapped(&["env"], SNAPSHOT).code, 0);
        begun.elapsed().as_secs_f64()
    };
    let whole = timed().min(timed());
    let (tries, mut killed) = (points(12, 4).len(), 0);
    // As the kernel's own killer does it: from outside, at any time of the run.
    for n in 1..=tries {
        site.put_back();
        let delay = whole * n as f64 / (tries + 1) as f64;
        let script = format!("\"$@\" & pid=$!; sleep {delay:.3}; kill -9 $pid; wait $pid");
        let done = site.wrapped(&["bash", "-c", &script, "bash"], SNAPSHOT);
        assert!(done.killed || done.code == 0, "{}", done.said);
        killed += usize::from(done.killed);
        site.is_well(&format!("killed after {delay:.3} of {whole:.3} s"), false, SNAPSHOT);
    }
    println!("{tries} cases of a kill from outside, {killed} of them met the run");
    assert!(killed * 2 >= tries, "{killed} of {tries} were killed");
}

/// A thread that is not to be had is an error like any other, or nothing that matters: others do its work.
#[test]
fn a_thread_that_cannot_be_begun_is_an_error_or_is_done_without() {
    let site = Site::new();
    let log = site.world.path("trace");
    let (mut red, mut green) = (0, 0);
    // The n-th of each thread, or every one from there on.
    let when = (1..=12).map(|n| n.to_string()).chain([1, 2, 4, 8].map(|n| format!("{n}+")));
    for when in when {
        let inject = format!("inject=clone3:error=EAGAIN:when={when}");
        let wrapper = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-e", "trace=clone3", "-e", &inject];
        let mut reds = 0;
        for arguments in COMMANDS {
            site.put_back();
            let done = site.wrapped(&wrapper, arguments);
            if !fs::read_to_string(&log).unwrap().contains("(INJECTED)") {
                assert_eq!(done.code, 0, "{when} {arguments:?}: {}", done.said);
                continue;
            }
            if done.code == 0 {
                green += 1;
                continue;
            }
            reds += 1;
            assert_eq!(done.code, 1, "{when} {arguments:?}: {}", done.said);
            let errors: Vec<&str> = done.said.lines().filter(|l| l.starts_with("error: ")).collect();
            let named = errors.len() == 1 && errors[0].contains("no thread could be begun: Resource temporarily");
            assert!(named && done.said.contains("hint: raise TasksMax="), "{when} {arguments:?}: {}", done.said);
        }
        if reds > 0 {
            site.is_well(&format!("no thread: {when}"), false, SNAPSHOT);
        }
        red += reds;
    }
    println!("cases of a thread that cannot be begun: {red} red, {green} green");
    assert!(red >= 3 && green >= 10, "{red} red, {green} green");
}
