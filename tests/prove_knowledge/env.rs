//! Env files, proved.

use crate::world::{World, assert_green, assert_only, assert_red, mode, write};
use lifeboat::sources::proof::{Proof, Verdict};
use std::fs;
use std::path::Path;

const SOURCES: &str = r#"
[[source]]
kind = "env"
paths = [".env", "backend/.env.production"]
required = ["DB_PASSWORD", "SIGNING"]
pattern = { SIGNING = "^[0-9a-f]{64}$" }
same = [[".env:REDIS_PASSWORD", "backend/.env.production:REDIS_PASSWORD"], [".env:SHARED", "../other/.env:SHARED"]]
data_keys = ["SIGNING"]
"#;
const ROOT_ENV: &str = "DB_PASSWORD=canary-db\nREDIS_PASSWORD=canary-redis\nSHARED=canary-shared\n";

fn signing(digits: usize) -> String {
    "0123456789abcdef".chars().cycle().take(digits).collect()
}

fn fill(root: &Path) {
    write(&root.join(".env"), ROOT_ENV);
    let backend =
        format!("REDIS_PASSWORD=canary-redis\nSIGNING={}\nURL=\"redis://:${{REDIS_PASSWORD}}@x\"\n", signing(64));
    write(&root.join("backend/.env.production"), &backend);
    write(&root.join("../other/.env"), "SHARED=canary-shared\n");
    for file in [".env", "backend/.env.production"] {
        mode(&root.join(file), 0o600);
    }
}

/// Seeds one corruption; nothing that is said of it may hold a value.
fn seed(harm: impl FnOnce(&Path)) -> Proof {
    let world = World::new(SOURCES, fill);
    harm(&world.root());
    let proof = world.proof("env");
    let said = format!("{proof:?}");
    assert!(!said.contains("canary") && !said.contains("0123456789abcdef"), "{said}");
    proof
}

fn replace(file: &Path, from: &str, to: &str) {
    let content = fs::read_to_string(file).unwrap();
    assert!(content.contains(from));
    fs::write(file, content.replace(from, to)).unwrap();
}

#[test]
fn the_unharmed_twin_is_green() {
    let proof = seed(|_| {});
    assert_green(&proof, &[]);
    assert_eq!(proof.restored, ["2 env files (6 keys)"]);
    let names: Vec<&str> = proof.checks.iter().map(|c| c.name.as_str()).collect();
    let expected = [
        "parse",
        "files",
        "keys",
        "values",
        "literal command",
        "mode",
        "required",
        "required",
        "pattern",
        "same",
        "same",
        "data key",
    ];
    assert_eq!(names, expected);
    let outside = &proof.checks[10];
    assert!(outside.found.contains("other/.env is the live one"), "{outside:?}");
}

#[test]
fn a_key_of_63_characters_is_named_with_its_length() {
    let proof = seed(|root| replace(&root.join("backend/.env.production"), &signing(64), &signing(63)));
    assert_only(&proof, &["pattern"]);
    assert_red(&proof, "pattern", &["backend/.env.production:SIGNING", "63 characters"]);
}

#[test]
fn a_secret_that_differs_in_its_second_file_is_named() {
    let proof = seed(|root| replace(&root.join("backend/.env.production"), "canary-redis", "canary-other"));
    assert_only(&proof, &["same"]);
    assert_red(&proof, "same", &[".env:REDIS_PASSWORD and backend/.env.production:REDIS_PASSWORD"]);
    let proof = seed(|root| replace(&root.join("../other/.env"), "canary-shared", "canary-rotated"));
    assert_only(&proof, &["same"]);
    assert_red(&proof, "same", &[".env:SHARED", "other/.env:SHARED must be the same and are not"]);
}

#[test]
fn another_application_that_is_not_here_is_no_fault_of_the_backup() {
    let proof = seed(|root| fs::remove_file(root.join("../other/.env")).unwrap());
    assert_green(&proof, &["same"]);
    let skipped = proof.checks.iter().find(|c| c.verdict == Verdict::Skipped).unwrap();
    assert!(skipped.why.as_deref().unwrap().contains("other/.env is in no restored tree"), "{skipped:?}");
}

#[test]
fn everybody_may_read_a_secret() {
    let proof = seed(|root| mode(&root.join(".env"), 0o644));
    assert_only(&proof, &["mode"]);
    assert_red(&proof, "mode", &[".env", "mode 0644 on a secret"]);
    let proof = seed(|root| mode(&root.join(".env"), 0o640));
    assert_green(&proof, &[]);
    let said = proof.checks.iter().find(|c| c.name == "mode").unwrap();
    assert!(said.found.contains(".env (0640)"), "{said:?}");
}

#[test]
fn a_required_key_is_missing_or_empty() {
    for (from, to, words) in [("DB_PASSWORD=canary-db\n", "", "stands in no env file"), ("canary-db", "", "is empty")] {
        let proof = seed(|root| replace(&root.join(".env"), from, to));
        assert_only(&proof, &["required"]);
        assert_red(&proof, "required", &["DB_PASSWORD", words]);
    }
    let proof = seed(|root| {
        let line = format!("SIGNING={}\n", signing(64));
        replace(&root.join("backend/.env.production"), &line, "");
    });
    assert_only(&proof, &["required", "pattern", "data key"]);
}

#[test]
fn a_literal_command_is_named() {
    for value in ["$(openssl rand -hex 16)", "`openssl rand -hex 16`"] {
        let proof = seed(|root| replace(&root.join(".env"), "canary-db", value));
        assert_only(&proof, &["literal command"]);
        assert_red(&proof, "literal command", &[".env:DB_PASSWORD", "command, which nothing ever runs"]);
        assert!(!format!("{proof:?}").contains("openssl"));
    }
}

#[test]
fn what_was_restored_is_held_against_what_was_captured() {
    let world = World::new(SOURCES, fill);
    let taken = world.take();
    let harmed = |harm: &dyn Fn(&Path)| {
        harm(&world.root());
        let mut now = world.take();
        now[0].facts = taken[0].facts.clone();
        let proof = world.prove(&now, "env");
        fill(&world.root());
        proof
    };
    let env = |root: &Path| root.join(".env");
    let proof = harmed(&|root| replace(&env(root), "canary-db", "canary-dc"));
    assert_only(&proof, &["values"]);
    assert_red(&proof, "values", &[".env:DB_PASSWORD", "another value"]);
    let proof = harmed(&|root| write(&env(root), &format!("{ROOT_ENV}#")));
    assert_green(&proof, &[]);
    let proof = harmed(&|root| replace(&env(root), "SHARED=", "RENAMED="));
    assert_red(&proof, "keys", &[".env:SHARED", "not set"]);
    let proof = harmed(&|root| replace(&env(root), "canary-db", "\"canary-db"));
    assert_red(&proof, "parse", &[".env", "no closing quote"]);
    let proof = harmed(&|root| {
        fs::remove_file(root.join("backend/.env.production")).unwrap();
        write(&root.join("backend/.env.production/x"), "");
        fs::remove_dir_all(root.join("backend/.env.production")).unwrap();
        std::os::unix::fs::symlink("../.env", root.join("backend/.env.production")).unwrap();
    });
    assert_red(&proof, "files", &["backend/.env.production", "nothing"]);
    fs::remove_file(world.root().join("backend/.env.production")).unwrap();
}

#[test]
fn without_key_or_policy_what_can_be_proved_is() {
    let mut world = World::new(SOURCES, fill);
    world.fact_key = None;
    assert_green(&world.proof("env"), &["values"]);
    world.fact_key = Some(crate::world::FACT_KEY);
    world.has_policy = false;
    assert_green(&world.proof("env"), &["rules"]);
}
