//! A container that runs, is healthy where it can tell, and does not restart again and again.

use super::{Health, tried};
use crate::base::cancel::Cancel;
use crate::place::inspect::Container;
use crate::place::{Docker, PlaceError};
use crate::repository::chain::full_text;
use crate::sources::project::Places;
use std::time::Duration;

/// One that cannot tell its health has to stay up for this long.
const STEADY: Duration = Duration::from_secs(1);
/// How often, and how many times, containers that were started are looked at.
const INTERVAL: Duration = Duration::from_millis(500);
const ATTEMPTS: u32 = 240;
/// After so many restarts, or looks that find it unhealthy, it is not waited for.
const RESTARTS: i64 = 5;
const UNHEALTHY: u32 = 10;

/// A container that was started again.
pub struct Service<'a> {
    pub container: &'a str,
    /// Its health before anything was changed, where it could tell.
    pub was: Option<&'a str>,
}

/// A container by name, or the container of a service of the policy's project.
pub fn check(places: &Places, name: &str) -> Result<(), String> {
    let docker = places.docker().map_err(|e| full_text(&e))?;
    let found = match docker.inspect(name) {
        Err(PlaceError::NoContainer { .. }) => {
            let project = places.project().map_err(|e| full_text(&e))?;
            let service = project.and_then(|p| {
                p.containers.into_iter().find(|c| c.compose().is_some_and(|labels| labels.service == name))
            });
            service.map(|c| c.id).ok_or_else(|| format!("there is no container or service {name:?}"))?
        }
        Ok(container) => container.id,
        Err(e) => return Err(full_text(&e)),
    };
    look(&docker, &found)
}

fn look(docker: &Docker, id: &str) -> Result<(), String> {
    let inspect = || docker.inspect(id).map_err(|e| full_text(&e));
    let first = inspect()?;
    is_up(&first)?;
    match first.health.as_deref() {
        Some("healthy") => Ok(()),
        Some(other) => Err(format!("its health is {other}")),
        None => {
            std::thread::sleep(STEADY);
            let second = inspect()?;
            is_up(&second)?;
            if second.restart_count != first.restart_count || second.pid != first.pid {
                return Err(format!("it restarts again and again ({} times)", second.restart_count));
            }
            Ok(())
        }
    }
}

fn is_up(container: &Container) -> Result<(), String> {
    if container.is_running() {
        return Ok(());
    }
    let status = container.exit_code.filter(|_| container.state == "exited");
    Err(format!("it is {}{}", container.state, status.map(|s| format!(" with status {s}")).unwrap_or_default()))
}

/// Whether containers that were started are up and healthy. What has ended, stays unhealthy or restarts again and again
/// is not waited for any longer.
pub fn settled(docker: &Docker, services: &[Service<'_>], cancel: &Cancel) -> Vec<Health> {
    services.iter().map(|service| one(docker, service, cancel)).collect()
}

fn one(docker: &Docker, service: &Service<'_>, cancel: &Cancel) -> Health {
    let mut unhealthy = 0;
    let mut verdict = Ok(());
    let mut health = tried(format!("container {}", service.container), ATTEMPTS, INTERVAL, cancel, || {
        verdict = look(docker, service.container);
        if verdict.is_ok() {
            return Ok(());
        }
        let now = docker.inspect(service.container).map_err(|e| full_text(&e))?;
        unhealthy += u32::from(now.health.as_deref() == Some("unhealthy"));
        let is_hopeless = now.state == "exited" || now.restart_count >= RESTARTS || unhealthy >= UNHEALTHY;
        if is_hopeless { Ok(()) } else { verdict.clone() }
    });
    if let Err(problem) = verdict {
        (health.ok, health.problem) = (false, Some(problem));
    }
    health.known = !health.ok && service.was.is_some_and(|was| was != "healthy");
    health
}
