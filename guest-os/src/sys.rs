//! The one place with unsafe code: the ioctl of /dev/sev-guest takes addresses.
#![allow(unsafe_code, reason = "the kernel's interface to the PSP passes addresses in a structure")]

use std::fs::File;
use std::os::fd::AsRawFd;

/// `struct snp_guest_request_ioctl` of linux/sev-guest.h.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct GuestRequest {
    message_version: u8,
    request: u64,
    response: u64,
    /// Bits 31..0: error of the firmware; 63..32: error of the hypervisor.
    exit_info_2: u64,
}

nix::ioctl_readwrite!(snp_get_derived_key, b'S', 1, GuestRequest);

/// SNP_GET_DERIVED_KEY: `struct snp_derived_key_req` in, `struct snp_derived_key_resp` out. On failure also returns
/// the error that firmware or hypervisor gave.
pub(crate) fn derived_key(
    device: &File,
    request: &[u8; 32],
    response: &mut [u8; 64],
) -> Result<(), (nix::Error, u64)> {
    let mut call = GuestRequest {
        message_version: 1,
        request: request.as_ptr() as u64,
        response: response.as_mut_ptr() as u64,
        exit_info_2: 0,
    };
    // SAFETY: `call` is the structure that this ioctl takes (layout tested below). Its addresses are those of two
    // buffers that outlive the call and have the lengths that the kernel reads (32) and writes (64).
    match unsafe { snp_get_derived_key(device.as_raw_fd(), &raw mut call) } {
        Ok(_) => Ok(()),
        Err(errno) => Err((errno, call.exit_info_2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn the_structure_has_the_kernels_layout() {
        assert_eq!(size_of::<GuestRequest>(), 32);
        assert_eq!(offset_of!(GuestRequest, message_version), 0);
        assert_eq!(offset_of!(GuestRequest, request), 8);
        assert_eq!(offset_of!(GuestRequest, response), 16);
        assert_eq!(offset_of!(GuestRequest, exit_info_2), 24);
    }

    #[test]
    fn a_file_that_is_no_device_is_refused_by_the_kernel() {
        let file = tempfile::tempfile().unwrap();
        let mut response = [0; 64];
        assert_eq!(derived_key(&file, &[0; 32], &mut response), Err((nix::Error::ENOTTY, 0)));
    }
}
