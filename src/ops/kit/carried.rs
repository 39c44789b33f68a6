//! The identity on the page itself, where somebody asked for that: as it is, or under a passphrase.

use crate::base::secret::Secret;
use crate::ops::OpsError;
use crate::pipeline::crypt;
use crate::repository::RepositoryError;
use crate::repository::keys::IdentityFile;
use std::path::Path;

/// More would not be readable from a printed code.
const MOST: usize = 1200;

/// What a page carries of the identity.
pub enum Carried {
    Nothing,
    /// The identity's own text: whoever has the page reads every snapshot.
    Plain(Secret<String>),
    /// An age file in text form that the passphrase opens.
    Sealed(String),
}

impl Carried {
    /// For documents.
    pub fn word(&self) -> &'static str {
        match self {
            Carried::Nothing => "nothing",
            Carried::Plain(_) => "identity",
            Carried::Sealed(_) => "sealed identity",
        }
    }
}

/// Reads the identity for a page; with a passphrase file, whose first line is the passphrase, it is sealed with that.
pub fn carried(identity: &Path, passphrase: Option<&Path>) -> Result<Carried, OpsError> {
    // It must be one, and this account's alone.
    IdentityFile::load(identity)?;
    let text = std::fs::read_to_string(identity).map_err(|e| OpsError::file("read", identity, e))?;
    let text = Secret::new(essence(&Secret::new(text)));
    if text.expose().len() > MOST {
        return Err(OpsError::usage(
            format!("{} is too long for a page", identity.display()),
            "leave --with-identity out, and write on the page where it is kept",
        ));
    }
    let Some(path) = passphrase else { return Ok(Carried::Plain(text)) };
    let read = std::fs::read_to_string(path).map_err(|e| OpsError::file("read", path, e))?;
    let read = Secret::new(read);
    let phrase = Secret::new(read.expose().lines().next().unwrap_or_default().to_owned());
    if phrase.expose().chars().count() < 12 {
        return Err(OpsError::usage(
            "the passphrase has fewer than 12 characters",
            "the page may lie where others look: take five random words",
        ));
    }
    let sealed = crypt::seal_with_passphrase(text.expose().as_bytes(), &phrase);
    Ok(Carried::Sealed(sealed.map_err(RepositoryError::from)?))
}

/// Without the comments that only explain; which repository it belongs to must stay.
fn essence(text: &Secret<String>) -> String {
    let wanted = |line: &&str| !line.trim().is_empty() && (!line.starts_with('#') || line.starts_with("# repository:"));
    text.expose().lines().filter(wanted).map(|line| format!("{line}\n")).collect()
}
