//! Index objects as this host keeps them, opened, in its private cache folder: fixed fields that are read at the speed of
//! memory, where a CBOR reader takes half a microsecond for each chunk.
//!
//! A kept file ends in the BLAKE3 hash of what stands before: a wrong hint from a torn file would lose data. One that
//! does not read is as good as none, and one that cannot be written costs time, nothing else.

use crate::base::atomic::{self, IfExists};
use crate::base::ids::{ChunkId, DedupKeyId, ObjectId, RecipientSetId};
use crate::pipeline::limits;
use crate::repository::format::{FORMAT, IndexArchive, IndexChunk, IndexObject, Notes};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 16] = b"lifeboat index 1";
/// The codec of every index object of this format.
pub(super) const CODEC: &str = "zstd";
/// Id and five numbers.
const CHUNK: usize = 52;

/// The file that keeps an index object.
fn path(dir: &Path, id: ObjectId) -> PathBuf {
    dir.join(format!("{id}.index"))
}

/// The index object that a file of the cache folder keeps.
pub(super) fn id_of(name: &str) -> Option<ObjectId> {
    name.strip_suffix(".index")?.parse().ok()
}

/// Keeps an index object.
pub(super) fn keep(dir: &Path, id: ObjectId, object: &IndexObject) {
    let _ = write(dir, id, object);
}

fn write(dir: &Path, id: ObjectId, object: &IndexObject) -> io::Result<()> {
    atomic::create_private_dir(dir)?;
    let mut bytes = encode(object)?;
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    // Not worth waiting for the disk: what a crash tears does not have its hash.
    atomic::write_unsynced(&path(dir, id), &bytes, 0o600, IfExists::Replace)
}

/// A kept index object, as it was read: its chunks are taken out of its bytes one by one.
pub(super) struct Kept {
    pub dedup_key: DedupKeyId,
    pub archives: Vec<IndexArchive>,
    pub notes: Notes,
    bytes: Vec<u8>,
    chunks: Range<usize>,
}

/// A kept index object.
pub(super) fn read(dir: &Path, id: ObjectId) -> Option<Kept> {
    let mut bytes = fs::read(path(dir, id)).ok()?;
    let (plain, hash) = bytes.split_last_chunk::<32>()?;
    if blake3::hash(plain).as_bytes() != hash {
        return None;
    }
    bytes.truncate(bytes.len() - 32);
    decode(bytes)
}

impl Kept {
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = IndexChunk> {
        let entries = self.bytes.get(self.chunks.clone()).unwrap_or_default().as_chunks::<CHUNK>().0;
        entries.iter().map(|entry| {
            let mut id = [0; 32];
            id.copy_from_slice(&entry[..32]);
            let word = |n: usize| {
                let mut word = [0; 4];
                word.copy_from_slice(&entry[32 + 4 * n..36 + 4 * n]);
                u32::from_le_bytes(word)
            };
            IndexChunk(ChunkId(id), word(0), word(1), word(2), word(3), word(4))
        })
    }

    pub fn into_object(self) -> IndexObject {
        IndexObject {
            format: FORMAT,
            requires: Vec::new(),
            dedup_key: self.dedup_key,
            codec: CODEC.to_owned(),
            chunks: self.chunks().collect(),
            archives: self.archives,
            notes: self.notes,
        }
    }
}

fn encode(object: &IndexObject) -> io::Result<Vec<u8>> {
    let notes = serde_json::to_vec(&object.notes)?;
    let headers: usize = object.archives.iter().map(|archive| archive.header.len() + 80).sum();
    let mut out = Vec::with_capacity(128 + headers + object.chunks.len() * CHUNK + notes.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&object.dedup_key.0);
    for count in [object.archives.len(), object.chunks.len(), notes.len()] {
        out.extend_from_slice(&(count as u64).to_le_bytes());
    }
    for archive in &object.archives {
        out.extend_from_slice(&archive.id.0);
        out.extend_from_slice(&archive.recipients.0);
        out.extend_from_slice(&archive.length.to_le_bytes());
        out.extend_from_slice(&(archive.header.len() as u64).to_le_bytes());
        out.extend_from_slice(&archive.header);
    }
    for IndexChunk(id, archive, frame_offset, frame_length, offset, length) in &object.chunks {
        out.extend_from_slice(&id.0);
        for word in [archive, frame_offset, frame_length, offset, length] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
    out.extend_from_slice(&notes);
    Ok(out)
}

fn decode(bytes: Vec<u8>) -> Option<Kept> {
    let rest = &mut bytes.strip_prefix(MAGIC)?;
    let dedup_key = DedupKeyId(hash(rest)?);
    let (count, chunks, notes) = (number(rest)?, number(rest)?, number(rest)?);
    if count.max(chunks) > limits::INDEX_ENTRIES {
        return None;
    }
    let mut archives = Vec::with_capacity(count);
    for _ in 0..count {
        let (id, recipients) = (ObjectId(hash(rest)?), RecipientSetId(hash(rest)?));
        let (length, header) = (number(rest)? as u64, number(rest)?);
        let header = rest.split_off(..header)?.to_vec();
        archives.push(IndexArchive { id, length, header, recipients });
    }
    let start = bytes.len() - rest.len();
    let chunks = start..start + rest.split_off(..chunks.checked_mul(CHUNK)?)?.len();
    let notes = serde_json::from_slice(rest.split_off(..notes)?).ok()?;
    rest.is_empty().then_some(())?;
    Some(Kept { dedup_key, archives, notes, bytes, chunks })
}

fn hash(rest: &mut &[u8]) -> Option<[u8; 32]> {
    let (hash, after) = rest.split_first_chunk::<32>()?;
    *rest = after;
    Some(*hash)
}

fn number(rest: &mut &[u8]) -> Option<usize> {
    let (number, after) = rest.split_first_chunk::<8>()?;
    *rest = after;
    usize::try_from(u64::from_le_bytes(*number)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fuzz::Fuzz;
    use crate::repository::format::{Notes, StreamNote};

    fn object() -> IndexObject {
        let archive = |n: u8, header: usize| IndexArchive {
            id: ObjectId([n; 32]),
            length: u64::from(n) << 20,
            header: vec![n; header],
            recipients: RecipientSetId([9; 32]),
        };
        let note = StreamNote {
            policy: "p".parse().unwrap(),
            source: "s".parse().unwrap(),
            stream: "files.tar".parse().unwrap(),
            average: 16_384,
            lengths: vec![1, 2],
        };
        IndexObject {
            format: FORMAT,
            requires: vec![],
            dedup_key: DedupKeyId([3; 32]),
            codec: CODEC.into(),
            archives: vec![archive(1, 200), archive(2, 20_000)],
            chunks: (0..100).map(|n| IndexChunk(ChunkId([n as u8; 32]), n % 2, n, 2, 3, u32::MAX)).collect(),
            notes: Notes { streams: vec![note] },
        }
    }

    #[test]
    fn sweep_kept_index_objects() {
        let words: [&[u8]; 4] = [MAGIC, &[0xff; 8], &[0; 52], b"{\"streams\":["];
        Fuzz::of("kept-index").seed(encode(&object()).unwrap()).words(&words).run(|bytes| {
            if let Some(object) = decode(bytes.to_vec()).map(Kept::into_object) {
                let again = decode(encode(&object).unwrap()).unwrap().into_object();
                assert_eq!(format!("{again:?}"), format!("{object:?}"));
            }
        });
    }

    #[test]
    fn comes_back_as_it_was_and_a_torn_file_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let id = ObjectId([1; 32]);
        let object = object();
        keep(dir.path(), id, &object);
        let back = read(dir.path(), id).unwrap().into_object();
        assert_eq!(format!("{back:?}"), format!("{object:?}"));
        assert_eq!(id_of(path(dir.path(), id).file_name().unwrap().to_str().unwrap()), Some(id));
        let whole = fs::read(path(dir.path(), id)).unwrap();
        for at in [0, 20, 60, 500, 21_000, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(path(dir.path(), id), bytes).unwrap();
            assert!(read(dir.path(), id).is_none(), "a flipped bit at {at}");
        }
        for n in 0..whole.len() - 32 {
            assert!(decode(whole[..n].to_vec()).is_none(), "cut at {n}");
        }
    }
}
