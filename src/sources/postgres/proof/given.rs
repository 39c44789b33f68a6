//! A scratch server that the policy names: databases of a drill's own beside whatever else is there.
//!
//! Its roles are not the snapshot's, so who owns what is not proved there. Databases are called
//! `lifeboat_drill_<random>_<n>` and carry who made them in their comment; they are dropped when the proof is done, and
//! those of a killed run by the next.

use super::server::{Ask, Found, Kind, Server};
use crate::base::cancel::Cancel;
use crate::place::{HostPlace, owner_is_gone, owner_mark};
use crate::policy::model::{Databases, Fingerprint, PostgresSpec, Target};
use crate::sources::SourceError;
use crate::sources::locate::Located;
use crate::sources::postgres::connection::{Connection, identifier, literal};
use crate::sources::postgres::facts::Facts;
use crate::sources::postgres::session::{Session, SessionError};
use crate::sources::postgres::stage::{Stage, folder_for, make_folder, psql_script};
use crate::sources::run::Deadline;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const PREFIX: &str = "lifeboat_drill_";

/// The databases of one drill; dropped with this.
pub(super) struct Given {
    connection: Connection,
    via: String,
    folder: PathBuf,
    /// Captured name, and the name there.
    names: Vec<(String, String)>,
}

impl Given {
    pub fn database(&self, captured: &str) -> String {
        self.names.iter().find(|(name, _)| name == captured).map_or_else(|| captured.to_owned(), |(_, own)| own.clone())
    }

    /// The database through which the server is asked.
    pub fn via(&self) -> &str {
        &self.via
    }

    /// Says in the database itself who made it.
    pub fn comment(&self, own: &str) -> String {
        format!("COMMENT ON DATABASE {} IS {};\n", identifier(own), literal(owner_mark()))
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let script: String = self.names.iter().map(|(_, own)| drop_database(own)).collect();
        let deadline = Deadline::after(Duration::from_secs(120));
        match psql_script(&self.connection, &self.via, script.as_bytes(), deadline, &Cancel::new()) {
            Ok(Ok(())) => {}
            Ok(Err(said)) => tracing::warn!(said, "databases of a drill stay behind; the next drill drops them"),
            Err(error) => tracing::warn!(%error, "databases of a drill stay behind; the next drill drops them"),
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn drop_database(name: &str) -> String {
    format!(
        "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity WHERE datname = {};\n\
         DROP DATABASE IF EXISTS {};\n",
        literal(name),
        identifier(name)
    )
}

pub(super) fn start(ask: &Ask<'_>, url: &str) -> Result<Found, SourceError> {
    let spec = PostgresSpec {
        target: Target::Url(url.to_owned()),
        user: None,
        databases: Databases::Own,
        password_from: None,
        fingerprint: Fingerprint::Rows,
        jobs: 1,
    };
    let connect = || {
        Connection::new(
            &spec,
            &Located { place: Arc::new(HostPlace::new()), env: Default::default() },
            "drill",
            ask.trial.cancel,
        )
    };
    let connection = connect()?;
    let via = match spec_database(url) {
        Some(database) => database,
        None => "postgres".into(),
    };
    let asked = |e: SessionError| e.into_source(&connection, "ask the scratch server");
    let mut session = Session::open(&connection, &via, ask.deadline, ask.trial.cancel).map_err(asked)?;
    let version = session.version;
    if version / 10_000 != ask.major() {
        let text = session.version_text.clone();
        session.close().map_err(asked)?;
        let why = format!("the scratch server is PostgreSQL {text}, and the snapshot is of PostgreSQL {}", ask.major());
        return Ok(Found::None(why));
    }
    #[derive(Deserialize)]
    struct Left {
        name: String,
        mark: Option<String>,
    }
    let left: Vec<Left> = session
        .rows(&format!(
            "SELECT datname AS name, shobj_description(oid, 'pg_database') AS mark FROM pg_database \
             WHERE starts_with(datname, {})",
            literal(PREFIX)
        ))
        .map_err(asked)?;
    let text = session.version_text.clone();
    session.close().map_err(asked)?;
    let dead: String =
        left.iter().filter(|l| l.mark.as_deref().is_some_and(owner_is_gone)).map(|l| drop_database(&l.name)).collect();
    if !dead.is_empty()
        && let Err(said) = psql_script(&connection, &via, dead.as_bytes(), ask.deadline, ask.trial.cancel)?
    {
        tracing::warn!(said, "databases of an earlier drill stay behind");
    }
    let random = ask.random()?;
    let folder = folder_for(ask.trial.scratch, None, &format!("lifeboat-drill-{random}"));
    make_folder(&folder, None)?;
    let names = names(ask.facts, &random);
    Ok(Found::Server(Box::new(Server {
        stage: Stage::Host { dir: folder.clone(), owner: None },
        version,
        what: format!("PostgreSQL {text} at {}", connection.server),
        own_role: connection.user.clone(),
        tablespaces: None,
        kind: Kind::Given(Given { connection: connect()?, via, folder, names }),
        connection,
    })))
}

fn names(facts: &Facts, random: &str) -> Vec<(String, String)> {
    facts.databases.iter().enumerate().map(|(i, d)| (d.name.clone(), format!("{PREFIX}{random}_{i}"))).collect()
}

fn spec_database(url: &str) -> Option<String> {
    super::super::url::parse(url).ok()?.database
}
