//! How the tools of PostgreSQL are run and what they are told: in the server's container, or on this host.
//!
//! Invariants: a password goes through the environment of the tool alone; a database's name goes to a tool as
//! `dbname='…'` only, because a bare name with `=` in it, or one that looks like a URL, would be read as a connection
//! string; `~/.psqlrc` is never read; every session carries the run's name, so that a later run can find it.

use super::url;
use crate::base::cancel::Cancel;
use crate::base::secret::Secret;
use crate::place::{Command, Place, PlaceError};
use crate::policy::model::{PostgresSpec, Target};
use crate::sources::SourceError;
use crate::sources::locate::Located;
use crate::sources::run::{Deadline, one_line, run};
use crate::sources::secret;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Where sessions of any run are seen in `pg_stat_activity`.
pub(super) const APPLICATION_PREFIX: &str = "lifeboat:";

/// A server that was started for one purpose.
pub(super) struct Own<'a> {
    pub place: Arc<dyn Place>,
    pub account: Option<String>,
    pub user: &'a str,
    /// The folder of its socket.
    pub socket: &'a str,
    /// Where its tools are looked for.
    pub path: Option<&'a str>,
    pub application_name: &'a str,
    /// For messages.
    pub server: String,
    pub through_exec: bool,
}

/// A server that can be talked to.
pub(super) struct Connection {
    place: Arc<dyn Place>,
    /// The account that the tools run as: a local socket asks who calls.
    account: Option<String>,
    env: Vec<(String, Secret<String>)>,
    pub user: String,
    /// The application's own database.
    pub own_database: String,
    /// For messages: `container shop_db`, `db.example:5432`.
    pub server: String,
    /// For messages: where the password was taken from, as a clause.
    password_origin: Option<String>,
    pub application_name: String,
    /// Whether every byte goes through a container's exec, which is slower than a socket.
    pub through_exec: bool,
}

impl Connection {
    pub fn new(spec: &PostgresSpec, located: &Located, run_name: &str, cancel: &Cancel) -> Result<Self, SourceError> {
        let address = match &spec.target {
            Target::Url(text) => url::parse(text)?,
            _ => url::ServerUrl::default(),
        };
        let through_exec = matches!(spec.target, Target::Service(_) | Target::Container(_));
        let variable = |names: &[&str]| from_container(located, names, cancel);
        let user = match spec.user.clone().or(address.user.clone()) {
            Some(user) => user,
            None => variable(&["POSTGRES_USER", "POSTGRESQL_USERNAME"])?
                .map_or_else(|| "postgres".into(), |v| v.expose().clone()),
        };
        let own_database = match address.database.clone() {
            Some(database) => database,
            None => {
                variable(&["POSTGRES_DB", "POSTGRESQL_DATABASE"])?.map_or_else(|| user.clone(), |v| v.expose().clone())
            }
        };
        let (password, password_origin) = match &spec.password_from {
            Some(reference) => (
                Some(secret::resolve(reference)?),
                Some(format!("password_from points to {}", secret::describe(reference))),
            ),
            None => match variable(&["POSTGRES_PASSWORD", "POSTGRESQL_PASSWORD"])? {
                Some(password) => (Some(password), Some("it is the container's POSTGRES_PASSWORD".into())),
                None => (None, None),
            },
        };
        let mut application_name = format!("{APPLICATION_PREFIX}{run_name}");
        // PostgreSQL cuts names there, and replaces what is not ASCII; a source's name is ASCII.
        application_name.truncate(63);
        let mut env: Vec<(String, Secret<String>)> = Vec::new();
        let mut set = |name: &str, value: String| env.push((name.into(), value.into()));
        set("PGUSER", user.clone());
        set("PGAPPNAME", application_name.clone());
        set("PGCONNECT_TIMEOUT", "10".into());
        // Messages in English, so that the well-known ones are recognised.
        set("LC_ALL", "C".into());
        for (name, value) in [("PGHOST", address.host.clone()), ("PGPORT", address.port.map(|p| p.to_string()))] {
            if let Some(value) = value {
                set(name, value);
            }
        }
        for (name, value) in address.tls.clone() {
            set(name, value);
        }
        // Where a host is said, Debian's wrapper only looks for the newest tools, and takes longer for it than they do.
        if !through_exec && address.host.is_some() {
            env.extend(newest_tools().map(|path| ("PATH".to_owned(), path.into())));
        }
        let account = match (&spec.target, &password) {
            (Target::Host, None) => account_named(&user),
            _ => None,
        };
        env.extend(password.map(|p| ("PGPASSWORD".to_owned(), p)));
        let server = match (&spec.target, &address.host) {
            (Target::Url(_), Some(host)) => match address.port {
                Some(port) if !host.starts_with('/') => format!("{host}:{port}"),
                _ => host.clone(),
            },
            (Target::Url(_) | Target::Host, _) => "this host's PostgreSQL".into(),
            _ => located.place.describe(),
        };
        Ok(Self {
            place: located.place.clone(),
            account,
            env,
            user,
            own_database,
            server,
            password_origin,
            application_name,
            through_exec,
        })
    }

    /// A connection to a server that was started for one purpose: through its socket's folder, without a password, with
    /// the tools of `bin` where that is known.
    pub fn to_own(own: Own<'_>) -> Self {
        let mut env: Vec<(String, Secret<String>)> = Vec::new();
        let mut set = |name: &str, value: &str| env.push((name.into(), value.to_owned().into()));
        set("PGUSER", own.user);
        set("PGHOST", own.socket);
        set("PGPORT", "5432");
        set("PGAPPNAME", own.application_name);
        set("PGCONNECT_TIMEOUT", "10");
        set("LC_ALL", "C");
        // What was captured may say otherwise of a role or database, and these win.
        set(
            "PGOPTIONS",
            "-c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0 \
             -c idle_in_transaction_session_timeout=0 -c session_replication_role=origin",
        );
        if let Some(path) = own.path {
            set("PATH", path);
        }
        Self {
            place: own.place,
            account: own.account,
            env,
            user: own.user.to_owned(),
            own_database: "template1".into(),
            server: own.server,
            password_origin: None,
            application_name: own.application_name.to_owned(),
            through_exec: own.through_exec,
        }
    }

    /// The same as another role.
    pub fn with_user(mut self, user: &str) -> Self {
        self.user = user.to_owned();
        for (_, value) in self.env.iter_mut().filter(|(name, _)| name == "PGUSER") {
            *value = user.to_owned().into();
        }
        self
    }

    /// The server's files lie where the tools run.
    pub fn is_local(&self) -> bool {
        self.variable("PGHOST").is_none_or(|host| host.starts_with('/'))
    }

    /// What libpq is told by a variable.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(n, _)| n == name).map(|(_, value)| value.expose().as_str())
    }

    /// The password that the policy has.
    pub fn password(&self) -> Option<&str> {
        self.variable("PGPASSWORD")
    }

    /// The host (or the folder of a socket) and the port, where they are set.
    pub fn address(&self) -> (Option<&str>, Option<&str>) {
        (self.variable("PGHOST"), self.variable("PGPORT"))
    }

    /// The account that the tools run as.
    pub fn account(&self) -> Option<&str> {
        self.account.as_deref()
    }

    /// A tool with its connection in the environment.
    pub fn command(&self, argv: Vec<String>, deadline: Deadline, cancel: &Cancel) -> Command {
        let mut command =
            Command::new(argv).user(self.account.clone()).timeout(deadline.left()).cancel(cancel).dir("/");
        command.env.extend(self.env.iter().cloned());
        command
    }

    pub fn start(&self, command: Command) -> Result<Box<dyn crate::place::Running>, SourceError> {
        self.place.start(command).map_err(|e| self.tool_error(e))
    }

    pub fn place(&self) -> &dyn Place {
        &*self.place
    }

    /// What `tool --version` says, such as `15.20`, and its major version.
    pub fn tool_version(&self, tool: &str, deadline: Deadline, cancel: &Cancel) -> Result<(String, u32), SourceError> {
        let command = self.command(vec![tool.into(), "--version".into()], deadline, cancel);
        let (out, exit) = run(&*self.place, command, 4096).map_err(|e| self.tool_error(e))?;
        let text = String::from_utf8_lossy(&out).into_owned();
        let version = text.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()));
        let major = version.and_then(|v| v.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
        match (exit.code, version, major) {
            (0, Some(version), Some(major)) => Ok((version.to_owned(), major)),
            _ => Err(SourceError::problem(format!(
                "{tool} --version in {} ended with status {}: {}",
                self.place.describe(),
                exit.code,
                one_line(&format!("{text}\n{}", exit.stderr))
            ))),
        }
    }

    fn tool_error(&self, error: PlaceError) -> SourceError {
        match error {
            PlaceError::ToolMissing { tool, place } => SourceError::hint(
                format!("no {tool} in {place}"),
                "install PostgreSQL's client tools (Debian: apt install postgresql-client), of the server's version",
            ),
            other => other.into(),
        }
    }

    /// What a tool's failure means, with the way out where it is known.
    pub fn explain(&self, what: &str, stderr: &str) -> SourceError {
        let said = one_line(stderr);
        let problem = format!("{what} on {}: {said}", self.server);
        let has = |part: &str| said.contains(part);
        let origin = self.password_origin.as_deref();
        if has("password authentication failed") || has("fe_sendauth: no password supplied") {
            let user = &self.user;
            return match origin {
                Some(origin) if !has("no password supplied") => SourceError::hint(
                    format!(
                        "password authentication failed for user {user:?} on {}: {origin}, which is not the one that the server accepts",
                        self.server
                    ),
                    "the password in the file and the one in the server differ: was the file changed after the database was created?",
                ),
                _ => SourceError::hint(
                    format!("{} asks user {user:?} for a password, and the policy names none", self.server),
                    "set password_from = \".env:DB_PASSWORD\" (file:KEY), \"env:NAME\" or \"file:PATH\"",
                ),
            };
        }
        let hint = [
            ("Connection refused", "is the server running, and listening on that address and port?"),
            ("failed: No such file or directory", "is the server running? Its socket may lie elsewhere: url = \"postgres:///db?host=/path/of/socket/folder\""),
            ("could not translate host name", "the host name is not known here; a container without a published port is reached by service = or container ="),
            ("timeout expired", "nothing answers at that address within 10 s: a firewall?"),
            ("Peer authentication failed", "the socket asks who calls: run as root or as that account, or use a password (password_from, url)"),
            ("no pg_hba.conf entry", "the server's pg_hba.conf does not let this user in from here"),
            ("too many clients", "the server is at max_connections"),
            ("remaining connection slots", "the server is at max_connections"),
            ("is starting up", "try again when the server is up"),
            ("shutting down", "try again when the server is up"),
            ("row-level security", "the dump must see every row: use the tables' owner, a superuser, or a role with BYPASSRLS"),
            ("permission denied", "the dump reads every table: use the database's owner, a superuser, or a member of pg_read_all_data"),
            ("invalid page", "the server's files are damaged: restore the database from an older snapshot, and check the disk"),
            ("could not access status of transaction", "the server's files are damaged: restore the database from an older snapshot, and check the disk"),
            ("server does not support SSL", "the URL demands TLS (sslmode), and the server does not speak it"),
            ("certificate verify failed", "name the authority that signed the server's certificate: ?sslrootcert=/path/ca.pem"),
        ]
        .iter()
        .find(|(part, _)| has(part))
        .map(|(_, hint)| (*hint).to_owned());
        SourceError::Problem { problem, hint }
    }

    /// Ends what is left of this run's sessions in the server: a backend in the middle of a long query does not notice
    /// by itself that its client has gone. Best effort, within seconds, also after a cancellation.
    pub fn end_sessions(&self, database: &str) {
        let sql = format!(
            "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity \
             WHERE application_name = {} AND pid <> pg_catalog.pg_backend_pid() AND usename = current_user",
            literal(&self.application_name)
        );
        let argv = psql(database, &["--command", &sql]);
        let command = self
            .command(argv, Deadline::after(Duration::from_secs(3)), &Cancel::new())
            .env("PGCONNECT_TIMEOUT", "2".to_owned());
        if let Err(error) = run(&*self.place, command, 1 << 16) {
            tracing::debug!(%error, "end the sessions of a broken run");
        }
    }
}

/// `PATH` with the folders of PostgreSQL's tools, the newest first, before that of the wrapper of Debian's which would choose
/// among them. Only where it is the wrapper that would be found.
fn newest_tools() -> Option<String> {
    let path = std::env::var("PATH").ok()?;
    let folders: Vec<&str> = path.split(':').filter(|folder| folder.starts_with('/')).collect();
    let at = folders.iter().position(|folder| Path::new(folder).join("psql").is_file())?;
    let (before, behind) = folders.split_at(at);
    if Path::new(behind.first()?).join("psql").canonicalize().ok()?.file_name()? != "pg_wrapper" {
        return None;
    }
    let mut versions: Vec<(u32, String)> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| Some((name.parse().ok()?, format!("/usr/lib/postgresql/{name}/bin"))))
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    let newest: Vec<&str> = versions.iter().map(|(_, folder)| folder.as_str()).collect();
    Some([before, &newest, behind].concat().join(":"))
}

/// The arguments of `psql` for scripts: no start-up file, rows only, one a line.
pub(super) fn psql(database: &str, more: &[&str]) -> Vec<String> {
    let mut argv: Vec<String> =
        ["psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password", "--set=ON_ERROR_STOP=1"]
            .map(String::from)
            .into();
    argv.push(dbname_option(database));
    argv.extend(more.iter().map(|s| (*s).to_owned()));
    argv
}

/// `--dbname=dbname='…'`, with keep-alives, so that a peer that is gone is noticed within minutes.
pub(super) fn dbname_option(database: &str) -> String {
    format!("--dbname={}", connection_string(database))
}

pub(super) fn connection_string(database: &str) -> String {
    let quoted = database.replace('\\', "\\\\").replace('\'', "\\'");
    format!("dbname='{quoted}' keepalives_idle=30 keepalives_interval=10 keepalives_count=3")
}

/// A name as SQL: `"a b""c"`.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL; `standard_conforming_strings` is on in every session.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A variable of the container, or the content of the file that its `_FILE` twin names.
fn from_container(located: &Located, names: &[&str], cancel: &Cancel) -> Result<Option<Secret<String>>, SourceError> {
    if let Some(value) = located.variable(names) {
        return Ok(Some(value.clone()));
    }
    let twins: Vec<String> = names.iter().map(|n| format!("{n}_FILE")).collect();
    let twins: Vec<&str> = twins.iter().map(String::as_str).collect();
    let Some(path) = located.variable(&twins) else { return Ok(None) };
    let command = Command::new(["cat", "--", path.expose().as_str()]).timeout(Duration::from_secs(20)).cancel(cancel);
    let content = located.place.output(command, 1 << 16)?;
    let text = String::from_utf8_lossy(&content).trim_end_matches(['\r', '\n']).to_owned();
    Ok(Some(Secret::new(text)).filter(|t| !t.expose().is_empty()))
}

/// The account of this host with the database user's name, which is who a local socket lets in without a password.
fn account_named(user: &str) -> Option<String> {
    let known = crate::place::account::is_root() && crate::place::account::Account::find(user).is_some();
    known.then(|| user.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_for_each_reader() {
        assert_eq!(identifier("a b\"c"), "\"a b\"\"c\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert!(connection_string("it's \\").starts_with("dbname='it\\'s \\\\' "));
    }
}
