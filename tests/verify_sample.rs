//! Samples of `verify --read-data=PERCENT`: a set number of runs reads everything, however irregular they are, and finds
//! whatever has changed.

#[path = "support/rigged.rs"]
mod rigged;
#[path = "support/world.rs"]
mod world;

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::ops::access::{Access, AccessRequest};
use lifeboat::ops::verify::{Level, VerifyReport, verify};
use lifeboat::ops::{OpsError, Run};
use lifeboat::storage::{LocalStorage, Storage, StorageKey, local::Reserve};
use rigged::Rigged;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;
use world::{World, noise, run};

/// A repository of some archives.
fn stocked(archives: u64) -> World {
    let world = World::memory();
    for n in 0..archives {
        world.snapshot(&[("a", &noise(n, 20_000))]);
    }
    assert!(world.keys("archives/").len() as u64 >= archives);
    world
}

fn try_sample(world: &World, percent: u8, now: DateTime<Utc>) -> Result<(VerifyReport, BTreeSet<String>), OpsError> {
    let rigged = Arc::new(Rigged::new(world.storage.clone()));
    let report =
        verify(&world.over(rigged.clone()).access(false)?, Level::ReadData { percent }, &[], &Run { now, ..run() })?;
    let reads = rigged.reads.lock().unwrap();
    Ok((report, reads.iter().filter(|key| key.starts_with("archives/")).cloned().collect()))
}

/// One run, and the archives that it read.
fn sample(world: &World, percent: u8) -> (VerifyReport, BTreeSet<String>) {
    try_sample(world, percent, Utc::now()).unwrap()
}

fn archives(world: &World) -> BTreeSet<String> {
    world.keys("archives/").iter().map(StorageKey::to_string).collect()
}

#[test]
fn a_set_number_of_runs_reads_everything_once() {
    for (percent, runs) in [(10, 10), (25, 4), (33, 4), (50, 2), (7, 15)] {
        let world = stocked(60);
        let mut read = BTreeSet::new();
        for n in 1..=runs {
            // All on one day, which would always be the same sample if the day decided.
            let (report, here) = sample(&world, percent);
            let slice = report.slice.unwrap();
            assert_eq!((slice.number, slice.of, slice.read, slice.remembered), (n, runs, n, true));
            assert_eq!(slice.everything_since.is_some(), n == runs);
            assert!(read.is_disjoint(&here), "{percent} %: read twice before the rest was read once");
            read.extend(here);
        }
        assert_eq!(read, archives(&world), "{percent} % in {runs} runs");
        // And again, from the slice that has waited longest.
        assert_eq!(sample(&world, percent).0.slice.unwrap().number, 1);
    }
}

#[test]
fn new_archives_have_their_turn_too() {
    let world = stocked(20);
    let mut first_seen = std::collections::BTreeMap::new();
    for n in 0..30usize {
        world.snapshot(&[("a", &noise(1000 + n as u64, 20_000))]);
        for key in archives(&world) {
            first_seen.entry(key).or_insert(n);
        }
        for key in sample(&world, 20).1 {
            first_seen.insert(key, n + 1);
        }
        // Nothing has waited for more than five runs.
        let late: Vec<_> = first_seen.iter().filter(|(_, since)| n + 1 - **since > 5).collect();
        assert!(late.is_empty(), "run {n}: {late:?}");
    }
}

#[test]
fn a_flipped_bit_in_any_archive_is_found_within_the_runs() {
    let world = stocked(12);
    for (n, key) in world.keys("archives/").into_iter().enumerate() {
        let damaged = world.copy();
        // Wherever the turns are by now.
        (0..n % 4).for_each(|_| drop(sample(&damaged, 25)));
        let mut bytes = damaged.get(&key);
        let at = (n * 997) % bytes.len();
        bytes[at] ^= 1 << (n % 8);
        damaged.set(&key, &bytes);
        let found = (0..4).any(|_| sample(&damaged, 25).0.findings.iter().any(|f| f.object == key.as_str()));
        assert!(found, "{key}");
    }
}

#[test]
fn without_a_memory_the_day_decides() {
    let world = stocked(30);
    let mut read = BTreeSet::new();
    let begin: DateTime<Utc> = "2026-11-21T12:00:00Z".parse().unwrap();
    for day in 0..10 {
        let rigged = Arc::new(Rigged::new(world.storage.clone()));
        let access = Access::of(world.over(rigged.clone()).open(), None, None, &AccessRequest::default()).unwrap();
        let now = begin + TimeDelta::days(day);
        let report = verify(&access, Level::ReadData { percent: 10 }, &[], &Run { now, ..run() }).unwrap();
        let slice = report.slice.unwrap();
        assert!(!slice.remembered && slice.everything_since.is_none() && slice.of == 10);
        read.extend(rigged.reads.lock().unwrap().iter().filter(|key| key.starts_with("archives/")).cloned());
    }
    assert_eq!(read, archives(&world));
}

#[test]
fn a_run_that_fails_or_looks_at_some_snapshots_only_takes_no_turn() {
    let world = stocked(30);
    sample(&world, 25);
    let rigged = Rigged::new(world.storage.clone())
        .on_read(|key| key.as_str().starts_with("archives/").then_some(ErrorKind::ConnectionReset));
    assert!(try_sample(&world.over(Arc::new(rigged)), 25, Utc::now()).is_err());
    let newest = world.chain().all().next_back().unwrap().header.id.clone();
    let some = verify(&world.access(false).unwrap(), Level::ReadData { percent: 25 }, &[newest], &run()).unwrap();
    assert!(!some.slice.unwrap().remembered);
    assert_eq!(sample(&world, 25).0.slice.unwrap().number, 2);
}

#[test]
fn reading_everything_is_a_turn_of_every_slice_and_a_clock_that_goes_back_harms_nothing() {
    let world = stocked(10);
    let now = Utc::now();
    sample(&world, 50);
    let all = try_sample(&world, 100, now).unwrap();
    assert!(all.0.slice.is_none() && all.1 == archives(&world));
    let numbers: Vec<u32> = (0..4)
        .map(|n| {
            let (report, _) = try_sample(&world, 50, now - TimeDelta::days(400 * n)).unwrap();
            let slice = report.slice.unwrap();
            assert!(slice.everything_since.is_some(), "{slice:?}");
            slice.number
        })
        .collect();
    assert_eq!(numbers, [1, 2, 1, 2]);
    // Other percentages have slices of their own, and the full read counts for them.
    let slice = sample(&world, 10).0.slice.unwrap();
    assert_eq!((slice.number, slice.read, slice.everything_since.is_some()), (1, 10, true));
}

#[test]
fn each_place_has_its_own_turns() {
    let world = stocked(6);
    sample(&world, 50);
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = LocalStorage::new(dir.path(), Reserve::Bytes(0));
    for object in world.storage.list("").unwrap() {
        elsewhere.put_new(&object.key, &world.get(&object.key)).unwrap();
    }
    let copy = world.over(Arc::new(elsewhere));
    assert_eq!(sample(&copy, 50).0.slice.unwrap().number, 1);
    assert_eq!(sample(&world, 50).0.slice.unwrap().number, 2);
}
