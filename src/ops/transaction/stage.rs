//! What the steps of one transaction share.

use super::plan::own_folder;
use crate::base::atomic;
use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::ops::access::Installation;
use crate::ops::{OpsError, Run};
use crate::policy::Policy;
use crate::policy::model::SourcePolicy;
use crate::sources::SourceError;
use crate::sources::placing::{Intent, Placing, Scene};
use crate::sources::placings::placing;
use crate::sources::project::Places;
use std::path::PathBuf;
use std::sync::Arc;

/// The stage of one transaction.
pub struct Stage<'a> {
    pub installation: &'a Installation,
    pub policy: &'a Policy,
    pub places: Arc<Places>,
    pub run: Run,
    pub folder: PathBuf,
    id: String,
}

impl<'a> Stage<'a> {
    pub fn new(installation: &'a Installation, policy: &'a Policy, id: &str, run: &Run) -> Self {
        Self {
            installation,
            policy,
            places: Arc::new(Places::new(&policy.app, &run.cancel)),
            run: run.clone(),
            folder: own_folder(installation, id),
            id: id.to_owned(),
        }
    }

    /// The same for going back, which no signal stops.
    pub fn unstoppable(&self) -> Self {
        let run = Run { cancel: Cancel::new(), ..self.run.clone() };
        Self::new(self.installation, self.policy, &self.id, &run)
    }

    pub fn scene<'s>(&'s self, name: &'s SourceName) -> Scene<'s> {
        Scene {
            id: &self.id,
            name,
            policy: self.policy,
            places: &self.places,
            folder: &self.folder,
            events: &self.run.events,
            cancel: &self.run.cancel,
            now: self.run.now,
        }
    }

    pub fn placing(&self, source: &SourcePolicy) -> Result<Box<dyn Placing>, SourceError> {
        placing(self.policy, source, &self.installation.state_dir, &self.run.cancel)
    }

    /// The source that an intent is of, as the policy has it now.
    pub fn placing_of(&self, intent: &Intent) -> Result<Box<dyn Placing>, OpsError> {
        self.placing_named(&intent.source, &intent.kind)
    }

    pub fn placing_named(&self, name: &SourceName, kind: &str) -> Result<Box<dyn Placing>, OpsError> {
        let found = self.policy.sources.iter().find(|s| s.name == *name && s.spec.kind() == kind);
        let source = found.ok_or_else(|| {
            OpsError::failed(
                format!("the policy has no source {:?} of kind {kind} any more", name.as_str()),
                "put it back into the policy for as long as this takes",
            )
        })?;
        self.placing(source).map_err(|e| self.failed(name, e))
    }

    pub fn failed(&self, name: &SourceName, source: SourceError) -> OpsError {
        match source {
            SourceError::Cancelled(e) => e.into(),
            source => OpsError::Source { name: name.to_string(), source },
        }
    }

    /// Makes the transaction's own folder.
    pub fn make_folder(&self) -> Result<(), OpsError> {
        atomic::create_private_dir(&self.folder).map_err(|e| OpsError::file("create folder", &self.folder, e))
    }

    /// Removes it, with what a step may have left in it.
    pub fn remove_folder(&self) -> Result<(), OpsError> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(OpsError::file("remove", &self.folder, e)),
            _ => Ok(()),
        }
    }
}
