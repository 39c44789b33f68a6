//! How a database is divided into streams: one, or several that are dumped at the same time from one snapshot.
//!
//! Several pay when there is much to read and the server is reached by a socket, be it a container's; through a container's
//! exec they do not. Then: `pre-data` (definitions), `data-1` (every row that no other part holds, the values of sequences, large
//! objects), `data-2` … (the rows of single large tables), `post-data` (indexes, constraints, triggers). They are loaded in
//! this order, and together hold each thing exactly once.
//!
//! Where their rows can be read by [`super::rows`], all large tables go into the parts from `data-2` on, as many as there
//! are jobs, beside `data-1` with what is left. Otherwise each part is a `pg_dump`, and `data-1` is one of the jobs.

use super::connection::identifier;
use super::facts::{QualifiedName, Table};
use crate::base::ids::{InvalidId, StreamName};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Below this a database is one stream.
pub const PARTS_FROM_BYTES: u64 = 256 << 20;
/// Tables below this stay together.
const LARGE_TABLE_BYTES: u64 = 16 << 20;

/// One stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub stream: StreamName,
    pub section: &'static str,
    /// Options of `pg_dump` that select what belongs to it; absent: the rows of `tables` are read here.
    pub options: Option<Vec<String>>,
    pub tables: Option<Vec<QualifiedName>>,
    pub expected_bytes: Option<u64>,
}

/// What the division depends on.
pub(super) struct Divide<'a> {
    pub database: &'a str,
    pub tables: &'a [Table],
    pub owned_sequences: &'a HashMap<(String, String), Vec<QualifiedName>>,
    /// Reads rows of large tables here; absent: they are left to `pg_dump`.
    pub readers: Option<Readers<'a>>,
    pub jobs: usize,
    /// Whether more than one is allowed here.
    pub may_divide: bool,
    pub parts_from_bytes: u64,
}

/// What is read without `pg_dump`.
#[derive(Clone, Copy)]
pub(super) struct Readers<'a> {
    pub count: usize,
    /// The columns of the tables that can be read so.
    pub columns: &'a HashMap<(String, String), Vec<String>>,
}

impl Readers<'_> {
    pub fn reads(&self, table: &Table) -> bool {
        is_large(table) && self.columns.get(&table.key()).is_some_and(|columns| !columns.is_empty())
    }

    /// What they cannot read is read by one `pg_dump`: that must not be the most of it.
    pub fn are_worth_it(&self, tables: &[Table]) -> bool {
        let (read, left): (Vec<&Table>, Vec<&Table>) =
            tables.iter().filter(|t| is_large(t)).partition(|t| self.reads(t));
        let bytes = |tables: Vec<&Table>| tables.iter().map(|t| t.bytes).sum::<u64>();
        !read.is_empty() && bytes(read) >= bytes(left)
    }
}

/// Whether it may have a part of its own.
pub(super) fn is_large(table: &Table) -> bool {
    table.has_data() && table.bytes >= LARGE_TABLE_BYTES && table.condition.is_none()
}

pub(super) fn divide(d: &Divide<'_>) -> Result<Vec<Part>, InvalidId> {
    let data: Vec<&Table> = d.tables.iter().filter(|t| t.has_data()).collect();
    let total: u64 = data.iter().map(|t| t.bytes).sum();
    let single = Part {
        stream: stream_name(d.database, ".dump")?,
        section: "all",
        options: Some(Vec::new()),
        tables: None,
        expected_bytes: Some(total),
    };
    if !d.may_divide || d.jobs < 2 || total < d.parts_from_bytes {
        return Ok(vec![single]);
    }
    let bins = fill_bins(&data, d);
    let alone: Vec<&Table> = bins[1..].iter().flatten().copied().collect();
    if alone.is_empty() {
        return Ok(vec![single]);
    }
    let mut parts = vec![section(d.database, "pre-data", ".pre-data.dump")?];
    let alone_bytes: u64 = alone.iter().map(|t| t.bytes).sum();
    let mut rest = vec!["--section=data".to_owned()];
    rest.extend(alone.iter().map(|t| format!("--exclude-table-data={}", pattern(&t.schema, &t.name))));
    parts.push(Part {
        stream: stream_name(d.database, ".data-1.dump")?,
        section: "data",
        options: Some(rest),
        tables: None,
        expected_bytes: Some(total - alone_bytes),
    });
    for (i, bin) in bins[1..].iter().filter(|b| !b.is_empty()).enumerate() {
        let options = d.readers.is_none().then(|| {
            let mut options = vec!["--section=data".to_owned(), "--strict-names".to_owned()];
            options.extend(bin.iter().map(|t| format!("--table={}", pattern(&t.schema, &t.name))));
            for owned in bin.iter().filter_map(|t| d.owned_sequences.get(&t.key())).flatten() {
                options.push(format!("--exclude-table-data={}", pattern(&owned.schema, &owned.name)));
            }
            options
        });
        parts.push(Part {
            stream: stream_name(d.database, &format!(".data-{}.dump", i + 2))?,
            section: "data",
            options,
            tables: Some(
                bin.iter().map(|t| QualifiedName { schema: t.schema.clone(), name: t.name.clone() }).collect(),
            ),
            expected_bytes: Some(bin.iter().map(|t| t.bytes).sum()),
        });
    }
    parts.push(section(d.database, "post-data", ".post-data.dump")?);
    Ok(parts)
}

fn section(database: &str, section: &'static str, suffix: &str) -> Result<Part, InvalidId> {
    Ok(Part {
        stream: stream_name(database, suffix)?,
        section,
        options: Some(vec![format!("--section={section}")]),
        tables: None,
        expected_bytes: None,
    })
}

/// The largest table first, always into the emptiest bin; the first bin is the rest.
fn fill_bins<'t>(tables: &[&'t Table], d: &Divide<'_>) -> Vec<Vec<&'t Table>> {
    let alone = |t: &Table| is_large(t) && d.readers.is_none_or(|readers| readers.reads(t));
    let (mut large, small): (Vec<&Table>, Vec<&Table>) = tables.iter().copied().partition(|t| alone(t));
    large.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.key().cmp(&b.key())));
    let (first, count) = d.readers.map_or((0, d.jobs), |readers| (1, readers.count + 1));
    let mut bins: Vec<Vec<&Table>> = vec![Vec::new(); count];
    let mut loads = vec![0u64; count];
    loads[0] = small.iter().map(|t| t.bytes).sum();
    bins[0] = small;
    for table in large {
        // The last of the emptiest, so that with nothing small the rest stays for what has no size: sequences and
        // large objects.
        let emptiest = (first..count).rev().min_by_key(|i| loads[*i]).unwrap_or(0);
        loads[emptiest] += table.bytes;
        bins[emptiest].push(table);
    }
    bins
}

/// A pattern of `pg_dump` that matches one name only: within quotes everything is literal.
fn pattern(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}

/// A database's stream. A name that would not fit a file name is cut, and told apart by its hash.
pub(super) fn stream_name(database: &str, suffix: &str) -> Result<StreamName, InvalidId> {
    StreamName::encode(database, suffix).or_else(|_| {
        let hash = hex::encode(&Sha256::digest(database.as_bytes())[..8]);
        let begin: String = database.chars().take(12).collect();
        StreamName::encode(&format!("{begin}-{hash}"), suffix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, mib: u64) -> Table {
        Table {
            schema: "public".into(),
            name: name.into(),
            owner: "me".into(),
            kind: "table".into(),
            persistence: "permanent".into(),
            partition: false,
            extension: None,
            condition: None,
            rows: None,
            columns: None,
            content: None,
            bytes: mib << 20,
        }
    }

    fn divided(tables: &[Table], jobs: usize, may_divide: bool) -> Vec<Part> {
        divided_by(tables, jobs, may_divide, None)
    }

    fn divided_by(
        tables: &[Table],
        jobs: usize,
        may_divide: bool,
        columns: Option<&HashMap<(String, String), Vec<String>>>,
    ) -> Vec<Part> {
        let owned = HashMap::from([(
            ("public".to_owned(), "big".to_owned()),
            vec![QualifiedName { schema: "public".into(), name: "big_id_seq".into() }],
        )]);
        let d = Divide {
            database: "shop",
            tables,
            owned_sequences: &owned,
            readers: columns.map(|columns| Readers { count: jobs, columns }),
            jobs,
            may_divide,
            parts_from_bytes: PARTS_FROM_BYTES,
        };
        divide(&d).unwrap()
    }

    #[test]
    fn small_or_slow_is_one_stream() {
        let small = [table("a", 1), table("b", 200)];
        let large = [table("a", 300), table("b", 200)];
        for parts in [divided(&small, 4, true), divided(&large, 1, true), divided(&large, 4, false)] {
            assert_eq!(parts.len(), 1);
            assert_eq!((parts[0].stream.as_str(), parts[0].section), ("shop.dump", "all"));
        }
    }

    #[test]
    fn the_largest_table_goes_alone_and_the_rest_excludes_it() {
        let tables = [table("small", 1), table("big", 500), table("mid", 100), table("o\"dd", 90)];
        let parts = divided(&tables, 2, true);
        let names: Vec<&str> = parts.iter().map(|p| p.stream.as_str()).collect();
        assert_eq!(names, ["shop.pre-data.dump", "shop.data-1.dump", "shop.data-2.dump", "shop.post-data.dump"]);
        let has = |part: usize, option: &str| parts[part].options.as_ref().unwrap().iter().any(|o| o == option);
        assert!(has(1, "--exclude-table-data=\"public\".\"big\""));
        assert!(has(2, "--table=\"public\".\"big\""));
        assert!(has(2, "--exclude-table-data=\"public\".\"big_id_seq\""));
        assert_eq!(parts[1].expected_bytes, Some(191 << 20));
    }

    #[test]
    fn large_tables_whose_rows_can_be_read_leave_the_rest_to_one() {
        let mut odd = table("odd", 95);
        odd.condition = Some("WHERE true".into());
        let tables =
            [table("small", 1), table("big", 500), table("mid", 100), odd, table("bare", 80), table("far", 70)];
        let key = |name: &str| ("public".to_owned(), name.to_owned());
        let mut columns: HashMap<_, Vec<String>> =
            ["small", "big", "mid", "odd"].map(|name| (key(name), vec!["id".to_owned()])).into();
        columns.insert(key("bare"), Vec::new());
        let parts = divided_by(&tables, 2, true, Some(&columns));
        let names: Vec<&str> = parts.iter().map(|p| p.stream.as_str()).collect();
        let data = ["shop.data-1.dump", "shop.data-2.dump", "shop.data-3.dump"];
        assert_eq!(names[1..4], data);
        let excluded = |name: &str| format!("--exclude-table-data=\"public\".\"{name}\"");
        assert_eq!(parts[1].options, Some(vec!["--section=data".into(), excluded("mid"), excluded("big")]));
        assert_eq!((&parts[2].options, &parts[3].options), (&None, &None));
        let of = |part: usize| parts[part].tables.as_ref().unwrap().iter().map(|t| t.name.as_str()).collect::<Vec<_>>();
        assert_eq!((of(2), of(3)), (vec!["mid"], vec!["big"]));
        assert_eq!(parts[1].expected_bytes, Some((1 + 95 + 80 + 70) << 20));
        let worth = |columns: &HashMap<_, _>| Readers { count: 2, columns }.are_worth_it(&tables);
        assert!(worth(&columns), "600 MiB of 750");
        columns.remove(&key("big"));
        assert!(!worth(&columns), "100 MiB of 750");
        assert!(!Readers { count: 2, columns: &columns }.are_worth_it(&[]));
    }

    #[test]
    fn a_long_name_still_has_a_stream_of_its_own() {
        let a = stream_name(&"ž".repeat(31), ".post-data.dump").unwrap();
        let long = "€".repeat(21);
        let b = stream_name(&format!("{long}a"), ".pre-data.dump").unwrap();
        let c = stream_name(&format!("{long}b"), ".pre-data.dump").unwrap();
        assert!(a.as_str().len() <= 204 && b != c, "{b} {c}");
    }
}
