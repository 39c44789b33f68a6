//! Owner, mode, attributes and times of what has been laid out. Everything goes to an open descriptor, or to a single
//! name in an open folder, so nothing is followed.
//!
//! Order (must): owner before mode, because a change of owner clears setuid and capabilities; mode before ACLs, whose
//! mask is the mode's group bits; times last.

use super::Options;
use super::report::{Report, Severity};
use crate::sources::files::entry::{Entry, Kind, Time, display};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
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

/// Owner, mode and attributes of an open file or folder.
pub(in crate::sources) fn apply_to_file(file: BorrowedFd<'_>, entry: &Entry, wanted: Wanted, report: &mut Report) {
    let path = &entry.path;
    let mut lost = |what: String| report.add(Severity::Metadata, path, what);
    if wanted.owners
        && let Err(e) = own(file, entry)
    {
        lost(format!("owner {}:{} not restored: {}", entry.uid, entry.gid, io::Error::from(e)));
    }
    let special = entry.mode & 0o6000;
    let mut mode = entry.mode;
    // On a folder setgid only hands its group down.
    if special != 0 && !wanted.privileged && entry.kind != Kind::Dir {
        mode &= 0o1777;
        lost(format!("{} not restored: it needs --privileged", special_names(special)));
    }
    match rustix::fs::fchmod(file, Mode::from_raw_mode(mode)) {
        Err(e) => lost(format!("mode {mode:04o} not restored: {}", io::Error::from(e))),
        // The kernel drops setgid without a word when the group is not ours.
        Ok(()) if mode & 0o6000 != 0 => {
            if rustix::fs::fstat(file).is_ok_and(|stat| stat.st_mode & 0o7777 != mode) {
                lost(format!("{} not restored: the owner must be", special_names(mode & 0o6000)));
            }
        }
        Ok(()) => {}
    }
    for (name, value) in &entry.xattrs {
        if let Some(problem) = refuse_attribute(name, wanted) {
            lost(problem);
        } else if let Err(e) = rustix::fs::fsetxattr(file, OsStr::from_bytes(name), value, XattrFlags::empty()) {
            lost(format!("attribute {} not restored: {}", display(name), io::Error::from(e)));
        }
    }
}

/// Owner, attributes and time of a symlink or special file, by its name in an open folder.
pub(super) fn apply_by_name(dir: BorrowedFd<'_>, name: &OsStr, entry: &Entry, wanted: Wanted, report: &mut Report) {
    let path = &entry.path;
    let mut lost = |what: String| report.add(Severity::Metadata, path, what);
    if wanted.owners {
        let (user, group) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        let is_ours = |e: Errno| e == Errno::PERM && owned_already(dir, name, entry);
        match rustix::fs::chownat(dir, name, user, group, AtFlags::SYMLINK_NOFOLLOW) {
            Err(e) if !is_ours(e) => {
                lost(format!("owner {}:{} not restored: {}", entry.uid, entry.gid, io::Error::from(e)));
            }
            _ => {}
        }
    }
    // There is no call for a link's attributes by descriptor and name on most kernels: the folder's own link in proc
    // is followed, the name is not.
    let proc = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name.as_bytes()].concat();
    for (name, value) in &entry.xattrs {
        if let Some(problem) = refuse_attribute(name, wanted) {
            lost(problem);
        } else if let Err(e) =
            rustix::fs::lsetxattr(proc.as_slice(), OsStr::from_bytes(name), value, XattrFlags::empty())
        {
            lost(format!("attribute {} not restored: {}", display(name), io::Error::from(e)));
        }
    }
    if let Err(e) = rustix::fs::utimensat(dir, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW) {
        lost(format!("time not restored: {}", io::Error::from(e)));
    }
}

/// Sets the modification time and checks that the file system could hold it.
pub(in crate::sources) fn set_time(file: impl AsFd, time: Time) -> io::Result<()> {
    let file = file.as_fd();
    rustix::fs::futimens(file, &timestamps(time))?;
    if !(0..=0x7fff_ffff).contains(&time.seconds) {
        let stat = rustix::fs::fstat(file)?;
        if stat.st_mtime != time.seconds {
            return Err(io::Error::other("this file system does not hold such a year"));
        }
    }
    Ok(())
}

fn own(file: BorrowedFd<'_>, entry: &Entry) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(file)?;
    // Without privilege the group alone may still be given to one of our own.
    let user = (stat.st_uid != entry.uid).then(|| Uid::from_raw(entry.uid));
    let group = (stat.st_gid != entry.gid).then(|| Gid::from_raw(entry.gid));
    if user.is_none() && group.is_none() {
        return Ok(());
    }
    rustix::fs::fchown(file, user, group)
}

fn owned_already(dir: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| (stat.st_uid, stat.st_gid) == (entry.uid, entry.gid))
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
fn refuse_attribute(name: &[u8], wanted: Wanted) -> Option<String> {
    if name.contains(&0) || name.is_empty() {
        return Some("attribute with an impossible name not restored".into());
    }
    let ordinary = name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
    (!ordinary && !wanted.privileged)
        .then(|| format!("attribute {} not restored: it needs --privileged", display(name)))
}
