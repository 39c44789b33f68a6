//! Proving a captured Redis: the stored file is walked and held against the facts, a throw-away server loads it, and
//! what that server writes again is held against them too.
//!
//! The throw-away server runs as a replica of nobody: a replica leaves the expiry of keys to its master, so keys whose
//! time came since the capture stay, and every comparison is exact whenever the drill runs.
//!
//! Which check finds what: a cut or changed file, also under a checksum that was zeroed, `file`; a missing key `keys`; a
//! lost or changed time to live `times to live`; a changed value or type `values`; a lost library `functions`; what no
//! server takes, `load`; and what a server takes and does not hold as it was stored, `loaded`.

mod container;
mod file;
mod host;
mod loaded;
mod server;

use super::facts::Facts;
use super::{STREAM, rdb};
use crate::place::{HostPlace, PlaceError};
use crate::policy::model::{SourceSpec, Target};
use crate::sources::SourceError;
use crate::sources::proof::{Check, Proof, Prove, Trial, Verdict};
use crate::sources::run::{Deadline, Linked, settle};
use crate::sources::tap::TapError;
use server::{Order, Program, Refusal, Throwaway};
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

/// Proves sources of kind `redis`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RedisProof;

/// What a server needs beside its data: code, buffers, one connection.
const MEMORY_BESIDE: u64 = 64 << 20;

impl Prove for RedisProof {
    fn prove(&self, trial: &Trial<'_>) -> Result<Proof, SourceError> {
        let linked = Linked::to(trial.cancel)?;
        let mut proof = Proof::default();
        let run = Run { trial, deadline: Deadline::after(trial.timeout), linked: &linked };
        run.prove(&mut proof).map_err(|e| settle(e, trial.cancel))?;
        Ok(proof)
    }
}

struct Run<'a> {
    trial: &'a Trial<'a>,
    deadline: Deadline,
    linked: &'a Linked,
}

impl Run<'_> {
    fn prove(&self, proof: &mut Proof) -> Result<(), SourceError> {
        let trial = self.trial;
        let facts: Facts = serde_json::from_value(trial.facts.clone()).map_err(|e| {
            SourceError::problem(format!("what the snapshot says of {} cannot be read: {e}", trial.name))
        })?;
        let stream = if facts.stream.is_empty() { STREAM } else { facts.stream.as_str() };
        let info = trial.streams.info(stream)?;

        let dir = trial.scratch.join("server");
        std::fs::create_dir(&dir).map_err(|e| file_error("make folder", &dir, e))?;
        let path = dir.join(server::DUMP);
        trial.events.step(format!("{}: reading {stream}", trial.name));
        let read = proof.step(trial, "read", true, || self.read(stream, &path))?;
        proof.add(file::check(stream, info.length, &read, &facts));
        let report = match read {
            Ok(report) => report,
            Err(_) => {
                let why = "the file is not whole";
                let others = ["keys", "times to live", "values", "functions", "load", "loaded"];
                proof.checks.extend(others.map(|name| Check::skipped(name, "", why)));
                return Ok(());
            }
        };
        proof.checks.extend(file::against_facts(&report, &facts));
        self.load(proof, &facts, &report, &dir)
    }

    /// The stream, walked on its way into a file. What the stream lacks is a finding, what the disk lacks is not.
    fn read(&self, stream: &str, path: &Path) -> Result<Result<rdb::Report, String>, SourceError> {
        let reader = match self.trial.streams.open(stream) {
            Ok(reader) => reader,
            Err(e) => return Ok(Err(format!("it cannot be read: {e}"))),
        };
        let file = File::create_new(path).map_err(|e| file_error("make", path, e))?;
        let mut out = BufWriter::with_capacity(256 << 10, file);
        let walked = rdb::store(self.watched(reader), &mut out);
        let written = out.into_inner().map(drop).map_err(|e| file_error("write", path, e.into_error()));
        match walked {
            Ok(report) => written.map(|()| Ok(report)),
            Err(TapError::Sink(e)) => Err(file_error("write", path, e)),
            Err(TapError::Read(e)) => {
                self.trial.cancel.check()?;
                Ok(Err(format!("it cannot be read: {e}")))
            }
            Err(TapError::Short) => Ok(Err("it ends early".into())),
            Err(TapError::Format(why)) => Ok(Err(why)),
        }
    }

    /// A reader that ends when the run is told to stop.
    fn watched<'r>(&self, reader: impl std::io::Read + Send + 'r) -> impl std::io::Read + Send + 'r {
        struct Watched<R>(R, crate::base::cancel::Cancel);
        impl<R: std::io::Read> std::io::Read for Watched<R> {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                self.1.check_io()?;
                self.0.read(buffer)
            }
        }
        Watched(reader, self.linked.cancel.clone())
    }

    fn load(&self, proof: &mut Proof, facts: &Facts, report: &rdb::Report, dir: &Path) -> Result<(), SourceError> {
        let trial = self.trial;
        let skip = |proof: &mut Proof, why: String| {
            proof.add(Check::skipped("load", "", why.clone()));
            proof.add(Check::skipped("loaded", "", why));
        };
        let memory = match self.memory(facts) {
            Ok(memory) => memory,
            Err(why) => {
                skip(proof, why);
                return Ok(());
            }
        };
        let order = Order::new(report, facts, memory, self.deadline, self.linked.cancel.clone());
        let program = match self.program(&order, facts)? {
            Ok(program) => program,
            Err(why) => {
                skip(proof, why);
                return Ok(());
            }
        };
        trial.events.step(format!("{}: loading it into {}", trial.name, program.describe()));
        let started = proof.step(trial, "load", true, || Throwaway::start(&program, &order, dir));
        let server = match started? {
            Ok(server) => server,
            Err(Refusal::Lacks(why)) => {
                skip(proof, why);
                return Ok(());
            }
            Err(Refusal::Refused(why)) => {
                let expected = "a server loads it";
                proof.add(Check::failed("load", program.describe(), expected, "it does not", why));
                proof.add(Check::skipped("loaded", "", "no server loaded it"));
                return Ok(());
            }
        };
        let compared = proof.step(trial, "compare", false, || self.compare(&server, facts, report));
        let (checks, keys) = compared?;
        if checks.first().is_some_and(|c| c.verdict == Verdict::Passed) {
            proof.restored.push(match keys {
                1 => "1 key".to_owned(),
                n => format!("{} keys", grouped(n)),
            });
        }
        proof.checks.extend(checks);
        Ok(())
    }

    /// What the server holds, held against the facts; and its number of keys.
    fn compare(
        &self,
        server: &Throwaway,
        facts: &Facts,
        report: &rdb::Report,
    ) -> Result<(Vec<Check>, u64), SourceError> {
        let keyspace = server.keyspace()?;
        let mut checks = vec![loaded::keys(&server.describe(), &keyspace, facts, report)];
        checks.push(match &report.databases {
            None => Check::skipped("loaded", "", file::UNKNOWN_TYPES),
            Some(_) => match server.written_again()? {
                Ok(again) => loaded::content(&again, report),
                Err(why) => Check::skipped("loaded", "", why),
            },
        });
        Ok((checks, keyspace.iter().map(|k| k.keys).sum()))
    }

    /// What the server may use: what the policy allows, or what the data set is known to need where that is more and
    /// this machine has it.
    fn memory(&self, facts: &Facts) -> Result<u64, String> {
        let allowed = self.trial.drill.memory;
        let needed = facts.used_memory.map_or(0, |used| used.saturating_add(used / 4).saturating_add(MEMORY_BESIDE));
        if needed <= allowed {
            return Ok(allowed);
        }
        let size = crate::base::units::human_size;
        if let Some(free) = free_memory().filter(|free| *free < needed) {
            return Err(format!(
                "the data set needs about {} of memory, and this machine has {} free",
                size(needed),
                size(free)
            ));
        }
        let text = format!(
            "the data set needs about {} of memory, more than [drill] memory = {} allows: the drill uses it",
            size(needed),
            size(allowed)
        );
        self.trial.events.warn(self.trial.name, text);
        Ok(needed)
    }

    /// Where a server of this kind is to be had: the live container's image, else this host's own.
    fn program(&self, order: &Order, facts: &Facts) -> Result<Result<Program, String>, SourceError> {
        let mut no_image = None;
        if let Some(SourceSpec::Redis(spec)) = self.trial.source.map(|s| &s.spec)
            && let Target::Service(_) | Target::Container(_) = &spec.target
        {
            match container::find(self.trial, &spec.target) {
                Ok(program) => return Ok(Ok(program)),
                Err(PlaceError::Cancelled(c)) => return Err(c.into()),
                Err(error) => no_image = Some(error),
            }
        }
        match host::find(&HostPlace::new(), order, facts)? {
            Some(program) => Ok(Ok(program)),
            None => {
                let mut why = "no redis-server or valkey-server on this host: apt install redis-server".to_owned();
                if let Some(error) = no_image {
                    why = format!("{}; {why}", server::chain(&error));
                }
                Ok(Err(why))
            }
        }
    }
}

/// Memory that could be used without swapping, as the kernel estimates it.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> SourceError {
    SourceError::File { action, path: path.to_owned(), source }
}

/// `88,120`.
pub(in crate::sources::redis) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn thousands_are_set_apart() {
        let all = [0, 7, 999, 1000, 88_120, 1_234_567].map(grouped);
        assert_eq!(all, ["0", "7", "999", "1,000", "88,120", "1,234,567"]);
    }
}
