//! One file per command: what its arguments mean, the call into `ops`, and how the answer is shown.

pub mod cat;
pub mod copy;
pub mod diff;
pub mod doctor;
pub mod drill;
mod files;
pub mod find;
pub mod history;
pub mod hold;
pub mod init;
pub mod keys;
pub mod list;
pub mod ls;
pub mod manual;
pub mod notify;
pub mod policy;
pub mod prune;
pub mod repair;
pub mod restore;
pub mod restore_in_place;
pub mod serve;
pub mod show;
pub mod snapshot;
pub mod tag;
pub mod verify;
