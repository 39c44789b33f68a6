//! What the probe finds out about each server, and what it refuses.

use crate::faults::Scene;
use crate::journey::Host;
use crate::proxy::{Fault, Proxy, Rule};
use crate::s3::{BUCKET, Kind, S3Server};
use lifeboat::ops::{Run, probe};
use lifeboat::policy;
use lifeboat::storage::s3::settings::{Conditions, Digests};
use lifeboat::storage::{S3Storage, Storage};

#[test]
fn each_server_is_seen_for_what_it_is() {
    let server = S3Server::start(Kind::S3sFs);
    let storage = server.storage("p");
    let found = storage.probe(false).unwrap();
    assert_eq!((found.server.conditions, found.server.digests), (Conditions::Honoured, Digests::Checked));
    assert_eq!((found.deletes, found.versioning, found.object_lock), (true, Some(false), Some(false)));
    assert_eq!(found.unsafe_because, [""; 0]);
    assert!(storage.list("").unwrap().is_empty(), "nothing is left behind");
    let found = storage.probe(true).unwrap();
    assert!(found.unsafe_because[0].contains("Object Lock is not enabled"), "{found:?}");

    let server = S3Server::start(Kind::Moto);
    let storage = server.storage("p");
    let found = storage.probe(false).unwrap();
    assert_eq!((found.server.conditions, found.server.digests), (Conditions::Honoured, Digests::Ignored));
    assert_eq!(found.unsafe_because, [""; 0]);
    assert!(storage.list("").unwrap().is_empty());
}

#[test]
fn a_lock_is_tried_by_breaking_it() {
    let server = S3Server::start(Kind::Moto);
    server.bucket_with_lock("locked");
    let mut settings = server.settings(&server.endpoint(), "p");
    settings.bucket = "locked".to_owned();
    let storage = S3Storage::new(&settings).unwrap();
    let found = storage.probe(true).unwrap();
    assert_eq!((found.object_lock, found.lock_holds), (Some(true), Some(true)), "{found:?}");
    assert_eq!(found.unsafe_because, [""; 0]);
    let left = storage.list("").unwrap();
    assert!(left.len() == 1 && left[0].key.as_str().starts_with("probe/"), "{left:?}");

    // A server that takes the lock and forgets it.
    let proxy = Proxy::start(server.port);
    proxy.rule(Rule::new("PUT", "-lock", Fault::Strip("x-amz-object-lock")));
    settings.endpoint = Some(proxy.endpoint());
    let found = S3Storage::new(&settings).unwrap().probe(true).unwrap();
    assert!(proxy.take_harmed() > 0);
    assert_eq!(found.lock_holds, Some(false));
    assert!(found.unsafe_because[0].contains("under lock could be deleted"), "{found:?}");
}

#[test]
fn a_server_that_is_not_safe_is_told_why() {
    let scene = Scene::new(Kind::Moto);
    scene.proxy.rule(Rule::new("*", "", Fault::Strip("if-none-match")));
    let found = scene.storage.probe(false).unwrap();
    assert_eq!(found.server.conditions, Conditions::Absent);
    assert_eq!(found.unsafe_because, [""; 0], "without conditions it is still usable");

    let unsafe_because = |rule: Rule| {
        scene.proxy.rule(rule);
        let found = scene.storage.probe(false).unwrap();
        assert!(scene.proxy.take_harmed() > 0);
        found.unsafe_because.join("; ")
    };
    let text = unsafe_because(Rule::new(
        "GET",
        "list-type",
        Fault::Edit(|xml| {
            let Some((head, rest)) = xml.split_once("<Contents>") else { return xml };
            let (_, tail) = rest.rsplit_once("</Contents>").unwrap();
            format!("{head}{tail}").replace("<KeyCount>1", "<KeyCount>0")
        }),
    ));
    assert!(text.contains("a list does not show"), "{text}");
    let text = unsafe_because(Rule::new("GET", "/p/probe/", Fault::Strip("range")));
    assert!(text.contains("a part of an object"), "{text}");
    let text = unsafe_because(Rule::new("GET", "/p/probe/", Fault::Edit(|body| body.replace('1', "2"))));
    assert!(text.contains("what was written is not what is read"), "{text}");
}

#[test]
fn what_was_found_is_found_out_anew_after_a_week_and_costs_nothing_before() {
    let server = S3Server::start(Kind::S3sFs);
    let proxy = Proxy::start(server.port);
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("shop")).unwrap();
    std::fs::write(dir.path().join("shop/.env"), "MODE=production\n").unwrap();
    std::fs::copy(server.credentials(), dir.path().join("s3.env")).unwrap();
    let host = Host { dir: dir.path() };
    let (url, endpoint) = (format!("s3://{BUCKET}/shop"), proxy.endpoint());
    let place = ["--repository", &url, "--endpoint", &endpoint, "--region", "us-east-1"];
    host.ok(&[&["init", "shop"][..], &place, &["--credentials", "file:s3.env"]].concat());
    let policy = policy::load(&dir.path().join("config/policies/shop.toml")).unwrap();
    let state = dir.path().join("state");
    proxy.take_log();

    let begin = crate::world::run();
    let refresh = |days: i64| {
        let run = Run { now: begin.now + chrono::TimeDelta::days(days), ..begin.clone() };
        probe::refresh(&state, &policy.repository, &run)
    };
    assert!(refresh(0).unwrap().is_none() && refresh(6).unwrap().is_none());
    assert!(proxy.take_log().is_empty(), "within a week nothing is asked");
    assert!(refresh(8).unwrap().is_some() && !proxy.take_log().is_empty());
    assert!(refresh(14).unwrap().is_none(), "the new one counts from its own time");
    assert!(refresh(0).unwrap().is_some(), "one of the future is not believed");
    assert!(refresh(0).unwrap().is_none());
    assert!(proxy.take_log().iter().all(|seen| seen.path.contains("probe") || seen.path.contains('?')));

    // The command itself, with a note that has grown old: a server that has become unsafe is refused, with the reason.
    let note = std::fs::read_dir(&state).unwrap().map(|e| e.unwrap().path());
    let note = note.into_iter().find(|p| p.file_name().unwrap().to_string_lossy().starts_with("probe-")).unwrap();
    let mut report: serde_json::Value = serde_json::from_slice(&std::fs::read(&note).unwrap()).unwrap();
    report["time"] = "2026-01-01T00:00:00Z".into();
    std::fs::write(&note, report.to_string()).unwrap();
    proxy.rule(Rule::new("GET", "/shop/probe/", Fault::Edit(|body| body.replace('1', "2"))));
    let out = host.run(&["snapshot"]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && text.contains("not safe to store in: what was written is not"), "{text}");
    assert!(proxy.take_log().iter().all(|seen| !seen.path.contains("/manifests/")), "nothing was written");
    proxy.rules([]);
    host.ok(&["snapshot"]);
    let report = std::fs::read_to_string(&note).unwrap();
    assert!(!report.contains("2026-01-01"), "{report}");
    // A probe whose note was lost is made up for.
    std::fs::remove_file(&note).unwrap();
    host.ok(&["snapshot"]);
    assert!(note.exists());
}
