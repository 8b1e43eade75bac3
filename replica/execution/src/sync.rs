//! Locks between the engine and queries: the standard library's, or with the feature `shuttle` such as let a test
//! choose who goes next. Locks that are taken while a program runs are always the standard library's: wasmtime does not
//! allow that a thread leaves a program for another.

use std::sync::PoisonError;

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, RwLock};
#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{Mutex, MutexGuard, RwLock};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked with it left it whole: each change is one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
