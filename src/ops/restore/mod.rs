//! `restore --into`: a snapshot's streams in a folder of their own.
//!
//! Layout, the same as `break-glass.sh` makes: what is in a source's trees below `INTO/<source>/`, its other streams as
//! `INTO/<source>/<stream>`. Listings are not written.
//!
//! Invariants: nothing that exists is changed, the folder must be empty or not there; a source appears under its name
//! only once it is complete and durable; what is damaged costs itself alone, everything else is restored and the
//! report names what is lost; a run that cannot go on (full disk, signal) takes away all that it has made, and what a
//! killed one left of a source goes when the next one begins.
//!
//! Write order (must): `INTO/.<source>.partial/…`, each stream's file renamed when its last byte has been verified;
//! `syncfs`; rename to `INTO/<source>`; fsync of `INTO`. A damaged tree becomes `INTO/<source>.damaged` instead.

mod ground;
mod lay;
mod plan;
mod report;
mod selection;

pub use crate::sources::extract::{Difference, Report, Tally};
pub use ground::remove as remove_tree;
pub use lay::run;
pub use plan::{PlannedSource, PlannedStream, RestorePlan, RestoreRequest, plan};
pub use report::{RestoreOutcome, RestoreReport, RestoredSource, RestoredStream};
