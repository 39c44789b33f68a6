//! Files of a snapshot in a line, as `ls -l` shows them.

use crate::base::stream::FileType;
use crate::cli::output::printable;
use crate::ops::browse::PathInfo;
use chrono::{DateTime, Local};

/// `-rw-r--r--  root   root        1234  2026-11-21 02:00  etc/hosts`.
pub fn line(file: &PathInfo) -> String {
    let owner = |name: &Option<String>, id: u32| name.clone().unwrap_or_else(|| id.to_string());
    format!(
        "{}  {:<8} {:<8} {:>12}  {}  {}{}",
        mode(file.file_type, file.mode),
        printable(&owner(&file.user, file.uid)),
        printable(&owner(&file.group, file.gid)),
        file.size,
        time(file.mtime),
        printable(&file.path),
        file.target.as_ref().map(|t| format!(" -> {}", printable(t))).unwrap_or_default(),
    )
}

/// A file's time, in local time.
pub fn time(seconds: i64) -> String {
    let utc = DateTime::from_timestamp(seconds, 0);
    utc.map_or_else(|| format!("@{seconds}"), |t| t.with_timezone(&Local).format("%Y-%m-%d %H:%M").to_string())
}

/// `drwxr-xr-x`.
pub fn mode(file_type: FileType, mode: u32) -> String {
    let kind = match file_type {
        FileType::File => '-',
        FileType::Dir => 'd',
        FileType::Symlink => 'l',
        FileType::Hardlink => 'h',
    };
    let mut text = String::from(kind);
    for (shift, special, set, unset) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => set,
            (false, true) => unset,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_as_ls_shows_them() {
        assert_eq!(mode(FileType::File, 0o644), "-rw-r--r--");
        assert_eq!(mode(FileType::Dir, 0o1777), "drwxrwxrwt");
        assert_eq!(mode(FileType::File, 0o4755), "-rwsr-xr-x");
        assert_eq!(mode(FileType::Symlink, 0o2640), "lrw-r-S---");
    }
}
