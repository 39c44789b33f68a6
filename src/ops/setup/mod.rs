//! `init` and `keys`: what must be there before the first snapshot.
//!
//! Write order of `init` (must): keys → repository → signer → proof of the recipients → policy. The policy is the
//! commit point: until it is there, a run that was cut short is simply done again, and takes what it finds. Nothing
//! is ever overwritten, and nothing but the two key files holds a secret.

mod again;
mod draft;
mod enrol;
mod init;
mod keys;
mod proof;
mod recipient;
mod revoke;
mod rotate;
mod shared;

pub use draft::BucketOptions;
pub use enrol::enrol;
pub use init::{Covered, InitOptions, InitReport, Tight, init};
pub use keys::{KeysReport, new as keys_new, show as keys_show};
pub use proof::{Proof, prove, unproved};
pub use recipient::{RecipientReport, add_recipient};
pub use revoke::{Good, RevokePlan, RevokedLine, plan_revoke, revoke};
pub use rotate::{RotateReport, rotate};
pub use shared::{Shared, shared};
