//! Real S3 servers of a test, which nobody here wrote: s3s-fs, and moto. Each runs on a free port of the loopback
//! interface and is ended by the id that it was started with. `scripts/test.sh` installs them.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use crate::port::free_port;
use lifeboat::storage::S3Storage;
use lifeboat::storage::s3::credentials::CredentialSource;
use lifeboat::storage::s3::settings::{Pace, S3Settings, ServerTraits};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const BUCKET: &str = "backups";
const KEY_ID: &str = "AKIATESTTESTTESTTEST";
pub const SECRET: &str = "a-secret-of-the-tests-and-of-nobody-else";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Honours conditions, checks digests and signatures; no versions, no locks.
    S3sFs,
    /// Honours conditions, ignores digests; versions and locks.
    Moto,
}

pub struct S3Server {
    child: Child,
    pub kind: Kind,
    pub port: u16,
    dir: tempfile::TempDir,
}

impl S3Server {
    /// Starts a server with one empty bucket.
    pub fn start(kind: Kind) -> Self {
        let dir = tempfile::Builder::new().prefix("lifeboat-s3-").tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root").join(BUCKET)).unwrap();
        let credentials = dir.path().join("credentials.env");
        let mut file = std::fs::OpenOptions::new();
        let mut file = file.create_new(true).write(true).mode(0o600).open(&credentials).unwrap();
        writeln!(file, "AWS_ACCESS_KEY_ID={KEY_ID}\nAWS_SECRET_ACCESS_KEY={SECRET}").unwrap();
        let port = free_port();
        let log = || std::fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(program(kind));
        match kind {
            Kind::S3sFs => command
                .args(["--host", "127.0.0.1", "--port", &port.to_string()])
                .args(["--access-key", KEY_ID, "--secret-key", SECRET])
                .arg(dir.path().join("root")),
            Kind::Moto => command.args(["-H", "127.0.0.1", "-p", &port.to_string()]),
        };
        let child = command.stdin(Stdio::null()).stdout(log()).stderr(log()).spawn().expect("an S3 server starts");
        let server = Self { child, kind, port, dir };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(60), "{kind:?} does not start: {}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        if kind == Kind::Moto {
            let answer = server.raw(&format!("PUT /{BUCKET} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n"));
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        server
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The file with this server's credentials.
    pub fn credentials(&self) -> PathBuf {
        self.dir.path().join("credentials.env")
    }

    /// Where the objects of a bucket of s3s-fs lie as files.
    pub fn files(&self) -> PathBuf {
        self.dir.path().join("root").join(BUCKET)
    }

    /// How to reach a prefix of the bucket, through `endpoint` (the server itself, or a proxy).
    pub fn settings(&self, endpoint: &str, prefix: &str) -> S3Settings {
        S3Settings {
            bucket: BUCKET.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: Some(endpoint.to_owned()),
            region: Some("us-east-1".to_owned()),
            credentials: CredentialSource::File(self.credentials()),
            path_style: true,
            limit_upload: None,
            object_lock: None,
            server: ServerTraits::default(),
            pace: quick(),
        }
    }

    pub fn storage(&self, prefix: &str) -> S3Storage {
        S3Storage::new(&self.settings(&self.endpoint(), prefix)).unwrap()
    }

    /// One more bucket, with Object Lock (moto only).
    pub fn bucket_with_lock(&self, name: &str) {
        let head = format!("PUT /{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n");
        let answer = self.raw(&format!("{head}x-amz-bucket-object-lock-enabled: true\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// One unsigned request; `head` ends in its last header's line.
    pub fn raw(&self, head: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let auth =
            format!("Authorization: AWS4-HMAC-SHA256 Credential={KEY_ID}/20260101/us-east-1/s3/aws4_request\r\n");
        write!(stream, "{head}{auth}Connection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The times of a test: nothing waits for a minute.
pub fn quick() -> Pace {
    Pace {
        stall: Duration::from_secs(3),
        deadline: Duration::from_secs(8),
        first_contact: Duration::from_secs(2),
        first_pause: Duration::from_millis(20),
        longest_pause: Duration::from_millis(500),
    }
}

/// The server's program: named by the environment, or where `scripts/test.sh` puts it.
pub fn program(kind: Kind) -> PathBuf {
    let (variable, place) = match kind {
        Kind::S3sFs => ("LIFEBOAT_S3S_FS", "tools/bin/s3s-fs"),
        Kind::Moto => ("LIFEBOAT_MOTO", "tools/moto/bin/moto_server"),
    };
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let path = std::env::var_os(variable).map(PathBuf::from);
    let path = path.unwrap_or_else(|| cache.unwrap_or_else(home).join("lifeboat").join(place));
    assert!(path.exists(), "{} is missing: scripts/test.sh installs it, or set {variable}", path.display());
    path
}
