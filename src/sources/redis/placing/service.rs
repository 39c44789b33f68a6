//! Stopping and starting the server, and what it says when it is back.
//!
//! Every step may be repeated: a server that is stopped stays so, one that runs goes on.

use super::Step;
use super::grouped;
use super::look::{ask_info, process_id};
use super::state::{Runs, State};
use crate::place::{Command, HostPlace, Place, PlaceError};
use crate::sources::SourceError;
use crate::sources::redis::client::{Answer, Server};
use crate::sources::redis::facts::Keys;
use crate::sources::redis::info::Info;
use crate::sources::run::{one_line, run};
use rustix::process::{Pid, Signal};
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// A server that does not even listen for so long after its start is not coming.
const DEAF: Duration = Duration::from_secs(30);
/// And one that is no process any more, even sooner.
const GONE: Duration = Duration::from_secs(3);
/// Whoever starts a server again that was stopped does so within this.
const REVIVAL: Duration = Duration::from_millis(700);

/// Settings that decide nothing about which data a server has.
const TOLD: &[&str] = &["save", "maxmemory", "maxmemory-policy"];

pub(super) struct Service<'a> {
    step: &'a Step<'a>,
    state: &'a State,
}

impl<'a> Service<'a> {
    pub fn new(step: &'a Step<'a>, state: &'a State) -> Self {
        Self { step, state }
    }

    /// The server, if it answers.
    fn running(&self) -> Result<Option<(Server, Info)>, SourceError> {
        let server = match self.step.server() {
            Ok((server, _)) => server,
            Err(error) => return self.absent(error).map(|()| None),
        };
        match ask_info(&server) {
            Ok(info) => Ok(Some((server, info))),
            Err(error) => self.absent(error).map(|()| None),
        }
    }

    /// Nothing but cancellation and a refused password tells more than that it does not run.
    fn absent(&self, error: SourceError) -> Result<(), SourceError> {
        self.step.linked.cancel.check()?;
        match &error {
            SourceError::Cancelled(_)
            | SourceError::Place(PlaceError::NoDocker { .. } | PlaceError::Context { .. }) => Err(error),
            SourceError::Problem { problem, .. } if problem.contains("AUTH") || problem.contains("password") => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// All data to its files, so that nothing is lost with the process.
    pub fn save(&self) -> Result<(), SourceError> {
        let Some((server, info)) = self.running()? else { return Ok(()) };
        // A child that saves in the background already keeps it from saving now.
        let busy = |info: &Info| info.get("rdb_bgsave_in_progress") == Some("1");
        let mut info = info;
        while busy(&info) {
            self.wait("saving in the background")?;
            info = ask_info(&server)?;
        }
        self.step.scene.events.step(format!("{}: {} writes out its data", self.step.scene.name, server.name));
        match server.ask_within(&["SAVE"], self.step.deadline.left())? {
            Answer::Text(text) if text == "OK" => Ok(()),
            Answer::Text(why) | Answer::Refused(why) => Err(SourceError::hint(
                format!("{} does not write out its data before it is stopped: {}", server.name, one_line(&why)),
                "let the user of this source ask SAVE (ACL: +save); or is the disk full? The server's log names the cause",
            )),
        }
    }

    /// Sleeps a moment within the limits.
    fn wait(&self, what: &str) -> Result<(), SourceError> {
        self.step.linked.cancel.check()?;
        if self.step.deadline.left() <= Duration::from_millis(1) {
            let (tool, place) = (what.to_owned(), self.state.runs.describe());
            return Err(PlaceError::TimedOut { tool, place, limit: self.step.source.timeout }.into());
        }
        std::thread::sleep(LOOK);
        Ok(())
    }

    pub fn stop(&self) -> Result<(), SourceError> {
        match &self.state.runs {
            Runs::Container { name, .. } => {
                let docker = self.step.scene.places.docker()?;
                docker.stop_container(name)?;
                match docker.inspect(name)?.state.as_str() {
                    "running" | "restarting" | "paused" => {
                        Err(SourceError::problem(format!("container {name:?} does not stay stopped")))
                    }
                    _ => Ok(()),
                }
            }
            Runs::Unit { unit } => self.tool(&["systemctl", "stop", "--", unit], None).map(drop),
            Runs::Config { .. } => self.stop_process(),
        }
    }

    /// Ends a server that nobody watches over.
    fn stop_process(&self) -> Result<(), SourceError> {
        let Some((server, info)) = self.running()? else { return Ok(()) };
        let pid = process_id(&server, &info)?;
        // The answer is the end of the connection; a server that knows no such command gets the signal.
        let _ = server.ask(&["SHUTDOWN", "NOSAVE"]);
        let began = Instant::now();
        let mut signalled = false;
        while is_alive(pid) {
            self.wait("stopping the server")?;
            if !signalled && began.elapsed() > Duration::from_secs(15) {
                signalled = true;
                if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, Signal::TERM);
                }
            }
        }
        let stopped = Instant::now();
        while stopped.elapsed() < REVIVAL {
            self.wait("stopping the server")?;
            if self.running()?.is_some() {
                return Err(SourceError::hint(
                    format!("{} was stopped, and something started it again at once", server.name),
                    "stop it where it is watched over (a supervisor, a script), and put the file in place by hand",
                ));
            }
        }
        Ok(())
    }

    pub fn start(&self) -> Result<(), SourceError> {
        match &self.state.runs {
            Runs::Container { name, .. } => Ok(self.step.scene.places.docker()?.start_container(name)?),
            Runs::Unit { unit } => self.tool(&["systemctl", "start", "--", unit], None).map(drop),
            Runs::Config { program, config, cwd } => {
                if self.running()?.is_some() {
                    return Ok(());
                }
                let user = format!("{}:{}", self.state.uid, self.state.gid);
                self.tool(&[program, config, "--daemonize", "yes"], Some((user, cwd))).map(drop)
            }
        }
    }

    fn tool(&self, argv: &[&str], who: Option<(String, &std::path::PathBuf)>) -> Result<Vec<u8>, SourceError> {
        let mut command = Command::new(argv.iter().copied());
        command = match who {
            Some((user, dir)) => command.user(Some(user)).dir(dir),
            None => command.dir("/"),
        };
        let command = command.timeout(self.step.deadline.left()).cancel(&self.step.linked.cancel);
        let place = HostPlace::new();
        let (out, exit) = run(&place, command, 64 << 10)?;
        match exit.code {
            0 => Ok(out),
            code => Err(PlaceError::Failed {
                tool: argv.first().copied().unwrap_or_default().to_owned(),
                place: place.describe(),
                code,
                stderr: one_line(&format!("{}\n{}", exit.stderr, String::from_utf8_lossy(&out))),
            }
            .into()),
        }
    }

    /// Waits until the server has loaded its data.
    pub fn await_loaded(&self) -> Result<Info, SourceError> {
        let mut deaf = Instant::now();
        loop {
            if let Some((_, info)) = self.running()? {
                let busy = |key| info.get(key) == Some("1");
                if !busy("loading") && !busy("async_loading") {
                    return Ok(info);
                }
                deaf = Instant::now();
            }
            if let Runs::Container { name, .. } = &self.state.runs {
                let container = self.step.scene.places.docker()?.inspect(name)?;
                if !container.is_running() && deaf.elapsed() > Duration::from_secs(2) {
                    let status = container.exit_code.unwrap_or_default();
                    return Err(SourceError::hint(
                        format!("container {name:?} ended with status {status} instead of loading its data"),
                        format!("docker logs {name} names the cause"),
                    ));
                }
            }
            let is_gone = || !matches!(self.state.runs, Runs::Container { .. }) && !works_in(&self.state.dir);
            if deaf.elapsed() > GONE && is_gone() {
                return Err(SourceError::hint(
                    "the server ended instead of loading its data",
                    "its log names the cause",
                ));
            }
            if deaf.elapsed() > DEAF {
                return Err(SourceError::hint(
                    format!("the server does not answer {} s after its start", DEAF.as_secs()),
                    "its log names the cause",
                ));
            }
            self.wait("loading the data")?;
        }
    }

    /// What was loaded, held against what was stored.
    pub fn check_loaded(&self, info: &Info) -> Result<(), SourceError> {
        let Some(expected) = &self.state.keys else { return Ok(()) };
        let total: u64 = expected.iter().map(|k| k.keys).sum();
        match info.loaded() {
            Some(loaded) if loaded == total => Ok(()),
            Some(loaded) => Err(SourceError::problem(format!(
                "the server loaded {} keys, and {} were stored",
                grouped(loaded),
                grouped(total)
            ))),
            None => within(expected, &info.keyspace()),
        }
    }

    /// Whether it is set up as it was. What was set at run time only was lost by the restart, as by any other: that
    /// fails where it decides which data the server has, and is told otherwise.
    pub fn check_settings(&self) -> Result<(), SourceError> {
        let (server, _) = self.step.server()?;
        let now = self.step.settings(&server)?;
        for (name, before) in &self.state.settings {
            let after = now.get(name).map(String::as_str).unwrap_or_default();
            if after != before && TOLD.contains(&name.as_str()) {
                let text = format!("{name} was {before:?} until the restart and is {after:?} now");
                self.step.scene.events.warn(self.step.scene.name, text);
            } else if after != before {
                return Err(SourceError::problem(format!(
                    "{} had {name} {before:?} before it was started again, and now has {after:?}",
                    server.name
                )));
            }
        }
        Ok(())
    }
}

/// Where the server does not tell what it loaded: keys with a time to live may have gone since.
fn within(expected: &[Keys], found: &[Keys]) -> Result<(), SourceError> {
    let of = |list: &[Keys], database| list.iter().find(|k| k.database == database).map_or(0, |k| k.keys);
    let unexpected = found.iter().find(|k| of(expected, k.database) == 0 && k.keys > 0);
    for keys in expected.iter().chain(unexpected) {
        let stored = expected.iter().find(|k| k.database == keys.database).map_or((0, 0), |k| (k.keys, k.expires));
        let now = of(found, keys.database);
        if now > stored.0 || now < stored.0.saturating_sub(stored.1) {
            return Err(SourceError::problem(format!(
                "database {} of the server holds {} keys, and {} were stored",
                keys.database,
                grouped(now),
                grouped(stored.0)
            )));
        }
    }
    Ok(())
}

/// Whether a Redis server of this host has made this folder its own.
fn works_in(dir: &str) -> bool {
    let dir = std::fs::canonicalize(dir).ok();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.map(|entry| entry.path()).any(|process| {
        let comm = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
        (comm.contains("redis-server") || comm.contains("valkey-server"))
            && std::fs::read_link(process.join("cwd")).ok() == dir
    })
}

/// Whether a process still runs; one that waits to be reaped does not.
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    !matches!(state, None | Some("Z" | "X"))
}
