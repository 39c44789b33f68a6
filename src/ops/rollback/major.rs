//! A database whose server comes back with another major version: a cluster of its own, filled from the dump, and the data
//! folder of today kept.

use crate::ops::transaction::plan::intent;
use crate::ops::transaction::{Aside, Stage, of_project};
use crate::ops::{OpsError, Run};
use crate::policy::model::{SourcePolicy, SourceSpec, Target};
use crate::repository::format::SourceEntry;
use crate::repository::reader::SnapshotReader;
use crate::sources::SourceError;
use crate::sources::placing::{Intent, Part};
use crate::sources::placings::locate;
use crate::sources::postgres::majors;

/// A database stays while its compose project comes back: a server of another major version would not start on its folder.
pub fn refuse_older(stage: &Stage<'_>, source: &SourceEntry, of_policy: &SourcePolicy) -> Result<(), OpsError> {
    match differs(stage, source, of_policy)? {
        None => Ok(()),
        Some((today, then)) => Err(OpsError::usage(
            format!(
                "the data of source {:?} stays, and its server is PostgreSQL {today} now and {then} in the snapshot, which would \
                 not start on the data folder of today",
                source.name.as_str()
            ),
            "return the data with the code, with --new-data-dir, or the checkout alone: --only SOURCE",
        )),
    }
}

/// The major versions of today and then of a server that the project runs, where they are not the same.
pub fn differs(
    stage: &Stage<'_>,
    source: &SourceEntry,
    of_policy: &SourcePolicy,
) -> Result<Option<(u32, u32)>, OpsError> {
    let SourceSpec::Postgres(spec) = &of_policy.spec else { return Ok(None) };
    if matches!(spec.target, Target::Host | Target::Url(_)) {
        return Ok(None);
    }
    // A server of somebody else's does not come back with this project.
    let found = stage.places.find(&spec.target).map_err(|e| stage.failed(&source.name, SourceError::Place(e)))?;
    let own = found.container.as_ref().map(|container| of_project(stage, container)).transpose()?;
    if own == Some(false) {
        return Ok(None);
    }
    let locate = locate(stage.policy, &stage.run.cancel);
    let majors = majors(of_policy, &locate, &source.facts, &stage.run.cancel);
    let (today, then) = majors.map_err(|e| stage.failed(&source.name, e))?;
    Ok((today != then).then_some((today, then)))
}

/// What goes aside, and what leaves with it.
pub struct Moved {
    pub aside: Aside,
    /// Of the live server, where that can be told: only its losses and its room count.
    pub leaving: Option<Intent>,
    pub why: String,
}

/// Looks whether a source needs a cluster of its own, and can have one.
pub fn look(
    stage: &Stage<'_>,
    reader: &SnapshotReader,
    source: &SourceEntry,
    of_policy: &SourcePolicy,
    (part, id): (&Part, &str),
    run: &Run,
) -> Result<Option<Moved>, OpsError> {
    let (SourceSpec::Postgres(spec), Some((today, then))) = (&of_policy.spec, differs(stage, source, of_policy)?)
    else {
        return Ok(None);
    };
    let found = stage.places.find(&spec.target);
    let found = found.map_err(|e| stage.failed(&source.name, SourceError::Place(e)))?;
    let Some(container) = found.container else { return Ok(None) };
    let aside = Aside::find(stage, &container, &source.name, id)?;
    let why = format!("PostgreSQL {then} then and {today} now; {}", aside.line());
    // The server of today can tell what is in it as long as it reads the dump.
    let here = Part { same_major: false, ..part.clone() };
    let leaving = intent(stage, reader, source, of_policy, &here, run).ok();
    Ok(Some(Moved { aside, leaving, why }))
}
