//! What the engine says of containers, images and volumes, in types of our own.

use crate::base::secret::Secret;
use bollard::models;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One line of a container listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSummary {
    pub id: String,
    pub name: String,
    /// `running`, `exited`, `paused`, …
    pub state: String,
    pub image: String,
    pub image_id: String,
    pub labels: BTreeMap<String, String>,
}

/// One container as the engine knows it.
#[derive(Debug, Clone)]
pub struct Container {
    pub id: String,
    pub name: String,
    /// `running`, `exited`, `paused`, `restarting`, …
    pub state: String,
    /// `healthy`, `unhealthy`, `starting`; absent without a health check.
    pub health: Option<String>,
    pub restart_count: i64,
    pub exit_code: Option<i64>,
    /// Process id of its first process in the engine's pid namespace, while it runs.
    pub pid: Option<u32>,
    /// The image's name as it was asked for.
    pub image: String,
    /// `sha256:…` of the image that it really runs.
    pub image_id: String,
    pub env: Vec<(String, Secret<String>)>,
    pub labels: BTreeMap<String, String>,
    pub mounts: Vec<Mount>,
    pub user: String,
    pub working_dir: String,
    pub hostname: String,
    pub command: Vec<String>,
    pub networks: Vec<String>,
    pub network_mode: String,
    /// Container port (`5432/tcp`) and where the host publishes it (`127.0.0.1:5432`).
    pub ports: Vec<(String, String)>,
    pub restart_policy: Option<String>,
    /// It is removed when it stops.
    pub auto_remove: bool,
    /// Execs that run in it now.
    pub(super) exec_ids: Vec<String>,
}

/// What is mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `volume`, `bind`, `tmpfs`.
    pub kind: String,
    /// The volume's name.
    pub name: Option<String>,
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the container.
    pub destination: PathBuf,
    pub writable: bool,
}

/// What Compose wrote on a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeLabels {
    pub project: String,
    pub service: String,
    pub working_dir: Option<PathBuf>,
    pub config_files: Vec<PathBuf>,
    pub environment_files: Vec<PathBuf>,
    /// 1 for the first container of a service.
    pub number: u32,
    /// Made by `compose run`: not part of the running set.
    pub oneoff: bool,
    pub version: Option<String>,
}

impl ComposeLabels {
    /// Read from a container's labels; absent when Compose did not make it.
    pub fn read(labels: &BTreeMap<String, String>) -> Option<ComposeLabels> {
        let get = |name: &str| labels.get(&format!("com.docker.compose.{name}")).filter(|v| !v.is_empty());
        let list = |name: &str| get(name).map(|v| v.split(',').map(PathBuf::from).collect()).unwrap_or_default();
        Some(ComposeLabels {
            project: get("project")?.clone(),
            service: get("service")?.clone(),
            working_dir: get("project.working_dir").map(PathBuf::from),
            config_files: list("project.config_files"),
            environment_files: list("project.environment_file"),
            number: get("container-number").and_then(|n| n.parse().ok()).unwrap_or(1),
            oneoff: get("oneoff").is_some_and(|v| v.eq_ignore_ascii_case("true")),
            version: get("version").cloned(),
        })
    }
}

impl ContainerSummary {
    pub fn compose(&self) -> Option<ComposeLabels> {
        ComposeLabels::read(&self.labels)
    }
}

impl Container {
    pub fn compose(&self) -> Option<ComposeLabels> {
        ComposeLabels::read(&self.labels)
    }

    /// The value of a variable of its environment.
    pub fn env(&self, name: &str) -> Option<&Secret<String>> {
        self.env.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    pub fn is_running(&self) -> bool {
        self.state == "running"
    }
}

/// An image that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `sha256:…`
    pub id: String,
    pub tags: Vec<String>,
    /// `name@sha256:…` for each registry that it came from; empty when it was built here.
    pub digests: Vec<String>,
    pub created: Option<String>,
    pub size_bytes: u64,
    /// `linux/amd64`.
    pub platform: String,
}

impl Image {
    /// It came from no registry: nobody else can give it back.
    pub fn is_own_build(&self) -> bool {
        self.digests.is_empty()
    }
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Volume {
    pub name: String,
    pub driver: String,
    /// Where its files lie on the engine's host.
    #[serde(default)]
    pub mountpoint: PathBuf,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
}

impl Volume {
    /// Made for one container, without a name that anybody chose.
    pub fn is_anonymous(&self) -> bool {
        let generated = self.name.len() == 64 && self.name.bytes().all(|b| b.is_ascii_hexdigit());
        generated || self.labels.contains_key("com.docker.volume.anonymous")
    }
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Network {
    pub name: String,
    pub driver: String,
    pub internal: bool,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
    pub subnets: Vec<String>,
}

fn sorted(map: Option<std::collections::HashMap<String, String>>) -> BTreeMap<String, String> {
    map.unwrap_or_default().into_iter().collect()
}

fn plain_name(name: Option<String>) -> String {
    name.unwrap_or_default().trim_start_matches('/').to_owned()
}

impl From<models::ContainerSummary> for ContainerSummary {
    fn from(c: models::ContainerSummary) -> Self {
        // A container has one name of its own and further ones (`/other/alias`) from links.
        let names = c.names.unwrap_or_default();
        let own = names.iter().find(|n| !n.trim_start_matches('/').contains('/')).or(names.first()).cloned();
        Self {
            id: c.id.unwrap_or_default(),
            name: plain_name(own),
            state: c.state.map(|s| s.to_string()).unwrap_or_default(),
            image: c.image.unwrap_or_default(),
            image_id: c.image_id.unwrap_or_default(),
            labels: sorted(c.labels),
        }
    }
}

impl From<models::MountPoint> for Mount {
    fn from(m: models::MountPoint) -> Self {
        Self {
            kind: m.typ.map(|t| t.to_string()).unwrap_or_default(),
            name: m.name.filter(|n| !n.is_empty()),
            source: m.source.unwrap_or_default().into(),
            destination: m.destination.unwrap_or_default().into(),
            writable: m.rw.unwrap_or(false),
        }
    }
}

impl From<models::ContainerInspectResponse> for Container {
    fn from(c: models::ContainerInspectResponse) -> Self {
        let config = c.config.unwrap_or_default();
        let state = c.state.unwrap_or_default();
        let host = c.host_config.unwrap_or_default();
        let network = c.network_settings.unwrap_or_default();
        let mut networks: Vec<String> = network.networks.unwrap_or_default().into_keys().collect();
        networks.sort();
        let mut ports: Vec<(String, String)> = host
            .port_bindings
            .unwrap_or_default()
            .into_iter()
            .flat_map(|(port, bindings)| bindings.unwrap_or_default().into_iter().map(move |b| (port.clone(), b)))
            .map(|(port, b)| {
                let address = b.host_ip.filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
                (port, format!("{address}:{}", b.host_port.unwrap_or_default()))
            })
            .collect();
        ports.sort();
        let mut mounts: Vec<Mount> = c.mounts.unwrap_or_default().into_iter().map(Mount::from).collect();
        mounts.sort_by(|a, b| a.destination.cmp(&b.destination));
        let mut command: Vec<String> = c.path.into_iter().collect();
        command.extend(c.args.unwrap_or_default());
        let health = state.health.and_then(|h| h.status).map(|s| s.to_string());
        Self {
            id: c.id.unwrap_or_default(),
            name: plain_name(c.name),
            state: state.status.map(|s| s.to_string()).unwrap_or_default(),
            health: health.filter(|h| !h.is_empty() && h != "none"),
            restart_count: c.restart_count.unwrap_or(0),
            exit_code: state.exit_code,
            pid: state.pid.and_then(|p| u32::try_from(p).ok()).filter(|p| *p > 0),
            image: config.image.unwrap_or_default(),
            image_id: c.image.unwrap_or_default(),
            env: config
                .env
                .unwrap_or_default()
                .into_iter()
                .filter_map(|pair| pair.split_once('=').map(|(n, v)| (n.to_owned(), Secret::new(v.to_owned()))))
                .collect(),
            labels: sorted(config.labels),
            mounts,
            user: config.user.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
            hostname: config.hostname.unwrap_or_default(),
            command,
            networks,
            network_mode: host.network_mode.unwrap_or_default(),
            ports,
            auto_remove: host.auto_remove.unwrap_or(false),
            restart_policy: host.restart_policy.and_then(|p| p.name).map(|n| n.to_string()).filter(|n| !n.is_empty()),
            exec_ids: c.exec_ids.unwrap_or_default(),
        }
    }
}

impl From<models::ImageInspect> for Image {
    fn from(i: models::ImageInspect) -> Self {
        let (mut tags, mut digests) = (i.repo_tags.unwrap_or_default(), i.repo_digests.unwrap_or_default());
        tags.sort();
        digests.sort();
        Self {
            id: i.id.unwrap_or_default(),
            tags,
            digests,
            created: i.created.map(|c| c.to_string()),
            size_bytes: i.size.and_then(|s| u64::try_from(s).ok()).unwrap_or(0),
            platform: format!("{}/{}", i.os.unwrap_or_default(), i.architecture.unwrap_or_default()),
        }
    }
}

impl From<models::Volume> for Volume {
    fn from(v: models::Volume) -> Self {
        Self {
            name: v.name,
            driver: v.driver,
            mountpoint: v.mountpoint.into(),
            labels: v.labels.into_iter().collect(),
            options: v.options.into_iter().collect(),
        }
    }
}

impl From<models::NetworkInspect> for Network {
    fn from(n: models::NetworkInspect) -> Self {
        let mut subnets: Vec<String> = n
            .ipam
            .and_then(|i| i.config)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|c| c.subnet)
            .map(|s| s.to_string())
            .collect();
        subnets.sort();
        Self {
            name: n.name.unwrap_or_default(),
            driver: n.driver.unwrap_or_default(),
            internal: n.internal.unwrap_or(false),
            labels: sorted(n.labels),
            options: sorted(n.options),
            subnets,
        }
    }
}
