//! A few threads that take the items of one list, one after the other. The first failure ends all of it.

use crate::base::cancel::Cancel;
use crate::base::threads;
use crate::ops::OpsError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Does the work for each item, on at most so many threads. Nothing new is begun once the flag is up.
pub(in crate::ops) fn each<T: Sync>(
    at_once: usize,
    items: &[T],
    cancel: &Cancel,
    work: impl Fn(&T) -> Result<(), OpsError> + Sync,
) -> Result<(), OpsError> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failure = Mutex::new(None);
    threads::share_out(at_once.min(items.len()), || {
        while !failed.load(Ordering::SeqCst) {
            let Some(item) = items.get(next.fetch_add(1, Ordering::SeqCst)) else { return };
            let done = cancel.check().map_err(OpsError::from).and_then(|()| work(item));
            if let Err(e) = done {
                failed.store(true, Ordering::SeqCst);
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
