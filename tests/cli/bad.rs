//! Bad input and bad circumstances: one line of cause, a hint, the right exit code, and nothing half-written.

use crate::world::{Ran, World, tree};
use lifeboat::pipeline::sign::Namespace;
use lifeboat::repository::keys::{IdentityFile, root_key};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

/// A file system of its own, until dropped.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&at).unwrap();
        mount(&["-t", "tmpfs", "-o", options, "tmpfs", at.to_str().unwrap()]);
        Self(at)
    }

    fn remount(&self, options: &str) {
        mount(&["-o", &format!("remount,{options}"), self.0.to_str().unwrap()]);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(args: &[&str]) {
    let output = Command::new("mount").args(args).output().unwrap();
    assert!(output.status.success(), "these tests mount file systems, as root: {output:?}");
}

#[test]
fn every_error_of_a_policy_has_its_place_and_the_nearest_name() {
    let world = World::ready();
    world.change_policy("recipients = [", "recipents = [");
    world.add_to_policy("[[source]]\nkind = \"postgress\"\n[retention]\nkeep_dayly = 7\n");
    let line = |text: &str| {
        let policy = fs::read_to_string(world.policy()).unwrap();
        policy.lines().position(|l| l.contains(text)).unwrap() + 1
    };
    let file = world.policy().display().to_string();
    let places: Vec<String> =
        ["recipents", "\"postgress\"", "keep_dayly"].iter().map(|text| format!("{file}:{}:", line(text))).collect();
    for args in [&["policy", "check"][..], &["snapshot"], &["list"]] {
        let ran = world.run(args).exits(2);
        let ran = ran.says(&places.iter().map(String::as_str).collect::<Vec<_>>());
        ran.says(&[
            "did you mean \"recipients\"",
            "did you mean \"postgres\"",
            "did you mean \"keep_daily\"",
            "errors in",
        ]);
    }
    let json = world.run(&["policy", "check", "--json"]).exits(2).json();
    let errors = json["error"]["policy_errors"].as_array().unwrap();
    assert!(
        errors.len() >= 3
            && errors.iter().all(|e| e["line"].as_u64().unwrap() > 0 && e["column"].as_u64().unwrap() > 0)
    );
}

#[test]
fn no_recipient_is_refused_before_anything_is_stored() {
    let world = World::ready();
    let recipient = fs::read_to_string(world.identity()).unwrap();
    let recipient = recipient.lines().find_map(|l| l.strip_prefix("# recipient: ")).unwrap().to_owned();
    world.change_policy(&format!("    \"{recipient}\",\n"), "");
    let before = world.files("state/repository");
    world.run(&["snapshot"]).exits(2).says(&["recipients", "is empty", "lifeboat keys new"]);
    assert_eq!(world.files("state/repository"), before);
}

#[test]
fn a_wrong_identity_opens_nothing() {
    let (world, other) = (World::with_snapshot(), World::ready());
    let wrong = other.identity();
    let wrong = wrong.to_str().unwrap();
    for args in [&["cat", "latest", "uploads:one.txt"][..], &["ls", "latest"], &["restore", "latest", "--into", "out"]]
    {
        let all: Vec<&str> = args.iter().copied().chain(["--identity", wrong]).collect();
        world.run(&all).one_error_with_a_hint().exits(1).says(&["--identity"]);
    }
    assert!(!world.path("out").exists() || tree(&world.path("out")).is_empty());
    // One that is not there, or that others can read.
    world.run(&["ls", "latest", "--identity", "nowhere"]).exits(1).says(&["nowhere"]);
    fs::set_permissions(world.identity(), fs::Permissions::from_mode(0o644)).unwrap();
    world.run(&["ls", "latest"]).exits(1).one_error_with_a_hint().says(&["chmod 600"]);
    // No identity at all: said, with the way out.
    fs::remove_file(world.identity()).unwrap();
    world.run(&["ls", "latest"]).exits(2).one_error_with_a_hint().says(&["needs the identity", "--identity FILE"]);
}

#[test]
fn a_foreign_repository_is_refused() {
    let (world, other) = (World::with_snapshot(), World::with_snapshot());
    fs::rename(world.repository(), world.path("mine")).unwrap();
    crate::exits::copy(&other.repository(), &world.repository());
    let before = world.files("state/repository");
    world.run(&["snapshot"]).exits(4).one_error_with_a_hint().says(&["not SHA256:"]);
    world.run(&["list"]).exits(4).one_error_with_a_hint();
    assert_eq!(world.files("state/repository"), before);

    // A stranger is told to bring a pin.
    let stranger = World::new();
    let repository = other.repository();
    let repository = repository.to_str().unwrap();
    stranger
        .run(&["list", "--repository", repository])
        .exits(2)
        .one_error_with_a_hint()
        .says(&["--signer", "--trust-on-first-use"]);
    stranger.run(&["list", "--repository", repository, "--trust-on-first-use"]).exits(0).shows(&["first"]);
    let id = world.json(&["keys", "show"])["repository_id"].as_str().unwrap().to_owned();
    stranger.run(&["list", "--repository", repository, "--signer", &id]).exits(4);
    let id = other.json(&["keys", "show"])["repository_id"].as_str().unwrap().to_owned();
    stranger.run(&["list", "--repository", repository, "--signer", &id]).exits(0).shows(&["first"]);
    assert!(!stranger.path("state").exists(), "a stranger leaves no state behind");
}

#[test]
fn a_newer_format_is_refused_in_clear_words() {
    let world = World::with_snapshot();
    let file = IdentityFile::load(&world.identity()).unwrap();
    let root = root_key(file.first().unwrap()).unwrap();
    let path = world.repository().join("repository.json");
    let text = fs::read_to_string(&path).unwrap();
    let line = text.lines().next().unwrap();
    for (from, to, says) in
        [("\"format\":1", "\"format\":2", "format 2"), ("\"requires\":[]", "\"requires\":[\"parity\"]", "parity")]
    {
        assert!(line.contains(from), "{line}");
        fs::write(&path, root.sign(Namespace::Repository, &line.replace(from, to)).unwrap()).unwrap();
        let before = world.files("state/repository");
        for args in [&["snapshot"][..], &["list"], &["verify"]] {
            world.run(args).exits(1).one_error_with_a_hint().says(&[says, "newer version"]);
        }
        assert_eq!(world.files("state/repository"), before);
    }
}

#[test]
fn a_full_disk_is_said_and_harms_nothing() {
    let world = World::new();
    let mount = Mount::tmpfs(world.path("disk"), "size=4m,mode=700");
    world.run(&["init", "app", "--name", "shop", "--repository", "disk/repository"]).exits(0);
    world.add_to_policy(crate::world::UPLOADS);
    world.run(&["snapshot", "--tag", "small"]).exits(0);

    // The policy's reserve …
    let noise: Vec<u8> = (0..6_000_000u32).flat_map(|n| blake(n).to_le_bytes()).collect();
    fs::write(world.app().join("uploads/large.bin"), &noise[..6_000_000]).unwrap();
    world.run(&["snapshot"]).exits(1).one_error_with_a_hint().says(&["free", "min_free"]);
    // … and the disk itself.
    world.change_policy("[repository]", "[repository]\nmin_free = \"0B\"");
    world.run(&["snapshot"]).exits(1).one_error_with_a_hint().says(&["No space left"]);
    assert_eq!(world.snapshots().len(), 1);
    fs::remove_file(world.app().join("uploads/large.bin")).unwrap();
    world.run(&["verify"]).exits(0);

    // With room again the next run succeeds.
    mount.remount("size=64m");
    world.run(&["snapshot"]).exits(0);
    world.run(&["verify", "--deep"]).exits(0);
}

/// Bytes that do not compress.
fn blake(n: u32) -> u64 {
    let mut x = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    for _ in 0..3 {
        x ^= x >> 29;
        x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^= x >> 32;
    }
    x
}

#[test]
fn a_read_only_repository_is_said_and_still_read() {
    let world = World::new();
    let mount = Mount::tmpfs(world.path("disk"), "size=32m,mode=700");
    world.run(&["init", "app", "--name", "shop", "--repository", "disk/repository"]).exits(0);
    world.add_to_policy(crate::world::UPLOADS);
    world.run(&["snapshot"]).exits(0);
    mount.remount("ro");
    world.run(&["snapshot"]).exits(1).one_error_with_a_hint().says(&["Read-only file system", "read-only"]);
    world.run(&["list"]).exits(0);
    world.run(&["verify", "--deep"]).exits(0);
    world.run(&["policy", "check", "--live"]).exits(1).shows(&["repository", "failed", "Read-only"]);
    world.run(&["init", "uploads", "--repository", "disk/other"]).exits(1);
}

#[test]
fn an_unreadable_file_is_named() {
    let world = World::ready();
    fs::write(world.app().join("uploads/secret.key"), "x").unwrap();
    // Everything is the account's own but this one file.
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let all = [world.path("config"), world.path("state"), world.app()];
    assert!(Command::new("chown").arg("-R").arg("65534:65534").args(&all).status().unwrap().success());
    assert!(Command::new("chmod").arg("755").arg(world.dir.path()).status().unwrap().success());
    let key = world.app().join("uploads/secret.key");
    assert!(Command::new("chown").arg("0:0").arg(&key).status().unwrap().success());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let (_kept, binary) = passable_binary();
    let as_nobody = |args: &[&str]| -> Ran {
        let mut command = Command::new("setpriv");
        command.args(nobody).arg(&binary).env_clear().env("HOME", world.dir.path()).env("PATH", "/usr/bin:/bin");
        command.arg("--config-dir").arg(world.path("config")).arg("--state-dir").arg(world.path("state")).args(args);
        command.current_dir("/").output().unwrap().into()
    };
    as_nobody(&["snapshot"]).exits(3).says(&["uploads/secret.key", "Permission denied"]).shows(&["failed"]);
    // A repository that the account may not read.
    assert!(Command::new("chown").arg("-R").arg("0:0").arg(world.repository()).status().unwrap().success());
    as_nobody(&["snapshot"]).exits(1).one_error_with_a_hint().says(&["Permission denied", "account"]);
    as_nobody(&["list"]).exits(1).one_error_with_a_hint();
}

/// The binary where every account can run it; gone with the folder.
fn passable_binary() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::Builder::new().prefix("lifeboat-bin-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("lifeboat");
    // A link costs nothing where both lie on one disk.
    let binary = env!("CARGO_BIN_EXE_lifeboat");
    fs::hard_link(binary, &path).or_else(|_| fs::copy(binary, &path).map(drop)).unwrap();
    (dir, path)
}

#[test]
fn unknown_snapshots_sources_and_paths_name_what_there_is() {
    let world = World::ready();
    world.run(&["show", "latest"]).exits(2).one_error_with_a_hint().says(&["no snapshot yet", "lifeboat snapshot"]);
    world.run(&["list"]).exits(0).shows(&["no snapshot yet"]);
    world.run(&["snapshot", "--tag", "v1"]).exits(0);
    world.run(&["show", "v2"]).exits(2).one_error_with_a_hint().says(&["v1"]);
    world.run(&["ls", "latest", "uplods"]).exits(2).one_error_with_a_hint().says(&["did you mean \"uploads\""]);
    world.run(&["cat", "latest", "uploads:/nope"]).exits(2).one_error_with_a_hint().says(&["/nope"]);
    world.run(&["restore", "latest", "--only", "nope", "--into", "out"]).exits(2).one_error_with_a_hint();
    assert!(!world.path("out").exists());
    world.run(&["list", "--since", "yesteryear"]).exits(2).one_error_with_a_hint();
}

#[test]
fn a_header_that_somebody_remembers_must_be_there() {
    let world = World::with_snapshot();
    let header = world.json(&["show", "latest"])["header"].as_str().unwrap().to_owned();
    world.run(&["list", "--expect", &format!("1:{header}")]).exits(0);
    world.run(&["list", "--expect", &format!("2:{header}")]).exits(4).says(&["ALARM", "is not there"]);
    world.run(&["verify", "--expect", &format!("1:{}", "0".repeat(64))]).exits(4).says(&["ALARM"]);
    world.run(&["list", "--expect", "latest"]).exits(2).one_error_with_a_hint();
}

#[test]
fn restore_overwrites_nothing() {
    let world = World::with_snapshot();
    fs::create_dir(world.path("out")).unwrap();
    fs::write(world.path("out/mine"), "mine").unwrap();
    world.run(&["restore", "latest", "--into", "out"]).exits(2).one_error_with_a_hint().says(&["out"]);
    assert_eq!(world.files("out").len(), 1);
}
