//! A policy's sources, ready to be put back.

use super::SourceError;
use super::command_placing::CommandPlacing;
use super::compose::ComposePlacing;
use super::git::GitPlacing;
use super::locate::{Locate, Located};
use super::placing::Placing;
use super::postgres::PostgresSource;
use super::project::Places;
use super::redis::RedisSource;
use super::trees::TreePlacing;
use crate::base::cancel::Cancel;
use crate::policy::Policy;
use crate::policy::model::{RepositoryUrl, SourcePolicy, SourceSpec};
use std::path::Path;
use std::sync::Arc;

/// How a source is put back; an error says why it cannot be. `state_dir` is never touched, and neither are the policy's
/// local repositories.
pub fn placing(
    policy: &Policy,
    source: &SourcePolicy,
    state_dir: &Path,
    cancel: &Cancel,
) -> Result<Box<dyn Placing>, SourceError> {
    let local = |url: &RepositoryUrl| match url {
        RepositoryUrl::Local(path) => Some(path.clone()),
        RepositoryUrl::S3 { .. } => None,
    };
    let urls = std::iter::once(&policy.repository.url).chain(policy.repository.copies.iter().map(|copy| &copy.url));
    let never = urls.filter_map(local).chain([state_dir.to_owned()]).collect();
    match &source.spec {
        SourceSpec::Files(_)
        | SourceSpec::Env(_)
        | SourceSpec::Certificates(_)
        | SourceSpec::Nginx(_)
        | SourceSpec::Volume(_) => Ok(Box::new(TreePlacing::new(&policy.app, source, never, cancel))),
        SourceSpec::Command(spec) => {
            Ok(Box::new(CommandPlacing::new(spec.clone(), source.timeout, locate(policy, cancel), &policy.app.root)))
        }
        SourceSpec::Redis(spec) => {
            let (name, spec) = (source.name.clone(), spec.clone());
            Ok(Box::new(RedisSource::new(name, spec, source.timeout, locate(policy, cancel))))
        }
        SourceSpec::Postgres(spec) => {
            let (name, spec) = (source.name.clone(), spec.clone());
            Ok(Box::new(PostgresSource::new(name, spec, source.timeout, locate(policy, cancel))))
        }
        SourceSpec::Compose(_) => Ok(Box::new(ComposePlacing::new(&policy.app, source, never, cancel))),
        SourceSpec::Git(_) => Ok(Box::new(GitPlacing::new(&policy.app, source))),
    }
}

/// Whether a restore in place passes a source of this kind over: it belongs to the code.
pub fn is_code(spec: &SourceSpec) -> bool {
    matches!(spec, SourceSpec::Git(_) | SourceSpec::Compose(_))
}

/// How a policy's servers are found.
pub fn locate(policy: &Policy, cancel: &Cancel) -> Locate {
    let places = Arc::new(Places::new(&policy.app, cancel));
    Arc::new(move |target| {
        let found = places.find(target)?;
        let env = found.container.map(|c| c.env.into_iter().collect()).unwrap_or_default();
        Ok(Located { place: found.place, env })
    })
}
