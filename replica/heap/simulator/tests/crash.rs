//! A small share of what `heap-simulator` explores, in every test run.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use heap::mutants::Mutant;
use heap_simulator::Simulator;

#[test]
fn every_crash_recovers() {
    let mut states = 0;
    for seed in 1.. {
        let mut simulator = Simulator::new(seed);
        simulator.history(None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        states += simulator.explored.states;
        if states > 300_000 {
            break;
        }
    }
}

#[test]
fn omissions_that_are_found_at_once_are_caught() {
    let soon = [
        Mutant::CommitFenceDropped,
        Mutant::CheckpointFenceDropped,
        Mutant::SuperblockFenceDropped,
        Mutant::WatermarkBeforeFence,
        Mutant::TornPagesBelieved,
        Mutant::PagesAfterFence,
        Mutant::NonceNotAdvanced,
        Mutant::SlotReusedBeforeCheckpoint,
        Mutant::TailSlotsFreeAgain,
        Mutant::LineNotFlushed,
    ];
    for mutant in soon {
        let caught = (1..100).any(|seed| Simulator::new(seed).history(Some(mutant)).is_err());
        assert!(caught, "{mutant:?} was not caught");
    }
}
