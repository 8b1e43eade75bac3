//! The development root and its **public** private keys: anyone can sign with them (release/development/README.md).
//!
//! Behind the feature `development`, which no production program turns on.

use crate::{KeyError, Root, RootError, SigningKey, signing_key_from_pem};

/// The development root in the canonical form: three keys, threshold two.
pub const ROOT: &[u8] = include_bytes!("../development/root.json");

const KEYS: [&str; 3] = [
    include_str!("../development/key-1.pem"),
    include_str!("../development/key-2.pem"),
    include_str!("../development/key-3.pem"),
];

/// The development root. Whatever it approves is approved by nobody in particular.
pub fn root() -> Result<Root, RootError> {
    Root::from_bytes(ROOT)
}

/// The three development keys.
pub fn signing_keys() -> Result<[SigningKey; 3], KeyError> {
    let [one, two, three] = KEYS.map(signing_key_from_pem);
    Ok([one?, two?, three?])
}
