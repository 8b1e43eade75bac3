//! The guest's configuration and the hash that binds it to the guest's reports. No I/O.

use crate::launch::GUEST_PORT;
use host_guest::{GuestConfig, Ipv4Config, Ipv6Config};
use sha2::{Digest, Sha256};
use std::net::Ipv4Addr;

/// A configuration as the exact text that the guest receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigText(String);

impl ConfigText {
    /// Fixes the text of `config`.
    pub fn new(config: &GuestConfig) -> Result<Self, serde_json::Error> {
        serde_json::to_string(config).map(Self)
    }

    /// A text that someone else fixed.
    pub fn from_text(text: String) -> Self {
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// HOST_DATA of the launch: SHA-256 of the text.
    pub fn host_data(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

/// Configuration of a guest behind QEMU's user network, whose addresses are fixed by QEMU
/// (its manual, "Using the user mode network stack"). The same for every virtual node, so a verifier can
/// compute HOST_DATA by itself.
pub fn virtual_guest() -> GuestConfig {
    GuestConfig {
        version: 1,
        ipv4: Some(Ipv4Config {
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
        }),
        ipv6: Ipv6Config::RouterAdvertisement,
        port: GUEST_PORT,
        task: host_guest::Task::Run,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_and_its_hash_are_as_recorded() {
        let text = ConfigText::new(&virtual_guest()).unwrap();
        assert_eq!(
            text.as_str(),
            r#"{"version":1,"ipv4":{"address":"10.0.2.15","prefix":24,"gateway":"10.0.2.2"},"ipv6":"router_advertisement","port":8443}"#
        );
        // printf '%s' '<the text above>' | sha256sum
        assert_eq!(
            hex::encode(text.host_data()),
            "ef6642206e73680aacdeed956d0d33f34f9ef7a9781a554ea9277e6c7ef247ce"
        );
        let back: GuestConfig = serde_json::from_str(text.as_str()).unwrap();
        assert_eq!(back, virtual_guest());
    }
}
