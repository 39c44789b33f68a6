//! Listings: a tar's entries, one line each, read as they pass.
//!
//! Order: a walk writes folders before their content and names by their bytes, which is the order of [`compare`].
//! Trees that only Docker can read may come in another order; [`Sorted`] brings them into this one, in runs that lie in
//! a file without a name, so that memory holds one run.

use crate::base::stream::{FileType, ListingEntry, StreamKind};
use crate::ops::OpsError;
use crate::ops::browse::part::{Part, PartReader};
use crate::repository::format::{SourceEntry, StreamEntry};
use crate::repository::reader::SnapshotReader;
use serde::Deserialize;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// The longest line: a path of 64 KiB in hex, its target, and the rest.
const MAX_LINE: u64 = 512 << 10;
const BUFFER: usize = 256 << 10;
/// Entries that are sorted in memory at once.
const RUN: usize = 50_000;

/// A line of a listing, with its path as bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    pub path: Vec<u8>,
    pub entry: ListingEntry,
}

impl Listed {
    fn parse(line: &[u8]) -> Result<Self, String> {
        let entry: ListingEntry = serde_json::from_slice(line).map_err(|e| format!("a line does not parse: {e}"))?;
        let path = exact(&entry.path, entry.path_hex.as_deref())?;
        Ok(Self { path, entry })
    }

    /// A link's target as bytes.
    pub fn target(&self) -> Option<Vec<u8>> {
        exact(self.entry.target.as_deref()?, self.entry.target_hex.as_deref()).ok()
    }

    /// Where the entry ends in the tar.
    pub fn end(&self) -> u64 {
        self.entry.offset.saturating_add(self.entry.length)
    }

    pub fn is_dir(&self) -> bool {
        self.entry.file_type == FileType::Dir
    }
}

fn exact(text: &str, hex: Option<&str>) -> Result<Vec<u8>, String> {
    match hex {
        None => Ok(text.as_bytes().to_vec()),
        Some(hex) => hex::decode(hex).map_err(|_| "a path's hex form is none".to_owned()),
    }
}

/// The order of a walk: component by component, so that what is in a folder follows it at once.
pub fn compare(a: &[u8], b: &[u8]) -> Ordering {
    // A slash sorts before every byte that a name can have.
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(rank).cmp(b.iter().map(rank))
}

/// Whether `path` lies below `dir`; everything lies below the root, which is empty.
pub fn is_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || (path.len() > dir.len() && path.starts_with(dir) && path[dir.len()] == b'/')
}

/// A tar stream and its listing.
#[derive(Clone, Copy)]
pub struct Tree<'a> {
    pub tar: Part<'a>,
    pub listing: Part<'a>,
}

/// The trees of a source: each tar that has its listing beside it.
pub fn trees<'a>(reader: &'a SnapshotReader, source: &'a SourceEntry) -> Vec<Tree<'a>> {
    let part = |stream: &'a StreamEntry| Part { reader, source, stream };
    let tars = source.streams.iter().filter(|s| s.kind == StreamKind::Tar);
    tars.filter_map(|tar| Some(Tree { tar: part(tar), listing: part(listing_of(source, tar)?) })).collect()
}

fn listing_of<'a>(source: &'a SourceEntry, tar: &StreamEntry) -> Option<&'a StreamEntry> {
    let stem = |s: &StreamEntry| s.name.as_str().rsplit_once('.').map(|(stem, _)| stem.to_owned());
    source.streams.iter().find(|s| s.kind == StreamKind::Listing && stem(s) == stem(tar))
}

/// A listing being read.
pub struct Lines<'a> {
    part: Part<'a>,
    reader: BufReader<PartReader<'a>>,
    line: Vec<u8>,
}

impl<'a> Lines<'a> {
    /// Opens a listing at its begin.
    pub fn open(part: Part<'a>) -> Result<Self, OpsError> {
        Ok(Self { part, reader: BufReader::with_capacity(BUFFER, part.open()?), line: Vec::new() })
    }

    fn advance(&mut self) -> Result<bool, OpsError> {
        self.line.clear();
        let read = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut self.line);
        if let Err(e) = read {
            return Err(self.reader.get_mut().failure(e));
        }
        match self.line.pop() {
            None => Ok(false),
            Some(b'\n') => Ok(true),
            Some(_) => Err(self.part.problem("a line of the listing does not end")),
        }
    }

    /// The next entry.
    pub fn next_entry(&mut self) -> Result<Option<Listed>, OpsError> {
        self.next_where(|_| true)
    }

    /// The next entry whose path is wanted; the others are not looked at any further.
    pub fn next_where(&mut self, mut wanted: impl FnMut(&[u8]) -> bool) -> Result<Option<Listed>, OpsError> {
        while self.advance()? {
            let bad = |problem: String| self.part.problem(format!("the listing: {problem}"));
            let brief: Brief<'_> =
                serde_json::from_slice(&self.line).map_err(|e| bad(format!("a line does not parse: {e}")))?;
            let take = match &brief.path_hex {
                None => wanted(brief.path.as_bytes()),
                hex => wanted(&exact("", hex.as_deref()).map_err(bad)?),
            };
            if take {
                return Listed::parse(&self.line).map(Some).map_err(bad);
            }
        }
        Ok(None)
    }
}

/// What is looked at first.
#[derive(Deserialize)]
struct Brief<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(default, borrow)]
    path_hex: Option<Cow<'a, str>>,
}

/// A listing in the order of [`compare`], whatever order it is stored in. A path comes once.
pub struct Sorted<'a> {
    entries: Entries<'a>,
    last: Option<Vec<u8>>,
}

enum Entries<'a> {
    Stored(Box<Lines<'a>>),
    Merged(Merge),
}

impl<'a> Sorted<'a> {
    /// Reads the listing through once to learn its order, and sorts it where it must; `tmp` takes what does not fit
    /// into memory.
    pub fn open(part: Part<'a>, tmp: &Path) -> Result<Self, OpsError> {
        let entries = if is_sorted(part)? {
            Entries::Stored(Box::new(Lines::open(part)?))
        } else {
            let failed = |e| OpsError::file("sort a listing in", tmp, e);
            Entries::Merged(Merge::begin(sort(part, tmp)?).map_err(failed)?)
        };
        Ok(Self { entries, last: None })
    }

    /// The next entry in order.
    pub fn next_entry(&mut self) -> Result<Option<Listed>, OpsError> {
        loop {
            let next = match &mut self.entries {
                Entries::Stored(lines) => lines.next_entry()?,
                Entries::Merged(merge) => {
                    merge.next().map_err(|e| OpsError::file("read back", "a sorted listing", e))?
                }
            };
            let Some(listed) = next else { return Ok(None) };
            if self.last.as_ref() != Some(&listed.path) {
                self.last = Some(listed.path.clone());
                return Ok(Some(listed));
            }
        }
    }

    /// Whether entries come in the order of the tar.
    pub fn is_stored_order(&self) -> bool {
        matches!(self.entries, Entries::Stored(_))
    }
}

fn is_sorted(part: Part<'_>) -> Result<bool, OpsError> {
    let mut lines = Lines::open(part)?;
    let mut last: Vec<u8> = Vec::new();
    let mut sorted = true;
    let misplaced = lines.next_where(|path| {
        sorted = last.is_empty() || compare(&last, path) != Ordering::Greater;
        last.clear();
        last.extend_from_slice(path);
        !sorted
    })?;
    Ok(misplaced.is_none())
}

fn sort(part: Part<'_>, tmp: &Path) -> Result<Vec<Run>, OpsError> {
    let mut lines = Lines::open(part)?;
    let mut runs = Vec::new();
    let mut run: Vec<Listed> = Vec::new();
    loop {
        let next = lines.next_entry()?;
        let ended = next.is_none();
        run.extend(next);
        if (ended && !run.is_empty()) || run.len() == RUN {
            run.sort_by(|a, b| compare(&a.path, &b.path));
            runs.push(Run::write(&run, tmp).map_err(|e| OpsError::file("sort a listing in", tmp, e))?);
            run.clear();
        }
        if ended {
            return Ok(runs);
        }
    }
}

/// Entries in order, in a file without a name.
struct Run(BufReader<File>);

impl Run {
    fn write(entries: &[Listed], tmp: &Path) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(BUFFER, tempfile::tempfile_in(tmp)?);
        for listed in entries {
            serde_json::to_writer(&mut out, &listed.entry)?;
            out.write_all(b"\n")?;
        }
        let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Run(BufReader::with_capacity(BUFFER, file)))
    }

    fn next(&mut self) -> io::Result<Option<Listed>> {
        let mut line = Vec::new();
        if self.0.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        Listed::parse(&line).map(Some).map_err(io::Error::other)
    }
}

/// Several runs as one.
pub struct Merge {
    runs: Vec<Run>,
    heads: BinaryHeap<Head>,
}

struct Head {
    listed: Listed,
    run: usize,
}

impl Merge {
    fn begin(runs: Vec<Run>) -> io::Result<Self> {
        let mut merge = Merge { runs, heads: BinaryHeap::new() };
        for run in 0..merge.runs.len() {
            merge.pull(run)?;
        }
        Ok(merge)
    }

    fn pull(&mut self, run: usize) -> io::Result<()> {
        if let Some(listed) = self.runs[run].next()? {
            self.heads.push(Head { listed, run });
        }
        Ok(())
    }

    fn next(&mut self) -> io::Result<Option<Listed>> {
        let Some(head) = self.heads.pop() else { return Ok(None) };
        self.pull(head.run)?;
        Ok(Some(head.listed))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    /// The heap gives its greatest first, so the smallest path is the greatest head; the earlier run goes first.
    fn cmp(&self, other: &Self) -> Ordering {
        compare(&other.listed.path, &self.listed.path).then(other.run.cmp(&self.run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Listed {
        let json = format!(
            r#"{{"path":"{path}","type":"file","size":1,"mode":420,"uid":0,"gid":0,"mtime":0,"offset":0,"length":1024}}"#
        );
        Listed::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn folders_stand_before_their_content_and_that_before_their_neighbours() {
        let walk = ["a", "a/1", "a/b", "a/b/c", "a-b", "a.txt", "b"];
        for pair in walk.windows(2) {
            assert_eq!(compare(pair[0].as_bytes(), pair[1].as_bytes()), Ordering::Less, "{pair:?}");
        }
        assert!(is_below(b"a/b", b"a") && is_below(b"a", b"") && !is_below(b"a-b", b"a") && !is_below(b"a", b"a"));
    }

    #[test]
    fn runs_are_merged_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let runs = [&["a", "a/z", "c"][..], &["a-b", "b"], &[]];
        let runs =
            runs.map(|names| Run::write(&names.iter().map(|n| entry(n)).collect::<Vec<_>>(), dir.path()).unwrap());
        let mut merge = Merge::begin(runs.into()).unwrap();
        let mut names = Vec::new();
        while let Some(listed) = merge.next().unwrap() {
            names.push(listed.entry.path);
        }
        assert_eq!(names, ["a", "a/z", "a-b", "b", "c"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn sweep_lines() {
        let words = ["\"path_hex\":\"", "\"target\":", "{", "}", "\"", "\\u0000", "\\ud800", "-1", "null", "\n"];
        crate::base::fuzz::Fuzz::of("listing").words(&words).run(|bytes| {
            let mut all: Vec<Listed> =
                bytes.split(|b| *b == b'\n').filter_map(|line| Listed::parse(line).ok()).collect();
            all.sort_by(|a, b| compare(&a.path, &b.path));
            for listed in &all {
                let _ = (listed.target(), listed.end(), is_below(&listed.path, b"a"));
            }
        });
    }
}
