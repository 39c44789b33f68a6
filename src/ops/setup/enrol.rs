//! This host becomes one of a repository that is there: a key of its own, vouched for by the root key.

use super::init::open_or_create;
use super::keys::Keys;
use crate::ops::access::{Installation, host_name};
use crate::ops::{OpsError, Run};
use crate::policy::Policy;
use crate::repository::state::State;
use std::path::Path;

/// Whether the host's key was not known to the repository before.
pub fn enrol(installation: &Installation, policy: &Policy, identity: &Path, run: &Run) -> Result<bool, OpsError> {
    let keys = Keys::load_or_make(installation, Some(identity), run)?;
    let opened = open_or_create(installation, policy, &keys, &host_name()?, run)?;
    let state = State::open(&installation.state_dir)?;
    state.set_pin(&opened.repository.storage().describe(), opened.repository.id())?;
    Ok(opened.vouched)
}
