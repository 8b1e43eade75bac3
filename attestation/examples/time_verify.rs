//! Time to verify one report with its chain, warm and on one core: this crate, and the crate `sev` as a reference, each
//! from the bytes of the files to its verdict. `cargo xtask bench attest` runs it.
//!
//! `time_verify REPORT ARK ASK VEK [ROUNDS]`, certificates in DER; prints medians in milliseconds as JSON. With
//! `--once` in place of ROUNDS it verifies once and prints nothing: a process to be timed from outside.

#![allow(clippy::expect_used, reason = "a tool for measuring: whatever fails ends it")]

use attestation::{Evidence, Policy, TrustAnchors, verify};
use sev::certs::snp::{Chain, Verifiable};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser;
use std::time::{Duration, Instant};

/// Everything is accepted that has to do with who runs what; nothing is left out of the cryptography.
const POLICY: &str = include_str!("../policies/all-products.toml");
/// 2026-11-15, in seconds since 1970.
const NOW: u64 = 1_794_700_800;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [report, ark, ask, vek, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: time_verify REPORT ARK ASK VEK [ROUNDS | --once]");
        std::process::exit(2);
    };
    let [report, ark, ask, vek] =
        [report, ark, ask, vek].map(|path| std::fs::read(path).expect("the file can be read"));
    let (policy, anchors) = (Policy::from_toml(POLICY).expect("a policy"), TrustAnchors::amd());
    let ours = || {
        let evidence = Evidence::from_parts(report.clone(), &vek, Some(&ark), Some(&ask));
        verify(&evidence, &policy, &anchors, NOW).expect("it is accepted");
    };
    if rest.first().is_some_and(|rest| rest == "--once") {
        return ours();
    }
    let theirs = || {
        let chain = Chain::from_der(&ark, &ask, &vek).expect("a chain");
        let report = AttestationReport::from_bytes(&report).expect("a report");
        (&chain, &report).verify().expect("it is accepted");
    };
    let rounds = rest.first().map_or(200, |rounds| rounds.parse().expect("a number of rounds"));
    let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
    for round in 0..rounds + 10 {
        // Alternating, so that both see the same weather on the machine; the first ones warm up.
        let (our_time, their_time) = (time(ours), time(theirs));
        if round >= 10 {
            our_times.push(our_time);
            their_times.push(their_time);
        }
    }
    let [ours, sev] = [our_times, their_times].map(|times| median(times).as_secs_f64() * 1e3);
    println!("{{\"rounds\":{rounds},\"ours_ms\":{ours:.4},\"sev_ms\":{sev:.4}}}");
}

fn time(work: impl Fn()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
