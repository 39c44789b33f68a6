//! Where a copy lies, and whether a copy of this repository may be there.

use crate::ops::OpsError;
use crate::ops::copy::stock::Stock;
use crate::ops::storage::{StorageOptions, open_storage};
use crate::pipeline::limits;
use crate::policy::model::{CopyTo, Repository as RepositoryPolicy, RepositoryUrl};
use crate::repository::trust::Pin;
use crate::repository::{Repository, RepositoryError, layout};
use crate::storage::Storage;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The storage of a copy, open.
#[derive(Clone)]
pub struct Target {
    pub url: RepositoryUrl,
    pub storage: Arc<dyn Storage>,
}

impl Target {
    /// Opens the storage of a copy of the repository at `source`. One may not lie within the other.
    pub fn open(
        source: Option<&RepositoryUrl>,
        url: &RepositoryUrl,
        options: &StorageOptions,
    ) -> Result<Self, OpsError> {
        if source.is_some_and(|source| is_within(source, url) || is_within(url, source)) {
            return Err(OpsError::usage(
                format!("{url} is the repository itself, or one lies within the other"),
                "a copy needs a place of its own, best on another machine",
            ));
        }
        Ok(Self { url: url.clone(), storage: open_storage(url, options)? })
    }
}

/// How a copy is reached: as the repository itself is, unless the policy says something else of it.
pub fn options(repository: &RepositoryPolicy, copy: &CopyTo) -> StorageOptions {
    let as_repository = StorageOptions::of(repository);
    match &copy.reach {
        None => as_repository,
        Some(reach) => StorageOptions { reach: reach.clone(), ..as_repository },
    }
}

fn is_within(inner: &RepositoryUrl, outer: &RepositoryUrl) -> bool {
    match (inner, outer) {
        (RepositoryUrl::Local(inner), RepositoryUrl::Local(outer)) => real(inner).starts_with(real(outer)),
        (RepositoryUrl::S3 { bucket: a, prefix: inner }, RepositoryUrl::S3 { bucket: b, prefix: outer }) => {
            // Buckets of one name at two providers are rare, and a prefix tells them apart.
            a == b && Path::new(inner).starts_with(outer)
        }
        _ => false,
    }
}

/// Without symlinks, as far as the folders are there already.
fn real(path: &Path) -> PathBuf {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(real), _, _) => real,
        (Err(_), Some(parent), Some(name)) => real(parent).join(name),
        _ => path.to_owned(),
    }
}

/// Whether a copy has yet to be begun; an error when what lies there is none of this repository.
pub(super) fn is_new(source: &Repository, target: &Arc<dyn Storage>, stock: &Stock) -> Result<bool, OpsError> {
    let location = target.describe();
    if !stock.has_repository {
        return match &stock.first {
            None => Ok(true),
            Some(object) => Err(OpsError::usage(
                format!("{location} is not empty: it holds {object}, and no {}", layout::REPOSITORY),
                "a copy goes to an empty place, or on where a copy of this repository lies",
            )),
        };
    }
    let there = match Repository::open(target.clone(), &Pin::Exactly(source.id().clone())) {
        Ok(there) => there,
        Err(RepositoryError::ForeignRepository { found, .. }) => {
            return Err(OpsError::usage(
                format!("another repository lies at {location}: {found}, and this one is {}", source.id()),
                "a copy keeps the repository's id, signers and bytes; for other recipients or keys make a repository \
                 of its own with `lifeboat init`, and take snapshots to it",
            ));
        }
        Err(e) => return Err(e.into()),
    };
    let key = layout::repository();
    if source.get(&key, limits::SIGNED)? != there.get(&key, limits::SIGNED)? {
        return Err(OpsError::usage(
            format!("the repository at {location} has the same root key and was created by itself"),
            "it holds snapshots of its own; name an empty place",
        ));
    }
    // Fewer signers here than there mean that one, perhaps a revocation, is being hidden here.
    if let Some((number, hash)) = there.last_signer() {
        source.check_signers(number, hash)?;
    }
    Ok(false)
}
