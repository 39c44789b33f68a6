//! What ends a sleep: a signal, the wall clock reaching a time (also after the machine slept, and at once when the clock
//! is set), a change in the folder of policies, a span of time that has passed.

use crate::ops::access::Installation;
use chrono::{DateTime, Utc};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::{Errno, read};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What has happened meanwhile.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    pub reload: bool,
    pub changed: bool,
}

pub struct Wakeup {
    signals: UnixStream,
    /// Its other end.
    raised: UnixStream,
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    clock: OwnedFd,
    files: OwnedFd,
}

impl Wakeup {
    pub fn new() -> io::Result<Self> {
        let (signals, raised) = UnixStream::pair()?;
        signals.set_nonblocking(true)?;
        let (stop, reload) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for (signal, flag) in [(SIGTERM, &stop), (SIGINT, &stop), (SIGHUP, &reload)] {
            signal_hook::flag::register(signal, flag.clone())?;
        }
        // The flags come first: whoever is woken sees them.
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGCHLD] {
            signal_hook::low_level::pipe::register(signal, raised.try_clone()?)?;
        }
        let clock = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let files = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self { signals, raised, stop, reload, clock, files })
    }

    /// Watches where policies lie, and where their folder would lie. Watching again what is watched changes nothing.
    pub fn watch(&self, installation: &Installation) {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        if let Err(e) = inotify::add_watch(&self.files, installation.policies(), flags) {
            tracing::debug!("{} is not watched: {e}", installation.policies().display());
        }
        // Only what makes or removes the folder itself.
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        if let Err(e) = inotify::add_watch(&self.files, &installation.config_dir, flags) {
            tracing::debug!("{} is not watched: {e}", installation.config_dir.display());
        }
    }

    /// What is written here ends the sleep. Nothing else comes of it.
    pub fn waker(&self) -> io::Result<UnixStream> {
        let waker = self.raised.try_clone()?;
        waker.set_nonblocking(true)?;
        Ok(waker)
    }

    pub fn stop_asked(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Sleeps until something happens: the clock shows `until`, or `within` has passed.
    pub fn sleep(&self, until: Option<DateTime<Utc>>, within: Option<Duration>) -> io::Result<Woken> {
        // A time in the past would disarm it where it is zero; the epoch's first second is past as well.
        let seconds = until.map_or(0, |at| at.timestamp().max(1) + i64::from(at.timestamp_subsec_nanos() > 0));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: seconds, tv_nsec: 0 } };
        timerfd_settime(&self.clock, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &at)?;
        let limit = within.map(|within| Timespec {
            tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(within.subsec_nanos()),
        });
        let mut waited = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.clock, PollFlags::IN),
            PollFd::new(&self.files, PollFlags::IN),
        ];
        match poll(&mut waited, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        // A clock that was set is a reason to look, and no error.
        drain(&self.signals);
        drain(&self.clock);
        let changed = drain(&self.files);
        Ok(Woken { reload: self.reload.swap(false, Ordering::SeqCst), changed })
    }
}

/// Reads what is there; whether there was anything.
fn drain(fd: impl std::os::fd::AsFd) -> bool {
    let mut buffer = [0u8; 4096];
    let mut any = false;
    while let Ok(length @ 1..) = read(fd.as_fd(), &mut buffer[..]) {
        any = length > 0;
    }
    any
}
