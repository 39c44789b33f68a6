//! What the tests share: a source on this host, tools that are meddled with, and a sink with a gate.

use crate::postgres::PostgresServer;
use crate::sink::{Bench, MemorySink};
use lifeboat::base::ids::StreamName;
use lifeboat::base::stream::StreamKind;
use lifeboat::place::{Command, HostPlace, Place, PlaceError, Running};
use lifeboat::policy::model::{Databases, Fingerprint, PostgresSpec, Target};
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::postgres::PostgresSource;
use lifeboat::sources::postgres::facts::{Database, Facts, Table};
use lifeboat::sources::{Captured, Piece, Sink, Source, SourceError, StreamSink};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub fn host() -> Locate {
    Arc::new(|_| Ok(Located::host()))
}

pub fn spec(url: String) -> PostgresSpec {
    PostgresSpec {
        target: Target::Url(url),
        user: None,
        databases: Databases::Own,
        password_from: None,
        fingerprint: Fingerprint::Rows,
        jobs: 1,
    }
}

pub fn source(spec: PostgresSpec) -> PostgresSource {
    PostgresSource::new("db".parse().unwrap(), spec, Duration::from_secs(120), host())
}

/// A run of its own: tests share a server, and a run that fails ends the sessions of its own name.
pub fn bench() -> Bench {
    let mut bench = Bench::new();
    let random: [u8; 4] = lifeboat::base::ids::random_bytes().unwrap();
    bench.snapshot = format!("20261119T020000Z-{}", hex::encode(random)).parse().unwrap();
    bench
}

pub fn capture(source: &PostgresSource) -> (MemorySink, Result<Captured, SourceError>) {
    let sink = MemorySink::new();
    let bench = bench();
    let result = source.capture(&bench.capture(&sink));
    (sink, result)
}

pub fn captured(spec: PostgresSpec) -> (MemorySink, Facts, Vec<String>) {
    let (sink, result) = capture(&source(spec));
    let captured = result.unwrap_or_else(|e| panic!("{}", full(&e)));
    let facts = serde_json::from_value(captured.facts).unwrap();
    (sink, facts, captured.warnings)
}

/// An error with its chain and hint, as the edge prints it.
pub fn full(error: &SourceError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    if let SourceError::Problem { hint: Some(hint), .. } = error {
        text = format!("{text} ({hint})");
    }
    text
}

pub fn failure(spec: PostgresSpec) -> (MemorySink, String) {
    let (sink, result) = capture(&source(spec));
    let error = result.expect_err("the capture fails");
    (sink, full(&error))
}

pub fn table<'f>(database: &'f Database, schema: &str, name: &str) -> &'f Table {
    let found = database.tables.iter().find(|t| t.schema == schema && t.name == name);
    found.unwrap_or_else(|| panic!("no {schema}.{name} in {:?}", database.tables))
}

/// A database that is larger than all pipes together.
pub fn large(server: &PostgresServer, name: &str) {
    server.create(name);
    server.sql(
        name,
        "CREATE TABLE big AS SELECT i, md5(i::text) || repeat('x', 200) AS t FROM generate_series(1, 50000) AS i",
    );
}

/// This host, with a shell in front of one tool: `$@` are the tool and its arguments.
pub struct Meddled {
    pub tool: &'static str,
    pub option: &'static str,
    pub script: String,
}

impl Place for Meddled {
    fn describe(&self) -> String {
        "this host".into()
    }

    fn start(&self, mut command: Command) -> Result<Box<dyn Running>, PlaceError> {
        if command.argv[0] == self.tool && command.argv.iter().any(|a| a.starts_with(self.option)) {
            let mut argv = vec!["bash".to_owned(), "-c".into(), self.script.clone(), "meddled".into()];
            argv.extend(command.argv);
            command.argv = argv;
        }
        HostPlace::new().start(command)
    }
}

pub fn meddled(spec: PostgresSpec, tool: &'static str, option: &'static str, script: &str) -> PostgresSource {
    let script = script.to_owned();
    let locate: Locate = Arc::new(move |_| {
        let place = Meddled { tool, option, script: script.clone() };
        Ok(Located { place: Arc::new(place), env: Default::default() })
    });
    PostgresSource::new("db".parse().unwrap(), spec, Duration::from_secs(120), locate)
}

pub struct NoTools;

impl Place for NoTools {
    fn describe(&self) -> String {
        "this host".into()
    }

    fn start(&self, command: Command) -> Result<Box<dyn Running>, PlaceError> {
        Err(PlaceError::ToolMissing { tool: command.argv[0].clone(), place: self.describe() })
    }
}

pub fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(from.len()).position(|w| w == from) {
        bytes[at + found..at + found + from.len()].copy_from_slice(to);
        at += found + from.len();
    }
}

/// A TCP proxy that may change what the server says.
pub struct Proxy;

impl Proxy {
    pub fn start(server: u16, change: fn(&mut [u8])) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let upstream = TcpStream::connect(("127.0.0.1", server)).unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
                let (mut from, mut to) = (upstream, client);
                std::thread::spawn(move || {
                    let mut buffer = vec![0u8; 64 << 10];
                    while let Ok(n) = from.read(&mut buffer) {
                        if n == 0
                            || to
                                .write_all({
                                    change(&mut buffer[..n]);
                                    &buffer[..n]
                                })
                                .is_err()
                        {
                            break;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        port
    }
}

/// A sink that takes so many bytes of a dump, and no more until it is opened.
pub struct GateSink {
    pub inner: MemorySink,
    let_through: u64,
    pub open: AtomicBool,
    pub reached: AtomicBool,
}

pub struct GateStream<'a> {
    gate: &'a GateSink,
    gated: bool,
    pub inner: Box<dyn StreamSink + 'a>,
}

impl GateSink {
    pub fn new(let_through: u64) -> Self {
        let (open, reached) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { inner: MemorySink::new(), let_through, open, reached }
    }
}

impl Sink for GateSink {
    fn stream(
        &self,
        name: StreamName,
        kind: StreamKind,
        expected: Option<u64>,
    ) -> io::Result<Box<dyn StreamSink + '_>> {
        let gated = name.as_str().ends_with(".dump");
        Ok(Box::new(GateStream { gate: self, gated, inner: self.inner.stream(name, kind, expected)? }))
    }
}

impl Write for GateStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.gated && self.inner.position() >= self.gate.let_through {
            self.gate.reached.store(true, Ordering::SeqCst);
            while !self.gate.open.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl StreamSink for GateStream<'_> {
    fn end_piece(&mut self) -> io::Result<Piece> {
        self.inner.end_piece()
    }

    fn reuse_piece(&mut self, piece: &Piece) -> io::Result<bool> {
        self.inner.reuse_piece(piece)
    }

    fn position(&self) -> u64 {
        self.inner.position()
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.inner.finish()
    }
}

/// Captures, and calls `meanwhile` while `pg_dump` stands in the middle of its work.
pub fn midway(
    source: &PostgresSource,
    meanwhile: impl FnOnce(&Bench),
) -> (MemorySink, Result<Captured, SourceError>, Duration) {
    behind(0, source, meanwhile)
}

/// The same behind so many bytes of a stream.
pub fn behind(
    let_through: u64,
    source: &PostgresSource,
    meanwhile: impl FnOnce(&Bench),
) -> (MemorySink, Result<Captured, SourceError>, Duration) {
    let sink = GateSink::new(let_through);
    let bench = bench();
    let (result, took) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut capture = bench.capture(&sink.inner);
            capture.sink = &sink;
            source.capture(&capture)
        });
        let begin = Instant::now();
        while !sink.reached.load(Ordering::SeqCst) && !thread.is_finished() {
            assert!(begin.elapsed() < Duration::from_secs(60), "the dump does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| meanwhile(&bench)));
        let begin = Instant::now();
        sink.open.store(true, Ordering::SeqCst);
        let result = thread.join().unwrap();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        (result, begin.elapsed())
    });
    (sink.inner, result, took)
}
