//! Trees of files as a deterministic tar and its listing, and the sources that know what their files mean.

pub(super) mod acl;
pub mod certificates;
mod content;
mod docker;
pub mod entry;
pub mod env;
pub(super) mod frame;
mod keys;
mod large;
mod lineages;
mod memo;
mod nginx;
pub mod nginx_conf;
mod notes;
mod owners;
mod parts;
mod paths;
mod plan;
pub mod proof;
mod returning;
mod small;
mod stream;
#[cfg(test)]
mod sweep;
mod today;
mod tree;
mod view;
mod volume;
mod walk;
mod xattr;

pub use certificates::CertificatesSource;
pub use env::EnvSource;
pub use lineages::{Decision, Verdict, to_restore};
pub use nginx::NginxSource;
pub use paths::FilesSource;
pub use returning::certificates as returning_certificates;
pub use stream::{LISTING, TAR};
pub use volume::VolumeSource;

pub(super) use docker::Trees;
pub(super) use stream::hash64;
pub(super) use today::{Today, VisitPath, walk_today};
pub(super) use xattr::read as read_attributes;
