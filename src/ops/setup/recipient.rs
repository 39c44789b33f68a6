//! One more who can open what is stored from now on: the policy's list, changed where it stands.

use super::proof::{Proof, prove};
use crate::base::atomic::{self, IfExists};
use crate::ops::OpsError;
use crate::ops::access::Installation;
use crate::pipeline::crypt::Recipients;
use crate::policy::{self, Policy, edit};
use crate::repository::RepositoryError;
use crate::repository::keys::IdentityFile;
use serde::Serialize;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

/// A policy's recipients after one was added.
#[derive(Debug, Serialize)]
pub struct RecipientReport {
    pub policy: String,
    pub policy_file: PathBuf,
    pub added: String,
    /// All of them, and which an identity has opened something for.
    pub recipients: Vec<Proof>,
}

/// Adds a recipient to a policy. With its identity at hand it is proved at once.
pub fn add_recipient(
    installation: &Installation,
    policy: &Policy,
    recipient: &str,
    identity: Option<&Path>,
) -> Result<RecipientReport, OpsError> {
    let added = Recipients::parse(&[recipient]).map_err(RepositoryError::from)?.texts().first().cloned();
    let added = added.ok_or_else(|| OpsError::usage("no recipient is named", "age1… or \"ssh-ed25519 …\""))?;
    let known = Recipients::parse(&policy.repository.recipients).map_err(RepositoryError::from)?;
    if known.texts().contains(&added) {
        return Err(OpsError::usage(
            format!("{added} is a recipient of {} already", policy.app.name),
            "nothing was changed",
        ));
    }
    // Read before anything is changed.
    let identities = identity.map(IdentityFile::load).transpose()?.map(|file| file.identities);
    let by_hand = || {
        OpsError::failed(
            format!("the recipients of {} are written in a way that is not changed by itself", policy.file.display()),
            format!("write {added:?} into recipients in [repository]"),
        )
    };
    let text = edit::with_recipient(&policy.text, &added).ok_or_else(by_hand)?;
    let changed = policy::parse(&policy.file, &text).map_err(|_| by_hand())?;
    let mut expected = policy.clone();
    expected.repository.recipients.push(added.clone());
    if changed != expected {
        return Err(by_hand());
    }
    write(&policy.file, &text)?;
    let recipients = prove(&installation.state_dir, &changed.repository.recipients, identities.as_ref())?;
    Ok(RecipientReport { policy: policy.app.name.to_string(), policy_file: policy.file.clone(), added, recipients })
}

/// In the place of the old one, as that was.
fn write(file: &Path, text: &str) -> Result<(), OpsError> {
    let of = |action: &'static str| move |e| OpsError::file(action, file, e);
    let meta = std::fs::metadata(file).map_err(of("look at"))?;
    // A link goes on leading to the same file.
    let file = std::fs::canonicalize(file).map_err(of("find"))?;
    atomic::write(&file, text.as_bytes(), meta.mode() & 0o777, IfExists::Replace).map_err(of("write"))?;
    let now = std::fs::metadata(&file).map_err(of("look at"))?;
    if (now.uid(), now.gid()) != (meta.uid(), meta.gid()) {
        chown(&file, Some(meta.uid()), Some(meta.gid())).map_err(of("change the owner of"))?;
    }
    Ok(())
}
