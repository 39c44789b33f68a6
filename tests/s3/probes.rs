//! What the probe finds out about each server, and what it refuses.

use crate::faults::Scene;
use crate::proxy::{Fault, Rule};
use crate::s3::{Kind, S3Server};
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
    let proxy = crate::proxy::Proxy::start(server.port);
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
