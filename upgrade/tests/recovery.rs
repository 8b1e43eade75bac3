//! Every reachable state of a guest together with its recovery release, and what must hold in each. The product of host and
//! guest is in `explore.rs`, which leaves recovery releases out; here the host is, which has none.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use std::collections::{BTreeSet, HashMap, VecDeque};
use upgrade::machine::{Boot, Content, Event, Part, Phase, Slot, TRANSITIONS};

/// The releases of this world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Release {
    /// Installed; epoch 1.
    Old,
    /// Blessed as a node until it is revoked; epoch 2.
    New,
    /// Blessed for recovery until the blessing names it no more; epoch 2.
    Rescue,
    /// Never blessed.
    Evil,
}

const ALL: [Release; 4] = [Release::Old, Release::New, Release::Rescue, Release::Evil];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct World {
    part: Part<Release>,
    /// What runs; nothing while the agent decides, or when there is nothing.
    runs: Option<Boot>,
    /// Highest epoch that the node has seen.
    floor: u8,
    revoked: bool,
    recovery_revoked: bool,
    /// A slot rotted, or the record was lost: from then on a slot may be of no use.
    broken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happening {
    Event(Event, Option<Release>),
    /// What runs in the committed slot ends again and again, or is never well.
    GivesUp,
    RaiseFloor,
    Revoke,
    RevokeRecovery,
    Rot(Slot),
    LoseRecord,
}

impl Happening {
    /// What no plan counts on: faults, and what somebody decides.
    fn is_from_outside(self) -> bool {
        match self {
            Happening::Event(event, _) => {
                matches!(event, Event::Crash | Event::FetchDone | Event::Acknowledge | Event::Rescued)
            }
            Happening::RaiseFloor => false,
            _ => true,
        }
    }
}

impl World {
    fn may_run(&self, release: Release) -> bool {
        match release {
            Release::Old => self.floor <= 1,
            Release::New => !self.revoked,
            Release::Rescue | Release::Evil => false,
        }
    }

    fn may_rescue(&self, release: Release) -> bool {
        release == Release::Rescue && !self.recovery_revoked
    }

    fn boot(&self) -> Boot {
        self.part.boot(|_, release| self.may_run(release))
    }

    fn recovery(&self) -> Option<Boot> {
        self.part.recovery.filter(|release| self.may_rescue(*release)).map(|_| Boot::Recovery)
    }

    fn holds(&self, slot: Slot) -> bool {
        matches!(*self.part.content(slot), Content::Release(release) if self.may_run(release))
    }

    /// Whether the rest of the node would report such an event now: this is what the driver does.
    fn is_true(&self, event: Event, release: Option<Release>) -> bool {
        let part = &self.part;
        let other = self.holds(part.active.other());
        let incoming = part.incoming.is_some_and(|release| self.may_run(release));
        let runs_slot = matches!(self.runs, Some(Boot::Slot(_)));
        match event {
            Event::Crash => true,
            // A release that was tried runs on until there is something to go back to.
            Event::NothingBoots => {
                let leaves = part.phase == Phase::Reverting && self.recovery().is_some();
                self.boot() == Boot::Recovery && (!runs_slot || leaves)
            }
            Event::Rescued => {
                self.runs == Some(Boot::Recovery) && release.is_some_and(|release| self.may_run(release))
            }
            // While the recovery release runs, all that an order can do is to rescue.
            _ if !runs_slot => false,
            Event::FetchDone => release.is_some(),
            Event::VerifyOk | Event::StageDone => incoming,
            Event::VerifyRefused => !incoming,
            Event::RecoveryGiven => release.is_some_and(|release| self.may_rescue(release)),
            Event::RecoveryDropped => self.recovery_revoked,
            Event::KeyGiven => other && (self.recovery_revoked || part.recovery.is_some()),
            Event::Try | Event::HealthOk | Event::Commit => other,
            Event::Withdrawn if part.phase == Phase::Verified => !incoming,
            Event::Withdrawn => !other,
            Event::Reverted => self.holds(part.active),
            _ => true,
        }
    }

    fn after(&self, happening: Happening, seen: &mut BTreeSet<usize>) -> Option<World> {
        let mut next = *self;
        match happening {
            Happening::Event(event, release) => {
                if !self.is_true(event, release) {
                    return None;
                }
                next.part = self.part.step(event, release).ok()?;
                seen.insert(self.part.transition(event).unwrap().0);
                next.start(event);
            }
            Happening::GivesUp => {
                if !self.part.phase.is_settled() || self.runs != Some(Boot::Slot(self.part.active)) {
                    return None;
                }
                // Without a recovery release it is tried on.
                self.recovery()?;
                next.part = self.part.step(Event::NothingBoots, None).unwrap();
                next.start(Event::NothingBoots);
            }
            Happening::RaiseFloor => {
                let Content::Release(release) = *self.part.content(self.part.active) else { return None };
                if self.runs != Some(Boot::Slot(self.part.active)) {
                    return None;
                }
                next.floor = self.floor.max(if release == Release::Old { 1 } else { 2 });
            }
            Happening::Revoke => next.revoked = true,
            Happening::RevokeRecovery => next.recovery_revoked = true,
            Happening::Rot(slot) => {
                next.broken = true;
                next.part.content[slot as usize] = Content::Partial;
            }
            Happening::LoseRecord => {
                next.broken = true;
                next.part = Part::lost(self.part.recovery);
                next.runs = None;
            }
        }
        // What has a key for recovery keeps it until the blessing names it no more.
        let dropped = self.part.recovery.is_some() && next.part.recovery.is_none();
        assert!(!dropped || self.recovery_revoked, "{happening:?} in {self:?}");
        (next != *self).then_some(next)
    }

    /// What runs after an event, and that it may.
    fn start(&mut self, event: Event) {
        let (active, other) = (self.part.active, self.part.active.other());
        self.runs = match event {
            Event::Crash => match self.boot() {
                Boot::Recovery => None,
                slot => Some(slot),
            },
            Event::NothingBoots => self.recovery(),
            Event::Try => Some(Boot::Slot(other)),
            Event::Reverted | Event::Rescued => Some(Boot::Slot(active)),
            _ => return,
        };
        let Some(Boot::Slot(slot)) = self.runs else { return };
        assert!(self.holds(slot) && self.part.has_key(slot), "{event:?} starts slot {slot:?}: {self:?}");
    }

    /// What holds in every state. Why not, otherwise.
    fn check(&self) -> Result<(), String> {
        let part = &self.part;
        let refuse = |why: &str| Err(why.to_owned());
        match part.recovery {
            None | Some(Release::Rescue) => {}
            Some(_) => return refuse("what is not blessed for recovery has its key"),
        }
        let other = part.active.other();
        if part.phase.is_settled() && part.has_key(other) {
            return refuse("two slots have keys though nothing is under way");
        }
        if part.has_key(other) && !self.recovery_revoked && part.recovery.is_none() {
            return refuse("a release has a key before the recovery release has it");
        }
        if self.runs == Some(Boot::Recovery) && part.phase != Phase::Failed {
            return refuse("recovery in the middle of an upgrade");
        }
        for slot in [Slot::A, Slot::B] {
            let unblessed = [Content::Release(Release::Evil), Content::Release(Release::Rescue)];
            if part.has_key(slot) && unblessed.contains(part.content(slot)) {
                return refuse("a slot with a key holds what may never be a node");
            }
        }
        if self.boot() == Boot::Recovery && self.recovery().is_none() && !self.broken && !self.revoked {
            return refuse("nothing starts");
        }
        Ok(())
    }
}

fn happenings() -> Vec<Happening> {
    let mut all = vec![
        Happening::GivesUp,
        Happening::RaiseFloor,
        Happening::Revoke,
        Happening::RevokeRecovery,
        Happening::Rot(Slot::A),
        Happening::Rot(Slot::B),
        Happening::LoseRecord,
    ];
    for event in Event::ALL {
        match event {
            Event::FetchDone | Event::RecoveryGiven | Event::Rescued => {
                all.extend(ALL.map(|release| Happening::Event(event, Some(release))));
            }
            _ => all.push(Happening::Event(event, None)),
        }
    }
    all
}

#[test]
fn every_state_of_a_guest_with_its_recovery_release() {
    let start = World {
        part: Part::installed(Release::Old),
        runs: Some(Boot::Slot(Slot::A)),
        floor: 1,
        revoked: false,
        recovery_revoked: false,
        broken: false,
    };
    let happenings = happenings();
    let mut transitions = BTreeSet::new();
    let mut before: HashMap<World, Option<(World, Happening)>> = HashMap::from([(start, None)]);
    let mut own: HashMap<World, Vec<World>> = HashMap::new();
    let mut queue = VecDeque::from([start]);
    let (mut rescued, mut in_recovery) = (0, 0);
    while let Some(world) = queue.pop_front() {
        if let Err(why) = world.check() {
            let mut path = vec![format!("{world:?}")];
            let mut at = world;
            while let Some((from, happening)) = before[&at] {
                path.push(format!("{happening:?}"));
                at = from;
            }
            path.reverse();
            panic!("{why}, after:\n{}", path.join("\n"));
        }
        let mut by_itself = Vec::new();
        for &happening in &happenings {
            let Some(next) = world.after(happening, &mut transitions) else { continue };
            if !happening.is_from_outside() {
                by_itself.push(next);
            }
            before.entry(next).or_insert_with(|| {
                queue.push_back(next);
                Some((world, happening))
            });
        }
        if world.runs == Some(Boot::Recovery) {
            in_recovery += 1;
            // Whoever has something blessed gets the node back, with one order.
            for release in ALL.into_iter().filter(|release| world.may_run(*release)) {
                let back = world.after(Happening::Event(Event::Rescued, Some(release)), &mut transitions);
                let back = back.unwrap();
                assert_eq!(back.part.phase, Phase::Idle);
                assert_eq!(back.boot(), Boot::Slot(back.part.active), "{back:?}");
                assert_eq!(back.part.recovery, world.part.recovery, "the recovery release lost its key");
                rescued += 1;
            }
            // What is not blessed is brought by nobody.
            for release in ALL.into_iter().filter(|release| !world.may_run(*release)) {
                let event = Happening::Event(Event::Rescued, Some(release));
                assert_eq!(world.after(event, &mut transitions), None);
            }
        }
        let nothing = world.boot() == Boot::Recovery && world.recovery().is_none();
        let waits = world.part.phase.is_settled() || world.runs.is_none() && nothing;
        let waits = waits || world.part.phase == Phase::Reverting && nothing;
        assert!(waits || !by_itself.is_empty(), "stuck: {world:?}");
        own.insert(world, by_itself);
    }
    // Without new faults no run goes on for ever.
    let mut incoming: HashMap<World, usize> = HashMap::new();
    for next in own.values().flatten() {
        *incoming.entry(*next).or_default() += 1;
    }
    let mut free: Vec<World> = own.keys().filter(|world| !incoming.contains_key(world)).copied().collect();
    let mut ordered = 0;
    while let Some(world) = free.pop() {
        ordered += 1;
        for next in &own[&world] {
            let count = incoming.get_mut(next).unwrap();
            *count -= 1;
            if *count == 0 {
                free.push(*next);
            }
        }
    }
    assert_eq!(ordered, own.len(), "a circle of steps that the node makes by itself");
    println!(
        "{} states, {in_recovery} in recovery, {rescued} rescues, {} of {} transitions",
        own.len(),
        transitions.len(),
        TRANSITIONS.len()
    );
    let all: BTreeSet<usize> = (0..TRANSITIONS.len()).collect();
    let missing: Vec<_> = all.difference(&transitions).map(|index| TRANSITIONS[*index]).collect();
    assert!(missing.is_empty(), "never taken: {missing:?}");
    assert!(rescued > 100 && in_recovery > 50);
}

/// Both slots rot; the recovery release gives its key to a release that is brought.
#[test]
fn a_rescue() {
    use Event::{
        Commit, FetchDone, HealthOk, KeyGiven, NothingBoots, OldKeyErased, RecoveryGiven, Rescued, StageDone,
        Try, VerifyOk,
    };
    let events =
        [FetchDone, VerifyOk, StageDone, RecoveryGiven, KeyGiven, Try, HealthOk, Commit, OldKeyErased];
    let mut part = events.iter().fold(Part::installed("old"), |part, event| {
        let release = if *event == RecoveryGiven { "rescue" } else { "new" };
        part.step(*event, Some(release)).unwrap()
    });
    assert_eq!((part.active, part.recovery), (Slot::B, Some("rescue")));
    part.content = [Content::Partial; 2];
    assert_eq!(part.boot(|_, _| true), Boot::Recovery);
    let part = part.step(NothingBoots, None).unwrap();
    assert_eq!(part.phase, Phase::Failed);
    assert!(part.step(Rescued, None).is_err(), "with nothing");
    let part = part.step(Rescued, Some("newest")).unwrap();
    assert_eq!((part.phase, part.active, part.keys), (Phase::Idle, Slot::B, [false, true]));
    assert_eq!(part.boot(|_, release| release == "newest"), Boot::Slot(Slot::B));
    assert_eq!(part.recovery, Some("rescue"));
    assert!(part.step(Rescued, Some("again")).is_err(), "nobody is rescued who is well");
    let lost = Part::lost(Some("rescue"));
    assert_eq!(lost.boot(|_, _| true), Boot::Recovery);
    let found = lost.step(Rescued, Some("newest")).unwrap();
    assert_eq!(found.boot(|_, _| true), Boot::Slot(Slot::A));
}
