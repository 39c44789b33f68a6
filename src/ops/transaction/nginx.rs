//! nginx reads its configuration and certificates when it is told to: it is tested first, so that a broken one never
//! takes the place of one that works.

use crate::base::ids::SourceName;
use crate::ops::OpsError;
use crate::place::{Command, ContainerPlace, HostPlace, Place, PlaceError};
use crate::policy::Policy;
use crate::policy::model::SourceSpec;
use crate::sources::SourceError;
use crate::sources::placing::Intent;
use crate::sources::project::Places;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const OUTPUT_BYTES: usize = 256 << 10;

/// Where nginx runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nginx {
    /// Absent: on this host.
    pub container: Option<String>,
    /// Its main file, where it is not the one that it was built with.
    pub main: Option<PathBuf>,
}

impl Nginx {
    /// The nginx of the policy, when what it reads is put back.
    pub fn find<'f>(
        policy: &Policy,
        intents: &[Intent],
        facts: impl Iterator<Item = (&'f SourceName, &'f Value)>,
    ) -> Option<Self> {
        let reads = |i: &Intent| matches!(i.kind.as_str(), "nginx" | "certificates");
        if !intents.iter().any(reads) {
            return None;
        }
        let (name, spec) = policy.sources.iter().find_map(|s| match &s.spec {
            SourceSpec::Nginx(spec) => Some((&s.name, spec)),
            _ => None,
        })?;
        let main = facts.into_iter().find(|(n, _)| *n == name).and_then(|(_, f)| f["main"].as_str().map(PathBuf::from));
        let usual = |main: &PathBuf| main == std::path::Path::new("/etc/nginx/nginx.conf");
        // Inside a container the file has another path; there nginx knows its own.
        let main = main.filter(|m| spec.container.is_none() && !usual(m));
        Some(Self { container: spec.container.clone(), main })
    }

    /// Tests and reloads. `Ok(Some(note))`: there was nothing to reload.
    pub fn reload(&self, places: &Places) -> Result<Option<String>, OpsError> {
        let place: Box<dyn Place> = match &self.container {
            None => Box::new(HostPlace::new()),
            Some(name) => {
                let docker = places.docker().map_err(of_nginx)?;
                let place = ContainerPlace::named(&docker, name.clone());
                match place.resolve() {
                    Ok(_) => Box::new(place),
                    Err(PlaceError::NotRunning { .. } | PlaceError::NoContainer { .. }) => {
                        return Ok(Some(format!("nginx is not tested: container {name} does not run")));
                    }
                    Err(e) => return Err(of_nginx(e)),
                }
            }
        };
        let command = |more: &[&str]| {
            let mut argv = vec!["nginx".to_owned()];
            if let Some(main) = &self.main {
                argv.extend(["-c".to_owned(), main.display().to_string()]);
            }
            argv.extend(more.iter().map(|m| (*m).to_owned()));
            Command::new(argv).timeout(LIMIT)
        };
        match place.output(command(&["-t", "-q"]), OUTPUT_BYTES) {
            Ok(_) => {}
            Err(PlaceError::ToolMissing { .. }) => {
                return Ok(Some(format!("nginx is not tested: there is none on {}", place.describe())));
            }
            Err(e) => return Err(of_nginx(e)),
        }
        match place.output(command(&["-s", "reload"]), OUTPUT_BYTES) {
            Ok(_) => Ok(None),
            // It was tested; one that does not run reads its files when it starts.
            Err(PlaceError::Failed { stderr, .. }) if is_down(&stderr) => {
                Ok(Some("nginx passes its test and does not run: nothing is reloaded".to_owned()))
            }
            Err(e) => Err(of_nginx(e)),
        }
    }
}

fn is_down(stderr: &str) -> bool {
    (stderr.contains("nginx.pid") || stderr.contains(".pid\"")) && stderr.contains("No such file")
        || stderr.contains("invalid PID number")
        || stderr.contains("No such process")
}

fn of_nginx(e: PlaceError) -> OpsError {
    OpsError::Source { name: "nginx".into(), source: SourceError::Place(e) }
}
