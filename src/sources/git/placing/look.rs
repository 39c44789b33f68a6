//! Today's state of a work tree, looked at without touching it.

use super::super::explain;
use super::ground::{Ground, LINK, listed};
use super::inside::{self, Inside, beside, kind, parents};
use super::intent::{Attributes, Beside, Head, Repository, Today};
use crate::sources::SourceError;
use rustix::fs::FileType;
use std::collections::{BTreeMap, BTreeSet};

/// The index as it is, byte for byte.
pub(super) const TODAY: &str = "index.today";
/// What is tracked, as the work tree has it.
pub(super) const OLD: &str = "index.old";
const TRIED: &str = "index.tried";

/// Today's state, and how it was taken apart.
pub(super) struct Look {
    pub today: Today,
    /// What is tracked, as the work tree has it.
    pub worktree: String,
    /// What is staged.
    pub staged: String,
    /// Files of it that are edited.
    pub edited: usize,
    /// Files that become other ones.
    pub changed: usize,
    /// Files whose edits git was told not to see.
    pub flagged: Vec<String>,
}

/// Looks at a work tree that is to become `target`. `id` is the transaction's.
pub(super) fn look(ground: &Ground, repository: &Repository, target: &str, id: &str) -> Result<Look, SourceError> {
    ground.make()?;
    let real = ground.real_index();
    let head = ground.head()?;
    let index = real.symlink_metadata().is_ok();
    ground.copy(index.then_some(&real), TODAY)?;
    let staged = if index { staged(ground)? } else { ground.empty_tree()? };
    let mut flagged = Vec::new();
    if repository.absent {
        ground.copy(None, OLD)?;
        ground.on(OLD).text(&["read-tree", "--empty"]).map_err(explain)?;
    } else {
        flagged = track(ground, index.then(|| ground.index(TODAY)).as_deref(), OLD)?;
    }
    let worktree = ground.tree(OLD)?;
    let base = match head.commit() {
        Some(commit) => format!("{commit}^{{tree}}"),
        None => ground.empty_tree()?,
    };
    let unstaged = ground.changes(&staged, &worktree)?;
    let edits: BTreeSet<Vec<u8>> =
        ground.changes(&base, &staged)?.into_iter().chain(unstaged).map(|c| c.path).collect();
    let dirty = (!edits.is_empty() && !repository.absent).then(|| format!("refs/lifeboat/dirty/{id}"));
    let same = !repository.absent
        && head.commit() == Some(&repository.commit)
        && ground.changes(&worktree, target)?.iter().all(super::ground::Change::is_link);
    let besides = if same { Vec::new() } else { in_the_way(ground, OLD, &worktree, target, id)? };
    let tree = ground.tree(OLD)?;
    let (mut changed, mut attributes) = (0, Vec::new());
    if !same && !repository.absent {
        let changes = ground.file_changes(&tree, target)?;
        changed = changes.len();
        attributes = attributes_of(ground, changes.iter().map(|c| c.path.as_slice()))?;
    } else if !same {
        changed = ground.file_changes(&tree, target)?.len();
    }
    let today = Today { head, index, tree, same, dirty, besides, attributes };
    Ok(Look { today, worktree, staged, edited: edits.len(), changed, flagged })
}

fn staged(ground: &Ground) -> Result<String, SourceError> {
    ground.copy(Some(&ground.index(TODAY)), TRIED)?;
    ground.tree(TRIED)
}

/// Makes index `to` of what is tracked, as the work tree has it; names files whose edits git was told not to see.
pub(super) fn track(ground: &Ground, from: Option<&std::path::Path>, to: &str) -> Result<Vec<String>, SourceError> {
    ground.copy(from, to)?;
    let git = ground.on(to);
    let mut flagged: Vec<Vec<u8>> = Vec::new();
    git.each(&["ls-files", "-v", "-z"], |record| {
        // `H path`; `S` for skip-worktree, a lower-case letter for assume-unchanged.
        if let [tag, b' ', path @ ..] = record
            && (*tag == b'S' || tag.is_ascii_lowercase())
        {
            flagged.push(path.to_vec());
        }
        Ok(true)
    })?;
    if !flagged.is_empty() {
        for option in ["--no-skip-worktree", "--no-assume-unchanged"] {
            let paths = flagged.iter().map(Vec::as_slice);
            git.feed(&["update-index", option, "-z", "--stdin"], &mut listed(paths))?;
        }
    }
    git.text(&["add", "-u"]).map_err(explain)?;
    Ok(flagged.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect())
}

/// Untracked files that stand where `target` has something. Those that are already what they will be become part of
/// the index `name`; the others have to give way.
pub(super) fn in_the_way(
    ground: &Ground,
    name: &str,
    tree: &str,
    target: &str,
    id: &str,
) -> Result<Vec<Beside>, SourceError> {
    let changes = ground.changes(tree, target)?;
    let added: BTreeMap<&[u8], (&str, &str)> = changes
        .iter()
        .filter(|c| c.status == b'A' && c.new_mode != LINK)
        .map(|c| (c.path.as_slice(), (c.new_mode.as_str(), c.new_id.as_str())))
        .collect();
    if added.is_empty() || !ground.dir.is_dir() {
        return Ok(Vec::new());
    }
    let tree = Inside::open(&ground.dir)?;
    let (mut files, mut ways) = (Vec::new(), BTreeSet::new());
    // What is tracked, and whether it is a folder by what lies below: git removes it by itself.
    let tracked: BTreeSet<Vec<u8>> = tracked(ground, name)?;
    'paths: for path in added.keys() {
        for parent in parents(path) {
            match tree.look(parent)? {
                None => continue 'paths,
                Some(a) if kind(a.mode) == FileType::Directory => {}
                Some(_) if tracked.contains(parent) => continue 'paths,
                Some(_) => {
                    ways.insert(parent.to_vec());
                    continue 'paths;
                }
            }
        }
        match tree.look(path)? {
            None => {}
            Some(a) if kind(a.mode) == FileType::Directory => {
                ways.extend(folder_gives_way(ground, name, &tracked, path)?.then(|| path.to_vec()));
            }
            Some(a) if matches!(kind(a.mode), FileType::RegularFile | FileType::Symlink) => files.push(path.to_vec()),
            Some(_) => {
                ways.insert(path.to_vec());
            }
        }
    }
    let same = already(ground, name, &files, &added)?;
    if !same.is_empty() {
        let paths = same.iter().map(|p| p.as_slice());
        ground.on(name).feed(&["update-index", "--add", "-z", "--stdin"], &mut listed(paths))?;
    }
    ways.extend(files.into_iter().filter(|p| !same.contains(p)));
    Ok(ways.iter().map(|path| beside(path, &format!("lifeboat-{id}"))).collect())
}

/// Whether a folder stands where a file will be and git would not remove it; an error when it holds tracked files and
/// others.
fn folder_gives_way(
    ground: &Ground,
    name: &str,
    tracked: &BTreeSet<Vec<u8>>,
    path: &[u8],
) -> Result<bool, SourceError> {
    let mut below = path.to_vec();
    below.push(b'/');
    let is_below = |p: &Vec<u8>| p.starts_with(&below);
    let holds_tracked = tracked.range(below.clone()..).next().is_some_and(is_below);
    if !holds_tracked {
        return Ok(true);
    }
    let mut untracked = false;
    let text = String::from_utf8_lossy(path).into_owned();
    let git = ground.on(name);
    git.each(&["--literal-pathspecs", "ls-files", "--others", "-z", "--", &text], |_| {
        untracked = true;
        Ok(false)
    })?;
    match untracked || inside::Inside::open(&ground.dir.join(&text).join(".git")).is_ok() {
        false => Ok(false),
        true => Err(SourceError::hint(
            format!("folder {text} holds files that git does not track, and the snapshot has a file in its place"),
            "move them away first",
        )),
    }
}

fn tracked(ground: &Ground, name: &str) -> Result<BTreeSet<Vec<u8>>, SourceError> {
    let mut tracked = BTreeSet::new();
    ground.on(name).each(&["ls-files", "-z"], |path| {
        tracked.insert(path.to_vec());
        Ok(true)
    })?;
    Ok(tracked)
}

/// Which of these files are already what they will be.
fn already(
    ground: &Ground,
    name: &str,
    files: &[Vec<u8>],
    wanted: &BTreeMap<&[u8], (&str, &str)>,
) -> Result<BTreeSet<Vec<u8>>, SourceError> {
    let mut same = BTreeSet::new();
    if files.is_empty() {
        return Ok(same);
    }
    ground.copy(Some(&ground.index(name)), TRIED)?;
    let git = ground.on(TRIED);
    let asked: BTreeSet<&[u8]> = files.iter().map(Vec::as_slice).collect();
    git.feed(&["update-index", "--add", "-z", "--stdin"], &mut listed(files.iter().map(Vec::as_slice)))?;
    git.each(&["ls-files", "--stage", "-z"], |record| {
        // `mode id stage\tpath`
        let Some(tab) = record.iter().position(|b| *b == b'\t') else { return Ok(true) };
        let (meta, path) = (String::from_utf8_lossy(&record[..tab]), &record[tab + 1..]);
        if let Some((mode, id)) = wanted.get(path)
            && meta.starts_with(&format!("{mode} {id} "))
            && asked.contains(path)
        {
            same.insert(path.to_vec());
        }
        Ok(true)
    })?;
    Ok(same)
}

/// What git does not record of these files, and of the folders on the way to them.
fn attributes_of<'p>(ground: &Ground, paths: impl Iterator<Item = &'p [u8]>) -> Result<Vec<Attributes>, SourceError> {
    let tree = Inside::open(&ground.dir)?;
    let mut wanted = BTreeSet::new();
    for path in paths {
        wanted.extend(parents(path).map(<[u8]>::to_vec));
        wanted.insert(path.to_vec());
    }
    let mut list = Vec::new();
    for path in &wanted {
        list.extend(tree.look(path)?);
    }
    Ok(list)
}

/// For people: `branch main`, or a commit.
pub(super) fn forward(head: &Head) -> Option<String> {
    match head {
        Head::Branch { name, .. } => Some(format!("git switch {}", name.strip_prefix("refs/heads/").unwrap_or(name))),
        Head::Detached { commit } => Some(format!("git switch --detach {}", commit.get(..10).unwrap_or(commit))),
    }
}
