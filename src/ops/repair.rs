//! `repair index`: index objects made anew from the archives that signed snapshots name.
//!
//! Nothing is deleted or replaced. The new objects are taken up by the next snapshot of this host, which then finds its
//! duplicates again. Older snapshots keep naming the objects that they named: readers find what those would have told
//! in the archives themselves, only slower.

use crate::ops::access::{Access, AccessRequest, Installation};
use crate::ops::{OpsError, Run};
use crate::pipeline::crypt::Recipients;
use crate::policy::Policy;
use crate::repository::chain::full_text;
use crate::repository::keys::HostKey;
use crate::repository::state::State;
use crate::repository::{RepositoryError, rebuild};
use serde::Serialize;

/// What a repair did.
#[derive(Debug, Clone, Serialize)]
pub struct RepairReport {
    pub archives: usize,
    pub chunks: usize,
    pub index_objects: usize,
    /// What could not be read, and why. `verify` says what that costs.
    pub problems: Vec<String>,
}

/// Rebuilds the index of this host's snapshots. Needs the identity.
pub fn repair_index(installation: &Installation, policy: &Policy, run: &Run) -> Result<RepairReport, OpsError> {
    let host_key = HostKey::load(&installation.host_key())?;
    let request = AccessRequest { policy: Some(policy.clone()), ..AccessRequest::default() };
    let access = Access::open(installation, &request)?;
    let identities = access.identities("repairing the index")?;
    let recipients = Recipients::parse(&policy.repository.recipients).map_err(RepositoryError::from)?;
    let state = State::open(&installation.state_dir)?;
    run.events.step("reading every archive of this host's snapshots");
    let (repository, chain) = (&access.repository, &access.chain);
    let rebuilt = rebuild::rebuild(repository, chain, &identities, &host_key, &recipients, &state, &run.cancel)?;
    Ok(RepairReport {
        archives: rebuilt.archives,
        chunks: rebuilt.chunks,
        index_objects: rebuilt.index_objects,
        problems: rebuilt.problems.iter().map(|e| full_text(e)).collect(),
    })
}
