//! What can go wrong between here and an object store, each cause by its own name, with what to do about it.
//!
//! Retryable is a kind: whether trying again may help is decided here, in one place.

use super::credentials::FileProblem;
use super::wire::Stalled;
use crate::base::time::rfc3339;
use crate::base::units::human_duration;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{BoxError, ConnectorError, ProvideErrorMetadata, SdkError};
use chrono::{DateTime, Utc};
use std::error::Error;
use std::io;
use std::time::Duration;

/// Why a request to an object store failed.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    #[error("access denied{}", said(.message))]
    AccessDenied { message: Option<String> },
    #[error("it is locked until {}", rfc3339(*until))]
    Locked { until: DateTime<Utc> },
    #[error("there is no bucket {bucket:?}")]
    NoSuchBucket { bucket: String },
    #[error("there is no such object")]
    NoSuchKey,
    #[error("bucket {bucket:?} is not in region {asked:?}{}", right.as_ref().map(|r| format!(", it is in {r:?}")).unwrap_or_default())]
    WrongRegion { bucket: String, asked: String, right: Option<String> },
    #[error("this host's clock says {}, the server's says {}", rfc3339(*ours), theirs.map_or_else(|| "otherwise".to_owned(), rfc3339))]
    ClockSkew { ours: DateTime<Utc>, theirs: Option<DateTime<Utc>> },
    #[error("the credentials have expired")]
    Expired,
    #[error("the server does not know this access key")]
    UnknownKey,
    #[error("the server does not accept the signature: the secret key is not this access key's")]
    BadSignature,
    #[error("no credentials")]
    NoCredentials {
        #[source]
        source: BoxError,
    },
    #[error("the credentials cannot be used")]
    BadCredentialsFile {
        #[source]
        source: FileProblem,
    },
    #[error("no connection to {endpoint}")]
    Unreachable {
        endpoint: String,
        #[source]
        source: BoxError,
    },
    #[error("no secure connection to {endpoint}")]
    Tls {
        endpoint: String,
        #[source]
        source: BoxError,
    },
    #[error("the connection stalled: no byte moved for {}", human_duration(*.quiet))]
    Stalled { quiet: Duration },
    #[error("the connection broke")]
    Broken {
        #[source]
        source: BoxError,
    },
    #[error("the server is busy ({status} {code})")]
    Throttled { status: u16, code: String },
    #[error("the server failed ({status} {code}){}", said(.message))]
    Server { status: u16, code: String, message: Option<String> },
    #[error("another write to this key is under way")]
    Conflict,
    #[error("the server cannot do this ({code}){}", said(.message))]
    Unsupported { code: String, message: Option<String> },
    #[error("the server refused the request ({status} {code}){}", said(.message))]
    Refused { status: u16, code: String, message: Option<String> },
    /// An answer that contradicts itself, or that stops too early.
    #[error("the server's answer cannot be trusted: {problem}")]
    Untrustworthy { problem: String, retryable: bool },
    #[error("the request could not be made")]
    Request {
        #[source]
        source: BoxError,
    },
    #[error("given up after {attempts} attempts in {}", human_duration(*.spent))]
    GaveUp {
        attempts: u32,
        spent: Duration,
        #[source]
        source: Box<S3Error>,
    },
}

fn said(message: &Option<String>) -> String {
    message.as_ref().map(|m| format!(": {m}")).unwrap_or_default()
}

impl S3Error {
    /// Whether the same request may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            S3Error::Unreachable { .. }
            | S3Error::Stalled { .. }
            | S3Error::Broken { .. }
            | S3Error::Throttled { .. }
            | S3Error::Server { .. }
            | S3Error::Conflict => true,
            S3Error::Untrustworthy { retryable, .. } => *retryable,
            S3Error::GaveUp { source, .. } => source.is_retryable(),
            _ => false,
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            S3Error::AccessDenied { .. } => {
                "give this key s3:GetObject, s3:PutObject and s3:ListBucket on the bucket and the prefix; deleting is for prune alone"
            }
            S3Error::NoSuchBucket { .. } => "create the bucket, or correct the url and the endpoint in [repository]",
            S3Error::WrongRegion { right: Some(right), .. } => {
                return Some(format!("write region = {right:?} in [repository], or set AWS_REGION"));
            }
            S3Error::WrongRegion { right: None, .. } => "write the bucket's region in [repository], or set AWS_REGION",
            S3Error::ClockSkew { .. } => "set this host's clock, best by NTP (timedatectl set-ntp true)",
            S3Error::Expired => "renew the credentials, or take a key that does not expire",
            S3Error::UnknownKey | S3Error::BadSignature => {
                "check the access key and its secret, and that they belong to this endpoint"
            }
            S3Error::NoCredentials { .. } => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write credentials = \"file:PATH\" in [repository]"
            }
            S3Error::BadCredentialsFile { source } => return Some(source.hint()),
            S3Error::Unreachable { .. } => "check the endpoint, the network and the firewall",
            S3Error::Tls { .. } => {
                "check that the endpoint speaks https, and that this host trusts its certificate (package ca-certificates)"
            }
            S3Error::Throttled { .. } | S3Error::Server { .. } | S3Error::Stalled { .. } | S3Error::Broken { .. } => {
                "run it again later; what has been stored already is not sent again"
            }
            S3Error::GaveUp { source, .. } => return source.hint(),
            _ => return None,
        };
        Some(text.to_owned())
    }
}

/// What the classification needs to know of the request.
#[derive(Debug, Clone)]
pub struct Asked {
    pub bucket: String,
    pub region: String,
    pub endpoint: String,
}

impl Asked {
    /// The cause behind what the client reports.
    pub fn classify<E>(&self, error: SdkError<E, HttpResponse>) -> S3Error
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        match &error {
            SdkError::ServiceError(service) => {
                let meta = service.err().meta();
                self.answered(service.raw(), meta.code(), meta.message())
            }
            // An answer that is no S3 at all: a gateway's page, or a body that broke off.
            SdkError::ResponseError(response) => {
                let status = response.raw().status().as_u16();
                if status >= 400 { self.answered(response.raw(), None, None) } else { self.broken(error.into()) }
            }
            _ => self.undelivered(error.into()),
        }
    }

    fn answered(&self, raw: &HttpResponse, code: Option<&str>, message: Option<&str>) -> S3Error {
        let status = raw.status().as_u16();
        let body = raw.body().bytes().and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default();
        let region = raw.headers().get("x-amz-bucket-region").or_else(|| element(body, "Region"));
        let message = message.map(|m| m.chars().take(200).collect::<String>());
        let code = code.map_or_else(|| format!("HTTP {status}"), str::to_owned);
        let wrong_region = || S3Error::WrongRegion {
            bucket: self.bucket.clone(),
            asked: self.region.clone(),
            right: region.map(str::to_owned).filter(|r| *r != self.region),
        };
        match code.as_str() {
            "NoSuchBucket" => return S3Error::NoSuchBucket { bucket: self.bucket.clone() },
            "NoSuchKey" | "NoSuchVersion" | "NotFound" => return S3Error::NoSuchKey,
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" => {
                return wrong_region();
            }
            "RequestTimeTooSkewed" | "RequestExpired" => {
                let theirs = element(body, "ServerTime").and_then(|t| DateTime::parse_from_rfc3339(t).ok());
                let date = raw.headers().get("date").and_then(|d| DateTime::parse_from_rfc2822(d).ok());
                return S3Error::ClockSkew { ours: Utc::now(), theirs: theirs.or(date).map(|t| t.to_utc()) };
            }
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => return S3Error::Expired,
            "InvalidAccessKeyId" | "InvalidToken" => return S3Error::UnknownKey,
            "SignatureDoesNotMatch" => return S3Error::BadSignature,
            "SlowDown"
            | "Throttling"
            | "ThrottlingException"
            | "TooManyRequests"
            | "RequestLimitExceeded"
            | "BandwidthLimitExceeded" => return S3Error::Throttled { status, code },
            "RequestTimeout" | "InternalError" | "ServiceUnavailable" => {
                return S3Error::Server { status, code, message };
            }
            "ConditionalRequestConflict" | "OperationAborted" => return S3Error::Conflict,
            "NotImplemented" => return S3Error::Unsupported { code, message },
            _ => {}
        }
        match status {
            200..=299 => S3Error::Untrustworthy { problem: "it does not parse".to_owned(), retryable: false },
            301 | 307 => wrong_region(),
            400 if region.is_some_and(|r| r != self.region) => wrong_region(),
            401 | 403 => S3Error::AccessDenied { message },
            404 => S3Error::NoSuchKey,
            409 => S3Error::Conflict,
            408 | 500 | 502 | 504 => S3Error::Server { status, code, message },
            429 | 503 => S3Error::Throttled { status, code },
            501 => S3Error::Unsupported { code, message },
            505.. => S3Error::Server { status, code, message },
            _ => S3Error::Refused { status, code, message },
        }
    }

    /// A body that broke off.
    pub fn broken(&self, error: BoxError) -> S3Error {
        match self.undelivered(error) {
            S3Error::Request { source } => S3Error::Broken { source: deepest(source) },
            other => other,
        }
    }

    /// A request that got no answer, or only part of one.
    pub fn undelivered(&self, error: BoxError) -> S3Error {
        let mut credentials = false;
        let mut file = None;
        let (mut stalled, mut secure, mut refused, mut timeout) = (None, true, false, false);
        let mut at: Option<&(dyn Error + 'static)> = Some(error.as_ref());
        let mut connector = false;
        while let Some(e) = at {
            credentials |= e.is::<CredentialsError>();
            if let Some(problem) = e.downcast_ref::<FileProblem>() {
                file = Some(problem);
            }
            if let Some(Stalled(quiet)) = e.downcast_ref::<Stalled>() {
                stalled = Some(*quiet);
            }
            if let Some(e) = e.downcast_ref::<io::Error>() {
                // rustls speaks through the i/o error that carries it, which may lie in another one.
                secure &= !has_kind(e, io::ErrorKind::InvalidData);
                refused |= has_kind(e, io::ErrorKind::ConnectionRefused);
            }
            if let Some(e) = e.downcast_ref::<ConnectorError>() {
                connector = true;
                timeout |= e.is_timeout();
                refused |= e.as_other().is_none() && e.is_io() && !has::<io::Error>(e);
            }
            at = e.source();
        }
        let endpoint = self.endpoint.clone();
        if file.is_some() {
            return match take_file_problem(error) {
                Ok(source) => S3Error::BadCredentialsFile { source },
                Err(source) => S3Error::NoCredentials { source },
            };
        }
        match stalled {
            _ if credentials => S3Error::NoCredentials { source: error },
            Some(quiet) => S3Error::Stalled { quiet },
            None if !secure => S3Error::Tls { endpoint, source: deepest(error) },
            None if refused || timeout => S3Error::Unreachable { endpoint, source: deepest(error) },
            None if connector => S3Error::Broken { source: deepest(error) },
            None => S3Error::Request { source: error },
        }
    }
}

/// Whether an i/o error, or one that it carries, is of this kind.
fn has_kind(error: &io::Error, kind: io::ErrorKind) -> bool {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<io::Error>());
    error.kind() == kind || inner.is_some_and(|e| has_kind(e, kind))
}

fn has<T: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    let mut at = Some(error);
    while let Some(e) = at {
        if e.is::<T>() {
            return true;
        }
        at = e.source();
    }
    false
}

/// A credentials file's problem as a cause of its own: the client's own chain around it says nothing to a person.
fn take_file_problem(error: BoxError) -> Result<FileProblem, BoxError> {
    let mut at: Option<&(dyn Error + 'static)> = Some(error.as_ref());
    while let Some(e) = at {
        match e.downcast_ref::<FileProblem>() {
            Some(FileProblem::Open { path, mode }) => return Ok(FileProblem::Open { path: path.clone(), mode: *mode }),
            Some(FileProblem::Lacks { path, key }) => return Ok(FileProblem::Lacks { path: path.clone(), key }),
            Some(FileProblem::Syntax { path, line }) => {
                return Ok(FileProblem::Syntax { path: path.clone(), line: *line });
            }
            Some(FileProblem::Unreadable { path, source }) => {
                let source = io::Error::new(source.kind(), source.to_string());
                return Ok(FileProblem::Unreadable { path: path.clone(), source });
            }
            None => at = e.source(),
        }
    }
    Err(error)
}

/// The innermost cause: the layers of the HTTP client above it say nothing to a person.
fn deepest(error: BoxError) -> BoxError {
    let mut at: &(dyn Error + 'static) = error.as_ref();
    while let Some(next) = at.source() {
        at = next;
    }
    at.to_string().into()
}

/// The text of an XML element that holds nothing but text.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text).filter(|t| !t.is_empty() && !t.contains('<'))
}
