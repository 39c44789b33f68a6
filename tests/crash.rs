//! A writer that dies, fails or is stopped at every single put: the repository verifies, old snapshots restore, and the
//! next run succeeds with nobody's help. And the real command under `kill -9` at every link, rename and fsync.

#[path = "support/rigged.rs"]
mod rigged;
#[path = "support/world.rs"]
mod world;

use lifeboat::base::cancel::Cancel;
use lifeboat::base::ids::Sequence;
use lifeboat::repository::RepositoryError;
use lifeboat::repository::chain::Snapshot;
use lifeboat::repository::state::State;
use lifeboat::storage::StorageError;
use rigged::{Fault, Rigged};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use world::{DEEP, Home, World, noise};

/// A run must end within this, whatever fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// One snapshot that must survive, and what the next one shall hold.
struct Before {
    world: World,
    old: Vec<u8>,
    new: Vec<u8>,
}

fn before() -> Before {
    let world = World::memory();
    let old = noise(1, 1 << 20);
    world.snapshot(&[("a", &old)]);
    // Enough segments for every worker to have an archive of its own.
    let new = [&old[..500_000], &noise(2, 4 << 20)].concat();
    Before { world, old, new }
}

impl Before {
    /// Runs the next snapshot over a rigged storage. `None`: it hangs, because its storage has died.
    fn attempt(&self, rigged: Rigged, cancel: &Cancel) -> (Arc<Rigged>, Option<Result<Sequence, RepositoryError>>) {
        let rigged = Arc::new(rigged);
        let world = self.world.over(rigged.clone()).lent();
        let (new, cancel) = (self.new.clone(), cancel.clone());
        let (tell, told) = channel();
        let run = move || {
            let writer = world.writer_of(&world.open(), "shop", world.recipients(), &cancel)?;
            world.write(writer, &[("files", &[("a", &new), ("b", b"small")])]).map(|c| c.header.sequence)
        };
        std::thread::spawn(move || tell.send(run()));
        let begun = Instant::now();
        let ended = loop {
            match told.recv_timeout(Duration::from_millis(20)) {
                Ok(result) => break Some(result),
                Err(RecvTimeoutError::Timeout) if rigged.is_dead() => break None,
                Err(RecvTimeoutError::Timeout) if begun.elapsed() < PATIENCE => {}
                Err(e) => panic!("the run neither ends nor dies: {e}"),
            }
        };
        (rigged, ended)
    }

    /// A new process finds everything as it should be, and goes on.
    fn recover(&self, what: &str) {
        let state = Arc::new(State::open(self.world.state.dir()).unwrap());
        let world = World { state, ..self.world.over(self.world.storage.clone()) };
        let report = world.verify(DEEP).unwrap();
        assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
        let first = world.chain().all().next().unwrap().clone();
        assert!(world.read(&first)[0].1 == self.old, "{what}");
        let there = world.chain().all().count() as u64;
        let next = world.take("shop", &[("files", &[("a", &self.new), ("b", b"small")])]).unwrap();
        assert_eq!(next.header.sequence, Sequence(there + 1), "{what}");
        let chain = world.chain();
        let newest: &Snapshot = chain.all().next_back().unwrap();
        assert!(world.read(newest)[0].1 == self.new, "{what}");
        assert!(world.verify(DEEP).unwrap().findings.is_empty(), "{what}");
    }

    /// A copy with a state folder of its own, remembering what this one remembers.
    fn copy(&self) -> Before {
        let copy = self.world.copy();
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        copy_tree(self.world.state.dir(), &state);
        let state = Arc::new(State::open(&state).unwrap());
        let world = World { dir: Arc::new(Home::Own(dir)), state, ..copy };
        Before { world, old: self.old.clone(), new: self.new.clone() }
    }
}

fn copy_tree(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// How many puts an undisturbed run makes.
fn puts(before: &Before) -> usize {
    let (rigged, ended) = before.copy().attempt(Rigged::new(before.world.copy().storage), &Cancel::new());
    assert_eq!(ended.unwrap().unwrap(), Sequence(2));
    assert!(rigged.puts() >= 5, "archives, index, refs, manifest, header: {:?}", rigged.put_keys.lock().unwrap());
    rigged.puts()
}

#[test]
fn a_writer_that_dies_at_any_put_leaves_nothing_to_repair() {
    let before = before();
    for n in 0..puts(&before) {
        let case = before.copy();
        let rigged = Rigged::new(case.world.storage.clone()).on_put(move |at, _| (at == n).then_some(Fault::Death));
        let (_, ended) = case.attempt(rigged, &Cancel::new());
        assert!(ended.is_none(), "put {n}: {ended:?}");
        assert_eq!(case.world.chain().all().count(), 1, "put {n}: no header, no snapshot");
        case.recover(&format!("death at put {n}"));
    }
}

#[test]
fn a_storage_that_fails_at_any_put_fails_the_run_and_nothing_else() {
    let before = before();
    for n in 0..puts(&before) {
        for stored in [false, true] {
            let case = before.copy();
            let fault = move |at, _: &_| {
                let fault =
                    if stored { Fault::After(ErrorKind::TimedOut) } else { Fault::Before(ErrorKind::StorageFull) };
                (at == n).then_some(fault)
            };
            let (_, ended) = case.attempt(Rigged::new(case.world.storage.clone()).on_put(fault), &Cancel::new());
            let error = ended.expect("nobody died").unwrap_err();
            let kind = if stored { ErrorKind::TimedOut } else { ErrorKind::StorageFull };
            assert!(
                matches!(&error, RepositoryError::Storage(StorageError::Io { source, .. }) if source.kind() == kind),
                "put {n}: the storage's own failure is told, not {error:?}"
            );
            case.recover(&format!("failure at put {n}, stored: {stored}"));
        }
    }
}

#[test]
fn a_run_that_is_stopped_at_any_put_ends() {
    let before = before();
    for n in 0..puts(&before) {
        let case = before.copy();
        let cancel = Cancel::new();
        let raise = cancel.clone();
        let rigged = Rigged::new(case.world.storage.clone()).on_put(move |at, _| {
            if at == n {
                raise.raise(15);
            }
            None
        });
        let (_, ended) = case.attempt(rigged, &cancel);
        match ended.expect("nobody died") {
            Err(RepositoryError::Cancelled(_)) => {}
            // Behind the commit point there is nothing to stop.
            Ok(_) => assert_eq!(case.world.chain().all().count(), 2, "put {n}"),
            Err(e) => panic!("put {n}: {e:?}"),
        }
        case.recover(&format!("stopped at put {n}"));
    }
}

/// Reads that fail are the storage's failure, not damage; and nobody waits for ever.
#[test]
fn a_storage_that_fails_to_read_fails_the_reader() {
    let before = before();
    before.world.take("shop", &[("files", &[("a", &before.new)])]).unwrap();
    for prefix in ["archives/", "index/", "refs/", "manifests/", "snapshots/", "signers/", "repository"] {
        let rigged = Rigged::new(before.world.storage.clone())
            .on_read(move |key| key.as_str().starts_with(prefix).then_some(ErrorKind::ConnectionReset));
        let world = before.world.over(Arc::new(rigged));
        let snapshot = before.world.chain().all().next_back().unwrap().clone();
        let error = world.read_source(&snapshot, "files").err();
        match error {
            // The header is at hand already.
            None => assert_eq!(prefix, "snapshots/"),
            Some(e) => assert!(matches!(e, RepositoryError::Storage(_)), "{prefix}: {e:?}"),
        }
        let report = world.verify(DEEP);
        assert!(report.is_err_and(|e| e.kind() == lifeboat::ops::ErrorKind::Failed), "{prefix}");
    }
}

/// A reader dropped in the middle of a stream, with work under way, does not hang; nor does one that is stopped.
#[test]
fn a_reader_may_be_dropped_at_any_time() {
    use std::io::Read;
    let before = before();
    before.world.take("shop", &[("files", &[("a", &before.new)])]).unwrap();
    let chain = before.world.chain();
    let snapshot = chain.all().next_back().unwrap();
    for bytes in [0, 1, 100_000, 1 << 20] {
        let reader = before.world.reader(snapshot);
        let source = &reader.manifest.sources[0];
        let mut first = reader.stream(source, &source.streams[0], 0).unwrap();
        let mut second = reader.stream(source, &source.streams[0], 3 << 20).unwrap();
        let mut buffer = vec![0; bytes];
        first.read_exact(&mut buffer).unwrap();
        second.read_exact(&mut buffer).unwrap();
        assert!(buffer == before.new[3 << 20..][..bytes]);
    }
}

/// Once a stream has failed it stays failed: what lies behind the gap is never handed on.
#[test]
fn a_stream_that_failed_gives_nothing_more() {
    use std::io::Read;
    let before = before();
    before.world.take("shop", &[("files", &[("a", &before.new)])]).unwrap();
    let snapshot = before.world.chain().all().next_back().unwrap().clone();
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let rigged = Rigged::new(before.world.storage.clone()).on_read(move |key| {
        let is_archive = key.as_str().starts_with("archives/");
        (is_archive && calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 1).then_some(ErrorKind::TimedOut)
    });
    let world = before.world.over(Arc::new(rigged));
    let reader = world.reader(&snapshot);
    let source = &reader.manifest.sources[0];
    let mut stream = reader.stream(source, &source.streams[0], 0).unwrap();
    let mut read = Vec::new();
    assert!(stream.read_to_end(&mut read).is_err());
    assert!(read.len() < before.new.len() && before.new.starts_with(&read));
    let length = read.len();
    for _ in 0..20 {
        assert!(stream.read_to_end(&mut read).is_err(), "it goes on behind the gap");
    }
    assert_eq!(read.len(), length);
}

// --- the command itself, killed ---------------------------------------------------------------------------------------

struct Site(tempfile::TempDir);

impl Site {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, program: &Path, before: &[String], arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(before);
        command.arg("--config-dir").arg(self.path("config")).arg("--state-dir").arg(self.path("state"));
        command.args(arguments).env("TMPDIR", self.path("tmp")).output().unwrap()
    }

    fn lifeboat(&self, arguments: &[&str]) -> Output {
        let output = self.command(Path::new(env!("CARGO_BIN_EXE_lifeboat")), &[], arguments);
        assert!(output.status.success(), "lifeboat {arguments:?}: {output:?}");
        output
    }

    /// A snapshot killed at the n-th call; whether it was.
    fn killed(&self, syscalls: &str, n: usize) -> bool {
        let inject = format!("inject={syscalls}:signal=SIGKILL:when={n}");
        let trace = format!("trace={syscalls}");
        let before = ["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        let mut before: Vec<String> = before.map(str::to_owned).to_vec();
        before.push(env!("CARGO_BIN_EXE_lifeboat").to_owned());
        let output = self.command(Path::new("strace"), &before, &["snapshot"]);
        use std::os::unix::process::ExitStatusExt;
        let killed = output.status.signal() == Some(9) || output.status.code() == Some(137);
        assert!(killed || output.status.success(), "{syscalls} {n}: {output:?}");
        killed
    }

    fn snapshots(&self) -> usize {
        let output = self.lifeboat(&["list", "--json"]);
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        list["snapshots"].as_array().unwrap().len()
    }

    fn restored(&self, snapshot: &str, n: usize) -> Vec<u8> {
        let into = self.path(&format!("into-{n}-{snapshot}"));
        self.lifeboat(&["restore", snapshot, "--into", into.to_str().unwrap()]);
        let found = Command::new("find").arg(&into).args(["-name", "blob", "-type", "f"]).output().unwrap();
        let path = String::from_utf8(found.stdout).unwrap();
        std::fs::read(path.trim_end()).unwrap()
    }
}

#[test]
fn the_command_killed_at_any_commit_of_a_file_leaves_nothing_to_repair() {
    let template = Site(tempfile::tempdir().unwrap());
    for dir in ["app", "data", "tmp"] {
        std::fs::create_dir(template.path(dir)).unwrap();
    }
    let old = noise(5, 300_000);
    std::fs::write(template.path("data/blob"), &old).unwrap();
    template.lifeboat(&["keys", "new"]);
    let (app, repository) = (template.path("app"), template.path("repository"));
    template.lifeboat(&["init", app.to_str().unwrap(), "--name", "shop", "--repository", repository.to_str().unwrap()]);
    let policy = template.path("config/policies/shop.toml");
    let mut text = std::fs::read_to_string(&policy).unwrap();
    text.push_str(&format!("\n[[source]]\nkind = \"files\"\npaths = [{:?}]\n", template.path("data")));
    std::fs::write(&policy, text).unwrap();
    template.lifeboat(&["snapshot"]);
    let new = noise(6, 700_000);
    std::fs::write(template.path("data/blob"), &new).unwrap();

    let mut points = 0;
    for syscalls in ["linkat", "fsync", "rename,renameat,renameat2"] {
        for n in 1.. {
            // The paths stand in the policy: each case works on the same folders, put back as they were.
            for dir in ["repository", "state"] {
                let saved = template.path(&format!("saved-{dir}"));
                if saved.exists() {
                    std::fs::remove_dir_all(template.path(dir)).unwrap();
                    copy_tree(&saved, &template.path(dir));
                } else {
                    copy_tree(&template.path(dir), &saved);
                }
            }
            if !template.killed(syscalls, n) {
                break;
            }
            points += 1;
            let there = template.snapshots();
            assert!((1..=2).contains(&there), "{syscalls} {n}");
            template.lifeboat(&["verify", "--deep"]);
            let case = points * 10;
            assert!(template.restored("latest~0", case) == if there == 1 { old.clone() } else { new.clone() });
            template.lifeboat(&["snapshot"]);
            assert_eq!(template.snapshots(), there + 1, "{syscalls} {n}");
            assert!(template.restored("latest", case) == new);
            let oldest = format!("latest~{there}");
            assert!(template.restored(&oldest, case) == old);
            assert_eq!(std::fs::read_dir(template.path("tmp")).unwrap().count(), 0, "{syscalls} {n}: temporary files");
        }
    }
    assert!(points >= 12, "only {points} points were tried");
}
