//! What a run costs in requests: on a server that is 40 ms away, each one that waits for another is felt.

use crate::proxy::{Proxy, Seen};
use crate::s3::{Kind, S3Server};
use crate::world::{World, noise};
use lifeboat::storage::{S3Storage, Storage};
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
    assert!(count(&log, "PUT") <= 4 && count(&log, "HEAD") == 0, "{log:#?}");
    timed("open and list", &|| {
        world.chain();
    });
    timed("read", &|| {
        let chain = world.chain();
        let last = chain.all().next_back().unwrap();
        assert!(world.read(last)[0].1 == data);
    });
}
