//! `doctor`: a healthy host, and each thing that can be wrong with one.

use crate::world::{CANARY, Ran, World};
use chrono::{SubsecRound, TimeDelta, Utc};
use lifeboat::base::cancel::Cancel;
use lifeboat::base::events::Events;
use lifeboat::ops::Run;
use lifeboat::ops::access::Installation;
use lifeboat::ops::doctor::{Examined, Verdict, examine};
use lifeboat::policy;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The verdict and detail of one check of the first policy.
fn finding(json: &Value, check: &str) -> (String, String) {
    let findings = json["policies"][0]["findings"].as_array().unwrap();
    let found = findings.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("no {check} in {json:#}"));
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    if found["verdict"] != "ok" {
        assert!(!text("hint").is_empty() && !text("why").is_empty(), "no hint, or not why: {found}");
    }
    (text("verdict"), text("detail"))
}

/// What the world is like some time later.
fn later(world: &World, by: TimeDelta) -> Examined {
    let installation = Installation { config_dir: world.path("config"), state_dir: world.path("state") };
    let policy = policy::load(&world.policy()).unwrap();
    let run = Run { events: Events::none(), cancel: Cancel::new(), now: Utc::now().trunc_subsecs(0) + by };
    examine(&installation, &policy, &run).unwrap()
}

fn of(examined: &Examined, check: &str) -> (Verdict, String) {
    let found = examined.findings.iter().find(|f| f.check == check).unwrap_or_else(|| panic!("{examined:#?}"));
    (found.verdict, found.detail.clone())
}

/// The service of a world, ended when dropped.
struct Served(std::process::Child);

impl Served {
    fn start(world: &World) -> Self {
        let mut served = Self(world.command(&["serve", "-q"]).spawn().unwrap());
        let lock = world.path("state/serve.lock");
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !fs::read_to_string(&lock).is_ok_and(|mark| !mark.is_empty()) {
            assert!(served.0.try_wait().unwrap().is_none() && std::time::Instant::now() < limit, "it does not serve");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        served
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_healthy_host_is_told_so() {
    let world = World::with_snapshot();
    world.run(&["drill"]).exits(0);
    let code = world.json(&["recovery-kit"])["code"].as_str().unwrap().to_owned();
    world.run(&["recovery-kit", "--confirm", &code]).exits(0);
    // Something runs it, and somebody hears of a failure.
    world.add_to_policy("[notify]\nntfy = \"https://ntfy.example.org/backups\"\n");
    let _service = Served::start(&world);
    let ran =
        world.run(&["doctor"]).exits(0).shows(&["shop", "host key", "identity", "recipients", "1 proved", "old)"]);
    assert!(!ran.out.contains("problem") && !ran.out.contains("warning") && !ran.out.contains("hint"), "{}", ran.out);
    let json = world.json(&["doctor"]);
    for check in [
        "policy",
        "host key",
        "identity",
        "repository",
        "recipients",
        "room",
        "snapshots",
        "drill",
        "clock",
        "recovery kit",
        "transactions",
        "source",
        "coverage",
        "versions",
        "disk",
        "cron",
        "service",
        "notify",
    ] {
        assert_eq!(finding(&json, check).0, "ok", "{json:#}");
    }
    assert_eq!(world.run(&["doctor", "-q"]).exits(0).out, "", "nothing to tell");
    // A sealed host is as well.
    fs::rename(world.identity(), world.path("usb.txt")).unwrap();
    world.run(&["doctor"]).exits(0).shows(&["this host is sealed"]);
}

#[test]
fn files_that_others_may_read_or_write_are_problems() {
    let world = World::with_snapshot();
    chmod(&world.identity(), 0o640);
    chmod(&world.policy(), 0o662);
    let json = world.json(&["doctor"]);
    assert_eq!(json["exit_code"], 1);
    let (verdict, text) = finding(&json, "identity");
    assert!(verdict == "problem" && text.contains("readable by others (mode 0640)"), "{text}");
    let (verdict, text) = finding(&json, "policy");
    assert!(verdict == "problem" && text.contains("written by others (mode 0662)"), "{text}");
    world.run(&["doctor", "-q"]).exits(1).shows(&["problem", "hint: policy: chmod go-w"]);
    chmod(&world.identity(), 0o600);
    chmod(&world.policy(), 0o644);
    world.run(&["doctor"]).exits(0);
    fs::remove_file(world.path("config/host.key")).unwrap();
    assert_eq!(finding(&world.json(&["doctor"]), "host key").0, "problem");
}

#[test]
fn a_recipient_that_nobody_proved_is_a_warning() {
    let world = World::with_snapshot();
    let other = World::new();
    other.run(&["keys", "new"]).exits(0);
    let text = fs::read_to_string(other.identity()).unwrap();
    let other = text.lines().find_map(|l| l.strip_prefix("# recipient: ")).unwrap();
    world.change_policy("recipients = [", &format!("recipients = [\n  {other:?},"));
    let json = world.json(&["doctor"]);
    assert_eq!(json["exit_code"], 0, "{json:#}");
    let (verdict, text) = finding(&json, "recipients");
    assert!(verdict == "warning" && text.contains(other), "{text}");
}

#[test]
fn room_copies_and_a_repository_that_is_gone() {
    let world = World::with_snapshot();
    let missing = world.path("usb");
    world.change_policy("\n[repository]\n", &format!("\n[repository]\nmin_free = \"100%\"\ncopies = [{missing:?}]\n"));
    let json = world.json(&["doctor"]);
    assert_eq!(json["exit_code"], 1);
    let (verdict, text) = finding(&json, "room");
    assert!(verdict == "problem" && text.contains("no snapshot can be written"), "{text}");
    let (verdict, text) = finding(&json, "copy");
    assert!(verdict == "problem" && text.contains("there is nothing at"), "{text}");
    world.change_policy("min_free = \"100%\"", "min_free = \"1MiB\"");
    world.run(&["copy", "--to", missing.to_str().unwrap()]).exits(0);
    world.run(&["doctor"]).exits(0);
    fs::rename(world.repository(), world.path("away")).unwrap();
    let json = world.json(&["doctor"]);
    assert_eq!((json["exit_code"].as_i64(), finding(&json, "repository").0.as_str()), (Some(1), "problem"));
    assert!(json["policies"][0]["findings"].as_array().unwrap().iter().all(|f| f["check"] != "snapshots"), "{json:#}");
}

#[test]
fn a_repository_that_went_back_or_is_damaged_is_a_problem() {
    let world = World::with_snapshot();
    let before = crate::world::tree(&world.repository());
    world.run(&["snapshot"]).exits(0);
    for (path, _) in crate::world::tree(&world.repository()) {
        if before.iter().all(|(old, _)| *old != path) && path.to_string_lossy().contains("/snapshots/") {
            fs::remove_file(path).unwrap();
        }
    }
    let (verdict, text) = finding(&world.json(&["doctor"]), "repository");
    assert!(verdict == "problem" && text.contains("rolled back"), "{text}");
}

#[test]
fn a_snapshot_that_is_missed_and_a_clock_that_is_wrong_are_problems() {
    let world = World::ready();
    let (verdict, text) = finding(&world.json(&["doctor"]), "snapshots");
    assert!(verdict == "problem" && text.contains("no complete snapshot"), "{text}");
    world.run(&["snapshot"]).exits(0);
    let found = later(&world, TimeDelta::zero());
    assert_eq!((of(&found, "snapshots").0, of(&found, "clock").0), (Verdict::Ok, Verdict::Ok));
    // One that is due may be on its way. Within 23 hours no second one is, whatever the time of day is now.
    let found = later(&world, TimeDelta::hours(23));
    assert_eq!(of(&found, "snapshots").0, Verdict::Ok, "{found:#?}");
    let found = later(&world, TimeDelta::days(3));
    let (verdict, text) = of(&found, "snapshots");
    assert!(verdict == Verdict::Problem && text.contains("was due"), "{text}");
    let (verdict, text) = of(&found, "clock");
    assert!(verdict == Verdict::Problem && text.contains("this host's clock says"), "{text}");
    for (apart, verdict) in [(4, Verdict::Ok), (-4, Verdict::Ok), (6, Verdict::Problem), (-6, Verdict::Problem)] {
        assert_eq!(of(&later(&world, TimeDelta::minutes(apart)), "clock").0, verdict, "{apart} minutes");
    }
    // A partial one does not count.
    world.run(&["snapshot", "--only", "env"]).exits(0);
    assert_eq!(of(&later(&world, TimeDelta::days(3)), "snapshots").0, Verdict::Problem);
}

#[test]
fn all_policies_are_looked_at_also_behind_one_that_cannot_be_read() {
    let world = World::with_snapshot();
    world.run(&["drill"]).exits(0);
    fs::write(world.path("config/policies/a.toml"), "[app]\nnane = \"a\"\n").unwrap();
    let json = world.json(&["doctor"]);
    assert_eq!(json["exit_code"], 1);
    let policies = json["policies"].as_array().unwrap();
    assert_eq!(policies.len(), 2, "{json:#}");
    assert_eq!(policies[0]["findings"][0]["verdict"], "problem");
    let reminders = ["recovery kit", "service", "notify"];
    let well = |f: &Value| f["verdict"] == "ok" || reminders.contains(&f["check"].as_str().unwrap());
    assert!(policies[1]["findings"].as_array().unwrap().iter().all(well), "{json:#}");
    world.run(&["doctor", "-p", "shop"]).exits(0);
    world.run(&["doctor", "-p", "nope"]).exits(2).says(&["no policy is called"]);
    World::new().run(&["doctor"]).exits(2).one_error_with_a_hint();
}

#[test]
fn a_proof_that_is_missing_or_too_old_is_said() {
    let world = World::with_snapshot();
    assert_eq!(of(&later(&world, TimeDelta::zero()), "drill").0, Verdict::Warning, "never proved");
    world.run(&["drill"]).exits(0);
    assert_eq!(of(&later(&world, TimeDelta::days(7)), "drill").0, Verdict::Ok);
    let (verdict, text) = of(&later(&world, TimeDelta::days(9)), "drill");
    assert!(verdict == Verdict::Problem && text.contains("is the limit"), "{text}");
}

#[test]
fn secrets_that_anybody_may_read_and_folders_that_no_source_takes_are_said() {
    let world = World::with_snapshot();
    chmod(&world.app().join(".env"), 0o644);
    let (verdict, text) = finding(&world.json(&["doctor"]), "permissions");
    assert!(verdict == "problem" && text.contains("the secrets in .env"), "{text}");
    chmod(&world.app().join(".env"), 0o600);
    // An env file of another name is the application's as well.
    fs::write(world.app().join(".env.worker"), "A=b\n").unwrap();
    world.change_policy("paths = [\".env\"]", "paths = [\"uploads/nothing.env\", \".env\"]");
    let (verdict, text) = finding(&world.json(&["doctor"]), "coverage");
    assert!(verdict == "problem" && text.contains(".env.worker"), "{text}");
}

/// `doctor` with a folder in the place of one of this machine, for it alone.
fn with_folder(world: &World, folder: &Path, place: &str) -> Value {
    let script = "mkdir -p \"$2\" && mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-ec", script, "sh"]).arg(folder).arg(place).arg(env!("CARGO_BIN_EXE_lifeboat"));
    shell.arg("--config-dir").arg(world.path("config")).arg("--state-dir").arg(world.path("state"));
    Ran::from(shell.args(["doctor", "--json"]).output().unwrap()).json()
}

#[test]
fn that_nothing_runs_it_and_nobody_hears_of_a_failure_is_said() {
    let world = World::with_snapshot();
    let json = world.json(&["doctor"]);
    let (verdict, text) = finding(&json, "service");
    assert!(verdict == "warning" && text.contains("nothing runs what is scheduled"), "{text}");
    let (verdict, text) = finding(&json, "notify");
    assert!(verdict == "warning" && text.contains("nobody is told"), "{text}");
    // A channel that hears of success alone hears of no failure.
    world.add_to_policy("[notify]\nwebhook = { url = \"https://ops.example.org/hook\", on = [\"success\"] }\n");
    assert_eq!(finding(&world.json(&["doctor"]), "notify").0, "warning");
    world.change_policy("on = [\"success\"]", "on = [\"success\", \"failure\"]");
    assert_eq!(finding(&world.json(&["doctor"]), "notify").0, "ok");

    let folder = world.path("cron.d");
    fs::create_dir(&folder).unwrap();
    let line = |policy: &str| {
        let config = world.path("config");
        let text = format!("0 2 * * * root lifeboat --config-dir {} -p {policy} -q snapshot\n", config.display());
        fs::write(folder.join("lifeboat"), text).unwrap();
        finding(&with_folder(&world, &folder, "/etc/cron.d"), "service")
    };
    assert_eq!(line("other").0, "warning", "another policy's");
    let (verdict, text) = line("shop");
    assert!(verdict == "ok" && text.contains("/etc/cron.d/lifeboat:1 calls it"), "{text}");

    // A script of somebody's own: it is looked into, and not run.
    let script = world.path("nightly-backup.sh");
    let through = |policy: &str, mode: u32| {
        let (ran, config) = (world.path("ran"), world.path("config"));
        let call = format!("lifeboat --config-dir {} \\\n  -p {policy} -q snapshot", config.display());
        fs::write(&script, format!("#!/bin/sh\ntouch {}\n{call} || logger failed\n", ran.display())).unwrap();
        chmod(&script, mode);
        fs::write(folder.join("lifeboat"), format!("0 2 * * * root {} >/dev/null\n", script.display())).unwrap();
        let json = with_folder(&world, &folder, "/etc/cron.d");
        assert!(!ran.exists(), "it was run");
        let others = json["policies"][0]["findings"].as_array().unwrap();
        let is_other = others.iter().any(|f| f["check"] == "cron" && f.to_string().contains("nightly-backup"));
        assert_eq!(is_other, mode & 0o111 == 0, "another backup's, unless it calls this program: {json:#}");
        finding(&json, "service")
    };
    assert_eq!(through("other", 0o755).0, "warning", "another policy's");
    assert_eq!(through("shop", 0o644).0, "warning", "cron could not run it");
    let (verdict, text) = through("shop", 0o755);
    assert!(verdict == "ok" && text.contains("nightly-backup.sh, which calls it"), "{text}");

    // A unit that is enabled, and does not run.
    let units = world.path("units");
    fs::create_dir_all(units.join("multi-user.target.wants")).unwrap();
    let unit =
        format!("[Service]\nExecStart=/usr/bin/lifeboat --config-dir {} serve\n", world.path("config").display());
    fs::write(units.join("lifeboat.service"), unit).unwrap();
    let link = units.join("multi-user.target.wants/lifeboat.service");
    std::os::unix::fs::symlink(units.join("lifeboat.service"), link).unwrap();
    let enabled = || finding(&with_folder(&world, &units, "/etc/systemd/system"), "service");
    let (verdict, text) = enabled();
    assert!(verdict == "warning" && text == "lifeboat.service is enabled, and does not run", "{text}");
    let _service = Served::start(&world);
    assert_eq!(enabled(), ("ok".to_owned(), "runs what is scheduled".to_owned()));
}

/// In a mount namespace of its own, so that no crontab of this machine changes for anybody else.
#[test]
fn another_backups_cron_lines_are_named_without_their_secrets() {
    let world = World::with_snapshot();
    let crontabs = world.path("cron.d");
    fs::create_dir(&crontabs).unwrap();
    let line = format!("0 2 * * * root PGPASSWORD={CANARY} pg_dump -U shop shop > /b/shop.sql");
    fs::write(crontabs.join("shop"), format!("# nightly\n{line}\n* * * * * root lifeboat snapshot --tag backup\n"))
        .unwrap();
    let json = with_folder(&world, &crontabs, "/etc/cron.d");
    let (verdict, text) = finding(&json, "cron");
    assert!(
        verdict == "warning" && text.contains("/etc/cron.d/shop:2: ") && text.contains("PGPASSWORD=*** pg_dump"),
        "{text}"
    );
    assert!(!json.to_string().contains(CANARY) && !json.to_string().contains("cron.d/shop:3"), "{json:#}");
}
