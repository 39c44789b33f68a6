//! Copies of a repository: whole, incremental, killed at every put, beside damage at either end, of a repository that
//! went back, and after every snapshot as the policy says.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/prune.rs"]
mod prune;
#[path = "support/rigged.rs"]
mod rigged;
#[path = "support/world.rs"]
mod world;

use lab::Lab;
use lifeboat::base::cancel::Cancel;
use lifeboat::base::ids::Sequence;
use lifeboat::ops::access::{Access, AccessRequest};
use lifeboat::ops::copy::{self, CopyReport, CopyRequest, Side, Target};
use lifeboat::ops::{ErrorKind, OpsError, Run};
use lifeboat::pipeline::crypt::object_id;
use lifeboat::policy::model::RepositoryUrl;
use lifeboat::repository::layout;
use lifeboat::storage::local::Reserve;
use lifeboat::storage::{LocalStorage, MemoryStorage, Storage, StorageKey};
use prune::Pruned;
use rigged::{Fault, Rigged};
use std::collections::BTreeMap;
use std::io::ErrorKind as IoErrorKind;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use world::{DEEP, OBJECTS, World, noise, run};

fn target(storage: Arc<dyn Storage>) -> Target {
    Target { url: RepositoryUrl::Local("/copy".into()), storage }
}

fn empty() -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::new())
}

fn try_copy(world: &World, to: Arc<dyn Storage>) -> Result<CopyReport, OpsError> {
    // As a host that remembers no copy: these all lie at one place.
    copy_as(&world.forgetful(), to, &CopyRequest { begin_anew: true, ..CopyRequest::default() }, &run())
}

fn copy_as(world: &World, to: Arc<dyn Storage>, request: &CopyRequest, run: &Run) -> Result<CopyReport, OpsError> {
    copy::copy(&world.access(false)?, &target(to), request, run)
}

#[track_caller]
fn copy_of(world: &World, to: Arc<dyn Storage>) -> CopyReport {
    let report = try_copy(world, to).unwrap_or_else(|e| panic!("{}", lab::full(&e)));
    assert_eq!(report.failure(), None, "{report:#?}");
    report
}

/// Everything in a storage.
fn content(storage: &dyn Storage) -> BTreeMap<String, Vec<u8>> {
    let read = |key: StorageKey| (key.to_string(), storage.get(&key, u64::MAX).unwrap());
    storage.list("").unwrap().into_iter().map(|object| read(object.key)).collect()
}

/// Three snapshots that share archives, and one of another policy.
fn stocked() -> (World, Vec<Vec<u8>>) {
    let world = World::memory();
    let mut contents = Vec::new();
    for n in 0..3u64 {
        let bytes = [&noise(1, 700_000)[..], &noise(10 + n, 300_000)].concat();
        world.snapshot(&[("a", &bytes)]);
        contents.push(bytes);
    }
    world.take("blog", &[("files", &[("a", b"small")])]).unwrap();
    (world, contents)
}

#[track_caller]
fn is_sound(world: &World, storage: &Arc<MemoryStorage>, what: &str) {
    let there = world.over(storage.clone());
    let report = there.verify_as_stranger(DEEP_WITHOUT).unwrap();
    assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
    let deep = World { state: there.forgetful().state, ..there }.verify(DEEP).unwrap();
    assert!(deep.findings.is_empty(), "{what}: {:?}", deep.findings);
}

/// Without a key: everything read and hashed.
const DEEP_WITHOUT: lifeboat::ops::verify::Level = world::READ_DATA;

#[test]
fn a_copy_has_the_same_bytes_and_restores_the_same() {
    let (world, contents) = stocked();
    let storage = empty();
    let report = copy_of(&world, storage.clone());
    assert_eq!((report.snapshots.len(), report.snapshots_there), (4, 0));
    assert_eq!(content(&*storage), content(&*world.storage));
    assert_eq!(report.objects, content(&*storage).len());
    assert_eq!(report.bytes, content(&*storage).values().map(|b| b.len() as u64).sum::<u64>());
    is_sound(&world, &storage, "the copy");
    let there = world.over(storage);
    let chain = there.chain();
    let shop: Vec<_> = chain.all().filter(|s| s.header.policy.as_str() == "shop").collect();
    for (snapshot, bytes) in shop.iter().zip(&contents) {
        assert!(there.read(snapshot)[0].1 == *bytes, "{}", snapshot.header.id);
    }
}

#[test]
fn only_what_is_new_is_copied_and_little_is_asked() {
    let (world, _) = stocked();
    let storage = empty();
    copy_of(&world, storage.clone());
    let before = content(&*storage);
    world.snapshot(&[("a", &noise(99, 200_000))]);
    let new: Vec<String> = content(&*world.storage).into_keys().filter(|k| !before.contains_key(k)).collect();

    let (from, to) = (Arc::new(Rigged::new(world.storage.clone())), Arc::new(Rigged::new(storage.clone())));
    let access = world.over(from.clone()).access(false).unwrap();
    from.reads.lock().unwrap().clear();
    let request = CopyRequest::default();
    let report = copy::copy(&access, &target(to.clone()), &request, &run()).unwrap();
    let mut put = to.put_keys.lock().unwrap().clone();
    assert!(put.last().unwrap().starts_with("snapshots/"), "the header comes last: {put:?}");
    put.sort();
    assert_eq!(put, new);
    assert_eq!((report.snapshots.len(), report.snapshots_there, report.objects), (1, 4, new.len()));
    // At the copy: repository.json twice, its signers, nothing else. Here: what is new, and refs once to plan.
    assert!(to.prefixes_read() == ["repository.json", "signers"], "{:?}", to.prefixes_read());
    let reads = from.reads.lock().unwrap().clone();
    assert_eq!(reads.iter().filter(|k| k.starts_with("refs/")).count(), 2, "{reads:?}");
    assert_eq!(reads.iter().filter(|k| k.starts_with("archives/")).count(), 1, "{reads:?}");

    let again = Arc::new(Rigged::new(storage));
    let report = copy_of(&world, again.clone());
    assert_eq!((report.objects, again.puts()), (0, 0));
}

/// Runs a copy whose target dies or fails; `None` when it died.
fn attempt(world: &World, to: Arc<Rigged>, cancel: &Cancel) -> Option<Result<CopyReport, OpsError>> {
    let host = world.forgetful();
    let world = host.lent();
    let (tell, told) = channel();
    let (there, run) = (to.clone(), Run { cancel: cancel.clone(), ..run() });
    std::thread::spawn(move || {
        let request = CopyRequest { begin_anew: true, ..CopyRequest::default() };
        drop(tell.send(copy_as(&world, there, &request, &run)));
    });
    let begun = Instant::now();
    loop {
        match told.recv_timeout(Duration::from_millis(10)) {
            Ok(done) => return Some(done),
            Err(_) if to.is_dead() => return None,
            Err(e) => assert!(begun.elapsed() < Duration::from_secs(60), "neither ends nor dies: {e}"),
        }
    }
}

#[test]
fn killed_at_any_put_a_copy_verifies_and_the_next_run_goes_on() {
    let pruned = with_prune_record();
    let world = &pruned.world;
    // What a prune has condemned, and its trash, are none of the copy's.
    let whole = empty();
    copy_of(world, whole.clone());
    let (whole, puts) = (content(&*whole), content(&*whole).len());
    assert!(puts > 15 && puts < content(&*world.storage).len(), "{puts}");
    for at in 0..puts {
        for fault in 0..3 {
            let storage = empty();
            let rigged = Rigged::new(storage.clone()).on_put(move |n, _| match (n == at, fault) {
                (false, _) => None,
                (true, 0) => Some(Fault::Death),
                (true, 1) => Some(Fault::Before(IoErrorKind::ConnectionReset)),
                (true, _) => Some(Fault::After(IoErrorKind::ConnectionReset)),
            });
            let ended = attempt(world, Arc::new(rigged), &Cancel::new());
            match &ended {
                None => assert_eq!(fault, 0),
                Some(Err(e)) => assert!(fault > 0 && e.kind() == ErrorKind::Failed, "{}", lab::full(e)),
                Some(Ok(report)) => panic!("put {at} of {puts}: {report:#?}"),
            }
            if storage.head(&layout::repository()).unwrap().is_some() {
                is_sound(world, &storage, &format!("put {at}, fault {fault}"));
            }
            copy_of(world, storage.clone());
            assert!(content(&*storage) == whole, "put {at}, fault {fault}");
        }
    }
}

#[test]
fn stopped_at_any_put_it_ends_and_goes_on() {
    let (world, _) = stocked();
    for at in [0, 1, 2, 3, 5, 8, 13] {
        let (storage, cancel) = (empty(), Cancel::new());
        let stop = cancel.clone();
        let rigged = Rigged::new(storage.clone()).on_put(move |n, _| {
            if n == at {
                stop.raise(2);
            }
            None
        });
        let ended = attempt(&world, Arc::new(rigged), &cancel).unwrap();
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled, "put {at}");
        is_sound(&world, &storage, &format!("stopped at {at}"));
        copy_of(&world, storage);
    }
}

/// Five snapshots of which a prune has removed two.
fn with_prune_record() -> Pruned {
    let pruned = Pruned::new("keep_last = 3\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0");
    for n in 0..5u64 {
        pruned.world.snapshot(&[("a", &[&noise(1, 300_000)[..], &noise(10 + n, 200_000)].concat())]);
    }
    pruned.prune().unwrap_or_else(|e| panic!("{}", lab::full(&e)));
    assert_eq!(pruned.sequences(), [3, 4, 5]);
    pruned
}

#[test]
fn what_was_pruned_is_not_copied_and_what_was_copied_before_stays() {
    let pruned = Pruned::new("keep_last = 2\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0");
    let world = &pruned.world;
    for n in 0..4u64 {
        world.snapshot(&[("a", &noise(n, 200_000))]);
    }
    let old = empty();
    copy_of(world, old.clone());
    pruned.prune().unwrap();
    assert_eq!(pruned.sequences(), [3, 4]);
    world.snapshot(&[("a", &noise(9, 200_000))]);

    let new = empty();
    assert_eq!(copy_of(world, new.clone()).snapshots.len(), 3);
    is_sound(world, &new, "a copy made after the prune");
    let report = copy_of(world, old.clone());
    assert_eq!((report.snapshots.len(), report.snapshots_there, report.snapshots_kept), (1, 2, 2));
    is_sound(world, &old, "a copy made before the prune");
    let there = world.over(old);
    let chain = there.chain();
    let first = chain.all().next().unwrap();
    assert!(first.header.sequence == Sequence(1) && there.read(first)[0].1 == noise(0, 200_000));
}

// --- damage -----------------------------------------------------------------------------------------------------------

type Change = fn(&World, &StorageKey);

fn corrupt(world: &World, key: &StorageKey) {
    let mut bytes = world.get(key);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    world.set(key, &bytes);
}

#[test]
fn what_is_damaged_here_is_named_and_costs_its_snapshots_only() {
    let changes: [(&str, Change); 3] = [
        ("flipped", corrupt),
        ("cut", |world, key| world.set(key, &world.get(key)[1..])),
        ("gone", |world, key| world.delete(key)),
    ];
    for prefix in ["archives/", "index/", "refs/", "manifests/", "snapshots/", "records/"] {
        for (change, make) in changes {
            let world = World::memory();
            // Nothing in common, so that each object costs one snapshot.
            for n in 0..3u64 {
                world.snapshot(&[("a", &noise(n, 300_000))]);
            }
            let note = world.record(serde_json::json!({"note": "tag", "snapshot": world::id(Sequence(1)), "tag": "t"}));
            let namespace = lifeboat::pipeline::sign::Namespace::Record;
            world.put_dated(layout::RECORDS, namespace, &world.host_key.signing, &note);
            let victims = owned_by(&world, Sequence(2), prefix);
            make(&world, &victims[0]);
            let storage = empty();
            let what = format!("{change} {}", victims[0]);
            let report = match copy_as(&world.forgetful(), storage.clone(), &CopyRequest::default(), &run()) {
                Ok(report) => report,
                Err(e) => panic!("{what}: {}", lab::full(&e)),
            };
            let is_told = report.problems.iter().any(|p| p.side == Side::Repository && p.object == victims[0].as_str());
            // A header or record that is gone leaves nothing to name here; verify finds the gap.
            let nameless = change == "gone" && ["snapshots/", "records/"].contains(&prefix);
            assert_eq!(is_told, !nameless, "{what}: {:#?}", report.problems);
            assert_eq!(report.failure().is_some(), !nameless, "{what}");
            let copied = if prefix == "records/" { 3 } else { 2 };
            assert_eq!(report.snapshots.len(), copied, "{what}");
            if prefix != "records/" && !nameless {
                let costs = &report.problems.iter().find(|p| p.object == victims[0].as_str()).unwrap().snapshots;
                assert_eq!(costs, &[world::id(Sequence(2))], "{what}");
            }
            assert!(storage.head(&victims[0]).unwrap().is_none(), "{what}: damage has been copied");
            let there = world.over(storage.clone());
            for snapshot in there.chain().all() {
                let n = snapshot.header.sequence.0 - 1;
                assert!(there.read(snapshot)[0].1 == noise(n, 300_000), "{what}");
            }
        }
    }
}

/// The objects that one snapshot has for itself, below a prefix.
fn owned_by(world: &World, sequence: Sequence, prefix: &str) -> Vec<StorageKey> {
    let chain = world.chain();
    let snapshot = chain.all().find(|s| s.header.sequence == sequence).unwrap();
    let refs = lifeboat::repository::reader::load_refs(&world.open(), snapshot.header.refs).unwrap();
    let first = chain.all().next().unwrap();
    let others = lifeboat::repository::reader::load_refs(&world.open(), first.header.refs).unwrap();
    match prefix {
        "archives/" => refs
            .archives
            .keys()
            .filter(|id| !others.archives.contains_key(*id))
            .map(|id| layout::archive(*id))
            .collect(),
        "index/" => {
            refs.index.keys().filter(|id| !others.index.contains_key(*id)).map(|id| layout::index(*id)).collect()
        }
        "refs/" => vec![layout::refs(snapshot.header.refs)],
        "manifests/" => vec![layout::manifest(snapshot.header.manifest)],
        "snapshots/" => vec![snapshot.key.clone()],
        _ => world.keys(prefix),
    }
}

#[test]
fn what_is_damaged_there_is_told_and_never_replaced() {
    for prefix in ["archives/", "index/", "refs/", "manifests/", "snapshots/"] {
        let (world, _) = stocked();
        let storage = empty();
        copy_of(&world, storage.clone());
        let there = world.over(storage.clone());
        let victim = there.keys(prefix).pop().unwrap();
        let cut = there.get(&victim)[1..].to_vec();
        there.set(&victim, &cut);
        let report = try_copy(&world, storage.clone()).unwrap();
        let problem = report.problems.iter().find(|p| p.side == Side::Copy && p.object == victim.as_str());
        assert!(!problem.unwrap_or_else(|| panic!("{victim}: {report:#?}")).snapshots.is_empty(), "{report:#?}");
        assert_eq!(report.failure(), Some(ErrorKind::Integrity));
        assert_eq!((report.objects, there.get(&victim)), (0, cut), "nothing is put, nothing replaced");
        // A new snapshot goes there all the same, unless it needs what is damaged.
        world.take("other", &[("files", &[("a", &noise(77, 100_000))])]).unwrap();
        assert_eq!(try_copy(&world, storage.clone()).unwrap().snapshots.len(), 1);
        // Taken away, it is copied anew.
        there.delete(&victim);
        let report = copy_of(&world, storage.clone());
        assert_eq!((report.objects, there.get(&victim)), (1, world.get(&victim)), "{victim}");
        is_sound(&world, &storage, victim.as_str());
    }
}

#[test]
fn damage_of_the_same_length_there_is_found_by_reading_back() {
    let (world, _) = stocked();
    let storage = empty();
    copy_of(&world, storage.clone());
    let there = world.over(storage.clone());
    let victim = there.keys("archives/").pop().unwrap();
    corrupt(&there, &victim);
    let request = CopyRequest { read_back: true, ..CopyRequest::default() };
    let report = copy_as(&world, storage, &request, &run()).unwrap();
    assert_eq!(report.failure(), Some(ErrorKind::Integrity));
    assert_eq!(report.verified.unwrap().findings[0].object, victim.as_str());
}

#[test]
fn other_bytes_under_a_name_keep_a_snapshot_away() {
    let (world, _) = stocked();
    let chain = world.chain();
    let snapshot = chain.all().find(|s| s.header.policy.as_str() == "blog").unwrap();
    let key = layout::manifest(snapshot.header.manifest);
    // Listed as absent, and there when it is put: somebody forged it in between.
    let storage = empty();
    let (forger, victim) = (storage.clone(), key.clone());
    let rigged = Rigged::new(storage.clone()).on_put(move |n, _| {
        if n == 0 {
            forger.put_new(&victim, b"forged").unwrap();
        }
        None
    });
    let report = try_copy(&world, Arc::new(rigged)).unwrap();
    assert_eq!((report.problems[0].side, report.problems[0].object.as_str()), (Side::Copy, key.as_str()));
    assert_eq!(report.problems[0].snapshots, std::slice::from_ref(&snapshot.header.id));
    assert_eq!(report.snapshots.len(), 3);
    assert_eq!(storage.get(&key, 100).unwrap(), b"forged");
}

#[test]
fn what_a_prune_is_about_to_take_there_is_not_counted_on() {
    let pruned = Pruned::new("keep_last = 9");
    let world = &pruned.world;
    world.snapshot(&[("a", &noise(1, 200_000))]);
    let storage = empty();
    copy_of(world, storage.clone());
    let key = lifeboat::pipeline::sign::SigningKey::from_seed(&[7; 32]);
    world.vouch(&key, lifeboat::repository::format::Role::Prune);
    // A second snapshot needs the same archive; a prune of the copy has condemned it.
    world.snapshot(&[("b", &noise(1, 200_000))]);
    let there = world.over(storage.clone());
    let ids: Vec<_> = there.keys("archives/").iter().filter_map(layout::object_id).collect();
    let signer = world.keys("signers/").pop().unwrap();
    storage.put_new(&signer, &world.get(&signer)).unwrap();
    there.open().condemn(&key, &ids, chrono::Utc::now()).unwrap();
    storage.advance(chrono::TimeDelta::hours(20));
    let report = try_copy(world, storage.clone()).unwrap();
    assert!(report.snapshots.is_empty() && report.problems[0].problem.contains("condemned"), "{report:#?}");
    // The prune takes archive and first snapshot; then both are copied again.
    for object in storage.list("").unwrap() {
        if ["archives", "trash", "snapshots"].contains(&object.key.as_str().split('/').next().unwrap()) {
            storage.delete(&object.key).unwrap();
        }
    }
    assert_eq!(copy_of(world, storage.clone()).snapshots.len(), 2);
    is_sound(world, &storage, "after the prune");
}

// --- other places -----------------------------------------------------------------------------------------------------

#[test]
fn only_an_empty_place_or_a_copy_of_this_repository_is_written_to() {
    let (world, _) = stocked();
    let refused = |storage: Arc<dyn Storage>, text: &str| {
        let before = content(&*storage);
        let error = try_copy(&world, storage.clone()).unwrap_err();
        assert!(error.kind() == ErrorKind::Usage && lab::full(&error).contains(text), "{}", lab::full(&error));
        assert_eq!(content(&*storage), before);
    };
    refused(World::memory().storage, "other recipients or keys");
    let strange = empty();
    strange.put_new(&"notes.txt".parse().unwrap(), b"mine").unwrap();
    refused(strange, "not empty");
    // The same root key, and a repository of its own.
    let twin = empty();
    let later = chrono::Utc::now() + chrono::TimeDelta::days(1);
    lifeboat::repository::Repository::create(twin.clone(), &world.root(), later).unwrap();
    refused(twin, "created by itself");
    for (from, to) in [("/a/b", "/a/b"), ("/a/b", "/a/b/c"), ("/a/b/c", "/a/b"), ("/a/./b", "/a/b/")] {
        let url = |path: &str| RepositoryUrl::Local(path.into());
        let opened = copy::open(None, Some(&url(from)), &url(to));
        assert_eq!(opened.err().map(|e| e.kind()), Some(ErrorKind::Usage), "{from} {to}");
    }
}

#[test]
fn a_copy_that_knows_more_signers_shows_that_some_are_hidden_here() {
    let (world, _) = stocked();
    let (storage, before) = (empty(), world.copy());
    world.vouch(&lifeboat::pipeline::sign::SigningKey::from_seed(&[9; 32]), lifeboat::repository::format::Role::Drill);
    copy_of(&world, storage.clone());
    let error = try_copy(&before.forgetful(), storage).unwrap_err();
    assert!(
        error.kind() == ErrorKind::Integrity && lab::full(&error).contains("signers/2.json"),
        "{}",
        lab::full(&error)
    );
}

#[test]
fn a_full_disk_ends_the_copy_and_room_lets_it_go_on() {
    let (world, _) = stocked();
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(LocalStorage::new(dir.path().join("copy"), Reserve::Percent(100.0)));
    let error = try_copy(&world, full).unwrap_err();
    assert!(error.kind() == ErrorKind::Failed && lab::full(&error).contains("must stay free"), "{}", lab::full(&error));
    let storage = Arc::new(LocalStorage::new(dir.path().join("copy"), Reserve::Bytes(0)));
    assert!(storage.list("").unwrap().is_empty());
    copy_of(&world, storage.clone());
    assert_eq!(content(&*storage), content(&*world.storage));
    // And back, onto another empty place.
    let back = empty();
    copy_of(&world.over(storage), back.clone());
    assert_eq!(content(&*back), content(&*world.storage));
}

#[test]
fn chosen_snapshots_are_copied_alone() {
    let (world, _) = stocked();
    let storage = empty();
    let only = vec![world::id(Sequence(2))];
    let request = CopyRequest { only, ..CopyRequest::default() };
    let report = copy_as(&world, storage.clone(), &request, &run()).unwrap();
    assert_eq!(report.snapshots, [world::id(Sequence(2))]);
    let there = world.over(storage);
    assert_eq!(there.chain().all().count(), 1);
    assert!(there.read(there.chain().all().next().unwrap())[0].1.len() == 1_000_000);
}

// --- a repository, or a copy, that went back ---------------------------------------------------------------------------

#[test]
fn a_copy_that_is_ahead_shows_that_the_repository_went_back() {
    let (world, _) = stocked();
    let (storage, earlier) = (empty(), world.copy());
    world.snapshot(&[("a", &noise(50, 100_000))]);
    copy_of(&world, storage.clone());
    let report = try_copy(&earlier.forgetful(), storage.clone()).unwrap();
    assert_eq!(report.failure(), Some(ErrorKind::Integrity));
    assert!(report.alarms.len() == 1 && report.alarms[0].contains("holds snapshot 4, the newest one"), "{report:#?}");
    // A header lost here, and its follower still there.
    let header = world.keys("snapshots/web-1/shop/").remove(1);
    world.delete(&header);
    let report = try_copy(&world, storage.clone()).unwrap();
    assert!(report.alarms[0].contains("lacks snapshot 2"), "{report:#?}");
    // The copy gives it back.
    let back = copy_of(&world.over(storage), world.storage.clone());
    assert_eq!((back.snapshots.len(), back.objects), (1, 1));
    // What nobody signed alarms nobody.
    let forged: StorageKey = "snapshots/web-1/shop/0000000009.20261121T100000Z-00000009.json".parse().unwrap();
    let storage = empty();
    copy_of(&world, storage.clone());
    storage.put_new(&forged, &world.get(&header)).unwrap();
    let report = try_copy(&world, storage).unwrap();
    assert!(report.alarms.is_empty() && report.problems[0].object == forged.as_str(), "{report:#?}");
}

#[test]
fn a_copy_that_went_back_or_is_gone_is_noticed() {
    let (world, _) = stocked();
    let storage = empty();
    copy_as(&world, storage.clone(), &CopyRequest::default(), &run()).unwrap();
    let there = world.over(storage.clone());
    let newest = there.keys("snapshots/web-1/shop/").pop().unwrap();
    there.delete(&newest);
    let report = copy_as(&world, storage.clone(), &CopyRequest::default(), &run()).unwrap();
    assert!(report.alarms[0].contains("was left with snapshot 3, the newest one there was 2"), "{report:#?}");
    assert_eq!(report.snapshots.len(), 1, "and mended");
    assert_eq!(copy_as(&world, storage, &CopyRequest::default(), &run()).unwrap().failure(), None);
    // An empty folder where the copy was: a disk that is not mounted.
    let error = copy_as(&world, empty(), &CopyRequest::default(), &run()).unwrap_err();
    assert!(lab::full(&error).contains("mounted"), "{}", lab::full(&error));
    assert_eq!(copy_of(&world, empty()).snapshots.len(), 4, "said by name, it is begun anew");
}

// --- as the policy says -------------------------------------------------------------------------------------------------

fn lab_with_copies(copies: &str) -> (Lab, lab::Sources) {
    let mut lab = Lab::new();
    lab.add_to_policy(&format!("copies = [{copies}]\n").replace('@', lab.root.to_str().unwrap()));
    std::fs::create_dir_all(lab.path("data")).unwrap();
    std::fs::write(lab.path("data/blob"), noise(3, 400_000)).unwrap();
    let sources = lab.sources(&[lab::files("data", &[&lab.path("data")])]);
    (lab, sources)
}

fn reading(lab: &Lab, copy: &str) -> AccessRequest {
    AccessRequest { repository: Some(RepositoryUrl::Local(lab.path(copy))), ..lab.request() }
}

#[test]
fn every_snapshot_goes_to_the_copies_and_a_failure_is_told() {
    let (lab, sources) = lab_with_copies(r#""@/nas", "@/usb""#);
    let report = lab.try_snapshot(&sources, &[]).unwrap_or_else(|e| panic!("{}", lab::full(&e)));
    assert_eq!(report.copies.iter().map(|c| c.kind).collect::<Vec<_>>(), [None, None], "{:#?}", report.copies);
    assert!(report.notices.is_empty() && report.alarm.is_none(), "{report:#?}");
    // One copy cannot be reached: it is told, the other is made, the snapshot stands.
    std::fs::rename(lab.path("nas"), lab.path("away")).unwrap();
    std::fs::write(lab.path("nas"), "no folder").unwrap();
    let report = lab.try_snapshot(&sources, &[]).unwrap();
    let kinds: Vec<_> = report.copies.iter().map(|c| c.kind).collect();
    assert_eq!(kinds, [Some(ErrorKind::Failed), None], "{:#?}", report.copies);
    std::fs::remove_file(lab.path("nas")).unwrap();
    std::fs::create_dir(lab.path("nas")).unwrap();
    let report = lab.try_snapshot(&sources, &[]).unwrap();
    assert!(report.copies[0].hint.as_ref().unwrap().contains("mounted"), "{:#?}", report.copies);
    assert!(std::fs::read_dir(lab.path("nas")).unwrap().all(|e| e.unwrap().file_name() == ".writers.lock"));
    // Behind, and read as what it is; then it catches up.
    std::fs::remove_dir_all(lab.path("nas")).unwrap();
    std::fs::rename(lab.path("away"), lab.path("nas")).unwrap();
    let access = Access::open(&lab.installation, &reading(&lab, "nas")).unwrap();
    assert!(
        access.alarms.is_empty() && access.notices[0].contains("behind"),
        "{:?} {:?}",
        access.alarms,
        access.notices
    );
    let report = lab.try_snapshot(&sources, &[]).unwrap();
    assert_eq!(report.copies[0].report.as_ref().unwrap().snapshots.len(), 3);
    let access = Access::open(&lab.installation, &reading(&lab, "nas")).unwrap();
    assert!(access.alarms.is_empty() && access.notices.is_empty(), "{:?} {:?}", access.alarms, access.notices);
    assert_eq!(access.chain.all().count(), 4);
    // A copy that has gone back behind what it was left with alarms its readers.
    let headers = LocalStorage::new(lab.path("nas"), Reserve::Bytes(0)).list("snapshots/").unwrap();
    std::fs::remove_file(lab.path("nas").join(headers.last().unwrap().key.as_str())).unwrap();
    let access = Access::open(&lab.installation, &reading(&lab, "nas")).unwrap();
    assert!(access.alarms[0].contains("rolled back"), "{:?}", access.alarms);
}

#[test]
fn a_repository_that_went_back_is_known_by_its_copy_also_to_a_host_that_remembers_nothing() {
    let (lab, sources) = lab_with_copies(r#""@/nas""#);
    lab.snapshot(&sources, &[]);
    lab.snapshot(&sources, &[]);
    let headers = LocalStorage::new(lab.path("repository"), Reserve::Bytes(0)).list("snapshots/").unwrap();
    std::fs::remove_file(lab.path("repository").join(headers[1].key.as_str())).unwrap();
    std::fs::remove_dir_all(lab.path("state")).unwrap();
    let report = lab.try_snapshot(&sources, &[]).unwrap();
    assert!(
        report.alarm.as_ref().unwrap().contains("holds snapshot 2, the newest one in the repository is 1"),
        "{report:#?}"
    );
    assert_eq!(report.header.sequence, Sequence(3), "no number is used twice");
    // Nor without any copy within reach, which is a notice.
    std::fs::rename(lab.path("nas"), lab.path("away")).unwrap();
    std::fs::write(lab.path("nas"), "no folder").unwrap();
    let report = lab.try_snapshot(&sources, &[]).unwrap();
    assert_eq!(report.header.sequence, Sequence(4));
}

#[test]
fn a_copy_restores_without_the_repository() {
    let (lab, sources) = lab_with_copies(r#""@/nas""#);
    let id = lab.snapshot(&sources, &[]);
    std::fs::remove_dir_all(lab.path("repository")).unwrap();
    std::fs::remove_dir_all(lab.path("state")).unwrap();
    let identity = Some(lab.installation.identity());
    let request = AccessRequest { policy: None, identity, ..reading(&lab, "nas") };
    let access = Access::open(&lab.installation, &request).unwrap();
    let into = lab.path("into");
    let mut request = lifeboat::ops::restore::RestoreRequest::new(&id, &into);
    request.privileged = true;
    let plan = lifeboat::ops::restore::plan(&access, &request, &run()).unwrap();
    let report = lifeboat::ops::restore::run(&access, &plan, &run()).unwrap();
    assert!(report.is_complete());
    let restored = std::fs::read(lab::below(&into, "data", &lab.path("data/blob"))).unwrap();
    assert!(restored == noise(3, 400_000));
}

#[test]
fn refs_are_read_once_however_many_snapshots_share_their_archives() {
    let world = World::memory();
    let bytes = noise(1, 200_000);
    for n in 0..120u64 {
        world.snapshot(&[("a", &bytes), ("b", &n.to_le_bytes())]);
    }
    let from = Arc::new(Rigged::new(world.storage.clone()));
    let access = world.over(from.clone()).access(false).unwrap();
    from.reads.lock().unwrap().clear();
    let storage = empty();
    let request = CopyRequest::default();
    copy::copy(&access, &target(storage.clone()), &request, &run()).unwrap();
    let reads = from.reads.lock().unwrap().clone();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    reads.iter().for_each(|key| *counts.entry(key.as_str()).or_default() += 1);
    // Once to plan and once to copy; repository.json to compare as well.
    let most = counts.iter().filter(|(key, _)| **key != "repository.json").map(|(_, n)| *n).max();
    assert!(most <= Some(2), "{counts:?}");
    assert_eq!(object_ids(&*storage), object_ids(&*world.storage));
    assert!(world.over(storage).verify_as_stranger(OBJECTS).unwrap().findings.is_empty());
}

fn object_ids(storage: &dyn Storage) -> Vec<String> {
    content(storage).into_values().map(|bytes| object_id(&bytes).to_string()).collect()
}

/// Plans stay linear: 2,000 snapshots with refs of 500 archives each.
#[test]
fn two_thousand_snapshots_that_share_their_archives_are_planned_and_copied_in_little_time() {
    use lifeboat::pipeline::sign::Namespace;
    let world = World::memory();
    let committed = world.snapshot(&[("a", &noise(1, 20_000))]);
    let mut refs = lifeboat::repository::refs::Refs::default();
    for n in 0..500u64 {
        let bytes = noise(n, 64);
        world.storage.put_new(&layout::archive(object_id(&bytes)), &bytes).unwrap();
        refs.archives.insert(object_id(&bytes), 64);
    }
    let mut previous = committed.header_id;
    for n in 2..=2_000u64 {
        // One archive of its own each, as days go.
        let bytes = noise(10_000 + n, 64);
        world.storage.put_new(&layout::archive(object_id(&bytes)), &bytes).unwrap();
        let mut refs = refs.clone();
        refs.archives.insert(object_id(&bytes), 64);
        let refs = refs.to_bytes();
        world.storage.put_new(&layout::refs(object_id(&refs)), &refs).unwrap();
        let mut header = committed.header.clone();
        header.sequence = Sequence(n);
        header.id = format!("20261122T{n:06}Z-{n:08x}").parse().unwrap_or_else(|_| {
            format!("20261122T{:02}{:02}{:02}Z-{n:08x}", n / 3600, n / 60 % 60, n % 60).parse().unwrap()
        });
        header.previous = Some(previous);
        header.refs = object_id(&refs);
        let line = serde_json::to_string(&header).unwrap();
        let bytes = world.host_key.signing.sign(Namespace::Snapshot, &line).unwrap();
        let key = layout::header(&header.host, &header.policy, header.sequence, &header.id);
        world.storage.put_new(&key, &bytes).unwrap();
        previous = object_id(&bytes);
    }
    let access = world.forgetful().access(false).unwrap();
    assert!(access.chain.problems.is_empty(), "{:?}", access.chain.problems[0]);
    let from = Arc::new(Rigged::new(world.storage.clone()));
    let storage = empty();
    let begun = Instant::now();
    copy::copy(&access, &target(storage.clone()), &CopyRequest::default(), &run()).unwrap();
    let whole = begun.elapsed();
    // The next day: nothing is read but what is new.
    storage.delete(&world.keys("snapshots/").pop().unwrap()).unwrap();
    let access = world.over(from.clone()).forgetful().access(false).unwrap();
    from.reads.lock().unwrap().clear();
    let begun = Instant::now();
    let report = copy::copy(&access, &target(storage.clone()), &CopyRequest::default(), &run()).unwrap();
    let next = begun.elapsed();
    assert_eq!((report.snapshots.len(), report.objects), (1, 1));
    let refs = from.reads.lock().unwrap().iter().filter(|key| key.starts_with("refs/")).count();
    assert_eq!(refs, 1);
    assert!(storage.list("").unwrap().len() == world.storage.list("").unwrap().len());
    println!("whole: {whole:?}, next: {next:?}");
    assert!(whole < Duration::from_secs(120) && next < Duration::from_secs(30), "whole: {whole:?}, next: {next:?}");
}
