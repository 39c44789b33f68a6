//! A throw-away server that loads a file: how it is told to, whether it did, and what it says then.
//!
//! Invariants: no TCP port, one socket in a folder of its own; no append-only file, no saving by itself, no debugging and
//! no loading of modules by command (both are refused by default since Redis 7); it is gone when its handle is dropped.

use super::{container, host};
use crate::base::cancel::Cancel;
use crate::place::{Command, Docker, Place, PlaceError};
use crate::sources::SourceError;
use crate::sources::redis::facts::{Facts, Keys};
use crate::sources::redis::info::Info;
use crate::sources::redis::rdb::{self, Report};
use crate::sources::run::{Deadline, one_line, run};
use crate::sources::tap::TapError;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// The file that is loaded, and that the server writes again.
pub(super) const DUMP: &str = "dump.rdb";
pub(super) const SOCKET: &str = "sock";
const SANITIZE: &str = "sanitize-dump-payload";
const MAX_ANSWER_BYTES: usize = 1 << 20;
const MOST_DATABASES: u64 = 1 << 16;
/// Between two looks at a server that loads.
const LOOK: Duration = Duration::from_millis(50);
const QUESTION_LIMIT: Duration = Duration::from_secs(30);

/// What a server is needed for.
pub(super) struct Order {
    pub databases: u64,
    pub memory: u64,
    pub rdb_version: u32,
    /// `VALKEY` from version 80 on, whose files no Redis reads.
    pub is_valkey: bool,
    pub deadline: Deadline,
    pub cancel: Cancel,
}

impl Order {
    pub fn new(report: &Report, facts: &Facts, memory: u64, deadline: Deadline, cancel: Cancel) -> Self {
        let last = report.databases.iter().flat_map(|d| d.keys()).copied().max();
        let last = last.or(facts.databases.iter().map(|k| k.database).max()).unwrap_or(0);
        Self {
            databases: last.saturating_add(1).clamp(16, MOST_DATABASES),
            memory,
            rdb_version: report.version,
            is_valkey: facts.server == "valkey",
            deadline,
            cancel,
        }
    }

    /// The server's arguments, to be run in the folder that holds the file, or told it.
    pub fn arguments(&self, folder: &str, sanitize: bool) -> Vec<String> {
        let socket = if folder == "." { SOCKET.to_owned() } else { format!("{folder}/{SOCKET}") };
        let databases = self.databases.to_string();
        let mut arguments: Vec<&str> = vec!["--port", "0", "--unixsocket", &socket, "--unixsocketperm", "700"];
        arguments.extend(["--dir", folder, "--dbfilename", DUMP, "--appendonly", "no", "--save", ""]);
        // A replica of nobody lets no key expire.
        arguments.extend(["--databases", &databases, "--replicaof", "127.0.0.1", "1", "--daemonize", "no"]);
        if sanitize {
            arguments.extend(["--sanitize-dump-payload", "yes"]);
        }
        arguments.into_iter().map(str::to_owned).collect()
    }

    pub fn names(&self) -> [(&'static str, &'static str); 2] {
        let (redis, valkey) = (("redis-server", "redis-cli"), ("valkey-server", "valkey-cli"));
        if self.is_valkey { [valkey, redis] } else { [redis, valkey] }
    }
}

/// Where a server is to be had.
pub(super) enum Program {
    Host { server: &'static str, cli: &'static str, version: String },
    Container { docker: Docker, image: String, name: String },
}

impl Program {
    pub fn describe(&self) -> String {
        match self {
            Program::Host { server, version, .. } => format!("{server} {version} of this host"),
            Program::Container { name, .. } => format!("a container of image {name}"),
        }
    }
}

/// Why there is no server that has loaded the file.
pub(super) enum Refusal {
    /// It cannot read such a file at all.
    Lacks(String),
    /// It can, and this one it does not take.
    Refused(String),
}

/// A server that was started.
pub(super) trait Served {
    fn place(&self) -> &dyn Place;
    /// Its command-line client, connected to it.
    fn client(&self, words: &[&str]) -> Command;
    /// What it logged, once it has ended.
    fn ended(&self) -> Result<Option<String>, SourceError>;
    /// The file in its folder.
    fn dump(&self) -> Result<Box<dyn Read + '_>, SourceError>;
}

/// A server that has loaded the file.
pub(super) struct Throwaway {
    served: Box<dyn Served>,
    version: String,
    place: String,
    deadline: Deadline,
    cancel: Cancel,
}

impl Throwaway {
    /// Starts a server on the file in `dir` and waits until it has loaded it.
    pub fn start(program: &Program, order: &Order, dir: &Path) -> Result<Result<Self, Refusal>, SourceError> {
        let mut sanitize = true;
        loop {
            let served: Box<dyn Served> = match program {
                Program::Host { server, cli, .. } => Box::new(host::start(server, cli, order, dir, sanitize)?),
                Program::Container { docker, image, .. } => {
                    Box::new(container::start(docker, image, order, dir, sanitize)?)
                }
            };
            let mut this = Self {
                served,
                version: String::new(),
                place: program.describe(),
                deadline: order.deadline,
                cancel: order.cancel.clone(),
            };
            match this.await_loaded()? {
                None => {
                    let info = Info::parse(&this.ask(&["INFO", "server"])?);
                    let version = info.get("valkey_version").or(info.get("redis_version"));
                    this.version = version.unwrap_or_default().to_owned();
                    return Ok(Ok(this));
                }
                // Redis before 6.2 does not know it.
                Some(log) if sanitize && log.contains(SANITIZE) => sanitize = false,
                Some(log) => return Ok(Err(refusal(&log, &this.place, order))),
            }
        }
    }

    /// For the report: which server it was.
    pub fn describe(&self) -> String {
        match self.place.contains(&self.version) {
            true => self.place.clone(),
            false => format!("version {} in {}", self.version, self.place),
        }
    }

    /// Waits until it has loaded; what it logged when it ended instead.
    fn await_loaded(&self) -> Result<Option<String>, SourceError> {
        let began = Instant::now();
        let mut missing = 0;
        loop {
            self.cancel.check()?;
            if let Some(log) = self.served.ended()? {
                return Ok(Some(log));
            }
            let command =
                self.served.client(&["INFO", "persistence"]).timeout(QUESTION_LIMIT.min(self.deadline.left()));
            match run(self.served.place(), command.cancel(&self.cancel), MAX_ANSWER_BYTES) {
                Ok((out, _)) if String::from_utf8_lossy(&out).contains("loading:0") => return Ok(None),
                Err(PlaceError::Cancelled(c)) => return Err(c.into()),
                // A container that has just ended has no client either: only what stays missing is.
                Err(PlaceError::ToolMissing { tool, place }) => {
                    missing += 1;
                    if missing > 20 {
                        return Err(PlaceError::ToolMissing { tool, place }.into());
                    }
                }
                // It does not listen yet, or has just ended.
                Ok(_) | Err(_) => {}
            }
            if self.deadline.left() <= Duration::from_millis(1) {
                let (tool, place) = ("loading the file".to_owned(), self.place.clone());
                return Err(PlaceError::TimedOut { tool, place, limit: began.elapsed() }.into());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn ask(&self, words: &[&str]) -> Result<String, SourceError> {
        let command = self.served.client(words).timeout(self.deadline.left()).cancel(&self.cancel);
        let (out, exit) = run(self.served.place(), command, MAX_ANSWER_BYTES)?;
        match exit.code {
            0 => Ok(String::from_utf8_lossy(&out).trim_end().to_owned()),
            _ => {
                let log = self.served.ended()?.map(|log| last_words(&log)).unwrap_or_default();
                let said = one_line(&format!("{}\n{log}", exit.stderr));
                Err(SourceError::problem(format!("the throw-away server does not answer {}: {said}", words.join(" "))))
            }
        }
    }

    /// Keys of each database that has any.
    pub fn keyspace(&self) -> Result<Vec<Keys>, SourceError> {
        Ok(Info::parse(&self.ask(&["INFO", "keyspace"])?).keyspace())
    }

    /// What it holds, written as a file again and walked; or why not.
    pub fn written_again(&self) -> Result<Result<Report, String>, SourceError> {
        let answer = self.ask(&["SAVE"])?;
        if answer != "OK" {
            return Ok(Err(format!("the server does not write its data: {}", one_line(&answer))));
        }
        match rdb::store(self.served.dump()?, std::io::sink()) {
            Ok(report) if report.databases.is_some() => Ok(Ok(report)),
            Ok(_) => Ok(Err("the server wrote types that are not known here".into())),
            Err(TapError::Read(e) | TapError::Sink(e)) => {
                self.cancel.check()?;
                Err(PlaceError::from_io("read what the server wrote", &self.place, e).into())
            }
            Err(TapError::Short) => Ok(Err("what the server wrote ends early".into())),
            Err(TapError::Format(why)) => Ok(Err(format!("what the server wrote is not sound: {why}"))),
        }
    }
}

/// Why a server did not load the file, by what it logged.
fn refusal(log: &str, place: &str, order: &Order) -> Refusal {
    let version = order.rdb_version;
    let words = last_words(log);
    if log.contains("Can't handle RDB format version") || log.contains("Wrong signature trying to load DB") {
        let from = match version {
            80.. => "Valkey 9",
            13.. => "a newer Redis",
            12 => "Redis 7.4",
            11 => "Redis 7.2 or Valkey 7.2",
            10 => "Redis 7.0",
            _ => "a newer Redis",
        };
        return Refusal::Lacks(format!("{place} cannot read RDB {version}: install {from} or newer"));
    }
    let module = ["no matching module type", "AUX module data I can't load", "module data I can't load"];
    if module.iter().any(|text| log.contains(text)) {
        return Refusal::Lacks(format!("{place} lacks a module whose data the file holds: {words}"));
    }
    if log.contains("Out Of Memory allocating") || log.contains("exit status 137") {
        return Refusal::Lacks(format!(
            "{place} has not enough memory within {}: raise [drill] memory: {words}",
            crate::base::units::human_size(order.memory)
        ));
    }
    Refusal::Refused(format!("{place} does not load the file: {words}"))
}

/// The warnings at the end of a server's log, without their times.
fn last_words(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let loud: Vec<&str> = lines.iter().filter_map(|l| l.split_once(" # ")).map(|(_, text)| text).collect();
    let loud: Vec<&str> = loud.into_iter().filter(|l| !l.starts_with("WARNING")).collect();
    let chosen = if loud.is_empty() { lines } else { loud };
    one_line(&chosen[chosen.len().saturating_sub(4)..].join("\n"))
}

/// An error and its causes, as one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
