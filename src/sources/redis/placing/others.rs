//! Whether another policy of this host uses the same server: then neither may exchange its data.

use super::Step;
use super::look::is_local;
use crate::place::PlaceError;
use crate::policy::model::{Policy, RedisSpec, SourceSpec, Target};
use crate::sources::SourceError;
use crate::sources::project::Places;
use crate::sources::redis::address;
use std::path::{Path, PathBuf};

/// Where a server is: in a container, and at addresses of this host.
#[derive(Default)]
struct Seen {
    container: Option<String>,
    addresses: Vec<String>,
}

impl Seen {
    fn is(&self, other: &Seen) -> bool {
        (self.container.is_some() && self.container == other.container)
            || self.addresses.iter().any(|a| other.addresses.contains(a))
    }
}

pub(super) fn refuse_shared(step: &Step<'_>, warnings: &mut Vec<String>) -> Result<(), SourceError> {
    let own = see(&step.source.spec, step.scene.places)?;
    for path in beside(&step.scene.policy.file)? {
        step.linked.cancel.check()?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut unknown = |why: &str| {
            warnings.push(format!("policy {name:?} {why}: whether it uses the same Redis is not known"));
        };
        let Ok(other) = crate::policy::load(&path) else {
            unknown("cannot be read");
            continue;
        };
        let places = Places::new(&other.app, &step.linked.cancel);
        for spec in redis_of(&other) {
            match see(spec, &places) {
                Ok(seen) if own.is(&seen) => {
                    return Err(SourceError::hint(
                        format!("policy {name:?} uses the same Redis server: its data would be exchanged as well"),
                        "give each application a server of its own, or load the file by hand",
                    ));
                }
                Ok(_) => {}
                Err(e) => unknown(&format!("has a Redis that cannot be looked for ({e})")),
            }
        }
    }
    Ok(())
}

fn redis_of(policy: &Policy) -> impl Iterator<Item = &RedisSpec> {
    policy.sources.iter().filter_map(|source| match &source.spec {
        SourceSpec::Redis(spec) => Some(spec),
        _ => None,
    })
}

/// The other policies of this one's folder.
fn beside(file: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let Some(dir) = file.parent() else { return Ok(Vec::new()) };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let failed = |source| SourceError::File { action: "list", path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "toml") && path.file_name() != file.file_name() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What is not there now is nobody's; what cannot be looked for may be.
fn see(spec: &RedisSpec, places: &Places) -> Result<Seen, PlaceError> {
    if is_local(&spec.target) {
        let address = match &spec.target {
            Target::Url(url) => address::parse(url).ok(),
            _ => Some(address::Address::default()),
        };
        let text = |a: address::Address| match &a.socket {
            Some(path) => path.clone(),
            None => local(&format!("{}:{}", a.host(), a.port())),
        };
        return Ok(Seen { container: None, addresses: address.map(text).into_iter().collect() });
    }
    let container = match places.find(&spec.target) {
        Ok(found) => found.container,
        Err(
            PlaceError::NoContainer { .. }
            | PlaceError::NotRunning { .. }
            | PlaceError::NoProject { .. }
            | PlaceError::NoService { .. },
        ) => None,
        Err(e) => return Err(e),
    };
    Ok(container.map_or_else(Seen::default, |container| Seen {
        addresses: container.ports.iter().map(|(_, at)| local(at)).collect(),
        container: Some(container.id),
    }))
}

/// The same for all names of this host.
fn local(address: &str) -> String {
    match address.rsplit_once(':') {
        Some(("localhost" | "0.0.0.0" | "::1" | "::" | "[::1]" | "[::]", port)) => format!("127.0.0.1:{port}"),
        _ => address.to_owned(),
    }
}
