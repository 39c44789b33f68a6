//! `probe`: what the server of an S3 repository really does, asked with scratch objects; what was found is kept in the
//! state folder, and used by every later run. A server that is not safe to store in is refused. Providers change their
//! servers, so what was found holds for a week: then whoever is about to write asks again ([`refresh`]).

use crate::base::atomic::{self, IfExists};
use crate::base::time::rfc3339;
use crate::ops::storage::{StorageOptions, s3_settings};
use crate::ops::{OpsError, Run};
use crate::policy::model::{Repository, RepositoryUrl};
use crate::repository::RepositoryError;
use crate::storage::S3Storage;
use crate::storage::s3::probe::ServerProbe;
use crate::storage::s3::settings::ServerTraits;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// How long what was found holds.
const HOLDS: TimeDelta = TimeDelta::days(7);

/// What a probe found, and when.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProbeReport {
    pub repository: String,
    pub endpoint: Option<String>,
    pub time: String,
    #[serde(flatten)]
    pub found: ServerProbe,
}

/// Probes the server of a repository and remembers what it does; nothing for a folder.
pub fn probe(state_dir: &Path, repository: &Repository, run: &Run) -> Result<Option<ProbeReport>, OpsError> {
    let RepositoryUrl::S3 { bucket, prefix } = &repository.url else { return Ok(None) };
    run.events.step(format!("trying what the server of {} does", repository.url));
    let settings = s3_settings(bucket, prefix, &StorageOptions::of(repository));
    let storage = S3Storage::new(&settings).map_err(RepositoryError::from)?;
    let found = storage.probe(repository.reach.object_lock.is_some()).map_err(RepositoryError::from)?;
    run.cancel.check()?;
    if !found.unsafe_because.is_empty() {
        return Err(OpsError::failed(
            format!("{} is not safe to store in: {}", repository.url, found.unsafe_because.join("; ")),
            "choose another server or bucket, or leave out what it cannot do",
        ));
    }
    let report = ProbeReport {
        repository: repository.url.to_string(),
        endpoint: repository.reach.endpoint.clone(),
        time: rfc3339(run.now),
        found,
    };
    let path = note(state_dir, &report.repository, report.endpoint.as_deref());
    let text = serde_json::to_vec_pretty(&report).map_err(|e| OpsError::file("write", &path, e.into()))?;
    atomic::create_private_dir(state_dir).map_err(|e| OpsError::file("create folder", state_dir, e))?;
    atomic::write(&path, &text, 0o600, IfExists::Replace).map_err(|e| OpsError::file("write", &path, e))?;
    Ok(Some(report))
}

/// Probes anew where the last probe of this host is older than a week, or there was none. In between it costs nothing.
pub fn refresh(state_dir: &Path, repository: &Repository, run: &Run) -> Result<Option<ProbeReport>, OpsError> {
    if matches!(repository.url, RepositoryUrl::Local(_)) {
        return Ok(None);
    }
    let last = last(state_dir, &repository.url, repository.reach.endpoint.as_deref());
    let age = last.and_then(|report| Some(run.now - report.time.parse::<DateTime<Utc>>().ok()?));
    // One of the future was made by a clock that is not to be believed.
    if age.is_some_and(|age| age >= TimeDelta::zero() && age < HOLDS) {
        return Ok(None);
    }
    probe(state_dir, repository, run)
}

fn last(state_dir: &Path, url: &RepositoryUrl, endpoint: Option<&str>) -> Option<ProbeReport> {
    let bytes = std::fs::read(note(state_dir, &url.to_string(), endpoint)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// What an earlier probe found; nothing is assumed of a server that was never asked.
pub fn known(state_dir: &Path, url: &RepositoryUrl, endpoint: Option<&str>) -> ServerTraits {
    let report = last(state_dir, url, endpoint);
    report.map_or_else(ServerTraits::default, |report| report.found.server)
}

/// One note per place: the same bucket name at another server is another place.
fn note(state_dir: &Path, url: &str, endpoint: Option<&str>) -> PathBuf {
    let place = format!("{url}\n{}", endpoint.unwrap_or_default());
    let id = hex::encode(&Sha256::digest(place)[..8]);
    state_dir.join(format!("probe-{id}.json"))
}
