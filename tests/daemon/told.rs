//! What happens without a word of its own is told all the same: a run that was killed, stopped or held up, a snapshot that
//! is oddly small, a policy that has broken; and what goes well in part makes nothing good.

use crate::daily::half_a_day_away;
use crate::hear::{Ear, Heard};
use crate::serve::{Daemon, application, begin_history, end_sleeps, hanging, missed, one, own_seconds, runs, wait};
use crate::world::World;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::process::Stdio;

fn hook(ear: &Ear) -> String {
    format!("[notify]\nwebhook = \"{}\"\n", ear.url("/hook"))
}

fn events(heard: &[Heard]) -> Vec<(String, String)> {
    let word = |h: &Heard, field: &str| h.json()[field].as_str().unwrap_or_default().to_owned();
    heard.iter().map(|h| (word(h, "event"), word(h, "outcome"))).collect()
}

fn told(event: &str, outcome: &str) -> (String, String) {
    (event.to_owned(), outcome.to_owned())
}

#[test]
fn a_timers_run_that_was_killed_or_stopped_is_told_by_the_next() {
    let ear = Ear::new();
    let world = World::new();
    let seconds = own_seconds(11);
    application(&world, "shop", &format!("{}{}", hook(&ear), hanging(&world, &seconds)));
    begin_history(&world);
    let start = || {
        let _ = fs::remove_file(world.path("marker"));
        let mut command = world.command(&["--scheduled", "-q", "snapshot"]);
        let run = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait(|| world.path("marker").exists(), || "it does not begin".to_owned());
        run
    };
    let mut run = start();
    run.kill().unwrap();
    run.wait().unwrap();
    end_sleeps(&seconds);
    // As a machine that goes down in a backup: whose run this was is known, and nothing of it lives.
    fs::write(world.path("free"), "").unwrap();
    world.run(&["--scheduled", "-q", "snapshot"]).exits(0);
    assert_eq!(events(&ear.wait(2)), [told("failure", "interrupted"), told("recovery", "done")]);
    // What was stopped took no snapshot either.
    fs::remove_file(world.path("free")).unwrap();
    let mut run = start();
    kill_process(Pid::from_child(&run), Signal::TERM).unwrap();
    run.wait().unwrap();
    let heard = ear.wait(3);
    assert_eq!(events(&heard[2..]), [told("failure", "interrupted")]);
    end_sleeps(&seconds);
}

#[test]
fn a_run_of_an_earlier_boot_is_made_good() {
    let ear = Ear::new();
    let world = one(&hook(&ear));
    let db = rusqlite::Connection::open(world.path("state/history.db")).unwrap();
    let slot = chrono::Utc::now().timestamp() - 3600;
    let insert = "insert into runs (policy, what, trigger, slot, attempt, begun, process)
                  values ('shop', ?1, 'schedule', ?2, ?3, ?2, '0d8e8c60-boot/pid:[1]/17/400')";
    db.execute(insert, rusqlite::params!["snapshot", slot, 1]).unwrap();
    // One that has been tried often enough is not tried for ever; it is told.
    db.execute(insert, rusqlite::params!["verify", slot, 7]).unwrap();
    let file = world.path("config/policies/shop.toml");
    let policy = fs::read_to_string(&file).unwrap();
    fs::write(&file, policy.replace("verify = \"off\"", &format!("verify = \"{}\"", half_a_day_away()))).unwrap();
    let daemon = Daemon::start(&world, &[]);
    daemon.says("snapshot of shop: done");
    let heard = ear.wait(1);
    assert_eq!(events(&heard), [told("failure", "interrupted")]);
    assert_eq!(heard[0].json()["what"], "verify");
    assert_eq!(runs(&world, "shop")[0]["attempt"], 2);
    assert_eq!(daemon.stop().0, Some(0));
}

#[test]
fn a_snapshot_that_is_oddly_small_is_told_until_somebody_says_that_it_is_meant() {
    let ear = Ear::new();
    let world = one(&hook(&ear));
    let file = world.path("shop/uploads/large");
    fs::write(&file, vec![7; 400 << 10]).unwrap();
    world.run(&["snapshot"]).exits(0);
    fs::write(&file, "").unwrap();
    let small = &["under half of the", "lifeboat snapshot --accept-size"];
    world.run(&["snapshot"]).exits(0).says(small);
    world.run(&["snapshot"]).exits(0).says(small);
    let heard = ear.wait(1);
    assert_eq!(events(&heard), [told("failure", "suspect")], "it is told once");
    assert!(heard[0].json()["text"].as_str().unwrap().contains("under half of the"), "{heard:#?}");
    // A drill proves what would be restored today, not what was well once.
    let newest = world.json(&["list"])["snapshots"][0]["id"].clone();
    assert_eq!(world.json(&["drill"])["snapshot"], newest);
    world.run(&["snapshot", "--accept-size"]).exits(0);
    assert_eq!(events(&ear.wait(2))[1], told("recovery", "done"));
    world.run(&["snapshot"]).exits(0);
    assert_eq!(runs(&world, "shop")[0]["outcome"], "done");
    assert_eq!(ear.heard().len(), 2);
}

#[test]
fn a_policy_that_has_broken_is_told_to_whom_it_named_before() {
    let ear = Ear::new();
    let world = one(&hook(&ear));
    let file = world.path("config/policies/shop.toml");
    let policy = fs::read_to_string(&file).unwrap();
    let daemon = Daemon::start(&world, &[]);
    assert_eq!(daemon.stop().0, Some(0));
    fs::write(&file, policy.replace("recipients", "recipents")).unwrap();
    // Also to a service that has never seen it whole.
    missed(&world, "shop");
    let daemon = Daemon::start(&world, &[]);
    daemon.says("policy shop cannot be read; what it said before still runs");
    assert_eq!(events(&ear.wait(1)), [told("failure", "usage")]);
    assert_eq!(daemon.stop().0, Some(0));
    begin_history_of(&world);
    world.run(&["-p", "shop", "--scheduled", "-q", "snapshot"]).exits(2);
    assert_eq!(events(&ear.wait(2))[1], told("failure", "usage"), "a timer's as well");
    fs::write(&file, &policy).unwrap();
    world.run(&["snapshot"]).exits(0);
    assert_eq!(events(&ear.wait(3))[2], told("recovery", "done"));
}

fn begin_history_of(world: &World) {
    let db = rusqlite::Connection::open(world.path("state/history.db")).unwrap();
    db.execute_batch("delete from runs; delete from alarms; delete from outbox").unwrap();
}

#[test]
fn what_goes_well_in_part_makes_nothing_good() {
    let ear = Ear::new();
    let more = format!(
        "[notify]\non = [\"failure\", \"weekly\"]\nwebhook = \"{}\"\nhealthchecks = \"{}\"\n\
         [[source]]\nkind = \"files\"\nname = \"gone\"\npaths = [\"gone\"]\n",
        ear.url("/hook"),
        ear.url("/ping")
    );
    let world = one(&more);
    let lines = |from: usize| ear.heard()[from..].iter().map(|h| h.line.clone()).collect::<Vec<_>>();
    world.run(&["snapshot"]).exits(3);
    assert_eq!(lines(0), ["POST /hook", "POST /ping/fail"]);
    world.run(&["snapshot", "--only", "uploads"]).exits(0);
    assert_eq!(ear.heard().len(), 2, "{:?}", lines(2));
    // A watchdog hears of each snapshot whatever the others want to hear, and of nothing but snapshots that it is well.
    fs::create_dir(world.path("shop/gone")).unwrap();
    world.run(&["snapshot"]).exits(0);
    assert_eq!(lines(2), ["POST /hook", "POST /ping"]);
    world.run(&["snapshot"]).exits(0);
    assert_eq!(lines(4), ["POST /ping"]);
    let db = rusqlite::Connection::open(world.path("state/history.db")).unwrap();
    let before = (chrono::Utc::now() - chrono::TimeDelta::days(8)).timestamp();
    db.execute("insert or replace into settled values ('shop', 'weekly', ?1)", [before]).unwrap();
    let daemon = Daemon::start(&world, &[]);
    ear.wait(6);
    assert_eq!(daemon.stop().0, Some(0));
    assert_eq!(lines(5), ["POST /hook"]);
}

#[test]
fn what_a_verification_found_is_said() {
    let ear = Ear::new();
    let world = one(&hook(&ear));
    world.run(&["snapshot"]).exits(0);
    let stored = world.files("state/repository");
    let (archive, _) = stored.iter().find(|(path, _)| path.to_string_lossy().contains("/archives/")).unwrap();
    fs::remove_file(archive).unwrap();
    world.run(&["verify"]).exits(4);
    let heard = ear.wait(1);
    assert_eq!(events(&heard), [told("failure", "integrity")]);
    assert!(heard[0].json()["error"].as_str().unwrap().contains("missing"), "{heard:#?}");
}

/// A policy that is not caught up: what the end of the service cut short is told when it is back, and once.
#[test]
fn a_run_that_went_with_the_service_and_is_not_run_again_is_told() {
    let ear = Ear::new();
    let world = World::new();
    let seconds = own_seconds(17);
    application(&world, "shop", &format!("{}{}", hook(&ear), hanging(&world, &seconds)));
    begin_history(&world);
    missed(&world, "shop");
    let daemon = Daemon::start(&world, &[]);
    wait(|| world.path("marker").exists(), || daemon.log());
    daemon.signal(Signal::KILL);
    wait(|| runs(&world, "shop")[0]["outcome"].is_string(), || "it goes on".to_owned());
    drop(daemon);
    let file = world.path("config/policies/shop.toml");
    let policy = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        policy.replace(
            "[schedule]
",
            "[schedule]
catch_up = false
",
        ),
    )
    .unwrap();
    end_sleeps(&seconds);
    let daemon = Daemon::start(&world, &[]);
    let heard = ear.wait(1);
    assert_eq!(events(&heard), [told("failure", "interrupted")]);
    assert_eq!(heard[0].json()["what"], "snapshot");
    assert_eq!(daemon.stop().0, Some(0));
    // Not once more.
    let daemon = Daemon::start(&world, &[]);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!((daemon.stop().0, ear.heard().len()), (Some(0), 1));
}

/// Whoever keeps what he was told sees that a repository was put back, where the host itself remembers nothing.
#[test]
fn what_was_told_shows_a_repository_that_was_put_back() {
    let ear = Ear::new();
    let (hook, ping) = (ear.url("/hook"), ear.url("/ping"));
    let world = one(&format!(
        "[notify]\nwebhook = {{ url = \"{hook}\", on = [\"success\", \"weekly\"] }}\nhealthchecks = \"{ping}\"\n"
    ));
    let copy = |from: &str, to: &str| {
        let paths = [from, to].map(|name| world.path(name));
        assert!(std::process::Command::new("cp").arg("-a").args(paths).status().unwrap().success());
    };
    world.run(&["snapshot"]).exits(0);
    copy("state/repository", "before");
    fs::write(world.path("shop/uploads/more"), "more").unwrap();
    world.run(&["snapshot"]).exits(0);
    let header = world.json(&["show", "latest"])["header"].as_str().unwrap().to_owned();
    let expect = format!("2:{header}");
    let heard = ear.wait(4);
    let last = |line: &str| heard.iter().rfind(|h| h.line == line).unwrap_or_else(|| panic!("{line}: {heard:#?}"));
    let json = last("POST /hook").json();
    assert_eq!(json["newest"], serde_json::json!({ "sequence": 2, "header": header }), "{json:#}");
    let said = format!("newest snapshot: {expect} (--expect)");
    assert!(last("POST /ping").body.lines().any(|l| l == said), "{heard:#?}");
    // What is not well says it as well, and so does the week.
    fs::rename(world.path("shop/uploads"), world.path("shop/gone")).unwrap();
    assert_ne!(world.run(&["snapshot"]).code, 0);
    fs::rename(world.path("shop/gone"), world.path("shop/uploads")).unwrap();
    let heard = ear.wait(5);
    let partial = world.json(&["show", "latest"])["header"].as_str().unwrap().to_owned();
    let said = format!("newest snapshot: 3:{partial} (--expect)");
    assert!(heard[4].line == "POST /ping/fail" && heard[4].body.contains(&said), "{heard:#?}");
    let db = rusqlite::Connection::open(world.path("state/history.db")).unwrap();
    let before = (chrono::Utc::now() - chrono::TimeDelta::days(8)).timestamp();
    db.execute("insert or replace into settled values ('shop', 'weekly', ?1)", [before]).unwrap();
    drop(db);
    let daemon = Daemon::start(&world, &[]);
    let heard = ear.wait(6);
    assert_eq!(daemon.stop().0, Some(0));
    assert_eq!(heard[5].json()["event"], "weekly");
    assert!(heard[5].json()["newest"]["header"] == partial.as_str(), "{heard:#?}");

    world.run(&["list", "--expect", &expect]).exits(0);
    let newest = fs::read_dir(world.path("state")).unwrap().flatten().map(|e| e.path());
    for file in newest.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("state.db")) {
        fs::remove_file(file).unwrap();
    }
    fs::remove_dir_all(world.path("state/cache")).unwrap();
    fs::remove_dir_all(world.path("state/repository")).unwrap();
    copy("before", "state/repository");
    let stranger = ["list", "--trust-on-first-use"];
    world.run(&stranger).exits(0);
    world.run(&[&stranger[..], &["--expect", &expect]].concat()).exits(4).says(&["ALARM", "is not there"]);
}

/// An hourly time half an hour away, as cron writes it, and its newest slot: half an hour back. (A test that began right
/// before a full hour would meet one of "0 * * * *".)
fn half_an_hour_away() -> (String, i64) {
    let next = chrono::Local::now() + chrono::TimeDelta::minutes(30);
    (next.format("%-M * * * *").to_string(), next.timestamp() / 60 * 60 - 3600)
}

/// A verification that made way for a snapshot, and that its next slot has overtaken: what came of it before is told, and
/// nothing where nothing did. (The service did not stop it with itself.)
#[test]
fn what_made_way_and_was_overtaken_is_told_as_what_it_came_to_before() {
    for (had_failed, is_caught_up) in [(true, true), (false, true), (true, false)] {
        let ear = Ear::new();
        let world = one(&hook(&ear));
        world.run(&["snapshot"]).exits(0);
        begin_history_of(&world);
        let file = world.path("config/policies/shop.toml");
        let policy = fs::read_to_string(&file).unwrap();
        let (hourly, newest) = half_an_hour_away();
        let verify = format!("verify = \"{hourly}\"\ncatch_up = {is_caught_up}");
        fs::write(&file, policy.replace("verify = \"off\"", &verify)).unwrap();
        let db = rusqlite::Connection::open(world.path("state/history.db")).unwrap();
        let slot = newest - 2 * 3600;
        db.execute("insert or replace into settled values ('shop', 'verify', ?1)", [slot]).unwrap();
        let insert = "insert into runs (policy, what, trigger, slot, attempt, begun, ended, outcome, exit, error)
                      values ('shop', 'verify', 'schedule', ?1, ?2, ?1 + ?2, ?1 + ?2, ?3, 1, ?4)";
        // The slot before came out well.
        let last = rusqlite::params![slot - 3600, 1, "done", None::<String>];
        db.execute(insert, last).unwrap();
        if had_failed {
            db.execute(insert, rusqlite::params![slot, 1, "failed", "no route to the store"]).unwrap();
        }
        let attempt = 1 + i64::from(had_failed);
        let way = rusqlite::params![slot, attempt, "cancelled", "it made way for a snapshot that was due"];
        db.execute(insert, way).unwrap();
        let daemon = Daemon::start(&world, &[]);
        if is_caught_up {
            daemon.says("verify of shop: done");
        }
        if had_failed {
            ear.wait(1 + usize::from(is_caught_up));
        } else {
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        assert_eq!(daemon.stop().0, Some(0));
        let heard = ear.heard();
        if had_failed {
            assert_eq!(events(&heard[..1]), [told("failure", "failed")]);
            assert_eq!(heard[0].json()["error"], "no route to the store");
            let after: &[_] = if is_caught_up { &[told("recovery", "done")] } else { &[] };
            assert_eq!(events(&heard[1..]), after);
        } else {
            assert_eq!(events(&heard), []);
        }
    }
}
