//! Headers and records are fetched many at once, and once only by a host that remembers; what it remembers is never
//! believed over the storage, nor over a revocation, and hides no damage from whoever looks for it.

#[path = "cli/world.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of this file")]
mod cli;
#[path = "support/rigged.rs"]
mod rigged;
#[path = "support/world.rs"]
mod world;

use lifeboat::base::ids::ObjectId;
use lifeboat::ops::access::{Access, AccessRequest};
use lifeboat::pipeline::crypt::object_id;
use lifeboat::pipeline::sign::{Namespace, SigningKey};
use lifeboat::repository::chain::{Chain, Snapshot};
use lifeboat::repository::format::{LastGood, Role, SignerAction};
use lifeboat::repository::{garbage, layout};
use lifeboat::storage::{MemoryStorage, Storage, StorageKey};
use rigged::Rigged;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use world::World;

/// A snapshot and `more` headers that follow it, signed as the host signs.
fn long_line(more: u64) -> World {
    let world = World::memory();
    world.snapshot(&[("a", b"one")]);
    let first = world.chain().all().next().unwrap().clone();
    let bytes = world.get(&first.key);
    let mut header: Value = serde_json::from_slice(&bytes[..bytes.iter().position(|b| *b == b'\n').unwrap()]).unwrap();
    let mut previous = first.header_id;
    for sequence in 2..=more + 1 {
        header["sequence"] = json!(sequence);
        header["id"] = json!(format!("20261121T{sequence:06}Z-12345678"));
        header["previous"] = json!(previous);
        let bytes = world.host_key.signing.sign(Namespace::Snapshot, &header.to_string()).unwrap();
        let key = format!("snapshots/web-1/shop/{sequence:010}.20261121T{sequence:06}Z-12345678.json");
        world.storage.put_new(&key.parse().unwrap(), &bytes).unwrap();
        previous = object_id(&bytes);
    }
    world
}

fn hold(world: &World, n: u64) -> StorageKey {
    let id = world.chain().all().next().unwrap().header.id.clone();
    let mut record = world.record(json!({ "note": "hold", "snapshot": id }));
    record["time"] = json!(format!("2026-11-21T10:00:{n:02}Z"));
    world.put_dated(layout::RECORDS, Namespace::Record, &world.host_key.signing, &record)
}

/// The world over a storage that counts, and what it counted.
fn counted(world: &World) -> (World, Arc<Rigged>) {
    let rigged = Arc::new(Rigged::new(world.storage.clone()));
    (world.over(rigged.clone()), rigged)
}

/// What a command that reads sees, and how many headers and records it fetched.
fn look(world: &World) -> (Chain, usize) {
    let (world, rigged) = counted(world);
    let request = AccessRequest { remembered: true, ..AccessRequest::default() };
    let access = Access::of(world.open(), None, Some(world.state.clone()), &request).unwrap();
    let reads = rigged.reads.lock().unwrap();
    let is_ours = |key: &&String| key.starts_with(layout::SNAPSHOTS) || key.starts_with(layout::RECORDS);
    (access.chain, reads.iter().filter(is_ours).count())
}

fn ids(chain: &Chain) -> Vec<ObjectId> {
    chain.all().map(|s| s.header_id).collect()
}

fn cache_file(world: &World) -> PathBuf {
    let cache = world.state.index_cache(world.open().id());
    let mut entries = fs::read_dir(cache.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.extension().is_some_and(|e| e == "db")).unwrap()
}

#[test]
fn what_was_verified_is_not_fetched_again() {
    let world = long_line(20);
    hold(&world, 1);
    let fresh = world.chain();
    let (chain, fetched) = look(&world);
    assert_eq!((ids(&chain), fetched), (ids(&fresh), 22), "the first look reads everything");
    let (chain, fetched) = look(&world);
    assert_eq!((ids(&chain), fetched), (ids(&fresh), 0));
    assert!(chain.problems.is_empty() && chain.all().next().unwrap().held);
    // What is new is fetched, and only that.
    world.snapshot(&[("a", b"two")]);
    hold(&world, 2);
    assert_eq!(look(&world).1, 2);
    assert_eq!(look(&world).1, 0);
    // Another state folder remembers nothing, and a stranger has none.
    assert_eq!(look(&world.forgetful()).1, 24);
}

#[test]
fn a_snapshot_reads_only_its_own_header_back() {
    let world = cli::World::with_snapshot();
    for _ in 0..3 {
        world.run(&["snapshot"]).exits(0);
    }
    world.run(&["list"]).exits(0);
    // The headers of before are damaged where only a fetch would see it: same length, same time.
    let headers = world.files("state/repository/snapshots");
    for (path, bytes) in &headers {
        let modified = fs::metadata(path).unwrap().modified().unwrap();
        let mut bytes = bytes.clone();
        bytes[40] ^= 1;
        fs::write(path, bytes).unwrap();
        fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    }
    world.run(&["list"]).exits(0);
    world.run(&["snapshot"]).exits(0);
    // Whoever looks for damage sees all of it.
    let verified = world.json(&["verify"]);
    assert_eq!(verified["exit_code"], 4);
    for (path, _) in &headers {
        let key = path.strip_prefix(world.repository()).unwrap().to_str().unwrap();
        let named = verified["findings"].as_array().unwrap().iter().any(|f| f["object"] == key);
        assert!(named, "{key}: {verified:#}");
    }
}

#[test]
fn what_is_listed_otherwise_than_remembered_is_read() {
    let world = long_line(3);
    look(&world);
    let key = world.chain().all().nth(1).unwrap().key.clone();
    let bytes = world.get(&key);
    // Longer; then as long as before, but of another time.
    let mut changed = bytes.clone();
    changed[40] ^= 1;
    for now in [[&bytes[..], b"\n"].concat(), changed] {
        world.set(&key, &now);
        let (chain, fetched) = look(&world);
        assert_eq!((chain.problems.iter().filter(|p| p.key == key).count(), fetched), (1, 1));
    }
    // What is gone from the storage is gone, whatever is remembered.
    world.delete(&key);
    let (chain, _) = look(&world);
    assert!(ids(&chain).len() == 3 && chain.problems[0].problem.contains("is gone"), "{:?}", chain.problems);
    let db = rusqlite::Connection::open(cache_file(&world)).unwrap();
    let rows: usize = db.query_row("select count(*) from objects", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 3, "what is no longer listed is forgotten");
}

#[test]
fn a_torn_or_spoilt_cache_costs_a_read_and_nothing_else() {
    let world = long_line(5);
    look(&world);
    let fresh = ids(&world.chain());
    let db = rusqlite::Connection::open(cache_file(&world)).unwrap();
    for damage in [
        "update objects set bytes = substr(bytes, 1, 100)",
        "update objects set bytes = zeroblob(length)",
        "update objects set hash = zeroblob(32)",
        "update objects set hash = zeroblob(5)",
        "update objects set last_good = 'nonsense'",
        "update objects set signers = zeroblob(32), bytes = zeroblob(length)",
    ] {
        db.execute(damage, []).unwrap();
        let (chain, fetched) = look(&world);
        assert_eq!((ids(&chain), fetched, chain.problems.len()), (fresh.clone(), 6, 0), "{damage}");
        assert_eq!(look(&world).1, 0, "{damage}: kept anew");
    }
    drop(db);
    for garbage in [&b"garbage"[..], &[0; 8192]] {
        fs::write(cache_file(&world), garbage).unwrap();
        assert_eq!(ids(&look(&world).0), fresh);
        assert_eq!(look(&world).1, 0, "made anew");
    }
    // A folder where the file should be.
    let file = cache_file(&world);
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", file.display()));
    }
    fs::create_dir(&file).unwrap();
    assert_eq!((ids(&look(&world).0), look(&world).1), (fresh, 6));
}

#[test]
fn a_revocation_counts_for_what_is_remembered_too() {
    let world = long_line(5);
    let thief = SigningKey::from_seed(&[55; 32]);
    world.vouch(&thief, Role::Snapshot);
    let id = world.chain().all().next().unwrap().header.id.clone();
    let record = world.record(json!({ "note": "hold", "snapshot": id }));
    world.put_dated(layout::RECORDS, Namespace::Record, &thief, &record);
    assert!(look(&world).0.all().next().unwrap().held && look(&world).1 == 0);
    world.add_signer(&thief, SignerAction::Revoke { last_good: vec![] });
    let (chain, fetched) = look(&world);
    assert!(!chain.all().next().unwrap().held, "what the revoked key signed is no longer believed");
    assert_eq!((chain.problems.len(), fetched, chain.all().count()), (1, 1, 6), "the rest is checked as remembered");
    world.add_signer(&world.host_key.signing, SignerAction::Revoke { last_good: vec![] });
    assert_eq!(look(&world).0.all().count(), 0);
}

/// A stolen key, revoked: headers below the last good one count only where that one leads down to them.
#[test]
fn below_the_last_good_header_a_revoked_key_forges_nothing() {
    let world = long_line(5);
    let own = &world.host_key.signing;
    let all: Vec<Snapshot> = world.chain().all().cloned().collect();
    // What follows the last good one is refused; so last_good is the fifth of six.
    let last_good = LastGood {
        host: world::host(),
        policy: "shop".parse().unwrap(),
        sequence: all[4].header.sequence,
        header: all[4].header_id,
    };
    world.delete(&all[5].key);
    look(&world);
    world.add_signer(own, SignerAction::Revoke { last_good: vec![last_good] });
    // Fresh, as remembered before the revocation, and as remembered after it: the same.
    let sees = |world: &World, snapshots: &[u64], problems: &[(&StorageKey, &str)]| {
        for _ in 0..2 {
            for chain in [world.chain(), look(world).0] {
                let found: Vec<u64> = chain.all().map(|s| s.header.sequence.0).collect();
                assert_eq!(found, snapshots, "{:?}", chain.problems);
                assert_eq!(chain.problems.len(), problems.len(), "{:?}", chain.problems);
                for (key, text) in problems {
                    let named = |p: &lifeboat::repository::chain::ChainProblem| {
                        p.key.as_str().starts_with(key.as_str()) && p.problem.contains(text)
                    };
                    assert!(chain.problems.iter().any(named), "{key} {text}: {:?}", chain.problems);
                }
                assert!(chain.all().all(|s| !s.forked));
            }
        }
    };
    sees(&world, &[1, 2, 3, 4, 5], &[]);
    let forge = |world: &World, sequence: u64| {
        let bytes = world.get(&all[1].key);
        let mut header: Value =
            serde_json::from_slice(&bytes[..bytes.iter().position(|b| *b == b'\n').unwrap()]).unwrap();
        header["sequence"] = json!(sequence);
        header["id"] = json!("20261122T000000Z-0badbad0");
        header["previous"] = json!(all[sequence as usize - 2].header_id);
        let key: StorageKey =
            format!("snapshots/web-1/shop/{sequence:010}.20261122T000000Z-0badbad0.json").parse().unwrap();
        world.set(&key, &own.sign(Namespace::Snapshot, &header.to_string()).unwrap());
        key
    };
    // Beside the true one, which is no fork then; and in its place.
    let copy = world.copy();
    let forged = forge(&copy, 3);
    sees(&copy, &[1, 2, 3, 4, 5], &[(&forged, "it is forged")]);
    copy.delete(&all[2].key);
    let open = "it may be forged";
    sees(&copy, &[1, 2, 4, 5], &[(&forged, "it is forged"), (&all[0].key, open), (&all[1].key, open)]);
    // Where one between is gone, nothing tells the true ones below from forged ones: they stay, and it is said.
    let copy = world.copy();
    copy.delete(&all[2].key);
    let gap = layout::header_prefix(&world::host(), &"shop".parse().unwrap(), lifeboat::base::ids::Sequence(3));
    sees(&copy, &[1, 2, 4, 5], &[(&gap, "is gone"), (&all[0].key, open), (&all[1].key, open)]);
    // A prune record leads across what it removed.
    let pruner = SigningKey::from_seed(&[77; 32]);
    world.vouch(&pruner, Role::Prune);
    let prune = |copy: &World, at: usize, previous: Value| {
        copy.delete(&all[at].key);
        let mut removed = json!({ "sequence": at + 1, "header": all[at].header_id });
        if !previous.is_null() {
            removed["previous"] = previous;
        }
        let record = copy.record(json!({ "note": "prune", "removed": [removed] }));
        copy.put_dated(layout::RECORDS, Namespace::Record, &pruner, &record);
    };
    let copy = world.copy();
    prune(&copy, 2, json!(all[2].header.previous));
    sees(&copy, &[1, 2, 4, 5], &[]);
    let forged = forge(&copy, 2);
    sees(&copy, &[1, 2, 4, 5], &[(&forged, "it is forged")]);
    copy.delete(&forged);
    let forged = forge(&copy, 3);
    sees(&copy, &[1, 2, 4, 5], &[(&forged, "it is forged")]);
    let copy = world.copy();
    prune(&copy, 2, Value::Null);
    sees(&copy, &[1, 2, 4, 5], &[(&all[0].key, open), (&all[1].key, open)]);
    // The last good one itself may have been pruned.
    let copy = world.copy();
    prune(&copy, 4, json!(all[4].header.previous));
    sees(&copy, &[1, 2, 3, 4], &[]);
}

/// Decrypted index objects are kept only as long as the repository has them.
#[test]
fn the_index_cache_is_tidied() {
    let world = cli::World::with_snapshot();
    world.run(&["snapshot"]).exits(0);
    let cached = || -> Vec<PathBuf> {
        let files = world.files("state/cache").into_iter().map(|(path, _)| path);
        files.filter(|path| path.extension().is_some_and(|e| e == "index")).collect()
    };
    let kept = cached();
    assert!(!kept.is_empty());
    let gone = kept[0].with_file_name(format!("{}.index", "ab".repeat(32)));
    fs::copy(&kept[0], &gone).unwrap();
    fs::write(kept[0].with_file_name("notes.txt"), "not ours").unwrap();
    world.run(&["verify"]).exits(0);
    assert_eq!(cached(), kept);
    assert!(kept[0].with_file_name("notes.txt").exists());
}

/// Records that are too long to be read many at once.
#[test]
fn long_records_are_read_one_by_one_and_right() {
    let world = long_line(2);
    let pruner = SigningKey::from_seed(&[77; 32]);
    world.vouch(&pruner, Role::Prune);
    let removed: Vec<Value> =
        (0..4_000).map(|n| json!({ "sequence": 4 + n, "header": ObjectId([n as u8; 32]) })).collect();
    let key = world.put_dated(
        layout::RECORDS,
        Namespace::Record,
        &pruner,
        &world.record(json!({ "note": "prune", "removed": removed })),
    );
    assert!(world.get(&key).len() > 300_000);
    for fetched in [4, 1, 1] {
        let (chain, reads) = look(&world);
        assert_eq!((chain.pruned(chain.lines().first().unwrap()).len(), reads), (4_000, fetched));
    }
}

/// A storage that takes a while to answer, as an object store does.
struct Slow {
    inner: Arc<dyn Storage>,
    /// What is slow: reads below this prefix.
    prefix: &'static str,
    at_once: AtomicUsize,
    most: AtomicUsize,
}

impl Slow {
    fn new(world: &World, prefix: &'static str) -> Arc<Self> {
        let inner = world.storage.clone();
        Arc::new(Self { inner, prefix, at_once: AtomicUsize::new(0), most: AtomicUsize::new(0) })
    }
}

impl Storage for Slow {
    fn describe(&self) -> String {
        "slow".into()
    }
    fn put_new(
        &self,
        key: &StorageKey,
        bytes: &[u8],
    ) -> Result<lifeboat::storage::Put, lifeboat::storage::StorageError> {
        self.inner.put_new(key, bytes)
    }
    fn get(&self, key: &StorageKey, limit: u64) -> Result<Vec<u8>, lifeboat::storage::StorageError> {
        if key.as_str().starts_with(self.prefix) {
            let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            // A thread may take a while to begin: the first wait until as many are here as may be.
            let begun = Instant::now();
            while self.most.load(Ordering::SeqCst) < 32 && begun.elapsed() < Duration::from_secs(1) {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(Duration::from_millis(40));
            self.at_once.fetch_sub(1, Ordering::SeqCst);
        }
        self.inner.get(key, limit)
    }
    fn get_range(&self, key: &StorageKey, offset: u64, n: u64) -> Result<Vec<u8>, lifeboat::storage::StorageError> {
        self.inner.get_range(key, offset, n)
    }
    fn list(&self, prefix: &str) -> Result<Vec<lifeboat::storage::ObjectInfo>, lifeboat::storage::StorageError> {
        self.inner.list(prefix)
    }
    fn head(&self, key: &StorageKey) -> Result<Option<lifeboat::storage::ObjectInfo>, lifeboat::storage::StorageError> {
        self.inner.head(key)
    }
    fn delete(&self, key: &StorageKey) -> Result<(), lifeboat::storage::StorageError> {
        self.inner.delete(key)
    }
    fn clock(&self) -> Result<chrono::DateTime<chrono::Utc>, lifeboat::storage::StorageError> {
        self.inner.clock()
    }
}

#[test]
fn headers_are_fetched_many_at_once_and_come_in_order() {
    let world = long_line(159);
    let slow = Slow::new(&world, layout::SNAPSHOTS);
    let repository = world.over(slow.clone()).open();
    let begun = Instant::now();
    let chain = Chain::load(&repository).unwrap();
    // 160 × 40 ms one after the other would be 6.4 s.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(slow.most.load(Ordering::SeqCst), 32, "and no more than that at once");
    assert_eq!(ids(&chain), ids(&world.chain()));
    assert!(chain.problems.is_empty() && chain.all().count() == 160);
}

#[test]
fn refs_are_fetched_many_at_once_by_verify_and_prune() {
    let world = World::memory();
    for n in 0..40u8 {
        world.snapshot(&[("a", &[n; 100])]);
    }
    let slow = Slow::new(&world, layout::REFS);
    assert!(world.over(slow.clone()).verify(world::OBJECTS).unwrap().findings.is_empty());
    assert_eq!(slow.most.swap(0, Ordering::SeqCst), 32);
    let repository = world.over(slow.clone()).open();
    let chain = world.chain();
    let cancel = Default::default();
    let needed = garbage::referenced(&repository, chain.all(), &cancel).unwrap();
    assert_eq!(slow.most.load(Ordering::SeqCst), 32);
    // Manifests, refs, archives and index objects: everything that is there but the signed ones.
    let stored = garbage::stored(&world.open()).unwrap();
    assert!(stored.len() >= 160 && stored.iter().all(|object| needed.contains(&object.id)));
    // One that is gone is an error, never a snapshot that needs nothing.
    world.delete(&layout::refs(chain.all().nth(20).unwrap().header.refs));
    assert!(garbage::referenced(&repository, chain.all(), &cancel).unwrap_err().is_integrity());
}

/// A storage that fails is a failure, not a chain with holes.
#[test]
fn a_read_that_fails_is_no_gap() {
    let world = long_line(30);
    let failing = Rigged::new(world.storage.clone())
        .on_read(|key| key.as_str().contains("0000000017.").then_some(std::io::ErrorKind::TimedOut));
    let repository = world.over(Arc::new(failing)).open();
    assert!(!Chain::load(&repository).err().unwrap().is_integrity());
    let nothing = Arc::new(MemoryStorage::new());
    assert!(world.over(nothing).try_open().is_err());
}
