//! Extended attributes, ACLs and capabilities among them, read without following anything.

use super::entry::{FLAGS, Xattrs};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::fs::File;

/// The extended attributes of `name` in `dir`, or of `dir` itself, sorted by name. A symlink's own are read, not its
/// target's.
pub fn read(dir: BorrowedFd<'_>, name: Option<&CStr>) -> Result<Xattrs, Errno> {
    // There is no `*at` call for attributes on most kernels; the descriptor's own link in proc is as good.
    let path = name.map(|name| proc_path(dir, name));
    let list = |buffer: &mut [u8]| match &path {
        Some(path) => rustix::fs::llistxattr(path.as_slice(), buffer),
        None => rustix::fs::flistxattr(dir, buffer),
    };
    let get = |key: &[u8], buffer: &mut [u8]| match &path {
        Some(path) => rustix::fs::lgetxattr(path.as_slice(), key, buffer),
        None => rustix::fs::fgetxattr(dir, key, buffer),
    };
    let keys = match sized(list) {
        Ok(keys) => keys,
        // No attributes here, or the file is gone: reading it will tell.
        Err(Errno::OPNOTSUPP | Errno::NOENT | Errno::NOSYS) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for key in keys.split(|b| *b == 0).filter(|k| !k.is_empty()) {
        match sized(|buffer| get(key, buffer)) {
            Ok(value) => found.push((key.to_vec(), value)),
            Err(Errno::NODATA | Errno::NOENT | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    found.sort();
    Ok(found)
}

/// The flags of `name` in `dir`, or of `dir` itself, that keep a file from being changed (`chattr +i`, `+a`), as one
/// attribute of the name [`FLAGS`]; none where a file system or a kernel knows none.
pub fn flags(dir: BorrowedFd<'_>, name: Option<&CStr>) -> Result<Xattrs, Errno> {
    let how = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let stat = match rustix::fs::statx(dir, name.unwrap_or(c""), how, StatxFlags::empty()) {
        Ok(stat) => stat,
        // Kernels and sandboxes without the call, or the file is gone: reading it will tell.
        Err(Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP | Errno::NOENT) => return Ok(Xattrs::new()),
        Err(e) => return Err(e),
    };
    let known = [(StatxAttributes::IMMUTABLE, "immutable"), (StatxAttributes::APPEND, "append")];
    let set: Vec<&str> =
        known.iter().filter(|(flag, _)| stat.stx_attributes.contains(*flag)).map(|(_, name)| *name).collect();
    Ok(if set.is_empty() { Xattrs::new() } else { vec![(FLAGS.to_vec(), set.join(",").into_bytes())] })
}

/// The extended attributes of an open file, sorted by name.
pub fn of_file(file: &File) -> Result<Xattrs, Errno> {
    read(file.as_fd(), None)
}

/// `/proc/self/fd/<dir>/<name>`.
fn proc_path(dir: BorrowedFd<'_>, name: &CStr) -> Vec<u8> {
    let mut path = Vec::with_capacity(24 + name.to_bytes().len());
    path.extend_from_slice(b"/proc/self/fd/");
    path.extend_from_slice(dir.as_raw_fd().to_string().as_bytes());
    path.push(b'/');
    path.extend_from_slice(name.to_bytes());
    path
}

/// Calls with a small buffer, then with larger ones up to the kernel's limit of 64 KiB.
fn sized(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0u8; 512];
    match call(&mut small) {
        Ok(n) => return Ok(small[..n].to_vec()),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e),
    }
    let mut large = vec![0u8; 65_536];
    let n = call(&mut large)?;
    large.truncate(n);
    Ok(large)
}
