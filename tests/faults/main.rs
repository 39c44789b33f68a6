//! The engine under faults of the machine: killed at its calls, a disk without room, files, reads, writes or syncs that
//! fail, few descriptors, little memory. After each of them: the exit code says it, what was stored is whole, the next
//! run needs nobody's hand, and nothing temporary stays.
//!
//! Every fault is proven to have happened: by the signal that ended the process, or by strace's log. The test command
//! tries some points of each sort, `LIFEBOAT_SWEEP=1` all of them.

mod calls;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "another binary uses the rest")]
mod cli;
mod disk;
mod excuse;
mod inplace;
mod limits;
#[path = "../support/looped.rs"]
mod looped;
mod lost;
#[path = "../support/port.rs"]
mod port;
#[path = "../support/postgres.rs"]
mod postgres;
mod power;
mod readonly;
#[path = "../support/redis.rs"]
mod redis;
mod servers;
mod short;
mod site;
mod sweep;
#[path = "../support/tree.rs"]
mod tree;
mod unread;
mod verify;
