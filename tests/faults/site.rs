//! An installation that is put back to where it was before each case, and what must hold after it.

use crate::calls::{self, Call, Event};
use crate::cli::{Ran, World, bare};
use crate::tree::{self, Record};
use rustix::fs::XattrFlags;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// The files alone: what else a snapshot asks (the engine, the package manager) are programs of their own.
pub const SNAPSHOT: &[&str] = &["snapshot", "--only", "uploads"];

/// A command that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(100);

/// What is looked at beside the calls that fail: it tells what of a failure matters.
const SEEN: &str = "write,pwrite64,fsync,fdatasync,syncfs,unlink,unlinkat,rename,renameat,linkat";

const RETENTION: &str = "[retention]\nkeep_last = 1\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0\n";

/// A tree, as a restore has to bring it back.
pub type Records = BTreeMap<PathBuf, Record>;

pub struct Site {
    pub world: World,
    /// The uploads at the first snapshot, at the newest one, and now.
    old: Records,
    kept: Records,
    new: Records,
    /// The snapshots, newest first.
    ids: Vec<String>,
}

/// What a fault came to.
pub struct Done {
    /// Ended by SIGKILL.
    pub killed: bool,
    /// The fault was injected at least once.
    pub hit: bool,
    pub code: i32,
    /// What it said, and what it tried to say where that was made to fail.
    pub said: String,
    /// The calls, where they were looked at.
    pub events: Vec<Event>,
}

fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
    bytes
}

impl Site {
    /// Two snapshots, the second of which a prune would take; changed since.
    pub fn new() -> Self {
        Self::with(0)
    }

    /// The same, and one more file of this length, unless it is empty.
    pub fn with(larger: usize) -> Self {
        let world = World::ready();
        fs::create_dir(world.path("tmp")).unwrap();
        let uploads = world.app().join("uploads");
        enrich(&uploads);
        // Large enough to be written past the page cache, with an odd end.
        fs::write(uploads.join("large"), noise(1, 600_077)).unwrap();
        world.add_to_policy(RETENTION);
        // Whole ones: of those with a part alone, a prune takes none.
        world.run(&["snapshot", "--tag", "first"]).exits(0);
        let old = tree::records(&uploads);
        fs::write(uploads.join("large"), noise(2, 600_077)).unwrap();
        world.run(&["snapshot"]).exits(0);
        fs::write(uploads.join("large"), noise(3, 600_077)).unwrap();
        world.run(&["snapshot"]).exits(0);
        let (kept, ids) = (tree::records(&uploads), world.snapshots());
        assert_eq!(ids.len(), 3);
        fs::write(uploads.join("large"), [noise(3, 300_000), noise(4, 600_033)].concat()).unwrap();
        for n in 0..20 {
            fs::write(uploads.join(format!("new-{n}")), noise(n, 3_000)).unwrap();
        }
        if larger > 0 {
            fs::write(uploads.join("larger"), noise(5, larger + 77)).unwrap();
        }
        let new = tree::records(&uploads);
        let site = Site { world, old, kept, new, ids };
        copy(&site.world.path("state"), &site.world.path("saved"));
        site
    }

    /// As it was in the beginning.
    pub fn put_back(&self) {
        fs::remove_dir_all(self.world.path("state")).unwrap();
        copy(&self.world.path("saved"), &self.world.path("state"));
        let _ = fs::remove_dir_all(self.into());
        for left in fs::read_dir(self.world.path("tmp")).unwrap() {
            let left = left.unwrap().path();
            let _ = fs::remove_dir_all(&left).or_else(|_| fs::remove_file(&left));
        }
    }

    /// Where restores go.
    pub fn into(&self) -> PathBuf {
        self.world.path("into")
    }

    /// The command behind another one, with a temporary folder of its own.
    pub fn under(&self, wrapper: &[&str], arguments: &[&str]) -> Command {
        let plain = self.world.command(arguments);
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(plain.get_program()).args(plain.get_args());
        command.env_clear().env("HOME", self.world.dir.path()).env("PATH", std::env::var_os("PATH").unwrap());
        command.env("TMPDIR", self.world.path("tmp")).current_dir(self.world.dir.path()).stdin(Stdio::null());
        command
    }

    /// How often the most frequent of these calls is made by its busiest thread: strace counts for each thread and each
    /// call by itself.
    pub fn calls(&self, calls: &str, arguments: &[&str]) -> usize {
        self.calls_by_name(calls, arguments).into_values().max().unwrap_or(0)
    }

    /// The same for each of them by itself, as far as it is made.
    pub fn calls_by_name(&self, calls: &str, arguments: &[&str]) -> BTreeMap<String, usize> {
        let mut threads: BTreeMap<(String, String), usize> = BTreeMap::new();
        for (thread, name) in self.traced(calls, arguments) {
            *threads.entry((name, thread)).or_default() += 1;
        }
        let mut busiest = BTreeMap::new();
        for ((name, _), count) in threads {
            let most = busiest.entry(name).or_insert(0);
            *most = count.max(*most);
        }
        busiest
    }

    /// Each of these calls that is made: its thread and its name. What the command does is taken back.
    fn traced(&self, calls: &str, arguments: &[&str]) -> Vec<(String, String)> {
        let log = self.world.path("trace");
        let trace = format!("trace={calls}");
        let wrapper = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-e", &trace];
        let output = self.under(&wrapper, arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = fs::read_to_string(&log).unwrap();
        self.put_back();
        let one = |line: &str| {
            let (thread, call) = line.split_once(' ')?;
            let (name, _) = call.trim_start().split_once('(')?;
            Some((thread.to_owned(), name.to_owned()))
        };
        text.lines().filter(|line| !line.contains("resumed>")).filter_map(one).collect()
    }

    /// The command with a fault: `what` as strace has it, such as `signal=KILL:when=3`.
    pub fn inject(&self, calls: &str, what: &str, arguments: &[&str]) -> Done {
        let log = self.world.path("trace");
        let (trace, inject) = (format!("trace={calls},{SEEN}"), format!("inject={calls}:{what}"));
        let wrapper = ["strace", "-f", "-qq", "-y", "-xx", "-s", "1024", "-o", log.to_str().unwrap()];
        let mut command = self.under(&[&wrapper[..], &["-e", &trace, "-e", &inject]].concat(), arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        let mut hung = false;
        while child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
            let over = |limit| !hung && begun.elapsed() > limit;
            if over(PATIENCE) || (over(PATIENCE / 10) && woke_nobody(&log)) {
                hung = true;
                // The first thread of the log is the program itself; strace ends with it.
                let text = fs::read_to_string(&log).unwrap();
                assert!(Command::new("kill").args(["-9", text.split(' ').next().unwrap()]).status().unwrap().success());
            }
        }
        let mut done = Done::of(&child.wait_with_output().unwrap());
        done.events = calls::read(&fs::read_to_string(&log).unwrap());
        // What could not be said was tried to be said.
        let unsaid = done.injected().filter(|call| call.name == "write" && call.fd(0).is_some_and(|to| to.fd == 2));
        let unsaid: String = unsaid.map(|call| String::from_utf8_lossy(&call.text(1)).into_owned()).collect();
        done.said += &unsaid;
        // A wake-up between threads that cannot be written wakes nobody. No kernel refuses it: nothing was tried then.
        let is_file = |call: &&Call| call.fd(0).is_none_or(|t| t.fd <= 2 || t.path.starts_with("/"));
        let on_files = done.injected().filter(is_file).count();
        assert!(!hung || on_files == 0 || done.injected().count() > on_files, "{what}: it hangs: {}", done.said);
        done.hit = !hung && (done.killed || on_files > 0);
        done
    }

    /// Takes away the temporary folders whose own removal was made to fail: nothing else may stay.
    pub fn forgive(&self, done: &Done) {
        let tmp = self.world.path("tmp");
        let removes = ["unlink", "unlinkat", "rmdir", "getdents64", "openat", "statx"];
        for path in done.injected().filter(|c| removes.contains(&c.name.as_str())).flat_map(Call::paths) {
            if let Ok(below) = path.strip_prefix(&tmp)
                && let Some(first) = below.components().next()
            {
                let _ = fs::remove_dir_all(tmp.join(first));
            }
        }
    }

    /// The command behind another one, such as a limit of the shell.
    pub fn wrapped(&self, wrapper: &[&str], arguments: &[&str]) -> Done {
        Done::of(&self.under(wrapper, arguments).output().unwrap())
    }

    /// What must hold after any fault: all that was stored is whole and comes back, the next run goes through, and
    /// nothing temporary stays. `prunes`: the command was to remove snapshots.
    pub fn is_well(&self, what: &str, prunes: bool, again: &[&str]) {
        let run = |arguments: &[&str]| {
            let ran: Ran = self.under(&["env"], arguments).output().unwrap().into();
            assert_eq!(ran.code, 0, "{what}: lifeboat {arguments:?}: {ran:#?}");
        };
        run(&["verify", "--deep"]);
        let here = self.world.snapshots();
        // Of the three the newest and the tagged one stay whatever happens; the one between them is there to be pruned.
        for (at, id) in self.ids.iter().enumerate() {
            assert!(
                here.contains(id) || (prunes && at == 1),
                "{what}: snapshot {at} of {:?} is gone: {here:?}",
                self.ids
            );
        }
        self.comes_back("first", &self.old, what);
        if prunes {
            self.comes_back(&self.ids[0], &self.kept, what);
        }
        run(SNAPSHOT);
        self.newest_comes_back(what);
        run(&["verify"]);
        let left: Vec<_> = fs::read_dir(self.world.path("tmp")).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "{what}: {left:?} stays");
        // A state file's temporary name is left by a kill before its rename; it goes with the next write, once it is old.
        if !self.temporary().is_empty() {
            let then = SystemTime::now() - Duration::from_secs(2 * 3600);
            for path in self.temporary() {
                fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
            }
            run(again);
            // What a cache keeps is written once; a verification, which the service makes every hour, tidies it up.
            run(&["verify"]);
        }
        assert_eq!(self.temporary(), Vec::<PathBuf>::new(), "{what}: it stays");
    }

    fn temporary(&self) -> Vec<PathBuf> {
        self.world.files("state").into_iter().map(|f| f.0).filter(|p| is_temporary(p)).collect()
    }

    /// The newest snapshot holds what is there now.
    pub fn newest_comes_back(&self, what: &str) {
        self.comes_back("latest", &self.live(), what);
    }

    /// On another machine: it has the repository and the identity, and nothing that this host remembers.
    fn comes_back(&self, id: &str, expected: &Records, what: &str) {
        let other = self.world.path("elsewhere");
        let _ = fs::remove_dir_all(&other);
        fs::create_dir(&other).unwrap();
        let mut command = bare(&other);
        command.args([
            "--config-dir",
            "none",
            "--state-dir",
            "none",
            "restore",
            id,
            "--only",
            "uploads",
            "--into",
            "into",
        ]);
        command.arg("--repository").arg(self.world.repository()).arg("--identity").arg(self.world.identity());
        let ran: Ran = command.output().unwrap().into();
        assert_eq!(ran.code, 0, "{what}: {id} does not come back: {ran:#?}");
        let differs = tree::differences(expected, &self.records_in(&other.join("into")));
        assert!(differs.is_empty(), "{what}: {id} came back otherwise:\n{}", differs.join("\n"));
        fs::remove_dir_all(&other).unwrap();
    }

    /// The uploads in a folder that was restored into.
    fn records_in(&self, into: &Path) -> Records {
        let uploads = self.world.app().canonicalize().unwrap().join("uploads");
        tree::records(&into.join("uploads").join(tree::inside(&uploads)))
    }

    /// The uploads in the folder of restores.
    pub fn restored(&self) -> Records {
        self.records_in(&self.into())
    }

    /// How they differ from what they were at the first snapshot.
    pub fn misrestored(&self) -> Vec<String> {
        self.misrestored_in(&self.into())
    }

    pub fn misrestored_in(&self, into: &Path) -> Vec<String> {
        tree::differences(&self.old, &self.records_in(into))
    }

    pub fn expected(&self) -> &Records {
        &self.old
    }

    /// The uploads themselves.
    pub fn live(&self) -> Records {
        tree::records(&self.world.app().join("uploads"))
    }

    /// Nothing but a restore in place changes the application.
    pub fn live_is_untouched(&self, what: &str) {
        let differs = tree::differences(&self.new, &self.live());
        assert!(differs.is_empty(), "{what}: the application was changed:\n{}", differs.join("\n"));
    }

    /// The snapshots that were there, newest first.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }
}

/// What a careless tool loses of a tree.
fn enrich(uploads: &Path) {
    let at = |name: &str| uploads.join(name);
    std::os::unix::fs::symlink("one.txt", at("link")).unwrap();
    fs::hard_link(at("one.txt"), at("a/one more")).unwrap();
    fs::write(at("žluť ☃"), "utf-8\n").unwrap();
    rustix::fs::setxattr(at("žluť ☃"), "user.note", b"\0kept", XattrFlags::empty()).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("owned"), "owned\n").unwrap();
    std::os::unix::fs::chown(at("owned"), Some(1000), Some(27)).unwrap();
    tree::set_mode(&at("owned"), 0o640);
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 500_000).unwrap();
    for name in ["a/two.bin", "link", "empty"] {
        tree::set_mtime(&at(name), -300_000_000, 250_000_001);
    }
}

/// The cases of a sweep. One that fails does not keep the others from being tried.
#[derive(Default)]
pub struct Cases(Vec<String>);

impl Cases {
    /// A case, by its name. `LIFEBOAT_SWEEP_ONLY` is a part of the names of those that are tried.
    pub fn one(&mut self, what: &str, case: impl FnOnce(&str)) {
        if std::env::var("LIFEBOAT_SWEEP_ONLY").is_ok_and(|only| !what.contains(&only)) {
            return;
        }
        if is_whole() {
            eprintln!("{what}");
        }
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| case(what))) {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
            self.0.push(format!("{what}: {text}"));
        }
    }

    pub fn failed(&self) -> usize {
        self.0.len()
    }

    pub fn are_well(&self) {
        assert!(self.0.is_empty(), "not well:\n{}", self.0.join("\n"));
    }
}

impl Done {
    fn of(output: &Output) -> Self {
        let killed = output.status.signal() == Some(9) || output.status.code() == Some(137);
        let said = [&output.stdout[..], &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned()).concat();
        // The standard library does not survive a folder that cannot be closed, nor the network's runtime a wake-up that
        // cannot be written, which only an injection brings about; nothing else may panic.
        let known = ["unexpected error during closedir", "failed to wake I/O driver"].iter().any(|k| said.contains(k));
        assert!(!said.contains("panicked") || known, "{said}");
        // What fails before the program begins is the loader's.
        let has_begun = !said.contains("while loading shared libraries");
        let documented = output.status.code().is_some_and(|code| (0..=6).contains(&code));
        assert!(documented || killed || known || !has_begun, "it ended with {}: {said}", output.status);
        Done { killed, hit: false, code: output.status.code().unwrap_or(-1), said, events: Vec::new() }
    }

    /// Whether it was the program that met the fault, and not what loads it. A wake-up between threads of the network's
    /// runtime waits for nothing, so that nothing interrupts it.
    pub fn is_met(&self) -> bool {
        let elsewhere = ["while loading shared libraries", "failed to wake I/O driver"];
        self.hit && !elsewhere.iter().any(|e| self.said.contains(e))
    }

    /// The calls that were made to fail.
    pub fn injected(&self) -> impl Iterator<Item = &Call> {
        self.events.iter().filter_map(|event| match event {
            Event::Done(call) if call.injected => Some(call),
            _ => None,
        })
    }
}

/// Whether a wake-up between threads was made to fail: `anon_inode`, as the log has it.
fn woke_nobody(log: &Path) -> bool {
    let name: String = "anon_inode".bytes().map(|b| format!("\\x{b:02x}")).collect();
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().any(|line| line.contains(&name) && line.contains("(INJECTED)"))
}

fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name.ends_with(".tmp") || name.starts_with(".tmp")
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

pub fn is_whole() -> bool {
    std::env::var_os("LIFEBOAT_SWEEP").is_some()
}

/// Which of `count` points are tried: all in a sweep, else a few over the whole length.
pub fn points(count: usize, few: usize) -> Vec<usize> {
    if is_whole() || count <= few {
        return (1..=count).collect();
    }
    match few {
        1 => vec![count.div_ceil(2)],
        few => (0..few).map(|n| 1 + n * (count - 1) / (few - 1)).collect(),
    }
}
