//! `keys rotate`: another key for this host, vouched for by the root key in the repository of every policy.
//!
//! Write order (must): the new key beside the old one → vouched for in every repository → put in the old one's place. A run
//! that was cut short is done again with the same new key; until its end the old one signs as ever. What the old key signed
//! stays believed: to rotate is not to revoke.

use super::keys::root_id;
use crate::base::ids::{HostName, RepositoryId};
use crate::base::time::compact;
use crate::ops::access::{Installation, host_name};
use crate::ops::storage::{StorageOptions, open_storage};
use crate::ops::{OpsError, Run};
use crate::pipeline::sign::{PublicKey, SigningKey};
use crate::policy::Policy;
use crate::repository::format::{Role, SignerAction};
use crate::repository::keys::{HostKey, IdentityFile};
use crate::repository::state::State;
use crate::repository::trust::Pin;
use crate::repository::{Repository, RepositoryError};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A host's new key.
#[derive(Debug, Serialize)]
pub struct RotateReport {
    pub host_key: PathBuf,
    /// Where the old key is now; null when there was none.
    pub replaced: Option<PathBuf>,
    pub signing_key: String,
    /// Where the root key has vouched for it.
    pub repositories: Vec<String>,
}

/// Makes the key, lets the root key vouch for it, and puts it in the old one's place.
pub fn rotate(
    installation: &Installation,
    policies: &[Policy],
    identity: Option<&Path>,
    run: &Run,
) -> Result<RotateReport, OpsError> {
    let (path, new_path) = (installation.host_key(), installation.config_dir.join("host.key.new"));
    let usual = Some(installation.identity()).filter(|path| path.exists());
    let of_policy = policies.iter().find_map(|p| p.repository.identity.clone().filter(|path| path.exists()));
    let identity = identity.map(Path::to_owned).or(of_policy).or(usual);
    let identity = identity.ok_or(OpsError::NoIdentity { what: "vouching for a new host key" })?;
    let file = IdentityFile::load(&identity)?;
    // One that cannot be looked at is not lost.
    let is_there = path.try_exists().map_err(|e| OpsError::file("look at", &path, e))?;
    let old = is_there.then(|| HostKey::load(&path)).transpose()?;
    let id = match old.as_ref().and_then(|key| key.repository.clone()) {
        Some(id) => id,
        None => root_id(&file, &identity)?,
    };
    let root = file.root_key_of(&id).ok_or_else(|| {
        OpsError::usage(
            format!("the root key of repository {id} is not in {}", identity.display()),
            "name the identity that made the repository with --identity FILE",
        )
    })?;
    let new = if new_path.exists() { HostKey::load(&new_path)? } else { HostKey::create(&new_path, Some(id.clone()))? };
    let vouching =
        Vouching { id, root, key: new.signing.public(), old: old.map(|key| key.signing.public()), host: host_name()? };
    let state = State::open(&installation.state_dir)?;
    let mut repositories: Vec<String> = Vec::new();
    for policy in policies {
        run.cancel.check()?;
        let url = policy.repository.url.to_string();
        if !repositories.contains(&url) {
            vouching.vouch(installation, policy, &state, run)?;
            repositories.push(url);
        }
    }
    let replaced = is_there.then(|| path.with_file_name(format!("host.key.until-{}", compact(run.now))));
    if let Some(aside) = &replaced {
        std::fs::rename(&path, aside).map_err(|e| OpsError::file("move away", &path, e))?;
    }
    std::fs::rename(&new_path, &path).map_err(|e| OpsError::file("put in place", &new_path, e))?;
    crate::base::atomic::fsync_dir(&installation.config_dir)
        .map_err(|e| OpsError::file("write", &installation.config_dir, e))?;
    let signing_key = vouching.key.fingerprint().map_err(RepositoryError::from)?.to_string();
    Ok(RotateReport { host_key: path, replaced, signing_key, repositories })
}

struct Vouching {
    id: RepositoryId,
    root: SigningKey,
    key: PublicKey,
    old: Option<PublicKey>,
    host: HostName,
}

impl Vouching {
    fn vouch(&self, installation: &Installation, policy: &Policy, state: &State, run: &Run) -> Result<(), OpsError> {
        let url = &policy.repository.url;
        let options = StorageOptions::of(&policy.repository).knowing(&installation.state_dir, url);
        run.events.step(format!("vouching for the new key in {url}"));
        let mut repository = Repository::open(open_storage(url, &options)?, &Pin::Exactly(self.id.clone()))?;
        let host = &self.host;
        // What the old one could do; a key that is lost could do all of it.
        let roles = [
            (Role::Snapshot, true, repository.signs_for(&self.key, host)),
            (
                Role::Prune,
                self.old.as_ref().is_none_or(|o| repository.prunes_for(o, host)),
                repository.prunes_for(&self.key, host),
            ),
            (
                Role::Drill,
                self.old.as_ref().is_none_or(|o| repository.drills_for(o, host)),
                repository.drills_for(&self.key, host),
            ),
        ];
        for (role, _, _) in roles.into_iter().filter(|(_, wanted, has)| *wanted && !has) {
            let action = SignerAction::Add { role, hosts: vec![host.clone()] };
            repository.add_signer(&self.root, &self.key, action, run.now)?;
        }
        if let Some((number, hash)) = repository.last_signer() {
            state.set_signer(repository.id(), number, hash)?;
        }
        Ok(())
    }
}
