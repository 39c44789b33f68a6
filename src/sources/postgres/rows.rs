//! The rows of large tables as an archive of `pg_dump`'s custom format, written here: a table of contents with one entry
//! for each table, then each table's block, as `pg_dump --format=custom --compress=0 --section=data` would write them.
//!
//! It counts when the server ended each `COPY` by itself and told as many rows as came. The server has counted them in the same
//! snapshot then, so the side session does not.
//!
//! Layout as in [`super::archive`]; the version is 1.13, which every `pg_restore` since PostgreSQL 11 reads.

use super::archive::{BLOCK_DATA, CUSTOM_FORMAT, ROWS_END, Report};
use super::catalog::{self, BATCH};
use super::connection::identifier;
use super::dump::{LOCK_WAIT, Run, Stored};
use super::facts::QualifiedName;
use super::pace::Pace;
use super::parts::Part;
use super::session::SessionError;
use super::wire::{CopyError, Server, Wire};
use crate::base::stream::StreamKind;
use crate::sources::socket::Limits;
use crate::sources::{Sink, SourceError};
use chrono::{DateTime, Datelike, Timelike, Utc};
use std::io::Write;

/// A table whose rows are read: its columns are those that are stored and not computed, in their own order.
pub(super) struct RowsOf {
    pub table: QualifiedName,
    pub owner: String,
    pub columns: Vec<String>,
}

/// A session that sees the snapshot and holds its tables' locks.
pub(super) struct Begun {
    part: Part,
    tables: Vec<RowsOf>,
    wire: Wire,
    pace: Pace,
}

/// What an archive says of itself.
struct Origin<'a> {
    database: &'a str,
    /// Of the server, such as `15.20`.
    version: &'a str,
    at: DateTime<Utc>,
}

/// Opens a session that could read rows, where that is possible.
pub(super) fn open(run: &Run<'_>, server: &Server) -> Result<Wire, SessionError> {
    let (stall, deadline, cancel) = (run.stall, run.deadline, run.cancel.clone());
    let limits = Limits { what: "the rows of a table", stall, deadline, cancel };
    Wire::open(run.connection, run.database, server, &limits)
}

/// Enters the snapshot and locks the tables. From here on nothing can come between.
pub(super) fn begin(
    mut wire: Wire,
    pace: Pace,
    snapshot: &str,
    part: Part,
    tables: Vec<RowsOf>,
) -> Result<Begun, SessionError> {
    wire.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    wire.execute(&format!("SET TRANSACTION SNAPSHOT {}", super::connection::literal(snapshot)))?;
    // A pooler may have given the transaction another session of the server.
    wire.settle()?;
    wire.execute(&format!("SET LOCAL lock_timeout = {}", LOCK_WAIT.as_millis()))?;
    for batch in tables.chunks(BATCH) {
        wire.execute(&catalog::lock_statement(batch.iter().map(|t| &t.table)))?;
    }
    wire.execute("SET LOCAL lock_timeout = 0")?;
    Ok(Begun { part, tables, wire, pace })
}

impl Begun {
    pub fn tables(&self) -> &[RowsOf] {
        &self.tables
    }

    /// Stores the rows. The stream is not finished yet: that is for whoever has checked everything.
    pub fn store<'s>(self, run: &Run<'_>, version: &str, sink: &'s dyn Sink) -> Result<Stored<'s>, SourceError> {
        let Begun { part, tables, mut wire, mut pace } = self;
        let mut stream =
            sink.stream(part.stream.clone(), StreamKind::PgDump, part.expected_bytes).map_err(SourceError::Sink)?;
        let origin = Origin { database: run.database, version, at: Utc::now() };
        let mut report = Report { version: (1, MINOR, 0), walked: true, ..Report::default() };
        stream.write_all(&head(&origin, &tables)).map_err(SourceError::Sink)?;
        for (i, rows_of) in tables.iter().enumerate() {
            let table = &rows_of.table;
            stream.write_all(&block_begin(i)).map_err(SourceError::Sink)?;
            let rows =
                wire.copy(&format!("{} TO stdout", copy(rows_of)), &mut pace, &mut stream).map_err(|e| match e {
                    CopyError::Sink(error) => SourceError::Sink(error),
                    CopyError::Session(error) => {
                        let what =
                            format!("rows of table {}.{} of database {:?}", table.schema, table.name, run.database);
                        error.into_source(run.connection, &what)
                    }
                })?;
            stream.write_all(&block_end()).map_err(SourceError::Sink)?;
            report.rows.insert((table.schema.clone(), table.name.clone()), Some(rows));
        }
        wire.close();
        Ok(Stored { stream, report, said: String::new() })
    }
}

/// `COPY "schema"."table" ("a", "b")`.
fn copy(rows: &RowsOf) -> String {
    let columns: Vec<String> = rows.columns.iter().map(|c| identifier(c)).collect();
    format!("COPY {}.{} ({})", identifier(&rows.table.schema), identifier(&rows.table.name), columns.join(", "))
}

const MINOR: u8 = 13;
const INT_BYTES: u8 = 4;
const OFFSET_BYTES: u8 = 8;
/// Whether an entry has data, and that nobody knows where: the output of a pipe has no offsets.
const NO_DATA: u8 = 3;
const OFFSET_NOT_SET: u8 = 1;
const SECTION_PRE_DATA: i32 = 2;
const SECTION_DATA: i32 = 3;
/// How a script of the archive begins, whatever it restores.
const PREAMBLE: [(&str, &str); 3] = [
    ("ENCODING", "SET client_encoding = 'UTF8';\n"),
    ("STDSTRINGS", "SET standard_conforming_strings = 'on';\n"),
    ("SEARCHPATH", "SELECT pg_catalog.set_config('search_path', '', false);\n"),
];

/// The format's own values.
#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    /// A sign byte, then the value, least significant byte first.
    fn int(&mut self, value: i32) {
        self.0.push(u8::from(value < 0));
        self.0.extend_from_slice(&value.unsigned_abs().to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.int(i32::try_from(text.len()).unwrap_or(i32::MAX));
        self.0.extend_from_slice(text.as_bytes());
    }

    fn absent(&mut self) {
        self.int(-1);
    }
}

/// The number of a table's entry.
fn entry_of(table: usize) -> i32 {
    i32::try_from(PREAMBLE.len() + table + 1).unwrap_or(i32::MAX)
}

/// Everything before the first block.
fn head(origin: &Origin<'_>, tables: &[RowsOf]) -> Vec<u8> {
    let mut out = Out(b"PGDMP".to_vec());
    out.0.extend_from_slice(&[1, MINOR, 0, INT_BYTES, OFFSET_BYTES, CUSTOM_FORMAT]);
    out.int(0); // not compressed
    let at = origin.at;
    for value in [at.second(), at.minute(), at.hour(), at.day(), at.month0()] {
        out.int(value as i32);
    }
    out.int(at.year() - 1900);
    out.int(0); // no daylight saving time
    out.string(origin.database);
    out.string(origin.version);
    out.string(concat!("lifeboat ", env!("CARGO_PKG_VERSION")));
    out.int(i32::try_from(PREAMBLE.len() + tables.len()).unwrap_or(i32::MAX));
    for (i, (tag, definition)) in PREAMBLE.iter().enumerate() {
        out.int(i as i32 + 1);
        out.int(0); // no data
        out.string("0"); // oid of its catalog
        out.string("0"); // oid
        out.string(tag);
        out.string(tag); // description
        out.int(SECTION_PRE_DATA);
        out.string(definition);
        out.string(""); // how it is dropped
        for _ in 0..3 {
            out.absent(); // how its rows are copied, schema, tablespace
        }
        out.string(""); // owner
        out.string("false"); // with oids
        out.absent(); // end of dependencies
        out.0.push(NO_DATA);
        out.0.extend_from_slice(&[0; OFFSET_BYTES as usize]);
    }
    for (i, rows) in tables.iter().enumerate() {
        out.int(entry_of(i));
        out.int(1); // it has data
        out.string("0");
        out.string("0");
        out.string(&rows.table.name);
        out.string("TABLE DATA");
        out.int(SECTION_DATA);
        out.string(""); // no definition
        out.string(""); // how it is dropped
        out.string(&format!("{} FROM stdin;\n", copy(rows)));
        out.string(&rows.table.schema);
        out.absent();
        out.string(&rows.owner);
        out.string("false");
        out.absent();
        out.0.push(OFFSET_NOT_SET);
        out.0.extend_from_slice(&[0; OFFSET_BYTES as usize]);
    }
    out.0
}

/// What stands before a table's first row.
fn block_begin(table: usize) -> Vec<u8> {
    let mut out = Out(vec![BLOCK_DATA]);
    out.int(entry_of(table));
    out.0
}

/// What stands behind its last one.
fn block_end() -> Vec<u8> {
    let mut out = Out::default();
    out.string(std::str::from_utf8(ROWS_END).unwrap_or_default());
    out.int(0);
    out.0
}

#[cfg(test)]
mod tests {
    use super::super::archive;
    use super::*;
    use crate::sources::tap::Tap;

    #[test]
    fn the_walk_of_dumps_reads_what_is_written_here() {
        let table = |name: &str| RowsOf {
            table: QualifiedName { schema: "o\"dd".into(), name: name.into() },
            owner: "me".into(),
            columns: vec!["a".into(), "b c".into()],
        };
        let tables = [table("first"), table("second")];
        let origin = Origin { database: "shop", version: "15.20", at: Utc::now() };
        let mut bytes = head(&origin, &tables);
        for (i, rows) in [&["1\tx\n", "2\t\\n\n"][..], &[]].iter().enumerate() {
            bytes.extend(block_begin(i));
            let mut out = Out::default();
            rows.iter().for_each(|row| out.string(row));
            bytes.extend(out.0);
            bytes.extend(block_end());
        }
        let mut stored = Vec::new();
        let report = archive::walk(&mut Tap::new(&bytes[..], &mut stored, ())).unwrap();
        let key = |name: &str| ("o\"dd".to_owned(), name.to_owned());
        assert_eq!(report.rows, [(key("first"), Some(2)), (key("second"), Some(0))].into());
        assert!(report.walked && report.version == (1, 13, 0));
        assert!(bytes.windows(45).any(|w| w == b"COPY \"o\"\"dd\".\"first\" (\"a\", \"b c\") FROM stdin;"));
    }
}
