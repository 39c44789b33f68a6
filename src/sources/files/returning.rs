//! Which certificates of a snapshot a rollback puts back: [`super::lineages`] judges, here is what it is given.

use super::certificates::{CertificateFacts, live};
use super::lineages::{Verdict, verdict};
use crate::base::cancel::Cancel;
use crate::policy::model::{App, SourcePolicy};
use crate::sources::SourceError;
use crate::sources::placing::Stored;
use chrono::{DateTime, Utc};
use serde::Deserialize;

/// The verdict on every lineage of both sides.
pub fn certificates(
    policy: &SourcePolicy,
    app: &App,
    stored: &Stored<'_>,
    cancel: &Cancel,
    now: DateTime<Utc>,
) -> Result<Vec<Verdict>, SourceError> {
    let captured = CertificateFacts::deserialize(stored.facts)
        .map_err(|e| SourceError::problem(format!("the snapshot's facts cannot be read: {e}")))?;
    let today = live(policy, app, cancel, now)?;
    let listed = crate::sources::trees::listed(stored.streams)?;
    Ok(verdict(&today, &captured, &listed, now))
}
