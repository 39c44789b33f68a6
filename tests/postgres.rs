//! PostgreSQL, captured from real servers that these tests start.

#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/sink.rs"]
mod sink;

use lifeboat::base::secret::Secret;
use lifeboat::policy::model::{Databases, Fingerprint, PostgresSpec, SecretRef, Target};
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::postgres::facts::{Database, Facts, Table};
use lifeboat::sources::postgres::{Limits, PostgresSource};
use lifeboat::sources::{Captured, Source, SourceError};
use postgres::PostgresServer;
use sink::{Bench, MemorySink};
use std::sync::Arc;
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

fn capture(source: &PostgresSource) -> (MemorySink, Result<Captured, SourceError>) {
    let sink = MemorySink::new();
    let bench = Bench::new();
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
