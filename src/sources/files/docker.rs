//! Trees that only Docker can read: its archive of a path or volume, framed anew by the same writer as every other
//! tree. Nothing is remembered of them; deduplication finds what has not changed.

use super::entry::{Entry, Kind};
use super::frame::SparseMap;
use super::notes::{Note, Notes};
use super::owners::Owners;
use super::plan::{Plan, has_wildcards};
use super::stream::{LARGE, Observer, Totals, TreeStream, ends_group, hash64, weigh};
use super::view::{self, Host, Memory, View, normal};
use super::walk::{Links, Walk};
use crate::base::cancel::Cancel;
use crate::base::ids::SourceName;
use crate::place::PlaceError;
use crate::place::helper::TreeSource;
use crate::policy::model::App;
use crate::sources::extract::{Archive, TarError};
use crate::sources::project::Places;
use crate::sources::{Capture, SourceError};
use globset::{GlobBuilder, GlobMatcher};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Trees that are looked at before they are captured are held in memory up to this size.
const MAX_VIEW: u64 = 64 << 20;

/// Trees of one policy, through the engine. It is asked when first needed.
pub struct Trees {
    places: Places,
    app: App,
}

/// A volume, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundVolume {
    /// The engine's own name for it.
    pub name: String,
    /// Where its content lies on this machine; absent when the engine is another machine's.
    pub mount_point: Option<PathBuf>,
}

impl Trees {
    pub fn new(app: &App, cancel: &Cancel) -> Self {
        Trees { places: Places::new(app, cancel), app: app.clone() }
    }

    /// A tar of a tree: the first component of every name stands for the tree itself. `None` when nothing is there.
    fn read(&self, source: &TreeSource) -> Result<Option<Box<dyn Read + Send>>, SourceError> {
        match self.places.docker()?.read_tree(source) {
            Ok(tar) => Ok(Some(tar)),
            Err(PlaceError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn read_path(&self, path: &Path) -> Result<Option<Box<dyn Read + Send>>, SourceError> {
        self.read(&TreeSource::Path(path.into()))
    }

    pub fn read_volume(&self, name: &str) -> Result<Box<dyn Read + Send>, SourceError> {
        self.read(&TreeSource::Volume(name.into()))?
            .ok_or_else(|| SourceError::problem(format!("volume {name} vanished meanwhile")))
    }

    /// A volume by the name that the compose file gives it, or by the engine's own.
    pub fn volume(&self, name: &str) -> Result<FoundVolume, SourceError> {
        let docker = self.places.docker()?;
        let project = match &self.app.project {
            Some(project) => Some(project.clone()),
            None => self.places.project()?.map(|p| p.name),
        };
        let mut found = None;
        if let Some(project) = project {
            let labels = [format!("com.docker.compose.project={project}"), format!("com.docker.compose.volume={name}")];
            found = docker.volumes(&labels)?.into_iter().next();
        }
        let volume = match found {
            Some(volume) => volume,
            None => docker.volume(name)?.ok_or_else(|| {
                SourceError::hint(
                    format!("docker has no volume {name:?}"),
                    "name it as the compose file does, or as `docker volume ls` lists it",
                )
            })?,
        };
        let here = docker.is_local() && volume.mountpoint.is_absolute();
        Ok(FoundVolume { name: volume.name, mount_point: here.then_some(volume.mountpoint) })
    }

    /// Whether every path can be read now.
    pub fn probe(&self, paths: &[String]) -> Result<(), SourceError> {
        for path in paths {
            let (base, _) = split_pattern(path);
            if self.read_path(&base)?.is_none() {
                return Err(missing(&base));
            }
        }
        Ok(())
    }
}

fn missing(path: &Path) -> SourceError {
    SourceError::hint(
        format!("{} does not exist", path.display()),
        "correct the path in the policy, or set optional = true when it may be missing",
    )
}

/// Captures paths of the host through Docker. Returns the totals and the paths as they were read.
#[expect(clippy::too_many_arguments, reason = "what a capture is made of")]
pub fn capture_through_docker(
    cx: &Capture<'_>,
    source: &SourceName,
    limit: Duration,
    trees: &Trees,
    paths: &[String],
    exclude: &[String],
    notes: &mut Notes,
    observer: Observer<'_>,
) -> Result<(Totals, Vec<PathBuf>), SourceError> {
    let mut stream = TreeStream::begin(cx, source, limit, false)?;
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
        let Some(tar) = trees.read_path(&root)? else { return Err(missing(&root)) };
        let prefix = root.as_os_str().as_bytes().strip_prefix(b"/").unwrap_or_default();
        let reframe = Reframe { prefix, root: &root, exclude, pattern: pattern.as_deref() };
        let seen = reframe.run(tar, &mut stream, notes, observer)?;
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
pub(super) fn split_pattern(path: &str) -> (PathBuf, bool) {
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
        tar: impl Read,
        stream: &mut TreeStream<'_>,
        notes: &mut Notes,
        observer: Observer<'_>,
    ) -> Result<Seen, SourceError> {
        let mut archive = Archive::new(tar);
        let mut seen = Seen::default();
        // Hashes of the paths that are left out: one of them may be the first name of a file that is not.
        let mut skipped: HashSet<u64> = HashSet::new();
        let filter = Filter::new(self)?;
        let mut weight = 0;
        while let Some(member) = archive.next_member().map_err(|e| self.broken(e))? {
            stream.check()?;
            let mut entry = member.entry;
            let below = self.rename(&entry.path)?;
            let path = std::mem::take(&mut entry.path);
            let beside = below.split(|b| *b == b'/').any(crate::sources::trees::is_staging);
            if beside || !filter.takes(&below, entry.kind == Kind::Dir) {
                skipped.insert(hash64(&path));
                continue;
            }
            entry.path = self.place(&below);
            if let Kind::Hardlink(first) = &entry.kind {
                if skipped.contains(&hash64(first)) {
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
            let start = stream.position();
            self.write(stream, &entry, member.map.as_ref(), member.payload, &mut archive, observer)?;
            stream.end_entry(&entry.path, stream.position() - start)?;
            let own = weigh(&entry);
            weight += own;
            if ends_group(&entry.path, own) || weight >= 8 * LARGE {
                weight = 0;
                stream.end_piece()?;
            }
        }
        stream.end_piece()?;
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

/// Paths as the engine sees them, read into memory when they are first asked for: configuration, not data.
pub struct DockerView<'a> {
    trees: &'a Trees,
    cancel: &'a Cancel,
    memory: RefCell<Memory>,
    loaded: RefCell<Vec<PathBuf>>,
    size: Cell<u64>,
}

impl<'a> DockerView<'a> {
    pub fn new(trees: &'a Trees, cancel: &'a Cancel) -> Self {
        DockerView { trees, cancel, memory: RefCell::default(), loaded: RefCell::default(), size: Cell::default() }
    }

    fn read_all(&self, path: &Path) -> Result<(), SourceError> {
        let Some(tar) = self.trees.read_path(path)? else { return Ok(()) };
        let reframe = Reframe { prefix: b"", root: path, exclude: &[], pattern: None };
        let mut memory = self.memory.borrow_mut();
        for ancestor in path.ancestors().skip(1) {
            memory.insert_if_absent(ancestor.into(), view::Kind::Dir);
        }
        let mut archive = Archive::new(tar);
        while let Some(member) = archive.next_member().map_err(|e| reframe.broken(e))? {
            self.cancel.check()?;
            let at = normal(&path.join(super::plan::path_of(&reframe.rename(&member.entry.path)?)));
            let (kind, content) = match &member.entry.kind {
                Kind::Dir => (view::Kind::Dir, Vec::new()),
                Kind::Symlink(target) => (view::Kind::Symlink(super::plan::path_of(target)), Vec::new()),
                Kind::File if member.entry.size < LARGE && member.map.is_none() => {
                    let read = view::read_limited(&mut archive, LARGE);
                    (view::Kind::File, read.map_err(|e| reframe.broken(TarError::Io(e)))?)
                }
                Kind::File | Kind::Hardlink(_) => (view::Kind::File, Vec::new()),
                _ => (view::Kind::Other, Vec::new()),
            };
            self.size.set(self.size.get() + content.len() as u64 + 256);
            if self.size.get() > MAX_VIEW {
                return Err(SourceError::hint(
                    format!("{} is too large to look through", path.display()),
                    "name the folders that hold configuration only",
                ));
            }
            memory.insert(at, kind, content);
        }
        Ok(())
    }
}

impl View for DockerView<'_> {
    fn look(&self, path: &Path) -> Result<(), SourceError> {
        let known = self.loaded.borrow().iter().any(|l| path.starts_with(l));
        if known {
            return Ok(());
        }
        self.loaded.borrow_mut().push(path.into());
        self.read_all(path)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<view::Kind>> {
        self.memory.borrow().kind(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.memory.borrow().read_dir(path)
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        self.memory.borrow().read(path, limit)
    }
}
