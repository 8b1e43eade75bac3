//! Whether the machine has memory left for what programs touch.
//!
//! Memories are as long as the limits allow and take room only where they are touched. So what must not run out is
//! counted as it is touched: the machine is asked after every [`STEP`] pages, and whoever wants more than it has to
//! spare is refused before the kernel would have to end the replica.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Pages between two looks at the machine's memory, which take as long as filling a few pages.
const STEP: u64 = 1024;

/// What is left of the machine's memory, for all programs together.
pub(crate) struct Ram {
    /// Bytes that must stay available.
    reserve: u64,
    /// Pages touched since the last look.
    touched: AtomicU64,
    /// There was too little at the last look.
    short: AtomicBool,
    /// A program was refused memory.
    refused: AtomicBool,
}

/// The machine has no memory left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the machine has no memory left for it: less than {} MiB are available; touch less memory in one message, or \
     give the node more",
    reserve >> 20
)]
pub(crate) struct Short {
    /// Bytes that must stay available.
    reserve: u64,
}

impl Ram {
    /// Programs must leave so many bytes; 0: they may use all there is.
    pub(crate) fn new(reserve: u64) -> Self {
        let (short, refused) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { reserve, touched: AtomicU64::new(0), short, refused }
    }

    /// Asks for room for pages that are about to be touched.
    pub(crate) fn take(&self, pages: u64) -> Result<(), Short> {
        let touched = self.touched.fetch_add(pages, Ordering::Relaxed) + pages;
        let short = if touched < STEP { self.short.load(Ordering::Relaxed) } else { self.look() };
        if short {
            self.refused.store(true, Ordering::Relaxed);
            return Err(Short { reserve: self.reserve });
        }
        Ok(())
    }

    /// Looks how much is there; whether that is too little.
    pub(crate) fn look(&self) -> bool {
        self.touched.store(0, Ordering::Relaxed);
        let short = self.reserve > 0 && available().is_some_and(|available| available < self.reserve);
        self.short.store(short, Ordering::Relaxed);
        short
    }

    /// There was too little at the last look.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Whether a program was refused memory since this was last asked.
    pub(crate) fn refused(&self) -> bool {
        self.refused.swap(false, Ordering::Relaxed)
    }
}

/// Bytes that can be had without swapping; `None` where the kernel does not say.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_cannot_spare_is_refused() {
        assert!(available().unwrap() > 1 << 20, "the kernel says how much there is");
        let plenty = Ram::new(1);
        assert!((0..10 * STEP).all(|_| plenty.take(1).is_ok()) && !plenty.refused());
        let none = Ram::new(u64::MAX);
        // Little is not worth a look.
        none.take(STEP - 1).unwrap();
        assert!(none.take(1).unwrap_err().to_string().contains("no memory left"));
        none.take(1).unwrap_err();
        assert!(none.is_short() && none.refused() && !none.refused());
    }
}
