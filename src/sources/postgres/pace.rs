//! Tables that are read at once end at once: when one is left alone, half of two cores idle. Whoever is ahead lingers and
//! leaves its core to the others; nobody ever stands still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where one of the readers stands.
pub(super) struct Pace {
    stands: Arc<[Stand]>,
    own: usize,
}

struct Stand {
    expected: u64,
    read: AtomicU64,
}

impl Pace {
    /// By how many bytes each is expected to read; what matters is how they compare.
    pub fn of(expected: impl Iterator<Item = u64>) -> Vec<Self> {
        let stands: Arc<[Stand]> =
            expected.map(|expected| Stand { expected: expected.max(1), read: 0.into() }).collect();
        (0..stands.len()).map(|own| Self { stands: stands.clone(), own }).collect()
    }

    /// So many bytes more have been read. Whether that is ahead of another.
    pub fn is_ahead(&self, bytes: u64) -> bool {
        let own = &self.stands[self.own];
        own.read.fetch_add(bytes, Ordering::Relaxed);
        let part = |stand: &Stand| stand.read.load(Ordering::Relaxed) as f64 / stand.expected as f64;
        self.stands.iter().any(|other| part(other) + 0.01 < part(own).min(1.0))
    }
}

/// Whoever is done is behind nobody.
impl Drop for Pace {
    fn drop(&mut self) {
        self.stands[self.own].read.store(u64::MAX, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_ahead_lingers_until_the_others_are_there_or_done() {
        let mut paces = Pace::of([1000, 100, 0].into_iter());
        drop(paces.pop());
        let (large, small) = (&paces[0], &paces[1]);
        assert!(!large.is_ahead(5), "hardly");
        assert!(small.is_ahead(50));
        assert!(!large.is_ahead(400) && small.is_ahead(1), "405 of 1000, 51 of 100");
        assert!(large.is_ahead(200) && !small.is_ahead(0));
        drop(paces.pop());
        assert!(!paces[0].is_ahead(900), "alone, and more than was expected");
    }
}
