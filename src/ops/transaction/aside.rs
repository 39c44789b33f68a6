//! A data folder that the server which comes back would not start on, since it is of another major version: it goes
//! aside, an empty one takes its place, and the server of then makes a cluster of its own in it, which is filled like one
//! that was lost.
//!
//! The folder is the whole of the volume, or of the folder of the host, that the server's files lie in: a server that
//! finds anything there makes no cluster. It is renamed beside itself, in a container that sees its parent alone, so that
//! it works for an ordinary user in group docker too.
//!
//! Invariants: no container of the service runs while folders are renamed; nothing of the old folder is changed; every
//! step can be repeated, and undone from wherever it was cut off.

use super::services::from_place;
use super::stage::Stage;
use crate::base::ids::SourceName;
use crate::ops::OpsError;
use crate::place::helper::{Helper, HelperMount, HelperSpec, TreeSource};
use crate::place::inspect::{Container, Mount};
use crate::place::{Command, ContainerPlace, Docker, Place, PlaceError};
use crate::repository::chain::full_text;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PARENT: &str = "/lifeboat/parent";
const DEFAULT_DATA: &str = "/var/lib/postgresql/data";
/// Removing a large cluster takes its time.
const LIMIT: Duration = Duration::from_secs(3600);
const OUTPUT_BYTES: usize = 4 << 10;

/// Every script gets the folder's name as `$1` and the name beside as `$2`.
const HEAD: &str = "set -eu\ncd /lifeboat/parent\nthere() { [ -e \"$1\" ] || [ -L \"$1\" ]; }\n";
/// Whether it can be renamed at all: a place where something is mounted cannot.
const LOOK: &str = "[ -d \"./$1\" ] && [ ! -L \"./$1\" ] || { echo 'it is no folder' >&2; exit 9; }\n\
    [ \"$(stat -c %d \"./$1\")\" = \"$(stat -c %d .)\" ] || { echo 'it is a file system of its own' >&2; exit 9; }\n\
    [ -w . ] || { echo 'the folder that it is in cannot be written to' >&2; exit 9; }\n\
    ! there \"./$2\" || { echo \"$2 is there already\" >&2; exit 9; }\ntype mv mkdir chown chmod rm sync >/dev/null\n";
/// The old one goes beside, and an empty one like it takes its place.
const AWAY: &str = "there \"./$2\" || mv \"./$1\" \"./$2\"\n[ -d \"./$1\" ] || mkdir \"./$1\"\n\
    chown \"$(stat -c %u:%g \"./$2\")\" \"./$1\"\nchmod \"$(stat -c %a \"./$2\")\" \"./$1\"\nsync\n";
/// The old one comes back; what was made in its place goes.
const BACK: &str = "if there \"./$2\"; then\n\
      if there \"./$1\"; then rm -rf \"./$2.new\"; mv \"./$1\" \"./$2.new\"; fi\nmv \"./$2\" \"./$1\"\nsync\n\
    fi\nrm -rf \"./$2.new\"\n";
/// Whether there is something to bring back.
const KEPT: &str = "there \"./$2\" || { echo \"$2 is gone\" >&2; exit 9; }\n";
const DISCARD: &str = "rm -rf \"./$2\" \"./$2.new\"\n";

/// One folder that goes aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    pub source: SourceName,
    pub service: String,
    /// The container that uses it today.
    pub container: String,
    /// On the engine's host.
    pub folder: PathBuf,
    /// Its name beside, in the same parent.
    pub beside: String,
    /// Where the renaming is done: that of the server of today.
    pub image: String,
}

impl Aside {
    /// Finds the folder of a database server's container, or why it cannot go aside. Changes nothing.
    pub fn find(stage: &Stage<'_>, container: &Container, source: &SourceName, id: &str) -> Result<Self, OpsError> {
        let refuse = |why: String| {
            OpsError::usage(
                format!("the data folder of container {} cannot go aside: {why}", container.name),
                "move it by hand, or restore the database with --into and load it into a server of then",
            )
        };
        let docker = stage.places.docker().map_err(from_place)?;
        let service = container.compose().map(|l| l.service);
        let service = service.ok_or_else(|| refuse("Compose has not made the container".into()))?;
        if !of_project(stage, container)? {
            return Err(refuse("it is another project's".into()));
        }
        let data = container.env("PGDATA").map_or(DEFAULT_DATA, |v| v.expose().as_str());
        let mount = deepest(&container.mounts, Path::new(data));
        let mount = mount.ok_or_else(|| refuse(format!("{data} is in no volume and no folder of the host")))?;
        if let Some(name) = mount.name.as_deref().filter(|_| mount.kind == "volume") {
            let volume = docker.volume(name).map_err(from_place)?;
            if volume.is_none_or(|v| v.driver != "local" || !v.options.is_empty()) {
                return Err(refuse(format!("volume {name} is no plain folder of the engine")));
            }
        }
        for other in docker.containers(&[]).map_err(from_place)? {
            if other.id == container.id || other.state != "running" {
                continue;
            }
            let other = match docker.inspect(&other.id) {
                Err(PlaceError::NoContainer { .. }) => continue,
                found => found.map_err(from_place)?,
            };
            let same_service = other.compose().is_some_and(|l| {
                l.service == service && container.compose().is_some_and(|own| own.project == l.project)
            });
            if !same_service && other.mounts.iter().any(|m| m.source.starts_with(&mount.source)) {
                return Err(refuse(format!("container {} uses it too", other.name)));
            }
        }
        let found = Self {
            source: source.clone(),
            service,
            container: container.name.clone(),
            folder: mount.source.clone(),
            // As everything is called that a transaction keeps beside: no capture takes it.
            beside: format!(".lifeboat-{id}.{source}"),
            image: container.image_id.clone(),
        };
        found.run(stage, LOOK).map_err(|e| match e {
            PlaceError::Failed { stderr, .. } => refuse(format!("{}: {}", found.folder.display(), stderr.trim())),
            e => from_place(e),
        })?;
        Ok(found)
    }

    /// For people.
    pub fn line(&self) -> String {
        let beside = self.folder.with_file_name(&self.beside);
        format!("its data folder {} is kept as {}", self.folder.display(), beside.display())
    }

    pub fn away(&self, stage: &Stage<'_>) -> Result<(), OpsError> {
        self.stop(stage)?;
        self.run(stage, AWAY).map_err(from_place)
    }

    pub fn back(&self, stage: &Stage<'_>) -> Result<(), OpsError> {
        self.stop(stage)?;
        self.run(stage, BACK).map_err(from_place)
    }

    pub fn discard(&self, stage: &Stage<'_>) -> Result<(), OpsError> {
        self.run(stage, DISCARD).map_err(from_place)
    }

    /// An undo that brings back everything but the data would start a server on another one's cluster.
    pub fn must_be_kept(&self, stage: &Stage<'_>) -> Result<(), OpsError> {
        self.run(stage, KEPT).map_err(|e| {
            OpsError::usage(
                format!("the data folder of {} is not kept any more: {}", self.source, full_text(&from_place(e))),
                "restore the safety snapshot that was taken before it: `lifeboat list` shows it",
            )
        })
    }

    /// Every container of the service: today's, and the one that was made since.
    fn stop(&self, stage: &Stage<'_>) -> Result<(), OpsError> {
        let docker = stage.places.docker().map_err(from_place)?;
        let Some(project) = stage.places.project().map_err(from_place)? else { return Ok(()) };
        for container in docker.project(&project.name).map_err(from_place)? {
            if container.compose().is_some_and(|l| l.service == self.service) {
                match docker.stop_container(&container.id) {
                    Ok(()) | Err(PlaceError::NoContainer { .. }) => {}
                    Err(e) => return Err(from_place(e)),
                }
            }
        }
        Ok(())
    }

    /// After a long time its image may be gone: then that of whatever the service runs now.
    fn image(&self, stage: &Stage<'_>, docker: &Docker) -> Result<String, PlaceError> {
        if docker.image(&self.image)?.is_some() {
            return Ok(self.image.clone());
        }
        let project = stage.places.project()?.map(|p| docker.project(&p.name)).transpose()?.unwrap_or_default();
        let of_service = project.into_iter().find(|c| c.compose().is_some_and(|l| l.service == self.service));
        Ok(of_service.map_or_else(|| self.image.clone(), |c| c.image_id))
    }

    fn run(&self, stage: &Stage<'_>, script: &str) -> Result<(), PlaceError> {
        let docker = stage.places.docker()?;
        let (parent, name) = (self.folder.parent(), self.folder.file_name().and_then(|n| n.to_str()));
        let (Some(parent), Some(name)) = (parent, name) else {
            return Err(PlaceError::Io {
                what: format!("rename {}", self.folder.display()),
                place: docker.endpoint().to_owned(),
                source: std::io::ErrorKind::InvalidFilename.into(),
            });
        };
        let helper = self.helper(stage, &docker, parent)?;
        helper.start()?;
        let script = format!("{HEAD}{script}");
        let argv = ["/bin/sh", "-c", &script, "lifeboat", name, &self.beside];
        let command = Command::new(argv).dir("/").timeout(LIMIT).cancel(&stage.run.cancel);
        ContainerPlace::named(&docker, helper.id()).output(command, OUTPUT_BYTES).map(drop)
    }

    fn helper(&self, stage: &Stage<'_>, docker: &Docker, parent: &Path) -> Result<Helper, PlaceError> {
        docker.helper(&HelperSpec {
            role: "aside".into(),
            image: self.image(stage, docker)?,
            command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"].map(String::from).into(),
            env: Vec::new(),
            user: Some("0:0".into()),
            mounts: vec![HelperMount {
                source: TreeSource::Path(parent.to_owned()),
                target: PARENT.into(),
                read_only: false,
            }],
            tmpfs: Vec::new(),
            memory_bytes: None,
            lifetime: LIMIT.saturating_mul(2),
        })
    }
}

/// Whether a container is one of the project that comes back.
pub fn of_project(stage: &Stage<'_>, container: &Container) -> Result<bool, OpsError> {
    let Some(own) = stage.places.project().map_err(from_place)? else { return Ok(false) };
    Ok(container.compose().is_some_and(|labels| labels.project == own.name))
}

/// The mount that a path of a container lies in.
fn deepest<'m>(mounts: &'m [Mount], path: &Path) -> Option<&'m Mount> {
    let on_host = |m: &&Mount| matches!(m.kind.as_str(), "volume" | "bind") && m.writable;
    let around = mounts.iter().filter(on_host).filter(|m| path.starts_with(&m.destination));
    around.max_by_key(|m| m.destination.as_os_str().len())
}
