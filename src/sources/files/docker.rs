//! Trees that only Docker can read: its archive of a path or volume, framed anew by the same writer as every other
//! tree. Nothing is remembered of them; deduplication finds what has not changed.

use super::entry::{Entry, Kind};
use super::frame::SparseMap;
use super::notes::{Note, Notes};
use super::owners::Owners;
use super::plan::{Plan, has_wildcards};
use super::stream::{LARGE, Observer, Totals, TreeStream, ends_group, weigh};
use super::view::{self, Host, Memory, View, normal};
use super::walk::{Links, Walk};
use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::place::PlaceError;
use crate::sources::extract::{Archive, TarError};
use crate::sources::{Capture, SourceError};
use globset::{GlobBuilder, GlobMatcher};
use std::collections::{BTreeSet, HashSet};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What Docker reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DockerTree<'a> {
    /// An absolute path of the host, through a helper container that has it read-only.
    Host(&'a Path),
    /// A volume, by the name that [`TreeReader::volume`] gave.
    Volume(&'a str),
}

/// A volume as Docker knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Docker's own name for it.
    pub name: String,
    /// Where its content lies on this host, if it lies there at all.
    pub mount_point: Option<PathBuf>,
}

/// Reads trees through Docker.
pub trait TreeReader: Send + Sync {
    /// A volume by the name that a policy gives it: the compose file's or Docker's own.
    fn volume(&self, name: &str) -> Result<Volume, PlaceError>;
    /// A tar of the tree as Docker's archive API gives it: the first component of every name is the tree's own last
    /// one, whatever it is called. Links are not followed. `None` when there is nothing at that path.
    fn read_tree(&self, tree: DockerTree<'_>, cancel: &Cancel) -> Result<Option<Box<dyn Read + Send>>, PlaceError>;
}

/// Trees that are looked at before they are captured are held in memory up to this size.
const MAX_VIEW: u64 = 64 << 20;

/// Without Docker at hand, `via = "docker"` is an error.
pub fn require<'d>(docker: Option<&'d dyn TreeReader>, what: &str) -> Result<&'d dyn TreeReader, SourceError> {
    docker.ok_or_else(|| {
        SourceError::hint(format!("{what} cannot be read without docker"), "start docker, or join the group docker")
    })
}

/// Whether every path can be read now.
pub fn probe(docker: Option<&dyn TreeReader>, paths: &[String], cancel: &Cancel) -> Result<(), SourceError> {
    let docker = require(docker, &paths.join(", "))?;
    for path in paths {
        let (base, _) = split_pattern(path);
        if docker.read_tree(DockerTree::Host(&base), cancel)?.is_none() {
            return Err(missing(&base));
        }
    }
    Ok(())
}

fn missing(path: &Path) -> SourceError {
    SourceError::hint(
        format!("{} does not exist", path.display()),
        "correct the path in the policy, or set optional = true when it may be missing",
    )
}

/// Captures paths of the host through Docker. Returns the totals and the paths as they were read.
pub fn capture_through_docker(
    cx: &Capture<'_>,
    source: &SourceName,
    docker: Option<&dyn TreeReader>,
    paths: &[String],
    exclude: &[String],
    notes: &mut Notes,
    observer: Observer<'_>,
) -> Result<(Totals, Vec<PathBuf>), SourceError> {
    let docker = require(docker, &paths.join(", "))?;
    let mut stream = TreeStream::begin(cx, source, false)?;
    let roots: BTreeSet<(PathBuf, Option<String>)> = paths
        .iter()
        .map(|p| match split_pattern(p) {
            (base, true) => (base, Some(p.clone())),
            (base, false) => (base, None),
        })
        .collect();
    parents(cx, roots.iter().map(|r| r.0.as_path()), &mut stream, notes)?;
    let mut ahead: Vec<_> = roots.into_iter().rev().collect();
    let mut named: Vec<PathBuf> = Vec::new();
    while let Some((root, pattern)) = ahead.pop() {
        if named.iter().any(|n| root.starts_with(n)) {
            continue;
        }
        let Some(tar) = docker.read_tree(DockerTree::Host(&root), cx.cancel)? else { return Err(missing(&root)) };
        let prefix = root.as_os_str().as_bytes().strip_prefix(b"/").unwrap_or_default();
        let reframe = Reframe { prefix, root: &root, exclude, pattern: pattern.as_deref() };
        let seen = reframe.run(cx, tar, &mut stream, notes, observer)?;
        if seen.entries == 0 {
            notes.add(Note::NoMatch, pattern.unwrap_or_default().as_bytes());
        }
        if let Some(target) = seen.link {
            let target = normal(&root.parent().unwrap_or(Path::new("/")).join(target));
            parents(cx, [target.as_path()].into_iter(), &mut stream, notes)?;
            ahead.push((target, None));
        }
        named.push(root);
    }
    stream.finish().map(|totals| (totals, named))
}

/// The longest folder before the first wildcard, and whether there is one.
fn split_pattern(path: &str) -> (PathBuf, bool) {
    if !has_wildcards(path) {
        return (PathBuf::from(path), false);
    }
    let fixed: Vec<&str> = path.split('/').take_while(|c| !has_wildcards(c)).filter(|c| !c.is_empty()).collect();
    (PathBuf::from(format!("/{}", fixed.join("/"))), true)
}

/// The folders above the roots that are not in the tar yet, as far as this process may see them.
fn parents<'p>(
    cx: &Capture<'_>,
    roots: impl Iterator<Item = &'p Path>,
    stream: &mut TreeStream<'_>,
    notes: &mut Notes,
) -> Result<(), SourceError> {
    let mut plan = Plan::host(&[]);
    for root in roots {
        let visible = root.ancestors().skip(1).find(|p| matches!(Host.kind(p), Ok(Some(view::Kind::Dir))));
        if let Some(dir) = visible {
            plan.pass(dir);
        }
    }
    let mut walk_notes = Notes::default();
    let walk = Walk {
        plan: &plan,
        owners: &Owners::host(),
        links: &mut Links::default(),
        notes: &mut walk_notes,
        cancel: cx.cancel,
        one_file_system: false,
        never: &HashSet::new(),
    };
    walk.run(&mut |found| {
        if stream.needs_parent(&found.entry.path) { stream.push(&plan, found, notes, &mut |_, _| {}) } else { Ok(()) }
    })?;
    stream.flush(&plan, notes, &mut |_, _| {})
}

/// Frames one of Docker's archives anew.
pub struct Reframe<'a> {
    /// What stands in the tar for the tree's own first component.
    pub prefix: &'a [u8],
    /// Where the tree lies, for excluding.
    pub root: &'a Path,
    /// gitignore syntax, relative to `root`.
    pub exclude: &'a [String],
    /// Only what this pattern matches, and what is below.
    pub pattern: Option<&'a str>,
}

/// What an archive of Docker's had.
#[derive(Debug, Default)]
pub struct Seen {
    pub entries: u64,
    /// The tree is a symlink and nothing else.
    pub link: Option<PathBuf>,
}

impl Reframe<'_> {
    pub fn run(
        &self,
        cx: &Capture<'_>,
        tar: impl Read,
        stream: &mut TreeStream<'_>,
        notes: &mut Notes,
        observer: Observer<'_>,
    ) -> Result<Seen, SourceError> {
        let mut archive = Archive::new(tar);
        let mut seen = Seen::default();
        let mut skipped: HashSet<Vec<u8>> = HashSet::new();
        let filter = Filter::new(self)?;
        let mut weight = 0;
        while let Some(member) = archive.next_member().map_err(|e| self.broken(e))? {
            cx.cancel.check()?;
            let mut entry = member.entry;
            let below = self.rename(&entry.path)?;
            let path = std::mem::take(&mut entry.path);
            if !filter.takes(&below, entry.kind == Kind::Dir) {
                skipped.insert(path);
                continue;
            }
            entry.path = self.place(&below);
            if let Kind::Hardlink(first) = &entry.kind {
                if skipped.contains(first) {
                    return Err(SourceError::hint(
                        format!("/{} is a hard link to a file that is left out", super::entry::display(&entry.path)),
                        "leave out both names or none of them",
                    ));
                }
                entry.kind = Kind::Hardlink(self.place(&self.rename(first)?));
            }
            if matches!(entry.kind, Kind::Fifo | Kind::CharDevice(..) | Kind::BlockDevice(..)) {
                notes.add(Note::Special(entry.kind.noun()), &entry.path);
                continue;
            }
            if below.is_empty()
                && let Kind::Symlink(target) = &entry.kind
            {
                seen.link = Some(super::plan::path_of(target));
            }
            seen.entries += 1;
            self.write(stream, &entry, member.map.as_ref(), member.payload, &mut archive, observer)?;
            let own = weigh(&entry);
            weight += own;
            if ends_group(&entry.path, own) || weight >= 8 * LARGE {
                weight = 0;
                stream.end_piece()?;
                stream.tell();
            }
        }
        stream.end_piece()?;
        stream.tell();
        Ok(seen)
    }

    fn write(
        &self,
        stream: &mut TreeStream<'_>,
        entry: &Entry,
        map: Option<&SparseMap>,
        payload: u64,
        archive: &mut Archive<impl Read>,
        observer: Observer<'_>,
    ) -> Result<(), SourceError> {
        let read = |e: std::io::Error| self.broken(TarError::Io(e));
        if entry.kind == Kind::File && entry.size < LARGE && map.is_none() {
            let bytes = view::read_limited(archive, LARGE).map_err(read)?;
            stream.content(entry, None, &bytes)?;
            observer(entry, &bytes);
            return Ok(());
        }
        let start = stream.position();
        stream.write(&super::frame::head(entry, map, false))?;
        let mut buffer = vec![0; super::stream::BUFFER];
        let mut left = payload;
        while left > 0 {
            let want = left.min(buffer.len() as u64) as usize;
            archive.read_exact(&mut buffer[..want]).map_err(read)?;
            stream.write(&buffer[..want])?;
            left -= want as u64;
        }
        stream.pad()?;
        stream.list(entry, start, stream.position() - start)
    }

    /// What stands behind the first component; refuses what would lead elsewhere.
    fn rename(&self, path: &[u8]) -> Result<Vec<u8>, SourceError> {
        let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
        if names.contains(&&b".."[..]) || path.contains(&0) {
            return Err(SourceError::problem(format!(
                "docker's archive of {} has an impossible path",
                self.root.display()
            )));
        }
        Ok(names.get(1..).unwrap_or_default().join(&b'/'))
    }

    fn place(&self, below: &[u8]) -> Vec<u8> {
        match (self.prefix.is_empty(), below.is_empty()) {
            (true, _) => below.to_vec(),
            (_, true) => self.prefix.to_vec(),
            _ => [self.prefix, b"/", below].concat(),
        }
    }

    fn broken(&self, e: TarError) -> SourceError {
        let source = match e {
            TarError::Io(e) => e,
            other => std::io::Error::other(other),
        };
        SourceError::File { action: "read docker's archive of", path: self.root.into(), source }
    }
}

/// What of a tree is taken.
struct Filter<'a> {
    root: &'a Path,
    plan: Plan,
    /// The whole pattern; everything without one.
    pattern: Option<GlobMatcher>,
    /// Its beginnings, for the folders on the way.
    ways: Vec<GlobMatcher>,
}

impl<'a> Filter<'a> {
    fn new(reframe: &Reframe<'a>) -> Result<Self, SourceError> {
        let plan = Plan::tree(reframe.root, "", reframe.exclude)?;
        let mut ways = Vec::new();
        let matcher = |pattern: &str| {
            GlobBuilder::new(pattern)
                .literal_separator(true)
                .build()
                .map(|g| g.compile_matcher())
                .map_err(|e| SourceError::problem(format!("pattern {pattern:?}: {}", e.kind())))
        };
        if let Some(pattern) = reframe.pattern {
            let slashes = pattern.match_indices('/').map(|m| m.0).filter(|at| *at > 0);
            ways = slashes.map(|at| matcher(&pattern[..at])).collect::<Result<_, _>>()?;
        }
        Ok(Filter { root: reframe.root, plan, pattern: reframe.pattern.map(matcher).transpose()?, ways })
    }

    fn takes(&self, below: &[u8], is_dir: bool) -> bool {
        if below.is_empty() {
            return self.pattern.is_none() || is_dir;
        }
        let path = self.root.join(super::plan::path_of(below));
        let upwards = || path.ancestors().take_while(|p| *p != self.root);
        let excluded = self
            .plan
            .root
            .scope
            .as_ref()
            .is_some_and(|scope| upwards().enumerate().any(|(i, p)| scope.excludes(p, i > 0 || is_dir)));
        let Some(pattern) = &self.pattern else { return !excluded };
        let matches = upwards().any(|p| pattern.is_match(p)) || (is_dir && self.ways.iter().any(|w| w.is_match(&path)));
        !excluded && matches
    }
}

/// Reads trees into memory to look at them before they are captured: configuration, not data.
pub fn view_through_docker(docker: &dyn TreeReader, paths: &[PathBuf], cancel: &Cancel) -> Result<Memory, SourceError> {
    let mut memory = Memory::default();
    let mut size = 0;
    for path in paths {
        let Some(tar) = docker.read_tree(DockerTree::Host(path), cancel)? else { continue };
        let reframe = Reframe { prefix: b"", root: path, exclude: &[], pattern: None };
        for ancestor in path.ancestors().skip(1) {
            memory.insert_if_absent(ancestor.into(), view::Kind::Dir);
        }
        let mut archive = Archive::new(tar);
        while let Some(member) = archive.next_member().map_err(|e| reframe.broken(e))? {
            cancel.check()?;
            let at = path.join(super::plan::path_of(&reframe.rename(&member.entry.path)?));
            let at = normal(&at);
            let (kind, content) = match &member.entry.kind {
                Kind::Dir => (view::Kind::Dir, Vec::new()),
                Kind::Symlink(target) => (view::Kind::Symlink(super::plan::path_of(target)), Vec::new()),
                Kind::File if member.entry.size < LARGE && member.map.is_none() => {
                    let content =
                        view::read_limited(&mut archive, LARGE).map_err(|e| reframe.broken(TarError::Io(e)))?;
                    (view::Kind::File, content)
                }
                Kind::File | Kind::Hardlink(_) => (view::Kind::File, Vec::new()),
                _ => (view::Kind::Other, Vec::new()),
            };
            size += content.len() as u64 + 256;
            if size > MAX_VIEW {
                return Err(SourceError::hint(
                    format!("{} is too large to look through", path.display()),
                    "name the folders that hold configuration only",
                ));
            }
            memory.insert(at, kind, content);
        }
    }
    Ok(memory)
}
