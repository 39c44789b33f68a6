//! A proxy in front of a real S3 server that makes things go wrong by a script, and keeps a log of what it saw.
//!
//! One thread per connection; each request is read whole, matched against the rules in order, and either answered
//! here, or handed to the server on a connection of its own. Signatures survive: the client signs the proxy's own
//! host name, and it is passed on as it came.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What is done to a request that a rule matches.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answered here with a status and an S3 error code.
    Status(u16, &'static str),
    /// Answered here with this status, these further header lines, and this body.
    Answer(u16, String, String),
    /// The connection is cut after this many bytes of the request's body.
    CutUpload(usize),
    /// The connection is cut after this many bytes of the answer's body.
    CutDownload(usize),
    /// The answer stops after this many bytes of its body, and the connection stays open.
    StallDownload(usize),
    /// Nothing is read of the body, nothing is answered.
    StallUpload,
    /// The server does it; the answer is lost.
    LoseAnswer,
    /// Headers whose names begin like this do not reach the server.
    Strip(&'static str),
    /// The answer is that of a request for another path.
    Redirect(String),
    /// The answer's body is edited.
    Edit(fn(String) -> String),
    /// One bit of the request's body is flipped; the headers stay as they are.
    FlipUpload,
    /// Something happens before the server is asked.
    First(Hook),
}

#[derive(Clone)]
pub struct Hook(pub Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

/// Which requests are meant.
#[derive(Debug, Clone)]
pub struct Rule {
    pub method: &'static str,
    /// A part of the path and query.
    pub path: String,
    /// How many matching requests pass unharmed first.
    pub after: u64,
    /// How many are harmed then.
    pub times: u64,
    pub fault: Fault,
    seen: Arc<AtomicU64>,
}

impl Rule {
    pub fn new(method: &'static str, path: &str, fault: Fault) -> Self {
        Self { method, path: path.to_owned(), after: 0, times: u64::MAX, fault, seen: Arc::default() }
    }

    pub fn after(self, after: u64) -> Self {
        Self { after, ..self }
    }

    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }
}

#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub sent: usize,
    pub status: u16,
    /// When the request had come, and when the answer had gone back.
    pub came: Instant,
    pub went: Instant,
}

/// How many of these requests waited for each other: the longest row in which each came behind the answer to the one
/// before it. Between one answer and the next request less time must pass than an answer takes.
pub fn depth(log: &[Seen]) -> usize {
    let mut sorted: Vec<&Seen> = log.iter().collect();
    sorted.sort_by_key(|seen| seen.came);
    let mut depths: Vec<usize> = Vec::new();
    for (at, seen) in sorted.iter().enumerate() {
        let before = (0..at).filter(|other| sorted[*other].went <= seen.came).map(|other| depths[other]);
        depths.push(1 + before.max().unwrap_or(0));
    }
    depths.into_iter().max().unwrap_or(0)
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Seen>>,
    latency_ms: AtomicU64,
    harmed: AtomicU64,
    closed: AtomicBool,
}

pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if own.closed.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), shared) = (stream, own.clone()) else { continue };
                std::thread::spawn(move || {
                    let _ = serve(&stream, server_port, &shared);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self { port, shared, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on these rules hold, and no others.
    pub fn rules(&self, rules: impl IntoIterator<Item = Rule>) {
        *self.shared.rules.lock().unwrap() = rules.into_iter().collect();
    }

    pub fn rule(&self, rule: Rule) {
        self.rules([rule]);
    }

    /// Every answer waits this long, once per request.
    pub fn latency(&self, latency: Duration) {
        self.shared.latency_ms.store(latency.as_millis() as u64, Ordering::SeqCst);
    }

    /// Waits until a request whose path has this part has been answered.
    pub fn wait_for(&self, path: &str) {
        let begin = Instant::now();
        while !self.shared.seen.lock().unwrap().iter().any(|seen| seen.path.contains(path)) {
            assert!(begin.elapsed() < Duration::from_secs(30), "nobody asks for {path}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The requests since the last call.
    pub fn take_log(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shared.seen.lock().unwrap())
    }

    /// How many requests were harmed since the last call: a fault that was never injected proves nothing.
    pub fn take_harmed(&self) -> u64 {
        self.shared.harmed.swap(0, Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A request or an answer: its first line, its headers, its body.
struct Message {
    first: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    fn length(&self) -> usize {
        self.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0)
    }

    fn head(&self) -> String {
        let lines: String = self.headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
        format!("{}\r\n{lines}\r\n", self.first)
    }
}

fn serve(client: &TcpStream, server_port: u16, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client);
    let mut out = client;
    while let Some(mut request) = read_head(&mut reader)? {
        let mut words = request.first.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if request.header("expect").is_some() {
            write!(out, "HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let fault = pick(shared, &method, &path);
        let came = Instant::now();
        let note = |sent, status| {
            let seen = Seen { method: method.clone(), path: path.clone(), sent, status, came, went: Instant::now() };
            shared.seen.lock().unwrap().push(seen);
        };
        match &fault {
            Some(Fault::CutUpload(at)) => {
                let mut part = vec![0; (*at).min(request.length())];
                reader.read_exact(&mut part)?;
                note(part.len(), 0);
                return Ok(());
            }
            Some(Fault::StallUpload) => {
                note(0, 0);
                wait_for_close(shared);
                return Ok(());
            }
            _ => {}
        }
        request.body = vec![0; request.length()];
        reader.read_exact(&mut request.body)?;
        std::thread::sleep(Duration::from_millis(shared.latency_ms.load(Ordering::SeqCst)));
        let mut answer = match &fault {
            Some(Fault::Status(status, code)) => made(
                *status,
                "content-type: application/xml\r\n",
                &format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>made by a test</Message></Error>"),
            ),
            Some(Fault::Answer(status, headers, body)) => made(*status, headers, body),
            _ => {
                match &fault {
                    Some(Fault::Strip(name)) => {
                        request.headers.retain(|(n, _)| !n.to_ascii_lowercase().starts_with(name))
                    }
                    Some(Fault::Redirect(to)) => request.first = request.first.replace(&path, to),
                    Some(Fault::FlipUpload) => {
                        if let Some(byte) = request.body.first_mut() {
                            *byte ^= 1;
                        }
                    }
                    Some(Fault::First(hook)) => (hook.0)(),
                    _ => {}
                }
                ask(server_port, &mut request, &method)?
            }
        };
        let status = answer.first.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        note(request.body.len(), status);
        if let Some(Fault::Edit(edit)) = &fault {
            answer.body = edit(String::from_utf8_lossy(&answer.body).into_owned()).into_bytes();
        }
        let cut = match fault {
            Some(Fault::LoseAnswer) => return Ok(()),
            Some(Fault::CutDownload(at) | Fault::StallDownload(at)) => Some(at.min(answer.body.len())),
            _ => None,
        };
        if method != "HEAD" {
            answer.headers.retain(|(n, _)| !n.eq_ignore_ascii_case("content-length"));
            answer.headers.push(("content-length".to_owned(), answer.body.len().to_string()));
        }
        out.write_all(answer.head().as_bytes())?;
        out.write_all(&answer.body[..cut.unwrap_or(answer.body.len())])?;
        out.flush()?;
        match fault {
            Some(Fault::CutDownload(_)) => return Ok(()),
            Some(Fault::StallDownload(_)) => {
                wait_for_close(shared);
                return Ok(());
            }
            _ => {}
        }
    }
    Ok(())
}

fn pick(shared: &Shared, method: &str, path: &str) -> Option<Fault> {
    for rule in shared.rules.lock().unwrap().iter() {
        if (rule.method == method || rule.method == "*") && path.contains(&rule.path) {
            let n = rule.seen.fetch_add(1, Ordering::SeqCst);
            if n >= rule.after && n - rule.after < rule.times {
                shared.harmed.fetch_add(1, Ordering::SeqCst);
                return Some(rule.fault.clone());
            }
        }
    }
    None
}

/// Holds a connection open without a word, until the test is over or long enough has passed.
fn wait_for_close(shared: &Shared) {
    for _ in 0..200 {
        if shared.closed.load(Ordering::SeqCst) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn made(status: u16, headers: &str, body: &str) -> Message {
    let headers = headers.lines().filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned()));
    Message { first: format!("HTTP/1.1 {status} Made"), headers: headers.collect(), body: body.as_bytes().to_vec() }
}

fn ask(port: u16, request: &mut Message, method: &str) -> io::Result<Message> {
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    server.set_nodelay(true)?;
    request.headers.retain(|(n, _)| !n.eq_ignore_ascii_case("connection") && !n.eq_ignore_ascii_case("expect"));
    request.headers.push(("connection".to_owned(), "close".to_owned()));
    server.write_all(request.head().as_bytes())?;
    server.write_all(&request.body)?;
    let mut reader = BufReader::new(server);
    let mut answer = loop {
        match read_head(&mut reader)? {
            Some(head) if head.first.contains(" 100 ") => {}
            Some(head) => break head,
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    };
    if method != "HEAD" && !answer.first.contains(" 204 ") && !answer.first.contains(" 304 ") {
        if answer.header("transfer-encoding").is_some_and(|t| t.contains("chunked")) {
            answer.body = read_chunked(&mut reader)?;
        } else if answer.header("content-length").is_some() {
            answer.body = vec![0; answer.length()];
            reader.read_exact(&mut answer.body)?;
        } else {
            reader.read_to_end(&mut answer.body)?;
        }
    }
    answer
        .headers
        .retain(|(n, _)| !n.eq_ignore_ascii_case("transfer-encoding") && !n.eq_ignore_ascii_case("connection"));
    Ok(answer)
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Message>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut message = Message { first: line.trim_end().to_owned(), headers: Vec::new(), body: Vec::new() };
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let text = line.trim_end();
        if text.is_empty() {
            return Ok(Some(message));
        }
        if let Some((name, value)) = text.split_once(':') {
            message.headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }
}

fn read_chunked(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = line.trim().split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let from = body.len();
        body.resize(from + size, 0);
        reader.read_exact(&mut body[from..])?;
        line.clear();
        reader.read_line(&mut line)?;
        if size == 0 {
            return Ok(body);
        }
    }
}
