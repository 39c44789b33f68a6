//! What stops a stack from coming back as it was, told before anything goes down.
//!
//! What runs today is held against what was recorded, because two instances of one application may differ by nothing but
//! an edited port: a snapshot of one must not take the other's ports or names.

use super::images::{From, Wanted};
use super::running::{Instance, Service};
use super::stack::Facts;
use crate::place::compose::{Compose, nameless, nameless_volume};
use crate::place::inspect::Container;
use crate::place::{Docker, PlaceError};
use crate::policy::model::App;
use crate::sources::SourceError;
use crate::sources::project::Project;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Today's stack: its containers, each with its service.
pub(super) struct Today {
    pub name: Option<String>,
    pub containers: Vec<(String, Container)>,
}

impl Today {
    pub fn look(docker: &Docker, project: Option<&Project>) -> Result<Self, SourceError> {
        let mut containers = Vec::new();
        for summary in project.iter().flat_map(|p| &p.containers) {
            let Some(labels) = summary.compose() else { continue };
            match docker.inspect(&summary.id) {
                Ok(container) => containers.push((labels.service, container)),
                Err(PlaceError::NoContainer { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Self { name: project.map(|p| p.name.clone()), containers })
    }

    fn of(&self, service: &str) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(move |(name, _)| name == service).map(|(_, container)| container)
    }
}

/// Problems, each with its way out.
#[derive(Default)]
pub(super) struct Hindrances(Vec<(String, String)>);

impl Hindrances {
    fn add(&mut self, problem: impl Into<String>, hint: impl Into<String>) {
        let one = (problem.into(), hint.into());
        if !self.0.contains(&one) {
            self.0.push(one);
        }
    }

    /// One error for all, with the ways out in the same order.
    pub fn refuse(self) -> Result<(), SourceError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let (problems, mut hints): (Vec<String>, Vec<String>) = self.0.into_iter().unzip();
        hints.dedup();
        Err(SourceError::hint(problems.join("; "), hints.join("; ")))
    }
}

/// Everything that can be seen now.
pub(super) fn look(
    docker: &Docker,
    compose: &Compose,
    app: &App,
    facts: &Facts,
    today: &Today,
    images: &[Wanted],
) -> Result<Hindrances, SourceError> {
    let mut all = Hindrances::default();
    let name = facts.name();
    if let Some(now) = today.name.as_ref().or(app.project.as_ref()).filter(|now| **now != name) {
        all.add(
            format!("the compose project was {name:?} and is {now:?} today"),
            "a rollback never makes a second stack: give the project its old name back first (`docker compose down`, then `up` under that name), or restore its data alone",
        );
    }
    if let Some(project) = facts.project(app)
        && let Some(why) = compose.cannot(&project)
    {
        all.add(why, "install the compose plugin (version 2)");
    }
    names(docker, facts, today, &mut all)?;
    ports(docker, facts, today, &mut all)?;
    surroundings(docker, facts, &mut all)?;
    if compose.is_v1() {
        nameless_volumes(docker, facts, today, images, &mut all)?;
    }
    Ok(all)
}

/// Names that somebody chose: `container_name`.
fn chosen<'n>(project: &str, service: &str, names: impl Iterator<Item = &'n str>) -> BTreeSet<String> {
    let is_default = |name: &str| {
        // Version 1 puts the old one's id before a name while it makes a container anew.
        let name = match name.split_once('_') {
            Some((id, rest)) if id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()) => rest,
            _ => name,
        };
        ["-", "_"].iter().any(|mark| {
            let number = name.strip_prefix(&format!("{project}{mark}{service}{mark}"));
            number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        })
    };
    names.filter(|name| !is_default(name)).map(str::to_owned).collect()
}

fn names(docker: &Docker, facts: &Facts, today: &Today, all: &mut Hindrances) -> Result<(), SourceError> {
    let project = facts.name();
    for service in &facts.services {
        let then = chosen(&project, &service.service, service.containers.iter().map(|c: &Instance| c.name.as_str()));
        let mut running = today.of(&service.service).peekable();
        if running.peek().is_some() {
            let live = today.name.as_deref().unwrap_or(&project);
            let now = chosen(live, &service.service, running.map(|c| c.name.as_str()));
            if now != then {
                all.add(
                    format!(
                        "the container of service {} was named {} and is named {} today",
                        service.service,
                        listed(&then),
                        listed(&now)
                    ),
                    "names of containers are not rolled back: give `container_name` its old value first",
                );
                continue;
            }
        }
        for name in &then {
            let own = today.containers.iter().any(|(_, c)| c.name == *name);
            match docker.inspect(name) {
                Ok(_) if !own => all.add(
                    format!(
                        "a container that is not this project's has the name {name:?} of service {}",
                        service.service
                    ),
                    format!("remove or rename it: `docker rename {name} NEW`"),
                ),
                Ok(_) | Err(PlaceError::NoContainer { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

fn listed(names: &BTreeSet<String>) -> String {
    match names.len() {
        0 => "by Compose".into(),
        _ => names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", "),
    }
}

fn ports(docker: &Docker, facts: &Facts, today: &Today, all: &mut Hindrances) -> Result<(), SourceError> {
    // Whatever service of the project has them today gives them up.
    let own: Vec<&(String, String)> =
        today.containers.iter().filter(|(_, c)| c.is_running()).flat_map(|(_, c)| &c.ports).collect();
    for service in facts.services.iter().filter(|s| s.scale > 0) {
        let then: BTreeSet<&(String, String)> = service.ports.iter().collect();
        let mut containers = today.of(&service.service).peekable();
        if containers.peek().is_some() {
            let live: Vec<(String, String)> = containers.flat_map(|c| c.ports.clone()).collect();
            let now: BTreeSet<&(String, String)> = live.iter().collect();
            if now != then {
                all.add(
                    format!(
                        "service {} published {} and publishes {} today",
                        service.service,
                        published(&then),
                        published(&now)
                    ),
                    "another instance may have those ports: publish the recorded ones first, or restore the data alone",
                );
                continue;
            }
        }
        for (port, at) in &service.ports {
            let is_own = own.iter().any(|o| meets(o, port, at));
            if !is_own && let Some(holder) = holder(docker, port, at)? {
                all.add(
                    format!("port {at} of service {} is taken by {holder}", service.service),
                    "whatever has it must go before the service can come up",
                );
            }
        }
    }
    Ok(())
}

fn published(ports: &BTreeSet<&(String, String)>) -> String {
    match ports.len() {
        0 => "no port".into(),
        _ => ports.iter().map(|(port, at)| format!("{at} for {port}")).collect::<Vec<_>>().join(", "),
    }
}

fn protocol(port: &str) -> String {
    port.rsplit_once('/').map_or("tcp", |(_, protocol)| protocol).to_owned()
}

/// `127.0.0.1:8001`, `[::1]:8001`: nothing for a range, or a port that the engine chooses.
fn address(at: &str) -> Option<(IpAddr, u16)> {
    let (host, port) = at.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    port.parse().ok().filter(|port| *port != 0).map(|port| (host, port))
}

/// Who listens there.
fn holder(docker: &Docker, port: &str, at: &str) -> Result<Option<String>, SourceError> {
    let Some((host, number)) = address(at) else { return Ok(None) };
    for summary in docker.containers(&[])?.into_iter().filter(|c| c.state == "running") {
        let container = match docker.inspect(&summary.id) {
            Ok(container) => container,
            Err(PlaceError::NoContainer { .. }) => continue,
            Err(e) => return Err(e.into()),
        };
        if container.ports.iter().any(|other| meets(other, port, at)) {
            return Ok(Some(format!("container {}", container.name)));
        }
    }
    if !docker.is_local() {
        return Ok(None);
    }
    let taken = listening(&protocol(port)).into_iter().any(|(h, n)| n == number && meet(h, host));
    Ok(taken.then(|| "a program of this host".to_owned()))
}

/// Whether a published port is in the way of another.
fn meets((other, there): &(String, String), port: &str, at: &str) -> bool {
    let (Some((h, n)), Some((host, number))) = (address(there), address(at)) else { return false };
    protocol(other) == protocol(port) && n == number && meet(h, host)
}

fn meet(one: IpAddr, other: IpAddr) -> bool {
    one.is_unspecified() || other.is_unspecified() || one == other
}

/// What this host listens at.
fn listening(protocol: &str) -> Vec<(IpAddr, u16)> {
    let mut found = Vec::new();
    for file in [format!("/proc/net/{protocol}"), format!("/proc/net/{protocol}6")] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        for line in text.lines().skip(1) {
            let mut fields = line.split_ascii_whitespace();
            let (local, state) = (fields.nth(1), fields.nth(1));
            // 0A: it listens. A socket without connections waits by being there.
            if (protocol == "tcp" && state != Some("0A")) || !matches!(protocol, "tcp" | "udp") {
                continue;
            }
            found.extend(local.and_then(hex_address));
        }
    }
    found
}

/// `0100007F:1F90`: each four bytes in the host's order.
fn hex_address(text: &str) -> Option<(IpAddr, u16)> {
    let (host, port) = text.split_once(':')?;
    let words = hex::decode(host).ok()?;
    let word = |w: &[u8]| Some(u32::from_be_bytes(w.try_into().ok()?).to_ne_bytes());
    let bytes: Vec<u8> = words.chunks(4).map(word).collect::<Option<Vec<_>>>()?.concat();
    let host = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    let host = match host {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(host, IpAddr::V4),
        v4 => v4,
    };
    Some((host, u16::from_str_radix(port, 16).ok()?))
}

fn surroundings(docker: &Docker, facts: &Facts, all: &mut Hindrances) -> Result<(), SourceError> {
    for network in facts.networks.iter().filter(|n| n.external) {
        if docker.network(&network.name)?.is_none() {
            let driver =
                if network.driver == "bridge" { String::new() } else { format!("--driver {} ", network.driver) };
            all.add(
                format!("the external network {:?} is not there", network.name),
                format!("make it: docker network create {driver}{}", network.name),
            );
        }
    }
    for volume in facts.volumes.iter().filter(|v| v.external) {
        if docker.volume(&volume.name)?.is_none() {
            all.add(
                format!("the external volume {:?} is not there", volume.name),
                format!("make it: docker volume create {}", volume.name),
            );
        }
    }
    Ok(())
}

/// Containers that version 1 is sure to make anew: it did not make them, or their image changes.
fn nameless_volumes(
    docker: &Docker,
    facts: &Facts,
    today: &Today,
    images: &[Wanted],
    all: &mut Hindrances,
) -> Result<(), SourceError> {
    let comes_up = |service: &str| facts.services.iter().any(|s: &Service| s.service == service && s.scale > 0);
    for (service, container) in today.containers.iter().filter(|(service, _)| comes_up(service)) {
        let foreign = container.compose().and_then(|l| l.version).is_none_or(|v| !v.starts_with("1."));
        let wanted = images.iter().find(|w| w.services.contains(service));
        let other = wanted.is_some_and(|w| w.from == From::Built || w.id != container.image_id);
        if (foreign || other)
            && let Some(folder) = nameless_volume(docker, container)?
        {
            all.add(
                nameless(&container.name, &folder),
                "give the volume a name in the compose file, or install the compose plugin (version 2)",
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_compose_gives_are_nobodys_choice() {
        let chosen = |names: &[&str]| chosen("shop", "web", names.iter().copied()).into_iter().collect::<Vec<_>>();
        assert!(chosen(&["shop-web-1", "shop_web_2", "0123456789ab_shop_web_1"]).is_empty());
        assert_eq!(chosen(&["masstock_api", "shop-web-", "shop-web-1x"]), ["masstock_api", "shop-web-", "shop-web-1x"]);
    }

    #[test]
    fn ports_are_read_as_engine_and_kernel_write_them() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(address("127.0.0.1:8001"), Some((ip("127.0.0.1"), 8001)));
        assert_eq!(address(":::8001"), Some((ip("::"), 8001)));
        assert_eq!(address("[::1]:53"), Some((ip("::1"), 53)));
        for none in ["0.0.0.0:0", "0.0.0.0:", "0.0.0.0:8000-8010"] {
            assert_eq!(address(none), None);
        }
        assert_eq!(hex_address("0100007F:1F90"), Some((ip("127.0.0.1"), 8080)));
        assert_eq!(hex_address("00000000000000000000000000000000:0050"), Some((ip("::"), 80)));
        assert_eq!(hex_address("0000000000000000FFFF00000100007F:0050"), Some((ip("127.0.0.1"), 80)));
        assert_eq!(hex_address("B80D01200000000000000000010000000:0050"), None);
        assert!(meet(ip("0.0.0.0"), ip("127.0.0.1")) && !meet(ip("127.0.0.2"), ip("127.0.0.1")));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listening("tcp").contains(&(ip("127.0.0.1"), port)));
        drop(listener);
        assert!(!listening("tcp").contains(&(ip("127.0.0.1"), port)));
    }
}
