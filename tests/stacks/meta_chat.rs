//! meta-chat: compose in a folder below git, a role that is not the server's superuser, a broker, uploads in a volume.

use crate::machine::{Machine, host, secret, source};
use crate::port::free_port;
use crate::project::Project;
use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;

const TAG: &str = "v2.0.0";
const DEFINITIONS: &str = include_str!("meta-chat/definitions.json");

struct MetaChat {
    project: Project,
    policy: String,
    tls: u16,
    machine: Machine,
}

impl MetaChat {
    fn up() -> Self {
        let chat = Self::checked_out();
        chat.start();
        chat
    }

    /// The application's files, its policy, and nothing that runs.
    fn checked_out() -> Self {
        let machine = Machine::new("meta-chat");
        let (name, tls, api, dashboard) = (machine.unique("meta-chat"), free_port(), free_port(), free_port());
        let at = |port: u16| format!("127.0.0.1:{port}");
        let swaps = [("127.0.0.1:8000:", format!("{}:", at(api))), ("127.0.0.1:8081:", format!("{}:", at(dashboard)))];
        machine.publish("meta-chat", "api", TAG, &swaps);
        let arguments = ["--env-file", ".env.production", "--profile", "ops"];
        let project = Project::new(&name, &machine.checkout(&name), "docker", &arguments);
        let chat = Self { project, policy: name, tls, machine };
        let env = format!("POSTGRES_PASSWORD={}\nDB_PASSWORD={}\n", secret("superuser"), secret("role"));
        chat.project.write(&chat.machine, "docker/.env.production", &env);
        chat.project.write(&chat.machine, "docker/secrets/encryption_key", &"7d".repeat(32));
        chat.machine.certificates("chat.example.org");
        let swaps = [("127.0.0.1:443", at(tls)), ("127.0.0.1:8000", at(api)), ("127.0.0.1:8081", at(dashboard))];
        let etc = chat.machine.path("etc/nginx");
        chat.machine.nginx_files("meta-chat", "sites-enabled/*", true, &swaps);
        fs::create_dir(etc.join("sites-enabled")).unwrap();
        symlink("../sites-available/chat.conf", etc.join("sites-enabled/chat.conf")).unwrap();
        chat.install();
        chat
    }

    fn start(&self) {
        let (project, machine) = (&self.project, &self.machine);
        // An old copy that somebody's script makes: the uploads lie in the volume of the same name.
        fs::create_dir(project.root.join("storage")).unwrap();
        fs::write(project.root.join("storage/canary.txt"), "a decoy\n").unwrap();
        self.data_folders();
        project.compose(machine, &["up", "-d", "--build", "--wait", "postgres", "redis", "rabbitmq"]);
        let role = format!(
            "create role metachat login password '{}'; alter database metachat owner to metachat",
            secret("role")
        );
        project.sql("postgres", &role);
        project.compose(machine, &["up", "-d", "--build"]);
        for command in [&["alembic", "upgrade", "head"][..], &["python3", "seed.py"]] {
            project.compose(machine, &[&["exec", "-T", "api"], command].concat());
        }
        self.broker();
        machine.start_nginx();
        assert_eq!(machine.is_well(&self.health())["version"], "2.0.0");
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

    /// A user, a host of its own, a queue and a policy: what definitions hold.
    fn broker(&self) {
        self.project.exec("rabbitmq", &[], &["rabbitmqctl", "-q", "import_definitions"], DEFINITIONS);
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
fn meta_chat_a_drill_proves_the_extension_s_data_and_what_is_captured_where_it_really_lies() {
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
    assert!(uploads.stdout.starts_with(b"document 0\n"), "the volume's, not the folder's: {uploads:?}");
    let definitions = machine.run(&["cat", &id, "rabbitmq:definitions.json", "-p", &chat.policy]).exits(0);
    let definitions: Value = serde_json::from_str(&definitions.out).unwrap();
    let names =
        |what: &str| definitions[what].as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    assert!(names("users").contains(&json!("chat")) && names("queues") == [json!("answers")], "{definitions:#}");

    let report = machine.drill(&chat.policy, &id);
    let db = report["sources"].as_array().unwrap().iter().find(|s| s["name"] == "db").unwrap();
    let passed = |words: &[&str]| {
        let says = |check: &&Value| words.iter().all(|w| check.to_string().contains(w));
        db["checks"].as_array().unwrap().iter().find(says).is_some_and(|check| check["verdict"] == "passed")
    };
    assert!(passed(&["extname = 'cube'"]) && passed(&["embedding is not null"]), "{db:#}");
    assert!(passed(&["content"]), "vectors are compared by what they hold: {db:#}");
}

#[test]
fn meta_chat_after_down_v_a_rollback_brings_all_back() {
    let chat = MetaChat::up();
    let (machine, project) = (&chat.machine, &chat.project);
    machine.snapshot(&chat.policy, TAG);
    machine.release("meta-chat", "v2", "v2.1.0");
    let (ok, said) = project.deploy(machine);
    assert!(ok, "{said}");
    assert_eq!(machine.is_well(&chat.health())["version"], "2.1.0");
    project.compose(machine, &["exec", "-T", "redis", "redis-cli", "set", "late", "1"]);
    project.compose(machine, &["down", "-v", "-t", "2"]);
    assert!(!project.has_volume("storage"));
    machine.is_unwell(&chat.health());

    machine.rollback(&chat.policy, TAG, &[]).exits(0);
    assert_eq!(machine.is_well(&chat.health())["version"], "2.0.0");
    let dashboard = machine.get(&format!("https://localhost:{}/dashboard/", chat.tls));
    assert!(dashboard.body.contains("dashboard 2.0.0"), "{dashboard:?}");
    assert_eq!(project.running(), ["api", "dashboard", "metrics", "postgres", "rabbitmq", "redis"]);
    assert!(fs::read(project.volume("storage").join("zweites Dokument.txt")).unwrap().starts_with(b"document 1\n"));
    assert_eq!(project.read("storage/canary.txt"), "a decoy\n", "the folder of the same name is nobody's business");
    // The stores' own folders were not lost: Redis and the broker keep what is live.
    assert_eq!(project.exec("redis", &[], &["redis-cli", "get", "late"], ""), "1");
    assert!(chat.rabbitmq(&["list_users"]).contains("chat"));

    // The folder of the database is lost too, and with it the role that nobody remembers having made by hand.
    project.compose(machine, &["down", "-v", "-t", "2"]);
    fs::remove_dir_all(project.root.join("postgres-data")).unwrap();
    machine.rollback(&chat.policy, TAG, &[]).exits(0);
    assert_eq!(machine.is_well(&chat.health())["version"], "2.0.0");
    let owner = "select pg_get_userbyid(datdba) from pg_database where datname = 'metachat'";
    assert_eq!(project.sql("postgres", owner), "metachat");

    // Cache and broker lose what they hold; they are restored when that is asked for.
    project.exec("redis", &[], &["redis-cli", "flushall"], "");
    for command in [&["delete_user", "chat"][..], &["delete_vhost", "chat"]] {
        chat.rabbitmq(command);
    }
    let answer = machine.is_unwell(&chat.health());
    assert!(answer.body.contains("the cached value"), "{answer:?}");
    let only = ["--only", "cache", "--only", "rabbitmq"];
    machine.run(&[&["restore", TAG, "--in-place", "--yes", "-p", &chat.policy], &only[..]].concat()).exits(0);
    machine.is_well(&chat.health());
    project.compose(machine, &["restart", "-t", "5", "redis"]);
    machine.is_well(&chat.health());
    assert_eq!(chat.rabbitmq(&["list_queues", "-p", "chat", "name"]), "name\nanswers");
    assert_eq!(project.exec("redis", &[], &["redis-cli", "dbsize"], ""), "41");
}

/// Logs may be kept for thirty days, so no snapshot outlives them.
#[test]
fn meta_chat_no_snapshot_outlives_what_may_be_kept() {
    let chat = MetaChat::checked_out();
    let newest = Utc::now() - TimeDelta::days(2);
    let times: Vec<_> = (0..40).rev().step_by(3).map(|day| newest - TimeDelta::days(day)).collect();
    chat.machine.snapshots_of_env(&chat.policy, &times);
    chat.machine.run(&["prune", "-p", &chat.policy]).exits(0);
    let kept = chat.machine.times(&chat.policy);
    let limit = Utc::now() - TimeDelta::days(30);
    assert!(kept.len() > 3 && kept.iter().all(|time| *time > limit), "{kept:?}");
}

#[test]
fn meta_chat_what_init_finds_is_proved_as_it_is() {
    let chat = MetaChat::up();
    let root = &chat.project.root;
    let covered = [
        ("postgres", "database metachat"),
        ("redis", "service \"redis\""),
        ("command", "definitions"),
        ("volume", "volume storage"),
        ("files", "docker/secrets/encryption_key"),
        ("env", "docker/.env.production"),
        ("nginx", "etc/nginx"),
        ("certificates", "chat.example.org"),
    ];
    let said = ["messages that wait", "storage"];
    let (_, text) = crate::discovered::proved(&chat.machine, &chat.policy, root, &covered, &said);
    for data in ["postgres-data", "redis-data", "rabbitmq-data"] {
        assert!(!text.contains(data), "the store gives it: {text}");
    }
    assert!(text.contains("env_files = [\"docker/.env.production\"]"), "{text}");
}
