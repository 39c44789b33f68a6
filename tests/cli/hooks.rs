//! The policy's hooks around a snapshot: what they are told, and what becomes of the run where one fails, hangs, or is killed.

use crate::world::{CANARY, Ran, World};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Each hook writes what it is told, a line each.
fn world(hooks: &str) -> World {
    let world = World::ready();
    world.add_to_policy(&format!("[hooks]\n{hooks}\n"));
    world
}

/// A hook that writes a line of its own into `told`.
fn tells(name: &str) -> String {
    let told = "$LIFEBOAT_HOOK $LIFEBOAT_POLICY $LIFEBOAT_WHAT $LIFEBOAT_TRIGGER [$LIFEBOAT_TAGS] $LIFEBOAT_OUTCOME \
                $LIFEBOAT_SNAPSHOT $LIFEBOAT_ERROR";
    format!("{name} = 'echo {told} >> ../told'\n")
}

fn told(world: &World) -> Vec<String> {
    let text = fs::read_to_string(world.path("told")).unwrap_or_default();
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[track_caller]
fn wait_for(path: &Path) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !path.exists() {
        assert!(Instant::now() < limit, "{} never comes", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// What a hook makes is as it would be without Lifeboat; what Lifeboat makes, and the tools that it runs, is its account's
/// alone: no single file need think of it.
#[test]
fn a_hook_has_the_mask_that_was_given_and_lifeboat_its_own() {
    let world = world("before_snapshot = ['umask > ../given; grep Umask: /proc/$PPID/status > ../own']");
    let plain = world.command(&["snapshot"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 013; exec \"$@\"", "sh"]).arg(plain.get_program()).args(plain.get_args());
    shell.env_clear().env("HOME", world.dir.path()).env("PATH", std::env::var_os("PATH").unwrap());
    Ran::from(shell.current_dir(world.dir.path()).stdin(Stdio::null()).output().unwrap()).exits(0);
    let read = |name: &str| fs::read_to_string(world.path(name)).unwrap();
    assert_eq!((read("given").trim(), read("own").trim()), ("0013", "Umask:\t0077"));
}

#[test]
fn hooks_are_run_around_a_snapshot_and_are_told_how_it_came_out() {
    let before = "before_snapshot = ['touch uploads/quiet', 'echo first >> ../told']\n";
    let world = world(&format!("{before}{}{}", tells("after_snapshot"), tells("on_failure")));
    let plan = world.json(&["snapshot", "--dry-run"]);
    assert_eq!((plan["plan"]["hooks"].as_u64(), told(&world).len()), (Some(3), 0), "{plan:#}");
    let report = world.json(&["snapshot", "--tag", "v1"]);
    let id = report["header"]["id"].as_str().unwrap();
    assert_eq!(told(&world), ["first".to_owned(), format!("after_snapshot shop snapshot manual [v1] complete {id}")]);
    assert!(report["hook_failed"].is_null() && report["exit_code"] == 0, "{report:#}");
    world.run(&["ls", id, "uploads", "-r"]).exits(0).shows(&["quiet"]);
    assert!(!world.path("state/shop.hooks").exists());
    // A source that fails: the snapshot is partial, and somebody is told why.
    fs::remove_file(world.path("told")).unwrap();
    world.change_policy("paths = [\"uploads\"]", "paths = [\"uploads\", \"gone\"]");
    let report = world.run(&["snapshot", "--json"]).exits(3).json();
    let id = report["header"]["id"].as_str().unwrap();
    let lines = told(&world);
    assert_eq!(lines[1], format!("after_snapshot shop snapshot manual [] partial {id}"));
    assert!(
        lines[2].starts_with(&format!("on_failure shop snapshot manual [] partial {id} source \"uploads\":")),
        "{lines:?}"
    );
}

#[test]
fn nothing_is_captured_behind_a_hook_that_fails() {
    // What it prints comes from the env file.
    let before = "before_snapshot = 'echo about $(sed -n s/DB_PASSWORD=//p .env) >&2; exit 3'\n";
    let world = world(&format!("{before}{}{}", tells("after_snapshot"), tells("on_failure")));
    let ran = world.run(&["snapshot"]).exits(1).one_error_with_a_hint().says(&["before_snapshot", "about ***"]);
    assert!(!ran.err.contains(CANARY), "{}", ran.err);
    assert_eq!(world.json(&["list"])["snapshots"].as_array().unwrap().len(), 0);
    let lines = told(&world);
    assert_eq!(lines[0], "after_snapshot shop snapshot manual [] failed", "what it had begun is ended");
    assert!(lines[1].starts_with("on_failure shop snapshot manual [] failed before_snapshot = "), "{lines:?}");
    assert!(!lines[1].contains(CANARY) && lines.len() == 2, "{lines:?}");
    let history = world.json(&["history"]).to_string();
    assert!(history.contains("about ***") && !history.contains(CANARY), "{history}");
}

#[test]
fn a_hook_that_hangs_is_ended() {
    let mark = std::process::id();
    let world = world(&format!(
        "before_snapshot = 'sleep 61.{mark} & sleep 62.{mark}'\ntimeout = \"1s\"\n{}",
        tells("after_snapshot")
    ));
    let begun = Instant::now();
    world.run(&["snapshot"]).exits(1).says(&["before_snapshot", "took longer than 1.0 s"]);
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(told(&world), ["after_snapshot shop snapshot manual [] failed"]);
    let sleeps = |line: &[u8]| String::from_utf8_lossy(line).contains(&format!("2.{mark}"));
    let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|p| fs::read(p.path().join("cmdline")).ok());
    assert!(!all.into_iter().any(|line| line.starts_with(b"sleep") && sleeps(&line)), "it goes on");
}

#[test]
fn a_hook_that_fails_behind_the_snapshot_makes_the_run_partial() {
    let world = world(&format!("after_snapshot = 'exit 4'\n{}", tells("on_failure")));
    let ran = world.run(&["snapshot", "--json"]).exits(3);
    let report = ran.json();
    assert_eq!(report["header"]["outcome"], "complete", "{report:#}");
    assert!(report["hook_failed"].as_str().unwrap().contains("after_snapshot = \"exit 4\": it ended with status 4"));
    assert!(told(&world)[0].contains("complete"), "{:?}", told(&world));
    assert!(!world.path("state/shop.hooks").exists(), "it has run");
    // An upgrade does not begin on an application that may not be as it was.
    world
        .run(&["guard", "--tag", "v2", "--", "touch", "../upgraded"])
        .exits(1)
        .says(&["after_snapshot", "was not run"]);
    assert!(!world.path("upgraded").exists() && !world.app().join("../upgraded").exists());
}

#[test]
fn a_run_that_is_stopped_brings_back_what_it_began() {
    let before = "before_snapshot = 'touch ../in; sleep 60'\n";
    // Longer than anything else may take to stop.
    let after = "after_snapshot = ['sleep 6', 'echo $LIFEBOAT_OUTCOME > ../back']\n";
    let world = world(&format!("{before}{after}{}", tells("on_failure")));
    let mut run = world.command(&["snapshot"]).spawn().unwrap();
    wait_for(&world.path("in"));
    signal(&run, Signal::TERM);
    assert_eq!(run.wait().unwrap().code(), Some(143));
    assert_eq!(fs::read_to_string(world.path("back")).unwrap(), "stopped\n");
    assert!(told(&world).is_empty(), "nothing has failed where somebody asked for it");
    assert!(!world.path("state/shop.hooks").exists());
}

#[test]
fn what_a_killed_run_began_is_brought_back_by_the_next() {
    let before = "before_snapshot = 'echo before >> ../told; test -e ../go || { touch ../in; exec sleep 60; }'\n";
    let world = world(&format!("{before}{}", tells("after_snapshot")));
    let mut run = world.command(&["snapshot"]).spawn().unwrap();
    wait_for(&world.path("in"));
    signal(&run, Signal::KILL);
    run.wait().unwrap();
    fs::write(world.path("go"), "").unwrap();
    let report = world.json(&["snapshot"]);
    let id = report["header"]["id"].as_str().unwrap();
    let lines = told(&world);
    assert_eq!(lines[..2], ["before", "after_snapshot shop snapshot manual [] interrupted"], "{lines:?}");
    assert_eq!(lines[2..], ["before".to_owned(), format!("after_snapshot shop snapshot manual [] complete {id}")]);
}

/// On a bad night nothing stands in the way of going back.
#[test]
fn a_safety_snapshot_is_taken_behind_a_hook_that_fails() {
    let world = World::with_snapshot();
    world.add_to_policy(&format!(
        "[hooks]\nbefore_snapshot = 'exit 5'\n{}{}",
        tells("after_snapshot"),
        tells("on_failure")
    ));
    fs::write(world.app().join("uploads/one.txt"), "changed\n").unwrap();
    let ran = world.run(&["restore", "first", "--in-place", "--only", "uploads", "--yes"]).exits(0);
    assert!(ran.err.contains("before_snapshot") || ran.out.contains("before_snapshot"), "{ran:#?}");
    assert_eq!(fs::read_to_string(world.app().join("uploads/one.txt")).unwrap(), "one\n");
    let lines = told(&world);
    assert!(
        lines.len() == 1 && lines[0].starts_with("after_snapshot shop snapshot rollback [pre-restore-"),
        "{lines:?}"
    );
}
