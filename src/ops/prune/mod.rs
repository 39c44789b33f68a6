//! `prune`: retention, and the deletion of what no snapshot references any more.
//!
//! Order (must): prune record → headers of removed snapshots → trash → (a later run, after the grace) objects → trash
//! object. A prune that is killed anywhere leaves a repository that verifies; the next one goes on. What makes it safe
//! beside writers stands in [`crate::repository::trash`].
//!
//! A prune deletes nothing as long as it cannot be sure: while a header, a record or refs are damaged or missing, while
//! the repository has gone back behind this host's memory, while a clock is suspect, and when a list fails.
//!
//! With `--repack` wasteful archives are rewritten ([`crate::repository::repack`]): what nothing references then goes as
//! all garbage does.

mod clock;
mod doubts;
mod plan;
mod repack;
mod run;

pub use crate::repository::repack::Fate;
pub use plan::{Amount, PlannedSnapshot, PruneOptions, PrunePlan, Times, plan};
pub use repack::{RepackGroup, RepackPlan, RepackReport, plan_repack, run_repack};
pub use run::{PruneReport, lock, run};
