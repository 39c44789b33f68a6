//! The application's containers: which are stopped, and in which order they go down and come up.

use crate::base::cancel::Cancel;
use crate::ops::OpsError;
use crate::ops::health::Service as Watched;
use crate::place::inspect::ContainerSummary;
use crate::place::{Docker, PlaceError};
use crate::policy::Policy;
use crate::policy::model::{SourceSpec, Target};
use crate::repository::format::Manifest;
use crate::sources::SourceError;
use crate::sources::project::{Places, default_compose_files};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest that a service waits for another one to be healthy.
const HEALTHY_LIMIT: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(250);

/// One container that is stopped and started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub service: String,
    /// Its name, which outlives its id.
    pub container: String,
    pub id: String,
    /// Services that must be up before it, and whether they must be healthy.
    pub after: Vec<(String, bool)>,
    /// Its health when the plan was made, where it could tell.
    pub health: Option<String>,
}

/// What is stopped: in the order in which it is started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    pub project: Option<String>,
    pub stop: Vec<Service>,
    /// What goes on running meanwhile: it has to run for what comes after.
    #[serde(default)]
    pub stay: Vec<Service>,
    /// Services that ran and were not healthy before anything was changed: nobody waits until they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ailing: Vec<String>,
    /// Why nothing is stopped, where nothing is.
    pub note: Option<String>,
}

impl Services {
    fn none(note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..Self::default() }
    }

    /// Finds what runs now of what the policy stops. A service that today's project does not have counts as stopped where
    /// `recorded` has it: a deployment may have renamed it or taken it away.
    pub fn find(policy: &Policy, recorded: &[String], places: &Places) -> Result<Self, OpsError> {
        let engine = match places.project() {
            Err(PlaceError::NoDocker { .. } | PlaceError::Context { .. })
                if policy.rollback.stop.is_empty() && !has_compose_files(policy) =>
            {
                return Ok(Self::none("there is no compose project here: nothing is stopped"));
            }
            Err(e) if policy.rollback.stop.is_empty() && recorded.is_empty() && is_without_engine(&e) => {
                return Ok(Self::none("no engine runs here, and the snapshot knows of no service: nothing is stopped"));
            }
            other => other.map_err(from_place)?,
        };
        let Some(project) = engine else {
            if let Some(service) = policy.rollback.stop.first() {
                return Err(OpsError::failed(
                    format!("[rollback] stops service {service:?}, and no compose project of the application is there"),
                    "start it with `docker compose up -d`, or correct [rollback] and [app]",
                ));
            }
            return Ok(Self::none("no container of a compose project is there: nothing is stopped"));
        };
        let docker = places.docker().map_err(from_place)?;
        let known: Vec<String> = project.containers.iter().filter_map(|c| c.compose().map(|l| l.service)).collect();
        if let Some(unknown) = policy.rollback.stop.iter().find(|s| !known.contains(s) && !recorded.contains(s)) {
            return Err(OpsError::failed(
                format!("[rollback] stops service {unknown:?}, and project {} has none of that name", project.name),
                format!("its services are {}", dedup(known).join(", ")),
            ));
        }
        let keep = stores(policy);
        let (mut stop, mut stay, mut ailing) = (Vec::new(), Vec::new(), Vec::new());
        for container in project.containers.iter().filter(|c| is_up(c)) {
            let Some(labels) = container.compose() else { continue };
            let wanted = match policy.rollback.stop.as_slice() {
                [] => !is_store(&keep, container),
                named => named.contains(&labels.service),
            };
            let health = docker.inspect(&container.id).map_err(from_place)?.health;
            if health.as_deref().is_some_and(|h| h != "healthy") {
                ailing.push(labels.service.clone());
            }
            let list = if wanted { &mut stop } else { &mut stay };
            list.push(Service {
                after: dependencies(container),
                service: labels.service,
                container: container.name.clone(),
                id: container.id.clone(),
                health,
            });
        }
        let note = stop.is_empty().then(|| format!("no service of project {} that is stopped runs", project.name));
        let (stop, stay) = (in_order(stop), in_order(stay));
        Ok(Self { project: Some(project.name), stop, stay, ailing: dedup(ailing), note })
    }

    /// What runs now; nothing where the project is not there.
    pub fn now(policy: &Policy, places: &Places) -> Result<Option<Self>, OpsError> {
        if places.project().map_err(from_place)?.is_none() {
            return Ok(None);
        }
        Self::find(policy, &policy.rollback.stop, places).map(Some)
    }

    /// Stops these as well, but for stores: a policy that names what it stops does not know what a release has added or
    /// called by another name, and what comes back has none of it.
    pub fn stop_too(&mut self, services: &[String], policy: &Policy) {
        let stores = stores(policy);
        let is_store = |s: &Service| stores.contains(&s.service) || stores.contains(&s.container);
        let (more, stay) =
            std::mem::take(&mut self.stay).into_iter().partition(|s| services.contains(&s.service) && !is_store(s));
        self.stay = stay;
        self.stop = in_order(std::mem::take(&mut self.stop).into_iter().chain::<Vec<_>>(more).collect());
        if !self.stop.is_empty() {
            self.note = None;
        }
    }

    /// Stops them, the last one first.
    pub fn stop(&self, places: &Places) -> Result<(), OpsError> {
        if self.stop.is_empty() {
            return Ok(());
        }
        let docker = places.docker().map_err(from_place)?;
        for service in self.stop.iter().rev() {
            match with_name(service, |name| docker.stop_container(name)) {
                Ok(()) | Err(PlaceError::NoContainer { .. }) => {}
                Err(e) => return Err(from_place(e)),
            }
        }
        Ok(())
    }

    /// Starts them, each after what it depends on.
    pub fn start(&self, places: &Places, cancel: &Cancel) -> Result<(), OpsError> {
        self.start_after(places, |docker, project, other| {
            await_healthy(docker, project, other, self.patience(other), cancel)
        })
    }

    /// The same on the way back: what is waited for in vain is a warning, and they are started all the same.
    pub fn start_again(&self, places: &Places, cancel: &Cancel) -> Result<Vec<String>, OpsError> {
        let mut warnings = Vec::new();
        self.start_after(places, |docker, project, other| {
            let waited = await_healthy(docker, project, other, self.patience(other), cancel);
            waited.or_else(|e| warn_of_wait(e, &mut warnings))
        })?;
        Ok(warnings)
    }

    /// What was not healthy before is not waited for.
    pub fn patience(&self, service: &str) -> Wait {
        if self.ailing.iter().any(|s| s == service) { Wait::Running } else { Wait::Healthy }
    }

    fn start_after(
        &self,
        places: &Places,
        mut wait: impl FnMut(&Docker, &str, &str) -> Result<(), OpsError>,
    ) -> Result<(), OpsError> {
        let Some(project) = self.project.as_ref().filter(|_| !self.stop.is_empty()) else { return Ok(()) };
        let docker = places.docker().map_err(from_place)?;
        for service in &self.stop {
            for (other, _) in service.after.iter().filter(|(_, healthy)| *healthy) {
                wait(&docker, project, other)?;
            }
            with_name(service, |name| docker.start_container(name)).map_err(from_place)?;
        }
        Ok(())
    }

    /// Those that went on running and do not any more, as after a restart of the engine. `busy` are left to whoever has
    /// stopped them on purpose.
    pub fn fallen(&self, places: &Places, busy: &[String]) -> Result<Vec<&Service>, OpsError> {
        let mut fallen = Vec::new();
        for service in self.stay.iter().filter(|s| !busy.contains(&s.container)) {
            let docker = places.docker().map_err(from_place)?;
            match with_name(service, |name| docker.inspect(name)) {
                Ok(container) if container.is_running() => {}
                Ok(_) => fallen.push(service),
                // Somebody removed it: there is nothing to start.
                Err(PlaceError::NoContainer { .. }) => {}
                Err(e) => return Err(from_place(e)),
            }
        }
        Ok(fallen)
    }

    /// Starts those again, and waits for them where they can tell their health.
    pub fn revive(&self, fallen: &[&Service], places: &Places, cancel: &Cancel) -> Result<(), OpsError> {
        let docker = places.docker().map_err(from_place)?;
        for service in fallen {
            with_name(service, |name| docker.start_container(name)).map_err(from_place)?;
        }
        for service in fallen.iter().filter(|s| s.health.as_deref() == Some("healthy")) {
            let project = self.project.as_deref().unwrap_or_default();
            await_healthy(&docker, project, &service.service, self.patience(&service.service), cancel)?;
        }
        Ok(())
    }

    /// The same for looking at their health.
    pub fn watched(&self) -> Vec<Watched<'_>> {
        self.stop.iter().map(|s| Watched { container: &s.container, was: s.health.as_deref() }).collect()
    }

    /// Seconds that stopping and starting usually takes.
    pub fn expected_seconds(&self) -> f64 {
        self.stop.len() as f64 * 3.0
    }
}

/// Services that a snapshot's compose source has.
pub fn recorded(manifest: &Manifest) -> Vec<String> {
    let compose = manifest.sources.iter().filter(|s| s.kind == "compose");
    let services = compose.flat_map(|s| s.facts["services"].as_array().into_iter().flatten());
    services.filter_map(|s| s["service"].as_str().map(str::to_owned)).collect()
}

/// Containers that were made anew since have the name, and not the id.
fn with_name<T>(service: &Service, act: impl Fn(&str) -> Result<T, PlaceError>) -> Result<T, PlaceError> {
    match act(&service.id) {
        Err(PlaceError::NoContainer { .. }) => act(&service.container),
        other => other,
    }
}

pub(super) fn from_place(e: PlaceError) -> OpsError {
    OpsError::Source { name: "services".into(), source: SourceError::Place(e) }
}

pub(super) fn is_up(container: &ContainerSummary) -> bool {
    matches!(container.state.as_str(), "running" | "restarting")
}

fn has_compose_files(policy: &Policy) -> bool {
    !policy.app.compose_files.is_empty() || !default_compose_files(&policy.app.root).is_empty()
}

/// Whether there is not even the socket of an engine. (One that this user may not use has a socket, and may run anything.)
fn is_without_engine(error: &PlaceError) -> bool {
    let PlaceError::NoDocker { endpoint, .. } = error else { return false };
    endpoint.strip_prefix("unix://").is_some_and(|socket| matches!(Path::new(socket).try_exists(), Ok(false)))
}

/// Whether a container is one of these stores, which a policy names by service or by container.
pub(super) fn is_store(stores: &[String], container: &ContainerSummary) -> bool {
    stores.contains(&container.name) || container.compose().is_some_and(|labels| stores.contains(&labels.service))
}

fn dedup(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names.dedup();
    names
}

/// Services and containers that hold data and are restored while they run.
pub fn stores(policy: &Policy) -> Vec<String> {
    let target = |spec: &SourceSpec| match spec {
        SourceSpec::Postgres(s) => Some(s.target.clone()),
        SourceSpec::Redis(s) => Some(s.target.clone()),
        SourceSpec::Command(s) => Some(s.target.clone()),
        _ => None,
    };
    let targets = policy.sources.iter().filter_map(|s| target(&s.spec));
    targets
        .filter_map(|t| match t {
            Target::Service(name) | Target::Container(name) => Some(name),
            Target::Url(_) | Target::Host => None,
        })
        .collect()
}

/// Compose's label: `db:service_healthy:false,cache:service_started:true`.
fn dependencies(container: &ContainerSummary) -> Vec<(String, bool)> {
    let label = container.labels.get("com.docker.compose.depends_on").map_or("", String::as_str);
    let one = |text: &str| {
        let mut parts = text.split(':');
        let service = parts.next().filter(|s| !s.is_empty())?;
        Some((service.to_owned(), parts.next() == Some("service_healthy")))
    };
    label.split(',').filter_map(one).collect()
}

/// Each after those that it depends on; a circle keeps its order.
fn in_order(services: Vec<Service>) -> Vec<Service> {
    let mut left = services;
    let mut ordered: Vec<Service> = Vec::new();
    while !left.is_empty() {
        let free =
            |s: &Service| !s.after.iter().any(|(a, _)| left.iter().any(|o| o.service == *a && o.service != s.service));
        let at = left.iter().position(free).unwrap_or(0);
        ordered.push(left.remove(at));
    }
    ordered
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    Healthy,
    Running,
}

/// A wait that ran out; what stops the whole goes on stopping it.
pub(super) fn warn_of_wait(e: OpsError, warnings: &mut Vec<String>) -> Result<(), OpsError> {
    match e {
        OpsError::Failed { problem, .. } => {
            warnings.push(problem);
            Ok(())
        }
        e => Err(e),
    }
}

pub(super) fn await_healthy(
    docker: &Docker,
    project: &str,
    service: &str,
    wait: Wait,
    cancel: &Cancel,
) -> Result<(), OpsError> {
    let begun = Instant::now();
    loop {
        cancel.check()?;
        let containers = docker.project(project).map_err(from_place)?;
        let mine = containers.iter().filter(|c| c.compose().is_some_and(|l| l.service == service));
        let mut state = "not there".to_owned();
        for container in mine {
            let found = docker.inspect(&container.id).map_err(from_place)?;
            let well = found.health.as_deref().is_none_or(|h| h == "healthy" || wait == Wait::Running);
            if found.is_running() && well {
                return Ok(());
            }
            state = found.health.filter(|_| found.state == "running").unwrap_or(found.state);
        }
        if begun.elapsed() > HEALTHY_LIMIT {
            return Err(OpsError::failed(
                format!("service {service:?} of project {project} is {state}, and others wait for it to be healthy"),
                "look at its log with `docker compose logs`",
            ));
        }
        std::thread::sleep(TICK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_start_after_what_they_depend_on() {
        let service = |name: &str, after: &[&str]| Service {
            service: name.into(),
            container: name.into(),
            id: name.into(),
            after: after.iter().map(|a| ((*a).to_owned(), false)).collect(),
            health: None,
        };
        let all = vec![
            service("web", &["api"]),
            service("api", &["db", "worker"]),
            service("worker", &["db"]),
            service("a", &["b"]),
            service("b", &["a"]),
        ];
        let names: Vec<String> = in_order(all).into_iter().map(|s| s.service).collect();
        assert_eq!(names, ["worker", "api", "web", "a", "b"]);
    }
}
