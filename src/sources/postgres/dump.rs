//! `pg_dump` and `pg_dumpall` running, and their output on its way into the sink.
//!
//! A dump counts when its own format is whole, `pg_dump` ended with status 0, and the rows in it are the rows that the
//! server counted in the same snapshot. Any one of them alone has been seen to lie.

use super::archive::{self, Report};
use super::connection::{Connection, connection_string, dbname_option};
use super::facts::Table;
use super::parts::Part;
use crate::base::cancel::Cancel;
use crate::base::stream::StreamKind;
use crate::place::{PlaceError, Running};
use crate::sources::run::{Deadline, one_line};
use crate::sources::tap::{Observer, Tap, TapError};
use crate::sources::{Sink, SourceError, StreamSink};
use std::io::{self, Read, Write};
use std::time::Duration;

/// How long `pg_dump` waits for a table's lock. The side session holds the locks already, so it waits only when
/// somebody queued up in between; then everything is begun anew, and nobody waits for us for longer than this.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(10);

/// What the commands of one database share.
pub(super) struct Run<'a> {
    pub connection: &'a Connection,
    pub database: &'a str,
    pub deadline: Deadline,
    pub stall: Duration,
    pub cancel: &'a Cancel,
    /// Whether the server is a standby.
    pub standby: bool,
}

impl Run<'_> {
    /// Whether there are rows to read: a standby has none of unlogged tables, and says so by an error.
    pub fn can_read(&self, table: &Table) -> bool {
        table.has_data() && !(self.standby && table.persistence == "unlogged")
    }
}

/// A `pg_dump` that has begun to write, which it does when it holds every lock.
pub(super) struct Begun {
    pub part: Part,
    stdout: Box<dyn Read + Send>,
    /// What it wrote first.
    ahead: Vec<u8>,
    running: Box<dyn Running>,
}

/// Starts `pg_dump` on an exported snapshot.
pub(super) fn start(run: &Run<'_>, part: Part, snapshot: &str) -> Result<Begun, SourceError> {
    let mut argv: Vec<String> =
        ["pg_dump", "--format=custom", "--compress=0", "--no-password"].map(String::from).into();
    argv.push(format!("--snapshot={snapshot}"));
    argv.push(format!("--lock-wait-timeout={}", LOCK_WAIT.as_millis()));
    argv.extend(part.options.iter().flatten().cloned());
    argv.push(dbname_option(run.database));
    let command = run.connection.command(argv, run.deadline, run.cancel).stall(run.stall);
    let mut running = run.connection.start(command)?;
    let stdout = running.stdout().ok_or_else(|| SourceError::problem("pg_dump was started without its pipe"))?;
    Ok(Begun { part, stdout, ahead: Vec::new(), running })
}

impl Begun {
    /// Waits for the first bytes. `Ok(None)`: it ended without any, and what it said is returned.
    pub fn wait_for_first_byte(mut self, run: &Run<'_>) -> Result<Result<Self, String>, SourceError> {
        let mut first = vec![0u8; 64 << 10];
        let n = loop {
            match self.stdout.read(&mut first) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(PlaceError::from_io("read output of pg_dump", place(run), e).into()),
                Ok(n) => break n,
            }
        };
        if n == 0 {
            let exit = self.running.wait()?;
            let said = if exit.stderr.trim().is_empty() {
                format!("it ended with status {} and wrote nothing", exit.code)
            } else {
                exit.stderr
            };
            return Ok(Err(said));
        }
        first.truncate(n);
        self.ahead = first;
        Ok(Ok(self))
    }

    /// Stores the dump and checks it. The stream is not finished yet: that is for whoever has checked everything.
    pub fn store<'s>(self, run: &Run<'_>, sink: &'s dyn Sink) -> Result<Stored<'s>, SourceError> {
        let Begun { part, stdout, ahead, running } = self;
        let mut stream =
            sink.stream(part.stream.clone(), StreamKind::PgDump, part.expected_bytes).map_err(SourceError::Sink)?;
        let input = io::Cursor::new(ahead).chain(stdout);
        let mut tap = Tap::new(input, &mut stream, ());
        let walked = archive::walk(&mut tap).and_then(|report| tap.finish().map(|_| report));
        let what = format!("dump of database {:?}", run.database);
        let report = match walked {
            Ok(report) => report,
            Err(TapError::Sink(e)) => return Err(SourceError::Sink(e)),
            Err(TapError::Read(e)) => {
                return Err(PlaceError::from_io("read output of pg_dump", place(run), e).into());
            }
            Err(TapError::Short) => {
                // The end of output is the end of pg_dump, and it knows the cause.
                let exit = running.wait()?;
                let said = format!("{} (the dump ends early; pg_dump ended with status {})", exit.stderr, exit.code);
                return Err(run.connection.explain(&what, &said));
            }
            Err(TapError::Format(why)) => {
                return Err(SourceError::problem(format!("{what} on {}: {why}", run.connection.server)));
            }
        };
        let exit = running.wait()?;
        if exit.code != 0 {
            let said = format!("{} (pg_dump ended with status {})", exit.stderr, exit.code);
            return Err(run.connection.explain(&what, &said));
        }
        Ok(Stored { stream, report, said: one_line(&exit.stderr) })
    }
}

/// A dump that is whole, and that nobody has finished yet.
pub(super) struct Stored<'s> {
    pub stream: Box<dyn StreamSink + 's>,
    pub report: Report,
    /// Warnings of `pg_dump`.
    pub said: String,
}

fn place(run: &Run<'_>) -> String {
    run.connection.place().describe()
}

/// How the script of `pg_dumpall` ends; `\unrestrict` may follow.
const GLOBALS_TRAILER: &[u8] = b"-- PostgreSQL database cluster dump complete";

/// The last bytes that went by.
#[derive(Default)]
struct LastBytes(Vec<u8>);

impl Observer for LastBytes {
    fn observe(&mut self, bytes: &[u8]) {
        const KEPT: usize = 1024;
        self.0.extend_from_slice(&bytes[bytes.len().saturating_sub(KEPT)..]);
        self.0.drain(..self.0.len().saturating_sub(KEPT));
    }
}

/// Roles, memberships and tablespaces, by `pg_dumpall --globals-only`.
pub(super) fn globals<'s>(
    run: &Run<'_>,
    mut stream: Box<dyn StreamSink + 's>,
    with_passwords: bool,
) -> Result<Box<dyn StreamSink + 's>, SourceError> {
    let mut argv: Vec<String> = ["pg_dumpall", "--globals-only", "--no-password"].map(String::from).into();
    if !with_passwords {
        argv.push("--no-role-passwords".into());
    }
    argv.push(format!("--database={}", connection_string(run.database)));
    let command = run.connection.command(argv, run.deadline, run.cancel).stall(run.stall);
    let mut running = run.connection.start(command)?;
    let stdout = running.stdout().ok_or_else(|| SourceError::problem("pg_dumpall was started without its pipe"))?;
    let mut tap = Tap::new(stdout, &mut stream as &mut dyn Write, LastBytes::default());
    let passed = tap.pass_rest(&mut |_| ()).and_then(|_| Ok(std::mem::take(tap.tell()?)));
    let last = match passed {
        Ok(last) => last.0,
        Err(TapError::Sink(e)) => return Err(SourceError::Sink(e)),
        Err(TapError::Read(e)) => return Err(PlaceError::from_io("read output of pg_dumpall", place(run), e).into()),
        Err(TapError::Short | TapError::Format(_)) => return Err(SourceError::problem("pg_dumpall gave no script")),
    };
    let exit = running.wait()?;
    if exit.code != 0 {
        let said = format!("{} (pg_dumpall ended with status {})", exit.stderr, exit.code);
        return Err(run.connection.explain("dump of roles", &said));
    }
    if !last.windows(GLOBALS_TRAILER.len()).any(|w| w == GLOBALS_TRAILER) {
        let problem = format!("dump of roles on {}: the script of pg_dumpall ends early", run.connection.server);
        return Err(SourceError::problem(problem));
    }
    Ok(stream)
}
