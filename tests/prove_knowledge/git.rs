//! Repositories, proved.

use crate::world::{World, as_a_user, assert_green, assert_only, assert_red, run, text, write};
use lifeboat::sources::proof::Proof;
use std::fs;
use std::path::Path;

const SOURCES: &str = "[[source]]\nkind = \"git\"\n";

fn git(dir: &Path, arguments: &[&str]) -> String {
    let fixed =
        ["-C", text(dir), "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"];
    run("git", &[&fixed[..], arguments].concat())
}

fn repository(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    git(dir, &["init", "-q", "-b", "main"]);
    write(&dir.join("compose.yaml"), "services:\n  web:\n    ports: [\"8001:80\"]\n");
    write(&dir.join("src/app.py"), "print('one')\n");
    git(dir, &["add", "."]);
    git(dir, &["commit", "-q", "-m", "one"]);
    write(&dir.join("src/app.py"), "print('two')\n");
    git(dir, &["commit", "-q", "-a", "-m", "two"]);
    git(dir, &["tag", "v1.0.0"]);
}

/// A checkout with an edited port, a binary and a staged removal.
fn fill(root: &Path) {
    repository(root);
    write(&root.join("compose.yaml"), "services:\n  web:\n    ports: [\"8002:80\"]\n");
    fs::write(root.join("data.bin"), (0..=255u8).cycle().take(5000).collect::<Vec<_>>()).unwrap();
    git(root, &["add", "data.bin"]);
    git(root, &["rm", "-q", "src/app.py"]);
}

fn named<'p>(proof: &'p Proof, name: &str) -> Vec<&'p str> {
    proof.checks.iter().filter(|c| c.name == name).map(|c| c.subject.as_str()).collect()
}

#[test]
fn the_unharmed_twin_is_green() {
    let world = World::new(SOURCES, fill);
    let proof = world.proof("git");
    assert_green(&proof, &[]);
    let names: Vec<&str> = proof.checks.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["bundle", "commit", "tags", "branch", "edits"]);
    let commit = git(&world.root(), &["rev-parse", "--short=10", "HEAD"]);
    assert_eq!(proof.restored, [format!("commit {} (v1.0.0) with 3 edited", commit.trim())]);
    assert!(proof.steps.iter().any(|s| s.name == "clone" && s.restores));
    assert_eq!(proof.checks[4].found, "3 files changed");
}

#[test]
fn a_commit_that_is_gone_is_named() {
    let world = World::new(SOURCES, fill);
    let mut taken = world.take();
    let other = World::new(SOURCES, |root| {
        git(root, &["init", "-q", "-b", "main"]);
        write(&root.join("other"), "another history");
        git(root, &["add", "."]);
        git(root, &["commit", "-q", "-m", "another"]);
        git(root, &["tag", "v1.0.0"]);
    });
    let mut others = other.take();
    *taken[0].bytes("repository.bundle") = others[0].bytes("repository.bundle").clone();
    // The names are the same; the commit is in one.
    let commit = taken[0].facts["head"]["commit"].as_str().unwrap().to_owned();
    let proof = world.prove(&taken, "git");
    assert_only(&proof, &["commit"]);
    assert_red(&proof, "commit", &[&format!("commit {commit} is gone")]);
}

#[test]
fn a_damaged_or_short_bundle_is_red() {
    let world = World::new(SOURCES, fill);
    for harm in [
        |b: &mut Vec<u8>| b.truncate(b.len() - 30),
        |b: &mut Vec<u8>| {
            let at = b.len() - 40;
            b[at] ^= 1;
        },
    ] {
        let mut taken = world.take();
        harm(taken[0].bytes("repository.bundle"));
        let proof = world.prove(&taken, "git");
        assert_only(&proof, &["bundle"]);
    }
    let mut taken = world.take();
    taken[0].facts["bundle"]["refs"] = 9.into();
    assert_red(&world.prove(&taken, "git"), "bundle", &["expected 9 refs, found 2 refs"]);
}

#[test]
fn edits_that_do_not_apply_are_red() {
    let world = World::new(SOURCES, fill);
    let mut taken = world.take();
    let patch = String::from_utf8(taken[0].bytes("edits.patch").clone()).unwrap();
    assert!(patch.contains("8001:80"));
    *taken[0].bytes("edits.patch") = patch.replace("8001:80", "9999:80").into();
    let proof = world.prove(&taken, "git");
    assert_only(&proof, &["edits"]);
    assert_red(&proof, "edits", &["patch does not apply", "compose.yaml"]);
    // One that changes more than was edited.
    let mut taken = world.take();
    taken[0].facts["edited"]["names"] = serde_json::json!(["data.bin", "src/app.py"]);
    taken[0].facts["edited"]["count"] = 2.into();
    assert_red(&world.prove(&taken, "git"), "edits", &["compose.yaml"]);
}

#[test]
fn tags_and_branch_are_where_they_were() {
    let world = World::new(SOURCES, fill);
    let taken = world.take();
    git(&world.root(), &["tag", "-f", "v1.0.0", "HEAD~1"]);
    git(&world.root(), &["tag", "extra"]);
    git(&world.root(), &["branch", "-m", "main", "trunk"]);
    let mut moved = world.take();
    moved[0].facts = taken[0].facts.clone();
    moved[0].facts["bundle"]["refs"] = 3.into();
    let proof = world.prove(&moved, "git");
    assert_only(&proof, &["tags", "branch"]);
    assert_red(&proof, "tags", &["v1.0.0", "no such tag there", "extra"]);
    assert_red(&proof, "branch", &["main at nothing"]);
}

#[test]
fn detached_shallow_and_unborn() {
    let world = World::new(SOURCES, |root| {
        repository(root);
        git(root, &["checkout", "-q", "--detach", "HEAD~1"]);
        git(root, &["commit", "-q", "--allow-empty", "-m", "on no branch"]);
    });
    assert_green(&world.proof("git"), &[]);
    let world = World::new(SOURCES, |root| {
        let origin = root.join("../origin");
        repository(&origin);
        git(root, &["clone", "-q", "--depth", "1", &format!("file://{}", text(&origin.canonicalize().unwrap())), "."]);
    });
    assert_green(&world.proof("git"), &[]);
    let world = World::new(SOURCES, |root| drop(git(root, &["init", "-q"])));
    let proof = world.proof("git");
    assert_eq!(named(&proof, "commit"), [""], "{proof:#?}");
}

#[test]
fn submodules_have_their_own_commits_and_edits() {
    let world = World::new(SOURCES, |root| {
        let library = root.join("../library");
        repository(&library);
        repository(root);
        git(root, &["submodule", "add", "-q", text(&library.canonicalize().unwrap()), "lib/one"]);
        git(root, &["commit", "-q", "-m", "with a library"]);
        write(&root.join("lib/one/src/app.py"), "print('edited')\n");
    });
    let mut taken = world.take();
    let proof = world.prove(&taken, "git");
    assert_green(&proof, &[]);
    assert_eq!(named(&proof, "commit"), ["", "lib/one"]);
    assert_eq!(named(&proof, "edits"), ["", "lib/one"]);
    taken[0].facts["submodules"][0]["commit"] = "1".repeat(40).into();
    assert_red(&world.prove(&taken, "git"), "commit", &["lib/one", "is gone"]);
}

#[test]
fn without_a_bundle_the_live_repository_must_have_it() {
    let world = World::new("[[source]]\nkind = \"git\"\nbundle = false\n", fill);
    let mut taken = world.take();
    assert_green(&world.prove(&taken, "git"), &["edits"]);
    taken[0].facts["head"]["commit"] = "2".repeat(40).into();
    assert_red(&world.prove(&taken, "git"), "commit", &["is gone", "does not have it any more"]);
    fs::remove_dir_all(world.root().join(".git")).unwrap();
    let proof = world.prove(&taken, "git");
    let why = proof.checks[0].why.clone().unwrap();
    assert!(why.contains("holds no bundle"), "{why}");
}

#[test]
fn a_hook_and_a_filter_of_the_stored_tree_never_run() {
    let world = World::new(SOURCES, |root| {
        repository(root);
        write(&root.join(".gitattributes"), "*.py filter=evil\n");
        write(&root.join("src/app.py"), "print('edited')\n");
        git(root, &["add", ".gitattributes"]);
        git(root, &["commit", "-q", "-m", "filters"]);
    });
    assert_green(&world.proof("git"), &[]);
}

#[test]
fn an_ordinary_user_needs_no_rights() {
    as_a_user("git::", &[]);
}
