//! connector: two instances of one application on one host, and two runs at once.

use crate::docker::{IMAGE, TestProject, engine, unique};
use crate::port::free_port;
use crate::stack::{Pins, git, host, source};
use crate::world::Ran;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const COMPOSE: &str = r#"
services:
  redis:
    image: IMAGE
    user: redis
    command: ["redis-server", "--dir", "/var/lib/redis", "--bind", "0.0.0.0", "--protected-mode", "no"]
    ports: ["127.0.0.1:PORT:6379"]
    volumes: ["data:/var/lib/redis"]
    healthcheck: {test: ["CMD", "redis-cli", "ping"], interval: 1s, timeout: 5s, retries: 60}
volumes: {data: {}}
"#;

/// One checkout, its project and its policy.
struct Instance {
    project: TestProject,
    policy: String,
    root: PathBuf,
    _pins: Pins,
}

/// One host with one installation.
struct Host {
    prod: Instance,
    test: Instance,
    /// Last: the projects go before the folders that they mount.
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        engine();
        let dir = tempfile::Builder::new().prefix("lifeboat-two-").tempdir().unwrap();
        let (prod_port, test_port) = (free_port(), free_port());
        // The folders' names are an old slip of the pen.
        let prod_root = dir.path().join("conector-prod");
        checkout(&prod_root, prod_port);
        let test_root = dir.path().join("conector-test");
        host("git", &["clone", "-q", prod_root.to_str().unwrap(), test_root.to_str().unwrap()]);
        write_env(&prod_root, "a1");
        write_env(&test_root, "b2");
        // `sed -i`, as its people do: the second instance's port stands in no commit.
        let edit = format!("s/:{prod_port}:/:{test_port}:/");
        host("sed", &["-i", &edit, test_root.join("docker-compose.yml").to_str().unwrap()]);
        let prod = instance("prod", prod_root);
        let test = instance("test", test_root);
        let new = Self { prod, test, dir };
        new.shared_files();
        new
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One certificate for both, and a file of nginx for each.
    fn shared_files(&self) {
        let of = |folder: &str| self.path("letsencrypt").join(folder);
        let (live, archive) = (of("live/connector.example.org"), of("archive/connector.example.org"));
        for dir in [&live, &archive, &of("renewal"), &self.path("conf.d")] {
            fs::create_dir_all(dir).unwrap();
        }
        let (key, cert) = (archive.join("privkey1.pem"), archive.join("fullchain1.pem"));
        let subject =
            ["-subj", "/CN=connector.example.org", "-keyout", key.to_str().unwrap(), "-out", cert.to_str().unwrap()];
        let request =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "60"];
        host("openssl", &[&request[..], &subject[..]].concat());
        for name in ["privkey", "fullchain"] {
            symlink(format!("../../archive/connector.example.org/{name}1.pem"), live.join(format!("{name}.pem")))
                .unwrap();
        }
        fs::write(of("renewal/connector.example.org.conf"), "version = 2.1.0\n").unwrap();
        for name in ["connector", "connector-test"] {
            let text = format!("server {{ server_name {name}.example.org; }}\n");
            fs::write(self.path(&format!("conf.d/{name}.example.org.conf")), text).unwrap();
        }
        fs::create_dir_all(self.path("main-app")).unwrap();
        fs::write(self.path("main-app/.env"), "GPT_CONNECTOR_HMAC_SECRET=hmac-a1\n").unwrap();
    }

    /// `init`, and then the shipped policy with this machine's places.
    fn install(&self, instance: &Instance, shipped: &str) {
        let repository = self.path("repository");
        self.run(&[
            "init",
            instance.root.to_str().unwrap(),
            "--name",
            &instance.policy,
            "--repository",
            repository.to_str().unwrap(),
        ])
        .exits(0);
        let file = self.path(&format!("config/policies/{}.toml", instance.policy));
        let recipient = fs::read_to_string(&file).unwrap();
        let recipient = recipient.split('"').find(|part| part.starts_with("age1")).unwrap().to_owned();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies").join(format!("{shipped}.toml"));
        let mut text = fs::read_to_string(source).unwrap();
        let folder = shipped.replace("connector", "conector");
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let mut swap = |from: &str, to: &str| {
            assert!(text.contains(from), "{from:?} is not in the shipped policy {shipped}");
            text = text.replace(from, to);
        };
        swap(&format!("name = \"{shipped}\""), &format!("name = \"{}\"", instance.policy));
        swap(&format!("/srv/{folder}"), instance.root.to_str().unwrap());
        swap("/var/backups/lifeboat", &path("repository"));
        swap("age1waqu2vr7cnmpnm6wzgmfxvgzngr2kl36vysll0wt2fqk95yadsqq6axm3a", &recipient);
        swap("/etc/letsencrypt", &path("letsencrypt"));
        swap("/etc/nginx/conf.d", &path("conf.d"));
        // However full the disk of this machine is.
        swap("[repository]\n", "[repository]\nmin_free = \"0B\"\n");
        if shipped == "connector-prod" {
            swap("/srv/main-app", &path("main-app"));
        }
        fs::write(file, text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.arg("--config-dir").arg(self.path("config")).arg("--state-dir").arg(self.path("state")).args(args);
        command.env_clear().env("HOME", self.dir.path()).env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    /// Runs these at the same time; how each ended.
    fn at_once(&self, runs: [&[&str]; 2]) -> [Ran; 2] {
        let children =
            runs.map(|args| self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        children.map(|child| Ran::from(child.wait_with_output().unwrap()))
    }
}

fn checkout(root: &Path, port: u16) {
    fs::create_dir_all(root).unwrap();
    let compose = COMPOSE.replace("IMAGE", IMAGE).replace("PORT", &port.to_string());
    fs::write(root.join("docker-compose.yml"), compose).unwrap();
    fs::write(root.join(".gitignore"), ".env\n").unwrap();
    git(root, &["init", "-q", "-b", "main"]);
    git(root, &["add", "."]);
    git(root, &["commit", "-q", "-m", "the connector"]);
}

fn write_env(root: &Path, digits: &str) {
    let text = format!("ENCRYPTION_KEY={}\nHMAC_SHARED_SECRET=hmac-{digits}\n", digits.repeat(32));
    fs::write(root.join(".env"), text).unwrap();
}

fn instance(which: &str, root: PathBuf) -> Instance {
    let name = unique(&format!("lb-connector-{which}"));
    let project = TestProject::up(&root, &name, &[]);
    let key = format!("only-in-{which}");
    project.compose(&["exec", "-T", "redis", "redis-cli", "set", &key, "1"]);
    Instance { project, policy: name.clone(), root, _pins: Pins(name) }
}

#[test]
fn two_instances_never_mix() {
    let host = Host::new();
    host.install(&host.prod, "connector-prod");
    host.install(&host.test, "connector-test");
    let (prod, test) = (&host.prod.policy, &host.test.policy);

    let both = host.at_once([&["snapshot", "--json", "-p", prod], &["snapshot", "--json", "-p", test]]);
    for ran in both {
        let report = ran.exits(0).json();
        assert_eq!(report["header"]["outcome"], "complete", "{report:#}");
    }
    for (mine, other, which) in [(&host.prod, &host.test, "prod"), (&host.test, &host.prod, "test")] {
        let list = host.run(&["list", "--json", "-p", &mine.policy]).exits(0).json();
        let all = list["snapshots"].as_array().unwrap();
        assert!(all.len() == 1 && all[0]["policy"] == mine.policy.as_str(), "{list:#}");
        let shown = host.run(&["show", "latest", "--json", "-p", &mine.policy]).exits(0).json();
        is_its_own(&host, mine, other, which, &shown);
    }
    a_second_project_in_the_same_folder_is_not_guessed(&host);
    two_runs_of_one_policy(&host);
}

fn is_its_own(host: &Host, mine: &Instance, other: &Instance, which: &str, shown: &Value) {
    let compose = &source(shown, "compose")["facts"];
    assert_eq!(compose["project"], mine.project.name, "{compose:#}");
    assert!(!shown.to_string().contains(&other.project.name), "{shown:#}");
    let keys = json!([{ "database": 0, "keys": 1, "expires": 0 }]);
    assert_eq!(source(shown, "redis")["facts"]["databases"], keys);
    let rdb = host.command(&["cat", "latest", "redis:dump.rdb", "-p", &mine.policy]).output().unwrap();
    let holds = |text: &str| rdb.stdout.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(rdb.status.success() && holds(&format!("only-in-{which}")), "{rdb:?}");
    assert!(!holds(if which == "prod" { "only-in-test" } else { "only-in-prod" }));
    // The ports of the test instance are edits of its own checkout.
    let edited = &source(shown, "git")["facts"]["edited"]["count"];
    assert_eq!(edited, if which == "prod" { 0 } else { 1 });
    // Both have the certificate itself, not only the links to it.
    let found = host.run(&["find", "privkey1.pem", "--json", "-p", &mine.policy]).exits(0);
    assert!(found.out.contains("archive/connector.example.org/privkey1.pem"), "{found:#?}");
}

/// The folder alone does not say which of two projects is meant; the policy must.
fn a_second_project_in_the_same_folder_is_not_guessed(host: &Host) {
    let prod = &host.prod;
    let other_port = free_port();
    let compose = fs::read_to_string(prod.root.join("docker-compose.yml")).unwrap();
    let ports = compose.lines().find(|l| l.contains("ports:")).unwrap();
    let elsewhere = host.path("other.yml");
    fs::write(&elsewhere, compose.replace(ports, &format!("    ports: [\"127.0.0.1:{other_port}:6379\"]"))).unwrap();
    let name = unique("lb-connector-other");
    let folder = prod.root.to_str().unwrap();
    let _other =
        TestProject::up(&prod.root, &name, &["-f", elsewhere.to_str().unwrap(), "--project-directory", folder]);
    let report = host.run(&["snapshot", "--json", "-p", &prod.policy]).exits(3).json();
    let said = source(&report, "redis").to_string();
    assert!(said.contains("more than one compose project") && said.contains(&name), "{said}");
    assert!(said.contains("name one by `project`"), "{said}");

    let file = host.path(&format!("config/policies/{}.toml", prod.policy));
    let policy = fs::read_to_string(&file).unwrap();
    fs::write(&file, policy.replace("[app]\n", &format!("[app]\nproject = \"{}\"\n", prod.project.name))).unwrap();
    let report = host.run(&["snapshot", "--json", "-p", &prod.policy]).exits(0).json();
    assert_eq!(report["header"]["outcome"], "complete", "{report:#}");
}

/// Redis waits five seconds before it copies, so the second run finds the first one at work.
fn two_runs_of_one_policy(host: &Host) {
    let test = &host.test.policy;
    let runs = host.at_once([&["snapshot", "-p", test], &["snapshot", "-p", test]]);
    let mut codes = runs.each_ref().map(|ran| ran.code);
    codes.sort_unstable();
    assert_eq!(codes, [0, 5], "{runs:#?}");
    let busy = runs.iter().find(|ran| ran.code == 5).unwrap();
    assert!(busy.err.contains(test.as_str()), "{busy:#?}");
    let list = host.run(&["list", "--json", "-p", test]).exits(0).json();
    assert_eq!(list["snapshots"].as_array().unwrap().len(), 2);
}
