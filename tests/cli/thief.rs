//! Records that a thief signs with a host's key: none of them hinders its revocation, or costs anything once it is done.

use crate::world::{World, tree};
use lifeboat::pipeline::crypt::object_id;
use lifeboat::pipeline::sign::Namespace;
use lifeboat::repository::keys::HostKey;
use lifeboat::repository::layout;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

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
