//! `ls`: what is in a snapshot: its sources and their streams, or a folder in the trees of one or all sources.

use crate::base::ids::{SnapshotId, SourceName, StreamName};
use crate::base::stream::{FileType, ListingEntry, StreamKind};
use crate::base::units::total;
use crate::ops::access::Access;
use crate::ops::browse::listing::{Lines, Tree, is_below, trees};
use crate::ops::browse::part::open_snapshot;
use crate::ops::browse::select::{Selector, is_named, require_captured};
use crate::ops::{OpsError, Run};
use crate::repository::format::{SourceEntry, SourceOutcome, StreamEntry};
use crate::repository::reader::SnapshotReader;
use serde::Serialize;
use std::ffi::OsString;

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct LsRequest {
    pub snapshot: String,
    /// `nginx`, `nginx:/etc/nginx`, `/etc/nginx`; absent: the sources and their streams.
    pub target: Option<OsString>,
    /// Everything below, not only the next level.
    pub recursive: bool,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "entry", rename_all = "lowercase")]
pub enum LsEntry {
    Source {
        name: SourceName,
        kind: String,
        outcome: SourceOutcome,
        error: Option<String>,
        bytes: u64,
    },
    /// What is not a tree shows as one file.
    Stream {
        source: SourceName,
        name: StreamName,
        kind: StreamKind,
        bytes: u64,
    },
    Path {
        source: SourceName,
        #[serde(flatten)]
        file: PathInfo,
    },
}

/// A file, folder or link as a listing has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PathInfo {
    /// Without a leading slash; see [`ListingEntry::path`] for what is not UTF-8.
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    #[serde(rename = "type")]
    pub file_type: FileType,
    pub size: u64,
    /// Permission bits, as a number.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub user: Option<String>,
    pub group: Option<String>,
    /// Seconds since the epoch, and nanoseconds.
    pub mtime: i64,
    pub mtime_ns: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

impl From<ListingEntry> for PathInfo {
    fn from(e: ListingEntry) -> Self {
        Self {
            path: e.path,
            path_hex: e.path_hex,
            file_type: e.file_type,
            size: e.size,
            mode: e.mode,
            uid: e.uid,
            gid: e.gid,
            user: e.user,
            group: e.group,
            mtime: e.mtime,
            mtime_ns: e.mtime_ns,
            target: e.target,
        }
    }
}

/// How much was listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LsReport {
    pub snapshot: SnapshotId,
    pub entries: u64,
}

/// Takes the lines as they come: a tree may have millions.
pub type Visit<'v> = &'v mut dyn FnMut(LsEntry) -> Result<(), OpsError>;

/// Lists what `request` names.
pub fn ls(access: &Access, request: &LsRequest, run: &Run, visit: Visit<'_>) -> Result<LsReport, OpsError> {
    let reader = open_snapshot(access, &request.snapshot, "looking into a snapshot", run)?;
    let manifest = &reader.manifest;
    let mut entries = 0;
    let mut visit = |entry: LsEntry| {
        entries += 1;
        visit(entry)
    };
    let selector = request.target.as_deref().map(|target| Selector::parse(manifest, target)).transpose()?;
    match selector {
        None => manifest.sources.iter().try_for_each(|source| whole(&reader, source, request.recursive, &mut visit))?,
        Some(Selector::Source(source)) => {
            require_captured(manifest, source)?;
            plain_streams(source).try_for_each(|s| visit(stream_line(source, s)))?;
            let look = Look { wanted: &[], recursive: request.recursive };
            for tree in trees(&reader, source) {
                look.list(tree, &mut visit)?;
            }
        }
        Some(Selector::Stream(source, stream)) => visit(stream_line(source, stream))?,
        Some(Selector::Path(source, path)) => {
            require_captured(manifest, source)?;
            let look = Look { wanted: &path, recursive: request.recursive };
            in_sources(&reader, std::slice::from_ref(source), look, &mut visit)?;
        }
        Some(Selector::Anywhere(path)) => {
            let look = Look { wanted: &path, recursive: request.recursive };
            in_sources(&reader, &manifest.sources, look, &mut visit)?;
        }
    }
    Ok(LsReport { snapshot: manifest.snapshot.clone(), entries })
}

/// A source, its streams, and when asked for all that is in its trees.
fn whole(reader: &SnapshotReader, source: &SourceEntry, recursive: bool, visit: Visit<'_>) -> Result<(), OpsError> {
    visit(LsEntry::Source {
        name: source.name.clone(),
        kind: source.kind.clone(),
        outcome: source.outcome,
        error: source.error.clone(),
        bytes: total(source.streams.iter().filter(|s| s.kind != StreamKind::Listing).map(|s| s.length)),
    })?;
    let shown = source.streams.iter().filter(|s| s.kind != StreamKind::Listing);
    shown.map(|s| stream_line(source, s)).try_for_each(&mut *visit)?;
    if recursive {
        let look = Look { wanted: &[], recursive };
        trees(reader, source).into_iter().try_for_each(|tree| look.list(tree, visit).map(drop))?;
    }
    Ok(())
}

/// Streams that are not trees.
fn plain_streams(source: &SourceEntry) -> impl Iterator<Item = &StreamEntry> {
    source.streams.iter().filter(|s| !matches!(s.kind, StreamKind::Tar | StreamKind::Listing))
}

fn stream_line(source: &SourceEntry, stream: &StreamEntry) -> LsEntry {
    let (source, name) = (source.name.clone(), stream.name.clone());
    LsEntry::Stream { source, name, kind: stream.kind, bytes: stream.length }
}

fn in_sources(
    reader: &SnapshotReader,
    sources: &[SourceEntry],
    look: Look<'_>,
    visit: Visit<'_>,
) -> Result<(), OpsError> {
    let mut found = false;
    for tree in sources.iter().flat_map(|source| trees(reader, source)) {
        found |= look.list(tree, visit)?;
    }
    if found { Ok(()) } else { Err(no_path(&reader.manifest.snapshot, sources, look.wanted)) }
}

/// Nothing of that path is in any of these sources.
pub fn no_path(snapshot: &SnapshotId, sources: &[SourceEntry], path: &[u8]) -> OpsError {
    let path = super::display(path);
    let place = match sources {
        [one] => format!("source {:?} of snapshot {snapshot}", one.name.as_str()),
        _ => format!("snapshot {snapshot}"),
    };
    OpsError::usage(
        format!("there is no /{path} in {place}"),
        "`lifeboat ls ID` shows its sources, `lifeboat find PATTERN` looks through all snapshots",
    )
}

/// Which part of a tree is listed.
#[derive(Clone, Copy)]
struct Look<'a> {
    /// Empty: the root.
    wanted: &'a [u8],
    recursive: bool,
}

impl Look<'_> {
    /// Lists a folder's content, or the one entry that is no folder. `false` when there is no such path.
    fn list(&self, tree: Tree<'_>, visit: Visit<'_>) -> Result<bool, OpsError> {
        let source = &tree.tar.source.name;
        let mut lines = Lines::open(tree.listing)?;
        // What is wanted in bytes; an entry whose shown text was named takes the place of what was written.
        let mut wanted = self.wanted.to_vec();
        let mut found = wanted.is_empty();
        // A name that is not UTF-8 may have been given as it is shown, which only whole lines tell.
        let by_text = self.wanted.contains(&b'%');
        loop {
            let take = |path: &[u8]| by_text || path == wanted || self.is_shown(path, &wanted);
            let Some(listed) = lines.next_where(take)? else { return Ok(found) };
            let hex = listed.entry.path_hex.is_some().then_some(listed.entry.path.as_str());
            if !self.wanted.is_empty() && is_named(&listed.path, hex, self.wanted) {
                found = true;
                wanted.clone_from(&listed.path);
                if listed.is_dir() {
                    continue;
                }
                visit(LsEntry::Path { source: source.clone(), file: listed.entry.into() })?;
            } else if self.is_shown(&listed.path, &wanted) {
                found = true;
                visit(LsEntry::Path { source: source.clone(), file: listed.entry.into() })?;
            }
        }
    }

    fn is_shown(&self, path: &[u8], wanted: &[u8]) -> bool {
        let rest = if wanted.is_empty() { 0 } else { wanted.len() + 1 };
        is_below(path, wanted) && (self.recursive || !path[rest..].contains(&b'/'))
    }
}
