//! A compose project, put back: its files that nobody else brings, and the names of its images. Bringing the services up
//! is the rollback's own step: [`planned`] says what it needs to know.
//!
//! Order (must): every image is here and kept by a name of ours before `switch` moves the first name; files are renamed
//! after that, so that a compose file of then never stands over an image of today when it is read to go forward; `back`
//! goes the other way.

use super::hindrances::{self, Today};
use super::images::{self, Found, From, Wanted};
use super::stack::Facts;
use super::written::{self, Piece, Written};
use crate::base::cancel::Cancel;
use crate::place::compose::{Compose, ComposeProject, UpSet};
use crate::place::{Docker, PlaceError};
use crate::policy::model::{App, SourcePolicy};
use crate::sources::SourceError;
use crate::sources::extract::Report;
use crate::sources::placing::{Intent, Part, Placing, Scene, Stored};
use crate::sources::project::Places;
use crate::sources::trees::{Base, Hands, Job, Tape};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A source of kind `compose`, as steps of a transaction.
pub struct ComposePlacing {
    app: App,
    timeout: Duration,
    never: Vec<PathBuf>,
    hands: Hands,
    implicit: bool,
}

/// What a step needs: kept in the journal.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// Absent where nothing ran and no compose file was there.
    project: Option<ComposeProject>,
    up: UpSet,
    images: Vec<Wanted>,
    pieces: Vec<Piece>,
    job: Option<Job>,
}

/// What brings the stack up as it was, by the plan: images that nobody has are built.
pub fn planned(intent: &Intent) -> Option<(ComposeProject, UpSet)> {
    let state = State::deserialize(&intent.state).ok()?;
    Some((state.project?, state.up))
}

impl ComposePlacing {
    pub fn new(app: &App, source: &SourcePolicy, never: Vec<PathBuf>, cancel: &Cancel) -> Self {
        Self {
            app: app.clone(),
            timeout: source.timeout,
            never,
            hands: Hands::new(Places::new(app, cancel)),
            implicit: source.implicit,
        }
    }

    fn job(&self, scene: &Scene<'_>, pieces: &[Piece]) -> Job {
        let below_root = |path: &Path| -> PathBuf {
            let bytes = path.as_os_str().as_bytes();
            let start = bytes.iter().position(|b| *b != b'/').unwrap_or(bytes.len());
            OsStr::from_bytes(&bytes[start..]).into()
        };
        let root = self.app.root.canonicalize().unwrap_or_else(|_| self.app.root.clone());
        Job {
            id: scene.id.to_owned(),
            source: scene.name.to_string(),
            bases: vec![Base { prefix: String::new(), dir: "/".into() }],
            named: pieces.iter().map(|p| below_root(&p.path)).collect(),
            trusted: Vec::new(),
            strays: 0,
            outside: vec![below_root(&root)],
            paths: Vec::new(),
            exact: false,
            privileged: false,
            exclude: Vec::new(),
            never: self.never.clone(),
            one_file_system: false,
            stages: Vec::new(),
            folder: scene.folder.to_owned(),
        }
    }

    /// Containers of others that use the name of an image which moves: their next `up` would follow it.
    fn shared(&self, docker: &Docker, today: &Today, images: &[Wanted]) -> Result<Vec<String>, SourceError> {
        let own = |id: &str| today.containers.iter().any(|(_, c)| c.id == id);
        let others: Vec<_> = docker.containers(&[])?.into_iter().filter(|c| !own(&c.id)).collect();
        let mut warnings = Vec::new();
        for wanted in images.iter().filter(|w| w.moves()) {
            let Some((repository, tag)) = &wanted.name else { continue };
            let name = format!("{repository}:{tag}");
            let users: Vec<&str> = others
                .iter()
                .filter(|c| c.image == name || (tag == "latest" && c.image == *repository))
                .map(|c| c.name.as_str())
                .collect();
            if !users.is_empty() {
                warnings.push(format!(
                    "image {name} is used outside the project too, and made anew these get the older one: {}",
                    users.join(", ")
                ));
            }
        }
        Ok(warnings)
    }
}

fn state_of(intent: &Intent) -> Result<State, SourceError> {
    State::deserialize(&intent.state).map_err(|e| {
        SourceError::problem(format!("what was planned for source {:?} cannot be read: {e}", intent.source))
    })
}

fn intent(scene: &Scene<'_>, state: &State) -> Result<Intent, SourceError> {
    Ok(Intent {
        source: scene.name.clone(),
        kind: "compose".into(),
        lines: Vec::new(),
        warnings: Vec::new(),
        room: Vec::new(),
        losses: Vec::new(),
        restarts: Vec::new(),
        state: serde_json::to_value(state).map_err(|e| SourceError::problem(e.to_string()))?,
    })
}

fn find(cancel: &Cancel) -> Result<Compose, SourceError> {
    Compose::find(cancel).map_err(|e| match e {
        PlaceError::ToolMissing { .. } => SourceError::hint(
            "neither docker compose nor docker-compose is on this host: nothing could bring the services up",
            "install the compose plugin of Docker",
        ),
        e => e.into(),
    })
}

/// The plan's lines on services.
fn say_services(state: &State, compose: &Compose, today: &Today, lines: &mut Vec<String>) {
    let Some(project) = &state.project else { return };
    let services: Vec<String> = state.up.services.iter().map(|(name, count)| format!("{name} ({count})")).collect();
    lines.push(match services.is_empty() {
        true => format!("project {}: no service ran", project.name),
        false => format!("project {} comes up by {}: {}", project.name, compose.describe(), services.join(", ")),
    });
    let mut stops: Vec<&str> = today
        .containers
        .iter()
        .filter(|(service, c)| c.is_running() && !state.up.has(service))
        .map(|(service, _)| service.as_str())
        .collect();
    stops.dedup();
    if !stops.is_empty() {
        lines.push(format!("services that did not run then and stop: {}", stops.join(", ")));
    }
}

impl Placing for ComposePlacing {
    fn plan(&self, scene: &Scene<'_>, stored: &Stored<'_>, part: &Part) -> Result<Intent, SourceError> {
        if !part.paths.is_empty() || !part.tables.is_empty() || part.database_as.is_some() || part.flush {
            return Err(SourceError::problem("a compose project is put back as a whole"));
        }
        let facts = Facts::read(stored.facts)?;
        let mut state = State { project: facts.project(&self.app), up: facts.set(), ..State::default() };
        if state.project.is_none() {
            let mut nothing = intent(scene, &State::default())?;
            nothing.lines.push("there was no compose project when the snapshot was taken".into());
            return Ok(nothing);
        }
        let docker = match scene.places.docker() {
            // A tree may hold a compose file on a host that has no engine: nothing ran of it, and nothing has to come up.
            Err(PlaceError::NoDocker { .. } | PlaceError::Context { .. }) if self.implicit && !facts.running => None,
            other => Some(other?),
        };
        let (mut lines, mut warnings) = (Vec::new(), Vec::new());
        if let Some(docker) = docker {
            let compose = find(scene.cancel)?;
            let today = Today::look(&docker, scene.places.project()?.as_ref())?;
            let found = images::plan(scene, stored, &docker, &self.app, &facts.services)?;
            let Found { wanted, lines: said, warnings: warned } = found;
            (lines, warnings) = (said, warned);
            hindrances::look(&docker, &compose, &self.app, &facts, &today, &wanted)?.refuse()?;
            warnings.extend(self.shared(&docker, &today, &wanted)?);
            let built = wanted.iter().filter(|w| w.from == From::Built).flat_map(|w| &w.services);
            state.up.build = built.filter(|s| state.up.has(s)).cloned().collect();
            say_services(&state, &compose, &today, &mut lines);
            state.images = wanted;
        } else {
            lines.push("nothing ran, and there is no engine here: only its files come back".to_owned());
        }
        let now = (scene.now.timestamp(), 0);
        state.pieces = written::choose(scene.policy, stored, &facts, now, (self.timeout, scene.cancel))?;
        let mut room = Vec::new();
        if !state.pieces.is_empty() {
            let mut job = self.job(scene, &state.pieces);
            let written = Written::of(stored, &state.pieces)?;
            let survey = self.hands.survey(&job, None, &Tape(&written), scene.cancel)?;
            lines.extend(survey.lines(false));
            job.stages.clone_from(&survey.stages);
            warnings.extend(survey.warnings);
            room = survey.room;
            state.job = Some(job);
        }
        Ok(Intent { lines, warnings, room, ..intent(scene, &state)? })
    }

    fn prepare(&self, scene: &Scene<'_>, stored: &Stored<'_>, intent: &Intent) -> Result<(), SourceError> {
        let state = state_of(intent)?;
        if !state.images.is_empty() {
            let docker = scene.places.docker()?;
            for image in &state.images {
                scene.cancel.check()?;
                image.prepare(scene, stored, &docker, self.timeout)?;
            }
        }
        if let Some(job) = &state.job {
            let written = Written::of(stored, &state.pieces)?;
            // What an attempt that was cut off laid out; nothing has been switched yet.
            self.hands.discard_new(job, None, scene.cancel)?;
            self.hands.make(job, None, &Tape(&written), scene.cancel)?;
        }
        Ok(())
    }

    fn settle(&self, scene: &Scene<'_>, stored: &Stored<'_>, intent: &Intent) -> Result<(), SourceError> {
        let state = state_of(intent)?;
        if !state.images.is_empty() {
            let docker = scene.places.docker()?;
            state.images.iter().try_for_each(|image| image.check(&docker))?;
        }
        if let Some(job) = &state.job {
            let written = Written::of(stored, &state.pieces)?;
            self.hands.settle(job, None, &Tape(&written), scene.cancel)?;
        }
        Ok(())
    }

    fn switch(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let state = state_of(intent)?;
        if !state.images.is_empty() {
            let docker = scene.places.docker()?;
            state.images.iter().try_for_each(|image| image.switch(&docker))?;
        }
        match &state.job {
            Some(job) => self.hands.switch(job, None, scene.cancel),
            None => Ok(()),
        }
    }

    /// Each service of the set runs, and runs the recorded image. Where the policy's own command brought them up, it may
    /// have built them again.
    fn confirm(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let state = state_of(intent)?;
        let Some(project) = &state.project else { return Ok(()) };
        let docker = scene.places.docker()?;
        let containers = docker.project(&project.name)?;
        for (service, count) in &state.up.services {
            let is_up = |state: &str| matches!(state, "running" | "restarting");
            let running: Vec<_> = containers
                .iter()
                .filter(|c| is_up(&c.state) && c.compose().is_some_and(|l| l.service == *service))
                .collect();
            if running.len() < *count {
                return Err(SourceError::problem(format!(
                    "service {service} has {} of {count} containers up",
                    running.len()
                )));
            }
            let Some(image) = state.images.iter().find(|w| w.services.contains(service)) else { continue };
            if let Some(other) = running.iter().find(|c| image.from != From::Built && c.image_id != image.id) {
                let (name, runs, id) = (&other.name, images::short(&other.image_id), images::short(&image.id));
                let problem = format!("container {name} runs image {runs}, not {id}");
                if scene.policy.rollback.up.is_none() {
                    return Err(SourceError::problem(problem));
                }
                scene.events.warn(scene.name, format!("{problem}: [rollback] up has built it again"));
            }
        }
        Ok(())
    }

    fn differs(&self, _: &Scene<'_>, intent: &Intent) -> Result<Option<Report>, SourceError> {
        state_of(intent)?.job.as_ref().map(|job| self.hands.differs(job)).transpose()
    }

    fn back(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let state = state_of(intent)?;
        if let Some(job) = &state.job {
            let notes = self.hands.back(job, None, scene.cancel)?;
            notes.into_iter().for_each(|n| scene.events.warn(scene.name, n));
        }
        each_image(scene, &state, Wanted::back)
    }

    fn discard_new(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let state = state_of(intent)?;
        if let Some(job) = &state.job {
            self.hands.discard_new(job, None, scene.cancel)?;
        }
        each_image(scene, &state, Wanted::discard_new)
    }

    fn discard_old(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let state = state_of(intent)?;
        if let Some(job) = &state.job {
            self.hands.discard_old(job, None, scene.cancel)?;
        }
        each_image(scene, &state, Wanted::discard_old)
    }
}

/// One step for each image; a name that stays is told.
fn each_image(
    scene: &Scene<'_>,
    state: &State,
    step: impl Fn(&Wanted, &Docker) -> Result<bool, SourceError>,
) -> Result<(), SourceError> {
    if state.images.is_empty() {
        return Ok(());
    }
    let docker = scene.places.docker()?;
    for image in &state.images {
        if !step(image, &docker)? {
            let services = image.services.join(", ");
            scene.events.warn(scene.name, format!("a name of the image of {services} stays: a container uses it"));
        }
    }
    Ok(())
}
