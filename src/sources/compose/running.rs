//! What runs: services with their images and containers, and the networks and volumes around them.

use crate::base::cancel::Cancel;
use crate::place::inspect::Container;
use crate::place::{Docker, PlaceError};
use crate::sources::SourceError;
use crate::sources::project::Project;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const PROJECT_LABEL: &str = "com.docker.compose.project";

/// A service as its containers are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Service {
    pub service: String,
    /// The image's name as the compose file has it.
    pub image: String,
    /// The image that really runs.
    pub image_id: String,
    /// Where registries have it.
    pub digests: Vec<String>,
    /// No registry has it: without a pin it can only be built again.
    pub built_here: bool,
    pub platform: String,
    pub image_bytes: u64,
    /// Running containers.
    pub scale: usize,
    pub containers: Vec<Instance>,
    pub ports: Vec<(String, String)>,
    pub networks: Vec<String>,
    pub mounts: Vec<MountFact>,
    pub user: String,
    pub hostname: String,
    pub restart_policy: Option<String>,
    /// The name of our own that the image got.
    pub pin: Option<String>,
    /// The stream that holds it.
    pub saved: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Instance {
    pub name: String,
    pub number: u32,
    pub state: String,
    pub health: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MountFact {
    pub kind: String,
    pub name: Option<String>,
    pub source: String,
    pub destination: String,
    pub writable: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Surrounding {
    pub name: String,
    pub driver: String,
    /// Not made by this project: it must be there before the project starts.
    pub external: bool,
}

/// The services of a project, by name. A container that goes away meanwhile is left out.
pub(super) fn services(cancel: &Cancel, docker: &Docker, project: &Project) -> Result<Vec<Service>, SourceError> {
    let mut by_service: BTreeMap<String, Vec<(u32, Container)>> = BTreeMap::new();
    for summary in &project.containers {
        cancel.check()?;
        let Some(labels) = summary.compose() else { continue };
        match docker.inspect(&summary.id) {
            Ok(container) => by_service.entry(labels.service).or_default().push((labels.number, container)),
            Err(PlaceError::NoContainer { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut services = Vec::new();
    for (service, containers) in by_service {
        // The one that runs decides; of a service that is being replaced there may be several.
        let Some((_, main)) = containers.iter().find(|(_, c)| c.is_running()).or(containers.first()) else { continue };
        // An image that was removed while its container lives on is known by its id only.
        let image = docker.image(&main.image_id)?;
        let scale = containers.iter().filter(|(_, c)| c.is_running()).count();
        let instances = containers.iter().map(|(number, c)| Instance {
            name: c.name.clone(),
            number: *number,
            state: c.state.clone(),
            health: c.health.clone(),
        });
        let mut ports: Vec<(String, String)> = containers.iter().flat_map(|(_, c)| c.ports.clone()).collect();
        ports.sort();
        ports.dedup();
        services.push(Service {
            image: main.image.clone(),
            image_id: main.image_id.clone(),
            built_here: image.as_ref().is_some_and(|i| i.is_own_build()),
            platform: image.as_ref().map(|i| i.platform.clone()).unwrap_or_default(),
            image_bytes: image.as_ref().map(|i| i.size_bytes).unwrap_or(0),
            digests: image.map(|i| i.digests).unwrap_or_default(),
            scale,
            containers: instances.collect(),
            ports,
            networks: main.networks.clone(),
            mounts: main
                .mounts
                .iter()
                .map(|m| MountFact {
                    kind: m.kind.clone(),
                    name: m.name.clone(),
                    source: m.source.to_string_lossy().into_owned(),
                    destination: m.destination.to_string_lossy().into_owned(),
                    writable: m.writable,
                })
                .collect(),
            user: main.user.clone(),
            hostname: main.hostname.clone(),
            restart_policy: main.restart_policy.clone(),
            pin: None,
            saved: None,
            service,
        });
    }
    Ok(services)
}

/// Networks and named volumes that the services use, by name.
pub(super) fn surroundings(
    docker: &Docker,
    project: &Project,
    services: &[Service],
) -> Result<(Vec<Surrounding>, Vec<Surrounding>), SourceError> {
    let unique = |names: Vec<String>| names.into_iter().collect::<std::collections::BTreeSet<String>>();
    let own = |labels: &BTreeMap<String, String>| labels.get(PROJECT_LABEL) == Some(&project.name);
    let mut networks = Vec::new();
    for name in unique(services.iter().flat_map(|s| s.networks.clone()).collect()) {
        if let Some(network) = docker.network(&name)? {
            networks.push(Surrounding { external: !own(&network.labels), driver: network.driver, name });
        }
    }
    let mounted = services.iter().flat_map(|s| &s.mounts).filter(|m| m.kind == "volume");
    let mut volumes = Vec::new();
    for name in unique(mounted.filter_map(|m| m.name.clone()).collect()) {
        if let Some(volume) = docker.volume(&name)? {
            // An anonymous one carries no label of the project and is nobody else's either.
            let external = !own(&volume.labels) && !volume.is_anonymous();
            volumes.push(Surrounding { external, driver: volume.driver, name });
        }
    }
    Ok((networks, volumes))
}
