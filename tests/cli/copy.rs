//! `copy` and the copies of a policy, with the real command: what it says, how it ends, killed at every commit of a file.

use crate::world::{Ran, World, tree};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

fn same(world: &World, a: &str, b: &str) {
    let files = |name: &str| -> Vec<_> {
        let root = world.path(name);
        let all = tree(&root).into_iter().map(|(path, bytes)| (path.strip_prefix(&root).unwrap().to_owned(), bytes));
        all.filter(|(path, _)| path.to_str() != Some(".writers.lock")).collect()
    };
    assert!(files(a) == files(b), "{a} and {b} differ");
}

#[test]
fn a_copy_is_planned_made_and_read() {
    let world = World::with_snapshot();
    let copy = world.path("copy").display().to_string();
    world.run(&["copy"]).exits(2).one_error_with_a_hint().says(&["no copy is named", "--to URL"]);
    world.run(&["copy", "--to", &copy, "--dry-run"]).exits(0).shows(&["(new)", "1 snapshots to copy"]);
    assert!(!world.path("copy").exists(), "a plan changes nothing");
    world.run(&["copy", "--to", &copy, "--read-back"]).exits(0).shows(&["1 snapshots copied", "every byte read"]);
    same(&world, "state/repository", "copy");
    world.run(&["copy", "--to", &copy]).exits(0).shows(&["nothing to copy, 1 snapshots are there"]);
    world.run(&["list", "--repository", &copy]).exits(0).shows(&["first"]);
    world.run(&["verify", "--deep", "--repository", &copy]).exits(0).shows(&["sound"]);
    world.run(&["copy", "--to", "state/repository"]).exits(2).one_error_with_a_hint().says(&["the repository itself"]);
    world.run(&["copy", "--to", "app"]).exits(2).one_error_with_a_hint().says(&["not empty"]);
    let other = World::with_snapshot();
    let foreign = other.repository().display().to_string();
    world.run(&["copy", "--to", &foreign]).exits(2).one_error_with_a_hint().says(&["another repository", "recipients"]);
}

#[test]
fn copies_of_the_policy_follow_every_snapshot() {
    let world = World::ready();
    let (nas, usb) = (world.path("nas"), world.path("usb"));
    world.change_policy("[repository]", &format!("[repository]\ncopies = [{nas:?}, {usb:?}]"));
    world.run(&["snapshot"]).exits(0).shows(&["nas: 1 snapshots copied", "usb: 1 snapshots copied"]);
    same(&world, "state/repository", "nas");
    // One is not there: loud, and no failure of the snapshot.
    fs::rename(&nas, world.path("away")).unwrap();
    fs::create_dir(&nas).unwrap();
    let ran = world.run(&["snapshot"]).exits(3).says(&["COPY FAILED", "mounted", "the next run catches up"]);
    assert!(ran.out.contains("usb: 1 snapshots copied") && ran.out.contains("complete"), "{ran:#?}");
    world.run(&["copy"]).exits(3).says(&["COPY FAILED"]);
    let json = world.json(&["snapshot"]);
    assert!(json["exit_code"] == 3 && json["copies"][0]["error"].is_string(), "{json:#}");
    assert_eq!(json["copies"][1]["report"]["snapshots"].as_array().unwrap().len(), 1);
    fs::remove_dir_all(&nas).unwrap();
    fs::rename(world.path("away"), &nas).unwrap();
    world.run(&["list", "--repository", nas.to_str().unwrap()]).exits(0).says(&["this copy is behind"]);
    world.run(&["copy"]).exits(0).shows(&["nas: 2 snapshots copied", "usb: nothing to copy"]);
    same(&world, "usb", "nas");
    // The repository goes back behind its copies, on a host that remembers nothing of it.
    let headers = tree(&world.repository().join("snapshots"));
    fs::remove_file(&headers.last().unwrap().0).unwrap();
    fs::remove_file(world.path("state/state.db")).unwrap();
    world.run(&["snapshot"]).exits(4).says(&["ALARM", "rolled back", "holds snapshot 3"]);
    assert!(world.snapshots().len() == 3, "1, 2 and 4");
}

#[test]
fn damage_is_told_and_costs_what_needs_it() {
    let world = World::with_snapshot();
    fs::write(world.app().join("uploads/new.bin"), (0..90_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>())
        .unwrap();
    let known = tree(&world.repository().join("archives"));
    world.run(&["snapshot"]).exits(0);
    let is_new = |(path, _): &(std::path::PathBuf, Vec<u8>)| known.iter().all(|(other, _)| other != path);
    let (archive, mut bytes) = tree(&world.repository().join("archives")).into_iter().find(is_new).unwrap();
    bytes[1000] ^= 1;
    fs::write(&archive, &bytes).unwrap();
    let name = archive.file_name().unwrap().to_str().unwrap().to_owned();
    let newest = world.snapshots().remove(0);
    let ran = world.run(&["copy", "--to", "copy"]).exits(4);
    ran.says(&[&name, "is damaged in the repository", &newest]).shows(&["1 snapshots copied"]);
    world.run(&["verify", "--deep", "--repository", "copy"]).exits(0).says(&["this copy is behind"]);
    // A copy that is damaged keeps what it has, and says so.
    let (archive, bytes) = tree(&world.path("copy/archives")).remove(0);
    fs::write(&archive, &bytes[1..]).unwrap();
    world.run(&["copy", "--to", "copy"]).exits(4).says(&["is damaged in the copy", "instead of"]);
    assert_eq!(fs::read(&archive).unwrap(), bytes[1..]);
}

/// Killed at every link and fsync, the copy verifies, and the next run makes it whole.
#[test]
fn killed_at_any_commit_of_a_file_a_copy_goes_on() {
    let world = World::with_snapshot();
    world.run(&["snapshot", "--tag", "second"]).exits(0);
    let mut points = 0;
    for syscalls in ["linkat", "fsync"] {
        for n in 1.. {
            // A place of its own each time: a copy that goes back is an alarm.
            let copy = &format!("copy-{syscalls}-{n}");
            let plain = world.command(&["copy", "--to", copy]);
            let mut traced = Command::new("strace");
            traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={syscalls}")]);
            traced.args(["-e", &format!("inject={syscalls}:signal=SIGKILL:when={n}")]);
            traced.arg(plain.get_program()).args(plain.get_args()).current_dir(world.dir.path());
            let output = traced.output().unwrap();
            if output.status.signal() != Some(9) && output.status.code() != Some(137) {
                Ran::from(output).exits(0);
                break;
            }
            points += 1;
            // Before it, this host knows of a signer that the copy has not yet, and says so.
            if world.path(copy).join("signers/1.json").exists() {
                world.run(&["verify", "--deep", "--repository", copy]).exits(0);
            }
            world.run(&["copy", "--to", copy]).exits(0);
            same(&world, "state/repository", copy);
        }
    }
    assert!(points >= 15, "only {points} points were tried");
}
