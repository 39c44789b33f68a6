//! A session by the server's own protocol (version 3), for what is too much to go through a tool: the rows of large tables.
//!
//! `pg_dump` handles each row three times, and its pipe carries each byte twice more; of a dump's CPU time that is a quarter.
//! Here a row is read where the server's message has it.
//!
//! Only where nothing is given up for it: through a socket of this host or of a container on it, or by TCP where nobody asked
//! for encryption, whoever answers there offers none, and libpq's own session has none at the server's end either; and with a
//! login that shows nobody a password. Everything else is `pg_dump`'s.

use super::connection::Connection;
use super::pace::Pace;
use super::session::{Session, SessionError};
use crate::base::threads;
use crate::place::account::Account;
use crate::place::{Place, PlaceError};
use crate::sources::SourceError;
use crate::sources::run::one_line;
use crate::sources::socket::{Limits, Socket};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{DataRowBody, ErrorFields, Message};
use postgres_protocol::message::frontend;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest message that is no row.
const MAX_MESSAGE_BYTES: usize = 64 << 10;
const BUFFER_BYTES: usize = 256 << 10;
/// Where the socket lies unless it is said, as Debian's packages have it. A folder that anybody may write to is not looked into.
const SOCKET_FOLDER: &str = "/var/run/postgresql";
/// libpq's own, where a host is said and no port.
const PORT: u16 = 5432;
/// The longest that a server may say nothing while it lets us in.
const ENTER_LIMIT: Duration = Duration::from_secs(10);
/// The server sends eight KiB at a time, and each would wake us: what follows is worth a short wait.
const GATHER: Duration = Duration::from_micros(300);
const GATHER_BELOW: usize = 64 << 10;
/// Of a reader that is ahead of others: its server's buffers are full by then.
const LINGER: Duration = Duration::from_millis(5);

/// Limits that must not end the session, first of all, and how rows are written: what `pg_dump` sets, and nothing else.
const SETTINGS: &[(u32, &str)] = &[
    (0, "SET statement_timeout = 0"),
    (0, "SET idle_in_transaction_session_timeout = 0"),
    (140_000, "SET idle_session_timeout = 0"),
    (140_000, "SET client_connection_check_interval = '1s'"),
    (170_000, "SET transaction_timeout = 0"),
    (0, "SELECT pg_catalog.set_config('search_path', '', false)"),
    (0, "SET datestyle = ISO"),
    (0, "SET intervalstyle = postgres"),
    (0, "SET extra_float_digits = 3"),
    (0, "SET synchronize_seqscans = off"),
    (0, "SET row_security = off"),
];

/// When the server was started, by its own clock: two never agree on that. And as whom it reads: libpq may be told a role by
/// variables of a container that nobody here knows.
const IDENTITY: &str =
    "pg_catalog.concat(extract(epoch FROM pg_catalog.pg_postmaster_start_time()), ' ', current_user)";

/// The server as its other session knows it.
pub(super) struct Server {
    pub version: u32,
    pub port: u16,
    /// Through an exec: the socket that libpq has found it at; absent where it was by TCP.
    pub socket: Option<PathBuf>,
    /// See [`IDENTITY`].
    pub identity: String,
    /// libpq has agreed with it on TLS or GSSAPI.
    pub encrypted: bool,
}

/// What the side session tells of the server and of its own way there; `None` where this user may not ask.
pub(super) fn server(session: &mut Session, connection: &Connection) -> Result<Option<Server>, SessionError> {
    #[derive(serde::Deserialize)]
    struct May {
        may: bool,
    }
    #[derive(serde::Deserialize)]
    struct Told {
        port: String,
        identity: String,
        encrypted: bool,
    }
    let knows_gss = session.version >= 120_000;
    let (may_gss, gss) = match knows_gss {
        true => (
            " AND has_table_privilege('pg_stat_gssapi', 'SELECT')",
            " OR EXISTS (SELECT FROM pg_stat_gssapi WHERE pid = pg_backend_pid() AND encrypted)",
        ),
        false => ("", ""),
    };
    let may: May = session.one(&format!(
        "SELECT has_table_privilege('pg_stat_ssl', 'SELECT'){may_gss} \
         AND has_function_privilege('pg_postmaster_start_time()', 'EXECUTE') AS may"
    ))?;
    if !may.may {
        return Ok(None);
    }
    let told: Told = session.one(&format!(
        "SELECT current_setting('port') AS port, {IDENTITY} AS identity, \
         EXISTS (SELECT FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl){gss} AS encrypted"
    ))?;
    let port = told.port.parse().unwrap_or(PORT);
    let socket = match connection.through_exec {
        true => Some(session.peer()?).filter(|(host, _)| host.starts_with('/')).map(|(host, port)| socket(&host, port)),
        false => None,
    };
    Ok(Some(Server { version: session.version, port, socket, identity: told.identity, encrypted: told.encrypted }))
}

/// Rows on their way out, or why they stopped.
pub(super) enum CopyError {
    /// Whoever takes them did not.
    Sink(io::Error),
    Session(SessionError),
}

impl From<SessionError> for CopyError {
    fn from(error: SessionError) -> Self {
        CopyError::Session(error)
    }
}

pub(super) struct Wire {
    socket: Socket,
    /// The server's.
    version: u32,
    buffer: Box<[u8]>,
    /// `next..end` has been read and not looked at.
    next: usize,
    end: usize,
    /// The last read gave little.
    thin: bool,
}

/// Where a server listens.
#[derive(Debug, PartialEq)]
enum Address {
    Socket(PathBuf),
    /// In the place that the tools run in.
    Inside(PathBuf),
    Tcp(String, u16),
}

impl Wire {
    /// Opens a session with a database of the server that another session has been opened with.
    pub fn open(
        connection: &Connection,
        database: &str,
        server: &Server,
        limits: &Limits,
    ) -> Result<Self, SessionError> {
        let broken = |text: &str| SessionError::Broken { text: text.to_owned() };
        let address = match connection.through_exec {
            true => server.socket.clone().map(Address::Inside),
            false => address(|name| connection.variable(name), server),
        };
        let address = address.ok_or_else(|| broken("not reached without encryption"))?;
        let is_tcp = matches!(address, Address::Tcp(..));
        let entering = Limits { stall: limits.stall.min(ENTER_LIMIT), ..limits.clone() };
        let socket = connect(connection.place(), connection.account(), address, entering)
            .map_err(|e| failed(e, "connect to"))?;
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        let mut wire = Self { socket, version: server.version, buffer, next: 0, end: 0, thin: false };
        if is_tcp && connection.variable("PGSSLMODE") != Some("disable") && wire.offers_encryption()? {
            return Err(broken("encryption is offered there"));
        }
        wire.enter(connection, database)?;
        wire.settle()?;
        if wire.value(&format!("SELECT {IDENTITY}"))?.as_ref() != Some(&server.identity) {
            return Err(broken("another server answers there, or as another role"));
        }
        wire.socket.set_stall(limits.stall);
        Ok(wire)
    }

    /// Sets what decides how rows are written and how long that may take.
    pub fn settle(&mut self) -> Result<(), SessionError> {
        let known = SETTINGS.iter().filter(|(since, _)| self.version >= *since);
        let settings: Vec<&str> = known.map(|(_, setting)| *setting).collect();
        self.execute(&settings.join("; "))
    }

    /// Asks whoever answers, as libpq does: between us and the server there may be somebody who encrypts one half of the way.
    fn offers_encryption(&mut self) -> Result<bool, SessionError> {
        self.send(|out| {
            frontend::ssl_request(out);
            Ok(())
        })?;
        let mut answer = [0];
        match self.socket.read(&mut answer) {
            Ok(1) => Ok(answer != *b"N"),
            Ok(_) => Ok(true),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Says who we are and proves it.
    fn enter(&mut self, connection: &Connection, database: &str) -> Result<(), SessionError> {
        let parameters = [
            ("user", connection.user.as_str()),
            ("database", database),
            ("application_name", &connection.application_name),
            ("client_encoding", "UTF8"),
        ];
        self.send(|out| frontend::startup_message(parameters, out))?;
        let strange = || SessionError::Broken { text: "a way to log in that only libpq knows".to_owned() };
        let mut scram = None;
        loop {
            match self.message()? {
                Message::AuthenticationOk => {}
                Message::AuthenticationSasl(body) => {
                    let known = body.mechanisms().any(|m| Ok(m == SCRAM_SHA_256)).map_err(|e| self.failed(e))?;
                    if !known {
                        return Err(strange());
                    }
                    let password = connection.password().ok_or_else(strange)?;
                    let begun = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                    self.send(|out| frontend::sasl_initial_response(SCRAM_SHA_256, begun.message(), out))?;
                    scram = Some(begun);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let scram = scram.as_mut().ok_or_else(strange)?;
                    scram.update(body.data()).map_err(|e| self.failed(e))?;
                    self.send(|out| frontend::sasl_response(scram.message(), out))?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let mut scram = scram.take().ok_or_else(strange)?;
                    scram.finish(body.data()).map_err(|e| self.failed(e))?;
                }
                Message::ReadyForQuery(_) if scram.is_none() => return Ok(()),
                Message::ErrorResponse(body) => return Err(said(body.fields())),
                Message::ParameterStatus(_) | Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
                _ => return Err(strange()),
            }
        }
    }

    /// Runs statements whose rows nobody wants.
    pub fn execute(&mut self, sql: &str) -> Result<(), SessionError> {
        self.value(sql).map(drop)
    }

    /// Runs statements; the first value of their last row.
    fn value(&mut self, sql: &str) -> Result<Option<String>, SessionError> {
        self.send(|out| frontend::query(sql, out))?;
        let (mut found, mut refused) = (None, None);
        loop {
            let message = match self.message() {
                Ok(message) => message,
                // A server that ends the session says why before it closes.
                Err(error) => return Err(refused.unwrap_or(error)),
            };
            match message {
                Message::DataRow(row) => found = first(&row).map_err(|e| self.failed(e))?,
                Message::ErrorResponse(body) => refused = Some(said(body.fields())),
                Message::ReadyForQuery(_) => return refused.map_or(Ok(found), Err),
                _ => {}
            }
        }
    }

    /// Sends the rows of `COPY … TO stdout` into the sink, each behind its length as an archive's block has it (a sign, then
    /// four bytes, the least significant first), which takes as much room as the head of the message that it came in. Returns
    /// how many there were.
    pub fn copy(&mut self, sql: &str, pace: &mut Pace, sink: &mut dyn io::Write) -> Result<u64, CopyError> {
        self.send(|out| frontend::query(sql, out))?;
        loop {
            match self.message()? {
                Message::CopyOutResponse(body) if body.format() == 0 => break,
                Message::ErrorResponse(body) => return Err(said(body.fields()).into()),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => return Err(self.strange().into()),
            }
        }
        let mut rows = 0;
        loop {
            rows += self.rows(pace, sink)?;
            match self.message()? {
                Message::CopyDone => break,
                Message::ErrorResponse(body) => return Err(said(body.fields()).into()),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => return Err(self.strange().into()),
            }
        }
        let mut told = None;
        loop {
            match self.message()? {
                Message::CommandComplete(body) => {
                    let tag = body.tag().map_err(|e| self.failed(e))?;
                    told = tag.strip_prefix("COPY ").and_then(|n| n.parse::<u64>().ok());
                }
                Message::ErrorResponse(body) => return Err(said(body.fields()).into()),
                Message::ReadyForQuery(_) => break,
                _ => {}
            }
        }
        match told {
            Some(told) if told == rows => Ok(rows),
            _ => {
                let told = told.map_or("nothing".to_owned(), |n| format!("{n} rows"));
                let text = format!("{rows} rows came, and the server says that it sent {told}");
                Err(SessionError::Broken { text }.into())
            }
        }
    }

    /// The rows up to the next message that is none, which is left to be read.
    fn rows(&mut self, pace: &mut Pace, sink: &mut dyn io::Write) -> Result<u64, CopyError> {
        let mut rows = 0;
        // Of the row that does not end in what has been read.
        let mut missing = 0;
        loop {
            let begin = self.next;
            let walked = walk(&mut self.buffer[..self.end], &mut self.next, &mut missing, &mut rows);
            sink.write_all(&self.buffer[begin..self.next]).map_err(CopyError::Sink)?;
            match walked {
                Err(why) => return Err(SessionError::Broken { text: why.to_owned() }.into()),
                Ok(Walked::Other) => return Ok(rows),
                Ok(Walked::More) => {
                    let is_ahead = pace.is_ahead((self.next - begin) as u64);
                    if is_ahead || self.thin {
                        std::thread::sleep(if is_ahead { LINGER } else { GATHER });
                    }
                    self.fill()?;
                }
            }
        }
    }

    /// Reads more. What has not been looked at moves to the front; it is less than a message that is no row.
    fn fill(&mut self) -> Result<(), SessionError> {
        self.buffer.copy_within(self.next..self.end, 0);
        (self.end, self.next) = (self.end - self.next, 0);
        match self.socket.read(&mut self.buffer[self.end..]) {
            Ok(0) => Err(SessionError::Broken { text: "the server closed the connection".to_owned() }),
            Ok(n) => {
                self.end += n;
                self.thin = n < GATHER_BELOW;
                Ok(())
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The next message, of whatever kind but a row.
    fn message(&mut self) -> Result<Message, SessionError> {
        loop {
            let ahead = &self.buffer[self.next..self.end];
            if let Some([_, a, b, c, d]) = ahead.get(..5) {
                let whole = u32::from_be_bytes([*a, *b, *c, *d]) as usize + 1;
                if !(5..=MAX_MESSAGE_BYTES).contains(&whole) {
                    return Err(self.strange());
                }
                if let Some(bytes) = ahead.get(..whole) {
                    let message = Message::parse(&mut BytesMut::from(bytes)).map_err(|e| self.failed(e))?;
                    self.next += whole;
                    return message.ok_or_else(|| self.strange());
                }
            }
            self.fill()?;
        }
    }

    fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<(), SessionError> {
        let mut out = BytesMut::new();
        let sent = write(&mut out).and_then(|()| self.socket.write_all(&out));
        zeroize::Zeroize::zeroize(&mut out[..]);
        sent.map_err(|e| self.failed(e))
    }

    fn failed(&self, error: io::Error) -> SessionError {
        failed(error, self.socket.peer())
    }

    fn strange(&self) -> SessionError {
        SessionError::Broken { text: format!("{} does not speak as a PostgreSQL server does", self.socket.peer()) }
    }

    /// Ends the session. The server notices a closed connection as well, and notes it in its log.
    pub fn close(mut self) {
        // It may have gone by itself.
        let _ = self.send(|out| {
            frontend::terminate(out);
            Ok(())
        });
    }
}

enum Walked {
    /// Another message begins.
    Other,
    /// More must be read.
    More,
}

/// Passes over the rows that lie in a buffer from `next` on, and makes each message's head a block's.
fn walk(buffer: &mut [u8], next: &mut usize, missing: &mut usize, rows: &mut u64) -> Result<Walked, &'static str> {
    loop {
        if *missing > 0 {
            let n = (*missing).min(buffer.len() - *next);
            (*next, *missing) = (*next + n, *missing - n);
            if *missing > 0 {
                return Ok(Walked::More);
            }
            // An archive's rows are counted by it.
            if buffer.get(*next - 1) != Some(&b'\n') {
                return Err("a row does not end as one");
            }
            *rows += 1;
        }
        let Some(head) = buffer.get_mut(*next..*next + 5) else {
            return Ok(if buffer.get(*next).is_none_or(|tag| *tag == b'd') { Walked::More } else { Walked::Other });
        };
        if head[0] != b'd' {
            return Ok(Walked::Other);
        }
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]).wrapping_sub(4);
        if !(1..=i32::MAX as u32).contains(&length) {
            return Err("a row of an impossible length");
        }
        head[0] = 0;
        head[1..].copy_from_slice(&length.to_le_bytes());
        (*next, *missing) = (*next + 5, length as usize);
    }
}

/// A server's socket in a folder.
fn socket(folder: &str, port: impl Display) -> PathBuf {
    Path::new(folder).join(format!(".s.PGSQL.{port}"))
}

/// Where the server is by libpq's variables, if it can be talked to there as libpq does.
fn address<'a>(variable: impl Fn(&str) -> Option<&'a str>, server: &Server) -> Option<Address> {
    let port = variable("PGPORT").map(|port| port.parse().ok());
    let socket = |folder: &str, port: u16| Address::Socket(socket(folder, port));
    match variable("PGHOST") {
        // Debian's tools find the port by themselves.
        None => Some(socket(SOCKET_FOLDER, port.unwrap_or(Some(server.port))?)),
        Some(folder) if folder.starts_with('/') => Some(socket(folder, port.unwrap_or(Some(PORT))?)),
        Some(_) if server.encrypted => None,
        Some(_) if variable("PGSSLMODE").is_some_and(|mode| !["disable", "allow", "prefer"].contains(&mode)) => None,
        Some(_) if ["PGGSSENCMODE", "PGCHANNELBINDING"].iter().any(|name| variable(name) == Some("require")) => None,
        Some(host) => Some(Address::Tcp(host.to_owned(), port.unwrap_or(Some(PORT))?)),
    }
}

/// Connects, to a socket as the account that the tools run as: the server asks the kernel who calls.
fn connect(place: &dyn Place, account: Option<&str>, address: Address, limits: Limits) -> io::Result<Socket> {
    let path = match address {
        Address::Tcp(host, port) => return Socket::tcp(&host, port, limits),
        Address::Inside(path) => {
            let socket = place.socket(&path).ok_or(io::ErrorKind::NotFound)?;
            return Socket::inside(&socket, place.describe(), limits);
        }
        Address::Socket(path) => path,
    };
    let Some(account) = account else { return Socket::unix(&path, limits) };
    let account = Account::find(account).ok_or_else(|| io::Error::other(format!("no account {account:?}")))?;
    // Of one thread alone, which ends with that.
    let thread = threads::begin(move || {
        account.become_for_this_thread()?;
        Socket::unix(&path, limits)
    });
    let ended = thread.map_err(io::Error::other)?.join();
    ended.unwrap_or_else(|_| Err(io::Error::other("the thread that connects broke")))
}

/// A limit that was reached stays what it is.
fn failed(error: io::Error, with: &str) -> SessionError {
    match PlaceError::from_io("talk to", with, error) {
        PlaceError::Io { source, .. } => SessionError::Broken { text: source.to_string() },
        other => SessionError::Other(SourceError::Place(other)),
    }
}

/// The first value of a row.
fn first(row: &DataRowBody) -> io::Result<Option<String>> {
    let range = row.ranges().next()?.flatten();
    let bytes = range.and_then(|range| row.buffer().get(range));
    Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
}

/// What the server refused, and why.
fn said(mut fields: ErrorFields<'_>) -> SessionError {
    let (mut state, mut text) = (String::new(), String::new());
    let mut detail = String::new();
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes());
        match field.type_() {
            b'C' => state = value.into_owned(),
            b'M' => text = value.into_owned(),
            b'D' => detail = value.into_owned(),
            _ => {}
        }
    }
    SessionError::Server { state, text: one_line(&format!("{text}\n{detail}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::cancel::Cancel;
    use crate::base::fuzz::Fuzz;
    use crate::place::HostPlace;
    use crate::sources::run::Deadline;

    fn address_of(encrypted: bool, variables: &[(&str, &'static str)]) -> Option<Address> {
        let server = Server { version: 150_000, port: 5433, socket: None, identity: String::new(), encrypted };
        address(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| *value), &server)
    }

    #[test]
    fn nothing_is_sent_in_the_clear_that_libpq_encrypts() {
        let tcp = |host: &str, port| Some(Address::Tcp(host.to_owned(), port));
        let socket = |path: &str| Some(Address::Socket(path.into()));
        assert_eq!(address_of(false, &[]), socket("/var/run/postgresql/.s.PGSQL.5433"), "the server's own port");
        assert_eq!(address_of(false, &[("PGHOST", "/run/pg")]), socket("/run/pg/.s.PGSQL.5432"), "libpq's");
        let in_folder = [("PGHOST", "/run/pg"), ("PGPORT", "6000"), ("PGSSLMODE", "verify-full")];
        assert_eq!(address_of(false, &in_folder), socket("/run/pg/.s.PGSQL.6000"));
        assert_eq!(address_of(false, &[("PGHOST", "localhost"), ("PGPORT", "6000")]), tcp("localhost", 6000));
        assert_eq!(address_of(false, &[("PGHOST", "db.example")]), tcp("db.example", 5432));
        assert_eq!(address_of(true, &[("PGHOST", "127.0.0.1")]), None);
        for (name, value) in [
            ("PGSSLMODE", "require"),
            ("PGSSLMODE", "verify-ca"),
            ("PGSSLMODE", "verify-full"),
            ("PGGSSENCMODE", "require"),
            ("PGCHANNELBINDING", "require"),
        ] {
            assert_eq!(address_of(false, &[("PGHOST", "127.0.0.1"), (name, value)]), None, "{name}={value}");
        }
        assert_eq!(address_of(false, &[("PGHOST", "::1"), ("PGSSLMODE", "prefer")]), tcp("::1", 5432));
        assert_eq!(address_of(false, &[("PGHOST", "127.0.0.1"), ("PGPORT", "x")]), None);
    }

    #[test]
    fn a_socket_sees_the_account_that_calls() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let limit = Duration::from_secs(10);
        let limits = Limits { what: "nothing", stall: limit, deadline: Deadline::after(limit), cancel: Cancel::new() };
        let own = rustix::process::geteuid();
        for account in [Some("nobody"), None] {
            let socket = match connect(&HostPlace::new(), account, Address::Socket(path.clone()), limits.clone()) {
                // Only root can be another.
                Err(error) if account.is_some() && !own.is_root() => {
                    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
                    continue;
                }
                connected => connected.unwrap(),
            };
            let (accepted, _) = listener.accept().unwrap();
            let uid = rustix::net::sockopt::socket_peercred(&accepted).unwrap().uid.as_raw();
            assert_eq!(uid, account.map_or(own.as_raw(), |name| Account::find(name).unwrap().uid));
            drop(socket);
        }
        assert!(connect(&HostPlace::new(), Some("nobody-of-this-name"), Address::Socket(path), limits).is_err());
        assert_eq!(rustix::process::geteuid(), own, "no other thread became another");
    }

    /// What comes in these pieces: what has been passed on, and how many rows that was.
    fn walked(pieces: &[&[u8]]) -> Result<(Vec<u8>, u64, Vec<u8>), &'static str> {
        let (mut buffer, mut next, mut missing, mut rows) = (Vec::new(), 0, 0, 0);
        let mut passed = Vec::new();
        for piece in pieces {
            buffer.drain(..next);
            next = 0;
            buffer.extend_from_slice(piece);
            let walked = walk(&mut buffer, &mut next, &mut missing, &mut rows)?;
            passed.extend_from_slice(&buffer[..next]);
            if matches!(walked, Walked::Other) {
                break;
            }
        }
        Ok((passed, rows, buffer.split_off(next)))
    }

    fn example() -> Vec<u8> {
        let mut bytes = Vec::new();
        for row in ["1\tann\n", "\n", "2\tb\\nob\n"] {
            bytes.push(b'd');
            bytes.extend_from_slice(&(row.len() as u32 + 4).to_be_bytes());
            bytes.extend_from_slice(row.as_bytes());
        }
        bytes.extend_from_slice(b"c\0\0\0\x04");
        bytes
    }

    #[test]
    fn rows_become_blocks_wherever_they_are_cut() {
        let bytes = example();
        let whole = walked(&[&bytes]).unwrap();
        assert_eq!(whole.0, b"\0\x06\0\0\x001\tann\n\0\x01\0\0\0\n\0\x08\0\0\x002\tb\\nob\n");
        assert_eq!((whole.1, &whole.2[..]), (3, &b"c\0\0\0\x04"[..]));
        for at in 0..bytes.len() - 5 {
            let (passed, rows, _) = walked(&[&bytes[..at], &bytes[at..]]).unwrap();
            assert_eq!((&passed, rows), (&whole.0, 3), "cut at {at}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        let (passed, rows, _) = walked(&single).unwrap();
        assert_eq!((&passed, rows), (&whole.0, 3));
    }

    #[test]
    fn what_is_no_row_is_refused() {
        assert!(walked(&[b"d\0\0\0\x05x"]).is_err(), "without its newline");
        assert!(walked(&[b"d\0\0\0\x04d"]).is_err(), "an empty one would end the block");
        assert!(walked(&[b"d\0\0\0\x03d"]).is_err());
        assert!(walked(&[b"d\xff\xff\xff\xffd"]).is_err());
    }

    #[test]
    fn sweep_rows_of_postgres() {
        let fuzz = Fuzz::of("postgres-rows").seed(example());
        fuzz.words(&["d", "c", "\0\0\0\x05\n", "\0\0\0\x04", "\n", "E"]).run(|bytes| {
            let whole = walked(&[bytes]);
            let (a, b) = bytes.split_at(bytes.len() / 2);
            if let (Ok(whole), Ok(halves)) = (whole, walked(&[a, b])) {
                assert!(whole.0.len() <= bytes.len() && whole.1 as usize * 6 <= bytes.len());
                assert_eq!((whole.0, whole.1), (halves.0, halves.1));
            }
        });
    }
}
