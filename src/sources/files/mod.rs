//! Trees of files as a deterministic tar and its listing, and the sources that know what their files mean.

pub(super) mod acl;
mod content;
mod docker;
pub mod entry;
pub(super) mod frame;
mod large;
mod memo;
mod notes;
mod owners;
mod paths;
mod plan;
mod small;
mod stream;
mod tree;
mod view;
mod walk;

pub use docker::{DockerTree, TreeReader, Volume};
pub use paths::FilesSource;
pub use stream::{LISTING, TAR};
