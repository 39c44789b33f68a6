//! What becomes of a drill's outcome: signed by the right key, believed or not, kept, copied, pruned.

use crate::lab::full;
use crate::{Stage, green};
use lifeboat::base::ids::ObjectId;
use lifeboat::ops::access::host_name;
use lifeboat::ops::drill::{self, DrillOutcome};
use lifeboat::ops::prune::{self, PruneOptions};
use lifeboat::ops::verify::{Level, verify};
use lifeboat::ops::{browse, history};
use lifeboat::pipeline::sign::{Namespace, SigningKey};
use lifeboat::repository::keys::HostKey;
use lifeboat::repository::layout;
use std::fs;

fn drills(stage: &Stage) -> Vec<String> {
    let listed = stage.lab.access().repository.storage().list(layout::DRILLS).unwrap();
    listed.into_iter().map(|o| o.key.to_string()).collect()
}

#[test]
fn the_outcome_is_stored_and_shown_without_a_key_and_its_details_only_with_one() {
    let stage = Stage::of_files(&[]);
    let id = stage.snapshot();
    let report = stage.drill();
    green(&report);
    assert!(report.record.as_ref().unwrap().starts_with(&format!("drills/{id}-")), "{:?}", report.record);
    assert_eq!(drills(&stage).len(), 2, "outcome and details");

    stage.lab.seal();
    let access = stage.lab.access();
    let shown = browse::show(&access, "latest", &stage.lab.run()).unwrap();
    assert_eq!(shown.drills.len(), 1);
    assert_eq!((shown.drills[0].outcome, shown.drills[0].checks), (DrillOutcome::Passed, report.checks));
    let told = history::history(&access, (Vec::new(), 0), None).unwrap();
    assert_eq!(told.events.len(), 2, "{told:?}");
    assert_eq!(history::history(&access, (Vec::new(), 0), Some(1)).unwrap().left_out, 1);
    stage.lab.unseal();

    let access = stage.lab.access();
    let all = access.repository.drills().unwrap();
    let details = drill::details(&access, &all.all[0], &access.identities("reading").unwrap()).unwrap();
    assert_eq!((details.checks, details.sources.len()), (report.checks, report.sources.len()));
    let stored = fs::read(stage.lab.path("repository").join(report.record.unwrap())).unwrap();
    let public = String::from_utf8_lossy(&stored);
    assert!(!public.contains("site"), "no name of a source or file stands in public: {public}");
    assert!(verify(&access, Level::Objects, &[], &stage.lab.run()).unwrap().findings.is_empty());
}

#[test]
fn nobody_else_signs_a_drill() {
    let stage = Stage::of_files(&[]);
    stage.snapshot();
    stage.drill();
    let access = stage.lab.access();
    let real = access.repository.drills().unwrap().all.remove(0);
    let storage = access.repository.storage().clone();
    let forge = |key: &SigningKey, seconds: i64, namespace: Namespace| {
        let mut drill = real.drill.clone();
        drill.time += chrono::TimeDelta::seconds(seconds);
        let bytes = key.sign(namespace, &serde_json::to_string(&drill).unwrap()).unwrap();
        storage.put_new(&layout::drill(&drill.snapshot, drill.time).unwrap(), &bytes).unwrap();
    };
    let host_key = HostKey::load(&stage.lab.installation.host_key()).unwrap();
    forge(&SigningKey::from_seed(&[9; 32]), 1, Namespace::Drill);
    forge(&host_key.signing, 2, Namespace::Record);
    // The real one under another name.
    let moved = real.drill.time + chrono::TimeDelta::seconds(3);
    let bytes = storage.get(&real.key, 1 << 20).unwrap();
    storage.put_new(&layout::drill(&real.drill.snapshot, moved).unwrap(), &bytes).unwrap();

    let read = access.repository.drills().unwrap();
    assert_eq!((read.all.len(), read.problems.len()), (1, 3), "{:?}", read.problems);
    let findings = verify(&access, Level::Objects, &[], &stage.lab.run()).unwrap().findings;
    assert_eq!(findings.iter().filter(|f| f.object.starts_with("drills/")).count(), 3, "{findings:?}");
}

/// A key that may snapshot, and that nobody has vouched for to drill, cannot claim that its snapshots restore.
#[test]
fn a_key_that_may_only_snapshot_signs_no_drill() {
    let (model, stage) = (Stage::of_files(&[]), Stage::of_files(&[]));
    model.snapshot();
    model.drill();
    stage.snapshot();
    let access = stage.lab.access();
    let snapshot = access.resolve("latest", stage.lab.run().now).unwrap();
    let mut drill = model.lab.access().repository.drills().unwrap().all.remove(0).drill;
    drill.repository = access.repository.id().clone();
    (drill.snapshot, drill.header) = (snapshot.header.id.clone(), snapshot.header_id);
    let key = HostKey::load(&stage.lab.installation.host_key()).unwrap().signing;
    let bytes = key.sign(Namespace::Drill, &serde_json::to_string(&drill).unwrap()).unwrap();
    access.repository.storage().put_new(&layout::drill(&drill.snapshot, drill.time).unwrap(), &bytes).unwrap();
    let read = access.repository.drills().unwrap();
    assert_eq!((read.all.len(), read.problems.len()), (0, 1), "{:?}", read.all);
    assert!(full(&read.problems.into_iter().next().unwrap().into()).contains("may not sign drills"));
}

#[test]
fn details_that_are_gone_or_others_are_found() {
    let stage = Stage::of_files(&[]);
    stage.snapshot();
    stage.drill();
    let details = drills(&stage).into_iter().find(|k| k.ends_with(".age")).unwrap();
    let path = stage.lab.path("repository").join(&details);
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let find = || verify(&stage.lab.access(), Level::Objects, &[], &stage.lab.run()).unwrap().findings;
    assert!(find().iter().any(|f| f.object == details && f.problem.contains("missing")), "{:?}", find());
    fs::write(&path, &bytes[1..]).unwrap();
    let access = stage.lab.access();
    let all = access.repository.drills().unwrap();
    let e = drill::details(&access, &all.all[0], &access.identities("reading").unwrap()).unwrap_err();
    assert!(full(&e).contains("not those that its name promises"), "{}", full(&e));
}

#[test]
fn the_newest_that_passed_stays_and_drills_go_with_their_snapshots() {
    let mut stage = Stage::of_files(&[]);
    let proved = stage.snapshot();
    green(&stage.drill());
    for n in 0..4 {
        fs::write(stage.lab.path("app/site/one"), format!("{n}")).unwrap();
        stage.snapshot();
    }
    stage.lab.policy.retention.keep_last = 1;
    (stage.lab.policy.retention.keep_daily, stage.lab.policy.retention.keep_weekly) = (0, 0);
    stage.lab.policy.retention.keep_monthly = 0;
    let prune = |stage: &Stage| {
        let access = stage.lab.access();
        let options = PruneOptions::of(host_name().unwrap());
        let run = lifeboat::ops::Run { now: chrono::Utc::now(), ..stage.lab.run() };
        let plan = prune::plan(&access, &stage.lab.policy, &options, &run).unwrap_or_else(|e| panic!("{}", full(&e)));
        let kept: Vec<String> =
            plan.snapshots.iter().filter(|s| s.keep).map(|s| format!("{} {}", s.id, s.reason)).collect();
        prune::run(&stage.lab.installation, &access, &stage.lab.request(), &plan, &options, &run)
            .unwrap_or_else(|e| panic!("{}", full(&e)));
        kept
    };
    let kept = prune(&stage);
    assert!(kept.iter().any(|k| k.starts_with(&proved) && k.contains("drill")), "{kept:?}");
    assert_eq!(drills(&stage).len(), 2);

    // A newer one passes: the old one goes, and its drill with it.
    green(&stage.drill());
    assert_eq!(drills(&stage).len(), 4);
    let kept = prune(&stage);
    assert!(!kept.iter().any(|k| k.starts_with(&proved)), "{kept:?}");
    let left = drills(&stage);
    assert!(left.len() == 2 && !left.iter().any(|k| k.contains(&proved)), "{left:?}");
    let access = stage.lab.access();
    assert!(verify(&access, Level::Objects, &[], &stage.lab.run()).unwrap().findings.is_empty());
}

#[test]
fn a_later_failure_takes_a_pass_back() {
    let stage = Stage::of_files(&[]);
    stage.snapshot();
    green(&stage.drill());
    let access = stage.lab.access();
    let header = |of: &drill::DrillReport| {
        access.resolve(of.snapshot.as_str(), stage.lab.run().now).map(|s| s.header_id).unwrap()
    };
    let passed = |stage: &Stage| drill::newest_passed(&stage.lab.access().repository.drills().unwrap());
    assert_eq!(passed(&stage).len(), 1);
    let archive = stage.lab.archives().remove(0);
    crate::lab::flip(&archive);
    let report = stage.drill();
    assert_eq!(report.outcome, DrillOutcome::Failed);
    assert!(report.record.is_some(), "{:?}", report.notes);
    assert!(!passed(&stage).contains(&header(&report)));
    assert!(!passed(&stage).contains(&ObjectId([0; 32])));
}
