//! Whole snapshots over S3, while the network and the server misbehave: what was committed stays readable, what is
//! not committed does not exist, and the next run succeeds by itself.

use crate::faults::full;
use crate::proxy::{Fault, Proxy, Rule};
use crate::s3::{Kind, S3Server};
use crate::world::{World, noise};
use lifeboat::repository::RepositoryError;
use lifeboat::storage::S3Storage;
use std::sync::Arc;

struct Host {
    _server: S3Server,
    proxy: Proxy,
    world: World,
    first: Vec<u8>,
}

impl Host {
    /// A repository with one snapshot.
    fn new(kind: Kind) -> Self {
        let server = S3Server::start(kind);
        let proxy = Proxy::start(server.port);
        let world = World::new(Arc::new(S3Storage::new(&server.settings(&proxy.endpoint(), "shop")).unwrap()));
        let first = noise(1, 3 << 20);
        world.snapshot(&[("dump", &first)]);
        proxy.take_log();
        Self { _server: server, proxy, world, first }
    }

    fn try_second(&self) -> Result<(), RepositoryError> {
        let second = noise(2, 3 << 20);
        self.world.take("shop", &[("files", &[("dump", &second)])]).map(|_| ())
    }

    /// The first snapshot restores bit for bit; so does the second one, taken now if it is not there.
    fn is_well(&self, snapshots: usize) {
        self.proxy.rules([]);
        let chain = self.world.chain();
        let all: Vec<_> = chain.all().collect();
        assert_eq!(all.len(), snapshots);
        assert!(self.world.read(all[0])[0].1 == self.first);
        if snapshots == 1 {
            self.try_second().unwrap();
        }
        let chain = self.world.chain();
        let last = chain.all().next_back().unwrap();
        assert!(self.world.read(last)[0].1 == noise(2, 3 << 20));
    }
}

#[test]
fn a_snapshot_survives_what_passes() {
    for kind in [Kind::S3sFs, Kind::Moto] {
        let host = Host::new(kind);
        host.proxy.rules([
            Rule::new("PUT", "/archives/", Fault::Status(500, "InternalError")).times(2),
            Rule::new("PUT", "/archives/", Fault::CutUpload(100_000)).times(1),
            Rule::new("PUT", "/index/", Fault::LoseAnswer).times(1),
            Rule::new("PUT", "/refs/", Fault::Status(503, "SlowDown")).times(2),
            Rule::new("PUT", "/manifests/", Fault::LoseAnswer).times(1),
            Rule::new("PUT", "/snapshots/", Fault::LoseAnswer).times(1),
            Rule::new("GET", "list-type", Fault::Status(502, "BadGateway")).times(2),
            Rule::new("GET", "/signers/", Fault::CutDownload(10)).times(1),
        ]);
        host.try_second().unwrap_or_else(|e| panic!("{}", full(&e)));
        assert!(host.proxy.take_harmed() >= 10);
        host.is_well(2);
    }
}

#[test]
fn credentials_that_end_in_the_middle_leave_nothing_half_done() {
    let host = Host::new(Kind::S3sFs);
    host.proxy.rule(Rule::new("PUT", "", Fault::Status(403, "ExpiredToken")).after(1));
    let error = host.try_second().unwrap_err();
    assert!(full(&error).contains("credentials have expired"), "{}", full(&error));
    let asked = host.proxy.take_log();
    assert!(asked.iter().filter(|r| r.method == "PUT").count() <= 4, "no storm: {asked:?}");
    host.is_well(1);
}

#[test]
fn throttling_without_end_fails_the_run() {
    let host = Host::new(Kind::S3sFs);
    host.proxy.rule(Rule::new("PUT", "/archives/", Fault::Status(429, "SlowDown")));
    let error = host.try_second().unwrap_err();
    assert!(full(&error).contains("given up after"), "{}", full(&error));
    host.is_well(1);
}

#[test]
fn a_list_that_fails_before_the_header_commits_nothing() {
    for fault in
        [Fault::Status(403, "AccessDenied"), Fault::Edit(|xml| xml.replace("<IsTruncated>false", "<IsTruncated>true"))]
    {
        let host = Host::new(Kind::S3sFs);
        host.proxy.rule(Rule::new("GET", "archives", fault));
        host.try_second().unwrap_err();
        assert!(host.proxy.take_harmed() > 0);
        host.is_well(1);
    }
}

#[test]
fn other_bytes_than_were_asked_for_are_never_used() {
    let host = Host::new(Kind::Moto);
    host.try_second().unwrap();
    let chain = host.world.chain();
    let all: Vec<_> = chain.all().collect();
    let other = format!("/backups/shop/manifests/{}.json.zst.age", all[0].header.manifest);
    let wanted = all[1].header.manifest.to_string();
    host.proxy.rule(Rule::new("GET", &wanted, Fault::Redirect(other)));
    let error = host.world.try_reader(all[1]).err().expect("another manifest is not taken");
    assert!(error.is_integrity() && full(&error).contains(&wanted), "{}", full(&error));
    assert!(host.proxy.take_harmed() > 0);
    // A stale or swapped header is signed, and yet it is not the one of that place.
    let (old, new) = (all[0].key.to_string(), all[1].key.to_string());
    host.proxy.rule(Rule::new("GET", &new, Fault::Redirect(format!("/backups/shop/{old}"))));
    let chain = host.world.chain();
    assert!(!chain.problems.is_empty() && chain.all().count() == 1, "{:?}", chain.problems);
    host.is_well(2);
}
