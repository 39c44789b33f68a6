//! Whole databases: exchanged, undone, repeated; and what must stay as it is.

use crate::bench::{Stage, capture, databases, name, of_server, spec, told};
use crate::docker::{IMAGE, TestContainer, TestVolume, docker, engine, try_docker};
use crate::postgres::PostgresServer;
use crate::taken::Taken;
use lifeboat::place::ContainerPlace;
use lifeboat::policy::model::Target;
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::postgres::PostgresSource;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ODD: &str = "orders \"2026\" $(id)";

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A server with an application's database and somebody else's.
fn shop(database: &str) -> PostgresServer {
    let server = PostgresServer::start_with(&[], &["-c", "max_prepared_transactions=5", "-c", "wal_level=logical"]);
    server.sql(
        "postgres",
        "CREATE ROLE lb_owner LOGIN PASSWORD 'then'; CREATE ROLE lb_reader; GRANT lb_reader TO lb_owner",
    );
    server.create(database);
    let quoted = quoted(database);
    server.sql(
        database,
        &format!(
            "CREATE EXTENSION citext; CREATE TABLE users (id serial PRIMARY KEY, email citext UNIQUE); \
             INSERT INTO users (email) SELECT 'u' || i FROM generate_series(1, 1000) AS i; ALTER TABLE users OWNER TO lb_owner; \
             GRANT SELECT ON users TO lb_reader; ALTER DATABASE {quoted} OWNER TO lb_owner; ALTER DATABASE {quoted} SET work_mem = '5MB'; \
             ALTER ROLE lb_reader IN DATABASE {quoted} SET statement_timeout = '7s'; GRANT CONNECT ON DATABASE {quoted} TO lb_reader; \
             COMMENT ON DATABASE {quoted} IS 'mine'; SELECT lo_from_bytea(0, 'x')"
        ),
    );
    server.create("elsewhere");
    server.sql("elsewhere", "CREATE TABLE t AS SELECT 1 AS i");
    server
}

#[test]
fn there_and_back_and_there_again_with_every_step_repeated() {
    let server = shop(ODD);
    let taken = capture(of_server(&server, &[ODD]));
    server.sql(
        ODD,
        "DELETE FROM users WHERE id > 10; CREATE TABLE newer (i int); INSERT INTO users (email) VALUES ('late')",
    );
    server.sql("postgres", "ALTER ROLE lb_owner PASSWORD 'now' CONNECTION LIMIT 9; DROP ROLE IF EXISTS lb_gone");
    let passwords = || server.sql("postgres", "SELECT rolname, rolpassword, rolconnlimit FROM pg_authid ORDER BY 1");
    let (oid, roles, before) = (
        server.sql(ODD, "SELECT oid FROM pg_database WHERE datname = current_database()"),
        passwords(),
        databases(&server),
    );
    let elsewhere = server.sql("elsewhere", "SELECT oid FROM pg_database WHERE datname = current_database()");
    let stage = Stage::new(of_server(&server, &[ODD]), &taken);
    let intent = stage.plan();
    assert_eq!(databases(&server), before, "a plan changes nothing");
    assert!(intent.lines[0].contains("is replaced; the one of today stays as"), "{intent:?}");
    assert!(
        intent
            .warnings
            .iter()
            .any(|w| w.contains("role \"lb_owner\" stays as it is") && w.contains("connection limit -1")),
        "{intent:?}"
    );
    let (new, old) = (name(&intent, "new"), name(&intent, "old"));
    assert_eq!(
        (new.as_str(), old.as_str()),
        (&*format!("{ODD}__lifeboat_new"), &*format!("{ODD}__lifeboat_old_20261119T020000Z"))
    );
    assert!(intent.room.iter().all(|r| r.bytes_free.is_some() && r.bytes_needed > 0), "{:?}", intent.room);

    // Undone before anything was done.
    stage.step("back", &intent);
    stage.step("discard_new", &intent);
    assert_eq!(databases(&server), before);
    stage.prepare(&intent);
    stage.prepare(&intent);
    assert_eq!(server.sql(ODD, "SELECT count(*) FROM users"), "11", "the live one goes on");
    stage.step("back", &intent);
    assert_eq!(server.sql(&new, "SELECT count(*) FROM users"), "1000");

    for round in 0..2 {
        // The application's pool, which connects again as fast as it can, and somebody in the middle of something.
        let mut busy =
            server.connected("psql", ODD).args(["-Xqc", "SELECT pg_sleep(60)"]).stderr(Stdio::null()).spawn().unwrap();
        let mut idle = server.connected("psql", ODD).args(["-Xq"]).stdin(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let begin = Instant::now();
        stage.step("switch", &intent);
        println!("switch took {:?} with psql and all", begin.elapsed());
        stage.step("switch", &intent);
        let _ = (busy.wait(), idle.kill(), idle.wait());
        stage.step("confirm", &intent);
        assert_eq!(server.sql(ODD, "SELECT count(*) FROM users"), "1000");
        assert_eq!(server.sql(&old, "SELECT count(*) FROM users"), "11", "the replaced one is whole");
        if round == 0 {
            stage.step("back", &intent);
            stage.step("back", &intent);
            assert_eq!(server.sql(ODD, "SELECT oid FROM pg_database WHERE datname = current_database()"), oid);
            assert_eq!(server.sql(ODD, "SELECT count(*) FROM users"), "11");
            assert!(told(&stage.try_step("confirm", &intent).unwrap_err()).contains("is the one of before"));
        }
    }
    let all = "SELECT current_setting('work_mem'), pg_get_userbyid(datdba), shobj_description(oid, 'pg_database'), \
        has_database_privilege('lb_reader', oid, 'CONNECT'), (SELECT count(*) FROM pg_largeobject_metadata), \
        (SELECT setconfig FROM pg_db_role_setting WHERE setdatabase = d.oid AND setrole <> 0), \
        (SELECT relacl FROM pg_class WHERE relname = 'users') FROM pg_database AS d WHERE datname = current_database()";
    let now = server.sql(ODD, all);
    assert_eq!(now, "5MB|lb_owner|mine|t|1|{statement_timeout=7s}|{lb_owner=arwdDxt/lb_owner,lb_reader=r/lb_owner}");
    assert_eq!(passwords(), roles, "no role was touched");
    assert_eq!(server.sql("elsewhere", "SELECT oid FROM pg_database WHERE datname = current_database()"), elsewhere);
    stage.step("discard_new", &intent);
    assert_eq!(server.sql(ODD, "SELECT count(*) FROM users"), "1000");
    stage.step("discard_old", &intent);
    stage.step("discard_old", &intent);
    assert_eq!(databases(&server), before);
    // Nothing is left to go back to, and it says so.
    assert!(told(&stage.try_step("back", &intent).unwrap_err()).contains("is not there any more"));
    assert_eq!(databases(&server), before);
}

#[test]
fn the_window_is_short_and_others_come_back() {
    let server = shop("shop");
    let taken = capture(of_server(&server, &["shop"]));
    let stage = Stage::new(of_server(&server, &["shop"]), &taken);
    let intent = stage.plan();
    stage.prepare(&intent);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let closed = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let (mut longest, mut since) = (Duration::ZERO, None::<Instant>);
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                let ok = server
                    .connected("psql", "shop")
                    .args(["-XqAtc", "SELECT 1"])
                    .stderr(Stdio::null())
                    .output()
                    .unwrap();
                match (ok.status.success(), since) {
                    (true, Some(begin)) => {
                        longest = longest.max(begin.elapsed());
                        since = None;
                    }
                    (false, None) => since = Some(Instant::now()),
                    _ => {}
                }
            }
            longest
        });
        std::thread::sleep(Duration::from_millis(300));
        stage.step("switch", &intent);
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        watching.join().unwrap()
    });
    println!("nobody could connect for {closed:?}");
    assert!(closed < Duration::from_secs(20), "{closed:?}");
    stage.step("confirm", &intent);
}

#[test]
fn roles_that_are_missing_come_back_and_the_others_stay() {
    let server = shop("shop");
    server.sql("postgres", "CREATE ROLE lb_app LOGIN PASSWORD 'secret' CONNECTION LIMIT 4; GRANT lb_reader TO lb_app; ALTER ROLE lb_app SET work_mem = '9MB'; COMMENT ON ROLE lb_app IS 'app'");
    server.sql("shop", "GRANT INSERT ON users TO lb_app");
    let taken = capture(of_server(&server, &["shop"]));
    let hash = server.sql("postgres", "SELECT rolpassword FROM pg_authid WHERE rolname = 'lb_app'");
    server.sql("shop", "DROP OWNED BY lb_app");
    server.sql("postgres", "DROP ROLE lb_app; REVOKE lb_reader FROM lb_owner");
    let stage = Stage::new(of_server(&server, &["shop"]), &taken);
    let intent = stage.plan();
    assert!(intent.lines.iter().any(|l| l.ends_with("are made: lb_app")), "{intent:?}");
    assert!(
        intent.warnings.iter().any(|w| w.contains("\"lb_owner\" is no member of \"lb_reader\" today")),
        "{intent:?}"
    );
    stage.prepare(&intent);
    let app = "SELECT rolpassword, rolconnlimit, rolconfig, shobj_description(oid, 'pg_authid'), \
        pg_has_role('lb_app', 'lb_reader', 'MEMBER') FROM pg_authid WHERE rolname = 'lb_app'"
        .replace("rolconfig", "(SELECT r.rolconfig FROM pg_roles AS r WHERE r.rolname = 'lb_app')");
    let app = app.as_str();
    assert_eq!(server.sql("postgres", app), format!("{hash}|4|{{work_mem=9MB}}|app|t"));
    // Somebody changed it meanwhile; it is not ours to change back.
    server.sql("postgres", "ALTER ROLE lb_app CONNECTION LIMIT 5");
    stage.prepare(&intent);
    assert!(server.sql("postgres", app).contains("|5|"));
    stage.step("switch", &intent);
    assert_eq!(server.sql("shop", "SELECT has_table_privilege('lb_app', 'users', 'INSERT')"), "t");
    assert_eq!(server.sql("postgres", "SELECT pg_has_role('lb_owner', 'lb_reader', 'MEMBER')"), "f");
    // A role once made is not dropped, whatever is undone.
    stage.step("back", &intent);
    stage.step("discard_new", &intent);
    assert!(server.sql("postgres", app).contains("|5|"));
}

#[test]
fn a_database_that_is_gone_is_made_and_can_be_taken_away_again() {
    let server = shop("shop");
    let taken = capture(of_server(&server, &["shop"]));
    server.sql("postgres", "DROP DATABASE shop");
    let before = databases(&server);
    let stage = Stage::new(of_server(&server, &["shop"]), &taken);
    let intent = stage.plan();
    assert!(intent.lines[0].contains("which is not there today, is made"), "{intent:?}");
    stage.prepare(&intent);
    for _ in 0..2 {
        stage.step("switch", &intent);
        stage.step("confirm", &intent);
        assert_eq!(server.sql("shop", "SELECT count(*) FROM users"), "1000");
        stage.step("back", &intent);
        stage.step("back", &intent);
    }
    stage.step("discard_new", &intent);
    assert_eq!(databases(&server), before);
}

#[test]
fn several_databases_are_exchanged_together_and_long_names_stay_apart() {
    let server = PostgresServer::start();
    let long = "ž".repeat(31);
    let names = [long.as_str(), "b", "it's \\"];
    for (i, name) in names.iter().enumerate() {
        server.create(name);
        server.sql(name, &format!("CREATE TABLE t AS SELECT generate_series(1, {}) AS i", i + 1));
    }
    let taken = capture(of_server(&server, &names));
    for name in names {
        server.sql(name, "DELETE FROM t");
    }
    let before = databases(&server);
    let stage = Stage::new(of_server(&server, &names), &taken);
    let intent = stage.plan();
    stage.prepare(&intent);
    stage.step("switch", &intent);
    stage.step("confirm", &intent);
    for (i, name) in names.iter().enumerate() {
        assert_eq!(server.sql(name, "SELECT count(*) FROM t"), (i + 1).to_string());
    }
    stage.step("back", &intent);
    for name in names {
        assert_eq!(server.sql(name, "SELECT count(*) FROM t"), "0");
    }
    stage.step("discard_new", &intent);
    assert_eq!(databases(&server), before);
}

#[test]
fn under_another_name_and_nothing_else() {
    let server = shop("shop");
    let taken = capture(of_server(&server, &["shop"]));
    server.sql("shop", "DELETE FROM users");
    let mut stage = Stage::new(of_server(&server, &["shop"]), &taken);
    stage.part.database_as = Some("shop \"after\"".into());
    let intent = stage.plan();
    stage.prepare(&intent);
    for step in ["switch", "confirm", "back", "discard_old"] {
        stage.step(step, &intent);
    }
    assert_eq!(server.sql("shop \"after\"", "SELECT count(*) FROM users"), "1000");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM users"), "0");
    assert!(stage.refusal().contains("there is a database \"shop \\\"after\\\"\" already"), "{}", stage.refusal());
    stage.step("discard_new", &intent);
    assert_eq!(databases(&server), "elsewhere\npostgres\nshop");
}

#[test]
fn without_room_it_is_dropped_first_and_there_is_no_way_back() {
    let server = shop("shop");
    let taken = capture(of_server(&server, &["shop"]));
    server.sql("shop", "DELETE FROM users");
    let mut stage = Stage::new(of_server(&server, &["shop"]), &taken);
    stage.part.replace = true;
    let intent = stage.plan();
    assert!(intent.warnings[0].contains("only the safety snapshot has it"), "{intent:?}");
    stage.step("back", &intent);
    stage.prepare(&intent);
    let oid = || server.sql("shop", "SELECT oid FROM pg_database WHERE datname = current_database()");
    let made = oid();
    assert_eq!(databases(&server), "elsewhere\npostgres\nshop");
    stage.prepare(&intent);
    assert_eq!(oid(), made, "what was made is not made again");
    stage.step("switch", &intent);
    stage.step("switch", &intent);
    stage.step("confirm", &intent);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM users"), "1000");
    // There is no way back, and what is there stays.
    stage.step("back", &intent);
    assert_eq!(oid(), made);
    stage.step("discard_new", &intent);
    stage.step("discard_old", &intent);
    assert_eq!(databases(&server), "elsewhere\npostgres\nshop");
}

#[test]
fn a_dump_that_does_not_load_changes_nothing_live() {
    let server = shop("shop");
    let taken = capture(of_server(&server, &["shop"]));
    let before = databases(&server);
    let mut half = taken.clone();
    let bytes = half.bytes("shop.dump");
    bytes.truncate(bytes.len() / 2);
    let mut fewer = taken.clone();
    fewer.facts["databases"][0]["tables"][0]["rows"] = 999.into();
    for (taken, why) in [(half, "the dump ends"), (fewer, "has 1000 rows, and the snapshot has 999")] {
        let stage = Stage::new(of_server(&server, &["shop"]), &taken);
        let intent = stage.plan();
        let error = told(&stage.try_prepare(&intent).unwrap_err());
        assert!(error.contains(why), "{error}");
        assert!(
            stage.try_step("switch", &intent).is_ok() || server.sql("shop", "SELECT count(*) FROM users") == "1000"
        );
        stage.step("back", &intent);
        stage.step("discard_new", &intent);
        assert_eq!(databases(&server), before);
    }
}

/// A server in a container that asks everybody for a password, and publishes no port.
fn in_container(volume: &TestVolume) -> TestContainer {
    engine();
    let script = "B=/usr/lib/postgresql/15/bin; D=/var/lib/postgresql/d; printf 's3cret' >/tmp/pw; chmod 644 /tmp/pw; \
        mkdir -p /var/run/postgresql /var/lib/postgresql; chown 70:70 /var/run/postgresql /var/lib/postgresql; \
        as() { setpriv --reuid=70 --regid=70 --clear-groups \"$@\"; }; \
        as $B/initdb -N -A scram-sha-256 -U keeper --pwfile=/tmp/pw -E UTF8 --locale=C.UTF-8 -D $D >/dev/null; \
        exec setpriv --reuid=70 --regid=70 --clear-groups $B/postgres -D $D -F -c listen_addresses='' \
          -c unix_socket_directories=/var/run/postgresql -c dynamic_shared_memory_type=posix";
    let mount = format!("{}:/var/lib/postgresql", volume.0);
    let options = [
        "-v",
        &mount,
        "-e",
        "POSTGRES_USER=keeper",
        "-e",
        "POSTGRES_PASSWORD=s3cret",
        "-e",
        "POSTGRES_DB=shop",
        "--network",
        "none",
    ];
    let container = TestContainer::run(&options, IMAGE, &["bash", "-ec", script]);
    let begin = Instant::now();
    while !try_docker(["exec", &container.id, "pg_isready", "-q", "-h", "/var/run/postgresql"]).status.success() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", try_docker(["logs", &container.id]));
        std::thread::sleep(Duration::from_millis(100));
    }
    sql(&container, "postgres", "CREATE DATABASE shop");
    container
}

fn sql(container: &TestContainer, database: &str, sql: &str) -> String {
    let connection = format!("host=/var/run/postgresql user=keeper password=s3cret dbname={database}");
    docker(["exec", "-i", &container.id, "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &connection, "-c", sql])
}

#[test]
fn in_a_container_without_a_published_port() {
    engine();
    let volume = TestVolume::new();
    let container = in_container(&volume);
    sql(
        &container,
        "shop",
        "CREATE TABLE items AS SELECT i, md5(i::text) || repeat('x', 200) AS t FROM generate_series(1, 50000) AS i",
    );
    let engine = engine();
    let locate: Locate = Arc::new(move |target| {
        let Target::Container(name) = target else { panic!("{target:?}") };
        let place = ContainerPlace::named(&engine, name.clone());
        let env = place.resolve()?.env.into_iter().collect();
        Ok(Located { place: Arc::new(place), env })
    });
    let spec = || spec(Target::Container(container.name.clone()), &["shop"]);
    let taken =
        Taken::of(&PostgresSource::new("db".parse().unwrap(), spec(), Duration::from_secs(120), locate.clone()));
    sql(&container, "shop", "DELETE FROM items");
    let stage = Stage::with(spec(), &taken, locate);
    let intent = stage.plan();
    assert!(intent.room.iter().all(|r| r.bytes_free.is_some()), "{:?}", intent.room);
    // The data lie in the volume, the dump in the container's own files.
    let device = |path: &str| std::fs::metadata(path).unwrap().dev();
    let data = device(&docker(["volume", "inspect", "-f", "{{.Mountpoint}}", &volume.0]));
    let own = device(&docker(["info", "-f", "{{.DockerRootDir}}"]));
    let devices: Vec<Option<u64>> = intent.room.iter().map(|r| r.device).collect();
    assert_eq!(devices, [Some(data), Some(own)], "{:?}", intent.room);
    let temporary = || docker(["exec", &container.id, "ls", "/tmp"]);
    let before = temporary();
    stage.prepare(&intent);
    assert_eq!(temporary(), before, "the dump was removed again");
    stage.step("switch", &intent);
    stage.step("confirm", &intent);
    assert_eq!(sql(&container, "shop", "SELECT count(*) FROM items"), "50000");
    stage.step("back", &intent);
    assert_eq!(sql(&container, "shop", "SELECT count(*) FROM items"), "0");
    stage.step("switch", &intent);
    stage.step("discard_old", &intent);
    let left = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE datname !~ '^template'";
    assert_eq!(sql(&container, "postgres", left), "postgres shop");
}
