//! Installs the Debian packages that the other commands need.

use crate::{Consent, tools};
use anyhow::{Context, Result, bail};
use std::{
    io::{BufRead, IsTerminal, Write},
    path::Path,
    process::{Command, Stdio},
};

/// One thing that must be on the machine.
pub(crate) struct Need {
    /// How to see that it is there: a program on the PATH, or a file by its absolute path.
    probe: &'static str,
    /// Debian packages that bring it.
    packages: &'static [&'static str],
    /// Why.
    reason: &'static str,
}

const fn need(probe: &'static str, packages: &'static [&'static str], reason: &'static str) -> Need {
    Need { probe, packages, reason }
}

/// What compiling needs, `cargo clippy` too.
pub(crate) const FOR_BUILD: &[&Need] = &[
    &need("gcc", &["gcc", "libc6-dev"], "links the programs that run on this machine"),
    &need("/usr/include/tss2/tss2_esys.h", &["libtss2-dev"], "speaks to TPMs"),
    &need("pkg-config", &["pkg-config"], "finds libraries"),
];

/// What `up` needs beside [`FOR_BUILD`].
pub(crate) const FOR_UP: &[&Need] = &[
    &need("qemu-system-x86_64", &["qemu-system-x86"], "runs the node"),
    &need("node", &["nodejs"], "runs the Motoko compiler and the official agent"),
    &need("npm", &["npm"], "installs the Motoko compiler and the official agent"),
];

/// What the tests need beside [`FOR_UP`].
pub(crate) const FOR_TEST: &[&Need] = &[
    &need("chromium", &["chromium"], "reads the status page"),
    &need("cpio", &["cpio"], "oracle for the initrd"),
    &need("nft", &["nftables"], "oracle for the firewall"),
    &need("ip", &["iproute2"], "makes networks for tests"),
    &need("/usr/sbin/chronyd", &["chrony"], "oracle for authenticated time"),
    &need("disorderfs", &["disorderfs"], "shuffles files for the double build"),
    &need("fsck.erofs", &["erofs-utils"], "oracle for the host's root"),
    &need("openssl", &["openssl"], "oracle for TLS"),
    &need("fsck.fat", &["dosfstools"], "oracle for the boot partition"),
    &need("promtool", &["prometheus"], "oracle for the metrics"),
    &need("softhsm2-util", &["softhsm2"], "a token that keeps release keys"),
    &need("mcopy", &["mtools"], "oracle for the boot partition"),
    &need("sbverify", &["sbsigntool"], "oracle for Secure Boot signatures"),
    &need("sfdisk", &["fdisk"], "oracle for the partition table"),
    &need("zbarimg", &["zbar-tools"], "reads the code on a machine's screen"),
    &need("veritysetup", &["cryptsetup-bin"], "oracle for hash trees"),
    &need("swtpm", &["swtpm"], "is the TPM of machines that are installed"),
    &need("tpm2_checkquote", &["tpm2-tools"], "oracle for quotes and event logs"),
    &need("/usr/lib/systemd/systemd-measure", &["systemd"], "oracle for measured images"),
    // The interpreter alone is not enough: Debian keeps what a virtual environment needs in another package.
    &need("/usr/share/doc/python3-venv", &["python3-venv"], "oracle for launch measurements"),
];

/// What the benchmarks need beside [`FOR_UP`].
pub(crate) const FOR_BENCH: &[&Need] = &[
    &need("curl", &["curl"], "asks the node for its first answer"),
    &need("mmdebstrap", &["mmdebstrap"], "builds the reference system"),
    &need("mke2fs", &["e2fsprogs"], "builds the reference system's disk"),
    &need("/bin/busybox", &["busybox-static"], "is the first program of the host's reference"),
    &need("objcopy", &["binutils"], "takes the kernel out of the host's image"),
];

/// What recording hardware probes needs.
pub(crate) const FOR_PROBES: &[&Need] = &[
    &need("qemu-system-x86_64", &["qemu-system-x86"], "is the machines"),
    &need("swtpm", &["swtpm"], "is their TPM"),
    &need("/usr/share/OVMF/OVMF_CODE_4M.fd", &["ovmf"], "is their UEFI"),
    &need("cpio", &["cpio"], "packs the recording guest"),
];

/// Everything.
pub(crate) const FOR_ALL: &[&[&Need]] = &[FOR_BUILD, FOR_UP, FOR_TEST, FOR_BENCH];

/// Installs what is missing of these lists.
pub(crate) fn run(consent: Consent, lists: &[&[&Need]]) -> Result<()> {
    let missing: Vec<&Need> =
        lists.iter().flat_map(|l| l.iter().copied()).filter(|n| !present(n.probe)).collect();
    if missing.is_empty() {
        eprintln!("Debian packages: all there");
        return Ok(());
    }
    eprintln!("These Debian packages are missing:");
    for need in &missing {
        eprintln!("  {:<20} {}", need.packages.join(" "), need.reason);
    }
    let packages: Vec<&str> = missing.iter().flat_map(|n| n.packages.iter().copied()).collect();
    let by_hand = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if !present("apt-get") {
        bail!(
            "this is no Debian system (no apt-get); install what these packages bring, then run this again"
        );
    }
    let root = is_root()?;
    if !root && !present("sudo") {
        bail!("installing needs root and there is no sudo; as root run:\n  {by_hand}");
    }
    let interactive = std::io::stdin().is_terminal() && std::env::var_os("CI").is_none();
    if !root && !interactive && !consent.yes {
        bail!("installing needs root; run this, then try again:\n  sudo {by_hand}");
    }
    if interactive && !consent.yes && !agreed()? {
        bail!("nothing was installed; to do it by hand:\n  {by_hand}");
    }
    let apt = |arguments: &[&str]| -> Command {
        let mut command = if root { tools::command("apt-get") } else { tools::command("sudo") };
        if !root {
            command.arg("apt-get");
        }
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-q", "-y"])
            .args(arguments)
            .stdin(Stdio::null());
        command
    };
    tools::run(&mut apt(&["update"]))?;
    let mut install = vec!["install", "--no-install-recommends"];
    install.extend(&packages);
    tools::run(&mut apt(&install))?;
    match missing.iter().find(|n| !present(n.probe)) {
        Some(need) => bail!("{} is still missing after installing {}", need.probe, need.packages.join(" ")),
        None => Ok(()),
    }
}

fn present(probe: &str) -> bool {
    if probe.starts_with('/') {
        return Path::new(probe).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|d| d.join(probe).is_file())
}

fn is_root() -> Result<bool> {
    let id = Command::new("id").arg("-u").output().context("cannot run id")?;
    Ok(id.stdout.trim_ascii() == b"0")
}

fn agreed() -> Result<bool> {
    eprint!("Install them now? [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}
