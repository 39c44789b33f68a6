//! `rollback` and `guard` as a person runs them, on a compose project whose health depends on code, image, env and data
//! that fit together: each of them says which version it is.

#[path = "../support/docker.rs"]
mod docker;
#[path = "../support/engine.rs"]
mod engine;
#[path = "../support/follow.rs"]
mod follow;
#[path = "../support/port.rs"]
mod port;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/redis.rs"]
mod redis;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "another binary uses the rest")]
mod world;

mod crash;
mod guard;
mod kit;
mod recover;
mod restart;
mod site;
mod steps;
mod undone;
mod upgrade;
mod whole;
