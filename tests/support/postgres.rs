//! A real PostgreSQL server of a test: made by `initdb`, run as an unprivileged account, reached by a socket in its
//! own folder and by a random port of the loopback interface, and ended by the id that it was started with.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use crate::port::free_port;
use rustix::process::{Pid, Signal};
use std::io::Write;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use lifeboat::place::account::{Account, is_root};

pub struct PostgresServer {
    child: Child,
    pub dir: PathBuf,
    pub data: PathBuf,
    pub port: u16,
    _folder: tempfile::TempDir,
}

/// The folder of the server's programs.
pub fn bin() -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL's server programs are installed (Debian: apt install postgresql)")
        .map(|e| e.unwrap().path().join("bin"))
        .filter(|p| p.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().expect("PostgreSQL's server programs are installed (Debian: apt install postgresql)")
}

/// A program that runs as the account `postgres` when this process is root: the server refuses to run as root.
fn as_server_account(program: &Path) -> Command {
    let mut command = Command::new(program);
    if is_root() {
        let account = Account::find("postgres").expect("the account postgres");
        command.uid(account.uid).gid(account.gid);
    }
    command.current_dir("/").env("LC_ALL", "C.UTF-8");
    command
}

impl PostgresServer {
    /// A fresh cluster; `options` go to the server, such as `-c`, `max_connections=20`.
    pub fn start_with(initdb: &[&str], options: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("lifeboat-pg-").tempdir().unwrap();
        if is_root() {
            let account = Account::find("postgres").expect("the account postgres");
            chown(folder.path(), Some(account.uid), Some(account.gid)).unwrap();
        }
        let dir = folder.path().to_owned();
        let data = dir.join("data");
        let made = as_server_account(&bin().join("initdb"))
            .args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"])
            .args(initdb)
            .arg("--pgdata")
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let child = Self::serve(&dir, &data, port, options);
        let server = Self { child, dir, data, port, _folder: folder };
        server.until_ready();
        server
    }

    pub fn start() -> Self {
        Self::start_with(&[], &[])
    }

    /// One server for all tests of a binary that need nothing of their own but a database; the last one ends it.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let options = ["-c", "max_prepared_transactions=5", "-c", "wal_level=logical", "-c", "max_connections=200"];
        let server = Arc::new(Self::start_with(&[], &options));
        *shared = Arc::downgrade(&server);
        server
    }

    /// A standby of this server, made by `pg_basebackup`.
    pub fn standby(&self) -> Self {
        let folder = tempfile::Builder::new().prefix("lifeboat-pg-").tempdir().unwrap();
        if is_root() {
            let account = Account::find("postgres").expect("the account postgres");
            chown(folder.path(), Some(account.uid), Some(account.gid)).unwrap();
        }
        let (dir, port) = (folder.path().to_owned(), free_port());
        let data = dir.join("data");
        let copied = as_server_account(&bin().join("pg_basebackup"))
            .args(["--no-sync", "--checkpoint=fast", "--write-recovery-conf", "--username=postgres", "--host"])
            .arg(&self.dir)
            .args(["--port", &self.port.to_string(), "--pgdata"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(copied.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&copied.stderr));
        let child = Self::serve(&dir, &data, port, &[]);
        let server = Self { child, dir, data, port, _folder: folder };
        server.until_ready();
        server
    }

    fn serve(dir: &Path, data: &Path, port: u16, options: &[&str]) -> Child {
        let log = std::fs::File::options().append(true).create(true).open(dir.join("log")).unwrap();
        as_server_account(&bin().join("postgres"))
            .arg("-D")
            .arg(data)
            .args(["-F", "-k"])
            .arg(dir)
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "autovacuum=off"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn until_ready(&self) {
        let begin = Instant::now();
        while self.try_psql("postgres", "SELECT 1").is_err() {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(begin.elapsed() < Duration::from_secs(60), "PostgreSQL does not start: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A tool of PostgreSQL with its connection in the environment.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(bin().join(name));
        command.env("PGHOST", &self.dir).env("PGPORT", self.port.to_string()).env("PGUSER", "postgres");
        command.env("PGCLIENTENCODING", "UTF8").stdin(Stdio::null());
        command
    }

    /// A tool connected to a database of any name.
    pub fn connected(&self, name: &str, database: &str) -> Command {
        let quoted = database.replace('\\', "\\\\").replace('\'', "\\'");
        let mut command = self.tool(name);
        command.arg(format!("--dbname=dbname='{quoted}'"));
        command
    }

    fn try_psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut child = self
            .connected("psql", database)
            .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(sql.as_bytes());
        let out = child.wait_with_output().unwrap();
        match out.status.success() {
            true => Ok(String::from_utf8_lossy(&out.stdout).trim_end().to_owned()),
            false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
        }
    }

    /// Runs SQL as the superuser.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        self.try_psql(database, sql).unwrap_or_else(|e| panic!("{database}: {e}"))
    }

    /// A new database of this name.
    pub fn create(&self, name: &str) {
        self.sql("postgres", &format!("CREATE DATABASE \"{}\" TEMPLATE template0", name.replace('"', "\"\"")));
    }

    /// Loads dumps, in order, into a fresh database; errors are fatal.
    pub fn restore(&self, database: &str, dumps: &[Vec<u8>]) {
        self.create(database);
        for dump in dumps {
            let file = self.dir.join(format!("restore-{}", hex::encode(database)));
            std::fs::write(&file, dump).unwrap();
            let out = self.connected("pg_restore", database).arg("--exit-on-error").arg(&file).output().unwrap();
            assert!(out.status.success(), "pg_restore: {}", String::from_utf8_lossy(&out.stderr));
            std::fs::remove_file(&file).unwrap();
        }
    }

    /// What a `pg_dump` archive lists.
    pub fn list(&self, dump: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), dump).unwrap();
        let out = self.tool("pg_restore").arg("--list").arg(file.path()).output().unwrap();
        assert!(out.status.success(), "pg_restore --list: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// The server's URL through its socket.
    pub fn socket_url(&self, user: &str, database: &str) -> String {
        let encode = |s: &str| percent_encoding::utf8_percent_encode(s, percent_encoding::NON_ALPHANUMERIC).to_string();
        let dir = encode(self.dir.to_str().unwrap());
        format!("postgres://{}@/{}?host={dir}&port={}", encode(user), encode(database), self.port)
    }

    /// The server's URL over TCP, at its own port or through a proxy's.
    pub fn tcp_url(&self, user: &str, database: &str, port: u16) -> String {
        format!("postgres://{user}@127.0.0.1:{port}/{database}?sslmode=disable")
    }

    /// Stops the server and keeps its files.
    pub fn stop(&mut self) {
        // SIGINT: fast shutdown.
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, Signal::INT);
        }
        let begin = Instant::now();
        while self.child.try_wait().ok().flatten().is_none() {
            if begin.elapsed() > Duration::from_secs(20) {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts it again after [`PostgresServer::stop`].
    pub fn start_again(&mut self) {
        self.child = Self::serve(&self.dir, &self.data, self.port, &[]);
        self.until_ready();
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop();
    }
}
