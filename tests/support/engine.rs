//! A Docker engine of a test's own: killed with all that it runs, as when a machine loses power, and started again. The
//! machine's own engine is asked for the image alone.
//!
//! It lives in a network and a mount namespace of its own: its bridge is not the machine's `docker0`, and its mounts are
//! gone when it is.

use crate::docker::{IMAGE, docker, unique, use_engine};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct PrivateEngine {
    dir: tempfile::TempDir,
    /// All its containers are below this control group.
    group: String,
    daemon: Option<Child>,
}

impl PrivateEngine {
    /// Up, with the test image. From here on this test's commands go to it.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("lb-engine-").tempdir().unwrap();
        let mut engine = Self { dir, group: unique("lifeboat-engine"), daemon: None };
        engine.begin();
        let mut save = Command::new("docker").args(["save", IMAGE]).stdout(Stdio::piped()).spawn().unwrap();
        let mut load = Command::new("docker");
        load.arg("load").env("DOCKER_HOST", engine.endpoint()).stdin(save.stdout.take().unwrap()).stdout(Stdio::null());
        assert!(load.status().unwrap().success() && save.wait().unwrap().success(), "{}", engine.log());
        use_engine(Some(engine.endpoint()));
        engine
    }

    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.dir.path().join("sock").display())
    }

    /// Starts the daemon, and waits until it answers.
    pub fn begin(&mut self) {
        let at = |name: &str| self.dir.path().join(name);
        // Left behind by one that was killed, these keep the next one from starting.
        for file in ["pid", "exec/containerd/containerd.pid"] {
            let _ = fs::remove_file(at(file));
        }
        let log = fs::File::options().create(true).append(true).open(at("log")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "setpriv", "--pdeathsig", "KILL", "sh", "-c"]);
        command.arg("ip link set lo up && exec dockerd \"$@\"").arg("dockerd");
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(option).arg(at(name));
        }
        command.args(["--host", &self.endpoint(), "--cgroup-parent", &format!("/{}", self.group)]);
        // Systemd takes slices only.
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.daemon = Some(command.spawn().expect("unshare, of util-linux"));
        let end = Instant::now() + Duration::from_secs(60);
        while !self.answers() {
            assert!(Instant::now() < end, "the private engine does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn answers(&self) -> bool {
        let mut asked = Command::new("docker");
        asked.arg("version").env("DOCKER_HOST", self.endpoint()).stdout(Stdio::null()).stderr(Stdio::null());
        asked.status().unwrap().success()
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        text.lines().rev().take(12).collect::<Vec<_>>().join("\n")
    }

    /// SIGKILL for the daemon, its containerd, its shims and everything in its containers.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "these do not end: {left:?}");
            for pid in left {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Those that name its folder, and those in its control group.
    fn processes(&self) -> Vec<rustix::process::Pid> {
        let own = self.dir.path().to_str().unwrap().as_bytes();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let argv = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if argv.windows(own.len()).any(|w| w == own) && pid != std::process::id() as i32 {
                found.push(pid);
            }
        }
        for group in self.groups() {
            let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        found.into_iter().filter_map(rustix::process::Pid::from_raw).collect()
    }

    /// The control groups of its containers: the inner ones first.
    fn groups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path());
        let tops = controllers.chain([root.to_owned()]).map(|dir| dir.join(&self.group)).filter(|dir| dir.is_dir());
        let mut found: Vec<PathBuf> = tops.collect();
        let mut at = 0;
        while at < found.len() {
            let inner = fs::read_dir(&found[at]).into_iter().flatten().flatten();
            let inner: Vec<PathBuf> =
                inner.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect();
            found.extend(inner);
            at += 1;
        }
        found.reverse();
        found
    }
}

impl Drop for PrivateEngine {
    fn drop(&mut self) {
        use_engine(None);
        self.kill();
        for group in self.groups() {
            let _ = fs::remove_dir(group);
        }
    }
}

/// What a private engine has under a name; for messages of a test.
pub fn containers(project: &str) -> Vec<String> {
    let label = format!("label=com.docker.compose.project={project}");
    let listed = docker(["ps", "-a", "--filter", &label, "--format", "{{.Names}}"]);
    let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
    names.sort();
    names
}
