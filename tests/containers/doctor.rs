//! `init`, and `doctor` against a real project: what no source captures, what has gone, and what another backup is worth.

use crate::docker::{IMAGE, TestProject, engine, try_docker, unique};
use crate::stack::{ORDERS, Pins, Stack, git, password, pins};
use crate::world::Ran;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Details of the findings of one check that are not well, with their hints.
fn unwell(json: &Value, check: &str) -> Vec<String> {
    let findings = json["policies"][0]["findings"].as_array().unwrap_or_else(|| panic!("{json:#}"));
    let of = findings.iter().filter(|f| f["check"] == check && f["verdict"] != "ok");
    of.map(|f| {
        assert!(f["why"].is_string() && f["hint"].is_string() || check == "compare", "why and a way out: {f}");
        format!("{}: {}", f["verdict"].as_str().unwrap(), f["detail"].as_str().unwrap())
    })
    .collect()
}

fn has(found: &[String], verdict: &str, part: &str) -> bool {
    found.iter().any(|f| f.starts_with(verdict) && f.contains(part))
}

#[test]
fn what_no_source_captures_is_said_and_what_init_writes_leaves_nothing() {
    let stack = Stack::up();
    // The policy names nothing but what stands by default.
    let json = stack.json(&["doctor"]);
    assert_eq!(json["exit_code"], 1, "{json:#}");
    let found = unwell(&json, "coverage");
    for part in ["PostgreSQL in service \"db\": database shop", "Redis in service \"cache\"", "volume storage"] {
        assert!(has(&found, "problem", part), "{part}: {found:#?}");
    }
    assert!(
        !found.iter().any(|f| f.contains("pgdata") || f.contains("redisdata") || f.contains("nginx")),
        "{found:#?}"
    );

    // What `init` writes by itself captures all of it, and is proved unedited.
    fs::remove_file(stack.policy_file()).unwrap();
    let (app, repository) = (stack.app(), stack.path("repository"));
    let args = ["init", app.to_str().unwrap(), "--name", &stack.policy, "--repository", repository.to_str().unwrap()];
    let ran = stack.run(&args).exits(0).shows(&["Covered", "database shop", "volume storage", "snapshot --drill"]);
    assert!(!ran.out.contains(crate::world::CANARY), "{}", ran.out);
    let text = fs::read_to_string(stack.policy_file()).unwrap();
    assert!(!text.contains(crate::world::CANARY) && text.contains("password_from = \".env:REDIS_PASSWORD\""), "{text}");
    let proof = stack.json(&["snapshot", "--drill"]);
    assert!(proof["exit_code"] == 0 && proof["drill"]["outcome"] == "passed", "{proof:#}\n{text}");
    let json = stack.json(&["doctor"]);
    for check in ["coverage", "source", "drill", "pins", "versions", "transactions", "permissions"] {
        assert_eq!(unwell(&json, check), Vec::<String>::new(), "{json:#}");
    }

    // A database more, an image less, a password that is not the server's.
    stack.sql("postgres", "create database reports");
    let pin = pins(&stack.policy).into_iter().find(|p| p.contains("-api:")).unwrap();
    try_docker(["rmi", &pin]);
    let env = app.join(".env");
    let was = fs::read_to_string(&env).unwrap();
    fs::write(&env, was.replace(&password("redis"), "another")).unwrap();
    let json = stack.json(&["doctor"]);
    assert!(has(&unwell(&json, "coverage"), "problem", "database reports"), "{json:#}");
    assert!(has(&unwell(&json, "pins"), "warning", "api"), "{json:#}");
    assert!(has(&unwell(&json, "source"), "problem", "cache"), "{json:#}");
    assert!(!json.to_string().contains(crate::world::CANARY), "{json:#}");
}

#[test]
fn another_backups_newest_dump_is_tried() {
    let stack = Stack::up();
    stack.add_to_policy("[[source]]\nkind = \"postgres\"\nname = \"db\"\nservice = \"db\"\n");
    let dir = stack.path("dumps");
    fs::create_dir(&dir).unwrap();
    let folder = dir.to_str().unwrap().to_owned();
    let compare = |name: &str, bytes: &[u8]| {
        fs::write(dir.join(name), bytes).unwrap();
        let json = stack.json(&["doctor", "--compare", &folder]);
        fs::remove_file(dir.join(name)).unwrap();
        (json["exit_code"].as_i64().unwrap(), unwell(&json, "compare"), json)
    };
    let dump = |options: &[&str]| {
        let all: Vec<&str> = ["pg_dump", "-U", "keeper", "-d", "shop"].iter().chain(options).copied().collect();
        let container = stack.container("db");
        let mut command = std::process::Command::new("docker");
        command.args(["exec", "-e", "PGPASSWORD"]).env("PGPASSWORD", password("db")).arg(container).args(all);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let json = stack.json(&["doctor", "--compare", &folder]);
    assert!(has(&unwell(&json, "compare"), "problem", "there is no dump"), "{json:#}");

    // Whole ones, in each form: nothing but the roles, which no dump of a database holds.
    let plain = dump(&[]);
    for (name, bytes) in [("shop.sql", plain.clone()), ("shop.sql.gz", gzip(&plain)), ("shop.dump", dump(&["-Fc"]))] {
        let (code, found, json) = compare(name, &bytes);
        assert_eq!(code, 0, "{json:#}");
        assert!(found.len() == 1 && has(&found, "warning", "holds no roles"), "{found:#?}");
    }

    // What a shell leaves behind when pg_dump fails, and a file that ends early.
    let (code, found, _) = compare("shop.sql", b"");
    assert!(code == 1 && has(&found, "problem", "1 of 1 dumps are empty files: shop.sql"), "{found:#?}");
    let cut = gzip(&plain);
    let (code, found, _) = compare("shop.sql.gz", &cut[..cut.len() / 2]);
    assert!(code == 1 && has(&found, "problem", "cannot be unpacked"), "{found:#?}");
    let (code, found, _) = compare("shop.sql", &plain[..plain.len() / 2]);
    assert!(code == 1 && has(&found, "problem", "does not restore"), "{found:#?}");
    // A command for psql is never run.
    let mut hostile = plain.clone();
    hostile.extend_from_slice(b"\n\\! touch /tmp/lifeboat-was-here\n");
    let (code, found, _) = compare("shop.sql", &hostile);
    assert!(code == 1 && has(&found, "problem", "command for psql"), "{found:#?}");
    assert!(!Path::new("/tmp/lifeboat-was-here").exists());

    // One that lacks a table, and one that is older than the newest orders.
    let (code, found, _) = compare("shop.sql", &dump(&["-T", "public.odd*"]));
    assert!(code == 1 && has(&found, "problem", "odd "), "{found:#?}");
    let old = dump(&[]);
    stack.sql("shop", "insert into orders (customer) values ('new')");
    let (code, found, _) = compare("shop.sql", &old);
    assert!(code == 0 && has(&found, "warning", &format!("{ORDERS}")), "{found:#?}");
}

const ODD: &str = r#"
x-sleeps: &sleeps
  image: IMAGE
  command: ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"]
services:
  api:
    <<: *sleeps
    volumes: ["./uploads:/srv/uploads", "./conf:/srv/conf", "DATA:/srv/data"]
  worker:
    <<: *sleeps
    profiles: [jobs]
    volumes: ["results:/srv/results"]
  once:
    <<: *sleeps
    profiles: [tools]
    volumes: [{type: volume, source: reports, target: /srv/reports}]
volumes: {results: {}, reports: {}}
"#;

/// Volumes of services without a container, what git holds only to have the folder there, what lies beside the folder; and
/// a policy that takes a part of it.
#[test]
fn what_no_container_shows_and_what_a_source_takes_in_part_is_said() {
    engine();
    let dir = tempfile::Builder::new().prefix("lifeboat-odd-").tempdir().unwrap();
    let (app, data) = (dir.path().join("app"), dir.path().join("var-lib-shop"));
    for folder in ["app/uploads", "app/conf", "var-lib-shop/a", "var-lib-shop/b"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    for (file, text) in [
        ("app/uploads/.gitkeep", ""),
        ("app/conf/shop.conf", "x\n"),
        ("var-lib-shop/a/1", "1"),
        ("var-lib-shop/b/2", "2"),
    ] {
        fs::write(dir.path().join(file), text).unwrap();
    }
    let compose = ODD.replace("IMAGE", IMAGE).replace("DATA", data.to_str().unwrap());
    fs::write(app.join("compose.yaml"), compose).unwrap();
    git(&app, &["init", "-q", "-b", "main"]);
    git(&app, &["add", "."]);
    git(&app, &["commit", "-q", "-m", "odd"]);
    let name = unique("lb-odd");
    let mut project = TestProject::up(&app, &name, &[]);
    let _pins = Pins(name.clone());
    // The worker has run once: its volume is there, its container is not.
    project.arguments = vec!["--profile".into(), "jobs".into()];
    project.compose(&["create", "worker"]);
    project.compose(&["rm", "-f", "worker"]);
    project.arguments = vec!["--profile".into(), "*".into()];

    let run = |args: &[&str]| -> Ran {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.arg("--config-dir").arg(dir.path().join("config")).arg("--state-dir").arg(dir.path().join("state"));
        command.args(args).output().unwrap().into()
    };
    let json = run(&["init", app.to_str().unwrap(), "--name", &name, "--json"]).exits(0).json();
    let policy = dir.path().join(format!("config/policies/{name}.toml"));
    let text = fs::read_to_string(&policy).unwrap();
    for part in ["volumes = [\"results\"]", "paths = [\"uploads\"]", &format!("paths = [{data:?}]")] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert_eq!(json["in_git"], serde_json::json!([app.join("conf")]), "{json:#}");
    let never = json["not_covered"].as_array().unwrap().iter().find(|u| u["what"] == "volume reports of service once");
    assert!(never.is_some_and(|u| u["weight"] == "note"), "{json:#}");
    assert!(json["to_run"].as_str().is_some_and(|c| c.ends_with(" serve")), "{json:#}");
    let coverage = || unwell(&run(&["doctor", "--json"]).json(), "coverage");
    assert_eq!(coverage(), Vec::<String>::new());
    run(&["snapshot", "--json"]).exits(0);

    // A part of a folder, a volume that is made meanwhile, and git switched off.
    fs::write(app.join("uploads/one.jpg"), "x").unwrap();
    let all = format!("paths = [{data:?}]");
    let git_off = "\n[[source]]\nkind = \"git\"\nenabled = false\n";
    fs::write(&policy, text.replace(&all, &format!("paths = [{:?}]", data.join("a"))) + git_off).unwrap();
    project.compose(&["create", "once"]);
    let found = coverage();
    let part =
        format!("no source captures {}: of {} a source names only a part", data.join("b").display(), data.display());
    assert!(has(&found, "problem", &part), "{found:#?}");
    assert!(has(&found, "problem", "no source captures volume reports"), "{found:#?}");
    assert!(has(&found, "problem", &format!("{}: git keeps it", app.join("conf").display())), "{found:#?}");
    assert_eq!(found.len(), 3, "{found:#?}");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = std::process::Command::new("gzip")
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(bytes));
        child.wait_with_output().unwrap().stdout
    })
}
