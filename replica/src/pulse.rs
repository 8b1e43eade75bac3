//! Signs of life for whoever started the replica: READY once, then ALIVE while the executor is not stuck.
//!
//! One message may execute for minutes (on emulated processors, many), and a restart would only begin it anew:
//! so ALIVE stops only when one step takes longer than any message can.
//!
//! Each sign carries the number of a commit that is durable. Who keeps the highest where the owner of the heap's medium
//! cannot rewind it gives it back as `heap.at_least`, and an older image of the medium is noticed.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Time between two signs.
const BEAT: Duration = Duration::from_secs(2);
/// A step that takes longer is stuck.
const LONGEST_STEP: Duration = Duration::from_secs(15 * 60);

/// What the executor tells of itself.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    /// When the current step began, in ms since `start`, plus 1; 0 while there is none.
    step: AtomicU64,
    /// The last durable commit.
    epoch: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { start: Instant::now(), step: AtomicU64::new(0), epoch: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// A step begins.
    pub fn busy(&self) {
        self.step.store(self.milliseconds() + 1, Ordering::Relaxed);
    }

    /// The executor waits for work.
    pub fn idle(&self) {
        self.step.store(0, Ordering::Relaxed);
    }

    /// Commits up to this one are durable.
    pub fn committed(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    fn sign(&self, name: &str, mut to: &File) -> io::Result<()> {
        let epoch = self.epoch.load(Ordering::Relaxed);
        to.write_all(format!("{name} {epoch}\n").as_bytes())
    }

    /// Says once more that the replica lives, and how far the heap is: at its end.
    pub fn last(&self, to: &File) {
        // Nobody may listen any more.
        let _ = self.sign("ALIVE", to);
    }

    fn stuck(&self) -> bool {
        let step = self.step.load(Ordering::Relaxed);
        step > 0 && self.milliseconds().saturating_sub(step) > LONGEST_STEP.as_millis() as u64
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Says READY, and from then on ALIVE, until nobody listens any more.
    pub fn announce(self: Arc<Self>, to: File) -> io::Result<()> {
        self.sign("READY", &to)?;
        thread::Builder::new().name("pulse".into()).spawn(move || {
            loop {
                thread::sleep(BEAT);
                if !self.stuck() && self.sign("ALIVE", &to).is_err() {
                    return;
                }
            }
        })?;
        Ok(())
    }
}
