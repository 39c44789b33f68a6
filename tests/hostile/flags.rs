//! Files that nobody may change (`chattr +i`, `+a`), on a file system that has such flags: what is not restored of them
//! is listed, and what they forbid is refused with the file named, with nothing half done.

use crate::cli::{Ran, World, tree};
use crate::looped::{Loop, run};
use std::fs;
use std::path::{Path, PathBuf};

struct Site {
    world: World,
    uploads: PathBuf,
    _disk: Loop,
}

/// Takes the flags away in the end: nothing with a flag can be removed.
struct Flagged<'a>(&'a Path);

impl<'a> Flagged<'a> {
    fn new(path: &'a Path, flags: &str) -> Self {
        run(&["chattr", flags, path.to_str().unwrap()]);
        Self(path)
    }
}

impl Drop for Flagged<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("chattr").args(["-i", "-a"]).arg(self.0).output();
    }
}

impl Site {
    fn new() -> Self {
        let world = World::ready();
        let uploads = world.app().join("uploads");
        fs::remove_dir_all(&uploads).unwrap();
        fs::create_dir(&uploads).unwrap();
        let disk = Loop::new(&world.path("image"), &uploads);
        let _ = fs::remove_dir(uploads.join("lost+found"));
        for name in ["plain", "fixed", "log"] {
            fs::write(uploads.join(name), name).unwrap();
        }
        fs::create_dir(uploads.join("folder")).unwrap();
        fs::write(uploads.join("folder/inside"), "inside").unwrap();
        Self { world, uploads, _disk: disk }
    }

    fn snapshot(&self, tag: &str) -> Ran {
        self.world.run(&["snapshot", "--only", "uploads", "--tag", tag]).exits(0)
    }
}

#[test]
fn flags_are_kept_in_the_snapshot_and_listed_when_they_are_not_restored() {
    let site = Site::new();
    let (fixed, log, folder) = (site.uploads.join("fixed"), site.uploads.join("log"), site.uploads.join("folder"));
    let _flags = [Flagged::new(&fixed, "+i"), Flagged::new(&log, "+a"), Flagged::new(&folder, "+i")];
    site.snapshot("good");
    // The second one takes over what has not changed, and says the same.
    site.snapshot("again");
    for id in ["good", "again"] {
        let into = site.world.path(id);
        let report = site.world.json(&["restore", id, "--only", "uploads", "--into", into.to_str().unwrap()]);
        let text = report.to_string();
        for (name, flag) in [("fixed", "immutable"), ("log", "append"), ("folder", "immutable")] {
            let said = format!("flags {flag} not restored");
            let differences =
                report["sources"][0]["tree"]["differences"].as_array().unwrap_or_else(|| panic!("{text}"));
            let one = differences.iter().find(|d| d["path"].as_str().unwrap().ends_with(&format!("uploads/{name}")));
            let one = one.unwrap_or_else(|| panic!("{name} is not listed: {text}"));
            assert!(one["what"].as_str().unwrap().starts_with(&said), "{one}");
            assert_eq!((&one["aspect"], &one["severity"]), (&"attribute".into(), &"metadata".into()));
        }
        assert_eq!(text.matches("not restored").count(), 3, "{text}");
        let ran = site.world.run(&["restore", id, "--only", "uploads", "--into", &format!("{}-2", into.display())]);
        assert!((ran.out + &ran.err).contains("3 attributes"), "the text says it too");
    }
}

#[test]
fn what_a_flag_forbids_is_refused_and_nothing_is_half_done() {
    let site = Site::new();
    site.snapshot("good");
    for name in ["plain", "fixed", "log", "folder/inside"] {
        fs::write(site.uploads.join(name), format!("{name}, spoilt")).unwrap();
    }
    let spoilt = tree(&site.uploads);
    for (name, flags) in [("fixed", "+i"), ("log", "+a"), ("folder", "+i"), ("folder", "+a"), ("folder/inside", "+i")] {
        let path = site.uploads.join(name);
        let flag = Flagged::new(&path, flags);
        let ran = site.world.run(&["restore", "good", "--in-place", "--only", "uploads", "--yes"]);
        assert_ne!(ran.code, 0, "{name} {flags}: {ran:?}");
        let said = ran.says(&["error:", name, "hint:"]);
        assert!(tree(&site.uploads) == spoilt, "{name} {flags}: something was changed: {}", said.err);
        let listed = site.world.run(&["list"]).exits(0);
        assert!(!listed.err.contains("was cut short"), "{name} {flags}: {listed:?}");
        drop(flag);
    }
    site.world.run(&["restore", "good", "--in-place", "--only", "uploads", "--yes"]).exits(0);
    assert_eq!(fs::read(site.uploads.join("fixed")).unwrap(), b"fixed");
}
