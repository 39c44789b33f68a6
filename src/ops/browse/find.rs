//! `find`: where a name occurs, in all snapshots: which versions there are, and from when to when.
//!
//! Snapshots are read newest first, one at a time. A listing that has not changed since the snapshot before is not read
//! again. Memory holds what was found, up to the caller's limit.

use crate::base::ids::{HostName, PolicyName, SnapshotId, SourceName};
use crate::base::stream::{FileType, StreamKind};
use crate::ops::access::Access;
use crate::ops::browse::list::Problem;
use crate::ops::browse::listing::{Lines, trees};
use crate::ops::browse::part::open_resolved;
use crate::ops::browse::select::source_named;
use crate::ops::{ErrorKind, OpsError, Run};
use crate::repository::chain::{Snapshot, full_text};
use crate::repository::format::{IdsTree, SourceEntry};
use crate::repository::reader::SnapshotReader;
use chrono::{DateTime, Utc};
use globset::{GlobBuilder, GlobMatcher};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What to look for.
#[derive(Debug, Clone)]
pub struct FindRequest {
    /// A pattern with `*`, `?`, `[…]`, `{…}` or `**`: of a file's name, or of its whole path when it has a slash. Anything
    /// else is found as a part of the path.
    pub pattern: String,
    /// Only in this snapshot; absent: in all of them.
    pub snapshot: Option<String>,
    /// Only in this source.
    pub source: Option<SourceName>,
    /// No more paths than this.
    pub limit: usize,
}

impl FindRequest {
    /// Everywhere, with a limit that no screen needs.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self { pattern: pattern.into(), snapshot: None, source: None, limit: 10_000 }
    }
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct FindReport {
    /// By host, policy, source and path.
    pub found: Vec<Found>,
    /// Snapshots that were looked through.
    pub searched: usize,
    /// There are more paths than the limit.
    pub cut: bool,
    /// Snapshots that could not be read. Not empty: exit 4.
    pub problems: Vec<Problem>,
}

/// One path and its versions.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    pub host: HostName,
    pub policy: PolicyName,
    pub source: SourceName,
    /// As listings have it; a stream that is not a tree has its name here.
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// Whether it is a stream of its own.
    pub stream: bool,
    /// Newest first.
    pub versions: Vec<Version>,
}

/// The path as it was in one or more snapshots that follow each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Version {
    /// The first and the last snapshot that has it so.
    pub oldest: SnapshotId,
    pub oldest_time: DateTime<Utc>,
    pub newest: SnapshotId,
    pub newest_time: DateTime<Utc>,
    pub snapshots: usize,
    #[serde(flatten)]
    pub state: State,
}

/// What makes a version.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct State {
    #[serde(rename = "type")]
    pub file_type: FileType,
    pub size: u64,
    pub mode: Option<u32>,
    /// Seconds since the epoch, and nanoseconds; a stream has none.
    pub mtime: Option<i64>,
    pub mtime_ns: Option<u32>,
    pub target: Option<String>,
    /// Of a stream.
    pub sha256: Option<String>,
}

/// Looks for a name.
pub fn find(access: &Access, request: &FindRequest, run: &Run) -> Result<FindReport, OpsError> {
    let matcher = Matcher::new(&request.pattern)?;
    let mut snapshots = match &request.snapshot {
        Some(name) => vec![access.resolve(name, run.now)?],
        None => access.snapshots(),
    };
    access.identities("looking into snapshots")?;
    // Each host's and policy's own order is what versions follow.
    snapshots.sort_by(|a, b| {
        let line = |s: &Snapshot| (s.header.host.clone(), s.header.policy.clone());
        line(a).cmp(&line(b)).then(b.header.sequence.cmp(&a.header.sequence)).then(b.header.id.cmp(&a.header.id))
    });
    let mut search = Search { request, matcher, found: BTreeMap::new(), seen: HashMap::new(), cut: false };
    let mut problems = Vec::new();
    let mut unknown = None;
    let mut searched = 0;
    for snapshot in snapshots {
        run.cancel.check()?;
        match search.snapshot(access, snapshot, run) {
            Ok(()) => searched += 1,
            Err(e) if e.kind() == ErrorKind::Integrity => problems.push(Problem {
                object: None,
                problem: full_text(&e),
                snapshot: Some(snapshot.header.id.clone()),
            }),
            // The source may have another name, or none yet, in this snapshot.
            Err(e) if e.kind() == ErrorKind::Usage => unknown = unknown.or(Some(e)),
            Err(e) => return Err(e),
        }
    }
    if searched == 0
        && problems.is_empty()
        && let Some(e) = unknown
    {
        return Err(e);
    }
    let found = search.found.into_values().collect();
    Ok(FindReport { found, searched, cut: search.cut, problems })
}

/// Finds a pattern in paths.
struct Matcher {
    /// Absent: `text` is looked for as it is.
    glob: Option<GlobMatcher>,
    whole_path: bool,
    text: Vec<u8>,
}

impl Matcher {
    fn new(pattern: &str) -> Result<Self, OpsError> {
        if pattern.is_empty() {
            return Err(OpsError::usage(
                "the pattern is empty",
                "write a part of the path, or a pattern such as *.conf",
            ));
        }
        let text = pattern.strip_prefix('/').unwrap_or(pattern);
        let glob = pattern.contains(['*', '?', '[', '{']).then(|| {
            GlobBuilder::new(text).literal_separator(true).build().map(|g| g.compile_matcher()).map_err(|e| {
                OpsError::usage(
                    format!("pattern {pattern:?}: {}", e.kind()),
                    "patterns take *, ?, [a-z], {a,b} within a name, and ** for folders at any depth",
                )
            })
        });
        // A leading slash without a pattern says where the path begins; see `matches`.
        let whole_path = pattern.contains('/');
        let text = if pattern.starts_with('/') { pattern } else { text };
        Ok(Self { glob: glob.transpose()?, whole_path, text: text.as_bytes().to_vec() })
    }

    fn matches(&self, path: &[u8]) -> bool {
        match &self.glob {
            Some(glob) => {
                let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
                glob.is_match(Path::new(OsStr::from_bytes(if self.whole_path { path } else { name })))
            }
            None if self.text.starts_with(b"/") => {
                [b"/", path].concat().windows(self.text.len()).any(|w| w == self.text)
            }
            None => path.windows(self.text.len()).any(|w| w == self.text),
        }
    }
}

/// Host, policy, source, whether a stream, path.
type Key = (HostName, PolicyName, SourceName, bool, Vec<u8>);
/// Host, policy, source.
type Place = (HostName, PolicyName, SourceName);

struct Search<'a> {
    request: &'a FindRequest,
    matcher: Matcher,
    found: BTreeMap<Key, Found>,
    /// Of each source in the snapshot that was read before (the next newer one): its listings, and what was found there.
    seen: HashMap<Place, Seen>,
    cut: bool,
}

#[derive(Default)]
struct Seen {
    snapshot: Option<SnapshotId>,
    listings: Vec<IdsTree>,
    keys: Vec<Key>,
}

impl Search<'_> {
    fn snapshot(&mut self, access: &Access, snapshot: &Snapshot, run: &Run) -> Result<(), OpsError> {
        let reader = open_resolved(access, snapshot, "looking into snapshots", run)?;
        let sources: Vec<&SourceEntry> = match &self.request.source {
            Some(name) => vec![source_named(&reader.manifest, name)?],
            None => reader.manifest.sources.iter().collect(),
        };
        sources.into_iter().try_for_each(|source| self.source(&reader, source))
    }

    fn source(&mut self, reader: &SnapshotReader, source: &SourceEntry) -> Result<(), OpsError> {
        let header = &reader.snapshot.header;
        let place = (header.host.clone(), header.policy.clone(), source.name.clone());
        let before = self.seen.remove(&place).unwrap_or_default();
        let trees = trees(reader, source);
        let listings: Vec<IdsTree> = trees.iter().map(|t| t.listing.stream.ids.clone()).collect();
        let mut keys = Vec::new();
        for stream in source.streams.iter().filter(|s| !matches!(s.kind, StreamKind::Tar | StreamKind::Listing)) {
            let path = stream.name.as_str();
            if self.matcher.matches(path.as_bytes()) {
                let state = State {
                    file_type: FileType::File,
                    size: stream.length,
                    mode: None,
                    mtime: None,
                    mtime_ns: None,
                    target: None,
                    sha256: stream.sha256.clone(),
                };
                self.take(reader, (&place, true, path.as_bytes()), path, None, state, &before, &mut keys);
            }
        }
        if !trees.is_empty() && before.listings == listings {
            for key in before.keys.iter().filter(|key| !key.3) {
                if let Some(version) = self.found.get_mut(key).and_then(|f| f.versions.last_mut()) {
                    extend(version, reader);
                }
                keys.push(key.clone());
            }
        } else {
            for tree in &trees {
                let mut lines = Lines::open(tree.listing)?;
                while let Some(listed) = lines.next_where(|path| self.matcher.matches(path))? {
                    let e = &listed.entry;
                    let state = State {
                        file_type: e.file_type,
                        size: e.size,
                        mode: Some(e.mode),
                        mtime: Some(e.mtime),
                        mtime_ns: Some(e.mtime_ns),
                        target: e.target.clone(),
                        sha256: None,
                    };
                    let at = (&place, false, listed.path.as_slice());
                    self.take(reader, at, &e.path, e.path_hex.clone(), state, &before, &mut keys);
                }
            }
        }
        self.seen.insert(place, Seen { snapshot: Some(header.id.clone()), listings, keys });
        Ok(())
    }

    /// Adds an occurrence: to the version of the next newer snapshot when nothing has changed, else as a new version.
    #[expect(clippy::too_many_arguments, reason = "one occurrence is all of this")]
    fn take(
        &mut self,
        reader: &SnapshotReader,
        (place, stream, path): (&Place, bool, &[u8]),
        shown: &str,
        path_hex: Option<String>,
        state: State,
        before: &Seen,
        keys: &mut Vec<Key>,
    ) {
        let header = &reader.snapshot.header;
        let key = (place.0.clone(), place.1.clone(), place.2.clone(), stream, path.to_vec());
        if !self.found.contains_key(&key) && self.found.len() >= self.request.limit {
            self.cut = true;
            return;
        }
        let found = self.found.entry(key.clone()).or_insert_with(|| Found {
            host: place.0.clone(),
            policy: place.1.clone(),
            source: place.2.clone(),
            path: shown.to_owned(),
            path_hex,
            stream,
            versions: Vec::new(),
        });
        keys.push(key);
        match found.versions.last_mut() {
            Some(last) if last.state == state && before.snapshot.as_ref() == Some(&last.oldest) => extend(last, reader),
            _ => found.versions.push(Version {
                oldest: header.id.clone(),
                oldest_time: header.time,
                newest: header.id.clone(),
                newest_time: header.time,
                snapshots: 1,
                state,
            }),
        }
    }
}

fn extend(version: &mut Version, reader: &SnapshotReader) {
    version.oldest = reader.snapshot.header.id.clone();
    version.oldest_time = reader.snapshot.header.time;
    version.snapshots += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_names_and_of_paths() {
        let is = |pattern: &str, path: &str| Matcher::new(pattern).unwrap().matches(path.as_bytes());
        assert!(is("*.conf", "etc/nginx/nginx.conf") && !is("*.conf", "etc/nginx.conf.d/x"));
        assert!(is("etc/*/x", "etc/a/x") && !is("etc/*/x", "etc/a/b/x") && is("/etc/**/x", "etc/a/b/x"));
        assert!(is("nginx", "etc/nginx/x") && is("ngi", "etc/nginx") && !is("nginx", "etc/apache"));
        assert!(is("/etc/ng", "etc/nginx") && !is("/nginx", "a-nginx") && is("/nginx", "etc/nginx"));
        assert!(Matcher::new("").is_err() && Matcher::new("[z").is_err());
    }
}
