//! A dump that another tool has made, restored into a throw-away server and held against what the live server is today.

use super::plain::{Stopped, pass};
use super::server::{Ask, Found, Server};
use super::{database, server, subject};
use crate::sources::SourceError;
use crate::sources::postgres::connection::{identifier, psql};
use crate::sources::postgres::facts::{Database, Facts};
use crate::sources::postgres::load::{LoadError, Loader, create_database};
use crate::sources::postgres::stage::psql_script;
use crate::sources::proof::{Check, Proof, Trial};
use crate::sources::run::{Deadline, one_line, settle};
use serde::Deserialize;
use std::io::{BufReader, Write};

/// How a dump is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `pg_dump -Fc`.
    Custom,
    /// `pg_dump` as SQL.
    Plain,
}

/// Restores the dump, which the trial's streams hold under this name, and compares it. The trial's facts are the live
/// server's; `database` is the one among them that the dump is of.
pub fn compare(trial: &Trial<'_>, stream: &str, form: Form, database: &str) -> Result<Proof, SourceError> {
    let facts = Facts::deserialize(trial.facts)
        .map_err(|e| SourceError::problem(format!("the facts of source {} cannot be read: {e}", trial.name)))?;
    let ask = Ask { trial, facts: &facts, deadline: Deadline::after(trial.timeout) };
    of(&ask, stream, form, database).map_err(|e| settle(e, trial.cancel))
}

fn of(ask: &Ask<'_>, stream: &str, form: Form, name: &str) -> Result<Proof, SourceError> {
    let trial = ask.trial;
    let mut proof = Proof::default();
    let Some(live) = ask.facts.databases.iter().find(|d| d.name == name) else {
        return Err(SourceError::problem(format!("the live server has no database {name:?}")));
    };
    trial.events.step(format!("{}: start a server of PostgreSQL {}", trial.name, ask.major()));
    let server = match server::start(ask)? {
        Found::Server(server) => server,
        Found::None(why) => {
            proof.add(Check::skipped("restore", "", why));
            return Ok(proof);
        }
    };
    trial.events.step(format!("{}: restore the dump into {}", trial.name, server.what));
    if server.has_roles() {
        roles(ask, &server)?;
    }
    let expected = format!("{} tables", live.tables.len());
    match load(ask, &server, live, stream, form) {
        Ok(()) => proof.add(Check::passed("restore", subject(live), expected, "restored without an error")),
        Err(LoadError::Refused(why)) => {
            proof.add(Check::failed("restore", subject(live), expected, "not restored", why));
            return Ok(proof);
        }
        Err(LoadError::Other(error @ (SourceError::Problem { .. } | SourceError::Place(_)))) => {
            trial.cancel.check()?;
            proof.add(Check::failed("restore", subject(live), expected, "not restored", error.to_string()));
            return Ok(proof);
        }
        Err(LoadError::Other(error)) => return Err(error),
    }
    trial.events.step(format!("{}: compare it with the live database", trial.name));
    database::compare(ask, &server, live, &mut proof)?;
    Ok(proof)
}

/// A dump of one database holds no role. The live ones' names are made, so that it loads at all.
fn roles(ask: &Ask<'_>, server: &Server) -> Result<(), SourceError> {
    let others = ask.facts.roles.iter().filter(|r| r.name != ask.bootstrap() && !r.name.starts_with("pg_"));
    let script: String = others.map(|r| format!("CREATE ROLE {};\n", identifier(&r.name))).collect();
    match psql_script(&server.connection, super::via(server), script.as_bytes(), ask.deadline, ask.trial.cancel)? {
        Ok(()) => Ok(()),
        Err(said) => Err(SourceError::problem(format!("make the roles: {said}"))),
    }
}

fn load(ask: &Ask<'_>, server: &Server, live: &Database, stream: &str, form: Form) -> Result<(), LoadError> {
    let options: &[&str] = match server.has_roles() {
        true => &[],
        false => &["--no-owner", "--no-privileges", "--no-tablespaces"],
    };
    let loader = Loader {
        connection: &server.connection,
        stage: &server.stage,
        streams: ask.trial.streams,
        version: server.version,
        jobs: super::jobs(),
        options,
        with_owners: server.has_roles(),
        deadline: ask.deadline,
        cancel: ask.trial.cancel,
    };
    let name = server.database(&live.name);
    let create = create_database(&name, &live.properties, server.version, server.has_roles());
    loader.script(super::via(server), &create)?;
    match form {
        Form::Custom => loader.part(&name, stream, super::jobs(), &[]),
        Form::Plain => plain(ask, server, &name, stream),
    }
}

/// A script through `psql`, which ends at the first error.
fn plain(ask: &Ask<'_>, server: &Server, database: &str, stream: &str) -> Result<(), LoadError> {
    let connection = &server.connection;
    let mut input = BufReader::with_capacity(
        1 << 16,
        ask.trial.streams.open(stream).map_err(|source| SourceError::File {
            action: "read",
            path: stream.into(),
            source,
        })?,
    );
    let argv = psql(database, &["--set=VERBOSITY=terse", "--set=SHOW_CONTEXT=never", "--output=/dev/null", "--file=-"]);
    let command =
        connection.command(argv, ask.deadline, ask.trial.cancel).env("PGCLIENTENCODING", "UTF8".to_owned()).stdin();
    let mut running = connection.start(command)?;
    let mut stdin = running.stdin().ok_or_else(|| SourceError::problem("psql was started without its pipe"))?;
    let passed = pass(&mut input, &mut stdin);
    let refused = match passed {
        Ok(()) => {
            // A psql that ended early says why.
            let _ = stdin.flush();
            None
        }
        Err(Stopped::Write) => None,
        Err(Stopped::Refused(why)) => Some(why),
        Err(Stopped::Read(e)) => Some(format!("it cannot be read: {e}")),
    };
    drop(stdin);
    let exit = running.wait()?;
    match (refused, exit.code) {
        (Some(why), _) => Err(LoadError::Refused(why)),
        (None, 0) => Ok(()),
        (None, _) => Err(LoadError::Refused(one_line(&exit.stderr))),
    }
}
