//! Listing, to the very end or not at all: what a list hides, a prune would delete.

use super::client::Bucket;
use super::error::S3Error;
use crate::storage::{ObjectInfo, StorageKey};
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::DateTime as S3Time;
use chrono::{DateTime, Utc};
use std::collections::HashSet;

/// No repository has so many pages of a thousand objects; a server that always promises another page has.
const MOST_PAGES: usize = 100_000;

/// In whole seconds: what HEAD tells has no more.
pub fn time_of(time: &S3Time) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.secs(), 0)
}

impl Bucket {
    /// What a list of the storage shows: behind locks, the oldest version of each key.
    pub async fn list_shown(&self, prefix: &str) -> Result<Vec<ObjectInfo>, S3Error> {
        if self.locks.is_some() { Ok(self.list_oldest(prefix).await?.0) } else { self.list(prefix).await }
    }

    /// Every object below the prefix, in key order. A page that contradicts another, or itself, is an error.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, S3Error> {
        let full = format!("{}{prefix}", self.prefix);
        let mut found = Vec::new();
        let mut last: Option<String> = None;
        let mut token: Option<String> = None;
        let mut seen = HashSet::new();
        for _ in 0..MOST_PAGES {
            let page = self.page(&full, token.clone(), None).await?;
            self.take_page(&page, &full, &mut last, &mut found)?;
            let more = match page.is_truncated() {
                Some(more) => more,
                None => return Err(self.untrustworthy("a list that does not say whether it is complete")),
            };
            match page.next_continuation_token() {
                _ if !more => return Ok(found),
                None => return Err(self.untrustworthy("a list that breaks off without saying where to go on")),
                Some(next) if !seen.insert(next.to_owned()) => {
                    return Err(self.untrustworthy("a list that goes round in circles"));
                }
                Some(next) => token = Some(next.to_owned()),
            }
        }
        Err(self.untrustworthy("a list without end"))
    }

    pub async fn page(
        &self,
        full: &str,
        token: Option<String>,
        most: Option<i32>,
    ) -> Result<ListObjectsV2Output, S3Error> {
        self.retry(|| async {
            let request = self.client.list_objects_v2().bucket(&self.name).prefix(full);
            let request = request.set_continuation_token(token.clone()).set_max_keys(most);
            match request.send().await.map_err(|e| self.asked.classify(e)) {
                // A list has no object of its own: what is missing is the bucket.
                Err(S3Error::NoSuchKey) => Err(S3Error::NoSuchBucket { bucket: self.name.clone() }),
                other => other,
            }
        })
        .await
    }

    fn take_page(
        &self,
        page: &ListObjectsV2Output,
        full: &str,
        last: &mut Option<String>,
        found: &mut Vec<ObjectInfo>,
    ) -> Result<(), S3Error> {
        let count = page.contents().len();
        if page.key_count().is_some_and(|told| usize::try_from(told) != Ok(count)) {
            return Err(self.untrustworthy("a page of a list holds another number of objects than it says"));
        }
        for object in page.contents() {
            let name = object.key().ok_or_else(|| self.untrustworthy("a listed object without a key"))?;
            if last.as_deref().is_some_and(|last| name <= last) {
                return Err(self.untrustworthy(format!("a list out of order, or with {name:?} twice")));
            }
            *last = Some(name.to_owned());
            let below = name.strip_prefix(full).and_then(|_| name.strip_prefix(&self.prefix));
            let below = below.ok_or_else(|| self.untrustworthy(format!("{name:?} was not asked for in a list")))?;
            // What cannot be a key is not ours: a folder's marker, somebody's own file.
            let Ok(key) = below.parse::<StorageKey>() else { continue };
            let length = object.size().and_then(|size| u64::try_from(size).ok());
            let length = length.ok_or_else(|| self.untrustworthy(format!("{name:?} is listed without a length")))?;
            let modified = object.last_modified().and_then(time_of);
            let modified = modified.ok_or_else(|| self.untrustworthy(format!("{name:?} is listed without a time")))?;
            found.push(ObjectInfo { key, length, modified });
        }
        Ok(())
    }
}
