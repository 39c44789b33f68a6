//! What leaves with a database that is replaced: rows of today against the rows that were captured.
//!
//! Counting is exact as long as the time allows that a plan may take, smallest tables first; what is left is
//! estimated from the server's statistics. Nothing here fails a plan: what cannot be counted is estimated, and where
//! even that is not possible a warning says so.

use super::{Admin, Mode, Move};
use crate::sources::placing::{Loss, Part, Unit};
use crate::sources::postgres::change::{Live, LiveTable, compare};
use crate::sources::postgres::content;
use crate::sources::postgres::facts::{Database, Facts};
use crate::sources::postgres::session::{Session, SessionError};
use crate::sources::postgres::shape::is_of_a_restore;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long all tables together are counted.
const BUDGET: Duration = Duration::from_millis(1_500);
/// Tables and pages that one statement counts.
const BATCH_TABLES: usize = 50;
const BATCH_PAGES: u64 = 2_000;
/// A statement with less time than this is not begun.
const LEAST: Duration = Duration::from_millis(30);
/// How often a session is opened anew when a table could not be counted.
const REOPEN: u32 = 2;
/// The longest that counting waits for somebody's lock.
const LOCK_MILLIS: u32 = 100;
const PAGE: u64 = 8_192;
/// An estimate that is off by less than this part of the rows says nothing.
const NOISE: u64 = 200;

/// What was found.
#[derive(Default)]
pub(super) struct Leaving {
    pub losses: Vec<Loss>,
    /// What else has come between, for people.
    pub lines: Vec<String>,
    pub warnings: Vec<String>,
}

/// Looks at the live databases that would be replaced.
pub(super) fn look(admin: &Admin<'_>, facts: &Facts, wanted: &Wanted<'_>) -> Leaving {
    let mut leaving = Leaving::default();
    if wanted.mode == Mode::Beside {
        return leaving;
    }
    let mut left = BUDGET;
    let mut rows = Vec::new();
    for (database, to) in wanted.databases.iter().zip(wanted.moves) {
        let whole = wanted.mode != Mode::Tables;
        if to.oid.is_none() {
            if whole {
                leaving.lines.extend(compare(facts, database, None).lines);
            }
            continue;
        }
        let mut counter = Counter { admin, database: &to.live, left: &mut left };
        let looked = counter.look(&|t| wanted.takes(&t.schema, &t.name));
        match looked {
            Ok(Looked { live, counted, large_objects }) => {
                if whole {
                    leaving.lines.extend(compare(facts, database, Some(&live)).lines);
                }
                rows.extend(pair(database, &live.tables, &counted, &|s, n| wanted.takes(s, n)));
                if whole {
                    rows.extend(objects(database, large_objects));
                }
            }
            Err(error) => {
                let why = admin.explain(error, &format!("count the rows of database {:?}", to.live));
                leaving.warnings.push(format!("what would leave with database {:?} is not known: {why}", to.live));
            }
        }
    }
    leaving.losses = label(rows);
    leaving
}

/// What is replaced.
pub(super) struct Wanted<'a> {
    pub mode: Mode,
    pub databases: &'a [&'a Database],
    pub moves: &'a [Move],
    pub part: &'a Part,
}

impl Wanted<'_> {
    fn takes(&self, schema: &str, name: &str) -> bool {
        self.mode != Mode::Tables || self.part.tables.iter().any(|t| *t == format!("{schema}.{name}"))
    }
}

type Key = (String, String);

/// Rows of a table, and whether they were counted.
type Rows = (u64, bool);

struct Looked {
    live: Live,
    counted: HashMap<Key, u64>,
    large_objects: Option<u64>,
}

struct Counter<'a> {
    admin: &'a Admin<'a>,
    database: &'a str,
    /// Of the time for counting, which getting there is no part of.
    left: &'a mut Duration,
}

impl Counter<'_> {
    fn open(&self) -> Result<Session, SessionError> {
        Session::open(&self.admin.connection, self.database, self.admin.deadline, self.admin.cancel)
    }

    fn look(&mut self, takes: &dyn Fn(&LiveTable) -> bool) -> Result<Looked, SessionError> {
        let mut session = self.open()?;
        let live = Live::read(&mut session)?;
        #[derive(Deserialize)]
        struct Count {
            count: u64,
        }
        let objects = session.one::<Count>("SELECT count(*) AS count FROM pg_largeobject_metadata");
        let Ok(objects) = objects else { return Ok(Looked { live, counted: HashMap::new(), large_objects: None }) };
        let mut wanted: Vec<&LiveTable> = live.tables.iter().filter(|t| t.dumped && t.readable && takes(t)).collect();
        wanted.sort_by_key(|t| size(t));
        let counted = self.count(session, &wanted);
        Ok(Looked { live, counted, large_objects: Some(objects.count) })
    }

    /// Rows of as many tables as the time allows.
    fn count(&mut self, session: Session, tables: &[&LiveTable]) -> HashMap<Key, u64> {
        let mut counted = HashMap::new();
        let (mut session, mut reopened) = (Some(session), 0);
        let mut rest = tables;
        while !rest.is_empty() && *self.left >= LEAST {
            let begin = Instant::now();
            let (batch, behind) = rest.split_at(batch_length(rest));
            rest = behind;
            let Some(mut open) = session.take().or_else(|| {
                reopened += 1;
                (reopened <= REOPEN).then(|| self.open().ok()).flatten()
            }) else {
                break;
            };
            // What cannot be counted after all (the time, a lock) breaks its statement and the session with it.
            match count_batch(&mut open, batch, *self.left) {
                Ok(rows) => {
                    let keys = batch.iter().map(|t| (t.schema.clone(), t.name.clone()));
                    counted.extend(keys.zip(rows));
                    session = Some(open);
                }
                Err(error) => tracing::debug!(?error, database = self.database, "rows are estimated"),
            }
            *self.left = self.left.saturating_sub(begin.elapsed());
        }
        if let Some(session) = session {
            let _ = session.close();
        }
        counted
    }
}

/// How much there is to read, in pages. Statistics of a table that was never analysed say nothing of its pages.
fn size(table: &LiveTable) -> u64 {
    let at_least = |n: i64| u64::try_from(n).unwrap_or(0);
    at_least(table.pages).max(at_least(table.live_rows.max(table.counted_rows)) / 100)
}

fn batch_length(tables: &[&LiveTable]) -> usize {
    let mut pages = 0u64;
    let fits = |t: &&&LiveTable| {
        pages = pages.saturating_add(size(t));
        pages <= BATCH_PAGES
    };
    tables.iter().take(BATCH_TABLES).take_while(fits).count().max(1)
}

fn count_batch(session: &mut Session, batch: &[&LiveTable], left: Duration) -> Result<Vec<u64>, SessionError> {
    #[derive(Deserialize)]
    struct Row {
        rows: u64,
    }
    let limits = format!("SET statement_timeout = {}; SET lock_timeout = {LOCK_MILLIS};", left.as_millis().max(1));
    session.execute(&limits)?;
    let one = |(i, t): (usize, &&LiveTable)| {
        let query = content::query(&t.schema, &t.name, t.condition.as_deref(), None);
        format!("SELECT {i} AS i, q.rows FROM ({query}) AS q")
    };
    let all: Vec<String> = batch.iter().enumerate().map(one).collect();
    let rows: Vec<Row> = session.rows(&format!("{} ORDER BY i", all.join(" UNION ALL ")))?;
    Ok(rows.into_iter().map(|r| r.rows).collect())
}

/// Rows of a live table where they were not counted.
fn estimate(table: &LiveTable, then: Option<(u64, u64)>) -> Option<u64> {
    let known = [table.live_rows, table.counted_rows].into_iter().find(|n| *n > 0);
    known.and_then(|n| u64::try_from(n).ok()).or_else(|| {
        // No statistics: as many to a page as there were.
        let (rows, bytes) = then.filter(|(_, bytes)| *bytes > 0)?;
        let now = u64::try_from(table.pages).ok().filter(|p| *p > 0)?.saturating_mul(PAGE);
        u64::try_from(u128::from(rows) * u128::from(now) / u128::from(bytes)).ok()
    })
}

/// One thing that is counted, then and now.
struct Pair {
    database: String,
    schema: String,
    name: String,
    more: i64,
    exact: bool,
}

fn objects(database: &Database, now: Option<u64>) -> Option<Pair> {
    let (then, now) = (database.large_objects.count, now?);
    let more = difference(then, now);
    let name = "large objects".to_owned();
    (more != 0).then(|| Pair { database: database.name.clone(), schema: String::new(), name, more, exact: true })
}

fn difference(then: u64, now: u64) -> i64 {
    let clamp = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    clamp(now).saturating_sub(clamp(then))
}

/// Holds the tables of today against those that were captured.
fn pair(
    database: &Database,
    live: &[LiveTable],
    counted: &HashMap<Key, u64>,
    takes: &dyn Fn(&str, &str) -> bool,
) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut add = |schema: &str, name: &str, more: i64, exact: bool| {
        let (schema, name) = (schema.to_owned(), name.to_owned());
        pairs.push(Pair { database: database.name.clone(), schema, name, more, exact });
    };
    let own = database.tables.iter().filter(|t| t.has_data() && !is_of_a_restore(&t.schema));
    let captured: BTreeMap<Key, _> = own.map(|t| (t.key(), t)).collect();
    let mut seen: HashSet<Key> = HashSet::new();
    for table in live.iter().filter(|t| t.dumped && takes(&t.schema, &t.name)) {
        let key = (table.schema.clone(), table.name.clone());
        let then = captured.get(&key);
        let now: Option<Rows> = match counted.get(&key) {
            Some(rows) => Some((*rows, true)),
            None => estimate(table, then.and_then(|t| Some((t.rows?, t.bytes)))).map(|rows| (rows, false)),
        };
        seen.insert(key);
        // What was not counted then cannot be compared.
        let rows_then = match then {
            Some(then) => match then.rows {
                Some(rows) => rows,
                None => continue,
            },
            None => 0,
        };
        match now {
            Some((now, true)) if now != rows_then => add(&table.schema, &table.name, difference(rows_then, now), true),
            Some((_, true)) => {}
            Some((now, false)) if now.abs_diff(rows_then) > rows_then / NOISE => {
                add(&table.schema, &table.name, difference(rows_then, now), false);
            }
            // About as many; or nothing is known of it, and that is said as well.
            _ => add(&table.schema, &table.name, 0, false),
        }
    }
    for ((schema, name), table) in captured {
        if !seen.contains(&(schema.clone(), name.clone())) && takes(&schema, &name) {
            match table.rows {
                Some(0) | None => {}
                Some(rows) => add(&schema, &name, difference(rows, 0), true),
            }
        }
    }
    pairs
}

/// Each by the shortest name that no other has.
fn label(pairs: Vec<Pair>) -> Vec<Loss> {
    let several = pairs.iter().any(|p| p.database != pairs[0].database);
    let alike = |p: &Pair, name: &str, schema: Option<&str>| {
        pairs.iter().filter(|o| o.name == name && schema.is_none_or(|s| o.schema == s)).count() > 1 && p.name == name
    };
    let what = |p: &Pair| {
        if !alike(p, &p.name, None) {
            return p.name.clone();
        }
        let schema = if p.schema.is_empty() { p.name.clone() } else { format!("{}.{}", p.schema, p.name) };
        let twice = several && alike(p, &p.name, Some(&p.schema));
        if twice { format!("{}.{schema}", p.database) } else { schema }
    };
    pairs.iter().map(|p| Loss { what: what(p), unit: Unit::Rows, more: p.more, exact: p.exact }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair_of(database: &str, schema: &str, name: &str) -> Pair {
        Pair { database: database.into(), schema: schema.into(), name: name.into(), more: 1, exact: true }
    }

    #[test]
    fn names_are_as_long_as_they_must_be() {
        let names = |pairs| label(pairs).into_iter().map(|l| l.what).collect::<Vec<_>>();
        let plain = vec![pair_of("a", "public", "orders"), pair_of("b", "public", "users")];
        assert_eq!(names(plain), ["orders", "users"]);
        let schemas = vec![pair_of("a", "x", "orders"), pair_of("a", "y", "orders"), pair_of("a", "y", "z")];
        assert_eq!(names(schemas), ["x.orders", "y.orders", "z"]);
        let databases = vec![pair_of("a", "x", "t"), pair_of("b", "x", "t"), pair_of("b", "y", "t")];
        assert_eq!(names(databases), ["a.x.t", "b.x.t", "y.t"]);
        let objects = vec![pair_of("a", "", "large objects"), pair_of("b", "", "large objects")];
        assert_eq!(names(objects), ["a.large objects", "b.large objects"]);
    }

    #[test]
    fn estimates_come_from_statistics_then_from_pages() {
        let table = |live_rows, counted_rows, pages| LiveTable { live_rows, counted_rows, pages, ..Default::default() };
        assert_eq!(estimate(&table(7, 9, 1), None), Some(7));
        assert_eq!(estimate(&table(0, 9, 1), None), Some(9));
        assert_eq!(estimate(&table(0, -1, 0), None), None);
        assert_eq!(estimate(&table(0, -1, 200), Some((1_000, 100 * PAGE))), Some(2_000));
    }

    #[test]
    fn small_tables_share_a_statement() {
        let table = |pages| LiveTable { pages, ..Default::default() };
        let (small, large) = (table(10), table(5_000));
        assert_eq!(batch_length(&[&small, &small, &large]), 2);
        assert_eq!(batch_length(&[&large, &small]), 1);
        assert_eq!(batch_length(&vec![&small; 80]), BATCH_TABLES);
    }
}
