//! Recovery with made-up releases, and a test in the agent's place: it starts no guests and writes their vaults itself.

use super::*;
use crate::bundle::RootSource;
use crate::node::NodeDir;
use crate::upgrade::begin::{Begin, begin};
use crate::upgrade::driver::Command;
use crate::upgrade::{Order, Source, Store};
use clap::Parser;
use host_guest::ToGuest;
use release::{Blessing, Digest, Profile, Signed, development, sign, verify};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use upgrade::machine::{Content, Part, Slot};
use upgrade::node::Which;

#[path = "../../../tests/agent/made_up.rs"]
mod made_up;

const RESCUE: Digest = Digest([9; 32]);

#[derive(Parser)]
struct Words {
    #[command(flatten)]
    guest: crate::cli::GuestArgs,
}

/// A driver of a node that runs its recovery release, or the guest in its slot; what it asks of the agent; and its folder.
fn driver(running: Place) -> (Driver, mpsc::Receiver<Command>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let node = NodeDir::at(directory.path());
    let lock = Arc::new(node.lock().unwrap());
    let (agent, asked) = mpsc::channel(4);
    let installed = directory.path().join("none/manifest.json");
    let guest = Words::parse_from(["redoubt"]).guest;
    let mut part = Part { recovery: Some(RESCUE), ..Part::installed(Digest([1; 32])) };
    if running == Place::Recovery {
        part = part.step(Event::NothingBoots, None).unwrap();
    }
    let driver = Driver {
        store: Store::of(&node),
        options: guest.options(installed, RootSource::Development, Profile::Virtual),
        node,
        lock,
        shared: crate::http::Shared::new(crate::status::tests::example(), Instant::now()),
        agent,
        sequence: 0,
        part,
        running,
        last_well: 0,
        recovery_refused: false,
        judged: None,
        host: None,
    };
    (driver, asked, directory)
}

#[tokio::test]
async fn only_an_operator_brings_a_release_and_a_refusal_leaves_recovery_as_it_is() {
    let (mut driver, mut asked, directory) = driver(Place::Recovery);
    let before = driver.part;
    let manifest = format!("file://{}/nowhere/manifest.json", directory.path().display());
    for (operator, code) in [(None, "recovery-without-operator"), (Some("alice".to_owned()), "fetch-failed")]
    {
        let source = Source { manifest: manifest.clone(), mirrors: Vec::new(), bytes_per_second: None };
        driver.store.ask(&Order { source, not_before: 0, operator }).unwrap();
        driver.rescue().await.unwrap();
        assert_eq!(driver.store.failure().unwrap().0, code);
        assert_eq!(driver.shared.read().upgrade.code, code);
        assert!(!driver.store.order().exists(), "the order is tried for ever");
        assert!(asked.try_recv().is_err(), "something was started");
        assert_eq!((driver.part, driver.running), (before, Place::Recovery));
    }
    let log = std::fs::read_to_string(driver.store.log()).unwrap();
    assert!(log.contains("not brought: recovery-without-operator") && log.contains("alice brings"), "{log}");
}

#[tokio::test]
async fn a_guest_is_given_up_once_and_only_if_something_else_can_be_started() {
    let (mut driver, mut asked, _directory) = driver(Place::Slot(Slot::A));
    let given_up = |driver: &mut Driver, state: &str, restarts| {
        driver.shared.update(|status| {
            (status.state, status.restarts) = (state.to_owned(), restarts);
        });
        driver.has_given_up().map(|(code, _)| code)
    };
    let yes = Some(DOES_NOT_RUN.to_owned());
    let crashes = driver.options.policy.crashes as u64;
    assert_eq!(given_up(&mut driver, "ready", 2), None);
    assert_eq!(given_up(&mut driver, "booting", 2 + crashes - 1), None);
    assert_eq!(given_up(&mut driver, "booting", 2 + crashes), yes);
    assert_eq!(given_up(&mut driver, "failed", 3), yes);
    // Its files are not there: the guest that there is goes on, and this is not tried again until it was well.
    let error = driver.recover((String::new(), String::new())).await.unwrap_err();
    assert_eq!(error.code(), "release-unreadable");
    assert_eq!((driver.part.phase, driver.running), (Phase::Idle, Place::Slot(Slot::A)));
    assert!(asked.try_recv().is_err());
    assert_eq!(given_up(&mut driver, "failed", 3), None);
    assert_eq!(given_up(&mut driver, "ready", 4), None);
    assert_eq!(given_up(&mut driver, "failed", 5), yes);
    driver.part.recovery = None;
    assert_eq!(given_up(&mut driver, "failed", 5), None);
}

/// A made-up release of this version in a folder of its own.
fn release(folder: &Path, version: &str) -> (PathBuf, Digest) {
    let path = folder.join(version);
    made_up::write(&path, &release::Manifest { version: version.to_owned(), ..made_up::manifest() }, 2);
    let bytes = fs::read(path.join("manifest.json")).unwrap();
    (path, verify(&bytes, &development::root().unwrap()).unwrap().digest())
}

/// A blessing of these releases beside one of them.
fn bless(beside: &Path, version: u64, releases: &[(Digest, Purpose)]) {
    let mut signed = Signed::new(Blessing {
        version,
        profile: Profile::Virtual,
        issued: 1,
        expires: 1 << 40,
        security_epoch: 0,
        releases: releases.iter().copied().collect(),
        revoked: Default::default(),
    })
    .unwrap();
    for key in &development::signing_keys().unwrap()[..2] {
        sign(&mut signed, key).unwrap();
    }
    fs::write(beside.join(release::BLESSING_FILE), signed.to_bytes()).unwrap();
}

/// What the agent was asked: who gives a key to which place as what, and what runs from then on.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Key { giver: Vec<u8>, to: Place, recovery: bool },
    Run(Place),
}

/// Carries out what the agent is asked; a key is the name of the place that it was given to.
async fn agent(mut asked: mpsc::Receiver<Command>, heard: mpsc::UnboundedSender<Asked>) {
    while let Some(command) = asked.recv().await {
        match command {
            Command::HandOver { checked, documents, answer } => {
                let ToGuest::TakeOver { giver, recovery, .. } = documents else { panic!("{documents:?}") };
                let to = checked.target.place;
                let disk = fs::OpenOptions::new().write(true).open(&checked.disk).unwrap();
                disk.write_all_at(format!("{to:?}").as_bytes(), 0).unwrap();
                heard.send(Asked::Key { giver: giver.into_bytes(), to, recovery }).unwrap();
                answer.send(Ok(Duration::ZERO)).unwrap();
            }
            Command::Switch { checked, answer } => {
                heard.send(Asked::Run(checked.target.place)).unwrap();
                answer.send(()).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn from_an_upgrade_to_recovery_and_back() {
    let (mut driver, asked, directory) = driver(Place::Slot(Slot::A));
    let (tell, mut heard) = mpsc::unbounded_channel();
    tokio::spawn(agent(asked, tell));
    let folder = directory.path().join("releases");
    let ((installed, old), (good, new), (rescue, rescuer), (newest, last)) =
        (release(&folder, "1"), release(&folder, "2"), release(&folder, "r"), release(&folder, "3"));
    driver.options.manifest = installed.join("manifest.json");
    driver.options.accel = crate::accel::Choice::Tcg;
    (driver.options.nvram_bytes, driver.options.disk_bytes, driver.options.vcpus) = (1 << 20, 1 << 20, 2);
    driver.part = Part::installed(old);
    let manifest = |path: &Path| fs::read(path.join("manifest.json")).unwrap();
    let order = |driver: &Driver, path: &Path, operator: Option<&str>| {
        let manifest = format!("file://{}/manifest.json", path.display());
        let source = Source { manifest, mirrors: Vec::new(), bytes_per_second: None };
        driver.store.ask(&Order { source, not_before: 0, operator: operator.map(str::to_owned) }).unwrap();
    };

    // The recovery release gets its key, then the new one.
    use Purpose::{Node, Recovery};
    bless(&good, 2, &[(old, Node), (new, Node), (rescuer, Recovery)]);
    fs::create_dir(good.join("recovery")).unwrap();
    for file in ["vmlinuz", "initrd", "firmware", "manifest.json"] {
        fs::copy(rescue.join(file), good.join("recovery").join(file)).unwrap();
    }
    order(&driver, &good, None);
    while !driver.part.has_key(Slot::B) {
        driver.advance().await.unwrap();
        assert_ne!(driver.part.phase, Phase::Failed, "{:?}", driver.store.failure());
    }
    assert_eq!(driver.part.recovery, Some(rescuer));
    let key = |giver: &Path, to, recovery| Asked::Key { giver: manifest(giver), to, recovery };
    assert_eq!(heard.recv().await.unwrap(), key(&installed, Place::NextRecovery, true));
    assert_eq!(heard.recv().await.unwrap(), key(&installed, Place::Slot(Slot::B), false));
    let vault = |driver: &Driver, place| {
        fs::read_to_string(driver.node.disk_path(place)).unwrap().trim_end_matches('\0').to_owned()
    };
    assert_eq!(vault(&driver, Place::Recovery), "NextRecovery");
    assert_eq!(manifest(&driver.store.slot(Place::Recovery)), manifest(&rescue));
    assert!(!driver.node.disk_path(Place::NextRecovery).exists());

    // It was committed, and its files rot.
    for event in [Event::Try, Event::HealthOk, Event::Commit, Event::OldKeyErased] {
        driver.keep(event, "").unwrap();
    }
    driver.done();
    fs::write(driver.store.slot(Slot::B).join("initrd"), [0; 5000]).unwrap();
    let start = |driver: &Driver| begin(&driver.options, &driver.node, &driver.lock, &|_| ());
    let Begin { sequence, part, checked } = start(&driver).unwrap();
    assert_eq!((checked.target.place, part.phase), (Place::Recovery, Phase::Failed));
    assert!(checked.nvram.is_none() && checked.config.as_str().contains("recover"));
    assert_eq!(driver.store.failure().unwrap().0, "file-wrong-hash");
    (driver.sequence, driver.part, driver.running) = (sequence, part, checked.target.place);

    // Nothing that is not blessed as a node.
    driver.shared.update(|status| status.state = "recovery".to_owned());
    bless(&newest, 3, &[(last, Recovery), (rescuer, Recovery)]);
    order(&driver, &newest, Some("alice"));
    driver.advance().await.unwrap();
    assert_eq!(driver.store.failure().unwrap().0, "release-other-purpose");
    assert!(heard.try_recv().is_err() && driver.running == Place::Recovery);

    bless(&newest, 3, &[(last, Node), (rescuer, Recovery)]);
    order(&driver, &newest, Some("alice"));
    driver.advance().await.unwrap();
    assert_eq!(driver.store.failure(), None);
    assert_eq!(heard.recv().await.unwrap(), key(&rescue, Place::Slot(Slot::B), false));
    assert_eq!(heard.recv().await.unwrap(), Asked::Run(Place::Slot(Slot::B)));
    assert_eq!((driver.part.phase, driver.running), (Phase::Idle, Place::Slot(Slot::B)));
    assert_eq!(*driver.part.content(Slot::B), Content::Release(last));
    assert_eq!(start(&driver).unwrap().checked.target.place, Place::Slot(Slot::B));

    // Nobody knows any more what is in the slots.
    fs::write(directory.path().join("upgrade.record"), [7; 8192]).unwrap();
    let Begin { part, checked, .. } = start(&driver).unwrap();
    assert_eq!((checked.target.place, part.recovery), (Place::Recovery, Some(rescuer)));
    assert!(driver.store.load(Which::Guest).unwrap().is_some(), "there is a record again");

    // A recovery release that is blessed no more is not started.
    bless(&driver.store.slot(Place::Recovery), 4, &[(last, Node), (rescuer, Node)]);
    fs::remove_file(directory.path().join(release::BLESSING_FILE)).unwrap();
    let refused = start(&driver).map(|begin| begin.part).unwrap_err();
    assert_eq!(refused.code(), "upgrade-nothing-boots");
    let log = fs::read_to_string(driver.store.log()).unwrap();
    assert!(log.contains("no recovery: release-other-purpose"), "{log}");
}
