//! masstock: a queue in Redis with a password and an append-only file, a worker, two nginx, a frontend built on the host.

use crate::machine::{Machine, free_port, host, secret, source};
use crate::project::Project;
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;

const TAG: &str = "v1.4.0";

struct Masstock {
    project: Project,
    policy: String,
    /// Where nginx of this host listens, which passes on to the one in a container.
    tls: u16,
    machine: Machine,
}

impl Masstock {
    fn up() -> Self {
        let machine = Machine::new("masstock");
        let (name, tls, inner) = (machine.unique("masstock"), free_port(), free_port());
        let swaps = [
            ("container_name: masstock_", format!("container_name: {name}_")),
            ("127.0.0.1:8080:", format!("127.0.0.1:{inner}:")),
        ];
        machine.publish("masstock", "backend", TAG, &swaps);
        let arguments = ["-f", "docker-compose.production.yml"];
        let project = Project::new(&name, &machine.checkout(&name), "", &arguments);
        let masstock = Self { project, policy: name, tls, machine };
        let (project, machine) = (&masstock.project, &masstock.machine);
        let password = format!("REDIS_PASSWORD={}\n", secret("redis"));
        project.write(machine, ".env", &password);
        project.write(machine, "backend/.env.production", &format!("{password}ENCRYPTION_KEY={}\n", "9e".repeat(32)));
        fs::create_dir_all(project.root.join("outbox")).unwrap();
        host(project.root.join("frontend/build.sh").to_str().unwrap(), &[]);
        project.compose(machine, &["up", "-d", "--build"]);
        project.compose(machine, &["exec", "-T", "api", "python3", "seed.py"]);
        machine.certificates("masstock.example.org");
        let at = |port: u16| format!("127.0.0.1:{port}");
        let swaps = [("127.0.0.1:443", at(tls)), ("127.0.0.1:8080", at(inner))];
        machine.nginx_files("masstock", "sites-enabled/*", true, &swaps);
        fs::create_dir(machine.path("etc/nginx/sites-enabled")).unwrap();
        symlink("../sites-available/masstock.conf", machine.path("etc/nginx/sites-enabled/masstock.conf")).unwrap();
        machine.start_nginx();
        assert_eq!(machine.is_well(&masstock.health())["version"], "1.4.0");
        masstock.install();
        masstock
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.tls)
    }

    fn health(&self) -> String {
        self.url("/api/health")
    }

    fn install(&self) {
        let main = self.machine.text("etc/nginx/nginx.conf");
        let swaps = [
            ("/opt/masstock", self.project.root.to_str().unwrap().to_owned()),
            ("\"masstock_", format!("\"{}_", self.project.name)),
            ("/mnt/nas/lifeboat", self.machine.text("backups/nas")),
            ("/etc/letsencrypt", self.machine.text("etc/letsencrypt")),
            ("/etc/nginx/sites-available", self.machine.text("etc/nginx/sites-available")),
            ("https://masstock.example.org/", self.url("/")),
            ("masstock.example.org:443", format!("localhost:{}", self.tls)),
            ("disk = \"/\"", "disk = \"/dev/shm\"".to_owned()),
            ("[\"nginx\", \"-t\"]", format!("[\"nginx\", \"-t\", \"-c\", {main:?}]")),
        ];
        self.machine.install(&self.policy, "masstock", &self.project.root, &swaps);
    }

    fn redis(&self, commands: &str) -> String {
        self.project.exec("redis", &[("REDISCLI_AUTH", &secret("redis"))], &["redis-cli"], commands)
    }

    /// Mails that the worker has sent.
    fn sent(&self) -> Vec<String> {
        let text = fs::read_to_string(self.project.root.join("outbox/sent")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn masstock_snapshot_and_drill() {
    let masstock = Masstock::up();
    let machine = &masstock.machine;
    let id = machine.snapshot(&masstock.policy, TAG);
    let shown = machine.json(&["show", &id, "-p", &masstock.policy]);
    let facts = &source(&shown, "queue")["facts"];
    assert_eq!(facts["appendonly"], true, "{facts:#}");
    assert_eq!(facts["databases"], json!([{ "database": 0, "keys": 3, "expires": 0 }]));
    let checks = &source(&shown, "env")["facts"]["checks"];
    assert!(checks.to_string().contains("\"rule\":\"same\""), "{checks:#}");
    let services = source(&shown, "compose")["facts"]["services"].as_array().unwrap();
    let saved: Vec<&str> =
        services.iter().filter(|s| !s["saved"].is_null()).map(|s| s["service"].as_str().unwrap()).collect();
    assert!(saved.contains(&"api") && saved.contains(&"worker"), "{services:#?}");
    machine.drill(&masstock.policy, &id);
    assert_eq!(masstock.sent(), Vec::<String>::new());
    assert_eq!(masstock.redis("LLEN bull:mail:wait"), "5");
    masstock.project.compose(machine, &["stop", "redis"]);
    machine.is_unwell(&masstock.health());
}
