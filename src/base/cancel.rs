//! One flag that says "stop cleanly": set by Ctrl-C, SIGTERM or a deadline, looked at between pieces of work.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

/// The work was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stopped by a signal")]
pub struct Cancelled;

/// A flag shared by everything that takes part in a run. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Flag>);

#[derive(Debug, Default)]
struct Flag {
    signal: AtomicI32,
    /// Pieces of work that must come to their own end, whatever the flag says.
    held: AtomicUsize,
}

/// As long as it lives, the process is not cut off: what has been told to stop is going back, and says when it is done.
#[derive(Debug)]
pub struct Held(Cancel);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.held.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Cancel {
    /// A flag that nobody has raised yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag; `signal` is what the exit code will tell (130 for SIGINT, 143 for SIGTERM).
    pub fn raise(&self, signal: i32) {
        let _ = self.0.signal.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// The signal that raised the flag, if any.
    pub fn signal(&self) -> Option<i32> {
        match self.0.signal.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(signal),
        }
    }

    /// Keeps the process from being cut off until the guard is dropped.
    pub fn hold(&self) -> Held {
        self.0.held.fetch_add(1, Ordering::SeqCst);
        Held(self.clone())
    }

    /// Whether something must come to its own end first.
    pub fn is_held(&self) -> bool {
        self.0.held.load(Ordering::SeqCst) > 0
    }

    /// An error once the flag is up.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.signal().is_some() { Err(Cancelled) } else { Ok(()) }
    }

    /// The same for code that speaks `io::Error`.
    pub fn check_io(&self) -> std::io::Result<()> {
        self.check().map_err(std::io::Error::other)
    }

    /// Completes when the flag is raised. Polls, because the flag is raised from a signal handler's thread.
    pub async fn raised(&self) {
        while self.signal().is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
