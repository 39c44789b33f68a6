//! `copy`: the same repository once more, in another storage: same id, same signers, same bytes.
//!
//! Write order (must): repository.json → signers → records → (per group of snapshots) archives → index → refs →
//! manifests → headers, oldest first. Records of repacks come behind what they name for snapshots that are there already,
//! the latest first, and before the headers of those that are not. So the copy verifies at every instant, however a run ends, and the next one goes
//! on. Records come before headers, because a prune record explains the sequences that are no longer there.
//!
//! Invariants: nothing at the copy is ever replaced; nothing is deleted there but records, outcomes of drills and trash that a
//! revoked key has signed, that the repository has not, and that so count for nothing; every object is checked before it is
//! put there (its SHA-256 against its name and the length that refs tell, signatures of what is signed); a header is put only when all
//! that it needs is there with the right length and not about to be pruned there. What is damaged costs the snapshots
//! that need it, and is told; all others are copied.
//!
//! What lies at the copy is told by one list of it. Its bytes are read only when asked for.

mod ahead;
mod every;
mod plan;
mod run;
mod stock;
mod target;

pub use ahead::CopyHead;
pub use every::{CopyOutcome, CopyRequest, Lookout, copy, every, listed, look_out, open, plan_one as plan};
pub(in crate::ops) use every::{PATIENCE, within};
pub use plan::{CopyPlan, CopyProblem, PlannedSnapshot, Side};
pub use run::CopyReport;
pub use target::{Target, options};
