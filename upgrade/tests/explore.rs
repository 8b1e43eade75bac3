//! Every reachable state of host, guest, releases and faults together, and what must hold in each. Recovery releases are left
//! out: `recovery.rs` has them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers fail the test")]

use std::collections::{BTreeSet, HashMap, VecDeque};
use upgrade::{
    machine::{Boot, Content, Effect, Event, Part, Phase, Slot, TRANSITIONS},
    node::{Node, Which},
};

/// The releases of this world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Release {
    /// Installed; epoch 1.
    Old,
    /// Blessed until it is revoked; epoch 2.
    New,
    /// Never blessed.
    Evil,
}

impl Release {
    fn epoch(self) -> u8 {
        if self == Release::Old { 1 } else { 2 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct World {
    node: Node<Release>,
    /// Highest epoch that the node has seen.
    floor: u8,
    revoked: bool,
    /// A slot rotted on the disk, at most once in a run.
    rotted: bool,
}

/// What happens in the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happening {
    Part(Which, Event, Option<Release>),
    PowerCut,
    /// The node remembers the epoch of what it committed to: a write of its own.
    RaiseFloor,
    Revoke,
    Rot(Which, Slot),
}

impl Happening {
    /// What no plan counts on: faults, and what somebody decides.
    fn is_from_outside(self) -> bool {
        match self {
            Happening::Part(_, event, _) => {
                matches!(event, Event::Crash | Event::FetchDone | Event::Acknowledge | Event::Rescued)
            }
            Happening::PowerCut | Happening::Revoke | Happening::Rot(..) => true,
            Happening::RaiseFloor => false,
        }
    }
}

#[derive(Default)]
struct Seen {
    transitions: BTreeSet<usize>,
    boots: u64,
    recoveries: u64,
}

impl World {
    /// Stands for hashes, signatures, blessing and epoch.
    fn may_run(&self, release: Release) -> bool {
        release != Release::Evil
            && !(release == Release::New && self.revoked)
            && release.epoch() >= self.floor
    }

    fn part_mut(&mut self, which: Which) -> &mut Part<Release> {
        match which {
            Which::Host => &mut self.node.host,
            Which::Guest => &mut self.node.guest,
        }
    }

    /// Whether the rest of the node would report such an event now.
    fn is_true(&self, which: Which, event: Event, release: Option<Release>) -> bool {
        let part = self.node.part(which);
        let held = |content: &Content<Release>| match content {
            Content::Release(release) => self.may_run(*release),
            Content::Partial => false,
        };
        let incoming = part.incoming.is_some_and(|release| self.may_run(release));
        let other = held(part.content(part.active.other()));
        match event {
            Event::VerifyOk | Event::StageDone => incoming,
            Event::VerifyRefused => !incoming,
            Event::KeyGiven | Event::Try | Event::HealthOk | Event::Commit => other,
            Event::Withdrawn if part.phase == Phase::Verified => !incoming,
            Event::Withdrawn => !other,
            Event::FetchDone => release.is_some(),
            Event::Rescued => {
                part.boot(|_, release| self.may_run(release)) == Boot::Recovery
                    && release.is_some_and(|release| self.may_run(release))
            }
            Event::NothingBoots => part.boot(|_, release| self.may_run(release)) == Boot::Recovery,
            Event::RecoveryGiven | Event::RecoveryDropped => false,
            // Comes with a power cut or alone to the guest; the host's crash is a power cut.
            Event::Crash => which == Which::Guest,
            _ => true,
        }
    }

    fn after(&self, happening: Happening, seen: &mut Seen) -> Option<World> {
        let mut next = *self;
        match happening {
            Happening::Part(which, event, release) => {
                if !self.is_true(which, event, release) {
                    return None;
                }
                next.node = self.node.step(which, event, release).ok()?;
                seen.transitions.insert(self.node.part(which).transition(event).unwrap().0);
                if event == Event::Try && which == Which::Host {
                    // Trying a host restarts the machine.
                    seen.transitions.insert(self.node.guest.transition(Event::Crash).unwrap().0);
                    next.node = next.node.step(Which::Guest, Event::Crash, None).unwrap();
                    next.check_boot(Which::Guest, seen);
                }
                if matches!(event, Event::Try | Event::Crash | Event::BootFailed) {
                    next.check_boot(which, seen);
                }
            }
            Happening::PowerCut => {
                for which in Which::ALL {
                    seen.transitions.insert(self.node.part(which).transition(Event::Crash).unwrap().0);
                }
                next.node = self.node.power_cut().unwrap();
                for which in Which::ALL {
                    next.check_boot(which, seen);
                }
            }
            Happening::RaiseFloor => {
                let epoch = |part: &Part<Release>| match part.content(part.active) {
                    Content::Release(release) => release.epoch(),
                    Content::Partial => 0,
                };
                // The release names both parts: it is committed when both run it.
                next.floor = self.floor.max(epoch(&self.node.host).min(epoch(&self.node.guest)));
            }
            Happening::Revoke => next.revoked = true,
            Happening::Rot(which, slot) => {
                if self.rotted {
                    return None;
                }
                next.rotted = true;
                next.part_mut(which).content[slot as usize] = Content::Partial;
            }
        }
        (next != *self).then_some(next)
    }

    /// Never unblessed booted, never below the epoch.
    fn check_boot(&self, which: Which, seen: &mut Seen) {
        let part = self.node.part(which);
        match part.boot(|_, release| self.may_run(release)) {
            Boot::Slot(slot) => {
                seen.boots += 1;
                let Content::Release(release) = *part.content(slot) else { panic!("an empty slot boots") };
                assert!(release != Release::Evil && release.epoch() >= self.floor);
                assert!(!(self.revoked && release == Release::New), "revoked");
                assert!(part.has_key(slot), "without its key");
            }
            Boot::Recovery => seen.recoveries += 1,
        }
    }

    /// What holds in every state. Why not, otherwise.
    fn check(&self) -> Result<(), String> {
        for which in Which::ALL {
            let part = self.node.part(which);
            let other = part.active.other();
            if part.phase.is_settled() && part.has_key(other) {
                return Err(format!("{which:?}: two releases have keys though nothing is under way"));
            }
            for slot in [Slot::A, Slot::B] {
                if part.has_key(slot) && *part.content(slot) == Content::Release(Release::Evil) {
                    return Err(format!("{which:?}: an unblessed release has a key"));
                }
                if part.has_key(slot) && *part.content(slot) == Content::Partial && !self.rotted {
                    return Err(format!("{which:?}: a key for a slot that is being written"));
                }
            }
            // A node that was let alone by disk and release owners starts from a slot, whenever the power goes.
            let boots = part.boot(|_, release| self.may_run(release)) != Boot::Recovery;
            if !boots && !self.rotted && !self.revoked {
                return Err(format!("{which:?}: nothing starts"));
            }
            if !part.has_key(part.active) {
                return Err(format!("{which:?}: the committed release has no key"));
            }
        }
        let tried = |part: &Part<Release>| matches!(part.phase, Phase::Trying | Phase::Healthy);
        if tried(&self.node.host) && tried(&self.node.guest) {
            return Err("host and guest are tried at once".to_owned());
        }
        Ok(())
    }
}

fn happenings() -> Vec<Happening> {
    let mut all = vec![Happening::PowerCut, Happening::RaiseFloor, Happening::Revoke];
    for which in Which::ALL {
        all.extend([Slot::A, Slot::B].map(|slot| Happening::Rot(which, slot)));
        for event in Event::ALL {
            match event {
                Event::FetchDone => {
                    let offered = [Release::Old, Release::New, Release::Evil];
                    all.extend(offered.map(|release| Happening::Part(which, event, Some(release))));
                }
                Event::Rescued => {
                    let offered = [Release::Old, Release::New];
                    all.extend(offered.map(|release| Happening::Part(which, event, Some(release))));
                }
                _ => all.push(Happening::Part(which, event, None)),
            }
        }
    }
    all
}

#[test]
fn every_state_of_the_product() {
    let part = Part::installed(Release::Old);
    let start = World { node: Node { host: part, guest: part }, floor: 1, revoked: false, rotted: false };
    let happenings = happenings();
    let mut seen = Seen::default();
    let mut before: HashMap<World, Option<(World, Happening)>> = HashMap::from([(start, None)]);
    let mut queue = VecDeque::from([start]);
    // Steps that the node makes by itself, for progress.
    let mut own: HashMap<World, Vec<World>> = HashMap::new();
    let mut edges = 0_u64;
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
            let Some(next) = world.after(happening, &mut seen) else { continue };
            edges += 1;
            if !happening.is_from_outside() {
                by_itself.push(next);
            }
            before.entry(next).or_insert_with(|| {
                queue.push_back(next);
                Some((world, happening))
            });
        }
        let settled = Which::ALL.iter().all(|which| world.node.part(*which).phase.is_settled());
        assert!(settled || !by_itself.is_empty(), "stuck: {world:?}");
        own.insert(world, by_itself);
    }
    // Progress: without new faults no run goes on for ever, so each ends where nothing is left to do, which is settled.
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
    let recovery = [Effect::GiveRecovery, Effect::DropRecovery];
    let all: BTreeSet<usize> =
        (0..TRANSITIONS.len()).filter(|index| !recovery.contains(&TRANSITIONS[*index].effect)).collect();
    let missing: Vec<_> = all.difference(&seen.transitions).map(|index| TRANSITIONS[*index]).collect();
    println!(
        "{} states, {edges} steps, {} boots, {} into recovery; {} of {} transitions",
        own.len(),
        seen.boots,
        seen.recoveries,
        seen.transitions.len(),
        all.len()
    );
    assert!(missing.is_empty(), "never taken: {missing:?}");
    assert!(seen.recoveries > 0);
}

/// Upgrades do go through, and a bad one leaves what was there.
#[test]
fn a_good_and_a_bad_upgrade() {
    let run = |events: &[Event]| {
        events.iter().fold(Part::installed(Release::Old), |part, event| {
            part.step(*event, Some(Release::New)).unwrap_or_else(|error| panic!("{error}"))
        })
    };
    use Event::{
        BootFailed, Commit, FetchDone, HealthOk, KeyGiven, OldKeyErased, Reverted, StageBegun, StageDone,
        Try, VerifyOk,
    };
    let staged = [FetchDone, VerifyOk, StageDone, KeyGiven];
    let done = run(&[&staged[..], &[Try, HealthOk, Commit, OldKeyErased]].concat());
    assert_eq!((done.phase, done.active, done.keys), (Phase::Idle, Slot::B, [false, true]));
    assert_eq!(done.content[1], Content::Release(Release::New));
    let bad = run(&[&staged[..], &[Try, BootFailed, BootFailed, BootFailed, Reverted]].concat());
    assert_eq!((bad.phase, bad.active, bad.keys), (Phase::Failed, Slot::A, [true, false]));
    assert_eq!(bad.boot(|_, _| true), Boot::Slot(Slot::A));
    // The way back is gone once the next release overwrites it.
    let again =
        [&staged[..], &[Try, HealthOk, Commit, OldKeyErased, FetchDone, VerifyOk, StageBegun]].concat();
    assert_eq!(run(&again).content[0], Content::Partial);
}
