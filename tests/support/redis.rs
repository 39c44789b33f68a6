//! A real Redis server of a test: on a random port of the loopback interface and a socket in its own folder, ended by
//! the id that it was started with.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use crate::port::free_port;
use rustix::process::{Pid, Signal};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct RedisServer {
    child: Child,
    pub port: u16,
    pub dir: PathBuf,
    password: Option<String>,
    tls: bool,
    _folder: tempfile::TempDir,
}

impl RedisServer {
    /// Starts a server; `options` are as on its command line, such as `--requirepass`, `x`.
    pub fn start_with(options: &[&str]) -> Self {
        Self::start_in(tempfile::Builder::new().prefix("lifeboat-redis-").tempdir().unwrap(), options)
    }

    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server on files that lie there already.
    pub fn start_in(folder: tempfile::TempDir, options: &[&str]) -> Self {
        let port = free_port();
        let dir = folder.path().to_owned();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let tls = options.contains(&"--tls-port");
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--enable-debug-command", "yes"]);
        command.args(["--repl-diskless-sync-delay", "0", "--dir"]).arg(&dir).arg("--unixsocket").arg(dir.join("sock"));
        match tls {
            true => command.args(["--port", "0"]),
            false => command.args(["--port", &port.to_string()]),
        };
        let replaced: Vec<String> = options.iter().map(|o| o.replace("{port}", &port.to_string())).collect();
        let child = command
            .args(&replaced)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed (Debian: apt install redis-server)");
        let password = options.iter().position(|o| *o == "--requirepass").map(|i| options[i + 1].to_owned());
        let server = Self { child, port, dir, password, tls, _folder: folder };
        let begin = Instant::now();
        while !server.cli(&["PING"]).contains("PONG") {
            assert!(begin.elapsed() < Duration::from_secs(30), "Redis does not start: {}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn redis_cli(&self) -> Command {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(self.dir.join("sock"));
        if let Some(password) = &self.password {
            command.env("REDISCLI_AUTH", password);
        }
        command
    }

    /// Asks the server, through its socket and as its default user.
    pub fn cli(&self, words: &[&str]) -> String {
        let out = self.redis_cli().args(words).stdin(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&out.stdout).trim_end().to_owned()
    }

    /// Sends many commands at once, one a line.
    pub fn pipe(&self, commands: &str) {
        let mut child = self
            .redis_cli()
            .arg("--pipe")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{out:?}");
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Stops the server in its tracks; its connections stay open.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
