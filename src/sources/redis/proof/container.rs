//! A throw-away server in a container of the live one's image: the same version, the same modules at hand.
//!
//! The file is laid into the container's own layer, so nothing of this host is mounted; the container has no network,
//! no capability, an unprivileged user, and a limit of memory. What a killed drill leaves is swept by the next.

use super::file_error;
use super::server::{DUMP, Order, Program, SOCKET, Served};
use crate::place::helper::{Helper, HelperSpec};
use crate::place::{Command, ContainerPlace, Docker, Place, PlaceError};
use crate::policy::model::Target;
use crate::sources::SourceError;
use crate::sources::proof::Trial;
use crate::sources::redis::tarball::{self, Entry};
use crate::sources::run::run;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

const FOLDER: &str = "lifeboat-drill";
const USER: (u32, u32) = (65_534, 65_534);
/// Beyond the drill's own limit.
const GRACE: Duration = Duration::from_secs(600);

/// The image of a target's container, whether it runs or not.
pub(super) fn find(trial: &Trial<'_>, target: &Target) -> Result<Program, PlaceError> {
    let docker = trial.places.docker()?;
    docker.sweep(trial.now)?;
    let (image, name) = match target {
        Target::Service(service) => {
            let project = trial.places.project()?;
            let of = |c: &crate::place::inspect::ContainerSummary| c.compose().is_some_and(|l| l.service == *service);
            let found = project.and_then(|p| p.containers.into_iter().find(of));
            let found = found.ok_or_else(|| PlaceError::NoContainer { name: format!("of service {service}") })?;
            (found.image_id, found.image)
        }
        Target::Container(name) => {
            let found = docker.inspect(name)?;
            (found.image_id, found.image)
        }
        Target::Url(_) | Target::Host => return Err(PlaceError::NoContainer { name: String::new() }),
    };
    Ok(Program::Container { docker, image, name })
}

/// A server in a container; removed when dropped.
pub(super) struct ContainerServer {
    helper: Helper,
    docker: Docker,
    place: ContainerPlace,
    cli: &'static str,
}

pub(super) fn start(
    docker: &Docker,
    image: &str,
    order: &Order,
    dir: &Path,
    sanitize: bool,
) -> Result<ContainerServer, SourceError> {
    let mut missing = None;
    for (server, cli) in order.names() {
        let mut command = vec![server.to_owned()];
        command.extend(order.arguments(&format!("/{FOLDER}"), sanitize));
        let helper = docker.helper(&HelperSpec {
            role: "drill".into(),
            image: image.to_owned(),
            command,
            env: Vec::new(),
            user: Some(format!("{}:{}", USER.0, USER.1)),
            mounts: Vec::new(),
            tmpfs: Vec::new(),
            memory_bytes: Some(order.memory),
            lifetime: order.deadline.left().saturating_add(GRACE).min(Duration::from_secs(86_400)),
        })?;
        let path = dir.join(DUMP);
        let file = File::open(&path).map_err(|e| file_error("open", &path, e))?;
        let length = file.metadata().map_err(|e| file_error("look at", &path, e))?.len();
        let folder = Entry::folder(FOLDER, 0o700, USER);
        let dump = Entry::file(&format!("{FOLDER}/{DUMP}"), 0o600, USER, length, file);
        let limits = Command::new(["load"]).timeout(order.deadline.left()).cancel(&order.cancel);
        helper.put("/", tarball::of(vec![folder, dump])?, &limits)?;
        match helper.start() {
            Ok(()) => {
                let place = ContainerPlace::named(docker, helper.id());
                let cli = client(&place, cli, order)?;
                return Ok(ContainerServer { helper, docker: docker.clone(), place, cli });
            }
            Err(error) if super::server::chain(&error).contains("executable file not found") => missing = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(missing.unwrap_or(PlaceError::NoContainer { name: image.to_owned() }).into())
}

/// The client that the image holds.
fn client(place: &ContainerPlace, first: &'static str, order: &Order) -> Result<&'static str, SourceError> {
    for cli in [first, "redis-cli", "valkey-cli"] {
        let command = Command::new([cli, "--version"]).timeout(order.deadline.left()).cancel(&order.cancel);
        match run(place, command, 4096) {
            Err(PlaceError::ToolMissing { .. }) => {}
            Err(PlaceError::Cancelled(c)) => return Err(c.into()),
            Ok(_) | Err(_) => return Ok(cli),
        }
    }
    // The container may have ended already; then what it logged tells why.
    Ok(first)
}

impl Served for ContainerServer {
    fn place(&self) -> &dyn Place {
        &self.place
    }

    fn client(&self, words: &[&str]) -> Command {
        let socket = format!("/{FOLDER}/{SOCKET}");
        Command::new([self.cli, "-s", &socket].into_iter().chain(words.iter().copied()))
    }

    fn ended(&self) -> Result<Option<String>, SourceError> {
        let container = self.docker.inspect(self.helper.id())?;
        if matches!(container.state.as_str(), "running" | "created" | "restarting") {
            return Ok(None);
        }
        let status = container.exit_code.map(|code| format!("\nit ended with exit status {code}")).unwrap_or_default();
        Ok(Some(format!("{}{status}", self.helper.log()?)))
    }

    fn dump(&self) -> Result<Box<dyn Read + '_>, SourceError> {
        let tar = self.helper.get(&format!("/{FOLDER}/{DUMP}"));
        Ok(Box::new(tarball::only_file(tar)?))
    }
}
