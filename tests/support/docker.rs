//! A real engine for tests: loud when it is not there, and everything that a test starts is removed by its id.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use lifeboat::base::cancel::Cancel;
use lifeboat::place::Docker;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A small image of this host's own programs: shell, coreutils, tar, ps, Postgres, Redis, nginx, Python.
pub const IMAGE: &str = "lifeboat-test/host:2";

/// The engine; panics with the way out when it does not answer or the image is missing.
pub fn engine() -> Docker {
    let docker = match Docker::connect(&Cancel::new()) {
        Ok(docker) => docker,
        Err(e) => panic!("these tests need a Docker engine: {e}; scripts/test.sh installs and starts one"),
    };
    if docker.image(IMAGE).expect("ask the engine for an image").is_none() {
        panic!("these tests need the image {IMAGE}; scripts/test.sh builds it");
    }
    docker
}

thread_local! {
    static HOST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on the commands of this test go to another engine than the machine's.
pub fn use_engine(endpoint: Option<String>) {
    HOST.set(endpoint);
}

/// `DOCKER_HOST` for this test, where it has an engine of its own.
pub fn host() -> Option<String> {
    HOST.with_borrow(Clone::clone)
}

fn program() -> Command {
    let mut command = Command::new("docker");
    command.envs(host().map(|host| ("DOCKER_HOST", host)));
    command
}

/// Runs `docker` (the program) and returns its output; panics with its words.
pub fn docker<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> String {
    let output = try_docker(arguments);
    assert!(output.status.success(), "docker: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub fn try_docker<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    program().args(arguments).output().expect("the docker program, which scripts/test.sh installs")
}

/// A name that no other test has.
pub fn unique(prefix: &str) -> String {
    let random: [u8; 5] = lifeboat::base::ids::random_bytes().unwrap();
    format!("{prefix}-{}", hex::encode(random))
}

/// A container, removed when dropped.
pub struct TestContainer {
    pub id: String,
    pub name: String,
}

impl TestContainer {
    /// `docker run -d` of the test image with these options, doing nothing until it is removed.
    pub fn idle(options: &[&str]) -> Self {
        Self::run(options, IMAGE, &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"])
    }

    pub fn run(options: &[&str], image: &str, command: &[&str]) -> Self {
        let name = unique("lifeboat-test");
        let mut arguments = vec!["run", "-d", "--name", &name];
        arguments.extend(options);
        arguments.push(image);
        arguments.extend(command);
        let id = docker(arguments);
        Self { id, name }
    }
}

impl Drop for TestContainer {
    fn drop(&mut self) {
        try_docker(["rm", "-f", "-v", &self.id]);
    }
}

/// A volume, removed when dropped (after the containers that use it).
pub struct TestVolume(pub String);

impl TestVolume {
    pub fn new() -> Self {
        Self(docker(["volume", "create", &unique("lifeboat-test")]))
    }
}

impl Drop for TestVolume {
    fn drop(&mut self) {
        try_docker(["volume", "rm", "-f", &self.0]);
    }
}

/// An image tag, removed when dropped.
pub struct TestImage(pub String);

impl Drop for TestImage {
    fn drop(&mut self) {
        try_docker(["rmi", "-f", &self.0]);
    }
}

/// A compose project in a folder, taken down with its volumes when dropped.
pub struct TestProject {
    pub dir: PathBuf,
    pub name: String,
    /// Arguments after `compose`, such as `-f` and `--profile`.
    pub arguments: Vec<String>,
}

impl TestProject {
    /// `docker compose … up -d --wait` of the files in `dir`.
    pub fn up(dir: &Path, name: &str, arguments: &[&str]) -> Self {
        let project = Self {
            dir: dir.to_owned(),
            name: name.to_owned(),
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
        };
        project.compose(&["up", "-d", "--wait"]);
        project
    }

    /// Runs a compose command of this project.
    pub fn compose(&self, command: &[&str]) -> String {
        let output = self.try_compose(command);
        assert!(output.status.success(), "docker compose: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn try_compose(&self, command: &[&str]) -> Output {
        program()
            .current_dir(&self.dir)
            .args(["compose", "-p", &self.name])
            .args(&self.arguments)
            .args(command)
            .output()
            .expect("the docker program, which scripts/test.sh installs")
    }
}

impl Drop for TestProject {
    fn drop(&mut self) {
        self.try_compose(&["down", "-v", "--timeout", "1", "--remove-orphans"]);
    }
}
