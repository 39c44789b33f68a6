//! The throw-away server that captured databases are restored into: which kind, how it is made fast and small, and
//! what the rest of the proof knows of it.
//!
//! It is made by `initdb` in a folder of its own, runs without network, as an account that may do nothing else, within a
//! limit of memory, and with everything off that only guards against a crash.

use super::container::{self, InContainer};
use super::given::{self, Given};
use super::local::{self, Local};
use crate::place::Command;
use crate::policy::model::{DrillPostgres, SourceSpec, Target};
use crate::sources::SourceError;
use crate::sources::postgres::connection::{Connection, identifier, literal};
use crate::sources::postgres::facts::{Facts, Role};
use crate::sources::postgres::session::{Session, SessionError};
use crate::sources::postgres::stage::{Stage, psql_script};
use crate::sources::proof::Trial;
use crate::sources::run::{Deadline, run};
use std::time::{Duration, Instant};

/// The server runs; when this is dropped it has ended and all that it wrote is gone.
pub(super) struct Server {
    pub connection: Connection,
    pub stage: Stage,
    /// `server_version_num`.
    pub version: u32,
    /// For people: `PostgreSQL 15.20 in a container of postgres:15`.
    pub what: String,
    /// The role that the proof works as; it is not of the snapshot.
    pub own_role: String,
    /// The folder in which tablespaces can be made. Absent on a server that is not ours.
    pub tablespaces: Option<String>,
    pub kind: Kind,
}

/// How it is ended.
pub(super) enum Kind {
    Container { _server: InContainer },
    Local { _server: Local },
    Given(Given),
}

/// What came of looking for a server.
pub(super) enum Found {
    Server(Box<Server>),
    /// There is none, and why.
    None(String),
}

/// What a server is started with.
pub(super) struct Ask<'a> {
    pub trial: &'a Trial<'a>,
    pub facts: &'a Facts,
    pub deadline: Deadline,
}

impl Ask<'_> {
    pub fn major(&self) -> u32 {
        self.facts.server_version_num / 10_000
    }

    /// Names of its own that nobody guesses.
    pub fn random(&self) -> Result<String, SourceError> {
        let random: [u8; 6] = crate::base::ids::random_bytes()
            .map_err(|source| crate::place::PlaceError::from_io("draw a name", "this host", source))?;
        Ok(hex::encode(random))
    }

    /// The role that `initdb` makes: the one that the live server was made with, as far as the facts tell, so that what
    /// belongs to it by birth belongs to the same name.
    pub fn bootstrap(&self) -> &str {
        let whole = |r: &&Role| {
            r.superuser && r.inherit && r.create_role && r.create_database && r.login && r.replication && r.bypass_rls
        };
        let candidates: Vec<&Role> = self.facts.roles.iter().filter(whole).collect();
        let usual = [self.facts.user.as_str(), "postgres"];
        let by_name = usual.iter().find_map(|name| candidates.iter().find(|r| r.name == *name));
        by_name.or(candidates.first()).map_or("postgres", |r| r.name.as_str())
    }

    /// The captured server's container, where the policy has one.
    fn target(&self) -> Option<&Target> {
        match &self.trial.source?.spec {
            SourceSpec::Postgres(spec) => Some(&spec.target),
            _ => None,
        }
    }
}

/// Starts a server of the captured one's major version, as the policy says.
pub(super) fn start(ask: &Ask<'_>) -> Result<Found, SourceError> {
    let container = |ask: &Ask<'_>| match ask.target() {
        Some(target @ (Target::Service(_) | Target::Container(_))) => container::start(ask, target),
        _ => Ok(Found::None("the live server runs in no container".into())),
    };
    match &ask.trial.drill.postgres {
        DrillPostgres::Image => container(ask),
        DrillPostgres::Local => local::start(ask),
        DrillPostgres::Server(url) => given::start(ask, url),
        DrillPostgres::Auto => {
            let why = match container(ask) {
                Ok(Found::None(why)) => why,
                Ok(found) => return Ok(found),
                Err(error @ SourceError::Cancelled(_)) => return Err(error),
                Err(error) => {
                    ask.trial.cancel.check()?;
                    tracing::warn!(%error, "no container for the drill");
                    error.to_string()
                }
            };
            match local::start(ask)? {
                Found::None(here) => Ok(Found::None(format!("{why}; {here}"))),
                found => Ok(found),
            }
        }
    }
}

/// Settings of a server that lives for minutes, in `memory` bytes.
pub(super) fn settings(ask: &Ask<'_>, version_major: u32, socket: &str) -> Vec<String> {
    let memory = ask.trial.drill.memory;
    let mib = |bytes: u64, least: u64, most: u64| format!("{}MB", (bytes >> 20).clamp(least, most));
    let mut all: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| all.push((name.into(), value.into()));
    set("listen_addresses", "");
    set("unix_socket_directories", socket);
    set("unix_socket_permissions", "0700");
    set("port", "5432");
    set("shared_buffers", &mib(memory / 4, 16, 1024));
    set("maintenance_work_mem", &mib(memory / 12, 16, 256));
    set("work_mem", &mib(memory / 64, 4, 64));
    set("max_connections", "40");
    set("max_locks_per_transaction", "512");
    set("max_parallel_maintenance_workers", "0");
    // A server that is killed leaves its shared memory behind: so it lies in its folder, which goes.
    set("dynamic_shared_memory_type", "mmap");
    // Nothing of it shall outlive a crash.
    for off in ["fsync", "synchronous_commit", "full_page_writes", "autovacuum", "jit", "ssl", "logging_collector"] {
        set(off, "off");
    }
    set("wal_level", "minimal");
    set("max_wal_senders", "0");
    set("max_wal_size", "4GB");
    set("checkpoint_timeout", "1h");
    if version_major >= 12 {
        set("wal_init_zero", "off");
        set("wal_recycle", "off");
    }
    set("log_min_messages", "error");
    // What failed may hold what nobody should read.
    set("log_min_error_statement", "panic");
    let libraries = preload(ask.facts);
    if !libraries.is_empty() {
        set("shared_preload_libraries", &libraries.join(","));
    }
    if libraries.iter().any(|l| l == "pg_cron") {
        // Its jobs would change what was restored.
        set("cron.launch_active_jobs", "off");
        if let Some(database) = ask.facts.databases.iter().find(|d| d.extensions.iter().any(|e| e.name == "pg_cron")) {
            set("cron.database_name", &database.name);
        }
    }
    all.into_iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]).collect()
}

/// Libraries that the live server loads at its start and that an extension of a captured database needs.
fn preload(facts: &Facts) -> Vec<String> {
    let list = facts.shared_preload_libraries.as_deref().unwrap_or_default();
    let plain = |l: &&str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let needed = |l: &&str| facts.databases.iter().any(|d| d.extensions.iter().any(|e| e.name == *l));
    // The usual one works without.
    let listed =
        list.split(',').map(|l| l.trim().trim_matches('"')).filter(plain).filter(|l| *l != "pg_stat_statements");
    listed.filter(needed).map(str::to_owned).collect()
}

/// Waits until the server answers as its first role, makes the role that the proof works as, and becomes it.
pub(super) fn take_over(
    ask: &Ask<'_>,
    connection: Connection,
    own_role: &str,
    ended: &mut dyn FnMut() -> Option<String>,
) -> Result<(Connection, u32, String), SourceError> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let begin = Instant::now();
    loop {
        ask.trial.cancel.check()?;
        if let Some(said) = ended() {
            return Err(SourceError::problem(format!("the server of the drill did not start: {said}")));
        }
        let argv = super::super::connection::psql("template1", &["--command", "SELECT 1"]);
        let command = connection.command(argv, Deadline::after(Duration::from_secs(15)), ask.trial.cancel);
        let (_, exit) = run(connection.place(), command, 4096)?;
        if exit.code == 0 {
            break;
        }
        if begin.elapsed() > PATIENCE {
            let said = crate::sources::run::one_line(&exit.stderr);
            return Err(SourceError::problem(format!("the server of the drill does not answer: {said}")));
        }
        std::thread::sleep(Duration::from_millis(40));
    }
    // A database of the snapshot may be called so as well.
    let script = format!(
        "CREATE ROLE {} SUPERUSER LOGIN;\nCOMMENT ON ROLE {} IS {};\nDROP DATABASE postgres;\n",
        identifier(own_role),
        identifier(own_role),
        literal("of a drill; not of the snapshot")
    );
    if let Err(said) = psql_script(&connection, "template1", script.as_bytes(), ask.deadline, ask.trial.cancel)? {
        return Err(SourceError::problem(format!("prepare the server of the drill: {said}")));
    }
    let connection = connection.with_user(own_role);
    let asked = |e: SessionError| e.into_source(&connection, "ask the server of the drill");
    let session = Session::open(&connection, "template1", ask.deadline, ask.trial.cancel).map_err(asked)?;
    let (version, text) = (session.version, session.version_text.clone());
    session.close().map_err(asked)?;
    Ok((connection, version, text))
}

impl Server {
    /// Makes a folder for a tablespace; its path.
    pub fn tablespace_folder(&self, ask: &Ask<'_>, number: usize) -> Result<Option<String>, SourceError> {
        let Some(base) = &self.tablespaces else { return Ok(None) };
        let path = format!("{base}/{number}");
        let command = Command::new(["mkdir", "-p", "--", path.as_str()])
            .user(self.connection.account().map(str::to_owned))
            .timeout(ask.deadline.left())
            .cancel(ask.trial.cancel);
        self.connection.place().output(command, 4096)?;
        Ok(Some(path))
    }

    /// The name that a captured database has there.
    pub fn database(&self, captured: &str) -> String {
        match &self.kind {
            Kind::Given(given) => given.database(captured),
            _ => captured.to_owned(),
        }
    }

    /// Its roles are the snapshot's.
    pub fn has_roles(&self) -> bool {
        !matches!(self.kind, Kind::Given(_))
    }
}
