//! Where an application's migrations stand: the tables in which the usual tools keep what they have applied.
//!
//! A table counts when its name and its columns are the tool's, whichever schema it lies in. Columns of types that a
//! user made do not count: sorting by one would call that user's functions.

use super::connection::{identifier, literal};
use super::facts::Migrations;
use super::session::{Session, SessionError};
use serde::Deserialize;

/// How many of the newest are kept.
const HEAD: usize = 20;

struct Tool {
    name: &'static str,
    table: &'static str,
    /// Columns that make up one entry, joined by a dot.
    entry: &'static [&'static str],
    /// Column by which the newest is found; it sorts as its type does.
    newest: &'static str,
}

const fn tool(name: &'static str, table: &'static str, entry: &'static [&'static str], newest: &'static str) -> Tool {
    Tool { name, table, entry, newest }
}

const TOOLS: &[Tool] = &[
    tool("alembic", "alembic_version", &["version_num"], "version_num"),
    tool("prisma", "_prisma_migrations", &["migration_name"], "started_at"),
    tool("django", "django_migrations", &["app", "name"], "id"),
    tool("rails", "schema_migrations", &["version"], "version"),
    tool("flyway", "flyway_schema_history", &["version", "script"], "installed_rank"),
    tool("liquibase", "databasechangelog", &["id"], "orderexecuted"),
    tool("knex", "knex_migrations", &["name"], "id"),
    tool("sequelize", "SequelizeMeta", &["name"], "name"),
    tool("entity framework", "__EFMigrationsHistory", &["MigrationId"], "MigrationId"),
    tool("laravel", "migrations", &["migration"], "id"),
    tool("typeorm", "migrations", &["name"], "timestamp"),
    tool("goose", "goose_db_version", &["version_id"], "id"),
    tool("diesel", "__diesel_schema_migrations", &["version"], "version"),
    tool("sqlx", "_sqlx_migrations", &["version"], "version"),
    tool("drizzle", "__drizzle_migrations", &["hash"], "created_at"),
];

#[derive(Deserialize)]
struct Found {
    schema: String,
    name: String,
    columns: Vec<String>,
}

pub(super) fn migrations(session: &mut Session) -> Result<Vec<Migrations>, SessionError> {
    let names: Vec<String> = TOOLS.iter().map(|t| literal(t.table)).collect();
    let found: Vec<Found> = session.rows(&format!(
        "SELECT n.nspname AS schema, c.relname AS name, array_agg(a.attname::text) AS columns \
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         JOIN pg_type AS y ON y.oid = a.atttypid AND y.typnamespace = 'pg_catalog'::regnamespace \
         WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND c.relname IN ({}) \
         GROUP BY 1, 2 ORDER BY 1, 2",
        names.join(", ")
    ))?;
    let mut all = Vec::new();
    for table in found {
        let fits = |tool: &&Tool| {
            let has = |column: &str| table.columns.iter().any(|c| c == column);
            tool.table == table.name && has(tool.newest) && tool.entry.iter().all(|c| has(c))
        };
        if let Some(tool) = TOOLS.iter().find(fits) {
            all.push(read(session, tool, &table)?);
        }
    }
    Ok(all)
}

fn read(session: &mut Session, tool: &Tool, table: &Found) -> Result<Migrations, SessionError> {
    #[derive(Deserialize)]
    struct Row {
        entry: String,
        applied: u64,
    }
    let values: Vec<String> = tool.entry.iter().map(|c| format!("t.{}", identifier(c))).collect();
    let from = format!("FROM ONLY {}.{} AS t", identifier(&table.schema), identifier(&table.name));
    let rows: Vec<Row> = session.rows(&format!(
        "SELECT concat_ws('.', {}) AS entry, count(*) OVER () AS applied {from} ORDER BY t.{} DESC LIMIT {HEAD}",
        values.join(", "),
        identifier(tool.newest)
    ))?;
    Ok(Migrations {
        tool: tool.name.into(),
        schema: table.schema.clone(),
        table: table.name.clone(),
        applied: rows.first().map_or(0, |r| r.applied),
        head: rows.into_iter().map(|r| r.entry).collect(),
    })
}
