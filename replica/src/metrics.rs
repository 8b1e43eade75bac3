//! Counters for Prometheus.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use heap::MediaKind;

/// All of them.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Update calls that came in.
    pub calls: AtomicU64,
    /// Queries that came in.
    pub queries: AtomicU64,
    /// `read_state` requests that came in.
    pub read_states: AtomicU64,
    /// Requests answered with a status of 400 or more.
    pub refused: AtomicU64,
    /// Connections taken.
    pub connections: AtomicU64,
    /// Last commit of the heap.
    pub heap_epoch: AtomicU64,
    /// Bytes that the heap takes on its medium.
    pub heap_used: AtomicU64,
    /// Bytes that the heap may take on its medium.
    pub heap_capacity: AtomicU64,
    /// What the heap's medium is.
    pub heap_medium: OnceLock<MediaKind>,
    /// 1 if canisters' memories are read page by page when touched, 0 if each as a whole.
    pub memory_lazy: AtomicU64,
}

impl Metrics {
    /// Counts one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        let rows = [
            ("replica_calls_total", "counter", "Update calls that came in.", &self.calls),
            ("replica_queries_total", "counter", "Queries that came in.", &self.queries),
            ("replica_read_states_total", "counter", "read_state requests that came in.", &self.read_states),
            (
                "replica_refused_total",
                "counter",
                "Requests answered with a status of 400 or more.",
                &self.refused,
            ),
            ("replica_connections_total", "counter", "Connections taken.", &self.connections),
            ("replica_heap_epoch", "gauge", "Last commit of the heap.", &self.heap_epoch),
            ("replica_heap_used_bytes", "gauge", "Bytes that the heap takes on its medium.", &self.heap_used),
            ("replica_heap_capacity_bytes", "gauge", "Bytes that it may take.", &self.heap_capacity),
            (
                "replica_memory_lazy",
                "gauge",
                "1 if canisters' memories are read page by page when touched, 0 if each as a whole.",
                &self.memory_lazy,
            ),
        ];
        let mut text = String::new();
        for (name, kind, help, value) in rows {
            let value = value.load(Ordering::Relaxed);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        if let Some(medium) = self.heap_medium.get() {
            let name = "replica_heap_medium";
            let help = "1 for the kind of medium that the heap is on, hence what a commit survives.";
            let _ =
                writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{{kind=\"{medium}\"}} 1");
        }
        text
    }
}
