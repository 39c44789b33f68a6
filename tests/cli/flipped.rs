//! One flipped bit in each kind of stored object, and a real restore on a machine that remembers nothing: it ends with the
//! object named, or with the very bytes.

use crate::world::{World, tree};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const KEEP: &str =
    "[retention]\nkeep_last = 1\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0\nkeep_tagged = false\n";

/// Whether a restore cannot do without it. What it can do without costs nothing, and is the business of `verify`.
const KINDS: &[(&str, bool)] = &[
    ("repository.json", true),
    ("signers", true),
    ("snapshots", true),
    ("manifests", true),
    ("refs", true),
    ("archives", true),
    // What an index object says stands in the archives, too.
    ("index", false),
    ("records", false),
    ("drills", false),
    ("details", false),
    ("trash", false),
];

fn noise(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; 100_000];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
    bytes
}

/// A world with every kind of object; the newest snapshot is whole.
fn everything() -> World {
    let world = World::ready();
    world.add_to_policy(KEEP);
    for seed in 0..2 {
        fs::write(world.app().join("uploads/blob"), noise(seed)).unwrap();
        world.run(&["snapshot"]).exits(0);
    }
    world.run(&["prune"]).exits(0);
    // What the first one needed has lain there for long.
    for folder in ["archives", "index", "refs", "manifests"] {
        for (path, _) in tree(&world.repository().join(folder)) {
            let then = std::time::SystemTime::now() - std::time::Duration::from_secs(8 * 24 * 3600);
            fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
        }
    }
    world.run(&["prune"]).exits(0).shows(&["condemned"]);
    world.run(&["tag", "latest", "kept"]).exits(0);
    world.run(&["drill"]).exits(0);
    world
}

/// Its objects by kind.
fn objects(world: &World) -> BTreeMap<String, Vec<PathBuf>> {
    let mut kinds: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (path, _) in world.files("state/repository") {
        let below = path.strip_prefix(world.repository()).unwrap();
        let first = below.components().next().unwrap().as_os_str().to_str().unwrap().to_owned();
        let is_details = first == "drills" && path.extension().is_some_and(|e| e == "age");
        kinds.entry(if is_details { "details".to_owned() } else { first }).or_default().push(path);
    }
    kinds
}

fn put(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_restore_never_takes_a_flipped_bit() {
    let world = everything();
    let uploads = world.app().canonicalize().unwrap().join("uploads");
    let names = |dir: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        tree(dir).into_iter().map(|(path, bytes)| (path.strip_prefix(dir).unwrap().to_owned(), bytes)).collect()
    };
    let expected = names(&uploads);
    let id = world.snapshots()[0].clone();
    let repository = world.repository();
    let restored = || {
        let _ = fs::remove_dir_all(world.path("out"));
        let mut command = crate::world::bare(world.dir.path());
        let _ = fs::remove_dir_all(world.path("elsewhere"));
        command.arg("--config-dir").arg(world.path("nothing")).arg("--state-dir").arg(world.path("elsewhere"));
        command.args(["restore", &id, "--only", "uploads", "--into", "out", "--repository"]).arg(&repository);
        command.arg("--identity").arg(world.identity());
        let ran = crate::world::Ran::from(command.output().unwrap());
        let there = world.path("out/uploads").join(uploads.strip_prefix("/").unwrap());
        if ran.code == 0 {
            assert!(names(&there) == expected, "other bytes came back: {ran:?}");
        } else {
            assert!(!world.path("out/uploads").exists(), "something half stands under its name: {ran:?}");
        }
        ran
    };
    restored().exits(0);
    let kinds = objects(&world);
    let (mut refused, mut whole) = (0, 0);
    for (kind, needed) in KINDS {
        let objects = kinds.get(*kind).unwrap_or_else(|| panic!("nothing of {kind}: {kinds:?}"));
        let mut met = 0;
        for object in objects {
            let bytes = fs::read(object).unwrap();
            for at in [0, bytes.len() / 3, bytes.len() / 2, bytes.len() - 2] {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (at % 7);
                put(object, &flipped);
                let ran = restored();
                let name = object.strip_prefix(&repository).unwrap().display().to_string();
                if ran.code == 0 {
                    whole += 1;
                } else {
                    met += 1;
                    assert!(*needed, "{name}, byte {at}: {ran:?}");
                    assert!(matches!(ran.code, 2 | 4), "{name}, byte {at}: {ran:?}");
                    let stem = object.file_name().unwrap().to_str().unwrap().split('.').next().unwrap();
                    assert!(ran.err.contains(stem) || *kind == "snapshots", "{name}, byte {at} is not named: {ran:?}");
                }
            }
            put(object, &bytes);
        }
        assert!(!needed || met > 0, "{kind}: no flipped bit was met");
        refused += met;
    }
    restored().exits(0);
    println!("{refused} restores refused a flipped bit, {whole} did without the object");
}
