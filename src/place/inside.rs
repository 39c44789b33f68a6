//! What lies in a running container, reached from this host: through `/proc/<pid>/root`, which shows what the container
//! itself sees, volumes and file systems in memory included.
//!
//! The container is not trusted: its symlinks are resolved within its own root, only a file of the kind that is meant is
//! taken, and whoever listens at a socket must be in the container himself: one of the host's that is mounted into it is open
//! to root here, and to nobody there. Absent is whatever this process may not see.

use super::docker::Docker;
use super::inspect::Container;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use std::fs;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A socket in a container.
pub struct InnerSocket {
    socket: OwnedFd,
    /// What the container mounts, by which its processes are known.
    namespace: (u64, u64),
}

impl InnerSocket {
    /// Where to connect to; nobody can put another in its place.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.socket.as_raw_fd()))
    }

    /// Whether it is a process of the container that has been connected to.
    pub fn is_answered_inside(&self, connected: impl AsFd) -> bool {
        let peer = rustix::net::sockopt::socket_peercred(connected).ok();
        let pid = peer.and_then(|peer| u32::try_from(peer.pid.as_raw_nonzero().get()).ok());
        pid.and_then(mounts_of) == Some(self.namespace)
    }
}

/// The mount namespace of a process.
fn mounts_of(pid: u32) -> Option<(u64, u64)> {
    let found = fs::metadata(format!("/proc/{pid}/ns/mnt")).ok()?;
    Some((found.dev(), found.ino()))
}

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
    pub(super) fn socket_inside(&self, container: &Container, path: &Path) -> Option<InnerSocket> {
        let socket = self.reach_inside(container, path, OFlags::PATH)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&socket).ok()?.st_mode);
        let namespace = mounts_of(container.pid?)?;
        (kind == FileType::Socket).then_some(InnerSocket { socket, namespace })
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
