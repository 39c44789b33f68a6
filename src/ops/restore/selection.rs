//! Which entries of a tree are restored: found in its listing, so that only their bytes of the tar are read.

use crate::base::stream::FileType;
use crate::ops::OpsError;
use crate::ops::browse::listing::{Lines, Listed, Tree, is_below};
use crate::ops::browse::select::is_named;
use std::collections::HashMap;

/// File systems give files whole blocks.
const BLOCK: u64 = 4096;

/// A run of bytes of a tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    pub length: u64,
}

impl Range {
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    fn of(listed: &Listed) -> Self {
        Range { offset: listed.entry.offset, length: listed.entry.length }
    }
}

/// A hard link whose target is not restored: it gets the content itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutsideLink {
    pub path: Vec<u8>,
    pub link: Range,
    pub target: Vec<u8>,
    /// Where the content lies; absent when the listing does not have the target.
    pub content: Option<Range>,
}

/// What is taken of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// In the order of the tar; neighbours are one range.
    pub ranges: Vec<Range>,
    pub links: Vec<OutsideLink>,
    /// Which of the wanted paths were found.
    pub found: Vec<bool>,
}

/// What laying entries out takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    pub entries: u64,
    /// Room on disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl Need {
    fn add(&mut self, listed: &Listed) {
        self.entries += 1;
        self.inodes += u64::from(listed.entry.file_type != FileType::Hardlink);
        let bytes = match listed.entry.file_type {
            // The entry's length, not the file's size: holes take no room.
            FileType::File => room_of(listed),
            FileType::Dir => BLOCK,
            FileType::Symlink | FileType::Hardlink => 0,
        };
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// A listing is as trustworthy as whoever signed it: its numbers may be anything.
fn room_of(listed: &Listed) -> u64 {
    listed.entry.length.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// What the whole tree takes.
pub fn need_of(tree: Tree<'_>) -> Result<Need, OpsError> {
    let mut lines = Lines::open(tree.listing)?;
    let mut need = Need::default();
    while let Some(listed) = lines.next_entry()? {
        need.add(&listed);
    }
    Ok(need)
}

/// Finds paths, what is below them, and the folders above them.
pub fn select(tree: Tree<'_>, wanted: &[Vec<u8>]) -> Result<(Selection, Need), OpsError> {
    let mut selection = Selection { found: vec![false; wanted.len()], ..Selection::default() };
    let mut need = Need::default();
    // Folders that were named as listings show them; see `is_named`.
    let mut exact: Vec<Vec<u8>> = wanted.to_vec();
    let by_text = wanted.iter().any(|w| w.contains(&b'%'));
    let mut above: Vec<Listed> = Vec::new();
    let mut lines = Lines::open(tree.listing)?;
    loop {
        let near = |path: &[u8]| by_text || exact.iter().any(|w| path == w || is_below(path, w) || is_below(w, path));
        let Some(listed) = lines.next_where(near)? else { break };
        let shown = listed.entry.path_hex.is_some().then_some(listed.entry.path.as_str());
        let mut taken = false;
        for (at, wanted) in wanted.iter().enumerate() {
            if is_named(&listed.path, shown, wanted) {
                exact[at].clone_from(&listed.path);
                selection.found[at] = true;
                taken = true;
            }
            if is_below(&listed.path, &exact[at]) {
                selection.found[at] = true;
                taken = true;
            }
        }
        if !taken {
            // A folder above is taken once something below it is.
            if listed.is_dir() && exact.iter().any(|w| is_below(w, &listed.path)) {
                above.push(listed);
            }
            continue;
        }
        above.retain(|folder| {
            let leads = is_below(&listed.path, &folder.path);
            if leads {
                need.add(folder);
                add(&mut selection.ranges, Range::of(folder));
            }
            !leads
        });
        need.add(&listed);
        let target = (listed.entry.file_type == FileType::Hardlink).then(|| listed.target().unwrap_or_default());
        match target.filter(|t| !exact.iter().any(|w| t == w || is_below(t, w))) {
            Some(target) => {
                let link = Range::of(&listed);
                selection.links.push(OutsideLink { path: listed.path, link, target, content: None });
            }
            None => add(&mut selection.ranges, Range::of(&listed)),
        }
    }
    find_targets(tree, &mut selection, &mut need)?;
    Ok((selection, need))
}

fn add(ranges: &mut Vec<Range>, range: Range) {
    match ranges.last_mut() {
        Some(last) if last.end() == range.offset => last.length = last.length.saturating_add(range.length),
        _ => ranges.push(range),
    }
}

/// Links whose target is not restored get the target's content.
fn find_targets(tree: Tree<'_>, selection: &mut Selection, need: &mut Need) -> Result<(), OpsError> {
    let mut targets: HashMap<Vec<u8>, Option<Range>> =
        selection.links.iter().map(|l| (l.target.clone(), None)).collect();
    if targets.is_empty() {
        return Ok(());
    }
    let mut lines = Lines::open(tree.listing)?;
    while let Some(listed) = lines.next_where(|path| targets.contains_key(path))? {
        if listed.entry.file_type == FileType::File {
            need.bytes = need.bytes.saturating_add(room_of(&listed));
            need.inodes += 1;
            targets.insert(listed.path.clone(), Some(Range::of(&listed)));
        }
    }
    for link in &mut selection.links {
        link.content = targets.get(&link.target).copied().flatten();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_range() {
        let mut ranges = Vec::new();
        for (offset, length) in [(0, 512), (512, 1024), (4096, 512), (4608, 512)] {
            add(&mut ranges, Range { offset, length });
        }
        assert_eq!(ranges, [Range { offset: 0, length: 1536 }, Range { offset: 4096, length: 1024 }]);
    }
}
