//! Small objects fetched many at once: from an object store each takes a round trip, whatever its size.

use crate::base::threads;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Fetches that run at once: enough to hide the latency of an object store.
const AT_ONCE: usize = 32;

/// Refs to hold in memory at once: those of a large snapshot have some hundred kilobytes.
pub const REFS_AT_ONCE: usize = 32;

/// What `work` makes of every item, in their order. The caller bounds the items, and so the memory.
pub fn at_once<I: Sync, O: Send>(items: &[I], work: impl Fn(&I) -> O + Sync) -> Vec<O> {
    if let [one] = items {
        return vec![work(one)];
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, O)>> = Mutex::new(Vec::with_capacity(items.len()));
    threads::share_out(AT_ONCE.min(items.len()), || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return };
            let one = work(item);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((at, one));
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, one)| one).collect()
}

/// Two pieces of work at once, neither of which waits for the other; the first is absent if its thread panicked.
pub fn both<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B) -> (Option<A>, B) {
    std::thread::scope(|scope| {
        let a = threads::beside(scope, a);
        let b = b();
        (a.join(), b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_at_work_together() {
        let barrier = std::sync::Barrier::new(2);
        let (a, b) = both(|| barrier.wait().is_leader(), || barrier.wait().is_leader());
        assert!(a.is_some_and(|a| a != b));
    }

    #[test]
    fn answers_come_in_the_order_of_the_items() {
        for count in [0, 1, 2, 15, 16, 17, 1000] {
            let items: Vec<usize> = (0..count).collect();
            let doubled = at_once(&items, |n| {
                std::thread::sleep(std::time::Duration::from_micros((n * 7919 % 13) as u64 * 10));
                n * 2
            });
            assert_eq!(doubled, items.iter().map(|n| n * 2).collect::<Vec<_>>());
        }
    }
}
