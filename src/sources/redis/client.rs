//! Asking a Redis server: by `redis-cli` in its place, or over TCP where there is none.
//!
//! Invariants: the password goes through `REDISCLI_AUTH` or the socket, never through argv; every answer is waited for
//! with a limit.

use super::address::Address;
use super::link::{Link, LinkError, Replication};
use crate::base::cancel::Cancel;
use crate::base::secret::Secret;
use crate::place::{Command, Exit, Place, PlaceError, Running};
use crate::sources::SourceError;
use crate::sources::run::{Deadline, one_line, run};
use crate::sources::socket::Limits;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// An answer of facts is far smaller.
const MAX_ANSWER_BYTES: usize = 32 << 20;
/// The longest that one question may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A server and how to reach it.
pub(super) struct Server {
    pub place: Arc<dyn Place>,
    pub address: Address,
    pub user: Option<String>,
    pub password: Option<Secret<String>>,
    /// For messages: where the password was taken from, as a clause.
    pub password_origin: Option<String>,
    /// For messages.
    pub name: String,
    pub stall: Duration,
    pub deadline: Deadline,
    pub cancel: Cancel,
    /// Over TCP, because there is no `redis-cli`.
    pub by_link: bool,
    /// The server has no password at all; `redis-cli --rdb` fails when it is told one.
    pub open: AtomicBool,
}

/// An answer, or the server's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Elements of an array stand one a line.
    Text(String),
    /// `NOPERM …`, `ERR unknown command …`: this question was refused, and others may not be.
    Refused(String),
}

/// The RDB on its way.
pub(super) enum Stream {
    Cli { running: Box<dyn Running>, stdout: Option<Box<dyn Read + Send>> },
    Link(Box<Replication>),
}

/// First words of error replies, as `redis-cli` prints them.
const ERRORS: &[&str] = &[
    "ERR",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "LOADING",
    "BUSY",
    "MISCONF",
    "MASTERDOWN",
    "NOMASTERLINK",
    "DENIED",
    "READONLY",
    "CLUSTERDOWN",
    "OOM",
    "EXECABORT",
    "UNKILLABLE",
];

/// What a server says that is told a password and has none.
const NO_PASSWORD_SET: &str = "without any password configured";

impl Server {
    fn argv(&self, more: &[&str]) -> Vec<String> {
        let mut argv = vec!["redis-cli".to_owned()];
        let mut option = |name: &str, value: &str| argv.extend([name.to_owned(), value.to_owned()]);
        match &self.address.socket {
            Some(path) => option("-s", path),
            None => {
                if let Some(host) = &self.address.host {
                    option("-h", host);
                }
                if let Some(port) = self.address.port {
                    option("-p", &port.to_string());
                }
            }
        }
        if let Some(user) = &self.user {
            option("--user", user);
        }
        for (name, value) in &self.address.tls_files {
            option(name, value);
        }
        if self.address.tls {
            argv.push("--tls".into());
        }
        argv.extend(more.iter().map(|s| (*s).to_owned()));
        argv
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(self.argv(more)).timeout(self.deadline.left()).cancel(&self.cancel).dir("/");
        if let Some(password) = self.password.as_ref().filter(|_| !self.open.load(Ordering::SeqCst)) {
            command = command.env("REDISCLI_AUTH", password.clone());
        }
        command
    }

    /// Finds out whether there is a `redis-cli`, and goes without where that is possible.
    pub fn choose_tool(&mut self, in_container: bool) -> Result<(), SourceError> {
        let command = self.command(&["--version"]);
        let command = Command { argv: vec!["redis-cli".into(), "--version".into()], ..command };
        match run(&*self.place, command, 4096) {
            Ok(_) => Ok(()),
            Err(PlaceError::ToolMissing { place, .. }) => {
                let why = match (in_container, self.address.tls, &self.address.socket) {
                    (true, ..) => "the server's container has to hold it",
                    (_, true, _) => "without it TLS is not spoken: apt install redis-tools",
                    (.., Some(_)) => "without it a socket file is not reached: apt install redis-tools",
                    _ => {
                        self.by_link = true;
                        return Ok(());
                    }
                };
                Err(SourceError::hint(format!("no redis-cli in {place}"), why))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Asks one question.
    pub fn ask(&self, question: &[&str]) -> Result<Answer, SourceError> {
        self.ask_within(question, ANSWER_LIMIT.min(self.stall))
    }

    /// Asks one question that may take its time.
    pub fn ask_within(&self, question: &[&str], limit: Duration) -> Result<Answer, SourceError> {
        if self.by_link {
            let mut link = self.link()?;
            return match link.ask(question) {
                Ok(text) => Ok(Answer::Text(text)),
                Err(LinkError::Refused(text)) => self.refusal(&text),
                Err(LinkError::Broken(error)) => Err(self.broken(error)),
            };
        }
        let limit = limit.min(self.deadline.left());
        let (out, exit) = run(&*self.place, self.command(question).timeout(limit), MAX_ANSWER_BYTES)?;
        let text = String::from_utf8_lossy(&out).trim_end_matches('\n').to_owned();
        if exit.stderr.contains("AUTH failed: WRONGPASS") || exit.stderr.contains("AUTH failed: ERR invalid password") {
            return Err(self.wrong_password());
        }
        if exit.stderr.contains(NO_PASSWORD_SET) {
            self.open.store(true, Ordering::SeqCst);
        }
        let is_error = text.split_whitespace().next().is_some_and(|w| ERRORS.contains(&w)) && !text.contains('\n');
        match (is_error, exit.code) {
            (true, _) => self.refusal(&text),
            (false, 0) => Ok(Answer::Text(text)),
            (false, _) => Err(self.unreachable(&format!("{text}\n{}", exit.stderr))),
        }
    }

    fn link(&self) -> Result<Link, SourceError> {
        let (stall, deadline, cancel) = (self.stall, self.deadline, self.cancel.clone());
        let limits = Limits { what: "the copy", stall, deadline, cancel };
        let mut link = Link::connect(&self.address, limits).map_err(|e| self.unreachable(&e.to_string()))?;
        let Some(password) = &self.password else { return Ok(link) };
        let mut words = vec!["AUTH"];
        words.extend(self.user.as_deref());
        words.push(password.expose());
        match link.ask(&words) {
            Ok(_) => Ok(link),
            // It has no password at all; `redis-cli` goes on here too.
            Err(LinkError::Refused(text)) if text.contains(NO_PASSWORD_SET) => Ok(link),
            Err(LinkError::Refused(_)) => Err(self.wrong_password()),
            Err(LinkError::Broken(error)) => Err(self.broken(error)),
        }
    }

    /// What an error reply means.
    fn refusal(&self, text: &str) -> Result<Answer, SourceError> {
        match text.split_whitespace().next().unwrap_or_default() {
            "NOAUTH" if self.password.is_some() => Err(self.wrong_password()),
            "NOAUTH" => Err(SourceError::hint(
                format!("{} asks for a password, and the policy names none", self.name),
                "set password_from = \".env:REDIS_PASSWORD\" (file:KEY), \"env:NAME\" or \"file:PATH\"",
            )),
            "WRONGPASS" => Err(self.wrong_password()),
            "LOADING" => Err(self.loading()),
            "DENIED" => Err(SourceError::hint(
                format!("{} runs in protected mode and lets nobody in from outside: {}", self.name, one_line(text)),
                "give it a password (requirepass) and password_from, or name its container",
            )),
            _ => Ok(Answer::Refused(one_line(text))),
        }
    }

    fn wrong_password(&self) -> SourceError {
        let origin = self.password_origin.as_deref().unwrap_or("the password");
        let user = self.user.as_deref().map(|u| format!(" as user {u:?}")).unwrap_or_default();
        SourceError::hint(
            format!("AUTH failed for {}{user}: {origin}, which is not the one that the server accepts", self.name),
            "the password in the file and the one in the server differ: was one of them changed without the other?",
        )
    }

    pub fn loading(&self) -> SourceError {
        SourceError::hint(
            format!("{} is still loading its data", self.name),
            "try again when it has loaded: redis-cli INFO persistence says loading:0",
        )
    }

    fn broken(&self, error: std::io::Error) -> SourceError {
        match PlaceError::from_io(format!("talk to {}", self.name), "this host", error) {
            PlaceError::Io { source, .. } => self.unreachable(&source.to_string()),
            other => other.into(),
        }
    }

    /// What a failed connection means.
    pub fn unreachable(&self, said: &str) -> SourceError {
        let said = one_line(said);
        let has = |part: &str| said.contains(part);
        let hint = if has("Connection refused") {
            Some("is the server running, and listening on that address and port?")
        } else if has("No such file") {
            Some("is the server running, and is its socket there?")
        } else if has("Name or service not known") || has("name resolution") {
            Some(
                "the host name is not known here; a container without a published port is reached by service = or container =",
            )
        } else if has("certificate") {
            Some("name the authority that signed the server's certificate: rediss://host:port?cacert=/path/ca.pem")
        } else if has("SSL") {
            Some("does the server speak TLS on that port?")
        } else if has("closed the connection") || has("reset by peer") || has("Connection reset") {
            Some("a server that speaks TLS only closes plain connections so: set tls = true")
        } else {
            None
        };
        let said = if said.is_empty() { "no answer".to_owned() } else { said };
        SourceError::Problem { problem: format!("cannot talk to {}: {said}", self.name), hint: hint.map(str::to_owned) }
    }

    /// Asks for a full copy.
    pub fn dump(&self) -> Result<Stream, SourceError> {
        if self.by_link {
            let link = self.link()?;
            return match link.replicate() {
                Ok(replication) => Ok(Stream::Link(Box::new(replication))),
                Err(LinkError::Refused(text)) => Err(self.no_copy(&text)),
                Err(LinkError::Broken(error)) => Err(self.broken(error)),
            };
        }
        let command = self.command(&["--rdb", "-"]).stall(self.stall);
        let mut running = self.place.start(command)?;
        let stdout = running.stdout();
        Ok(Stream::Cli { running, stdout })
    }

    /// Why the server gave no copy.
    pub fn no_copy(&self, said: &str) -> SourceError {
        let said = one_line(said);
        let problem = format!("{} gave no copy of its data: {said}", self.name);
        let hint = if said.contains("NOPERM") {
            let user = self.user.as_deref().unwrap_or("default");
            format!("ACL SETUSER {user} +psync +sync +replconf +ping (and +info +config|get for the facts)")
        } else if said.contains("NOMASTERLINK") {
            "the replica has lost its master; capture the master, or repair the link".into()
        } else if said.contains("WRONGPASS") || said.contains("NOAUTH") {
            return self.wrong_password();
        } else if said.contains("LOADING") {
            return self.loading();
        } else {
            "the server's log names the cause: no memory to fork (vm.overcommit_memory), a full disk, an output buffer limit".into()
        };
        SourceError::hint(problem, hint)
    }
}

impl Stream {
    /// The bytes, once.
    pub fn reader(&mut self) -> Box<dyn Read + Send + '_> {
        match self {
            Stream::Cli { stdout, .. } => match stdout.take() {
                Some(stdout) => stdout,
                None => Box::new(std::io::empty()),
            },
            Stream::Link(replication) => Box::new(replication.as_mut()),
        }
    }

    /// The exit status of the tool; a link has none but its own completeness.
    pub fn finish(self) -> Result<Exit, PlaceError> {
        match self {
            Stream::Cli { running, .. } => running.wait(),
            Stream::Link(_) => Ok(Exit { code: 0, stderr: String::new() }),
        }
    }
}
