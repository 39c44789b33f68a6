//! Looking: `list`, `show`, `ls`, `cat`, `find`, `diff`. Nothing here changes anything.
//!
//! Invariants: what is shown comes from verified headers, manifests and streams; whatever could be damaged names the
//! snapshot, source and stream in its error; a listing of a million entries is read as it passes, never held.
//!
//! - [`list`], [`show`]: headers, and what a manifest says
//! - [`ls`], [`cat`]: the files within one snapshot
//! - [`find`]: one name in all snapshots
//! - [`diff`]: two snapshots against each other
//! - [`select`]: how a person names a source, a stream or a path; [`listing`], [`part`]: reading them

pub mod cat;
pub mod diff;
mod facts;
pub mod find;
pub mod list;
pub mod listing;
pub mod ls;
pub mod part;
pub mod select;
pub mod show;

pub use crate::repository::format::{Outcome, SourceOutcome, Trigger};
pub use crate::sources::files::entry::display;
pub use cat::{CatReport, cat};
pub use diff::{Aspect, Change, Content, DiffReport, DiffRequest, SourceDiff, diff};
pub use find::{FindReport, FindRequest, Found, Version, find};
pub use list::{ListFilter, ListReport, Problem, SnapshotLine, list};
pub use ls::{LsEntry, LsReport, LsRequest, PathInfo, ls};
pub use show::{SnapshotDetail, SourceDetail, StreamDetail, show};
