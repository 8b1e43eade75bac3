//! The state in which QEMU and KVM start a vCPU: one page, measured.
//!
//! Source of the layout: Linux `struct sev_es_save_area` (AMD document 24593, table "VMSA layout"). Source of the
//! values: reset state of QEMU's x86 CPUs, with what KVM forces (EFER.SVME, CR4.MCE).

use super::{LaunchError, gctx::PAGE};
use std::{fmt, str::FromStr};

/// Where the first vCPU starts.
pub(super) const RESET_VECTOR: u32 = 0xffff_fff0;

/// A CPU model of QEMU with its CPUID signature (leaf 1, EAX), which stands in RDX at reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VcpuType {
    name: &'static str,
    signature: u32,
}

/// A CPUID signature from family, model and stepping, as CPUID packs them (AMD document 25481).
const fn signature(family: u32, model: u32, stepping: u32) -> u32 {
    let (extended, base) = if family > 0xf { (family - 0xf, 0xf) } else { (0, family) };
    (extended & 0xff) << 20 | (model >> 4 & 0xf) << 16 | base << 8 | (model & 0xf) << 4 | stepping & 0xf
}

const EPYC: u32 = signature(23, 1, 2);
const ROME: u32 = signature(23, 49, 0);
const MILAN: u32 = signature(25, 1, 1);
const GENOA: u32 = signature(25, 17, 0);
const TURIN: u32 = signature(26, 0, 0);

const fn of(name: &'static str, signature: u32) -> VcpuType {
    VcpuType { name, signature }
}

impl VcpuType {
    /// QEMU's `EPYC-v4`: the model to use, since its signature depends on no host.
    pub const EPYC_V4: Self = of("EPYC-v4", EPYC);

    /// QEMU's EPYC models with all their versions (`builtin_x86_defs` of `target/i386/cpu.c`). All versions of a
    /// model have one signature, hence one measurement.
    pub const ALL: &[Self] = &[
        of("EPYC", EPYC),
        of("EPYC-IBPB", EPYC),
        of("EPYC-v1", EPYC),
        of("EPYC-v2", EPYC),
        of("EPYC-v3", EPYC),
        Self::EPYC_V4,
        of("EPYC-v5", EPYC),
        of("EPYC-Rome", ROME),
        of("EPYC-Rome-v1", ROME),
        of("EPYC-Rome-v2", ROME),
        of("EPYC-Rome-v3", ROME),
        of("EPYC-Rome-v4", ROME),
        of("EPYC-Rome-v5", ROME),
        of("EPYC-Milan", MILAN),
        of("EPYC-Milan-v1", MILAN),
        of("EPYC-Milan-v2", MILAN),
        of("EPYC-Milan-v3", MILAN),
        of("EPYC-Genoa", GENOA),
        of("EPYC-Genoa-v1", GENOA),
        of("EPYC-Genoa-v2", GENOA),
        of("EPYC-Turin", TURIN),
        of("EPYC-Turin-v1", TURIN),
        of("EPYC-Turin-v2", TURIN),
    ];

    /// QEMU's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// The signature.
    #[must_use]
    pub const fn signature(self) -> u32 {
        self.signature
    }
}

impl fmt::Display for VcpuType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl FromStr for VcpuType {
    type Err = LaunchError;

    /// From QEMU's name of the model.
    fn from_str(name: &str) -> Result<Self, LaunchError> {
        let known = Self::ALL.iter().find(|model| model.name == name);
        known.copied().ok_or_else(|| LaunchError::VcpuType(name.to_owned()))
    }
}

/// Selector, attributes, limit, base of a segment, at an offset of the page.
const SEGMENTS: [(usize, u16, u16); 9] = [
    (0x00, 0, 0x93), // ES
    (0x20, 0, 0x93), // SS
    (0x30, 0, 0x93), // DS
    (0x40, 0, 0x93), // FS
    (0x50, 0, 0x93), // GS
    (0x60, 0, 0x00), // GDTR
    (0x70, 0, 0x82), // LDTR
    (0x80, 0, 0x00), // IDTR
    (0x90, 0, 0x8b), // TR
];

/// The VMSA page of a vCPU that starts at `eip`.
pub(super) fn page(eip: u32, vcpu_type: VcpuType, guest_features: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    let cs = (0x10, 0xf000, 0x9b);
    for (at, selector, attributes) in SEGMENTS.into_iter().chain([cs]) {
        put(at, &selector.to_le_bytes());
        put(at + 2, &attributes.to_le_bytes());
        put(at + 4, &0xffff_u32.to_le_bytes());
    }
    // Base of CS: the upper half of the start address; RIP is the lower.
    put(0x18, &u64::from(eip & 0xffff_0000).to_le_bytes());
    for (at, value) in [
        (0x0d0, 0x1000),                           // EFER: SVME
        (0x148, 0x40),                             // CR4: MCE
        (0x158, 0x10),                             // CR0: ET
        (0x160, 0x400),                            // DR7
        (0x168, 0xffff_0ff0),                      // DR6
        (0x170, 0x2),                              // RFLAGS
        (0x178, u64::from(eip & 0xffff)),          // RIP
        (0x268, 0x0007_0406_0007_0406),            // G_PAT
        (0x310, u64::from(vcpu_type.signature())), // RDX
        (0x3b0, guest_features),                   // SEV_FEATURES
        (0x3e8, 0x1),                              // XCR0
    ] {
        put(at, &value.to_le_bytes());
    }
    put(0x408, &0x1f80_u32.to_le_bytes()); // MXCSR
    put(0x410, &0x037f_u16.to_le_bytes()); // x87 FCW
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_packed_as_cpuid_packs_them() {
        assert_eq!(VcpuType::EPYC_V4.signature(), 0x0080_0f12);
        assert_eq!("EPYC-Milan".parse::<VcpuType>().unwrap().signature(), 0x00a0_0f11);
        assert_eq!("EPYC-Rome-v2".parse::<VcpuType>().unwrap().signature(), 0x0083_0f10);
        assert_eq!("EPYC-Turin".parse::<VcpuType>().unwrap().signature(), 0x00b0_0f00);
        assert_eq!(signature(6, 15, 3), 0x0000_06f3);
        assert_eq!("host".parse::<VcpuType>(), Err(LaunchError::VcpuType("host".into())));
    }
}
