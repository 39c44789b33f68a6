//! Lifeboat: backup, restore and rollback for web applications on one server.
//!
//! The map, in layer order. Imports point strictly down; `tests/layers.rs` enforces it.
//!
//! - L0 [`base`]: ids, units, time, events, secrets, cancellation, atomic file writing
//! - L1 [`policy`]: a TOML file to a validated [`policy::Policy`], and Compose's env files
//! - L1 [`storage`]: where stored bytes lie: local folders, S3, memory
//! - L1 [`pipeline`]: bytes in, sealed archives out, and back; no I/O of its own
//! - L1 [`place`]: a command in a place: on the host or in a container
//! - L2 [`repository`]: the repository format: keys, objects, index, manifest, snapshots
//! - L2 [`sources`]: what can be captured, proved and put back: Postgres, Redis, files, git, compose, …
//! - L3 [`ops`]: snapshot, restore, drill, verify, prune, copy, browse: each a plan and a run
//! - L4 [`daemon`]: the service: what is due, run as processes of their own
//! - L5 [`cli`]: arguments, rendering, exit codes

pub mod base;
pub mod cli;
pub mod daemon;
pub mod ops;
pub mod pipeline;
pub mod place;
pub mod policy;
pub mod repository;
pub mod sources;
pub mod storage;
