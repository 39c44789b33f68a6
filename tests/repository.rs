//! The repository's own round trip: streams in, streams out, and what later runs do not store again.

#[path = "support/world.rs"]
mod world;

use lifeboat::base::ids::{ChunkId, Sequence};
use lifeboat::base::stream::StreamKind;
use lifeboat::pipeline::chunk::{ChunkAverage, Chunker};
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

/// Chunks as a piece has them.
type Chunks = Vec<(ChunkId, u32)>;

/// Noise, text and zeros: chunks of every length, short ones behind long ones.
fn of_every_kind() -> Vec<u8> {
    let part = |n: u64| {
        let text: Vec<u8> = noise(n + 10, 300_000).iter().map(|b| b'a' + b % 16).collect();
        [noise(n, 600_000), text, vec![0; 150_000]].concat()
    };
    (0..2).flat_map(part).collect()
}

/// What a piece is cut into by nobody but the cutter.
fn cut_plainly(world: &World, mut bytes: &[u8]) -> Chunks {
    let chunker = Chunker::new(world.host_key.gear_table(), ChunkAverage::fitting(StreamKind::Raw, 0));
    let key = world.host_key.chunk_id_key();
    let mut chunks = Vec::new();
    while !bytes.is_empty() {
        let n = chunker.cut(bytes);
        chunks.push((key.id(&bytes[..n]), n as u32));
        bytes = &bytes[n..];
    }
    chunks
}

/// In steps of every length, and across the end of a piece: chunks, and bytes, are those of the stream written at once.
#[test]
fn however_a_stream_is_written_it_is_cut_alike() {
    let world = World::memory();
    let data = of_every_kind();
    let plainly = cut_plainly(&world, &data);
    let max = Chunker::new(world.host_key.gear_table(), ChunkAverage::fitting(StreamKind::Raw, 0)).max();
    let first = plainly[0].1 as usize;
    let mut ways: Vec<Vec<usize>> =
        [data.len(), 997, 4096, 10_007, max / 8, max / 2 - 1, max / 2, max / 2 + 1, max, max + 1, 1 << 20]
            .map(|step| vec![step])
            .into();
    // Much has been held back when it is looked at again, and a chunk ends just before or behind where that began.
    ways.extend((0..24).map(|n| vec![first - 10, n, 40_000, data.len()]));
    ways.extend((0..8).map(|n| vec![first - 4 + n, 1, 40_000, 1, 70_000, data.len()]));
    let writer = world.writer(&world.open()).unwrap();
    let mut entries = Vec::new();
    for (n, way) in ways.iter().enumerate() {
        let name = format!("s{n}");
        let mut stream = writer.stream("files", &name, StreamKind::Raw, None);
        for piece in [&data[..], &data[..first + 100], &data[first..]] {
            let (mut rest, mut steps) = (piece, way.iter().chain(std::iter::repeat(way.last().unwrap())));
            while !rest.is_empty() {
                let step = (*steps.next().unwrap()).min(rest.len());
                stream.write_all(&rest[..step]).unwrap();
                rest = &rest[step..];
            }
            let cut = stream.end_piece().unwrap();
            assert!(cut == cut_plainly(&world, piece), "{way:?}: {} of {} bytes", cut.len(), piece.len());
        }
        entries.push(world::stream_entry(&name, stream.finish().unwrap()));
    }
    // One byte after the other.
    let mut stream = writer.stream("files", "bytes", StreamKind::Raw, None);
    let some = &data[500_000..1_000_000];
    some.iter().for_each(|byte| stream.write_all(&[*byte]).unwrap());
    assert_eq!(stream.end_piece().unwrap(), cut_plainly(&world, some));
    entries.push(world::stream_entry("bytes", stream.finish().unwrap()));
    let draft = world::draft(writer.sequence(), vec![world::source_entry("files", entries)]);
    writer.commit(draft, &world.host_key).unwrap();
    let read = world.read(world.chain().all().next().unwrap());
    let whole = [&data[..], &data[..first + 100], &data[first..]].concat();
    assert!(read.iter().all(|(name, bytes)| bytes == if name == "bytes" { some } else { &whole[..] }));
    assert_eq!(read.len(), ways.len() + 1);
}

/// What is expected is taken for itself as long as it comes, and from the first byte that is another one, the stream is cut
/// as any other; an expectation ends with its piece.
#[test]
fn what_is_expected_is_cut_so_and_what_comes_instead_is_cut_plainly() {
    let world = World::memory();
    let data = of_every_kind();
    let plainly = cut_plainly(&world, &data);
    let first = plainly[0].1 as usize;
    let writer = world.writer(&world.open()).unwrap();
    let mut entries = Vec::new();
    // A first chunk as it is, and others that nobody would cut so.
    let mut stream = writer.stream("files", "odd", StreamKind::Raw, None);
    stream.write_all(&data[..first]).unwrap();
    for part in data[first..].chunks(50_001) {
        stream.end_chunk().unwrap();
        stream.write_all(part).unwrap();
    }
    let odd = stream.end_piece().unwrap();
    entries.push(world::stream_entry("odd", stream.finish().unwrap()));
    assert!(odd.len() > 20 && odd[0] == plainly[0] && odd[1..] != plainly[1..]);
    let mut changed = data.clone();
    changed[100] ^= 1;
    let otherwise = cut_plainly(&world, &changed);
    assert_eq!(otherwise[0].1, plainly[0].1, "the chunk ends where it did");
    let lies = |length: u32| vec![(odd[0].0, length), odd[1]];
    let mut expected = vec![data.clone()];
    for (n, step) in [997, 10_007, 300_000, data.len()].into_iter().enumerate() {
        let name = format!("s{n}");
        let mut stream = writer.stream("files", &name, StreamKind::Raw, None);
        let mut all = Vec::new();
        let mut piece = |expected: &[(ChunkId, u32)], bytes: &[u8], cut: &[(ChunkId, u32)], what: &str| {
            stream.expect(expected);
            bytes.chunks(step).for_each(|part| stream.write_all(part).unwrap());
            assert!(stream.end_piece().unwrap() == cut, "{what}, in steps of {step}");
            all.extend_from_slice(bytes);
        };
        piece(&odd, &data, &odd, "it is the same");
        piece(&odd, &changed, &otherwise, "its first chunk has changed");
        piece(
            &odd[..3],
            &data,
            &[&odd[..3], &cut_plainly(&world, &data[end_of(&odd[..3])..])].concat(),
            "it is longer",
        );
        piece(&lies(odd[0].1 + 1), &data, &plainly, "a length that lies");
        for length in [0, 1, u32::MAX] {
            piece(&lies(length), &data, &plainly, "a length that lies more");
        }
        // What was still expected is not when the next one begins.
        piece(&odd, &data[..end_of(&odd[..2])], &odd[..2], "it is shorter");
        let rest = &data[end_of(&odd[..2])..];
        rest.chunks(step).for_each(|part| stream.write_all(part).unwrap());
        assert!(stream.end_piece().unwrap() == cut_plainly(&world, rest), "nothing is expected any more");
        all.extend_from_slice(rest);
        expected.push(all);
        entries.push(world::stream_entry(&name, stream.finish().unwrap()));
    }
    let draft = world::draft(writer.sequence(), vec![world::source_entry("files", entries)]);
    writer.commit(draft, &world.host_key).unwrap();
    let read = world.read(world.chain().all().next().unwrap());
    assert!(read.iter().map(|(_, bytes)| bytes).eq(&expected));

    // A piece is taken over if every chunk of it is there with its length, and what is refused leaves no trace.
    let writer = world.writer(&world.open()).unwrap();
    let mut stream = writer.stream("files", "again", StreamKind::Tar, None);
    assert!(stream.reuse_piece(&odd[..2]).unwrap());
    let unknown = (world.host_key.chunk_id_key().id(b"unknown"), 7);
    for wrong in [[odd[2], (odd[3].0, odd[3].1 - 1)], [odd[2], (odd[3].0, odd[3].1 + 1)], [odd[2], unknown]] {
        assert!(!stream.reuse_piece(&wrong).unwrap() && !stream.reuse_part(&wrong).unwrap(), "{wrong:?}");
    }
    assert_eq!(stream.position() as usize, end_of(&odd[..2]));
    assert!(stream.reuse_part(&odd[2..3]).unwrap());
    stream.write_all(b"and more").unwrap();
    assert_eq!(stream.end_piece().unwrap().len(), 2);
    let entry = world::source_entry("files", vec![world::stream_entry("again", stream.finish().unwrap())]);
    let draft = world::draft(writer.sequence(), vec![entry]);
    writer.commit(draft, &world.host_key).unwrap();
    let read = world.read(world.chain().all().next_back().unwrap());
    assert!(read[0].1 == [&data[..end_of(&odd[..3])], b"and more"].concat());
}

fn end_of(chunks: &[(ChunkId, u32)]) -> usize {
    chunks.iter().map(|(_, length)| *length as usize).sum()
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
