//! The repository's own round trip: streams in, streams out, and what later runs do not store again.

#[path = "support/world.rs"]
mod world;

use lifeboat::base::ids::Sequence;
use lifeboat::base::stream::StreamKind;
use lifeboat::repository::chain::{Snapshot, resolve};
use lifeboat::repository::keys::HostKey;
use lifeboat::repository::trust::Pin;
use lifeboat::repository::{Repository, RepositoryError};
use lifeboat::storage::LocalStorage;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::sync::Arc;
use world::{World, noise};

#[test]
fn streams_come_back_and_known_bytes_are_not_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let local = LocalStorage::new(dir.path().join("repo"), lifeboat::storage::local::Reserve::Bytes(0));
    let world = World::new(Arc::new(local));
    // More than 1,024 chunks, so that the ids tree has depth: noise is cut coarser, seven bits of it are not.
    let large: Vec<u8> = noise(1, 40 << 20).iter().map(|b| b & 0x7f).collect();
    let small = b"a small stream".to_vec();
    let first = world.snapshot(&[("large", &large), ("small", &small), ("empty", b"")]);
    assert!(first.header.bytes_new > 34 << 20);
    let mut changed = large.clone();
    changed[20_000_000] ^= 1;
    let second = world.snapshot(&[("large", &changed), ("small", &small)]);
    assert!(second.header.bytes_new < 400_000, "{} new bytes for one changed byte", second.header.bytes_new);
    assert_eq!(second.header.previous, Some(first.header_id));

    let chain = world.chain();
    assert!(chain.problems.is_empty(), "{:?}", chain.problems);
    let all: Vec<&Snapshot> = chain.all().collect();
    let expected =
        vec![("large".to_owned(), large.clone()), ("small".to_owned(), small.clone()), ("empty".to_owned(), vec![])];
    assert!(world.read(all[0]) == expected);
    assert!(world.read(resolve(&all, "latest", None).unwrap())[0].1 == changed);

    // From any offset, through a tree of ids.
    let reader = world.reader(all[0]);
    let source = &reader.manifest.sources[0];
    assert!(source.streams[0].ids.depth > 0);
    for offset in [0, 1, 16_384, 12_345_678, large.len() - 1, large.len()] {
        let mut bytes = vec![0; 100_000.min(large.len() - offset)];
        reader.stream(source, &source.streams[0], offset as u64).unwrap().read_exact(&mut bytes).unwrap();
        assert!(bytes == large[offset..offset + bytes.len()], "from {offset}");
    }
}

#[test]
fn a_run_that_was_killed_is_taken_up_again() {
    let world = World::memory();
    let large = noise(2, 60 << 20);
    let repository = world.open();
    let writer = world.writer(&repository).unwrap();
    let mut stream = writer.stream("files", "large", StreamKind::Raw, None);
    stream.write_all(&large).unwrap();
    drop(stream);
    drop(writer);
    assert_eq!(world.chain().all().count(), 0, "no header, no snapshot");
    world.snapshot(&[("large", &large)]);
    assert!(world.read(world.chain().all().next().unwrap())[0].1 == large);
}

#[test]
fn a_host_without_a_signer_is_refused_and_so_is_another_root() {
    let world = World::memory();
    let other = World::memory();
    let pin = Pin::Derived(other.identity.possible_repositories());
    assert!(matches!(Repository::open(world.storage.clone(), &pin), Err(RepositoryError::Unpinned { .. })));
    let pin = Pin::Exactly(other.identity.repository.clone().unwrap());
    assert!(matches!(Repository::open(world.storage.clone(), &pin), Err(RepositoryError::ForeignRepository { .. })));
    let key = HostKey::create(&other.dir.path().join("k2"), None).unwrap();
    let stranger = World { host_key: Arc::new(key), ..world };
    let repository = stranger.open();
    assert!(matches!(stranger.writer(&repository), Err(RepositoryError::NotASigner { .. })));
}

#[test]
fn a_deleted_newest_snapshot_is_noticed() {
    let world = World::memory();
    world.snapshot(&[("a", b"1")]);
    world.snapshot(&[("a", b"2")]);
    let chain = world.chain();
    let newest = chain.all().next_back().unwrap().key.clone();
    world.storage.delete(&newest).unwrap();
    let repository = world.open();
    let writer = world.writer(&repository).unwrap();
    assert!(writer.alarm().unwrap().contains("rolled back"));
    assert_eq!(writer.sequence(), Sequence(3), "a sequence is never given twice");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Several streams with repeating parts, against the naive copy.
    #[test]
    fn any_streams_come_back(parts in proptest::collection::vec((0u64..6, 0usize..200_000), 1..12), cuts in proptest::collection::vec(0usize..12, 0..4)) {
        let world = World::memory();
        let mut streams: Vec<Vec<u8>> = vec![Vec::new()];
        for (n, (seed, length)) in parts.iter().enumerate() {
            if cuts.contains(&n) {
                streams.push(Vec::new());
            }
            streams.last_mut().unwrap().extend(noise(*seed, *length));
        }
        let names: Vec<String> = (0..streams.len()).map(|n| format!("s{n}")).collect();
        let named: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(streams.iter().map(Vec::as_slice)).collect();
        world.snapshot(&named);
        let read = world.read(world.chain().all().next().unwrap());
        for ((_, read), naive) in read.iter().zip(&streams) {
            prop_assert!(read == naive);
        }
    }
}
