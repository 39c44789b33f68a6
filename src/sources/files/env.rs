//! The source `env`: env files, and what is known of them without their values.
//!
//! Facts hold key names and keyed hashes of values. The rules of the policy (`required`, `pattern`, `same`) are held
//! against what was captured, here and again in a drill, by the same code: [`examine`]. Nothing that is said of a
//! file, in facts, warnings or errors, holds a value or a part of one.

use super::notes::Notes;
use super::plan::{Plan, expand, has_wildcards};
use super::tree::KnownTree;
use super::view::{Host, View};
use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::policy::dotenv::{self, looks_like_command_substitution};
use crate::policy::model::{App, EnvSpec, SourcePolicy, Via};
use crate::sources::{Capture, Captured, Source, SourceError};
use ignore::gitignore::GitignoreBuilder;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// No env file is larger.
const MAX_FILE: u64 = 1 << 20;

/// An env file as it was captured.
pub struct EnvFile {
    pub path: PathBuf,
    pub mode: u32,
    pub content: Vec<u8>,
}

/// What is known of the files, and how the policy's rules came out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFacts {
    pub files: Vec<FileFacts>,
    pub checks: Vec<EnvCheck>,
    /// Tells the key under which the values are hashed from others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    pub keys: Vec<KeyFacts>,
    /// Why Compose would refuse the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFacts {
    pub name: String,
    /// Keyed hash of the value: equal ones are equal values.
    pub hash: String,
    /// The value is the empty text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty: bool,
    /// The value is the text `$(…)`: somebody expected a shell to run it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub literal_command: bool,
    /// Lines of assignments that do not count because a later one does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overridden_lines: Vec<usize>,
}

/// One rule of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvCheck {
    /// `required`, `pattern` or `same`.
    pub rule: String,
    /// What it is about: a key, or `file:KEY` of each that must agree.
    pub keys: Vec<String>,
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Env files of one application.
pub struct EnvSource {
    name: SourceName,
    spec: EnvSpec,
    app: App,
    limit: Duration,
    implicit: bool,
}

impl EnvSource {
    pub fn new(policy: &SourcePolicy, spec: &EnvSpec, app: &App) -> Self {
        EnvSource {
            name: policy.name.clone(),
            spec: spec.clone(),
            app: app.clone(),
            limit: policy.timeout,
            implicit: policy.implicit,
        }
    }

    fn tree(&self) -> KnownTree<'_> {
        KnownTree { source: &self.name, limit: self.limit, app: &self.app, via: Via::Direct }
    }

    /// Names the files. `.env` of the root stands in every policy by default, so that one may be missing.
    fn prepare(&self, view: &dyn View, plan: &mut Plan, notes: &mut Notes) -> Result<(), SourceError> {
        let mut builder = GitignoreBuilder::new(&self.app.root);
        for pattern in &self.spec.exclude {
            builder.add_line(None, pattern).map_err(|e| SourceError::problem(format!("exclude: {e}")))?;
        }
        let exclude = builder.build().map_err(|e| SourceError::problem(format!("exclude: {e}")))?;
        let own = self.app.root.join(".env");
        for path in &self.spec.paths {
            let literal = Path::new(path);
            let kind = view.kind(literal).map_err(|e| super::plan::unreadable(literal, e))?;
            if kind.is_some() || !(has_wildcards(path) || self.implicit || literal == own) {
                plan.add(view, literal, notes)?;
            } else if has_wildcards(path) {
                for found in expand(view, path)? {
                    let excluded = found.starts_with(&self.app.root)
                        && exclude.matched_path_or_any_parents(&found, false).is_ignore();
                    let is_dir = matches!(view.kind(&found), Ok(Some(super::view::Kind::Dir)));
                    if !excluded && !is_dir {
                        plan.add(view, &found, notes)?;
                    }
                }
            }
        }
        if plan.is_empty() && !self.implicit {
            return Err(SourceError::hint(
                format!("no env file matches {}", self.spec.paths.join(", ")),
                "name the env files, or switch the source off with enabled = false",
            ));
        }
        Ok(())
    }

    fn project_files(&self) -> Vec<PathBuf> {
        if self.app.env_files.is_empty() { vec![self.app.root.join(".env")] } else { self.app.env_files.clone() }
    }
}

impl Source for EnvSource {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "env"
    }

    fn describe(&self) -> String {
        format!("env files {}", self.spec.paths.join(", "))
    }

    fn probe(&self, cancel: &Cancel) -> Result<(), SourceError> {
        self.tree().probe(cancel, &|view, plan, notes| self.prepare(view, plan, notes))
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        let mut notes = Notes::default();
        if self.implicit {
            let mut plan = Plan::host(&[]);
            self.prepare(&Host, &mut plan, &mut Notes::default())?;
            if plan.is_empty() {
                let warning = format!("no env file in {}", self.app.root.display());
                return Ok(Captured { facts: json!(EnvFacts::default()), warnings: vec![warning] });
            }
        }
        let mut files = Vec::new();
        let prepare = |view: &dyn View, plan: &mut Plan, notes: &mut Notes| self.prepare(view, plan, notes);
        self.tree().capture(cx, &prepare, &mut notes, &mut |entry, content| {
            if content.len() as u64 <= MAX_FILE {
                let path = Path::new("/").join(super::plan::path_of(&entry.path));
                files.push(EnvFile { path, mode: entry.mode, content: content.to_vec() });
            }
        })?;
        let rules = Rules { spec: &self.spec, root: &self.app.root, project_files: &self.project_files() };
        let (facts, said) = examine(&files, &rules, cx.fact_key, &|path| Host.read(path, MAX_FILE));
        said.into_iter().for_each(|warning| notes.say(warning));
        Ok(Captured { facts: json!(facts), warnings: notes.into_warnings() })
    }
}

/// What env files are held against.
pub struct Rules<'a> {
    pub spec: &'a EnvSpec,
    /// Paths are said relative to it.
    pub root: &'a Path,
    /// The files that Compose reads for the project: their values stand in for variables in the others.
    pub project_files: &'a [PathBuf],
}

/// A file that could be parsed.
type Parsed<'a> = (&'a Path, Vec<dotenv::Entry>);

/// Holds the files against the rules: what is known of them, and what a person should know. `outside` reads a file
/// that a `same` rule names and that was not captured.
pub fn examine(
    files: &[EnvFile],
    rules: &Rules<'_>,
    fact_key: &[u8; 32],
    outside: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
) -> (EnvFacts, Vec<String>) {
    let key = hex::encode(&blake3::keyed_hash(fact_key, b"which key this is").as_bytes()[..8]);
    let mut facts = EnvFacts { key: Some(key), ..EnvFacts::default() };
    let mut warnings = Vec::new();
    let mut parsed: Vec<Parsed<'_>> = Vec::new();
    let mut project: HashMap<String, String> = HashMap::new();
    let is_project = |file: &&EnvFile| rules.project_files.contains(&file.path);
    for file in files.iter().filter(is_project).chain(files.iter().filter(|f| !is_project(f))) {
        let said = rules.say(&file.path);
        let mut one = FileFacts { path: file.path.clone(), mode: file.mode, keys: Vec::new(), error: None };
        match dotenv::parse_bytes(&file.content, &|key| project.get(key).cloned()) {
            Err(e) => {
                warnings.push(format!("{said}: {e}"));
                one.error = Some(e.to_string());
            }
            Ok(entries) => {
                one.keys = entries.iter().map(|e| key_facts(e, &file.content, fact_key)).collect();
                file_warnings(&said, file, &one.keys, &mut warnings);
                if is_project(&file) {
                    project.extend(entries.iter().map(|e| (e.key.clone(), e.value.expose().clone())));
                }
                parsed.push((&file.path, entries));
            }
        }
        facts.files.push(one);
    }
    facts.files.sort_by(|a, b| a.path.cmp(&b.path));
    facts.checks = rules.required(&parsed);
    facts.checks.extend(rules.patterns(&parsed));
    facts.checks.extend(rules.same(&parsed, &project, outside));
    warnings.extend(facts.checks.iter().filter_map(|c| c.problem.clone()));
    (facts, warnings)
}

fn key_facts(entry: &dotenv::Entry, content: &[u8], fact_key: &[u8; 32]) -> KeyFacts {
    let value = entry.value.expose();
    KeyFacts {
        name: entry.key.clone(),
        hash: hex::encode(&blake3::keyed_hash(fact_key, value.as_bytes()).as_bytes()[..16]),
        empty: value.is_empty(),
        literal_command: looks_like_command_substitution(value),
        overridden_lines: assignments(content, &entry.key).filter(|line| *line < entry.line).collect(),
    }
}

/// Lines that look like an assignment to a key.
fn assignments<'c>(content: &'c [u8], key: &'c str) -> impl Iterator<Item = usize> + 'c {
    content.split(|b| *b == b'\n').enumerate().filter_map(move |(i, line)| {
        let line = line.trim_ascii_start();
        let line = line.strip_prefix(b"export ").map_or(line, <[u8]>::trim_ascii_start);
        let rest = line.strip_prefix(key.as_bytes())?.trim_ascii_start();
        rest.starts_with(b"=").then_some(i + 1)
    })
}

fn file_warnings(said: &str, file: &EnvFile, keys: &[KeyFacts], warnings: &mut Vec<String>) {
    for key in keys.iter().filter(|k| k.literal_command) {
        warnings.push(format!("{said}: {} is the text $(…) itself: nothing ever runs it", key.name));
    }
    for key in keys.iter().filter(|k| !k.overridden_lines.is_empty()) {
        warnings.push(format!("{said}: {} is set more than once: the last one counts", key.name));
    }
    if file.mode & 0o004 != 0 && keys.iter().any(|k| !k.empty && looks_secret(&k.name)) {
        warnings.push(format!("{said} holds secrets and every user can read it: chmod 600"));
    }
}

/// Whether a key's name says that its value is a secret.
pub fn looks_secret(key: &str) -> bool {
    let key = key.to_ascii_uppercase();
    let words = ["SECRET", "PASSWORD", "PASSWD", "TOKEN", "CREDENTIAL", "PRIVATE", "APIKEY", "DATABASE_URL", "DSN"];
    words.iter().any(|w| key.contains(w)) || key.split('_').any(|w| matches!(w, "KEY" | "PASS" | "PWD" | "SALT"))
}

impl Rules<'_> {
    fn say(&self, path: &Path) -> String {
        path.strip_prefix(self.root).unwrap_or(path).display().to_string()
    }

    fn required(&self, files: &[Parsed<'_>]) -> Vec<EnvCheck> {
        let check = |key: &String| {
            let values: Vec<_> = files.iter().filter_map(|(_, entries)| dotenv::get(entries, key)).collect();
            let problem = match values.as_slice() {
                [] => Some(format!("{key} is required and stands in no env file")),
                all if all.iter().all(|v| v.expose().is_empty()) => Some(format!("{key} is required and is empty")),
                _ => None,
            };
            EnvCheck { rule: "required".into(), keys: vec![key.clone()], ok: problem.is_none(), problem }
        };
        self.spec.required.iter().map(check).collect()
    }

    fn patterns(&self, files: &[Parsed<'_>]) -> Vec<EnvCheck> {
        let mut checks = Vec::new();
        for (key, pattern) in &self.spec.patterns {
            let mut add = |keys: Vec<String>, problem: Option<String>| {
                checks.push(EnvCheck { rule: "pattern".into(), keys, ok: problem.is_none(), problem });
            };
            let Ok(regex) = regex::Regex::new(pattern) else {
                add(vec![key.clone()], Some(format!("the pattern for {key} is no regular expression")));
                continue;
            };
            let mut found = false;
            for (path, entries) in files {
                let Some(value) = dotenv::get(entries, key) else { continue };
                found = true;
                let name = format!("{}:{key}", self.say(path));
                let length = value.expose().chars().count();
                let problem = (!regex.is_match(value.expose()))
                    .then(|| format!("{name} does not have the form {pattern} (it has {length} characters)"));
                add(vec![name], problem);
            }
            if !found {
                add(vec![key.clone()], Some(format!("{key} has a pattern and stands in no env file")));
            }
        }
        checks
    }

    fn same(
        &self,
        files: &[Parsed<'_>],
        project: &HashMap<String, String>,
        outside: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
    ) -> Vec<EnvCheck> {
        let value = |path: &Path, key: &str| -> Result<String, String> {
            let missing = || format!("{}:{key} is not set", self.say(path));
            let value = |entries: &[dotenv::Entry]| dotenv::get(entries, key).map(|v| v.expose().clone());
            if let Some((_, entries)) = files.iter().find(|(p, _)| *p == path) {
                return value(entries).ok_or_else(missing);
            }
            let content = outside(path).map_err(|e| format!("{} cannot be read: {e}", self.say(path)))?;
            let entries = dotenv::parse_bytes(&content, &|key| project.get(key).cloned())
                .map_err(|e| format!("{}: {e}", self.say(path)))?;
            value(&entries).ok_or_else(missing)
        };
        let mut checks = Vec::new();
        for group in &self.spec.same {
            let keys: Vec<String> = group.iter().map(|(path, key)| format!("{}:{key}", self.say(path))).collect();
            let values: Result<Vec<String>, String> = group.iter().map(|(path, key)| value(path, key)).collect();
            let problem = match values {
                Err(problem) => Some(problem),
                Ok(values) if values.windows(2).any(|w| w[0] != w[1]) => {
                    Some(format!("{} must be the same and are not", keys.join(" and ")))
                }
                Ok(_) => None,
            };
            checks.push(EnvCheck { rule: "same".into(), keys, ok: problem.is_none(), problem });
        }
        checks
    }
}
