//! The policy's [[health]] checks: is the application well.
//!
//! A check is tried until it passes, as often as it says; once where only today's state is asked for. Nothing is
//! changed, but what a `command` of the policy does itself.

mod container;
pub(in crate::ops) mod http;
mod tls;

use crate::base::cancel::Cancel;
use crate::base::threads;
use crate::base::units::human_size;
use crate::ops::Run;
use crate::place::{Command, HostPlace, Place};
use crate::policy::Policy;
use crate::policy::model::{HealthCheck, HealthKind, MinFree, SourceSpec};
use crate::repository::chain::full_text;
use crate::sources::locate::Located;
use crate::sources::project::Places;
use crate::sources::redis::RedisSource;
use serde::{Deserialize, Serialize};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use container::{Service, settled};
pub use http::agent;

/// What is kept of a command's output.
const OUTPUT_BYTES: usize = 64 << 10;

/// How one check came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// `http https://shop.example.org/health`, `container shop-api-1`, …
    pub name: String,
    pub ok: bool,
    pub attempts: u32,
    pub seconds: f64,
    /// Why it failed, in one line.
    pub problem: Option<String>,
    /// It failed already before anything was changed.
    pub known: bool,
}

/// How long to wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience<'k> {
    Once,
    /// As the policy says.
    Full,
    /// The same, and once for these, which failed before: they are not expected to pass.
    Known(&'k [String]),
}

/// Tries every check of the policy.
pub fn check(policy: &Policy, places: &Arc<Places>, patience: Patience<'_>, run: &Run) -> Vec<Health> {
    let one = |check: &HealthCheck| {
        let name = name(&check.kind);
        if patience != Patience::Once {
            run.events.step(format!("health: {name}"));
        }
        let once = match patience {
            Patience::Once => true,
            Patience::Full => false,
            Patience::Known(names) => names.contains(&name),
        };
        let attempts = if once { 1 } else { check.attempts.max(1) };
        let attempt = || attempt(policy, places, check, run);
        tried(name, attempts, check.interval, &run.cancel, attempt)
    };
    policy.health.iter().map(one).collect()
}

/// Tries every check once, all beside each other: how the application is now, no later than its slowest check says.
pub fn check_at_once(policy: &Policy, places: &Arc<Places>, run: &Run) -> Vec<Health> {
    let one = |check: &HealthCheck| {
        let attempt = || attempt(policy, places, check, run);
        tried(name(&check.kind), 1, check.interval, &run.cancel, attempt)
    };
    std::thread::scope(|scope| {
        let started: Vec<_> =
            policy.health.iter().map(|check| (check, threads::beside(scope, || one(check)))).collect();
        let ended = started.into_iter().map(|(check, thread)| {
            thread.join().unwrap_or_else(|| Health {
                name: name(&check.kind),
                ok: false,
                attempts: 1,
                seconds: 0.0,
                problem: Some("the check itself broke".to_owned()),
                known: false,
            })
        });
        ended.collect()
    })
}

/// Tries until it passes.
pub fn tried(
    name: String,
    attempts: u32,
    interval: Duration,
    cancel: &Cancel,
    mut attempt: impl FnMut() -> Result<(), String>,
) -> Health {
    let begun = Instant::now();
    let (mut made, mut problem) = (0, None);
    while made < attempts {
        if made > 0 && !pause(interval, cancel) {
            break;
        }
        made += 1;
        problem = attempt().err();
        if problem.is_none() {
            break;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    Health { name, ok: problem.is_none(), attempts: made, seconds, problem, known: false }
}

/// Waits; `false` when told to stop.
fn pause(time: Duration, cancel: &Cancel) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if cancel.signal().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50).min(end.saturating_duration_since(Instant::now())));
    }
    cancel.signal().is_none()
}

/// What a check is called.
pub fn name(kind: &HealthKind) -> String {
    match kind {
        HealthKind::Http { url, .. } => format!("http {url}"),
        HealthKind::Tcp(address) => format!("tcp {address}"),
        HealthKind::Container(name) => format!("container {name}"),
        HealthKind::Command(argv) => format!("command {}", argv.first().map_or("", String::as_str)),
        HealthKind::Certificate { address, .. } => format!("certificate {address}"),
        HealthKind::Disk { path, .. } => format!("disk {}", path.display()),
        HealthKind::Redis { source, .. } => format!("redis {source}"),
    }
}

fn attempt(policy: &Policy, places: &Arc<Places>, check: &HealthCheck, run: &Run) -> Result<(), String> {
    match &check.kind {
        HealthKind::Http { url, status, json } => http::check(url, *status, json, check.timeout),
        HealthKind::Tcp(address) => connect(address, check.timeout).map(drop),
        HealthKind::Container(name) => container::check(places, name),
        HealthKind::Command(argv) => command(policy, argv, check.timeout, &run.cancel),
        HealthKind::Certificate { address, min_days } => tls::check(address, *min_days, check.timeout, run.now),
        HealthKind::Disk { path, min_free } => disk(path, *min_free),
        HealthKind::Redis { source, max_memory_percent } => {
            let found = policy.sources.iter().find(|s| s.name == *source);
            let Some((source, SourceSpec::Redis(spec))) = found.map(|s| (s, &s.spec)) else {
                return Err(format!("the policy has no source {source:?} of kind redis"));
            };
            let places = places.clone();
            let locate = Arc::new(move |target: &_| {
                let found = places.find(target)?;
                let env = found.container.map(|c| c.env.into_iter().collect()).unwrap_or_default();
                Ok(Located { place: found.place, env })
            });
            let server = RedisSource::new(source.name.clone(), spec.clone(), check.timeout, locate);
            let memory = server.memory(&run.cancel).map_err(|e| full_text(&e))?;
            let Some(max) = memory.max_bytes else { return Ok(()) };
            let percent = memory.used_bytes as f64 * 100.0 / max as f64;
            if percent <= *max_memory_percent {
                return Ok(());
            }
            let (used, max) = (human_size(memory.used_bytes), human_size(max));
            Err(format!("{used} of {max} are in use: {percent:.0} %, more than {max_memory_percent} %"))
        }
    }
}

/// A connection to `host:port`.
fn connect(address: &str, timeout: Duration) -> Result<TcpStream, String> {
    let mut last = "the name has no address".to_owned();
    for peer in address.to_socket_addrs().map_err(|e| e.to_string())? {
        match TcpStream::connect_timeout(&peer, timeout.max(Duration::from_millis(1))) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e.to_string(),
        }
    }
    Err(last)
}

fn command(policy: &Policy, argv: &[String], timeout: Duration, cancel: &Cancel) -> Result<(), String> {
    let command = Command::new(argv.iter().cloned()).dir(&policy.app.root).timeout(timeout).cancel(cancel);
    HostPlace::new().output(command, OUTPUT_BYTES).map(drop).map_err(|e| full_text(&e))
}

fn disk(path: &Path, min_free: MinFree) -> Result<(), String> {
    let stat = rustix::fs::statvfs(path).map_err(|e| std::io::Error::from(e).to_string())?;
    let (free, all) = (stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize));
    let wanted = match min_free {
        MinFree::Bytes(bytes) => bytes,
        MinFree::Percent(percent) => (all as f64 * percent / 100.0) as u64,
    };
    if free >= wanted {
        return Ok(());
    }
    Err(format!("{} are free, and {} must be", human_size(free), human_size(wanted)))
}

/// Checks that failed, in one line each, without those that failed before.
pub fn failures(all: &[Health]) -> Vec<String> {
    let failed = all.iter().filter(|h| !h.ok && !h.known);
    failed.map(|h| format!("{}: {}", h.name, h.problem.as_deref().unwrap_or("it failed"))).collect()
}

/// Marks those that failed already before.
pub fn mark_known(all: &mut [Health], before: &[String]) {
    for health in all.iter_mut().filter(|h| !h.ok) {
        // What was restarted knows by itself how it was before.
        health.known |= before.contains(&health.name);
    }
}

/// The names of those that fail.
pub fn failing(all: &[Health]) -> Vec<String> {
    all.iter().filter(|h| !h.ok).map(|h| h.name.clone()).collect()
}
