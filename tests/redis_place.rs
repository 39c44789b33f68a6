//! A captured Redis put back into the live server: with and without an append-only file, whatever lay there before, on
//! the host and in containers, whichever version; proved by two restarts, by going back, and by kills in between.

#[path = "support/docker.rs"]
mod engine;
#[path = "support/port.rs"]
mod port;
#[path = "support/redis_versions.rs"]
mod redis_versions;
#[path = "support/sink.rs"]
mod sink;
#[path = "support/taken.rs"]
mod taken;

use engine::{IMAGE, TestContainer, TestVolume, docker, engine, try_docker};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::Events;
use lifeboat::base::ids::SnapshotId;
use lifeboat::place::{ContainerPlace, HostPlace};
use lifeboat::policy::model::{RedisSpec, SecretRef, SourceSpec, Target};
use lifeboat::policy::{self, Policy};
use lifeboat::sources::SourceError;
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::placing::{Intent, Part, Placing, Scene, Stored};
use lifeboat::sources::project::Places;
use lifeboat::sources::redis::RedisSource;
use port::free_port;
use redis_versions::{image_of_redis_8, image_with, program};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use taken::Taken;

const PASSWORD: &str = "canary-of-the-live-server";
const ID: &str = "20261119T020000Z-1a2b3c4d";
/// Accounts of the tests: neither root nor this test's own.
const OWNER: (u32, u32) = (61_071, 61_072);

/// How a live server is asked, stopped and started by the test itself.
trait Live {
    fn cli(&self, words: &[&str]) -> String;
    /// As its administrator does it: it may save.
    fn restart(&self);
    fn target(&self) -> Target;
    /// Its data folder, as this test (root) sees it.
    fn dir(&self) -> PathBuf;
    fn version(&self) -> &str;

    fn await_loaded(&self) {
        let began = Instant::now();
        while !self.cli(&["INFO", "persistence"]).contains("loading:0") {
            assert!(began.elapsed() < Duration::from_secs(60), "the server does not come");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    fn digest(&self) -> String {
        let digest = self.cli(&["DEBUG", "DIGEST"]);
        assert_eq!(digest.len(), 40, "{digest}");
        digest
    }
}

/// A server of this host with a configuration file, in the background, as its own user.
struct OnHost {
    folder: tempfile::TempDir,
    program: PathBuf,
    version: String,
    port: u16,
}

impl OnHost {
    fn start(version: &str, appendonly: bool) -> Self {
        let program = match version {
            "redis-7.0" => "/usr/bin/redis-server".into(),
            "redis-6.2" => program(version, "redis-server"),
            other => program(other, "valkey-server"),
        };
        // The cache of programs may lie where only this user may go.
        let folder = tempfile::Builder::new().prefix("lifeboat-live-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let copy = folder.path().join(program.file_name().unwrap());
        fs::copy(fs::canonicalize(&program).unwrap(), &copy).unwrap();
        let port = free_port();
        let this = Self { folder, program: copy, version: version.to_owned(), port };
        fs::create_dir(this.dir()).unwrap();
        chown(this.dir(), Some(OWNER.0), Some(OWNER.1)).unwrap();
        this.configure(appendonly);
        this.run();
        this
    }

    fn configure(&self, appendonly: bool) {
        let (dir, yes) = (self.dir(), if appendonly { "yes" } else { "no" });
        let debug = if self.version == "redis-6.2" { "" } else { "enable-debug-command yes\n" };
        let text = format!(
            "bind 127.0.0.1\nport {}\nunixsocket {}\nunixsocketperm 777\ndir {}\nappendonly {yes}\nrequirepass {PASSWORD}\nlogfile {}\n{debug}",
            self.port,
            self.socket().display(),
            dir.display(),
            dir.join("log").display()
        );
        fs::write(self.config(), text).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("redis.conf")
    }

    fn socket(&self) -> PathBuf {
        self.dir().join("sock")
    }

    fn run(&self) {
        let status = Command::new(&self.program)
            .arg(self.config())
            .args(["--daemonize", "yes"])
            .current_dir("/")
            .uid(OWNER.0)
            .gid(OWNER.1)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        self.await_loaded();
    }

    fn pid(&self) -> Option<u32> {
        let info = self.cli(&["INFO", "server"]);
        info.lines().find_map(|l| l.strip_prefix("process_id:"))?.trim().parse().ok()
    }

    fn shut_down(&self, how: &[&str]) {
        let Some(pid) = self.pid() else { return };
        self.cli(&[&["SHUTDOWN"], how].concat());
        let began = Instant::now();
        while Path::new(&format!("/proc/{pid}")).exists() {
            assert!(began.elapsed() < Duration::from_secs(20), "process {pid} does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Live for OnHost {
    fn cli(&self, words: &[&str]) -> String {
        let out = Command::new("redis-cli")
            .arg("-s")
            .arg(self.socket())
            .args(words)
            .env("REDISCLI_AUTH", PASSWORD)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    fn restart(&self) {
        self.shut_down(&[]);
        self.run();
    }

    fn target(&self) -> Target {
        Target::Url(format!("redis://127.0.0.1:{}", self.port))
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn version(&self) -> &str {
        &self.version
    }
}

impl Drop for OnHost {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            self.cli(&["SHUTDOWN", "NOSAVE"]);
            std::thread::sleep(Duration::from_millis(100));
            if Path::new(&format!("/proc/{pid}")).exists() {
                let _ = Command::new("kill").arg("-9").arg(pid.to_string()).status();
            }
        }
    }
}

/// A server in a container without a port, on a volume, which the engine starts again whenever it ends.
struct Contained {
    container: TestContainer,
    volume: TestVolume,
    version: String,
}

impl Contained {
    fn start(image: &str, version: &str, appendonly: bool) -> Self {
        engine();
        let volume = TestVolume::new();
        let mount = format!("{}:/data", volume.0);
        let yes = if appendonly { "yes" } else { "no" };
        let auth = format!("REDISCLI_AUTH={PASSWORD}");
        let script = format!(
            "chown 71:71 /data; exec setpriv --reuid=71 --regid=71 --clear-groups redis-server --dir /data \
             --appendonly {yes} --requirepass {PASSWORD}{}",
            if version == "redis-6.2" { "" } else { " --enable-debug-command yes" }
        );
        let options = ["--network", "none", "--restart", "always", "-v", &mount, "-e", &auth];
        let container = TestContainer::run(&options, image, &["sh", "-c", &script]);
        let this = Self { container, volume, version: version.to_owned() };
        this.await_loaded();
        this
    }
}

impl Live for Contained {
    fn cli(&self, words: &[&str]) -> String {
        let argv = ["exec", &self.container.id, "redis-cli"];
        let output = try_docker(argv.iter().chain(words));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn restart(&self) {
        docker(["restart", "-t", "20", &self.container.id]);
        self.await_loaded();
    }

    fn target(&self) -> Target {
        Target::Container(self.container.name.clone())
    }

    fn dir(&self) -> PathBuf {
        docker(["volume", "inspect", "-f", "{{.Mountpoint}}", &self.volume.0]).into()
    }

    fn version(&self) -> &str {
        &self.version
    }
}

/// What a transaction hands to every step.
struct Bench {
    policy: Policy,
    source: RedisSource,
    folder: tempfile::TempDir,
    cancel: Cancel,
    snapshot: SnapshotId,
}

impl Bench {
    fn new(target: &Target) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::at(target, &folder.path().join("shop.toml"), folder)
    }

    /// With the policy in a folder where there may be others.
    fn at(target: &Target, file: &Path, folder: tempfile::TempDir) -> Self {
        let text = policy_text("shop", target);
        fs::write(file, &text).unwrap();
        let policy = policy::parse(file, &text).unwrap_or_else(|e| panic!("{e:?}"));
        let SourceSpec::Redis(spec) = &policy.sources.iter().find(|s| s.spec.kind() == "redis").unwrap().spec else {
            panic!("a redis source")
        };
        let source = source(spec.clone(), folder.path());
        Self { source, policy, folder, cancel: Cancel::new(), snapshot: ID.parse().unwrap() }
    }

    fn run<T>(&self, step: impl FnOnce(&RedisSource, &Scene<'_>) -> Result<T, SourceError>) -> Result<T, SourceError> {
        let places = Places::new(&self.policy.app, &self.cancel);
        let name = "cache".parse().unwrap();
        step(
            &self.source,
            &Scene {
                id: ID,
                name: &name,
                policy: &self.policy,
                places: &places,
                folder: self.folder.path(),
                events: &Events::none(),
                cancel: &self.cancel,
                now: chrono::Utc::now(),
            },
        )
    }

    fn stored<T>(&self, taken: &Taken, work: impl FnOnce(&Stored<'_>) -> T) -> T {
        work(&Stored { snapshot: &self.snapshot, streams: taken, facts: &taken.facts })
    }

    fn plan(&self, taken: &Taken) -> Result<Intent, SourceError> {
        self.run(|s, scene| self.stored(taken, |stored| s.plan(scene, stored, &Part::default())))
    }

    fn prepare(&self, taken: &Taken, intent: &Intent) -> Result<(), SourceError> {
        self.run(|s, scene| self.stored(taken, |stored| s.prepare(scene, stored, intent)))
    }

    fn switch(&self, intent: &Intent) -> Result<(), SourceError> {
        self.run(|s, scene| s.switch(scene, intent))
    }

    fn confirm(&self, intent: &Intent) -> Result<(), SourceError> {
        self.run(|s, scene| s.confirm(scene, intent))
    }

    fn back(&self, intent: &Intent) -> Result<(), SourceError> {
        self.run(|s, scene| s.back(scene, intent))
    }

    fn discard_new(&self, intent: &Intent) -> Result<(), SourceError> {
        self.run(|s, scene| s.discard_new(scene, intent))
    }

    fn discard_old(&self, intent: &Intent) -> Result<(), SourceError> {
        self.run(|s, scene| s.discard_old(scene, intent))
    }
}

fn policy_text(name: &str, target: &Target) -> String {
    let target = match target {
        Target::Container(name) => format!("container = {name:?}"),
        Target::Url(url) => format!("url = {url:?}\npassword_from = \"env:LIFEBOAT_TEST_REDIS\""),
        other => panic!("{other:?}"),
    };
    format!(
        "[app]\nname = {name:?}\nroot = \"/nowhere\"\n[repository]\nurl = \"/nowhere/repository\"\n\
         recipients = [\"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\"]\n\
         [[source]]\nkind = \"redis\"\nname = \"cache\"\n{target}\n"
    )
}

/// Tests share one process's environment, so the password comes from a file.
fn source(mut spec: RedisSpec, folder: &Path) -> RedisSource {
    if matches!(spec.target, Target::Url(_)) {
        let file = folder.join("password");
        fs::write(&file, PASSWORD).unwrap();
        spec.password_from = Some(SecretRef::File(file));
    }
    let target = spec.target.clone();
    let locate: Locate = Arc::new(move |_| match &target {
        Target::Container(name) => {
            let docker = engine();
            let env = docker.inspect(name)?.env.into_iter().collect();
            Ok(Located { place: Arc::new(ContainerPlace::named(&docker, name.clone())), env })
        }
        _ => Ok(Located { place: Arc::new(HostPlace::new()), env: Default::default() }),
    });
    RedisSource::new("cache".parse().unwrap(), spec, Duration::from_secs(90), locate)
}

/// What will be captured: every shape of value, a key that expires, a library of functions.
fn fill(live: &dyn Live) {
    let script = "for i=1,500 do redis.call('SET', 'key:'..i, i); redis.call('HSET', 'hash', i, i); \
        redis.call('RPUSH', 'queue', 'job '..i) end; redis.call('SETEX', 'session', 86400, 'ann'); \
        redis.call('XADD', 'stream', '1-1', 'a', 'b')";
    live.cli(&["EVAL", script, "0"]);
    live.cli(&["-n", "3", "SET", "other", "database"]);
    if live.version() != "redis-6.2" {
        let library = "#!lua name=lib\nredis.register_function('f', function() return 1 end)";
        live.cli(&["FUNCTION", "LOAD", library]);
    }
}

/// What is there today and must leave, and come back when the transaction is undone.
fn change(live: &dyn Live) {
    live.cli(&["DEL", "queue"]);
    live.cli(&["SET", "key:1", "changed"]);
    live.cli(&["MSET", "today", "only", "today:2", "only"]);
    live.cli(&["PERSIST", "session"]);
}

/// What lies in the data folder before.
#[derive(Debug, Clone, Copy)]
enum Aof {
    Stale,
    Nothing,
    Legacy,
}

const AOFS: [Aof; 3] = [Aof::Stale, Aof::Nothing, Aof::Legacy];

fn lay(live: &dyn Live, aof: Aof) {
    let (dir, modern) = (live.dir(), live.version() != "redis-6.2");
    let (folder, file) = (dir.join("appendonlydir"), dir.join("appendonly.aof"));
    let own = |path: &Path| {
        let meta = fs::metadata(&dir).unwrap();
        chown(path, Some(meta.uid()), Some(meta.gid())).unwrap();
    };
    let stale = b"*3\r\n$3\r\nSET\r\n$5\r\nstale\r\n$1\r\n1\r\n";
    match aof {
        Aof::Stale if modern && !folder.exists() => {
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("appendonly.aof.1.incr.aof"), stale).unwrap();
            fs::write(folder.join("appendonly.aof.manifest"), "file appendonly.aof.1.incr.aof seq 1 type i\n").unwrap();
            for path in [&folder, &folder.join("appendonly.aof.1.incr.aof"), &folder.join("appendonly.aof.manifest")] {
                own(path);
            }
        }
        Aof::Stale => {}
        Aof::Nothing => {
            let _ = fs::remove_dir_all(&folder);
            let _ = fs::remove_file(&file);
        }
        Aof::Legacy if !file.exists() => {
            fs::write(&file, stale).unwrap();
            own(&file);
        }
        Aof::Legacy => {}
    }
}

/// Everything in the folder but what changes by itself: names, owners, modes.
fn listing(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (name, meta) = (entry.file_name().to_string_lossy().into_owned(), entry.metadata().unwrap());
        if !["sock", "log", "dump.rdb"].contains(&name.as_str()) {
            found.push(format!("{name} {}:{} {:o}", meta.uid(), meta.gid(), meta.mode()));
        }
    }
    found.sort();
    found
}

/// The whole way forward, two restarts, and the whole way back; every step twice where `twice` says so.
fn there_and_back(live: &dyn Live, aof: Aof, twice: bool) {
    eprintln!("{} with {aof:?}", live.version());
    fill(live);
    let bench = Bench::new(&live.target());
    let taken = Taken::of(&bench.source);
    let stored = live.digest();
    change(live);
    lay(live, aof);
    let (today, before) = (live.digest(), listing(&live.dir()));
    assert_ne!(today, stored);
    let owner = fs::metadata(live.dir()).unwrap();

    let intent = bench.plan(&taken).unwrap_or_else(|e| panic!("{e} {:?}", e.way_out()));
    assert!(intent.lines[0].ends_with(": 506 keys now, 505 keys then"), "{:?}", intent.lines);
    assert!(!serde_json::to_string(&intent).unwrap().contains(PASSWORD));
    assert_eq!(live.digest(), today, "planning changes nothing");
    bench.prepare(&taken, &intent).unwrap();
    if twice {
        bench.prepare(&taken, &intent).unwrap();
    }
    assert_eq!(live.digest(), today, "preparing changes nothing");
    bench.switch(&intent).unwrap_or_else(|e| panic!("{aof:?}: {e} {:?}", e.way_out()));
    assert_eq!(live.digest(), stored, "{aof:?}");
    bench.confirm(&intent).unwrap();
    for restart in 1..=2 {
        live.restart();
        assert_eq!(live.digest(), stored, "{aof:?}: restart {restart}");
    }
    live.cli(&["SET", "written", "since"]);
    let dump = fs::metadata(live.dir().join("dump.rdb")).unwrap();
    assert_eq!((dump.uid(), dump.gid()), (owner.uid(), owner.gid()));
    live.cli(&["DEL", "written"]);
    if twice {
        bench.switch(&intent).unwrap();
    }
    assert_eq!(live.digest(), stored, "a step that is done is done again and changes nothing");

    bench.back(&intent).unwrap_or_else(|e| panic!("{aof:?}: back: {e} {:?}", e.way_out()));
    match (aof, today == live.digest()) {
        // Without its append-only file a server that has one starts empty: as it would have before.
        (Aof::Nothing, false) if live.cli(&["CONFIG", "GET", "appendonly"]).ends_with("yes") => {}
        // An old server's own append-only file, which stands there as it always did.
        (_, same) => assert!(same, "{aof:?}: back"),
    }
    if twice {
        bench.back(&intent).unwrap();
        bench.discard_new(&intent).unwrap();
    }
    bench.discard_new(&intent).unwrap();
    let without_aof =
        |list: Vec<String>| -> Vec<String> { list.into_iter().filter(|l| !l.starts_with("appendonly")).collect() };
    match aof {
        Aof::Nothing => assert_eq!(without_aof(listing(&live.dir())), without_aof(before)),
        _ => assert_eq!(listing(&live.dir()), before, "{aof:?}"),
    }

    // Once more, to stay.
    let intent = bench.plan(&taken).unwrap();
    bench.prepare(&taken, &intent).unwrap();
    bench.switch(&intent).unwrap();
    bench.confirm(&intent).unwrap();
    bench.discard_old(&intent).unwrap();
    if twice {
        bench.discard_old(&intent).unwrap();
    }
    assert_eq!(live.digest(), stored);
    assert!(!fs::read_dir(live.dir()).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().contains("lifeboat")));
}

fn on_host(version: &str, appendonly: bool) {
    for aof in AOFS {
        let live = OnHost::start(version, appendonly);
        there_and_back(&live, aof, true);
    }
}

#[test]
fn redis_7_on_the_host_with_an_aof() {
    on_host("redis-7.0", true);
}

#[test]
fn redis_7_on_the_host_without_one() {
    on_host("redis-7.0", false);
}

#[test]
fn redis_6_on_the_host_with_an_aof() {
    on_host("redis-6.2", true);
}

#[test]
fn redis_6_on_the_host_without_one() {
    on_host("redis-6.2", false);
}

#[test]
fn valkey_8_on_the_host_with_an_aof() {
    on_host("valkey-8", true);
}

#[test]
fn valkey_8_on_the_host_without_one() {
    on_host("valkey-8", false);
}

fn in_container(version: &str, appendonly: bool, aof: Aof) {
    let other = match version {
        "redis-7.0" | "redis-8" => None,
        "redis-6.2" => Some(image_with(version, "redis-server")),
        _ => Some(image_with(version, "valkey-server")),
    };
    let own = if version == "redis-8" { image_of_redis_8() } else { IMAGE };
    let image = other.as_ref().map_or(own, |image| image.0.as_str());
    let live = Contained::start(image, version, appendonly);
    if version == "redis-7.0" && appendonly {
        let bench = Bench::new(&live.target());
        let room = bench.plan(&Taken::of(&bench.source)).unwrap().room.remove(0);
        assert_eq!(room.device, Some(fs::metadata(live.dir()).unwrap().dev()), "{room:?}");
    }
    there_and_back(&live, aof, false);
}

#[test]
fn redis_7_in_a_container_with_an_aof() {
    in_container("redis-7.0", true, Aof::Stale);
}

#[test]
fn redis_7_in_a_container_with_an_old_aof_of_one_file() {
    in_container("redis-7.0", true, Aof::Legacy);
}

#[test]
fn redis_7_in_a_container_with_an_aof_that_is_gone() {
    in_container("redis-7.0", true, Aof::Nothing);
}

#[test]
fn redis_7_in_a_container_without_an_aof() {
    in_container("redis-7.0", false, Aof::Nothing);
}

#[test]
fn redis_7_in_a_container_with_an_aof_that_is_off() {
    in_container("redis-7.0", false, Aof::Stale);
}

#[test]
fn redis_8_in_a_container() {
    in_container("redis-8", true, Aof::Stale);
    in_container("redis-8", false, Aof::Nothing);
}

#[test]
fn redis_6_in_a_container() {
    in_container("redis-6.2", true, Aof::Stale);
}

#[test]
fn valkey_8_in_a_container() {
    in_container("valkey-8", true, Aof::Stale);
}

/// A store that becomes empty: twice there, and the data of today is back with the way back.
fn emptied(live: &dyn Live) {
    fill(live);
    let bench = Bench::new(&live.target());
    let mut taken = Taken::of(&bench.source);
    // A snapshot that holds nothing of it is no hindrance.
    taken.streams.clear();
    change(live);
    let (today, before) = (live.digest(), listing(&live.dir()));
    let part = Part { flush: true, ..Part::default() };
    let intent = bench.run(|s, scene| bench.stored(&taken, |stored| s.plan(scene, stored, &part))).unwrap();
    assert!(intent.lines[0].ends_with(": 506 keys now, none afterwards"), "{:?}", intent.lines);
    let losses: Vec<_> = intent.losses.iter().map(|l| (l.what.as_str(), l.more, l.exact)).collect();
    assert_eq!(losses, [("keys of database 0", 505, true), ("keys of database 3", 1, true)]);
    bench.prepare(&taken, &intent).unwrap();
    bench.prepare(&taken, &intent).unwrap();
    assert_eq!(live.digest(), today, "preparing changes nothing");
    for _ in 0..2 {
        bench.switch(&intent).unwrap_or_else(|e| panic!("{e} {:?}", e.way_out()));
        bench.switch(&intent).unwrap();
        bench.confirm(&intent).unwrap();
        assert_eq!(live.cli(&["DBSIZE"]), "0");
        live.restart();
        assert_eq!((live.cli(&["DBSIZE"]), live.cli(&["-n", "3", "DBSIZE"])), ("0".into(), "0".into()));
        bench.back(&intent).unwrap();
        bench.back(&intent).unwrap();
        assert_eq!(live.digest(), today);
    }
    live.restart();
    assert_eq!(live.digest(), today);
    bench.discard_new(&intent).unwrap();
    assert_eq!(listing(&live.dir()), before);
    // Once more, to stay: what is written since is kept.
    bench.prepare(&taken, &intent).unwrap();
    bench.switch(&intent).unwrap();
    live.cli(&["SET", "written", "since"]);
    bench.confirm(&intent).unwrap();
    bench.discard_old(&intent).unwrap();
    assert_eq!((live.cli(&["DBSIZE"]), live.cli(&["GET", "written"])), ("1".into(), "since".into()));
}

#[test]
fn a_store_becomes_empty_on_the_host() {
    for (version, appendonly) in [("redis-7.0", true), ("redis-7.0", false), ("redis-6.2", true), ("valkey-8", true)] {
        eprintln!("{version}, appendonly {appendonly}");
        emptied(&OnHost::start(version, appendonly));
    }
}

#[test]
fn a_store_becomes_empty_in_a_container() {
    emptied(&Contained::start(IMAGE, "redis-7.0", true));
    emptied(&Contained::start(IMAGE, "redis-7.0", false));
}

#[test]
fn keys_that_leave_and_keys_that_come_back() {
    let live = OnHost::start("redis-7.0", false);
    fill(&live);
    let bench = Bench::new(&live.target());
    let taken = Taken::of(&bench.source);
    assert_eq!(bench.plan(&taken).unwrap().losses, []);
    live.cli(&["MSET", "a", "1", "b", "2", "c", "3"]);
    live.cli(&["-n", "3", "FLUSHDB"]);
    let losses = bench.plan(&taken).unwrap().losses;
    let losses: Vec<_> = losses.iter().map(|l| (l.what.as_str(), l.more, l.exact)).collect();
    assert_eq!(losses, [("keys of database 0", 3, true), ("keys of database 3", -1, true)]);
}

/// What a child of this test is told: a folder with everything in it.
const CHILD: &str = "LIFEBOAT_TEST_CHILD";

/// Lays out what a child needs, for anybody to read.
fn order(dir: &Path, bench: &Bench, taken: &Taken, intent: Option<&Intent>) {
    let mut taken = taken.clone();
    fs::write(dir.join("dump.rdb"), taken.bytes("dump.rdb")).unwrap();
    fs::write(dir.join("facts"), taken.facts.to_string()).unwrap();
    fs::write(dir.join("policy"), &bench.policy.text).unwrap();
    if let Some(intent) = intent {
        fs::write(dir.join("intent"), serde_json::to_vec(intent).unwrap()).unwrap();
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Run by other tests, in a process of its own that may be killed or be somebody else's. By itself it has no order.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let text = fs::read_to_string(dir.join("policy")).unwrap();
    let policy = policy::parse(&dir.join("shop.toml"), &text).unwrap();
    let target = policy.sources.iter().find_map(|s| match &s.spec {
        SourceSpec::Redis(spec) => Some(spec.target.clone()),
        _ => None,
    });
    let bench = Bench::new(&target.unwrap());
    let taken = Taken {
        name: "cache".parse().unwrap(),
        kind: "redis",
        facts: serde_json::from_str(&fs::read_to_string(dir.join("facts")).unwrap()).unwrap(),
        streams: vec![(
            "dump.rdb".into(),
            lifeboat::base::stream::StreamKind::Rdb,
            fs::read(dir.join("dump.rdb")).unwrap(),
        )],
    };
    let intent = fs::read(dir.join("intent")).ok().map(|bytes| serde_json::from_slice::<Intent>(&bytes).unwrap());
    match std::env::var("LIFEBOAT_TEST_STEP").unwrap().as_str() {
        "prepare" => bench.prepare(&taken, &intent.unwrap()).unwrap(),
        "switch" => bench.switch(&intent.unwrap()).unwrap(),
        "back" => bench.back(&intent.unwrap()).unwrap(),
        _ => {
            let intent = bench.plan(&taken).unwrap_or_else(|e| panic!("{e} {:?}", e.way_out()));
            if let Some(device) = std::env::var_os("LIFEBOAT_TEST_DEVICE") {
                assert_eq!(
                    intent.room[0].device.map(|d| d.to_string()),
                    device.into_string().ok(),
                    "{:?}",
                    intent.room
                );
            }
            bench.prepare(&taken, &intent).unwrap();
            bench.switch(&intent).unwrap();
            bench.confirm(&intent).unwrap();
            bench.discard_old(&intent).unwrap();
        }
    }
}

fn child_command(program: &Path, dir: &Path, step: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["--exact", "child", "--nocapture"]).env(CHILD, dir).env("LIFEBOAT_TEST_STEP", step);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Runs a step in a process that is killed after this time, if it has not ended by then.
fn kill_during(dir: &Path, step: &str, after: Duration) {
    let mut child = child_command(&std::env::current_exe().unwrap(), dir, step).spawn().unwrap();
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    // What it had started ends by itself.
    std::thread::sleep(Duration::from_millis(400));
}

fn killed_at_every_step(live: &dyn Live, delays: &[u64]) {
    fill(live);
    let bench = Bench::new(&live.target());
    let taken = Taken::of(&bench.source);
    let stored = live.digest();
    change(live);
    let today = live.digest();
    for (round, delay) in delays.iter().enumerate() {
        let delay = Duration::from_millis(*delay);
        let dir = tempfile::tempdir().unwrap();
        let intent = bench.plan(&taken).unwrap();
        order(dir.path(), &bench, &taken, Some(&intent));
        kill_during(dir.path(), "prepare", delay / 4);
        assert_eq!(live.digest(), today, "{delay:?}: preparing changes nothing");
        bench.prepare(&taken, &intent).unwrap();
        kill_during(dir.path(), "switch", delay);
        if round % 2 == 0 {
            bench.switch(&intent).unwrap_or_else(|e| panic!("{delay:?}: {e}"));
            bench.confirm(&intent).unwrap();
            assert_eq!(live.digest(), stored, "{delay:?}: forward");
            kill_during(dir.path(), "back", delay);
        }
        bench.back(&intent).unwrap_or_else(|e| panic!("{delay:?}: {e}"));
        assert_eq!(live.digest(), today, "{delay:?}: back");
        live.restart();
        assert_eq!(live.digest(), today, "{delay:?}: back, and after a restart");
        bench.discard_new(&intent).unwrap();
        assert!(!live.dir().join(format!(".lifeboat-{ID}.cache")).exists());
    }
}

#[test]
fn a_step_that_is_killed_is_done_again_or_undone_on_the_host() {
    let live = OnHost::start("redis-7.0", true);
    killed_at_every_step(&live, &[40, 90, 140, 200, 260, 340, 450, 600, 900, 1400]);
    let live = OnHost::start("redis-6.2", false);
    killed_at_every_step(&live, &[120, 180, 240, 320]);
}

#[test]
fn a_step_that_is_killed_is_done_again_or_undone_in_a_container() {
    let live = Contained::start(IMAGE, "redis-7.0", true);
    killed_at_every_step(&live, &[300, 700, 1100, 1600, 2200]);
}

#[test]
fn a_user_in_group_docker_puts_it_back_without_reading_the_volume() {
    let live = Contained::start(IMAGE, "redis-7.0", true);
    fill(&live);
    let bench = Bench::new(&live.target());
    let taken = Taken::of(&bench.source);
    let stored = live.digest();
    change(&live);
    let dir = tempfile::tempdir().unwrap();
    order(dir.path(), &bench, &taken, None);
    let program = dir.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let group = fs::metadata("/var/run/docker.sock").unwrap().gid();
    let child = child_command(&program, dir.path(), "all");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", &format!("--groups={group}"), "env", "HOME=/tmp"])
        .arg(child.get_program())
        .args(child.get_args())
        .envs(child.get_envs().filter_map(|(name, value)| Some((name, value?))))
        // It may not look there, and knows all the same which other places share what is free.
        .env("LIFEBOAT_TEST_DEVICE", fs::metadata(live.dir()).unwrap().dev().to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(live.digest(), stored);
    for _ in 0..2 {
        live.restart();
        assert_eq!(live.digest(), stored);
    }
}

/// Its command says `appendonly no`, and somebody switched it on meanwhile: the restart switches it off.
#[test]
fn a_container_that_comes_back_with_other_settings_is_told_and_loses_nothing() {
    let live = Contained::start(IMAGE, "redis-7.0", false);
    fill(&live);
    let bench = Bench::new(&live.target());
    let taken = Taken::of(&bench.source);
    let stored = live.digest();
    assert_eq!(live.cli(&["CONFIG", "SET", "appendonly", "yes"]), "OK");
    assert_eq!(live.cli(&["CONFIG", "SET", "maxmemory", "1gb"]), "OK");
    let began = Instant::now();
    while !live.cli(&["INFO", "persistence"]).contains("aof_rewrite_in_progress:0") {
        assert!(began.elapsed() < Duration::from_secs(30));
    }
    change(&live);
    let today = live.digest();
    let intent = bench.plan(&taken).unwrap();
    bench.prepare(&taken, &intent).unwrap();
    bench.switch(&intent).unwrap();
    assert_eq!(live.digest(), stored, "dump.rdb holds the data as well");
    let error = bench.confirm(&intent).unwrap_err().to_string();
    assert!(error.contains("had appendonly \"yes\" before it was started again, and now has \"no\""), "{error}");
    bench.back(&intent).unwrap();
    assert_eq!(live.digest(), today, "what it held is in the dump.rdb that it wrote before it was stopped");
    bench.discard_new(&intent).unwrap();
}

/// What a plan says that refuses, with its way out.
fn refusal(target: &Target, taken: &Taken) -> String {
    let error = Bench::new(target).plan(taken).expect_err("the plan refuses");
    format!("{error} ({})", error.way_out().unwrap_or_default())
}

#[test]
fn what_cannot_be_put_back_is_refused_before_anything_is_done() {
    let live = OnHost::start("redis-7.0", false);
    fill(&live);
    let bench = Bench::new(&live.target());
    let taken = Taken::of(&bench.source);
    let before = listing(&live.dir());
    bench.plan(&taken).unwrap();

    live.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    assert!(refusal(&live.target(), &taken).contains("is a replica"), "{}", refusal(&live.target(), &taken));
    live.cli(&["REPLICAOF", "NO", "ONE"]);

    live.cli(&["CONFIG", "SET", "appendonly", "yes"]);
    let text = refusal(&live.target(), &taken);
    assert!(text.contains("runs with appendonly \"yes\"") && text.contains("CONFIG REWRITE"), "{text}");
    live.cli(&["CONFIG", "SET", "appendonly", "no"]);
    let _ = fs::remove_dir_all(live.dir().join("appendonlydir"));

    let mut newer = taken.clone();
    newer.facts["rdb_version"] = 12.into();
    assert!(refusal(&live.target(), &newer).contains("reads RDB 10 at most"));
    let mut modules = taken.clone();
    modules.facts["modules"] = serde_json::json!({"bf": "20612"});
    assert!(refusal(&live.target(), &modules).contains("lacks modules that the stored one had: bf"));

    let part = Part { tables: vec!["public.users".into()], ..Part::default() };
    let partly = bench.run(|s, scene| bench.stored(&taken, |stored| s.plan(scene, stored, &part)));
    assert!(partly.unwrap_err().to_string().contains("as a whole"));
    assert_eq!(listing(&live.dir()), before);

    // Another policy of this host names the same server otherwise.
    let folder = tempfile::tempdir().unwrap();
    let Target::Url(url) = live.target() else { panic!("a URL") };
    let other = Target::Url(url.replace("127.0.0.1", "localhost"));
    fs::write(folder.path().join("other.toml"), policy_text("other", &other)).unwrap();
    fs::write(folder.path().join("broken.toml"), "nonsense").unwrap();
    let file = folder.path().join("shop.toml");
    let bench = Bench::at(&live.target(), &file, folder);
    let error = bench.plan(&taken).unwrap_err().to_string();
    assert!(error.contains("policy \"other\" uses the same Redis"), "{error}");
    fs::write(file.with_file_name("other.toml"), policy_text("other", &Target::Url("redis://127.0.0.1:1".into())))
        .unwrap();
    let intent = bench.plan(&taken).unwrap();
    assert!(intent.warnings.iter().any(|w| w.contains("policy \"broken\" cannot be read")), "{:?}", intent.warnings);
}

#[test]
fn a_server_whose_way_of_starting_is_not_known_is_refused() {
    let live = OnHost::start("redis-7.0", false);
    let taken = Taken::of(&Bench::new(&live.target()).source);
    live.shut_down(&["NOSAVE"]);
    let port = live.port.to_string();
    let arguments = ["--port", &port, "--requirepass", PASSWORD, "--daemonize", "yes", "--save", "", "--unixsocket"];
    let mut command = Command::new(&live.program);
    command.args(arguments).arg(live.socket()).arg("--dir").arg(live.dir());
    assert!(command.uid(OWNER.0).gid(OWNER.1).stdout(Stdio::null()).status().unwrap().success());
    live.await_loaded();
    let text = refusal(&live.target(), &taken);
    assert!(text.contains("started without a configuration file"), "{text}");
}

#[test]
fn containers_that_would_lose_their_data_are_refused() {
    let live = Contained::start(IMAGE, "redis-7.0", false);
    let taken = Taken::of(&Bench::new(&live.target()).source);
    let start = |options: &[&str], dir: &str| {
        let command = ["redis-server", "--dir", dir, "--save", ""];
        let container = TestContainer::run(&[&["--network", "none"], options].concat(), IMAGE, &command);
        let began = Instant::now();
        while !String::from_utf8_lossy(&try_docker(["exec", &container.id, "redis-cli", "PING"]).stdout)
            .contains("PONG")
        {
            assert!(began.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(50));
        }
        container
    };
    let bare = start(&[], "/tmp");
    let text = refusal(&Target::Container(bare.name.clone()), &taken);
    assert!(text.contains("lies in the container itself"), "{text}");
    let fleeting = start(&["--tmpfs", "/data"], "/data");
    let text = refusal(&Target::Container(fleeting.name.clone()), &taken);
    assert!(text.contains("lies in the container itself"), "{text}");
    let mount = format!("{}:/data", live.volume.0);
    let removed = start(&["--rm", "-v", &mount], "/data");
    let text = refusal(&Target::Container(removed.name.clone()), &taken);
    assert!(text.contains("removed when it stops"), "{text}");
    docker(["stop", "-t", "1", &live.container.id]);
    assert!(Bench::new(&live.target()).plan(&taken).is_err());
}

#[test]
fn what_is_not_what_was_stored_is_undone() {
    let live = OnHost::start("redis-7.0", true);
    fill(&live);
    let bench = Bench::new(&live.target());
    let mut taken = Taken::of(&bench.source);
    change(&live);
    let today = live.digest();
    // The facts say one key more than the file holds.
    let keys = taken.facts["databases"][0]["keys"].as_u64().unwrap();
    taken.facts["databases"][0]["keys"] = (keys + 1).into();
    let intent = bench.plan(&taken).unwrap();
    bench.prepare(&taken, &intent).unwrap();
    let error = bench.switch(&intent).unwrap_err().to_string();
    assert!(error.contains("loaded 505 keys, and 506 were stored"), "{error}");
    bench.back(&intent).unwrap();
    bench.discard_new(&intent).unwrap();
    assert_eq!(live.digest(), today);
    // A file that the server refuses: it does not come, and going back brings it.
    taken.facts["databases"][0]["keys"] = keys.into();
    let length = taken.bytes("dump.rdb").len();
    taken.bytes("dump.rdb")[length - 1] ^= 1;
    let intent = bench.plan(&taken).unwrap();
    bench.prepare(&taken, &intent).unwrap();
    let began = Instant::now();
    let error = bench.switch(&intent).unwrap_err().to_string();
    assert!(error.contains("ended instead of loading") && began.elapsed() < Duration::from_secs(25), "{error}");
    bench.back(&intent).unwrap();
    bench.discard_new(&intent).unwrap();
    assert_eq!(live.digest(), today);
}

#[test]
fn a_user_of_an_acl_with_few_rights_puts_it_back() {
    let live = OnHost::start("redis-7.0", true);
    fill(&live);
    let text = fs::read_to_string(live.config()).unwrap();
    let rights = "+info +config|get +save +shutdown +psync +sync +replconf +ping +acl|users";
    fs::write(live.config(), format!("{text}user keeper on >{PASSWORD} {rights}\n")).unwrap();
    live.restart();
    let mut bench = Bench::new(&live.target());
    let SourceSpec::Redis(mut spec) =
        bench.policy.sources.iter().find(|s| s.spec.kind() == "redis").unwrap().spec.clone()
    else {
        panic!("a redis source")
    };
    spec.user = Some("keeper".into());
    bench.source = source(spec, bench.folder.path());
    let taken = Taken::of(&bench.source);
    let stored = live.digest();
    change(&live);
    let intent = bench.plan(&taken).unwrap_or_else(|e| panic!("{e} {:?}", e.way_out()));
    bench.prepare(&taken, &intent).unwrap();
    bench.switch(&intent).unwrap_or_else(|e| panic!("{e} {:?}", e.way_out()));
    bench.confirm(&intent).unwrap();
    assert_eq!(live.digest(), stored);
    bench.discard_old(&intent).unwrap();
}
