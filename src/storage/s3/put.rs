//! Writing an object once, on servers that refuse a second write and on those that do not.
//!
//! - Where `If-None-Match: *` is honoured, it alone decides. 412 is success only when the bytes that are there are
//!   ours: a write whose answer was lost meets itself on the second attempt.
//! - Where it is not, or not known to be, the key is looked at before the write and after it. Two writers of other
//!   bytes under one key may then replace each other's; the later look tells one of them.
//! - What the server did not check on arrival is proved by its ETag (the MD5 of what it has), or read back.

use super::client::Bucket;
use super::digest::{is_md5_of, md5};
use super::error::S3Error;
use super::settings::{Conditions, Digests};
use super::sign::SignedAs;
use crate::storage::Put;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::sync::atomic::Ordering;

/// Larger objects go up in parts. An archive that has reached its target is not: parts are four more requests, and one
/// more copy for the server.
pub const SINGLE_PUT: usize = 24 << 20;
/// Only an object this small is sent twice to see what the server makes of it.
const SMALL: usize = 256 << 10;

/// What is to be stored, with its SHA-256: for the signature and for the server's own check.
pub struct Body {
    pub bytes: Bytes,
    sha256: [u8; 32],
}

impl Body {
    pub fn of(bytes: Bytes) -> Self {
        let sha256 = Sha256::digest(&bytes).into();
        Self { bytes, sha256 }
    }

    /// The hash is known. A wrong one is refused by the server, as wrong bytes are.
    pub fn hashed(bytes: Bytes, sha256: [u8; 32]) -> Self {
        Self { bytes, sha256 }
    }
}

/// What a write came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Stored {
    Done(Put),
    /// Other bytes are there.
    Other,
}

/// What one conditional write was answered.
pub(super) enum Answer {
    Written {
        etag: Option<String>,
    },
    /// 412: something is there.
    There,
}

impl Bucket {
    /// Stores an object under a key that is free.
    pub async fn put(&self, key: &str, body: &Body) -> Result<Stored, S3Error> {
        let bytes = &body.bytes[..];
        let honoured = self.traits().conditions == Conditions::Honoured;
        if !honoured && let Some(head) = self.look(key).await? {
            return self.settle_with(key, bytes, Some(head.length)).await;
        }
        let etag = match self.write(key, body).await? {
            Answer::There => {
                self.learn(Some(Conditions::Honoured), None);
                return self.settle_with(key, bytes, None).await;
            }
            Answer::Written { etag } => etag,
        };
        if !self.is_proved(bytes, etag.as_deref()) && self.holds(key, bytes).await? != Some(true) {
            return Err(self.untrustworthy("what was stored does not read back as it was sent"));
        }
        match self.traits().conditions {
            Conditions::Honoured => {}
            Conditions::Unknown if bytes.len() <= SMALL => self.try_again_on_purpose(key, body).await?,
            Conditions::Unknown | Conditions::Absent => return self.look_after(key, bytes, etag.as_deref()).await,
        }
        Ok(Stored::Done(Put::Created))
    }

    /// Something is at the key: is it ours?
    async fn settle_with(&self, key: &str, bytes: &[u8], length: Option<u64>) -> Result<Stored, S3Error> {
        if length.is_some_and(|length| length != bytes.len() as u64) {
            return Ok(Stored::Other);
        }
        match self.holds(key, bytes).await? {
            Some(true) => Ok(Stored::Done(Put::AlreadyThere)),
            Some(false) => Ok(Stored::Other),
            None => Err(self.untrustworthy("an object that is there, and is not: something removed or hides it")),
        }
    }

    /// Without conditions, another writer may have come between the look and the write.
    async fn look_after(&self, key: &str, bytes: &[u8], etag: Option<&str>) -> Result<Stored, S3Error> {
        match self.look(key).await? {
            Some(head) if head.length == bytes.len() as u64 && etag.is_some() && head.etag.as_deref() == etag => {
                Ok(Stored::Done(Put::Created))
            }
            Some(head) => self.settle_with(key, bytes, Some(head.length)).await,
            None => Err(self.untrustworthy("an object that was stored is not there")),
        }
    }

    /// Writes the same bytes once more: a server that refuses honours conditions, and one that does not has lost
    /// nothing.
    async fn try_again_on_purpose(&self, key: &str, body: &Body) -> Result<(), S3Error> {
        if self.settling.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let found = match self.write_once(key, body, true).await {
            Ok(Answer::There) => Conditions::Honoured,
            Ok(Answer::Written { .. }) | Err(S3Error::Unsupported { .. }) => Conditions::Absent,
            Err(e) if e.is_retryable() => {
                self.settling.store(false, Ordering::SeqCst);
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        tracing::debug!(?found, "what the server makes of If-None-Match");
        self.learn(Some(found), None);
        Ok(())
    }

    async fn write(&self, key: &str, body: &Body) -> Result<Answer, S3Error> {
        // Not every server locks what comes in parts; and the largest object is one that a single request may carry.
        if body.bytes.len() > SINGLE_PUT && self.locks.is_none() {
            return self.write_parts(key, &body.bytes).await;
        }
        self.retry(|| async {
            let conditional = self.traits().conditions != Conditions::Absent;
            match self.write_once(key, body, conditional).await {
                Err(S3Error::Unsupported { .. }) if conditional => {
                    self.learn(Some(Conditions::Absent), None);
                    self.write_once(key, body, false).await
                }
                other => other,
            }
        })
        .await
    }

    pub(super) async fn write_once(&self, key: &str, body: &Body, conditional: bool) -> Result<Answer, S3Error> {
        let with_checksum = self.checksum_wanted();
        match self.send(key, body, conditional, with_checksum).await {
            // Some servers refuse a checksum header that they do not know; the signature covers the bytes as well.
            Err(S3Error::Refused { status: 400, code, .. })
                if with_checksum && matches!(code.as_str(), "InvalidArgument" | "InvalidRequest") =>
            {
                let answer = self.send(key, body, conditional, false).await?;
                self.checksum_header.store(false, Ordering::Relaxed);
                Ok(answer)
            }
            other => other,
        }
    }

    async fn send(&self, key: &str, body: &Body, conditional: bool, checksum: bool) -> Result<Answer, S3Error> {
        let mut request = self.put_request(key).body(ByteStream::from(body.bytes.clone()));
        if checksum {
            request = request.checksum_sha256(BASE64.encode(body.sha256));
        }
        if self.locks.is_some() {
            // A write with a lock must carry it, or a checksum in a form that not every server knows.
            request = request.content_md5(BASE64.encode(md5(&body.bytes)));
        }
        if conditional {
            request = request.if_none_match("*");
        }
        match request.customize().interceptor(SignedAs::new(&body.sha256)).send().await {
            Ok(answer) => Ok(Answer::Written { etag: answer.e_tag().map(str::to_owned) }),
            Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 412) => Ok(Answer::There),
            Err(e) => Err(self.asked.classify(e)),
        }
    }

    pub fn put_request(&self, key: &str) -> PutObjectFluentBuilder {
        let request = self.client.put_object().bucket(&self.name).key(format!("{}{key}", self.prefix));
        self.locked_put(key, request)
    }

    /// Whether the server is known to have checked what it got, or shows what it has.
    fn is_proved(&self, body: &[u8], etag: Option<&str>) -> bool {
        let in_parts = body.len() > SINGLE_PUT && self.locks.is_none();
        // Every part of a larger object has been proved by itself.
        in_parts || self.traits().digests == Digests::Checked || is_md5_of(etag, body)
    }
}
