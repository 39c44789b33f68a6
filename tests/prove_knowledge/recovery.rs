//! The recovery bundle, proved.

use crate::taken::Taken;
use crate::world::{World, assert_green, assert_only, assert_red, write};
use lifeboat::base::cancel::Cancel;
use lifeboat::sources::build;

fn taken() -> (World, Vec<Taken>) {
    let world = World::new("", |root| write(&root.join("app.py"), "x"));
    let sources = build(&world.policy, &world.dir.path().join("state"), &Cancel::new());
    let taken = sources.iter().filter(|s| s.kind() == "recovery").map(|s| Taken::of(s.as_ref())).collect();
    (world, taken)
}

#[test]
fn the_unharmed_twin_is_green_and_what_it_lost_is_named() {
    let (world, taken) = taken();
    let proof = world.prove(&taken, "recovery");
    assert_green(&proof, &[]);
    assert_eq!(proof.restored, ["recovery bundle"]);
    let harmed = |from: &str, to: &str| {
        let mut taken = taken.clone();
        let bytes = taken[0].bytes("recovery.json");
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.contains(from), "{from}");
        *bytes = text.replacen(from, to, 1).into();
        world.prove(&taken, "recovery")
    };
    assert_only(&harmed("\"format\": 1", "\"format\": 2"), &["parse"]);
    assert_red(&harmed("\"accounts\": [", "\"accunts\": ["), "parse", &["accounts", "not said"]);
    assert_red(&harmed("[repository]", "[repositry]"), "policy", &["repositry"]);
    assert_red(&harmed("\"application\": \"shop\"", "\"application\": \"other\""), "policy", &["the policy of shop"]);
    let mut short = taken.clone();
    let length = short[0].bytes("recovery.json").len();
    short[0].bytes("recovery.json").truncate(length / 2);
    assert_red(&world.prove(&short, "recovery"), "parse", &["no JSON at line"]);
    let mut fewer = taken;
    fewer[0].facts["packages"] = 1.into();
    assert_red(&world.prove(&fewer, "recovery"), "counts", &["packages", "expected 1"]);
}
