//! A host's key that was stolen: what the thief signs is refused, what was there before restores, and the host goes on.

use crate::world::World;
use serde_json::Value;
use std::fs;
use std::process::Command;

/// The signing key of a world's host.
fn key(world: &World) -> String {
    world.json(&["keys", "show"])["signing_key"].as_str().unwrap().to_owned()
}

fn ids(world: &World) -> Vec<String> {
    let list = world.json(&["list"]);
    list["snapshots"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
}

fn copied(from: &std::path::Path, to: &std::path::Path) {
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
    world.add_to_policy(
        "[retention]\nkeep_last = 2\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0\nkeep_tagged = false\n",
    );
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
