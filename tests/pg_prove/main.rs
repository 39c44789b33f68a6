//! PostgreSQL, proved: what was captured from real servers is restored into throw-away ones and held against its facts.

mod bench;
#[path = "../support/docker.rs"]
mod docker;
mod places;
#[path = "../support/port.rs"]
mod port;
#[path = "../support/postgres.rs"]
mod postgres;
mod red;
#[path = "../support/sink.rs"]
mod sink;
#[path = "../support/taken.rs"]
mod taken;
mod twin;
