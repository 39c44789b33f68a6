//! Facts of one database, read from its catalogs. What `pg_dump` leaves out (system schemas, temporary tables) is left
//! out here too. The queries serve PostgreSQL 11 to 18; where a column came or went with a version it is read through
//! `to_jsonb`, which answers NULL for what is not there.

use super::connection::identifier;
use super::content;
use super::facts::{Counts, Extension, LargeObjects, Properties, QualifiedName, Schema, Sequence, Table};
use super::session::{Session, SessionError};
use serde::Deserialize;
use std::collections::{HashMap, HashSet};

/// Schemas whose objects belong to users.
pub(super) const OURS: &str = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
/// Names in one statement.
pub(super) const BATCH: usize = 200;

#[derive(Deserialize)]
struct Name {
    schema: String,
    name: String,
}

/// The tables that `pg_dump` locks: those whose rows it reads, and partitioned ones.
pub(super) fn tables_to_lock(session: &mut Session) -> Result<Vec<QualifiedName>, SessionError> {
    let rows: Vec<Name> = session.rows(&format!(
        "SELECT n.nspname AS schema, c.relname AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         WHERE {OURS} AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT EXISTS (\
           SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid \
           WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e' \
             AND d.refclassid = 'pg_extension'::regclass AND (c.oid = ANY (e.extconfig)) IS NOT TRUE) \
         ORDER BY c.oid"
    ))?;
    Ok(rows.into_iter().map(|r| QualifiedName { schema: r.schema, name: r.name }).collect())
}

/// Locks tables against changes of their form, as `pg_dump` does: a TRUNCATE or a rewriting ALTER TABLE is not undone
/// by a snapshot. Taken before the snapshot, so that it sees what the locks guard.
pub(super) fn lock(session: &mut Session, tables: &[QualifiedName]) -> Result<(), SessionError> {
    for batch in tables.chunks(BATCH) {
        session.execute(&format!("{};", lock_statement(batch)))?;
    }
    Ok(())
}

pub(super) fn lock_statement<'t>(tables: impl IntoIterator<Item = &'t QualifiedName>) -> String {
    let name = |t: &QualifiedName| format!("ONLY {}.{}", identifier(&t.schema), identifier(&t.name));
    let names: Vec<String> = tables.into_iter().map(name).collect();
    format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "))
}

pub(super) fn properties(session: &mut Session) -> Result<Properties, SessionError> {
    let actual = if session.version >= 150_000 { "pg_database_collation_actual_version(d.oid)" } else { "NULL" };
    session.one(&format!(
        "SELECT pg_get_userbyid(d.datdba) AS owner, pg_encoding_to_char(d.encoding) AS encoding, \
           d.datcollate AS collate, d.datctype AS ctype, \
           CASE j ->> 'datlocprovider' WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END AS locale_provider, \
           coalesce(j ->> 'datlocale', j ->> 'daticulocale') AS locale, j ->> 'daticurules' AS icu_rules, \
           j ->> 'datcollversion' AS collation_version, {actual} AS collation_version_actual, \
           s.spcname AS tablespace, d.datconnlimit AS connection_limit, d.datistemplate AS template, \
           d.datacl::text[] AS acl, shobj_description(d.oid, 'pg_database') AS comment, \
           (SELECT coalesce(json_agg(json_build_object('role', CASE WHEN t.setrole <> 0 THEN pg_get_userbyid(t.setrole) END, \
                'values', t.setconfig) ORDER BY t.setrole), '[]') \
              FROM pg_db_role_setting AS t WHERE t.setdatabase = d.oid) AS settings \
         FROM pg_database AS d JOIN pg_tablespace AS s ON s.oid = d.dattablespace, LATERAL to_jsonb(d) AS j \
         WHERE d.datname = current_database()"
    ))
}

pub(super) fn schemas(session: &mut Session) -> Result<Vec<Schema>, SessionError> {
    session.rows(&format!(
        "SELECT n.nspname AS name, pg_get_userbyid(n.nspowner) AS owner, e.extname AS extension FROM pg_namespace AS n \
         LEFT JOIN pg_depend AS d ON d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e' \
         LEFT JOIN pg_extension AS e ON e.oid = d.refobjid WHERE {OURS} ORDER BY n.nspname COLLATE \"C\""
    ))
}

pub(super) fn extensions(session: &mut Session) -> Result<Vec<Extension>, SessionError> {
    session.rows(
        "SELECT e.extname AS name, e.extversion AS version, n.nspname AS schema FROM pg_extension AS e \
         JOIN pg_namespace AS n ON n.oid = e.extnamespace ORDER BY e.extname COLLATE \"C\"",
    )
}

/// Tables and views; rows are not counted yet. Sizes are taken of the tables that are locked.
pub(super) fn tables(session: &mut Session) -> Result<Vec<Table>, SessionError> {
    session.rows(&format!(
        "SELECT n.nspname AS schema, c.relname AS name, pg_get_userbyid(c.relowner) AS owner, \
           CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view' \
             WHEN 'm' THEN 'materialized view' ELSE 'foreign table' END AS kind, \
           CASE c.relpersistence WHEN 'u' THEN 'unlogged' ELSE 'permanent' END AS persistence, \
           c.relispartition AS partition, e.extname AS extension, \
           CASE WHEN c.oid = ANY (e.extconfig) THEN e.extcondition[array_position(e.extconfig, c.oid)] END AS condition, \
           (SELECT count(*) FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns, \
           NULL::bigint AS rows, \
           CASE WHEN c.relkind = 'r' AND e.oid IS NULL THEN coalesce(pg_table_size(c.oid), 0) ELSE 0 END AS bytes \
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         LEFT JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e' \
           AND d.refclassid = 'pg_extension'::regclass \
         LEFT JOIN pg_extension AS e ON e.oid = d.refobjid \
         WHERE {OURS} AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' \
         ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\""
    ))
}

/// Columns by table, without generated ones.
pub(super) fn columns(session: &mut Session) -> Result<HashMap<(String, String), Vec<String>>, SessionError> {
    #[derive(Deserialize)]
    struct Row {
        schema: String,
        name: String,
        columns: Vec<String>,
    }
    let rows: Vec<Row> = session.rows(&format!(
        "SELECT n.nspname AS schema, c.relname AS name, array_agg(a.attname::text ORDER BY a.attnum) AS columns \
         FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace, \
           LATERAL to_jsonb(a) AS j \
         WHERE {OURS} AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped \
           AND coalesce(j ->> 'attgenerated', '') = '' GROUP BY 1, 2"
    ))?;
    Ok(rows.into_iter().map(|r| ((r.schema, r.name), r.columns)).collect())
}

/// Tables that are partitions below a hash: a value's hash may be another one in another database (an enum's goes by its
/// number), so `pg_dump` has ways of its own to load them.
pub(super) fn below_a_hash(session: &mut Session) -> Result<HashSet<(String, String)>, SessionError> {
    let rows: Vec<Name> = session.rows(&format!(
        "WITH RECURSIVE up AS (\
           SELECT p.partrelid AS above, i.inhrelid AS below FROM pg_partitioned_table AS p \
             JOIN pg_inherits AS i ON i.inhparent = p.partrelid WHERE p.partstrat = 'h' \
           UNION SELECT up.above, i.inhrelid FROM up JOIN pg_inherits AS i ON i.inhparent = up.below) \
         SELECT DISTINCT n.nspname AS schema, c.relname AS name FROM up JOIN pg_class AS c ON c.oid = up.below \
         JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE {OURS}"
    ))?;
    Ok(rows.into_iter().map(|r| (r.schema, r.name)).collect())
}

#[derive(Deserialize)]
struct Counted {
    rows: u64,
    #[serde(default)]
    first: Option<String>,
    #[serde(default)]
    second: Option<String>,
}

/// Counts a table's rows, and with `columns` reads its content.
pub(super) fn count(session: &mut Session, table: &mut Table, columns: Option<&[String]>) -> Result<(), SessionError> {
    let query = content::query(&table.schema, &table.name, table.condition.as_deref(), columns);
    let counted: Counted = session.one(&query)?;
    table.rows = Some(counted.rows);
    if columns.is_some() {
        table.content = content::text((counted.first.as_deref(), counted.second.as_deref()));
    }
    Ok(())
}

pub(super) fn large_objects(session: &mut Session, with_content: bool) -> Result<LargeObjects, SessionError> {
    #[derive(Deserialize)]
    struct Row {
        count: u64,
        readable: bool,
    }
    let row: Row = session.one(
        "SELECT (SELECT count(*) FROM pg_largeobject_metadata) AS count, \
         has_table_privilege('pg_catalog.pg_largeobject', 'SELECT') AS readable",
    )?;
    let mut found = LargeObjects { count: row.count, content: None };
    if with_content && row.readable {
        let query = content::large_objects_query(session.version);
        let counted: Counted = session.one(&query)?;
        found.content = content::text((counted.first.as_deref(), counted.second.as_deref()));
    }
    Ok(found)
}

pub(super) fn sequences(session: &mut Session) -> Result<Vec<Sequence>, SessionError> {
    #[derive(Deserialize)]
    struct Row {
        schema: String,
        name: String,
        owner: String,
    }
    let listed: Vec<Row> = session.rows(&format!(
        "SELECT n.nspname AS schema, c.relname AS name, pg_get_userbyid(c.relowner) AS owner \
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         WHERE {OURS} AND c.relkind = 'S' AND c.relpersistence <> 't' AND NOT EXISTS (\
           SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') \
         ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\""
    ))?;
    let mut sequences: Vec<Sequence> = listed
        .into_iter()
        .map(|row| Sequence {
            schema: row.schema,
            name: row.name,
            owner: row.owner,
            last_value: 0,
            is_called: false,
            last_value_after: None,
        })
        .collect();
    let values = sequence_values(session, &sequences)?;
    for (sequence, (last_value, is_called)) in sequences.iter_mut().zip(values) {
        (sequence.last_value, sequence.is_called) = (last_value, is_called);
    }
    Ok(sequences)
}

/// Sequences that a column owns, by the owning table: `pg_dump` takes their values along with the table's rows.
pub(super) fn owned_sequences(
    session: &mut Session,
) -> Result<HashMap<(String, String), Vec<QualifiedName>>, SessionError> {
    #[derive(Deserialize)]
    struct Row {
        table_schema: String,
        table_name: String,
        schema: String,
        name: String,
    }
    let rows: Vec<Row> = session.rows(&format!(
        "SELECT m.nspname AS table_schema, t.relname AS table_name, n.nspname AS schema, c.relname AS name \
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i') \
           AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 \
         JOIN pg_class AS t ON t.oid = d.refobjid JOIN pg_namespace AS m ON m.oid = t.relnamespace \
         WHERE {OURS} AND c.relkind = 'S'"
    ))?;
    let mut owned: HashMap<_, Vec<QualifiedName>> = HashMap::new();
    for row in rows {
        let name = QualifiedName { schema: row.schema, name: row.name };
        owned.entry((row.table_schema, row.table_name)).or_default().push(name);
    }
    Ok(owned)
}

/// `last_value` and `is_called` of each, as they are now.
pub(super) fn sequence_values(session: &mut Session, sequences: &[Sequence]) -> Result<Vec<(i64, bool)>, SessionError> {
    #[derive(Deserialize)]
    struct Row {
        last_value: i64,
        is_called: bool,
    }
    let mut values = Vec::with_capacity(sequences.len());
    for batch in sequences.chunks(BATCH) {
        let selects: Vec<String> = batch
            .iter()
            .enumerate()
            .map(|(i, s)| {
                let name = format!("{}.{}", identifier(&s.schema), identifier(&s.name));
                format!("SELECT {i} AS i, last_value, is_called FROM {name}")
            })
            .collect();
        let rows: Vec<Row> = session.rows(&format!("{} ORDER BY i", selects.join(" UNION ALL ")))?;
        if rows.len() != batch.len() {
            let problem = format!("{} sequences answered where {} were asked", rows.len(), batch.len());
            return Err(crate::sources::SourceError::problem(problem).into());
        }
        values.extend(rows.into_iter().map(|r| (r.last_value, r.is_called)));
    }
    Ok(values)
}

pub(super) fn counts(session: &mut Session) -> Result<Counts, SessionError> {
    session.one(&format!(
        "SELECT \
           (SELECT count(*) FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid \
              JOIN pg_namespace AS n ON n.oid = c.relnamespace \
            WHERE {OURS} AND (x.indisvalid OR c.relkind = 'I') AND x.indisready) AS indexes, \
           (SELECT count(*) FROM pg_constraint AS x JOIN pg_namespace AS n ON n.oid = x.connamespace WHERE {OURS}) AS constraints, \
           (SELECT count(*) FROM pg_proc AS x JOIN pg_namespace AS n ON n.oid = x.pronamespace WHERE {OURS}) AS functions, \
           (SELECT count(*) FROM pg_trigger AS x JOIN pg_class AS c ON c.oid = x.tgrelid \
              JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE {OURS} AND NOT x.tgisinternal) AS triggers, \
           (SELECT count(*) FROM pg_type AS x JOIN pg_namespace AS n ON n.oid = x.typnamespace WHERE {OURS}) AS types, \
           (SELECT count(*) FROM pg_policy) AS policies, \
           (SELECT count(*) FROM pg_event_trigger) AS event_triggers"
    ))
}

#[derive(Deserialize)]
struct One {
    name: String,
}

fn names(session: &mut Session, query: &str) -> Result<Vec<String>, SessionError> {
    let rows: Vec<One> = session.rows(query)?;
    Ok(rows.into_iter().map(|r| r.name).collect())
}

pub(super) fn publications(session: &mut Session) -> Result<Vec<String>, SessionError> {
    names(session, "SELECT pubname AS name FROM pg_publication ORDER BY pubname COLLATE \"C\"")
}

pub(super) fn subscriptions(session: &mut Session) -> Result<Vec<String>, SessionError> {
    let sql = "SELECT s.subname AS name FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid \
               WHERE d.datname = current_database() ORDER BY s.subname COLLATE \"C\"";
    names(session, sql)
}

pub(super) fn invalid_indexes(session: &mut Session) -> Result<Vec<String>, SessionError> {
    let sql = format!(
        "SELECT n.nspname || '.' || c.relname AS name FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid \
         JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE {OURS} AND NOT x.indisvalid AND c.relkind = 'i' ORDER BY 1"
    );
    names(session, &sql)
}
