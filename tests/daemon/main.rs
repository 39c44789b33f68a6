//! The service: a simulated year, the real daemon with real policies, whoever hears of what happens, the units.

mod books;
mod hear;
mod notify;
mod serve;
mod sink;
mod told;
mod units;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "shared with the tests of the command line")]
mod world;
mod year;
