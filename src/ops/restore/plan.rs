//! The plan: what goes where, and whether there is room. Pure data; `--dry-run` prints it, the run executes it.

use super::ground;
use super::selection::{self, Need, Selection};
use crate::base::ids::{HostName, PolicyName, SnapshotId, SourceName, StreamName};
use crate::base::stream::StreamKind;
use crate::base::units::{human_size, total};
use crate::ops::access::Access;
use crate::ops::browse::display;
use crate::ops::browse::listing::{Tree, trees};
use crate::ops::browse::part::open_snapshot;
use crate::ops::browse::select::{normal, require_captured, source_named};
use crate::ops::{ErrorKind, OpsError, Run};
use crate::repository::chain::full_text;
use crate::repository::format::{SourceEntry, SourceOutcome};
use crate::repository::reader::SnapshotReader;
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// What to restore.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    pub snapshot: String,
    /// Only these sources; empty for all.
    pub only: Vec<SourceName>,
    /// Only these paths of trees, and what is below them; empty for everything.
    pub paths: Vec<OsString>,
    pub into: PathBuf,
    /// Device nodes, setuid and setgid bits, capabilities and other attributes of the system too.
    pub privileged: bool,
}

impl RestoreRequest {
    /// All of a snapshot.
    pub fn new(snapshot: impl Into<String>, into: impl Into<PathBuf>) -> Self {
        Self { snapshot: snapshot.into(), only: Vec::new(), paths: Vec::new(), into: into.into(), privileged: false }
    }
}

/// What a restore will do.
#[derive(Debug, Clone, Serialize)]
pub struct RestorePlan {
    pub snapshot: SnapshotId,
    pub time: DateTime<Utc>,
    pub host: HostName,
    pub policy: PolicyName,
    pub into: PathBuf,
    pub sources: Vec<PlannedSource>,
    /// Room that it takes, and room that there is.
    pub bytes_needed: u64,
    pub bytes_free: u64,
    pub inodes_needed: u64,
    /// Absent where the file system makes them as it needs them.
    pub inodes_free: Option<u64>,
    pub privileged: bool,
    /// What will be different from what was captured.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct PlannedSource {
    pub name: SourceName,
    pub kind: String,
    pub to: PathBuf,
    /// Why there is nothing to restore.
    pub not_captured: Option<String>,
    pub streams: Vec<PlannedStream>,
}

#[derive(Debug, Clone, Serialize)]
pub struct PlannedStream {
    pub name: StreamName,
    pub kind: StreamKind,
    /// The file, or the folder in which a tree is laid out.
    pub to: PathBuf,
    /// Bytes of the stream that will be read.
    pub bytes: u64,
    /// Of a tree, where its listing could be read.
    pub entries: Option<u64>,
    /// Absent: all of it.
    #[serde(skip)]
    pub(super) selection: Option<Selection>,
}

/// Makes the plan, and refuses what cannot be done: a folder that is not empty, a source or path that is not there, too
/// little room.
pub fn plan(access: &Access, request: &RestoreRequest, run: &Run) -> Result<RestorePlan, OpsError> {
    let into = std::path::absolute(&request.into).map_err(|e| OpsError::file("find", &request.into, e))?;
    ground::check_empty(&into, ground::is_partial)?;
    let reader = open_snapshot(access, &request.snapshot, "restoring", run)?;
    let manifest = &reader.manifest;
    let mut wanted: Vec<&SourceEntry> = Vec::new();
    for name in &request.only {
        let source = source_named(manifest, name)?;
        if wanted.iter().all(|s| s.name != source.name) {
            wanted.push(source);
        }
    }
    if wanted.is_empty() {
        wanted = manifest.sources.iter().collect();
    }
    let paths: Vec<Vec<u8>> = request.paths.iter().map(|p| normal(p.as_bytes())).collect::<Result<_, _>>()?;
    let mut planner = Planner {
        reader: &reader,
        into: &into,
        need: Need::default(),
        found: vec![false; paths.len()],
        paths,
        notes: notes(&reader),
    };
    let wanted_failed = wanted.iter().copied().find(|s| s.outcome == SourceOutcome::Failed);
    let mut sources = Vec::new();
    for source in wanted {
        run.cancel.check()?;
        sources.extend(planner.source(source)?);
    }
    let Planner { need, found, paths, notes, .. } = planner;
    if let Some(at) = found.iter().position(|found| !found) {
        return Err(not_found(&reader, &request.only, &paths[at])?);
    }
    if let Some(first) = wanted_failed.filter(|_| sources.iter().all(|s| s.not_captured.is_some())) {
        require_captured(manifest, first)?;
    }
    let room = ground::room(&into)?;
    let plan = RestorePlan {
        snapshot: manifest.snapshot.clone(),
        time: manifest.time,
        host: manifest.host.clone(),
        policy: manifest.policy.clone(),
        into,
        sources,
        bytes_needed: need.bytes,
        bytes_free: room.bytes,
        inodes_needed: need.inodes,
        inodes_free: room.inodes,
        privileged: request.privileged,
        notes,
    };
    plan.check_room()?;
    Ok(plan)
}

fn notes(reader: &SnapshotReader) -> Vec<String> {
    let mut notes = Vec::new();
    if !rustix::process::geteuid().is_root() {
        notes.push("owners are not restored: only root may give files away".to_owned());
    }
    for problem in &reader.index_problems {
        notes.push(format!("{}; other index objects stood in for it", full_text(problem)));
    }
    notes
}

impl RestorePlan {
    /// Streams that will be written or laid out.
    pub fn streams(&self) -> impl Iterator<Item = &PlannedStream> {
        self.sources.iter().flat_map(|s| &s.streams)
    }

    pub(super) fn check_room(&self) -> Result<(), OpsError> {
        if self.bytes_needed > self.bytes_free {
            return Err(OpsError::failed(
                format!(
                    "restoring into {} takes {}, and {} are free there",
                    self.into.display(),
                    human_size(self.bytes_needed),
                    human_size(self.bytes_free)
                ),
                "free space there, name a folder on another disk, or restore less with --only or --path",
            ));
        }
        if let Some(free) = self.inodes_free.filter(|free| *free < self.inodes_needed) {
            return Err(OpsError::failed(
                format!(
                    "restoring into {} takes {} inodes, and {free} are free there",
                    self.into.display(),
                    self.inodes_needed
                ),
                "name a folder on another disk, or restore less with --only or --path",
            ));
        }
        Ok(())
    }
}

struct Planner<'a> {
    reader: &'a SnapshotReader,
    into: &'a std::path::Path,
    paths: Vec<Vec<u8>>,
    found: Vec<bool>,
    need: Need,
    notes: Vec<String>,
}

impl Planner<'_> {
    /// What is done for a source; nothing when none of the wanted paths is in it.
    fn source(&mut self, source: &SourceEntry) -> Result<Option<PlannedSource>, OpsError> {
        let to = self.into.join(source.name.as_str());
        let failed = source.outcome == SourceOutcome::Failed;
        let not_captured = failed.then(|| source.error.clone().unwrap_or_else(|| "its capture failed".to_owned()));
        let mut streams = Vec::new();
        let trees = trees(self.reader, source);
        for stream in source.streams.iter().filter(|s| s.kind != StreamKind::Listing) {
            let tree = trees.iter().find(|t| t.tar.stream.name == stream.name);
            if stream.kind == StreamKind::Tar {
                let Some((bytes, entries, selection)) = self.tree(tree.copied(), stream.length)? else { continue };
                let (name, to) = (stream.name.clone(), to.clone());
                streams.push(PlannedStream { name, kind: stream.kind, to, bytes, entries, selection });
            } else if self.paths.is_empty() {
                self.need.bytes = self.need.bytes.saturating_add(stream.length);
                self.need.inodes = self.need.inodes.saturating_add(1);
                streams.push(PlannedStream {
                    name: stream.name.clone(),
                    kind: stream.kind,
                    to: to.join(stream.name.as_str()),
                    bytes: stream.length,
                    entries: None,
                    selection: None,
                });
            }
        }
        if streams.is_empty() && !self.paths.is_empty() {
            return Ok(None);
        }
        let (name, kind) = (source.name.clone(), source.kind.clone());
        Ok(Some(PlannedSource { name, kind, to, not_captured, streams }))
    }

    /// Bytes to read, entries, and which; `None` when nothing of it is wanted.
    #[expect(clippy::type_complexity, reason = "used by one caller, right above")]
    fn tree(
        &mut self,
        tree: Option<Tree<'_>>,
        length: u64,
    ) -> Result<Option<(u64, Option<u64>, Option<Selection>)>, OpsError> {
        if self.paths.is_empty() {
            let need = match tree.map(selection::need_of) {
                Some(Ok(need)) => Some(need),
                // A damaged listing costs the estimate, not the tree.
                Some(Err(e)) if e.kind() == ErrorKind::Integrity => {
                    self.notes.push(format!("{}; its tree is restored all the same", full_text(&e)));
                    None
                }
                Some(Err(e)) => return Err(e),
                None => None,
            };
            self.need.bytes = self.need.bytes.saturating_add(need.map_or(length, |n| n.bytes));
            self.need.inodes = self.need.inodes.saturating_add(need.map_or(0, |n| n.inodes));
            return Ok(Some((length, need.map(|n| n.entries), None)));
        }
        let Some(tree) = tree else { return Ok(None) };
        let (selection, need) = selection::select(tree, &self.paths)?;
        for (all, here) in self.found.iter_mut().zip(&selection.found) {
            *all |= here;
        }
        if !selection.found.contains(&true) {
            return Ok(None);
        }
        self.need.bytes = self.need.bytes.saturating_add(need.bytes);
        self.need.inodes = self.need.inodes.saturating_add(need.inodes);
        let links = selection.links.iter().filter_map(|l| l.content);
        let bytes = total(selection.ranges.iter().copied().chain(links).map(|r| r.length));
        Ok(Some((bytes, Some(need.entries), Some(selection))))
    }
}

/// Why a path is not restored: it lies behind a link, its source failed, or there is no such thing.
fn not_found(reader: &SnapshotReader, only: &[SourceName], path: &[u8]) -> Result<OpsError, OpsError> {
    let snapshot = &reader.manifest.snapshot;
    let mut sources = reader.manifest.sources.iter().filter(|s| only.is_empty() || only.contains(&s.name));
    for tree in sources.clone().flat_map(|source| trees(reader, source)) {
        if let Some(link) = crate::ops::browse::cat::step(tree, path)? {
            let target = link.entry.target.as_deref().unwrap_or_default();
            let (path, at) = (display(path), display(&link.path));
            return Ok(OpsError::usage(
                format!("/{path} lies behind the symlink /{at} in snapshot {snapshot}"),
                format!("name the path that it leads to: {target}"),
            ));
        }
    }
    let hint = match sources.find(|s| s.outcome == SourceOutcome::Failed) {
        Some(failed) => {
            format!("source {} failed when the snapshot was taken; `lifeboat list` shows others", failed.name)
        }
        None => "`lifeboat find PATTERN` looks through all snapshots; dumps are restored with --only".to_owned(),
    };
    Ok(OpsError::usage(format!("there is no /{} in snapshot {snapshot}", display(path)), hint))
}
