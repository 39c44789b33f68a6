//! Who may, who may not, what is not there, and what a server's own settings must not do.

use crate::bench::{NoTools, capture, captured, failure, full, large, meddled, midway, source, spec, table};
use crate::faults::ends;
use crate::port::free_port;
use crate::postgres::PostgresServer;
use lifeboat::policy::model::{Fingerprint, SecretRef};
use lifeboat::sources::Source;
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::postgres::PostgresSource;
use lifeboat::sources::postgres::facts::Facts;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

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
    ends(&server, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'lifeboat:%'");
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
         ALTER DATABASE hostile SET statement_timeout = '1s'; ALTER DATABASE hostile SET lock_timeout = '1ms'; \
         ALTER DATABASE hostile SET idle_in_transaction_session_timeout = '100ms'; \
         ALTER DATABASE hostile SET datestyle = 'German'; ALTER DATABASE hostile SET bytea_output = 'escape'; \
         ALTER DATABASE hostile SET standard_conforming_strings = off; ALTER DATABASE hostile SET quote_all_identifiers = on; \
         ALTER DATABASE hostile SET row_security = on; ALTER DATABASE hostile SET client_min_messages = 'debug1'",
    );
    let mut content = spec(server.socket_url("postgres", "hostile"));
    content.fingerprint = Fingerprint::Content;
    let (_, result, _) = midway(&source(content), |_| std::thread::sleep(Duration::from_millis(1500)));
    let facts: Facts = serde_json::from_value(result.unwrap_or_else(|e| panic!("{}", full(&e))).facts).unwrap();
    let d = &facts.databases[0];
    assert_eq!((table(d, "public", "t").rows, table(d, "public", "pairs").rows), (Some(2000), Some(1)));
    assert!(d.migrations.is_empty(), "a column of a user's own type is not sorted by: {:?}", d.migrations);
}
