//! Hostile answers of a server: whatever its lists say, there is an answer or an error, soon.

use super::S3Storage;
use super::credentials::CredentialSource;
use super::lock::LockSettings;
use super::settings::{Pace, S3Settings, ServerTraits};
use crate::base::fuzz::Fuzz;
use crate::storage::{ObjectInfo, Storage};
use chrono::TimeDelta;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WORDS: &[&str] = &[
    "<Contents>",
    "</Contents>",
    "<Key>",
    "</Key>",
    "<IsTruncated>true</IsTruncated>",
    "<NextContinuationToken>",
    "<KeyCount>",
    "<Size>-1</Size>",
    "<LastModified>",
    "&lt;",
    "&#0;",
    "&x;",
    "<!DOCTYPE",
    "<![CDATA[",
    "]]>",
    "<?xml",
    "xmlns=",
    "<!--",
    "-->",
    "<Version>",
    "<DeleteMarker>",
    "<VersionId>",
    "<IsLatest>",
    "../",
    "\0",
    "\u{feff}",
];

/// A server whose every answer is of this status, and is what `answer` says.
fn server(status: &'static str, answer: impl Fn() -> Vec<u8> + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            // It ends with the process.
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut stream, mut line) = (stream, String::new());
                while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
                    if line == "\r\n" {
                        let body = answer();
                        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
                        if stream.write_all(&[head.as_bytes(), &body].concat()).is_err() {
                            return;
                        }
                    }
                    line.clear();
                }
            });
        }
    });
    port
}

fn storage(dir: &Path, port: u16, locked: bool) -> S3Storage {
    let credentials = dir.join("credentials.env");
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&credentials);
    file.as_mut().unwrap().write_all(b"AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\n").unwrap();
    let quick = Duration::from_millis(20);
    S3Storage::new(&S3Settings {
        bucket: "backups".to_owned(),
        prefix: "shop".to_owned(),
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        region: Some("us-east-1".to_owned()),
        credentials: CredentialSource::File(credentials),
        path_style: true,
        limit_upload: None,
        object_lock: locked.then(|| LockSettings { period: TimeDelta::days(1), exempt: Vec::new() }),
        server: ServerTraits::default(),
        pace: Pace {
            stall: Duration::from_secs(3),
            deadline: quick,
            first_contact: quick,
            first_pause: quick,
            longest_pause: quick,
        },
    })
    .unwrap()
}

/// One whose answers are what stands in `body`.
fn server_of(status: &'static str, body: &Arc<Mutex<Vec<u8>>>) -> u16 {
    let body = body.clone();
    server(status, move || body.lock().unwrap().clone())
}

/// What of an answer must hold for its list to be believed, as far as its plain text shows it.
fn is_credible(body: &[u8], found: &[ObjectInfo]) {
    let mut text = String::from_utf8_lossy(body).into_owned();
    for mark in ["<!--", "-->", "<![CDATA[", "]]>"] {
        text = text.replace(mark, "");
    }
    assert!(found.windows(2).all(|pair| pair[0].key < pair[1].key), "out of order, or twice: {found:?}");
    let foreign = found.iter().find(|o| !text.contains(&format!("shop/{}", o.key)));
    assert!(foreign.is_none(), "not below the prefix: {foreign:?}");
    let mut told = text.split("IsTruncated").skip(1).filter_map(|rest| rest.split("</").next());
    assert!(told.any(|told| told.contains("false")), "it does not say that it is complete: {found:?}");
    let counts: Vec<&str> = text.split("<KeyCount>").skip(1).filter_map(|rest| rest.split('<').next()).collect();
    if let [count] = counts[..]
        && let Ok(count) = count.parse::<usize>()
    {
        let shown = text.matches("<Contents").count();
        assert!(found.len() <= count && count <= shown, "{count} objects are promised: {found:?}");
    }
}

/// `lies`: what is replaced by what in the honest answer.
fn sweep(locked: bool, seed: &str, honest: usize, lies: &[(&str, &str)]) {
    let body = Arc::new(Mutex::new(seed.as_bytes().to_vec()));
    let port = server_of("200 OK", &body);
    let dir = tempfile::tempdir().unwrap();
    let storage = storage(dir.path(), port, locked);
    assert_eq!(storage.list("").unwrap().len(), honest, "the seed is an honest answer");
    let mut fuzz = Fuzz::of("s3-list").seed(seed).words(WORDS);
    for (honest, lie) in lies {
        assert!(seed.contains(honest), "{honest}");
        let answer = seed.replace(honest, lie);
        *body.lock().unwrap() = answer.clone().into_bytes();
        assert!(storage.list("").is_err(), "{lie:?} in place of {honest:?} is believed");
        fuzz = fuzz.seed(answer);
    }
    fuzz.run(|bytes| {
        *body.lock().unwrap() = bytes.to_vec();
        if let Ok(found) = storage.list("") {
            is_credible(bytes, &found);
        }
    });
}

#[test]
fn sweep_lists() {
    sweep(
        false,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
         <Name>backups</Name><Prefix>shop/</Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false\
         </IsTruncated><Contents><Key>shop/archives/aa/1</Key><LastModified>2026-11-21T10:00:00.000Z</LastModified>\
         <ETag>&quot;1&quot;</ETag><Size>10</Size></Contents><Contents><Key>shop/repository.json</Key><LastModified>\
         2026-11-21T10:00:01.000Z</LastModified><ETag>&quot;2&quot;</ETag><Size>20</Size></Contents></ListBucketResult>",
        2,
        &[
            ("<IsTruncated>false</IsTruncated>", ""),
            ("<IsTruncated>false", "<IsTruncated>true"),
            ("<KeyCount>2", "<KeyCount>1"),
            ("<KeyCount>2", "<KeyCount>3"),
            ("shop/archives", "shoq/archives"),
            ("shop/repository", "shoq/repository"),
            (
                "<IsTruncated>false</IsTruncated>",
                "<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>",
            ),
            ("shop/archives", "shop/zrchives"),
            ("shop/archives/aa/1", "shop/repository.json"),
            ("<Size>10", "<Size>-1"),
        ],
    );
}

#[test]
fn sweep_lists_of_versions() {
    sweep(
        true,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListVersionsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
         <Name>backups</Name><Prefix>shop/</Prefix><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated><Version><Key>\
         shop/a</Key><VersionId>v2</VersionId><IsLatest>true</IsLatest><LastModified>2026-11-21T10:00:01.000Z\
         </LastModified><ETag>&quot;2&quot;</ETag><Size>20</Size></Version><Version><Key>shop/a</Key><VersionId>v1\
         </VersionId><IsLatest>false</IsLatest><LastModified>2026-11-21T10:00:00.000Z</LastModified><ETag>&quot;1&quot;\
         </ETag><Size>10</Size></Version><DeleteMarker><Key>shop/b</Key><VersionId>v1</VersionId><IsLatest>true\
         </IsLatest><LastModified>2026-11-21T10:00:00.000Z</LastModified></DeleteMarker></ListVersionsResult>",
        1,
        &[
            ("<IsTruncated>false</IsTruncated>", ""),
            ("<IsTruncated>false", "<IsTruncated>true"),
            (
                "<IsTruncated>false</IsTruncated>",
                "<IsTruncated>true</IsTruncated><NextKeyMarker>shop/a</NextKeyMarker>",
            ),
            ("<Key>shop/b", "<Key>shoq/b"),
            ("<VersionId>v2</VersionId>", ""),
            ("<Size>20", "<Size>-1"),
        ],
    );
}

/// A circle of two pages is one as well.
#[test]
fn no_list_goes_round_in_circles() {
    for (locked, result, next) in [
        (
            false,
            "ListBucketResult",
            ["NextContinuationToken>a</NextContinuationToken", "NextContinuationToken>b</NextContinuationToken"],
        ),
        (true, "ListVersionsResult", ["NextKeyMarker>a</NextKeyMarker", "NextKeyMarker>b</NextKeyMarker"]),
    ] {
        let asked = Arc::new(AtomicUsize::new(0));
        let port = {
            let asked = asked.clone();
            server("200 OK", move || {
                let next = next[asked.fetch_add(1, Ordering::Relaxed) % 2];
                format!("<{result}><IsTruncated>true</IsTruncated><{next}></{result}>").into_bytes()
            })
        };
        let dir = tempfile::tempdir().unwrap();
        let error = storage(dir.path(), port, locked).list("").unwrap_err();
        assert!(format!("{error:?}").contains("circles"), "{error:?}");
        assert!(asked.load(Ordering::Relaxed) < 10);
    }
}

#[test]
fn sweep_errors() {
    let seed = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>AuthorizationHeaderMalformed</Code><Message>the region \
                is wrong</Message><Region>eu-central-1</Region><ServerTime>2026-11-21T10:00:00Z</ServerTime><RequestId>1\
                </RequestId></Error>";
    let body = Arc::new(Mutex::new(seed.as_bytes().to_vec()));
    let port = server_of("400 Bad Request", &body);
    let dir = tempfile::tempdir().unwrap();
    let storage = storage(dir.path(), port, false);
    let words =
        [WORDS, &["<Error>", "<Code>", "</Code>", "<Message>", "<Region>", "</Region>", "RequestTimeTooSkewed"]]
            .concat();
    Fuzz::of("s3-error").seed(seed).words(&words).run(|bytes| {
        *body.lock().unwrap() = bytes.to_vec();
        // Whatever it says, it is an error, and not longer than somebody reads.
        let error = storage.list("").unwrap_err();
        assert!(error.to_string().len() < 2_000, "{error}");
    });
}
