//! What is launched, as data, and what follows from it: the QEMU command line, and the launch measurement. No I/O.

mod snp;
#[cfg(test)]
mod tests;

pub use snp::{Encryption, EncryptionError, Identity, QEMU_GUEST_FEATURES, Snp};

use crate::nvram::Nvram;
use crate::placement::Placement;
use attestation::Measurement;
use attestation::measurement::{Firmware, Inputs, KernelHashes, LaunchError, VcpuType};
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

/// Port of the replica's HTTPS interface inside the guest.
pub const GUEST_PORT: u16 = 8443;
/// Serial number by which the guest finds its disk.
pub const DISK_SERIAL: &str = "redoubt-disk";

/// What stands between the guest and the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's translator: works everywhere, several times slower.
    Tcg,
}

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// The machine that protects the guest, or pretends to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platform {
    /// The production profile: the AMD Secure Processor.
    Snp(Box<Snp>),
    /// The virtual profile: an ordinary guest, the secure processor simulated on the host.
    Virtual {
        /// How the guest is executed.
        accel: Accel,
        /// QEMU's end of the simulated secure processor's port.
        psp: RawFd,
    },
}

/// Everything that is measured of a launch. Both the command line and the expected measurement follow from this one
/// value, so they cannot disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// Firmware image: `-bios`.
    pub firmware: PathBuf,
    /// What is in it.
    pub firmware_content: Firmware,
    /// Kernel image (bzImage): `-kernel`.
    pub kernel: PathBuf,
    /// SHA-256 of its content.
    pub kernel_sha256: [u8; 32],
    /// Initrd: `-initrd`.
    pub initrd: PathBuf,
    /// SHA-256 of its content.
    pub initrd_sha256: [u8; 32],
    /// Kernel command line: `-append`.
    pub command_line: String,
    /// Number of virtual processors: `-smp`.
    pub vcpus: u32,
    /// Their model: `-cpu` under SEV-SNP.
    pub vcpu_type: VcpuType,
    /// SEV_FEATURES.
    pub guest_features: u64,
}

impl Measured {
    /// The launch measurement that a guest started so must report.
    pub fn measurement(&self) -> Result<Measurement, LaunchError> {
        Inputs {
            firmware: self.firmware_content.clone(),
            kernel_hashes: KernelHashes::of_files(
                self.kernel_sha256,
                self.initrd_sha256,
                &self.command_line,
            )?,
            vcpus: self.vcpus,
            vcpu_type: self.vcpu_type,
            guest_features: self.guest_features,
        }
        .measurement()
    }
}

/// One launch. The paths of firmware, kernel and initrd name the very bytes that were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// See [`Platform`].
    pub platform: Platform,
    /// What is measured.
    pub measured: Measured,
    /// Memory of the guest, in MiB; not measured.
    pub memory_mib: u32,
    /// Disk image, raw.
    pub disk: PathBuf,
    /// What the guest that is the node has; one that only takes over or hands over the node's key has none of it.
    pub serving: Option<Serving>,
    /// QEMU's ends of the channels to the agent.
    pub channels: Channels,
}

/// What a guest needs to be the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// File or NVDIMM behind the NVRAM.
    pub nvram: Nvram,
    /// Which of the machine's processors and memory it gets; `None` leaves that to the kernel.
    pub placement: Option<Placement>,
    /// The way to its [`GUEST_PORT`].
    pub wire: Wire,
}

/// The guest's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// QEMU's own, which forwards this TCP port of the host's loopback to the guest.
    Port(u16),
    /// A tap device, and vhost-net for it where the kernel has that: file descriptors that QEMU inherits.
    Tap {
        /// The tap device.
        tap: RawFd,
        /// `/dev/vhost-net`.
        vhost: Option<RawFd>,
    },
}

/// QEMU's ends of socket pairs whose other ends the agent holds, as file descriptor numbers that QEMU inherits.
/// Pairs, not sockets in the file system: no other process can connect, no path can be too long or stale,
/// and each side sees at once when the other is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels {
    /// Serial console.
    pub console: RawFd,
    /// QEMU's own control protocol.
    pub qmp: RawFd,
    /// Port [`host_guest::PORT`].
    pub host: RawFd,
}

impl Launch {
    /// The arguments for `qemu-system-x86_64`: QEMU 7.2 and later, for SEV-SNP 9.1 and later.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments::default();
        let measured = &self.measured;
        let memory = self.memory_mib;
        let placement = self.serving.as_ref().and_then(|serving| serving.placement.as_ref());
        // Names of threads tell the agent which of them are processors.
        let pinned = placement.is_some_and(|placement| !placement.processors.is_empty());
        args.pair("-name", if pinned { "redoubt,debug-threads=on" } else { "redoubt" });
        // What a virtio device needs when the guest's memory is encrypted: it goes through the guest's DMA interface.
        let mut virtio = "disable-legacy=on";
        let mut psp = None;
        match &self.platform {
            Platform::Virtual { accel, psp: port } => {
                psp = Some(*port);
                match placement {
                    None => args.pair("-machine", "q35,usb=off,vmport=off"),
                    Some(placement) => {
                        args.pair("-machine", "q35,usb=off,vmport=off,memory-backend=memory");
                        let options = placement.memory_options();
                        args.pair(
                            "-object",
                            format!("memory-backend-memfd,id=memory,size={memory}M{options}"),
                        );
                    }
                }
                match accel {
                    Accel::Kvm => {
                        args.pair("-accel", "kvm");
                        // On a host that is itself translated, KVM's TSC-deadline timer fires minutes late and the guest
                        // sleeps for ever; without it the kernel takes the APIC's one-shot timer.
                        args.pair("-cpu", "host,-tsc-deadline");
                    }
                    Accel::Tcg => {
                        // Enough for the code of the guest's kernel and of a few modules, far below QEMU's default of
                        // 1 GiB.
                        args.pair("-accel", "tcg,thread=multi,tb-size=256");
                        args.pair("-cpu", "max");
                    }
                }
            }
            Platform::Snp(snp) => {
                virtio = "disable-legacy=on,iommu_platform=on";
                args.pair(
                    "-machine",
                    "q35,usb=off,vmport=off,kernel-irqchip=split,memory-backend=memory,confidential-guest-support=snp",
                );
                args.pair("-accel", "kvm");
                args.pair("-cpu", measured.vcpu_type.name());
                // KVM takes the guest's private pages from a file of its own; this one holds what the guest shares.
                let options = placement.map_or(",prealloc=off".into(), Placement::memory_options);
                args.pair(
                    "-object",
                    format!("memory-backend-memfd,id=memory,size={memory}M,share=on{options}"),
                );
                args.pair("-object", snp.object());
            }
        }
        args.pair("-smp", measured.vcpus.to_string());
        args.pair("-m", format!("{memory}M"));
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            args.flag(flag);
        }
        args.pair("-display", "none");
        // The agent's QEMU needs no new processes, privileges or scheduling rights once it runs.
        args.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");

        args.pair("-bios", &measured.firmware);
        args.pair("-kernel", &measured.kernel);
        args.pair("-initrd", &measured.initrd);
        args.pair("-append", &measured.command_line);

        if let Some(serving) = &self.serving {
            args.value("-object", |value| {
                value.push("memory-backend-file,id=nvram,share=on");
                if serving.nvram.nvdimm.is_some() {
                    // A devdax device is mapped in pages of 2 MiB only.
                    value.push(",align=2M");
                }
                value.push(format!(",size={},mem-path=", serving.nvram.bytes));
                value.push(escape(&serving.nvram.path));
            });
            args.pair("-device", "ivshmem-plain,memdev=nvram");
        }

        args.value("-blockdev", |value| {
            value.push("driver=file,node-name=disk,discard=unmap,filename=");
            value.push(escape(&self.disk));
        });
        args.pair("-device", format!("virtio-blk-pci,drive=disk,serial={DISK_SERIAL},{virtio}"));

        if let Some(Serving { wire, .. }) = self.serving {
            match wire {
                // Both families by name: with one of them named, QEMU turns the other off. Restricted, so that the guest
                // reaches neither this machine's own services (QEMU shows them at 10.0.2.2) nor the network behind it.
                Wire::Port(port) => args.pair(
                    "-netdev",
                    format!(
                        "user,id=net,ipv4=on,ipv6=on,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:{GUEST_PORT}"
                    ),
                ),
                Wire::Tap { tap, vhost } => {
                    let vhost = vhost.map(|vhost| format!(",vhost=on,vhostfd={vhost}")).unwrap_or_default();
                    args.pair("-netdev", format!("tap,id=net,fd={tap}{vhost}"));
                }
            }
            // Without the option ROM the firmware does not try to boot from the network.
            args.pair("-device", format!("virtio-net-pci,netdev=net,romfile=,{virtio}"));
        }

        let Channels { console, qmp, host } = self.channels;
        args.pair("-device", format!("virtio-serial-pci,{virtio}"));
        let channels = [("console", console), ("qmp", qmp), ("host", host)];
        for (id, fd) in channels.into_iter().chain(psp.map(|psp| ("psp", psp))) {
            args.pair("-chardev", format!("socket,id={id},fd={fd}"));
        }
        args.pair("-serial", "chardev:console");
        args.pair("-mon", "chardev=qmp,mode=control");
        args.pair("-device", format!("virtserialport,chardev=host,name={}", host_guest::PORT));
        if psp.is_some() {
            args.pair("-device", "virtserialport,chardev=psp,name=redoubt.psp");
        }
        args.0
    }
}

/// The arguments of the short-lived QEMU that shows whether KVM really boots this kernel.
pub fn probe_arguments(firmware: &std::path::Path, kernel: &std::path::Path) -> Vec<OsString> {
    let mut args = Arguments::default();
    args.pair("-machine", "q35,usb=off,vmport=off");
    args.pair("-accel", "kvm");
    args.pair("-cpu", "host");
    args.pair("-m", "256M");
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        args.flag(flag);
    }
    args.pair("-display", "none");
    args.pair("-bios", firmware);
    args.pair("-kernel", kernel);
    args.pair("-append", "console=ttyS0 panic=-1");
    args.pair("-serial", "stdio");
    args.0
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn pair(&mut self, option: &str, value: impl AsRef<std::ffi::OsStr>) {
        self.0.push(option.into());
        self.0.push(value.as_ref().to_owned());
    }

    fn value(&mut self, option: &str, fill: impl FnOnce(&mut OsString)) {
        let mut value = OsString::new();
        fill(&mut value);
        self.pair(option, value);
    }
}

/// QEMU splits option values at commas; a doubled comma stands for itself.
fn escape(path: &std::path::Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = Vec::with_capacity(path.as_os_str().len());
    for &byte in path.as_os_str().as_bytes() {
        if byte == b',' {
            bytes.push(b',');
        }
        bytes.push(byte);
    }
    OsString::from_vec(bytes)
}
