//! The index objects that a writer may trust, and the table of chunks that they make.

use super::snapshot::WriterOptions;
use super::stored;
use crate::base::ids::{ObjectId, PolicyName};
use crate::pipeline::chunk::ChunkIdKey;
use crate::pipeline::crypt::Identities;
use crate::repository::chain::{Chain, Snapshot, full_text};
use crate::repository::format::StreamNote;
use crate::repository::index::{self, IndexLoader, Usable};
use crate::repository::reader::load_refs;
use crate::repository::state::State;
use crate::repository::table::ChunkTable;
use crate::repository::trash::Condemned;
use crate::repository::{Repository, RepositoryError, layout, parallel};
use std::collections::{HashMap, HashSet};

/// How many headers of each policy of this host are looked at for index objects.
pub const HEADERS_FOR_INDEX: usize = 8;

pub(super) struct Known {
    pub table: ChunkTable,
    pub index_objects: Vec<(ObjectId, u64)>,
    pub notes: Vec<StreamNote>,
    pub seen: Seen,
}

/// What was seen of the repository when a snapshot began.
#[derive(Default)]
pub(super) struct Seen {
    pub index: HashMap<ObjectId, u64>,
    /// Refs that are there and whole.
    pub refs: HashSet<ObjectId>,
    pub condemned: Condemned,
}

/// Index objects that a writer may trust.
struct Trusted {
    objects: Vec<(ObjectId, u64)>,
    /// Those that a snapshot needs: one that is gone is worth a warning.
    expected: HashSet<ObjectId>,
    /// Refs that are there and whole.
    refs_read: HashSet<ObjectId>,
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
    let mut known = Known {
        table: ChunkTable::new(tmp).map_err(table_error)?,
        index_objects: Vec::new(),
        notes: Vec::new(),
        seen: Seen::default(),
    };
    let (listed, trusted) = parallel::both(
        || parallel::both(|| stored(repository, layout::ARCHIVES), || repository.condemned()),
        || parallel::both(|| stored(repository, layout::INDEX), || trusted_index(repository, chain, state, options)),
    );
    let (index, trusted) = trusted;
    let (stored, condemned) = listed.ok_or(RepositoryError::Worker)?;
    let (stored, condemned) = (stored.ok_or(RepositoryError::Worker)??, condemned?);
    let Trusted { objects, expected, refs_read } = trusted?;
    let index = index.ok_or(RepositoryError::Worker)??;
    let usable = Usable::Writer {
        stored: &stored,
        condemned: &condemned,
        recipients: options.recipients.set_id(),
        dedup: key.dedup_id(),
    };
    let loader = IndexLoader { repository, identities, cache: Some(state.index_cache(repository.id())) };

    for (id, length) in objects {
        // A hint that cannot be had is no failure: its chunks are stored again.
        let object = match loader.load(id, Some(length)) {
            Ok(object) => object,
            // No header named it while it was there, or a repack has put another in its place.
            Err(RepositoryError::Missing { .. }) if !expected.contains(&id) => {
                state.remove_unfinished_index(repository.id(), &[id])?;
                continue;
            }
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
    known.seen = Seen { index, refs: refs_read, condemned };
    Ok(known)
}

/// Index objects that this host's state says it wrote, and those named by refs of its own headers, newest first: the
/// first place known for a chunk stays, and where a repack has been, its own are the better ones. A repack record is no
/// reason to trust: somebody else may have signed it.
fn trusted_index(
    repository: &Repository,
    chain: &Chain,
    state: &State,
    options: &WriterOptions,
) -> Result<Trusted, RepositoryError> {
    let mut objects = state.unfinished_index(repository.id())?;
    let mut seen: HashSet<ObjectId> = objects.iter().map(|(id, _)| *id).collect();
    let (mut expected, mut refs_read) = (HashSet::new(), HashSet::new());
    let policies: HashSet<&PolicyName> =
        chain.all().filter(|s| s.header.host == options.host).map(|s| &s.header.policy).collect();
    let mut policies: Vec<_> = policies.into_iter().collect();
    // This policy's own entries first: the first place known for a chunk stays.
    policies.sort_by_key(|p| (**p != options.policy, (*p).clone()));
    for policy in policies {
        let mut refs_seen = HashSet::new();
        let newest = chain.line(&options.host, policy).iter().rev().take(HEADERS_FOR_INDEX);
        let newest: Vec<&Snapshot> = newest.filter(|s| refs_seen.insert(s.header.refs)).collect();
        let read = parallel::at_once(&newest, |snapshot| load_refs(repository, snapshot.header.refs));
        for (snapshot, refs) in newest.into_iter().zip(read) {
            // As with the objects that they name: hints.
            let refs = match refs {
                Ok(refs) => refs,
                Err(RepositoryError::Missing { .. }) if snapshot.refs != snapshot.header.refs => continue,
                Err(e) => {
                    tracing::warn!("refs of snapshot {} are left out: {}", snapshot.header.id, full_text(&e));
                    continue;
                }
            };
            refs_read.insert(snapshot.header.refs);
            if snapshot.refs == snapshot.header.refs {
                expected.extend(refs.index.keys().copied());
            }
            objects.extend(refs.index.into_iter().filter(|(id, _)| seen.insert(*id)));
        }
    }
    Ok(Trusted { objects, expected, refs_read })
}
