//! The state in which QEMU and KVM start a vCPU: one page, measured.
//!
//! Source of the layout: Linux `struct sev_es_save_area` (AMD document 24593, table "VMSA layout"). Source of the
//! values: reset state of QEMU's x86 CPUs, with what KVM forces (EFER.SVME, CR4.MCE).

use super::{LaunchError, gctx::PAGE};
use std::str::FromStr;

/// Where the first vCPU starts.
pub(super) const RESET_VECTOR: u32 = 0xffff_fff0;

/// CPUID signature (leaf 1, EAX) of a CPU model, which stands in RDX at reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VcpuType(u32);

impl VcpuType {
    /// QEMU's `EPYC-v4`: the model to use, since its signature depends on no host.
    pub const EPYC_V4: Self = Self::of(23, 1, 2);

    /// From family, model and stepping, as CPUID packs them (AMD document 25481).
    #[must_use]
    pub const fn of(family: u32, model: u32, stepping: u32) -> Self {
        let (extended, base) = if family > 0xf { (family - 0xf, 0xf) } else { (0, family) };
        Self(
            (extended & 0xff) << 20
                | (model >> 4 & 0xf) << 16
                | base << 8
                | (model & 0xf) << 4
                | stepping & 0xf,
        )
    }

    /// The signature.
    #[must_use]
    pub const fn signature(self) -> u32 {
        self.0
    }
}

impl FromStr for VcpuType {
    type Err = LaunchError;

    /// From QEMU's name of the model (`builtin_x86_defs`).
    fn from_str(name: &str) -> Result<Self, LaunchError> {
        match name {
            "EPYC" | "EPYC-IBPB" | "EPYC-v1" | "EPYC-v2" | "EPYC-v3" | "EPYC-v4" => Ok(Self::EPYC_V4),
            "EPYC-Rome" | "EPYC-Rome-v1" | "EPYC-Rome-v2" | "EPYC-Rome-v3" => Ok(Self::of(23, 49, 0)),
            "EPYC-Milan" | "EPYC-Milan-v1" | "EPYC-Milan-v2" => Ok(Self::of(25, 1, 1)),
            "EPYC-Genoa" | "EPYC-Genoa-v1" => Ok(Self::of(25, 17, 0)),
            "EPYC-Turin" => Ok(Self::of(26, 0, 0)),
            _ => Err(LaunchError::VcpuType(name.to_owned())),
        }
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
        assert_eq!(VcpuType::of(6, 15, 3).signature(), 0x0000_06f3);
        assert_eq!("host".parse::<VcpuType>(), Err(LaunchError::VcpuType("host".into())));
    }
}
