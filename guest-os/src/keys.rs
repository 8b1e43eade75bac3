//! Keys that the PSP derives for this guest on this chip (MSG_KEY_REQ, SEV-SNP firmware ABI, AMD document 56860).

use crate::sys;
use crate::vault::Key;
use std::fs::{File, OpenOptions};
use zeroize::Zeroizing;

/// Properties of the guest that are mixed into the key (GUEST_FIELD_SELECT), which are all that every firmware knows:
/// policy, image id, family id, measurement, guest SVN, TCB version. Another guest, a debug policy, another ID block or
/// other firmware gets another key. (Bit 6, LAUNCH_MIT_VECTOR, needs a request of version 2, which Linux 6.12 does not
/// pass on.)
const FIELDS: u64 = 0x3f;
/// The device of the kernel's driver.
const DEVICE: &str = "/dev/sev-guest";

/// The versions for which a key is derived. They are stored beside what is sealed, never taken from the present: newer
/// firmware or a newer ID block must still be able to derive the older key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// TCB version (64 bits, the report's encoding), no part of it above the committed one.
    pub tcb_version: u64,
    /// Security version of the guest, at most that of its ID block.
    pub guest_svn: u32,
}

/// Gives the key that this guest on this chip has at a level.
pub trait KeySource: Send {
    /// Kind of source. Mixed into what is derived from its keys, so that kinds cannot be taken for one another.
    fn label(&self) -> &'static str;

    /// The key for this level.
    fn derive(&mut self, level: Level) -> Result<Key, KeyError>;
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
        "the PSP refused a key for TCB version 0x{:016x} and guest SVN {} with status 0x{status:x}; 0x16 or 0x27: \
         the machine's firmware or the guest's ID block is older than the one before, update it",
        level.tcb_version,
        level.guest_svn
    )]
    Refused {
        /// Level asked for.
        level: Level,
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

    fn derive(&mut self, level: Level) -> Result<Key, KeyError> {
        let mut response = Zeroizing::new([0; 64]);
        sys::derived_key(&self.device, &encode_request(level), &mut response)
            .map_err(|(errno, exit_info_2)| KeyError::Ioctl { errno, exit_info_2 })?;
        decode_response(&response, level)
    }
}

/// `struct snp_derived_key_req`: root_key_select u32 (0: VCEK), reserved u32, guest_field_select u64, vmpl u32,
/// guest_svn u32, tcb_version u64.
fn encode_request(level: Level) -> [u8; 32] {
    let mut request = [0; 32];
    request[8..16].copy_from_slice(&FIELDS.to_le_bytes());
    request[20..24].copy_from_slice(&level.guest_svn.to_le_bytes());
    request[24..].copy_from_slice(&level.tcb_version.to_le_bytes());
    request
}

/// MSG_KEY_RSP: status u32, 28 reserved bytes, key of 32 bytes.
fn decode_response(response: &[u8; 64], level: Level) -> Result<Key, KeyError> {
    let (head, key) = response.split_at(32);
    let status = head.first_chunk().map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes));
    let mut copy = Zeroizing::new([0; 32]);
    copy.copy_from_slice(key);
    if status == 0 { Ok(copy) } else { Err(KeyError::Refused { level, status }) }
}

/// The simulated PSP, over its port.
#[cfg(feature = "virtual")]
pub struct Simulated<S>(pub std::sync::Arc<std::sync::Mutex<simulated_psp::guest::Client<S>>>);

#[cfg(feature = "virtual")]
impl<S: std::io::Read + std::io::Write + Send> KeySource for Simulated<S> {
    fn label(&self) -> &'static str {
        "SIMULATED, not SEV-SNP"
    }

    fn derive(&mut self, level: Level) -> Result<Key, KeyError> {
        use simulated_psp::protocol::{FieldSelect, KeyRequest, KeyRoot};
        let request = KeyRequest {
            root: KeyRoot::Vcek,
            fields: FieldSelect(FIELDS),
            vmpl: 0,
            guest_svn: level.guest_svn,
            tcb_version: level.tcb_version,
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
            0x3f, 0, 0, 0, 0, 0, 0, 0,                       // policy, image, family, measurement, SVN, TCB version
            0, 0, 0, 0,                                      // VMPL 0
            7, 0, 0, 0,                                      // guest SVN
            0x04, 0, 0, 0, 0, 0, 0x18, 0xd5,                 // TCB version
        ];
        assert_eq!(encode_request(Level { tcb_version: 0xd518_0000_0000_0004, guest_svn: 7 }), expected);
    }

    #[test]
    fn the_response_is_a_key_only_with_status_zero() {
        let level = Level { tcb_version: 5, guest_svn: 0 };
        let mut response = [0xee; 64];
        response[..4].fill(0);
        response[32..].copy_from_slice(&std::array::from_fn::<u8, 32, _>(|i| i as u8));
        assert_eq!(
            *decode_response(&response, level).unwrap(),
            std::array::from_fn::<u8, 32, _>(|i| i as u8)
        );
        response[0] = 0x16;
        assert!(matches!(
            decode_response(&response, level),
            Err(KeyError::Refused { level: refused, status: 0x16 }) if refused == level
        ));
    }
}
