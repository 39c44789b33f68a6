//! Room for a disk without a free byte: to remove anything, something has to be written first (a signed line, a page of a
//! database). A file of the state folder, which lies on the repository's disk where nobody chose otherwise, holds it.

use crate::base::atomic::{self, IfExists};
use std::fs;
use std::path::{Path, PathBuf};

const BYTES: usize = 256 << 10;

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("reserve")
}

/// Keeps room, unless it is kept already. Where there is none, nothing is said: another run finds some.
pub fn keep(state_dir: &Path) {
    let file = file(state_dir);
    if fs::metadata(&file).is_ok_and(|meta| meta.len() == BYTES as u64) {
        return;
    }
    // A file system that compresses would keep no room for zeros.
    let mut bytes = vec![0; BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    if let Err(e) = atomic::write(&file, &bytes, 0o600, IfExists::Replace) {
        tracing::debug!("no room is kept in {}: {e}", file.display());
    }
}

/// Gives it to what makes room.
pub fn give(state_dir: &Path) {
    // There may be none.
    let _ = fs::remove_file(file(state_dir));
}
