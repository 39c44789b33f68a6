//! What has come between a captured database and the live one but rows: where the application's migrations stand, and
//! the form of its tables. [`compare`] is pure; the rest asks the server.

use super::PostgresSource;
use super::catalog::OURS;
use super::facts::{Database, Facts, Migrations};
use super::migrations::migrations;
use super::session::{Session, SessionError};
use super::shape::{NOT_OF_A_RESTORE, is_of_a_restore, shape};
use crate::base::cancel::Cancel;
use crate::policy::model::{SourcePolicy, SourceSpec};
use crate::sources::SourceError;
use crate::sources::locate::Locate;
use crate::sources::run::{Deadline, settle};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Names of one sort that stand in a line.
const NAMED: usize = 5;
/// Letters of one entry of migrations in a line.
const ENTRY: usize = 40;
/// The longest that looking at the form of a database may wait for somebody's lock.
const LOCK_MILLIS: u32 = 500;
/// The longest that asking may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A table of migrations whose newest entries are not the snapshot's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationDifference {
    /// `alembic_version`; with its schema and database where that is needed to tell it apart.
    pub table: String,
    /// `alembic`, `prisma`, `django`, …
    pub tool: String,
    /// The newest entries of the live database, newest first; none where there is no such table.
    pub live: Vec<String>,
    /// The same of the snapshot.
    pub recorded: Vec<String>,
}

/// Whether tables, columns, types, constraints, indexes, views, functions, triggers and policies are the snapshot's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    Same,
    Differs,
    /// The snapshot does not tell, or the server is of another major version by now.
    Unknown,
}

/// What has come between, of all databases of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaChange {
    pub migrations: Vec<MigrationDifference>,
    pub form: Form,
    /// For people, from today to then: `schema: alembic_version 9a1b → 3f2c`.
    pub lines: Vec<String>,
}

impl SchemaChange {
    /// Whether a migration has certainly come between.
    pub fn is_changed(&self) -> bool {
        !self.migrations.is_empty() || self.form == Form::Differs
    }

    fn of(parts: Vec<SchemaChange>) -> Self {
        let mut all = SchemaChange { migrations: Vec::new(), form: Form::Same, lines: Vec::new() };
        for part in parts {
            all.form = match (all.form, part.form) {
                (Form::Differs, _) | (_, Form::Differs) => Form::Differs,
                (Form::Unknown, _) | (_, Form::Unknown) => Form::Unknown,
                _ => Form::Same,
            };
            all.migrations.extend(part.migrations);
            all.lines.extend(part.lines);
        }
        all
    }
}

/// Where the live database's migrations stand against a snapshot's: empty where they stand at the same.
pub fn schema_differs(
    source: &SourcePolicy,
    locate: &Locate,
    facts: &Value,
    cancel: &Cancel,
) -> Result<Vec<MigrationDifference>, SourceError> {
    Ok(schema_change(source, locate, facts, cancel)?.migrations)
}

/// What has come between the live databases of a source and the facts of a snapshot. Changes nothing.
pub fn schema_change(
    source: &SourcePolicy,
    locate: &Locate,
    facts: &Value,
    cancel: &Cancel,
) -> Result<SchemaChange, SourceError> {
    let SourceSpec::Postgres(spec) = &source.spec else {
        return Err(SourceError::problem(format!("source {:?} is no database server", source.name.as_str())));
    };
    let facts = Facts::deserialize(facts)
        .map_err(|e| SourceError::problem(format!("the snapshot's facts cannot be read: {e}")))?;
    let source = PostgresSource::new(source.name.clone(), spec.clone(), source.timeout, locate.clone());
    source.changed_since(&facts, cancel).map_err(|e| settle(e, cancel))
}

/// The major versions of a source's server: today's, and the one that was captured.
pub fn majors(
    source: &SourcePolicy,
    locate: &Locate,
    facts: &Value,
    cancel: &Cancel,
) -> Result<(u32, u32), SourceError> {
    let SourceSpec::Postgres(spec) = &source.spec else {
        return Err(SourceError::problem(format!("source {:?} is no database server", source.name.as_str())));
    };
    let captured = facts["server_version_num"].as_u64().and_then(|v| u32::try_from(v).ok());
    let captured = captured.ok_or_else(|| SourceError::problem("the snapshot does not say which version it is of"))?;
    let source = PostgresSource::new(source.name.clone(), spec.clone(), source.timeout, locate.clone());
    let today = source.version(cancel).map_err(|e| settle(e, cancel))?;
    Ok((today / 10_000, captured / 10_000))
}

impl PostgresSource {
    fn version(&self, cancel: &Cancel) -> Result<u32, SourceError> {
        let connection = self.connect("compare", cancel)?;
        let (session, _) = self.enter(&connection, Deadline::after(self.timeout.min(PATIENCE)), cancel)?;
        let version = session.version;
        session.close().map_err(|e| e.into_source(&connection, "ask for its version"))?;
        Ok(version)
    }

    fn changed_since(&self, facts: &Facts, cancel: &Cancel) -> Result<SchemaChange, SourceError> {
        let connection = self.connect("compare", cancel)?;
        let deadline = Deadline::after(self.timeout.min(PATIENCE));
        let (mut session, _) = self.enter(&connection, deadline, cancel)?;
        let asked = |e: SessionError| e.into_source(&connection, "list the databases");
        let there = super::cluster::databases(&mut session).map_err(asked)?;
        session.close().map_err(asked)?;
        let mut parts = Vec::new();
        for database in &facts.databases {
            let is_there = there.iter().any(|d| d.name == database.name);
            let live = match is_there {
                false => None,
                true => {
                    let what = format!("look at the form of database {:?}", database.name);
                    let read = Session::open(&connection, &database.name, deadline, cancel).and_then(|mut session| {
                        let live = Live::read(&mut session)?;
                        session.close()?;
                        Ok(live)
                    });
                    Some(read.map_err(|e| e.into_source(&connection, &what))?)
                }
            };
            parts.push(compare(facts, database, live.as_ref()));
        }
        Ok(SchemaChange::of(parts))
    }
}

/// A live database, but for its rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Live {
    /// Version of the server, as [`Facts::server_version_num`].
    pub version: u32,
    pub tables: Vec<LiveTable>,
    pub migrations: Vec<Migrations>,
    pub shape: String,
}

/// A live table, partitioned table, view, materialized view or foreign table.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct LiveTable {
    pub schema: String,
    pub name: String,
    /// `pg_class.relkind`.
    pub kind: String,
    pub columns: u64,
    /// A dump holds its rows.
    pub dumped: bool,
    /// Of an extension's configuration table: which rows a dump holds.
    pub condition: Option<String>,
    /// This user may read all of it, and nobody holds it against readers.
    pub readable: bool,
    /// What the statistics say; 0 or less: nothing.
    pub live_rows: i64,
    pub counted_rows: i64,
    pub pages: i64,
}

impl Live {
    pub fn read(session: &mut Session) -> Result<Self, SessionError> {
        session.execute(&format!("SET lock_timeout = {LOCK_MILLIS};"))?;
        Ok(Self {
            version: session.version,
            tables: tables(session)?,
            migrations: migrations(session)?,
            shape: shape(session)?,
        })
    }
}

/// Tables and views, from the catalogs and statistics alone: nobody's lock is waited for.
fn tables(session: &mut Session) -> Result<Vec<LiveTable>, SessionError> {
    session.rows(&format!(
        "SELECT n.nspname AS schema, c.relname AS name, c.relkind AS kind, \
           (SELECT count(*) FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns, \
           c.relkind = 'r' AND (e.oid IS NULL OR coalesce(c.oid = ANY (e.extconfig), false)) AS dumped, \
           CASE WHEN c.oid = ANY (e.extconfig) THEN e.extcondition[array_position(e.extconfig, c.oid)] END AS condition, \
           has_table_privilege(c.oid, 'SELECT') AND NOT row_security_active(c.oid) AND NOT c.oid = ANY (ARRAY(\
             SELECT l.relation FROM pg_locks AS l WHERE l.mode = 'AccessExclusiveLock' AND l.relation IS NOT NULL)) AS readable, \
           pg_stat_get_live_tuples(c.oid) AS live_rows, c.reltuples::bigint AS counted_rows, c.relpages AS pages \
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         LEFT JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e' \
           AND d.refclassid = 'pg_extension'::regclass \
         LEFT JOIN pg_extension AS e ON e.oid = d.refobjid \
         WHERE {OURS} AND {NOT_OF_A_RESTORE} AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' \
         ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\""
    ))
}

/// Holds a live database against the captured one; `None`: it is not there.
pub(super) fn compare(facts: &Facts, captured: &Database, live: Option<&Live>) -> SchemaChange {
    let several = facts.databases.len() > 1;
    let named = |schema: &str, table: &str| {
        let parts = [several.then_some(captured.name.as_str()), (schema != "public").then_some(schema), Some(table)];
        parts.into_iter().flatten().collect::<Vec<_>>().join(".")
    };
    let none = Live::default();
    let is_there = live.is_some();
    let live = live.unwrap_or(&none);
    let migrations = heads(&captured.migrations, &live.migrations, &named);
    let mut lines: Vec<String> = migrations.iter().map(line).collect();
    if !is_there {
        let line = format!("schema: database {:?} is not there today", captured.name);
        return SchemaChange { migrations, form: Form::Differs, lines: vec![line] };
    }
    let told = forms(captured, live, &named);
    let same_major = live.version / 10_000 == facts.server_version_num / 10_000;
    let form = match &captured.shape {
        _ if !told.is_empty() => Form::Differs,
        Some(shape) if same_major && *shape == live.shape => Form::Same,
        Some(_) if same_major => Form::Differs,
        _ => Form::Unknown,
    };
    let of = if several { format!(" of database {:?}", captured.name) } else { String::new() };
    if !told.is_empty() {
        lines.push(format!("schema{of}: {}", told.join("; ")));
    } else if form == Form::Differs {
        lines.push(format!("schema{of}: the same tables, but types, constraints, indexes, views or functions differ"));
    }
    SchemaChange { migrations, form, lines }
}

fn heads(
    captured: &[Migrations],
    live: &[Migrations],
    named: &dyn Fn(&str, &str) -> String,
) -> Vec<MigrationDifference> {
    let key = |m: &Migrations| (m.schema.clone(), m.table.clone());
    let mut tables: BTreeMap<_, (Option<&Migrations>, Option<&Migrations>)> = BTreeMap::new();
    captured.iter().for_each(|m| tables.entry(key(m)).or_default().0 = Some(m));
    live.iter().for_each(|m| tables.entry(key(m)).or_default().1 = Some(m));
    let stand = |m: Option<&Migrations>| m.map(|m| (m.applied, m.head.clone()));
    let differ = tables.into_iter().filter(|(_, (then, now))| stand(*then) != stand(*now));
    differ
        .map(|((schema, table), (then, now))| MigrationDifference {
            table: named(&schema, &table),
            tool: now.or(then).map(|m| m.tool.clone()).unwrap_or_default(),
            live: now.map(|m| m.head.clone()).unwrap_or_default(),
            recorded: then.map(|m| m.head.clone()).unwrap_or_default(),
        })
        .collect()
}

fn line(difference: &MigrationDifference) -> String {
    let short = |entry: &String| match entry.char_indices().nth(ENTRY) {
        Some((at, _)) => format!("{}…", &entry[..at]),
        None => entry.clone(),
    };
    let first = |head: &[String]| head.first().map_or_else(|| "nothing".to_owned(), short);
    let (now, then) = (first(&difference.live), first(&difference.recorded));
    let more = if now == then { " (earlier entries differ)" } else { "" };
    format!("schema: {} {now} → {then}{more}", difference.table)
}

/// What differs of tables and columns, in words.
fn forms(captured: &Database, live: &Live, named: &dyn Fn(&str, &str) -> String) -> Vec<String> {
    /// Columns then, where the table was there and they were counted, and now.
    type Sides = (Option<Option<u64>>, Option<u64>);
    let mut tables: BTreeMap<(&str, &str), Sides> = BTreeMap::new();
    for table in captured.tables.iter().filter(|t| t.extension.is_none() && !is_of_a_restore(&t.schema)) {
        tables.entry((&table.schema, &table.name)).or_default().0 = Some(table.columns);
    }
    for table in live.tables.iter().filter(|t| t.dumped || t.kind != "r") {
        tables.entry((&table.schema, &table.name)).or_default().1 = Some(table.columns);
    }
    // Views and tables of extensions are the extension's.
    for table in captured.tables.iter().filter(|t| t.extension.is_some()) {
        tables.remove(&(table.schema.as_str(), table.name.as_str()));
    }
    let (mut added, mut removed, mut columns) = (Vec::new(), Vec::new(), Vec::new());
    for ((schema, table), sides) in tables {
        let name = named(schema, table);
        match sides {
            (None, Some(_)) => added.push(name),
            (Some(_), None) => removed.push(name),
            (Some(Some(then)), Some(now)) if then != now => columns.push(format!("{name} {now} → {then}")),
            _ => {}
        }
    }
    let mut told = Vec::new();
    if !added.is_empty() {
        told.push(format!("made since and gone then: {}", list(&added)));
    }
    if !removed.is_empty() {
        told.push(format!("dropped since and back then: {}", list(&removed)));
    }
    if !columns.is_empty() {
        told.push(format!("columns: {}", list(&columns)));
    }
    told
}

fn list(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
