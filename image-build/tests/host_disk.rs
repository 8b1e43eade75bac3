//! The host's disk, as built, in a virtual machine with Secure Boot: it boots to PID 1, and does not when anything of it was
//! changed. Each refusal is judged by what the console says.
//!
//! `cargo xtask test` builds the image and names its folder in `REDOUBT_HOST_IMAGE`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a failure ends the test")]

mod skip;

use image_build::host::{fat, names, pe, secure_boot, verity};
use installer::layout;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

/// Firmware under translation, on a machine that other tests use too.
const PATIENCE: Duration = Duration::from_secs(300);
const BOOTED: &str = "host-os: root verified";
/// Blocks of dm-verity.
const BLOCK: u64 = verity::BLOCK as u64;

fn image() -> Option<PathBuf> {
    let folder = std::env::var_os("REDOUBT_HOST_IMAGE").map(PathBuf::from);
    if folder.is_none() {
        skip::skip("REDOUBT_HOST_IMAGE names no built image of the host; run 'cargo xtask test'");
    }
    folder
}

/// A copy of the built disk that a test may damage.
struct Disk {
    dir: tempfile::TempDir,
    image: PathBuf,
}

impl Disk {
    fn copy(image: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        let copied = Command::new("cp")
            .arg("--sparse=always")
            .arg(image.join(names::DISK))
            .arg(&disk)
            .status()
            .unwrap();
        assert!(copied.success());
        Self { dir, image }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn file(&self) -> File {
        File::options().read(true).write(true).open(self.path()).unwrap()
    }

    /// Flips one bit of the byte at an offset in the partition with this label.
    fn flip(&self, label: &str, offset: u64) {
        let (file, at) = (self.file(), layout::start_of(label).unwrap() + offset);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    }

    /// Puts another unified kernel image on the boot partition.
    fn put(&self, uki: &[u8]) {
        let files = BTreeMap::from([("EFI/BOOT/BOOTX64.EFI", uki)]);
        let esp = fat::image(128 << 20, "ESP", 1, &files, &BTreeMap::new()).unwrap();
        self.file().write_all_at(&esp, layout::start_of("esp").unwrap()).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.image.join(name)).unwrap()
    }

    /// Starts the machine and returns its console up to the first line with one of these texts.
    fn boot_until(&self, texts: &[&str]) -> String {
        let node = format!("snapshot=on,format=raw,file={}", self.path().display());
        Machine::start(&self.image, &node, self.dir.path()).read_until(texts)
    }

    /// The same with a drive that cannot read the sector with this byte of the partition with this label.
    fn boot_unreadable_until(&self, label: &str, offset: u64, texts: &[&str]) -> String {
        let sector = (layout::start_of(label).unwrap() + offset) / 512;
        let node = format!(
            "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={},\
             file.inject-error.0.event=read_aio,file.inject-error.0.iotype=read,file.inject-error.0.errno=5,\
             file.inject-error.0.sector={sector}",
            self.path().display()
        );
        Machine::start(&self.image, &node, self.dir.path()).read_until(texts)
    }
}

/// A running virtual machine, killed at the end.
struct Machine {
    qemu: Child,
    lines: mpsc::Receiver<String>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Machine {
    /// From its disk, in QEMU's words, through the firmware.
    fn start(image: &Path, disk: &str, dir: &Path) -> Self {
        let variables = dir.join("variables");
        std::fs::copy(image.join(names::VARIABLES), &variables).unwrap();
        let drive = |options: &str, path: &Path| format!("{options},format=raw,file={}", path.display());
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1G"])
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-net", "none", "-serial", "stdio"])
            .arg("-drive")
            .arg(drive("if=pflash,unit=0,readonly=on", &image.join(names::FIRMWARE)))
            .arg("-drive")
            .arg(drive("if=pflash,unit=1", &variables))
            .arg("-drive")
            .arg(format!("if=none,id=disk,{disk}"))
            .args(["-device", "nvme,drive=disk,serial=disk"]);
        Self::run(command)
    }

    /// A kernel alone: without a root it panics once it has initialised everything.
    fn start_kernel(kernel: &Path) -> Self {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1G"])
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-net", "none", "-serial", "stdio"])
            .args(["-append", "console=ttyS0 no_timer_check panic=1", "-kernel"])
            .arg(kernel);
        Self::run(command)
    }

    fn run(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut qemu = command.spawn().unwrap();
        let console = BufReader::new(qemu.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in console.split(b'\n') {
                let Ok(line) = line else { break };
                let text = String::from_utf8_lossy(&line).into_owned();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        Self { qemu, lines }
    }

    fn read_until(mut self, texts: &[&str]) -> String {
        let (end, mut console) = (Instant::now() + PATIENCE, String::new());
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    console += &line;
                    console.push('\n');
                    if texts.iter().any(|text| line.contains(text)) {
                        return console;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("none of {texts:?} after {PATIENCE:?}:\n{console}")
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let mut errors = String::new();
                    self.qemu.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                    panic!("the machine ended before any of {texts:?}: {errors}\n{console}");
                }
            }
        }
    }
}

#[test]
fn the_disk_boots_under_secure_boot_to_a_verified_root_and_starts_the_agent() {
    let Some(image) = image() else { return };
    let console = Disk::copy(image).boot_until(&[BOOTED, "cannot start"]);
    assert!(console.contains("host-os: Secure Boot: on"), "{console}");
    assert!(console.contains("host-os: agent started"), "{console}");
    assert!(console.contains(BOOTED), "{console}");
}

#[test]
fn the_hosts_kernel_boots_as_the_middle_layer_and_loads_kvm_on_emulated_svm() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let uki = std::fs::read(image.join(names::UKI)).unwrap();
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, pe::section(&uki, ".linux").unwrap()).unwrap();
    let console = Machine::start_kernel(&kernel).read_until(&["Unable to mount root fs"]);
    for line in ["kvm_amd: Nested Virtualization enabled", "kvm_amd: Nested Paging enabled"] {
        assert!(console.contains(line), "{line}: {console}");
    }
}

/// The firmware refuses it, names the reason, and nothing of ours runs.
fn refused_by_the_firmware(disk: &Disk) {
    let console = disk.boot_until(&["Access Denied", "Security Violation", "host-os:"]);
    assert!(console.contains("Access Denied") || console.contains("Security Violation"), "{console}");
    assert!(!console.contains("host-os:"), "{console}");
}

#[test]
fn an_unsigned_kernel_image_is_refused() {
    let Some(image) = image() else { return };
    let disk = Disk::copy(image);
    disk.put(&disk.read(names::UKI));
    refused_by_the_firmware(&disk);
}

#[test]
fn a_changed_command_line_is_refused() {
    let Some(image) = image() else { return };
    let disk = Disk::copy(image);
    let mut signed = pe::attach(&disk.read(names::UKI), &disk.read(names::SIGNATURE)).unwrap();
    let at = signed.windows(7).position(|w| w == b"virtual").unwrap();
    signed[at] ^= 1;
    disk.put(&signed);
    refused_by_the_firmware(&disk);
}

#[test]
fn a_broken_signature_is_refused() {
    let Some(image) = image() else { return };
    let disk = Disk::copy(image);
    let mut signature = disk.read(names::SIGNATURE);
    let last = signature.len() - 1;
    signature[last] ^= 1;
    disk.put(&pe::attach(&disk.read(names::UKI), &signature).unwrap());
    refused_by_the_firmware(&disk);
}

/// The kernel, or PID 1, stops the machine and says this.
fn refused_after_start(disk: &Disk, says: &str) {
    let console = disk.boot_until(&["Kernel panic", "the host cannot start", BOOTED]);
    assert!(console.contains(says), "{says}: {console}");
    assert!(!console.contains(BOOTED), "{console}");
}

#[test]
fn a_flipped_bit_in_a_block_of_the_root_is_refused() {
    let Some(image) = image() else { return };
    let disk = Disk::copy(image);
    // In the middle: part of a library that nothing needs to read at boot.
    let block = disk.read(names::ROOT).len() as u64 / BLOCK / 2;
    disk.flip("host-a", block * BLOCK + 77);
    refused_after_start(&disk, &format!("data block {block} is corrupted"));
}

#[test]
fn a_root_that_the_drive_cannot_read_is_named() {
    let Some(image) = image() else { return };
    let disk = Disk::copy(image);
    // The first block of the second half, which nothing needs. The machine runs on, and says it.
    let block = disk.read(names::ROOT).len() as u64 / BLOCK / 2;
    let texts = ["Kernel panic", "the host cannot start", "host-os: cannot read /dev/dm-0", BOOTED];
    let console = disk.boot_unreadable_until("host-a", block * BLOCK, &texts);
    assert!(console.contains("agent started") && console.contains("the disk fails"), "{console}");
    assert!(!console.contains(BOOTED), "{console}");
}

#[test]
fn a_flipped_bit_in_the_superblock_of_the_root_is_refused() {
    let Some(image) = image() else { return };
    let disk = Disk::copy(image);
    // The superblock of erofs is at byte 1024.
    disk.flip("host-a", 1024 + 16);
    refused_after_start(&disk, "data block 0 is corrupted");
}

#[test]
fn a_flipped_bit_in_the_hash_tree_is_refused() {
    let Some(image) = image() else { return };
    let disk = Disk::copy(image);
    // The last block of the tree: the lowest level's last.
    let block = disk.read(names::VERITY).len() as u64 / BLOCK - 1;
    disk.flip("host-a-verity", block * BLOCK + 5);
    refused_after_start(&disk, &format!("metadata block {block} is corrupted"));
}

#[test]
fn a_flipped_bit_in_the_superblock_of_the_hash_tree_is_refused() {
    let Some(image) = image() else { return };
    let disk = Disk::copy(image);
    disk.flip("host-a-verity", 88);
    refused_after_start(
        &disk,
        "the superblock of the root's hash tree on /dev/nvme0n1p3 was changed: byte 88",
    );
}

#[test]
fn the_variables_hold_the_development_certificate() {
    let Some(image) = image() else { return };
    let variables = std::fs::read(image.join(names::VARIABLES)).unwrap();
    let certificate = secure_boot::CERTIFICATE;
    assert_eq!(variables.windows(certificate.len()).filter(|w| *w == certificate).count(), 3);
}
