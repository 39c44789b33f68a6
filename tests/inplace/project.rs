//! A compose project whose service is well only with the right data in its volume: as root, and as a user in group docker.

use crate::docker::{IMAGE, TestProject, docker, engine, try_docker, unique};
use crate::files::{same, state};
use crate::world::{Ran, World};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const COMPOSE: &str = r#"
services:
  db:
    image: IMAGE
    command: ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"]
    healthcheck: {test: ["CMD", "test", "!", "-e", "/sick"], interval: 1s, retries: 1}
  api:
    image: IMAGE
    depends_on: {db: {condition: service_healthy}}
    command: ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"]
    volumes: ["data:/data"]
    healthcheck: {test: ["CMD", "grep", "-q", "good", "/data/state"], interval: 1s, retries: 2}
  worker:
    image: IMAGE
    depends_on: [api]
    command: ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"]
volumes: {data: {}}
"#;

const POLICY: &str = r#"
[[source]]
kind = "volume"
name = "data"
volumes = ["data"]
[rollback]
stop = ["api", "worker"]
[[health]]
container = "api"
attempts = 30
interval = "1s"
"#;

struct Site {
    project: TestProject,
    world: World,
    uid: u32,
}

/// The pins of its snapshots go with it; other tests have a policy of the same name.
impl Drop for Site {
    fn drop(&mut self) {
        let listed = self.command(&["list", "--json"]).output().unwrap().stdout;
        let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap_or_default();
        let ids = listed["snapshots"].as_array().into_iter().flatten().filter_map(|s| s["id"].as_str());
        let ids: Vec<String> = ids.map(str::to_lowercase).collect();
        let pins = docker(["images", "--format", "{{.Repository}}:{{.Tag}}", "lifeboat/shop-*"]);
        for pin in pins.lines().filter(|pin| ids.iter().any(|id| pin.contains(id.as_str()))) {
            try_docker(["rmi", pin]);
        }
    }
}

impl Site {
    fn up(uid: u32) -> Self {
        engine();
        let world = World::new();
        let name = unique("inplace");
        fs::write(world.app().join("compose.yaml"), COMPOSE.replace("IMAGE", IMAGE)).unwrap();
        fs::write(world.app().join(".env"), format!("MODE=production\nCOMPOSE_PROJECT_NAME={name}\n")).unwrap();
        // Healthy from the start: the volume is filled before anything runs.
        let volume = format!("{name}_data");
        let labels = [format!("com.docker.compose.project={name}"), "com.docker.compose.volume=data".to_owned()];
        docker(["volume", "create", "--label", &labels[0], "--label", &labels[1], &volume]);
        docker([
            "run",
            "--rm",
            "-v",
            &format!("{volume}:/data"),
            IMAGE,
            "sh",
            "-c",
            "echo good > /data/state; mkdir /data/sub; echo one > /data/sub/one",
        ]);
        let project = TestProject::up(&world.app(), &name, &[]);
        let site = Self { project, world, uid };
        fs::copy(env!("CARGO_BIN_EXE_lifeboat"), site.world.path("lifeboat")).unwrap();
        if uid != 0 {
            fs::set_permissions(site.world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let own = format!("{uid}:{uid}");
            let done = Command::new("chown").args(["-R", &own]).arg(site.world.dir.path()).status().unwrap();
            assert!(done.success());
        }
        let app = site.world.app();
        site.run(&["init", app.to_str().unwrap(), "--name", "shop"]).exits(0);
        let text = fs::read_to_string(site.world.policy()).unwrap();
        // What `init` has found itself is said here in this test's own words.
        let head: Vec<&str> = text.split("\n[[source]]").take(1).collect();
        fs::write(site.world.policy(), format!("{}\n{POLICY}", head[0])).unwrap();
        site
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = if self.uid == 0 {
            Command::new(self.world.path("lifeboat"))
        } else {
            let group = fs::metadata("/var/run/docker.sock").unwrap().gid();
            let mut command = Command::new("setpriv");
            command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.uid));
            command.arg(format!("--groups={group}")).arg(self.world.path("lifeboat"));
            command
        };
        command.arg("--config-dir").arg(self.world.path("config")).arg("--state-dir").arg(self.world.path("state"));
        command.env_clear().env("HOME", self.world.dir.path()).env("PATH", std::env::var_os("PATH").unwrap());
        command.args(arguments).current_dir(self.world.dir.path()).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    fn container(&self, service: &str) -> String {
        format!("{}-{service}-1", self.project.name)
    }

    fn started(&self, service: &str) -> String {
        docker(["inspect", "-f", "{{.State.StartedAt}}", &self.container(service)])
    }

    fn running(&self) -> Vec<String> {
        let label = format!("label=com.docker.compose.project={}", self.project.name);
        let listed = docker(["ps", "--filter", &label, "--format", "{{.Label \"com.docker.compose.service\"}}"]);
        let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// The volume on this machine's disk; tests are root.
    fn volume(&self) -> PathBuf {
        let name = format!("{}_data", self.project.name);
        docker(["volume", "inspect", "-f", "{{.Mountpoint}}", &name]).into()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.volume().join(name), text).unwrap();
    }

    /// No helper container stays that has something of this site mounted. Somebody else's sweep may be at it.
    fn no_helper_stays(&self, case: &str) {
        let begin = Instant::now();
        let root = self.world.path("");
        let own = [self.project.name.as_str(), root.to_str().unwrap()];
        loop {
            let listed = docker(["ps", "-aq", "--filter", "label=lifeboat.role=place"]);
            let mounts = |id: &&str| try_docker(["inspect", "-f", "{{json .Mounts}}", id]).stdout;
            let is_own = |id: &&str| own.iter().any(|word| String::from_utf8_lossy(&mounts(id)).contains(word));
            let left: Vec<&str> = listed.lines().filter(is_own).collect();
            if left.is_empty() {
                return;
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "{case}: {left:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Nothing beside the live state but what is kept on purpose.
    fn nothing_left(&self) {
        let names: Vec<String> =
            fs::read_dir(self.volume()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert!(names.iter().all(|n| !n.starts_with(".lifeboat")), "{names:?}");
        for entry in fs::read_dir(self.world.path("state/rollback")).into_iter().flatten() {
            let path = entry.unwrap().path();
            assert!(path.is_file(), "{}", path.display());
        }
    }
}

/// What comes through the engine has whole seconds.
fn seconds(state: Vec<(PathBuf, String)>) -> Vec<(PathBuf, String)> {
    let cut = |line: String| match line.split_once('.') {
        Some((before, after)) => format!("{before} {}", after.split_once(' ').map_or("", |a| a.1)),
        None => line,
    };
    state.into_iter().map(|(path, line)| (path, cut(line))).collect()
}

fn without(state: Vec<(PathBuf, String)>, names: &[&str]) -> Vec<(PathBuf, String)> {
    let left = |p: &Path| names.iter().all(|n| p != Path::new(n)) && !p.to_string_lossy().starts_with(".lifeboat");
    state.into_iter().filter(|(p, _)| left(p)).collect()
}

/// Good data come back under the service, bad data do not stay, as this account.
fn both_ways(uid: u32) {
    let site = Site::up(uid);
    let good = state(&site.volume());
    site.run(&["snapshot", "--tag", "good"]).exits(0);
    let (api, db) = (site.started("api"), site.started("db"));
    site.write("state", "good but newer\n");
    site.write("sub/one", "changed\n");
    site.write("newer", "newer\n");
    let spoilt = state(&site.volume());
    let report = site.run(&["restore", "good", "--in-place", "--only", "data", "--yes", "--json"]).exits(0).json();
    assert_eq!(report["outcome"], "done", "{report:#}");
    assert!(report["downtime_seconds"].as_f64().unwrap() > 0.0, "{report:#}");
    same(&seconds(good), &seconds(without(state(&site.volume()), &["newer"])));
    assert!(site.started("api") != api && site.started("db") == db, "what was stopped is exactly what the policy says");
    assert_eq!(site.running(), ["api", "db", "worker"]);
    site.run(&["restore", "--undo", "--yes"]).exits(0);
    same(&spoilt, &without(state(&site.volume()), &[]));
    site.nothing_left();

    // A snapshot of data with which the service is not well.
    site.write("state", "bad\n");
    site.run(&["snapshot", "--tag", "bad"]).exits(0);
    site.write("state", "good again\n");
    let wait = || docker(["inspect", "-f", "{{.State.Health.Status}}", &site.container("api")]);
    for _ in 0..60 {
        if wait() == "healthy" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    assert_eq!(wait(), "healthy");
    let before = state(&site.volume());
    site.run(&["restore", "bad", "--in-place", "--yes"]).exits(1).says(&["not well afterwards", "as it was before"]);
    same(&before, &state(&site.volume()));
    assert_eq!(site.running(), ["api", "db", "worker"]);
    site.nothing_left();
    site.no_helper_stays("at the end");
}

#[test]
fn as_root() {
    both_ways(0);
}

#[test]
fn as_a_user_in_group_docker() {
    both_ways(65534);
}

/// Only a service that ran is started again, and the order is Compose's.
#[test]
fn what_did_not_run_is_not_started() {
    let site = Site::up(0);
    site.run(&["snapshot", "--tag", "good"]).exits(0);
    docker(["stop", "-t", "1", &site.container("worker")]);
    site.write("state", "good but newer\n");
    // The store that the others wait for is not well, and was not before: that is no reason to wait for it.
    docker(["exec", &site.container("db"), "touch", "/sick"]);
    while docker(["inspect", "-f", "{{.State.Health.Status}}", &site.container("db")]) != "unhealthy" {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let begun = std::time::Instant::now();
    site.run(&["restore", "good", "--in-place", "--yes"]).exits(0);
    assert_eq!(site.running(), ["api", "db"]);
    assert!(begun.elapsed().as_secs() < 100, "it was waited for");
}

/// Killed while the services are down: they come up again with one of the two states.
#[test]
fn killed_while_services_are_down() {
    for uid in [0, 65534] {
        let site = Site::up(uid);
        let good = state(&site.volume());
        site.run(&["snapshot", "--tag", "good"]).exits(0);
        site.write("state", "good but newer\n");
        let spoilt = state(&site.volume());
        for delay in [0, 150, 600, 1500] {
            let mut child = site
                .command(&["restore", "good", "--in-place", "--yes"])
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let down = |s: &Site| !s.running().contains(&"api".to_owned());
            while !down(&site) && child.try_wait().unwrap().is_none() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            std::thread::sleep(std::time::Duration::from_millis(delay));
            // strace and setpriv are not between: the child is the command itself.
            Command::new("kill").args(["-9", &child.id().to_string()]).status().unwrap();
            child.wait().unwrap();
            if site.run(&["list"]).exits(0).err.contains("cut short") {
                site.run(&["restore", "--resume"]).exits(0);
            }
            assert_eq!(site.running(), ["api", "db", "worker"], "{uid} {delay}");
            let now = without(state(&site.volume()), &[]);
            if now.iter().any(|line| spoilt.contains(line) && line.0 == Path::new("state")) {
                same(&spoilt, &now);
                site.nothing_left();
            } else {
                same(&seconds(good.clone()), &seconds(now));
                site.run(&["restore", "--undo", "--yes"]).exits(0);
                same(&spoilt, &without(state(&site.volume()), &[]));
            }
            // A helper that the kill left is gone with the next run.
            site.run(&["snapshot"]).exits(0);
            site.no_helper_stays(&format!("{uid} {delay}"));
        }
    }
}

/// Paths that only root may read or write, put back by a user through the engine.
#[test]
fn root_s_own_files_by_a_user_in_group_docker() {
    let site = Site::up(65534);
    let etc = site.world.path("etc");
    fs::create_dir_all(etc.join("site/sub")).unwrap();
    fs::write(etc.join("site/a.conf"), "good\n").unwrap();
    fs::write(etc.join("site/sub/b.conf"), "good\n").unwrap();
    fs::set_permissions(etc.join("site"), fs::Permissions::from_mode(0o700)).unwrap();
    let text = fs::read_to_string(site.world.policy()).unwrap();
    let source =
        format!("[[source]]\nkind = \"files\"\nname = \"etc\"\npaths = [{:?}]\nvia = \"docker\"\n", etc.join("site"));
    fs::write(site.world.policy(), format!("{text}\n{source}")).unwrap();
    site.run(&["snapshot", "--tag", "good"]).exits(0);
    let good = state(&etc);
    fs::write(etc.join("site/a.conf"), "changed\n").unwrap();
    fs::remove_dir_all(etc.join("site/sub")).unwrap();
    fs::write(etc.join("site/newer.conf"), "newer\n").unwrap();
    let spoilt = state(&etc);
    site.run(&["restore", "good", "--in-place", "--only", "etc", "--exact", "--yes"]).exits(0);
    same(&seconds(good), &seconds(without(state(&etc), &[])));
    site.run(&["restore", "--undo", "--yes"]).exits(0);
    same(&spoilt, &without(state(&etc), &[]));
    site.no_helper_stays("at the end");
}
