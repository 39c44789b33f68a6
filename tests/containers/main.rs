//! The binary against real compose projects: Postgres, Redis, nginx and an application in containers that publish no
//! port, captured, restored, and met with what goes wrong in production.
//!
//! Needs a Docker engine and root, as `scripts/test.sh` provides them.

#[path = "../support/docker.rs"]
mod docker;
#[path = "../support/port.rs"]
mod port;
mod stack;
#[path = "../support/tree.rs"]
mod tree;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "another test binary uses the rest of it")]
mod world;

mod doctor;
mod everything;
mod traps;
mod two;
mod user;
