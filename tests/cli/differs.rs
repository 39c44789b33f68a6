//! What a restore could not bring back is said, in text and in JSON: by an ordinary user, and onto file systems that
//! hold less than the one that was captured.

use crate::world::{Ran, World};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn tool(argv: &[&str]) {
    let out = Command::new(argv[0]).args(&argv[1..]).output().unwrap_or_else(|e| panic!("{argv:?}: {e}"));
    assert!(out.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Uploads that only root on a file system with everything can lay out. Needs root.
fn rich() -> World {
    let world = World::new();
    let uploads = world.app().join("uploads");
    let text = |name: &str| uploads.join(name).to_str().unwrap().to_owned();
    for name in ["acl", "caps", "setuid", "attributes", "owned"] {
        fs::write(uploads.join(name), name).unwrap();
    }
    for n in 0..40 {
        fs::write(uploads.join(format!("of-another-{n}")), "x").unwrap();
        std::os::unix::fs::chown(uploads.join(format!("of-another-{n}")), Some(1234), Some(4321)).unwrap();
    }
    fs::hard_link(uploads.join("one.txt"), uploads.join("also-one")).unwrap();
    tool(&["setfacl", "-m", "u:12345:rw,g::-,m::rw", &text("acl")]);
    tool(&["setcap", "cap_net_bind_service=+ep", &text("caps")]);
    tool(&["setfattr", "-n", "user.note", "-v", "n", &text("attributes")]);
    tool(&["touch", "-d", "@1700000000.123456789", &text("attributes")]);
    std::os::unix::fs::chown(uploads.join("owned"), Some(1000), Some(1000)).unwrap();
    fs::set_permissions(uploads.join("setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    world.run(&["init", world.app().to_str().unwrap(), "--name", "shop"]).exits(0);
    world.add_to_policy(crate::world::UPLOADS);
    world.run(&["snapshot"]).exits(0);
    world
}

/// The sorts of the uploads' differences and how many there are of each.
fn sorts(document: &Value) -> BTreeMap<String, u64> {
    let sources = document["sources"].as_array().unwrap();
    let tree = &sources.iter().find(|s| s["name"] == "uploads").unwrap()["tree"];
    let summary = tree["summary"].as_array().unwrap();
    let listed = tree["differences"].as_array().unwrap().len() as u64 + tree["unlisted"].as_u64().unwrap();
    assert_eq!(listed, summary.iter().map(|t| t["count"].as_u64().unwrap()).sum::<u64>());
    summary.iter().map(|t| (t["aspect"].as_str().unwrap().to_owned(), t["count"].as_u64().unwrap())).collect()
}

/// What is said of one path.
fn said<'a>(document: &'a Value, name: &str) -> Vec<&'a str> {
    let sources = document["sources"].as_array().unwrap();
    let tree = &sources.iter().find(|s| s["name"] == "uploads").unwrap()["tree"];
    let all = tree["differences"].as_array().unwrap().iter();
    let all = all.filter(|d| d["path"].as_str().unwrap().ends_with(name)).map(|d| d["aspect"].as_str().unwrap());
    let mut all: Vec<&str> = all.collect();
    all.sort();
    all
}

fn restored(world: &World, into: &Path) -> PathBuf {
    into.join("uploads").join(world.app().canonicalize().unwrap().strip_prefix("/").unwrap()).join("uploads")
}

/// The command as `nobody`, with a program of its own that everybody may run.
fn as_nobody(world: &World, args: &[&str]) -> Ran {
    let program = world.path("program");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_lifeboat"), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let given = world.dir.path().to_str().unwrap();
        tool(&["find", given, "-not", "-path", "*/app/*", "-exec", "chown", "-h", "65534:65534", "{}", "+"]);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    command.arg("--config-dir").arg(world.path("config")).arg("--state-dir").arg(world.path("state")).args(args);
    command.env_clear().env("HOME", world.dir.path()).env("PATH", std::env::var_os("PATH").unwrap());
    command.current_dir(world.dir.path()).stdin(Stdio::null()).output().unwrap().into()
}

#[test]
fn an_ordinary_user_is_told_what_only_root_can_restore() {
    let world = rich();
    let into = world.path("mine");
    let ran = as_nobody(&world, &["restore", "latest", "--into", into.to_str().unwrap(), "--privileged", "--json"]);
    let document = ran.exits(0).json();
    let sorts = sorts(&document);
    // Two files of the application, six made above, forty of another and the folders; one of two names of a file.
    assert!((51..70).contains(&sorts["owner"]), "{sorts:?}");
    assert_eq!((sorts["capabilities"], sorts.get("acl"), sorts.get("time")), (1, None, None), "{sorts:?}");
    assert_eq!(said(&document, "uploads/caps"), ["capabilities", "owner"]);
    assert_eq!(said(&document, "uploads/owned"), ["owner"]);
    let there = restored(&world, &into);
    assert_eq!(fs::metadata(there.join("owned")).unwrap().uid(), 65534);
    assert_eq!(fs::metadata(there.join("one.txt")).unwrap().nlink(), 2);
    // In text: counted, the first of each sort shown, and nothing of it on standard error.
    let again = world.path("again");
    let ran = as_nobody(&world, &["restore", "latest", "--into", again.to_str().unwrap()]).exits(0);
    let ran = ran.shows(&[
        "restored, with differences",
        "differs: source \"uploads\": ",
        " owners",
        "1 setuid or setgid, 1 set of capabilities",
        "owner 0:0 not restored: Operation not permitted",
        "more of this sort",
        "setuid not restored: it needs --privileged",
    ]);
    assert!(ran.out.lines().count() < 45, "{}", ran.out);
}

/// Unmounts what it mounted.
struct Mount(PathBuf);

impl Mount {
    fn new(at: PathBuf, argv: &[&str]) -> Self {
        fs::create_dir(&at).unwrap();
        tool(&[&["mount"], argv, &[at.to_str().unwrap()]].concat());
        Self(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn what_a_file_system_cannot_hold_is_told() {
    let world = rich();
    let mount = Mount::new(world.path("plain"), &["-t", "ramfs", "ramfs"]);
    let into = mount.0.join("out");
    let ran = world.run(&["restore", "latest", "--into", into.to_str().unwrap(), "--privileged", "--json"]);
    let document = ran.exits(0).json();
    let expected = [("acl", 1), ("attribute", 1), ("capabilities", 1)];
    assert_eq!(sorts(&document), expected.map(|(a, n)| (a.to_owned(), n)).into());
    assert_eq!(said(&document, "uploads/acl"), ["acl"]);
    // Without the ACL its mask would be the group's permission, which the group did not have.
    let mode = fs::metadata(restored(&world, &into).join("acl")).unwrap().mode();
    assert_eq!(mode & 0o070, 0, "{mode:o}");
    drop(mount);
    // Inodes of 128 bytes keep whole seconds, and drop the rest without a word.
    let image = world.path("image");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    tool(&["mkfs.ext4", "-q", "-I", "128", "-O", "^has_journal", image.to_str().unwrap()]);
    let mount = Mount::new(world.path("seconds"), &["-o", "loop", image.to_str().unwrap()]);
    let into = mount.0.join("out");
    let ran = world.run(&["restore", "latest", "--into", into.to_str().unwrap(), "--privileged", "--json"]);
    let document = ran.exits(0).json();
    assert!(said(&document, "uploads/attributes").contains(&"time"), "{document:#}");
    let ran = world.run(&["restore", "latest", "--into", mount.0.join("out2").to_str().unwrap()]).exits(0);
    ran.shows(&["time not restored: this file system does not keep it", " times"]);
    drop(mount);
}

/// The uploads put back over the live ones.
fn in_place<'a>(id: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["restore", id, "--in-place", "--only", "uploads", "--yes"], more].concat()
}

fn give(paths: &[&Path]) {
    paths.iter().for_each(|path| std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap());
}

#[test]
fn an_ordinary_user_is_told_what_a_restore_in_place_leaves_different() {
    let world = rich();
    let uploads = world.app().join("uploads");
    let id = world.snapshots().remove(0);
    as_nobody(&world, &["list"]).exits(0);
    // Some is gone and laid out anew, of some only the owner is another, and a folder of another's is newer.
    for name in ["caps", "owned", "setuid"] {
        fs::remove_file(uploads.join(name)).unwrap();
    }
    fs::remove_dir_all(uploads.join("a")).unwrap();
    (0..40).for_each(|n| give(&[&uploads.join(format!("of-another-{n}"))]));
    fs::create_dir(uploads.join("newer")).unwrap();
    give(&[&world.app(), &uploads]);
    let document = as_nobody(&world, &in_place(&id, &["--privileged", "--exact", "--json"])).exits(0).json();
    // Those three, the file below and its folder, the forty, and the uploads' own folder.
    let expected = [("capabilities", 1), ("owner", 3 + 2 + 40 + 1)];
    assert_eq!(sorts(&document), expected.map(|(a, n)| (a.to_owned(), n)).into(), "{document:#}");
    assert_eq!(said(&document, "uploads/caps"), ["capabilities", "owner"]);
    for name in ["uploads/owned", "uploads/of-another-7", "uploads/a", "uploads/a/two.bin", "app/uploads"] {
        assert_eq!(said(&document, name), ["owner"], "{name}");
    }
    assert_eq!(said(&document, "uploads/acl"), Vec::<&str>::new(), "it is as it was");
    assert_eq!(fs::metadata(uploads.join("owned")).unwrap().uid(), 65534);
    assert!(!uploads.join("newer").exists());

    // What nobody may give back to root is told of the way back as well.
    let ran = as_nobody(&world, &["restore", "--undo", "--yes"]).exits(0);
    ran.says(&["uploads/newer: owner 0:0 not restored: Operation not permitted"]);

    // In text: counted, the first of each sort shown; what needs more than was allowed is named.
    let ran = as_nobody(&world, &in_place(&id, &[])).exits(0).shows(&[
        "differs: source \"uploads\": 46 owners, 1 setuid or setgid, 1 set of capabilities",
        "owner 1234:4321 not restored: Operation not permitted",
        "and 41 more of this sort",
        "uploads/setuid: setuid not restored: it needs --privileged",
        "uploads/caps: attribute security.capability not restored: it needs --privileged",
        "is live in shop",
    ]);
    assert!(ran.out.lines().count() < 45, "{}", ran.out);
}

#[test]
fn a_restore_in_place_tells_what_the_file_system_cannot_hold_also_when_it_was_cut_short() {
    let world = rich();
    let uploads = world.app().join("uploads");
    tool(&["setfattr", "-n", "user.folder", "-v", "f", uploads.join("a").to_str().unwrap()]);
    world.run(&["snapshot", "--tag", "good"]).exits(0);
    fs::remove_dir_all(&uploads).unwrap();
    let mount = Mount::new(uploads.canonicalize().unwrap_or(uploads), &["-t", "ramfs", "ramfs"]);
    let expected = [("acl", 1), ("attribute", 2), ("capabilities", 1)].map(|(a, n)| (a.to_owned(), n)).into();
    let arguments = in_place("good", &["--privileged"]);
    let document = world.json(&arguments);
    assert_eq!((document["outcome"].as_str(), sorts(&document)), (Some("done"), expected), "{document:#}");
    assert_eq!(said(&document, "uploads/a"), ["attribute"], "a folder is told of as well");
    assert_eq!(said(&document, "uploads/acl"), ["acl"]);
    assert_eq!(document["warnings"], Value::Array(Vec::new()), "{document:#}");

    // Killed when the first file has been replaced: whoever brings it to its end tells all of it.
    let plain = world.command(&arguments);
    let live = fs::canonicalize(&mount.0).unwrap();
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-P"]).arg(&live);
    command.args(["-e", "trace=renameat", "-e", "inject=renameat:signal=KILL:when=1"]);
    command.arg(plain.get_program()).args(plain.get_args()).env_clear().env("HOME", world.dir.path());
    let killed = command.env("PATH", std::env::var_os("PATH").unwrap()).output().unwrap();
    assert!(!killed.status.success(), "{killed:?}");
    let resumed = world.json(&["restore", "--resume"]);
    assert_eq!((resumed["outcome"].as_str(), &sorts(&resumed)), (Some("done"), &sorts(&document)), "{resumed:#}");
    let differences = |document: &Value| document["sources"][0]["tree"]["differences"].clone();
    assert_eq!(differences(&resumed), differences(&document));
}
