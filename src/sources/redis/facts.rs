//! What a capture of Redis says of the server: the shape of `facts` in the manifest.
//!
//! What the server did not tell (a user without the right to ask) is `null`, and a warning says so.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `facts` of a redis source.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The stream: the server's whole data set as one RDB file.
    pub stream: String,
    /// `redis`, `valkey`, as the file says.
    pub server: String,
    pub version: Option<String>,
    /// `standalone`, `cluster`.
    pub mode: Option<String>,
    /// `master`, `slave`.
    pub role: Option<String>,
    /// Version of the RDB format; an older server cannot read a newer one.
    pub rdb_version: u32,
    /// `false`: the server writes no checksum (`rdbchecksum no`), so only the file's own structure was checked.
    pub rdb_checksum: bool,
    /// What `databases` is: `file`: counted in the stored file, exact; `server`: the server said the same before and
    /// after; `range`: it did not, and `before` and `after` are the range.
    pub counted: String,
    pub databases: Vec<Keys>,
    /// What the databases of the stored file hold, as digests; absent when a type of the file is not known, and in
    /// snapshots of before they were kept.
    pub content: Option<Vec<Content>>,
    /// `INFO keyspace` before and after.
    pub before: Option<Vec<Keys>>,
    pub after: Option<Vec<Keys>>,
    /// Libraries of functions in the file.
    pub functions: Option<u64>,
    /// Digest of those libraries.
    pub functions_digest: Option<String>,
    /// Loaded modules and their versions; a server that lacks one cannot read what it stored.
    pub modules: Option<BTreeMap<String, String>>,
    pub appendonly: Option<bool>,
    pub appenddirname: Option<String>,
    pub appendfilename: Option<String>,
    pub dir: Option<String>,
    pub dbfilename: Option<String>,
    /// Users beside `default`; they stand in the configuration or the ACL file, not in the RDB.
    pub acl_users: Option<u64>,
    pub aclfile: Option<String>,
    /// Bytes; 0: no limit.
    pub maxmemory: Option<u64>,
    pub maxmemory_policy: Option<String>,
    /// Bytes in use when the capture began.
    pub used_memory: Option<u64>,
}

/// What one database holds: sums of hashes, which do not depend on the order of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub database: u64,
    /// Of all names and types.
    pub names: String,
    /// Of the names and times to live of keys that have one.
    pub expiry: String,
    /// By type: `hash`, `list`, `module value`, `set`, `sorted set`, `stream`, `string`.
    pub types: BTreeMap<String, Values>,
}

/// Keys of one type of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Values {
    pub keys: u64,
    /// Of all names and values, as they stand in the stored file.
    pub digest: String,
}

/// Keys of one database. Keys whose time has come, and that the server has not removed yet, are among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    pub database: u64,
    pub keys: u64,
    /// Those with a time to live: a restored file may have lost them by then.
    pub expires: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fuzz::Fuzz;

    #[test]
    fn sweep_facts_of_redis() {
        let databases = vec![Keys { database: 0, keys: 3, expires: 1 }];
        let facts = Facts { rdb_version: 10, databases, used_memory: Some(1 << 20), ..Facts::default() };
        let words = ["{", "}", "[", "]", "\"", ":", ",", "null", "-1", "1e400", "18446744073709551616"];
        Fuzz::of("redis-facts").seed(serde_json::to_vec(&facts).unwrap()).words(&words).run(|bytes| {
            let Ok(facts) = serde_json::from_slice::<Facts>(bytes) else { return };
            let text = serde_json::to_string(&facts).unwrap();
            assert_eq!(serde_json::to_string(&serde_json::from_str::<Facts>(&text).unwrap()).unwrap(), text);
        });
    }
}
