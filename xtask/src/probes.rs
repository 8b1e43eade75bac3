//! Records the hardware probes that hwspec's tests judge: boots Debian's kernel in QEMU machines of several kinds and
//! runs hwspec's probe in them.

use crate::{Consent, setup, tools};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Longest run of one machine; firmware with UEFI alone takes a minute without KVM.
const PATIENCE: Duration = Duration::from_secs(400);
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Folders of Debian's modules that the probe's devices and registers need.
const MODULES: &[&str] = &[
    "arch/x86/kernel",
    "block",
    "crypto",
    "drivers/acpi",
    "drivers/block",
    "drivers/char",
    "drivers/dax",
    "drivers/edac",
    "drivers/net/ethernet/intel/e1000e",
    "drivers/nvdimm",
    "drivers/nvme",
    "drivers/pps",
    "drivers/ptp",
    "drivers/scsi",
    "drivers/virtio",
    "drivers/watchdog",
    "fs/efivarfs",
    "lib",
];
/// PID 1 of the recording guest.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in msr nvme nfit nd_pmem e1000e ipmi_si ipmi_devintf i6300esb megaraid_sas efivarfs amd64_edac; do
    /bin/busybox modprobe $module
done
[ -d /sys/firmware/efi ] && /bin/busybox mount -t efivarfs efivarfs /sys/firmware/efi/efivars
for port in /sys/class/net/e*; do [ -e $port ] && /bin/busybox ip link set ${port##*/} up; done
# Drives, TPM and links come up in the background.
/bin/busybox sleep 5
/bin/busybox stty -F /dev/ttyS1 raw
echo "$0 probes" > /dev/ttyS1
/probe /tmp > /dev/ttyS1
/bin/busybox poweroff -f
"#;

/// Options of `record-probes`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    consent: Consent,
    /// Only these machines
    machines: Vec<String>,
}

/// A kind of machine.
struct Machine {
    name: &'static str,
    /// QEMU's arguments without disks and such.
    arguments: &'static [&'static str],
    /// Sizes of the NVMe drives in bytes, and the SMART critical warning that each reports.
    nvme: &'static [(u64, u8)],
    /// Modules of 32 GB that SMBIOS lists, though the guest has less.
    dimms: u8,
    nvdimm: bool,
    /// Major version of the TPM.
    tpm: Option<u8>,
    uefi: bool,
}

const MACHINES: &[Machine] = &[
    Machine {
        name: "qemu-milan-two-sockets",
        arguments: &[
            "-machine",
            "q35,nvdimm=on,nvdimm-persistence=mem-ctrl",
            "-cpu",
            "EPYC-Milan",
            "-m",
            "2G,slots=2,maxmem=8G",
            "-smp",
            "8,sockets=2,cores=2,threads=2",
            "-object",
            "memory-backend-ram,id=a,size=1G",
            "-object",
            "memory-backend-ram,id=b,size=1G",
            "-numa",
            "node,memdev=a,cpus=0-3",
            "-numa",
            "node,memdev=b,cpus=4-7",
            "-smbios",
            "type=0,vendor=American Megatrends International,version=2.9,date=02/14/2025,uefi=on",
            "-smbios",
            "type=1,manufacturer=Supermicro,product=AS -1124US-TNRP",
            "-smbios",
            "type=4,sock_pfx=P,current-speed=3000,max-speed=3700",
            "-device",
            "ipmi-bmc-sim,id=bmc",
            "-device",
            "isa-ipmi-kcs,bmc=bmc",
            "-device",
            "i6300esb",
            "-device",
            "amd-iommu",
            "-netdev",
            "user,id=n0",
            "-device",
            "e1000e,netdev=n0",
            "-netdev",
            "user,id=n1",
            "-device",
            "e1000e,netdev=n1",
        ],
        nvme: &[(6_401_252_745_216, 0); 5],
        dimms: 16,
        nvdimm: true,
        tpm: Some(2),
        // SeaBIOS stumbles over so many devices and leaves out the ACPI tables of NVDIMM, TPM and IOMMU.
        uefi: true,
    },
    Machine {
        name: "qemu-rome-dying-drive-raid",
        arguments: &[
            "-machine",
            "q35",
            "-cpu",
            "EPYC-Rome",
            "-m",
            "1G",
            "-smp",
            "4,sockets=1,cores=2,threads=2",
            "-smbios",
            "type=0,vendor=Dell Inc.,version=1.2.3,date=06/01/2020",
            "-smbios",
            "type=1,manufacturer=Dell Inc.,product=PowerEdge R6525",
            "-device",
            "megasas-gen2",
            "-netdev",
            "user,id=n0",
            "-device",
            "e1000e,netdev=n0",
        ],
        nvme: &[(3_200_631_791_616, 0), (3_200_631_791_616, 4), (1_920_383_410_176, 0)],
        dimms: 7,
        nvdimm: false,
        tpm: Some(1),
        uefi: false,
    },
    Machine {
        name: "qemu-intel-desktop",
        arguments: &[
            "-machine",
            "pc",
            "-cpu",
            "Skylake-Client",
            "-m",
            "1G",
            "-smp",
            "2",
            "-smbios",
            "type=1,manufacturer=Some Maker,product=Office Computer",
        ],
        nvme: &[],
        dimms: 0,
        nvdimm: false,
        tpm: None,
        uefi: false,
    },
    Machine {
        name: "qemu-uefi-nvdimm",
        arguments: &["-machine", "q35,nvdimm=on", "-cpu", "EPYC", "-m", "1G,slots=2,maxmem=4G", "-smp", "2"],
        nvme: &[(800_166_076_416, 0)],
        dimms: 0,
        nvdimm: true,
        tpm: Some(2),
        uefi: true,
    },
];

/// Records the probes into hwspec/tests/probes.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run(options.consent, &[setup::FOR_PROBES])?;
    for name in &options.machines {
        ensure!(MACHINES.iter().any(|machine| machine.name == *name), "there is no machine {name}");
    }
    let work = tools::target().join("probes");
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let (kernel, initrd) = images(&work)?;
    for machine in MACHINES {
        if !options.machines.is_empty() && !options.machines.iter().any(|name| name == machine.name) {
            continue;
        }
        eprintln!("== {}", machine.name);
        let started = Instant::now();
        let probe = record(machine, &kernel, &initrd)?;
        let out = tools::repository().join(format!("hwspec/tests/probes/{}.json", machine.name));
        fs::write(&out, format!("{probe:#}\n")).with_context(|| format!("cannot write {}", out.display()))?;
        eprintln!("{} after {:.0} s", out.display(), started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Kernel and initrd of the recording guest.
fn images(work: &Path) -> Result<(PathBuf, PathBuf)> {
    let root = work.join("debian");
    if !root.exists() {
        let depends = tools::output(tools::command("apt-cache").args(["depends", "linux-image-amd64"]))?;
        let image = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .context("apt-cache names no kernel behind linux-image-amd64; run apt-get update")?;
        tools::run(Command::new("apt-get").current_dir(work).args([
            "-q",
            "download",
            image,
            "busybox-static",
        ]))?;
        let unpacked = work.join("debian.part");
        for entry in fs::read_dir(work)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                tools::run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&unpacked))?;
            }
        }
        fs::rename(&unpacked, &root)?;
    }
    let version = only_name(&root.join("lib/modules"))?;
    tools::run(
        tools::command("cargo")
            .args(["build", "--locked", "-p", "hwspec", "--example", "probe", "--target", TARGET])
            .env("RUSTFLAGS", "-C target-feature=+crt-static"),
    )?;
    let busybox = root.join("bin/busybox");
    let tree = work.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let modules = tree.join("lib/modules").join(&version);
    fs::create_dir_all(tree.join("bin"))?;
    fs::copy(&busybox, tree.join("bin/busybox"))?;
    fs::copy(tools::target().join(TARGET).join("debug/examples/probe"), tree.join("probe"))?;
    fs::write(tree.join("init"), INIT)?;
    tools::run(Command::new("chmod").arg("755").arg(tree.join("init")))?;
    for folder in MODULES {
        let from = root.join("lib/modules").join(&version).join("kernel").join(folder);
        let into = modules.join("kernel").join(folder);
        fs::create_dir_all(into.parent().context("a folder without parent")?)?;
        tools::run(Command::new("cp").arg("-r").arg(from).arg(into))?;
    }
    tools::run(Command::new(&busybox).args(["depmod", "-b"]).arg(&tree).arg(&version).stderr(Stdio::null()))?;
    let initrd = work.join("initrd");
    let pack = "find . -print0 | cpio --null --create --format=newc --quiet";
    tools::run(Command::new("sh").current_dir(&tree).args(["-c", pack]).stdout(fs::File::create(&initrd)?))?;
    Ok((root.join(format!("boot/vmlinuz-{version}")), initrd))
}

fn only_name(folder: &Path) -> Result<String> {
    let mut names = fs::read_dir(folder)?;
    let name = names.next().with_context(|| format!("{} is empty", folder.display()))??.file_name();
    name.into_string().ok().context("a name that is no text")
}

/// Ends when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn record(machine: &Machine, kernel: &Path, initrd: &Path) -> Result<serde_json::Value> {
    let folder = tempfile::tempdir().context("cannot make a folder for the machine")?;
    let path = |name: &str| folder.path().join(name);
    let show = |name: &str| path(name).display().to_string();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg,thread=multi",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ])
    .arg("-kernel")
    .arg(kernel)
    .arg("-initrd")
    .arg(initrd)
    .args(["-append", "console=ttyS0 panic=-1 no_timer_check"])
    .args(["-serial", &format!("file:{}", show("console")), "-serial", &format!("file:{}", show("probe"))])
    .args(machine.arguments);
    for (number, (bytes, warning)) in machine.nvme.iter().enumerate() {
        let file = format!("nvme{number}");
        sparse(&path(&file), *bytes)?;
        let drive = format!("if=none,format=raw,id={file},file={}", show(&file));
        let device = format!("nvme,drive={file},serial={number},smart_critical_warning={warning}");
        qemu.args(["-drive", &drive, "-device", &device]);
    }
    for number in 0..machine.dimms {
        let file = format!("dimm{number}");
        fs::write(path(&file), smbios_dimm(number))?;
        qemu.args(["-smbios", &format!("file={}", show(&file))]);
    }
    if machine.nvdimm {
        sparse(&path("nvdimm"), 1 << 30)?;
        let backend = format!("memory-backend-file,id=nv,share=on,mem-path={},size=1G", show("nvdimm"));
        qemu.args(["-object", &backend, "-device", "nvdimm,memdev=nv,id=nv0"]);
    }
    let _tpm = machine.tpm.map(|version| start_tpm(&mut qemu, version, folder.path())).transpose()?;
    if machine.uefi {
        fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", path("vars"))?;
        qemu.args(["-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"]);
        qemu.args(["-drive", &format!("if=pflash,format=raw,file={}", show("vars"))]);
    }
    let mut child = Ended(qemu.stdin(Stdio::null()).spawn().context("cannot run qemu-system-x86_64")?);
    let end = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.0.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            let console = fs::read(path("console")).unwrap_or_default();
            bail!("the machine does not end; its console:\n{}", String::from_utf8_lossy(&console));
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    ensure!(status.success(), "QEMU ended with {status}");
    let kept = tools::target().join(format!("probes/{}.console", machine.name));
    fs::copy(path("console"), &kept).with_context(|| format!("cannot write {}", kept.display()))?;
    // UEFI writes to all serial ports, before PID 1 does.
    let bytes = fs::read(path("probe")).context("the machine wrote no probe")?;
    let text = String::from_utf8_lossy(&bytes);
    let probe = text.split_once("/init probes").map_or("", |(_, probe)| probe);
    serde_json::from_str(probe).with_context(|| format!("no probe was written; see {}", kept.display()))
}

fn sparse(path: &Path, bytes: u64) -> Result<()> {
    fs::File::create(path)?.set_len(bytes).with_context(|| format!("cannot make {}", path.display()))
}

fn start_tpm(qemu: &mut Command, version: u8, folder: &Path) -> Result<Ended> {
    let (state, socket) = (folder.join("tpm"), folder.join("tpm.sock"));
    fs::create_dir(&state)?;
    let mut swtpm = Command::new("swtpm");
    swtpm.args(["socket", "--tpmstate"]).arg(format!("dir={}", state.display()));
    swtpm.arg("--ctrl").arg(format!("type=unixio,path={}", socket.display()));
    if version == 2 {
        swtpm.arg("--tpm2");
    }
    let child = Ended(swtpm.spawn().context("cannot run swtpm")?);
    let end = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        ensure!(Instant::now() < end, "swtpm does not open its socket");
        std::thread::sleep(Duration::from_millis(20));
    }
    qemu.args(["-chardev", &format!("socket,id=tpm,path={}", socket.display())]);
    qemu.args(["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0"]);
    Ok(child)
}

/// A memory module of 32 GB with ECC: SMBIOS type 17 (DMTF DSP0134, section 7.18).
fn smbios_dimm(number: u8) -> Vec<u8> {
    let (socket, channel) = (number / 8, char::from(b'A' + number % 8));
    let mut area = [0; 0x5c];
    let mut put = |offset: usize, bytes: &[u8]| area[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x00, &[17, 0x5c, number, 0x11]);
    put(0x04, &[0x00, 0x10, 0xfe, 0xff]);
    put(0x08, &[72, 0, 64, 0]);
    // 7fffh: the size is in the extended field, in MiB.
    put(0x0c, &[0xff, 0x7f, 0x09, 0, 1, 2, 0x1a]);
    put(0x15, &3200u16.to_le_bytes());
    put(0x1b, &[2]);
    put(0x1c, &(32u32 << 10).to_le_bytes());
    put(0x20, &3200u16.to_le_bytes());
    let texts = format!("P{}-DIMM{channel}1\0P{socket} CHANNEL {channel}\0\0", socket + 1);
    [&area[..], texts.as_bytes()].concat()
}
