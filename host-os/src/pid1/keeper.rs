//! How PID 1 keeps the agent running, feeds the watchdog and ends the machine: states, events, effects. No I/O and no
//! clock; time is an argument, counted from the start of PID 1.

use crate::power::Action;
use std::time::Duration;

/// Since the start of PID 1.
pub(super) type Time = Duration;

/// Pauses before the agent is started again: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// An agent that ran this long starts again with the first pause.
const STABLE: Duration = Duration::from_secs(300);
/// An agent that says nothing for so long hangs, and is killed. It says something every [`crate::power::BEAT`].
const SILENCE: Duration = Duration::from_secs(60);
/// Without a sign of life for so long, over restarts of the agent too, the watchdog gets no more food and the hardware
/// resets the machine.
const LIFELESS: Duration = Duration::from_secs(300);
/// The agent may take so long to stop: the guest powers off in it.
const STOPPING: Duration = Duration::from_secs(45);
/// From the kill of the agent to the end without it.
const KILLING: Duration = Duration::from_secs(5);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The agent's process exists.
    Started,
    /// It could not be made.
    NotStarted,
    /// It ended and was reaped.
    Ended,
    /// It answers.
    Beat,
    /// Somebody who may do so wants the machine to end.
    Asked(Action),
    /// Time went by.
    Tick,
}

/// What PID 1 does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Start the agent; answered by [`Event::Started`] or [`Event::NotStarted`].
    Start,
    /// Tell the agent to stop.
    Terminate,
    /// Kill the agent.
    Kill,
    /// Unmount, and end the machine. Nothing comes after it.
    Finish(Action),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Running {
        since: Time,
        heard: Time,
    },
    /// Killed because it hung.
    Killed,
    Paused {
        until: Time,
    },
    /// The agent was told to stop; killed at the time, if it was not.
    Ending {
        action: Action,
        kill: Time,
    },
    /// The agent was killed; not waited for after the time.
    Last {
        action: Action,
        end: Time,
    },
    Finished,
}

/// The state with what it remembers.
#[derive(Debug, Clone)]
pub(super) struct Keeper {
    state: State,
    pause: Duration,
    /// The last sign of life of any agent; at first, the start of PID 1.
    alive: Time,
    /// The machine ends as soon as the agent that is being started exists.
    asked: Option<Action>,
}

impl Keeper {
    /// Nothing runs; the first effect is to start the agent.
    pub(super) fn new() -> Self {
        Self { state: State::Starting, pause: PAUSES.0, alive: Time::ZERO, asked: None }
    }

    /// Whether the watchdog is to be fed.
    pub(super) fn feeds(&self, now: Time) -> bool {
        match self.state {
            // Unmounting that hangs is ended by the hardware.
            State::Finished => false,
            // Bounded by their own deadlines.
            State::Ending { .. } | State::Last { .. } => true,
            _ => now.saturating_sub(self.alive) < LIFELESS,
        }
    }

    /// Takes one event.
    pub(super) fn step(&mut self, event: Event, now: Time) -> Option<Effect> {
        use Event as E;
        use State as S;
        if event == E::Beat {
            self.alive = now;
        }
        let (next, effect) = match (self.state, event) {
            (S::Starting, E::Started) => match self.asked {
                Some(action) => (S::Ending { action, kill: now + STOPPING }, Some(Effect::Terminate)),
                None => (S::Running { since: now, heard: now }, None),
            },
            (S::Starting, E::NotStarted) => match self.asked {
                Some(action) => (S::Finished, Some(Effect::Finish(action))),
                None => (self.pause(now), None),
            },
            (S::Starting, E::Asked(action)) => {
                self.asked = Some(action);
                (S::Starting, None)
            }
            (S::Running { since, .. }, E::Beat) => (S::Running { since, heard: now }, None),
            (S::Running { since, .. }, E::Ended) => {
                if now.saturating_sub(since) >= STABLE {
                    self.pause = PAUSES.0;
                }
                (self.pause(now), None)
            }
            (S::Running { heard, .. }, E::Tick) if now.saturating_sub(heard) >= SILENCE => {
                (S::Killed, Some(Effect::Kill))
            }
            (S::Killed, E::Ended) => (self.pause(now), None),
            (S::Paused { until }, E::Tick) if now >= until => (S::Starting, Some(Effect::Start)),

            (S::Paused { .. }, E::Asked(action)) => (S::Finished, Some(Effect::Finish(action))),
            (S::Running { .. }, E::Asked(action)) => {
                (S::Ending { action, kill: now + STOPPING }, Some(Effect::Terminate))
            }
            (S::Killed, E::Asked(action)) => (S::Last { action, end: now + KILLING }, None),
            (S::Ending { action, .. } | S::Last { action, .. }, E::Ended) => {
                (S::Finished, Some(Effect::Finish(action)))
            }
            (S::Ending { action, kill }, E::Tick) if now >= kill => {
                (S::Last { action, end: now + KILLING }, Some(Effect::Kill))
            }
            (S::Last { action, end }, E::Tick) if now >= end => (S::Finished, Some(Effect::Finish(action))),
            (state, _) => (state, None),
        };
        self.state = next;
        effect
    }

    fn pause(&mut self, now: Time) -> State {
        let until = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSES.1);
        State::Paused { until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The process of the agent, as the world has it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Agent {
        None,
        Alive,
    }

    /// What the world does in one second.
    #[derive(Debug, Clone, Copy)]
    enum Turn {
        Nothing,
        Crash,
        Ask(Action),
        Wait(u64),
    }

    fn turns() -> impl Strategy<Value = Vec<Turn>> {
        let turn = prop_oneof![
            4 => Just(Turn::Nothing),
            2 => Just(Turn::Crash),
            1 => Just(Turn::Ask(Action::Reboot)),
            1 => Just(Turn::Ask(Action::PowerOff)),
            4 => (1..200_u64).prop_map(Turn::Wait),
        ];
        proptest::collection::vec(turn, 0..60)
    }

    proptest! {
        /// Whatever happens: never two agents; what was asked for happens, first wish first, in bounded time; nothing
        /// comes after the end; an agent that beats is never killed; the watchdog starves only without life.
        #[test]
        fn the_machine_is_kept_or_ended(turns in turns(), beats: bool, obeys: bool, dies: bool) {
            let mut keeper = Keeper::new();
            let (mut agent, mut now) = (Agent::Alive, Time::ZERO);
            let (mut asked, mut finished, mut last_beat) = (None, None, Time::ZERO);
            let mut queue: Vec<Event> = vec![Event::Started];
            let mut script = turns.into_iter();
            let mut waiting = 0_u64;
            for _ in 0..4000 {
                if waiting == 0 {
                    match script.next() {
                        None => if asked.is_none() { break },
                        Some(Turn::Nothing) => {}
                        Some(Turn::Wait(seconds)) => waiting = seconds,
                        Some(Turn::Crash) => if agent == Agent::Alive {
                            agent = Agent::None;
                            queue.push(Event::Ended);
                        },
                        Some(Turn::Ask(action)) => {
                            asked = asked.or(Some((action, now)));
                            queue.push(Event::Asked(action));
                        }
                    }
                } else {
                    waiting -= 1;
                }
                if beats && agent == Agent::Alive && now.as_secs() % 5 == 0 {
                    last_beat = now;
                    queue.push(Event::Beat);
                }
                queue.push(Event::Tick);
                while !queue.is_empty() {
                    let event = queue.remove(0);
                    let effect = keeper.step(event, now);
                    if let Some(effect) = effect {
                        prop_assert!(finished.is_none(), "{effect:?} after the end");
                        match effect {
                            Effect::Start => {
                                prop_assert_eq!(agent, Agent::None, "a second agent");
                                prop_assert!(asked.is_none(), "started although the machine ends");
                                agent = Agent::Alive;
                                queue.push(Event::Started);
                            }
                            Effect::Terminate => if obeys && agent == Agent::Alive {
                                agent = Agent::None;
                                queue.push(Event::Ended);
                            },
                            Effect::Kill => {
                                prop_assert!(asked.is_some() || !beats || agent == Agent::None, "killed alive");
                                if dies && agent == Agent::Alive {
                                    agent = Agent::None;
                                    queue.push(Event::Ended);
                                }
                            }
                            Effect::Finish(action) => finished = Some((action, now)),
                        }
                    }
                }
                match finished {
                    Some(_) => prop_assert!(!keeper.feeds(now), "fed after the end"),
                    None if asked.is_none() => prop_assert_eq!(
                        keeper.feeds(now), now.saturating_sub(last_beat) < LIFELESS, "at {:?}", now
                    ),
                    None => {}
                }
                now += Duration::from_secs(1);
            }
            if let Some((action, at)) = asked {
                let (done, when) = finished.expect("asked for, and never done");
                prop_assert_eq!(done, action);
                prop_assert!(when - at <= STOPPING + KILLING + Duration::from_secs(2), "took {:?}", when - at);
            }
        }
    }

    #[test]
    fn an_agent_that_ends_at_once_is_started_with_growing_pauses() {
        let mut keeper = Keeper::new();
        let (mut now, mut starts) = (Time::ZERO, vec![]);
        assert_eq!(keeper.step(Event::NotStarted, now), None);
        while starts.len() < 9 {
            if keeper.step(Event::Tick, now) == Some(Effect::Start) {
                starts.push(now.as_secs());
                keeper.step(Event::Started, now);
                keeper.step(Event::Ended, now);
            }
            now += Duration::from_secs(1);
        }
        let pauses: Vec<_> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!((starts[0], pauses), (1, vec![2, 4, 8, 16, 32, 60, 60, 60]));
    }
}
