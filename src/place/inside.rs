//! Files of a running container, opened from this host: through `/proc/<pid>/root`, which shows what the container
//! itself sees, volumes and file systems in memory included.
//!
//! The container is not trusted: its symlinks are resolved within its own root, and only a regular file is opened.

use super::docker::Docker;
use super::inspect::Container;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::path::Path;

impl Docker {
    /// Opens a file that exists in the container, empties it, and gives it for writing. Absent where this process may
    /// not, or the engine is another machine's: then a command in the container has to write it.
    pub fn open_inside(&self, container: &Container, path: &Path) -> Option<File> {
        if !self.is_local() || !super::account::is_root() {
            return None;
        }
        let root = format!("/proc/{}/root", container.pid?);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty()).ok()?;
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = File::from(rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve).ok()?);
        let regular = file.metadata().is_ok_and(|m| m.is_file());
        (regular && file.set_len(0).is_ok()).then_some(file)
    }
}
