//! Who may do what with the objects of a database, beyond what their owners and everybody have by default.

use super::facts::Grant;
use super::session::{Session, SessionError};

const NOT_SYSTEM: &str = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";

/// The holders in an access list, sorted, without who granted it: `shop=INSERT,SELECT*`, `PUBLIC=USAGE`.
fn holders(acl: &str) -> String {
    format!(
        "(SELECT coalesce(array_agg(h.who || '=' || h.what ORDER BY h.who COLLATE \"C\"), '{{}}') FROM (\
           SELECT CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee)::text END AS who, \
             string_agg(DISTINCT x.privilege_type || CASE WHEN x.is_grantable THEN '*' ELSE '' END, ',') AS what \
           FROM aclexplode({acl}) AS x GROUP BY 1) AS h)"
    )
}

/// Rows of `object` and `holders` where the list differs from the default.
fn select(object: &str, acl: &str, default: &str, from: &str) -> String {
    let (own, usual) = (holders(acl), holders(default));
    format!(
        "SELECT {object} AS object, {own} AS holders FROM {from} AND {acl} IS NOT NULL AND {own} IS DISTINCT FROM {usual}"
    )
}

fn not_in_extension(class: &str, oid: &str) -> String {
    format!(
        "NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = '{class}'::regclass AND d.objid = {oid} AND d.deptype = 'e')"
    )
}

pub(super) fn grants(session: &mut Session) -> Result<Vec<Grant>, SessionError> {
    let class = "pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace";
    let relation = "CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\"";
    let own_class = not_in_extension("pg_class", "c.oid");
    let kinds = "c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'";
    let parts = [
        select(
            "CASE c.relkind WHEN 'S' THEN 'sequence ' ELSE 'table ' END || n.nspname || '.' || c.relname",
            "c.relacl",
            &format!("acldefault({relation}, c.relowner)"),
            &format!("{class} WHERE {NOT_SYSTEM} AND {kinds} AND {own_class}"),
        ),
        select(
            "'column ' || n.nspname || '.' || c.relname || '.' || a.attname",
            "a.attacl",
            "acldefault('c', c.relowner)",
            &format!(
                "{class} JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
                 WHERE {NOT_SYSTEM} AND {kinds} AND {own_class}"
            ),
        ),
        select(
            "'schema ' || n.nspname",
            "n.nspacl",
            "acldefault('n', n.nspowner)",
            &format!("pg_namespace AS n WHERE {NOT_SYSTEM} AND {}", not_in_extension("pg_namespace", "n.oid")),
        ),
        select(
            "'function ' || n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')'",
            "p.proacl",
            "acldefault('f', p.proowner)",
            &format!(
                "pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE {NOT_SYSTEM} AND {}",
                not_in_extension("pg_proc", "p.oid")
            ),
        ),
        select(
            "'type ' || n.nspname || '.' || t.typname",
            "t.typacl",
            "acldefault('T', t.typowner)",
            &format!(
                "pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace WHERE {NOT_SYSTEM} AND {}",
                not_in_extension("pg_type", "t.oid")
            ),
        ),
        select(
            "'large object ' || l.oid",
            "l.lomacl",
            "acldefault('L', l.lomowner)",
            "pg_largeobject_metadata AS l WHERE true",
        ),
        select(
            "'defaults of ' || pg_get_userbyid(f.defaclrole) || ' for ' || f.defaclobjtype::text \
               || coalesce(' in ' || (SELECT n.nspname FROM pg_namespace AS n WHERE n.oid = f.defaclnamespace), '')",
            "f.defaclacl",
            "NULL::aclitem[]",
            "pg_default_acl AS f WHERE true",
        ),
    ];
    session.rows(&format!(
        "SELECT object, holders FROM ({}) AS g ORDER BY object COLLATE \"C\"",
        parts.join(" UNION ALL ")
    ))
}
