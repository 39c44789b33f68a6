//! Reading: whole objects, ranges, and what is known of an object without reading it.
//!
//! Lengths are checked against what was announced before a byte is handed on, and limits while reading.

use super::client::Bucket;
use super::error::S3Error;
use super::list::time_of;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use chrono::{DateTime, Utc};

/// What reading an object gave.
pub enum Read {
    Bytes(Vec<u8>),
    /// It is longer than the limit.
    TooLarge(u64),
    /// It ends before the range does.
    Short,
}

/// What is known of an object.
pub struct Head {
    pub length: u64,
    pub modified: DateTime<Utc>,
    pub etag: Option<String>,
}

impl Bucket {
    fn get_request(&self, key: &str) -> GetObjectFluentBuilder {
        let full = format!("{}{key}", self.prefix);
        let version = self.version_of(&full);
        self.client.get_object().bucket(&self.name).key(full).set_version_id(version)
    }

    pub async fn read(&self, key: &str, limit: u64) -> Result<Read, S3Error> {
        self.retry(|| async {
            let answer = self.get_request(key).send().await.map_err(|e| self.asked.classify(e))?;
            let announced = self.length_of(&answer)?;
            if announced > limit {
                return Ok(Read::TooLarge(announced));
            }
            Ok(Read::Bytes(self.collect(answer, announced).await?))
        })
        .await
    }

    /// Exactly `length` bytes from `offset`; `length` is not 0.
    pub async fn read_range(&self, key: &str, offset: u64, length: u64) -> Result<Read, S3Error> {
        let last = offset.saturating_add(length - 1);
        self.retry(|| async {
            let range = format!("bytes={offset}-{last}");
            let answer = match self.get_request(key).range(range).send().await {
                Ok(answer) => answer,
                Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 416) => return Ok(Read::Short),
                Err(e) => return Err(self.asked.classify(e)),
            };
            let announced = self.length_of(&answer)?;
            let (first, end, total) = match answer.content_range() {
                Some(text) => content_range(text)
                    .ok_or_else(|| self.untrustworthy(format!("{text:?} is no range that was asked for")))?,
                // The whole object, for a server that does not know ranges.
                None => (0, announced, Some(announced)),
            };
            if first != offset || end - first != announced || end > last.saturating_add(1) {
                return Err(self.untrustworthy(format!(
                    "bytes {first}-{} of {announced} came for bytes {offset}-{last}",
                    end.saturating_sub(1)
                )));
            }
            if announced < length {
                // Only the object's end may cut a range short.
                return match total {
                    Some(total) if total > end => Err(self.untrustworthy("a range came cut short")),
                    _ => Ok(Read::Short),
                };
            }
            Ok(Read::Bytes(self.collect(answer, announced).await?))
        })
        .await
    }

    /// Whether the object is there with exactly these bytes; `None` when it is not there at all.
    pub async fn holds(&self, key: &str, bytes: &[u8]) -> Result<Option<bool>, S3Error> {
        let found = self
            .retry(|| async {
                let answer = self.get_request(key).send().await.map_err(|e| self.asked.classify(e))?;
                if self.length_of(&answer)? != bytes.len() as u64 {
                    return Ok(false);
                }
                let mut rest = bytes;
                let mut body = answer.body;
                while let Some(piece) = body.next().await {
                    let piece = piece.map_err(|e| self.asked.broken(e.into()))?;
                    match rest.split_at_checked(piece.len()) {
                        Some((head, tail)) if head == piece => rest = tail,
                        _ => return Ok(false),
                    }
                }
                if rest.is_empty() { Ok(true) } else { Err(cut_short()) }
            })
            .await;
        match found {
            Ok(same) => Ok(Some(same)),
            Err(S3Error::NoSuchKey) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub async fn look(&self, key: &str) -> Result<Option<Head>, S3Error> {
        let found = self
            .retry(|| async {
                let full = format!("{}{key}", self.prefix);
                let version = self.version_of(&full);
                let request = self.client.head_object().bucket(&self.name).key(full).set_version_id(version);
                let answer = match request.send().await {
                    Ok(answer) => answer,
                    Err(e) => return Err(self.head_cause(key, self.asked.classify(e)).await),
                };
                let length = answer.content_length().and_then(|l| u64::try_from(l).ok());
                let length = length.ok_or_else(|| self.untrustworthy("an object without a length"))?;
                let modified = answer.last_modified().and_then(time_of);
                let modified = modified.ok_or_else(|| self.untrustworthy("an object without a time"))?;
                Ok(Head { length, modified, etag: answer.e_tag().map(str::to_owned) })
            })
            .await;
        match found {
            Ok(head) => Ok(Some(head)),
            Err(S3Error::NoSuchKey) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// An answer to HEAD has no body that would name the cause: a request that has one is asked for it.
    async fn head_cause(&self, key: &str, bare: S3Error) -> S3Error {
        if !matches!(
            bare,
            S3Error::AccessDenied { .. } | S3Error::Refused { .. } | S3Error::WrongRegion { right: None, .. }
        ) {
            return bare;
        }
        match self.get_request(key).range("bytes=0-0").send().await {
            Ok(_) => bare,
            Err(e) => match self.asked.classify(e) {
                S3Error::NoSuchKey => bare,
                cause => cause,
            },
        }
    }

    fn length_of(&self, answer: &GetObjectOutput) -> Result<u64, S3Error> {
        let length = answer.content_length().and_then(|l| u64::try_from(l).ok());
        length.ok_or_else(|| self.untrustworthy("an object without a length"))
    }

    async fn collect(&self, answer: GetObjectOutput, announced: u64) -> Result<Vec<u8>, S3Error> {
        let length = usize::try_from(announced).map_err(|_| self.untrustworthy("a length beyond all memory"))?;
        let mut bytes = Vec::with_capacity(length);
        let mut body = answer.body;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|e| self.asked.broken(e.into()))?;
            if bytes.len() + piece.len() > length {
                return Err(self.untrustworthy("more bytes came than were announced"));
            }
            bytes.extend_from_slice(&piece);
        }
        if bytes.len() == length { Ok(bytes) } else { Err(cut_short()) }
    }
}

fn cut_short() -> S3Error {
    S3Error::Untrustworthy { problem: "fewer bytes came than were announced".to_owned(), retryable: true }
}

/// First byte, end, and total length where it is told, of `bytes 5-11/400000`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = if total.trim() == "*" { None } else { Some(total.trim().parse().ok()?) };
    let end = last.checked_add(1)?;
    (first <= last).then_some((first, end, total))
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn ranges_are_read_strictly() {
        assert_eq!(content_range("bytes 5-11/400000"), Some((5, 12, Some(400_000))));
        assert_eq!(content_range("bytes 5-11/*"), Some((5, 12, None)));
        for bad in ["bytes */400000", "bytes 5-/7", "5-11/12", "bytes 11-5/12", "bytes 0-18446744073709551615/*"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
