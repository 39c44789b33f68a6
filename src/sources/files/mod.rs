//! Trees of files as a deterministic tar and its listing, and the sources that know what their files mean.

mod acl;
mod content;
mod entry;
mod frame;
mod large;
mod memo;
mod notes;
mod owners;
mod plan;
mod small;
mod stream;
mod view;
mod walk;
