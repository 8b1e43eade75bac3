//! Release manifests: hashes, measurements, m-of-n signatures. No I/O in the core.
//!
//! A **manifest** names everything one release of the guest consists of: each file by size and SHA-256, the
//! launch inputs that are no file, and the SNP launch measurement for every supported vCPU type and count. Hashes and
//! measurements stand in one signed document, so that neither exists without the other. The shape follows
//! The Update Framework (TUF): an **envelope** `{"signatures":[...],"signed":{...}}` around the signed part,
//! ed25519 keys, key ids that are hashes of keys, and a **root** with keys, and roles with thresholds.
//!
//! | document | TUF role | says |
//! |---|---|---|
//! | root: [`RootContent`] | root | who speaks; a new one is signed by the old one's threshold and its own |
//! | manifest: [`Manifest`] | targets | what a release consists of |
//! | blessing: [`Blessing`] | snapshot and timestamp | which releases may run now, least security epoch, what is revoked |
//!
//! [`verify`] turns bytes into an [`ApprovedManifest`]; nothing else makes one. Whoever launches or judges a
//! guest takes that type, so an unverified manifest cannot reach them.
//!
//! # The signed part of a manifest
//!
//! | member | content |
//! |---|---|
//! | `_type`, `spec_version` | `redoubt-release`, 1 |
//! | `version`, `security_epoch`, `profile` | [`Manifest`] |
//! | `source_commit`, `input_lock` | commit of the sources; SHA-256 of the lock of all inputs |
//! | `inputs` | what else the build was made from: name to text |
//! | `guest.files.{kernel,initrd,firmware}` | `path`, `size` (bytes), `sha256`: [`File`] |
//! | `guest.command_line`, `guest.guest_features`, `guest.policy` | the other inputs of the launch: [`Guest`] |
//! | `guest.vcpu_type` | vCPU model that a node uses unless told otherwise; `measurements` has it |
//! | `guest.measurements` | list of `vcpu_type`, `vcpus`, `measurement`, ascending by type, then count: [`VcpuMeasurement`] |
//! | `guest.id_block` | optional: `family_id`, `image_id`, `id_key_digest`, optional `author_key_digest`: [`IdBlock`] |
//! | `host` | optional: the machine's own system, [`HostImages`] |
//! | `host.{uki,root,root_hash_tree}`, optional `host.installer` | `path`, `size`, `sha256`; each path of a manifest once |
//! | `host.uki_authenticode`, `host.verity_root_hash` | what Secure Boot keys sign; what the kernel verifies the root by |
//!
//! `manifest.schema.json` beside this crate's sources describes the same for other programs (JSON schema, draft
//! 2020-12).
//!
//! Both profiles have all of them. In `production` the firmware has SEV metadata and the measurements are the ones a
//! processor computes; in `virtual` the firmware has none, and they are those of a simulation, which no processor ever
//! computes (crate `attestation`, module `measurement`). The signatures of ID blocks, one for each measurement, are in
//! a file of their own ([`IdBlockSignatures`]) beside the manifest.
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
//! - TUF skips signatures that it cannot use. Here each signature must come from a key of the root and verify, or
//!   the envelope is refused: an unusable signature is a mistake or an attack, and either deserves its name.
//! - Snapshot and timestamp are one statement. Two different ones of one version are refused.
//! - Times are integers, in seconds since 1970, so that there is one way to write each.
//! - What has expired still forbids, and a node that has committed to a release may start it again: availability is the
//!   host's to break, and a guest that stops by itself would only help it ([`blessing`]).
//!
//! Otherwise a chain of roots and the statement under it get the verdict that the client `tough` gives: the tests generate
//! histories and ask both.

pub mod blessing;
mod canonical;
#[cfg(feature = "development")]
pub mod development;
mod digest;
mod document;
mod envelope;
mod id_block;
mod manifest;
mod root;
mod roots;
mod seen;

pub use blessing::{Authority, Blessing, Purpose, Refusal, Revoked, Standing};
pub use canonical::CanonicalError;
pub use digest::{Digest, KeyId, LaunchId, Measurement, P384Key, P384Signature, ParseHexError};
pub use document::{AttachError, Document, DocumentError, SignError, Signed, sign};
pub use ed25519_dalek::{SigningKey, VerifyingKey};
pub use envelope::{ApprovedManifest, Envelope, ManifestError, ProfileMismatch, verify};
pub use id_block::{
    AuthorSignature, BlockSignature, ID_BLOCK_FILE, IdBlockSignatures, IdBlockSignaturesError,
};
pub use manifest::{
    File, FileError, FileName, Files, Guest, HostImages, IdBlock, InvalidManifest, Manifest, Measured,
    MeasuredSection, MeasurementError, Profile, VcpuMeasurement,
};
pub use root::{
    InvalidRoot, KeyError, PublicKey, PublicKeyError, Role, RoleName, Roles, Root, RootContent, RootError,
    RootExpired, RootUpdateError, key_id, public_key_from_pem, public_key_to_pem, signing_key_from_pem,
    signing_key_to_pem,
};
pub use roots::{Roots, root_file};
pub use seen::{Seen, SeenError};

/// Name of the blessing in a release's directory.
pub const BLESSING_FILE: &str = "blessing.json";
/// Longest document that is looked at, in bytes. A manifest of today has a few kilobytes.
pub const MAX_DOCUMENT: usize = 256 * 1024;
/// `_type` of the signed part of a manifest.
pub const MANIFEST_TYPE: &str = "redoubt-release";
/// `_type` of the signatures of ID blocks.
pub const ID_BLOCK_TYPE: &str = "redoubt-id-blocks";
/// `_type` of the signed part of a root.
pub const ROOT_TYPE: &str = "redoubt-root";
/// `_type` of the signed part of a blessing.
pub const BLESSING_TYPE: &str = "redoubt-blessing";
/// `_type` of what a node has seen.
pub const SEEN_TYPE: &str = "redoubt-seen";
/// `spec_version` of all document types: the version of the format, not of the release.
pub const SPEC_VERSION: u64 = 1;
