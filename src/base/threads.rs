//! Threads, where there may be none: systemd's `TasksMax=` and `ulimit -u` end in EAGAIN, and that is an error like any
//! other, or a run that takes longer. Every thread of the crate is begun here.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// What a person can do about [`NoThread`].
pub const HINT: &str = "raise TasksMax= of the unit, or `ulimit -u` of the account: other processes count as well";

/// The system gave no thread.
#[derive(Debug, thiserror::Error)]
#[error("no thread could be begun: {0}")]
pub struct NoThread(io::Error);

/// Begins a thread of its own.
pub fn begin<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>, NoThread> {
    Builder::new().spawn(work).map_err(NoThread)
}

/// An error where there is no thread now: for libraries that begin theirs themselves.
pub fn are_there() -> Result<(), NoThread> {
    // One that does nothing breaks nothing.
    begin(|| ()).map(|thread| drop(thread.join()))
}

/// Begins so many threads, or as many as there are; none at all is an error.
pub fn begin_some<W: FnOnce() + Send + 'static>(
    count: usize,
    work: impl Fn() -> W,
) -> Result<Vec<JoinHandle<()>>, NoThread> {
    let mut begun = Vec::with_capacity(count);
    for _ in 0..count {
        match begin(work()) {
            Ok(thread) => begun.push(thread),
            Err(e) if begun.is_empty() => return Err(e),
            Err(_) => break,
        }
    }
    Ok(begun)
}

/// Begins a thread within a scope: for work that others wait for, and that must be under way at the same time.
pub fn begin_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, NoThread> {
    Builder::new().spawn_scoped(scope, work).map_err(NoThread)
}

/// Work that is done beside the caller's, or was done before it went on.
pub enum Beside<'scope, T> {
    Begun(ScopedJoinHandle<'scope, Option<T>>),
    Done(T),
}

/// Does the work in a thread within the scope; where there is none, at once and here. It must wait for nothing that the
/// caller does later.
pub fn beside<'scope, T: Send + 'scope, W: FnOnce() -> T + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: W,
) -> Beside<'scope, T> {
    // Handed over once the thread is there: what a thread is begun with is lost with one that is not.
    let (hand, handed) = sync_channel::<W>(1);
    match begin_scoped(scope, move || handed.recv().ok().map(|work| work())) {
        Ok(thread) => {
            // It waits for it.
            let _ = hand.send(work);
            Beside::Begun(thread)
        }
        Err(_) => Beside::Done(work()),
    }
}

impl<T> Beside<'_, T> {
    /// What came of it; `None`: it panicked.
    pub fn join(self) -> Option<T> {
        match self {
            Beside::Begun(thread) => thread.join().ok().flatten(),
            Beside::Done(value) => Some(value),
        }
    }
}

/// Does the same work in so many threads at once: it shares something out until nothing is left. Where there are fewer
/// threads the caller works as well. An error is a panic.
pub fn share<T: Send>(count: usize, work: impl Fn() -> T + Sync) -> Vec<std::thread::Result<T>> {
    let work = &work;
    std::thread::scope(|scope| {
        let (mut begun, mut own) = (Vec::with_capacity(count), None);
        for _ in 0..count {
            match begin_scoped(scope, work) {
                Ok(thread) => begun.push(thread),
                Err(_) => {
                    own = Some(work());
                    break;
                }
            }
        }
        begun.into_iter().map(ScopedJoinHandle::join).chain(own.map(Ok)).collect()
    })
}

/// The same for work that leaves its results elsewhere; a panic goes on in the caller.
pub fn share_out(count: usize, work: impl Fn() + Sync) {
    for done in share(count, work) {
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}
