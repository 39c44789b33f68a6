//! Owner, mode, attributes and times of what has been laid out. Everything goes to an open descriptor, or to a single
//! name in an open folder, so nothing is followed.
//!
//! Order (must): owner before mode, because a change of owner clears setuid and capabilities; mode before ACLs, whose
//! mask is the mode's group bits; times last.

use super::Options;
use super::dirs::open_below;
use super::report::{Aspect, Report, Severity};
use crate::sources::files::acl;
use crate::sources::files::entry::{Entry, Kind, Time, display};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

/// What may be restored.
#[derive(Clone, Copy)]
pub(in crate::sources) struct Wanted {
    pub privileged: bool,
    pub owners: bool,
}

impl Wanted {
    pub fn of(options: &Options) -> Self {
        Wanted { privileged: options.privileged, owners: options.owners }
    }
}

/// Owner, mode, attributes and time of an open file or folder. What it has in the end is held against the entry: some
/// file systems drop what they cannot hold without a word.
pub(in crate::sources) fn apply_to_file(
    file: BorrowedFd<'_>,
    entry: &Entry,
    wanted: Wanted,
    report: &mut Report,
) -> Result<Stat, Errno> {
    let owned = if wanted.owners { own(file, entry) } else { Ok(()) };
    let mut mode = entry.mode;
    let special = mode & 0o6000;
    // On a folder setgid only hands its group down.
    if special != 0 && !wanted.privileged && entry.kind != Kind::Dir {
        mode &= 0o1777;
        let what = format!("{} not restored: it needs --privileged", special_names(special));
        report.add(Severity::Metadata, Aspect::SpecialBits, &entry.path, what);
    }
    let mut moded = rustix::fs::fchmod(file, Mode::from_raw_mode(mode));
    let lost =
        attributes(entry, wanted, report, |name, value| rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()));
    // The group's bits of the mode are then the ACL's mask: without the ACL the group would get what was another's.
    if let Some(group) = lost.as_deref().and_then(acl::owning_group) {
        mode &= !0o070 | (u32::from(group) << 3);
        moded = rustix::fs::fchmod(file, Mode::from_raw_mode(mode));
    }
    let timed = set_time(file, entry.mtime);
    let stat = rustix::fs::fstat(file)?;
    let tried = Tried { owned, moded, timed, mode: Some(mode) };
    tried.compare(entry, &stat, wanted, report);
    Ok(stat)
}

/// Owner, mode, attributes and time of a symlink or special file, by its name in an open folder.
pub(super) fn apply_by_name(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    entry: &Entry,
    wanted: Wanted,
    report: &mut Report,
) -> Result<Stat, Errno> {
    let (user, group) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    let owned =
        if wanted.owners { rustix::fs::chownat(dir, name, user, group, AtFlags::SYMLINK_NOFOLLOW) } else { Ok(()) };
    let is_link = matches!(entry.kind, Kind::Symlink(_));
    let mode = (!is_link).then_some(entry.mode);
    let moded = match mode {
        Some(mode) => chmod_unfollowed(dir, name, mode),
        None => Ok(()),
    };
    // There is no call for a link's attributes by descriptor and name on most kernels: the folder's own link in proc
    // is followed, the name is not.
    let proc = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name.as_bytes()].concat();
    attributes(entry, wanted, report, |key, value| {
        rustix::fs::lsetxattr(proc.as_slice(), key, value, XattrFlags::empty())
    });
    let timed = rustix::fs::utimensat(dir, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW);
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let tried = Tried { owned, moded, timed: timed.map_err(io::Error::from), mode };
    tried.compare(entry, &stat, wanted, report);
    Ok(stat)
}

/// The mode of what has this very name. There is no call for it that follows nothing on most kernels: what is opened is
/// looked at, and reached through its own link in proc.
fn chmod_unfollowed(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<(), Errno> {
    let there = open_below(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&there)?.st_mode).is_symlink() {
        return Err(Errno::LOOP);
    }
    rustix::fs::chmod(format!("/proc/self/fd/{}", there.as_raw_fd()), Mode::from_raw_mode(mode))
}

/// Sets what may be set; returns the access ACL when it could not be.
fn attributes(
    entry: &Entry,
    wanted: Wanted,
    report: &mut Report,
    set: impl Fn(&OsStr, &[u8]) -> Result<(), Errno>,
) -> Option<Vec<u8>> {
    let mut lost = None;
    for (name, value) in &entry.xattrs {
        let problem = refuse_attribute(name, wanted).or_else(|| {
            let e = set(OsStr::from_bytes(name), value).err()?;
            if name == b"system.posix_acl_access" {
                lost = Some(value.clone());
            }
            Some(format!("attribute {} not restored: {}", display(name), io::Error::from(e)))
        });
        if let Some(problem) = problem {
            report.add(Severity::Metadata, Aspect::of_attribute(name), &entry.path, problem);
        }
    }
    lost
}

/// What became of the calls that set an entry's metadata.
struct Tried {
    owned: Result<(), Errno>,
    moded: Result<(), Errno>,
    timed: io::Result<()>,
    /// The mode that was asked for; a symlink has none.
    mode: Option<u32>,
}

impl Tried {
    /// Holds what is there against what was asked for. A call that failed and changed nothing is no difference.
    fn compare(self, entry: &Entry, stat: &Stat, wanted: Wanted, report: &mut Report) {
        let mut add = |aspect, what: String| report.add(Severity::Metadata, aspect, &entry.path, what);
        let silent = || "this file system does not keep it".to_owned();
        let why = |tried: Result<(), Errno>| tried.map_or_else(|e| io::Error::from(e).to_string(), |()| silent());
        if wanted.owners && (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
            let why = why(self.owned);
            add(Aspect::Owner, format!("owner {}:{} not restored: {why}", entry.uid, entry.gid));
        }
        let differs = self.mode.map_or(0, |mode| (stat.st_mode & 0o7777) ^ mode);
        if differs & 0o6000 != 0 && self.moded.is_ok() {
            // The kernel drops setgid without a word when the group is not ours.
            add(Aspect::SpecialBits, format!("{} not restored: the owner must be", special_names(differs)));
        }
        if differs & 0o1777 != 0 || (differs != 0 && self.moded.is_err()) {
            let why = why(self.moded);
            let mode = self.mode.unwrap_or_default();
            add(Aspect::Mode, format!("mode {mode:04o} not restored, it is {:04o}: {why}", stat.st_mode & 0o7777));
        }
        let there = (stat.st_mtime, stat.st_mtime_nsec as u32);
        if there != (entry.mtime.seconds, entry.mtime.nanos) {
            let why = self.timed.map_or_else(|e| e.to_string(), |()| silent());
            add(Aspect::Time, format!("time not restored: {why}"));
        }
    }
}

/// Sets the modification time.
pub(in crate::sources) fn set_time(file: impl AsFd, time: Time) -> io::Result<()> {
    Ok(rustix::fs::futimens(file.as_fd(), &timestamps(time))?)
}

fn own(file: BorrowedFd<'_>, entry: &Entry) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(file)?;
    let user = (stat.st_uid != entry.uid).then(|| Uid::from_raw(entry.uid));
    let group = (stat.st_gid != entry.gid).then(|| Gid::from_raw(entry.gid));
    if user.is_none() && group.is_none() {
        return Ok(());
    }
    let both = rustix::fs::fchown(file, user, group);
    // Without privilege the group alone may still be given to one of our own.
    if both == Err(Errno::PERM) && user.is_some() && group.is_some() {
        let _ = rustix::fs::fchown(file, None, group);
    }
    both
}

fn timestamps(time: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanos) },
    }
}

fn special_names(bits: u32) -> &'static str {
    match bits & 0o6000 {
        0o4000 => "setuid",
        0o2000 => "setgid",
        _ => "setuid and setgid",
    }
}

/// Capabilities are setuid by another name, and the other attributes of the system change what it enforces.
pub(in crate::sources) fn refuse_attribute(name: &[u8], wanted: Wanted) -> Option<String> {
    if name.contains(&0) || name.is_empty() {
        return Some("attribute with an impossible name not restored".into());
    }
    let ordinary = name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
    (!ordinary && !wanted.privileged)
        .then(|| format!("attribute {} not restored: it needs --privileged", display(name)))
}
