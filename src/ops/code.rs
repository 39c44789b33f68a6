//! Names on the live application's code: a git tag on request, and what snapshots keep there, let go with them.

use crate::base::ids::{SnapshotId, Tag};
use crate::ops::{OpsError, Run};
use crate::policy::Policy;
use crate::policy::model::SourceSpec;
use crate::repository::chain::full_text;
use crate::sources::project::Places;
use crate::sources::{SourceError, compose, git};

/// Refuses tags that cannot stand at the commit that is checked out; changes nothing.
pub fn check_tags(policy: &Policy, tags: &[Tag], run: &Run) -> Result<(), OpsError> {
    tags.iter().try_for_each(|tag| git::tag_stands(&policy.app.root, tag, &run.cancel).map(drop)).map_err(failed)
}

/// Gives that commit these tags. None is moved; all are looked at before the first is made.
pub fn tag(policy: &Policy, tags: &[Tag], run: &Run) -> Result<(), OpsError> {
    check_tags(policy, tags, run)?;
    tags.iter().try_for_each(|tag| git::tag(&policy.app.root, tag, &run.cancel)).map_err(failed)
}

fn failed(error: SourceError) -> OpsError {
    match error {
        SourceError::Cancelled(e) => e.into(),
        source => OpsError::Source { name: "git".into(), source },
    }
}

/// Lets go what these snapshots kept on this host: the names of their commits and the pins of their images. What goes
/// wrong costs room and nothing else, so it is told, not returned.
pub fn release(policy: &Policy, gone: &[SnapshotId], run: &Run) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |what: &str, e: &dyn std::error::Error| notes.push(format!("{what}: {}", full_text(e)));
    if gone.is_empty() {
        return notes;
    }
    let has = |wanted: fn(&SourceSpec) -> bool| policy.sources.iter().any(|s| wanted(&s.spec));
    if has(|s| matches!(s, SourceSpec::Git(_)))
        && let Err(e) = git::release(&policy.app.root, &policy.app.name, gone, &run.cancel)
    {
        note("the names of commits of snapshots that are removed are left in the git repository", &e);
    }
    if has(|s| matches!(s, SourceSpec::Compose(_))) {
        // Without an engine there is nothing that could be pinned.
        if let Ok(docker) = Places::new(&policy.app, &run.cancel).docker()
            && let Err(e) = compose::unpin_all(&docker, &policy.app.name, gone)
        {
            note("pins of images of snapshots that are removed are left", &e);
        }
    }
    notes
}
