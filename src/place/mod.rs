//! L1: a command in a place: on the host, or inside a container by exec. Everything external runs through here.
//!
//! Invariants: argv never passes a shell; passwords go through the environment or standard input only; an exit
//! status that cannot be read is a failure; whatever was started is ended when its handle is dropped or cancelled.

pub mod account;
pub mod compose;
pub mod container;
mod context;
pub mod docker;
pub mod helper;
pub mod host;
mod images;
mod inside;
pub mod inspect;
mod lifecycle;
mod orphans;
mod owner;
mod stream;
mod tar_end;
mod watch;

pub use compose::Compose;
pub use container::ContainerPlace;
pub use docker::Docker;
pub use host::HostPlace;
pub use inside::InnerSocket;
pub use owner::{is_gone as owner_is_gone, is_gone_here as owner_is_gone_here, mark as owner_mark, mark_of, pid_of};

use crate::base::cancel::Cancel;
use crate::base::secret::Secret;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to run. Build it with [`Command::new`] and the methods.
#[derive(Debug, Clone)]
pub struct Command {
    pub argv: Vec<String>,
    pub env: Vec<(String, Secret<String>)>,
    /// In a container: the user to exec as. On the host: the account to run as, when this process is root.
    pub user: Option<String>,
    pub dir: Option<PathBuf>,
    /// On the host: of the variables that a command inherits, only these; absent for all of them.
    pub inherits: Option<&'static [&'static str]>,
    /// Whether standard input is a pipe that the caller writes and closes; else it is empty.
    pub stdin: bool,
    /// The longest that it may run.
    pub timeout: Option<Duration>,
    /// The longest that it may stand without a byte of output.
    pub stall: Option<Duration>,
    pub cancel: Cancel,
}

impl Command {
    /// A command with nothing on standard input, in the place's own folder and account.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            user: None,
            dir: None,
            inherits: None,
            stdin: false,
            timeout: None,
            stall: None,
            cancel: Cancel::new(),
        }
    }

    pub fn env(mut self, name: impl Into<String>, value: impl Into<Secret<String>>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn user(mut self, user: Option<String>) -> Self {
        self.user = user;
        self
    }

    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// See [`Command::inherits`].
    pub fn inherits(mut self, names: &'static [&'static str]) -> Self {
        self.inherits = Some(names);
        self
    }

    pub fn stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub fn stall(mut self, stall: Duration) -> Self {
        self.stall = Some(stall);
        self
    }

    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Exit {
    /// The exit status; 128 + n when signal n ended it.
    pub code: i32,
    /// The last 16 KiB of standard error.
    pub stderr: String,
}

/// Why a command could not be run or did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("docker does not answer at {endpoint}")]
    NoDocker {
        endpoint: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("docker context {name:?} cannot be used: {why}")]
    Context { name: String, why: String },
    #[error("no container {name:?}")]
    NoContainer { name: String },
    #[error("container {name:?} is {state}, not running")]
    NotRunning {
        name: String,
        state: String,
        /// Services of the same compose project that do run; empty where none was asked for.
        running: Vec<String>,
    },
    #[error("no container of a compose project in {}", dir.display())]
    NoProject { dir: PathBuf },
    #[error("more than one compose project in {}: {}", dir.display(), projects.join(", "))]
    ManyProjects { dir: PathBuf, projects: Vec<String> },
    #[error("no service {service:?} in compose project {project}")]
    NoService { service: String, project: String, running: Vec<String> },
    #[error("no {tool:?} in {place}")]
    ToolMissing { tool: String, place: String },
    #[error("{tool} in {place} ended with status {code}: {stderr}")]
    Failed { tool: String, place: String, code: i32, stderr: String },
    #[error("{tool} in {place} took longer than {}", crate::base::units::human_duration(*.limit))]
    TimedOut { tool: String, place: String, limit: Duration },
    #[error("{tool} in {place} gave no output for {}", crate::base::units::human_duration(*.limit))]
    Stalled { tool: String, place: String, limit: Duration },
    #[error("{what} in {place}")]
    Io {
        what: String,
        place: String,
        #[source]
        source: std::io::Error,
    },
    #[error("docker: {what}")]
    Docker {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Thread(#[from] crate::base::threads::NoThread),
    #[error(transparent)]
    Cancelled(#[from] crate::base::cancel::Cancelled),
}

impl PlaceError {
    /// The way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            PlaceError::NoDocker { .. } => Some(
                "is the engine running, and is this user root or in group docker? DOCKER_HOST names another engine"
                    .into(),
            ),
            PlaceError::Thread(_) => Some(crate::base::threads::HINT.into()),
            PlaceError::Context { .. } => Some(
                "set DOCKER_HOST to the socket of the engine that is meant, or choose another context with DOCKER_CONTEXT"
                    .into(),
            ),
            PlaceError::NotRunning { name, running, .. } => {
                let others = match running.as_slice() {
                    [] => String::new(),
                    some => format!("; services that run: {}", some.join(", ")),
                };
                Some(format!("start it, or look at `docker logs {name}`{others}"))
            }
            PlaceError::NoProject { .. } => {
                Some("start it with `docker compose up -d`, or name it by `project` in section [app]".into())
            }
            PlaceError::ManyProjects { .. } => Some("name one by `project` in section [app]".into()),
            PlaceError::NoService { running, .. } if running.is_empty() => Some("none of its services runs".into()),
            PlaceError::NoService { running, .. } => Some(format!("services that run: {}", running.join(", "))),
            PlaceError::ToolMissing { tool, place } => Some(format!("install {tool:?} in {place}")),
            _ => None,
        }
    }

    /// What reading or writing a command's pipe said: the limit that broke it, else an error of `what` in `place`.
    pub fn from_io(what: impl Into<String>, place: impl Into<String>, error: std::io::Error) -> Self {
        match error.downcast::<PlaceError>() {
            Ok(inner) => inner,
            Err(source) => PlaceError::Io { what: what.into(), place: place.into(), source },
        }
    }
}

/// A command that runs. Dropping it before [`Running::wait`] ends the command.
pub trait Running: Send {
    /// Standard input, once, when the command asked for it. Dropping the writer ends the input.
    fn stdin(&mut self) -> Option<Box<dyn Write + Send>>;
    /// Standard output, once. Reading it observes the time-out, the stall limit and cancellation.
    fn stdout(&mut self) -> Option<Box<dyn Read + Send>>;
    /// Waits for the end. Any status is `Ok`; an unreadable one is an error.
    fn wait(self: Box<Self>) -> Result<Exit, PlaceError>;
    /// On this host: the process id of what was started, which leads a process group of its own.
    fn id(&self) -> Option<u32> {
        None
    }
}

/// The host, or one container.
pub trait Place: Send + Sync {
    /// For messages: `this host`, `container masstock_redis`.
    fn describe(&self) -> String;
    /// Starts a command.
    fn start(&self, command: Command) -> Result<Box<dyn Running>, PlaceError>;

    /// A socket of a place that is not this host itself, where this process can reach it.
    fn socket(&self, _path: &Path) -> Option<InnerSocket> {
        None
    }

    /// Runs a command to its end and returns its standard output (at most `limit` bytes); a status other than 0 is
    /// [`PlaceError::Failed`].
    fn output(&self, command: Command, limit: usize) -> Result<Vec<u8>, PlaceError> {
        let tool = command.argv.first().cloned().unwrap_or_default();
        let mut running = self.start(command)?;
        drop(running.stdin());
        let mut out = Vec::new();
        let io = |what: &str, source| PlaceError::from_io(format!("{what} {tool}"), self.describe(), source);
        if let Some(stdout) = running.stdout() {
            stdout.take(limit as u64 + 1).read_to_end(&mut out).map_err(|e| io("read output of", e))?;
        }
        if out.len() > limit {
            return Err(io("read output of", std::io::Error::other(format!("more than {limit} bytes"))));
        }
        let exit = running.wait()?;
        if exit.code != 0 {
            return Err(PlaceError::Failed {
                tool,
                place: self.describe(),
                code: exit.code,
                stderr: exit.stderr.trim().to_owned(),
            });
        }
        Ok(out)
    }
}
