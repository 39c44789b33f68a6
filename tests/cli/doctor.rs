//! `doctor`: a healthy host, and each thing that can be wrong with one.

use crate::world::World;
use chrono::{SubsecRound, TimeDelta, Utc};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::Events;
use lifeboat::ops::Run;
use lifeboat::ops::access::Installation;
use lifeboat::ops::doctor::{Examined, Verdict, examine};
use lifeboat::policy;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The verdict and detail of one check of the first policy.
fn finding(json: &Value, check: &str) -> (String, String) {
    let findings = json["policies"][0]["findings"].as_array().unwrap();
    let found = findings.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("no {check} in {json:#}"));
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    if found["verdict"] != "ok" {
        assert!(!text("hint").is_empty(), "no hint: {found}");
    }
    (text("verdict"), text("detail"))
}

/// What the world is like some time later.
fn later(world: &World, by: TimeDelta) -> Examined {
    let installation = Installation { config_dir: world.path("config"), state_dir: world.path("state") };
    let policy = policy::load(&world.policy()).unwrap();
    let run = Run { events: Events::none(), cancel: Cancel::new(), now: Utc::now().trunc_subsecs(0) + by };
    examine(&installation, &policy, &run).unwrap()
}

fn of(examined: &Examined, check: &str) -> (Verdict, String) {
    let found = examined.findings.iter().find(|f| f.check == check).unwrap_or_else(|| panic!("{examined:#?}"));
    (found.verdict, found.detail.clone())
}

#[test]
fn a_healthy_host_is_told_so() {
    let world = World::with_snapshot();
    let ran =
        world.run(&["doctor"]).exits(0).shows(&["shop", "host key", "identity", "recipients", "1 proved", "old)"]);
    assert!(!ran.out.contains("problem") && !ran.out.contains("warning") && !ran.out.contains("hint"), "{}", ran.out);
    let json = world.json(&["doctor"]);
    for check in ["policy", "host key", "identity", "repository", "recipients", "room", "snapshots", "clock"] {
        assert_eq!(finding(&json, check).0, "ok", "{json:#}");
    }
    assert_eq!(world.run(&["doctor", "-q"]).exits(0).out, "", "nothing to tell");
    // A sealed host is as well.
    fs::rename(world.identity(), world.path("usb.txt")).unwrap();
    world.run(&["doctor"]).exits(0).shows(&["this host is sealed"]);
}

#[test]
fn files_that_others_may_read_or_write_are_problems() {
    let world = World::with_snapshot();
    chmod(&world.identity(), 0o640);
    chmod(&world.policy(), 0o662);
    let json = world.json(&["doctor"]);
    assert_eq!(json["exit_code"], 1);
    let (verdict, text) = finding(&json, "identity");
    assert!(verdict == "problem" && text.contains("readable by others (mode 0640)"), "{text}");
    let (verdict, text) = finding(&json, "policy");
    assert!(verdict == "problem" && text.contains("written by others (mode 0662)"), "{text}");
    world.run(&["doctor", "-q"]).exits(1).shows(&["problem", "hint: policy: chmod go-w"]);
    chmod(&world.identity(), 0o600);
    chmod(&world.policy(), 0o644);
    world.run(&["doctor"]).exits(0);
    fs::remove_file(world.path("config/host.key")).unwrap();
    assert_eq!(finding(&world.json(&["doctor"]), "host key").0, "problem");
}

#[test]
fn a_recipient_that_nobody_proved_is_a_warning() {
    let world = World::with_snapshot();
    let other = World::new();
    other.run(&["keys", "new"]).exits(0);
    let text = fs::read_to_string(other.identity()).unwrap();
    let other = text.lines().find_map(|l| l.strip_prefix("# recipient: ")).unwrap();
    world.change_policy("recipients = [", &format!("recipients = [\n  {other:?},"));
    let json = world.json(&["doctor"]);
    assert_eq!(json["exit_code"], 0, "{json:#}");
    let (verdict, text) = finding(&json, "recipients");
    assert!(verdict == "warning" && text.contains(other), "{text}");
}

#[test]
fn room_copies_and_a_repository_that_is_gone() {
    let world = World::with_snapshot();
    let missing = world.path("usb");
    world.change_policy("\n[repository]\n", &format!("\n[repository]\nmin_free = \"100%\"\ncopies = [{missing:?}]\n"));
    let json = world.json(&["doctor"]);
    assert_eq!(json["exit_code"], 1);
    let (verdict, text) = finding(&json, "room");
    assert!(verdict == "problem" && text.contains("no snapshot can be written"), "{text}");
    let (verdict, text) = finding(&json, "copy");
    assert!(verdict == "problem" && text.contains("there is nothing at"), "{text}");
    world.change_policy("min_free = \"100%\"", "min_free = \"1MiB\"");
    world.run(&["copy", "--to", missing.to_str().unwrap()]).exits(0);
    world.run(&["doctor"]).exits(0);
    fs::rename(world.repository(), world.path("away")).unwrap();
    let json = world.json(&["doctor"]);
    assert_eq!((json["exit_code"].as_i64(), finding(&json, "repository").0.as_str()), (Some(1), "problem"));
    assert!(json["policies"][0]["findings"].as_array().unwrap().iter().all(|f| f["check"] != "snapshots"), "{json:#}");
}

#[test]
fn a_repository_that_went_back_or_is_damaged_is_a_problem() {
    let world = World::with_snapshot();
    let before = crate::world::tree(&world.repository());
    world.run(&["snapshot"]).exits(0);
    for (path, _) in crate::world::tree(&world.repository()) {
        if before.iter().all(|(old, _)| *old != path) && path.to_string_lossy().contains("/snapshots/") {
            fs::remove_file(path).unwrap();
        }
    }
    let (verdict, text) = finding(&world.json(&["doctor"]), "repository");
    assert!(verdict == "problem" && text.contains("rolled back"), "{text}");
}

#[test]
fn a_snapshot_that_is_missed_and_a_clock_that_is_wrong_are_problems() {
    let world = World::ready();
    let (verdict, text) = finding(&world.json(&["doctor"]), "snapshots");
    assert!(verdict == "problem" && text.contains("no complete snapshot"), "{text}");
    world.run(&["snapshot"]).exits(0);
    let found = later(&world, TimeDelta::zero());
    assert_eq!((of(&found, "snapshots").0, of(&found, "clock").0), (Verdict::Ok, Verdict::Ok));
    // One that is due may be on its way.
    let found = later(&world, TimeDelta::hours(25));
    assert_eq!(of(&found, "snapshots").0, Verdict::Ok, "{found:#?}");
    let found = later(&world, TimeDelta::days(3));
    let (verdict, text) = of(&found, "snapshots");
    assert!(verdict == Verdict::Problem && text.contains("was due"), "{text}");
    let (verdict, text) = of(&found, "clock");
    assert!(verdict == Verdict::Problem && text.contains("this host's clock says"), "{text}");
    for (apart, verdict) in [(4, Verdict::Ok), (-4, Verdict::Ok), (6, Verdict::Problem), (-6, Verdict::Problem)] {
        assert_eq!(of(&later(&world, TimeDelta::minutes(apart)), "clock").0, verdict, "{apart} minutes");
    }
    // A partial one does not count.
    world.run(&["snapshot", "--only", "env"]).exits(0);
    assert_eq!(of(&later(&world, TimeDelta::days(3)), "snapshots").0, Verdict::Problem);
}

#[test]
fn all_policies_are_looked_at_also_behind_one_that_cannot_be_read() {
    let world = World::with_snapshot();
    fs::write(world.path("config/policies/a.toml"), "[app]\nnane = \"a\"\n").unwrap();
    let json = world.json(&["doctor"]);
    assert_eq!(json["exit_code"], 1);
    let policies = json["policies"].as_array().unwrap();
    assert_eq!(policies.len(), 2, "{json:#}");
    assert_eq!(policies[0]["findings"][0]["verdict"], "problem");
    assert!(policies[1]["findings"].as_array().unwrap().iter().all(|f| f["verdict"] == "ok"), "{json:#}");
    world.run(&["doctor", "-p", "shop"]).exits(0);
    world.run(&["doctor", "-p", "nope"]).exits(2).says(&["no policy is called"]);
    World::new().run(&["doctor"]).exits(2).one_error_with_a_hint();
}
