//! `/`, `/policies/NAME`, `/drills/FILE`, `/health`, `/metrics`: over HTTP, on loopback, for reading.
//!
//! Invariants: only GET and HEAD; only names of this machine are answered to (a page elsewhere that lets its own name
//! point here learns nothing); requests, connections and their time are bounded; nothing here changes anything, opens a
//! repository or wakes up by itself. One thread, of which the loop knows nothing but the board between them.

use super::board::Board;
use super::desk::{Desk, Seen};
use super::page::{self, STYLE_HASH};
use crate::base::threads;
use crate::ops::OpsError;
use crate::ops::status::{Level, Ran, metrics};
use crate::repository::chain::full_text;
use bytes::Bytes;
use chrono::Utc;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::fs::OFlags;
use std::convert::Infallible;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Connections at once; more wait.
const CONNECTIONS: usize = 32;
/// For the whole of a request's head.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// For a connection from its first byte to its last.
const WHOLE_TIME: Duration = Duration::from_secs(20);
/// The longest head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// The longest page of a drill that is shown.
const REPORT_BYTES: u64 = 16 << 20;

/// Takes the address. It must be one of this machine alone: who may see the page is decided by who may connect.
pub fn bind(address: SocketAddr) -> Result<TcpListener, OpsError> {
    if !address.ip().is_loopback() {
        return Err(OpsError::usage(
            format!("{address} can be reached from other machines"),
            "listen on 127.0.0.1 or [::1]; from elsewhere use `ssh -L`, or a web server that asks who is there",
        ));
    }
    let failed = |e| OpsError::file("listen on", address.to_string(), e);
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Answers in a thread of its own, for as long as the process lives.
pub fn answer(listener: TcpListener, board: Arc<Board>) -> Result<(), OpsError> {
    let failed = |e| OpsError::file("answer on", "the address to listen on", e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
    let serve = move || {
        runtime.block_on(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => accept(listener, board).await,
                Err(e) => tracing::error!("nobody is answered: {e}"),
            }
        });
    };
    Ok(threads::begin(serve).map(drop)?)
}

async fn accept(listener: tokio::net::TcpListener, board: Arc<Board>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let board = board.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let response = respond(&board, &request);
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_TIME)
                        .max_buf_size(HEAD_BYTES)
                        .max_headers(64)
                        .keep_alive(false)
                        .serve_connection(TokioIo::new(stream), service);
                    // Whoever is cut off is of no interest.
                    let _ = tokio::time::timeout(WHOLE_TIME, connection).await;
                    drop(place);
                });
            }
            Err(e) => {
                // Out of file descriptors, most likely.
                tracing::warn!("a connection is not taken: {e}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// An answer before it has headers.
struct Answer {
    status: StatusCode,
    kind: &'static str,
    policy: String,
    body: Vec<u8>,
}

const HTML: &str = "text/html; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Nothing is loaded, run, sent, or framed.
const NOTHING: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

impl Answer {
    fn of(status: StatusCode, kind: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, kind, policy: NOTHING.to_owned(), body: body.into() }
    }

    fn text(status: StatusCode, text: &str) -> Self {
        Self::of(status, PLAIN, format!("{text}\n"))
    }

    /// A page of this program: its one style sheet, and nothing else.
    fn page(status: StatusCode, body: String) -> Self {
        let policy = format!("{NOTHING}; style-src 'sha256-{}'", &*STYLE_HASH);
        Self { policy, ..Self::of(status, HTML, body) }
    }
}

fn respond(board: &Board, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let mut answer = match (request.method(), host) {
        _ if !host.is_some_and(is_ours) => Answer::text(
            StatusCode::MISDIRECTED_REQUEST,
            "this is not a name of this machine: ask for 127.0.0.1 or localhost",
        ),
        (&Method::GET | &Method::HEAD, _) => find(board, request.uri().path()),
        _ => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "everything here is for reading: GET or HEAD"),
    };
    let length = answer.body.len();
    if request.method() == Method::HEAD {
        answer.body.clear();
    }
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, answer.kind);
    set(header::CONTENT_LENGTH, &length.to_string());
    set(header::CONTENT_SECURITY_POLICY, &answer.policy);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::CACHE_CONTROL, "no-store");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    if answer.status == StatusCode::METHOD_NOT_ALLOWED {
        set(header::ALLOW, "GET, HEAD");
    }
    response
}

/// A name by which only this machine is meant. Any other may be somebody's, made to point here.
fn is_ours(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !port.is_empty() => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn find(board: &Board, path: &str) -> Answer {
    let found = match path {
        "/" => pages(board, None),
        "/metrics" => numbers(board),
        "/health" => health(board),
        _ => match (path.strip_prefix("/policies/"), path.strip_prefix("/drills/")) {
            (Some(name), _) => pages(board, Some(name)),
            (_, Some(name)) => report(board, name),
            _ => Ok(None),
        },
    };
    match found {
        Ok(Some(answer)) => answer,
        Ok(None) => Answer::page(StatusCode::NOT_FOUND, page::nothing("There is nothing here.")),
        Err(e) => {
            tracing::error!("{path} cannot be answered: {}", full_text(&e));
            Answer::page(
                StatusCode::INTERNAL_SERVER_ERROR,
                page::nothing("This cannot be shown now; the service's log says why."),
            )
        }
    }
}

fn pages(board: &Board, name: Option<&str>) -> Result<Option<Answer>, OpsError> {
    let desk = Desk::open(board, Utc::now())?;
    let all = desk.all()?;
    let one = match (name, all.as_slice()) {
        (Some(name), _) => all.iter().find(|seen| seen.status.policy == name),
        (None, [one]) => Some(one),
        (None, _) => return Ok(Some(Answer::page(StatusCode::OK, page::overview(&all, desk.now)))),
    };
    let Some(seen) = one else { return Ok(None) };
    let runs = desk.runs(&seen.status)?;
    let state_dir = &board.installation.state_dir;
    Ok(Some(Answer::page(StatusCode::OK, page::policy(seen, &runs, all.len() > 1, state_dir, desk.now))))
}

fn numbers(board: &Board) -> Result<Option<Answer>, OpsError> {
    let desk = Desk::open(board, Utc::now())?;
    let all: Vec<_> = desk.all()?.into_iter().map(|seen| (seen.status, seen.ran)).collect::<Vec<(_, Ran)>>();
    Ok(Some(Answer::of(StatusCode::OK, metrics::CONTENT_TYPE, metrics::text(&all, desk.now))))
}

/// 503 as soon as anything is red, so that whatever asks need read no more than that.
fn health(board: &Board) -> Result<Option<Answer>, OpsError> {
    let all = Desk::open(board, Utc::now())?.all()?;
    let worst = all.iter().map(|seen| seen.status.level).max().unwrap_or(Level::Green);
    let level = |seen: &Seen| (seen.status.policy.clone(), seen.status.level.as_str().into());
    let policies: serde_json::Map<String, serde_json::Value> = all.iter().map(level).collect();
    let document = serde_json::json!({ "status": worst.as_str(), "policies": policies });
    let status = if worst == Level::Red { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    Ok(Some(Answer::of(status, JSON, format!("{document}\n"))))
}

/// The page of a drill, as it was written: no script, nothing loaded.
fn report(board: &Board, name: &str) -> Result<Option<Answer>, OpsError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if name.len() > 200 || !name.strip_suffix(".html").is_some_and(|stem| !stem.is_empty() && stem.chars().all(plain)) {
        return Ok(None);
    }
    let path = board.installation.state_dir.join("drills").join(name);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = fs::OpenOptions::new().read(true).custom_flags(i32::try_from(flags.bits()).unwrap_or(0)).open(&path);
    let Ok(file) = opened else { return Ok(None) };
    let is_file = file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= REPORT_BYTES);
    let mut body = Vec::new();
    let failed = |e| OpsError::file("read", &path, e);
    if !is_file {
        return Ok(None);
    }
    file.take(REPORT_BYTES).read_to_end(&mut body).map_err(failed)?;
    let policy = format!("{NOTHING}; style-src 'unsafe-inline'");
    Ok(Some(Answer { policy, ..Answer::of(StatusCode::OK, HTML, body) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_ours() {
        for host in ["127.0.0.1:7800", "localhost", "LOCALHOST:80", "[::1]:7800", "[::1]", "127.1.2.3"] {
            assert!(is_ours(host), "{host}");
        }
        for host in [
            "example.org",
            "127.0.0.1.example.org:7800",
            "localhost.example.org",
            "10.0.0.1",
            "",
            ":7800",
            "0.0.0.0",
            "[::]:7800",
            "localhost:x",
        ] {
            assert!(!is_ours(host), "{host}");
        }
    }
}
