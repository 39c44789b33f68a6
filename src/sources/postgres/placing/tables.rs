//! Single tables of a live database, exchanged by schema.
//!
//! The snapshot's database is restored beside; the tables move there into a schema of the transaction's own, are dumped
//! with all that belongs to them (indexes, constraints, triggers, policies, grants, owned sequences), and loaded into the
//! live database, where that schema is new. The exchange is one transaction: the live tables go into a schema that keeps
//! them, the new ones into their place. What refers to a table refers to it by its identity, and would stay with the
//! replaced one: where something does, it is refused.

use super::{Admin, Move, State, TableMove, ground};
use crate::sources::SourceError;
use crate::sources::placing::Scene;
use crate::sources::postgres::PostgresSource;
use crate::sources::postgres::connection::{dbname_option, identifier, literal};
use crate::sources::postgres::facts::Table;
use crate::sources::postgres::session::{Session, SessionError};
use crate::sources::run::{one_line, run};
use serde::Deserialize;

/// How long the exchange waits for whoever uses a table.
const LOCK_SECONDS: u32 = 20;

pub(super) fn name_of(table: &Table) -> String {
    format!("{}.{}", table.schema, table.name)
}

fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}

/// The tables in the live database, and what stands against exchanging them.
pub(super) fn look(
    admin: &Admin<'_>,
    database: &str,
    wanted: &[(String, String)],
    refuse: &mut dyn FnMut(String),
) -> Result<Vec<TableMove>, SourceError> {
    let asked = |e: SessionError| admin.explain(e, &format!("look at the tables of database {database:?}"));
    let mut session = admin.enter(database)?;
    let mut moves = Vec::new();
    for (i, (schema, name)) in wanted.iter().enumerate() {
        if wanted[..i].iter().any(|(_, other)| other == name) {
            refuse(format!("two of the tables are called {name:?}: restore them one after the other"));
        }
        let oid = find(&mut session, schema, name).map_err(asked)?;
        moves.push(TableMove { schema: schema.clone(), name: name.clone(), oid: oid.as_ref().map(|t| t.oid) });
        match oid {
            Some(there) if there.kind != "r" || there.partition => {
                refuse(format!("{schema}.{name} is no plain table in the live database"));
            }
            Some(_) => {}
            None => {
                if !schema_exists(&mut session, schema).map_err(asked)? {
                    refuse(format!("the live database has no schema {schema:?}"));
                }
            }
        }
    }
    let oids: Vec<String> = moves.iter().filter_map(|m| m.oid).map(|oid| oid.to_string()).collect();
    if !oids.is_empty() {
        for why in dependents(&mut session, &oids.join(", ")).map_err(asked)? {
            refuse(why);
        }
    }
    session.close().map_err(asked)?;
    Ok(moves)
}

#[derive(Debug, Deserialize)]
struct Found {
    oid: u64,
    kind: String,
    partition: bool,
}

fn find(session: &mut Session, schema: &str, name: &str) -> Result<Option<Found>, SessionError> {
    let rows: Vec<Found> = session.rows(&format!(
        "SELECT c.oid::bigint AS oid, c.relkind AS kind, c.relispartition AS partition FROM pg_class AS c \
         JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = {} AND c.relname = {}",
        literal(schema),
        literal(name)
    ))?;
    Ok(rows.into_iter().next())
}

fn schema_exists(session: &mut Session, schema: &str) -> Result<bool, SessionError> {
    #[derive(Deserialize)]
    struct Row {
        there: bool,
    }
    let sql = format!("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = {}) AS there", literal(schema));
    Ok(session.one::<Row>(&sql)?.there)
}

/// What refers to these tables from outside, in words.
fn dependents(session: &mut Session, oids: &str) -> Result<Vec<String>, SessionError> {
    #[derive(Deserialize)]
    struct Row {
        why: String,
    }
    let table = |oid: &str| {
        format!(
            "(SELECT m.nspname || '.' || t.relname FROM pg_class AS t JOIN pg_namespace AS m ON m.oid = t.relnamespace WHERE t.oid = {oid})"
        )
    };
    let rows: Vec<Row> = session.rows(&format!(
        "SELECT 'table ' || {of} || ' refers to ' || {to} || ' by its foreign key ' || k.conname AS why \
           FROM pg_constraint AS k WHERE k.contype = 'f' AND k.confrelid IN ({oids}) AND k.conrelid NOT IN ({oids}) \
         UNION SELECT 'view ' || {view} || ' reads ' || {read} \
           FROM pg_depend AS d JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid \
           WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid IN ({oids}) AND r.ev_class NOT IN ({oids}) \
         UNION SELECT 'table ' || {child} || ' and ' || {parent} || ' inherit' FROM pg_inherits AS i \
           WHERE i.inhrelid IN ({oids}) OR i.inhparent IN ({oids}) \
         UNION SELECT 'publication ' || p.pubname || ' publishes ' || {published} \
           FROM pg_publication_rel AS q JOIN pg_publication AS p ON p.oid = q.prpubid WHERE q.prrelid IN ({oids}) \
         UNION SELECT 'a column of ' || {user} || ' has the row type of ' || {typed} \
           FROM pg_attribute AS a JOIN pg_type AS y ON y.oid = a.atttypid \
           JOIN pg_type AS b ON b.oid = CASE WHEN y.typelem <> 0 THEN y.typelem ELSE y.oid END \
           WHERE b.typrelid IN ({oids}) AND a.attrelid NOT IN ({oids}) \
         UNION SELECT 'function ' || f.proname || ' depends on ' || {used} \
           FROM pg_depend AS d JOIN pg_proc AS f ON d.classid = 'pg_proc'::regclass AND d.objid = f.oid \
           LEFT JOIN pg_type AS y ON d.refclassid = 'pg_type'::regclass AND y.oid = d.refobjid \
           WHERE d.deptype = 'n' AND ((d.refclassid = 'pg_class'::regclass AND d.refobjid IN ({oids})) OR y.typrelid IN ({oids})) \
         UNION SELECT 'a default of ' || {default} || ' uses sequence ' || s.relname \
           FROM pg_depend AS o JOIN pg_class AS s ON s.oid = o.objid AND s.relkind = 'S' \
           JOIN pg_depend AS u ON u.refclassid = 'pg_class'::regclass AND u.refobjid = s.oid AND u.classid = 'pg_attrdef'::regclass \
           JOIN pg_attrdef AS x ON x.oid = u.objid \
           WHERE o.classid = 'pg_class'::regclass AND o.refclassid = 'pg_class'::regclass AND o.deptype IN ('a', 'i') \
             AND o.refobjid IN ({oids}) AND x.adrelid NOT IN ({oids})",
        of = table("k.conrelid"),
        to = table("k.confrelid"),
        view = table("r.ev_class"),
        read = table("d.refobjid"),
        child = table("i.inhrelid"),
        parent = table("i.inhparent"),
        published = table("q.prrelid"),
        user = table("a.attrelid"),
        typed = table("b.typrelid"),
        used = table("coalesce(y.typrelid, d.refobjid)"),
        default = table("x.adrelid"),
    ))?;
    Ok(rows.into_iter().map(|r| r.why).collect())
}

/// Brings the tables from the restored database into the live one, beside.
pub(super) fn prepare(admin: &Admin<'_>, ground: &ground::Ground, state: &State, to: &Move) -> Result<(), SourceError> {
    let schema = &state.schema_new;
    let mut sql = format!("CREATE SCHEMA {};\n", identifier(schema));
    for m in &state.tables {
        sql += &format!("ALTER TABLE {} SET SCHEMA {};\n", qualified(&m.schema, &m.name), identifier(schema));
    }
    admin.run(&to.new, &sql, &format!("take the tables out of database {:?}", to.new))?;
    clear(admin, state, &to.live, schema)?;
    let file = ground.stage.path("tables.dump");
    let mut dump: Vec<String> =
        ["pg_dump", "--format=custom", "--compress=0", "--no-password"].map(str::to_owned).into();
    dump.extend([format!("--schema={}", identifier(schema)), format!("--file={file}"), dbname_option(&to.new)]);
    tool(admin, dump, "dump the tables")?;
    let mut load: Vec<String> =
        ["pg_restore", "--exit-on-error", "--no-password", "--jobs=2"].map(str::to_owned).into();
    load.extend(state.options.iter().cloned());
    load.extend([dbname_option(&to.live), "--".into(), file]);
    tool(admin, load, &format!("load the tables into schema {schema:?} of database {:?}", to.live))
}

fn tool(admin: &Admin<'_>, argv: Vec<String>, what: &str) -> Result<(), SourceError> {
    let command = admin.connection.command(argv, admin.deadline, admin.cancel);
    let (_, exit) = run(admin.connection.place(), command, 1 << 20)?;
    match exit.code {
        0 => Ok(()),
        _ => Err(SourceError::problem(format!("{what} on {}: {}", admin.connection.server, one_line(&exit.stderr)))),
    }
}

/// Where the tables of a transaction lie now.
struct Stand {
    live: Option<u64>,
    new: bool,
    old: Option<u64>,
}

fn stands(session: &mut Session, state: &State) -> Result<Vec<Stand>, SessionError> {
    let mut stands = Vec::new();
    for m in &state.tables {
        stands.push(Stand {
            live: find(session, &m.schema, &m.name)?.map(|t| t.oid),
            new: find(session, &state.schema_new, &m.name)?.is_some(),
            old: find(session, &state.schema_old, &m.name)?.map(|t| t.oid),
        });
    }
    Ok(stands)
}

fn go(from: &str, name: &str, to: &str) -> String {
    format!("ALTER TABLE {} SET SCHEMA {};\n", qualified(from, name), identifier(to))
}

fn database(state: &State) -> Result<&str, SourceError> {
    let first = state.databases.first().map(|m| m.live.as_str());
    first.ok_or_else(|| SourceError::problem("the plan names no database"))
}

pub(super) fn switch(source: &PostgresSource, scene: &Scene<'_>, state: &State) -> Result<(), SourceError> {
    let admin = Admin::new(source, scene, &state.touched())?;
    let live = database(state)?;
    let asked = |e: SessionError| admin.explain(e, "exchange the tables");
    let mut session = admin.enter(live)?;
    let stands = stands(&mut session, state).map_err(asked)?;
    let mut sql = String::new();
    for (m, stand) in state.tables.iter().zip(&stands) {
        let name = format!("{}.{}", m.schema, m.name);
        match stand {
            Stand { new: false, live: Some(_), .. } if stand.old.is_some() || m.oid.is_none() => {}
            Stand { new: false, .. } => {
                return Err(SourceError::problem(format!("the prepared table {name} is not there")));
            }
            Stand { new: true, live, .. } if *live != m.oid => {
                return Err(SourceError::problem(format!(
                    "table {name} is not the one that was there when this was planned"
                )));
            }
            Stand { new: true, live, .. } => {
                if live.is_some() {
                    sql += &go(&m.schema, &m.name, &state.schema_old);
                }
                sql += &go(&state.schema_new, &m.name, &m.schema);
            }
        }
    }
    if !sql.is_empty() {
        let mut against = Vec::new();
        let wanted: Vec<(String, String)> = state.tables.iter().map(|m| (m.schema.clone(), m.name.clone())).collect();
        look(&admin, live, &wanted, &mut |why| against.push(why))?;
        if !against.is_empty() {
            return Err(SourceError::problem(format!(
                "cannot exchange the tables of {live:?}: {}",
                against.join("; ")
            )));
        }
        let (new, old) = (identifier(&state.schema_new), identifier(&state.schema_old));
        let script = format!(
            "SET lock_timeout = '{LOCK_SECONDS}s';\nBEGIN;\nCREATE SCHEMA IF NOT EXISTS {old};\n{sql}DROP SCHEMA {new};\nCOMMIT;"
        );
        session.execute(&script).map_err(asked)?;
    }
    session.close().map_err(asked)
}

pub(super) fn back(source: &PostgresSource, scene: &Scene<'_>, state: &State) -> Result<(), SourceError> {
    let admin = Admin::new(source, scene, &state.touched())?;
    let asked = |e: SessionError| admin.explain(e, "exchange the tables back");
    let mut session = admin.enter(database(state)?)?;
    let stands = stands(&mut session, state).map_err(asked)?;
    let mut sql = String::new();
    for (m, stand) in state.tables.iter().zip(&stands) {
        let untouched = m.oid.is_some() && stand.live == m.oid;
        match (m.oid, stand.old) {
            _ if untouched => {}
            (Some(oid), Some(old)) if old == oid => {
                if stand.live.is_some() {
                    sql += &go(&m.schema, &m.name, &state.schema_new);
                }
                sql += &go(&state.schema_old, &m.name, &m.schema);
            }
            (Some(_), _) => {
                let problem = format!("the replaced table {}.{} is not there any more", m.schema, m.name);
                return Err(SourceError::problem(problem));
            }
            (None, _) if stand.live.is_some() && !stand.new => sql += &go(&m.schema, &m.name, &state.schema_new),
            (None, _) => {}
        }
    }
    if !sql.is_empty() {
        let (new, old) = (identifier(&state.schema_new), identifier(&state.schema_old));
        let script = format!(
            "SET lock_timeout = '{LOCK_SECONDS}s';\nBEGIN;\nCREATE SCHEMA IF NOT EXISTS {new};\n{sql}DROP SCHEMA IF EXISTS {old};\nCOMMIT;"
        );
        session.execute(&script).map_err(asked)?;
    }
    session.close().map_err(asked)
}

pub(super) fn confirm(source: &PostgresSource, scene: &Scene<'_>, state: &State) -> Result<(), SourceError> {
    let admin = Admin::new(source, scene, &state.touched())?;
    let asked = |e: SessionError| admin.explain(e, "look at the tables");
    let mut session = admin.enter(database(state)?)?;
    let stands = stands(&mut session, state).map_err(asked)?;
    session.close().map_err(asked)?;
    for (m, stand) in state.tables.iter().zip(&stands) {
        if stand.live.is_none() || stand.live == m.oid || stand.new {
            return Err(SourceError::problem(format!("table {}.{} is not the restored one", m.schema, m.name)));
        }
    }
    Ok(())
}

/// Removes a schema of this transaction with the tables in it.
pub(super) fn discard(
    source: &PostgresSource,
    scene: &Scene<'_>,
    state: &State,
    schema: &str,
) -> Result<(), SourceError> {
    let admin = Admin::new(source, scene, &state.touched())?;
    clear(&admin, state, database(state)?, schema)
}

fn clear(admin: &Admin<'_>, state: &State, database: &str, schema: &str) -> Result<(), SourceError> {
    let asked = |e: SessionError| admin.explain(e, &format!("drop schema {schema:?} of database {database:?}"));
    let mut session = admin.enter(database)?;
    if schema_exists(&mut session, schema).map_err(asked)? {
        // In one statement, because they may refer to each other.
        let tables: Vec<String> = state.tables.iter().map(|m| qualified(schema, &m.name)).collect();
        let tables = format!("DROP TABLE IF EXISTS {};", tables.join(", "));
        session.execute(&tables).map_err(asked)?;
        // A load that broke off leaves sequences that no table owns yet.
        #[derive(Deserialize)]
        struct Name {
            name: String,
        }
        let sequences: Vec<Name> = session
            .rows(&format!(
                "SELECT c.relname AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                 WHERE n.nspname = {} AND c.relkind = 'S'",
                literal(schema)
            ))
            .map_err(asked)?;
        // Nothing else is in it; if there is, somebody put it there, and it stays with an error.
        let rest: String =
            sequences.iter().map(|s| format!("DROP SEQUENCE {};\n", qualified(schema, &s.name))).collect();
        session.execute(&format!("{rest}DROP SCHEMA {};", identifier(schema))).map_err(asked)?;
    }
    session.close().map_err(asked)
}
