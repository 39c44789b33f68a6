//! Every rule of every check: what turns it amber, what red. No clock, no server.

use super::{Level, PolicyStatus, judge, unreadable, unseen};
use crate::base::ids::Sequence;
use crate::ops::drill::{CheckCounts, DrillLine, DrillOutcome};
use crate::ops::health::Health;
use crate::ops::runs::{RunRecord, What};
use crate::ops::status::sight::{CopySight, Room, SeenGap, Sight, SnapshotSight};
use crate::ops::status::{Ran, overall};
use crate::ops::{Outcome, Trigger};
use crate::policy::Policy;
use chrono::{DateTime, TimeDelta, Utc};
use std::path::Path;
use std::time::Duration;

const NOW: &str = "2026-11-21T05:12:00Z";

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// A snapshot every night at two.
fn policy(more: &str) -> Policy {
    let recipient = age::x25519::Identity::generate().to_public();
    let text = format!(
        "[app]\nname = \"shop\"\nroot = \"/opt/shop\"\n[repository]\nurl = \"s3://backups/shop\"\nrecipients = [\"{recipient}\"]\n\
         [schedule]\ntimezone = \"UTC\"\nsnapshot = \"0 2 * * *\"\nverify = \"15 * * * *\"\njitter = \"0s\"\n{more}"
    );
    crate::policy::parse(Path::new("shop.toml"), &text).unwrap()
}

fn snapshot(sequence: u64, time: &str) -> SnapshotSight {
    let time = at(time);
    SnapshotSight {
        id: format!("{}-{sequence:08x}", time.format("%Y%m%dT%H%M%SZ")).parse().unwrap(),
        time,
        sequence: Sequence(sequence),
        outcome: Outcome::Complete,
        trigger: Trigger::Schedule,
        tags: Vec::new(),
        bytes_total: 100,
        bytes_new: 10,
        forked: false,
    }
}

fn drill(time: &str, outcome: DrillOutcome) -> DrillLine {
    DrillLine {
        snapshot: snapshot(1, "2026-11-14T02:00:07Z").id,
        time: at(time),
        drilled_on: "web-1".parse().unwrap(),
        outcome,
        checks: CheckCounts { passed: 31, failed: 0, skipped: 1 },
        seconds: 300.0,
        recovery_seconds: 238.4,
    }
}

/// All is well.
fn sight() -> Sight {
    let mut sight = Sight::blank("shop".parse().unwrap(), "web-1".parse().unwrap(), at("2026-11-21T05:00:00Z"));
    sight.repository.url = "s3://b/p".into();
    sight.repository.elsewhere = true;
    sight.repository.reached = Some(sight.looked);
    sight.repository.snapshots = vec![snapshot(1, "2026-11-20T02:00:07Z"), snapshot(2, "2026-11-21T02:00:07Z")];
    sight.repository.drills = vec![drill("2026-11-15T03:05:00Z", DrillOutcome::Passed)];
    sight.gaps = Some(Vec::new());
    sight
}

fn run(what: What, begun: &str, outcome: Option<&str>) -> RunRecord {
    let begun = at(begun);
    RunRecord {
        id: 1,
        policy: "shop".parse().unwrap(),
        what,
        trigger: "schedule".into(),
        slot: None,
        attempt: 1,
        begun,
        ended: outcome.map(|_| begun + TimeDelta::seconds(42)),
        outcome: outcome.map(str::to_owned),
        exit: None,
        snapshot: None,
        bytes_total: None,
        bytes_new: None,
        drill: None,
        error: (outcome == Some("failed")).then(|| "no repository at s3://b/p".to_owned()),
    }
}

fn ran(runs: &[RunRecord]) -> Ran {
    let mut ran = Ran { known: true, ..Ran::default() };
    for run in runs {
        ran.newest.insert(run.what, run.clone());
        if run.outcome() == Some("done") {
            ran.done.insert(run.what, run.clone());
        }
    }
    ran
}

fn judged(sight: &Sight, now: &str) -> PolicyStatus {
    judge(&policy(""), sight, &ran(&[run(What::Verify, "2026-11-21T04:15:00Z", Some("done"))]), true, None, at(now))
}

#[track_caller]
fn is(status: &PolicyStatus, check: &str, level: Level, says: &str) {
    let worst = status.checks.iter().filter(|c| c.check == check).max_by_key(|c| c.level);
    let found = worst.unwrap_or_else(|| panic!("no {check} in {:#?}", status.checks));
    assert!(found.level == level && found.detail.contains(says), "{found:#?}");
    assert!(level == Level::Green || check == "health" || found.hint.is_some(), "no way out: {found:#?}");
}

#[test]
fn all_is_well_and_the_headline_says_what_a_loss_costs() {
    let status = judged(&sight(), NOW);
    assert_eq!(status.level, Level::Green, "{:#?}", status.checks);
    let measured = at("2026-11-15T03:05:00Z").with_timezone(&chrono::Local).format("%Y-%m-%d");
    let expected =
        format!("If this server died now: 3 h 11 min of data lost, back in about 4 min (measured {measured}).");
    assert_eq!(status.headline, expected);
    assert_eq!(status.next.first().map(|n| (n.does, n.at)), Some((What::Verify, at("2026-11-21T05:15:00Z"))));
    // With what is somebody else's.
    let more = "[[external]]\nname = \"Supabase\"\n";
    let status = judge(&policy(more), &sight(), &ran(&[]), true, None, at(NOW));
    assert!(status.headline.ends_with("; not covered: Supabase."), "{}", status.headline);
    assert_eq!(status.not_covered, ["Supabase"]);
}

#[test]
fn late_snapshots() {
    let sight = sight();
    let of = |now: &str| judged(&sight, now);
    is(&of("2026-11-22T02:10:00Z"), "snapshots", Level::Green, "the newest complete one is");
    is(&of("2026-11-22T02:20:00Z"), "snapshots", Level::Amber, "the next was due 2026-11-22T02:00:00Z");
    is(&of("2026-11-22T04:20:00Z"), "snapshots", Level::Red, "the next was due");
    // One that is being taken, or was taken since the look.
    let late = at("2026-11-22T04:20:00Z");
    let working = ran(&[run(What::Snapshot, "2026-11-22T02:03:00Z", None)]);
    is(&judge(&policy(""), &sight, &working, true, None, late), "snapshots", Level::Amber, "is being taken");
    let taken = ran(&[run(What::Snapshot, "2026-11-22T02:03:00Z", Some("done"))]);
    let status = judge(&policy(""), &sight, &taken, true, None, late);
    is(&status, "snapshots", Level::Green, "");
    assert_eq!(status.loss.server.as_ref().unwrap().since, at("2026-11-22T02:03:00Z"));
    // What was asked for wins over the schedule.
    let hour = Some(Duration::from_secs(3600));
    is(&judge(&policy(""), &sight, &ran(&[]), true, hour, at(NOW)), "snapshots", Level::Red, "1 h 0 min is the limit");
    let off = policy("").text.replace("snapshot = \"0 2 * * *\"", "snapshot = \"off\"");
    let off = crate::policy::parse(Path::new("shop.toml"), &off).unwrap();
    is(&judge(&off, &sight, &ran(&[]), true, None, at(NOW)), "snapshots", Level::Amber, "nothing is scheduled");
}

#[test]
fn only_complete_snapshots_count() {
    let mut sight = sight();
    sight.repository.snapshots[1].outcome = Outcome::Partial;
    let status = judged(&sight, NOW);
    is(&status, "snapshots", Level::Red, "the next was due 2026-11-21T02:00:00Z");
    assert!(status.checks.iter().any(|c| c.detail.contains("is partial")), "{:#?}", status.checks);
    assert_eq!(status.loss.server.as_ref().unwrap().since, at("2026-11-20T02:00:07Z"));
    sight.repository.snapshots.clear();
    let status = judged(&sight, NOW);
    is(&status, "snapshots", Level::Red, "there is no complete snapshot");
    assert_eq!(status.headline, "If this server died now: everything lost, there is no complete snapshot.");
}

#[test]
fn what_fails() {
    let mut ran = ran(&[run(What::Verify, "2026-11-21T04:15:00Z", Some("failed"))]);
    ran.failing = vec![(What::Verify, at("2026-11-21T01:15:42Z"))];
    let status = judge(&policy(""), &sight(), &ran, true, None, at(NOW));
    is(&status, "runs", Level::Red, "verify has failed since 2026-11-21T01:15:42Z: no repository at s3://b/p");
    ran.failing = vec![(What::Prune, at("2026-11-21T01:15:42Z"))];
    is(&judge(&policy(""), &sight(), &ran, true, None, at(NOW)), "runs", Level::Amber, "prune has failed");
}

#[test]
fn drills_age() {
    let mut sight = sight();
    is(&judged(&sight, "2026-11-23T03:00:00Z"), "drill", Level::Green, "passed");
    is(&judged(&sight, "2026-11-23T04:00:00Z"), "drill", Level::Red, "8 d 0 h is the limit");
    sight.repository.drills.push(drill("2026-11-20T03:00:00Z", DrillOutcome::Failed));
    let status = judged(&sight, NOW);
    is(&status, "drill", Level::Red, "the newest failed");
    assert!(status.recovery.is_some(), "what was measured before still is");
    sight.repository.drills.clear();
    let status = judged(&sight, NOW);
    is(&status, "drill", Level::Amber, "no snapshot was ever restored");
    assert!(status.headline.contains("back in a time that nobody has measured"), "{}", status.headline);
    is(&judged(&sight, "2026-11-29T03:00:00Z"), "drill", Level::Red, "no snapshot was ever restored");
    // A restore measures as well.
    let restored = ran(&[run(What::Restore, "2026-11-21T04:00:00Z", Some("done"))]);
    let recovery = judge(&policy(""), &sight, &restored, true, None, at(NOW)).recovery.unwrap();
    assert_eq!((recovery.seconds, recovery.by), (42.0, "restore"));
}

#[test]
fn a_repository_that_does_not_answer_or_is_damaged() {
    let mut sight = sight();
    sight.repository.problem = Some("s3://b/p does not answer within 15 s".into());
    sight.repository.hint = Some("is its server there?".into());
    let status = judged(&sight, NOW);
    is(&status, "repository", Level::Red, "does not answer within 15 s; the rest of this is as it was 12 min ago");
    is(&status, "snapshots", Level::Green, "");
    sight.repository.snapshots.clear();
    sight.repository.reached = None;
    let status = judged(&sight, NOW);
    assert!(status.checks.iter().any(|c| c.check == "snapshots" && c.detail.contains("cannot be seen")));
    let mut sight = self::sight();
    sight.repository.damage = vec!["snapshots/a: forged".into(), "b".into()];
    is(&judged(&sight, NOW), "repository", Level::Red, "snapshots/a: forged (and 1 more)");
}

#[test]
fn a_repository_on_this_machine_alone_dies_with_it() {
    let mut sight = sight();
    sight.repository.elsewhere = false;
    let status = judged(&sight, NOW);
    is(&status, "elsewhere", Level::Amber, "dies with it");
    assert!(status.headline.starts_with("If this server died now: everything lost, "), "{}", status.headline);
    assert!(status.headline.contains("3 h 11 min of data lost"), "{}", status.headline);
    // A copy elsewhere that is one behind is what would be left.
    let copy = |sequence, elsewhere| CopySight { url: "s3://c/p".into(), elsewhere, sequence };
    sight.copies = vec![copy(Some(Sequence(1)), true)];
    let status = judged(&sight, NOW);
    is(&status, "elsewhere", Level::Green, "a copy");
    assert_eq!(status.loss.server.as_ref().unwrap().since, at("2026-11-20T02:00:07Z"));
    assert!(status.headline.starts_with("If this server died now: 27 h 11 min of data lost"), "{}", status.headline);
    is(&status, "copy", Level::Green, "");
    is(&judged(&sight, "2026-11-22T02:05:00Z"), "copy", Level::Amber, "lacks 1 snapshot");
    sight.copies = vec![copy(None, true), copy(Some(Sequence(2)), false)];
    let status = judged(&sight, NOW);
    is(&status, "copy", Level::Amber, "nothing was ever copied");
    is(&status, "elsewhere", Level::Amber, "dies with it");
}

#[test]
fn room_keys_transactions_health_coverage() {
    let mut sight = sight();
    let room = |free| Some(Room { free, reserve: 100 });
    for (free, level) in [(300, Level::Green), (150, Level::Amber), (99, Level::Red)] {
        sight.room = room(free);
        is(&judged(&sight, NOW), "room", level, "free");
    }
    sight.unproved = vec!["age1xyz".into()];
    is(&judged(&sight, NOW), "recipients", Level::Amber, "age1xyz");
    sight.pending = Some("20261121T020000Z-1".into());
    is(&judged(&sight, NOW), "transaction", Level::Red, "between two states");
    sight.health = vec![Health {
        name: "http https://shop.example.org/health".into(),
        ok: false,
        attempts: 1,
        seconds: 0.1,
        problem: Some("it answers 503".into()),
        known: false,
    }];
    is(&judged(&sight, NOW), "health", Level::Red, "it answers 503");
    let gap = |n: usize| SeenGap {
        name: format!("volume v{n}"),
        what: format!("no source captures volume v{n}"),
        hint: Some("add a source".into()),
    };
    sight.gaps = Some((0..7).map(gap).collect());
    let status = judged(&sight, NOW);
    is(&status, "coverage", Level::Amber, "no source captures volume");
    assert_eq!(status.not_covered.len(), 6);
    assert_eq!(status.not_covered[5], "2 more");
    sight.gaps = None;
    sight.blind = Some("the engine does not answer".into());
    is(&judged(&sight, NOW), "coverage", Level::Amber, "the engine does not answer");
}

#[test]
fn nobody_runs_it() {
    let mut ran = ran(&[]);
    is(&judge(&policy(""), &sight(), &ran, false, None, at(NOW)), "service", Level::Amber, "nothing here runs");
    // A timer does.
    ran.scheduled = Some(run(What::Snapshot, "2026-11-21T02:00:00Z", Some("done")));
    is(&judge(&policy(""), &sight(), &ran, false, None, at(NOW)), "service", Level::Green, "something else");
    let later = at("2026-11-23T03:00:00Z");
    is(&judge(&policy(""), &sight(), &ran, false, None, later), "service", Level::Amber, "nothing here runs");
}

#[test]
fn verifications_stop() {
    let done = ran(&[run(What::Verify, "2026-11-21T04:15:00Z", Some("done"))]);
    let of = |now: &str| judge(&policy(""), &sight(), &done, true, None, at(now));
    is(&of("2026-11-22T05:00:00Z"), "verify", Level::Green, "all was well");
    is(&of("2026-11-22T06:00:00Z"), "verify", Level::Amber, "all was well");
}

#[test]
fn what_nobody_has_looked_at_is_not_well() {
    let mut ran = ran(&[]);
    let status = unseen(&policy(""), &ran, at(NOW));
    is(&status, "repository", Level::Amber, "nobody has looked yet");
    assert!(status.level == Level::Amber && status.looked.is_none() && status.newest.is_none(), "{status:#?}");
    ran.failing = vec![(What::Snapshot, at("2026-11-21T02:00:42Z"))];
    assert_eq!(unseen(&policy(""), &ran, at(NOW)).level, Level::Red);
}

#[test]
fn one_headline_for_all() {
    let (mut a, mut b) = (judged(&sight(), NOW), judged(&sight(), NOW));
    b.policy = "blog".into();
    b.loss.server.as_mut().unwrap().seconds = 7200;
    b.not_covered = vec!["Supabase".into()];
    let text = overall(&[a.clone(), b.clone()]);
    assert_eq!(
        text,
        "If this server died now: up to 3 h 11 min of data lost (shop), back in about 8 min, one after the other; not \
         covered: Supabase."
    );
    a.recovery = None;
    b.loss.server = None;
    let text = overall(&[a.clone(), b]);
    assert!(text.starts_with("If this server died now: everything of blog lost, up to 3 h 11 min"), "{text}");
    assert!(text.contains("nobody has measured for shop"), "{text}");
    assert_eq!(overall(std::slice::from_ref(&a)), a.headline);
    let broken = unreadable("x".into(), "x.toml:1:1: no".into());
    assert_eq!(overall(std::slice::from_ref(&broken)), broken.headline);
}
