//! nginx reads its configuration and certificates when it is told to: it is tested first, so that a broken one never
//! takes the place of one that works.

use crate::base::ids::SourceName;
use crate::ops::OpsError;
use crate::place::{Command, ContainerPlace, HostPlace, Place, PlaceError};
use crate::policy::Policy;
use crate::policy::model::SourceSpec;
use crate::repository::chain::full_text;
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
    /// Nothing that it reads is put back, and its test failed before anything was changed: if it still does, that is said
    /// and nothing more.
    #[serde(default)]
    pub failed_before: bool,
}

impl Nginx {
    /// Whether it reads what this puts back.
    pub fn reads(intent: &Intent) -> bool {
        matches!(intent.kind.as_str(), "nginx" | "certificates")
    }

    /// The nginx of the policy.
    pub fn find<'f>(policy: &Policy, facts: impl Iterator<Item = (&'f SourceName, &'f Value)>) -> Option<Self> {
        let (name, spec) = policy.sources.iter().find_map(|s| match &s.spec {
            SourceSpec::Nginx(spec) => Some((&s.name, spec)),
            _ => None,
        })?;
        let main = facts.into_iter().find(|(n, _)| *n == name).and_then(|(_, f)| f["main"].as_str().map(PathBuf::from));
        let usual = |main: &PathBuf| main == std::path::Path::new("/etc/nginx/nginx.conf");
        // Inside a container the file has another path; there nginx knows its own.
        let main = main.filter(|m| spec.container.is_none() && !usual(m));
        Some(Self { container: spec.container.clone(), main, failed_before: false })
    }

    /// Tests it as it is, before anything is changed: a site of somebody else that is broken already must not be what a
    /// rollback fails by.
    pub fn tried(self, places: &Places) -> Self {
        Self { failed_before: self.act(places, false).is_err(), ..self }
    }

    /// Tests and reloads. `Ok(Some(note))`: there was nothing to reload.
    pub fn reload(&self, places: &Places) -> Result<Option<String>, OpsError> {
        match self.act(places, true) {
            Err(e) if self.failed_before => {
                Ok(Some(format!("nginx fails its test, as it did before: it is not reloaded: {}", full_text(&e))))
            }
            other => other,
        }
    }

    fn act(&self, places: &Places, reload: bool) -> Result<Option<String>, OpsError> {
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
        if !reload {
            return Ok(None);
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
