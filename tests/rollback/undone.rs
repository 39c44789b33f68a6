//! Each step of a rollback fails by itself, by a real cause: the old state is back, well, and nothing is left over.

use crate::docker::{IMAGE, docker, try_docker};
use crate::port::free_port;
use crate::postgres::PostgresServer;
use crate::site::Site;
use crate::steps::{await_step, newest, steps};
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// When the cause comes to be.
#[derive(Clone, Copy, PartialEq)]
enum When {
    /// Before anything begins.
    Before,
    /// The plan is made and nothing is prepared: a hook waits for it.
    Planned,
    /// The services are being stopped.
    Stopping,
}

const WAITS: &str = "[hooks]\nbefore_rollback = \"touch ../planned; until test -e ../go; do sleep 0.05; done\"\n";

/// A step, and how it is made to fail.
struct Case {
    /// As the journal has it; two where it depends on how fast the cause is.
    step: &'static str,
    when: When,
    policy: &'static str,
    cause: fn(&Site) -> Box<dyn std::any::Any>,
    says: &'static [&'static str],
}

impl Case {
    fn by_policy(step: &'static str, policy: &'static str, says: &'static [&'static str]) -> Self {
        Self { step, when: When::Before, policy, cause: |_| Box::new(()), says }
    }

    fn by(
        step: &'static str,
        when: When,
        cause: fn(&Site) -> Box<dyn std::any::Any>,
        says: &'static [&'static str],
    ) -> Self {
        let policy = if when == When::Planned { WAITS } else { "" };
        Self { step, when, policy, cause, says }
    }
}

/// What nobody may change, root not excepted, until it is dropped.
struct Fixed(PathBuf);

impl Fixed {
    fn at(path: PathBuf) -> Box<dyn std::any::Any> {
        assert!(Command::new("chattr").arg("+i").arg(&path).status().unwrap().success(), "{}", path.display());
        Box::new(Self(path))
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(&self.0).status();
    }
}

/// A container of somebody else.
struct Foreign(String);

impl Drop for Foreign {
    fn drop(&mut self) {
        try_docker(["rm", "-f", &self.0]);
    }
}

fn volume(site: &Site) -> PathBuf {
    docker(["volume", "inspect", "-f", "{{.Mountpoint}}", &format!("{}_data", site.project.name)]).into()
}

/// Takes a port as soon as it is free.
fn take(port: u16) -> Box<dyn std::any::Any> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => return Box::new(listener),
            Err(e) => assert!(Instant::now() < end, "port {port}: {e}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs the rollback under a cause. Its exit code and what it said; the cause is gone when `after` has looked.
fn fails(site: &Site, case: &Case, arguments: &[&str], code: i32, after: impl Fn(&Site)) {
    let kept = fs::read_to_string(site.policy_file()).unwrap();
    site.add_to_policy(case.policy);
    let (planned, go) = (site.world.path("planned"), site.world.path("go"));
    for file in [&planned, &go] {
        let _ = fs::remove_file(file);
    }
    let old = newest(site);
    let mut cause: Box<dyn std::any::Any> = Box::new(());
    if case.when == When::Before {
        cause = (case.cause)(site);
    }
    let mut command = site.command(arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    match case.when {
        When::Before => {}
        When::Planned => {
            let end = Instant::now() + Duration::from_secs(60);
            while !planned.exists() && child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < end, "{}: no plan", case.step);
                std::thread::sleep(Duration::from_millis(20));
            }
            cause = (case.cause)(site);
            fs::write(&go, "").unwrap();
        }
        When::Stopping => {
            await_step(site, old, &mut child, "stop");
            cause = (case.cause)(site);
        }
    }
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{}: {said}", case.step);
    for part in case.says {
        assert!(said.contains(part), "{}: {part:?}: {said}", case.step);
    }
    let failed: Vec<String> = steps(site).into_iter().filter(|(_, phase)| phase == "failed").map(|(s, _)| s).collect();
    let first = failed.first().cloned().unwrap_or_default();
    assert!(case.step.split('|').any(|step| step == first), "{}: it failed at {first:?}: {said}", case.step);
    println!("{}: {said}", case.step);
    after(site);
    drop(cause);
    fs::write(site.policy_file(), kept).unwrap();
}

/// The old state, whole and well.
fn is_as_before(site: &Site) {
    site.is(2);
    site.nothing_left();
    site.run(&["rollback", "--resume"]).exits(2).says(&["no transaction"]);
    assert!(!site.run(&["list"]).exits(0).err.contains("cut short"));
}

const TO_ONE: &[&str] = &["rollback", "--to", "v1", "--yes"];

#[test]
fn a_step_on_files_fails() {
    let site = Site::new(0);
    let cases = [
        Case::by_policy(
            "hooks-before",
            "[hooks]\nbefore_rollback = \"echo no-way >&2; exit 3\"\n",
            &["status 3: no-way"],
        ),
        Case::by("prepare data", When::Planned, |s| Fixed::at(volume(s)), &["\"data\"", "not permitted"]),
        Case::by("switch git", When::Before, |s| Fixed::at(s.world.app().join("code/version")), &["code/version"]),
        Case::by("switch env", When::Before, |s| Fixed::at(s.world.app().join(".env")), &[".env", "not permitted"]),
        Case::by("switch data", When::Before, |s| Fixed::at(volume(s).join("state")), &["state", "not permitted"]),
    ];
    for case in &cases {
        fails(&site, case, TO_ONE, 1, |_| {});
        is_as_before(&site);
    }
    // On the way back as well: what was prepared cannot be removed. It goes on when the cause is gone.
    let both =
        Case::by("switch data", When::Stopping, |s| Fixed::at(volume(s)), &["taking transaction", "rollback --resume"]);
    fails(&site, &both, TO_ONE, 1, |site| {
        site.run(&["snapshot"]).exits(5).says(&["rollback --resume"]);
        site.run(&["rollback", "--resume"]).exits(1).says(&["rollback --resume"]);
    });
    site.run(&["rollback", "--resume"]).exits(0);
    is_as_before(&site);
}

/// The ports that a site publishes.
fn port(site: &Site, service: &str) -> u16 {
    let text = fs::read_to_string(site.world.app().join("compose.yaml")).unwrap();
    let own = &text[text.find(&format!("\n  {service}:")).unwrap()..];
    let at = own.find("127.0.0.1:").unwrap() + "127.0.0.1:".len();
    own[at..].split(':').next().unwrap().parse().unwrap()
}

/// An image that has been thrown away meanwhile, by all its names.
fn throw_away(site: &Site) -> Box<dyn std::any::Any> {
    let live = site.inspect("api", "{{.Image}}");
    let listed = docker(["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"]);
    for line in listed.lines().filter(|l| l.contains(&site.project.name)) {
        let (id, name) = line.split_once(' ').unwrap();
        if id != live {
            docker(["rmi", "-f", name]);
        }
    }
    Box::new(())
}

#[test]
fn a_step_on_services_fails() {
    let (api, cache) = (free_port(), free_port());
    let site = Site::with_ports(api, cache);
    let cases = [
        Case::by("start", When::Stopping, |s| take(port(s, "api")), &["already in use"]),
        Case::by_policy(
            "start",
            "[rollback]\nup = \"echo no-way >&2; exit 3\"\n",
            &["[rollback] up", "status 3: no-way"],
        ),
        Case::by_policy("confirm compose", "[rollback]\nup = \"true\"\n", &["service api has 0 of 1"]),
        Case::by_policy(
            "health",
            "[[health]]\ncommand = [\"grep\", \"-q\", \"MODE=2\", \".env\"]\nattempts = 1\n",
            &["not well afterwards"],
        ),
    ];
    for (n, case) in cases.iter().enumerate() {
        if n == 0 {
            // The port is still taken when the old state shall come up again: that waits for whoever frees it.
            fails(&site, case, TO_ONE, 1, |_| {});
            site.run(&["rollback", "--resume"]).exits(0);
        } else {
            fails(&site, case, TO_ONE, 1, |_| {});
        }
        is_as_before(&site);
    }
    let gone = Case::by("settle compose|switch compose|start", When::Stopping, throw_away, &["image"]);
    fails(&site, &gone, TO_ONE, 1, |_| {});
    is_as_before(&site);
}

#[test]
fn a_step_of_a_project_that_is_down_fails() {
    let (api, cache) = (free_port(), free_port());
    let site = Site::with_ports(api, cache);
    site.project.compose(&["down", "-v", "--timeout", "1"]);
    let left = |site: &Site| {
        let label = format!("label=com.docker.compose.project={}", site.project.name);
        assert_eq!(docker(["ps", "-aq", "--filter", &label]), "", "containers");
        assert_eq!(docker(["volume", "ls", "-q", "--filter", &label]), "", "volumes");
        assert_eq!(docker(["network", "ls", "-q", "--filter", &label]), "", "networks");
        let version = fs::read_to_string(site.world.app().join("code/version")).unwrap();
        assert_eq!(version.trim(), "2");
        site.run(&["rollback", "--resume"]).exits(2).says(&["no transaction"]);
    };
    let foreign = |site: &Site| -> Box<dyn std::any::Any> {
        let name = format!("{}-api-1", site.project.name);
        docker(["create", "--name", &name, IMAGE, "true"]);
        Box::new(Foreign(name))
    };
    fails(&site, &Case::by("create", When::Planned, foreign, &["api-1", "in use"]), TO_ONE, 1, |site| {
        let name = format!("{}-api-1", site.project.name);
        assert_eq!(docker(["inspect", "-f", "{{.State.Status}}", &name]), "created", "somebody else's stays");
        left(site);
    });
    let taken = Case::by("raise", When::Planned, |s| take(port(s, "cache")), &["already in use"]);
    fails(&site, &taken, TO_ONE, 1, left);
    // And nothing stands in the way afterwards.
    site.run(TO_ONE).exits(0);
    site.is(1);
}

#[test]
fn the_schema_cannot_be_taken_back() {
    let site = Site::first(0);
    let server = PostgresServer::start();
    server.create("shop");
    server.sql("shop", "CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('a1')");
    let url = server.socket_url("postgres", "shop");
    site.add_to_policy(&format!("[[source]]\nkind = \"postgres\"\nname = \"db\"\nurl = {url:?}\n"));
    site.run(&["snapshot", "--tag", "v1"]).exits(0);
    server.sql("shop", "UPDATE alembic_version SET version_num = 'b2'");
    site.upgrade();
    let case = Case::by_policy(
        "downgrade",
        "[rollback]\ndowngrade = \"echo {revision} is no good >&2; exit 4\"\n",
        &["[rollback] downgrade", "status 4: a1 is no good"],
    );
    fails(&site, &case, &["rollback", "--to", "v1", "--yes", "--keep-data"], 1, |_| {});
    is_as_before(&site);
    assert_eq!(server.sql("shop", "SELECT version_num FROM alembic_version"), "b2");
}
