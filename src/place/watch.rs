//! The limits of one running command, shared by whoever reads, writes and waits: time-out, stall limit, cancellation.
//!
//! Invariant: the first limit that breaks stays broken, so that reading and waiting tell the same cause.

use super::{Command, PlaceError};
use crate::base::cancel::{Cancel, Cancelled};
use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much of standard error is kept.
pub(super) const STDERR_TAIL_BYTES: usize = 16 << 10;
/// The longest sleep between two looks at the limits.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// How long an ended command has to go by itself after SIGTERM.
pub(super) const GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
enum Broken {
    TimedOut(Duration),
    Stalled(Duration),
    Cancelled(Cancelled),
    /// Its handle was dropped before its end.
    Ended,
}

#[derive(Debug)]
pub(super) struct Watch {
    pub tool: String,
    pub place: String,
    begin: Instant,
    timeout: Option<Duration>,
    stall: Option<Duration>,
    cancel: Cancel,
    progress: Mutex<Instant>,
    broken: Mutex<Option<Broken>>,
}

impl Watch {
    pub(super) fn new(command: &Command, place: String) -> Self {
        let now = Instant::now();
        Self {
            tool: command.argv.first().cloned().unwrap_or_default(),
            place,
            begin: now,
            timeout: command.timeout,
            stall: command.stall,
            cancel: command.cancel.clone(),
            progress: Mutex::new(now),
            broken: Mutex::new(None),
        }
    }

    /// Limits of a stream that belongs to no command.
    pub(super) fn for_stream(what: &str, place: &str, cancel: &Cancel, stall: Duration) -> Self {
        Self::new(&Command::new([what]).stall(stall).cancel(cancel), place.to_owned())
    }

    /// Bytes have passed, or somebody begins to wait for some: time spent elsewhere is no stall.
    pub(super) fn touch(&self) {
        *lock(&self.progress) = Instant::now();
    }

    /// The command was ended by its owner; whoever still reads must not take that for its end of output.
    pub(super) fn end(&self) {
        lock(&self.broken).get_or_insert(Broken::Ended);
    }

    /// An error once a limit has been reached.
    pub(super) fn check(&self) -> Result<(), PlaceError> {
        let mut broken = lock(&self.broken);
        if broken.is_none() {
            let now = Instant::now();
            if let Err(cancelled) = self.cancel.check() {
                *broken = Some(Broken::Cancelled(cancelled));
            } else if let Some(limit) = self.timeout.filter(|limit| now.duration_since(self.begin) >= *limit) {
                *broken = Some(Broken::TimedOut(limit));
            } else if let Some(limit) =
                self.stall.filter(|limit| now.saturating_duration_since(*lock(&self.progress)) >= *limit)
            {
                *broken = Some(Broken::Stalled(limit));
            }
        }
        let (tool, place) = (self.tool.clone(), self.place.clone());
        match *broken {
            None => Ok(()),
            Some(Broken::Cancelled(cancelled)) => Err(PlaceError::Cancelled(cancelled)),
            Some(Broken::TimedOut(limit)) => Err(PlaceError::TimedOut { tool, place, limit }),
            Some(Broken::Stalled(limit)) => Err(PlaceError::Stalled { tool, place, limit }),
            Some(Broken::Ended) => Err(self.io("read output of", io::Error::other("ended before its output was read"))),
        }
    }

    /// The same for code that speaks `io::Error`; [`PlaceError::from_io`] unwraps it.
    pub(super) fn check_io(&self) -> io::Result<()> {
        self.check().map_err(io::Error::other)
    }

    pub(super) fn io(&self, what: &str, source: io::Error) -> PlaceError {
        PlaceError::Io { what: format!("{what} {}", self.tool), place: self.place.clone(), source }
    }

    /// What reading its output said.
    pub(super) fn read_error(&self, error: io::Error) -> PlaceError {
        PlaceError::from_io(format!("read output of {}", self.tool), self.place.clone(), error)
    }

    /// 126 and 127 say that the program could not be run, except from a shell: there they are the script's own.
    pub(super) fn says_tool_missing(&self, code: i32) -> bool {
        let name = self.tool.rsplit('/').next().unwrap_or_default();
        matches!(code, 126 | 127) && !matches!(name, "sh" | "bash" | "dash" | "ash" | "zsh" | "ksh" | "busybox")
    }

    pub(super) fn tool_missing(&self) -> PlaceError {
        PlaceError::ToolMissing { tool: self.tool.clone(), place: self.place.clone() }
    }
}

/// The last bytes of standard error.
#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<u8>);

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend(&bytes[bytes.len().saturating_sub(STDERR_TAIL_BYTES)..]);
        let over = self.0.len().saturating_sub(STDERR_TAIL_BYTES);
        self.0.drain(..over);
    }

    pub(super) fn text(&self) -> String {
        let (a, b) = self.0.as_slices();
        String::from_utf8_lossy(&[a, b].concat()).into_owned()
    }
}

/// A poisoned lock guards plain values here, so its content is as good as before.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
