//! The form of a database in one text: which tables, columns, types, constraints, indexes, views, functions, triggers,
//! policies, sequences and extensions it has. It says whether a migration came between two looks at the same server.
//!
//! Each object is one line, written by the server itself with qualified names; the text is two sums of the lines'
//! hashes, as in [`super::content`]. So it depends neither on the order of objects nor on that of columns, nor on ids,
//! and costs the server no memory to speak of. Owners, privileges, comments, rows and the values of sequences are not in
//! it, nor are single objects of extensions (their versions are), nor schemas of a restore in place.
//!
//! Deparsing changes with major versions: texts of two of them are not compared.

use super::catalog::OURS;
use super::content;
use super::session::{Session, SessionError};
use serde::Deserialize;

/// Schemas that a restore in place keeps beside the tables' own are none of the application's.
pub(super) const NOT_OF_A_RESTORE: &str = "n.nspname !~ '^lifeboat_(new|old)_[0-9]{8}t'";

/// The same for a name.
pub(super) fn is_of_a_restore(schema: &str) -> bool {
    let rest = schema.strip_prefix("lifeboat_new_").or_else(|| schema.strip_prefix("lifeboat_old_"));
    rest.is_some_and(|r| r.len() > 8 && r.bytes().take(8).all(|b| b.is_ascii_digit()) && r.as_bytes()[8] == b't')
}

pub(super) fn shape(session: &mut Session) -> Result<String, SessionError> {
    #[derive(Deserialize)]
    struct Sums {
        first: Option<String>,
        second: Option<String>,
    }
    let sums: Sums = session.one(&query(session.version))?;
    content::text((sums.first.as_deref(), sums.second.as_deref()))
        .ok_or_else(|| crate::sources::SourceError::problem("the server's sum of its objects is no number").into())
}

fn query(version: u32) -> String {
    let own = format!("{OURS} AND {NOT_OF_A_RESTORE}");
    let body = if version >= 140_000 { "pg_get_function_sqlbody(p.oid)" } else { "NULL" };
    let not_of_extension = |class: &str, object: &str| {
        format!(
            "NOT EXISTS (SELECT FROM pg_depend AS x WHERE x.classid = '{class}'::regclass AND x.objid = {object}.oid AND x.deptype = 'e')"
        )
    };
    let class = "pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace";
    let lines = [
        format!("SELECT format('schema %s', n.nspname) AS line FROM pg_namespace AS n WHERE {own}"),
        "SELECT format('extension %s %s', e.extname, e.extversion) FROM pg_extension AS e".into(),
        format!(
            "SELECT format('relation %s %s %s %s', c.oid::regclass, c.relkind, c.relpersistence, \
               CASE WHEN c.relispartition THEN pg_get_expr(c.relpartbound, c.oid) END) FROM {class} \
             WHERE {own} AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c') AND c.relpersistence <> 't'"
        ),
        format!(
            "SELECT format('column %s %I %s %s %s %s %s %s', c.oid::regclass, a.attname, format_type(a.atttypid, a.atttypmod), \
               a.attnotnull, j ->> 'attidentity', j ->> 'attgenerated', o.collname, pg_get_expr(d.adbin, d.adrelid)) \
             FROM {class} JOIN pg_attribute AS a ON a.attrelid = c.oid \
               LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
               LEFT JOIN pg_collation AS o ON o.oid = a.attcollation, LATERAL to_jsonb(a) AS j \
             WHERE {own} AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND c.relpersistence <> 't' \
               AND a.attnum > 0 AND NOT a.attisdropped"
        ),
        format!(
            "SELECT format('constraint %s %s %I %s', k.conrelid::regclass, k.contypid::regtype, k.conname, pg_get_constraintdef(k.oid)) \
             FROM pg_constraint AS k JOIN pg_namespace AS n ON n.oid = k.connamespace WHERE {own}"
        ),
        format!(
            "SELECT pg_get_indexdef(i.indexrelid) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid \
               JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE {own} AND c.relpersistence <> 't'"
        ),
        format!(
            "SELECT format('view %s %s', c.oid::regclass, pg_get_viewdef(c.oid)) FROM {class} \
             WHERE {own} AND c.relkind IN ('v', 'm') AND {}",
            not_of_extension("pg_class", "c")
        ),
        format!(
            "SELECT format('function %s %s %s %s %s', p.oid::regprocedure, pg_get_function_result(p.oid), l.lanname, p.prosrc, {body}) \
             FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace JOIN pg_language AS l ON l.oid = p.prolang \
             WHERE {own} AND {}",
            not_of_extension("pg_proc", "p")
        ),
        format!(
            "SELECT pg_get_triggerdef(t.oid) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid \
               JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE {own} AND NOT t.tgisinternal"
        ),
        format!(
            "SELECT format('policy %s %I %s %s %s', p.polrelid::regclass, p.polname, p.polcmd, \
               pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) FROM pg_policy AS p \
               JOIN pg_class AS c ON c.oid = p.polrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE {own}"
        ),
        format!(
            "SELECT format('enum %s %s %s', t.oid::regtype, row_number() OVER (PARTITION BY t.oid ORDER BY e.enumsortorder), e.enumlabel) \
             FROM pg_enum AS e JOIN pg_type AS t ON t.oid = e.enumtypid JOIN pg_namespace AS n ON n.oid = t.typnamespace WHERE {own}"
        ),
        format!(
            "SELECT format('domain %s %s %s %s', t.oid::regtype, format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typdefault) \
             FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace WHERE {own} AND t.typtype = 'd'"
        ),
        format!(
            "SELECT format('sequence %s %s %s', s.seqrelid::regclass, s.seqincrement, format_type(s.seqtypid, NULL)) \
             FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE {own} AND c.relpersistence <> 't'"
        ),
        format!(
            "SELECT format('inherits %s %s', i.inhrelid::regclass, i.inhparent::regclass) FROM pg_inherits AS i \
               JOIN pg_class AS c ON c.oid = i.inhrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE {own} AND c.relkind IN ('r', 'p', 'f')"
        ),
    ];
    format!(
        "SELECT sum({first}::numeric)::text AS first, sum({second}::numeric)::text AS second \
         FROM (SELECT encode(sha256(textsend(line)), 'hex') AS h FROM (\n{all}\n) AS lines OFFSET 0) AS hashed",
        first = "('x' || substr(h, 1, 16))::bit(64)::bigint",
        second = "('x' || substr(h, 17, 16))::bit(64)::bigint",
        all = lines.join("\nUNION ALL\n")
    )
}
