//! What is launched, as data, and the QEMU command line that follows from it. No I/O.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

/// Port of the replica's HTTPS interface inside the guest.
pub const GUEST_PORT: u16 = 8443;
/// Serial number by which the guest finds its disk.
pub const DISK_SERIAL: &str = "redoubt-disk";

/// What stands between the guest and the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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

/// The machine that protects the guest, or pretends to. SEV-SNP hardware gets its own variant with the
/// parameters of its launch; nothing here stands in for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Platform {
    /// The virtual profile: an ordinary guest, the secure processor simulated on the host.
    Virtual {
        /// How the guest is executed.
        accel: Accel,
        /// QEMU's end of the simulated secure processor's port.
        psp: RawFd,
    },
}

/// One launch. The paths of firmware, kernel and initrd name the very bytes that were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// See [`Platform`].
    pub platform: Platform,
    /// Memory of the guest, in MiB.
    pub memory_mib: u32,
    /// Number of virtual processors; measured.
    pub vcpus: u32,
    /// Firmware image; measured.
    pub firmware: PathBuf,
    /// Kernel image (bzImage); measured.
    pub kernel: PathBuf,
    /// Initrd; measured.
    pub initrd: PathBuf,
    /// Kernel command line; measured.
    pub command_line: String,
    /// File behind the NVRAM.
    pub nvram: PathBuf,
    /// Its size in bytes: a power of two, because it becomes a PCI BAR.
    pub nvram_bytes: u64,
    /// Disk image, raw.
    pub disk: PathBuf,
    /// TCP port on the host's loopback that reaches the guest's [`GUEST_PORT`].
    pub https_port: u16,
    /// QEMU's ends of the channels to the agent.
    pub channels: Channels,
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
    /// The arguments for `qemu-system-x86_64`, for QEMU 7.2 and later.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments::default();
        let Platform::Virtual { accel, psp } = self.platform;
        args.pair("-name", "redoubt");
        args.pair("-machine", "q35,usb=off,vmport=off");
        match accel {
            Accel::Kvm => {
                args.pair("-accel", "kvm");
                args.pair("-cpu", "host");
            }
            Accel::Tcg => {
                // Enough for the code of the guest's kernel and of a few modules, far below QEMU's default of 1 GiB.
                args.pair("-accel", "tcg,thread=multi,tb-size=256");
                args.pair("-cpu", "max");
            }
        }
        args.pair("-smp", self.vcpus.to_string());
        args.pair("-m", format!("{}M", self.memory_mib));
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            args.flag(flag);
        }
        args.pair("-display", "none");
        // The agent's QEMU needs no new processes, privileges or scheduling rights once it runs.
        args.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");

        args.pair("-bios", &self.firmware);
        args.pair("-kernel", &self.kernel);
        args.pair("-initrd", &self.initrd);
        args.pair("-append", &self.command_line);

        args.value("-object", |value| {
            value.push("memory-backend-file,id=nvram,share=on");
            value.push(format!(",size={},mem-path=", self.nvram_bytes));
            value.push(escape(&self.nvram));
        });
        args.pair("-device", "ivshmem-plain,memdev=nvram");

        args.value("-blockdev", |value| {
            value.push("driver=file,node-name=disk,discard=unmap,filename=");
            value.push(escape(&self.disk));
        });
        args.pair("-device", format!("virtio-blk-pci,drive=disk,serial={DISK_SERIAL},disable-legacy=on"));

        let port = self.https_port;
        // Both families by name: with one of them named, QEMU turns the other off. Restricted, so that the guest
        // reaches neither this machine's own services (QEMU shows them at 10.0.2.2) nor the network behind it.
        args.pair(
            "-netdev",
            format!("user,id=net,ipv4=on,ipv6=on,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:{GUEST_PORT}"),
        );
        // Without the option ROM the firmware does not try to boot from the network.
        args.pair("-device", "virtio-net-pci,netdev=net,romfile=,disable-legacy=on");

        let Channels { console, qmp, host } = self.channels;
        args.pair("-device", "virtio-serial-pci,disable-legacy=on");
        for (id, fd) in [("console", console), ("qmp", qmp), ("host", host), ("psp", psp)] {
            args.pair("-chardev", format!("socket,id={id},fd={fd}"));
        }
        args.pair("-serial", "chardev:console");
        args.pair("-mon", "chardev=qmp,mode=control");
        args.pair("-device", format!("virtserialport,chardev=host,name={}", host_guest::PORT));
        args.pair("-device", "virtserialport,chardev=psp,name=redoubt.psp");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn example(accel: Accel) -> Launch {
        Launch {
            platform: Platform::Virtual { accel, psp: 14 },
            memory_mib: 1024,
            vcpus: 2,
            firmware: "/proc/self/fd/7".into(),
            kernel: "/proc/self/fd/8".into(),
            initrd: "/proc/self/fd/9".into(),
            command_line: "console=ttyS0 panic=5".into(),
            nvram: "/var/a,b/nvram.img".into(),
            nvram_bytes: 512 << 20,
            disk: "/var/a,b/disk.img".into(),
            https_port: 18443,
            channels: Channels { console: 11, qmp: 12, host: 13 },
        }
    }

    fn lines(arguments: Vec<OsString>) -> String {
        let mut text = String::new();
        for argument in arguments {
            let argument = argument.into_string().unwrap();
            text.push_str(if text.is_empty() || !argument.starts_with('-') { "" } else { "\n" });
            text.push_str(&argument);
            text.push(' ');
        }
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_virtual_command_line_is_as_recorded() {
        let expected = "\
-name redoubt
-machine q35,usb=off,vmport=off
-accel tcg,thread=multi,tb-size=256
-cpu max
-smp 2
-m 1024M
-nodefaults
-no-user-config
-no-reboot
-display none
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-bios /proc/self/fd/7
-kernel /proc/self/fd/8
-initrd /proc/self/fd/9
-append console=ttyS0 panic=5
-object memory-backend-file,id=nvram,share=on,size=536870912,mem-path=/var/a,,b/nvram.img
-device ivshmem-plain,memdev=nvram
-blockdev driver=file,node-name=disk,discard=unmap,filename=/var/a,,b/disk.img
-device virtio-blk-pci,drive=disk,serial=redoubt-disk,disable-legacy=on
-netdev user,id=net,ipv4=on,ipv6=on,restrict=on,hostfwd=tcp:127.0.0.1:18443-:8443
-device virtio-net-pci,netdev=net,romfile=,disable-legacy=on
-device virtio-serial-pci,disable-legacy=on
-chardev socket,id=console,fd=11
-chardev socket,id=qmp,fd=12
-chardev socket,id=host,fd=13
-chardev socket,id=psp,fd=14
-serial chardev:console
-mon chardev=qmp,mode=control
-device virtserialport,chardev=host,name=redoubt.host
-device virtserialport,chardev=psp,name=redoubt.psp";
        assert_eq!(lines(example(Accel::Tcg).arguments()), expected);
    }

    #[test]
    fn kvm_changes_the_accelerator_and_nothing_else() {
        let tcg = lines(example(Accel::Tcg).arguments());
        let kvm = lines(example(Accel::Kvm).arguments());
        let changed: Vec<_> = tcg.lines().zip(kvm.lines()).filter(|(a, b)| a != b).collect();
        assert_eq!(
            changed,
            [("-accel tcg,thread=multi,tb-size=256", "-accel kvm"), ("-cpu max", "-cpu host")]
        );
    }
}
