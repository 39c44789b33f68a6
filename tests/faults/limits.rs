//! A disk that fills up anywhere, inodes that run out, few descriptors, little memory. (A kernel remounts nothing read-only
//! that somebody writes to: what that would be like is injected, see `sweep`.)

use crate::site::{SNAPSHOT, Site, points};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    let repository = site.world.repository();
    let (mut full, mut room) = (0, 0);
    for inodes in [false, true] {
        for step in points(12, 2) {
            site.put_back();
            let kept = site.world.path("kept");
            fs::rename(&repository, &kept).unwrap();
            let small = Small::new(&repository, "size=64m");
            let copied = Command::new("cp").arg("-a").arg(kept.join(".")).arg(&repository).status().unwrap();
            assert!(copied.success());
            let used = rustix::fs::statvfs(&repository).unwrap();
            let bytes = (used.f_blocks - used.f_bfree) * used.f_frsize + step as u64 * 60_000;
            let files = used.f_files - used.f_ffree + step as u64 - 1;
            small.remount(&if inodes { format!("nr_inodes={files}") } else { format!("size={bytes}") });
            let what = format!("{} more {}", step, if inodes { "inodes" } else { "times 60 kB" });
            let ran = site.world.run(&["snapshot", "--only", "uploads", "--json"]);
            if ran.code == 0 {
                room += 1;
            } else {
                full += 1;
                assert_eq!(ran.code, 1, "{what}: {ran:?}");
                assert!(ran.out.contains("space"), "{what}: {ran:?}");
                site.world.run(&["verify"]).exits(0);
            }
            small.remount("size=64m,nr_inodes=0");
            site.is_well(&what, false, SNAPSHOT);
            drop(small);
            fs::remove_dir(&repository).unwrap();
            fs::rename(&kept, &repository).unwrap();
        }
    }
    println!("{} cases of a full disk: {full} full, {room} with room enough", full + room);
    assert!(full >= 2, "{full} were full");
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

#[test]
fn few_descriptors_and_little_memory_are_errors_or_enough() {
    let site = Site::new();
    let (mut red, mut green) = (0, 0);
    let mut limits: Vec<String> = [5, 8, 12, 16, 24, 40].map(|n| format!("ulimit -n {n}")).to_vec();
    limits.extend([150, 300, 600].map(|mib| format!("ulimit -v {}", mib << 10)));
    limits.push("ulimit -f 100".into());
    for limit in &limits {
        for arguments in [SNAPSHOT, &["restore", "first", "--only", "uploads", "--into", "into"], &["verify"]] {
            site.put_back();
            let script = format!("{limit} && exec \"$@\"");
            let done = site.wrapped(&["sh", "-c", &script, "sh"], arguments);
            match done.code {
                0 => green += 1,
                // The runtime's own threads and memory are asked for before anything is begun.
                _ => red += 1,
            }
            assert!(!done.killed, "{limit} {arguments:?}: {}", done.said);
        }
        site.is_well(limit, false, SNAPSHOT);
    }
    println!("{} cases of limits: {red} red, {green} green", red + green);
    assert!(red > 3 && green > 3, "{red} red, {green} green");
}

#[test]
fn out_of_memory_ends_a_run_and_nothing_else() {
    let site = Site::new();
    // As the kernel's own killer does it: from outside, at any time.
    for delay in points(12, 2) {
        site.put_back();
        let script = format!("\"$@\" & pid=$!; sleep 0.{:02}; kill -9 $pid; wait $pid", delay * 3);
        site.wrapped(&["bash", "-c", &script, "bash"], SNAPSHOT);
        site.is_well(&format!("killed after {delay}"), false, SNAPSHOT);
    }
}
