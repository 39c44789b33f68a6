//! The run: stream by stream, verified as it is read.
//!
//! What cannot be *read* costs the stream, or of a tree the entries that it hits: the listing says where the next entry
//! begins, and reading goes on there. What cannot be *written* ends the run.

use super::ground::{self, Ground};
use super::plan::{PlannedSource, PlannedStream, RestorePlan};
use super::report::{RestoreOutcome, RestoreReport, RestoredSource, RestoredStream};
use super::selection::{Range, Selection};
use crate::base::events::{Event, Events};
use crate::base::ids::SourceName;
use crate::base::stream::StreamKind;
use crate::base::units::total;
use crate::ops::access::Access;
use crate::ops::browse::display;
use crate::ops::browse::listing::{Lines, Listed, trees};
use crate::ops::browse::part::{Part, PartReader, open_snapshot};
use crate::ops::browse::select::source_named;
use crate::ops::{ErrorKind, OpsError, Run};
use crate::repository::chain::full_text;
use crate::repository::reader::SnapshotReader;
use crate::sources::extract::{ExtractError, Extractor, Options};
use std::fs::OpenOptions;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

const BUFFER: usize = 1 << 20;
/// Events are sent once for so many bytes.
const TELL_EVERY: u64 = 1 << 20;
/// Ranges of a tree whose beginnings are fetched together.
const RANGES_AT_ONCE: usize = 16;
/// More lost entries than this are counted, not named.
const LOST: usize = 1_000;

/// Restores what the plan says.
pub fn run(access: &Access, plan: &RestorePlan, run: &Run) -> Result<RestoreReport, OpsError> {
    let begun = Instant::now();
    let reader = open_snapshot(access, plan.snapshot.as_str(), "restoring", run)?;
    plan.check_room()?;
    let names: Vec<&str> = plan.sources.iter().map(|s| s.name.as_str()).collect();
    let ground = Ground::make(&plan.into, &names)?;
    let restore = Restore { reader: &reader, plan, ground: &ground, run };
    let done = restore.sources();
    if done.is_err() {
        ground.clear();
    }
    let (sources, failure) = done?;
    let bytes = total(sources.iter().flat_map(|s| &s.streams).map(|s| s.bytes));
    Ok(RestoreReport {
        snapshot: plan.snapshot.clone(),
        into: plan.into.clone(),
        sources,
        bytes,
        notes: plan.notes.clone(),
        seconds: begun.elapsed().as_secs_f64(),
        failure,
    })
}

/// Why a stream is not restored.
enum Trouble {
    /// It cannot be read: it alone is lost.
    Stream(OpsError),
    /// Nothing more can be restored.
    Run(OpsError),
}

impl Trouble {
    /// A failure to read: what is damaged, or lies where the disk cannot read it, costs what it holds; a signal, or a
    /// storage that is gone, ends the run.
    fn reading(e: OpsError) -> Self {
        if e.kind() == ErrorKind::Integrity || is_unreadable(&e) { Trouble::Stream(e) } else { Trouble::Run(e) }
    }

    fn writing(action: &'static str, path: &Path, e: io::Error) -> Self {
        Trouble::Run(OpsError::file(action, path, e))
    }
}

/// Whether the disk says that it cannot read a place.
fn is_unreadable(e: &OpsError) -> bool {
    let causes = std::iter::successors(Some(e as &(dyn std::error::Error + 'static)), |e| e.source());
    let eio = rustix::io::Errno::IO.raw_os_error();
    causes.filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| e.raw_os_error() == Some(eio))
}

struct Restore<'a> {
    reader: &'a SnapshotReader,
    plan: &'a RestorePlan,
    ground: &'a Ground,
    run: &'a Run,
}

impl Restore<'_> {
    fn sources(&self) -> Result<(Vec<RestoredSource>, Option<OpsError>), OpsError> {
        let mut failure = None;
        let mut restored = Vec::new();
        for planned in &self.plan.sources {
            self.run.cancel.check()?;
            let events = &self.run.events;
            let expected_bytes = Some(total(planned.streams.iter().map(|s| s.bytes)));
            events.send(Event::SourceBegin { source: planned.name.clone(), expected_bytes });
            let result = self.source(planned, &mut failure);
            let error = match &result {
                Ok(source) => source.error.clone(),
                Err(e) => Some(full_text(e)),
            };
            events.send(Event::SourceEnd { source: planned.name.clone(), error });
            restored.push(result?);
        }
        let into = self.ground.path();
        crate::base::atomic::fsync_dir(into).map_err(|e| OpsError::file("make durable", into, e))?;
        Ok((restored, failure))
    }

    /// One source, in its partial folder until it is complete.
    fn source(&self, planned: &PlannedSource, failure: &mut Option<OpsError>) -> Result<RestoredSource, OpsError> {
        let begun = Instant::now();
        let into = self.ground.path();
        let mut done = RestoredSource {
            name: planned.name.clone(),
            kind: planned.kind.clone(),
            outcome: RestoreOutcome::Restored,
            path: None,
            damaged_path: None,
            error: planned.not_captured.clone(),
            streams: Vec::new(),
            tree: None,
            seconds: 0.0,
        };
        if planned.not_captured.is_some() {
            done.outcome = RestoreOutcome::NotCaptured;
            return Ok(done);
        }
        if planned.streams.is_empty() {
            return Ok(done);
        }
        let partial = ground::partial(into, planned.name.as_str());
        let make = || ground::make_dir(&partial).map_err(|e| OpsError::file("create folder", &partial, e));
        make()?;
        let mut troubles = Vec::new();
        self.trees(planned, &partial, &mut done, &mut troubles)?;
        if !troubles.is_empty() {
            let taken = |name: &str| self.plan.sources.iter().any(|s| s.name.as_str() == name);
            let damaged = ground::damaged(into, planned.name.as_str(), taken);
            self.keep(&partial, &damaged)?;
            for stream in &mut done.streams {
                stream.path = Some(damaged.clone());
            }
            done.damaged_path = Some(damaged);
            make()?;
        }
        let mut whole = planned.streams.iter().any(|s| s.kind == StreamKind::Tar) && troubles.is_empty();
        for stream in planned.streams.iter().filter(|s| s.kind != StreamKind::Tar) {
            let result = self.plain(planned, stream, &partial);
            whole |= result.is_ok();
            let (error, path) = match result {
                Ok(()) => (None, Some(stream.to.clone())),
                Err(Trouble::Stream(e)) => {
                    let text = full_text(&e);
                    troubles.push(e);
                    (Some(text), None)
                }
                Err(Trouble::Run(e)) => return Err(e),
            };
            done.streams.push(restored_stream(stream, path, error));
        }
        if whole {
            self.keep(&partial, &planned.to)?;
            done.path = Some(planned.to.clone());
        } else {
            ground::remove(&partial).map_err(|e| OpsError::file("remove", &partial, e))?;
        }
        done.outcome = match &troubles[..] {
            [] if done.misses_entries() => RestoreOutcome::Incomplete,
            [] => RestoreOutcome::Restored,
            _ => RestoreOutcome::Damaged,
        };
        done.error = troubles.first().map(|e| full_text(e));
        if failure.is_none() {
            *failure = troubles.into_iter().next();
        }
        done.seconds = begun.elapsed().as_secs_f64();
        Ok(done)
    }

    /// Gives a folder that is as complete as it will be its name.
    fn keep(&self, partial: &Path, name: &Path) -> Result<(), OpsError> {
        ground::sync(partial).map_err(|e| OpsError::file("make durable", partial, e))?;
        ground::rename_new(partial, name).map_err(|e| OpsError::file("rename the restored folder to", name, e))
    }

    /// All trees of a source, in one folder.
    fn trees(
        &self,
        planned: &PlannedSource,
        partial: &Path,
        done: &mut RestoredSource,
        troubles: &mut Vec<OpsError>,
    ) -> Result<(), OpsError> {
        let tars: Vec<&PlannedStream> = planned.streams.iter().filter(|s| s.kind == StreamKind::Tar).collect();
        if tars.is_empty() {
            return Ok(());
        }
        // An ordinary user may give files to groups of his own, and is told which owners he could not restore.
        let options = Options { privileged: self.plan.privileged, owners: true, overwrite: false };
        let mut extractor = Extractor::new(partial, options, &self.run.cancel).map_err(extract_error)?;
        for stream in tars {
            let part = self.part(planned, stream)?;
            let source = source_named(&self.reader.manifest, &planned.name)?;
            let listing = trees(self.reader, source).into_iter().find(|t| t.tar.stream.name == stream.name);
            let mut tree = TreeRun {
                part,
                listing: listing.map(|t| t.listing),
                extractor: &mut extractor,
                tell: Tell::new(&self.run.events, &planned.name),
                lost: Lost::default(),
                first: None,
            };
            tree.lay_out(stream.selection.as_ref())?;
            let TreeRun { lost, first, mut tell, .. } = tree;
            tell.rest();
            let error = first.map(|e| {
                let text = full_text(&e);
                troubles.push(e);
                text
            });
            let mut entry = restored_stream(stream, Some(stream.to.clone()), error);
            (entry.lost, entry.lost_untold) = (lost.named, lost.untold);
            done.streams.push(entry);
        }
        done.tree = Some(extractor.finish().map_err(extract_error)?);
        Ok(())
    }

    fn part(&self, planned: &PlannedSource, stream: &PlannedStream) -> Result<Part<'_>, OpsError> {
        let source = source_named(&self.reader.manifest, &planned.name)?;
        let found = source.streams.iter().find(|s| s.name == stream.name);
        let stream = found.ok_or_else(|| {
            OpsError::failed(
                format!("source {:?} has no stream {:?}", planned.name.as_str(), stream.name.as_str()),
                "make the plan anew: it is of another snapshot",
            )
        })?;
        Ok(Part { reader: self.reader, source, stream })
    }

    /// A stream that becomes a file: visible once its last byte has been verified.
    fn plain(&self, planned: &PlannedSource, stream: &PlannedStream, partial: &Path) -> Result<(), Trouble> {
        let path = partial.join(stream.name.as_str());
        let temporary = ground::partial_file(&path);
        let part = self.part(planned, stream).map_err(Trouble::Run)?;
        let mut reader = part.open().map_err(Trouble::reading)?;
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let mut file = created.map_err(|e| Trouble::writing("create", &temporary, e))?;
        let written = self.copy(planned, &mut reader, &mut file, &temporary, part.stream.length);
        drop(file);
        if written.is_err() {
            ground::remove(&temporary).map_err(|e| Trouble::writing("remove", &temporary, e))?;
            return written;
        }
        ground::rename_new(&temporary, &path).map_err(|e| Trouble::writing("rename the restored stream to", &path, e))
    }

    fn copy(
        &self,
        planned: &PlannedSource,
        reader: &mut PartReader<'_>,
        file: &mut std::fs::File,
        path: &Path,
        length: u64,
    ) -> Result<(), Trouble> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        if length > 0
            && let Err(Errno::NOSPC) = fallocate(&*file, FallocateFlags::empty(), 0, length)
        {
            return Err(Trouble::writing("write", path, Errno::NOSPC.into()));
        }
        let mut tell = Tell::new(&self.run.events, &planned.name);
        let mut buffer = vec![0; BUFFER];
        loop {
            self.run.cancel.check().map_err(|e| Trouble::Run(e.into()))?;
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => return Err(Trouble::reading(reader.failure(e))),
            };
            file.write_all(&buffer[..n]).map_err(|e| Trouble::writing("write", path, e))?;
            tell.add(n as u64);
        }
        tell.rest();
        Ok(())
    }
}

fn restored_stream(stream: &PlannedStream, path: Option<std::path::PathBuf>, error: Option<String>) -> RestoredStream {
    RestoredStream {
        name: stream.name.clone(),
        kind: stream.kind,
        path,
        bytes: stream.bytes,
        error,
        lost: Vec::new(),
        lost_untold: 0,
    }
}

/// A failure of the extractor that has nothing to do with what it read.
fn extract_error(e: ExtractError) -> OpsError {
    match e {
        ExtractError::File { action, path, source } => OpsError::file(action, path, source),
        ExtractError::Cancelled(e) => e.into(),
        other => OpsError::failed(full_text(&other), "restore into a folder of its own"),
    }
}

/// Entries that could not be read.
#[derive(Default)]
struct Lost {
    named: Vec<String>,
    untold: u64,
}

impl Lost {
    fn add(&mut self, path: &[u8]) {
        if self.named.len() < LOST { self.named.push(display(path)) } else { self.untold += 1 }
    }
}

/// One tree being laid out.
struct TreeRun<'a> {
    part: Part<'a>,
    listing: Option<Part<'a>>,
    extractor: &'a mut Extractor,
    tell: Tell<'a>,
    lost: Lost,
    /// The first damage that was met.
    first: Option<OpsError>,
}

impl TreeRun<'_> {
    fn lay_out(&mut self, selection: Option<&Selection>) -> Result<(), OpsError> {
        let Some(selection) = selection else {
            let whole = Range { offset: 0, length: self.part.stream.length };
            return self.range(whole, true);
        };
        for ranges in selection.ranges.chunks(RANGES_AT_ONCE) {
            let beginnings: Vec<(u64, u64)> = ranges.iter().map(|range| (range.offset, range.length)).collect();
            self.part.warm(&beginnings);
            ranges.iter().try_for_each(|range| self.range(*range, false))?;
        }
        self.links(selection)
    }

    /// Lays out a range of the tar. Where something cannot be read, it goes on with the next entry that the listing
    /// knows.
    fn range(&mut self, range: Range, whole: bool) -> Result<(), OpsError> {
        let mut entries: Option<Entries<'_>> = None;
        let mut start = range.offset;
        loop {
            let begin = start == range.offset && whole;
            let (at, result) = self.attempt(Range { offset: start, length: range.end() - start }, begin);
            let e = match result {
                Ok(()) => return Ok(()),
                Err(Trouble::Run(e)) => return Err(e),
                Err(Trouble::Stream(e)) => e,
            };
            self.first.get_or_insert(e);
            let Some(listing) = self.listing else { return Ok(()) };
            if entries.is_none() {
                entries = Entries::open(listing);
            }
            let Some(entries) = &mut entries else { return Ok(()) };
            let Some(next) = entries.behind(at, range, &mut self.lost) else { return Ok(()) };
            start = next;
        }
    }

    /// Lays out entries from a place in the tar, and says how far it could be read.
    fn attempt(&mut self, range: Range, whole: bool) -> (u64, Result<(), Trouble>) {
        let reader = match self.part.range(range.offset, range.length) {
            Ok(reader) => reader,
            Err(e) => return (range.offset, Err(Trouble::reading(e))),
        };
        let mut counted = Counted { inner: reader, tell: &mut self.tell, at: range.offset };
        let result =
            if whole { self.extractor.extract(&mut counted) } else { self.extractor.extract_part(&mut counted, None) };
        let result = result.map_err(|e| counted.trouble(e));
        (counted.at, result)
    }

    /// Hard links whose target is not restored: the first gets the content, the others become links to it.
    fn links(&mut self, selection: &Selection) -> Result<(), OpsError> {
        let mut laid: std::collections::HashMap<&[u8], &[u8]> = std::collections::HashMap::new();
        for link in &selection.links {
            let first = laid.get(link.target.as_slice()).copied();
            let range = match (first, link.content) {
                (Some(_), _) => link.link,
                (None, Some(content)) => content,
                (None, None) => {
                    self.first.get_or_insert_with(|| {
                        let (path, target) = (display(&link.path), display(&link.target));
                        self.part.problem(format!("/{path} is a hard link to /{target}, which is not there"))
                    });
                    self.lost.add(&link.path);
                    continue;
                }
            };
            let opened = self.part.range(range.offset, range.length);
            let result = opened.map_err(Trouble::reading).and_then(|reader| {
                let mut counted = Counted { inner: reader, tell: &mut self.tell, at: range.offset };
                let result = match first {
                    Some(target) => self.extractor.extract_link(&mut counted, target),
                    None => self.extractor.extract_part(&mut counted, Some(&link.path)),
                };
                result.map_err(|e| counted.trouble(e))
            });
            match result {
                Ok(()) => drop(laid.entry(&link.target).or_insert(&link.path)),
                Err(Trouble::Run(e)) => return Err(e),
                Err(Trouble::Stream(e)) => {
                    self.first.get_or_insert(e);
                    self.lost.add(&link.path);
                }
            }
        }
        Ok(())
    }
}

/// The entries of a listing, to find where to go on.
struct Entries<'a> {
    lines: Lines<'a>,
    peeked: Option<Listed>,
}

impl<'a> Entries<'a> {
    /// `None` when the listing cannot be read either.
    fn open(listing: Part<'a>) -> Option<Self> {
        let lines = Lines::open(listing).ok()?;
        Some(Self { lines, peeked: None })
    }

    /// Where the first entry behind `at` begins, within the range; those that `at` lies in are lost.
    fn behind(&mut self, at: u64, range: Range, lost: &mut Lost) -> Option<u64> {
        loop {
            let listed = match self.peeked.take() {
                Some(listed) => listed,
                None => self.lines.next_entry().ok()??,
            };
            if listed.entry.offset >= range.end() {
                return None;
            }
            if listed.entry.offset > at {
                let offset = listed.entry.offset;
                self.peeked = Some(listed);
                return Some(offset);
            }
            if listed.end() > at {
                lost.add(&listed.path);
            }
        }
    }
}

/// A reader that knows its place in the tar and tells how far it has come.
struct Counted<'t, 'e, 'a> {
    inner: PartReader<'a>,
    tell: &'t mut Tell<'e>,
    at: u64,
}

impl Counted<'_, '_, '_> {
    fn trouble(&mut self, e: ExtractError) -> Trouble {
        match e {
            ExtractError::Archive(_) => Trouble::reading(self.inner.tar_failure(e)),
            other => Trouble::Run(self.inner.tar_failure(other)),
        }
    }
}

impl Read for Counted<'_, '_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Counted<'_, '_, '_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.inner.consume(n);
        self.at += n as u64;
        self.tell.add(n as u64);
    }
}

/// Sends [`Event::Bytes`] now and then.
struct Tell<'a> {
    events: &'a Events,
    source: &'a SourceName,
    untold: u64,
}

impl<'a> Tell<'a> {
    fn new(events: &'a Events, source: &'a SourceName) -> Self {
        Self { events, source, untold: 0 }
    }

    fn add(&mut self, bytes: u64) {
        self.untold += bytes;
        if self.untold >= TELL_EVERY {
            self.rest();
        }
    }

    fn rest(&mut self) {
        let bytes = std::mem::take(&mut self.untold);
        if bytes > 0 {
            self.events.send(Event::Bytes { source: self.source.clone(), bytes, reused: false });
        }
    }
}
