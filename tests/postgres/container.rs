//! A server in a container: its tools by the engine's exec, and the rows of large tables by its own socket.

use crate::bench::{capture, captured, full, midway, spec, table};
use crate::docker;
use crate::postgres::PostgresServer;
use crate::rows::{READ_HERE, TWO_LARGE, facts_by, limits, sections};
use lifeboat::place::{Command, ContainerPlace, InnerSocket, Place, PlaceError, Running};
use lifeboat::policy::model::{Fingerprint, PostgresSpec, Target};
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::postgres::PostgresSource;
use lifeboat::sources::postgres::facts::Facts;
use lifeboat::sources::{Source, SourceError};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A server in a container that asks everybody for a password, and publishes no port.
fn server() -> docker::TestContainer {
    docker::engine();
    let script = "B=/usr/lib/postgresql/15/bin; D=/var/lib/postgresql/d; printf 's3cret-from-file\n' >/tmp/pw; chmod 644 /tmp/pw; \
        mkdir -p /var/run/postgresql /var/lib/postgresql; chown 70:70 /var/run/postgresql /var/lib/postgresql; \
        as() { setpriv --reuid=70 --regid=70 --clear-groups \"$@\"; }; \
        as $B/initdb -N -A scram-sha-256 -U keeper --pwfile=/tmp/pw -E UTF8 --locale=C.UTF-8 -D $D >/dev/null; \
        exec setpriv --reuid=70 --regid=70 --clear-groups $B/postgres -D $D -F -c listen_addresses='' \
          -c unix_socket_directories=/var/run/postgresql -c dynamic_shared_memory_type=posix";
    let options = [
        "-e",
        "POSTGRES_USER=keeper",
        "-e",
        "POSTGRES_PASSWORD_FILE=/tmp/pw",
        "-e",
        "POSTGRES_DB=shop",
        "--network",
        "none",
    ];
    let container = docker::TestContainer::run(&options, docker::IMAGE, &["bash", "-ec", script]);
    let begin = Instant::now();
    while !docker::try_docker(["exec", &container.id, "pg_isready", "-q", "-h", "/var/run/postgresql"]).status.success()
    {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", docker::try_docker(["logs", &container.id]));
        std::thread::sleep(Duration::from_millis(100));
    }
    sql(&container, "postgres", "CREATE DATABASE shop");
    container
}

fn sql(container: &docker::TestContainer, database: &str, sql: &str) -> String {
    let connection = format!("host=/var/run/postgresql user=keeper password=s3cret-from-file dbname={database}");
    docker::docker([
        "exec",
        "-i",
        &container.id,
        "psql",
        "-XqAt",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        &connection,
        "-c",
        sql,
    ])
}

fn source_of(container: &docker::TestContainer) -> PostgresSource {
    let engine = docker::engine();
    let locate: Locate = Arc::new(move |target| {
        let Target::Container(name) = target else { panic!("{target:?}") };
        let place = ContainerPlace::named(&engine, name.clone());
        let env = place.resolve()?.env.into_iter().collect();
        Ok(Located { place: Arc::new(place), env })
    });
    source_at(container, locate)
}

fn source_at(container: &docker::TestContainer, locate: Locate) -> PostgresSource {
    source_with(container, locate, |_| {})
}

fn source_with(
    container: &docker::TestContainer,
    locate: Locate,
    change: impl FnOnce(&mut PostgresSpec),
) -> PostgresSource {
    let mut spec = PostgresSpec {
        target: Target::Container(container.name.clone()),
        jobs: 4,
        fingerprint: Fingerprint::Content,
        ..spec(String::new())
    };
    change(&mut spec);
    PostgresSource::new("db".parse().unwrap(), spec, Duration::from_secs(120), locate)
}

#[test]
fn a_server_in_a_container_with_its_own_environment() {
    let container = server();
    sql(
        &container,
        "shop",
        "CREATE TABLE items AS SELECT i, md5(i::text) || repeat('x', 200) AS t FROM generate_series(1, 50000) AS i",
    );
    let source = source_of(&container);
    source.probe(&Default::default()).unwrap();
    let (sink, result) = capture(&source);
    let facts: Facts = serde_json::from_value(result.unwrap_or_else(|e| panic!("{}", full(&e))).facts).unwrap();
    let d = &facts.databases[0];
    assert_eq!((facts.user.as_str(), d.name.as_str(), d.proved), ("keeper", "shop", true));
    assert_eq!(table(d, "public", "items").rows, Some(50_000));

    let server = PostgresServer::shared();
    server.sql("postgres", "CREATE ROLE keeper SUPERUSER");
    server.restore("from_container", &[sink.bytes("shop.dump")]);
    let mut again = spec(server.socket_url("postgres", "from_container"));
    again.fingerprint = Fingerprint::Content;
    let (_, again, _) = captured(again);
    assert_eq!(table(&again.databases[0], "public", "items").content, table(d, "public", "items").content);

    // Ended in the middle: neither the tool nor its session stays.
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'lifeboat:%'";
    let (_, result, took) = midway(&source, |bench| {
        assert_ne!(sql(&container, "postgres", sessions), "0");
        bench.cancel.raise(2);
    });
    assert!(matches!(result, Err(SourceError::Cancelled(_))), "{result:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    let begin = Instant::now();
    while sql(&container, "postgres", sessions) != "0" {
        assert!(begin.elapsed() < Duration::from_secs(20), "a backend goes on by itself");
        std::thread::sleep(Duration::from_millis(50));
    }
    let processes = docker::docker(["top", &container.id]);
    assert!(!processes.contains("pg_dump") && !processes.contains("psql"), "{processes}");

    // Its password is no longer the one that its environment tells.
    sql(&container, "postgres", "ALTER ROLE keeper PASSWORD 'an0ther'");
    let error = full(&capture(&source).1.unwrap_err());
    assert!(
        error.contains("password authentication failed for user \"keeper\" on container lifeboat-test-"),
        "{error}"
    );
    assert!(error.contains("POSTGRES_PASSWORD") && !error.contains("s3cret") && !error.contains("an0ther"), "{error}");

    docker::docker(["kill", &container.id]);
    let error = full(&capture(&source).1.unwrap_err());
    assert!(error.contains("is exited, not running"), "{error}");
}

/// Which archive wrote the rows of a table.
fn written_here(dump: &[u8]) -> bool {
    dump[..200].windows(9).any(|w| w == b"lifeboat ")
}

#[test]
fn rows_of_large_tables_come_by_its_socket() {
    let container = server();
    sql(&container, "shop", TWO_LARGE);
    let source = source_of(&container).with_limits(limits());
    let (sink, result) = capture(&source);
    let facts: Facts = serde_json::from_value(result.unwrap_or_else(|e| panic!("{}", full(&e))).facts).unwrap();
    assert_eq!(sections(&facts), READ_HERE);
    let d = &facts.databases[0];
    assert!(d.proved);
    let parts: Vec<&str> = d.parts.iter().map(|p| p.stream.as_str()).collect();
    let dumps: Vec<Vec<u8>> = parts.iter().map(|name| sink.bytes(name)).collect();
    let here: Vec<bool> = dumps.iter().map(|dump| written_here(dump)).collect();
    assert_eq!(here, [false, false, true, true, false], "{parts:?}");

    let host = PostgresServer::shared();
    host.sql("postgres", "DO $$ BEGIN CREATE ROLE keeper SUPERUSER; EXCEPTION WHEN duplicate_object THEN END $$");
    host.restore("by_its_socket", &dumps);
    let mut again = spec(host.socket_url("postgres", "by_its_socket"));
    again.fingerprint = Fingerprint::Content;
    let (_, again, _) = captured(again);
    for name in ["big", "second"] {
        let (a, b) = (table(d, "public", name), table(&again.databases[0], "public", name));
        assert_eq!((a.rows, &a.content), (b.rows, &b.content), "{name}");
        assert!(a.content.is_some());
    }

    // Where this process cannot look into the container, all goes through one exec.
    let located = |place: Arc<dyn Place>| -> Locate {
        let env = ContainerPlace::named(&docker::engine(), &container.name).resolve().unwrap().env;
        Arc::new(move |_| Ok(Located { place: place.clone(), env: env.iter().cloned().collect() }))
    };
    let place = ContainerPlace::named(&docker::engine(), &container.name);
    let place_of = || located(Arc::new(ContainerPlace::named(&docker::engine(), &container.name)));
    let by_exec = source_at(&container, located(Arc::new(Closed(place)))).with_limits(limits());
    let facts = facts_by(&by_exec);
    assert_eq!(sections(&facts), ["all"]);
    assert_eq!(table(&facts.databases[0], "public", "big").content, table(d, "public", "big").content);

    // With too few connections for several parts it is one, as it was before there were any.
    sql(
        &container,
        "shop",
        "CREATE ROLE few LOGIN PASSWORD 's3cret-from-file' CONNECTION LIMIT 4; GRANT pg_read_all_data TO few",
    );
    let few = |s: &mut PostgresSpec| s.user = Some("few".into());
    let at_most_four = source_with(&container, place_of(), few).with_limits(limits());
    assert_eq!(sections(&facts_by(&at_most_four)), ["all"]);
    sql(&container, "shop", "ALTER ROLE few CONNECTION LIMIT 6");
    assert_eq!(sections(&facts_by(&source_with(&container, place_of(), few).with_limits(limits()))), READ_HERE);

    // Its tools read as another role than they log in as.
    sql(
        &container,
        "shop",
        "CREATE ROLE other LOGIN PASSWORD 's3cret-from-file'; GRANT pg_read_all_data TO other; GRANT few TO other",
    );
    let roles = Arc::new(WithVariable(ContainerPlace::named(&docker::engine(), &container.name)));
    let as_role = source_with(&container, located(roles), |s| s.user = Some("other".into())).with_limits(limits());
    assert_eq!(sections(&facts_by(&as_role)), ["all"]);
}

/// A container whose tools are told a role.
struct WithVariable(ContainerPlace);

impl Place for WithVariable {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn start(&self, command: Command) -> Result<Box<dyn Running>, PlaceError> {
        self.0.start(command.env("PGOPTIONS", "-c role=few".to_owned()))
    }

    fn socket(&self, path: &Path) -> Option<InnerSocket> {
        self.0.socket(path)
    }
}

/// A container that nobody sees into.
struct Closed(ContainerPlace);

impl Place for Closed {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn start(&self, command: Command) -> Result<Box<dyn Running>, PlaceError> {
        self.0.start(command)
    }
}

#[test]
fn a_containers_paths_lead_nowhere_else() {
    let container = server();
    let place = ContainerPlace::named(&docker::engine(), &container.name);
    let links = "mkdir /links; cd /links; S=/var/run/postgresql/.s.PGSQL.5432; ln -s $S absolute; ln -s ../../../../..$S above; \
        ln -s /proc/1/root$S magic; ln -s /run/docker.sock outside; ln -s loop loop";
    place.output(Command::new(["bash", "-ec", links]), 1 << 10).unwrap();
    let found = |path: &str| place.socket(Path::new(path)).map(|found| std::fs::metadata(found.path()).unwrap().ino());
    let own = found("/var/run/postgresql/.s.PGSQL.5432");
    assert!(own.is_some());
    for path in
        ["/links/absolute", "/links/above", "/../../var/run/postgresql/.s.PGSQL.5432", "/links/../links/absolute"]
    {
        assert_eq!(found(path), own, "{path}");
    }
    assert!(Path::new("/run/docker.sock").exists(), "there is one on the host");
    for path in [
        "/links/magic",
        "/links/outside",
        "/run/docker.sock",
        "/links/loop",
        "/links/pipe",
        "/links",
        "/etc/passwd",
        "/none",
    ] {
        assert_eq!(found(path), None, "{path}");
    }
    let own = place.socket(Path::new("/var/run/postgresql/.s.PGSQL.5432")).unwrap();
    assert!(own.is_answered_inside(UnixStream::connect(own.path()).unwrap()));
    // A socket of the host that is mounted into it: whoever listens there is somebody else.
    let dir = tempfile::tempdir().unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let mounted = docker::TestContainer::idle(&["-v", &format!("{}:/given", dir.path().display())]);
    let lent = ContainerPlace::named(&docker::engine(), &mounted.name).socket(Path::new("/given/socket")).unwrap();
    assert!(!lent.is_answered_inside(UnixStream::connect(lent.path()).unwrap()));
    docker::docker(["kill", &container.id]);
    assert_eq!(found("/var/run/postgresql/.s.PGSQL.5432"), None);
}
