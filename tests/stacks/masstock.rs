//! masstock: a queue in Redis with a password and an append-only file, a worker, two nginx, a frontend built on the host.

use crate::docker::{docker, try_docker};
use crate::machine::{Machine, failed_checks, host, secret, source};
use crate::port::free_port;
use crate::project::Project;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::time::{Duration, Instant};

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

    #[track_caller]
    fn has_sent(&self, count: usize) {
        let begun = Instant::now();
        while self.sent().len() < count {
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", self.sent());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn masstock_the_drill_proves_queue_images_and_one_password_in_two_files() {
    let masstock = Masstock::up();
    let (machine, project) = (&masstock.machine, &masstock.project);
    let id = machine.snapshot(&masstock.policy, TAG);
    let shown = machine.json(&["show", &id, "-p", &masstock.policy]);
    let facts = &source(&shown, "queue")["facts"];
    assert_eq!(facts["appendonly"], true, "{facts:#}");
    assert_eq!(facts["databases"], json!([{ "database": 0, "keys": 3, "expires": 0 }]));
    let services = source(&shown, "compose")["facts"]["services"].as_array().unwrap();
    let saved: Vec<&str> =
        services.iter().filter(|s| !s["saved"].is_null()).map(|s| s["service"].as_str().unwrap()).collect();
    assert!(saved.contains(&"api") && saved.contains(&"worker"), "{services:#?}");
    // Only the site that the policy names; the second copy is as good as the first.
    assert_eq!(source(&shown, "nginx")["facts"]["included_outside"], json!([]));
    assert!(crate::world::tree(&machine.path("backups/nas")).len() > 3);
    machine.drill(&masstock.policy, &id);
    assert_eq!(masstock.sent(), Vec::<String>::new());

    project.edit(machine, "backend/.env.production", &secret("redis"), &secret("rotated"));
    let apart = machine.snapshot(&masstock.policy, "apart");
    let report = machine.run(&["drill", &apart, "--json", "-p", &masstock.policy]).exits(1).json();
    let failed = failed_checks(&report);
    assert!(failed.len() == 1 && failed[0].1["name"] == "same", "{failed:#?}");
    let said = failed[0].1.to_string();
    assert!(said.contains(".env:REDIS_PASSWORD") && said.contains("backend/.env.production:REDIS_PASSWORD"), "{said}");
    project.compose(machine, &["up", "-d"]);
    machine.is_unwell(&masstock.health());
}

#[test]
fn masstock_what_init_finds_is_proved_as_it_is() {
    let masstock = Masstock::up();
    let root = &masstock.project.root;
    let covered = [
        ("redis", "service \"redis\""),
        ("env", ".env, backend/.env.production"),
        ("files", "frontend/dist"),
        ("files", "outbox"),
        ("nginx", "etc/nginx"),
        ("certificates", "masstock.example.org"),
    ];
    let (_, text) = crate::discovered::proved(&masstock.machine, &masstock.policy, root, &covered, &[]);
    for line in [
        "password_from = \".env:REDIS_PASSWORD\"",
        "same = [[\".env:REDIS_PASSWORD\", \"backend/.env.production:REDIS_PASSWORD\"]]",
        "on_rollback = \"exact\"",
        "compose_files = [\"docker-compose.production.yml\"]",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn masstock_redis_with_aof_and_password_and_nginx_alone_are_restored_in_place() {
    let masstock = Masstock::up();
    let (machine, project) = (&masstock.machine, &masstock.project);
    machine.snapshot(&masstock.policy, TAG);
    masstock.redis("FLUSHALL\nSET junk 1");
    let answer = machine.is_unwell(&masstock.health());
    assert!(answer.body.contains("settings"), "{answer:?}");
    let restore = ["restore", TAG, "--in-place", "--yes", "-p", &masstock.policy, "--only"];
    machine.run(&[&restore[..], &["queue"]].concat()).exits(0);
    machine.is_well(&masstock.health());
    for _ in 0..2 {
        // What only lies beside the append-only file would be gone with the first restart.
        assert_eq!(masstock.redis("LLEN bull:mail:wait\nEXISTS junk\nDBSIZE"), "5\n0\n3");
        docker(["restart", "-t", "5", &project.container("redis")]);
        project.compose(machine, &["up", "-d", "--wait", "redis"]);
    }
    machine.is_well(&masstock.health());

    let site = machine.path("etc/nginx/sites-available/masstock.conf");
    let good = fs::read(&site).unwrap();
    let other = machine.path("etc/nginx/sites-enabled/other.conf");
    fs::write(&other, "server { listen 127.0.0.1:1; server_name other.example.org; }\n").unwrap();
    fs::write(&site, "server { lisen 443; }\n").unwrap();
    assert!(!machine.nginx(&["-t"]).status.success());
    let containers = project.containers();
    fs::write(&other, "").unwrap();
    machine.run(&[&restore[..], &["nginx"]].concat()).exits(0);
    assert!(fs::read(&site).unwrap() == good && fs::read(&other).unwrap().is_empty());
    assert!(machine.nginx(&["-t"]).status.success());
    assert_eq!(project.containers(), containers, "nothing is stopped for it");
    machine.is_well(&masstock.health());
}

#[test]
fn masstock_a_rollback_keeps_the_live_queue_and_brings_the_frontend_with_its_code() {
    let masstock = Masstock::up();
    let (machine, project) = (&masstock.machine, &masstock.project);
    machine.snapshot(&masstock.policy, TAG);
    let commit = project.git(machine, &["rev-parse", "HEAD"]);
    // The five mails of then are sent; two of today wait.
    masstock.redis("DEL bull:mail:meta-paused");
    masstock.has_sent(5);
    masstock.redis("SET bull:mail:meta-paused 1\nRPUSH bull:mail:wait mail-6 mail-7");
    machine.release("masstock", "v2", "v1.5.0");
    let (ok, said) = project.deploy(machine);
    assert!(ok, "{said}");
    assert_eq!(machine.is_well(&masstock.health())["version"], "1.5.0");
    assert!(machine.get(&masstock.url("/")).body.contains("<main>masstock 1.5.0</main>"));

    let before = (project.state(), machine.tags(&masstock.policy), masstock.redis("DBSIZE"));
    let plan = machine.run(&["rollback", "--to", &commit, "--dry-run", "-p", &masstock.policy]).exits(0);
    let state = (project.state(), machine.tags(&masstock.policy), masstock.redis("DBSIZE"));
    assert!(before == state, "a plan changes nothing:\n{}", plan.out);
    plan.shows(&["Supabase"]);

    machine.rollback(&masstock.policy, &commit, &[]).exits(0);
    assert_eq!(machine.is_well(&masstock.health())["version"], "1.4.0");
    let page = machine.get(&masstock.url("/")).body;
    assert!(page.contains("<p>masstock 1.4.0</p>"), "code and frontend are one release: {page}");
    assert_eq!(masstock.redis("LRANGE bull:mail:wait 0 -1"), "mail-6\nmail-7");
    masstock.redis("DEL bull:mail:meta-paused");
    masstock.has_sent(7);
    let mut sent = masstock.sent();
    sent.sort();
    sent.dedup();
    assert_eq!(sent.len(), 7, "no mail is sent twice");
    assert!(machine.tags(&masstock.policy).iter().any(|t| t.starts_with("pre-rollback-")));
}

#[test]
fn masstock_a_failing_deploy_under_guard_rolls_itself_back_and_a_lost_image_is_no_obstacle() {
    let masstock = Masstock::up();
    let (machine, project) = (&masstock.machine, &masstock.project);
    let deploy = project.root.join("deploy.sh");
    let guard = |tag| machine.run(&["guard", "--tag", tag, "-p", &masstock.policy, "--", deploy.to_str().unwrap()]);
    let first = project.image("api");
    let mode = |file: &str| fs::metadata(project.root.join(file)).unwrap().mode();
    let app = mode("backend/app.py");
    machine.release("masstock", "v2", "v1.5.0");
    guard("v1.5.0").exits(0);
    assert_eq!(mode("backend/app.py"), app, "what a deployment writes is as it is without guard");
    assert_eq!(machine.is_well(&masstock.health())["version"], "1.5.0");
    let tags = machine.tags(&masstock.policy);
    assert!(tags.contains(&"before-v1.5.0".to_owned()) && tags.contains(&"v1.5.0".to_owned()), "{tags:?}");

    // Code, frontend and API are the new ones when the worker turns out not to start.
    machine.release("masstock", "v3", "v1.6.0");
    guard("v1.6.0").exits(7);
    assert_eq!(machine.is_well(&masstock.health())["version"], "1.5.0");
    assert!(machine.get(&masstock.url("/")).body.contains("<main>masstock 1.5.0</main>"));
    assert_eq!(project.running(), ["api", "nginx", "redis", "worker"]);
    assert_eq!(project.git(machine, &["describe", "--tags"]), "v1.5.0");
    let tags = machine.tags(&masstock.policy);
    assert!(tags.contains(&"before-v1.6.0".to_owned()) && !tags.contains(&"v1.6.0".to_owned()), "{tags:?}");

    // As after `docker system prune -a`, which takes every image that nothing runs, pinned or not.
    let of_this_machine = format!("reference=lifeboat/*{}*", machine.hex);
    let pins =
        docker(["images", "--no-trunc", "--filter", &of_this_machine, "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]);
    for pin in pins.lines().filter_map(|line| line.strip_suffix(&format!(" {first}"))) {
        docker(["rmi", pin]);
    }
    assert!(!try_docker(["image", "inspect", &first]).status.success(), "the image of the first release is gone");
    machine.rollback(&masstock.policy, "before-v1.5.0", &[]).exits(0);
    assert_eq!(machine.is_well(&masstock.health())["version"], "1.4.0");
    // It was saved with the snapshot. (The policy's own command builds once more: it is there for who does not.)
    assert!(try_docker(["image", "inspect", &first]).status.success());
    assert_eq!(project.running(), ["api", "nginx", "redis", "worker"]);
}
