//! meta-chat: compose in a folder below git, a role that is not the server's superuser, a broker, uploads in a volume.

use crate::machine::{Machine, free_port, host, secret, source};
use crate::project::Project;
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;

const TAG: &str = "v2.0.0";

struct MetaChat {
    project: Project,
    policy: String,
    tls: u16,
    machine: Machine,
}

impl MetaChat {
    fn up() -> Self {
        let machine = Machine::new("meta-chat");
        let (name, tls, api, dashboard) = (machine.unique("meta-chat"), free_port(), free_port(), free_port());
        let at = |port: u16| format!("127.0.0.1:{port}");
        let swaps = [("127.0.0.1:8000:", format!("{}:", at(api))), ("127.0.0.1:8081:", format!("{}:", at(dashboard)))];
        machine.publish("meta-chat", "api", TAG, &swaps);
        let arguments = ["--env-file", ".env.production", "--profile", "ops"];
        let project = Project::new(&name, &machine.checkout(&name), "docker", &arguments);
        let chat = Self { project, policy: name, tls, machine };
        let (project, machine) = (&chat.project, &chat.machine);
        let env = format!("POSTGRES_PASSWORD={}\nDB_PASSWORD={}\n", secret("superuser"), secret("role"));
        project.write(machine, "docker/.env.production", &env);
        project.write(machine, "docker/secrets/encryption_key", &"7d".repeat(32));
        // An old copy that somebody's script makes: the uploads lie in the volume of the same name.
        fs::create_dir(project.root.join("storage")).unwrap();
        fs::write(project.root.join("storage/canary.txt"), "a decoy\n").unwrap();
        chat.data_folders();
        project.compose(machine, &["up", "-d", "--build", "--wait", "postgres", "redis", "rabbitmq"]);
        project.sql("postgres", &format!("alter role metachat password '{}'", secret("role")));
        project.compose(machine, &["up", "-d", "--build"]);
        for command in [&["alembic", "upgrade", "head"][..], &["python3", "seed.py"]] {
            project.compose(machine, &[&["exec", "-T", "api"], command].concat());
        }
        chat.broker();
        machine.certificates("chat.example.org");
        let swaps = [("127.0.0.1:443", at(tls)), ("127.0.0.1:8000", at(api)), ("127.0.0.1:8081", at(dashboard))];
        machine.nginx_files("meta-chat", "sites-enabled/*", true, &swaps);
        fs::create_dir(machine.path("etc/nginx/sites-enabled")).unwrap();
        symlink("../sites-available/chat.conf", machine.path("etc/nginx/sites-enabled/chat.conf")).unwrap();
        machine.start_nginx();
        assert_eq!(machine.is_well(&chat.health())["version"], "2.0.0");
        chat.install();
        chat
    }

    fn health(&self) -> String {
        format!("https://localhost:{}/health", self.tls)
    }

    /// Folders of this host that the stores have mounted, as their images want them.
    fn data_folders(&self) {
        for (name, uid) in [("postgres-data", "70:70"), ("redis-data", "71:71"), ("rabbitmq-data", "72:72")] {
            let dir = self.project.root.join(name);
            fs::create_dir(&dir).unwrap();
            host("chown", &[uid, dir.to_str().unwrap()]);
        }
    }

    /// A user, a host of its own, and a policy: what definitions hold.
    fn broker(&self) {
        for command in [
            &["add_user", "chat", "not-a-secret"][..],
            &["add_vhost", "chat"],
            &["set_permissions", "-p", "chat", "chat", ".*", ".*", ".*"],
            &["set_policy", "-p", "chat", "short", "^answers", r#"{"message-ttl":60000}"#],
        ] {
            self.rabbitmq(command);
        }
    }

    fn rabbitmq(&self, command: &[&str]) -> String {
        self.project.exec("rabbitmq", &[], &[&["rabbitmqctl", "-q"], command].concat(), "")
    }

    fn install(&self) {
        let swaps = [
            ("/srv/meta-chat", self.project.root.to_str().unwrap().to_owned()),
            ("/etc/nginx", self.machine.text("etc/nginx")),
            ("/etc/letsencrypt", self.machine.text("etc/letsencrypt")),
            ("https://chat.example.org/health", self.health()),
            ("chat.example.org:443", format!("localhost:{}", self.tls)),
            // Debian 12 has no pgvector; `cube` is an extension whose values are compared by distance as well.
            ("extname = 'vector'", "extname = 'cube'".to_owned()),
        ];
        self.machine.install(&self.policy, "meta-chat", &self.project.root, &swaps);
    }
}

#[test]
fn meta_chat_snapshot_and_drill() {
    let chat = MetaChat::up();
    let (machine, project) = (&chat.machine, &chat.project);
    let id = machine.snapshot(&chat.policy, TAG);
    let shown = machine.json(&["show", &id, "-p", &chat.policy]);
    let facts = &source(&shown, "db")["facts"];
    assert_eq!((&facts["user"], &facts["superuser"]), (&json!("keeper"), &json!(true)), "{facts:#}");
    let database = &facts["databases"][0];
    assert_eq!((&database["name"], &database["owner"]), (&json!("metachat"), &json!("metachat")));
    assert!(database["extensions"].as_array().unwrap().iter().any(|e| e["name"] == "cube"), "{database:#}");
    let compose = &source(&shown, "compose")["facts"];
    assert_eq!((&compose["project"], &compose["profiles"]), (&json!(project.name), &json!(["ops"])), "{compose:#}");
    assert_eq!(source(&shown, "cache")["facts"]["appendonly"], true);
    let uploads = machine.command(&["cat", &id, "uploads:storage/canary.txt", "-p", &chat.policy]).output().unwrap();
    assert!(uploads.status.success() && uploads.stdout.starts_with(b"document 0\n"), "{uploads:?}");
    let definitions = machine.run(&["cat", &id, "rabbitmq:definitions.json", "-p", &chat.policy]).exits(0);
    let definitions: serde_json::Value = serde_json::from_str(&definitions.out).unwrap();
    assert!(definitions["users"].to_string().contains("\"chat\""), "{definitions:#}");
    machine.drill(&chat.policy, &id);

    project.compose(machine, &["down", "-v", "-t", "2"]);
    assert!(!project.has_volume("storage"));
    machine.is_unwell(&chat.health());
    project.compose(machine, &["up", "-d", "--build"]);
    let answer = machine.is_unwell(&chat.health());
    assert!(answer.body.contains("canary.txt"), "{answer:?}");
}
