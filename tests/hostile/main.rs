//! Whoever has the recipients and a signing key writes what he likes, and root restores it; and no secret is anywhere
//! that it should not be.

mod bombs;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "another binary uses the rest")]
mod cli;
#[path = "../support/daily.rs"]
mod daily;
mod everywhere;
mod flags;
mod folded;
mod forged;
#[path = "../daemon/hear.rs"]
#[allow(dead_code, reason = "another binary uses the rest")]
mod hear;
#[path = "../support/hostile.rs"]
mod hostile;
mod inplace;
#[path = "../support/lab.rs"]
mod lab;
#[path = "../support/looped.rs"]
mod looped;
#[path = "../support/port.rs"]
mod port;
#[path = "../support/postgres.rs"]
mod postgres;
mod race;
#[path = "../support/redis.rs"]
mod redis;
#[path = "../support/s3.rs"]
mod s3;
mod secrets;
#[path = "../daemon/sink.rs"]
#[allow(dead_code, reason = "another binary uses the rest")]
mod sink;
#[path = "../support/tree.rs"]
mod tree;
#[path = "../support/world.rs"]
mod world;
