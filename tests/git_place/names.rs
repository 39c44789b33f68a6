//! Names that snapshots leave in the repository, and git tags on request: the real binary.

use crate::bench::{capture, commit, git, git_as, write};
use crate::world::World;
use crate::{Lab, SNAPSHOT};

fn world() -> World {
    let world = World::ready();
    let app = world.app();
    git(&app, &["init", "-q"]);
    write(&app, ".gitignore", ".env\nuploads\n");
    commit(&app, "first");
    world
}

/// What names of ours are there, and at what.
fn names(world: &World) -> Vec<String> {
    let text = git(&world.app(), &["for-each-ref", "--format=%(refname) %(objectname)", "refs/lifeboat"]);
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_snapshot_keeps_its_commit_until_it_is_pruned() {
    let world = world();
    let app = world.app();
    write(&app, "a", "1");
    let lost = commit(&app, "that goes");
    let first = world.json(&["snapshot"]);
    let id = first["header"]["id"].as_str().unwrap().to_owned();
    assert_eq!(names(&world), [format!("refs/lifeboat/shop/{id} {lost}")]);
    let before = first["sources"].as_array().unwrap().iter().find(|s| s["kind"] == "git").unwrap()["bytes"].clone();
    // Not in the bundle, not in the facts: nothing new for the next one.
    let second = world.json(&["snapshot"]);
    let after = second["sources"].as_array().unwrap().iter().find(|s| s["kind"] == "git").unwrap()["bytes"].clone();
    assert_eq!(before, after);
    assert_eq!(names(&world).len(), 2);
    git(&app, &["reset", "-q", "--hard", "HEAD~1"]);
    git(&app, &["reflog", "expire", "--expire=now", "--all"]);
    git(&app, &["gc", "-q", "--prune=now"]);
    git(&app, &["cat-file", "-e", &lost]);
    let kept = world.json(&["snapshot"])["header"]["id"].as_str().unwrap().to_owned();
    world.add_to_policy("[retention]\nkeep_last = 1\nkeep_daily = 0\nkeep_weekly = 0\nkeep_monthly = 0");
    world.run(&["prune", "--dry-run"]).exits(0);
    assert_eq!(names(&world).len(), 3, "a dry run changes nothing");
    world.run(&["prune"]).exits(0);
    let stay = world.snapshots();
    assert!(stay.contains(&kept) && !stay.contains(&id), "{stay:?}");
    let left: Vec<String> = names(&world).iter().map(|n| n.split(['/', ' ']).nth(3).unwrap().to_owned()).collect();
    assert!(left.len() == stay.len() && left.iter().all(|n| stay.contains(n)), "{left:?} {stay:?}");
}

#[test]
fn names_of_ours_change_no_capture() {
    let lab = Lab::new();
    let app = lab.app();
    let mut before = capture(&app, true);
    git(&app, &["update-ref", &format!("refs/lifeboat/shop/{SNAPSHOT}"), "HEAD~1"]);
    git(&app, &["update-ref", &format!("refs/lifeboat/dirty/{SNAPSHOT}"), "HEAD~1"]);
    let mut after = capture(&app, true);
    assert_eq!(before.facts, after.facts);
    assert!(before.bytes("repository.bundle") == after.bytes("repository.bundle"));
}

#[test]
fn a_git_tag_is_made_on_request_and_never_moved() {
    let world = world();
    let app = world.app();
    world.run(&["snapshot", "--git-tag"]).exits(2);
    world.run(&["snapshot", "--git-tag", "--tag", "v1.0.0", "--dry-run"]).exits(0);
    assert_eq!(git(&app, &["tag"]), "");
    let taken = world.json(&["snapshot", "--git-tag", "--tag", "v1.0.0"]);
    assert_eq!(taken["header"]["tags"][0], "v1.0.0");
    let head = git(&app, &["rev-parse", "HEAD"]);
    assert_eq!(git(&app, &["rev-parse", "v1.0.0"]), head);
    assert_eq!(git(&app, &["cat-file", "-t", "v1.0.0"]), "commit");
    let facts = world.json(&["show", "v1.0.0"]);
    assert!(facts.to_string().contains("\"tags\":[\"v1.0.0\"]"), "the capture saw it");
    // The same commit: fine. An annotated one of somebody's too.
    git(&app, &["tag", "-a", "-m", "release", "v1.0.1"]);
    world.run(&["snapshot", "--git-tag", "--tag", "v1.0.1"]).exits(0);
    write(&app, "next", "x");
    commit(&app, "next");
    let count = world.snapshots().len();
    for arguments in [
        &["snapshot", "--git-tag", "--tag", "new", "--tag", "v1.0.1"][..],
        &["snapshot", "--git-tag", "--tag", "v1.0.0", "--dry-run"],
    ] {
        world.run(arguments).exits(1).says(&["stands at", "never moved"]).one_error_with_a_hint();
    }
    world.run(&["snapshot", "--git-tag", "--tag", "a..b"]).exits(1).says(&["no name for a git tag"]);
    assert_eq!(world.snapshots().len(), count, "no snapshot was taken");
    assert_eq!(git(&app, &["tag"]), "v1.0.0\nv1.0.1", "nor any tag made");
    assert!(git_as(None, &app, &["rev-parse", "v1.0.0"]).status.success());
}
