//! Drills end to end: proved, signed, stored, shown, kept by retention; and what a drill must never do.

#[path = "../support/lab.rs"]
mod lab;
#[path = "../support/port.rs"]
mod port;
#[path = "../support/postgres.rs"]
mod postgres;
mod records;
#[path = "../support/redis.rs"]
mod redis;
mod seeded;
mod shop;
#[path = "../support/sink.rs"]
mod sink;
#[path = "../support/taken.rs"]
mod taken;

use lab::{Lab, Sources, command, files, full};
use lifeboat::ops::drill::{self, Check, DrillOutcome, DrillReport, DrillRequest, Verdict};
use lifeboat::ops::{OpsError, Run};
use lifeboat::policy::Policy;
use std::fs;
use std::path::Path;

/// A host whose policy is the one that the drill sees, too.
pub struct Stage {
    pub lab: Lab,
    pub sources: Sources,
}

impl Stage {
    /// A policy with these sections; the sources that stand by default are left out.
    pub fn new(sections: &[String]) -> Self {
        let mut lab = Lab::new();
        let sources = lab.sources(sections);
        lab.add_to_policy(&sections.concat());
        Self { lab, sources }
    }

    /// An application with two folders of files, and a command that says something.
    pub fn plain() -> Self {
        Self::of_files(&[command("motd", &["echo", "hello"], "motd.txt")])
    }

    pub fn of_files(more: &[String]) -> Self {
        let mut lab = Lab::new();
        let site = lab.path("app/site");
        fs::create_dir_all(site.join("deep")).unwrap();
        fs::write(site.join("one"), b"1").unwrap();
        fs::write(site.join("deep/two"), [2u8; 70_000]).unwrap();
        let sections: Vec<String> = [files("site", &[&site])].into_iter().chain(more.iter().cloned()).collect();
        let sources = lab.sources(&sections);
        lab.add_to_policy(&sections.concat());
        Self { lab, sources }
    }

    pub fn snapshot(&self) -> String {
        self.lab.snapshot(&self.sources, &[])
    }

    pub fn try_drill(&self, request: &DrillRequest) -> Result<DrillReport, OpsError> {
        self.try_drill_with(Some(&self.lab.policy), request, &self.lab.run())
    }

    pub fn try_drill_with(
        &self,
        policy: Option<&Policy>,
        request: &DrillRequest,
        run: &Run,
    ) -> Result<DrillReport, OpsError> {
        let access = self.lab.access();
        let plan = drill::plan(&access, policy, request, run)?;
        drill::run(&self.lab.installation, &access, policy, &self.lab.request(), &plan, run)
    }

    pub fn drill(&self) -> DrillReport {
        self.try_drill(&DrillRequest::default()).unwrap_or_else(|e| panic!("{}", full(&e)))
    }
}

/// The checks that failed, as `source: name of subject: why`.
pub fn failed(report: &DrillReport) -> Vec<String> {
    let text = |(source, c): (&drill::ProofReport, &Check)| {
        let others: String =
            c.differences.iter().map(|d| format!("; {}: {} / {}", d.subject, d.expected, d.found)).collect();
        format!("{}: {} of {}: {}{others}", source.name, c.name, c.subject, c.why.as_deref().unwrap_or_default())
    };
    report.all_checks().filter(|(_, c)| c.verdict == Verdict::Failed).map(text).collect()
}

#[track_caller]
pub fn green(report: &DrillReport) {
    assert!(report.outcome == DrillOutcome::Passed && failed(report).is_empty(), "{:#?}", report);
}

/// Folders of drills that are there now.
pub fn grounds(base: &Path) -> Vec<String> {
    let names = fs::read_dir(base).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|n| n.starts_with("lifeboat-drill-")).collect()
}

#[test]
fn an_unharmed_snapshot_passes_and_says_what_came_back() {
    let stage = Stage::plain();
    let id = stage.snapshot();
    let report = stage.drill();
    green(&report);
    assert_eq!(report.snapshot.as_str(), id);
    assert!(report.restored.iter().any(|r| r.contains("2 files")), "{:?}", report.restored);
    assert!(report.summary().starts_with("restored ") && report.recovery_seconds > 0.0, "{report:#?}");
    // A check that did not run says why.
    let skipped: Vec<&Check> = report.all_checks().map(|(_, c)| c).filter(|c| c.verdict == Verdict::Skipped).collect();
    assert!(skipped.iter().all(|c| c.why.as_deref().is_some_and(|w| w.len() > 10)), "{skipped:#?}");
    assert!(skipped.iter().any(|c| c.why.as_deref().unwrap().contains("no check command")), "{skipped:#?}");
    // The page stands alone and holds nothing that runs.
    let page = fs::read_to_string(report.page.as_ref().unwrap()).unwrap();
    assert!(page.contains("<svg") && page.contains("RTO") && page.contains(&id), "{page}");
    assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("https://"), "{page}");
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(report.page.unwrap()).unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_damaged_archive_turns_the_drill_red_and_is_an_integrity_failure() {
    let stage = Stage::of_files(&[]);
    stage.snapshot();
    lab::flip(&stage.lab.archives()[0]);
    let report = stage.drill();
    assert_eq!(report.outcome, DrillOutcome::Failed);
    let failure = report.failure.as_ref().expect("damage is kept as what it is");
    assert_eq!(failure.kind(), lifeboat::ops::ErrorKind::Integrity);
    assert!(failed(&report).iter().any(|f| f.starts_with("site: ")), "{:?}", failed(&report));
}

#[test]
fn nothing_that_ran_is_failed() {
    // A command without a check is read back; that passes. A kind that nobody knows cannot be proved at all.
    let stage = Stage::new(&[command("motd", &["echo", "hello"], "motd.txt")]);
    stage.snapshot();
    let only = DrillRequest { only: vec!["recovery".parse().unwrap()], ..DrillRequest::default() };
    let report = stage.try_drill(&only).unwrap();
    assert!(report.record.is_none(), "a part is no drill");
    assert!(report.notes.iter().any(|n| n.contains("a part of the snapshot")), "{:?}", report.notes);
}

#[test]
fn it_needs_the_identity_and_a_complete_snapshot() {
    let stage = Stage::of_files(&[]);
    let e = stage.try_drill(&DrillRequest::default()).unwrap_err();
    assert!(full(&e).contains("no snapshot yet"), "{}", full(&e));
    stage.snapshot();
    stage.lab.seal();
    let e = stage.try_drill(&DrillRequest::default()).unwrap_err();
    assert!(full(&e).contains("needs the identity"), "{}", full(&e));
    stage.lab.unseal();
    let unknown = DrillRequest { only: vec!["nope".parse().unwrap()], ..DrillRequest::default() };
    let e = stage.try_drill(&unknown).unwrap_err();
    assert!(full(&e).contains("no source") && full(&e).contains("site"), "{}", full(&e));
}

#[test]
fn the_newest_complete_one_is_taken_and_a_partial_one_fails_when_it_is_named() {
    let stage = Stage::of_files(&[command("odd", &["sh", "-c", "test ! -e site/flag && echo ok"], "odd")]);
    let good = stage.snapshot();
    fs::write(stage.lab.path("app/site/flag"), b"").unwrap();
    let partial = stage.lab.try_snapshot(&stage.sources, &[]).unwrap().header.id.to_string();
    assert_eq!(stage.drill().snapshot.as_str(), good);
    let named = DrillRequest { snapshot: Some(partial.clone()), ..DrillRequest::default() };
    let report = stage.try_drill(&named).unwrap();
    assert_eq!((report.snapshot.as_str(), report.outcome), (partial.as_str(), DrillOutcome::Failed));
    assert!(failed(&report).iter().any(|f| f.starts_with("odd: captured")), "{:?}", failed(&report));
}

#[test]
fn what_was_restored_goes_unless_it_is_kept() {
    let stage = Stage::of_files(&[]);
    stage.snapshot();
    let kept = stage.try_drill(&DrillRequest { keep: true, ..DrillRequest::default() }).unwrap().kept.unwrap();
    assert!(kept.is_dir());
    // Its owner lives: another drill does not take it away.
    stage.drill();
    assert!(kept.is_dir());
    fs::remove_dir_all(kept).unwrap();
}

#[test]
fn one_drill_of_a_policy_at_a_time() {
    let stage = Stage::of_files(&[]);
    stage.snapshot();
    let state = lifeboat::repository::state::State::open(&stage.lab.installation.state_dir).unwrap();
    let lock = state.lock_drill(&stage.lab.policy.app.name).unwrap().unwrap();
    let e = stage.try_drill(&DrillRequest::default()).unwrap_err();
    assert_eq!(e.kind(), lifeboat::ops::ErrorKind::Busy);
    // Snapshots go on beside it.
    stage.snapshot();
    drop(lock);
    green(&stage.drill());
}

#[test]
fn without_a_policy_it_proves_what_it_can() {
    let stage = Stage::of_files(&[]);
    stage.snapshot();
    let report = stage.try_drill_with(None, &DrillRequest::default(), &stage.lab.run()).unwrap();
    green(&report);
    assert!(report.notes.iter().any(|n| n.contains("no policy is at hand")), "{:?}", report.notes);
}

#[test]
fn what_a_killed_drill_left_goes_with_the_next_one() {
    let slow = "[[source]]\nkind = \"command\"\nname = \"slow\"\nrun = [\"echo\", \"x\"]\ncheck = [\"sleep\", \"15\"]\noutput = \"x\"\n";
    let stage = Stage::of_files(&[slow.to_owned()]);
    stage.snapshot();
    let installation = &stage.lab.installation;
    let (file, tmp) = (installation.config_dir.join("policies/shop.toml"), stage.lab.path("tmp"));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::create_dir(&tmp).unwrap();
    let drill = |policy: &str| {
        fs::write(&file, policy).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.arg("--config-dir").arg(&installation.config_dir).arg("--state-dir").arg(&installation.state_dir);
        command.arg("drill").env("TMPDIR", &tmp).stdout(std::process::Stdio::piped());
        command
    };
    let mut child = drill(&stage.lab.policy.text).spawn().unwrap();
    let begun = std::time::Instant::now();
    let at_work = || grounds(&tmp).first().is_some_and(|name| tmp.join(name).join("slow").is_dir());
    while !at_work() {
        assert!(begun.elapsed().as_secs() < 60 && child.try_wait().unwrap().is_none(), "it does not come that far");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let left = grounds(&tmp);
    assert_eq!(left.len(), 1, "a killed process tidies nothing");
    // Somebody else's folder of such a name is nobody's to remove.
    fs::create_dir(tmp.join("lifeboat-drill-of-mine")).unwrap();

    let out = drill(&stage.lab.policy.text.replace("\"15\"", "\"0\"")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    assert_eq!(grounds(&tmp), ["lifeboat-drill-of-mine"]);
}
