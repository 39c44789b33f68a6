//! There and back, as root and as an ordinary user in group docker; a target that is not well; a project that is gone.

use crate::docker::docker;
use crate::postgres::{PostgresServer, bin};
use crate::site::Site;
use std::fs;

fn there_and_back(uid: u32) {
    let site = Site::new(uid);
    site.is(2);
    let cache = site.inspect("cache", "{{.State.StartedAt}}");
    let plan = site.run(&["rollback", "--to", "v1", "--dry-run"]).exits(0);
    let first = plan.out.lines().next().unwrap_or_default().to_owned();
    assert!(first.starts_with("Data written after ") && first.contains("will leave the live application"), "{first}");
    plan.shows(&["snapshot tagged v1", "extra"]);
    site.is(2);
    let report = site.run(&["rollback", "--to", "v1", "--yes", "--json"]).exits(0).json();
    assert_eq!(report["outcome"], "done", "{report:#}");
    assert!(report["downtime_seconds"].as_f64().unwrap() > 0.0, "{report:#}");
    site.is(1);
    assert_eq!(site.inspect("cache", "{{.State.StartedAt}}"), cache, "a store that stays is not touched");
    assert!(site.git(&["status", "--porcelain", "-uno"]).is_empty());
    site.git(&["switch", "-q", "main"]);
    // What the rollback saved first is the state that one wanted to leave: neither a commit nor a place in the list means it.
    for to in ["main", "latest"] {
        let plan = site.run(&["rollback", "--to", to, "--dry-run", "--json"]).exits(0).json();
        let shown = site.run(&["show", plan["plan"]["snapshot"].as_str().unwrap()]).exits(0);
        assert!(shown.out.contains("v2") && !shown.out.contains("pre-rollback"), "{to}: {shown:#?}");
    }
    site.git(&["switch", "-q", "--detach", "HEAD~1"]);
    site.run(&["rollback", "--undo", "--yes"]).exits(0);
    site.is(2);
    assert_eq!(site.git(&["rev-parse", "--abbrev-ref", "HEAD"]), "main");
    site.nothing_left();
}

#[test]
fn there_and_back_as_root() {
    there_and_back(0);
}

#[test]
fn there_and_back_as_a_user_in_group_docker() {
    there_and_back(4711);
}

#[test]
fn a_target_with_which_the_application_is_not_well_is_taken_back() {
    let site = Site::first(0);
    // The store is named by its container, and is needed where it is brought back.
    let policy = fs::read_to_string(site.policy_file()).unwrap();
    let by_service = "kind = \"redis\"\nname = \"cache\"\nservice = \"cache\"\n";
    assert!(policy.contains(by_service));
    let by_container = format!(
        "kind = \"command\"\nname = \"cache\"\ncontainer = \"{}-cache-1\"\nrun = [\"redis-cli\", \"ping\"]\n\
         restore = [\"redis-cli\", \"ping\"]\non_rollback = \"restore\"\n",
        site.project.name
    );
    fs::write(site.policy_file(), policy.replace(by_service, &by_container)).unwrap();
    // What was captured does not fit together.
    site.fill("9");
    site.run(&["snapshot", "--tag", "bad"]).exits(0);
    site.fill("1");
    assert!(site.healthy());
    site.upgrade();
    site.is(2);
    let report = site.run(&["rollback", "--to", "bad", "--yes", "--json"]).exits(1).json();
    assert_eq!(report["outcome"], "undone", "{report:#}");
    site.is(2);
    site.nothing_left();
}

#[test]
fn a_project_that_is_gone_comes_back_with_its_volumes() {
    let site = Site::new(0);
    site.project.compose(&["down", "-v", "--timeout", "1"]);
    site.run(&["rollback", "--to", "v1", "--dry-run"]).exits(0).shows(&["comes back when its store is up"]);
    site.run(&["rollback", "--to", "v1", "--yes"]).exits(0);
    site.is(1);
    site.project.compose(&["down", "-v", "--timeout", "1"]);
    // What it brought up is lost by an undo, and cannot be saved.
    site.run(&["rollback", "--undo", "--yes"]).exits(1).says(&["\"data\" cannot be saved first"]);
    // Nothing that fits: what was made goes again.
    site.add_to_policy("[[health]]\ncommand = [\"false\"]\nattempts = 1\n");
    site.run(&["rollback", "--to", "v2", "--yes"]).exits(6);
    // Taken back on request: what is in the new volumes may be in no snapshot.
    let volume = format!("{}_cache", site.project.name);
    // The checks of a project that is not there fail.
    site.run(&["rollback", "--undo", "--yes"]).exits(6).says(&["stay", &volume]);
    assert!(site.running().is_empty());
    docker(["volume", "inspect", &volume]);
}

/// The policy's command took the schema back, and the code did not stay: nobody is told that all is as it was.
#[test]
fn a_schema_that_was_taken_back_is_not_as_it_was() {
    let site = Site::first(0);
    let server = PostgresServer::start();
    server.create("shop");
    server.sql("shop", "CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('r1')");
    let url = server.socket_url("postgres", "shop");
    let psql = bin().join("psql");
    site.add_to_policy(&format!(
        "[[source]]\nkind = \"postgres\"\nname = \"db\"\nurl = {url:?}\n[rollback]\ndowngrade = '''{} '{url}' -c \
         \"UPDATE alembic_version SET version_num = '{{revision}}'\"'''\n",
        psql.display()
    ));
    site.run(&["snapshot", "--tag", "v1"]).exits(0);
    server.sql("shop", "UPDATE alembic_version SET version_num = 'r2'");
    site.upgrade();
    let revision = || server.sql("shop", "SELECT version_num FROM alembic_version");
    // The code of then is not well with the data of today.
    let failed = site.run(&["rollback", "--to", "v1", "--keep-data", "--yes"]).exits(1);
    assert_eq!(revision(), "r1");
    assert!(failed.out.contains("is NOT as it was") && !failed.err.contains("application is as it was"), "{failed:#?}");
    let (_, command) = failed.err.split_once(&format!("`lifeboat -p {} ", site.project.name)).unwrap();
    let (command, _) = command.split_once('`').unwrap();
    let words: Vec<&str> = command.split(' ').chain(["--yes"]).collect();
    site.run(&words).exits(0);
    assert_eq!(revision(), "r2");
    site.is(2);
}

#[test]
fn a_secret_that_was_rotated_stops_it_before_anything_goes_down() {
    let site = Site::first(0);
    let env = site.world.app().join(".env");
    let add = |line: &str| fs::write(&env, fs::read_to_string(&env).unwrap() + line).unwrap();
    site.add_to_policy("[[source]]\nkind = \"env\"\npaths = [\".env\"]\ndata_keys = [\"VAULT_KEY\"]\n");
    add("JWT_SECRET=then-aaaaaaaaaaaaaaaaaaaaaaaaa\nVAULT_KEY=vault-then\n");
    site.run(&["snapshot", "--tag", "v1"]).exits(0);
    site.upgrade();
    add("JWT_SECRET=now-bbbbbbbbbbbbbbbbbbbbbbbbbb\nVAULT_KEY=vault-now\n");
    let started = site.inspect("api", "{{.State.StartedAt}}");
    // The volume returns and Redis stays: neither value fits both.
    let mixed = site.run(&["rollback", "--to", "v1", "--yes"]).exits(2);
    mixed.says(&["VAULT_KEY", "data returns", "cache stays", "--env live"]).one_error_with_a_hint();
    let without = site.run(&["rollback", "--to", "v1", "--yes", "--only", "data"]).exits(2);
    without.says(&["VAULT_KEY", "--only env"]).one_error_with_a_hint();
    // All data stay, and the key with them.
    let refused = site.run(&["rollback", "--to", "v1", "--yes", "--keep-data"]).exits(2);
    refused.says(&["JWT_SECRET", "--env live"]).one_error_with_a_hint();
    assert_eq!(site.inspect("api", "{{.State.StartedAt}}"), started);
    site.run(&["rollback", "--to", "v1", "--yes", "--env", "live"]).exits(0).shows(&["`git switch main`"]);
    site.is(1);
    let text = fs::read_to_string(&env).unwrap();
    assert!(text.contains("vault-now") && !text.contains("vault-then"), "{text}");
    assert!(text.contains("now-bbb") && !text.contains("then-aaa") && text.contains("MODE=1"), "{text}");
    assert_eq!(site.in_api("echo $JWT_SECRET"), "now-bbbbbbbbbbbbbbbbbbbbbbbbbb");
}

#[test]
fn names_lead_to_snapshots_and_a_bare_rollback_lists_them() {
    let site = Site::new(0);
    let commit = site.git(&["rev-parse", "HEAD~1"]);
    for to in [&commit[..10], "v1", "latest~1"] {
        let plan = site.run(&["rollback", "--to", to, "--dry-run", "--json"]).exits(0).json();
        assert_eq!(plan["plan"]["aim"]["commit"], commit.as_str(), "{to}: {plan:#}");
    }
    site.git(&["tag", "v1", "HEAD"]);
    site.run(&["rollback", "--to", "v1", "--dry-run"]).exits(0).shows(&["git tag v1 is at"]);
    site.git(&["tag", "-f", "never", "HEAD"]);
    site.git(&["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "--allow-empty", "-m", "three"]);
    site.git(&["tag", "unsaved"]);
    site.run(&["rollback", "--to", "unsaved", "--yes"]).exits(2).says(&["no snapshot was taken at unsaved", "v2"]);
    site.run(&["rollback", "--to", "v3", "--yes"]).exits(2).says(&["v3"]).one_error_with_a_hint();
    let listed = site.run(&["rollback"]).exits(0);
    listed.shows(&["v1", "v2", "WHAT WOULD LEAVE"]);
    site.run(&["rollback", "--yes"]).exits(2).says(&["none is named", "--to"]).one_error_with_a_hint();
    site.is(2);
}
