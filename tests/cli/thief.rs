//! Records that a thief signs with a host's key: none of them hinders its revocation, or costs anything once it is done.

use crate::world::{World, tree};
use chrono::{SecondsFormat, TimeDelta, Utc};
use lifeboat::pipeline::crypt::object_id;
use lifeboat::pipeline::sign::Namespace;
use lifeboat::repository::keys::HostKey;
use lifeboat::repository::layout;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const KEEP_TWO: &str =
    "[retention]\nkeep_last = 2\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0\nkeep_tagged = false\n";

/// What a signed object says.
fn line(bytes: &[u8]) -> Value {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
    serde_json::from_slice(&bytes[..end]).unwrap()
}

fn key(world: &World) -> String {
    world.json(&["keys", "show"])["signing_key"].as_str().unwrap().to_owned()
}

/// Signs a record of the newest snapshot's host and policy with the host's key, as whoever has it can.
fn says(world: &World, time: &str, note: &Value) -> PathBuf {
    let header = line(&tree(&world.repository().join("snapshots")).pop().unwrap().1);
    let mut record = json!({ "kind": "record", "format": 1, "requires": [], "time": time });
    for name in ["repository", "host", "policy"] {
        record[name] = header[name].clone();
    }
    record.as_object_mut().unwrap().extend(note.as_object().unwrap().clone());
    let signing = HostKey::load(&world.path("config/host.key")).unwrap().signing;
    let bytes = signing.sign(Namespace::Record, &record.to_string()).unwrap();
    let time = serde_json::from_value(time.into()).unwrap();
    let path = world.repository().join(layout::dated(layout::RECORDS, time, object_id(&bytes)));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

/// The times of the records that are there, and what they say.
fn said(world: &World) -> Vec<(String, String)> {
    let all = tree(&world.repository().join("records")).into_iter().map(|(_, bytes)| line(&bytes));
    all.map(|record| (record["time"].as_str().unwrap().to_owned(), record["note"].as_str().unwrap().to_owned()))
        .collect()
}

fn moved_by(path: &Path, hours: i64) {
    let by = Duration::from_secs(hours.unsigned_abs() * 3600);
    let time = if hours < 0 { SystemTime::now() - by } else { SystemTime::now() + by };
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// Records count by their time, and one that is dated at the end of all time leaves no room for another.
#[test]
fn a_record_at_the_end_of_time_stops_neither_the_revocation_nor_what_comes_after() {
    for (time, good) in [
        ("9999-12-31T23:59:59Z", "--all-good"),
        ("9999-12-31T23:59:59Z", "--last-good"),
        ("9999-12-31T23:59:57Z", "--last-good"),
    ] {
        let world = World::with_snapshot();
        let latest = world.snapshots().remove(0);
        world.run(&["tag", "latest", "kept"]).exits(0);
        world.run(&["hold", "latest"]).exits(0);
        says(&world, time, &json!({ "note": "tag", "snapshot": latest, "tag": "never" }));
        if time.ends_with("59Z") {
            // The way out is told, and it is one.
            let refused = world.run(&["tag", "latest", "more"]).exits(1).one_error_with_a_hint();
            refused.says(&["none can be dated behind it", "keys revoke", "--all-good", "keys rotate"]);
        }
        let own = key(&world);
        let good = if good == "--all-good" { vec![good] } else { vec![good, latest.as_str()] };
        world.run(&[&["keys", "revoke", own.as_str()], &good[..], &["--yes"]].concat()).exits(0);
        assert!(said(&world).iter().all(|(time, _)| !time.starts_with("9999")), "{:?}", said(&world));
        world.run(&["keys", "rotate"]).exits(0);
        for args in [["tag", "latest", "more"], ["untag", "latest", "kept"]] {
            world.run(&args).exits(0);
        }
        world.run(&["release", "latest"]).exits(0);
        world.run(&["hold", "latest"]).exits(0);
        let shown = world.json(&["show", "latest"]);
        assert_eq!((&shown["tags"], &shown["held"]), (&json!(["first", "more", "never"]), &json!(true)), "{shown:#}");
        world.run(&["verify"]).exits(0);
    }
}

/// Two snapshots whose archives a repack has put others in the place of, and what was in the newest one.
fn repacked() -> (World, Vec<u8>) {
    let world = World::with_snapshot();
    world.add_to_policy(KEEP_TWO);
    let mut blob = vec![0; 1_000_000];
    for n in 0..3u8 {
        let (common, own) = blob.split_at_mut(500_000);
        blake3::Hasher::new().finalize_xof().fill(common);
        blake3::Hasher::new().update(&[n]).finalize_xof().fill(own);
        fs::write(world.app().join("uploads/blob"), &blob).unwrap();
        world.run(&["snapshot"]).exits(0);
    }
    for folder in ["archives", "index", "refs", "manifests"] {
        tree(&world.repository().join(folder)).iter().for_each(|(path, _)| moved_by(path, -8 * 24));
    }
    let done = world.json(&["prune", "--repack", "--now"]);
    assert!(done["report"]["repack"]["replaced"].as_u64() > Some(0), "{done:#}");
    (world, blob)
}

/// The blob is there as it was.
#[track_caller]
fn restores(world: &World, snapshot: &str, out: &str, blob: &[u8]) {
    world.run(&["restore", snapshot, "--into", out]).exits(0);
    let restored = tree(&world.path(out)).into_iter().find(|(path, _)| path.ends_with("uploads/blob")).unwrap();
    assert!(restored.1 == blob);
}

/// Which of the key's records are a thief's nobody can tell, where only a snapshot is named.
#[test]
fn what_a_thief_moved_released_and_untagged_is_as_it_was() {
    let (world, blob) = repacked();
    let before = world.snapshots();
    world.run(&["hold", "latest"]).exits(0);
    world.run(&["tag", "latest", "kept"]).exits(0);
    tree(&world.repository().join("records")).iter().for_each(|(path, _)| moved_by(path, -2));

    // The refs of each for the other.
    let records = tree(&world.repository().join("records"));
    let honest = records.iter().map(|(_, bytes)| line(bytes)).find(|record| record["note"] == "repack").unwrap();
    let mut moved = honest["moved"].clone();
    let refs = [moved[0]["refs"].clone(), moved[1]["refs"].clone()];
    assert_ne!(refs[0], refs[1]);
    [moved[0]["refs"], moved[1]["refs"]] = [refs[1].clone(), refs[0].clone()];
    let later = |seconds| (Utc::now() + TimeDelta::seconds(seconds)).to_rfc3339_opts(SecondsFormat::Secs, true);
    says(&world, &later(60), &json!({ "note": "repack", "moved": moved }));
    says(&world, &later(61), &json!({ "note": "release", "snapshot": before[0] }));
    says(&world, &later(62), &json!({ "note": "untag", "snapshot": before[0], "tag": "kept" }));
    let shown = world.json(&["show", "latest"]);
    assert_eq!(
        (&shown["tags"], &shown["held"]),
        (&json!([]), &json!(false)),
        "believed until it is revoked: {shown:#}"
    );
    world.run(&["verify", "--deep"]).exits(4);

    let own = key(&world);
    world.run(&["keys", "revoke", &own, "--last-good", &before[0], "--yes"]).exits(0);
    assert_eq!(world.snapshots(), before);
    world.run(&["verify", "--deep"]).exits(0);
    restores(&world, &before[0], "out", &blob);
    let shown = world.json(&["show", "latest"]);
    assert_eq!((&shown["tags"], &shown["held"]), (&json!(["kept"]), &json!(true)), "{shown:#}");
    // And where nobody has misused the key, what it took away stays away.
    world.run(&["keys", "rotate"]).exits(0);
    world.run(&["release", "latest"]).exits(0);
    world.run(&["untag", "latest", "kept"]).exits(0);
    let own = key(&world);
    world.run(&["keys", "revoke", &own, "--all-good", "--yes"]).exits(0);
    let shown = world.json(&["show", "latest"]);
    assert_eq!((&shown["tags"], &shown["held"]), (&json!([]), &json!(false)), "{shown:#}");
    restores(&world, &before[0], "out2", &blob);
}

/// The theft is noticed late, and an honest repack came between: without its record nothing leads to the chunks.
#[test]
fn an_honest_repack_after_the_theft_is_still_found() {
    let (world, blob) = repacked();
    let before = world.snapshots();
    tree(&world.repository().join("records")).iter().for_each(|(path, _)| moved_by(path, 2));
    let stolen = (Utc::now() + TimeDelta::hours(1)).to_rfc3339_opts(SecondsFormat::Secs, true);
    let own = key(&world);
    world.run(&["keys", "revoke", &own, "--stolen", &stolen, "--yes"]).exits(0);
    assert_eq!(world.snapshots(), before);
    restores(&world, &before[0], "out", &blob);
    world.run(&["keys", "rotate"]).exits(0);
    world.run(&["prune", "--accept-lost", "--yes"]).exits(0);
    world.run(&["verify", "--deep"]).exits(0);
}
