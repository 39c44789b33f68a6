//! What lies between the S3 client and the network: every request and every answer passes here.
//!
//! - Request bodies are sent in small pieces (never copied), so that a bandwidth limit and a watch on progress can
//!   stand between them. The client above has signed the whole body already.
//! - A connection on which no byte moves for too long is given up: while sending, while waiting for the answer, and
//!   while its body is read.
//! - The server's own clock is read from its `Date` header.

use super::limit::RateLimit;
use aws_sdk_s3::config::{HttpClient, RuntimeComponents, SharedHttpClient};
use aws_sdk_s3::error::{BoxError, ConnectorError};
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use bytes::{Buf, Bytes};
use chrono::{DateTime, Utc};
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// How much is handed to the network at once.
const PIECE: usize = 64 << 10;

/// What all connections of one storage share.
#[derive(Debug)]
pub struct Wire {
    stall: Duration,
    limit: Option<RateLimit>,
    date: Mutex<Option<DateTime<Utc>>>,
    answered: AtomicBool,
}

impl Wire {
    pub fn new(stall: Duration, limit_upload: Option<u64>) -> Self {
        let limit = limit_upload.map(|rate| RateLimit::new(rate, Instant::now()));
        Self { stall, limit, date: Mutex::new(None), answered: AtomicBool::new(false) }
    }

    /// The clock of the newest answer.
    pub fn date(&self) -> Option<DateTime<Utc>> {
        *self.date.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the endpoint has ever answered anything.
    pub fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    fn note(&self, date: Option<&str>) {
        self.answered.store(true, Ordering::Relaxed);
        if let Some(date) = date.and_then(|d| DateTime::parse_from_rfc2822(d).ok()) {
            *self.date.lock().unwrap_or_else(PoisonError::into_inner) = Some(date.to_utc());
        }
    }
}

/// No byte moved for this long.
#[derive(Debug, thiserror::Error)]
#[error("no byte has moved for {}", crate::base::units::human_duration(*.0))]
pub struct Stalled(pub Duration);

/// An HTTP client whose connections are watched.
#[derive(Debug)]
pub struct Watched {
    inner: SharedHttpClient,
    wire: Arc<Wire>,
}

impl Watched {
    pub fn new(inner: SharedHttpClient, wire: Arc<Wire>) -> Self {
        Self { inner, wire }
    }
}

impl HttpClient for Watched {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let inner = self.inner.http_connector(settings, components);
        SharedHttpConnector::new(WatchedConnector { inner, wire: self.wire.clone() })
    }
}

#[derive(Debug)]
struct WatchedConnector {
    inner: SharedHttpConnector,
    wire: Arc<Wire>,
}

impl HttpConnector for WatchedConnector {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        let wire = self.wire.clone();
        let progress = Arc::new(Progress::begin());
        let body = request.take_body();
        *request.body_mut() = match body.content_length() {
            Some(0) => body,
            _ => SdkBody::from_body_1_x(Upload::new(body, wire.clone(), progress.clone())),
        };
        let answer = self.inner.call(request);
        HttpConnectorFuture::new(async move {
            let mut answer = std::pin::pin!(answer);
            let mut response = loop {
                let quiet = progress.quiet();
                if quiet >= wire.stall {
                    return Err(ConnectorError::timeout(Box::new(Stalled(wire.stall))));
                }
                tokio::select! {
                    answer = &mut answer => break answer?,
                    () = tokio::time::sleep(wire.stall - quiet) => {}
                }
            };
            wire.note(response.headers().get("date"));
            let body = response.take_body();
            *response.body_mut() = SdkBody::from_body_1_x(Download::new(body, wire.stall));
            Ok(response)
        })
    }
}

/// When something last moved, in milliseconds since the request began.
#[derive(Debug)]
struct Progress {
    begun: Instant,
    last_ms: AtomicU64,
}

impl Progress {
    fn begin() -> Self {
        Self { begun: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    fn touch(&self, ahead: Duration) {
        let at = (self.begun.elapsed() + ahead).as_millis() as u64;
        self.last_ms.store(at, Ordering::Relaxed);
    }

    fn quiet(&self) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }
}

/// A request body in small pieces, at the rate that is allowed.
struct Upload {
    inner: SdkBody,
    rest: Bytes,
    wire: Arc<Wire>,
    progress: Arc<Progress>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    fn new(inner: SdkBody, wire: Arc<Wire>, progress: Arc<Progress>) -> Self {
        Self { inner, rest: Bytes::new(), wire, progress, pause: None }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        while this.rest.is_empty() {
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        let mut ahead = Duration::ZERO;
        if let Some(limit) = &this.wire.limit {
            ahead = limit.take(piece.len(), Instant::now());
            if !ahead.is_zero() {
                this.pause = Some(Box::pin(tokio::time::sleep(ahead)));
            }
        }
        // A pause that the limit asks for is no stall.
        this.progress.touch(ahead);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.inner.content_length() {
            Some(length) => SizeHint::with_exact(length + self.rest.remaining() as u64),
            None => SizeHint::new(),
        }
    }
}

/// An answer's body that must keep coming.
struct Download {
    inner: SdkBody,
    stall: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Download {
    fn new(inner: SdkBody, stall: Duration) -> Self {
        Self { inner, stall, timer: None }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            // The reader may take its time before it asks for more: the watch begins anew then.
            this.timer = None;
            return Poll::Ready(frame);
        }
        let stall = this.stall;
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(Box::new(Stalled(stall)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.inner.content_length() {
            Some(length) => SizeHint::with_exact(length),
            None => SizeHint::new(),
        }
    }
}
