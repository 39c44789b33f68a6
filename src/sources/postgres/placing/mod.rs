//! Putting captured databases back into their server: restored beside the live ones, then exchanged by renaming.
//!
//! Order (must): missing roles (one transaction) → the database `<name>__lifeboat_new`, loaded and counted → in `switch`
//! no connections to either, sessions ended, both renames in one transaction, connections again. What a step finds
//! decides what it does, never what an earlier one meant to do; so every step can be repeated and undone from anywhere,
//! and each of them leaves connections allowed.
//!
//! Never: a role is dropped or changed that was there; a database is touched that is not the snapshot's.

mod ground;
mod losses;
mod names;
mod plan;
mod prepare;
mod room;
mod swap;
mod tables;

pub(super) use names::is_of_a_restore;

use super::PostgresSource;
use super::connection::Connection;
use super::facts::Facts;
use super::session::{Session, SessionError};
use crate::base::cancel::Cancel;
use crate::sources::SourceError;
use crate::sources::placing::{Intent, Part, Placing, Scene, Stored};
use crate::sources::run::{Deadline, settle};
use serde::{Deserialize, Serialize};

/// What is put back, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// Beside, then exchanged.
    Swap,
    /// The live one is dropped first.
    Replace,
    /// Under another name, and nothing else.
    Beside,
    /// Single tables of a live database.
    Tables,
}

/// Everything that the steps need to know: the journal holds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    mode: Mode,
    databases: Vec<Move>,
    /// Roles that the server did not have.
    roles: Vec<String>,
    /// Further options of `pg_restore`.
    options: Vec<String>,
    /// The folder in which dumps are laid out: on this host, or in the container.
    stage: String,
    tables: Vec<TableMove>,
    /// Schemas beside the tables' own: of the new tables, and of those that were replaced.
    schema_new: String,
    schema_old: String,
}

/// One database.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Move {
    /// Its name in the snapshot, and in the server.
    live: String,
    new: String,
    old: String,
    /// The live one's, when it was planned; absent: there was none.
    oid: Option<u64>,
    /// The server has its tablespace.
    tablespace: bool,
}

/// One table of the only database.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct TableMove {
    schema: String,
    name: String,
    /// As above.
    oid: Option<u64>,
}

/// The server, with a database to ask it through that no step renames.
struct Admin<'a> {
    connection: Connection,
    via: String,
    deadline: Deadline,
    cancel: &'a Cancel,
}

impl<'a> Admin<'a> {
    fn new(source: &PostgresSource, scene: &Scene<'a>, avoid: &[&str]) -> Result<Self, SourceError> {
        let connection = source.connect(scene.id, scene.cancel)?;
        let deadline = Deadline::after(source.timeout);
        let (mut session, first) = source.enter(&connection, deadline, scene.cancel)?;
        let listed = super::cluster::databases(&mut session).and_then(|listed| session.close().map(|()| listed));
        let listed = listed.map_err(|e| e.into_source(&connection, "list the databases"))?;
        let fits = |d: &&super::cluster::Listed| d.allows_connections && !avoid.contains(&d.name.as_str());
        let all = || listed.iter().filter(fits);
        let usual = all().find(|d| d.name == first).or_else(|| all().find(|d| d.name == "postgres"));
        let Some(via) = usual.or_else(|| all().find(|d| !d.template)).or_else(|| all().next()).map(|d| d.name.clone())
        else {
            return Err(SourceError::hint(
                format!("no database of {} may be entered but those that are to be replaced", connection.server),
                "create an empty database \"postgres\" in it",
            ));
        };
        Ok(Admin { connection, via, deadline, cancel: scene.cancel })
    }

    fn session(&self) -> Result<Session, SourceError> {
        self.enter(&self.via)
    }

    fn enter(&self, database: &str) -> Result<Session, SourceError> {
        let opened = Session::open(&self.connection, database, self.deadline, self.cancel);
        opened.map_err(|e| self.explain(e, &format!("connect to database {database:?}")))
    }

    fn explain(&self, error: SessionError, what: &str) -> SourceError {
        error.into_source(&self.connection, what)
    }

    /// Runs statements through a session of their own.
    fn run(&self, database: &str, sql: &str, what: &str) -> Result<(), SourceError> {
        let mut session = self.enter(database)?;
        session.execute(sql).and_then(|()| session.close()).map_err(|e| self.explain(e, what))
    }
}

fn facts(stored: &Stored<'_>) -> Result<Facts, SourceError> {
    Facts::deserialize(stored.facts)
        .map_err(|e| SourceError::problem(format!("the snapshot's facts cannot be read: {e}")))
}

fn state(intent: &Intent) -> Result<State, SourceError> {
    State::deserialize(&intent.state).map_err(|e| SourceError::problem(format!("what was planned cannot be read: {e}")))
}

impl State {
    /// Names that steps rename or drop.
    fn touched(&self) -> Vec<&str> {
        self.databases.iter().flat_map(|m| [m.live.as_str(), m.new.as_str(), m.old.as_str()]).collect()
    }
}

impl Placing for PostgresSource {
    fn plan(&self, scene: &Scene<'_>, stored: &Stored<'_>, part: &Part) -> Result<Intent, SourceError> {
        plan::plan(self, scene, stored, part).map_err(|e| settle(e, scene.cancel))
    }

    fn prepare(&self, scene: &Scene<'_>, stored: &Stored<'_>, intent: &Intent) -> Result<(), SourceError> {
        prepare::prepare(self, scene, stored, &state(intent)?).map_err(|e| settle(e, scene.cancel))
    }

    fn switch(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let state = state(intent)?;
        let done = match state.mode {
            Mode::Beside => Ok(()),
            Mode::Tables => tables::switch(self, scene, &state),
            Mode::Swap | Mode::Replace => swap::switch(self, scene, &state),
        };
        done.map_err(|e| settle(e, scene.cancel))
    }

    fn confirm(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let state = state(intent)?;
        let done = match state.mode {
            Mode::Beside => Ok(()),
            Mode::Tables => tables::confirm(self, scene, &state),
            Mode::Swap | Mode::Replace => swap::confirm(self, scene, &state),
        };
        done.map_err(|e| settle(e, scene.cancel))
    }

    fn back(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let state = state(intent)?;
        let done = match state.mode {
            Mode::Beside => Ok(()),
            Mode::Tables => tables::back(self, scene, &state),
            Mode::Swap | Mode::Replace => swap::back(self, scene, &state),
        };
        done.map_err(|e| settle(e, scene.cancel))
    }

    fn discard_new(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let state = state(intent)?;
        ground::clear(self, scene, &state)?;
        if state.mode == Mode::Tables {
            tables::discard(self, scene, &state, &state.schema_new)?;
        }
        swap::drop_databases(self, scene, &state, |m| m.new.as_str()).map_err(|e| settle(e, scene.cancel))
    }

    fn discard_old(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let state = state(intent)?;
        let done = match state.mode {
            Mode::Beside | Mode::Replace => Ok(()),
            Mode::Tables => tables::discard(self, scene, &state, &state.schema_old),
            Mode::Swap => swap::drop_databases(self, scene, &state, |m| m.old.as_str()),
        };
        done.map_err(|e| settle(e, scene.cancel))
    }
}
