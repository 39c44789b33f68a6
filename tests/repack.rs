//! Repack: waste is found and goes; every snapshot stays what it was, whatever is killed, forged, damaged or counted on
//! meanwhile.

#[path = "support/prune.rs"]
mod prune;
#[path = "support/rigged.rs"]
mod rigged;
#[path = "support/world.rs"]
mod world;

use chrono::TimeDelta;
use lifeboat::base::cancel::Cancel;
use lifeboat::base::ids::ObjectId;
use lifeboat::base::stream::StreamKind;
use lifeboat::ops::OpsError;
use lifeboat::ops::access::AccessRequest;
use lifeboat::ops::copy::{self, CopyReport, CopyRequest, Target};
use lifeboat::ops::prune::{self as ops, Fate, PruneOptions, PruneReport, RepackPlan, RepackReport};
use lifeboat::pipeline::crypt::{Recipients, object_id};
use lifeboat::pipeline::sign::{Namespace, SigningKey};
use lifeboat::policy::model::RepositoryUrl;
use lifeboat::repository::chain::{Snapshot, full_text};
use lifeboat::repository::format::{Role, SignerAction};
use lifeboat::repository::index::IndexLoader;
use lifeboat::repository::keys::HostKey;
use lifeboat::repository::reader::load_refs;
use lifeboat::repository::state::State;
use lifeboat::repository::{RepositoryError, layout, rebuild};
use lifeboat::storage::{MemoryStorage, Storage, StorageKey};
use prune::Pruned;
use rigged::{Fault, Rigged};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use world::{DEEP, World, noise};

const HOUR: TimeDelta = TimeDelta::hours(1);
const DAY: TimeDelta = TimeDelta::days(1);

/// A world whose policy names the recipients that its snapshots are sealed to.
fn new(retention: &str) -> Pruned {
    let mut pruned = Pruned::new(retention);
    pruned.policy.repository.recipients = pruned.world.recipients().texts().to_vec();
    pruned
}

impl Pruned {
    fn request(&self) -> AccessRequest {
        AccessRequest { identity: Some(self.world.dir.path().join("identity.txt")), ..AccessRequest::default() }
    }

    fn repack_plan(&self) -> Result<RepackPlan, OpsError> {
        let (access, options, run) = (self.access()?, self.options(), self.run());
        let plan = ops::plan(&access, &self.policy, &options, &run)?;
        ops::plan_repack(&self.installation(), &access, &self.policy, &options, &plan, &run)
    }

    /// As the command does it.
    fn repack(&self) -> Result<(PruneReport, RepackReport), OpsError> {
        self.repack_with(&self.options())
    }

    fn repack_with(&self, options: &PruneOptions) -> Result<(PruneReport, RepackReport), OpsError> {
        let (access, run) = (self.access()?, self.run());
        let (installation, request) = (self.installation(), self.request());
        let plan = ops::plan(&access, &self.policy, options, &run)?;
        let repack = ops::plan_repack(&installation, &access, &self.policy, options, &plan, &run)?;
        let mut report = ops::run(&installation, &access, &request, &plan, options, &run)?;
        let access = self.access()?;
        let done = ops::run_repack(&installation, &access, &request, &self.policy, options, &repack, &run)?;
        if done.replaced > 0 {
            report.add(self.prune()?);
        }
        Ok((report, done))
    }

    fn stored(&self, prefix: &str) -> u64 {
        self.world.storage.list(prefix).unwrap().iter().map(|object| object.length).sum()
    }

    /// Everything reads as it was taken, verifies, and is no more than the snapshots need.
    fn is_whole(&self, taken: &Taken, what: &str) {
        self.is_sound(what);
        for snapshot in self.snapshots() {
            let read = self.world.read(&snapshot);
            assert!(read == taken[&snapshot.header.sequence.0], "{what}: snapshot {} reads wrong", snapshot.header.id);
        }
    }

    /// Waits, and lets prunes delete what they will.
    fn settle(&self) {
        for _ in 0..3 {
            self.pass(DAY * 9);
            self.prune().unwrap();
        }
    }
}

/// What each snapshot was taken of.
type Taken = HashMap<u64, Vec<(String, Vec<u8>)>>;

/// A snapshot; what it is of is kept. The answer is what it stored.
fn take(pruned: &Pruned, taken: &mut Taken, streams: &[(&str, &[u8])]) -> u64 {
    let committed = pruned.world.snapshot(streams);
    let content = streams.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
    taken.insert(committed.header.sequence.0, content);
    pruned.pass(HOUR);
    committed.header.bytes_new
}

/// Two snapshots of which the first will go, and with it three quarters of its archive.
fn wasteful() -> (Pruned, Taken) {
    let (pruned, mut taken) = (new("keep_last = 1"), Taken::new());
    let common = noise(1000, 1_000_000);
    take(&pruned, &mut taken, &[("common", &common), ("own", &noise(1, 3_000_000))]);
    take(&pruned, &mut taken, &[("common", &common), ("own", &noise(2, 3_000_000))]);
    pruned.pass(DAY * 8);
    (pruned, taken)
}

fn rows(plan: &RepackPlan) -> Vec<(Fate, usize)> {
    plan.groups.iter().map(|group| (group.fate, group.archives)).collect()
}

#[test]
fn waste_is_found_and_goes_in_two_phases() {
    let (pruned, taken) = wasteful();
    let before = pruned.count("");
    let plan = pruned.repack_plan().unwrap();
    assert_eq!(pruned.count(""), before, "a plan changes nothing");
    assert_eq!(rows(&plan), [(Fate::PartlyDead, 1), (Fate::Alive, 1)]);
    let dead = &plan.groups[0];
    let (live, waste) = (dead.live_bytes.unwrap(), dead.waste_bytes.unwrap());
    assert!((990_000..1_050_000).contains(&live) && waste > 2_950_000 && live + waste == dead.bytes, "{dead:?}");

    let archives = pruned.stored(layout::ARCHIVES);
    let (report, done) = pruned.repack().unwrap();
    assert_eq!((done.replaced, done.written, done.snapshots), (1, 1, 1));
    assert!(done.written_bytes < 1_050_000 && done.replaced_bytes > 3_990_000, "{done:?}");
    assert!(report.condemned.bytes > 3_990_000, "the old archive, at once: {report:?}");
    pruned.is_whole(&taken, "repacked");
    pruned.pass(HOUR * 37);
    pruned.prune().unwrap();
    pruned.is_whole(&taken, "deleted");
    assert!(pruned.stored(layout::ARCHIVES) + 2_900_000 < archives);
    assert_eq!(pruned.world.verify(DEEP).unwrap().unreferenced.unwrap().objects, 0);
    // Once is enough.
    pruned.pass(DAY * 8);
    assert_eq!(pruned.repack().unwrap().1.replaced, 0);
    assert_eq!(rows(&pruned.repack_plan().unwrap()), [(Fate::Alive, 2)]);
}

/// What was moved is known where it is: to this host by its state, and by the next header to one that lost its state.
#[test]
fn dedup_goes_on() {
    let (pruned, mut taken) = wasteful();
    pruned.repack().unwrap();
    let content = taken[&2].clone();
    let streams: Vec<(&str, &[u8])> = content.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    let old = pruned.snapshots()[0].header.refs;
    assert!(take(&pruned, &mut taken, &streams) < 20_000, "before the old archive is gone");
    let named = load_refs(&pruned.world.open(), pruned.snapshots().last().unwrap().header.refs).unwrap();
    let first = load_refs(&pruned.world.open(), old).unwrap();
    assert_eq!(named.archives.keys().filter(|id| first.archives.contains_key(id)).count(), 1, "of the old, one stays");
    pruned.settle();
    assert!(take(&pruned, &mut taken, &streams) < 20_000, "and after");
    pruned.settle();
    let forgetful =
        Pruned { world: pruned.world.forgetful(), memory: pruned.memory.clone(), policy: pruned.policy.clone() };
    assert!(take(&forgetful, &mut taken, &streams) < 20_000, "without a memory");
    pruned.is_whole(&taken, "dedup");
}

#[test]
fn many_small_archives_are_joined() {
    let (pruned, mut taken) = (new("keep_last = 100"), Taken::new());
    let mut streams: Vec<(String, Vec<u8>)> = Vec::new();
    for n in 0..18 {
        streams.push((format!("f{n}"), noise(n, 60_000)));
        let streams: Vec<(&str, &[u8])> = streams.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        take(&pruned, &mut taken, &streams);
        if n == 14 {
            pruned.pass(DAY * 8);
            assert_eq!(rows(&pruned.repack_plan().unwrap()), [(Fate::Alive, 15)], "not many yet");
        }
    }
    assert_eq!(rows(&pruned.repack_plan().unwrap()), [(Fate::Alive, 15), (Fate::Young, 3)], "a run may count on them");
    pruned.pass(DAY * 8);
    let (_, done) = pruned.repack().unwrap();
    assert_eq!((done.replaced, done.written, done.snapshots), (18, 1, 18));
    pruned.is_whole(&taken, "joined");
    pruned.settle();
    assert_eq!((pruned.count(layout::ARCHIVES), pruned.count(layout::INDEX)), (1, 1));
    pruned.is_whole(&taken, "and the old ones gone");
    assert_eq!(pruned.repack().unwrap().1.replaced, 0, "once");
}

/// Lists of ids are chunks in archives as all others are, and index objects speak of archives that stay as well.
#[test]
fn deep_trees_and_archives_that_stay() {
    let (pruned, mut taken) = (new("keep_last = 2"), Taken::new());
    // Noise is cut coarser, and would have no deep tree; seven bits of it are not.
    let mut large: Vec<u8> = noise(7, 40_000_000).iter().map(|b| b & 0x7f).collect();
    take(&pruned, &mut taken, &[("large", &large), ("gone", &noise(8, 10_000_000))]);
    large[20_000_000..20_000_100].fill(0);
    take(&pruned, &mut taken, &[("large", &large)]);
    large[1000..2000].fill(1);
    take(&pruned, &mut taken, &[("large", &large), ("new", &noise(9, 100_000))]);
    pruned.pass(DAY * 8);
    let snapshots = pruned.snapshots();
    assert!(pruned.world.reader(&snapshots[0]).manifest.sources[0].streams[0].ids.depth > 0);
    let (_, done) = pruned.repack().unwrap();
    assert!((1..=2).contains(&done.replaced) && done.snapshots == 2, "{done:?}");
    pruned.is_whole(&taken, "repacked");
    pruned.settle();
    pruned.is_whole(&taken, "and the old ones gone");
    // The index says where everything is: no reader has to look into whole archives.
    let (repository, identities) = (pruned.world.open(), pruned.world.identities());
    let loader = IndexLoader { repository: &repository, identities: &identities, cache: None };
    for snapshot in pruned.snapshots() {
        let refs = load_refs(&repository, snapshot.refs).unwrap();
        let objects = refs.index.iter().map(|(id, length)| loader.load(*id, Some(*length)).unwrap());
        let known: HashSet<ObjectId> = objects.flat_map(|object| object.archives).map(|archive| archive.id).collect();
        assert!(refs.archives.keys().all(|id| known.contains(id)), "snapshot {}", snapshot.header.id);
    }
}

/// What takes long is recorded in parts: each is whole, and index objects of one part are replaced by the next.
#[test]
fn in_batches() {
    let (pruned, mut taken) = (new("keep_last = 100"), Taken::new());
    let mut streams: Vec<(String, Vec<u8>)> = Vec::new();
    for n in 0..18 {
        streams.push((format!("f{n}"), noise(n, 60_000)));
        let streams: Vec<(&str, &[u8])> = streams.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        take(&pruned, &mut taken, &streams);
    }
    // One index object for all, so that every batch has something to say of what stays.
    pruned.pass(DAY * 8);
    let state = pruned.world.state.clone();
    let (identities, recipients) = (pruned.world.identities(), pruned.world.recipients());
    let (repository, chain) = (pruned.world.open(), pruned.world.chain());
    let cancel = Cancel::new();
    let key = &pruned.world.host_key;
    rebuild::rebuild(&repository, &chain, &identities, key, &recipients, &state, &cancel).unwrap();
    let all: Vec<(&str, &[u8])> = streams.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    assert!(take(&pruned, &mut taken, &all) < 20_000);
    let options = PruneOptions { batch_bytes: 130_000, ..pruned.options() };
    let records = pruned.count(layout::RECORDS);
    let (_, done) = pruned.repack_with(&options).unwrap();
    assert_eq!((done.replaced, done.written, done.snapshots), (18, 9, 19));
    assert_eq!(pruned.count(layout::RECORDS), records + 9);
    pruned.is_whole(&taken, "repacked");
    pruned.settle();
    pruned.is_whole(&taken, "and the old ones gone");
    assert_eq!(pruned.count(layout::ARCHIVES), 9);
    assert!(take(&pruned, &mut taken, &all) < 20_000, "dedup goes on");
}

/// One that dies at any put leaves what was there; the next one goes on.
#[test]
fn killed_at_every_put() {
    let attempt = |pruned: &Pruned, rigged: Rigged| pruned.attempt(rigged, |over| over.repack().map(drop));
    let (counted, ended) = {
        let (pruned, _) = wasteful();
        attempt(&pruned, Rigged::new(pruned.memory.clone()))
    };
    let kinds: Vec<String> =
        counted.put_keys.lock().unwrap().iter().map(|key| key.split('/').next().unwrap().to_owned()).collect();
    // Signer and record of the prune; then the order that must be; then what is garbage now is condemned.
    assert!(ended);
    assert_eq!(kinds[kinds.len() - 5..], ["archives", "index", "refs", "records", "trash"], "{kinds:?}");
    for n in 0..counted.puts() {
        let (pruned, mut taken) = wasteful();
        let rigged = Rigged::new(pruned.memory.clone()).on_put(move |at, _| (at == n).then_some(Fault::Death));
        let (_, ended) = attempt(&pruned, rigged);
        assert!(!ended, "put {n}");
        // A new process with the state that the old one left.
        let state = Arc::new(State::open(pruned.world.state.dir()).unwrap());
        let world = World { state, ..pruned.world.over(pruned.memory.clone()) };
        let pruned = Pruned { world, memory: pruned.memory.clone(), policy: pruned.policy.clone() };
        let what = format!("death at put {n}");
        pruned.is_whole(&taken, &what);
        take(&pruned, &mut taken, &[("own", &noise(3, 400_000))]);
        let sequences = pruned.sequences();
        pruned.repack().unwrap_or_else(|e| panic!("{what}: {}", full_text(&e)));
        pruned.is_whole(&taken, &what);
        pruned.settle();
        pruned.is_whole(&taken, &what);
        assert_eq!(pruned.world.verify(DEEP).unwrap().unreferenced.unwrap().objects, 0, "{what}: {sequences:?}");
    }
}

/// One that dies at any delete, too: what was replaced goes, and nothing else, however often it takes.
#[test]
fn killed_at_every_delete() {
    let build = || {
        let (pruned, mut taken) = wasteful();
        pruned.repack().unwrap();
        take(&pruned, &mut taken, &[("own", &noise(2, 3_000_000)), ("common", &noise(1000, 1_000_000))]);
        // What the first one replaced is deleted; the next one has waste of its own.
        pruned.pass(DAY * 8);
        (pruned, taken)
    };
    let attempt = |pruned: &Pruned, rigged: Rigged| pruned.attempt(rigged, |over| over.repack().map(drop));
    let (counted, ended) = {
        let (pruned, _) = build();
        attempt(&pruned, Rigged::new(pruned.memory.clone()))
    };
    assert!(ended && counted.deletes() >= 4, "{} deletes", counted.deletes());
    for n in 0..counted.deletes() {
        let (pruned, taken) = build();
        let (_, ended) = attempt(&pruned, Rigged::new(pruned.memory.clone()).on_delete(move |at| at == n));
        let what = format!("death at delete {n}");
        assert!(!ended, "{what}");
        let state = Arc::new(State::open(pruned.world.state.dir()).unwrap());
        let world = World { state, ..pruned.world.over(pruned.memory.clone()) };
        let pruned = Pruned { world, memory: pruned.memory.clone(), policy: pruned.policy.clone() };
        pruned.is_whole(&taken, &what);
        pruned.repack().unwrap_or_else(|e| panic!("{what}: {}", full_text(&e)));
        pruned.is_whole(&taken, &what);
        pruned.settle();
        pruned.is_whole(&taken, &what);
        assert_eq!(pruned.world.verify(DEEP).unwrap().unreferenced.unwrap().objects, 0, "{what}");
    }
}

/// A record that says that other refs count for a snapshot.
fn moved(world: &World, key: &SigningKey, snapshot: &Snapshot, refs: ObjectId, time: &str) -> StorageKey {
    let note = serde_json::json!({"note": "repack", "moved": [
        {"sequence": snapshot.header.sequence, "header": snapshot.header_id, "refs": refs},
    ]});
    let mut record = world.record(note);
    record["time"] = time.into();
    world.put_dated(layout::RECORDS, Namespace::Record, key, &record)
}

#[test]
fn forged_records_change_nothing() {
    let (pruned, taken) = wasteful();
    pruned.prune().unwrap();
    let world = &pruned.world;
    let snapshot = pruned.snapshots()[0].clone();
    let empty = object_id(b"");
    world.storage.put_new(&layout::refs(empty), b"").unwrap();
    let refused = |key: StorageKey, what: &str| {
        let chain = world.chain();
        let now = chain.all().next().unwrap();
        assert_eq!(now.refs, snapshot.header.refs, "{what}");
        assert!(chain.problems.iter().any(|p| p.key == key), "{what}: {:?}", chain.problems);
        assert!(world.read(now) == taken[&2], "{what}");
        // A prune does not go on while a record cannot be believed.
        assert!(pruned.repack().is_err(), "{what}");
        world.delete(&key);
    };
    let late = "2030-01-01T00:00:00Z";
    refused(moved(world, &SigningKey::from_seed(&[7; 32]), &snapshot, empty, late), "nobody's key");
    let writer = SigningKey::from_seed(&[8; 32]);
    world.vouch(&writer, Role::Snapshot);
    refused(moved(world, &writer, &snapshot, empty, late), "a key that may not prune");
    let other = SigningKey::from_seed(&[9; 32]);
    let hosts = vec!["web-2".parse().unwrap()];
    world.add_signer(&other, SignerAction::Add { role: Role::Prune, hosts });
    refused(moved(world, &other, &snapshot, empty, late), "another host's key");
    // A key of another host speaks for that host alone, whatever header it names.
    let note = serde_json::json!({"note": "repack", "moved": [
        {"sequence": snapshot.header.sequence, "header": snapshot.header_id, "refs": empty},
    ]});
    let mut record = world.record(note);
    record["host"] = "web-2".into();
    let key = world.put_dated(layout::RECORDS, Namespace::Record, &other, &record);
    let chain = world.chain();
    assert!(chain.problems.is_empty() && chain.all().next().unwrap().refs == snapshot.header.refs);
    world.delete(&key);

    // An old record under a new name; and under its own, where a newer one is there.
    pruned.repack().unwrap();
    let refs = pruned.snapshots()[0].refs;
    assert_ne!(refs, snapshot.header.refs);
    let records = world.keys(layout::RECORDS);
    let own = records.iter().find(|k| String::from_utf8_lossy(&world.get(k)).contains("repack")).unwrap();
    let replayed: StorageKey = own.as_str().replace("records/2026", "records/2031").parse().unwrap();
    world.set(&replayed, &world.get(own));
    assert!(world.chain().problems.iter().any(|p| p.key == replayed));
    world.delete(&replayed);
    moved(world, &world.host_key.signing, &snapshot, empty, "2026-01-01T00:00:00Z");
    assert_eq!(pruned.snapshots()[0].refs, refs, "the later one counts");
    pruned.is_whole(&taken, "after all");
}

/// Whoever has the key that prunes can make a snapshot unreadable, never another one; and verify says what is missing.
#[test]
fn refs_that_lack_an_archive_are_found() {
    let (pruned, taken) = wasteful();
    pruned.repack().unwrap();
    let world = &pruned.world;
    let snapshot = pruned.snapshots()[0].clone();
    let mut refs = load_refs(&world.open(), snapshot.refs).unwrap();
    let lacking = *refs.archives.keys().next().unwrap();
    refs.archives.remove(&lacking);
    let bytes = refs.to_bytes();
    let id = object_id(&bytes);
    world.set(&layout::refs(id), &bytes);
    let record = moved(world, &world.host_key.signing, &snapshot, id, "2030-01-01T00:00:00Z");
    let report = world.verify(DEEP).unwrap();
    let named: Vec<&str> = report.findings.iter().map(|f| f.object.as_str()).collect();
    assert_eq!(named, [layout::refs(id).as_str()], "{:?}", report.findings);
    assert!(!report.findings[0].snapshots.is_empty(), "{:?}", report.findings);
    let error = world.read_source(&pruned.snapshots()[0], "files").unwrap_err();
    assert!(matches!(error, RepositoryError::ChunkMissing { .. }), "{error}");
    // Refs that are not there at all are named at every level.
    world.delete(&layout::refs(id));
    let report = world.verify(world::OBJECTS).unwrap();
    assert_eq!(report.findings[0].object, layout::refs(id).as_str());
    world.delete(&record);
    pruned.is_whole(&taken, "without that record");
}

/// What others need, or cannot be opened, or is damaged, stays as it is.
#[test]
fn what_is_not_known_for_sure_is_left_alone() {
    // Other recipients since.
    let (mut pruned, taken) = wasteful();
    let other = age::x25519::Identity::generate().to_public().to_string();
    pruned.policy.repository.recipients.push(other.clone());
    assert_eq!(rows(&pruned.repack_plan().unwrap()), [(Fate::OtherRecipients, 2)]);
    assert_eq!(pruned.repack().unwrap().1.replaced, 0);
    pruned.is_whole(&taken, "recipients changed");

    // A snapshot that is sealed to others alone needs nothing of this one's archives; it is left alone.
    let (pruned, taken) = wasteful();
    let world = &pruned.world;
    let writer =
        world.writer_of(&world.open(), "closed", Recipients::parse(&[other]).unwrap(), &Cancel::new()).unwrap();
    world.write(writer, &[("files", &[("a", &noise(5, 50_000))])]).unwrap();
    assert_eq!(rows(&pruned.repack_plan().unwrap()), [(Fate::PartlyDead, 1), (Fate::Alive, 1), (Fate::Closed, 1)]);
    let (_, done) = pruned.repack().unwrap();
    assert_eq!(done.replaced, 1);
    assert!(
        world.read(&pruned.snapshots().into_iter().find(|s| s.header.policy.as_str() == "shop").unwrap()) == taken[&2]
    );

    // Another policy of this host counts on the same archive: both move.
    let (pruned, _) = wasteful();
    pruned.world.take("blog", &[("files", &[("common", &noise(1000, 1_000_000))])]).unwrap();
    let (_, done) = pruned.repack().unwrap();
    assert_eq!((done.replaced, done.snapshots), (1, 2));
    pruned.settle();
    pruned.is_sound("two policies");
    let blog = pruned.snapshots().into_iter().find(|s| s.header.policy.as_str() == "blog").unwrap();
    assert!(pruned.world.read(&blog)[0].1 == noise(1000, 1_000_000));

    // Another dedup key: nothing of its archives is known.
    let (pruned, _) = wasteful();
    std::fs::remove_file(pruned.world.dir.path().join("host.key")).unwrap();
    HostKey::create(&pruned.world.dir.path().join("host.key"), pruned.world.identity.repository.clone()).unwrap();
    assert_eq!(rows(&pruned.repack_plan().unwrap()), [(Fate::OtherKey, 2)]);
}

#[test]
fn damaged_archives_are_left_alone_and_named() {
    let (pruned, taken) = wasteful();
    let world = &pruned.world;
    let plan = pruned.repack_plan().unwrap();
    assert_eq!(plan.groups[0].archives, 1);
    // The archive that the first snapshot wrote.
    let first = load_refs(&world.open(), pruned.snapshots()[0].refs).unwrap().archives;
    let key = layout::archive(*first.keys().next().unwrap());
    let whole = world.get(&key);
    let mut hurt = whole.clone();
    for at in (5_000..hurt.len()).step_by(60_000) {
        hurt[at] ^= 1;
    }
    world.set(&key, &hurt);
    pruned.pass(DAY * 8);
    let (_, done) = pruned.repack().unwrap();
    assert_eq!((done.replaced, done.snapshots), (0, 0));
    assert!(done.problems[0].contains(key.as_str()), "{:?}", done.problems);
    world.set(&key, &whole);
    pruned.pass(DAY * 8);
    pruned.is_whole(&taken, "put back");
    assert_eq!(pruned.repack().unwrap().1.replaced, 1);
    pruned.settle();
    pruned.is_whole(&taken, "and repacked");
    // One that is gone, or an index object that says nothing.
    for prefix in [layout::ARCHIVES, layout::INDEX] {
        let (pruned, _) = wasteful();
        let refs = load_refs(&pruned.world.open(), pruned.snapshots()[1].refs).unwrap();
        let key = match prefix {
            layout::ARCHIVES => layout::archive(*refs.archives.keys().next().unwrap()),
            _ => layout::index(*refs.index.keys().next().unwrap()),
        };
        pruned.world.delete(&key);
        std::fs::remove_dir_all(pruned.world.state.dir().join("cache")).unwrap();
        let (_, done) = pruned.repack().unwrap();
        assert!(!done.problems.is_empty(), "{key}");
        assert!(done.problems.iter().any(|p| p.contains(&key.as_str()[9..40])), "{:?} names {key}", done.problems);
    }
}

/// A writer that began before, and counts on what was rewritten meanwhile: it stays.
#[test]
fn a_writer_beside_it() {
    for hours in [1, 17] {
        let (pruned, mut taken) = wasteful();
        let world = &pruned.world;
        let common = noise(1000, 1_000_000);
        let writer = world.writer(&world.open()).unwrap();
        let mut stream = writer.stream("files", "common", StreamKind::Raw, None);
        std::io::Write::write_all(&mut stream, &common).unwrap();
        let parts = stream.finish().unwrap();
        assert_eq!(pruned.repack().unwrap().1.replaced, 1);
        pruned.pass(HOUR * hours);
        let entry = world::source_entry("files", vec![world::stream_entry("common", parts)]);
        let draft = world::draft(writer.sequence(), vec![entry]);
        writer.commit(draft, &world.host_key).unwrap();
        taken.insert(3, vec![("common".to_owned(), common)]);
        pruned.is_whole(&taken, "both at once");
        pruned.pass(HOUR * 37);
        pruned.prune().unwrap();
        pruned.is_whole(&taken, "let go");
        pruned.settle();
        pruned.repack().unwrap();
        pruned.settle();
        pruned.is_whole(&taken, "and repacked again");
    }
}

fn copy(world: &World, to: Arc<dyn Storage>) -> Result<CopyReport, OpsError> {
    let target = Target { url: RepositoryUrl::Local("/copy".into()), storage: to };
    let request = CopyRequest { begin_anew: true, ..CopyRequest::default() };
    copy::copy(&world.forgetful().access(false)?, &target, &request, &world::run())
}

/// A copy follows a repack, and is whole at every instant; a new one is made of what is there now.
#[test]
fn copies_follow() {
    let build = || {
        let (mut pruned, mut taken) = wasteful();
        let common = noise(1000, 1_000_000);
        take(&pruned, &mut taken, &[("common", &common), ("third", &noise(3, 200_000))]);
        pruned.pass(DAY * 8);
        pruned.policy.retention = prune::policy("keep_last = 2").retention;
        let copied = Arc::new(MemoryStorage::new());
        assert!(copy(&pruned.world, copied.clone()).unwrap().problems.is_empty());
        assert_eq!(pruned.repack().unwrap().1.snapshots, 2);
        pruned.settle();
        take(&pruned, &mut taken, &[("third", &noise(3, 200_000)), ("common", &common[..300_000])]);
        pruned.pass(DAY * 8);
        // A repack of what was repacked: what the first record names is gone then.
        pruned.policy.retention = prune::policy("keep_last = 1").retention;
        assert!(pruned.repack().unwrap().1.replaced >= 1);
        pruned.settle();
        (pruned, taken, copied)
    };
    let is_whole = |pruned: &Pruned, taken: &Taken, copied: &Arc<MemoryStorage>, what: &str| {
        let world = pruned.world.over(copied.clone()).forgetful();
        let report = world.verify(DEEP).unwrap();
        assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
        for snapshot in world.chain().all() {
            assert!(world.read(snapshot) == taken[&snapshot.header.sequence.0], "{what}: {}", snapshot.header.id);
        }
    };
    let (pruned, taken, copied) = build();
    let counted = Arc::new(Rigged::new(copied.clone()));
    let report = copy(&pruned.world, counted.clone()).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    is_whole(&pruned, &taken, &copied, "the copy");
    let anew = Arc::new(MemoryStorage::new());
    assert!(copy(&pruned.world, anew.clone()).unwrap().problems.is_empty());
    is_whole(&pruned, &taken, &anew, "a new copy");
    assert!(counted.put_keys.lock().unwrap().iter().any(|key| key.starts_with(layout::RECORDS)));
    for n in 0..counted.puts() {
        let (pruned, taken, copied) = build();
        let failing = Rigged::new(copied.clone())
            .on_put(move |at, _| (at >= n).then_some(Fault::Before(std::io::ErrorKind::TimedOut)));
        assert!(copy(&pruned.world, Arc::new(failing)).is_err(), "put {n}");
        is_whole(&pruned, &taken, &copied, &format!("put {n}"));
        assert!(copy(&pruned.world, copied.clone()).unwrap().problems.is_empty(), "put {n}");
        is_whole(&pruned, &taken, &copied, &format!("after put {n}"));
    }
}

struct Random(Vec<u8>, usize);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.1 += 1;
        u64::from(self.0[self.1 % self.0.len()]) % limit
    }
}

/// Snapshots, prunes, repacks and time in any order: what is there reads as it was taken.
#[test]
fn no_order_of_events_loses_anything() {
    let mut replaced = 0;
    for seed in 0..12u64 {
        let (mut pruned, mut taken) = (new("keep_last = 3"), Taken::new());
        let mut random = Random(noise(seed, 4096), 0);
        for step in 0..50 {
            let what = format!("seed {seed}, step {step}");
            match random.below(8) {
                0..=2 => {
                    let mut files: Vec<u64> = (0..1 + random.below(6)).map(|_| random.below(12)).collect();
                    files.sort_unstable();
                    files.dedup();
                    let contents: Vec<(String, Vec<u8>)> =
                        files.iter().map(|n| (format!("f{n}"), noise(*n, 20_000 + 9_000 * *n as usize))).collect();
                    let streams: Vec<(&str, &[u8])> = contents.iter().map(|(n, b)| (n.as_str(), &b[..])).collect();
                    take(&pruned, &mut taken, &streams);
                }
                3 => drop(pruned.prune().unwrap_or_else(|e| panic!("{what}: {}", full_text(&e)))),
                4 => {
                    // In one go, or with a record for each archive or two.
                    let batch_bytes = if seed % 2 == 0 { u64::MAX } else { 150_000 };
                    let options = PruneOptions { batch_bytes, ..pruned.options() };
                    let done = pruned.repack_with(&options);
                    let (_, done) = done.unwrap_or_else(|e| panic!("{what}: {}", full_text(&e)));
                    assert!(done.problems.is_empty(), "{what}: {:?}", done.problems);
                    replaced += done.replaced;
                }
                5 if random.below(4) == 0 => {
                    // The state is lost.
                    let state = State::open(&pruned.world.dir.path().join(format!("state{step}"))).unwrap();
                    let world = World { state: Arc::new(state), ..pruned.world.over(pruned.memory.clone()) };
                    pruned = Pruned { world, memory: pruned.memory.clone(), policy: pruned.policy.clone() };
                }
                _ => pruned.pass(HOUR * [1, 17, 19, 40, 100, 250][random.below(6) as usize]),
            }
            if step % 7 == 6 {
                pruned.is_whole(&taken, &what);
            }
        }
        pruned.settle();
        pruned.is_whole(&taken, &format!("seed {seed}, end"));
        assert_eq!(pruned.world.verify(DEEP).unwrap().unreferenced.unwrap().objects, 0, "seed {seed}");
    }
    assert!(replaced > 10, "{replaced}");
}
