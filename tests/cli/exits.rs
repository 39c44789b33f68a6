//! Every exit code, each from a real run.

use crate::world::{Ran, World, bare, tree};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A source that takes as long as it is let: its output never ends.
pub fn slow_source(name: &str, marker: &str) -> String {
    format!(
        "[[source]]\nkind = \"command\"\nname = \"{name}\"\nrun = [\"sh\", \"-c\", \"echo begun; touch {marker}; exec sleep 3606\"]\n"
    )
}

/// Starts a snapshot that hangs in a slow source, and waits until it is there.
pub fn hanging_snapshot(world: &World) -> Child {
    let marker = world.path("marker");
    let _ = fs::remove_file(&marker);
    let mut command = world.command(&["snapshot", "-v"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&marker);
    child
}

pub fn wait_for(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} does not come", path.display());
        sleep(Duration::from_millis(20));
    }
}

pub fn copy(from: &Path, to: &Path) {
    for (path, bytes) in tree(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, bytes).unwrap();
    }
}

#[test]
fn done_is_0_and_failed_is_1() {
    let world = World::ready();
    world.run(&["snapshot"]).exits(0).shows(&["uploads", "complete", "snapshot 2"]);
    fs::rename(world.repository(), world.path("gone")).unwrap();
    world.run(&["snapshot"]).exits(1).one_error_with_a_hint().says(&["snapshot shop", "no repository at"]);
    assert!(!world.repository().exists(), "a run does not make a repository");
}

#[test]
fn usage_and_policy_errors_are_2() {
    let world = World::new();
    world.run(&["snapshot"]).exits(2).one_error_with_a_hint().says(&["no policy is installed", "lifeboat init"]);
    world.run(&["nonsense"]).exits(2);
    world.run(&["list", "--signer", "x"]).exits(2);
    let json = world.run(&["nonsense", "--json"]).exits(2).json();
    assert_eq!(json["error"]["kind"], "usage");
}

#[test]
fn a_source_that_fails_makes_a_partial_snapshot_and_3() {
    let world = World::ready();
    world.add_to_policy("[[source]]\nkind = \"files\"\nname = \"gone\"\npaths = [\"not-there\"]\n");
    let ran = world.run(&["snapshot"]).exits(3);
    let ran =
        ran.shows(&["uploads", "complete", "gone", "failed", "partial"]).says(&["PARTIAL", "\"gone\"", "not-there"]);
    assert!(!ran.err.contains("error:"), "a partial snapshot is a result: {}", ran.err);
    let json = world.run(&["snapshot", "--json"]).exits(3).json();
    assert_eq!(json["header"]["outcome"], "partial");
    assert!(json["warnings"].to_string().contains("PARTIAL"));
    // Silence does not hide it, and optional sources are warnings.
    world.run(&["snapshot", "-q"]).exits(3).says(&["PARTIAL"]);
    world.change_policy("name = \"gone\"", "name = \"gone\"\noptional = true");
    world.run(&["snapshot"]).exits(0);
    // Nothing at all is no snapshot.
    world
        .run(&["snapshot", "--only", "gone"])
        .exits(1)
        .one_error_with_a_hint_or_none()
        .says(&["no source could be captured"]);
}

impl Ran {
    fn one_error_with_a_hint_or_none(self) -> Self {
        assert_eq!(self.err.lines().filter(|l| l.starts_with("error:")).count(), 1, "{self:#?}");
        self
    }
}

#[test]
fn a_suspiciously_small_snapshot_is_0_and_loud() {
    let world = World::ready();
    let big = world.app().join("uploads/big.bin");
    fs::write(&big, vec![b'x'; 300_000]).unwrap();
    world.run(&["snapshot", "-q"]).exits(0);
    fs::write(&big, "").unwrap();
    let ran = world.run(&["snapshot"]).exits(0).says(&["SUSPECT", "\"uploads\"", "usually has"]);
    ran.shows(&["suspect"]);
    world.run(&["list"]).exits(0).shows(&["suspect", "complete"]);
    world.run(&["snapshot", "-q"]).exits(0).says(&["SUSPECT"]);
}

#[test]
fn damage_and_a_repository_that_was_rolled_back_are_4() {
    let world = World::with_snapshot();
    copy(&world.repository(), &world.path("older"));
    world.run(&["snapshot"]).exits(0);
    fs::remove_dir_all(world.repository()).unwrap();
    copy(&world.path("older"), &world.repository());
    world.run(&["snapshot"]).exits(4).says(&["ALARM"]).shows(&["complete"]);

    let world = World::with_snapshot();
    let header = tree(&world.path("state/repository/snapshots")).remove(0).0;
    let text = fs::read_to_string(&header).unwrap();
    fs::write(&header, text.replace("\"manual\"", "\"guard\"")).unwrap();
    let ran = world.run(&["list"]).exits(4);
    ran.says(&["snapshots/"]);
    let json = world.run(&["list", "--json"]).exits(4).json();
    assert!(json["problems"].to_string().contains("signature does not belong to these bytes"), "{json}");
}

#[test]
fn two_runs_at_once_are_5_for_one_policy_only() {
    let world = World::ready();
    world.add_to_policy(&slow_source("slow", world.path("marker").to_str().unwrap()));
    fs::create_dir(world.path("blog")).unwrap();
    world.run(&["init", "blog"]).exits(0);
    let mut first = world.command(&["snapshot", "-p", "shop"]);
    let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&world.path("marker"));
    world.run(&["snapshot", "-p", "shop"]).exits(5).one_error_with_a_hint().says(&["another run", "\"shop\""]);
    let json = world.run(&["snapshot", "-p", "shop", "--json"]).exits(5).json();
    assert_eq!(json["error"]["kind"], "busy");
    world.run(&["snapshot", "-p", "blog"]).exits(0);
    world.run(&["list", "-p", "shop"]).exits(0);
    rustix::process::kill_process(rustix::process::Pid::from_child(&first), rustix::process::Signal::TERM).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(143));
    world.change_policy("kind = \"command\"", "enabled = false\nkind = \"command\"");
    world.run(&["snapshot", "-p", "shop"]).exits(0);
}

#[test]
fn the_policy_is_found_by_name_file_and_environment() {
    let world = World::ready();
    fs::create_dir(world.path("blog")).unwrap();
    world.run(&["init", "blog"]).exits(0).shows(&["-p blog"]);
    world.run(&["snapshot"]).exits(2).one_error_with_a_hint().says(&[
        "several policies",
        "blog",
        "shop",
        "--policy NAME",
    ]);
    world.run(&["snapshot", "-p", "shpo"]).exits(2).one_error_with_a_hint().says(&["did you mean \"shop\""]);
    world.run(&["snapshot", "--dry-run", "-p", "config/policies/shop.toml"]).exits(0).shows(&["uploads"]);
    let ran: Ran = world.command(&["policy", "show"]).env("LIFEBOAT_POLICY", "blog").output().unwrap().into();
    ran.exits(0).shows(&["name = \"blog\""]);

    let ran: Ran = bare(world.dir.path()).args(["policy", "show"]).output().unwrap().into();
    ran.exits(2);
}
