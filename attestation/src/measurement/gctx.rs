//! The launch digest as a chain of page records: SNP_LAUNCH_UPDATE (AMD document 56860, structure PAGE_INFO).

use super::{Measurement, sha384};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// VMSA pages are recorded at this address: all ones, page-aligned, within 52 bits less the C-bit.
const VMSA_GPA: u64 = 0xffff_ffff_f000;
/// Length of PAGE_INFO, in bytes.
const PAGE_INFO: usize = 0x70;

/// PAGE_TYPE.
#[derive(Clone, Copy)]
#[repr(u8)]
enum PageType {
    Normal = 1,
    Vmsa = 2,
    Zero = 3,
    Secrets = 5,
    Cpuid = 6,
}

/// Digest of the launch so far.
pub(crate) struct Gctx([u8; 48]);

impl Gctx {
    pub(crate) const fn new(seed: [u8; 48]) -> Self {
        Self(seed)
    }

    pub(crate) const fn finish(&self) -> Measurement {
        Measurement(self.0)
    }

    /// Measured with their contents. `pages` are whole pages.
    pub(crate) fn normal_pages(&mut self, gpa: u64, pages: &[u8]) {
        for (gpa, page) in (gpa..).step_by(PAGE).zip(pages.chunks_exact(PAGE)) {
            self.update(PageType::Normal, gpa, sha384(page));
        }
    }

    /// `size` is in bytes, of whole pages.
    pub(crate) fn zero_pages(&mut self, gpa: u64, size: u32) {
        for gpa in (gpa..gpa + u64::from(size)).step_by(PAGE) {
            self.update(PageType::Zero, gpa, [0; 48]);
        }
    }

    pub(crate) fn secrets_page(&mut self, gpa: u64) {
        self.update(PageType::Secrets, gpa, [0; 48]);
    }

    pub(crate) fn cpuid_page(&mut self, gpa: u64) {
        self.update(PageType::Cpuid, gpa, [0; 48]);
    }

    /// `contents` is the SHA-384 of the page.
    pub(crate) fn vmsa_page(&mut self, contents: [u8; 48]) {
        self.update(PageType::Vmsa, VMSA_GPA, contents);
    }

    fn update(&mut self, page_type: PageType, gpa: u64, contents: [u8; 48]) {
        let mut info = [0; PAGE_INFO];
        info[..0x30].copy_from_slice(&self.0);
        info[0x30..0x60].copy_from_slice(&contents);
        info[0x60..0x62].copy_from_slice(&(PAGE_INFO as u16).to_le_bytes());
        info[0x62] = page_type as u8;
        // 0x63 to 0x67: not an initial migration image, no permissions for VMPL 1 to 3.
        info[0x68..].copy_from_slice(&gpa.to_le_bytes());
        self.0 = sha384(&info);
    }
}
