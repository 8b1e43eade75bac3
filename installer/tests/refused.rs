//! What is refused, each by its name, with nothing written.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Memory, Random, Sample, disk, operator};
use installer::{
    archive::{Files, MANIFEST},
    config::Operator,
    disk::{self as found, Content, Disk},
    layout::MIB,
    parts::Parts,
    plan::{self, Purpose, Refusal, Wanted},
    run::{self, Medium},
};
use release::{Profile, development};

fn judged(files: Files, profile: Profile) -> &'static str {
    Parts::of(files, &development::root().unwrap(), profile).map_or_else(|error| error.code(), |_| "accepted")
}

#[test]
fn a_release_that_nobody_approved() {
    let (keys, sample) = (development::signing_keys().unwrap(), Sample::new("1.0", 1, 1));
    let signed = || sample.signed_by(&keys[1..]);
    assert_eq!(judged(signed(), Profile::Virtual), "accepted");
    assert_eq!(judged(sample.signed_by(&[]), Profile::Virtual), "release-unsigned");
    assert_eq!(judged(sample.signed_by(&keys[..1]), Profile::Virtual), "release-unsigned");
    let stranger = release::SigningKey::from_bytes(&[7; 32]);
    assert_eq!(
        judged(sample.signed_by(&[keys[0].clone(), stranger]), Profile::Virtual),
        "release-wrongly-signed"
    );
    assert_eq!(judged(signed(), Profile::Production), "release-wrong-profile");

    let mut changed = signed();
    let text = String::from_utf8(changed[MANIFEST].clone()).unwrap().replace("\"1.0\"", "\"1.1\"");
    changed.insert(MANIFEST.into(), text.into_bytes());
    assert_eq!(judged(changed, Profile::Virtual), "release-wrongly-signed");
    for name in ["host.efi", "host-root.erofs", "host-root.verity", "vmlinuz", "initrd.zst", "firmware.bin"] {
        let mut changed = signed();
        changed.get_mut(name).unwrap()[0] ^= 1;
        assert_eq!(judged(changed, Profile::Virtual), "release-file-changed", "{name}");
        let mut absent = signed();
        absent.remove(name);
        assert_eq!(judged(absent, Profile::Virtual), "release-incomplete", "{name}");
    }
    let mut unsigned = signed();
    unsigned.remove("host.efi.p7s");
    assert_eq!(judged(unsigned, Profile::Virtual), "kernel-image-unsigned");
    assert_eq!(judged(Files::new(), Profile::Virtual), "release-without-manifest");

    // A kernel image for another root, though its hash is right.
    let (mut files, mut manifest) = sample.files();
    manifest.host.as_mut().unwrap().verity_root_hash.0[0] ^= 1;
    let mut envelope = release::Envelope::new(manifest).unwrap();
    for key in &keys[..2] {
        release::sign(&mut envelope, key).unwrap();
    }
    files.insert(MANIFEST.into(), envelope.to_bytes());
    assert_eq!(judged(files, Profile::Virtual), "kernel-image-refused");
}

fn refusal(disk: &Disk, content: &Content, parts: &Parts, erase: bool, operator: &Operator) -> &'static str {
    let mut random = Random(1);
    let wanted = Wanted { erase, operator, hardware: "virtual", network: None };
    match plan::plan(disk, content, parts, &wanted, &mut || random.bytes()) {
        Ok(plan) if plan.purpose == Purpose::New => "new",
        Ok(_) => "kept",
        Err(refusal) => refusal.code(),
    }
}

#[test]
fn a_disk_that_cannot_be_meant() {
    let parts = Sample::new("1.0", 1, 1).parts();
    let with = |change: &dyn Fn(&mut Disk)| {
        let mut disk = disk();
        change(&mut disk);
        refusal(&disk, &Content::Empty, &parts, true, &operator())
    };
    assert_eq!(with(&|_| ()), "new");
    assert_eq!(with(&|disk| disk.is_medium = true), "disk-is-installer");
    assert_eq!(with(&|disk| disk.used_by = Some("mounted".into())), "disk-in-use");
    assert_eq!(with(&|disk| disk.block = 4096), "disk-block-size");
    assert_eq!(with(&|disk| disk.size = 100 * MIB), "disk-too-small");

    let disks = |names: &[&str]| -> Vec<Disk> {
        names
            .iter()
            .map(|name| Disk { name: (*name).into(), serial: format!("S-{name}"), ..disk() })
            .collect()
    };
    let chosen = |disks: &[Disk], wanted: &str| plan::choose(disks, wanted).map(|disk| disk.name.clone());
    let two = disks(&["nvme0n1", "nvme1n1"]);
    assert_eq!(chosen(&two, "nvme1n1").unwrap(), "nvme1n1");
    assert_eq!(chosen(&two, "serial:S-nvme0n1").unwrap(), "nvme0n1");
    assert_eq!(chosen(&two, "auto").unwrap_err().code(), "disk-ambiguous");
    assert_eq!(chosen(&two, "sda").unwrap_err().code(), "disk-not-found");
    assert_eq!(chosen(&[], "auto").unwrap_err().code(), "disk-not-found");
    let mut stick = disks(&["sda", "sdb", "nvme0n1"]);
    stick[0].is_medium = true;
    stick[1].removable = true;
    assert_eq!(chosen(&stick, "auto").unwrap(), "nvme0n1");
}

fn node(parts: &Parts) -> Content {
    let mut memory = Memory::new(disk().size);
    let mut random = Random(1);
    let operator = operator();
    let wanted = Wanted { erase: true, operator: &operator, hardware: "virtual", network: None };
    let plan = plan::plan(&disk(), &Content::Empty, parts, &wanted, &mut || random.bytes()).unwrap();
    run::run(&plan, &mut memory, &mut |_| ()).unwrap();
    found::inspect(&mut memory).unwrap()
}

#[test]
fn what_is_on_the_disk_is_neither_lost_nor_set_back_by_mistake() {
    let sample = Sample::new("1.5", 1, 1);
    let installed = node(&sample.parts());
    let judge =
        |content: &Content, parts: &Parts, erase| refusal(&disk(), content, parts, erase, &operator());
    for (content, name) in [(Content::Foreign(Vec::new()), "foreign"), (Content::Damaged("x"), "damaged")] {
        assert_eq!(judge(&content, &sample.parts(), false), "erase-not-confirmed", "{name}");
        assert_eq!(judge(&content, &sample.parts(), true), "new", "{name}");
    }
    assert_eq!(judge(&installed, &sample.parts(), false), "kept");
    assert_eq!(judge(&installed, &Sample::new("1.6", 2, 2).parts(), false), "kept");
    let older = Sample::new("1.4", 2, 2).parts();
    assert_eq!(judge(&installed, &older, false), "release-older");
    assert_eq!(judge(&installed, &older, true), "new");
    let later_epoch = node(&Sample { epoch: 2, ..sample.clone() }.parts());
    assert_eq!(judge(&later_epoch, &Sample::new("9.0", 2, 2).parts(), false), "release-older");
    let production = Sample { profile: Profile::Production, ..Sample::new("1.6", 2, 2) }.parts();
    assert_eq!(judge(&installed, &production, false), "profile-differs");
    let other = Operator::typed(&"cd".repeat(32)).checked().unwrap();
    assert_eq!(refusal(&disk(), &installed, &sample.parts(), false, &other), "operator-differs");
}

#[test]
fn a_changed_configuration_and_a_release_that_does_not_fit() {
    let parts = Sample::new("1.0", 1, 1).parts();
    let mut large = parts.clone();
    large.root = vec![0; 97 << 20];
    assert_eq!(refusal(&disk(), &Content::Empty, &large, true, &operator()), "release-too-large");
    large.root = parts.root.clone();
    large.uki = vec![0; 70 << 20];
    assert_eq!(refusal(&disk(), &Content::Empty, &large, true, &operator()), "release-too-large");

    let Content::Node(mut installed) = node(&parts) else { panic!("no node") };
    installed.configuration = Some(Err(installer::config::ConfigError::Signature));
    let content = Content::Node(installed);
    assert_eq!(refusal(&disk(), &content, &parts, false, &operator()), "node-configuration-refused");
}

#[test]
fn hostile_disks_do_not_panic() {
    let parts = Sample::new("1.0", 1, 1).parts();
    let mut memory = Memory::new(disk().size);
    let mut random = Random(1);
    let (operator, disk) = (operator(), disk());
    let wanted = Wanted { erase: true, operator: &operator, hardware: "virtual", network: None };
    let plan = plan::plan(&disk, &Content::Empty, &parts, &wanted, &mut || random.bytes()).unwrap();
    run::run(&plan, &mut memory, &mut |_| ()).unwrap();
    let ranges: Vec<(u64, u64)> =
        plan.steps.iter().flat_map(|s| &s.writes).map(|w| (w.at, w.bytes.len() as u64)).collect();
    for round in 0..60 {
        let mut damaged = memory.clone();
        for _ in 0..20 {
            let (at, length) = ranges[random.next() as usize % ranges.len()];
            damaged.write(at + random.next() % length.min(4096), &random.bytes()[..1]).unwrap();
        }
        if let Ok(content) = found::inspect(&mut damaged) {
            let code = refusal(&disk, &content, &parts, round % 2 == 0, &operator);
            assert!(!code.is_empty());
        }
    }
}

#[test]
fn every_refusal_says_what_to_do() {
    let error = Refusal::TooSmall { disk: "nvme0n1".into(), size: 1, needed: 2 };
    assert!(error.to_string().contains("choose a larger disk"));
}
