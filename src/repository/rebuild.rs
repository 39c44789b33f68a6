//! An index made anew from archives. Only archives that signed refs name are read, and every keyed id is computed
//! again: an entry of the new index is known to be true.

use crate::base::cancel::Cancel;
use crate::base::ids::ObjectId;
use crate::pipeline::chunk::ChunkIdKey;
use crate::pipeline::crypt::{Identities, Recipients, object_id};
use crate::pipeline::segment::ChunkPlace;
use crate::pipeline::{PipelineError, archive, limits};
use crate::repository::chain::Chain;
use crate::repository::format::{IndexArchive, IndexChunk, Notes};
use crate::repository::index::IndexDraft;
use crate::repository::keys::HostKey;
use crate::repository::reader::{load_manifest, load_refs};
use crate::repository::state::State;
use crate::repository::{Repository, RepositoryError, layout};
use std::collections::{BTreeMap, BTreeSet};

/// What a rebuild did.
#[derive(Debug, Default)]
pub struct Rebuilt {
    pub archives: usize,
    pub chunks: usize,
    pub index_objects: usize,
    /// Archives that could not be read, and why.
    pub problems: Vec<RepositoryError>,
}

/// Reads every archive that a verified snapshot of this host's key needs, and writes new index objects for them.
/// Nothing is deleted; the state remembers the new objects until a header names them.
pub fn rebuild(
    repository: &Repository,
    chain: &Chain,
    identities: &Identities,
    host_key: &HostKey,
    recipients: &Recipients,
    state: &State,
    cancel: &Cancel,
) -> Result<Rebuilt, RepositoryError> {
    let mut rebuilt = Rebuilt::default();
    let key = host_key.chunk_id_key();
    let mut archives: BTreeMap<ObjectId, u64> = BTreeMap::new();
    for snapshot in chain.all() {
        let read = load_refs(repository, snapshot.header.refs).and_then(|refs| {
            let manifest = load_manifest(repository, snapshot, identities)?;
            Ok((refs, manifest.chunk_id_key == hex::encode(key.expose())))
        });
        match read {
            Ok((refs, true)) => archives.extend(refs.archives),
            // Made under another dedup key: its ids mean nothing to this host.
            Ok((_, false)) => {}
            Err(e) if e.is_integrity() => rebuilt.problems.push(e),
            Err(e) => return Err(e),
        }
    }
    let index_recipients = recipients.with(&host_key.host_identity()?.to_public());
    let mut draft = IndexDraft::default();
    for (id, length) in archives {
        cancel.check()?;
        let read = read_archive(repository, id, length, identities, &key, recipients);
        let (entry, chunks) = match read {
            Ok(read) => read,
            Err(e) if e.is_integrity() => {
                rebuilt.problems.push(e);
                continue;
            }
            Err(e) => return Err(e),
        };
        rebuilt.archives += 1;
        rebuilt.chunks += chunks.len();
        if draft.chunks.len() + chunks.len() > limits::INDEX_ENTRIES {
            put(repository, std::mem::take(&mut draft), &key, &index_recipients, state, &mut rebuilt)?;
        }
        let position = draft.archives.len() as u32;
        draft.archives.push(entry);
        draft.chunks.extend(chunks.into_iter().map(|c| IndexChunk(c.0, position, c.2, c.3, c.4, c.5)));
    }
    if !draft.is_empty() {
        put(repository, draft, &key, &index_recipients, state, &mut rebuilt)?;
    }
    Ok(rebuilt)
}

fn put(
    repository: &Repository,
    draft: IndexDraft,
    key: &ChunkIdKey,
    recipients: &Recipients,
    state: &State,
    rebuilt: &mut Rebuilt,
) -> Result<(), RepositoryError> {
    let sealed = draft.seal(key.dedup_id(), Notes::default(), recipients)?;
    repository.storage().put_new(&layout::index(sealed.id()), sealed.bytes())?;
    state.add_unfinished_index(repository.id(), sealed.id(), sealed.bytes().len() as u64)?;
    rebuilt.index_objects += 1;
    Ok(())
}

fn read_archive(
    repository: &Repository,
    id: ObjectId,
    length: u64,
    identities: &Identities,
    key: &ChunkIdKey,
    recipients: &Recipients,
) -> Result<(IndexArchive, Vec<IndexChunk>), RepositoryError> {
    let object = layout::archive(id);
    let damaged = |problem: &str| RepositoryError::Damaged { key: object.clone(), problem: problem.to_owned() };
    let bytes = repository.get(&object, limits::ARCHIVE)?;
    if object_id(&bytes) != id || bytes.len() as u64 != length {
        return Err(damaged("its bytes are not those that its name promises"));
    }
    let header = archive::header_length(&bytes).ok_or_else(|| damaged("its age header does not end"))?;
    let mut chunks = Vec::new();
    let mut seen = BTreeSet::new();
    archive::walk(&bytes, identities, |offset, length, plain| {
        for ChunkPlace { id, offset: at, length: bytes } in tar_entries(plain)? {
            let content = &plain[at as usize..][..bytes as usize];
            if key.id(content) == id && seen.insert(id) {
                chunks.push(IndexChunk(id, 0, offset, length, at, bytes));
            }
        }
        Ok(())
    })
    .map_err(|source| match source {
        PipelineError::NoMatchingIdentity => RepositoryError::Pipeline(source),
        source => RepositoryError::DamagedBy { key: object.clone(), source },
    })?;
    let entry = IndexArchive { id, length, header: bytes[..header].to_vec(), recipients: recipients.set_id() };
    Ok((entry, chunks))
}

/// The entries of a frame's tar.
fn tar_entries(plain: &[u8]) -> Result<Vec<ChunkPlace>, PipelineError> {
    let mut entries = Vec::new();
    let mut tar = tar::Archive::new(plain);
    let bad = |_| PipelineError::damaged("frame is not a tar of chunks");
    for entry in tar.entries().map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let name = entry.path_bytes();
        let id = std::str::from_utf8(&name).ok().and_then(|name| name.parse().ok());
        let (at, length) = (entry.raw_file_position() as usize, entry.size());
        let whole = at as u64 + length <= plain.len() as u64 && length <= limits::CHUNK as u64;
        match id {
            Some(id) if whole => entries.push(ChunkPlace { id, offset: at as u32, length: length as u32 }),
            _ => return Err(PipelineError::damaged("frame is not a tar of chunks")),
        }
    }
    Ok(entries)
}
