//! What this machine lacks, and what is not brought.

use crate::base::cancel::Cancel;
use crate::place::compose::Compose;
use crate::place::{Command, Docker, HostPlace, Place};
use crate::policy::Policy;
use crate::policy::model::{SourceSpec, Target};
use crate::repository::format::Manifest;
use crate::sources::recovery::Bundle;
use std::time::Duration;

/// Programs that the restore of this snapshot runs and that are not here, with what to install.
pub fn tools(policy: &Policy, manifest: &Manifest, cancel: &Cancel) -> Vec<String> {
    let mut lacks = Vec::new();
    let captured = |kind: &str| manifest.sources.iter().any(|s| s.kind == kind && s.facts["present"] != false);
    let on_host = |target: &Target| matches!(target, Target::Host | Target::Url(_));
    let in_containers = policy.sources.iter().any(|s| match &s.spec {
        SourceSpec::Postgres(s) => !on_host(&s.target),
        SourceSpec::Redis(s) => !on_host(&s.target),
        SourceSpec::Command(s) => !on_host(&s.target),
        SourceSpec::Volume(_) => true,
        _ => false,
    });
    if in_containers || captured("compose") {
        match Docker::connect(cancel) {
            Err(e) => lacks.push(format!("Docker ({e}): apt-get install docker.io")),
            Ok(_) if Compose::find(cancel).is_err() => {
                lacks.push("Docker Compose: apt-get install docker-compose-plugin, or docker-compose-v2".to_owned());
            }
            Ok(_) => {}
        }
    }
    let is_here = |program: &str| {
        let command = Command::new([program, "--version"]).timeout(Duration::from_secs(20)).cancel(cancel);
        HostPlace::new().output(command, 64 << 10).is_ok()
    };
    if captured("git") && !is_here("git") {
        lacks.push("git: apt-get install git".to_owned());
    }
    for source in &policy.sources {
        match &source.spec {
            SourceSpec::Postgres(s) if on_host(&s.target) && !is_here("psql") => {
                lacks.push(format!("PostgreSQL for source {}: apt-get install postgresql", source.name));
            }
            SourceSpec::Redis(s) if on_host(&s.target) && !is_here("redis-server") => {
                lacks.push(format!("Redis for source {}: apt-get install redis-server", source.name));
            }
            _ => {}
        }
    }
    lacks
}

/// What stays for a person to do.
pub fn not_brought(bundle: &Bundle, policy: &Policy) -> Vec<String> {
    let mut list: Vec<String> = policy.external.iter().map(|e| format!("not restored: {e}")).collect();
    let lines = |files: &[(String, String)]| -> Vec<String> {
        files.iter().map(|(path, _)| path.clone()).filter(|path| !is_of_system(path)).collect()
    };
    let crontabs = lines(&bundle.crontabs);
    if !crontabs.is_empty() {
        list.push(format!("crontabs of the old machine: {}", crontabs.join(", ")));
    }
    let units = lines(&bundle.units);
    if !units.is_empty() {
        list.push(format!("systemd units that name the application: {}", units.join(", ")));
    }
    if let Some((tool, _)) = &bundle.firewall {
        list.push(format!("firewall rules ({tool})"));
    }
    let here = |name: &str| {
        let name = name.split(':').next().unwrap_or(name);
        let command = Command::new(["dpkg-query", "--show", "--showformat", "${db:Status-Status}", name]);
        let asked = HostPlace::new().output(command.timeout(Duration::from_secs(20)), 64 << 10);
        asked.is_ok_and(|out| out.starts_with(b"installed"))
    };
    let wanted = [
        "nginx",
        "certbot",
        "docker.io",
        "docker-ce",
        "docker-compose-plugin",
        "postgresql",
        "redis-server",
        "caddy",
        "fail2ban",
        "ufw",
    ];
    let missing: Vec<&str> =
        wanted.into_iter().filter(|name| bundle.packages.contains_key(*name) && !here(name)).collect();
    if !missing.is_empty() {
        list.push(format!("packages that the old machine had: {}", missing.join(", ")));
    }
    list
}

/// What every system brings with itself.
fn is_of_system(path: &str) -> bool {
    ["/etc/crontab", "/etc/cron.d/e2scrub_all", "/etc/cron.d/.placeholder", "/etc/cron.d/php", "/etc/cron.d/sysstat"]
        .contains(&path)
}
