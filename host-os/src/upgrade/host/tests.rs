//! The host's upgrade on a machine that is played, with the power cut before and after everything it does.

use super::*;
use crate::node::NodeDir;
use crate::upgrade::Order;
use crate::upgrade::fetch::Source;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;

const OLD: Digest = Digest([1; 32]);
const NEW: Digest = Digest([2; 32]);
const GOLDEN: &[u8] = include_bytes!("../../../../release/tests/golden/manifest.json");

/// What a new host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Good,
    /// The firmware or its kernel does not get far.
    NeverBoots,
    /// Its agent starts, and dies again and again.
    Crashes,
    /// It runs and its guest is not well.
    Ill,
}

/// What is true of the machine whoever looks.
#[derive(Debug)]
struct World {
    kind: Kind,
    /// The slot that the firmware usually starts, and whether it is to start the other once.
    usual: Slot,
    once: bool,
    content: [Option<Digest>; 2],
    /// Which releases the TPM opens the host's secret to.
    opens: BTreeSet<Digest>,
    running: Slot,
    started: bool,
    restarting: bool,
    /// Points at which the power may go until it does; none for never.
    left: Option<u32>,
    points: u32,
    /// How often the new host was started.
    tried: u32,
}

impl World {
    fn new(kind: Kind, left: Option<u32>) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(World {
            kind,
            usual: Slot::A,
            once: false,
            content: [Some(OLD), None],
            opens: [OLD].into(),
            running: Slot::A,
            started: false,
            restarting: false,
            left,
            points: 0,
            tried: 0,
        }))
    }

    /// Whether the power goes here.
    fn cut(&mut self) -> bool {
        self.points += 1;
        let cut = self.left == Some(0);
        self.left = self.left.and_then(|left| left.checked_sub(1));
        cut
    }

    fn starts(&self, slot: Slot) -> bool {
        let Some(release) = self.content[slot as usize] else { return false };
        self.opens.contains(&release) && !(release == NEW && self.kind == Kind::NeverBoots)
    }

    fn boot(&mut self) {
        assert!(self.starts(self.usual), "the machine does not start any more: {self:?}");
        let mut slot = self.usual;
        if std::mem::take(&mut self.once) {
            slot = slot.other();
            self.tried += 1;
            assert!(self.content[slot as usize] == Some(NEW) && self.opens.contains(&NEW), "{self:?}");
        }
        self.running = if self.starts(slot) { slot } else { self.usual };
        (self.started, self.restarting) = (false, false);
    }
}

struct PowerCut;

struct Played(Arc<Mutex<World>>);

impl Played {
    /// Something durable, with the power going before it, after it, or not.
    fn act(&self, act: impl FnOnce(&mut World)) -> Result<(), HostError> {
        let mut world = self.0.lock().unwrap();
        let before = world.cut();
        if !before {
            act(&mut world);
        }
        let cut = before || world.cut();
        drop(world);
        if cut {
            // Nothing that would follow happens.
            resume_unwind(Box::new(PowerCut));
        }
        Ok(())
    }
}

impl Machine for Played {
    fn running(&self) -> Slot {
        self.0.lock().unwrap().running
    }
    fn first_start(&mut self) -> bool {
        !std::mem::replace(&mut self.0.lock().unwrap().started, true)
    }
    fn stage(&mut self) -> Result<(), HostError> {
        self.act(|world| world.content[world.usual.other() as usize] = None)?;
        self.act(|world| world.content[world.usual.other() as usize] = Some(NEW))
    }
    fn allow(&mut self, _: &HostImages) -> Result<(), HostError> {
        self.act(|world| world.opens.extend([NEW]))
    }
    fn settle(&mut self) -> Result<(), HostError> {
        self.act(|world| world.opens = world.content[world.running as usize].into_iter().collect())
    }
    fn start_once(&mut self) -> Result<(), HostError> {
        self.act(|world| world.once = true)
    }
    fn start_always(&mut self, slot: Slot) -> Result<(), HostError> {
        self.act(|world| world.usual = slot)
    }
    fn restart(&mut self, _: &str) -> Result<(), HostError> {
        self.act(|world| world.restarting = true)
    }
}

/// Releases of which nothing is refused, or everything from some moment on.
struct Judge {
    withdrawn: bool,
}

impl Incoming for Judge {
    fn verify(&self, release: Digest) -> Result<HostImages, UpgradeError> {
        self.admissible(release)
    }
    fn admissible(&self, release: Digest) -> Result<HostImages, UpgradeError> {
        assert_eq!(release, NEW);
        let images = release::Envelope::from_bytes(GOLDEN).unwrap().manifest().host.clone().unwrap();
        if self.withdrawn { Err(UpgradeError::AnotherRelease) } else { Ok(images) }
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of(&NodeDir::at(dir.path()));
    let source = Source { manifest: "http://h/m".into(), mirrors: Vec::new(), bytes_per_second: None };
    store.ask(&Order { source, not_before: 0, operator: None }).unwrap();
    (dir, store)
}

fn begin(store: &Store, world: &Arc<Mutex<World>>) -> Host {
    let machine = Played(world.clone());
    let release = {
        let world = world.lock().unwrap();
        world.content[world.running as usize].unwrap()
    };
    Host::begin(store.clone(), Box::new(machine), release).unwrap()
}

/// Runs an upgrade to its end, over restarts.
fn upgrade(store: &Store, world: &Arc<Mutex<World>>, judge: &Judge) -> Host {
    for start in 0..20 {
        world.lock().unwrap().boot();
        let run = AssertUnwindSafe(|| one_start(store, world, judge, start == 0));
        match catch_unwind(run) {
            Ok(Some(host)) => return host,
            Ok(None) => {}
            Err(cause) if cause.is::<PowerCut>() => {}
            Err(cause) => resume_unwind(cause),
        }
    }
    panic!("no end after twenty starts: {world:?}");
}

/// From a start of the machine to the next; the host's part if it came to an end.
fn one_start(store: &Store, world: &Arc<Mutex<World>>, judge: &Judge, first: bool) -> Option<Host> {
    let guest = Part::installed(OLD);
    let mut host = begin(store, world);
    if first {
        host.fetched(NEW, "here").unwrap();
    }
    for _ in 0..60 {
        if host.must_leave() {
            host.leave().unwrap();
        }
        let (kind, running) = {
            let world = world.lock().unwrap();
            if world.restarting {
                return None;
            }
            (world.kind, world.running)
        };
        match host.advance(judge, &guest, 0).unwrap() {
            Next::Nothing => return Some(host),
            Next::Observe => {
                assert_ne!(running, host.part.active);
                assert!(host.fuse().is_some_and(|decided| !decided.load(Ordering::Relaxed)));
                match kind {
                    Kind::Good => host.observed(Ok(())).unwrap(),
                    Kind::Ill => host.observed(Err(HostError::Unhealthy("ill".into()).into())).unwrap(),
                    // The agent dies, PID 1 starts it again.
                    Kind::Crashes => host = begin(store, world),
                    Kind::NeverBoots => unreachable!("it runs"),
                }
            }
            Next::Advance | Next::NotYet | Next::Restart => {}
        }
    }
    panic!("it goes round in circles: {:?}", host.part);
}

fn ends_right(kind: Kind, left: Option<u32>) -> u32 {
    let ((_dir, store), world) = (store(), World::new(kind, left));
    let host = upgrade(&store, &world, &Judge { withdrawn: false });
    let world = world.lock().unwrap();
    let what = format!("{kind:?}, power cut at {left:?}: {world:?}, {:?}", host.part);
    let (slot, release) = if kind == Kind::Good { (Slot::B, NEW) } else { (Slot::A, OLD) };
    let phase = if kind == Kind::Good { Phase::Idle } else { Phase::Failed };
    assert_eq!((host.part.phase, host.part.active), (phase, slot), "{what}");
    assert_eq!((world.running, world.usual, world.once), (slot, slot, false), "{what}");
    assert_eq!(world.opens, [release].into(), "{what}");
    assert!(world.tried <= u32::from(upgrade::machine::TRIES) + 1, "{what}");
    assert_eq!(store.failure().is_some(), kind != Kind::Good, "{what}");
    // The order of one that failed is gone; the guest's part takes up that of the other.
    assert_eq!(store.order().exists(), kind == Kind::Good, "{what}");
    world.points
}

#[test]
fn a_power_cut_anywhere_leaves_a_machine_that_starts_and_comes_to_the_same_end() {
    for kind in [Kind::Good, Kind::NeverBoots, Kind::Crashes, Kind::Ill] {
        let points = ends_right(kind, None);
        assert!(points > 10, "{kind:?}: {points}");
        for cut in 0..points {
            ends_right(kind, Some(cut));
        }
    }
}

#[test]
fn each_failure_has_its_name() {
    for (kind, code) in [
        (Kind::NeverBoots, "host-does-not-run"),
        (Kind::Crashes, "host-does-not-run"),
        (Kind::Ill, "host-unhealthy"),
    ] {
        let ((_dir, store), world) = (store(), World::new(kind, None));
        upgrade(&store, &world, &Judge { withdrawn: false });
        assert_eq!(store.failure().unwrap().0, code);
        assert_eq!(world.lock().unwrap().tried, if kind == Kind::NeverBoots { 3 } else { 1 }, "{kind:?}");
    }
}

#[test]
fn what_is_not_right_is_not_written_and_what_was_withdrawn_is_not_started() {
    let ((_dir, store), world) = (store(), World::new(Kind::Good, None));
    upgrade(&store, &world, &Judge { withdrawn: true });
    assert_eq!(world.lock().unwrap().content[1], None);
    assert_eq!(world.lock().unwrap().tried, 0);
    assert_eq!(store.failure().unwrap().0, "upgrade-another-release");

    let ((_dir, store), world) = (self::store(), World::new(Kind::Good, None));
    let (guest, good) = (Part::installed(OLD), Judge { withdrawn: false });
    let mut host = begin(&store, &world);
    host.fetched(NEW, "here").unwrap();
    while !host.part.has_key(Slot::B) {
        host.advance(&good, &guest, 0).unwrap();
    }
    assert_eq!(host.advance(&good, &guest, u64::MAX).unwrap(), Next::NotYet);
    // Both at once are never tried.
    let tried = Part { phase: Phase::Trying, ..guest };
    assert!(matches!(host.advance(&good, &tried, 0), Err(UpgradeError::Refused(_))));
    assert!(world.lock().unwrap().opens.contains(&NEW));
    host.advance(&Judge { withdrawn: true }, &guest, 0).unwrap();
    assert_eq!((host.part.phase, host.part.has_key(Slot::B)), (Phase::Failed, false));
    assert_eq!(world.lock().unwrap().opens, [OLD].into());
}

#[test]
fn another_slot_than_the_upgrade_knows_is_taken_as_it_is() {
    let ((_dir, store), world) = (store(), World::new(Kind::Good, None));
    let mut host = begin(&store, &world);
    host.fetched(NEW, "here").unwrap();
    {
        // The installer was here.
        let mut world = world.lock().unwrap();
        (world.running, world.usual, world.content[1], world.started) = (Slot::B, Slot::B, Some(OLD), false);
    }
    let host = begin(&store, &world);
    assert_eq!((host.part.phase, host.part.active), (Phase::Idle, Slot::B));
    assert_eq!(*host.part.content(Slot::B), Content::Release(OLD));
    assert_eq!(store.failure().unwrap().0, "host-other-slot");
    assert!(!store.order().exists());
}
