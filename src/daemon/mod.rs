//! L4: the service. It sleeps until something is due, runs it as a process of its own, and keeps the books about it.
//!
//! Invariants: the daemon itself never opens a repository or a source, so a run that crashes, hangs or needs much
//! memory harms nothing else; a slot is run once, or its missed ones together once; one run at a time for a policy;
//! what runs ends with the daemon. Between runs nothing wakes it but the next slot, a signal, a change of a policy, the
//! watchdog of systemd where one was asked for, and whoever asks over HTTP.
//!
//! - [`agenda`]: what is due, and what becomes of what failed; pure
//! - [`policies`]: the policies of the configuration folder, as they are now
//! - [`child`]: one run as a process
//! - [`ledger`]: the run history from the daemon's side
//! - [`wakeup`]: what ends a sleep: signals, the clock, changed files
//! - [`systemd`]: what the service manager is told
//! - [`http`]: who asks is answered, from [`desk`] by [`page`]; [`board`] is between them and the loop
//! - [`serve`]: all of it together

pub mod agenda;
mod board;
mod child;
mod desk;
mod http;
mod ledger;
mod page;
mod policies;
mod serve;
mod systemd;
mod wakeup;

pub use serve::{Settings, serve};
