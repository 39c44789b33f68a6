//! Every storage key of format 1 is built here, and nowhere else.

use crate::base::ids::{HostName, ObjectId, PolicyName, Sequence, SnapshotId};
use crate::base::time::compact;
use crate::storage::{StorageError, StorageKey};
use chrono::{DateTime, Utc};

pub const REPOSITORY: &str = "repository.json";
pub const SIGNERS: &str = "signers/";
pub const ARCHIVES: &str = "archives/";
pub const INDEX: &str = "index/";
pub const REFS: &str = "refs/";
pub const MANIFESTS: &str = "manifests/";
pub const SNAPSHOTS: &str = "snapshots/";
pub const RECORDS: &str = "records/";
pub const TRASH: &str = "trash/";
pub const DRILLS: &str = "drills/";

/// Everything below is put together from ids and names whose forms are those of a key.
fn key(text: String) -> StorageKey {
    text.parse().unwrap_or_else(|e| unreachable!("{e}: ids and names only have characters of keys"))
}

pub fn repository() -> StorageKey {
    key(REPOSITORY.to_owned())
}

pub fn signer(number: u32) -> StorageKey {
    key(format!("{SIGNERS}{number}.json"))
}

pub fn archive(id: ObjectId) -> StorageKey {
    let hex = id.to_hex();
    key(format!("{ARCHIVES}{}/{hex}.tar.zst.age", &hex[..2]))
}

pub fn index(id: ObjectId) -> StorageKey {
    key(format!("{INDEX}{id}.cbor.zst.age"))
}

pub fn refs(id: ObjectId) -> StorageKey {
    key(format!("{REFS}{id}.txt"))
}

pub fn manifest(id: ObjectId) -> StorageKey {
    key(format!("{MANIFESTS}{id}.json.zst.age"))
}

pub fn header(host: &HostName, policy: &PolicyName, sequence: Sequence, id: &SnapshotId) -> StorageKey {
    key(format!("{SNAPSHOTS}{host}/{policy}/{:010}.{id}.json", sequence.0))
}

/// Where the headers of one host and policy lie.
pub fn line(host: &HostName, policy: &PolicyName) -> String {
    format!("{SNAPSHOTS}{host}/{policy}/")
}

/// The beginning of the key of a header whose id is not known.
pub fn header_prefix(host: &HostName, policy: &PolicyName, sequence: Sequence) -> StorageKey {
    key(format!("{SNAPSHOTS}{host}/{policy}/{:010}", sequence.0))
}

/// The signed outcome of a drill of a snapshot, at a time.
pub fn drill(snapshot: &SnapshotId, time: DateTime<Utc>) -> Result<StorageKey, StorageError> {
    format!("{DRILLS}{snapshot}-{}.json", compact(time)).parse()
}

/// What the names of one snapshot's drills begin with.
pub fn drills_of(snapshot: &SnapshotId) -> String {
    format!("{DRILLS}{snapshot}-")
}

/// The encrypted details of a drill.
pub fn drill_details(id: ObjectId) -> StorageKey {
    key(format!("{DRILLS}{id}.json.zst.age"))
}

/// The name of a record or trash object: its signed time, and the first digits of its hash. A copy of an old one under
/// a newer name is none. As text, because the time may be one that no key can hold.
pub fn dated(prefix: &str, time: DateTime<Utc>, id: ObjectId) -> String {
    format!("{prefix}{}-{}.json", compact(time), &id.to_hex()[..8])
}

/// The same as a key, for an object that is to be written.
pub fn dated_key(prefix: &str, time: DateTime<Utc>, id: ObjectId) -> Result<StorageKey, StorageError> {
    dated(prefix, time, id).parse()
}

/// The id that an object's key claims. Only the one key that the id would be stored under counts: an object elsewhere
/// is found by a list and by no reader.
pub fn object_id(key: &StorageKey) -> Option<ObjectId> {
    let (prefix, rest) = key.as_str().split_once('/')?;
    let of = |name: &str, suffix: &str, build: fn(ObjectId) -> StorageKey| {
        let id = name.strip_suffix(suffix)?.parse().ok()?;
        (build(id) == *key).then_some(id)
    };
    match prefix {
        "archives" => of(rest.split_once('/')?.1, ".tar.zst.age", archive),
        "index" => of(rest, ".cbor.zst.age", index),
        "refs" => of(rest, ".txt", refs),
        "manifests" => of(rest, ".json.zst.age", manifest),
        "drills" => of(rest, ".json.zst.age", drill_details),
        _ => None,
    }
}

/// What a header's key says: it must equal the signed fields inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderKey {
    pub host: HostName,
    pub policy: PolicyName,
    pub sequence: Sequence,
    pub id: SnapshotId,
}

/// Takes a header's key apart.
pub fn parse_header(key: &StorageKey) -> Option<HeaderKey> {
    let mut parts = key.as_str().strip_prefix(SNAPSHOTS)?.split('/');
    let (host, policy, file) = (parts.next()?, parts.next()?, parts.next()?);
    let (sequence, id) = file.strip_suffix(".json")?.split_once('.')?;
    if parts.next().is_some() || sequence.len() != 10 || !sequence.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let sequence = Sequence(sequence.parse().ok().filter(|n| *n > 0)?);
    Some(HeaderKey { host: host.parse().ok()?, policy: policy.parse().ok()?, sequence, id: id.parse().ok()? })
}

/// The number of a signer's key.
pub fn parse_signer(key: &StorageKey) -> Option<u32> {
    let digits = key.as_str().strip_prefix(SIGNERS)?.strip_suffix(".json")?;
    let number: u32 = digits.parse().ok()?;
    (number > 0 && number.to_string() == digits).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_apart_as_they_were_built() {
        let id = ObjectId([0xab; 32]);
        for key in [archive(id), index(id), refs(id), manifest(id), drill_details(id)] {
            assert_eq!(object_id(&key), Some(id), "{key}");
        }
        let hex = id.to_hex();
        for odd in [format!("archives/a/{hex}.tar.zst.age"), format!("archives/{hex}.tar.zst.age")] {
            assert_eq!(object_id(&odd.parse().unwrap()), None, "{odd}: listed, and never read");
        }
        let parts = HeaderKey {
            host: "web-1".parse().unwrap(),
            policy: "shop".parse().unwrap(),
            sequence: Sequence(12),
            id: "20261119T020000Z-1a2b3c4d".parse().unwrap(),
        };
        let built = header(&parts.host, &parts.policy, parts.sequence, &parts.id);
        assert_eq!(built.as_str(), "snapshots/web-1/shop/0000000012.20261119T020000Z-1a2b3c4d.json");
        assert_eq!(parse_header(&built), Some(parts));
        assert_eq!(parse_signer(&signer(3)), Some(3));
        assert_eq!(parse_signer(&"signers/03.json".parse().unwrap()), None);
    }
}
