//! SMBIOS, UEFI, TPM and the management controller.

use super::{is_numbered, names, reason, text, text_or_absent};
use crate::probe::{Bmc, Firmware, Tpm, clean};
use crate::seen::Seen;
use crate::smbios::{MAX_TABLE, Smbios};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub(super) fn smbios() -> Seen<Smbios> {
    let path = "/sys/firmware/dmi/tables/DMI";
    let mut table = Vec::new();
    // One byte more than allowed, so that a longer table is refused and not cut.
    match File::open(path).and_then(|file| file.take(MAX_TABLE as u64 + 1).read_to_end(&mut table)) {
        Ok(_) => {
            Smbios::parse(&table).map_or_else(|error| Seen::Unknown(clean(error.to_string())), Seen::Known)
        }
        Err(error) => Seen::Unknown(reason(path, &error)),
    }
}

pub(super) fn probe(smbios: &Seen<Smbios>) -> Firmware {
    let from = |field: fn(&Smbios) -> &Option<String>| {
        smbios.clone().and_then(|tables| Seen::or(field(&tables).clone(), "SMBIOS does not say"))
    };
    let uefi = Path::new("/sys/firmware/efi").exists();
    Firmware {
        uefi: Seen::Known(uefi),
        uefi_version: if uefi { uefi_version() } else { Seen::unknown("the machine did not boot by UEFI") },
        secure_boot: variable(uefi, "SecureBoot"),
        setup_mode: variable(uefi, "SetupMode"),
        vendor: from(|tables| &tables.firmware_vendor),
        version: from(|tables| &tables.firmware_version),
        released_unix_s: smbios
            .clone()
            .and_then(|tables| Seen::or(tables.firmware_date, "SMBIOS has no readable date of the firmware")),
        system_vendor: from(|tables| &tables.system_vendor),
        system_product: from(|tables| &tables.system_product),
    }
}

/// A variable of one byte, 1 for on (UEFI specification, "Globally Defined Variables"). Without UEFI it is off.
fn variable(uefi: bool, name: &str) -> Seen<bool> {
    if !uefi {
        return Seen::Known(false);
    }
    if !names("/sys/firmware/efi/efivars", |_| true).get().is_ok_and(|names| !names.is_empty()) {
        return Seen::unknown(
            "efivarfs is not mounted: mount -t efivarfs efivarfs /sys/firmware/efi/efivars",
        );
    }
    let path = format!("/sys/firmware/efi/efivars/{name}-8be4df61-93ca-11d2-aa0d-00e098032b8c");
    match fs::read(&path) {
        // Four bytes of attributes come first.
        Ok(bytes) => Seen::or(bytes.get(4).map(|on| *on == 1), "the UEFI variable is too short"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::Known(false),
        Err(error) => Seen::Unknown(reason(path, &error)),
    }
}

/// Only the kernel's log has it: `efi: EFI v2.70 by American Megatrends`.
fn uefi_version() -> Seen<String> {
    let path = "/dev/kmsg";
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut log = match open {
        Ok(log) => log,
        Err(error) => return Seen::Unknown(reason(path, &error)),
    };
    let mut record = [0; 8192];
    // Each read gives one record, the oldest first; the end is an error because of O_NONBLOCK. EPIPE says that
    // records were overwritten meanwhile.
    for _ in 0..100_000 {
        match log.read(&mut record) {
            Ok(length) => {
                if let Some(version) = efi_banner(record.get(..length).unwrap_or_default()) {
                    return Seen::Known(version);
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => break,
        }
    }
    Seen::unknown("the kernel's log no longer has the line `efi: EFI v`")
}

fn efi_banner(record: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(record);
    let (_, rest) = text.split_once(";efi: EFI v")?;
    let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').take(16).collect();
    // The kernel prints the minor number with two digits, 2.70 for 2.7 (UEFI specification, "EFI_TABLE_HEADER").
    let (major, minor) = version.split_once('.')?;
    let minor: u32 = minor.parse().ok()?;
    Some(if minor.is_multiple_of(10) {
        format!("{major}.{}", minor / 10)
    } else {
        format!("{major}.{}.{}", minor / 10, minor % 10)
    })
}

pub(super) fn tpm() -> Tpm {
    let directory = "/sys/class/tpm/tpm0";
    let version =
        text_or_absent(&format!("{directory}/tpm_version_major"), "0").and_then(|major| {
            match major.as_str() {
                "2" => Seen::Known("2.0".to_owned()),
                "1" => Seen::Known("1.2".to_owned()),
                "0" => Seen::Known("none".to_owned()),
                other => Seen::unknown(format!("a TPM of version {other:.20}")),
            }
        });
    let banks = names(directory, |name| name.starts_with("pcr-"))
        .map(|names| names.iter().filter_map(|name| name.strip_prefix("pcr-")).map(clean).collect());
    Tpm { version, banks }
}

pub(super) fn bmc(smbios: &Seen<Smbios>) -> Bmc {
    let interfaces = names("/sys/class/ipmi", |name| is_numbered(name, "ipmi"));
    // The kernel's answer of the controller to Get Device ID.
    let devices = names("/sys/bus/platform/devices", |name| name.starts_with("ipmi_bmc"));
    let from = |file: &str| {
        devices.clone().and_then(|devices| match devices.first() {
            Some(device) => text(Path::new("/sys/bus/platform/devices").join(device).join(file)),
            None => Seen::unknown("the kernel talks to no management controller: modprobe ipmi_si"),
        })
    };
    Bmc {
        present: match interfaces {
            Seen::Known(interfaces) if !interfaces.is_empty() => Seen::Known(true),
            _ => smbios.clone().map(|tables| tables.management_controller),
        },
        ipmi_version: from("ipmi_version"),
        firmware: from("firmware_revision"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_banner() {
        let banner = |text: &str| efi_banner(text.as_bytes());
        assert_eq!(banner("6,1,0,-;efi: EFI v2.70 by American Megatrends\n").as_deref(), Some("2.7"));
        assert_eq!(banner("6,1,0,-;efi: EFI v2.31 by EDK II\n").as_deref(), Some("2.3.1"));
        for other in [
            "",
            "6,1,0,-;efi: ACPI=0x1",
            "6,1,0,-;efi: EFI v2",
            "6,1,0,-;efi: EFI v.",
            "6,9;said efi: EFI v2.70",
        ] {
            assert_eq!(banner(other), None, "{other}");
        }
    }
}
