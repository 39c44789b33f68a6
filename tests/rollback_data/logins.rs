//! Logins of the env files that a rollback leaves, tried at the real server.

use crate::bench::{Bench, told};
use crate::docker::{IMAGE, TestContainer, docker, engine, try_docker};
use crate::postgres::PostgresServer;
use crate::world::CANARY;
use lifeboat::sources::SourceError;
use lifeboat::sources::files::env::EnvFile;
use lifeboat::sources::postgres::{Login, check_logins};
use std::time::{Duration, Instant};

fn check(bench: &Bench, text: &str) -> Result<Vec<Login>, SourceError> {
    let files = [EnvFile { path: bench.app().join("backend/.env"), mode: 0o600, content: text.into() }];
    check_logins(bench.source("db"), &bench.policy.app, &bench.places, &files, &bench.cancel)
}

#[track_caller]
fn refused(bench: &Bench, text: &str, parts: &[&str]) {
    let error = check(bench, text).expect_err("it is refused");
    let said = format!("{} {error:?}", told(&error));
    for part in parts {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains(CANARY), "a password is told: {said}");
}

#[test]
fn a_server_of_this_host() {
    let server = PostgresServer::start_with(&["--auth-local=trust", "--auth-host=scram-sha-256"], &[]);
    server.create("shop");
    server.sql("shop", &format!("CREATE ROLE shop LOGIN PASSWORD '{CANARY}:@/'; CREATE ROLE other LOGIN PASSWORD 'x'"));
    let port = server.port;
    let url = format!("postgres://postgres@127.0.0.1:{port}/shop");
    let bench = Bench::new(&format!("[[source]]\nkind = \"postgres\"\nname = \"db\"\nurl = {url:?}\n"));
    let with = |password: &str| {
        format!("A=1\nDATABASE_URL=postgresql+asyncpg://shop:{password}@127.0.0.1:{port}/shop?ssl=disable\n")
    };
    let right = format!("{CANARY}%3A%40%2F");
    let found = check(&bench, &with(&right)).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].key.as_str(), found[0].role.as_str(), &found[0].note), ("DATABASE_URL", "shop", &None));
    refused(&bench, &with(CANARY), &["DATABASE_URL in backend/.env", "role \"shop\"", "--env live"]);
    refused(&bench, &with(CANARY).replace("//shop", "//nobody"), &["role \"nobody\""]);
    // Behind the password: a database that is not there is no matter of the password.
    let found = check(&bench, &with(&right).replace("/shop?", "/gone?")).unwrap();
    assert_eq!(found[0].note, None);
    // Put together from another key, as Compose does; somebody else's server is left alone.
    let parts = format!("PW={right}\nX=postgres://shop:${{PW}}@127.0.0.1:{port}/shop\nY=postgres://a:b@elsewhere/x\n");
    assert_eq!(check(&bench, &parts).unwrap().len(), 1);
    assert_eq!(check(&bench, "MODE=x\n").unwrap(), []);
    drop(server);
    let found = check(&bench, &with(&right)).unwrap();
    assert!(found[0].note.as_ref().is_some_and(|n| n.contains("Connection refused")), "{found:?}");
}

/// A server as the official image sets it up: its loopback address is trusted, others have to give a password.
fn contained(network: &str) -> TestContainer {
    engine();
    let script = format!(
        "B=/usr/lib/postgresql/15/bin; D=/var/lib/postgresql/d; printf '{CANARY}' >/tmp/pw; chmod 644 /tmp/pw; \
         mkdir -p /var/run/postgresql /var/lib/postgresql; chown 70:70 /var/run/postgresql /var/lib/postgresql; \
         as() {{ setpriv --reuid=70 --regid=70 --clear-groups \"$@\"; }}; \
         as $B/initdb -N -A trust -U shop --pwfile=/tmp/pw -E UTF8 --locale=C.UTF-8 -D $D >/dev/null; \
         echo 'host all all all scram-sha-256' >>$D/pg_hba.conf; \
         exec setpriv --reuid=70 --regid=70 --clear-groups $B/postgres -D $D -F -c listen_addresses='*' \
           -c unix_socket_directories=/var/run/postgresql -c dynamic_shared_memory_type=posix"
    );
    let options = ["-e", "POSTGRES_USER=shop", "-e", "POSTGRES_DB=postgres", "--network", network];
    let container = TestContainer::run(&options, IMAGE, &["bash", "-ec", &script]);
    let begin = Instant::now();
    while !try_docker(["exec", &container.id, "pg_isready", "-q", "-h", "/var/run/postgresql"]).status.success() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", try_docker(["logs", &container.id]));
        std::thread::sleep(Duration::from_millis(100));
    }
    container
}

#[test]
fn a_server_in_a_container_by_its_own_address() {
    let container = contained("bridge");
    let bench =
        Bench::new(&format!("[[source]]\nkind = \"postgres\"\nname = \"db\"\ncontainer = {:?}\n", container.name));
    let url = |password: &str| format!("DATABASE_URL=postgres://shop:{password}@{}:5432/postgres\n", container.name);
    let found = check(&bench, &url(CANARY)).unwrap();
    assert_eq!((found.len(), &found[0].note), (1, &None), "{found:?}");
    refused(&bench, &url(&format!("not-{CANARY}")), &["DATABASE_URL in backend/.env", "role \"shop\""]);
    // Rotated in the server: what was right is wrong by now.
    let sql = "ALTER ROLE shop PASSWORD 'rotated'";
    docker([
        "exec",
        &container.id,
        "psql",
        "-XqAt",
        "-h",
        "/var/run/postgresql",
        "-U",
        "shop",
        "-d",
        "postgres",
        "-c",
        sql,
    ]);
    refused(&bench, &url(CANARY), &["keep today's value"]);
    assert_eq!(check(&bench, &url("rotated")).unwrap()[0].note, None);
    // The host's own port 5432 is some other server.
    assert_eq!(check(&bench, "U=postgres://shop:x@localhost:5432/postgres\n").unwrap(), []);
}

#[test]
fn without_an_address_nothing_is_said() {
    let container = contained("none");
    let bench =
        Bench::new(&format!("[[source]]\nkind = \"postgres\"\nname = \"db\"\ncontainer = {:?}\n", container.name));
    let found = check(&bench, &format!("U=postgres://shop:{CANARY}@{}/postgres\n", container.name)).unwrap();
    assert!(found[0].note.as_ref().is_some_and(|n| n.contains("not reached by TCP")), "{found:?}");
    assert!(!format!("{found:?}").contains(CANARY));
}

#[test]
fn logins_under_keys_of_their_own() {
    let server = PostgresServer::start_with(&["--auth-local=trust", "--auth-host=scram-sha-256"], &[]);
    server.create("shop");
    server
        .sql("shop", &format!("CREATE ROLE shop LOGIN PASSWORD '{CANARY}-now'; CREATE ROLE other LOGIN PASSWORD 'x'"));
    let port = server.port;
    let url = server.socket_url("postgres", "shop");
    let bench = Bench::new(&format!("[[source]]\nkind = \"postgres\"\nname = \"db\"\nurl = {url:?}\n"));
    let (now, then) = (format!("{CANARY}-now"), format!("{CANARY}-then"));
    // Named whole: as good as a URL, whatever is there now.
    let named = |password: &str| {
        format!("DB_HOST=127.0.0.1\nDB_PORT={port}\nDB_USER=shop\nDB_PASSWORD={password}\nDB_NAME=shop\n")
    };
    let found = check(&bench, &named(&now)).unwrap();
    assert_eq!((found.len(), found[0].key.as_str(), &found[0].note), (1, "DB_PASSWORD", &None));
    refused(&bench, &named(&then), &["DB_PASSWORD in backend/.env", "role \"shop\"", "--env live"]);
    assert_eq!(check(&bench, &named(&then).replace("127.0.0.1", "elsewhere")).unwrap(), []);
    let pg = |password: &str| format!("PGHOST=localhost:{port}\nPGUSER=shop\nPGPASSWORD={password}\nPGDATABASE=shop\n");
    refused(&bench, &pg(&then), &["PGPASSWORD"]);
    // Without a host or a role, the value of today tells whose it is.
    let today = |text: &str| {
        std::fs::create_dir_all(bench.app().join("backend")).unwrap();
        std::fs::write(bench.app().join("backend/.env"), text).unwrap();
    };
    let lone = |password: &str| format!("DB_PASSWORD={password}\nSMTP_PASSWORD={password}\n");
    assert_eq!(check(&bench, &lone(&then)).unwrap(), [], "nothing says that it is of this server");
    today(&lone("somewhere-else"));
    assert_eq!(check(&bench, &lone(&then)).unwrap(), [], "today's value opens nothing here");
    today(&lone(&now));
    refused(&bench, &lone(&then), &["DB_PASSWORD", "role \"shop\""]);
    assert_eq!(check(&bench, &lone(&now)).unwrap(), [], "nothing changes");
    today(&format!("POSTGRES_USER=shop\nPOSTGRES_PASSWORD={now}\n"));
    refused(&bench, &format!("POSTGRES_USER=shop\nPOSTGRES_PASSWORD={then}\n"), &["POSTGRES_PASSWORD", "\"shop\""]);
    server.sql("shop", &format!("ALTER ROLE shop PASSWORD '{then}'"));
    let found = check(&bench, &named(&then)).unwrap();
    assert_eq!((found.len(), &found[0].note), (1, &None));
}
