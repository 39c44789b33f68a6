//! PostgreSQL, captured from real servers that these tests start.

#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/sink.rs"]
mod sink;

use lifeboat::base::ids::StreamName;
use lifeboat::base::stream::StreamKind;
use lifeboat::place::{Command, HostPlace, Place, PlaceError, Running};
use lifeboat::policy::model::{Databases, Fingerprint, PostgresSpec, SecretRef, Target};
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::postgres::facts::{Database, Facts, Table};
use lifeboat::sources::postgres::{Limits, PostgresSource};
use lifeboat::sources::{Captured, Piece, Sink, Source, SourceError, StreamSink};
use postgres::{PostgresServer, free_port};
use rustix::process::{Pid, Signal, kill_process};
use sink::{Bench, MemorySink};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn host() -> Locate {
    Arc::new(|_| Ok(Located::host()))
}

fn spec(url: String) -> PostgresSpec {
    PostgresSpec {
        target: Target::Url(url),
        user: None,
        databases: Databases::Own,
        password_from: None,
        fingerprint: Fingerprint::Rows,
        jobs: 1,
    }
}

fn source(spec: PostgresSpec) -> PostgresSource {
    PostgresSource::new("db".parse().unwrap(), spec, Duration::from_secs(120), host())
}

/// A run of its own: tests share a server, and a run that fails ends the sessions of its own name.
fn bench() -> Bench {
    let mut bench = Bench::new();
    let random: [u8; 4] = lifeboat::base::ids::random_bytes().unwrap();
    bench.snapshot = format!("20261119T020000Z-{}", hex::encode(random)).parse().unwrap();
    bench
}

fn capture(source: &PostgresSource) -> (MemorySink, Result<Captured, SourceError>) {
    let sink = MemorySink::new();
    let bench = bench();
    let result = source.capture(&bench.capture(&sink));
    (sink, result)
}

fn captured(spec: PostgresSpec) -> (MemorySink, Facts, Vec<String>) {
    let (sink, result) = capture(&source(spec));
    let captured = result.unwrap_or_else(|e| panic!("{}", full(&e)));
    let facts = serde_json::from_value(captured.facts).unwrap();
    (sink, facts, captured.warnings)
}

/// An error with its chain and hint, as the edge prints it.
fn full(error: &SourceError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    if let SourceError::Problem { hint: Some(hint), .. } = error {
        text = format!("{text} ({hint})");
    }
    text
}

fn failure(spec: PostgresSpec) -> (MemorySink, String) {
    let (sink, result) = capture(&source(spec));
    let error = result.err().expect("the capture fails");
    (sink, full(&error))
}

fn table<'f>(database: &'f Database, schema: &str, name: &str) -> &'f Table {
    let found = database.tables.iter().find(|t| t.schema == schema && t.name == name);
    found.unwrap_or_else(|| panic!("no {schema}.{name} in {:?}", database.tables))
}

/// A schema with the things that dumps get wrong.
const RICH: &str = r#"
CREATE EXTENSION citext;
CREATE SCHEMA "Odd schema";
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE users (id serial PRIMARY KEY, email citext UNIQUE NOT NULL, mood mood DEFAULT 'ok', note text,
                    score numeric, seen timestamptz, blob bytea, tags text[], doc jsonb);
INSERT INTO users (email, note, score, seen, blob, tags, doc)
  SELECT 'user' || i || '@example.org', CASE WHEN i % 3 = 0 THEN NULL WHEN i % 3 = 1 THEN E'two\nlines\t\\ \\.' ELSE '' END,
         i * 1.10, '2026-01-01 00:00:00+00'::timestamptz + i * interval '1 s', decode(md5(i::text), 'hex'),
         ARRAY['a', NULL, i::text], jsonb_build_object('i', i, 'text', 'žluť')
  FROM generate_series(1, 1000) AS i;
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, user_id int REFERENCES users, day date NOT NULL,
                     total int, doubled int GENERATED ALWAYS AS (total * 2) STORED, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE orders_2025 PARTITION OF orders FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE orders_2026 PARTITION OF orders FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO orders (user_id, day, total) SELECT i % 1000 + 1, '2025-12-01'::date + i % 60, i FROM generate_series(1, 5000) AS i;
CREATE TABLE parent (a int, b text);
CREATE TABLE child (c int) INHERITS (parent);
ALTER TABLE parent ADD COLUMN z text DEFAULT 'z';
INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (2, 'c', 3), (4, 'd', 5);
CREATE TABLE "Odd schema"."T ""x"" $y .*" ("Col umn" int, "SELECT" text);
INSERT INTO "Odd schema"."T ""x"" $y .*" VALUES (1, 'one'), (1, 'one'), (NULL, NULL);
CREATE TABLE empty (id int);
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES; INSERT INTO no_columns DEFAULT VALUES;
CREATE UNLOGGED TABLE cache (k text, v text); INSERT INTO cache VALUES ('a', 'b');
CREATE MATERIALIZED VIEW totals AS SELECT user_id, sum(total) AS total FROM orders GROUP BY user_id;
CREATE VIEW rich AS SELECT * FROM totals WHERE total > 100;
CREATE SEQUENCE "Odd schema".counter START 7; SELECT nextval('"Odd schema".counter');
CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY); INSERT INTO alembic_version VALUES ('3f2a');
SELECT lo_from_bytea(0, 'large object one'::bytea), lo_from_bytea(0, decode(repeat('00ff', 5000), 'hex'));
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION touch();
"#;

#[test]
fn a_database_comes_back_fact_for_fact() {
    let server = PostgresServer::shared();
    server.create("rich");
    server.sql("rich", RICH);
    server.sql("postgres", "CREATE ROLE shop_owner LOGIN PASSWORD 'x'; CREATE ROLE reader; GRANT reader TO shop_owner");
    server.sql(
        "postgres",
        "ALTER DATABASE rich OWNER TO shop_owner; ALTER DATABASE rich SET work_mem = '5MB'; \
         ALTER ROLE reader IN DATABASE rich SET statement_timeout = '7s'; ALTER DATABASE rich CONNECTION LIMIT 42; \
         COMMENT ON DATABASE rich IS 'it''s rich'; GRANT CONNECT ON DATABASE rich TO reader",
    );
    let mut with_content = spec(server.socket_url("postgres", "rich"));
    with_content.fingerprint = Fingerprint::Content;
    let (sink, facts, warnings) = captured(with_content.clone());
    assert_eq!(sink.names(), ["globals.sql", "rich.dump"]);
    assert!(facts.server_version.starts_with("15.") && facts.superuser && !facts.standby, "{facts:?}");
    let role = facts.roles.iter().find(|r| r.name == "shop_owner").unwrap();
    assert!(role.login && !role.superuser);
    assert!(facts.memberships.iter().any(|m| m.role == "reader" && m.member == "shop_owner"));

    let d = &facts.databases[0];
    assert!(d.proved, "the dump was walked and its rows compared");
    let p = &d.properties;
    assert_eq!((p.owner.as_str(), p.encoding.as_str(), p.locale_provider.as_str()), ("shop_owner", "UTF8", "libc"));
    assert_eq!(
        (p.connection_limit, p.comment.as_deref(), p.tablespace.as_str()),
        (42, Some("it's rich"), "pg_default")
    );
    assert!(p.settings.iter().any(|s| s.role.is_none() && s.values == ["work_mem=5MB"]), "{:?}", p.settings);
    assert!(p.settings.iter().any(|s| s.role.as_deref() == Some("reader")), "{:?}", p.settings);
    assert!(p.acl.as_ref().unwrap().iter().any(|a| a.starts_with("reader=c/")), "{:?}", p.acl);
    assert!(d.extensions.iter().any(|e| e.name == "citext" && e.schema == "public"));
    let rows = |schema: &str, name: &str| table(d, schema, name).rows;
    assert_eq!(rows("public", "users"), Some(1000));
    assert_eq!(rows("public", "parent"), Some(1));
    assert_eq!(rows("public", "child"), Some(2));
    assert_eq!(rows("Odd schema", "T \"x\" $y .*"), Some(3));
    assert_eq!((rows("public", "empty"), rows("public", "no_columns")), (Some(0), Some(2)));
    assert_eq!((rows("public", "orders"), rows("public", "totals"), rows("public", "rich")), (None, None, None));
    assert_eq!(rows("public", "orders_2025").unwrap() + rows("public", "orders_2026").unwrap(), 5000);
    assert_eq!(table(d, "public", "cache").persistence, "unlogged");
    assert!(warnings.iter().any(|w| w.contains("public.cache") && w.contains("unlogged")), "{warnings:?}");
    assert_eq!(d.large_objects.count, 2);
    let counter = d.sequences.iter().find(|s| s.name == "counter").unwrap();
    assert_eq!((counter.last_value, counter.is_called, counter.last_value_after), (7, true, None));
    assert_eq!(d.migrations[0].tool, "alembic");
    assert_eq!(d.migrations[0].head, ["3f2a"]);

    server.restore("rich_again", &[sink.bytes("rich.dump")]);
    let mut again = with_content;
    again.target = Target::Url(server.socket_url("postgres", "rich_again"));
    let (_, facts, _) = captured(again);
    same_content(d, &facts.databases[0]);
    let changed = "UPDATE users SET note = 'changed' WHERE id = 5";
    server.sql("rich_again", changed);
    let mut other = spec(server.socket_url("postgres", "rich_again"));
    other.fingerprint = Fingerprint::Content;
    let (_, facts, _) = captured(other);
    assert_ne!(table(&facts.databases[0], "public", "users").content, table(d, "public", "users").content);

    let globals = String::from_utf8(sink.bytes("globals.sql")).unwrap();
    assert!(globals.contains("CREATE ROLE shop_owner") && globals.contains("SCRAM-SHA-256"), "{globals}");
}

/// Everything that a drill compares.
fn same_content(a: &Database, b: &Database) {
    for (x, y) in a.tables.iter().zip(&b.tables) {
        assert_eq!((&x.schema, &x.name, &x.kind, &x.owner), (&y.schema, &y.name, &y.kind, &y.owner));
        assert_eq!((x.rows, &x.content), (y.rows, &y.content), "{}.{}", x.schema, x.name);
        assert!(!x.has_data() || x.content.is_some(), "{x:?}");
    }
    assert_eq!(a.tables.len(), b.tables.len());
    assert_eq!(a.sequences, b.sequences);
    assert_eq!(a.counts, b.counts);
    assert_eq!((a.large_objects.count, &a.large_objects.content), (b.large_objects.count, &b.large_objects.content));
    assert!(a.large_objects.content.is_some());
    assert_eq!(a.migrations, b.migrations);
}

#[test]
fn odd_names_of_databases_end_to_end() {
    let server = PostgresServer::shared();
    let names =
        ["$(id)", "-x", "a b\"c", "it's \\", "žluťoučký kůň", "a=b", "postgres://x", "a\nb", "dbname='postgres'"];
    for (i, name) in names.iter().enumerate() {
        server.create(name);
        server.sql(name, &format!("CREATE TABLE t AS SELECT generate_series(1, {}) AS i", i + 1));
    }
    let mut all = spec(server.socket_url("postgres", "postgres"));
    all.databases = Databases::Named(names.iter().map(|n| (*n).to_owned()).collect());
    let (sink, facts, warnings) = captured(all);
    assert!(warnings.iter().all(|w| w.contains("another run")), "{warnings:?}");
    assert_eq!(facts.databases.len(), names.len());
    for (i, (name, database)) in names.iter().zip(&facts.databases).enumerate() {
        assert_eq!(&database.name, name);
        assert_eq!(table(database, "public", "t").rows, Some(i as u64 + 1), "{name}");
        let again = format!("again {name}");
        server.restore(&again, &[sink.bytes(&database.parts[0].stream)]);
        assert_eq!(server.sql(&again, "SELECT count(*) FROM t"), (i + 1).to_string());
        // The same by a URL that names the database itself.
        let (_, own, _) = captured(spec(server.socket_url("postgres", name)));
        assert_eq!(&own.databases[0].name, name);
    }
}

#[test]
fn all_databases_but_templates() {
    let server = PostgresServer::start();
    server.create("one");
    server.create("two");
    server.create("closed");
    server.sql("postgres", "ALTER DATABASE closed ALLOW_CONNECTIONS false");
    let mut all = spec(server.socket_url("postgres", ""));
    all.databases = Databases::All;
    let (sink, facts, _) = captured(all);
    assert_eq!(sink.names(), ["globals.sql", "one.dump", "postgres.dump", "two.dump"]);
    assert_eq!(facts.databases.len(), 3);
    let mut closed = spec(server.socket_url("postgres", ""));
    closed.databases = Databases::Named(vec!["closed".into()]);
    assert!(failure(closed).1.contains("allows no connections"));
}

/// This host, with a shell in front of one tool: `$@` are the tool and its arguments.
struct Meddled {
    tool: &'static str,
    option: &'static str,
    script: String,
}

impl Place for Meddled {
    fn describe(&self) -> String {
        "this host".into()
    }

    fn start(&self, mut command: Command) -> Result<Box<dyn Running>, PlaceError> {
        if command.argv[0] == self.tool && command.argv.iter().any(|a| a.starts_with(self.option)) {
            let mut argv = vec!["bash".to_owned(), "-c".into(), self.script.clone(), "meddled".into()];
            argv.extend(command.argv);
            command.argv = argv;
        }
        HostPlace::new().start(command)
    }
}

fn meddled(spec: PostgresSpec, tool: &'static str, option: &'static str, script: &str) -> PostgresSource {
    let script = script.to_owned();
    let locate: Locate = Arc::new(move |_| {
        let place = Meddled { tool, option, script: script.clone() };
        Ok(Located { place: Arc::new(place), env: Default::default() })
    });
    PostgresSource::new("db".parse().unwrap(), spec, Duration::from_secs(120), locate)
}

/// What a broken tool must lead to: an error, and no stream of the database.
fn meddled_failure(spec: PostgresSpec, tool: &'static str, option: &'static str, script: &str) -> String {
    let (sink, result) = capture(&meddled(spec, tool, option, script));
    assert!(!sink.names().iter().any(|n| n.ends_with(".dump")), "no artefact: {:?}", sink.names());
    full(&result.err().expect("the capture fails"))
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

fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(from.len()).position(|w| w == from) {
        bytes[at + found..at + found + from.len()].copy_from_slice(to);
        at += found + from.len();
    }
}

/// A TCP proxy that may change what the server says.
struct Proxy;

impl Proxy {
    fn start(server: u16, change: fn(&mut [u8])) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let upstream = TcpStream::connect(("127.0.0.1", server)).unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
                let (mut from, mut to) = (upstream, client);
                std::thread::spawn(move || {
                    let mut buffer = vec![0u8; 64 << 10];
                    while let Ok(n) = from.read(&mut buffer) {
                        if n == 0
                            || to
                                .write_all({
                                    change(&mut buffer[..n]);
                                    &buffer[..n]
                                })
                                .is_err()
                        {
                            break;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        port
    }
}

/// Breaks one page of a table's file while the server is down.
fn break_page(server: &mut PostgresServer, database: &str, table: &str, at: u64, bytes: &[u8]) {
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

/// A sink that takes no byte of a dump until it is opened.
struct GateSink {
    inner: MemorySink,
    open: AtomicBool,
    reached: AtomicBool,
}

struct GateStream<'a> {
    gate: &'a GateSink,
    gated: bool,
    inner: Box<dyn StreamSink + 'a>,
}

impl GateSink {
    fn new() -> Self {
        Self { inner: MemorySink::new(), open: AtomicBool::new(false), reached: AtomicBool::new(false) }
    }
}

impl Sink for GateSink {
    fn stream(
        &self,
        name: StreamName,
        kind: StreamKind,
        expected: Option<u64>,
    ) -> io::Result<Box<dyn StreamSink + '_>> {
        let gated = name.as_str().ends_with(".dump");
        Ok(Box::new(GateStream { gate: self, gated, inner: self.inner.stream(name, kind, expected)? }))
    }
}

impl Write for GateStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.gated {
            self.gate.reached.store(true, Ordering::SeqCst);
            while !self.gate.open.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl StreamSink for GateStream<'_> {
    fn end_piece(&mut self) -> io::Result<Piece> {
        self.inner.end_piece()
    }

    fn reuse_piece(&mut self, piece: &Piece) -> io::Result<bool> {
        self.inner.reuse_piece(piece)
    }

    fn position(&self) -> u64 {
        self.inner.position()
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.inner.finish()
    }
}

/// Captures, and calls `meanwhile` while `pg_dump` stands in the middle of its work.
fn midway(
    source: &PostgresSource,
    meanwhile: impl FnOnce(&Bench),
) -> (MemorySink, Result<Captured, SourceError>, Duration) {
    let sink = GateSink::new();
    let bench = bench();
    let (result, took) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut capture = bench.capture(&sink.inner);
            capture.sink = &sink;
            source.capture(&capture)
        });
        let begin = Instant::now();
        while !sink.reached.load(Ordering::SeqCst) && !thread.is_finished() {
            assert!(begin.elapsed() < Duration::from_secs(60), "the dump does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| meanwhile(&bench)));
        let begin = Instant::now();
        sink.open.store(true, Ordering::SeqCst);
        let result = thread.join().unwrap();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        (result, begin.elapsed())
    });
    (sink.inner, result, took)
}

/// A database that is larger than all pipes together.
fn large(server: &PostgresServer, name: &str) {
    server.create(name);
    server.sql(
        name,
        "CREATE TABLE big AS SELECT i, md5(i::text) || repeat('x', 200) AS t FROM generate_series(1, 50000) AS i",
    );
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
        assert_eq!(server.sql("postgres", sessions), "2", "the side session and pg_dump");
        bench.cancel.raise(2);
    });
    assert!(matches!(result, Err(SourceError::Cancelled(_))), "{result:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(sink.names(), ["globals.sql"]);
    assert_eq!(server.sql("postgres", sessions), "0");
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
    assert!(took < Duration::from_secs(5), "{took:?}");
    let begin = Instant::now();
    while server.sql("postgres", sessions) != "0" {
        assert!(begin.elapsed() < Duration::from_secs(3), "a backend goes on by itself");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_backend_that_stands_still_hits_the_limit() {
    let server = PostgresServer::shared();
    large(&server, "stalled");
    let limits = Limits { stall: Duration::from_secs(2), ..Limits::default() };
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
    assert!(error.contains("pg_dump in this host gave no output for 2.0 s"), "{error}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(sink.names(), ["globals.sql"]);
}

#[test]
fn what_is_written_meanwhile_does_not_blur_the_facts() {
    let server = PostgresServer::shared();
    server.create("busy");
    server.sql(
        "busy",
        "CREATE TABLE a (id bigserial PRIMARY KEY, t text); CREATE TABLE b (id bigserial PRIMARY KEY, t text); \
         INSERT INTO a (t) SELECT repeat('x', 300) FROM generate_series(1, 20000); \
         CREATE PROCEDURE load() LANGUAGE plpgsql AS $$ BEGIN LOOP \
           INSERT INTO a (t) SELECT repeat('y', 10) FROM generate_series(1, 20); \
           INSERT INTO b (t) VALUES ('pair'), ('pair'); DELETE FROM a WHERE id IN (SELECT id FROM a LIMIT 3); \
           UPDATE a SET t = t || 'z' WHERE id % 1000 = 0; COMMIT; END LOOP; END $$",
    );
    let mut writer = server.connected("psql", "busy").args(["-Xqc", "CALL load()"]).spawn().unwrap();
    let begin = Instant::now();
    while server.sql("busy", "SELECT count(*) > 100 FROM b") != "t" && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut content = spec(server.socket_url("postgres", "busy"));
    content.fingerprint = Fingerprint::Content;
    let before = server.sql("busy", "SELECT count(*) FROM b");
    let (sink, result, _) = midway(&source(content.clone()), |_| std::thread::sleep(Duration::from_millis(700)));
    let after = server.sql("busy", "SELECT count(*) FROM b");
    server.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL load%'");
    let _ = writer.wait();
    assert_ne!(before, after, "it was written meanwhile");
    let facts: Facts = serde_json::from_value(result.unwrap_or_else(|e| panic!("{}", full(&e))).facts).unwrap();
    let d = &facts.databases[0];
    let rows = table(d, "public", "b").rows.unwrap();
    assert!(d.proved && rows % 2 == 0 && rows < after.parse().unwrap(), "{rows} {after}");
    server.restore("busy_again", &[sink.bytes("busy.dump")]);
    content.target = Target::Url(server.socket_url("postgres", "busy_again"));
    let (_, again, _) = captured(content);
    for name in ["a", "b"] {
        let (x, y) = (table(d, "public", name), table(&again.databases[0], "public", name));
        assert_eq!((x.rows, &x.content), (y.rows, &y.content), "{name}");
    }
    for (x, y) in d.sequences.iter().zip(&again.databases[0].sequences) {
        let latest = x.last_value_after.unwrap_or(x.last_value);
        assert!((x.last_value..=latest).contains(&y.last_value), "{x:?} {y:?}");
    }
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
    server.sql("queued", "CREATE TABLE t AS SELECT generate_series(1, 10) AS i");
    let flag = tempfile::tempdir().unwrap();
    let script =
        format!("if mkdir {0}/first 2>/dev/null; then touch {0}/go; sleep 2; fi; exec \"$@\"", flag.path().display());
    let source = meddled(spec(server.socket_url("postgres", "queued")), "pg_dump", "--snapshot", &script);
    std::fs::set_permissions(flag.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let (sink, result, altered) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| capture(&source));
        while !flag.path().join("go").exists() && !thread.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let begin = Instant::now();
        server.sql("queued", "ALTER TABLE t ADD COLUMN late int; INSERT INTO t VALUES (11, 1)");
        let altered = begin.elapsed();
        let (sink, result) = thread.join().unwrap();
        (sink, result, altered)
    });
    assert!(altered < Duration::from_secs(25), "nobody waits for us longer than that: {altered:?}");
    let facts: Facts = serde_json::from_value(result.unwrap_or_else(|e| panic!("{}", full(&e))).facts).unwrap();
    assert_eq!(table(&facts.databases[0], "public", "t").rows, Some(11), "begun anew, after the change");
    assert_eq!(sink.names(), ["globals.sql", "queued.dump"]);
}

#[test]
fn large_databases_in_parts_load_back_equal() {
    let server = PostgresServer::shared();
    server.create("parts");
    server.sql("parts", RICH);
    server.sql(
        "parts",
        r#"CREATE TABLE "Odd schema"."Big ""one"" $.*" (id serial PRIMARY KEY, t text);
           INSERT INTO "Odd schema"."Big ""one"" $.*" (t) SELECT repeat('b', 900) FROM generate_series(1, 30000);
           CREATE TABLE big_two (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, one int REFERENCES "Odd schema"."Big ""one"" $.*", t text);
           INSERT INTO big_two (one, t) SELECT i, repeat('c', 900) FROM generate_series(1, 20000) AS i;
           CREATE TABLE metrics (at date, t text) PARTITION BY RANGE (at);
           CREATE TABLE metrics_1 PARTITION OF metrics FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
           CREATE TABLE metrics_2 PARTITION OF metrics FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
           INSERT INTO metrics SELECT '2026-01-01'::date + i % 58, repeat('m', 900) FROM generate_series(1, 45000) AS i;
           CREATE INDEX ON metrics (at);"#,
    );
    let mut parted = spec(server.socket_url("postgres", "parts"));
    parted.jobs = 3;
    parted.fingerprint = Fingerprint::Content;
    let limits = Limits { parts_from_bytes: 32 << 20, ..Limits::default() };
    let (sink, result) = capture(&source(parted.clone()).with_limits(limits));
    let captured_parts = result.unwrap_or_else(|e| panic!("{}", full(&e)));
    let facts: Facts = serde_json::from_value(captured_parts.facts).unwrap();
    let d = &facts.databases[0];
    let sections: Vec<&str> = d.parts.iter().map(|p| p.section.as_str()).collect();
    assert_eq!(sections, ["pre-data", "data", "data", "data", "post-data"]);
    let streams: Vec<&str> = d.parts.iter().map(|p| p.stream.as_str()).collect();
    assert_eq!(
        streams,
        ["parts.pre-data.dump", "parts.data-1.dump", "parts.data-2.dump", "parts.data-3.dump", "parts.post-data.dump"]
    );
    assert!(d.parts[1].tables.is_none() && d.parts[2].tables.is_some());
    assert!(d.proved);
    let lists: Vec<String> = streams.iter().map(|s| server.list(&sink.bytes(s))).collect();
    let all = lists.concat();
    for sequence in ["big_two_id_seq", "Big \"one\" $.*_id_seq", "counter", "users_id_seq", "orders_id_seq"] {
        let needle = format!("{sequence} ");
        let count = all.lines().filter(|l| l.contains("SEQUENCE SET") && l.contains(&needle)).count();
        assert_eq!(count, 1, "value of {sequence}: {all}");
    }
    for name in ["big_two", "metrics_1", "metrics_2", "users"] {
        let count = all.lines().filter(|l| l.contains("TABLE DATA") && l.contains(&format!(" {name} "))).count();
        assert_eq!(count, 1, "rows of {name}");
    }
    assert_eq!(all.lines().filter(|l| l.contains(" BLOBS ")).count(), 1, "{all}");
    let dumps: Vec<Vec<u8>> = streams.iter().map(|s| sink.bytes(s)).collect();
    server.restore("parts_again", &dumps);
    let mut again = parted;
    again.target = Target::Url(server.socket_url("postgres", "parts_again"));
    let (_, facts, _) = captured(again);
    assert_eq!(facts.databases[0].parts.len(), 1, "below the limit it is one stream");
    same_content(d, &facts.databases[0]);
    assert_eq!(
        server.sql("parts_again", "SELECT count(*) FROM totals"),
        server.sql("parts", "SELECT count(*) FROM totals")
    );
}

#[test]
fn passwords_right_wrong_and_missing() {
    let server = PostgresServer::start_with(&["--auth-host=scram-sha-256"], &[]);
    server.sql("postgres", "CREATE ROLE shop LOGIN PASSWORD 's3cret'; CREATE DATABASE shop OWNER shop");
    server.sql("shop", "SET ROLE shop; CREATE TABLE public.t AS SELECT 1 AS i");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "RIGHT=s3cret\nWRONG=wr0ng").unwrap();
    let with = |key: &str| {
        let mut spec = spec(server.tcp_url("shop", "shop", server.port));
        spec.password_from = Some(SecretRef::EnvFile { file: file.path().to_owned(), key: key.into() });
        spec
    };
    let (_, facts, warnings) = captured(with("RIGHT"));
    assert!(!facts.superuser && !facts.globals.passwords);
    assert!(warnings.iter().any(|w| w.contains("without their passwords")), "{warnings:?}");

    let (sink, error) = failure(with("WRONG"));
    let place = format!("{}:WRONG", file.path().display());
    assert!(error.contains("password authentication failed for user \"shop\""), "{error}");
    assert!(
        error.contains(&format!("password_from points to {place}, which is not the one that the server accepts")),
        "{error}"
    );
    assert!(!error.contains("wr0ng") && !error.contains("s3cret") && sink.names().is_empty(), "{error}");
    let probe = source(with("WRONG")).probe(&Default::default()).unwrap_err();
    assert!(probe.to_string().contains("password authentication failed"), "{probe}");
    source(with("RIGHT")).probe(&Default::default()).unwrap();

    let (_, error) = failure(spec(server.tcp_url("shop", "shop", server.port)));
    assert!(error.contains("asks user \"shop\" for a password, and the policy names none"), "{error}");
}

#[test]
fn without_superuser_roles_have_no_passwords_and_it_is_said() {
    let server = PostgresServer::shared();
    server.sql("postgres", "CREATE ROLE plain_owner LOGIN PASSWORD 'x'; CREATE DATABASE plain OWNER plain_owner");
    server.sql("plain", "CREATE TABLE t AS SELECT 1 AS i; ALTER TABLE t OWNER TO plain_owner");
    let (sink, facts, warnings) = captured(spec(server.socket_url("plain_owner", "plain")));
    assert!(!facts.globals.passwords && facts.user == "plain_owner");
    let globals = String::from_utf8(sink.bytes("globals.sql")).unwrap();
    assert!(globals.contains("plain_owner") && !globals.contains("SCRAM"), "{globals}");
    assert!(warnings.iter().any(|w| w.contains("no superuser")), "{warnings:?}");

    server.sql("plain", "CREATE TABLE secret (i int)");
    let (sink, error) = failure(spec(server.socket_url("plain_owner", "plain")));
    assert!(error.contains("permission denied for table secret") && error.contains("pg_read_all_data"), "{error}");
    assert!(!sink.names().iter().any(|n| n.ends_with(".dump")));

    server.sql(
        "plain",
        "DROP TABLE secret; CREATE TABLE tenants (who text); GRANT ALL ON tenants TO plain_owner; \
         INSERT INTO tenants VALUES ('a'), ('b'); ALTER TABLE tenants ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY p ON tenants USING (who = 'a')",
    );
    let (_, error) = failure(spec(server.socket_url("plain_owner", "plain")));
    assert!(error.contains("row-level security") && error.contains("BYPASSRLS"), "{error}");
}

#[test]
fn what_is_not_there() {
    let server = PostgresServer::shared();
    let (sink, error) = failure(spec(server.socket_url("postgres", "no_such_db")));
    assert!(
        error.contains("no database \"no_such_db\"") && error.contains("it has ") && error.contains("postgres"),
        "{error}"
    );
    assert!(sink.names().is_empty());
    let (_, error) = failure(spec(server.socket_url("no_such_role", "postgres")));
    assert!(error.contains("role \"no_such_role\" does not exist"), "{error}");
    let (_, error) = failure(spec(server.tcp_url("postgres", "postgres", free_port())));
    assert!(error.contains("Connection refused") && error.contains("is the server running"), "{error}");
    let (_, error) = failure(spec("postgres:///postgres?host=/no/such/folder".into()));
    assert!(error.contains("No such file or directory") && error.contains("url = "), "{error}");
    let (_, error) = failure(spec("postgres://db.invalid/postgres".into()));
    assert!(error.contains("could not translate host name"), "{error}");
    let (_, result) = capture(&meddled(spec(server.socket_url("postgres", "postgres")), "psql", "", "exit 127"));
    assert!(result.is_err());
    let bare: Locate = Arc::new(|_| Ok(Located { place: Arc::new(NoTools), env: Default::default() }));
    let source = PostgresSource::new(
        "db".parse().unwrap(),
        spec(server.socket_url("postgres", "postgres")),
        Duration::from_secs(20),
        bare,
    );
    let error = full(&capture(&source).1.unwrap_err());
    assert!(error.contains("no psql in this host") && error.contains("postgresql-client"), "{error}");
}

struct NoTools;

impl Place for NoTools {
    fn describe(&self) -> String {
        "this host".into()
    }

    fn start(&self, command: Command) -> Result<Box<dyn Running>, PlaceError> {
        Err(PlaceError::ToolMissing { tool: command.argv[0].clone(), place: self.describe() })
    }
}

#[test]
fn passwords_never_stand_in_argv() {
    const PASSWORD: &str = "canary-8c1f22ab";
    let server = PostgresServer::start_with(&["--auth-host=scram-sha-256"], &[]);
    server.sql("postgres", &format!("ALTER ROLE postgres PASSWORD '{PASSWORD}'"));
    large(&server, "argv");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "PW={PASSWORD}").unwrap();
    let mut spec = spec(server.tcp_url("postgres", "argv", server.port));
    spec.password_from = Some(SecretRef::EnvFile { file: file.path().to_owned(), key: "PW".into() });
    let (_, result, _) = midway(&source(spec), |_| {
        let mut seen = Vec::new();
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(argv) = std::fs::read(process.path().join("cmdline")) else { continue };
            let argv = String::from_utf8_lossy(&argv).into_owned();
            assert!(!argv.contains(PASSWORD), "{argv}");
            if argv.contains("dbname='argv'") {
                seen.push(
                    argv.split('\0').next().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned(),
                );
            }
        }
        seen.sort();
        seen.dedup();
        assert!(seen.contains(&"psql".into()) && seen.contains(&"pg_dump".into()), "both were running: {seen:?}");
    });
    let captured = result.unwrap_or_else(|e| panic!("{}", full(&e)));
    assert!(!captured.facts.to_string().contains(PASSWORD));
}

#[test]
fn sessions_of_another_run_are_noted() {
    let server = PostgresServer::start();
    let mut left = server
        .connected("psql", "postgres")
        .args(["-XqAt"])
        .env("PGAPPNAME", "lifeboat:20260101T000000Z-deadbeef")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = left.stdin.take().unwrap();
    stdin.write_all(b"SELECT 'here';\n").unwrap();
    left.stdout.as_mut().unwrap().read_exact(&mut [0u8; 5]).unwrap();
    let (_, _, warnings) = captured(spec(server.socket_url("postgres", "postgres")));
    drop(stdin);
    let _ = left.wait();
    let found = warnings.iter().find(|w| w.contains("lifeboat:20260101T000000Z-deadbeef"));
    assert!(found.is_some_and(|w| w.contains("a session open")), "{warnings:?}");
    let (_, _, warnings) = captured(spec(server.socket_url("postgres", "postgres")));
    assert!(warnings.is_empty(), "its own sessions are no others: {warnings:?}");
}

#[test]
fn what_no_dump_holds_is_said() {
    let server = PostgresServer::start_with(&[], &["-c", "max_prepared_transactions=5", "-c", "wal_level=logical"]);
    server.create("held");
    server.sql(
        "held",
        "CREATE TABLE t (i int); CREATE PUBLICATION p FOR TABLE t; \
         CREATE SUBSCRIPTION s CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false); \
         CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw; \
         CREATE FOREIGN TABLE remote (i int) SERVER far",
    );
    server.sql("held", "SELECT pg_create_logical_replication_slot('slot_a', 'pgoutput')");
    server.sql("held", "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'gid-1'");
    let (_, facts, warnings) = captured(spec(server.socket_url("postgres", "held")));
    let said = warnings.join("\n");
    for part in [
        "prepared transaction \"gid-1\"",
        "logical replication slot \"slot_a\"",
        "s: subscriptions",
        "public.remote: foreign tables",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(facts.databases[0].publications, ["p"]);
    assert_eq!(table(&facts.databases[0], "public", "remote").rows, None);
    server.sql("held", "ROLLBACK PREPARED 'gid-1'; SELECT pg_drop_replication_slot('slot_a')");
}

#[test]
fn limits_and_names_that_a_database_sets_for_its_sessions_do_no_harm() {
    let server = PostgresServer::shared();
    server.create("hostile");
    server.sql(
        "hostile",
        "CREATE TABLE marks (t text); CREATE TABLE t AS SELECT i, i::text AS s FROM generate_series(1, 2000) AS i; \
         CREATE SCHEMA evil; \
         CREATE FUNCTION evil.mark() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'called'; END $$; \
         CREATE FUNCTION evil.pg_get_userbyid(oid) RETURNS name LANGUAGE sql AS $$ SELECT CASE WHEN evil.mark() THEN 'x'::name END $$; \
         CREATE FUNCTION evil.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS $$ SELECT CASE WHEN evil.mark() THEN 'x' END $$; \
         CREATE FUNCTION evil.eq(name, name) RETURNS boolean LANGUAGE sql AS $$ SELECT evil.mark() $$; \
         CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = name, FUNCTION = evil.eq); \
         CREATE TYPE pair AS (a int, b int); CREATE TABLE pairs (p pair); INSERT INTO pairs VALUES (ROW(1, 2)); \
         CREATE FUNCTION evil.pair_text(pair) RETURNS text LANGUAGE sql AS $$ SELECT CASE WHEN evil.mark() THEN 'x' END $$; \
         CREATE CAST (pair AS text) WITH FUNCTION evil.pair_text(pair) AS IMPLICIT; \
         CREATE FUNCTION evil.pair_json(pair) RETURNS json LANGUAGE sql AS $$ SELECT CASE WHEN evil.mark() THEN '1'::json END $$; \
         CREATE CAST (pair AS json) WITH FUNCTION evil.pair_json(pair) AS IMPLICIT; \
         CREATE DOMAIN version AS text; CREATE TABLE alembic_version (version_num version); \
         INSERT INTO alembic_version VALUES ('x'); \
         ALTER DATABASE hostile SET search_path = evil, pg_catalog, public; \
         ALTER DATABASE hostile SET statement_timeout = '30ms'; ALTER DATABASE hostile SET lock_timeout = '1ms'; \
         ALTER DATABASE hostile SET idle_in_transaction_session_timeout = '100ms'; \
         ALTER DATABASE hostile SET datestyle = 'German'; ALTER DATABASE hostile SET bytea_output = 'escape'; \
         ALTER DATABASE hostile SET standard_conforming_strings = off; ALTER DATABASE hostile SET quote_all_identifiers = on; \
         ALTER DATABASE hostile SET row_security = on; ALTER DATABASE hostile SET client_min_messages = 'debug1'",
    );
    let mut content = spec(server.socket_url("postgres", "hostile"));
    content.fingerprint = Fingerprint::Content;
    let (_, result, _) = midway(&source(content), |_| std::thread::sleep(Duration::from_millis(400)));
    let facts: Facts = serde_json::from_value(result.unwrap_or_else(|e| panic!("{}", full(&e))).facts).unwrap();
    let d = &facts.databases[0];
    assert_eq!((table(d, "public", "t").rows, table(d, "public", "pairs").rows), (Some(2000), Some(1)));
    assert!(d.migrations.is_empty(), "a column of a user's own type is not sorted by: {:?}", d.migrations);
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
        Duration::from_secs(3),
        host(),
    );
    let begin = Instant::now();
    let (sink, result, _) = midway(&source, |_| std::thread::sleep(Duration::from_secs(4)));
    let error = full(&result.unwrap_err());
    assert!(error.contains("took longer than"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(15) && sink.names() == ["globals.sql"]);
}
