//! A policy in a folder, its sources captured into memory, and their proofs.

use crate::taken::{Taken, silence};
use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::base::cancel::Cancel;
use lifeboat::policy::{self, Policy};
use lifeboat::sources::build;
use lifeboat::sources::project::Places;
use lifeboat::sources::proof::{Check, LaidTree, Proof, Trial, Verdict};
use lifeboat::sources::provers::prover;
use lifeboat::sources::streams::Streams;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The key that the bench hashes secret values with.
pub const FACT_KEY: [u8; 32] = [7; 32];
const RECIPIENT: &str = "age1v05v4uc66jwy3ysq0e6maqghrjc0qfffudzuc4al4j3jfcknyf0sajxagz";

pub struct World {
    pub dir: tempfile::TempDir,
    pub policy: Policy,
    pub now: DateTime<Utc>,
    pub has_policy: bool,
    pub fact_key: Option<[u8; 32]>,
    pub timeout: Duration,
}

impl World {
    /// `sources`: the policy's, in TOML, with `ROOT` for the application's folder, which `fill` fills.
    pub fn new(sources: &str, fill: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::Builder::new().prefix("lifeboat-prove-").tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("app");
        fs::create_dir(&root).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fill(&root);
        let off = ["env", "git", "compose"].map(|kind| match sources.contains(&format!("kind = \"{kind}\"")) {
            true => String::new(),
            false => format!("[[source]]\nkind = \"{kind}\"\nenabled = false\n"),
        });
        let text = format!(
            "[app]\nname = \"shop\"\nroot = \"ROOT\"\n[repository]\nurl = \"ROOT/../repository\"\nrecipients = [\"{RECIPIENT}\"]\n{}{sources}",
            off.concat()
        );
        let text = text.replace("ROOT", root.to_str().unwrap());
        let policy = policy::parse(&root.join("shop.toml"), &text).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
        let now = Utc::now() + TimeDelta::seconds(5);
        Self { dir, policy, now, has_policy: true, fact_key: Some(FACT_KEY), timeout: Duration::from_secs(120) }
    }

    pub fn root(&self) -> PathBuf {
        self.policy.app.root.clone()
    }

    /// Captures every source.
    pub fn take(&self) -> Vec<Taken> {
        let sources = build(&self.policy, &self.dir.path().join("state"), &Cancel::new());
        sources.iter().filter(|s| s.kind() != "recovery").map(|s| Taken::of(s.as_ref())).collect()
    }

    /// Proves one source of what was taken.
    pub fn prove(&self, all: &[Taken], name: &str) -> Proof {
        let work = tempfile::Builder::new().prefix("lifeboat-drill-").tempdir().unwrap();
        let mut trees = Vec::new();
        for one in all.iter().filter(|t| matches!(t.kind, "env" | "certificates" | "nginx" | "compose")) {
            let root = work.path().join("trees").join(one.name.as_str());
            fs::create_dir_all(&root).unwrap();
            let report = one.lay_out(&root).unwrap();
            assert_eq!(report.differences, [], "{}", one.name);
            trees.push(LaidTree { source: one.name.clone(), kind: one.kind.into(), root });
        }
        let one = all.iter().find(|t| t.name.as_str() == name).unwrap_or_else(|| panic!("no source {name}"));
        let scratch = work.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        fs::set_permissions(&scratch, fs::Permissions::from_mode(0o700)).unwrap();
        let (cancel, events) = (Cancel::new(), silence());
        let places = Places::new(&self.policy.app, &cancel);
        let trial = Trial {
            name: &one.name,
            streams: one,
            facts: &one.facts,
            source: self.policy.sources.iter().find(|s| s.name == one.name).filter(|_| self.has_policy),
            policy: Some(&self.policy).filter(|_| self.has_policy),
            drill: &self.policy.drill,
            places: &places,
            trees: &trees,
            scratch: &scratch,
            fact_key: self.fact_key.as_ref(),
            taken: self.now,
            now: self.now,
            began: Instant::now(),
            timeout: self.timeout,
            events: &events,
            cancel: &cancel,
        };
        prover(one.kind).expect("a prover").prove(&trial).unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// Captures all, and proves one.
    pub fn proof(&self, name: &str) -> Proof {
        self.prove(&self.take(), name)
    }
}

pub fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

pub fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The failed checks of a proof, as a person reads them.
pub fn red(proof: &Proof) -> Vec<String> {
    let failed = proof.checks.iter().filter(|c| c.verdict == Verdict::Failed);
    failed.map(|c| format!("{} {}: {}", c.name, c.subject, c.why.as_deref().unwrap_or("no why"))).collect()
}

/// Nothing failed, these were skipped, and something passed.
pub fn assert_green(proof: &Proof, skipped: &[&str]) {
    assert_eq!(red(proof), Vec::<String>::new(), "{proof:#?}");
    let of = |verdict: Verdict| -> Vec<&str> {
        proof.checks.iter().filter(|c| c.verdict == verdict).map(|c| c.name.as_str()).collect()
    };
    assert_eq!(of(Verdict::Skipped), skipped, "{proof:#?}");
    assert!(!of(Verdict::Passed).is_empty(), "{proof:#?}");
}

/// Exactly this check failed, and says each of these words.
pub fn assert_red<'p>(proof: &'p Proof, check: &str, words: &[&str]) -> &'p Check {
    let failed: Vec<&Check> = proof.checks.iter().filter(|c| c.verdict == Verdict::Failed).collect();
    let found = failed.iter().find(|c| c.name == check);
    let found = found.unwrap_or_else(|| panic!("{check} did not fail: {:#?}", proof.checks));
    let said = format!("{found:?}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    found
}

/// Only these checks failed.
pub fn assert_only(proof: &Proof, checks: &[&str]) {
    let failed = proof.checks.iter().filter(|c| c.verdict == Verdict::Failed);
    let names: Vec<&str> = failed.map(|c| c.name.as_str()).collect();
    assert_eq!(names, checks, "{:#?}", proof.checks);
}

/// A Let's Encrypt folder as certbot leaves it.
pub fn lets_encrypt(dir: &Path, domain: &str, days: &str) {
    let script = dir.parent().unwrap().join("certificates.sh");
    write(&script, include_str!("../support/certificates.sh"));
    run("bash", &[text(&script), text(dir), domain, days]);
    fs::remove_file(script).unwrap();
}

/// Runs this binary's tests whose names contain `filter` once more, as an ordinary user; nothing when this is one.
pub fn as_a_user(filter: &str, groups: &[u32]) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("lifeboat-user-").tempdir().unwrap();
    mode(dir.path(), 0o755);
    let (binary, tmp) = (dir.path().join("tests"), dir.path().join("tmp"));
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    mode(&binary, 0o755);
    fs::create_dir(&tmp).unwrap();
    mode(&tmp, 0o777);
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    let groups = if groups.is_empty() { "--clear-groups".into() } else { format!("--groups={}", groups.join(",")) };
    let out = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", &groups, "--"])
        .arg(&binary)
        .args([filter, "--skip", "an_ordinary_user", "--test-threads", "2"])
        .env("TMPDIR", &tmp)
        .env("HOME", &tmp)
        .current_dir(&tmp)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    assert!(!said.contains("running 0 tests"), "{said}");
}
