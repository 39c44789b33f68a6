//! Which certificates of a snapshot a rollback puts back: [`super::lineages`] judges, here is what it is given.

use super::TAR;
use super::certificates::{CertificateFacts, live};
use super::lineages::{Verdict, verdict};
use crate::base::cancel::Cancel;
use crate::policy::model::{App, SourcePolicy};
use crate::sources::SourceError;
use crate::sources::extract::Archive;
use crate::sources::placing::Stored;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

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
    let failed = |source: io::Error| SourceError::File { action: "read", path: TAR.into(), source };
    let mut archive = Archive::new(stored.streams.open(TAR).map_err(failed)?);
    let mut listed: Vec<PathBuf> = Vec::new();
    while let Some(member) = archive.next_member().map_err(|e| crate::sources::trees::extract_error(e.into()))? {
        listed.push(Path::new("/").join(OsStr::from_bytes(&member.entry.path)));
    }
    Ok(verdict(&today, &captured, &listed, now))
}
