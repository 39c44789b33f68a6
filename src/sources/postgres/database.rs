//! One database: its snapshot, its dumps, its facts.

use super::dump::{self, Begun, LOCK_WAIT, Run, Stored};
use super::facts::{Database, Part, Table};
use super::pace::Pace;
use super::parts::{self, Divide, Readers};
use super::rows::{self, RowsOf};
use super::session::{Session, SessionError};
use super::wire::{self, Wire};
use super::{Limits, catalog, grants, migrations, shape};
use crate::base::cancel::Cancel;
use crate::base::threads;
use crate::place::PlaceError;
use crate::policy::model::{Fingerprint, PostgresSpec};
use crate::sources::run::{Linked, one_line};
use crate::sources::{Capture, Sink, SourceError};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

/// How often the locks are tried for.
const ATTEMPTS: u32 = 3;

/// An attempt that came to nothing, and did no harm.
enum Attempt<T> {
    Done(T),
    /// Somebody else's lock, or a table that went away meanwhile; the cause.
    Conflict(String),
}

pub(super) fn capture(
    run: &Run<'_>,
    cx: &Capture<'_>,
    spec: &PostgresSpec,
    limits: &Limits,
) -> Result<(Database, Vec<String>), SourceError> {
    let mut said = String::new();
    for attempt in 1..=ATTEMPTS {
        cx.cancel.check()?;
        let linked = Linked::to(run.cancel)?;
        let run = Run { cancel: &linked.cancel, ..*run };
        match try_capture(&run, cx, spec, limits, &linked)? {
            Attempt::Done(captured) => return Ok(captured),
            Attempt::Conflict(why) => {
                tracing::debug!(database = run.database, attempt, why, "begin anew");
                said = why;
            }
        }
    }
    Err(SourceError::hint(
        format!("tables of database {:?} on {} stay locked: {said}", run.database, run.connection.server),
        "something changes the form of tables, or holds an exclusive lock: SELECT * FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
    ))
}

/// The side session, with what was read in its snapshot before the dumps begin.
struct Begin {
    session: Session,
    snapshot: String,
    facts: Database,
    dumps: Vec<Dump>,
}

/// A part that sees the snapshot, holds its locks, and waits to be stored.
enum Dump {
    ByPgDump(Begun),
    Rows(rows::Begun),
}

impl Dump {
    fn store<'s>(self, run: &Run<'_>, version: &str, sink: &'s dyn Sink) -> Result<Stored<'s>, SourceError> {
        match self {
            Dump::ByPgDump(dump) => dump.store(run, sink),
            Dump::Rows(rows) => rows.store(run, version, sink),
        }
    }

    /// The tables of which the server itself will say how many rows it sent.
    fn told(&self) -> impl Iterator<Item = (String, String)> {
        let tables = match self {
            Dump::ByPgDump(_) => &[][..],
            Dump::Rows(rows) => rows.tables(),
        };
        tables.iter().map(|rows| (rows.table.schema.clone(), rows.table.name.clone()))
    }
}

/// How long a server takes to notice that sessions have ended.
const LEAVE: Duration = Duration::from_secs(1);

fn try_capture(
    run: &Run<'_>,
    cx: &Capture<'_>,
    spec: &PostgresSpec,
    limits: &Limits,
    linked: &Linked,
) -> Result<Attempt<(Database, Vec<String>)>, SourceError> {
    let what = format!("dump of database {:?}", run.database);
    let begun = match begin(run, spec, limits) {
        // Of a container's server one session always was enough beside the facts'.
        Err(error) if run.connection.through_exec && spec.jobs > 1 && error.is_full() => {
            tracing::debug!(database = run.database, ?error, "too few connections for several parts");
            std::thread::sleep(LEAVE);
            begin(run, &PostgresSpec { jobs: 1, ..spec.clone() }, limits)
        }
        begun => begun,
    };
    let begun = match begun {
        Ok(Attempt::Done(begun)) => begun,
        Ok(Attempt::Conflict(why)) => return Ok(Attempt::Conflict(why)),
        Err(error) if error.is_conflict() => {
            let text = match error {
                SessionError::Server { text, .. } => text,
                other => other.into_source(run.connection, &what).to_string(),
            };
            return Ok(Attempt::Conflict(text));
        }
        Err(error) => return Err(error.into_source(run.connection, &what)),
    };
    tracing::debug!(database = run.database, snapshot = begun.snapshot, parts = begun.dumps.len(), "dump");
    let Begin { mut session, mut facts, dumps, .. } = begun;
    let version = session.version_text.clone();
    let version = version.as_str();
    let told: HashSet<(String, String)> = dumps.iter().flat_map(Dump::told).collect();
    let (stored, counted) = std::thread::scope(|scope| {
        let threads: Vec<_> = dumps
            .into_iter()
            .map(|dump| {
                threads::beside(scope, move || {
                    let result = dump.store(run, version, cx.sink);
                    if result.is_err() {
                        linked.raise();
                    }
                    result
                })
            })
            .collect();
        let counted = count(&mut session, &mut facts, spec.fingerprint, &told, run);
        if counted.is_err() {
            linked.raise();
        }
        let stored: Vec<Result<Stored<'_>, SourceError>> = threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|| Err(SourceError::problem("a thread that stores a dump broke"))))
            .collect();
        (stored, counted)
    });
    let stored = first_cause(stored, counted, cx.cancel)?;
    session.close().map_err(|e| e.into_source(run.connection, &what))?;
    let mut warnings = warnings(run.database, &facts);
    prove(run, &mut facts, &stored)?;
    for part in stored {
        if !part.said.is_empty() {
            warnings.push(format!("{what}: {}", part.said));
        }
        if !part.report.walked {
            let (major, minor, _) = part.report.version;
            warnings
                .push(format!("{what}: archive version {major}.{minor} is not known, so its rows were not counted"));
        }
        part.stream.finish().map_err(SourceError::Sink)?;
    }
    Ok(Attempt::Done((facts, warnings)))
}

/// When one of several breaks the others are ended, so the error that counts is the one that is no ending.
fn first_cause<'s>(
    stored: Vec<Result<Stored<'s>, SourceError>>,
    counted: Result<(), SourceError>,
    cancel: &Cancel,
) -> Result<Vec<Stored<'s>>, SourceError> {
    cancel.check()?;
    let mut parts = Vec::new();
    let mut errors: Vec<SourceError> = counted.err().into_iter().collect();
    for result in stored {
        match result {
            Ok(part) => parts.push(part),
            Err(error) => errors.push(error),
        }
    }
    let ended = |e: &SourceError| matches!(e, SourceError::Cancelled(_) | SourceError::Place(PlaceError::Cancelled(_)));
    let first = errors.iter().position(|e| !ended(e)).unwrap_or(0);
    match errors.into_iter().nth(first) {
        Some(error) => Err(error),
        None => Ok(parts),
    }
}

/// Locks, snapshot, facts, and `pg_dump` begun on it.
fn begin(run: &Run<'_>, spec: &PostgresSpec, limits: &Limits) -> Result<Attempt<Begin>, SessionError> {
    let mut session = Session::open(run.connection, run.database, run.deadline, run.cancel)?;
    if session.version < 110_000 {
        return Err(SourceError::problem("PostgreSQL 11 is the oldest that is supported").into());
    }
    let tables = catalog::tables_to_lock(&mut session)?;
    session.execute(&format!("SET lock_timeout = {};", limits.lock_wait.as_millis()))?;
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;")?;
    catalog::lock(&mut session, &tables)?;
    #[derive(Deserialize)]
    struct Exported {
        snapshot: String,
        at: String,
    }
    let exported: Exported = session
        .one("SELECT pg_export_snapshot() AS snapshot, to_char(now(), 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS at")?;
    // Made between the first look and the snapshot.
    let late: Vec<_> = catalog::tables_to_lock(&mut session)?.into_iter().filter(|t| !tables.contains(t)).collect();
    catalog::lock(&mut session, &late)?;
    let mut facts = read(&mut session, run, exported.at)?;
    let owned = catalog::owned_sequences(&mut session)?;
    // Patterns of odd names must reach the server in its own encoding.
    let may_divide = spec.jobs > 1 && facts.properties.encoding == "UTF8";
    let mut readable = if may_divide { Readable::open(run, &mut session, &facts, spec, limits)? } else { None };
    // Several execs at once are no faster than one: all that they give goes through the engine.
    let may_divide = may_divide && (!run.connection.through_exec || readable.is_some());
    let parts = parts::divide(&Divide {
        database: run.database,
        tables: &facts.tables,
        owned_sequences: &owned,
        readers: readable.as_ref().map(Readable::readers),
        jobs: spec.jobs as usize,
        may_divide,
        parts_from_bytes: limits.parts_from_bytes,
    })
    .map_err(SourceError::from)?;
    facts.parts = parts
        .iter()
        .map(|p| Part { stream: p.stream.to_string(), section: p.section.into(), tables: p.tables.clone() })
        .collect();
    let (by_pg_dump, of_rows): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| part.options.is_some());
    let started = Instant::now();
    let starting: Result<Vec<Begun>, SourceError> =
        by_pg_dump.into_iter().map(|part| dump::start(run, part, &exported.snapshot)).collect();
    let starting = starting?;
    let mut dumps = Vec::new();
    let paces = Pace::of(of_rows.iter().map(|part| part.expected_bytes.unwrap_or(0)));
    for (part, pace) in of_rows.into_iter().zip(paces) {
        let Some(readable) = &mut readable else { continue };
        dumps.push(Dump::Rows(readable.begin(&facts, part, pace, &exported.snapshot)?));
    }
    for dump in starting {
        match dump.wait_for_first_byte(run)? {
            Ok(begun) => dumps.push(Dump::ByPgDump(begun)),
            // It ended before it wrote anything, and took as long as it waits for a lock: nothing is lost yet.
            Err(said) if started.elapsed() >= LOCK_WAIT => return Ok(Attempt::Conflict(one_line(&said))),
            Err(said) => {
                let what = format!("dump of database {:?}", run.database);
                return Err(run.connection.explain(&what, &said).into());
            }
        }
    }
    let after = catalog::sequence_values(&mut session, &facts.sequences)?;
    for (sequence, (value, called)) in facts.sequences.iter_mut().zip(after) {
        if (value, called) != (sequence.last_value, sequence.is_called) {
            sequence.last_value_after = Some(value);
        }
    }
    Ok(Attempt::Done(Begin { session, snapshot: exported.snapshot, facts, dumps }))
}

/// Sessions of our own that read rows.
struct Readable {
    /// Of the tables that can be read so.
    columns: HashMap<(String, String), Vec<String>>,
    sessions: Vec<Wire>,
    count: usize,
}

impl Readable {
    /// `None`: there is nothing large, or it is left to `pg_dump`.
    fn open(
        run: &Run<'_>,
        session: &mut Session,
        facts: &Database,
        spec: &PostgresSpec,
        limits: &Limits,
    ) -> Result<Option<Self>, SessionError> {
        let bytes: u64 = facts.tables.iter().filter(|t| t.has_data()).map(|t| t.bytes).sum();
        if bytes < limits.parts_from_bytes || !facts.tables.iter().any(parts::is_large) {
            return Ok(None);
        }
        let mut columns = catalog::columns(session)?;
        for table in catalog::below_a_hash(session)? {
            columns.remove(&table);
        }
        let mut readable = Self { columns, sessions: Vec::new(), count: 0 };
        let readers = readable.readers();
        let large = facts.tables.iter().filter(|t| readers.reads(t)).count();
        if !readers.are_worth_it(&facts.tables) {
            return Ok(None);
        }
        let Some(server) = wire::server(session, run.connection)? else { return Ok(None) };
        for _ in 0..large.min(spec.jobs as usize) {
            match rows::open(run, &server) {
                Ok(wire) => readable.sessions.push(wire),
                Err(SessionError::Other(error)) if !matches!(error, SourceError::Place(PlaceError::Stalled { .. })) => {
                    return Err(error.into()); // told to stop, or too late
                }
                Err(error) => {
                    tracing::debug!(database = run.database, ?error, "all rows are read by pg_dump");
                    return Ok(None);
                }
            }
        }
        readable.count = readable.sessions.len();
        Ok(Some(readable).filter(|r| r.count > 0))
    }

    fn readers(&self) -> Readers<'_> {
        Readers { count: self.count, columns: &self.columns }
    }

    /// Hands a part over to one of the sessions. There are as many as there can be parts.
    fn begin(
        &mut self,
        facts: &Database,
        part: parts::Part,
        pace: Pace,
        snapshot: &str,
    ) -> Result<rows::Begun, SessionError> {
        let lost = || SessionError::Other(SourceError::problem(format!("nothing reads the rows of {}", part.stream)));
        let mut tables = Vec::new();
        for table in part.tables.iter().flatten() {
            let key = (table.schema.clone(), table.name.clone());
            let columns = self.columns.get(&key).ok_or_else(lost)?.clone();
            let owner = facts.tables.iter().find(|t| t.key() == key).ok_or_else(lost)?.owner.clone();
            tables.push(RowsOf { table: table.clone(), owner, columns });
        }
        let wire = self.sessions.pop().ok_or_else(lost)?;
        rows::begin(wire, pace, snapshot, part, tables)
    }
}

/// What does not depend on rows.
fn read(session: &mut Session, run: &Run<'_>, at: String) -> Result<Database, SessionError> {
    Ok(Database {
        name: run.database.to_owned(),
        parts: Vec::new(),
        at,
        proved: false,
        properties: catalog::properties(session)?,
        schemas: catalog::schemas(session)?,
        extensions: catalog::extensions(session)?,
        tables: catalog::tables(session)?,
        sequences: catalog::sequences(session)?,
        large_objects: Default::default(),
        counts: catalog::counts(session)?,
        shape: Some(shape::shape(session)?),
        grants: Some(grants::grants(session)?),
        migrations: migrations::migrations(session)?,
        publications: catalog::publications(session)?,
        subscriptions: catalog::subscriptions(session)?,
        invalid_indexes: catalog::invalid_indexes(session)?,
    })
}

/// Rows, contents and large objects, while the dumps are on their way. Of the tables that are `told`, whose rows the server
/// counts as it sends them, nothing is read a second time but contents.
fn count(
    session: &mut Session,
    facts: &mut Database,
    fingerprint: Fingerprint,
    told: &HashSet<(String, String)>,
    run: &Run<'_>,
) -> Result<(), SourceError> {
    let within = |e: SessionError, what: &str| {
        e.into_source(run.connection, &format!("read {what} of database {:?}", run.database))
    };
    let with_content = fingerprint == Fingerprint::Content;
    facts.large_objects = catalog::large_objects(session, with_content).map_err(|e| within(e, "the large objects"))?;
    if fingerprint == Fingerprint::None {
        return Ok(());
    }
    let columns = match with_content {
        true => catalog::columns(session).map_err(|e| within(e, "the columns"))?,
        false => HashMap::new(),
    };
    let wanted = |t: &&mut Table| run.can_read(t) && (with_content || !told.contains(&t.key()));
    for table in facts.tables.iter_mut().filter(wanted) {
        let own = with_content.then(|| columns.get(&table.key()).map_or(&[][..], Vec::as_slice));
        catalog::count(session, table, own)
            .map_err(|e| within(e, &format!("table {}.{}", table.schema, table.name)))?;
    }
    Ok(())
}

/// Holds what the dumps hold against what the server said: each table exactly once, with as many rows. What the server told
/// of a table as it sent the rows has been compared by [`Wire::copy`].
fn prove(run: &Run<'_>, facts: &mut Database, stored: &[Stored<'_>]) -> Result<(), SourceError> {
    let problem = |text: String| {
        SourceError::hint(
            format!("dump of database {:?} on {}: {text}", run.database, run.connection.server),
            "the dump and the server disagree: run it again; if it stays, the server's files or indexes are damaged (REINDEX, pg_amcheck)",
        )
    };
    // What was not counted is as many as came, also where the other dumps cannot be read.
    let came = stored.iter().filter(|s| s.report.walked).flat_map(|s| &s.report.rows);
    let came: HashMap<&(String, String), u64> = came.filter_map(|(table, rows)| Some((table, (*rows)?))).collect();
    for table in facts.tables.iter_mut().filter(|t| t.rows.is_none()) {
        table.rows = came.get(&table.key()).copied();
    }
    facts.proved = stored.iter().all(|s| s.report.walked);
    if !facts.proved {
        return Ok(());
    }
    let mut dumped: BTreeMap<&(String, String), Option<u64>> = BTreeMap::new();
    for (table, rows) in stored.iter().flat_map(|s| &s.report.rows) {
        if dumped.insert(table, *rows).is_some() {
            return Err(problem(format!("table {}.{} is in it twice", table.0, table.1)));
        }
    }
    let objects: u64 = stored.iter().map(|s| s.report.large_objects).sum();
    if objects != facts.large_objects.count {
        let count = facts.large_objects.count;
        return Err(problem(format!("it holds {objects} large objects, and the server has {count}")));
    }
    for table in facts.tables.iter().filter(|t| run.can_read(t)) {
        let name = format!("{}.{}", table.schema, table.name);
        if name.contains('\u{fffd}') {
            continue; // not UTF-8: its name in the dump cannot be told
        }
        match (dumped.get(&table.key()), table.rows) {
            (None, _) => return Err(problem(format!("table {name} is not in it"))),
            (Some(Some(rows)), Some(counted)) if *rows != counted => {
                return Err(problem(format!("it holds {rows} rows of table {name}, and the server counted {counted}")));
            }
            _ => {}
        }
    }
    Ok(())
}

fn warnings(database: &str, facts: &Database) -> Vec<String> {
    let mut warnings = Vec::new();
    let name = |t: &Table| format!("{}.{}", t.schema, t.name);
    let list = |kind: &dyn Fn(&&Table) -> bool| -> Vec<String> { facts.tables.iter().filter(kind).map(name).collect() };
    let mut note = |names: Vec<String>, text: &str| {
        if !names.is_empty() {
            let more = names.len().saturating_sub(5);
            let shown = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            warnings.push(format!("database {database:?}: {shown}{more}: {text}"));
        }
    };
    note(list(&|t| t.persistence == "unlogged"), "unlogged, so a crash of the server empties them");
    note(list(&|t| t.kind == "foreign table"), "foreign tables; their rows lie on another server and are not captured");
    note(facts.invalid_indexes.clone(), "invalid indexes; no dump holds them");
    note(facts.subscriptions.clone(), "subscriptions; they come back without their connection's state");
    let p = &facts.properties;
    if p.collation_version_actual.is_some() && p.collation_version != p.collation_version_actual {
        warnings.push(format!(
            "database {database:?} was made with collation version {}, and the server's libraries have {}: its indexes may be out of order (REINDEX)",
            p.collation_version.as_deref().unwrap_or("none"),
            p.collation_version_actual.as_deref().unwrap_or_default()
        ));
    }
    warnings
}
