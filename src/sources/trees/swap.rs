//! Exchanging what was laid out for what is live, and back: renames within folders that were opened for it.

use super::super::SourceError;
use super::super::extract::{Aspect, Report, Severity, Wanted, apply_to_file, open_below, stat_below};
use super::super::files::entry::display;
use super::job::Job;
use super::list::{self, Action, Mark, Meta, Slot};
use super::live::{DIRECTORY, Live, Spot};
use super::make::{Stage, open_stage, write_redo};
use super::survey::{hash, name_of};
use super::today::today;
use super::told::{self, Told};
use super::{fault, keeping_time, one_name};
use crate::base::cancel::Cancel;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether something that was left alone, or seen, is not what it was: written to the redo list for [`super::again`].
/// `true` asks for that reading.
pub fn look(job: &Job, cancel: &Cancel) -> Result<bool, SourceError> {
    let mut live = Live::open(job)?;
    let mut changed = Vec::new();
    let mut seen: HashSet<u64> = HashSet::new();
    let whole = list::read(job, &mut |action| {
        cancel.check()?;
        if job.exact
            && let Action::Same { path, .. }
            | Action::Put { path, .. }
            | Action::Dir { path, .. }
            | Action::Remove { path, .. }
            | Action::RemoveDir { path, .. } = &action
        {
            seen.insert(hash(path));
        }
        if let Action::Same { path, mark } = action
            && live.stat(&path)?.is_none_or(|stat| Mark::of(&stat) != mark)
        {
            changed.push(path);
        }
        Ok(())
    })?;
    if !whole {
        return Err(SourceError::problem("what was laid out is not complete"));
    }
    let mut has_come = false;
    if job.exact {
        today(job, cancel, &mut |path, _| {
            has_come |= !seen.contains(&hash(path));
            Ok(())
        })?;
    }
    let again = has_come || !changed.is_empty();
    if again {
        write_redo(&job.redo(), &changed)?;
    }
    Ok(again)
}

/// Exchanges the new for the live tree.
pub fn switch(job: &Job) -> Result<(), SourceError> {
    let mut swap = Swap::open(job)?;
    let mut dirs: Vec<(Vec<u8>, Meta)> = Vec::new();
    let whole = list::read(job, &mut |action| match action {
        Action::Dir { path, meta, slot, .. } => {
            if let Some(slot) = slot {
                swap.make_dir(&path, slot)?;
            }
            dirs.push((path, meta));
            Ok(())
        }
        Action::Put { path, slot } => swap.put(&path, slot),
        Action::Remove { path, slot } => swap.set_aside(&path, slot),
        Action::RemoveDir { path, .. } => swap.remove_dir(&path).map(drop),
        Action::Same { .. } | Action::End => Ok(()),
    })?;
    if !whole {
        return Err(SourceError::problem("what was laid out is not complete"));
    }
    let mut report = Report::default();
    for (path, meta) in dirs.iter().rev() {
        swap.dress(path, meta, job.privileged, &mut report)?;
    }
    told::keep(job, Told::Dressed, &report)?;
    swap.sync()
}

/// Brings the old tree back, as far as it was exchanged. Returns what stays behind, in words.
pub fn back(job: &Job) -> Result<Vec<String>, SourceError> {
    let mut actions = Vec::new();
    let whole = list::read(job, &mut |action| {
        if !matches!(action, Action::Same { .. }) {
            actions.push(action);
        }
        Ok(())
    })?;
    let mut notes = Vec::new();
    if !whole || actions.is_empty() {
        return Ok(notes);
    }
    let mut swap = Swap::open(job)?;
    for action in actions.iter().rev() {
        match action {
            Action::Put { path, slot } => swap.take_back(path, *slot)?,
            Action::Remove { path, slot } => swap.bring_home(path, *slot)?,
            Action::RemoveDir { path, .. } => swap.live_dir(path)?,
            Action::Dir { path, slot: Some(slot), .. } => {
                if !swap.remove_dir(path)? {
                    notes.push(format!("{} stays: something was put into it meanwhile", job.display(path).display()));
                }
                swap.bring_home(path, *slot)?;
            }
            Action::Dir { .. } | Action::Same { .. } | Action::End => {}
        }
    }
    let mut dirs: Vec<(&Vec<u8>, &Meta)> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Dir { path, was: Some(was), .. } | Action::RemoveDir { path, was } => Some((path, was)),
            _ => None,
        })
        .collect();
    // Innermost first: a folder may forbid what is below it to be changed.
    dirs.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    let mut report = Report::default();
    for (path, was) in dirs {
        swap.undress(path, was, &mut report)?;
        swap.dress(path, was, true, &mut report)?;
    }
    notes.extend(told::in_words(&report));
    swap.sync()?;
    Ok(notes)
}

/// Removes what was laid out. What was replaced and has not been brought home is never removed here.
///
/// Order (must): the list goes before the folders, so that a list that is there always finds them.
pub fn discard_new(job: &Job) -> Result<(), SourceError> {
    for stage in &job.stages {
        let Some(parent) = open_parent(stage)? else { continue };
        let shown = stage.join(job.staging_name());
        let Some(dir) = open_child(&parent, &job.staging_name(), &shown)? else { continue };
        if let Some(old) = open_child(&dir, "old", &shown)?
            && !names(old.as_fd(), &shown)?.is_empty()
        {
            return Err(SourceError::hint(
                format!("{} holds what was replaced and was not brought back", shown.join("old").display()),
                "run the command once more with --resume; nothing there is removed",
            ));
        }
    }
    discard_old(job)
}

/// Removes what was replaced, and all else that lies beside. The same order.
pub fn discard_old(job: &Job) -> Result<(), SourceError> {
    forget_lists(job)?;
    for stage in &job.stages {
        let Some(parent) = open_parent(stage)? else { continue };
        let (name, shown) = (job.staging_name(), stage.join(job.staging_name()));
        keeping_time(parent.as_fd(), || remove_tree(&parent, OsStr::new(&name), &shown))?;
    }
    Ok(())
}

fn forget_lists(job: &Job) -> Result<(), SourceError> {
    for path in [job.list(), job.redo()].into_iter().chain(told::files(job)) {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(SourceError::File { action: "remove", path, source: e });
            }
            _ => {}
        }
    }
    super::overlay::forget(job)
}

fn open_parent(stage: &Path) -> Result<Option<OwnedFd>, SourceError> {
    match rustix::fs::open(stage, DIRECTORY, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(fault("open", stage, e)),
    }
}

fn open_child(dir: &OwnedFd, name: &str, shown: &Path) -> Result<Option<OwnedFd>, SourceError> {
    match open_below(dir.as_fd(), OsStr::new(name), DIRECTORY) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(fault("open", shown, e)),
    }
}

fn names(dir: BorrowedFd<'_>, shown: &Path) -> Result<Vec<Vec<u8>>, SourceError> {
    let listed = Dir::read_from(dir).map_err(|e| fault("list", shown, e))?;
    let mut names = Vec::new();
    for entry in listed {
        let entry = entry.map_err(|e| fault("list", shown, e))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Removes a tree, nothing followed.
fn remove_tree(parent: &OwnedFd, name: &OsStr, shown: &Path) -> Result<(), SourceError> {
    let failed = |e| fault("remove", shown, e);
    let dir = match open_below(parent.as_fd(), name, DIRECTORY) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(failed);
        }
        Err(e) => return Err(failed(e)),
    };
    // A captured folder may forbid its owner to change it.
    let _ = rustix::fs::fchmod(&dir, Mode::RWXU);
    for child in names(dir.as_fd(), shown)? {
        let child = OsStr::from_bytes(&child);
        match rustix::fs::unlinkat(&dir, child, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => remove_tree(&dir, child, shown)?,
            Err(e) => return Err(failed(e)),
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

struct Swap<'a> {
    job: &'a Job,
    live: Live<'a>,
    stages: Vec<Option<Stage>>,
    /// What was put or made by this list so far, and the hash of the name that it has.
    ours: HashMap<(u64, u64), u64>,
}

impl<'a> Swap<'a> {
    fn open(job: &'a Job) -> Result<Self, SourceError> {
        let stages = job.stages.iter().map(|s| open_stage(job, s, false)).collect::<Result<_, _>>()?;
        Ok(Self { job, live: Live::open(job)?, stages, ours: HashMap::new() })
    }

    fn stage(&self, slot: Slot) -> Result<&Stage, SourceError> {
        stage_of(&self.stages, self.job, slot)
    }

    /// A folder is there, private until it gets its metadata.
    fn live_dir(&mut self, path: &[u8]) -> Result<(), SourceError> {
        let shown = self.job.display(path);
        match self.live.find(path)? {
            Spot::Base(_) => Ok(()),
            Spot::Name(dir, name) => match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(e) => Err(fault("create folder", shown, e)),
            },
            Spot::NoWay(_) => Err(fault("create folder", shown, Errno::NOENT)),
        }
    }

    fn make_dir(&mut self, path: &[u8], slot: Slot) -> Result<(), SourceError> {
        let in_the_way = self.live.stat(path)?.is_some_and(|s| !FileType::from_raw_mode(s.st_mode).is_dir());
        if in_the_way {
            self.set_aside(path, slot)?;
        }
        self.live_dir(path)?;
        self.is_free(path)?;
        self.claim(path)
    }

    /// A file system that folds case would hide what was put a moment ago under this.
    fn is_free(&mut self, path: &[u8]) -> Result<(), SourceError> {
        let Some(there) = self.live.stat(path)? else { return Ok(()) };
        let other = self.ours.get(&(there.st_dev, there.st_ino));
        if other.is_some_and(|other| *other != name_of(path)) { Err(one_name(self.job, path)) } else { Ok(()) }
    }

    /// What stands at `path` is this list's own by now.
    fn claim(&mut self, path: &[u8]) -> Result<(), SourceError> {
        if let Some(there) = self.live.stat(path)? {
            self.ours.insert((there.st_dev, there.st_ino), name_of(path));
        }
        Ok(())
    }

    /// `new/<n>` takes the place of what is at `path`, which stays as `old/<n>`.
    fn put(&mut self, path: &[u8], slot: Slot) -> Result<(), SourceError> {
        let (number, shown) = (slot.n.to_string(), self.job.display(path));
        let stages = &self.stages;
        let stage = stage_of(stages, self.job, slot)?;
        let failed = |e| fault("replace", &shown, e);
        let Some(new) = stat_below(stage.new.as_fd(), number.as_bytes()).map_err(failed)? else {
            return self.claim(path);
        };
        self.is_free(path)?;
        let stage = stage_of(&self.stages, self.job, slot)?;
        let Spot::Name(dir, name) = self.live.find(path)? else { return Err(failed(Errno::NOENT)) };
        let mut is_dir = false;
        let there = stat_below(dir, name.as_bytes()).map_err(failed)?;
        if there.is_none() && stat_below(stage.old.as_fd(), number.as_bytes()).map_err(failed)?.is_none() {
            // Without this mark, undoing twice could take a file for ours that was there before.
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            rustix::fs::openat(&stage.old, nothing(slot), flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        }
        if let Some(there) = there {
            is_dir = FileType::from_raw_mode(there.st_mode).is_dir();
            let kept = stat_below(stage.old.as_fd(), number.as_bytes()).map_err(failed)?;
            if kept.is_none() {
                // A second name first: so the path is never without a file.
                let linked = if is_dir {
                    Err(Errno::PERM)
                } else {
                    rustix::fs::linkat(dir, name, &stage.old, &number, AtFlags::empty())
                };
                match linked {
                    Ok(()) => {}
                    Err(Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::ACCESS) => {
                        rustix::fs::renameat(dir, name, &stage.old, &number).map_err(failed)?;
                    }
                    Err(e) => return Err(failed(e)),
                }
            }
        }
        rustix::fs::renameat(&stage.new, &number, dir, name).map_err(failed)?;
        self.ours.insert((new.st_dev, new.st_ino), name_of(path));
        if is_dir {
            self.live.forget();
        }
        Ok(())
    }

    /// What is at `path` goes to `old/<n>`.
    fn set_aside(&mut self, path: &[u8], slot: Slot) -> Result<(), SourceError> {
        let (number, shown) = (slot.n.to_string(), self.job.display(path));
        let stage = stage_of(&self.stages, self.job, slot)?;
        let failed = |e| fault("set aside", &shown, e);
        if stat_below(stage.old.as_fd(), number.as_bytes()).map_err(failed)?.is_some() {
            return Ok(());
        }
        let Spot::Name(dir, name) = self.live.find(path)? else { return Ok(()) };
        match rustix::fs::renameat(dir, name, &stage.old, &number) {
            Ok(()) | Err(Errno::NOENT) => {
                self.live.forget();
                Ok(())
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// `old/<n>` goes home, if it is there, over whatever stands there now.
    fn bring_home(&mut self, path: &[u8], slot: Slot) -> Result<(), SourceError> {
        let (number, shown) = (slot.n.to_string(), self.job.display(path));
        let Some(stage) = self.stages.get(slot.stage).and_then(Option::as_ref) else { return Ok(()) };
        let failed = |e| fault("bring back", &shown, e);
        let Some(kept) = stat_below(stage.old.as_fd(), number.as_bytes()).map_err(failed)? else { return Ok(()) };
        let Spot::Name(dir, name) = self.live.find(path)? else { return Err(failed(Errno::NOENT)) };
        let there = stat_below(dir, name.as_bytes()).map_err(failed)?;
        let is_dir = |stat: &Stat| FileType::from_raw_mode(stat.st_mode).is_dir();
        if let Some(there) = &there
            && (there.st_dev, there.st_ino) == (kept.st_dev, kept.st_ino)
        {
            // Both are names of the one file: it was never replaced.
            return rustix::fs::unlinkat(&stage.old, &number, AtFlags::empty()).map_err(failed);
        }
        if let Some(there) = &there
            && is_dir(&kept)
            && !is_dir(there)
        {
            rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(failed)?;
        }
        rustix::fs::renameat(&stage.old, &number, dir, name).map_err(failed)?;
        self.live.forget();
        Ok(())
    }

    /// Undoes [`Swap::put`].
    fn take_back(&mut self, path: &[u8], slot: Slot) -> Result<(), SourceError> {
        let (number, shown) = (slot.n.to_string(), self.job.display(path));
        let failed = |e| fault("bring back", &shown, e);
        let stage = self.stage(slot)?;
        let waits = stat_below(stage.new.as_fd(), number.as_bytes()).map_err(failed)?.is_some();
        let kept = stat_below(stage.old.as_fd(), number.as_bytes()).map_err(failed)?.is_some();
        let made = stat_below(stage.old.as_fd(), nothing(slot).as_bytes()).map_err(failed)?.is_some();
        if kept {
            self.bring_home(path, slot)?;
        } else if made
            && !waits
            && let Spot::Name(dir, name) = self.live.find(path)?
        {
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        match rustix::fs::unlinkat(&self.stage(slot)?.old, nothing(slot), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(failed(e)),
        }
    }

    /// Removes a folder that is empty; `false`: it is not.
    fn remove_dir(&mut self, path: &[u8]) -> Result<bool, SourceError> {
        let shown = self.job.display(path);
        let Spot::Name(dir, name) = self.live.find(path)? else { return Ok(true) };
        let removed = rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR);
        self.live.forget();
        match removed {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(e) => Err(fault("remove", shown, e)),
        }
    }

    /// A folder gets its metadata, where it has another.
    fn dress(&mut self, path: &[u8], meta: &Meta, privileged: bool, report: &mut Report) -> Result<(), SourceError> {
        let Some(now) = self.live.meta(path)?.filter(|now| now != meta) else { return Ok(()) };
        let Some(dir) = self.live.dir(path)? else { return Ok(()) };
        // What is there already needs no permission.
        let xattrs = meta.xattrs.iter().filter(|x| !now.xattrs.contains(x)).cloned().collect();
        let entry = Meta { xattrs, ..meta.clone() }.entry(path);
        let wanted = Wanted { privileged, owners: true };
        apply_to_file(dir.as_fd(), &entry, wanted, report).map_err(|e| fault("read", self.job.display(path), e))?;
        Ok(())
    }

    /// A folder loses the attributes that it got: an ACL that stays opens it to others.
    fn undress(&mut self, path: &[u8], was: &Meta, report: &mut Report) -> Result<(), SourceError> {
        let Some(now) = self.live.meta(path)? else { return Ok(()) };
        let Some(dir) = self.live.dir(path)? else { return Ok(()) };
        for (name, _) in now.xattrs.iter().filter(|x| !was.xattrs.iter().any(|w| w.0 == x.0)) {
            let name = hex::decode(name).unwrap_or_default();
            if let Err(e) = rustix::fs::fremovexattr(&dir, OsStr::from_bytes(&name)) {
                let what = format!("attribute {} stays: {}", display(&name), std::io::Error::from(e));
                report.add(Severity::Metadata, Aspect::of_attribute(&name), path, what);
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), SourceError> {
        for (stage, path) in self.stages.iter().zip(&self.job.stages) {
            if let Some(stage) = stage {
                rustix::fs::syncfs(&stage.new).map_err(|e| fault("make durable", path, e))?;
            }
        }
        Ok(())
    }
}

/// The mark that nothing stood where `new/<n>` went.
fn nothing(slot: Slot) -> String {
    format!("{}.none", slot.n)
}

fn stage_of<'s>(stages: &'s [Option<Stage>], job: &Job, slot: Slot) -> Result<&'s Stage, SourceError> {
    stages.get(slot.stage).and_then(Option::as_ref).ok_or_else(|| {
        let at = job.stages.get(slot.stage).map(|s| s.join(job.staging_name()).display().to_string());
        SourceError::problem(format!("{} is gone", at.unwrap_or_default()))
    })
}
