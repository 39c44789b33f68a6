//! The engine is gone in the middle of a rollback, and comes back: `--resume` brings the application to the new state or
//! to the old one, well, and nothing is left over.

use crate::engine::{PrivateEngine, containers};
use crate::site::Site;
use crate::steps::{await_step, newest, steps};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Where it is when the engine dies.
#[derive(Clone, Copy, Debug)]
enum At {
    /// In the middle of stopping.
    Stop,
    /// The first source is being switched.
    Switch,
    /// All is switched, nothing started.
    BeforeUp,
    /// Compose is at work.
    InUp,
    /// All is up; it is being looked at.
    Health,
}

/// What dies with the engine.
#[derive(Clone, Copy, Debug, PartialEq)]
enum With {
    /// The engine alone: the rollback sees its calls fail.
    Nothing,
    /// The whole machine.
    Lifeboat,
}

/// One rollback whose engine dies. Whether the new state came out of it.
fn dies(site: &Site, engine: &mut PrivateEngine, at: At, with: With) -> bool {
    let what = format!("{at:?}, and with it {with:?}, restart {}", site.restart);
    let old = newest(site);
    let mut command = site.command(&["rollback", "--to", "v1", "--yes"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let step = match at {
        At::Stop => "stop",
        At::Switch => "switch",
        At::BeforeUp | At::InUp => "start",
        At::Health => "health",
    };
    await_step(site, old, &mut child, step);
    if matches!(at, At::InUp) {
        std::thread::sleep(Duration::from_millis(900));
    }
    let pid = Pid::from_child(&child);
    // It stands still while the engine goes.
    let _ = kill_process(pid, if with == With::Lifeboat { Signal::KILL } else { Signal::STOP });
    engine.kill();
    let _ = kill_process(pid, Signal::CONT);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if with == With::Nothing {
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        assert!(said.contains("rollback --resume"), "{what}: {said}");
    }
    println!("{what}: {:?}", steps(site).last());
    engine.begin();
    let pending = site.run(&["list"]).exits(0);
    assert!(pending.err.contains("was cut short"), "{what}: {pending:#?}");
    let resumed = site.run(&["rollback", "--resume"]);
    assert_eq!(resumed.code, 0, "{what}: {resumed:#?} {:?}", steps(site));
    let version = fs::read_to_string(site.world.app().join("code/version")).unwrap();
    let new = version.trim() == "1";
    site.is(if new { 1 } else { 2 });
    let name = |service: &str| format!("{}-{service}-1", site.project.name);
    assert_eq!(containers(&site.project.name), ["api", "cache", "extra"].map(name), "{what}");
    if new {
        site.run(&["rollback", "--undo", "--yes"]).exits(0);
        site.is(2);
    }
    site.nothing_left();
    new
}

/// Each of these, one after the other, on one engine.
fn all(restart: &'static str, cases: &[(At, With)]) {
    let mut engine = PrivateEngine::start();
    let site = Site::on_private_engine(restart);
    site.is(2);
    let whole = std::env::var_os("LIFEBOAT_SWEEP").is_some();
    let every = [At::Stop, At::Switch, At::BeforeUp, At::InUp, At::Health];
    let every: Vec<(At, With)> = every.into_iter().flat_map(|at| [(at, With::Nothing), (at, With::Lifeboat)]).collect();
    let outcomes: Vec<bool> = (if whole { every.as_slice() } else { cases })
        .iter()
        .map(|(at, with)| dies(&site, &mut engine, *at, *with))
        .collect();
    println!("{} cases, {} of them new", outcomes.len(), outcomes.iter().filter(|new| **new).count());
    drop(site);
}

#[test]
fn the_engine_dies_and_starts_nothing_by_itself() {
    all("no", &[(At::Stop, With::Nothing), (At::Switch, With::Lifeboat), (At::InUp, With::Nothing)]);
}

/// An undo that somebody asked for is cut short with all that runs: what is never stopped has to run again afterwards.
#[test]
fn the_engine_dies_in_an_undo_that_was_asked_for() {
    let mut engine = PrivateEngine::start();
    let site = Site::on_private_engine("no");
    site.run(&["rollback", "--to", "v1", "--yes"]).exits(0);
    site.is(1);
    let mut command = site.command(&["rollback", "--undo", "--yes"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The journal of what is undone is there already.
    let end = Instant::now() + Duration::from_secs(90);
    while !steps(&site).iter().any(|(step, phase)| step.starts_with("back ") && phase == "begin") {
        assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "{:?}", steps(&site));
        std::thread::sleep(Duration::from_micros(500));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    engine.kill();
    engine.begin();
    assert!(site.running().is_empty(), "{:?}", site.running());
    site.run(&["rollback", "--resume"]).exits(0);
    assert!(steps(&site).contains(&("revive".into(), "done".into())), "{:?}", steps(&site));
    site.is(2);
    site.nothing_left();
    drop(site);
}

#[test]
fn the_engine_dies_and_starts_again_what_ran() {
    all("always", &[(At::Switch, With::Nothing), (At::BeforeUp, With::Lifeboat)]);
}
