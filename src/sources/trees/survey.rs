//! Before anything is changed: what of the captured tree differs from the live one, where it can be laid out beside,
//! and whether there is room. Contents are not read: what has another size, time, owner or mode counts as different.

use super::super::SourceError;
use super::super::extract::Wanted;
use super::super::files::entry::{Entry, Kind, Time, display};
use super::super::placing::Room;
use super::fault;
use super::job::Job;
use super::live::{Live, Spot};
use super::today::today;
use crate::base::cancel::Cancel;
use crate::base::stream::{FileType, ListingEntry};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{Access, AtFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The longest line of a listing.
const MAX_LINE: u64 = 512 << 10;
/// Paths of each sort that are named in a plan.
const NAMED: usize = 5;
const BLOCK: u64 = 4096;

/// What was found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Survey {
    pub same: u64,
    pub replaced: Paths,
    pub missing: Paths,
    pub newer: Paths,
    /// What lies where today's policy does not look.
    #[serde(default)]
    pub strays: Paths,
    /// Files and links whose content of today goes: overwritten ones, and for `exact` those that are newer.
    #[serde(default)]
    pub lost_files: u64,
    pub stages: Vec<PathBuf>,
    pub room: Vec<Room>,
    pub warnings: Vec<String>,
}

/// Some paths, and how many.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Paths {
    pub count: u64,
    pub first: Vec<String>,
}

impl Paths {
    fn add(&mut self, path: &[u8]) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(format!("/{}", display(path)));
        }
    }

    fn text(&self) -> String {
        let more = self.count - self.first.len() as u64;
        let more = if more == 0 { String::new() } else { format!(", and {more} more") };
        format!("{}{more}", self.first.join(", "))
    }
}

impl Survey {
    /// The plan's lines.
    pub fn lines(&self, exact: bool) -> Vec<String> {
        let mut lines = Vec::new();
        if self.replaced.count > 0 {
            lines.push(format!(
                "{} changed since and replaced: {}",
                entries(self.replaced.count),
                self.replaced.text()
            ));
        }
        if self.missing.count > 0 {
            lines.push(format!("{} missing and brought back: {}", entries(self.missing.count), self.missing.text()));
        }
        if self.newer.count > 0 && exact {
            lines.push(format!("{} newer and taken away: {}", entries(self.newer.count), self.newer.text()));
        }
        if lines.is_empty() {
            lines.push("nothing differs in size, time, owner or mode; contents are compared all the same".to_owned());
        }
        lines.push(format!("{} left alone", entries(self.same)));
        lines
    }
}

fn entries(n: u64) -> String {
    if n == 1 { "1 entry".to_owned() } else { format!("{n} entries") }
}

/// Looks at the live tree. The job's stages are found here.
pub fn survey(job: &Job, listing: &mut dyn Read, cancel: &Cancel) -> Result<Survey, SourceError> {
    let mut eye = Eye {
        job,
        live: Live::open(job)?,
        survey: Survey::default(),
        needs: BTreeMap::new(),
        devices: Vec::new(),
        checked: HashSet::new(),
        wanted: Wanted { privileged: job.privileged, owners: rustix::process::geteuid().is_root() },
        foreign: 0,
    };
    let mut known: HashSet<u64> = HashSet::new();
    let mut found = vec![false; job.paths.len()];
    lines(listing, &mut |listed, path| {
        cancel.check()?;
        if job.exact {
            known.insert(hash(&path));
        }
        for (at, wanted) in job.paths.iter().enumerate() {
            let wanted = wanted.as_os_str().as_bytes();
            found[at] |= path == wanted || (path.starts_with(wanted) && path.get(wanted.len()) == Some(&b'/'));
        }
        if job.takes(&path) || (listed.file_type == FileType::Dir && job.leads(&path)) {
            eye.entry(entry_of(&listed, path)?)?;
        }
        Ok(())
    })?;
    if let Some(at) = found.iter().position(|f| !f) {
        return Err(SourceError::hint(
            format!("the snapshot has no /{} in this source", job.paths[at].display()),
            "`lifeboat ls` lists what it has",
        ));
    }
    if job.exact {
        today(job, cancel, &mut |path, is_dir| {
            if !known.contains(&hash(path)) {
                eye.survey.newer.add(path);
                eye.survey.lost_files += u64::from(!is_dir);
                eye.stage_for(path)?;
            }
            Ok(())
        })?;
    }
    eye.finish()
}

/// Passes each line of a listing with its path.
pub fn lines(
    listing: &mut dyn Read,
    visit: &mut dyn FnMut(ListingEntry, Vec<u8>) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let failed =
        |e: std::io::Error| SourceError::File { action: "read the listing in", path: "the snapshot".into(), source: e };
    let mut reader = BufReader::new(listing);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).map_err(failed)?;
        if line.is_empty() {
            return Ok(());
        }
        let listed: ListingEntry = serde_json::from_slice(&line).map_err(|e| failed(e.into()))?;
        let path = exact(&listed.path, listed.path_hex.as_deref())?;
        visit(listed, path)?;
    }
}

fn exact(text: &str, hex: Option<&str>) -> Result<Vec<u8>, SourceError> {
    match hex {
        None => Ok(text.as_bytes().to_vec()),
        Some(hex) => hex::decode(hex).map_err(|_| SourceError::problem("a path's hex form in the listing is none")),
    }
}

/// A link's target as the listing has it.
pub fn target_of(listed: &ListingEntry) -> Result<Vec<u8>, SourceError> {
    exact(listed.target.as_deref().unwrap_or_default(), listed.target_hex.as_deref())
}

fn entry_of(listed: &ListingEntry, path: Vec<u8>) -> Result<Entry, SourceError> {
    Ok(Entry {
        path,
        kind: match listed.file_type {
            FileType::File => Kind::File,
            FileType::Dir => Kind::Dir,
            FileType::Symlink => Kind::Symlink(target_of(listed)?),
            FileType::Hardlink => Kind::Hardlink(target_of(listed)?),
        },
        size: listed.size,
        mode: listed.mode,
        uid: listed.uid,
        gid: listed.gid,
        user: None,
        group: None,
        mtime: Time { seconds: listed.mtime, nanos: listed.mtime_ns },
        xattrs: Vec::new(),
    })
}

pub fn hash(path: &[u8]) -> u64 {
    let hash = blake3::hash(path);
    u64::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]))
}

/// Of the last name of a path.
pub fn name_of(path: &[u8]) -> u64 {
    hash(path.rsplit(|b| *b == b'/').next().unwrap_or(path))
}

struct Eye<'a> {
    job: &'a Job,
    live: Live<'a>,
    survey: Survey,
    /// Bytes that are laid out, by stage.
    needs: BTreeMap<usize, u64>,
    /// The file system of each stage.
    devices: Vec<u64>,
    /// Folders that may be written to.
    checked: HashSet<(u64, u64)>,
    wanted: Wanted,
    /// Entries of other accounts that this one cannot give away.
    foreign: u64,
}

impl Eye<'_> {
    fn entry(&mut self, entry: Entry) -> Result<(), SourceError> {
        let path = entry.path.clone();
        if entry.kind != Kind::Dir && self.job.strays(&path) {
            self.survey.strays.add(&path);
        }
        let stat = self.live.stat(&path)?;
        if entry.kind == Kind::Dir {
            match stat {
                Some(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => self.survey.same += 1,
                other => {
                    if other.is_some() {
                        self.survey.replaced.add(&path);
                        self.survey.lost_files += 1;
                    } else {
                        self.survey.missing.add(&path)
                    }
                    self.change(&path, BLOCK, entry.uid)?;
                }
            }
            return Ok(());
        }
        let Some(stat) = stat else {
            self.survey.missing.add(&path);
            return self.change(&path, room_of(&entry), entry.uid);
        };
        // A further name of a file is judged by the file's first name; that it is there is enough here.
        if matches!(entry.kind, Kind::Hardlink(_)) || self.live.is_like(&entry, &stat, self.wanted)? {
            self.survey.same += 1;
            return self.stage_for(&path).map(drop);
        }
        self.survey.replaced.add(&path);
        // Another owner or mode alone is no content.
        let timed = stat.st_mtime == entry.mtime.seconds
            && (entry.mtime.nanos == 0 || stat.st_mtime_nsec as u32 == entry.mtime.nanos);
        let is_file = entry.kind == Kind::File && rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        self.survey.lost_files += u64::from(!(is_file && timed && stat.st_size as u64 == entry.size));
        self.change(&path, room_of(&entry), entry.uid)
    }

    fn change(&mut self, path: &[u8], bytes: u64, uid: u32) -> Result<(), SourceError> {
        let stage = self.stage_for(path)?;
        let needs = self.needs.entry(stage).or_default();
        *needs = needs.saturating_add(bytes);
        if !self.wanted.owners && uid != rustix::process::geteuid().as_raw() {
            self.foreign += 1;
        }
        let shown = self.job.display(path);
        if let Spot::Name(dir, _) | Spot::NoWay(dir) = self.live.find(path)? {
            let stat = rustix::fs::fstat(dir).map_err(|e| fault("read", &shown, e))?;
            if !self.checked.contains(&(stat.st_dev, stat.st_ino)) {
                may_write(dir).map_err(|e| not_writable(shown.parent().unwrap_or(&shown), e))?;
                self.checked.insert((stat.st_dev, stat.st_ino));
            }
        }
        Ok(())
    }

    /// The folder beside in which what belongs at `path` is laid out: on the same file system as the folder that it
    /// will be in.
    fn stage_for(&mut self, path: &[u8]) -> Result<usize, SourceError> {
        let shown = self.job.display(path);
        let (Spot::Name(dir, _) | Spot::Base(dir) | Spot::NoWay(dir)) = self.live.find(path)?;
        let device = rustix::fs::fstat(dir).map_err(|e| fault("read", &shown, e))?.st_dev;
        if let Some(at) = self.devices.iter().position(|d| *d == device) {
            return Ok(at);
        }
        let depth = self.live.depth();
        let stage = self.choose(path, depth, device)?;
        self.devices.push(device);
        self.survey.stages.push(stage);
        Ok(self.devices.len() - 1)
    }

    /// The highest folder on the way, from the one above the named path down to `depth` levels below the base, that is
    /// on this file system and may be written to.
    fn choose(&self, path: &[u8], depth: usize, device: u64) -> Result<PathBuf, SourceError> {
        let (base, names) = self.job.names(path)?;
        let base = &self.job.bases[base];
        let whole = Path::new(std::ffi::OsStr::from_bytes(path));
        let above = self.job.named.iter().chain(&self.job.outside).filter(|n| whole.starts_with(n));
        let named = above.map(|n| n.components().count()).min();
        // The prefix of a base is a name of the tar, not a folder below the base.
        let prefix = usize::from(!base.prefix.is_empty());
        let above = named.unwrap_or(prefix + depth + 1).saturating_sub(prefix + 1);
        let mut last = Errno::ACCESS;
        for levels in above.min(depth)..=depth {
            let dir = names[..levels].iter().fold(base.dir.clone(), |d, n| d.join(std::ffi::OsStr::from_bytes(n)));
            let Ok(opened) = open_real(&dir) else { continue };
            let on_device = rustix::fs::fstat(&opened).is_ok_and(|stat| stat.st_dev == device);
            match may_write(opened.as_fd()) {
                Ok(()) if on_device => return Ok(dir),
                Ok(()) => {}
                Err(e) => last = e,
            }
        }
        Err(not_writable(&self.job.display(path), last))
    }

    fn finish(mut self) -> Result<Survey, SourceError> {
        for (at, stage) in self.survey.stages.iter().enumerate() {
            let stat = rustix::fs::statvfs(stage).map_err(|e| fault("look for free space at", stage, e))?;
            self.survey.room.push(Room {
                place: stage.display().to_string(),
                device: Room::device_of(stage),
                bytes_needed: self.needs.get(&at).copied().unwrap_or(0),
                bytes_free: Room::free_of(&stat),
            });
        }
        if self.survey.strays.count > 0 {
            self.survey.warnings.push(format!(
                "{} outside what the policy names would be put back as well: {}",
                entries(self.survey.strays.count),
                self.survey.strays.text()
            ));
        }
        if self.foreign > 0 {
            self.survey.warnings.push(format!(
                "{} belong to other accounts, and only root may give files away: they will belong to this one",
                entries(self.foreign)
            ));
        }
        Ok(self.survey)
    }
}

fn open_real(dir: &Path) -> Result<rustix::fd::OwnedFd, Errno> {
    rustix::fs::open(dir, super::live::DIRECTORY, rustix::fs::Mode::empty())
}

fn room_of(entry: &Entry) -> u64 {
    match entry.kind {
        Kind::File => entry.size.div_ceil(BLOCK).saturating_mul(BLOCK),
        _ => 0,
    }
}

fn may_write(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::accessat(dir, c".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
}

fn not_writable(path: &Path, e: Errno) -> SourceError {
    let hint = match e {
        Errno::ROFS => "it is mounted read-only",
        _ => "run as an account that may write there, or set via = \"docker\" for the source",
    };
    SourceError::hint(format!("{} cannot be written to: {}", path.display(), std::io::Error::from(e)), hint)
}
