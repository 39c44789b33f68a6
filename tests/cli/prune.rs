//! `prune` as a person runs it, beside snapshots, on a full disk, killed.

use super::world::{Mounted, World, tree};
use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

const KEEP_TWO: &str = "[retention]\nkeep_last = 2\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0\n";

/// A set-up application of which only the newest two snapshots stay.
fn keeping_two() -> World {
    let world = World::ready();
    world.add_to_policy(KEEP_TWO);
    world
}

pub fn noise(seed: u8) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[seed]);
    let mut bytes = vec![0; 200_000];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Everything below a folder of the repository becomes this much older.
fn age(world: &World, folder: &str, hours: u64) {
    let then = SystemTime::now() - Duration::from_secs(hours * 3600);
    for (path, _) in tree(&world.repository().join(folder)) {
        fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
    }
}

fn age_objects(world: &World) {
    for folder in ["archives", "index", "refs", "manifests"] {
        age(world, folder, 8 * 24);
    }
}

fn objects(world: &World) -> usize {
    ["archives", "index", "refs", "manifests"].iter().map(|f| tree(&world.repository().join(f)).len()).sum()
}

#[test]
fn it_says_what_stays_and_why_and_deletes_in_two_steps() {
    let world = keeping_two();
    for n in 0..4 {
        fs::write(world.app().join("uploads/blob"), noise(n)).unwrap();
        let tags: &[&str] = if n == 0 { &["--tag", "v1"] } else { &[] };
        world.run(&[&["snapshot"], tags].concat()).exits(0);
    }
    let before = world.files("state/repository");
    let table = world.run(&["prune", "--dry-run"]).exits(0);
    for text in [
        "keep",
        "remove",
        "tagged",
        "last 1 of 2",
        "newest complete",
        "no rule keeps it",
        "1 of 4 snapshots would be removed",
    ] {
        assert!(table.out.contains(text), "{text:?} is not in\n{}", table.out);
    }
    assert!(before == world.files("state/repository"), "a dry run changes nothing");
    world.run(&["prune"]).exits(0).shows(&["1 snapshot removed, 3 kept"]);
    assert_eq!(world.snapshots().len(), 3);
    let all = objects(&world);
    age_objects(&world);
    world.run(&["prune"]).exits(0).shows(&["condemned; a prune at least 36 h later deletes them"]);
    assert_eq!(objects(&world), all, "condemned is not deleted");
    age(&world, "trash", 35);
    world.run(&["prune"]).exits(0);
    assert_eq!(objects(&world), all);
    age(&world, "trash", 37);
    world.run(&["prune"]).exits(0).shows(&["deleted"]);
    assert!(objects(&world) < all);
    world.run(&["verify", "--deep"]).exits(0);
    world.run(&["prune"]).exits(0).shows(&["no snapshot removed, 3 kept"]);
    world.run(&["restore", "v1", "--into", "out"]).exits(0);
}

#[test]
fn a_sealed_host_prunes_only_once_the_root_key_has_said_so() {
    let world = keeping_two();
    for n in 0..3 {
        fs::write(world.app().join("uploads/blob"), noise(n)).unwrap();
        world.run(&["snapshot"]).exits(0);
    }
    let away = world.path("usb.txt");
    fs::rename(world.identity(), &away).unwrap();
    let before = world.files("state/repository");
    world.run(&["prune"]).exits(1).says(&["may not remove snapshots", "--identity FILE"]).one_error_with_a_hint();
    assert!(before == world.files("state/repository"));
    world.run(&["prune", "--identity", away.to_str().unwrap()]).exits(0).shows(&["1 snapshot removed"]);
    fs::write(world.app().join("uploads/blob"), noise(9)).unwrap();
    world.run(&["snapshot"]).exits(0);
    world.run(&["prune"]).exits(0).shows(&["1 snapshot removed"]);
    world.run(&["verify", "--deep", "--identity", away.to_str().unwrap()]).exits(0);
}

#[test]
fn damage_stops_it_and_the_loss_is_accepted_by_hand_only() {
    let world = keeping_two();
    for n in 0..3 {
        fs::write(world.app().join("uploads/blob"), noise(n)).unwrap();
        world.run(&["snapshot"]).exits(0);
    }
    let headers = tree(&world.repository().join("snapshots"));
    fs::write(&headers[1].0, "{}\n").unwrap();
    let before = world.files("state/repository");
    world.run(&["prune"]).exits(4).says(&["damaged", "--accept-lost"]).one_error_with_a_hint();
    world.run(&["prune", "--accept-lost"]).exits(2).says(&["give up the snapshots 2", "--yes"]).one_error_with_a_hint();
    assert!(before == world.files("state/repository"), "nothing is removed meanwhile");
    world.run(&["prune", "--accept-lost", "--yes"]).exits(0).shows(&["1 snapshot recorded as lost"]);
    world.run(&["verify", "--deep"]).exits(0);
    world.run(&["list"]).exits(0);
}

/// Snapshots and prunes in two processes at once, with objects that are condemned while they are used again, and others
/// that are due: every snapshot is whole.
#[test]
fn beside_snapshots() {
    let world = keeping_two();
    for n in 0..4 {
        fs::write(world.app().join("uploads/blob"), noise(n)).unwrap();
        world.run(&["snapshot"]).exits(0);
    }
    world.run(&["prune"]).exits(0);
    age_objects(&world);
    world.run(&["prune"]).exits(0);
    age(&world, "trash", 40);
    std::thread::scope(|scope| {
        let pruner = scope.spawn(|| {
            for _ in 0..25 {
                world.run(&["prune"]).exits(0);
            }
        });
        for round in 0..8u8 {
            // What was removed is wanted again, and what is wanted is removed.
            fs::write(world.app().join("uploads/blob"), noise(round % 3)).unwrap();
            world.run(&["snapshot", "--force"]).exits(0);
        }
        pruner.join().unwrap();
    });
    world.run(&["verify", "--deep"]).exits(0);
    world.run(&["restore", "latest", "--into", "out"]).exits(0);
    let restored = tree(&world.path("out")).into_iter().find(|(path, _)| path.ends_with("uploads/blob")).unwrap();
    assert!(restored.1 == noise(7 % 3));
}

/// A disk that is full: `--now` makes room, and the next snapshot fits.
#[test]
fn a_full_disk_is_made_free_at_once() {
    let world = World::new();
    let _disk = Mounted::tmpfs(&world.path("disk"), "8m");
    let repository = world.path("disk/repository");
    world
        .run(&["init", world.app().to_str().unwrap(), "--name", "shop", "--repository", repository.to_str().unwrap()])
        .exits(0);
    world.add_to_policy(super::world::UPLOADS);
    world.add_to_policy("[retention]\nkeep_last = 1\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0\n");
    let mut taken = 0u8;
    let failed = loop {
        let blob: Vec<u8> = (0..5).flat_map(|part| noise(taken * 5 + part)).collect();
        fs::write(world.app().join("uploads/blob"), blob).unwrap();
        let ran = world.run(&["snapshot"]);
        if ran.code != 0 {
            break ran;
        }
        taken += 1;
        assert!(taken < 20, "8 MiB do not hold twenty times 1 MB");
    };
    failed.exits(1).says(&["must stay free"]);
    // Writers stopped at the reserve; something else fills the rest, but for what a few signed lines need.
    fs::write(world.path("disk/room"), vec![0u8; 64 << 10]).unwrap();
    let _ = fs::write(world.path("disk/ballast"), vec![0u8; 16 << 20]);
    fs::remove_file(world.path("disk/room")).unwrap();
    world.run(&["prune", "--now"]).exits(0).shows(&["deleted"]);
    fs::remove_file(world.path("disk/ballast")).unwrap();
    world.run(&["verify", "--deep"]).exits(0);
    world.run(&["snapshot"]).exits(0);
    assert_eq!(world.json(&["verify"])["unreferenced"]["objects"], 0);
}

/// `prune --now` and a snapshot that is being written exclude each other, with exit code 5.
#[test]
fn at_once_it_wants_to_be_alone() {
    let world = keeping_two();
    world.run(&["snapshot"]).exits(0);
    let begun = world.path("begun");
    let script = format!("echo x; touch {}; sleep 4", begun.display());
    world.add_to_policy(&format!(
        "[[source]]\nkind = \"command\"\nname = \"slow\"\nrun = [\"sh\", \"-c\", {script:?}]\noutput = \"o\"\n"
    ));
    let mut writer = world.command(&["snapshot"]).spawn().unwrap();
    let since = SystemTime::now();
    while !begun.exists() {
        assert!(since.elapsed().unwrap() < Duration::from_secs(20), "the source is never captured");
        std::thread::sleep(Duration::from_millis(20));
    }
    world.run(&["prune", "--now"]).exits(5).says(&["a snapshot is being written"]).one_error_with_a_hint();
    // Without --now nobody waits for anybody.
    world.run(&["prune"]).exits(0);
    assert!(writer.wait().unwrap().success());
    world.run(&["prune", "--now"]).exits(0);
    world.run(&["verify", "--deep"]).exits(0);
}

/// The command killed at every link and unlink: the next one goes on.
#[test]
fn killed_by_the_kernel_it_goes_on() {
    let world = keeping_two();
    for n in 0..3 {
        fs::write(world.app().join("uploads/blob"), noise(n)).unwrap();
        world.run(&["snapshot"]).exits(0);
    }
    world.run(&["prune"]).exits(0);
    age_objects(&world);
    world.run(&["prune"]).exits(0);
    fs::write(world.app().join("uploads/blob"), noise(7)).unwrap();
    world.run(&["snapshot"]).exits(0);
    age_objects(&world);
    age(&world, "trash", 40);
    // Now it has all there is to do: record, header, trash, objects, trash object.
    let copy = |from: &str, to: &str| {
        let _ = fs::remove_dir_all(world.path(to));
        assert!(Command::new("cp").arg("-a").args([world.path(from), world.path(to)]).status().unwrap().success());
    };
    copy("state", "saved");
    let mut points = 0;
    for syscalls in ["linkat", "unlink,unlinkat"] {
        for n in 1.. {
            copy("saved", "state");
            let inner = world.command(&["prune"]);
            let mut traced = Command::new("strace");
            let (trace, inject) = (format!("trace={syscalls}"), format!("inject={syscalls}:signal=SIGKILL:when={n}"));
            traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]);
            traced.arg(inner.get_program()).args(inner.get_args()).env_clear().current_dir(world.dir.path());
            traced.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", world.dir.path());
            let output = traced.output().unwrap();
            if output.status.success() {
                break;
            }
            points += 1;
            world.run(&["verify", "--deep"]).exits(0);
            world.run(&["prune"]).exits(0);
            world.run(&["verify", "--deep"]).exits(0);
            assert_eq!(world.snapshots().len(), 2, "{syscalls} {n}");
            age_objects(&world);
            world.run(&["prune"]).exits(0);
            age(&world, "trash", 40);
            world.run(&["prune"]).exits(0);
            assert_eq!(world.json(&["verify"])["unreferenced"]["objects"], 0, "{syscalls} {n}: nothing is left over");
        }
    }
    assert!(points >= 4, "only {points} points were tried");
}

/// What is waste is shown, goes with `--repack`, and needs the identity.
#[test]
fn waste_is_shown_and_goes() {
    let world = keeping_two();
    let blob = |n: u8| (0..10).flat_map(|part| noise(n + part)).collect::<Vec<u8>>();
    let mut mixed = blob(0);
    fs::write(world.app().join("uploads/blob"), &mixed).unwrap();
    world.run(&["snapshot"]).exits(0);
    for n in [100, 150] {
        mixed[500_000..].copy_from_slice(&blob(n)[500_000..]);
        fs::write(world.app().join("uploads/blob"), &mixed).unwrap();
        world.run(&["snapshot"]).exits(0);
    }
    age_objects(&world);
    let before = world.files("state/repository");
    world.run(&["prune", "--repack", "--dry-run"]).exits(0).shows(&[
        "WASTE",
        "rewrite",
        "less than 60 % of each is needed",
        "1 archive (",
        "would be rewritten to about",
    ]);
    assert!(before == world.files("state/repository"), "a dry run changes nothing");
    let away = world.path("usb.txt");
    fs::rename(world.identity(), &away).unwrap();
    world.run(&["prune", "--repack"]).exits(2).says(&["repacking needs the identity"]).one_error_with_a_hint();
    assert!(before == world.files("state/repository"));
    fs::rename(&away, world.identity()).unwrap();
    world.run(&["prune", "--repack"]).exits(0).shows(&[
        "1 archive (",
        "rewritten to 1",
        "for 2 snapshots",
        "condemned",
    ]);
    world.run(&["verify", "--deep"]).exits(0);
    age(&world, "trash", 37);
    world.run(&["prune"]).exits(0).shows(&["deleted"]);
    world.run(&["verify", "--deep"]).exits(0);
    world.run(&["restore", "latest", "--into", "out"]).exits(0);
    let restored = tree(&world.path("out")).into_iter().find(|(path, _)| path.ends_with("uploads/blob")).unwrap();
    assert!(restored.1 == mixed);
    world.run(&["snapshot"]).exits(0);
    world.run(&["show", "latest"]).exits(0);
    // What is damaged is named, and the rest is done.
    for (archive, bytes) in tree(&world.repository().join("archives")) {
        // Of the large ones one is needed, and which is the larger, chance decides.
        if bytes.len() > 1_000_000 {
            fs::remove_file(&archive).unwrap();
        }
    }
    world.run(&["prune", "--repack"]).exits(4).says(&["left alone", "is missing"]);
}
