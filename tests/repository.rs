//! The repository's own round trip: streams in, streams out, and what later runs do not store again.

use lifeboat::base::cancel::Cancel;
use lifeboat::base::ids::{HostName, Sequence, SnapshotId};
use lifeboat::base::stream::StreamKind;
use lifeboat::pipeline::crypt::Recipients;
use lifeboat::pipeline::sign::SigningKey;
use lifeboat::repository::chain::{Chain, Snapshot, resolve};
use lifeboat::repository::format::{
    Encoding, Outcome, Role, SignerAction, SourceEntry, SourceOutcome, StreamEntry, Trigger,
};
use lifeboat::repository::keys::{HostKey, IdentityFile};
use lifeboat::repository::reader::{ReaderOptions, SnapshotReader};
use lifeboat::repository::state::State;
use lifeboat::repository::trust::Pin;
use lifeboat::repository::writer::{Committed, SnapshotDraft, SnapshotWriter, WriterOptions};
use lifeboat::repository::{Repository, RepositoryError};
use lifeboat::storage::{LocalStorage, MemoryStorage, Storage};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::sync::Arc;

struct World {
    dir: tempfile::TempDir,
    storage: Arc<dyn Storage>,
    identity: IdentityFile,
    host_key: HostKey,
    state: Arc<State>,
}

fn host() -> HostName {
    "web-1".parse().unwrap()
}

impl World {
    fn new(storage: Arc<dyn Storage>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = IdentityFile::create(&dir.path().join("identity.txt"), chrono::Utc::now()).unwrap();
        let host_key = HostKey::create(&dir.path().join("host.key"), identity.repository.clone()).unwrap();
        let root = identity.root_key_of(identity.repository.as_ref().unwrap()).unwrap();
        let mut repository = Repository::create(storage.clone(), &root, chrono::Utc::now()).unwrap();
        vouch(&mut repository, &root, &host_key);
        let state = Arc::new(State::open(&dir.path().join("state")).unwrap());
        Self { dir, storage, identity, host_key, state }
    }

    fn open(&self) -> Arc<Repository> {
        Arc::new(Repository::open(self.storage.clone(), &Pin::Derived(self.identity.possible_repositories())).unwrap())
    }

    fn recipients(&self) -> Recipients {
        Recipients::parse(&[self.identity.first().unwrap().recipient()]).unwrap()
    }

    fn writer(&self, repository: &Arc<Repository>) -> Result<SnapshotWriter, RepositoryError> {
        let chain = Chain::load(repository)?;
        let options = WriterOptions {
            host: host(),
            policy: "shop".parse().unwrap(),
            recipients: self.recipients(),
            compression: 3,
            cancel: Cancel::new(),
        };
        SnapshotWriter::begin(repository.clone(), &chain, &self.host_key, self.state.clone(), options)
    }

    fn snapshot(&self, streams: &[(&str, &[u8])]) -> Committed {
        let repository = self.open();
        let writer = self.writer(&repository).unwrap();
        let sequence = writer.sequence();
        let entries = streams.iter().map(|(name, bytes)| {
            let mut stream = writer.stream("files", name, None, true);
            for part in bytes.chunks(10_007) {
                stream.write_all(part).unwrap();
            }
            let parts = stream.finish().unwrap();
            StreamEntry {
                name: name.parse().unwrap(),
                kind: StreamKind::Raw,
                encoding: Encoding::Plain,
                length: parts.length,
                sha256: parts.sha256,
                chunk_average: parts.average.bytes(),
                ids: parts.ids,
            }
        });
        let source = SourceEntry {
            name: "files".parse().unwrap(),
            kind: "files".into(),
            outcome: SourceOutcome::Complete,
            error: None,
            warnings: vec![],
            streams: entries.collect(),
            facts: serde_json::json!({}),
        };
        let draft = SnapshotDraft {
            id: id(sequence),
            time: chrono::Utc::now(),
            tags: vec![],
            trigger: Trigger::Manual,
            git_commit: None,
            outcome: Outcome::Complete,
            sources: vec![source],
            stream_notes: vec![],
        };
        writer.commit(draft, &self.host_key).unwrap()
    }

    fn read(&self, snapshot: &Snapshot) -> Vec<(String, Vec<u8>)> {
        let reader = self.reader(snapshot);
        let source = &reader.manifest.sources[0];
        let read = |stream: &StreamEntry| {
            let mut bytes = Vec::new();
            reader.stream(source, stream, 0).unwrap().read_to_end(&mut bytes).unwrap();
            (stream.name.to_string(), bytes)
        };
        source.streams.iter().map(read).collect()
    }

    fn reader(&self, snapshot: &Snapshot) -> SnapshotReader {
        let identities = IdentityFile::load(&self.dir.path().join("identity.txt")).unwrap().identities;
        let options = ReaderOptions {
            identities: Arc::new(identities),
            index_cache: None,
            tmp: self.dir.path().to_owned(),
            cancel: Cancel::new(),
        };
        SnapshotReader::open(self.open(), snapshot, options).unwrap()
    }

    fn chain(&self) -> Chain {
        Chain::load(&self.open()).unwrap()
    }
}

fn vouch(repository: &mut Repository, root: &SigningKey, host_key: &HostKey) {
    let action = SignerAction::Add { role: Role::Snapshot, hosts: vec![host()] };
    repository.add_signer(root, &host_key.signing.public(), action, chrono::Utc::now()).unwrap();
}

fn id(sequence: Sequence) -> SnapshotId {
    format!("20261121T{:06}Z-0000000{}", sequence.0, sequence.0 % 10).parse().unwrap()
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn streams_come_back_and_known_bytes_are_not_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let local = LocalStorage::new(dir.path().join("repo"), lifeboat::storage::local::Reserve::Bytes(0));
    let world = World::new(Arc::new(local));
    // More than 1,024 chunks, so that the ids tree has depth.
    let large = noise(1, 40 << 20);
    let small = b"a small stream".to_vec();
    let first = world.snapshot(&[("large", &large), ("small", &small), ("empty", b"")]);
    assert!(first.header.bytes_new > 40 << 20);
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
    let world = World::new(Arc::new(MemoryStorage::new()));
    let large = noise(2, 60 << 20);
    let repository = world.open();
    let writer = world.writer(&repository).unwrap();
    let mut stream = writer.stream("files", "large", None, true);
    stream.write_all(&large).unwrap();
    drop(stream);
    drop(writer);
    assert_eq!(world.chain().all().count(), 0, "no header, no snapshot");
    world.snapshot(&[("large", &large)]);
    assert!(world.read(world.chain().all().next().unwrap())[0].1 == large);
}

#[test]
fn a_host_without_a_signer_is_refused_and_so_is_another_root() {
    let world = World::new(Arc::new(MemoryStorage::new()));
    let other = World::new(Arc::new(MemoryStorage::new()));
    let pin = Pin::Derived(other.identity.possible_repositories());
    assert!(matches!(Repository::open(world.storage.clone(), &pin), Err(RepositoryError::Unpinned { .. })));
    let pin = Pin::Exactly(other.identity.repository.clone().unwrap());
    assert!(matches!(Repository::open(world.storage.clone(), &pin), Err(RepositoryError::ForeignRepository { .. })));
    let stranger = World { host_key: HostKey::create(&other.dir.path().join("k2"), None).unwrap(), ..world };
    let repository = stranger.open();
    assert!(matches!(stranger.writer(&repository), Err(RepositoryError::NotASigner { .. })));
}

#[test]
fn a_deleted_newest_snapshot_is_noticed() {
    let world = World::new(Arc::new(MemoryStorage::new()));
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
        let world = World::new(Arc::new(MemoryStorage::new()));
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
