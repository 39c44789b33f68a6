//! Compose projects, proved by the real Compose.

use crate::docker::{IMAGE, TestImage, TestProject, docker, engine, unique};
use crate::taken::Taken;
use crate::world::{World, as_a_user, assert_green, assert_only, assert_red, mode, run, text, write};
use lifeboat::sources::proof::Verdict;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const SOURCES: &str = r#"
[[source]]
kind = "compose"
[[source]]
kind = "env"
paths = [".env", "backend/.env.production"]
[[source]]
kind = "git"
"#;

const COMPOSE: &str = r#"
services:
  web:
    image: ${IMAGE:?set it}
    ports: ["${WEB_PORT}:80"]
    env_file: [backend/.env.production, defaults.env]
    command: ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"]
  extra:
    extends: {file: common.yaml, service: base}
    profiles: [ops]
"#;

/// A project whose defaults come with the code and whose secrets do not.
fn fill(root: &Path) {
    write(&root.join("compose.yaml"), COMPOSE);
    write(&root.join(".env"), &format!("IMAGE={IMAGE}\nWEB_PORT=8001\nCOMPOSE_PROFILES=ops\n"));
    write(&root.join("backend/.env.production"), "JWT_SECRET=canary-jwt\n");
    write(&root.join("defaults.env"), "LEVEL=info\n");
    write(&root.join("common.yaml"), "services:\n  base:\n    image: ${IMAGE}\n");
    write(&root.join(".gitignore"), ".env*\n");
    for file in [".env", "backend/.env.production"] {
        mode(&root.join(file), 0o600);
    }
    let git = |arguments: &[&str]| {
        let fixed = ["-C", text(root), "-c", "user.name=t", "-c", "user.email=t@example.org"];
        run("git", &[&fixed[..], arguments].concat())
    };
    git(&["init", "-q"]);
    git(&["add", "compose.yaml", "defaults.env", "common.yaml"]);
    git(&["commit", "-q", "-m", "one"]);
}

fn world() -> World {
    World::new(SOURCES, fill)
}

#[test]
fn the_unharmed_twin_is_green() {
    let proof = world().proof("compose");
    // Nothing runs, so there are no images.
    assert_green(&proof, &["image"]);
    let found = &proof.checks[0].found;
    assert!(found.starts_with("accepted by Compose ") && !found.contains("comes with the code"), "{found}");
    // A snapshot of before those files were captured.
    let world = world();
    let mut taken = world.take();
    only_named(&mut taken);
    let proof = world.prove(&taken, "compose");
    assert_green(&proof, &["image"]);
    let found = &proof.checks[0].found;
    assert!(found.contains("/defaults.env"), "{found}");
    assert!(found.contains("/common.yaml") && !found.contains(".env.production"), "{found}");
}

/// Takes away what the compose files only lead to.
fn only_named(taken: &mut [Taken]) {
    let compose = taken.iter_mut().find(|t| t.kind == "compose").unwrap();
    let files = compose.facts["files"].as_array_mut().unwrap();
    let led_to = files.iter().filter(|f| f["role"] != "compose" && f["role"] != "env").count();
    assert_eq!(led_to, 3, "{files:#?}");
    files.retain(|f| f["role"] == "compose" || f["role"] == "env");
}

#[test]
fn a_compose_file_that_does_not_parse_is_red() {
    let world = world();
    let mut taken = world.take();
    let compose = taken.iter_mut().find(|t| t.kind == "compose").unwrap();
    let bytes = compose.bytes("compose.yaml");
    *bytes = String::from_utf8(bytes.clone()).unwrap().replace("    ports: [", "   ports: [").into();
    let proof = world.prove(&taken, "compose");
    assert_only(&proof, &["compose config"]);
    let check = assert_red(&proof, "compose config", &["yaml", "refused by Compose"]);
    let root = text(&world.root()).to_owned();
    assert!(!format!("{check:?}").contains("/mnt/") && !format!("{check:?}").contains("canary"), "{root}: {check:?}");
    let compose = taken.iter_mut().find(|t| t.kind == "compose").unwrap();
    *compose.bytes("compose.yaml") = b"services:\n  web:\n    image: x\n    prts: []\n".to_vec();
    assert_red(&world.prove(&taken, "compose"), "compose config", &["prts"]);
}

#[test]
fn a_value_or_a_file_that_no_source_holds_is_red() {
    let world = self::world();
    let mut taken = world.take();
    let compose = taken.iter_mut().find(|t| t.kind == "compose").unwrap();
    let env = compose.facts["files"].as_array().unwrap().iter().find(|f| f["role"] == "env").unwrap();
    let stream = env["stream"].as_str().unwrap().to_owned();
    *compose.bytes(&stream) = b"WEB_PORT=8001\n".to_vec();
    for env in taken.iter_mut().filter(|t| t.kind == "env") {
        env.streams.clear();
    }
    assert_red(&world.prove(&taken, "compose"), "compose config", &["IMAGE", "set it"]);
    // The secrets of the backend lie on the live machine, and only there.
    let mut taken = world.take();
    only_named(&mut taken);
    for env in taken.iter_mut().filter(|t| t.kind == "env") {
        env.streams.clear();
    }
    let file = world.root().join("backend/.env.production");
    let needed = format!("{} is needed by the project and is in no source", file.display());
    assert_red(&world.prove(&taken, "compose"), "compose config", &[&needed]);
}

#[test]
fn a_pinned_image_that_is_gone_is_red() {
    engine();
    let own = TestImage(format!("{}:1", unique("lifeboat-test/own")));
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("Dockerfile"), &format!("FROM {IMAGE}\nRUN echo {} >/own\n", own.0));
    docker(["build", "-q", "-t", &own.0, text(dir.path())]);
    let world = World::new("[[source]]\nkind = \"compose\"\npin = \"tag\"\n", |root| {
        let idle = "[\"sh\", \"-c\", \"trap 'exit 0' TERM; while :; do sleep 1; done\"]";
        let service = |image: &str| format!("    image: {image}\n    network_mode: none\n    command: {idle}\n");
        write(&root.join("compose.yaml"), &format!("services:\n  api:\n{}  web:\n{}", service(&own.0), service(IMAGE)));
    });
    let project = TestProject::up(&world.root(), &unique("lb-prove"), &[]);
    let taken = world.take();
    let facts = taken[0].facts.clone();
    let pins: Vec<String> =
        facts["services"].as_array().unwrap().iter().map(|s| s["pin"].as_str().unwrap().to_owned()).collect();
    let _pins: Vec<TestImage> = pins.iter().cloned().map(TestImage).collect();
    let proof = world.prove(&taken, "compose");
    assert_green(&proof, &[]);
    assert!(proof.checks[1].found.starts_with("pinned as lifeboat/shop-api:"), "{proof:#?}");
    drop(project);
    // One pin goes: the image is still there by its own name.
    docker(["rmi", &pins[0]]);
    let proof = world.prove(&taken, "compose");
    assert_green(&proof, &[]);
    assert!(proof.checks[1].found.contains("its pin is gone"), "{proof:#?}");
    docker(["rmi", &own.0]);
    let proof = world.prove(&taken, "compose");
    assert_only(&proof, &["image"]);
    assert_red(&proof, "image", &["api", "rebuild, not identical"]);
    // Another image under the pin's name.
    docker(["tag", IMAGE, &pins[0]]);
    assert_red(&world.prove(&taken, "compose"), "image", &["another image"]);
    let none = World::new("[[source]]\nkind = \"compose\"\npin = \"none\"\n", |root| {
        write(&root.join("compose.yaml"), "services:\n  web:\n    image: x\n");
    });
    let mut taken = none.take();
    taken[0].facts["services"] =
        serde_json::json!([{"service": "web", "image": "x", "image_id": "sha256:1", "pin": null}]);
    let proof = none.prove(&taken, "compose");
    let skipped = proof.checks.iter().find(|c| c.verdict == Verdict::Skipped).unwrap();
    assert!(skipped.why.as_deref().unwrap().contains("pin = \"none\""), "{skipped:?}");
}

#[test]
fn an_ordinary_user_needs_no_rights() {
    let group = fs::metadata("/var/run/docker.sock").unwrap().gid();
    // Only the capture asks the engine; building an image is root's own business here.
    as_a_user("compose::the_unharmed_twin", &[group]);
    as_a_user("compose::a_compose_file", &[group]);
}
