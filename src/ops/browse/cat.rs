//! `cat`: one stream, or one file of a tree, to standard output.
//!
//! A file is fetched through its place in the listing: only the chunks of that entry are read. Links are followed
//! within the source; what a link leads out of is not in the snapshot.

use crate::base::ids::{SnapshotId, SourceName, StreamName};
use crate::base::stream::{FileType, StreamKind};
use crate::ops::access::Access;
use crate::ops::browse::display;
use crate::ops::browse::listing::{Lines, Listed, Tree, is_below, trees};
use crate::ops::browse::ls::no_path;
use crate::ops::browse::part::{Part, open_snapshot};
use crate::ops::browse::select::{Selector, is_named, require_captured};
use crate::ops::{OpsError, Run};
use crate::repository::format::SourceEntry;
use crate::repository::reader::SnapshotReader;
use crate::sources::extract::{Archive, ExtractError, write_content};
use crate::sources::files::entry::Kind;
use serde::Serialize;
use std::ffi::OsStr;
use std::io::{self, Read, Write};

const BUFFER: usize = 256 << 10;
/// As the kernel's own limit.
const MAX_LINKS: usize = 40;

/// What was written out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatReport {
    pub snapshot: SnapshotId,
    pub source: SourceName,
    pub stream: StreamName,
    /// Where the content stood, links followed; absent for a whole stream.
    pub path: Option<String>,
    pub bytes: u64,
}

/// Writes what `target` names (`SOURCE`, `SOURCE:STREAM`, `SOURCE:PATH` or `/PATH`) to `out`.
///
/// Every byte has been checked before it is written; that the stream is whole is known at its end, so a reader of
/// `out` must wait for success.
pub fn cat(access: &Access, name: &str, target: &OsStr, run: &Run, out: &mut dyn Write) -> Result<CatReport, OpsError> {
    let reader = open_snapshot(access, name, "reading a snapshot", run)?;
    let manifest = &reader.manifest;
    match Selector::parse(manifest, target)? {
        Selector::Source(source) => {
            require_captured(manifest, source)?;
            stream(only_stream(&reader, source)?, out)
        }
        Selector::Stream(source, entry) => stream(Part { reader: &reader, source, stream: entry }, out),
        Selector::Path(source, path) => {
            require_captured(manifest, source)?;
            let Some((tree, listed)) = find(&reader, std::slice::from_ref(source), &path)? else {
                return Err(not_there(&reader, std::slice::from_ref(source), &path));
            };
            file(tree, &listed, out)
        }
        Selector::Anywhere(path) => {
            let Some((tree, listed)) = find(&reader, &manifest.sources, &path)? else {
                return Err(not_there(&reader, &manifest.sources, &path));
            };
            file(tree, &listed, out)
        }
    }
}

/// A source's one stream, listings left out.
fn only_stream<'a>(reader: &'a SnapshotReader, source: &'a SourceEntry) -> Result<Part<'a>, OpsError> {
    let streams: Vec<_> = source.streams.iter().filter(|s| s.kind != StreamKind::Listing).collect();
    match streams.as_slice() {
        [stream] => Ok(Part { reader, source, stream }),
        [] => Err(OpsError::usage(
            format!("source {:?} of snapshot {} has no streams", source.name.as_str(), reader.manifest.snapshot),
            "there was nothing to capture; `lifeboat show ID` says more",
        )),
        many => {
            let names: Vec<String> = many.iter().map(|s| format!("{}:{}", source.name, s.name)).collect();
            Err(OpsError::usage(
                format!("source {:?} has {} streams", source.name.as_str(), many.len()),
                format!("name one of {}", names.join(", ")),
            ))
        }
    }
}

fn not_there(reader: &SnapshotReader, sources: &[SourceEntry], path: &[u8]) -> OpsError {
    let streams = sources.iter().flat_map(|s| &s.streams).any(|s| s.kind == StreamKind::Tar);
    match sources {
        [one] if !streams => {
            let names: Vec<&str> = one.streams.iter().map(|s| s.name.as_str()).collect();
            OpsError::usage(
                format!("source {:?} has no stream {:?}", one.name.as_str(), display(path)),
                format!("its streams are {}", names.join(", ")),
            )
        }
        _ => no_path(&reader.manifest.snapshot, sources, path),
    }
}

fn stream(part: Part<'_>, out: &mut dyn Write) -> Result<CatReport, OpsError> {
    let mut reader = part.open()?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) => return Err(reader.failure(e)),
        };
        out.write_all(&buffer[..n]).map_err(write_error)?;
    }
    out.flush().map_err(write_error)?;
    Ok(report(part, None, part.stream.length))
}

fn report(part: Part<'_>, path: Option<String>, bytes: u64) -> CatReport {
    CatReport {
        snapshot: part.reader.manifest.snapshot.clone(),
        source: part.source.name.clone(),
        stream: part.stream.name.clone(),
        path,
        bytes,
    }
}

fn write_error(e: io::Error) -> OpsError {
    OpsError::file("write to", "standard output", e)
}

/// The entry that a path leads to, in the first tree that has it.
fn find<'a>(
    reader: &'a SnapshotReader,
    sources: &'a [SourceEntry],
    path: &[u8],
) -> Result<Option<(Tree<'a>, Listed)>, OpsError> {
    let mut folder = None;
    for tree in sources.iter().flat_map(|source| trees(reader, source)) {
        match follow(tree, path)? {
            // Other sources may have a folder above their own paths where this one has the file.
            Some(listed) if listed.is_dir() => folder = folder.or(Some((tree, listed))),
            Some(listed) => return Ok(Some((tree, listed))),
            None => {}
        }
    }
    Ok(folder)
}

/// Follows a path through the links of a tree.
fn follow(tree: Tree<'_>, path: &[u8]) -> Result<Option<Listed>, OpsError> {
    let mut wanted = path.to_vec();
    for _ in 0..MAX_LINKS {
        let Some(listed) = step(tree, &wanted)? else {
            if wanted == path {
                return Ok(None);
            }
            return Err(OpsError::usage(
                format!("/{} leads to /{}, which is not in this source", display(path), display(&wanted)),
                "name the source that has it; `lifeboat find` looks through all of them",
            ));
        };
        let here = match listed.entry.file_type {
            FileType::File | FileType::Dir => return Ok(Some(listed)),
            FileType::Hardlink => Vec::new(),
            FileType::Symlink => parent(&listed.path).to_vec(),
        };
        let target = listed.target().unwrap_or_default();
        // What follows the link in the path that was asked for.
        let rest = wanted.get(listed.path.len()..).unwrap_or_default().to_vec();
        wanted = lead(&here, &target, &rest);
    }
    Err(OpsError::usage(format!("/{} leads in a circle", display(path)), "name the file itself"))
}

/// The entry of that very path, or the link on the way to it.
pub fn step(tree: Tree<'_>, wanted: &[u8]) -> Result<Option<Listed>, OpsError> {
    let mut lines = Lines::open(tree.listing)?;
    let by_text = wanted.contains(&b'%');
    let mut link = None;
    while let Some(listed) = lines.next_where(|path| by_text || path == wanted || is_below(wanted, path))? {
        let shown = listed.entry.path_hex.is_some().then_some(listed.entry.path.as_str());
        if is_named(&listed.path, shown, wanted) {
            return Ok(Some(listed));
        }
        if listed.entry.file_type == FileType::Symlink && is_below(wanted, &listed.path) {
            link = Some(listed);
        }
    }
    Ok(link)
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(b"", |at| &path[..at])
}

/// Where a link in `here` leads, by the letters of its target.
fn lead(here: &[u8], target: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> =
        if target.starts_with(b"/") { Vec::new() } else { here.split(|b| *b == b'/').collect() };
    for name in target.split(|b| *b == b'/').chain(rest.split(|b| *b == b'/')) {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.retain(|name| !name.is_empty());
    names.join(&b'/')
}

/// Writes a file's content.
fn file(tree: Tree<'_>, listed: &Listed, out: &mut dyn Write) -> Result<CatReport, OpsError> {
    if listed.is_dir() {
        return Err(OpsError::usage(
            format!("/{} is a folder", display(&listed.path)),
            "`lifeboat ls ID PATH` shows what is in it, `lifeboat restore ID --path PATH --into DIR` restores it",
        ));
    }
    let mut reader = tree.tar.range(listed.entry.offset, listed.entry.length)?;
    let mut archive = Archive::part(&mut reader);
    let member = match archive.next_member() {
        Ok(Some(member)) => member,
        Ok(None) => return Err(disagree(tree, listed)),
        Err(e) => return Err(reader.tar_failure(e.into())),
    };
    if member.entry.path != listed.path || member.entry.kind != Kind::File || member.entry.size != listed.entry.size {
        return Err(disagree(tree, listed));
    }
    let written = write_content(&mut archive, &member, out);
    written.map_err(|e| match e {
        ExtractError::File { source, .. } => write_error(source),
        e => reader.tar_failure(e),
    })?;
    out.flush().map_err(write_error)?;
    Ok(report(tree.tar, Some(listed.entry.path.clone()), listed.entry.size))
}

/// The listing says that something stands where the tar has something else.
pub fn disagree(tree: Tree<'_>, listed: &Listed) -> OpsError {
    tree.tar.problem(format!("its listing and its tar disagree about /{}", display(&listed.path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_where_their_letters_say() {
        let lead = |here: &str, target: &str, rest: &str| {
            String::from_utf8(super::lead(here.as_bytes(), target.as_bytes(), rest.as_bytes())).unwrap()
        };
        assert_eq!(
            lead("etc/letsencrypt/live/x", "../../archive/x/cert1.pem", ""),
            "etc/letsencrypt/archive/x/cert1.pem"
        );
        assert_eq!(lead("etc", "/srv/app/", "/conf/a"), "srv/app/conf/a");
        assert_eq!(lead("", "a", ""), "a");
        assert_eq!(lead("a", "../../../..", "/b"), "b");
        assert_eq!(parent(b"a/b/c"), b"a/b");
        assert_eq!(parent(b"a"), b"");
    }
}
