//! The Compose program: `docker compose` (the plugin) or `docker-compose` (version 1, or version 2 by itself).
//!
//! Invariants: a project is what the value says, in its order: name, folder, files, env files and profiles are always
//! given, and what Lifeboat's own environment has is not passed on (in a shell's place it would win over the `.env` that is
//! rolled back). The engine is the one that [`super::Docker`] talks to. Nothing is pulled, nobody's orphans are removed,
//! and only the services named are touched: a finished job that another service depends on does not run again.
//!
//! What version 2 was doing when it was killed is tidied up before the next `up`, which would fail over it.
//!
//! Version 1 cannot adopt containers that version 2 made, nor recreate any on a newer engine: what is to change is
//! removed first, then created. A container with a volume that has no name is not removed for it: its successor would
//! begin with an empty one.
//!
//! No secret is in argv; Compose quotes lines of env files in errors, so the values of those files are taken out.

use super::context;
use super::inspect::{Container, ContainerSummary};
use super::{Command, Docker, HostPlace, Place, PlaceError};
use crate::base::cancel::Cancel;
use crate::base::yaml;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What Compose sees of this process's environment.
const INHERITS: &[&str] = &["PATH", "HOME", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"];
/// Set for every call: none changes what a project is, all keep an `.env` from doing so.
const SETTINGS: &[(&str, &str)] = &[
    ("COMPOSE_REMOVE_ORPHANS", "false"),
    ("COMPOSE_IGNORE_ORPHANS", "true"),
    ("COMPOSE_ANSI", "never"),
    ("COMPOSE_PROGRESS", "plain"),
    ("COMPOSE_INTERACTIVE_NO_CLI", "1"),
    ("DOCKER_CLI_HINTS", "false"),
];
const OUTPUT_BYTES: usize = 16 << 20;
/// Of what it says when it fails.
const SAID_BYTES: usize = 2 << 10;
/// No env file is larger.
const ENV_BYTES: u64 = 16 << 20;
/// A shorter value is a word of its own more often than a secret.
const SECRET_FROM_BYTES: usize = 4;
const ASK_LIMIT: Duration = Duration::from_secs(60);
/// A build may load and compile much.
const WORK_LIMIT: Duration = Duration::from_secs(2 * 3600);

/// A compose project, as Compose has to be told of it. Paths are absolute.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComposeProject {
    pub name: String,
    /// The project's folder: what relative paths in its files start from.
    pub dir: PathBuf,
    /// In the order in which they are merged.
    pub files: Vec<PathBuf>,
    /// In the order in which they are read; without any, Compose reads `.env` in the folder.
    pub env_files: Vec<PathBuf>,
    pub profiles: Vec<String>,
}

/// The services that shall run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpSet {
    /// Each with its number of containers, which is never 0.
    pub services: Vec<(String, usize)>,
    /// Those of them whose image has to be built first; the others run the image that their name has.
    #[serde(default)]
    pub build: Vec<String>,
}

impl UpSet {
    pub fn has(&self, service: &str) -> bool {
        self.services.iter().any(|(name, _)| name == service)
    }

    /// Containers of a project whose services are not in the set: what has to be stopped so that only the set runs.
    pub fn others<'c>(&self, containers: &'c [ContainerSummary]) -> Vec<&'c ContainerSummary> {
        let is_other = |c: &&ContainerSummary| c.compose().is_some_and(|l| !l.oneoff && !self.has(&l.service));
        containers.iter().filter(is_other).collect()
    }
}

/// The program, found.
#[derive(Debug, Clone)]
pub struct Compose {
    /// `docker compose` or `docker-compose`.
    program: Vec<String>,
    version: String,
    /// `up` knows `--pull`.
    says_pull: bool,
    endpoint: String,
    cancel: Cancel,
    limit: Duration,
}

impl Compose {
    /// The plugin, else the program of its own.
    pub fn find(cancel: &Cancel) -> Result<Self, PlaceError> {
        for program in [&["docker", "compose"][..], &["docker-compose"]] {
            if let Some(found) = Self::of(program, cancel)? {
                return Ok(found);
            }
        }
        Err(PlaceError::ToolMissing { tool: "docker compose".into(), place: HostPlace::new().describe() })
    }

    /// One that is called so; nothing where it is not there.
    pub fn of(program: &[&str], cancel: &Cancel) -> Result<Option<Self>, PlaceError> {
        let program = program.iter().map(|word| (*word).to_owned()).collect();
        let endpoint = context::endpoint()?;
        let mut compose = Self {
            program,
            version: String::new(),
            says_pull: false,
            endpoint,
            cancel: cancel.clone(),
            limit: WORK_LIMIT,
        };
        let version = match compose.ask(&["version", "--short"]) {
            Ok(version) => version.trim().trim_start_matches('v').to_owned(),
            Err(PlaceError::ToolMissing { .. } | PlaceError::Failed { .. }) => return Ok(None),
            Err(e) => return Err(e),
        };
        // A client without the plugin may print its help, and call that a success.
        if !version.starts_with(|c: char| c.is_ascii_digit()) || version.contains(char::is_whitespace) {
            return Ok(None);
        }
        compose.version = version;
        compose.says_pull = compose.ask(&["up", "--help"])?.contains("--pull ");
        Ok(Some(compose))
    }

    /// The longest that one `up` may take, a build included.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// Version 1: see the module's text.
    pub fn is_v1(&self) -> bool {
        self.version.starts_with("1.")
    }

    /// For messages: `docker compose 2.26.1`.
    pub fn describe(&self) -> String {
        format!("{} {}", self.program.join(" "), self.version)
    }

    /// Why this program cannot handle a project that another one can.
    pub fn cannot(&self, project: &ComposeProject) -> Option<String> {
        (self.is_v1() && project.env_files.len() > 1)
            .then(|| format!("{} takes one env file, and the project has {}", self.describe(), project.env_files.len()))
    }

    /// The project as Compose reads it, all files merged. Its values hold secrets.
    pub fn config(&self, project: &ComposeProject) -> Result<serde_json::Value, PlaceError> {
        let bad = |source: Box<dyn std::error::Error + Send + Sync>| PlaceError::Io {
            what: format!("read the configuration that {} prints", self.describe()),
            place: HostPlace::new().describe(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidData, source),
        };
        if self.is_v1() {
            let text = self.run(project, &["config"], ASK_LIMIT)?;
            return yaml::read(&text).map_err(|e| bad(e.into()));
        }
        let text = self.run(project, &["config", "--format", "json"], ASK_LIMIT)?;
        serde_json::from_str(&text).map_err(|e| bad(e.into()))
    }

    /// Makes networks, volumes and containers of the set, and starts nothing. Volumes and networks that are there stay as
    /// they are.
    pub fn create(&self, project: &ComposeProject, set: &UpSet) -> Result<(), PlaceError> {
        self.bring(project, set, "--no-start")
    }

    /// Makes what is missing and starts the set.
    pub fn up(&self, project: &ComposeProject, set: &UpSet) -> Result<(), PlaceError> {
        self.bring(project, set, "-d")
    }

    fn bring(&self, project: &ComposeProject, set: &UpSet, how: &str) -> Result<(), PlaceError> {
        if set.services.is_empty() {
            return Ok(());
        }
        if !set.build.is_empty() {
            let build: Vec<&str> = ["build", "--"].into_iter().chain(set.build.iter().map(String::as_str)).collect();
            self.run(project, &build, self.limit)?;
        }
        if self.is_v1() {
            self.make_way(project, set)?;
        } else {
            self.tidy_up(project, set)?;
        }
        let scales: Vec<String> = set.services.iter().map(|(name, count)| format!("{name}={count}")).collect();
        let mut words = vec!["up", how, "--no-build", "--no-deps"];
        if self.says_pull {
            words.extend(["--pull", "never"]);
        }
        for scale in &scales {
            words.extend(["--scale", scale]);
        }
        words.push("--");
        words.extend(set.services.iter().map(|(name, _)| name.as_str()));
        self.run(project, &words, self.limit).map(drop)
    }

    /// For version 2: what is left of a container that was being made anew when Compose was killed. The new one has a name
    /// with an id before it until the old one is gone. One that never ran goes, because the next one would want its name;
    /// where the old one is gone already it gets its own name, because Compose would leave it the other for ever.
    fn tidy_up(&self, project: &ComposeProject, set: &UpSet) -> Result<(), PlaceError> {
        let docker = Docker::connect(&self.cancel)?;
        let containers = docker.project(&project.name)?;
        let mut names: BTreeSet<&str> = containers.iter().map(|c| c.name.as_str()).collect();
        for left in containers.iter().filter(|c| c.compose().is_some_and(|labels| set.has(&labels.service))) {
            let Some(name) = name_to_be(&left.name) else { continue };
            if names.insert(name) {
                docker.rename_container(&left.id, name)?;
            } else if left.state == "created" {
                docker.remove_container(&left.id)?;
            }
        }
        Ok(())
    }

    /// For version 1: removes the containers that it would have to make anew.
    fn make_way(&self, project: &ComposeProject, set: &UpSet) -> Result<(), PlaceError> {
        let hashes = self.run(project, &["config", "--hash", "*"], ASK_LIMIT)?;
        let hashes: BTreeMap<&str, &str> = hashes.lines().filter_map(|l| l.trim().split_once(' ')).collect();
        let docker = Docker::connect(&self.cancel)?;
        let mut leaving = Vec::new();
        for summary in docker.project(&project.name)? {
            let Some(labels) = summary.compose().filter(|l| set.has(&l.service)) else { continue };
            let container = docker.inspect(&summary.id)?;
            let image = docker.image(&container.image)?.map(|image| image.id);
            let hash = summary.labels.get("com.docker.compose.config-hash").map(String::as_str);
            let stays = labels.version.as_deref().is_some_and(|v| v.starts_with("1."))
                && hash.is_some()
                && hash == hashes.get(labels.service.as_str()).copied()
                && image.as_deref() == Some(container.image_id.as_str());
            if !stays {
                leaving.push(container);
            }
        }
        // All are looked at before the first one goes.
        for container in &leaving {
            if let Some(folder) = nameless_volume(&docker, container)? {
                return Err(self.failed(1, nameless(&container.name, &folder)));
            }
        }
        for container in leaving {
            docker.stop_container(&container.id)?;
            docker.remove_container(&container.id)?;
        }
        Ok(())
    }

    /// Runs a command of a project; what it printed.
    fn run(&self, project: &ComposeProject, words: &[&str], limit: Duration) -> Result<String, PlaceError> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut argv = vec!["--project-name".to_owned(), project.name.clone()];
        argv.extend(["--project-directory".to_owned(), text(&project.dir)]);
        for file in &project.files {
            argv.extend(["--file".to_owned(), text(file)]);
        }
        for file in &project.env_files {
            argv.extend(["--env-file".to_owned(), text(file)]);
        }
        for profile in &project.profiles {
            argv.extend(["--profile".to_owned(), profile.clone()]);
        }
        argv.extend(words.iter().map(|word| (*word).to_owned()));
        self.start(argv, Some(&project.dir), limit).map_err(|e| match e {
            PlaceError::Failed { code, stderr, .. } => self.failed(code, plain(&stderr, project)),
            other => other,
        })
    }

    fn ask(&self, words: &[&str]) -> Result<String, PlaceError> {
        self.start(words.iter().map(|word| (*word).to_owned()).collect(), None, ASK_LIMIT)
    }

    fn start(&self, words: Vec<String>, dir: Option<&Path>, limit: Duration) -> Result<String, PlaceError> {
        let argv = self.program.iter().cloned().chain(words);
        let mut command = Command::new(argv).inherits(INHERITS).timeout(limit).cancel(&self.cancel);
        command = command.env("DOCKER_HOST", self.endpoint.clone());
        for (name, value) in SETTINGS {
            command = command.env(*name, (*value).to_owned());
        }
        command.dir = dir.map(Path::to_owned);
        let out = HostPlace::new().output(command, OUTPUT_BYTES)?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    fn failed(&self, code: i32, stderr: String) -> PlaceError {
        PlaceError::Failed { tool: self.program.join(" "), place: HostPlace::new().describe(), code, stderr }
    }
}

/// Where a container keeps data that goes with it, for nothing else knows the volume.
pub fn nameless_volume(docker: &Docker, container: &Container) -> Result<Option<PathBuf>, PlaceError> {
    for mount in container.mounts.iter().filter(|m| m.kind == "volume") {
        let Some(name) = &mount.name else { continue };
        if docker.volume(name)?.is_some_and(|volume| volume.is_anonymous()) {
            return Ok(Some(mount.destination.clone()));
        }
    }
    Ok(None)
}

/// Why version 1 must not touch such a container.
pub fn nameless(container: &str, folder: &Path) -> String {
    format!(
        "container {container} keeps {} in a volume without a name, and version 1 of Compose would begin with an empty one",
        folder.display()
    )
}

/// The end of what Compose said, without what env files hold.
fn plain(said: &str, project: &ComposeProject) -> String {
    let default = [project.dir.join(".env")];
    let own = if project.env_files.is_empty() { &default[..] } else { &project.env_files };
    // It quotes the lines of whatever file it could not read.
    let named = said.split([' ', '\n', '"', '\'']).map(|word| word.trim_end_matches([':', ',', '.']));
    let named = named.filter(|word| word.starts_with('/')).map(PathBuf::from);
    let mut secrets: Vec<String> = own.iter().cloned().chain(named).flat_map(|file| values(&file)).collect();
    // Every container is called by it, and no message could be read without.
    secrets.retain(|value| *value != project.name);
    secrets.sort_by_key(|value| std::cmp::Reverse(value.len()));
    secrets.dedup();
    let mut text = unquoted(said.trim());
    for secret in &secrets {
        text = text.replace(secret.as_str(), "***");
    }
    let mut from = text.len().saturating_sub(SAID_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.split_off(from)
}

/// Of a service's env file Compose quotes lines without naming the file: what is quoted behind `line N:` goes.
fn unquoted(said: &str) -> String {
    let Some(from) = said.find("line ") else { return said.to_owned() };
    let mut text = said[..from].to_owned();
    let mut rest = &said[from..];
    // It quotes this one as it stands, to its end.
    if let Some(at) = rest.find("unterminated quoted value") {
        rest = &rest[..at + "unterminated quoted value".len()];
    }
    for (n, piece) in rest.split('"').enumerate() {
        text.push_str(if n % 2 == 0 { piece } else { "\"…\"" });
    }
    text
}

/// What may be secret in an env file, in every form in which an error could show it.
fn values(file: &Path) -> Vec<String> {
    use std::io::Read;
    let is_file = std::fs::metadata(file).is_ok_and(|m| m.is_file());
    let Some(opened) = is_file.then(|| std::fs::File::open(file).ok()).flatten() else { return Vec::new() };
    let mut bytes = Vec::new();
    if opened.take(ENV_BYTES).read_to_end(&mut bytes).is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        // A line without a name continues a value.
        let value = line.split_once('=').map_or(line, |(_, value)| value).trim();
        let bare = value.trim_matches(['"', '\'']);
        found.extend([value, bare].into_iter().filter(|v| v.len() >= SECRET_FROM_BYTES).map(str::to_owned));
    }
    found
}
/// The name that a container gets once the one in whose place it comes is gone: `<twelve digits of that one's id>_<name>`.
fn name_to_be(name: &str) -> Option<&str> {
    let (id, name) = name.split_once('_')?;
    (id.len() == 12 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) && !name.is_empty()).then_some(name)
}
