//! Who hears of what happened: the policy's [notify].
//!
//! Invariants: nothing here fails or delays a backup: a message is put into the run history's outbox first and sent
//! after the run, within a limit of time, and again later where that failed. A message holds no secret; an address
//! (which may be one) is read from the policy when it is sent, and stands in no log and no error.
//!
//! - [`event`]: what is told, in words
//! - [`channel`]: which of a policy's channels hears of it
//! - [`send`]: over HTTP and SMTP
//! - [`post`]: into the outbox, and out of it

pub mod channel;
pub mod event;
pub mod post;
mod send;
mod smtp;

pub use channel::Channel;
pub use event::{Event, Occasion, Week};
pub use post::{Delivered, Tried, deliver, queue, queue_weekly, test};
pub use send::begin_ping;
