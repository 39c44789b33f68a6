//! The index objects that a writer may trust, and the table of chunks that they make.

use super::snapshot::WriterOptions;
use super::stored;
use crate::base::ids::{ObjectId, PolicyName};
use crate::pipeline::chunk::ChunkIdKey;
use crate::pipeline::crypt::{Identities, object_id};
use crate::pipeline::limits;
use crate::repository::chain::{Chain, full_text};
use crate::repository::format::StreamNote;
use crate::repository::index::{self, IndexLoader, Usable};
use crate::repository::refs::Refs;
use crate::repository::state::State;
use crate::repository::table::ChunkTable;
use crate::repository::{Repository, RepositoryError, layout};
use std::collections::HashSet;

/// How many headers of each policy of this host are looked at for index objects.
const HEADERS_FOR_INDEX: usize = 8;
pub(super) struct Known {
    pub table: ChunkTable,
    pub index_objects: Vec<(ObjectId, u64)>,
    pub notes: Vec<StreamNote>,
}

/// Loads the index objects that this writer may trust.
pub(super) fn load_known(
    repository: &Repository,
    chain: &Chain,
    state: &State,
    options: &WriterOptions,
    identities: &Identities,
    key: &ChunkIdKey,
) -> Result<Known, RepositoryError> {
    let tmp = state.dir();
    let table_error =
        |source| RepositoryError::File { action: "write the chunk table in", path: tmp.to_owned(), source };
    let mut known =
        Known { table: ChunkTable::new(tmp).map_err(table_error)?, index_objects: Vec::new(), notes: Vec::new() };
    let stored = stored(repository, layout::ARCHIVES)?;
    let condemned = repository.condemned()?;
    let usable = Usable::Writer {
        stored: &stored,
        condemned: &condemned,
        recipients: options.recipients.set_id(),
        dedup: key.dedup_id(),
    };
    let loader = IndexLoader { repository, identities, cache: Some(state.index_cache(repository.id())) };

    for (id, length) in trusted_index(repository, chain, state, options)? {
        // A hint that cannot be had is no failure: its chunks are stored again.
        let object = match loader.load(id, Some(length)) {
            Ok(object) => object,
            Err(e) => {
                tracing::warn!("index object {id} is left out: {}", full_text(&e));
                continue;
            }
        };
        let position = known.index_objects.len() as u32;
        index::fill(&mut known.table, &object, position, &usable).map_err(table_error)?;
        known.index_objects.push((id, length));
        known.notes.extend(object.notes.streams);
    }
    Ok(known)
}

/// Index objects named by refs of this host's own headers, newest first, and those that its state says it wrote.
fn trusted_index(
    repository: &Repository,
    chain: &Chain,
    state: &State,
    options: &WriterOptions,
) -> Result<Vec<(ObjectId, u64)>, RepositoryError> {
    let mut seen = HashSet::new();
    let mut objects = Vec::new();
    let policies: HashSet<&PolicyName> =
        chain.all().filter(|s| s.header.host == options.host).map(|s| &s.header.policy).collect();
    let mut policies: Vec<_> = policies.into_iter().collect();
    // This policy's own entries first: the first place known for a chunk stays.
    policies.sort_by_key(|p| (**p != options.policy, (*p).clone()));
    for policy in policies {
        let mut refs_seen = HashSet::new();
        for snapshot in chain.line(&options.host, policy).iter().rev().take(HEADERS_FOR_INDEX) {
            if !refs_seen.insert(snapshot.header.refs) {
                continue;
            }
            let key = layout::refs(snapshot.header.refs);
            let Ok(bytes) = repository.get(&key, limits::REFS) else { continue };
            if object_id(&bytes) != snapshot.header.refs {
                continue;
            }
            let Ok(refs) = Refs::parse(&bytes) else { continue };
            objects.extend(refs.index.into_iter().filter(|(id, _)| seen.insert(*id)));
        }
    }
    objects.extend(state.unfinished_index(repository.id())?.into_iter().filter(|(id, _)| seen.insert(*id)));
    Ok(objects)
}
