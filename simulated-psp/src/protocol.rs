//! Requests of the guest and responses of the simulated PSP.
//!
//! They travel over the virtio-serial port [`PORT`] as frames of `host_guest` (32-bit little-endian length, then
//! JSON). One request, one response, in order. On hardware the same questions go to the PSP as encrypted guest
//! messages; the fields here are those of MSG_REPORT_REQ and MSG_KEY_REQ (SEV-SNP firmware ABI, AMD document 56860).

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// Name of the virtio-serial port (`/sys/class/virtio-ports/*/name`).
pub const PORT: &str = "redoubt.psp";
/// Length of an attestation report, in bytes.
pub const REPORT_LENGTH: usize = 1184;

/// What the guest asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "type")]
pub enum Request {
    /// An attestation report with the certificates that endorse it (MSG_REPORT_REQ; extended guest request).
    Report {
        /// REPORT_DATA, what the guest wants to have bound.
        report_data: Bytes<64>,
        /// VMPL that the report shall state, 0 to 3.
        vmpl: u32,
    },
    /// A key that this chip gives to this guest only (MSG_KEY_REQ).
    DerivedKey(KeyRequest),
}

/// Body of MSG_KEY_REQ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// Key from which to derive (ROOT_KEY_SELECT).
    pub root: KeyRoot,
    /// What of the guest to mix in (GUEST_FIELD_SELECT).
    pub fields: FieldSelect,
    /// VMPL to mix in, 0 to 3.
    pub vmpl: u32,
    /// Mixed in with [`FieldSelect::GUEST_SVN`]; at most the guest's SVN.
    pub guest_svn: u32,
    /// TCB version in its encoding of 64 bits, mixed in with [`FieldSelect::TCB_VERSION`]; no component above
    /// COMMITTED_TCB.
    pub tcb_version: u64,
}

/// ROOT_KEY_SELECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRoot {
    /// The root of the chip's endorsement key: bound to this chip.
    Vcek,
    /// The VM root key: bound to this chip and, on hardware, handed on by a migration agent.
    Vmrk,
}

/// GUEST_FIELD_SELECT: which properties of the guest are mixed into a derived key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FieldSelect(pub u64);

impl FieldSelect {
    /// Guest policy.
    pub const GUEST_POLICY: Self = Self(1 << 0);
    /// Image id of the ID block.
    pub const IMAGE_ID: Self = Self(1 << 1);
    /// Family id of the ID block.
    pub const FAMILY_ID: Self = Self(1 << 2);
    /// Launch measurement.
    pub const MEASUREMENT: Self = Self(1 << 3);
    /// Security version of the guest.
    pub const GUEST_SVN: Self = Self(1 << 4);
    /// TCB version.
    pub const TCB_VERSION: Self = Self(1 << 5);
    /// Every bit that is defined; others are refused.
    pub const DEFINED: Self = Self(0x3f);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for FieldSelect {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What the simulated PSP answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "type")]
pub enum Response {
    /// To [`Request::Report`].
    Report {
        /// The report as the firmware would give it (`outblob` of configfs-tsm).
        report: Box<Bytes<REPORT_LENGTH>>,
        /// Certificate table in the layout of the GHCB specification, section 4.1.8.1 (`auxblob` of configfs-tsm).
        certificates: Blob,
    },
    /// To [`Request::DerivedKey`].
    DerivedKey {
        /// The key.
        key: Bytes<32>,
    },
    /// The request cannot be answered.
    Refused {
        /// Status word of the guest message.
        status: Status,
        /// In words, for the guest's log.
        reason: String,
    },
}

/// Why a request was refused: status words of guest messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// 0x16: a field has a value that is not allowed.
    InvalidParameter,
    /// 0x27: the key cannot be derived as asked.
    InvalidKeySelection,
    /// Not of the ABI: the simulation itself failed.
    Internal,
}

/// `N` bytes, as base64 on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bytes<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Debug for Bytes<N> {
    // Some are keys: only the length is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{N} bytes]")
    }
}

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Blob::deserialize(deserializer)?.0;
        let length = bytes.len();
        let array = bytes.try_into().map_err(|_| de::Error::invalid_length(length, &"the fixed length"))?;
        Ok(Self(array))
    }
}

/// Bytes of any length, as base64 on the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<M: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug>(message: &M) {
        let mut frame = host_guest::encode(message).unwrap();
        assert_eq!(host_guest::decode::<M>(&mut frame).unwrap().as_ref(), Some(message));
    }

    #[test]
    fn messages_survive_the_wire() {
        round_trip(&Request::Report { report_data: Bytes([7; 64]), vmpl: 1 });
        round_trip(&Request::DerivedKey(KeyRequest {
            root: KeyRoot::Vmrk,
            fields: FieldSelect::MEASUREMENT | FieldSelect::TCB_VERSION,
            vmpl: 0,
            guest_svn: 3,
            tcb_version: u64::MAX,
        }));
        round_trip(&Response::Report {
            report: Box::new(Bytes([9; 1184])),
            certificates: Blob(vec![1, 2, 3]),
        });
        round_trip(&Response::DerivedKey { key: Bytes([5; 32]) });
        round_trip(&Response::Refused { status: Status::InvalidParameter, reason: "x".into() });
    }

    #[test]
    fn what_is_not_of_the_protocol_is_refused() {
        let good = serde_json::to_string(&Request::Report { report_data: Bytes([0; 64]), vmpl: 0 }).unwrap();
        assert!(serde_json::from_str::<Request>(&good).is_ok());
        for bad in [
            good.replace("\"vmpl\":0", "\"vmpl\":-1"),
            good.replace("\"vmpl\":0", "\"vmpl\":0,\"more\":1"),
            good.replace("AAAA==", "=="),
            good.replace("AAAA", "****"),
            good.replace("\"report\"", "\"other\""),
        ] {
            assert_ne!(bad, good);
            assert!(serde_json::from_str::<Request>(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn debug_output_shows_no_key() {
        let shown = format!("{:?}", Response::DerivedKey { key: Bytes([0x42; 32]) });
        assert!(shown.contains("[32 bytes]") && !shown.contains("66"), "{shown}");
    }
}
