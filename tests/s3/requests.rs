//! What a run costs in requests: on a server that is 40 ms away, each one that waits for another is felt.

use crate::journey::Host;
use crate::proxy::{Fault, Hook, Proxy, Rule, Seen, depth};
use crate::s3::{BUCKET, Kind, S3Server};
use crate::world::{World, noise};
use lifeboat::storage::{S3Storage, Storage};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn count(log: &[Seen], method: &str) -> usize {
    log.iter().filter(|r| r.method == method).count()
}

#[test]
fn an_unchanged_snapshot_and_a_read_take_few_requests() {
    let server = S3Server::start(Kind::S3sFs);
    let proxy = Proxy::start(server.port);
    let mut settings = server.settings(&proxy.endpoint(), "shop");
    settings.server = {
        let storage = S3Storage::new(&settings).unwrap();
        storage.probe(false).unwrap().server
    };
    let storage: Arc<dyn Storage> = Arc::new(S3Storage::new(&settings).unwrap());
    let world = World::new(storage);
    let data = noise(1, 2 << 20);
    for n in 0..8 {
        let mut data = data.clone();
        data[n * 1000] ^= 1;
        world.snapshot(&[("dump", &data)]);
    }
    proxy.latency(Duration::from_millis(40));
    let timed = |what: &str, work: &dyn Fn()| {
        proxy.take_log();
        let begin = Instant::now();
        work();
        let (took, log) = (begin.elapsed(), proxy.take_log());
        println!(
            "{what}: {took:?}, {} GET, {} PUT, {} HEAD",
            count(&log, "GET"),
            count(&log, "PUT"),
            count(&log, "HEAD")
        );
        for seen in &log {
            println!("    {} {} {}", seen.method, seen.path, seen.status);
        }
        (took, log)
    };
    let (_, log) = timed("snapshot", &|| {
        world.snapshot(&[("dump", &data)]);
    });
    assert!(count(&log, "PUT") <= 6, "{log:#?}");
    let (_, log) = timed("unchanged snapshot", &|| {
        world.snapshot(&[("dump", &data)]);
    });
    // Whether its refs are still there is the one question, asked beside the lists.
    assert!(count(&log, "PUT") <= 4 && count(&log, "HEAD") <= 1, "{log:#?}");
    timed("open and list", &|| {
        world.chain();
    });
    timed("read", &|| {
        let chain = world.chain();
        let last = chain.all().next_back().unwrap();
        assert!(world.read(last)[0].1 == data);
    });
}

/// Far beyond what a busy machine takes between two requests that do not wait for each other.
const LATENCY: Duration = Duration::from_secs(2);

fn rounds(proxy: &Proxy, work: impl FnOnce()) -> (usize, Vec<Seen>) {
    proxy.take_log();
    proxy.latency(LATENCY);
    work();
    proxy.latency(Duration::ZERO);
    let log = proxy.take_log();
    (depth(&log), log)
}

/// The commands themselves, on a host that remembers its last run.
#[test]
fn what_need_not_wait_is_asked_at_once() {
    let server = S3Server::start(Kind::S3sFs);
    let proxy = Proxy::start(server.port);
    // The folders above a source are part of it, and the one for temporary files is everybody's.
    let quiet = Path::new(env!("CARGO_TARGET_TMPDIR")).join("requests");
    std::fs::create_dir_all(&quiet).unwrap();
    let dir = tempfile::tempdir_in(quiet).unwrap();
    let app = dir.path().join("shop");
    for n in 0..40 {
        std::fs::create_dir_all(app.join(format!("uploads/{n:02}"))).unwrap();
        std::fs::write(app.join(format!("uploads/{n:02}/image.bin")), noise(n, 60_000)).unwrap();
    }
    std::fs::copy(server.credentials(), dir.path().join("s3.env")).unwrap();
    let host = Host { dir: dir.path() };
    let (url, endpoint) = (format!("s3://{BUCKET}/shop"), proxy.endpoint());
    let place = ["--repository", &url, "--endpoint", &endpoint, "--region", "us-east-1"];
    host.ok(&[&["init", "shop"][..], &place, &["--credentials", "file:s3.env"]].concat());
    let policy = dir.path().join("config/policies/shop.toml");
    let text = std::fs::read_to_string(&policy).unwrap();
    let source = format!("\n[[source]]\nkind = \"files\"\nname = \"uploads\"\npaths = [{:?}]\n", app.join("uploads"));
    std::fs::write(&policy, text + &source).unwrap();
    // What the recovery bundle says of this host may change at any time.
    let snapshot = ["snapshot", "--only", "uploads"];
    host.ok(&snapshot);
    host.ok(&snapshot);

    // Everything that is known before; the manifest beside the last look; the header; and the proof of it.
    let (depth, log) = rounds(&proxy, || drop(host.ok(&snapshot)));
    assert!(depth <= 4 && count(&log, "PUT") == 2, "{depth}: {log:#?}");

    // The same with manifest and refs; the listing; the file with the folders above it.
    let path = app.join("uploads/20/image.bin");
    let one = ["restore", "latest", "--only", "uploads", "--path", path.to_str().unwrap(), "--into", "one"];
    let (depth, log) = rounds(&proxy, || drop(host.ok(&one)));
    assert!(depth <= 3, "{depth}: {log:#?}");
    let back = dir.path().join(format!("one/uploads{}", path.display()));
    assert_eq!(std::fs::read(back).unwrap(), noise(20, 60_000));

    // What is not the newest is known as well, and what is unknown is no failure.
    let listed: serde_json::Value = serde_json::from_str(&host.ok(&["list", "--json"])).unwrap();
    let oldest = listed["snapshots"].as_array().unwrap().last().unwrap()["id"].as_str().unwrap().to_owned();
    let (depth, log) = rounds(&proxy, || drop(host.ok(&["show", &oldest])));
    assert!(depth <= 1, "{depth}: {log:#?}");
    assert!(!host.run(&["show", "20000101T000000Z-00000000"]).status.success());
}

/// The records are listed beside the headers. A prune between the two is no gap, and no sign of a repository that went
/// back.
#[test]
fn a_prune_between_two_lists_is_no_gap() {
    let server = S3Server::start(Kind::S3sFs);
    let proxy = Arc::new(Proxy::start(server.port));
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("shop")).unwrap();
    std::fs::write(dir.path().join("shop/.env"), "MODE=production\n").unwrap();
    std::fs::copy(server.credentials(), dir.path().join("s3.env")).unwrap();
    let host = Host { dir: dir.path() };
    let (url, endpoint) = (format!("s3://{BUCKET}/shop"), proxy.endpoint());
    let place = ["--repository", &url, "--endpoint", &endpoint, "--region", "us-east-1"];
    host.ok(&[&["init", "shop"][..], &place, &["--credentials", "file:s3.env"]].concat());
    let policy = dir.path().join("config/policies/shop.toml");
    let retention = "\n[retention]\nkeep_last = 2\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0\n";
    std::fs::write(&policy, std::fs::read_to_string(&policy).unwrap() + retention).unwrap();
    let take = |count: usize| (0..count).for_each(|_| drop(host.ok(&["snapshot"])));
    // The first prune vouches for the key that signs its record: that is another matter.
    take(3);
    host.ok(&["prune", "--yes"]);
    take(2);
    proxy.take_log();
    let (own, root) = (Arc::downgrade(&proxy), dir.path().to_owned());
    let prune = move || {
        if let Some(proxy) = own.upgrade() {
            proxy.wait_for("records%2F");
            Host { dir: &root }.ok(&["prune", "--yes"]);
        }
    };
    let headers = Rule::new("GET", "prefix=shop%2Fsnapshots%2F", Fault::First(Hook(Arc::new(prune))));
    proxy.rule(headers.times(1));
    let out = host.run(&["list", "--json"]);
    assert_eq!(proxy.take_harmed(), 1);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && !text.contains("gone") && !text.contains("rolled back"), "{text}");
    let listed: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let ids = listed["snapshots"].as_array().unwrap();
    assert_eq!((ids.len(), ids[1]["sequence"].as_u64()), (2, Some(4)), "{listed:#}");
}

/// Neighbours come in one piece: a whole restore asks for far fewer pieces than there are frames.
#[test]
fn a_whole_restore_takes_large_pieces() {
    let server = S3Server::start(Kind::S3sFs);
    let proxy = Proxy::start(server.port);
    let storage: Arc<dyn Storage> = Arc::new(S3Storage::new(&server.settings(&proxy.endpoint(), "shop")).unwrap());
    let world = World::new(storage);
    // Some forty frames in three archives.
    let data = noise(1, 40 << 20);
    world.snapshot(&[("dump", &data)]);
    let chain = world.chain();
    proxy.take_log();
    assert!(world.read(chain.all().next_back().unwrap())[0].1 == data);
    let log = proxy.take_log();
    let pieces = log.iter().filter(|seen| seen.path.contains("/archives/")).count();
    assert!((10..=20).contains(&pieces), "{pieces} pieces: {log:#?}");
}
