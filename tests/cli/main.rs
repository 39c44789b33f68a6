//! The real binary, as a person or a script runs it: first run, every exit code, bad input, signals, what it prints.

mod bad;
mod copy;
mod differs;
mod docs;
mod doctor;
mod exits;
mod flipped;
mod hooks;
mod journey;
mod kit;
mod output;
mod patient;
mod prune;
mod revoke;
mod setup;
mod signals;
mod thief;
mod unwritable;
mod world;
