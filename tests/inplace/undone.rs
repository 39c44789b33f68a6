//! Each step fails once, by real means: the old state is back, whole and well, and the exit code says so.

use crate::files::{left_over, same, state};
use crate::world::{UPLOADS, World};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const RESTORE: &[&str] = &["restore", "good", "--in-place", "--yes"];

/// A mount that goes when this does.
struct Mount(PathBuf);

impl Mount {
    fn new(arguments: &[&str], at: &Path) -> Self {
        let done = Command::new("mount").args(arguments).arg(at).output().unwrap();
        assert!(done.status.success(), "these tests mount file systems: {done:?}");
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Uploads of one file, saved as `good` and changed since.
fn world(policy: &str) -> World {
    let world = World::ready();
    world.add_to_policy(policy);
    world.run(&["snapshot", "--tag", "good"]).exits(0);
    spoil(&world);
    world
}

fn spoil(world: &World) {
    fs::write(world.app().join("uploads/one.txt"), "changed\n").unwrap();
    fs::write(world.app().join(".env"), "MODE=broken\n").unwrap();
}

/// It fails with this code, and nothing is different from before.
#[track_caller]
fn fails(world: &World, code: i32, says: &[&str]) {
    let before = state(&world.app());
    world.run(RESTORE).exits(code).says(says);
    same(&before, &state(&world.app()));
    assert_eq!(left_over(world), Vec::<PathBuf>::new());
    world.run(&["restore", "--resume"]).exits(2).says(&["no transaction"]);
    assert!(!world.run(&["list"]).exits(0).err.contains("cut short"));
}

#[test]
fn a_health_check_that_fails_afterwards() {
    let world = world(concat!(
        "[hooks]\non_failure = \"echo $LIFEBOAT_POLICY $LIFEBOAT_WHAT > ../failed\"\n",
        "[[health]]\ncommand = [\"grep\", \"-q\", \"changed\", \"uploads/one.txt\"]\nattempts = 2\ninterval = \"1s\"\n",
    ));
    fails(&world, 1, &["not well afterwards", "grep", "as it was before"]);
    assert_eq!(fs::read_to_string(world.path("failed")).unwrap(), "shop restore-in-place\n");
    let report = world.json(RESTORE);
    assert_eq!((&report["outcome"], &report["exit_code"]), (&"undone".into(), &1.into()), "{report:#}");
    assert!(report["steps"].as_array().unwrap().iter().any(|s| s["name"] == "undo: bring uploads back"), "{report:#}");
}

#[test]
fn a_health_check_that_failed_before_only_warns() {
    let world = world("[[health]]\ncommand = [\"false\"]\nattempts = 1\n");
    world.run(RESTORE).exits(0).says(&["command false fails (as before)"]);
    assert_eq!(fs::read_to_string(world.app().join("uploads/one.txt")).unwrap(), "one\n");
}

#[test]
fn hooks_that_fail() {
    let world = world("[hooks]\nbefore_rollback = \"echo no-way >&2; exit 3\"\n");
    fails(&world, 1, &["ended with status 3: no-way"]);
    let after = world_with_after_hook();
    after.run(RESTORE).exits(0).says(&["ended with status 1"]);
    assert_eq!(fs::read_to_string(after.app().join("uploads/one.txt")).unwrap(), "one\n");
}

fn world_with_after_hook() -> World {
    world("[hooks]\nafter_rollback = \"false\"\n")
}

#[test]
fn no_room_beside() {
    let world = World::ready();
    let uploads = world.app().join("uploads");
    let _mount = Mount::new(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"], &uploads);
    fs::write(uploads.join("big"), vec![1u8; 700_000]).unwrap();
    world.run(&["snapshot", "--tag", "good"]).exits(0);
    let time = fs::metadata(uploads.join("big")).unwrap().modified().unwrap();
    fs::write(uploads.join("big"), vec![2u8; 700_000]).unwrap();
    fails(&world, 1, &["takes", "are free there"]);
    // Under the same size and time it is only found to be different while it is laid out: the disk is really full then.
    fs::File::options().write(true).open(uploads.join("big")).unwrap().set_modified(time).unwrap();
    fails(&world, 1, &["No space left"]);
}

/// Two places on one file system, which no word for them tells: there is room for each of them, and not for both.
#[test]
fn no_room_beside_for_two_on_one_file_system() {
    let world = World::ready();
    let disk = world.path("disk");
    fs::create_dir(&disk).unwrap();
    let _disk = Mount::new(&["-t", "tmpfs", "-o", "size=3m", "tmpfs"], &disk);
    let mut mounts = Vec::new();
    let mut places = Vec::new();
    let mut sources = String::new();
    for name in ["east", "west"] {
        let (there, here) = (disk.join(name), world.app().join("uploads").join(name));
        fs::create_dir(&there).unwrap();
        fs::create_dir(&here).unwrap();
        mounts.push(Mount::new(&["--bind", there.to_str().unwrap()], &here));
        fs::create_dir(here.join("x")).unwrap();
        fs::write(here.join("x/big"), vec![1u8; 900_000]).unwrap();
        sources += &format!("[[source]]\nkind = \"files\"\nname = \"{name}\"\npaths = [{:?}]\n", here.join("x"));
        places.push(here);
    }
    world.change_policy(UPLOADS, &sources);
    world.run(&["snapshot", "--tag", "good"]).exits(0);
    for here in &places {
        fs::write(here.join("x/big"), vec![2u8; 900_000]).unwrap();
    }
    world.run(&["restore", "good", "--in-place", "--only", "east", "--dry-run"]).exits(0);
    world.run(&["restore", "good", "--in-place", "--only", "west", "--dry-run"]).exits(0);
    let both = format!("at {} and {}, and ", places[0].display(), places[1].display());
    fails(&world, 1, &["takes", &both, "are free there"]);
}

#[test]
fn a_target_that_cannot_be_written() {
    let world = World::ready();
    let uploads = world.app().join("uploads");
    let _mount = Mount::new(&["-t", "tmpfs", "tmpfs"], &uploads);
    fs::write(uploads.join("one.txt"), "one\n").unwrap();
    world.run(&["snapshot", "--tag", "good"]).exits(0);
    fs::write(uploads.join("one.txt"), "changed\n").unwrap();
    let remount = |how: &str| Command::new("mount").args(["-o", how]).arg(&uploads).status().unwrap().success();
    assert!(remount("remount,ro"));
    fails(&world, 1, &["cannot be written to", "Read-only"]);
    assert!(remount("remount,rw"));
}

#[test]
fn a_switch_that_fails_half_way() {
    let world = world("");
    for n in 0..20 {
        fs::write(world.app().join(format!("uploads/f{n:02}")), "good\n").unwrap();
    }
    world.run(&["snapshot", "--tag", "better"]).exits(0);
    for n in 0..20 {
        fs::write(world.app().join(format!("uploads/f{n:02}")), "changed\n").unwrap();
    }
    // What is a mount of its own cannot be renamed.
    let held = world.app().join("uploads/f10");
    let _mount = Mount::new(&["--bind", held.to_str().unwrap()], &held);
    let before = state(&world.app());
    world.run(&["restore", "better", "--in-place", "--yes"]).exits(1).says(&["f10", "as it was before"]);
    same(&before, &state(&world.app()));
    assert_eq!(left_over(&world), Vec::<PathBuf>::new());
}

#[test]
fn a_signal_in_the_middle() {
    // Going back takes longer than a run that is told to stop may take otherwise.
    let world = world("[hooks]\nbefore_rollback = \"touch ../began; sleep 30\"\non_failure = \"sleep 7\"\n");
    let before = state(&world.app());
    let mut command = world.command(RESTORE);
    let child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    while !world.path("began").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{output:?}");
    same(&before, &state(&world.app()));
    assert_eq!(left_over(&world), Vec::<PathBuf>::new());
    assert!(!world.run(&["list"]).exits(0).err.contains("cut short"));
}

/// The command's own data are in a file; restoring fails when told to.
const QUEUE: &str = concat!(
    "[[source]]\nkind = \"command\"\nname = \"queue\"\nrun = [\"cat\", \"queue\"]\n",
    "restore = [\"sh\", \"-c\", \"cat > queue; test ! -e fail || { rm fail; exit 4; }\"]\n",
    "check = [\"sh\", \"-c\", \"cmp -s - queue\"]\n",
);

#[test]
fn a_command_gets_its_output_back_and_its_failure_undoes_all() {
    let world = World::ready();
    world.add_to_policy(QUEUE);
    fs::write(world.app().join("queue"), "good $(id)\n").unwrap();
    world.run(&["snapshot", "--tag", "good"]).exits(0);
    spoil(&world);
    fs::write(world.app().join("queue"), "newer\n").unwrap();
    fs::write(world.app().join("fail"), "").unwrap();
    let read = |name: &str| fs::read_to_string(world.app().join(name)).unwrap();
    world.run(RESTORE).exits(1).says(&["ended with status 4", "as it was before"]);
    assert_eq!((read("queue"), read("uploads/one.txt")), ("newer\n".into(), "changed\n".into()));
    assert_eq!(left_over(&world), Vec::<PathBuf>::new(), "the queue's content stays nowhere");
    world.run(RESTORE).exits(0);
    assert_eq!((read("queue"), read("uploads/one.txt")), ("good $(id)\n".into(), "one\n".into()));
    world.run(&["restore", "--undo", "--yes"]).exits(0);
    assert_eq!((read("queue"), read("uploads/one.txt")), ("newer\n".into(), "changed\n".into()));
}
