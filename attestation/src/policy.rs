//! What a verifier demands of authentic evidence, every field of it. Whatever a policy does not name is decided
//! strictly; accepting anything has to be said.
//!
//! A policy is made in code, from [`Policy::new`], or read from TOML by [`Policy::from_toml`]. `policy.schema.json`
//! beside this crate is its JSON schema, `policies/` has examples. A value that could never be used, or that contradicts
//! another, is an error when a policy is read, and a failure when one made in code is applied.

mod check;
mod machine;
mod sound;
mod value;

pub use value::{Bit, ChipId, Demand, Dotted, Hex};

use crate::{Measurement, Product, advisories::Selection};
use serde::Deserialize;
use std::collections::BTreeSet;

/// Demands on evidence. [`Policy::default`] is the strict policy, which accepts nothing until it is told which guest
/// ([`Policy::measurements`]) and which REPORT_DATA.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Launch digests. Strict: none.
    #[cfg_attr(test, schemars(with = "Demand<Hex<48>>"))]
    pub measurements: Demand<Measurement>,
    /// REPORT_DATA, which shows that the report is fresh and for whom: what the verifier computes from its own nonce
    /// and the peer's key. Strict: none; a verifier that has a nonce puts its value here. "any" gives up freshness.
    pub report_data: Demand<Hex<64>>,
    /// HOST_DATA. Strict: all zero, a guest that was given none.
    pub host_data: Demand<Hex<32>>,
    /// REPORT_ID, which the firmware chooses at each launch. Strict: any, as nobody knows it before.
    pub report_id: Demand<Hex<32>>,
    /// REPORT_ID_MA. Strict: all 0xff, no migration agent.
    pub report_id_ma: Demand<Hex<32>>,
    /// Privilege levels that may have asked for the report. Strict: 0.
    pub vmpl: BTreeSet<u32>,
    /// Versions of the report, of 2 to 5. Strict: 3 and newer, which state the processor and the alias check.
    pub report_versions: BTreeSet<u32>,
    /// ID block. Strict: absent, as with a guest that is identified by its measurement alone.
    pub id_block: IdBlock,
    /// Policy under which the guest was launched.
    pub guest_policy: GuestPolicyDemands,
    /// Products that are allowed, and what each must have. Strict: Genoa and Turin.
    pub products: Products,
    /// Chips.
    pub chips: Chips,
    /// Keys that may sign.
    pub signing_key: SigningKeyDemands,
    /// Revocation lists.
    pub revocation: Revocation,
}

/// What the ID block must be.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum IdBlock {
    /// None was given at launch.
    Absent,
    /// Not looked at.
    Any,
    /// Signed by a known key.
    Signed(Box<SignedIdBlock>),
}

/// Demands on a signed ID block.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SignedIdBlock {
    /// SHA-384 of the ID keys that are allowed.
    pub id_keys: BTreeSet<Hex<48>>,
    /// SHA-384 of the author keys of which one must have certified the ID key. Left out: there must be no author key.
    #[serde(default)]
    pub author_keys: Option<Demand<Hex<48>>>,
    /// FAMILY_ID.
    pub family_id: Demand<Hex<16>>,
    /// IMAGE_ID.
    pub image_id: Demand<Hex<16>>,
    /// Least GUEST_SVN.
    pub minimum_guest_svn: u32,
}

/// Demands on the bits of the guest's POLICY.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct GuestPolicyDemands {
    /// SMT. Strict: any, as most platforms run with it; the platform's own bit is demanded per product.
    pub smt: Bit,
    /// MIGRATE_MA. Strict: forbidden.
    pub migrate_ma: Bit,
    /// DEBUG. Strict: forbidden.
    pub debug: Bit,
    /// SINGLE_SOCKET. Strict: any, as it only narrows where the guest runs.
    pub single_socket: Bit,
    /// CXL_ALLOW. Strict: forbidden.
    pub cxl_allow: Bit,
    /// MEM_AES_256_XTS. Strict: any, as with the four below: each only narrows what the host may do.
    pub mem_aes_256_xts: Bit,
    /// RAPL_DIS.
    pub rapl_dis: Bit,
    /// CIPHERTEXT_HIDING.
    pub ciphertext_hiding: Bit,
    /// PAGE_SWAP_DISABLE.
    pub page_swap_disable: Bit,
    /// Least ABI version that the guest must demand of the firmware, such as "1.55".
    pub minimum_abi: Option<Dotted<2>>,
    /// Highest ABI version that it may demand.
    pub maximum_abi: Option<Dotted<2>>,
}

/// Products that are allowed, each with its demands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Products {
    /// Needs [`Chips::allow`]: Milan's endorsement keys can be extracted in software (arXiv 2605.12990).
    #[serde(default)]
    pub milan: Option<ProductPolicy>,
    /// With Bergamo and Siena.
    #[serde(default)]
    pub genoa: Option<ProductPolicy>,
    /// Turin.
    #[serde(default)]
    pub turin: Option<ProductPolicy>,
}

/// Demands on the machines of one product.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ProductPolicy {
    /// Bits of PLATFORM_INFO.
    pub platform: PlatformDemands,
    /// Advisories whose TCB floors count. Strict: all that are known.
    pub advisories: Selection,
    /// Floors of the TCB beside those of the advisories.
    pub minimum_tcb: TcbFloors,
    /// Least SNP firmware, running and committed, such as "1.55.43". Strict: whatever the TCB floors allow.
    pub minimum_firmware: Option<Dotted<3>>,
    /// Whether firmware may run that is not committed, from which the host can go back. Strict: no.
    pub provisional_firmware: bool,
    /// Bits that must be set in LAUNCH_MIT_VECTOR; needs version 5 of the report. Strict: none.
    pub launch_mitigations: u64,
    /// Bits that must be set in CURRENT_MIT_VECTOR; needs version 5 of the report. Strict: none.
    pub current_mitigations: u64,
}

/// Demands on the bits of PLATFORM_INFO. Those left out are decided by the product.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct PlatformDemands {
    /// SMT is on. Strict: any.
    pub smt: Option<Bit>,
    /// TSME is on. Strict: any.
    pub tsme: Option<Bit>,
    /// Memory has ECC. Strict: required.
    pub ecc: Option<Bit>,
    /// Power readings are off. Strict: required on Turin, elsewhere any.
    pub rapl_dis: Option<Bit>,
    /// Ciphertext hiding is on. Strict: required on Turin, elsewhere any.
    pub ciphertext_hiding: Option<Bit>,
    /// No aliased memory was found (BadRAM). Strict: required.
    pub alias_check_complete: Option<Bit>,
    /// The IOMMU's writes are confined. Strict: any, as older firmware does not state it.
    pub iommu_write_safe: Option<Bit>,
    /// Trusted I/O is on. Strict: any.
    pub tio: Option<Bit>,
    /// Bits without a known meaning. Strict: forbidden.
    pub unknown: Option<Bit>,
}

/// Floors of the four TCB versions of a report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TcbFloors {
    /// For all four.
    pub every: TcbFloor,
    /// REPORTED_TCB: the endorsement key's.
    pub reported: TcbFloor,
    /// COMMITTED_TCB: below it the host cannot roll back.
    pub committed: TcbFloor,
    /// CURRENT_TCB: runs now.
    pub current: TcbFloor,
    /// LAUNCH_TCB: the guest was started on it.
    pub launch: TcbFloor,
}

/// Least security versions, part by part. Never compared as one number: a host could otherwise pay for an old microcode
/// with a new bootloader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TcbFloor {
    /// Turin only.
    pub fmc: Option<u8>,
    /// PSP bootloader.
    pub bootloader: Option<u8>,
    /// PSP operating system.
    pub tee: Option<u8>,
    /// SNP firmware.
    pub snp: Option<u8>,
    /// CPU microcode.
    pub microcode: Option<u8>,
}

/// Demands on the chip.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Chips {
    /// Chips that are allowed. Left out: every chip of Genoa and Turin, none of Milan. "any" takes Milan's chips too,
    /// although whoever owns such a machine may have read its keys.
    pub allow: Option<Demand<ChipId>>,
    /// Chips that are not.
    pub deny: BTreeSet<ChipId>,
}

/// Keys that may sign a report.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SigningKeyDemands {
    /// The chip's own (VCEK). Strict: yes.
    pub vcek: bool,
    /// A cloud provider's (VLEK), by the provider's name in its certificate (CSP_ID). Strict, and left out: none.
    pub vlek: Option<Demand<String>>,
}

/// Demands on revocation lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Revocation {
    /// When the root's list is needed.
    pub crl: CrlDemand,
    /// Days since thisUpdate after which a list is stale even before its nextUpdate. Needed for lists without nextUpdate.
    pub maximum_age_days: Option<u32>,
}

/// When the root's revocation list is needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CrlDemand {
    /// A current one must be there.
    #[default]
    Require,
    /// The verifier may have none; if it has any, a current one of this root must be among them.
    IfGiven,
    /// Missing and stale ones do not matter. A list that is there and names a certificate of the chain still does.
    Ignore,
}

/// Why a text is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not TOML, or not with these fields.
    #[error("the policy cannot be read: {0}")]
    Toml(#[from] Box<toml::de::Error>),
    /// Values that could never be used, or contradict each other.
    #[error("the policy cannot be used:{}", .0.iter().map(|problem| format!("\n- {problem}")).collect::<String>())]
    Unusable(Vec<String>),
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            measurements: Demand::none(),
            report_data: Demand::none(),
            host_data: Demand::only([[0; 32]]),
            report_id: Demand::Any,
            report_id_ma: Demand::only([[0xff; 32]]),
            vmpl: [0].into(),
            report_versions: [3, 4, 5].into(),
            id_block: IdBlock::Absent,
            guest_policy: GuestPolicyDemands::default(),
            products: Products::default(),
            chips: Chips::default(),
            signing_key: SigningKeyDemands::default(),
            revocation: Revocation::default(),
        }
    }
}

impl Default for GuestPolicyDemands {
    fn default() -> Self {
        Self {
            smt: Bit::Any,
            migrate_ma: Bit::Forbidden,
            debug: Bit::Forbidden,
            single_socket: Bit::Any,
            cxl_allow: Bit::Forbidden,
            mem_aes_256_xts: Bit::Any,
            rapl_dis: Bit::Any,
            ciphertext_hiding: Bit::Any,
            page_swap_disable: Bit::Any,
            minimum_abi: None,
            maximum_abi: None,
        }
    }
}

impl Default for Products {
    fn default() -> Self {
        Self { milan: None, genoa: Some(ProductPolicy::default()), turin: Some(ProductPolicy::default()) }
    }
}

impl Default for SigningKeyDemands {
    fn default() -> Self {
        Self { vcek: true, vlek: None }
    }
}

impl Products {
    /// Demands on a product, if it is allowed.
    #[must_use]
    pub const fn get(&self, product: Product) -> Option<&ProductPolicy> {
        match product {
            Product::Milan => self.milan.as_ref(),
            Product::Genoa => self.genoa.as_ref(),
            Product::Turin => self.turin.as_ref(),
        }
    }

    /// Those that are allowed.
    pub fn allowed(&self) -> impl Iterator<Item = (Product, &ProductPolicy)> {
        Product::ALL.into_iter().filter_map(|product| Some((product, self.get(product)?)))
    }
}

impl TcbFloor {
    /// Each part with its name, in the order of [`crate::report::TcbVersion::parts`].
    #[must_use]
    pub const fn parts(self) -> [(&'static str, Option<u8>); 5] {
        [
            ("fmc", self.fmc),
            ("bootloader", self.bootloader),
            ("tee", self.tee),
            ("snp", self.snp),
            ("microcode", self.microcode),
        ]
    }
}

impl Policy {
    /// The strict policy for these launch digests and this REPORT_DATA.
    #[must_use]
    pub fn new(measurements: impl IntoIterator<Item = Measurement>, report_data: [u8; 64]) -> Self {
        Self {
            measurements: Demand::only(measurements),
            report_data: Demand::only([report_data]),
            ..Self::default()
        }
    }

    /// This policy with the REPORT_DATA that the verifier computed from its own nonce.
    #[must_use]
    pub fn with_report_data(mut self, report_data: [u8; 64]) -> Self {
        self.report_data = Demand::only([report_data]);
        self
    }

    /// Reads a policy. Every value in it must be one that can be used.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let policy: Self = toml::from_str(text).map_err(Box::new)?;
        let problems = policy.problems();
        if problems.is_empty() { Ok(policy) } else { Err(PolicyError::Unusable(problems)) }
    }
}

#[cfg(test)]
mod tests;
