//! `kill -9` behind every line of the journal, forward and on the way back: the new state or the old one, well, and
//! nothing left over.

use crate::site::Site;
use crate::steps::{await_step, newest, steps};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How many parts the sweep is cut into; the whole of it is `scripts/sweep.sh`.
fn thinned() -> usize {
    std::env::var("LIFEBOAT_SWEEP").map_or(14, |_| 1)
}

/// The rollback, killed at its nth fsync of the journal; whether it was.
fn killed(site: &Site, n: usize, arguments: &[&str]) -> bool {
    let plain = site.command(arguments);
    let mut command = Command::new("strace");
    let inject = format!("inject=fsync:signal=SIGKILL:when={n}");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", &inject]);
    command.arg(plain.get_program()).args(plain.get_args());
    command.env_clear().envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let output = command.current_dir(site.world.dir.path()).output().unwrap();
    output.status.signal() == Some(9) || output.status.code() == Some(137)
}

/// Fsyncs of the thread that writes the journal: before the journal, and in all.
fn fsyncs(site: &Site) -> (usize, usize) {
    let log = site.world.path("trace");
    let plain = site.command(&["rollback", "--to", "v1", "--yes"]);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y", "-o", log.to_str().unwrap(), "-e", "trace=fsync,linkat"]);
    command.arg(plain.get_program()).args(plain.get_args());
    command.env_clear().envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let output = command.current_dir(site.world.dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(&log).unwrap();
    let own = text.lines().find(|l| l.contains("/rollback/")).expect("no journal was written");
    let own = own.split(' ').next().unwrap();
    let is_one = |line: &&str| line.split(' ').next() == Some(own) && line.contains(" fsync(");
    let begin = text.lines().position(|l| l.contains("/rollback/")).unwrap();
    let before = text.lines().take(begin).filter(is_one).count();
    (before, text.lines().filter(is_one).count())
}

#[test]
fn killed_behind_every_line_of_the_journal() {
    let site = Site::new(0);
    let (before, all) = fsyncs(&site);
    site.is(1);
    site.run(&["rollback", "--undo", "--yes"]).exits(0);
    site.is(2);
    let (mut new, mut old) = (0, 0);
    for n in (before.max(1)..=all).step_by(thinned()) {
        if !killed(&site, n, &["rollback", "--to", "v1", "--yes"]) {
            // It ended before: other snapshots take other numbers of calls.
            site.is(1);
            site.run(&["rollback", "--undo", "--yes"]).exits(0);
            continue;
        }
        if site.run(&["list"]).exits(0).err.contains("was cut short") {
            site.run(&["snapshot"]).exits(5).says(&["rollback --resume"]);
            // Once more on the way to the end.
            killed(&site, 1 + n % 4, &["rollback", "--resume"]);
            if site.run(&["list"]).exits(0).err.contains("was cut short") {
                site.run(&["rollback", "--resume"]).exits(0);
            }
        }
        let version = fs::read_to_string(site.world.app().join("code/version")).unwrap();
        if version.trim() == "1" {
            new += 1;
            site.is(1);
            site.run(&["rollback", "--undo", "--yes"]).exits(0);
        } else {
            old += 1;
        }
        site.is(2);
        site.nothing_left();
    }
    println!("{} cases, {new} of them new", new + old);
    assert!(new > 0 && old > 0, "{new} {old}");
}

/// Killed this long after a step has begun.
pub fn killed_in(site: &Site, arguments: &[&str], step: &str, delay: Duration) {
    let old = newest(site);
    let mut command = site.command(arguments);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    await_step(site, old, &mut child, step);
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_in_the_middle_of_every_step() {
    let site = Site::new(0);
    site.run(&["rollback", "--to", "v1", "--yes"]).exits(0);
    let all: Vec<String> =
        steps(&site).into_iter().filter(|(_, phase)| phase == "begin").map(|(step, _)| step).collect();
    site.run(&["rollback", "--undo", "--yes"]).exits(0);
    let (mut new, mut old) = (0, 0);
    for (n, step) in all.iter().enumerate().skip(3).step_by(thinned().min(6)) {
        // The short steps take some milliseconds, the long ones some hundreds.
        for delay in [0, 4, 60, 700].into_iter().skip(n % 3).step_by(if thinned() == 1 { 1 } else { 4 }) {
            killed_in(&site, &["rollback", "--to", "v1", "--yes"], step, Duration::from_millis(delay));
            if site.run(&["list"]).exits(0).err.contains("was cut short") {
                let resumed = site.run(&["rollback", "--resume"]);
                assert_eq!(resumed.code, 0, "{step}, {delay} ms: {resumed:#?}");
            }
            let is_new = fs::read_to_string(site.world.app().join("code/version")).unwrap().trim() == "1";
            println!("{step}, {delay} ms: {}", if is_new { "new" } else { "old" });
            if is_new {
                new += 1;
                site.is(1);
                site.run(&["rollback", "--undo", "--yes"]).exits(0);
            } else {
                old += 1;
            }
            site.is(2);
            site.nothing_left();
        }
    }
    println!("{} cases, {new} of them new", new + old);
    assert!(new > 0 && old > 0, "{new} {old}");
}
