//! What the guest tells the host about itself.

use host_guest::{Health, Phase, ToHost};
use std::fs;
use std::time::{Duration, Instant};

/// Longest time between two reports.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// Decides when to report.
#[derive(Debug)]
pub struct Reporter {
    started: Instant,
    last: Option<(Instant, Health)>,
}

/// What changes while the guest runs.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Where the guest stands.
    pub phase: Phase,
    /// Restarts of the replica.
    pub restarts: u32,
    /// Addresses of the guest.
    pub addresses: &'a [String],
    /// Medium of the heap.
    pub heap: &'a str,
    /// Last error.
    pub error: &'a str,
}

impl Reporter {
    /// Counts time from `started`.
    pub const fn new(started: Instant) -> Self {
        Self { started, last: None }
    }

    /// The report to send now, if one is due: something changed, or the interval is over.
    pub fn due(&mut self, now: Instant, facts: Facts) -> Option<ToHost> {
        let Facts { phase, restarts, addresses, heap, error } = facts;
        let unchanged = self.last.as_ref().is_some_and(|(sent, last)| {
            now.saturating_duration_since(*sent) < INTERVAL
                && last.phase == phase
                && last.replica_restarts == restarts
                && last.addresses == addresses
                && last.heap == heap
                && last.error == error
        });
        if unchanged {
            return None;
        }
        let health = Health {
            phase,
            uptime_s: now.saturating_duration_since(self.started).as_secs(),
            replica_restarts: restarts,
            memory_used: memory_used(&fs::read_to_string("/proc/meminfo").unwrap_or_default()).unwrap_or(0),
            addresses: addresses.to_vec(),
            heap: heap.to_owned(),
            error: error.to_owned(),
        };
        self.last = Some((now, health.clone()));
        Some(ToHost::Health(health))
    }

    /// Time until the interval is over.
    pub fn next(&self, now: Instant) -> Duration {
        let sent = self.last.as_ref().map(|(sent, _)| now.saturating_duration_since(*sent));
        sent.map_or(Duration::ZERO, |since| INTERVAL.saturating_sub(since))
    }
}

/// `MemTotal - MemAvailable` of /proc/meminfo, in bytes.
fn memory_used(meminfo: &str) -> Option<u64> {
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some(field("MemTotal")?.saturating_sub(field("MemAvailable")?).saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_is_not_available() {
        let meminfo = "MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     400 kB\n";
        assert_eq!(memory_used(meminfo), Some(600 * 1024));
        assert_eq!(memory_used("MemTotal: 1000 kB\n"), None);
        assert_eq!(memory_used("MemTotal: x kB\nMemAvailable: 1 kB\n"), None);
    }

    #[test]
    fn a_change_is_told_at_once_and_everything_else_each_interval() {
        let start = Instant::now();
        let mut reporter = Reporter::new(start);
        let addresses = [];
        let facts = |phase| Facts { phase, restarts: 0, addresses: &addresses, heap: "", error: "" };
        assert_eq!(reporter.next(start), Duration::ZERO);
        assert!(reporter.due(start, facts(Phase::Booting)).is_some());
        assert!(reporter.due(start, facts(Phase::Booting)).is_none());
        assert!(reporter.due(start, facts(Phase::Ready)).is_some());
        let later = start + Duration::from_secs(4);
        assert!(reporter.due(later, facts(Phase::Ready)).is_none());
        assert_eq!(reporter.next(later), Duration::from_secs(1));
        let Some(ToHost::Health(health)) = reporter.due(start + INTERVAL, facts(Phase::Ready)) else {
            panic!()
        };
        assert_eq!(health.uptime_s, 5);
    }
}
