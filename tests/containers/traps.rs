//! What goes wrong in production: a wrong password, a service that is down, a container that was replaced, a run that
//! was killed; and where a password could be seen.

use crate::everything::{SOURCES, documents_are_equal, the_database_loads};
use crate::stack::{Process, Stack, host, processes, source};
use crate::world::{CANARY, Ran};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Enough that a dump takes a while.
const BULK: &str = "create table bulk as select n, repeat(md5(n::text), 12) from generate_series(1, 120000) n;\n\
                    alter table bulk owner to shop;";

#[test]
fn what_goes_wrong_is_told_and_costs_itself_alone() {
    let stack = Stack::up();
    stack.add_to_policy(SOURCES);
    stack.sql("shop", BULK);
    stack.redis("CONFIG SET repl-diskless-sync-delay 0\n");

    let first = no_password_can_be_seen(&stack);
    a_second_snapshot_stores_little(&stack, &first);
    a_wrong_password_fails_one_source(&stack);
    a_stopped_service_is_told(&stack);
    a_recreated_container_is_found(&stack);
    a_killed_run_leaves_nothing(&stack);
}

/// Neither in an argument of any process of the machine, nor in what the engine tells of an exec.
fn no_password_can_be_seen(stack: &Stack) -> Value {
    let project = format!("label=com.docker.compose.project={}", stack.project.name);
    let told = tempfile::NamedTempFile::new().unwrap();
    // Followed: the engine keeps the last few only, and every health check of the machine makes three.
    let follower = Command::new("docker")
        .args(["events", "--since", &host("date", &["+%s.%N"]), "--filter", &project, "--format", "{{json .}}"])
        .stdout(told.reopen().unwrap())
        .spawn();
    let follower = Killed(follower.unwrap());
    let done = AtomicBool::new(false);
    let (ran, seen) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = std::collections::BTreeSet::new();
            while !done.load(Ordering::SeqCst) {
                seen.extend(processes().into_iter().map(|p| p.arguments.join(" ")));
                std::thread::sleep(Duration::from_millis(5));
            }
            seen
        });
        let ran = stack.command(&["snapshot", "--json"]).output();
        // First of all, or a failure would wait for the watcher for ever.
        done.store(true, Ordering::SeqCst);
        (Ran::from(ran.unwrap()), watcher.join().unwrap())
    });
    assert!(seen.iter().any(|a| a.starts_with("pg_dump ")), "the watcher looks where the commands are: {seen:#?}");
    let shown: Vec<&String> = seen.iter().filter(|a| a.contains(CANARY)).collect();
    assert!(shown.is_empty(), "a password is an argument: {shown:#?}");

    let limit = Instant::now() + Duration::from_secs(20);
    let events = loop {
        let events = std::fs::read_to_string(told.path()).unwrap();
        let missing = ["pg_dump ", "pg_dumpall ", "redis-cli ", "psql "].into_iter().find(|t| !events.contains(t));
        let Some(tool) = missing else { break events };
        assert!(Instant::now() < limit, "the engine tells of {tool}: {events}");
        std::thread::sleep(Duration::from_millis(100));
    };
    drop(follower);
    assert!(!events.contains(CANARY), "a password is an argument of an exec");
    ran.exits(0).json()
}

fn a_second_snapshot_stores_little(stack: &Stack, first: &Value) {
    let second = stack.snapshot(0);
    let bytes = |report: &Value, what: &str| report["header"][what].as_u64().unwrap();
    assert_eq!(second["header"]["outcome"], "complete", "{second:#}");
    assert!(bytes(first, "bytes_total") > 40_000_000, "{first:#}");
    let (total, new) = (bytes(&second, "bytes_total"), bytes(&second, "bytes_new"));
    assert!(new * 20 < bytes(first, "bytes_new"), "{new} new bytes of {total}; the first had {first:#}");
}

/// Every other source is stored, and `show` says why one is not.
#[track_caller]
fn partial(report: &Value, failed: &[&str]) {
    assert_eq!(report["header"]["outcome"], "partial", "{report:#}");
    for one in report["sources"].as_array().unwrap() {
        let outcome = if failed.contains(&one["name"].as_str().unwrap()) { "failed" } else { "complete" };
        assert_eq!(one["outcome"], outcome, "{one:#}");
    }
}

/// Message and hint of a failed source.
#[track_caller]
fn told(report: &Value, name: &str) -> String {
    let one = source(report, name);
    format!("{}\n{}", one["error"].as_str().unwrap(), one["hint"].as_str().unwrap_or_default())
}

fn a_wrong_password_fails_one_source(stack: &Stack) {
    stack.change_policy("password_from = \".env:REDIS_PASSWORD\"", "password_from = \".env:APP_PASSWORD\"");
    let report = stack.snapshot(3);
    partial(&report, &["queue"]);
    let said = told(&report, "queue");
    let place = stack.app().join(".env");
    let expected = format!(
        "AUTH failed for service cache of project {}: password_from points to {}:APP_PASSWORD, which is not the one that the server accepts\n",
        stack.project.name,
        place.display()
    );
    assert!(said.starts_with(&expected), "{said}");
    // The same for a person, and what is stored of the others is whole.
    let text = stack.run(&["snapshot"]).exits(3);
    assert!(format!("{}{}", text.out, text.err).contains("AUTH failed for service cache of project"), "{text:#?}");
    let id = report["header"]["id"].as_str().unwrap();
    let shown = stack.show(id);
    assert_eq!(source(&shown, "queue")["streams"], json!([]));
    // All was asked for, and one source is not in it: status 3 again.
    let into = stack.restore(id, "partial", 3);
    the_database_loads(stack, &into, &shown, true);
    documents_are_equal(stack, &into);
    assert!(!into.join("queue").exists());
    stack.change_policy("password_from = \".env:APP_PASSWORD\"", "password_from = \".env:REDIS_PASSWORD\"");
}

fn a_stopped_service_is_told(stack: &Stack) {
    stack.project.compose(&["stop", "-t", "5", "cache"]);
    let report = stack.snapshot(3);
    partial(&report, &["queue"]);
    let said = told(&report, "queue");
    assert!(said.contains("cache") && said.contains("exited, not running"), "{said}");
    assert!(said.contains("services that run: api, db, web"), "{said}");
    // Removed altogether.
    stack.project.compose(&["rm", "-f", "cache"]);
    let report = stack.snapshot(3);
    partial(&report, &["queue"]);
    let said = told(&report, "queue");
    let expected =
        format!("no service \"cache\" in compose project {}\nservices that run: api, db, web", stack.project.name);
    assert_eq!(said, expected);
}

fn a_recreated_container_is_found(stack: &Stack) {
    let before = stack.container("db");
    stack.project.compose(&["up", "-d", "--wait", "--force-recreate"]);
    stack.redis("CONFIG SET repl-diskless-sync-delay 0\n");
    assert_ne!(stack.container("db"), before);
    let report = stack.snapshot(0);
    assert_eq!(report["header"]["outcome"], "complete", "{report:#}");
    // The stopped server had saved its append-only file: the keys are there.
    let shown = stack.show("latest");
    assert_eq!(source(&shown, "queue")["facts"]["databases"].as_array().unwrap().len(), 2);
}

/// A run that is killed in the middle of a dump: what it left in the container goes with the next run, which succeeds.
fn a_killed_run_leaves_nothing(stack: &Stack) {
    let containers = ["db", "cache"].map(|service| stack.container(service));
    // `pg_dumpall` asks `pg_dump -V` first, and we ask for `--version`: neither is a dump.
    let asks = |x: &String| x == "--version" || x == "-V";
    let is_dump = |a: &[String]| a[0].ends_with("pg_dump") && !a.iter().any(asks);
    let dumps =
        || -> Vec<u32> { inside(&containers).into_iter().filter(|p| is_dump(&p.arguments)).map(|p| p.pid).collect() };
    let mut run = Killed(stack.command(&["snapshot"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let limit = Instant::now() + Duration::from_secs(60);
    let left = loop {
        // Halted, so that it cannot end by itself, if it has not yet.
        if let [dump] = dumps().as_slice()
            && rustix::process::kill_process(Pid::from_raw(*dump as i32).unwrap(), Signal::STOP).is_ok()
        {
            break *dump;
        }
        assert!(run.0.try_wait().unwrap().is_none() && Instant::now() < limit, "pg_dump was never seen");
    };
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(dumps(), [left], "killing a run does not end what it started in a container");

    let report = stack.snapshot(0);
    assert_eq!(report["header"]["outcome"], "complete", "{report:#}");
    // A killed process stands in the table until its parent has noticed.
    let limit = Instant::now() + Duration::from_secs(10);
    while !dumps().is_empty() {
        assert!(Instant::now() < limit, "what the killed run left goes with the next one: {:?}", dumps());
        std::thread::sleep(Duration::from_millis(50));
    }
    let sessions = "select count(*) from pg_stat_activity where application_name like 'lifeboat%';";
    assert_eq!(stack.sql("postgres", sessions), "0");
    let tools = ["psql", "pg_dump", "pg_dumpall", "redis-cli"];
    // The containers' own health checks come and go.
    let is_check = |a: &[String]| a.get(1).is_some_and(|word| word == "ping");
    let is_tool = |a: &[String]| tools.iter().any(|t| a[0].ends_with(t)) && !is_check(a);
    let still: Vec<_> = inside(&containers).into_iter().filter(|p| is_tool(&p.arguments)).collect();
    assert!(still.is_empty(), "{still:?}");
}

/// Processes of the machine that run in one of these containers.
fn inside(containers: &[String]) -> Vec<Process> {
    processes().into_iter().filter(|p| containers.iter().any(|c| Stack::runs_in(c, p.pid))).collect()
}

/// A command that a failing test must not leave behind.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
