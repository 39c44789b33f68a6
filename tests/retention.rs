//! Retention: tables of cases that people meet, a naive copy of the rules for arbitrary ones, and what a compromised
//! host cannot do.

use chrono::{DateTime, Datelike, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;
use lifeboat::base::ids::Sequence;
use lifeboat::policy::model::Retention;
use lifeboat::policy::retention::{Candidate, Outcome, Reason, Removal, Verdict, decide};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{prop_assert, prop_assert_eq, proptest};
use std::collections::HashSet;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
const ZAGREB: Option<Tz> = Some(Tz::Europe__Zagreb);

const NOTHING: Retention = Retention {
    keep_last: 0,
    keep_hourly: 0,
    keep_daily: 0,
    keep_weekly: 0,
    keep_monthly: 0,
    keep_yearly: 0,
    keep_within: None,
    keep_tagged: true,
    max_age: None,
};
/// The defaults of a policy.
const DEFAULTS: Retention = Retention { keep_last: 3, keep_daily: 7, keep_weekly: 4, keep_monthly: 6, ..NOTHING };

fn time(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn complete(sequence: u64, at: &str) -> Candidate {
    plain(sequence, time(at))
}

fn plain(sequence: u64, time: DateTime<Utc>) -> Candidate {
    Candidate {
        sequence: Sequence(sequence),
        time,
        outcome: Outcome::Complete,
        tagged: false,
        held: false,
        forked: false,
        passed_drill: false,
    }
}

/// One a day at 02:00 UTC, sequences from 1, the last one at `end`.
fn nightly(count: u64, end: &str) -> Vec<Candidate> {
    (1..=count).map(|n| plain(n, time(end) - TimeDelta::days((count - n) as i64))).collect()
}

fn kept(snapshots: &[Candidate], verdicts: &[Verdict]) -> Vec<u64> {
    let mut kept: Vec<u64> =
        snapshots.iter().zip(verdicts).filter(|(_, v)| v.keeps()).map(|(s, _)| s.sequence.0).collect();
    kept.sort_unstable();
    kept
}

fn texts(snapshots: &[Candidate], keep: &Retention, zone: Option<Tz>, now: &str) -> Vec<String> {
    decide(snapshots, keep, zone, time(now)).iter().map(Verdict::to_string).collect()
}

#[test]
fn the_table_says_why() {
    let keep = Retention {
        keep_last: 1,
        keep_hourly: 1,
        keep_daily: 2,
        keep_weekly: 2,
        keep_monthly: 2,
        keep_yearly: 2,
        keep_within: Some(2 * DAY),
        ..NOTHING
    };
    let mut snapshots = vec![
        complete(1, "2025-12-31T02:00:00Z"),
        complete(2, "2026-10-31T02:00:00Z"),
        complete(3, "2026-11-12T02:00:00Z"),
        complete(4, "2026-11-15T02:00:00Z"),
        complete(5, "2026-11-17T02:00:00Z"),
        complete(6, "2026-11-18T02:00:00Z"),
        complete(7, "2026-11-19T02:00:00Z"),
        complete(8, "2026-11-20T02:00:00Z"),
    ];
    snapshots[2].tagged = true;
    snapshots[3].held = true;
    snapshots[4].passed_drill = true;
    assert_eq!(
        texts(&snapshots, &keep, ZAGREB, "2026-11-20T12:00:00Z"),
        [
            "yearly 2025",
            "monthly 2026-10",
            "tagged",
            "weekly 2026-W46, held",
            "newest that passed a drill",
            "within 2d",
            "daily 2026-11-19, within 2d",
            "last 1 of 1, hourly 2026-11-20 03:00+01:00, daily 2026-11-20, weekly 2026-W47, monthly 2026-11, \
             yearly 2026, within 2d, newest complete",
        ]
    );
}

#[test]
fn the_table_says_why_not() {
    let mut snapshots = nightly(5, "2026-11-20T02:00:00Z");
    snapshots.extend((6..=9).map(|n| Candidate { outcome: Outcome::Partial, ..complete(n, "2026-11-20T03:00:00Z") }));
    snapshots.push(complete(10, "2026-11-25T02:00:00Z"));
    snapshots.push(Candidate { forked: true, ..complete(2, "2026-11-17T02:00:00Z") });
    let keep = Retention { keep_last: 2, ..NOTHING };
    assert_eq!(
        texts(&snapshots, &keep, None, "2026-11-20T12:00:00Z"),
        [
            "no rule keeps it",
            "no rule keeps it",
            "no rule keeps it",
            "last 2 of 2",
            "last 1 of 2, newest complete",
            "partial, older than the newest 3",
            "one of the newest 3 partial",
            "one of the newest 3 partial",
            "one of the newest 3 partial",
            "from the future: dated 4 days ahead",
            "forked: another one carries its number",
        ]
    );
}

#[test]
fn a_year_of_nights_under_the_defaults() {
    let snapshots = nightly(365, "2026-11-20T02:00:00Z");
    let verdicts = decide(&snapshots, &DEFAULTS, ZAGREB, time("2026-11-20T12:00:00Z"));
    let kept: Vec<String> = snapshots
        .iter()
        .zip(&verdicts)
        .filter(|(_, v)| v.keeps())
        .map(|(s, _)| s.time.format("%m-%d").to_string())
        .collect();
    let expected = [
        "06-30", "07-31", "08-31", "09-30", "10-31", "11-01", "11-08", "11-14", "11-15", "11-16", "11-17", "11-18",
        "11-19", "11-20",
    ];
    assert_eq!(kept, expected);
}

/// What runs every night for two years, with a prune after each: as many stay as a prune at the end would leave.
#[test]
fn pruning_every_night_leaves_what_one_prune_would() {
    let mut there: Vec<Candidate> = Vec::new();
    let all = nightly(730, "2026-11-20T02:00:00Z");
    for snapshot in &all {
        there.push(*snapshot);
        let verdicts = decide(&there, &DEFAULTS, ZAGREB, snapshot.time + TimeDelta::hours(2));
        there = there.iter().zip(&verdicts).filter(|(_, v)| v.keeps()).map(|(s, _)| *s).collect();
    }
    let at_once = kept(&all, &decide(&all, &DEFAULTS, ZAGREB, time("2026-11-20T04:00:00Z")));
    assert_eq!(there.iter().map(|s| s.sequence.0).collect::<Vec<_>>(), at_once);
}

#[test]
fn days_are_those_of_the_policys_zone() {
    let snapshots = [complete(1, "2026-11-19T22:30:00Z"), complete(2, "2026-11-19T23:30:00Z")];
    let keep = Retention { keep_daily: 5, ..NOTHING };
    let now = "2026-11-20T12:00:00Z";
    assert_eq!(texts(&snapshots, &keep, Some(Tz::UTC), now)[0], "no rule keeps it", "one day in UTC");
    assert_eq!(texts(&snapshots, &keep, ZAGREB, now)[0], "daily 2026-11-19", "two in Zagreb");
    assert_eq!(texts(&snapshots, &keep, ZAGREB, now)[1], "daily 2026-11-20, newest complete");
}

#[test]
fn the_clock_change_makes_25_hours_and_23() {
    let keep = Retention { keep_hourly: 1000, keep_daily: 1000, ..NOTHING };
    for (day, hours) in [("2026-10-25", 25), ("2026-03-29", 23), ("2026-03-28", 24)] {
        let midnight = Tz::Europe__Zagreb.from_local_datetime(&format!("{day}T00:30:00").parse().unwrap()).unwrap();
        let hourly: Vec<Candidate> =
            (0..48).map(|n| plain(n + 1, midnight.to_utc() + TimeDelta::hours(n as i64))).collect();
        let verdicts = decide(&hourly, &keep, ZAGREB, hourly[47].time);
        let of_day = |v: &&Verdict| v.to_string().starts_with(&format!("hourly {day}"));
        assert_eq!(verdicts.iter().filter(of_day).count(), hours, "{day}");
        let daily = |v: &Verdict| v.to_string().contains(&format!("daily {day}"));
        assert_eq!(verdicts.iter().filter(|v| daily(v)).count(), 1, "{day}");
        assert!(daily(&verdicts[hours - 1]), "the last one of {day}: {:?}", verdicts[hours - 1]);
    }
}

#[test]
fn leap_days_and_the_weeks_of_a_years_end() {
    let label = |at: &str, keep: Retention| texts(&[complete(1, at)], &keep, Some(Tz::UTC), at).remove(0);
    let weekly = Retention { keep_weekly: 1, ..NOTHING };
    for (at, week) in [
        ("2026-12-31T12:00:00Z", "2026-W53"),
        ("2027-01-03T12:00:00Z", "2026-W53"),
        ("2027-01-04T12:00:00Z", "2027-W01"),
        ("2024-12-30T12:00:00Z", "2025-W01"),
        ("2023-01-01T12:00:00Z", "2022-W52"),
    ] {
        assert_eq!(label(at, weekly.clone()), format!("weekly {week}, newest complete"), "{at}");
    }
    let leap: Vec<_> = ["2028-02-28T02:00:00Z", "2028-02-29T02:00:00Z", "2028-03-01T02:00:00Z"]
        .iter()
        .zip(1..)
        .map(|(at, n)| complete(n, at))
        .collect();
    let keep = Retention { keep_daily: 3, keep_monthly: 2, ..NOTHING };
    assert_eq!(
        texts(&leap, &keep, Some(Tz::UTC), "2028-03-01T12:00:00Z"),
        ["daily 2028-02-28", "daily 2028-02-29, monthly 2028-02", "daily 2028-03-01, monthly 2028-03, newest complete",]
    );
    // A week that spans two years is one week.
    let turn = [complete(1, "2026-12-31T12:00:00Z"), complete(2, "2027-01-01T12:00:00Z")];
    let verdicts = decide(&turn, &Retention { keep_weekly: 5, ..NOTHING }, Some(Tz::UTC), turn[1].time);
    assert_eq!(kept(&turn, &verdicts), [2]);
}

#[test]
fn within_reaches_back_from_the_newest_one_not_from_now() {
    let snapshots = nightly(60, "2026-06-30T02:00:00Z");
    let keep = Retention { keep_within: Some(10 * DAY), ..NOTHING };
    let verdicts = decide(&snapshots, &keep, ZAGREB, time("2026-11-20T12:00:00Z"));
    assert_eq!(kept(&snapshots, &verdicts), (50..=60).collect::<Vec<_>>());
}

#[test]
fn suspect_ones_are_kept_and_never_push_out_complete_ones() {
    let mut snapshots = nightly(10, "2026-11-20T02:00:00Z");
    let without: Vec<u64> =
        kept(&snapshots[..7], &decide(&snapshots[..7], &DEFAULTS, ZAGREB, time("2026-11-20T12:00:00Z")));
    snapshots[7..].iter_mut().for_each(|s| s.outcome = Outcome::Suspect);
    let verdicts = decide(&snapshots, &DEFAULTS, ZAGREB, time("2026-11-20T12:00:00Z"));
    let kept = kept(&snapshots, &verdicts);
    assert!(without.iter().all(|n| kept.contains(n)), "{kept:?}");
    assert!([8, 9, 10].iter().all(|n| kept.contains(n)), "{kept:?}");
    assert_eq!(verdicts[9].to_string(), "last 1 of 3, daily 2026-11-20, weekly 2026-W47, monthly 2026-11");
    // And not without end: old ones go as complete ones would.
    let many: Vec<Candidate> = nightly(400, "2026-11-20T02:00:00Z")
        .into_iter()
        .map(|s| Candidate { outcome: if s.sequence.0 < 9 { Outcome::Complete } else { Outcome::Suspect }, ..s })
        .collect();
    let verdicts = decide(&many, &DEFAULTS, ZAGREB, time("2026-11-20T12:00:00Z"));
    assert!(verdicts.iter().filter(|v| v.keeps()).count() < 25);
}

#[test]
fn max_age_wins_over_all_but_the_newest_complete_one_and_says_so() {
    let mut snapshots = nightly(5, "2026-06-30T02:00:00Z");
    snapshots[0].held = true;
    snapshots[1].tagged = true;
    snapshots[2].passed_drill = true;
    snapshots.push(Candidate { outcome: Outcome::Partial, ..complete(6, "2026-06-30T03:00:00Z") });
    snapshots.push(Candidate { outcome: Outcome::Suspect, ..complete(7, "2026-06-30T04:00:00Z") });
    let keep = Retention { max_age: Some(90 * DAY), ..DEFAULTS };
    let verdicts = texts(&snapshots, &keep, ZAGREB, "2026-11-20T12:00:00Z");
    assert_eq!(verdicts[0], "older than max_age 90d, which wins over: held");
    assert_eq!(verdicts[1], "older than max_age 90d, which wins over: tagged");
    assert_eq!(verdicts[2], "older than max_age 90d, which wins over: newest that passed a drill");
    assert_eq!(verdicts[3], "older than max_age 90d");
    assert!(verdicts[4].ends_with("newest complete"), "{verdicts:?}");
    assert_eq!(verdicts[5..], ["older than max_age 90d", "older than max_age 90d"]);
    // Exactly that old is not older.
    let edge = decide(&snapshots[..1], &keep, ZAGREB, snapshots[0].time + TimeDelta::days(90));
    assert!(edge[0].keeps());
}

/// Where nothing is complete the ceiling leaves the best that there is.
#[test]
fn without_a_complete_one_the_best_has_its_place() {
    let of = |outcome, n| Candidate { outcome, ..complete(n, "2026-01-01T02:00:00Z") };
    let keep = Retention { max_age: Some(90 * DAY), keep_daily: 1, ..NOTHING };
    let suspect = [of(Outcome::Suspect, 1), of(Outcome::Suspect, 2), of(Outcome::Partial, 3)];
    let verdicts = decide(&suspect, &keep, ZAGREB, time("2026-11-20T12:00:00Z"));
    assert_eq!(kept(&suspect, &verdicts), [2]);
    assert!(verdicts[1].to_string().ends_with("newest, and none is complete"));
    let partial = [of(Outcome::Partial, 1), of(Outcome::Partial, 2)];
    assert_eq!(kept(&partial, &decide(&partial, &keep, ZAGREB, time("2026-11-20T12:00:00Z"))), [2]);
}

/// Two of the newest sequence: either may be the true one, so neither is too old.
#[test]
fn of_a_fork_at_the_top_both_stay() {
    let fork = |outcome| Candidate { forked: true, outcome, ..complete(4, "2026-01-04T02:00:00Z") };
    let mut snapshots = nightly(3, "2026-01-03T02:00:00Z");
    snapshots[1].forked = true;
    snapshots.extend([fork(Outcome::Complete), fork(Outcome::Complete), fork(Outcome::Partial)]);
    let keep = Retention { max_age: Some(90 * DAY), ..DEFAULTS };
    let verdicts = decide(&snapshots, &keep, ZAGREB, time("2026-11-20T12:00:00Z"));
    assert_eq!(kept(&snapshots, &verdicts), [3, 4, 4]);
    let text = "older than max_age 90d, which wins over: forked: another one carries its number";
    assert_eq!((verdicts[1].to_string(), verdicts[5].to_string()), (text.into(), text.into()));
}

/// Where every complete one has been forked, a suspect one takes the place of none of them.
#[test]
fn a_suspect_one_does_not_stand_in_for_forked_complete_ones() {
    let forked = Candidate { forked: true, ..complete(1, "2026-01-04T02:00:00Z") };
    let suspect = Candidate { outcome: Outcome::Suspect, ..complete(2, "2026-01-05T02:00:00Z") };
    let keep = Retention { max_age: Some(90 * DAY), ..DEFAULTS };
    let snapshots = [forked, forked, suspect];
    assert_eq!(kept(&snapshots, &decide(&snapshots, &keep, ZAGREB, time("2026-11-20T12:00:00Z"))), [1, 1, 2]);
}

#[test]
fn where_no_rule_is_set_nothing_goes_but_by_age() {
    let snapshots = nightly(50, "2026-11-20T02:00:00Z");
    let now = time("2026-11-20T12:00:00Z");
    assert!(decide(&snapshots, &NOTHING, ZAGREB, now).iter().all(Verdict::keeps));
    let aged = decide(&snapshots, &Retention { max_age: Some(10 * DAY), ..NOTHING }, ZAGREB, now);
    assert_eq!(kept(&snapshots, &aged), (41..=50).collect::<Vec<_>>());
}

/// A clock that jumps, forwards or back, of this host or of the one that prunes.
#[test]
fn clocks_that_jump_evict_nothing() {
    let keep = Retention { keep_last: 2, keep_daily: 7, max_age: Some(30 * DAY), ..NOTHING };
    let good = nightly(10, "2026-11-10T02:00:00Z");
    let now = time("2026-11-11T12:00:00Z");
    let before = kept(&good, &decide(&good, &keep, ZAGREB, now));

    // Three nights at 1970: they are as new as what came before them, and take nobody's place.
    let mut back = good.clone();
    back.extend((11..=13).map(|n| plain(n, DateTime::UNIX_EPOCH + TimeDelta::days(n as i64))));
    let kept_back = kept(&back, &decide(&back, &keep, ZAGREB, now));
    assert!(before.iter().chain(&[11, 12, 13]).all(|n| kept_back.contains(n)), "{kept_back:?}");

    // A night in 2036: it is kept, and counts for nothing.
    let mut ahead = good.clone();
    ahead.push(complete(11, "2036-01-01T02:00:00Z"));
    let verdicts = decide(&ahead, &keep, ZAGREB, now);
    assert_eq!(kept(&ahead, &verdicts), before.iter().copied().chain([11]).collect::<Vec<_>>());
    assert!(verdicts[9].to_string().contains("newest complete"), "{}", verdicts[9]);

    // A clock that was ahead, and whose time has come since: the good ones after it are still there.
    let mut passed = good.clone();
    passed.push(complete(11, "2026-12-01T02:00:00Z"));
    passed.extend((12..=35).map(|n| plain(n, time("2026-11-11T02:00:00Z") + TimeDelta::days(n as i64 - 12))));
    let verdicts = decide(&passed, &keep, ZAGREB, time("2026-12-05T12:00:00Z"));
    let newest: Vec<u64> = kept(&passed, &verdicts).into_iter().filter(|n| *n >= 30).collect();
    assert_eq!(newest, (30..=35).collect::<Vec<_>>(), "six newest days; the jumped one has the seventh place");

    // The pruning host believes that it is 1970: everything is from the future.
    assert!(decide(&good, &keep, ZAGREB, DateTime::UNIX_EPOCH).iter().all(Verdict::keeps));
}

/// Times that no calendar holds do not end the run.
#[test]
fn impossible_times_are_decided_about() {
    let keep = Retention {
        keep_hourly: 5,
        keep_weekly: 5,
        keep_within: Some(Duration::MAX),
        max_age: Some(Duration::MAX),
        ..DEFAULTS
    };
    let odd = [plain(1, DateTime::<Utc>::MIN_UTC), plain(2, DateTime::<Utc>::MAX_UTC)];
    for now in [DateTime::<Utc>::MIN_UTC, DateTime::UNIX_EPOCH, DateTime::<Utc>::MAX_UTC] {
        assert_eq!(decide(&odd, &keep, Some(Tz::Pacific__Kiritimati), now).len(), 2);
        assert_eq!(decide(&odd, &keep, Some(Tz::Pacific__Niue), now).len(), 2);
    }
}

/// A stolen host key signs thousands: all today, dated into the past, into the future, forked, tagged, partial.
#[test]
fn thousands_from_a_compromised_host_evict_a_place_of_each_rule_and_no_more() {
    let good = nightly(60, "2026-11-19T02:00:00Z");
    let now = time("2026-11-20T12:00:00Z");
    let keep = Retention { keep_hourly: 24, ..DEFAULTS };
    let mut marked = good.clone();
    marked[20].held = true;
    marked[21].tagged = true;
    marked[22].passed_drill = true;
    let calendar = |verdict: &Verdict, wanted: &[&str]| {
        verdict.to_string().split(", ").any(|r| wanted.iter().any(|w| r.starts_with(w)))
    };
    let before = decide(&marked, &keep, ZAGREB, now);
    let by_calendar = |verdicts: &[Verdict]| {
        let wanted = ["daily", "weekly", "monthly"];
        verdicts[..60].iter().map(|v| wanted.iter().filter(|w| calendar(v, &[w])).count()).sum::<usize>()
    };

    let mut attack = marked.clone();
    for n in 0..5_000u64 {
        let at = match n % 5 {
            0 => now,
            1 => now + TimeDelta::hours(23),
            2 => now + TimeDelta::days(2 + n as i64),
            3 => now - TimeDelta::days(n as i64),
            _ => time("2026-11-19T03:00:00Z") + TimeDelta::seconds(n as i64),
        };
        let mut one = plain(61 + n, at);
        one.tagged = n % 7 == 0;
        one.forked = n % 11 == 0;
        if n % 13 == 0 {
            one.outcome = Outcome::Partial;
        }
        attack.push(one);
    }
    let verdicts = decide(&attack, &keep, ZAGREB, now);
    for at in [20, 21, 22] {
        assert!(verdicts[at].keeps(), "{}: {}", at + 1, verdicts[at]);
    }
    // Signed on one day, dated today and (by less than a day ahead) tomorrow: two days' places, two weeks' and months'
    // at the turn of one, and no place of an older one.
    let (had, has) = (by_calendar(&before), by_calendar(&verdicts));
    assert!(has + 5 >= had && has > 8, "{had} places before, {has} after");
    let lost: Vec<u64> =
        (0..60).filter(|&at| before[at].keeps() && !verdicts[at].keeps()).map(|at| at as u64 + 1).collect();
    assert!(lost.len() <= 3, "{lost:?}");
    // Only dated back or ahead: nothing is lost at all, keep_last aside.
    let mut odd = marked.clone();
    odd.extend((0..5_000u64).map(|n| {
        let days = TimeDelta::days(2 + n as i64);
        plain(61 + n, if n % 2 == 0 { now + days } else { now - days })
    }));
    let verdicts = decide(&odd, &keep, ZAGREB, now);
    for at in 0..60 {
        assert!(!before[at].keeps() || verdicts[at].keeps(), "{}: {} → {}", at + 1, before[at], verdicts[at]);
    }
}

// A naive copy of the rules, by definition instead of by walking.

fn naive_period(rule: usize, t: DateTime<Utc>, zone: Tz) -> (i32, u32, u32, u32, i32) {
    use chrono::Offset;
    let local = t.with_timezone(&zone);
    let date = local.date_naive();
    match rule {
        0 => (date.year(), date.ordinal(), local.hour(), 0, local.offset().fix().local_minus_utc()),
        1 => (date.year(), date.ordinal(), 0, 0, 0),
        2 => (date.iso_week().year(), date.iso_week().week(), 0, 0, 0),
        3 => (date.year(), date.month(), 0, 0, 0),
        _ => (date.year(), 0, 0, 0, 0),
    }
}

fn naive_keeps(all: &[Candidate], keep: &Retention, zone: Tz, now: DateTime<Utc>, x: &Candidate) -> bool {
    let future = |s: &Candidate| s.time > now + TimeDelta::days(1);
    let latest_before =
        |s: &Candidate| all.iter().filter(|o| o.sequence < s.sequence && !future(o) && !o.forked).map(|o| o.time).max();
    let believed = |s: &Candidate| latest_before(s).map_or(s.time, |t| t.max(s.time));
    let present: Vec<&Candidate> = all.iter().filter(|s| !future(s)).collect();
    let rank = |s: &&Candidate| (s.outcome, s.sequence);
    let sure = present.iter().copied().filter(|s| !s.forked).max_by_key(rank);
    let best = !future(x)
        && (sure == Some(x) || x.forked && sure.is_none_or(|s| (x.outcome, x.sequence) > (s.outcome, s.sequence)));
    if best {
        return true;
    }
    if future(x) {
        return true;
    }
    if let Some(age) = keep.max_age
        && now - believed(x) > TimeDelta::from_std(age).unwrap()
    {
        return false;
    }
    let counts = [keep.keep_hourly, keep.keep_daily, keep.keep_weekly, keep.keep_monthly, keep.keep_yearly];
    if x.forked || x.held || x.tagged && keep.keep_tagged {
        return true;
    }
    if counts.iter().all(|n| *n == 0) && keep.keep_last == 0 && keep.keep_within.is_none() {
        return true;
    }
    if x.passed_drill && !present.iter().any(|s| s.passed_drill && s.sequence > x.sequence) {
        return true;
    }
    let partial = |s: &&&Candidate| s.outcome == Outcome::Partial && !s.forked && s.sequence > x.sequence;
    if x.outcome == Outcome::Partial {
        return present.iter().filter(partial).count() < 3;
    }
    if let Some(within) = keep.keep_within {
        let counted = present.iter().filter(|s| s.outcome != Outcome::Partial && !s.forked);
        let newest = counted.map(|s| believed(s)).max().unwrap().min(now);
        if newest - believed(x) <= TimeDelta::from_std(within).unwrap() {
            return true;
        }
    }
    let in_order = |s: &Candidate| latest_before(s).is_none_or(|t| s.time >= t);
    let classes: [&dyn Fn(&Candidate) -> bool; 3] =
        [&|s| s.outcome == Outcome::Complete && in_order(s), &|s| s.outcome == Outcome::Complete, &|s| {
            s.outcome != Outcome::Partial
        }];
    classes.iter().any(|class| {
        let newer: Vec<&Candidate> =
            present.iter().copied().filter(|s| !s.forked && class(s) && s.sequence > x.sequence).collect();
        class(x)
            && (newer.len() < keep.keep_last as usize
                || (0..5).any(|rule| {
                    let periods: HashSet<_> = newer.iter().map(|s| naive_period(rule, s.time, zone)).collect();
                    periods.len() < counts[rule] as usize && !periods.contains(&naive_period(rule, x.time, zone))
                }))
    })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![6 => Just(Outcome::Complete), 2 => Just(Outcome::Suspect), 2 => Just(Outcome::Partial)]
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let odds = |n: u32| proptest::bool::weighted(1.0 / f64::from(n));
    (outcome(), -20_000i64..2_000, odds(8), odds(12), odds(10), odds(10), any::<bool>()).prop_map(
        |(outcome, hours, tagged, held, forked, passed_drill, near)| Candidate {
            outcome,
            tagged,
            held,
            forked,
            passed_drill,
            ..plain(1, now() + TimeDelta::minutes(if near { hours } else { hours * 60 }))
        },
    )
}

fn now() -> DateTime<Utc> {
    time("2026-11-20T12:00:00Z")
}

/// Snapshots in any order of time; sequences as they come.
fn history() -> impl Strategy<Value = Vec<Candidate>> {
    (proptest::collection::vec(candidate(), 0..40), any::<bool>()).prop_map(|(mut all, sorted)| {
        if sorted {
            all.sort_by_key(|s| s.time);
        }
        for (n, s) in all.iter_mut().enumerate() {
            s.sequence = Sequence(n as u64 + 1);
        }
        all
    })
}

fn retention() -> impl Strategy<Value = Retention> {
    let count = || prop_oneof![2 => Just(0u32), 3 => 1u32..6];
    let days = |most: u32| proptest::option::weighted(0.3, (1..most).prop_map(|n| n * DAY));
    (count(), count(), count(), count(), count(), count(), days(60), any::<bool>(), days(400)).prop_map(
        |(
            keep_last,
            keep_hourly,
            keep_daily,
            keep_weekly,
            keep_monthly,
            keep_yearly,
            keep_within,
            keep_tagged,
            max_age,
        )| {
            Retention {
                keep_last,
                keep_hourly,
                keep_daily,
                keep_weekly,
                keep_monthly,
                keep_yearly,
                keep_within,
                keep_tagged,
                max_age,
            }
        },
    )
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn it_is_what_the_rules_say(all in history(), keep in retention()) {
        let verdicts = decide(&all, &keep, ZAGREB, now());
        for (snapshot, verdict) in all.iter().zip(&verdicts) {
            let naive = naive_keeps(&all, &keep, Tz::Europe__Zagreb, now(), snapshot);
            prop_assert_eq!(verdict.keeps(), naive, "{:?}: {}", snapshot, verdict);
        }
    }

    /// The order in which the snapshots are handed over says nothing.
    #[test]
    fn only_the_sequence_is_order(all in history(), keep in retention()) {
        let mut turned = all.clone();
        turned.reverse();
        let mut verdicts = decide(&turned, &keep, ZAGREB, now());
        verdicts.reverse();
        prop_assert_eq!(decide(&all, &keep, ZAGREB, now()), verdicts);
    }

    #[test]
    fn the_newest_complete_and_drilled_and_held_ones_stay(all in history(), keep in retention()) {
        let verdicts = decide(&all, &keep, ZAGREB, now());
        let stays = |wanted: &dyn Fn(&Candidate) -> bool| {
            let present = |s: &Candidate| s.time <= now() + TimeDelta::days(1);
            let newest = all.iter().rposition(|s| present(s) && wanted(s));
            newest.is_none_or(|at| verdicts[at].keeps())
        };
        prop_assert!(stays(&|s| s.outcome == Outcome::Complete && !s.forked));
        prop_assert!(keep.max_age.is_some() || stays(&|s| s.passed_drill));
        for (snapshot, verdict) in all.iter().zip(&verdicts) {
            if snapshot.held {
                let told = |v: &Verdict| matches!(v, Verdict::Remove(Removal::TooOld { despite, .. }) if despite.contains(&Reason::Held));
                prop_assert!(verdict.keeps() || told(verdict), "{}", verdict);
            }
        }
    }

    /// What is not complete, from the future, or forked may come in any number: no complete one goes for it.
    #[test]
    fn what_does_not_count_evicts_nothing(all in history(), keep in retention(), more in proptest::collection::vec(candidate(), 1..20)) {
        let before = decide(&all, &keep, ZAGREB, now());
        let mut with = all.clone();
        let next = all.len() as u64 + 1;
        with.extend(more.into_iter().enumerate().map(|(n, mut s)| {
            match n % 3 {
                0 => s.outcome = Outcome::Suspect,
                1 => s.time = now() + TimeDelta::days(2 + n as i64),
                _ => s.forked = true,
            }
            Candidate { sequence: Sequence(next + n as u64), passed_drill: false, ..s }
        }));
        let after = decide(&with, &keep, ZAGREB, now());
        for (at, snapshot) in all.iter().enumerate() {
            let complete = snapshot.outcome == Outcome::Complete;
            // A rule that reaches back from the newest one moves on with it, whatever that one's outcome.
            let within = matches!(&before[at], Verdict::Keep(r) if r.iter().all(|r| matches!(r, Reason::Within(_))));
            if complete && !within {
                prop_assert!(!before[at].keeps() || after[at].keeps(), "{:?}: {} → {}", snapshot, before[at], after[at]);
            }
        }
    }

    /// A second run right after the first finds nothing to do, where times are in order.
    #[test]
    fn what_stays_stays(mut all in history(), keep in retention()) {
        all.sort_by_key(|s| s.time);
        for (n, s) in all.iter_mut().enumerate() {
            s.sequence = Sequence(n as u64 + 1);
        }
        let verdicts = decide(&all, &keep, ZAGREB, now());
        let rest: Vec<Candidate> = all.iter().zip(&verdicts).filter(|(_, v)| v.keeps()).map(|(s, _)| *s).collect();
        prop_assert!(decide(&rest, &keep, ZAGREB, now()).iter().all(Verdict::keeps));
    }
}
