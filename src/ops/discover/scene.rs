//! What discovery looks at: the containers of the project and around it, its compose and env files, and what git keeps.
//!
//! Everything is only read. Values of variables are compared in memory and go nowhere.

use super::defined::Defined;
use super::find::Uncovered;
use super::stores::{self, Store, Traits};
use super::urls::{self, Url};
use super::yaml::{Scalar, scalars};
use crate::base::secret::Secret;
use crate::ops::{OpsError, Run};
use crate::place::inspect::{Container, Mount};
use crate::place::{Docker, PlaceError};
use crate::policy::dotenv::{self, Entry};
use crate::policy::model::{App, SecretRef};
use crate::repository::chain::full_text;
use crate::sources::git::{self, By, Kept};
use crate::sources::locate::{Locate, Located};
use crate::sources::project::{Places, Project, compose_settings, default_compose_files};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Compose, env and configuration files are read up to this length.
pub const FILE_BYTES: u64 = 1 << 20;
/// The names by which Compose finds its file without being told.
const COMPOSE_FINDS: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// An env file that somebody reads.
pub struct EnvFile {
    pub path: PathBuf,
    pub entries: Vec<Entry>,
    pub mode: u32,
}

/// A service of the project.
#[derive(Debug, Default)]
pub struct Service {
    pub name: String,
    pub image: String,
    pub command: Vec<String>,
    pub store: Option<Store>,
    pub pgdata: Option<String>,
    /// As its container has them; without one, as the compose files say.
    pub mounts: Vec<Mount>,
    /// Absent when there is none.
    pub container: Option<Container>,
}

impl Service {
    pub fn is_running(&self) -> bool {
        self.container.as_ref().is_some_and(Container::is_running)
    }
}

pub struct Scene<'a> {
    pub root: PathBuf,
    pub app: &'a App,
    pub places: Arc<Places>,
    /// Absent when no engine answers.
    pub docker: Option<Docker>,
    pub project: Option<Project>,
    pub compose_files: Vec<PathBuf>,
    /// The folder that paths of the compose files begin at.
    pub project_dir: PathBuf,
    /// What stands in them.
    pub compose_texts: Vec<String>,
    pub compose: Vec<Scalar>,
    pub services: Vec<Service>,
    /// Volumes as the compose files have them: the engine's name by the one in the file.
    pub volumes: BTreeMap<String, String>,
    /// Running containers that are not of the project.
    pub around: Vec<Container>,
    pub env_files: Vec<EnvFile>,
    pub kept: Option<Kept>,
    /// What could not be looked at.
    pub problems: Vec<Uncovered>,
    pub run: &'a Run,
}

impl<'a> Scene<'a> {
    pub fn look(app: &'a App, run: &'a Run) -> Result<Self, OpsError> {
        let places = Arc::new(Places::new(app, &run.cancel));
        let mut scene = Scene {
            root: app.root.clone(),
            app,
            places,
            docker: None,
            project: None,
            compose_files: Vec::new(),
            project_dir: app.root.clone(),
            compose_texts: Vec::new(),
            compose: Vec::new(),
            services: Vec::new(),
            volumes: BTreeMap::new(),
            around: Vec::new(),
            env_files: Vec::new(),
            kept: None,
            problems: Vec::new(),
            run,
        };
        run.events.step("looking at containers");
        scene.engine()?;
        scene.compose_files();
        scene.containers()?;
        run.cancel.check()?;
        scene.env_files();
        match git::kept(&scene.root, &run.cancel) {
            Ok(kept) => scene.kept = kept,
            Err(e) => {
                run.cancel.check()?;
                let hint = "is git installed, and the checkout whole?";
                scene.problems.push(Uncovered::data("what git does not keep", full_text(&e), hint));
            }
        }
        Ok(scene)
    }

    fn engine(&mut self) -> Result<(), OpsError> {
        match self.places.docker() {
            Ok(docker) => self.docker = Some(docker),
            Err(e) => {
                self.run.cancel.check()?;
                if has_compose_file(&self.root) {
                    let hint = "run as root or as a user in group docker, with Docker running";
                    self.problems.push(Uncovered::data("containers and volumes", full_text(&e), hint));
                }
                return Ok(());
            }
        }
        match self.places.project() {
            Ok(project) => self.project = project,
            Err(e @ PlaceError::ManyProjects { .. }) => {
                let hint = "name each project's own folder: one policy is for one project";
                self.problems.push(Uncovered::data("containers and volumes", full_text(&e), hint));
            }
            Err(e) => {
                self.run.cancel.check()?;
                let hint = "run as root or as a user in group docker, with Docker running";
                self.problems.push(Uncovered::data("containers and volumes", full_text(&e), hint));
            }
        }
        Ok(())
    }

    /// As the running containers' labels say, else as the policy or Compose would.
    fn compose_files(&mut self) {
        let app = self.app;
        let dir = app.project_dir.clone().or_else(|| self.project.as_ref()?.working_dir.clone());
        self.project_dir = dir.unwrap_or_else(|| self.root.clone());
        let labels = self.project.as_ref().map(|p| p.config_files.clone()).unwrap_or_default();
        self.compose_files = if !app.compose_files.is_empty() {
            app.compose_files.clone()
        } else if !labels.is_empty() {
            labels
        } else {
            let settings = compose_settings(&self.project_dir, &app.env_files);
            let found =
                if settings.files.is_empty() { default_compose_files(&self.project_dir) } else { settings.files };
            if found.is_empty() { other_compose_files(&self.root) } else { found }
        };
        let mut unseen = Vec::new();
        for file in &self.compose_files {
            match read_text(file) {
                Ok(text) => self.compose_texts.extend(text),
                Err(e) => unseen.push((file.clone(), e)),
            }
        }
        unseen.iter().for_each(|(file, e)| self.unseen(file, e));
        self.compose = self.compose_texts.iter().flat_map(|text| scalars(text)).collect();
    }

    fn containers(&mut self) -> Result<(), OpsError> {
        let mut names: BTreeSet<String> = BTreeSet::new();
        if let Some(docker) = self.docker.clone() {
            let own: Vec<String> =
                self.project.iter().flat_map(|p| p.containers.iter().map(|c| c.id.clone())).collect();
            let all = match docker.containers(&[]) {
                Ok(all) => all,
                Err(e) => {
                    self.run.cancel.check()?;
                    let hint = "is Docker well?";
                    self.problems.push(Uncovered::data("containers and volumes", full_text(&e), hint));
                    return Ok(());
                }
            };
            for summary in all {
                let mine = own.contains(&summary.id);
                if !mine && (summary.state != "running" || summary.labels.contains_key("lifeboat.role")) {
                    continue;
                }
                let container = match docker.inspect(&summary.id) {
                    Ok(container) => container,
                    // It went away meanwhile.
                    Err(PlaceError::NoContainer { .. }) => continue,
                    Err(e) => {
                        self.run.cancel.check()?;
                        let what = format!("container {}", summary.name);
                        self.problems.push(Uncovered::data(what, full_text(&e), "is Docker well?"));
                        continue;
                    }
                };
                if !mine {
                    self.around.push(container);
                    continue;
                }
                let Some(labels) = container.compose() else { continue };
                // The first of several, and the one that runs before one that does not.
                if let Some(known) = self.services.iter_mut().find(|s| s.name == labels.service) {
                    if !known.is_running() && container.is_running() {
                        *known = service(labels.service, container);
                    }
                    continue;
                }
                names.insert(labels.service.clone());
                self.services.push(service(labels.service, container));
            }
        }
        let mut defined = Defined::look(self)?;
        // What nothing else could read is found line by line.
        let all: Vec<Service> = defined.take_services().chain(self.defined_services()).collect();
        for service in all {
            if names.insert(service.name.clone()) {
                self.services.push(service);
            }
        }
        self.volumes = defined.volumes;
        self.services.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    /// Services as the compose files have them.
    fn defined_services(&self) -> Vec<Service> {
        let mut found: Vec<Service> = Vec::new();
        for scalar in &self.compose {
            let [services, name, field, ..] = scalar.path.as_slice() else { continue };
            if services != "services" {
                continue;
            }
            if !found.iter().any(|s| s.name == *name) {
                found.push(Service { name: name.clone(), ..Service::default() });
            }
            let Some(service) = found.iter_mut().find(|s| s.name == *name) else { continue };
            match field.as_str() {
                "image" if scalar.path.len() == 3 => service.image = scalar.value.clone(),
                "command" => service.command.push(scalar.value.clone()),
                _ => {}
            }
        }
        for service in &mut found {
            let traits = Traits { image: &service.image, command: &service.command, ..Traits::default() };
            service.store = stores::store(&traits);
        }
        found
    }

    /// The root's own, those that Compose was given, and those that services are given.
    fn env_files(&mut self) {
        let mut paths: Vec<PathBuf> = Vec::new();
        let mut add = |path: PathBuf| {
            // Whether one that cannot be looked at is a file is told by whoever reads it.
            let may_be_file = match there(fs::metadata(&path)) {
                Ok(meta) => meta.is_some_and(|meta| meta.is_file()),
                Err(_) => true,
            };
            if !paths.contains(&path) && may_be_file {
                paths.push(path);
            }
        };
        let mut dirs = vec![self.root.clone()];
        if self.project_dir != self.root {
            dirs.push(self.project_dir.clone());
        }
        for dir in &dirs {
            let names = fs::read_dir(dir).into_iter().flatten().flatten();
            let mut own: Vec<PathBuf> = names.map(|e| e.path()).filter(|p| is_env_file(p)).collect();
            own.sort();
            own.into_iter().for_each(&mut add);
        }
        let labels = self.project.as_ref().map(|p| p.environment_files.as_slice()).unwrap_or_default();
        self.app.env_files.iter().chain(labels).for_each(|file| add(self.project_dir.join(file)));
        for scalar in &self.compose {
            let file = scalar
                .at(&["services", "*", "env_file"])
                .or_else(|| scalar.at(&["services", "*", "env_file", "-"]))
                .or_else(|| scalar.at(&["services", "*", "env_file", "-", "path"]));
            if let Some(file) = file.filter(|f| !f.contains('$')) {
                add(clean(&self.project_dir.join(file)));
            }
        }
        let read = |path: PathBuf| {
            use std::os::unix::fs::MetadataExt;
            let Some(bytes) = read_bytes(&path)? else { return Ok(None) };
            let entries = dotenv::parse_bytes(&bytes, &dotenv::no_environment).unwrap_or_default();
            let mode = fs::metadata(&path)?.mode();
            Ok::<_, io::Error>(Some(EnvFile { path, entries, mode }))
        };
        for path in paths {
            match read(path.clone()) {
                Ok(file) => self.env_files.extend(file),
                Err(e) => self.unseen(&path, &e),
            }
        }
    }

    /// A file that says what belongs to the application: that a source captures it does not tell what it says.
    fn unseen(&mut self, path: &Path, error: &io::Error) {
        self.problems.push(Uncovered { unseen: None, ..Uncovered::unseen(self.short(path), path, error) });
    }

    /// How sources find their servers.
    pub fn locate(&self) -> Locate {
        let places = self.places.clone();
        Arc::new(move |target| {
            let found = places.find(target)?;
            let env = found.container.map(|c| c.env.into_iter().collect()).unwrap_or_default();
            Ok(Located { place: found.place, env })
        })
    }

    /// Where a value stands as the value of a key: a reference to it, for a policy.
    pub fn reference(&self, value: &Secret<String>) -> Option<SecretRef> {
        let holds = |e: &&Entry| e.value.expose() == value.expose();
        let in_file = |f: &EnvFile| {
            let all: Vec<&Entry> = f.entries.iter().filter(holds).collect();
            let best = all.iter().find(|e| is_secret_name(&e.key)).or(all.first())?;
            Some(SecretRef::EnvFile { file: f.path.clone(), key: best.key.clone() })
        };
        self.env_files.iter().find_map(in_file)
    }

    /// Servers that the application is told of, with where: `.env:DATABASE_URL`.
    pub fn urls(&self) -> Vec<(Url, String)> {
        let mut found: Vec<(Url, String)> = Vec::new();
        let mut add = |value: &str, seen: String| {
            if let Some(url) = urls::parse(value)
                && !found.iter().any(|(u, _)| {
                    (&u.scheme, &u.host, u.port, &u.database) == (&url.scheme, &url.host, url.port, &url.database)
                })
            {
                found.push((url, seen));
            }
        };
        for file in &self.env_files {
            file.entries.iter().for_each(|e| add(e.value.expose(), format!("{}:{}", self.short(&file.path), e.key)));
        }
        for service in &self.services {
            let env = service.container.iter().flat_map(|c| &c.env);
            env.for_each(|(key, value)| add(value.expose(), format!("{key} of service {}", service.name)));
        }
        found
    }

    /// A path as a policy would write it: relative to the root where it lies below.
    pub fn short(&self, path: &Path) -> String {
        match path.strip_prefix(&self.root) {
            Ok(below) if below.as_os_str().is_empty() => ".".to_owned(),
            Ok(below) => below.display().to_string(),
            Err(_) => path.display().to_string(),
        }
    }

    /// Who keeps a path.
    pub fn kept_by(&self, path: &Path) -> By {
        self.kept.as_ref().map_or(By::Nobody, |kept| kept.by(path))
    }

    /// Networks of the project that lead to other containers.
    pub fn shares_network(&self, container: &Container) -> bool {
        let usual = |n: &&String| !matches!(n.as_str(), "bridge" | "host" | "none");
        let mine = self.services.iter().filter_map(|s| s.container.as_ref());
        let mine: BTreeSet<&String> = mine.flat_map(|c| c.networks.iter().filter(usual)).collect();
        container.networks.iter().any(|n| mine.contains(n))
    }

    /// The container that publishes a port on this host.
    pub fn publisher(&self, port: u16) -> Option<&Container> {
        let publishes = |c: &&Container| c.is_running() && host_ports(c).any(|(_, p)| p == port);
        self.services
            .iter()
            .filter_map(|s| s.container.as_ref())
            .find(publishes)
            .or_else(|| self.around.iter().find(publishes))
    }
}

/// Ports that a container publishes: port in the container, and on the host.
pub fn host_ports(container: &Container) -> impl Iterator<Item = (u16, u16)> {
    container.ports.iter().filter_map(|(inside, outside)| {
        let inside = inside.strip_suffix("/tcp")?.parse().ok()?;
        Some((inside, outside.rsplit(':').next()?.parse().ok()?))
    })
}

fn service(name: String, container: Container) -> Service {
    Service {
        name,
        image: container.image.clone(),
        command: container.command.clone(),
        store: store_of(&container),
        pgdata: container.env("PGDATA").map(|v| v.expose().clone()),
        mounts: container.mounts.clone(),
        container: Some(container),
    }
}

/// The store that a container is.
pub fn store_of(container: &Container) -> Option<Store> {
    let mounts = container.mounts.iter().filter(|m| m.writable).map(|m| m.destination.as_path()).collect();
    stores::store(&Traits {
        image: &container.image,
        command: &container.command,
        pgdata: container.env("PGDATA").map(|v| v.expose().as_str()),
        mounts,
    })
}

/// Whether a name is a secret's, as people call them.
pub fn is_secret_name(key: &str) -> bool {
    let key = key.to_ascii_uppercase();
    ["PASS", "SECRET", "TOKEN", "KEY", "PWD"].iter().any(|part| key.contains(part))
}

/// `.env`, `.env.production`, `shop.env`; examples belong to git.
fn is_env_file(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return false };
    let example = ["example", "sample", "template", "dist"].iter().any(|end| name.ends_with(end));
    (name == ".env" || name.starts_with(".env.")) && !example
}

fn other_compose_files(dir: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let is_compose = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let yaml = name.ends_with(".yml") || name.ends_with(".yaml");
        yaml && (name.starts_with("docker-compose") || name.starts_with("compose")) && path.is_file()
    };
    let mut found: Vec<PathBuf> = names.filter(is_compose).collect();
    found.sort();
    found
}

fn has_compose_file(dir: &Path) -> bool {
    COMPOSE_FINDS.iter().any(|name| dir.join(name).is_file()) || !other_compose_files(dir).is_empty()
}

/// Whether Compose finds this file by itself.
pub fn is_usual_compose_file(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| COMPOSE_FINDS.contains(&n))
}

/// The beginning of a file; none where there is no file.
pub fn read_bytes(path: &Path) -> io::Result<Option<Vec<u8>>> {
    use std::os::unix::fs::OpenOptionsExt;
    // A FIFO would hold the look up for ever.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = match there(fs::OpenOptions::new().read(true).custom_flags(nonblock).open(path)) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        // A socket.
        Err(e) if e.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => return Ok(None),
        Err(e) => return Err(e),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

pub fn read_text(path: &Path) -> io::Result<Option<String>> {
    Ok(read_bytes(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// What a look gave; none of what is not there. Everything else that goes wrong is no such answer.
pub fn there<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A path without `.` and `..`, by its text alone.
pub fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => drop(out.pop()),
            std::path::Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}
