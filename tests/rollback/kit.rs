//! The page of `recovery-kit` brings an application back: followed word by word, with the program and without it.

use crate::docker::try_docker;
use crate::follow::{INSTALLS, commands, follow, install, said};
use crate::site::Site;
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn the_page_brings_the_application_back_word_by_word() {
    let site = Site::first(0);
    let world = &site.world;
    let copy = world.path("nas");
    let policy = fs::read_to_string(site.policy_file()).unwrap();
    let policy = policy.replacen("\nurl = ", &format!("\ncopies = [{:?}]\nurl = ", copy.to_str().unwrap()), 1);
    fs::write(site.policy_file(), policy).unwrap();
    site.add_to_policy("[[external]]\nname = \"bucket of pictures\"\n");
    site.run(&["snapshot", "--tag", "v1"]).exits(0);
    let commit = site.git(&["rev-parse", "HEAD"]);

    let kit = ["recovery-kit", "--kept", "safe of the office", "--ask", "Ada, 555 0100"];
    let page = site.run(&kit).exits(0).shows(&["safe of the office", "Ada, 555 0100", "bucket of pictures", "nas"]);
    assert!(!page.out.contains("AGE-SECRET-KEY"), "{}", page.out);
    // The repository was on the machine that is gone; a copy was not. The policy is in the snapshots.
    let identity = fs::read_to_string(world.path("config/identity.txt")).unwrap();
    try_docker(["compose", "-p", &site.project.name, "down", "-v", "--timeout", "1"]);
    for dir in ["app", "config", "state"] {
        assert!(Command::new("rm").arg("-rf").arg(world.path(dir)).status().unwrap().success());
    }
    let rescue = world.path("home/rescue");
    fs::create_dir_all(&rescue).unwrap();
    fs::write(rescue.join("identity.txt"), identity).unwrap();
    install(world.dir.path());

    let all = commands(&page.out);
    assert!(INSTALLS.iter().all(|install| all.contains(install)), "{all:#?}");
    let without = all.iter().position(|c| *c == INSTALLS[1]).unwrap();
    let done = follow(world.dir.path(), &all[..without], None);
    assert!(done.status.success(), "{}\n{}", said(&done), page.out);
    for part in ["v1", "makes: folder", "not restored: bucket of pictures", "recovered", "drill of", "passed"] {
        assert!(said(&done).contains(part), "{part:?} is not in\n{}", said(&done));
    }
    site.is(1);
    assert_eq!(site.git(&["rev-parse", "HEAD"]), commit);

    // And without the program: from the same place, in the same folder.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/break-glass.sh");
    fs::copy(script, rescue.join("break-glass.sh")).unwrap();
    fs::remove_file(world.path("bin/lifeboat")).unwrap();
    let place = all.iter().copied().filter(|c| c.starts_with("REPO="));
    let by_hand: Vec<&str> = [all[0]].into_iter().chain(place).chain(all[without..].iter().copied()).collect();
    let done = follow(world.dir.path(), &by_hand, None);
    assert!(done.status.success(), "{}\n{by_hand:#?}", said(&done));
    let found = Command::new("find").arg(rescue.join("files/data")).args(["-name", "state"]).output().unwrap();
    assert!(!found.stdout.is_empty(), "{}", said(&done));
}
