//! A command's output, proved: whole, and good in the eyes of the policy's own `check`.
//!
//! `check` is the user's command and not restored data: it runs where `run` ran (on the host, in the application's
//! folder, or in the service), gets the stored output on standard input, and says by status 0 that it is good. What it
//! must not do is restore: a drill changes nothing that lives.

use super::redact;
use crate::base::threads;
use crate::base::units::human_size;
use crate::place::{Command, PlaceError};
use crate::policy::model::{CommandSpec, SourceSpec, Target};
use crate::sources::SourceError;
use crate::sources::locate::{Located, describe};
use crate::sources::proof::{Check, Proof, Prove, Trial};
use crate::sources::run::{Linked, one_line, settle};
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};

const BUFFER: usize = 256 << 10;

/// Proves a source of kind `command`.
pub struct CommandProof;

impl Prove for CommandProof {
    fn prove(&self, trial: &Trial<'_>) -> Result<Proof, SourceError> {
        let mut proof = Proof::default();
        let name = stream_name(trial)?;
        let read = proof.step(trial, "read back", false, || length(trial, &name))?;
        proof.restored.push(format!("{name} ({})", human_size(trial.streams.info(&name)?.length)));
        proof.add(read);
        let spec = match trial.source.map(|s| &s.spec) {
            Some(SourceSpec::Command(spec)) => spec,
            _ => {
                proof.add(Check::skipped("check", &name, "there is no policy that says how it is checked"));
                return Ok(proof);
            }
        };
        let Some(argv) = spec.check.as_ref().filter(|argv| !argv.is_empty()) else {
            proof.add(Check::skipped("check", &name, "the policy gives no check command"));
            return Ok(proof);
        };
        let linked = Linked::to(trial.cancel)?;
        let check = proof.step(trial, "check", false, || Run { trial, spec, argv, name: &name }.check(&linked));
        proof.add(check.map_err(|e| settle(e, trial.cancel))?);
        Ok(proof)
    }
}

/// The stream that the facts name, else the only one there is.
fn stream_name(trial: &Trial<'_>) -> Result<String, SourceError> {
    if let Some(name) = trial.facts["stream"].as_str() {
        return trial.streams.info(name).map(|info| info.name);
    }
    match trial.streams.list().as_slice() {
        [one] => Ok(one.name.clone()),
        _ => Err(SourceError::problem("the snapshot does not say which stream the output is")),
    }
}

fn length(trial: &Trial<'_>, name: &str) -> Result<Check, SourceError> {
    let stored = trial.streams.info(name)?.length;
    let expected = trial.facts["bytes"].as_u64().unwrap_or(stored);
    let said = format!("{expected} bytes");
    let (mut hash, mut bytes) = (Sha256::new(), 0u64);
    let read = trial.streams.open(name).and_then(|mut stream| {
        let mut buffer = vec![0; BUFFER];
        loop {
            trial.cancel.check_io()?;
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                n => {
                    hash.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
    });
    trial.cancel.check()?;
    let found = format!("{bytes} bytes");
    Ok(match read {
        Err(e) => Check::failed("content", name, said, found, e.to_string()),
        Ok(()) if bytes != expected => {
            let why = format!("expected {said}, found {found}");
            Check::failed("content", name, said, found, why)
        }
        Ok(()) => {
            let digest = hex::encode(hash.finalize());
            Check::passed("content", name, said, format!("{found}, sha256 {}", &digest[..16]))
        }
    })
}

/// One run of the check.
struct Run<'a> {
    trial: &'a Trial<'a>,
    spec: &'a CommandSpec,
    argv: &'a [String],
    name: &'a str,
}

/// Why the input did not go in whole.
enum Feed {
    Stream(io::Error),
    /// The command closed its input, or broke a limit: its end tells which.
    Pipe,
}

impl Run<'_> {
    fn check(&self, linked: &Linked) -> Result<Check, SourceError> {
        let program = &self.argv[0];
        let skipped = |why: String| Ok(Check::skipped("check", self.name, why));
        if matches!(self.spec.target, Target::Url(_)) {
            return skipped("a command runs on this host or in a container, not at a URL".into());
        }
        let found = match self.trial.places.find(&self.spec.target) {
            Ok(found) => found,
            Err(PlaceError::Cancelled(cancelled)) => return Err(cancelled.into()),
            Err(e) => return skipped(format!("{} cannot be reached: {e}", describe(&self.spec.target))),
        };
        let env = found.container.map(|c| c.env.into_iter().collect()).unwrap_or_default();
        let located = Located { place: found.place, env };
        let place = located.place.describe();
        let mut command =
            Command::new(self.argv.iter().cloned()).stdin().timeout(self.trial.timeout).cancel(&linked.cancel);
        if self.spec.target == Target::Host {
            command.dir = self.trial.policy.map(|p| p.app.root.clone());
        }
        let mut running = match located.place.start(command) {
            Ok(running) => running,
            Err(e @ PlaceError::ToolMissing { .. }) => return skipped(e.to_string()),
            Err(e) => return Err(e.into()),
        };
        let (stdin, stdout) = (running.stdin(), running.stdout());
        let fed = std::thread::scope(|scope| {
            // Its output is nobody's, and must not stop it.
            let drain =
                threads::begin_scoped(scope, move || stdout.map(|mut out| io::copy(&mut out, &mut io::sink())))?;
            let fed = stdin.map_or(Ok(()), |stdin| self.feed(stdin));
            if let Err(Feed::Stream(_)) = &fed {
                // Half of the input must not be taken for all of it.
                linked.raise();
            }
            // A panic there has lost nothing: the command's end is read below.
            let _ = drain.join();
            Ok::<_, SourceError>(fed)
        })?;
        let expected = format!("{program} in {place} ends with status 0");
        if let Err(Feed::Stream(e)) = fed {
            drop(running);
            self.trial.cancel.check()?;
            return Ok(Check::failed("check", self.name, expected, "the stored output cannot be read", e.to_string()));
        }
        match running.wait() {
            Ok(exit) if exit.code == 0 => Ok(Check::passed("check", self.name, expected.clone(), expected)),
            Ok(exit) => {
                let said = redact(&one_line(&exit.stderr), &located);
                let found = format!("status {}", exit.code);
                let why = if said.is_empty() { format!("{program}: {found}") } else { format!("{program}: {said}") };
                Ok(Check::failed("check", self.name, expected, found, why))
            }
            Err(e @ PlaceError::ToolMissing { .. }) => skipped(e.to_string()),
            Err(e @ (PlaceError::TimedOut { .. } | PlaceError::Stalled { .. })) => {
                Ok(Check::failed("check", self.name, expected, "no end", e.to_string()))
            }
            Err(e) => Err(e.into()),
        }
    }

    fn feed(&self, mut stdin: Box<dyn Write + Send>) -> Result<(), Feed> {
        let mut stream = self.trial.streams.open(self.name).map_err(Feed::Stream)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            match stream.read(&mut buffer).map_err(Feed::Stream)? {
                0 => return stdin.flush().map_err(|_| Feed::Pipe),
                n => stdin.write_all(&buffer[..n]).map_err(|_| Feed::Pipe)?,
            }
        }
    }
}
