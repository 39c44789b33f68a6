//! mindflow: Postgres, an API, and a web server whose certificates lie in a named volume, on a small machine.

use crate::machine::{Machine, failed_checks, free_port, secret, source};
use crate::project::Project;
use serde_json::json;
use std::fs;

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
        let machine = Machine::new("mindflow");
        let (name, port) = (machine.unique("mindflow"), free_port());
        machine.publish("mindflow", "app", TAG, &[("127.0.0.1:443:", format!("127.0.0.1:{port}:"))]);
        let project = Project::new(&name, &machine.checkout(&name), "", &[]);
        let mindflow = Self { project, policy: name, port, machine };
        mindflow.write_env(PASSWORD);
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

    fn notes(&self) -> String {
        self.project.sql("postgres", "select count(*), count(body) from notes")
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
fn mindflow_breaks() {
    let mindflow = Mindflow::up();
    let (machine, project) = (&mindflow.machine, &mindflow.project);
    assert_eq!(mindflow.notes(), "501|501");
    project.compose(machine, &["rm", "-s", "-f", "caddy"]);
    crate::docker::docker(["volume", "rm", &format!("{}_caddy_data", project.name)]);
    project.compose(machine, &["up", "-d"]);
    machine.is_unwell(&mindflow.health());
    mindflow.fill_caddy();
    project.compose(machine, &["up", "-d"]);
    machine.is_well(&mindflow.health());
    machine.release("mindflow", "v2", "v1.1.0");
    let (ok, said) = project.deploy(machine);
    assert!(ok, "{said}");
    machine.is_unwell(&mindflow.health());
}
