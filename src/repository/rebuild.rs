//! An index made anew from archives. Only archives that signed refs name are read, and every keyed id is computed
//! again: an entry of the new index is known to be true.

use crate::base::cancel::Cancel;
use crate::base::ids::{ObjectId, RecipientSetId};
use crate::pipeline::chunk::ChunkIdKey;
use crate::pipeline::crypt::{Identities, Recipients};
use crate::pipeline::{PipelineError, limits};
use crate::repository::chain::Chain;
use crate::repository::format::{IndexChunk, Notes};
use crate::repository::index::IndexDraft;
use crate::repository::keys::HostKey;
use crate::repository::reader::{load_manifest, load_refs};
use crate::repository::state::State;
use crate::repository::{Repository, RepositoryError, layout, scan};
use std::collections::BTreeMap;

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
    let archives = named_archives(repository, chain, identities, &key, &mut rebuilt)?;
    let index_recipients = recipients.with(&host_key.host_identity()?.to_public());
    let mut draft = IndexDraft::default();
    for (id, named) in archives {
        let mut scanned =
            scan::archive(repository, (id, named.length), identities, std::slice::from_ref(&key), cancel)?;
        if let Some(problem) = scanned.problem {
            // New snapshots shall store again what it held, not count on it.
            rebuilt.problems.push(problem);
            continue;
        }
        scanned.archive.recipients = named.recipients;
        rebuilt.archives += 1;
        rebuilt.chunks += scanned.chunks.len();
        if draft.chunks.len() + scanned.chunks.len() > limits::INDEX_ENTRIES {
            put(repository, std::mem::take(&mut draft), &key, &index_recipients, state, &mut rebuilt)?;
        }
        let position = draft.archives.len() as u32;
        draft.archives.push(scanned.archive);
        draft.chunks.extend(scanned.chunks.iter().map(|(c, _)| IndexChunk(c.0, position, c.2, c.3, c.4, c.5)));
    }
    if !draft.is_empty() {
        put(repository, draft, &key, &index_recipients, state, &mut rebuilt)?;
    }
    Ok(rebuilt)
}

/// An archive that a signed snapshot names.
struct Named {
    length: u64,
    /// From the manifest: a writer only counts on archives sealed to its own recipients.
    recipients: RecipientSetId,
}

/// The archives of every snapshot that was made under this host's dedup key.
fn named_archives(
    repository: &Repository,
    chain: &Chain,
    identities: &Identities,
    key: &ChunkIdKey,
    rebuilt: &mut Rebuilt,
) -> Result<BTreeMap<ObjectId, Named>, RepositoryError> {
    let mut archives = BTreeMap::new();
    for snapshot in chain.all().filter(|snapshot| !chain.was_pruned(snapshot)) {
        let read = load_refs(repository, snapshot.refs)
            .and_then(|refs| Ok((refs, load_manifest(repository, snapshot, identities)?)));
        let (refs, manifest) = match read {
            Ok(read) => read,
            // Sealed to others before the identity at hand became a recipient: what it holds stays as it is.
            Err(e @ RepositoryError::Pipeline(PipelineError::NoMatchingIdentity)) => {
                rebuilt.problems.push(e);
                continue;
            }
            Err(e) if e.is_integrity() => {
                rebuilt.problems.push(e);
                continue;
            }
            Err(e) => return Err(e),
        };
        // Made under another dedup key: its ids mean nothing to this host.
        if manifest.chunk_id_key != hex::encode(key.expose()) {
            continue;
        }
        let recipients = Recipients::parse(&manifest.recipients)?.set_id();
        archives.extend(refs.archives.into_iter().map(|(id, length)| (id, Named { length, recipients })));
    }
    Ok(archives)
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
