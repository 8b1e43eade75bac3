//! Keys that the PSP derives for this guest on this chip (MSG_KEY_REQ, SEV-SNP firmware ABI, AMD document 56860).

use crate::sys;
use crate::vault::Key;
use std::fs::{File, OpenOptions};
use zeroize::Zeroizing;

/// Properties of the guest that are mixed into the key (GUEST_FIELD_SELECT): policy, measurement, TCB version.
/// Another guest, a debug policy or older firmware gets another key.
const FIELDS: u64 = 1 << 0 | 1 << 3 | 1 << 5;
/// The device of the kernel's driver.
const DEVICE: &str = "/dev/sev-guest";

/// Gives the key that this guest on this chip has at a TCB version.
pub trait KeySource: Send {
    /// Kind of source. Mixed into what is derived from its keys, so that kinds cannot be taken for one another.
    fn label(&self) -> &'static str;

    /// The key for this TCB version (64 bits, the report's encoding), at most the committed one.
    fn derive(&mut self, tcb_version: u64) -> Result<Key, KeyError>;
}

/// No key could be derived.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No driver.
    #[error("opening {DEVICE} failed: {0}; is this an SEV-SNP guest?")]
    Device(#[source] std::io::Error),
    /// The ioctl failed.
    #[error(
        "asking the PSP for a key failed: {errno} (exit information 0x{exit_info_2:x}); start the guest again"
    )]
    Ioctl {
        /// Error of the system call.
        errno: nix::Error,
        /// Error of firmware (low half) and hypervisor (high half).
        exit_info_2: u64,
    },
    /// The firmware refused.
    #[error(
        "the PSP refused a key for TCB version 0x{tcb_version:016x} with status 0x{status:x}; \
         0x16 or 0x27: the machine's firmware is older than the one before, update it"
    )]
    Refused {
        /// TCB version asked for.
        tcb_version: u64,
        /// Status word of MSG_KEY_RSP.
        status: u32,
    },
    /// The simulated PSP gave none.
    #[cfg(feature = "virtual")]
    #[error(transparent)]
    Simulated(#[from] simulated_psp::guest::ClientError),
}

/// The PSP, through Linux' driver.
#[derive(Debug)]
pub struct Hardware {
    device: File,
}

impl Hardware {
    /// Opens the driver's device.
    pub fn open() -> Result<Self, KeyError> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(KeyError::Device)?;
        Ok(Self { device })
    }
}

impl KeySource for Hardware {
    fn label(&self) -> &'static str {
        "SEV-SNP"
    }

    fn derive(&mut self, tcb_version: u64) -> Result<Key, KeyError> {
        let mut response = Zeroizing::new([0; 64]);
        sys::derived_key(&self.device, &encode_request(tcb_version), &mut response)
            .map_err(|(errno, exit_info_2)| KeyError::Ioctl { errno, exit_info_2 })?;
        decode_response(&response, tcb_version)
    }
}

/// `struct snp_derived_key_req`: root_key_select u32 (0: VCEK), reserved u32, guest_field_select u64, vmpl u32,
/// guest_svn u32, tcb_version u64.
fn encode_request(tcb_version: u64) -> [u8; 32] {
    let mut request = [0; 32];
    request[8..16].copy_from_slice(&FIELDS.to_le_bytes());
    request[24..].copy_from_slice(&tcb_version.to_le_bytes());
    request
}

/// MSG_KEY_RSP: status u32, 28 reserved bytes, key of 32 bytes.
fn decode_response(response: &[u8; 64], tcb_version: u64) -> Result<Key, KeyError> {
    let (head, key) = response.split_at(32);
    let status = head.first_chunk().map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes));
    let mut copy = Zeroizing::new([0; 32]);
    copy.copy_from_slice(key);
    if status == 0 { Ok(copy) } else { Err(KeyError::Refused { tcb_version, status }) }
}

/// The simulated PSP, over its port.
#[cfg(feature = "virtual")]
pub struct Simulated(pub std::sync::Arc<std::sync::Mutex<simulated_psp::guest::Client<File>>>);

#[cfg(feature = "virtual")]
impl KeySource for Simulated {
    fn label(&self) -> &'static str {
        "SIMULATED, not SEV-SNP"
    }

    fn derive(&mut self, tcb_version: u64) -> Result<Key, KeyError> {
        use simulated_psp::protocol::{FieldSelect, KeyRequest, KeyRoot};
        let request = KeyRequest {
            root: KeyRoot::Vcek,
            fields: FieldSelect(FIELDS),
            vmpl: 0,
            guest_svn: 0,
            tcb_version,
        };
        let mut client = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(Zeroizing::new(client.derived_key(request)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both blobs are written by hand from linux/sev-guest.h and the firmware ABI, tables for MSG_KEY_REQ and
    /// MSG_KEY_RSP; no hardware was at hand to record any.
    #[test]
    fn the_request_has_the_drivers_layout() {
        #[rustfmt::skip]
        let expected = [
            0, 0, 0, 0,                                      // root key: VCEK
            0, 0, 0, 0,                                      // reserved
            0x29, 0, 0, 0, 0, 0, 0, 0,                       // policy, measurement, TCB version
            0, 0, 0, 0,                                      // VMPL 0
            0, 0, 0, 0,                                      // guest SVN
            0x04, 0, 0, 0, 0, 0, 0x18, 0xd5,                 // TCB version
        ];
        assert_eq!(encode_request(0xd518_0000_0000_0004), expected);
    }

    #[test]
    fn the_response_is_a_key_only_with_status_zero() {
        let mut response = [0xee; 64];
        response[..4].fill(0);
        response[32..].copy_from_slice(&std::array::from_fn::<u8, 32, _>(|i| i as u8));
        assert_eq!(*decode_response(&response, 0).unwrap(), std::array::from_fn::<u8, 32, _>(|i| i as u8));
        response[0] = 0x16;
        assert!(matches!(
            decode_response(&response, 5),
            Err(KeyError::Refused { tcb_version: 5, status: 0x16 })
        ));
    }
}
