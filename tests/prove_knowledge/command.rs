//! The output of commands, proved by the policy's own check.

use crate::docker::TestContainer;
use crate::world::{World, assert_green, assert_only, assert_red, write};
use lifeboat::sources::proof::{Proof, Verdict};
use std::time::{Duration, Instant};

fn sources(check: &str) -> String {
    format!("[[source]]\nkind = \"command\"\nname = \"defs\"\nrun = [\"cat\", \"defs.json\"]\n{check}\n")
}

fn world(check: &str) -> World {
    World::new(&sources(check), |root| {
        write(&root.join("defs.json"), "{\"users\": []}\n");
        write(&root.join("expected"), "{\"users\": []}\n");
    })
}

fn proof(check: &str) -> Proof {
    world(check).proof("defs")
}

#[test]
fn a_good_output_is_green_and_without_a_check_it_says_so() {
    // It runs in the application's folder and gets every byte.
    let green = proof("check = [\"cmp\", \"-\", \"expected\"]");
    assert_green(&green, &[]);
    assert_eq!(green.restored, ["defs.out (14 B)"]);
    assert_green(&proof(""), &["check"]);
    let without = proof("");
    assert_eq!(without.checks[1].why.as_deref(), Some("the policy gives no check command"));
    assert!(without.checks[0].found.starts_with("14 bytes, sha256 "), "{without:?}");
}

#[test]
fn a_check_that_fails_is_red_with_its_words() {
    let red = proof("check = [\"sh\", \"-c\", \"cat >&2; exit 3\"]");
    assert_only(&red, &["check"]);
    assert_red(&red, "check", &["status 3", "users"]);
    let red = proof("check = [\"grep\", \"-q\", \"no-such-word\"]");
    assert_red(&red, "check", &["grep: status 1"]);
    let skipped = proof("check = [\"no-such-program-here\"]");
    assert_green(&skipped, &["check"]);
}

#[test]
fn a_check_may_leave_its_input_unread_or_write_without_end() {
    let world = World::new(
        "[[source]]\nkind = \"command\"\nname = \"big\"\nrun = [\"head\", \"-c\", \"8000000\", \"/dev/zero\"]\ncheck = [\"true\"]\n",
        |_| {},
    );
    assert_green(&world.proof("big"), &[]);
    let world = World::new(
        "[[source]]\nkind = \"command\"\nname = \"big\"\nrun = [\"head\", \"-c\", \"8000000\", \"/dev/zero\"]\ncheck = [\"cat\"]\n",
        |_| {},
    );
    assert_green(&world.proof("big"), &[]);
    let mut world = self::world("check = [\"sh\", \"-c\", \"cat; sleep 60\"]");
    world.timeout = Duration::from_secs(1);
    let begin = Instant::now();
    assert_red(&world.proof("defs"), "check", &["took longer than"]);
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn an_output_that_is_shorter_than_it_was_is_red() {
    let world = world("check = [\"true\"]");
    let mut taken = world.take();
    taken[0].bytes("defs.out").truncate(5);
    let proof = world.prove(&taken, "defs");
    assert_only(&proof, &["content"]);
    assert_red(&proof, "content", &["expected 14 bytes, found 5 bytes"]);
}

#[test]
fn in_a_service_s_container_its_secrets_are_kept() {
    crate::docker::engine();
    let container = TestContainer::idle(&["-e", "APP_TOKEN=canary-in-container", "--network", "none"]);
    let of = |check: &str| {
        let sources = format!(
            "[[source]]\nkind = \"command\"\nname = \"defs\"\ncontainer = \"{}\"\nrun = [\"sh\", \"-c\", \"echo x\"]\ncheck = [\"sh\", \"-c\", \"{check}\"]\n",
            container.name
        );
        World::new(&sources, |_| {}).proof("defs")
    };
    assert_green(&of("read line; test \\\"$line\\\" = x -a -n \\\"$APP_TOKEN\\\""), &[]);
    let red = of("echo refused for $APP_TOKEN >&2; exit 1");
    assert_red(&red, "check", &["refused for ***"]);
    assert!(!format!("{red:?}").contains("canary"));
    let name = container.name.clone();
    let world = World::new(
        &format!(
            "[[source]]\nkind = \"command\"\nname = \"defs\"\ncontainer = \"{name}\"\nrun = [\"sh\", \"-c\", \"echo x\"]\ncheck = [\"true\"]\n"
        ),
        |_| {},
    );
    let taken = world.take();
    drop(container);
    let proof = world.prove(&taken, "defs");
    let skipped = proof.checks.iter().find(|c| c.verdict == Verdict::Skipped).unwrap();
    assert!(skipped.why.as_deref().unwrap().contains("cannot be reached"), "{skipped:?}");
}
