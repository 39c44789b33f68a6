//! A file system that folds case, onto which two names of a snapshot are one: neither takes the other's place unsaid.

use crate::cli::{World, tree};
use crate::looped::run;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Of a test's own, on a file.
struct Folding(PathBuf);

impl Folding {
    fn new(world: &World, at: &Path) -> Self {
        let image = world.path("image");
        fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        run(&["mkfs.ntfs", "-F", "-q", image.to_str().unwrap()]);
        let _ = fs::create_dir(at);
        run(&["lowntfs-3g", "-o", "ignore_case,permissions", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self(at.to_owned())
    }
}

impl Drop for Folding {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Two files and two folders whose names differ by case alone, saved where they are four.
fn saved() -> (World, PathBuf) {
    let world = World::ready();
    let uploads = world.app().canonicalize().unwrap().join("uploads");
    for name in ["Folder", "folder"] {
        fs::create_dir(uploads.join(name)).unwrap();
        fs::write(uploads.join(name).join(format!("in-{name}")), name).unwrap();
    }
    for name in ["GOOD", "good"] {
        fs::write(uploads.join(name), name).unwrap();
    }
    world.run(&["snapshot", "--only", "uploads", "--tag", "both"]).exits(0);
    fs::remove_dir_all(&uploads).unwrap();
    (world, uploads)
}

#[test]
fn the_second_of_two_names_is_refused_and_named() {
    let (world, uploads) = saved();
    let folding = Folding::new(&world, &world.path("folding"));
    let into = folding.0.join("out");
    let report = world.json(&["restore", "both", "--only", "uploads", "--into", into.to_str().unwrap()]);
    assert_eq!(
        (&report["exit_code"], &report["sources"][0]["outcome"]),
        (&3.into(), &"incomplete".into()),
        "{report:#}"
    );
    let out = into.join("uploads").join(uploads.strip_prefix("/").unwrap());
    // The first of each is there, with its own content.
    assert_eq!(fs::read(out.join("GOOD")).unwrap(), b"GOOD");
    let folder: Vec<_> = tree(&out.join("Folder")).into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(folder, [b"Folder"]);
    let differences = report["sources"][0]["tree"]["differences"].as_array().unwrap();
    for name in ["uploads/good", "uploads/folder", "uploads/folder/in-folder"] {
        let refused =
            |d: &&serde_json::Value| d["severity"] == "refused" && d["path"].as_str().unwrap().ends_with(name);
        assert!(differences.iter().any(|d| refused(&d)), "{name}: {report:#}");
    }
}

#[test]
fn over_the_live_tree_it_is_refused_whole() {
    // Where nothing is there, where the first is, where either's own would be replaced.
    let names: [&[&str]; 4] = [&[], &["GOOD"], &["good"], &["Folder/in-Folder", "other"]];
    let (world, uploads) = saved();
    for there in names {
        let _ = fs::remove_dir_all(&uploads);
        let folding = Folding::new(&world, &uploads);
        for name in there {
            fs::create_dir_all(uploads.join(name).parent().unwrap()).unwrap();
            fs::write(uploads.join(name), "of today").unwrap();
        }
        let before = tree(&uploads);
        let ran = world.run(&["restore", "both", "--in-place", "--only", "uploads", "--yes"]).exits(1);
        ran.says(&["and another name of the snapshot are one on this file system", "--into"]);
        assert!(tree(&uploads) == before, "{there:?}");
        assert!(!world.run(&["list"]).exits(0).err.contains("was cut short"));
        drop(folding);
    }
}
