//! NVMe drives and PCI devices.

use super::{is_numbered, names, number, reason, sys, text};
use crate::nvme;
use crate::probe::{NvmeDrive, PciDevice, clean};
use crate::seen::Seen;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

pub(super) fn nvme() -> Seen<Vec<NvmeDrive>> {
    names("/sys/block", is_nvme_drive).map(|names| names.iter().map(|name| drive(name)).collect())
}

fn drive(name: &str) -> NvmeDrive {
    let block = Path::new("/sys/block").join(name);
    let Some(controller) = controller(&block.join("device")) else {
        return NvmeDrive { name: clean(name), ..NvmeDrive::default() };
    };
    // The controller's name is also its device node's.
    let node = Path::new("/dev").join(controller.file_name().unwrap_or_default());
    let log = |page, group| {
        File::open(&node)
            .and_then(|device| sys::nvme_log(&device, page, group))
            .map_or_else(|error| Seen::Unknown(reason(&node, &error)), Seen::Known)
    };
    NvmeDrive {
        name: clean(name),
        model: text(controller.join("model")),
        firmware: text(controller.join("firmware_rev")),
        // Block sizes in sysfs count sectors of 512 bytes, whatever the drive's own are.
        bytes: number(block.join("size")).map(|sectors| sectors.saturating_mul(512)),
        lanes: lanes(&controller.join("device/current_link_width")),
        lanes_max: lanes(&controller.join("device/max_link_width")),
        smart: log(nvme::SMART, 0).map(|page| nvme::smart(&page)),
        endurance_bytes: log(nvme::ENDURANCE_GROUP, 1).and_then(|page| {
            Seen::or(nvme::endurance_bytes(&page), "the drive does not state its endurance")
        }),
    }
}

/// Width of a link; the kernel has 0 or 255 for one that it does not know.
fn lanes(path: &Path) -> Seen<u64> {
    number(path)
        .and_then(|lanes| Seen::or(Some(lanes).filter(|lanes| (1..=32).contains(lanes)), "PCI does not tell"))
}

/// The controller of a drive. With multipathing the drive belongs to a subsystem, whose first controller serves.
fn controller(device: &Path) -> Option<PathBuf> {
    let device = fs::canonicalize(device).ok()?;
    let name = device.file_name()?.to_str()?;
    if is_numbered(name, "nvme") {
        return Some(device);
    }
    let controllers = names(device.to_str()?, |name| is_numbered(name, "nvme"));
    fs::canonicalize(device.join(controllers.get().ok()?.first()?)).ok()
}

/// `nvme0n1`, but not the hidden `nvme0c0n1` of a multipath controller.
fn is_nvme_drive(name: &str) -> bool {
    name.rsplit_once('n')
        .is_some_and(|(controller, namespace)| is_numbered(controller, "nvme") && is_numbered(namespace, ""))
}

pub(super) fn pci() -> Seen<Vec<PciDevice>> {
    let directory = "/sys/bus/pci/devices";
    names(directory, |_| true).map(|addresses| {
        let device = |address: &String| {
            let value = |file: &str| {
                let text = text(Path::new(directory).join(address).join(file));
                u32::from_str_radix(text.get().ok()?.strip_prefix("0x")?, 16).ok()
            };
            Some(PciDevice {
                address: clean(address),
                class: value("class")?,
                vendor: u16::try_from(value("vendor")?).ok()?,
                device: u16::try_from(value("device")?).ok()?,
            })
        };
        addresses.iter().filter_map(device).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_nvme_drives() {
        assert!(is_nvme_drive("nvme0n1") && is_nvme_drive("nvme12n2"));
        for other in ["nvme0c0n1", "nvme0", "nvmen1", "sda", "nvme0n1p1", "", "n"] {
            assert!(!is_nvme_drive(other), "{other}");
        }
    }
}
