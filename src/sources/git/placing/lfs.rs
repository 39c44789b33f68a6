//! Files that git LFS keeps elsewhere: their content must be on this machine before anything is changed, because
//! nothing is fetched.

use super::super::explain;
use super::ground::{Ground, absolute};
use crate::sources::SourceError;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// No pointer is longer, says its specification.
const POINTER_BYTES: u64 = 1024;
const BEGIN: &str = "version https://git-lfs.github.com/spec/v1\n";
/// As many are named.
const NAMES: usize = 8;

/// Refuses a tree whose pointers point at what is not here.
pub(super) fn refuse_missing(ground: &Ground, tree: &str) -> Result<(), SourceError> {
    let mut small: BTreeMap<String, String> = BTreeMap::new();
    ground.git.each(&["ls-tree", "-r", "-l", "-z", tree], |record| {
        // `mode type id size\tpath`
        let text = String::from_utf8_lossy(record);
        if let Some((meta, path)) = text.split_once('\t')
            && let [_, "blob", id, size] = meta.split_ascii_whitespace().collect::<Vec<_>>()[..]
            && size.parse().is_ok_and(|n: u64| n <= POINTER_BYTES)
        {
            small.insert(id.to_owned(), path.to_owned());
        }
        Ok(true)
    })?;
    let store = store(ground)?;
    let mut missing = Vec::new();
    for (id, path) in &small {
        let text = ground.git.text(&["cat-file", "blob", id]).map_err(explain)?;
        let Some(oid) = text.starts_with(BEGIN).then(|| oid(&text)).flatten() else { continue };
        if !store.join(&oid[..2]).join(&oid[2..4]).join(&oid).is_file() {
            missing.push(path.clone());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let more = missing.len().saturating_sub(NAMES);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    missing.truncate(NAMES);
    Err(SourceError::hint(
        format!("the content of {}{more} is in git LFS, and not on this machine", missing.join(", ")),
        "fetch it first: git lfs fetch --all",
    ))
}

fn oid(pointer: &str) -> Option<String> {
    let oid = pointer.lines().find_map(|line| line.strip_prefix("oid sha256:"))?;
    (oid.len() == 64 && oid.bytes().all(|b| b.is_ascii_hexdigit())).then(|| oid.to_owned())
}

fn store(ground: &Ground) -> Result<PathBuf, SourceError> {
    let common = absolute(&ground.git, &ground.git.text(&["rev-parse", "--git-common-dir"]).map_err(explain)?);
    let storage = ground.git.maybe(&["config", "lfs.storage"])?;
    Ok(common.join(storage.unwrap_or_else(|| "lfs".into())).join("objects"))
}
