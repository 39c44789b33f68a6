//! The command line on an S3 repository: init writes a policy that works, a snapshot comes back, a stranger needs
//! nothing but the environment and the identity.

use crate::s3::{BUCKET, Kind, S3Server};
use std::path::Path;
use std::process::{Command, Output};

pub struct Host<'a> {
    pub dir: &'a Path,
}

impl Host<'_> {
    pub fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.dir);
        command.arg("--config-dir").arg(self.dir.join("config")).arg("--state-dir").arg(self.dir.join("state"));
        command.args(args).current_dir(self.dir).output().unwrap()
    }

    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }
}

#[test]
fn init_snapshot_verify_restore_and_a_stranger() {
    let server = S3Server::start(Kind::S3sFs);
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("shop");
    std::fs::create_dir(&app).unwrap();
    std::fs::write(app.join(".env"), "DB_PASSWORD=canary\n").unwrap();
    std::fs::copy(server.credentials(), dir.path().join("s3.env")).unwrap();
    let host = Host { dir: dir.path() };
    let url = format!("s3://{BUCKET}/shop");
    let endpoint = server.endpoint();
    let init = ["init", "shop", "--repository", &url, "--endpoint", &endpoint];
    let init = [&init[..], &["--region", "eu-test-1", "--credentials", "file:s3.env"]].concat();
    let out = host.run(&init);
    let text = String::from_utf8_lossy(&out.stderr);
    // The server was told another region at its start, and does not mind.
    assert!(out.status.success(), "{text}");
    let policy = std::fs::read_to_string(dir.path().join("config/policies/shop.toml")).unwrap();
    assert!(
        policy.contains(&format!("endpoint = \"{endpoint}\"")) && policy.contains("region = \"eu-test-1\""),
        "{policy}"
    );
    assert!(policy.contains(&format!("credentials = \"file:{}\"", dir.path().join("s3.env").display())), "{policy}");
    let notes: Vec<_> = std::fs::read_dir(dir.path().join("state")).unwrap().map(|e| e.unwrap().file_name()).collect();
    let note = notes.iter().find(|n| n.to_string_lossy().starts_with("probe-")).expect("what the probe found is kept");
    let note = std::fs::read_to_string(dir.path().join("state").join(note)).unwrap();
    assert!(note.contains("\"conditions\": \"honoured\"") && !note.contains("a-secret"), "{note}");
    host.ok(&["snapshot"]);
    host.ok(&["verify"]);
    host.ok(&["policy", "check", "--live"]);
    host.ok(&["restore", "latest", "--into", "back"]);
    let mut found = String::new();
    for line in walk(&dir.path().join("back")) {
        found += &line;
    }
    assert!(found.contains("DB_PASSWORD=canary"), "{found}");

    // Another machine: nothing but the url, the identity and the environment.
    let other = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", other.path());
    for line in std::fs::read_to_string(server.credentials()).unwrap().lines() {
        let (name, value) = line.split_once('=').unwrap();
        command.env(name, value);
    }
    command.env("AWS_ENDPOINT_URL", &endpoint).env("AWS_REGION", "eu-test-1");
    command.arg("--config-dir").arg(other.path().join("c")).arg("--state-dir").arg(other.path().join("s"));
    command.args(["list", "--repository", &url, "--identity"]).arg(dir.path().join("config/identity.txt"));
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains("complete"), "{text} {}", String::from_utf8_lossy(&out.stderr));
}

fn walk(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        } else {
            found.extend(std::fs::read_to_string(entry.path()));
        }
    }
    found
}
