//! PostgreSQL: its databases by `pg_dump`, its roles by `pg_dumpall`, and what the server knew of itself at that instant.
//!
//! One database is captured so, in this order:
//! 1. a side session locks the tables against changes of their form, opens a snapshot and exports it;
//! 2. facts that do not depend on rows are read in it; `pg_dump` is started on that snapshot, in one or several parts, and
//!    sessions that read the rows of large tables enter it;
//! 3. when every `pg_dump` has written its first bytes it holds its locks, as those sessions do: from here on nothing can
//!    come between;
//! 4. the dumps are stored while the side session counts rows (or reads contents) in the same snapshot; of rows that are read
//!    here the server says itself how many it sent;
//! 5. the dumps' own row counts are held against the server's, and only then the streams are finished.
//!
//! Each database has one instant; several have one each. Roles have none.
//!
//! Streams: `globals.sql`; for each database `<database>.dump`, or its parts in the order that `facts` names
//! ([`facts::Part`]). Facts: [`facts::Facts`].

mod archive;
mod catalog;
mod change;
mod cluster;
mod connection;
mod content;
mod database;
mod dump;
pub mod facts;
mod grants;
mod load;
mod login;
mod login_keys;
mod migrations;
mod pace;
mod parts;
mod placing;
mod proof;
mod rows;
mod script;
mod session;
mod shape;
mod stage;
mod url;
mod wire;

pub use change::{Form, MigrationDifference, SchemaChange, majors, schema_change, schema_differs};
pub use login::{Login, check_logins};
pub use parts::PARTS_FROM_BYTES;
pub use proof::{Form as DumpForm, PostgresProof, compare_foreign, sweep_local};

use super::locate::{Locate, describe};
use super::run::{Deadline, Linked, settle};
use super::{Capture, Captured, Source, SourceError};
use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::base::stream::StreamKind;
use crate::base::threads;
use crate::policy::model::{Databases, Fingerprint, PostgresSpec};
use cluster::{Listed, OtherRun, Server};
use connection::Connection;
use facts::{Facts, Globals};
use session::{Session, SessionError};
use std::time::Duration;

/// Limits that a test sets lower.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The longest that `pg_dump` may stand without a byte of output.
    pub stall: Duration,
    /// The longest that the side session waits for the tables' locks.
    pub lock_wait: Duration,
    /// A database smaller than this is one stream.
    pub parts_from_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { stall: Duration::from_secs(600), lock_wait: Duration::from_secs(60), parts_from_bytes: PARTS_FROM_BYTES }
    }
}

/// A PostgreSQL server of a policy.
pub struct PostgresSource {
    name: SourceName,
    spec: PostgresSpec,
    timeout: Duration,
    locate: Locate,
    limits: Limits,
}

/// The databases of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnServer {
    /// The one that is the application's own, whether it is there or not.
    pub own: String,
    pub all: Vec<String>,
}

/// What is known of a server before anything is dumped.
struct Preflight {
    /// The database that the server was asked through.
    via: String,
    server: Server,
    version: u32,
    version_text: String,
    pg_dump_version: String,
    pg_dump_major: u32,
    databases: Vec<String>,
    other_runs: Vec<OtherRun>,
}

impl PostgresSource {
    pub fn new(name: SourceName, spec: PostgresSpec, timeout: Duration, locate: Locate) -> Self {
        Self { name, spec, timeout, locate, limits: Limits::default() }
    }

    /// With limits of its own.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    fn connect(&self, run_name: &str, cancel: &Cancel) -> Result<Connection, SourceError> {
        let located = (self.locate)(&self.spec.target)?;
        Connection::new(&self.spec, &located, &format!("{run_name}/{}", self.name), cancel)
    }

    /// Databases through which the server may be asked, likeliest first.
    fn candidates(&self, connection: &Connection) -> Vec<String> {
        let mut names = match &self.spec.databases {
            Databases::Own => vec![connection.own_database.clone()],
            Databases::Named(names) => names.clone(),
            Databases::All => Vec::new(),
        };
        for usual in ["postgres", connection.own_database.as_str(), "template1"] {
            if !names.iter().any(|n| n == usual) {
                names.push(usual.to_owned());
            }
        }
        names
    }

    /// A session with the server, through whichever database lets one in. The first refusal is the one that counts.
    fn enter(
        &self,
        connection: &Connection,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<(Session, String), SourceError> {
        let mut first = None;
        for database in self.candidates(connection) {
            match Session::open(connection, &database, deadline, cancel) {
                Ok(session) => return Ok((session, database)),
                Err(SessionError::Other(error)) => return Err(error),
                Err(refused) => {
                    let elsewhere = ["does not exist", "not currently accepting connections"];
                    let missing =
                        matches!(&refused, SessionError::Broken { text } if elsewhere.iter().any(|e| text.contains(e)));
                    let what = format!("connect to database {database:?}");
                    let error = refused.into_source(connection, &what);
                    first.get_or_insert(error);
                    if !missing {
                        break;
                    }
                }
            }
        }
        Err(first.unwrap_or_else(|| SourceError::problem("no database to connect to")))
    }

    /// The databases of the server that may be connected to, without templates.
    pub fn databases(&self, cancel: &Cancel) -> Result<OnServer, SourceError> {
        let result = (|| {
            let connection = self.connect("look", cancel)?;
            let deadline = Deadline::after(self.timeout.min(Duration::from_secs(60)));
            let (mut session, _) = self.enter(&connection, deadline, cancel)?;
            let asked = |e: SessionError| e.into_source(&connection, "ask the server");
            let listed = cluster::databases(&mut session).map_err(asked)?;
            session.close().map_err(asked)?;
            let real = listed.into_iter().filter(|d| !d.template && d.allows_connections).map(|d| d.name);
            let all = real.filter(|name| !placing::is_of_a_restore(name)).collect();
            Ok(OnServer { own: connection.own_database.clone(), all })
        })();
        result.map_err(|e| settle(e, cancel))
    }

    fn preflight(
        &self,
        connection: &Connection,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<(Preflight, Session), SourceError> {
        let (entered, told) = std::thread::scope(|scope| {
            let told = threads::beside(scope, || connection.tool_version("pg_dump", deadline, cancel));
            (self.enter(connection, deadline, cancel), told.join())
        });
        let (mut session, via) = entered?;
        let broke = || Err(SourceError::problem("the thread that asks for the version of pg_dump broke"));
        let (pg_dump_version, tool_major) = told.unwrap_or_else(broke)?;
        let server_major = session.version / 10_000;
        if tool_major < server_major {
            return Err(SourceError::hint(
                format!(
                    "pg_dump {pg_dump_version} in {} cannot dump {}, which is PostgreSQL {}",
                    connection.place().describe(),
                    connection.server,
                    session.version_text
                ),
                format!(
                    "install the client tools of version {server_major} (Debian: apt install postgresql-client-{server_major}), or name the server's container, which has its own"
                ),
            ));
        }
        if session.version < 110_000 {
            return Err(SourceError::hint(
                format!(
                    "{} is PostgreSQL {}; version 11 is the oldest that is supported",
                    connection.server, session.version_text
                ),
                "upgrade the server; until then a command source with pg_dumpall captures it",
            ));
        }
        let asked = |e: SessionError| e.into_source(connection, "ask the server");
        let server = cluster::server(&mut session).map_err(asked)?;
        if server.ignores_damage {
            return Err(SourceError::hint(
                format!(
                    "{} is set to pass over damaged pages (zero_damaged_pages or ignore_checksum_failure): a dump would lose rows without a word",
                    connection.server
                ),
                "switch the setting off, also in ALTER ROLE and ALTER DATABASE",
            ));
        }
        let listed = cluster::databases(&mut session).map_err(asked)?;
        let databases = self.choose(connection, &listed)?;
        let other_runs = cluster::other_runs(&mut session, &connection.application_name).map_err(asked)?;
        let preflight = Preflight {
            via,
            server,
            version: session.version,
            version_text: session.version_text.clone(),
            pg_dump_version,
            pg_dump_major: tool_major,
            databases,
            other_runs,
        };
        Ok((preflight, session))
    }

    /// The databases that the policy means, in the order that it names them.
    fn choose(&self, connection: &Connection, listed: &[Listed]) -> Result<Vec<String>, SourceError> {
        let wanted = match &self.spec.databases {
            Databases::Own => vec![connection.own_database.clone()],
            Databases::Named(names) => names.clone(),
            Databases::All => {
                let ours = |d: &&Listed| !placing::is_of_a_restore(&d.name);
                let all = listed.iter().filter(|d| !d.template && d.allows_connections).filter(ours);
                return Ok(all.map(|d| d.name.clone()).collect());
            }
        };
        let mut chosen = Vec::new();
        for name in wanted {
            match listed.iter().find(|d| d.name == name) {
                Some(Listed { allows_connections: true, .. }) => {}
                Some(_) => {
                    let problem = format!("database {name:?} on {} allows no connections", connection.server);
                    return Err(SourceError::hint(
                        problem,
                        format!("ALTER DATABASE … ALLOW_CONNECTIONS true for {name:?}"),
                    ));
                }
                None => {
                    let there: Vec<&str> = listed.iter().filter(|d| !d.template).map(|d| d.name.as_str()).collect();
                    return Err(SourceError::hint(
                        format!("no database {name:?} on {}", connection.server),
                        format!("it has {}; databases = […] in the policy says which to take", there.join(", ")),
                    ));
                }
            }
            if !chosen.contains(&name) {
                chosen.push(name);
            }
        }
        Ok(chosen)
    }

    /// What the server says of itself, without its databases; ends the session.
    fn ask(&self, preflight: &Preflight, connection: &Connection, mut session: Session) -> Result<Facts, SourceError> {
        let asked = |e: SessionError| e.into_source(connection, "ask the server");
        let facts = Facts {
            server_version: preflight.version_text.clone(),
            server_version_num: preflight.version,
            pg_dump_version: preflight.pg_dump_version.clone(),
            user: connection.user.clone(),
            superuser: preflight.server.superuser,
            standby: preflight.server.standby,
            data_checksums: preflight.server.data_checksums,
            shared_preload_libraries: preflight.server.shared_preload_libraries.clone(),
            globals: Globals { stream: GLOBALS.into(), passwords: preflight.server.reads_passwords },
            roles: cluster::roles(&mut session).map_err(asked)?,
            memberships: cluster::memberships(&mut session).map_err(asked)?,
            tablespaces: cluster::tablespaces(&mut session).map_err(asked)?,
            prepared_transactions: cluster::prepared_transactions(&mut session).map_err(asked)?,
            replication_slots: cluster::replication_slots(&mut session).map_err(asked)?,
            databases: Vec::new(),
        };
        session.close().map_err(asked)?;
        Ok(facts)
    }

    fn capture_all(&self, cx: &Capture<'_>, connection: &Connection, cancel: &Cancel) -> Result<Captured, SourceError> {
        let deadline = Deadline::after(self.timeout);
        let (preflight, session) = self.preflight(connection, deadline, cancel)?;
        if self.spec.fingerprint == Fingerprint::Content {
            tracing::debug!(source = %self.name, "contents are read in full");
        }
        let mut warnings = preflight.warnings();
        let (standby, stall) = (preflight.server.standby, self.limits.stall);
        let run = |database| dump::Run { connection, database, deadline, stall, cancel, standby };
        // The roles are dumped while the session answers: two connections, as a database wants at least.
        let (globals, told) = std::thread::scope(|scope| {
            let globals = threads::beside(scope, || -> Result<(), SourceError> {
                cx.events.step(format!("{}: roles of {}", self.name, connection.server));
                let stream = cx.sink.stream(GLOBALS.parse()?, StreamKind::Sql, None).map_err(SourceError::Sink)?;
                let globals = dump::globals(&run(&preflight.via), stream, preflight.server.reads_passwords)?;
                globals.finish().map_err(SourceError::Sink)
            });
            let told = self.ask(&preflight, connection, session);
            (globals.join(), told)
        });
        cancel.check()?;
        let broke = || Err(SourceError::problem("the thread that dumps the roles broke"));
        globals.unwrap_or_else(broke)?;
        let mut facts = told?;
        warnings.extend(facts_warnings(&facts, &preflight.databases));

        for name in &preflight.databases {
            cx.cancel.check()?;
            cx.events.step(format!("{}: database {name:?} of {}", self.name, connection.server));
            let (database, said) = database::capture(&run(name), cx, &self.spec, &self.limits)?;
            warnings.extend(said);
            facts.databases.push(database);
        }
        let facts = facts.to_value().map_err(|e| SourceError::problem(format!("facts cannot be written: {e}")))?;
        for warning in &warnings {
            cx.events.warn(&self.name, warning.clone());
        }
        Ok(Captured { facts, warnings })
    }
}

/// The stream of roles.
const GLOBALS: &str = "globals.sql";

impl Preflight {
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.server.reads_passwords {
            warnings.push(
                "the user is no superuser: roles are captured without their passwords, which have to be set anew after a restore"
                    .into(),
            );
        }
        if self.server.standby {
            warnings
                .push("the server is a standby: unlogged tables are empty there, and its data may lag behind".into());
        }
        let server_major = self.version / 10_000;
        if self.pg_dump_major > server_major {
            warnings.push(format!(
                "pg_dump {} is newer than the server: its dumps are read by pg_restore {} only, which may want settings that PostgreSQL {server_major} does not know",
                self.pg_dump_version, self.pg_dump_major
            ));
        }
        for run in &self.other_runs {
            warnings.push(format!(
                "another run has {} open in this server since {}: {} (if that run is over, its sessions were left behind; pg_terminate_backend ends them)",
                if run.sessions == 1 { "a session".into() } else { format!("{} sessions", run.sessions) },
                run.since,
                run.name
            ));
        }
        warnings
    }
}

fn facts_warnings(facts: &Facts, databases: &[String]) -> Vec<String> {
    let mut warnings = Vec::new();
    let prepared = facts.prepared_transactions.iter().filter(|t| databases.contains(&t.database));
    for transaction in prepared {
        warnings.push(format!(
            "database {:?} has a prepared transaction {:?} since {}: no dump holds what it did, and its locks may block",
            transaction.database, transaction.name, transaction.prepared
        ));
    }
    for slot in facts.replication_slots.iter().filter(|s| s.database.as_ref().is_some_and(|d| databases.contains(d))) {
        warnings.push(format!(
            "database {:?} has the logical replication slot {:?}: no dump holds it",
            slot.database.as_deref().unwrap_or_default(),
            slot.name
        ));
    }
    warnings
}

impl Source for PostgresSource {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn describe(&self) -> String {
        let which = match &self.spec.databases {
            Databases::Own => "the application's database".to_owned(),
            Databases::All => "all databases".to_owned(),
            Databases::Named(names) => names.join(", "),
        };
        format!("{which} of {} (pg_dump)", describe(&self.spec.target))
    }

    fn probe(&self, cancel: &Cancel) -> Result<(), SourceError> {
        let result = (|| {
            let connection = self.connect("probe", cancel)?;
            let deadline = Deadline::after(self.timeout.min(Duration::from_secs(60)));
            let (preflight, session) = self.preflight(&connection, deadline, cancel)?;
            session.close().map_err(|e| e.into_source(&connection, "ask the server"))?;
            for name in preflight.databases.iter().filter(|n| **n != preflight.via) {
                let refused = |e: SessionError| e.into_source(&connection, &format!("connect to database {name:?}"));
                Session::open(&connection, name, deadline, cancel).and_then(Session::close).map_err(refused)?;
            }
            Ok(())
        })();
        result.map_err(|e| settle(e, cancel))
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        let linked = Linked::to(cx.cancel)?;
        let connection = self.connect(cx.snapshot.as_str(), cx.cancel).map_err(|e| settle(e, cx.cancel))?;
        self.capture_all(cx, &connection, &linked.cancel).map_err(|error| {
            linked.raise();
            connection.end_sessions(&self.candidates(&connection)[0]);
            settle(error, cx.cancel)
        })
    }
}
