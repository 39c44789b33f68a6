//! The examples of `docs/json.md` against what the commands print: the same fields, of the same types.

use crate::output::{CALLS, stage};
use crate::world::tree;
use serde_json::Value;
use std::fs;

/// Fields that are there only sometimes; the document says when.
const SOMETIMES: &[&str] =
    &["live", "policy_errors", "path_hex", "target", "lost", "percent", "why", "differences", "drill"];
/// Fields whose content depends on a source's kind.
const FREE: &[&str] = &["facts"];

fn examples() -> Vec<Value> {
    let text = include_str!("../../docs/json.md");
    let blocks = text.split("```json\n").skip(1);
    let examples = blocks.map(|block| serde_json::from_str(block.split("```").next().unwrap()).unwrap());
    examples.collect()
}

/// Every way in which `actual` is not as the example says.
fn compare(at: &str, example: &Value, actual: &Value, faults: &mut Vec<String>) {
    match (example, actual) {
        (Value::Null, _) | (_, Value::Null) => {}
        (Value::Object(e), Value::Object(a)) => {
            for key in a.keys().filter(|key| !e.contains_key(*key)) {
                faults.push(format!("{at}.{key} is not documented"));
            }
            for (key, value) in e {
                match a.get(key) {
                    _ if FREE.contains(&key.as_str()) => {}
                    Some(found) => compare(&format!("{at}.{key}"), value, found, faults),
                    None if SOMETIMES.contains(&key.as_str()) => {}
                    None => faults.push(format!("{at}.{key} is documented and not there")),
                }
            }
        }
        (Value::Array(e), Value::Array(a)) => {
            for (n, element) in a.iter().enumerate() {
                let mut best: Option<Vec<String>> = None;
                for example in e {
                    let mut here = Vec::new();
                    compare(&format!("{at}[{n}]"), example, element, &mut here);
                    if best.as_ref().is_none_or(|b| here.len() < b.len()) {
                        best = Some(here);
                    }
                }
                // A list of texts needs no example.
                let plain = e.is_empty() && !element.is_object();
                faults.extend(
                    best.unwrap_or_else(|| if plain { vec![] } else { vec![format!("{at}[{n}]: no example")] }),
                );
            }
        }
        (e, a) if std::mem::discriminant(e) == std::mem::discriminant(a) => {}
        (e, a) => faults.push(format!("{at} is {a}, where the document has {e}")),
    }
}

/// Documents of one command: a result, a plan, and a failure have fields of their own.
fn same_kind(a: &Value, b: &Value) -> bool {
    let kind = |v: &Value| (v.get("error").is_some(), v.get("plan").is_some());
    kind(a) == kind(b) && (a.get("error").is_some() || a["command"] == b["command"])
}

#[track_caller]
fn check(actual: &Value) {
    let examples = examples();
    let example = examples
        .iter()
        .find(|e| same_kind(e, actual) || e["command"] == "keys show" && actual["command"] == "keys new");
    let example = example.unwrap_or_else(|| panic!("docs/json.md has no example of {actual:#}"));
    let mut faults = Vec::new();
    compare(actual["command"].as_str().unwrap(), example, actual, &mut faults);
    assert!(faults.is_empty(), "{faults:#?}\n{actual:#}");
}

#[test]
fn the_documented_examples_are_what_is_printed() {
    let world = stage();
    for (_, args) in CALLS {
        check(&world.json(args));
    }
    check(&world.json(&["snapshot", "-p", "shop", "--dry-run"]));
    check(&world.json(&["restore", "latest", "-p", "shop", "--into", "out2", "--dry-run"]));
    check(&world.json(&["restore", "latest", "-p", "shop", "--in-place", "--dry-run"]));
    check(&world.json(&["restore", "latest", "-p", "shop", "--in-place", "--yes"]));
    check(&world.json(&["restore", "-p", "shop", "--undo", "--yes"]));
    check(&world.json(&["rollback", "-p", "shop", "--to", "first", "--dry-run"]));
    check(&world.run(&["guard", "-p", "shop", "--json", "--", "true"]).exits(0).json());
    let (repository, identity) = (world.repository(), world.identity());
    let there = ["--repository", repository.to_str().unwrap(), "--identity", identity.to_str().unwrap()];
    check(&world.json(&[&["recover"], &there[..], &["--dry-run"]].concat()));
    check(&world.json(&["status", "--repository", repository.to_str().unwrap()]));
    check(&world.json(&["ls", "latest", "-p", "shop"]));
    check(&world.json(&["drill", "-p", "shop", "--dry-run"]));
    let proved = world.json(&["snapshot", "-p", "shop", "--drill"]);
    assert_eq!(
        (proved["exit_code"].as_i64(), proved["drill"]["outcome"].as_str()),
        (Some(0), Some("passed")),
        "{proved:#}"
    );
    check(&world.json(&["verify", "--read-data=50", "-p", "shop"]));
    check(&world.json(&["verify", "latest", "-p", "shop"]));
    check(&world.json(&["copy", "--to", "new", "-p", "shop", "--dry-run"]));
    check(&world.json(&["copy", "--to", "twice", "-p", "shop", "--read-back"]));
    check(&world.json(&["show", "nope", "-p", "shop"]));
    check(&world.json(&["prune", "-p", "shop", "--dry-run"]));
    check(&world.json(&["prune", "-p", "shop"]));
    check(&world.json(&["prune", "-p", "shop", "--repack", "--dry-run"]));
    let repacked = world.json(&["prune", "-p", "shop", "--repack", "--now"]);
    assert!(repacked["report"]["repack"]["replaced"].is_u64(), "{repacked:#}");
    check(&repacked);
    // Without an identity, and with what is wrong.
    fs::rename(world.identity(), world.path("usb.txt")).unwrap();
    check(&world.json(&["show", "latest", "-p", "shop"]));
    check(&world.json(&["keys", "show"]));
    fs::rename(world.path("usb.txt"), world.identity()).unwrap();
    for (path, bytes) in tree(&world.repository().join("archives")) {
        fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    }
    let verified = world.json(&["verify", "-p", "shop"]);
    assert!(!verified["findings"].as_array().unwrap().is_empty() && verified["exit_code"] == 4, "{verified:#}");
    check(&verified);
    let copied = world.json(&["copy", "--to", "new", "-p", "shop"]);
    assert!(copied["exit_code"] == 4 && !copied["copies"][0]["report"]["problems"].as_array().unwrap().is_empty());
    check(&copied);
    check(&world.json(&["restore", "latest", "-p", "shop", "--into", "out3"]));
    check(&world.json(&["find", "one", "-p", "shop"]));
    let header = tree(&world.repository().join("snapshots")).remove(0).0;
    fs::write(header, "{}\n").unwrap();
    let listed = world.json(&["list", "-p", "shop"]);
    assert!(!listed["problems"].as_array().unwrap().is_empty(), "{listed:#}");
    check(&listed);
    check(&world.json(&["doctor", "-p", "shop"]));
    check(&world.json(&["history", "-p", "shop"]));
    world.add_to_policy("[notify]\nwebhook = \"http://127.0.0.1:1/\"\n");
    check(&world.json(&["notify", "test", "-p", "shop"]));
    let other = "age1u4kztcqhr4gfml0q9kt5u4gmta79cyaujtwv7whpjv3zgvp0756s3m77fz";
    check(&world.json(&["keys", "add-recipient", other, "-p", "shop"]));
    check(&world.json(&["keys", "rotate"]));
    world.change_policy("recipients", "recipents");
    check(&world.json(&["policy", "check", "-p", "shop"]));
}

/// The comparison itself finds what differs.
#[test]
fn the_comparison_sees_a_difference() {
    let faults = |e: &str, a: &str| {
        let mut faults = Vec::new();
        compare("x", &serde_json::from_str(e).unwrap(), &serde_json::from_str(a).unwrap(), &mut faults);
        faults.len()
    };
    assert_eq!(faults(r#"{"a": 1, "b": [{"c": ""}]}"#, r#"{"a": 2, "b": [{"c": "x"}, {"c": "y"}]}"#), 0);
    assert_eq!(faults(r#"{"a": 1}"#, r#"{"a": "1"}"#), 1);
    assert_eq!(faults(r#"{"a": 1}"#, r#"{}"#), 1);
    assert_eq!(faults(r#"{}"#, r#"{"a": 1}"#), 1);
    assert_eq!(faults(r#"{"b": [{"c": 1}]}"#, r#"{"b": [{"d": 1}]}"#), 2);
}
