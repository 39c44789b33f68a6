//! PostgreSQL, put back in place: beside, exchanged, undone, repeated, and killed in between.

mod bench;
#[path = "../support/docker.rs"]
mod docker;
mod killed;
#[path = "../support/port.rs"]
mod port;
#[path = "../support/postgres.rs"]
mod postgres;
mod refused;
#[path = "../support/sink.rs"]
mod sink;
mod tables;
#[path = "../support/taken.rs"]
mod taken;
mod whole;
