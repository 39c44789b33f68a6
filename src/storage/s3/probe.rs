//! What a server really does, found out with scratch objects below `probe/` that are removed afterwards: many servers
//! answer 200 to what they ignore.

use super::S3Storage;
use super::client::Bucket;
use super::digest::md5;
use super::error::S3Error;
use super::put::{Answer, Body, Stored};
use super::settings::{Conditions, Digests, ServerTraits};
use crate::storage::StorageError;
use crate::storage::s3::get::Read;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{BucketVersioningStatus, ObjectLockEnabled, ObjectLockMode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Below the repository's prefix; no part of the repository itself.
pub const SCRATCH: &str = "probe/";
/// A lock is tried for so long; what it holds goes away with it.
const LOCK_SECONDS: i64 = 60;

/// What was found out. `None`: this key may not ask, or it was not tried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerProbe {
    #[serde(flatten)]
    pub server: ServerTraits,
    /// This key may delete.
    pub deletes: bool,
    pub versioning: Option<bool>,
    pub object_lock: Option<bool>,
    /// A version under lock was not deleted, and could be read behind a delete marker.
    pub lock_holds: Option<bool>,
    /// Why this server is not safe to store in.
    pub unsafe_because: Vec<String>,
}

impl S3Storage {
    /// Tries what the server makes of everything that a repository relies on. With `lock`, Object Lock as well: that
    /// leaves a version behind that nobody can remove for a minute; the next probe removes it.
    pub fn probe(&self, lock: bool) -> Result<ServerProbe, StorageError> {
        let probe = self.wait("probe", SCRATCH, self.bucket.probe(lock))?;
        self.bucket.learn(Some(probe.server.conditions), Some(probe.server.digests));
        Ok(probe)
    }
}

/// A name that nobody uses.
fn scratch() -> String {
    let mut random = [0; 8];
    // Without randomness two probes at once might meet, which one of them would tell.
    let _ = getrandom::fill(&mut random);
    format!("{SCRATCH}{}", hex::encode(random))
}

impl Bucket {
    async fn probe(&self, lock: bool) -> Result<ServerProbe, S3Error> {
        let mut probe = ServerProbe::default();
        let key = scratch();
        self.clean_up().await?;
        self.objects(&key, &mut probe).await?;
        probe.server.digests = self.wrong_digest(&format!("{key}-digest")).await?;
        probe.deletes = self.deletes(&[&key, &format!("{key}-digest")], &mut probe).await?;
        probe.versioning = self.versioning().await?;
        probe.object_lock = self.lock_enabled().await?;
        if lock {
            match probe.object_lock {
                Some(false) => probe
                    .unsafe_because
                    .push("object_lock is asked for, and Object Lock is not enabled on the bucket".to_owned()),
                _ => self.try_lock(&format!("{key}-lock"), &mut probe).await?,
            }
        }
        Ok(probe)
    }

    /// Removes what earlier probes had to leave under lock.
    async fn clean_up(&self) -> Result<(), S3Error> {
        let left = self.list(SCRATCH).await?;
        let Some(now) = self.wire.date() else { return Ok(()) };
        for object in left.iter().filter(|object| (now - object.modified).num_seconds() > 10 * LOCK_SECONDS) {
            // A key that may not delete leaves it to one that may.
            let _ = self.remove(object.key.as_str()).await;
        }
        Ok(())
    }

    /// Write, write again, read, read a part, list.
    async fn objects(&self, key: &str, probe: &mut ServerProbe) -> Result<(), S3Error> {
        let body = |bytes| Body::of(Bytes::from_static(bytes));
        let (first, second) = (body(b"lifeboat probe 1"), body(b"lifeboat probe two"));
        if let Stored::Other = self.put(key, &first).await? {
            return Err(self.untrustworthy("a new key holds something already"));
        }
        let again = self.retry(|| self.write_once(key, &second, true)).await;
        let (conditions, there) = match again {
            Ok(Answer::There) => (Conditions::Honoured, &first),
            Ok(Answer::Written { .. }) => (Conditions::Absent, &second),
            Err(S3Error::Unsupported { .. }) => (Conditions::Absent, &first),
            Err(e) => return Err(e),
        };
        probe.server.conditions = conditions;
        let there = &there.bytes;
        if self.holds(key, there).await? != Some(true) {
            probe.unsafe_because.push("what was written is not what is read".to_owned());
        }
        match self.read_range(key, 9, 5).await {
            Ok(Read::Bytes(bytes)) if bytes == there[9..14] => {}
            Ok(_) | Err(S3Error::Untrustworthy { .. }) => {
                probe.unsafe_because.push("a part of an object cannot be read by itself".to_owned());
            }
            Err(e) => return Err(e),
        }
        let listed = self.list(SCRATCH).await?;
        if !listed.iter().any(|o| o.key.as_str() == key && o.length == there.len() as u64) {
            probe.unsafe_because.push("a list does not show what was written just before".to_owned());
        }
        Ok(())
    }

    /// Sends bytes with the SHA-256 of others.
    async fn wrong_digest(&self, key: &str) -> Result<Digests, S3Error> {
        if !self.checksum_wanted() {
            return Ok(Digests::Ignored);
        }
        let answer = self
            .retry(|| async {
                let request = self.put_request(key).body(ByteStream::from_static(b"lifeboat probe"));
                let request = request.checksum_sha256(BASE64.encode(Sha256::digest(b"other bytes")));
                request.send().await.map_err(|e| self.asked.classify(e))
            })
            .await;
        match answer {
            Ok(_) => Ok(Digests::Ignored),
            Err(S3Error::Refused { .. }) => Ok(Digests::Checked),
            Err(e) => Err(e),
        }
    }

    async fn deletes(&self, keys: &[&str], probe: &mut ServerProbe) -> Result<bool, S3Error> {
        for key in keys {
            match self.remove(key).await {
                Ok(()) => {}
                Err(S3Error::AccessDenied { .. }) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        if self.look(keys[0]).await?.is_some() {
            probe.unsafe_because.push("an object that was deleted is still there".to_owned());
        }
        Ok(true)
    }

    async fn versioning(&self) -> Result<Option<bool>, S3Error> {
        let answer = self
            .retry(|| async {
                let request = self.client.get_bucket_versioning().bucket(&self.name);
                request.send().await.map_err(|e| self.asked.classify(e))
            })
            .await;
        match answer {
            Ok(answer) => Ok(Some(answer.status() == Some(&BucketVersioningStatus::Enabled))),
            Err(S3Error::Unsupported { .. }) => Ok(Some(false)),
            Err(S3Error::AccessDenied { .. } | S3Error::Refused { .. } | S3Error::Untrustworthy { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn lock_enabled(&self) -> Result<Option<bool>, S3Error> {
        let answer = self
            .retry(|| async {
                let request = self.client.get_object_lock_configuration().bucket(&self.name);
                request.send().await.map_err(|e| self.asked.classify(e))
            })
            .await;
        match answer {
            Ok(answer) => {
                let enabled = answer.object_lock_configuration().and_then(|c| c.object_lock_enabled());
                Ok(Some(enabled == Some(&ObjectLockEnabled::Enabled)))
            }
            // "There is no such configuration" is a 404 as well.
            Err(S3Error::Unsupported { .. } | S3Error::NoSuchKey) => Ok(Some(false)),
            Err(S3Error::AccessDenied { .. } | S3Error::Refused { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Locks a version and tries to get rid of it with this host's own key.
    async fn try_lock(&self, key: &str, probe: &mut ServerProbe) -> Result<(), S3Error> {
        let body = Bytes::from_static(b"lifeboat probe under lock");
        let until = DateTime::from_secs(self.clock().await?.timestamp() + LOCK_SECONDS);
        let put = self
            .retry(|| async {
                let request = self.put_request(key).body(ByteStream::from(body.clone()));
                // Some servers take a lock only with the older of the two digests.
                let request = request.content_md5(BASE64.encode(md5(&body)));
                let request = request.object_lock_mode(ObjectLockMode::Compliance).object_lock_retain_until_date(until);
                request.send().await.map_err(|e| self.asked.classify(e))
            })
            .await;
        let mut holds = |problem: Option<&str>| {
            probe.lock_holds = Some(problem.is_none());
            probe.unsafe_because.extend(problem.map(str::to_owned));
        };
        let version = match put {
            Ok(answer) => answer.version_id,
            Err(S3Error::Refused { .. } | S3Error::Unsupported { .. } | S3Error::AccessDenied { .. }) => {
                holds(Some("object_lock is asked for, and an object cannot be locked"));
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let Some(version) = version else {
            let _ = self.remove(key).await;
            holds(Some("object_lock is asked for, and the server keeps no versions"));
            return Ok(());
        };
        let full = format!("{}{key}", self.prefix);
        let request = self.client.delete_object().bucket(&self.name).key(&full).version_id(&version);
        if request.bypass_governance_retention(true).send().await.is_ok() {
            holds(Some("a version under lock could be deleted with this host's own key"));
            return Ok(());
        }
        // A plain delete hides it behind a marker; the version must still be readable.
        let hidden = self.client.delete_object().bucket(&self.name).key(&full).send().await;
        let marker = hidden.ok().and_then(|answer| answer.version_id);
        let request = self.client.get_object().bucket(&self.name).key(&full).version_id(&version);
        let read = match request.send().await {
            Ok(answer) => answer.body.collect().await.map(|b| b.into_bytes()).ok(),
            Err(_) => None,
        };
        holds(match read {
            Some(bytes) if bytes == body => None,
            _ => Some("a version under lock cannot be read behind a delete marker"),
        });
        // The marker goes, so that a later probe sees the version in a list and removes it.
        if let Some(marker) = marker {
            let _ = self.client.delete_object().bucket(&self.name).key(&full).version_id(marker).send().await;
        }
        Ok(())
    }
}
