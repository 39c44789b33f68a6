//! The standard output of a command: the door for what has no source of its own (MariaDB, MongoDB, RabbitMQ's
//! definitions, SQLite's `.backup`).
//!
//! The stream is the output, byte for byte, under the name that the policy gives it, else `<source>.out`. It counts when
//! the command ended with status 0 and wrote something: a command that fails quietly writes nothing. Facts:
//! `{"command": […], "stream": name, "bytes": n, "place": …}`.

mod proof;

pub use proof::CommandProof;

use super::locate::{Locate, Located, describe};
use super::run::{Deadline, Linked, one_line, settle};
use super::tap::{Tap, TapError};
use super::{Capture, Captured, Source, SourceError};
use crate::base::cancel::Cancel;
use crate::base::ids::{SourceName, StreamName};
use crate::base::stream::StreamKind;
use crate::place::{Command, PlaceError};
use crate::policy::model::{CommandSpec, Target};
use std::path::PathBuf;
use std::time::Duration;

/// A value shorter than this is too common to be taken for a secret.
const SECRET_FROM_BYTES: usize = 6;

/// A command of a policy.
pub struct CommandSource {
    name: SourceName,
    spec: CommandSpec,
    timeout: Duration,
    locate: Locate,
    dir: Option<PathBuf>,
    stall: Option<Duration>,
}

impl CommandSource {
    pub fn new(name: SourceName, spec: CommandSpec, timeout: Duration, locate: Locate) -> Self {
        Self { name, spec, timeout, locate, dir: None, stall: None }
    }

    /// The folder that a command on the host runs in; in a container it is the image's.
    pub fn in_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// The longest that it may stand without a byte of output.
    pub fn stall(mut self, limit: Duration) -> Self {
        self.stall = Some(limit);
        self
    }

    fn located(&self) -> Result<Located, SourceError> {
        match &self.spec.target {
            Target::Url(_) => Err(SourceError::hint(
                "a command runs on this host or in a container, not at a URL",
                "name service = or container =, or leave both out",
            )),
            target => Ok((self.locate)(target)?),
        }
    }

    fn stream_name(&self) -> Result<StreamName, SourceError> {
        Ok(match &self.spec.output {
            Some(name) => name.parse()?,
            None => StreamName::encode(self.name.as_str(), ".out")?,
        })
    }

    fn program(&self) -> &str {
        self.spec.run.first().map_or("", String::as_str)
    }

    fn capture_all(&self, cx: &Capture<'_>, cancel: &Cancel) -> Result<Captured, SourceError> {
        let deadline = Deadline::after(self.timeout);
        let name = self.stream_name()?;
        if self.program().is_empty() {
            return Err(SourceError::hint("the command is empty", "run = [\"program\", \"argument\", …]"));
        }
        let located = self.located()?;
        let mut command = Command::new(self.spec.run.iter().cloned()).timeout(deadline.left()).cancel(cancel);
        command.stall = self.stall;
        if self.spec.target == Target::Host {
            command.dir = self.dir.clone();
        }
        let place = located.place.describe();
        cx.events.step(format!("{}: {} in {place}", self.name, self.program()));
        let mut running = located.place.start(command)?;
        let stdout =
            running.stdout().ok_or_else(|| SourceError::problem("the command was started without its pipe"))?;
        let mut stream = cx.sink.stream(name.clone(), StreamKind::Raw, None).map_err(SourceError::Sink)?;
        let mut tap = Tap::new(stdout, &mut stream, ());
        let bytes = match tap.pass_rest(&mut |_| ()).and_then(|n| tap.finish().map(|_| n)) {
            Ok(bytes) => bytes,
            Err(TapError::Sink(error)) => return Err(SourceError::Sink(error)),
            Err(TapError::Read(error)) => {
                return Err(PlaceError::from_io(format!("read output of {}", self.program()), place, error).into());
            }
            Err(TapError::Short | TapError::Format(_)) => {
                return Err(SourceError::problem(format!("the output of {} ends early", self.program())));
            }
        };
        let exit = running.wait()?;
        let said = redact(&one_line(&exit.stderr), &located);
        if exit.code != 0 {
            let said = if said.is_empty() { String::new() } else { format!(": {said}") };
            let problem = format!("{} in {place} ended with status {}{said}", self.program(), exit.code);
            return Err(SourceError::problem(problem));
        }
        if bytes == 0 {
            let said = if said.is_empty() { String::new() } else { format!("; it said: {said}") };
            return Err(SourceError::hint(
                format!("{} in {place} ended with status 0 and wrote nothing{said}", self.program()),
                "the command has to write what shall be kept to its standard output",
            ));
        }
        stream.finish().map_err(SourceError::Sink)?;
        let mut warnings = Vec::new();
        if !said.is_empty() {
            warnings.push(format!("{} said: {said}", self.program()));
            cx.events.warn(&self.name, warnings[0].clone());
        }
        let facts = serde_json::json!({
            "command": self.spec.run,
            "place": place,
            "stream": name.as_str(),
            "bytes": bytes,
        });
        Ok(Captured { facts, warnings })
    }
}

/// A tool's words without the values of the container's secrets.
pub(super) fn redact(text: &str, located: &Located) -> String {
    let looks_secret = |name: &str| {
        let name = name.to_ascii_uppercase();
        ["PASS", "SECRET", "TOKEN", "KEY", "COOKIE", "CREDENTIAL", "DSN", "URL"].iter().any(|part| name.contains(part))
    };
    let mut out = text.to_owned();
    for (name, value) in &located.env {
        if looks_secret(name) && value.expose().len() >= SECRET_FROM_BYTES {
            out = out.replace(value.expose().as_str(), "***");
        }
    }
    out
}

impl Source for CommandSource {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "command"
    }

    fn describe(&self) -> String {
        format!("output of {} in {}", self.program(), describe(&self.spec.target))
    }

    fn probe(&self, cancel: &Cancel) -> Result<(), SourceError> {
        cancel.check()?;
        self.stream_name()?;
        self.located().map(|_| ())
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        let linked = Linked::to(cx.cancel)?;
        self.capture_all(cx, &linked.cancel).map_err(|e| settle(e, cx.cancel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;

    #[test]
    fn the_words_of_a_tool_lose_the_container_s_secrets() {
        let mut located = Located::host();
        located.env.insert("MYSQL_ROOT_PASSWORD".into(), Secret::new("hunter2hunter2".into()));
        located.env.insert("LANG".into(), Secret::new("C.UTF-8".into()));
        assert_eq!(redact("denied for hunter2hunter2 (C.UTF-8)", &located), "denied for *** (C.UTF-8)");
    }
}
