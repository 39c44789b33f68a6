//! The service: a simulated year, the real daemon with real policies, whoever hears of what happens, what it says of
//! itself to people and machines, the units.

mod books;
#[path = "../support/daily.rs"]
mod daily;
mod hear;
mod metrics;
mod notify;
mod page;
mod serve;
mod sink;
mod status;
mod told;
mod units;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "shared with the tests of the command line")]
mod world;
mod year;
