//! Source `compose`: the files that make the stack, and the stack that really runs: services, images, scale, ports.
//!
//! What the labels of the running containers say is the truth; files that nothing runs from are found as Compose finds
//! them. The engine is asked through its API, so the `docker` program is not needed. Facts hold no environment, no
//! command line and no volume options: those may hold secrets.
//!
//! Files that compose files lead to (`include`, `extends`, `env_file`, files of secrets and configs) are captured too, each
//! with its role: another source may hold them as well, and then brings them back.
//!
//! Streams: each of these files by itself, named by its encoded path relative to the root; with `pin = "save"`
//! also `image-<service>.tar` for images that no registry has. `pin` gives the running images a name of our own, so that
//! the next build does not leave them nameless to a `docker image prune`; a name does not survive `docker system prune -a`.

mod files;
mod follow;
mod hindrances;
mod images;
mod pin;
mod placing;
mod proof;
mod running;
mod stack;
mod written;

pub use pin::{pin_repository, pin_tag, unpin, unpin_all};
pub use placing::{ComposePlacing, planned};
pub use proof::ComposeProof;
pub use stack::{described, live, recorded};

use super::project::{Places, Project, compose_settings};
use super::{Capture, Captured, Source, SourceError};
use crate::base::cancel::Cancel;
use crate::base::ids::{PolicyName, SourceName};
use crate::place::{Docker, PlaceError};
use crate::policy::model::{App, ComposeSpec, Pin, SourcePolicy};
use serde_json::json;
use std::path::PathBuf;

pub struct ComposeSource {
    name: SourceName,
    app: App,
    pin: Pin,
    implicit: bool,
}

/// What the engine knows of the application.
enum Live {
    Running(Docker, Project),
    /// Nothing runs, or nobody can say; and why.
    Unknown(String),
}

impl ComposeSource {
    pub fn new(policy: &SourcePolicy, spec: &ComposeSpec, app: &App) -> Self {
        Self { name: policy.name.clone(), app: app.clone(), pin: spec.pin, implicit: policy.implicit }
    }

    /// The policy that this belongs to.
    fn policy(&self) -> &PolicyName {
        &self.app.name
    }

    fn live(&self, cancel: &Cancel) -> Result<Live, SourceError> {
        let places = Places::new(&self.app, cancel);
        let found = places.docker().and_then(|docker| Ok((places.project()?, docker)));
        match found {
            Ok((Some(project), docker)) => Ok(Live::Running(docker, project)),
            Ok((None, _)) => Ok(Live::Unknown("no container of the project is there".into())),
            Err(PlaceError::Cancelled(cancelled)) => Err(cancelled.into()),
            // Nobody asked for it by name, and there may be no Docker on this machine at all.
            Err(e @ (PlaceError::NoDocker { .. } | PlaceError::Context { .. })) if self.implicit => {
                Ok(Live::Unknown(e.to_string()))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The folder that Compose would be run in.
    fn project_dir(&self, project: Option<&Project>) -> PathBuf {
        let from_labels = project.and_then(|p| p.working_dir.clone());
        self.app.project_dir.clone().or(from_labels).unwrap_or_else(|| self.app.root.clone())
    }
}

impl Source for ComposeSource {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "compose"
    }

    fn describe(&self) -> String {
        let images = match self.pin {
            Pin::Tag => ", images tagged",
            Pin::Save => ", own images saved",
            Pin::None => "",
        };
        format!("compose files and running services of {}{images}", self.app.root.display())
    }

    fn probe(&self, cancel: &Cancel) -> Result<(), SourceError> {
        let live = self.live(cancel)?;
        let project = match &live {
            Live::Running(_, project) => Some(project),
            Live::Unknown(_) => None,
        };
        match files::find(&self.app, &self.project_dir(project), project).is_empty() && !self.implicit {
            true => Err(self.nothing_here()),
            false => Ok(()),
        }
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        let mut warnings = Vec::new();
        let live = self.live(cx.cancel)?;
        let (docker, project, unknown) = match live {
            Live::Running(docker, project) => (Some(docker), Some(project), None),
            Live::Unknown(why) => (None, None, Some(why)),
        };
        let dir = self.project_dir(project.as_ref());
        let mut found = files::find(&self.app, &dir, project.as_ref());
        follow::follow(&dir, &mut found, &mut warnings);
        if found.is_empty() && project.is_none() {
            if !self.implicit {
                return Err(self.nothing_here());
            }
            let note = format!("no compose project in {}: no services were captured", self.app.root.display());
            return Ok(Captured { facts: json!({ "present": false }), warnings: vec![note] });
        }
        if let Some(why) = &unknown {
            warnings.push(format!("{why}: only the compose files were captured, and no image is pinned"));
        }
        let files = files::store(cx, &self.app.root, &found, &mut warnings)?;
        let mut services = match (&docker, &project) {
            (Some(docker), Some(project)) => running::services(cx.cancel, docker, project)?,
            _ => Vec::new(),
        };
        if let Some(docker) = &docker {
            pin::pin(cx, docker, self.pin, self.policy(), &mut services, &mut warnings)?;
        }
        let (networks, volumes) = match (&docker, &project) {
            (Some(docker), Some(project)) => running::surroundings(docker, project, &services)?,
            _ => (Vec::new(), Vec::new()),
        };
        let settings = compose_settings(&dir, &self.app.env_files);
        let profiles = if self.app.profiles.is_empty() { settings.profiles } else { self.app.profiles.clone() };
        let name = project.as_ref().map(|p| p.name.clone()).or(self.app.project.clone()).or(settings.project);
        let facts = json!({
            "present": true,
            "project": name,
            "working_dir": dir.to_string_lossy(),
            "compose_version": project.as_ref().and_then(|p| p.compose_version.clone()),
            "running": project.is_some(),
            "files": files,
            "profiles": profiles,
            "services": services,
            "networks": networks,
            "volumes": volumes,
        });
        Ok(Captured { facts, warnings })
    }
}

impl ComposeSource {
    fn nothing_here(&self) -> SourceError {
        SourceError::hint(
            format!("no compose file and no running project in {}", self.app.root.display()),
            "name them by compose_files, project_dir or project in section [app], or set enabled = false",
        )
    }
}

/// A policy for the tests of this module.
#[cfg(test)]
fn shop() -> crate::policy::Policy {
    let text = "[app]\nname = \"shop\"\nroot = \"/srv/shop\"\n[repository]\nurl = \"/nowhere\"\n\
                recipients = [\"age1u4kztcqhr4gfml0q9kt5u4gmta79cyaujtwv7whpjv3zgvp0756s3m77fz\"]\n\
                [schedule]\ntimezone = \"UTC\"\n";
    crate::policy::parse(std::path::Path::new("shop.toml"), text).unwrap()
}
