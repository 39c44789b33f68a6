//! A host's key gets a role when the root key, which only the identity gives, vouches for it: once, by the first
//! operation that needs the role.

use crate::base::ids::HostName;
use crate::ops::access::{Access, AccessRequest, Installation, load_identity};
use crate::ops::{OpsError, Run};
use crate::repository::Repository;
use crate::repository::format::{Role, SignerAction};
use crate::repository::keys::HostKey;
use crate::repository::trust::Pin;
use std::sync::Arc;

/// The repository in which this host's key has a role for a host's snapshots: the root key vouches for it when it is at
/// hand.
pub(super) fn signer(
    installation: &Installation,
    access: &Access,
    host_key: &HostKey,
    request: &AccessRequest,
    (role, host): (Role, &HostName),
    run: &Run,
) -> Result<Arc<Repository>, OpsError> {
    let (repository, key) = (&access.repository, host_key.signing.public());
    let (has, does) = match role {
        Role::Prune => (repository.prunes_for(&key, host), format!("remove snapshots of {host}")),
        Role::Drill => (repository.drills_for(&key, host), format!("sign drills of {host}")),
        Role::Snapshot => (repository.signs_for(&key, host), format!("sign snapshots of {host}")),
    };
    if has {
        return Ok(repository.clone());
    }
    let identity = load_identity(installation, request)?;
    let root = identity.and_then(|file| file.root_key_of(repository.id())).ok_or_else(|| OpsError::Failed {
        problem: format!("this host's key may not {does}"),
        hint: Some(
            "run it once with the identity at hand (--identity FILE), so that the root key vouches for this; or do it \
             on a machine that may"
                .to_owned(),
        ),
    })?;
    run.events.step(format!("vouching for this host's key to {does}"));
    let mut own = Repository::open(repository.storage().clone(), &Pin::Exactly(repository.id().clone()))?;
    let action = SignerAction::Add { role, hosts: vec![host.clone()] };
    own.add_signer(&root, &key, action, run.now)?;
    if let (Some(state), Some((number, hash))) = (&access.state, own.last_signer()) {
        state.set_signer(own.id(), number, hash)?;
    }
    Ok(Arc::new(own))
}
