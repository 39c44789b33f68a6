//! What the network and the server do wrong, one request at a time. Each test asserts that the fault was injected.

use crate::proxy::{Fault, Proxy, Rule};
use crate::s3::{Kind, S3Server};
use lifeboat::storage::s3::settings::{Conditions, Pace};
use lifeboat::storage::{Put, S3Storage, Storage, StorageError, StorageKey, conformance};
use std::time::{Duration, Instant};

pub struct Scene {
    _server: S3Server,
    pub proxy: Proxy,
    pub storage: S3Storage,
}

impl Scene {
    pub fn new(kind: Kind) -> Self {
        let server = S3Server::start(kind);
        let proxy = Proxy::start(server.port);
        let storage = S3Storage::new(&server.settings(&proxy.endpoint(), "p")).unwrap();
        Self { _server: server, proxy, storage }
    }
}

pub fn key(text: &str) -> StorageKey {
    text.parse().unwrap()
}

pub fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn the_suite_passes_through_the_proxy_and_while_every_third_request_fails() {
    let scene = Scene::new(Kind::S3sFs);
    conformance::run(&scene.storage);
    let server = S3Server::start(Kind::S3sFs);
    let proxy = Proxy::start(server.port);
    let mut settings = server.settings(&proxy.endpoint(), "p");
    settings.pace.deadline = Duration::from_secs(30);
    let flaky = S3Storage::new(&settings).unwrap();
    proxy.rules((0..60).map(|n| {
        let fault = match n % 4 {
            0 => Fault::Status(500, "InternalError"),
            1 => Fault::Status(503, "SlowDown"),
            2 => Fault::CutDownload(3),
            _ => Fault::Answer(502, String::new(), "<html>bad gateway</html>".into()),
        };
        Rule::new("*", "", fault).after(n * 2).times(1)
    }));
    conformance::run(&flaky);
    assert!(proxy.take_harmed() > 10);
}

#[test]
fn throttling_ends_at_the_deadline_with_falling_rate() {
    let scene = Scene::new(Kind::S3sFs);
    scene.storage.put_new(&key("a"), b"1").unwrap();
    scene.proxy.rule(Rule::new("*", "", Fault::Status(429, "TooManyRequests")));
    scene.proxy.take_log();
    let begin = Instant::now();
    let error = scene.storage.get(&key("a"), 10).unwrap_err();
    assert!(error.is_retryable() && full(&error).contains("given up after"), "{}", full(&error));
    assert!((5..30).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    let asked = scene.proxy.take_log().len();
    assert!((8..60).contains(&asked), "{asked} requests");
}

#[test]
fn a_connection_that_breaks_is_made_anew() {
    for kind in [Kind::S3sFs, Kind::Moto] {
        let scene = Scene::new(kind);
        let bytes = noise(3 << 20);
        scene.proxy.rule(Rule::new("PUT", "/a", Fault::CutUpload(1 << 20)).times(2));
        assert_eq!(scene.storage.put_new(&key("a"), &bytes).unwrap(), Put::Created);
        assert_eq!(scene.proxy.take_harmed(), 2);
        scene.proxy.rule(Rule::new("GET", "/a", Fault::CutDownload(2_000_000)).times(2));
        assert!(scene.storage.get(&key("a"), 3 << 20).unwrap() == bytes);
        assert_eq!(scene.proxy.take_harmed(), 2);
        scene.proxy.rule(Rule::new("GET", "/a", Fault::CutDownload(50)).times(1));
        assert!(scene.storage.get_range(&key("a"), 1000, 100).unwrap() == bytes[1000..1100]);
    }
}

#[test]
fn a_connection_that_stalls_is_given_up() {
    let scene = Scene::new(Kind::S3sFs);
    let bytes = noise(12 << 20);
    scene.proxy.rule(Rule::new("PUT", "/a", Fault::StallUpload).times(1));
    let begin = Instant::now();
    assert_eq!(scene.storage.put_new(&key("a"), &bytes).unwrap(), Put::Created);
    assert!(begin.elapsed() >= Duration::from_secs(3) && scene.proxy.take_harmed() == 1);
    scene.proxy.rule(Rule::new("GET", "/a", Fault::StallDownload(100_000)).times(1));
    let begin = Instant::now();
    assert!(scene.storage.get(&key("a"), 12 << 20).unwrap() == bytes);
    assert!(begin.elapsed() >= Duration::from_secs(3) && scene.proxy.take_harmed() == 1);
}

#[test]
fn a_write_whose_answer_is_lost_meets_itself() {
    for kind in [Kind::S3sFs, Kind::Moto] {
        let scene = Scene::new(kind);
        scene.storage.put_new(&key("first"), b"1").unwrap();
        assert_eq!(scene.storage.server().conditions, Conditions::Honoured);
        for length in [1000, 26 << 20] {
            let name = format!("lost-{length}");
            let bytes = noise(length);
            let what = if length > 1000 { "uploadId" } else { "" };
            let method = if length > 1000 { "POST" } else { "PUT" };
            scene.proxy.rule(Rule::new(method, &format!("{name}?{what}"), Fault::LoseAnswer).times(1));
            if length == 1000 {
                scene.proxy.rule(Rule::new(method, &name, Fault::LoseAnswer).times(1));
            }
            let put = scene.storage.put_new(&key(&name), &bytes);
            assert!(matches!(put, Ok(Put::Created | Put::AlreadyThere)), "{kind:?} {length}: {put:?}");
            assert_eq!(scene.proxy.take_harmed(), 1);
            assert!(scene.storage.get(&key(&name), length as u64).unwrap() == bytes);
            assert!(matches!(scene.storage.put_new(&key(&name), b"x"), Err(StorageError::Exists { .. })));
        }
    }
}

#[test]
fn a_conflict_is_tried_again() {
    let scene = Scene::new(Kind::S3sFs);
    scene.proxy.rule(Rule::new("PUT", "/a", Fault::Status(409, "ConditionalRequestConflict")).times(3));
    assert_eq!(scene.storage.put_new(&key("a"), b"1").unwrap(), Put::Created);
    assert_eq!(scene.proxy.take_harmed(), 3);
}

#[test]
fn an_upload_in_parts_that_fails_at_its_end_is_no_object() {
    let scene = Scene::new(Kind::Moto);
    let bytes = noise(26 << 20);
    let body = "<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code><Message>not today</Message></Error>";
    let failing = |times| {
        Rule::new("POST", "a?uploadId", Fault::Answer(200, "content-type: application/xml".into(), body.into()))
            .times(times)
    };
    scene.proxy.rule(failing(u64::MAX));
    let error = scene.storage.put_new(&key("a"), &bytes).unwrap_err();
    assert!(full(&error).contains("InternalError"), "{}", full(&error));
    assert!(scene.proxy.take_harmed() > 1);
    assert!(scene.storage.head(&key("a")).unwrap().is_none(), "nothing is visible");
    let log = scene.proxy.take_log();
    assert!(log.iter().any(|r| r.method == "DELETE" && r.path.contains("uploadId")), "the upload is aborted");
    scene.proxy.rule(failing(1));
    assert_eq!(scene.storage.put_new(&key("a"), &bytes).unwrap(), Put::Created, "an error that passes");
    assert!(scene.storage.get(&key("a"), 26 << 20).unwrap() == bytes);
}

#[test]
fn leftover_parts_are_aborted_once_they_are_old() {
    let scene = Scene::new(Kind::Moto);
    scene.storage.put_new(&key("a"), b"1").unwrap();
    scene.proxy.rules([
        Rule::new("POST", "b?uploadId", Fault::Status(403, "AccessDenied")),
        Rule::new("DELETE", "b?", Fault::Status(403, "AccessDenied")),
    ]);
    assert!(scene.storage.put_new(&key("b"), &noise(25 << 20)).is_err());
    assert_eq!(scene.proxy.take_harmed(), 2);
    scene.proxy.rules([]);
    // moto dates every upload to 2010.
    scene
        .proxy
        .rule(Rule::new("GET", "uploads", Fault::Edit(|xml| begun(&xml, &chrono::Utc::now().to_rfc3339()))).times(1));
    assert_eq!(scene.storage.tidy().unwrap(), 0, "somebody may still be at it");
    scene.proxy.rule(Rule::new("GET", "uploads", Fault::Edit(|xml| begun(&xml, "2026-01-01T00:00:00.000Z"))).times(1));
    assert_eq!(scene.storage.tidy().unwrap(), 1);
    assert_eq!(scene.proxy.take_harmed(), 2);
    let log = scene.proxy.take_log();
    assert!(log.iter().any(|r| r.method == "DELETE" && r.path.contains("/p/b?") && r.status == 204), "{log:?}");
}

type Edit = fn(String) -> String;

fn begun(xml: &str, when: &str) -> String {
    let (head, rest) = xml.split_once("<Initiated>").expect("an upload");
    let (_, tail) = rest.split_once("</Initiated>").unwrap();
    format!("{head}<Initiated>{when}</Initiated>{tail}")
}

#[test]
fn a_list_is_whole_or_an_error() {
    let scene = Scene::new(Kind::S3sFs);
    for n in 0..5 {
        scene.storage.put_new(&key(&format!("r/{n}")), b"x").unwrap();
    }
    let spoil: [(&str, Edit); 7] = [
        ("cut", |xml| xml.replace("<IsTruncated>false", "<IsTruncated>true")),
        ("endless", |xml| {
            xml.replace(
                "<IsTruncated>false</IsTruncated>",
                "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>",
            )
        }),
        ("silent", |xml| xml.replace("<IsTruncated>false</IsTruncated>", "")),
        ("missing", |xml| {
            let (head, rest) = xml.split_once("<Contents>").unwrap();
            let (_, tail) = rest.split_once("</Contents>").unwrap();
            format!("{head}{tail}")
        }),
        ("twice", |xml| xml.replace("p/r/2<", "p/r/1<")),
        ("disordered", |xml| xml.replace("p/r/2<", "p/r/9<")),
        ("foreign", |xml| xml.replace("p/r/4<", "q/r/4<")),
    ];
    for (what, edit) in spoil {
        scene.proxy.rule(Rule::new("GET", "list-type", Fault::Edit(edit)));
        let error = scene.storage.list("r/").expect_err(what);
        assert!(full(&error).contains("cannot be trusted"), "{what}: {}", full(&error));
        assert!(scene.proxy.take_harmed() > 0);
    }
    scene.proxy.rule(Rule::new("GET", "list-type", Fault::CutDownload(200)).times(1));
    assert_eq!(scene.storage.list("r/").unwrap().len(), 5, "a list that breaks off is asked for anew");
    scene.proxy.rule(Rule::new("GET", "list-type", Fault::Status(500, "InternalError")));
    assert!(scene.storage.list("r/").is_err());
}

#[test]
fn a_server_without_conditions_is_noticed_and_nothing_is_replaced() {
    for fault in [Fault::Strip("if-none-match"), Fault::Status(501, "NotImplemented")] {
        // s3s-fs checks signatures, and so notices a header that is missing.
        let scene = Scene::new(Kind::Moto);
        // As B2 does: what carries the header is refused. The second rule set lets the plain write through.
        let ignoring = matches!(fault, Fault::Strip(_));
        if ignoring {
            scene.proxy.rule(Rule::new("*", "", fault));
            conformance::run(&scene.storage);
            assert!(scene.proxy.take_harmed() > 0);
        } else {
            scene.proxy.rule(Rule::new("PUT", "/a", fault).times(1));
            assert_eq!(scene.storage.put_new(&key("a"), b"1").unwrap(), Put::Created);
            assert_eq!(scene.proxy.take_harmed(), 1);
        }
        assert_eq!(scene.storage.server().conditions, Conditions::Absent);
        assert!(matches!(
            scene.storage.put_new(&key("ab/c"), b"other"),
            Ok(Put::Created) | Err(StorageError::Exists { .. })
        ));
        scene.storage.put_new(&key("z"), b"1").unwrap();
        assert!(matches!(scene.storage.put_new(&key("z"), b"2"), Err(StorageError::Exists { .. })));
        assert_eq!(scene.storage.get(&key("z"), 9).unwrap(), b"1");
    }
}

#[test]
fn bytes_that_change_on_the_way_up_are_noticed_even_where_the_server_does_not() {
    let scene = Scene::new(Kind::Moto);
    let bytes = noise(100_000);
    scene.proxy.rule(Rule::new("PUT", "/a", Fault::FlipUpload));
    let error = scene.storage.put_new(&key("a"), &bytes).unwrap_err();
    assert!(full(&error).contains("does not read back"), "{}", full(&error));
    let scene = Scene::new(Kind::S3sFs);
    scene.proxy.rule(Rule::new("PUT", "/a", Fault::FlipUpload));
    let error = scene.storage.put_new(&key("a"), &bytes).unwrap_err();
    assert!(scene.proxy.take_harmed() > 0, "{}", full(&error));
    assert!(scene.storage.head(&key("a")).unwrap().is_none(), "this server checks what it gets");
}

#[test]
fn a_range_that_is_not_the_one_asked_for_is_refused() {
    let scene = Scene::new(Kind::S3sFs);
    scene.storage.put_new(&key("a"), &noise(1000)).unwrap();
    scene.proxy.rule(Rule::new(
        "GET",
        "/a",
        Fault::Answer(206, "content-range: bytes 0-9/1000".into(), "0123456789".into()),
    ));
    let error = scene.storage.get_range(&key("a"), 100, 10).unwrap_err();
    assert!(full(&error).contains("cannot be trusted"), "{}", full(&error));
    scene.proxy.rule(Rule::new(
        "GET",
        "/a",
        Fault::Answer(206, "content-range: bytes 100-104/1000".into(), "01234".into()),
    ));
    assert!(full(&scene.storage.get_range(&key("a"), 100, 10).unwrap_err()).contains("cut short"));
}

#[test]
fn uploads_keep_to_the_limit() {
    let server = S3Server::start(Kind::S3sFs);
    let mut settings = server.settings(&server.endpoint(), "p");
    settings.limit_upload = Some(1 << 20);
    // A pause that the limit asks for is no stall.
    settings.pace = Pace { stall: Duration::from_millis(500), deadline: Duration::from_secs(60), ..settings.pace };
    let storage = S3Storage::new(&settings).unwrap();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let storage = &storage;
            scope.spawn(move || storage.put_new(&key(name), &noise(3 << 19)).unwrap());
        }
    });
    let took = begin.elapsed().as_secs_f64();
    assert!(took >= 2.5, "3 MiB at 1 MiB/s took {took} s");
}
