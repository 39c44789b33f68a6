//! Object Lock, with the hands of somebody who has the host's own credentials: no earlier snapshot is lost.

use crate::prune;
use crate::s3::{Kind, S3Server};
use crate::world::{self, DEEP, OBJECTS, World, noise};
use chrono::{TimeDelta, Utc};
use lifeboat::ops::access::{AccessRequest, Installation};
use lifeboat::ops::prune::{self as ops, PruneOptions, Times};
use lifeboat::pipeline::sign::Namespace;
use lifeboat::repository::layout;
use lifeboat::storage::s3::lock::LockSettings;
use lifeboat::storage::{S3Storage, Storage, StorageError, StorageKey, Tampering};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

const LOCKED: &str = "locked";

/// A server with a bucket in which objects can be locked.
struct Locked {
    server: S3Server,
}

impl Locked {
    fn start() -> Self {
        let server = S3Server::start(Kind::Moto);
        let made = Self { server };
        let answer = made.send("PUT", "", "x-amz-bucket-object-lock-enabled: true\r\n", b"");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        made
    }

    /// What anybody can do who has the host's credentials.
    fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.server.port)).unwrap();
        let auth = "Authorization: AWS4-HMAC-SHA256 Credential=AKIATESTTESTTESTTEST/20260101/us-east-1/s3/aws4_request";
        let length = body.len();
        write!(
            stream,
            "{method} /{LOCKED}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{auth}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
        )
        .unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn delete(&self, key: &StorageKey) {
        assert!(self.send("DELETE", &format!("/p/{key}"), "", b"").starts_with("HTTP/1.1 204"));
    }

    fn overwrite(&self, key: &StorageKey, bytes: &[u8]) {
        assert!(self.send("PUT", &format!("/p/{key}"), "", bytes).starts_with("HTTP/1.1 200"));
    }

    /// Ids of all versions and markers of a key.
    fn versions(&self, key: &str) -> Vec<String> {
        let answer = self.send("GET", &format!("?versions&prefix=p/{key}"), "", b"");
        let ids = answer.split("<VersionId>").skip(1).map(|rest| rest.split('<').next().unwrap().to_owned());
        ids.collect()
    }

    fn storage(&self, period: TimeDelta) -> Arc<S3Storage> {
        let mut settings = self.server.settings(&self.server.endpoint(), "p");
        settings.bucket = LOCKED.to_owned();
        settings.object_lock = Some(LockSettings { period, exempt: vec![layout::TRASH.to_owned()] });
        Arc::new(S3Storage::new(&settings).unwrap())
    }
}

fn month() -> TimeDelta {
    TimeDelta::days(30)
}

/// Everything that was there before the attack restores, for the host and for a stranger who has only the identity.
fn restores(locked: &Locked, world: &World, expected: &[Vec<u8>]) {
    let fresh = world.over(locked.storage(month()));
    for reader in [&fresh, &fresh.forgetful()] {
        let chain = reader.chain();
        let snapshots: Vec<_> = chain.all().collect();
        assert_eq!(snapshots.len(), expected.len(), "{:?}", chain.problems);
        for (snapshot, data) in snapshots.into_iter().zip(expected) {
            assert!(reader.read(snapshot)[0].1 == *data, "{}", snapshot.header.id);
        }
        let report = reader.verify(DEEP).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
}

fn tampered(world: &World, how: Tampering) -> BTreeSet<String> {
    let locks = world.storage.object_locks().unwrap();
    let found = locks.tampered("").unwrap().into_iter();
    found.filter(|t| t.how == how).map(|t| t.key.to_string()).collect()
}

#[test]
fn whoever_has_the_hosts_credentials_loses_no_earlier_snapshot() {
    let locked = Locked::start();
    let world = World::new(locked.storage(month()));
    let data = [noise(1, 700_000), noise(2, 20 << 20)];
    for bytes in &data {
        world.snapshot(&[("a", bytes)]);
    }
    restores(&locked, &world, &data);
    let keys = world.keys("");
    assert!(keys.len() >= 12, "{keys:?}");
    assert!(tampered(&world, Tampering::Deleted).is_empty() && tampered(&world, Tampering::Overwritten).is_empty());

    // Everything is deleted.
    keys.iter().for_each(|key| locked.delete(key));
    let names: BTreeSet<String> = keys.iter().map(ToString::to_string).collect();
    assert_eq!(tampered(&world.over(locked.storage(month())), Tampering::Deleted), names);
    restores(&locked, &world, &data);
    let said = world.over(locked.storage(month())).verify(OBJECTS).unwrap();
    assert_eq!(said.tampered.len(), keys.len());
    assert!(said.failure().is_some(), "it is not silent");

    // Everything is overwritten, and some of it deleted again.
    for (n, key) in keys.iter().enumerate() {
        locked.overwrite(key, b"this is what you shall restore");
        if n % 2 == 0 {
            locked.delete(key);
        }
    }
    assert_eq!(tampered(&world.over(locked.storage(month())), Tampering::Overwritten), names);
    restores(&locked, &world, &data);

    // With the host's key as well, a header is replaced by another one that is validly signed.
    let newest = world.chain().all().last().unwrap().clone();
    let mut other = newest.header.clone();
    other.manifest = world.chain().all().next().unwrap().header.manifest;
    let line = serde_json::to_string(&other).unwrap();
    let forged = world.host_key.signing.sign(Namespace::Snapshot, &line).unwrap();
    locked.overwrite(&newest.key, forged.as_ref());
    restores(&locked, &world, &data);

    // Every version is deleted by its id: those of the host stay.
    for key in &keys {
        for id in locked.versions(key.as_str()) {
            let _ = locked.send(
                "DELETE",
                &format!("/p/{key}?versionId={id}"),
                "x-amz-bypass-governance-retention: true\r\n",
                b"",
            );
        }
        let fresh = locked.storage(month());
        assert!(matches!(fresh.delete(key), Err(StorageError::Locked { .. })), "{key}");
    }
    restores(&locked, &world, &data);

    // And the host goes on.
    let host = world.over(locked.storage(month()));
    let third = noise(3, 100_000);
    host.snapshot(&[("a", &third)]);
    restores(&locked, &world, &[data[0].clone(), data[1].clone(), third]);
}

/// Locks are one and a half periods long when something is written, and are extended before a header that uses it again
/// once less than a period is left.
#[test]
fn what_a_snapshot_uses_again_is_locked_as_long_as_what_it_writes() {
    let locked = Locked::start();
    let short = World::new(locked.storage(TimeDelta::hours(1)));
    let data = noise(1, 700_000);
    short.snapshot(&[("a", &data)]);
    let until = |world: &World, key: &StorageKey| {
        let locks = world.storage.object_locks().unwrap();
        locks.locked_until(key).unwrap().unwrap_or_else(|| panic!("{key} is not locked"))
    };
    let now = Utc::now();
    for key in short.keys("") {
        let left = until(&short, &key) - now;
        assert!(left > TimeDelta::minutes(80) && left < TimeDelta::minutes(100), "{key}: {left}");
    }
    // From now on a month is promised.
    let long = short.over(locked.storage(month()));
    long.snapshot(&[("a", &data)]);
    let newest = long.chain().all().last().unwrap().clone();
    let refs = String::from_utf8(long.get(&layout::refs(newest.header.refs))).unwrap();
    let mut needed =
        vec![newest.key.clone(), layout::refs(newest.header.refs), layout::manifest(newest.header.manifest)];
    needed.extend([layout::repository(), layout::signer(1)]);
    for line in refs.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let id = words[1].parse().unwrap();
        needed.push(if words[0] == "archive" { layout::archive(id) } else { layout::index(id) });
    }
    assert!(needed.len() >= 7, "{needed:?}");
    for key in &needed {
        assert!(until(&long, key) - Utc::now() > month(), "{key}: {}", until(&long, key));
    }
    // What only the first snapshot needs keeps its own.
    let first = long.chain().all().next().unwrap().clone();
    assert!(until(&long, &first.key) - now < TimeDelta::hours(2));
    // A long lock is not asked for again: the state knows.
    let before = long.state.object_lock(&long.storage.describe(), layout::repository().as_str()).unwrap();
    long.snapshot(&[("a", &data)]);
    assert_eq!(long.state.object_lock(&long.storage.describe(), layout::repository().as_str()).unwrap(), before);
}

/// A prune takes away what it may, by version, and waits for the rest.
#[test]
fn prune_waits_for_the_locks() {
    let locked = Locked::start();
    let world = World::new(locked.storage(TimeDelta::seconds(20)));
    for seed in 0..3 {
        world.snapshot(&[("a", &noise(seed, 300_000))]);
    }
    let policy = prune::policy("keep_last = 1");
    let times = Times { youngest: TimeDelta::zero(), grace: TimeDelta::zero() };
    let options = PruneOptions { times, ..PruneOptions::of(world::host()) };
    let identity = world.dir.path().join("identity.txt");
    let request = AccessRequest { identity: Some(identity), ..AccessRequest::default() };
    let installation =
        Installation { config_dir: world.dir.path().to_owned(), state_dir: world.state.dir().to_owned() };
    let prune = || {
        let access = world.access(true).unwrap();
        let run = world::run();
        let plan = ops::plan(&access, &policy, &options, &run).unwrap();
        ops::run(&installation, &access, &request, &plan, &options, &run).unwrap()
    };
    assert_eq!(prune().removed, 2);
    let report = prune();
    assert!(report.locked.objects > 0 && report.deleted.objects == 0, "{report:?}");
    let access = world.access(true).unwrap();
    assert_eq!(access.snapshots().len(), 1, "a header that is locked is no snapshot any more");
    assert!(world.verify(DEEP).unwrap().findings.is_empty());
    std::thread::sleep(std::time::Duration::from_secs(33));
    let report = prune();
    assert!(report.deleted.objects >= 6 && report.locked.objects == 0, "{report:?}");
    prune();
    assert_eq!(world.verify(DEEP).unwrap().unreferenced.unwrap().objects, 0);
    assert_eq!(locked.versions("archives/").len(), 1, "no version is left behind");
    assert_eq!(locked.versions("snapshots/").len(), 1);
}
