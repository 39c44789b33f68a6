//! Trees come back exactly, what is newer stays or goes as asked, and all of it can be undone.

use crate::world::{UPLOADS, World};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every path below a folder, but not the folder itself: kind, mode, owner, time and content.
pub fn state(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut ahead = vec![dir.to_owned()];
    while let Some(path) = ahead.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let what = if meta.is_dir() {
            ahead.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            "dir".to_owned()
        } else if meta.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else {
            format!("{} {}", meta.nlink(), hex::encode(blake3::hash(&fs::read(&path).unwrap()).as_bytes()))
        };
        let line =
            format!("{:o} {}:{} {}.{} {what}", meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec());
        found.push((path.strip_prefix(dir).unwrap().to_owned(), line));
    }
    found.retain(|(path, _)| !path.as_os_str().is_empty());
    found.sort();
    found
}

#[track_caller]
pub fn same(left: &[(PathBuf, String)], right: &[(PathBuf, String)]) {
    for line in left {
        assert!(right.contains(line), "only left: {line:?}; right: {:?}", right.iter().find(|r| r.0 == line.0));
    }
    for line in right {
        assert!(left.contains(line), "only right: {line:?}");
    }
}

/// Folders of transactions below a folder, and files of theirs in the state folder.
pub fn left_over(world: &World) -> Vec<PathBuf> {
    let output = Command::new("find").arg(world.dir.path()).args(["-name", ".lifeboat-*"]).output().unwrap();
    let mut found: Vec<PathBuf> = String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect();
    for entry in fs::read_dir(world.path("state/rollback")).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found
}

/// An application whose uploads hold every sort of thing.
fn rich() -> World {
    let world = World::ready();
    let uploads = world.app().join("uploads");
    fs::write(uploads.join("-x $(id) \"q\".txt"), "odd\n").unwrap();
    fs::write(uploads.join("žluť.txt"), "utf\n").unwrap();
    fs::hard_link(uploads.join("one.txt"), uploads.join("one-more.txt")).unwrap();
    symlink("one.txt", uploads.join("link")).unwrap();
    fs::create_dir_all(uploads.join("deep/er/est")).unwrap();
    fs::write(uploads.join("deep/er/est/file"), vec![9u8; 700_000]).unwrap();
    fs::write(uploads.join("same"), vec![1u8; 300_000]).unwrap();
    fs::write(uploads.join("quiet"), vec![1u8; 300_000]).unwrap();
    fs::set_permissions(uploads.join("deep/er"), fs::Permissions::from_mode(0o2750)).unwrap();
    let sparse = fs::File::create(uploads.join("sparse")).unwrap();
    sparse.set_len(4 << 20).unwrap();
    world.run(&["snapshot", "--tag", "good"]).exits(0);
    world
}

/// Everything about it is changed.
fn spoil(world: &World) {
    let uploads = world.app().join("uploads");
    fs::write(uploads.join("one.txt"), "changed\n").unwrap();
    fs::remove_file(uploads.join("-x $(id) \"q\".txt")).unwrap();
    fs::remove_file(uploads.join("link")).unwrap();
    fs::create_dir(uploads.join("link")).unwrap();
    fs::write(uploads.join("link/inside"), "a folder now\n").unwrap();
    fs::remove_dir_all(uploads.join("deep")).unwrap();
    fs::write(uploads.join("deep"), "a file now\n").unwrap();
    fs::set_permissions(uploads.join("žluť.txt"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(uploads.join("new.txt"), "newer\n").unwrap();
    fs::create_dir(uploads.join("newer")).unwrap();
    fs::write(uploads.join("newer/x"), "newer\n").unwrap();
    // Another content under the same size and time: only reading tells.
    let quiet = uploads.join("quiet");
    let time = fs::metadata(&quiet).unwrap().modified().unwrap();
    fs::write(&quiet, [vec![1u8; 299_999], vec![2u8]].concat()).unwrap();
    fs::File::options().write(true).open(&quiet).unwrap().set_modified(time).unwrap();
    fs::write(world.app().join(".env"), "MODE=broken\n").unwrap();
    fs::set_permissions(world.app().join(".env"), fs::Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn all_comes_back_and_newer_files_stay() {
    let world = rich();
    let good = state(&world.app());
    let untouched = fs::metadata(world.app().join("uploads/same")).unwrap();
    spoil(&world);
    let spoilt = state(&world.app());
    let report = world.json(&["restore", "good", "--in-place", "--yes"]);
    assert_eq!((&report["outcome"], &report["exit_code"]), (&"done".into(), &0.into()), "{report:#}");
    let newer = |p: &Path| ["new.txt", "newer", "newer/x"].iter().any(|n| p == Path::new("uploads").join(n));
    let now: Vec<_> = state(&world.app()).into_iter().filter(|(p, _)| !newer(p)).collect();
    same(&good, &now);
    assert_eq!(fs::read_to_string(world.app().join("uploads/new.txt")).unwrap(), "newer\n");
    assert_eq!(fs::metadata(world.app().join("uploads/same")).unwrap().ino(), untouched.ino(), "left alone");
    let tags = world.json(&["list"])["snapshots"][0].clone();
    assert_eq!(tags["trigger"], "rollback", "{tags:#}");
    assert!(tags["tags"][0].as_str().unwrap().starts_with("pre-restore-"), "{tags:#}");

    // The folder beside lies outside the checkout, is this account's alone, and no snapshot takes it.
    let beside = left_over(&world);
    assert!(beside.iter().all(|p| !p.starts_with(world.app())), "{beside:?}");
    world.run(&["restore", "--undo"]).exits(2).says(&["--yes"]).one_error_with_a_hint();
    let report = world.json(&["restore", "--undo", "--yes"]);
    assert_eq!((&report["outcome"], &report["exit_code"]), (&"undone".into(), &0.into()), "{report:#}");
    same(&spoilt, &state(&world.app()));
    assert_eq!(left_over(&world), Vec::<PathBuf>::new());
    world.run(&["restore", "--undo", "--yes"]).exits(2).says(&["nothing to undo"]);
}

#[test]
fn exact_takes_away_what_is_newer_and_undo_brings_it_back() {
    let world = rich();
    let good = state(&world.app());
    spoil(&world);
    let spoilt = state(&world.app());
    world.run(&["restore", "good", "--in-place", "--exact", "--yes"]).exits(0).shows(&["is live in shop", "--undo"]);
    same(&good, &state(&world.app()));
    world.run(&["restore", "--undo", "--yes"]).exits(0).shows(&["as it was before"]);
    same(&spoilt, &state(&world.app()));
}

#[test]
fn a_path_or_a_source_alone_comes_back() {
    let world = rich();
    spoil(&world);
    let one = world.app().join("uploads/one.txt");
    world.run(&["restore", "good", "--in-place", "--path", one.to_str().unwrap(), "--yes"]).exits(0);
    assert_eq!(fs::read_to_string(&one).unwrap(), "one\n");
    assert!(world.app().join("uploads/deep").is_file(), "nothing else is touched");
    // A further name alone gets the content of the file that it is of.
    let more = world.app().join("uploads/one-more.txt");
    fs::write(&more, "other\n").unwrap();
    world.run(&["restore", "good", "--in-place", "--path", more.to_str().unwrap(), "--yes"]).exits(0);
    assert_eq!(fs::read_to_string(&more).unwrap(), "one\n");
    world.run(&["restore", "good", "--in-place", "--only", "env", "--yes"]).exits(0);
    assert!(fs::read_to_string(world.app().join(".env")).unwrap().contains("MODE=production"));
    assert!(world.app().join("uploads/deep").is_file(), "nothing else is touched");
    world.run(&["restore", "good", "--in-place", "--path", "/nowhere", "--yes"]).exits(2).one_error_with_a_hint();
    world.run(&["restore", "good", "--in-place", "--only", "git", "--yes"]).exits(2).says(&["rollback"]);
}

#[test]
fn nothing_is_changed_without_a_yes_or_in_a_dry_run() {
    let world = rich();
    spoil(&world);
    let before = (state(&world.app()), world.snapshots());
    world
        .run(&["restore", "good", "--in-place"])
        .exits(2)
        .says(&["put snapshot", "over the live shop", "--yes"])
        .one_error_with_a_hint();
    let plan = world.run(&["restore", "good", "--in-place", "--dry-run"]).exits(0);
    for text in
        ["uploads", "changed since and replaced", "missing and brought back", "passed over: git", "safety snapshot"]
    {
        assert!(plan.out.contains(text), "{text:?} is not in\n{}", plan.out);
    }
    let plan = world.json(&["restore", "good", "--in-place", "--dry-run"]);
    assert_eq!(plan["plan"]["intents"].as_array().unwrap().len(), 2, "{plan:#}");
    assert_eq!(before, (state(&world.app()), world.snapshots()));
    assert_eq!(left_over(&world), Vec::<PathBuf>::new());
}

#[test]
fn what_was_replaced_goes_when_it_has_been_kept_long_enough() {
    let world = rich();
    world.add_to_policy("[rollback]\nkeep_old = \"1s\"\n");
    spoil(&world);
    world.run(&["restore", "good", "--in-place", "--yes"]).exits(0);
    assert!(!left_over(&world).is_empty());
    std::thread::sleep(std::time::Duration::from_secs(3));
    world.run(&["snapshot"]).exits(0);
    assert_eq!(left_over(&world), Vec::<PathBuf>::new());
    world.run(&["restore", "--undo", "--yes"]).exits(2).says(&["nothing to undo"]);
}

#[test]
fn what_cannot_be_saved_first_stops_it_unless_that_is_accepted() {
    let world = rich();
    let good = state(&world.app().join("uploads"));
    fs::remove_dir_all(world.app().join("uploads")).unwrap();
    world
        .run(&["restore", "good", "--in-place", "--yes"])
        .exits(1)
        .says(&["cannot be saved first", "--accept-unsaved uploads"])
        .one_error_with_a_hint();
    assert!(!world.app().join("uploads").exists() && left_over(&world).is_empty());
    world.run(&["restore", "good", "--in-place", "--accept-unsaved", "uploads", "--yes"]).exits(0);
    same(&good, &state(&world.app().join("uploads")));
    // Of what is left alone it is said.
    fs::remove_file(world.app().join(".env")).unwrap();
    world
        .run(&["restore", "good", "--in-place", "--only", "uploads", "--yes"])
        .exits(0)
        .says(&["warning: env: today's state is not saved"]);
}

/// The live tree belongs to somebody who puts a symlink where a folder was: nothing outside is touched.
#[test]
fn a_symlink_in_the_live_tree_leads_nowhere() {
    let world = rich();
    let victim = world.path("victim");
    fs::create_dir_all(victim.join("er/est")).unwrap();
    fs::write(victim.join("er/est/file"), "keep me\n").unwrap();
    let before = state(&victim);
    fs::remove_dir_all(world.app().join("uploads/deep")).unwrap();
    symlink(&victim, world.app().join("uploads/deep")).unwrap();
    world.run(&["restore", "good", "--in-place", "--exact", "--yes"]).exits(0);
    same(&before, &state(&victim));
    assert!(!world.app().join("uploads/deep").is_symlink());
    assert_eq!(fs::read(world.app().join("uploads/deep/er/est/file")).unwrap(), vec![9u8; 700_000]);
    world.run(&["restore", "--undo", "--yes"]).exits(0);
    assert!(world.app().join("uploads/deep").is_symlink());
    same(&before, &state(&victim));
}

/// What is written between laying out and the stop of the services is seen: nothing of it stays in an exact restore.
#[test]
fn what_is_written_while_the_new_tree_is_laid_out_is_seen() {
    let world = rich();
    // Runs once all is prepared, in the place of a service that goes on writing until it is stopped.
    let writer = "[[source]]\nkind = \"command\"\nname = \"writer\"\nrun = [\"echo\", \"x\"]\nrestore = [\"true\"]\n";
    world.change_policy(UPLOADS, &format!("{writer}{UPLOADS}"));
    world.run(&["snapshot", "--tag", "better"]).exits(0);
    let good = state(&world.app());
    spoil(&world);
    // The safety snapshot runs the command too; what is written by its second run comes behind the preparation.
    let script = world.path("writer");
    let uploads = world.app().join("uploads");
    fs::write(
        &script,
        format!(
            "#!/bin/sh\necho x\ntest -e {0}/once && {{ echo changed > {1}/same; mkdir -p {1}/late; echo late > {1}/late/x; }}\ntouch {0}/once\n",
            world.dir.path().display(),
            uploads.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    world.change_policy("run = [\"echo\", \"x\"]", &format!("run = [{:?}]", script));
    world.run(&["restore", "better", "--in-place", "--exact", "--yes"]).exits(0);
    same(&good, &state(&world.app()));
}
