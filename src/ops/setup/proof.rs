//! Proof of possession: a recipient counts once an identity has opened something that was encrypted to it. A typing
//! error in a recipient would otherwise be found on the day that the backup is needed.

use crate::base::atomic::{self, IfExists};
use crate::base::ids::random_bytes;
use crate::ops::OpsError;
use crate::pipeline::crypt::{self, Identities, Recipients};
use crate::repository::RepositoryError;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Whether an identity at hand opens what is sealed to a recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proof {
    pub recipient: String,
    pub proved: bool,
}

/// Where this host remembers which recipients have been proved.
fn notebook(state_dir: &Path) -> PathBuf {
    state_dir.join("recipients-proved")
}

fn read(state_dir: &Path) -> Result<BTreeSet<String>, OpsError> {
    let path = notebook(state_dir);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(e) => Err(OpsError::file("read", path, e)),
    }
}

/// Seals a challenge to each recipient alone and lets the identities open it. What was proved before stays proved.
pub fn prove(state_dir: &Path, recipients: &[String], identities: Option<&Identities>) -> Result<Vec<Proof>, OpsError> {
    let mut known = read(state_dir)?;
    let before = known.len();
    let mut proofs = Vec::new();
    for recipient in Recipients::parse(recipients).map_err(RepositoryError::from)?.texts() {
        if let Some(identities) = identities
            && opens(recipient, identities)?
        {
            known.insert(recipient.clone());
        }
        proofs.push(Proof { recipient: recipient.clone(), proved: known.contains(recipient) });
    }
    if known.len() > before {
        let text: String = known.iter().map(|r| format!("{r}\n")).collect();
        atomic::create_private_dir(state_dir).map_err(|e| OpsError::file("create folder", state_dir, e))?;
        let path = notebook(state_dir);
        atomic::write(&path, text.as_bytes(), 0o600, IfExists::Replace)
            .map_err(|e| OpsError::file("write", path, e))?;
    }
    Ok(proofs)
}

fn opens(recipient: &str, identities: &Identities) -> Result<bool, OpsError> {
    let challenge: [u8; 32] =
        random_bytes().map_err(|e| OpsError::failed(format!("make a challenge: {e}"), "try again"))?;
    let alone = Recipients::parse(&[recipient]).map_err(RepositoryError::from)?;
    let sealed = crypt::seal(&challenge, 1, &alone).map_err(RepositoryError::from)?;
    Ok(crypt::open(sealed.bytes(), challenge.len(), identities).is_ok_and(|plain| plain == challenge))
}

/// The recipients that nobody has proved yet on this host.
pub fn unproved(state_dir: &Path, recipients: &[String]) -> Result<Vec<String>, OpsError> {
    let proofs = prove(state_dir, recipients, None)?;
    Ok(proofs.into_iter().filter(|p| !p.proved).map(|p| p.recipient).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::crypt::Identity;

    #[test]
    fn only_the_recipient_of_the_identity_is_proved_and_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let (mine, other) = (age::x25519::Identity::generate(), age::x25519::Identity::generate());
        let recipients = vec![mine.to_public().to_string(), other.to_public().to_string()];
        assert_eq!(unproved(&state, &recipients).unwrap(), recipients, "nothing is proved by itself");
        let identities = Identities::new(vec![Identity::X25519(mine)]);
        let proofs = prove(&state, &recipients, Some(&identities)).unwrap();
        assert_eq!(proofs.iter().map(|p| p.proved).collect::<Vec<_>>(), [true, false]);
        assert_eq!(unproved(&state, &recipients).unwrap(), recipients[1..]);
        let text = fs::read_to_string(notebook(&state)).unwrap();
        assert!(!text.contains("SECRET"), "{text}");
    }
}
