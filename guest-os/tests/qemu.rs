//! Boots a real kernel with this PID 1 in QEMU, plays the host, and checks what the guest does.
//!
//! Needs a guest kernel and both programs built static; without them the tests say so and pass:
//!
//! ```text
//! RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile guest --target x86_64-unknown-linux-gnu \
//!     -p guest-os --features virtual --bin guest-os --example stand_in_replica
//! REDOUBT_TEST_KERNEL=bzImage REDOUBT_TEST_PROGRAMS=target/x86_64-unknown-linux-gnu/guest \
//!     cargo test -p guest-os --features virtual --test qemu -- --nocapture
//! ```
#![cfg(feature = "virtual")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a failure ends the test")]

use attestation::{Evidence, EvidenceKind, Report, binding};
use base64::{Engine, engine::general_purpose::STANDARD};
use host_guest::{GuestConfig, Health, Ipv4Config, Ipv6Config, Phase, ToGuest, ToHost};
use ring::digest::{SHA256, digest};
use simulated_psp::chip::{Chip, LaunchContext, Psp};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const COMMAND_LINE: &str = "console=ttyS0 no_timer_check panic=5 quiet loglevel=4 random.trust_cpu=on redoubt.profile=virtual redoubt.watchdog=8";
const PATIENCE: Duration = Duration::from_secs(90);

struct Images {
    kernel: PathBuf,
    programs: PathBuf,
}

fn images() -> Option<Images> {
    match (std::env::var_os("REDOUBT_TEST_KERNEL"), std::env::var_os("REDOUBT_TEST_PROGRAMS")) {
        (Some(kernel), Some(programs)) => Some(Images { kernel: kernel.into(), programs: programs.into() }),
        _ => {
            // Past what captures the output of tests.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: set REDOUBT_TEST_KERNEL and REDOUBT_TEST_PROGRAMS, see the top of this file"
            );
            None
        }
    }
}

/// The `newc` format: what the kernel unpacks.
fn initrd(images: &Images) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut entry = |path: &str, mode: u32, data: &[u8]| {
        let fields = [0, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(path.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    entry("init", 0o100_555, &fs::read(images.programs.join("guest-os")).unwrap());
    entry("replica", 0o100_555, &fs::read(images.programs.join("examples/stand_in_replica")).unwrap());
    entry("TRAILER!!!", 0, &[]);
    archive
}

fn config() -> String {
    let ipv4 = Ipv4Config { address: [10, 0, 2, 15].into(), prefix: 24, gateway: Some([10, 0, 2, 2].into()) };
    let config = GuestConfig {
        version: 1,
        ipv4: Some(ipv4),
        ipv6: Ipv6Config::RouterAdvertisement,
        port: 8443,
        task: host_guest::Task::Run,
    };
    serde_json::to_string(&config).unwrap()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().unwrap()
}

/// One run of QEMU; killed when dropped.
struct Guest {
    qemu: Child,
    host: UnixStream,
    messages: Receiver<ToHost>,
    console: PathBuf,
    port: u16,
    started: Instant,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            println!("console:\n{}", self.console());
        }
    }
}

fn connect(socket: &Path) -> UnixStream {
    let end = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < end, "QEMU does not open {socket:?}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Guest {
    /// Starts QEMU with the disk and the NVRAM of `node`; the PSP answers for a guest with that HOST_DATA.
    fn start(images: &Images, node: &Path, psp: Psp) -> Self {
        Self::start_with(images, node, psp, COMMAND_LINE)
    }

    fn start_with(images: &Images, node: &Path, psp: Psp, command_line: &str) -> Self {
        let run = tempfile::tempdir_in(node).unwrap().keep();
        fs::write(run.join("initrd"), initrd(images)).unwrap();
        for (name, size) in [("disk", 1 << 20), ("nvram", 16 << 20)] {
            File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(node.join(name))
                .unwrap()
                .set_len(size)
                .unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let console = run.join("console");
        let show = |path: &Path| path.to_str().unwrap().to_owned();
        let socket = |id: &str| format!("socket,id={id},path={},server=on,wait=off", show(&run.join(id)));
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35", "-m", "512M", "-smp", "2"])
            .args(["-nodefaults", "-no-reboot", "-display", "none"])
            .args(["-serial", &format!("file:{}", show(&console))])
            .args(["-kernel", &show(&images.kernel), "-initrd", &show(&run.join("initrd"))])
            .args(["-append", command_line])
            .args(["-device", "virtio-serial-pci", "-chardev", &socket("host"), "-chardev", &socket("psp")])
            .args(["-device", "virtserialport,chardev=host,name=redoubt.host"])
            .args(["-device", "virtserialport,chardev=psp,name=redoubt.psp"])
            .args([
                "-object",
                &format!(
                    "memory-backend-file,id=nv,share=on,size=16M,mem-path={}",
                    show(&node.join("nvram"))
                ),
            ])
            .args(["-device", "ivshmem-plain,memdev=nv"])
            .args(["-drive", &format!("if=none,id=disk,format=raw,file={}", show(&node.join("disk")))])
            .args(["-device", "virtio-blk-pci,drive=disk,serial=redoubt-disk"])
            .args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:8443")])
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .stdin(Stdio::null());
        let started = Instant::now();
        let qemu = command.spawn().unwrap();

        let mut psp_stream = connect(&run.join("psp"));
        std::thread::spawn(move || {
            while let Ok(request) = host_guest::read_frame(&mut psp_stream) {
                host_guest::write_frame(&mut psp_stream, &psp.handle(&request)).unwrap();
            }
        });
        let host = connect(&run.join("host"));
        let mut reader = host.try_clone().unwrap();
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            while let Ok(message) = host_guest::read_frame(&mut reader) {
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Self { qemu, host, messages, console, port, started }
    }

    fn send(&mut self, message: &ToGuest) {
        host_guest::write_frame(&mut self.host, message).unwrap();
    }

    fn message(&self) -> ToHost {
        match self.messages.recv_timeout(PATIENCE) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => panic!("the guest says nothing"),
            Err(RecvTimeoutError::Disconnected) => panic!("the guest is gone"),
        }
    }

    fn greet(&self) {
        while !matches!(self.message(), ToHost::Hello { version: host_guest::VERSION }) {}
    }

    fn configure(&mut self, json: &str) {
        self.send(&ToGuest::Config { json: json.to_owned() });
    }

    /// Waits for a state of health.
    fn health(&self, what: &str, wanted: impl Fn(&Health) -> bool) -> Health {
        let end = Instant::now() + PATIENCE;
        loop {
            let message = self.message();
            match message {
                ToHost::Health(health) if wanted(&health) => return health,
                other => assert!(Instant::now() < end, "waiting for {what}, last {other:?}"),
            }
        }
    }

    fn ready(&mut self) -> Health {
        self.greet();
        self.configure(&config());
        let health = self.health("ready", |health| health.phase == Phase::Ready);
        println!("ready {} ms after QEMU's start", self.started.elapsed().as_millis());
        health
    }

    fn console(&self) -> String {
        fs::read_to_string(&self.console).unwrap_or_default()
    }

    /// What follows `key` on the console.
    fn said(&self, key: &str) -> String {
        let console = self.console();
        let line = console.lines().find_map(|line| line.split_once(key));
        line.unwrap_or_else(|| panic!("{key:?} is not on the console")).1.trim().to_owned()
    }

    fn command(&self, request: &serde_json::Value) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        host_guest::write_frame(&mut stream, request).unwrap();
        stream
    }

    fn ends(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the guest does not power off");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn power_off(mut self) {
        self.send(&ToGuest::PowerOff);
        while !matches!(self.message(), ToHost::Stopping { .. }) {}
        self.ends();
    }
}

fn psp(chip: &Path, measurement: u8) -> Psp {
    let measurement = attestation::Measurement([measurement; 48]);
    let context = LaunchContext::new(measurement, sha256(config().as_bytes()));
    Chip::open_or_create(chip).unwrap().launch(context).unwrap()
}

#[test]
fn a_node_boots_serves_evidence_and_keeps_its_secret_and_its_nvram() {
    let Some(images) = images() else { return };
    let node = tempfile::tempdir().unwrap();
    let chip = node.path().join("chip");

    let mut guest = Guest::start(&images, node.path(), psp(&chip, 1));
    let health = guest.ready();
    assert!(health.heap.starts_with("bar, 16 MiB, write-combining"), "{health:?}");
    assert!(health.addresses.contains(&"10.0.2.15".to_owned()), "{health:?}");
    assert!(health.memory_used > 0 && health.error.is_empty(), "{health:?}");
    assert!(guest.console().contains("new vault with a new secret"));
    let secret = guest.said("stand-in: secret of 32 bytes, ");
    assert_eq!(guest.said("starts "), "0");

    // Confined.
    assert!(!guest.console().contains("ALLOWED"), "{}", guest.console());
    assert!(guest.console().contains("probes done"));
    for (key, expected) in [
        ("status Uid: ", "1000 1000 1000 1000"),
        ("status Gid: ", "1000 1000 1000 1000"),
        ("status Groups:", ""),
        ("status CapEff: ", "0000000000000000"),
        ("status CapPrm: ", "0000000000000000"),
        ("status CapBnd: ", "0000000000000000"),
        ("status NoNewPrivs: ", "1"),
        ("status Seccomp: ", "2"),
        // Else it could not be asked to stop.
        ("status SigBlk: ", "0000000000000000"),
    ] {
        assert_eq!(guest.said(key), expected, "{key}");
    }

    // Evidence that binds nonce and key.
    let request = serde_json::json!({ "nonce": "5a".repeat(32), "spki": STANDARD.encode(b"key") });
    let response: serde_json::Value = host_guest::read_frame(&mut guest.command(&request)).unwrap();
    let evidence = Evidence::from_json(response["evidence"].to_string().as_bytes()).unwrap();
    assert_eq!(evidence.kind, EvidenceKind::SimSnp);
    let report = Report::parse(&evidence.report).unwrap();
    assert_eq!(report.report_data(), binding::report_data(EvidenceKind::SimSnp, &[0x5a; 32], b"key"));
    assert_eq!(report.host_data(), sha256(config().as_bytes()));

    // The network by router advertisement.
    guest.health("an IPv6 address", |health| health.addresses.iter().any(|a| a.starts_with("fec0::")));

    // A crash and a hang are answered by a restart.
    guest.command(&"crash".into());
    let health = guest.health("a restart", |health| health.replica_restarts == 1);
    assert!(
        health.error.is_empty() || health.error.contains("the replica was ended by SIGABRT"),
        "{health:?}"
    );
    guest.health("ready again", |health| health.phase == Phase::Ready);
    guest.command(&"hang".into());
    guest.health("the watchdog", |health| health.error.contains("no sign of life"));
    guest.health("ready again", |health| health.phase == Phase::Ready && health.replica_restarts == 2);
    assert!(guest.console().contains("starts 2"));
    guest.power_off();

    // The next boot of the same guest on the same chip finds both again, also after a power cut.
    let mut guest = Guest::start(&images, node.path(), psp(&chip, 1));
    guest.ready();
    assert_eq!(guest.said("stand-in: secret of 32 bytes, "), secret);
    assert_eq!(guest.said("starts "), "3");
    assert!(guest.console().contains("vault opened"));
    drop(guest);
    let mut guest = Guest::start(&images, node.path(), psp(&chip, 1));
    guest.ready();
    assert_eq!(guest.said("stand-in: secret of 32 bytes, "), secret);
    drop(guest);

    // Another guest, and then another machine, do not get the secret and do not destroy it.
    let before = fs::read(node.path().join("disk")).unwrap();
    for (psp, difference) in
        [(psp(&chip, 2), "another guest release"), (psp(&node.path().join("other"), 1), "another machine")]
    {
        let mut guest = Guest::start(&images, node.path(), psp);
        guest.greet();
        guest.configure(&config());
        let health = guest.health("the vault's error", |health| !health.error.is_empty());
        assert!(health.error.contains("vault sealed to another guest or machine"), "{health:?}");
        assert!(health.error.contains(difference), "{health:?}");
        assert_eq!(health.phase, Phase::Opening);
        guest.power_off();
    }
    assert!(before == fs::read(node.path().join("disk")).unwrap(), "the vault was changed");
}

#[test]
fn a_hostile_host_gets_nowhere() {
    let Some(images) = images() else { return };
    let node = tempfile::tempdir().unwrap();
    let mut guest = Guest::start(&images, node.path(), psp(&node.path().join("chip"), 1));
    guest.greet();
    // A configuration that is not the one of HOST_DATA, and then the right one.
    guest.configure(&config().replace("8443", "8444"));
    let health = guest.health("a refusal", |health| health.error.contains("HOST_DATA"));
    assert_eq!(health.phase, Phase::Booting);
    guest.configure(&config());
    guest.health("ready", |health| health.phase == Phase::Ready);
    // Garbage ends the conversation, not the guest.
    guest.host.write_all(&[0xff; 100]).unwrap();
    guest.health("a complaint", |health| health.error.contains("ignored until it connects anew"));
    guest.health("life", |health| health.phase == Phase::Ready && health.uptime_s > 0);
    let mut stream = guest.command(&serde_json::json!({ "nonce": "5a", "spki": "" }));
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.contains("nonce"), "{answer}");
}

#[test]
fn a_guest_that_cannot_start_says_why_and_restarts() {
    let Some(images) = images() else { return };
    let node = tempfile::tempdir().unwrap();
    let command_line = COMMAND_LINE.replace("profile=virtual", "profile=production");
    let psp = psp(&node.path().join("chip"), 1);
    let mut guest = Guest::start_with(&images, node.path(), psp, &command_line);
    guest.ends();
    let why = "the guest cannot start: this binary was built for the virtual profile";
    assert!(guest.console().contains(why), "{}", guest.console());
    // The kernel restarted it in good order; a PID 1 that dies makes it panic.
    assert!(guest.console().contains("reboot: Restarting system"), "{}", guest.console());
    assert!(!guest.console().contains("Kernel panic"), "{}", guest.console());
}
