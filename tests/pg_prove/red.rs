//! Damage is seen, and named.

use crate::bench::{Setup, capture, failed, fresh, green, names, not_passed, shop};
use crate::postgres::PostgresServer;
use crate::taken::Taken;
use lifeboat::sources::proof::{Proof, Verdict};
use serde_json::json;

/// What was captured first, with the streams of what it became.
fn facts_of_with_streams_of(first: &Taken, then: &Taken) -> Taken {
    Taken { streams: then.streams.clone(), ..first.clone() }
}

fn prove_changed(server: &PostgresServer, first: &Taken, change: &str) -> Proof {
    fresh(server);
    server.sql("shop", change);
    Setup::local().prove(&facts_of_with_streams_of(first, &capture(server, &["shop"])))
}

#[test]
fn every_loss_is_red_and_named() {
    let server = shop();
    let first = capture(&server, &["shop"]);

    let proof = prove_changed(&server, &first, "UPDATE users SET note = 'changed' WHERE id = 5");
    names(&proof, "content", "public.users", "", "");
    assert_eq!(not_passed(&proof).len(), 1, "and nothing else: {:#?}", not_passed(&proof));

    let proof =
        prove_changed(&server, &first, "DELETE FROM \"Odd schema\".\"T \"\"x\"\" $(id)\" WHERE \"Col umn\" = 1");
    names(&proof, "rows", "Odd schema.T \"x\" $(id)", "2 rows", "1 row");
    names(&proof, "content", "Odd schema.T \"x\" $(id)", "", "");

    let proof = prove_changed(
        &server,
        &first,
        "DROP INDEX users_note; SELECT setval('users_id_seq', 3); ALTER TABLE parent OWNER TO lb_reader; DROP EXTENSION hstore; \
         SELECT lo_unlink(4712); REVOKE SELECT ON users FROM lb_reader; DROP TRIGGER touch ON users; DROP FUNCTION lonely(int); \
         DROP POLICY own ON users; DROP VIEW recent; UPDATE alembic_version SET version_num = '77aa'; DROP PUBLICATION news; \
         ALTER TABLE orders DROP CONSTRAINT orders_user_id_fkey; DROP TABLE cache; CREATE TABLE besides (i int)",
    );
    names(&proof, "sequences", "public.users_id_seq", "1000", "3");
    names(&proof, "tables", "public.parent", "owner postgres", "owner lb_reader");
    names(&proof, "tables", "public.recent", "kind view", "missing");
    names(&proof, "tables", "public.cache", "persistence unlogged", "missing");
    names(&proof, "tables", "public.besides", "nothing", "kind table");
    names(&proof, "extensions", "hstore", "version", "missing");
    names(&proof, "large objects", "count", "2", "1");
    names(&proof, "large objects", "content", "", "");
    names(&proof, "grants", "table public.users", "lb_reader=SELECT", "missing");
    names(&proof, "migrations", "public.alembic_version", "head 3f2a", "head 77aa");
    names(&proof, "publications", "news", "there", "missing");
    for (what, expected, found) in [("indexes", 6, 5), ("triggers", 1, 0), ("policies", 1, 0)] {
        names(&proof, "definitions", what, &expected.to_string(), &found.to_string());
    }
    for what in ["constraints", "functions", "types"] {
        names(&proof, "definitions", what, "", "");
    }
    let verdict = |name: &str| proof.checks.iter().find(|c| c.name == name).unwrap().verdict;
    assert_eq!(verdict("restore"), Verdict::Passed, "no tool said a word of it");

    let proof = prove_changed(&server, &first, "DROP TRIGGER touch ON users; DROP FUNCTION touch()");
    names(&proof, "definitions", "functions", "", "");
    let proof = prove_changed(&server, &first, "REVOKE UPDATE (note) ON users FROM lb_reader");
    names(&proof, "grants", "column public.users.note", "lb_reader=UPDATE", "missing");
}

#[test]
fn dumps_that_are_not_whole_are_red() {
    let server = shop();
    let first = capture(&server, &["shop"]);
    let restore = |taken: &Taken| {
        let proof = Setup::local().prove(taken);
        let check = failed(&proof, "restore");
        (check.why.clone().unwrap(), proof)
    };

    let mut half = first.clone();
    let bytes = half.bytes("shop.dump");
    bytes.truncate(bytes.len() / 2);
    assert!(restore(&half).0.contains("the dump ends"), "{}", restore(&half).0);

    let mut none = first.clone();
    none.bytes("shop.dump").clear();
    assert!(restore(&none).0.contains("the dump ends early"));

    let mut missing = first.clone();
    missing.streams.retain(|(name, ..)| name != "shop.dump");
    assert!(restore(&missing).0.contains("no stream \"shop.dump\""));

    // Everything before the indexes, and whole in itself.
    let out = server
        .connected("pg_dump", "shop")
        .args(["-Fc", "-Z0", "--section=pre-data", "--section=data"])
        .output()
        .unwrap();
    assert!(out.status.success());
    let mut early = first.clone();
    *early.bytes("shop.dump") = out.stdout;
    let proof = Setup::local().prove(&early);
    names(&proof, "definitions", "indexes", "6", "");
    names(&proof, "definitions", "constraints", "", "");

    // One bit of one value, where no tool has a checksum.
    let mut flipped = first.clone();
    let bytes = flipped.bytes("shop.dump");
    let needle = b"note cee631121c2ec9232f3a2f028ad5c89b";
    let at = bytes.windows(needle.len()).position(|w| w == needle).unwrap();
    bytes[at + 2] ^= 1;
    let proof = Setup::local().prove(&flipped);
    names(&proof, "content", "public.users", "", "");

    // SQL that the server refuses.
    let mut broken = first.clone();
    let bytes = broken.bytes("shop.dump");
    let needle = b"CREATE TYPE public.mood";
    let at = bytes.windows(needle.len()).position(|w| w == needle).unwrap();
    bytes[at..at + 6].copy_from_slice(b"CREAXX");
    let (why, _) = restore(&broken);
    assert!(why.contains("syntax error") && why.contains("pg_restore ended with status 1"), "{why}");
    green(&Setup::local().prove(&first));
}

#[test]
fn roles_that_are_not_whole_are_red() {
    let server = shop();
    let first = capture(&server, &["shop"]);
    let changed = |from: &str, to: &str| {
        let mut taken = first.clone();
        let text = String::from_utf8(taken.bytes("globals.sql").clone()).unwrap();
        assert!(text.contains(from), "{text}");
        *taken.bytes("globals.sql") = text.replace(from, to).into_bytes();
        Setup::local().prove(&taken)
    };
    let proof = changed("CREATE ROLE lb_reader;", "");
    assert!(failed(&proof, "restore").why.as_ref().unwrap().contains("role \"lb_reader\" does not exist"));
    names(&proof, "roles", "lb_reader", "login no", "missing");

    let proof = changed("CONNECTION LIMIT 3", "");
    names(&proof, "roles", "lb odd \"role\"", "connection limit 3", "connection limit -1");
    let proof = changed("ALTER ROLE lb_owner SET work_mem TO '6MB';", "");
    names(&proof, "roles", "lb_owner", "settings work_mem=6MB", "no settings");
    let proof = changed("WITH ADMIN OPTION", "");
    names(&proof, "memberships", "lb_owner in lb_reader", "admin yes", "admin no");

    // What psql would run as a command of its own is no part of a script of roles.
    let mark = std::env::temp_dir().join(format!("lifeboat-smuggled-{}", std::process::id()));
    let proof = changed("-- Roles\n", &format!("-- Roles\n\\! touch {}\n", mark.display()));
    assert!(failed(&proof, "restore").why.as_ref().unwrap().contains("a command for psql"));
    assert!(!mark.exists());

    let mut half = first.clone();
    let bytes = half.bytes("globals.sql");
    bytes.truncate(bytes.len() / 2);
    let proof = Setup::local().prove(&half);
    failed(&proof, "restore");
    assert!(!format!("{proof:?}").contains("SCRAM"), "no hash of a password is told");
}

#[test]
fn what_lies_on_the_database_is_held_against_the_facts() {
    let server = shop();
    let first = capture(&server, &["shop"]);
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut taken = first.clone();
        change(&mut taken.facts["databases"][0]);
        Setup::local().prove(&taken)
    };
    let proof = with(&|d| d["settings"] = json!([{ "role": "lb_gone", "values": ["work_mem=7MB"] }]));
    assert!(failed(&proof, "restore").why.as_ref().unwrap().contains("lb_gone"));
    let proof = with(&|d| {
        d["extensions"].as_array_mut().unwrap().push(json!({ "name": "vector", "version": "0.5", "schema": "public" }))
    });
    let why = failed(&proof, "restore").why.clone().unwrap();
    assert!(why.contains("vector (Debian: postgresql-15-pgvector)"), "{why}");
    let proof = with(&|d| d["owner"] = json!("lb_gone"));
    assert!(failed(&proof, "restore").why.as_ref().unwrap().contains("lb_gone"));
    let proof = with(&|d| d["counts"]["indexes"] = json!(99));
    names(&proof, "definitions", "indexes", "99", "6");
    // Taken by a version that did not look.
    let proof = with(&|d| drop(d.as_object_mut().unwrap().remove("grants")));
    let grants = proof.checks.iter().find(|c| c.name == "grants").unwrap();
    assert_eq!(grants.verdict, Verdict::Skipped);
}

#[test]
fn the_policys_own_checks_must_be_true_in_one_cell() {
    let server = shop();
    let taken = capture(&server, &["shop"]);
    let checks = [
        ("select count(*) > 5000 from users", None, "the answer is false"),
        ("select true, true", None, "the answer is t|t"),
        ("select true from users limit 2", None, "the answer is t; t"),
        ("select 1 where false", None, "no answer"),
        ("select * from no_such_table", None, "\"no_such_table\" does not exist"),
        ("delete from users returning true", None, "read-only"),
        ("select null::bool", None, "no answer"),
        ("select 'yes'", None, "the answer is yes"),
        ("select true", Some("elsewhere"), "no database \"elsewhere\""),
        ("select repeat('t', 100000)", None, "more than one cell"),
    ];
    let mut setup = Setup::local();
    for (sql, database, _) in checks {
        setup = setup.check(sql, database);
    }
    let proof = setup.check("select count(*) = 1000 from users -- all", None).prove(&taken);
    let own: Vec<_> = proof.checks.iter().filter(|c| c.name == "sql").collect();
    assert_eq!(own.len(), checks.len() + 1);
    for ((sql, _, why), check) in checks.iter().zip(&own) {
        assert_eq!((check.verdict, check.subject.as_str()), (Verdict::Failed, *sql));
        assert!(check.why.as_ref().unwrap().contains(why), "{sql}: {check:?}");
    }
    assert_eq!(own[checks.len()].verdict, Verdict::Passed);
}

/// An order that turns round when the last thing of a restore is there: what was built before it lies from then on.
const LIAR: &str = r#"
CREATE FUNCTION fickle(a int, b int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
  RETURN CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname = 'late')
    THEN -pg_catalog.btint4cmp(a, b) ELSE pg_catalog.btint4cmp(a, b) END; END $$;
CREATE OPERATOR CLASS fickle_ops FOR TYPE int4 USING btree AS
  OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 fickle(int, int);
CREATE TABLE t AS SELECT i FROM generate_series(1, 500) AS i;
CREATE INDEX honest ON t (i);
CREATE INDEX liar ON t (i fickle_ops);
CREATE FUNCTION nothing() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
CREATE EVENT TRIGGER late ON ddl_command_end WHEN TAG IN ('CREATE COLLATION') EXECUTE FUNCTION nothing();
"#;

#[test]
fn an_index_that_lies_is_red() {
    let server = PostgresServer::start();
    server.create("liar");
    server.sql("liar", LIAR);
    let taken = capture(&server, &["liar"]);
    let proof = Setup::local().prove(&taken);
    assert_eq!(not_passed(&proof).len(), 1, "{:#?}", not_passed(&proof));
    names(&proof, "amcheck", "public.liar", "whole", "invariant violated");
    let check = failed(&proof, "amcheck");
    assert_eq!((check.differences.len(), check.found.as_str()), (1, "1 B-tree index whole"));
}
