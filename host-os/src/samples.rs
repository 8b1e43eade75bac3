//! What is measured from time to time for the plots of the status page: the host's processors and memory, its
//! drives, the guest's restarts, the age of its attestation. The parsers are pure.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// Time between two samples.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// Samples that are kept: one hour.
const KEPT: usize = 360;

/// Figures of one moment; what could not be read is absent.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sample {
    /// Seconds after the agent's start.
    pub at_s: u64,
    /// Part of the processors' time that was not idle since the last sample, 0 to 100.
    pub cpu_percent: Option<f64>,
    /// Part of the memory that is not available, 0 to 100.
    pub memory_percent: Option<f64>,
    /// Memory of the agent itself, in bytes.
    pub agent_bytes: Option<u64>,
    /// Part of its endurance that the most worn NVMe drive has used, in percent; may exceed 100.
    pub nvme_wear_percent: Option<u8>,
    /// How often the guest was started again.
    pub restarts: u64,
    /// Seconds since the guest's evidence was last verified, while that holds.
    pub attestation_age_s: Option<u64>,
}

/// The last hour.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct History(VecDeque<Sample>);

impl History {
    /// Adds a sample; the oldest goes.
    pub fn push(&mut self, sample: Sample) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Sample> {
        self.0.iter()
    }

    /// The newest.
    pub fn last(&self) -> Option<&Sample> {
        self.0.back()
    }
}

/// Time that all processors together spent since the boot, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTime {
    idle: u64,
    total: u64,
}

impl CpuTime {
    /// From /proc/stat (proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal).
    pub fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
        let idle = ticks.get(3)?.saturating_add(ticks.get(4).copied().unwrap_or(0));
        Some(Self { idle, total: ticks.iter().fold(0, |sum, ticks| sum.saturating_add(*ticks)) })
    }

    /// How busy the processors were since `earlier`, 0 to 100.
    pub fn busy_percent(self, earlier: Self) -> Option<f64> {
        let total = self.total.checked_sub(earlier.total).filter(|total| *total > 0)?;
        // Idle time can be counted back by a few ticks.
        let idle = self.idle.saturating_sub(earlier.idle).min(total);
        Some(100.0 * (total - idle) as f64 / total as f64)
    }
}

/// Part of the memory in use, 0 to 100, from /proc/meminfo.
pub fn memory_percent(meminfo: &str) -> Option<f64> {
    let field = |name| kib(meminfo, name);
    let (total, available) = (field("MemTotal:")?, field("MemAvailable:")?);
    (total > 0).then(|| 100.0 * total.saturating_sub(available) as f64 / total as f64)
}

/// Resident bytes of a process, from its /proc/PID/status.
pub fn resident_bytes(status: &str) -> Option<u64> {
    kib(status, "VmRSS:")?.checked_mul(1024)
}

/// How often the kernel has killed a process because there was no memory for it, in a control group or at all, from
/// /proc/vmstat.
pub fn oom_kills(vmstat: &str) -> Option<u64> {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

fn kib(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let earlier = CpuTime::parse("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3\n").unwrap();
        let later = CpuTime::parse("cpu  160 0 110 720 110 0 0 0 0 0\n").unwrap();
        assert_eq!(later.busy_percent(earlier), Some(70.0));
        assert_eq!(earlier.busy_percent(later), None);
        assert_eq!(memory_percent("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  250 kB\n"), Some(75.0));
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t   20 kB\n"), Some(20480));
        assert_eq!(oom_kills("nr_free_pages 9\noom_kill 12\n"), Some(12));
        assert!(oom_kills(&std::fs::read_to_string("/proc/vmstat").unwrap()).is_some());
        let own = std::fs::read_to_string("/proc/stat").unwrap();
        assert!(CpuTime::parse(&own).is_some_and(|time| time.total > 0));
        for broken in ["", "cpu", "cpu x", "cpu 1 2", "MemTotal: x"] {
            assert_eq!(CpuTime::parse(broken), None);
            assert_eq!(memory_percent(broken), None);
            assert_eq!(oom_kills(broken), None);
        }
    }

    #[test]
    fn one_hour_is_kept() {
        let mut history = History::default();
        for at_s in 0..1000 {
            history.push(Sample { at_s, ..Sample::default() });
        }
        assert_eq!(history.iter().count(), KEPT);
        assert_eq!((history.iter().next().unwrap().at_s, history.last().unwrap().at_s), (640, 999));
    }
}
