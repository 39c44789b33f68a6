//! The services of a compose project come up as a snapshot has them: its files, its images, its running set. And back,
//! as they ran today.
//!
//! Invariants: only containers of the project are touched; none is removed but those of a project that was not there
//! before, and then only what this transaction made; a data store is up and healthy before anything is put into it.

use super::services::{Services, await_healthy, from_place, is_store, is_up, stores, warn_of_wait};
use super::stage::Stage;
use crate::ops::OpsError;
use crate::ops::hooks;
use crate::place::compose::{Compose, ComposeProject, UpSet};
use crate::place::inspect::ContainerSummary;
use crate::policy::Policy;
use crate::policy::model::App;
use crate::sources::compose;
use crate::sources::placing::Intent;
use crate::sources::project::{Places, Project};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A project and what runs of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    pub project: ComposeProject,
    pub set: UpSet,
}

impl Stack {
    /// As it runs now.
    pub fn live(project: &Project, app: &App) -> Self {
        let (project, set) = compose::live(project, app);
        Self { project, set }
    }

    /// As a snapshot's facts have it.
    pub fn recorded(facts: &Value, app: &App) -> Option<Self> {
        compose::recorded(facts, app).map(|(project, set)| Self { project, set })
    }

    /// As it was planned with the compose source.
    pub fn planned(intent: &Intent) -> Option<Self> {
        compose::planned(intent).map(|(project, set)| Self { project, set })
    }

    pub fn runs(&self, service: &str) -> bool {
        self.set.has(service)
    }

    /// The same with these services alone.
    fn only(&self, services: &[String]) -> UpSet {
        let wanted = self.set.services.iter().filter(|(name, _)| services.contains(name)).cloned();
        let services: Vec<(String, usize)> = wanted.collect();
        let build = self.set.build.iter().filter(|b| services.iter().any(|(name, _)| name == *b)).cloned().collect();
        UpSet { services, build }
    }
}

/// How services come up after the switch, and how they come back when it is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Up {
    /// As they shall run.
    pub wanted: Stack,
    /// As they run today; absent where no container of the project is there.
    pub live: Option<Stack>,
    /// What the policy says instead of `docker compose up`.
    pub command: Option<String>,
    /// Services that hold data: they come up first where they are down.
    pub stores: Vec<String>,
    /// Volumes and networks of the project that are not there today.
    pub new_volumes: Vec<String>,
    pub new_networks: Vec<String>,
}

impl Up {
    /// What runs now is what comes back when it is undone.
    pub fn look_again(&mut self, policy: &Policy, places: &Places) -> Result<(), OpsError> {
        let project = places.project().map_err(from_place)?;
        self.live = project.map(|p| Stack::live(&p, &policy.app));
        Ok(())
    }

    /// For people.
    pub fn line(&self) -> String {
        let name = |(name, scale): &(String, usize)| match scale {
            1 => name.clone(),
            n => format!("{name} ({n})"),
        };
        let names: Vec<String> = self.wanted.set.services.iter().map(name).collect();
        match &self.command {
            Some(command) => format!("services come up by {command:?}"),
            None => format!("project {} comes up with {}", self.wanted.project.name, names.join(", ")),
        }
    }

    /// Networks, volumes and containers of a project that is not there.
    pub fn create(&self, stage: &Stage<'_>) -> Result<(), OpsError> {
        compose(stage)?.create(&self.wanted.project, &self.wanted.set).map_err(from_place)
    }

    /// The data stores alone, healthy.
    pub fn raise(&self, stage: &Stage<'_>, before: &Services) -> Result<(), OpsError> {
        let stores = self.wanted.only(&self.stores);
        if !stores.services.is_empty() {
            compose(stage)?.up(&self.wanted.project, &stores).map_err(from_place)?;
        }
        self.await_stores(stage, &self.wanted, before)
    }

    /// All of it, as it shall run.
    pub fn forward(&self, stage: &Stage<'_>, before: &Services) -> Result<(), OpsError> {
        match &self.command {
            Some(command) => hooks::command(stage.policy, command, "[rollback] up", &stage.run)?,
            None if self.wanted.set.services.is_empty() => {}
            None => compose(stage)?.up(&self.wanted.project, &self.wanted.set).map_err(from_place)?,
        }
        self.await_stores(stage, &self.wanted, before)
    }

    /// As it ran before; what a person should know of it. Where that was asked for, volumes that were made may hold what
    /// no snapshot has: they stay.
    pub fn back(&self, stage: &Stage<'_>, before: &Services, keep_volumes: bool) -> Result<Vec<String>, OpsError> {
        let Some(live) = &self.live else { return self.lower(stage, keep_volumes) };
        if !live.set.services.is_empty() {
            compose(stage)?.up(&live.project, &UpSet { build: Vec::new(), ..live.set.clone() }).map_err(from_place)?;
        }
        let docker = stage.places.docker().map_err(from_place)?;
        // What did not run before does not run afterwards.
        for container in self.containers(stage)?.iter().filter(|c| is_up(c)) {
            if container.compose().is_some_and(|labels| !live.runs(&labels.service)) {
                docker.stop_container(&container.id).map_err(from_place)?;
            }
        }
        let mut warnings = Vec::new();
        self.await_stores(stage, live, before).or_else(|e| warn_of_wait(e, &mut warnings))?;
        Ok(warnings)
    }

    /// The project was not there: its containers go, and the volumes that were made for them.
    fn lower(&self, stage: &Stage<'_>, keep_volumes: bool) -> Result<Vec<String>, OpsError> {
        let docker = stage.places.docker().map_err(from_place)?;
        for container in self.containers(stage)? {
            docker.stop_container(&container.id).map_err(from_place)?;
            docker.remove_container(&container.id).map_err(from_place)?;
        }
        for volume in self.new_volumes.iter().filter(|_| !keep_volumes) {
            docker.remove_volume(volume).map_err(from_place)?;
        }
        for network in &self.new_networks {
            docker.remove_network(network).map_err(from_place)?;
        }
        if !keep_volumes || self.new_volumes.is_empty() {
            return Ok(Vec::new());
        }
        let names = self.new_volumes.join(", ");
        Ok(vec![format!("volumes that were made for it stay: {names}; `docker volume rm` removes what nobody needs")])
    }

    /// Stops everything of the project but its data stores.
    pub fn stop(&self, stage: &Stage<'_>) -> Result<(), OpsError> {
        let docker = stage.places.docker().map_err(from_place)?;
        let known = stores(stage.policy);
        for container in self.containers(stage)?.iter().filter(|c| is_up(c)) {
            if container.compose().is_some_and(|labels| !self.stores.contains(&labels.service))
                && !is_store(&known, container)
            {
                docker.stop_container(&container.id).map_err(from_place)?;
            }
        }
        Ok(())
    }

    /// What must be well afterwards: containers of the wanted services, as they are now.
    pub fn watched(&self, stage: &Stage<'_>, forward: bool) -> Result<Vec<String>, OpsError> {
        let Some(stack) = (if forward { Some(&self.wanted) } else { self.live.as_ref() }) else {
            return Ok(Vec::new());
        };
        let ours = |c: &&ContainerSummary| c.compose().is_some_and(|labels| stack.runs(&labels.service));
        Ok(self.containers(stage)?.iter().filter(ours).map(|c| c.name.clone()).collect())
    }

    /// Containers that run today and are no part of the snapshot: they stay stopped.
    pub fn left_down(&self) -> Vec<String> {
        let live = self.live.iter().flat_map(|live| &live.set.services);
        live.filter(|(name, _)| !self.wanted.runs(name)).map(|(name, _)| name.clone()).collect()
    }

    fn containers(&self, stage: &Stage<'_>) -> Result<Vec<ContainerSummary>, OpsError> {
        let docker = stage.places.docker().map_err(from_place)?;
        docker.project(&self.wanted.project.name).map_err(from_place)
    }

    fn await_stores(&self, stage: &Stage<'_>, stack: &Stack, before: &Services) -> Result<(), OpsError> {
        let docker = stage.places.docker().map_err(from_place)?;
        for store in self.stores.iter().filter(|s| stack.runs(s)) {
            await_healthy(&docker, &stack.project.name, store, before.patience(store), &stage.run.cancel)?;
        }
        Ok(())
    }
}

fn compose(stage: &Stage<'_>) -> Result<Compose, OpsError> {
    Compose::find(&stage.run.cancel).map_err(from_place)
}
