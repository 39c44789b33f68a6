//! Every storage key of format 1 is built here, and nowhere else.

use crate::base::ids::{HostName, ObjectId, PolicyName, Sequence, SnapshotId};
use crate::storage::StorageKey;

pub const REPOSITORY: &str = "repository.json";
pub const SIGNERS: &str = "signers/";
pub const ARCHIVES: &str = "archives/";
pub const INDEX: &str = "index/";
pub const REFS: &str = "refs/";
pub const MANIFESTS: &str = "manifests/";
pub const SNAPSHOTS: &str = "snapshots/";
pub const RECORDS: &str = "records/";
pub const TRASH: &str = "trash/";

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

/// The id that an object's key claims, if the key has the form of one under `prefix`.
pub fn object_id(key: &StorageKey) -> Option<ObjectId> {
    let (prefix, rest) = key.as_str().split_once('/')?;
    match prefix {
        "archives" => {
            let (folder, file) = rest.split_once('/')?;
            let hex = file.strip_suffix(".tar.zst.age")?;
            hex.starts_with(folder).then(|| hex.parse().ok())?
        }
        "index" => rest.strip_suffix(".cbor.zst.age")?.parse().ok(),
        "refs" => rest.strip_suffix(".txt")?.parse().ok(),
        "manifests" => rest.strip_suffix(".json.zst.age")?.parse().ok(),
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
    Some(HeaderKey {
        host: host.parse().ok()?,
        policy: policy.parse().ok()?,
        sequence: Sequence(sequence.parse().ok()?),
        id: id.parse().ok()?,
    })
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
        for key in [archive(id), index(id), refs(id), manifest(id)] {
            assert_eq!(object_id(&key), Some(id), "{key}");
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
