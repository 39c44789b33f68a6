//! The files that compose files lead to: what they include and extend, the `env_file` of services, the files of secrets
//! and configs. A project without them is none.
//!
//! A path starts from the folder of the project that the file belongs to, and where nothing lies there, from the file's own
//! folder: versions of Compose differ. A path with variables, or of another machine, is told and not followed.

use super::files::{Found, Role};
use crate::base::yaml;
use serde_json::Value;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// More files than any project has.
const MOST_FILES: usize = 200;

/// Adds what the compose files among `found` lead to. `dir` is the project's folder.
pub(super) fn follow(dir: &Path, found: &mut Vec<Found>, warnings: &mut Vec<String>) {
    let mut walk = Walk { found, dirs: Vec::new(), warnings };
    walk.dirs.resize(walk.found.len(), dir.to_owned());
    let mut at = 0;
    while at < walk.found.len() {
        if matches!(walk.found[at].role, Role::Compose | Role::Included | Role::Extended) {
            walk.file(at);
        }
        at += 1;
    }
}

struct Walk<'a> {
    found: &'a mut Vec<Found>,
    /// For each file, the folder that its paths start from.
    dirs: Vec<PathBuf>,
    warnings: &'a mut Vec<String>,
}

impl Walk<'_> {
    fn file(&mut self, at: usize) {
        let (path, dir) = (self.found[at].path.clone(), self.dirs[at].clone());
        // One that is not there, or no file, is told by whoever stores it.
        let Some(text) = super::files::text(&path) else { return };
        let document = match yaml::read(&text) {
            Ok(document) => document,
            Err(e) => {
                self.warnings.push(format!("{}: {e}: what it includes or extends was not looked for", path.display()));
                return;
            }
        };
        for include in list(&document["include"]) {
            self.include(&path, &dir, include);
        }
        for service in document["services"].as_object().into_iter().flat_map(|s| s.values()) {
            if let Some(file) = service["extends"]["file"].as_str() {
                // Its paths start from where it lies.
                self.add(&path, &dir, file, Role::Extended, true, None);
            }
            for file in list(&service["env_file"]) {
                let required = file["required"].as_bool().unwrap_or(true);
                if let Some(file) = file.as_str().or(file["path"].as_str()) {
                    self.add(&path, &dir, file, Role::ServiceEnv, required, None);
                }
            }
        }
        for kind in ["secrets", "configs"] {
            for entry in document[kind].as_object().into_iter().flat_map(|e| e.values()) {
                if let Some(file) = entry["file"].as_str() {
                    self.add(&path, &dir, file, Role::Secret, true, None);
                }
            }
        }
    }

    fn include(&mut self, by: &Path, dir: &Path, include: &Value) {
        let paths: Vec<&str> = match include {
            Value::String(path) => vec![path],
            other => list(&other["path"]).into_iter().filter_map(Value::as_str).collect(),
        };
        let Some(first) = paths.first() else { return };
        let own = include["project_directory"].as_str().map(|d| dir.join(d));
        let own = own.unwrap_or_else(|| locate(by, dir, first).parent().unwrap_or(dir).to_owned());
        for path in paths {
            self.add(by, dir, path, Role::Included, true, Some(own.clone()));
        }
        let env_files = list(&include["env_file"]);
        if env_files.is_empty() {
            self.add(by, &own, ".env", Role::ServiceEnv, false, None);
        }
        for file in env_files.into_iter().filter_map(Value::as_str) {
            self.add(by, dir, file, Role::ServiceEnv, true, None);
        }
    }

    /// `dir`: where the path starts from; `own`: where the paths in that file start from.
    fn add(&mut self, by: &Path, dir: &Path, path: &str, role: Role, named: bool, own: Option<PathBuf>) {
        if path.contains("://") || path.starts_with("git@") {
            self.warnings.push(format!("{}: {path} is of another machine and was not captured", by.display()));
            return;
        }
        if path.contains('$') {
            self.warnings.push(format!("{}: {path} has variables and was not looked for", by.display()));
            return;
        }
        let path = locate(by, dir, path);
        if self.found.len() >= MOST_FILES || self.found.iter().any(|f| f.path == path) {
            return;
        }
        match fs::metadata(&path) {
            _ if named => {}
            Ok(meta) if meta.is_file() => {}
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                let what =
                    format!("{}: {} cannot be looked at and was not captured: {e}", by.display(), path.display());
                if !self.warnings.contains(&what) {
                    self.warnings.push(what);
                }
                return;
            }
            _ => return,
        }
        self.dirs.push(own.unwrap_or_else(|| path.parent().unwrap_or(dir).to_owned()));
        self.found.push(Found { path, role, named });
    }
}

/// Where a path of a compose file lies; `..` is taken away, so that one file has one name.
fn locate(by: &Path, dir: &Path, path: &str) -> PathBuf {
    let mut places = [dir, by.parent().unwrap_or(dir)].map(|from| plain(&from.join(path))).into_iter();
    let first = places.next().unwrap_or_default();
    if first.exists() { first } else { places.find(|other| other.exists()).unwrap_or(first) }
}

fn plain(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

/// One value or several.
fn list(value: &Value) -> Vec<&Value> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(items) => items.iter().collect(),
        one => vec![one],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_compose_files_lead_to_is_found_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "compose.yaml",
            "include:\n  - parts/db.yaml\n  - path: [parts/a.yaml, parts/b.yaml]\n    project_directory: other\n    env_file: parts/a.env\n  - https://example.org/x.yaml\nservices:\n  web:\n    extends: { file: common/base.yaml, service: base }\n    env_file:\n      - ./web.env\n      - { path: maybe.env, required: false }\n      - { path: ring.env, required: false }\n      - ${WHICH}.env\n  same:\n    extends: { service: web }\n    env_file: web.env\nsecrets:\n  key: { file: ./secrets/key }\n",
        );
        write("parts/db.yaml", "services: { db: { env_file: db.env } }\n");
        // A ring of links: nobody can say what it is.
        std::os::unix::fs::symlink("ring.env", root.join("ring.env")).unwrap();
        write("parts/db.env", "");
        write("parts/.env", "");
        write("parts/a.env", "");
        write("parts/a.yaml", "services: { a: { env_file: a2.env } }\n");
        write("parts/b.yaml", "services: {\n");
        write("other/a2.env", "");
        write("web.env", "");
        write("common/base.yaml", "services: { base: { env_file: base.env } }\n");
        write("common/base.env", "");
        let mut found = vec![Found { path: root.join("compose.yaml"), role: Role::Compose, named: true }];
        let mut warnings = Vec::new();
        follow(&root, &mut found, &mut warnings);
        let found: Vec<(String, Role, bool)> = found
            .iter()
            .map(|f| (f.path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(), f.role, f.named))
            .collect();
        let expected = [
            ("compose.yaml", Role::Compose, true),
            ("parts/db.yaml", Role::Included, true),
            ("parts/.env", Role::ServiceEnv, false),
            ("parts/a.yaml", Role::Included, true),
            ("parts/b.yaml", Role::Included, true),
            ("parts/a.env", Role::ServiceEnv, true),
            ("common/base.yaml", Role::Extended, true),
            ("web.env", Role::ServiceEnv, true),
            ("secrets/key", Role::Secret, true),
            ("parts/db.env", Role::ServiceEnv, true),
            ("other/a2.env", Role::ServiceEnv, true),
            ("common/base.env", Role::ServiceEnv, true),
        ];
        assert_eq!(found, expected.map(|(p, r, n)| (p.to_owned(), r, n)));
        let [https, ring, which, parts] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(https.contains("https://") && which.contains("${WHICH}") && parts.contains("b.yaml"), "{warnings:?}");
        assert!(ring.contains("ring.env cannot be looked at and was not captured"), "{ring}");
    }
}
