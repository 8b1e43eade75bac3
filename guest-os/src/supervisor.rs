//! When to start, kill and restart the replica. A state machine without I/O: time goes in, an action comes out.
//!
//! ```text
//!            Spawn               Ready line
//!   Backoff ------> Starting ----------------> Ready
//!      ^               |  exited / failed        |  exited
//!      |<--------------+-------------------------+
//!      |               |  too late               |  no sign of life
//!      |  exited       v                         v
//!      +------------ Killing <-------------------+
//!
//!   any --Stop--> Terminating --exited or too late--> Stopped (power off)
//! ```

use host_guest::Phase;
use std::time::Duration;

/// Limits, all of them measured from when the state was entered.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Longest time without a sign of life once ready.
    pub alive_within: Duration,
    /// Longest time from start to ready (the heap is read in meanwhile).
    pub ready_within: Duration,
    /// Longest time that a replica may take to end when it is asked, or killed, before the machine is given up.
    pub end_within: Duration,
    /// Pause before the first restart; doubles with each further one.
    pub first_pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
    /// A replica that was ready for this long starts the doubling anew.
    pub healthy_after: Duration,
}

/// What happened. Times come with [`Supervisor::step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// The process could not be started.
    SpawnFailed,
    /// The replica says that it answers.
    Ready,
    /// The replica says that it lives.
    Alive,
    /// The process ended, for whatever reason.
    Exited,
    /// The guest shall stop.
    Stop,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the process.
    Spawn,
    /// SIGKILL it.
    Kill,
    /// SIGTERM it.
    Terminate,
    /// Power the guest off: no process is left, or it does not end.
    PowerOff,
    /// Restart the guest: a killed process does not end, so the kernel is stuck.
    Reboot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    /// No process; start one at `until`.
    Backoff { until: Duration },
    /// Process started, not ready.
    Starting { since: Duration },
    /// Process ready.
    Ready { since: Duration, alive: Duration },
    /// SIGKILL sent.
    Killing { since: Duration },
    /// SIGTERM sent, the guest stops.
    Terminating { since: Duration },
    /// Nothing more happens.
    Stopped,
}

/// The state machine.
#[derive(Debug, Clone)]
pub struct Supervisor {
    policy: Policy,
    state: State,
    /// Failures since the replica was last healthy: the exponent of the pause.
    failures: u32,
    /// Starts so far.
    starts: u32,
}

impl Supervisor {
    /// Nothing is started yet; the first [`Event::Tick`] asks for it.
    pub const fn new(policy: Policy) -> Self {
        Self { policy, state: State::Backoff { until: Duration::ZERO }, failures: 0, starts: 0 }
    }

    /// Takes one event at a time on a clock that never goes back.
    pub fn step(&mut self, now: Duration, event: Event) -> Option<Action> {
        let policy = self.policy;
        let (state, action) = match (self.state, event) {
            (State::Backoff { .. }, Event::Stop) => (State::Stopped, Some(Action::PowerOff)),
            (State::Backoff { until }, _) if now >= until => {
                self.starts = self.starts.saturating_add(1);
                (State::Starting { since: now }, Some(Action::Spawn))
            }

            (State::Starting { .. }, Event::Ready) => (State::Ready { since: now, alive: now }, None),
            (State::Starting { .. }, Event::Exited | Event::SpawnFailed) => (self.back_off(now), None),
            (State::Starting { since }, _) if event != Event::Stop && now >= since + policy.ready_within => {
                (State::Killing { since: now }, Some(Action::Kill))
            }

            (State::Ready { since, .. }, Event::Exited) => {
                self.forgive(now, since);
                (self.back_off(now), None)
            }
            (State::Ready { since, .. }, Event::Alive) => (State::Ready { since, alive: now }, None),
            (State::Ready { since, alive }, _)
                if event != Event::Stop && now >= alive + policy.alive_within =>
            {
                self.forgive(alive, since);
                (State::Killing { since: now }, Some(Action::Kill))
            }

            (State::Killing { .. }, Event::Exited) => (self.back_off(now), None),
            (State::Killing { since }, _) if event != Event::Stop && now >= since + policy.end_within => {
                (State::Stopped, Some(Action::Reboot))
            }

            (State::Starting { .. } | State::Ready { .. } | State::Killing { .. }, Event::Stop) => {
                (State::Terminating { since: now }, Some(Action::Terminate))
            }
            (State::Terminating { .. }, Event::Exited) => (State::Stopped, Some(Action::PowerOff)),
            (State::Terminating { since }, _) if now >= since + policy.end_within => {
                (State::Stopped, Some(Action::PowerOff))
            }

            (state, _) => (state, None),
        };
        self.state = state;
        action
    }

    /// When a [`Event::Tick`] can next have an effect; never, when nothing is awaited.
    pub fn deadline(&self) -> Option<Duration> {
        let policy = self.policy;
        match self.state {
            State::Backoff { until } => Some(until),
            State::Starting { since } => Some(since + policy.ready_within),
            State::Ready { alive, .. } => Some(alive + policy.alive_within),
            State::Killing { since } | State::Terminating { since } => Some(since + policy.end_within),
            State::Stopped => None,
        }
    }

    /// The phase that the host is told.
    pub const fn phase(&self) -> Phase {
        match self.state {
            State::Backoff { .. } | State::Killing { .. } => Phase::Backoff,
            State::Starting { .. } => Phase::Starting,
            State::Ready { .. } => Phase::Ready,
            State::Terminating { .. } | State::Stopped => Phase::Stopping,
        }
    }

    /// How often the replica was started again.
    pub const fn restarts(&self) -> u32 {
        self.starts.saturating_sub(1)
    }

    /// Forgets earlier failures when the replica did well from `since` to `until`.
    fn forgive(&mut self, until: Duration, since: Duration) {
        if until.saturating_sub(since) >= self.policy.healthy_after {
            self.failures = 0;
        }
    }

    fn back_off(&mut self, now: Duration) -> State {
        let factor = 2_u32.saturating_pow(self.failures);
        let pause = self.policy.first_pause.saturating_mul(factor).min(self.policy.longest_pause);
        self.failures = self.failures.saturating_add(1);
        State::Backoff { until: now + pause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const POLICY: Policy = Policy {
        alive_within: s(3),
        ready_within: s(4),
        end_within: s(2),
        first_pause: s(1),
        longest_pause: s(4),
        healthy_after: s(6),
    };

    const EVENTS: [Event; 6] =
        [Event::Tick, Event::SpawnFailed, Event::Ready, Event::Alive, Event::Exited, Event::Stop];

    /// What the world looks like to the machine: events that cannot happen are not tried.
    #[derive(Clone, Default)]
    struct World {
        process: bool,
        /// SIGKILL was sent.
        killed: bool,
        /// SIGTERM was sent.
        stopping: bool,
        ended: bool,
        /// The event just before was a Spawn, the only time when it can fail.
        fresh: bool,
    }

    impl World {
        fn possible(&self, event: Event) -> bool {
            match event {
                Event::Tick | Event::Stop => true,
                Event::SpawnFailed => self.process && self.fresh,
                Event::Ready | Event::Alive | Event::Exited => self.process,
            }
        }

        fn apply(&mut self, event: Event, action: Option<Action>, told: &[(u64, Event)]) {
            self.fresh = false;
            if matches!(event, Event::Exited | Event::SpawnFailed) {
                (self.process, self.killed) = (false, false);
            }
            assert!(!self.ended || action.is_none(), "acts after its end: {told:?}");
            match action {
                Some(Action::Spawn) => {
                    assert!(!self.process, "two processes: {told:?}");
                    assert!(!self.stopping, "starts while stopping: {told:?}");
                    (self.process, self.fresh) = (true, true);
                }
                Some(Action::Kill) => {
                    assert!(self.process && !self.killed, "kills nothing or twice: {told:?}");
                    self.killed = true;
                }
                Some(Action::Terminate) => {
                    assert!(self.process && !self.stopping, "terminates nothing or twice: {told:?}");
                    self.stopping = true;
                }
                Some(Action::Reboot) => {
                    assert!(self.process && self.killed && !self.stopping, "gives up too early: {told:?}");
                    self.ended = true;
                }
                Some(Action::PowerOff) => {
                    assert!(told.iter().any(|(_, event)| *event == Event::Stop), "unasked: {told:?}");
                    self.ended = true;
                }
                None => {}
            }
        }
    }

    /// Every sequence of possible events up to a depth, at every mix of 0 s, 1 s and 4 s between them.
    fn explore(
        machine: &Supervisor,
        world: &World,
        now: u64,
        depth: usize,
        told: &mut Vec<(u64, Event)>,
        count: &mut u64,
    ) {
        *count += 1;
        if depth == 0 {
            return;
        }
        for pass in [0, 1, 4] {
            for event in EVENTS.into_iter().filter(|event| world.possible(*event)) {
                let (mut machine, mut world) = (machine.clone(), world.clone());
                let now = now + pass;
                told.push((now, event));
                let action = machine.step(s(now), event);
                world.apply(event, action, told);
                // Time moves nothing before the announced deadline, and nothing is overdue after it was used.
                if event == Event::Tick && action.is_none() {
                    assert!(machine.deadline().is_none_or(|deadline| deadline > s(now)), "overdue: {told:?}");
                }
                assert_eq!(machine.deadline().is_none(), world.ended, "waits for ever: {told:?}");
                assert_eq!(machine.phase() == Phase::Stopping, world.stopping || world.ended, "{told:?}");
                explore(&machine, &world, now, depth - 1, told, count);
                told.pop();
            }
        }
    }

    #[test]
    fn no_sequence_of_events_breaks_an_invariant() {
        let mut count = 0;
        explore(&Supervisor::new(POLICY), &World::default(), 0, 6, &mut Vec::new(), &mut count);
        assert!(count > 100_000, "only {count} states seen");
    }

    /// Runs a script and returns the actions with their times.
    fn run(script: &[(u64, Event)]) -> Vec<(u64, Action)> {
        let mut machine = Supervisor::new(POLICY);
        script.iter().filter_map(|(at, event)| Some((*at, machine.step(s(*at), *event)?))).collect()
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut machine = Supervisor::new(POLICY);
        let mut now = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..5 {
            assert_eq!(machine.step(now, Event::Tick), Some(Action::Spawn));
            machine.step(now, Event::Exited);
            let until = machine.deadline().unwrap();
            pauses.push((until - now).as_secs());
            assert_eq!(machine.step(until - Duration::from_nanos(1), Event::Tick), None);
            now = until;
        }
        assert_eq!(pauses, [1, 2, 4, 4, 4]);
        assert_eq!(machine.restarts(), 4);
    }

    #[test]
    fn a_healthy_time_starts_the_doubling_anew() {
        let mut machine = Supervisor::new(POLICY);
        machine.failures = 5;
        machine.step(s(0), Event::Tick);
        machine.step(s(1), Event::Ready);
        for second in 2..8 {
            machine.step(s(second), Event::Alive);
        }
        machine.step(s(8), Event::Exited);
        assert_eq!(machine.deadline(), Some(s(9)));
    }

    #[test]
    fn a_hung_replica_is_killed_and_its_hanging_does_not_count_as_health() {
        let script =
            [(0, Event::Tick), (1, Event::Ready), (3, Event::Alive), (5, Event::Tick), (6, Event::Tick)];
        assert_eq!(run(&script), [(0, Action::Spawn), (6, Action::Kill)]);
        let mut machine = Supervisor::new(POLICY);
        machine.failures = 1;
        for (at, event) in [(0, Event::Tick), (1, Event::Ready), (9, Event::Tick), (9, Event::Exited)] {
            machine.step(s(at), event);
        }
        assert_eq!(machine.deadline(), Some(s(11)), "the pause is that of the second failure");
    }

    #[test]
    fn a_replica_that_never_gets_ready_is_killed() {
        let script = [(0, Event::Tick), (3, Event::Alive), (4, Event::Tick)];
        assert_eq!(run(&script), [(0, Action::Spawn), (4, Action::Kill)]);
    }

    #[test]
    fn stopping_waits_for_the_replica_but_not_for_ever() {
        let start = [(0, Event::Tick), (1, Event::Ready), (2, Event::Stop)];
        let with = |more: &[(u64, Event)]| run(&[&start[..], more].concat());
        let expected = [(0, Action::Spawn), (2, Action::Terminate), (3, Action::PowerOff)];
        assert_eq!(with(&[(2, Event::Alive), (3, Event::Exited)]), expected);
        let expected = [(0, Action::Spawn), (2, Action::Terminate), (4, Action::PowerOff)];
        assert_eq!(with(&[(3, Event::Tick), (4, Event::Tick)]), expected);
    }

    #[test]
    fn a_process_that_survives_sigkill_costs_the_machine() {
        let script = [(0, Event::Tick), (4, Event::Tick), (5, Event::Tick), (6, Event::Tick)];
        assert_eq!(run(&script), [(0, Action::Spawn), (4, Action::Kill), (6, Action::Reboot)]);
    }
}
