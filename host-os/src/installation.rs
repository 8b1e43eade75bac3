//! What the installer made of this machine: its name, its operator, and its own key.

use crate::decommission::Signer;
use crate::slots;
use installer::config::{Configuration, Identity, Signed};
use installer::layout::labels;
use installer::linux::Device;
use installer::record::{self, Kind};
use installer::run::Medium;
use std::path::PathBuf;

/// Where PID 1 leaves the configuration that it has verified.
pub(crate) const CONFIGURATION: &str = "/run/configuration.json";

/// The configuration of this machine, if it was installed; on a machine of its own only.
pub fn read() -> Option<Configuration> {
    let bytes = std::fs::read(CONFIGURATION).ok()?;
    Some(Signed::parse(&bytes).ok()?.configuration)
}

/// Fingerprint of the operator's key.
pub fn operator(configuration: &Configuration) -> Option<[u8; 32]> {
    let text = configuration.operator.checked().ok()?.fingerprint?;
    hex::decode(text).ok()?.try_into().ok()
}

/// The partition with the node's own key and configuration.
pub(crate) fn records() -> Option<PathBuf> {
    slots::own_partition(labels::CONFIG)
}

/// Signs with the node's own key, if it is still there.
pub(crate) fn signer() -> Option<Signer> {
    let mut area = vec![0; record::AREA];
    Device::open_read_only(&records()?).ok()?.read(0, &mut area).ok()?;
    // Encrypted, it says only that it was not erased; PID 1 has opened it.
    let (_, content) = record::read(&area, Kind::Identity)?;
    let opened = std::fs::read(crate::tpm::records::IDENTITY).ok();
    let identity: Identity = serde_json::from_slice(opened.as_deref().unwrap_or(content)).ok()?;
    let public_key = identity.public_key().ok()?;
    Some(Box::new(move |bytes| (public_key.clone(), identity.sign(bytes).unwrap_or_default())))
}
