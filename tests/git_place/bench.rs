//! A real repository, a capture of it, and the steps of putting it back.

use crate::taken::Taken;
use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::{Event, Events};
use lifeboat::base::ids::{SnapshotId, SourceName};
use lifeboat::policy::Policy;
use lifeboat::policy::model::{App, GitSpec, OnRollback, SourcePolicy, SourceSpec};
use lifeboat::sources::SourceError;
use lifeboat::sources::git::{GitPlacing, GitSource};
use lifeboat::sources::placing::{Intent, Part, Placing, Scene, Stored};
use lifeboat::sources::project::Places;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

pub const SNAPSHOT: &str = "20261119T020000Z-1a2b3c4d";

/// Git as somebody at a terminal runs it; `user` is an account.
pub fn git_as(user: Option<&str>, dir: &Path, arguments: &[&str]) -> std::process::Output {
    let mut command = match user {
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args([&format!("--reuid={user}"), "--regid=nogroup", "--clear-groups", "--", "git"]);
            command
        }
        None => Command::new("git"),
    };
    command
        .current_dir(dir)
        .env("HOME", "/nonexistent")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"])
        .args(["-c", "init.defaultBranch=main", "-c", "advice.detachedHead=false", "-c", "core.quotePath=false"])
        .args(arguments)
        .output()
        .expect("git, which scripts/test.sh installs")
}

pub fn git(dir: &Path, arguments: &[&str]) -> String {
    let output = git_as(None, dir, arguments);
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

pub fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

pub fn read(dir: &Path, name: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))).into_owned()
}

pub fn mode(dir: &Path, name: &str, mode: u32) {
    std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
}

pub fn commit(dir: &Path, message: &str) -> String {
    git(dir, &["add", "-A"]);
    git(dir, &["commit", "-qm", message]);
    git(dir, &["rev-parse", "HEAD"])
}

/// Every file of the tree but git's own with its attributes and content; and of each repository head, index, branches,
/// tags and what `git status` says.
pub fn state(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(dir, dir, &mut lines);
    lines.sort();
    lines
}

fn walk(root: &Path, dir: &Path, lines: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        let meta = entry.symlink_metadata().unwrap();
        if entry.file_name().unwrap() == ".git" {
            // A work tree may belong to another account.
            let safe = ["-c", "safe.directory=*"];
            let ask = |arguments: &[&str]| {
                let output = git_as(None, dir, &[&safe[..], arguments].concat());
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
            };
            let name = dir.strip_prefix(root).unwrap().display();
            lines.push(format!("{name} HEAD {} {}", ask(&["symbolic-ref", "-q", "HEAD"]), ask(&["rev-parse", "HEAD"])));
            lines.push(format!("{name} index {}", ask(&["ls-files", "--stage", "-v"])));
            lines.push(format!("{name} refs {}", ask(&["for-each-ref", "refs/heads", "refs/tags", "refs/remotes"])));
            lines.push(format!("{name} status {}", ask(&["status", "--porcelain=v2", "--ignored"])));
            continue;
        }
        let (mode, owner) = (meta.permissions().mode(), (meta.uid(), meta.gid()));
        let content = match meta.file_type() {
            t if t.is_symlink() => std::fs::read_link(&entry).unwrap().display().to_string(),
            t if t.is_file() => format!("{:x?}", blake3(&entry)),
            _ => String::new(),
        };
        lines.push(format!("{} {mode:o} {owner:?} {content}", entry.strip_prefix(root).unwrap().display()));
        if meta.is_dir() {
            walk(root, &entry, lines);
        }
    }
}

fn blake3(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let mut out = bytes.len().to_le_bytes().to_vec();
    out.extend(
        bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
            .to_le_bytes(),
    );
    out
}

pub fn same(expected: &[String], found: &[String]) {
    let only = |a: &[String], b: &[String]| a.iter().filter(|l| !b.contains(l)).cloned().collect::<Vec<_>>();
    let (missing, extra) = (only(expected, found), only(found, expected));
    assert!(missing.is_empty() && extra.is_empty(), "missing {missing:#?}\nextra {extra:#?}");
}

/// One checkout that transactions work on.
pub struct Bench {
    pub root: PathBuf,
    pub folder: PathBuf,
    pub id: String,
    policy: Policy,
    name: SourceName,
    warnings: Arc<Mutex<Vec<String>>>,
}

fn app(root: &Path) -> App {
    App {
        name: "shop".parse().unwrap(),
        root: root.to_owned(),
        compose_files: vec![],
        env_files: vec![],
        profiles: vec![],
        project: None,
        project_dir: None,
    }
}

fn source(bundle: bool) -> SourcePolicy {
    SourcePolicy {
        name: "git".parse().unwrap(),
        on_rollback: OnRollback::Restore,
        implicit: false,
        optional: false,
        timeout: std::time::Duration::from_secs(120),
        spec: SourceSpec::Git(GitSpec { bundle }),
    }
}

pub fn capture(root: &Path, bundle: bool) -> Taken {
    Taken::of(&GitSource::new(&source(bundle), &GitSpec { bundle }, &app(root)))
}

impl Bench {
    /// `folder` is the transaction's own.
    pub fn new(root: &Path, folder: &Path, id: &str) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        Self {
            root: root.to_owned(),
            folder: folder.to_owned(),
            id: id.to_owned(),
            policy: crate::policy(root),
            name: "git".parse().unwrap(),
            warnings: Arc::default(),
        }
    }

    pub fn with<T>(&self, act: impl FnOnce(&GitPlacing, &Scene<'_>) -> T) -> T {
        let cancel = Cancel::new();
        let places = Places::new(&self.policy.app, &cancel);
        let kept = self.warnings.clone();
        let events = Events::new(move |event| {
            if let Event::Warning { text, .. } = event {
                kept.lock().unwrap().push(text.clone());
            }
        });
        let scene = Scene {
            id: &self.id,
            name: &self.name,
            policy: &self.policy,
            places: &places,
            folder: &self.folder,
            events: &events,
            cancel: &cancel,
            now: "2026-11-20T03:00:00Z".parse().unwrap(),
        };
        act(&GitPlacing::new(&app(&self.root), &source(true)), &scene)
    }

    pub fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap())
    }

    fn stored<T>(taken: &Taken, act: impl FnOnce(&Stored<'_>) -> T) -> T {
        let snapshot: SnapshotId = SNAPSHOT.parse().unwrap();
        act(&Stored { snapshot: &snapshot, streams: taken, facts: &taken.facts })
    }

    pub fn plan(&self, taken: &Taken) -> Result<Intent, SourceError> {
        Self::stored(taken, |stored| self.with(|p, scene| p.plan(scene, stored, &Part::default())))
    }

    pub fn prepare(&self, taken: &Taken, intent: &Intent) {
        Self::stored(taken, |stored| self.with(|p, scene| p.prepare(scene, stored, intent))).unwrap();
    }

    pub fn settle(&self, taken: &Taken, intent: &Intent) {
        Self::stored(taken, |stored| self.with(|p, scene| p.settle(scene, stored, intent))).unwrap();
    }

    pub fn switch(&self, intent: &Intent) -> Result<(), SourceError> {
        self.with(|p, scene| p.switch(scene, intent))
    }

    pub fn confirm(&self, intent: &Intent) -> Result<(), SourceError> {
        self.with(|p, scene| p.confirm(scene, intent))
    }

    pub fn back(&self, intent: &Intent) -> Result<(), SourceError> {
        self.with(|p, scene| p.back(scene, intent))
    }

    pub fn discard_new(&self, intent: &Intent) {
        self.with(|p, scene| p.discard_new(scene, intent)).unwrap();
    }

    pub fn discard_old(&self, intent: &Intent) {
        self.with(|p, scene| p.discard_old(scene, intent)).unwrap();
    }

    /// Up to the end of the switch.
    pub fn go(&self, taken: &Taken) -> Intent {
        let intent = self.plan(taken).unwrap();
        println!("{:#?} {:#?}", intent.lines, intent.warnings);
        let before = state(&self.root);
        self.prepare(taken, &intent);
        same(&before, &state(&self.root));
        self.settle(taken, &intent);
        same(&before, &state(&self.root));
        self.switch(&intent).unwrap();
        self.confirm(&intent).unwrap();
        intent
    }

    pub fn undo(&self, intent: &Intent) {
        self.back(intent).unwrap();
        self.back(intent).unwrap();
        self.discard_new(intent);
        self.discard_new(intent);
    }
}
