//! The life of one guest as a state machine: no I/O and no clock, time is an argument.
//!
//! The agent feeds [`Event`]s into [`Machine::step`], performs the [`Effect`] it returns, and sends
//! [`Event::Timer`] when [`Machine::deadline`] has passed. There is at most one deadline and at most one
//! effect per step, so the whole behaviour can be read off one table and explored exhaustively.

use host_guest::Phase;
use std::collections::VecDeque;
use std::time::Duration;

/// Time since the agent started, from a clock that never goes back.
pub type Time = Duration;

/// How many reasons [`Machine::reasons`] keeps.
const REASONS: usize = 8;

/// When to lose patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// From QEMU's start to the first [`Phase::Ready`].
    pub boot: Duration,
    /// Without a health message while ready. The guest sends one every five seconds at least.
    pub health: Duration,
    /// Unhealthy before QEMU is killed.
    pub grace: Duration,
    /// From the request to power off to the kill.
    pub power_off: Duration,
    /// Between two kills of a QEMU that does not go away.
    pub kill: Duration,
    /// Wait before the first restart; doubles with every crash inside the window.
    pub backoff: Duration,
    /// Longest wait before a restart.
    pub backoff_max: Duration,
    /// So many crashes inside the window end the restarts.
    pub crashes: usize,
    /// Crashes older than this are forgotten.
    pub window: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            // Emulated on a busy machine the boot takes tens of seconds; this only has to catch a hang.
            boot: Duration::from_secs(300),
            health: Duration::from_secs(20),
            grace: Duration::from_secs(60),
            power_off: Duration::from_secs(20),
            kill: Duration::from_secs(5),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            crashes: 5,
            window: Duration::from_secs(600),
        }
    }
}

/// Where the guest stands, as the host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Hardware and release are being checked; nothing runs.
    Checking,
    /// QEMU is being started.
    Launching,
    /// QEMU runs; the guest has not been ready yet.
    Booting {
        /// Patience ends.
        until: Time,
    },
    /// The guest says that its replica answers.
    Ready {
        /// Latest time of the next health message.
        until: Time,
    },
    /// The recovery guest runs and says that it holds the key. There is no replica.
    Recovery {
        /// Latest time of the next health message.
        until: Time,
    },
    /// QEMU runs, but the guest is silent or says that its replica does not answer.
    Unhealthy {
        /// QEMU is killed then.
        until: Time,
    },
    /// QEMU has ended and will be started again.
    Backoff {
        /// Time of the start.
        until: Time,
    },
    /// QEMU is on its way out, as the operator asked.
    Stopping {
        /// QEMU is killed then.
        until: Time,
    },
    /// Nothing runs, as the operator asked.
    Stopped,
    /// Nothing runs, because it failed too often; [`Machine::reasons`] says how.
    Failed,
}

impl State {
    /// The name shown to operators and in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Checking => "checking",
            Self::Launching => "launching",
            Self::Booting { .. } => "booting",
            Self::Ready { .. } => "ready",
            Self::Recovery { .. } => "recovery",
            Self::Unhealthy { .. } => "unhealthy",
            Self::Backoff { .. } => "backoff",
            Self::Stopping { .. } => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// All names, for the metrics.
    pub const NAMES: [&'static str; 10] = [
        "checking",
        "launching",
        "booting",
        "ready",
        "recovery",
        "unhealthy",
        "backoff",
        "stopping",
        "stopped",
        "failed",
    ];

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Option<Time> {
        match *self {
            Self::Booting { until }
            | Self::Ready { until }
            | Self::Recovery { until }
            | Self::Unhealthy { until }
            | Self::Backoff { until }
            | Self::Stopping { until } => Some(until),
            Self::Checking | Self::Launching | Self::Stopped | Self::Failed => None,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Hardware and release passed.
    CheckPassed,
    /// Hardware or release were refused.
    CheckFailed(String),
    /// The QEMU process exists.
    Launched,
    /// The QEMU process could not be made.
    LaunchFailed(String),
    /// The QEMU process has ended and was reaped.
    Exited(String),
    /// A health message of the guest.
    Health(Phase),
    /// The guest's port was closed, or what came out of it was no message.
    PortClosed(String),
    /// Somebody wants the guest to start again, also one that was given up; why.
    RestartRequested(&'static str),
    /// The operator wants the node down.
    StopRequested,
    /// [`Machine::deadline`] may have passed.
    Timer,
}

/// What the agent has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Start QEMU; answer with [`Event::Launched`] or [`Event::LaunchFailed`].
    Launch,
    /// Ask the guest to power off.
    PowerOff,
    /// Kill QEMU, if there is one.
    Kill,
}

/// The state with what it remembers.
#[derive(Debug, Clone)]
pub struct Machine {
    policy: Policy,
    state: State,
    /// Times of the crashes inside the window, oldest first.
    crashes: Vec<Time>,
    launches: u64,
    reasons: VecDeque<(Time, String)>,
}

impl Machine {
    /// A machine in [`State::Checking`].
    pub fn new(policy: Policy) -> Self {
        Self { policy, state: State::Checking, crashes: Vec::new(), launches: 0, reasons: VecDeque::new() }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Option<Time> {
        self.state.deadline()
    }

    /// How often QEMU was started again.
    pub fn restarts(&self) -> u64 {
        self.launches.saturating_sub(1)
    }

    /// Why the guest was last unhealthy, restarted or given up, oldest first.
    pub fn reasons(&self) -> impl Iterator<Item = &(Time, String)> {
        self.reasons.iter()
    }

    /// Takes one event. Events that have no meaning in the present state change nothing.
    pub fn step(&mut self, event: Event, now: Time) -> Option<Effect> {
        use Event as E;
        use State as S;
        // A timer that was set for a state already left must not hit the present one.
        if event == E::Timer && self.deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        let policy = self.policy;
        let (next, effect) = match (self.state, event) {
            (S::Checking, E::CheckPassed) => (S::Launching, Some(Effect::Launch)),
            (S::Checking, E::CheckFailed(reason)) => {
                self.note(now, reason);
                (S::Failed, None)
            }

            (S::Launching, E::Launched) => (S::Booting { until: now + policy.boot }, None),
            (S::Launching, E::LaunchFailed(reason)) => (self.crashed(now, reason), None),

            (S::Booting { .. } | S::Ready { .. } | S::Unhealthy { .. }, E::Health(Phase::Ready)) => {
                (S::Ready { until: now + policy.health }, None)
            }
            (S::Booting { .. } | S::Recovery { .. } | S::Unhealthy { .. }, E::Health(Phase::Recovery)) => {
                (S::Recovery { until: now + policy.health }, None)
            }
            (S::Ready { .. } | S::Recovery { .. }, E::Health(phase)) => {
                (self.unhealthy(now, format!("the guest's replica does not answer (phase {phase:?})")), None)
            }
            (S::Ready { .. } | S::Recovery { .. }, E::Timer) => {
                let silence = policy.health.as_secs();
                (self.unhealthy(now, format!("no health message from the guest for {silence} s")), None)
            }
            (S::Booting { .. } | S::Ready { .. } | S::Recovery { .. }, E::PortClosed(reason)) => {
                (self.unhealthy(now, reason), None)
            }
            (S::Booting { .. }, E::Timer) => {
                self.note(
                    now,
                    format!("the guest was not ready {} s after its start", policy.boot.as_secs()),
                );
                (S::Unhealthy { until: now + policy.kill }, Some(Effect::Kill))
            }
            (S::Unhealthy { .. }, E::Timer) => {
                (S::Unhealthy { until: now + policy.kill }, Some(Effect::Kill))
            }
            (
                S::Launching | S::Booting { .. } | S::Ready { .. } | S::Recovery { .. } | S::Unhealthy { .. },
                E::Exited(reason),
            ) => (self.crashed(now, reason), None),

            (S::Backoff { .. }, E::Timer) => (S::Launching, Some(Effect::Launch)),

            // Crashes before an operator's order count no more.
            (S::Backoff { .. } | S::Failed, E::RestartRequested(_)) => {
                self.crashes.clear();
                (S::Launching, Some(Effect::Launch))
            }
            (
                S::Booting { .. } | S::Ready { .. } | S::Recovery { .. } | S::Unhealthy { .. },
                E::RestartRequested(why),
            ) => {
                self.crashes.clear();
                self.note(now, why.into());
                (S::Unhealthy { until: now + policy.power_off }, Some(Effect::PowerOff))
            }

            (S::Checking | S::Backoff { .. } | S::Failed, E::StopRequested) => (S::Stopped, None),
            // There is no guest to ask yet; its process is killed as soon as it exists.
            (S::Launching, E::StopRequested) => (S::Stopping { until: now + policy.power_off }, None),
            (
                S::Booting { .. } | S::Ready { .. } | S::Recovery { .. } | S::Unhealthy { .. },
                E::StopRequested,
            ) => (S::Stopping { until: now + policy.power_off }, Some(Effect::PowerOff)),
            // Whoever asks twice does not want to wait.
            (S::Stopping { .. }, E::StopRequested | E::Timer | E::Launched) => {
                (S::Stopping { until: now + policy.kill }, Some(Effect::Kill))
            }
            (S::Stopping { .. }, E::Exited(_) | E::LaunchFailed(_)) => (S::Stopped, None),

            (state, _) => (state, None),
        };
        if effect == Some(Effect::Launch) {
            self.launches += 1;
        }
        self.state = next;
        effect
    }

    fn unhealthy(&mut self, now: Time, reason: String) -> State {
        self.note(now, reason);
        State::Unhealthy { until: now + self.policy.grace }
    }

    fn crashed(&mut self, now: Time, reason: String) -> State {
        let Policy { backoff, backoff_max, crashes, window, .. } = self.policy;
        self.note(now, reason);
        self.crashes.push(now);
        self.crashes.retain(|at| now.saturating_sub(*at) < window);
        let count = self.crashes.len();
        if count >= crashes {
            let minutes = window.as_secs_f64() / 60.0;
            self.note(now, format!("{count} crashes within {minutes:.0} minutes: not started again"));
            return State::Failed;
        }
        let doublings = u32::try_from(count.saturating_sub(1)).unwrap_or(u32::MAX).min(31);
        State::Backoff { until: now + backoff.saturating_mul(1 << doublings).min(backoff_max) }
    }

    fn note(&mut self, now: Time, reason: String) {
        if self.reasons.len() == REASONS {
            self.reasons.pop_front();
        }
        self.reasons.push_back((now, reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Small numbers, so that the whole space is explored.
    const POLICY: Policy = Policy {
        boot: s(3),
        health: s(2),
        grace: s(2),
        power_off: s(2),
        kill: s(1),
        backoff: s(1),
        backoff_max: s(2),
        crashes: 3,
        window: s(7),
    };

    /// The one QEMU there may be, as the world has it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum Qemu {
        None,
        Asked,
        Running,
        Killed,
    }

    /// Machine and world together.
    #[derive(Debug, Clone)]
    struct World {
        machine: Machine,
        qemu: Qemu,
        stop_asked: bool,
        now: Time,
    }

    impl World {
        fn new() -> Self {
            Self { machine: Machine::new(POLICY), qemu: Qemu::None, stop_asked: false, now: Time::ZERO }
        }

        /// What distinguishes two worlds for the future: everything, with times relative to now.
        fn key(&self) -> impl std::hash::Hash + Eq + use<> {
            let deadline = self.machine.deadline().map(|at| at.saturating_sub(self.now));
            let crashes: Vec<_> = self.machine.crashes.iter().map(|at| (self.now - *at).min(s(7))).collect();
            (self.machine.state().name(), deadline, crashes, self.qemu, self.stop_asked)
        }

        fn feed(&mut self, event: Event) {
            match event {
                Event::Launched => self.qemu = Qemu::Running,
                Event::LaunchFailed(_) | Event::Exited(_) => self.qemu = Qemu::None,
                Event::StopRequested => self.stop_asked = true,
                _ => {}
            }
            let effect = self.machine.step(event, self.now);
            match effect {
                Some(Effect::Launch) => {
                    assert_eq!(self.qemu, Qemu::None, "a second QEMU was asked for");
                    assert!(!self.stop_asked, "launched after a stop was asked for");
                    self.qemu = Qemu::Asked;
                }
                Some(Effect::Kill) if self.qemu == Qemu::Running => self.qemu = Qemu::Killed,
                Some(Effect::PowerOff) => assert_ne!(self.qemu, Qemu::None, "nobody to power off"),
                _ => {}
            }
            self.check();
        }

        fn check(&self) {
            let none = self.qemu == Qemu::None;
            match self.machine.state() {
                State::Checking | State::Backoff { .. } | State::Stopped | State::Failed => {
                    assert!(none, "{self:?}: a QEMU was forgotten");
                }
                State::Launching => assert_eq!(self.qemu, Qemu::Asked, "{self:?}"),
                State::Booting { .. }
                | State::Ready { .. }
                | State::Recovery { .. }
                | State::Unhealthy { .. } => {
                    assert!(matches!(self.qemu, Qemu::Running | Qemu::Killed), "{self:?}");
                    assert!(self.machine.deadline().is_some(), "{self:?}: waits for ever");
                }
                State::Stopping { .. } => assert!(!none, "{self:?}: stopping nothing"),
            }
            assert!(!self.stop_asked || self.is_stop(), "{self:?}: forgot the stop");
        }

        fn is_stop(&self) -> bool {
            matches!(self.machine.state(), State::Stopping { .. } | State::Stopped)
        }

        /// Every event that this world can produce, and stray ones that it should never.
        fn events(&self) -> Vec<Event> {
            let text = || "because".to_owned();
            let mut events = vec![
                Event::Timer,
                Event::StopRequested,
                Event::RestartRequested("because"),
                Event::PortClosed(text()),
            ];
            use Phase::{Backoff, Booting, Ready, Recovery, Starting, Stopping};
            events.extend([Booting, Starting, Ready, Recovery, Backoff, Stopping].map(Event::Health));
            if self.machine.state() == State::Checking {
                events.extend([Event::CheckPassed, Event::CheckFailed(text())]);
            }
            match self.qemu {
                Qemu::Asked => events.extend([Event::Launched, Event::LaunchFailed(text())]),
                Qemu::Running | Qemu::Killed => events.push(Event::Exited(text())),
                Qemu::None => {}
            }
            events
        }

        /// One step of a world that does what it is asked to, as late as it may.
        fn fair(&mut self, guest_boots: bool) {
            match self.qemu {
                Qemu::Asked => self.feed(Event::Launched),
                Qemu::Killed => self.feed(Event::Exited("killed".into())),
                Qemu::Running if !guest_boots && !self.is_stop() => self.feed(Event::Exited("crash".into())),
                Qemu::Running if guest_boots && !self.is_stop() => self.feed(Event::Health(Phase::Ready)),
                _ if self.machine.state() == State::Checking => self.feed(Event::CheckPassed),
                _ => {
                    self.now = self.machine.deadline().unwrap_or(self.now).max(self.now);
                    self.feed(Event::Timer);
                }
            }
        }
    }

    /// Every world that can be reached, by any order of events and any passing of time.
    fn reachable() -> Vec<World> {
        let mut seen = HashSet::new();
        let mut todo = vec![World::new()];
        let mut worlds = Vec::new();
        while let Some(world) = todo.pop() {
            if !seen.insert(world.key()) {
                continue;
            }
            for event in world.events() {
                let mut next = world.clone();
                next.feed(event);
                todo.push(next);
            }
            let mut later = world.clone();
            later.now += s(1);
            todo.push(later);
            worlds.push(world);
        }
        worlds
    }

    #[test]
    fn every_state_is_reached_and_never_with_two_qemus() {
        let worlds = reachable();
        let names: HashSet<_> = worlds.iter().map(|world| world.machine.state().name()).collect();
        assert_eq!(names, HashSet::from(State::NAMES));
        // The exploration is worth its name only if it is large.
        assert!(worlds.len() > 500, "{} worlds", worlds.len());
    }

    #[test]
    fn stop_leads_to_stopped_from_everywhere() {
        for world in reachable() {
            for polite in [true, false] {
                let mut world = world.clone();
                world.feed(Event::StopRequested);
                if polite && world.qemu == Qemu::Running {
                    world.feed(Event::Exited("powered off".into()));
                }
                for _ in 0..6 {
                    world.fair(true);
                }
                assert_eq!(world.machine.state(), State::Stopped, "{world:?}");
                assert_eq!(world.qemu, Qemu::None);
            }
        }
    }

    #[test]
    fn a_guest_that_boots_becomes_ready_from_everywhere_but_the_ends() {
        for mut world in reachable() {
            let end = world.is_stop() || world.machine.state() == State::Failed;
            for _ in 0..12 {
                world.fair(true);
                if matches!(world.machine.state(), State::Ready { .. }) {
                    break;
                }
            }
            let failed = world.machine.state() == State::Failed;
            let ready = matches!(world.machine.state(), State::Ready { .. });
            // A QEMU that was already killed may have been the last crash that was allowed.
            assert!(end || ready || failed, "{world:?}");
        }
    }

    #[test]
    fn a_guest_that_always_crashes_is_given_up_with_its_reason() {
        for mut world in reachable() {
            if world.is_stop() {
                continue;
            }
            for _ in 0..40 {
                world.fair(false);
            }
            assert_eq!(world.machine.state(), State::Failed, "{world:?}");
            assert!(world.machine.reasons().next().is_some());
        }
    }

    #[test]
    fn a_silent_guest_is_killed_and_started_again_with_growing_waits() {
        let mut machine = Machine::new(Policy::default());
        assert_eq!(machine.step(Event::CheckPassed, s(0)), Some(Effect::Launch));
        machine.step(Event::Launched, s(0));
        machine.step(Event::Health(Phase::Ready), s(10));
        assert_eq!(machine.step(Event::Timer, s(29)), None, "a timer before its time does nothing");
        assert_eq!(machine.step(Event::Timer, s(30)), None);
        assert_eq!(machine.state(), State::Unhealthy { until: s(90) });
        assert_eq!(machine.step(Event::Timer, s(90)), Some(Effect::Kill));
        machine.step(Event::Exited("killed".into()), s(91));
        assert_eq!(machine.state(), State::Backoff { until: s(92) });
        assert_eq!(machine.step(Event::Timer, s(92)), Some(Effect::Launch));
        machine.step(Event::LaunchFailed("no memory".into()), s(92));
        assert_eq!(machine.state(), State::Backoff { until: s(94) });
        assert_eq!(machine.restarts(), 1);
        let reasons: Vec<_> = machine.reasons().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(reasons, ["no health message from the guest for 20 s", "killed", "no memory"]);
    }

    #[test]
    fn the_recovery_guest_is_watched_as_any_other_and_is_never_ready() {
        let mut machine = Machine::new(Policy::default());
        machine.step(Event::CheckPassed, s(0));
        machine.step(Event::Launched, s(0));
        machine.step(Event::Health(Phase::Opening), s(5));
        machine.step(Event::Health(Phase::Recovery), s(10));
        assert_eq!(machine.state(), State::Recovery { until: s(30) });
        machine.step(Event::Health(Phase::Recovery), s(15));
        assert_eq!(machine.step(Event::Timer, s(35)), None);
        assert_eq!(machine.state(), State::Unhealthy { until: s(95) }, "it fell silent");
        machine.step(Event::Health(Phase::Recovery), s(40));
        machine.step(Event::Health(Phase::Ready), s(41));
        assert_eq!(machine.state().name(), "unhealthy", "it is no replica");
        assert_eq!(machine.step(Event::StopRequested, s(42)), Some(Effect::PowerOff));
    }

    #[test]
    fn an_operator_restarts_a_guest_that_runs_and_one_that_was_given_up() {
        let mut machine = Machine::new(Policy::default());
        machine.step(Event::CheckPassed, s(0));
        machine.step(Event::Launched, s(0));
        machine.step(Event::Health(Phase::Ready), s(10));
        assert_eq!(machine.step(Event::RestartRequested("because"), s(11)), Some(Effect::PowerOff));
        assert_eq!(machine.state(), State::Unhealthy { until: s(31) });
        machine.step(Event::Exited("powered off".into()), s(12));
        assert_eq!(machine.step(Event::Timer, s(13)), Some(Effect::Launch));
        for second in 0..4 {
            machine.step(Event::LaunchFailed("no".into()), s(20 + second * 100));
            machine.step(Event::Timer, s(119 + second * 100));
        }
        assert_eq!(machine.state(), State::Failed);
        assert_eq!(machine.step(Event::RestartRequested("because"), s(600)), Some(Effect::Launch));
        machine.step(Event::LaunchFailed("no".into()), s(600));
        assert_eq!(machine.state(), State::Backoff { until: s(601) }, "counted anew");
    }

    #[test]
    fn crashes_are_forgotten_after_the_window() {
        let mut machine = Machine::new(Policy::default());
        machine.step(Event::CheckPassed, s(0));
        for round in 0..20 {
            let start = s(round * 700);
            machine.step(Event::Launched, start);
            machine.step(Event::Exited("crash".into()), start);
            assert_eq!(machine.state(), State::Backoff { until: start + s(1) });
            assert_eq!(machine.step(Event::Timer, start + s(1)), Some(Effect::Launch));
        }
    }
}
