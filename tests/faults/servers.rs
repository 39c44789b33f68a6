//! A snapshot of a PostgreSQL and a Redis server that is killed: at any time, and at its calls. What was stored is whole,
//! the servers keep nothing of it, no program of it goes on, and the next run needs nobody's hand.

use crate::cli::World;
use crate::postgres::PostgresServer;
use crate::redis::RedisServer;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a program that was orphaned may take to see that nobody reads it any more.
const PATIENCE: Duration = Duration::from_secs(20);

/// Calls of the program, of its threads, and of the tools that it runs: the first of each, and a later one.
const CALLS: &[(&str, usize)] =
    &[("linkat", 1), ("linkat", 4), ("fsync,fdatasync,syncfs", 2), ("write,pwrite64", 6), ("sendto,sendmsg", 3)];

struct Site {
    world: World,
    postgres: PostgresServer,
    redis: RedisServer,
}

impl Site {
    fn new() -> Self {
        let (postgres, redis) = (PostgresServer::start(), RedisServer::start());
        postgres.sql("postgres", "create database shop");
        redis.cli(&["SET", "kept", "1"]);
        let world = World::ready();
        fs::create_dir(world.path("tmp")).unwrap();
        world.add_to_policy(&format!(
            "[[source]]\nkind = \"postgres\"\nname = \"db\"\nurl = {:?}\n\
             [[source]]\nkind = \"redis\"\nname = \"cache\"\nurl = {:?}\n",
            postgres.socket_url("postgres", "shop"),
            redis.url()
        ));
        let site = Self { world, postgres, redis };
        site.changes(0);
        site
    }

    /// Other content, so that a snapshot has something to store.
    fn changes(&self, n: usize) {
        let table = format!(
            "drop table if exists t; create table t as select n, md5((n * {}) :: text) text from generate_series(1, 60000) n",
            n + 1
        );
        self.postgres.sql("shop", &table);
        self.redis.cli(&["SET", "n", &n.to_string()]);
    }

    /// The command behind another one.
    fn under(&self, wrapper: &[&str]) -> Command {
        let plain = self.world.command(&["snapshot"]);
        let mut command = Command::new(wrapper.first().map_or(plain.get_program(), |w| w.as_ref()));
        command.args(wrapper.iter().skip(1));
        if !wrapper.is_empty() {
            command.arg(plain.get_program());
        }
        command.args(plain.get_args()).env_clear().env("HOME", self.world.dir.path());
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("TMPDIR", self.world.path("tmp"));
        command.current_dir(self.world.dir.path()).stdin(Stdio::null());
        command
    }

    /// Programs that belong to this installation: their environment says so.
    fn programs(&self) -> Vec<String> {
        let own = self.world.path("tmp").display().to_string();
        let mut found = Vec::new();
        for process in fs::read_dir("/proc").unwrap().flatten().map(|e| e.path()) {
            let told =
                |name: &str| String::from_utf8_lossy(&fs::read(process.join(name)).unwrap_or_default()).into_owned();
            if told("environ").contains(&own) {
                found.push(format!("{}: {}", process.display(), told("cmdline").replace('\0', " ")));
            }
        }
        found
    }

    /// What the servers have to do for somebody else than whoever asks.
    fn served(&self) -> String {
        let sessions = "select pid, application_name, state from pg_stat_activity
            where backend_type = 'client backend' and pid <> pg_backend_pid()";
        let slots = self.postgres.sql("shop", "select slot_name from pg_replication_slots");
        let clients = self.redis.cli(&["CLIENT", "LIST"]).lines().filter(|l| !l.contains("cmd=client")).count();
        let saving = self.redis.cli(&["INFO", "persistence"]).contains("rdb_bgsave_in_progress:1");
        let all = [self.postgres.sql("shop", sessions), slots].concat();
        if clients == 0 && !saving { all } else { format!("{all}, {clients} clients of Redis, saving: {saving}") }
    }

    /// What must hold after a kill.
    fn is_well(&self, what: &str, before: &BTreeSet<String>) {
        let begun = Instant::now();
        while !(self.programs().is_empty() && self.served().trim().is_empty()) {
            let (programs, served) = (self.programs(), self.served());
            assert!(begun.elapsed() < PATIENCE, "{what}: {programs:?} go on, the servers serve {served}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let now: BTreeSet<String> = self.world.snapshots().into_iter().collect();
        assert!(now.is_superset(before) && now.len() <= before.len() + 1, "{what}: {before:?}, then {now:?}");
        let ran = self.under(&[]).output().unwrap();
        assert_eq!(ran.status.code(), Some(0), "{what}: the next one: {ran:?}");
        let left: Vec<_> = fs::read_dir(self.world.path("tmp")).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "{what}: {left:?} stays");
    }
}

#[test]
fn a_snapshot_of_servers_that_is_killed_leaves_nothing() {
    let site = Site::new();
    // The first one looks at more than the others do.
    let timed = |tag: &str| {
        let begun = Instant::now();
        site.world.run(&["snapshot", "--tag", tag]).exits(0);
        begun.elapsed()
    };
    let mut whole = timed("first").min(timed("second"));
    let (mut kills, mut times) = (Vec::new(), 0);
    let known = || site.world.snapshots().into_iter().collect::<BTreeSet<_>>();
    let whether = |status: std::process::ExitStatus| status.signal() == Some(9) || status.code() == Some(137);
    for n in 1..=4 {
        site.changes(n);
        let before = known();
        let mut child = site.under(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        std::thread::sleep(whole * n as u32 / 6);
        let has_ended = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        times += usize::from(whether(child.wait().unwrap()));
        // It was done by then: the machine has become faster.
        if has_ended {
            whole = begun.elapsed() / 2;
        }
        site.is_well(&format!("killed after {n} sixths"), &before);
    }
    for (at, (calls, n)) in CALLS.iter().enumerate() {
        site.changes(10 + at);
        let before = known();
        let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:signal=KILL:when={n}"));
        let log = site.world.path("trace");
        let wrapper = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-e", &trace, "-e", &inject];
        let output = site.under(&wrapper).output().unwrap();
        let text = fs::read_to_string(&log).unwrap();
        let hit = text.contains("killed by SIGKILL");
        // A tool that was killed is a source that failed, and never a success.
        assert!(hit && output.status.code() != Some(0), "{calls} {n}: {output:?}");
        kills.push(if whether(output.status) { "itself" } else { "a tool" });
        site.is_well(&format!("killed at {calls} {n}"), &before);
    }
    println!("{times} kills at a time, at calls {kills:?}; a snapshot takes {} ms", whole.as_millis());
    assert!(times >= 3 && kills.iter().filter(|k| **k == "itself").count() >= 3, "{times}, {kills:?}");
    site.world.run(&["verify", "--deep"]).exits(0);
    for id in ["first", "latest"] {
        let into = site.world.path(id);
        site.world.run(&["restore", id, "--only", "db", "--only", "cache", "--into", into.to_str().unwrap()]).exits(0);
    }
}
