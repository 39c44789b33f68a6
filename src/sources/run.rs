//! Running the tools of a server: what the sources of servers share.

use super::SourceError;
use crate::base::cancel::Cancel;
use crate::base::threads::{self, NoThread};
use crate::place::{Command, Exit, Place, PlaceError};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Runs a command to its end, whatever its status, and returns its standard output (at most `limit` bytes).
pub(crate) fn run(place: &dyn Place, command: Command, limit: usize) -> Result<(Vec<u8>, Exit), PlaceError> {
    let tool = command.argv.first().cloned().unwrap_or_default();
    let mut running = place.start(command)?;
    let io = |e| PlaceError::from_io(format!("read output of {tool}"), place.describe(), e);
    let mut out = Vec::new();
    if let Some(stdout) = running.stdout() {
        stdout.take(limit as u64 + 1).read_to_end(&mut out).map_err(io)?;
    }
    if out.len() > limit {
        return Err(io(std::io::Error::other(format!("more than {limit} bytes"))));
    }
    let exit = running.wait()?;
    Ok((out, exit))
}

/// When a capture must be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    limit: Duration,
    end: Option<Instant>,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self { limit, end: Instant::now().checked_add(limit) }
    }

    /// How long there was in all.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// What is left; never zero, so that a command that is started late fails by its own time-out.
    pub(crate) fn left(&self) -> Duration {
        match self.end {
            Some(end) => end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)),
            None => Duration::MAX,
        }
    }
}

/// A cancel flag that follows another and can be raised by itself: when one of several commands fails, the others end.
pub(crate) struct Linked {
    pub(crate) cancel: Cancel,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How fast a raised flag is passed on.
const TICK: Duration = Duration::from_millis(50);

impl Linked {
    pub(crate) fn to(parent: &Cancel) -> Result<Self, NoThread> {
        let (cancel, done) = (Cancel::new(), Arc::new(AtomicBool::new(false)));
        let (own, above, stop) = (cancel.clone(), parent.clone(), done.clone());
        let thread = threads::begin(move || {
            while !stop.load(Ordering::SeqCst) {
                if let Some(signal) = above.signal() {
                    own.raise(signal);
                    return;
                }
                std::thread::park_timeout(TICK);
            }
        })?;
        Ok(Self { cancel, done, thread: Some(thread) })
    }

    /// Ends what runs under this flag, for a reason of our own.
    pub(crate) fn raise(&self) {
        self.cancel.raise(15);
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// A tool's standard error as one line of a message.
pub(crate) fn one_line(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let text = lines.join("; ");
    match text.char_indices().nth(800) {
        Some((at, _)) => format!("{} …", &text[..at]),
        None => text,
    }
}

/// An error of a capture: that it was told to stop wins over whatever broke because of that.
pub(crate) fn settle(error: SourceError, cancel: &Cancel) -> SourceError {
    match cancel.check() {
        Err(cancelled) => SourceError::Cancelled(cancelled),
        Ok(()) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linked_flag_follows_and_stands_alone() {
        let parent = Cancel::new();
        let linked = Linked::to(&parent).unwrap();
        linked.raise();
        assert!(linked.cancel.signal().is_some() && parent.signal().is_none());
        drop(linked);
        let linked = Linked::to(&parent).unwrap();
        parent.raise(2);
        let begin = Instant::now();
        while linked.cancel.signal().is_none() && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(linked.cancel.signal(), Some(2));
    }
}
