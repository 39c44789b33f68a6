//! Ctrl-C and SIGTERM: over within five seconds, nothing left behind.

use crate::exits::{hanging_snapshot, slow_source};
use crate::world::{Ran, World};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn stop(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// The processes whose arguments hold this text.
fn running(text: &str) -> Vec<Pid> {
    let holds = |entry: &fs::DirEntry| {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(text)
    };
    let pid = |entry: fs::DirEntry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
    fs::read_dir("/proc").unwrap().flatten().filter(holds).filter_map(pid).collect()
}

fn runs(text: &str) -> bool {
    !running(text).is_empty()
}

fn slow_world(seconds: &str) -> World {
    let world = World::with_snapshot();
    let source = slow_source("slow", world.path("marker").to_str().unwrap()).replace("3606", seconds);
    world.add_to_policy(&source);
    world
}

#[test]
fn a_signal_ends_a_snapshot_within_five_seconds_and_leaves_nothing() {
    for (signal, code, seconds) in [(Signal::INT, 130, "36061"), (Signal::TERM, 143, "36062")] {
        // A time of this run alone: another run of this test may be under way.
        let seconds = &format!("{seconds}{}", std::process::id());
        let world = slow_world(seconds);
        let headers = world.files("state/repository/snapshots");
        let child = hanging_snapshot(&world);
        let child_limit = Instant::now() + Duration::from_secs(20);
        // The shell that made the marker becomes the command.
        while !runs(seconds) {
            assert!(Instant::now() < child_limit, "the source's command runs");
            std::thread::sleep(Duration::from_millis(5));
        }
        let begun = Instant::now();
        stop(&child, signal);
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let ran = ran.exits(code).one_error_with_a_hint().says(&["snapshot shop", "stopped by SIG"]);
        assert!(!ran.err.contains("cut off"), "it stopped by itself: {}", ran.err);
        assert!(!runs(&format!("sleep\0{seconds}")), "the source's command is gone");
        assert_eq!(world.files("state/repository/snapshots"), headers, "no header was written");
        let below = world.path("state");
        let left = world.files("state").into_iter().map(|(path, _)| path.strip_prefix(&below).unwrap().to_owned());
        let odd: Vec<_> = left.filter(|path| path.to_str().unwrap().contains("tmp")).collect();
        assert!(odd.is_empty(), "{odd:?}");
        // What is there is whole, and the next run goes on.
        world.run(&["verify"]).exits(0);
        world.run(&["snapshot", "--only", "uploads"]).exits(0);
    }
}

#[test]
fn with_json_a_stopped_run_says_so_in_its_document() {
    let world = slow_world("36063");
    let marker = world.path("marker");
    let child = world.command(&["snapshot", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    crate::exits::wait_for(&marker);
    stop(&child, Signal::TERM);
    let json = Ran::from(child.wait_with_output().unwrap()).exits(143).json();
    assert_eq!(json["error"]["kind"], "cancelled");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let seconds = &format!("36064{}", std::process::id());
    let world = slow_world(seconds);
    let child = hanging_snapshot(&world);
    stop(&child, Signal::INT);
    stop(&child, Signal::TERM);
    let begun = Instant::now();
    let output = child.wait_with_output().unwrap();
    // At once means that nothing is waited for: the source's command may outlive it, and this test shall not leave it.
    for pid in running(&format!("sleep\0{seconds}")) {
        let _ = kill_process(pid, Signal::KILL);
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!([Some(130), Some(143)].contains(&output.status.code()), "{output:?}");
    world.run(&["verify"]).exits(0);
}

/// Killed outright, a run leaves a repository that verifies and that the next run goes on with.
#[test]
fn kill_9_leaves_a_sound_repository() {
    let seconds = &format!("36065{}", std::process::id());
    let world = slow_world(seconds);
    let mut child = hanging_snapshot(&world);
    child.kill().unwrap();
    child.wait().unwrap();
    // The command that it left behind is this test's to end.
    for pid in running(&format!("sleep\0{seconds}")) {
        let _ = kill_process(pid, Signal::KILL);
    }
    world.run(&["verify"]).exits(0);
    world.run(&["snapshot", "--only", "uploads"]).exits(0);
}
