//! How each kind of source is proved.

use super::postgres::{self, PostgresProof};
use super::proof::Prove;
use super::redis::RedisProof;
use std::path::Path;

/// The proof for a kind; absent where this version knows none.
pub fn prover(kind: &str) -> Option<Box<dyn Prove>> {
    match kind {
        "postgres" => Some(Box::new(PostgresProof)),
        "redis" => Some(Box::new(RedisProof)),
        _ => None,
    }
}

/// Ends what a killed proof left running in its folder. Servers of Redis die with the process that started them.
pub fn sweep_folder(folder: &Path) {
    postgres::sweep_local(folder);
}
