//! Repack: the live chunks of partly dead, or of many small, archives go into new archives, and other refs count.
//!
//! Order (must): new archives → their index objects → refs → repack record. Then nothing references the old archives any
//! more, and deletion takes them as it takes all garbage. Killed anywhere, what is there is what was there before, and
//! objects that nothing references.
//!
//! Headers are signed and never change, so a record says which refs count for a snapshot. Refs and index are hints of
//! where chunks lie: a wrong repack can make a snapshot unreadable, it can never make it another one, for every chunk is
//! proved by the keyed id that the manifest of the signed header names.
//!
//! - [`survey`]: what of each archive is alive
//! - [`rewrite`]: new archives, index objects and refs
//!
//! Memory is bounded: tables lie on disk, with a few bytes and some bits per chunk in memory; lists of ids that streams
//! share are walked once.

mod rewrite;
mod survey;

pub use rewrite::{Change, Rewriter};
pub use survey::{ArchiveUse, Fate, Look, Survey, survey};

use crate::repository::RepositoryError;
use std::path::Path;

/// A bit per entry of a table.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, at: u32) {
        let word = (at / 64) as usize;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (at % 64);
    }

    fn has(&self, at: u32) -> bool {
        self.0.get((at / 64) as usize).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }
}

fn table_error(dir: &Path) -> impl Fn(std::io::Error) -> RepositoryError + '_ {
    move |source| RepositoryError::File { action: "use a chunk table in", path: dir.to_owned(), source }
}
