//! An installation of its own in a temporary folder, and the binary run in it.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A secret of the application: it must never be printed or stored in the clear.
pub const CANARY: &str = "c4n4ry-7f3b0e52d1";

pub struct World {
    pub dir: tempfile::TempDir,
}

/// What a run came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let ran = Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) };
        assert!(!ran.err.contains("panicked"), "{ran:?}");
        for secret in [CANARY, "AGE-SECRET-KEY-1"] {
            assert!(!ran.err.contains(secret), "a secret is printed: {ran:?}");
        }
        ran
    }
}

impl Ran {
    /// Asserts the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Asserts that standard error says all of these.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.err.contains(text), "{text:?} is not in\n{}\n{}", self.err, self.out);
        }
        self
    }

    /// Asserts that standard output shows all of these.
    #[track_caller]
    pub fn shows(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.out.contains(text), "{text:?} is not in\n{}\n{}", self.out, self.err);
        }
        self
    }

    /// Asserts one line of error and at least one hint below it.
    #[track_caller]
    pub fn one_error_with_a_hint(self) -> Self {
        let errors = self.err.lines().filter(|l| l.starts_with("error:")).count();
        let hints = self.err.lines().filter(|l| l.starts_with("  hint: ")).count();
        assert!(errors == 1 && hints >= 1, "{self:#?}");
        self
    }

    /// The one JSON document on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:#?}"));
        assert_eq!(value["schema"], 1, "{self:?}");
        assert_eq!(value["exit_code"], self.code, "{self:?}");
        value
    }
}

impl World {
    /// An application with env files and uploads; nothing is set up yet.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("lifeboat-cli-").tempdir_in(room()).unwrap();
        let world = Self { dir };
        let app = world.app();
        fs::create_dir_all(app.join("uploads/a")).unwrap();
        fs::write(app.join(".env"), format!("DB_PASSWORD={CANARY}\nMODE=production\n")).unwrap();
        fs::set_permissions(app.join(".env"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(app.join("uploads/one.txt"), "one\n").unwrap();
        fs::write(app.join("uploads/a/two.bin"), [7u8; 5000]).unwrap();
        world
    }

    /// The same, set up by `init`, with the uploads as a source.
    pub fn ready() -> Self {
        let world = Self::new();
        world.run(&["init", world.app().to_str().unwrap(), "--name", "shop"]).exits(0);
        world.add_to_policy(UPLOADS);
        world
    }

    /// The same, with a first snapshot.
    pub fn with_snapshot() -> Self {
        let world = Self::ready();
        world.run(&["snapshot", "--tag", "first"]).exits(0);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn app(&self) -> PathBuf {
        self.path("app")
    }

    pub fn repository(&self) -> PathBuf {
        self.path("state/repository")
    }

    pub fn policy(&self) -> PathBuf {
        self.path("config/policies/shop.toml")
    }

    pub fn identity(&self) -> PathBuf {
        self.path("config/identity.txt")
    }

    pub fn add_to_policy(&self, text: &str) {
        let policy = fs::read_to_string(self.policy()).unwrap();
        fs::write(self.policy(), format!("{policy}\n{text}\n")).unwrap();
    }

    /// The policy with one text in the place of another.
    pub fn change_policy(&self, from: &str, to: &str) {
        let policy = fs::read_to_string(self.policy()).unwrap();
        assert!(policy.contains(from), "{from:?} is not in\n{policy}");
        fs::write(self.policy(), policy.replace(from, to)).unwrap();
    }

    /// The binary with these arguments, in this installation, with an environment that says nothing.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = bare(self.dir.path());
        command.arg("--config-dir").arg(self.path("config")).arg("--state-dir").arg(self.path("state")).args(args);
        command
    }

    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    /// Runs with `--json` and returns the document.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let all: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        self.run(&all).json()
    }

    /// The ids of the snapshots, newest first.
    #[track_caller]
    pub fn snapshots(&self) -> Vec<String> {
        let list = self.json(&["list"]);
        list["snapshots"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Every file below the folder with its bytes, in order.
    pub fn files(&self, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        tree(&self.path(name))
    }
}

/// Where installations of these tests lie: in memory where that is possible. On a disk that is nearly full every
/// snapshot would be refused, as it must be (`min_free`).
pub fn room() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

pub const UPLOADS: &str = "[[source]]\nkind = \"files\"\nname = \"uploads\"\npaths = [\"uploads\"]\n";

/// The binary with an environment that says nothing but where its home is.
pub fn bare(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.current_dir(home).stdin(Stdio::null());
    command
}

/// Every file below a folder with its bytes, in order; nothing when it is not there.
pub fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(tree(&path));
        } else if path.is_file() {
            let bytes = fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

pub fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

pub struct Mounted(PathBuf);

impl Mounted {
    pub fn tmpfs(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at).status();
        assert!(status.unwrap().success(), "tests that mount run as root");
        Self(at.to_owned())
    }

    /// Mounts it anew, such as `ro`.
    pub fn remount(&self, how: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
