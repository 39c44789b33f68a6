//! One file per command: what its arguments mean, the call into `ops`, and how the answer is shown.

pub mod init;
pub mod keys;
pub mod manual;
pub mod policy;
pub mod snapshot;
