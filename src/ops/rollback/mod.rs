//! The whole application as it was: code, configuration, schema and data, as one transaction.
//!
//! - [`target`]: which snapshot is meant, and why
//! - [`plan`]: what comes back of it, what stays, how the services come up
//! - [`candidates`]: where one could go, and what it would cost
//! - [`losses`]: what leaves, in words
//! - [`schema`]: code that returns under data that stays
//! - [`env`]: secrets that were changed since
//! - [`guard`]: a command wrapped in snapshots, and taken back when it fails
//! - `major`: a database of another major version
//! - [`absent`]: stores and volumes that are not there
//!
//! The steps are [`crate::ops::transaction`]'s.

mod absent;
pub mod candidates;
mod env;
pub mod guard;
pub mod losses;
mod major;
pub mod plan;
mod schema;
pub mod target;

pub use crate::sources::env_merge::{Rotated, Side};
pub use candidates::{Candidate, candidates};
pub use env::Ask;
pub use plan::{EnvSide, Narrow, RollbackRequest, plan};
pub use target::{Target, target};
