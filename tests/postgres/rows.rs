//! Rows of large tables, which are read by the server's own protocol: as `pg_dump` has them, or not at all.

use crate::bench::{behind, capture, captured, full, source, spec, table};
use crate::postgres::PostgresServer;
use lifeboat::place::{Command, HostPlace, Place, PlaceError, Running};
use lifeboat::policy::model::{Fingerprint, PostgresSpec, SecretRef, Target};
use lifeboat::sources::SourceError;
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::postgres::facts::Facts;
use lifeboat::sources::postgres::{Limits, PostgresSource};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Of two large tables: which parts there are when their rows are read here, and when `pg_dump` reads all.
pub const READ_HERE: [&str; 5] = ["pre-data", "data", "data", "data", "post-data"];
const BY_PG_DUMP: [&str; 4] = ["pre-data", "data", "data", "post-data"];

fn parted(url: String) -> PostgresSpec {
    let mut spec = spec(url);
    spec.jobs = 2;
    spec
}

fn limited(spec: PostgresSpec) -> PostgresSource {
    source(spec).with_limits(limits())
}

pub fn limits() -> Limits {
    Limits { parts_from_bytes: 32 << 20, ..Limits::default() }
}

pub fn sections(facts: &Facts) -> Vec<String> {
    facts.databases[0].parts.iter().map(|p| p.section.clone()).collect()
}

fn facts_of(spec: PostgresSpec) -> Facts {
    let (_, result) = capture(&limited(spec));
    serde_json::from_value(result.unwrap_or_else(|e| panic!("{}", full(&e))).facts).unwrap()
}

/// Two tables of more than 16 MiB each.
pub const TWO_LARGE: &str = "\
    CREATE TABLE big AS SELECT i, md5(i::text) || repeat('x', 400) AS t FROM generate_series(1, 60000) AS i; \
    CREATE TABLE second AS SELECT i, md5(i::text) || repeat('y', 400) AS t FROM generate_series(1, 50000) AS i;";

fn two_large(server: &PostgresServer, name: &str) {
    server.create(name);
    server.sql(name, TWO_LARGE);
}

/// Types whose text depends on settings, names that want quotes, columns that are computed or gone.
const ODD: &str = r#"
    CREATE SCHEMA "S p"; CREATE TYPE mood AS ENUM ('glad', 'so "so"'); CREATE TYPE pair AS (a int, "b c" text);
    CREATE DOMAIN short AS varchar(10); CREATE TABLE elsewhere (i int);
    CREATE TABLE "S p"."T ""1"" $.*" (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, gone int, "Weird, ""name""" text,
        at timestamptz, local timestamp, span interval, day date, f float8, r real, n numeric, cash money, raw bytea,
        j jsonb, js json, arr text[], net inet, vec tsvector, range int4range, m mood, p pair, d short, rel regclass,
        twice bigint GENERATED ALWAYS AS (id * 2) STORED, x xml, b bit(5), u uuid, nothing text);
    ALTER TABLE "S p"."T ""1"" $.*" DROP COLUMN gone;
    INSERT INTO "S p"."T ""1"" $.*" ("Weird, ""name""", at, local, span, day, f, r, n, cash, raw, j, js, arr, net, vec, range, m,
        p, d, rel, x, b, u)
    SELECT E'tab\there\nline\\back\r' || i || repeat('é€𝄞', 40), timestamptz '2026-03-29 01:30:00+00' + i * interval '31 min',
        timestamp '0044-03-15 BC' + i * interval '1 day', i * interval '-1 mon 2 days 03:04:05.678', date '2026-01-31' + i,
        sqrt(i), 1.0 / i, (i || '.1234567890123456789')::numeric, i::text::money, decode(md5(i::text), 'hex') || '\x5c0a09'::bytea,
        jsonb_build_object('k', repeat('"\', 3), 'n', i), json_build_object('a', E'\t'), array['a,b', NULL, '{"}', '\'],
        '10.1.2.3/24', to_tsvector('simple', 'fat cats ' || i), int4range(i, i + 5), 'so "so"', ('(' || i || ',"a ""b"" (c)")')::pair, 'd' || i % 9,
        'elsewhere'::regclass, xmlelement(name foo, i), B'10101', md5(i::text)::uuid FROM generate_series(1, 30000) AS i;
    CREATE TABLE many (id int) PARTITION BY RANGE (id);
    CREATE TABLE "many 1" PARTITION OF many FOR VALUES FROM (0) TO (900000);
    INSERT INTO many SELECT i FROM generate_series(1, 700000) AS i;
    CREATE TABLE parent (id int, t text); CREATE TABLE child () INHERITS (parent);
    INSERT INTO parent SELECT i, repeat('p', 900) FROM generate_series(1, 20000) AS i;
    INSERT INTO child SELECT -i, repeat('c', 90) FROM generate_series(1, 100) AS i;
    CREATE TABLE empty_rows (); INSERT INTO empty_rows SELECT FROM generate_series(1, 900000);
    ALTER DATABASE odd SET datestyle = 'German'; ALTER DATABASE odd SET intervalstyle = 'sql_standard';
    ALTER DATABASE odd SET extra_float_digits = -10; ALTER DATABASE odd SET bytea_output = 'escape';
    ALTER DATABASE odd SET timezone = 'America/St_Johns'; ALTER DATABASE odd SET client_encoding = 'LATIN1';
    ALTER DATABASE odd SET search_path = public; ALTER DATABASE odd SET statement_timeout = '1s';
    ALTER DATABASE odd SET lock_timeout = '1ms'; ALTER DATABASE odd SET idle_in_transaction_session_timeout = '1s';
    ALTER DATABASE odd SET quote_all_identifiers = on; ALTER DATABASE odd SET client_min_messages = 'debug1';
    ALTER DATABASE odd SET default_transaction_isolation = 'serializable'; ALTER DATABASE odd SET row_security = on;
    ALTER DATABASE odd SET standard_conforming_strings = off"#;

#[test]
fn rows_are_those_of_pg_dump_byte_for_byte() {
    let server = PostgresServer::shared();
    server.create("odd");
    server.sql("odd", ODD);
    let mut odd = parted(server.socket_url("postgres", "odd"));
    odd.fingerprint = Fingerprint::Content;
    // Longer than the database allows its sessions.
    let wait = |_: &crate::sink::Bench| std::thread::sleep(Duration::from_millis(1500));
    let (sink, result, _) = behind(1 << 20, &limited(odd.clone()), wait);
    let captured_here = result.unwrap_or_else(|e| panic!("{}", full(&e)));
    let facts: Facts = serde_json::from_value(captured_here.facts).unwrap();
    assert_eq!(sections(&facts), READ_HERE);
    let d = &facts.databases[0];
    let mut read_here = Vec::new();
    for part in d.parts.iter().filter(|p| p.tables.is_some()) {
        let ours = sink.bytes(&part.stream);
        for table in part.tables.iter().flatten() {
            read_here.push(table.name.clone());
            let name = format!("\"{}\".\"{}\"", table.schema, table.name.replace('"', "\"\""));
            let mut dump = server.connected("pg_dump", "odd");
            let theirs = dump.args(["-Fc", "-Z0", "--section=data", "-t", &name]).output().unwrap();
            assert!(theirs.status.success(), "{}", String::from_utf8_lossy(&theirs.stderr));
            // What follows its entry's number in the block of data, up to the block's end.
            let rows = rows_of(&theirs.stdout);
            assert!(
                ours.windows(rows.len()).any(|w| w == rows),
                "{name}: {} bytes of pg_dump's are not there",
                rows.len()
            );
        }
    }
    read_here.sort();
    assert_eq!(read_here, ["T \"1\" $.*", "many 1", "parent"], "without columns there is nothing to name");
    let dumps: Vec<Vec<u8>> = d.parts.iter().map(|p| sink.bytes(&p.stream)).collect();
    server.restore("odd_again", &dumps);
    odd.target = Target::Url(server.socket_url("postgres", "odd_again"));
    let again = facts_of(odd);
    for (a, b) in d.tables.iter().zip(&again.databases[0].tables) {
        assert_eq!((&a.name, a.rows, &a.content), (&b.name, b.rows, &b.content));
    }
    assert_eq!(d.tables.len(), again.databases[0].tables.len());
}

/// The only table's block of a dump: its rows and its end, each behind its length.
fn rows_of(dump: &[u8]) -> &[u8] {
    // An entry ends with a flag and an offset that is not set; the next one would begin with a zero, a block with 1.
    let at = dump.windows(10).position(|w| [1, 3].contains(&w[0]) && w[1..9] == [0; 8] && w[9] == 1).unwrap();
    &dump[at + 9 + 1 + 5..]
}

#[test]
fn ways_to_log_in() {
    let server = PostgresServer::start_with(&[], &["-c", "log_connections=on"]);
    two_large(&server, "shop");
    server.sql(
        "shop",
        "SET password_encryption = 'md5'; CREATE ROLE old LOGIN SUPERUSER PASSWORD 's3cret'; \
         SET password_encryption = 'scram-sha-256'; CREATE ROLE new LOGIN SUPERUSER PASSWORD 's3cret'",
    );
    let rules = "local all postgres trust\nhost all old 127.0.0.1/32 md5\nhost all new 127.0.0.1/32 scram-sha-256\n\
                 local all new scram-sha-256\n";
    std::fs::write(server.data.join("pg_hba.conf"), rules).unwrap();
    server.sql("postgres", "SELECT pg_reload_conf()");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "PASSWORD=s3cret").unwrap();
    let with_password = |url: String| {
        let mut spec = parted(url);
        spec.password_from = Some(SecretRef::EnvFile { file: file.path().to_owned(), key: "PASSWORD".into() });
        spec
    };
    let by_default = |user: &str| server.tcp_url(user, "shop", server.port).replace("?sslmode=disable", "");
    for (url, sections_of) in [
        (by_default("new"), &READ_HERE[..]),
        (server.tcp_url("new", "shop", server.port), &READ_HERE),
        (by_default("new").replace("127.0.0.1", "localhost"), &READ_HERE),
        (server.socket_url("new", "shop"), &READ_HERE),
        // Whoever is asked so tells something of the password to whoever asks.
        (by_default("old"), &BY_PG_DUMP),
    ] {
        assert_eq!(sections(&facts_of(with_password(url.clone()))), sections_of, "{url}");
    }
    assert_eq!(sections(&facts_of(parted(server.socket_url("postgres", "shop")))), READ_HERE);
    let log = std::fs::read_to_string(server.dir.join("log")).unwrap();
    for word in ["FATAL", "could not", "unexpected EOF", "ERROR"] {
        let found = log.lines().find(|l| l.contains(word) && !l.contains("starting up"));
        assert_eq!(found, None, "an alarm for whoever reads the log");
    }
}

/// The tools of this place do something first.
fn behind_a_shell(spec: PostgresSpec, first: &str) -> PostgresSource {
    let script = format!("{first} exec \"$@\"");
    let locate: Locate =
        Arc::new(move |_| Ok(Located { place: Arc::new(EveryTool(script.clone())), env: Default::default() }));
    PostgresSource::new("db".parse().unwrap(), spec, Duration::from_secs(120), locate).with_limits(limits())
}

pub fn facts_by(source: &PostgresSource) -> Facts {
    let (_, result) = capture(source);
    serde_json::from_value(result.unwrap_or_else(|e| panic!("{}", full(&e))).facts).unwrap()
}

/// A password that only libpq knows of.
#[test]
fn what_cannot_be_read_here_is_left_to_pg_dump() {
    let server = PostgresServer::start();
    two_large(&server, "shop");
    server.sql("shop", "CREATE ROLE known LOGIN SUPERUSER PASSWORD 's3cret'");
    let rules = "local all postgres trust\nhost all known 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(server.data.join("pg_hba.conf"), rules).unwrap();
    server.sql("postgres", "SELECT pg_reload_conf()");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "*:*:*:known:s3cret\n").unwrap();
    let spec = parted(server.tcp_url("known", "shop", server.port));
    let facts = facts_by(&behind_a_shell(spec, &format!("PGPASSFILE={}", file.path().display())));
    assert_eq!(sections(&facts), BY_PG_DUMP);
    assert_eq!(table(&facts.databases[0], "public", "big").rows, Some(60000));
}

/// libpq agrees on TLS by itself, also with a server of this host.
#[test]
fn what_libpq_encrypts_is_left_to_it() {
    let server = PostgresServer::start();
    two_large(&server, "shop");
    for (name, args) in [("server.key", &["genrsa", "2048"][..]), ("server.crt", &[])] {
        let mut openssl = std::process::Command::new("openssl");
        match name {
            "server.key" => openssl.args(args),
            _ => openssl
                .args(["req", "-x509", "-subj", "/CN=localhost", "-days", "9", "-key"])
                .arg(server.data.join("server.key")),
        };
        let out = openssl.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let file = server.data.join(name);
        std::fs::write(&file, out.stdout).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let owner = std::fs::metadata(&server.data).unwrap();
        std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    server.sql("postgres", "ALTER SYSTEM SET ssl = on");
    server.sql("postgres", "SELECT pg_reload_conf()");
    let by_default = server.tcp_url("postgres", "shop", server.port).replace("?sslmode=disable", "");
    assert_eq!(sections(&facts_of(parted(by_default))), BY_PG_DUMP);
    assert_eq!(sections(&facts_of(parted(server.tcp_url("postgres", "shop", server.port)))), READ_HERE);
    assert_eq!(sections(&facts_of(parted(server.socket_url("postgres", "shop")))), READ_HERE);
}

/// The tools get in, and who answers at the same address says nothing, or is another server.
#[test]
fn a_stranger_at_the_address_is_noticed() {
    let (server, other) = (PostgresServer::shared(), PostgresServer::start());
    two_large(&server, "rows_there");
    two_large(&other, "rows_there");
    other.sql("rows_there", "UPDATE big SET t = 'other'");
    let elsewhere = format!("PGPORT={} PGHOST={}", server.port, server.dir.display());
    let facts = facts_by(&behind_a_shell(parted(other.socket_url("postgres", "rows_there")), &elsewhere));
    assert_eq!(sections(&facts), BY_PG_DUMP);

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/rows_there", silent.local_addr().unwrap().port());
    let begin = Instant::now();
    let facts = facts_by(&behind_a_shell(parted(url), &elsewhere));
    assert_eq!(sections(&facts), BY_PG_DUMP);
    assert!(begin.elapsed() < Duration::from_secs(90), "{:?}", begin.elapsed());

    // Somebody between us and the server who would encrypt his half of the way.
    let between = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/rows_there", between.local_addr().unwrap().port());
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = between.accept().unwrap();
        let mut request = [0; 8];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(b"S").unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        (request, rest)
    });
    assert_eq!(sections(&facts_by(&behind_a_shell(parted(url), &elsewhere))), BY_PG_DUMP);
    let (request, rest) = asked.join().unwrap();
    assert_eq!((request, rest.len()), ([0, 0, 0, 8, 4, 210, 22, 47], 0), "a question, and nothing in the clear");
}

#[test]
fn so_many_connections_are_wanted_and_too_few_are_named() {
    let server = PostgresServer::shared();
    two_large(&server, "rows_few");
    server.sql("rows_few", "CREATE ROLE few LOGIN CONNECTION LIMIT 5; GRANT pg_read_all_data TO few");
    let (_, result) = capture(&limited(parted(server.socket_url("few", "rows_few"))));
    let error = full(&result.unwrap_err());
    assert!(error.contains("too many connections for role \"few\""), "{error}");
    server.sql("rows_few", "ALTER ROLE few CONNECTION LIMIT 6");
    assert_eq!(sections(&facts_of(parted(server.socket_url("few", "rows_few")))), READ_HERE);
}

/// The hash of an enum's value goes by a number that it gets anew: its partitions are loaded by their root.
#[test]
fn partitions_by_hash_load_back() {
    let server = PostgresServer::shared();
    server.create("rows_hash");
    server.sql(
        "rows_hash",
        "CREATE TYPE colour AS ENUM ('red', 'green', 'blue', 'black', 'white', 'grey', 'pink', 'gold'); \
         CREATE TABLE hashed (c colour, t text) PARTITION BY HASH (c); \
         CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
         CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1) PARTITION BY LIST (c); \
         CREATE TABLE hashed_1_all PARTITION OF hashed_1 DEFAULT; \
         CREATE TABLE plain AS SELECT i, repeat('p', 400) AS t FROM generate_series(1, 120000) AS i; \
         INSERT INTO hashed SELECT c, repeat('h', 400) FROM unnest(enum_range(NULL::colour)) AS c, generate_series(1, 12000)",
    );
    let (sink, result) = capture(&limited(parted(server.socket_url("postgres", "rows_hash"))));
    let facts: Facts = serde_json::from_value(result.unwrap_or_else(|e| panic!("{}", full(&e))).facts).unwrap();
    let parts = &facts.databases[0].parts;
    let read_here: Vec<&str> = parts.iter().flat_map(|p| p.tables.iter().flatten()).map(|t| t.name.as_str()).collect();
    assert_eq!(read_here, ["plain"]);
    // Other numbers than the first time.
    server.sql("rows_hash", "CREATE TYPE first AS ENUM ('x', 'y', 'z'); CREATE TYPE second AS ENUM ('x')");
    server.restore("rows_hash_again", &parts.iter().map(|p| sink.bytes(&p.stream)).collect::<Vec<_>>());
    assert_eq!(server.sql("rows_hash_again", "SELECT count(*) FROM hashed"), "96000");
}

/// This host, with a shell in front of every tool.
struct EveryTool(String);

impl Place for EveryTool {
    fn describe(&self) -> String {
        "this host".into()
    }

    fn start(&self, mut command: Command) -> Result<Box<dyn Running>, PlaceError> {
        let mut argv = vec!["bash".to_owned(), "-c".into(), self.0.clone(), "every".into()];
        argv.append(&mut command.argv);
        command.argv = argv;
        HostPlace::new().start(command)
    }
}

const READING: &str = "application_name LIKE 'lifeboat:%' AND query LIKE 'COPY%TO stdout%' AND state = 'active'";

#[test]
fn a_session_that_is_cut_midway_fails() {
    let server = PostgresServer::shared();
    two_large(&server, "rows_cut");
    let (sink, result, _) = behind(4 << 20, &limited(parted(server.socket_url("postgres", "rows_cut"))), |_| {
        let sql = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'rows_cut' AND {READING}"
        );
        assert_ne!(server.sql("postgres", &sql), "0");
    });
    let error = full(&result.unwrap_err());
    assert!(error.contains("rows of table public.") && error.contains("of database \"rows_cut\""), "{error}");
    assert!(error.contains("terminating connection") || error.contains("closed the connection"), "{error}");
    assert!(!sink.names().iter().any(|n| n.contains(".data-")), "{:?}", sink.names());
}

#[test]
fn cancelled_while_rows_are_read() {
    let server = PostgresServer::shared();
    two_large(&server, "rows_cancelled");
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'rows_cancelled' AND application_name LIKE 'lifeboat:%' AND backend_type = 'client backend'";
    let (sink, result, took) =
        behind(4 << 20, &limited(parted(server.socket_url("postgres", "rows_cancelled"))), |bench| {
            bench.cancel.raise(2);
        });
    assert!(matches!(result, Err(SourceError::Cancelled(_))), "{result:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(!sink.names().iter().any(|n| n.ends_with(".dump")), "{:?}", sink.names());
    crate::faults::ends(&server, sessions);
}

#[test]
fn a_backend_that_stands_still_while_rows_are_read() {
    let server = PostgresServer::start();
    two_large(&server, "shop");
    let limits = Limits { stall: Duration::from_secs(6), parts_from_bytes: 32 << 20, ..Limits::default() };
    let source = source(parted(server.socket_url("postgres", "shop"))).with_limits(limits);
    let mut stopped = None;
    let (_, result, took) = behind(4 << 20, &source, |_| {
        // One that has sent what the gate lets through, and waits for whoever reads.
        let sql = format!("SELECT min(pid) FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND {READING}");
        let begin = Instant::now();
        stopped = std::iter::repeat_with(|| server.sql("postgres", &sql).parse().ok().and_then(Pid::from_raw))
            .inspect(|_| assert!(begin.elapsed() < Duration::from_secs(20), "nobody waits"))
            .find_map(|pid| pid);
        kill_process(stopped.unwrap(), Signal::STOP).unwrap();
    });
    kill_process(stopped.unwrap(), Signal::CONT).unwrap();
    let error = full(&result.unwrap_err());
    assert!(error.contains("the rows of a table") && error.contains("gave no output for 6.0 s"), "{error}");
    assert!(took < Duration::from_secs(30), "{took:?}");
}

/// Somebody who wants a table for himself comes between the side session's locks and the readers': he is let through.
#[test]
fn a_lock_that_queues_up_before_rows_are_read_is_let_through() {
    let server = Arc::new(PostgresServer::start());
    two_large(&server, "shop");
    let changed = Arc::new(Mutex::new(None));
    let (place, handle) = (server.clone(), changed.clone());
    let locate: Locate = Arc::new(move |_| {
        Ok(Located { place: Arc::new(Between(place.clone(), handle.clone())), env: Default::default() })
    });
    let spec = parted(server.socket_url("postgres", "shop"));
    let source = PostgresSource::new("db".parse().unwrap(), spec, Duration::from_secs(120), locate)
        .with_limits(Limits { parts_from_bytes: 32 << 20, ..Limits::default() });
    let facts = facts_by(&source);
    let waited = changed.lock().unwrap().take().unwrap().join().unwrap();
    assert!(waited > Duration::from_secs(5) && waited < Duration::from_secs(40), "he was waited for: {waited:?}");
    assert_eq!(sections(&facts), READ_HERE);
    assert_eq!(table(&facts.databases[0], "public", "big").columns, Some(3), "begun anew, behind the change");
}

/// This host, where somebody queues up for a table when the first `pg_dump` is about to begin.
struct Between(Arc<PostgresServer>, Arc<Mutex<Option<JoinHandle<Duration>>>>);

impl Place for Between {
    fn describe(&self) -> String {
        "this host".into()
    }

    fn start(&self, command: Command) -> Result<Box<dyn Running>, PlaceError> {
        let mut changed = self.1.lock().unwrap();
        if command.argv[0] == "pg_dump" && command.argv.iter().any(|a| a.starts_with("--snapshot")) && changed.is_none()
        {
            let server = self.0.clone();
            *changed = Some(std::thread::spawn(move || {
                let begin = Instant::now();
                server.sql("shop", "ALTER TABLE big ADD COLUMN late int");
                begin.elapsed()
            }));
            let begin = Instant::now();
            while self.0.sql("postgres", "SELECT count(*) FROM pg_locks WHERE NOT granted") == "0" {
                assert!(begin.elapsed() < Duration::from_secs(20), "nobody queues up");
            }
        }
        drop(changed);
        HostPlace::new().start(command)
    }
}

#[test]
fn a_damaged_page_names_the_table() {
    let mut server = PostgresServer::start();
    two_large(&server, "shop");
    crate::faults::break_page(&mut server, "shop", "big", 8192 * 3, &[0xAA; 64]);
    for fingerprint in [Fingerprint::Rows, Fingerprint::None] {
        let mut spec = parted(server.socket_url("postgres", "shop"));
        spec.fingerprint = fingerprint;
        let (sink, result) = capture(&limited(spec));
        let error = full(&result.unwrap_err());
        assert!(error.contains("invalid page in block 3") && error.contains("files are damaged"), "{error}");
        assert!(error.contains("public.big") && error.contains("\"shop\""), "{error}");
        assert!(!sink.names().iter().any(|n| n.ends_with(".dump")), "{:?}", sink.names());
    }
}

/// What a server says that lets rows go on their way.
#[test]
fn rows_that_are_lost_on_the_way_are_missed() {
    let server = PostgresServer::shared();
    two_large(&server, "rows_lost");
    let spec = |port| {
        let mut spec = parted(server.tcp_url("postgres", "rows_lost", port));
        spec.fingerprint = Fingerprint::None;
        spec
    };
    // The number that the server tells at the end is another one.
    let port = crate::bench::Proxy::start(server.port, |bytes| {
        crate::bench::replace(bytes, b"COPY 60000\0", b"COPY 60001\0");
    });
    let (sink, result) = capture(&limited(spec(port)));
    let error = full(&result.unwrap_err());
    assert!(error.contains("60000 rows came, and the server says that it sent 60001 rows"), "{error}");
    assert!(!sink.names().iter().any(|n| n.contains(".data-")), "{:?}", sink.names());
    // Untouched it goes well through the same proxy.
    let port = crate::bench::Proxy::start(server.port, |_| ());
    assert_eq!(sections(&facts_of(spec(port))), READ_HERE);
}

#[test]
fn row_security_and_rights_are_those_of_pg_dump() {
    let server = PostgresServer::shared();
    two_large(&server, "rows_secured");
    server.sql(
        "rows_secured",
        "CREATE ROLE rows_reader LOGIN; GRANT pg_read_all_data TO rows_reader; ALTER TABLE big ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY few ON big USING (i < 10)",
    );
    let (sink, result) = capture(&limited(parted(server.socket_url("rows_reader", "rows_secured"))));
    let error = full(&result.unwrap_err());
    assert!(error.contains("row-level security") && error.contains("BYPASSRLS"), "{error}");
    assert!(!sink.names().iter().any(|n| n.ends_with(".dump")), "{:?}", sink.names());
    server.sql("rows_secured", "DROP POLICY few ON big; ALTER TABLE big DISABLE ROW LEVEL SECURITY");
    assert_eq!(sections(&facts_of(parted(server.socket_url("rows_reader", "rows_secured")))), READ_HERE);
}

#[test]
fn unlogged_tables_of_a_standby_are_left_out() {
    let primary = PostgresServer::start_with(&[], &["-c", "wal_level=replica", "-c", "hot_standby=on"]);
    primary.create("shop");
    primary.sql("shop", &TWO_LARGE.replace("CREATE TABLE second", "CREATE UNLOGGED TABLE second"));
    let standby = primary.standby();
    let source = source(parted(standby.socket_url("postgres", "shop")));
    let (_, result) = capture(&source.with_limits(Limits { parts_from_bytes: 16 << 20, ..Limits::default() }));
    let facts: Facts = serde_json::from_value(result.unwrap_or_else(|e| panic!("{}", full(&e))).facts).unwrap();
    assert_eq!(sections(&facts), BY_PG_DUMP, "the one that is left has a part of its own");
    assert_eq!(table(&facts.databases[0], "public", "big").rows, Some(60000));
}

/// The server counts the rows as it sends them, so nobody reads a table for its number of rows alone.
#[test]
fn a_large_table_is_read_once() {
    let server = PostgresServer::shared();
    two_large(&server, "rows_once");
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'rows_once' AND application_name LIKE 'lifeboat:%'";
    let scans = || -> u64 {
        crate::faults::ends(&server, sessions);
        let sql = "SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname IN ('big', 'second')";
        server.sql("rows_once", sql).parse().unwrap()
    };
    let spec = parted(server.socket_url("postgres", "rows_once"));
    for (fingerprint, scans_of) in [
        (Fingerprint::Rows, 2..=2),
        (Fingerprint::None, 2..=2),
        (Fingerprint::Content, 4..=u64::MAX), // contents are the server's to read, by as many processes as it likes
    ] {
        let before = scans();
        let mut spec = spec.clone();
        spec.fingerprint = fingerprint;
        let facts = facts_of(spec);
        assert_eq!(sections(&facts), READ_HERE);
        let read = scans() - before;
        assert!(scans_of.contains(&read), "{fingerprint:?}: {read} times");
        let [big, second] = ["big", "second"].map(|name| table(&facts.databases[0], "public", name));
        assert_eq!((big.rows, second.rows), (Some(60000), Some(50000)), "{fingerprint:?}");
        assert_eq!(big.content.is_some(), fingerprint == Fingerprint::Content);
    }
}

/// What came to be behind the snapshot is not in the rows, whoever reads them.
#[test]
fn rows_are_those_of_the_snapshot() {
    let server = Arc::new(PostgresServer::start());
    for (database, fingerprint) in [("counted", Fingerprint::Rows), ("uncounted", Fingerprint::None)] {
        two_large(&server, database);
        let meanwhile = Meanwhile { server: server.clone(), database, sql: "DELETE FROM big WHERE i <= 7" };
        let mut spec = parted(server.socket_url("postgres", database));
        spec.fingerprint = fingerprint;
        let locate: Locate =
            Arc::new(move |_| Ok(Located { place: Arc::new(meanwhile.clone()), env: Default::default() }));
        let source = PostgresSource::new("db".parse().unwrap(), spec, Duration::from_secs(120), locate)
            .with_limits(Limits { parts_from_bytes: 32 << 20, ..Limits::default() });
        let facts = facts_by(&source);
        assert_eq!(sections(&facts), READ_HERE);
        assert_eq!(server.sql(database, "SELECT count(*) FROM big"), "59993");
        assert_eq!(table(&facts.databases[0], "public", "big").rows, Some(60000));
    }
}

/// This host, where something happens behind the snapshot: when a `pg_dump` is about to begin.
#[derive(Clone)]
struct Meanwhile {
    server: Arc<PostgresServer>,
    database: &'static str,
    sql: &'static str,
}

impl Place for Meanwhile {
    fn describe(&self) -> String {
        "this host".into()
    }

    fn start(&self, command: Command) -> Result<Box<dyn Running>, PlaceError> {
        if command.argv[0] == "pg_dump" && command.argv.iter().any(|a| a.starts_with("--snapshot")) {
            self.server.sql(self.database, self.sql);
        }
        HostPlace::new().start(command)
    }
}

/// Dumps that nobody can walk take no number from the rows that are read here.
#[test]
fn rows_are_counted_beside_dumps_of_a_later_version() {
    let server = PostgresServer::shared();
    two_large(&server, "rows_later");
    let spec = parted(server.socket_url("postgres", "rows_later"));
    // The seventh byte is the version's second number.
    let later = r#""$@" | { head -c 6; head -c 1 >/dev/null; printf c; cat; }"#;
    let source = crate::bench::meddled(spec, "pg_dump", "--snapshot", later)
        .with_limits(Limits { parts_from_bytes: 32 << 20, ..Limits::default() });
    let (_, result) = capture(&source);
    let captured = result.unwrap_or_else(|e| panic!("{}", full(&e)));
    let said = captured.warnings.join("\n");
    assert!(said.contains("archive version 1.99 is not known, so its rows were not counted"), "{said}");
    let facts: Facts = serde_json::from_value(captured.facts).unwrap();
    let database = &facts.databases[0];
    assert_eq!((sections(&facts), database.proved), (READ_HERE.map(String::from).to_vec(), false));
    assert_eq!(["big", "second"].map(|name| table(database, "public", name).rows), [Some(60000), Some(50000)]);
}

/// One table for each of two jobs is also what `jobs = 1` leaves alone.
#[test]
fn one_job_is_one_stream() {
    let server = PostgresServer::shared();
    two_large(&server, "rows_single");
    let (sink, facts, _) = captured(spec(server.socket_url("postgres", "rows_single")));
    assert_eq!(
        (sections(&facts), sink.names()),
        (vec!["all".to_owned()], vec!["globals.sql".into(), "rows_single.dump".into()])
    );
}
