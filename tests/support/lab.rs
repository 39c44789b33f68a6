//! An installed host for tests: keys, a repository on disk, a policy, and the operations on them.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::{Event, Events};
use lifeboat::base::ids::Tag;
use lifeboat::ops::access::{Access, AccessRequest, Installation, host_name};
use lifeboat::ops::browse::{Change, DiffReport, DiffRequest, FindReport, FindRequest, LsEntry, LsRequest};
use lifeboat::ops::restore::{RestoreReport, RestoreRequest};
use lifeboat::ops::snapshot::{SnapshotOptions, SnapshotReport};
use lifeboat::ops::{OpsError, Run, Trigger, browse, restore, snapshot};
use lifeboat::policy::{self, Policy};
use lifeboat::repository::Repository;
use lifeboat::repository::format::{Role, SignerAction};
use lifeboat::repository::keys::{HostKey, IdentityFile};
use lifeboat::sources::{Source, build};
use lifeboat::storage::LocalStorage;
use lifeboat::storage::local::Reserve;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Sources as a test hands them over.
pub type Sources = Vec<Box<dyn Source>>;

pub struct Lab {
    dir: tempfile::TempDir,
    /// The same, without symlinks on the way.
    pub root: PathBuf,
    pub installation: Installation,
    pub policy: Policy,
    /// Its text, without a source.
    head: String,
    /// Minutes by which the clock of this host is ahead: snapshots follow each other, and files have settled.
    minutes: AtomicU64,
}

impl Lab {
    /// A host whose root key has made a repository and vouches for the host's key.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let installation = Installation { config_dir: root.join("config"), state_dir: root.join("state") };
        let now = Utc::now();
        let identity = IdentityFile::create(&installation.identity(), now).unwrap();
        let id = identity.repository.clone().unwrap();
        let host_key = HostKey::create(&installation.host_key(), Some(id.clone())).unwrap();
        let key = identity.root_key_of(&id).unwrap();
        let storage = Arc::new(LocalStorage::new(root.join("repository"), Reserve::Bytes(0)));
        let mut repository = Repository::create(storage, &key, now).unwrap();
        let action = SignerAction::Add { role: Role::Snapshot, hosts: vec![host_name().unwrap()] };
        repository.add_signer(&key, &host_key.signing.public(), action, now).unwrap();
        fs::create_dir(root.join("app")).unwrap();
        let head = format!(
            "[app]\nname = \"shop\"\nroot = {:?}\n[repository]\nurl = {:?}\nrecipients = [{:?}]\nmin_free = \"0B\"\n",
            root.join("app"),
            root.join("repository"),
            identity.first().unwrap().recipient(),
        );
        let policy = parse(&root, &head);
        Self { dir, root, installation, policy, head, minutes: AtomicU64::new(60) }
    }

    /// Lines for the policy's [repository].
    pub fn add_to_policy(&mut self, lines: &str) {
        self.head.push_str(lines);
        self.policy = parse(&self.root, &self.head);
    }

    /// Sources as a policy with these sections has them; those that stand by default are left out.
    pub fn sources(&self, sections: &[String]) -> Sources {
        let policy = parse(&self.root, &format!("{}{}", self.head, sections.concat()));
        let mut sources = build(&policy, &self.installation.state_dir, &Cancel::new());
        sources.retain(|s| policy.sources.iter().any(|p| p.name == *s.name() && !p.implicit));
        sources
    }

    /// A path of this test's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn run(&self) -> Run {
        let now = self.now();
        Run { events: Events::none(), cancel: Cancel::new(), now }
    }

    fn now(&self) -> DateTime<Utc> {
        let minutes = self.minutes.fetch_add(1, Ordering::SeqCst);
        Utc::now() + TimeDelta::minutes(i64::try_from(minutes).unwrap())
    }

    /// Takes a snapshot; fails only as a whole.
    pub fn try_snapshot(&self, sources: &Sources, tags: &[&str]) -> Result<SnapshotReport, OpsError> {
        self.snapshot_with(sources, tags, &self.run())
    }

    pub fn snapshot_with(&self, sources: &Sources, tags: &[&str], run: &Run) -> Result<SnapshotReport, OpsError> {
        let tags: Vec<Tag> = tags.iter().map(|t| t.parse().unwrap()).collect();
        let options = SnapshotOptions { tags, ..SnapshotOptions::of(Trigger::Manual) };
        let plan = snapshot::plan(&self.policy, sources, &options)?;
        snapshot::run(&self.installation, &self.policy, &plan, sources, run)
    }

    /// Takes a snapshot in which every source is complete; returns its id.
    pub fn snapshot(&self, sources: &Sources, tags: &[&str]) -> String {
        let report = self.try_snapshot(sources, tags).unwrap_or_else(|e| panic!("{}", full(&e)));
        for source in &report.sources {
            assert!(source.error.is_none(), "{}: {:?}", source.name, source.error);
        }
        report.header.id.to_string()
    }

    /// The same, and how many bytes were read and how many were taken over without reading.
    pub fn snapshot_counting(&self, sources: &Sources) -> (String, u64, u64) {
        let counts = Arc::new(Mutex::new((0, 0)));
        let seen = counts.clone();
        let events = Events::new(move |event| {
            if let Event::Bytes { bytes, reused, .. } = event {
                let mut counts = seen.lock().unwrap();
                if *reused { counts.1 += bytes } else { counts.0 += bytes }
            }
        });
        let run = Run { events, ..self.run() };
        let report = self.snapshot_with(sources, &[], &run).unwrap_or_else(|e| panic!("{}", full(&e)));
        let (read, reused) = *counts.lock().unwrap();
        (report.header.id.to_string(), read, reused)
    }

    pub fn request(&self) -> AccessRequest {
        AccessRequest { policy: Some(self.policy.clone()), ..AccessRequest::default() }
    }

    pub fn access(&self) -> Access {
        Access::open(&self.installation, &self.request()).unwrap_or_else(|e| panic!("{}", full(&e)))
    }

    /// Moves the identity away: from now on the host is sealed.
    pub fn seal(&self) -> PathBuf {
        let away = self.root.join("elsewhere");
        fs::rename(self.installation.identity(), &away).unwrap();
        away
    }

    pub fn unseal(&self) {
        fs::rename(self.root.join("elsewhere"), self.installation.identity()).unwrap();
    }

    pub fn try_restore(&self, request: &RestoreRequest) -> Result<RestoreReport, OpsError> {
        let (access, run) = (self.access(), self.run());
        let plan = restore::plan(&access, request, &run)?;
        restore::run(&access, &plan, &run)
    }

    /// Restores a whole snapshot, of which nothing may be missing, into `name`; returns the folder.
    pub fn restore(&self, id: &str, name: &str) -> (PathBuf, RestoreReport) {
        let into = self.path(name);
        let mut request = RestoreRequest::new(id, &into);
        request.privileged = true;
        let report = self.try_restore(&request).unwrap_or_else(|e| panic!("{}", full(&e)));
        assert!(report.is_complete(), "{report:#?}");
        (into, report)
    }

    pub fn ls(&self, id: &str, target: Option<&str>, recursive: bool) -> Result<Vec<LsEntry>, OpsError> {
        self.ls_of(LsRequest { snapshot: id.into(), target: target.map(OsString::from), recursive })
    }

    pub fn ls_of(&self, request: LsRequest) -> Result<Vec<LsEntry>, OpsError> {
        let mut entries = Vec::new();
        let report = browse::ls(&self.access(), &request, &self.run(), &mut |entry| {
            entries.push(entry);
            Ok(())
        })?;
        assert_eq!(report.entries, entries.len() as u64);
        Ok(entries)
    }

    pub fn cat(&self, id: &str, target: impl Into<OsString>) -> Result<Vec<u8>, OpsError> {
        let mut out = Vec::new();
        browse::cat(&self.access(), id, &target.into(), &self.run(), &mut out)?;
        Ok(out)
    }

    pub fn find(&self, request: &FindRequest) -> FindReport {
        browse::find(&self.access(), request, &self.run()).unwrap_or_else(|e| panic!("{}", full(&e)))
    }

    pub fn diff(&self, request: &DiffRequest) -> (Vec<Change>, DiffReport) {
        let mut changes = Vec::new();
        let report = browse::diff(&self.access(), request, &self.run(), &mut |change| {
            changes.push(change);
            Ok(())
        });
        (changes, report.unwrap_or_else(|e| panic!("{}", full(&e))))
    }

    /// The repository's archives, largest first.
    pub fn archives(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut pending = vec![self.path("repository/archives")];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() { pending.push(entry.path()) } else { found.push(entry.path()) }
            }
        }
        found.sort_by_key(|p| std::cmp::Reverse(fs::metadata(p).unwrap().len()));
        found
    }
}

/// Paths of this host, as one source of a policy.
pub fn files(name: &str, paths: &[&Path]) -> String {
    format!("[[source]]\nkind = \"files\"\nname = {name:?}\npaths = {paths:?}\n")
}

/// A command's output, as one source of a policy.
pub fn command(name: &str, argv: &[&str], output: &str) -> String {
    format!("[[source]]\nkind = \"command\"\nname = {name:?}\nrun = {argv:?}\noutput = {output:?}\n")
}

fn parse(root: &Path, text: &str) -> Policy {
    policy::parse(&root.join("shop.toml"), text).unwrap_or_else(|e| panic!("{e:?}"))
}

/// An error with its causes and its hint, as the edge prints it.
pub fn full(error: &OpsError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    if let Some(hint) = error.hint() {
        text = format!("{text} (hint: {hint})");
    }
    text
}

/// Bytes without repetition, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Flips one bit in the middle of a stored object.
pub fn flip(path: &Path) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().size() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
}

/// A tree's path below the folder that its source was restored into.
pub fn below(into: &Path, source: &str, path: &Path) -> PathBuf {
    into.join(source).join(path.strip_prefix("/").unwrap())
}
