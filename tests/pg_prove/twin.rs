//! What is unharmed proves green, wherever it is restored.

use crate::bench::{Setup, capture, capture_as, fresh, green, shop, spec};
use crate::places::shared_memory_since;
use crate::postgres::PostgresServer;
use lifeboat::policy::model::{Databases, DrillPostgres, Fingerprint, Target};
use lifeboat::sources::postgres::Limits;
use lifeboat::sources::proof::Verdict;
use std::time::SystemTime;

#[test]
fn an_unharmed_twin_is_green() {
    let server = shop();
    let taken = capture(&server, &["shop"]);
    // What is live, by now, is not what it was: nothing of it is looked at.
    server.sql("shop", "DELETE FROM orders; DROP VIEW recent");
    let begin = SystemTime::now();
    let proof = Setup::local()
        .check("select count(*) = 1000 from users", None)
        .check("SELECT work_mem = '5MB' FROM (SELECT current_setting('work_mem') AS work_mem) AS s;", Some("shop"))
        .check("SELECT pg_read_file('/proc/self/status') ~ 'Uid:\\s+65534\\s+65534'", None)
        .check("SELECT pg_read_file('/proc/net/dev') !~ '(eth0|docker0|ens)'", None)
        .check("SELECT count(*) = 0 FROM pg_ls_dir('/run') AS name WHERE name <> 'mount'", None)
        .prove(&taken);
    green(&proof);
    assert_eq!(shared_memory_since(begin), Vec::<String>::new());
    assert_eq!(proof.restored, ["8 tables (4,005 rows)"]);
    for name in [
        "restore",
        "roles",
        "memberships",
        "databases",
        "properties",
        "schemas",
        "extensions",
        "tables",
        "grants",
        "sequences",
        "definitions",
        "migrations",
        "publications",
        "large objects",
        "rows",
        "content",
        "amcheck",
        "sql",
    ] {
        assert!(proof.checks.iter().any(|c| c.name == name), "no check {name}");
    }
    let rows = proof.checks.iter().find(|c| c.name == "rows").unwrap();
    assert_eq!((rows.subject.as_str(), rows.expected.as_str()), ("database \"shop\"", "7 tables, 4,005 rows"));
    let restoring: f64 = proof.steps.iter().filter(|s| s.restores).map(|s| s.seconds).sum();
    let names: Vec<&str> = proof.steps.iter().map(|s| s.name.as_str()).collect();
    assert!(
        restoring > 0.0 && names.contains(&"restore database \"shop\"") && names.contains(&"start server"),
        "{names:?}"
    );
}

#[test]
fn several_databases_with_odd_names_tablespaces_and_parts() {
    let server = PostgresServer::start();
    let place = server.dir.join("fast");
    // Read first: a program that ends before its input came is an error of the copy.
    server.sql("postgres", &format!("COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; mkdir {}'", place.display()));
    server.sql("postgres", &format!("CREATE TABLESPACE \"fast one\" LOCATION '{}'", place.display()));
    let odd = ["$(id)", "a b\"c'", "žluť", "postgres"];
    for (i, name) in odd.iter().enumerate() {
        if *name != "postgres" {
            server.create(name);
        }
        server
            .sql(name, &format!("CREATE TABLE t AS SELECT generate_series(1, {}) AS i; CREATE INDEX ON t (i)", i + 1));
    }
    server.sql("$(id)", "CREATE TABLE there (i int) TABLESPACE \"fast one\"");
    server.create("big");
    server.sql(
        "big",
        "CREATE TABLE one (id serial PRIMARY KEY, t text); INSERT INTO one (t) SELECT repeat('b', 900) FROM generate_series(1, 30000); \
         CREATE TABLE two (id serial PRIMARY KEY, t text); INSERT INTO two (t) SELECT repeat('c', 900) FROM generate_series(1, 25000); \
         CREATE TABLE small AS SELECT 1 AS i",
    );
    let mut spec = spec(Target::Url(server.socket_url("postgres", "postgres")));
    spec.databases = Databases::All;
    spec.jobs = 3;
    let taken = capture_as(spec, Limits { parts_from_bytes: 16 << 20, ..Limits::default() });
    assert!(taken.streams.iter().any(|(name, ..)| name == "big.data-2.dump"));
    let proof = Setup::local().prove(&taken);
    green(&proof);
    assert!(proof.checks.iter().any(|c| c.name == "tablespaces"));
}

#[test]
fn rows_alone_and_nothing_at_all() {
    let server = shop();
    let mut rows = spec(Target::Url(server.socket_url("postgres", "shop")));
    rows.fingerprint = Fingerprint::Rows;
    let taken = capture_as(rows.clone(), Limits::default());
    let proof = Setup::local().source(rows).prove(&taken);
    green(&proof);
    assert!(!proof.checks.iter().any(|c| c.name == "content"));
    let mut none = spec(Target::Url(server.socket_url("postgres", "shop")));
    none.fingerprint = Fingerprint::None;
    let taken = capture_as(none.clone(), Limits::default());
    let proof = Setup::local().source(none).prove(&taken);
    let check = proof.checks.iter().find(|c| c.name == "rows").unwrap();
    assert_eq!(check.verdict, Verdict::Skipped);
    assert!(check.why.as_ref().unwrap().contains("fingerprint = \"none\""));
    assert_eq!(proof.checks.iter().filter(|c| c.verdict != Verdict::Passed).count(), 1);
}

#[test]
fn a_scratch_server_proves_all_but_roles_and_is_left_as_it_was() {
    let live = shop();
    let taken = capture(&live, &["shop"]);
    let scratch = PostgresServer::start();
    let before = scratch.sql("postgres", "SELECT datname FROM pg_database ORDER BY 1");
    // A drill that was killed left a database behind; somebody else's looks alike.
    let mark = lifeboat::place::owner_mark();
    let dead = format!("{}/1", mark.rsplit_once('/').unwrap().0);
    scratch.sql("postgres", "CREATE DATABASE lifeboat_drill_dead_0");
    scratch.sql("postgres", &format!("COMMENT ON DATABASE lifeboat_drill_dead_0 IS '{dead}'"));
    let setup = Setup::with(DrillPostgres::Server(scratch.socket_url("postgres", "postgres")));
    let proof = setup.check("select count(*) = 1000 from users", Some("shop")).prove(&taken);
    let skipped: Vec<&str> =
        proof.checks.iter().filter(|c| c.verdict == Verdict::Skipped).map(|c| c.name.as_str()).collect();
    assert_eq!(skipped, ["properties", "grants", "roles", "memberships"]);
    assert!(proof.checks.iter().all(|c| c.verdict != Verdict::Failed), "{:#?}", crate::bench::not_passed(&proof));
    assert_eq!(scratch.sql("postgres", "SELECT datname FROM pg_database ORDER BY 1"), before);
    assert_eq!(scratch.sql("postgres", "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'lb%'"), "0");
    fresh(&live);
}
