//! A group of entries without a large file among them. A file's content is read whole before its header is written,
//! so the header is always true to it.

use super::content::{self, Opened};
use super::entry::{Entry, Kind, Time, Xattrs};
use super::frame::{self, Segment, SparseMap};
use super::memo::{Remembered, differ, fingerprint, prints};
use super::notes::{Note, Notes};
use super::parts::Parts;
use super::plan::Plan;
use super::stream::{LARGE, Observer, Outcome, TreeStream, ends_chunk, file_error};
use super::walk::{Found, Identity, real_of};
use super::xattr;
use crate::sources::SourceError;
use rustix::fd::AsFd;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// A file that changes while it is read is read this often.
const ATTEMPTS: usize = 3;

impl TreeStream<'_> {
    /// Writes a group, or takes it over.
    pub(super) fn small_group(
        &mut self,
        plan: &Plan,
        group: &[Found],
        notes: &mut Notes,
        observer: Observer<'_>,
    ) -> Result<(), SourceError> {
        let first = &group[0].entry.path;
        let key = self.memo_key(first, 0);
        let print = fingerprint(group);
        let known = self.recall_any(&key);
        let (known, other) = match known {
            Some(known) if known.fingerprint == print && known.lengths.len() == group.len() => (Some(known), None),
            other => (None, other),
        };
        let is_link_to_gone =
            |gone: &HashMap<_, _>, f: &Found| matches!(&f.entry.kind, Kind::Hardlink(t) if gone.contains_key(t));
        let complete = !group.iter().any(|f| is_link_to_gone(&self.gone, f));
        let start = self.position();
        let may_reuse = complete && !self.is_due(&key);
        if let Some(known) = known.as_ref().filter(|_| may_reuse)
            && self.reuse(&known.piece)?
        {
            self.list_all(group, &known.lengths, start)?;
            return Ok(());
        }
        if let Some(known) = &known {
            self.expect(known, true)?;
        }
        let prints = prints(group);
        let parts = other.filter(|other| may_reuse && self.is_cut_so(other)).and_then(Parts::of);
        let mut lengths = Vec::with_capacity(group.len());
        let (mut stable, mut at_cut) = (complete, true);
        while lengths.len() < group.len() {
            let (at, start) = (lengths.len(), self.position());
            let ends = |n: usize, length| ends_chunk(&group[at + n].entry.path, length);
            if let Some(part) = parts.as_ref().filter(|_| at_cut).and_then(|parts| parts.at(&prints[at..], ends))
                && let some = &group[at..][..part.lengths.len()]
                && !some.iter().any(|f| is_link_to_gone(&self.gone, f))
                && self.reuse_part(&part.piece)?
            {
                self.list_all(some, &part.lengths, start)?;
                lengths.extend(part.lengths);
                continue;
            }
            let found = &group[at];
            let outcome = self.entry(plan, found, notes, observer)?;
            stable &= outcome == Outcome::Stable && self.is_settled(found);
            let length = self.position() - start;
            at_cut = self.end_entry(&found.entry.path, length)?;
            lengths.push(length);
        }
        let (piece, digest) = self.end_group()?;
        if stable {
            if known.is_some_and(|k| differ(&k.digest, &digest)) {
                notes.add(Note::SilentChange, first);
            }
            self.keep(&key, &Remembered { fingerprint: print, digest, lengths, prints, map: None, piece });
        }
        Ok(())
    }

    /// Lists entries that were taken over, from `start` on.
    fn list_all(&mut self, group: &[Found], lengths: &[u64], start: u64) -> Result<(), SourceError> {
        let mut at = start;
        for (found, length) in group.iter().zip(lengths) {
            self.list(&found.entry, at, *length)?;
            at += length;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        plan: &Plan,
        found: &Found,
        notes: &mut Notes,
        observer: Observer<'_>,
    ) -> Result<Outcome, SourceError> {
        let entry = &found.entry;
        match &entry.kind {
            Kind::File => {
                let outcome = self.file(plan, found, notes, observer)?;
                if outcome == Outcome::Gone {
                    self.gone.insert(entry.path.clone(), None);
                }
                Ok(outcome)
            }
            Kind::Hardlink(first) => match self.gone.get(first).cloned() {
                None => self.header_only(entry).map(|()| Outcome::Stable),
                // Its first name could not be read, and another name holds the content now.
                Some(Some(name)) => {
                    let entry = Entry { kind: Kind::Hardlink(name), ..entry.clone() };
                    self.header_only(&entry).map(|()| Outcome::Unstable)
                }
                Some(None) => {
                    let outcome = self.file(plan, found, notes, observer)?;
                    if outcome == Outcome::Gone {
                        return Ok(Outcome::Gone);
                    }
                    self.gone.insert(first.clone(), Some(entry.path.clone()));
                    Ok(Outcome::Unstable)
                }
            },
            _ => {
                let path = real_of(plan, &entry.path);
                let xattrs =
                    content::attributes(&path).map_err(|e| file_error("read extended attributes of", &path, e))?;
                self.header_only(&Entry { xattrs, ..entry.clone() }).map(|()| Outcome::Stable)
            }
        }
    }

    pub(super) fn header_only(&mut self, entry: &Entry) -> Result<(), SourceError> {
        let start = self.position();
        self.write(&frame::head(entry, None, false))?;
        self.list(entry, start, self.position() - start)
    }

    fn file(
        &mut self,
        plan: &Plan,
        found: &Found,
        notes: &mut Notes,
        observer: Observer<'_>,
    ) -> Result<Outcome, SourceError> {
        let path = real_of(plan, &found.entry.path);
        for attempt in 1.. {
            self.check()?;
            let Some(opened) = content::open(&path).map_err(|e| file_error("open", &path, e))? else {
                notes.add(Note::Vanished, &found.entry.path);
                return Ok(Outcome::Gone);
            };
            if opened.identity.size >= 2 * LARGE {
                // It has grown beyond what is held in memory.
                return self.large_unknown(&path, found, notes);
            }
            let mut bytes = std::mem::take(&mut self.buffer);
            bytes.clear();
            bytes.reserve(opened.identity.size as usize + 1);
            (&opened.file).take(4 * LARGE).read_to_end(&mut bytes).map_err(|e| file_error("read", &path, e))?;
            let after = rustix::fs::fstat(&opened.file).map_err(|e| file_error("read", &path, e))?;
            let held = opened.identity.same(&Identity::of(&after)) && bytes.len() as u64 == opened.identity.size;
            if !held && attempt < ATTEMPTS {
                continue;
            }
            if !held {
                notes.add(Note::Changed, &found.entry.path);
            }
            let stable = held && opened.identity.same(&found.identity) && found.entry.kind == Kind::File;
            let mut entry = if stable { found.entry.clone() } else { current(&path, &found.entry, &opened)? };
            if stable {
                entry.xattrs = attributes(&path, &opened)?;
            }
            entry.size = bytes.len() as u64;
            let map = if held { content::sparse_map(&opened) } else { None };
            self.content(&entry, map.as_ref(), &bytes)?;
            observer(&entry, &bytes);
            self.buffer = bytes;
            return Ok(if stable { Outcome::Stable } else { Outcome::Unstable });
        }
        Ok(Outcome::Gone)
    }

    /// A file whose content is in memory.
    pub(super) fn content(&mut self, entry: &Entry, map: Option<&SparseMap>, bytes: &[u8]) -> Result<(), SourceError> {
        let start = self.position();
        self.write(&frame::head(entry, map, false))?;
        let all = [Segment { offset: 0, length: bytes.len() as u64 }];
        for s in map.map_or(all.as_slice(), |m| &m.segments) {
            self.write(&bytes[s.offset as usize..(s.offset + s.length) as usize])?;
        }
        self.pad()?;
        self.list(entry, start, self.position() - start)
    }
}

/// An open file's extended attributes.
pub(super) fn attributes(path: &Path, opened: &Opened) -> Result<Xattrs, SourceError> {
    let mut found = xattr::of_file(&opened.file).map_err(|e| file_error("read extended attributes of", path, e))?;
    found.extend(xattr::flags(opened.file.as_fd(), None).map_err(|e| file_error("read the flags of", path, e))?);
    Ok(found)
}

/// A file's entry as it is now, when it is not what the walk saw any more.
pub(super) fn current(path: &Path, entry: &Entry, opened: &Opened) -> Result<Entry, SourceError> {
    let stat = &opened.stat;
    let xattrs = attributes(path, opened)?;
    let same_owner = stat.st_uid == entry.uid && stat.st_gid == entry.gid;
    Ok(Entry {
        path: entry.path.clone(),
        kind: Kind::File,
        size: opened.identity.size,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        user: entry.user.clone().filter(|_| same_owner),
        group: entry.group.clone().filter(|_| same_owner),
        mtime: Time { ..opened.identity.mtime },
        xattrs,
    })
}
