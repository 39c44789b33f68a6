//! `guard`: an upgrade that goes well, one that fails, one after which the application is not well.

use crate::site::Site;
use std::fs;

/// A deployment as a script of the application's own.
fn script(site: &Site, text: &str) -> String {
    let path = site.world.path("deploy.sh");
    fs::write(&path, format!("#!/bin/sh\nset -e\ncd app\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

const DEPLOY: &str = "sed -i 's/MODE=1/MODE=2/' .env; echo 2 > code/version
git -c user.name=a -c user.email=a@example.org commit -qam two; docker compose build -q; docker compose up -d; echo deployed";

#[test]
fn what_goes_well_stays_and_is_captured() {
    let site = Site::first(0);
    let deploy = script(&site, &format!("{DEPLOY}\ndocker compose exec -T api sh -c 'echo 2 > /data/state'"));
    let ran = site.run(&["guard", "--tag", "v2", "--", &deploy]).exits(0);
    assert!(ran.out.contains("deployed"), "{ran:#?}");
    let listed = site.run(&["list", "--json"]).exits(0).json();
    let tags: Vec<String> = listed["snapshots"].as_array().unwrap().iter().map(|s| s["tags"].to_string()).collect();
    assert_eq!(tags, [r#"["v2"]"#, r#"["before-v2"]"#]);
    assert_eq!(site.in_api("cat /version"), "2");
    // Somebody else's run holds the policy when the second snapshot is due: it is waited for.
    site.add_to_policy("[[source]]\nkind = \"command\"\nname = \"queue\"\nrun = [\"cat\", \"queue\"]\n");
    fs::write(site.world.app().join("queue"), "a job\n").unwrap();
    let lock = site.world.path(&format!("state/{}.lock", site.project.name));
    assert!(lock.exists());
    let held =
        format!("flock {0} sleep 6 >/dev/null 2>&1 & while flock -n {0} true; do sleep 0.05; done", lock.display());
    let waited = site.run(&["guard", "--tag", "v3", "--", &script(&site, &held)]).exits(0);
    waited.says(&["waiting for another run of policy"]);
    // What the release has broken for captures alone is no reason to take it back, and is told.
    let report = site.run(&["guard", "--tag", "v4", "--json", "--", &script(&site, "rm queue")]).exits(3).json();
    assert_eq!((&report["after_outcome"], &report["rollback"]), (&"partial".into(), &serde_json::Value::Null));
    let listed = site.run(&["list", "--json"]).exits(0).json();
    let newest = &listed["snapshots"][0];
    assert_eq!((&newest["tags"][0], &newest["outcome"]), (&"v4".into(), &"partial".into()), "{newest:#}");
    assert_eq!(newest["id"], report["after"]);
    assert_eq!(site.in_api("cat /version"), "2");
}

#[test]
fn a_deployment_that_breaks_the_application_is_taken_back() {
    let site = Site::first(0);
    let deploy = script(&site, DEPLOY);
    let ran = site.run(&["guard", "--tag", "v2", "--json", "--", &deploy]).exits(7);
    let report = ran.json();
    assert!(report["failed"].as_str().unwrap().contains("not well"), "{report:#}");
    assert_eq!(report["rollback"]["outcome"], "done", "{report:#}");
    site.is(1);
    // The release calls the service by another name: what the policy stops is not there, and comes back all the same.
    site.git(&["switch", "-q", "main"]);
    site.git(&["reset", "-q", "--hard", "HEAD~1"]);
    site.add_to_policy("[rollback]\nstop = [\"api\"]\n");
    let renamed =
        script(&site, "sed -i 's/^  api:/  server:/' compose.yaml; docker compose up -d --remove-orphans; exit 3");
    let report = site.run(&["guard", "--json", "--", &renamed]).exits(7).json();
    assert_eq!(report["rollback"]["outcome"], "done", "{report:#}");
    site.is(1);
}

#[test]
fn a_command_that_fails_is_taken_back_or_left_as_was_asked() {
    let site = Site::first(0);
    let deploy = script(&site, "echo broken > code/version; exit 3");
    site.run(&["guard", "--no-rollback", "--", &deploy]).exits(1).says(&["status 3", "rollback --to"]);
    assert_eq!(fs::read_to_string(site.world.app().join("code/version")).unwrap(), "broken\n");
    fs::write(site.world.app().join("code/version"), "1\n").unwrap();
    let away = script(&site, "mv .git ../away; exit 4");
    let report = site.run(&["guard", "--json", "--", &away]).exits(1);
    let document = report.json();
    assert!(document["rollback_failed"].as_str().unwrap().contains("not a git repository"), "{document:#}");
    report.says(&["status 4", "could not be rolled back", "not a git repository any more"]);
    fs::rename(site.world.path("away"), site.world.app().join(".git")).unwrap();
    // A pull that ends in a conflict, and a lock that a killed git left.
    let pull = script(
        &site,
        "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
git switch -qc side; echo 3 > code/version; git commit -qam side; git switch -q main; echo 4 > code/version
git commit -qam main; git merge side || { touch .git/index.lock; exit 3; }",
    );
    site.run(&["guard", "--", &pull]).exits(7).says(&["status 3", "back where it was"]);
    site.is(1);
    assert!(!site.world.app().join(".git/MERGE_HEAD").exists());
    let kept = site.git(&["for-each-ref", "--format=%(refname)", "refs/lifeboat/dirty/guard-*"]);
    assert!(site.git(&["show", &format!("{kept}:code/version")]).contains("<<<<<<<"), "{kept}");
    site.run(&["guard", "--", "/no/such/program"]).exits(1).says(&["/no/such/program"]);
    site.is(1);
}
