//! Offsets of the fields, in bytes. Integers are little endian.

/// u32.
pub const VERSION: usize = 0x000;
/// u32.
pub const GUEST_SVN: usize = 0x004;
/// u64, [`super::GuestPolicy`].
pub const POLICY: usize = 0x008;
/// 16 bytes.
pub const FAMILY_ID: usize = 0x010;
/// 16 bytes.
pub const IMAGE_ID: usize = 0x020;
/// u32.
pub const VMPL: usize = 0x030;
/// u32; 1 is ECDSA P-384 with SHA-384.
pub const SIGNATURE_ALGO: usize = 0x034;
/// 8 bytes, [`super::TcbVersion`].
pub const CURRENT_TCB: usize = 0x038;
/// u64, [`super::PlatformInfo`].
pub const PLATFORM_INFO: usize = 0x040;
/// u32, [`super::KeyInfo`].
pub const KEY_INFO: usize = 0x048;
/// 64 bytes.
pub const REPORT_DATA: usize = 0x050;
/// 48 bytes.
pub const MEASUREMENT: usize = 0x090;
/// 32 bytes.
pub const HOST_DATA: usize = 0x0c0;
/// 48 bytes.
pub const ID_KEY_DIGEST: usize = 0x0e0;
/// 48 bytes.
pub const AUTHOR_KEY_DIGEST: usize = 0x110;
/// 32 bytes.
pub const REPORT_ID: usize = 0x140;
/// 32 bytes; all 0xff without a migration agent.
pub const REPORT_ID_MA: usize = 0x160;
/// 8 bytes, [`super::TcbVersion`]; the one for which the endorsement key was issued.
pub const REPORTED_TCB: usize = 0x180;
/// u8, version 3 and newer: combined family of CPUID leaf 1. Model and stepping follow.
pub const CPUID_FAMILY: usize = 0x188;
/// u8.
pub const CPUID_MODEL: usize = 0x189;
/// u8.
pub const CPUID_STEPPING: usize = 0x18a;
/// 64 bytes; Turin uses the first 8.
pub const CHIP_ID: usize = 0x1a0;
/// 8 bytes, [`super::TcbVersion`].
pub const COMMITTED_TCB: usize = 0x1e0;
/// Build, minor, major of the running firmware, u8 each.
pub const CURRENT_VERSION: usize = 0x1e8;
/// Build, minor, major of the committed firmware, u8 each.
pub const COMMITTED_VERSION: usize = 0x1ec;
/// 8 bytes, [`super::TcbVersion`].
pub const LAUNCH_TCB: usize = 0x1f0;
/// u64, version 5 and newer.
pub const LAUNCH_MIT_VECTOR: usize = 0x1f8;
/// u64, version 5 and newer.
pub const CURRENT_MIT_VECTOR: usize = 0x200;
/// R of the signature: 72 bytes, little endian, the upper 24 zero.
pub const SIGNATURE_R: usize = 0x2a0;
/// S of the signature, like R.
pub const SIGNATURE_S: usize = 0x2e8;
