//! What the loop tells whoever answers requests, and what those ask of the loop: that a policy be looked at. The two meet
//! nowhere else, so no request can hold up a run.

use crate::ops::access::Installation;
use crate::policy::Policy;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is installed now.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    pub good: BTreeMap<String, Arc<Policy>>,
    /// What is wrong with a file, in one line.
    pub broken: BTreeMap<String, String>,
}

/// The meeting place.
pub struct Board {
    pub installation: Installation,
    shown: Mutex<Shown>,
    wanted: Mutex<BTreeSet<String>>,
    /// Ends the loop's sleep.
    waker: UnixStream,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    pub fn new(installation: Installation, waker: UnixStream) -> Self {
        Self { installation, shown: Mutex::default(), wanted: Mutex::default(), waker }
    }

    pub fn show(&self, shown: Shown) {
        *held(&self.shown) = shown;
    }

    pub fn shown(&self) -> Shown {
        held(&self.shown).clone()
    }

    /// Asks for a look at a policy.
    pub fn want(&self, policy: &str) {
        if held(&self.wanted).insert(policy.to_owned()) {
            // A pipe that is full wakes the loop as well.
            let _ = (&self.waker).write(&[1]);
        }
    }

    /// What was asked for since this was called last.
    pub fn wanted(&self) -> BTreeSet<String> {
        std::mem::take(&mut *held(&self.wanted))
    }
}
