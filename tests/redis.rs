//! Redis, captured from real servers that these tests start.

#[path = "support/docker.rs"]
mod docker;
#[path = "support/port.rs"]
mod port;
#[path = "support/redis.rs"]
mod redis;
#[path = "support/sink.rs"]
mod sink;

use lifeboat::place::{Command, ContainerPlace, HostPlace, Place, PlaceError, Running};
use lifeboat::policy::model::{RedisSpec, SecretRef, Target};
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::redis::facts::{Facts, Keys};
use lifeboat::sources::redis::{Limits, RedisSource};
use lifeboat::sources::{Captured, Source, SourceError};
use port::free_port;
use redis::RedisServer;
use sink::{Bench, MemorySink};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// This host without a `redis-cli`.
struct Bare;

impl Place for Bare {
    fn describe(&self) -> String {
        "this host".into()
    }

    fn start(&self, command: Command) -> Result<Box<dyn Running>, PlaceError> {
        Err(PlaceError::ToolMissing { tool: command.argv[0].clone(), place: self.describe() })
    }
}

fn host() -> Locate {
    Arc::new(|_| Ok(Located { place: Arc::new(HostPlace::new()), env: Default::default() }))
}

fn bare() -> Locate {
    Arc::new(|_| Ok(Located { place: Arc::new(Bare), env: Default::default() }))
}

fn spec(server: &RedisServer) -> RedisSpec {
    RedisSpec { target: Target::Url(server.url()), user: None, password_from: None, tls: false }
}

fn source(spec: RedisSpec, locate: Locate) -> RedisSource {
    RedisSource::new("cache".parse().unwrap(), spec, Duration::from_secs(60), locate)
}

fn capture(source: &RedisSource) -> (MemorySink, Result<Captured, SourceError>) {
    let sink = MemorySink::new();
    let bench = Bench::new();
    let result = source.capture(&bench.capture(&sink));
    (sink, result)
}

fn captured(source: &RedisSource) -> (Vec<u8>, Facts, Vec<String>) {
    let (sink, result) = capture(source);
    let captured = result.unwrap_or_else(|e| panic!("{}", full(&e)));
    assert_eq!(sink.names(), ["dump.rdb"]);
    (sink.bytes("dump.rdb"), serde_json::from_value(captured.facts).unwrap(), captured.warnings)
}

fn failure(source: &RedisSource) -> String {
    let (sink, result) = capture(source);
    assert!(sink.names().is_empty(), "no artefact: {:?}", sink.names());
    full(&result.expect_err("the capture fails"))
}

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

/// Every type and encoding that this server writes.
fn fill(server: &RedisServer) {
    let mut commands = String::new();
    for i in 0..2000 {
        commands += &format!("SET plain:{i} value-{i}\nSET int:{i} {i}\nSET long:{i} {}\n", "x".repeat(i % 500 + 1));
    }
    for i in 0..1000 {
        commands +=
            &format!("RPUSH biglist {}\nSADD bigset member-{i}\nZADD bigzset {i}.5 member-{i}\n", "y".repeat(100));
        commands += &format!("HSET bighash field-{i} value-{i}\nSADD ints {i}\nXADD stream {}-1 k v{i}\n", i + 1);
    }
    commands += "RPUSH list a b c\nSADD set a b\nZADD zset 1 a 2.25 b\nHSET hash f v\nSADD smallints 1 2 3\n";
    commands += "XGROUP CREATE stream workers 0\nXREADGROUP GROUP workers ann COUNT 10 STREAMS stream >\n";
    commands += "SETEX expiring 3600 x\nPEXPIRE plain:1 3600000\nPFADD hll a b c\nSETRANGE sparse 70000 end\n";
    commands += "SELECT 3\nSET other database\nSELECT 9\nSET nine 9\nEXPIRE nine 3600\n";
    server.pipe(&commands);
    server.cli(&["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function() return 1 end)"]);
}

/// A server that has loaded this file.
fn loaded(rdb: &[u8]) -> RedisServer {
    let folder = tempfile::Builder::new().prefix("lifeboat-redis-").tempdir().unwrap();
    std::fs::write(folder.path().join("dump.rdb"), rdb).unwrap();
    RedisServer::start_in(folder, &[])
}

fn raw_rdb(server: &RedisServer) -> Vec<u8> {
    let out =
        std::process::Command::new("redis-cli").args(["-p", &server.port.to_string(), "--rdb", "-"]).output().unwrap();
    assert!(out.status.success());
    out.stdout
}

fn keys(database: u64, keys: u64, expires: u64) -> Keys {
    Keys { database, keys, expires }
}

fn round_trip(locate: Locate, options: &[&str]) {
    let server = RedisServer::start_with(options);
    fill(&server);
    let (rdb, facts, warnings) = captured(&source(spec(&server), locate));
    assert_eq!(facts.databases, [keys(0, 6014, 2), keys(3, 1, 0), keys(9, 1, 1)]);
    assert_eq!((facts.counted.as_str(), facts.functions, facts.rdb_version), ("file", Some(1), 10));
    assert_eq!(facts.before.as_ref(), Some(&facts.databases));
    assert_eq!(facts.after.as_ref(), Some(&facts.databases));
    assert!(facts.version.as_deref().unwrap().starts_with("7."), "{facts:?}");
    assert_eq!((facts.mode.as_deref(), facts.role.as_deref()), (Some("standalone"), Some("master")));
    assert!(warnings.is_empty(), "{warnings:?}");

    let again = loaded(&rdb);
    assert_eq!(again.cli(&["DEBUG", "DIGEST"]), server.cli(&["DEBUG", "DIGEST"]));
    assert_eq!(again.cli(&["DBSIZE"]), "6014");
    assert_eq!(again.cli(&["FCALL", "f", "0"]), "1");
}

#[test]
fn a_copy_loads_into_a_fresh_server_with_the_same_digest() {
    round_trip(host(), &[]);
}

#[test]
fn the_same_from_a_server_that_writes_its_copy_to_disk_first() {
    round_trip(host(), &["--repl-diskless-sync", "no"]);
}

#[test]
fn the_same_without_redis_cli() {
    round_trip(bare(), &[]);
}

#[test]
fn the_same_without_redis_cli_from_disk() {
    round_trip(bare(), &["--repl-diskless-sync", "no"]);
}

#[test]
fn the_mark_behind_the_rdb_is_cut_off() {
    let server = RedisServer::start();
    server.pipe("SET a 1\nSET b 2\n");
    let raw = raw_rdb(&server);
    let (rdb, ..) = captured(&source(spec(&server), host()));
    assert_eq!(
        raw.len(),
        rdb.len() + 40,
        "redis-cli leaves the mark behind; when it no longer does, so much the better"
    );
    assert_eq!(rdb[rdb.len() - 9], 0xff);
    // What a server makes of it as the base of an AOF: with the mark it does not start.
    let start = |base: &[u8]| {
        let folder = tempfile::Builder::new().prefix("lifeboat-redis-").tempdir().unwrap();
        let aof = folder.path().join("appendonlydir");
        std::fs::create_dir(&aof).unwrap();
        std::fs::write(aof.join("appendonly.aof.1.base.rdb"), base).unwrap();
        std::fs::write(aof.join("appendonly.aof.manifest"), "file appendonly.aof.1.base.rdb seq 1 type b\n").unwrap();
        folder
    };
    let again = RedisServer::start_in(start(&rdb), &["--appendonly", "yes"]);
    assert_eq!(again.cli(&["DBSIZE"]), "2");
    drop(again);
    let folder = start(&raw);
    let out = std::process::Command::new("timeout")
        .args(["10", "redis-server", "--port", "0", "--appendonly", "yes", "--dir"])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(out.status.code() == Some(1), "a server takes the mark for garbage: {:?}", out.status);
}

#[test]
fn what_is_written_meanwhile_does_not_blur_the_facts() {
    let server = RedisServer::start_with(&["--rdb-key-save-delay", "20"]);
    server.pipe(&(0..20_000).map(|i| format!("SET k:{i} {i}\n")).collect::<String>());
    let port = server.port.to_string();
    let mut writer = std::process::Command::new("redis-cli")
        .args(["-p", &port, "-r", "-1", "EVAL", "return redis.call('SET', 'new:'..redis.call('INCR', 'n'), 1)", "0"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let result = std::panic::catch_unwind(|| captured(&source(spec(&server), host())));
    let _ = writer.kill();
    let _ = writer.wait();
    let (rdb, facts, _) = result.unwrap();
    assert_ne!(facts.before, facts.after, "it was written meanwhile");
    assert_eq!(facts.counted, "file");
    assert_eq!(loaded(&rdb).cli(&["DBSIZE"]), facts.databases[0].keys.to_string());
}

#[test]
fn facts_of_the_append_only_file() {
    let server =
        RedisServer::start_with(&["--appendonly", "yes", "--appenddirname", "aofs", "--appendfilename", "shop.aof"]);
    let (_, facts, _) = captured(&source(spec(&server), host()));
    assert_eq!((facts.appendonly, facts.appenddirname.as_deref()), (Some(true), Some("aofs")));
    assert_eq!(facts.appendfilename.as_deref(), Some("shop.aof"));
    assert_eq!(facts.dbfilename.as_deref(), Some("dump.rdb"));
    assert_eq!(facts.dir.as_deref().map(Path::new), Some(server.dir.as_path()));
    assert_eq!((facts.maxmemory, facts.maxmemory_policy.as_deref()), (Some(0), Some("noeviction")));
    assert_eq!((facts.acl_users, facts.databases.len()), (Some(0), 0));
}

fn password_file(text: &str) -> (tempfile::NamedTempFile, SecretRef) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "REDIS_PASSWORD={text}").unwrap();
    let reference = SecretRef::EnvFile { file: file.path().to_owned(), key: "REDIS_PASSWORD".into() };
    (file, reference)
}

#[test]
fn passwords_right_wrong_and_missing() {
    let server = RedisServer::start_with(&["--requirepass", "s3cret-and-long"]);
    server.cli(&["SET", "a", "1"]);
    for locate in [host, bare] {
        let (_file, right) = password_file("s3cret-and-long");
        let (_, facts, _) = captured(&source(RedisSpec { password_from: Some(right), ..spec(&server) }, locate()));
        assert_eq!(facts.databases, [keys(0, 1, 0)]);

        let (file, wrong) = password_file("wr0ng-and-long");
        let spec_wrong = RedisSpec { password_from: Some(wrong), ..spec(&server) };
        let error = failure(&source(spec_wrong.clone(), locate()));
        let place = format!("{}:REDIS_PASSWORD", file.path().display());
        assert!(error.starts_with(&format!("AUTH failed for Redis at 127.0.0.1:{}", server.port)), "{error}");
        assert!(error.contains(&format!("password_from points to {place}, which is not the one")), "{error}");
        assert!(!error.contains("wr0ng") && !error.contains("s3cret"), "{error}");
        let probe = source(spec_wrong, locate()).probe(&Default::default()).unwrap_err();
        assert!(probe.to_string().contains("AUTH failed"), "{probe}");

        let error = failure(&source(spec(&server), locate()));
        assert!(error.contains("asks for a password, and the policy names none"), "{error}");
    }
}

#[test]
fn a_password_that_the_server_does_not_ask_for_hinders_nothing() {
    let server = RedisServer::start();
    server.cli(&["SET", "a", "1"]);
    for locate in [host, bare] {
        let (_file, reference) = password_file("not-needed-here");
        let (_, facts, _) = captured(&source(RedisSpec { password_from: Some(reference), ..spec(&server) }, locate()));
        assert_eq!(facts.databases, [keys(0, 1, 0)]);
    }
}

#[test]
fn a_user_with_the_least_rights() {
    let server = RedisServer::start();
    server.pipe("SET a 1\nSET b 2\nEXPIRE b 1000\n");
    server.cli(&["ACL", "SETUSER", "backup", "on", ">backup-password", "+psync", "+sync", "+replconf", "+ping"]);
    for locate in [host, bare] {
        let (_file, reference) = password_file("backup-password");
        let spec = RedisSpec { user: Some("backup".into()), password_from: Some(reference), ..spec(&server) };
        let (rdb, facts, warnings) = captured(&source(spec, locate()));
        assert_eq!((facts.databases.as_slice(), facts.counted.as_str()), (&[keys(0, 2, 1)][..], "file"));
        assert!(facts.version.is_some() && facts.before.is_none() && facts.appendonly.is_none(), "{facts:?}");
        assert!(warnings.iter().any(|w| w.contains("NOPERM")), "{warnings:?}");
        assert_eq!(loaded(&rdb).cli(&["DBSIZE"]), "2");
    }
}

#[test]
fn a_user_without_the_right_to_copy() {
    let server = RedisServer::start();
    server.cli(&["ACL", "SETUSER", "reader", "on", ">reader-password", "+@read", "+info", "+ping", "~*"]);
    for locate in [host, bare] {
        let (_file, reference) = password_file("reader-password");
        let spec = RedisSpec { user: Some("reader".into()), password_from: Some(reference), ..spec(&server) };
        let error = failure(&source(spec, locate()));
        assert!(error.contains("NOPERM") && error.contains("ACL SETUSER reader +psync"), "{error}");
    }
}

#[test]
fn renamed_commands_are_noted() {
    let server = RedisServer::start_with(&["--rename-command", "CONFIG", "hidden"]);
    server.cli(&["SET", "a", "1"]);
    let (_, facts, warnings) = captured(&source(spec(&server), host()));
    assert!(facts.appendonly.is_none() && facts.databases == [keys(0, 1, 0)]);
    assert!(warnings.iter().any(|w| w.contains("does not tell its settings")), "{warnings:?}");
}

#[test]
fn without_a_checksum_it_is_stored_and_said() {
    let server = RedisServer::start_with(&["--rdbchecksum", "no"]);
    server.cli(&["SET", "a", "1"]);
    let (rdb, facts, warnings) = captured(&source(spec(&server), host()));
    assert!(!facts.rdb_checksum && rdb.ends_with(&[0; 8]));
    assert!(warnings.iter().any(|w| w.contains("rdbchecksum")), "{warnings:?}");
    assert_eq!(loaded(&rdb).cli(&["DBSIZE"]), "1");
}

/// A server whose copy takes seconds: it waits after each key.
fn slow() -> RedisServer {
    let server = RedisServer::start_with(&["--rdb-key-save-delay", "1000"]);
    server.pipe(&(0..20_000).map(|i| format!("SET key:{i} {}\n", "v".repeat(200))).collect::<String>());
    server
}

/// Runs a capture on a thread and calls `meanwhile` when its first bytes have come.
fn disturbed(
    source: RedisSource,
    meanwhile: impl FnOnce(&Bench),
) -> (Result<Captured, SourceError>, MemorySink, Duration) {
    let sink = MemorySink::new();
    let bench = Bench::new();
    let (result, took) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| source.capture(&bench.capture(&sink)));
        let begin = Instant::now();
        while sink.written_bytes() == 0 && begin.elapsed() < Duration::from_secs(20) && !thread.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let begin = Instant::now();
        meanwhile(&bench);
        (thread.join().unwrap(), begin.elapsed())
    });
    (result, sink, took)
}

#[test]
fn a_server_that_stalls_hits_the_limit() {
    for locate in [host, bare] {
        let server = slow();
        let limits = Limits { stall: Duration::from_secs(2) };
        let (result, sink, took) = disturbed(source(spec(&server), locate()).with_limits(limits), |_| server.freeze());
        server.thaw();
        let error = full(&result.unwrap_err());
        assert!(error.contains("gave no output for 2.0 s"), "{error}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert!(sink.written_bytes() > 0 && sink.names().is_empty());
    }
}

#[test]
fn a_server_that_hangs_from_the_beginning_hits_the_limit() {
    let server = RedisServer::start();
    server.freeze();
    for locate in [host, bare] {
        let limits = Limits { stall: Duration::from_secs(1) };
        let begin = Instant::now();
        let error = failure(&source(spec(&server), locate()).with_limits(limits));
        assert!(error.contains("1.0 s"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(8));
    }
    server.thaw();
}

#[test]
fn a_server_that_dies_midway() {
    for locate in [host, bare] {
        let server = slow();
        let (result, sink, _) = disturbed(source(spec(&server), locate()), |_| server.kill());
        let error = full(&result.unwrap_err());
        assert!(error.contains("gave no copy of its data"), "{error}");
        assert!(error.contains("ends early"), "{error}");
        assert!(sink.names().is_empty());
    }
}

#[test]
fn cancelled_within_seconds() {
    for locate in [host, bare] {
        let server = slow();
        let (result, sink, took) = disturbed(source(spec(&server), locate()), |bench| bench.cancel.raise(2));
        assert!(matches!(result, Err(SourceError::Cancelled(_))), "{result:?}");
        assert!(took < Duration::from_secs(20), "{took:?}");
        assert!(sink.names().is_empty());
        let begin = Instant::now();
        while server.cli(&["CLIENT", "LIST"]).contains("cmd=sync")
            || server.cli(&["CLIENT", "LIST"]).contains("cmd=psync")
        {
            assert!(begin.elapsed() < Duration::from_secs(20), "the copy's connection stays open");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn passwords_never_stand_in_argv() {
    const PASSWORD: &str = "canary-5d0f3e7a";
    let server = RedisServer::start_with(&["--rdb-key-save-delay", "500"]);
    server.pipe(&(0..5_000).map(|i| format!("SET key:{i} {}\n", "v".repeat(200))).collect::<String>());
    server.cli(&["ACL", "SETUSER", "backup", "on", &format!(">{PASSWORD}"), "+@all", "~*"]);
    let (_file, reference) = password_file(PASSWORD);
    let spec = RedisSpec { user: Some("backup".into()), password_from: Some(reference), ..spec(&server) };
    let (result, _, _) = disturbed(source(spec, host()), |_| {
        let mut seen = 0;
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(argv) = std::fs::read(process.path().join("cmdline")) else { continue };
            let argv = String::from_utf8_lossy(&argv).into_owned();
            // This test's own command that made the user has ended.
            assert!(!argv.contains(PASSWORD), "{argv}");
            seen += usize::from(
                argv.starts_with("redis-cli") && argv.contains("--rdb") && argv.contains(&server.port.to_string()),
            );
        }
        assert_eq!(seen, 1, "redis-cli was running while the arguments were read");
    });
    result.unwrap();
}

#[test]
fn a_server_that_is_not_there() {
    let port = free_port();
    for locate in [host, bare] {
        let target = Target::Url(format!("redis://127.0.0.1:{port}"));
        let spec = RedisSpec { target, user: None, password_from: None, tls: false };
        let error = failure(&source(spec, locate()));
        assert!(error.contains("Connection refused") && error.contains("is the server running"), "{error}");
    }
}

#[test]
fn something_that_is_no_redis() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(2).flatten() {
            let mut stream = stream;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    for locate in [host, bare] {
        let target = Target::Url(format!("redis://127.0.0.1:{port}"));
        let spec = RedisSpec { target, user: None, password_from: None, tls: false };
        let error = failure(&source(spec, locate()));
        assert!(error.contains("cannot talk to Redis at"), "{error}");
    }
}

#[test]
fn replicas_and_clusters() {
    let master = RedisServer::start();
    master.cli(&["SET", "a", "1"]);
    let replica = RedisServer::start_with(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
    let begin = Instant::now();
    while !replica.cli(&["INFO", "replication"]).contains("master_link_status:up") {
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(50));
    }
    let (_, facts, warnings) = captured(&source(spec(&replica), host()));
    assert_eq!((facts.role.as_deref(), facts.databases.as_slice()), (Some("slave"), &[keys(0, 1, 0)][..]));
    assert!(warnings.iter().any(|w| w.contains("replica")), "{warnings:?}");
    drop(master);
    let begin = Instant::now();
    while replica.cli(&["INFO", "replication"]).contains("master_link_status:up") {
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(50));
    }
    let error = failure(&source(spec(&replica), host()));
    assert!(error.contains("has lost its master"), "{error}");

    let cluster = RedisServer::start_with(&["--cluster-enabled", "yes"]);
    let (_, facts, warnings) = captured(&source(spec(&cluster), host()));
    assert_eq!(facts.mode.as_deref(), Some("cluster"));
    assert!(warnings.iter().any(|w| w.contains("only the keys of its own slots")), "{warnings:?}");
}

#[test]
fn a_server_that_is_loading() {
    let server = RedisServer::start();
    server.pipe(&(0..100_000).map(|i| format!("SET key:{i} {i}\n")).collect::<String>());
    let (rdb, ..) = captured(&source(spec(&server), host()));
    let folder = tempfile::Builder::new().prefix("lifeboat-redis-").tempdir().unwrap();
    std::fs::write(folder.path().join("dump.rdb"), rdb).unwrap();
    let port = free_port();
    let mut loading = std::process::Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--key-load-delay", "200"])
        .args(["--loading-process-events-interval-bytes", "1024", "--dir"])
        .arg(folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() && begin.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let target = Target::Url(format!("redis://127.0.0.1:{port}"));
    let spec = RedisSpec { target, user: None, password_from: None, tls: false };
    let result = std::panic::catch_unwind(|| failure(&source(spec, host())));
    let _ = loading.kill();
    let _ = loading.wait();
    let error = result.unwrap();
    assert!(error.contains("still loading its data"), "{error}");
}

/// A certificate of our own for the loopback address, by the `openssl` command.
fn certificate(dir: &Path) {
    let out = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
        .arg(dir.join("key.pem"))
        .arg("-out")
        .arg(dir.join("cert.pem"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn tls_and_what_happens_without_it() {
    let files = tempfile::tempdir().unwrap();
    certificate(files.path());
    let (cert, key) = (files.path().join("cert.pem"), files.path().join("key.pem"));
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let server = RedisServer::start_with(&[
        "--tls-port",
        "{port}",
        "--tls-cert-file",
        cert,
        "--tls-key-file",
        key,
        "--tls-ca-cert-file",
        cert,
        "--tls-auth-clients",
        "no",
    ]);
    server.cli(&["SET", "a", "1"]);
    let with = |url: String, locate: Locate| {
        source(RedisSpec { target: Target::Url(url), user: None, password_from: None, tls: false }, locate)
    };
    let trusted = format!("{}?cacert={cert}", server.url());
    let (_, facts, _) = captured(&with(trusted.clone(), host()));
    assert_eq!(facts.databases, [keys(0, 1, 0)]);
    let error = failure(&with(server.url(), host()));
    assert!(error.contains("certificate") && error.contains("?cacert="), "{error}");
    for locate in [host, bare] {
        let error = failure(&with(format!("redis://127.0.0.1:{}", server.port), locate()));
        assert!(error.contains("set tls = true"), "{error}");
    }
    let error = failure(&with(trusted, bare()));
    assert!(error.contains("no redis-cli in this host") && error.contains("TLS"), "{error}");
}

#[test]
fn a_server_in_a_container() {
    let engine = docker::engine();
    let command =
        ["redis-server", "--requirepass", "s3cret-in-container", "--save", "", "--repl-diskless-sync-delay", "0"];
    let container = docker::TestContainer::run(&["--network", "none"], docker::IMAGE, &command);
    let redis_cli = |words: &[&str]| {
        let mut argv = vec!["exec", "-e", "REDISCLI_AUTH=s3cret-in-container", &container.id, "redis-cli"];
        argv.extend(words);
        docker::try_docker(argv)
    };
    let begin = Instant::now();
    while !String::from_utf8_lossy(&redis_cli(&["PING"]).stdout).contains("PONG") {
        assert!(begin.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(100));
    }
    for i in 0..20 {
        redis_cli(&["SET", &format!("k{i}"), "v"]);
    }
    let locate: Locate = Arc::new(move |target| {
        let Target::Container(name) = target else { panic!("{target:?}") };
        let place = ContainerPlace::named(&engine, name.clone());
        let env = place.resolve()?.env.into_iter().collect();
        Ok(Located { place: Arc::new(place), env })
    });
    let with = |password_from: Option<SecretRef>| {
        let target = Target::Container(container.name.clone());
        source(RedisSpec { target, user: None, password_from, tls: false }, locate.clone())
    };
    let (_file, right) = password_file("s3cret-in-container");
    let (rdb, facts, warnings) = captured(&with(Some(right)));
    assert_eq!((facts.databases.as_slice(), facts.counted.as_str()), (&[keys(0, 20, 0)][..], "file"));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(loaded(&rdb).cli(&["DBSIZE"]), "20");
    let (file, wrong) = password_file("wr0ng-password");
    let error = failure(&with(Some(wrong)));
    let expected = format!(
        "AUTH failed for container {}: password_from points to {}:REDIS_PASSWORD, which is not the one that the server accepts",
        container.name,
        file.path().display()
    );
    assert!(error.starts_with(&expected), "{error}");
    assert!(failure(&with(None)).contains("the policy names none"));
}
