//! Tags and holds: signed records that every reader sees, that nobody else can make, move or play again, and of which
//! the later one always wins.

#[path = "cli/world.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of this file")]
mod cli;
#[path = "support/world.rs"]
mod world;

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::base::ids::HostName;
use lifeboat::ops::access::Installation;
use lifeboat::ops::mark::{self, Mark, MarkReport};
use lifeboat::ops::{ErrorKind, OpsError, Run};
use lifeboat::pipeline::sign::Namespace;
use lifeboat::repository::chain::Chain;
use lifeboat::repository::format::{Record, Role, SignerAction};
use lifeboat::repository::keys::HostKey;
use lifeboat::repository::layout;
use lifeboat::repository::writer::{SnapshotWriter, WriterOptions};
use lifeboat::storage::StorageKey;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use world::{OBJECTS, World, host, run};

fn tag(name: &str) -> Mark {
    Mark::Tag(name.parse().unwrap())
}

fn untag(name: &str) -> Mark {
    Mark::Untag(name.parse().unwrap())
}

/// Marks as the host of this world does, at its `now`.
fn mark_at(world: &World, name: &str, what: &Mark, now: DateTime<Utc>) -> Result<MarkReport, OpsError> {
    let dir = world.dir.path();
    let installation = Installation { config_dir: dir.to_owned(), state_dir: dir.join("state") };
    let run = Run { now, ..run() };
    let lock = mark::lock(&installation, &run).unwrap();
    mark::mark(&installation, &world.access(false).unwrap(), &lock, name, what, &run)
}

fn mark(world: &World, name: &str, what: &Mark) -> MarkReport {
    mark_at(world, name, what, run().now).unwrap()
}

/// Tags and hold of the newest snapshot, as the chain has them.
fn state_of(world: &World) -> (Vec<String>, bool) {
    let chain = world.chain();
    let newest = chain.all().next_back().unwrap();
    (newest.tags.iter().map(ToString::to_string).collect(), newest.held)
}

fn record(world: &World, key: &StorageKey) -> Record {
    let bytes = world.get(key);
    serde_json::from_slice(&bytes[..bytes.iter().position(|b| *b == b'\n').unwrap()]).unwrap()
}

fn one_snapshot() -> World {
    let world = World::memory();
    world.snapshot(&[("a", b"one")]);
    world
}

#[test]
fn the_commands_mark_and_every_command_sees_it_also_on_a_sealed_host() {
    let world = cli::World::with_snapshot();
    fs::rename(world.identity(), world.path("usb.txt")).unwrap();
    world.run(&["tag", "latest", "v1.0"]).exits(0).shows(&["with v1.0: it is kept until it is untagged"]);
    world.run(&["hold", "v1.0"]).exits(0).shows(&["no prune removes it until it is released\n"]);
    world.run(&["list"]).exits(0).shows(&["first v1.0", "held"]);
    world.run(&["show", "v1.0"]).exits(0).shows(&["first v1.0", "held"]);
    assert_eq!(world.json(&["list", "--tag", "v1.0"])["snapshots"][0]["held"], true);
    world.run(&["untag", "latest", "first"]).exits(0).shows(&["took first from "]);
    world.run(&["release", "latest"]).exits(0).shows(&["[retention] decides again"]);
    let list = world.json(&["list"]);
    assert_eq!((&list["snapshots"][0]["tags"], &list["snapshots"][0]["held"]), (&json!(["v1.0"]), &json!(false)));
    world.run(&["verify"]).exits(0);
    // Four records, each under the name that its content gives it, and nothing else was written.
    assert_eq!(world.files("state/repository/records").len(), 4);
    // The ceiling is said where there is one.
    world.add_to_policy("[retention]\nmax_age = \"90d\"\nkeep_tagged = false\n");
    world.run(&["hold", "latest"]).exits(0).shows(&["released, or is older than max_age 90d"]);
    world.run(&["tag", "latest", "v2"]).exits(0).without_out("until");
}

impl cli::Ran {
    #[track_caller]
    fn without_out(self, text: &str) {
        assert!(!self.out.contains(text), "{self:#?}");
    }
}

#[test]
fn what_makes_no_sense_is_said_and_changes_nothing() {
    let world = cli::World::with_snapshot();
    let says = |args: &[&str], texts: &[&str]| {
        world.run(args).exits(2).one_error_with_a_hint().says(texts);
    };
    says(&["tag", "nope", "v1"], &["tag nope: no snapshot \"nope\""]);
    says(&["hold", "nope"], &["hold nope: no snapshot \"nope\""]);
    says(&["tag", "latest", "first"], &["has the tag first already"]);
    says(&["untag", "latest", "v1"], &["has no tag v1", "its tags are first"]);
    says(&["release", "latest"], &["is not held"]);
    world.run(&["tag", "latest", "two words"]).exits(2).says(&["TAG", "is not valid"]);
    assert!(world.files("state/repository/records").is_empty());
    world.run(&["hold", "latest"]).exits(0);
    says(&["hold", "latest"], &["is held already"]);
    let failed = world.json(&["hold", "latest"]);
    assert_eq!(failed["error"]["kind"], "usage");
    // Without a host key nothing can be signed.
    fs::rename(world.path("config/host.key"), world.path("elsewhere")).unwrap();
    world.run(&["release", "latest"]).exits(1).says(&["there is no host key"]);
}

/// Ten processes at once: each record has a time of its own, and none is lost.
#[test]
fn marks_made_at_once_all_count() {
    let world = cli::World::with_snapshot();
    let tags: Vec<String> = (0..10).map(|n| format!("t{n}")).collect();
    let mut running: Vec<_> =
        tags.iter().map(|tag| world.command(&["-q", "tag", "latest", tag]).spawn().unwrap()).collect();
    assert!(running.iter_mut().all(|child| child.wait().unwrap().success()));
    let list = world.json(&["list"]);
    let found: Vec<&str> =
        list["snapshots"][0]["tags"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(found, [&["first"][..], &tags.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    let seconds: BTreeSet<String> = world
        .files("state/repository/records")
        .iter()
        .map(|(path, _)| path.file_name().unwrap().to_str().unwrap().split('-').next().unwrap().to_owned())
        .collect();
    assert_eq!(seconds.len(), 10);
}

#[test]
fn the_later_mark_wins_within_a_second_and_after_the_clock_went_back() {
    let world = one_snapshot();
    let now = run().now;
    for n in 0..6 {
        // Frozen, then a year back.
        let at = if n < 3 { now } else { now - TimeDelta::days(365) };
        mark_at(&world, "latest", &tag("v1"), at).unwrap();
        assert_eq!(state_of(&world).0, ["v1"], "{n}");
        mark_at(&world, "latest", &untag("v1"), at).unwrap();
        assert!(state_of(&world).0.is_empty(), "{n}");
    }
    let keys = world.keys(layout::RECORDS);
    let times: BTreeSet<DateTime<Utc>> = keys.iter().map(|key| record(&world, key).time).collect();
    assert_eq!(times.len(), 12, "each has a second of its own");
    assert!(keys.iter().map(|key| record(&world, key).time).is_sorted(), "keys are in the order of times");
    assert!(world.verify(OBJECTS).unwrap().findings.is_empty());
    // Another policy's records are another line: nothing there to stand behind.
    world.take("blog", &[("files", &[("a", b"x")])]).unwrap();
    let marked = mark_at(&world, "latest", &tag("v1"), now).unwrap();
    assert_eq!(marked.policy.as_str(), "blog");
    let seconds = DateTime::from_timestamp(now.timestamp(), 0).unwrap();
    assert_eq!(record(&world, &marked.record.parse().unwrap()).time, seconds);
}

#[test]
fn another_hosts_snapshot_is_refused_and_a_reason_is_given() {
    let world = one_snapshot();
    let other = HostKey::create(&world.dir.path().join("other.key"), world.identity.repository.clone()).unwrap();
    let web2: HostName = "web-2".parse().unwrap();
    world.add_signer(&other.signing, SignerAction::Add { role: Role::Snapshot, hosts: vec![web2.clone()] });
    let repository = world.open();
    let options = WriterOptions {
        host: web2.clone(),
        policy: "shop".parse().unwrap(),
        recipients: world.recipients(),
        compression: 3,
        cancel: Default::default(),
    };
    let chain = Chain::load(&repository).unwrap();
    let writer = SnapshotWriter::begin(repository, &chain, &other, world.forgetful().state, options).unwrap();
    let mut draft = world::draft(writer.sequence(), vec![]);
    draft.id = "20261122T000000Z-12345678".parse().unwrap();
    let theirs = writer.commit(draft, &other).unwrap();

    let error = mark_at(&world, theirs.header.id.as_str(), &Mark::Hold, run().now).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("is of host web-2") && error.hint().unwrap().contains("web-2"), "{error}");
    assert!(world.keys(layout::RECORDS).is_empty(), "nothing is written that nobody would believe");
    // A key that has been revoked marks nothing either.
    world.add_signer(&world.host_key.signing, SignerAction::Revoke { last_good: vec![] });
    let chain = world.chain();
    assert!(chain.line(&host(), &"shop".parse().unwrap()).is_empty(), "not even its snapshot is believed");
}

/// What `hold` and `release` wrote, in other hands: the storage is the attacker's, the key is not.
#[test]
fn a_mark_that_is_forged_moved_or_played_again_changes_nothing() {
    let world = one_snapshot();
    let now = run().now;
    let held = mark_at(&world, "latest", &Mark::Hold, now).unwrap().record;
    let released = mark_at(&world, "latest", &Mark::Release, now + TimeDelta::seconds(10)).unwrap().record;
    mark_at(&world, "latest", &Mark::Hold, now + TimeDelta::seconds(20)).unwrap();
    assert!(state_of(&world).1);
    let key = |text: &str| text.parse::<StorageKey>().unwrap();
    let finds = |world: &World, object: &str| {
        let report = world.verify(OBJECTS).unwrap();
        let named = |f: &&lifeboat::ops::verify::Finding| *f.object.as_str() == *object;
        assert!(report.findings.iter().any(|f| named(&f)), "{object}: {:?}", report.findings);
        assert!(state_of(world).1, "{object}: it is no longer held");
    };
    // The release played again behind the second hold, under a later name.
    let copy = world.copy();
    let hash = &released[released.len() - 13..];
    let later = format!("records/29991231T000000Z{hash}");
    copy.set(&key(&later), &world.get(&key(&released)));
    finds(&copy, &later);
    // The release in the place of the first hold: its name and its content disagree.
    let copy = world.copy();
    copy.set(&key(&held), &world.get(&key(&released)));
    finds(&copy, &held);
    // A byte of the line changed, or of the signature.
    for at in [60, world.get(&key(&held)).len() - 80] {
        let copy = world.copy();
        let mut bytes = copy.get(&key(&held));
        bytes[at] ^= 1;
        copy.set(&key(&held), &bytes);
        finds(&copy, &held);
    }
    // A release signed by a key that nobody vouched for, and by one that may only drill.
    let stranger = lifeboat::pipeline::sign::SigningKey::from_seed(&[66; 32]);
    let driller = lifeboat::pipeline::sign::SigningKey::from_seed(&[67; 32]);
    world.vouch(&driller, Role::Drill);
    let id = world.chain().all().next().unwrap().header.id.clone();
    let mut forged = world.record(json!({ "note": "release", "snapshot": id }));
    forged["time"] = json!("2999-12-31T00:00:00Z");
    for signer in [&stranger, &driller] {
        let copy = world.copy();
        let name = copy.put_dated(layout::RECORDS, Namespace::Record, signer, &forged);
        finds(&copy, name.as_str());
    }
    // The same bytes once more under their own name are the same record.
    world.storage.put_new(&key(&held), &world.get(&key(&held))).unwrap();
    assert!(state_of(&world).1);
    assert!(world.verify(OBJECTS).unwrap().findings.is_empty());
    mark(&world, "latest", &Mark::Release);
    assert!(!state_of(&world).1);
}
