//! Entry by entry: files, links and, when allowed, special files.

use super::ExtractError;
use super::archive::{Archive, Member, TarError};
use super::copy::Original;
use super::crew::{BUFFER, Crew, Large, Small, new_file, not_created};
use super::dirs::{Dirs, Id, NoDir, open_new, stat_below};
use super::metadata::{self, Wanted};
use super::report::{Aspect, Report, Severity};
use crate::base::cancel::Cancel;
use crate::base::direct;
use crate::base::read;
use crate::sources::files::entry::{Entry, Kind};
use crate::sources::files::frame::Segment;
use crate::sources::files::hash64;
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, Stat, makedev};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

/// Larger files get their room as they are written: a size is only what the archive says.
const MAX_FALLOCATE: u64 = 1 << 30;

/// How an archive is laid out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Restore setuid and setgid bits, device nodes, FIFOs, capabilities and other attributes of the system.
    pub privileged: bool,
    /// Restore owners. What is not permitted is reported.
    pub owners: bool,
    /// Replace files that are there, and give folders that are there the archive's metadata.
    pub overwrite: bool,
}

/// Lays archives out in one folder.
pub struct Extractor {
    dirs: Dirs,
    options: Options,
    cancel: Cancel,
    crew: Crew,
    /// What is said of entries that are not the crew's.
    report: Report,
    /// Bytes of data that came with the archive, and those of copies in place of hard links.
    written: u64,
    copied: u64,
    buffer: Vec<u8>,
}

/// By whom an entry was laid out.
enum Laid {
    Here,
    /// It will be: what becomes of it stands in the crew's reports.
    HandedOver,
}

/// Why an entry is not laid out although the extraction goes on.
enum Not {
    Refused(String),
    Missing(String),
    Failed(ExtractError),
}

impl From<NoDir> for Not {
    fn from(e: NoDir) -> Self {
        match e {
            NoDir::Refused(what) => Not::Refused(what.into()),
            NoDir::Missing(what) => Not::Missing(what),
            NoDir::Failed(e) => Not::Failed(e),
        }
    }
}

impl From<ExtractError> for Not {
    fn from(e: ExtractError) -> Self {
        Not::Failed(e)
    }
}

impl Extractor {
    /// `destination` must be a folder that exists.
    pub fn new(destination: &Path, options: Options, cancel: &Cancel) -> Result<Self, ExtractError> {
        let crew = Crew::new(destination, options, cancel);
        Ok(Extractor {
            dirs: Dirs::open(destination, &crew.shared)?,
            options,
            cancel: cancel.clone(),
            crew,
            report: Report::default(),
            written: 0,
            copied: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Lays out a whole archive.
    pub fn extract(&mut self, archive: impl BufRead) -> Result<(), ExtractError> {
        self.extract_only(archive, &|_| true)
    }

    /// Lays out those entries of a whole archive that `wanted` takes, by their paths.
    pub fn extract_only(&mut self, archive: impl BufRead, wanted: &dyn Fn(&[u8]) -> bool) -> Result<(), ExtractError> {
        self.run(Archive::new(archive), wanted, &|_| {})?;
        self.crew.settle();
        self.crew.check()
    }

    /// Lays out entries that were cut out of an archive by their offsets and lengths. `rename` gives a single entry
    /// another path: that of a hard link whose target was cut out for it.
    pub fn extract_part(&mut self, entries: impl BufRead, rename: Option<&[u8]>) -> Result<(), ExtractError> {
        self.run(Archive::part(entries), &|_| true, &|entry| {
            if let Some(path) = rename {
                entry.path = path.to_vec();
            }
        })
    }

    /// Lays out a hard link that was cut out of an archive, as a further name of `target`, which this run has laid out.
    pub fn extract_link(&mut self, entry: impl BufRead, target: &[u8]) -> Result<(), ExtractError> {
        self.run(Archive::part(entry), &|_| true, &|entry| {
            if let Kind::Hardlink(_) = entry.kind {
                entry.kind = Kind::Hardlink(target.to_vec());
            }
        })
    }

    /// Lays out one member that the caller has read, under a single name in the destination. `false`: the report says
    /// why it is not there.
    pub fn lay_as<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        member: &Member,
        name: &[u8],
    ) -> Result<bool, ExtractError> {
        self.cancel.check()?;
        let mut renamed = member.clone();
        renamed.entry.path = name.to_vec();
        renamed.again = false;
        for lost in &member.lost {
            self.report.add(Severity::Metadata, Aspect::Attribute, &member.entry.path, lost.clone());
        }
        let before = self.report.differences.len();
        let laid = match self.way_to(&renamed) {
            Ok((name, _)) => self.alone(archive, &renamed, name),
            Err(not) => Err(not),
        };
        let (severity, what) = match laid {
            Ok(()) => {
                self.report.entries += 1;
                self.report.bytes += member.entry.size;
                self.rename_differences(before, &member.entry.path);
                return Ok(true);
            }
            Err(Not::Refused(what)) => (Severity::Refused, what),
            Err(Not::Missing(what)) => (Severity::Missing, what),
            Err(Not::Failed(e)) => return Err(e),
        };
        self.report.add(severity, Aspect::of(&member.entry.kind), &member.entry.path, what);
        Ok(false)
    }

    /// What was said of a name that is ours alone is about the entry's own path.
    fn rename_differences(&mut self, from: usize, path: &[u8]) {
        for difference in self.report.differences.iter_mut().skip(from) {
            difference.path = crate::sources::files::entry::display(path);
        }
    }

    /// Ends the extraction: the last folders get their metadata, and all is durable. Leaving it out leaves folders
    /// without theirs.
    pub fn finish(mut self) -> Result<Report, ExtractError> {
        self.dirs.leave(0, &mut self.crew, &self.report)?;
        let report = self.crew.gather(std::mem::take(&mut self.report));
        self.crew.check()?;
        rustix::fs::syncfs(self.dirs.root()).map_err(|e| self.file_error("make durable", b"", e))?;
        Ok(report)
    }

    fn run<R: BufRead>(
        &mut self,
        mut archive: Archive<R>,
        wanted: &dyn Fn(&[u8]) -> bool,
        change: &dyn Fn(&mut Entry),
    ) -> Result<(), ExtractError> {
        while let Some(mut member) = archive.next_member()? {
            self.crew.check()?;
            if !wanted(&member.entry.path) {
                continue;
            }
            change(&mut member.entry);
            for lost in std::mem::take(&mut member.lost) {
                self.report.add(Severity::Metadata, Aspect::Attribute, &member.entry.path, lost);
            }
            let (severity, what) = match self.member(&mut archive, &member) {
                Ok(Laid::HandedOver) => continue,
                Ok(Laid::Here) => {
                    self.report.entries += 1;
                    self.report.bytes += member.entry.size;
                    continue;
                }
                Err(Not::Refused(what)) => (Severity::Refused, what),
                Err(Not::Missing(what)) => (Severity::Missing, what),
                Err(Not::Failed(e)) => return Err(e),
            };
            self.report.add(severity, Aspect::of(&member.entry.kind), &member.entry.path, what);
        }
        Ok(())
    }

    fn member<R: BufRead>(&mut self, archive: &mut Archive<R>, member: &Member) -> Result<Laid, Not> {
        let (name, own) = self.way_to(member)?;
        if member.entry.kind == Kind::File && !member.again && !self.options.overwrite {
            return self.hand_over(archive, member, name, own).map(|()| Laid::HandedOver);
        }
        self.alone(archive, member, name).map(|()| Laid::Here)
    }

    /// Goes to the folder that a member lies in; its name there, and the way to it.
    fn way_to<'m>(&mut self, member: &'m Member) -> Result<(&'m [u8], u64), Not> {
        let entry = &member.entry;
        let way = components(&entry.path).map_err(|what| Not::Refused(what.into()))?;
        let Some((name, parents)) = way.split_last() else {
            return Err(Not::Missing("the destination keeps its own metadata".into()));
        };
        let own = ways(&way).last().unwrap_or_default();
        if matches!(entry.kind, Kind::Hardlink(_)) || self.crew.is_pending(ways(&way)) {
            self.crew.settle();
        }
        self.dirs.enter(parents, &mut self.crew, &self.report)?;
        Ok((name, own))
    }

    fn alone<R: Read>(&mut self, archive: &mut Archive<R>, member: &Member, name: &[u8]) -> Result<(), Not> {
        let entry = &member.entry;
        match &entry.kind {
            Kind::Dir => Ok(self.dirs.make(name, entry.clone(), &self.options, &mut self.crew, &mut self.report)?),
            Kind::File => self.file(archive, member, name),
            Kind::Symlink(target) => {
                if target.is_empty() || target.contains(&0) {
                    return Err(Not::Refused("a symlink with an impossible target".into()));
                }
                self.place(entry, name, member.again, |dir, name| {
                    rustix::fs::symlinkat(OsStr::from_bytes(target), dir, name)
                })
            }
            Kind::Hardlink(target) => self.hardlink(entry, name, target),
            special => {
                if !self.options.privileged {
                    return Err(Not::Refused(format!("a {} is not restored without --privileged", special.noun())));
                }
                let (file_type, device) = match special {
                    Kind::CharDevice(major, minor) => (FileType::CharacterDevice, makedev(*major, *minor)),
                    Kind::BlockDevice(major, minor) => (FileType::BlockDevice, makedev(*major, *minor)),
                    _ => (FileType::Fifo, 0),
                };
                self.place(entry, name, member.again, |dir, name| {
                    rustix::fs::mknodat(dir, name, file_type, Mode::RUSR | Mode::WUSR, device)
                })
            }
        }
    }

    /// A file whose content goes to the crew. Small ones are created there, too.
    fn hand_over<R: BufRead>(
        &mut self,
        archive: &mut Archive<R>,
        member: &Member,
        name: &[u8],
        way: u64,
    ) -> Result<(), Not> {
        let entry = &member.entry;
        self.make_way(entry, name, false)?;
        let turn = self.crew.turn(self.report.differences.len());
        let (folder, name, entry) = (self.dirs.folder().clone(), name.to_vec(), entry.clone());
        if member.map.is_none() && entry.size < BUFFER as u64 {
            let mut content = Vec::with_capacity(entry.size as usize);
            let read = read::append(archive, entry.size, &mut content).map_err(read_error)?;
            all_of(entry.size, read, member.offset)?;
            self.written += entry.size;
            self.crew.small(Small { turn, folder, name, entry, content, way });
            return Ok(());
        }
        let file = open_new(folder.as_fd(), OsStr::from_bytes(&name), new_file(), Mode::RUSR | Mode::WUSR)
            .map_err(|e| self.not_created(&entry, e))?;
        let (file, complete) = (File::from(file), AtomicBool::new(false));
        // What has holes is written at any offset.
        let direct = member.map.is_none() && direct::switch_restored(&file);
        let large = self.crew.begin(Large { turn, folder, name, entry, file, direct, complete, way });
        self.prepare(member, &large.file)?;
        let whole = [Segment { offset: 0, length: member.entry.size }];
        for segment in member.map.as_ref().map_or(whole.as_slice(), |map| &map.segments) {
            let (mut at, end) = (segment.offset, segment.offset + segment.length);
            while at < end {
                self.crew.check()?;
                let mut bytes = self.crew.buffer();
                let n = (end - at).min(BUFFER as u64);
                let read = bytes.read_from(archive, n).map_err(read_error)?;
                all_of(n, read, member.offset)?;
                self.crew.part(&large, at, bytes);
                self.written += n;
                at += n;
            }
        }
        large.complete.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn file<R: Read>(&mut self, archive: &mut Archive<R>, member: &Member, name: &[u8]) -> Result<(), Not> {
        let entry = &member.entry;
        let temporary = self.make_way(entry, name, member.again)?;
        let target = temporary.as_deref().unwrap_or(name);
        let file = open_new(self.dirs.current(), OsStr::from_bytes(target), new_file(), Mode::RUSR | Mode::WUSR)
            .map_err(|e| self.not_created(entry, e))?;
        let mut file = File::from(file);
        let result = self.fill(archive, member, &mut file).map_err(Not::Failed).and_then(|()| {
            let stat = metadata::apply_to_file(file.as_fd(), entry, Wanted::of(&self.options), &mut self.report)
                .map_err(|e| self.file_error("read", &entry.path, e))?;
            self.made(&stat);
            self.put_in_place(entry, temporary.as_deref(), name)
        });
        if result.is_err() {
            // Half a file must not look like one. It is ours: it was created a moment ago under this very name.
            let _ = rustix::fs::unlinkat(self.dirs.current(), OsStr::from_bytes(target), AtFlags::empty());
        }
        result
    }

    /// The file's length, or room for it.
    fn prepare(&self, member: &Member, file: &File) -> Result<(), ExtractError> {
        let failed = |e| self.file_error("write", &member.entry.path, e);
        if member.map.is_some() {
            return rustix::fs::ftruncate(file, member.entry.size).map_err(failed);
        }
        // Room in one run is a courtesy that not every file system does; only a full one says so.
        if (BUFFER as u64..=MAX_FALLOCATE).contains(&member.entry.size)
            && let Err(e @ Errno::NOSPC) = rustix::fs::fallocate(file, FallocateFlags::empty(), 0, member.entry.size)
        {
            return Err(failed(e));
        }
        Ok(())
    }

    /// The content; what the archive says of its length has been checked against its data, or is checked by reading.
    fn fill<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        member: &Member,
        file: &mut File,
    ) -> Result<(), ExtractError> {
        self.prepare(member, file)?;
        let path = &member.entry.path;
        let failed = |e: io::Error| ExtractError::File { action: "write", path: self.dirs.display(path), source: e };
        let whole = [Segment { offset: 0, length: member.entry.size }];
        let segments = member.map.as_ref().map_or(whole.as_slice(), |map| &map.segments);
        for segment in segments {
            if member.map.is_some() {
                rustix::fs::seek(&*file, rustix::fs::SeekFrom::Start(segment.offset)).map_err(|e| failed(e.into()))?;
            }
            let mut left = segment.length;
            while left > 0 {
                self.cancel.check()?;
                let want = (BUFFER as u64).min(left) as usize;
                let n = archive.read(&mut self.buffer[..want]).map_err(read_error)?;
                if n == 0 {
                    return Err(TarError::Truncated { what: "the content of an entry", offset: member.offset }.into());
                }
                file.write_all(&self.buffer[..n]).map_err(failed)?;
                self.written += n as u64;
                left -= n as u64;
            }
        }
        Ok(())
    }

    fn hardlink(&mut self, entry: &Entry, name: &[u8], target: &[u8]) -> Result<(), Not> {
        let way = components(target).map_err(|what| Not::Refused(format!("its target: {what}")))?;
        let Some((last, parents)) = way.split_last() else {
            return Err(Not::Refused("a hard link to the destination itself".into()));
        };
        let unseen = |e| match e {
            Errno::LOOP | Errno::NOTDIR | Errno::XDEV => Not::Refused("a hard link through a symlink or file".into()),
            Errno::NOENT | Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ => {
                Not::Missing("a hard link to something that was not restored".into())
            }
            Errno::ACCESS | Errno::PERM => Not::Missing(format!("the folder of its target: {}", io::Error::from(e))),
            e => Not::Failed(self.file_error("open", target, e)),
        };
        let dir = self.dirs.open_way(parents).map_err(unseen)?;
        let stat = stat_below(dir.as_fd(), last).and_then(|stat| stat.ok_or(Errno::NOENT)).map_err(unseen)?;
        let id = (stat.st_dev, stat.st_ino);
        if !self.is_made(&id) {
            return Err(Not::Refused("a hard link to something that is not of this archive".into()));
        }
        let temporary = self.make_way(entry, name, false)?;
        let new = temporary.as_deref().unwrap_or(name);
        match rustix::fs::linkat(
            &dir,
            OsStr::from_bytes(last),
            self.dirs.current(),
            OsStr::from_bytes(new),
            AtFlags::empty(),
        ) {
            Ok(()) => {}
            Err(e @ (Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP)) => {
                let from = Original { dir: dir.as_fd(), name: last, target, id };
                self.copy_instead(entry, &from, new, e)?;
                return self.put_in_place(entry, temporary.as_deref(), name);
            }
            Err(e) => return Err(self.not_created(entry, e)),
        }
        let linked = stat_below(self.dirs.current(), new).ok().flatten().map(|s| (s.st_dev, s.st_ino));
        let result = if linked == Some(id) {
            self.put_in_place(entry, temporary.as_deref(), name)
        } else {
            Err(Not::Refused("its target was replaced while it was being linked".into()))
        };
        if result.is_err() || temporary.is_some() {
            // A rename of one name of a file over another name of it does nothing and leaves both.
            let gone = if result.is_err() { Some(new) } else { temporary.as_deref() };
            if let Some(gone) = gone {
                let _ = rustix::fs::unlinkat(self.dirs.current(), OsStr::from_bytes(gone), AtFlags::empty());
            }
        }
        result
    }

    /// A hard link that cannot be one, as a copy under a name that is free.
    fn copy_instead(&mut self, entry: &Entry, from: &Original<'_>, new: &[u8], why: Errno) -> Result<(), Not> {
        let wanted = Wanted::of(&self.options);
        let missing = |and: &str| Not::Missing(format!("hard link not restored: {}{and}", io::Error::from(why)));
        let opened = from
            .open(&entry.path, wanted)
            .map_err(|e| missing(&format!("; nor can it be copied: {}", io::Error::from(e))))?;
        let Some(opened) = opened else { return Err(missing("")) };
        let os_new = OsStr::from_bytes(new);
        let file = open_new(self.dirs.current(), os_new, new_file(), Mode::RUSR | Mode::WUSR)
            .map_err(|e| self.not_created(entry, e))?;
        let file = File::from(file);
        let most = self.written.saturating_sub(self.copied);
        let result = match opened.copy_to(&file, &mut self.buffer, most, &self.cancel) {
            Ok(Some(copied)) => {
                self.copied += copied;
                metadata::apply_to_file(file.as_fd(), opened.entry(), wanted, &mut self.report)
                    .map_err(|e| Not::Failed(self.file_error("read", &entry.path, e)))
            }
            Ok(None) => Err(missing("; and copies would hold more than the archive does")),
            Err(e) => Err(Not::Failed(e)),
        };
        match result {
            Ok(stat) => {
                self.made(&stat);
                from.tell(&entry.path, why, &mut self.report);
                Ok(())
            }
            Err(e) => {
                // It was created a moment ago under this very name.
                let _ = rustix::fs::unlinkat(self.dirs.current(), os_new, AtFlags::empty());
                Err(e)
            }
        }
    }

    /// A symlink or special file: created under a single name, and given its metadata there.
    fn place(
        &mut self,
        entry: &Entry,
        name: &[u8],
        again: bool,
        create: impl FnOnce(rustix::fd::BorrowedFd<'_>, &OsStr) -> Result<(), Errno>,
    ) -> Result<(), Not> {
        let temporary = self.make_way(entry, name, again)?;
        let new = OsStr::from_bytes(temporary.as_deref().unwrap_or(name));
        create(self.dirs.current(), new).map_err(|e| self.not_created(entry, e))?;
        let stat =
            metadata::apply_by_name(self.dirs.current(), new, entry, Wanted::of(&self.options), &mut self.report)
                .map_err(|e| self.file_error("read", &entry.path, e))?;
        self.made(&stat);
        self.put_in_place(entry, temporary.as_deref(), name)
    }

    /// Sees to it that a name can be created: `None` when it is free, else the temporary name that will be renamed
    /// over what is there.
    fn make_way(&mut self, entry: &Entry, name: &[u8], again: bool) -> Result<Option<Vec<u8>>, Not> {
        let dir = self.dirs.current();
        let stat = stat_below(dir, name).map_err(|e| self.not_created(entry, e))?;
        let Some(stat) = stat else { return Ok(None) };
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Err(Not::Refused("a folder stands in its place".into()));
        }
        let ours = self.is_made(&(stat.st_dev, stat.st_ino));
        if ours && again {
            rustix::fs::unlinkat(dir, OsStr::from_bytes(name), AtFlags::empty())
                .map_err(|e| self.file_error("replace", &entry.path, e))?;
            return Ok(None);
        }
        if ours {
            return Err(Not::Refused("the archive has this name twice".into()));
        }
        if !self.options.overwrite {
            return Err(Not::Missing("something stands in its place, and replacing was not asked for".into()));
        }
        let random: [u8; 8] = crate::base::ids::random_bytes().map_err(|e| {
            Not::Failed(ExtractError::File {
                action: "name a temporary file for",
                path: self.dirs.display(name),
                source: e,
            })
        })?;
        Ok(Some(format!(".lifeboat-{}.tmp", hex::encode(random)).into_bytes()))
    }

    fn put_in_place(&self, entry: &Entry, temporary: Option<&[u8]>, name: &[u8]) -> Result<(), Not> {
        let Some(temporary) = temporary else { return Ok(()) };
        let dir = self.dirs.current();
        rustix::fs::renameat(dir, OsStr::from_bytes(temporary), dir, OsStr::from_bytes(name))
            .map_err(|e| Not::Failed(self.file_error("replace", &entry.path, e)))
    }

    fn not_created(&self, entry: &Entry, e: Errno) -> Not {
        match not_created(entry, e) {
            Some((Severity::Refused, what)) => Not::Refused(what),
            Some((_, what)) => Not::Missing(what),
            None => Not::Failed(self.file_error("create", &entry.path, e)),
        }
    }

    fn made(&self, stat: &Stat) {
        self.crew.shared.made.lock().unwrap_or_else(PoisonError::into_inner).insert((stat.st_dev, stat.st_ino));
    }

    fn is_made(&self, id: &Id) -> bool {
        self.crew.shared.made.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    fn file_error(&self, action: &'static str, path: &[u8], e: Errno) -> ExtractError {
        ExtractError::File { action, path: self.dirs.display(path), source: e.into() }
    }
}

/// Writes the content of a member to `out`, holes as zeros: `cat`.
pub fn write_content<R: Read>(
    archive: &mut Archive<R>,
    member: &Member,
    out: &mut dyn Write,
) -> Result<(), ExtractError> {
    let failed = |source| ExtractError::File { action: "write out", path: "".into(), source };
    let whole = [Segment { offset: 0, length: member.entry.size }];
    let segments = member.map.as_ref().map_or(whole.as_slice(), |m| &m.segments);
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    let end = [Segment { offset: member.entry.size, length: 0 }];
    for segment in segments.iter().chain(&end) {
        io::copy(&mut io::repeat(0).take(segment.offset.saturating_sub(at)), out).map_err(failed)?;
        let mut left = segment.length;
        while left > 0 {
            let want = (BUFFER as u64).min(left) as usize;
            let n = archive.read(&mut buffer[..want]).map_err(read_error)?;
            if n == 0 {
                return Err(TarError::Truncated { what: "the content of an entry", offset: member.offset }.into());
            }
            out.write_all(&buffer[..n]).map_err(failed)?;
            left -= n as u64;
        }
        at = segment.offset + segment.length;
    }
    Ok(())
}

/// Whether what was read is as much as the archive says.
fn all_of(n: u64, read: u64, offset: u64) -> Result<(), ExtractError> {
    if read < n {
        return Err(TarError::Truncated { what: "the content of an entry", offset }.into());
    }
    Ok(())
}

/// An error of the reader below, or what the archive itself found.
fn read_error(e: io::Error) -> ExtractError {
    match e.downcast::<TarError>() {
        Ok(e) => e.into(),
        Err(e) => TarError::Io(e).into(),
    }
}

/// Hashes of the path and of all above it, the shortest first.
fn ways<'w>(way: &'w [&[u8]]) -> impl Iterator<Item = u64> + 'w {
    way.iter().scan(0u64, |above, name| {
        *above = above.rotate_left(17).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ hash64(name);
        Some(*above)
    })
}

/// The names of a relative path. `.` is passed over; everything that could lead out is refused.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.is_empty() {
        return Err("an empty path");
    }
    if path.starts_with(b"/") {
        return Err("an absolute path");
    }
    if path.contains(&0) {
        return Err("a path with a NUL byte");
    }
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|name| *name != b".").collect();
    if names.iter().any(|name| *name == b"..") {
        return Err("a path with ..");
    }
    if names.iter().any(|name| name.is_empty()) {
        return Err("a path with an empty name");
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_out_are_refused() {
        assert_eq!(components(b"./a/./b").unwrap(), [b"a", b"b"]);
        assert_eq!(components(b".").unwrap().len(), 0);
        assert_eq!(components(b"a..b/...").unwrap().len(), 2);
        for bad in [&b""[..], b"/", b"/a", b"..", b"a/../b", b"a//b", b"a/..", b"a\0b"] {
            assert!(components(bad).is_err());
        }
    }
}
