//! Certificates stay as they are, unless they are of no use; then whole lineages return, and only they.

use crate::bench::{Bench, ID, write};
use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::base::cancel::Cancel;
use lifeboat::sources::files::certificates::{CertificateFacts, Decision, Verdict, live, to_restore, verdict};
use lifeboat::sources::placing::Part;
use lifeboat::sources::trees::listed;
use std::fs;
use std::path::Path;
use std::process::Command;

const SOURCES: &str = "[[source]]\nkind = \"certificates\"\nname = \"tls\"\npaths = [\"ROOT/letsencrypt\"]\n";

fn issue(bench: &Bench, domain: &str, days: &str) {
    let script = bench.root.path().join("certificates.sh");
    write(&script, include_str!("../support/certificates.sh"));
    let done = Command::new("bash").arg(&script).arg(bench.app().join("letsencrypt")).args([domain, days]).status();
    assert!(done.unwrap().success());
}

fn judged(bench: &Bench, taken: &crate::taken::Taken, now: DateTime<Utc>) -> Vec<Verdict> {
    let captured: CertificateFacts = serde_json::from_value(taken.facts.clone()).unwrap();
    let today = live(bench.source("tls"), &bench.policy.app, &Cancel::new(), now).unwrap();
    verdict(&today, &captured, &listed(taken).unwrap(), now)
}

fn of<'v>(verdicts: &'v [Verdict], domain: &str) -> &'v Verdict {
    verdicts.iter().find(|v| v.lineage.ends_with(domain)).unwrap_or_else(|| panic!("{domain}: {verdicts:?}"))
}

fn content(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn whole_lineages_return_and_others_stay() {
    let bench = Bench::new(SOURCES);
    for domain in ["kept.example", "mismatched.example", "missing.example", "renewed.example"] {
        issue(&bench, domain, "60");
    }
    let taken = bench.capture("tls");
    let dir = bench.app().join("letsencrypt");
    let now = Utc::now();
    assert!(judged(&bench, &taken, now).iter().all(|v| v.decision == Decision::Keep));
    let good = content(&dir.join("archive/mismatched.example/privkey2.pem"));
    // Each of them changes in its own way.
    fs::copy(dir.join("archive/kept.example/privkey1.pem"), dir.join("archive/mismatched.example/privkey2.pem"))
        .unwrap();
    for part in ["live", "archive"] {
        fs::remove_dir_all(dir.join(part).join("missing.example")).unwrap();
    }
    fs::remove_file(dir.join("renewal/missing.example.conf")).unwrap();
    issue(&bench, "renewed.example", "90");
    issue(&bench, "since.example", "90");
    let renewed = content(&dir.join("live/renewed.example/fullchain.pem"));

    let verdicts = judged(&bench, &taken, now);
    for domain in ["kept.example", "renewed.example", "since.example"] {
        assert_eq!(of(&verdicts, domain).decision, Decision::Keep, "{verdicts:?}");
    }
    let mismatched = of(&verdicts, "mismatched.example");
    assert_eq!(mismatched.decision, Decision::Restore, "{mismatched:?}");
    assert!(mismatched.why.ends_with("live/mismatched.example/privkey.pem does not belong to it"), "{mismatched:?}");
    assert_eq!(of(&verdicts, "missing.example").why, "it is missing today");

    let part = Part { paths: to_restore(&verdicts), ..Part::default() };
    assert_eq!(part.paths.len(), 6, "{:?}", part.paths);
    let intent = bench.plan(&taken, &part);
    bench.steps("prepare settle switch confirm", &taken, &intent);
    assert_eq!(content(&dir.join("live/mismatched.example/privkey.pem")), good);
    assert!(dir.join("renewal/missing.example.conf").exists());
    assert_eq!(content(&dir.join("live/renewed.example/fullchain.pem")), renewed, "what is newer stays");
    let verdicts = judged(&bench, &taken, now);
    assert!(verdicts.iter().all(|v| v.decision == Decision::Keep), "{verdicts:?}");
    bench.steps("back discard_new", &taken, &intent);
    assert!(!dir.join("live/missing.example").exists() && !dir.join(format!(".lifeboat-{ID}.tls")).exists());
}

#[test]
fn an_expired_one_returns_only_where_the_captured_one_is_better() {
    let bench = Bench::new(SOURCES);
    issue(&bench, "a.example", "60");
    let taken = bench.capture("tls");
    issue(&bench, "a.example", "30");
    let dir = bench.app().join("letsencrypt");
    let at = |days| Utc::now() + TimeDelta::days(days);
    assert_eq!(of(&judged(&bench, &taken, at(1)), "a.example").decision, Decision::Keep, "shorter, and good");
    let verdicts = judged(&bench, &taken, at(40));
    assert_eq!(of(&verdicts, "a.example").decision, Decision::Restore, "{verdicts:?}");
    assert!(of(&judged(&bench, &taken, at(70)), "a.example").why.contains("has expired as well"));
    issue(&bench, "a.example", "90");
    fs::copy(dir.join("archive/a.example/privkey1.pem"), dir.join("archive/a.example/privkey2.pem")).unwrap();
    let verdicts = judged(&bench, &taken, at(1));
    assert!(of(&verdicts, "a.example").why.contains("would expire earlier"), "{verdicts:?}");
    // Everything is gone, also the folder that the policy names.
    fs::remove_dir_all(&dir).unwrap();
    let verdicts = judged(&bench, &taken, at(1));
    assert_eq!(of(&verdicts, "a.example").decision, Decision::Restore, "{verdicts:?}");
}
