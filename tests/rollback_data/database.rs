//! A database of today against the captured one: rows, migrations, form.

use crate::bench::{Bench, everything, told};
use crate::postgres::PostgresServer;
use crate::taken::Taken;
use lifeboat::ops::rollback::losses;
use lifeboat::sources::placing::{Intent, Part};
use lifeboat::sources::placings::locate;
use lifeboat::sources::postgres::{Form, SchemaChange, schema_change, schema_differs};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A server with the databases of a policy.
fn stand(databases: &[&str], sql: &str) -> (PostgresServer, Bench) {
    let server = PostgresServer::start();
    for name in databases {
        server.create(name);
        server.sql(name, sql);
    }
    let url = server.socket_url("postgres", "postgres");
    let bench = Bench::new(&format!(
        "[[source]]\nkind = \"postgres\"\nname = \"db\"\nurl = {url:?}\ndatabases = {databases:?}\n"
    ));
    (server, bench)
}

fn said(intent: &Intent) -> String {
    losses::told(std::slice::from_ref(intent))
}

const SHOP: &str = "CREATE TABLE orders (id serial PRIMARY KEY, note text); CREATE TABLE users (id int); \
    CREATE TABLE sessions (id int); CREATE TABLE legacy (id int); CREATE TABLE \"-x $(id)\" (id int); \
    INSERT INTO orders (note) SELECT 'n' FROM generate_series(1, 1000); \
    INSERT INTO users SELECT generate_series(1, 10); INSERT INTO sessions SELECT generate_series(1, 50); \
    INSERT INTO legacy SELECT generate_series(1, 7); SELECT lo_from_bytea(0, 'x')";

#[test]
fn rows_of_today_that_leave_and_rows_that_come_back() {
    let (server, bench) = stand(&["shop"], SHOP);
    let taken = bench.capture("db");
    assert_eq!(bench.plan(&taken, &everything()).losses, [], "nothing has come between");
    assert!(said(&bench.plan(&taken, &everything())).starts_with("nothing that is counted"));
    server.sql(
        "shop",
        "INSERT INTO orders (note) SELECT 'm' FROM generate_series(1, 312); UPDATE users SET id = id + 1; \
         INSERT INTO users SELECT generate_series(11, 19); DELETE FROM sessions WHERE id > 45; DROP TABLE legacy; \
         CREATE TABLE coupons AS SELECT generate_series(1, 3); CREATE TABLE empty (i int); \
         INSERT INTO \"-x $(id)\" VALUES (1); SELECT lo_from_bytea(0, 'y')",
    );
    let intent = bench.plan(&taken, &everything());
    assert!(intent.losses.iter().all(|l| l.exact), "{:?}", intent.losses);
    assert_eq!(
        said(&intent),
        "db: orders +312, users +9, coupons +3, -x $(id) +1, large objects +1 (coming back: legacy 7, sessions 5)"
    );
    let line = intent.lines.iter().find(|l| l.starts_with("schema:")).unwrap_or_else(|| panic!("{intent:?}"));
    assert_eq!(line, "schema: made since and gone then: coupons, empty; dropped since and back then: legacy");
    // A single table is alone concerned; what is restored beside costs nothing.
    let part = Part { tables: vec!["public.users".into()], ..Part::default() };
    assert_eq!(said(&bench.plan(&taken, &part)), "db: users +9");
    let part = Part { database_as: Some("beside".into()), ..Part::default() };
    assert_eq!(bench.plan(&taken, &part).losses, []);
}

#[test]
fn several_databases_tell_their_tables_apart() {
    let (server, bench) = stand(&["shop", "stock"], "CREATE TABLE orders (id int); CREATE TABLE alone (id int)");
    let taken = bench.capture("db");
    for (database, rows) in [("shop", 5), ("stock", 2)] {
        server.sql(database, &format!("INSERT INTO orders SELECT generate_series(1, {rows})"));
    }
    server.sql("stock", "INSERT INTO alone VALUES (1)");
    assert_eq!(said(&bench.plan(&taken, &everything())), "db: shop.public.orders +5, stock.public.orders +2, alone +1");
    // One that has gone since is made anew, and nothing of it leaves.
    server.sql("postgres", "DROP DATABASE stock");
    let intent = bench.plan(&taken, &everything());
    assert_eq!(said(&intent), "db: orders +5");
    assert!(intent.lines.contains(&"schema: database \"stock\" is not there today".into()), "{intent:?}");
}

/// Somebody holds a table for as long as this lives.
struct Holding<'a>(&'a PostgresServer, Child);

impl<'a> Holding<'a> {
    fn new(server: &'a PostgresServer, table: &str) -> Self {
        let sql = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(60)");
        let child = server
            .connected("psql", "shop")
            .args(["-Xqc", &sql])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted";
        let begin = Instant::now();
        while server.sql("postgres", held) == "0" {
            assert!(begin.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(20));
        }
        Self(server, child)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ 'pg_sleep' AND pid <> pg_backend_pid()");
        let _ = self.1.wait();
    }
}

#[test]
fn what_cannot_be_counted_in_time_is_estimated_and_called_so() {
    let (server, bench) = stand(&["shop"], SHOP);
    server.sql("shop", "CREATE TABLE aa (i int); INSERT INTO aa SELECT generate_series(1, 20000)");
    let taken = bench.capture("db");
    server.sql("shop", "INSERT INTO aa SELECT generate_series(1, 10000); INSERT INTO users VALUES (1)");
    server.sql("shop", "ANALYZE");
    let holding = Holding::new(&server, "aa");
    let begin = Instant::now();
    let intent = bench.plan(&taken, &everything());
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(20), "it waited for the lock: {took:?}");
    let of = |name: &str| intent.losses.iter().find(|l| l.what == name).unwrap_or_else(|| panic!("{intent:?}"));
    assert!(!of("aa").exact && (of("aa").more - 10_000).abs() < 1_000, "{:?}", of("aa"));
    assert_eq!(said(&intent).split(',').nth(2), Some(" users +1"), "the others are counted: {}", said(&intent));
    assert!(said(&intent).starts_with("db: aa about +"), "{}", said(&intent));
    drop(holding);
    let intent = bench.plan(&taken, &everything());
    assert_eq!(said(&intent), "db: aa +10,000, users +1");
}

/// 1.5 GiB, planned within three seconds.
#[test]
#[ignore = "writes 1.5 GiB: run it by name"]
fn a_large_database_is_planned_in_time() {
    let (server, bench) = stand(&["shop"], SHOP);
    server.sql(
        "shop",
        "CREATE UNLOGGED TABLE events AS SELECT i, repeat(md5(i::text), 10) AS t FROM generate_series(1, 4000000) AS i; \
         CREATE TABLE more AS SELECT i, md5(i::text) AS t FROM generate_series(1, 1000000) AS i; VACUUM ANALYZE",
    );
    let size = server.sql("shop", "SELECT pg_size_pretty(pg_database_size(current_database()))");
    let mut taken = bench.capture("db");
    taken.facts["databases"][0]["tables"].as_array_mut().unwrap().iter_mut().for_each(|t| {
        if t["name"] == "events" {
            t["rows"] = 3_500_000.into();
        }
    });
    for _ in 0..2 {
        let begin = Instant::now();
        let intent = bench.plan(&taken, &everything());
        println!("{size}: {:?}: {}", begin.elapsed(), said(&intent));
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    }
}

fn change(bench: &Bench, taken: &Taken) -> SchemaChange {
    let locate = locate(&bench.policy, &bench.cancel);
    schema_change(bench.source("db"), &locate, &taken.facts, &bench.cancel).unwrap_or_else(|e| panic!("{}", told(&e)))
}

const MIGRATED: &str = "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY); \
    INSERT INTO alembic_version VALUES ('3f2c0a11beef'); \
    CREATE TABLE django_migrations (id serial, app text, name text, applied timestamptz DEFAULT now()); \
    INSERT INTO django_migrations (app, name) VALUES ('shop', '0001_initial')";

#[test]
fn where_migrations_stand() {
    let (server, bench) = stand(&["shop"], MIGRATED);
    let taken = bench.capture("db");
    let none = change(&bench, &taken);
    assert_eq!((none.migrations.len(), none.form, none.is_changed()), (0, Form::Same, false), "{none:?}");
    server.sql(
        "shop",
        "UPDATE alembic_version SET version_num = '9a1b77c0ffee'; \
         INSERT INTO django_migrations (app, name) VALUES ('shop', '0002_coupon'); ALTER TABLE django_migrations ADD note text",
    );
    let locate = locate(&bench.policy, &bench.cancel);
    let found = schema_differs(bench.source("db"), &locate, &taken.facts, &bench.cancel).unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((found[0].table.as_str(), found[0].tool.as_str()), ("alembic_version", "alembic"));
    assert_eq!((&found[0].live, &found[0].recorded), (&vec!["9a1b77c0ffee".into()], &vec!["3f2c0a11beef".into()]));
    assert_eq!(found[1].live, ["shop.0002_coupon", "shop.0001_initial"]);
    let intent = bench.plan(&taken, &everything());
    for line in [
        "schema: alembic_version 9a1b77c0ffee → 3f2c0a11beef",
        "schema: django_migrations shop.0002_coupon → shop.0001_initial",
        "schema: columns: django_migrations 5 → 4",
    ] {
        assert!(intent.lines.iter().any(|l| l == line), "{line}: {:?}", intent.lines);
    }
    // A table of migrations that has gone, and a database that has.
    server.sql("shop", "DROP TABLE alembic_version");
    let gone = change(&bench, &taken);
    assert!(gone.lines.contains(&"schema: alembic_version nothing → 3f2c0a11beef".into()), "{gone:?}");
    server.sql("postgres", "DROP DATABASE shop");
    let gone = change(&bench, &taken);
    assert!(gone.is_changed() && gone.migrations.iter().all(|m| m.live.is_empty()), "{gone:?}");
}

#[test]
fn the_form_changes_with_every_migration_and_with_nothing_else() {
    let sql = "CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE DOMAIN positive AS int CHECK (VALUE > 0); \
        CREATE TABLE a (id serial PRIMARY KEY, n int NOT NULL DEFAULT 1, m mood, t varchar(10), w int); \
        CREATE TABLE b (id int REFERENCES a, p positive); CREATE VIEW v AS SELECT id, n FROM a; \
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
        CREATE TRIGGER g BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION f(); CREATE SEQUENCE s";
    let (server, bench) = stand(&["shop"], sql);
    let mut taken = bench.capture("db");
    let harmless = [
        "INSERT INTO a (n) SELECT generate_series(1, 500); UPDATE a SET n = n + 1; DELETE FROM a WHERE id % 2 = 0; SELECT nextval('s')",
        "VACUUM FULL ANALYZE a; REINDEX TABLE a; CLUSTER a USING a_pkey",
        "CREATE ROLE lb_form; GRANT SELECT ON a TO lb_form; ALTER TABLE b OWNER TO lb_form; COMMENT ON TABLE a IS 'x'",
        "CREATE TEMP TABLE t (i int)",
        "CREATE SCHEMA lifeboat_old_20261119t020000z1a2b3c4d; CREATE TABLE lifeboat_old_20261119t020000z1a2b3c4d.x (i int)",
    ];
    for sql in harmless {
        sql.split("; ").for_each(|one| drop(server.sql("shop", one)));
        let found = change(&bench, &taken);
        assert_eq!((found.form, found.lines.len()), (Form::Same, 0), "{sql}: {found:?}");
    }
    let forms = [
        "ALTER TABLE a ALTER w TYPE bigint",
        "ALTER TABLE a ALTER n DROP NOT NULL",
        "ALTER TABLE a ALTER n SET DEFAULT 2",
        "ALTER TABLE a ALTER t TYPE varchar(11)",
        "ALTER TABLE a RENAME n TO k",
        "CREATE INDEX i ON a (t)",
        "ALTER TABLE a ADD CONSTRAINT c CHECK (id > 0)",
        "ALTER TYPE mood ADD VALUE 'new' BEFORE 'bad'",
        "ALTER DOMAIN positive SET NOT NULL",
        "CREATE OR REPLACE VIEW v AS SELECT id, k AS n FROM a WHERE id > 1",
        "CREATE OR REPLACE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "DROP TRIGGER g ON a",
        "CREATE SEQUENCE s2",
        "CREATE POLICY p ON a USING (id > 1)",
        "CREATE SCHEMA apart",
        "ALTER TABLE b SET UNLOGGED",
        "CREATE EXTENSION citext",
    ];
    for sql in forms {
        let before = bench.capture("db").facts["databases"][0]["shape"].clone();
        server.sql("shop", sql);
        taken.facts["databases"][0]["shape"] = before;
        let found = change(&bench, &taken);
        assert_eq!(found.form, Form::Differs, "{sql}");
    }
    // A snapshot of before the form was captured, or of another major version, says nothing of it.
    taken = bench.capture("db");
    let mut old = taken.clone();
    old.facts["databases"][0].as_object_mut().unwrap().remove("shape");
    assert_eq!(change(&bench, &old).form, Form::Unknown);
    let mut other = taken.clone();
    other.facts["server_version_num"] = 140_005.into();
    assert_eq!(change(&bench, &other).form, Form::Unknown);
    // The form survives a dump: the restored database has the same.
    let intent = bench.plan(&taken, &everything());
    bench.steps("prepare switch confirm", &taken, &intent);
    let found = change(&bench, &taken);
    assert_eq!(found.form, Form::Same, "{found:?}");
    bench.steps("back discard_new", &taken, &intent);
}

#[test]
fn another_major_version_is_refused_where_code_returns_with_it() {
    let (_server, bench) = stand(&["shop"], SHOP);
    let mut taken = bench.capture("db");
    let part = Part { same_major: true, ..Part::default() };
    bench.plan(&taken, &part);
    taken.facts["server_version_num"] = 140_005.into();
    let why = told(&bench.try_plan(&taken, &part).unwrap_err());
    assert!(
        why.contains("the server is PostgreSQL 15, and the snapshot is of 14") && why.contains("--keep-data"),
        "{why}"
    );
    bench.plan(&taken, &everything());
    let flush = Part { flush: true, ..Part::default() };
    assert!(told(&bench.try_plan(&taken, &flush).unwrap_err()).contains("not emptied"));
}
