//! A disk that the kernel gives up in the middle of a run: from one call to the next nothing can be written any more.
//!
//! ext4 does so on its own when it finds itself damaged. The run is stopped at a call, the file system is told that it
//! is damaged, the run goes on.

use crate::looped::{Loop, run};
use crate::site::{SNAPSHOT, Site, points};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn sweep_of_a_disk_that_becomes_read_only() {
    let site = Site::new();
    let policy = fs::read_to_string(site.world.policy()).unwrap();
    if !policy.contains("min_free") {
        fs::write(site.world.policy(), policy.replace("[repository]\n", "[repository]\nmin_free = \"0B\"\n")).unwrap();
    }
    let calls = "linkat,fsync";
    let count = site.calls(calls, SNAPSHOT);
    let (mut red, mut green) = (0, 0);
    for n in points(count, 3) {
        site.put_back();
        let disk = onto_a_disk(&site);
        let done = stopped(&site, SNAPSHOT, calls, n, || disk.give_up());
        match &done {
            Some((0, _)) => green += 1,
            Some((code, said)) => {
                red += 1;
                assert_eq!(*code, 1, "stopped at {calls} {n}: {said}");
                assert!(said.contains("error:") && said.contains("hint:"), "{said}");
            }
            None => {}
        }
        disk.mend();
        if done.is_some_and(|d| d.0 == 0) {
            assert_eq!(site.world.snapshots().len(), 4, "{n}: what was reported as done is gone");
        }
        site.is_well(&format!("read-only at {calls} {n}"), false, SNAPSHOT);
        back_from(&site, disk);
    }
    println!("{} cases of a disk that becomes read-only: {red} red, {green} green", red + green);
    assert!(red > 0, "none failed");
}

/// The repository on a disk of its own.
fn onto_a_disk(site: &Site) -> Loop {
    let (repository, kept) = (site.world.repository(), site.world.path("kept"));
    fs::rename(&repository, &kept).unwrap();
    fs::create_dir(&repository).unwrap();
    let disk = Loop::new(&site.world.path("image"), &repository);
    run(&["cp", "-a", &format!("{}/.", kept.display()), repository.to_str().unwrap()]);
    run(&["sync", "-f", repository.to_str().unwrap()]);
    disk
}

/// And back to where it was, as it was.
fn back_from(site: &Site, disk: Loop) {
    let repository = site.world.repository();
    drop(disk);
    fs::remove_file(site.world.path("image")).unwrap();
    fs::remove_dir(&repository).unwrap();
    fs::rename(site.world.path("kept"), &repository).unwrap();
}

/// A prune from under which the disk goes: what it leaves is whole, and the next one ends what it began.
#[test]
fn sweep_of_a_prune_on_a_disk_that_becomes_read_only() {
    let site = Site::new();
    let repository = site.world.repository();
    let prune = ["prune", "--now"];
    let (mut red, mut green) = (0, 0);
    for calls in ["unlink", "linkat"] {
        site.put_back();
        for n in points(site.calls(calls, &prune), 1) {
            site.put_back();
            let disk = onto_a_disk(&site);
            let what = format!("read-only at {calls} {n} of a prune");
            let done = stopped(&site, &prune, calls, n, || disk.give_up());
            if let Some((code, said)) = &done {
                let counted = if *code == 0 { &mut green } else { &mut red };
                *counted += 1;
                let names = said.lines().any(|l| l.starts_with("error: ") && l.contains(repository.to_str().unwrap()));
                assert!(*code == 0 || (*code == 1 && names), "{what}: {code}: {said}");
            }
            disk.mend();
            site.is_well(&what, true, &prune);
            site.world.run(&prune).exits(0);
            site.world.run(&["verify", "--deep"]).exits(0);
            back_from(&site, disk);
        }
    }
    println!("{} cases of a prune on a disk that becomes read-only: {red} red, {green} green", red + green);
    assert!(red > 0, "none failed");
}

/// A restore onto a disk that is read-only, or becomes so: the error says where, and nothing stands there that is none.
#[test]
fn sweep_of_a_restore_onto_a_disk_that_becomes_read_only() {
    let site = Site::new();
    let at = site.world.path("disk");
    fs::create_dir(&at).unwrap();
    let into = at.join("into");
    let restore = ["restore", "first", "--only", "uploads", "--into", into.to_str().unwrap()];
    let disk = Loop::new(&site.world.path("image"), &at);
    let calls = "mkdirat,openat2,fsync";
    let count = site.calls(calls, &restore);
    fs::remove_dir_all(&into).unwrap();
    let (mut red, mut green) = (0, 0);
    // From the beginning, and in the middle.
    for n in [0].into_iter().chain(points(count, 1)) {
        site.put_back();
        let what = format!("read-only at {calls} {n} of a restore");
        let done = if n == 0 {
            disk.give_up();
            let ran = site.world.run(&restore);
            Some((ran.code, ran.err))
        } else {
            stopped(&site, &restore, calls, n, || disk.give_up())
        };
        match &done {
            Some((0, _)) => green += 1,
            Some((code, said)) => {
                red += 1;
                let names = said.lines().any(|l| l.starts_with("error: ") && l.contains(at.to_str().unwrap()));
                assert!(*code == 1 && names, "{what}: {code}: {said}");
            }
            None => {}
        }
        disk.mend();
        // Nobody could take away what was begun; the next one does, and whatever has its name is whole.
        if !into.join("uploads").exists() {
            assert!(done.is_none_or(|d| d.0 != 0), "{what}: what was reported as restored is gone");
            site.world.run(&restore).exits(0);
        }
        assert_eq!(site.misrestored_in(&into), Vec::<String>::new(), "{what}");
        fs::remove_dir_all(&into).unwrap();
        site.is_well(&what, false, SNAPSHOT);
    }
    println!("{} cases of a restore onto a disk that becomes read-only: {red} red, {green} green", red + green);
    assert!(red > 0, "none failed");
}

/// The command, stopped at the n-th of these calls while `meanwhile` happens. `None`: it made fewer.
pub fn stopped(
    site: &Site,
    arguments: &[&str],
    calls: &str,
    n: usize,
    meanwhile: impl FnOnce(),
) -> Option<(i32, String)> {
    let log = site.world.path("trace");
    let _ = fs::remove_file(&log);
    let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:signal=STOP:when={n}"));
    let wrapper = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-e", &trace, "-e", &inject];
    let mut command = site.under(&wrapper, arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    let stopped = loop {
        let text = fs::read_to_string(&log).unwrap_or_default();
        if let Some(line) = text.lines().find(|l| l.contains("--- stopped by SIGSTOP ---")) {
            break Some(line.split(' ').next().unwrap().to_owned());
        }
        if child.try_wait().unwrap().is_some() {
            break None;
        }
        assert!(begun.elapsed() < Duration::from_secs(240), "it neither stops nor ends: {text}");
        std::thread::sleep(Duration::from_millis(5));
    };
    if let Some(thread) = &stopped {
        meanwhile();
        // Each thread counts for itself, and stops at its own n-th call once more.
        while child.try_wait().unwrap().is_none() {
            let _ = Command::new("kill").args(["-CONT", thread]).output();
            assert!(begun.elapsed() < Duration::from_secs(240), "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    stopped.map(|_| (output.status.code().unwrap_or(-1), said))
}
