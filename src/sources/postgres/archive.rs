//! The custom format of `pg_dump`, walked to its last block while it is stored.
//!
//! The format proves nothing by itself: cut in half it still lists, and `pg_restore` learns of a missing block only
//! when it wants that block. So the walk demands that every entry of the table of contents that has data is followed
//! by its block, that each block is whole, and that nothing stands behind the last one. It also counts the rows of each table,
//! which are held against what the server said in the same snapshot.
//!
//! Layout after `src/bin/pg_dump/pg_backup_archiver.c` and `pg_backup_custom.c` of PostgreSQL, archive versions 1.12
//! (PostgreSQL 9.x) to 1.16 (PostgreSQL 16 to 18). A later version is stored as it is, and said not to have been walked.

use crate::sources::tap::{Observer, Tap, TapError};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

pub(super) const CUSTOM_FORMAT: u8 = 1;
pub(super) const BLOCK_DATA: u8 = 1;
const BLOCK_LARGE_OBJECTS: u8 = 3;
/// How `pg_dump` ends the rows of a table, behind the last row's newline.
pub(super) const ROWS_END: &[u8; 5] = b"\\.\n\n\n";
/// Of names in the table of contents; what is longer (definitions) is passed over.
const MAX_NAME_BYTES: u64 = 64 << 10;
const MAX_ENTRIES: i64 = 20_000_000;

/// What the walk found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Archive version, such as (1, 14, 0).
    pub version: (u8, u8, u8),
    /// `false` when the version is not known: then only the magic has been looked at.
    pub walked: bool,
    /// Rows by (schema, table); absent rows are in a form that is not counted.
    pub rows: BTreeMap<(String, String), Option<u64>>,
    pub large_objects: u64,
}

/// One entry of the table of contents that has data.
struct Entry {
    is_table: bool,
    namespace: String,
    tag: String,
}

struct Walk<'t, R, W, O> {
    tap: &'t mut Tap<R, W, O>,
    int_bytes: u8,
    offset_bytes: u8,
    minor: u8,
}

/// Walks a dump to its end; every byte goes on to the sink.
pub(crate) fn walk<R: Read, W: Write, O: Observer>(tap: &mut Tap<R, W, O>) -> Result<Report, TapError> {
    if &tap.take::<5>()? != b"PGDMP" {
        return Err(TapError::Format("not a dump in custom format".into()));
    }
    let [major, minor, revision, int_bytes, offset_bytes, format] = tap.take::<6>()?;
    let mut report = Report { version: (major, minor, revision), ..Report::default() };
    if format != CUSTOM_FORMAT {
        return Err(TapError::Format(format!("a dump of format {format}, not the custom one")));
    }
    if major != 1 || !(12..=16).contains(&minor) {
        tap.pass_rest(&mut |_| ())?;
        return Ok(report);
    }
    if !matches!(int_bytes, 1..=8) || offset_bytes > 8 {
        return Err(TapError::Format(format!(
            "a dump with integers of {int_bytes} and offsets of {offset_bytes} bytes"
        )));
    }
    let mut walk = Walk { tap, int_bytes, offset_bytes, minor };
    walk.head()?;
    let mut entries = walk.contents()?;
    walk.blocks(&mut entries, &mut report)?;
    if let Some((id, entry)) = entries.first_key_value() {
        let what = format!("{:?} of {:?} (entry {id})", entry.tag, entry.namespace);
        return Err(TapError::Format(format!("the dump ends before the data of {what}")));
    }
    report.walked = true;
    Ok(report)
}

impl<R: Read, W: Write, O: Observer> Walk<'_, R, W, O> {
    /// A sign byte, then the value, least significant byte first.
    fn int(&mut self) -> Result<i64, TapError> {
        let mut bytes = [0u8; 9];
        let length = 1 + usize::from(self.int_bytes);
        // Every row has one, and most lie whole in what has been read.
        if let (Some(ahead), Some(out)) = (self.tap.ahead().get(..length), bytes.get_mut(..length)) {
            out.copy_from_slice(ahead);
            self.tap.advance(length);
        } else {
            for byte in bytes.iter_mut().take(length) {
                *byte = self.tap.byte()?;
            }
        }
        let [negative, value @ ..] = bytes;
        let (negative, value) = (negative != 0, u64::from_le_bytes(value));
        let value = i64::try_from(value).map_err(|_| TapError::Format("an integer out of range".into()))?;
        Ok(if negative { -value } else { value })
    }

    fn length(&mut self) -> Result<Option<u64>, TapError> {
        Ok(u64::try_from(self.int()?).ok())
    }

    /// `false` when the string is absent.
    fn skip_string(&mut self) -> Result<bool, TapError> {
        match self.length()? {
            Some(length) => self.tap.skip(length).map(|()| true),
            None => Ok(false),
        }
    }

    fn string(&mut self) -> Result<String, TapError> {
        let Some(length) = self.length()? else { return Ok(String::new()) };
        let bytes = self.tap.bytes(length, MAX_NAME_BYTES, "a name")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Compression, time, database, versions.
    fn head(&mut self) -> Result<(), TapError> {
        if self.minor >= 15 {
            self.tap.byte()?;
        } else {
            self.int()?;
        }
        for _ in 0..7 {
            self.int()?;
        }
        for _ in 0..3 {
            self.skip_string()?;
        }
        Ok(())
    }

    /// The entries that have data, by dump id.
    fn contents(&mut self) -> Result<BTreeMap<i64, Entry>, TapError> {
        let count = self.int()?;
        if !(0..=MAX_ENTRIES).contains(&count) {
            return Err(TapError::Format(format!("a table of contents of {count} entries")));
        }
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let id = self.int()?;
            let has_data = self.int()? != 0;
            self.skip_string()?; // table oid
            self.skip_string()?; // oid
            let tag = self.string()?;
            let description = self.string()?;
            self.int()?; // section
            for _ in 0..3 {
                self.skip_string()?; // definition, drop and copy statement
            }
            let namespace = self.string()?;
            self.skip_string()?; // tablespace
            if self.minor >= 14 {
                self.skip_string()?; // table access method
            }
            if self.minor >= 16 {
                self.int()?; // kind of relation
            }
            self.skip_string()?; // owner
            self.skip_string()?; // "has oids"
            while self.skip_string()? {} // dependencies
            self.tap.skip(1 + u64::from(self.offset_bytes))?;
            if has_data {
                let is_table = description == "TABLE DATA";
                entries.insert(id, Entry { is_table, namespace, tag });
            }
        }
        Ok(entries)
    }

    /// The blocks, to the end of input; each takes its entry out.
    fn blocks(&mut self, entries: &mut BTreeMap<i64, Entry>, report: &mut Report) -> Result<(), TapError> {
        let mut objects = BTreeSet::new();
        while !self.tap.at_end()? {
            let kind = self.tap.byte()?;
            let id = self.int()?;
            let Some(entry) = entries.remove(&id) else {
                return Err(TapError::Format(format!("a block of data without an entry of its own ({id})")));
            };
            match kind {
                BLOCK_DATA => {
                    let rows = self.rows()?;
                    if entry.is_table {
                        report.rows.insert((entry.namespace, entry.tag), rows);
                    }
                }
                BLOCK_LARGE_OBJECTS => loop {
                    let object = self.int()?;
                    if object == 0 {
                        break;
                    }
                    if !objects.insert(object) {
                        return Err(TapError::Format(format!("large object {object} twice")));
                    }
                    self.data(&mut |_| ())?;
                },
                other => return Err(TapError::Format(format!("a block of kind {other}"))),
            }
        }
        report.large_objects = objects.len() as u64;
        Ok(())
    }

    /// Runs of bytes, each behind its length, up to a length of zero.
    fn data(&mut self, see: &mut dyn FnMut(&[u8])) -> Result<(), TapError> {
        loop {
            match self.length()? {
                Some(0) => return Ok(()),
                Some(length) => self.tap.pass(length, see)?,
                None => return Err(TapError::Format("a block of negative length".into())),
            }
        }
    }

    /// The rows of one table: COPY text, where a newline within a value is written as `\n`.
    fn rows(&mut self) -> Result<Option<u64>, TapError> {
        let mut newlines: u64 = 0;
        let mut tail: Vec<u8> = Vec::with_capacity(2 * ROWS_END.len());
        self.data(&mut |bytes| {
            newlines += bytes.iter().filter(|b| **b == b'\n').count() as u64;
            tail.extend_from_slice(&bytes[bytes.len().saturating_sub(ROWS_END.len())..]);
            tail.drain(..tail.len().saturating_sub(ROWS_END.len()));
        })?;
        Ok((tail == ROWS_END).then(|| newlines - 3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Build(Vec<u8>);

    impl Build {
        fn int(&mut self, v: i32) -> &mut Self {
            self.0.push(u8::from(v < 0));
            self.0.extend_from_slice(&v.unsigned_abs().to_le_bytes());
            self
        }

        fn string(&mut self, s: &str) -> &mut Self {
            self.int(s.len() as i32).0.extend_from_slice(s.as_bytes());
            self
        }

        fn entry(&mut self, id: i32, has_data: bool, tag: &str, description: &str) -> &mut Self {
            self.int(id).int(has_data.into()).string("0").string("0").string(tag).string(description).int(3);
            self.string("CREATE …").string("").int(-1).string("public").string("").string("heap").string("me");
            self.string("false").string("7").int(-1);
            self.0.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 0]);
            self
        }
    }

    /// A dump of two tables and two large objects, and where its blocks begin.
    fn example() -> (Vec<u8>, usize) {
        let mut b = Build(b"PGDMP\x01\x0e\x00\x04\x08\x01".to_vec());
        b.int(0);
        for _ in 0..7 {
            b.int(1);
        }
        b.string("shop").string("15.20").string("15.20").int(4);
        b.entry(1, false, "users", "TABLE").entry(2, true, "users", "TABLE DATA");
        b.entry(3, true, "empty", "TABLE DATA").entry(4, true, "BLOBS", "BLOBS");
        let blocks = b.0.len();
        b.0.push(BLOCK_DATA);
        b.int(2).string("1\tann\n2\tbo\\nb\n3\t").string("c\n\\.\n").string("\n\n").int(0);
        b.0.push(BLOCK_DATA);
        b.int(3).string("\\.\n\n\n").int(0);
        b.0.push(BLOCK_LARGE_OBJECTS);
        b.int(4).int(16400).string("abc").int(0).int(16401).int(0).int(0);
        (b.0, blocks)
    }

    fn walk_bytes(bytes: &[u8]) -> Result<(Report, Vec<u8>), TapError> {
        let mut stored = Vec::new();
        let mut tap = Tap::new(bytes, &mut stored, ());
        let report = walk(&mut tap)?;
        tap.finish()?;
        Ok((report, stored))
    }

    #[test]
    fn counts_rows_and_objects_and_passes_every_byte_on() {
        let (bytes, _) = example();
        let (report, stored) = walk_bytes(&bytes).unwrap();
        assert_eq!(stored, bytes);
        assert!(report.walked);
        let rows = |t: &str| report.rows[&("public".to_owned(), t.to_owned())];
        assert_eq!((rows("users"), rows("empty"), report.large_objects), (Some(3), Some(0), 2));
    }

    #[test]
    fn a_dump_cut_anywhere_is_refused() {
        let (bytes, _) = example();
        for end in 0..bytes.len() {
            assert!(walk_bytes(&bytes[..end]).is_err(), "cut at {end} of {}", bytes.len());
        }
    }

    #[test]
    fn what_does_not_belong_is_refused() {
        let (mut bytes, blocks) = example();
        bytes.push(BLOCK_DATA);
        assert!(walk_bytes(&bytes).is_err(), "something behind the last block");
        let (mut bytes, _) = example();
        bytes[blocks] = 2;
        assert!(matches!(walk_bytes(&bytes), Err(TapError::Format(_))), "unknown kind of block");
        assert!(walk_bytes(b"-- PostgreSQL database dump").is_err());
        assert!(walk_bytes(b"").is_err());
    }

    #[test]
    fn a_later_version_is_stored_and_said_to_be_unread() {
        let (mut bytes, _) = example();
        bytes[6] = 99;
        let (report, stored) = walk_bytes(&bytes).unwrap();
        assert!(!report.walked && stored == bytes);
    }

    #[test]
    fn sweep_dumps() {
        let fuzz = crate::base::fuzz::Fuzz::of("pg-dump").seed(example().0);
        fuzz.words(&["PGDMP", "TABLE DATA", "\\.\n\n\n", "BLOBS", "\x01\x01", "\0\0\0\0\0"]).run(|bytes| {
            if let Ok((_, stored)) = walk_bytes(bytes) {
                assert!(bytes == stored);
            }
        });
    }
}
