//! Which paths a capture takes: named paths and globs, resolved to the places where they really lie.
//!
//! A symlink on the way to a named path (its last component too) is taken as a link, and what it points to as a named
//! path of its own: so both come back, and extraction need never follow a link. The folders above a named path are
//! taken with their metadata but without their other content, so that a restore into an empty folder makes them anew
//! with the right owners and modes.

use super::notes::{Note, Notes};
use super::view::View;
use crate::sources::SourceError;
use globset::{GlobBuilder, GlobMatcher};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// As the kernel's own limit.
const MAX_LINKS: usize = 40;

/// What holds below one named path.
#[derive(Debug)]
pub struct Scope {
    exclude: Option<Gitignore>,
}

impl Scope {
    /// Whether the policy leaves `path` (as it lies on disk) out.
    pub fn excludes(&self, path: &Path, is_dir: bool) -> bool {
        self.exclude.as_ref().is_some_and(|e| e.matched(path, is_dir).is_ignore())
    }

    /// Whether anything is left out at all.
    pub fn has_excludes(&self) -> bool {
        self.exclude.is_some()
    }
}

/// A component of a path that is taken.
#[derive(Debug, Default)]
pub struct Node {
    pub children: BTreeMap<Vec<u8>, Node>,
    /// Set where a named path lies: everything below is taken.
    pub scope: Option<Arc<Scope>>,
}

/// The paths of one walk.
#[derive(Debug)]
pub struct Plan {
    /// Where the walk begins on disk: `/`, or a volume's mount point.
    pub real: PathBuf,
    /// What stands in the tar in its place: nothing, or a volume's name.
    pub prefix: Vec<u8>,
    pub root: Node,
    exclude: Vec<String>,
    /// Named paths as they were resolved.
    pub named: Vec<PathBuf>,
}

impl Plan {
    /// A plan for paths of this host. `exclude` is in gitignore's syntax, relative to each named path.
    pub fn host(exclude: &[String]) -> Self {
        Plan {
            real: "/".into(),
            prefix: Vec::new(),
            root: Node::default(),
            exclude: exclude.to_vec(),
            named: Vec::new(),
        }
    }

    /// A plan for everything under `real`, which stands in the tar as `prefix`.
    pub fn tree(real: &Path, prefix: &str, exclude: &[String]) -> Result<Self, SourceError> {
        let mut plan = Plan { real: real.into(), prefix: prefix.into(), ..Plan::host(exclude) };
        plan.root.scope = Some(plan.scope(real)?);
        plan.named.push(real.into());
        Ok(plan)
    }

    /// The paths that hold all that is taken: named ones, without those that lie below another.
    pub fn taken(&self) -> Vec<PathBuf> {
        let mut taken: Vec<PathBuf> = Vec::new();
        let mut named: Vec<&PathBuf> = self.named.iter().collect();
        named.sort();
        for path in named {
            if !taken.iter().any(|t| path.starts_with(t)) {
                taken.push(path.clone());
            }
        }
        taken
    }

    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    fn scope(&self, root: &Path) -> Result<Arc<Scope>, SourceError> {
        if self.exclude.is_empty() {
            return Ok(Arc::new(Scope { exclude: None }));
        }
        let bad = |problem: ignore::Error| {
            SourceError::hint(format!("exclude: {problem}"), "exclude takes patterns in the syntax of .gitignore")
        };
        let mut builder = GitignoreBuilder::new(root);
        for pattern in &self.exclude {
            builder.add_line(None, pattern).map_err(bad)?;
        }
        Ok(Arc::new(Scope { exclude: Some(builder.build().map_err(bad)?) }))
    }

    /// Adds every path that the policy names. A path without wildcards that does not exist is an error; a pattern
    /// that matches nothing is noted.
    pub fn add_all(&mut self, view: &dyn View, paths: &[String], notes: &mut Notes) -> Result<(), SourceError> {
        for path in paths {
            let literal = Path::new(path);
            view.look(&super::docker::split_pattern(path).0)?;
            let found = view.kind(literal).map_err(|source| unreadable(literal, source))?;
            if found.is_some() || !has_wildcards(path) {
                self.add(view, literal, notes)?;
                continue;
            }
            let matches = expand(view, path)?;
            if matches.is_empty() {
                notes.add(Note::NoMatch, path.as_bytes());
            }
            for path in matches {
                self.add(view, &path, notes)?;
            }
        }
        if self.is_empty() {
            return Err(SourceError::hint(
                format!("nothing matches {}", paths.join(", ")),
                "name paths that exist, or switch the source off",
            ));
        }
        Ok(())
    }

    /// Adds one path, which must exist.
    pub fn add(&mut self, view: &dyn View, path: &Path, notes: &mut Notes) -> Result<(), SourceError> {
        let (links, end) = resolve(view, path)?;
        for link in &links {
            self.node(link);
        }
        match end {
            End::At(real) => {
                let scope = self.scope(&real)?;
                self.node(&real).scope = Some(scope);
                if !self.named.contains(&real) {
                    self.named.push(real);
                }
                Ok(())
            }
            End::Missing if !links.is_empty() => {
                notes.add(Note::Dangling, path.as_os_str().as_bytes());
                if let Some(first) = links.into_iter().next() {
                    self.named.push(first);
                }
                Ok(())
            }
            End::Missing => Err(SourceError::hint(
                format!("{} does not exist", path.display()),
                "correct the path in the policy, or set optional = true when it may be missing",
            )),
        }
    }

    /// Takes a folder and those above it without their content.
    pub fn pass(&mut self, path: &Path) {
        self.node(path);
    }

    fn node(&mut self, path: &Path) -> &mut Node {
        let mut node = &mut self.root;
        for component in path.components() {
            if let Component::Normal(name) = component {
                node = node.children.entry(name.as_bytes().to_vec()).or_default();
            }
        }
        node
    }
}

pub(super) fn unreadable(path: &Path, source: io::Error) -> SourceError {
    SourceError::File { action: "read", path: path.into(), source }
}

enum End {
    At(PathBuf),
    Missing,
}

/// Walks a path component by component: the symlinks met on the way, and where it ends.
fn resolve(view: &dyn View, path: &Path) -> Result<(Vec<PathBuf>, End), SourceError> {
    let mut links = Vec::new();
    let mut here = PathBuf::from("/");
    let mut ahead: VecDeque<OsString> = path.components().map(|c| c.as_os_str().to_owned()).collect();
    while let Some(name) = ahead.pop_front() {
        match name.as_bytes() {
            b"/" => {
                here = "/".into();
                continue;
            }
            b"." => continue,
            b".." => {
                here.pop();
                continue;
            }
            _ => {}
        }
        let next = here.join(&name);
        match view.kind(&next).map_err(|source| unreadable(&next, source))? {
            None => return Ok((links, End::Missing)),
            Some(super::view::Kind::Symlink(target)) => {
                if links.len() >= MAX_LINKS {
                    return Err(unreadable(path, io::Error::from(rustix::io::Errno::LOOP)));
                }
                links.push(next);
                for component in target.components().rev() {
                    ahead.push_front(component.as_os_str().to_owned());
                }
            }
            Some(_) => here = next,
        }
    }
    Ok((links, End::At(here)))
}

/// Whether a path is a pattern.
pub fn has_wildcards(path: &str) -> bool {
    path.contains(['*', '?', '[', '{'])
}

/// The paths that an absolute pattern matches, in order of their bytes. `*` does not match `/` but does match names
/// that begin with a dot; `**` matches folders at any depth, links not followed.
pub fn expand(view: &dyn View, pattern: &str) -> Result<Vec<PathBuf>, SourceError> {
    let mut found = vec![PathBuf::from("/")];
    for component in pattern.split('/').filter(|c| !c.is_empty() && *c != ".") {
        let mut next = Vec::new();
        if component == "**" {
            for dir in found {
                folders_below(view, dir, &mut next)?;
            }
        } else if has_wildcards(component) {
            let matcher = component_matcher(component)?;
            for dir in found {
                let names = children(view, &dir)?;
                next.extend(names.into_iter().filter(|n| matcher.is_match(Path::new(n))).map(|n| dir.join(n)));
            }
        } else {
            for dir in found {
                let path = dir.join(component);
                if view.kind(&path).map_err(|e| unreadable(&path, e))?.is_some() {
                    next.push(path);
                }
            }
        }
        next.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
        next.dedup();
        found = next;
    }
    Ok(found)
}

fn component_matcher(component: &str) -> Result<GlobMatcher, SourceError> {
    GlobBuilder::new(component).literal_separator(true).build().map(|g| g.compile_matcher()).map_err(|e| {
        SourceError::hint(
            format!("pattern {component:?}: {}", e.kind()),
            "patterns take *, ?, [a-z], {a,b} within a name, and ** for folders at any depth",
        )
    })
}

/// Names in a folder, sorted; none when it is no folder.
fn children(view: &dyn View, dir: &Path) -> Result<Vec<OsString>, SourceError> {
    let mut names = match view.read_dir(dir) {
        Ok(names) => names,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Vec::new(),
        Err(e) => return Err(unreadable(dir, e)),
    };
    names.sort();
    Ok(names)
}

fn folders_below(view: &dyn View, dir: PathBuf, out: &mut Vec<PathBuf>) -> Result<(), SourceError> {
    let mut pending = vec![dir];
    while let Some(dir) = pending.pop() {
        for name in children(view, &dir)? {
            let path = dir.join(name);
            if matches!(view.kind(&path).map_err(|e| unreadable(&path, e))?, Some(super::view::Kind::Dir)) {
                pending.push(path);
            }
        }
        out.push(dir);
    }
    Ok(())
}

/// A path from the bytes that a tar or a listing has.
pub fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// `real` joined with a path of the tar, whose `prefix` is cut off.
pub fn real_path(real: &Path, prefix: &[u8], path: &[u8]) -> PathBuf {
    let rest = path.strip_prefix(prefix).unwrap_or(path);
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    if rest.is_empty() { real.into() } else { real.join(OsStr::from_bytes(rest)) }
}
