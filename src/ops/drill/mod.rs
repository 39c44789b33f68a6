//! `drill`: the newest complete snapshot, or the one that is named, is restored into throw-away services and held
//! against what the application knew of itself when it was taken.
//!
//! It changes nothing of the application. What it starts is gone when it ends, and is swept by the next run after a crash.
//! Order of a run: the policy's drill lock → leftovers of killed runs swept → header, manifest and index read → the
//! identity tried on every archive → small trees laid out (nginx needs its certificates) → source by source proved →
//! the report: details sealed to the recipients, outcome signed, both stored; the page written.

mod leftovers;
mod page;
mod plan;
mod record;
mod report;
mod rollback;
mod run;

pub use page::page;
pub use plan::{DrillPlan, DrillRequest, PlannedProof, plan};
pub use record::{DrillLine, details, drills_of, newest_passed};
pub use report::{DrillReport, ProofReport};
pub use run::run;

pub use crate::repository::format::{CheckCounts, DrillOutcome};
pub use crate::sources::proof::{Check, Difference, Verdict};
