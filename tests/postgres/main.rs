//! PostgreSQL, captured from real servers that these tests start.

mod access;
mod bench;
mod container;
mod content;
#[path = "../support/docker.rs"]
mod docker;
mod faults;
#[path = "../support/port.rs"]
mod port;
#[path = "../support/postgres.rs"]
mod postgres;
mod rows;
#[path = "../support/sink.rs"]
mod sink;
