//! Trees, proved: every byte is read back through the tar, and each entry is what the listing says.
//!
//! Nothing is laid out: a tree may be larger than what is free. Memory holds one entry and the lines near it.

use super::super::stream::{LISTING, TAR};
use crate::base::stream::ListingEntry;
use crate::base::units::human_size;
use crate::sources::SourceError;
use crate::sources::extract::{Archive, Member, TarError, write_content};
use crate::sources::files::entry::{Kind, display};
use crate::sources::proof::{Check, Difference, LISTED, Proof, Prove, Trial};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};

/// The longest line of a listing: a path of 64 KiB in hex, its target, and the rest.
const MAX_LINE: u64 = 512 << 10;
const BUFFER: usize = 1 << 20;
/// So many lines are looked through for an entry before the listing is said not to have it.
const NEAR: usize = 1000;

/// Proves sources of the kinds `files` and `volume`.
pub struct FilesProof;

impl Prove for FilesProof {
    fn prove(&self, trial: &Trial<'_>) -> Result<Proof, SourceError> {
        let mut proof = Proof::default();
        trial.streams.info(TAR)?;
        trial.streams.info(LISTING)?;
        let read = proof.step(trial, "read back", false, || Reading::run(trial))?;
        proof.restored.push(format!("{} ({})", files(read.files), human_size(read.bytes)));
        proof.add(read.bytes_check());
        proof.add(read.entries_check());
        proof.add(read.facts_check(trial.facts));
        Ok(proof)
    }
}

/// `1 file`, `1,204 files`.
fn files(n: u64) -> String {
    format!("{} {}", thousands(n), if n == 1 { "file" } else { "files" })
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// What was read.
#[derive(Default)]
struct Reading {
    files: u64,
    entries: u64,
    listed: u64,
    bytes: u64,
    /// Of every entry's content, in order.
    digest: blake3::Hasher,
    /// Why the tar or the listing could not be read to its end.
    broken: Option<String>,
    differences: Vec<Difference>,
    more: usize,
    /// How far the listing's offsets are ahead of the tar's.
    shift: i128,
    /// How much further they are, if what was missing since then is missing in one of both only.
    more_shift: i128,
}

/// An entry that has been read, and whose place in the tar is known when the next one begins.
struct Pending {
    line: ListingEntry,
    offset: u64,
    path: Vec<u8>,
}

/// The lines of a listing.
struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    /// Lines that have been read and not taken yet.
    ahead: VecDeque<ListingEntry>,
}

impl<R: Read> Lines<R> {
    fn new(reader: R) -> Self {
        Lines { reader: BufReader::with_capacity(BUFFER, reader), line: Vec::new(), ahead: VecDeque::new() }
    }

    /// The line in `n` lines; absent behind the end.
    fn peek(&mut self, n: usize) -> io::Result<Option<&ListingEntry>> {
        while self.ahead.len() <= n {
            self.line.clear();
            let read = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut self.line)?;
            match read {
                0 => return Ok(None),
                _ if self.line.last() != Some(&b'\n') => {
                    return Err(io::Error::other("a line of the listing is cut short"));
                }
                _ => self.ahead.push_back(serde_json::from_slice(&self.line).map_err(io::Error::other)?),
            }
        }
        Ok(self.ahead.get(n))
    }

    fn take(&mut self) -> io::Result<Option<ListingEntry>> {
        self.peek(0)?;
        Ok(self.ahead.pop_front())
    }

    /// In how many lines one speaks of this path, when it is near.
    fn find(&mut self, entry: &ListingEntry) -> io::Result<Option<usize>> {
        for n in 0..NEAR {
            match self.peek(n)? {
                Some(line) if same_path(line, entry) => return Ok(Some(n)),
                Some(_) => {}
                None => break,
            }
        }
        Ok(None)
    }
}

impl Reading {
    fn run(trial: &Trial<'_>) -> Result<Reading, SourceError> {
        let mut reading = Reading::default();
        let open = |name: &str| {
            let opened = trial.streams.open(name);
            opened.map_err(|source| SourceError::File { action: "open stream", path: name.into(), source })
        };
        let (tar, listing) = (open(TAR)?, open(LISTING)?);
        let mut lines = Lines::new(listing);
        match reading.tar(trial, tar, &mut lines) {
            Ok(()) => {}
            Err(Stop::Broken(why)) => {
                trial.cancel.check()?;
                reading.broken = Some(why);
            }
            Err(Stop::Error(e)) => return Err(e),
        }
        Ok(reading)
    }

    fn tar(&mut self, trial: &Trial<'_>, tar: impl Read, lines: &mut Lines<impl Read>) -> Result<(), Stop> {
        let mut archive = Archive::new(BufReader::with_capacity(BUFFER, tar));
        let mut pending: Option<Pending> = None;
        loop {
            trial.cancel.check().map_err(|e| Stop::Error(e.into()))?;
            let within = |e: TarError, pending: &Option<Pending>| {
                let path = pending.as_ref().map(|p| display(&p.path)).unwrap_or_default();
                Stop::Broken(if path.is_empty() { chain(&e) } else { format!("{} (behind {path})", chain(&e)) })
            };
            let Some(member) = archive.next_member().map_err(|e| within(e, &pending))? else { break };
            if let Some(before) = pending.take()
                // What was written once more takes the place of the entry before it, of which no line speaks.
                && !(member.again && before.path == member.entry.path)
            {
                self.settle(before, Some(member.offset), lines)?;
            }
            let mut content = Hashed(blake3::Hasher::new());
            if member.entry.kind == Kind::File {
                write_content(&mut archive, &member, &mut content)
                    .map_err(|e| Stop::Broken(format!("{}: {}", display(&member.entry.path), chain(&e))))?;
            }
            self.digest.update(content.0.finalize().as_bytes());
            pending = Pending::of(&member);
            if pending.is_none() {
                self.differ(display(&member.entry.path), "nothing", member.entry.kind.noun());
            }
        }
        if let Some(last) = pending {
            self.settle(last, None, lines)?;
        }
        while let Some(line) = lines.take().map_err(listing)? {
            self.lacks(&line);
        }
        Ok(())
    }

    /// Holds an entry against its line, when it is known where it ends.
    fn settle(&mut self, entry: Pending, end: Option<u64>, lines: &mut Lines<impl Read>) -> Result<(), Stop> {
        self.entries += 1;
        self.bytes += entry.line.size;
        if entry.line.file_type == crate::base::stream::FileType::File {
            self.files += 1;
        }
        // Both are in one order: lines before the entry's own speak of what the archive lacks.
        let length = end.map_or(0, |end| end - entry.offset);
        let found = ListingEntry { length, ..entry.line };
        let Some(before) = lines.find(&found).map_err(listing)? else {
            self.more_shift -= i128::from(length);
            self.differ(said(&found), "nothing: the listing does not have it", noun(&found));
            return Ok(());
        };
        for _ in 0..before {
            if let Some(line) = lines.take().map_err(listing)? {
                self.lacks(&line);
            }
        }
        if let Some(line) = lines.take().map_err(listing)? {
            self.listed += 1;
            // What is missing or new moves all that is behind it, which is said once.
            let moved = i128::from(line.offset) - i128::from(found.offset);
            let known = moved == self.shift || moved == self.shift + self.more_shift;
            let offset = if known { found.offset } else { line.offset };
            (self.shift, self.more_shift) = (moved, 0);
            let expected = ListingEntry { length: if end.is_some() { line.length } else { 0 }, offset, ..line };
            if expected != found {
                let (wanted, seen) = apart(&expected, &found);
                self.differ(said(&found), wanted, seen);
            }
        }
        Ok(())
    }

    /// Of this line's entry the archive has nothing.
    fn lacks(&mut self, line: &ListingEntry) {
        self.listed += 1;
        self.more_shift += i128::from(line.length);
        self.differ(said(line), noun(line), "nothing: the archive does not have it");
    }

    fn differ(&mut self, subject: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) {
        match self.differences.len() < LISTED {
            true => self.differences.push(Difference::new(subject, expected, found)),
            false => self.more += 1,
        }
    }

    fn bytes_check(&self) -> Check {
        let expected = "every byte read back";
        let found = format!("{} in {}", human_size(self.bytes), files(self.files));
        match &self.broken {
            Some(why) => Check::failed("content", "", expected, found, why.as_str()),
            None => {
                let digest = self.digest.finalize().to_hex();
                Check::passed("content", "", expected, format!("{found}, blake3 {}", &digest[..16]))
            }
        }
    }

    fn entries_check(&self) -> Check {
        let expected = format!("{} entries", thousands(self.listed));
        let mut check = Check::of(
            "entries",
            "",
            expected,
            format!("{} entries", thousands(self.entries)),
            self.differences.clone(),
        );
        check.more_differences += self.more as u64;
        if self.broken.is_some() && self.differences.is_empty() {
            return Check::skipped("entries", "", "the tree could not be read to its end");
        }
        check
    }

    /// The numbers that the capture counted.
    fn facts_check(&self, facts: &Value) -> Check {
        let sum = |key: &str| -> Option<u64> {
            match facts["volumes"].as_array() {
                Some(volumes) => volumes.iter().map(|v| v[key].as_u64()).sum(),
                None => facts[key].as_u64(),
            }
        };
        let Some((entries, bytes)) = sum("entries").zip(sum("bytes")) else {
            return Check::skipped("counts", "", "the snapshot's facts hold no counts");
        };
        let expected = format!("{} entries, {bytes} bytes", thousands(entries));
        let found = format!("{} entries, {} bytes", thousands(self.entries), self.bytes);
        match (entries, bytes) == (self.entries, self.bytes) {
            true => Check::passed("counts", "", expected, found),
            false => {
                let why = format!("expected {expected}, found {found}");
                Check::failed("counts", "", expected, found, why)
            }
        }
    }
}

impl Pending {
    /// Absent for what a listing does not know.
    fn of(member: &Member) -> Option<Pending> {
        let line = member.entry.listing(member.offset, 0)?;
        Some(Pending { line, offset: member.offset, path: member.entry.path.clone() })
    }
}

/// Why reading stopped.
enum Stop {
    /// What is stored is not whole.
    Broken(String),
    Error(SourceError),
}

fn listing(e: io::Error) -> Stop {
    Stop::Broken(format!("the listing: {e}"))
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string);
    causes.collect::<Vec<_>>().join(": ")
}

fn same_path(a: &ListingEntry, b: &ListingEntry) -> bool {
    (&a.path, &a.path_hex) == (&b.path, &b.path_hex)
}

fn said(line: &ListingEntry) -> String {
    display(line.path.as_bytes())
}

fn noun(line: &ListingEntry) -> String {
    format!("{:?}", line.file_type).to_lowercase()
}

/// The first thing in which two lines of one path differ.
fn apart(a: &ListingEntry, b: &ListingEntry) -> (String, String) {
    let pairs = [
        (noun(a), noun(b)),
        (format!("{} bytes", a.size), format!("{} bytes", b.size)),
        (format!("mode {:04o}", a.mode), format!("mode {:04o}", b.mode)),
        (format!("owner {}:{}", a.uid, a.gid), format!("owner {}:{}", b.uid, b.gid)),
        (format!("modified {}.{:09}", a.mtime, a.mtime_ns), format!("modified {}.{:09}", b.mtime, b.mtime_ns)),
        (format!("target {:?}", a.target), format!("target {:?}", b.target)),
        (format!("at byte {}, {} bytes", a.offset, a.length), format!("at byte {}, {} bytes", b.offset, b.length)),
    ];
    let first = pairs.into_iter().find(|(a, b)| a != b);
    first.unwrap_or_else(|| ("as it was listed".into(), "otherwise".into()))
}

struct Hashed(blake3::Hasher);

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
