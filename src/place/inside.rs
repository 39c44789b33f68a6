//! What lies in a running container, reached from this host: through `/proc/<pid>/root`, which shows what the container
//! itself sees, volumes and file systems in memory included.
//!
//! The container is not trusted: its symlinks are resolved within its own root, and only a file of the kind that is meant
//! is opened. Absent is whatever this process may not see, and all of it where the engine is another machine's.

use super::docker::Docker;
use super::inspect::Container;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

impl Docker {
    /// Opens a file that exists in the container, empties it, and gives it for writing. Absent: a command in the container
    /// has to write it.
    pub fn open_inside(&self, container: &Container, path: &Path) -> Option<File> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(self.reach_inside(container, path, flags)?);
        let regular = file.metadata().is_ok_and(|m| m.is_file());
        (regular && file.set_len(0).is_ok()).then_some(file)
    }

    /// A socket that somebody in the container listens at, to connect to.
    pub(super) fn socket_inside(&self, container: &Container, path: &Path) -> Option<OwnedFd> {
        let socket = self.reach_inside(container, path, OFlags::PATH)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&socket).ok()?.st_mode);
        (kind == FileType::Socket).then_some(socket)
    }

    fn reach_inside(&self, container: &Container, path: &Path, flags: OFlags) -> Option<OwnedFd> {
        if !self.is_local() || !super::account::is_root() {
            return None;
        }
        let root = format!("/proc/{}/root", container.pid?);
        let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve).ok()
    }
}
