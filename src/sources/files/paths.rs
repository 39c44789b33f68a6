//! The source `files`: paths of this host.

use super::docker::{Trees, capture_through_docker};
use super::notes::Notes;
use super::owners::Owners;
use super::plan::Plan;
use super::tree::Tree;
use super::view::Host;
use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::policy::model::{App, FilesSpec, SourcePolicy, Via};
use crate::sources::{Capture, Captured, Source, SourceError};
use serde_json::json;
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

/// Named paths and what is below them.
pub struct FilesSource {
    name: SourceName,
    spec: FilesSpec,
    never: HashSet<PathBuf>,
    app: App,
    limit: Duration,
}

impl FilesSource {
    /// `never`: paths that are left out wherever they lie, such as the repository.
    pub fn new(policy: &SourcePolicy, spec: &FilesSpec, app: &App, never: impl IntoIterator<Item = PathBuf>) -> Self {
        FilesSource {
            name: policy.name.clone(),
            spec: spec.clone(),
            never: never.into_iter().collect(),
            app: app.clone(),
            limit: policy.timeout,
        }
    }

    fn plan(&self, notes: &mut Notes) -> Result<Plan, SourceError> {
        let mut plan = Plan::host(&self.spec.exclude);
        plan.add_all(&Host, &self.spec.paths, notes)?;
        Ok(plan)
    }
}

impl Source for FilesSource {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "files"
    }

    fn describe(&self) -> String {
        let through = if self.spec.via == Via::Docker { " (through docker)" } else { "" };
        format!("{}{through}", self.spec.paths.join(", "))
    }

    fn probe(&self, cancel: &Cancel) -> Result<(), SourceError> {
        cancel.check()?;
        match self.spec.via {
            Via::Direct => self.plan(&mut Notes::default()).map(|_| ()),
            Via::Docker => Trees::new(&self.app, cancel).probe(&self.spec.paths),
        }
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        let mut notes = Notes::default();
        let owners = Owners::host();
        let (totals, named) = match self.spec.via {
            Via::Direct => {
                let plan = self.plan(&mut notes)?;
                let tree = Tree {
                    source: &self.name,
                    limit: self.limit,
                    owners: &owners,
                    one_file_system: self.spec.one_file_system,
                    never: &self.never,
                };
                (tree.capture(cx, &plan, true, &mut notes, &mut |_, _| {})?, plan.named)
            }
            Via::Docker => capture_through_docker(
                cx,
                &self.name,
                self.limit,
                &Trees::new(&self.app, cx.cancel),
                &self.spec.paths,
                &self.spec.exclude,
                &mut notes,
                &mut |_, _| {},
            )?,
        };
        let facts = json!({ "paths": named, "entries": totals.entries, "bytes": totals.bytes });
        Ok(Captured { facts, warnings: notes.into_warnings() })
    }
}
