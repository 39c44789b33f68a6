//! An archive read whole: every chunk in it found again and proved by its keyed id, whatever an index says of it.
//!
//! Rebuilding an index, deep verification, and readers that lost an index object all come here.

use crate::base::cancel::Cancel;
use crate::base::ids::{ChunkId, ObjectId, RecipientSetId};
use crate::pipeline::chunk::ChunkIdKey;
use crate::pipeline::crypt::{Identities, object_id};
use crate::pipeline::segment::ChunkPlace;
use crate::pipeline::{PipelineError, archive, limits};
use crate::repository::format::{IndexArchive, IndexChunk};
use crate::repository::{Repository, RepositoryError, layout};
use std::collections::HashSet;

/// What an archive holds.
pub struct Scanned {
    /// As an index would list it. Whom it is sealed to, the archive does not say.
    pub archive: IndexArchive,
    /// Proved chunks, and which of the keys proves each. Their `archive` position is 0.
    pub chunks: Vec<(IndexChunk, u32)>,
    /// Entries whose content is not what their name promises, under any of the keys.
    pub unproved: Vec<ChunkId>,
    /// Why the archive is damaged, if it is; `chunks` is what could be read of it all the same.
    pub problem: Option<RepositoryError>,
}

/// Reads an archive of `length` bytes. `Err` says that it could not be looked at; damage is in the answer.
pub fn archive(
    repository: &Repository,
    (id, length): (ObjectId, u64),
    identities: &Identities,
    keys: &[ChunkIdKey],
    cancel: &Cancel,
) -> Result<Scanned, RepositoryError> {
    cancel.check()?;
    let key = layout::archive(id);
    let damaged = |problem: &str| RepositoryError::Damaged { key: key.clone(), problem: problem.to_owned() };
    let recipients = RecipientSetId([0; 32]);
    let archive = IndexArchive { id, length, header: Vec::new(), recipients };
    let mut scanned = Scanned { archive, chunks: Vec::new(), unproved: Vec::new(), problem: None };
    let bytes = match repository.get(&key, limits::ARCHIVE) {
        Ok(bytes) => bytes,
        Err(e) if e.is_integrity() => {
            scanned.problem = Some(e);
            return Ok(scanned);
        }
        Err(e) => return Err(e),
    };
    if object_id(&bytes) != id || bytes.len() as u64 != length {
        scanned.problem = Some(damaged("its bytes are not those that its name promises"));
    }
    let Some(header) = archive::header_length(&bytes) else {
        scanned.problem.get_or_insert_with(|| damaged("its age header does not end"));
        return Ok(scanned);
    };
    scanned.archive.header = bytes[..header].to_vec();
    let mut seen = HashSet::new();
    let mut stopped = None;
    let walked = archive::walk(&bytes, identities, |offset, length, plain| {
        if let Err(e) = cancel.check() {
            stopped = Some(e);
            return Err(PipelineError::damaged("stopped"));
        }
        for ChunkPlace { id, offset: at, length: bytes } in tar_entries(plain)? {
            let content = &plain[at as usize..][..bytes as usize];
            match keys.iter().position(|key| key.id(content) == id) {
                Some(which) if seen.insert(id) => {
                    scanned.chunks.push((IndexChunk(id, 0, offset, length, at, bytes), which as u32));
                }
                Some(_) => {}
                None => scanned.unproved.push(id),
            }
            if scanned.chunks.len() + scanned.unproved.len() > limits::INDEX_ENTRIES {
                return Err(PipelineError::damaged("archive with more chunks than allowed"));
            }
        }
        Ok(())
    });
    if let Some(e) = stopped {
        return Err(e.into());
    }
    match walked {
        Ok(()) => Ok(scanned),
        Err(e @ PipelineError::NoMatchingIdentity) if scanned.problem.is_none() => Err(e.into()),
        Err(e @ PipelineError::NoMemory) => Err(e.into()),
        Err(source) => {
            scanned.problem.get_or_insert(RepositoryError::DamagedBy { key, source });
            Ok(scanned)
        }
    }
}

/// The entries of a frame's tar.
pub(super) fn tar_entries(plain: &[u8]) -> Result<Vec<ChunkPlace>, PipelineError> {
    let mut entries = Vec::new();
    let mut tar = tar::Archive::new(plain);
    let bad = |_| PipelineError::damaged("frame is not a tar of chunks");
    for entry in tar.entries().map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let name = entry.path_bytes();
        let id = std::str::from_utf8(&name).ok().and_then(|name| name.parse().ok());
        let (at, length) = (entry.raw_file_position(), entry.size());
        // The length first: a header may claim any.
        let whole = length <= limits::CHUNK as u64 && at.saturating_add(length) <= plain.len() as u64;
        match id {
            Some(id) if whole => entries.push(ChunkPlace { id, offset: at as u32, length: length as u32 }),
            _ => return Err(PipelineError::damaged("frame is not a tar of chunks")),
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_claims_everything_is_refused_without_a_panic() {
        let mut header = tar::Header::new_ustar();
        header.set_path("ab".repeat(32)).unwrap();
        header.set_size(u64::MAX - 100);
        header.set_cksum();
        assert!(tar_entries(header.as_bytes()).is_err());
        header.set_size(0);
        header.set_cksum();
        assert_eq!(tar_entries(header.as_bytes()).unwrap().len(), 1);
    }
}
