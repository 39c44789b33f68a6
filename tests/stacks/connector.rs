//! connector: two instances of one application on one server, which share a repository, a certificate and nothing else.

use crate::docker::docker;
use crate::machine::{Machine, failed_checks, host, secret, source};
use crate::port::free_port;
use crate::project::Project;
use serde_json::{Value, json};

struct Instance {
    project: Project,
    policy: String,
    port: u16,
    redis: u16,
}

struct Connector {
    prod: Instance,
    test: Instance,
    /// Where nginx of this host listens.
    tls: u16,
    machine: Machine,
}

impl Instance {
    fn health(&self) -> String {
        format!("http://127.0.0.1:{}/health", self.port)
    }

    fn write_env(&self, machine: &Machine, digits: &str) {
        let text = format!("ENCRYPTION_KEY={}\nHMAC_SHARED_SECRET={}\n", digits.repeat(32), secret(digits));
        self.project.write(machine, ".env", &text);
    }

    fn redis(&self, commands: &str) -> String {
        self.project.exec("redis", &[], &["redis-cli"], commands)
    }
}

impl Connector {
    /// Both instances up and well, each under its shipped policy.
    fn up() -> Self {
        let machine = Machine::new("connector");
        let instance = |which: &str| {
            // The folders' names are an old slip of the pen, and not the application's name.
            let root = machine.path("srv").join(machine.unique(&format!("conector-{which}")));
            let name = root.file_name().unwrap().to_str().unwrap().to_owned();
            let project = Project::new(&name, &root, "", &[]);
            Instance {
                project,
                policy: machine.unique(&format!("connector-{which}")),
                port: free_port(),
                redis: free_port(),
            }
        };
        let connector = Self { prod: instance("prod"), test: instance("test"), tls: free_port(), machine };
        connector.prepare();
        for one in [&connector.prod, &connector.test] {
            one.project.compose(&connector.machine, &["up", "-d", "--build"]);
            one.project.compose(&connector.machine, &["exec", "-T", "connector", "python3", "seed.py"]);
        }
        let (prod, test) = (&connector.prod, &connector.test);
        let answer = connector.machine.is_well(&prod.health());
        assert_eq!((&answer["version"], &answer["main_app_reachable"]), (&json!("0.2.1"), &json!(true)), "{answer:#}");
        connector.machine.is_well(&test.health());
        connector.machine.is_well(&format!("https://localhost:{}/health", connector.tls));
        connector
    }

    fn prepare(&self) {
        let (machine, prod, test) = (&self.machine, &self.prod, &self.test);
        let at = |port: u16| format!("127.0.0.1:{port}");
        let ports = [("127.0.0.1:8001", at(prod.port)), ("127.0.0.1:6379", at(prod.redis))];
        machine.publish("connector", "app", "v0.2.1", &ports);
        for one in [prod, test] {
            machine.checkout(&one.project.name);
        }
        // As its people do: the second instance's ports stand in no commit.
        let edit = format!("s/:{}:/:{}:/; s/:{}:/:{}:/", prod.port, test.port, prod.redis, test.redis);
        host("sed", &["-i", &edit, test.project.root.join("docker-compose.yml").to_str().unwrap()]);
        prod.write_env(machine, "a1");
        test.write_env(machine, "b2");
        self.main_app();
        machine.certificates("connector.example.org");
        let nginx =
            [("127.0.0.1:443", at(self.tls)), ("127.0.0.1:8001", at(prod.port)), ("127.0.0.1:8002", at(test.port))];
        machine.nginx_files("connector", "conf.d/*.conf", true, &nginx);
        machine.start_nginx();
        self.install(prod, "prod");
        self.install(test, "test");
    }

    /// The application that the connector answers for, on a network of its own.
    fn main_app(&self) {
        let machine = &self.machine;
        let env = machine.path("srv/main-app/.env");
        std::fs::create_dir_all(env.parent().unwrap()).unwrap();
        std::fs::write(&env, format!("GPT_CONNECTOR_HMAC_SECRET={}\n", secret("a1"))).unwrap();
        let code = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stacks/connector/main-app/app.py");
        docker(["network", "create", &machine.unique("main")]);
        docker([
            "run",
            "-d",
            "--name",
            &machine.unique("main-app"),
            "--network",
            &machine.unique("main"),
            "--network-alias",
            "main-app",
            "--env-file",
            env.to_str().unwrap(),
            "-v",
            &format!("{code}:/app.py:ro"),
            crate::docker::IMAGE,
            "python3",
            "/app.py",
        ]);
    }

    fn install(&self, instance: &Instance, which: &str) {
        let machine = &self.machine;
        let theirs = if which == "prod" { "127.0.0.1:8001" } else { "127.0.0.1:8002" };
        let root = instance.project.root.to_str().unwrap().to_owned();
        let folder = format!("/srv/conector-{which}");
        let mut swaps = vec![
            (folder.as_str(), root),
            ("/etc/letsencrypt", machine.text("etc/letsencrypt")),
            ("/etc/nginx/conf.d", machine.text("etc/nginx/conf.d")),
            (theirs, format!("127.0.0.1:{}", instance.port)),
        ];
        if which == "prod" {
            swaps.push(("/srv/main-app", machine.text("srv/main-app")));
            swaps.push(("connector.example.org:443", format!("localhost:{}", self.tls)));
        }
        machine.install(&instance.policy, &format!("connector-{which}"), &instance.project.root, &swaps);
    }

    /// The two, each with the other.
    fn both(&self) -> [(&Instance, &Instance); 2] {
        [(&self.prod, &self.test), (&self.test, &self.prod)]
    }
}

#[test]
fn connector_two_policies_on_one_host_never_mix() {
    let connector = Connector::up();
    let machine = &connector.machine;
    let (prod, test) = (&connector.prod, &connector.test);
    let runs = [
        &["snapshot", "--tag", "v0.2.1", "-p", &prod.policy][..],
        &["snapshot", "--tag", "v0.2.1", "-p", &test.policy],
    ];
    for ran in machine.at_once(runs) {
        ran.exits(0);
    }
    for (mine, other) in connector.both() {
        let list = machine.json(&["list", "-p", &mine.policy]);
        let all = list["snapshots"].as_array().unwrap();
        assert!(all.len() == 1 && all[0]["policy"] == mine.policy.as_str(), "{list:#}");
        let shown = machine.json(&["show", "v0.2.1", "-p", &mine.policy]);
        its_facts_are_its_own(mine, other, &shown);
        // Through the links of live/, the files of archive/ themselves, of the one certificate that both have.
        let found = machine.run(&["find", "privkey2.pem", "--json", "-p", &mine.policy]).exits(0);
        assert!(found.out.contains("archive/connector.example.org/privkey2.pem"), "{found:#?}");
        let lines = machine.run(&["ls", "v0.2.1", "certificates", "-r", "-p", &mine.policy]);
        lines
            .exits(0)
            .shows(&["live/connector.example.org/privkey.pem", "archive/connector.example.org/fullchain2.pem"]);
    }
    let drills =
        [&["drill", "v0.2.1", "--json", "-p", &prod.policy][..], &["drill", "v0.2.1", "--json", "-p", &test.policy]];
    for ran in machine.at_once(drills) {
        let report = ran.exits(0).json();
        assert_eq!(failed_checks(&report), [], "{report:#}");
    }
}

fn its_facts_are_its_own(mine: &Instance, other: &Instance, shown: &Value) {
    let facts = &source(shown, "compose")["facts"];
    assert_eq!(facts["project"], mine.project.name, "{facts:#}");
    let everything = shown.to_string();
    assert!(!everything.contains(&other.project.name) && !everything.contains(&other.policy), "{shown:#}");
    let ports: Vec<String> = facts["services"].as_array().unwrap().iter().map(|s| s["ports"].to_string()).collect();
    let own = |port: u16| ports.iter().any(|p| p.contains(&port.to_string()));
    assert!(own(mine.port) && own(mine.redis) && !own(other.port) && !own(other.redis), "{ports:?}");
    // 50 sessions and the tokens: its own Redis, whatever port the other has.
    let keys = json!([{ "database": 0, "keys": 51, "expires": 0 }]);
    assert_eq!(source(shown, "redis")["facts"]["databases"], keys);
    let edited = &source(shown, "git")["facts"]["edited"];
    let is_test = mine.policy.contains("-test-");
    assert_eq!(edited["count"], if is_test { 1 } else { 0 }, "the test instance's ports are its edits: {edited:#}");
}

#[test]
fn connector_the_drill_catches_a_key_of_63_digits_and_secrets_that_differ() {
    let connector = Connector::up();
    let (machine, prod) = (&connector.machine, &connector.prod);
    let good = machine.snapshot(&prod.policy, "good");
    machine.drill(&prod.policy, &good);

    let key = "a1".repeat(32);
    prod.project.edit(machine, ".env", &key, &key[1..]);
    let short = machine.snapshot(&prod.policy, "short");
    let report = machine.run(&["drill", &short, "--json", "-p", &prod.policy]).exits(1).json();
    let failed = failed_checks(&report);
    assert!(failed.len() == 1 && failed[0].0 == "env", "{failed:#?}");
    assert_eq!((&failed[0].1["name"], &failed[0].1["subject"]), (&json!("pattern"), &json!(".env:ENCRYPTION_KEY")));
    assert!(!failed[0].1.to_string().contains(&key[..16]), "no value is told: {failed:#?}");

    prod.project.edit(machine, ".env", &key[1..], &key);
    prod.project.edit(machine, ".env", &secret("a1"), &secret("rotated"));
    let apart = machine.snapshot(&prod.policy, "apart");
    let report = machine.run(&["drill", &apart, "--json", "-p", &prod.policy]).exits(1).json();
    let failed = failed_checks(&report);
    assert!(failed.len() == 1 && failed[0].1["name"] == "same", "{failed:#?}");
    let said = failed[0].1.to_string();
    assert!(said.contains("HMAC_SHARED_SECRET") && said.contains("main-app/.env:GPT_CONNECTOR_HMAC_SECRET"), "{said}");
    assert!(!said.contains(crate::world::CANARY), "{said}");

    // And so the application is, with either of the two.
    prod.project.compose(machine, &["up", "-d"]);
    let answer = machine.answers(&prod.health(), |a| a.body.contains("\"main_app_reachable\": false"));
    assert_eq!(answer["main_app_reachable"], false, "{answer:#}");
    prod.project.edit(machine, ".env", &key, &key[1..]);
    prod.project.compose(machine, &["up", "-d"]);
    machine.is_unwell(&prod.health());
}

#[test]
fn connector_a_rollback_of_test_leaves_prod_untouched_and_git_pull_works_afterwards() {
    let connector = Connector::up();
    let (machine, prod, test) = (&connector.machine, &connector.prod, &connector.test);
    machine.snapshot(&prod.policy, "v0.2.1");
    machine.snapshot(&test.policy, "v0.2.1");
    let edited = test.project.read("docker-compose.yml");
    test.redis("SET session:late user-late");
    prod.redis("SET session:late user-late");
    let untouched = prod.project.state();

    // A plain checkout has the ports of the other instance, and the release finds its tokens no more.
    machine.release("connector", "v2", "v0.3.0");
    test.project.git(machine, &["checkout", "-q", "--", "docker-compose.yml"]);
    let (ok, said) = test.project.deploy(machine);
    assert!(!ok && said.contains("port is already allocated"), "{said}");
    machine.is_unwell(&test.health());

    machine.rollback(&test.policy, "v0.2.1", &[]).exits(0);
    assert_eq!(machine.is_well(&test.health())["version"], "0.2.1");
    assert_eq!(test.project.read("docker-compose.yml"), edited, "the edits come back with the tree");
    assert_eq!(test.project.git(machine, &["diff", "--name-only"]), "docker-compose.yml");
    assert_eq!(test.redis("GET session:late"), "user-late", "Redis is kept");
    assert!(untouched == prod.project.state(), "containers or files of the other instance have changed");
    assert_eq!(prod.redis("GET session:late"), "user-late");
    assert_eq!(machine.is_well(&prod.health())["main_app_reachable"], true);
    docker(["network", "inspect", &machine.unique("main")]);

    // The way forward: the branch is where it was, the edits stay edits, and the next release comes by pull.
    test.project.git(machine, &["switch", "-q", "main"]);
    test.project.git(machine, &["pull", "-q", "--ff-only"]);
    assert_eq!(test.project.git(machine, &["describe", "--tags"]), "v0.3.0");
    assert_eq!(test.project.git(machine, &["diff", "--name-only"]), "docker-compose.yml");
}

#[test]
fn connector_two_rollbacks_at_once() {
    let connector = Connector::up();
    let (machine, prod, test) = (&connector.machine, &connector.prod, &connector.test);
    machine.release("connector", "v2", "v0.3.0");
    for (one, _) in connector.both() {
        machine.snapshot(&one.policy, "v0.2.1");
        let (ok, said) = one.project.deploy(machine);
        assert!(ok, "{said}");
        machine.is_unwell(&one.health());
    }
    let rollback = |policy| ["rollback", "--to", "v0.2.1", "--yes", "-p", policy];
    for ran in machine.at_once([&rollback(&prod.policy), &rollback(&test.policy)]) {
        ran.exits(0);
    }
    let answer = machine.is_well(&prod.health());
    assert_eq!((&answer["version"], &answer["main_app_reachable"]), (&json!("0.2.1"), &json!(true)), "{answer:#}");
    assert_eq!(machine.is_well(&test.health())["version"], "0.2.1");
    for (mine, other) in connector.both() {
        assert!(mine.project.read("docker-compose.yml").contains(&format!(":{}:", mine.port)));
        assert!(!mine.project.read("docker-compose.yml").contains(&format!(":{}:", other.port)));
        let refs = mine.project.git(machine, &["for-each-ref", "--format", "%(refname)", "refs/lifeboat"]);
        assert!(refs.contains(&format!("refs/lifeboat/{}/", mine.policy)) && !refs.contains(&other.policy), "{refs}");
    }
}

#[test]
fn connector_what_init_finds_is_proved_as_it_is() {
    let connector = Connector::up();
    for (one, other) in [(&connector.prod, "conf.d/connector-test"), (&connector.test, "conf.d/connector.example")] {
        let root = &one.project.root;
        let covered = [
            ("redis", "service \"redis\""),
            ("env", ".env"),
            ("nginx", "conf.d/connector"),
            ("certificates", "connector.example.org"),
        ];
        let said = ["live/connector.example.org"];
        let (report, text) = crate::discovered::proved(&connector.machine, &one.policy, root, &covered, &said);
        assert!(!text.contains(other), "the other instance's site: {text}");
        assert!(report["shared"].as_array().unwrap().iter().all(|s| s["policy"] != one.policy), "{report:#}");
        let health = format!("http = \"http://127.0.0.1:{}/health\"", one.port);
        assert!(text.contains(&health) && text.contains("json = { status = \"ok\" }"), "{text}");
    }
}
