//! Tables that are read at once end at once: when one is left alone, half of two cores idle. Whoever is ahead lingers and
//! leaves its core to the others; nobody ever stands still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where one of the readers stands.
pub(super) struct Pace {
    stands: Arc<[Stand]>,
    own: usize,
    /// What the others had read when one of them last went on, and how often this one has lingered since.
    others: u64,
    lingered: u32,
}

/// Others that do not go on meanwhile wait for something else than a core.
const MOST: u32 = 200;

struct Stand {
    expected: u64,
    read: AtomicU64,
}

impl Pace {
    /// By how many bytes each is expected to read; what matters is how they compare.
    pub fn of(expected: impl Iterator<Item = u64>) -> Vec<Self> {
        let stands: Arc<[Stand]> =
            expected.map(|expected| Stand { expected: expected.max(1), read: 0.into() }).collect();
        (0..stands.len()).map(|own| Self { stands: stands.clone(), own, others: 0, lingered: 0 }).collect()
    }

    /// So many bytes more have been read. Whether that is ahead of another, which has begun and goes on.
    pub fn is_ahead(&mut self, bytes: u64) -> bool {
        let read = |stand: &Stand| stand.read.load(Ordering::Relaxed);
        let part = |stand: &Stand| read(stand) as f64 / stand.expected as f64;
        self.stands[self.own].read.fetch_add(bytes, Ordering::Relaxed);
        let own = part(&self.stands[self.own]).min(1.0);
        let others = || self.stands.iter().enumerate().filter(|(i, stand)| *i != self.own && read(stand) > 0);
        let all = others().fold(0u64, |all, (_, stand)| all.wrapping_add(read(stand)));
        let is_ahead = others().any(|(_, stand)| part(stand) + 0.01 < own);
        if all != self.others {
            (self.others, self.lingered) = (all, 0);
        }
        self.lingered += u32::from(is_ahead && self.lingered <= MOST);
        is_ahead && self.lingered <= MOST
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
        let [large, small] = &mut paces[..] else { panic!() };
        assert!(!small.is_ahead(30), "the other has not begun");
        assert!(!large.is_ahead(5), "hardly begun");
        assert!(small.is_ahead(20));
        assert!(!large.is_ahead(400) && small.is_ahead(1), "405 of 1000, 51 of 100");
        assert!(large.is_ahead(200) && !small.is_ahead(0));
        let lingered = (0..1000).filter(|_| large.is_ahead(0)).count();
        assert_eq!(lingered, MOST as usize - 1, "the other stands still");
        assert!(!small.is_ahead(1) && large.is_ahead(0), "and goes on");
        drop(paces.pop());
        assert!(!paces[0].is_ahead(900), "alone, and more than was expected");
    }
}
