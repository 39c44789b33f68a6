//! What a person is told when a request is refused for good: one clear cause, what to do, and no storm of retries.

use crate::faults::{Scene, full, key};
use crate::proxy::{Fault, Rule};
use crate::s3::{Kind, S3Server};
use lifeboat::storage::s3::credentials::CredentialSource;
use lifeboat::storage::{S3Storage, Storage, StorageError};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

fn refused(scene: &Scene, fault: Fault, expected: &str, hint: &str) {
    scene.proxy.rule(Rule::new("*", "", fault));
    let key = key("a");
    let calls: [&dyn Fn() -> Option<StorageError>; 4] = [
        &|| scene.storage.put_new(&key, b"2").err(),
        &|| scene.storage.get(&key, 9).err(),
        &|| scene.storage.list("").err(),
        &|| scene.storage.head(&key).err(),
    ];
    for (at, call) in calls.iter().enumerate() {
        scene.proxy.take_log();
        let error = call().unwrap_or_else(|| panic!("call {at}: {expected}"));
        let text = full(&error);
        assert!(text.contains(expected), "call {at}: {text}, not {expected}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{:?}", error.hint());
        // A HEAD asks once more for the cause; a kept connection that was closed meanwhile is opened again.
        assert!(!error.is_retryable() && scene.proxy.take_log().len() <= 4, "call {at}: no storm");
        assert!(!text.contains("a-secret-of-the-tests"), "{text}");
    }
}

#[test]
fn each_refusal_has_its_cause() {
    let scene = Scene::new(Kind::S3sFs);
    scene.storage.put_new(&key("a"), b"1").unwrap();
    let error = |body: &str| format!("<?xml version=\"1.0\"?><Error>{body}</Error>");
    refused(&scene, Fault::Status(403, "AccessDenied"), "access denied", "s3:PutObject");
    refused(&scene, Fault::Status(400, "ExpiredToken"), "have expired", "renew");
    refused(&scene, Fault::Status(403, "InvalidAccessKeyId"), "does not know this access key", "check the access key");
    refused(&scene, Fault::Status(403, "SignatureDoesNotMatch"), "secret key", "check the access key");
    let moved = error(
        "<Code>AuthorizationHeaderMalformed</Code><Message>the region is wrong</Message><Region>eu-west-3</Region>",
    );
    refused(&scene, Fault::Answer(400, String::new(), moved), "it is in \"eu-west-3\"", "region = \"eu-west-3\"");
    let moved = error("<Code>PermanentRedirect</Code><Message>elsewhere</Message>");
    let region = "x-amz-bucket-region: eu-central-1".to_owned();
    refused(&scene, Fault::Answer(301, region, moved), "it is in \"eu-central-1\"", "region = \"eu-central-1\"");
    let skewed =
        error("<Code>RequestTimeTooSkewed</Code><Message>x</Message><ServerTime>2020-02-03T04:05:06Z</ServerTime>");
    refused(&scene, Fault::Answer(403, String::new(), skewed), "the server's says 2020-02-03T04:05:06Z", "clock");
}

#[test]
fn a_bucket_that_is_not_there_is_named() {
    for kind in [Kind::S3sFs, Kind::Moto] {
        let server = S3Server::start(kind);
        let mut settings = server.settings(&server.endpoint(), "p");
        settings.bucket = "nobodys".to_owned();
        let storage = S3Storage::new(&settings).unwrap();
        let error = storage.list("").unwrap_err();
        assert!(full(&error).contains("no bucket \"nobodys\""), "{}", full(&error));
        // s3s-fs makes a folder of it.
        if kind == Kind::Moto {
            let error = storage.put_new(&key("a"), b"1").unwrap_err();
            assert!(full(&error).contains("no bucket \"nobodys\""), "{kind:?}: {}", full(&error));
        }
    }
}

#[test]
fn wrong_secrets_and_wrong_addresses() {
    let server = S3Server::start(Kind::S3sFs);
    let dir = tempfile::tempdir().unwrap();
    let wrong = dir.path().join("wrong.env");
    let file = |text: &str, mode| {
        let _ = std::fs::remove_file(&wrong);
        let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(&wrong).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let error = |endpoint: &str, credentials| {
        let mut settings = server.settings(endpoint, "p");
        settings.credentials = credentials;
        let begin = Instant::now();
        let error = S3Storage::new(&settings).unwrap().list("").unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        format!("{} (hint: {})", full(&error), error.hint().unwrap_or_default())
    };
    let of = || CredentialSource::File(wrong.clone());
    file("AWS_ACCESS_KEY_ID=AKIATESTTESTTESTTEST\nAWS_SECRET_ACCESS_KEY=very-wrong\n", 0o600);
    let text = error(&server.endpoint(), of());
    assert!(text.contains("secret key is not this access key's") && !text.contains("very-wrong"), "{text}");
    file("AWS_ACCESS_KEY_ID=AKIATESTTESTTESTTEST\n", 0o600);
    let text = error(&server.endpoint(), of());
    assert!(text.contains("has no AWS_SECRET_ACCESS_KEY"), "{text}");
    file("AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\n", 0o644);
    let text = error(&server.endpoint(), of());
    assert!(text.contains("can be read by everybody") && text.contains("chmod 600"), "{text}");
    let right = || CredentialSource::File(server.credentials());
    let text = error("http://127.0.0.1:1", right());
    assert!(text.contains("no connection to http://127.0.0.1:1") && text.contains("check the endpoint"), "{text}");
    let text = error(&server.endpoint().replace("http:", "https:"), right());
    assert!(text.contains("no secure connection"), "{text}");
    let text = error(&server.endpoint(), CredentialSource::Profile("nobody".to_owned()));
    assert!(text.contains("no credentials"), "{text}");
}
