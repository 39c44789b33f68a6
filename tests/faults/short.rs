//! Reads and writes that do less than they were asked for, and calls that are interrupted: nobody may notice.
//!
//! They are real: a library of a page that stands between the binary and the C library (`tests/support/short.c`).

use crate::site::{SNAPSHOT, Site};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn library(site: &Site) -> PathBuf {
    let library = site.world.path("config/short.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/short.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status().unwrap();
    assert!(built.success(), "these tests need a C compiler, as the linker of the crate does");
    library
}

#[test]
fn short_reads_and_writes_change_nothing() {
    let site = Site::with(3 << 20);
    let library = format!("LD_PRELOAD={}", library(&site).display());
    let log = site.world.path("config/short.log");
    let told = format!("SHORT_LOG={}", log.display());
    let (mut shortened, mut interrupted) = (0, 0);
    // How many of the short writes went past the page cache.
    let mut run = |arguments: &[&str]| -> u64 {
        let _ = fs::remove_file(&log);
        let done = site.wrapped(&["env", &library, &told], arguments);
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.said);
        let counts = fs::read_to_string(&log).unwrap();
        let counts: Vec<u64> = counts.lines().next().unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
        let [cut, signals, direct] = counts[..] else { panic!("{counts:?}") };
        assert!(cut > 0 && signals > 0, "{arguments:?}: {cut} cut, {signals} interrupted");
        (shortened, interrupted) = (shortened + cut, interrupted + signals);
        direct
    };
    // Each of the three sorts: whole blocks, a part of one behind them, less than one.
    let mut direct = [run(SNAPSHOT), 0];
    site.newest_comes_back("a snapshot under short reads and writes");
    run(&["verify", "--deep"]);
    direct[1] = run(&["restore", "first", "--only", "uploads", "--into", "into"]);
    assert!(direct.iter().all(|n| *n >= 3), "short direct writes of a snapshot and a restore: {direct:?}");
    assert_eq!(site.misrestored(), Vec::<String>::new());
    fs::remove_dir_all(site.world.path("into")).unwrap();
    run(&["repair", "index"]);
    run(&["prune", "--now"]);
    site.is_well("short reads and writes", true, SNAPSHOT);
    run(&["restore", "first", "--in-place", "--only", "uploads", "--yes"]);
    // What is newer stays; what was there then is as it was.
    let mut live = site.live();
    live.retain(|path, _| site.expected().contains_key(path));
    assert!(live == *site.expected());
    println!("{shortened} cases of a short call, {direct:?} of them direct, {interrupted} of an interrupted one");
}
