//! What the agent must refuse before it launches anything: each with its own name and exit code. No QEMU needed.

use crate::made_up::manifest;
use crate::world::World;
use release::Profile;

#[test]
fn a_tampered_kernel_is_refused() {
    let world = World::new(2);
    world.edit("vmlinuz", |bytes| bytes[100] ^= 1);
    let refusal = world.refused(&[]);
    assert_eq!((refusal.exit, refusal.code.as_str()), (5, "file-wrong-hash"));
    assert!(refusal.error.contains("kernel (vmlinuz)"), "{refusal:?}");
}

#[test]
fn a_tampered_initrd_is_refused() {
    let world = World::new(2);
    world.edit("initrd", |bytes| bytes.push(0));
    let refusal = world.refused(&[]);
    assert_eq!((refusal.exit, refusal.code.as_str()), (5, "file-wrong-size"));
    assert!(refusal.error.contains("initrd"), "{refusal:?}");
}

#[test]
fn a_tampered_firmware_is_refused() {
    let world = World::new(2);
    world.edit("firmware", |bytes| bytes[0] ^= 1);
    assert_eq!(world.refused(&[]).code, "file-wrong-hash");
}

#[test]
fn a_tampered_manifest_is_refused() {
    let world = World::new(2);
    world.edit("manifest.json", |bytes| {
        let at = bytes.windows(5).position(|window| window == b"1.2.3").unwrap();
        bytes[at] = b'9';
    });
    let refusal = world.refused(&[]);
    assert_eq!((refusal.exit, refusal.code.as_str()), (4, "manifest-bad-signature"));
}

#[test]
fn one_signature_is_not_enough() {
    let refusal = World::new(1).refused(&[]);
    assert_eq!((refusal.exit, refusal.code.as_str()), (4, "manifest-threshold-not-met"));
    assert!(refusal.error.contains("1 valid signatures, the root asks for 2"), "{refusal:?}");
}

#[test]
fn a_key_that_the_root_does_not_name_is_refused() {
    let world = World::new(2);
    let bytes = std::fs::read(world.manifest_path()).unwrap();
    let mut envelope = release::Envelope::from_bytes(&bytes).unwrap();
    release::sign(&mut envelope, &release::SigningKey::from_bytes(&[9; 32])).unwrap();
    std::fs::write(world.manifest_path(), envelope.to_bytes()).unwrap();
    let refusal = world.refused(&[]);
    assert_eq!((refusal.exit, refusal.code.as_str()), (4, "manifest-unknown-key"));
}

#[test]
fn a_release_for_other_nodes_is_refused() {
    let world = World::new(2);
    let mut manifest = manifest();
    manifest.profile = Profile::Production;
    world.write_manifest(manifest, 2);
    let refusal = world.refused(&[]);
    assert_eq!((refusal.exit, refusal.code.as_str()), (4, "profile-mismatch"));
}

#[test]
fn a_measurement_that_does_not_follow_from_the_files_is_refused() {
    let world = World::new(2);
    let mut manifest = manifest();
    // Signed by enough keys, and still wrong: the agent believes only what it computes.
    manifest.guest.command_line.push_str(" quiet");
    world.write_manifest(manifest, 2);
    let refusal = world.refused(&[]);
    assert_eq!((refusal.exit, refusal.code.as_str()), (6, "measurement-differs"));
}

#[test]
fn a_number_of_processors_without_measurement_is_refused() {
    let refusal = World::new(2).refused(&["--vcpus", "3"]);
    assert_eq!((refusal.exit, refusal.code.as_str()), (6, "vcpus-not-in-release"));
    assert!(refusal.error.contains("EPYC-v4 (2)"), "{refusal:?}");
}

#[test]
fn a_missing_manifest_and_a_broken_root_are_refused() {
    let world = World::new(2);
    let root = world.dir.path().join("root.json");
    std::fs::write(&root, "{}").unwrap();
    let refusal = world.refused(&["--root", root.to_str().unwrap()]);
    assert_eq!((refusal.exit, refusal.code.as_str()), (4, "root-refused"));
    std::fs::remove_file(world.manifest_path()).unwrap();
    let refusal = world.refused(&[]);
    assert_eq!((refusal.exit, refusal.code.as_str()), (4, "release-unreadable"));
}

#[test]
fn a_production_release_is_not_launched_on_a_machine_without_sev() {
    if std::path::Path::new("/dev/sev").exists() {
        // Past what captures the output of tests.
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "SKIPPED: this machine has SEV");
        return;
    }
    let world = World::new(2);
    let mut manifest = manifest();
    manifest.profile = Profile::Production;
    world.write_manifest(manifest, 2);
    let like = world.command("crash");
    let mut command = std::process::Command::new(like.get_program());
    let production = std::ffi::OsStr::new("production");
    command.args(like.get_args().map(|word| if word == "virtual" { production } else { word }));
    assert_eq!(command.output().unwrap().status.code(), Some(3));
    let end = world.node().read_record().and_then(|record| record.end).unwrap();
    assert_eq!(end.code, "hardware-refused");
}

#[test]
fn an_nvram_of_another_size_is_kept() {
    let world = World::new(2);
    std::fs::create_dir(world.node().path()).unwrap();
    let nvram = world.node().path().join("nvram.img");
    std::fs::write(&nvram, "what the node stored").unwrap();
    let refusal = world.refused(&[]);
    assert_eq!((refusal.exit, refusal.code.as_str()), (1, "image-size-changed"));
    assert_eq!(std::fs::read(&nvram).unwrap(), b"what the node stored");
}
