//! Ctrl-C and SIGTERM: the first one asks the run to stop, the second one ends the process at once.
//!
//! Invariant: within five seconds of the first one the process has ended. What takes longer is cut off; the order in
//! which a repository is written allows that at any instant.

use crate::base::cancel::Cancel;
use crate::base::threads;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

/// How long a run may take to stop, with a margin to the five seconds that are promised.
const PATIENCE: Duration = Duration::from_millis(4500);
const TICK: Duration = Duration::from_millis(50);

/// A file that grows beyond what this process may write (`ulimit -f`) is an error that names it, not the end without a
/// word. A handler, because a signal that is ignored would be ignored by what is started here too.
pub fn outlive_limits() {
    // What cannot be caught ends the process as before.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Raises `cancel` on the first signal, from a thread of its own.
pub fn listen(cancel: Cancel) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let heard = threads::begin(move || {
        for signal in signals.forever() {
            if cancel.signal().is_some() {
                if cancel.is_held() {
                    tell("what was begun is being put back; that is not cut off");
                    continue;
                }
                signal_hook::low_level::exit(128 + signal);
            }
            cancel.raise(signal);
            let own = cancel.clone();
            if threads::begin(move || cut_off(&own, signal)).is_err() {
                // A second signal is not heard then; this one is.
                cut_off(&cancel, signal);
            }
        }
    });
    heard.map(drop).map_err(io::Error::other)
}

/// Ends the process, unless it ends by itself before.
fn cut_off(cancel: &Cancel, signal: i32) {
    thread::sleep(PATIENCE);
    // A transaction that was begun is taken back first, however long that takes.
    while cancel.is_held() {
        thread::sleep(TICK);
    }
    // What held it ends by itself a moment later.
    thread::sleep(TICK * 20);
    tell("error: the run did not stop in time and was cut off");
    signal_hook::low_level::exit(128 + signal);
}

/// Says it on standard error, and waits for no reader: the end of the process does not depend on one.
fn tell(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
