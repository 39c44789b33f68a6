//! A capture held in memory, which a test may damage before it is proved: what a repository would hold that is
//! otherwise intact and correctly signed.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use super::sink::{Bench, MemorySink};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::Events;
use lifeboat::base::ids::{SourceName, StreamName};
use lifeboat::base::stream::StreamKind;
use lifeboat::sources::extract::{ExtractError, Extractor, Options, Report};
use lifeboat::sources::streams::{StreamInfo, Streams};
use lifeboat::sources::{Capture, Captured, Source, SourceError};
use serde_json::Value;
use std::io::{self, Cursor, Read};
use std::path::Path;

/// What one source gave: its facts and its streams, in order of their names.
#[derive(Clone)]
pub struct Taken {
    pub name: SourceName,
    pub kind: &'static str,
    pub facts: Value,
    pub streams: Vec<(String, StreamKind, Vec<u8>)>,
}

impl Taken {
    /// Captures a source.
    pub fn of(source: &dyn Source) -> Self {
        Self::with_key(source, &[7; 32])
    }

    /// The same, with the key of the host that will hold it against its facts.
    pub fn with_key(source: &dyn Source, fact_key: &[u8; 32]) -> Self {
        let (bench, sink) = (Bench::new(), MemorySink::new());
        let captured = source.capture(&Capture { fact_key, ..bench.capture(&sink) }).unwrap();
        let streams = sink.streams().into_iter().map(|(name, s)| (name, s.kind, s.bytes)).collect();
        Self { name: source.name().clone(), kind: source.kind(), facts: captured.facts, streams }
    }

    /// The bytes of a stream, to be damaged.
    pub fn bytes(&mut self, name: &str) -> &mut Vec<u8> {
        let found = self.streams.iter_mut().find(|(n, ..)| n == name);
        &mut found.unwrap_or_else(|| panic!("no stream {name:?}")).2
    }
}

impl Streams for Taken {
    fn list(&self) -> Vec<StreamInfo> {
        let info = |(name, kind, bytes): &(String, StreamKind, Vec<u8>)| StreamInfo {
            name: name.clone(),
            kind: *kind,
            length: bytes.len() as u64,
        };
        self.streams.iter().map(info).collect()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        let found = self.streams.iter().find(|(n, ..)| n == name);
        let (_, _, bytes) = found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, name.to_owned()))?;
        Ok(Box::new(Cursor::new(bytes.as_slice())))
    }

    fn lay_out(&self, into: &Path) -> Result<Report, SourceError> {
        let options = Options { privileged: false, owners: rustix::process::geteuid().is_root(), overwrite: false };
        let failed = |e: ExtractError| SourceError::problem(e.to_string());
        let mut extractor = Extractor::new(into, options, &Cancel::new()).map_err(failed)?;
        for (_, _, bytes) in self.streams.iter().filter(|(_, kind, _)| *kind == StreamKind::Tar) {
            extractor.extract(Cursor::new(bytes.as_slice())).map_err(failed)?;
        }
        extractor.finish().map_err(failed)
    }
}

/// A source that gives again what was taken, as it is by now: so a real repository can be made of damaged captures.
impl Source for Taken {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        self.kind
    }

    fn describe(&self) -> String {
        "what was taken before".into()
    }

    fn probe(&self, _: &Cancel) -> Result<(), SourceError> {
        Ok(())
    }

    fn capture(&self, cx: &Capture<'_>) -> Result<Captured, SourceError> {
        for (name, kind, bytes) in &self.streams {
            let name: StreamName = name.parse()?;
            let mut stream = cx.sink.stream(name, *kind, Some(bytes.len() as u64)).map_err(SourceError::Sink)?;
            io::Write::write_all(&mut stream, bytes).map_err(SourceError::Sink)?;
            stream.finish().map_err(SourceError::Sink)?;
        }
        Ok(Captured { facts: self.facts.clone(), warnings: Vec::new() })
    }
}

/// Events that nobody listens to.
pub fn silence() -> Events {
    Events::none()
}
