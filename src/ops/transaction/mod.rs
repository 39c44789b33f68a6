//! Changing the live application as one transaction that survives `kill -9`, power loss and a restart of Docker.
//!
//! The steps: hooks, prepare (beside the live things, while the services run), stop, settle (what was written
//! meanwhile), switch, start, reload nginx, confirm, health checks. A failure after the first change undoes them in
//! reverse. What is replaced is kept for `keep_old`, and can be brought back until then.
//!
//! Invariants: one transaction is pending at most for a policy, and nothing else changes the application or takes a
//! snapshot meanwhile; a step is in the journal before it begins and after it ends; the journal's first line, with all
//! names that steps use, is durable before the first change; settling a pending one needs no repository; the end is
//! the new state or the old one, with the same services running as before.
//!
//! Write order (must): safety snapshot; journal `begin`; for each step its `begin` line, the step, its `done` line;
//! journal `end`. Undoing appends `undo` first.
//!
//! - [`journal`]: the file
//! - [`plan`]: what would be done; pure data
//! - [`services`], [`up`], [`nginx`], [`crate::ops::hooks`]: what else takes part
//! - `aside`: the data folder of a database server of another major version
//! - [`run`]: forward, and back when something fails
//! - [`settle`]: a pending one, after a crash; a finished one undone; old things discarded

mod aside;
pub mod helper;
pub mod journal;
pub mod nginx;
mod overlay;
pub mod plan;
mod report;
mod run;
pub mod services;
mod settle;
mod stage;
pub mod up;

pub use aside::{Aside, of_project};
pub use journal::{Pending, pending, refuse_pending};
pub use overlay::ChosenKey;
pub use plan::{Aim, InPlaceRequest, Late, TransactionPlan, What, plan};
pub use report::{Outcome, SourceResult, StepTime, TransactionReport};
pub use run::{run, run_unsaved};
pub use settle::{Kept, discard_expired, kept, resume, undo};
pub use stage::Stage;
