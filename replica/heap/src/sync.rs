//! Locks: the standard library's, or with the feature `shuttle` such as let a test choose who goes next.

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
