//! The server is gone: what `docs/disaster-recovery.md` says is done, word by word.

use crate::docker::try_docker;
use crate::site::Site;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The commands of the document, with this world's places.
fn commands(site: &Site) -> Vec<Vec<String>> {
    let text = include_str!("../../docs/disaster-recovery.md");
    let mut found = Vec::new();
    let mut in_shell = false;
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(language) => in_shell = language == "sh",
            None if in_shell => {
                let words = line.strip_prefix("lifeboat ").expect("only our own commands").split_whitespace();
                let place = |word: &str| match word {
                    "/mnt/backup/repository" => site.world.path("rescue/repository").to_str().unwrap().to_owned(),
                    "/root/identity.txt" => site.world.path("rescue/identity.txt").to_str().unwrap().to_owned(),
                    other => other.to_owned(),
                };
                found.push(words.map(place).collect());
            }
            None => {}
        }
    }
    found
}

fn gone(site: &Site) {
    let rescue = site.world.path("rescue");
    fs::create_dir(&rescue).unwrap();
    fs::rename(site.world.path("state/repository"), rescue.join("repository")).unwrap();
    fs::rename(site.world.path("config/identity.txt"), rescue.join("identity.txt")).unwrap();
    try_docker(["compose", "-p", &site.project.name, "down", "-v", "--timeout", "1"]);
    for dir in ["app", "config", "state"] {
        assert!(Command::new("rm").arg("-rf").arg(site.world.path(dir)).status().unwrap().success());
    }
}

#[test]
fn the_document_brings_the_application_back() {
    let site = Site::first(0);
    site.add_to_policy("[[external]]\nname = \"bucket of pictures\"\n");
    site.git(&["remote", "add", "origin", "https://example.org/shop.git"]);
    let app = site.world.app();
    // An edit of a tracked file is part of the application.
    let compose = fs::read_to_string(app.join("compose.yaml")).unwrap() + "# edited\n";
    fs::write(app.join("compose.yaml"), &compose).unwrap();
    site.run(&["snapshot", "--tag", "v1"]).exits(0);
    let commit = site.git(&["rev-parse", "HEAD"]);
    gone(&site);
    let all = commands(&site);
    let run = |n: usize| {
        let words: Vec<&str> = all[n].iter().map(String::as_str).collect();
        site.run(&words)
    };
    assert_eq!(all.len(), 6, "{all:#?}");
    run(0).exits(0).shows(&["v1"]);
    run(1).exits(0).shows(&["folder", "bucket of pictures"]);
    assert!(!app.exists() && !site.world.path("config/policies").exists(), "a look changes nothing");
    let report = run(2).exits(0);
    report.shows(&["bucket of pictures", "recovered"]);
    site.is(1);
    assert_eq!(site.git(&["rev-parse", "HEAD"]), commit);
    assert_eq!(site.git(&["remote", "get-url", "origin"]), "https://example.org/shop.git");
    assert_eq!(fs::read_to_string(app.join("compose.yaml")).unwrap(), compose);
    // The application lives here now: what is live is not replaced without having been saved.
    run(2).exits(2).says(&["on this machine already", "lifeboat rollback"]);
    // Nothing is pending.
    run(3).exits(2);
    run(4).exits(0);
    // The identity lies elsewhere now: named, it proves the new snapshot.
    let identity = site.world.path("rescue/identity.txt");
    let mut drill: Vec<&str> = all[5].iter().map(String::as_str).collect();
    drill.extend(["--identity", identity.to_str().unwrap()]);
    site.run(&drill).exits(0);
}

#[test]
fn what_stands_in_the_way_is_told_before_anything_is_made() {
    let site = Site::first(0);
    site.run(&["snapshot"]).exits(0);
    let commit = site.git(&["rev-parse", "HEAD"]);
    gone(&site);
    let (repository, identity) = (site.world.path("rescue/repository"), site.world.path("rescue/identity.txt"));
    let recover = |more: &[&str]| {
        let named = ["recover", "--repository", repository.to_str().unwrap(), "--identity", identity.to_str().unwrap()];
        site.run(&[&named[..], more].concat())
    };
    fs::create_dir(site.world.app()).unwrap();
    fs::write(site.world.app().join("mine"), "mine\n").unwrap();
    recover(&["--yes"]).exits(1).says(&["is not empty"]).one_error_with_a_hint();
    assert_eq!(fs::read_to_string(site.world.app().join("mine")).unwrap(), "mine\n");
    assert!(!site.world.path("config/policies").exists());
    fs::remove_dir_all(site.world.app()).unwrap();
    // Without an answer nothing goes on.
    recover(&[]).exits(2).says(&["--yes"]);
    site.run(&["recover", "--repository", repository.to_str().unwrap()]).exits(2).says(&["identity"]);
    assert!(!site.world.app().exists());
    // Killed while the checkout's repository is made: it is there as a whole or not at all, and the next one goes on.
    let (app, commit) = (site.world.app(), commit.as_str());
    let mut found = [0, 0];
    for delay in [0, 3, 8, 15, 25, 40, 60] {
        let named = ["recover", "--repository", repository.to_str().unwrap(), "--identity", identity.to_str().unwrap()];
        let mut command = site.command(&[&named[..], &["--yes"]].concat());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while fs::read_dir(&app).map_or(0, |listed| listed.count()) == 0 {
            assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "it does not begin");
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        let whole = app.join(".git").exists();
        found[usize::from(whole)] += 1;
        if whole {
            assert_eq!(site.git(&["rev-parse", "HEAD"]), commit, "{delay} ms");
            site.git(&["fsck", "--full", "--strict"]);
            break;
        }
    }
    assert!(found[0] > 0, "every kill came too late");
    if site.run(&["list"]).err.contains("was cut short") {
        site.run(&["rollback", "--resume"]);
    }
    recover(&["--yes"]).exits(0).shows(&["recovered"]);
    site.is(1);
}
