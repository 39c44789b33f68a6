//! A policy's sources, ready to be captured.

use super::Source;
use super::command::CommandSource;
use super::compose::ComposeSource;
use super::files::{CertificatesSource, EnvSource, FilesSource, NginxSource, VolumeSource};
use super::git::GitSource;
use super::locate::{Locate, Located};
use super::postgres::PostgresSource;
use super::project::Places;
use super::recovery::RecoverySource;
use super::redis::RedisSource;
use crate::base::cancel::Cancel;
use crate::policy::model::{Policy, RepositoryUrl, SourcePolicy, SourceSpec, Target, Via};
use chrono::{DateTime, Utc};
use std::path::PathBuf;
use std::sync::Arc;

pub use crate::policy::model::RECOVERY;

/// Every source of a policy, in the policy's order, and behind them the recovery bundle. `state_dir` is never
/// captured, and neither are the policy's local repositories: a backup does not back itself up.
pub fn build(policy: &Policy, state_dir: &std::path::Path, cancel: &Cancel) -> Vec<Box<dyn Source>> {
    let places = Arc::new(Places::new(&policy.app, cancel));
    let local = |url: &RepositoryUrl| match url {
        RepositoryUrl::Local(path) => Some(path.clone()),
        RepositoryUrl::S3 { .. } => None,
    };
    let repositories = std::iter::once(&policy.repository.url)
        .chain(policy.repository.copies.iter().map(|copy| &copy.url))
        .filter_map(local);
    let parts = Parts { never: repositories.chain([state_dir.to_owned()]).collect(), locate: locate(places) };
    let mut sources: Vec<Box<dyn Source>> = policy.sources.iter().map(|source| parts.source(policy, source)).collect();
    if let Ok(name) = RECOVERY.parse() {
        sources.push(Box::new(RecoverySource::new(name, policy)));
    }
    sources
}

/// Removes helper containers that a killed run left behind. Only where the policy has to do with Docker at all; an
/// engine that does not answer is told by the sources that need it.
pub fn sweep(policy: &Policy, now: DateTime<Utc>, cancel: &Cancel) -> Vec<String> {
    let inside = |target: &Target| matches!(target, Target::Service(_) | Target::Container(_));
    let needs_docker = |source: &SourcePolicy| match &source.spec {
        SourceSpec::Volume(_) => true,
        SourceSpec::Files(spec) => spec.via == Via::Docker,
        SourceSpec::Certificates(spec) => spec.via == Via::Docker,
        SourceSpec::Nginx(spec) => spec.via == Via::Docker || spec.container.is_some(),
        // Drills of these make containers.
        SourceSpec::Postgres(spec) => inside(&spec.target),
        SourceSpec::Redis(spec) => inside(&spec.target),
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
}

impl Parts {
    fn source(&self, policy: &Policy, source: &SourcePolicy) -> Box<dyn Source> {
        let name = source.name.clone();
        let locate = self.locate.clone();
        let (app, never) = (&policy.app, self.never.clone());
        match &source.spec {
            SourceSpec::Postgres(spec) => Box::new(PostgresSource::new(name, spec.clone(), source.timeout, locate)),
            SourceSpec::Redis(spec) => Box::new(RedisSource::new(name, spec.clone(), source.timeout, locate)),
            SourceSpec::Env(spec) => Box::new(EnvSource::new(source, spec, app)),
            SourceSpec::Certificates(spec) => Box::new(CertificatesSource::new(source, spec, app)),
            SourceSpec::Nginx(spec) => Box::new(NginxSource::new(source, spec, app)),
            SourceSpec::Files(spec) => Box::new(FilesSource::new(source, spec, app, never)),
            SourceSpec::Volume(spec) => Box::new(VolumeSource::new(source, spec, app, never)),
            SourceSpec::Command(spec) => {
                Box::new(CommandSource::new(name, spec.clone(), source.timeout, locate).in_dir(&app.root))
            }
            SourceSpec::Git(spec) => Box::new(GitSource::new(source, spec, app)),
            SourceSpec::Compose(spec) => Box::new(ComposeSource::new(source, spec, app)),
        }
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
