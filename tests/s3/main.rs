//! S3 storage against real servers, directly and through a proxy that makes everything go wrong.

#[path = "../support/follow.rs"]
mod follow;
#[path = "../support/port.rs"]
mod port;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/prune.rs"]
mod prune;
#[path = "../support/rigged.rs"]
mod rigged;
#[path = "../support/s3.rs"]
mod s3;
#[path = "../support/world.rs"]
mod world;

mod causes;
mod conforms;
mod faults;
mod journey;
mod kit;
mod locks;
mod probes;
mod requests;
mod snapshots;
