//! Which storage a repository's URL names, and how it is reached.

use crate::ops::{OpsError, probe};
use crate::policy::model::{Credentials, MinFree, Reach, Repository, RepositoryUrl};
use crate::repository::{RepositoryError, layout};
use crate::storage::local::Reserve;
use crate::storage::s3::credentials::CredentialSource;
use crate::storage::s3::lock::LockSettings;
use crate::storage::s3::probe::SCRATCH;
use crate::storage::s3::settings::{Pace, S3Settings, ServerTraits};
use crate::storage::{LocalStorage, S3Storage, Storage};
use chrono::TimeDelta;
use std::path::Path;
use std::sync::Arc;

/// How a storage is reached: what a policy's `[repository]` says beside the URL.
#[derive(Debug, Clone, PartialEq)]
pub struct StorageOptions {
    pub min_free: MinFree,
    pub reach: Reach,
    /// What is known of an S3 server.
    pub server: ServerTraits,
}

impl StorageOptions {
    /// As a policy has it.
    pub fn of(repository: &Repository) -> Self {
        Self { min_free: repository.min_free, reach: repository.reach.clone(), server: ServerTraits::default() }
    }

    /// Without a policy: what the environment says, and no reserve. Every server that is not AWS understands the path
    /// style, and AWS is never asked that way.
    pub fn stranger() -> Self {
        Self {
            min_free: MinFree::Bytes(0),
            reach: Reach {
                endpoint: None,
                region: None,
                credentials: Credentials::Default,
                path_style: true,
                limit_upload: None,
                object_lock: None,
            },
            server: ServerTraits::default(),
        }
    }

    /// With what an earlier probe found out about the server of this repository.
    pub fn knowing(self, state_dir: &Path, url: &RepositoryUrl) -> Self {
        Self { server: probe::known(state_dir, url, self.reach.endpoint.as_deref()), ..self }
    }
}

/// Whether so little is free above the reserve that somebody should know.
pub fn is_tight(free: u64, reserve: u64) -> bool {
    free / 2 < reserve
}

/// A folder as a storage.
pub fn local_storage(path: &Path, min_free: MinFree) -> LocalStorage {
    let reserve = match min_free {
        MinFree::Percent(p) => Reserve::Percent(p),
        MinFree::Bytes(b) => Reserve::Bytes(b),
    };
    LocalStorage::new(path, reserve)
}

/// The storage that a repository's URL names.
pub fn open_storage(url: &RepositoryUrl, options: &StorageOptions) -> Result<Arc<dyn Storage>, OpsError> {
    match url {
        RepositoryUrl::Local(path) => Ok(Arc::new(local_storage(path, options.min_free))),
        RepositoryUrl::S3 { bucket, prefix } => {
            let storage = S3Storage::new(&s3_settings(bucket, prefix, options)).map_err(RepositoryError::from)?;
            Ok(Arc::new(storage))
        }
    }
}

/// What the S3 client is told.
pub fn s3_settings(bucket: &str, prefix: &str, options: &StorageOptions) -> S3Settings {
    let reach = &options.reach;
    let credentials = match &reach.credentials {
        Credentials::Default => CredentialSource::Default,
        Credentials::Env => CredentialSource::Env,
        Credentials::Profile(name) => CredentialSource::Profile(name.clone()),
        Credentials::File(path) => CredentialSource::File(path.clone()),
    };
    S3Settings {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: reach.endpoint.clone(),
        region: reach.region.clone(),
        credentials,
        path_style: reach.path_style,
        limit_upload: reach.limit_upload,
        object_lock: reach.object_lock.and_then(|period| TimeDelta::from_std(period).ok()).map(|period| {
            LockSettings {
                period,
                // What a prune and a probe have dealt with must go away again.
                exempt: vec![layout::TRASH.to_owned(), SCRATCH.to_owned()],
            }
        }),
        server: options.server,
        pace: Pace::default(),
    }
}
