//! A snapshot being written: streams in, archives and index objects out, and the header last.
//!
//! Each stream's own thread cuts and hashes; chunks that are not known go into segments, and segments through a
//! bounded channel to a few workers, which compress them (compression is the limit, so it is what is spread over the
//! cores) and fill one archive together; whoever fills it up stores it. Memory is bounded by the segments in flight and
//! one archive per worker.
//!
//! Write order (must): archives → index → refs → manifest → header. The header is the commit point. A writer waits for
//! nobody; where the storage has locks, it holds a shared one that a prune which deletes at once respects.
//!
//! - [`snapshot`]: the snapshot: what is known at its begin, and the commit
//! - [`known`]: the index objects that a writer may trust
//! - [`workers`]: segments in, archives and index objects out
//! - [`stream`]: one stream being cut

mod known;
mod snapshot;
mod stream;
mod workers;

pub use known::HEADERS_FOR_INDEX;
pub use snapshot::{Committed, SnapshotDraft, SnapshotWriter, TOOL, WriterOptions};
pub use stream::{StreamParts, StreamWriter};

use crate::base::ids::ObjectId;
use crate::repository::{Repository, RepositoryError, layout};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex; a thread that panicked while holding it has already failed the run.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every archive, or index object, that is stored now, with its length.
fn stored(repository: &Repository, prefix: &str) -> Result<HashMap<ObjectId, u64>, RepositoryError> {
    let listed = repository.storage().list(prefix)?;
    Ok(listed.into_iter().filter_map(|o| Some((layout::object_id(&o.key)?, o.length))).collect())
}
