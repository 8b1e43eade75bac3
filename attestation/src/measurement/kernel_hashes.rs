//! The page by which the firmware checks kernel, initrd and command line (QEMU's `kernel-hashes=on`).
//!
//! Source: QEMU `target/i386/sev.c`, `SevHashTable`; edk2 `OvmfPkg/AmdSev/BlobVerifierLibSevHashes`.

use super::{LaunchError, gctx::PAGE};
use ring::digest::{Context, SHA256};

// GUIDs in memory order: the first three fields little endian.
const TABLE: [u8; 16] = guid(0x9438d606, 0x4f22, 0x4cc9, 0xb479_a793d411fd21);
const COMMAND_LINE: [u8; 16] = guid(0x97d02dd8, 0xbd20, 0x4c94, 0xaa78_e7714d36ab2a);
const INITRD: [u8; 16] = guid(0x44baf731, 0x3a2f, 0x4bd7, 0x9af1_41e29169781d);
const KERNEL: [u8; 16] = guid(0x4de79437, 0xabd2, 0x427f, 0xb835_d5b172d2045b);

/// Length of an entry, in bytes: GUID, u16 length, hash.
const ENTRY: usize = 16 + 2 + 32;
/// Length of the table that its header states.
const LENGTH: usize = 16 + 2 + 3 * ENTRY;
/// Length with the padding to 16 bytes.
pub(super) const PADDED: usize = LENGTH.next_multiple_of(16);

/// A GUID as UEFI stores it.
pub(super) const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// SHA-256 of what is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelHashes {
    /// Of the kernel's file.
    pub kernel: [u8; 32],
    /// Of the initrd's file; of nothing when there is none.
    pub initrd: [u8; 32],
    /// Of the command line with its closing NUL.
    pub command_line: [u8; 32],
}

/// SHA-256 of a file that is read piece by piece.
#[derive(Clone)]
pub struct FileHasher(Context);

impl Default for FileHasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl FileHasher {
    /// Takes the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The SHA-256 of all pieces.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.0.finish().as_ref());
        hash
    }
}

/// SHA-256 of some bytes.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = FileHasher::default();
    hasher.update(bytes);
    hasher.finish()
}

impl KernelHashes {
    /// Hashes files and command line; the latter without its closing NUL.
    pub fn of(kernel: &[u8], initrd: &[u8], command_line: &str) -> Result<Self, LaunchError> {
        Self::of_files(sha256(kernel), sha256(initrd), command_line)
    }

    /// From the SHA-256 of the files (that of nothing for no initrd), and the command line without its closing NUL.
    pub fn of_files(kernel: [u8; 32], initrd: [u8; 32], command_line: &str) -> Result<Self, LaunchError> {
        if let Some(position) = command_line.find('\0') {
            return Err(LaunchError::CommandLine(position));
        }
        let mut hasher = FileHasher::default();
        hasher.update(command_line.as_bytes());
        hasher.update(b"\0");
        Ok(Self { kernel, initrd, command_line: hasher.finish() })
    }

    /// The page around the table, which stands at the address's offset in it. The caller has checked that it fits.
    pub(super) fn page(&self, table_gpa: u32) -> [u8; PAGE] {
        let mut table = Vec::with_capacity(LENGTH);
        table.extend_from_slice(&TABLE);
        table.extend_from_slice(&(LENGTH as u16).to_le_bytes());
        for (guid, hash) in [(COMMAND_LINE, self.command_line), (INITRD, self.initrd), (KERNEL, self.kernel)]
        {
            table.extend_from_slice(&guid);
            table.extend_from_slice(&(ENTRY as u16).to_le_bytes());
            table.extend_from_slice(&hash);
        }
        let mut page = [0; PAGE];
        let offset = table_gpa as usize % PAGE;
        page[offset..offset + LENGTH].copy_from_slice(&table);
        page
    }
}
