//! The first run of a person, from an empty machine to a restored folder; and the same repository from elsewhere.

use crate::world::{CANARY, Ran, World, bare, tree};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The files below a folder by their path in it.
fn relative(dir: &Path) -> Vec<(String, Vec<u8>)> {
    tree(dir).into_iter().map(|(path, bytes)| (path.strip_prefix(dir).unwrap().display().to_string(), bytes)).collect()
}

#[test]
fn from_an_empty_machine_to_a_restored_folder() {
    let world = World::new();
    world.run(&["init", "app", "--name", "shop"]).exits(0);
    world.run(&["policy", "check"]).exits(0).shows(&["valid", "env"]);
    world.run(&["policy", "show"]).exits(0).shows(&["name = \"shop\"", "keep_daily"]);
    world.add_to_policy(crate::world::UPLOADS);
    world.run(&["policy", "check", "--live"]).exits(0).shows(&["source uploads", "ok", "(proved"]);
    world.run(&["snapshot", "--dry-run"]).exits(0).shows(&["SOURCE", "uploads", "env"]);
    assert!(world.snapshots().is_empty(), "a dry run does nothing");

    let ran = world.run(&["snapshot", "--tag", "v1", "--tag", "before/upgrade"]).exits(0);
    ran.shows(&["SOURCE", "uploads", "files", "complete", "snapshot 2", "v1", "new"]).says(&["uploads: "]);
    fs::write(world.app().join("uploads/new.txt"), "new\n").unwrap();
    fs::remove_file(world.app().join("uploads/one.txt")).unwrap();
    world.run(&["snapshot", "-q"]).exits(0).shows_nothing();

    world.run(&["list"]).exits(0).shows(&["ID", " v1", "before/upgrade", "ago)", "complete"]);
    let ids = world.snapshots();
    assert_eq!(ids.len(), 2);
    world.run(&["list", "--tag", "v1"]).exits(0).shows(&[&ids[1]]).hides(&ids[0]);
    world.run(&["list", "--last", "1"]).exits(0).shows(&[&ids[0]]).hides(&ids[1]);
    for name in ["v1", "latest~1", &ids[1], &ids[1][17..]] {
        world.run(&["show", name]).exits(0).shows(&[&ids[1], "uploads", "env", "number 1"]);
    }
    world.run(&["ls", "v1"]).exits(0).shows(&["uploads", "env"]);
    let at = world.app().join("uploads");
    let at = at.to_str().unwrap();
    world.run(&["ls", "v1", at]).exits(0).shows(&["-rw", "uploads/one.txt", "drw"]).hides("two.bin");
    world.run(&["ls", "v1", "-r", &format!("uploads:{at}")]).exits(0).shows(&["uploads/a/two.bin", "5000"]);
    assert_eq!(world.run(&["cat", "v1", &format!("uploads:{at}/one.txt")]).exits(0).out, "one\n");
    world.run(&["find", "*.txt"]).exits(0).shows(&["one.txt", "new.txt", &ids[0]]);
    world.run(&["diff", "v1", "latest"]).exits(0).shows(&["+ uploads:", "new.txt", "- uploads:", "one.txt", "ADDED"]);
    world.run(&["diff", "latest", "latest"]).exits(0).shows(&["the same"]);

    world.run(&["verify"]).exits(0).shows(&["sound", "2 snapshots"]);
    world.run(&["verify", "--read-data"]).exits(0).shows(&["sound", "every byte read"]);
    world.run(&["verify", "--deep", "v1"]).exits(0).shows(&["sound", "1 snapshots"]);
    world.run(&["repair", "index"]).exits(0).shows(&["archives found"]);

    world.run(&["restore", "latest", "--into", "out", "--dry-run"]).exits(0).shows(&["uploads", "needed"]);
    assert!(!world.path("out").exists());
    world.run(&["restore", "latest", "--into", "out"]).exits(0).shows(&["uploads", "restored"]);
    let restored = world.path("out/uploads").join(at.trim_start_matches('/'));
    assert_eq!(relative(&restored), relative(&world.app().join("uploads")));
    let env = world.path("out/env").join(world.app().to_str().unwrap().trim_start_matches('/')).join(".env");
    assert!(fs::read_to_string(env).unwrap().contains(CANARY));
    world.run(&["restore", "v1", "--only", "uploads", "--path", &format!("{at}/one.txt"), "--into", "one"]).exits(0);
    assert_eq!(relative(&world.path("one")).len(), 1);
}

impl Ran {
    #[track_caller]
    fn shows_nothing(self) -> Self {
        assert!(self.out.is_empty() && self.err.is_empty(), "{self:#?}");
        self
    }

    #[track_caller]
    fn hides(self, text: &str) -> Self {
        assert!(!self.out.contains(text), "{text:?} is in\n{}", self.out);
        self
    }
}

/// Moving the identity away leaves a host that snapshots, lists and verifies, and that cannot read.
#[test]
fn a_sealed_host_does_everything_but_read() {
    let world = World::with_snapshot();
    fs::rename(world.identity(), world.path("usb.txt")).unwrap();
    fs::write(world.app().join("uploads/more.txt"), "more\n").unwrap();
    let second = world.json(&["snapshot", "--tag", "sealed"]);
    let new = second["header"]["bytes_new"].as_u64().unwrap();
    let total = second["header"]["bytes_total"].as_u64().unwrap();
    assert!(new < total, "a sealed host finds its duplicates: {new} of {total}");
    world.run(&["list"]).exits(0).shows(&["sealed", "first"]);
    world.run(&["verify"]).exits(0).shows(&["sound", "2 snapshots"]);
    world.run(&["verify", "--read-data"]).exits(0).shows(&["sound"]);
    world.run(&["show", "latest"]).exits(0).shows(&["no identity is at hand"]);
    world.run(&["policy", "check", "--live"]).exits(0).shows(&["repository", "ok"]);
    let reading: [&[&str]; 6] = [
        &["ls", "latest"],
        &["cat", "latest", "uploads"],
        &["find", "one"],
        &["diff", "first", "latest"],
        &["restore", "latest", "--into", "out"],
        &["verify", "--deep"],
    ];
    for args in reading {
        world.run(args).exits(2).one_error_with_a_hint().says(&["needs the identity", "--identity FILE"]);
        assert!(!world.path("out").exists(), "{args:?}");
    }
    world.run(&["cat", "latest", "uploads", "--identity", "usb.txt"]).exits(0);
    let ran: Ran = world.command(&["ls", "latest"]).env("LIFEBOAT_IDENTITY", "usb.txt").output().unwrap().into();
    ran.exits(0);
}

/// Another machine has the repository and the identity, and nothing else.
#[test]
fn total_loss_a_stranger_restores_with_repository_and_identity() {
    let world = World::with_snapshot();
    let elsewhere = tempfile::tempdir().unwrap();
    crate::exits::copy(&world.repository(), &elsewhere.path().join("repository"));
    fs::copy(world.identity(), elsewhere.path().join("identity.txt")).unwrap();
    let stranger = |args: &[&str]| -> Ran {
        let mut command = bare(elsewhere.path());
        command.args(["--config-dir", "none", "--state-dir", "none"]).args(args);
        command.args(["--repository", "repository", "--identity", "identity.txt"]).output().unwrap().into()
    };
    stranger(&["list"]).exits(0).shows(&["first"]);
    stranger(&["verify", "--deep"]).exits(0).shows(&["sound"]);
    stranger(&["restore", "first", "--into", "out"]).exits(0).shows(&["restored"]);
    let restored = elsewhere.path().join("out/uploads");
    let one = tree(&restored).into_iter().find(|(path, _)| path.ends_with("uploads/one.txt")).unwrap();
    assert_eq!(one.1, b"one\n");
    assert!(!elsewhere.path().join("none").exists(), "nothing is left behind");
}

#[test]
fn a_dump_can_be_piped() {
    let world = World::with_snapshot();
    let mut cat = world.command(&["cat", "latest", "uploads"]).stdout(Stdio::piped()).spawn().unwrap();
    let tar = Command::new("tar").arg("-tf-").stdin(cat.stdout.take().unwrap()).output().unwrap();
    assert!(cat.wait().unwrap().success() && tar.status.success());
    assert!(String::from_utf8(tar.stdout).unwrap().contains("uploads/one.txt"));
}
