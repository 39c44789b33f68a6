//! A restore whose repository fails in the middle: what one place of the disk cannot give costs what lies there, and is
//! named; a repository that is gone altogether ends the run, and leaves nothing.

use crate::readonly::stopped;
use crate::site::{SNAPSHOT, Site, is_whole, points};
use std::fs;

const RESTORE: [&str; 6] = ["restore", "first", "--only", "uploads", "--into", "into"];

/// Every read of an archive from the n-th on, or that one alone.
#[test]
fn sweep_of_a_restore_that_cannot_read_an_archive() {
    let site = Site::new();
    let log = site.world.path("trace");
    let (mut damaged, mut red, mut green) = (0, 0, 0);
    let archives = site.world.files("state/repository/archives");
    let mut untouched = 0;
    for (archive, _) in &archives {
        for lasting in ["+", ""] {
            for n in 1.. {
                if n > 1 && !is_whole() {
                    break;
                }
                site.put_back();
                let inject = format!("inject=read,pread64:error=EIO:when={n}{lasting}");
                let wrapper = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-P", archive.to_str().unwrap()];
                let wrapper = [&wrapper[..], &["-e", "trace=read,pread64", "-e", &inject]].concat();
                let done = site.wrapped(&wrapper, &RESTORE);
                let what = format!("read {n}{lasting} of {}: {}", archive.display(), done.said);
                if !fs::read_to_string(&log).unwrap().contains("(INJECTED)") {
                    untouched += usize::from(n == 1);
                    break;
                }
                let is_named = done.said.contains(archive.file_name().unwrap().to_str().unwrap());
                match done.code {
                    0 => {
                        green += 1;
                        assert_eq!(lasting, "", "{what}");
                        assert_eq!(site.misrestored(), Vec::<String>::new(), "{what}");
                    }
                    1 => {
                        red += 1;
                        assert!(is_named && done.said.contains("Input/output error"), "{what}");
                        assert!(!site.world.path("into").exists(), "{what}: it leaves something");
                    }
                    4 => {
                        damaged += 1;
                        assert!(is_named && done.said.contains("Input/output error"), "{what}");
                        assert!(
                            !site.world.path("into").join("uploads").exists(),
                            "{what}: half a source stands under its name"
                        );
                    }
                    _ => panic!("{}: {what}", done.code),
                }
                site.is_well(&what, false, SNAPSHOT);
            }
        }
    }
    println!(
        "{} cases of an archive that a restore cannot read: {damaged} damaged, {red} red, {green} read again",
        damaged + red + green
    );
    assert!(damaged > 0 && untouched < 2 * archives.len(), "{damaged} damaged, {red} red, {green} green");
}

/// The repository goes away between one call and the next.
#[test]
fn sweep_of_a_restore_whose_repository_goes_away() {
    let site = Site::new();
    let (repository, away) = (site.world.repository(), site.world.path("away"));
    let calls = "openat";
    let count = site.calls(calls, &RESTORE);
    let (mut red, mut green) = (0, 0);
    for n in points(count, 3) {
        site.put_back();
        let done = stopped(&site, &RESTORE, calls, n, || fs::rename(&repository, &away).unwrap());
        if away.exists() {
            fs::rename(&away, &repository).unwrap();
        }
        let Some((code, said)) = done else { continue };
        let what = format!("gone at {calls} {n}: {said}");
        if said.contains("while loading shared libraries") {
            continue;
        }
        if code == 0 {
            green += 1;
            assert_eq!(site.misrestored(), Vec::<String>::new(), "{what}");
        } else {
            red += 1;
            let names = said.lines().any(|l| l.starts_with("error: ") && l.contains(repository.to_str().unwrap()));
            assert!((1..=6).contains(&code) && names, "{code}: {what}");
            assert!(!site.world.path("into").exists(), "{what}: it leaves something");
        }
        site.is_well(&what, false, SNAPSHOT);
    }
    println!("{} cases of a repository that goes away: {red} red, {green} green", red + green);
    assert!(red > 0, "{red} red, {green} green");
}
