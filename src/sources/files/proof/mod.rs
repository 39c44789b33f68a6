//! Proving what files mean: env files, certificates, nginx; and plain trees byte by byte.
//!
//! What is held against the facts is what was restored, read by the very code that wrote the facts.

mod certificates;
mod env;
mod files;
mod inside;
mod nginx;
mod nginx_container;
mod nginx_host;
mod nginx_read;
mod stage;

pub use certificates::CertificatesProof;
pub use env::EnvProof;
pub use files::FilesProof;
pub(in crate::sources) use inside::{Item, Restored};
pub use nginx::NginxProof;

use crate::sources::SourceError;
use crate::sources::proof::{Check, Trial};

use serde::de::DeserializeOwned;
use std::path::Path;

/// The facts of a source in their own form; absent when an older or newer program wrote others.
fn facts<T: DeserializeOwned>(trial: &Trial<'_>) -> Option<T> {
    serde_json::from_value(trial.facts.clone()).ok()
}

/// Why nothing is compared with facts that do not parse.
fn no_facts(name: &str) -> Check {
    Check::skipped(name, "", "the snapshot's facts are of a form that is not known here")
}

/// The source's own tree. Without one nothing was laid out, which the operation must have told.
fn own_tree<'t>(trial: &'t Trial<'_>) -> Result<&'t Path, SourceError> {
    trial.own_tree().ok_or_else(|| SourceError::problem(format!("the tree of {} was not laid out", trial.name)))
}

fn walk(tree: &Restored, root: &Path) -> Result<Vec<inside::Item>, SourceError> {
    tree.walk().map_err(|source| SourceError::File { action: "read", path: root.into(), source })
}

/// `1 file`, `2 files`.
fn count(n: usize, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}
