//! Certificates, proved.

use crate::world::{World, assert_green, assert_only, assert_red, lets_encrypt, mode, run, text, write};
use chrono::TimeDelta;
use lifeboat::sources::proof::Proof;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const SOURCES: &str = "[[source]]\nkind = \"certificates\"\npaths = [\"ROOT/letsencrypt\"]\nmin_days = 14\n";
const DOMAIN: &str = "shop.example";

fn world() -> World {
    World::new(SOURCES, |root| lets_encrypt(&root.join("letsencrypt"), DOMAIN, "60"))
}

fn archive(root: &Path, name: &str) -> PathBuf {
    root.join("letsencrypt/archive").join(DOMAIN).join(name)
}

/// The proof of what is captured after `harm`, against the facts of before.
fn seed(harm: impl FnOnce(&Path)) -> Proof {
    let world = world();
    let before = world.take();
    harm(&world.root());
    let mut taken = world.take();
    taken[0].facts = before[0].facts.clone();
    world.prove(&taken, "certificates")
}

#[test]
fn the_unharmed_twin_is_green() {
    let world = world();
    let proof = world.proof("certificates");
    assert_green(&proof, &[]);
    assert_eq!(proof.restored, ["1 certificate"]);
    let names: Vec<&str> = proof.checks.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["parse", "certificates", "names", "key", "chain", "dates", "lineage", "mode"]);
    assert!(proof.checks[2].found.contains("shop.example, www.shop.example"), "{proof:#?}");
}

#[test]
fn keys_of_both_common_kinds() {
    let world = World::new(SOURCES, |root| {
        for (name, key) in [("rsa", "rsa:2048"), ("ec", "ec")] {
            let dir = root.join("letsencrypt").join(name);
            fs::create_dir_all(&dir).unwrap();
            let (key_file, cert) = (dir.join("server.key"), dir.join("server.crt"));
            let mut arguments = vec!["req", "-x509", "-newkey", key, "-nodes", "-days", "60", "-subj", "/CN=a.example"];
            arguments.extend(["-addext", "basicConstraints=CA:FALSE"]);
            if name == "ec" {
                arguments.extend(["-pkeyopt", "ec_paramgen_curve:P-256"]);
            }
            arguments.extend(["-keyout", text(&key_file), "-out", text(&cert)]);
            run("openssl", &arguments);
        }
    });
    let proof = world.proof("certificates");
    assert_green(&proof, &[]);
    assert_eq!(proof.restored, ["2 certificates"]);
    let (rsa, ec) = (world.root().join("letsencrypt/rsa/server.key"), world.root().join("letsencrypt/ec/server.key"));
    fs::rename(&rsa, world.root().join("aside")).unwrap();
    fs::rename(&ec, &rsa).unwrap();
    fs::rename(world.root().join("aside"), &ec).unwrap();
    // Each key lies beside the other's certificate: each is found, and neither is missing.
    assert_green(&world.proof("certificates"), &[]);
}

#[test]
fn a_key_that_belongs_to_another_certificate() {
    let proof = seed(|root| {
        let key = archive(root, "privkey2.pem");
        run("openssl", &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", text(&key)]);
        mode(&key, 0o600);
    });
    assert_only(&proof, &["key"]);
    assert_red(&proof, "key", &["live/shop.example/privkey.pem belongs to another certificate"]);
    let proof = seed(|root| {
        fs::remove_file(archive(root, "privkey2.pem")).unwrap();
        fs::remove_file(root.join("letsencrypt/live").join(DOMAIN).join("privkey.pem")).unwrap();
    });
    assert_only(&proof, &["key"]);
    assert_red(&proof, "key", &["live/shop.example/cert.pem", "no key"]);
}

#[test]
fn an_expired_chain() {
    let mut world = world();
    let taken = world.take();
    world.now += TimeDelta::days(61);
    let proof = world.prove(&taken, "certificates");
    assert_only(&proof, &["dates"]);
    assert_red(&proof, "dates", &["live/shop.example/fullchain.pem", "expired on"]);
    // Near its end, by the policy's own measure.
    world.now -= TimeDelta::days(11);
    assert_red(&world.prove(&taken, "certificates"), "dates", &["9 days left"]);
    // The authority's certificate in the chain ends first.
    world.now += TimeDelta::days(1825);
    assert_red(&world.prove(&taken, "certificates"), "dates", &["Test Intermediate", "expired on"]);
    world.now -= TimeDelta::days(2000);
    assert_red(&world.prove(&taken, "certificates"), "dates", &["not valid before"]);
}

#[test]
fn a_chain_out_of_order() {
    let (leaf, chain) = ("cert2.pem", "chain2.pem");
    let proof = seed(|root| {
        let read = |name: &str| fs::read_to_string(archive(root, name)).unwrap();
        let root_ca = fs::read_to_string(root.join("letsencrypt/root.pem")).unwrap();
        fs::write(archive(root, "fullchain2.pem"), format!("{}{root_ca}{}", read(leaf), read(chain))).unwrap();
    });
    assert_only(&proof, &["chain"]);
    assert_red(&proof, "chain", &["live/shop.example/fullchain.pem", "CN=shop.example < CN=Test Root", "out of order"]);
    let proof = seed(|root| {
        let read = |name: &str| fs::read_to_string(archive(root, name)).unwrap();
        fs::write(archive(root, "fullchain2.pem"), format!("{}{}", read(chain), read(leaf))).unwrap();
    });
    assert_red(&proof, "chain", &["live/shop.example/fullchain.pem", "an authority's first: CN=Test Intermediate"]);
}

#[test]
fn a_dangling_link_in_live() {
    let proof = seed(|root| fs::remove_file(archive(root, "fullchain2.pem")).unwrap());
    assert_red(&proof, "lineage", &["live/shop.example/fullchain.pem", "fullchain2.pem, which is not there"]);
    let proof = seed(|root| {
        let link = root.join("letsencrypt/live").join(DOMAIN).join("chain.pem");
        fs::remove_file(&link).unwrap();
        symlink(format!("../../archive/{DOMAIN}/chain1.pem"), link).unwrap();
    });
    assert_red(&proof, "lineage", &["live/shop.example", "1, 2"]);
    let proof = seed(|root| fs::remove_dir_all(root.join("letsencrypt/live").join(DOMAIN)).unwrap());
    assert_red(&proof, "lineage", &["live/shop.example", "a folder of links"]);
}

#[test]
fn a_file_cut_short_another_certificate_and_an_open_key() {
    let proof = seed(|root| {
        let path = archive(root, "fullchain2.pem");
        let content = fs::read(&path).unwrap();
        fs::write(&path, &content[..content.len() - 100]).unwrap();
    });
    assert_red(&proof, "parse", &["fullchain2.pem", "1 of 2 blocks are whole"]);
    let proof = seed(|root| {
        for name in ["cert", "chain", "fullchain", "privkey"] {
            fs::copy(archive(root, &format!("{name}1.pem")), archive(root, &format!("{name}2.pem"))).unwrap();
        }
    });
    assert_only(&proof, &["certificates"]);
    let proof = seed(|root| {
        fs::remove_dir_all(root.join("letsencrypt")).unwrap();
        lets_encrypt(&root.join("letsencrypt"), "other.example", "60");
        let rename = |from: &str, to: &str| fs::rename(root.join(from), root.join(to)).unwrap();
        rename("letsencrypt/live/other.example", "letsencrypt/live/shop.example");
        rename("letsencrypt/archive/other.example", "letsencrypt/archive/shop.example");
        for name in ["cert", "chain", "fullchain", "privkey"] {
            let link = root.join(format!("letsencrypt/live/shop.example/{name}.pem"));
            fs::remove_file(&link).unwrap();
            symlink(format!("../../archive/shop.example/{name}2.pem"), link).unwrap();
        }
    });
    assert_red(&proof, "names", &["shop.example, www.shop.example", "other.example, www.other.example"]);
    let proof = seed(|root| mode(&archive(root, "privkey2.pem"), 0o644));
    assert_only(&proof, &["mode"]);
    assert_red(&proof, "mode", &["live/shop.example/privkey.pem", "mode 0644 on a private key"]);
    // What is no certificate at all disturbs nobody.
    assert_green(&seed(|root| write(&root.join("letsencrypt/README"), "hello\n")), &[]);
}
