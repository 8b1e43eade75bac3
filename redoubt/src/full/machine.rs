//! The virtual machine: files that outlive a power cut, QEMU with UEFI and NVMe, swtpm, and its serial console.

use crate::output::Failure;
use image_build::host::names;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Size of the NVMe drive, sparse: release, and a guest's disk of the default size beside free space.
const DISK: u64 = 10 << 30;
/// Size of the NVDIMM, sparse.
const NVDIMM: u64 = 1 << 30;
/// Memory of the machine in MiB: the guest's default, and what the hardware specification wants free beside it.
const MEMORY_MIB: u32 = 3072;
/// Patience with swtpm's socket.
const SWTPM: Duration = Duration::from_secs(20);

/// Where the parts of a machine lie.
#[derive(Debug, Clone)]
pub(super) struct Place(PathBuf);

impl Place {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.0
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn stick(&self) -> PathBuf {
        self.path("stick.img")
    }

    pub(super) fn console(&self) -> PathBuf {
        self.path("console.log")
    }

    pub(super) fn operator_key(&self) -> PathBuf {
        self.path("operator.pem")
    }

    /// Its presence says that the installer has finished on this machine's disk.
    fn installed(&self) -> PathBuf {
        self.path("installed")
    }

    pub(super) fn is_installed(&self) -> bool {
        self.installed().exists()
    }

    pub(super) fn note_installed(&self) -> io::Result<()> {
        File::create(self.installed()).map(drop)
    }

    /// A machine as it is delivered: empty drives, a TPM nobody used, firmware with the release's keys.
    pub(super) fn make(&self, release: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| {
            Failure::new(
                "machine-not-made",
                format!(
                    "cannot make a virtual machine in {}: {error}; check owner and space",
                    self.0.display()
                ),
            )
        };
        let parts = [
            "installed",
            "stick.img",
            "console.log",
            "disk.img",
            "nvdimm.img",
            "variables.fd",
            "firmware.fd",
        ];
        std::fs::create_dir_all(&self.0).map_err(failed)?;
        for name in parts {
            absent_is_fine(std::fs::remove_file(self.path(name))).map_err(failed)?;
        }
        absent_is_fine(std::fs::remove_dir_all(self.path("tpm"))).map_err(failed)?;
        for (name, size) in [("disk.img", DISK), ("nvdimm.img", NVDIMM)] {
            File::create(self.path(name)).and_then(|file| file.set_len(size)).map_err(failed)?;
        }
        // The firmware belongs to the machine: it stays the same one when another release is given later.
        for (from, to) in [(names::FIRMWARE, "firmware.fd"), (names::VARIABLES, "variables.fd")] {
            let from = release.join(from);
            std::fs::copy(&from, self.path(to)).map_err(|error| {
                let message = format!(
                    "cannot read {}: {error}; --full needs a whole release: `redoubt image build`",
                    from.display()
                );
                Failure::new("release-without-host", message)
            })?;
        }
        Ok(())
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A port on the loopback that nobody uses now.
pub(super) fn free_port() -> Result<u16, Failure> {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    free.map(|address| address.port()).map_err(|error| Failure::of("no-free-port", &error))
}

/// How a machine is connected to this one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wires {
    /// Port here, and the address there, of the guest's HTTPS interface.
    pub(super) guest: (u16, SocketAddr),
    /// The same for the host's operators' interface.
    pub(super) operators: (u16, SocketAddr),
    /// Port of a VNC server that shows the screen.
    pub(super) vnc: Option<u16>,
}

/// QEMU's arguments. Nothing here decides what the firmware starts first: an empty disk does not boot, so the stick does; then
/// the entry that the installer made counts.
fn arguments(place: &Place, wires: &Wires, stick: bool) -> Vec<String> {
    let file = |name: &str| place.path(name).display().to_string();
    let forward = |(port, there): (u16, SocketAddr)| format!("hostfwd=tcp:127.0.0.1:{port}-{there}");
    let mut words: Vec<String> = Vec::new();
    let mut add = |name: &str, value: String| words.extend([name.to_owned(), value]);
    add("-name", "redoubt-machine".into());
    // System management mode, so that only the firmware writes its variables.
    add("-machine", "q35,smm=on,nvdimm=on".into());
    add("-global", "driver=cfi.pflash01,property=secure,value=on".into());
    // Translated everywhere: then the processor has AMD's virtualisation, on any machine.
    add("-accel", "tcg,thread=multi,tb-size=512".into());
    add("-cpu", "max".into());
    add("-smp", "2".into());
    add("-m", format!("{MEMORY_MIB}M,slots=1,maxmem={}M", u64::from(MEMORY_MIB) + (NVDIMM >> 20) + 1024));
    add(
        "-object",
        format!("memory-backend-file,id=nvdimm,share=on,size={NVDIMM},mem-path={}", file("nvdimm.img")),
    );
    add("-device", "nvdimm,memdev=nvdimm".into());
    add("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={}", file("firmware.fd")));
    add("-drive", format!("if=pflash,unit=1,format=raw,file={}", file("variables.fd")));
    add("-drive", format!("if=none,id=disk,format=raw,discard=unmap,file={}", file("disk.img")));
    add("-device", "nvme,drive=disk,serial=redoubt-virtual".into());
    if stick {
        add("-drive", format!("if=none,id=stick,format=raw,file={}", place.stick().display()));
        add("-device", "qemu-xhci".into());
        add("-device", "usb-storage,drive=stick,removable=on".into());
    }
    add("-netdev", format!("user,id=net,{},{}", forward(wires.guest), forward(wires.operators)));
    add("-device", "virtio-net-pci,netdev=net,romfile=".into());
    add("-chardev", format!("socket,id=tpm,path={}", file("tpm.sock")));
    add("-tpmdev", "emulator,id=tpm0,chardev=tpm".into());
    add("-device", "tpm-crb,tpmdev=tpm0".into());
    add("-device", "i6300esb".into());
    let console = place.console();
    add(
        "-chardev",
        format!(
            "socket,id=serial,path={},server=on,wait=off,logfile={}",
            file("serial.sock"),
            console.display()
        ),
    );
    add("-serial", "chardev:serial".into());
    add("-qmp", format!("unix:{},server=on,wait=off", file("qmp.sock")));
    add("-vga", "std".into());
    match wires.vnc {
        // A display's number counts from port 5900 on.
        Some(port) => add("-vnc", format!("127.0.0.1:{}", port.saturating_sub(5900))),
        None => add("-display", "none".into()),
    }
    words.extend(["-nodefaults".into(), "-no-user-config".into()]);
    words
}

/// A running machine; dropping it is a power cut.
pub(super) struct Machine {
    qemu: Child,
    swtpm: Child,
    console: File,
    /// What of the console was read already.
    pub(super) text: String,
    partial: Vec<u8>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in [&mut self.qemu, &mut self.swtpm] {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn program(name: &str, package: &str, error: &io::Error) -> Failure {
    Failure::new(
        "program-missing",
        format!("cannot start {name}: {error}; install it: apt install {package}"),
    )
}

impl Machine {
    pub(super) fn start(place: &Place, wires: &Wires, stick: bool) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::of("machine-not-started", &error);
        let (state, socket) = (place.path("tpm"), place.path("tpm.sock"));
        std::fs::create_dir_all(&state).map_err(failed)?;
        absent_is_fine(std::fs::remove_file(&socket)).map_err(failed)?;
        let mut swtpm = Command::new("swtpm")
            // It ends with QEMU's connection.
            .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
            .arg(format!("dir={}", state.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| program("swtpm", "swtpm", &error))?;
        let end = Instant::now() + SWTPM;
        while !socket.exists() {
            if swtpm.try_wait().map_err(failed)?.is_some() || Instant::now() > end {
                return Err(Failure::new(
                    "tpm-not-started",
                    "swtpm does not start; try `swtpm socket --help`",
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // QEMU empties the log when it starts.
        File::create(place.console()).map_err(failed)?;
        let qemu = Command::new("qemu-system-x86_64")
            .args(arguments(place, wires, stick))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(place.path("qemu.log")).map_err(failed)?)
            .spawn()
            .map_err(|error| program("qemu-system-x86_64", "qemu-system-x86", &error));
        let qemu = match qemu {
            Ok(qemu) => qemu,
            Err(failure) => {
                let _ = swtpm.kill();
                let _ = swtpm.wait();
                return Err(failure);
            }
        };
        let console = File::open(place.console()).map_err(failed)?;
        Ok(Self { qemu, swtpm, console, text: String::new(), partial: Vec::new() })
    }

    /// Lines that the console has got since the last call; an error if the machine has ended.
    pub(super) fn lines(&mut self, place: &Place) -> Result<Vec<String>, Failure> {
        let ended = self.qemu.try_wait().map_err(|error| Failure::of("machine-lost", &error))?;
        let at = self.console.stream_position();
        self.console
            .read_to_end(&mut self.partial)
            .and_then(|count| self.console.seek(SeekFrom::Start(at? + count as u64)))
            .map_err(|error| Failure::of("console-unreadable", &error))?;
        let mut lines = Vec::new();
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            let line = host_os::console::printable(&String::from_utf8_lossy(&line), 2000);
            self.text.push_str(&line);
            self.text.push('\n');
            lines.push(line);
        }
        if let Some(status) = ended.filter(|_| lines.is_empty()) {
            let complaint = std::fs::read_to_string(place.path("qemu.log")).unwrap_or_default();
            let message = format!("the machine ended ({status}): {}{}", complaint.trim(), tail(&self.text));
            return Err(Failure::new("machine-ended", message));
        }
        Ok(lines)
    }
}

/// The last lines of a console, for a message.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.iter().skip(lines.len().saturating_sub(12));
    last.map(|line| format!("\n  {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_secure_boot_tpm_nvme_nvdimm_and_the_stick_only_to_be_installed() {
        let place = Place::new("/m".into());
        let there: SocketAddr = "10.0.2.15:8443".parse().unwrap();
        let wires = Wires { guest: (1, there), operators: (2, there), vnc: Some(5901) };
        let with = arguments(&place, &wires, true).join(" ");
        for part in [
            "property=secure,value=on",
            "tpm-crb",
            "nvme,drive=disk",
            "nvdimm,memdev=nvdimm",
            "usb-storage",
            "hostfwd=tcp:127.0.0.1:1-10.0.2.15:8443",
            "i6300esb",
        ] {
            assert!(with.contains(part), "{part}: {with}");
        }
        let without = arguments(&place, &Wires { vnc: None, ..wires }, false).join(" ");
        assert!(!without.contains("usb-storage") && without.contains("-display none"), "{without}");
    }

    #[test]
    fn a_new_machine_is_empty_and_keeps_nothing_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let release = dir.path().join("release");
        std::fs::create_dir(&release).unwrap();
        let place = Place::new(dir.path().join("machine"));
        assert_eq!(place.make(&release).unwrap_err().code, "release-without-host");
        std::fs::write(release.join(names::FIRMWARE), "code").unwrap();
        std::fs::write(release.join(names::VARIABLES), "variables").unwrap();
        place.make(&release).unwrap();
        assert!(!place.is_installed());
        std::fs::create_dir(place.path("tpm")).unwrap();
        std::fs::write(place.path("disk.img"), "old").unwrap();
        place.note_installed().unwrap();
        assert!(place.is_installed());
        place.make(&release).unwrap();
        assert!(!place.is_installed() && !place.path("tpm").exists());
        assert_eq!(std::fs::metadata(place.path("disk.img")).unwrap().len(), DISK);
    }
}
