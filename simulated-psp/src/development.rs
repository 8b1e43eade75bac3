//! The development root; `development/README.md` says why its keys are public.

/// Root certificate, DER.
pub(crate) const ARK: &[u8] = include_bytes!("../development/ark.der");
/// Intermediate certificate, DER.
#[cfg(feature = "chip")]
pub(crate) const ASK: &[u8] = include_bytes!("../development/ask.der");
/// Private key of the intermediate, PKCS#8. Worthless by design.
#[cfg(feature = "chip")]
pub(crate) const ASK_KEY: &[u8] = include_bytes!("../development/ask.pkcs8.der");
