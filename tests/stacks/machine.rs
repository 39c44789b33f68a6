//! A server of a deployment: folders of its own in the place of /srv, /etc and /var, a git server, nginx, certificates,
//! an installation of Lifeboat, and the binary run in it.
//!
//! Invariant: every container, volume, network and image of a machine has the machine's own digits in its name or on its
//! label, and goes with the machine.

use crate::docker::{IMAGE, docker, engine, try_docker};
use crate::world::{CANARY, Ran, room};
use chrono::{DateTime, Utc};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::Events;
use lifeboat::ops::access::Installation;
use lifeboat::ops::snapshot::{self, SnapshotOptions};
use lifeboat::ops::{Run, Trigger};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// An image with Debian's RabbitMQ; `scripts/test.sh` builds it.
const RABBITMQ: &str = "lifeboat-test/rabbitmq:1";

/// The label of images that are built here.
const LABEL: &str = "lifeboat-test.stack";

pub struct Machine {
    /// Digits that no other test has.
    pub hex: String,
    /// Who owns the application and runs the binary.
    pub uid: u32,
    pub dir: tempfile::TempDir,
}

impl Machine {
    /// A machine whose application is root's.
    pub fn new(name: &str) -> Self {
        Self::of(name, 0)
    }

    /// A machine whose application is an ordinary user's, who is in group docker.
    pub fn of(name: &str, uid: u32) -> Self {
        engine();
        assert!(!docker(["images", "-q", RABBITMQ]).is_empty(), "{RABBITMQ} is missing: scripts/test.sh builds it");
        let dir = tempfile::Builder::new().prefix(&format!("lifeboat-{name}-")).tempdir_in(room()).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let hex = hex::encode(lifeboat::base::ids::random_bytes::<4>().unwrap());
        let machine = Self { hex, uid, dir };
        for folder in ["srv", "etc", "home", "backups"] {
            fs::create_dir(machine.path(folder)).unwrap();
        }
        fs::copy(env!("CARGO_BIN_EXE_lifeboat"), machine.path("lifeboat")).unwrap();
        for folder in ["srv", "home", "backups"] {
            machine.own(&machine.path(folder));
        }
        machine
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A name that is this machine's alone.
    pub fn unique(&self, name: &str) -> String {
        format!("{name}-{}", self.hex)
    }

    /// Gives a file or folder to the application's owner.
    pub fn own(&self, path: &Path) {
        host("chown", &["-R", &format!("{0}:{0}", self.uid), path.to_str().unwrap()]);
    }

    // --- running -----------------------------------------------------------------------------------------------------

    /// A program as the application's owner, with an environment that says where its home is, and whom it trusts.
    pub fn as_owner(&self, program: impl AsRef<Path>) -> Command {
        let mut command = match self.uid {
            0 => Command::new(program.as_ref()),
            uid => {
                let group = fs::metadata("/var/run/docker.sock").unwrap().gid();
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={uid}"), format!("--regid={uid}"), format!("--groups={group}")]);
                command.arg(program.as_ref());
                command
            }
        };
        command.env_clear().env("HOME", self.path("home")).env("PATH", std::env::var_os("PATH").unwrap());
        command.env("SSL_CERT_FILE", self.authority()).current_dir(self.path("home")).stdin(Stdio::null());
        command
    }

    /// The binary; root has folders of its own, anybody else a home.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.as_owner(self.path("lifeboat"));
        if self.uid == 0 {
            command.arg("--config-dir").arg(self.path("config")).arg("--state-dir").arg(self.path("state"));
        }
        command.args(args);
        command
    }

    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let all: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        self.run(&all).json()
    }

    /// Runs these at the same time; how each ended.
    pub fn at_once(&self, runs: [&[&str]; 2]) -> [Ran; 2] {
        let start = |args| self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        runs.map(start).map(|child| Ran::from(child.wait_with_output().unwrap()))
    }

    // --- releases ----------------------------------------------------------------------------------------------------

    /// The repository that the servers pull from, with the first release of a deployment. `swaps` put this machine's
    /// ports and names into its files; each must be found.
    pub fn publish(&self, deployment: &str, code: &str, tag: &str, swaps: &[(&str, String)]) {
        let work = self.path("author");
        copy(&fixture(deployment).join("v1"), &work);
        copy_file(&fixture("common/kit.py"), &work.join(code).join("kit.py"));
        copy_file(&fixture("common/Dockerfile"), &work.join(code).join("Dockerfile"));
        if work.join(code).join("migrations").is_dir() {
            copy_file(&fixture("common/alembic"), &work.join(code).join("alembic"));
            copy_file(&fixture("common/postgres.sh"), &work.join("ops/postgres.sh"));
        }
        let ignored = ".env*\n!.env.example\n*-data/\nsecrets/\n/storage/\noutbox/\nfrontend/dist/\n";
        fs::write(work.join(".gitignore"), ignored).unwrap();
        let known = [("IMAGE", IMAGE.to_owned()), ("BROKER", RABBITMQ.to_owned()), ("STACK", self.hex.clone())];
        for (from, to) in known.iter().chain(swaps) {
            let found = swap_in(&work, from, to);
            assert!(found || *from == "BROKER", "{from:?} is in no file of {deployment}");
        }
        git(&work, &["init", "-q", "-b", "main"]);
        self.commit(tag);
        host("git", &["clone", "-q", "--bare", work.to_str().unwrap(), &self.text("srv/origin.git")]);
        self.own(&self.path("srv/origin.git"));
    }

    /// One more release: the files of a folder of the deployment, over those that are there.
    pub fn release(&self, deployment: &str, version: &str, tag: &str) {
        copy(&fixture(deployment).join(version), &self.path("author"));
        self.commit(tag);
        let origin = self.text("srv/origin.git");
        // git writes into nobody else's repository.
        host("chown", &["-R", "0:0", &origin]);
        git(&self.path("author"), &["push", "-q", "--tags", &origin, "main"]);
        self.own(&self.path("srv/origin.git"));
    }

    fn commit(&self, tag: &str) {
        let work = self.path("author");
        git(&work, &["add", "."]);
        git(&work, &["commit", "-q", "-m", &format!("release {tag}")]);
        git(&work, &["tag", tag]);
    }

    /// A checkout of the repository; where it is.
    pub fn checkout(&self, folder: &str) -> PathBuf {
        let root = self.path("srv").join(folder);
        let done = self.as_owner("git").args(["clone", "-q"]).arg(self.path("srv/origin.git")).arg(&root).status();
        assert!(done.unwrap().success());
        root
    }

    // --- nginx and certificates --------------------------------------------------------------------------------------

    /// A folder as certbot leaves it, with a certificate that is good for the domain, and for this machine.
    pub fn certificates(&self, domain: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/certificates.sh");
        host("bash", &[script.to_str().unwrap(), &self.text("etc/letsencrypt"), domain, "90", "localhost"]);
        // The authority is what this machine trusts, and not a part of what is backed up.
        fs::rename(self.path("etc/letsencrypt/root.pem"), self.authority()).unwrap();
        host("chmod", &["644", self.authority().to_str().unwrap()]);
    }

    pub fn authority(&self) -> PathBuf {
        self.path("authority.pem")
    }

    /// The certificate of a lineage is over: the files are there, and nobody accepts them.
    pub fn expire(&self, domain: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/certificates.sh");
        let other = self.text("expired");
        host("bash", &[script.to_str().unwrap(), &other, domain, "0", "localhost"]);
        for name in ["cert", "chain", "fullchain", "privkey"] {
            let file = format!("archive/{domain}/{name}2.pem");
            let to = self.path("etc/letsencrypt").join(&file);
            fs::write(to, fs::read(Path::new(&other).join(&file)).unwrap()).unwrap();
        }
    }

    /// The deployment's folder of nginx, with `etc/nginx/nginx.conf` that reads `included`. Its paths are this
    /// machine's but where it runs in a container, which has them mounted.
    pub fn nginx_files(&self, deployment: &str, included: &str, here: bool, swaps: &[(&str, String)]) {
        let etc = self.path("etc/nginx");
        copy(&fixture(deployment).join("etc/nginx"), &etc);
        copy_file(&fixture("common/nginx.conf"), &etc.join("nginx.conf"));
        swap_in(&etc, "INCLUDED", included);
        for (from, to) in swaps {
            assert!(swap_in(&etc, from, to), "{from:?} is in no file of nginx of {deployment}");
        }
        if here {
            fs::create_dir_all(self.path("run")).unwrap();
            for (from, to) in [("/etc/", "etc/"), ("/run/", "run/"), ("/var/log/nginx/", "run/")] {
                swap_in(&etc, from, &format!("{}/", self.text(to.trim_end_matches('/'))));
            }
        }
    }

    /// nginx on this host, with that configuration; it ends with the machine.
    pub fn nginx(&self, more: &[&str]) -> Output {
        Command::new("nginx").arg("-c").arg(self.path("etc/nginx/nginx.conf")).args(more).output().unwrap()
    }

    #[track_caller]
    pub fn start_nginx(&self) {
        let done = self.nginx(&[]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    // --- Lifeboat ----------------------------------------------------------------------------------------------------

    pub fn config(&self) -> PathBuf {
        self.path(if self.uid == 0 { "config" } else { "home/.config/lifeboat" })
    }

    pub fn policy_file(&self, policy: &str) -> PathBuf {
        self.config().join(format!("policies/{policy}.toml"))
    }

    /// `init` of an application with a repository in a folder, and then the shipped policy with this machine's places:
    /// `swaps`, each of which must be found.
    pub fn install(&self, policy: &str, shipped: &str, root: &Path, swaps: &[(&str, String)]) {
        let repository = self.text("backups/lifeboat");
        self.init(policy, root, &["--repository", &repository]);
        let text = self.shipped(policy, shipped, swaps);
        // A folder needs no bucket's settings.
        let of_bucket =
            ["endpoint = ", "region = ", "credentials = ", "path_style = ", "limit_upload = ", "object_lock = "];
        let mut kept: Vec<String> = Vec::new();
        for line in text.lines().filter(|line| !of_bucket.iter().any(|o| line.starts_with(o))) {
            let is_url = line.starts_with("url = ");
            kept.push(if is_url { format!("url = {repository:?}") } else { line.to_owned() });
        }
        self.write_policy(policy, &kept.join("\n"));
    }

    /// The same with a bucket, which `swaps` say how to reach as well.
    pub fn install_with(&self, policy: &str, shipped: &str, root: &Path, swaps: &[(&str, String)], reach: &[&str]) {
        self.init(policy, root, reach);
        let text = self.shipped(policy, shipped, swaps);
        self.write_policy(policy, &text);
    }

    fn init(&self, policy: &str, root: &Path, reach: &[&str]) {
        self.run(&[&["init", root.to_str().unwrap(), "--name", policy], reach].concat()).exits(0);
    }

    /// The shipped policy under another name, to the recipient that `init` has made.
    fn shipped(&self, policy: &str, shipped: &str, swaps: &[(&str, String)]) -> String {
        let key = |text: &str| text.split('"').find(|part| part.starts_with("age1")).unwrap().to_owned();
        let recipient = key(&fs::read_to_string(self.policy_file(policy)).unwrap());
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("policies/{shipped}.toml"));
        let mut text = fs::read_to_string(file).unwrap();
        let own = [(format!("name = \"{shipped}\""), format!("name = \"{policy}\"")), (key(&text), recipient)];
        let own = own.iter().map(|(from, to)| (from.as_str(), to));
        for (from, to) in own.chain(swaps.iter().map(|(from, to)| (*from, to))) {
            assert!(text.contains(from), "{from:?} is not in the shipped policy {shipped}");
            text = text.replace(from, to);
        }
        text
    }

    fn write_policy(&self, policy: &str, text: &str) {
        fs::write(self.policy_file(policy), text).unwrap();
        self.run(&["policy", "check", "-p", policy]).exits(0);
    }

    /// A complete snapshot of a policy, with a tag; its id.
    #[track_caller]
    pub fn snapshot(&self, policy: &str, tag: &str) -> String {
        let report = self.run(&["snapshot", "-p", policy, "--tag", tag, "--json"]).exits(0).json();
        assert_eq!(report["header"]["outcome"], "complete", "{report:#}");
        report["header"]["id"].as_str().unwrap().to_owned()
    }

    /// Snapshots of the env files alone, as if they had been taken then.
    pub fn snapshots_of_env(&self, policy: &str, times: &[DateTime<Utc>]) {
        let file = self.policy_file(policy);
        let policy = lifeboat::policy::parse(&file, &fs::read_to_string(&file).unwrap()).unwrap();
        let installation = Installation { config_dir: self.config(), state_dir: self.path("state") };
        let cancel = Cancel::new();
        let mut sources = lifeboat::sources::build(&policy, &installation.state_dir, &cancel);
        sources.retain(|s| s.kind() == "env");
        let options = SnapshotOptions::of(Trigger::Schedule);
        for now in times {
            let plan = snapshot::plan(&policy, &sources, &options).unwrap();
            let run = Run { events: Events::none(), cancel: cancel.clone(), now: *now };
            snapshot::run(&installation, &policy, &plan, &sources, &run).unwrap();
        }
    }

    /// When the snapshots of a policy were taken.
    pub fn times(&self, policy: &str) -> Vec<DateTime<Utc>> {
        let list = self.json(&["list", "-p", policy]);
        list["snapshots"].as_array().unwrap().iter().map(|s| s["time"].as_str().unwrap().parse().unwrap()).collect()
    }

    /// `rollback --to` a tag with further arguments and no questions.
    #[track_caller]
    pub fn rollback(&self, policy: &str, to: &str, more: &[&str]) -> Ran {
        self.run(&[&["rollback", "--to", to, "-p", policy, "--yes"], more].concat())
    }

    /// Tags of all snapshots of a policy.
    pub fn tags(&self, policy: &str) -> Vec<String> {
        let list = self.json(&["list", "-p", policy]);
        let snapshots = list["snapshots"].as_array().unwrap().iter();
        let tags = snapshots.flat_map(|s| s["tags"].as_array().unwrap().iter());
        tags.map(|t| t.as_str().unwrap().to_owned()).collect()
    }

    /// Drills a snapshot: all that ran must have passed.
    #[track_caller]
    pub fn drill(&self, policy: &str, id: &str) -> Value {
        let report = self.json(&["drill", id, "-p", policy]);
        let failed = failed_checks(&report);
        assert!(report["outcome"] == "passed" && failed.is_empty(), "{failed:#?}\n{:#}", report["notes"]);
        report
    }

    // --- what the world sees -----------------------------------------------------------------------------------------

    /// What a URL answers; status 0 when nobody does, or the certificate is not to be trusted.
    pub fn get(&self, url: &str) -> Answer {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-m", "8", "-w", "\n%{http_code}", "--cacert"]).arg(self.authority()).arg(url);
        let output = curl.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        Answer { status: status.parse().unwrap_or(0), body: format!("{body}{error}") }
    }

    /// Waits until a health page says ok; what it says.
    #[track_caller]
    pub fn is_well(&self, url: &str) -> Value {
        self.answers(url, |answer| answer.status == 200)
    }

    /// It is not well, and stays so for two looks.
    #[track_caller]
    pub fn is_unwell(&self, url: &str) -> Answer {
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(500));
            self.answers(url, |answer| answer.status != 200);
        }
        self.get(url)
    }

    #[track_caller]
    pub fn answers(&self, url: &str, wanted: impl Fn(&Answer) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let answer = self.get(url);
            if wanted(&answer) {
                return serde_json::from_str(&answer.body).unwrap_or(Value::Null);
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{url}: {answer:?}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The last words of every container, for a test that fails.
    fn logs(&self) -> String {
        let names =
            docker(["ps", "-a", "--filter", &format!("name={}", self.hex), "--format", "{{.Names}} {{.Status}}"]);
        let mut said = String::new();
        for line in names.lines() {
            let log = try_docker(["logs", "--tail", "8", line.split(' ').next().unwrap()]);
            said +=
                &format!("-- {line}\n{}{}", String::from_utf8_lossy(&log.stdout), String::from_utf8_lossy(&log.stderr));
        }
        said
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(pid) = fs::read_to_string(self.path("run/nginx.pid")) {
            let _ = Command::new("kill").arg(pid.trim()).status();
        }
        let name = format!("name={}", self.hex);
        let remove = |list: &[&str], remove: &[&str]| {
            let listed = try_docker(list);
            let ids: Vec<String> =
                String::from_utf8_lossy(&listed.stdout).split_whitespace().map(str::to_owned).collect();
            if !ids.is_empty() {
                try_docker(remove.iter().copied().chain(ids.iter().map(String::as_str)));
            }
        };
        remove(&["ps", "-aq", "--filter", &name], &["rm", "-f", "-v"]);
        remove(&["volume", "ls", "-q", "--filter", &name], &["volume", "rm", "-f"]);
        remove(&["network", "ls", "-q", "--filter", &name], &["network", "rm"]);
        let pins = format!("reference=lifeboat/*{}*", self.hex);
        remove(&["images", "--filter", &pins, "--format", "{{.Repository}}:{{.Tag}}"], &["rmi"]);
        remove(&["images", "-q", "--filter", &format!("label={LABEL}={}", self.hex)], &["rmi", "-f"]);
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// A secret that must never be printed.
pub fn secret(of: &str) -> String {
    format!("{CANARY}-{of}")
}

/// The checks of a drill that failed, with the source of each.
pub fn failed_checks(report: &Value) -> Vec<(String, Value)> {
    let sources = report["sources"].as_array().unwrap_or_else(|| panic!("{report:#}"));
    let checks = sources.iter().flat_map(|source| {
        let name = source["name"].as_str().unwrap();
        source["checks"].as_array().unwrap().iter().map(move |check| (name.to_owned(), check.clone()))
    });
    checks.filter(|(_, check)| check["verdict"] == "failed").collect()
}

/// A source of a snapshot, by name.
#[track_caller]
pub fn source<'v>(shown: &'v Value, name: &str) -> &'v Value {
    let sources = shown["sources"].as_array().unwrap_or_else(|| panic!("no sources in {shown:#}"));
    sources.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("no source {name} in {shown:#}"))
}

/// What a program of this host prints; it must succeed.
#[track_caller]
pub fn host(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// git as whoever writes the application.
#[track_caller]
pub fn git(dir: &Path, args: &[&str]) -> String {
    let own = ["-c", "safe.directory=*", "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"];
    host("git", &[&["-C", dir.to_str().unwrap()], &own[..], args].concat())
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stacks").join(name)
}

/// The files of a folder, over those that are there.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let from = format!("{}/.", from.display());
    host("cp", &["-a", "--no-preserve=ownership", &from, to.to_str().unwrap()]);
}

fn copy_file(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap();
}

/// Puts one text in the place of another in every file of a folder; whether it was there.
fn swap_in(dir: &Path, from: &str, to: &str) -> bool {
    let mut found = false;
    for (path, bytes) in crate::world::tree(dir) {
        let Ok(text) = String::from_utf8(bytes) else { continue };
        if text.contains(from) {
            fs::write(&path, text.replace(from, to)).unwrap();
            found = true;
        }
    }
    found
}
