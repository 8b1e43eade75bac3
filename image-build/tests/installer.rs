//! The installer's medium, as built, on a USB stick of a virtual machine with UEFI and TPM: it installs on an NVMe disk,
//! whatever power does, and the machine then starts from that disk under Secure Boot; or it refuses and says why.
//!
//! `cargo xtask test` builds the image and names its folder in `REDOUBT_HOST_IMAGE`; `cargo xtask ci --full` builds one of the
//! production profile, signed with keys of its own, and names it in `REDOUBT_PRODUCTION_RELEASE`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a failure ends the test")]

mod skip;

use image_build::{
    host::names,
    installer::{self as installer_image, IMAGE},
    trust::Trust,
};
use installer::{
    archive::{self, Files, MANIFEST},
    gpt::Guid,
    layout::{self, MIB, labels},
    linux::Device,
    medium::Medium,
    parts::Parts,
    record::{self, Kind},
    run,
};
use release::{Envelope, Profile, Root};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

/// Firmware under translation, on a machine that other tests use too.
const PATIENCE: Duration = Duration::from_secs(400);

/// A machine's parts that outlive a power cut.
struct Bench {
    dir: tempfile::TempDir,
    /// The release whose medium is tried.
    image: PathBuf,
    /// The virtual one, which has the firmware.
    firmware: PathBuf,
}

fn bench() -> Option<Bench> {
    let Some(image) = std::env::var_os("REDOUBT_HOST_IMAGE").map(PathBuf::from) else {
        skip::skip("REDOUBT_HOST_IMAGE names no built image of the host; run 'cargo xtask test'");
        return None;
    };
    if Command::new("swtpm").arg("--version").stdout(Stdio::null()).status().is_err() {
        skip::skip("there is no swtpm; run 'cargo xtask test'");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("disk")).unwrap().set_len(layout::smallest() + 200 * MIB).unwrap();
    std::fs::copy(image.join(names::VARIABLES), dir.path().join("variables")).unwrap();
    Some(Bench { dir, firmware: image.clone(), image })
}

/// With the medium of a production release.
fn production() -> Option<Bench> {
    let Some(image) = std::env::var_os("REDOUBT_PRODUCTION_RELEASE").map(PathBuf::from) else {
        // Not part of every run: its guest's kernel takes minutes. Not captured, as what is printed would be.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no production release; run 'cargo xtask ci --full'");
        return None;
    };
    Some(Bench { image, ..bench()? })
}

/// What a machine starts from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// Its disk.
    Disk,
    /// The stick.
    Stick,
    /// The same bytes over HTTP, which firmware keeps as a RAM disk.
    Network,
}

/// Serves one file over HTTP to whoever asks on this machine; returns the port.
fn serve(content: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
            // One client may ask several times: how long the file is, then for the file.
            while let Some(Ok(request)) = lines.next() {
                let headers = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty());
                headers.for_each(drop);
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.efi-img\r\nContent-Length: {}\r\n\r\n",
                    content.len()
                );
                let body = if request.starts_with("HEAD") { &[][..] } else { &content };
                if client.write_all(head.as_bytes()).and_then(|()| client.write_all(body)).is_err() {
                    break;
                }
            }
        }
    });
    port
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Takes the keys out of the variables: setup mode.
    fn clear_keys(&self) {
        /// gEfiAuthenticatedVariableGuid: VARIABLE_STORE_HEADER begins with it.
        const STORE: Guid = Guid::new(0xaaf32c78_947b_439a_a180_2e144ec37792);
        let mut store = std::fs::read(self.path("variables")).unwrap();
        let at = store.windows(16).position(|window| window == STORE.stored()).unwrap();
        let size = u32::from_le_bytes(store[at + 16..at + 20].try_into().unwrap()) as usize;
        // Erased flash reads as ones.
        store[at + 28..at + size].fill(0xff);
        std::fs::write(self.path("variables"), store).unwrap();
    }

    /// Makes the stick, changed.
    fn stick(&self, config: &Value, change: impl FnOnce(&mut Medium)) {
        let image = self.image.join(IMAGE);
        let mut medium = Medium::read(&mut Device::open_read_only(&image).unwrap()).unwrap();
        medium.config = Some(serde_json::to_vec(config).unwrap());
        change(&mut medium);
        let size = medium.smallest();
        File::create(self.path("stick")).unwrap().set_len(size).unwrap();
        let mut device = Device::open(&self.path("stick")).unwrap();
        run::run(&medium.plan(size).unwrap(), &mut device, &mut |_| ()).unwrap();
    }

    fn start(&self, from: From, tpm: bool) -> Machine {
        let drive = |options: &str, path: &Path| format!("{options},format=raw,file={}", path.display());
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2560M"])
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-net", "none", "-serial", "stdio"])
            .arg("-drive")
            .arg(drive("if=pflash,unit=0,readonly=on", &self.firmware.join(names::FIRMWARE)))
            .arg("-drive")
            .arg(drive("if=pflash,unit=1", &self.path("variables")))
            .arg("-drive")
            .arg(drive("if=none,id=disk", &self.path("disk")))
            .args(["-device", "nvme,drive=disk,serial=target,bootindex=2"]);
        match from {
            From::Disk => {}
            From::Stick => {
                command.arg("-drive").arg(drive("if=none,id=stick", &self.path("stick"))).args([
                    "-device",
                    "qemu-xhci",
                    "-device",
                    "usb-storage,drive=stick,removable=on,bootindex=1",
                ]);
            }
            From::Network => {
                let port = serve(std::fs::read(self.path("stick")).unwrap());
                // QEMU's DHCP server hands out the address that firmware fetches.
                command
                    .arg("-netdev")
                    .arg(format!(
                        "user,id=network,restrict=off,bootfile=http://10.0.2.2:{port}/installer.img"
                    ))
                    .args(["-device", "virtio-net-pci,netdev=network,bootindex=1,romfile="])
                    // OVMF's network wants random numbers.
                    .args(["-object", "rng-random,id=random,filename=/dev/urandom"])
                    .args(["-device", "virtio-rng-pci,rng=random"]);
            }
        }
        let swtpm = tpm.then(|| {
            let (state, socket) = (self.path("tpm"), self.path("tpm.socket"));
            let _ = std::fs::create_dir(&state);
            let _ = std::fs::remove_file(&socket);
            let swtpm = Command::new("swtpm")
                .args(["socket", "--tpm2", "--tpmstate"])
                .arg(format!("dir={}", state.display()))
                .arg("--ctrl")
                .arg(format!("type=unixio,path={}", socket.display()))
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let end = Instant::now() + PATIENCE;
            while !socket.exists() {
                assert!(Instant::now() < end, "swtpm does not start");
                std::thread::sleep(Duration::from_millis(50));
            }
            command.arg("-chardev").arg(format!("socket,id=tpm,path={}", socket.display())).args([
                "-tpmdev",
                "emulator,id=tpm0,chardev=tpm",
                "-device",
                "tpm-crb,tpmdev=tpm0",
            ]);
            swtpm
        });
        let mut qemu =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let console = BufReader::new(qemu.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in console.split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        Machine { qemu, swtpm, lines, console: String::new() }
    }
}

/// A running virtual machine; dropping it is a power cut.
struct Machine {
    qemu: Child,
    swtpm: Option<Child>,
    lines: mpsc::Receiver<String>,
    console: String,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in [Some(&mut self.qemu), self.swtpm.as_mut()].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Machine {
    /// Reads the console up to the first line with one of these texts.
    fn until(&mut self, texts: &[&str]) -> &str {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.console += &line;
                    self.console.push('\n');
                    if texts.iter().any(|text| line.contains(text)) {
                        return &self.console;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("none of {texts:?}:\n{}", self.console),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let mut errors = String::new();
                    self.qemu.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                    panic!("the machine ended before any of {texts:?}: {errors}\n{}", self.console);
                }
            }
        }
    }

    /// What the console has shown so far.
    fn said(&mut self) -> &str {
        for line in self.lines.try_iter() {
            self.console += &line;
            self.console.push('\n');
        }
        &self.console
    }

    /// Waits until the machine has switched itself off.
    fn ended(mut self) {
        let end = Instant::now() + PATIENCE;
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the machine does not switch itself off");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn config() -> Value {
    json!({
        "version": 1, "disk": "auto", "hardware": "virtual", "enrol_keys": true, "when_done": "power-off",
        "operator": { "fingerprint": "ab".repeat(32) },
    })
}

const REFUSED: &str = "nothing more is done";

#[test]
fn a_machine_in_setup_mode_gets_keys_and_system_although_the_power_goes_meanwhile() {
    let Some(bench) = bench() else { return };
    bench.clear_keys();
    bench.stick(&config(), |_| ());
    let mut machine = bench.start(From::Stick, true);
    let console = machine.until(&["installer: the machine", "% root", REFUSED]);
    assert!(console.contains("keys are enrolled") && console.contains("% root"), "{console}");
    drop(machine);

    // From now on the firmware verifies the installer too, wherever it comes from.
    bench.stick(
        &{
            let mut config = config();
            config["erase"] = json!(true);
            config
        },
        |_| (),
    );
    let mut machine = bench.start(From::Network, true);
    let console = machine.until(&["is installed; take the medium out", REFUSED]);
    assert!(console.contains("Secure Boot: on, with the project's key"), "{console}");
    assert!(console.contains("is installed; take the medium out"), "{console}");
    assert!(console.contains("boot entry set"), "{console}");
    let identity = |console: &str| {
        let (_, rest) = console.split_once("identity of this node: ").unwrap();
        rest.lines().next().unwrap().trim().to_owned()
    };
    let installed = identity(console);
    machine.ended();

    let mut machine = bench.start(From::Disk, true);
    let console = machine.until(&["root verified", "cannot start"]);
    for text in
        ["host-os: Secure Boot: on", "root verified", "started from slot a of nvme0n1", "file system made on"]
    {
        assert!(console.contains(text), "{text}: {console}");
    }
    assert!(console.contains("host-os: agent started"), "{console}");
    assert_eq!(identity(console), installed);
    drop(machine);

    // The state stays.
    let mut machine = bench.start(From::Disk, true);
    let console = machine.until(&["host-os: agent started", "cannot start"]);
    assert!(console.contains("host-os: agent started") && !console.contains("file system made"), "{console}");
}

/// Starts the installer and compares the name of its refusal.
fn refused(bench: &Bench, config: &Value, tpm: bool, change: impl FnOnce(&mut Medium), code: &str) {
    bench.stick(config, change);
    let mut machine = bench.start(From::Stick, tpm);
    let console = machine.until(&[REFUSED, "is installed"]);
    assert!(console.contains(&format!("{REFUSED} ({code})")), "{code}: {console}");
    drop(machine);
    let disk = std::fs::read(bench.path("disk")).unwrap();
    assert!(disk.iter().all(|byte| *byte == 0), "something was written");
}

#[test]
fn a_machine_that_does_not_suit_is_refused() {
    let Some(bench) = bench() else { return };
    refused(&bench, &config(), false, |_| (), "tpm-missing");
    let mut other = config();
    other["hardware"] = json!("gen2");
    refused(&bench, &other, true, |_| (), "hardware-not-met");
    bench.clear_keys();
    let mut not_agreed = config();
    not_agreed["enrol_keys"] = json!(false);
    refused(&bench, &not_agreed, true, |_| (), "secure-boot-keys-not-agreed");
}

#[test]
fn an_unsigned_release_and_a_wrong_disk_are_refused() {
    let Some(bench) = bench() else { return };
    let unsigned = |medium: &mut Medium| {
        let mut files = medium.files().unwrap();
        let manifest = Envelope::from_bytes(&files[MANIFEST]).unwrap().manifest().clone();
        files.insert(MANIFEST.into(), Envelope::new(manifest).unwrap().to_bytes());
        medium.release = archive::pack(&files).unwrap();
    };
    refused(&bench, &config(), true, unsigned, "release-unsigned");
    let mut other = config();
    other["disk"] = json!("nvme7n1");
    refused(&bench, &other, true, |_| (), "disk-not-found");
}

#[test]
fn a_production_release_is_installed_under_its_clouds_keys_and_starts_without_a_serial_console() {
    let Some(bench) = production() else { return };
    let development = std::fs::read(bench.path("variables")).unwrap();
    bench.clear_keys();
    bench.stick(&config(), |_| ());
    let mut machine = bench.start(From::Stick, true);
    let console = machine.until(&["is installed; take the medium out", REFUSED]);
    assert!(console.contains("installer of profile production"), "{console}");
    assert!(console.contains("keys are enrolled"), "{console}");
    assert!(console.contains("is installed; take the medium out"), "{console}");
    machine.ended();

    // It says nothing there, but at the end of its start it has noted that its state, which is encrypted, has a file system.
    let mut machine = bench.start(From::Disk, true);
    let ready = || {
        let mut area = vec![0; record::AREA];
        let disk = File::open(bench.path("disk")).unwrap();
        disk.read_exact_at(&mut area, layout::start_of(labels::CONFIG).unwrap()).unwrap();
        record::read(&area, Kind::State).is_some_and(|(_, content)| content == b"ready")
    };
    let end = Instant::now() + PATIENCE;
    while !ready() {
        assert!(machine.qemu.try_wait().unwrap().is_none(), "the machine ended: {}", machine.said());
        assert!(Instant::now() < end, "the host does not start: {}", machine.said());
        std::thread::sleep(Duration::from_millis(500));
    }
    let console = machine.said();
    assert!(!console.contains("host-os") && !console.contains("Linux"), "{console}");
    drop(machine);

    // Machines of this cloud start nothing of the virtual profile, and the other way round.
    let stranger = |image: &Path| {
        std::fs::copy(image.join(IMAGE), bench.path("stick")).unwrap();
        let mut machine = bench.start(From::Stick, true);
        let console = machine.until(&["Access Denied", "Security Violation", "installer:"]);
        assert!(!console.contains("installer:"), "{console}");
    };
    stranger(&bench.firmware);
    std::fs::write(bench.path("variables"), development).unwrap();
    stranger(&bench.image);
}

#[test]
fn releases_of_production_and_of_virtual_nodes_are_refused_by_each_others_installers() {
    let Some(bench) = production() else { return };
    let open = |folder: &Path| {
        let medium = Medium::read(&mut Device::open_read_only(&folder.join(IMAGE)).unwrap()).unwrap();
        let root =
            Trust::of_installer(&std::fs::read(folder.join(installer_image::UKI)).unwrap()).unwrap().root;
        (medium.files().unwrap(), Root::from_bytes(&root).unwrap())
    };
    let (ours, root) = open(&bench.image);
    let (theirs, public) = open(&bench.firmware);
    let judge =
        |files: &Files, root, profile| Parts::of(files.clone(), root, profile).map_err(|error| error.code());
    assert!(judge(&ours, &root, Profile::Production).is_ok());
    assert!(judge(&theirs, &public, Profile::Virtual).is_ok());
    assert_eq!(judge(&theirs, &root, Profile::Production).unwrap_err(), "release-wrongly-signed");
    assert_eq!(judge(&ours, &public, Profile::Virtual).unwrap_err(), "release-wrongly-signed");
    // Not the keys alone: a release for other nodes is refused although it is signed by the right ones.
    assert_eq!(judge(&theirs, &public, Profile::Production).unwrap_err(), "release-wrong-profile");
    assert_eq!(judge(&ours, &root, Profile::Virtual).unwrap_err(), "release-wrong-profile");
}
