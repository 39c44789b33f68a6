//! The paths that a capture would find now, without reading anything.

use super::entry::Kind;
use super::notes::Notes;
use super::owners::Owners;
use super::plan::Plan;
use super::view::{Host, View};
use super::walk::{Links, Walk};
use crate::base::cancel::Cancel;
use crate::sources::SourceError;
use std::path::{Path, PathBuf};

/// Which paths.
pub struct Today<'a> {
    /// Where the tree begins on disk, and what stands in the tar in its place.
    pub real: &'a Path,
    pub prefix: &'a str,
    /// Paths below `/`, without the slash, where `prefix` is empty; those that are not there are passed over.
    pub named: &'a [PathBuf],
    pub exclude: &'a [String],
    pub never: &'a [PathBuf],
    pub one_file_system: bool,
}

/// Gets a path as it would stand in the tar, and whether it is a folder.
pub type VisitPath<'v> = &'v mut dyn FnMut(&[u8], bool) -> Result<(), SourceError>;

/// Visits each path as it would stand in the tar, and whether it is a folder.
pub fn walk_today(today: &Today<'_>, cancel: &Cancel, visit: VisitPath<'_>) -> Result<(), SourceError> {
    let mut notes = Notes::default();
    let plan = if today.prefix.is_empty() {
        let mut plan = Plan::host(today.exclude);
        plan.real = today.real.into();
        for named in today.named {
            let path = Path::new("/").join(named);
            if Host.kind(&path).is_ok_and(|kind| kind.is_some()) {
                plan.add(&Host, &path, &mut notes)?;
            }
        }
        plan
    } else {
        Plan::tree(today.real, today.prefix, today.exclude)?
    };
    let walk = Walk {
        plan: &plan,
        owners: &Owners::none(),
        links: &mut Links::default(),
        notes: &mut notes,
        cancel,
        one_file_system: today.one_file_system,
        never: &super::tree::never(today.never.iter().cloned()),
    };
    walk.run(&mut |found| visit(&found.entry.path, found.entry.kind == Kind::Dir))
}
