//! A year of simulated time: 50 policies in zones with and without summer time, restarts, kills and failures. Every slot
//! is started once; what was missed while nothing ran is caught up once.

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, TimeDelta, Timelike, Utc};
use chrono_tz::Tz;
use lifeboat::base::ids::PolicyName;
use lifeboat::daemon::agenda::{Agenda, Due, Ended, Rule, Verdict, delay};
use lifeboat::ops::runs::What;
use lifeboat::policy::model::When;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

const ZONES: [Tz; 6] = [
    Tz::Europe__Zagreb,
    Tz::America__New_York,
    Tz::Australia__Lord_Howe,
    Tz::UTC,
    Tz::America__Santiago,
    Tz::Asia__Kolkata,
];

/// Times of a schedule in a form of their own, so that what is expected is not computed as what is tested.
#[derive(Clone)]
enum Times {
    /// On these weekdays (0 is Sunday; all where empty), at these times of the wall clock.
    Wall(Vec<u32>, Vec<(u32, u32)>),
    /// At this minute of every hour.
    Hourly(u32),
}

struct Kept {
    policy: PolicyName,
    what: What,
    zone: Tz,
    expression: &'static str,
    times: Times,
}

fn all() -> Vec<Kept> {
    let times = |days: &[u32], times: &[(u32, u32)]| Times::Wall(days.to_vec(), times.to_vec());
    let plans: [(&str, Times); 7] = [
        ("30 2 * * *", times(&[], &[(2, 30)])),
        ("0 2 * * *", times(&[], &[(2, 0)])),
        ("15 0,6,12,18 * * *", times(&[], &[(0, 15), (6, 15), (12, 15), (18, 15)])),
        ("45 1-3 * * *", times(&[], &[(1, 45), (2, 45), (3, 45)])),
        ("0,30 0 * * *", times(&[], &[(0, 0), (0, 30)])),
        ("10 */4 * * *", times(&[], &[(0, 10), (4, 10), (8, 10), (12, 10), (16, 10), (20, 10)])),
        ("5 * * * *", Times::Hourly(5)),
    ];
    let mut all = Vec::new();
    for n in 0..50 {
        let policy: PolicyName = format!("p{n}").parse().unwrap();
        let zone = ZONES[n % ZONES.len()];
        let (expression, when) = plans[n % plans.len()].clone();
        all.push(Kept { policy: policy.clone(), what: What::Snapshot, zone, expression, times: when });
        let when = times(&[0], &[(3, 0)]);
        all.push(Kept { policy: policy.clone(), what: What::Drill, zone, expression: "0 3 * * 0", times: when });
        let when = times(&[], &[(4, 30)]);
        all.push(Kept { policy, what: What::Prune, zone, expression: "30 4 * * *", times: when });
    }
    all
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// What the wall clock of a zone shows at every quarter of an hour: no zone of today changes at another time.
struct Wall {
    quarters: Vec<(DateTime<Utc>, NaiveDateTime)>,
    offsets: BTreeSet<TimeDelta>,
}

impl Wall {
    fn of(zone: Tz) -> Self {
        let begin = at("2025-12-30T00:00:00Z");
        let quarters: Vec<_> = (0..370 * 96)
            .map(|n| begin + TimeDelta::minutes(15 * n))
            .map(|utc| (utc, utc.with_timezone(&zone).naive_local()))
            .collect();
        let offsets = quarters.iter().map(|(utc, wall)| *wall - utc.naive_utc()).collect();
        Self { quarters, offsets }
    }

    fn shows(&self, utc: DateTime<Utc>) -> NaiveDateTime {
        let n = (utc - self.quarters[0].0).num_minutes() / 15;
        let (quarter, wall) = self.quarters[usize::try_from(n).unwrap()];
        wall + (utc - quarter)
    }

    /// The first instant at which the clock shows this; where it never does, the first after it was left out.
    fn instant(&self, wall: NaiveDateTime) -> DateTime<Utc> {
        let shown = self.offsets.iter().map(|offset| (wall - *offset).and_utc()).filter(|utc| self.shows(*utc) == wall);
        shown.min().unwrap_or_else(|| {
            let from = self.quarters.partition_point(|(utc, _)| utc.naive_utc() < wall - TimeDelta::hours(30));
            self.quarters[from..].iter().find(|(_, shown)| *shown >= wall).unwrap().0
        })
    }
}

/// Every slot of the year.
fn expected(kept: &Kept, wall: &Wall) -> BTreeSet<DateTime<Utc>> {
    let (begin, end) = (at("2026-01-01T00:00:00Z"), at("2027-01-01T00:00:00Z"));
    let mut slots = BTreeSet::new();
    match &kept.times {
        Times::Hourly(minute) => {
            let minutes = (0..366 * 96).map(|n| begin + TimeDelta::minutes(15 * n));
            for quarter in minutes {
                slots.extend(
                    (0..15).map(|n| quarter + TimeDelta::minutes(n)).filter(|t| wall.shows(*t).minute() == *minute),
                );
            }
        }
        Times::Wall(days, times) => {
            let mut date = NaiveDate::from_ymd_opt(2025, 12, 31).unwrap();
            while date.year() < 2027 || date.ordinal() < 2 {
                if days.is_empty() || days.contains(&date.weekday().num_days_from_sunday()) {
                    slots.extend(times.iter().map(|(h, m)| wall.instant(date.and_hms_opt(*h, *m, 0).unwrap())));
                }
                date = date.succ_opt().unwrap();
            }
        }
    }
    slots.retain(|slot| *slot > begin && *slot < end);
    slots
}

/// A generator of its own, so that a failure can be seen again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

fn rule(kept: &Kept) -> Rule {
    Rule {
        when: When::Cron(kept.expression.into()),
        zone: Some(kept.zone),
        delay: delay(&"web-1".parse().unwrap(), &kept.policy, Duration::from_secs(300)),
        catch_up: true,
        retries: 2,
        retry: TimeDelta::minutes(1),
    }
}

type Key = (PolicyName, What);

/// What the daemon's memory and the run history hold, and what was seen.
#[derive(Default)]
struct Seen {
    settled: HashMap<Key, DateTime<Utc>>,
    /// Starts of each slot as a first attempt.
    starts: BTreeMap<(String, What, DateTime<Utc>), Vec<DateTime<Utc>>>,
    running: Vec<(Key, DateTime<Utc>, u32, DateTime<Utc>)>,
    retried: usize,
}

impl Seen {
    fn start(&mut self, due: Due, now: DateTime<Utc>, dice: &mut Dice) {
        assert!(due.passed_over.is_empty(), "{due:?}");
        for job in due.start {
            if job.attempt == 1 {
                self.starts.entry((job.policy.to_string(), job.what, job.slot)).or_default().push(now);
            } else {
                self.retried += 1;
            }
            assert!(self.running.iter().all(|r| r.0.0 != job.policy), "two runs of {} at once", job.policy);
            let end = now + TimeDelta::seconds(1 + dice.below(300) as i64);
            self.settled.insert((job.policy.clone(), job.what), job.slot);
            self.running.push(((job.policy, job.what), job.slot, job.attempt, end));
        }
    }
}

#[test]
fn every_slot_of_a_year_is_run_once() {
    let kept = all();
    let (end, mut now) = (at("2027-01-01T00:00:00Z"), at("2026-01-01T00:00:00Z"));
    let mut dice = Dice(20261121);
    let mut seen = Seen::default();
    let rules = || kept.iter().map(|k| (k.policy.clone(), k.what, rule(k))).collect::<Vec<_>>();
    let mut agenda = Agenda::new(50);
    agenda.set(rules(), |_, _| None, now);
    for k in &kept {
        seen.settled.insert((k.policy.clone(), k.what), now);
    }
    // From when to when nothing ran.
    let mut down: Vec<(DateTime<Utc>, DateTime<Utc>)> = Vec::new();
    let mut next_restart = now + TimeDelta::hours(30);
    while now < end {
        let ended: Vec<_> = seen.running.iter().filter(|r| r.3 <= now).cloned().collect();
        seen.running.retain(|r| r.3 > now);
        for (key, ..) in ended {
            let how = match dice.below(20) {
                0 | 1 => Ended::Failed,
                2 => Ended::Hopeless,
                _ => Ended::Done,
            };
            let verdict = agenda.ended(&key.0, how, now);
            assert!(how == Ended::Failed || verdict == Verdict::Final);
        }
        let due = agenda.due(now);
        seen.start(due, now, &mut dice);
        if now >= next_restart {
            // Sometimes only the program is started again, sometimes the machine is off for a day and more.
            let away = if dice.below(4) == 0 { dice.below(40 * 3600) } else { dice.below(120) };
            let back = now + TimeDelta::seconds(away as i64);
            down.push((now, back));
            let cut = std::mem::take(&mut seen.running);
            agenda = Agenda::new(50);
            agenda.set(rules(), |policy, what| seen.settled.get(&(policy.clone(), what)).copied(), back);
            for ((policy, what), slot, attempt, _) in cut {
                agenda.resume(&policy, what, slot, attempt, back);
            }
            now = back;
            next_restart = now + TimeDelta::hours(20 + dice.below(100) as i64);
            continue;
        }
        let ends = seen.running.iter().map(|r| r.3).min();
        let wake = [agenda.wake(now), ends, Some(next_restart)].into_iter().flatten().min().unwrap();
        assert!(wake > now, "it would never sleep: {wake} at {now}");
        now = wake + TimeDelta::milliseconds(dice.below(900) as i64);
    }
    assert!(down.len() > 80 && seen.retried > 500, "{} restarts, {} retries", down.len(), seen.retried);
    compare(&kept, &seen, &down, end);
}

/// Holds what was started against what should have been.
fn compare(kept: &[Kept], seen: &Seen, down: &[(DateTime<Utc>, DateTime<Utc>)], end: DateTime<Utc>) {
    let walls: HashMap<Tz, Wall> = ZONES.into_iter().map(|zone| (zone, Wall::of(zone))).collect();
    let (mut started, mut caught_up) = (0, 0);
    for k in kept {
        let expected = expected(k, &walls[&k.zone]);
        let delay = rule(k).delay;
        let name = k.policy.to_string();
        let starts: BTreeMap<DateTime<Utc>, &Vec<DateTime<Utc>>> = seen
            .starts
            .iter()
            .filter(|((policy, what, _), _)| *policy == name && *what == k.what)
            .map(|((_, _, slot), at)| (*slot, at))
            .collect();
        for (slot, at) in &starts {
            assert!(expected.contains(slot), "{name} {:?} ran for {slot}, which is no slot", k.what);
            assert_eq!(at.len(), 1, "{name} {:?} ran for {slot} at {at:?}", k.what);
            let due = *slot + delay;
            let late = at[0] - due;
            let away = down.iter().any(|(from, back)| due >= *from - TimeDelta::minutes(20) && due <= *back);
            assert!(late >= TimeDelta::zero() && (away || late < TimeDelta::minutes(25)), "{name} {slot}: {late} late");
            started += 1;
        }
        for slot in expected.iter().filter(|slot| !starts.contains_key(slot) && **slot + delay < end) {
            let due = *slot + delay;
            let missed = down.iter().find(|(from, back)| due >= *from && due <= *back);
            let (_, back) = missed.unwrap_or_else(|| panic!("{name} {:?} never ran for {slot}", k.what));
            // One run made good all that was missed: the newest of them, or the next slot where that came before its turn.
            let newest = expected.iter().rev().find(|newer| **newer + delay <= *back).unwrap();
            let soon = |at: &DateTime<Utc>| at >= back && *at - *back < TimeDelta::minutes(25);
            let by: Vec<_> = starts.iter().filter(|(by, at)| *by >= newest && soon(&at[0])).collect();
            assert!(!by.is_empty(), "{name} {:?} {slot} was not caught up", k.what);
            caught_up += 1;
        }
    }
    assert!(started > 100_000 && caught_up > 500, "{started} started, {caught_up} caught up with others");
}

#[test]
fn what_is_switched_off_or_not_caught_up_does_not_run() {
    let kept = &all()[0];
    let key = (kept.policy.clone(), kept.what);
    let (begin, noon) = (at("2026-11-20T12:00:00Z"), at("2026-11-21T12:00:00Z"));
    let with = |rule: Rule| vec![(key.0.clone(), key.1, rule)];
    let mut agenda = Agenda::new(1);
    agenda.set(with(Rule { catch_up: false, ..rule(kept) }), |_, _| Some(begin), noon);
    let due = agenda.due(noon);
    assert!(due.start.is_empty());
    assert_eq!(due.passed_over.len(), 1, "one slot was missed");
    assert!(agenda.wake(noon).unwrap() > noon);
    agenda.set(with(Rule { when: When::Off, ..rule(kept) }), |_, _| Some(begin), noon);
    assert_eq!((agenda.due(noon), agenda.wake(noon)), (Due::default(), None));
    // A clock that was wrong for a while stops nothing for years.
    let mut agenda = Agenda::new(1);
    agenda.set(with(rule(kept)), |_, _| Some(at("2036-01-01T00:00:00Z")), noon);
    assert!(agenda.wake(noon).unwrap() < noon + TimeDelta::days(1));
}

#[test]
fn a_failure_is_tried_again_with_growing_pauses_and_never_beyond_the_next_slot() {
    let kept = &all()[0];
    let mut agenda = Agenda::new(1);
    let mut now = at("2026-11-21T12:00:00Z");
    let rule = Rule { retry: TimeDelta::minutes(5), retries: 3, ..rule(kept) };
    agenda.set(vec![(kept.policy.clone(), kept.what, rule)], |_, _| Some(now - TimeDelta::days(1)), now);
    let mut pauses = Vec::new();
    for attempt in 1.. {
        let due = agenda.due(now);
        assert_eq!(due.start.iter().map(|j| j.attempt).collect::<Vec<_>>(), [attempt]);
        match agenda.ended(&kept.policy, Ended::Failed, now) {
            Verdict::Again(at) => {
                pauses.push((at - now).num_minutes());
                assert_eq!(agenda.wake(now), Some(at));
                assert!(agenda.due(at - TimeDelta::seconds(1)).start.is_empty());
                now = at;
            }
            Verdict::Final => break,
        }
    }
    assert_eq!(pauses, [5, 15, 45]);
    // Shortly before the next slot nothing is tried again: the slot itself is.
    now = agenda.wake(now).unwrap();
    assert_eq!(agenda.due(now).start.len(), 1);
    let late = agenda.wake(now).unwrap() - TimeDelta::minutes(3);
    assert_eq!(agenda.ended(&kept.policy, Ended::Failed, late), Verdict::Final);
}

/// In UTC, caught up, tried twice.
fn daily(when: &str) -> Rule {
    Rule {
        when: When::Cron(when.to_owned()),
        zone: Some(Tz::UTC),
        delay: TimeDelta::zero(),
        catch_up: true,
        retries: 1,
        retry: TimeDelta::minutes(5),
    }
}

/// A verification that hangs keeps no snapshot waiting: it makes way, and is made up behind it.
#[test]
fn a_snapshot_waits_for_no_verification_and_no_drill() {
    let shop: PolicyName = "shop".parse().unwrap();
    for looks in [What::Verify, What::Drill, What::Prune] {
        let mut agenda = Agenda::new(2);
        let rules =
            vec![(shop.clone(), What::Snapshot, daily("0 2 * * *")), (shop.clone(), looks, daily("30 1 * * *"))];
        agenda.set(rules, |_, _| None, at("2026-01-01T00:00:00Z"));
        let started = |due: &Due| due.start.iter().map(|job| (job.what, job.attempt)).collect::<Vec<_>>();
        let due = agenda.due(at("2026-01-01T01:30:00Z"));
        assert_eq!((started(&due), due.give_way.len()), (vec![(looks, 1)], 0));
        // It hangs, and the snapshot is due.
        let two = at("2026-01-01T02:00:00Z");
        let due = agenda.due(two);
        assert_eq!(started(&due), []);
        if looks == What::Prune {
            assert!(due.give_way.is_empty(), "what changes the repository comes to its own end");
            continue;
        }
        assert_eq!(due.give_way, std::slice::from_ref(&shop));
        let again = two + TimeDelta::seconds(30);
        assert_eq!(agenda.ended(&shop, Ended::GaveWay, two), Verdict::Again(again));
        // The snapshot first, although the other slot is older.
        let due = agenda.due(two);
        assert_eq!((started(&due), due.give_way.len()), (vec![(What::Snapshot, 1)], 0));
        assert_eq!(started(&agenda.due(again)), [], "one at a time");
        assert_eq!(agenda.ended(&shop, Ended::Done, again), Verdict::Final);
        let due = agenda.due(again);
        assert_eq!((started(&due), due.given_up.len()), (vec![(looks, 1)], 0), "made up, as the same attempt");
        assert_eq!(agenda.ended(&shop, Ended::Done, again), Verdict::Final);
        assert_eq!(agenda.due(at("2026-01-02T01:29:00Z")), Due::default());
    }
}

/// What would have to make way at once does not begin, however long it has waited.
#[test]
fn nothing_begins_that_would_have_to_make_way_at_once() {
    let (shop, blog): (PolicyName, PolicyName) = ("shop".parse().unwrap(), "blog".parse().unwrap());
    let started = |due: &Due| due.start.iter().map(|job| (job.policy.clone(), job.what)).collect::<Vec<_>>();
    for looks in [What::Verify, What::Drill] {
        let mut agenda = Agenda::new(1);
        let rules = vec![
            (shop.clone(), looks, daily("30 1 * * *")),
            (shop.clone(), What::Snapshot, daily("0 2 * * *")),
            (blog.clone(), What::Snapshot, daily("45 1 * * *")),
        ];
        // All were missed: the machine was off.
        agenda.set(rules, |_, _| Some(at("2026-01-01T00:00:00Z")), at("2026-01-01T03:00:00Z"));
        let now = at("2026-01-01T03:00:00Z");
        let mut order = Vec::new();
        for _ in 0..3 {
            let due = agenda.due(now);
            assert!(due.give_way.is_empty(), "nothing had to be stopped");
            assert_eq!(started(&agenda.due(now)), [], "there is room for one");
            order.extend(started(&due));
            agenda.ended(&order.last().unwrap().0.clone(), Ended::Done, now);
        }
        let (shops, blogs) = ((shop.clone(), What::Snapshot), (blog.clone(), What::Snapshot));
        assert_eq!(order, [blogs, shops, (shop.clone(), looks)]);
        // A snapshot that is to be tried again later keeps nothing waiting until then.
        let mut agenda = Agenda::new(1);
        let rules = vec![(shop.clone(), looks, daily("5 2 * * *")), (shop.clone(), What::Snapshot, daily("0 2 * * *"))];
        agenda.set(rules, |_, _| None, at("2026-01-01T00:00:00Z"));
        assert_eq!(started(&agenda.due(at("2026-01-01T02:00:00Z"))), [(shop.clone(), What::Snapshot)]);
        let again = agenda.ended(&shop, Ended::Failed, at("2026-01-01T02:04:00Z"));
        assert_eq!(again, Verdict::Again(at("2026-01-01T02:09:00Z")));
        assert_eq!(started(&agenda.due(at("2026-01-01T02:05:00Z"))), [(shop.clone(), looks)]);
    }
}
