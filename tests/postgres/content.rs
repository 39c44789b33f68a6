//! What is captured comes back: every kind of content, odd names, parts, standbys, and under load.

use crate::bench::{capture, captured, failure, full, midway, source, spec, table};
use crate::postgres::PostgresServer;
use lifeboat::policy::model::{Databases, Fingerprint, Target};
use lifeboat::sources::postgres::Limits;
use lifeboat::sources::postgres::facts::{Database, Facts};
use std::process::Stdio;
use std::time::{Duration, Instant};

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
        if ["it's \\", "a=b", "postgres://x"].contains(name) {
            let (_, own, _) = captured(spec(server.socket_url("postgres", name)));
            assert_eq!(&own.databases[0].name, name);
        }
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
    let mut writer =
        server.connected("psql", "busy").args(["-Xqc", "CALL load()"]).stderr(Stdio::null()).spawn().unwrap();
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
    assert!(d.proved && rows.is_multiple_of(2) && rows < after.parse().unwrap(), "{rows} {after}");
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
    assert_eq!(sections, ["pre-data", "data", "data", "data", "data", "post-data"]);
    let streams: Vec<&str> = d.parts.iter().map(|p| p.stream.as_str()).collect();
    assert_eq!(
        streams,
        [
            "parts.pre-data.dump",
            "parts.data-1.dump",
            "parts.data-2.dump",
            "parts.data-3.dump",
            "parts.data-4.dump",
            "parts.post-data.dump"
        ]
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
fn a_standby_without_the_rows_of_unlogged_tables() {
    let primary = PostgresServer::start_with(&[], &["-c", "wal_level=replica", "-c", "hot_standby=on"]);
    primary.create("app");
    primary.sql("app", "CREATE TABLE t AS SELECT generate_series(1, 100) AS i; CREATE SEQUENCE s");
    primary.sql("app", "CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 5) AS i");
    let standby = primary.standby();
    let (sink, facts, warnings) = captured(spec(standby.socket_url("postgres", "app")));
    let d = &facts.databases[0];
    assert!(facts.standby && d.proved);
    assert_eq!((table(d, "public", "t").rows, table(d, "public", "u").rows), (Some(100), None));
    assert!(warnings.iter().any(|w| w.contains("is a standby")), "{warnings:?}");
    primary.restore("again", &[sink.bytes("app.dump")]);
    assert_eq!(primary.sql("again", "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)"), "100|0");
}
