//! A host's key that was stolen: what the thief signs is refused, what was there before restores, and the host goes on.

use crate::world::{World, tree};
use chrono::TimeDelta;
use lifeboat::base::ids::ObjectId;
use lifeboat::pipeline::crypt::object_id;
use lifeboat::pipeline::sign::{Namespace, peek_line};
use lifeboat::repository::format::{Note, Record};
use lifeboat::repository::keys::HostKey;
use lifeboat::repository::layout;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

const KEEP_TWO: &str =
    "[retention]\nkeep_last = 2\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0\nkeep_tagged = false\n";

/// The signing key of a world's host.
fn key(world: &World) -> String {
    world.json(&["keys", "show"])["signing_key"].as_str().unwrap().to_owned()
}

fn ids(world: &World) -> Vec<String> {
    let list = world.json(&["list"]);
    list["snapshots"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
}

fn dated(file: &Path, time: SystemTime) {
    fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
}

/// Everything below a folder of the repository becomes this much older.
fn age(world: &World, folder: &str, hours: u64) {
    for (path, _) in tree(&world.repository().join(folder)) {
        dated(&path, SystemTime::now() - Duration::from_secs(hours * 3600));
    }
}

/// Snapshots of other content each, and what the removed ones needed condemned.
fn with_trash(world: &World) {
    world.add_to_policy(KEEP_TWO);
    for n in 0..3u8 {
        let mut noise = vec![0; 100_000];
        blake3::Hasher::new().update(&[n]).finalize_xof().fill(&mut noise);
        fs::write(world.app().join("uploads/blob"), noise).unwrap();
        world.run(&["snapshot"]).exits(0);
    }
    world.run(&["prune"]).exits(0);
    for folder in ["archives", "index", "refs", "manifests"] {
        age(world, folder, 8 * 24);
    }
    world.run(&["prune"]).exits(0).shows(&["condemned"]);
    assert!(!world.files("state/repository/trash").is_empty());
}

fn copied(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// A thief's copy of the host: its key, its policy, its state, the same repository.
fn stolen(world: &World) -> World {
    let thief = World::new();
    for name in ["config", "state"] {
        copied(&world.path(name), &thief.path(name));
    }
    fs::remove_dir_all(thief.path("state/repository")).unwrap();
    fs::remove_file(thief.identity()).unwrap();
    let policy = fs::read_to_string(world.policy()).unwrap();
    fs::write(thief.policy(), policy).unwrap();
    thief
}

#[test]
fn what_a_thief_signs_is_refused_and_the_host_goes_on() {
    let world = World::with_snapshot();
    let first = ids(&world)[0].clone();
    world.run(&["hold", "first"]).exits(0);
    world.run(&["tag", "first", "kept"]).exits(0);
    world.run(&["snapshot"]).exits(0);
    let before = ids(&world);
    world.run(&["drill"]).exits(0);
    let thief = stolen(&world);
    let forged = thief.json(&["snapshot"])["header"]["id"].as_str().unwrap().to_owned();
    assert_eq!(ids(&world)[0], forged, "believed, until it is revoked");

    // Who names none is told which there are; which snapshots are good must be said; nothing happens unasked.
    let own = key(&world);
    world.run(&["keys", "revoke"]).exits(2).says(&[own.as_str(), "no key is named"]);
    world.run(&["keys", "revoke", &own]).exits(2).says(&["--stolen", "--last-good"]);
    world.run(&["keys", "revoke", "SHA256:x", "--all-good"]).exits(2).says(&["is no key", own.as_str()]);
    let plan = world.json(&["keys", "revoke", &own, "--last-good", &before[0], "--dry-run"]);
    let line = &plan["plan"]["lines"][0];
    assert_eq!((line["stay"].as_u64(), line["last_good"].as_str()), (Some(2), Some(before[0].as_str())), "{plan:#}");
    assert_eq!(line["refused"], serde_json::json!([forged]), "{plan:#}");
    assert_eq!((plan["plan"]["drills"].as_u64(), plan["plan"]["own"].as_bool()), (Some(1), Some(true)), "{plan:#}");
    world.run(&["keys", "revoke", &own, "--last-good", &before[0]]).exits(2).says(&["--yes"]);
    assert_eq!(ids(&world).len(), 3, "nothing was done");
    let usb = world.path("usb.txt");
    fs::rename(world.identity(), &usb).unwrap();
    world.run(&["keys", "revoke", &own, "--last-good", &before[0], "--yes"]).exits(2).says(&["needs the identity"]);
    fs::rename(&usb, world.identity()).unwrap();
    world.run(&["keys", "revoke", &own, "--last-good", &before[0], "--yes"]).exits(0).shows(&[
        "Revoked",
        "keys rotate",
        &forged,
    ]);

    // The old ones are there, with their tags and holds; the thief's is told, and what he signs now is refused.
    assert_eq!(ids(&world), before);
    let shown = world.json(&["show", &first]);
    assert!(shown["tags"].as_array().unwrap().iter().any(|t| t == "kept") && shown["held"] == true, "{shown:#}");
    world.run(&["restore", &first, "--into", "out"]).exits(0);
    thief.run(&["snapshot"]).exits(1).one_error_with_a_hint();
    world.run(&["verify"]).exits(4).shows(&[&forged]);

    // The host goes on with a key of its own.
    world.run(&["snapshot"]).exits(1);
    world.run(&["keys", "rotate"]).exits(0);
    world.run(&["prune", "--accept-lost", "--yes"]).exits(0);
    world.run(&["snapshot"]).exits(0);
    world.run(&["verify", "--deep"]).exits(0);
    world.run(&["drill"]).exits(0);
    let after = ids(&world);
    assert_eq!((after.len(), &after[1..]), (3, &before[..]), "{after:?}");
    assert_ne!(key(&world), own);
    // Said once more it changes nothing.
    world.run(&["keys", "revoke", &own, "--all-good", "--yes"]).exits(0);
    assert_eq!(ids(&world), after);
    world.run(&["verify"]).exits(0);
}

/// What prunes removed is known by records, which the stolen key has signed: the root key says it again.
#[test]
fn what_prunes_removed_stays_explained() {
    let world = World::with_snapshot();
    world.add_to_policy(KEEP_TWO);
    for _ in 0..4 {
        world.run(&["snapshot"]).exits(0);
    }
    world.run(&["prune"]).exits(0);
    let before = ids(&world);
    assert_eq!(before.len(), 2);
    world.run(&["verify"]).exits(0);
    let own = key(&world);
    let done: Value = world.json(&["keys", "revoke", &own, "--stolen", "2100-01-01", "--yes"]);
    assert_eq!(done["plan"]["records"], 1, "{done:#}");
    assert_eq!((ids(&world), done["plan"]["lines"][0]["stay"].as_u64()), (before, Some(2)));
    world.run(&["verify"]).exits(0);
    world.run(&["keys", "rotate"]).exits(0);
    world.run(&["snapshot"]).exits(0);
    world.run(&["prune"]).exits(0);
    world.run(&["verify", "--deep"]).exits(0);
    // Stolen before anything was there: nothing of it counts.
    let other = World::with_snapshot();
    let own = key(&other);
    let plan = other.json(&["keys", "revoke", &own, "--stolen", "2001-01-01", "--dry-run"]);
    assert!(plan["plan"]["lines"][0]["last_good"].is_null() && plan["plan"]["lines"][0]["stay"] == 0, "{plan:#}");
}

/// Trash of the key goes with it, and what it condemned is condemned anew.
#[test]
fn what_the_key_condemned_is_condemned_anew() {
    let world = World::with_snapshot();
    with_trash(&world);
    let own = key(&world);
    world.run(&["keys", "revoke", &own, "--all-good", "--yes"]).exits(0);
    assert!(world.files("state/repository/trash").is_empty());
    world.run(&["verify"]).exits(0);
    world.run(&["keys", "rotate"]).exits(0);
    world.run(&["prune"]).exits(0).shows(&["condemned"]);
    let manifests = world.files("state/repository/manifests").len();
    age(&world, "trash", 37);
    world.run(&["prune"]).exits(0).shows(&["deleted"]);
    assert!(world.files("state/repository/manifests").len() < manifests);
    world.run(&["verify", "--deep"]).exits(0);
}

fn noise(n: u8) -> Vec<u8> {
    let mut bytes = vec![0; 1_000_000];
    blake3::Hasher::new().update(&[n]).finalize_xof().fill(&mut bytes);
    bytes
}

/// Which archives hold a snapshot's chunks now, a record of a repack says: the header's own are gone.
#[test]
fn what_a_repack_moved_is_found_without_the_key() {
    let world = World::with_snapshot();
    world.add_to_policy(KEEP_TWO);
    let mut blob = noise(0);
    for n in 0..3 {
        blob[500_000..].copy_from_slice(&noise(n)[500_000..]);
        fs::write(world.app().join("uploads/blob"), &blob).unwrap();
        world.run(&["snapshot"]).exits(0);
    }
    for folder in ["archives", "index", "refs", "manifests"] {
        age(&world, folder, 8 * 24);
    }
    let repacked = world.json(&["prune", "--repack", "--now"]);
    assert!(repacked["report"]["repack"]["replaced"].as_u64() > Some(0), "{repacked:#}");
    world.run(&["verify", "--deep"]).exits(0);
    let (before, own) = (ids(&world), key(&world));
    let done = world.json(&["keys", "revoke", &own, "--all-good", "--yes"]);
    assert_eq!((before.len(), done["plan"]["records"].as_u64()), (2, Some(2)), "{done:#}");
    assert_eq!(ids(&world), before);
    let is_whole = |out: &str| {
        world.run(&["verify", "--deep"]).exits(0);
        world.run(&["restore", &before[0], "--into", out]).exits(0);
        let restored = tree(&world.path(out)).into_iter().find(|(path, _)| path.ends_with("uploads/blob")).unwrap();
        assert!(restored.1 == blob);
    };
    is_whole("out");
    // What nothing needs goes, and nothing else does.
    world.run(&["keys", "rotate"]).exits(0);
    world.run(&["snapshot"]).exits(0);
    world.run(&["prune", "--now"]).exits(0);
    is_whole("out2");
}

/// A thief's record says of a removed header that it named another one: what would lead down to those below it. His was in
/// the storage later, whatever time it gives itself.
#[test]
fn of_records_that_disagree_the_one_that_was_there_first_is_right() {
    let world = World::with_snapshot();
    world.add_to_policy(KEEP_TWO);
    world.run(&["hold", "first"]).exits(0);
    for _ in 0..4 {
        world.run(&["snapshot"]).exits(0);
    }
    world.run(&["prune"]).exits(0);
    let before = ids(&world);
    assert_eq!(before.len(), 3);
    age(&world, "records", 2);
    let records = || -> Vec<Record> {
        let all = tree(&world.repository().join("records"));
        all.iter().map(|(_, bytes)| serde_json::from_str(peek_line(bytes).unwrap()).unwrap()).collect()
    };
    let named = |record: &Record| match &record.note {
        Note::Prune { removed } => removed.last().and_then(|one| one.previous),
        _ => None,
    };
    let mut forged = records().into_iter().find(|record| named(record).is_some()).unwrap();
    let honest = named(&forged).unwrap();
    forged.time -= TimeDelta::hours(5);
    if let Note::Prune { removed } = &mut forged.note {
        removed.last_mut().unwrap().previous = Some(ObjectId([9; 32]));
    }
    let host = HostKey::load(&world.path("config/host.key")).unwrap();
    let bytes = host.signing.sign(Namespace::Record, &serde_json::to_string(&forged).unwrap()).unwrap();
    let at = layout::dated_key(layout::RECORDS, forged.time, object_id(&bytes)).unwrap();
    fs::write(world.repository().join(at.as_str()), bytes).unwrap();

    let own = key(&world);
    for good in [&["--all-good"][..], &["--last-good", &before[0]]] {
        let revoke = [&["keys", "revoke", own.as_str()], good].concat();
        let plan = world.json(&[&revoke[..], &["--dry-run"]].concat());
        assert_eq!(plan["plan"]["lines"][0]["stay"], 3, "{plan:#}");
    }
    world.run(&["keys", "revoke", &own, "--all-good", "--yes"]).exits(0);
    let said: Vec<ObjectId> = records().iter().filter_map(named).collect();
    assert_eq!(said, [honest]);
    assert_eq!(ids(&world), before);
    world.run(&["verify"]).exits(0);
}

/// A key that was rotated away long ago has headers no more, or an old one alone; its records explain more than that.
#[test]
fn a_key_that_was_rotated_away_leaves_no_gap() {
    for is_held in [false, true] {
        let world = World::with_snapshot();
        world.add_to_policy(KEEP_TWO);
        if is_held {
            world.run(&["hold", "first"]).exits(0);
        }
        for _ in 0..4 {
            world.run(&["snapshot"]).exits(0);
        }
        world.run(&["prune"]).exits(0);
        let old = key(&world);
        world.run(&["keys", "rotate"]).exits(0);
        for _ in 0..2 {
            world.run(&["snapshot"]).exits(0);
        }
        world.run(&["prune"]).exits(0);
        let before = ids(&world);
        assert_eq!(before.len(), 2 + usize::from(is_held));
        let records = 1 + u64::from(is_held);
        let revoke = |good: &[&str]| world.json(&[&["keys", "revoke", old.as_str()], good].concat());
        // A header of the new key leads down to what the old one removed.
        let plan = revoke(&["--last-good", &before[0], "--dry-run"]);
        assert_eq!(plan["plan"]["records"], records, "{plan:#}");
        let done = revoke(&["--all-good", "--yes"]);
        assert_eq!(done["plan"]["records"], records, "{done:#}");
        assert_eq!(done["plan"]["lines"].as_array().unwrap().len(), usize::from(is_held), "{done:#}");
        world.run(&["verify"]).exits(0);
        assert_eq!(ids(&world), before);
        world.run(&["snapshot"]).exits(0);
        world.run(&["prune"]).exits(0);
        world.run(&["verify"]).exits(0);
    }
}

/// A copy is no place to revoke in; it hears of it, and keeps nothing that would be told as damage for ever.
#[test]
fn a_copy_lets_go_of_what_the_key_said() {
    let world = World::ready();
    let nas = world.path("nas");
    world.change_policy("[repository]", &format!("[repository]\ncopies = [{nas:?}]"));
    with_trash(&world);
    world.run(&["tag", "latest", "kept"]).exits(0);
    world.run(&["drill"]).exits(0);
    world.run(&["copy"]).exits(0);
    // Trash of the copy itself, of the same key.
    copied(&world.path("state/repository/trash"), &nas.join("trash"));
    let own = key(&world);
    let there = nas.to_str().unwrap();
    world.run(&["verify", "--repository", there]).exits(0);
    let refused = world.run(&["keys", "revoke", &own, "--all-good", "--yes", "--repository", there]).exits(2);
    refused.one_error_with_a_hint().says(&["is a copy of", world.repository().to_str().unwrap()]);
    world.run(&["keys", "revoke", &own, "--all-good", "--yes"]).exits(0);
    let headers = tree(&nas.join("snapshots"));
    let archives = tree(&nas.join("archives"));
    world.run(&["copy"]).exits(0);
    world.run(&["verify", "--repository", there]).exits(0);
    assert!(tree(&nas.join("trash")).is_empty());
    assert!(tree(&nas.join("snapshots")) == headers && tree(&nas.join("archives")) == archives);
    assert_eq!(tree(&nas.join("records")).len(), world.files("state/repository/records").len());
    let shown = world.json(&["show", "latest", "--repository", there]);
    assert!(shown["tags"].as_array().unwrap().iter().any(|t| t == "kept"), "{shown:#}");
}

/// One that looks late hides nothing above it: an honest one stays, because what is above names it, and a forged one does not.
#[test]
fn one_that_looks_late_is_not_the_end() {
    let world = World::with_snapshot();
    world.add_to_policy(KEEP_TWO);
    let thief = stolen(&world);
    let forged = thief.json(&["snapshot"])["header"]["id"].as_str().unwrap().to_owned();
    let headers = || tree(&world.repository().join("snapshots"));
    let (at, bytes) = headers().pop().unwrap();
    assert!(at.to_str().unwrap().contains(&forged));
    fs::remove_file(&at).unwrap();
    for _ in 0..3 {
        world.run(&["snapshot"]).exits(0);
    }
    world.run(&["prune"]).exits(0);
    let before = ids(&world);
    assert_eq!(before.len(), 2);
    // The thief's comes back under a sequence that is free by now.
    fs::write(&at, bytes).unwrap();
    let late = SystemTime::UNIX_EPOCH + Duration::from_secs(4_150_000_000);
    let all = headers();
    assert_eq!(all.len(), 3);
    all.iter().take(2).for_each(|(path, _)| dated(path, late));
    let own = key(&world);
    let done = world.json(&["keys", "revoke", &own, "--stolen", "2100-01-01", "--yes"]);
    let line = &done["plan"]["lines"][0];
    assert_eq!((line["stay"].as_u64(), line["last_good"].as_str()), (Some(2), Some(before[0].as_str())), "{done:#}");
    assert_eq!(line["refused"], serde_json::json!([forged]), "{done:#}");
    assert_eq!(ids(&world), before);
    world.run(&["verify"]).exits(4).shows(&[&forged]);
}

/// A disk that fails for a moment must not cost the key that signs.
#[test]
fn a_key_that_cannot_be_looked_at_is_not_a_lost_one() {
    let world = World::ready();
    let (key, aside) = (world.path("config/host.key"), world.path("config/aside"));
    fs::rename(&key, &aside).unwrap();
    std::os::unix::fs::symlink(&key, &key).unwrap();
    let ran = world.run(&["keys", "rotate"]).says(&["host.key"]);
    assert!(ran.code != 0 && key.is_symlink() && !world.path("config/host.key.new").exists(), "{ran:?}");
    fs::rename(&aside, &key).unwrap();
    world.run(&["keys", "rotate"]).exits(0);
}
