//! The last text of a policy's file that could be read. While the file is broken its schedule goes on, and who is to hear of
//! that is known.
//!
//! Kept in the state folder, private as the file may be, under a hash of the file's path.

use super::{Policy, parse};
use crate::base::atomic::{self, IfExists};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

fn kept_at(state_dir: &Path, file: &Path) -> PathBuf {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let name = Sha256::digest(file.as_os_str().as_encoded_bytes());
    state_dir.join("policies").join(format!("{}.toml", hex::encode(&name[..8])))
}

/// Keeps the text of a policy that was just read. A file that has changed since is left to the next time.
pub fn remember(state_dir: &Path, policy: &Policy) -> io::Result<()> {
    let (text, kept) = (fs::read_to_string(&policy.file)?, kept_at(state_dir, &policy.file));
    if fs::read_to_string(&kept).is_ok_and(|known| known == text) || parse(&policy.file, &text).as_ref() != Ok(policy) {
        return Ok(());
    }
    atomic::create_private_dir(state_dir)?;
    atomic::create_private_dir(&state_dir.join("policies"))?;
    atomic::write(&kept, text.as_bytes(), 0o600, IfExists::Replace)
}

/// What the file said when it could be read last.
pub fn recall(state_dir: &Path, file: &Path) -> Option<Policy> {
    let text = fs::read_to_string(kept_at(state_dir, file)).ok()?;
    parse(file, &text).ok()
}
