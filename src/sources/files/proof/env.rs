//! Env files, proved: read as Compose reads them, held against the policy's rules of today and the facts of then.
//!
//! Invariant: what is said names files and keys and lengths, never a value or a part of one.

use super::super::env::{EnvCheck, EnvFacts, EnvFile, FileFacts, Rules, examine, looks_secret};
use super::super::view::{Host, Kind, View};
use super::inside::Restored;
use super::{count, facts, no_facts, own_tree, walk};
use crate::policy::model::{EnvSpec, SourceSpec};
use crate::sources::SourceError;
use crate::sources::proof::{Check, Difference, Proof, Prove, Trial};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

const MAX_FILE: u64 = 1 << 20;

/// Proves a source of kind `env`.
pub struct EnvProof;

impl Prove for EnvProof {
    fn prove(&self, trial: &Trial<'_>) -> Result<Proof, SourceError> {
        let mut proof = Proof::default();
        let known: Option<EnvFacts> = facts(trial);
        if known.as_ref().is_some_and(|k| k.files.is_empty()) {
            proof.add(Check::skipped("files", "", "there was no env file when the snapshot was taken"));
            return Ok(proof);
        }
        let root = own_tree(trial)?;
        let files = read(root)?;
        let setting = Setting::of(trial, &files);
        let trees = Restored::of(trial.trees, Some(root), KINDS);
        let outside = Outside { trees, root: setting.root.clone(), ..Outside::default() };
        let rules = Rules { spec: &setting.spec, root: &setting.root, project_files: &setting.project_files };
        let key = trial.fact_key.unwrap_or(&[0; 32]);
        let (found, _) =
            proof.step(trial, "compare", false, || examine(&files, &rules, key, &|path| outside.read(path)));
        let said = Said { found: &found, root: &setting.root };
        let keys: usize = found.files.iter().map(|f| f.keys.len()).sum();
        proof.restored.push(format!("{} ({})", count(found.files.len(), "env file"), count(keys, "key")));
        proof.add(said.parse());
        match &known {
            Some(known) => {
                proof.add(said.files(known));
                proof.add(said.keys(known));
                proof.add(said.values(known, trial.fact_key.is_some()));
            }
            None => proof.add(no_facts("keys")),
        }
        proof.add(said.literals());
        proof.add(said.modes());
        if trial.source.is_none() {
            proof.add(Check::skipped("rules", "", "there is no policy that says what must stand in these files"));
        }
        for check in &found.checks {
            proof.add(outside.judge(check));
        }
        said.data_keys(&setting.spec.data_keys).into_iter().for_each(|check| proof.add(check));
        Ok(proof)
    }
}

/// Trees in which a `same` rule may find its other file.
const KINDS: &[&str] = &["env", "compose", "nginx", "certificates"];

/// All files of the tree.
fn read(root: &Path) -> Result<Vec<EnvFile>, SourceError> {
    let tree = Restored::new([root.to_path_buf()]);
    let mut files = Vec::new();
    for item in walk(&tree, root)?.into_iter().filter(|i| i.kind == Kind::File && i.size <= MAX_FILE) {
        let content = tree.read(&item.path, MAX_FILE);
        let content = content.map_err(|source| SourceError::File { action: "read", path: item.real, source })?;
        files.push(EnvFile { path: item.path, mode: item.mode, content });
    }
    Ok(files)
}

/// What the files are held against.
struct Setting {
    spec: EnvSpec,
    root: PathBuf,
    project_files: Vec<PathBuf>,
}

impl Setting {
    fn of(trial: &Trial<'_>, files: &[EnvFile]) -> Setting {
        let spec = match trial.source.map(|s| &s.spec) {
            Some(SourceSpec::Env(spec)) => spec.clone(),
            _ => EnvSpec {
                paths: Vec::new(),
                exclude: Vec::new(),
                required: Vec::new(),
                patterns: Vec::new(),
                same: Vec::new(),
                data_keys: Vec::new(),
            },
        };
        match trial.policy {
            Some(policy) => {
                let root = policy.app.root.clone();
                let own = vec![root.join(".env")];
                let project_files = if policy.app.env_files.is_empty() { own } else { policy.app.env_files.clone() };
                Setting { spec, root, project_files }
            }
            // The file nearest to the root is the one that Compose would read.
            None => {
                let own = files.iter().map(|f| &f.path).filter(|p| p.ends_with(".env"));
                let own = own.min_by_key(|p| p.components().count()).cloned();
                let root = own.as_ref().and_then(|p| p.parent()).unwrap_or(Path::new("/")).to_path_buf();
                Setting { spec, root, project_files: own.into_iter().collect() }
            }
        }
    }
}

/// Files that a `same` rule names and this source has not: from another restored tree, else from the live host.
#[derive(Default)]
struct Outside {
    trees: Restored,
    /// Paths are said relative to it.
    root: PathBuf,
    live: RefCell<BTreeSet<PathBuf>>,
    unreadable: RefCell<BTreeMap<PathBuf, String>>,
}

impl Outside {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if let Ok(content) = self.trees.read(path, MAX_FILE) {
            return Ok(content);
        }
        match Host.read(path, MAX_FILE) {
            Ok(content) => {
                self.live.borrow_mut().insert(path.to_path_buf());
                Ok(content)
            }
            Err(e) => {
                self.unreadable.borrow_mut().insert(path.to_path_buf(), e.to_string());
                Err(e)
            }
        }
    }

    /// A rule's outcome. That another application's file is not on this machine says nothing of what was restored.
    fn judge(&self, check: &EnvCheck) -> Check {
        let subject = check.keys.join(" = ");
        let expected = match check.rule.as_str() {
            "required" => "set and not empty",
            "pattern" => "of the policy's form",
            _ => "one value",
        };
        let problem = check.problem.clone().unwrap_or_default();
        let unreadable = self.unreadable.borrow();
        let missing = unreadable.iter().find(|(path, _)| problem.starts_with(&say(&self.root, path)));
        if check.ok {
            let live = self.live.borrow();
            let named = |path: &&PathBuf| {
                let prefix = format!("{}:", say(&self.root, path));
                check.keys.iter().any(|k| k.starts_with(&prefix))
            };
            let note = live.iter().find(named);
            let note = note.map(|path| format!("; {} is the live one", path.display())).unwrap_or_default();
            return Check::passed(&check.rule, subject, expected, format!("{expected}{note}"));
        }
        match missing.filter(|_| check.rule == "same") {
            Some((path, why)) => Check::skipped(
                &check.rule,
                subject,
                format!("{} is in no restored tree and cannot be read here: {why}", path.display()),
            ),
            None => Check::failed(&check.rule, subject, expected, problem.clone(), problem),
        }
    }
}

/// A path as the policy's rules say it.
fn say(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// What was found, in words.
struct Said<'a> {
    found: &'a EnvFacts,
    root: &'a Path,
}

impl Said<'_> {
    fn say(&self, path: &Path) -> String {
        say(self.root, path)
    }

    fn find(&self, path: &Path) -> Option<&FileFacts> {
        self.found.files.iter().find(|f| f.path == path)
    }

    fn parse(&self) -> Check {
        let bad = self.found.files.iter().filter_map(|f| Some((f, f.error.as_ref()?)));
        let differences = bad.map(|(f, e)| Difference::new(self.say(&f.path), "read as Compose reads it", e)).collect();
        let all = count(self.found.files.len(), "file");
        Check::of("parse", "", &all, &all, differences)
    }

    fn files(&self, known: &EnvFacts) -> Check {
        let missing = known.files.iter().filter(|f| self.find(&f.path).is_none());
        let differences = missing.map(|f| Difference::new(self.say(&f.path), "a file", "nothing")).collect();
        let (then, now) = (count(known.files.len(), "file"), count(self.found.files.len(), "file"));
        Check::of("files", "", then, now, differences)
    }

    /// Files that were captured and restored, as they were and as they are.
    fn both<'k>(&'k self, known: &'k EnvFacts) -> impl Iterator<Item = (&'k FileFacts, &'k FileFacts)> {
        known.files.iter().filter_map(|then| Some((then, self.find(&then.path)?)))
    }

    fn keys(&self, known: &EnvFacts) -> Check {
        let mut differences = Vec::new();
        let mut all = 0;
        for (then, now) in self.both(known) {
            all += then.keys.len();
            let there: BTreeSet<&str> = now.keys.iter().map(|k| k.name.as_str()).collect();
            for key in then.keys.iter().filter(|k| !there.contains(k.name.as_str())) {
                differences.push(Difference::new(format!("{}:{}", self.say(&then.path), key.name), "set", "not set"));
            }
        }
        let found = count(all - differences.len(), "key");
        Check::of("keys", "", count(all, "key"), found, differences)
    }

    fn values(&self, known: &EnvFacts, has_key: bool) -> Check {
        // A snapshot of another host, or of this one before its key was renewed.
        if !has_key || known.key.as_ref().is_some_and(|key| self.found.key.as_ref() != Some(key)) {
            let why = "this host does not have the key under which the values were hashed";
            return Check::skipped("values", "", why);
        }
        let mut differences = Vec::new();
        let mut all = 0;
        for (then, now) in self.both(known) {
            for key in &then.keys {
                let Some(value) = now.keys.iter().find(|k| k.name == key.name) else { continue };
                all += 1;
                if value.hash != key.hash {
                    let subject = format!("{}:{}", self.say(&then.path), key.name);
                    differences.push(Difference::new(subject, "the value as it was captured", "another value"));
                }
            }
        }
        let found = format!("{} equal", count(all - differences.len(), "value"));
        Check::of("values", "", format!("{} equal", count(all, "value")), found, differences)
    }

    fn literals(&self) -> Check {
        let mut differences = Vec::new();
        for file in &self.found.files {
            for key in file.keys.iter().filter(|k| k.literal_command) {
                let subject = format!("{}:{}", self.say(&file.path), key.name);
                differences.push(Difference::new(subject, "a value", "the text of a command, which nothing ever runs"));
            }
        }
        let found = if differences.is_empty() { "none is" } else { "some are" };
        Check::of("literal command", "", "no value is $(…) or `…`", found, differences)
    }

    /// Everybody on the machine may read a secret. The group's right is a way to share one with a service, and is said.
    fn modes(&self) -> Check {
        let secret =
            |file: &&FileFacts| file.keys.iter().any(|k| !k.empty && looks_secret(&k.name)) || file.error.is_some();
        let secrets: Vec<&FileFacts> = self.found.files.iter().filter(secret).collect();
        let open = secrets.iter().filter(|f| f.mode & 0o004 != 0);
        let differences: Vec<Difference> = open
            .map(|f| Difference::new(self.say(&f.path), "mode 0600", format!("mode {:04o} on a secret", f.mode)))
            .collect();
        let group = secrets.iter().filter(|f| f.mode & 0o044 == 0o040);
        let group: Vec<String> = group.map(|f| format!("{} ({:04o})", self.say(&f.path), f.mode)).collect();
        let found = match (differences.len(), group.is_empty()) {
            (0, true) => "closed to all but their owner".to_owned(),
            (0, false) => format!("closed to others; open to a group: {}", group.join(", ")),
            (n, _) => format!("{n} open to everybody"),
        };
        Check::of(
            "mode",
            "",
            format!("{} with secrets closed to others", count(secrets.len(), "file")),
            found,
            differences,
        )
    }

    fn data_keys(&self, keys: &[String]) -> Vec<Check> {
        let check = |key: &String| {
            let holders: Vec<String> = self
                .found
                .files
                .iter()
                .filter(|f| f.keys.iter().any(|k| k.name == *key && !k.empty))
                .map(|f| self.say(&f.path))
                .collect();
            match holders.is_empty() {
                false => Check::passed("data key", key, "set", format!("set in {}", holders.join(", "))),
                true => Check::failed(
                    "data key",
                    key,
                    "set",
                    "not set",
                    format!("{key} belongs to the data and stands in no env file: without it the data cannot be read"),
                ),
            }
        };
        keys.iter().map(check).collect()
    }
}
