//! Whoever hears of what happens: small HTTP and HTTPS servers on loopback.

use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// One request.
#[derive(Debug, Clone)]
pub struct Heard {
    /// `POST /path`.
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Heard {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or("", |(_, v)| v)
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// A server that remembers what it is sent, and answers as it is told.
pub struct Ear {
    pub port: u16,
    heard: Arc<Mutex<Vec<Heard>>>,
    status: Arc<Mutex<u16>>,
}

impl Ear {
    pub fn new() -> Self {
        Self::with(None)
    }

    /// Over TLS, with the certificate of `certificates.sh` in this folder.
    pub fn tls(certificates: &Path, domain: &str) -> Self {
        Self::with(Some(server_config(certificates, domain)))
    }

    fn with(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ear = Self {
            port: listener.local_addr().unwrap().port(),
            heard: Arc::default(),
            status: Arc::new(Mutex::new(200)),
        };
        let (heard, status) = (ear.heard.clone(), ear.status.clone());
        // It ends with the test.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let status = *status.lock().unwrap();
                let hear = |request| heard.lock().unwrap().push(request);
                let _ = match &tls {
                    None => serve(stream, status, hear),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                        serve(rustls::StreamOwned::new(connection, stream), status, hear)
                    }
                };
            }
        });
        ear
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What it answers from now on.
    pub fn answers(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// Waits until it has heard so much.
    #[track_caller]
    pub fn wait(&self, count: usize) -> Vec<Heard> {
        let begun = Instant::now();
        while self.heard().len() < count {
            assert!(begun.elapsed() < Duration::from_secs(60), "heard only {:#?}", self.heard());
            thread::sleep(Duration::from_millis(30));
        }
        self.heard()
    }
}

pub fn server_config(certificates: &Path, domain: &str) -> Arc<rustls::ServerConfig> {
    let live = certificates.join("live").join(domain);
    let chain = rustls::pki_types::CertificateDer::pem_file_iter(live.join("fullchain.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(live.join("privkey.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(chain.map(Result::unwrap).collect(), key).unwrap())
}

/// What was heard is known before it is answered: whoever has the answer may look at once.
fn serve(stream: impl Read + Write, status: u16, hear: impl FnOnce(Heard)) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).ok()?;
        match header.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
            None => break,
        }
    }
    let length =
        headers.iter().find(|(n, _)| n.eq_ignore_ascii_case("content-length")).map_or(0, |(_, v)| v.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let line = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    if !line.is_empty() {
        hear(Heard { line, headers, body: String::from_utf8(body).unwrap() });
    }
    let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    stream.get_mut().write_all(answer.as_bytes()).ok()?;
    stream.get_mut().flush().ok()
}

/// A port at which nobody answers: connections are taken and then silence.
pub fn silence() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    (listener, port)
}
