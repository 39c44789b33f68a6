//! The run history as the command line shows it.

use crate::serve::{one, runs};
use std::time::{Duration, Instant};

#[test]
fn runs_by_hand_are_remembered_with_what_they_left() {
    let world = one("");
    world.run(&["snapshot"]).exits(0);
    world.run(&["verify"]).exits(0);
    world.run(&["prune"]).exits(0);
    world.run(&["drill"]).exits(0);
    // What only looks, plans, or was asked for in the wrong way before anything was known, is none.
    world.run(&["snapshot", "--dry-run"]).exits(0);
    world.run(&["prune", "--dry-run"]).exits(0);
    world.run(&["list"]).exits(0);
    let json = world.json(&["history"]);
    let events = json["events"].as_array().unwrap();
    let told: Vec<(&str, &str)> = events
        .iter()
        .map(|e| {
            let run = if e["what"] == "run" { e } else { &e["run"] };
            (e["what"].as_str().unwrap(), run["outcome"].as_str().unwrap_or("none"))
        })
        .collect();
    assert_eq!(told.len(), 4, "{json:#}");
    assert!(told.contains(&("snapshot", "done")) && told.contains(&("drill", "done")), "{json:#}");
    assert_eq!(events.iter().filter(|e| e["what"] == "run").count(), 2, "{json:#}");
    world.run(&["history"]).exits(0).shows(&["verify", "prune", "snapshot", "drill", "manual, "]);
    // A failure says why, in one line.
    std::fs::rename(world.repository(), world.path("away")).unwrap();
    world.run(&["snapshot"]).exits(1);
    std::fs::rename(world.path("away"), world.repository()).unwrap();
    let run = &runs(&world, "shop")[0];
    assert_eq!((&run["does"], &run["outcome"], &run["code"]), (&"snapshot".into(), &"failed".into(), &1.into()));
    assert!(run["error"].as_str().unwrap().contains("no repository at"), "{run:#}");
    world.run(&["history", "--last", "1"]).exits(0).shows(&["failed", "no repository at", "older"]);
    // A stranger sees the repository alone.
    let url = world.repository();
    let json = world.json(&["history", "--repository", url.to_str().unwrap()]);
    assert!(json["events"].as_array().unwrap().iter().all(|e| e["what"] != "run" && e["run"].is_null()), "{json:#}");
}

/// A policy that is broken or gone has run all the same, under the name by which it was entered.
#[test]
fn runs_of_a_policy_that_cannot_be_read_are_shown() {
    let world = one("");
    world.run(&["snapshot"]).exits(0);
    world.run(&["verify"]).exits(0);
    let file = world.path("config/policies/shop.toml");
    let policy = std::fs::read_to_string(&file).unwrap();
    let shown = |args: &[&str], why: &str| {
        let ran = world.run(args).exits(0).shows(&["snapshot", "verify"]);
        assert!(ran.err.contains(why) && ran.err.contains("only the runs of shop on this host"), "{}", ran.err);
    };
    std::fs::write(&file, policy.replace("recipients", "recipents")).unwrap();
    shown(&["history"], "errors in");
    shown(&["-p", "shop", "history"], "errors in");
    let json = world.json(&["history", "--last", "1"]);
    let events = json["events"].as_array().unwrap();
    assert!(json["repository"].is_null() && json["left_out"] == 1 && events.len() == 1, "{json:#}");
    assert_eq!((&events[0]["policy"], &events[0]["does"]), (&"shop".into(), &"verify".into()), "{json:#}");
    assert!(json["warnings"].to_string().contains("only the runs of shop"), "{json:#}");
    // Its file has another name than it, and a timer's run had read it once.
    let other = world.path("other.toml");
    let named = other.to_str().unwrap();
    std::fs::write(&other, &policy).unwrap();
    world.run(&["-p", named, "--scheduled", "-q", "snapshot"]).exits(0);
    std::fs::write(&other, "").unwrap();
    shown(&["-p", named, "history"], "other.toml");
    // It is gone.
    std::fs::remove_file(&file).unwrap();
    shown(&["-p", "shop", "history"], "no policy is installed");
    world.run(&["history"]).exits(2).one_error_with_a_hint();
    world.run(&["-p", "nobody", "history"]).exits(2).one_error_with_a_hint();
}

#[test]
fn ten_thousand_runs_are_shown_at_once() {
    let world = one("");
    world.run(&["snapshot"]).exits(0);
    let mut db = rusqlite::Connection::open(world.path("state/history.db")).unwrap();
    let change = db.transaction().unwrap();
    let now = chrono::Utc::now().timestamp();
    for n in 0..10_000i64 {
        change
            .execute(
                "insert into runs (policy, what, trigger, slot, attempt, begun, ended, outcome, exit, error)
                 values ('shop', 'verify', 'schedule', ?1, 1, ?1, ?1 + 2, 'failed', 1, 'no repository at /var/lib/lifeboat')",
                [now - n * 3600],
            )
            .unwrap();
    }
    change.commit().unwrap();
    let best = (0..5)
        .map(|_| {
            let begun = Instant::now();
            world.run(&["history", "--last", "200"]).exits(0).shows(&["9801 older", "verify"]);
            begun.elapsed()
        })
        .min()
        .unwrap();
    println!("history of 10,000 runs: {best:?}");
    // A build for tests takes several times as long as one that is shipped, and other tests run beside it.
    let limit = if cfg!(debug_assertions) { 2000 } else { 100 };
    assert!(best < Duration::from_millis(limit), "{best:?}");
    let all = world.json(&["history"]);
    assert_eq!(all["events"].as_array().unwrap().len(), 10_001);
}
