//! A captured PostgreSQL server, proved: restored into a throw-away server of the same major version, and held against
//! what the live one knew of itself.
//!
//! Checks: `restore` of the roles and of each database (any error of the tools is fatal); `roles`, `memberships`,
//! `tablespaces`, `databases`; and for each database `properties`, `schemas`, `extensions`, `tables`, `grants`,
//! `sequences`, `definitions` (how many there are of what has no entry of its own), `migrations`, `publications`,
//! `subscriptions`, `large objects`, `rows`, `content`, `amcheck`, and the policy's own `sql`.
//!
//! What was restored is untrusted. It runs where [`server`] says; nothing here hands its names to a shell or its text
//! to `psql` as a script.

mod cluster;
mod container;
mod database;
mod foreign;
mod given;
mod indexes;
mod local;
mod plain;
mod rows;
mod server;
mod sql;
mod things;

pub use foreign::{Form, compare as compare_foreign};
pub use local::sweep_local;

use super::facts::{Database, Facts};
use crate::sources::SourceError;
use crate::sources::proof::{Check, Proof, Prove, Trial};
use crate::sources::run::{Deadline, settle};
use serde::Deserialize;
use server::{Ask, Found, Kind, Server};

/// Proves sources of kind `postgres`.
#[derive(Debug, Clone, Copy, Default)]
pub struct PostgresProof;

impl Prove for PostgresProof {
    fn prove(&self, trial: &Trial<'_>) -> Result<Proof, SourceError> {
        let facts = Facts::deserialize(trial.facts)
            .map_err(|e| SourceError::problem(format!("the facts of source {} cannot be read: {e}", trial.name)))?;
        let ask = Ask { trial, facts: &facts, deadline: Deadline::after(trial.timeout) };
        prove(&ask).map_err(|e| settle(e, trial.cancel))
    }
}

fn prove(ask: &Ask<'_>) -> Result<Proof, SourceError> {
    let (trial, facts) = (ask.trial, ask.facts);
    let mut proof = Proof::default();
    trial.events.step(format!("{}: start a server of PostgreSQL {}", trial.name, ask.major()));
    let server = match proof.step(trial, "start server", true, || server::start(ask))? {
        Found::Server(server) => server,
        Found::None(why) => {
            // A dump that nothing has loaded is not proved.
            let wanted = format!("a server of PostgreSQL {}", ask.major());
            proof.add(Check::failed("restore", "", wanted, "none can be started", why));
            return Ok(proof);
        }
    };
    tracing::debug!(source = %trial.name, server = server.what, "drill");
    let mut checks = Proof::default();
    proof.step(trial, "restore roles", true, || cluster::load(ask, &server, &mut checks))?;
    let mut back = database::Restored::default();
    let mut restored = Vec::new();
    for captured in &facts.databases {
        trial.cancel.check()?;
        let subject = subject(captured);
        trial.events.step(format!("{}: restore {subject} into {}", trial.name, server.what));
        let step = format!("restore {subject}");
        if !proof.step(trial, &step, true, || database::restore(ask, &server, captured, &mut checks))? {
            continue;
        }
        restored.push(captured.name.as_str());
        let step = format!("compare {subject}");
        let found = proof.step(trial, &step, false, || database::compare(ask, &server, captured, &mut checks))?;
        back.tables += found.tables;
        back.rows += found.rows;
    }
    proof.step(trial, "compare roles", false, || cluster::compare(ask, &server, &mut checks))?;
    if trial.drill.checks.iter().any(|c| c.source == *trial.name) {
        proof.step(trial, "checks of the policy", false, || sql::check(ask, &server, &restored, &mut checks))?;
    }
    proof.step(trial, "end server", false, || drop(server));
    proof.checks.append(&mut checks.checks);
    if !restored.is_empty() {
        let tables = things::count(back.tables as usize, "table", "tables");
        proof.restored.push(format!("{tables} ({} rows)", things::grouped(back.rows)));
    }
    Ok(proof)
}

/// `database "shop"`.
fn subject(captured: &Database) -> String {
    format!("database {:?}", captured.name)
}

/// The database through which a server is asked for others.
fn via(server: &Server) -> &str {
    match &server.kind {
        Kind::Given(given) => given.via(),
        _ => "template1",
    }
}

/// How many commands and sessions work at the same time.
fn jobs() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4))
}

/// The major version in what `postgres --version` says.
fn major_in(text: &str) -> Option<u32> {
    let version = text.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
