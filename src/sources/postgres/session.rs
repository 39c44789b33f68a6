//! One `psql` kept open: the side session that holds a snapshot and reads the facts in it.
//!
//! Statements go in on standard input, rows come out as one JSON object a line, and a marker that the session's owner
//! chose at random ends each answer. `psql` flushes its output before it waits for more input, so an answer never
//! lies about in a buffer. The first error ends the session (`ON_ERROR_STOP`).
//!
//! Everything is read with `search_path = pg_catalog` and quoted names: nothing that a user of the database created is
//! called, neither functions nor operators nor casts.

use super::connection::{Connection, psql};
use crate::base::cancel::Cancel;
use crate::place::{Exit, PlaceError, Running};
use crate::sources::SourceError;
use crate::sources::run::{Deadline, one_line};
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader, Read, Write};

/// One answer's row; a row of facts is far smaller.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Settings that decide how values are written, and limits that must not end the session.
const SETTINGS: &str = "\
SET search_path = pg_catalog;
SET standard_conforming_strings = on;
SET statement_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET row_security = off;
SET datestyle = ISO;
SET intervalstyle = postgres;
SET timezone = 'UTC';
SET extra_float_digits = 3;
SET bytea_output = hex;
SET xmloption = content;
SET lc_monetary = 'C';
SET quote_all_identifiers = off;
";

/// Why a statement failed.
#[derive(Debug)]
pub(super) enum SessionError {
    /// The server said no: its SQLSTATE and what it said.
    Server {
        state: String,
        text: String,
    },
    /// No session came about, or it broke; `psql`'s own words.
    Broken {
        text: String,
    },
    Other(SourceError),
}

/// SQLSTATEs that are looked at.
pub(super) mod state {
    pub const LOCK_NOT_AVAILABLE: &str = "55P03";
    pub const DEADLOCK: &str = "40P01";
    pub const UNDEFINED_TABLE: &str = "42P01";
    pub const UNDEFINED_SCHEMA: &str = "3F000";
}

pub(super) struct Session {
    // Fields are dropped in order: the pipes first, then the command.
    stdin: Box<dyn Write + Send>,
    stdout: BufReader<Box<dyn Read + Send>>,
    running: Option<Box<dyn Running>>,
    marker: String,
    place: String,
    /// `server_version_num`, such as 150020.
    pub version: u32,
    /// `server_version`, such as `15.20 (Debian 15.20-0+deb12u1)`.
    pub version_text: String,
}

impl Session {
    /// Connects to a database. Nothing has been begun yet.
    pub fn open(
        connection: &Connection,
        database: &str,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<Self, SessionError> {
        let argv = psql(database, &["--set=VERBOSITY=verbose", "--set=SHOW_CONTEXT=never"]);
        let command = connection.command(argv, deadline, cancel).env("PGCLIENTENCODING", "UTF8".to_owned()).stdin();
        let mut running = connection.start(command).map_err(SessionError::Other)?;
        let lost = || SessionError::Other(SourceError::problem("psql was started without its pipes"));
        let stdin = running.stdin().ok_or_else(lost)?;
        let stdout = BufReader::new(running.stdout().ok_or_else(lost)?);
        let random: [u8; 12] = crate::base::ids::random_bytes()
            .map_err(|source| SessionError::Other(PlaceError::from_io("draw a marker", "this host", source).into()))?;
        let mut session = Self {
            stdin,
            stdout,
            running: Some(running),
            marker: format!("end-{}", hex::encode(random)),
            place: connection.place().describe(),
            version: 0,
            version_text: String::new(),
        };
        session.execute(SETTINGS)?;
        #[derive(serde::Deserialize)]
        struct Version {
            number: String,
            text: String,
        }
        let version: Version = session
            .one("SELECT current_setting('server_version_num') AS number, current_setting('server_version') AS text")?;
        session.version = version.number.parse().unwrap_or(0);
        session.version_text = version.text;
        for (since, setting) in [
            (140_000, "SET idle_session_timeout = 0;"),
            // A backend in the middle of a long scan notices within a second that its client has gone.
            (140_000, "SET client_connection_check_interval = '1s';"),
            (170_000, "SET transaction_timeout = 0;"),
        ] {
            if session.version >= since {
                session.execute(setting)?;
            }
        }
        Ok(session)
    }

    /// Where libpq has found the server, in its own words: a host or the folder of a socket, and the port.
    pub fn peer(&mut self) -> Result<(String, String), SessionError> {
        let mut told = Vec::new();
        // No part of a statement: what is not set stays as it is then, and breaks nothing.
        self.ask("\\echo host :HOST\n\\echo port :PORT", &mut |line| {
            told.push(line.split_once(' ').map_or("", |(_, value)| value).to_owned());
            Ok(())
        })?;
        let mut told = told.into_iter();
        Ok((told.next().unwrap_or_default(), told.next().unwrap_or_default()))
    }

    /// Runs statements that return nothing.
    pub fn execute(&mut self, sql: &str) -> Result<(), SessionError> {
        self.ask(sql, &mut |_| Ok(()))
    }

    /// The rows of a query, which is written without a semicolon.
    pub fn rows<T: DeserializeOwned>(&mut self, query: &str) -> Result<Vec<T>, SessionError> {
        let mut rows = Vec::new();
        self.ask(&format!("SELECT row_to_json(q)::text FROM (\n{query}\n) AS q;"), &mut |line| {
            let row = serde_json::from_str(line).map_err(|e| {
                SessionError::Other(SourceError::problem(format!("an answer of the server cannot be read: {e}")))
            })?;
            rows.push(row);
            Ok(())
        })?;
        Ok(rows)
    }

    /// The only row of a query.
    pub fn one<T: DeserializeOwned>(&mut self, query: &str) -> Result<T, SessionError> {
        let rows = self.rows(query)?;
        let count = rows.len();
        match (rows.into_iter().next(), count) {
            (Some(row), 1) => Ok(row),
            _ => Err(SessionError::Other(SourceError::problem(format!("{count} rows where one was expected")))),
        }
    }

    fn ask(&mut self, sql: &str, see: &mut dyn FnMut(&str) -> Result<(), SessionError>) -> Result<(), SessionError> {
        let script = format!("{sql}\n\\echo {}\n", self.marker);
        if let Err(error) = self.stdin.write_all(script.as_bytes()).and_then(|()| self.stdin.flush()) {
            return Err(self.broken(Some(error)));
        }
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut self.stdout).take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
                Ok(n) if n > 0 && line.last() == Some(&b'\n') => {}
                Ok(n) if n as u64 == MAX_LINE_BYTES => {
                    let problem = format!("a row of facts is longer than {MAX_LINE_BYTES} bytes");
                    return Err(SessionError::Other(SourceError::problem(problem)));
                }
                Ok(_) => return Err(self.broken(None)),
                Err(error) => return Err(self.broken(Some(error))),
            }
            let text = String::from_utf8_lossy(&line);
            match text.trim_end_matches('\n') {
                "" => {}
                marker if marker == self.marker => return Ok(()),
                row => see(row)?,
            }
        }
    }

    /// What ended the session: a limit that broke, or what `psql` said when it went.
    fn broken(&mut self, error: Option<std::io::Error>) -> SessionError {
        if let Some(error) = error {
            let error = PlaceError::from_io("talk to psql", self.place.clone(), error);
            if !matches!(error, PlaceError::Io { .. }) {
                return SessionError::Other(error.into());
            }
        }
        self.stdin = Box::new(std::io::sink());
        match self.running.take().map(Running::wait) {
            Some(Ok(exit)) => server_error(&exit),
            Some(Err(error)) => SessionError::Other(error.into()),
            None => SessionError::Broken { text: "the session has ended".into() },
        }
    }

    /// Ends the transaction and the session.
    pub fn close(mut self) -> Result<(), SessionError> {
        self.execute("COMMIT;")?;
        self.stdin = Box::new(std::io::sink());
        match self.running.take().map(Running::wait) {
            None | Some(Ok(Exit { code: 0, .. })) => Ok(()),
            Some(Ok(exit)) => Err(server_error(&exit)),
            Some(Err(error)) => Err(SessionError::Other(error.into())),
        }
    }
}

/// `ERROR:  42P01: relation "x" does not exist` with its further lines, but for the place in the server's source.
fn server_error(exit: &Exit) -> SessionError {
    let kept: Vec<&str> = exit.stderr.lines().filter(|l| !l.trim_start().starts_with("LOCATION:")).collect();
    let found = kept.iter().enumerate().find_map(|(i, line)| {
        let (_, rest) = line.split_once("ERROR:").or_else(|| line.split_once("FATAL:"))?;
        let (state, text) = rest.trim_start().split_once(": ")?;
        (state.len() == 5).then(|| (i, state.to_owned(), text.to_owned()))
    });
    match found {
        Some((i, state, text)) => {
            let more = kept[i + 1..].join("\n");
            SessionError::Server { state, text: one_line(&format!("{text}\n{more}")) }
        }
        None if kept.iter().all(|l| l.trim().is_empty()) => {
            SessionError::Broken { text: format!("psql ended with status {}", exit.code) }
        }
        None => SessionError::Broken { text: one_line(&kept.join("\n")) },
    }
}

impl SessionError {
    /// The error of a source: what was being done, and what the server said.
    pub fn into_source(self, connection: &Connection, what: &str) -> SourceError {
        match self {
            SessionError::Server { text, .. } | SessionError::Broken { text } => connection.explain(what, &text),
            SessionError::Other(error) => error,
        }
    }

    /// Whether the server has no connection left for this role, database or anybody.
    pub fn is_full(&self) -> bool {
        let said = match self {
            SessionError::Server { text, .. } | SessionError::Broken { text } => text.clone(),
            SessionError::Other(error) => error.to_string(),
        };
        ["too many clients", "too many connections", "remaining connection slots"]
            .iter()
            .any(|part| said.contains(part))
    }

    /// Whether trying once more may help: a lock was not to be had, or a table went away between two looks.
    pub fn is_conflict(&self) -> bool {
        let conflicts = [state::LOCK_NOT_AVAILABLE, state::DEADLOCK, state::UNDEFINED_TABLE, state::UNDEFINED_SCHEMA];
        matches!(self, SessionError::Server { state, .. } if conflicts.contains(&state.as_str()))
    }
}

impl From<SourceError> for SessionError {
    fn from(error: SourceError) -> Self {
        SessionError::Other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_server_keep_state_and_text() {
        let exit = Exit {
            code: 3,
            stderr: "ERROR:  42501: permission denied for table secret\nLOCATION:  aclcheck_error, aclchk.c:2843\n"
                .into(),
        };
        match server_error(&exit) {
            SessionError::Server { state, text } => {
                assert_eq!((state.as_str(), text.as_str()), ("42501", "permission denied for table secret"));
            }
            other => panic!("{other:?}"),
        }
        let exit = Exit { code: 2, stderr: "psql: error: connection to server failed: Connection refused\n".into() };
        assert!(matches!(server_error(&exit), SessionError::Broken { text } if text.contains("Connection refused")));
    }
}
