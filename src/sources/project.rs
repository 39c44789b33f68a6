//! The application's compose project: which one it is, and where its servers run.
//!
//! The running containers' labels are the truth; a guess from file names serves only where nothing runs. A project is
//! recognised by the policy's name for it, by its folder, or by its compose files, and never by being the only one.

use crate::base::cancel::Cancel;
use crate::place::inspect::{ComposeLabels, Container, ContainerSummary};
use crate::place::{ContainerPlace, Docker, HostPlace, Place, PlaceError};
use crate::policy::dotenv;
use crate::policy::model::{App, Target};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The most that is read of a compose or env file to find out about the project.
const FILE_BYTES: u64 = 4 << 20;

/// A compose project as its containers' labels describe it.
#[derive(Debug, Clone)]
pub struct Project {
    pub name: String,
    pub working_dir: Option<PathBuf>,
    pub config_files: Vec<PathBuf>,
    pub environment_files: Vec<PathBuf>,
    /// Version of Compose that made it.
    pub compose_version: Option<String>,
    /// Its containers, stopped ones too, by service and number.
    pub containers: Vec<ContainerSummary>,
}

impl Project {
    /// The labels of its containers; they agree on what concerns the project.
    fn of(name: String, containers: Vec<ContainerSummary>) -> Project {
        let labels: Vec<ComposeLabels> = containers.iter().filter_map(ContainerSummary::compose).collect();
        // Containers made by different `up` commands may name different files; the newest set is not told, so all are kept.
        let mut config_files: Vec<PathBuf> = Vec::new();
        let mut environment_files: Vec<PathBuf> = Vec::new();
        for one in &labels {
            for file in &one.config_files {
                let file = one.working_dir.as_ref().map_or_else(|| file.clone(), |dir| dir.join(file));
                if !config_files.contains(&file) {
                    config_files.push(file);
                }
            }
            for file in &one.environment_files {
                let file = one.working_dir.as_ref().map_or_else(|| file.clone(), |dir| dir.join(file));
                if !environment_files.contains(&file) {
                    environment_files.push(file);
                }
            }
        }
        Project {
            name,
            working_dir: labels.iter().find_map(|l| l.working_dir.clone()),
            config_files,
            environment_files,
            compose_version: labels.iter().find_map(|l| l.version.clone()),
            containers,
        }
    }

    /// Services with a running container, in order.
    pub fn running_services(&self) -> Vec<String> {
        let running = self.containers.iter().filter(|c| c.state == "running");
        let mut services: Vec<String> = running.filter_map(|c| c.compose().map(|l| l.service)).collect();
        services.dedup();
        services
    }
}

/// Finds the project of an application among the engine's containers. Absent when none of its containers is there.
pub fn find_project(docker: &Docker, app: &App) -> Result<Option<Project>, PlaceError> {
    let mut projects: BTreeMap<String, Vec<ContainerSummary>> = BTreeMap::new();
    for container in docker.containers(&["com.docker.compose.project".to_owned()])? {
        if let Some(labels) = container.compose().filter(|l| !l.oneoff) {
            projects.entry(labels.project).or_default().push(container);
        }
    }
    for containers in projects.values_mut() {
        containers.sort_by_key(|c| c.compose().map(|l| (l.service, l.number)));
    }
    if let Some(name) = &app.project {
        return Ok(projects.remove(name).map(|containers| Project::of(name.clone(), containers)));
    }
    let found: Vec<Project> = projects.into_iter().map(|(name, containers)| Project::of(name, containers)).collect();
    choose(found, app)
}

/// The project that `app` means; the surest sign decides.
fn choose(found: Vec<Project>, app: &App) -> Result<Option<Project>, PlaceError> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let dir = |project: &Project| project.working_dir.as_deref().map(real);
    let root = real(&app.root);
    let named_dir = app.project_dir.as_deref().map(real);
    let named_files: Vec<PathBuf> = app.compose_files.iter().map(|f| real(f)).collect();
    let signs: [&dyn Fn(&Project) -> bool; 4] = [
        &|p| named_dir.is_some() && dir(p) == named_dir,
        &|p| !named_files.is_empty() && named_files.iter().all(|f| p.config_files.iter().any(|c| real(c) == *f)),
        &|p| dir(p).as_ref() == Some(&root),
        &|p| dir(p).is_some_and(|d| d.starts_with(&root)),
    ];
    for sign in signs {
        let names: Vec<String> = found.iter().filter(|p| sign(p)).map(|p| p.name.clone()).collect();
        match names.len() {
            0 => {}
            1 => return Ok(found.into_iter().find(|p| p.name == names[0])),
            _ => return Err(PlaceError::ManyProjects { dir: app.root.clone(), projects: names }),
        }
    }
    Ok(None)
}

/// The compose files that Compose itself would find in a folder: the first of its names, and the override beside it.
pub fn default_compose_files(dir: &Path) -> Vec<PathBuf> {
    let first = |names: &[&str]| names.iter().map(|n| dir.join(n)).find(|p| p.is_file());
    let Some(main) = first(&["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"]) else {
        return Vec::new();
    };
    let overrides = [
        "compose.override.yml",
        "compose.override.yaml",
        "docker-compose.override.yml",
        "docker-compose.override.yaml",
    ];
    std::iter::once(main).chain(first(&overrides)).collect()
}

/// Variables of the project's env file that steer Compose itself.
#[derive(Debug, Clone, Default)]
pub struct ComposeSettings {
    pub project: Option<String>,
    pub files: Vec<PathBuf>,
    pub profiles: Vec<String>,
}

/// Reads `COMPOSE_PROJECT_NAME`, `COMPOSE_FILE` and `COMPOSE_PROFILES` from the project's env files, as Compose does.
pub fn compose_settings(dir: &Path, env_files: &[PathBuf]) -> ComposeSettings {
    let mut settings = ComposeSettings::default();
    let default = [dir.join(".env")];
    for file in if env_files.is_empty() { &default[..] } else { env_files } {
        // What cannot be read or parsed here is told by the sources that capture it.
        let Some(text) = read_small(file) else { continue };
        let Ok(entries) = dotenv::parse_bytes(&text, &dotenv::no_environment) else { continue };
        let get = |key: &str| dotenv::get(&entries, key).map(|v| v.expose().clone()).filter(|v| !v.is_empty());
        settings.project = get("COMPOSE_PROJECT_NAME").or(settings.project);
        if let Some(files) = get("COMPOSE_FILE") {
            let separator = get("COMPOSE_PATH_SEPARATOR").unwrap_or_else(|| ":".into());
            settings.files = files.split(&separator).map(|f| dir.join(f)).collect();
        }
        if let Some(profiles) = get("COMPOSE_PROFILES") {
            settings.profiles = profiles.split(',').map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect();
        }
    }
    settings
}

fn read_small(file: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(file).ok()?.take(FILE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// A target of a policy, found.
pub struct Found {
    pub place: Arc<dyn Place>,
    /// The container as it was when it was found; absent on this host.
    pub container: Option<Container>,
}

/// Finds the targets of one policy. The engine is asked when first needed: many policies need none.
pub struct Places {
    app: App,
    cancel: Cancel,
    docker: Mutex<Option<Docker>>,
}

impl Places {
    pub fn new(app: &App, cancel: &Cancel) -> Self {
        Self { app: app.clone(), cancel: cancel.clone(), docker: Mutex::new(None) }
    }

    /// The engine; one connection for all.
    pub fn docker(&self) -> Result<Docker, PlaceError> {
        let mut slot = self.docker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(docker) = &*slot {
            return Ok(docker.clone());
        }
        let docker = Docker::connect(&self.cancel)?;
        Ok(slot.insert(docker).clone())
    }

    /// The application's project, as it is now.
    pub fn project(&self) -> Result<Option<Project>, PlaceError> {
        find_project(&self.docker()?, &self.app)
    }

    /// Where a target is now. A URL is reached with this host's tools.
    pub fn find(&self, target: &Target) -> Result<Found, PlaceError> {
        let place = match target {
            Target::Host | Target::Url(_) => {
                return Ok(Found { place: Arc::new(HostPlace::new()), container: None });
            }
            Target::Container(name) => ContainerPlace::named(&self.docker()?, name.clone()),
            Target::Service(service) => {
                let project = self.project()?.ok_or_else(|| PlaceError::NoProject { dir: self.app.root.clone() })?;
                let running = project.running_services();
                let known = project.containers.iter().any(|c| c.compose().is_some_and(|l| l.service == *service));
                // A stopped one is told by its own state; here only what the project does not have.
                if !known {
                    return Err(PlaceError::NoService { service: service.clone(), project: project.name, running });
                }
                ContainerPlace::service(&self.docker()?, project.name, service.clone())
            }
        };
        let container = place.resolve()?;
        Ok(Found { place: Arc::new(place), container: Some(container) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(root: &str) -> App {
        App {
            name: "x".parse().unwrap(),
            root: root.into(),
            compose_files: vec![],
            env_files: vec![],
            profiles: vec![],
            project: None,
            project_dir: None,
        }
    }

    fn project(name: &str, dir: &str) -> Project {
        Project {
            name: name.into(),
            working_dir: Some(dir.into()),
            config_files: vec![Path::new(dir).join("compose.yaml")],
            environment_files: vec![],
            compose_version: None,
            containers: vec![],
        }
    }

    fn chosen(app: &App, projects: &[(&str, &str)]) -> Result<Option<String>, PlaceError> {
        choose(projects.iter().map(|(n, d)| project(n, d)).collect(), app).map(|p| p.map(|p| p.name))
    }

    #[test]
    fn a_project_is_recognised_by_its_folder_and_never_by_being_alone() {
        let two = [("prod", "/nowhere/conector-prod"), ("test", "/nowhere/conector-test")];
        assert_eq!(chosen(&app("/nowhere/conector-test"), &two).unwrap().as_deref(), Some("test"));
        assert_eq!(chosen(&app("/nowhere/other"), &two[..1]).unwrap(), None);
        assert_eq!(chosen(&app("/nowhere/conector"), &two).unwrap(), None, "a prefix of a name is no parent");
        let below = [("meta", "/nowhere/meta-chat/docker"), ("prod", "/nowhere/conector-prod")];
        assert_eq!(chosen(&app("/nowhere/meta-chat"), &below).unwrap().as_deref(), Some("meta"));
        assert!(
            matches!(chosen(&app("/nowhere"), &two), Err(PlaceError::ManyProjects { projects, .. }) if projects.len() == 2)
        );
        let mut named = app("/nowhere");
        named.compose_files = vec!["/nowhere/conector-prod/compose.yaml".into()];
        assert_eq!(chosen(&named, &two).unwrap().as_deref(), Some("prod"));
        named.project_dir = Some("/nowhere/conector-test".into());
        assert_eq!(chosen(&named, &two).unwrap().as_deref(), Some("test"), "the folder is the surer sign");
    }

    #[test]
    fn compose_files_and_settings_are_found_as_compose_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        assert!(default_compose_files(dir.path()).is_empty());
        for name in ["docker-compose.yml", "docker-compose.override.yml", "compose.yaml", "other.yml"] {
            std::fs::write(dir.path().join(name), "services: {}\n").unwrap();
        }
        let names: Vec<_> =
            default_compose_files(dir.path()).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["compose.yaml", "docker-compose.override.yml"]);
        std::fs::write(dir.path().join(".env"), "COMPOSE_FILE=a.yml:b/c.yml\nCOMPOSE_PROFILES=ops, web\nX=$(y)\n")
            .unwrap();
        let settings = compose_settings(dir.path(), &[]);
        assert_eq!(settings.files, [dir.path().join("a.yml"), dir.path().join("b/c.yml")]);
        assert_eq!((settings.profiles, settings.project), (vec!["ops".to_owned(), "web".to_owned()], None));
    }
}
