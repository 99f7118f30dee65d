//! What this crate's tests share.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by tests that use the default random generator, which is the process's: tests run in parallel.
pub(crate) fn generator_lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}
