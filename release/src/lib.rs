//! Release manifests: hashes, measurements, m-of-n signatures. No I/O in the core.
//!
//! A **manifest** names everything one release of the guest consists of: each file by size and SHA-256, the
//! launch inputs that are no file, and the SNP launch measurement for every supported vCPU count. Hashes and
//! measurements stand in one signed document, so that neither exists without the other. The shape follows
//! The Update Framework (TUF): an **envelope** `{"signatures":[...],"signed":{...}}` around the signed part,
//! ed25519 keys, key ids that are hashes of keys, and a **root** with keys and a threshold.
//!
//! [`verify`] turns bytes into an [`ApprovedManifest`]; nothing else makes one. Whoever launches or judges a
//! guest takes that type, so an unverified manifest cannot reach them.
//!
//! # Canonical form
//!
//! A document has exactly one representation in bytes, and every other one is refused
//! ([`ManifestError::NotCanonical`]), so no two programs can read one signed document differently:
//!
//! - UTF-8 JSON without any white space and without a line feed at the end;
//! - only objects, arrays, strings and integers; no `null`, no booleans, no fractions, no exponents;
//! - object members sorted by key in ascending byte order, each key once;
//! - strings and keys consist of the printable ASCII characters 0x20 to 0x7e; `"` and `\` are written `\"` and
//!   `\\`, no other escape is used;
//! - integers are 0 to 2^53 - 1 in decimal, without sign or leading zeros;
//! - `signatures` are sorted by `keyid` in ascending order, each key id once;
//! - hashes, measurements, keys and signatures are lower-case hexadecimal.
//!
//! Documents of this form are at the same time canonical by RFC 8785 (JCS) and by the OLPC rules that TUF
//! uses: the three differ only outside of it. What is signed is the canonical form of `signed`, that is, the
//! bytes as they stand in the envelope. A key id is the SHA-256 of the canonical form of
//! `{"keytype":"ed25519","keyval":{"public":"<hex>"},"scheme":"ed25519"}`.
//!
//! The parser enforces the form by the shortest means: it reads the document into types that allow no unknown
//! field, writes it again, and compares the bytes.
//!
//! # Differences from TUF
//!
//! TUF skips signatures that it cannot use. Here each signature must come from a key of the root and verify, or
//! the envelope is refused: an unusable signature is a mistake or an attack, and either deserves its name.

mod canonical;
#[cfg(feature = "development")]
pub mod development;
mod digest;
mod envelope;
mod manifest;
mod root;

pub use canonical::CanonicalError;
pub use digest::{Digest, KeyId, Measurement, ParseHexError};
pub use ed25519_dalek::SigningKey;
pub use envelope::{ApprovedManifest, Envelope, ManifestError, ProfileMismatch, SignError, sign, verify};
pub use manifest::{
    File, FileError, FileName, Files, Guest, InvalidManifest, Manifest, Profile, VcpuMeasurement,
};
pub use root::{KeyError, Root, RootError, key_id, signing_key_from_pem};

/// Longest manifest or root that is looked at, in bytes. A manifest of today has a few kilobytes.
pub const MAX_DOCUMENT: usize = 256 * 1024;
/// `_type` of the signed part of a manifest.
pub const MANIFEST_TYPE: &str = "redoubt-release";
/// `_type` of a root.
pub const ROOT_TYPE: &str = "redoubt-root";
/// `spec_version` of both document types: the version of the format, not of the release.
pub const SPEC_VERSION: u64 = 1;
