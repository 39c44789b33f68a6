//! Kills and errors at every call of a snapshot, a restore, a prune and a repair of the index.

use crate::excuse::excuse;
use crate::site::{Cases, Done, SNAPSHOT, Site, is_whole, points};
use crate::tree::Record;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Calls that change something. Each that a command makes is killed at, by itself: some are made by one thread alone.
const CHANGES: &str = "write,pwrite64,writev,pwritev2,copy_file_range,sendfile,splice,fsync,fdatasync,syncfs,sync_file_range,\
    link,linkat,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,ftruncate,fallocate,fchmod,fchown,utimensat";

/// A sort of fault, at which calls.
pub struct Fault {
    pub calls: &'static str,
    pub what: &'static str,
    pub sort: Sort,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Sort {
    /// One call fails.
    Once,
    /// Nobody may notice it.
    Transparent,
    /// All fail from that one on: the command ends all the same, and says where.
    FromThenOn,
}

impl Fault {
    pub const fn once(calls: &'static str, what: &'static str) -> Self {
        Self { calls, what, sort: Sort::Once }
    }

    pub const fn from_then_on(calls: &'static str, what: &'static str) -> Self {
        Self { calls, what, sort: Sort::FromThenOn }
    }

    /// As strace has it.
    fn at(&self, n: usize) -> String {
        format!("{}:when={n}{}", self.what, if self.sort == Sort::FromThenOn { "+" } else { "" })
    }
}

const FAULTS: &[Fault] = &[
    Fault::once("write,pwrite64,writev", "error=ENOSPC"),
    Fault::once("write,pwrite64,writev", "error=EIO"),
    Fault::once("fsync,fdatasync,syncfs", "error=EIO"),
    Fault::once("linkat,renameat,renameat2,rename", "error=EROFS"),
    Fault::once("linkat,renameat,renameat2,rename", "error=EIO"),
    Fault::once("mkdir,mkdirat,ftruncate,fallocate", "error=ENOSPC"),
    Fault::once("unlink,unlinkat,rmdir", "error=EIO"),
    Fault::once("getdents64", "error=EIO"),
    Fault::once("read,pread64", "error=EIO"),
    Fault::once("close", "error=EIO"),
    Fault { calls: "read,pread64,write,pwrite64", what: "error=EINTR", sort: Sort::Transparent },
];

/// A disk that fails from one moment on, one that becomes read-only, one that is full.
pub const LASTING: &[Fault] = &[
    Fault::from_then_on("write,pwrite64,writev,fsync,fdatasync,syncfs", "error=EIO"),
    Fault::from_then_on(
        "write,pwrite64,writev,linkat,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,symlinkat,ftruncate,\
         fallocate,fchmod,fchmodat,fchown,fchownat,utimensat,fsetxattr,lsetxattr",
        "error=EROFS",
    ),
    Fault::from_then_on("write,pwrite64,writev,mkdir,mkdirat,linkat,symlinkat,ftruncate,fallocate", "error=ENOSPC"),
];

/// What a snapshot asks of a tree, one call at a time.
const LOOKS: &[Fault] = &[
    Fault::once("openat", "error=EIO"),
    Fault::once("openat2", "error=EIO"),
    Fault::once("statx", "error=EIO"),
    Fault::once("readlinkat", "error=EIO"),
    Fault::once("llistxattr,lgetxattr,fgetxattr,flistxattr,listxattr,getxattr", "error=EIO"),
];

/// What a restore gives to a tree.
const GIVES: &[Fault] = &[
    Fault::once("fchmod,fchmodat,chmod", "error=EPERM"),
    Fault::once("fchownat,fchown,lchown,chown", "error=EPERM"),
    Fault::once("utimensat", "error=EPERM"),
    Fault::once("fsetxattr,lsetxattr,setxattr", "error=EOPNOTSUPP"),
    Fault::once("fsetxattr,lsetxattr,setxattr", "error=ENOSPC"),
    Fault::once("symlinkat,symlink", "error=EIO"),
    Fault::once("mkdirat", "error=EIO"),
    Fault::once("openat2", "error=EIO"),
    Fault::once("openat", "error=EMFILE"),
    Fault::once("statx", "error=EIO"),
    Fault::once("copy_file_range", "error=EIO"),
];

/// One command under faults. `prepare`: what makes it do something; `prunes`: it removes snapshots; `after`: what must hold
/// of what it did, before all else is looked at.
pub struct Sweep<'a> {
    pub site: &'a Site,
    pub arguments: &'a [&'a str],
    pub prepare: &'a dyn Fn(&Site),
    pub prunes: bool,
    pub after: &'a dyn Fn(&Site, &Done, &str),
    cases: Cases,
    kills: usize,
    errors: usize,
    missed: usize,
    excuses: BTreeMap<&'static str, usize>,
    false_successes: Vec<String>,
    unmet: Vec<String>,
}

impl<'a> Sweep<'a> {
    pub fn new(
        site: &'a Site,
        arguments: &'a [&'a str],
        prepare: &'a dyn Fn(&Site),
        prunes: bool,
        after: &'a dyn Fn(&Site, &Done, &str),
    ) -> Self {
        Self {
            site,
            arguments,
            prepare,
            prunes,
            after,
            cases: Cases::default(),
            kills: 0,
            errors: 0,
            missed: 0,
            excuses: BTreeMap::new(),
            false_successes: Vec::new(),
            unmet: Vec::new(),
        }
    }

    fn ready(&self) {
        self.site.put_back();
        (self.prepare)(self.site);
    }

    /// Killed at each call that changes something.
    pub fn kills(&mut self) {
        let (site, arguments) = (self.site, self.arguments);
        self.ready();
        for (calls, count) in site.calls_by_name(CHANGES, arguments) {
            let (mut points, mut met) = (Points::of(count, 1), false);
            while let Some(n) = points.next(met) {
                self.one(&format!("{arguments:?} killed at {calls} {n}"), |sweep, what| {
                    let done = site.inject(&calls, &format!("signal=KILL:when={n}"), arguments);
                    if !done.killed {
                        // Threads share the work in another way each time: this one had fewer calls.
                        assert_eq!(done.code, 0, "{what}: {}", done.said);
                        sweep.missed += 1;
                        return;
                    }
                    (sweep.kills, met) = (sweep.kills + 1, true);
                    (sweep.after)(site, &done, what);
                    site.is_well(what, sweep.prunes, arguments);
                });
            }
            if !met {
                self.unmet.push(format!("a kill at {calls}"));
            }
        }
    }

    /// Each fault at each of its calls; the test command tries `few` of them.
    pub fn errors(&mut self, faults: &[Fault], few: usize) {
        let (site, arguments) = (self.site, self.arguments);
        for fault in faults {
            // Each thread counts for itself: the first one is that of every thread.
            let few = if fault.sort == Sort::Transparent { 1 } else { few };
            self.ready();
            let count = site.calls(fault.calls, arguments);
            let (mut points, mut met) = (Points::of(count, few), count == 0);
            while let Some(n) = points.next(met) {
                self.one(&format!("{arguments:?} with {} at {} {n}", fault.at(n), fault.calls), |sweep, what| {
                    let done = site.inject(fault.calls, &fault.at(n), arguments);
                    let what = format!("{what}: {}", done.said);
                    if !done.is_met() {
                        sweep.missed += 1;
                        return;
                    }
                    (sweep.errors, met) = (sweep.errors + 1, true);
                    sweep.judge(fault, n, &done, &what);
                    (sweep.after)(site, &done, &what);
                    site.forgive(&done);
                    site.is_well(&what, sweep.prunes, arguments);
                });
            }
            if !met {
                self.unmet.push(format!("{} at {}", fault.what, fault.calls));
            }
        }
    }

    /// What the code says, and the text.
    fn judge(&mut self, fault: &Fault, n: usize, done: &Done, what: &str) {
        // What is printed may fail to be printed; then nobody is told, and the code says so.
        if fault.sort == Sort::Transparent {
            assert_eq!(done.code, 0, "{what}");
            return;
        }
        if done.code == 0 {
            for call in done.injected() {
                match excuse(self.site, done, call) {
                    Some(excuse) => *self.excuses.entry(excuse).or_insert(0) += 1,
                    None => {
                        let said: String = done.said.chars().take(300).collect();
                        let (name, paths) = (&call.name, call.paths());
                        self.false_successes.push(format!("{}: {name} {paths:?}: {said}", fault.at(n)));
                    }
                }
            }
        } else if fault.sort == Sort::FromThenOn {
            let errors: Vec<&str> = done.said.lines().filter(|l| l.starts_with("error: ")).collect();
            let root = self.site.world.dir.path().to_str().unwrap();
            let names = |text: &str| text.contains(root) || text.contains("standard output");
            assert!(errors.iter().any(|e| names(e)) || names(&done.said), "no path is named: {what}");
        }
    }

    fn one(&mut self, what: &str, case: impl FnOnce(&mut Self, &str)) {
        let mut cases = std::mem::take(&mut self.cases);
        cases.one(what, |what| {
            self.ready();
            case(self, what);
        });
        self.cases = cases;
    }

    /// How many cases there were; fails where one was not well, or none of a sort was met.
    pub fn end(self) -> (usize, usize) {
        let Self { arguments, cases, kills, errors, missed, excuses, false_successes, unmet, .. } = self;
        println!(
            "{} cases of {arguments:?}: {kills} kills, {errors} errors, {missed} not met, {} false successes, {} not well; excused: {excuses:?}",
            kills + errors,
            false_successes.len(),
            cases.failed()
        );
        assert!(false_successes.is_empty(), "{arguments:?} succeeded in spite of\n{}", false_successes.join("\n"));
        cases.are_well();
        assert_eq!(unmet, Vec::<String>::new(), "{arguments:?} never met this");
        assert!(missed <= kills + errors, "{missed} were not met, {kills} kills and {errors} errors were");
        (kills, errors)
    }
}

/// The command, what makes it do something, and whether it removes snapshots; and the calls that it makes by itself.
fn sweep(arguments: &[&str], own: &[Fault], prepare: &dyn Fn(&Site), prunes: bool, after: &dyn Fn(&Site, &Done, &str)) {
    let site = Site::new();
    let after = |site: &Site, done: &Done, what: &str| {
        site.live_is_untouched(what);
        after(site, done, what);
    };
    let mut sweep = Sweep::new(&site, arguments, prepare, prunes, &after);
    sweep.kills();
    sweep.errors(FAULTS, 2);
    sweep.errors(own, 1);
    // One of them where not all are tried.
    let lasting = if is_whole() { LASTING } else { &LASTING[arguments[0].len() % 3..][..1] };
    sweep.errors(lasting, 1);
    let (kills, errors) = sweep.end();
    assert!(kills >= 4 && errors >= 4, "{kills} kills and {errors} errors");
}

/// The points of a call that are tried, and some more where none of them is met: a thread may have fewer calls than the
/// busiest one had before, and the first ones may be the loader's.
struct Points {
    ahead: Vec<usize>,
    spare: Vec<usize>,
}

impl Points {
    fn of(count: usize, few: usize) -> Self {
        let spare = [1, count.div_ceil(4), count.div_ceil(3), count * 2 / 3];
        Self { ahead: points(count, few), spare: spare.into_iter().filter(|n| (1..=count).contains(n)).collect() }
    }

    fn next(&mut self, met: bool) -> Option<usize> {
        self.ahead.pop().or_else(|| if met { None } else { self.spare.pop() })
    }
}

#[test]
fn sweep_of_a_snapshot() {
    sweep(SNAPSHOT, LOOKS, &|_| (), false, &|site, done, what| {
        if done.code == 0 {
            // A success is one: what it stored is the application.
            assert_eq!(site.world.snapshots().len(), 4, "{what}");
            site.newest_comes_back(what);
        }
    });
}

#[test]
fn sweep_of_a_prune() {
    let site = Site::new();
    site.world.run(&["prune", "--now"]).exits(0);
    assert_eq!(site.world.snapshots().len(), 2, "there is something to remove");
    sweep(&["prune", "--now"], &[], &|_| (), true, &|site, done, what| {
        let here = site.world.snapshots();
        let kept = [&site.ids()[0], &site.ids()[2]];
        assert!(here.iter().eq(kept) || (done.code != 0 && here == site.ids()), "{what}: {here:?}");
    });
}

/// One bit of what a snapshot's list of archives says.
fn spoil_refs(site: &Site, sequence: u64) {
    let name = format!("/{sequence:010}.");
    let headers = site.world.files("state/repository/snapshots");
    let header = headers.iter().find(|f| f.0.to_string_lossy().contains(&name)).unwrap();
    let header: serde_json::Value = serde_json::from_slice(header.1.split(|b| *b == b'\n').next().unwrap()).unwrap();
    let refs = site.world.repository().join(format!("refs/{}.txt", header["refs"].as_str().unwrap()));
    let mut bytes = fs::read(&refs).unwrap();
    bytes[20] ^= 1;
    fs::write(&refs, &bytes).unwrap();
}

/// What earlier snapshots have stored need not be known; that it cannot be read is said.
#[test]
fn a_snapshot_says_which_refs_it_could_not_read() {
    let site = Site::new();
    spoil_refs(&site, 3);
    site.world.run(SNAPSHOT).exits(0).says(&["refs of snapshot", "are left out"]);
}

/// What is removed is on record before anything of it goes, also where what it needs cannot be read.
#[test]
fn nothing_of_a_removed_snapshot_goes_before_it_is_on_record() {
    let site = Site::new();
    spoil_refs(&site, 2);
    let before = site.world.files("state/repository");
    // The first thing that is written is the signer for removals, then the record.
    for n in [1, 2] {
        let done = site.inject("linkat", &format!("signal=KILL:when={n}"), &["prune", "--now"]);
        assert!(done.killed, "{}", done.said);
        let now = site.world.files("state/repository");
        let gone: Vec<_> = before.iter().filter(|f| !now.contains(f)).map(|f| &f.0).collect();
        assert!(gone.is_empty(), "killed at write {n}: {gone:?}");
    }
    let ran = site.world.run(&["prune", "--now"]).exits(0).shows(&["1 snapshot removed"]);
    // How many depends on what the third snapshot shares with the second: what this host tells of itself changes.
    let now = site.world.files("state/repository");
    let gone = before.iter().filter(|f| !now.contains(f) && !f.0.to_string_lossy().contains("snapshots/")).count();
    assert!(gone >= 2);
    ran.shows(&[&format!("{gone} objects")]);
    assert_eq!(site.world.snapshots().len(), 2);
    site.world.run(&["verify", "--deep"]).exits(0);
}

#[test]
fn sweep_of_an_index_repair() {
    let forget = |site: &Site| {
        let _ = fs::remove_dir_all(site.world.path("state/cache"));
    };
    // A repair that was cut short or failed is made once more, as the one before it would have had to be.
    sweep(&["repair", "index"], &[], &forget, false, &|site, _, what| {
        let ran = site.world.run(&["repair", "index"]);
        assert_eq!(ran.code, 0, "{what}: {ran:?}");
    });
}

/// Nothing half-written is taken for a restored source: what stands under its name is whole, and the next restore goes
/// where this one wanted to.
#[test]
fn sweep_of_a_restore() {
    let arguments = ["restore", "first", "--only", "uploads", "--into", "into"];
    sweep(&arguments, GIVES, &|_| (), false, &|site, done, what| {
        let (whole, damaged) = (site.into().join("uploads"), site.into().join("uploads.damaged"));
        assert!(!whole.exists() || !damaged.exists(), "{what}");
        if whole.exists() {
            let differs = site.misrestored();
            // What could not be given is told, each by its name.
            let is_named = |path: &Path| {
                let path = Path::new("uploads").join(path).display().to_string();
                done.said.contains(&format!("{}: ", path.trim_end_matches('/')))
            };
            // One of the names of a file is enough.
            let names = |path: &Path| {
                let first = site.expected().get(path).and_then(|r| r.same_as.as_deref());
                let is_same = |r: &Record| first.is_some() && r.same_as.as_deref() == first;
                let same = site.expected().iter().filter(|(_, r)| is_same(r)).map(|(path, _)| path.clone());
                same.chain([path.to_owned()]).collect::<Vec<_>>()
            };
            let is_told =
                |differs: &String| names(Path::new(differs.split('"').nth(1).unwrap())).iter().any(|p| is_named(p));
            let told = differs.iter().all(is_told);
            assert!(differs.is_empty() || told, "{what}: half a source stands under its name: {differs:?}");
            return;
        }
        assert!(done.killed || done.code != 0, "{what}: nothing is there");
        if damaged.exists() {
            assert!(done.killed || done.code == 4, "{what}");
            fs::remove_dir_all(site.into()).unwrap();
        }
        // The next one goes to the same folder, and takes away what this one left.
        site.world.run(&arguments).exits(0);
        assert_eq!(site.misrestored(), Vec::<String>::new(), "{what}");
        assert_eq!(fs::read_dir(site.into()).unwrap().count(), 1, "{what}");
    });
}
