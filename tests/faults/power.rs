//! Loss of power: whatever was not synced is gone, in any of the ways in which a disk can lose it. After each: what was
//! stored is whole, what a command has reported as done is done, and the next run needs nobody's hand.
//!
//! A run is recorded once, call by call; the states a disk could be in are made from the record (see `disk`). They are
//! taken just before every sync of the run, where the most is at stake, and behind its end.

use crate::calls;
use crate::cli::tree;
use crate::disk::{CALLS, Content, Disk, Found, Kept};
use crate::site::{Records, SNAPSHOT, Site, points};
use crate::tree::Record;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::PathBuf;

/// A state that a disk could be in.
struct Case {
    what: String,
    found: Found,
    /// The command had reported success.
    is_done: bool,
}

/// How names come to a disk: in the order in which they were made, as a journal keeps them; or each for itself, which is
/// all that is promised.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Journal,
    None,
}

/// Records a run, and says what a disk could hold at any moment of it.
fn record(site: &Site, arguments: &[&str], order: Order) -> Vec<Case> {
    let root = site.world.dir.path().canonicalize().unwrap();
    let mut disk = Disk::of(&root);
    let log = site.world.path("trace");
    let trace = format!("trace={CALLS}");
    let wrapper = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "-xx",
        "-s",
        "33554432",
        "-e",
        "signal=none",
        "-e",
        &trace,
        "-o",
        log.to_str().unwrap(),
    ];
    let done = site.wrapped(&wrapper, arguments);
    assert_eq!(done.code, 0, "{}", done.said);
    let mut moments = Vec::new();
    let mut syncs = 0;
    for event in calls::read(&fs::read_to_string(&log).unwrap()) {
        let before = disk.clone();
        if disk.apply(&event) {
            syncs += 1;
            moments.push((format!("before sync {syncs}"), before, false));
        }
    }
    assert!(syncs > 2, "{syncs} syncs were seen");
    let stamps = disk.is_as_it_is();
    moments.push(("behind the end".to_owned(), disk, true));
    let mut seen = HashSet::new();
    let mut cases = Vec::new();
    for (moment, mut disk, is_done) in moments {
        disk.learn(&stamps);
        for (kept, content) in ways(&disk, order) {
            let found = disk.after(kept, content);
            if seen.insert((found.digest(), is_done)) {
                cases.push(Case {
                    what: format!("{arguments:?} {moment}, names {kept:?}, content {content:?}"),
                    found,
                    is_done,
                });
            }
        }
    }
    cases
}

/// The ways in which what is not durable can be lost.
fn ways(disk: &Disk, order: Order) -> Vec<(Kept, Content)> {
    let names = disk.unsettled();
    let mut ways = vec![(Kept::None, Content::Lost)];
    if disk.has_unsafe_content() {
        ways.extend(
            [Content::Lost, Content::Zeros, Content::Cut, Content::Torn, Content::Whole].map(|c| (Kept::All, c)),
        );
    } else {
        ways.push((Kept::All, Content::Lost));
    }
    ways.extend((1..names).map(|n| (Kept::First(n), Content::Lost)));
    if order == Order::None {
        ways.extend((0..names).flat_map(|n| [(Kept::AllBut(n), Content::Lost), (Kept::Only(n), Content::Lost)]));
    }
    ways
}

/// Tries the states, a few of them in the test command: always the first behind the end.
fn try_each(site: &Site, cases: Vec<Case>, few: usize, check: impl Fn(&Case)) {
    let root = site.world.dir.path().canonicalize().unwrap();
    let end = cases.iter().position(|c| c.is_done).expect("the end is a moment");
    let mut chosen: Vec<usize> = points(cases.len(), few).into_iter().map(|n| n - 1).collect();
    chosen.push(end);
    chosen.sort_unstable();
    chosen.dedup();
    for n in &chosen {
        let case = &cases[*n];
        case.found.lay_out(&root);
        for needed in ["tmp", "state"] {
            let _ = fs::create_dir(root.join(needed));
        }
        check(case);
    }
    println!("{} cases of lost power, of {}", chosen.len(), cases.len());
}

fn sweep(arguments: &[&str], prepare: impl Fn(&Site), prunes: bool, after: impl Fn(&Site, &Case)) {
    let site = Site::new();
    prepare(&site);
    let cases = record(&site, arguments, Order::None);
    try_each(&site, cases, 7, |case| {
        after(&site, case);
        site.is_well(&case.what, prunes, arguments);
    });
}

#[test]
fn sweep_of_a_snapshot_that_loses_power() {
    sweep(
        SNAPSHOT,
        |_| (),
        false,
        |site, case| {
            // What was reported is kept.
            let least = if case.is_done { 4 } else { 3 };
            let here = site.world.snapshots();
            assert!(here.len() >= least, "{}: {here:?}", case.what);
        },
    );
}

#[test]
fn sweep_of_a_prune_that_loses_power() {
    sweep(
        &["prune", "--now"],
        |_| (),
        true,
        |site, case| {
            let here = site.world.snapshots();
            assert!(
                here.len() == 2 || (here.len() == 3 && !case.is_done),
                "{}: the newest and the tagged one stay: {here:?}",
                case.what
            );
        },
    );
}

#[test]
fn sweep_of_an_index_repair_that_loses_power() {
    let forget = |site: &Site| {
        let _ = fs::remove_dir_all(site.world.path("state/cache"));
    };
    sweep(&["repair", "index"], forget, false, |_, _| ());
}

#[test]
fn sweep_of_a_restore_that_loses_power() {
    let arguments = ["restore", "first", "--only", "uploads", "--into", "into"];
    sweep(
        &arguments,
        |_| (),
        false,
        |site, case| {
            let whole = site.into().join("uploads");
            assert!(whole.exists() || !case.is_done, "{}: what was reported as restored is gone", case.what);
            if !whole.exists() {
                site.world.run(&arguments).exits(0);
            }
            // A disk made from a log knows nothing of owners, attributes and holes.
            let plain = |records: &Records| {
                let one = |(path, r): (&PathBuf, &Record)| {
                    (path.clone(), (r.kind.clone(), r.size, r.content.clone(), r.target.clone(), r.same_as.clone()))
                };
                records.iter().map(one).collect::<BTreeMap<_, _>>()
            };
            assert!(plain(&site.restored()) == plain(site.expected()), "{}", case.what);
        },
    );
}

/// The journal and the swap of an in-place restore: the old state or the new one, by the next command.
#[test]
fn sweep_of_a_restore_in_place_that_loses_power() {
    let site = Site::new();
    let uploads = site.world.app().join("uploads");
    let spoilt = tree(&uploads);
    let cases = record(&site, &["restore", "first", "--in-place", "--only", "uploads", "--yes"], Order::Journal);
    let good = tree(&uploads);
    assert!(good != spoilt);
    let (mut old, mut new) = (0, 0);
    let counts = std::cell::RefCell::new((&mut old, &mut new));
    try_each(&site, cases, 12, |case| {
        let listed = site.world.run(&["list"]).exits(0);
        if listed.err.contains("was cut short") {
            assert!(!case.is_done, "{}: it had been reported as done", case.what);
            site.world.run(&["restore", "--resume"]).exits(0);
        }
        let now = tree(&uploads);
        let is_new = now == good;
        assert!(is_new || (now == spoilt && !case.is_done), "{}: {:?}", case.what, differences(&now, &good, &spoilt));
        if is_new {
            *counts.borrow_mut().1 += 1
        } else {
            *counts.borrow_mut().0 += 1
        }
        site.world.run(SNAPSHOT).exits(0);
        site.world.run(&["verify"]).exits(0);
    });
    println!("{old} in the old state, {new} in the new one");
    assert!(old > 0 && new > 0);
}

fn differences(now: &[(PathBuf, Vec<u8>)], good: &[(PathBuf, Vec<u8>)], spoilt: &[(PathBuf, Vec<u8>)]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, bytes) in now {
        let (is_good, is_spoilt) = [good, spoilt].map(|t| t.iter().any(|(p, b)| p == path && b == bytes)).into();
        if !(is_good && is_spoilt) {
            found.push(format!("{}: {} bytes, new {is_good}, old {is_spoilt}", path.display(), bytes.len()));
        }
    }
    found
}
