//! `status`: the headline, the checks, what is known of a repository that does not answer, what another host sees.

use crate::metrics;
use crate::serve::{one, quiet};
use crate::world::{CANARY, World, mode};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

fn check<'v>(policy: &'v Value, name: &str) -> Vec<&'v Value> {
    policy["checks"].as_array().unwrap().iter().filter(|c| c["check"] == name).collect()
}

#[track_caller]
fn level(policy: &Value, name: &str, level: &str) {
    let found = check(policy, name);
    assert!(found.iter().any(|c| c["level"] == level), "{name} is not {level}: {policy:#}");
}

#[test]
fn the_headline_comes_first_and_everything_has_a_way_out() {
    let world = one("[[external]]\nname = \"Supabase\"\n");
    // Nothing yet.
    let json = world.run(&["status", "--json"]).exits(1).json();
    assert_eq!(
        json["headline"],
        "If this server died now: everything lost, there is no complete snapshot; not covered: Supabase."
    );
    world.run(&["snapshot", "--drill"]).exits(0);
    let json = world.json(&["status"]);
    assert_eq!((&json["exit_code"], &json["level"]), (&0.into(), &"amber".into()), "{json:#}");
    let shop = &json["policies"][0];
    for (name, is) in [
        ("snapshots", "green"),
        ("drill", "green"),
        ("repository", "green"),
        ("runs", "green"),
        ("room", "green"),
        ("recipients", "green"),
    ] {
        level(shop, name, is);
    }
    // On this machine alone, and nothing runs it.
    level(shop, "elsewhere", "amber");
    level(shop, "service", "amber");
    level(shop, "kit", "amber");
    for check in shop["checks"].as_array().unwrap().iter().filter(|c| c["level"] != "green") {
        assert!(check["hint"].is_string() && check["detail"].as_str().unwrap().len() > 10, "{check:#}");
    }
    assert!(
        shop["loss"]["server"].is_null() && shop["loss"]["application"]["seconds"].as_u64().unwrap() < 60,
        "{shop:#}"
    );
    assert_eq!((&shop["recovery"]["by"], &shop["not_covered"][0]), (&"drill".into(), &"Supabase".into()));
    assert_eq!(shop["drill"]["outcome"], "passed");
    assert!(shop["repository"]["stored_bytes"].as_u64().unwrap() > 1000, "{shop:#}");
    assert_eq!(shop["next"][0]["does"], "snapshot");
    let ran = world.run(&["status"]).exits(0).shows(&["dies with it", "hint: elsewhere: add `copies"]);
    let first = ran.out.lines().next().unwrap();
    assert!(first.starts_with("If this server died now: everything lost, for its backups lie on it alone"), "{first}");
    assert!(first.ends_with("; not covered: Supabase.") && first.contains("of data lost, back in about"), "{first}");
    assert_eq!(world.run(&["status", "-q"]).exits(0).out, "");
    // What was seen is kept for this account alone, without a secret.
    let kept = world.path("state/status/shop.json");
    assert_eq!(mode(&kept), 0o600);
    assert!(!fs::read_to_string(&kept).unwrap().contains(CANARY));
    // Too old for whoever asks.
    std::thread::sleep(Duration::from_millis(2100));
    world.run(&["status", "--max-age", "1s"]).exits(1).shows(&["1.0 s is the limit"]);
    world.run(&["status", "-q", "--max-age", "1s"]).exits(1).shows(&["shop: snapshots: the newest complete one is"]);
    world.run(&["status", "--max-age", "1 fortnight"]).exits(2);
}

#[test]
fn health_checks_and_failures_are_red() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let world =
        one(&format!("[[health]]\ntcp = \"127.0.0.1:{port}\"\n\n[[health]]\ndisk = \"/\"\nmin_free = \"1%\"\n"));
    world.run(&["snapshot"]).exits(0);
    let json = world.json(&["status"]);
    level(&json["policies"][0], "health", "green");
    assert_eq!(check(&json["policies"][0], "health").len(), 2);
    drop(listener);
    let json = world.run(&["status", "--json"]).exits(1).json();
    level(&json["policies"][0], "health", "red");
    assert_eq!(json["level"], "red");
    // A policy that cannot be read is red as well, and costs no other.
    fs::write(world.path("config/policies/blog.toml"), "[app]\nname = \"blog\"\n").unwrap();
    let json = world.run(&["status", "--json"]).exits(1).json();
    let policies = json["policies"].as_array().unwrap();
    assert_eq!(policies.len(), 2);
    level(&policies[0], "policy", "red");
    assert_eq!((&policies[0]["policy"], &policies[0]["host"]), (&"blog".into(), &Value::Null));
    level(&policies[1], "snapshots", "green");
}

#[test]
fn a_repository_that_is_gone_is_told_with_what_was_known() {
    let world = one("");
    world.run(&["snapshot"]).exits(0);
    let before = world.json(&["status"]);
    fs::rename(world.repository(), world.path("away")).unwrap();
    let json = world.run(&["status", "--json"]).exits(1).json();
    let shop = &json["policies"][0];
    level(shop, "repository", "red");
    assert!(
        check(shop, "repository")[0]["detail"].as_str().unwrap().contains("the rest of this is as it was"),
        "{shop:#}"
    );
    level(shop, "snapshots", "green");
    assert_eq!(shop["newest"]["id"], before["policies"][0]["newest"]["id"]);
    fs::rename(world.path("away"), world.repository()).unwrap();
    // A header that somebody changed.
    let dir = world.repository().join("snapshots");
    let (path, bytes) = crate::world::tree(&dir).pop().unwrap();
    fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
    let json = world.run(&["status", "--json"]).exits(1).json();
    level(&json["policies"][0], "repository", "red");
}

#[test]
fn a_server_that_never_answers_holds_nobody_up() {
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let world = World::ready();
    world.run(&["verify"]).exits(0);
    let repository = world.repository();
    let from = format!("url = \"{}\"", repository.display());
    let to = format!(
        "url = \"s3://bucket/shop\"\nendpoint = \"http://{}\"\nregion = \"x\"\npath_style = true",
        deaf.local_addr().unwrap()
    );
    world.change_policy(&from, &to);
    let begun = Instant::now();
    let mut command = world.command(&["status", "--json"]);
    command.env("AWS_ACCESS_KEY_ID", "id").env("AWS_SECRET_ACCESS_KEY", "key");
    let ran: crate::world::Ran = command.output().unwrap().into();
    let took = begun.elapsed();
    let json = ran.exits(1).json();
    level(&json["policies"][0], "repository", "red");
    assert!(took < Duration::from_secs(25), "{took:?}");
    assert!(json.to_string().contains("does not answer within 15 s"), "{json:#}");
}

#[test]
fn another_host_notices_silence_without_a_key() {
    let world = one("");
    world.run(&["snapshot"]).exits(0);
    let id = world.json(&["keys", "show"])["repository_id"].as_str().unwrap().to_owned();
    let there = world.repository();
    let there = there.to_str().unwrap();
    let other = World::new();
    let status = |more: &[&str]| other.run(&[&["status", "--repository", there], more].concat());
    status(&["--max-age", "26h"]).exits(0).shows(&["shop", "green"]).says(&["trusted as found (give --signer)", &id]);
    let ran = status(&["--max-age", "26h", "--signer", &id]).exits(0);
    assert_eq!(ran.err, "");
    assert_eq!(status(&["-q", "--max-age", "26h", "--signer", &id]).exits(0).out, "");
    std::thread::sleep(Duration::from_millis(2100));
    status(&["--max-age", "1s", "--signer", &id]).exits(1).shows(&["red", "nothing has come for too long"]);
    let json = status(&["--max-age", "1s", "--signer", &id, "--json"]).exits(1).json();
    assert_eq!((&json["command"], &json["trusted"]), (&"status repository".into(), &"signer".into()), "{json:#}");
    assert_eq!((&json["lines"][0]["policy"], &json["lines"][0]["level"]), (&"shop".into(), &"red".into()));
    // Narrowed to what is not there.
    status(&["-p", "shop", "--signer", &id]).exits(0);
    status(&["-p", "blog", "--signer", &id]).exits(1).says(&["there is no snapshot of what was asked for"]);
    status(&["--host", "nowhere", "--signer", &id]).exits(1);
    // Another repository than the one that is expected, and a forged header.
    let wrong = format!("SHA256:{}", "A".repeat(43));
    status(&["--signer", &wrong]).exits(4);
    let (path, bytes) = crate::world::tree(&world.repository().join("snapshots")).pop().unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let forged = text.replacen("\"time\":\"20", "\"time\":\"21", 1);
    assert_ne!(text, forged);
    fs::write(&path, forged).unwrap();
    status(&["--max-age", "26h", "--signer", &id]).exits(4);
    fs::remove_dir_all(world.repository()).unwrap();
    status(&["--max-age", "26h"]).exits(1);
    other.run(&["status", "--host", "web-1"]).exits(2);
}

#[test]
fn the_metrics_file_is_whole_and_readable_by_others() {
    let world = one("");
    world.run(&["snapshot", "--drill"]).exits(0);
    fs::create_dir(world.path("textfile")).unwrap();
    let file = world.path("textfile/lifeboat.prom");
    world.run(&["status", "--metrics", file.to_str().unwrap()]).exits(0);
    assert_eq!(mode(&file), 0o644);
    assert_eq!(fs::read_dir(world.path("textfile")).unwrap().count(), 1, "no other file stays");
    let text = fs::read_to_string(&file).unwrap();
    let samples = metrics::parse(&text);
    let value = |name: &str| metrics::value(&samples, name, &[("policy", "shop")]);
    assert_eq!(
        (value("lifeboat_status"), value("lifeboat_drill_passed"), value("lifeboat_snapshots")),
        (1.0, 1.0, 1.0)
    );
    assert!(value("lifeboat_recovery_seconds") > 0.0 && value("lifeboat_repository_size_bytes") > 1000.0);
    assert!(value("lifeboat_application_loss_seconds") < 120.0);
    let run = |name: &str, run: &str| metrics::value(&samples, name, &[("policy", "shop"), ("run", run)]);
    assert!(run("lifeboat_run_success_timestamp_seconds", "snapshot") > 1.7e9);
    assert_eq!(run("lifeboat_run_failing", "snapshot"), 0.0);
    assert!(quiet().contains("drill = \"off\"") && run("lifeboat_next_run_timestamp_seconds", "snapshot") > 1.7e9);
    assert!(!text.contains(CANARY));
    // Where nothing can be written, somebody hears of it.
    world.run(&["status", "--metrics", "/nowhere/x.prom"]).exits(1);
}
