//! A policy's sources, ready to be captured.

use super::Source;
use super::command::CommandSource;
use super::compose::ComposeSource;
use super::files::{DockerTree, FilesSource, TreeReader, Volume};
use super::git::GitSource;
use super::locate::{Locate, Located};
use super::postgres::PostgresSource;
use super::project::Places;
use super::recovery::RecoverySource;
use super::redis::RedisSource;
use crate::base::cancel::Cancel;
use crate::place::PlaceError;
use crate::place::helper::TreeSource;
use crate::policy::model::{Policy, RepositoryUrl, SourcePolicy, SourceSpec, Via};
use chrono::{DateTime, Utc};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

/// The name of the recovery bundle among a snapshot's sources.
pub const RECOVERY: &str = "recovery";

/// Every source of a policy, in the policy's order, and behind them the recovery bundle. `state_dir` is never
/// captured, and neither are the policy's local repositories: a backup does not back itself up.
pub fn build(policy: &Policy, state_dir: &std::path::Path, cancel: &Cancel) -> Vec<Box<dyn Source>> {
    let places = Arc::new(Places::new(&policy.app, cancel));
    let local = |url: &RepositoryUrl| match url {
        RepositoryUrl::Local(path) => Some(path.clone()),
        RepositoryUrl::S3 { .. } => None,
    };
    let repositories = std::iter::once(&policy.repository.url).chain(&policy.repository.copies).filter_map(local);
    let parts = Parts {
        never: repositories.chain([state_dir.to_owned()]).collect(),
        locate: locate(places.clone()),
        trees: Arc::new(DockerTrees(places.clone())),
        places,
    };
    let mut sources: Vec<Box<dyn Source>> =
        policy.sources.iter().filter_map(|source| parts.source(policy, source)).collect();
    if let Ok(name) = RECOVERY.parse() {
        sources.push(Box::new(RecoverySource::new(name, policy)));
    }
    sources
}

/// Removes helper containers that a killed run left behind. Only where the policy has to do with Docker at all; an
/// engine that does not answer is told by the sources that need it.
pub fn sweep(policy: &Policy, now: DateTime<Utc>, cancel: &Cancel) -> Vec<String> {
    let needs_docker = |source: &SourcePolicy| match &source.spec {
        SourceSpec::Volume(_) => true,
        SourceSpec::Files(spec) => spec.via == Via::Docker,
        SourceSpec::Certificates(spec) => spec.via == Via::Docker,
        SourceSpec::Nginx(spec) => spec.via == Via::Docker,
        _ => false,
    };
    if !policy.sources.iter().any(needs_docker) {
        return Vec::new();
    }
    Places::new(&policy.app, cancel).docker().and_then(|docker| docker.sweep(now)).unwrap_or_default()
}

/// What the sources of one policy share.
struct Parts {
    never: Vec<PathBuf>,
    locate: Locate,
    trees: Arc<dyn TreeReader>,
    places: Arc<Places>,
}

impl Parts {
    fn source(&self, policy: &Policy, source: &SourcePolicy) -> Option<Box<dyn Source>> {
        let name = source.name.clone();
        let locate = self.locate.clone();
        Some(match &source.spec {
            SourceSpec::Postgres(spec) => Box::new(PostgresSource::new(name, spec.clone(), source.timeout, locate)),
            SourceSpec::Files(spec) => {
                Box::new(FilesSource::new(name, spec.clone(), self.never.clone(), Some(self.trees.clone())))
            }
            SourceSpec::Redis(spec) => Box::new(RedisSource::new(name, spec.clone(), source.timeout, locate)),
            SourceSpec::Command(spec) => {
                Box::new(CommandSource::new(name, spec.clone(), source.timeout, locate).in_dir(&policy.app.root))
            }
            SourceSpec::Compose(spec) => Box::new(ComposeSource::new(source, spec, &policy.app)),
            SourceSpec::Git(spec) => Box::new(GitSource::new(source, spec, &policy.app)),
            _ => return None,
        })
    }
}

/// Targets are found when they are asked for.
fn locate(places: Arc<Places>) -> Locate {
    Arc::new(move |target| {
        let found = places.find(target)?;
        let env = found.container.map(|c| c.env.into_iter().collect()).unwrap_or_default();
        Ok(Located { place: found.place, env })
    })
}

/// Trees that only Docker can read.
struct DockerTrees(Arc<Places>);

impl TreeReader for DockerTrees {
    fn volume(&self, name: &str) -> Result<Volume, PlaceError> {
        let docker = self.0.docker()?;
        // The compose file's name first: a volume `storage` of this project is not that of another one.
        let project = self.0.project()?.map(|p| p.name);
        let of_project = project.map(|project| format!("{project}_{name}"));
        for candidate in of_project.iter().map(String::as_str).chain([name]) {
            if let Some(volume) = docker.volume(candidate)? {
                let mount_point = Some(volume.mountpoint).filter(|_| docker.is_local());
                return Ok(Volume { name: volume.name, mount_point });
            }
        }
        Err(PlaceError::Io {
            what: format!("find volume {name:?}"),
            place: docker.endpoint().to_owned(),
            source: io::Error::new(io::ErrorKind::NotFound, "no such volume"),
        })
    }

    fn read_tree(&self, tree: DockerTree<'_>, cancel: &Cancel) -> Result<Option<Box<dyn Read + Send>>, PlaceError> {
        cancel.check()?;
        let source = match tree {
            DockerTree::Host(path) => TreeSource::Path(path.to_owned()),
            DockerTree::Volume(name) => TreeSource::Volume(name.to_owned()),
        };
        match self.0.docker()?.read_tree(&source) {
            Ok(reader) => Ok(Some(reader)),
            Err(PlaceError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}
