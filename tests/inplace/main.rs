//! `restore --in-place` as a person runs it: real files, a real nginx, a real compose project, the real binary killed.

#[path = "../support/docker.rs"]
mod docker;
#[path = "../support/port.rs"]
mod port;
#[path = "../support/redis.rs"]
mod redis;
#[path = "../support/tree.rs"]
mod tree;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "another binary uses the rest")]
mod world;

mod crash;
mod files;
mod health;
mod killed;
mod nginx;
mod project;
mod settled;
mod undone;
