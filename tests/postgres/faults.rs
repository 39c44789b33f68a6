//! What breaks: tools that lie, damaged files, cut connections, locks, limits, a full repository.

use crate::bench::{Proxy, bench, capture, failure, full, host, large, meddled, midway, replace, source, spec, table};
use crate::postgres::PostgresServer;
use crate::sink::MemorySink;
use lifeboat::policy::model::{Databases, Fingerprint, PostgresSpec};
use lifeboat::sources::postgres::facts::Facts;
use lifeboat::sources::postgres::{Limits, PostgresSource};
use lifeboat::sources::{Source, SourceError};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// What a broken tool must lead to: an error, and no stream of the database.
fn meddled_failure(spec: PostgresSpec, tool: &'static str, option: &'static str, script: &str) -> String {
    let (sink, result) = capture(&meddled(spec, tool, option, script));
    assert!(!sink.names().iter().any(|n| n.ends_with(".dump")), "no artefact: {:?}", sink.names());
    full(&result.expect_err("the capture fails"))
}

#[test]
fn a_dump_that_is_not_whole_fails_whatever_the_tool_says() {
    let server = PostgresServer::shared();
    server.create("whole");
    server.sql("whole", "CREATE TABLE big AS SELECT i, repeat('x', 100) AS t FROM generate_series(1, 20000) AS i");
    server.sql("whole", "CREATE TABLE second (i int); SELECT lo_from_bytea(0, 'x')");
    let spec = || spec(server.socket_url("postgres", "whole"));
    let dump = |script: &str| meddled_failure(spec(), "pg_dump", "--snapshot", script);

    let error = dump("\"$@\"; exit 1");
    assert!(error.contains("pg_dump ended with status 1") && error.contains("\"whole\""), "{error}");
    let error = dump("\"$@\"; kill -9 $$");
    assert!(error.contains("status 137"), "{error}");
    for bytes in [5, 1000, 100_000, 2_000_000] {
        let error = dump(&format!("\"$@\" | head -c {bytes}; exit 0"));
        assert!(error.contains("ends early"), "{bytes}: {error}");
    }
    let error = dump("true");
    assert!(error.contains("wrote nothing"), "{error}");
    let error = dump("echo 'could not connect'");
    assert!(error.contains("not a dump in custom format"), "{error}");
    let error = dump("\"$@\"; echo behind");
    assert!(error.contains("block"), "{error}");
    // Another moment than the facts'.
    let error = dump(
        "args=(); for a in \"$@\"; do [[ $a == --snapshot=* ]] || args+=(\"$a\"); done; \
         psql -Xq -d \"dbname=whole\" -c 'DELETE FROM big WHERE i <= 7' && exec \"${args[@]}\"",
    );
    assert!(error.contains("holds 19993 rows of table public.big, and the server counted 20000"), "{error}");
    let error = dump("exec \"$@\" --exclude-table-data=public.second");
    assert!(error.contains("table public.second is not in it"), "{error}");
    let error = dump("exec \"$@\" --no-blobs");
    assert!(error.contains("holds 0 large objects, and the server has 1"), "{error}");
    // And the roles.
    let roles = |script: &str| meddled_failure(spec(), "pg_dumpall", "--globals-only", script);
    assert!(roles("\"$@\" | head -c 200").contains("ends early"));
    assert!(roles("\"$@\"; exit 2").contains("status 2"));
    assert!(roles("true").contains("ends early"));
}

#[test]
fn a_server_newer_than_the_tools_is_refused_before_anything_is_written() {
    let server = PostgresServer::shared();
    server.create("newer");
    let spec = spec(server.socket_url("postgres", "newer"));
    let old = meddled(spec.clone(), "pg_dump", "--version", "echo 'pg_dump (PostgreSQL) 14.9 (Debian 14.9-1)'");
    let (sink, result) = capture(&old);
    let error = full(&result.unwrap_err());
    assert!(error.contains("pg_dump 14.9") && error.contains("PostgreSQL 15."), "{error}");
    assert!(error.contains("postgresql-client-15"), "{error}");
    assert!(sink.names().is_empty());
    assert!(old.probe(&Default::default()).is_err());

    let (sink, result) = capture(&meddled(spec, "pg_dump", "--version", "exit 127"));
    assert!(sink.names().is_empty() && result.is_err());

    // A server that says so of itself only when it is connected to: pg_dump refuses, and nothing is left.
    let proxy = Proxy::start(server.port, |bytes| replace(bytes, b"server_version\x0015.", b"server_version\x0099."));
    let mut by_tcp = self::spec(server.tcp_url("postgres", "newer", proxy));
    by_tcp.databases = Databases::Own;
    let (sink, error) = failure(by_tcp);
    assert!(error.contains("server version mismatch") || error.contains("99."), "{error}");
    assert!(!sink.names().iter().any(|n| n.ends_with(".dump")), "{:?}", sink.names());
}

/// Breaks one page of a table's file while the server is down.
pub fn break_page(server: &mut PostgresServer, database: &str, table: &str, at: u64, bytes: &[u8]) {
    let path = server.sql(database, &format!("CHECKPOINT; SELECT pg_relation_filepath('{table}')"));
    server.stop();
    let file = std::fs::File::options().read(true).write(true).open(server.data.join(path)).unwrap();
    file.write_all_at(bytes, at).unwrap();
    server.start_again();
}

#[test]
fn a_damaged_page_fails_and_names_table_and_database() {
    for (initdb, at, bytes) in [
        (&[][..], 8192 * 3, &[0xAAu8; 64][..]), // a header that cannot be
        (&["--data-checksums"][..], 8192 * 3 + 5000, &[0x55; 8]), // a value, which only a checksum notices
    ] {
        let mut server = PostgresServer::start_with(initdb, &[]);
        server.create("shop");
        server.sql("shop", "CREATE TABLE items AS SELECT i, repeat('x', 200) AS t FROM generate_series(1, 5000) AS i");
        server.sql("shop", "CREATE TABLE fine (i int)");
        break_page(&mut server, "shop", "items", at, bytes);
        for fingerprint in [Fingerprint::Rows, Fingerprint::None] {
            let mut spec = spec(server.socket_url("postgres", "shop"));
            spec.fingerprint = fingerprint;
            let (sink, error) = failure(spec);
            assert!(error.contains("invalid page in block 3"), "{error}");
            assert!(error.contains("items") && error.contains("\"shop\""), "{error}");
            assert!(error.contains("files are damaged"), "{error}");
            assert!(!sink.names().iter().any(|n| n.ends_with(".dump")), "{:?}", sink.names());
        }
        // The server can be told to pass over such pages; then nothing is dumped at all.
        server.sql("postgres", "ALTER ROLE postgres SET zero_damaged_pages = on");
        let (sink, error) = failure(spec(server.socket_url("postgres", "shop")));
        assert!(error.contains("zero_damaged_pages") && sink.names().is_empty(), "{error}");
    }
}

#[test]
fn a_connection_that_is_cut_midway_fails() {
    let server = PostgresServer::shared();
    large(&server, "cut");
    let (sink, result, _) = midway(&source(spec(server.socket_url("postgres", "cut"))), |_| {
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE datname = 'cut' AND application_name LIKE 'lifeboat:%' AND query LIKE 'COPY%'";
        assert_eq!(server.sql("postgres", sql), "1");
    });
    let error = full(&result.unwrap_err());
    assert!(error.contains("terminating connection") || error.contains("server closed the connection"), "{error}");
    assert!(error.contains("\"cut\"") && sink.names() == ["globals.sql"], "{error}");
}

#[test]
fn cancelled_within_seconds_and_nothing_is_left_in_the_server() {
    let server = PostgresServer::shared();
    large(&server, "cancelled");
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'cancelled' AND application_name LIKE 'lifeboat:%' AND backend_type = 'client backend'";
    let (sink, result, took) = midway(&source(spec(server.socket_url("postgres", "cancelled"))), |bench| {
        let begin = Instant::now();
        // The side session and pg_dump; the roles' may still be there.
        while server.sql("postgres", sessions) != "2" {
            assert!(begin.elapsed() < Duration::from_secs(20), "{}", server.sql("postgres", sessions));
            std::thread::sleep(Duration::from_millis(20));
        }
        bench.cancel.raise(2);
    });
    assert!(matches!(result, Err(SourceError::Cancelled(_))), "{result:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(sink.names(), ["globals.sql"]);
    ends(&server, sessions);
}

/// A backend that is told to end takes its time.
pub fn ends(server: &PostgresServer, sessions: &str) {
    let begin = Instant::now();
    while server.sql("postgres", sessions) != "0" {
        assert!(begin.elapsed() < Duration::from_secs(10), "a backend goes on by itself");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn cancelled_while_the_server_counts() {
    let server = PostgresServer::shared();
    server.create("counting");
    // A count that takes very long: the table is a thousand times itself by its own column's size.
    server.sql("counting", "CREATE TABLE slow AS SELECT i FROM generate_series(1, 3000000) AS i");
    let mut content = spec(server.socket_url("postgres", "counting"));
    content.fingerprint = Fingerprint::Content;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'counting' AND application_name LIKE 'lifeboat:%' AND backend_type = 'client backend'";
    let (_, result, took) = midway(&source(content), |bench| {
        let counting = format!("{sessions} AND state = 'active' AND query LIKE '%sha256%'");
        let begin = Instant::now();
        while server.sql("postgres", &counting) == "0" && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        bench.cancel.raise(15);
    });
    assert!(matches!(result, Err(SourceError::Cancelled(_))), "{result:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    ends(&server, sessions);
}

#[test]
fn a_backend_that_stands_still_hits_the_limit() {
    let server = PostgresServer::shared();
    large(&server, "stalled");
    let limits = Limits { stall: Duration::from_secs(6), ..Limits::default() };
    let mut stopped = None;
    let source = source(spec(server.socket_url("postgres", "stalled"))).with_limits(limits);
    let (sink, result, took) = midway(&source, |_| {
        let sql = "SELECT pid FROM pg_stat_activity WHERE datname = 'stalled' AND query LIKE 'COPY%'";
        let pid: i32 = server.sql("postgres", sql).parse().unwrap();
        stopped = Pid::from_raw(pid);
        kill_process(stopped.unwrap(), Signal::STOP).unwrap();
    });
    kill_process(stopped.unwrap(), Signal::CONT).unwrap();
    let error = full(&result.unwrap_err());
    assert!(error.contains("pg_dump in this host gave no output for 6.0 s"), "{error}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert_eq!(sink.names(), ["globals.sql"]);
}

#[test]
fn a_table_that_stays_locked() {
    let server = PostgresServer::shared();
    server.create("locked");
    server.sql("locked", "CREATE TABLE t (i int); CREATE TABLE other (i int)");
    let mut holder = server
        .connected("psql", "locked")
        .args(["-XqAt"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = holder.stdin.take().unwrap();
    stdin.write_all(b"BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE; SELECT 'held';\n").unwrap();
    let mut said = [0u8; 5];
    holder.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    let limits = Limits { lock_wait: Duration::from_millis(500), ..Limits::default() };
    let (sink, result) = capture(&source(spec(server.socket_url("postgres", "locked"))).with_limits(limits));
    drop(stdin);
    let _ = holder.wait();
    let error = full(&result.unwrap_err());
    assert!(error.contains("tables of database \"locked\"") && error.contains("stay locked"), "{error}");
    assert!(error.contains("lock timeout"), "{error}");
    assert_eq!(sink.names(), ["globals.sql"]);
}

/// Somebody queues up for an exclusive lock between the side session's locks and `pg_dump`'s: `pg_dump` would wait for
/// him and he for us.
#[test]
fn a_lock_that_queues_up_in_between_is_let_through() {
    let server = PostgresServer::shared();
    server.create("queued");
    server.sql("queued", "CREATE TABLE t AS SELECT generate_series(1, 10) AS i; CREATE TABLE log (i int)");
    let flag = tempfile::tempdir().unwrap();
    let script = format!(
        "if mkdir {0}/first 2>/dev/null; then touch {0}/go; while ! [ -e {0}/queued ]; do sleep 0.05; done; fi; exec \"$@\"",
        flag.path().display()
    );
    let source = meddled(spec(server.socket_url("postgres", "queued")), "pg_dump", "--snapshot", &script);
    std::fs::set_permissions(flag.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let (sink, result, waited) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| capture(&source));
        while !flag.path().join("go").exists() && !thread.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let begin = Instant::now();
        let truncate = scope.spawn(|| server.sql("queued", "BEGIN; TRUNCATE t; INSERT INTO log VALUES (1); COMMIT"));
        while server.sql("postgres", "SELECT count(*) FROM pg_locks WHERE NOT granted") == "0" && !thread.is_finished()
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::fs::write(flag.path().join("queued"), "").unwrap();
        truncate.join().unwrap();
        let waited = begin.elapsed();
        let (sink, result) = thread.join().unwrap();
        (sink, result, waited)
    });
    assert!(waited < Duration::from_secs(25), "nobody waits for us longer than that: {waited:?}");
    let facts: Facts = serde_json::from_value(result.unwrap_or_else(|e| panic!("{}", full(&e))).facts).unwrap();
    // A snapshot does not undo a TRUNCATE: without the locks the table would be empty and the log too.
    let rows = |name| table(&facts.databases[0], "public", name).rows;
    assert_eq!((rows("t"), rows("log")), (Some(0), Some(1)), "begun anew, after the change");
    assert_eq!(sink.names(), ["globals.sql", "queued.dump"]);
}

#[test]
fn a_full_repository_is_not_the_server_s_fault() {
    let server = PostgresServer::shared();
    large(&server, "full");
    let mut sink = MemorySink::new();
    sink.fail_after_bytes = Some(3 << 20);
    let bench = bench();
    let result = source(spec(server.socket_url("postgres", "full"))).capture(&bench.capture(&sink));
    assert!(matches!(result, Err(SourceError::Sink(_))), "{result:?}");
    assert!(!sink.names().contains(&"full.dump".into()));
}

#[test]
fn a_capture_has_a_time_limit() {
    let server = PostgresServer::shared();
    large(&server, "timed");
    let source = PostgresSource::new(
        "db".parse().unwrap(),
        spec(server.socket_url("postgres", "timed")),
        Duration::from_secs(10),
        host(),
    );
    let begin = Instant::now();
    let (sink, result, _) = midway(&source, |_| std::thread::sleep(Duration::from_secs(11)));
    let error = full(&result.unwrap_err());
    assert!(error.contains("took longer than"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(40) && sink.names() == ["globals.sql"]);
}
