//! Copies from a folder to an S3 server and back, on servers that nobody here wrote.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/port.rs"]
mod port;
#[path = "support/rigged.rs"]
mod rigged;
#[path = "support/s3.rs"]
mod s3;
#[path = "support/world.rs"]
mod world;

use lab::Lab;
use lifeboat::ops::access::{Access, AccessRequest};
use lifeboat::ops::copy::{self, CopyReport, CopyRequest, Side, Target};
use lifeboat::ops::verify::verify;
use lifeboat::ops::{ErrorKind, OpsError};
use lifeboat::policy::model::RepositoryUrl;
use lifeboat::storage::local::Reserve;
use lifeboat::storage::{LocalStorage, Storage, StorageKey};
use rigged::{Fault, Rigged};
use s3::{BUCKET, Kind, S3Server};
use std::collections::BTreeMap;
use std::io::ErrorKind as IoErrorKind;
use std::sync::Arc;
use world::{READ_DATA, World, noise, run};

fn content(storage: &dyn Storage) -> BTreeMap<String, Vec<u8>> {
    let read = |key: StorageKey| (key.to_string(), storage.get(&key, u64::MAX).unwrap());
    storage.list("").unwrap().into_iter().map(|object| read(object.key)).collect()
}

fn try_copy(from: &World, storage: Arc<dyn Storage>) -> Result<CopyReport, OpsError> {
    let to = Target { url: RepositoryUrl::Local("/copy".into()), storage };
    let request = CopyRequest { read_back: true, begin_anew: true, ..CopyRequest::default() };
    copy::copy(&from.forgetful().access(false)?, &to, &request, &run())
}

#[track_caller]
fn copied(from: &World, storage: Arc<dyn Storage>) -> CopyReport {
    let report = try_copy(from, storage).unwrap_or_else(|e| panic!("{}", lab::full(&e)));
    assert_eq!(report.failure(), None, "{report:#?}");
    report
}

#[test]
fn a_copy_goes_to_a_bucket_and_from_there_to_a_folder() {
    for kind in [Kind::S3sFs, Kind::Moto] {
        let server = S3Server::start(kind);
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str| Arc::new(LocalStorage::new(dir.path().join(name), Reserve::Bytes(0)));
        let world = World::new(folder("here"));
        world.snapshot(&[("a", &noise(1, 3_000_000))]);
        world.snapshot(&[("a", &[&noise(1, 3_000_000)[..], b"more"].concat())]);

        let bucket: Arc<dyn Storage> = Arc::new(server.storage("copies/one"));
        // Cut short in the middle, it goes on.
        let rigged =
            Rigged::new(bucket.clone()).on_put(|n, _| (n == 5).then_some(Fault::After(IoErrorKind::ConnectionReset)));
        assert_eq!(try_copy(&world, Arc::new(rigged)).unwrap_err().kind(), ErrorKind::Failed);
        copied(&world, bucket.clone());
        assert_eq!(content(&*bucket), content(&*world.storage), "{kind:?}");

        world.snapshot(&[("a", &noise(2, 200_000))]);
        let counted = Arc::new(Rigged::new(bucket.clone()));
        let report = copied(&world, counted.clone());
        assert_eq!((report.snapshots.len(), report.objects, counted.puts()), (1, 5, 5), "{kind:?}");

        let back = folder("back");
        copied(&world.over(bucket.clone()), back.clone());
        assert_eq!(content(&*back), content(&*world.storage), "{kind:?}");
        let there = world.over(back);
        assert!(there.read(there.chain().all().next_back().unwrap())[0].1 == noise(2, 200_000));

        // What is cut there is told, and not replaced; another repository is not written to.
        let victim = bucket.list("archives/").unwrap().remove(0).key;
        let cut = bucket.get(&victim, u64::MAX).unwrap()[1..].to_vec();
        bucket.delete(&victim).unwrap();
        bucket.put_new(&victim, &cut).unwrap();
        let report = try_copy(&world, bucket.clone()).unwrap();
        assert!(report.problems[0].side == Side::Copy && report.problems[0].object == victim.as_str(), "{report:#?}");
        let error = try_copy(&World::memory(), bucket.clone()).unwrap_err();
        assert!(error.kind() == ErrorKind::Usage && lab::full(&error).contains("another repository"));
        assert_eq!(bucket.get(&victim, u64::MAX).unwrap(), cut);
    }
}

#[test]
fn a_policy_copies_to_another_provider_and_reads_there() {
    let server = S3Server::start(Kind::S3sFs);
    let mut lab = Lab::new();
    lab.add_to_policy(&format!(
        "copies = [{{ url = \"s3://{BUCKET}/shop\", endpoint = {:?}, region = \"us-east-1\", credentials = \"file:{}\", \
         path_style = true }}]\n",
        server.endpoint(),
        server.credentials().display()
    ));
    std::fs::create_dir_all(lab.path("data")).unwrap();
    std::fs::write(lab.path("data/blob"), noise(3, 400_000)).unwrap();
    let sources = lab.sources(&[lab::files("data", &[&lab.path("data")])]);
    let first = lab.try_snapshot(&sources, &[]).unwrap_or_else(|e| panic!("{}", lab::full(&e)));
    assert_eq!(first.copies[0].kind, None, "{:#?}", first.copies);
    assert!(first.notices.is_empty() && first.alarm.is_none(), "{first:#?}");
    // The copy alone, reached as the policy says.
    std::fs::remove_dir_all(lab.path("repository")).unwrap();
    let url = RepositoryUrl::S3 { bucket: BUCKET.into(), prefix: "shop".into() };
    let request = AccessRequest { repository: Some(url.clone()), ..lab.request() };
    let access = Access::open(&lab.installation, &request).unwrap_or_else(|e| panic!("{}", lab::full(&e)));
    assert!(access.alarms.is_empty(), "{:?}", access.alarms);
    assert!(verify(&access, READ_DATA, &[], &run()).unwrap().findings.is_empty());
    // And back into the place of the repository that was lost.
    let home = lab.policy.repository.url.clone();
    let target = copy::open(Some(&lab.policy), Some(&url), &home).unwrap();
    let request = CopyRequest { begin_anew: true, ..CopyRequest::default() };
    let report = copy::copy(&access, &target, &request, &run()).unwrap_or_else(|e| panic!("{}", lab::full(&e)));
    assert_eq!(report.failure(), None, "{report:#?}");
    let (into, _) = lab.restore(first.header.id.as_str(), "into");
    assert!(std::fs::read(lab::below(&into, "data", &lab.path("data/blob"))).unwrap() == noise(3, 400_000));
    // The server goes away: the snapshot stands.
    drop(server);
    let report = lab.try_snapshot(&sources, &[]).unwrap_or_else(|e| panic!("{}", lab::full(&e)));
    assert_eq!(report.copies[0].kind, Some(ErrorKind::Failed), "{:#?}", report.copies);
    assert!(report.notices[0].contains("cannot be asked"), "{:?}", report.notices);
}
