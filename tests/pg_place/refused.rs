//! What stands against it is said before anything is done, all of it at once.

use crate::bench::{Stage, capture, databases, of_server, spec};
use crate::postgres::PostgresServer;
use lifeboat::policy::model::Target;
use serde_json::json;

#[test]
fn what_would_stay_with_the_replaced_database() {
    let server = PostgresServer::start_with(&[], &["-c", "max_prepared_transactions=5", "-c", "wal_level=logical"]);
    server.create("shop");
    server.sql("shop", "CREATE TABLE t (i int)");
    let taken = capture(of_server(&server, &["shop"]));
    server.sql("shop", "SELECT pg_create_logical_replication_slot('feed', 'pgoutput')");
    server.sql("shop", "CREATE SUBSCRIPTION sub CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)");
    // Last: making a slot waits for every transaction.
    server.sql("shop", "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'half'");
    let before = databases(&server);
    let stage = Stage::new(of_server(&server, &["shop"]), &taken);
    let why = stage.refusal();
    for part in ["prepared transaction \"half\"", "logical replication slot \"feed\"", "subscription \"sub\""] {
        assert!(why.contains(part), "{part}: {why}");
    }
    // Beside they do not matter.
    let mut beside = Stage::new(of_server(&server, &["shop"]), &taken);
    beside.part.database_as = Some("other".into());
    beside.plan();
    // Somebody else's do not either.
    server.create("mine");
    let mine = capture(of_server(&server, &["mine"]));
    Stage::new(of_server(&server, &["mine"]), &mine).plan();
    server.sql("shop", "ROLLBACK PREPARED 'half'; SELECT pg_drop_replication_slot('feed'); ALTER SUBSCRIPTION sub SET (slot_name = NONE); DROP SUBSCRIPTION sub");
    stage.plan();
    assert_eq!(databases(&server).replace("mine\n", ""), before);
}

#[test]
fn a_server_that_cannot_take_it() {
    let server = PostgresServer::start_with(&[], &["-c", "wal_level=replica", "-c", "hot_standby=on"]);
    server.create("shop");
    server.sql("shop", "CREATE TABLE t (i int)");
    let taken = capture(of_server(&server, &["shop"]));
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut taken = taken.clone();
        change(&mut taken.facts);
        Stage::new(of_server(&server, &["shop"]), &taken)
    };
    let why = with(&|f| f["server_version_num"] = 170_002.into()).refusal();
    assert!(why.contains("older than the dump's 17") && why.contains("upgrade the server"), "{why}");
    let why = with(&|f| f["pg_dump_version"] = "17.2".into()).refusal();
    assert!(why.contains("is older than the pg_dump 17.2"), "{why}");
    let extension = json!({ "name": "vector", "version": "0.5", "schema": "public" });
    let why = with(&|f| f["databases"][0]["extensions"].as_array_mut().unwrap().push(extension.clone())).refusal();
    assert!(why.contains("no extension \"vector\" (Debian: postgresql-15-pgvector)"), "{why}");
    let intent = with(&|f| f["server_version_num"] = 140_002.into()).plan();
    assert!(intent.warnings.iter().any(|w| w.contains("of PostgreSQL 14, and the server is 15")), "{intent:?}");
    let standby = server.standby();
    let why = Stage::new(of_server(&standby, &["shop"]), &taken).refusal();
    assert!(why.contains("the server is a standby"), "{why}");
    let mut two = Stage::new(of_server(&server, &["shop"]), &taken).tables(&["public.t"]);
    two.part.database_as = Some("x".into());
    assert!(two.refusal().contains("three different things"));
}

#[test]
fn a_user_who_may_not() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE ROLE lb_weak LOGIN; CREATE ROLE lb_owner; CREATE ROLE lb_gone; CREATE ROLE lb_able LOGIN CREATEDB CREATEROLE; GRANT lb_owner TO lb_able");
    server.create("shop");
    server.sql("shop", "ALTER DATABASE shop OWNER TO lb_owner; CREATE EXTENSION citext; CREATE TABLE t AS SELECT generate_series(1, 5) AS i; ALTER TABLE t OWNER TO lb_owner");
    let taken = capture(of_server(&server, &["shop"]));
    server.sql("postgres", "DROP ROLE lb_gone");
    let as_user = |user: &str| spec(Target::Url(server.socket_url(user, "postgres")), &["shop"]);
    let why = Stage::new(as_user("lb_weak"), &taken).refusal();
    for part in [
        "user \"lb_weak\" may not create databases",
        "may not create the missing roles lb_gone",
        "does not own database \"shop\"",
        "no member of role \"lb_owner\"",
        "name a superuser in the policy",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
    // Enough is enough: no superuser is needed for it.
    server.sql("shop", "DELETE FROM t");
    let stage = Stage::new(as_user("lb_able"), &taken);
    let intent = stage.plan();
    stage.prepare(&intent);
    stage.step("switch", &intent);
    stage.step("confirm", &intent);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM t"), "5");
    assert_eq!(server.sql("shop", "SELECT tableowner FROM pg_tables WHERE tablename = 't'"), "lb_owner");
    stage.step("back", &intent);
    stage.step("discard_new", &intent);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM t"), "0");
}
