//! How each kind of source is proved.

use super::command::CommandProof;
use super::compose::ComposeProof;
use super::files::proof::{CertificatesProof, EnvProof, FilesProof, NginxProof};
use super::git::GitProof;
use super::postgres::{self, PostgresProof};
use super::proof::Prove;
use super::recovery::RecoveryProof;
use super::redis::RedisProof;
use std::path::Path;

/// The proof of a kind; absent for a kind that is not known here.
pub fn prover(kind: &str) -> Option<Box<dyn Prove>> {
    Some(match kind {
        "postgres" => Box::new(PostgresProof),
        "redis" => Box::new(RedisProof),
        "env" => Box::new(EnvProof),
        "certificates" => Box::new(CertificatesProof),
        "nginx" => Box::new(NginxProof),
        "files" | "volume" => Box::new(FilesProof),
        "command" => Box::new(CommandProof),
        "git" => Box::new(GitProof),
        "compose" => Box::new(ComposeProof),
        "recovery" => Box::new(RecoveryProof),
        _ => return None,
    })
}

/// Ends what a killed proof left running in its folder. Servers of Redis die with the process that started them.
pub fn sweep_folder(folder: &Path) {
    postgres::sweep_local(folder);
}
