//! `recovery-kit`: what is on the page, what is not, and when somebody is reminded of it.

use crate::world::{World, mode};
use std::fs;
use std::process::Command;

const IDENTITY: &str = "AGE-SECRET-KEY-1";

fn secret(world: &World) -> String {
    let text = fs::read_to_string(world.identity()).unwrap();
    text.lines().find(|l| l.starts_with(IDENTITY)).unwrap().to_owned()
}

/// What doctor says of the page.
fn said(world: &World) -> (String, String) {
    let json = world.json(&["doctor"]);
    let findings = json["policies"][0]["findings"].as_array().unwrap();
    let found = findings.iter().find(|f| f["check"] == "recovery kit").unwrap_or_else(|| panic!("{json:#}"));
    (found["verdict"].as_str().unwrap().to_owned(), found["detail"].as_str().unwrap().to_owned())
}

#[test]
fn the_page_is_confirmed_by_its_code_and_an_identity_until_something_changes() {
    let world = World::with_snapshot();
    assert_eq!(said(&world).0, "warning");
    let kit = world.json(&["recovery-kit"]);
    let code = kit["code"].as_str().unwrap().to_owned();
    assert_eq!((kit["standing"]["state"].as_str(), kit["carries"].as_str()), (Some("never"), Some("nothing")));
    let page = world.run(&["recovery-kit"]).exits(0);
    let page = page.shows(&[&code, "kept at", "age1", "SHA256:", "recover --repository"]);
    for command in kit["commands"].as_array().unwrap() {
        assert!(page.out.lines().any(|l| l == format!("    {}", command.as_str().unwrap())), "{command}");
    }

    world.run(&["recovery-kit", "--confirm", "0000-0000"]).exits(2).one_error_with_a_hint().says(&["today's page"]);
    // Nobody is there to be asked.
    world.run(&["recovery-kit", "--confirm"]).exits(2).one_error_with_a_hint();
    // Sealed: whoever confirms brings the identity that was put away.
    fs::rename(world.identity(), world.path("usb.txt")).unwrap();
    world.run(&["recovery-kit", "--confirm", &code]).exits(2).one_error_with_a_hint().says(&["identity"]);
    let other = World::ready();
    fs::copy(other.identity(), world.path("other.txt")).unwrap();
    world.run(&["recovery-kit", "--confirm", &code, "--identity", "other.txt"]).exits(1).one_error_with_a_hint();
    assert_eq!(said(&world).0, "warning");
    let written = code.to_lowercase().replace('-', "");
    world.run(&["recovery-kit", "--confirm", &written, "--identity", "usb.txt"]).exits(0).shows(&["put away"]);
    let (verdict, detail) = said(&world);
    assert_eq!(verdict, "ok", "{detail}");
    assert_eq!(mode(&world.path("state/kits/shop.json")), 0o600);

    // A page that says something else than what is true.
    world.add_to_policy("[[external]]\nname = \"Supabase\"\n");
    let (verdict, detail) = said(&world);
    assert!(verdict == "warning" && detail.contains("not ours to bring back"), "{verdict}: {detail}");
    let kit = world.json(&["recovery-kit"]);
    assert_eq!(kit["standing"]["state"], "changed", "{kit:#}");
    assert_ne!(kit["code"], code);
    world.run(&["recovery-kit", "--confirm", &code, "--identity", "usb.txt"]).exits(2).says(&["has changed since"]);
}

#[test]
fn without_a_snapshot_nothing_is_confirmed() {
    let world = World::ready();
    let code = world.json(&["recovery-kit"])["code"].as_str().unwrap().to_owned();
    world.run(&["recovery-kit", "--confirm", &code]).exits(2).one_error_with_a_hint().says(&["no complete snapshot"]);
}

#[test]
fn the_identity_is_on_the_page_only_when_it_is_asked_for() {
    let world = World::with_snapshot();
    let secret = secret(&world);
    world.run(&["recovery-kit", "--page", "kit.html"]).exits(0).shows(&["kit.html", "--confirm"]);
    let page = fs::read_to_string(world.path("kit.html")).unwrap();
    assert!(!page.contains(IDENTITY) && !page.contains("<script"), "{page}");
    assert_eq!(mode(&world.path("kit.html")), 0o600);
    // To no terminal, and into no document.
    world.run(&["recovery-kit", "--with-identity"]).exits(2).says(&["--page"]);
    let ran = world.run(&["recovery-kit", "--with-identity", "--page", "secret.html", "--json"]).exits(0);
    assert!(!ran.out.contains(&secret) && ran.json()["carries"] == "identity", "{}", ran.out);
    let page = fs::read_to_string(world.path("secret.html")).unwrap();
    assert!(page.contains(&secret) && page.contains("<svg") && page.contains("# repository: SHA256:"), "{page}");
    assert_eq!(mode(&world.path("secret.html")), 0o600);
}

#[test]
fn a_passphrase_seals_the_identity_and_age_opens_it() {
    let world = World::with_snapshot();
    fs::write(world.path("phrase"), "short\n").unwrap();
    let sealed = ["recovery-kit", "--with-identity", "--passphrase", "phrase", "--page", "kit.html"];
    world.run(&sealed).exits(2).one_error_with_a_hint().says(&["12 characters"]);
    fs::write(world.path("phrase"), "correct horse battery staple lamp\n").unwrap();
    world.run(&sealed).exits(0);
    let page = fs::read_to_string(world.path("kit.html")).unwrap();
    assert!(!page.contains(IDENTITY) && !page.contains("correct horse"), "{page}");
    let begin = page.find("-----BEGIN AGE ENCRYPTED FILE-----").unwrap();
    let end = "-----END AGE ENCRYPTED FILE-----\n";
    let text = &page[begin..page.find(end).unwrap() + end.len()];
    fs::write(world.path("identity.age"), text).unwrap();
    // As somebody types it: age reads passphrases from a terminal only.
    let age = "age -d -o typed.txt identity.age";
    let mut script = Command::new("script");
    script
        .args(["-qec", age, "/dev/null"])
        .current_dir(world.dir.path())
        .stdin(fs::File::open(world.path("phrase")).unwrap());
    let ran = script.output().unwrap();
    let typed = fs::read_to_string(world.path("typed.txt")).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    assert!(typed.contains(&secret(&world)), "the page's identity is not the installation's");
    // Which repository it belongs to came with it: nothing else need be known.
    Command::new("chmod").args(["600", "typed.txt"]).current_dir(world.dir.path()).status().unwrap();
    fs::rename(world.repository(), world.path("found")).unwrap();
    let stranger = ["--repository", "found", "--identity", "typed.txt"];
    let mut list = crate::world::bare(world.dir.path());
    let ran: crate::world::Ran = list.arg("list").args(stranger).output().unwrap().into();
    ran.exits(0).shows(&["first"]);
}
