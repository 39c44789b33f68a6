//! A captured Redis put back into the live server: with and without an append-only file, whatever lay there before, on
//! the host and in containers, whichever version; proved by two restarts, by going back, and by kills in between.

#[path = "support/docker.rs"]
mod engine;
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
use redis_versions::{image_with, program};
use std::fs;
use std::net::TcpListener;
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
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
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
        let source = source(spec.clone());
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
fn source(mut spec: RedisSpec) -> RedisSource {
    if matches!(spec.target, Target::Url(_)) {
        let file = std::env::temp_dir().join(format!("lifeboat-test-password-{}", rustix::process::geteuid().as_raw()));
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

/// The whole way forward, two restarts, and the whole way back.
fn there_and_back(live: &dyn Live, aof: Aof) {
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
    bench.prepare(&taken, &intent).unwrap();
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
    bench.switch(&intent).unwrap();
    assert_eq!(live.digest(), stored, "a step that is done is done again and changes nothing");

    bench.back(&intent).unwrap_or_else(|e| panic!("{aof:?}: back: {e} {:?}", e.way_out()));
    match (aof, today == live.digest()) {
        // Without its append-only file a server that has one starts empty: as it would have before.
        (Aof::Nothing, false) if live.cli(&["CONFIG", "GET", "appendonly"]).ends_with("yes") => {}
        // An old server's own append-only file, which stands there as it always did.
        (_, same) => assert!(same, "{aof:?}: back"),
    }
    bench.back(&intent).unwrap();
    bench.discard_new(&intent).unwrap();
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
    bench.discard_old(&intent).unwrap();
    assert_eq!(live.digest(), stored);
    assert!(!fs::read_dir(live.dir()).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().contains("lifeboat")));
}

fn on_host(version: &str, appendonly: bool) {
    for aof in AOFS {
        let live = OnHost::start(version, appendonly);
        there_and_back(&live, aof);
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

fn in_containers(version: &str, appendonly: bool, aofs: &[Aof]) {
    let other = match version {
        "redis-7.0" => None,
        "redis-6.2" => Some(image_with(version, "redis-server")),
        _ => Some(image_with(version, "valkey-server")),
    };
    let image = other.as_ref().map_or(IMAGE, |image| image.0.as_str());
    for aof in aofs {
        there_and_back(&Contained::start(image, version, appendonly), *aof);
    }
}

#[test]
fn redis_7_in_a_container_with_an_aof() {
    in_containers("redis-7.0", true, &AOFS);
}

#[test]
fn redis_7_in_a_container_without_one() {
    in_containers("redis-7.0", false, &AOFS);
}

#[test]
fn redis_6_and_valkey_8_in_containers() {
    in_containers("redis-6.2", true, &[Aof::Stale]);
    in_containers("valkey-8", true, &[Aof::Stale]);
}
