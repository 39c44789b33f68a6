//! Whoever has the recipients and a signing key writes what he likes, and root restores it; and no secret is anywhere
//! that it should not be.

mod bombs;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "another binary uses the rest")]
mod cli;
mod forged;
#[path = "../support/hostile.rs"]
mod hostile;
mod inplace;
#[path = "../support/lab.rs"]
mod lab;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/redis.rs"]
mod redis;
mod secrets;
#[path = "../support/tree.rs"]
mod tree;
#[path = "../support/world.rs"]
mod world;
