//! Identity and host key of an installation: made once, never overwritten.

use crate::base::ids::RepositoryId;
use crate::ops::access::Installation;
use crate::ops::{OpsError, Run};
use crate::repository::RepositoryError;
use crate::repository::keys::{HostKey, IdentityFile, root_key};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The keys of an installation; never a secret.
#[derive(Debug, Serialize)]
pub struct KeysReport {
    /// Absent on a sealed host.
    pub identity: Option<PathBuf>,
    pub identity_new: bool,
    pub host_key: PathBuf,
    pub host_key_new: bool,
    /// What the identity answers to.
    pub recipients: Vec<String>,
    pub repository_id: Option<RepositoryId>,
    /// Fingerprint of the key that signs this host's snapshots.
    pub signing_key: String,
}

/// The keys themselves.
pub(super) struct Keys {
    pub identity: Option<(PathBuf, IdentityFile)>,
    pub identity_new: bool,
    pub host_key: HostKey,
    pub host_key_new: bool,
}

/// The repository whose root key is this identity's.
pub(super) fn root_id(file: &IdentityFile, path: &Path) -> Result<RepositoryId, OpsError> {
    let first = file.first().ok_or_else(|| {
        OpsError::usage(format!("{} holds no key", path.display()), "name an age identity or an ssh-ed25519 key")
    })?;
    Ok(root_key(first)?.public().fingerprint().map_err(RepositoryError::from)?)
}

impl Keys {
    /// Loads what is there and makes what is missing. A host that has a host key and no identity is sealed, and stays
    /// so.
    pub(super) fn load_or_make(installation: &Installation, named: Option<&Path>, run: &Run) -> Result<Self, OpsError> {
        let host_key_path = installation.host_key();
        let usual = installation.identity();
        let mut identity_new = false;
        let identity = match named {
            Some(path) => {
                let absolute = std::path::absolute(path).map_err(|e| OpsError::file("find", path, e))?;
                Some((absolute, IdentityFile::load(path)?))
            }
            None if usual.exists() => Some((usual.clone(), IdentityFile::load(&usual)?)),
            None if host_key_path.exists() => None,
            None => {
                identity_new = true;
                Some((usual.clone(), IdentityFile::create(&usual, run.now)?))
            }
        };
        let host_key_new = !host_key_path.exists();
        let host_key = match &identity {
            Some((path, file)) if host_key_new => HostKey::create(&host_key_path, Some(root_id(file, path)?))?,
            _ => HostKey::load(&host_key_path)?,
        };
        if let (Some((path, file)), Some(id)) = (&identity, &host_key.repository)
            && file.root_key_of(id).is_none()
        {
            return Err(OpsError::usage(
                format!(
                    "the host key {} belongs to repository {id}, whose root key is not in {}",
                    host_key_path.display(),
                    path.display()
                ),
                "name the identity of that repository with --identity FILE; or move the host key away to begin anew",
            ));
        }
        Ok(Self { identity, identity_new, host_key, host_key_new })
    }

    pub(super) fn report(&self, installation: &Installation) -> Result<KeysReport, OpsError> {
        let mut repository_id = self.host_key.repository.clone();
        let mut recipients = Vec::new();
        if let Some((path, file)) = &self.identity {
            recipients = file.identities.iter().map(|identity| identity.recipient()).collect();
            if repository_id.is_none() {
                repository_id = Some(root_id(file, path)?);
            }
        }
        let signing = self.host_key.signing.public().fingerprint().map_err(RepositoryError::from)?;
        Ok(KeysReport {
            identity: self.identity.as_ref().map(|(path, _)| path.clone()),
            identity_new: self.identity_new,
            host_key: installation.host_key(),
            host_key_new: self.host_key_new,
            recipients,
            repository_id,
            signing_key: signing.to_string(),
        })
    }
}

/// `keys new`: refuses when both keys are there. With one of them there (a run that was cut short) it makes the other;
/// a host key alone is that of a sealed host, for which a new identity would be another repository's.
pub fn new(installation: &Installation, run: &Run) -> Result<KeysReport, OpsError> {
    let (identity, host_key) = (installation.identity(), installation.host_key());
    match (identity.exists(), host_key.exists()) {
        (true, true) => Err(OpsError::usage(
            format!("there are keys in {} already", installation.config_dir.display()),
            "they are left as they are: backups depend on them; `lifeboat keys show` shows them",
        )),
        (false, true) => Err(OpsError::usage(
            format!("this host is sealed: {} is there and its identity lies elsewhere", host_key.display()),
            format!(
                "copy the identity back to {} for a while; or move the host key away to begin anew",
                identity.display()
            ),
        )),
        _ => Keys::load_or_make(installation, None, run)?.report(installation),
    }
}

/// `keys show`: what is there.
pub fn show(installation: &Installation, named: Option<&Path>) -> Result<KeysReport, OpsError> {
    let usual = installation.identity();
    let path = named.map(Path::to_owned).or_else(|| usual.exists().then_some(usual));
    let identity = match path {
        Some(path) => Some((path.clone(), IdentityFile::load(&path)?)),
        None => None,
    };
    let host_key = HostKey::load(&installation.host_key())?;
    Keys { identity, identity_new: false, host_key, host_key_new: false }.report(installation)
}
