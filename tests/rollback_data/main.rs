//! What a rollback does with data beyond a restore: it says what leaves, where migrations stand, which certificates and
//! which secrets return, and tries the logins. Real servers, real files.

mod bench;
mod certificates;
mod database;
#[path = "../support/docker.rs"]
mod docker;
mod env;
mod files;
mod logins;
#[path = "../support/port.rs"]
mod port;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/sink.rs"]
mod sink;
#[path = "../support/taken.rs"]
mod taken;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "another binary uses the rest")]
mod world;
