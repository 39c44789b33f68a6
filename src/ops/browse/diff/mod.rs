//! `diff`: two snapshots against each other: sources, paths in trees, streams, facts.
//!
//! Listings are merged as they pass, so a million entries need no memory. A folder of which only the time differs is
//! left out: whatever came or went in it is told already.

mod content;

pub use content::Content;

use crate::base::ids::{SourceName, StreamName};
use crate::base::stream::{FileType, StreamKind};
use crate::base::units::total;
use crate::ops::access::Access;
use crate::ops::browse::facts::{self, FactChange};
use crate::ops::browse::list::SnapshotLine;
use crate::ops::browse::listing::{Listed, Sorted, Tree, compare, is_below, trees};
use crate::ops::browse::ls::PathInfo;
use crate::ops::browse::part::open_resolved;
use crate::ops::browse::select::{normal, source_named};
use crate::ops::{OpsError, Run};
use crate::repository::format::{SourceEntry, SourceOutcome, StreamEntry};
use crate::repository::reader::SnapshotReader;
use content::Contents;
use serde::Serialize;
use serde_json::Value;
use std::cmp::Ordering;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// More differences in one source's facts are counted, not told.
const FACTS: u64 = 1_000;

/// What to compare.
#[derive(Debug, Clone)]
pub struct DiffRequest {
    pub before: String,
    pub after: String,
    /// Only this source.
    pub source: Option<SourceName>,
    /// Only this path and what is below it.
    pub path: Option<OsString>,
    /// Bytes that may be read to find out whether contents of equal size differ.
    pub compare_bytes: u64,
}

impl DiffRequest {
    /// Everything of both, comparing contents up to 64 MiB.
    pub fn new(before: impl Into<String>, after: impl Into<String>) -> Self {
        Self { before: before.into(), after: after.into(), source: None, path: None, compare_bytes: 64 << 20 }
    }
}

/// In what an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    Type,
    Size,
    Content,
    Mode,
    Owner,
    Time,
    Target,
    /// Extended attributes or ACLs.
    Attributes,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// Only one of the snapshots has the source; what is in it is not told one by one.
    SourceAdded {
        source: SourceName,
        kind: String,
        bytes: u64,
    },
    SourceRemoved {
        source: SourceName,
        kind: String,
        bytes: u64,
    },
    /// Its capture failed in one of the snapshots.
    SourceOutcome {
        source: SourceName,
        before: SourceOutcome,
        after: SourceOutcome,
    },
    Added {
        source: SourceName,
        #[serde(flatten)]
        file: PathInfo,
    },
    Removed {
        source: SourceName,
        #[serde(flatten)]
        file: PathInfo,
    },
    Changed {
        source: SourceName,
        aspects: Vec<Aspect>,
        content: Content,
        before: PathInfo,
        after: PathInfo,
    },
    /// A stream that is not a tree. An absent length: it is not there.
    Stream {
        source: SourceName,
        stream: StreamName,
        before: Option<u64>,
        after: Option<u64>,
    },
    Fact {
        source: SourceName,
        fact: String,
        before: Option<Value>,
        after: Option<Value>,
    },
}

/// How many differences a source has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceDiff {
    pub name: SourceName,
    pub kind: String,
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    pub streams: u64,
    pub facts: u64,
    /// Differences of facts beyond the thousand that are told.
    pub facts_untold: u64,
    /// Entries of equal size and time whose content was not compared, because the budget was spent.
    pub uncompared: u64,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

/// What a comparison came to; the differences themselves went to the visitor.
#[derive(Debug, Clone, Serialize)]
pub struct DiffReport {
    pub before: SnapshotLine,
    pub after: SnapshotLine,
    pub sources: Vec<SourceDiff>,
    pub same: bool,
}

/// Takes the differences as they are found: by source, in the order of the later snapshot.
pub type Visit<'v> = &'v mut dyn FnMut(Change) -> Result<(), OpsError>;

/// Compares two snapshots.
pub fn diff(access: &Access, request: &DiffRequest, run: &Run, visit: Visit<'_>) -> Result<DiffReport, OpsError> {
    let what = "comparing snapshots";
    let (a, b) = (access.resolve(&request.before, run.now)?, access.resolve(&request.after, run.now)?);
    let (before, after) = (open_resolved(access, a, what, run)?, open_resolved(access, b, what, run)?);
    let path = request.path.as_ref().map(|p| normal(p.as_bytes())).transpose()?.unwrap_or_default();
    if let Some(name) = &request.source
        && before.manifest.sources.iter().all(|s| s.name != *name)
    {
        source_named(&after.manifest, name)?;
    }
    let mut differ = false;
    let mut visit = |change: Change| {
        differ = true;
        visit(change)
    };
    let tmp = access.state.as_ref().map_or_else(std::env::temp_dir, |s| s.dir().to_owned());
    let mut comparison =
        Comparison { before: &before, after: &after, path, budget: request.compare_bytes, tmp, visit: &mut visit };
    let mut sources = Vec::new();
    let wanted = |s: &&SourceEntry| request.source.as_ref().is_none_or(|name| s.name == *name);
    let named =
        |reader: &'_ SnapshotReader, name: &SourceName| reader.manifest.sources.iter().position(|s| s.name == *name);
    for source in after.manifest.sources.iter().filter(wanted) {
        let old = named(&before, &source.name).map(|at| &before.manifest.sources[at]);
        sources.push(comparison.source(source, old, Some(source))?);
    }
    for source in before.manifest.sources.iter().filter(wanted) {
        if named(&after, &source.name).is_none() {
            sources.push(comparison.source(source, Some(source), None)?);
        }
    }
    let (before, after) = (SnapshotLine::in_chain(access, a), SnapshotLine::in_chain(access, b));
    Ok(DiffReport { before, after, sources, same: !differ })
}

struct Comparison<'a, 'v> {
    before: &'a SnapshotReader,
    after: &'a SnapshotReader,
    path: Vec<u8>,
    budget: u64,
    tmp: PathBuf,
    visit: Visit<'v>,
}

fn plain_bytes(source: Option<&SourceEntry>) -> u64 {
    let streams = source.into_iter().flat_map(|s| &s.streams);
    total(streams.filter(|s| s.kind != StreamKind::Listing).map(|s| s.length))
}

impl<'a> Comparison<'a, '_> {
    fn source(
        &mut self,
        shown: &SourceEntry,
        before: Option<&'a SourceEntry>,
        after: Option<&'a SourceEntry>,
    ) -> Result<SourceDiff, OpsError> {
        let (name, kind) = (shown.name.clone(), shown.kind.clone());
        let (bytes_before, bytes_after) = (plain_bytes(before), plain_bytes(after));
        let mut counts = SourceDiff {
            name: name.clone(),
            kind: kind.clone(),
            added: 0,
            removed: 0,
            changed: 0,
            streams: 0,
            facts: 0,
            facts_untold: 0,
            uncompared: 0,
            bytes_before,
            bytes_after,
        };
        match (before, after) {
            (Some(a), Some(b)) => {
                if a.outcome != b.outcome {
                    (self.visit)(Change::SourceOutcome { source: name, before: a.outcome, after: b.outcome })?;
                }
                if a.outcome != SourceOutcome::Failed && b.outcome != SourceOutcome::Failed {
                    self.both(a, b, &mut counts)?;
                }
            }
            (None, _) => (self.visit)(Change::SourceAdded { source: name, kind, bytes: bytes_after })?,
            (_, None) => (self.visit)(Change::SourceRemoved { source: name, kind, bytes: bytes_before })?,
        }
        Ok(counts)
    }

    fn both(&mut self, a: &'a SourceEntry, b: &'a SourceEntry, counts: &mut SourceDiff) -> Result<(), OpsError> {
        let (old, new) = (trees(self.before, a), trees(self.after, b));
        for tree in &new {
            if let Some(before) = old.iter().find(|t| t.tar.stream.name == tree.tar.stream.name) {
                self.trees(*before, *tree, counts)?;
            }
        }
        if self.path.is_empty() {
            self.streams(a, b, counts)?;
            self.facts(a, b, counts)?;
        }
        Ok(())
    }

    /// Streams that are no trees, and trees that only one side has.
    fn streams(&mut self, a: &SourceEntry, b: &SourceEntry, counts: &mut SourceDiff) -> Result<(), OpsError> {
        let find = |list: &'_ SourceEntry, name: &StreamName| list.streams.iter().find(|s| s.name == *name).cloned();
        let shown = |s: &&StreamEntry| s.kind != StreamKind::Listing;
        let gone = a.streams.iter().filter(|s| b.streams.iter().all(|t| t.name != s.name));
        for stream in b.streams.iter().chain(gone).filter(shown) {
            let (before, after) = (find(a, &stream.name), find(b, &stream.name));
            let same = match (&before, &after) {
                (Some(x), Some(y)) if x.kind == StreamKind::Tar && y.kind == StreamKind::Tar => true,
                (Some(x), Some(y)) => x.ids == y.ids || (x.sha256.is_some() && x.sha256 == y.sha256),
                _ => false,
            };
            if !same {
                counts.streams += 1;
                let (source, stream) = (b.name.clone(), stream.name.clone());
                let (before, after) = (before.map(|s| s.length), after.map(|s| s.length));
                (self.visit)(Change::Stream { source, stream, before, after })?;
            }
        }
        Ok(())
    }

    fn facts(&mut self, a: &SourceEntry, b: &SourceEntry, counts: &mut SourceDiff) -> Result<(), OpsError> {
        let source = &b.name;
        let visit = &mut self.visit;
        facts::compare(&a.facts, &b.facts, &mut |FactChange { fact, before, after }| {
            counts.facts += 1;
            if counts.facts > FACTS {
                counts.facts_untold += 1;
                return Ok(());
            }
            visit(Change::Fact { source: source.clone(), fact, before, after })
        })
    }

    fn trees(&mut self, a: Tree<'a>, b: Tree<'a>, counts: &mut SourceDiff) -> Result<(), OpsError> {
        if a.tar.stream.ids == b.tar.stream.ids && a.listing.stream.ids == b.listing.stream.ids {
            return Ok(());
        }
        let mut old = Sorted::open(a.listing, &self.tmp)?;
        let mut new = Sorted::open(b.listing, &self.tmp)?;
        let in_order = old.is_stored_order() && new.is_stored_order();
        let mut contents = Contents::open(a, b, in_order, self.budget)?;
        let (mut x, mut y) = (old.next_entry()?, new.next_entry()?);
        loop {
            let order = match (&x, &y) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(x), Some(y)) => compare(&x.path, &y.path),
            };
            let source = b.tar.source.name.clone();
            match order {
                Ordering::Less => {
                    if let Some(gone) = std::mem::replace(&mut x, old.next_entry()?).filter(|l| self.is_wanted(l)) {
                        counts.removed += 1;
                        (self.visit)(Change::Removed { source, file: gone.entry.into() })?;
                    }
                }
                Ordering::Greater => {
                    if let Some(added) = std::mem::replace(&mut y, new.next_entry()?).filter(|l| self.is_wanted(l)) {
                        counts.added += 1;
                        (self.visit)(Change::Added { source, file: added.entry.into() })?;
                    }
                }
                Ordering::Equal => {
                    let pair =
                        (std::mem::replace(&mut x, old.next_entry()?), std::mem::replace(&mut y, new.next_entry()?));
                    if let (Some(before), Some(after)) = pair
                        && self.is_wanted(&after)
                    {
                        self.pair(&mut contents, source, before, after, counts)?;
                    }
                }
            }
        }
        self.budget = contents.budget();
        Ok(())
    }

    fn is_wanted(&self, listed: &Listed) -> bool {
        listed.path == self.path || is_below(&listed.path, &self.path)
    }

    fn pair(
        &mut self,
        contents: &mut Contents<'_>,
        source: SourceName,
        before: Listed,
        after: Listed,
        counts: &mut SourceDiff,
    ) -> Result<(), OpsError> {
        let (a, b) = (&before.entry, &after.entry);
        let mut aspects = Vec::new();
        let mut differs = |aspect, differs: bool| aspects.extend(differs.then_some(aspect));
        let same_type = a.file_type == b.file_type;
        differs(Aspect::Type, !same_type);
        differs(Aspect::Size, same_type && a.size != b.size);
        differs(Aspect::Mode, same_type && a.mode != b.mode);
        differs(Aspect::Owner, (a.uid, a.gid) != (b.uid, b.gid));
        differs(Aspect::Time, (a.mtime, a.mtime_ns) != (b.mtime, b.mtime_ns));
        differs(Aspect::Target, same_type && (&a.target, &a.target_hex) != (&b.target, &b.target_hex));
        let is_file = a.file_type == FileType::File;
        let mut content = Content::None;
        if same_type && is_file && a.size != b.size {
            content = Content::Different;
        } else if same_type {
            if contents.same_bytes(&before, &after)? {
                content = if is_file { Content::Same } else { Content::None };
            } else {
                let found = contents.compare(&before, &after)?;
                content = found.content;
                aspects.extend(found.attributes.then_some(Aspect::Attributes));
            }
        }
        if content == Content::Different {
            aspects.insert(usize::from(aspects.first() == Some(&Aspect::Size)), Aspect::Content);
        }
        if aspects.is_empty() && content == Content::Unknown {
            counts.uncompared += 1;
        }
        let only_time = aspects == [Aspect::Time] && b.file_type == FileType::Dir;
        if aspects.is_empty() || only_time {
            return Ok(());
        }
        counts.changed += 1;
        let (before, after) = (before.entry.into(), after.entry.into());
        (self.visit)(Change::Changed { source, aspects, content, before, after })
    }
}
