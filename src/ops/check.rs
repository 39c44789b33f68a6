//! `policy check --live`: whether everything that a policy names is within reach now. Changes nothing but the note of
//! proved recipients.

use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::ops::access::{Access, AccessRequest, Installation, host_name};
use crate::ops::setup::{Proof, prove};
use crate::ops::{OpsError, Run, probe as server};
use crate::policy::Policy;
use crate::policy::model::RepositoryUrl;
use crate::repository::chain::full_text;
use crate::repository::keys::HostKey;
use crate::sources::{Source, SourceError, build};
use serde::Serialize;

/// One thing that was tried.
#[derive(Debug, Serialize)]
pub struct Probe {
    pub ok: bool,
    pub error: Option<String>,
    pub hint: Option<String>,
}

impl Probe {
    fn of(result: Result<(), OpsError>) -> Self {
        match result {
            Ok(()) => Self { ok: true, error: None, hint: None },
            Err(e) => Self { ok: false, error: Some(full_text(&e)), hint: e.hint() },
        }
    }
}

#[derive(Debug, Serialize)]
pub struct SourceProbe {
    pub name: SourceName,
    pub kind: &'static str,
    pub what: String,
    pub optional: bool,
    #[serde(flatten)]
    pub probe: Probe,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct LiveReport {
    pub repository: Probe,
    pub sources: Vec<SourceProbe>,
    pub recipients: Vec<Proof>,
}

impl LiveReport {
    /// Whether a snapshot would be complete.
    pub fn ok(&self) -> bool {
        self.repository.ok && self.sources.iter().all(|s| s.probe.ok || s.optional)
    }
}

/// Tries the repository, every source and every recipient.
pub fn live(
    installation: &Installation,
    policy: &Policy,
    sources: &[Box<dyn Source>],
    request: &AccessRequest,
    run: &Run,
) -> Result<LiveReport, OpsError> {
    let request = AccessRequest { policy: Some(policy.clone()), ..request.clone() };
    let access = Access::open(installation, &request);
    let identities = access.as_ref().ok().and_then(|a| a.identities.clone());
    let repository = Probe::of(access.and_then(|access| {
        can_write(installation, policy, &access)?;
        server::probe(&installation.state_dir, &policy.repository, run).map(|_| ())
    }));
    let recipients = prove(&installation.state_dir, &policy.repository.recipients, identities.as_deref())?;
    let mut probes = Vec::new();
    for source in sources {
        run.events.step(format!("trying {}", source.name()));
        probes.push(probe(source.as_ref(), policy, &run.cancel)?);
    }
    Ok(LiveReport { repository, sources: probes, recipients })
}

pub(in crate::ops) fn probe(source: &dyn Source, policy: &Policy, cancel: &Cancel) -> Result<SourceProbe, OpsError> {
    cancel.check()?;
    let name = source.name();
    let result = match source.probe(cancel) {
        Err(SourceError::Cancelled(e)) => return Err(e.into()),
        Err(source) => Err(OpsError::Source { name: name.to_string(), source }),
        Ok(()) => Ok(()),
    };
    Ok(SourceProbe {
        name: name.clone(),
        kind: source.kind(),
        what: source.describe(),
        optional: policy.sources.iter().any(|s| s.name == *name && s.optional),
        probe: Probe::of(result),
    })
}

/// Whether this host may write snapshots there: its key is vouched for, and the folder takes files.
pub(in crate::ops) fn can_write(installation: &Installation, policy: &Policy, access: &Access) -> Result<(), OpsError> {
    let key = HostKey::load(&installation.host_key())?;
    let host = host_name()?;
    if !access.repository.signs_for(&key.signing.public(), &host) {
        return Err(OpsError::failed(
            format!("the repository {} does not know the key of host {host}", policy.repository.url),
            "run `lifeboat init` for this host with the identity at hand",
        ));
    }
    if let RepositoryUrl::Local(path) = &policy.repository.url {
        rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
            .map_err(|e| OpsError::file("write to", path, e.into()))?;
    }
    Ok(())
}

/// The sources of a policy, ready to be tried or captured.
pub fn sources(installation: &Installation, policy: &Policy, cancel: &Cancel) -> Vec<Box<dyn Source>> {
    build(policy, &installation.state_dir, cancel)
}
