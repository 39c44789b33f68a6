//! What is settled afterwards, when something else has happened meanwhile.

use crate::files::{left_over, same, state};
use crate::world::{UPLOADS, World};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::Events;
use lifeboat::ops::Run;
use lifeboat::ops::access::{AccessRequest, Installation};
use lifeboat::ops::transaction;
use lifeboat::policy;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const RESTORE: &[&str] = &["restore", "good", "--in-place", "--yes"];
const UNDO: &[&str] = &["restore", "--undo", "--yes"];

/// One file saved as `good`, and changed since.
fn world(policy: &str) -> World {
    let world = World::ready();
    world.add_to_policy(policy);
    world.run(&["snapshot", "--tag", "good"]).exits(0);
    fs::write(world.app().join("uploads/one.txt"), "changed\n").unwrap();
    fs::write(world.app().join(".env"), "MODE=broken\n").unwrap();
    world
}

fn journals(world: &World) -> Vec<PathBuf> {
    let listed = fs::read_dir(world.path("state/rollback")).unwrap().map(|e| e.unwrap().path());
    let mut found: Vec<PathBuf> = listed.filter(|p| p.extension().is_some_and(|e| e == "jsonl")).collect();
    found.sort();
    found
}

/// Somebody thinks about the prompt of an undo until what it would bring back has been removed by another process.
#[test]
fn an_undo_looks_again_when_it_holds_the_lock() {
    let world = world("[rollback]\nkeep_old = \"2s\"\n");
    world.run(RESTORE).exits(0);
    let installation = Installation { config_dir: world.path("config"), state_dir: world.path("state") };
    let policy = policy::load(&world.policy()).unwrap();
    let which = transaction::kept(&installation, &policy.app.name).unwrap().remove(0);
    let now = state(&world.app());
    let undo = |id: &str| {
        let run = Run { events: Events::none(), cancel: Cancel::new(), now: chrono::Utc::now() };
        transaction::undo(&installation, &policy, &AccessRequest::of(&policy), (id, &[]), &run).unwrap_err()
    };
    std::thread::sleep(Duration::from_secs(3));
    assert!(undo(&which.id).to_string().contains("was kept until"), "it may be removed at any time");
    world.run(&["snapshot"]).exits(0);
    assert!(left_over(&world).is_empty());
    assert!(undo(&which.id).to_string().contains("cannot be undone any more"));
    same(&now, &state(&world.app()));
    world.run(&["restore", "--resume"]).exits(2).says(&["no transaction"]);
}

/// Removing what was replaced fails after the first source: what is left of it cannot be brought back, and goes later.
#[test]
fn what_is_removed_in_part_cannot_be_undone() {
    let world = world("[rollback]\nkeep_old = \"1s\"\n");
    world.run(RESTORE).exits(0);
    std::thread::sleep(Duration::from_secs(2));
    world.change_policy(UPLOADS, &UPLOADS.replace("name = \"uploads\"", "name = \"other\""));
    world.run(&["snapshot"]).exits(0).says(&["is not removed yet"]);
    world.change_policy(&UPLOADS.replace("name = \"uploads\"", "name = \"other\""), UPLOADS);
    assert!(!left_over(&world).is_empty());
    world.run(UNDO).exits(2).says(&["nothing to undo"]);
    world.run(&["snapshot"]).exits(0);
    assert_eq!(left_over(&world), Vec::<PathBuf>::new());
}

#[test]
fn what_is_asked_for_is_no_failure_and_the_time_that_it_took_counts() {
    let world = world(concat!(
        "[hooks]\non_failure = \"touch ../failed\"\n",
        "[[source]]\nkind = \"command\"\nname = \"slow\"\nrun = [\"sh\", \"-c\", \"sleep 10; echo x\"]\n",
    ));
    // Without the command: that one is only in the safety snapshot.
    let report = world.json(&["restore", "good", "--in-place", "--only", "uploads", "--yes"]);
    let until: chrono::DateTime<chrono::Utc> = report["kept_until"].as_str().unwrap().parse().unwrap();
    let kept = until - chrono::Utc::now();
    assert!(kept > chrono::TimeDelta::days(3) - chrono::TimeDelta::seconds(9), "{kept}: {report:#}");
    world.run(UNDO).exits(0);
    assert!(!world.path("failed").exists(), "nothing has failed");
    assert_eq!(fs::read_to_string(world.app().join("uploads/one.txt")).unwrap(), "changed\n");
}

#[test]
fn journals_that_are_damaged_or_spent() {
    let world = world("");
    world.run(RESTORE).exits(0);
    world.run(UNDO).exits(0);
    let own = journals(&world).remove(0);
    let text = fs::read_to_string(&own).unwrap();
    let rest = text.split_once('\n').unwrap().1.lines().next().unwrap().to_owned();
    let first = text.lines().next().unwrap().to_owned();
    let damaged = own.with_file_name("20260101T000000Z-damaged0.jsonl");
    // Another policy's own stands in nobody's way.
    let json = first[17..].replace("\"policy\":\"shop\"", "\"policy\":\"other\"");
    let sum = blake3::hash(json.as_bytes()).to_hex()[..16].to_owned();
    fs::write(&damaged, format!("{sum} {json}\nnot a line\n{rest}\n")).unwrap();
    world.run(&["snapshot"]).exits(0).says(&["line 2 of the journal", "is damaged"]);
    world.run(UNDO).exits(2).says(&["nothing to undo"]);
    fs::write(&damaged, format!("{first}\nnot a line\n{rest}\n")).unwrap();
    world.run(&["snapshot"]).exits(4).says(&["line 2 of the journal", "another end than .jsonl"]);
    fs::rename(&damaged, damaged.with_extension("aside")).unwrap();
    // Those by which nothing can be done are kept for a while.
    for n in 10..40 {
        fs::copy(&own, own.with_file_name(format!("20250101T0000{n}Z-spent000.jsonl"))).unwrap();
    }
    world.run(&["snapshot"]).exits(0);
    let left = journals(&world);
    assert_eq!(left.len(), 20, "{left:?}");
    assert!(left.contains(&own) && !own.with_file_name("20250101T000010Z-spent000.jsonl").exists(), "{left:?}");
}
