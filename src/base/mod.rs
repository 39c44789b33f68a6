//! L0: small types that every layer speaks: ids, units, time, events, secrets, cancellation, words of a shell.

pub mod atomic;
pub mod cancel;
pub mod direct;
pub mod events;
#[cfg(test)]
pub mod fuzz;
pub mod html;
pub mod ids;
pub mod patient;
pub mod read;
pub mod secret;
pub mod shell;
pub mod stream;
pub mod threads;
pub mod time;
pub mod umask;
pub mod units;
pub mod uptime;
pub mod yaml;
