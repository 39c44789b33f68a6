//! The real daemon with real policies: what was missed, what fails, hangs or is killed, what changes, how it sleeps.

use crate::daily::half_a_day_away;
use crate::hear::Ear;
use crate::world::{World, bare};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A daemon, and what it has said so far. It ends with the test.
pub struct Daemon {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    pub fn start(world: &World, args: &[&str]) -> Self {
        Self::spawn(world.command(&[&["serve"], args].concat()))
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log: Arc<Mutex<String>> = Arc::default();
        let (mut err, kept) = (child.stderr.take().unwrap(), log.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = err.read(&mut buffer) {
                kept.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        let daemon = Self { child, log };
        daemon.says("serving");
        daemon
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until its log holds the text.
    #[track_caller]
    pub fn says(&self, text: &str) {
        wait(|| self.log().contains(text), || format!("{text:?} is not in\n{}", self.log()));
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks it to stop; its exit code, and how long it took.
    pub fn stop(mut self) -> (Option<i32>, Duration) {
        let begun = Instant::now();
        self.signal(Signal::TERM);
        let status = self.child.wait().unwrap();
        (status.code(), begun.elapsed())
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    /// What it needs for itself, and with the pages of its program. Those of a build for tests are many, and shared.
    #[track_caller]
    pub fn is_small(&self) {
        let (own, all) = (self.number("status", "RssAnon:"), self.number("status", "VmRSS:"));
        println!("{own} KiB of its own, {all} KiB resident");
        assert!(own <= 10 << 10, "{own} KiB of its own");
        assert!(cfg!(debug_assertions) || all <= 25 << 10, "{all} KiB resident");
    }

    /// How often any of its threads went to sleep.
    pub fn switches(&self) -> u64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of = |thread: String| self.number(&format!("task/{thread}/status"), "voluntary_ctxt_switches:");
        threads.map(|thread| of(thread.unwrap().file_name().to_string_lossy().into_owned())).sum()
    }

    fn number(&self, file: &str, field: &str) -> u64 {
        let text = self.proc(file);
        let line = text.lines().find_map(|l| l.strip_prefix(field)).unwrap_or_else(|| panic!("no {field} in {text}"));
        line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

#[track_caller]
pub fn wait(done: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", otherwise());
        thread::sleep(Duration::from_millis(30));
    }
}

/// Snapshots once a day, without jitter, and nothing else.
pub fn quiet() -> String {
    let daily = half_a_day_away();
    format!(
        "[schedule]\nsnapshot = \"{daily}\"\nverify = \"off\"\ndrill = \"off\"\nprune = \"off\"\njitter = \"0s\"\nretry = \"1s\"\nretries = 2\n"
    )
}

/// An application of this name beside the others, with its own policy.
pub fn application(world: &World, name: &str, more: &str) {
    let root = world.path(name);
    fs::create_dir_all(root.join("uploads")).unwrap();
    fs::write(root.join("uploads/file.txt"), name).unwrap();
    world.run(&["init", root.to_str().unwrap(), "--name", name]).exits(0);
    let file = world.path(&format!("config/policies/{name}.toml"));
    let policy = fs::read_to_string(&file).unwrap();
    let sections = ["[schedule]", "[notify]"];
    assert!(sections.iter().all(|s| !policy.lines().any(|l| l == *s)), "{policy}");
    let source = "[[source]]\nkind = \"files\"\nname = \"uploads\"\npaths = [\"uploads\"]\n";
    fs::write(&file, format!("{policy}\n{source}\n{}\n{more}\n", quiet())).unwrap();
}

/// As if the service had last been here two days ago: one night, and another, were missed.
pub fn missed(world: &World, policy: &str) {
    let slot = (chrono::Utc::now() - chrono::TimeDelta::hours(48)).format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let db = rusqlite::Connection::open(world.path("state/history.db")).unwrap();
    let slot = slot.parse::<chrono::DateTime<chrono::Utc>>().unwrap().timestamp();
    db.execute("insert or replace into settled values (?1, 'snapshot', ?2)", rusqlite::params![policy, slot]).unwrap();
}

/// An installation with one application, and a history that is empty.
pub fn one(more: &str) -> World {
    let world = World::new();
    application(&world, "shop", more);
    begin_history(&world);
    world
}

pub fn begin_history(world: &World) {
    world.run(&["verify", "-p", "shop"]).exits(0);
    let db = rusqlite::Connection::open(world.path("state/history.db")).unwrap();
    db.execute_batch("delete from runs; delete from alarms; delete from outbox").unwrap();
}

/// The runs of the history, newest first.
#[track_caller]
pub fn runs(world: &World, policy: &str) -> Vec<Value> {
    let json = world.json(&["history", "-p", policy]);
    let events = json["events"].as_array().unwrap().clone();
    let run = |event: Value| match event["what"].as_str() {
        Some("run") => Some(event),
        _ => Some(event["run"].clone()).filter(|run| !run.is_null()),
    };
    events.into_iter().filter_map(run).collect()
}

fn outcomes(world: &World, policy: &str) -> Vec<String> {
    let outcome = |run: &Value| run["outcome"].as_str().unwrap_or("at work").to_owned();
    runs(world, policy).iter().map(outcome).collect()
}

#[track_caller]
fn wait_for_outcomes(world: &World, daemon: &Daemon, wanted: &[&str]) {
    wait(|| outcomes(world, "shop") == wanted, || format!("{:?}\n{}", outcomes(world, "shop"), daemon.log()));
}

/// A source that hangs where this file is not there, and says that it is at work.
pub fn hanging(world: &World, seconds: &str) -> String {
    let (free, marker) = (world.path("free"), world.path("marker"));
    format!(
        "[[source]]\nkind = \"command\"\nname = \"slow\"\nrun = [\"sh\", \"-c\", \"touch {}; test -e {} || exec sleep {seconds}; echo x\"]\n",
        marker.display(),
        free.display()
    )
}

/// A number of seconds that no other process sleeps.
pub fn own_seconds(n: u32) -> String {
    format!("36{n}{}", std::process::id())
}

fn sleepers(seconds: &str) -> Vec<Pid> {
    let sleeps = |entry: &fs::DirEntry| {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(&format!("sleep\0{seconds}\0"))
    };
    let pid = |entry: fs::DirEntry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
    fs::read_dir("/proc").unwrap().flatten().filter(sleeps).filter_map(pid).collect()
}

fn sleeps(seconds: &str) -> bool {
    !sleepers(seconds).is_empty()
}

pub fn end_sleeps(seconds: &str) {
    for pid in sleepers(seconds) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

#[test]
fn what_was_missed_is_run_once_and_remembered() {
    let world = one("");
    missed(&world, "shop");
    let daemon = Daemon::start(&world, &[]);
    daemon.says("snapshot of shop: done");
    assert_eq!(daemon.log().matches("snapshot of shop begins").count(), 1, "two nights were missed: {}", daemon.log());
    let (code, _) = daemon.stop();
    assert_eq!(code, Some(0));
    let all = runs(&world, "shop");
    assert_eq!((all.len(), &all[0]["trigger"], &all[0]["outcome"]), (1, &"schedule".into(), &"done".into()));
    assert!(all[0]["slot"].as_str().unwrap().ends_with(":00:00Z"), "{all:#?}");
    assert_eq!(world.json(&["list"])["snapshots"][0]["trigger"], "schedule");
    // A second daemon finds nothing to do.
    let daemon = Daemon::start(&world, &[]);
    thread::sleep(Duration::from_millis(700));
    assert!(!daemon.log().contains("begins"), "{}", daemon.log());
    // There is one at a time.
    world.run(&["serve"]).exits(5).one_error_with_a_hint().says(&["another daemon"]);
    world.run(&["serve", "--json"]).exits(2).says(&["history --json"]);
}

#[test]
fn policies_run_beside_each_other_within_the_limit() {
    let world = World::new();
    for name in ["shop", "blog"] {
        let busy = world.path("at-work");
        // Each waits for the other, who may be a while coming.
        let run = format!(
            "echo {name} >>{0}; for i in $(seq 100); do [ $(wc -l <{0}) = 2 ] && break; sleep 0.1; done; \
             cat {0}; sleep 0.5; sed -i /{name}/d {0}",
            busy.display()
        );
        let source = format!("[[source]]\nkind = \"command\"\nname = \"work\"\nrun = [\"sh\", \"-c\", \"{run}\"]\n");
        application(&world, name, &source);
    }
    begin_history(&world);
    for (jobs, both) in [("1", false), ("2", true)] {
        for name in ["shop", "blog"] {
            missed(&world, name);
        }
        let _ = fs::remove_file(world.path("at-work"));
        let daemon = Daemon::start(&world, &["--jobs", jobs]);
        daemon.says("snapshot of shop: done");
        daemon.says("snapshot of blog: done");
        assert_eq!(daemon.stop().0, Some(0));
        let seen: Vec<String> = ["shop", "blog"]
            .iter()
            .map(|name| world.run(&["cat", "latest", "work", "-p", name]).exits(0).out)
            .collect();
        assert_eq!(seen.iter().any(|text| text.lines().count() == 2), both, "{jobs} at once: {seen:?}");
    }
}

#[test]
fn a_kill_in_the_middle_is_noticed_and_made_good() {
    let world = World::new();
    let seconds = own_seconds(1);
    application(&world, "shop", &hanging(&world, &seconds));
    begin_history(&world);
    missed(&world, "shop");
    let mut daemon = Daemon::start(&world, &[]);
    wait(|| world.path("marker").exists(), || daemon.log());
    assert_eq!(outcomes(&world, "shop"), ["at work"]);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    // What it had started ends with it.
    wait(|| !sleeps(&seconds), || "the run outlived the service".to_owned());
    wait(|| outcomes(&world, "shop") != ["at work"], || "the run goes on".to_owned());
    fs::write(world.path("free"), "").unwrap();
    let daemon = Daemon::start(&world, &[]);
    daemon.says("was cut short");
    daemon.says("snapshot of shop: done");
    let all = runs(&world, "shop");
    assert_eq!(all.len(), 2, "{all:#?}");
    assert_eq!(
        (&all[0]["trigger"], &all[0]["attempt"], &all[0]["outcome"]),
        (&"retry".into(), &2.into(), &"done".into())
    );
    assert_eq!(all[0]["slot"], all[1]["slot"]);
    world.run(&["verify"]).exits(0);
}

#[test]
fn a_run_that_somebody_else_ended_is_tried_again() {
    for (n, signal, said, outcome) in [
        (2, Signal::KILL, "killed by signal 9", "interrupted"),
        (12, Signal::TERM, "stopped by a signal from outside", "failed"),
    ] {
        let world = World::new();
        let seconds = own_seconds(n);
        application(&world, "shop", &hanging(&world, &seconds));
        begin_history(&world);
        missed(&world, "shop");
        let daemon = Daemon::start(&world, &[]);
        wait(|| world.path("marker").exists(), || daemon.log());
        fs::write(world.path("free"), "").unwrap();
        let log = daemon.log();
        let pid = log.split("(process ").nth(1).unwrap().split(')').next().unwrap().parse().unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        daemon.says(said);
        daemon.says("snapshot of shop: done");
        assert_eq!(outcomes(&world, "shop"), ["done", outcome]);
        // Nobody could tell its command to end; this test does.
        end_sleeps(&seconds);
    }
}

#[test]
fn stopping_ends_what_runs() {
    let world = World::new();
    let seconds = own_seconds(3);
    application(&world, "shop", &hanging(&world, &seconds));
    begin_history(&world);
    missed(&world, "shop");
    let daemon = Daemon::start(&world, &[]);
    wait(|| world.path("marker").exists(), || daemon.log());
    let (code, took) = daemon.stop();
    assert!(code == Some(0) && took < Duration::from_secs(30), "{code:?} after {took:?}");
    assert!(!sleeps(&seconds));
    assert_eq!(outcomes(&world, "shop"), ["cancelled"]);
    // The next daemon takes it up again.
    fs::write(world.path("free"), "").unwrap();
    let daemon = Daemon::start(&world, &[]);
    wait_for_outcomes(&world, &daemon, &["done", "cancelled"]);
}

#[test]
fn what_hangs_is_ended_after_its_time() {
    let world = World::new();
    let seconds = own_seconds(4);
    application(&world, "shop", &hanging(&world, &seconds));
    let file = world.path("config/policies/shop.toml");
    let policy = fs::read_to_string(&file).unwrap();
    fs::write(&file, policy.replace("retries = 2", "retries = 0\ntime_limit = \"2s\"")).unwrap();
    begin_history(&world);
    missed(&world, "shop");
    let daemon = Daemon::start(&world, &[]);
    daemon.says("took longer than its time_limit");
    assert_eq!(outcomes(&world, "shop"), ["timeout"]);
    wait(|| !sleeps(&seconds), || "it still hangs".to_owned());
}

#[test]
fn what_always_fails_is_tried_again_and_told_once() {
    let ear = Ear::new();
    let world = World::new();
    let notify = format!("[notify]\nwebhook = \"{}\"\n", ear.url("/hook"));
    let source = "[[source]]\nkind = \"files\"\nname = \"gone\"\npaths = [\"gone\"]\n";
    application(&world, "shop", &format!("{notify}{source}"));
    begin_history(&world);
    missed(&world, "shop");
    let daemon = Daemon::start(&world, &[]);
    let heard = ear.wait(1);
    assert_eq!(outcomes(&world, "shop"), ["partial", "partial", "partial"], "{}", daemon.log());
    let log = daemon.log();
    assert_eq!((log.matches(", again at ").count(), log.matches("snapshot of shop begins").count()), (2, 3), "{log}");
    let json = heard[0].json();
    assert_eq!(
        (&json["event"], &json["outcome"], &json["policy"]),
        (&"failure".into(), &"partial".into(), &"shop".into())
    );
    assert!(json["text"].as_str().unwrap().contains("gone") && json["text"].as_str().unwrap().contains("attempt 3"));
    assert_eq!(daemon.stop().0, Some(0));
    // The next night is no news.
    missed(&world, "shop");
    let daemon = Daemon::start(&world, &[]);
    wait_for_outcomes(&world, &daemon, &["partial"; 6]);
    daemon.says("snapshot of shop: partial:");
    assert_eq!(daemon.stop().0, Some(0));
    assert_eq!(ear.heard().len(), 1);
    // That it is well again is.
    fs::create_dir(world.path("shop/gone")).unwrap();
    missed(&world, "shop");
    let daemon = Daemon::start(&world, &[]);
    let heard = ear.wait(2);
    assert_eq!(heard[1].json()["event"], "recovery", "{heard:#?}");
    assert_eq!(daemon.stop().0, Some(0));
    world.run(&["snapshot"]).exits(0);
    assert_eq!(ear.heard().len(), 2, "that it stays well is no news");
}

#[test]
fn a_transaction_that_was_cut_short_is_reported_and_left_alone() {
    let ear = Ear::new();
    let world = World::new();
    let hook = format!("touch {}; sleep {}", world.path("in-hook").display(), own_seconds(5));
    let more = format!("[hooks]\nbefore_rollback = \"{hook}\"\n[notify]\nwebhook = \"{}\"\n", ear.url("/"));
    application(&world, "shop", &more);
    begin_history(&world);
    world.run(&["snapshot"]).exits(0);
    fs::write(world.path("shop/uploads/file.txt"), "changed").unwrap();
    let mut command = world.command(&["restore", "latest", "--in-place", "--yes", "--only", "uploads"]);
    let mut restore = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait(|| world.path("in-hook").exists(), || "the restore does not begin".to_owned());
    restore.kill().unwrap();
    restore.wait().unwrap();
    missed(&world, "shop");
    let daemon = Daemon::start(&world, &[]);
    let heard = ear.wait(2);
    let told = |n: usize| (heard[n].json()["what"].clone(), heard[n].json()["outcome"].clone());
    assert_eq!(told(0), ("restore".into(), "interrupted".into()), "{heard:#?}");
    assert_eq!(told(1), ("snapshot".into(), "pending".into()), "{heard:#?}");
    assert!(heard[1].body.contains("cut short"), "{heard:#?}");
    daemon.says("snapshot of shop: pending");
    assert_eq!(fs::read_to_string(world.path("shop/uploads/file.txt")).unwrap(), "changed");
    assert!(outcomes(&world, "shop").contains(&"pending".to_owned()));
    // What it would put back stays.
    world.run(&["prune"]).exits(5).says(&["--resume"]);
    world.run(&["prune", "--dry-run"]).exits(0);
    end_sleeps(&own_seconds(5));
}

#[test]
fn policies_come_go_and_break_while_it_serves() {
    let world = one("");
    let daemon = Daemon::start(&world, &[]);
    daemon.says("policy shop is loaded");
    // A new one, and a broken one beside it.
    application(&world, "blog", "");
    daemon.says("policy blog is loaded");
    let shop = world.path("config/policies/shop.toml");
    let policy = fs::read_to_string(&shop).unwrap();
    fs::write(&shop, policy.replace("recipients", "recipents")).unwrap();
    daemon.says("policy shop cannot be read; what it said before still runs");
    assert!(daemon.log().contains("unknown field \"recipents\""), "{}", daemon.log());
    fs::write(&shop, &policy).unwrap();
    wait(|| daemon.log().matches("policy shop is loaded").count() == 2, || daemon.log());
    // On request; what has not changed is not told again.
    daemon.signal(Signal::HUP);
    daemon.says("reloading the policies");
    thread::sleep(Duration::from_millis(300));
    assert_eq!(daemon.log().matches("policy shop is loaded").count(), 2);
    // A schedule that changes counts at once.
    let daily = policy.lines().find(|line| line.starts_with("snapshot = ")).unwrap();
    fs::write(&shop, policy.replace(daily, "snapshot = \"* * * * *\"")).unwrap();
    wait(|| daemon.log().matches("policy shop is loaded").count() == 3, || daemon.log());
    let begun = Instant::now();
    while !daemon.log().contains("snapshot of shop: done") {
        assert!(begun.elapsed() < Duration::from_secs(90), "{}", daemon.log());
        thread::sleep(Duration::from_millis(100));
    }
    fs::remove_file(&shop).unwrap();
    assert_eq!(daemon.stop().0, Some(0));
}

#[test]
fn a_broken_policy_stops_no_other() {
    let world = one("");
    fs::write(world.path("config/policies/broken.toml"), "[app]\nname = \"broken\"\n").unwrap();
    missed(&world, "shop");
    let daemon = Daemon::start(&world, &[]);
    daemon.says("policy broken cannot be read: ");
    daemon.says("snapshot of shop: done");
}

#[test]
fn it_sleeps_small_and_deep() {
    let world = one("");
    let daemon = Daemon::start(&world, &[]);
    thread::sleep(Duration::from_secs(2));
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap().count();
    assert_eq!(threads, 1, "{}", daemon.proc("status"));
    let before = daemon.number("status", "voluntary_ctxt_switches:");
    thread::sleep(Duration::from_secs(5));
    let woken = daemon.number("status", "voluntary_ctxt_switches:") - before;
    assert_eq!(woken, 0, "it woke up {woken} times in five seconds");
    daemon.is_small();
    // With work behind it as well.
    drop(daemon);
    missed(&world, "shop");
    let daemon = Daemon::start(&world, &[]);
    daemon.says("snapshot of shop: done");
    thread::sleep(Duration::from_millis(500));
    daemon.is_small();
    let before = daemon.number("status", "voluntary_ctxt_switches:");
    thread::sleep(Duration::from_secs(2));
    assert_eq!(daemon.number("status", "voluntary_ctxt_switches:"), before);
}

#[test]
fn systemd_is_told() {
    let world = one("");
    let path = world.path("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut command = world.command(&["serve"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    let daemon = Daemon::spawn(command);
    let told = |text: &str| {
        let begun = Instant::now();
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        while begun.elapsed() < Duration::from_secs(20) {
            if let Ok(length) = socket.recv(&mut buffer) {
                all.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
                if all.last().unwrap().starts_with(text) {
                    return all.pop().unwrap();
                }
            }
        }
        panic!("{text} does not come: {all:?}");
    };
    told("READY=1");
    assert!(told("STATUS=").contains("1 policy; next: snapshot of shop at "));
    for _ in 0..3 {
        told("WATCHDOG=1");
    }
    daemon.signal(Signal::HUP);
    assert!(told("RELOADING=1").contains("MONOTONIC_USEC="));
    told("READY=1");
    let stopping = thread::spawn(move || daemon.stop());
    told("STOPPING=1");
    assert_eq!(stopping.join().unwrap().0, Some(0));
}

/// Nothing of what a run needs of its environment is lost, and nothing of its arguments is odd.
#[test]
fn odd_folders_are_no_trouble() {
    let world = World::new();
    let (config, state) = (world.path("con fig $(id)"), world.path("sta'te"));
    let run = |args: &[&str]| {
        let mut command = bare(world.dir.path());
        command.arg("--config-dir").arg(&config).arg("--state-dir").arg(&state).args(args);
        command
    };
    assert!(run(&["init", world.app().to_str().unwrap(), "--name", "shop"]).output().unwrap().status.success());
    assert!(run(&["verify"]).output().unwrap().status.success());
    let file = config.join("policies/shop.toml");
    fs::write(&file, fs::read_to_string(&file).unwrap() + &quiet()).unwrap();
    let db = rusqlite::Connection::open(state.join("history.db")).unwrap();
    db.execute("insert or replace into settled values ('shop', 'snapshot', 1700000000)", []).unwrap();
    let daemon = Daemon::spawn(run(&["serve"]));
    daemon.says("snapshot of shop: done");
    assert!(Path::new(&state).join("serve.lock").exists());
}
