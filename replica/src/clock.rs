//! Time, passed in everywhere so that tests can set it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// Gives the time in ns since 1970; it never goes back.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The system's clock. When that is set back, time stands still until it has caught up.
pub fn system() -> Clock {
    let latest = AtomicU64::new(0);
    Arc::new(move || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        latest.fetch_max(now, Ordering::Relaxed).max(now)
    })
}
