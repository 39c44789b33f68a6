//! The release brought another major version of PostgreSQL: a server of before does not start on the folder of today.
//!
//! Both servers are real, 15 and 16, and so is the refusal of one to start on the other's folder. Making clusters of both
//! anew, and snapshots of them, is what these tests take their time for.

use crate::crash::killed_in;
use crate::docker::{IMAGE, docker, try_docker};
use crate::site::Site;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The test image with PostgreSQL 16.
const IMAGE_16: &str = "lifeboat-test/postgres-16:1";
const TO_ONE: &[&str] = &["rollback", "--to", "v1", "--new-data-dir", "--yes"];

fn sql(site: &Site, sql: &str) -> String {
    let container = format!("{}-db-1", site.project.name);
    let argv = ["exec", "-e", "PGPASSWORD=pg-secret-of-a-test", &container, "psql", "-XAtq", "-v", "ON_ERROR_STOP=1"];
    docker([&argv[..], &["-h", "/var/run/postgresql", "-U", "keeper", "-d", "shop", "-c", sql]].concat())
}

/// The folder of the volume, with the data folder in it.
fn volume(site: &Site) -> PathBuf {
    let mounted = docker(["volume", "inspect", "-f", "{{.Mountpoint}}", &format!("{}_pgdata", site.project.name)]);
    PathBuf::from(mounted).parent().unwrap().to_owned()
}

/// Names in it: what lies aside is among them.
fn beside(site: &Site) -> Vec<String> {
    let listed = fs::read_dir(volume(site)).unwrap();
    let mut names: Vec<String> = listed.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with(".lifeboat-"));
    names
}

/// Version 1 on 15, captured.
fn first() -> Site {
    let known = try_docker(["image", "inspect", IMAGE_16]);
    assert!(known.status.success(), "these tests need the image {IMAGE_16}; scripts/test.sh makes it");
    let site = Site::with_database([IMAGE, IMAGE_16]);
    site.add_to_policy("[[source]]\nkind = \"postgres\"\nname = \"db\"\nservice = \"db\"\n");
    sql(
        &site,
        "CREATE ROLE shop; CREATE TABLE orders AS SELECT generate_series(1, 1000) AS id; ALTER TABLE orders OWNER TO shop",
    );
    site.run(&["snapshot", "--tag", "v1"]).exits(0);
    site
}

/// As people do it: the server of before away with its files, the new one filled from a dump.
const UPGRADE: &str =
    "docker compose stop -t 5 db; docker run --rm -v \"$COMPOSE_PROJECT_NAME\"_pgdata:/v IMAGE rm -rf /v/data";

fn upgraded(site: &Site) {
    let container = format!("{}-db-1", site.project.name);
    docker(["stop", "-t", "5", &container]);
    docker(["run", "--rm", "-v", &format!("{}_pgdata:/v", site.project.name), IMAGE, "rm", "-rf", "/v/data"]);
    site.upgrade();
    sql(
        site,
        "CREATE ROLE shop; CREATE TABLE orders AS SELECT generate_series(1, 1312) AS id; CREATE TABLE coupons (id int)",
    );
    is(site, 2);
}

/// All of a version, its database server too.
#[track_caller]
fn is(site: &Site, version: u32) {
    site.is(version);
    let (major, rows) = if version == 1 { ("15", "1000") } else { ("16", "1312") };
    assert_eq!(sql(site, "SHOW server_version").split('.').next(), Some(major));
    assert_eq!(sql(site, "SELECT count(*) FROM orders"), rows);
    assert_eq!(fs::read_to_string(volume(site).join("_data/data/PG_VERSION")).unwrap().trim(), major);
    if version == 1 {
        assert_eq!(sql(site, "SELECT tableowner FROM pg_tables WHERE tablename = 'orders'"), "shop");
    }
}

#[test]
fn a_server_of_before_gets_a_cluster_of_its_own() {
    let site = first();
    upgraded(&site);
    // Without being told so, nobody gives up a data folder, and nobody starts a server on one that is too new for it.
    let started = site.inspect("api", "{{.State.StartedAt}}");
    let refused = site.run(&["rollback", "--to", "v1", "--yes"]).exits(1);
    refused.says(&["PostgreSQL 16", "the snapshot is of 15", "--new-data-dir"]).one_error_with_a_hint();
    let refused = site.run(&["rollback", "--to", "v1", "--keep-data", "--yes"]).exits(2);
    refused.says(&["would not start on the data folder", "--new-data-dir"]).one_error_with_a_hint();
    let plan = site.run(&["rollback", "--to", "v1", "--new-data-dir", "--dry-run"]).exits(0);
    plan.shows(&[
        "db: orders +312",
        "new cluster",
        "PostgreSQL 15 then and 16 now",
        "is kept as",
        "as long as a restore",
    ]);
    assert_eq!(beside(&site), [] as [&str; 0]);
    assert_eq!(site.inspect("api", "{{.State.StartedAt}}"), started, "nothing has been touched");

    let report = site.run(&[TO_ONE, &["--json"]].concat()).exits(0).json();
    assert_eq!(report["outcome"], "done", "{report:#}");
    let own = report["sources"].as_array().unwrap().iter().find(|s| s["name"] == "db").unwrap();
    assert!(own["lines"][0].as_str().unwrap().contains("new cluster"), "{report:#}");
    is(&site, 1);
    let kept = beside(&site);
    assert_eq!(kept.len(), 1, "{kept:?}");
    let version = fs::read_to_string(volume(&site).join(&kept[0]).join("data/PG_VERSION")).unwrap();
    assert_eq!(version.trim(), "16");

    // Once it is not kept any more, all the rest stays as it is: a server on another one's cluster is worse than none.
    let (aside, away) = (volume(&site).join(&kept[0]), volume(&site).join("away"));
    fs::rename(&aside, &away).unwrap();
    let started = site.inspect("api", "{{.State.StartedAt}}");
    let refused = site.run(&["rollback", "--undo", "--yes"]).exits(2).one_error_with_a_hint();
    refused.says(&["the data folder of db is not kept any more", "safety snapshot"]);
    assert_eq!(site.inspect("api", "{{.State.StartedAt}}"), started, "nothing has been touched");
    is(&site, 1);
    fs::rename(&away, &aside).unwrap();

    // On request it comes back, and what was written since is in a snapshot.
    sql(&site, "INSERT INTO orders VALUES (1001)");
    site.run(&["rollback", "--undo", "--dry-run"]).exits(0).shows(&["volume data", "data folder", "_data)"]);
    site.run(&["rollback", "--undo", "--yes"]).exits(0);
    is(&site, 2);
    assert_eq!(beside(&site), [] as [&str; 0]);
    let listed = site.run(&["list", "--json"]).exits(0).json();
    let undone = listed["snapshots"].as_array().unwrap().iter().find(|s| s["tags"].to_string().contains("pre-undo"));
    let shown = site.run(&["show", undone.unwrap()["id"].as_str().unwrap(), "--json"]).exits(0).json();
    let db = shown["sources"].as_array().unwrap().iter().find(|s| s["name"] == "db").unwrap();
    assert_eq!(db["facts"]["databases"][0]["tables"][0]["rows"], 1001, "{db:#}");
}

#[test]
fn killed_while_a_data_folder_goes_aside_or_comes_back() {
    let site = first();
    upgraded(&site);
    let whole = std::env::var_os("LIFEBOAT_SWEEP").is_some();
    // What it does in them takes some hundreds of milliseconds.
    let cases = [
        ("aside db", 350),
        ("prepare db", 200),
        ("aside db", 0),
        ("aside db", 150),
        ("aside db", 700),
        ("create", 100),
        ("raise", 300),
        ("raise", 1500),
        ("settle db", 0),
        ("switch db", 20),
        ("start", 300),
    ];
    let (mut new, mut old) = (0, 0);
    for (step, delay) in cases.into_iter().take(if whole { usize::MAX } else { 1 }) {
        killed_in(&site, TO_ONE, step, Duration::from_millis(delay));
        resume(&site);
        if fs::read_to_string(site.world.app().join("code/version")).unwrap().trim() == "1" {
            new += 1;
            is(&site, 1);
            site.run(&["rollback", "--undo", "--yes"]).exits(0);
        } else {
            old += 1;
        }
        is(&site, 2);
        assert_eq!(beside(&site), [] as [&str; 0], "{step}, {delay} ms");
    }
    // On the way back there is one end only.
    site.run(TO_ONE).exits(0);
    is(&site, 1);
    let cases = [("aside-back db", 350), ("aside-back db", 0), ("aside-back db", 700), ("start-again", 300)];
    for (n, (step, delay)) in cases.into_iter().take(if whole { usize::MAX } else { 1 }).enumerate() {
        if n > 0 {
            site.run(TO_ONE).exits(0);
        }
        undo_killed(&site, step, Duration::from_millis(delay));
        resume(&site);
        is(&site, 2);
        assert_eq!(beside(&site), [] as [&str; 0], "{step}, {delay} ms");
    }
    println!("{new} new, {old} old");
}

fn resume(site: &Site) {
    if site.run(&["list"]).exits(0).err.contains("was cut short") {
        site.run(&["rollback", "--resume"]).exits(0);
    }
}

/// The journal of what is undone is there already.
fn undo_killed(site: &Site, step: &str, delay: Duration) {
    let mut command = site.command(&["rollback", "--undo", "--yes"]);
    let mut child = command.spawn().unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(90);
    while !crate::steps::steps(site).iter().any(|(name, phase)| name == step && phase == "begin") {
        assert!(std::time::Instant::now() < end && child.try_wait().unwrap().is_none(), "it does not get to {step}");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Guard asks nobody: what its command did to the database server is taken back with the rest.
#[test]
fn a_deployment_that_upgrades_the_server_and_fails_is_taken_back() {
    let site = first();
    site.add_to_policy("[rollback]\nkeep_old = \"1s\"\n");
    let app = site.world.app();
    // Version 2, as its repository brings it.
    let release = site.world.path("release");
    site.write_version(
        2,
        "  extra:\n    image: IMAGE\n    command: [\"sh\", \"-c\", \"trap 'exit 0' TERM; while :; do sleep 0.2; done\"]\n".replace("IMAGE", IMAGE).as_str(),
    );
    fs::create_dir(&release).unwrap();
    for file in ["compose.yaml", ".env", "code/version"] {
        fs::copy(app.join(file), release.join(file.replace('/', "-"))).unwrap();
    }
    site.git(&["checkout", "-q", "."]);
    site.write_version(1, "");
    let script = site.world.path("deploy.sh");
    let upgrade = UPGRADE.replace("IMAGE", IMAGE).replace("\"$COMPOSE_PROJECT_NAME\"", &site.project.name);
    let text = format!(
        "#!/bin/sh\nset -e\ncd {}\n{upgrade}\ncp {release}/compose.yaml .\ncp {release}/.env .\ncp {release}/code-version \
         code/version\ngit -c user.name=a -c user.email=a@example.org commit -qam two\ndocker compose up -d --wait db\nexit 3\n",
        app.display(),
        release = release.display(),
    );
    fs::write(&script, text).unwrap();
    let report = site.run(&["guard", "--json", "--", "sh", script.to_str().unwrap()]).exits(7).json();
    assert_eq!(report["rollback"]["outcome"], "done", "{report:#}");
    is(&site, 1);
    // Kept as long as the policy says, and no longer.
    assert_eq!(beside(&site).len(), 1);
    std::thread::sleep(Duration::from_secs(1));
    site.run(&["snapshot"]).exits(0);
    assert_eq!(beside(&site), [] as [&str; 0]);
    is(&site, 1);
}
