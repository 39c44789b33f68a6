//! How a bucket is reached, how long it is waited for, and what is known of its server.

use super::credentials::CredentialSource;
use super::lock::LockSettings;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One repository's place in an object store.
#[derive(Debug, Clone)]
pub struct S3Settings {
    pub bucket: String,
    /// Without slashes at its ends; may be empty.
    pub prefix: String,
    /// Absent: what the environment says, else AWS itself.
    pub endpoint: Option<String>,
    /// Absent: what the environment or the profile says, else `us-east-1`.
    pub region: Option<String>,
    pub credentials: CredentialSource,
    /// The bucket's name stands in the path instead of the host name. AWS itself is always asked by host name.
    pub path_style: bool,
    /// Bytes per second, over all threads.
    pub limit_upload: Option<u64>,
    /// Absent where nothing is locked.
    pub object_lock: Option<LockSettings>,
    /// What was found out earlier.
    pub server: ServerTraits,
    pub pace: Pace,
}

/// How long an answer is waited for, and how often a request is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// A connection on which no byte moves for this long is given up.
    pub stall: Duration,
    /// No request is begun again this long after it was first made.
    pub deadline: Duration,
    /// The same for an endpoint that has never answered: a wrong name need not be waited for.
    pub first_contact: Duration,
    /// The pause before the second attempt; each further one doubles it.
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(60),
            deadline: Duration::from_secs(600),
            first_contact: Duration::from_secs(15),
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(30),
        }
    }
}

/// What a server makes of `If-None-Match: *` on a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conditions {
    #[default]
    Unknown,
    /// A second write is refused.
    Honoured,
    /// It is taken as if it were not there, or refused as unknown: writes look before and after.
    Absent,
}

/// What a server makes of a digest that does not match the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Digests {
    #[default]
    Unknown,
    /// The write is refused.
    Checked,
    /// The write is taken: what was stored is proved by its ETag, or read back.
    Ignored,
}

/// What is known of a server before it is asked anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServerTraits {
    pub conditions: Conditions,
    pub digests: Digests,
}
