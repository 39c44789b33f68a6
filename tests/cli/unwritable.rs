//! A state folder in which nothing can be written: the repository lies there as well, as it does by default.

use super::world::{Mounted, Ran, UPLOADS, World, tree};
use std::fs;

/// Two snapshots of an application, with everything of Lifeboat's on one small disk.
fn on_one_disk() -> (World, Mounted) {
    let world = World::new();
    let disk = Mounted::tmpfs(&world.path("state"), "24m");
    world.run(&["init", world.app().to_str().unwrap(), "--name", "shop"]).exits(0);
    world.add_to_policy(UPLOADS);
    world.add_to_policy("[retention]\nkeep_last = 1\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0\n");
    for taken in 0..2u8 {
        let blob: Vec<u8> = (0..3).flat_map(|part| super::prune::noise(taken * 3 + part)).collect();
        fs::write(world.app().join("uploads/blob"), blob).unwrap();
        world.run(&["snapshot"]).exits(0);
    }
    (world, disk)
}

/// What a kernel does with a disk that fails: from then on it can only be read. All that only reads goes on.
#[test]
fn on_a_disk_that_can_only_be_read_everything_is_read() {
    let (world, disk) = on_one_disk();
    let tmp = world.path("tmp");
    fs::create_dir_all(&tmp).unwrap();
    let run = |arguments: &[&str]| Ran::from(world.command(arguments).env("TMPDIR", &tmp).output().unwrap());
    disk.remount("ro");
    let out = world.path("out");
    let said = "nothing can be written in";
    for arguments in [
        &["list"][..],
        &["verify", "--deep"],
        &["restore", "latest", "--only", "uploads", "--into", out.to_str().unwrap()],
        &["show", "latest"],
        &["history"],
    ] {
        run(arguments).exits(0).says(&[said, "Read-only file system"]);
    }
    let blob = fs::read(world.app().join("uploads/blob")).unwrap();
    let restored = tree(&out).into_iter().find(|(path, _)| path.ends_with("uploads/blob")).expect("it is restored");
    assert!(restored.1 == blob);
    run(&["status"]);
    run(&["snapshot"]).exits(1).says(&["Read-only file system"]);
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0, "copies are left behind");
    disk.remount("rw");
    world.run(&["snapshot"]).exits(0);
}

/// Not one byte is free: `--now` makes room, without taking any first.
#[test]
fn a_disk_without_a_byte_is_made_free() {
    let (world, _disk) = on_one_disk();
    let ballast = world.path("state/ballast");
    let _ = fs::write(&ballast, vec![7u8; 32 << 20]);
    // Where the shared memory of the databases went with the last who had them open.
    for name in ["state.db-shm", "history.db-shm"] {
        fs::remove_file(world.path("state").join(name)).unwrap();
    }
    let _ = fs::write(world.path("state/rest"), vec![7u8; 1 << 20]);
    world.run(&["list"]).exits(0).says(&["nothing can be written in"]);
    world.run(&["status"]);
    world.run(&["prune", "--now"]).exits(0).shows(&["deleted"]);
    fs::remove_file(ballast).unwrap();
    fs::remove_file(world.path("state/rest")).unwrap();
    world.run(&["verify", "--deep"]).exits(0);
    world.run(&["snapshot"]).exits(0);
}
