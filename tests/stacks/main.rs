//! The five deployments that Lifeboat must protect, as real compose projects: snapshot, drill, break, roll back, and
//! healthy again with the data as promised. Each runs under its shipped policy, in which only names, paths and ports are
//! this machine's. The folders beside hold what their servers hold: compose files, an application of a few lines whose
//! `GET /health` passes only when code, environment, schema and data fit together, its migrations and its releases.
//!
//! Needs a Docker engine and root, as `scripts/test.sh` provides them.

mod discovered;
#[path = "../support/docker.rs"]
mod docker;
mod machine;
#[path = "../support/port.rs"]
mod port;
mod project;
#[path = "../support/s3.rs"]
mod s3;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "another test binary uses the rest of it")]
mod world;

mod connector;
mod course_supporter;
mod masstock;
mod meta_chat;
mod mindflow;
