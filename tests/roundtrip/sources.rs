//! Servers and trees that know what their files mean: what is restored is loaded into fresh servers and captured again,
//! and the facts must be the same.

use crate::lab::{Lab, below, files};
use crate::postgres::PostgresServer;
use crate::redis::RedisServer;
use crate::tree::{assert_same, records, run};
use crate::{names, sha256};
use lifeboat::ops::browse::{SourceDetail, show};
use lifeboat::ops::restore::RestoreOutcome;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

fn git(dir: &Path, arguments: &[&str]) -> String {
    let settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"];
    let output = Command::new("git").current_dir(dir).args(settings).args(arguments).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The databases: odd names, odd values, a large object, a sequence that has moved, an owner of its own.
fn fill_postgres(server: &PostgresServer) {
    server.sql("postgres", "CREATE ROLE \"app owner\" LOGIN PASSWORD 'geheim'; CREATE ROLE readers");
    for name in ["shop", "$(id)", "a b\"c"] {
        server.create(name);
        server.sql(
            name,
            "CREATE SCHEMA \"Odd schema\" AUTHORIZATION \"app owner\";
             CREATE TABLE \"Odd schema\".t (id bigserial PRIMARY KEY, text text, bytes bytea, at timestamptz);
             INSERT INTO \"Odd schema\".t (text, bytes, at)
                 SELECT 'žluť ' || n || E'\\t\\n', decode(md5(n::text), 'hex'), '2026-11-19 02:00:00.123456+00'::timestamptz
                 FROM generate_series(1, 5000) n;
             CREATE VIEW v AS SELECT count(*) FROM \"Odd schema\".t;
             CREATE INDEX ON \"Odd schema\".t (text);
             GRANT SELECT ON \"Odd schema\".t TO readers;
             CREATE TABLE empty ();
             SELECT lo_from_bytea(0, 'a large object');",
        );
    }
}

fn fill_redis(server: &RedisServer) {
    let mut commands = String::new();
    for n in 0..3_000 {
        commands.push_str(&format!("SET key:{n} value:{n}\r\nRPUSH list a{n} b{n}\r\n"));
    }
    commands.push_str("SELECT 3\r\nHSET hash field value\r\nZADD set 1.5 member\r\nSET later x EX 100000\r\n");
    server.pipe(&commands);
    server.cli(&["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function() return 1 end)"]);
}

fn postgres_section(url: &str) -> String {
    format!(
        "[[source]]\nkind = \"postgres\"\nname = \"db\"\nurl = {url:?}\ndatabases = [\"*\"]\nfingerprint = \"content\"\n"
    )
}

fn redis_section(url: &str) -> String {
    format!("[[source]]\nkind = \"redis\"\nname = \"queue\"\nurl = {url:?}\n")
}

/// Files as they lie on a server: env files, certificates as certbot leaves them, nginx, and the application's checkout.
fn lay_out(lab: &Lab) -> Vec<String> {
    let (tls, nginx, app) = (lab.path("letsencrypt"), lab.path("nginx"), lab.path("app"));
    fs::write(app.join(".env"), "DB_PASSWORD=geheim\nODD='$(openssl rand)'\n").unwrap();
    crate::tree::set_mode(&app.join(".env"), 0o640);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/certificates.sh");
    run(&["bash", script.to_str().unwrap(), tls.to_str().unwrap(), "shop.example.org"]);
    fs::create_dir_all(nginx.join("conf.d")).unwrap();
    fs::write(nginx.join("nginx.conf"), format!("http {{ include {}/conf.d/*.conf; }}\n", nginx.display())).unwrap();
    let server = "server { listen 443 ssl; server_name shop.example.org; proxy_pass http://127.0.0.1:8000; }\n";
    fs::write(nginx.join("conf.d/shop.conf"), server).unwrap();

    fs::write(app.join(".gitignore"), ".env\n").unwrap();
    fs::write(app.join("code.py"), "print('one')\n").unwrap();
    git(&app, &["init", "-q"]);
    git(&app, &["add", "."]);
    git(&app, &["commit", "-q", "-m", "first"]);
    git(&app, &["tag", "v1"]);
    fs::write(app.join("code.py"), "print('edited on the server')\n").unwrap();
    vec![
        "[[source]]\nkind = \"env\"\nname = \"env\"\nrequired = [\"DB_PASSWORD\"]\n".to_owned(),
        format!("[[source]]\nkind = \"certificates\"\nname = \"tls\"\npaths = [{tls:?}]\n"),
        format!("[[source]]\nkind = \"nginx\"\nname = \"nginx\"\npaths = [{nginx:?}]\n"),
        "[[source]]\nkind = \"git\"\nname = \"git\"\n".to_owned(),
    ]
}

fn details(lab: &Lab, id: &str) -> Vec<SourceDetail> {
    show(&lab.access(), id, &lab.run()).unwrap().sources.unwrap()
}

fn facts(details: &[SourceDetail], name: &str) -> Value {
    details.iter().find(|s| s.name.as_str() == name).unwrap().facts.clone()
}

/// What must be the same of a database wherever it is loaded: not sizes on disk, not the moment.
fn portable(database: &Value) -> Value {
    let pick = |list: &Value, fields: &[&str]| -> Vec<Value> {
        let element = |e: &Value| fields.iter().map(|f| ((*f).to_owned(), e[*f].clone())).collect();
        list.as_array().unwrap().iter().map(|e| Value::Object(element(e))).collect()
    };
    json!({
        "tables": pick(&database["tables"], &["schema", "name", "owner", "kind", "rows", "content"]),
        "sequences": pick(&database["sequences"], &["schema", "name", "owner", "last_value", "is_called"]),
        "schemas": database["schemas"],
        "extensions": database["extensions"],
        "large_objects": database["large_objects"],
        "counts": database["counts"],
    })
}

#[test]
fn every_source_comes_back_byte_for_byte_and_fact_for_fact() {
    let lab = Lab::new();
    let (postgres, redis) = (PostgresServer::start(), RedisServer::start());
    fill_postgres(&postgres);
    fill_redis(&redis);
    let mut sections = lay_out(&lab);
    let data = lab.path("uploads");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("photo"), crate::noise(9, 300_000)).unwrap();
    sections.push(files("uploads", &[&data]));
    sections.push(postgres_section(&postgres.socket_url("postgres", "shop")));
    sections.push(redis_section(&redis.url()));
    let id = lab.snapshot(&lab.sources(&sections), &[]);
    let digest = redis.cli(&["DEBUG", "DIGEST"]);
    let was = details(&lab, &id);

    let (into, report) = lab.restore(&id, "out");
    // Byte for byte: every stream that is no tree, by the SHA-256 that was taken when it was captured.
    let mut dumps = 0;
    for source in &was {
        for stream in source.streams.iter().filter(|s| s.sha256.is_some()) {
            let bytes = fs::read(into.join(source.name.as_str()).join(stream.name.as_str())).unwrap();
            assert_eq!(Some(sha256(&bytes)), stream.sha256, "{}:{}", source.name, stream.name);
            dumps += 1;
        }
    }
    assert!(dumps >= 7, "{dumps}");
    assert!(report.sources.iter().all(|s| s.outcome == RestoreOutcome::Restored && !s.is_inexact()), "{report:#?}");
    for (name, path) in [("tls", lab.path("letsencrypt")), ("nginx", lab.path("nginx")), ("uploads", data)] {
        assert_same(&records(&path), &records(&below(&into, name, &path)));
    }
    let env = lab.path("app/.env");
    assert_eq!(fs::read(below(&into, "env", &env)).unwrap(), fs::read(&env).unwrap());

    load_postgres(&lab, &into, &facts(&was, "db"));
    load_redis(&lab, &into, &facts(&was, "queue"), &digest);
    clone_git(&lab, &into, &facts(&was, "git"));
}

fn load_postgres(lab: &Lab, into: &Path, was: &Value) {
    let fresh = PostgresServer::start();
    let globals = fs::read_to_string(into.join("db").join(was["globals"]["stream"].as_str().unwrap())).unwrap();
    // The fresh server has its own superuser already.
    let roles: Vec<&str> = globals.lines().filter(|l| *l != "CREATE ROLE postgres;").collect();
    fresh.sql("postgres", &roles.join("\n"));
    let databases = was["databases"].as_array().unwrap();
    assert!(databases.len() >= 3);
    for database in databases.iter().filter(|d| d["name"] != "postgres") {
        let parts = database["parts"].as_array().unwrap();
        let dumps = parts.iter().map(|p| fs::read(into.join("db").join(p["stream"].as_str().unwrap())).unwrap());
        fresh.restore(database["name"].as_str().unwrap(), &dumps.collect::<Vec<_>>());
    }
    let again = lab.snapshot(&lab.sources(&[postgres_section(&fresh.socket_url("postgres", "shop"))]), &[]);
    let is = facts(&details(lab, &again), "db");
    for (was, is) in databases.iter().zip(is["databases"].as_array().unwrap()) {
        assert_eq!(was["name"], is["name"]);
        assert_eq!(portable(was), portable(is), "{}", was["name"]);
    }
    assert_eq!(was["roles"], is["roles"]);
}

fn load_redis(lab: &Lab, into: &Path, was: &Value, digest: &str) {
    let folder = tempfile::Builder::new().prefix("lifeboat-redis-").tempdir().unwrap();
    fs::copy(into.join("queue").join(was["stream"].as_str().unwrap()), folder.path().join("dump.rdb")).unwrap();
    let fresh = RedisServer::start_in(folder, &[]);
    assert_eq!(fresh.cli(&["DEBUG", "DIGEST"]), digest);
    let again = lab.snapshot(&lab.sources(&[redis_section(&fresh.url())]), &[]);
    let is = facts(&details(lab, &again), "queue");
    for fact in ["databases", "functions", "version", "rdb_version"] {
        assert_eq!(was[fact], is[fact], "{fact}");
    }
    assert!(was["databases"].as_array().unwrap().len() == 2 && was["functions"] == 1, "{was:#}");
}

fn clone_git(lab: &Lab, into: &Path, was: &Value) {
    let stream = |name: &str| into.join("git").join(was[name]["stream"].as_str().unwrap());
    let clone = lab.path("clone");
    git(&lab.root, &["clone", "-q", stream("bundle").to_str().unwrap(), clone.to_str().unwrap()]);
    assert_eq!(git(&clone, &["rev-parse", "HEAD"]).trim(), was["head"]["commit"]);
    git(&clone, &["apply", stream("edits").to_str().unwrap()]);
    assert_eq!(fs::read(clone.join("code.py")).unwrap(), fs::read(lab.path("app/code.py")).unwrap());
    let mut restored: Vec<String> = names(&into.join("git"));
    restored.retain(|n| ![stream("bundle"), stream("edits")].contains(&into.join("git").join(n)));
    assert!(restored.is_empty(), "{restored:?}");
}
