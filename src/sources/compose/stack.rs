//! A stack as Compose has to be told of it: as a snapshot recorded it, and as it runs now.

use super::files::{self, Role, StoredFile};
use super::running::{Service, Surrounding};
use crate::place::compose::{ComposeProject, UpSet};
use crate::policy::model::App;
use crate::sources::SourceError;
use crate::sources::project::{Project, compose_settings};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The facts of a capture, read again.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Facts {
    pub present: bool,
    /// Containers of it were there.
    pub running: bool,
    pub project: Option<String>,
    pub working_dir: PathBuf,
    pub files: Vec<StoredFile>,
    pub profiles: Vec<String>,
    pub services: Vec<Service>,
    pub networks: Vec<Surrounding>,
    pub volumes: Vec<Surrounding>,
}

impl Facts {
    pub fn read(facts: &Value) -> Result<Facts, SourceError> {
        let facts: Facts = Deserialize::deserialize(facts)
            .map_err(|e| SourceError::problem(format!("what the snapshot says of the compose project: {e}")))?;
        if facts.present && !facts.working_dir.is_absolute() {
            return Err(SourceError::problem("the snapshot does not say where the compose project lay"));
        }
        Ok(facts)
    }

    /// The project's name; where nothing ran, the one that Compose makes of the folder.
    pub fn name(&self) -> String {
        self.project.clone().unwrap_or_else(|| name_of(&self.working_dir))
    }

    /// The project, where there is a file that makes one.
    pub fn project(&self, app: &App) -> Option<ComposeProject> {
        let with = |role| {
            let files = self.files.iter().filter(move |f| f.role == role);
            files.map(|f| app.root.join(&f.path)).collect::<Vec<PathBuf>>()
        };
        let files = with(Role::Compose);
        (self.present && !files.is_empty()).then(|| ComposeProject {
            name: self.name(),
            dir: self.working_dir.clone(),
            files,
            env_files: without_default(with(Role::Env), &self.working_dir),
            profiles: self.profiles.clone(),
        })
    }

    /// What ran.
    pub fn set(&self) -> UpSet {
        let running = self.services.iter().filter(|s| s.scale > 0);
        UpSet { services: running.map(|s| (s.service.clone(), s.scale)).collect(), build: Vec::new() }
    }
}

/// The stack that a snapshot recorded: its project, and what ran of it. Nothing where there was no project. Which images
/// have to be built, only a plan knows: [`super::planned`].
pub fn recorded(facts: &Value, app: &App) -> Option<(ComposeProject, UpSet)> {
    let facts = Facts::read(facts).ok()?;
    Some((facts.project(app)?, facts.set()))
}

/// The stack as its containers are now: what runs, and how many of each. Nothing is built for it.
pub fn live(project: &Project, app: &App) -> (ComposeProject, UpSet) {
    let dir = app.project_dir.clone().or_else(|| project.working_dir.clone()).unwrap_or_else(|| app.root.clone());
    let mut services: BTreeMap<String, usize> = BTreeMap::new();
    for container in project.containers.iter().filter(|c| matches!(c.state.as_str(), "running" | "restarting")) {
        if let Some(labels) = container.compose().filter(|l| !l.oneoff) {
            *services.entry(labels.service).or_default() += 1;
        }
    }
    let described = described(app, &dir, Some(project));
    (described, UpSet { services: services.into_iter().collect(), build: Vec::new() })
}

/// The project in a folder, as its containers' labels say; without any, as Compose would take it.
pub fn described(app: &App, dir: &Path, project: Option<&Project>) -> ComposeProject {
    let found = files::find(app, dir, project);
    let with = |role| {
        let files = found.iter().filter(move |f| f.role == role);
        files.map(|f| f.path.clone()).collect::<Vec<PathBuf>>()
    };
    let env_files = without_default(with(Role::Env), dir);
    let settings = compose_settings(dir, &env_files);
    let name = project.map(|p| p.name.clone()).or_else(|| app.project.clone()).or(settings.project);
    ComposeProject {
        name: name.unwrap_or_else(|| name_of(dir)),
        files: with(Role::Compose),
        env_files,
        profiles: if app.profiles.is_empty() { settings.profiles } else { app.profiles.clone() },
        dir: dir.to_owned(),
    }
}

/// What Compose finds by itself is not named: the containers' labels would change.
fn without_default(env_files: Vec<PathBuf>, dir: &Path) -> Vec<PathBuf> {
    if env_files == [dir.join(".env")] { Vec::new() } else { env_files }
}

/// The name that Compose gives to a project in a folder.
fn name_of(dir: &Path) -> String {
    let name = dir.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let fits = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    let name: String = name.chars().filter(fits).collect();
    name.trim_start_matches(['_', '-']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fuzz::Fuzz;

    #[test]
    fn sweep_facts_of_compose() {
        let policy = crate::sources::compose::shop();
        let file = |path: &str, role: &str| {
            serde_json::json!({"path": path, "role": role, "stream": path, "bytes": 5, "mode": 420, "uid": 0, "gid": 0,
                "mtime": [1, 2], "tracked": true})
        };
        let seed = serde_json::json!({
            "present": true, "running": true, "project": "shop", "working_dir": "/srv/shop",
            "files": [file("compose.yaml", "compose"), file(".env", "env")], "profiles": ["web"],
            "services": [{"service": "web", "image": "nginx:1", "image_id": "sha256:1", "digests": [], "built_here": false,
                "platform": "linux/amd64", "image_bytes": 1, "scale": 2, "containers": [], "ports": [["80", "8080"]],
                "networks": ["default"], "mounts": [], "user": "", "hostname": "", "restart_policy": null, "pin": null,
                "saved": null}],
        });
        let app = &policy.app;
        let (project, set) = recorded(&seed, app).unwrap();
        assert_eq!((project.name.as_str(), project.files.len(), set.services.len()), ("shop", 1, 1));
        let words = ["{", "}", "[", "]", "\"", ":", ",", "null", "-1", "1e400", "18446744073709551616", "../", "/"];
        Fuzz::of("compose-facts").seed(seed.to_string()).words(&words).run(|bytes| {
            let Ok(facts) = serde_json::from_slice::<Value>(bytes) else { return };
            if let Ok(facts) = Facts::read(&facts) {
                let _ = (facts.name(), facts.set());
                if let Some(project) = facts.project(app) {
                    assert!(project.dir.is_absolute() && !project.files.is_empty());
                }
            }
        });
    }
}
