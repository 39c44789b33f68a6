//! What a table holds, in one text that is the same after any dump and restore.
//!
//! A restored table may have its rows in another order, and an inherited one its columns too. So: a value's hash is the
//! SHA-256 of its text as the type writes it (32 zero bytes for NULL); a row's hash is the SHA-256 of its values' hashes
//! in the order of the columns' names (by bytes); and the table's are two sums, of the first and of the second 8 bytes
//! of every row's hash, read as signed big-endian integers, each modulo 2⁶⁴. Equal rows count as often as they
//! stand there. Generated columns are left out: they are computed anew.
//!
//! Values are written by `format('%s')`, which calls the type's own output function and never a cast that a user of
//! the database may have defined.

use super::connection::{identifier, literal};

/// The text: both sums, 16 hex digits each. `sums` are decimal, as PostgreSQL writes them; absent for no rows.
pub(super) fn text(sums: (Option<&str>, Option<&str>)) -> Option<String> {
    let fold = |sum: Option<&str>| -> Option<u64> { Some(sum.map_or(Ok(0), str::parse::<i128>).ok()? as u64) };
    Some(format!("{:016x}{:016x}", fold(sums.0)?, fold(sums.1)?))
}

/// A query that gives `rows`, and `first` and `second` when the content is asked for.
pub(super) fn query(schema: &str, table: &str, condition: Option<&str>, columns: Option<&[String]>) -> String {
    let from = format!("FROM ONLY {}.{} AS t {}", identifier(schema), identifier(table), condition.unwrap_or_default());
    let Some(columns) = columns else { return format!("SELECT count(*) AS rows {from}") };
    let mut sorted: Vec<&String> = columns.iter().collect();
    sorted.sort_unstable();
    let values: Vec<String> = sorted
        .iter()
        .map(|column| {
            let value = format!("t.{}", identifier(column));
            format!(
                "CASE num_nulls({value}) WHEN 1 THEN {} ELSE sha256(textsend(format('%s', {value}))) END",
                literal(&format!("\\x{}", "00".repeat(32))) + "::bytea"
            )
        })
        .collect();
    let row = if values.is_empty() { "''::bytea".to_owned() } else { values.join(" || ") };
    format!(
        "SELECT count(*) AS rows, sum({first}::numeric)::text AS first, sum({second}::numeric)::text AS second \
         FROM (SELECT encode(sha256({row}), 'hex') AS h {from} OFFSET 0) AS r",
        first = "('x' || substr(h, 1, 16))::bit(64)::bigint",
        second = "('x' || substr(h, 17, 16))::bit(64)::bigint",
    )
}

/// The same for all large objects: one row a page, without the zeros at its end, and without empty pages, because
/// holes come back as zeros.
pub(super) fn large_objects_query(version: u32) -> String {
    let data = match version {
        140_000.. => "rtrim(data, '\\x00'::bytea)",
        _ => "decode(regexp_replace(encode(data, 'hex'), '(00)+$', ''), 'hex')",
    };
    format!(
        "SELECT count(*) AS rows, sum({first}::numeric)::text AS first, sum({second}::numeric)::text AS second \
         FROM (SELECT encode(sha256(textsend(format('%s/%s', loid, pageno)) || {data}), 'hex') AS h \
               FROM pg_largeobject WHERE octet_length({data}) > 0 OFFSET 0) AS r",
        first = "('x' || substr(h, 1, 16))::bit(64)::bigint",
        second = "('x' || substr(h, 17, 16))::bit(64)::bigint",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_folded_to_64_bits() {
        assert_eq!(text((None, None)).unwrap(), "0".repeat(32));
        assert_eq!(text((Some("-1"), Some("18446744073709551617"))).unwrap(), "ffffffffffffffff0000000000000001");
        assert_eq!(text((Some("x"), None)), None);
    }

    #[test]
    fn columns_are_sorted_and_quoted() {
        let sql = query("s", "t", None, Some(&["b".into(), "a\"b".into()]));
        assert!(sql.find("t.\"a\"\"b\"").unwrap() < sql.find("t.\"b\"").unwrap(), "{sql}");
    }
}
