//! Prune: what retention removes goes in two phases, beside writers, killed anywhere, under clocks that lie, and never
//! when something is in doubt.

#[path = "support/prune.rs"]
mod prune;
#[path = "support/rigged.rs"]
mod rigged;
#[path = "support/world.rs"]
mod world;

use chrono::TimeDelta;
use lifeboat::base::ids::ObjectId;
use lifeboat::base::stream::StreamKind;
use lifeboat::ops::OpsError;
use lifeboat::ops::prune::{self as ops, PruneOptions};
use lifeboat::ops::setup::{self, Good, plan_revoke};
use lifeboat::pipeline::sign::{Namespace, SigningKey};
use lifeboat::repository::RepositoryError;
use lifeboat::repository::format::Role;
use lifeboat::repository::writer::{Committed, SnapshotWriter};
use lifeboat::repository::{layout, state::State};
use lifeboat::storage::{ObjectInfo, Put, Storage, StorageError, StorageKey};
use prune::Pruned;
use rigged::{Fault, Rigged};
use std::collections::HashSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use world::{World, noise};

const HOUR: TimeDelta = TimeDelta::hours(1);
const DAY: TimeDelta = TimeDelta::days(1);

/// Takes `n` snapshots, each with half a MiB of its own and something in common.
fn take(pruned: &Pruned, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        pruned.world.snapshot(&[("own", &noise(seed, 500_000)), ("common", &noise(1000, 300_000))]);
        pruned.pass(HOUR);
    }
}

/// Ids of what is stored and no snapshot references.
fn unreferenced(pruned: &Pruned) -> usize {
    pruned.world.verify(world::OBJECTS).unwrap().unreferenced.unwrap().objects
}

#[test]
fn what_retention_removes_goes_in_two_phases() {
    let pruned = Pruned::new("keep_last = 2");
    take(&pruned, 0..5);
    let before = pruned.count("");
    let report = pruned.prune().unwrap();
    assert_eq!(
        (report.removed, report.condemned.objects, report.deleted.objects),
        (3, 0, 0),
        "all is younger than 7 days"
    );
    assert_eq!(pruned.sequences(), [4, 5]);
    pruned.is_sound("removed");
    assert_eq!(pruned.count(layout::RECORDS), 1);
    assert_eq!(pruned.count(""), before - 3 + 2, "three headers less, a record and a signer more");

    pruned.pass(TimeDelta::days(8));
    let garbage = unreferenced(&pruned);
    assert!(garbage >= 9, "archive, refs and manifest of three: {garbage}");
    let report = pruned.prune().unwrap();
    assert_eq!((report.condemned.objects, report.deleted.objects), (garbage, 0));
    pruned.is_sound("condemned");
    pruned.pass(HOUR * 35);
    let plan = pruned.plan().unwrap();
    assert_eq!((plan.waiting.objects, plan.delete.objects), (garbage, 0));
    assert_eq!(pruned.prune().unwrap().deleted.objects, 0, "35 h are not 36");
    pruned.pass(HOUR * 2);
    assert_eq!(pruned.prune().unwrap().deleted.objects, garbage);
    assert_eq!(unreferenced(&pruned), 0);
    assert_eq!(pruned.count(layout::TRASH), 0);
    pruned.is_sound("deleted");
    take(&pruned, 5..6);
    assert_eq!(pruned.sequences(), [4, 5, 6]);
    pruned.is_sound("and on");
}

/// A first upload that takes 40 hours, with a prune every few hours: nothing of it is ever condemned. One that is
/// killed is collected, but only after a week and the grace.
#[test]
fn a_long_first_upload_is_left_alone() {
    let pruned = Pruned::new("keep_last = 1");
    let world = &pruned.world;
    let writer = world.writer(&world.open()).unwrap();
    let mut streams = Vec::new();
    for hours in 0..8u64 {
        let mut stream = writer.stream("files", "a", StreamKind::Raw, None);
        // More than one archive holds, so that it is stored while the run goes on.
        std::io::Write::write_all(&mut stream, &noise(hours, 17 << 20)).unwrap();
        streams.push(stream.finish().unwrap());
        pruned.pass(HOUR * 5);
        let report = pruned.prune().unwrap();
        assert_eq!((report.condemned.objects, report.deleted.objects), (0, 0), "after {} h", (hours + 1) * 5);
    }
    assert!(pruned.count(layout::ARCHIVES) >= 7);
    drop(writer);
    let stored = pruned.count(layout::ARCHIVES);
    pruned.pass(DAY * 5);
    assert_eq!(pruned.prune().unwrap().condemned.objects, 0, "six and a half days after its begin");
    pruned.pass(DAY * 2);
    assert_eq!(pruned.prune().unwrap().condemned.objects, stored);
    pruned.pass(HOUR * 37);
    assert_eq!(pruned.prune().unwrap().deleted.objects, stored);
    assert_eq!(pruned.count(layout::ARCHIVES), 0);
}

/// A writer that sleeps between its begin and its header counts on nothing that was condemned for half the grace; what
/// was condemned later, and is referenced now, is let go.
#[test]
fn a_suspended_writer_does_not_count_on_what_may_be_gone() {
    for hours in [17, 19, 40] {
        let pruned = Pruned::new("keep_last = 1");
        let world = &pruned.world;
        let (data, other) = (noise(1, 500_000), noise(2, 500_000));
        world.snapshot(&[("a", &data)]);
        world.snapshot(&[("b", &other)]);
        pruned.pass(DAY * 8);
        let writer = world.writer(&world.open()).unwrap();
        let mut stream = writer.stream("files", "a", StreamKind::Raw, None);
        std::io::Write::write_all(&mut stream, &data).unwrap();
        let parts = stream.finish().unwrap();
        // The first prune of this host: its key is vouched for only now, and the writer must learn of that.
        assert!(pruned.prune().unwrap().condemned.objects > 0);
        pruned.pass(HOUR * hours);
        if hours > 36 {
            assert!(pruned.prune().unwrap().deleted.objects > 0);
        }
        let entry = world::source_entry("files", vec![world::stream_entry("a", parts)]);
        let draft = world::draft(writer.sequence(), vec![entry]);
        let committed = writer.commit(draft, &world.host_key);
        if hours == 17 {
            committed.unwrap();
            assert_eq!(pruned.sequences(), [2, 3]);
        } else {
            let error = committed.unwrap_err();
            assert!(matches!(error, RepositoryError::ReferencedGone { .. }), "{hours} h: {error}");
            assert_eq!(pruned.sequences(), [2], "{hours} h: no header, no snapshot");
            // The next run stores it anew, and does not count on what is condemned.
            world.snapshot(&[("a", &data)]);
        }
        pruned.pass(HOUR * 37);
        pruned.prune().unwrap();
        pruned.is_sound("let go, or stored anew");
        assert!(world.read(pruned.snapshots().last().unwrap())[0].1 == data);
    }
}

/// What a long run counts on may be condemned before it begins and deleted while it goes on, and the trash that says so with
/// it: only a look at what is there tells. What is there and shorter is as good as gone.
#[test]
fn the_last_look_finds_whatever_is_gone() {
    for folder in [layout::ARCHIVES, layout::INDEX, layout::REFS] {
        for shorter in [false, true] {
            let pruned = Pruned::new("keep_last = 1");
            let world = &pruned.world;
            let data = noise(1, 500_000);
            world.snapshot(&[("a", &data)]);
            let writer = world.writer(&world.open()).unwrap();
            let mut stream = writer.stream("files", "a", StreamKind::Raw, None);
            std::io::Write::write_all(&mut stream, &data).unwrap();
            let parts = stream.finish().unwrap();
            for key in world.keys(folder) {
                let bytes = world.get(&key);
                world.storage.delete(&key).unwrap();
                if shorter {
                    world.storage.put_new(&key, &bytes[..bytes.len() - 1]).unwrap();
                }
            }
            let entry = world::source_entry("files", vec![world::stream_entry("a", parts)]);
            let draft = world::draft(writer.sequence(), vec![entry]);
            let committed = writer.commit(draft, &world.host_key);
            let what = format!("{folder}, shorter: {shorter}");
            if folder == layout::REFS && !shorter {
                committed.unwrap();
            } else {
                let error = committed.unwrap_err();
                // Nobody puts other bytes where some are.
                let said = matches!(error, RepositoryError::ReferencedGone { .. }) || folder == layout::REFS;
                assert!(said, "{what}: {error}");
                assert_eq!(pruned.sequences(), [1], "{what}: no header, no snapshot");
                if shorter {
                    continue;
                }
                world.snapshot(&[("a", &data)]);
            }
            assert!(world.read(pruned.snapshots().last().unwrap())[0].1 == data, "{what}");
        }
    }
}

/// A snapshot of what is there already, between whose last byte and whose header a prune condemns, and time passes.
fn late(pruned: &Pruned, data: &[u8], time: TimeDelta) -> Result<Committed, RepositoryError> {
    let world = &pruned.world;
    let writer = world.writer(&world.open()).unwrap();
    let mut stream = writer.stream("files", "a", StreamKind::Raw, None);
    std::io::Write::write_all(&mut stream, data).unwrap();
    let parts = stream.finish().unwrap();
    assert!(pruned.prune().unwrap().condemned.objects > 0);
    pruned.pass(time);
    let entry = world::source_entry("files", vec![world::stream_entry("a", parts)]);
    let draft = world::draft(writer.sequence(), vec![entry]);
    writer.commit(draft, &world.host_key)
}

/// Refs have the name that their content gives them: a run that needs what a removed snapshot needed has refs that may be
/// condemned while it goes on, whatever else it counts on.
#[test]
fn the_last_look_counts_on_no_refs_that_were_condemned_meanwhile() {
    let pruned = Pruned::new("keep_last = 1");
    let world = &pruned.world;
    let (data, other) = (noise(1, 500_000), noise(2, 500_000));
    world.snapshot(&[("a", &data)]);
    world.snapshot(&[("a", &data), ("b", &other)]);
    pruned.pass(DAY * 8);
    let error = late(&pruned, &data, HOUR * 19).unwrap_err();
    let RepositoryError::ReferencedGone { id } = error else { panic!("{error}") };
    assert!(world.keys(layout::REFS).contains(&layout::refs(id)), "{id} are no refs");
    assert_eq!(pruned.sequences(), [2], "no header, no snapshot");
    world.snapshot(&[("a", &data)]);
    pruned.pass(HOUR * 37);
    pruned.prune().unwrap();
    pruned.is_sound("stored anew");
    assert!(world.read(pruned.snapshots().last().unwrap())[0].1 == data);
}

/// A writer that stood still between its last look and its header looks again behind it: a prune that saw no header may have
/// deleted meanwhile.
#[test]
fn whoever_slept_before_the_header_looks_again() {
    for (holds, is_noticed) in [(Duration::ZERO, true), (Duration::from_secs(3600), false)] {
        let pruned = Pruned::new("keep_last = 1");
        let memory = pruned.memory.clone();
        let deleting = Rigged::new(pruned.memory.clone()).on_put(move |_, key| {
            if key.as_str().starts_with(layout::SNAPSHOTS) {
                let archives = memory.list(layout::ARCHIVES).unwrap();
                memory.delete(&archives[0].key).unwrap();
            }
            None
        });
        let world = pruned.world.over(Arc::new(deleting));
        let writer = world.writer(&world.open()).unwrap().with_check_holding(holds);
        let taken = world.write(writer, &[("files", &[("a", &noise(1, 500_000))])]);
        assert!(pruned.sequences() == [1], "the header is there");
        match taken {
            Ok(_) => assert!(!is_noticed),
            Err(error) => assert!(is_noticed && matches!(error, RepositoryError::ReferencedGone { .. }), "{error}"),
        }
    }
}

/// A header that comes between the plan and the deletion saves what it references.
#[test]
fn the_last_look_counts() {
    let pruned = Pruned::new("keep_last = 2");
    let world = &pruned.world;
    let data = noise(1, 500_000);
    for seed in [1, 2, 3] {
        world.snapshot(&[("a", &noise(seed, 500_000))]);
    }
    pruned.pass(DAY * 8);
    let late = late(&pruned, &data, HOUR * 17).unwrap();
    pruned.pass(HOUR * 20);
    // The plan is made by somebody who remembers nothing, before that header is listed.
    let key = layout::header(&late.header.host, &late.header.policy, late.header.sequence, &late.header.id);
    let hiding = Listing {
        inner: pruned.memory.clone(),
        lists: AtomicUsize::new(0),
        answer: Box::new(move |_, _, list| Ok(list.into_iter().filter(|o| o.key != key).collect())),
    };
    let blind = pruned.over(Arc::new(hiding)).world.forgetful();
    let access = blind.access(true).unwrap();
    let plan = ops::plan(&access, &pruned.policy, &pruned.options(), &pruned.run()).unwrap();
    assert!(plan.delete.objects >= 3, "the archive, too");
    let run = pruned.run();
    let (installation, request) = (pruned.installation(), lifeboat::ops::access::AccessRequest::default());
    let access = pruned.access().unwrap();
    ops::run(&installation, &access, &request, &plan, &pruned.options(), &run).unwrap();
    pruned.is_sound("what the late header needs is there");
    assert!(world.read(pruned.snapshots().last().unwrap())[0].1 == data);
}

/// Refs have the name of their content: when those of a removed snapshot are condemned and a new one would have the same,
/// it gets others.
#[test]
fn refs_that_are_condemned_get_another_name() {
    let pruned = Pruned::new("keep_last = 1\nkeep_tagged = true");
    let world = &pruned.world;
    let (a, b) = (noise(1, 400_000), noise(2, 400_000));
    // 1 needs {A}, 2 needs {A, B}: when 1 goes, its refs go alone.
    world.snapshot(&[("a", &a)]);
    world.snapshot(&[("a", &a), ("b", &b)]);
    let refs = pruned.snapshots()[0].header.refs;
    pruned.pass(DAY * 8);
    pruned.prune().unwrap();
    pruned.pass(HOUR * 20);
    let third = world.snapshot(&[("a", &a)]);
    assert_ne!(third.header.refs, refs, "they could be gone at any moment");
    pruned.pass(HOUR * 17);
    assert!(pruned.prune().unwrap().deleted.objects > 0);
    pruned.is_sound("the old refs are gone");
}

#[test]
fn forged_trash_condemns_nothing_and_honest_trash_deletes_nothing_that_is_needed() {
    let pruned = Pruned::new("keep_last = 5");
    let world = &pruned.world;
    take(&pruned, 0..2);
    pruned.prune().unwrap();
    let archives: Vec<ObjectId> = world.keys(layout::ARCHIVES).iter().filter_map(layout::object_id).collect();
    let everything = |key: &SigningKey| {
        let json = serde_json::json!({
            "kind": "trash", "format": 1, "requires": [], "repository": world.open().id(),
            "time": "2026-11-21T10:00:00Z", "objects": archives,
        });
        world.put_dated(layout::TRASH, Namespace::Trash, key, &json)
    };
    let stranger = SigningKey::from_seed(&[7; 32]);
    let host = everything(&world.host_key.signing);
    let unknown = everything(&stranger);
    pruned.pass(DAY * 30);
    assert_eq!(pruned.prune().unwrap().deleted.objects, 0);
    assert!(
        world.keys(layout::TRASH).contains(&host) && world.keys(layout::TRASH).contains(&unknown),
        "left as they are"
    );
    let named: HashSet<String> = world.verify(world::OBJECTS).unwrap().findings.into_iter().map(|f| f.object).collect();
    assert_eq!(named, HashSet::from([host.to_string(), unknown.to_string()]), "verify names them");
    // A key that may prune condemns what is in use: phase 2 sees that it is.
    world.delete(&host);
    world.delete(&unknown);
    world.vouch(&world.host_key.signing, Role::Prune);
    let mad = everything(&world.host_key.signing);
    pruned.pass(DAY * 30);
    assert_eq!(pruned.prune().unwrap().deleted.objects, 0);
    assert!(!world.keys(layout::TRASH).contains(&mad), "it has been dealt with");
    pruned.is_sound("all is there");
}

type Answer = dyn Fn(usize, &str, Vec<ObjectInfo>) -> Result<Vec<ObjectInfo>, StorageError> + Send + Sync;

/// A storage whose lists hide, cut short or fail.
struct Listing {
    inner: Arc<dyn Storage>,
    lists: AtomicUsize,
    answer: Box<Answer>,
}

impl Storage for Listing {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn put_new(&self, key: &StorageKey, bytes: &[u8]) -> Result<Put, StorageError> {
        self.inner.put_new(key, bytes)
    }
    fn get(&self, key: &StorageKey, limit: u64) -> Result<Vec<u8>, StorageError> {
        self.inner.get(key, limit)
    }
    fn get_range(&self, key: &StorageKey, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        self.inner.get_range(key, offset, length)
    }
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StorageError> {
        let number = self.lists.fetch_add(1, Ordering::SeqCst);
        (self.answer)(number, prefix, self.inner.list(prefix)?)
    }
    fn head(&self, key: &StorageKey) -> Result<Option<ObjectInfo>, StorageError> {
        self.inner.head(key)
    }
    fn delete(&self, key: &StorageKey) -> Result<(), StorageError> {
        self.inner.delete(key)
    }
    fn clock(&self) -> Result<chrono::DateTime<chrono::Utc>, StorageError> {
        self.inner.clock()
    }
}

/// Ready to delete: two snapshots removed, their objects condemned for long enough.
fn due() -> Pruned {
    let pruned = Pruned::new("keep_last = 2");
    take(&pruned, 0..4);
    pruned.pass(TimeDelta::days(8));
    pruned.prune().unwrap();
    pruned.pass(HOUR * 40);
    pruned
}

#[test]
fn a_list_that_fails_or_lies_deletes_nothing() {
    let pruned = due();
    let objects = pruned.count("");
    assert!(pruned.plan().unwrap().delete.objects > 0);
    let lists = {
        let counting = Arc::new(Listing {
            inner: pruned.memory.clone(),
            lists: AtomicUsize::new(0),
            answer: Box::new(|_, _, l| Ok(l)),
        });
        pruned.over(counting.clone()).plan().unwrap();
        counting.lists.load(Ordering::SeqCst)
    };
    // Every list of plan and run fails in turn; the run's own come last.
    for at in 0..lists + 2 {
        let failing = Listing {
            inner: pruned.memory.clone(),
            lists: AtomicUsize::new(0),
            answer: Box::new(move |n, prefix, list| {
                let error = std::io::Error::new(ErrorKind::TimedOut, "cut short");
                let failed = StorageError::Io { action: "list", location: prefix.to_owned(), source: error };
                if n == at { Err(failed) } else { Ok(list) }
            }),
        };
        let error = pruned.over(Arc::new(failing)).prune().unwrap_err();
        assert!(world_text(&error).contains("cut short"), "list {at}: {error}");
        assert_eq!(pruned.count(""), objects, "list {at}: nothing is deleted");
    }
    // A header that a list leaves out, in the first look or only in the last: nothing is deleted either.
    let headers = pruned.snapshots();
    for hidden in headers.iter().map(|s| s.key.clone()) {
        for from in [0, lists] {
            let key = hidden.clone();
            let hiding = Listing {
                inner: pruned.memory.clone(),
                lists: AtomicUsize::new(0),
                answer: Box::new(move |n, _, list| Ok(list.into_iter().filter(|o| n < from || o.key != key).collect())),
            };
            let error = pruned.over(Arc::new(hiding)).prune().unwrap_err();
            assert!(matches!(error, OpsError::Doubt { .. }), "{hidden} from list {from}: {error}");
            assert_eq!(pruned.count(""), objects, "{hidden} from list {from}");
        }
    }
    assert!(pruned.prune().unwrap().deleted.objects > 0, "and an honest storage lets it go on");
    pruned.is_sound("after all");
}

fn world_text(error: &OpsError) -> String {
    lifeboat::repository::chain::full_text(error)
}

#[test]
fn what_is_damaged_or_missing_stops_it_until_somebody_accepts_the_loss() {
    for case in
        ["damaged header", "missing header", "newest missing", "newest damaged", "damaged refs", "damaged record"]
    {
        let pruned = due();
        let world = &pruned.world;
        let (first, last) = (pruned.snapshots()[0].clone(), pruned.snapshots()[1].clone());
        let refs = layout::refs(first.header.refs);
        let record = world.keys(layout::RECORDS)[0].clone();
        let hit = |key: &StorageKey| {
            let mut bytes = world.get(key);
            let middle = bytes.len() / 3;
            bytes[middle] ^= 1;
            world.set(key, &bytes);
        };
        match case {
            "damaged header" => hit(&first.key),
            "missing header" => world.delete(&first.key),
            "newest missing" => world.delete(&last.key),
            "newest damaged" => hit(&last.key),
            "damaged refs" => hit(&refs),
            _ => hit(&record),
        }
        let objects = pruned.count("");
        let error = pruned.prune().unwrap_err();
        assert_eq!(error.kind(), lifeboat::ops::ErrorKind::Integrity, "{case}: {error}");
        assert_eq!(pruned.count(""), objects, "{case}: nothing is deleted");
        if case == "damaged refs" {
            // The snapshot itself is there, so this is for verify and a copy to mend.
            assert!(world_text(&error).contains(refs.as_str()), "{case}: {error}");
            continue;
        }
        let accept = PruneOptions { accept_lost: true, ..pruned.options() };
        let report = pruned.prune_with(&accept).unwrap_or_else(|e| panic!("{case}: {}", world_text(&e)));
        let rest = (report.removed, report.condemned.objects, report.deleted.objects);
        assert_eq!(rest, (0, 0, 0), "{case}: the loss is accepted, and nothing else is removed on top of it");
        pruned.is_sound(case);
        assert!(pruned.access().unwrap().alarms.is_empty(), "{case}");
        pruned.prune().unwrap();
        take(&pruned, 10..11);
        assert_eq!(*pruned.sequences().last().unwrap(), 5, "{case}: no sequence is used twice");
        pruned.is_sound(case);
    }
}

#[test]
fn a_clock_that_jumped_removes_nothing() {
    let pruned = Pruned::new("keep_within = \"7d\"");
    take(&pruned, 0..3);
    pruned.prune().unwrap();
    // The storage's clock and the host's jump together, as on a local disk: no time has passed on this machine.
    pruned.memory.advance(DAY * 400);
    let error = pruned.prune().unwrap_err();
    assert!(error.to_string().contains("jumped forward"), "{error}");
    assert_eq!(pruned.sequences(), [1, 2, 3]);
    // Only one of them jumps.
    let access = pruned.access().unwrap();
    let run = lifeboat::ops::Run { now: chrono::Utc::now(), ..pruned.run() };
    let error = ops::plan(&access, &pruned.policy, &pruned.options(), &run).unwrap_err();
    assert!(error.to_string().contains("storage's clock"), "{error}");
    pruned.memory.advance(DAY * -400);
    pruned.prune().unwrap();
    // Back to 1970: nothing is old then.
    pruned.pass(DAY * -20_000);
    assert_eq!(pruned.prune().unwrap().removed, 0);
    assert_eq!(pruned.sequences(), [1, 2, 3]);
}

/// A key with the role for one host removes no other host's snapshots.
#[test]
fn a_host_prunes_its_own() {
    let pruned = Pruned::new("keep_last = 1");
    take(&pruned, 0..2);
    let other: lifeboat::base::ids::HostName = "web-2".parse().unwrap();
    let removed = pruned.snapshots()[0].clone();
    let world = &pruned.world;
    let stray = SigningKey::from_seed(&[9; 32]);
    world.add_signer(&stray, lifeboat::repository::format::SignerAction::Add { role: Role::Prune, hosts: vec![other] });
    let note = serde_json::json!({"note": "prune", "removed": [{"sequence": 1, "header": removed.header_id}]});
    let key = world.put_dated(layout::RECORDS, Namespace::Record, &stray, &world.record(note));
    let chain = world.chain();
    assert!(!chain.was_pruned(&removed));
    assert!(chain.problems.iter().any(|p| p.key == key), "{:?}", chain.problems);
}

/// The process dies at every single put and delete: the next prune goes on, and what is retained is whole.
#[test]
fn killed_at_any_step_it_goes_on() {
    let build = || {
        let pruned = Pruned::new("keep_last = 2");
        take(&pruned, 0..3);
        pruned.pass(TimeDelta::days(8));
        pruned.prune().unwrap();
        take(&pruned, 3..5);
        pruned.pass(TimeDelta::days(8));
        // Now it removes two snapshots, condemns their objects, and deletes those of the first.
        pruned
    };
    let attempt = |pruned: &Pruned, rigged: Rigged| pruned.attempt(rigged, |over| over.prune().map(drop));
    let (counted, ended) = {
        let pruned = build();
        attempt(&pruned, Rigged::new(pruned.memory.clone()))
    };
    assert!(
        ended && counted.puts() >= 2 && counted.deletes() >= 5,
        "{} puts, {} deletes",
        counted.puts(),
        counted.deletes()
    );
    let recover = |pruned: &Pruned, what: &str| {
        // A new process with the state that the old one left.
        let state = Arc::new(State::open(pruned.world.state.dir()).unwrap());
        let world = World { state, ..pruned.world.over(pruned.memory.clone()) };
        let pruned = Pruned { world, memory: pruned.memory.clone(), policy: pruned.policy.clone() };
        pruned.is_sound(what);
        pruned.prune().unwrap_or_else(|e| panic!("{what}: {}", world_text(&e)));
        take(&pruned, 5..6);
        pruned.is_sound(what);
        for _ in 0..3 {
            pruned.pass(DAY * 9);
            pruned.prune().unwrap();
        }
        assert_eq!(pruned.sequences(), [5, 6], "{what}");
        assert_eq!((unreferenced(&pruned), pruned.count(layout::TRASH)), (0, 0), "{what}: nothing is left over");
        pruned.is_sound(what);
    };
    for n in 0..counted.puts() {
        let pruned = build();
        let rigged = Rigged::new(pruned.memory.clone()).on_put(move |at, _| (at == n).then_some(Fault::Death));
        let (_, ended) = attempt(&pruned, rigged);
        assert!(!ended, "put {n}");
        recover(&pruned, &format!("death at put {n}"));
    }
    for n in 0..counted.deletes() {
        let pruned = build();
        let (_, ended) = attempt(&pruned, Rigged::new(pruned.memory.clone()).on_delete(move |at| at == n));
        assert!(!ended, "delete {n}");
        recover(&pruned, &format!("death at delete {n}"));
    }
}

/// A writer at work, and what it will write.
struct Begun {
    writer: SnapshotWriter,
    files: Vec<(String, Vec<u8>)>,
    begun: TimeDelta,
}

/// Writers that begin, sleep, die and commit, prunes, and time that passes, in any order: whatever has a header restores.
#[test]
fn no_order_of_events_loses_a_snapshot() {
    for seed in 0..40u64 {
        let pruned = Pruned::new("keep_last = 2\nkeep_tagged = true");
        let mut random = Random(noise(seed, 4096), 0);
        let mut open: Option<Begun> = None;
        let mut clock = TimeDelta::zero();
        for step in 0..60 {
            let what = format!("seed {seed}, step {step}");
            let world = &pruned.world;
            match random.below(10) {
                // One writer at a time, as the policy's lock has it.
                0..=2 if open.is_none() => {
                    let writer = world.writer(&world.open()).unwrap();
                    let files = (0..1 + random.below(3)).map(|_| {
                        let file = random.below(6);
                        (format!("f{file}"), noise(file, 30_000))
                    });
                    let mut files: Vec<_> = files.collect();
                    files.sort();
                    files.dedup();
                    open = Some(Begun { writer, files, begun: clock });
                }
                3..=5 => {
                    if let Some(Begun { writer, files, begun }) = open.take() {
                        if clock - begun > TimeDelta::days(6) || random.below(5) == 0 {
                            drop(writer); // too long, or killed
                            continue;
                        }
                        let streams: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), &b[..])).collect();
                        match world.write(writer, &[("files", &streams)]) {
                            Ok(committed) => {
                                let snapshot = pruned
                                    .snapshots()
                                    .into_iter()
                                    .find(|s| s.header_id == committed.header_id)
                                    .unwrap();
                                let read = world.read(&snapshot);
                                assert!(read.iter().zip(&files).all(|(a, b)| a.1 == b.1), "{what}");
                            }
                            Err(RepositoryError::ReferencedGone { .. }) => {}
                            Err(e) => panic!("{what}: {e}"),
                        }
                    }
                }
                6 | 7 => {
                    pruned.prune().unwrap_or_else(|e| panic!("{what}: {}", world_text(&e)));
                }
                _ => {
                    let hours = [1, 10, 17, 19, 37, 100][random.below(6) as usize];
                    clock += HOUR * hours;
                    pruned.pass(HOUR * hours);
                }
            }
            if step % 10 == 9 {
                pruned.is_sound(&what);
            }
        }
        pruned.is_sound(&format!("seed {seed}, end"));
    }
}

struct Random(Vec<u8>, usize);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.1 += 1;
        u64::from(self.0[self.1 % self.0.len()]) % limit
    }
}

/// The writers' lock and a prune that deletes at once exclude each other, where there is a lock.
#[test]
fn deleting_at_once_waits_for_no_grace_and_for_every_writer() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Arc::new(lifeboat::storage::LocalStorage::new(
        dir.path().join("repository"),
        lifeboat::storage::local::Reserve::Bytes(0),
    ));
    let world = World::new(storage);
    let pruned = Pruned { world, memory: Arc::default(), policy: prune::policy("keep_last = 1") };
    for seed in 0..3 {
        pruned.world.snapshot(&[("a", &noise(seed, 500_000))]);
    }
    let writer = pruned.world.writer(&pruned.world.open()).unwrap();
    let access = pruned.access().unwrap();
    assert!(matches!(ops::lock(&access), Err(OpsError::Writing { .. })));
    drop(writer);
    let alone = ops::lock(&access).unwrap();
    let error = pruned.world.writer(&pruned.world.open()).err().unwrap();
    assert!(matches!(error, RepositoryError::Pruning { .. }), "{error}");
    let at_once = PruneOptions { immediately: true, ..pruned.options() };
    let report = pruned.prune_with(&at_once).unwrap();
    drop(alone);
    assert_eq!(report.removed, 2);
    assert!(report.deleted.objects >= 6 && report.condemned.objects == 0, "{report:?}");
    assert_eq!(unreferenced(&pruned), 0);
    pruned.is_sound("at once");
}

/// A host's key is revoked, and the process dies at every single put and delete of it: what is good stays, what was removed
/// stays explained, and the revocation said once more comes to its end.
#[test]
fn a_revocation_killed_at_any_step_is_done_again() {
    let build = || {
        let pruned = Pruned::new("keep_last = 2");
        take(&pruned, 0..3);
        pruned.pass(DAY * 8);
        pruned.prune().unwrap();
        take(&pruned, 3..4);
        pruned.pass(DAY * 8);
        // Records of what was removed, and what they removed condemned: all by the key.
        pruned.prune().unwrap();
        assert!(pruned.count(layout::TRASH) > 0 && pruned.count(layout::RECORDS) == 2);
        // What a thief signs with it.
        take(&pruned, 4..5);
        pruned
    };
    let revoke = |over: &Pruned| -> Result<(), OpsError> {
        let (access, installation, run) = (over.access()?, over.installation(), over.run());
        let key = over.world.host_key.signing.public().fingerprint().unwrap().to_string();
        let good = over.snapshots().into_iter().find(|s| s.header.sequence.0 == 4).expect("the last good one");
        let good = Good::UpTo(vec![good.header.id.to_string()]);
        let plan = plan_revoke(&installation, &access, Some(&key), &good, &run)?;
        setup::revoke(&installation, &access, &over.world.identity, &plan, &run)
    };
    let attempt = |pruned: &Pruned, rigged: Rigged| pruned.attempt(rigged, revoke);
    let newest = |pruned: &Pruned| pruned.world.keys(layout::SNAPSHOTS).pop().unwrap();
    let done = build();
    let read: Vec<_> = done.snapshots().iter().take(2).map(|s| done.world.read(s)).collect();
    let (counted, ended) = attempt(&done, Rigged::new(done.memory.clone()));
    let kinds: Vec<&str> = ["signers", "records", "signers"].into();
    let put: Vec<String> =
        counted.put_keys.lock().unwrap().iter().map(|key| key.split('/').next().unwrap().to_owned()).collect();
    let mut order = put.clone();
    order.dedup();
    // The root key may say records; it says them again; then the key counts no more, and what it said goes.
    assert!(ended && order == kinds && counted.deletes() >= 3, "{put:?}, {} deletes", counted.deletes());
    let is_revoked = |pruned: &Pruned, what: &str| {
        assert_eq!(pruned.sequences(), [3, 4], "{what}");
        let report = pruned.world.verify(world::DEEP).unwrap();
        let found: Vec<&str> = report.findings.iter().map(|f| f.object.as_str()).collect();
        assert_eq!(found, [newest(pruned).as_str()], "{what}: {:?}", report.findings);
        for (snapshot, expected) in pruned.snapshots().iter().zip(&read) {
            assert!(pruned.world.read(snapshot) == *expected, "{what}: snapshot {}", snapshot.header.id);
        }
        assert_eq!(pruned.count(layout::TRASH), 0, "{what}: what the key condemned");
    };
    is_revoked(&done, "done");
    let recover = |pruned: &Pruned, what: &str| {
        let state = Arc::new(State::open(pruned.world.state.dir()).unwrap());
        let world = World { state, ..pruned.world.over(pruned.memory.clone()) };
        let pruned = Pruned { world, memory: pruned.memory.clone(), policy: pruned.policy.clone() };
        // As it was before, or revoked: nothing that was good is lost, and nothing is missed that was removed.
        let (there, refused) = (pruned.sequences(), newest(&pruned));
        assert!(there == [3, 4, 5] || there == [3, 4], "{what}: {there:?}");
        let revoked = there == [3, 4];
        let report = pruned.world.verify(world::DEEP).unwrap();
        // What the key said counts for nothing from then on, and is told as long as it lies there.
        let mine = |object: &str| {
            object == refused.as_str() || [layout::RECORDS, layout::TRASH].iter().any(|p| object.starts_with(p))
        };
        let odd: Vec<_> = report.findings.iter().filter(|f| !revoked || !mine(&f.object)).collect();
        assert!(odd.is_empty(), "{what}: {odd:?}");
        for (snapshot, expected) in pruned.snapshots().iter().zip(&read) {
            assert!(pruned.world.read(snapshot) == *expected, "{what}: snapshot {}", snapshot.header.id);
        }
        revoke(&pruned).unwrap_or_else(|e| panic!("{what}: {}", world_text(&e)));
        is_revoked(&pruned, what);
    };
    for n in 0..counted.puts() {
        let pruned = build();
        let rigged = Rigged::new(pruned.memory.clone()).on_put(move |at, _| (at == n).then_some(Fault::Death));
        assert!(!attempt(&pruned, rigged).1, "put {n}");
        recover(&pruned, &format!("death at put {n}"));
    }
    for n in 0..counted.deletes() {
        let pruned = build();
        let rigged = Rigged::new(pruned.memory.clone()).on_delete(move |at| at == n);
        assert!(!attempt(&pruned, rigged).1, "delete {n}");
        recover(&pruned, &format!("death at delete {n}"));
    }
}
