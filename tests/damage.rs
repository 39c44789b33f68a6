//! Every kind of damage to every kind of object: found at the weakest level that can see it, named, and no more lost
//! than what the object held.
//!
//! The repository: snapshot 1 (pruned: its record stands for it), 2 with `db`, 3 with `db` and `files`, 4 with a changed
//! `db` and the same `files`. The two sources share no archive.

#[path = "support/world.rs"]
mod world;

use lifeboat::base::ids::ObjectId;
use lifeboat::ops::ErrorKind;
use lifeboat::ops::verify::{Finding, Level, VerifyReport};
use lifeboat::pipeline::sign::{Namespace, SigningKey};
use lifeboat::repository::chain::Snapshot;
use lifeboat::repository::format::{CheckCounts, DrillObject, DrillOutcome, FORMAT, Role};
use lifeboat::repository::reader::load_refs;
use lifeboat::repository::{RepositoryError, layout};
use lifeboat::storage::StorageKey;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use world::{DEEP, OBJECTS, READ_DATA, World, noise};

/// The undamaged repository, and what its sources hold. Made once, copied for each case.
struct Good {
    world: World,
    db: [Vec<u8>; 2],
    files: Vec<u8>,
    prune_record: StorageKey,
    tag_record: StorageKey,
}

fn prune_key() -> SigningKey {
    SigningKey::from_seed(&[77; 32])
}

/// For tests that change nothing but copies of the storage: the state is common to all copies.
fn good() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(build)
}

fn build() -> Good {
    let world = World::memory();
    world.vouch(&prune_key(), Role::Prune);
    let first = world.snapshot(&[("old", b"of no use any more")]);
    let db = noise(1, 3 << 20);
    let mut changed = db.clone();
    changed[1_000_000..1_200_000].copy_from_slice(&noise(2, 200_000));
    let files = noise(3, 2 << 20);
    world.take("shop", &[("db", &[("dump", &db)])]).unwrap();
    world.take("shop", &[("db", &[("dump", &db)]), ("files", &[("tree", &files)])]).unwrap();
    world.take("shop", &[("db", &[("dump", &changed)]), ("files", &[("tree", &files)])]).unwrap();

    let removed = serde_json::json!([{ "sequence": 1, "header": first.header_id }]);
    let record = world.record(serde_json::json!({ "note": "prune", "removed": removed }));
    let prune_record = world.put_dated(layout::RECORDS, Namespace::Record, &prune_key(), &record);
    let tag =
        serde_json::json!({ "note": "tag", "snapshot": world::id(lifeboat::base::ids::Sequence(2)), "tag": "v1" });
    let record = world.record(tag);
    let tag_record = world.put_dated(layout::RECORDS, Namespace::Record, &world.host_key.signing, &record);
    world.delete(&world.keys(layout::SNAPSHOTS)[0]);
    Good { world, db: [db, changed], files, prune_record, tag_record }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    FlipMiddle,
    FlipFirst,
    FlipLast,
    Truncate,
    Extend,
    Empty,
    Swap,
    Replay,
    Delete,
}

const ACTIONS: [Action; 9] = [
    Action::FlipMiddle,
    Action::FlipFirst,
    Action::FlipLast,
    Action::Truncate,
    Action::Extend,
    Action::Empty,
    Action::Swap,
    Action::Replay,
    Action::Delete,
];

/// Damages `key`. `other` is another object of the kind, `older` bytes that were valid once in such a place.
fn damage(world: &World, action: Action, key: &StorageKey, other: &StorageKey, older: &[u8]) {
    let mut bytes = world.get(key);
    match action {
        Action::FlipMiddle => {
            let at = bytes.len() / 2;
            bytes[at] ^= 0x10;
        }
        Action::FlipFirst => bytes[0] ^= 1,
        Action::FlipLast => *bytes.last_mut().unwrap() ^= 0x04,
        Action::Truncate => bytes.truncate(bytes.len() * 2 / 3),
        Action::Extend => bytes.extend_from_slice(b"\n"),
        Action::Empty => bytes.clear(),
        Action::Swap => {
            let theirs = world.get(other);
            world.set(other, &bytes);
            bytes = theirs;
        }
        Action::Replay => bytes = older.to_vec(),
        Action::Delete => return world.delete(key),
    }
    world.set(key, &bytes);
}

/// The weakest level that finds anything; with the finding about `key`, which must be there.
fn found(world: &World, key: &StorageKey) -> (Level, VerifyReport, Finding) {
    for level in [OBJECTS, READ_DATA, DEEP] {
        let report = world.verify(level).unwrap();
        if report.findings.is_empty() {
            assert_eq!(report.failure(), None);
            continue;
        }
        assert_eq!(report.failure(), Some(ErrorKind::Integrity));
        let finding = report.findings.iter().find(|f| f.object == key.as_str()).cloned();
        let finding = finding.unwrap_or_else(|| panic!("{key} is not among {:?}", report.findings));
        return (level, report, finding);
    }
    panic!("damage to {key} goes unnoticed");
}

fn sequences(finding: &Finding) -> Vec<u64> {
    finding.snapshots.iter().map(|id| id.as_str()[9..15].parse().unwrap()).collect()
}

/// What every source of every snapshot reads as: its own bytes, or the error.
fn expect_reads(world: &World, good: &Good, may_fail: &dyn Fn(u64, &str) -> Option<StorageKey>) {
    let chain = world.chain();
    for snapshot in chain.all() {
        let sequence = snapshot.header.sequence.0;
        let names: &[&str] = if sequence == 2 { &["db"] } else { &["db", "files"] };
        for name in names {
            let expected = match (*name, sequence) {
                ("db", 4..) => &good.db[1],
                ("db", _) => &good.db[0],
                _ => &good.files,
            };
            let read = world.read_source(snapshot, name);
            match (read, may_fail(sequence, name)) {
                (Ok(bytes), _) => assert!(bytes == *expected, "{name} of snapshot {sequence} reads as other bytes"),
                (Err(e), Some(key)) => {
                    assert!(e.is_integrity(), "{e:?}");
                    assert_eq!(e.object(), Some(&key), "{e:?}");
                }
                (Err(e), None) => panic!("{name} of snapshot {sequence}: {e:?}"),
            }
        }
    }
}

fn reads_fail(world: &World, sequence: u64, name: &str) -> bool {
    let chain = world.chain();
    let snapshot = chain.all().find(|s| s.header.sequence.0 == sequence).unwrap();
    world.read_source(snapshot, name).is_err()
}

fn at(good: &Good, sequence: u64) -> Snapshot {
    good.world.chain().all().find(|s| s.header.sequence.0 == sequence).unwrap().clone()
}

/// The archives that hold `files`, and those of the first `db`.
fn archives(good: &Good) -> (Vec<StorageKey>, Vec<StorageKey>) {
    let refs = |n| load_refs(&good.world.open(), at(good, n).header.refs).unwrap().archives;
    let db: BTreeSet<_> = refs(2).into_keys().collect();
    let files: BTreeSet<_> = refs(3).into_keys().filter(|id| !db.contains(id)).collect();
    let keys = |ids: BTreeSet<_>| ids.into_iter().map(layout::archive).collect();
    (keys(files), keys(db))
}

#[test]
fn what_is_undamaged_has_no_finding() {
    let good = good();
    for level in [OBJECTS, READ_DATA, DEEP] {
        let report = good.world.verify(level).unwrap();
        assert!(report.findings.is_empty() && report.notes.is_empty(), "{level:?}: {report:?}");
        assert_eq!(report.snapshots, 3);
        // What only the pruned snapshot needed.
        assert_eq!(report.unreferenced.unwrap().objects, 4, "archive, index, refs and manifest of snapshot 1");
        let stored: u64 = good.world.storage.list("").unwrap().iter().map(|o| o.length).sum();
        match level {
            Level::Objects => assert!(report.bytes_read < 4000, "{}", report.bytes_read),
            _ => assert!(report.bytes_read > stored - 20_000, "{} of {stored}", report.bytes_read),
        }
    }
    expect_reads(&good.world, good, &|_, _| None);
}

#[test]
fn archives_cost_their_source_and_no_other() {
    let good = good();
    let (files, db) = archives(good);
    let (key, other) = (&files[0], &db[0]);
    let older = good.world.get(other);
    for action in ACTIONS {
        let world = good.world.copy();
        damage(&world, action, key, other, &older);
        let (level, _, finding) = found(&world, key);
        let same_length = world.storage.head(key).unwrap().map(|o| o.length) == Some(good.world.get(key).len() as u64);
        assert_eq!(level, if same_length { READ_DATA } else { OBJECTS }, "{action:?}");
        assert_eq!(sequences(&finding), [3, 4], "{action:?}");
        if action == Action::Swap {
            continue;
        }
        // With the identity at hand the source is named, at the same level and at the deepest.
        for level in [level, DEEP] {
            let report = world.verify_with_identity(level).unwrap();
            let [finding] = &report.findings[..] else { panic!("{action:?}: {:?}", report.findings) };
            let sources: Vec<&str> = finding.sources.iter().map(|s| s.as_str()).collect();
            // A header that nobody reads, since the index keeps it, and bytes behind the end cost nothing.
            let harmless = matches!(action, Action::FlipFirst | Action::Extend);
            assert_eq!(sources, if harmless { vec![] } else { vec!["files"] }, "{action:?} {level:?}");
        }
        expect_reads(&world, good, &|_, name| (name == "files").then(|| key.clone()));
        if matches!(
            action,
            Action::FlipMiddle | Action::FlipLast | Action::Truncate | Action::Empty | Action::Replay | Action::Delete
        ) {
            assert!(reads_fail(&world, 3, "files"), "{action:?}");
        }
    }
}

#[test]
fn index_objects_are_missed_by_verify_and_by_no_reader() {
    let good = good();
    let refs = |n| load_refs(&good.world.open(), at(good, n).header.refs).unwrap().index;
    let other = layout::index(*refs(2).keys().next().unwrap());
    let key = refs(3).into_keys().map(layout::index).find(|key| *key != other).unwrap();
    let older = good.world.get(&other);
    for action in ACTIONS {
        let world = good.world.copy();
        damage(&world, action, &key, &other, &older);
        let (level, _, finding) = found(&world, &key);
        let same_length =
            world.storage.head(&key).unwrap().map(|o| o.length) == Some(good.world.get(&key).len() as u64);
        assert_eq!(level, if same_length { READ_DATA } else { OBJECTS }, "{action:?}");
        assert_eq!(sequences(&finding), [3, 4], "{action:?}");
        assert!(world.verify(DEEP).unwrap().findings.iter().all(|f| f.sources.is_empty()), "no source is lost");
        expect_reads(&world, good, &|_, _| None);
    }
}

#[test]
fn refs_cost_the_snapshots_that_name_them() {
    let good = good();
    let (key, other) = (layout::refs(at(good, 4).header.refs), layout::refs(at(good, 2).header.refs));
    let older = good.world.get(&other);
    for action in ACTIONS {
        let world = good.world.copy();
        damage(&world, action, &key, &other, &older);
        let (level, report, finding) = found(&world, &key);
        assert_eq!(level, OBJECTS, "{action:?}");
        assert_eq!(sequences(&finding), [4], "{action:?}");
        let swapped = action == Action::Swap;
        assert_eq!(report.findings.len(), 1 + usize::from(swapped), "{:?}", report.findings);
        expect_reads(&world, good, &|n, _| match n {
            4 => Some(key.clone()),
            2 if swapped => Some(other.clone()),
            _ => None,
        });
        assert!(reads_fail(&world, 4, "db") && !reads_fail(&world, 3, "db"));
    }
}

#[test]
fn manifests_cost_their_snapshot() {
    let good = good();
    let (key, other) = (layout::manifest(at(good, 4).header.manifest), layout::manifest(at(good, 3).header.manifest));
    let older = good.world.get(&other);
    for action in ACTIONS {
        let world = good.world.copy();
        damage(&world, action, &key, &other, &older);
        let (level, _, finding) = found(&world, &key);
        let same_length =
            world.storage.head(&key).unwrap().map(|o| o.length) == Some(good.world.get(&key).len() as u64);
        assert_eq!(level, if same_length { READ_DATA } else { OBJECTS }, "{action:?}");
        assert_eq!(sequences(&finding), [4], "{action:?}");
        let swapped = action == Action::Swap;
        expect_reads(&world, good, &|n, _| match n {
            4 => Some(key.clone()),
            3 if swapped => Some(other.clone()),
            _ => None,
        });
        assert!(reads_fail(&world, 4, "db") && !reads_fail(&world, 2, "db"));
    }
}

#[test]
fn headers_are_the_snapshots() {
    let good = good();
    let (key, other) = (at(good, 3).key, at(good, 2).key);
    let older = good.world.get(&other);
    for action in ACTIONS {
        let world = good.world.copy();
        damage(&world, action, &key, &other, &older);
        let gone: StorageKey =
            layout::header_prefix(&world::host(), &"shop".parse().unwrap(), lifeboat::base::ids::Sequence(3));
        let (level, _, finding) = found(&world, if action == Action::Delete { &gone } else { &key });
        assert_eq!(level, OBJECTS, "{action:?}");
        assert!(action == Action::Delete || sequences(&finding) == [3], "{action:?}: {finding:?}");
        // A snapshot exists if and only if its header does; the others read as before.
        let chain = world.chain();
        let there: Vec<u64> = chain.all().map(|s| s.header.sequence.0).collect();
        assert_eq!(there, if action == Action::Swap { vec![4] } else { vec![2, 4] }, "{action:?}");
        expect_reads(&world, good, &|_, _| None);
    }
}

#[test]
fn records_are_missed_where_something_hangs_on_them() {
    let good = good();
    let (key, other) = (&good.prune_record, &good.tag_record);
    let older = good.world.get(other);
    for action in ACTIONS {
        let world = good.world.copy();
        damage(&world, action, key, other, &older);
        let gap = layout::header_prefix(&world::host(), &"shop".parse().unwrap(), lifeboat::base::ids::Sequence(1));
        let (level, report, _) = found(&world, if action == Action::Delete { &gap } else { key });
        assert_eq!(level, OBJECTS, "{action:?}");
        assert!(report.findings.iter().any(|f| f.object == gap.as_str()), "snapshot 1 is unexplained: {report:?}");
        expect_reads(&world, good, &|_, _| None);
    }
    // The limit: nothing counts tags and holds, so that one of them was removed is not seen.
    let world = good.world.copy();
    world.delete(other);
    assert!(world.verify(OBJECTS).unwrap().findings.is_empty());
}

#[test]
fn without_root_and_signers_nothing_is_believed() {
    let good = good();
    let stranger = World::memory();
    let signers = [layout::signer(1), layout::signer(2)];
    let cases = [
        (layout::repository(), layout::signer(1), stranger.get(&layout::repository())),
        (signers[0].clone(), signers[1].clone(), stranger.get(&signers[0])),
        (signers[1].clone(), signers[0].clone(), good.world.get(&signers[0])),
    ];
    for (key, other, older) in cases {
        for action in ACTIONS {
            let world = good.world.copy();
            damage(&world, action, &key, &other, &older);
            let error = world.verify(OBJECTS).err().unwrap_or_else(|| panic!("{action:?} of {key} goes unnoticed"));
            let foreign = matches!(&error, lifeboat::ops::OpsError::Repository(RepositoryError::Unpinned { .. }));
            if foreign {
                // Another repository's: the pin says so.
                assert_eq!((action, &key), (Action::Replay, &layout::repository()));
                continue;
            }
            assert_eq!(error.kind(), ErrorKind::Integrity, "{action:?} of {key}: {error:?}");
            let text = error.to_string();
            let named = text.contains(key.as_str()) || (action == Action::Swap && text.contains(other.as_str()));
            assert!(named, "{action:?} of {key}: {text}");
        }
    }
}

/// A drill of the newest snapshot.
fn drilled(world: &World) {
    let chain = world.chain();
    let snapshot = chain.all().next_back().unwrap();
    world.vouch(&world.host_key.signing, Role::Drill);
    let repository = world.open();
    let drill = DrillObject {
        kind: "drill".into(),
        format: FORMAT,
        requires: Vec::new(),
        repository: repository.id().clone(),
        snapshot: snapshot.header.id.clone(),
        header: snapshot.header_id,
        host: world::host(),
        policy: "shop".parse().unwrap(),
        drilled_on: world::host(),
        time: world::run().now,
        outcome: DrillOutcome::Passed,
        checks: CheckCounts { passed: 1, failed: 0, skipped: 0 },
        seconds: 1.0,
        recovery_seconds: 1.0,
        details: ObjectId([0; 32]),
        details_bytes: 0,
        tool: "a test".into(),
    };
    repository.add_drill(&world.host_key.signing, drill, &noise(9, 300), &world.recipients()).unwrap();
}

/// Details of a drill that are damaged or gone are named at the level that reads them, without any key.
#[test]
fn details_of_drills_cost_no_snapshot() {
    let world = World::memory();
    world.snapshot(&[("a", b"one")]);
    drilled(&world);
    let keys = world.keys(layout::DRILLS);
    let details = keys.iter().find(|key| layout::object_id(key).is_some()).unwrap();
    for (action, level) in [
        (Action::FlipMiddle, READ_DATA),
        (Action::FlipFirst, READ_DATA),
        (Action::Truncate, OBJECTS),
        (Action::Delete, OBJECTS),
    ] {
        let world = world.copy();
        damage(&world, action, details, details, b"");
        let (found, report, finding) = found(&world, details);
        assert_eq!((found, report.findings.len(), finding.snapshots.len()), (level, 1, 0), "{action:?}");
        let deep = world.verify(DEEP).unwrap();
        assert_eq!(deep.findings.len(), 1, "{action:?}: {:?}", deep.findings);
        let part = world.verify_as_stranger(Level::ReadData { percent: 1 }).unwrap();
        assert_eq!(part.findings.len(), 1, "{action:?}: {:?}", part.findings);
    }
}

/// Every byte of every object of a small repository (every third in the ordinary run), one bit of each: the object is named,
/// and the snapshots that it costs.
#[test]
fn no_flipped_bit_goes_unnoticed() {
    let world = World::memory();
    world.vouch(&prune_key(), Role::Prune);
    world.snapshot(&[("a", b"one")]);
    world.take("shop", &[("files", &[("a", b"two")]), ("other", &[("b", &noise(4, 3000))])]).unwrap();
    let tag = serde_json::json!({ "note": "hold", "snapshot": world::id(lifeboat::base::ids::Sequence(1)) });
    world.put_dated(layout::RECORDS, Namespace::Record, &world.host_key.signing, &world.record(tag));
    drilled(&world);
    let nothing = lifeboat::pipeline::crypt::object_id(b"of nothing that is needed");
    world.open().condemn(&prune_key(), &[nothing], world::run().now).unwrap();
    let world = world.copy();
    let kinds: BTreeSet<String> = world.keys("").iter().map(|k| k.as_str().split('/').next().unwrap().into()).collect();
    let all =
        ["archives", "drills", "index", "manifests", "records", "refs", "repository.json", "signers", "snapshots"];
    assert!(kinds.iter().map(String::as_str).eq(all.into_iter().chain(["trash"])), "{kinds:?}");
    assert_eq!(world.keys(layout::DRILLS).len(), 2, "an outcome and its details");
    assert!(world.verify(READ_DATA).unwrap().findings.is_empty());
    let costs = costs(&world);
    let step = if std::env::var_os("LIFEBOAT_SWEEP").is_some_and(|v| v == "1") { 1 } else { 3 };
    let (mut tried, mut with_snapshots) = (0, 0);
    for key in world.keys("") {
        let bytes = world.get(&key);
        for at in (0..bytes.len()).step_by(step) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            world.set(&key, &flipped);
            let named = match world.verify_as_stranger(READ_DATA) {
                Ok(report) => match report.findings.iter().find(|f| f.object == key.as_str()) {
                    Some(finding) => {
                        let expected = costs.get(&key).cloned().unwrap_or_default();
                        with_snapshots += usize::from(!expected.is_empty());
                        assert_eq!(sequences(finding), expected, "byte {at} of {key}: {finding:?}");
                        true
                    }
                    None => false,
                },
                Err(e) => e.kind() == ErrorKind::Integrity || key == layout::repository(),
            };
            assert!(named, "byte {at} of {key}");
            tried += 1;
        }
        world.set(&key, &bytes);
    }
    println!("{tried} cases of a flipped bit, {with_snapshots} of them in what a snapshot needs");
    assert!(tried > 3_000 && with_snapshots > 1_500, "{tried} {with_snapshots}");
}

/// What each snapshot needs, by its key: which snapshots a damage of it costs.
fn costs(world: &World) -> BTreeMap<StorageKey, Vec<u64>> {
    let mut costs: BTreeMap<StorageKey, Vec<u64>> = BTreeMap::new();
    for snapshot in world.chain().all() {
        let header = &snapshot.header;
        let refs = load_refs(&world.open(), header.refs).unwrap();
        let archives = refs.archives.into_keys().map(layout::archive);
        let all = archives.chain(refs.index.into_keys().map(layout::index));
        let own = [snapshot.key.clone(), layout::refs(header.refs), layout::manifest(header.manifest)];
        for key in all.chain(own) {
            costs.entry(key).or_default().push(header.sequence.0);
        }
    }
    costs
}

/// An object that lies there once more, under a name that is free: nobody takes it for one, and nothing is lost by it.
#[test]
fn a_second_copy_under_another_name_is_no_object() {
    let good = good();
    let (files, _) = archives(good);
    let third = at(good, 3);
    let free = lifeboat::pipeline::crypt::object_id(b"of nothing that is stored");
    let refs = load_refs(&good.world.open(), third.header.refs).unwrap();
    let index = layout::index(*refs.index.keys().next().unwrap());
    let next: StorageKey = third.key.as_str().replace("000003", "000005").parse().unwrap();
    let later = good.prune_record.as_str().replacen("20", "29", 1).parse().unwrap();
    // Where the name is a hash, the copy is one more thing that nobody needs; where it says a place, it is not of there.
    for (key, copy, named) in [
        (files[0].clone(), layout::archive(free), false),
        (index, layout::index(free), false),
        (layout::refs(third.header.refs), layout::refs(free), false),
        (layout::manifest(third.header.manifest), layout::manifest(free), false),
        (third.key.clone(), next, true),
        (good.prune_record.clone(), later, true),
    ] {
        let world = good.world.copy();
        world.set(&copy, &world.get(&key));
        if named {
            let (level, report, finding) = found(&world, &copy);
            assert_eq!((level, report.findings.len()), (OBJECTS, 1), "{report:?}");
            assert!(finding.problem.ends_with("its name and its content disagree"), "{finding:?}");
        } else {
            let report = world.verify(READ_DATA).unwrap();
            assert!(report.findings.is_empty(), "{copy}: {report:?}");
            assert_eq!(report.unreferenced.unwrap().objects, 5, "{copy}: one more than without it");
        }
        expect_reads(&world, good, &|_, _| None);
    }
    let world = good.world.copy();
    world.set(&layout::signer(3), &world.get(&layout::signer(2)));
    let error = world.verify(OBJECTS).unwrap_err();
    assert!(error.to_string().contains("signers/3.json"), "{error}");
}

/// What the writer makes of a lost index object: nothing is stored twice, and what is missing is written anew.
#[test]
fn a_lost_index_object_is_healed() {
    let good = &build();
    let lost: Vec<StorageKey> = good.world.keys(layout::INDEX);
    let sources: [world::Source<'_>; 2] = [("db", &[("dump", &good.db[1])]), ("files", &[("tree", &good.files)])];

    // With the cache of this host, which has all but the newest of them: the next snapshot writes what the storage has
    // lost.
    let world = good.world.copy();
    lost.iter().for_each(|key| world.delete(key));
    let next = world.take("shop", &sources).unwrap();
    assert!(next.header.bytes_new < 400_000, "{} bytes stored again", next.header.bytes_new);
    let chain = world.chain();
    let newest = chain.all().next_back().unwrap();
    let refs = load_refs(&world.open(), newest.header.refs).unwrap();
    assert!(refs.index.keys().all(|id| world.storage.head(&layout::index(*id)).unwrap().is_some()));

    // Without: the bytes are stored again, unless the index is repaired first.
    let world = good.world.copy();
    lost.iter().for_each(|key| world.delete(key));
    let unrepaired = world.copy().forgetful().take("shop", &sources).unwrap();
    assert!(unrepaired.header.bytes_new > 5 << 20);
    let world = World { storage: world.copy().storage, ..world.forgetful() };
    let rebuilt = lifeboat::repository::rebuild::rebuild(
        &world.open(),
        &world.chain(),
        &world.identities(),
        &world.host_key,
        &world.recipients(),
        &world.state,
        &lifeboat::base::cancel::Cancel::new(),
    )
    .unwrap();
    assert!(rebuilt.index_objects == 1 && rebuilt.problems.is_empty(), "{rebuilt:?}");
    let repaired = world.take("shop", &sources).unwrap();
    assert!(repaired.header.bytes_new < 100_000, "{} bytes stored again", repaired.header.bytes_new);
    assert!(world.verify(DEEP).unwrap().findings.iter().all(|f| f.object.starts_with(layout::INDEX)));
    expect_reads(&world, good, &|_, _| None);
}
