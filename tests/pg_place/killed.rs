//! Killed with SIGKILL behind every statement that a step sends: what is there then can be finished, and undone.

use crate::bench::{Stage, capture, databases, of_server};
use crate::postgres::PostgresServer;
use crate::taken::Taken;
use lifeboat::place::{Command, Exit, HostPlace, Place, PlaceError, Running};
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::placing::Intent;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// This host, where this process is killed behind the `n`th text that a tool is sent.
struct Killing {
    left: Arc<AtomicU32>,
}

struct Sent {
    inner: Box<dyn Write + Send>,
    left: Arc<AtomicU32>,
}

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write_all(bytes)?;
        self.inner.flush()?;
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct Watched {
    inner: Box<dyn Running>,
    left: Arc<AtomicU32>,
}

impl Running for Watched {
    fn stdin(&mut self) -> Option<Box<dyn Write + Send>> {
        let left = self.left.clone();
        self.inner.stdin().map(|inner| Box::new(Sent { inner, left }) as _)
    }

    fn stdout(&mut self) -> Option<Box<dyn Read + Send>> {
        self.inner.stdout()
    }

    fn wait(self: Box<Self>) -> Result<Exit, PlaceError> {
        self.inner.wait()
    }
}

impl Place for Killing {
    fn describe(&self) -> String {
        "this host".into()
    }

    fn start(&self, command: Command) -> Result<Box<dyn Running>, PlaceError> {
        let inner = HostPlace::new().start(command)?;
        Ok(Box::new(Watched { inner, left: self.left.clone() }))
    }
}

/// What a child needs to know, as a file.
#[derive(serde::Serialize, serde::Deserialize)]
struct Order {
    url: String,
    step: String,
    id: String,
    kill_at: u32,
    intent: Intent,
    facts: serde_json::Value,
    streams: Vec<(String, Vec<u8>)>,
}

#[test]
#[ignore = "a part of another test"]
fn child_that_is_killed() {
    let Some(file) = std::env::var_os("LIFEBOAT_TEST_ORDER") else { return };
    let order: Order = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let left = Arc::new(AtomicU32::new(order.kill_at));
    let locate: Locate =
        Arc::new(move |_| Ok(Located { place: Arc::new(Killing { left: left.clone() }), env: Default::default() }));
    let kind = |name: &str| match name.ends_with(".dump") {
        true => lifeboat::base::stream::StreamKind::PgDump,
        false => lifeboat::base::stream::StreamKind::Sql,
    };
    let taken = Taken {
        name: "db".parse().unwrap(),
        kind: "postgres",
        facts: order.facts,
        streams: order.streams.into_iter().map(|(name, bytes)| (name.clone(), kind(&name), bytes)).collect(),
    };
    let spec = crate::bench::spec(lifeboat::policy::model::Target::Url(order.url), &["shop"]);
    let mut stage = Stage::with(spec, &taken, locate);
    stage.rename(&order.id);
    match order.step.as_str() {
        "prepare" => stage.try_prepare(&order.intent).unwrap(),
        step => stage.try_step(step, &order.intent).unwrap(),
    }
}

/// Runs a step in a process of its own; `true` when it was killed, `false` when it came to its end first.
fn killed(dir: &Path, server: &PostgresServer, stage: &Stage, intent: &Intent, step: &str, kill_at: u32) -> bool {
    let order = Order {
        url: server.socket_url("postgres", "postgres"),
        step: step.into(),
        id: stage.id(),
        kill_at,
        intent: intent.clone(),
        facts: stage.taken.facts.clone(),
        streams: stage.taken.streams.iter().map(|(name, _, bytes)| (name.clone(), bytes.clone())).collect(),
    };
    let file = dir.join("order");
    std::fs::write(&file, serde_json::to_vec(&order).unwrap()).unwrap();
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::child_that_is_killed", "--ignored", "--nocapture"])
        .env("LIFEBOAT_TEST_ORDER", &file)
        // What it leaves behind when it is killed goes with this process's folder.
        .env("TMPDIR", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert!(status.success() || status.signal() == Some(9), "{step} {kill_at}: {status:?}");
    !status.success()
}

const BEFORE: &str = "postgres\nshop";

fn shop() -> (PostgresServer, Taken) {
    let server = PostgresServer::start();
    server.create("shop");
    server.sql("shop", "CREATE TABLE users AS SELECT generate_series(1, 100) AS id; CREATE ROLE lb_app");
    let taken = capture(of_server(&server, &["shop"]));
    server.sql("shop", "DELETE FROM users");
    server.sql("postgres", "DROP ROLE lb_app");
    (server, taken)
}

fn users(server: &PostgresServer) -> String {
    server.sql("shop", "SELECT count(*) FROM users")
}

/// Until nothing of a killed child is in the middle of anything.
fn settled(server: &PostgresServer) {
    let begin = std::time::Instant::now();
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'lifeboat:%'";
    while server.sql("postgres", sessions) != "0" && begin.elapsed() < std::time::Duration::from_secs(10) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn behind_every_statement_of_the_switch_and_of_the_way_back() {
    let (server, taken) = shop();
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(of_server(&server, &["shop"]), &taken);
    let intent = stage.plan();
    stage.prepare(&intent);
    let mut kills = 0;
    let mut closed = 0;
    for kill_at in 1.. {
        let was_killed = killed(dir.path(), &server, &stage, &intent, "switch", kill_at);
        settled(&server);
        closed += u32::from(databases(&server).contains("closed"));
        stage.step("back", &intent);
        assert_eq!(databases(&server), "postgres\nshop\nshop__lifeboat_new", "killed behind statement {kill_at}");
        assert_eq!(users(&server), "0");
        if !was_killed {
            break;
        }
        kills += 1;
        // The other way out: it is finished.
        assert!(killed(dir.path(), &server, &stage, &intent, "switch", kill_at));
        settled(&server);
        stage.step("switch", &intent);
        stage.step("confirm", &intent);
        assert_eq!(databases(&server), "postgres\nshop\nshop__lifeboat_old_20261119T020000Z");
        assert_eq!(users(&server), "100");
        // And the way back is killed at the same place.
        killed(dir.path(), &server, &stage, &intent, "back", kill_at);
        settled(&server);
        stage.step("back", &intent);
        assert_eq!((databases(&server).as_str(), users(&server).as_str()), ("postgres\nshop\nshop__lifeboat_new", "0"));
    }
    assert!(kills > 15 && closed > 0, "{kills} kills, of which {closed} left a database closed");
}

#[test]
fn behind_every_statement_of_preparing_and_of_cleaning_up() {
    let (server, taken) = shop();
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(of_server(&server, &["shop"]), &taken);
    let intent = stage.plan();
    // Every third is enough: a load takes a while.
    let mut kills = 0;
    for kill_at in (1..).step_by(3) {
        let was_killed = killed(dir.path(), &server, &stage, &intent, "prepare", kill_at);
        settled(&server);
        kills += u32::from(was_killed);
        assert_eq!(users(&server), "0", "the live one is not touched");
        if kill_at % 2 == 0 || !was_killed {
            // Repeated as it is, then exchanged.
            stage.prepare(&intent);
            stage.step("switch", &intent);
            assert_eq!(users(&server), "100");
            stage.step("back", &intent);
        }
        killed(dir.path(), &server, &stage, &intent, "discard_new", kill_at);
        settled(&server);
        stage.step("discard_new", &intent);
        assert_eq!(databases(&server), BEFORE, "killed behind statement {kill_at}");
        if !was_killed {
            break;
        }
    }
    assert!(kills > 5, "{kills}");
    let left: Vec<_> = std::fs::read_dir("/var/tmp")
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().contains(&stage.id()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
