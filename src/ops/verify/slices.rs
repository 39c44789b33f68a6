//! Which part of the archives a sample reads: each run another slice, so that every byte is read again within a set
//! number of runs, however irregular they are.
//!
//! Archives fall into slices by their ids, for ever: a new archive has its turn within as many runs as there are
//! slices. State remembers which slice was read when, for each place where the repository lies; the one that has waited
//! longest is next. Without a state folder the day decides.

use crate::base::events::Event;
use crate::base::ids::{ObjectId, RepositoryId};
use crate::ops::Run;
use crate::repository::chain::full_text;
use crate::repository::state::{State, Turn};
use chrono::{DateTime, Utc};
use serde::Serialize;

/// The slice that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Slice {
    /// From 1.
    pub number: u32,
    pub of: u32,
    /// Whether the next run will read another one; without a memory the day decides.
    pub remembered: bool,
    /// How many of the slices have been read by now.
    pub read: u32,
    /// Since then every slice has been read; absent while one of them has not.
    pub everything_since: Option<DateTime<Utc>>,
}

/// Where runs of one repository are remembered.
pub(super) struct Memory<'a> {
    pub state: &'a State,
    pub location: String,
    pub repository: &'a RepositoryId,
}

/// So many slices of so many percent come to everything.
pub(super) fn count(percent: u8) -> u32 {
    100u32.div_ceil(u32::from(percent.clamp(1, 100)))
}

/// The slice that an archive belongs to, from 0.
pub(super) fn of(id: &ObjectId, slices: u32) -> u32 {
    let place = u32::from_be_bytes([id.0[0], id.0[1], id.0[2], id.0[3]]);
    ((u64::from(place) * u64::from(slices)) >> 32) as u32
}

/// The slice whose turn it is, from 0.
pub(super) fn next(memory: Option<&Memory<'_>>, slices: u32, run: &Run) -> u32 {
    let by_day = (run.now.timestamp().div_euclid(86_400).rem_euclid(i64::from(slices))) as u32;
    let turns = memory.and_then(|memory| forgiving(run, memory.turns(slices)));
    turns.and_then(|turns| waited_longest(&turns)).unwrap_or(by_day)
}

/// The first of those that have waited longest.
fn waited_longest(turns: &[Turn]) -> Option<u32> {
    let (at, _) = turns.iter().enumerate().min_by_key(|(at, turn)| (turn.turn, *at))?;
    u32::try_from(at).ok()
}

/// Remembers that a slice has been read whole, and says how far that comes.
pub(super) fn settle(memory: Option<&Memory<'_>>, slice: u32, slices: u32, run: &Run) -> Slice {
    let kept = memory.and_then(|m| {
        let keep = m.state.set_slice(&m.location, m.repository, (slice, slices), run.now);
        forgiving(run, keep.and_then(|()| m.turns(slices)))
    });
    let turns = kept.as_deref().unwrap_or(&[]);
    let read = turns.iter().filter(|turn| turn.turn > 0).count();
    let all = !turns.is_empty() && read == turns.len();
    Slice {
        number: slice + 1,
        of: slices,
        remembered: kept.is_some(),
        read: u32::try_from(read).unwrap_or(u32::MAX),
        everything_since: if all { turns.iter().filter_map(|turn| turn.time).min() } else { None },
    }
}

impl Memory<'_> {
    fn turns(&self, slices: u32) -> Result<Vec<Turn>, crate::repository::RepositoryError> {
        self.state.slices(&self.location, self.repository, slices)
    }
}

/// A memory that cannot be used keeps nobody from verifying.
fn forgiving<T>(run: &Run, done: Result<T, crate::repository::RepositoryError>) -> Option<T> {
    done.map_err(|e| run.events.send(Event::Warning { source: None, text: full_text(&e) })).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::crypt::object_id;

    #[test]
    fn every_archive_has_one_slice_and_slices_are_even() {
        for percent in [1, 3, 7, 10, 33, 50, 99, 100] {
            let slices = count(percent);
            assert!(u32::from(percent) * slices >= 100 && u32::from(percent) * (slices - 1) < 100, "{percent}");
            let mut counts = vec![0u32; slices as usize];
            (0..20_000u32).for_each(|n| counts[of(&object_id(&n.to_le_bytes()), slices) as usize] += 1);
            let share = 20_000 / slices;
            assert!(counts.iter().all(|n| n.abs_diff(share) < share / 2 + 2), "{percent}: {counts:?}");
        }
        assert_eq!((of(&ObjectId([0xff; 32]), 7), of(&ObjectId([0; 32]), 7)), (6, 0));
        assert_eq!(count(0), 100, "nothing at all would never end");
    }
}
