//! Large objects in parts. Nothing is visible until the last request, which alone carries the condition.
//!
//! Each part is signed with its SHA-256, carries its MD5, and is proved by the ETag that the server answers; where it
//! answers with something else, the finished object is read back. An upload that fails is aborted; one whose abort
//! fails as well is found by [`Bucket::abort_leftovers`].

use super::client::Bucket;
use super::digest::{is_md5_of, md5};
use super::error::S3Error;
use super::put::Answer;
use super::settings::{Conditions, Digests};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::sync::atomic::{AtomicUsize, Ordering};

const PART: usize = 8 << 20;
/// Parts of one object on their way at once.
const PARALLEL: usize = 3;
/// Writing an object anew when its upload vanished while it was made.
const MOST_UPLOADS: usize = 3;

/// What became of the last request of an upload.
enum End {
    Answer(Answer),
    /// The server does not know conditions on it.
    NoConditions,
    /// The server does not know the upload (any more): it may be the object by now.
    Vanished,
}

impl Bucket {
    pub(super) async fn write_parts(&self, key: &str, body: &Bytes) -> Result<Answer, S3Error> {
        for _ in 0..MOST_UPLOADS {
            let upload = self.begin_upload(key).await?;
            let ended = self.fill_upload(key, &upload, body).await;
            if !matches!(ended, Ok(Some(Answer::Written { .. }))) {
                self.abort_upload(&format!("{}{key}", self.prefix), &upload).await;
            }
            if let Some(answer) = ended? {
                return Ok(answer);
            }
            // The answer to the last request was lost: the object is complete, or not there at all.
            match self.holds(key, body).await? {
                Some(true) => return Ok(Answer::Written { etag: None }),
                Some(false) => return Ok(Answer::There),
                None => {}
            }
        }
        Err(self.untrustworthy("uploads in parts vanish before they are complete"))
    }

    async fn begin_upload(&self, key: &str) -> Result<String, S3Error> {
        let key = format!("{}{key}", self.prefix);
        self.retry(|| async {
            let request = self.client.create_multipart_upload().bucket(&self.name).key(&key);
            let answer = request.send().await.map_err(|e| self.asked.classify(e))?;
            answer.upload_id.ok_or_else(|| self.untrustworthy("an upload without an id"))
        })
        .await
    }

    /// Sends the parts and completes the upload; `None` when the upload is not known any more.
    async fn fill_upload(&self, key: &str, upload: &str, body: &Bytes) -> Result<Option<Answer>, S3Error> {
        let count = body.len().div_ceil(PART);
        let parts = stream::iter(0..count).map(|n| {
            let part = body.slice(n * PART..body.len().min((n + 1) * PART));
            self.send_part(key, upload, n as i32 + 1, part)
        });
        let parts: Vec<(CompletedPart, bool)> = parts.buffered(PARALLEL).try_collect().await?;
        let proved = parts.iter().all(|(_, proved)| *proved);
        let parts: Vec<CompletedPart> = parts.into_iter().map(|(part, _)| part).collect();
        let answer = match self.complete(key, upload, &parts).await? {
            End::Vanished => return Ok(None),
            End::NoConditions => {
                self.learn(Some(Conditions::Absent), None);
                match self.complete(key, upload, &parts).await? {
                    End::Answer(answer) => answer,
                    End::Vanished | End::NoConditions => return Ok(None),
                }
            }
            End::Answer(answer) => answer,
        };
        if matches!(answer, Answer::Written { .. }) && !proved && self.holds(key, body).await? != Some(true) {
            return Err(self.untrustworthy("what was stored in parts does not read back as it was sent"));
        }
        Ok(Some(answer))
    }

    async fn send_part(
        &self,
        key: &str,
        upload: &str,
        number: i32,
        part: Bytes,
    ) -> Result<(CompletedPart, bool), S3Error> {
        let digest = BASE64.encode(md5(&part));
        let etag = self
            .retry(|| async {
                let request = self.client.upload_part().bucket(&self.name).key(format!("{}{key}", self.prefix));
                let request = request.upload_id(upload).part_number(number).content_md5(&digest);
                let answer = request.body(ByteStream::from(part.clone())).send().await;
                let answer = answer.map_err(|e| self.asked.classify(e))?;
                answer.e_tag.ok_or_else(|| self.untrustworthy("a part without an ETag"))
            })
            .await?;
        let proved = self.traits().digests == Digests::Checked || is_md5_of(Some(&etag), &part);
        Ok((CompletedPart::builder().part_number(number).e_tag(etag).build(), proved))
    }

    async fn complete(&self, key: &str, upload: &str, parts: &[CompletedPart]) -> Result<End, S3Error> {
        let conditional = self.traits().conditions != Conditions::Absent;
        let completed = CompletedMultipartUpload::builder().set_parts(Some(parts.to_vec())).build();
        let attempts = AtomicUsize::new(0);
        self.retry(|| async {
            let again = attempts.fetch_add(1, Ordering::Relaxed) > 0;
            let request = self.client.complete_multipart_upload().bucket(&self.name).upload_id(upload);
            let request = request.key(format!("{}{key}", self.prefix)).multipart_upload(completed.clone());
            let request = if conditional { request.if_none_match("*") } else { request };
            match request.send().await {
                Ok(answer) => Ok(End::Answer(Answer::Written { etag: answer.e_tag })),
                Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 412) => {
                    Ok(End::Answer(Answer::There))
                }
                // An error under status 200 comes here as well: the client reads the body before it believes it.
                Err(e) => {
                    let unknown = e.as_service_error().is_some_and(|e| e.meta().code() == Some("NoSuchUpload"));
                    match self.asked.classify(e) {
                        S3Error::NoSuchKey => Ok(End::Vanished),
                        _ if unknown => Ok(End::Vanished),
                        // Servers differ in what they say of an upload that they have completed already.
                        S3Error::AccessDenied { .. } | S3Error::Refused { .. } if again => Ok(End::Vanished),
                        S3Error::Unsupported { .. } if conditional => Ok(End::NoConditions),
                        other => Err(other),
                    }
                }
            }
        })
        .await
    }

    /// Best effort: the parts cost money, never correctness.
    async fn abort_upload(&self, full_key: &str, upload: &str) {
        let request = self.client.abort_multipart_upload().bucket(&self.name).key(full_key).upload_id(upload);
        if let Err(e) = request.send().await {
            let error = self.asked.classify(e);
            if !matches!(error, S3Error::NoSuchKey) {
                tracing::warn!(key = full_key, %error, "an unfinished upload could not be aborted");
            }
        }
    }

    /// Aborts uploads below this prefix that began before `before`; says how many. A server that cannot list them
    /// has none that could be found.
    pub async fn abort_leftovers(&self, before: DateTime<Utc>) -> Result<usize, S3Error> {
        let (mut key_marker, mut upload_marker) = (None, None);
        let mut aborted = 0;
        loop {
            let page = self
                .retry(|| async {
                    let request = self.client.list_multipart_uploads().bucket(&self.name).prefix(&self.prefix);
                    let request = request.set_key_marker(key_marker.clone());
                    let request = request.set_upload_id_marker(upload_marker.clone());
                    request.send().await.map_err(|e| self.asked.classify(e))
                })
                .await;
            let page = match page {
                Err(S3Error::Unsupported { .. }) => return Ok(aborted),
                other => other?,
            };
            for upload in page.uploads() {
                let old = upload.initiated().is_some_and(|t| t.secs() < before.timestamp());
                if let (true, Some(key), Some(id)) = (old, upload.key(), upload.upload_id())
                    && key.starts_with(&self.prefix)
                {
                    self.abort_upload(key, id).await;
                    aborted += 1;
                }
            }
            let next = (page.next_key_marker, page.next_upload_id_marker);
            if page.is_truncated != Some(true) || next.0.is_none() || next == (key_marker, upload_marker) {
                return Ok(aborted);
            }
            (key_marker, upload_marker) = next;
        }
    }
}
