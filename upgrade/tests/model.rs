//! A second model of one part, written as rules instead of a table, explored by the checker `stateright`. Every path that
//! it finds is replayed against the crate's machine: both take the same events and agree on every state.
//!
//! The model leaves out what the releases are (`explore.rs` has that): it is about phases, slots, keys and tries.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use stateright::{Checker, CheckerVisitor, Model, Path, Property};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use upgrade::machine::{Content, Event, Part, Phase, Slot, TRIES};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    phase: Phase,
    /// Whether the slots have changed places.
    swapped: bool,
    /// Whether the slot that is not active holds something whole.
    other_full: bool,
    other_key: bool,
    recovery: bool,
    tries: u8,
}

struct Rules;

impl Rules {
    fn next(state: &State, event: Event) -> Option<State> {
        use Phase::{Committed, Failed, Fetched, Healthy, Idle, Reverting, Staged, Trying, Verified};
        let mut next = state.clone();
        let running_new = matches!(state.phase, Trying | Healthy);
        match event {
            Event::Crash => match state.phase {
                Verified => next.phase = Fetched,
                _ if running_new && state.tries > 1 => {
                    next.phase = Trying;
                    next.tries -= 1;
                }
                _ if running_new => next.phase = Reverting,
                _ => {}
            },
            Event::BootFailed if state.phase == Trying => {
                if state.tries > 1 {
                    next.tries -= 1
                } else {
                    next.phase = Reverting
                }
            }
            Event::HealthLost if running_new => next.phase = Reverting,
            Event::Withdrawn if running_new => next.phase = Reverting,
            Event::Withdrawn if matches!(state.phase, Verified | Staged) => {
                next.phase = Failed;
                next.other_key = false;
            }
            Event::NothingBoots if !matches!(state.phase, Verified | Healthy) => {
                next.phase = Failed;
                next.other_key = false;
            }
            Event::Rescued if state.phase == Failed => {
                next.phase = Idle;
                next.other_key = false;
            }
            Event::FetchDone if state.phase == Idle => next.phase = Fetched,
            Event::VerifyOk if state.phase == Fetched => next.phase = Verified,
            Event::VerifyRefused if state.phase == Fetched => next.phase = Failed,
            Event::StageBegun if state.phase == Verified && state.other_full => {
                next.other_full = false;
                next.other_key = false;
            }
            Event::StageDone if state.phase == Verified && !state.other_full => {
                next.phase = Staged;
                next.other_full = true;
            }
            Event::StageFailed if state.phase == Verified && !state.other_full => next.phase = Failed,
            Event::RecoveryGiven if state.phase == Staged && !state.other_key => next.recovery = true,
            Event::RecoveryDropped if state.phase == Staged && !state.other_key => next.recovery = false,
            Event::KeyGiven if state.phase == Staged && !state.other_key => next.other_key = true,
            Event::KeyRefused if state.phase == Staged && !state.other_key => next.phase = Failed,
            Event::Try if state.phase == Staged && state.other_key => {
                next.phase = Trying;
                next.tries = TRIES;
            }
            Event::HealthOk if state.phase == Trying => next.phase = Healthy,
            Event::Commit if state.phase == Healthy => {
                next.phase = Committed;
                next.swapped = !state.swapped;
                // What was active is the other one now, whole and with a key.
                (next.other_full, next.other_key) = (true, true);
            }
            Event::OldKeyErased if state.phase == Committed => {
                next.phase = Idle;
                next.other_key = false;
            }
            Event::Reverted if state.phase == Reverting => {
                next.phase = Failed;
                next.other_key = false;
            }
            Event::Acknowledge if state.phase == Failed => next.phase = Idle,
            _ => return None,
        }
        if !matches!(next.phase, Trying | Healthy) {
            next.tries = 0;
        }
        Some(next)
    }
}

impl Model for Rules {
    type State = State;
    type Action = Event;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            phase: Phase::Idle,
            swapped: false,
            other_full: false,
            other_key: false,
            recovery: false,
            tries: 0,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Event>) {
        actions.extend(Event::ALL);
    }

    fn next_state(&self, state: &State, event: Event) -> Option<State> {
        Rules::next(state, event)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is tried without a key", |_, state: &State| {
                !matches!(state.phase, Phase::Trying | Phase::Healthy) || state.other_key
            }),
            Property::always("one key when nothing is under way", |_, state: &State| {
                !state.phase.is_settled() || !state.other_key
            }),
            Property::always("tries are bounded", |_, state: &State| state.tries <= TRIES),
            Property::sometimes("an upgrade goes through", |_, state: &State| state.swapped),
            Property::sometimes("an upgrade is reverted", |_, state: &State| state.phase == Phase::Reverting),
        ]
    }
}

fn abstracted(part: &Part<u8>) -> State {
    let other = part.active.other();
    State {
        phase: part.phase,
        swapped: part.active == Slot::B,
        other_full: *part.content(other) != Content::Partial,
        other_key: part.has_key(other),
        recovery: part.recovery.is_some(),
        tries: part.tries,
    }
}

struct Replay {
    paths: Arc<AtomicUsize>,
    events: Arc<AtomicUsize>,
}

impl CheckerVisitor<Rules> for Replay {
    fn visit(&self, _: &Rules, path: Path<State, Event>) {
        let mut part = Part::installed(0);
        let steps = path.into_vec();
        for (i, (state, event)) in steps.iter().enumerate() {
            assert_eq!(abstracted(&part), *state, "after {:?}", &steps[..i]);
            // What one refuses the other refuses.
            for event in Event::ALL {
                let (ours, theirs) = (part.step(event, Some(1)), Rules::next(state, event));
                assert_eq!(ours.as_ref().ok().map(abstracted), theirs, "{event:?} in {state:?}");
                self.events.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(event) = event {
                part = part.step(*event, Some(1)).unwrap();
            }
        }
        self.paths.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn the_model_and_the_machine_agree() {
    let (paths, events) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let visitor = Replay { paths: paths.clone(), events: events.clone() };
    let checker = Rules.checker().visitor(visitor).spawn_bfs().join();
    checker.assert_properties();
    println!(
        "{} states of the model, {} paths replayed, {} answers compared",
        checker.unique_state_count(),
        paths.load(Ordering::Relaxed),
        events.load(Ordering::Relaxed)
    );
    assert!(checker.unique_state_count() > 20 && paths.load(Ordering::Relaxed) > 20);
}
