//! The few requests to the kernel and the processor that no safe interface has.

#![allow(unsafe_code, reason = "ioctl, adjtimex and cpuid take raw memory or are intrinsics")]

use crate::nvme::LOG_PAGE;
use crate::sev::PLATFORM_STATUS;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `struct nvme_admin_cmd` (include/uapi/linux/nvme_ioctl.h).
#[repr(C)]
#[derive(Default)]
struct NvmeAdminCommand {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

/// `struct sev_issue_cmd` (include/uapi/linux/psp-sev.h), packed there.
#[repr(C, packed)]
struct SevIssueCommand {
    cmd: u32,
    data: u64,
    error: u32,
}

nix::ioctl_readwrite!(nvme_admin_command, b'N', 0x41, NvmeAdminCommand);
nix::ioctl_readwrite!(sev_issue_command, b'S', 0x0, SevIssueCommand);

/// Get Log Page (opcode 02h) of a controller; `group` is the endurance group for pages that have one. Changes nothing.
pub(super) fn nvme_log(controller: &File, page: u8, group: u16) -> io::Result<[u8; LOG_PAGE]> {
    let mut log = [0u8; LOG_PAGE];
    let mut command = NvmeAdminCommand {
        opcode: 0x02,
        nsid: u32::MAX,
        addr: log.as_mut_ptr() as u64,
        data_len: LOG_PAGE as u32,
        // Bits 31:16: double words less one.
        cdw10: ((LOG_PAGE as u32 / 4 - 1) << 16) | u32::from(page),
        cdw11: u32::from(group) << 16,
        timeout_ms: 5_000,
        ..Default::default()
    };
    // SAFETY: `command` has the layout that the kernel expects; it writes `data_len` bytes to `addr`, which is
    // `log`, alive until after the call.
    let status = unsafe { nvme_admin_command(controller.as_raw_fd(), &raw mut command) }?;
    // A positive result is the drive's own status.
    if status == 0 {
        Ok(log)
    } else {
        Err(io::Error::other(format!("the drive answers with status {status:#x}")))
    }
}

/// SNP_PLATFORM_STATUS of the Secure Processor. Changes nothing.
pub(super) fn snp_platform_status(device: &File) -> io::Result<[u8; PLATFORM_STATUS]> {
    /// Number in `enum` of include/uapi/linux/psp-sev.h.
    const SNP_PLATFORM_STATUS: u32 = 9;
    let mut status = [0u8; PLATFORM_STATUS];
    let mut command =
        SevIssueCommand { cmd: SNP_PLATFORM_STATUS, data: status.as_mut_ptr() as u64, error: 0 };
    // SAFETY: `command` has the layout that the kernel expects; it writes sizeof(struct sev_user_data_snp_status),
    // 32 bytes, to `data`, which is `status`, alive until after the call.
    unsafe { sev_issue_command(device.as_raw_fd(), &raw mut command) }?;
    Ok(status)
}

/// EAX, EBX, ECX and EDX of a leaf; `None` if the processor does not have it.
#[cfg(target_arch = "x86_64")]
pub(super) fn cpuid(leaf: u32) -> Option<[u32; 4]> {
    use std::arch::x86_64::__cpuid;
    let highest = __cpuid(leaf & 0x8000_0000).eax;
    (highest >= leaf).then(|| {
        let found = __cpuid(leaf);
        [found.eax, found.ebx, found.ecx, found.edx]
    })
}

/// No other processor has CPUID.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn cpuid(_leaf: u32) -> Option<[u32; 4]> {
    None
}

/// Whether something keeps the system clock right, by the kernel. Changes nothing.
pub(super) fn clock_synchronised() -> io::Result<bool> {
    // SAFETY: all fields are numbers, for which zero bytes are a value; `modes` 0 only asks.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole `timex`, alive during the call.
    match unsafe { libc::adjtimex(&raw mut timex) } {
        -1 => Err(io::Error::last_os_error()),
        state => Ok(state != libc::TIME_ERROR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<NvmeAdminCommand>(), 72);
        assert_eq!(size_of::<SevIssueCommand>(), 16);
    }

    #[test]
    fn the_kernel_answers() {
        clock_synchronised().unwrap();
        #[cfg(target_arch = "x86_64")]
        assert_ne!(cpuid(0), None);
        assert_eq!(cpuid(0xffff_ffff), None);
        // What is no NVMe drive and no Secure Processor says so.
        let other = File::open("/dev/null").unwrap();
        assert!(nvme_log(&other, 2, 0).is_err() && snp_platform_status(&other).is_err());
    }
}
