//! What a drill proves of the sources that know what their files mean: the unharmed twin is green, and each seeded
//! corruption is red and named. Whatever is damaged here is damaged in an intact, correctly read capture.

#[path = "../support/docker.rs"]
mod docker;
#[path = "../support/sink.rs"]
mod sink;
#[path = "../support/taken.rs"]
mod taken;
mod world;

mod certificates;
mod command;
mod compose;
mod env;
mod files;
mod git;
mod nginx;
mod nginx_container;
mod recovery;
