//! `status`: what a loss would cost now, and whether everything is fine.
//!
//! Looking and judging are apart: [`look`] gathers facts (and keeps them), [`judge`] is a pure function of the policy,
//! the facts, the run history and the time. So the service's page judges anew at every request what was seen before, and
//! a test needs no clock.
//!
//! - [`sight`]: the facts, and where they are kept
//! - [`look`]: gathering them, in bounded time
//! - [`ran`]: what the run history adds
//! - [`judge`]: green, amber or red, with the reason and the way out
//! - [`headline`]: `If this server died now: …`
//! - [`metrics`]: the same for machines
//! - [`silence`]: another host notices that nothing comes any more

mod headline;
mod judge;
mod look;
pub mod metrics;
mod ran;
mod sight;
mod silence;

pub use headline::{about, overall};
pub use judge::{Check, Level, Loss, Next, PolicyStatus, Recovery, judge, unreadable, unseen};
pub use look::look;
pub use ran::Ran;
pub use sight::{CopySight, RepositorySight, Room, SeenGap, Sight, SnapshotSight, drill_page, looked, recall};
pub use silence::{LineStatus, Silence, silence};
