//! Stores and volumes that are not there: the project is down, or a volume was removed.

use crate::ops::OpsError;
use crate::place::PlaceError;
use crate::policy::model::{SourcePolicy, SourceSpec, Target};
use crate::sources::SourceError;
use crate::sources::project::{Places, Project};

/// Why a source has nowhere to go before services come up; absent where it has.
pub fn absent(
    source: &SourcePolicy,
    project: Option<&Project>,
    project_name: Option<&str>,
    places: &Places,
) -> Result<Option<String>, OpsError> {
    let target = match &source.spec {
        SourceSpec::Postgres(spec) => &spec.target,
        SourceSpec::Redis(spec) => &spec.target,
        SourceSpec::Command(spec) => &spec.target,
        SourceSpec::Volume(spec) => {
            for volume in &spec.volumes {
                if !is_there(volume, project_name, places)? {
                    return Ok(Some(format!("volume {volume} is not there")));
                }
            }
            return Ok(None);
        }
        _ => return Ok(None),
    };
    let service = match target {
        Target::Host | Target::Url(_) => return Ok(None),
        Target::Service(name) => name,
        Target::Container(name) => {
            let docker = places.docker().map_err(from_place)?;
            return match docker.inspect(name) {
                Ok(container) if container.is_running() => Ok(None),
                Ok(container) => Ok(Some(format!("container {name} is {}", container.state))),
                Err(PlaceError::NoContainer { .. }) => Ok(Some(format!("container {name} is not there"))),
                Err(e) => Err(from_place(e)),
            };
        }
    };
    let Some(project) = project else {
        return Ok(Some(format!("service {service} is not there: no container of the project is")));
    };
    let mut mine = project.containers.iter().filter(|c| c.compose().is_some_and(|l| l.service == *service)).peekable();
    if mine.peek().is_none() {
        return Ok(Some(format!("service {service} is not there")));
    }
    let states: Vec<&str> = mine.map(|c| c.state.as_str()).collect();
    Ok((!states.contains(&"running")).then(|| format!("service {service} is {}", states.join(", "))))
}

/// By the name that the compose file gives it, or by the engine's own.
fn is_there(volume: &str, project: Option<&str>, places: &Places) -> Result<bool, OpsError> {
    let docker = places.docker().map_err(from_place)?;
    if let Some(project) = project {
        let labels = [format!("com.docker.compose.project={project}"), format!("com.docker.compose.volume={volume}")];
        if !docker.volumes(&labels).map_err(from_place)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(docker.volume(volume).map_err(from_place)?.is_some())
}

fn from_place(e: PlaceError) -> OpsError {
    OpsError::Source { name: "services".into(), source: SourceError::Place(e) }
}
