//! The suite that every storage passes, and what only large objects meet.

use crate::s3::{Kind, S3Server, quick};
use lifeboat::storage::s3::credentials::CredentialSource;
use lifeboat::storage::s3::settings::{Conditions, S3Settings, ServerTraits};
use lifeboat::storage::{Put, S3Storage, Storage, StorageError, conformance};

#[test]
fn on_s3s_fs() {
    let server = S3Server::start(Kind::S3sFs);
    conformance::run(&server.storage("some/prefix"));
    conformance::run(&server.storage("another"));
    let storage = server.storage("some/prefix");
    storage.put_new(&"x".parse().unwrap(), b"1").unwrap();
    assert_eq!(storage.server().conditions, Conditions::Honoured);
}

#[test]
fn on_s3s_fs_without_a_prefix() {
    conformance::run(&S3Server::start(Kind::S3sFs).storage(""));
}

#[test]
fn on_moto() {
    let server = S3Server::start(Kind::Moto);
    conformance::run(&server.storage("some/prefix"));
    conformance::run(&server.storage("another"));
}

#[test]
fn large_objects_go_up_in_parts() {
    for kind in [Kind::S3sFs, Kind::Moto] {
        let server = S3Server::start(kind);
        let storage = server.storage("large");
        let bytes: Vec<u8> = (0..5_000_000u32).flat_map(u32::to_le_bytes).collect();
        let key = "archives/00/large".parse().unwrap();
        assert_eq!(storage.put_new(&key, &bytes).unwrap(), Put::Created, "{kind:?}");
        assert_eq!(storage.put_new(&key, &bytes).unwrap(), Put::AlreadyThere);
        assert!(storage.get(&key, bytes.len() as u64).unwrap() == bytes);
        assert!(storage.get_range(&key, 8 << 20, 100).unwrap() == bytes[8 << 20..][..100]);
        let mut other = bytes.clone();
        other[12_345_678] ^= 1;
        assert!(matches!(storage.put_new(&key, &other), Err(StorageError::Exists { .. })));
        assert!(storage.get(&key, bytes.len() as u64).unwrap() == bytes, "never replaced");
        assert_eq!(storage.tidy().unwrap(), 0);
    }
}

#[test]
fn a_list_has_many_pages() {
    let server = S3Server::start(Kind::S3sFs);
    let storage = server.storage("many");
    let dir = server.files().join("many/records");
    std::fs::create_dir_all(&dir).unwrap();
    for n in 0..2345 {
        std::fs::write(dir.join(format!("{n:06}")), b"x").unwrap();
    }
    let listed = storage.list("records/").unwrap();
    assert_eq!(listed.len(), 2345);
    assert!(listed.windows(2).all(|w| w[0].key < w[1].key));
}

/// Garage is a real distributed store that takes minutes to build: `scripts/test-garage.sh` starts it and names it here.
#[test]
#[ignore = "run by scripts/test-garage.sh"]
fn on_garage() {
    let named = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by scripts/test-garage.sh"));
    let settings = |prefix: &str| S3Settings {
        bucket: named("LIFEBOAT_GARAGE_BUCKET"),
        prefix: prefix.to_owned(),
        endpoint: Some(named("LIFEBOAT_GARAGE_ENDPOINT")),
        region: Some("garage".to_owned()),
        credentials: CredentialSource::File(named("LIFEBOAT_GARAGE_CREDENTIALS").into()),
        path_style: true,
        limit_upload: None,
        object_lock: None,
        server: ServerTraits::default(),
        pace: quick(),
    };
    let storage = S3Storage::new(&settings("suite")).unwrap();
    conformance::run(&storage);
    assert_eq!(storage.server().conditions, Conditions::Absent, "Garage takes If-None-Match as if it were not there");
    let bytes: Vec<u8> = (0..5_000_000u32).flat_map(u32::to_le_bytes).collect();
    let key = "archives/00/large".parse().unwrap();
    assert_eq!(storage.put_new(&key, &bytes).unwrap(), Put::Created);
    assert_eq!(storage.put_new(&key, &bytes).unwrap(), Put::AlreadyThere);
    assert!(matches!(storage.put_new(&key, b"x"), Err(StorageError::Exists { .. })));
    assert!(storage.get(&key, bytes.len() as u64).unwrap() == bytes);
    let found = S3Storage::new(&settings("probe")).unwrap().probe(false).unwrap();
    println!("{found:#?}");
    assert_eq!(found.unsafe_because, [""; 0]);
    assert_eq!(found.server.conditions, Conditions::Absent);
}
