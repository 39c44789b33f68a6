//! Laying out beside the live tree what differs from it: the list of actions, and `new/<n>` for each that puts something.
//!
//! What has the captured size, time, owner and mode is compared byte by byte; where it differs all the same it is laid
//! out in a second reading, because by then the first has passed.

use super::super::SourceError;
use super::super::extract::{Archive, Extractor, Member, Options, Report, Wanted, open_below, write_content};
use super::super::files::entry::{Entry, Kind};
use super::job::Job;
use super::list::{self, Action, ListWriter, Mark, Meta, Slot};
use super::live::{DIRECTORY, Live, Spot};
use super::survey::{hash, lines, name_of, target_of};
use super::today::today;
use super::told::{self, Told};
use super::{extract_error, fault, keeping_time, one_name, overlay};
use crate::base::cancel::Cancel;
use crate::base::stream;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// A folder beside, open.
pub struct Stage {
    pub new: OwnedFd,
    pub old: OwnedFd,
    pub device: u64,
}

/// Opens the folder beside in `stage`, making it where asked.
pub fn open_stage(job: &Job, stage: &Path, make: bool) -> Result<Option<Stage>, SourceError> {
    let shown = stage.join(job.staging_name());
    let bad = |e: Errno| fault("open", &shown, e);
    let parent = rustix::fs::open(stage, DIRECTORY, Mode::empty()).map_err(|e| fault("open", stage, e))?;
    let enter = |parent: &OwnedFd, name: &str| -> Result<Option<OwnedFd>, SourceError> {
        if make {
            match keeping_time(parent.as_fd(), || rustix::fs::mkdirat(parent, name, Mode::RWXU)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(fault("create folder", &shown, e)),
            }
        }
        let dir = match open_below(parent.as_fd(), OsStr::new(name), DIRECTORY) {
            Ok(dir) => dir,
            Err(Errno::NOENT) if !make => return Ok(None),
            Err(e) => return Err(bad(e)),
        };
        let stat = rustix::fs::fstat(&dir).map_err(bad)?;
        // Whoever may write beside could put a folder of their own there.
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            return Err(SourceError::problem(format!("{} is not this account's alone", shown.display())));
        }
        Ok(Some(dir))
    };
    let Some(dir) = enter(&parent, &job.staging_name())? else { return Ok(None) };
    let (Some(new), Some(old)) = (enter(&dir, "new")?, enter(&dir, "old")?) else { return Ok(None) };
    let device = rustix::fs::fstat(&new).map_err(bad)?.st_dev;
    if make {
        rustix::fs::fsync(&parent).map_err(bad)?;
    }
    Ok(Some(Stage { new, old, device }))
}

/// The first reading. `true`: something has to be read once more, by [`again`]. `listing` is asked for where only some paths are wanted.
pub fn first(
    job: &Job,
    listing: Option<&mut dyn Read>,
    tar: &mut dyn Read,
    cancel: &Cancel,
) -> Result<bool, SourceError> {
    let mut maker = Maker::begin(job, false, cancel)?;
    let mut known: HashSet<u64> = HashSet::new();
    if let Some(listing) = listing {
        maker.look_at(listing, &mut known)?;
    }
    maker.read(tar, None)?;
    if job.exact {
        maker.removals(&known)?;
    }
    maker.finish()
}

/// A further reading, for the paths that the last step found.
pub fn again(
    job: &Job,
    listing: Option<&mut dyn Read>,
    tar: &mut dyn Read,
    cancel: &Cancel,
) -> Result<bool, SourceError> {
    let only = read_redo(&job.redo())?;
    let mut maker = Maker::begin(job, true, cancel)?;
    let mut known = std::mem::take(&mut maker.removed);
    if let Some(listing) = listing {
        maker.look_at(listing, &mut known)?;
    }
    maker.read(tar, Some(&only))?;
    if job.exact {
        maker.removals(&known)?;
    }
    maker.finish()
}

pub fn write_redo(path: &Path, paths: &[Vec<u8>]) -> Result<(), SourceError> {
    let text: String = paths.iter().map(|p| hex::encode(p) + "\n").collect();
    crate::base::atomic::write(path, text.as_bytes(), 0o600, crate::base::atomic::IfExists::Replace)
        .map_err(|source| SourceError::File { action: "write", path: path.into(), source })
}

fn read_redo(path: &Path) -> Result<HashSet<Vec<u8>>, SourceError> {
    let failed = |source: io::Error| SourceError::File { action: "read", path: path.into(), source };
    let mut found = HashSet::new();
    for line in BufReader::new(File::open(path).map_err(failed)?).lines() {
        let bytes = hex::decode(line.map_err(failed)?).map_err(|e| failed(io::Error::other(e)))?;
        found.insert(bytes);
    }
    Ok(found)
}

struct Maker<'a> {
    job: &'a Job,
    cancel: &'a Cancel,
    live: Live<'a>,
    stages: Vec<Stage>,
    extractors: Vec<Extractor>,
    list: ListWriter,
    wanted: Wanted,
    /// What stands where an entry belongs: the hash of the name that it was found by, and when it was changed.
    seen: HashMap<(u64, u64), (u64, (i64, i64))>,
    /// What of all that is left alone is not as it was captured.
    told: Report,
    next: u64,
    /// Where the files lie that were laid out, by their paths in the tar.
    puts: HashMap<Vec<u8>, Slot>,
    /// Paths whose entries stand as they were captured: what a further name of theirs may be linked to.
    same: HashSet<u64>,
    /// What is to be removed already, where a list goes on.
    removed: HashSet<u64>,
    redo: Vec<Vec<u8>>,
    redo_set: HashSet<Vec<u8>>,
    /// Files that are not wanted themselves, whose content a wanted further name needs: that name.
    adopted: HashMap<Vec<u8>, Vec<u8>>,
    /// The last action: an entry that takes its predecessor's place takes this back.
    pending: Option<Action>,
}

impl<'a> Maker<'a> {
    fn begin(job: &'a Job, go_on: bool, cancel: &'a Cancel) -> Result<Self, SourceError> {
        // An ordinary user may give files to groups of his own, and is told which owners he could not restore.
        let options = Options { privileged: job.privileged, owners: true, overwrite: false };
        let mut stages = Vec::new();
        let mut extractors = Vec::new();
        for stage in &job.stages {
            let opened = open_stage(job, stage, true)?
                .ok_or_else(|| SourceError::problem(format!("{} vanished", stage.display())))?;
            let way = PathBuf::from(format!("/proc/self/fd/{}/.", opened.new.as_raw_fd()));
            extractors.push(Extractor::new(&way, options, cancel).map_err(extract_error)?);
            stages.push(opened);
        }
        let (mut puts, mut next, mut same, mut removed) = (HashMap::new(), 0, HashSet::new(), HashSet::new());
        if go_on {
            let whole = list::read(job, &mut |action| {
                match &action {
                    Action::Put { path, slot } => _ = puts.insert(path.clone(), *slot),
                    Action::Same { path, .. } => _ = same.insert(hash(path)),
                    // Folders are tried once more behind what has come into them.
                    Action::Remove { path, .. } => _ = removed.insert(hash(path)),
                    _ => {}
                }
                if let Action::Put { slot, .. } | Action::Remove { slot, .. } | Action::Dir { slot: Some(slot), .. } =
                    &action
                {
                    next = next.max(slot.n + 1);
                }
                Ok(())
            })?;
            if !whole {
                return Err(SourceError::problem(format!("{} does not end", job.list().display())));
            }
        }
        let list = ListWriter::open(job.list(), go_on)?;
        Ok(Self {
            job,
            cancel,
            live: Live::open(job)?,
            stages,
            extractors,
            list,
            wanted: Wanted { privileged: job.privileged, owners: rustix::process::geteuid().is_root() },
            seen: HashMap::new(),
            told: if go_on { told::of(job, Told::Laid)? } else { Report::default() },
            next,
            puts,
            same,
            removed,
            redo: Vec::new(),
            redo_set: HashSet::new(),
            adopted: HashMap::new(),
            pending: None,
        })
    }

    /// Learns from the listing which contents further names need, and for `exact` what there was.
    fn look_at(&mut self, listing: &mut dyn Read, known: &mut HashSet<u64>) -> Result<(), SourceError> {
        let (job, adopted) = (self.job, &mut self.adopted);
        lines(listing, &mut |listed, path| {
            if job.exact {
                known.insert(hash(&path));
            }
            if listed.file_type == stream::FileType::Hardlink && job.takes(&path) {
                let target = target_of(&listed)?;
                if !job.takes(&target) {
                    adopted.entry(target).or_insert(path);
                }
            }
            Ok(())
        })
    }

    fn read(&mut self, tar: &mut dyn Read, only: Option<&HashSet<Vec<u8>>>) -> Result<(), SourceError> {
        let mut archive = Archive::new(tar);
        while let Some(mut member) = archive.next_member().map_err(|e| extract_error(e.into()))? {
            self.cancel.check()?;
            let path = member.entry.path.clone();
            if let Some(name) = self.adopted.get(&path).filter(|_| only.is_none_or(|o| o.contains(&path))) {
                member.entry.path = name.clone();
                self.put(&mut archive, &member)?;
                if let Some(slot) = self.puts.get(&member.entry.path).copied() {
                    self.puts.insert(path, slot);
                }
                continue;
            }
            let is_dir = member.entry.kind == Kind::Dir;
            if !(self.job.takes(&path) || (is_dir && self.job.leads(&path))) {
                continue;
            }
            if only.is_some_and(|only| !only.contains(&path)) {
                continue;
            }
            self.member(&mut archive, &member, only.is_none())?;
        }
        Ok(())
    }

    fn member(
        &mut self,
        archive: &mut Archive<&mut dyn Read>,
        member: &Member,
        compare: bool,
    ) -> Result<(), SourceError> {
        if member.again {
            self.take_back(&member.entry.path)?;
        }
        let entry = &member.entry;
        if entry.kind != Kind::Dir && self.job.strays == 0 && self.job.strays(&entry.path) {
            // The plan is made from the listing: what only the tar has was shown to nobody.
            let shown = self.job.display(&entry.path);
            return Err(SourceError::problem(format!(
                "the snapshot has {}, which its listing does not tell of and the policy does not name",
                shown.display()
            )));
        }
        match &entry.kind {
            Kind::Dir => self.folder(entry),
            Kind::Hardlink(target) => self.link(entry, target),
            Kind::File if self.put_over(member)? => Ok(()),
            _ if !compare => self.put(archive, member),
            _ => match self.found(&entry.path)? {
                Some(stat) if self.live.is_like(entry, &stat, self.wanted)? => {
                    if entry.kind == Kind::File && !self.same_content(archive, member)? {
                        self.read_again(entry.path.clone());
                        return Ok(());
                    }
                    self.same.insert(hash(&entry.path));
                    self.live.tell(entry, &stat, self.wanted, &mut self.told)?;
                    self.add(Action::Same { path: entry.path.clone(), mark: Mark::of(&stat) })
                }
                _ => self.put(archive, member),
            },
        }
    }

    /// What stands at a path, unless another entry has found the same by another name. A file with several names, one that was
    /// renamed meanwhile and a folder that is mounted at two places are no such thing.
    fn found(&mut self, path: &[u8]) -> Result<Option<Stat>, SourceError> {
        let Some(stat) = self.live.stat(path)? else { return Ok(None) };
        let is_one = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => !self.live.is_mount(path)?,
            _ => stat.st_nlink == 1,
        };
        // Renaming a file changes this time.
        let (name, changed) = (name_of(path), (stat.st_ctime, stat.st_ctime_nsec as i64));
        let before = if is_one { self.seen.insert((stat.st_dev, stat.st_ino), (name, changed)) } else { None };
        if before.is_some_and(|(other, then)| other != name && then == changed) {
            return Err(one_name(self.job, path));
        }
        Ok(Some(stat))
    }

    fn read_again(&mut self, path: Vec<u8>) {
        if self.redo_set.insert(path.clone()) {
            self.redo.push(path);
        }
    }

    fn folder(&mut self, entry: &Entry) -> Result<(), SourceError> {
        self.found(&entry.path)?;
        let was = self.live.meta(&entry.path)?;
        let owned = self.job.owns(&entry.path) && self.job.takes(&entry.path);
        if was.is_some() && !owned {
            return Ok(());
        }
        let slot = if was.is_none() { Some(self.slot(&entry.path)?) } else { None };
        self.add(Action::Dir { path: entry.path.clone(), meta: Meta::of(entry), was, slot })
    }

    /// A further name of a file that stands earlier.
    fn link(&mut self, entry: &Entry, target: &[u8]) -> Result<(), SourceError> {
        if self.adopted.get(target).is_some_and(|name| *name == entry.path) {
            return Ok(());
        }
        if self.redo_set.contains(target) {
            self.read_again(entry.path.clone());
            return Ok(());
        }
        let shown = self.job.display(&entry.path);
        let slot = self.slot(&entry.path)?;
        let name = slot.n.to_string();
        let linked = match self.puts.get(target).copied() {
            Some(first) if first.stage == slot.stage => {
                let new = &self.stages[slot.stage].new;
                rustix::fs::linkat(new, first.n.to_string(), new, &name, AtFlags::empty())
            }
            Some(_) => Err(Errno::XDEV),
            // Another file of the host is nobody's business.
            None if !self.same.contains(&hash(target)) => {
                return Err(SourceError::problem(format!(
                    "{} is a hard link to /{}, which the snapshot does not have before it",
                    shown.display(),
                    super::super::files::entry::display(target)
                )));
            }
            None => {
                let (first, own) = (self.live.stat(target)?, self.live.stat(&entry.path)?);
                let id = |stat: &rustix::fs::Stat| (stat.st_dev, stat.st_ino);
                if let (Some(first), Some(own)) = (&first, &own)
                    && id(first) == id(own)
                {
                    return self.add(Action::Same { path: entry.path.clone(), mark: Mark::of(own) });
                }
                match self.live.find(target)? {
                    Spot::Name(dir, first) => {
                        rustix::fs::linkat(dir, first, &self.stages[slot.stage].new, &name, AtFlags::empty())
                    }
                    _ => Err(Errno::NOENT),
                }
            }
        };
        linked.map_err(|e| fault("make a further name of a file for", shown, e))?;
        self.add(Action::Put { path: entry.path.clone(), slot })
    }

    fn put(&mut self, archive: &mut Archive<&mut dyn Read>, member: &Member) -> Result<(), SourceError> {
        let slot = self.slot(&member.entry.path)?;
        let name = slot.n.to_string();
        let laid = self.extractors[slot.stage].lay_as(archive, member, name.as_bytes()).map_err(extract_error)?;
        if laid {
            self.puts.insert(member.entry.path.clone(), slot);
            self.add(Action::Put { path: member.entry.path.clone(), slot })?;
        }
        Ok(())
    }

    /// Lays out a file with another content than the captured one, where there is one for it.
    fn put_over(&mut self, member: &Member) -> Result<bool, SourceError> {
        let Some(over) = overlay::find(self.job, &member.entry.path)? else { return Ok(false) };
        let mut other = member.clone();
        (other.entry.size, other.payload, other.map) = (over.content.len() as u64, over.content.len() as u64, None);
        // Its content is of today, and so is its time.
        other.entry.mtime = over.mtime;
        let mut content = Archive::content(over.content.as_slice(), other.payload);
        let slot = self.slot(&member.entry.path)?;
        let name = slot.n.to_string();
        let laid = self.extractors[slot.stage].lay_as(&mut content, &other, name.as_bytes()).map_err(extract_error)?;
        if laid {
            self.puts.insert(member.entry.path.clone(), slot);
            self.add(Action::Put { path: member.entry.path.clone(), slot })?;
        }
        Ok(true)
    }

    /// The next number in the folder beside that is on the file system where `path` will be.
    fn slot(&mut self, path: &[u8]) -> Result<Slot, SourceError> {
        let shown = self.job.display(path);
        let (Spot::Name(dir, _) | Spot::Base(dir) | Spot::NoWay(dir)) = self.live.find(path)?;
        let device = rustix::fs::fstat(dir).map_err(|e| fault("read", &shown, e))?.st_dev;
        let stage = self.stages.iter().position(|s| s.device == device).ok_or_else(|| {
            SourceError::hint(
                format!("{} lies on a file system that was not seen when the plan was made", shown.display()),
                "run it again",
            )
        })?;
        let n = self.next;
        self.next += 1;
        Ok(Slot { stage, n })
    }

    fn add(&mut self, action: Action) -> Result<(), SourceError> {
        match self.pending.replace(action) {
            Some(before) => self.list.add(&before),
            None => Ok(()),
        }
    }

    /// The entry before was captured once more: what was done for it does not count.
    fn take_back(&mut self, path: &[u8]) -> Result<(), SourceError> {
        let of = |action: &Action| match action {
            Action::Put { path, .. } | Action::Same { path, .. } => path.clone(),
            _ => Vec::new(),
        };
        self.redo.retain(|p| p != path);
        self.redo_set.remove(path);
        if self.pending.as_ref().is_none_or(|p| of(p) != path) {
            return Ok(());
        }
        if let Some(Action::Put { slot, .. }) = self.pending.take() {
            self.puts.remove(path);
            let new = &self.stages[slot.stage].new;
            rustix::fs::unlinkat(new, slot.n.to_string(), AtFlags::empty())
                .map_err(|e| fault("lay out again", self.job.display(path), e))?;
        }
        Ok(())
    }

    /// Whether the live file holds the member's bytes. The member's payload has been read up to where it differs.
    fn same_content(&mut self, archive: &mut Archive<&mut dyn Read>, member: &Member) -> Result<bool, SourceError> {
        let shown = self.job.display(&member.entry.path);
        let opened = match self.live.find(&member.entry.path)? {
            Spot::Name(dir, name) => {
                open_below(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC)
            }
            _ => return Ok(false),
        };
        let file = match opened {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::LOOP) => return Ok(false),
            Err(e) => return Err(fault("read", shown, e)),
        };
        let mut comparing = Comparing { file, buffer: vec![0; 256 << 10], differs: false };
        match write_content(archive, member, &mut comparing) {
            Ok(()) => Ok(true),
            Err(_) if comparing.differs => Ok(false),
            Err(e) => Err(extract_error(e)),
        }
    }

    /// For `exact`: what is there and was not captured.
    fn removals(&mut self, known: &HashSet<u64>) -> Result<(), SourceError> {
        let mut found: Vec<(Vec<u8>, bool)> = Vec::new();
        today(self.job, self.cancel, &mut |path, is_dir| {
            if !known.contains(&hash(path)) {
                found.push((path.to_vec(), is_dir));
            }
            Ok(())
        })?;
        // Innermost first, so that folders are empty when their turn comes.
        for (path, is_dir) in found.into_iter().rev() {
            if is_dir {
                let Some(was) = self.live.meta(&path)? else { continue };
                self.add(Action::RemoveDir { path, was })?;
            } else {
                let slot = self.slot(&path)?;
                self.add(Action::Remove { path, slot })?;
            }
        }
        Ok(())
    }

    /// Order (must): what is told is durable before the list counts.
    fn finish(mut self) -> Result<bool, SourceError> {
        if let Some(last) = self.pending.take() {
            self.list.add(&last)?;
        }
        for extractor in self.extractors {
            let report = extractor.finish().map_err(extract_error)?;
            if let Some(text) = told::refusal(&report) {
                return Err(SourceError::problem(format!("cannot be laid out beside the live one: {text}")));
            }
            self.told = self.told.and(report);
        }
        told::keep(self.job, Told::Laid, &self.told)?;
        if !self.redo.is_empty() {
            write_redo(&self.job.redo(), &self.redo)?;
        }
        self.list.finish()?;
        Ok(!self.redo.is_empty())
    }
}

/// A writer that compares what it gets with a file.
struct Comparing {
    file: File,
    buffer: Vec<u8>,
    differs: bool,
}

impl Write for Comparing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.buffer.len());
        match self.file.read_exact(&mut self.buffer[..n]) {
            Ok(()) if self.buffer[..n] == bytes[..n] => Ok(n),
            Ok(()) => {
                self.differs = true;
                Err(io::Error::other("it differs"))
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                self.differs = true;
                Err(e)
            }
            Err(e) => Err(e),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
