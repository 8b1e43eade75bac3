//! What goes on beside the main loop: figures of the host, evidence of the guest, threads on their processors.

use crate::attest::{Expectations, chain, fetch_and_verify};
use crate::boot_facts;
use crate::confine::cgroup;
use crate::guest::{Report, Reporter};
use crate::http::Shared;
use crate::placement::Placement;
use crate::samples::{self, CpuTime, Sample};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Measures the host from time to time.
pub(super) async fn watch_host(shared: Shared) {
    // Reading a drive's log takes it a moment, and its wear changes slowly.
    const DRIVES: Duration = Duration::from_secs(600);
    let mut interval = tokio::time::interval(samples::INTERVAL);
    let mut before: Option<CpuTime> = None;
    let mut drives: Option<(Instant, Option<u8>)> = None;
    loop {
        interval.tick().await;
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let now = CpuTime::parse(&read("/proc/stat"));
        let cpu_percent = now.zip(before).and_then(|(now, before)| now.busy_percent(before));
        before = now;
        if drives.is_none_or(|(at, _)| at.elapsed() > DRIVES) {
            let wear = tokio::task::spawn_blocking(hwspec::probe::nvme_wear).await.ok().flatten();
            drives = Some((Instant::now(), wear));
        }
        let status = shared.read();
        let attested = status.attested.as_ref();
        let now_unix_s = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        if let Some(boot) = boot_facts::read() {
            shared.update(|status| {
                if let Some(system) = &mut status.system {
                    system.boot = Some(boot);
                }
            });
        }
        shared.sample(Sample {
            at_s: status.uptime_s,
            cpu_percent,
            memory_percent: samples::memory_percent(&read("/proc/meminfo")),
            agent_bytes: samples::resident_bytes(&read("/proc/self/status")),
            nvme_wear_percent: drives.and_then(|(_, wear)| wear),
            restarts: status.restarts,
            attestation_age_s: attested.map(|attested| now_unix_s.saturating_sub(attested.at_unix_s)),
        });
    }
}

/// Tries until the evidence is verified; a guest under load may need a moment.
pub(super) async fn attest(address: SocketAddr, expectations: Expectations, report: Reporter) {
    let mut wait = Duration::from_secs(1);
    loop {
        match fetch_and_verify(address, &expectations).await {
            Ok(attested) => return report.send(Report::Attested(Ok(Box::new(attested)))).await,
            Err(error) => report.send(Report::Attested(Err(chain(&error)))).await,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(30));
    }
}

/// Keeps the threads of a QEMU on their processors. It makes some only when they are needed, so this is done again and again.
pub(super) async fn keep_pinned(pid: Option<u32>, group: Option<PathBuf>, placement: Placement) {
    let mut pause = Duration::from_secs(1);
    let mut told = false;
    loop {
        tokio::time::sleep(pause).await;
        let processes = group.as_deref().map_or_else(|| pid.into_iter().collect(), cgroup::processes);
        let of = placement.clone();
        let pinned =
            tokio::task::spawn_blocking(move || crate::placement::machine::pin(&processes, &of)).await;
        if !told && pinned.is_ok_and(|pinned| pinned == placement.processors.len()) {
            tracing::info!(count = placement.processors.len(), "virtual processors are on their processors");
            told = true;
        }
        pause = (pause * 2).min(Duration::from_secs(60));
    }
}
