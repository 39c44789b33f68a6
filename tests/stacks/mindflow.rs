//! mindflow: Postgres, an API, and a web server whose certificates lie in a named volume, on a small machine.

use crate::docker::docker;
use crate::machine::{Machine, failed_checks, host, secret, source};
use crate::port::free_port;
use crate::project::Project;
use crate::world::Ran;
use chrono::{TimeDelta, Utc};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;

const TAG: &str = "v1.0.0-beta";
const PASSWORD: &str = "00112233445566778899aabbccddeeff";

struct Mindflow {
    project: Project,
    policy: String,
    port: u16,
    machine: Machine,
}

impl Mindflow {
    fn up() -> Self {
        let mindflow = Self::checked_out();
        let (project, machine) = (&mindflow.project, &mindflow.machine);
        machine.certificates("mindflow.example.org");
        project.compose(machine, &["up", "--no-start", "--build"]);
        mindflow.fill_caddy();
        project.compose(machine, &["up", "-d"]);
        for command in [&["alembic", "upgrade", "head"][..], &["python3", "seed.py"]] {
            project.compose(machine, &[&["exec", "-T", "api"], command].concat());
        }
        let answer = machine.is_well(&mindflow.health());
        assert_eq!(answer["version"], "1.0.0-beta", "{answer:#}");
        mindflow
    }

    /// The application's files, its policy, and nothing that runs.
    fn checked_out() -> Self {
        let machine = Machine::new("mindflow");
        let (name, port) = (machine.unique("mindflow"), free_port());
        machine.publish("mindflow", "app", TAG, &[("127.0.0.1:443:", format!("127.0.0.1:{port}:"))]);
        let project = Project::new(&name, &machine.checkout(&name), "", &[]);
        let mindflow = Self { project, policy: name, port, machine };
        mindflow.write_env(PASSWORD);
        mindflow.install();
        mindflow
    }

    fn health(&self) -> String {
        format!("https://localhost:{}/health", self.port)
    }

    fn write_env(&self, password: &str) {
        let key = "5c".repeat(32);
        let text = format!("DB_PASSWORD={password}\nENCRYPTION_KEY={key}\nJWT_SECRET={}\n", secret("jwt"));
        self.project.write(&self.machine, ".env", &text);
    }

    /// What the web server got from its authority, and keeps in its volumes.
    fn fill_caddy(&self) {
        let data = self.project.volume("caddy_data").join("caddy");
        let live = self.machine.path("etc/letsencrypt/live/mindflow.example.org");
        fs::create_dir_all(data.join("certificates")).unwrap();
        fs::create_dir_all(data.join("locks")).unwrap();
        for (from, to) in [("fullchain.pem", "crt"), ("privkey.pem", "key")] {
            fs::copy(live.join(from), data.join(format!("certificates/mindflow.example.org.{to}"))).unwrap();
        }
        fs::write(data.join("locks/issue.lock"), "now\n").unwrap();
        fs::write(self.project.volume("caddy_config").join("autosave.json"), "{}\n").unwrap();
    }

    fn install(&self) {
        let swaps = [
            ("/home/mindflow/app", self.project.root.to_str().unwrap().to_owned()),
            ("https://mindflow.example.org/health", self.health()),
            ("disk = \"/\"", "disk = \"/dev/shm\"".to_owned()),
        ];
        self.machine.install(&self.policy, "mindflow", &self.project.root, &swaps);
    }
}

#[test]
fn mindflow_the_restore_test_by_hand_is_a_drill() {
    let mindflow = Mindflow::up();
    let machine = &mindflow.machine;
    let id = machine.snapshot(&mindflow.policy, TAG);
    let shown = machine.json(&["show", &id, "-p", &mindflow.policy]);
    let facts = &source(&shown, "db")["facts"];
    assert_eq!((&facts["user"], &facts["superuser"]), (&json!("mindflow"), &json!(true)), "{facts:#}");
    let database = &facts["databases"][0];
    assert_eq!((&database["name"], &database["owner"]), (&json!("mindflow"), &json!("mindflow")));
    let rows = |name: &str| {
        let tables = database["tables"].as_array().unwrap();
        tables.iter().find(|t| t["name"] == name).unwrap_or_else(|| panic!("no {name} in {database:#}"))["rows"].clone()
    };
    assert_eq!((rows("notes"), rows("vault"), rows("alembic_version")), (json!(501), json!(1), json!(1)));
    let volumes = source(&shown, "caddy")["facts"]["volumes"].as_array().unwrap();
    let names: Vec<&str> = volumes.iter().map(|v| v["volume"].as_str().unwrap()).collect();
    assert_eq!(names, ["caddy_config", "caddy_data"]);
    let listed = machine.run(&["ls", &id, "caddy", "-r", "-p", &mindflow.policy]).exits(0);
    assert!(!listed.out.contains("issue.lock"), "{}", listed.out);
    listed.shows(&["caddy/certificates/mindflow.example.org.key", "autosave.json"]);

    let report = machine.drill(&mindflow.policy, &id);
    assert!(report["restored"].to_string().contains("tables"), "{report:#}");
    let checks = report["sources"].as_array().unwrap().iter().find(|s| s["name"] == "db").unwrap()["checks"].clone();
    assert!(checks.to_string().contains("alembic_version"), "the policy's own question is asked: {checks:#}");
    machine.is_well(&mindflow.health());
}

#[test]
fn mindflow_a_dump_that_fails_is_a_failed_snapshot_and_loud() {
    let mindflow = Mindflow::up();
    let (machine, project) = (&mindflow.machine, &mindflow.project);
    // A table whose file is gone: every other one can be read, and the dump cannot be whole.
    project.sql("postgres", "create table lost as select n from generate_series(1, 1000) n; checkpoint;");
    let file = project.sql("postgres", "select pg_relation_filepath('lost')");
    project.exec("postgres", &[], &["rm", &format!("/var/lib/postgresql/data/{file}")], "");
    project.compose(machine, &["restart", "-t", "5", "postgres"]);
    machine.is_well(&mindflow.health());

    let ran = machine.run(&["snapshot", "--tag", "bad", "-p", &mindflow.policy]).exits(3);
    ran.says(&["db", "lost"]);
    let shown = machine.json(&["show", "bad", "-p", &mindflow.policy]);
    assert_eq!(source(&shown, "db")["streams"], json!([]), "no file that somebody could take for a dump");
    let list = machine.json(&["list", "-p", &mindflow.policy]);
    assert_eq!(list["snapshots"][0]["outcome"], "partial", "{list:#}");
    let ran = machine.run(&["cat", "bad", "db", "-p", &mindflow.policy]);
    assert!(ran.code != 0 && ran.out.is_empty(), "{ran:#?}");
}

#[test]
fn mindflow_a_command_in_an_env_file_is_named_by_the_drill() {
    let mindflow = Mindflow::up();
    let (machine, project) = (&mindflow.machine, &mindflow.project);
    // What a quoted heredoc leaves behind. The containers still run with the old value.
    project.edit(machine, ".env", &format!("DB_PASSWORD={PASSWORD}"), "DB_PASSWORD=$(openssl rand -hex 16)");
    let id = machine.snapshot(&mindflow.policy, "heredoc");
    let report = machine.run(&["drill", &id, "--json", "-p", &mindflow.policy]).exits(1).json();
    let failed = failed_checks(&report);
    let names: Vec<&str> = failed.iter().map(|(_, c)| c["name"].as_str().unwrap()).collect();
    assert!(failed.iter().all(|(source, _)| source == "env"), "{failed:#?}");
    assert_eq!(names, ["literal command", "pattern"], "{failed:#?}");
    let said = failed[0].1.to_string();
    assert!(said.contains(".env:DB_PASSWORD") && said.contains("which nothing ever runs"), "{said}");
    // Compose takes the text for the password, as Lifeboat says that it would.
    project.compose(machine, &["up", "-d", "api"]);
    machine.is_unwell(&mindflow.health());
}

#[test]
fn mindflow_a_rollback_returns_code_env_schema_and_data_together_after_a_bad_migration() {
    let mindflow = Mindflow::up();
    let (machine, project) = (&mindflow.machine, &mindflow.project);
    machine.snapshot(&mindflow.policy, TAG);
    let (env, commit) = (project.read(".env"), project.git(machine, &["rev-parse", "HEAD"]));
    project.sql("postgres", "insert into notes (title, body) values ('late', 'a'), ('late', 'b'), ('late', 'c')");
    project.write(machine, ".env", &format!("{env}SUMMARIES=on\n"));
    machine.release("mindflow", "v2", "v1.1.0");
    let (ok, said) = project.deploy(machine);
    assert!(ok, "{said}");
    let answer = machine.is_unwell(&mindflow.health());
    assert!(answer.body.contains("the note is ''"), "the migration has lost what the note said: {answer:?}");

    let before = (project.state(), machine.tags(&mindflow.policy));
    let ran = machine.run(&["rollback", "--to", TAG, "--dry-run", "-p", &mindflow.policy]).exits(0);
    let first = ran.out.lines().next().unwrap_or_default();
    assert!(first.starts_with("Data written after ") && first.contains("notes +3"), "{}", ran.out);
    assert!(before == (project.state(), machine.tags(&mindflow.policy)), "a plan changes nothing");

    machine.rollback(&mindflow.policy, TAG, &[]).exits(0);
    assert_eq!(machine.is_well(&mindflow.health())["version"], "1.0.0-beta");
    assert_eq!(project.sql("postgres", "select count(*), count(body) from notes"), "501|501");
    assert_eq!(project.sql("postgres", "select version_num from alembic_version"), "0001");
    assert_eq!((project.read(".env"), project.git(machine, &["rev-parse", "HEAD"])), (env, commit));
    let safety = machine.tags(&mindflow.policy);
    let safety = safety.iter().find(|t| t.starts_with("pre-rollback-")).unwrap_or_else(|| panic!("{safety:?}"));

    // What was written meanwhile has left the live application, and is not lost.
    let shown = machine.json(&["show", safety, "-p", &mindflow.policy]);
    let tables = source(&shown, "db")["facts"]["databases"][0]["tables"].clone();
    let notes = tables.as_array().unwrap().iter().find(|t| t["name"] == "notes").unwrap();
    assert_eq!(notes["rows"], 504, "{notes:#}");
}

#[test]
fn mindflow_a_lost_volume_of_caddy_comes_back() {
    let mindflow = Mindflow::up();
    let (machine, project) = (&mindflow.machine, &mindflow.project);
    machine.snapshot(&mindflow.policy, TAG);
    let key = "caddy/certificates/mindflow.example.org.key";
    let before = fs::read(project.volume("caddy_data").join(key)).unwrap();
    project.compose(machine, &["rm", "-s", "-f", "caddy"]);
    docker(["volume", "rm", &format!("{}_caddy_data", project.name)]);
    project.compose(machine, &["up", "-d"]);
    machine.is_unwell(&mindflow.health());

    machine.rollback(&mindflow.policy, TAG, &[]).exits(0);
    machine.is_well(&mindflow.health());
    let data = project.volume("caddy_data");
    assert_eq!(fs::read(data.join(key)).unwrap(), before);
    assert!(!data.join("caddy/locks/issue.lock").exists(), "a lock of then is no lock of today");
}

#[test]
fn mindflow_after_down_v_all_comes_back_with_docker_compose_alone() {
    let mindflow = Mindflow::up();
    let (machine, project) = (&mindflow.machine, &mindflow.project);
    machine.snapshot(&mindflow.policy, TAG);
    project.compose(machine, &["down", "-v", "-t", "2"]);
    assert!(!project.has_volume("postgres_data") && !project.has_volume("caddy_data"));
    machine.is_unwell(&mindflow.health());

    // A server on which Compose is a program of its own, and no plugin of Docker's.
    let bin = machine.path("bin");
    fs::create_dir(&bin).unwrap();
    let docker = host("sh", &["-c", "command -v docker"]);
    let without = format!(
        "#!/bin/sh\n[ \"$1\" != compose ] || {{ echo \"docker: 'compose' is not a docker command.\" >&2; exit 1; }}\nexec {docker} \"$@\"\n"
    );
    fs::write(bin.join("docker"), without).unwrap();
    host("chmod", &["755", bin.join("docker").to_str().unwrap()]);
    symlink("/usr/local/lib/docker/cli-plugins/docker-compose", bin.join("docker-compose")).unwrap();
    let mut command = machine.command(&["rollback", "--to", TAG, "--yes", "-p", &mindflow.policy]);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    Ran::from(command.env("PATH", path).output().unwrap()).exits(0);
    assert_eq!(machine.is_well(&mindflow.health())["version"], "1.0.0-beta");
    assert_eq!(project.sql("postgres", "select count(*), count(body) from notes"), "501|501");
    assert_eq!(project.running(), ["api", "caddy", "postgres"]);
}

/// Snapshots at 02:00 for twelve days, under the shipped policy, without waiting for it.
#[test]
fn mindflow_seven_daily_snapshots_are_kept() {
    let mindflow = Mindflow::checked_out();
    let machine = &mindflow.machine;
    let file = machine.policy_file(&mindflow.policy);
    assert!(fs::read_to_string(file).unwrap().contains("snapshot = \"0 2 * * *\""));
    let last = Utc::now().date_naive().and_hms_opt(2, 0, 0).unwrap().and_utc() - TimeDelta::days(1);
    let times: Vec<_> = (0..12).rev().map(|day| last - TimeDelta::days(day)).collect();
    machine.snapshots_of_env(&mindflow.policy, &times);
    machine.run(&["prune", "-p", &mindflow.policy]).exits(0);
    let kept = machine.times(&mindflow.policy);
    // Beyond the week only what stands for a week or a month.
    assert!(kept.len() < 12 && times[5..].iter().all(|time| kept.contains(time)), "{kept:?}");
}

#[test]
fn mindflow_what_init_finds_is_proved_as_it_is() {
    let mindflow = Mindflow::up();
    let root = &mindflow.project.root;
    let covered = [("postgres", "database mindflow"), ("volume", "caddy_config, caddy_data"), ("env", ".env")];
    let (_, text) = crate::discovered::proved(&mindflow.machine, &mindflow.policy, root, &covered, &[]);
    assert!(!text.contains("postgres_data"), "the dump holds it: {text}");
    assert!(text.contains("required = [\"DB_PASSWORD\", \"ENCRYPTION_KEY\", \"JWT_SECRET\"]"), "{text}");
}
