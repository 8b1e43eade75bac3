//! The guest of the production profile, as built, in a virtual machine without SEV-SNP: it boots without any console, and
//! says over its port to the host why it serves nobody there.
//!
//! `cargo xtask ci --full` builds that release and names its folder in `REDOUBT_PRODUCTION_RELEASE`.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test says where it failed")]

use host_guest::{ToHost, read_frame};
use release::Envelope;
use std::{
    os::unix::net::UnixListener,
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn a_production_guest_boots_without_a_console_and_serves_nobody_without_sev_snp() {
    let Some(release) = std::env::var_os("REDOUBT_PRODUCTION_RELEASE").map(PathBuf::from) else {
        // Not part of every run: its kernel takes a quarter of an hour.
        use std::io::Write as _;
        // Not captured, as what is printed would be.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no production release; run 'cargo xtask ci --full'");
        return;
    };
    let manifest = Envelope::from_bytes(&std::fs::read(release.join("manifest.json")).unwrap()).unwrap();
    let guest = &manifest.manifest().guest;
    let dir = tempfile::tempdir().unwrap();
    let (socket, console) = (dir.path().join("host"), dir.path().join("console"));
    let listener = UnixListener::bind(&socket).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35", "-m", "512M", "-smp", "2"])
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-kernel")
        .arg(release.join(&guest.files.kernel.path))
        .arg("-initrd")
        .arg(release.join(&guest.files.initrd.path))
        .args(["-append", &guest.command_line])
        .args(["-device", "virtio-serial-pci", "-chardev"])
        .arg(format!("socket,id=host,path={}", socket.display()))
        .args(["-device", "virtserialport,chardev=host,name=redoubt.host"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let (sender, messages) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut port, _) = listener.accept().unwrap();
        while let Ok(message) = read_frame::<ToHost>(&mut port) {
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    let mut seen = Vec::new();
    let refused = loop {
        match messages.recv_timeout(PATIENCE) {
            Ok(ToHost::Health(health)) if !health.error.is_empty() => break Some(health.error),
            Ok(message) => seen.push(message),
            Err(_) => break None,
        }
    };
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    let refused = refused.unwrap_or_else(|| panic!("no word of an error, but {seen:?}"));
    assert!(refused.contains("SEV-SNP"), "{refused}");
    assert!(matches!(seen.first(), Some(ToHost::Hello { .. })), "{seen:?}");
    // SeaBIOS writes nothing there; neither did the kernel nor PID 1.
    assert_eq!(std::fs::read_to_string(&console).unwrap(), "");
}
