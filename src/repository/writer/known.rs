//! The index objects that a writer may trust, and the table of chunks that they make.

use super::snapshot::WriterOptions;
use super::workers::Shared;
use super::{lock, stored};
use crate::base::ids::{ObjectId, PolicyName};
use crate::base::threads::{self, NoThread};
use crate::pipeline::crypt::Identities;
use crate::repository::chain::{Chain, Snapshot, full_text};
use crate::repository::format::StreamNote;
use crate::repository::index::{IndexLoader, Usable};
use crate::repository::reader::load_refs;
use crate::repository::state::State;
use crate::repository::table::ChunkTable;
use crate::repository::trash::Condemned;
use crate::repository::{Repository, RepositoryError, layout, parallel};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

/// How many headers of each policy of this host are looked at for index objects.
pub const HEADERS_FOR_INDEX: usize = 8;

/// What is known of the repository when a snapshot begins; the table of its chunks is made from it by [`Known::fill`].
pub(super) struct Known {
    /// Every archive that is stored, with its length.
    stored: HashMap<ObjectId, u64>,
    /// Index objects to be read.
    objects: Vec<(ObjectId, u64)>,
    /// Those of them that a snapshot needs: one that is gone is worth a warning.
    expected: HashSet<ObjectId>,
    pub seen: Arc<Seen>,
}

/// What was seen of the repository when a snapshot began.
#[derive(Default)]
pub(super) struct Seen {
    pub index: HashMap<ObjectId, u64>,
    /// Refs that are there and whole.
    pub refs: HashSet<ObjectId>,
    pub condemned: Condemned,
}

/// What the index objects say.
#[derive(Default)]
pub(super) struct FromIndex {
    /// Those that the table's entries came from.
    pub objects: Vec<(ObjectId, u64)>,
    pub notes: Vec<StreamNote>,
}

/// Index objects that a writer may trust.
struct Trusted {
    objects: Vec<(ObjectId, u64)>,
    /// Those that a snapshot needs.
    expected: HashSet<ObjectId>,
    /// Refs that are there and whole.
    refs_read: HashSet<ObjectId>,
}

/// Looks for what is stored, and for the index objects that this writer may trust.
pub(super) fn look(
    repository: &Repository,
    chain: &Chain,
    state: &State,
    options: &WriterOptions,
) -> Result<Known, RepositoryError> {
    let (listed, trusted) = parallel::both(
        || parallel::both(|| stored(repository, layout::ARCHIVES), || repository.condemned()),
        || parallel::both(|| stored(repository, layout::INDEX), || trusted_index(repository, chain, state, options)),
    );
    let (index, trusted) = trusted;
    let (stored, condemned) = listed.ok_or(RepositoryError::Worker)?;
    let (stored, condemned) = (stored.ok_or(RepositoryError::Worker)??, condemned?);
    let Trusted { objects, expected, refs_read } = trusted?;
    let index = index.ok_or(RepositoryError::Worker)??;
    let seen = Arc::new(Seen { index, refs: refs_read, condemned });
    Ok(Known { stored, objects, expected, seen })
}

impl Known {
    /// Fills the table, in a thread of its own: the sources are walked meanwhile, and whoever asks for a chunk waits. The
    /// table is locked when this returns. What fails, fails the run.
    pub fn fill(self, shared: &Arc<Shared>, identities: Identities) -> Result<JoinHandle<()>, NoThread> {
        let (locked, is_locked) = sync_channel(1);
        let shared = shared.clone();
        let filling = threads::begin(move || {
            let (mut from, mut table) = (lock(&shared.from_index), lock(&shared.table));
            // Whoever waits for it has failed otherwise.
            let _ = locked.send(());
            if let Err(e) = self.read(&shared, &identities, &mut from, &mut table) {
                shared.fail(e);
            }
        })?;
        let _ = is_locked.recv();
        Ok(filling)
    }

    fn read(
        self,
        shared: &Shared,
        identities: &Identities,
        from: &mut FromIndex,
        table: &mut ChunkTable,
    ) -> Result<(), RepositoryError> {
        let (state, repository) = (&shared.state, &shared.repository);
        let usable = Usable::Writer {
            stored: &self.stored,
            condemned: &self.seen.condemned,
            recipients: shared.options.recipients.set_id(),
            dedup: shared.key.dedup_id(),
        };
        let loader = IndexLoader { repository, identities, cache: Some(state.index_cache(repository.id())) };
        for (id, length) in self.objects {
            shared.options.cancel.check()?;
            let position = from.objects.len() as u32;
            // A hint that cannot be had is no failure: its chunks are stored again.
            match loader.load_into((id, length), table, position, &usable) {
                Ok(notes) => {
                    from.notes.extend(notes.map_err(|source| table_error(state, source))?.streams);
                    from.objects.push((id, length));
                }
                // No header named it while it was there, or a repack has put another in its place.
                Err(RepositoryError::Missing { .. }) if !self.expected.contains(&id) => {
                    state.remove_unfinished_index(repository.id(), &[id])?;
                }
                Err(e) => tracing::warn!("index object {id} is left out: {}", full_text(&e)),
            }
        }
        Ok(())
    }
}

pub(super) fn table_error(state: &State, source: io::Error) -> RepositoryError {
    RepositoryError::File { action: "write the chunk table in", path: state.dir().to_owned(), source }
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
