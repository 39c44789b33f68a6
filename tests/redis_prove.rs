//! Proofs of captured Redis servers: what is whole is green, and whatever is damaged is red and named.

#[path = "support/docker.rs"]
mod engine;
#[path = "support/port.rs"]
mod port;
#[path = "support/redis.rs"]
mod redis;
#[path = "support/redis_versions.rs"]
mod redis_versions;
#[path = "support/sink.rs"]
mod sink;
#[path = "support/taken.rs"]
mod taken;

use engine::{IMAGE, TestContainer, docker, engine};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::{Event, Events};
use lifeboat::place::{ContainerPlace, HostPlace};
use lifeboat::policy::model::{App, Drill, DrillPostgres, OnRollback, RedisSpec, SourcePolicy, SourceSpec, Target};
use lifeboat::sources::SourceError;
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::project::Places;
use lifeboat::sources::proof::{Check, Proof, Prove, Trial, Verdict};
use lifeboat::sources::redis::{RedisProof, RedisSource};
use redis::RedisServer;
use redis_versions::{image_of_redis_8, image_with};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use taken::Taken;

const CRC64: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_REDIS);

fn host() -> Locate {
    Arc::new(|_| Ok(Located { place: Arc::new(HostPlace::new()), env: Default::default() }))
}

fn source(target: Target, locate: Locate) -> RedisSource {
    let spec = RedisSpec { target, user: None, password_from: None, tls: false };
    RedisSource::new("cache".parse().unwrap(), spec, Duration::from_secs(60), locate)
}

fn take(server: &RedisServer) -> Taken {
    Taken::of(&source(Target::Url(server.url()), host()))
}

/// Everything that a drill would hand over.
struct Bench {
    target: Target,
    memory: u64,
    timeout: Duration,
    cancel: Cancel,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    fn new(target: Target) -> Self {
        let (timeout, cancel) = (Duration::from_secs(120), Cancel::new());
        Self { target, memory: 512 << 20, timeout, cancel, warnings: Arc::default() }
    }

    fn prove(&self, taken: &Taken) -> Result<Proof, SourceError> {
        let scratch = tempfile::Builder::new().prefix("lifeboat-drill-").tempdir().unwrap();
        self.prove_in(taken, scratch.path())
    }

    fn prove_in(&self, taken: &Taken, scratch: &Path) -> Result<Proof, SourceError> {
        let spec = RedisSpec { target: self.target.clone(), user: None, password_from: None, tls: false };
        let source = SourcePolicy {
            name: taken.name.clone(),
            on_rollback: OnRollback::Keep,
            implicit: false,
            optional: false,
            timeout: Duration::from_secs(60),
            spec: SourceSpec::Redis(spec),
        };
        let app = App {
            name: "shop".parse().unwrap(),
            root: "/nowhere".into(),
            compose_files: vec![],
            env_files: vec![],
            profiles: vec![],
            project: None,
            project_dir: None,
        };
        let drill = Drill {
            postgres: DrillPostgres::Auto,
            memory: self.memory,
            max_age: Duration::from_secs(86_400),
            checks: vec![],
        };
        let warnings = self.warnings.clone();
        let events = Events::new(move |event| {
            if let Event::Warning { text, .. } = event {
                warnings.lock().unwrap().push(text.clone());
            }
        });
        let now = chrono::Utc::now();
        RedisProof.prove(&Trial {
            name: &taken.name,
            streams: taken,
            facts: &taken.facts,
            source: Some(&source),
            policy: None,
            drill: &drill,
            places: &Places::new(&app, &self.cancel),
            trees: &[],
            scratch,
            fact_key: None,
            taken: now,
            now,
            began: Instant::now(),
            timeout: self.timeout,
            events: &events,
            cancel: &self.cancel,
        })
    }
}

fn prove(taken: &Taken) -> Proof {
    Bench::new(Target::Host).prove(taken).unwrap_or_else(|e| panic!("{e} {:?}", e.way_out()))
}

fn check<'p>(proof: &'p Proof, name: &str) -> &'p Check {
    proof.checks.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no check {name} in {proof:#?}"))
}

#[track_caller]
fn all_passed(proof: &Proof) {
    let names: Vec<&str> = proof.checks.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["file", "keys", "times to live", "values", "functions", "load", "loaded"]);
    let others: Vec<&Check> = proof.checks.iter().filter(|c| c.verdict != Verdict::Passed).collect();
    assert!(others.is_empty(), "{others:#?}");
}

/// Exactly these checks failed; none is green that should not be.
#[track_caller]
fn failed(proof: &Proof, names: &[&str]) {
    let red = proof.checks.iter().filter(|c| c.verdict == Verdict::Failed);
    let red: Vec<&str> = red.map(|c| c.name.as_str()).collect();
    assert_eq!(red, names, "{proof:#?}");
}

/// The first difference of a check.
fn difference(proof: &Proof, name: &str) -> (String, String, String) {
    let first = &check(proof, name).differences[0];
    (first.subject.clone(), first.expected.clone(), first.found.clone())
}

/// Every type, small and large, in several databases; names that are numbers, long, or no text.
fn fill(server: &RedisServer) {
    let mut commands = String::new();
    for i in 0..1500 {
        commands += &format!("SET plain:{i} value-{i}\nSET {i} {i}\n");
        commands += &format!("HSET bighash field-{i} value-{i}\nZADD bigzset {i}.5 member-{i}\nSADD ints {i}\n");
        commands += &format!("RPUSH biglist {}\nXADD stream {}-1 k v{i}\n", "y".repeat(100), i + 1);
    }
    commands += "RPUSH list a b c\nSADD set a b\nZADD zset 1 a 2.25 b\nHSET basket shoes 2 hats 1\n";
    commands += "XGROUP CREATE stream workers 0\nXREADGROUP GROUP workers ann COUNT 10 STREAMS stream >\n";
    commands += "SETEX session:1 86400 ann\nSETEX session:2 86400 bob\nPEXPIRE plain:1 86400000\n";
    commands += &format!("SET {} compressed\nSET \"\\x00\\xff\\n\" bytes\n", "long-name-".repeat(40));
    commands += "SELECT 3\nSET other database\nSELECT 9\nSET nine 9\nEXPIRE nine 86400\n";
    server.pipe(&commands);
    server.cli(&["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function() return 1 end)"]);
}

/// The checksum as the server would have written it.
fn reseal(rdb: &mut [u8]) {
    let at = rdb.len() - 8;
    let sum = CRC64.checksum(&rdb[..at]);
    rdb[at..].copy_from_slice(&sum.to_le_bytes());
}

fn find(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|w| w == part).unwrap_or_else(|| panic!("no {part:?}"))
}

/// Processes whose working folder is this one.
fn processes_in(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir)) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

#[test]
fn what_was_captured_is_proved_and_nothing_stays() {
    let server = RedisServer::start();
    fill(&server);
    let scratch = tempfile::tempdir().unwrap();
    let proof = Bench::new(Target::Host).prove_in(&take(&server), scratch.path()).unwrap();
    all_passed(&proof);
    assert_eq!(proof.restored, ["3,015 keys"]);
    assert_eq!(check(&proof, "keys").found, "3,015 keys (4 expire) in 3 databases");
    assert!(check(&proof, "load").subject.contains("7.0"), "{:?}", check(&proof, "load"));
    let steps: Vec<(&str, bool)> = proof.steps.iter().map(|s| (s.name.as_str(), s.restores)).collect();
    assert_eq!(steps, [("read", true), ("load", true), ("compare", false)]);
    assert_eq!(processes_in(scratch.path()), Vec::<String>::new());
    assert_eq!(server.cli(&["DBSIZE"]), "3013", "the live server was not touched");
}

#[test]
fn keys_whose_time_has_come_since_are_no_loss() {
    let server = RedisServer::start_with(&["--databases", "40"]);
    server.pipe("SET stays 1\nSET goes 2\nPEXPIRE goes 8000\nSELECT 33\nSET far 1\n");
    let taken = take(&server);
    std::thread::sleep(Duration::from_millis(8200));
    let proof = prove(&taken);
    all_passed(&proof);
    assert_eq!(proof.restored, ["3 keys"]);
}

#[test]
fn an_empty_server_and_one_that_compresses_nothing() {
    all_passed(&prove(&take(&RedisServer::start())));
    let server = RedisServer::start_with(&["--rdbcompression", "no"]);
    fill(&server);
    all_passed(&prove(&take(&server)));
}

#[test]
fn a_server_without_checksums_is_proved_by_digests() {
    let server = RedisServer::start_with(&["--rdbchecksum", "no"]);
    fill(&server);
    let mut taken = take(&server);
    let proof = prove(&taken);
    all_passed(&proof);
    assert!(check(&proof, "file").found.ends_with("no checksum"));
    // One letter of one value, with nothing in the file that could tell.
    let at = find(taken.bytes("dump.rdb"), b"compressed");
    taken.bytes("dump.rdb")[at] ^= 0x20;
    let proof = prove(&taken);
    failed(&proof, &["values"]);
    assert_eq!(difference(&proof, "values").0, "keys of type string in database 0");
}

#[test]
fn a_key_that_is_missing_is_told_by_its_database() {
    let server = RedisServer::start();
    fill(&server);
    let mut taken = take(&server);
    server.pipe("SELECT 3\nDEL other\n");
    *taken.bytes("dump.rdb") = take(&server).bytes("dump.rdb").clone();
    let proof = prove(&taken);
    failed(&proof, &["keys", "values", "load"]);
    for name in ["keys", "load"] {
        assert_eq!(difference(&proof, name), ("database 3".into(), "1 key".into(), "0 keys".into()), "{name}");
    }
    assert!(proof.restored.is_empty());
}

#[test]
fn a_key_in_place_of_another_is_told() {
    let server = RedisServer::start();
    fill(&server);
    let mut taken = take(&server);
    server.pipe("DEL plain:7\nSET plain:x value-7\n");
    *taken.bytes("dump.rdb") = take(&server).bytes("dump.rdb").clone();
    let proof = prove(&taken);
    failed(&proof, &["keys", "values"]);
    assert_eq!(difference(&proof, "keys").0, "names and types of the keys of database 0");
}

#[test]
fn a_lost_time_to_live_is_told() {
    let server = RedisServer::start();
    fill(&server);
    let original = take(&server);
    let mut taken = original.clone();
    server.pipe("PERSIST session:1\n");
    *taken.bytes("dump.rdb") = take(&server).bytes("dump.rdb").clone();
    let proof = prove(&taken);
    failed(&proof, &["keys", "times to live", "load"]);
    assert_eq!(difference(&proof, "keys").1, "3,013 keys (3 expire)");
    assert_eq!(difference(&proof, "times to live").0, "times to live in database 0");
    // Exchanged between two keys: the numbers are the same.
    let mut taken = original;
    server.pipe("EXPIRE session:1 5000\nEXPIRE session:2 5000\n");
    *taken.bytes("dump.rdb") = take(&server).bytes("dump.rdb").clone();
    failed(&prove(&taken), &["times to live"]);
}

#[test]
fn a_changed_field_of_a_hash_is_told_by_its_type() {
    let server = RedisServer::start();
    fill(&server);
    let mut taken = take(&server);
    server.pipe("HSET basket shoes 3\n");
    *taken.bytes("dump.rdb") = take(&server).bytes("dump.rdb").clone();
    let proof = prove(&taken);
    failed(&proof, &["values"]);
    assert_eq!(difference(&proof, "values").0, "keys of type hash in database 0");
    assert!(check(&proof, "values").why.as_deref().unwrap().contains("type hash"));
}

#[test]
fn a_lost_library_of_functions_is_told() {
    let server = RedisServer::start();
    fill(&server);
    let mut taken = take(&server);
    server.cli(&["FUNCTION", "DELETE", "lib"]);
    *taken.bytes("dump.rdb") = take(&server).bytes("dump.rdb").clone();
    let proof = prove(&taken);
    failed(&proof, &["functions"]);
    assert_eq!(difference(&proof, "functions").1, "1 library");
}

#[test]
fn a_file_that_is_not_whole_is_told_and_never_loaded() {
    let server = RedisServer::start();
    fill(&server);
    let whole = take(&server);
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 5] = [
        ("it ends early", |b| b.truncate(b.len() / 2)),
        ("checksum", |b| {
            let at = find(b, b"compressed");
            b[at] ^= 0x20;
        }),
        ("not an RDB file", |b| b.splice(0..5, *b"ERROR").for_each(drop)),
        ("bytes behind the end", |b| b.extend_from_slice(b"garbage")),
        ("it ends early", Vec::clear),
    ];
    for (why, damage) in damages {
        let mut taken = whole.clone();
        damage(taken.bytes("dump.rdb"));
        let proof = prove(&taken);
        failed(&proof, &["file"]);
        assert!(check(&proof, "file").why.as_deref().unwrap().contains(why), "{:?}", check(&proof, "file"));
        assert_eq!(check(&proof, "load").verdict, Verdict::Skipped);
        assert!(proof.restored.is_empty());
    }
}

#[test]
fn a_flipped_bit_under_a_blanked_checksum_is_told_twice() {
    let server = RedisServer::start();
    fill(&server);
    let mut taken = take(&server);
    let bytes = taken.bytes("dump.rdb");
    let at = find(bytes, b"compressed");
    bytes[at] ^= 0x20;
    let end = bytes.len() - 8;
    bytes[end..].fill(0);
    let proof = prove(&taken);
    failed(&proof, &["file", "values"]);
    assert!(check(&proof, "file").why.as_deref().unwrap().contains("blanked out"));
}

#[test]
fn a_mark_of_replication_behind_the_file_is_told() {
    let server = RedisServer::start();
    server.pipe("SET a 1\n");
    let mut taken = take(&server);
    taken.bytes("dump.rdb").extend_from_slice(&[b'a'; 40]);
    let proof = prove(&taken);
    failed(&proof, &["file"]);
    assert!(check(&proof, "file").why.as_deref().unwrap().contains("40 bytes follow"));
}

#[test]
fn what_no_server_takes_is_told_with_the_servers_words() {
    let server = RedisServer::start();
    server.pipe("HSET basket shoes 2 hats 1\nSET a 1\n");
    let mut taken = take(&server);
    let bytes = taken.bytes("dump.rdb");
    // The listpack's length of its first entry, which then reaches into the second.
    let at = find(bytes, b"\x85shoes");
    bytes[at] = 0x87;
    reseal(bytes);
    let proof = prove(&taken);
    failed(&proof, &["values", "load"]);
    let why = check(&proof, "load").why.as_deref().unwrap();
    assert!(why.contains("integrity check failed"), "{why}");
    assert_eq!(check(&proof, "loaded").verdict, Verdict::Skipped);
}

#[test]
fn a_snapshot_of_before_the_digests_says_so() {
    let server = RedisServer::start();
    fill(&server);
    let mut taken = take(&server);
    for field in ["content", "functions_digest"] {
        taken.facts.as_object_mut().unwrap().remove(field);
    }
    let proof = prove(&taken);
    failed(&proof, &[]);
    for name in ["times to live", "values"] {
        let check = check(&proof, name);
        assert_eq!(check.verdict, Verdict::Skipped);
        assert!(check.why.as_deref().unwrap().contains("before digests"));
    }
    assert_eq!(check(&proof, "load").verdict, Verdict::Passed);
    assert_eq!(proof.restored, ["3,015 keys"]);
}

#[test]
fn a_data_set_that_needs_more_memory_gets_it_or_says_so() {
    let server = RedisServer::start();
    server.pipe("SET a 1\n");
    let mut taken = take(&server);
    taken.facts["used_memory"] = (600u64 << 20).into();
    let bench = Bench::new(Target::Host);
    all_passed(&bench.prove(&taken).unwrap());
    assert!(bench.warnings.lock().unwrap()[0].contains("[drill] memory"), "{:?}", bench.warnings);
    taken.facts["used_memory"] = (1u64 << 50).into();
    let proof = bench.prove(&taken).unwrap();
    failed(&proof, &[]);
    assert_eq!(check(&proof, "load").verdict, Verdict::Skipped);
    assert!(check(&proof, "load").why.as_deref().unwrap().contains("free"));
}

#[test]
fn a_proof_that_is_told_to_stop_stops_and_leaves_nothing() {
    let server = RedisServer::start();
    fill(&server);
    let taken = take(&server);
    let (bench, scratch) = (Bench::new(Target::Host), tempfile::tempdir().unwrap());
    bench.cancel.raise(2);
    assert!(matches!(bench.prove_in(&taken, scratch.path()), Err(SourceError::Cancelled(_))));
    assert_eq!(processes_in(scratch.path()), Vec::<String>::new());
    let (mut bench, scratch) = (Bench::new(Target::Host), tempfile::tempdir().unwrap());
    bench.timeout = Duration::from_millis(30);
    // What took too long is an error, or a check that failed: never a proof.
    if let Ok(proof) = bench.prove_in(&taken, scratch.path()) {
        assert!(proof.checks.iter().any(|c| c.verdict == Verdict::Failed), "{proof:#?}");
    }
    assert_eq!(processes_in(scratch.path()), Vec::<String>::new());
}

/// A Redis in a container without a published port.
struct Contained {
    container: TestContainer,
}

impl Contained {
    fn start(image: &str, server: &str) -> Self {
        engine();
        let command = [server, "--dir", "/tmp", "--save", ""];
        let this = Self { container: TestContainer::run(&["--network", "none"], image, &command) };
        let began = Instant::now();
        while !this.cli(&["PING"]).contains("PONG") {
            assert!(began.elapsed() < Duration::from_secs(30), "{}", docker(["logs", &this.container.id]));
            std::thread::sleep(Duration::from_millis(50));
        }
        this
    }

    fn cli(&self, words: &[&str]) -> String {
        let argv = ["exec", &self.container.id, "redis-cli"];
        let output = engine::try_docker(argv.iter().chain(words));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn target(&self) -> Target {
        Target::Container(self.container.name.clone())
    }

    fn take(&self) -> Taken {
        let (docker, name) = (engine(), self.container.name.clone());
        let locate: Locate = Arc::new(move |_| {
            let place = Arc::new(ContainerPlace::named(&docker, name.clone()));
            Ok(Located { place, env: Default::default() })
        });
        Taken::of(&source(self.target(), locate))
    }
}

fn drill_containers() -> Vec<String> {
    let own = std::process::id().to_string();
    let list = docker([
        "ps",
        "-a",
        "--filter",
        "label=lifeboat.role=drill",
        "--format",
        "{{.ID}} {{.Label \"lifeboat.owner\"}}",
    ]);
    list.lines().filter(|l| l.split('/').any(|part| part == own)).map(str::to_owned).collect()
}

#[test]
fn a_container_is_proved_in_its_own_image_also_when_it_is_stopped() {
    let live = Contained::start(IMAGE, "redis-server");
    live.cli(&["HSET", "basket", "shoes", "2"]);
    live.cli(&["SETEX", "session", "86400", "ann"]);
    let mut taken = live.take();
    let bench = Bench::new(live.target());
    let proof = bench.prove(&taken).unwrap();
    all_passed(&proof);
    assert!(check(&proof, "load").subject.contains(IMAGE), "{:?}", check(&proof, "load"));
    docker(["stop", "-t", "1", &live.container.id]);
    all_passed(&bench.prove(&taken).unwrap());
    // Red there as well: the server's words come out of the container.
    let bytes = taken.bytes("dump.rdb");
    let at = find(bytes, b"\x85shoes");
    bytes[at] = 0x87;
    reseal(bytes);
    let proof = bench.prove(&taken).unwrap();
    failed(&proof, &["values", "load"]);
    assert!(check(&proof, "load").why.as_deref().unwrap().contains("integrity check failed"));
    assert_eq!(drill_containers(), Vec::<String>::new());
}

#[test]
fn a_server_too_old_for_the_file_skips_and_names_what_to_install() {
    let server = RedisServer::start();
    fill(&server);
    let taken = take(&server);
    let image = image_with("redis-6.2", "redis-server");
    let old = Contained::start(&image.0, "redis-server");
    let proof = Bench::new(old.target()).prove(&taken).unwrap();
    failed(&proof, &[]);
    let load = check(&proof, "load");
    assert_eq!(load.verdict, Verdict::Skipped);
    assert!(load.why.as_deref().unwrap().contains("cannot read RDB 10: install Redis 7.0"), "{load:?}");
    // And what it wrote itself is proved in it.
    old.cli(&["SET", "a", "1"]);
    all_passed(&Bench::new(old.target()).prove(&old.take()).unwrap());
}

#[test]
fn redis_8_with_hashes_whose_fields_expire() {
    let live = Contained::start(image_of_redis_8(), "redis-server");
    live.cli(&["HSET", "cart", "shoes", "2", "hats", "1"]);
    live.cli(&["HPEXPIRE", "cart", "800", "FIELDS", "1", "hats"]);
    live.cli(&["SETEX", "session", "86400", "ann"]);
    let taken = live.take();
    assert_eq!(taken.facts["rdb_version"], 12);
    std::thread::sleep(Duration::from_secs(1));
    let proof = Bench::new(live.target()).prove(&taken).unwrap();
    all_passed(&proof);
    assert!(check(&proof, "load").subject.contains("version 8."), "{:?}", check(&proof, "load"));
    // This machine's own server is too old for it.
    let old = prove(&taken);
    assert!(check(&old, "load").why.as_deref().unwrap().contains("cannot read RDB 12"), "{:?}", check(&old, "load"));
}
