//! The types of format 1's stored JSON and CBOR: field names are the format.

use crate::base::ids::{
    ChunkId, DedupKeyId, HostName, ObjectId, PolicyName, RecipientSetId, RepositoryId, Sequence, SnapshotId,
    SourceName, StreamName, Tag,
};
use crate::base::stream::StreamKind;
use crate::repository::RepositoryError;
use crate::storage::StorageKey;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The format that this version writes and reads.
pub const FORMAT: u64 = 1;
/// What this version knows of `requires`: nothing yet, so any name is refused.
const KNOWN_REQUIRES: &[&str] = &[];

/// The fields that every object opens with, read before anything else is believed of it.
#[derive(Debug, Clone, Deserialize)]
pub struct Envelope {
    pub kind: String,
    pub format: u64,
    #[serde(default)]
    pub requires: Vec<String>,
}

/// Refuses a higher format or an unknown requirement before the rest is parsed.
pub fn check_envelope(json: &[u8], key: &StorageKey) -> Result<Envelope, RepositoryError> {
    let envelope: Envelope = serde_json::from_slice(json)
        .map_err(|e| RepositoryError::Damaged { key: key.clone(), problem: format!("it does not parse: {e}") })?;
    check_versions(envelope.format, &envelope.requires, key.as_str())?;
    Ok(envelope)
}

/// The same for what has been parsed already.
pub fn check_versions(format: u64, requires: &[String], what: &str) -> Result<(), RepositoryError> {
    if format != FORMAT {
        return Err(RepositoryError::NewerFormat { what: what.to_owned(), found: format });
    }
    match requires.iter().find(|name| !KNOWN_REQUIRES.contains(&name.as_str())) {
        Some(name) => {
            Err(RepositoryError::Requires { what: what.to_owned(), requires: name.chars().take(80).collect() })
        }
        None => Ok(()),
    }
}

/// `repository.json`, signed by the root key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RepositoryObject {
    pub kind: String,
    pub format: u64,
    pub requires: Vec<String>,
    pub repository: RepositoryId,
    pub root_public_key: String,
    pub created: DateTime<Utc>,
}

/// What a signer may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Snapshot,
    Prune,
    Drill,
}

/// The last header of a policy that a revoked key is believed for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastGood {
    pub host: HostName,
    pub policy: PolicyName,
    pub sequence: Sequence,
    pub header: ObjectId,
}

/// `signers/<n>.json`, signed by the root key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SignerObject {
    pub kind: String,
    pub format: u64,
    pub requires: Vec<String>,
    pub repository: RepositoryId,
    pub number: u32,
    /// SHA-256 of the signer object before this one; absent for the first.
    pub previous: Option<ObjectId>,
    pub time: DateTime<Utc>,
    pub public_key: String,
    #[serde(flatten)]
    pub action: SignerAction,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum SignerAction {
    Add { role: Role, hosts: Vec<HostName> },
    Revoke { last_good: Vec<LastGood> },
}

/// How whole a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every source that counts is there.
    Complete,
    /// Complete, but something is oddly small.
    Suspect,
    /// A source failed; the rest is there.
    Partial,
}

/// What made a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    Manual,
    Schedule,
    Guard,
    Rollback,
}

/// `snapshots/<host>/<policy>/<sequence>.<id>.json`, signed by a host's key: the commit of a snapshot. Public on
/// purpose; nothing secret may stand here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub kind: String,
    pub format: u64,
    pub requires: Vec<String>,
    pub repository: RepositoryId,
    pub id: SnapshotId,
    pub time: DateTime<Utc>,
    pub host: HostName,
    pub policy: PolicyName,
    pub sequence: Sequence,
    /// SHA-256 of the header object before this one, of the same host and policy; absent for the first.
    pub previous: Option<ObjectId>,
    /// The highest signer number that the writer knew.
    pub signers: u32,
    pub tags: Vec<Tag>,
    pub trigger: Trigger,
    pub git_commit: Option<String>,
    pub manifest: ObjectId,
    pub manifest_bytes: u64,
    pub refs: ObjectId,
    pub bytes_total: u64,
    pub bytes_new: u64,
    pub outcome: Outcome,
    /// Random per state folder: a change says that the host was rebuilt or cloned.
    pub lineage: String,
    pub tool: String,
}

/// `records/<time>-<hex>.json`: a signed note about headers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub kind: String,
    pub format: u64,
    pub requires: Vec<String>,
    pub repository: RepositoryId,
    pub time: DateTime<Utc>,
    pub host: HostName,
    pub policy: PolicyName,
    #[serde(flatten)]
    pub note: Note,
}

/// A header that a record speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRef {
    pub sequence: Sequence,
    pub header: ObjectId,
    /// The header that it named as the one before it: so a chain of hashes leads across what a prune removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<ObjectId>,
}

/// A snapshot whose chunks a repack has put into other archives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    pub sequence: Sequence,
    pub header: ObjectId,
    /// The refs that count from now on.
    pub refs: ObjectId,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "lowercase")]
pub enum Note {
    /// Removed by retention; written before anything is deleted.
    Prune {
        removed: Vec<HeaderRef>,
    },
    /// Other refs count for these snapshots; written behind everything that those refs name.
    Repack {
        moved: Vec<Moved>,
    },
    Tag {
        snapshot: SnapshotId,
        tag: Tag,
    },
    Untag {
        snapshot: SnapshotId,
        tag: Tag,
    },
    Hold {
        snapshot: SnapshotId,
    },
    Release {
        snapshot: SnapshotId,
    },
}

/// How a drill ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrillOutcome {
    /// Every check that ran passed, and at least one did.
    Passed,
    Failed,
}

/// How many checks ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckCounts {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
}

/// `drills/<snapshot id>-<time>.json`, signed by a key with the role `drill`: what became of a snapshot that was restored
/// into throw-away services. Public on purpose; nothing secret may stand here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillObject {
    pub kind: String,
    pub format: u64,
    pub requires: Vec<String>,
    pub repository: RepositoryId,
    pub snapshot: SnapshotId,
    /// SHA-256 of the snapshot's header object.
    pub header: ObjectId,
    /// Whose snapshot it is …
    pub host: HostName,
    pub policy: PolicyName,
    /// … and where it was proved.
    pub drilled_on: HostName,
    /// When the drill ended.
    pub time: DateTime<Utc>,
    pub outcome: DrillOutcome,
    pub checks: CheckCounts,
    /// The whole drill.
    pub seconds: f64,
    /// What it took to bring everything back: the recovery time, measured.
    pub recovery_seconds: f64,
    /// The encrypted details, at `drills/<details>.json.zst.age`.
    pub details: ObjectId,
    pub details_bytes: u64,
    pub tool: String,
}

/// The encrypted description of a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    pub kind: String,
    pub format: u64,
    pub requires: Vec<String>,
    pub repository: RepositoryId,
    pub snapshot: SnapshotId,
    pub host: HostName,
    pub policy: PolicyName,
    pub sequence: Sequence,
    pub time: DateTime<Utc>,
    /// Key of the keyed BLAKE3 chunk ids, 64 hex digits.
    pub chunk_id_key: String,
    /// Whom the manifest and every archive of the snapshot are sealed to: archives do not say it themselves.
    pub recipients: Vec<String>,
    pub tool: String,
    pub sources: Vec<SourceEntry>,
}

/// One source in a manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceEntry {
    pub name: SourceName,
    /// `postgres`, `redis`, `env`, …
    pub kind: String,
    pub outcome: SourceOutcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    pub streams: Vec<StreamEntry>,
    /// What the source knew of itself at that instant.
    pub facts: serde_json::Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceOutcome {
    Complete,
    /// Complete, but oddly small.
    Suspect,
    Failed,
}

/// One stream in a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamEntry {
    pub name: StreamName,
    pub kind: StreamKind,
    pub encoding: Encoding,
    /// Plain bytes.
    pub length: u64,
    /// Of the plain bytes, for streams that are always read whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The chunk size that cutting aimed at, in bytes.
    pub chunk_average: u32,
    pub ids: IdsTree,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    Plain,
}

/// Depth 0: `root` lists the data chunks. Depth n: `root` lists chunks whose content, in order, is the sequence of
/// 40-byte entries (id ‖ u64 little-endian plain length below it) of depth n−1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdsTree {
    pub depth: u8,
    pub root: Vec<(ChunkId, u64)>,
}

/// `index/<id>.cbor.zst.age`: where chunks lie. A hint, never an authority.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IndexObject {
    pub format: u64,
    pub requires: Vec<String>,
    pub dedup_key: DedupKeyId,
    /// How frames are compressed: `zstd`.
    pub codec: String,
    pub archives: Vec<IndexArchive>,
    pub chunks: Vec<IndexChunk>,
    #[serde(default)]
    pub notes: Notes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexArchive {
    pub id: ObjectId,
    pub length: u64,
    /// age header and nonce.
    #[serde(with = "bytes")]
    pub header: Vec<u8>,
    pub recipients: RecipientSetId,
}

/// `[id, archive (position in archives), frame offset, frame length, offset, length]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexChunk(pub ChunkId, pub u32, pub u32, pub u32, pub u32, pub u32);

/// What a sealed host may read back after losing its state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    #[serde(default)]
    pub streams: Vec<StreamNote>,
}

/// The chunk average chosen for a stream, and its recent lengths, newest last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamNote {
    pub policy: PolicyName,
    pub source: SourceName,
    pub stream: StreamName,
    pub average: u32,
    pub lengths: Vec<u64>,
}

/// CBOR byte strings, which serde would write as arrays.
mod bytes {
    use serde::{Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct V;
        impl de::Visitor<'_> for V {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, v: &[u8]) -> Result<Vec<u8>, E> {
                Ok(v.to_vec())
            }
            fn visit_byte_buf<E: de::Error>(self, v: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(v)
            }
        }
        // Borrowed bytes would have to fit into the decoder's scratch of 4 KiB; a header for many recipients does not.
        d.deserialize_byte_buf(V)
    }
}
